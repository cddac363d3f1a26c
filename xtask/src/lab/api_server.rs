//! Builds the API server of Kubernetes from Debian's source package, and provides Debian's `kubectl`.

use std::{
    collections::BTreeSet,
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};

use crate::{
    command::{output, program, root, run},
    debian::Apt,
};

/// The Debian release that has the source package and a compiler for it.
const SUITE: &str = "bookworm";

/// The packages of the Go compiler, which builds Kubernetes 1.20 in GOPATH mode.
const COMPILER: [&str; 2] = ["golang-1.19-go", "golang-1.19-src"];

/// The Go import path of the sources of Kubernetes.
const IMPORT: &str = "k8s.io/kubernetes";

/// The mark of types whose fields the server describes to `kubectl`.
const MARK: &str = "+k8s:openapi-gen=";

/// Directories of the sources that contain marked types, each with subdirectories whose types the server does not use.
const MARKED: [&str; 4] = ["pkg", "staging/src/k8s.io", "cmd", "plugin"];
const UNMARKED: [&str; 2] = ["staging/src/k8s.io/code-generator", "staging/src/k8s.io/sample-apiserver"];

/// A library in the sources of Kubernetes. The library calls an internal function of the Go runtime in the form that
/// the function had before Go 1.18, so the API server would crash after minutes. `MENDED` contains the changes of the
/// library's later versions.
const REFLECTION: &str = "vendor/github.com/modern-go/reflect2";
const MENDED: [(&str, &str, &str); 3] = [
    (
        "unsafe_link.go",
        "func mapiterinit(rtype unsafe.Pointer, m unsafe.Pointer) *hiter",
        "func mapiterinit(rtype unsafe.Pointer, m unsafe.Pointer, it *hiter)\n\n\
         func mapiteration(rtype unsafe.Pointer, m unsafe.Pointer) *hiter {\n\
         \tvar it hiter\n\tmapiterinit(rtype, m, &it)\n\treturn &it\n}",
    ),
    (
        "unsafe_link.go",
        "\t// rest fields are ignored",
        "\tt, h, buckets, bptr unsafe.Pointer\n\toverflow, oldoverflow *[]unsafe.Pointer\n\
         \tstartBucket uintptr\n\toffset uint8\n\twrapped bool\n\tB, i uint8\n\tbucket, checkBucket uintptr",
    ),
    ("unsafe_map.go", "mapiterinit(type2.rtype", "mapiteration(type2.rtype"),
];

/// Returns the directory with `kube-apiserver` and `kubectl`; builds missing programs.
pub(crate) fn programs() -> Result<PathBuf> {
    let place = root().join("target/kubernetes");
    let bin = place.join("bin");
    let (server, client) = (bin.join("kube-apiserver"), bin.join("kubectl"));
    if server.is_file() && client.is_file() {
        return Ok(bin);
    }
    fs::create_dir_all(&bin).with_context(|| bin.display().to_string())?;
    let apt = Apt::with_sources(&place, &[SUITE])?;
    if !client.is_file() {
        let directory = unpacked(&apt, &place, "kubernetes-client", &["kubernetes-client"])?;
        fs::copy(directory.join("usr/bin/kubectl"), &client).context("the package has no kubectl")?;
    }
    if !server.is_file() {
        Build::prepare(&apt, &place)?.server(&server)?;
    }
    tidy(&place, &bin)?;
    Ok(bin)
}

/// Removes everything from `place` except the built programs, because sources, compiler and cache take gigabytes.
fn tidy(place: &Path, bin: &Path) -> Result<()> {
    for entry in fs::read_dir(place).with_context(|| place.display().to_string())? {
        let path = entry?.path();
        let removed = match path.is_dir() {
            _ if path == bin => continue,
            true => fs::remove_dir_all(&path),
            false => fs::remove_file(&path),
        };
        removed.with_context(|| path.display().to_string())?;
    }
    Ok(())
}

