//! The request that applies a configuration, and the answer.

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
    /// The name of the configuration file, for messages.
    pub file: String,
    /// The contents of the configuration file.
    pub text: String,
    /// Whether the controller only reports the changes and does not make them.
    #[serde(default)]
    pub dry_run: bool,
    /// Seconds since the file's last change. A fleet refuses a file that is older than the fleet's newest change.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub age_seconds: Option<f64>,
    /// Whether the controller applies the file even if it is older than the newest change in the fleet.
    #[serde(default)]
    pub force: bool,
    /// Whether the controller undoes all run-time changes.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub reset: bool,
    /// The path of the file on the balancer's machine, with symbolic links resolved. The path shows whether the file is
    /// the balancer's own configuration file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<PathBuf>,
}

/// The body of `PUT /v1/drop-ins/NAME`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SetDropIn {
    /// The name of the file with the drop-in, for messages.
    pub file: String,
    /// The text of the drop-in: sections `[[service]]` as in the configuration file.
    pub text: String,
    /// Whether the controller only reports the changes and does not make them.
    #[serde(default)]
    pub dry_run: bool,
}

/// A drop-in: services that the balancer keeps beside the services of the configuration file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DropInView {
    /// The name of the drop-in.
    pub name: String,
    /// The names of the services in the drop-in.
    pub services: Vec<String>,
}

/// The contents of a drop-in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DropInText {
    /// The text of the drop-in, as it was last applied.
    pub text: String,
}

/// The answer to a request that applies a configuration.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Applied {
    /// The effects of the change in one line; with `dry_run`, the effects that the file would have.
    pub message: String,
    /// With `dry_run`: the differences between the file and the configuration in use, and further effects of the file.
    #[serde(default)]
    pub differences: Vec<String>,
    /// The differences that run-time changes had made between services and the previous configuration file.
    #[serde(default)]
    pub changed_at_run_time: Vec<RunTimeChange>,
    /// The plans for the affected services, made just before the change. A service is affected if slots or known
    /// clients move, clients are forgotten, or listeners are added or removed.
    #[serde(default)]
    pub services: Vec<PlanView>,
    /// The members of the fleet that do not apply the change, or not yet, by name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub not_applied_by: Vec<String>,
}

impl From<Planned> for Applied {
    fn from(planned: Planned) -> Self {
        let services = planned.services.into_iter().filter(PlannedService::does_something);
        Self {
            message: planned.message,
            differences: planned.reports,
            changed_at_run_time: planned.changed,
            services: services.map(Into::into).collect(),
            not_applied_by: Vec::new(),
        }
    }
}
