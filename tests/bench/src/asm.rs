//! Builds small kernel programs, one instruction at a time (RFC 9669).

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

/// A register of the BPF machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Register {
    /// The register for return values and temporary values.
    R0,
    /// The register with the first argument of a call, and with the context when the program starts.
    R1,
    /// The register with the second argument of a call.
    R2,
    /// The register with the third argument of a call.
    R3,
    /// The register with the fourth argument of a call.
    R4,
    /// A register whose value calls preserve.
    R6 = 6,
    /// A register whose value calls preserve.
    R7,
    /// A register whose value calls preserve.
    R8,
    /// The end of the stack, in a read-only register: programs store values below this address.
    R10 = 10,
}

/// The size of a memory access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Size {
    /// One byte, or 8 bits.
    Byte = 0x10,
    /// Two bytes, or 16 bits.
    Half = 0x08,
    /// Four bytes, or 32 bits.
    Word = 0x00,
    /// Eight bytes, or 64 bits.
    Double = 0x18,
}

/// The kernel's `struct bpf_insn`.
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

/// A program that tests and benchmarks assemble.
#[derive(Clone, Debug, Default)]
pub struct Program(Vec<Instruction>);

impl Program {
    fn with(mut self, instruction: Instruction) -> Self {
        self.0.push(instruction);
        self
    }

    /// Sets `to` to `value`.
    #[must_use]
    pub fn set(self, to: Register, value: i32) -> Self {
        self.with(instruction(0xb7, to, Register::R0, 0, value))
    }

    /// Sets `to` to a 64-bit `value`.
    #[must_use]
    pub fn set_double(self, to: Register, value: u64) -> Self {
        self.wide(to, 0, value)
    }

    fn wide(self, to: Register, kind: u8, value: u64) -> Self {
        let [low, high] = bytemuck::cast::<u64, [i32; 2]>(value.to_le());
        let first = Instruction { code: 0x18, registers: to as u8 | kind << 4, offset: 0, immediate: low };
        self.with(first).with(Instruction { code: 0, registers: 0, offset: 0, immediate: high })
    }

    /// Copies `from` to `to`.
    #[must_use]
    pub fn copy(self, to: Register, from: Register) -> Self {
        self.with(instruction(0xbf, to, from, 0, 0))
    }

    /// Adds `value` to `to`.
    #[must_use]
    pub fn add(self, to: Register, value: i32) -> Self {
        self.with(instruction(0x07, to, Register::R0, 0, value))
    }

    /// Multiplies `to` by `value`: `MUL`.
    #[must_use]
    pub fn multiply(self, to: Register, value: i32) -> Self {
        self.with(instruction(0x27, to, Register::R0, 0, value))
    }

    /// Replaces `to` by the bitwise and of `to` and `value`: `AND`.
    #[must_use]
    pub fn and(self, to: Register, value: i32) -> Self {
        self.with(instruction(0x57, to, Register::R0, 0, value))
    }

    /// Shifts `to` right by `bits`, and fills the upper bits with zeros: `RSH`.
    #[must_use]
    pub fn shift_right(self, to: Register, bits: i32) -> Self {
        self.with(instruction(0x77, to, Register::R0, 0, bits))
    }

    /// Replaces `to` by the bitwise or of `to` and `from`.
    #[must_use]
    pub fn or(self, to: Register, from: Register) -> Self {
        self.with(instruction(0x4f, to, from, 0, 0))
    }

    /// Shifts `to` left by `bits`.
    #[must_use]
    pub fn shift_left(self, to: Register, bits: i32) -> Self {
        self.with(instruction(0x67, to, Register::R0, 0, bits))
    }

    /// Reverses the byte order of the low four bytes of `to` between network and host order, and clears the upper four
    /// bytes.
    #[must_use]
    pub fn swap_word(self, to: Register) -> Self {
        self.with(instruction(0xdc, to, Register::R0, 0, 32))
    }

    /// Loads a value from memory: `to = *(from + offset)`.
    #[must_use]
    pub fn load(self, size: Size, to: Register, from: Register, offset: i16) -> Self {
        self.with(instruction(0x61 | size as u8, to, from, offset, 0))
    }

    /// Stores a value in memory: `*(to + offset) = from`.
    #[must_use]
    pub fn store(self, size: Size, to: Register, offset: i16, from: Register) -> Self {
        self.with(instruction(0x63 | size as u8, to, from, offset, 0))
    }

    /// Skips `count` instructions if `left` is at most `right`.
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

    /// Executes `zero` if the register is 0, otherwise `other`; after either sequence, the program continues with the
    /// next instruction (`JNE` and `JA`).
    #[must_use]
    pub fn branch(self, register: Register, zero: Self, other: Self) -> Self {
        let mut program = self.skip_unless(register, 0, zero.0.len() as i16 + 1);
        program.0.extend(zero.0);
        let mut program = program.with(instruction(0x05, Register::R0, Register::R0, other.0.len() as i16, 0));
        program.0.extend(other.0);
        program
    }

    /// Calls the helper function with the number `function`.
    fn call(self, function: i32) -> Self {
        self.with(instruction(0x85, Register::R0, Register::R0, 0, function))
    }

