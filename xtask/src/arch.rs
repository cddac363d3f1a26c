//! The processor architectures that releases support.

use std::env::consts::ARCH;

use clap::ValueEnum;

/// A processor architecture of releases.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Arch {
    /// Debian's amd64.
    X86_64,
    /// Debian's arm64.
    Arm64,
}

impl Arch {
    pub(crate) const ALL: [Self; 2] = [Self::X86_64, Self::Arm64];

    pub(crate) fn of_this_machine() -> Option<Self> {
        Self::ALL.into_iter().find(|arch| arch.processor() == ARCH)
    }

    pub(crate) fn is_this_machines(self) -> bool {
        Self::of_this_machine() == Some(self)
    }

    /// The name of the architecture in file names.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::X86_64 => "x86-64",
            Self::Arm64 => "arm64",
        }
    }

    /// Debian's name of the architecture.
    pub(crate) const fn debian(self) -> &'static str {
        match self {
            Self::X86_64 => "amd64",
            Self::Arm64 => "arm64",
        }
    }

    /// The name of the architecture in compilers' targets.
    pub(crate) const fn processor(self) -> &'static str {
        match self {
            Self::X86_64 => "x86_64",
            Self::Arm64 => "aarch64",
        }
    }

    /// The qemu program that emulates a whole machine.
    pub(crate) const fn emulator(self) -> &'static str {
        match self {
            Self::X86_64 => "qemu-system-x86_64",
            Self::Arm64 => "qemu-system-aarch64",
        }
    }
}
