//! Supervises the tasks and threads without which the balancer cannot work. When an essential task or thread ends, the
//! process ends as well and logs the reason: with `on_exit = "keep"`, the kernel continues to steer, and a service
//! manager starts another balancer. Without its health checks or its control socket, the balancer would seem healthy
//! but be useless.

use std::{
    any::Any,
    io,
    panic::{self, AssertUnwindSafe},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use balancer_dataplane::Threads;
use tokio::{
    sync::mpsc,
    task::{AbortHandle, JoinHandle},
};

/// Starts tasks and threads, and reports unexpected ends. All clones report to the same [`Endings`]; a supervisor made
/// by `default` reports to no receiver.
#[derive(Clone, Debug)]
pub struct Supervisor(mpsc::UnboundedSender<Ended>);

/// The receiver of reports about unexpected ends.
#[derive(Debug)]
pub struct Endings {
    receiver: mpsc::UnboundedReceiver<Ended>,
    /// The sender that keeps the channel of reports open.
    _supervisor: Supervisor,
}

/// The unexpected end of a task or thread, with the reason.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what} ended: {why}")]
pub struct Ended {
    what: &'static str,
    why: String,
}

impl Default for Supervisor {
    fn default() -> Self {
        Self(mpsc::unbounded_channel().0)
    }
}

impl Endings {
    /// Waits for the next unexpected end of a task or thread.
    pub async fn next(&mut self) -> Ended {
        match self.receiver.recv().await {
            Some(ended) => ended,
            None => std::future::pending().await,
        }
    }
}

impl Supervisor {
    /// Makes a supervisor and the receiver of its reports.
    #[must_use]
    pub fn new() -> (Self, Endings) {
        let (sender, receiver) = mpsc::unbounded_channel();
        let this = Self(sender);
        (this.clone(), Endings { receiver, _supervisor: this })
    }

    /// Starts a supervised task on the current runtime; `what` names the task in messages, in the singular or as a
    /// plural noun.
    pub fn spawn<T, F>(&self, what: &'static str, task: F) -> Task<T>
    where
        T: Send + 'static,
        F: Future<Output = anyhow::Result<T>> + Send + 'static,
    {
        let (told, wanted) = (self.0.clone(), Expected::default());
        let theirs = wanted.clone();
        let inner = tokio::spawn(task);
        let abort = inner.abort_handle();
        let outer = tokio::spawn(async move {
            let (value, why) = match inner.await {
                Ok(Ok(value)) => (Some(value), "without a reason".to_owned()),
                Ok(Err(error)) => (None, format!("{error:#}")),
                Err(error) if error.is_cancelled() => return None,
                Err(error) => (None, panicked(error.into_panic().as_ref())),
            };
            theirs.tell(&told, what, why);
            value
        });
        Task { wanted, abort, outer }
    }

    /// Starts a supervised task that ends when the returned value is dropped.
    pub fn attend(&self, what: &'static str, task: impl Future<Output = ()> + Send + 'static) -> Attended<()> {
        Attended(self.spawn(what, async {
            task.await;
            Ok(())
        }))
    }

    /// Starts a supervised thread with the name `what`.
    ///
    /// # Errors
    /// Fails if the system allows no more threads.
    pub fn thread(&self, what: &'static str, run: impl FnOnce() + Send + 'static) -> io::Result<Thread> {
        let (told, wanted) = (self.0.clone(), Expected::default());
        let theirs = wanted.clone();
        // The kernel keeps only the first fifteen bytes of a thread's name.
        let handle =
            thread::Builder::new().name(what.trim_start_matches("the ").replace(' ', "-")).spawn(move || {
                // A panic may leave inconsistent state, but no code uses this state, because the process ends.
                let why = match panic::catch_unwind(AssertUnwindSafe(run)) {
                    Ok(()) => "without a reason".to_owned(),
                    Err(payload) => panicked(payload.as_ref()),
                };
                theirs.tell(&told, what, why);
            })?;
        Ok(Thread { wanted, handle })
    }
}

impl Threads for Supervisor {
    fn start(&self, what: &'static str, work: Box<dyn FnOnce() + Send>) -> io::Result<()> {
        self.thread(what, work).map(drop)
    }
}

/// Whether the end of a task or thread is expected.
#[derive(Clone, Debug, Default)]
struct Expected(Arc<AtomicBool>);

impl Expected {
    fn set(&self) {
        self.0.store(true, Ordering::Release);
    }

    fn tell(&self, told: &mpsc::UnboundedSender<Ended>, what: &'static str, why: String) {
        if !self.0.load(Ordering::Acquire) {
            // The receiver may no longer exist while the process ends.
            let _ = told.send(Ended { what, why });
        }
    }
}

/// A running supervised task, which continues if this value is dropped.
#[derive(Debug)]
pub struct Task<T> {
    wanted: Expected,
    abort: AbortHandle,
    outer: JoinHandle<Option<T>>,
}

impl<T> Task<T> {
    /// Declares that the task's end is expected from now on.
    pub fn release(&self) {
        self.wanted.set();
    }

    /// Aborts the task; its end is then expected.
    pub fn abort(&self) {
        self.release();
        self.abort.abort();
    }

    /// Waits for the end of a task that is expected to finish. The function returns `None` if the task failed.
    pub async fn ended(self) -> Option<T> {
        self.release();
        self.outer.await.ok().flatten()
    }
}

/// A running supervised task that ends when this value is dropped.
#[derive(Debug)]
pub struct Attended<T>(Task<T>);

impl<T> Drop for Attended<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A running supervised thread, which continues if this value is dropped.
#[derive(Debug)]
pub struct Thread {
    wanted: Expected,
    handle: thread::JoinHandle<()>,
}

impl Thread {
    /// Declares that the thread's end is expected from now on.
    pub fn release(&self) {
        self.wanted.set();
    }

    /// Waits for the end of a thread that is expected to finish.
    pub fn join(self) {
        self.release();
        // The join cannot fail, because the thread catches and reports its own panics.
        let _ = self.handle.join();
    }
}

/// Returns the message with which code has panicked.
pub fn panicked(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| payload.downcast_ref::<&str>().copied());
    format!("panicked: {}", text.unwrap_or("without a word"))
}

#[cfg(test)]
mod tests {
    use std::{future::pending, time::Duration};

    use anyhow::{Context as _, bail};
    use tokio::{sync::oneshot, time::timeout};

    use super::*;

    async fn told(endings: &mut Endings) -> String {
        timeout(Duration::from_secs(30), endings.next()).await.expect("an ending").to_string()
    }

    async fn silent(endings: &mut Endings) {
        assert!(timeout(Duration::from_millis(200), endings.next()).await.is_err());
    }

    #[tokio::test]
    async fn when_a_task_ends_fails_or_panics_then_it_is_told_with_its_reason() {
        let (supervisor, mut endings) = Supervisor::new();
        let _running = supervisor.spawn::<(), _>("the control socket", pending());
        let _ended = supervisor.spawn("the next hops", async { Ok(7) });
        assert_eq!(told(&mut endings).await, "the next hops ended: without a reason");
        let _failed = supervisor.spawn::<(), _>("the metrics listener", async {
            let failed: anyhow::Result<()> = (async { bail!("Invalid argument") }).await;
            failed.context("accept")
        });
        assert_eq!(told(&mut endings).await, "the metrics listener ended: accept: Invalid argument");
        let number = 7;
        let _panicked = supervisor.spawn::<(), _>("statistics", async move { panic!("{number} is too many") });
        assert_eq!(told(&mut endings).await, "statistics ended: panicked: 7 is too many");
        let _panicked = supervisor.spawn::<(), _>("statistics", async {
            tokio::task::yield_now().await;
            panic!("later")
        });
        assert_eq!(told(&mut endings).await, "statistics ended: panicked: later");
        silent(&mut endings).await;
    }

    #[tokio::test]
    async fn when_a_thread_ends_or_panics_then_it_is_told_with_its_reason() {
        let (supervisor, mut endings) = Supervisor::new();
        let _ended = supervisor.thread("the health checks", || {}).unwrap();
        assert_eq!(told(&mut endings).await, "the health checks ended: without a reason");
        let _panicked = supervisor.thread("events", || panic!("no room")).unwrap();
        assert_eq!(told(&mut endings).await, "events ended: panicked: no room");
        silent(&mut endings).await;
    }

    #[tokio::test]
    async fn when_an_end_is_expected_then_it_is_not_told() {
        let (supervisor, mut endings) = Supervisor::new();
        supervisor.spawn::<(), _>("one", pending()).abort();
        let (stop, stopped) = oneshot::channel::<()>();
        let task = supervisor.spawn("two", async {
            let _ = stopped.await;
            Ok("value")
        });
        task.release();
        drop(stop);
        assert_eq!(task.ended().await, Some("value"));
        assert_eq!(supervisor.spawn::<(), _>("three", async { bail!("late") }).ended().await, None);
        supervisor.thread("four", || thread::sleep(Duration::from_millis(20))).unwrap().join();
        drop(supervisor);
        silent(&mut endings).await;
    }
}
