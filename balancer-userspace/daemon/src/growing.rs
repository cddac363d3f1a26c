//! The growth of the kernel's maps for a change. The host loads the program with larger maps while the owner continues to
//! handle events; the owner then writes to the present and to the larger maps while the host replaces the program.

use std::future::pending;

use balancer_dataplane::{Dataplane, Growth, Larger, NotReplaced};
use tokio::task::{JoinError, JoinHandle};

use crate::host::Host;

/// A growth in progress: see the [module](self).
#[derive(Debug)]
pub(crate) enum Growing {
    Loading(JoinHandle<anyhow::Result<Larger>>),
    Loaded(anyhow::Result<Box<Larger>>),
    Replacing(JoinHandle<Result<(), NotReplaced>>),
    Replaced(Result<Result<(), NotReplaced>, JoinError>),
}

impl Growing {
    /// Starts the growth.
    pub(crate) fn begin(growth: Growth, host: &Host) -> Self {
        Self::Loading(tokio::spawn(host.load_larger(growth)))
    }

    /// Waits until the host has finished a step; waits forever if the growth needs a call of [`advance`](Self::advance).
    pub(crate) async fn progress(&mut self) {
        *self = match self {
            Self::Loading(task) => Self::Loaded(task.await.unwrap_or_else(|error| Err(error.into())).map(Box::new)),
            Self::Replacing(task) => Self::Replaced(task.await),
            Self::Loaded(_) | Self::Replaced(_) => pending().await,
        };
    }

    /// Takes the next step. Returns the growth if it has not ended, or the outcome; an error is one line.
    ///
    /// # Errors
    /// Returns the growth while it is in progress.
    pub(crate) fn advance<D: Dataplane>(self, dataplane: &mut D, host: &Host) -> Result<Result<(), String>, Self> {
        match self {
            under_way @ (Self::Loading(_) | Self::Replacing(_)) => Err(under_way),
            Self::Loaded(loaded) => match loaded.and_then(|larger| dataplane.begin_growth(*larger)) {
                Ok(()) => Err(Self::Replacing(tokio::spawn(host.use_larger()))),
                Err(error) => Ok(Err(format!("{error:#}"))),
            },
            Self::Replaced(Ok(Ok(()))) => {
                dataplane.end_growth(true);
                Ok(Ok(()))
            }
            Self::Replaced(Ok(Err(error))) => {
                // While some interface has the new program, the owner writes to both maps.
                if error.is_back {
                    dataplane.end_growth(false);
                }
                Ok(Err(error.to_string()))
            }
            Self::Replaced(Err(error)) => Ok(Err(error.to_string())),
        }
    }
}
