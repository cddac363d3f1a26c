//! Simulates faults of the machine for a single process: a disk that is full, read-only or slow, or whose `fsync`
//! fails; a wall clock that jumps; an end between two steps; and a kernel that
//! refuses maps. The simulated faults do not affect other processes.

pub mod memory;

use std::{
    fs::{self, File},
    io::{self, Write as _},
    os::unix::fs::{FileExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sys::signal::Signal,
};

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
        fs::write(&faults, [0; 56])?;
        let words = File::options().read(true).write(true).open(&faults)?;
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

    /// Sets the error with which the kernel refuses new maps of the program (0: it does not).
    ///
    /// # Errors
    /// Fails if the file of faults cannot be written.
    pub fn refuse_maps(&self, error: i32) -> Result<()> {
        Ok(self.words.write_all_at(&i64::from(error).to_ne_bytes(), 48)?)
    }

    /// Sends the signal to the program before the step with this number, counted from now. A step is a system call that
    /// changes what outlives the program: a link or a pin of the kernel, or the name of a file.
    ///
    /// # Errors
    /// Fails if the file of faults cannot be written.
    pub fn signal_before_step(&self, step: u32, signal: Signal) -> Result<()> {
        self.words.write_all_at(&i64::from(signal as i32).to_ne_bytes(), 40)?;
        Ok(self.words.write_all_at(&i64::from(step).to_ne_bytes(), 32)?)
    }

    /// Whether the program has got the signal of [`signal_before_step`](Self::signal_before_step). If it has not, it will
    /// not get the signal any more.
    ///
    /// # Errors
    /// Fails if the file of faults cannot be read or written.
    pub fn has_signalled(&self) -> Result<bool> {
        let mut left = [0; 8];
        self.words.read_exact_at(&mut left, 32)?;
        self.words.write_all_at(&[0; 8], 32)?;
        Ok(i64::from_ne_bytes(left) == 0)
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
