use std::collections::HashSet;

use super::*;
use crate::flows::{FLOW_RESTS, FlowWord, IdleTicks, Phase, REST_TICKS, expendable};

const IDLE: IdleTicks = IdleTicks { tcp: 900, udp: 60, udp_once: 5, half_open: 30, closing: 10 };
/// The client's first sequence number, so that its segments cross the wrap-around.
const CLIENT: u32 = u32::MAX - 1;
const BACKEND: u32 = 0x7fff_fff0;
/// The number of bytes of a segment with data.
const DATA: u32 = 7;
/// The distance of forged numbers from the right ones.
const FAR: u32 = 0x2000_0000;
/// The length of the sequences that are tried.
const DEPTH: usize = if cfg!(miri) { 3 } else { 8 };

/// A packet that one of the two ends sends, or a stranger who knows all but the numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Event {
    Syn,
    Ack,
    Data,
    Fin,
    Reset,
    Answer,
    BackendAck,
    BackendData,
    BackendFin,
    /// The backend sends its FIN before it receives the client's.
    CrossingFin,
    BackendReset,
    ForgedSyn,
    ForgedAck,
    ForgedFin,
    ForgedReset,
    /// A reset with a number just beside the right one.
    NearReset,
}

const EVENTS: [Event; 16] = [
    Event::Syn,
    Event::Ack,
    Event::Data,
    Event::Fin,
    Event::Reset,
    Event::Answer,
    Event::BackendAck,
    Event::BackendData,
    Event::BackendFin,
    Event::CrossingFin,
    Event::BackendReset,
    Event::ForgedSyn,
    Event::ForgedAck,
    Event::ForgedFin,
    Event::ForgedReset,
    Event::NearReset,
];

/// The two ends, as they know themselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Ends {
    /// The client's next sequence number.
    client: u32,
    /// The client's next sequence number before its FIN.
    before_fin: u32,
    /// The backend's next sequence number.
    backend: u32,
    answered: bool,
    confirmed: bool,
    client_fin: bool,
    backend_fin: bool,
    /// Whether the backend has sent its FIN before it received the client's.
    waits: bool,
    reset: bool,
}

const CLIENTS: Segment = Segment { by_client: true, ack: true, ..NONE };
const BACKENDS: Segment = Segment { ack: true, ..NONE };
const NONE: Segment = Segment {
    by_client: false,
    datagram: false,
    syn: false,
    fin: false,
    rst: false,
    ack: false,
    sequence: 0,
    acknowledgement: 0,
    length: 0,
    stamp: 0,
};
const SYN: Segment = Segment { by_client: true, syn: true, sequence: CLIENT, ..NONE };

impl Ends {
    const BEGIN: Self = Self {
        client: CLIENT.wrapping_add(1),
        before_fin: CLIENT.wrapping_add(1),
        backend: BACKEND,
        answered: false,
        confirmed: false,
        client_fin: false,
        backend_fin: false,
        waits: false,
        reset: false,
    };

