//! Carries out those cures on this machine that can be undone.

use std::{
    path::Path,
    process::{Command, Stdio},
};

use crate::finding::{Finding, Step};

/// Returns the commands of all cures that can be undone, in the order of the findings and without duplicates.
#[must_use]
pub fn steps(findings: &[Finding]) -> Vec<Step> {
    let mut steps = Vec::new();
    for step in findings.iter().flat_map(|finding| &finding.cure.fix) {
        if !steps.contains(step) {
            steps.push(step.clone());
        }
    }
    steps
}

/// Runs a step of a cure. The word `balancer` in a step stands for this program with the control socket `socket`.
///
/// # Errors
/// Fails with the command's error output, or with the reason why the command could not be started.
pub fn run(step: &Step, socket: &Path) -> Result<(), String> {
    let Some((program, arguments)) = step.run.split_first() else { return Ok(()) };
    let mut command = match program.as_str() {
        "balancer" => Command::new(std::env::current_exe().map_err(|error| error.to_string())?),
        other => Command::new(other),
    };
    command.args(arguments).env("BALANCER_SOCKET", socket).stdin(Stdio::null());
    let output = command.output().map_err(|error| format!("{program}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let words = String::from_utf8_lossy(&output.stderr);
    Err(format!("`{}` failed ({}): {}", step.run.join(" "), output.status, words.trim()))
}
