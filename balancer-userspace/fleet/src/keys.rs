//! The names of keys.
//!
//! ```text
//! live/fleet                      what all members must have in common         stays
//! live/leader                     who decides                                  the leader's lease
//! live/epoch                      the state that holds                         stays
//! live/next                       the state that is being prepared             stays
//! live/documents/EPOCH/PART       the state of an epoch                        stays
//! live/members/NAME               what a member is doing                       the member's lease
//! live/records/NAME.PROCESS/NUMBER    clients that a member knows              the member's lease
//! live/requests/NAME.PROCESS/NUMBER   a change that is asked for               the member's lease
//! live/parts/NAME.PROCESS/NUMBER      a change that is too large for its request, packed   the member's lease
//! live/answers/NAME.PROCESS/NUMBER    what has become of it                    the leader's lease
//! live/dumps/NAME                 where all clients are, for one that joins    the dumping member's lease
//! bulk/dumps/NAME/PART            these clients                                the dumping member's lease
//! bulk/tallies/NAME               what a member has counted                    the member's lease
//! ```

/// The settings that all members must have in common.
pub const FLEET: &str = "live/fleet";
/// The card of the leader.
pub const LEADER: &str = "live/leader";
/// The state that holds.
pub const EPOCH: &str = "live/epoch";
/// The state that is being prepared.
pub const NEXT: &str = "live/next";
/// Members' cards.
pub const MEMBERS: &str = "live/members/";
/// Batches of records.
pub const RECORDS: &str = "live/records/";
/// Changes that are asked for.
pub const REQUESTS: &str = "live/requests/";
/// Changes that are too large for their requests.
pub const PARTS: &str = "live/parts/";
/// Outcomes of requests for changes.
pub const ANSWERS: &str = "live/answers/";
/// Where dumps are.
pub const DUMPS: &str = "live/dumps/";
/// States.
pub const DOCUMENTS: &str = "live/documents/";

/// Counters of members, as they reported them.
pub const TALLIES: &str = "bulk/tallies/";

/// A part of a state. Parts sort in their order.
#[must_use]
pub fn document(name: &str, part: usize) -> String {
    format!("{DOCUMENTS}{name}/{part:04}")
}

/// All parts of a state.
#[must_use]
pub fn documents(name: &str) -> String {
    format!("{DOCUMENTS}{name}/")
}

/// A member's card.
#[must_use]
pub fn member(name: &str) -> String {
    format!("{MEMBERS}{name}")
}

/// A batch of records that a member's process tells.
#[must_use]
pub fn records(asker: &str, number: u64) -> String {
    format!("{RECORDS}{asker}/{number:020}")
}

/// One process of a member: what another one of the same name asks for is another's.
#[must_use]
pub fn asker(member: &str, instance: u64) -> String {
    format!("{member}.{instance:016x}")
}

/// A change that is asked for.
#[must_use]
pub fn request(asker: &str, number: u64) -> String {
    format!("{REQUESTS}{asker}/{number:020}")
}

/// The answer to a request, by its key.
#[must_use]
pub fn answer(request: &str) -> String {
    format!("{ANSWERS}{}", request.strip_prefix(REQUESTS).unwrap_or(request))
}

/// The change of a request that is too large for it, by the request's key.
#[must_use]
pub fn part(request: &str) -> String {
    format!("{PARTS}{}", request.strip_prefix(REQUESTS).unwrap_or(request))
}

/// Where the dump for a member is.
#[must_use]
pub fn dump(member: &str) -> String {
    format!("{DUMPS}{member}")
}

/// The parts of the dump for a member.
#[must_use]
pub fn dump_parts(member: &str) -> String {
    format!("bulk/dumps/{member}/")
}

/// Returns the key of a member's counters.
#[must_use]
pub fn tally(member: &str) -> String {
    format!("{TALLIES}{member}")
}
