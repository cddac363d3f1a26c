//! Linux distributions, and the names of the packages that contain the required programs.

use std::fs;

use crate::arch::Arch;

/// A package manager, named with the distributions that use the package manager.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Manager {
    /// Debian, Ubuntu.
    Apt,
    /// Fedora and related distributions.
    Dnf,
    /// Arch.
    Pacman,
}

/// A system program and its package.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tool {
    pub(super) program: &'static str,
    apt: &'static str,
    dnf: &'static str,
    pacman: &'static str,
}

impl Tool {
    /// Returns a tool whose package has the same name in all distributions.
    const fn everywhere(program: &'static str, package: &'static str) -> Self {
        Self { program, apt: package, dnf: package, pacman: package }
    }

    pub(super) const fn package(&self, manager: Manager) -> &'static str {
        match manager {
            Manager::Apt => self.apt,
            Manager::Dnf => self.dnf,
            Manager::Pacman => self.pacman,
        }
    }
}

/// The program that creates network namespaces.
pub(super) const NAMESPACES: [Tool; 1] = [Tool { program: "ip", apt: "iproute2", dnf: "iproute", pacman: "iproute2" }];

/// The program by which tests inspect interfaces.
pub(super) const INTERFACES: [Tool; 1] = [Tool::everywhere("ethtool", "ethtool")];

/// Python and its virtual environments, for tools from Python's package index.
pub(super) const PYTHON: [Tool; 1] =
    [Tool { program: "python3", apt: "python3-venv", dnf: "python3", pacman: "python" }];

/// The browser for tests of the page.
pub(super) const BROWSER: [Tool; 2] = [
    Tool::everywhere("chromium", "chromium"),
    Tool { program: "chromedriver", apt: "chromium-driver", dnf: "chromedriver", pacman: "chromium" },
];

const NGINX: Tool = Tool { program: "nginx", apt: "nginx-light", dnf: "nginx", pacman: "nginx" };

const NSPAWN: Tool =
    Tool { program: "systemd-nspawn", apt: "systemd-container", dnf: "systemd-container", pacman: "systemd" };

const HAPROXY: Tool = Tool::everywhere("haproxy", "haproxy");

/// Servers that only tests start, and tools from the packages of servers.
pub(super) const SERVERS: [Tool; 5] = [
    NGINX,
    Tool { program: "ab", apt: "apache2-utils", dnf: "httpd-tools", pacman: "apache" },
    HAPROXY,
    Tool { program: "promtool", apt: "prometheus", dnf: "golang-github-prometheus", pacman: "prometheus" },
    Tool { program: "named", apt: "bind9", dnf: "bind", pacman: "bind" },
];

/// Servers, clients and tools that only the tests of a release start.
pub(super) const WHOLE: [Tool; 6] = [
    Tool::everywhere("vtysh", "frr"),
    Tool { program: "ansible", apt: "ansible-core", dnf: "ansible-core", pacman: "ansible-core" },
    Tool::everywhere("podman", "podman"),
    NSPAWN,
    Tool::everywhere("iperf3", "iperf3"),
    Tool { program: "dnsmasq", apt: "dnsmasq-base", dnf: "dnsmasq", pacman: "dnsmasq" },
];

/// The programs that benchmarks compare with the balancer.
pub(super) const CLASSICS: [Tool; 3] = [NGINX, HAPROXY, Tool::everywhere("nft", "nftables")];

/// Separate Debian packages that belong to [`CLASSICS`], each with one of its files.
pub(super) const CLASSICS_PARTS: [(&str, &str); 1] =
    [("/usr/lib/nginx/modules/ngx_stream_module.so", "libnginx-mod-stream")];

/// The program that signs releases.
pub(super) const SIGNING: [Tool; 1] =
    [Tool { program: "ssh-keygen", apt: "openssh-client", dnf: "openssh", pacman: "openssh" }];

/// The programs that run beside several balancers.
pub(super) const FLEET: [Tool; 3] = [
    Tool { program: "bird", apt: "bird2", dnf: "bird", pacman: "bird" },
    Tool::everywhere("keepalived", "keepalived"),
    Tool { program: "etcd", apt: "etcd-server", dnf: "etcd", pacman: "etcd" },
];

/// Clients that tests use.
pub(super) const CLIENTS: [Tool; 3] = [
    Tool::everywhere("curl", "curl"),
    Tool { program: "dig", apt: "bind9-dnsutils", dnf: "bind-utils", pacman: "bind" },
    Tool::everywhere("socat", "socat"),
];

