//! Later fragments have no ports; the program sends later fragments where the datagram's first fragment went.

use balancer_common::verdict::DropReason;

use super::{
    Arrival, Fate, State,
    forward::Carries,
    parse::{DESTINATION_OPTIONS, Packet},
    share::Treated,
    state::{Datagram, FragmentWay, Portless, WayBack},
    steer::{Choice, Nowhere},
};

impl State {
    /// The program's choice: the program records the direction once it has chosen a backend, even if the fragment does
    /// not reach the backend.
    pub(super) fn follow_to_backend(&mut self, packet: &Packet, backend: u16) {
        if packet.is_first_fragment() {
            self.datagrams.insert(Datagram::of(packet), FragmentWay::Backend(backend));
        }
    }

    pub(super) fn follow_to_client(&mut self, packet: &Packet, way: WayBack) {
        if packet.is_first_fragment() {
            self.datagrams.insert(Datagram::of(packet), FragmentWay::Client(way));
        }
    }

    /// The program's choice: the program records the direction only if a service or a backend could own the fragment.
    pub(super) fn follow_to_kernel(&mut self, packet: &Packet) {
        let mistakable = self.is_vip(packet.destination)
            || !matches!(self.only_way_back(packet.source, packet.protocol), Portless::Nothing);
        if packet.is_first_fragment() && mistakable {
            self.datagrams.insert(Datagram::of(packet), FragmentWay::Kernel);
        }
    }

    pub(super) fn later_fragment(&mut self, arrival: Arrival<'_>, packet: &Packet) -> Result<Fate, DropReason> {
        match self.datagrams.get(&Datagram::of(packet)).copied() {
            Some(FragmentWay::Kernel) => Ok(Fate::Pass),
            Some(FragmentWay::Backend(backend)) => {
                self.forward_carrying(arrival, packet, Choice { backend, decision: None }, Carries::Nothing)
            }
            Some(FragmentWay::Client(way)) => self.reply_carrying(arrival, packet, way, Carries::Nothing),
            None => self.first_not_seen(arrival, packet),
        }
    }

    fn first_not_seen(&mut self, arrival: Arrival<'_>, packet: &Packet) -> Result<Fate, DropReason> {
        if self.is_vip(packet.destination) {
            if packet.protocol == DESTINATION_OPTIONS {
                return self.refused(packet.destination, DropReason::FragmentUnknown);
            }
            return match self.only_service(packet.destination, packet.protocol) {
                Portless::Nothing => Ok(Fate::Pass),
                Portless::Several => self.refused(packet.destination, DropReason::FragmentUnknown),
                Portless::Only(_) if self.is_martian(packet, false) => {
                    self.refused(packet.destination, DropReason::Martian)
                }
                Portless::Only(service) => {
                    if !matches!(self.treated(service, packet.source), Treated::Steered { .. }) {
                        return Ok(Fate::Pass);
                    }
                    let choice = match self.peek(service, packet.source, None, false) {
                        Ok(choice) => choice,
                        Err(Nowhere::Host) => return Ok(Fate::Pass),
                        Err(Nowhere::Dropped(reason)) => return Err(reason),
                    };
                    self.forward_carrying(arrival, packet, choice, Carries::Nothing)
                }
            };
        }
        // A backend also sends packets other than replies. The program therefore treats a fragment as a reply only if
        // no other interpretation is possible.
        match self.only_way_back(packet.source, packet.protocol) {
            Portless::Only(way) => self.reply_carrying(arrival, packet, way, Carries::Nothing),
            Portless::Nothing | Portless::Several => Ok(Fate::Pass),
        }
    }
}
