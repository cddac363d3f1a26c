//! The programs that count frames which were redirected but not sent.

use std::{collections::BTreeMap, fs};

use anyhow::Context as _;
use aya::{
    Ebpf, EbpfLoader,
    maps::{MapData, PerCpuHashMap},
    programs::RawTracePoint,
};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use tracing::warn;

use super::{kernel_types, load::load_with};

/// The programs, and the kernel tracepoints to which they are attached.
const PROGRAMS: [(&str, &str); 2] = [("redirect_refused", "xdp_redirect_err"), ("redirect_lost", "xdp_devmap_xmit")];

/// The values by which the programs recognize frames of this balancer.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Whose {
    namespace: u64,
    /// The offsets in bytes of `net_device.ifindex`, `net_device.nd_net` and `net.net_cookie`.
    offsets: [u32; 3],
}

impl Whose {
    /// Finds the values for the network namespace of this thread and for the running kernel. `None`: failed redirects
    /// cannot be counted, and the function has logged a warning.
    pub(super) fn here() -> Option<Self> {
        Self::find().inspect_err(|error| warn!("redirects that fail later are not counted: {error:#}")).ok()
    }

    fn find() -> anyhow::Result<Self> {
        let btf = fs::read(kernel_types::OWN).with_context(|| kernel_types::OWN.to_owned())?;
        let wanted = [("net_device", "ifindex"), ("net_device", "nd_net"), ("net", "net_cookie")];
        Ok(Self { namespace: cookie()?, offsets: kernel_types::offsets(&btf, wanted)? })
    }

    /// Sets the values in the programs before the programs are loaded.
    pub(super) fn tell<'a>(&'a self, loader: &mut EbpfLoader<'a>) {
        let [ifindex, namespace, cookie] = &self.offsets;
        loader
            .override_global("NAMESPACE", &self.namespace, true)
            .override_global("DEVICE_IFINDEX", ifindex, true)
            .override_global("DEVICE_NAMESPACE", namespace, true)
            .override_global("NAMESPACE_COOKIE", cookie, true);
    }
}

/// Returns the cookie by which the kernel identifies the network namespace of this thread.
fn cookie() -> anyhow::Result<u64> {
    let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    let mut cookie = 0u64;
    let mut length = size_of::<u64>() as libc::socklen_t;
    // SAFETY: the socket is open, and the buffer has the stated length.
    let result = unsafe {
        libc::getsockopt(
            std::os::fd::AsRawFd::as_raw_fd(&socket),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    anyhow::ensure!(result == 0, "the network namespace's cookie: {}", std::io::Error::last_os_error());
    Ok(cookie)
}

/// Loads the programs, which run until `ebpf` is dropped. If the kernel refuses a program, the function logs a warning.
///
/// # Errors
/// Fails if the object contains no such program, which would be a broken build.
pub(super) fn attach(ebpf: &mut Ebpf) -> anyhow::Result<()> {
    for (name, tracepoint) in PROGRAMS {
        let program: &mut RawTracePoint =
            ebpf.program_mut(name).with_context(|| format!("the kernel object holds no program {name}"))?.try_into()?;
        load_with(name, || program.load())?;
        if let Err(error) = program.attach(tracepoint) {
            warn!("redirects that fail later are not counted: tracepoint {tracepoint}: {error}");
        }
    }
    Ok(())
}

/// The map in which the programs count failed redirects.
pub(super) struct RedirectErrors {
    map: PerCpuHashMap<MapData, u32, u64>,
}

impl RedirectErrors {
    pub(super) fn new(ebpf: &mut Ebpf) -> anyhow::Result<Self> {
        let map = ebpf.take_map("REDIRECT_ERRORS").context("the kernel object holds no map REDIRECT_ERRORS")?;
        Ok(Self { map: map.try_into()? })
    }

    /// The numbers of failed redirects, by the index of the egress interface.
    ///
    /// # Errors
    /// Fails if the kernel refuses the read.
    pub(super) fn read(&self) -> anyhow::Result<BTreeMap<u32, u64>> {
        let sums = self.map.iter().map(|row| row.map(|(ifindex, cpus)| (ifindex, cpus.iter().sum())));
        sums.collect::<Result<_, _>>().context("reading the counters of failed redirects")
    }
}
