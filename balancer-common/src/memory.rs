//! The memory rule, which determines a packet's backend and the client's new record from the facts about the packet and
//! its client.

use crate::{
    client_table::{Entries, Entry, find, stale_after, victim},
    map_types::NO_BACKEND,
    query::Query,
    verdict::{CauseIndex, Decision, MoveCause},
};

const RULE: CauseIndex = CauseIndex(MoveCause::Rule as u8);
const FAILBACK: CauseIndex = CauseIndex(MoveCause::Failback as u8);

/// The facts about a packet that the client memory steers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Steering {
    /// The backend of the client's slot in the live table; `None`: no backend takes new clients.
    pub live: Option<u16>,
    /// Whether a rule names the backend: `live` is the backend of the rule, and every client of the rule goes to it.
    pub pinned: bool,
    /// Whether the backend in the live table equals the backend in the base table.
    pub live_is_home: bool,
    /// The client's entry, unless this entry has expired or names a backend of another service.
    pub entry: Option<Entry>,
    /// Whether the backend in the entry still keeps known clients.
    pub keeps_known: bool,
    /// The reason why the backend in the entry gives up known clients, if the backend gives them up.
    pub cause: CauseIndex,
    /// Whether the packet opens a connection.
    pub opens: bool,
    /// Whether the service has the setting `failback = "return"`.
    pub failback: bool,
    /// The current tick of the service.
    pub now: u16,
}

/// The backend for a packet, and the new state of the packet's client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Steered {
    /// The backend; `None`: no backend takes the client.
    pub backend: Option<u16>,
    /// How the backend was chosen, if the packet opens a connection.
    pub decision: Decision,
    /// The reason for the move, if the packet moves a known client.
    pub moved: Option<CauseIndex>,
    /// The entry to write, if this entry differs from the entry found. If no entry was found, the caller records a new
    /// client.
    pub entry: Option<Entry>,
}

/// The memory rule: a known client stays at its backend as long as the backend keeps known clients; every other client
/// goes to the backend in the live table.
#[inline(always)]
#[must_use]
pub const fn steer(packet: &Steering) -> Steered {
    if packet.pinned {
        return steer_pinned(packet);
    }
    let Some(entry) = packet.entry else {
        return Steered { backend: packet.live, decision: Decision::New, moved: None, entry: None };
    };
    let home = match packet.live {
        Some(live) => packet.failback && packet.opens && packet.live_is_home && entry.away() && live != entry.backend(),
        None => false,
    };
    if packet.keeps_known && !home {
        let kept = Some(entry.touched(packet.now));
        return Steered { backend: Some(entry.backend()), decision: Decision::Kept, moved: None, entry: kept };
    }
    let cause = if packet.keeps_known { FAILBACK } else { packet.cause };
    match packet.live {
        None => Steered { backend: None, decision: Decision::Kept, moved: None, entry: None },
        // The live table names this backend because no backend takes clients (an "open" table), so the client stays.
        Some(live) if live == entry.backend() => {
            let kept = Some(entry.touched(packet.now));
            Steered { backend: packet.live, decision: Decision::Kept, moved: None, entry: kept }
        }
        Some(live) => {
            let away = packet.keeps_known as u8 == 0 && !packet.live_is_home;
            let moved = Some(entry.moved(live, away, packet.now));
            Steered { backend: packet.live, decision: Decision::Moved, moved: Some(cause), entry: moved }
        }
    }
}

/// Steers a client that a rule pins to `packet.live`: the client goes to this backend, and the client's entry names
/// this backend afterwards.
#[inline(always)]
const fn steer_pinned(packet: &Steering) -> Steered {
    let pinned = Steered { backend: packet.live, decision: Decision::Pinned, moved: None, entry: None };
    match (packet.entry, packet.live) {
        (Some(entry), Some(live)) if live == entry.backend() => {
            Steered { entry: Some(entry.touched(packet.now)), ..pinned }
        }
        (Some(entry), Some(live)) => Steered {
            decision: Decision::Moved,
            moved: Some(RULE),
            entry: Some(entry.moved(live, false, packet.now)),
            ..pinned
        },
        (None, _) | (_, None) => pinned,
    }
}

/// The facts about a backend that the memory rule uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BackendFacts {
    pub service: u16,
    pub keeps_known: bool,
    /// The reason why the backend gives up known clients, if the backend gives them up.
    pub cause: CauseIndex,
}

