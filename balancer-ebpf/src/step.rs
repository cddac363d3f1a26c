//! Steps: each is the outcome for a packet, or the next function for the packet.

use core::marker::PhantomData;

use balancer_common::{
    features::Features,
    verdict::{DecisionIndex, DropIndex, DropReason},
};

use crate::{features, service::Listener};

/// The decision about a packet; `main.rs` turns this decision into an XDP action and a counter. Further data is in the
/// [`Step`], so that the compiler can merge the branches that make an outcome with the branches that read this outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The frame passes to the kernel unchanged.
    Pass,
    /// The frame leaves by the interface on which it arrived, either forwarded or turned into an answer to its sender.
    Tx,
    /// The frame leaves by another interface: see [`Step::egress`].
    Redirect,
    /// The kernel receives the rewritten and marked frame, and sends it: see [`crate::handover`].
    Handed,
    /// The program drops the frame: see [`Step::reason`].
    Drop,
    /// The program failed to process the frame.
    Abort,
}

/// A backend, and how the program chose it if the packet opens a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Choice {
    pub(crate) backend: u16,
    pub(crate) decision: DecisionIndex,
}

/// The kind of data that follows a packet's IP header, on the way to a backend or back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Carries {
    /// A TCP or UDP header.
    Header,
    /// The data of a later fragment.
    Nothing,
}

/// Whether the packet's sender may get an ICMP error about the packet: an ICMP error never causes another ICMP error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answerable {
    Yes,
    No,
}

/// The next step for a packet: an outcome, or a step of `steps` with the step's `Payload`.
///
/// A step is encoded as a number, because a global function can return nothing else. Bits 0–7 hold the kind, and the
/// other bits hold the payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step(u64);

/// The kind of a [`Step`]; kinds up to [`Kind::Drop`] are final.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    Pass = 1,
    Tx,
    Redirect,
    Handed,
    Drop,
    Rare,
    /// Decide about a later fragment.
    Part,
    /// Decide about a packet whose ports [`Kind::Rare`] or the plain path has found.
    Ported,
    /// Decide about a packet that has ports and is for no service.
    Unserved,
    Icmp,
    /// Find the packet that an ICMP error quotes.
    Quote,
    /// Decide about an ICMP error whose quoted packet has been found.
    Quoted,
    Quic,
    QuicServer,
    QuicFlow,
    QuicNamed,
    Flow,
    FlowNew,
    Consult,
    OpenFlow,
    FlowPort,
    FlowThere,
    FlowBack,
    FlowReturn,
    FlowPart,
    FlowError,
    FlowErrorBack,
    FlowCross,
    FlowCrossError,
    ToBackend,
    ErrorToBackend,
    ToClient,
    ErrorToClient,
    /// Pass the packet to the host, but count the packet as if the program had sent it to a backend.
    Watch,
    /// Pass the packet to this machine itself, or drop the packet.
    Own,
    /// Pass a packet to this machine itself that may belong to a connection to a backend's own address.
    Direct,
    Encapsulate,
    Reject,
    IcmpError,
}

/// The argument of a step function. The payload leaves bits 0–7 of its word free.
pub(crate) trait Payload: Copy {
    const KIND: Kind;

    fn word(self) -> u64;

    fn of_word(word: u64) -> Self;

    /// The outcome if the step function cannot handle the packet.
    #[inline(always)]
    fn given_up(self) -> Step {
        Step::PASS
    }
}

/// The payload of a step, packed into one word until a step function needs it.
#[derive(Clone, Copy)]
pub(crate) struct Packed<What>(u64, PhantomData<What>);

impl<What: Payload> Packed<What> {
    #[inline(always)]
    pub(crate) const fn of_word(word: u64) -> Self {
        Self(word, PhantomData)
    }

    #[inline(always)]
    pub(crate) fn get(self) -> What {
        What::of_word(self.0)
    }
}

/// The payload of a packet on its way to a backend. The program remembers the destination of a first fragment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ToBackend {
    pub(crate) choice: Choice,
    pub(crate) carries: Carries,
    /// The backend's port for the packet's listener (network order); 0: the packet keeps its own port.
    pub(crate) port: u16,
}