    /// The ends after the event, and its segment. `None`: the ends would not send this now.
    fn after(mut self, event: Event) -> Option<(Self, Segment)> {
        let client = Segment { sequence: self.client, acknowledgement: self.backend, ..CLIENTS };
        let backend = Segment { sequence: self.backend, acknowledgement: self.client, ..BACKENDS };
        let forged = Segment {
            sequence: client.sequence.wrapping_sub(FAR),
            acknowledgement: client.acknowledgement.wrapping_add(FAR),
            length: DATA,
            ..CLIENTS
        };
        let client_sends = self.answered && !self.reset;
        let backend_sends = self.confirmed && !self.reset;
        let (is_sent, segment) = match event {
            Event::Syn => (!self.answered && !self.reset, SYN),
            Event::Ack => (client_sends, client),
            Event::Data => (client_sends && !self.client_fin, Segment { length: DATA, ..client }),
            Event::Fin => (client_sends && !self.client_fin, Segment { fin: true, ..client }),
            Event::Reset => (client_sends, Segment { rst: true, ..client }),
            Event::Answer => (!self.confirmed && !self.reset, Segment { sequence: BACKEND, syn: true, ..backend }),
            Event::BackendAck => (backend_sends, backend),
            Event::BackendData => (backend_sends && !self.backend_fin, Segment { length: DATA, ..backend }),
            Event::BackendFin => (backend_sends && !self.backend_fin, Segment { fin: true, ..backend }),
            Event::CrossingFin => (
                backend_sends && self.client_fin && !self.backend_fin,
                Segment { fin: true, acknowledgement: self.before_fin, ..backend },
            ),
            Event::BackendReset => (!self.reset, Segment { rst: true, ..backend }),
            Event::ForgedSyn => (true, Segment { syn: true, ack: false, ..forged }),
            Event::ForgedAck => (true, forged),
            Event::ForgedFin => (true, Segment { fin: true, ..forged }),
            Event::ForgedReset => (true, Segment { rst: true, ..forged }),
            Event::NearReset => (true, Segment { rst: true, sequence: self.client.wrapping_add(1), ..forged }),
        };
        if !is_sent {
            return None;
        }
        self.confirmed |= matches!(event, Event::Ack | Event::Data | Event::Fin);
        self.reset |= matches!(event, Event::Reset | Event::BackendReset);
        match event {
            Event::Answer => (self.backend, self.answered) = (BACKEND.wrapping_add(1), true),
            Event::Data => self.client = segment.end(),
            Event::Fin => {
                self.waits = self.backend_fin;
                (self.before_fin, self.client, self.client_fin) = (self.client, segment.end(), true);
            }
            Event::BackendData => self.backend = segment.end(),
            Event::BackendFin | Event::CrossingFin => {
                self.waits = event == Event::CrossingFin;
                (self.backend, self.backend_fin) = (segment.end(), true);
            }
            Event::Syn
            | Event::Ack
            | Event::Reset
            | Event::BackendAck
            | Event::BackendReset
            | Event::ForgedSyn
            | Event::ForgedAck
            | Event::ForgedFin
            | Event::ForgedReset
            | Event::NearReset => {}
        }
        Some((self, segment))
    }

    const fn are_closed(self) -> bool {
        self.client_fin && self.backend_fin
    }

    /// Checks the promises for a flow.
    fn check(self, life: Life, path: &[Event]) {
        // A moment later, a handshake is no longer in progress.
        let (seen, now) = (100, 103);
        let word = FlowWord::new(7, life.state, seen);
        let carries_data = self.confirmed && !self.reset && !self.are_closed();
        assert_eq!(word.gives_way(now, &IDLE), !carries_data, "{path:?}");
        assert_eq!(word.phase() == Phase::Open, carries_data, "{path:?}");
        assert_eq!(word.lives(seen + IDLE.tcp, &IDLE), carries_data, "{path:?}");
        let rests = (0..=REST_TICKS).rev().find(|age| !word.may_go(seen + age, &IDLE));
        let waits = self.are_closed() && self.waits && !self.reset;
        assert_eq!(rests == Some(REST_TICKS), waits || carries_data, "{path:?}");
        if waits {
            assert_eq!(life.numbers.next, self.client, "{path:?}");
        }
        let open = FlowWord::new(7, FLOW_TAKEN | FLOW_ANSWERED, seen);
        let is_before = |flow: FlowWord| expendable(word, 0, now, &IDLE) > expendable(flow, 0, now, &IDLE);
        assert_eq!(is_before(open), !self.confirmed && (self.reset || !self.answered), "{path:?}");
    }
}

const fn is_forged(event: Event) -> bool {
    matches!(event, Event::ForgedSyn | Event::ForgedAck | Event::ForgedFin | Event::ForgedReset | Event::NearReset)
}

/// Tries all sequences of up to [`DEPTH`] packets after a client's SYN. Sequences that lead to the same flow and the
/// same ends are continued once.
#[test]
fn when_both_ends_and_a_stranger_send_any_segments_then_the_flow_is_as_its_ends_are_and_the_stranger_changes_nothing() {
    let mut met = HashSet::new();
    let mut level = vec![(Life::opened_by(SYN), Ends::BEGIN, vec![])];
    for _ in 0..DEPTH {
        let mut next = Vec::new();
        for (life, ends, path) in level {
            for event in EVENTS {
                let Some((after, segment)) = ends.after(event) else { continue };
                let heard = life.after(segment);
                let path = [&path[..], &[event]].concat();
                // A SYN after a refusal is another attempt, whoever sends it.
                let attempts = event == Event::ForgedSyn && ends.reset && !ends.confirmed;
                if is_forged(event) && !attempts {
                    assert_eq!(heard.state, life.state, "{path:?}");
                    assert!(heard.numbers == life.numbers || !ends.answered, "{path:?}");
                }
                after.check(heard, &path);
                if met.insert((heard, after)) {
                    next.push((heard, after, path));
                }
            }
        }
        level = next;
    }
    assert!(cfg!(miri) || met.len() > 500, "{}", met.len());
}

