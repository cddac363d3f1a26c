//! Runs the loaded program on a frame by `BPF_PROG_TEST_RUN`, without a network card.

use std::{
    io,
    os::fd::{AsRawFd as _, BorrowedFd},
    time::Duration,
};

const BPF_PROG_TEST_RUN: libc::c_long = 10;
/// The kernel's flag `BPF_F_TEST_XDP_LIVE_FRAMES`.
const LIVE_FRAMES: u32 = 1 << 1;
const MAX_FRAME: usize = 3 * 4096;

/// The part of `union bpf_attr` that `BPF_PROG_TEST_RUN` reads.
#[repr(C)]
#[derive(Default)]
struct TestRun {
    prog_fd: u32,
    retval: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    ctx_size_in: u32,
    ctx_size_out: u32,
    ctx_in: u64,
    ctx_out: u64,
    flags: u32,
    cpu: u32,
    batch_size: u32,
    padding: u32,
}

/// The kernel's `struct xdp_md`.
#[repr(C)]
#[derive(Default)]
struct XdpMd {
    data: u32,
    data_end: u32,
    data_meta: u32,
    ingress_ifindex: u32,
    rx_queue_index: u32,
    egress_ifindex: u32,
}

/// The result of running the program on a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ran {
    /// The XDP action that the program returned.
    pub action: u32,
    /// The frame as the program has left it after the run.
    pub frame: Vec<u8>,
    /// The mean time of one run of the program.
    pub duration: Duration,
}

/// Runs the program once on `frame`. The linear part of the frame contains only the first `linear` bytes (at least 14).
///
/// # Errors
/// Fails if the kernel refuses the run. Kernels before Linux 6.18 always refuse the run: see [`splits_frames`].
pub fn run_linear(program: BorrowedFd<'_>, frame: &[u8], linear: usize, ifindex: u32) -> io::Result<Ran> {
    test_run(program, frame, linear, ifindex, 1)
}

/// Runs the program `repeat` times as if `frame` arrived on `ifindex` (0: the loopback of the current namespace). Each
/// run gets the frame that the previous run returned.
///
/// # Errors
/// Fails if the kernel refuses the run. The kernel refuses all frames of fewer than 14 bytes.
pub fn run(program: BorrowedFd<'_>, frame: &[u8], ifindex: u32, repeat: u32) -> io::Result<Ran> {
    test_run(program, frame, frame.len(), ifindex, repeat)
}

/// Returns whether the running kernel, of version `release`, can run a program on a frame with a short linear part.
///
/// # Errors
/// Fails if Linux 6.18 or later refuses the run, or if an older kernel refuses the run with an unexpected error.
pub fn splits_frames(program: BorrowedFd<'_>, release: &str) -> io::Result<bool> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map_while(|number| number.parse::<u32>().ok());
    let version = (numbers.next().unwrap_or_default(), numbers.next().unwrap_or_default());
    match run_linear(program, &[0; 1400], 200, 0) {
        Ok(_) => Ok(true),
        Err(error) if version < (6, 18) && error.raw_os_error() == Some(libc::EINVAL) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Runs a classifier on a frame that the kernel is about to send. Returns the classifier's verdict and the frame after
/// the run.
///
/// # Errors
/// Fails if the kernel refuses the run.
pub fn run_classifier(program: BorrowedFd<'_>, frame: &[u8]) -> io::Result<(i32, Vec<u8>)> {
    let mut out = vec![0u8; MAX_FRAME.max(frame.len())];
    let mut attributes = TestRun {
        prog_fd: u32::try_from(program.as_raw_fd()).map_err(io::Error::other)?,
        data_size_in: u32::try_from(frame.len()).map_err(io::Error::other)?,
        data_size_out: u32::try_from(out.len()).map_err(io::Error::other)?,
        data_in: frame.as_ptr() as u64,
        data_out: out.as_mut_ptr() as u64,
        repeat: 1,
        ..TestRun::default()
    };
    // SAFETY: the attributes point to buffers that outlive the call, and state the sizes of these buffers.
    unsafe { call(&mut attributes) }?;
    out.truncate(attributes.data_size_out as usize);
    Ok((attributes.retval.cast_signed(), out))
}

fn test_run(program: BorrowedFd<'_>, frame: &[u8], linear: usize, ifindex: u32, repeat: u32) -> io::Result<Ran> {
    let length = u32::try_from(frame.len()).map_err(io::Error::other)?;
    let mut out = vec![0u8; MAX_FRAME.max(frame.len())];
    let data_end = u32::try_from(linear).map_err(io::Error::other)?;
    let context = XdpMd { data_end, ingress_ifindex: ifindex, ..XdpMd::default() };
    let mut attributes = TestRun {
        prog_fd: u32::try_from(program.as_raw_fd()).map_err(io::Error::other)?,
        data_size_in: length,
        data_size_out: u32::try_from(out.len()).map_err(io::Error::other)?,
        data_in: frame.as_ptr() as u64,
        data_out: out.as_mut_ptr() as u64,
        repeat,
        ctx_size_in: size_of::<XdpMd>() as u32,
        ctx_in: (&raw const context) as u64,
        ..TestRun::default()
    };
    // SAFETY: the attributes point to buffers that outlive the call, and state the sizes of these buffers.
    unsafe { call(&mut attributes) }?;
    out.truncate(attributes.data_size_out as usize);
    Ok(Ran { action: attributes.retval, frame: out, duration: Duration::from_nanos(u64::from(attributes.duration)) })
}

/// Makes the program handle `count` copies of `frame` as real frames that arrived on the loopback of the current
/// namespace. The kernel then carries out the program's verdicts. A copy may contain changes that the program made in
/// an earlier run.
///
/// # Errors
/// Fails if the kernel refuses the run. Kernels before Linux 5.18 always refuse the run.
pub fn run_live(program: BorrowedFd<'_>, frame: &[u8], count: u32) -> io::Result<()> {
    let mut attributes = TestRun {
        prog_fd: u32::try_from(program.as_raw_fd()).map_err(io::Error::other)?,
        data_size_in: u32::try_from(frame.len()).map_err(io::Error::other)?,
        data_in: frame.as_ptr() as u64,
        repeat: count,
        flags: LIVE_FRAMES,
        ..TestRun::default()
    };
    // SAFETY: the attributes point to the frame, which outlives the call, and state the frame's size.
    unsafe { call(&mut attributes) }
}

/// # Safety
/// Each buffer that the attributes point to must be as large as the attributes state.
unsafe fn call(attributes: &mut TestRun) -> io::Result<()> {
    // SAFETY: the caller guarantees that each buffer is as large as the attributes state.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_PROG_TEST_RUN,
            std::ptr::from_mut(attributes),
            size_of::<TestRun>() as libc::c_uint,
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