/// Empties a separate directory, and unpacks packages into it.
fn unpacked(apt: &Apt, place: &Path, name: &str, packages: &[&str]) -> Result<PathBuf> {
    let directory = place.join(name);
    let downloads = place.join(format!("{name}.packages"));
    for directory in [&directory, &downloads] {
        emptied(directory)?;
    }
    for package in packages {
        apt.download(package, &downloads)?;
    }
    for package in files(&downloads, ".deb")? {
        run(program("dpkg-deb").arg("--extract").arg(package).arg(&directory))?;
    }
    Ok(directory)
}

fn emptied(directory: &Path) -> Result<()> {
    if directory.exists() {
        fs::remove_dir_all(directory).with_context(|| directory.display().to_string())?;
    }
    fs::create_dir_all(directory).with_context(|| directory.display().to_string())
}

/// The files of a directory whose names end with `ending`.
fn files(directory: &Path, ending: &str) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(directory).with_context(|| directory.display().to_string())?;
    let all = entries.flatten().map(|entry| entry.path());
    Ok(all.filter(|path| path.to_string_lossy().ends_with(ending)).collect())
}

/// The sources of Kubernetes, and a compiler for these sources.
struct Build {
    place: PathBuf,
    compiler: PathBuf,
}

impl Build {
    fn prepare(apt: &Apt, place: &Path) -> Result<Self> {
        let compiler = unpacked(apt, place, "golang", &COMPILER)?.join("usr/lib/go-1.19");
        ensure!(compiler.join("bin/go").is_file(), "{} has no bin/go", compiler.display());
        let this = Self { place: place.to_owned(), compiler };
        let downloads = place.join("source");
        emptied(&downloads)?;
        apt.download_source("kubernetes", &downloads)?;
        let archive = files(&downloads, ".orig.tar.gz")?.pop().context("the source package has no archive")?;
        emptied(&this.sources())?;
        run(program("tar").arg("-xzf").arg(archive).arg("-C").arg(this.sources()).args(["--strip-components", "1"]))?;
        this.mend()?;
        Ok(this)
    }

    fn mend(&self) -> Result<()> {
        for (file, before, after) in MENDED {
            let path = self.sources().join(REFLECTION).join(file);
            let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
            ensure!(text.contains(before), "{} does not have `{before}`", path.display());
            fs::write(&path, text.replace(before, after)).with_context(|| path.display().to_string())?;
        }
        Ok(())
    }

    fn sources(&self) -> PathBuf {
        self.place.join("gopath/src").join(IMPORT)
    }

    /// A command that runs in the sources with the compiler's environment.
    fn command(&self, name: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = program(name);
        command.current_dir(self.sources());
        command.env("GOPATH", self.place.join("gopath")).env("GOCACHE", self.place.join("gocache"));
        command.env("GOROOT", &self.compiler).env("GO111MODULE", "off").env("CGO_ENABLED", "0");
        // Compile one package at a time, because the compilation of some packages needs a gigabyte of memory.
        command.env("GOFLAGS", "-p=1").env("HOME", &self.place);
        let path = env::var_os("PATH").unwrap_or_default();
        let path = [self.compiler.join("bin")].into_iter().chain(env::split_paths(&path));
        command.env("PATH", env::join_paths(path).unwrap_or_default());
        command
    }

    fn go(&self, to: &Path, package: &str) -> Result<()> {
        let version = self.version()?;
        let parts = ["component-base/version", "client-go/pkg/version"];
        let flags = parts.map(|part| format!("-X {IMPORT}/vendor/k8s.io/{part}.gitVersion={version}")).join(" ");
        let mut command = self.command("nice");
        command.args(["go", "build", "-ldflags", &flags, "-o"]).arg(to).arg(format!("{IMPORT}/{package}"));
        run(&mut command)
    }