/// The program by which tests query etcd.
pub(super) const ENGINE: [Tool; 1] = [Tool { program: "etcdctl", apt: "etcd-client", dnf: "etcd", pacman: "etcd" }];

/// The programs that install a Debian system in a directory and boot the system.
pub(super) const MACHINES: [Tool; 2] = [Tool::everywhere("debootstrap", "debootstrap"), NSPAWN];

/// The programs of the session lab's reduced set.
pub(super) const SESSIONS: [Tool; 4] = [
    Tool { program: "node", apt: "nodejs", dnf: "nodejs", pacman: "nodejs" },
    Tool { program: "npm", apt: "npm", dnf: "npm", pacman: "npm" },
    Tool { program: "redis-server", apt: "redis-server", dnf: "redis", pacman: "redis" },
    Tool::everywhere("memcached", "memcached"),
];

/// The additional programs that only the whole session lab needs: Debian packages, each with one of its files.
pub(super) const SESSION_LAB: [(&str, &str); 12] = [
    ("/usr/bin/java", "default-jre-headless"),
    ("/usr/share/tomcat10/bin/bootstrap.jar", "tomcat10-common"),
    ("/usr/share/tomcat10/lib/catalina-tribes.jar", "libtomcat10-java"),
    ("/usr/share/java/postgresql.jar", "libpostgresql-jdbc-java"),
    ("/usr/share/doc/php-fpm", "php-fpm"),
    ("/usr/share/doc/php-memcached", "php-memcached"),
    ("/usr/share/doc/php-redis", "php-redis"),
    ("/usr/bin/redis-sentinel", "redis-sentinel"),
    ("/usr/bin/redis-cli", "redis-tools"),
    ("/usr/sbin/haproxy", "haproxy"),
    ("/usr/bin/setpriv", "util-linux"),
    ("/usr/share/doc/postgresql", "postgresql"),
];

/// Returns the program that emulates machines with this processor.
pub(super) const fn emulator(arch: Arch) -> Tool {
    let (apt, dnf, pacman) = match arch {
        Arch::X86_64 => ("qemu-system-x86", "qemu-system-x86-core", "qemu-system-x86"),
        Arch::Arm64 => ("qemu-system-arm", "qemu-system-aarch64-core", "qemu-system-aarch64"),
    };
    Tool { program: arch.emulator(), apt, dnf, pacman }
}

/// The programs that make virtual machines with other kernels.
pub(super) const GUESTS: [Tool; 6] = [
    Tool { program: "busybox", apt: "busybox-static", dnf: "busybox", pacman: "busybox" },
    Tool::everywhere("cpio", "cpio"),
    Tool::everywhere("depmod", "kmod"),
    Tool { program: "xz", apt: "xz-utils", dnf: "xz", pacman: "xz" },
    Tool::everywhere("dpkg-deb", "dpkg"),
    Tool::everywhere("strip", "binutils"),
];

impl Manager {
    /// This system's package manager; `None` if the system is unknown.
    pub(super) fn of_this_system() -> Option<Self> {
        Self::of(&fs::read_to_string("/etc/os-release").ok()?)
    }

    /// Finds the package manager from the text of `/etc/os-release`.
    fn of(os_release: &str) -> Option<Self> {
        let value = |key: &str| {
            let line = os_release.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
            line.unwrap_or_default().trim_matches('"').to_owned()
        };
        let names = [value("ID"), value("ID_LIKE")].join(" ");
        names.split_whitespace().find_map(|name| match name {
            "debian" | "ubuntu" => Some(Self::Apt),
            "fedora" | "rhel" => Some(Self::Dnf),
            "arch" => Some(Self::Pacman),
            _ => None,
        })
    }

    pub(super) const fn program(self) -> &'static str {
        match self {
            Self::Apt => "apt-get",
            Self::Dnf => "dnf",
            Self::Pacman => "pacman",
        }
    }

    /// Returns the arguments that install packages without asking.
    pub(super) const fn install(self) -> &'static [&'static str] {
        match self {
            Self::Apt => &["-qq", "-o", "DPkg::Lock::Timeout=120", "install", "--yes", "--no-install-recommends"],
            Self::Dnf => &["--quiet", "--assumeyes", "--setopt=install_weak_deps=False", "install"],
            Self::Pacman => &["--sync", "--needed", "--noconfirm", "--quiet"],
        }
    }

    /// Returns the install command, for messages to the user.
    pub(super) fn by_hand(self, packages: &[&str]) -> String {
        let command = match self {
            Self::Apt => "apt-get update && apt-get install",
            Self::Dnf => "dnf install",
            Self::Pacman => "pacman -S --needed",
        };
        format!("{command} {}", packages.join(" "))
    }
}

