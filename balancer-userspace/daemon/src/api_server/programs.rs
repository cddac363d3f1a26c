//! Programs of checks come from the balancer's own file. Members of the control socket's group may change services, and must
//! not be able to run what they like as another user.

use std::path::Path;

use balancer_model::{
    config::{CheckKind, Config, ExecCheck},
    value,
};
use hyper::StatusCode;

use super::failure::Failure;
use crate::configuration::Configurations;

/// Refuses a configuration that runs a program which the balancer's own file does not run as that user.
///
/// # Errors
/// When there is such a program.
pub(super) async fn refuse_foreign(configurations: &Configurations, config: &Config) -> Result<(), Failure> {
    let mut wanted = programs(config).peekable();
    if wanted.peek().is_none() {
        return Ok(());
    }
    let own = own(configurations).await;
    let known = |wanted: &ExecCheck| own.iter().flat_map(programs).any(|known| is_same(known, wanted));
    let Some(foreign) = wanted.find(|wanted| !known(wanted)) else { return Ok(()) };
    let whence = configurations.own().map_or_else(
        || "the file that a balancer is started with, and this one was started without".to_owned(),
        |own| format!("the balancer's own file: change {0}, then: balancer apply {0} --reread", own.display()),
    );
    let message = format!(
        "nothing was changed: the check that runs {} as {} is new, and programs come only from {whence}",
        value::quoted(&foreign.command.join(" ")),
        value::quoted(&foreign.user)
    );
    Err(Failure::new(StatusCode::UNPROCESSABLE_ENTITY, message))
}

/// The configuration that the balancer's own file has now. `None`: there is no file, or it is not valid.
async fn own(configurations: &Configurations) -> Option<Config> {
    let path = configurations.own().map(Path::to_owned)?;
    configurations.load(path).await.ok()?.ok().map(|(config, _)| config)
}

fn programs(config: &Config) -> impl Iterator<Item = &ExecCheck> {
    let checks = config.services.iter().flat_map(|service| service.checks());
    checks.filter_map(|check| if let CheckKind::Exec(exec) = &check.kind { Some(exec) } else { None })
}

fn is_same(one: &ExecCheck, other: &ExecCheck) -> bool {
    one.command == other.command && one.user == other.user
}