/// The payload of a packet to a backend that is the first packet of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct OpenFlow {
    pub(crate) choice: Choice,
    /// The port, as in [`ToBackend::port`].
    pub(crate) port: u16,
    /// Whether a QUIC connection ID has named the backend: only packets with an ID of this backend find the flow.
    pub(crate) named: bool,
}

/// The payload of a flow that has a row and still needs an address and a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FlowPort(pub(crate) Going);

/// The payload of a flow's packet on its way to the backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FlowThere(pub(crate) Going);

/// The flow of a packet, and how the program chose the flow's backend if the packet opens the flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Going {
    /// The flow's name: its row number and some bits of its tag. A flow that is not published yet has only a number.
    pub(crate) flow: u32,
    pub(crate) decision: DecisionIndex,
}

/// The payload of a reply on its way to the client of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FlowReturn {
    /// The name of the flow, as in [`FlowPart`].
    pub(crate) flow: u32,
}

/// The direction of a flow's packet: to the backend or to the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Toward {
    Backend,
    Client,
}

/// The payload of a later fragment of a flow's packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FlowPart {
    /// The name of the flow: the flow's row number and some bits of its tag.
    pub(crate) flow: u32,
    pub(crate) toward: Toward,
}

/// The payload of an ICMP error about a packet of a flow, on the way to the flow's backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FlowError {
    /// The name of the flow, as in [`FlowPart`].
    pub(crate) flow: u32,
}

/// The payload of an ICMP error about a packet of a flow, on the way to the flow's client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FlowErrorBack {
    /// The name of the flow, as in [`FlowPart`].
    pub(crate) flow: u32,
}

/// The payload of a flow's packet that changes its address family before the program sends it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FlowCross {
    /// The name of the flow, as in [`FlowPart`].
    pub(crate) flow: u32,
    pub(crate) toward: Toward,
    /// Whether the kernel, and not XDP, must send the packet to the client.
    pub(crate) handed: bool,
}

/// The payload of an ICMP error about a flow's packet, if the error changes its address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FlowCrossError(pub(crate) FlowCross);

/// The payload of an ICMP error about a backend's packet, on the way to this backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ErrorToBackend {
    pub(crate) choice: Choice,
    /// The port, as in [`ToBackend::port`], for the packet that the ICMP error quotes.
    pub(crate) port: u16,
}

/// The payload of a `nat` backend's reply on its way to the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ToClient {
    /// The port of the row in the return table (network order).
    pub(crate) port: u16,
    /// The protocol of the row in the return table.
    pub(crate) protocol: u8,
    pub(crate) carries: Carries,
}

/// The payload of an ICMP error about a packet to a `nat` backend, on the way to the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ErrorToClient {
    /// The port of the packet's row in the return table (network order).
    pub(crate) port: u16,
}

/// The payload of a packet that passes to the host unchanged and is counted as if it had been forwarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Watch {
    pub(crate) choice: Choice,
}

/// The payload of a packet that goes to a backend inside an outer packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Encapsulate {
    pub(crate) choice: Choice,
    pub(crate) answerable: Answerable,
}

/// The payload of a rejected packet: the program tells the sender that no backend takes the packet. If no answer is
/// possible, the program drops the packet with this drop reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Reject {
    pub(crate) reason: DropIndex,
}

/// The reason for an ICMP error that the program sends to the sender of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum IcmpError {
    /// The packet is too big; the number is the MTU in bytes.
    TooBig(u32),
    /// No backend takes the packet; if no answer is possible, the program drops the packet with this drop reason.
    Unreachable(DropIndex),
}

/// The payload of a datagram of a QUIC listener; the datagram's connection ID may name a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Quic {
    /// The row of the service, see [`crate::service::at`].
    pub(crate) service: u32,
    /// The port, as in [`ToBackend::port`].
    pub(crate) port: u16,
    /// Whether the datagram's source may be a martian address; if not, an earlier step has made the check.
    pub(crate) unchecked: bool,
}

