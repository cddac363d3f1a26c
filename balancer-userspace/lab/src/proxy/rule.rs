//! The rules by which nginx and HAProxy choose a server.

use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use balancer_demo::needs;

use super::nginx;

/// The rule by which a proxy chooses a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// In nginx, the directive `ip_hash`.
    NginxIpHash,
    /// In nginx, the directive `hash $remote_addr`.
    NginxHash,
    /// In nginx, the directive `hash $remote_addr consistent`.
    NginxConsistent,
    /// A cookie that names the server, in nginx, similar to `sticky` in nginx's commercial edition.
    NginxCookie,
    /// In nginx without HTTP, for TCP connections: `hash $remote_addr consistent`.
    NginxStream,
    /// In `HAProxy`, the directive `balance source`.
    HaproxySource,
    /// In `HAProxy`, the directive `balance source` with `hash-type consistent`.
    HaproxyConsistent,
    /// A stick table in `HAProxy` that contains source addresses.
    HaproxyTable,
    /// In `HAProxy`, the directive `cookie insert`.
    HaproxyCookie,
    /// In `HAProxy` without HTTP, for TCP connections: `balance source`.
    HaproxyStream,
}

impl Rule {
    /// Checks that the rule's program and its modules are installed.
    ///
    /// # Errors
    /// Fails with the name of the Debian package if the program or a module is missing.
    pub fn ensure_installed(self) -> Result<()> {
        let (program, package) = self.program();
        ensure!(needs::is_installed(program), "{program} is missing: it is in the package {package}");
        if self == Self::NginxStream {
            nginx::module()?;
        }
        Ok(())
    }

    /// The program that has the rule, and its Debian package.
    pub(crate) const fn program(self) -> (&'static str, &'static str) {
        if self.is_nginx() { ("nginx", "nginx-light") } else { ("haproxy", "haproxy") }
    }

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

    /// The version of the rule's program, such as `1.22.1`.
    ///
    /// # Errors
    /// Fails if the program cannot be started.
    pub fn version(self) -> Result<String> {
        let (program, _) = self.program();
        let output = Command::new(program).arg("-v").output().with_context(|| format!("cannot start {program}"))?;
        let said = [output.stdout, output.stderr].concat();
        Ok(version_of(&String::from_utf8_lossy(&said)))
    }

    /// Whether the rule's program is nginx and not `HAProxy`.
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
