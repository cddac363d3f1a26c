//! Builds small kernel programs, instruction by instruction (RFC 9669).

use std::{
    io,
    os::fd::{AsRawFd as _, BorrowedFd, OwnedFd},
};

use bytemuck::{Pod, Zeroable};

use balancer_testkit::xdp::{self, descriptor};

const BPF_MAP_CREATE: libc::c_long = 0;
const BPF_MAP_UPDATE_ELEM: libc::c_long = 2;
const BPF_MAP_TYPE_ARRAY: u32 = 2;
const BPF_MAP_TYPE_PROG_ARRAY: u32 = 3;
const BPF_MAP_TYPE_LRU_HASH: u32 = 9;
const BPF_F_XDP_HAS_FRAGS: u32 = 1 << 5;
const BPF_PSEUDO_MAP_FD: u8 = 1;
const BPF_FUNC_MAP_LOOKUP_ELEM: i32 = 1;
const BPF_FUNC_MAP_UPDATE_ELEM: i32 = 2;
const BPF_FUNC_TAIL_CALL: i32 = 12;
const BPF_FUNC_REDIRECT: i32 = 23;
const BPF_FUNC_XDP_ADJUST_HEAD: i32 = 44;

/// A register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Register {
    /// The register for results and temporary values.
    R0,
    /// The first argument; at entry, the context.
    R1,
    /// The second argument.
    R2,
    /// The third argument.
    R3,
    /// The fourth argument.
    R4,
    /// A register that calls preserve.
    R6 = 6,
    /// A register that calls preserve.
    R7,
    /// A register that calls preserve.
    R8,
    /// The end of the stack, read-only: programs store below it.
    R10 = 10,
}

/// The size of a memory access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Size {
    /// One.
    Byte = 0x10,
    /// Two.
    Half = 0x08,
    /// Four.
    Word = 0x00,
    /// Eight.
    Double = 0x18,
}

/// `struct bpf_insn`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct Instruction {
    code: u8,
    registers: u8,
    offset: i16,
    immediate: i32,
}

const fn instruction(code: u8, to: Register, from: Register, offset: i16, immediate: i32) -> Instruction {
    Instruction { code, registers: to as u8 | (from as u8) << 4, offset, immediate }
}

/// A program being written.
#[derive(Clone, Debug, Default)]
pub struct Program(Vec<Instruction>);

impl Program {
    fn with(mut self, instruction: Instruction) -> Self {
        self.0.push(instruction);
        self
    }

    /// `to = value`.
    #[must_use]
    pub fn set(self, to: Register, value: i32) -> Self {
        self.with(instruction(0xb7, to, Register::R0, 0, value))
    }

    /// `to = value`.
    #[must_use]
    pub fn set_double(self, to: Register, value: u64) -> Self {
        self.wide(to, 0, value)
    }

    fn wide(self, to: Register, kind: u8, value: u64) -> Self {
        let [low, high] = bytemuck::cast::<u64, [i32; 2]>(value.to_le());
        let first = Instruction { code: 0x18, registers: to as u8 | kind << 4, offset: 0, immediate: low };
        self.with(first).with(Instruction { code: 0, registers: 0, offset: 0, immediate: high })
    }

    /// `to = from`.
    #[must_use]
    pub fn copy(self, to: Register, from: Register) -> Self {
        self.with(instruction(0xbf, to, from, 0, 0))
    }

    /// `to += value`.
    #[must_use]
    pub fn add(self, to: Register, value: i32) -> Self {
        self.with(instruction(0x07, to, Register::R0, 0, value))
    }

    /// `to *= value`: `MUL`.
    #[must_use]
    pub fn multiply(self, to: Register, value: i32) -> Self {
        self.with(instruction(0x27, to, Register::R0, 0, value))
    }

    /// `to &= value`: `AND`.
    #[must_use]
    pub fn and(self, to: Register, value: i32) -> Self {
        self.with(instruction(0x57, to, Register::R0, 0, value))
    }

    /// `to >>= bits`, with zeros in front: `RSH`.
    #[must_use]
    pub fn shift_right(self, to: Register, bits: i32) -> Self {
        self.with(instruction(0x77, to, Register::R0, 0, bits))
    }

    /// `to |= from`.
    #[must_use]
    pub fn or(self, to: Register, from: Register) -> Self {
        self.with(instruction(0x4f, to, from, 0, 0))
    }