/// The payload of a datagram whose connection ID was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct QuicNamed {
    /// The id of the backend that the connection ID names; 0: none.
    pub(crate) backend: u16,
    /// Whether the client cannot have made up the connection ID.
    pub(crate) issued: bool,
    /// Whether the connection ID teaches the program where the client is: see
    /// [`QUIC_LEARNS`](balancer_common::quic::QUIC_LEARNS).
    pub(crate) teaches: bool,
    /// In `snat` services: the name of the datagram's flow at the backend, as in [`FlowPart`].
    pub(crate) flow: Option<u32>,
}

/// The payload of a datagram for a `snat` service whose connection ID names a backend; its flow is not known yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct QuicFlow(pub(crate) QuicNamed);

/// A step that sends a packet to a backend that is not chosen yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Unchosen(u64);

const FLAG: u64 = 1 << 8;
/// A bit that no kind uses, in the byte of the kind.
const UNLESS_HOSTS: u64 = 1 << 7;
/// The position of [`FlowCross::handed`] in the payload.
const HANDED_BIT: u32 = 9;
/// The position of [`QuicNamed::teaches`] in the payload.
const TEACHES_BIT: u32 = 9;
/// A flag in the payload: [`QuicNamed::flow`] is known.
const HAS_FLOW: u64 = 1 << 10;

#[inline(always)]
const fn flag(set: bool) -> u64 {
    if set { FLAG } else { 0 }
}

impl Choice {
    const NONE: Self = Self { backend: 0, decision: DecisionIndex::NONE };

    #[inline(always)]
    const fn word(self) -> u64 {
        (self.decision.0 as u64) << 16 | (self.backend as u64) << 32
    }

    #[inline(always)]
    const fn of_word(word: u64) -> Self {
        Self { backend: (word >> 32) as u16, decision: DecisionIndex((word >> 16) as u8) }
    }
}

impl Carries {
    #[inline(always)]
    const fn word(self) -> u64 {
        flag(matches!(self, Self::Nothing))
    }

    #[inline(always)]
    const fn of_word(word: u64) -> Self {
        if word & FLAG == 0 { Self::Header } else { Self::Nothing }
    }
}

impl ToBackend {
    #[inline(always)]
    pub(crate) fn unchosen(carries: Carries, port: u16) -> Unchosen {
        Unchosen(Step::to(Self { choice: Choice::NONE, carries, port }).0)
    }
}

impl OpenFlow {
    #[inline(always)]
    pub(crate) fn unchosen(port: u16, named: bool) -> Unchosen {
        Unchosen(Step::to(Self { choice: Choice::NONE, port, named }).0)
    }
}

impl Going {
    /// Bits 32–47 of the payload are free for a [`Choice`].
    #[inline(always)]
    const fn word(self) -> u64 {
        let [low, high] = [self.flow as u16, (self.flow >> 16) as u16];
        (self.decision.0 as u64) << 24 | (low as u64) << 8 | (high as u64) << 48
    }

    #[inline(always)]
    const fn of_word(word: u64) -> Self {
        let [low, high] = [(word >> 8) as u16, (word >> 48) as u16];
        Self { flow: low as u32 | (high as u32) << 16, decision: DecisionIndex((word >> 24) as u8) }
    }
}

impl FlowThere {
    /// The step after a query to the client memory for a packet that opens no connection; this step ignores the backend
    /// in the answer.
    #[inline(always)]
    pub(crate) fn unchosen(flow: u32) -> Unchosen {
        Unchosen(Step::to(Self(Going { flow, decision: DecisionIndex::NONE })).0)
    }
}

impl Toward {
    #[inline(always)]
    const fn word(self) -> u64 {
        flag(matches!(self, Self::Client))
    }

    #[inline(always)]
    const fn of_word(word: u64) -> Self {
        if word & FLAG == 0 { Self::Backend } else { Self::Client }
    }
}

impl ErrorToBackend {
    #[inline(always)]
    pub(crate) fn unchosen(port: u16) -> Unchosen {
        Unchosen(Step::to(Self { choice: Choice::NONE, port }).0)
    }
}

impl Watch {
    #[inline(always)]
    pub(crate) fn unchosen() -> Unchosen {
        Unchosen(Step::to(Self { choice: Choice::NONE }).0)
    }
}

impl Unchosen {
    /// A step that is never taken.
    pub(crate) const NONE: Self = Self(0);

