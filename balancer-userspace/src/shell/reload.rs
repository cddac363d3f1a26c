//! The configuration file, read again.

use std::path::Path;

use tokio::sync::oneshot;
use tracing::{error, warn};

use super::{
    keeper::{Keeper, Request},
    service_manager,
};
use crate::{config, core::io::Change};

/// Has what `file` says taken over. One that is not valid changes nothing, and the log says why.
pub(super) fn reload(keeper: &mut Keeper, file: &Path) {
    service_manager::reloading();
    let (config, warnings) = match config::load(file) {
        Ok(loaded) => loaded,
        Err(errors) => {
            errors.findings().iter().for_each(|finding| error!("{finding}"));
            error!("SIGHUP: nothing was changed, {} is not valid", file.display());
            service_manager::reloaded(Err(&errors.to_string()));
            return;
        }
    };
    warnings.iter().for_each(|warning| warn!("{warning}"));
    let services = config.services.len();
    let (reply, answer) = oneshot::channel();
    keeper.ask(Request { change: Change::Reload(Box::new(config)), uid: None, if_generation: None, reply });
    tokio::spawn(async move {
        match answer.await {
            Ok(Ok(_)) => service_manager::reloaded(Ok(services)),
            Ok(Err(refused)) => {
                error!("SIGHUP: nothing was changed: {refused}");
                service_manager::reloaded(Err(&refused.to_string()));
            }
            // It ends.
            Err(_) => {}
        }
    });
}
