//! A C compiler and linker for static programs: gcc with Debian's musl, and with LLVM's unwinder, because gcc's
//! unwinder needs functions that only glibc has. This module downloads Debian's packages without installing them on
//! this machine.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

use super::sbom::Library;
use crate::{
    arch::Arch,
    command::{output, program, root, run},
    debian::Apt,
};

const PACKAGES: [&str; 2] = ["musl-dev", "libunwind-19-dev"];

/// Functions that Debian's build of LLVM's unwinder needs and musl lacks.
const FORTIFIED: &str = "\
#include <stdarg.h>
#include <stdio.h>
int __fprintf_chk(FILE *file, int flag, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    int written = vfprintf(file, format, arguments);
    va_end(arguments);
    return written;
}
";

/// The compiler and libraries for one processor.
pub(super) struct Toolchain {
    arch: Arch,
    directory: PathBuf,
}

impl Toolchain {
    /// Downloads and creates the toolchain, unless it exists.
    pub(super) fn make(arch: Arch) -> Result<Self> {
        let this = Self { arch, directory: root().join("target/musl").join(arch.name()) };
        if !this.compiler().exists() {
            println!("Downloading {} for {}", PACKAGES.join(", "), arch.name());
            this.download().with_context(|| format!("{} for {}", PACKAGES.join(", "), arch.debian()))?;
            // Write the compiler's file last: its existence shows that the toolchain is complete.
            this.write_compiler()?;
        }
        Ok(this)
    }

    pub(super) fn compiler(&self) -> PathBuf {
        self.directory.join("cc")
    }

    /// Returns the toolchain's libraries that are linked into every program.
    pub(super) fn libraries_linked(&self) -> Result<Vec<Library>> {
        let licences = ["MIT", "Apache-2.0 WITH LLVM-exception"];
        (PACKAGES.into_iter().zip(["musl", "libunwind"]).zip(licences))
            .map(|((package, name), licence)| {
                let version = self.version(package).with_context(|| format!("{package} was not downloaded"))?;
                Ok(Library { name, version, licence })
            })
            .collect()
    }

    /// The version of a downloaded package, from its file name: `NAME_VERSION_ARCH.deb`.
    fn version(&self, package: &str) -> Option<String> {
        let names =
            fs::read_dir(&self.directory).ok()?.flatten().filter_map(|file| file.file_name().into_string().ok());
        names.into_iter().find_map(|name| {
            let rest = name.strip_prefix(package)?.strip_prefix('_')?.strip_suffix(".deb")?;
            // apt escapes the colons of a version in file names.
            Some(rest.rsplit_once('_')?.0.replace("%3a", ":"))
        })
    }

    pub(super) fn archiver(&self) -> String {
        format!("{}-linux-gnu-ar", self.arch.processor())
    }

    fn gcc(&self) -> String {
        format!("{}-linux-gnu-gcc", self.arch.processor())
    }

    fn tree(&self) -> PathBuf {
        self.directory.join("tree")
    }

    /// The directory of musl's libraries and start files, and of the unwinder.
    fn libraries(&self) -> PathBuf {
        self.tree().join("usr/lib").join(format!("{}-linux-musl", self.arch.processor()))
    }

    fn download(&self) -> Result<()> {
        if self.directory.exists() {
            fs::remove_dir_all(&self.directory)?;
        }
        fs::create_dir_all(self.tree())?;
        let apt = Apt::new(&self.directory, &[&suite()?], Some(self.arch.debian()))?;
        for package in PACKAGES {
            apt.download(package, &self.directory)?;
        }
        for package in fs::read_dir(&self.directory)?.flatten().map(|entry| entry.path()) {
            if package.extension().is_some_and(|extension| extension == "deb") {
                run(program("dpkg-deb").arg("--extract").arg(&package).arg(self.tree()))?;
            }
        }
        Ok(())
    }

    fn write_compiler(&self) -> Result<()> {
        let gcc = self.gcc();
        let own = output(program(&gcc).arg("-print-file-name=include")).with_context(|| format!("no {gcc}"))?;
        let headers = self.tree().join("usr/include").join(format!("{}-linux-musl", self.arch.processor()));
        let libraries = self.libraries();
        let script = format!(
            "#!/bin/sh\nexec {gcc} -nostdinc -isystem '{}' -isystem '{own}' -B'{libraries}/' -L'{libraries}' \"$@\"\n",
            headers.display(),
            libraries = libraries.display(),
        );
        let unfinished = self.directory.join("unfinished");
        fs::write(&unfinished, script)?;
        fs::set_permissions(&unfinished, fs::Permissions::from_mode(0o755))?;
        self.add_unwinder(&unfinished)?;
        Ok(fs::rename(unfinished, self.compiler())?)
    }

    fn add_unwinder(&self, compiler: &Path) -> Result<()> {
        let (source, object) = (self.directory.join("fortified.c"), self.directory.join("fortified.o"));
        fs::write(&source, FORTIFIED)?;
        run(program(compiler).args(["-O2", "-fPIC", "-c", "-o"]).arg(&object).arg(&source))?;
        let unwinder = self.libraries().join("libunwind.a");
        let debians = self.tree().join("usr/lib/llvm-19/lib/libunwind.a");
        fs::copy(&debians, &unwinder).with_context(|| debians.display().to_string())?;
        run(program(self.archiver()).arg("rD").arg(unwinder).arg(object))
    }
}

/// The Debian release that this machine runs.
fn suite() -> Result<String> {
    let release = fs::read_to_string("/etc/os-release").context("/etc/os-release")?;
    let suite = release.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="));
    Ok(suite.context("/etc/os-release names no release of Debian")?.trim_matches('"').to_owned())
}