    /// Whether the packet passes to the host, whichever backend the program chooses.
    #[inline(always)]
    pub(crate) const fn watches(self) -> bool {
        self.0 & 0xff == Kind::Watch as u64
    }

    #[inline(always)]
    pub(crate) const fn chosen(self, choice: Choice) -> Step {
        Step(self.0 | choice.word())
    }
}

impl Quic {
    /// The step for a listener's datagrams whose source is no martian address.
    #[inline(always)]
    pub(crate) const fn of(listener: Listener) -> Self {
        Self { service: listener.row, port: listener.listening.port, unchecked: false }
    }

    /// The step for a listener's datagrams whose source may be a martian address.
    #[inline(always)]
    pub(crate) const fn unchecked(listener: Listener) -> Self {
        Self { unchecked: true, ..Self::of(listener) }
    }
}

impl Payload for Quic {
    const KIND: Kind = Kind::Quic;

    #[inline(always)]
    fn word(self) -> u64 {
        flag(self.unchecked) | u64::from(self.service) << 16 | u64::from(self.port) << 48
    }

    #[inline(always)]
    fn of_word(word: u64) -> Self {
        Self { service: (word >> 16) as u32, port: (word >> 48) as u16, unchecked: word & FLAG != 0 }
    }
}

impl Payload for QuicNamed {
    const KIND: Kind = Kind::QuicNamed;

    #[inline(always)]
    fn word(self) -> u64 {
        let flow = self.flow.map_or(0, |flow| HAS_FLOW | u64::from(flow) << 32);
        flag(self.issued) | u64::from(self.teaches) << TEACHES_BIT | u64::from(self.backend) << 16 | flow
    }

    #[inline(always)]
    fn of_word(word: u64) -> Self {
        Self {
            backend: (word >> 16) as u16,
            issued: word & FLAG != 0,
            teaches: word >> TEACHES_BIT & 1 != 0,
            flow: if word & HAS_FLOW == 0 { None } else { Some((word >> 32) as u32) },
        }
    }
}

impl Payload for QuicFlow {
    const KIND: Kind = Kind::QuicFlow;

    #[inline(always)]
    fn word(self) -> u64 {
        self.0.word()
    }

    #[inline(always)]
    fn of_word(word: u64) -> Self {
        Self(QuicNamed::of_word(word))
    }
}

impl Payload for ToBackend {
    const KIND: Kind = Kind::ToBackend;

    #[inline(always)]
    fn word(self) -> u64 {
        self.choice.word() | self.carries.word() | u64::from(self.port) << 48
    }

    #[inline(always)]
    fn of_word(word: u64) -> Self {
        Self { choice: Choice::of_word(word), carries: Carries::of_word(word), port: (word >> 48) as u16 }
    }
}

impl Payload for OpenFlow {
    const KIND: Kind = Kind::OpenFlow;

    #[inline(always)]
    fn word(self) -> u64 {
        self.choice.word() | flag(self.named) | u64::from(self.port) << 48
    }

    #[inline(always)]
    fn of_word(word: u64) -> Self {
        Self { choice: Choice::of_word(word), port: (word >> 48) as u16, named: word & FLAG != 0 }
    }
}

impl Payload for FlowPort {
    const KIND: Kind = Kind::FlowPort;

    #[inline(always)]
    fn word(self) -> u64 {
        self.0.word()
    }

    #[inline(always)]
    fn of_word(word: u64) -> Self {
        Self(Going::of_word(word))
    }
}

impl Payload for FlowThere {
    const KIND: Kind = Kind::FlowThere;

    #[inline(always)]
    fn word(self) -> u64 {
        self.0.word()
    }

    #[inline(always)]
    fn of_word(word: u64) -> Self {
        Self(Going::of_word(word))
    }
}

impl Payload for FlowReturn {
    const KIND: Kind = Kind::FlowReturn;

    #[inline(always)]
    fn word(self) -> u64 {
        u64::from(self.flow) << 32
    }

    #[inline(always)]
    fn of_word(word: u64) -> Self {
        Self { flow: (word >> 32) as u32 }
    }
}

impl Payload for FlowPart {
    const KIND: Kind = Kind::FlowPart;

    #[inline(always)]
    fn word(self) -> u64 {
        self.toward.word() | u64::from(self.flow) << 32
    }

