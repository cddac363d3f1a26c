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
        atomic::{AtomicUsize, Ordering::Relaxed},
        mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel},
    },
    time::Duration,
};

use balancer_config::words::counted;
use balancer_runtime::{
    clocks::wall,
    supervisor::{Supervisor, Thread},
};
use serde::Serialize;
use tokio::sync::watch;
use tracing::warn;

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
    /// The number of lines lost because the thread was too slow, until the thread adds them to its own count.
    missed: Arc<AtomicUsize>,
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

/// The line that stands in the audit file for lost lines.
#[derive(Serialize)]
struct Gap<'a> {
    time: String,
    /// The number of lines that are missing before this line.
    lost: usize,
    /// A sentence about the lost lines.
    result: &'a str,
}

impl Audit {
    /// Starts the writing thread, which writes no lines until the configuration names a file.
    #[must_use]
    pub fn new(supervisor: &Supervisor) -> Self {
        let (messages, inbox) = sync_channel(WAITING);
        let (trouble, shown) = watch::channel(None);
        let missed = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&missed);
        let writer = supervisor.thread("the writer of the audit file", move || write(&inbox, &counted, &trouble));
        if let Err(error) = &writer {
            warn!("cannot keep the audit file: {error}");
        }
        let (messages, writer) = (Mutex::new(Some(messages)), Mutex::new(writer.ok()));
        Self(Arc::new(Shared { messages, missed, trouble: shown, writer }))
    }

    /// Makes the thread write lines to the file at `path` from now on; `None` if the thread should write no lines.
    pub fn keep_in(&self, path: Option<PathBuf>) {
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
            self.0.missed.fetch_add(1, Relaxed);
            warn!("the audit file lacks a line, because writing is too slow");
        }
    }

    /// The reason why the thread cannot write to the audit file; the channel reports each change of the reason.
    pub fn trouble(&self) -> watch::Receiver<Option<String>> {
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
    lost: usize,
    trouble: Option<String>,
}

fn write(inbox: &Receiver<Message>, missed: &AtomicUsize, shown: &watch::Sender<Option<String>>) {
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
            Err(RecvTimeoutError::Disconnected) => return writer.end(),
        }
        writer.lost += missed.swap(0, Relaxed);
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
            Message::Path(None) => *self = Self::default(),
            // Lines that could not be written to the former file go to the new one.
            Message::Path(path) => (self.path, self.trouble) = (path, None),
            Message::Line(_) if self.path.is_none() => {}
            Message::Line(_) if self.waiting.len() == WAITING => self.lost += 1,
            Message::Line(line) => self.waiting.push_back(line),
        }
    }

    /// Writes the waiting lines to the audit file, and creates the file if it is missing. If lines were lost, the last
    /// line says so.
    fn flush(&mut self) {
        let Some(path) = &self.path else { return };
        let mut written = append(path, &mut self.waiting);
        if written.is_ok() && self.lost > 0 {
            written = append(path, &mut VecDeque::from([gap(self.lost)]));
            if written.is_ok() {
                warn!("{} are missing in the audit file {}", counted(self.lost, "line"), path.display());
                self.lost = 0;
            }
        }
        let Err(error) = written else {
            if self.trouble.take().is_some() {
                warn!("the audit file {} can be written again", path.display());
            }
            return;
        };
        if self.trouble.is_none() {
            warn!("cannot write the audit file {}: {error}; the balancer keeps trying", path.display());
        }
        self.trouble = Some(format!("cannot write the audit file {}: {error}", path.display()));
    }

    /// Says how many lines are lost because the process ends before the audit file can be written.
    fn end(self) {
        let lost = self.lost + self.waiting.len();
        if let Some(path) = self.path.filter(|_| lost > 0) {
            warn!("the audit file {} lacks the last {lost} lines: it could not be written", path.display());
        }
    }
}

/// The line that says that lines are missing.
fn gap(lost: usize) -> Vec<u8> {
    let time = humantime::format_rfc3339_millis(wall()).to_string();
    let result = format!("{} before this one are missing: they could not be written", counted(lost, "line"));
    let mut line = serde_json::to_vec(&Gap { time, lost, result: &result }).unwrap_or_default();
    line.push(b'\n');
    line
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
            format!("cannot write the audit file {}: No such file or directory (os error 2)", path.display())
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
    async fn when_more_lines_come_than_can_wait_then_the_file_says_how_many_are_missing() {
        const SENT: usize = 2 * WAITING + 10;
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log/audit.log");
        let audit = Audit::new(&Supervisor::default());
        audit.keep_in(Some(path.clone()));
        until(&audit, true).await;
        (0..SENT).for_each(|number| tell(&audit, &number.to_string()));
        fs::create_dir(directory.path().join("log")).unwrap();
        until(&audit, false).await;
        drop(audit);
        let text = fs::read_to_string(&path).unwrap();
        let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let (gaps, kept): (Vec<_>, Vec<_>) = lines.iter().partition(|line| line.get("lost").is_some());
        let lost: u64 = gaps.iter().filter_map(|gap| gap["lost"].as_u64()).sum();
        assert!(lost >= 10 && kept.len() as u64 + lost == SENT as u64, "{lost} lost, {} kept", kept.len());
        let words = gaps[0]["result"].as_str().unwrap();
        assert!(words.ends_with("lines before this one are missing: they could not be written"), "{words}");
    }

    #[tokio::test]
    async fn when_the_configuration_names_another_file_then_waiting_lines_go_there() {
        let directory = tempfile::tempdir().unwrap();
        let audit = Audit::new(&Supervisor::default());
        audit.keep_in(Some(directory.path().join("missing/audit.log")));
        tell(&audit, "first");
        until(&audit, true).await;
        let path = directory.path().join("audit.log");
        audit.keep_in(Some(path.clone()));
        until(&audit, false).await;
        drop(audit);
        assert_eq!(results(&path), ["first"]);
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
