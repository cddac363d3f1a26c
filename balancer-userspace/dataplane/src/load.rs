//! Loads a program into the kernel, and explains failures.

use std::{
    env,
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::anyhow;
use aya::{
    EbpfError,
    maps::MapError,
    programs::{ProgramError, Xdp},
};
use nix::sys::signal::{SigSet, SigmaskHow};

use crate::{
    map_sizes::{self, MapSize},
    privileges,
};

/// Explains why the kernel does not load the whole object; in most cases, the kernel cannot create a map. `sizes`
/// contains the sizes of the large maps.
pub(super) fn not_loaded(error: EbpfError, sizes: &[MapSize]) -> anyhow::Error {
    let EbpfError::MapError(MapError::CreateError { name, io_error }) = &error else {
        return anyhow::Error::new(error).context("loading the kernel program");
    };
    let advice = match io_error.raw_os_error() {
        Some(libc::ENOMEM) => &format!(
            "{}; maps count in the memory limit of a control group (MemoryMax= of a unit): raise it, or reduce what \
             the large ones depend on",
            map_sizes::told(sizes, name)
        ),
        Some(libc::EPERM) if privileges::in_user_namespace() => {
            "; this process is in a user namespace, where the kernel takes no maps and programs whatever capabilities it \
             has: run it outside (a container: privileged, and without a mapping of users)"
        }
        _ => "",
    };
    anyhow!("the kernel does not make the map {name}: {io_error}{advice}")
}

/// Loads the program into the kernel, which verifies it.
///
/// # Errors
/// Fails if the kernel refuses the program; the error is one line, which names the file that contains the verifier's
/// log.
pub(super) fn load_program(name: &str, program: &mut Xdp) -> anyhow::Result<()> {
    load_with(name, || program.load())
}

/// Loads a program of any type by `load`. The function blocks signals, because a signal would stop the verifier, and
/// the next attempt, which writes a log, takes ten times as long.
///
/// # Errors
/// Fails as [`load_program`] does.
pub(super) fn load_with(name: &str, mut load: impl FnMut() -> Result<(), ProgramError>) -> anyhow::Result<()> {
    // The verifier also stops, with EAGAIN, when the process is being stopped or frozen, which says nothing about the
    // program.
    const ATTEMPTS: u32 = 50;
    const PAUSE: Duration = Duration::from_millis(2);
    let unmasked = SigSet::all().thread_swap_mask(SigmaskHow::SIG_BLOCK).ok();
    let mut result = load();
    for _ in 1..ATTEMPTS {
        match &result {
            Err(ProgramError::LoadError { io_error, .. }) if io_error.raw_os_error() == Some(libc::EAGAIN) => {
                std::thread::sleep(PAUSE);
                result = load();
            }
            Ok(()) | Err(_) => break,
        }
    }
    if let Some(unmasked) = unmasked {
        // The kernel cannot refuse a signal mask that was in use before.
        let _refused = unmasked.thread_set_mask();
    }
    result.map_err(|error| {
        let kernel = privileges::kernel().unwrap_or_else(|_| "of unknown version".to_owned());
        let ProgramError::LoadError { io_error, verifier_log } = &error else {
            return anyhow!("Linux {kernel} refuses the program {name}: {error}");
        };
        let log = verifier_log.to_string();
        match last_word(&log) {
            None => anyhow!("Linux {kernel} refuses the program {name}: {io_error}"),
            Some(word) => anyhow!(refused(&kernel, name, io_error, word, save(&directory(), name, &log))),
        }
    })
}

fn refused(kernel: &str, program: &str, error: &io::Error, word: &str, log: io::Result<PathBuf>) -> String {
    let version = env!("CARGO_PKG_VERSION");
    let log = match log {
        Ok(path) => format!("and the verifier's log in {}", path.display()),
        Err(error) => format!("(the verifier's log could not be saved: {error})"),
    };
    format!(
        "the verifier of Linux {kernel} refuses the program {program} of balancer {version}: {error}: {word}; this is a \
         fault of the balancer: please report this line {log}"
    )
}

/// Returns the verifier's reason for refusing the program: the last line of the log that contains no statistics.
fn last_word(log: &str) -> Option<&str> {
    const FIGURES: [&str; 4] = ["processed ", "verification time ", "stack depth ", "mark_precise: "];
    let lines = log.lines().map(str::trim).filter(|line| !line.is_empty());
    lines.rev().find(|line| !FIGURES.iter().any(|figure| line.starts_with(figure)))
}

/// The directory in which a service manager lets a service keep files, or the system's temporary directory.
fn directory() -> PathBuf {
    env::var_os("STATE_DIRECTORY").map_or_else(env::temp_dir, PathBuf::from)
}

/// Writes a log to a new file, which replaces the log of an earlier start. The function does not follow a symbolic
/// link.
fn save(directory: &Path, program: &str, log: &str) -> io::Result<PathBuf> {
    let path = directory.join(format!("{program}-verifier.log"));
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    File::create_new(&path)?.write_all(log.as_bytes())?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    const LOG: &str = "\
412: (0f) r1 += r2
math between pkt pointer and register with unbounded min value is not allowed
processed 58321 insns (limit 1000000) max_states_per_insn 21 total_states 3021 peak_states 1499 mark_read 98
";

    #[test]
    fn when_there_is_no_memory_for_a_map_then_it_is_named_with_its_size_and_what_counts_it() {
        let create = |code| {
            let io_error = io::Error::from_raw_os_error(code);
            not_loaded(MapError::CreateError { name: "CLIENTS".to_owned(), io_error }.into(), &[]).to_string()
        };
        let text = create(libc::ENOMEM);
        assert!(text.starts_with("the kernel does not make the map CLIENTS: Cannot allocate memory"), "{text}");
        assert!(text.contains("(os error 12); maps count") && text.contains("MemoryMax="), "{text}");
        assert!(create(libc::E2BIG).ends_with("(os error 7)"));
    }

    #[test]
    fn when_the_kernel_refuses_a_program_then_the_error_names_program_reason_and_log() {
        let directory = tempfile::tempdir().unwrap();
        let error = io::Error::from_raw_os_error(libc::EINVAL);
        let path = directory.path().join("decap-verifier.log");
        let elsewhere = directory.path().join("elsewhere");
        fs::write(&elsewhere, "kept").unwrap();
        symlink(&elsewhere, &path).unwrap();
        let saved = save(directory.path(), "decap", LOG);
        let said = refused("6.18.15", "decap", &error, last_word(LOG).unwrap(), saved);
        assert_eq!(
            said,
            format!(
                "the verifier of Linux 6.18.15 refuses the program decap of balancer {}: Invalid argument (os error 22): \
                 math between pkt pointer and register with unbounded min value is not allowed; this is a fault of the \
                 balancer: please report this line and the verifier's log in {}",
                env!("CARGO_PKG_VERSION"),
                path.display()
            )
        );
        assert_eq!(fs::read_to_string(&path).unwrap(), LOG);
        assert_eq!(fs::read_to_string(&elsewhere).unwrap(), "kept");
        let unsaved = refused("6.18.15", "decap", &error, "no", save(Path::new("/nowhere"), "decap", LOG));
        assert!(unsaved.contains("(the verifier's log could not be saved: "), "{unsaved}");
    }

    #[test]
    fn when_a_verifier_log_ends_with_statistics_then_the_objection_is_found() {
        let large = "BPF program is too large. Processed 1000001 insn\nverification time 33123 usec\nstack depth 168+0\n\
                     processed 1000001 insns (limit 1000000) max_states_per_insn 4";
        assert_eq!(last_word(large), Some("BPF program is too large. Processed 1000001 insn"));
        assert_eq!(last_word("processed 1 insns\n"), None);
        assert_eq!(last_word(""), None);
    }
}
