//! Runs a table of cases, each of which is a frame with the expected fate.

use balancer_common::{
    handover::Handed,
    map_types::Forwarding,
    verdict::{DropReason, Verdict},
};
use balancer_config::config::Protocol;
use balancer_testkit::{
    frame::Frame,
    rig::{IN_MAC, OUT_MAC, Rig, Service, Target, backend_mac},
};

/// A row of the table of cases, with a frame and the frame's expected fate.
pub(crate) struct Case {
    pub(crate) name: String,
    pub(crate) frame: Vec<u8>,
    pub(crate) then: Then,
}

/// The expected fate of a frame.
pub(crate) enum Then {
    /// The frame passes to the kernel unchanged.
    Pass,
    /// The frame leaves by the ingress interface, with the given bytes.
    Tx(Vec<u8>),
    /// The frame leaves by an interface other than its ingress interface, with the given bytes.
    Redirect(Vec<u8>),
    /// The frame passes to the kernel with a mark and the given bytes.
    Handed(Vec<u8>),
    /// The frame leaves by the ingress interface for the given MAC address; other tests check the frame's bytes.
    To([u8; 6]),
    /// The program drops the frame, and counts the frame under no reason except the given one.
    Drop(DropReason),
}

impl Case {
    pub(crate) fn new(name: impl Into<String>, frame: &Frame, then: Then) -> Self {
        Self { name: name.into(), frame: frame.bytes(), then }
    }
}

const XDP_DROP: u32 = 1;
const XDP_PASS: u32 = 2;
const XDP_TX: u32 = 3;
const XDP_REDIRECT: u32 = 4;

