//! Debian's kernels.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};

use crate::{
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
/// Kernels for virtual machines are the smallest.
const FLAVOUR: &str = "-cloud-amd64";
/// A kernel's package; newer kernels come in several.
const PARTS: [&str; 3] = ["image", "binary", "modules"];
/// What the tests' hosts are made of. Debian may have built some into the kernel.
const MODULES: [&str; 8] = ["veth", "bridge", "8021q", "dummy", "tun", "sch_netem", "sch_ingress", "cls_bpf"];

/// A kernel, unpacked.
#[derive(Debug)]
pub(super) struct Kernel {
    /// As `uname -r` says it, less the flavour.
    pub(super) version: String,
    directory: PathBuf,
}

impl Kernel {
    pub(super) fn image(&self) -> PathBuf {
        self.directory.join("vmlinuz")
    }

    /// An archive with the modules, numbered in the order of loading.
    pub(super) fn modules(&self) -> PathBuf {
        self.directory.join("modules.cpio")
    }

    pub(super) fn log(&self) -> PathBuf {
        self.directory.join("log")
    }
}

/// The newest kernel of each version or beginning of one, or of all (`None`), downloaded unless it is there.
pub(super) fn kernels(directory: &Path, wanted: &[Option<&str>]) -> Result<Vec<Kernel>> {
    let apt = Apt::new(directory, &SUITES, None)?;
    let all = versions(&apt)?;
    let mut kernels: Vec<Kernel> = Vec::new();
    for series in wanted {
        let version = newest(&all, *series).with_context(|| {
            let what = series.map_or_else(|| "any kernel".to_owned(), |series| format!("a kernel {series}"));
            format!(
                "this machine's mirrors have no package of {what} ({FLAVOUR}): they must be Debian's, and be reached"
            )
        })?;
        if kernels.iter().all(|kernel| kernel.version != version) {
            let kernel = Kernel { version: version.to_owned(), directory: directory.join(version) };
            if !kernel.modules().exists() {
                println!("Downloading Linux {version}");
                unpack(&apt, &kernel).with_context(|| format!("Linux {version}"))?;
            }
            kernels.push(kernel);
        }
    }
    Ok(kernels)
}

fn versions(apt: &Apt) -> Result<BTreeSet<String>> {
    let found = apt.search(&format!("^linux-(image|binary)-[0-9].*{FLAVOUR}$"))?;
    Ok(found.iter().filter_map(|package| version(package)).map(str::to_owned).collect())
}

/// The newest version that is `series` or goes on behind it with other than a digit.
fn newest<'a>(all: &'a BTreeSet<String>, series: Option<&str>) -> Option<&'a str> {
    let of_series = |version: &&String| {
        series.is_none_or(|series| {
            version.strip_prefix(series).is_some_and(|rest| !rest.starts_with(|next: char| next.is_ascii_digit()))
        })
    };
    all.iter().filter(of_series).max_by_key(|version| numbers(version)).map(String::as_str)
}

fn numbers(version: &str) -> Vec<u32> {
    version.split(|c: char| !c.is_ascii_digit()).filter_map(|number| number.parse().ok()).collect()
}

/// The version in the name of a kernel's package. Packages of two numbers only name others.
fn version(package: &str) -> Option<&str> {
    let rest = package.strip_prefix("linux-image-").or_else(|| package.strip_prefix("linux-binary-"))?;
    rest.strip_suffix(FLAVOUR).filter(|version| numbers(version).len() > 2)
}

fn unpack(apt: &Apt, kernel: &Kernel) -> Result<()> {
    let Kernel { version, directory } = kernel;
    let full = format!("{version}{FLAVOUR}");
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
    Ok(())
}

/// Packs the modules of a kernel whose packages lie unpacked in `tree`, uncompressed.
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
        // Behind the path there may be the module's parameters.
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
    fn the_newest_kernel_of_a_series_is_found() {
        let packages = [
            "linux-image-6.1-cloud-amd64",
            "linux-image-6.1.0-9-cloud-amd64",
            "linux-image-6.1.0-56-cloud-amd64",
            "linux-image-6.1.0-0.deb11.52-cloud-amd64",
            "linux-image-6.12.90+deb13.1-cloud-amd64",
            "linux-image-6.12.117+deb12-cloud-amd64",
            "linux-image-6.12.117+deb13-cloud-amd64",
            "linux-binary-7.2.13+deb14-cloud-amd64",
            "linux-image-7.2.13+deb14-amd64",
        ];
        let all: BTreeSet<String> = packages.into_iter().filter_map(version).map(str::to_owned).collect();
        assert_eq!(newest(&all, Some("6.1")), Some("6.1.0-56"));
        assert_eq!(newest(&all, Some("6.12")), Some("6.12.117+deb13"));
        assert_eq!(newest(&all, Some("6.12.90")), Some("6.12.90+deb13.1"));
        assert_eq!(newest(&all, Some("6.1.0-9")), Some("6.1.0-9"));
        assert_eq!(newest(&all, None), Some("7.2.13+deb14"));
        assert_eq!(newest(&all, Some("5.10")), None);
    }
}
