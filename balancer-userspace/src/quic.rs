//! The commands `balancer quic …`.

use balancer_api::{
    client::Client,
    model::ServiceView,
    quic::{QuicServerConfig, QuicView},
};
use balancer_config::{names::BackendName, value, words::grouped};
use clap::Subcommand;

use super::{
    Failure, by_all,
    output::{self, Table},
};

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Show how connection IDs name the backends of a service
    Show {
        /// The service's name
        #[arg(value_name = "SVC", value_parser = value::name)]
        service: String,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Print the settings, including the key, with which a backend's server makes its connection IDs
    ServerConfig {
        /// The backend
        #[arg(value_name = "SVC/NAME", value_parser = value::backend_name)]
        backend: BackendName,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Change the key
    #[command(subcommand)]
    Key(Key),
}

#[derive(Debug, Subcommand)]
pub(super) enum Key {
    /// Make a new key with the next configuration number; connection IDs with the present number stay valid
    Rotate {
        /// The service's name
        #[arg(value_name = "SVC", value_parser = value::name)]
        service: String,
    },
}

pub(super) async fn run(client: &Client, verb: Verb) -> Result<(), Failure> {
    match verb {
        Verb::Show { service, json } => {
            let service = client.service(&service).await?;
            if json {
                return Ok(output::print_json(&service.quic)?);
            }
            Ok(output::print(&shown(&service))?)
        }
        Verb::ServerConfig { backend, json } => {
            let config = client.quic_server(&backend).await?;
            if json {
                return Ok(output::print_json(&config)?);
            }
            Ok(output::print(&server_config(&config))?)
        }
        Verb::Key(Key::Rotate { service }) => {
            let changed = client.rotate_quic_key(&service).await?;
            let next = format!("balancer quic server-config {service}/NAME prints it for each server");
            output::print(&format!("{}\n{next}\n", changed.message))?;
            by_all(&changed.not_applied_by)
        }
    }
}

fn shown(service: &ServiceView) -> String {
    let Some(quic) = &service.quic else {
        return format!("service {} has no QUIC listener\n", service.name);
    };
    let QuicView { format, config, config_before, server_id_length, nonce_length, .. } = quic;
    let encrypted = if quic.encrypted { "encrypted" } else { "readable" };
    let before = config_before.map(|before| format!(", and {before}")).unwrap_or_default();
    let learns = if quic.learns { "remembered there if it was unknown or silent" } else { "not remembered" };
    let mut text = format!(
        "format {format}: {encrypted} server IDs of {server_id_length} bytes, nonces of {nonce_length}\n\
         configurations understood: {config}{before}\n\
         an address that brings a connection to a backend is {learns}\n\
         packets steered by connection ID: {}; whose ID named no backend: {}; addresses remembered: {}\n\n",
        grouped(quic.steered),
        grouped(quic.unknown_id),
        grouped(quic.migrated)
    );
    let mut table = Table::new(&["BACKEND", "SERVER ID"]);
    for server in &quic.servers {
        table.row([server.backend.clone(), server.server_id.clone()]);
    }
    text.push_str(&table.render());
    text
}

fn server_config(config: &QuicServerConfig) -> String {
    let QuicServerConfig { service, backend, format, config: number, server_id, nonce_length, id_length, key } = config;
    let server_length = id_length - nonce_length - 1;
    let key = key.as_ref().map_or_else(
        || "key                none: server IDs are readable".to_owned(),
        |key| format!("key                {key}"),
    );
    format!(
        "# {service}/{backend}: connection IDs of its server, format {format}\n\
         server ID          {server_id}\n\
         configuration      {number}: the first three bits of a connection ID\n\
         connection ID      {id_length} bytes: 1, {server_length} of the server ID, {nonce_length} of a nonce\n\
         {key}\n\
         \n\
         # A server makes each of its connection IDs by draft-ietf-quic-load-balancers, section 5, from these values.\n\
         # quinn    a ConnectionIdGenerator, in EndpointConfig::cid_generator; cid_len() is {id_length}\n\
         # quic-go  a ConnectionIDGenerator, in Transport; ConnectionIDLen() is {id_length}\n\
         # ngtcp2   the callbacks get_new_connection_id and, for the first ID, ngtcp2_conn_server_new\n\
         # Envoy    the extension envoy.quic.connection_id_generator.quic_lb\n\
         # nginx    makes connection IDs of its own and takes no server ID\n"
    )
}