/// The result of recording a new client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Recorded {
    /// The client was known already, so the program recorded nothing.
    Known,
    /// The client got an entry, and no other client lost its entry.
    Inserted,
    /// The client got an entry, and another client lost its entry.
    Evicted,
    /// The client got no entry: its bucket is full of established clients, or a client of another service has its tag.
    Full,
    /// The client got no entry: too many new clients came at once.
    Limited,
}

impl Recorded {
    /// The inverse of the cast `as u8`; [`Self::Known`] for a number that is no variant.
    #[inline(always)]
    #[must_use]
    pub const fn of_number(number: u8) -> Self {
        match number {
            1 => Self::Inserted,
            2 => Self::Evicted,
            3 => Self::Full,
            4 => Self::Limited,
            _ => Self::Known,
        }
    }
}

/// The answer to a [`Query`] to the client table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The backend; `None`: no backend takes the client.
    pub backend: Option<u16>,
    /// How the backend was chosen, if the packet opens a connection.
    pub decision: Option<Decision>,
    /// The backend that a known client leaves with this packet; [`NO_BACKEND`]: no client moves.
    pub moved_from: u16,
    /// The reason for the move.
    pub cause: CauseIndex,
    /// The result of recording a new client.
    pub recorded: Recorded,
    /// Whether the client's next packets in this period need not read its entry: the entry is up to date, and is either
    /// established or belongs to a client that sends datagrams, whose periods are short.
    pub settled: bool,
}

/// Steers one packet by the client memory, and updates the memory.
///
/// `backend` returns the facts about a backend; `may_record` says whether the program may record another new client
/// now.
#[inline(always)]
pub fn consult(
    bucket: &impl Entries,
    query: &Query,
    backend: impl Fn(u16) -> Option<BackendFacts>,
    may_record: impl FnOnce() -> bool,
) -> Answer {
    let record = |live| if may_record() { record(bucket, query, live, &backend) } else { Recorded::Limited };
    consult_with(bucket, query, &backend, || true, record)
}

/// Like [`consult`], but `newcomer` records at the given backend a client that has no entry in the client table.
/// `may_migrate` says whether the program may record a known client at another backend because the client has moved a
/// connection to a new address. A client that is established, or was seen in the last eighth of `remember`, stays at its
/// backend in any case: several clients may share an address, and anybody can send a copy of a connection's packet from
/// any address.
#[inline(always)]
pub fn consult_with(
    bucket: &impl Entries,
    query: &Query,
    backend: impl Fn(u16) -> Option<BackendFacts>,
    may_migrate: impl FnOnce() -> bool,
    newcomer: impl FnOnce(u16) -> Recorded,
) -> Answer {
    // The compiler would copy an `Option` that is `None` with undefined content, which the verifier rejects.
    let (index, old) = match find(bucket, query.tag()) {
        Some(found) => found,
        None => (0, Entry::EMPTY),
    };
    let mut entry = None;
    let mut own = false;
    let mut facts = BackendFacts { service: 0, keeps_known: false, cause: CauseIndex(0) };
    if !old.is_empty()
        && let Some(of) = backend(old.backend())
        && of.service == query.service
    {
        own = true;
        if old.age(query.now) <= query.remember {
            facts = of;
            entry = Some(old);
        }
    }
    let opens = query.opens
        || query.datagram
            && match entry {
                Some(entry) => entry.age(query.now) >= query.idle,
                // Without an entry, each datagram of the client would count as the client's first one.
                None => false,
            };
    let steered = steer(&Steering {
        live: query.live,
        live_is_home: query.live_is_home,
        pinned: query.pinned,
        entry,
        keeps_known: facts.keeps_known,
        cause: facts.cause,
        opens,
        failback: query.failback,
        now: query.now,
    });
    let is_silent = || !old.established() && old.age(query.now) > stale_after(query.remember);
    let steered = if query.migrates && steered.moved.is_some() && !(is_silent() && may_migrate()) {
        Steered { moved: None, entry: None, ..steered }
    } else {
        steered
    };
    let (moved_from, cause) = match steered.moved {
        Some(cause) => (old.backend(), cause),
        None => (NO_BACKEND, CauseIndex(0)),
    };
    let new = match steered.entry {
        Some(new) => new,
        None => Entry::EMPTY,
    };
    let known = !new.is_empty();
    let recorded = if known {
        if new != old {
            bucket.store(index, new);
        }
        Recorded::Known
    } else if let (None, Some(live)) = (entry, steered.backend) {
        if own {
            // The entry belongs to this client, but has expired.
            bucket.store(index, Entry::new(query.tag(), live, query.now));
            Recorded::Inserted
        } else if !old.is_empty() {
            // A client of another service has the same bucket and the same tag as this client, which is rare. This
            // service's clock cannot tell whether the other client's entry has expired, but the sweep can tell. Until
            // the sweep removes the other client's entry, the new client goes to the backend in the live table.
            Recorded::Full
        } else {
            newcomer(live)
        }
    } else {
        Recorded::Known
    };
    let first = query.datagram && matches!(recorded, Recorded::Inserted | Recorded::Evicted);
    let decision = if opens || first { Some(steered.decision) } else { None };
    let settled = new.established() || known && query.datagram;
    Answer { backend: steered.backend, decision, moved_from, cause, recorded, settled }
}

