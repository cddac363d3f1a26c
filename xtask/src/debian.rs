//! Downloads Debian's packages from this machine's mirrors, without changing installed packages.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result};

use crate::command::{output, program, run};

const KEYS: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
const LISTS_ARE_FRESH: Duration = Duration::from_secs(12 * 3600);

/// A directory with package lists and downloads of its own.
pub(crate) struct Apt {
    directory: PathBuf,
    configuration: PathBuf,
}

impl Apt {
    /// Fetches the package lists of these suites from this machine's mirrors, at most twice a day, for Debian's
    /// `architecture` or for this machine's architecture.
    pub(crate) fn new(directory: &Path, suites: &[&str], architecture: Option<&str>) -> Result<Self> {
        let this = Self::configured(directory, architecture)?;
        this.refresh(suites, &["deb"])?;
        Ok(this)
    }

    /// Works like [`Self::new`] for this machine's architecture, but also fetches the lists of source packages.
    pub(crate) fn with_sources(directory: &Path, suites: &[&str]) -> Result<Self> {
        let this = Self::configured(directory, None)?;
        this.refresh(suites, &["deb", "deb-src"])?;
        Ok(this)
    }

    fn configured(directory: &Path, architecture: Option<&str>) -> Result<Self> {
        let directory = directory.join("apt");
        for part in ["lists/partial", "cache/archives/partial", "parts"] {
            fs::create_dir_all(directory.join(part))?;
        }
        let configuration = directory.join("apt.conf");
        let at = directory.display();
        let mut settings = format!(
            "Dir::Etc::sourcelist \"{at}/sources.list\"; Dir::Etc::sourceparts \"{at}/parts\";\n\
             Dir::Etc::preferences \"/dev/null\"; Dir::Etc::preferencesparts \"{at}/parts\";\n\
             Dir::State::lists \"{at}/lists\"; Dir::Cache \"{at}/cache\"; Acquire::Languages \"none\";\n\
             Acquire::Retries \"3\"; APT::Sandbox::User \"root\";\n"
        );
        if let Some(architecture) = architecture {
            // The packages installed on this machine may have a different architecture, so apt must ignore the
            // installed packages.
            fs::write(directory.join("status"), "")?;
            settings += &format!(
                "APT::Architecture \"{architecture}\"; APT::Architectures {{ \"{architecture}\"; }};\n\
                 Dir::State::status \"{at}/status\";\n"
            );
        }
        fs::write(&configuration, settings)?;
        Ok(Self { directory, configuration })
    }

    fn command(&self, name: &str) -> Command {
        let mut command = program(name);
        command.env("APT_CONFIG", &self.configuration);
        command
    }

    fn refresh(&self, suites: &[&str], kinds: &[&str]) -> Result<()> {
        let fresh = self.directory.join("fresh");
        let age = fs::metadata(&fresh).and_then(|file| file.modified()).ok().and_then(|time| time.elapsed().ok());
        if age.is_some_and(|age| age < LISTS_ARE_FRESH) {
            return Ok(());
        }
        let mirrors =
            output(program("apt-get").args(["indextargets", "--format", "$(REPO_URI)", "Created-By: Packages"]));
        let mirrors = mirrors.context("`apt-get indextargets` failed")?;
        fs::write(self.directory.join("sources.list"), sources(&mirrors, suites, kinds)?)?;
        // A mirror may lack a suite: `search` reports missing packages later.
        run(self.command("apt-get").args(["-qq", "update"]).stderr(std::process::Stdio::null())).or_else(|_| {
            println!("Some of Debian's suites are not on this machine's mirrors.");
            Ok::<(), anyhow::Error>(())
        })?;
        fs::write(fresh, "")?;
        Ok(())
    }

    /// The names of the packages that match a regular expression.
    pub(crate) fn search(&self, pattern: &str) -> Result<Vec<String>> {
        let found = output(self.command("apt-cache").args(["search", "--names-only", pattern]))
            .context("`apt-cache search` failed")?;
        Ok(found.lines().filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect())
    }

    pub(crate) fn has(&self, package: &str) -> bool {
        output(self.command("apt-cache").args(["show", "--quiet=2", package])).is_some_and(|text| !text.is_empty())
    }

    /// Downloads a package into `directory`.
    pub(crate) fn download(&self, package: &str, directory: &Path) -> Result<()> {
        run(self.command("apt-get").args(["-qq", "download", package]).current_dir(directory))
    }

    /// Downloads the files of a source package into `directory`, and does not unpack them.
    pub(crate) fn download_source(&self, package: &str, directory: &Path) -> Result<()> {
        run(self.command("apt-get").args(["-qq", "--download-only", "source", package]).current_dir(directory))
    }

    /// Downloads packages and their dependencies, unless the files exist. Returns the paths of the downloaded files.
    pub(crate) fn download_with_dependencies(&self, packages: &[&str]) -> Result<Vec<PathBuf>> {
        let mut command = self.command("apt-get");
        command.args(["-qq", "--yes", "--no-install-recommends", "--download-only", "install"]).args(packages);
        run(&mut command)?;
        let archives = self.directory.join("cache/archives");
        let files = fs::read_dir(&archives).with_context(|| archives.display().to_string())?;
        let files = files.flatten().map(|file| file.path());
        Ok(files.filter(|file| file.extension().is_some_and(|extension| extension == "deb")).collect())
    }
}

/// Returns the apt sources for `suites` on `mirrors`, for the given kinds of packages (`deb`, `deb-src`).
fn sources(mirrors: &str, suites: &[&str], kinds: &[&str]) -> Result<String> {
    let mirrors: Vec<&str> = mirrors.lines().filter(|mirror| mirror.starts_with("http")).collect();
    let find = |security| mirrors.iter().find(|mirror| mirror.contains("security") == security).copied();
    let debian = |mirror: &&&str| mirror.trim_end_matches('/').ends_with("/debian");
    let main =
        mirrors.iter().find(debian).copied().or_else(|| find(false)).context("this machine's apt has no mirror")?;
    let security = find(true).map_or_else(|| format!("{}-security", main.trim_end_matches('/')), str::to_owned);
    let lines = suites.iter().flat_map(|suite| {
        let mirror = if suite.ends_with("-security") { &security } else { main };
        kinds.iter().map(move |kind| format!("{kind} [signed-by={KEYS}] {mirror} {suite} main\n"))
    });
    Ok(lines.collect())
}

#[cfg(test)]
mod tests {
    use super::sources;

    #[test]
    fn when_the_machine_has_mirrors_then_downloads_use_them() {
        let mirrors = "http://other.test/tools/\nhttp://mirror.test/debian-security/\nhttp://mirror.test/debian/\ncdrom://disc/\n";
        let sources = sources(mirrors, &["trixie-backports", "trixie-security"], &["deb", "deb-src"]).expect("mirrors");
        assert!(sources.contains("] http://mirror.test/debian/ trixie-backports main\n"), "{sources}");
        assert!(sources.contains("] http://mirror.test/debian-security/ trixie-security main\n"), "{sources}");
        assert!(sources.lines().any(|line| line.starts_with("deb-src [") && line.ends_with("trixie-security main")));
    }
}
