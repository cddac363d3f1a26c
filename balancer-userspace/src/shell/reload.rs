//! The configuration file, read again.

use std::path::Path;

use tokio::sync::oneshot;
use tracing::{error, warn};

use super::keeper::{Keeper, Request};
use crate::{config, core::io::Change};

/// Has what `file` says taken over. One that is not valid changes nothing, and the log says why.
pub(super) fn reload(keeper: &mut Keeper, file: &Path) {
    let (config, warnings) = match config::load(file) {
        Ok(loaded) => loaded,
        Err(errors) => {
            errors.findings().iter().for_each(|finding| error!("{finding}"));
            error!("SIGHUP: nothing was changed, {} is not valid", file.display());
            return;
        }
    };
    warnings.iter().for_each(|warning| warn!("{warning}"));
    let (reply, answer) = oneshot::channel();
    keeper.ask(Request { change: Change::Reload(Box::new(config)), uid: None, if_generation: None, reply });
    tokio::spawn(async move {
        if let Ok(Err(refused)) = answer.await {
            error!("SIGHUP: nothing was changed: {refused}");
        }
    });
}