/// The services of the rig in every table of cases.
pub(crate) fn services() -> Vec<Service> {
    use Forwarding::{Dsr, Gue, Ipip, Nat};
    use Protocol::{Tcp, Udp};
    use Target::{AllDown, NoBackend, OtherInterface, SameInterface, Unreachable};
    let service = |address, protocol, forwarding, target| Service { address, protocol, forwarding, target };
    vec![
        service("198.51.100.10:80", Tcp, Dsr, SameInterface("10.0.0.11:80")),
        service("198.51.100.10:53", Udp, Dsr, SameInterface("10.0.0.12:53")),
        service("198.51.100.10:81", Tcp, Dsr, OtherInterface("10.0.1.11:81")),
        service("[2001:db8::10]:80", Tcp, Dsr, SameInterface("[fd00::11]:80")),
        service("[2001:db8::10]:53", Udp, Dsr, SameInterface("[fd00::12]:53")),
        service("[2001:db8::10]:81", Tcp, Dsr, OtherInterface("[fd01::11]:81")),
        service("198.51.100.20:80", Tcp, Nat, SameInterface("10.0.0.21:8080")),
        service("198.51.100.20:53", Udp, Nat, SameInterface("10.0.0.22:5353")),
        service("198.51.100.20:81", Tcp, Nat, OtherInterface("10.0.1.21:8081")),
        service("[2001:db8::20]:80", Tcp, Nat, SameInterface("[fd00::21]:8080")),
        service("[2001:db8::20]:53", Udp, Nat, SameInterface("[fd00::22]:5353")),
        service("[2001:db8::20]:81", Tcp, Nat, OtherInterface("[fd01::21]:8081")),
        service("198.51.100.30:0", Tcp, Dsr, SameInterface("10.0.0.31:0")),
        service("198.51.100.31:0", Tcp, Nat, SameInterface("10.0.0.32:0")),
        service("198.51.100.30:443", Tcp, Nat, SameInterface("10.0.0.33:8443")),
        service("198.51.100.40:80", Tcp, Dsr, NoBackend),
        service("198.51.100.41:80", Tcp, Nat, AllDown),
        service("198.51.100.42:80", Tcp, Dsr, Unreachable("10.0.0.42:80")),
        service("[2001:db8::40]:80", Tcp, Dsr, NoBackend),
        service("[2001:db8::41]:80", Tcp, Nat, AllDown),
        service("[2001:db8::42]:80", Tcp, Nat, Unreachable("[fd00::42]:8080")),
        service("198.51.100.50:80", Tcp, Ipip, SameInterface("10.0.0.50:80")),
        service("198.51.100.50:81", Tcp, Ipip, OtherInterface("10.0.1.50:81")),
        service("198.51.100.50:53", Udp, Ipip, SameInterface("10.0.0.51:53")),
        service("198.51.100.52:80", Tcp, Ipip, SameInterface("[fd00::52]:80")),
        service("[2001:db8::50]:80", Tcp, Ipip, SameInterface("10.0.0.54:80")),
        service("[2001:db8::52]:80", Tcp, Ipip, SameInterface("[fd00::56]:80")),
        service("[2001:db8::52]:81", Tcp, Ipip, OtherInterface("[fd01::56]:81")),
        service("[2001:db8::52]:53", Udp, Ipip, SameInterface("[fd00::57]:53")),
        service("198.51.100.60:80", Tcp, Gue, SameInterface("10.0.0.60:80")),
        service("198.51.100.60:81", Tcp, Gue, OtherInterface("10.0.1.60:81")),
        service("198.51.100.60:53", Udp, Gue, SameInterface("10.0.0.61:53")),
        service("198.51.100.62:80", Tcp, Gue, SameInterface("[fd00::62]:80")),
        service("[2001:db8::60]:80", Tcp, Gue, SameInterface("10.0.0.64:80")),
        service("[2001:db8::62]:80", Tcp, Gue, SameInterface("[fd00::66]:80")),
        service("[2001:db8::62]:81", Tcp, Gue, OtherInterface("[fd01::66]:81")),
        service("[2001:db8::62]:53", Udp, Gue, SameInterface("[fd00::67]:53")),
        service("198.51.100.70:53", Udp, Dsr, SameInterface("10.0.0.70:53")),
        service("[2001:db8::70]:53", Udp, Dsr, SameInterface("[fd00::70]:53")),
        service("198.51.100.71:53", Udp, Nat, SameInterface("10.0.0.71:5353")),
        service("[2001:db8::71]:53", Udp, Nat, SameInterface("[fd00::71]:5353")),
    ]
}

/// Runs `cases` in a new namespace after `prepare` has changed the rig.
pub(crate) fn run_with(
    prepare: impl FnOnce(&mut Rig) -> anyhow::Result<()> + Send + 'static,
    cases: impl FnOnce(&Rig) -> Vec<Case> + Send + 'static,
) {
    run_services(services(), prepare, cases);
}

/// Runs `cases` in a new namespace, and fails with a list of all cases that failed.
pub(crate) fn run_services(
    services: Vec<Service>,
    prepare: impl FnOnce(&mut Rig) -> anyhow::Result<()> + Send + 'static,
    cases: impl FnOnce(&Rig) -> Vec<Case> + Send + 'static,
) {
    // The rig moves its thread into another namespace, so the cases run in a separate thread.
    let thread = std::thread::spawn(move || -> anyhow::Result<()> {
        let mut rig = Rig::new(&services)?;
        prepare(&mut rig)?;
        check_all(&rig, &cases(&rig));
        Ok(())
    });
    thread.join().expect("the thread of the cases panicked").expect("the rig could not be built");
}

/// Runs all cases, and fails with a list of all cases that failed.
pub(crate) fn check_all(rig: &Rig, cases: &[Case]) {
    assert!(!cases.is_empty());
    let failure = |case: &Case| check(rig, case).err().map(|error| format!("{}: {error}", case.name));
    let failures: Vec<_> = cases.iter().filter_map(failure).collect();
    assert!(failures.is_empty(), "{} cases failed:\n{}", failures.len(), failures.join("\n"));
}