    /// Ends the program with the value of R0 as its result.
    #[must_use]
    pub fn exit(self) -> Self {
        self.with(instruction(0x95, Register::R0, Register::R0, 0, 0))
    }

    /// Ends the program and sends the frame out of an interface: `bpf_redirect`.
    #[must_use]
    pub fn redirect(self, ifindex: u32) -> Self {
        self.set(Register::R1, ifindex.cast_signed()).set(Register::R2, 0).call(BPF_FUNC_REDIRECT).exit()
    }

    /// Moves the start of the frame forward by `by` bytes. R6 must contain the program's context. On failure, the
    /// program ends with 0, `XDP_ABORTED`.
    #[must_use]
    pub fn adjust_head(self, by: i32) -> Self {
        self.copy(Register::R1, Register::R6)
            .set(Register::R2, by)
            .call(BPF_FUNC_XDP_ADJUST_HEAD)
            .skip_if_zero(Register::R0, 2)
            .set(Register::R0, 0)
            .exit()
    }

    /// Looks up the key at stack offset `key` in `map`: `bpf_map_lookup_elem`. The program sets R0 to the address of
    /// the value, or to 0 if the map does not contain the key.
    #[must_use]
    pub fn look_up(self, map: &Map, key: i16) -> Self {
        self.map_and_key(map, key).call(BPF_FUNC_MAP_LOOKUP_ELEM)
    }

    /// Stores the value at stack offset `value` in `map` under the key at stack offset `key`: `bpf_map_update_elem`.
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

    /// Continues with the first program of `array` by a tail call. R6 must contain the program's context. If `array`
    /// has no first program, the assembled program ends with 0, `XDP_ABORTED`.
    #[must_use]
    pub fn continue_with(self, array: &ProgramArray) -> Self {
        self.copy(Register::R1, Register::R6)
            .map(Register::R2, &array.0)
            .set(Register::R3, 0)
            .call(BPF_FUNC_TAIL_CALL)
            .set(Register::R0, 0)
            .exit()
    }

    /// Loads the program as an XDP program that supports frames with multiple buffers.
    ///
    /// # Errors
    /// Fails if the kernel returns an error.
    pub fn load_frags(&self) -> io::Result<OwnedFd> {
        self.load_with(BPF_F_XDP_HAS_FRAGS)
    }

    /// Loads the program as an XDP program.
    ///
    /// # Errors
    /// Fails if the kernel returns an error.
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

/// A kernel map. A loaded program keeps the maps that it uses alive.
#[derive(Debug)]
pub struct Map {
    descriptor: OwnedFd,
    value_size: u32,
}

impl Map {
    /// Creates an array of `entries` values of `value` bytes each, all 0.
    ///
    /// # Errors
    /// Fails if the kernel returns an error.
    pub fn array(value: u32, entries: u32) -> io::Result<Self> {
        Self::new(BPF_MAP_TYPE_ARRAY, 4, value, entries)
    }

    /// Creates a hash map with LRU eviction. When the map is full, the kernel evicts the least recently used entry.
    ///
    /// # Errors
    /// Fails if the kernel returns an error.
    pub fn lru_hash(key: u32, value: u32, entries: u32) -> io::Result<Self> {
        Self::new(BPF_MAP_TYPE_LRU_HASH, key, value, entries)
    }

    fn new(map_type: u32, key_size: u32, value_size: u32, max_entries: u32) -> io::Result<Self> {
        let mut create = Create { map_type, key_size, value_size, max_entries, map_flags: 0 };
        // SAFETY: the attributes contain no pointers.
        let descriptor = descriptor(unsafe {
            libc::syscall(libc::SYS_bpf, BPF_MAP_CREATE, &raw mut create, size_of::<Create>() as libc::c_uint)
        })?;
        Ok(Self { descriptor, value_size })
    }

    /// Sets one value of an array map.
    ///
    /// # Errors
    /// Fails if the size of `value` differs from the size of the array's values, or if the kernel refuses the write.
    /// For example, `index` may be beyond the array's end.
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
        // SAFETY: the attributes point to a key and a value that have the map's sizes and outlive the call.
        let result = unsafe {
            libc::syscall(libc::SYS_bpf, BPF_MAP_UPDATE_ELEM, &raw mut update, size_of::<Update>() as libc::c_uint)
        };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

/// A map for tail calls, which contains one program. When the array is dropped, the kernel empties the map, even if
/// programs still use the map.
#[derive(Debug)]
pub struct ProgramArray(Map);

impl ProgramArray {
    /// Creates the map with `program` as its only entry.
    ///
    /// # Errors
    /// Fails if the kernel returns an error.
    pub fn new(program: BorrowedFd<'_>) -> io::Result<Self> {
        let map = Map::new(BPF_MAP_TYPE_PROG_ARRAY, 4, 4, 1)?;
        map.set(0, &program.as_raw_fd())?;
        Ok(Self(map))
    }
}

/// The fields of `union bpf_attr` that this module sets for `BPF_MAP_CREATE`.
#[repr(C)]
struct Create {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    map_flags: u32,
}

/// The fields of `union bpf_attr` that `BPF_MAP_UPDATE_ELEM` reads.
#[repr(C)]
struct Update {
    map_fd: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}
