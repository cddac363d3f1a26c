//! Rereads the configuration file on SIGHUP, in a separate task because the file system may be slow.

use std::{path::PathBuf, time::SystemTime};

use balancer_config::{config::Config, words::counted};
use balancer_runtime::service_manager;
use tokio::{signal::unix::Signal, sync::oneshot};
use tracing::{error, warn};

use super::{
    audit::{Audit, Entry, Who},
    call::{Call, Calls, ChangeRequest, Request},
    configuration::Configurations,
};

/// Applies the configuration in `file` at each SIGHUP, as long as the controller exists; signals are handled one at a
/// time. An invalid file changes nothing, and its fault is logged.
pub async fn follow(mut hangup: Signal, calls: Calls, configurations: Configurations, file: PathBuf, audit: Audit) {
    while hangup.recv().await.is_some() {
        service_manager::reloading();
        let done = reload(&calls, &configurations, file.clone()).await;
        if let Some(done) = &done {
            tell(&audit, done);
        }
        match done {
            Some(Ok(services)) => service_manager::reloaded(Ok(services)),
            Some(Err(reason)) => service_manager::reloaded(Err(&reason)),
            // The controller is about to end.
            None => return,
        }
    }
}

fn tell(audit: &Audit, done: &Result<usize, String>) {
    let (status, result) = match done {
        Ok(services) => (200, format!("serving {}", counted(*services, "service"))),
        Err(refused) => (422, refused.clone()),
    };
    audit.tell(&Entry { via: "signal", who: Who::default(), request: "SIGHUP", status, result: &result });
}

/// Rereads the configuration file once, and applies it. The function returns the number of services, or the reason why
/// the controller changed nothing; `None` if the controller is about to end.
pub async fn reread(calls: &Calls, configurations: &Configurations, file: PathBuf) -> Option<Result<usize, String>> {
    let done = reload(calls, configurations, file).await?;
    service_manager::reread(done.as_ref().copied().map_err(String::as_str));
    Some(done)
}

/// Returns the resulting number of services, or the reason why the controller changed nothing.
async fn reload(calls: &Calls, configurations: &Configurations, file: PathBuf) -> Option<Result<usize, String>> {
    let path = file.display().to_string();
    let (config, warnings, modified) = match configurations.load(file).await {
        Ok((Ok((config, warnings)), modified)) => (config, warnings, modified),
        Ok((Err(errors), _)) => {
            errors.findings().iter().for_each(|finding| error!("{finding}"));
            error!("reload: nothing was changed, because {path} is not valid");
            return Some(Err(errors.to_string()));
        }
        Err(failed) => {
            error!("reload: nothing was changed, because {path} cannot be read: {failed}");
            return Some(Err(failed.to_string()));
        }
    };
    warnings.iter().for_each(|warning| warn!("{warning}"));
    let is_of_fleet = config.fleet.is_some();
    let file_read = config.clone();
    let services = config.services.len();
    let (reply, answer) = oneshot::channel();
    let request =
        Request { change_request: ChangeRequest::Reread(Box::new(config)), uid: None, if_generation: None, reply };
    calls.send(Call::Change(request)).await.ok()?;
    match answer.await.ok()? {
        Ok(_) if is_of_fleet => hand_to_fleet(calls, file_read, modified).await,
        Ok(_) => Some(Ok(services)),
        Err(refused) => {
            error!("reload: nothing was changed: {refused}");
            Some(Err(refused.to_string()))
        }
    }
}

/// Makes the fleet apply the services of the configuration file, if the file is newer than the fleet's services.
async fn hand_to_fleet(calls: &Calls, config: Config, modified: Option<SystemTime>) -> Option<Result<usize, String>> {
    let services = config.services.len();
    let (reply, answer) = oneshot::channel();
    calls.send(Call::FileRead { config: Box::new(config), modified, reply }).await.ok()?;
    match answer.await.ok()? {
        Ok(_) => Some(Ok(services)),
        Err(refused) => {
            error!("reload: this member's own keys were applied, the services of the file were not: {refused}");
            Some(Err(refused.to_string()))
        }
    }
}