    /// `to <<= bits`.
    #[must_use]
    pub fn shift_left(self, to: Register, bits: i32) -> Self {
        self.with(instruction(0x67, to, Register::R0, 0, bits))
    }

    /// Turns the low four bytes of `to` between network and host order, and clears the others.
    #[must_use]
    pub fn swap_word(self, to: Register) -> Self {
        self.with(instruction(0xdc, to, Register::R0, 0, 32))
    }

    /// `to = *(from + offset)`.
    #[must_use]
    pub fn load(self, size: Size, to: Register, from: Register, offset: i16) -> Self {
        self.with(instruction(0x61 | size as u8, to, from, offset, 0))
    }

    /// `*(to + offset) = from`.
    #[must_use]
    pub fn store(self, size: Size, to: Register, offset: i16, from: Register) -> Self {
        self.with(instruction(0x63 | size as u8, to, from, offset, 0))
    }

    /// Skips `count` instructions if `left` ≤ `right`.
    #[must_use]
    pub fn skip_if_at_most(self, left: Register, right: Register, count: i16) -> Self {
        self.with(instruction(0xbd, left, right, count, 0))
    }

    /// Skips `count` instructions if the register is `value`: `JEQ`.
    #[must_use]
    pub fn skip_if(self, register: Register, value: i32, count: i16) -> Self {
        self.with(instruction(0x15, register, Register::R0, count, value))
    }

    /// Skips `count` instructions if the register is 0.
    #[must_use]
    pub fn skip_if_zero(self, register: Register, count: i16) -> Self {
        self.skip_if(register, 0, count)
    }

    /// Skips `count` instructions unless the register is `value`: `JNE`.
    #[must_use]
    pub fn skip_unless(self, register: Register, value: i32, count: i16) -> Self {
        self.with(instruction(0x55, register, Register::R0, count, value))
    }

    /// Executes `zero` if the register is 0, otherwise `other`, and then continues behind both: `JNE` and `JA`.
    #[must_use]
    pub fn branch(self, register: Register, zero: Self, other: Self) -> Self {
        let mut program = self.skip_unless(register, 0, zero.0.len() as i16 + 1);
        program.0.extend(zero.0);
        let mut program = program.with(instruction(0x05, Register::R0, Register::R0, other.0.len() as i16, 0));
        program.0.extend(other.0);
        program
    }

    /// Calls a helper function.
    fn call(self, function: i32) -> Self {
        self.with(instruction(0x85, Register::R0, Register::R0, 0, function))
    }

    /// Ends the program; R0 has the result.
    #[must_use]
    pub fn exit(self) -> Self {
        self.with(instruction(0x95, Register::R0, Register::R0, 0, 0))
    }

    /// Ends the program and sends the frame by an interface: `bpf_redirect`.
    #[must_use]
    pub fn redirect(self, ifindex: u32) -> Self {
        self.set(Register::R1, ifindex.cast_signed()).set(Register::R2, 0).call(BPF_FUNC_REDIRECT).exit()
    }

    /// Moves the start of the frame forward by `by` bytes; R6 has the context. Ends with 0, `XDP_ABORTED`, on failure.
    #[must_use]
    pub fn adjust_head(self, by: i32) -> Self {
        self.copy(Register::R1, Register::R6)
            .set(Register::R2, by)
            .call(BPF_FUNC_XDP_ADJUST_HEAD)
            .skip_if_zero(Register::R0, 2)
            .set(Register::R0, 0)
            .exit()
    }

    /// Sets R0 to the address of the value in `map` for the key at `key` on the stack, or to 0: `bpf_map_lookup_elem`.
    #[must_use]
    pub fn look_up(self, map: &Map, key: i16) -> Self {
        self.map_and_key(map, key).call(BPF_FUNC_MAP_LOOKUP_ELEM)
    }

    /// Writes the value at `value` on the stack to `map`, under the key at `key`: `bpf_map_update_elem`.
    #[must_use]
    pub fn update(self, map: &Map, key: i16, value: i16) -> Self {
        self.map_and_key(map, key)
            .copy(Register::R3, Register::R10)
            .add(Register::R3, value.into())
            .set(Register::R4, 0)
            .call(BPF_FUNC_MAP_UPDATE_ELEM)
    }

