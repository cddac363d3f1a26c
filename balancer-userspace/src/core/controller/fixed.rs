//! What of a configuration holds from start to end.

use crate::config::model::Config;

/// The settings that a running controller cannot change.
#[derive(Clone, Debug)]
pub(super) struct Fixed {
    config: Config,
    /// Whether memory was set aside, because some service remembers clients.
    memory: bool,
}

impl Fixed {
    pub(super) fn of(config: &Config) -> Self {
        Self { config: Config { services: Vec::new(), ..config.clone() }, memory: remembers(config) }
    }

    /// The keys that `config` says otherwise.
    pub(super) fn changed(&self, config: &Config) -> Vec<&'static str> {
        let Self { config: old, memory } = self;
        [
            ("interfaces", old.interfaces == config.interfaces),
            ("xdp_mode", old.xdp_mode == config.xdp_mode),
            ("on_exit", old.on_exit == config.on_exit),
            ("state_file", old.state_file == config.state_file),
            ("control.socket", old.socket == config.socket),
            ("metrics.listen", old.metrics_listen == config.metrics_listen),
            ("metrics.page", old.metrics_page == config.metrics_page),
            ("client_table.capacity", old.client_table_capacity == config.client_table_capacity),
            ("hash.key", old.hash_key == config.hash_key),
            (
                "remember (no service has remembered its clients from the start, so no memory is set aside)",
                *memory || !remembers(config),
            ),
        ]
        .into_iter()
        .filter(|(_, same)| !same)
        .map(|(key, _)| key)
        .collect()
    }
}

fn remembers(config: &Config) -> bool {
    config.services.iter().any(|service| !service.remember.is_zero())
}
