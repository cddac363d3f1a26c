//! Sends packets that look like packets of clients.

use std::{
    net::{SocketAddr, SocketAddrV4},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, ensure};
use balancer_testkit::{
    frame::{Frame, Transport},
    namespace::{Entrance, Namespace},
};
use nix::sys::prctl::set_timerslack;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use super::hosts::{VIP, client};

/// The source port of all clients.
const PORT: u16 = 40_000;
/// The number of packets in a burst, and the pause after the burst: 20,000 packets per second.
const SALVO: (usize, Duration) = (20, Duration::from_millis(1));

/// Creates an IPv4 socket that sends packets with any source address.
fn raw() -> Result<Socket> {
    let protocol = Protocol::from(libc::IPPROTO_RAW);
    Socket::new(Domain::IPV4, Type::RAW, Some(protocol)).context("sending packets with other sources")
}

fn packet(number: u16, flags: u8) -> Vec<u8> {
    let source = SocketAddrV4::new(client(number), PORT).to_string();
    Frame::new(&source, &VIP.to_string(), Transport::Tcp(flags)).packet()
}

fn vip() -> SockAddr {
    SocketAddr::V4(VIP).into()
}

/// Sends one packet from each client.
///
/// # Errors
/// Fails if the kernel returns an error.
pub fn once(namespace: &Namespace, clients: impl Iterator<Item = u16> + Send, flags: u8) -> Result<()> {
    namespace.run_in_thread(|| {
        let socket = raw()?;
        for (sent, client) in clients.enumerate() {
            socket.send_to(&packet(client, flags), &vip())?;
            if sent % SALVO.0 == 0 {
                thread::sleep(SALVO.1);
            }
        }
        Ok(())
    })?
}

/// A steady load, which runs until the caller stops the load or a time limit expires.
pub struct Load {
    stopped: Arc<AtomicBool>,
    unanswered: Arc<AtomicBool>,
    thread: JoinHandle<Result<()>>,
}

impl Load {
    /// Every `pause`, the load sends one packet for each of `flags`, which are TCP flags. In each round, one client of
    /// each group sends packets; the clients of a group take turns. The load lasts for at most `limit`.
    pub fn start(namespace: Entrance, groups: &[Vec<u16>], flags: &[u8], pause: Duration, limit: Duration) -> Self {
        let of = |client: &u16| flags.iter().map(|&flags| packet(*client, flags)).collect();
        let packets: Vec<Vec<Vec<Vec<u8>>>> = groups.iter().map(|group| group.iter().map(of).collect()).collect();
        let [stopped, unanswered] = [false; 2].map(|is| Arc::new(AtomicBool::new(is)));
        let (stop, first_alone) = (Arc::clone(&stopped), Arc::clone(&unanswered));
        let thread = thread::spawn(move || {
            namespace.enter()?;
            let (socket, vip) = (raw()?, vip());
            // With the default timer slack of the kernel, pauses would be 50 µs longer.
            set_timerslack(1)?;
            let start = Instant::now();
            let mut next = start;
            let mut turn = 0;
            while !stop.load(Ordering::Relaxed) {
                ensure!(start.elapsed() < limit, "the load was not stopped in time");
                for group in &packets {
                    let packets = group.get(turn % group.len().max(1)).map_or(&[][..], Vec::as_slice);
                    let sent = if first_alone.load(Ordering::Relaxed) { 1 } else { packets.len() };
                    for packet in packets.iter().take(sent) {
                        socket.send_to(packet, &vip)?;
                    }
                }
                turn += 1;
                next += pause;
                let now = Instant::now();
                // The load skips packets that it could not send in time.
                next = next.max(now);
                thread::sleep(next - now);
            }
            Ok(())
        });
        Self { stopped, unanswered, thread }
    }

    /// Makes the load look as if clients got no answers: each client sends only its first packet.
    pub fn leave_unanswered(&self) {
        self.unanswered.store(true, Ordering::Relaxed);
    }

    /// Stops sending packets.
    ///
    /// # Errors
    /// Fails if the kernel refused packets, or if the time limit expired before the call.
    pub fn stop(self) -> Result<()> {
        self.stopped.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| anyhow!("the thread that sends packets has panicked"))?
    }
}