    /// The version of Kubernetes in the API server's notation: `v1.20.2`.
    fn version(&self) -> Result<String> {
        let description = files(&self.place.join("source"), ".dsc")?.pop().context("no description of the package")?;
        let text = fs::read_to_string(&description).with_context(|| description.display().to_string())?;
        version(&text).with_context(|| format!("{} has no version", description.display()))
    }

    /// Generates the descriptions of all marked types, then builds the API server.
    fn server(&self, to: &Path) -> Result<()> {
        println!("Building the API server of Kubernetes {} from Debian's sources.", self.version()?);
        let generator = self.place.join("openapi-gen");
        self.go(&generator, "vendor/k8s.io/kube-openapi/cmd/openapi-gen")?;
        let mut command = self.command(&generator);
        command.args(["--logtostderr", "-h", "hack/boilerplate/boilerplate.generatego.txt"]);
        command.args(["-p", &format!("{IMPORT}/pkg/generated/openapi"), "-O", "zz_generated.openapi"]);
        command.arg("-i").arg(self.marked()?.into_iter().collect::<Vec<_>>().join(","));
        command.arg("-r").arg(self.place.join("violations")).arg("-o").arg(self.place.join("gopath/src"));
        run(&mut command)?;
        // A built program gets its final name only when its file is complete.
        let half = to.with_extension("new");
        self.go(&half, "cmd/kube-apiserver")?;
        fs::rename(&half, to).with_context(|| to.display().to_string())
    }

    /// The import paths of packages with marked types.
    fn marked(&self) -> Result<BTreeSet<String>> {
        let found = output(self.command("grep").args(["-rl", "--include=*.go", MARK]).args(MARKED));
        Ok(packages(&found.context("no source has a mark")?))
    }
}

/// Returns the import paths of the packages that contain these files. File names are relative to the root of the
/// sources.
fn packages(files: &str) -> BTreeSet<String> {
    let is_one = |file: &&str| !file.ends_with("_test.go") && !UNMARKED.iter().any(|tree| file.starts_with(tree));
    let directory = |file: &str| Some(Path::new(file).parent()?.to_str()?.replacen("staging/src/", "vendor/", 1));
    let directories = files.lines().filter(is_one).filter_map(directory);
    directories.map(|directory| format!("{IMPORT}/{directory}")).collect()
}

/// The version of the sources of a Debian package: the part after `really`, if there is one.
fn version(description: &str) -> Option<String> {
    let whole = description.lines().find_map(|line| line.strip_prefix("Version: "))?;
    let upstream = whole.rsplit_once('-').map_or(whole, |(upstream, _)| upstream);
    let really = upstream.rsplit_once("+really").map_or(upstream, |(_, really)| really);
    Some(format!("v{really}"))
}

#[cfg(test)]
mod tests {
    use super::{packages, version};

    #[test]
    fn when_files_have_marks_then_their_packages_are_those_that_the_server_is_built_of() {
        let files = "pkg/apis/abac/v1/doc.go\nstaging/src/k8s.io/api/core/v1/doc.go\n\
                     staging/src/k8s.io/api/core/v1/types.go\nstaging/src/k8s.io/sample-apiserver/pkg/x/doc.go\n\
                     pkg/x/y_test.go";
        let found: Vec<String> = packages(files).into_iter().collect();
        assert_eq!(found, ["k8s.io/kubernetes/pkg/apis/abac/v1", "k8s.io/kubernetes/vendor/k8s.io/api/core/v1"]);
    }

    #[test]
    fn when_debian_has_packed_an_earlier_version_under_a_later_name_then_the_earlier_one_counts() {
        let of = |text: &str| version(&format!("Format: 3.0 (quilt)\nVersion: {text}\n"));
        assert_eq!(of("1.20.5+really1.20.2-1.1+deb12u1").as_deref(), Some("v1.20.2"));
        assert_eq!(of("1.20.5-1").as_deref(), Some("v1.20.5"));
        assert_eq!(version("Source: kubernetes"), None);
    }
}
