//! Signs with an SSH key (`ssh-keygen -Y sign`), because users already have this tool for checking signatures.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

use crate::{
    command::{program, run},
    setup::signing,
};

/// The purpose of the signature (ssh-keygen's namespace). A signature for a different purpose is invalid, even with the
/// same key.
const NAMESPACE: &str = "balancer-release";

/// Returns the key's absolute path, before the build begins.
pub(super) fn key(path: &Path) -> Result<PathBuf> {
    signing()?;
    fs::canonicalize(path).with_context(|| format!("the key {}", path.display()))
}

/// Writes the signature of `file` into `FILE.sig`, in the same directory.
pub(super) fn sign(file: &Path, key: &Path) -> Result<()> {
    // Remove an old signature, because ssh-keygen would ask before it replaces a signature.
    let signature = PathBuf::from(format!("{}.sig", file.display()));
    if signature.exists() {
        fs::remove_file(&signature).with_context(|| signature.display().to_string())?;
    }
    run(program("ssh-keygen").args(["-Y", "sign", "-n", NAMESPACE, "-f"]).arg(key).arg(file))
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path, process::Stdio};

    use super::*;

    fn make_key(at: &Path) -> Result<String> {
        run(program("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-C", "", "-f"]).arg(at))?;
        Ok(fs::read_to_string(at.with_extension("pub"))?)
    }

    /// Checks a signature with the commands of the book.
    fn is_signed(directory: &Path) -> Result<bool> {
        let mut command = program("ssh-keygen");
        command.args(["-Y", "verify", "-n", NAMESPACE, "-I", "release@example.com", "-f", "signers", "-s", "SUMS.sig"]);
        let sums = fs::File::open(directory.join("SUMS"))?;
        Ok(command.current_dir(directory).stdin(sums).stdout(Stdio::null()).status()?.success())
    }

    #[test]
    fn when_a_text_or_key_differs_then_the_signature_is_invalid() -> Result<()> {
        let directory = std::env::temp_dir().join(format!("balancer-signature-{}", std::process::id()));
        fs::create_dir_all(&directory)?;
        let (own, other) = (make_key(&directory.join("own"))?, make_key(&directory.join("other"))?);
        let (sums, signers) = (directory.join("SUMS"), directory.join("signers"));
        fs::write(&sums, "0123  balancer.tar.gz\n")?;
        sign(&sums, &key(&directory.join("own"))?)?;
        fs::write(&signers, format!("release@example.com {own}"))?;
        assert!(is_signed(&directory)?);
        fs::write(&signers, format!("release@example.com {other}"))?;
        assert!(!is_signed(&directory)?, "by another key");
        fs::write(&signers, format!("release@example.com {own}"))?;
        fs::write(&sums, "4567  balancer.tar.gz\n")?;
        assert!(!is_signed(&directory)?, "other checksums");
        sign(&sums, &directory.join("own"))?;
        assert!(is_signed(&directory)?, "signed again");
        fs::remove_dir_all(directory)?;
        Ok(())
    }
}
