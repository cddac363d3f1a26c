//! Makes commands wait while the controller restarts.

use std::{
    io::{self, Write as _},
    time::Duration,
};

use balancer_api::client::Answer;
use tokio::time::{Instant, sleep};

use super::Failure;

/// The maximum time to wait for a restart of the controller if the user has set no limit.
pub(super) const RESTART: Duration = Duration::from_secs(60);
/// The time between two attempts to reach an absent controller.
const RETRY: Duration = Duration::from_millis(250);

/// Repeats a request until the controller answers, even if the controller restarts. If the controller is absent for
/// longer than `limit`, the function fails.
pub(super) async fn answered<T>(
    limit: Option<Duration>,
    mut ask: impl AsyncFnMut() -> Answer<T>,
) -> Result<T, Failure> {
    let mut gone = None;
    loop {
        match ask().await {
            Err(error) if error.is_absence() => {
                if gone.is_none() {
                    writeln!(io::stderr(), "balancer: the controller has gone; waiting for it")?;
                }
                let since = *gone.get_or_insert_with(Instant::now);
                if limit.is_some_and(|limit| since.elapsed() >= limit) {
                    return Err(error.into());
                }
                sleep(RETRY).await;
            }
            answer => return Ok(answer?),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use balancer_api::client::{Client, ClientError};
    use hyper::StatusCode;

    use super::*;

    fn refused(status: StatusCode) -> ClientError {
        ClientError::Refused { status, message: "no".to_owned() }
    }

    #[tokio::test(start_paused = true)]
    async fn when_the_controller_is_away_then_the_command_waits_up_to_the_limit() {
        let mut asked = 0;
        let answer = answered(Some(RESTART), async || {
            asked += 1;
            if asked < 5 { Err(refused(StatusCode::SERVICE_UNAVAILABLE)) } else { Ok(asked) }
        });
        assert_eq!(answer.await.unwrap(), 5);

        let nobody = Client::new(Path::new("/nonexistent/balancer.sock"));
        let begin = Instant::now();
        let answer = answered(Some(RESTART), async || nobody.status().await).await;
        assert!(matches!(answer, Err(Failure::Client(ClientError::Unreachable { .. }))));
        assert!((RESTART..RESTART + Duration::from_secs(1)).contains(&begin.elapsed()));
    }

    #[tokio::test]
    async fn when_the_controller_refuses_then_that_is_the_answer() {
        let answer: Result<(), _> = answered(None, async || Err(refused(StatusCode::NOT_FOUND))).await;
        assert!(matches!(answer, Err(Failure::Client(ClientError::Refused { .. }))));
    }
}
