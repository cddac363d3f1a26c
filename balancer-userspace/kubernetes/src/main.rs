//! The entry point of `balancer-kubernetes`; the code is in `lib.rs`.

use std::process::ExitCode;

fn main() -> ExitCode {
    balancer_kubernetes::main()
}
