//! Downloads Debian's kernels.

use std::{
    collections::BTreeSet,
    fmt, fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};

use crate::{
    arch::Arch,
    command::{output, program, run},
    debian::Apt,
};

const SUITES: [&str; 8] = [
    "bookworm",
    "bookworm-backports",
    "bookworm-security",
    "trixie",
    "trixie-backports",
    "trixie-security",
    "forky",
    "sid",
];
/// The oldest supported kernel.
const OLDEST: [u32; 2] = [6, 1];
/// The Debian packages of a kernel; newer kernels have several packages.
const PARTS: [&str; 4] = ["image", "binary", "base", "modules"];
/// The modules that the tests' hosts need. Some of these modules may be built into Debian's kernel.
const MODULES: [&str; 11] = [
    "veth",
    "bridge",
    "8021q",
    "bonding",
    "dummy",
    "tun",
    "sch_netem",
    "sch_ingress",
    "cls_bpf",
    "virtio_pci",
    "virtio_net",
];

/// An unpacked kernel.
#[derive(Debug)]
pub(super) struct Kernel {
    /// The version of `uname -r` without the flavour.
    pub(super) version: String,
    pub(super) arch: Arch,
    directory: PathBuf,
}

impl Kernel {
    pub(super) fn image(&self) -> PathBuf {
        self.directory.join("vmlinuz")
    }

    /// The version, and the processor if it is not this machine's.
    pub(super) fn label(&self) -> String {
        if self.arch.is_this_machines() {
            return self.version.clone();
        }
        format!("{} {}", self.version, self.arch.name())
    }

    /// An archive of the modules, which are numbered in the order of loading.
    pub(super) fn modules(&self) -> PathBuf {
        self.directory.join("modules.cpio")
    }

    /// Whether this directory contains the kernel with all modules that the tests require now.
    fn is_complete(&self) -> bool {
        fs::read_to_string(self.list()).is_ok_and(|list| list == MODULES.join(" "))
    }

    /// The path of the list of requested modules; the code that unpacks a kernel writes this list last.
    fn list(&self) -> PathBuf {
        self.directory.join("modules")
    }

    pub(super) fn log(&self) -> PathBuf {
        self.directory.join("log")
    }
}

/// A selection of kernels by version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Which<'a> {
    /// The newest kernel of a version or series.
    Of(&'a str),
    /// The newest kernel.
    Newest,
    /// The newest kernel of each supported series.
    NewestOfEach,
}

/// The kernel flavour for virtual machines, which is the smallest.
fn flavour(arch: Arch) -> String {
    format!("-cloud-{}", arch.debian())
}

/// Returns the selected kernels, each once, and downloads missing kernels.
pub(super) fn kernels(directory: &Path, arch: Arch, wanted: &[Which<'_>]) -> Result<Vec<Kernel>> {
    let apt = Apt::new(directory, &SUITES, (!arch.is_this_machines()).then(|| arch.debian()))?;
    let all = versions(&apt, &flavour(arch))?;
    let mut kernels: Vec<Kernel> = Vec::new();
    for &which in wanted {
        let found = which.among(&all);
        ensure!(
            !found.is_empty(),
            "this machine's mirrors have no package of {which} ({}): they must be Debian's, and be reached",
            flavour(arch)
        );
        for version in found {
            if kernels.iter().any(|kernel| kernel.version == version) {
                continue;
            }
            let kernel = Kernel { version: version.to_owned(), arch, directory: directory.join(version) };
            if !kernel.is_complete() {
                println!("Downloading Linux {version}");
                unpack(&apt, &kernel).with_context(|| format!("Linux {version}"))?;
            }
            kernels.push(kernel);
        }
    }
    Ok(kernels)
}

fn versions(apt: &Apt, flavour: &str) -> Result<BTreeSet<String>> {
    Ok(whole(&apt.search(&format!("^linux-(image|binary|modules)-[0-9].*{flavour}$"))?, flavour))
}

/// The kernel versions whose packages are all available, including the package of modules if a version has such a
/// package.
fn whole(packages: &[String], flavour: &str) -> BTreeSet<String> {
    let of = |part: &str| -> BTreeSet<&str> {
        packages.iter().filter_map(|package| version(package.strip_prefix(part)?, flavour)).collect()
    };
    let [images, binaries, modules] = ["linux-image-", "linux-binary-", "linux-modules-"].map(of);
    let monolithic = images.difference(&binaries);
    monolithic.chain(binaries.intersection(&modules)).map(|&version| version.to_owned()).collect()
}

impl Which<'_> {
    fn among<'a>(&self, all: &'a BTreeSet<String>) -> Vec<&'a str> {
        let newest = |kernels: &mut dyn Iterator<Item = &'a String>| {
            kernels.max_by_key(|version| numbers(version)).map(String::as_str)
        };
        match self {
            Self::Newest => newest(&mut all.iter()).into_iter().collect(),
            Self::Of(series) => newest(&mut all.iter().filter(|version| is_of(version, series))).into_iter().collect(),
            Self::NewestOfEach => {
                let series: BTreeSet<[u32; 2]> = all.iter().filter_map(|version| series(version)).collect();
                let supported = series.into_iter().filter(|series| *series >= OLDEST);
                let of = |wanted| newest(&mut all.iter().filter(move |version| series_is(version, wanted)));
                supported.filter_map(of).collect()
            }
        }
    }
}

impl fmt::Display for Which<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Of(series) => write!(f, "a kernel {series}"),
            Self::Newest | Self::NewestOfEach => f.write_str("any kernel"),
        }
    }
}