fn open() -> (Life, Ends) {
    play((Life::opened_by(SYN), Ends::BEGIN), &[Event::Answer, Event::Ack])
}

fn play(begin: (Life, Ends), events: &[Event]) -> (Life, Ends) {
    events.iter().fold(begin, |(life, ends), &event| {
        let (ends, segment) = ends.after(event).expect("the ends send this");
        (life.after(segment), ends)
    })
}

#[test]
fn when_a_reset_has_the_last_acknowledged_number_then_it_counts() {
    let (life, ends) = play(open(), &[Event::BackendAck, Event::Data]);
    let before_data = ends.client.wrapping_sub(DATA);
    for sequence in [before_data, ends.client] {
        let reset = life.after(Segment { rst: true, sequence, ..CLIENTS });
        assert_eq!(reset.state & FLOW_RESET, FLOW_RESET);
        // The client sends no more; a segment that it sent before may still arrive.
        assert_eq!(reset.after(Segment { sequence, ..CLIENTS }), reset);
        assert_eq!(reset.after(Segment { acknowledgement: ends.client, ..BACKENDS }).state, life.state);
    }
    for sequence in [before_data.wrapping_sub(1), before_data.wrapping_add(1), ends.client.wrapping_add(1)] {
        assert_eq!(life.after(Segment { rst: true, sequence, ..CLIENTS }), life);
    }
}

#[test]
fn when_segments_are_lost_before_the_balancer_then_the_backends_acknowledgement_repairs_the_numbers() {
    let (life, ends) = open();
    // The segment with the client's bytes 0 to 6 arrives late.
    let second =
        Segment { sequence: ends.client.wrapping_add(DATA), length: DATA, acknowledgement: ends.backend, ..CLIENTS };
    let end = second.end();
    assert_eq!(life.after(second), life);
    let repaired = life.after(Segment { acknowledgement: end, ..BACKENDS });
    assert_eq!(repaired.numbers, Numbers { next: end, other: end });
    let ended = life.after(Segment { fin: true, ..second });
    assert_eq!((ended.state & FLOW_CLIENT_ENDS, ended.numbers.next), (FLOW_CLIENT_ENDS, end.wrapping_add(1)));
}

#[test]
fn when_a_flow_has_the_numbers_of_an_older_version_then_the_backends_segments_replace_them() {
    let (life, ends) = open();
    let strange = Numbers { next: ends.client.wrapping_add(FAR), other: ends.backend.wrapping_sub(FAR) };
    for numbers in [strange, Numbers { next: ends.client.wrapping_sub(FAR), ..strange }] {
        let acknowledges = Segment { acknowledgement: ends.client, ..BACKENDS };
        let open = Life { numbers, ..life }.after(acknowledges);
        assert_eq!(open.numbers.other, ends.client);
        let half_open = Life { state: FLOW_TAKEN | FLOW_ANSWERED, numbers };
        assert_eq!(half_open.after(acknowledges), half_open);
        assert_eq!(half_open.after(Segment { length: DATA, ..acknowledges }).state, life.state);
    }
}

#[test]
fn when_the_backend_answers_a_syn_on_an_open_flow_then_its_answer_shows_what_it_knows() {
    let (life, ends) = open();
    let again = Segment { syn: true, sequence: BACKEND, acknowledgement: ends.client, ..BACKENDS };
    assert_eq!(life.after(again), life, "the backend repeats its answer");
    let refuses = Segment { sequence: ends.backend, acknowledgement: ends.client, ..BACKENDS };
    assert_eq!(life.after(refuses).state, life.state);
    // The backend has been started anew.
    let anew = Segment { acknowledgement: ends.client.wrapping_add(FAR), sequence: 5, ..again };
    let numbers = Numbers { next: anew.acknowledgement, other: 6 };
    assert_eq!(life.after(anew), Life { state: FLOW_TAKEN | FLOW_ANSWERED, numbers });
}