/// Returns all counters that a run may change: the verdicts, then the drop reasons.
fn counters(rig: &Rig) -> anyhow::Result<Vec<(String, u64)>> {
    let verdicts = Verdict::ALL.iter().map(|&verdict| Ok((verdict.label().to_owned(), rig.verdicts(verdict)?)));
    let drops = DropReason::ALL.iter().map(|&reason| Ok((reason.label().to_owned(), rig.drops(reason)?)));
    verdicts.chain(drops).collect()
}

fn check(rig: &Rig, case: &Case) -> anyhow::Result<()> {
    let before = counters(rig)?;
    let ran = rig.run(&case.frame)?;
    let after = counters(rig)?;
    let counted: Vec<&str> = before
        .iter()
        .zip(&after)
        .flat_map(|((label, before), (_, after))| std::iter::repeat_n(label.as_str(), (after - before) as usize))
        .collect();
    let (action, frame, count): (_, Option<&[u8]>, Vec<&str>) = match &case.then {
        Then::Pass => (XDP_PASS, Some(&case.frame), vec!["pass"]),
        Then::Tx(frame) => (XDP_TX, Some(frame), vec!["tx"]),
        Then::Redirect(frame) => (XDP_REDIRECT, Some(frame), vec!["redirect"]),
        Then::Handed(frame) => (XDP_PASS, Some(frame), vec!["handed"]),
        Then::To(_) => (XDP_TX, None, vec!["tx"]),
        Then::Drop(reason) => (XDP_DROP, None, vec!["drop", reason.label()]),
    };
    anyhow::ensure!(ran.action == action, "action {} instead of {action}, counted {counted:?}", ran.action);
    anyhow::ensure!(counted == count, "counted {counted:?} instead of {count:?}");
    if let Some(frame) = frame {
        anyhow::ensure!(ran.frame == frame, "frame\n  {:02x?}\ninstead of\n  {frame:02x?}", ran.frame);
    }
    if let Then::To(mac) = case.then {
        anyhow::ensure!(ran.frame.starts_with(&mac), "to {:02x?} instead of {mac:02x?}", &ran.frame[..6]);
    }
    Ok(())
}

/// Returns `frame` in the form in which the program passes it to the kernel.
pub(crate) fn handed(rig: &Rig, frame: &Frame, handed: Handed) -> Frame {
    Frame { destination_mac: handed.destination(), source_mac: rig.handover_source(), ..frame.clone() }
}

/// Returns `frame`, which is for a `dsr` service, in the form that the backend receives.
pub(crate) fn dsr(rig: &Rig, frame: &Frame) -> Frame {
    let index = rig.service(&frame.destination.to_string()).expect("a service of the rig");
    let source_mac = if frame.destination.port() == 81 { OUT_MAC } else { IN_MAC };
    Frame { destination_mac: backend_mac(index), source_mac, ttl: frame.ttl - 1, ..frame.clone() }
}

/// Returns `frame` in the form in which it leaves by its ingress interface, for the backend of the service at
/// `service`.
pub(crate) fn to_backend_mac(rig: &Rig, frame: &Frame, service: &str) -> Frame {
    let index = rig.service(service).expect("a service of the rig");
    Frame { destination_mac: backend_mac(index), source_mac: IN_MAC, ttl: frame.ttl - 1, ..frame.clone() }
}

/// Returns `frame`, which is for a `nat` service, in the form that the backend at `address` receives.
pub(crate) fn nat(rig: &Rig, frame: &Frame, service: &str, address: &str) -> Frame {
    let index = rig.service(service).expect("a service of the rig");
    let source_mac = if frame.destination.port() == 81 { OUT_MAC } else { IN_MAC };
    Frame {
        destination_mac: backend_mac(index),
        source_mac,
        destination: address.parse().expect("an address"),
        ttl: frame.ttl - 1,
        ..frame.clone()
    }
}
