//! The command `balancer import`.

mod input;

use std::{
    fs::OpenOptions,
    io::{self, Write as _},
    net::IpAddr,
    path::{Path, PathBuf},
};

use balancer_config::{file, value};
use balancer_import::{Dialect, convert};
use balancer_netlink::sides::sides;

use super::{Failure, output};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Configuration files of one program; - is standard input
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// The program: nginx, haproxy, keepalived or ipvsadm [default: guessed by content]
    #[arg(long, value_name = "PROGRAM")]
    from: Option<Dialect>,
    /// The address that clients connect to, for listeners on every address; may be repeated
    #[arg(long = "address", value_name = "ADDR", value_parser = address)]
    addresses: Vec<IpAddr>,
    /// Write here; the file must not exist yet; - is standard output [default: -]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Name the interfaces of this machine in the result: the balancer will run here
    #[arg(long)]
    here: bool,
}

/// The name of standard output on the command line.
const STANDARD_OUTPUT: &str = "-";

/// Runs the import; its exit codes differ from those of other commands. 0 means that all lines were converted, 1 that
/// an operator has to convert some lines, and 2 that the text was not understood.
pub(super) async fn run(args: &Args) -> Result<(), Failure> {
    let files = args.files.iter().map(|path| input::read(path)).collect::<Result<Vec<_>, _>>().map_err(refused)?;
    let dialect = args.from.map_or_else(|| guess(&files), Ok).map_err(refused)?;
    let mut conversion = convert(dialect, &files, &args.addresses, &mut input::included).map_err(refused)?;
    if args.here {
        let interfaces = interfaces(&conversion.toml()).await?;
        conversion.name_interfaces(interfaces);
    }
    match args.output.as_deref().filter(|path| *path != Path::new(STANDARD_OUTPUT)) {
        Some(path) => write(path, &conversion.toml()).map_err(refused)?,
        None => output::print(&conversion.toml())?,
    }
    let file = files.first().map_or("", |(name, _)| name.as_str());
    for line in conversion.for_the_terminal(file) {
        writeln!(io::stderr(), "{line}")?;
    }
    writeln!(io::stderr(), "{}", conversion.summary())?;
    if conversion.need_you() == 0 { Ok(()) } else { Err(Failure::Told) }
}

/// The interfaces of this machine for the services in a result.
async fn interfaces(result: &str) -> Result<Vec<String>, Failure> {
    let none = "--here: no service has an address, so no interface can be found; give --address as well";
    let (config, _) = file::parse(Path::new("the result"), result.as_bytes()).map_err(|_| refused(none))?;
    let found = sides(&config).await.map_err(|error| refused(format!("--here: {error:#}")))?;
    if found.is_empty() {
        return Err(refused("--here: no interface of this machine leads to clients or backends; name them yourself"));
    }
    Ok(found)
}

/// Parses an address without a port.
fn address(text: &str) -> Result<IpAddr, String> {
    match value::address(text)? {
        (address, None) => Ok(address),
        (address, Some(_)) => Err(format!("{text} has a port, and the listeners have theirs; write {address}")),
    }
}

fn refused(what: impl ToString) -> Failure {
    Failure::NotUnderstood(what.to_string())
}

/// Guesses the program to which all the files belong.
fn guess(files: &[(String, String)]) -> Result<Dialect, String> {
    let mut guessed: Option<(&str, Dialect)> = None;
    for (name, text) in files {
        match (Dialect::guess(text), guessed) {
            (Some(dialect), Some((other, first))) if dialect != first => {
                return Err(format!(
                    "{name}: it looks like a file of {dialect}, and {other} like one of {first}; give --from, or import them one by one"
                ));
            }
            (Some(dialect), None) => guessed = Some((name, dialect)),
            _ => {}
        }
    }
    let names = || files.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(", ");
    guessed.map(|(_, dialect)| dialect).ok_or_else(|| {
        format!(
            "{}: it is not known whose configuration this is; give --from nginx, haproxy, keepalived or ipvsadm",
            names()
        )
    })
}

/// Writes the result to a new file. The function never overwrites a file, because an operator may have edited it.
fn write(path: &Path, text: &str) -> Result<(), String> {
    let opened = OpenOptions::new().write(true).create_new(true).open(path);
    let mut file = opened.map_err(|error| {
        if error.kind() == io::ErrorKind::AlreadyExists {
            format!("{}: it exists, and is left as it is; name another file", path.display())
        } else {
            format!("{}: it cannot be made: {error}", path.display())
        }
    })?;
    file.write_all(text.as_bytes()).map_err(|error| format!("{}: it cannot be written: {error}", path.display()))
}
