//! Traces of packets: a tracing variant of the kernel program runs as long as a client polls for the traced packets.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use balancer_api::trace::{HopView, TracedPacket};
use balancer_common::{
    tracing::{
        ANSWERED_ECHO, ANSWERED_REJECTED, ANSWERED_TOO_BIG, MEMORY_EVICTED, MEMORY_FULL, MEMORY_LIMITED,
        MEMORY_RECORDED, QUIC_GONE, QUIC_NAMED, QUIC_NO_ID, QUIC_TAUGHT, QUIC_UNKNOWN,
    },
    verdict::{Decision, DropReason, MoveCause},
};
use balancer_dataplane::telling::{Knobs, Ring, Told};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::Notify,
    time::{Instant, interval, sleep, timeout},
};
use tracing::warn;

/// The time after which a trace ends if no client polls it.
const PATIENCE: Duration = Duration::from_secs(5);
/// The interval at which the trace checks whether a client has polled, and extends the kernel program's time limit.
const LOOK: Duration = Duration::from_secs(1);
/// The maximum time by which reports may arrive in the wrong order, because each CPU has its own buffer.
const BETWEEN_CPUS: Duration = Duration::from_millis(20);
/// The maximum number of packets that wait for a client. `MOST_BYTES` limits the total size of the waiting packets'
/// frames.
const MOST_WAITING: usize = 16_384;
const MOST_BYTES: usize = 32 << 20;
/// The maximum number of packets in one answer. `BYTES_AT_ONCE` limits the total size of the frames in one answer.
const MOST_AT_ONCE: usize = 1024;
const BYTES_AT_ONCE: usize = 8 << 20;

/// A running trace of packets.
pub struct Trace {
    /// The number by which clients refer to the trace.
    pub number: u64,
    waiting: Mutex<Waiting>,
    /// The settings of the tracing kernel program; `None` if no kernel program reports packets.
    knobs: Mutex<Option<Knobs>>,
    lost: AtomicU64,
    ended: AtomicBool,
    news: Notify,
    end: Notify,
}

struct Waiting {
    packets: VecDeque<Told>,
    bytes: usize,
    asked: Instant,
}

impl std::fmt::Debug for Trace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Trace").field("number", &self.number).finish_non_exhaustive()
    }
}

impl Trace {
    /// Makes a trace that receives no packets.
    #[must_use]
    pub fn silent(number: u64) -> Self {
        Self {
            number,
            waiting: Mutex::new(Waiting { packets: VecDeque::new(), bytes: 0, asked: Instant::now() }),
            knobs: Mutex::new(None),
            lost: AtomicU64::new(0),
            ended: AtomicBool::new(false),
            news: Notify::new(),
            end: Notify::new(),
        }
    }

    /// Starts a trace of the packets in `rings`; the trace lasts as long as a client polls it, and calls `gone` at its
    /// end.
    pub fn begin(
        number: u64,
        (rings, mut knobs): (Vec<Ring>, Knobs),
        gone: impl FnOnce() + Send + 'static,
    ) -> anyhow::Result<Arc<Self>> {
        knobs.go_on()?;
        let this = Arc::new(Self { knobs: Mutex::new(Some(knobs)), ..Self::silent(number) });
        for ring in rings {
            // SAFETY: the descriptor belongs to the ring, which keeps the descriptor open as long as the ring exists.
            let ring = unsafe { AsyncFd::register_with_interest(ring, Interest::READABLE) }?;
            tokio::spawn(follow(ring, Arc::downgrade(&this)));
        }
        let trace = Arc::clone(&this);
        tokio::spawn(async move {
            trace.go_on().await;
            trace.ended.store(true, Ordering::Release);
            trace.news.notify_waiters();
            gone();
        });
        Ok(this)
    }

    /// Returns the packets that have arrived since the last call, in the order of arrival; if there are none, waits up
    /// to `wait` for a packet.
    pub async fn take(&self, wait: Duration) -> Vec<TracedPacket> {
        let news = self.news.notified();
        tokio::pin!(news);
        news.as_mut().enable();
        if lock(&self.waiting).packets.is_empty() && !self.has_ended() {
            let _ = timeout(wait, news).await;
        }
        // If many packets wait, the first packets arrived long enough ago for their order to be certain.
        if lock(&self.waiting).packets.len() < MOST_AT_ONCE {
            sleep(BETWEEN_CPUS).await;
        }
        self.take_now()
    }

    /// Makes the trace also compare the counters of these backends.
    pub fn watch(&self, hops: &[HopView]) {
        let ids = hops.iter().filter(|hop| hop.in_use).map(|hop| hop.id);
        if let Err(error) = self.turn(|knobs| knobs.watch(ids)) {
            warn!("cannot trace the backends: {error:#}");
        }
    }

    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    pub fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    /// Ends the trace before its time limit.
    pub fn end(&self) {
        self.end.notify_one();
    }

    /// Makes the kernel program report packets as long as a client polls the trace.
    async fn go_on(&self) {
        let mut looks = interval(LOOK);
        loop {
            tokio::select! {
                _ = looks.tick() => {}
                () = self.end.notified() => break,
            }
            if lock(&self.waiting).asked.elapsed() > PATIENCE {
                break;
            }
            if let Err(error) = self.turn(Knobs::go_on) {
                warn!("cannot continue a trace: {error:#}");
                break;
            }
        }
        if let Err(error) = self.turn(Knobs::stop) {
            warn!("cannot end a trace: {error:#}; the program reports packets for some more seconds");
        }
    }