#[test]
fn when_a_first_attempt_was_reset_then_the_second_continues_the_flow() {
    let events = [&[Event::BackendReset][..], &[Event::Answer, Event::Reset], &[Event::Syn, Event::BackendReset]];
    for events in events {
        let (refused, _) = play((Life::opened_by(SYN), Ends::BEGIN), events);
        let word = FlowWord::new(7, refused.state, 100);
        assert_eq!(word.phase(), Phase::Refused, "{events:?}");
        assert!(!word.has_ended(100, &IDLE) && word.gives_way(100, &IDLE) && !word.counts(100, &IDLE));
        let second = Segment { sequence: 77, ..SYN };
        assert_eq!(refused.after(second), Life { state: FLOW_TAKEN, numbers: Numbers { next: 78, other: 0 } });
    }
}

#[test]
fn when_a_client_asks_again_after_an_answer_then_its_flow_is_open() {
    let [ask, answer] = [true, false].map(|by_client| Segment { by_client, datagram: true, ..NONE });
    let after = |datagrams: &[Segment]| {
        let life = datagrams.iter().fold(Life::opened_by(ask), |life, &datagram| life.after(datagram));
        FlowWord::new(7, life.state, 100)
    };
    for (datagrams, phase, idle) in [
        (&[][..], Phase::HalfOpen, IDLE.half_open),
        (&[ask, ask, answer, answer], Phase::HalfOpen, IDLE.udp_once),
        (&[answer, ask], Phase::Open, IDLE.udp),
    ] {
        let word = after(datagrams);
        assert_eq!(word.phase(), phase, "{datagrams:?}");
        assert!(word.lives(100 + idle, &IDLE) && !word.lives(101 + idle, &IDLE), "{datagrams:?}");
        assert!(word.may_go(101 + idle, &IDLE), "datagrams leave no rest");
        assert!(word.begins_again(Numbers::default(), Numbers::default()));
    }
}

#[test]
fn when_a_syn_meets_time_wait_then_it_is_let_in_if_it_is_newer() {
    let closed = |other| Numbers { next: CLIENT, other };
    let opening = |sequence: u32, stamp| Segment { sequence, stamp, ..SYN }.opening();
    for (then, sequence, stamp, expected) in [
        (0, CLIENT.wrapping_add(1), 0, true),
        (0, CLIENT, 0, false),
        (0, CLIENT.wrapping_sub(1), 9, false),
        (9, CLIENT.wrapping_add(5), 0, true),
        (9, CLIENT.wrapping_sub(5), 10, true),
        (9, CLIENT.wrapping_add(5), 9, true),
        (9, CLIENT.wrapping_sub(5), 9, false),
        (9, CLIENT.wrapping_add(5), 8, false),
        (u32::MAX, CLIENT, 1, true),
    ] {
        let (closed, opening) = (closed(then), opening(sequence, stamp));
        assert_eq!(closed.lets_in(opening), expected, "{closed:?} {opening:?}");
        let waits = FLOW_TAKEN | FLOW_ANSWERED | FLOW_ESTABLISHED | ENDS;
        let word = |state| FlowWord::new(7, state, 100);
        assert_eq!(word(waits).lets_in(closed, opening), expected);
        assert_eq!(word(waits | FLOW_RESTS).lets_in(closed, opening), expected);
        assert_eq!(word(waits).begins_again(closed, opening), expected);
        assert!(word(waits & !FLOW_ESTABLISHED).begins_again(closed, opening), "nothing rests");
        assert!(word(waits & !ENDS | FLOW_RESET).begins_again(closed, opening), "nothing rests");
        for state in [waits & !ENDS, waits & !FLOW_BACKEND_ENDS, FLOW_TAKEN, waits | FLOW_RESTS] {
            assert!(!word(state).begins_again(closed, opening), "{state}");
        }
    }
}

#[test]
fn when_the_client_closes_last_then_the_time_stamp_of_its_fin_is_kept() {
    let (life, ends) = play(open(), &[Event::BackendFin]);
    let fin = Segment { fin: true, sequence: ends.client, acknowledgement: ends.backend, stamp: 17, ..CLIENTS };
    let closed = life.after(fin);
    assert_eq!(closed.numbers, Numbers { next: ends.client.wrapping_add(1), other: 17 });
    // The last acknowledgements change nothing.
    assert_eq!(closed.after(Segment { acknowledgement: closed.numbers.next, ..BACKENDS }), closed);
    assert_eq!(closed.after(Segment { sequence: closed.numbers.next, ..CLIENTS }), closed);
}
