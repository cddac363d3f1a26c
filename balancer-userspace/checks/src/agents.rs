//! Queries to the agents of backends. A separate task queries each agent, so that a hanging agent delays no other
//! agent.

use std::{collections::BTreeMap, io, net::SocketAddr, sync::Arc, time::Duration};

use balancer_config::{
    agent::{Answer, MAX_ANSWER},
    config::CheckConfig,
    names::BackendName,
};
use balancer_runtime::tasks_by_key;
use tokio::{
    io::AsyncReadExt as _,
    sync::{Semaphore, watch},
    time::{Instant, sleep_until, timeout},
};

use crate::{
    load_report::{LoadReport, LoadReports},
    prober::socket,
};

/// The maximum time to wait for an agent's answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// The maximum number of concurrent queries. Above this number, further queries wait for a permit.
const AT_ONCE: usize = 256;

/// The jitter of the intervals between queries, equal to the jitter of checks.
const JITTER: f64 = CheckConfig::JITTER;

/// The address of an agent, and how often the balancer queries it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Agent {
    /// The address and port of the agent.
    pub at: SocketAddr,
    /// The time from the start of one query to the start of the next.
    pub interval: Duration,
}

/// The agents to query.
pub type Agents = BTreeMap<BackendName, Agent>;

/// Queries the `wanted` agents, and reports each answer to the controller.
pub async fn follow(wanted: watch::Receiver<Agents>, reports: LoadReports) {
    let permits = Arc::new(Semaphore::new(AT_ONCE));
    tasks_by_key::follow(wanted, |name, agent| ask_on(name, agent, Arc::clone(&permits), reports.clone())).await;
}

/// Queries one agent until the caller ends this task.
async fn ask_on(name: BackendName, agent: Agent, permits: Arc<Semaphore>, reports: LoadReports) {
    // A random delay before the first query spreads the queries of many agents over time.
    let mut next = Instant::now() + agent.interval.min(Duration::from_secs(1)).mul_f64(fastrand::f64());
    loop {
        sleep_until(next).await;
        let Ok(permit) = permits.acquire().await else { return };
        let start = Instant::now();
        let answer = ask(agent).await;
        drop(permit);
        if reports.send(LoadReport::Agent { name: name.clone(), answer }).await.is_err() {
            return;
        }
        next = start + agent.interval.mul_f64(1.0 - JITTER + 2.0 * JITTER * fastrand::f64());
    }
}

/// Queries an agent once.
///
/// # Errors
/// Fails with one line that says why the agent did not answer, or how the answer violates the protocol.
async fn ask(Agent { at, interval }: Agent) -> Result<Answer, String> {
    let patience = interval.min(PATIENCE);
    match timeout(patience, read(at)).await {
        Ok(Ok(text)) => Answer::parse(&text),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("no answer within {}", humantime::format_duration(patience))),
    }
}

async fn read(at: SocketAddr) -> io::Result<Vec<u8>> {
    let mut stream = socket(at)?.connect(at).await?;
    let mut text = Vec::new();
    loop {
        let left = MAX_ANSWER.saturating_sub(text.len());
        let read = (&mut stream).take(left as u64).read_buf(&mut text).await;
        match read {
            Ok(0) => return Ok(text),
            Ok(_) if text.contains(&b'\n') => return Ok(text),
            Ok(_) => {}
            // If an agent closes the connection without reading the query, the connection is reset after the answer.
            Err(_) if !text.is_empty() => return Ok(text),
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::{io::AsyncWriteExt as _, net::TcpListener, sync::mpsc};

    use super::*;

    async fn answer(says: &'static [u8], stays_open: bool) -> Result<Answer, String> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        let agent = tokio::spawn(async move {
            let mut stream = listener.accept().await.unwrap().0;
            let _ = stream.write_all(says).await;
            if stays_open {
                tokio::time::sleep(Duration::from_secs(3600)).await;
            }
        });
        let answer = ask(Agent { at, interval: Duration::from_millis(300) }).await;
        agent.abort();
        answer
    }

    #[tokio::test]
    async fn when_an_agent_answers_then_its_first_line_counts() {
        assert_eq!(answer(b"75%\nmaint\n", true).await, Answer::parse(b"75%"));
        assert_eq!(answer(b"drain", false).await, Answer::parse(b"drain"));
        assert!(answer(b"", false).await.unwrap_err().starts_with("says \"\""));
        assert!(answer(&[b' '; 4096], true).await.unwrap_err().contains("none of the words"));
    }

    #[tokio::test]
    async fn when_an_agent_hangs_or_is_not_there_then_that_is_told() {
        assert_eq!(answer(b"75%", true).await, Err("no answer within 300ms".to_owned()));
        let gone = ask(Agent { at: "127.0.0.1:1".parse().unwrap(), interval: Duration::from_secs(1) }).await;
        assert!(gone.unwrap_err().contains("refused"));
    }

    #[tokio::test]
    async fn when_one_agent_hangs_then_another_is_asked_all_the_same_and_one_that_is_not_wanted_is_not() {
        let hangs = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let works = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let name = |name: &str| BackendName { service: "web".to_owned(), backend: name.to_owned() };
        let agent =
            |of: &TcpListener, seconds| Agent { at: of.local_addr().unwrap(), interval: Duration::from_secs(seconds) };
        let wanted = Agents::from([(name("a"), agent(&hangs, 3600)), (name("b"), agent(&works, 1))]);
        let (want, wanted) = watch::channel(wanted);
        let (reports_in, mut reports) = mpsc::channel(1);
        let task = tokio::spawn(follow(wanted, reports_in));
        for _ in 0..2 {
            works.accept().await.unwrap().0.write_all(b"50%\n").await.unwrap();
            let Some(LoadReport::Agent { name, answer }) = reports.recv().await else { panic!() };
            assert_eq!((&*name.backend, answer), ("b", Answer::parse(b"50%")));
        }
        want.send(Agents::new()).unwrap();
        drop(want);
        task.await.unwrap();
        assert!(reports.recv().await.is_none());
    }
}
