//! The command line of `balancer-kubernetes`.

use std::{net::SocketAddr, path::PathBuf};

use balancer_api::server::Server;
use clap::{Parser, Subcommand, ValueEnum};
use ipnet::IpNet;

/// Serves Kubernetes Services of type LoadBalancer with a balancer
#[derive(Debug, Parser)]
#[command(name = "balancer-kubernetes", version)]
pub struct Cli {
    /// The action to perform
    #[command(subcommand)]
    pub verb: Verb,
}

/// A verb of the command line.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Follow the cluster, and keep the balancer's services up to date, until SIGTERM
    Run(Box<Run>),
}

/// The options of `run`.
#[derive(Clone, Debug, clap::Args)]
pub struct Run {
    /// The kubeconfig file for the API server; default: the pod's service account
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// Serve Services with this loadBalancerClass
    #[arg(long, value_name = "CLASS", default_value = "sticky.balancer/xdp")]
    pub class: String,
    /// Serve Services without a loadBalancerClass as well
    #[arg(long)]
    pub default: bool,
    /// Addresses for Services; may be repeated
    #[arg(long = "pool", value_name = "PREFIX")]
    pub pools: Vec<IpNet>,
    /// Send clients to these backends: pods, or nodes with their NodePorts
    #[arg(long, value_enum, default_value_t = Target::Pod)]
    pub target: Target,
    /// The balancer's control socket
    #[arg(long, value_name = "FILE", env = "BALANCER_SOCKET", default_value = balancer_config::file::DEFAULT_SOCKET)]
    pub socket: PathBuf,
    /// Balancer on another machine, instead of the control socket; requires --ca, --cert and --key; may be repeated for
    /// members of one fleet
    #[arg(long = "server", env = "BALANCER_SERVER", value_name = "https://HOST:PORT", value_delimiter = ',')]
    pub servers: Vec<String>,
    /// With --server: the certificates that sign the balancer's certificate
    #[arg(long, env = "BALANCER_CA", value_name = "FILE", requires = "servers")]
    pub ca: Option<PathBuf>,
    /// With --server: the client certificate
    #[arg(long, env = "BALANCER_CERT", value_name = "FILE", requires = "servers")]
    pub cert: Option<PathBuf>,
    /// With --server: the private key of the client certificate
    #[arg(long, env = "BALANCER_KEY", value_name = "FILE", requires = "servers")]
    pub key: Option<PathBuf>,
    /// The setting assign_vip: true (the balancer's first interface, announced) or an interface such as lo
    #[arg(long, value_name = "true|IF")]
    pub assign_vip: Option<String>,
    /// Where to serve GET /metrics
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:9662")]
    pub metrics: SocketAddr,
    /// The Lease that one of several controllers holds, NAMESPACE/NAME; none: act without one
    #[arg(long, value_name = "NAMESPACE/NAME|none", default_value = "kube-system/balancer-kubernetes")]
    pub lease: String,
    /// The name of this controller in the Lease; default: the host's name and a number
    #[arg(long, value_name = "NAME", env = "POD_NAME")]
    pub identity: Option<String>,
}

impl Run {
    /// Returns the balancers on other machines that the options name.
    ///
    /// # Errors
    /// Fails if an option is missing or malformed.
    pub fn servers(&self) -> anyhow::Result<Vec<Server>> {
        if self.servers.is_empty() {
            return Ok(Vec::new());
        }
        let (Some(ca), Some(cert), Some(key)) = (&self.ca, &self.cert, &self.key) else {
            anyhow::bail!("--server needs --ca, --cert and --key");
        };
        let servers = self.servers.iter().map(|url| Server::new(url, ca, cert, key).map_err(anyhow::Error::msg));
        servers.collect()
    }
}

/// The kind of backends that Services have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Target {
    /// The pods of the Service are the backends.
    Pod,
    /// All nodes, which accept packets at the Service's NodePorts, are the backends.
    Node,
}

impl Target {
    /// The forwarding modes that can reach such backends; the first one is the default.
    #[must_use]
    pub fn forwarding(self) -> Vec<&'static str> {
        match self {
            Self::Pod => vec!["nat", "snat", "ipip"],
            Self::Node => vec!["nat", "snat"],
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn when_the_command_line_is_that_of_the_manual_then_it_is_taken() {
        Cli::command().debug_assert();
        let words = "balancer-kubernetes run --kubeconfig k --class a/b --default --pool 198.51.100.0/28 \
                     --pool 2001:db8:1::/120 --target node --socket s";
        let Verb::Run(run) = Cli::try_parse_from(words.split_whitespace()).unwrap().verb;
        assert_eq!((run.pools.len(), run.target, run.class.as_str(), run.default), (2, Target::Node, "a/b", true));
        assert!(run.servers().unwrap().is_empty());
        assert!(Cli::try_parse_from(["balancer-kubernetes", "run", "--pool", "198.51.100.0"]).is_err());
    }

    #[test]
    fn when_balancers_are_on_other_machines_then_certificates_are_needed() {
        let run = |words: &str| {
            let words = format!("balancer-kubernetes run {words}");
            let Verb::Run(run) = Cli::try_parse_from(words.split_whitespace()).unwrap().verb;
            run.servers().map_err(|error| error.to_string())
        };
        let files = "--ca ca --cert cert --key key";
        let servers = run(&format!("--server https://lb1 --server https://lb2:1 {files}")).unwrap();
        assert_eq!(servers.iter().map(ToString::to_string).collect::<Vec<_>>(), ["https://lb1:9661", "https://lb2:1"]);
        assert_eq!(run("--server https://lb1 --ca ca").unwrap_err(), "--server needs --ca, --cert and --key");
        assert!(run(&format!("--server lb1 {files}")).unwrap_err().contains("is not a control listener"));
    }
}
