use balancer_common::map_types::Mac;

use crate::io::NextHop;

pub(crate) fn next_hop(last: u8) -> NextHop {
    let mac = |first: u8| -> Mac { [first, 0, 0, 0, 0, last] };
    NextHop {
        ifindex: 2,
        source_mac: mac(2),
        destination_mac: mac(6),
        mtu: 1500,
        source: None,
        gateway: None,
        local: false,
    }
}
