//! The entry point of `balancer-lab`; the code is in `lib.rs`.

use std::process::ExitCode;

fn main() -> ExitCode {
    balancer_lab::main()
}
