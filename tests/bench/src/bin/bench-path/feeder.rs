//! Programs that restore a frame to its original state and then call the measured program.

use balancer_bench::asm::{Program, ProgramArray, Register, Size};

const CONTEXT: Register = Register::R6;
const FRAME: Register = Register::R7;
const END: Register = Register::R8;

/// The changes that a feeder makes to a frame.
#[derive(Clone, Debug)]
pub(crate) struct Feed {
    /// The clients, from which the feeder takes the next one for each packet.
    pub(crate) clients: Clients,
    /// The fields of the frame that the feeder restores, in the widths in which the measured program reads the fields.
    /// If a read spanned several writes, the CPU would have to wait for all these writes.
    pub(crate) restores: Vec<(i16, Size)>,
}

/// A range of client addresses that differ in one 32-bit word.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clients {
    /// The offset in the frame of the word in which the client addresses differ.
    pub(crate) at: i16,
    /// The offset in the frame of the word next to the differing word. Programs read and write the differing word and
    /// its neighbour together.
    pub(crate) beside: i16,
    /// The word of the first client, in host order.
    pub(crate) first: u32,
    /// The number of clients in the range.
    pub(crate) count: u32,
    /// The distance from one client to the next. After the last client of the range, the feeder continues at the start.
    pub(crate) step: u32,
    /// The offset of the word in the frame that selects the client, if the measured program overwrites the client's
    /// address.
    pub(crate) turn: Option<i16>,
}

/// Builds a program that restores the frame after its first `grows` bytes to `frame`, with the address of the next
/// client as the source. After restoring the frame, the feeder continues with the program in `next`.
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
    let Clients { at, beside, first, count, step, turn } = *clients;
    let program = program
        .load(Size::Word, Register::R2, FRAME, turn.unwrap_or(at))
        .swap_word(Register::R2)
        .add(Register::R2, step.cast_signed())
        .set_double(Register::R1, u64::from(first + count - 1))
        .skip_if_at_most(Register::R2, Register::R1, 4)
        .add(Register::R2, -count.cast_signed())
        // The word is no client's if the measured program has overwritten it.
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

/// Returns bytes of the frame as a number, so that storing the number writes the same bytes.
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
