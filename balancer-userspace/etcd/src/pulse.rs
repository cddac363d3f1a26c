//! Notices a server that dies silently, which a watch does not notice.

use tokio::time::sleep;

use crate::{
    link::{Link, NO_LEADER},
    links::{Failure, Links},
    message::StatusResponse,
    words,
};

/// Waits a while, and then requests the server's status on the connection of the watch. The function gives up the link
/// if the server does not answer or knows no leader.
pub(crate) async fn beat(links: &Links) -> Option<(Link, StatusResponse)> {
    let beat = links.settings().patience() / 2;
    let link = links.link().await;
    sleep(beat).await;
    match links.attempt(&link, beat, link.watching.status()).await {
        Ok(status) if status.leader == 0 => links.broken(&link, NO_LEADER),
        Ok(status) => {
            links.heard(&status);
            return Some((link, status));
        }
        Err(Failure::Refused(status)) => links.broken(&link, &words::status(&status)),
        Err(Failure::Broken(_)) => {}
    }
    None
}