    #[inline(always)]
    fn of_word(word: u64) -> Self {
        Self { flow: (word >> 32) as u32, toward: Toward::of_word(word) }
    }
}

impl Payload for FlowError {
    const KIND: Kind = Kind::FlowError;

    #[inline(always)]
    fn word(self) -> u64 {
        u64::from(self.flow) << 32
    }

    #[inline(always)]
    fn of_word(word: u64) -> Self {
        Self { flow: (word >> 32) as u32 }
    }
}

impl Payload for FlowErrorBack {
    const KIND: Kind = Kind::FlowErrorBack;

    #[inline(always)]
    fn word(self) -> u64 {
        u64::from(self.flow) << 32
    }

    #[inline(always)]
    fn of_word(word: u64) -> Self {
        Self { flow: (word >> 32) as u32 }
    }
}

impl Payload for FlowCross {
    const KIND: Kind = Kind::FlowCross;

    #[inline(always)]
    fn word(self) -> u64 {
        self.toward.word() | u64::from(self.handed) << HANDED_BIT | u64::from(self.flow) << 32
    }

    #[inline(always)]
    fn of_word(word: u64) -> Self {
        Self { flow: (word >> 32) as u32, toward: Toward::of_word(word), handed: word >> HANDED_BIT & 1 != 0 }
    }
}

impl Payload for FlowCrossError {
    const KIND: Kind = Kind::FlowCrossError;

    #[inline(always)]
    fn word(self) -> u64 {
        self.0.word()
    }

    #[inline(always)]
    fn of_word(word: u64) -> Self {
        Self(FlowCross::of_word(word))
    }
}

impl Payload for ErrorToBackend {
    const KIND: Kind = Kind::ErrorToBackend;

    #[inline(always)]
    fn word(self) -> u64 {
        self.choice.word() | u64::from(self.port) << 48
    }

    #[inline(always)]
    fn of_word(word: u64) -> Self {
        Self { choice: Choice::of_word(word), port: (word >> 48) as u16 }
    }
}

impl Payload for ToClient {
    const KIND: Kind = Kind::ToClient;

    #[inline(always)]
    fn word(self) -> u64 {
        self.carries.word() | u64::from(self.port) << 32 | u64::from(self.protocol) << 48
    }

    #[inline(always)]
    fn of_word(word: u64) -> Self {
        Self { port: (word >> 32) as u16, protocol: (word >> 48) as u8, carries: Carries::of_word(word) }
    }
}

impl Payload for ErrorToClient {
    const KIND: Kind = Kind::ErrorToClient;

    #[inline(always)]
    fn word(self) -> u64 {
        u64::from(self.port) << 32
    }

    #[inline(always)]
    fn of_word(word: u64) -> Self {
        Self { port: (word >> 32) as u16 }
    }
}

impl Payload for Watch {
    const KIND: Kind = Kind::Watch;

    #[inline(always)]
    fn word(self) -> u64 {
        self.choice.word()
    }

    #[inline(always)]
    fn of_word(word: u64) -> Self {
        Self { choice: Choice::of_word(word) }
    }
}

impl Payload for Encapsulate {
    const KIND: Kind = Kind::Encapsulate;

    #[inline(always)]
    fn word(self) -> u64 {
        self.choice.word() | flag(self.answerable == Answerable::No)
    }

    #[inline(always)]
    fn of_word(word: u64) -> Self {
        let answerable = if word & FLAG == 0 { Answerable::Yes } else { Answerable::No };
        Self { choice: Choice::of_word(word), answerable }
    }
}

impl Payload for Reject {
    const KIND: Kind = Kind::Reject;

    #[inline(always)]
    fn word(self) -> u64 {
        u64::from(self.reason.0) << 32
    }

    #[inline(always)]
    fn of_word(word: u64) -> Self {
        Self { reason: DropIndex((word >> 32) as u8) }
    }

    #[inline(always)]
    fn given_up(self) -> Step {
        Step::dropped(self.reason)
    }
}

impl Payload for IcmpError {
    const KIND: Kind = Kind::IcmpError;

