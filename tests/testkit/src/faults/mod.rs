//! Simulates faults of the machine for a single process: a disk that is full, read-only, slow or fails to synchronise,
//! and a wall clock that jumps. Other processes' disks and clocks are unaffected.

pub mod memory;

use std::{
    fs::{self, File},
    io::{self, Write as _},
    os::unix::fs::{FileExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

const SHIM: &str = include_str!("shim.c");
/// The size of the disk: room for the state and for histories, which grow to 48 MiB.
const ROOM: &str = "size=64m,mode=700";
const MEBIBYTES: u32 = 64;

/// A separate disk, and a wrapper that changes a program's clock and `fsync`.
#[derive(Debug)]
pub struct Faults {
    place: PathBuf,
    words: File,
    program: PathBuf,
}

impl Faults {
    /// Creates the faults below `place`, for `program`.
    ///
    /// # Errors
    /// If there is no C compiler, or the process is not root.
    pub fn new(place: &Path, program: &Path) -> Result<Self> {
        let (source, shim) = (place.join("shim.c"), place.join("shim.so"));
        fs::write(&source, SHIM)?;
        let built = Command::new("cc").args(["-shared", "-fPIC", "-O1", "-o"]).arg(&shim).arg(&source).output();
        let built = built.context("cannot start `cc`, which makes the shim")?;
        ensure!(built.status.success(), "the shim: {}", String::from_utf8_lossy(&built.stderr));
        let faults = place.join("faults");
        fs::write(&faults, [0; 32])?;
        let words = File::options().write(true).open(&faults)?;
        let wrapper = place.join("balancer");
        let line = format!(
            "#!/bin/sh\nLD_PRELOAD={} FAULTS={} DISK={} exec {} \"$@\"\n",
            shim.display(),
            faults.display(),
            place.join("disk").display(),
            program.display()
        );
        fs::write(&wrapper, line)?;
        fs::set_permissions(&wrapper, fs::Permissions::from_mode(0o755))?;
        let this = Self { place: place.to_owned(), words, program: wrapper };
        fs::create_dir(this.disk())?;
        let disk = this.disk();
        mount(Some("tmpfs"), &disk, Some("tmpfs"), MsFlags::empty(), Some(ROOM)).context("mounting a small disk")?;
        Ok(this)
    }

    /// Returns the wrapper to start instead of the program.
    #[must_use]
    pub fn program(&self) -> PathBuf {
        self.program.clone()
    }

    /// Returns the disk's path.
    #[must_use]
    pub fn disk(&self) -> PathBuf {
        self.place.join("disk")
    }

    /// Makes the disk full.
    ///
    /// # Errors
    /// If it cannot be written for another reason.
    pub fn fill(&self) -> Result<()> {
        let mut file = File::create(self.disk().join("full"))?;
        let piece = vec![0; 1 << 20];
        for _ in 0..=MEBIBYTES {
            match file.write_all(&piece) {
                Err(error) if error.kind() == io::ErrorKind::StorageFull => return Ok(()),
                other => other?,
            }
        }
        bail!("the disk takes more than it has room for")
    }

    /// Makes the disk read-only for the program, or writable.
    ///
    /// # Errors
    /// If the file of faults cannot be written.
    pub fn read_only(&self, read_only: bool) -> Result<()> {
        Ok(self.words.write_all_at(&i64::from(read_only).to_ne_bytes(), 24)?)
    }

    /// Sets the error of `fsync` (0 for success) and its duration.
    ///
    /// # Errors
    /// If the file of faults cannot be written.
    pub fn synchronising(&self, error: i32, milliseconds: i64) -> Result<()> {
        self.words.write_all_at(&i64::from(error).to_ne_bytes(), 0)?;
        Ok(self.words.write_all_at(&milliseconds.to_ne_bytes(), 8)?)
    }

    /// Sets the error of the wall clock, in seconds.
    ///
    /// # Errors
    /// If the file of faults cannot be written.
    pub fn wall_clock(&self, seconds: i64) -> Result<()> {
        Ok(self.words.write_all_at(&seconds.to_ne_bytes(), 16)?)
    }

    /// Removes the disk's faults. The clock stays as it is.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn heal(&self) -> Result<()> {
        self.read_only(false)?;
        self.synchronising(0, 0)?;
        match fs::remove_file(self.disk().join("full")) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error.into()),
            Ok(()) | Err(_) => Ok(()),
        }
    }
}

impl Drop for Faults {
    fn drop(&mut self) {
        // Open files stay usable until their processes close them.
        if let Err(error) = umount2(&self.disk(), MntFlags::MNT_DETACH) {
            eprintln!("a small disk stays mounted at {}: {error}", self.disk().display());
        }
    }
}
