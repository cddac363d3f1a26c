//! Small programs that do the minimal work of all or most load balancers. The benchmark compares the costs of paths
//! with the costs of the small programs, because the machine affects paths and small programs in the same way.

use std::{io, os::fd::OwnedFd};

use anyhow::{Context as _, Result};
use balancer_bench::asm::{Map, Program, Register, Size};

use crate::{
    XDP_TX,
    paths::{self, Path},
};

const XDP_PASS: i32 = 2;

const CONTEXT: Register = Register::R6;
const FRAME: Register = Register::R7;
const END: Register = Register::R8;

/// The length of the headers of Ethernet, IPv4 without options, and TCP, in bytes.
const HEADERS: i32 = 54;
const ETHER_TYPE: i16 = 12;
const VERSION_AND_LENGTH: i16 = 14;
const FRAGMENT: i16 = 20;
const PROTOCOL: i16 = 23;
const SOURCE: i16 = 26;
const PORTS: i16 = 34;
const TCP: i32 = 6;

/// The number of rows in the array that yardsticks look up by client.
const SLOTS: u32 = 1 << 16;
/// The number of backends behind the hash table.
const BACKENDS: u32 = 256;
/// The size of the hash table of connections.
const CONNECTIONS: u32 = 1 << 20;
/// The stack offset of the hash table's key, which consists of addresses, ports and protocol.
const KEY: i16 = -16;
/// The stack offset of the number of a slot or backend.
const NUMBER: i16 = -20;

/// The first bytes of the destination MAC addresses that yardsticks write.
pub(crate) const WRITTEN: [u8; 4] = [2, 0, 0, 1];

/// A program that the benchmark measures together with the paths.
pub(crate) struct Yardstick {
    /// The path of the packets that the yardstick handles.
    pub(crate) path: Path,
    /// The path whose packets the yardstick handles once before the benchmark measures it.
    pub(crate) before: Option<Path>,
    pub(crate) program: OwnedFd,
    /// Whether the yardstick writes MAC addresses.
    pub(crate) writes: bool,
}

/// The name of the yardstick that only parses a segment.
const PARSE: &str = "parse";
/// The name of the yardstick that steers by an array.
const ARRAYS: &str = "arrays";
/// The name of the yardstick that steers by an array, for a million clients.
const ARRAYS_OF_MANY: &str = "arrays, 1M clients";
/// The name of the yardstick that steers by the kernel's LRU hash. The report compares paths with this yardstick
/// because the yardstick takes about as long as a path. The yardstick also computes a hash and looks up a cached entry.
/// The yardsticks above this one take a few ns, which is a tenth of the time that the benchmark subtracts. With a
/// million clients, this yardstick waits for memory, and the yardstick's time varies between 120 and 180 ns without any
/// change.
pub(crate) const LRU_HASH: &str = "LRU_HASH";
/// The name of the yardstick that steers by the kernel's LRU hash, for a million clients.
const LRU_HASH_OF_MANY: &str = "LRU_HASH, 1M clients";
/// The name of the yardstick that steers by the kernel's LRU hash, for a million clients in another order than that of
/// their first packets. Entries of clients that come one after another lie next to each other in memory, so the clients
/// of [`LRU_HASH_OF_MANY`] cost less than those of a real service.
const LRU_HASH_OUT_OF_ORDER: &str = "LRU_HASH, 1M clients, out of order";

/// Returns all yardsticks, in the order of the report.
pub(crate) fn all() -> Result<Vec<Yardstick>> {
    let one = |name, program: io::Result<OwnedFd>, writes| yardstick(paths::of_one_client(name), program, writes);
    let many = |name, program: io::Result<OwnedFd>| yardstick(paths::of_a_million_clients(name), program, true);
    Ok(vec![
        one(PARSE, parse_only(), false)?,
        one(ARRAYS, floor_by_arrays(), true)?,
        many(ARRAYS_OF_MANY, floor_by_arrays())?,
        one(LRU_HASH, hash_and_lru_hash(), true)?,
        many(LRU_HASH_OF_MANY, hash_and_lru_hash())?,
        Yardstick {
            before: Some(paths::of_a_million_clients(LRU_HASH_OUT_OF_ORDER)),
            ..yardstick(paths::of_a_million_clients_out_of_order(LRU_HASH_OUT_OF_ORDER), hash_and_lru_hash(), true)?
        },
    ])
}

fn yardstick(path: Path, program: io::Result<OwnedFd>, writes: bool) -> Result<Yardstick> {
    let program = program.with_context(|| format!("the yardstick {}", path.name))?;
    Ok(Yardstick { path, before: None, program, writes })
}

/// Builds a program that parses a complete TCP segment over IPv4, and sends the segment back unchanged: the minimal
/// work of programs that read TCP.
fn parse_only() -> io::Result<OwnedFd> {
    parsed().set(Register::R0, XDP_TX).exit().load_frags()
}

