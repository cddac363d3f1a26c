//! The command `balancer decap`.

use std::net::IpAddr;

use balancer_config::{config::XdpMode, value};
use balancer_netlink::decap;
use clap::ValueEnum;
use ipnet::IpNet;

use super::{
    Failure,
    run::{LogFormat, LogLevel, start_log},
    wait_for,
};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Interface on which tunnel packets arrive; may be repeated
    #[arg(long = "interface", value_name = "IF", required = true, value_parser = value::interface)]
    interfaces: Vec<String>,
    /// VIP to serve in addition to this machine's addresses on its other interfaces, such as lo; may be repeated
    #[arg(long = "vip", value_name = "ADDR", value_parser = vip)]
    vips: Vec<IpAddr>,
    /// Prefix of the tunnels' source addresses, which are the balancers' addresses; may be repeated [default: all
    /// addresses]
    #[arg(long = "from", value_name = "PREFIX", value_parser = prefix)]
    from: Vec<IpNet>,
    /// XDP mode: native, generic, or auto: native, or generic if the driver has no native mode
    #[arg(long, value_enum, default_value_t = Mode::Auto)]
    xdp_mode: Mode,
    /// Format of the log on standard error
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    log_format: LogFormat,
    /// Lowest level of lines to log
    #[arg(long, value_enum, default_value_t = LogLevel::Info)]
    log_level: LogLevel,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Mode {
    Auto,
    Native,
    Generic,
}

pub(super) fn run(args: Args) -> Result<(), Failure> {
    start_log(args.log_format, args.log_level)?;
    let xdp_mode = match args.xdp_mode {
        Mode::Auto => XdpMode::Auto,
        Mode::Native => XdpMode::Native,
        Mode::Generic => XdpMode::Generic,
    };
    wait_for(async { Ok(decap::run(&args.interfaces, &args.vips, &args.from, xdp_mode).await?) })
}

fn vip(text: &str) -> Result<IpAddr, String> {
    match text.parse::<IpAddr>() {
        Ok(address) if address.is_unspecified() || address.is_multicast() => {
            Err("a VIP is the address of one host".to_owned())
        }
        Ok(address) => Ok(address),
        Err(_) => Err("give an address without a port, such as 198.51.100.10 or 2001:db8::10".to_owned()),
    }
}

fn prefix(text: &str) -> Result<IpNet, String> {
    let prefix = text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
    let prefix = prefix.map_err(|_| "give a prefix or an address, such as 10.0.0.0/29 or 2001:db8::1".to_owned())?;
    if prefix.trunc() != prefix {
        return Err(format!("has bits behind its length; did you mean {}?", prefix.trunc()));
    }
    Ok(prefix)
}