    #[inline(always)]
    fn word(self) -> u64 {
        match self {
            Self::TooBig(mtu) => u64::from(mtu) << 32,
            Self::Unreachable(reason) => FLAG | u64::from(reason.0) << 32,
        }
    }

    #[inline(always)]
    fn of_word(word: u64) -> Self {
        let value = (word >> 32) as u32;
        if word & FLAG == 0 { Self::TooBig(value) } else { Self::Unreachable(DropIndex(value as u8)) }
    }

    #[inline(always)]
    fn given_up(self) -> Step {
        match self {
            Self::TooBig(_) => Step::drop(DropReason::TooBig),
            Self::Unreachable(reason) => Step::dropped(reason),
        }
    }
}

impl Step {
    /// Pass the packet to the kernel unchanged.
    pub(crate) const PASS: Self = Self(Kind::Pass as u64);
    /// Send the packet out of the interface on which it arrived.
    pub(crate) const TX: Self = Self(Kind::Tx as u64);
    /// Hand the packet to the kernel, which sends it.
    pub(crate) const HANDED: Self = Self(Kind::Handed as u64);
    /// The path of most packets cannot handle the packet: see [`crate::rare`].
    pub(crate) const RARE: Self = Self(Kind::Rare as u64);
    /// The packet is a later fragment, whose headers [`Step::RARE`] has found.
    pub(crate) const PART: Self = Self(Kind::Part as u64);
    /// The packet is TCP or UDP, and [`Step::RARE`] or the plain path has found its headers.
    pub(crate) const PORTED: Self = Self(Kind::Ported as u64);
    /// The packet is TCP or UDP, and for no service.
    pub(crate) const UNSERVED: Self = Self(Kind::Unserved as u64);
    /// The packet is an ICMP message: see [`crate::icmp`].
    pub(crate) const ICMP: Self = Self(Kind::Icmp as u64);
    /// The packet is an ICMP error: see [`crate::icmp`].
    pub(crate) const QUOTE: Self = Self(Kind::Quote as u64);
    /// The packet is an ICMP error, and [`Step::QUOTE`] has found the packet that it quotes.
    pub(crate) const QUOTED: Self = Self(Kind::Quoted as u64);
    /// The packet is for a `snat` service: see [`crate::flows`].
    pub(crate) const FLOW: Self = Self(Kind::Flow as u64);
    /// The packet is the first of a flow, and the program has not chosen the backend yet.
    pub(crate) const FLOW_NEW: Self = Self(Kind::FlowNew as u64);
    /// An earlier step has stored the packet's QUIC connection ID: see [`crate::quic`].
    pub(crate) const QUIC_SERVER: Self = Self(Kind::QuicServer as u64);
    /// The packet may be a reply of a `snat` backend: see [`crate::flows`].
    pub(crate) const FLOW_BACK: Self = Self(Kind::FlowBack as u64);
    /// The packet is for this machine itself, or the program must drop the packet: see [`crate::forward::sockets`].
    pub(crate) const OWN: Self = Self(Kind::Own as u64);
    /// The packet is for no service, and may be for the own address of a backend that is this machine: see
    /// [`crate::direct`].
    const DIRECT: Self = Self(Kind::Direct as u64);
    /// Send the packet to the backend that the client memory names: see [`crate::memory`].
    pub(crate) const CONSULT: Self = Self(Kind::Consult as u64);

    /// Passes a packet that is for no service and no client.
    #[inline(always)]
    pub(crate) fn unserved() -> Self {
        // A test of a flag in `Control` would give the verifier more paths; the step makes this test.
        if features::uses(Features::LOCAL.and(Features::NAT)) { Self::DIRECT } else { Self::PASS }
    }

    #[inline(always)]
    pub(crate) const fn drop(reason: DropReason) -> Self {
        Self::dropped(DropIndex(reason as u8))
    }

    #[inline(always)]
    const fn dropped(reason: DropIndex) -> Self {
        Self(Kind::Drop as u64 | (reason.0 as u64) << 32)
    }

    /// Send the packet out of `egress`; the packet arrived by `ingress`.
    #[inline(always)]
    pub(crate) const fn send(ingress: u32, egress: u32) -> Self {
        if ingress == egress { Self::TX } else { Self(Kind::Redirect as u64 | (egress as u64) << 32) }
    }