    fn map_and_key(self, map: &Map, key: i16) -> Self {
        self.map(Register::R1, map).copy(Register::R2, Register::R10).add(Register::R2, key.into())
    }

    fn map(self, to: Register, map: &Map) -> Self {
        self.wide(to, BPF_PSEUDO_MAP_FD, u64::from(map.descriptor.as_raw_fd().cast_unsigned()))
    }

    /// Continues with the first program of `array`; R6 has the context. Ends with 0, `XDP_ABORTED`, if there is none.
    #[must_use]
    pub fn continue_with(self, array: &ProgramArray) -> Self {
        self.copy(Register::R1, Register::R6)
            .map(Register::R2, &array.0)
            .set(Register::R3, 0)
            .call(BPF_FUNC_TAIL_CALL)
            .set(Register::R0, 0)
            .exit()
    }

    /// Loads the program as an XDP program that supports frames in several buffers.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn load_frags(&self) -> io::Result<OwnedFd> {
        self.load_with(BPF_F_XDP_HAS_FRAGS)
    }

    /// Loads the program as an XDP program.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn load_xdp(&self) -> io::Result<OwnedFd> {
        self.load_with(0)
    }

    fn load_with(&self, flags: u32) -> io::Result<OwnedFd> {
        xdp::load(bytemuck::cast_slice(&self.0), flags)
    }
}

/// A program of two instructions that returns `action`.
#[must_use]
pub fn constant(action: i32) -> Program {
    Program::default().set(Register::R0, action).exit()
}

/// A map. A loaded program keeps the maps that it uses.
#[derive(Debug)]
pub struct Map {
    descriptor: OwnedFd,
    value_size: u32,
}

impl Map {
    /// An array of `entries` values of `value` bytes each, all 0.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn array(value: u32, entries: u32) -> io::Result<Self> {
        Self::new(BPF_MAP_TYPE_ARRAY, 4, value, entries)
    }

    /// A hash table that evicts the least recently used entry when it is full.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn lru_hash(key: u32, value: u32, entries: u32) -> io::Result<Self> {
        Self::new(BPF_MAP_TYPE_LRU_HASH, key, value, entries)
    }

    fn new(map_type: u32, key_size: u32, value_size: u32, max_entries: u32) -> io::Result<Self> {
        let mut create = Create { map_type, key_size, value_size, max_entries, map_flags: 0 };
        // SAFETY: the attributes hold no pointers.
        let descriptor = descriptor(unsafe {
            libc::syscall(libc::SYS_bpf, BPF_MAP_CREATE, &raw mut create, size_of::<Create>() as libc::c_uint)
        })?;
        Ok(Self { descriptor, value_size })
    }

    /// Sets one value of an array.
    ///
    /// # Errors
    /// If the size of `value` differs from that of the array's values, or the kernel refuses, which it does beyond the
    /// array's end.
    pub fn set<V: Pod>(&self, index: u32, value: &V) -> io::Result<()> {
        if size_of::<V>() as u32 != self.value_size {
            let message = format!("a value of {} bytes, where the array's have {}", size_of::<V>(), self.value_size);
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        }
        let mut update = Update {
            map_fd: self.descriptor.as_raw_fd().cast_unsigned(),
            padding: 0,
            key: (&raw const index) as u64,
            value: std::ptr::from_ref(value) as u64,
            flags: 0,
        };
        // SAFETY: the attributes point to a key and a value of the map's sizes, which outlive the call.
        let result = unsafe {
            libc::syscall(libc::SYS_bpf, BPF_MAP_UPDATE_ELEM, &raw mut update, size_of::<Update>() as libc::c_uint)
        };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

/// A map with one program to continue with. It is empty for every program once this value is dropped.
#[derive(Debug)]
pub struct ProgramArray(Map);

impl ProgramArray {
    /// Creates the map with `program` in it.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn new(program: BorrowedFd<'_>) -> io::Result<Self> {
        let map = Map::new(BPF_MAP_TYPE_PROG_ARRAY, 4, 4, 1)?;
        map.set(0, &program.as_raw_fd())?;
        Ok(Self(map))
    }
}

/// The part of `union bpf_attr` that `BPF_MAP_CREATE` reads here.
#[repr(C)]
struct Create {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    map_flags: u32,
}

/// The part of `union bpf_attr` that `BPF_MAP_UPDATE_ELEM` reads.
#[repr(C)]
struct Update {
    map_fd: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}
