//! The audit file, with one line of JSON for each request that changed something or was refused. A separate thread
//! writes the file, so that a hanging disk delays no other thread. The thread opens the file for each write, so it does
//! not write to a file that has been rotated.

use std::{
    collections::VecDeque,
    fs::File,
    io::{self, Read as _, Seek as _, SeekFrom, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel},
    },
    time::Duration,
};

use serde::Serialize;
use tokio::sync::watch;
use tracing::warn;

use crate::{
    clocks::wall,
    supervisor::{Supervisor, Thread},
};

/// The maximum number of lines that wait to be written; further lines are lost.
const WAITING: usize = 4096;
/// The interval at which the thread retries after it could not write to the file.
const AGAIN: Duration = Duration::from_secs(1);

/// A handle with which callers write to the audit file. All clones of a handle write to the same file.
#[derive(Clone, Debug)]
pub struct Audit(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    messages: Mutex<Option<SyncSender<Message>>>,
    trouble: watch::Receiver<Option<String>>,
    writer: Mutex<Option<Thread>>,
}

#[derive(Debug)]
enum Message {
    /// The thread writes lines to this file from now on.
    Path(Option<PathBuf>),
    Line(Vec<u8>),
}

/// A request and its outcome, for the audit file.
#[derive(Debug, Serialize)]
pub(crate) struct Entry<'a> {
    /// The kind of connection: `"socket"`, `"readers"`, `"tls"` or `"signal"`.
    pub(crate) via: &'a str,
    #[serde(flatten)]
    pub(crate) who: Who,
    /// The method and the path of the request.
    pub(crate) request: &'a str,
    /// The HTTP status of the answer.
    pub(crate) status: u16,
    /// The change that was made, or the reason why no change was made.
    pub(crate) result: &'a str,
}

/// The known facts about the sender of a request.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Who {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) uid: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) pid: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) certificate: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) address: Option<String>,
}

#[derive(Serialize)]
struct Line<'a> {
    time: String,
    #[serde(flatten)]
    entry: &'a Entry<'a>,
}

impl Audit {
    /// Starts the writing thread, which writes no lines until the configuration names a file.
    #[must_use]
    pub fn new(supervisor: &Supervisor) -> Self {
        let (messages, inbox) = sync_channel(WAITING);
        let (trouble, shown) = watch::channel(None);
        let writer = supervisor.thread("the writer of the audit file", move || write(&inbox, &trouble));
        if let Err(error) = &writer {
            warn!("there is no audit file: {error}");
        }
        let (messages, writer) = (Mutex::new(Some(messages)), Mutex::new(writer.ok()));
        Self(Arc::new(Shared { messages, trouble: shown, writer }))
    }

    /// Makes the thread write lines to the file at `path` from now on; `None` if the thread should write no lines.
    pub(crate) fn keep_in(&self, path: Option<PathBuf>) {
        self.send(Message::Path(path));
    }

    /// Sends an entry to the writing thread.
    pub(crate) fn tell(&self, entry: &Entry<'_>) {
        let time = humantime::format_rfc3339_millis(wall()).to_string();
        if let Ok(mut line) = serde_json::to_vec(&Line { time, entry }) {
            line.push(b'\n');
            self.send(Message::Line(line));
        }
    }

    fn send(&self, message: Message) {
        let messages = self.0.messages.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(Err(_)) = messages.as_ref().map(|messages| messages.try_send(message)) {
            warn!("the audit file is not written as fast as requests come: a line is missing in it");
        }
    }

    /// The reason why the thread cannot write to the audit file; the channel reports each change of the reason.
    pub(crate) fn trouble(&self) -> watch::Receiver<Option<String>> {
        self.0.trouble.clone()
    }
}

impl Drop for Shared {
    /// Waits until the writing thread has written all lines that it can write.
    fn drop(&mut self) {
        let writer = self.writer.get_mut().unwrap_or_else(PoisonError::into_inner).take().inspect(Thread::release);
        drop(self.messages.get_mut().unwrap_or_else(PoisonError::into_inner).take());
        if let Some(writer) = writer {
            writer.join();
        }
    }
}

/// The state of the writing thread.
#[derive(Default)]
struct Writer {
    path: Option<PathBuf>,
    /// The lines that the thread has not written yet, oldest first.
    waiting: VecDeque<Vec<u8>>,
    lost: u64,
    trouble: Option<String>,
}