#[cfg(test)]
mod tests {
    use super::{
        Arch, BROWSER, CLASSICS, CLIENTS, ENGINE, FLEET, GUESTS, INTERFACES, MACHINES, Manager, NAMESPACES, SERVERS,
        SESSIONS, SIGNING, WHOLE, emulator,
    };

    #[test]
    fn when_a_distribution_or_its_kin_is_known_then_its_package_manager_is_found() {
        let cases = [
            (
                "PRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\nNAME=\"Debian GNU/Linux\"\nVERSION_ID=\"12\"\nID=debian\n",
                Some(Manager::Apt),
            ),
            ("NAME=\"Debian GNU/Linux\"\nVERSION_CODENAME=trixie\nID=debian\n", Some(Manager::Apt)),
            ("NAME=\"Ubuntu\"\nVERSION_ID=\"24.04\"\nID=ubuntu\nID_LIKE=debian\n", Some(Manager::Apt)),
            ("NAME=\"Linux Mint\"\nID=linuxmint\nID_LIKE=\"ubuntu debian\"\n", Some(Manager::Apt)),
            ("NAME=\"Fedora Linux\"\nID=fedora\nVERSION_ID=42\n", Some(Manager::Dnf)),
            ("NAME=\"Rocky Linux\"\nID=\"rocky\"\nID_LIKE=\"rhel centos fedora\"\n", Some(Manager::Dnf)),
            ("NAME=\"Arch Linux\"\nID=arch\n", Some(Manager::Pacman)),
            ("NAME=\"Alpine Linux\"\nID=alpine\n", None),
            ("", None),
        ];
        for (text, manager) in cases {
            assert_eq!(Manager::of(text), manager, "{text}");
        }
    }

    #[test]
    fn when_a_program_is_needed_then_it_has_a_package_on_every_distribution() {
        let emulators = Arch::ALL.map(emulator);
        let names = |manager| {
            let tools = NAMESPACES
                .iter()
                .chain(&INTERFACES)
                .chain(&BROWSER)
                .chain(&SERVERS)
                .chain(&WHOLE)
                .chain(&FLEET)
                .chain(&CLIENTS)
                .chain(&ENGINE)
                .chain(&MACHINES)
                .chain(&SESSIONS)
                .chain(&CLASSICS)
                .chain(&SIGNING)
                .chain(&emulators)
                .chain(&GUESTS);
            tools.map(|tool| tool.package(manager)).collect::<Vec<_>>()
        };
        assert_eq!(
            names(Manager::Apt),
            "iproute2 ethtool chromium chromium-driver nginx-light apache2-utils haproxy prometheus bind9 frr ansible-core podman systemd-container iperf3 dnsmasq-base \
             bird2 keepalived etcd-server curl bind9-dnsutils socat etcd-client debootstrap systemd-container nodejs npm redis-server memcached nginx-light haproxy nftables openssh-client qemu-system-x86 qemu-system-arm busybox-static cpio kmod xz-utils dpkg binutils"
                .split(' ')
                .collect::<Vec<_>>()
        );
        assert_eq!(
            names(Manager::Dnf),
            "iproute ethtool chromium chromedriver nginx httpd-tools haproxy golang-github-prometheus bind frr ansible-core podman systemd-container iperf3 dnsmasq bird keepalived etcd \
             curl bind-utils socat etcd debootstrap systemd-container nodejs npm redis memcached nginx haproxy nftables openssh qemu-system-x86-core qemu-system-aarch64-core busybox cpio kmod xz dpkg binutils"
                .split(' ')
                .collect::<Vec<_>>()
        );
        assert_eq!(
            names(Manager::Pacman),
            "iproute2 ethtool chromium chromium nginx apache haproxy prometheus bind frr ansible-core podman systemd iperf3 dnsmasq bird keepalived etcd curl bind socat etcd \
             debootstrap systemd nodejs npm redis memcached nginx haproxy nftables openssh qemu-system-x86 \
             qemu-system-aarch64 busybox cpio kmod xz dpkg binutils"
                .split(' ')
                .collect::<Vec<_>>()
        );
        assert_eq!(Manager::Dnf.by_hand(&["iproute"]), "dnf install iproute");
    }
}
