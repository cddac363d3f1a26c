//! The messages of all other tasks to the task that owns the controller.

use std::future::pending;

use balancer_checks::load_report::{LoadReport, LoadReports};
use balancer_listeners::call::{Call, Calls};
use balancer_sources::source_read::{SourceRead, SourceReads};
use tokio::sync::mpsc;

use crate::task_call::{TaskCall, TaskCalls};

/// The maximum number of messages of one kind that wait for the controller; at this number, senders wait.
const WAITING: usize = 64;

/// A message to the owner.
pub(super) enum Message {
    Call(Call),
    Load(LoadReport),
    Read(SourceRead),
    Task(TaskCall),
}

/// The receiving halves of the channels to the owner.
pub(super) struct Inbox {
    calls: mpsc::Receiver<Call>,
    loads: mpsc::Receiver<LoadReport>,
    reads: mpsc::Receiver<SourceRead>,
    tasks: mpsc::Receiver<TaskCall>,
}

/// The sending halves of the channels to the owner.
#[derive(Clone)]
pub(super) struct Senders {
    pub(super) calls: Calls,
    pub(super) loads: LoadReports,
    pub(super) reads: SourceReads,
    pub(super) tasks: TaskCalls,
}

impl Inbox {
    pub(super) fn new() -> (Senders, Self) {
        let (calls_in, calls) = mpsc::channel(WAITING);
        let (loads_in, loads) = mpsc::channel(WAITING);
        let (reads_in, reads) = mpsc::channel(WAITING);
        let (tasks_in, tasks) = mpsc::channel(WAITING);
        let senders = Senders { calls: calls_in, loads: loads_in, reads: reads_in, tasks: tasks_in };
        (senders, Self { calls, loads, reads, tasks })
    }

    /// Waits for the next message. If the caller cancels the wait, no message is lost.
    pub(super) async fn next(&mut self) -> Message {
        tokio::select! {
            Some(call) = self.calls.recv() => Message::Call(call),
            Some(report) = self.loads.recv() => Message::Load(report),
            Some(read) = self.reads.recv() => Message::Read(read),
            Some(call) = self.tasks.recv() => Message::Task(call),
            else => pending().await,
        }
    }
}