fn write(inbox: &Receiver<Message>, shown: &watch::Sender<Option<String>>) {
    let mut writer = Writer::default();
    loop {
        let message = if writer.trouble.is_none() {
            inbox.recv().map_err(|_| RecvTimeoutError::Disconnected)
        } else {
            inbox.recv_timeout(AGAIN)
        };
        match message {
            Ok(message) => writer.take(message),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        writer.flush();
        shown.send_if_modified(|before| {
            let is_news = *before != writer.trouble;
            before.clone_from(&writer.trouble);
            is_news
        });
    }
}

impl Writer {
    fn take(&mut self, message: Message) {
        match message {
            Message::Path(path) => *self = Self { path, ..Self::default() },
            Message::Line(_) if self.path.is_none() => {}
            Message::Line(_) if self.waiting.len() == WAITING => self.lost += 1,
            Message::Line(line) => self.waiting.push_back(line),
        }
    }

    /// Writes the waiting lines to the audit file, and creates the file if it is missing.
    fn flush(&mut self) {
        let Some(path) = &self.path else { return };
        let written = append(path, &mut self.waiting);
        let Err(error) = written else {
            if self.trouble.take().is_some() {
                warn!("the audit file {} is written again; {} lines are missing in it", path.display(), self.lost);
                self.lost = 0;
            }
            return;
        };
        if self.trouble.is_none() {
            warn!("the audit file {} cannot be written: {error}; this is tried again", path.display());
        }
        self.trouble = Some(format!("the audit file {} cannot be written: {error}", path.display()));
    }
}

fn append(path: &Path, waiting: &mut VecDeque<Vec<u8>>) -> io::Result<()> {
    let mut options = File::options();
    // If the file is a pipe without a reader, opening it must not block the thread.
    options.read(true).append(true).create(true).mode(0o640).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY);
    let mut file = options.open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    if waiting.is_empty() {
        return Ok(());
    }
    // The file may end with an incomplete line, because the remaining bytes did not fit on the disk.
    if file.seek(SeekFrom::End(0))? > 0 {
        file.seek(SeekFrom::End(-1))?;
        let mut last = [0];
        file.read_exact(&mut last)?;
        if last != *b"\n" {
            file.write_all(b"\n")?;
        }
    }
    while let Some(line) = waiting.front() {
        file.write_all(line)?;
        waiting.pop_front();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use serde_json::Value;
    use tokio::time::timeout;

    use super::*;

    fn tell(audit: &Audit, result: &str) {
        let who = Who { uid: Some(1000), pid: Some(42), ..Who::default() };
        audit.tell(&Entry { via: "socket", who, request: "PUT /v1/x", status: 200, result });
    }

    fn results(path: &Path) -> Vec<String> {
        let text = fs::read_to_string(path).unwrap();
        let lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        lines.map(|line| line["result"].as_str().unwrap().to_owned()).collect()
    }

    async fn until(audit: &Audit, is_trouble: bool) -> Option<String> {
        let mut trouble = audit.trouble();
        let waited =
            timeout(Duration::from_secs(60), trouble.wait_for(|trouble| trouble.is_some() == is_trouble)).await;
        waited.unwrap().unwrap().clone()
    }

    #[tokio::test]
    async fn when_the_file_cannot_be_written_then_that_is_said_and_lines_wait() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log/audit.log");
        let audit = Audit::new(&Supervisor::default());
        tell(&audit, "told to nobody");
        audit.keep_in(Some(path.clone()));
        let words = until(&audit, true).await.unwrap();
        assert_eq!(
            words,
            format!("the audit file {} cannot be written: No such file or directory (os error 2)", path.display())
        );
        tell(&audit, "first");
        fs::create_dir(directory.path().join("log")).unwrap();
        until(&audit, false).await;
        tell(&audit, "second");
        // The test renames the file, as logrotate does.
        drop(audit);
        assert_eq!(results(&path), ["first", "second"]);
        let line: Value = serde_json::from_str(fs::read_to_string(&path).unwrap().lines().next().unwrap()).unwrap();
        assert_eq!((&line["uid"], &line["pid"], &line["via"]), (&1000.into(), &42.into(), &"socket".into()));
        assert!(humantime::parse_rfc3339(line["time"].as_str().unwrap()).is_ok() && line.get("certificate").is_none());
    }

    #[tokio::test]
    async fn when_the_file_is_moved_away_or_torn_then_a_line_is_whole() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("audit.log");
        let old = directory.path().join("audit.log.1");
        let mut waiting = VecDeque::from([b"{\"result\":\"one\"}\n".to_vec()]);
        append(&path, &mut waiting).unwrap();
        fs::rename(&path, &old).unwrap();
        fs::write(&path, "{\"result\":\"to").unwrap();
        waiting.push_back(b"{\"result\":\"two\"}\n".to_vec());
        append(&path, &mut waiting).unwrap();
        assert_eq!((results(&old), results(&path)), (vec!["one".to_owned()], vec!["two".to_owned()]));
        waiting.push_back(b"{}\n".to_vec());
        assert_eq!(append(Path::new("/dev/null"), &mut waiting).unwrap_err().to_string(), "it is not a regular file");
        assert_eq!(waiting.len(), 1, "it waits on");
    }
}
