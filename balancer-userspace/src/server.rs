//! The options that name a balancer on another machine.

use std::path::PathBuf;

use balancer_api::server::Server;

use super::Failure;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Balancer on another machine, instead of the control socket; requires --ca, --cert and --key
    #[arg(long, global = true, env = "BALANCER_SERVER", value_name = "https://HOST:PORT")]
    server: Option<String>,
    /// With --server: the certificates that sign the balancer's certificate
    #[arg(long, global = true, env = "BALANCER_CA", value_name = "FILE")]
    ca: Option<PathBuf>,
    /// With --server: the client certificate
    #[arg(long, global = true, env = "BALANCER_CERT", value_name = "FILE")]
    cert: Option<PathBuf>,
    /// With --server: the private key of the client certificate
    #[arg(long, global = true, env = "BALANCER_KEY", value_name = "FILE")]
    key: Option<PathBuf>,
}

impl Args {
    /// Returns the balancer on another machine that the options name, if they name one.
    pub(super) fn server(&self) -> Result<Option<Server>, Failure> {
        let Self { server, ca, cert, key } = self;
        let Some(url) = server else { return Ok(None) };
        let (Some(ca), Some(cert), Some(key)) = (ca, cert, key) else {
            let missing = [("--ca", ca), ("--cert", cert), ("--key", key)];
            let missing: Vec<&str> = missing.iter().filter(|(_, file)| file.is_none()).map(|(name, _)| *name).collect();
            return Err(Failure::Usage(format!("--server without {}", missing.join(", "))));
        };
        Server::new(url, ca, cert, key).map(Some).map_err(Failure::Usage)
    }
}