/// Whether a version equals `series`, or starts with `series` and a character that is no digit.
fn is_of(version: &str, series: &str) -> bool {
    version.strip_prefix(series).is_some_and(|rest| !rest.starts_with(|next: char| next.is_ascii_digit()))
}

fn series(version: &str) -> Option<[u32; 2]> {
    numbers(version).first_chunk().copied()
}

fn series_is(version: &str, wanted: [u32; 2]) -> bool {
    series(version) == Some(wanted)
}

fn numbers(version: &str) -> Vec<u32> {
    version.split(|c: char| !c.is_ascii_digit()).filter_map(|number| number.parse().ok()).collect()
}

/// Returns the version in the rest of a kernel package's name. A package with only two numbers is a metapackage.
fn version<'a>(rest: &'a str, flavour: &str) -> Option<&'a str> {
    rest.strip_suffix(flavour).filter(|version| numbers(version).len() > 2)
}

fn unpack(apt: &Apt, kernel: &Kernel) -> Result<()> {
    let Kernel { version, arch, directory } = kernel;
    let full = format!("{version}{}", flavour(*arch));
    let tree = directory.join("tree");
    if directory.exists() {
        fs::remove_dir_all(directory)?;
    }
    fs::create_dir_all(&tree)?;
    for part in PARTS.map(|part| format!("linux-{part}-{full}")) {
        if apt.has(&part) {
            apt.download(&part, directory)?;
        }
    }
    for package in fs::read_dir(directory)?.flatten().map(|entry| entry.path()) {
        if package.extension().is_some_and(|extension| extension == "deb") {
            run(program("dpkg-deb").arg("--extract").arg(&package).arg(&tree))?;
            fs::remove_file(package)?;
        }
    }
    let in_usr = tree.join("usr/lib/modules").join(&full);
    let images = [tree.join("boot").join(format!("vmlinuz-{full}")), in_usr.join("vmlinuz")];
    let image = images.iter().find(|image| image.exists()).context("there is no kernel in its packages")?;
    fs::rename(image, kernel.image())?;
    if in_usr.exists() && !tree.join("lib").exists() {
        std::os::unix::fs::symlink("usr/lib", tree.join("lib"))?;
    }
    modules(kernel, &tree, &full)?;
    fs::remove_dir_all(tree)?;
    fs::write(kernel.list(), MODULES.join(" "))?;
    Ok(())
}

/// Packs the modules of an unpacked kernel in `tree`, uncompressed.
fn modules(kernel: &Kernel, tree: &Path, full: &str) -> Result<()> {
    run(program("depmod").arg("--basedir").arg(tree).arg(full))?;
    let root = kernel.directory.join("root");
    let to = root.join("modules");
    fs::create_dir_all(&to)?;
    let mut ordered: Vec<PathBuf> = Vec::new();
    for module in MODULES {
        let mut command = program("modprobe");
        command.arg("--dirname").arg(tree).args(["--set-version", full, "--show-depends", module]);
        let lines = output(&mut command).with_context(|| format!("there is no module {module}"))?;
        // In this list, parameters of a module may follow the module's path.
        let paths = lines.lines().filter_map(|line| line.strip_prefix("insmod ")?.split_whitespace().next());
        for path in paths.map(PathBuf::from) {
            if !ordered.contains(&path) {
                ordered.push(path);
            }
        }
    }
    for (index, module) in ordered.iter().enumerate() {
        let copy = to.join(format!("{index:02}-{}", module.file_name().unwrap_or_default().display()));
        fs::copy(module, &copy).with_context(|| module.display().to_string())?;
        if copy.extension().is_some_and(|extension| extension == "xz") {
            run(program("xz").arg("--decompress").arg(copy))?;
        }
    }
    ensure!(!ordered.is_empty(), "no module was found");
    super::initramfs::pack(&root, &kernel.modules())?;
    fs::remove_dir_all(root)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn when_a_series_has_several_kernels_then_the_newest_is_found() {
        let packages = [
            "linux-image-5.10.0-46-cloud-amd64",
            "linux-image-6.1-cloud-amd64",
            "linux-image-6.1.0-9-cloud-amd64",
            "linux-image-6.1.0-56-cloud-amd64",
            "linux-image-6.1.0-0.deb11.52-cloud-amd64",
            "linux-image-6.12.90+deb13.1-cloud-amd64",
            "linux-image-6.12.117+deb12-cloud-amd64",
            "linux-image-6.12.117+deb13-cloud-amd64",
            "linux-image-7.2.13+deb14-cloud-amd64",
            "linux-binary-7.2.13+deb14-cloud-amd64",
            "linux-modules-7.2.13+deb14-cloud-amd64",
            "linux-image-7.2.13+deb14-amd64",
            "linux-image-6.19.14+deb13-cloud-amd64",
            "linux-binary-6.19.14+deb13-cloud-amd64",
        ];
        let all = whole(&packages.map(str::to_owned), "-cloud-amd64");
        assert!(!all.contains("6.19.14+deb13"), "its modules are not to be had");
        let of = |series| Which::Of(series).among(&all);
        assert_eq!(of("6.1"), ["6.1.0-56"]);
        assert_eq!(of("6.12"), ["6.12.117+deb13"]);
        assert_eq!(of("6.12.90"), ["6.12.90+deb13.1"]);
        assert_eq!(of("6.1.0-9"), ["6.1.0-9"]);
        assert_eq!(of("5.11"), [""; 0]);
        assert_eq!(Which::Newest.among(&all), ["7.2.13+deb14"]);
        assert_eq!(Which::NewestOfEach.among(&all), ["6.1.0-56", "6.12.117+deb13", "7.2.13+deb14"], "from 6.1 on");
    }
}
