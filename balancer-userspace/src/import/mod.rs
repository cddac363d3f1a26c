//! The command `balancer import`.

mod input;

use std::{
    fs::OpenOptions,
    io::{self, Write as _},
    net::IpAddr,
    path::{Path, PathBuf},
};

use balancer_config::value;
use balancer_import::{Dialect, convert};

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
    /// Write here; the file must not exist yet [default: standard output]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// Runs the import; its exit codes differ from those of other commands. 0 means that all lines were converted, 1 that
/// an operator has to convert some lines, and 2 that the text was not understood.
pub(super) fn run(args: &Args) -> Result<(), Failure> {
    let files = args.files.iter().map(|path| input::read(path)).collect::<Result<Vec<_>, _>>().map_err(refused)?;
    let dialect = args.from.map_or_else(|| guess(&files), Ok).map_err(refused)?;
    let conversion = convert(dialect, &files, &args.addresses, &mut input::included).map_err(refused)?;
    match &args.output {
        Some(path) => write(path, &conversion.toml()).map_err(refused)?,
        None => output::print(&conversion.toml())?,
    }
    writeln!(io::stderr(), "{}", conversion.summary())?;
    if conversion.need_you() == 0 { Ok(()) } else { Err(Failure::Told) }
}

/// Parses an address without a port.
fn address(text: &str) -> Result<IpAddr, String> {
    match value::address(text)? {
        (address, None) => Ok(address),
        (address, Some(_)) => Err(format!("the ports are those of the listeners; write {address}")),
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
