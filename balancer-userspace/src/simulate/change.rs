//! Parses changes in the syntax of `balancer plan`.

use balancer_api::model::PlanRequest;
use balancer_config::value;
use balancer_simulate::servers::Change;
use clap::{Parser, Subcommand};

use crate::{Failure, backend::BackendChange, service::ServiceChange};

#[derive(Debug, Parser)]
#[command(name = "change", no_binary_name = true, disable_help_flag = true, disable_help_subcommand = true)]
struct Words {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Backend {
        #[command(subcommand)]
        change: BackendChange,
    },
    Service {
        #[command(subcommand)]
        change: ServiceChange,
    },
    Reorder,
}

/// A change, and the service to which it applies.
#[derive(Debug)]
pub(super) struct Asked {
    /// The name of the service; `None` means the simulated service.
    pub(super) service: Option<String>,
    pub(super) change: Change,
}

pub(super) fn parse(text: &str) -> Result<Asked, Failure> {
    let wrong = |why: &str| Failure::Usage(format!("--change {text:?}: {why}"));
    let words = text.split_whitespace().skip_while(|word| ["balancer", "plan"].contains(word));
    let words = Words::try_parse_from(words).map_err(|error| {
        let said = error.to_string();
        let lines: Vec<&str> = said.lines().take_while(|line| !line.starts_with("Usage:")).map(str::trim).collect();
        wrong(lines.join(" ").trim().trim_start_matches("error: "))
    })?;
    let request = match words.verb {
        Verb::Backend { change } => change.plan(),
        Verb::Service { change } => change.plan(),
        Verb::Reorder => return Ok(Asked { service: None, change: Change::Reorder }),
    };
    let (service, change) = match request {
        PlanRequest::Add { service, backend } => {
            let change = Change::Add { name: backend.name, weight: backend.weight, backup: backend.backup };
            (service, change)
        }
        PlanRequest::Remove { service, name, force } => (service, Change::Remove { name, force }),
        PlanRequest::Admin { service, name, admin } => {
            let timeout = admin.timeout.as_deref().map(value::duration).transpose().map_err(|why| wrong(&why))?;
            (service, Change::Admin { name, admin: admin.admin, timeout })
        }
        PlanRequest::Weight { service, name, weight } => (service, Change::Weight { name, weight }),
        PlanRequest::Limit { .. } => {
            return Err(wrong(
                "a limit moves no clients between backends; give a change of a backend's weight or state",
            ));
        }
        PlanRequest::Steer { .. } | PlanRequest::AddListener { .. } | PlanRequest::RemoveListener { .. } => {
            return Err(wrong("a listener moves no clients between backends; give a change of a backend"));
        }
    };
    Ok(Asked { service: Some(service), change })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &str) -> String {
        match parse(text) {
            Ok(Asked { service, change }) => format!("{}: {change}", service.unwrap_or_default()),
            Err(failure) => failure.to_string(),
        }
    }

    #[test]
    fn when_a_change_is_parsed_then_it_has_the_words_of_plan() {
        assert_eq!(shown("backend remove web/web1"), "web: remove web1");
        assert_eq!(shown("balancer plan backend remove web/web1 --force"), "web: remove web1 --force");
        assert_eq!(shown("backend add web/web5 10.0.0.5 --weight 50"), "web: add web5 --weight 50");
        assert_eq!(shown("backend drain web/web1 --timeout 5m"), "web: drain web1");
        assert_eq!(shown("backend weight web/web1 7"), "web: weight web1 7");
        assert_eq!(shown("reorder"), ": reorder");
    }

    #[test]
    fn when_a_change_is_wrong_then_the_error_says_why() {
        for (text, why) in [
            ("backend remove web1", "web1"),
            ("backend explode web/web1", "unrecognized subcommand 'explode'"),
            ("service listen add web 198.51.100.10:443", "a listener moves no clients"),
        ] {
            let said = shown(text);
            assert!(
                said.starts_with(&format!("--change {text:?}: ")) && said.contains(why) && !said.contains('\n'),
                "{said}"
            );
        }
        assert!(shown("").starts_with("--change \"\": "));
    }
}
