//! The rules by which a proxy chooses a server.

use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use balancer_demo::needs;

use super::nginx;

/// The rule by which a proxy chooses a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// nginx: `ip_hash`.
    NginxIpHash,
    /// nginx: `hash $remote_addr`.
    NginxHash,
    /// nginx: `hash $remote_addr consistent`.
    NginxConsistent,
    /// nginx: a cookie that names the server, like `sticky` of its commercial edition.
    NginxCookie,
    /// nginx: `hash $remote_addr consistent` for connections, without HTTP.
    NginxStream,
    /// `HAProxy`: `balance source`.
    HaproxySource,
    /// `HAProxy`: `balance source`, `hash-type consistent`.
    HaproxyConsistent,
    /// `HAProxy`: a stick table of sources.
    HaproxyTable,
    /// `HAProxy`: `cookie insert`.
    HaproxyCookie,
    /// `HAProxy`: `balance source` for connections, without HTTP.
    HaproxyStream,
}

impl Rule {
    /// Checks that the program and its modules are installed.
    ///
    /// # Errors
    /// If one is missing, with the name of Debian's package.
    pub fn ensure_installed(self) -> Result<()> {
        let (program, package) = self.program();
        ensure!(needs::is_installed(program), "{program} is missing: it is in the package {package}");
        if self == Self::NginxStream {
            nginx::module()?;
        }
        Ok(())
    }

    /// The program and its Debian package.
    pub(crate) const fn program(self) -> (&'static str, &'static str) {
        if self.is_nginx() { ("nginx", "nginx-light") } else { ("haproxy", "haproxy") }
    }

    /// Returns the title of the rule.
    #[must_use]
    pub const fn title(self) -> &'static str {
        match self {
            Self::NginxIpHash => "nginx `ip_hash`",
            Self::NginxHash => "nginx `hash $remote_addr`",
            Self::NginxConsistent => "nginx `hash $remote_addr consistent`",
            Self::NginxCookie => "nginx, cookie",
            Self::NginxStream => "nginx stream, `hash $remote_addr consistent`",
            Self::HaproxySource => "HAProxy `balance source`",
            Self::HaproxyConsistent => "HAProxy `balance source`, `hash-type consistent`",
            Self::HaproxyTable => "HAProxy, stick table",
            Self::HaproxyCookie => "HAProxy, cookie",
            Self::HaproxyStream => "HAProxy TCP, `balance source`",
        }
    }

    /// The program's version, such as `1.22.1`.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn version(self) -> Result<String> {
        let (program, _) = self.program();
        let output = Command::new(program).arg("-v").output().with_context(|| format!("cannot start {program}"))?;
        let said = [output.stdout, output.stderr].concat();
        Ok(version_of(&String::from_utf8_lossy(&said)))
    }

    /// Whether the program is nginx and not `HAProxy`.
    #[must_use]
    pub const fn is_nginx(self) -> bool {
        matches!(
            self,
            Self::NginxIpHash | Self::NginxHash | Self::NginxConsistent | Self::NginxCookie | Self::NginxStream
        )
    }
}

/// Finds the version in the output of `nginx -v` or `haproxy -v`.
fn version_of(said: &str) -> String {
    let mut words = said.split_whitespace().skip_while(|word| !word.starts_with("version"));
    words.nth(1).unwrap_or_default().trim_start_matches("nginx/").to_owned()
}

#[cfg(test)]
mod tests {
    use super::version_of;

    #[test]
    fn when_a_version_is_printed_then_it_is_found() {
        assert_eq!(version_of("nginx version: nginx/1.22.1\n"), "1.22.1");
        let said = "HAProxy version 2.6.12-1+deb12u4 2026/10/17 - https://haproxy.org/\nStatus: long-term\n";
        assert_eq!(version_of(said), "2.6.12-1+deb12u4");
        assert_eq!(version_of(""), "");
    }
}