    fn turn(&self, how: impl FnOnce(&mut Knobs) -> anyhow::Result<()>) -> anyhow::Result<()> {
        lock(&self.knobs).as_mut().map_or(Ok(()), how)
    }

    fn take_now(&self) -> Vec<TracedPacket> {
        let mut waiting = lock(&self.waiting);
        waiting.asked = Instant::now();
        waiting.packets.make_contiguous().sort_by_key(|told| told.came.0.time);
        let (mut taken, mut bytes) = (Vec::new(), 0);
        while taken.len() < MOST_AT_ONCE
            && bytes < BYTES_AT_ONCE
            && let Some(told) = waiting.packets.pop_front()
        {
            waiting.bytes -= size(&told);
            bytes += size(&told);
            taken.push(view(&told));
        }
        taken
    }

    fn put(&self, told: Told) {
        let mut waiting = lock(&self.waiting);
        let size = size(&told);
        if waiting.packets.len() >= MOST_WAITING || waiting.bytes + size > MOST_BYTES {
            drop(waiting);
            self.lost.fetch_add(2, Ordering::Relaxed);
            return;
        }
        waiting.bytes += size;
        waiting.packets.push_back(told);
    }
}

/// Locks the data; the data is consistent even if the lock is poisoned, because no thread panics while it changes the
/// data.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Reads the reports of one CPU as long as the trace exists.
async fn follow(mut ring: AsyncFd<Ring>, trace: Weak<Trace>) {
    loop {
        // The wait has a time limit, because the trace may have ended.
        let ready = timeout(LOOK, ring.readable_mut()).await;
        let Some(trace) = trace.upgrade().filter(|trace| !trace.has_ended()) else { return };
        let Ok(ready) = ready else { continue };
        let Ok(mut ready) = ready else { return };
        ready.clear_ready();
        let lost = ready.get_inner_mut().take(|told| trace.put(told));
        trace.lost.fetch_add(lost, Ordering::Relaxed);
        trace.news.notify_waiters();
    }
}

fn size(told: &Told) -> usize {
    told.came.1.len() + told.left.1.len()
}

fn view(Told { came: (came, came_frame), left: (left, left_frame) }: &Told) -> TracedPacket {
    TracedPacket {
        came: came.time,
        left: left.time,
        ifindex: left.ifindex,
        queue: left.queue,
        action: left.action,
        came_length: came.length,
        left_length: left.length,
        came_frame: STANDARD.encode(came_frame),
        left_frame: STANDARD.encode(left_frame),
        drop: counted(DropReason::ALL, left.drop).map(|of| of.label().to_owned()),
        answered: answered(left.answered).map(str::to_owned),
        memory: memory(left.memory).map(str::to_owned).collect(),
        connection_id: connection_id(left.quic).map(str::to_owned),
        decision: counted(Decision::ALL, left.decision).map(|of| of.label().to_owned()),
        backend: (left.backend != 0).then_some(left.backend),
        moved_from: (left.moved_from != 0).then_some(left.moved_from),
        cause: counted(MoveCause::ALL, left.cause).map(|of| of.label().to_owned()),
    }
}

/// The enum variant with this index, where the first variant has the index 1.
fn counted<T: Copy>(all: &[T], index: u8) -> Option<T> {
    all.get(usize::from(index).checked_sub(1)?).copied()
}

const fn answered(word: u8) -> Option<&'static str> {
    match word {
        ANSWERED_ECHO => Some("echo"),
        ANSWERED_TOO_BIG => Some("too_big"),
        ANSWERED_REJECTED => Some("rejected"),
        _ => None,
    }
}

const fn connection_id(word: u8) -> Option<&'static str> {
    match word {
        QUIC_NO_ID => Some("none"),
        QUIC_UNKNOWN => Some("unknown"),
        QUIC_GONE => Some("gone"),
        QUIC_NAMED => Some("named"),
        QUIC_TAUGHT => Some("taught"),
        _ => None,
    }
}

fn memory(bits: u8) -> impl Iterator<Item = &'static str> {
    let words = [
        (MEMORY_RECORDED, "recorded"),
        (MEMORY_EVICTED, "evicted"),
        (MEMORY_FULL, "full"),
        (MEMORY_LIMITED, "limited"),
    ];
    words.into_iter().filter(move |(bit, _)| bits & bit != 0).map(|(_, word)| word)
}

#[cfg(test)]
mod tests {
    use balancer_common::tracing::Head;

    use super::*;

    #[tokio::test]
    async fn when_packets_of_one_cpu_are_read_before_those_of_another_then_they_are_in_the_order_of_their_arrival() {
        let trace = Arc::new(Trace::silent(1));
        let packet = |time| {
            let head = Head { time, ..Head::default() };
            Told { came: (head, Vec::new()), left: (head, Vec::new()) }
        };
        trace.put(packet(20));
        let later = Arc::clone(&trace);
        let taking = tokio::spawn(async move { later.take(PATIENCE).await });
        tokio::task::yield_now().await;
        trace.put(packet(30));
        trace.put(packet(10));
        let times: Vec<u64> = taking.await.unwrap().iter().map(|packet| packet.came).collect();
        assert_eq!(times, [10, 20, 30]);
    }
}
