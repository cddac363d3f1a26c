//! The verifier's log of a program that the kernel accepts.
//!
//! The library for BPF asks for a log only if the kernel refuses a program. This module therefore stands between the
//! library and the system call.

use std::{
    collections::BTreeMap,
    ffi::{CStr, c_char, c_int, c_long, c_void},
    sync::{
        Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use anyhow::{Result, ensure};

/// The size of the largest log that the kernel writes.
const SIZE: u32 = (u32::MAX >> 2) - 1;
/// The command that loads a program.
const BPF_PROG_LOAD: c_long = 5;
/// The program type of XDP programs.
const BPF_PROG_TYPE_XDP: u32 = 6;
/// Every instruction, each time that the verifier examines it.
const LEVEL: u32 = 2;

/// The arguments of the command that loads a program, as far as the log depends on them.
#[repr(C)]
struct LoadProgram {
    kind: u32,
    count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    between: [u32; 13],
    line_record: u32,
    lines: u64,
    line_count: u32,
}

/// Whether the next XDP program is loaded with a log.
static WANTED: AtomicBool = AtomicBool::new(false);
static LOG: Mutex<Vec<u8>> = Mutex::new(Vec::new());

type SystemCall = unsafe extern "C" fn(c_long, ...) -> c_long;

/// Replaces the C library's function of this name.
///
/// # Safety
/// As for the C library's function.
#[unsafe(no_mangle)]
unsafe extern "C" fn syscall(
    number: c_long,
    a: c_long,
    b: *mut LoadProgram,
    c: c_long,
    d: c_long,
    e: c_long,
    f: c_long,
) -> c_long {
    static NEXT: OnceLock<Option<SystemCall>> = OnceLock::new();
    let next = NEXT.get_or_init(|| {
        // SAFETY: the name ends with a zero byte.
        let found = unsafe { libc::dlsym(libc::RTLD_NEXT, c"syscall".as_ptr()) };
        // SAFETY: a pointer to the C library's function or null, which is `None`.
        unsafe { std::mem::transmute::<*mut c_void, Option<SystemCall>>(found) }
    });
    let Some(next) = next else { return fail(libc::ENOSYS) };
    if number == libc::SYS_bpf
        && a == BPF_PROG_LOAD
        // SAFETY: the kernel's argument of this command, which the caller made.
        && unsafe { (*b).kind } == BPF_PROG_TYPE_XDP
        && WANTED.swap(false, Ordering::Relaxed)
    {
        let mut log = LOG.lock().unwrap_or_else(PoisonError::into_inner);
        log.reserve_exact(SIZE as usize);
        // SAFETY: as above. The log stays where it is until the call ends. Without the lines of the source, the log is
        // shorter.
        unsafe {
            let arguments = &mut *b;
            (arguments.log_level, arguments.log_size, arguments.log) = (LEVEL, SIZE, log.as_mut_ptr() as u64);
            (arguments.line_record, arguments.lines, arguments.line_count) = (0, 0, 0);
            let result = next(number, a, b, c, d, e, f);
            // The kernel has written a string.
            let length = CStr::from_ptr(log.as_ptr().cast::<c_char>()).count_bytes();
            log.set_len(length);
            return result;
        }
    }
    // SAFETY: as the caller's.
    unsafe { next(number, a, b, c, d, e, f) }
}

fn fail(code: c_int) -> c_long {
    // SAFETY: the C library's variable of this thread.
    unsafe { *libc::__errno_location() = code };
    -1
}

/// The verifier's log of the next XDP program that `load` loads.
pub(crate) fn of_next_load(load: impl FnOnce() -> Result<()>) -> Result<String> {
    WANTED.store(true, Ordering::Relaxed);
    load()?;
    let log = std::mem::take(&mut *LOG.lock().unwrap_or_else(PoisonError::into_inner));
    ensure!(!log.is_empty(), "the kernel wrote no log");
    Ok(String::from_utf8_lossy(&log).into_owned())
}

/// The work of the verifier for a function of the program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Function {
    pub(crate) name: String,
    /// The number of times that the verifier examined an instruction of the function.
    pub(crate) verified: u64,
    /// The number of the function's instructions that the verifier examined.
    pub(crate) own: u64,
}

/// The functions in a log, the most expensive first.
pub(crate) fn functions(log: &str) -> Vec<Function> {
    // The functions begin at these instructions. The log names only global functions, which the verifier examines
    // separately.
    let (mut starts, mut counts) = (BTreeMap::<usize, usize>::new(), BTreeMap::<usize, u64>::new());
    let mut names = BTreeMap::<usize, &str>::new();
    for line in log.lines() {
        if let Some((index, start)) = line.strip_prefix("func#").and_then(|rest| numbers(rest.split_once(" @")?)) {
            starts.insert(start, index);
        } else if let Some(rest) = line.strip_prefix("Validating ") {
            if let Some((name, index)) = rest.trim_end_matches('.').split_once("() func#") {
                names.insert(index.parse().unwrap_or_default(), name);
            }
        } else if let Some(index) = instruction(line) {
            *counts.entry(index).or_default() += 1;
        }
    }
    let mut functions: BTreeMap<usize, Function> = BTreeMap::new();
    for (at, verified) in counts {
        let index = starts.range(..=at).next_back().map_or(0, |(_, &index)| index);
        let function = functions.entry(index).or_insert_with(|| {
            let name = match names.get(&index) {
                Some(&name) => name.to_owned(),
                None if index == 0 => "balancer".to_owned(),
                None => format!("(function {index}, once for each call)"),
            };
            Function { name, verified: 0, own: 0 }
        });
        function.verified += verified;
        function.own += 1;
    }
    let mut functions: Vec<_> = functions.into_values().collect();
    functions.sort_by_key(|function| std::cmp::Reverse(function.verified));
    functions
}

fn numbers((a, b): (&str, &str)) -> Option<(usize, usize)> {
    Some((a.parse().ok()?, b.trim().parse().ok()?))
}

/// The position of the instruction in a line such as `12: (bf) r1 = r2`.
fn instruction(line: &str) -> Option<usize> {
    let (at, rest) = line.split_once(": (")?;
    (rest.as_bytes().get(2) == Some(&b')')).then(|| at.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn when_a_log_is_read_then_each_examined_instruction_counts_for_its_function() {
        let log = "func#0 @0\nfunc#1 @2\nfunc#2 @4\n0: R1=ctx() R10=fp0\n0: (85) call pc+1\n1: (95) exit\n\
                   4: (b7) r0 = 0 ; R0=0\n4: (b7) r0 = 0\n5: (95) exit\n\nfrom 4 to 5: safe\n\
                   Validating balancer_keep() func#1...\n2: (b7) r0 = 0\n3: (95) exit\nprocessed 8 insns\n";
        let found: Vec<_> =
            functions(log).into_iter().map(|function| (function.name, function.verified, function.own)).collect();
        let expected = [("(function 2, once for each call)", 3, 2), ("balancer", 2, 2), ("balancer_keep", 2, 2)];
        assert_eq!(found, expected.map(|(name, verified, own)| (name.to_owned(), verified, own)));
    }
}