    /// This step, unless the connection belongs to the host: see [`crate::share::decide`].
    #[inline(always)]
    pub(crate) const fn unless_hosts(self) -> Self {
        Self(self.0 | UNLESS_HOSTS)
    }

    /// If this step [depends on the host](Self::unless_hosts): the step to take if the connection does not belong to
    /// the host.
    #[inline(always)]
    pub(crate) const fn if_not_hosts(self) -> Option<Self> {
        if self.0 & UNLESS_HOSTS == 0 { None } else { Some(Self(self.0 & !UNLESS_HOSTS)) }
    }

    /// The step with this payload.
    #[inline(always)]
    pub(crate) fn to<What: Payload>(packed: What) -> Self {
        Self(What::KIND as u64 | packed.word())
    }

    /// The number by which global functions take and return this step.
    #[inline(always)]
    pub(crate) const fn word(self) -> u64 {
        self.0
    }

    /// The step that [`Step::word`] encoded in this number.
    #[inline(always)]
    pub(crate) const fn of_word(word: u64) -> Self {
        Self(word)
    }

    #[inline(always)]
    pub(crate) const fn is(self, kind: Kind) -> bool {
        self.0 & 0xff == kind as u64
    }

    /// Whether the step sends the packet.
    #[inline(always)]
    pub(crate) const fn sends(self) -> bool {
        let kind = self.0 & 0xff;
        Kind::Tx as u64 <= kind && kind <= Kind::Handed as u64
    }

    /// Whether the step is final.
    #[inline(always)]
    pub(crate) const fn is_last(self) -> bool {
        self.0 & 0xff <= Kind::Drop as u64
    }

    /// The outcome of the packet, if the step is final.
    #[inline(always)]
    #[must_use]
    pub const fn outcome(self) -> Outcome {
        if self.is(Kind::Tx) {
            Outcome::Tx
        } else if self.is(Kind::Pass) {
            Outcome::Pass
        } else if self.is(Kind::Redirect) {
            Outcome::Redirect
        } else if self.is(Kind::Handed) {
            Outcome::Handed
        } else if self.is(Kind::Drop) {
            Outcome::Drop
        } else {
            Outcome::Abort
        }
    }

    /// The kind of the step, which shows why no step function handled the packet.
    #[inline(always)]
    #[must_use]
    pub const fn kind(self) -> u32 {
        self.0 as u8 as u32
    }

    /// The interface of [`Outcome::Redirect`].
    #[inline(always)]
    #[must_use]
    pub const fn egress(self) -> u32 {
        (self.0 >> 32) as u32
    }

    /// The reason of [`Outcome::Drop`].
    #[inline(always)]
    #[must_use]
    pub const fn reason(self) -> DropIndex {
        DropIndex((self.0 >> 32) as u8)
    }
}

#[cfg(test)]
mod tests {
    use core::fmt::Debug;

    use balancer_common::map_types::{LAST_BACKEND, MAX_FLOW_ROWS};

    use super::*;

    #[test]
    fn when_an_outcome_is_packed_then_it_can_be_read_back() {
        assert_eq!(Step::PASS.outcome(), Outcome::Pass);
        assert_eq!(Step::send(3, 3).outcome(), Outcome::Tx);
        assert!(Step::HANDED.is_last() && Step::HANDED.outcome() == Outcome::Handed);
        let redirected = Step::send(3, u32::MAX);
        assert_eq!((redirected.outcome(), redirected.egress()), (Outcome::Redirect, u32::MAX));
        assert!(Step::TX.is_last() && Step::drop(DropReason::Malformed).is_last() && !Step::RARE.is_last());
        assert_eq!(Step::RARE.outcome(), Outcome::Abort);
        for &reason in DropReason::ALL {
            let dropped = Step::drop(reason);
            assert_eq!((dropped.outcome(), dropped.reason()), (Outcome::Drop, DropIndex::from(reason)));
        }
    }

    fn survives<What: Payload + PartialEq + Debug>(packed: What) {
        let step = Step::to(packed);
        assert!(step.is(What::KIND) && !step.is_last(), "{packed:?}");
        assert_eq!(Packed::<What>::of_word(step.word()).get(), packed);
    }