/// Builds a program that parses a segment, multiplies the source address, and writes the MAC addresses in the array row
/// of the product. Steering by the client's address needs at least this work.
pub(crate) fn floor_by_arrays() -> io::Result<OwnedFd> {
    let slots = rows(SLOTS)?;
    sent(slot(parsed(), SLOTS).store(Size::Word, Register::R10, NUMBER, Register::R1), &slots).load_frags()
}

/// Builds a program that parses a segment, and looks up the segment's connection by addresses, ports and protocol in
/// the kernel's LRU hash. The program records unknown connections in the hash, and then writes the MAC addresses in the
/// array row of the backend, like most load balancers in XDP.
fn hash_and_lru_hash() -> io::Result<OwnedFd> {
    let (connections, backends) = (Map::lru_hash(16, 4, CONNECTIONS)?, rows(BACKENDS)?);
    let keyed = parsed()
        .load(Size::Double, Register::R1, FRAME, SOURCE)
        .store(Size::Double, Register::R10, KEY, Register::R1)
        .load(Size::Word, Register::R1, FRAME, PORTS)
        .store(Size::Word, Register::R10, KEY + 8, Register::R1)
        .set(Register::R1, TCP)
        .store(Size::Word, Register::R10, KEY + 12, Register::R1);
    let recorded = slot(Program::default(), BACKENDS).store(Size::Word, Register::R10, NUMBER, Register::R1).update(
        &connections,
        KEY,
        NUMBER,
    );
    let known = Program::default().load(Size::Word, Register::R1, Register::R0, 0).store(
        Size::Word,
        Register::R10,
        NUMBER,
        Register::R1,
    );
    sent(keyed.look_up(&connections, KEY).branch(Register::R0, recorded, known), &backends).load_frags()
}

/// Builds a program that passes all packets except complete TCP segments over IPv4 without options.
fn parsed() -> Program {
    let program = Program::default()
        .copy(CONTEXT, Register::R1)
        .load(Size::Word, FRAME, CONTEXT, 0)
        .load(Size::Word, END, CONTEXT, 4)
        .copy(Register::R1, FRAME)
        .add(Register::R1, HEADERS)
        .skip_if_at_most(Register::R1, END, 2)
        .set(Register::R0, XDP_PASS)
        .exit();
    let ipv4 = u16::from_ne_bytes([0x08, 0x00]);
    let program = unless(program.load(Size::Half, Register::R1, FRAME, ETHER_TYPE), ipv4.into());
    let program = unless(program.load(Size::Byte, Register::R1, FRAME, VERSION_AND_LENGTH), 0x45);
    let program = program.load(Size::Half, Register::R1, FRAME, FRAGMENT);
    // The mask covers the bit "more fragments" and the fragment offset.
    let program = unless(program.and(Register::R1, u16::from_ne_bytes([0x3f, 0xff]).into()), 0);
    unless(program.load(Size::Byte, Register::R1, FRAME, PROTOCOL), TCP)
}

/// Makes the program pass the packet unless R1 is `value`.
fn unless(program: Program, value: i32) -> Program {
    program.skip_if(Register::R1, value, 2).set(Register::R0, XDP_PASS).exit()
}

/// Makes the program derive a number below `count` from the source address, and store the number in R1. `count` must be
/// a power of two, because a mask limits the number.
fn slot(program: Program, count: u32) -> Program {
    program
        .load(Size::Word, Register::R1, FRAME, SOURCE)
        // The factor is 2^32 minus (2^32 divided by the golden ratio), in 31 bits.
        .multiply(Register::R1, 0x61c8_8647)
        // The upper bits of the product depend on the last byte of the address in network order, which is the highest
        // byte of the register.
        .shift_right(Register::R1, 24)
        .and(Register::R1, (count - 1).cast_signed())
}

/// Makes the program write the MAC addresses of the row whose number is on the stack, and send the frame back.
fn sent(program: Program, rows: &Map) -> Program {
    program
        .look_up(rows, NUMBER)
        .skip_unless(Register::R0, 0, 2)
        .set(Register::R0, XDP_PASS)
        .exit()
        .load(Size::Double, Register::R1, Register::R0, 0)
        .store(Size::Double, FRAME, 0, Register::R1)
        .load(Size::Word, Register::R1, Register::R0, 8)
        .store(Size::Word, FRAME, 8, Register::R1)
        .set(Register::R0, XDP_TX)
        .exit()
}

/// Creates rows of two MAC addresses, padded so that the row size divides a cache line.
fn rows(count: u32) -> io::Result<Map> {
    let rows = Map::array(16, count)?;
    for number in 0..count {
        let [high, low] = (number as u16).to_be_bytes();
        let [a, b, c, d] = WRITTEN;
        rows.set(number, &[a, b, c, d, high, low, 2, 0, 0, 0, 0, 1, 0, 0, 0, 0])?;
    }
    Ok(rows)
}
