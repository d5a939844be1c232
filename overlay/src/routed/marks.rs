//! Marks of packets within a sandbox. The upper octet tells what a mark means.

use model::NodeId;

use crate::objects::MaskedMark;

/// The octet that tells.
const KIND: u32 = 0xff00_0000;
/// Marks of services: this and the number that the log gave to (service, port, protocol).
pub const SERVICE: u32 = 0x6e00_0000;
/// Marks of connections that came from outside by another node, and of their replies: this and the node's number.
pub const LEAD_BACK: u32 = 0x6f00_0000;

/// Mark of a packet that came from outside by another node: the filters of a task's device are not about it.
pub const OUTSIDE: u32 = 0x6d00_0000;

/// Any mark of a kind.
pub const fn any(kind: u32) -> MaskedMark {
    MaskedMark {
        value: kind,
        mask: KIND,
    }
}

/// One mark.
pub const fn exactly(value: u32) -> MaskedMark {
    MaskedMark { value, mask: u32::MAX }
}

/// Mark of what came in by a node. Ids are given out from 1 on and never again; after 16 million of them the numbers
/// begin anew.
pub fn lead_back(node: NodeId) -> u32 {
    LEAD_BACK | (node.0 as u32 & !KIND)
}
