//! The command `balancer capture`.

mod pcapng;

use std::{
    fs::{File, OpenOptions},
    io::{self, BufWriter, IsTerminal as _, Write},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::Context as _;
use balancer_api::{
    client::Client,
    trace::{LEAST_SNAPLEN, MOST_SNAPLEN},
};
use ipnet::IpNet;

use self::pcapng::{Packet, Way, Writer};
use crate::{
    Failure,
    observe::{self, Asked, Observation, Session, explain::Explanation},
};

const COUNT: u64 = 10_000;
/// The maximum size of a capture file in bytes.
const MOST_BYTES: u64 = 1 << 30;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The file to write, in pcapng format; `-`: standard output, for a pipe
    #[arg(short = 'w', long = "write", value_name = "FILE", required = true)]
    file: PathBuf,
    /// Capture only packets of this client, or of the clients in this prefix
    #[arg(long, value_name = "A", value_parser = observe::client)]
    client: Option<IpNet>,
    /// Capture only packets of this service [default: all]
    #[arg(long, value_name = "S")]
    service: Option<String>,
    /// End after this number of packets; the file has each packet as it came and as it left
    #[arg(long, value_name = "N", default_value_t = COUNT, value_parser = clap::value_parser!(u64).range(1..))]
    count: u64,
    /// Bytes of each frame to keep
    #[arg(long, value_name = "B", default_value_t = MOST_SNAPLEN,
        value_parser = clap::value_parser!(u32).range(i64::from(LEAST_SNAPLEN)..=i64::from(MOST_SNAPLEN)))]
    snaplen: u32,
}

pub(super) async fn run(client: &Client, args: &Args) -> Result<(), Failure> {
    let is_pipe = args.file == Path::new("-");
    if is_pipe && io::stdout().is_terminal() {
        return Err(Failure::Usage(
            "-w - writes bytes that no terminal can show: pipe them, e.g. to tshark -r -".to_owned(),
        ));
    }
    let asked = Asked { service: args.service.clone(), client: args.client, snaplen: args.snaplen, count: args.count };
    // The capture starts before the file is created, so that a failed start does not overwrite a file.
    let mut session = Session::open(client, &asked).await?;
    let written = into_file(&mut session, args, is_pipe).await;
    // Also after a failure, so that the next trace can start at once.
    let lost = session.end().await;
    let Written { packets, bytes, full } = written?;
    let lost = if lost == 0 { String::new() } else { format!("; {lost} frames lost, because they came too fast") };
    let full = if full { "; ended because the file is as large as it may become" } else { "" };
    writeln!(io::stderr(), "{} captured, {bytes} bytes written{lost}{full}", observe::packets(packets))?;
    Ok(())
}

/// A finished capture.
struct Written {
    packets: u64,
    bytes: u64,
    /// Whether the file became too large.
    full: bool,
}

async fn into_file(session: &mut Session, args: &Args, is_pipe: bool) -> Result<Written, Failure> {
    let to: Box<dyn Write> = if is_pipe { Box::new(io::stdout()) } else { Box::new(create(&args.file)?) };
    let mut writer = Writer::new(BufWriter::new(to), args.snaplen)?;
    writer.flush()?;
    writeln!(io::stderr(), "capturing, at most {}; Ctrl-C ends it", observe::packets(args.count))?;
    let (packets, full) = write(session, &mut writer).await?;
    writer.flush()?;
    Ok(Written { packets, bytes: writer.written(), full })
}

/// Creates a file that other users cannot read, because it will contain the traffic of clients.
fn create(path: &Path) -> anyhow::Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    options.open(path).with_context(|| format!("cannot write {}", path.display()))
}

/// Writes packets until the requested number is reached. The function returns the number of packets, and whether the
/// file became too large.
async fn write<W: Write>(session: &mut Session, writer: &mut Writer<W>) -> Result<(u64, bool), Failure> {
    let mut packets = 0;
    while let Some((observation, explanation)) = session.next().await? {
        packets += 1;
        let times = [observation.head.came, observation.head.left].map(|moment| nanoseconds(session.time(moment)));
        pair(writer, &observation, &explanation, packets, times)?;
        // If the file is a pipe, its reader waits for the packet.
        writer.flush()?;
        if writer.written() >= MOST_BYTES {
            return Ok((packets, true));
        }
    }
    Ok((packets, false))
}

/// Writes the frame as it arrived, and also as it departed if the program changed and sent the packet.
fn pair<W: Write>(
    writer: &mut Writer<W>,
    Observation { head, came, left }: &Observation,
    explanation: &Explanation,
    id: u64,
    [came_at, left_at]: [u64; 2],
) -> io::Result<()> {
    let comment = explanation.comment();
    let first = Packet {
        interface: &explanation.interface,
        way: Way::Came,
        time: came_at,
        bytes: came,
        length: head.came_length,
        comment: &comment,
        id,
        queue: head.queue,
        action: head.action,
    };
    writer.packet(&first)?;
    if matches!(explanation.verdict, "pass" | "drop" | "aborted") {
        return Ok(());
    }
    let out = explanation.next_hop.as_ref().and_then(|hop| hop.interface.as_deref());
    writer.packet(&Packet {
        interface: out.unwrap_or(&explanation.interface),
        way: Way::Left,
        time: left_at,
        bytes: left,
        length: head.left_length,
        ..first
    })
}

fn nanoseconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
}
