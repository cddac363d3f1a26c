//! The command `balancer-kubernetes`, in `lib.rs`.

use std::process::ExitCode;

fn main() -> ExitCode {
    balancer_kubernetes::main()
}
