//! ICMP and ICMPv6: what the programs say themselves, and what others say about translated packets.

pub(crate) mod answer;
pub(crate) mod error;
pub(crate) mod quote;
