//! Arrays that the kernel program and the controller share by memory mapping (`BPF_F_MMAPABLE`); a write by the
//! controller needs no system call, and one store replaces a single word.

use std::{
    io,
    marker::PhantomData,
    num::NonZeroUsize,
    os::fd::{AsFd as _, BorrowedFd},
    ptr::NonNull,
    sync::atomic::AtomicU32,
};

pub(super) use std::sync::atomic::AtomicU64;

use anyhow::Context as _;
use aya::maps::MapData;
use bytemuck::Pod;
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

/// A mapped array of `T`, whose size is a multiple of eight bytes, so that the kernel and user space use the same
/// distance between entries.
#[derive(Debug)]
pub(super) struct MappedArray<T> {
    memory: NonNull<T>,
    entries: usize,
    bytes: NonZeroUsize,
    // The map must stay open while it is mapped, and pinning needs its descriptor. In tests, there is no map.
    _map: Option<MapData>,
    owns: PhantomData<T>,
}

// SAFETY: the mapping belongs to the process and not to one thread, and all access needs `&self` or `&mut self`.
unsafe impl<T: Send> Send for MappedArray<T> {}
// SAFETY: the mapping belongs to the process; a shared reference allows only atomic access to words, and copies.
unsafe impl<T: Sync> Sync for MappedArray<T> {}

impl<T: Pod> MappedArray<T> {
    /// Maps the whole array into memory.
    ///
    /// # Errors
    /// Fails if the map has another value size, or if the kernel refuses the mapping.
    pub(super) fn new(map: MapData) -> anyhow::Result<Self> {
        const { assert!(size_of::<T>().is_multiple_of(8) && align_of::<T>() <= 4096) };
        let info = map.info().context("reading the map's description")?;
        let (entries, value) = (info.max_entries() as usize, info.value_size() as usize);
        anyhow::ensure!(value == size_of::<T>(), "map of {value}-byte values where {} are expected", size_of::<T>());
        let bytes = (entries * value).next_multiple_of(page_size()?);
        let bytes = NonZeroUsize::new(bytes).context("empty map")?;
        let memory = map_shared(map.fd().as_fd(), bytes).context("mapping a map into memory")?.cast::<T>();
        Ok(Self { memory, entries, bytes, _map: Some(map), owns: PhantomData })
    }

    /// An array of zeroes with two mappings: one for the controller and one for the kernel program.
    #[cfg(test)]
    pub(super) fn twice(entries: usize) -> anyhow::Result<[Self; 2]> {
        let bytes = (entries * size_of::<T>()).next_multiple_of(page_size()?);
        let bytes = NonZeroUsize::new(bytes).context("empty map")?;
        let file = tempfile::tempfile()?;
        file.set_len(bytes.get() as u64)?;
        let map = || -> anyhow::Result<Self> {
            let memory = map_shared(file.as_fd(), bytes)?.cast::<T>();
            Ok(Self { memory, entries, bytes, _map: None, owns: PhantomData })
        };
        Ok([map()?, map()?])
    }

    #[must_use]
    pub(super) fn len(&self) -> usize {
        self.entries
    }

    fn pointer(&self, index: usize) -> *mut T {
        assert!(index < self.entries, "entry {index} of {}", self.entries);
        // SAFETY: the mapping holds `entries` values and the index is below that number.
        unsafe { self.memory.as_ptr().add(index) }
    }

    /// The entry at `index`. The kernel program may be reading the entry but never writes it.
    #[must_use]
    pub(super) fn load(&self, index: usize) -> T {
        // SAFETY: the entry lies within the mapping; only this process writes these maps, through `&mut self`.
        unsafe { self.pointer(index).read_volatile() }
    }

    /// Replaces the entry at `index` in several stores: the kernel program may read a half-written entry.
    pub(super) fn store(&mut self, index: usize, value: T) {
        // SAFETY: the entry lies within the mapping; the reader accepts any bit pattern.
        unsafe { self.pointer(index).write_volatile(value) };
    }

    /// The whole array as 64-bit words; the kernel program also writes these words, each in one store.
    pub(super) fn words(&self) -> &[AtomicU64] {
        let words = self.entries * (size_of::<T>() / 8);
        // SAFETY: the mapping holds that many aligned words and lives as long as `self`.
        unsafe { std::slice::from_raw_parts(self.memory.as_ptr().cast::<AtomicU64>(), words) }
    }

    /// The 32-bit word at `offset` of the entry at `index`, which the controller replaces in one store.
    #[must_use]
    pub(super) fn word32(&self, index: usize, offset: usize) -> &AtomicU32 {
        assert!(offset.is_multiple_of(4) && offset + 4 <= size_of::<T>());
        // SAFETY: the word lies within the mapping, is aligned, and lives as long as `self`.
        unsafe { AtomicU32::from_ptr(self.pointer(index).byte_add(offset).cast()) }
    }

    /// The 64-bit word at `offset` of the entry at `index`, which the controller replaces in one store.
    #[must_use]
    pub(super) fn word64(&self, index: usize, offset: usize) -> &AtomicU64 {
        assert!(offset.is_multiple_of(8) && offset + 8 <= size_of::<T>());
        // SAFETY: the word lies within the mapping, is aligned, and lives as long as `self`.
        unsafe { AtomicU64::from_ptr(self.pointer(index).byte_add(offset).cast()) }
    }
}

impl<T> Drop for MappedArray<T> {
    fn drop(&mut self) {
        // SAFETY: `new` mapped this memory with this size, and nothing borrows from the mapping any more.
        let _unmapped = unsafe { munmap(self.memory.cast(), self.bytes.get()) };
    }
}

fn map_shared(fd: BorrowedFd<'_>, bytes: NonZeroUsize) -> io::Result<NonNull<std::ffi::c_void>> {
    // SAFETY: this is a new mapping at an address that the kernel chooses.
    unsafe { mmap(None, bytes, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, MapFlags::MAP_SHARED, fd, 0) }
        .map_err(io::Error::from)
}

fn page_size() -> anyhow::Result<usize> {
    nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE)?
        .and_then(|size| usize::try_from(size).ok())
        .context("the page size is unknown")
}