    #[test]
    fn when_a_payload_is_packed_then_it_can_be_read_back() {
        let choice = Choice { backend: LAST_BACKEND, decision: DecisionIndex(5) };
        for carries in [Carries::Header, Carries::Nothing] {
            survives(ToBackend { choice, carries, port: u16::MAX });
            survives(ToBackend { choice, carries, port: 0 });
            survives(ToClient { port: u16::MAX, protocol: 17, carries });
        }
        survives(Watch { choice });
        survives(ErrorToBackend { choice, port: u16::MAX });
        for named in [false, true] {
            survives(OpenFlow { choice, port: u16::MAX, named });
        }
        for flow in [0, 0xff, 0x1234, MAX_FLOW_ROWS - 1, u32::MAX] {
            let going = Going { flow, decision: DecisionIndex(5) };
            survives(FlowPort(going));
            survives(FlowThere(going));
            survives(FlowReturn { flow });
            let asked =
                FlowThere::unchosen(flow).chosen(Choice { backend: LAST_BACKEND, decision: DecisionIndex::NONE });
            let going = Packed::<FlowThere>::of_word(asked.word()).get().0;
            assert_eq!(going, Going { flow, decision: DecisionIndex::NONE });
        }
        for toward in [Toward::Backend, Toward::Client] {
            survives(FlowPart { flow: u32::MAX, toward });
            for handed in [false, true] {
                survives(FlowCross { flow: u32::MAX, toward, handed });
                survives(FlowCrossError(FlowCross { flow: u32::MAX, toward, handed }));
            }
        }
        survives(FlowError { flow: u32::MAX });
        survives(FlowErrorBack { flow: u32::MAX });
        survives(ErrorToClient { port: u16::MAX });
        for unchecked in [false, true] {
            survives(Quic { service: u32::MAX, port: u16::MAX, unchecked });
        }
        for issued in [true, false] {
            for flow in [None, Some(0), Some(u32::MAX)] {
                let named = QuicNamed { backend: LAST_BACKEND, issued, teaches: !issued, flow };
                survives(named);
                survives(QuicFlow(named));
            }
        }
        for answerable in [Answerable::Yes, Answerable::No] {
            survives(Encapsulate { choice, answerable });
        }
        for &reason in DropReason::ALL {
            let reason = DropIndex::from(reason);
            survives(Reject { reason });
            survives(IcmpError::Unreachable(reason));
        }
        survives(IcmpError::TooBig(u32::MAX));
        survives(IcmpError::TooBig(0));
    }

    #[test]
    fn when_a_step_depends_on_the_host_then_it_differs_from_every_other() {
        let packed = ToBackend {
            choice: Choice { backend: 7, decision: DecisionIndex(5) },
            carries: Carries::Nothing,
            port: 80,
        };
        for step in [Step::CONSULT, Step::to(packed), Step::drop(DropReason::Denied), Step::PASS] {
            assert_eq!(step.if_not_hosts(), None);
            let marked = step.unless_hosts();
            assert_eq!(marked.if_not_hosts(), Some(step));
            assert!(!marked.is_last() && !marked.is(Kind::Consult) && !marked.is(Kind::ToBackend));
        }
    }

    #[test]
    fn when_a_backend_is_chosen_later_then_the_step_gets_it() {
        let choice = Choice { backend: LAST_BACKEND, decision: DecisionIndex(5) };
        let chosen = ToBackend::unchosen(Carries::Nothing, 80).chosen(choice);
        assert_eq!(chosen, Step::to(ToBackend { choice, carries: Carries::Nothing, port: 80 }));
        assert_eq!(ErrorToBackend::unchosen(80).chosen(choice), Step::to(ErrorToBackend { choice, port: 80 }));
    }

    #[test]
    fn when_a_sender_cannot_be_told_then_its_packet_is_dropped() {
        let reason = DropReason::Denied.into();
        assert_eq!(Reject { reason }.given_up(), Step::drop(DropReason::Denied));
        assert_eq!(IcmpError::Unreachable(reason).given_up(), Step::drop(DropReason::Denied));
        assert_eq!(IcmpError::TooBig(1400).given_up(), Step::drop(DropReason::TooBig));
    }
}
