//! The names of the fleet's keys in the store.
//!
//!
//! ```text
//! live/fleet                          the settings that all members share                  stays
//! live/leader                         the leader's card                                    the leader's lease
//! live/epoch                          the current state                                    stays
//! live/next                           the state that is being prepared                     stays
//! live/documents/EPOCH/PART           the state of an epoch                                stays
//! live/members/NAME                   what a member is doing                               the member's lease
//! live/records/NAME.PROCESS/NUMBER    clients that a member knows                          the member's lease
//! live/requests/NAME.PROCESS/NUMBER   a change request                                     the member's lease
//! live/parts/NAME.PROCESS/NUMBER      a change that is too large for its request, packed   the member's lease
//! live/answers/NAME.PROCESS/NUMBER    the outcome of it                                    the leader's lease
//! live/dumps/NAME                     where a joining member's dump is                     the dumping member's lease
//! bulk/dumps/NAME/PART                these clients                                        the dumping member's lease
//! bulk/tallies/NAME                   what a member has counted                            the member's lease
//! ```

/// The key of those settings that must be equal for all members.
pub const FLEET: &str = "live/fleet";
pub const LEADER: &str = "live/leader";
/// The key of the card that describes the current state.
pub const EPOCH: &str = "live/epoch";
/// The key of the card that describes the state in preparation.
pub const NEXT: &str = "live/next";
/// The prefix of the members' cards.
pub const MEMBERS: &str = "live/members/";
/// The prefix of batches of client records.
pub const RECORDS: &str = "live/records/";
/// The prefix of requests for changes.
pub const REQUESTS: &str = "live/requests/";
/// The prefix of changes that are too large for the key of their request.
pub const PARTS: &str = "live/parts/";
/// The prefix of the outcomes of requests for changes.
pub const ANSWERS: &str = "live/answers/";
/// The prefix of the keys that tell where members' dumps are.
pub const DUMPS: &str = "live/dumps/";
/// The prefix of the parts of states.
pub const DOCUMENTS: &str = "live/documents/";

/// The prefix of the counters that members report.
pub const TALLIES: &str = "bulk/tallies/";

/// The key of one part of a state. The keys sort in the order of the parts.
#[must_use]
pub fn document(name: &str, part: usize) -> String {
    format!("{DOCUMENTS}{name}/{part:04}")
}

/// The prefix of all parts of a state.
#[must_use]
pub fn documents(name: &str) -> String {
    format!("{DOCUMENTS}{name}/")
}

#[must_use]
pub fn member(name: &str) -> String {
    format!("{MEMBERS}{name}")
}

/// The key of a batch of client records from a member's process.
#[must_use]
pub fn records(asker: &str, number: u64) -> String {
    format!("{RECORDS}{asker}/{number:020}")
}

/// The name of a member's process in keys, which distinguishes the requests of different processes of the same member.
#[must_use]
pub fn asker(member: &str, instance: u64) -> String {
    format!("{member}.{instance:016x}")
}

#[must_use]
pub fn request(asker: &str, number: u64) -> String {
    format!("{REQUESTS}{asker}/{number:020}")
}

#[must_use]
pub fn answer(request: &str) -> String {
    format!("{ANSWERS}{}", request.strip_prefix(REQUESTS).unwrap_or(request))
}

/// The key of a change that is too large for the key of its request.
#[must_use]
pub fn part(request: &str) -> String {
    format!("{PARTS}{}", request.strip_prefix(REQUESTS).unwrap_or(request))
}

/// The key that tells where the dump of a member is.
#[must_use]
pub fn dump(member: &str) -> String {
    format!("{DUMPS}{member}")
}

/// The prefix of the parts of a member's dump.
#[must_use]
pub fn dump_parts(member: &str) -> String {
    format!("bulk/dumps/{member}/")
}

/// Returns the key of a member's counters.
#[must_use]
pub fn tally(member: &str) -> String {
    format!("{TALLIES}{member}")
}
