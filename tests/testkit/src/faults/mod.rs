//! Simulates faults of the machine for a single process: a disk that is full, read-only or slow, or whose `fsync`
//! fails; and a wall clock that jumps. The simulated faults do not affect other processes.

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
/// Mount options with the size of the simulated disk. The state and the histories, which grow to 48 MiB, must fit on
/// the disk.
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
    /// Prepares the faults in the directory `place` for the program `program`.
    ///
    /// # Errors
    /// Fails if no C compiler is installed, or the process is not root.
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

    #[must_use]
    pub fn disk(&self) -> PathBuf {
        self.place.join("disk")
    }

    /// Fills the simulated disk completely.
    ///
    /// # Errors
    /// Fails if writing fails for a reason other than a full disk.
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

    /// Makes the disk read-only or writable for the program.
    ///
    /// # Errors
    /// Fails if the file of faults cannot be written.
    pub fn read_only(&self, read_only: bool) -> Result<()> {
        Ok(self.words.write_all_at(&i64::from(read_only).to_ne_bytes(), 24)?)
    }

    /// Sets the error that `fsync` returns (0 for success), and the time that `fsync` takes.
    ///
    /// # Errors
    /// Fails if the file of faults cannot be written.
    pub fn synchronising(&self, error: i32, milliseconds: i64) -> Result<()> {
        self.words.write_all_at(&i64::from(error).to_ne_bytes(), 0)?;
        Ok(self.words.write_all_at(&milliseconds.to_ne_bytes(), 8)?)
    }

    /// Shifts the program's wall clock by `seconds` from the correct time.
    ///
    /// # Errors
    /// Fails if the file of faults cannot be written.
    pub fn wall_clock(&self, seconds: i64) -> Result<()> {
        Ok(self.words.write_all_at(&seconds.to_ne_bytes(), 16)?)
    }

    /// Removes the disk's faults, but keeps the shift of the wall clock.
    ///
    /// # Errors
    /// Fails if the kernel returns an error.
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
        // A detached disk stays usable for processes that have open files on the disk.
        if let Err(error) = umount2(&self.disk(), MntFlags::MNT_DETACH) {
            eprintln!("a small disk stays mounted at {}: {error}", self.disk().display());
        }
    }
}
