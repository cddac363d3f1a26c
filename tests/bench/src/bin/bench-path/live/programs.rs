//! Programs that generate frames, and a program that only sends frames back.

use balancer_bench::asm::{Map, Program, Register, Size};

use crate::{
    XDP_TX,
    feeder::{Clients, bytes},
};

const XDP_DROP: i32 = 1;

const CONTEXT: Register = Register::R6;
const FRAME: Register = Register::R7;
const END: Register = Register::R8;

/// The size of an Ethernet header, in bytes.
const MACS: i32 = 14;
/// The number of bytes that the generator restores in each frame. Measured programs change only these bytes: the
/// headers of Ethernet, IPv4, and TCP or UDP.
const WRITTEN: i16 = 56;
/// The offset of the map's key on the stack.
const KEY: i16 = -4;

/// Restores a frame to `frame`, with the next client as the source, and sends the frame to an interface. A map contains
/// the next client's number, because the kernel reuses many copies of a frame in no fixed order.
pub(super) fn generator(frame: &[u8], clients: Clients, turn: &Map, target: u32) -> Program {
    let Clients { at, first, count, .. } = clients;
    let mut program = whole(WRITTEN.into())
        .set(Register::R1, 0)
        .store(Size::Word, Register::R10, KEY, Register::R1)
        .look_up(turn, KEY)
        .skip_unless(Register::R0, 0, 2)
        .set(Register::R0, XDP_DROP)
        .exit()
        .load(Size::Word, Register::R2, Register::R0, 0)
        .add(Register::R2, 1)
        .set_double(Register::R1, u64::from(first + count - 1))
        .skip_if_at_most(Register::R2, Register::R1, 2)
        .set_double(Register::R2, u64::from(first))
        .store(Size::Word, Register::R0, 0, Register::R2)
        .swap_word(Register::R2);
    for offset in (0..WRITTEN).step_by(8) {
        let part = bytes(frame, offset, Size::Double);
        program = program.set_double(Register::R1, part).store(Size::Double, FRAME, offset, Register::R1);
    }
    program.store(Size::Word, FRAME, at, Register::R2).redirect(target)
}

/// Builds a program that swaps the MAC addresses and sends the frame back, which is the minimal work of a program that
/// returns frames.
pub(super) fn bare() -> Program {
    let swapped = [(Register::R1, 0, 6), (Register::R3, 6, 0)];
    let mut program = whole(MACS);
    for (register, from, _) in swapped {
        program = program.load(Size::Word, register, FRAME, from).load(Size::Half, next(register), FRAME, from + 4);
    }
    for (register, _, to) in swapped {
        program = program.store(Size::Word, FRAME, to, register).store(Size::Half, FRAME, to + 4, next(register));
    }
    program.set(Register::R0, XDP_TX).exit()
}

/// Returns the register that holds the remaining bytes of a MAC address.
const fn next(register: Register) -> Register {
    if matches!(register, Register::R1) { Register::R2 } else { Register::R4 }
}

/// Builds a program that drops frames shorter than `length`.
fn whole(length: i32) -> Program {
    Program::default()
        .copy(CONTEXT, Register::R1)
        .load(Size::Word, FRAME, CONTEXT, 0)
        .load(Size::Word, END, CONTEXT, 4)
        .copy(Register::R1, FRAME)
        .add(Register::R1, length)
        .skip_if_at_most(Register::R1, END, 2)
        .set(Register::R0, XDP_DROP)
        .exit()
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd as _;

    use balancer_bench::asm::Map;
    use balancer_testkit::prog_run;

    use super::{bare, generator};
    use crate::{XDP_TX, paths};

    const XDP_REDIRECT: u32 = 4;
    const LOOPBACK: u32 = 1;

    #[test]
    fn when_a_frame_is_sent_back_then_its_addresses_are_swapped() {
        let frame = paths::known().frame();
        let ran = prog_run::run(bare().load_frags().unwrap().as_fd(), &frame, LOOPBACK, 1).unwrap();
        assert_eq!((ran.action, &ran.frame[..6], &ran.frame[6..12]), (XDP_TX as u32, &frame[6..12], &frame[..6]));
        assert_eq!(ran.frame[12..], frame[12..]);
    }

    #[test]
    fn when_frames_are_made_then_each_is_whole_and_of_the_next_client() {
        let path = paths::known();
        let frame = path.frame();
        let turn = Map::array(4, 1).unwrap();
        turn.set(0, &(path.clients.first + path.clients.count - 2)).unwrap();
        let program = generator(&frame, path.clients, &turn, LOOPBACK).load_xdp().unwrap();
        // After the last client, the generator must use the first client again, even if the measured program has
        // changed the frame.
        for client in [path.clients.first + path.clients.count - 1, path.clients.first] {
            let left = vec![0xff; frame.len()];
            let ran = prog_run::run(program.as_fd(), &left, LOOPBACK, 1).unwrap();
            assert_eq!(ran.action, XDP_REDIRECT);
            assert_eq!(ran.frame[26..30], client.to_be_bytes());
            assert_eq!((&ran.frame[..26], &ran.frame[30..56]), (&frame[..26], &frame[30..56]));
        }
    }
}
