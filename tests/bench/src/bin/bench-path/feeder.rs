//! Programs that restore a frame to its first state and continue with another program.

use balancer_bench::asm::{Program, ProgramArray, Register, Size};

const CONTEXT: Register = Register::R6;
const FRAME: Register = Register::R7;
const END: Register = Register::R8;

/// The changes that a feeder makes to a frame.
#[derive(Clone, Debug)]
pub(crate) struct Feed {
    /// The clients, used in turns.
    pub(crate) clients: Clients,
    /// Parts of the frame that the feeder restores, in the widths in which the program reads them: a read that spans
    /// several writes would wait for all of them.
    pub(crate) restores: Vec<(i16, Size)>,
}

/// Clients: addresses that differ in one word.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clients {
    /// The offset of that word.
    pub(crate) at: i16,
    /// The offset of the adjacent word that is read and written together with it.
    pub(crate) beside: i16,
    /// The first client's word, in host order.
    pub(crate) first: u32,
    /// The number of clients.
    pub(crate) count: u32,
    /// The offset of the word that selects the client, if the program overwrites the address.
    pub(crate) turn: Option<i16>,
}

/// A program that restores the frame (without the `grows` bytes before it) to `frame`, but from the next client, and
/// continues with the program in `next`.
pub(crate) fn feeder(frame: &[u8], feed: &Feed, grows: i32, next: &ProgramArray) -> Program {
    let mut program = Program::default().copy(CONTEXT, Register::R1);
    if grows != 0 {
        program = program.adjust_head(grows);
    }
    program = program
        .load(Size::Word, FRAME, CONTEXT, 0)
        .load(Size::Word, END, CONTEXT, 4)
        .copy(Register::R1, FRAME)
        .add(Register::R1, frame.len() as i32)
        .skip_if_at_most(Register::R1, END, 2)
        .set(Register::R0, 0)
        .exit();
    for &(offset, size) in &feed.restores {
        program = program.set_double(Register::R1, bytes(frame, offset, size)).store(size, FRAME, offset, Register::R1);
    }
    next_client(program, frame, &feed.clients).continue_with(next)
}

fn next_client(program: Program, frame: &[u8], clients: &Clients) -> Program {
    let Clients { at, beside, first, count, turn } = *clients;
    let program = program
        .load(Size::Word, Register::R2, FRAME, turn.unwrap_or(at))
        .swap_word(Register::R2)
        .add(Register::R2, 1)
        .set_double(Register::R1, u64::from(first + count - 1))
        .skip_if_at_most(Register::R2, Register::R1, 2)
        .set_double(Register::R2, u64::from(first))
        .swap_word(Register::R2);
    let program = match turn {
        Some(turn) => program.store(Size::Word, FRAME, turn, Register::R2),
        None => program,
    };
    let kept = bytes(frame, beside, Size::Word);
    let program = if beside > at {
        program.set_double(Register::R1, kept << 32)
    } else {
        program.shift_left(Register::R2, 32).set_double(Register::R1, kept)
    };
    program.or(Register::R2, Register::R1).store(Size::Double, FRAME, at.min(beside), Register::R2)
}

/// A part of the frame, as a number in the program's byte order.
pub(crate) fn bytes(frame: &[u8], offset: i16, size: Size) -> u64 {
    let length = match size {
        Size::Byte => 1,
        Size::Half => 2,
        Size::Word => 4,
        Size::Double => 8,
    };
    let mut word = [0; 8];
    word[..length].copy_from_slice(&frame[offset as usize..offset as usize + length]);
    u64::from_le_bytes(word)
}
