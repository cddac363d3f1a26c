//! Applying a configuration.

use std::path::PathBuf;

use balancer_control::{
    plan::{Planned, PlannedService},
    run_time::RunTimeChange,
};
use serde::{Deserialize, Serialize};

use super::plan::PlanView;

/// The body of `POST /v1/configuration`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ApplyConfiguration {
    /// The file's name, for messages.
    pub file: String,
    /// The contents of the file.
    pub text: String,
    /// Change nothing, and report what would change.
    #[serde(default)]
    pub dry_run: bool,
    /// Seconds since the file's last change. A fleet refuses a file that is older than its newest change.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub age_seconds: Option<f64>,
    /// Apply the file even if it is older than the newest change in the fleet.
    #[serde(default)]
    pub force: bool,
    /// Undo all run-time changes.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub reset: bool,
    /// The file's path on the balancer's machine, with links resolved. It shows whether the file is the balancer's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<PathBuf>,
}

/// The answer to a new configuration.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Applied {
    /// The change that was made, or would be, in one line.
    pub message: String,
    /// With `dry_run`: the differences between the file and the configuration in use, and further consequences.
    #[serde(default)]
    pub differences: Vec<String>,
    /// The run-time changes made before.
    #[serde(default)]
    pub changed_at_run_time: Vec<RunTimeChange>,
    /// The services in which slots or known clients move, clients are forgotten, or listeners are added or removed, as
    /// planned right before the change.
    #[serde(default)]
    pub services: Vec<PlanView>,
}

impl From<Planned> for Applied {
    fn from(planned: Planned) -> Self {
        let services = planned.services.into_iter().filter(PlannedService::does_something);
        Self {
            message: planned.message,
            differences: planned.reports,
            changed_at_run_time: planned.changed,
            services: services.map(Into::into).collect(),
        }
    }
}