/// Records at the backend `live` a client that has no entry in the client table.
#[inline(always)]
pub fn record(
    bucket: &impl Entries,
    query: &Query,
    live: u16,
    backend: impl Fn(u16) -> Option<BackendFacts>,
) -> Recorded {
    let ours = |id| backend(id).is_some_and(|of| of.service == query.service);
    match victim(bucket, query.now, query.remember, ours) {
        None => Recorded::Full,
        Some((index, forgets)) => {
            bucket.store(index, Entry::new(query.tag(), live, query.now));
            if forgets { Recorded::Evicted } else { Recorded::Inserted }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client_table::{BUCKET_ENTRIES, tests::Cells};

    fn steering(entry: Option<Entry>) -> Steering {
        Steering {
            live: Some(5),
            live_is_home: true,
            pinned: false,
            entry,
            keeps_known: true,
            cause: MoveCause::Down.into(),
            opens: true,
            failback: false,
            now: 100,
        }
    }

    #[test]
    fn when_a_client_is_known_then_it_stays_wherever_the_table_points() {
        let entry = Entry::new(1, 9, 90);
        let steered = steer(&steering(Some(entry)));
        assert_eq!((steered.backend, steered.decision, steered.moved), (Some(9), Decision::Kept, None));
        assert_eq!(steered.entry, Some(entry.touched(100)));
        let nobody = Steering { live: None, ..steering(Some(entry)) };
        assert_eq!(steer(&nobody).backend, Some(9));
    }

    #[test]
    fn when_a_backend_gives_up_its_clients_then_they_move_with_the_cause() {
        for cause in [MoveCause::Down, MoveCause::Drain, MoveCause::Maint, MoveCause::Removed] {
            let packet = Steering {
                keeps_known: false,
                live_is_home: false,
                cause: cause.into(),
                opens: false,
                ..steering(Some(Entry::new(1, 9, 90)))
            };
            let steered = steer(&packet);
            assert_eq!(
                (steered.backend, steered.decision, steered.moved),
                (Some(5), Decision::Moved, Some(cause.into()))
            );
            let entry = steered.entry.expect("an entry");
            assert_eq!((entry.backend(), entry.away()), (5, true));
            // After the move, the client's entry names the new backend.
            let again = steer(&Steering { keeps_known: true, entry: Some(entry), ..packet });
            assert_eq!((again.backend, again.decision, again.moved), (Some(5), Decision::Kept, None));
        }
    }

    #[test]
    fn when_a_client_away_from_home_opens_a_connection_then_it_alone_returns() {
        let away = Entry::new(1, 9, 90).moved(9, true, 95);
        let back = Steering { failback: true, ..steering(Some(away)) };
        let steered = steer(&back);
        assert_eq!((steered.backend, steered.moved), (Some(5), Some(FAILBACK)));
        assert_eq!(steered.entry.map(Entry::away), Some(false));
        for stays in [
            Steering { failback: false, ..back },
            Steering { opens: false, ..back },
            Steering { live_is_home: false, ..back },
            Steering { entry: Some(Entry::new(1, 9, 90)), ..back },
        ] {
            assert_eq!((steer(&stays).backend, steer(&stays).moved), (Some(9), None), "{stays:?}");
        }
    }

    #[test]
    fn when_a_rule_pins_a_client_then_it_moves_once_and_stays_after_the_rule_ends() {
        let pinned = Steering { pinned: true, failback: true, ..steering(Some(Entry::new(1, 9, 90))) };
        for packet in [pinned, Steering { keeps_known: false, ..pinned }] {
            let first = steer(&packet);
            assert_eq!((first.backend, first.decision, first.moved), (Some(5), Decision::Moved, Some(RULE)));
            let again = steer(&Steering { entry: first.entry, ..packet });
            assert_eq!((again.backend, again.decision, again.moved), (Some(5), Decision::Pinned, None));
            let over = Steering { pinned: false, live: Some(7), keeps_known: true, entry: again.entry, ..packet };
            assert_eq!((steer(&over).backend, steer(&over).decision), (Some(5), Decision::Kept), "and is not away");
        }
        let newcomer = steer(&Steering { entry: None, ..pinned });
        assert_eq!((newcomer.backend, newcomer.decision, newcomer.moved), (Some(5), Decision::Pinned, None));
    }

    #[test]
    fn when_a_client_is_already_at_its_destination_then_no_move_is_counted() {
        let packet = Steering { keeps_known: false, live: Some(9), ..steering(Some(Entry::new(1, 9, 90))) };
        assert_eq!((steer(&packet).backend, steer(&packet).moved), (Some(9), None));
    }

    #[test]
    fn when_a_client_is_new_then_it_follows_the_table() {
        let steered = steer(&steering(None));
        assert_eq!((steered.backend, steered.decision, steered.entry), (Some(5), Decision::New, None));
    }

    const QUERY: Query = Query {
        hash: 77 << 32,
        service: 1,
        live: Some(5),
        live_is_home: true,
        pinned: false,
        migrates: false,
        opens: true,
        datagram: false,
        failback: false,
        peeks: false,
        marks: false,
        now: 1000,
        remember: 500,
        idle: 30,
    };

    fn serving(_: u16) -> Option<BackendFacts> {
        Some(BackendFacts { service: 1, keeps_known: true, cause: MoveCause::Down.into() })
    }

    #[test]
    fn when_a_client_is_new_then_it_is_recorded_and_kept() {
        let bucket = Cells::of([0; BUCKET_ENTRIES]);
        let first = consult(&bucket, &QUERY, serving, || true);
        assert_eq!((first.backend, first.decision), (Some(5), Some(Decision::New)));
        assert_eq!(first.recorded, Recorded::Inserted);
        let moved_table = Query { live: Some(6), now: 1100, ..QUERY };
        let second = consult(&bucket, &moved_table, serving, || panic!("known already"));
        assert_eq!(
            (second.backend, second.decision, second.recorded),
            (Some(5), Some(Decision::Kept), Recorded::Known)
        );
        assert!(find(&bucket, 77).expect("an entry").1.established());
        let later = Query { now: 1601, ..moved_table };
        let third = consult(&bucket, &later, serving, || panic!("it has its own entry"));
        assert_eq!((third.backend, third.decision), (Some(6), Some(Decision::New)), "forgotten after 500 ticks");
    }

    #[test]
    fn when_an_entry_names_another_services_backend_then_the_client_is_unknown() {
        let bucket = Cells::of([0; BUCKET_ENTRIES]);
        bucket.store(0, Entry::new(77, 9, 1000));
        let other = |_| Some(BackendFacts { service: 2, keeps_known: true, cause: MoveCause::Down.into() });
        assert_eq!(consult(&bucket, &QUERY, other, || true).decision, Some(Decision::New));
    }

    #[test]
    fn when_another_services_client_has_the_same_tag_then_its_entry_stays() {
        let of = |id| Some(BackendFacts { service: id, keeps_known: true, cause: MoveCause::Down.into() });
        // By the clock of the new client's service, the first entry is still valid and the second entry has expired.
        for seen in [990, 10] {
            let bucket = Cells::of([0; BUCKET_ENTRIES]);
            let theirs = Entry::new(77, 2, seen).touched(seen + 5);
            bucket.store(3, theirs);
            let answer = consult(&bucket, &Query { live: Some(1), ..QUERY }, of, || true);
            assert_eq!((answer.backend, answer.decision), (Some(1), Some(Decision::New)));
            assert_eq!((answer.recorded, answer.settled), (Recorded::Full, false));
            assert_eq!(bucket.load(3), theirs);
        }
    }

    #[test]
    fn when_a_flood_fills_a_bucket_then_established_clients_stay() {
        let bucket = Cells::of(core::array::from_fn(|i| Entry::new(i as u32, 3, 900).touched(970).0));
        let before: Vec<_> = (0..BUCKET_ENTRIES).map(|i| bucket.load(i)).collect();
        for tag in 1000..2000 {
            let answer = consult(&bucket, &Query { hash: tag << 32, ..QUERY }, serving, || true);
            assert_eq!((answer.backend, answer.recorded), (Some(5), Recorded::Full));
        }
        assert_eq!(before, (0..BUCKET_ENTRIES).map(|i| bucket.load(i)).collect::<Vec<_>>());
        let limited = consult(&bucket, &Query { hash: 5000 << 32, ..QUERY }, serving, || false);
        assert_eq!((limited.backend, limited.recorded), (Some(5), Recorded::Limited));
    }

    #[test]
    fn when_established_clients_have_not_been_seen_for_an_eighth_then_newcomers_take_the_oldest_places() {
        let bucket = Cells::of(core::array::from_fn(|i| Entry::new(i as u32, 3, 700).touched(800 + i as u16).0));
        for tag in 1000..1008 {
            let answer = consult(&bucket, &Query { hash: tag << 32, ..QUERY }, serving, || true);
            assert_eq!((answer.backend, answer.recorded), (Some(5), Recorded::Evicted));
            let place = tag as usize - 1000;
            assert_eq!(bucket.load(place).tag(), tag as u32, "the oldest first");
        }
    }

    #[test]
    fn when_a_newcomers_clock_is_faster_then_established_clients_of_another_service_stay() {
        // The established clients were seen in tick 10 of a service that remembers for days; the clock of the new
        // client's service is at 1000, and this service forgets clients after 500 ticks.
        let of = |id| Some(BackendFacts { service: id, keeps_known: true, cause: MoveCause::Down.into() });
        let query = Query { live: Some(1), ..QUERY };
        let bucket = Cells::of(core::array::from_fn(|i| Entry::new(i as u32, 2, 5).touched(10).0));
        assert_eq!(consult(&bucket, &query, of, || true).recorded, Recorded::Full);
        bucket.store(6, Entry::new(6, 1, 5).touched(10));
        assert_eq!(consult(&bucket, &query, of, || true).recorded, Recorded::Inserted, "in the place of its own");
        assert_eq!(bucket.load(6), Entry::new(77, 1, 1000));
    }

    #[test]
    fn when_datagrams_pause_then_the_next_one_decides_again() {
        let bucket = Cells::of([0; BUCKET_ENTRIES]);
        let decisions = [1000, 1001, 1020, 1049, 1079, 1080].map(|now| {
            consult(&bucket, &Query { opens: false, datagram: true, now, ..QUERY }, serving, || true).decision
        });
        let kept = Some(Decision::Kept);
        assert_eq!(decisions, [Some(Decision::New), None, None, None, kept, None]);
    }

    #[test]
    fn when_a_client_of_datagrams_cannot_be_recorded_then_the_first_that_is_recorded_decides() {
        let bucket = Cells::of([0; BUCKET_ENTRIES]);
        let decisions = [false, false, true, true].map(|may_record| {
            consult(&bucket, &Query { opens: false, datagram: true, ..QUERY }, serving, || may_record).decision
        });
        assert_eq!(decisions, [None, None, Some(Decision::New), None]);
        let full = Cells::of(core::array::from_fn(|i| Entry::new(i as u32, 3, 900).touched(970).0));
        let answer = consult(&full, &Query { opens: false, datagram: true, ..QUERY }, serving, || true);
        assert_eq!((answer.backend, answer.decision, answer.recorded), (Some(5), None, Recorded::Full));
        // A segment that opens a connection is counted even if its client is not recorded.
        assert_eq!(consult(&full, &QUERY, serving, || true).decision, Some(Decision::New));
    }

    /// A datagram whose connection ID names backend 5.
    const BROUGHT: Query =
        Query { live_is_home: false, pinned: true, migrates: true, opens: false, marks: true, ..QUERY };

    #[test]
    fn when_a_connection_comes_to_an_address_that_is_known_elsewhere_then_the_address_moves_only_after_silence() {
        // A client is not silent for an eighth of `remember` (62 ticks) before 78 ticks: the program may record its
        // packets up to a refresh period (15 ticks) late.
        for (age, is_silent) in [(0, false), (1, false), (62, false), (78, false), (79, true), (500, true)] {
            let [new, established] = [Entry::new(77, 9, 1000 - age), Entry::new(77, 9, 400).touched(1000 - age)];
            for (entry, moves) in [(new, is_silent), (established, false)] {
                let bucket = Cells::of([0; BUCKET_ENTRIES]);
                bucket.store(0, entry);
                let answer = consult(&bucket, &BROUGHT, serving, || true);
                assert_eq!((answer.moved_from == 9, answer.settled), (moves, moves), "{age}");
                // A datagram that teaches nothing must not keep the address from becoming silent.
                let expected = if moves { entry.moved(5, false, 1000) } else { entry };
                assert_eq!(bucket.load(0), expected, "{age}");
            }
        }
    }

    #[test]
    fn when_two_connections_share_an_address_then_it_stays_with_the_first_even_after_silence() {
        let bucket = Cells::of([0; BUCKET_ENTRIES]);
        let other = Query { live: Some(9), ..BROUGHT };
        assert_eq!(consult(&bucket, &BROUGHT, serving, || true).recorded, Recorded::Inserted);
        let moves = |now| [other, BROUGHT].map(|query| consult(&bucket, &Query { now, ..query }, serving, || true));
        let moved = (1000..1040).flat_map(moves).filter(|answer| answer.moved_from != NO_BACKEND).count();
        assert_eq!(moved, 0);
        let later = Query { now: 1040 + stale_after(QUERY.remember), ..other };
        assert_eq!(consult(&bucket, &later, serving, || true).moved_from, NO_BACKEND, "after silence");
    }

    #[test]
    fn when_two_phones_share_an_office_address_then_their_connections_do_not_move_the_office() {
        // The office opens TCP connections, and each phone has a QUIC connection at a server of its own, 5 and 7.
        let bucket = Cells::of([0; BUCKET_ENTRIES]);
        let opens = |now| consult(&bucket, &Query { live: Some(9), now, ..QUERY }, serving, || true);
        let phone = |live, now| consult(&bucket, &Query { live: Some(live), now, ..BROUGHT }, serving, || true);
        assert_eq!(opens(1000).backend, Some(9));
        for now in 1001..1041 {
            // Each datagram goes to the server that its connection ID names.
            let answers = [phone(5, now), phone(7, now)];
            assert_eq!(
                answers.map(|answer| (answer.backend, answer.moved_from)),
                [(Some(5), NO_BACKEND), (Some(7), NO_BACKEND)]
            );
            assert_eq!((opens(now).backend, opens(now).decision), (Some(9), Some(Decision::Kept)));
        }
        // The office makes a pause, and the phones go on.
        for now in (1041..1400).step_by(10) {
            assert_eq!([phone(5, now), phone(7, now)].map(|answer| answer.moved_from), [NO_BACKEND; 2], "{now}");
        }
        assert_eq!(opens(1400).backend, Some(9));
    }

    #[test]
    fn when_one_datagram_is_replayed_from_each_address_then_no_known_client_moves() {
        for pause in [0, 1, 78, 79, 400] {
            let bucket = Cells::of([0; BUCKET_ENTRIES]);
            let at = |now| Query { live: Some(9), now, ..QUERY };
            // A client with a connection has sent packets in two ticks.
            consult(&bucket, &at(900), serving, || true);
            consult(&bucket, &at(901), serving, || true);
            let now = 901 + pause;
            let forged = consult(&bucket, &Query { now, ..BROUGHT }, serving, || true);
            assert_eq!((forged.backend, forged.moved_from), (Some(5), NO_BACKEND), "{pause}");
            assert_eq!(consult(&bucket, &at(now), serving, || true).backend, Some(9), "{pause}");
        }
    }

    #[test]
    fn when_a_client_moves_then_the_move_is_counted_once_whatever_packet_causes_it() {
        let bucket = Cells::of([0; BUCKET_ENTRIES]);
        bucket.store(0, Entry::new(77, 9, 1000));
        let gone = |id| Some(BackendFacts { service: 1, keeps_known: id != 9, cause: MoveCause::Drain.into() });
        let segment = Query { opens: false, ..QUERY };
        let first = consult(&bucket, &segment, gone, || true);
        assert_eq!((first.backend, first.decision), (Some(5), None));
        assert_eq!((first.moved_from, first.cause), (9, MoveCause::Drain.into()));
        let second = consult(&bucket, &QUERY, gone, || true);
        assert_eq!((second.backend, second.decision, second.moved_from), (Some(5), Some(Decision::Kept), NO_BACKEND));
    }
}
