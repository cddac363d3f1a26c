//! Facts about interfaces and about the controller's process that the kernel provides in files and by ioctl.

use std::{
    collections::HashMap,
    ffi::OsStr,
    fs, io,
    os::fd::{AsRawFd as _, RawFd},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
};

use balancer_config::{config::Config, file};
use nix::{
    sched::{CloneFlags, setns},
    sys::{
        socket::{AddressFamily, SockFlag, SockType, getsockopt, socket, sockopt::PeerCredentials},
        utsname::uname,
    },
};

use crate::facts::{Forwards, Offloads};

/// The release and the build of the running kernel.
pub(super) fn kernel() -> (String, String) {
    let word = |word: &OsStr| word.to_string_lossy().into_owned();
    uname().map(|name| (word(name.release()), word(name.version()))).unwrap_or_default()
}

/// Returns the id of the process that serves the control socket.
///
/// # Errors
/// Fails if no process serves the socket, or if the doctor's process cannot see the serving process.
pub(super) fn controller(socket: &Path) -> io::Result<i32> {
    let stream = UnixStream::connect(socket)?;
    let pid = getsockopt(&stream, PeerCredentials)?.pid();
    if pid > 0 { Ok(pid) } else { Err(io::Error::other("it runs in another process namespace")) }
}

/// Moves the calling thread into the network namespace of a process. The function returns whether the thread was in
/// another network namespace before.
///
/// # Errors
/// Fails if this process may not enter the namespace.
pub(super) fn enter_network_of(pid: i32) -> io::Result<bool> {
    let theirs = fs::File::open(format!("/proc/{pid}/ns/net"))?;
    let (own, other) = (fs::read_link("/proc/thread-self/ns/net")?, fs::read_link(format!("/proc/{pid}/ns/net"))?);
    if own == other {
        return Ok(false);
    }
    setns(theirs, CloneFlags::CLONE_NEWNET)?;
    Ok(true)
}

/// The configuration file of the controller with the process id `pid`.
///
/// # Errors
/// Fails if the configuration file is missing or invalid.
pub(super) fn configuration(pid: i32) -> io::Result<Config> {
    let arguments = fs::read(format!("/proc/{pid}/cmdline"))?;
    let mut words = arguments.split(|byte| *byte == 0).map(String::from_utf8_lossy);
    let named = words.find_map(|word| match word.split_once('=') {
        _ if word == "--config" => Some(None),
        Some(("--config", path)) => Some(Some(path.to_owned())),
        _ => None,
    });
    let path = match named {
        Some(Some(path)) => Some(path),
        Some(None) => words.next().map(std::borrow::Cow::into_owned),
        None => None,
    };
    let path = path.ok_or_else(|| io::Error::other("its command line names no file"))?;
    // The path is relative to the working directory of the controller's process.
    let path = PathBuf::from(format!("/proc/{pid}/cwd")).join(path);
    let (config, _) = file::load(&path).map_err(|errors| io::Error::other(errors.to_string()))?;
    Ok(config)
}

/// Whether a signal has stopped a process.
pub(super) fn is_stopped(pid: i32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    status.lines().filter_map(|line| line.strip_prefix("State:")).any(|state| state.trim().starts_with(['T', 't']))
}

/// How often the kernel has killed processes of that process's control group because of memory; `None` without version 2
/// of control groups, or if the group does not count its memory.
///
/// # Errors
/// If the files of the process or the group cannot be read.
pub(super) fn oom_kills(pid: i32) -> io::Result<Option<u64>> {
    let groups = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
    let Some(group) = groups.lines().find_map(|line| line.strip_prefix("0::/")) else { return Ok(None) };
    let path = PathBuf::from("/sys/fs/cgroup").join(group).join("memory.events");
    let events = match fs::read_to_string(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        events => events?,
    };
    Ok(events.lines().find_map(|line| line.strip_prefix("oom_kill ")).and_then(|count| count.parse().ok()))
}

/// Whether the kernel forwards packets from an interface.
pub(super) fn forwards(interface: &str) -> Forwards {
    let read = |family: &str| {
        let path = format!("/proc/sys/net/{family}/conf/{interface}/forwarding");
        fs::read_to_string(path).ok().map(|text| text.trim() != "0")
    };
    Forwards { v4: read("ipv4"), v6: read("ipv6") }
}

/// Whether the kernel answers ARP requests on an interface for the addresses of all interfaces. The larger setting of
/// the interface and of all interfaces counts.
pub(super) fn answers_for_all(interface: &str) -> Option<bool> {
    let ignores = |of: &str| {
        let text = fs::read_to_string(format!("/proc/sys/net/ipv4/conf/{of}/arp_ignore")).ok()?;
        Some(text.trim() != "0")
    };
    Some(!(ignores("all")? || ignores(interface)?))
}

/// The names of the loaded BPF programs, by id.
///
/// # Errors
/// Fails if this process may not list the programs.
pub(super) fn programs() -> Result<HashMap<u32, String>, String> {
    let mut names = HashMap::new();
    for program in aya::programs::loaded_programs() {
        let program = program.map_err(|error| error.to_string())?;
        names.insert(program.id(), program.name_as_str().unwrap_or_default().to_owned());
    }
    Ok(names)
}

const ETHTOOL_GFLAGS: u32 = 0x25;
const ETHTOOL_GGRO: u32 = 0x2b;
const ETH_FLAG_RXVLAN: u32 = 1 << 8;
const ETH_FLAG_LRO: u32 = 1 << 15;

/// The kernel's `struct ethtool_value`.
#[repr(C)]
struct EthtoolValue {
    cmd: u32,
    data: u32,
}

/// Returns those offloads of an interface that change frames before an XDP program sees the frames.
///
/// # Errors
/// Fails if the driver does not report offloads.
pub(super) fn offloads(interface: &str) -> io::Result<Offloads> {
    let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    let flags = ethtool(socket.as_raw_fd(), interface, ETHTOOL_GFLAGS)?;
    Ok(Offloads {
        lro: flags & ETH_FLAG_LRO != 0,
        strips_tags: flags & ETH_FLAG_RXVLAN != 0,
        gro: ethtool(socket.as_raw_fd(), interface, ETHTOOL_GGRO)? != 0,
    })
}

fn ethtool(socket: RawFd, interface: &str, cmd: u32) -> io::Result<u32> {
    let mut value = EthtoolValue { cmd, data: 0 };
    let mut name = [0; libc::IFNAMSIZ];
    if interface.len() >= name.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (place, byte) in name.iter_mut().zip(interface.bytes()) {
        *place = byte as libc::c_char;
    }
    let ifr_ifru = libc::__c_anonymous_ifr_ifru { ifru_data: (&raw mut value).cast() };
    let mut request = libc::ifreq { ifr_name: name, ifr_ifru };
    // SAFETY: the request names an interface and points to a value of the command's size; both outlive the call.
    let result = unsafe { libc::ioctl(socket, libc::SIOCETHTOOL as _, &raw mut request) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(value.data) }
}
