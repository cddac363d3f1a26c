//! Calls of the kernel that attach programs to another program, which aya has none for.

use std::{
    ffi::c_char,
    io,
    mem::size_of,
    os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd},
};

use aya_obj::generated::bpf_insn;

/// Commands of the system call `bpf`, as `linux/bpf.h` has them.
const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_int = 15;
const BPF_RAW_TRACEPOINT_OPEN: libc::c_int = 17;
const BPF_BTF_GET_FD_BY_ID: libc::c_int = 19;

const BPF_PROG_TYPE_TRACING: u32 = 26;
const NAME_LENGTH: usize = 16;

/// Where a program of this kind runs, as `enum bpf_attach_type` has it.
#[derive(Clone, Copy, Debug)]
#[repr(u32)]
pub(super) enum At {
    Entry = 24,
    Exit = 25,
}

/// A function of a loaded program.
#[derive(Clone, Copy, Debug)]
pub(super) struct Function<'a> {
    pub(super) program: BorrowedFd<'a>,
    /// Its id in the program's BTF.
    pub(super) id: u32,
}

/// What `BPF_PROG_LOAD` reads of `union bpf_attr`, up to the part that is needed here.
#[repr(C)]
struct ProgramLoad {
    kind: u32,
    instructions: u32,
    code: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; NAME_LENGTH],
    ifindex: u32,
    attach_type: u32,
    btf_fd: u32,
    function_info_size: u32,
    function_info: u64,
    function_info_count: u32,
    line_info_size: u32,
    line_info: u64,
    line_info_count: u32,
    attach_id: u32,
    attach_program_fd: u32,
    relocations: u32,
}

/// Has the kernel verify and take a program that runs where `function` is entered or left. The verifier's words go into
/// `log`, if it has room.
///
/// # Errors
/// When the kernel refuses.
pub(super) fn load(
    name: &str,
    code: &[bpf_insn],
    at: At,
    function: Function<'_>,
    log: &mut [u8],
) -> io::Result<OwnedFd> {
    let mut short = [0; NAME_LENGTH];
    for (to, from) in short.iter_mut().zip(name.bytes().take(NAME_LENGTH - 1)) {
        *to = from;
    }
    let license: *const c_char = c"GPL".as_ptr();
    let load = ProgramLoad {
        kind: BPF_PROG_TYPE_TRACING,
        instructions: u32::try_from(code.len()).map_err(io::Error::other)?,
        code: code.as_ptr() as u64,
        license: license as u64,
        log_level: u32::from(!log.is_empty()),
        log_size: u32::try_from(log.len()).map_err(io::Error::other)?,
        log: if log.is_empty() { 0 } else { log.as_mut_ptr() as u64 },
        kernel_version: 0,
        flags: 0,
        name: short,
        ifindex: 0,
        attach_type: at as u32,
        btf_fd: 0,
        function_info_size: 0,
        function_info: 0,
        function_info_count: 0,
        line_info_size: 0,
        line_info: 0,
        line_info_count: 0,
        attach_id: function.id,
        attach_program_fd: function.program.as_raw_fd().cast_unsigned(),
        relocations: 0,
    };
    // SAFETY: the attributes point to code, a string and a log, which live through the call and have the lengths given.
    unsafe { descriptor(BPF_PROG_LOAD, &load) }
}

/// What `BPF_RAW_TRACEPOINT_OPEN` reads.
#[repr(C)]
struct TracepointOpen {
    name: u64,
    program_fd: u32,
    padding: u32,
}

/// Attaches a loaded program. It is attached until the descriptor is closed, by the end of this process at the latest.
///
/// # Errors
/// When the kernel refuses.
pub(super) fn attach(program: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let open = TracepointOpen { name: 0, program_fd: program.as_raw_fd().cast_unsigned(), padding: 0 };
    // SAFETY: the attributes hold no pointer.
    unsafe { descriptor(BPF_RAW_TRACEPOINT_OPEN, &open) }
}

/// What `BPF_OBJ_GET_INFO_BY_FD` reads.
#[repr(C)]
struct InfoQuestion {
    bpf_fd: u32,
    info_len: u32,
    info: u64,
}

/// `struct bpf_btf_info`.
#[repr(C)]
#[derive(Default)]
struct BtfInfo {
    btf: u64,
    size: u32,
    id: u32,
    name: u64,
    name_length: u32,
    is_kernel: u32,
}

/// The type information of a program, by the id that the kernel gives it.
///
/// # Errors
/// When the kernel does not tell.
pub(super) fn btf(id: u32) -> io::Result<Vec<u8>> {
    // SAFETY: the attributes are a number, and hold no pointer.
    let btf = unsafe { descriptor(BPF_BTF_GET_FD_BY_ID, &id) }?;
    let mut info = BtfInfo::default();
    ask(&btf, &mut info)?;
    let mut data = vec![0; info.size as usize];
    let mut info = BtfInfo { btf: data.as_mut_ptr() as u64, size: info.size, ..BtfInfo::default() };
    ask(&btf, &mut info)?;
    data.truncate(info.size as usize);
    Ok(data)
}

fn ask(btf: &OwnedFd, info: &mut BtfInfo) -> io::Result<()> {
    let question = InfoQuestion {
        bpf_fd: btf.as_raw_fd().cast_unsigned(),
        info_len: size_of::<BtfInfo>() as u32,
        info: (&raw mut *info) as u64,
    };
    // SAFETY: the question points to room of the length that it says, and so does that to the data, if to any.
    if unsafe { call(BPF_OBJ_GET_INFO_BY_FD, &question) } < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// # Safety
/// As the command asks of its attributes.
unsafe fn call<T>(command: libc::c_int, attributes: &T) -> libc::c_long {
    // SAFETY: the caller's; the length is that of the attributes.
    unsafe { libc::syscall(libc::SYS_bpf, command, &raw const *attributes, size_of::<T>() as libc::c_uint) }
}

/// # Safety
/// As the command asks of its attributes; it must return a new descriptor.
unsafe fn descriptor<T>(command: libc::c_int, attributes: &T) -> io::Result<OwnedFd> {
    // SAFETY: the caller's.
    let opened = unsafe { call(command, attributes) };
    if opened < 0 {
        return Err(io::Error::last_os_error());
    }
    let descriptor = RawFd::try_from(opened).map_err(io::Error::other)?;
    // SAFETY: the kernel has just made it for this process, and nothing else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}
