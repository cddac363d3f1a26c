//! Verbs that go on over restarts of the controller.

use std::{
    io::{self, Write as _},
    time::Duration,
};

use balancer_api::client::Answer;
use tokio::time::{Instant, sleep};

use super::Failure;

/// How long a restart may take where nobody has said how long to wait.
pub(super) const RESTART: Duration = Duration::from_secs(60);
/// How often a controller that has gone away is looked for.
const RETRY: Duration = Duration::from_millis(250);

/// Asks until the controller answers, however often it restarts meanwhile. With a `limit`, its absence for longer than
/// that is an error.
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
    async fn absence_is_waited_out_up_to_the_limit() {
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
    async fn a_refusal_is_an_answer() {
        let answer: Result<(), _> = answered(None, async || Err(refused(StatusCode::NOT_FOUND))).await;
        assert!(matches!(answer, Err(Failure::Client(ClientError::Refused { .. }))));
    }
}
