//! The command line of `balancer-kubernetes`.

use std::{net::SocketAddr, path::PathBuf};

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
    /// The balancer's own configuration file; this program writes a part of the file, between two comment lines
    #[arg(long, value_name = "FILE", default_value = "/etc/balancer/balancer.toml")]
    pub configuration: PathBuf,
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
        assert!(Cli::try_parse_from(["balancer-kubernetes", "run", "--pool", "198.51.100.0"]).is_err());
    }
}
