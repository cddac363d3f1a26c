//! Empties BPF maps whose types of keys and values are unknown.

use std::{
    io,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd},
    ptr,
};

use anyhow::{Context as _, bail};
use aya::maps::{MapInfo, MapType};

const BPF_MAP_UPDATE_ELEM: libc::c_long = 2;
const BPF_MAP_DELETE_ELEM: libc::c_long = 3;
const BPF_MAP_GET_NEXT_KEY: libc::c_long = 4;
const HASH: u32 = MapType::Hash as u32;
const ARRAY: u32 = MapType::Array as u32;
const PER_CPU_ARRAY: u32 = MapType::PerCpuArray as u32;
const LRU_HASH: u32 = MapType::LruHash as u32;
/// The kernel's flag `BPF_F_MMAPABLE`.
const MMAPABLE: u32 = 1 << 10;

/// The part of `union bpf_attr` that the calls for elements of maps read.
#[repr(C)]
struct Element {
    map_fd: u32,
    padding: u32,
    key: u64,
    /// The address of the value, or of the next key.
    value: u64,
    flags: u64,
}

/// Sets all values of an array to zero, or removes all entries of a hash map.
///
/// # Errors
/// Fails if the map has another type, or if the kernel refuses an access.
pub fn clear(map: &MapInfo) -> anyhow::Result<()> {
    let fd = map.fd()?;
    let fd = fd.as_fd();
    let cleared = match map.map_type()? as u32 {
        ARRAY if map.map_flags() & MMAPABLE != 0 => {
            zero(fd, map.value_size().next_multiple_of(8) as usize * map.max_entries() as usize)
        }
        ARRAY => zero_each(fd, map, 1),
        PER_CPU_ARRAY => {
            let cpus = aya::util::nr_cpus().map_err(|(what, error)| anyhow::anyhow!("{what}: {error}"))?;
            zero_each(fd, map, cpus)
        }
        HASH | LRU_HASH => remove_each(fd, map),
        kind => bail!("a map of the type {kind} cannot be emptied"),
    };
    cleared.with_context(|| format!("emptying the map {}", map.name_as_str().unwrap_or_default()))
}

/// Writes zeros to the memory of an array that can be mapped.
fn zero(map: BorrowedFd<'_>, bytes: usize) -> io::Result<()> {
    // SAFETY: the call creates a new mapping at an address that the kernel chooses.
    let memory = unsafe {
        libc::mmap(ptr::null_mut(), bytes, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED, map.as_raw_fd(), 0)
    };
    if memory == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the mapping has this size, and nothing else in this process refers to it.
    unsafe { memory.cast::<u8>().write_bytes(0, bytes) };
    // SAFETY: nothing refers to the mapping any more.
    let unmapped = unsafe { libc::munmap(memory, bytes) };
    if unmapped < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Stores zeros in each element of an array, with `copies` values for each element.
fn zero_each(fd: BorrowedFd<'_>, map: &MapInfo, copies: usize) -> io::Result<()> {
    let zeros = vec![0u8; map.value_size().next_multiple_of(8) as usize * copies];
    for key in 0..map.max_entries() {
        // SAFETY: the key has four bytes as in every array, and there is a value for each copy.
        unsafe { call(BPF_MAP_UPDATE_ELEM, fd, (&raw const key).cast(), zeros.as_ptr().cast_mut()) }?;
    }
    Ok(())
}

/// Removes the first entry of a hash map until the map has none.
fn remove_each(fd: BorrowedFd<'_>, map: &MapInfo) -> io::Result<()> {
    let mut key = vec![0u8; map.key_size() as usize];
    loop {
        // SAFETY: the kernel writes a key, for which there is room; no key asks for the first one.
        match unsafe { call(BPF_MAP_GET_NEXT_KEY, fd, ptr::null(), key.as_mut_ptr()) } {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(()),
            other => other?,
        }
        // SAFETY: the buffer holds a key, and the call reads no value.
        unsafe { call(BPF_MAP_DELETE_ELEM, fd, key.as_ptr(), ptr::null_mut()) }?;
    }
}

/// # Safety
/// The key and the value must be null or point to as many bytes as the call reads or writes.
unsafe fn call(command: libc::c_long, map: BorrowedFd<'_>, key: *const u8, value: *mut u8) -> io::Result<()> {
    let map_fd = u32::try_from(map.as_raw_fd()).map_err(io::Error::other)?;
    let mut attributes = Element { map_fd, padding: 0, key: key as u64, value: value as u64, flags: 0 };
    // SAFETY: the caller guarantees that the buffers are as large as the call needs.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut attributes, size_of::<Element>() as libc::c_uint) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
