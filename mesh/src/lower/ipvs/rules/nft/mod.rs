//! Rules as one nf_tables table of family inet: what grows is in sets and maps, which change element by element.
//!
//! A [`Table`] is what `kernel::firewall` tells the kernel, message for message. Each rule bears a comment with a hash of
//! itself, so that what is there is known for what it is without reading expressions back; rules have a text beside them
//! as `nft list table inet netd` prints it.

mod change;
mod lower;
mod text;

use std::collections::BTreeMap;

use super::super::Family;

pub use self::{
    change::{Change, SetChange, change},
    lower::table,
};

/// A register of four octets, 0-15; `NFT_REG32_00` of linux/netfilter/nf_tables.h is 0. Longer values take the following
/// ones.
pub type Register = u32;

/// What a key or value is made of, each in registers of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Field {
    /// IPv4 address.
    V4,
    /// IPv6 address.
    V6,
    /// Transport protocol.
    Transport,
    /// Port.
    Port,
    /// Mark, in the host's order.
    Mark,
}

impl Field {
    /// Octets, as the kernel counts them in a concatenation: whole registers.
    pub const fn octets(self) -> u32 {
        match self {
            Field::V6 => 16,
            _ => 4,
        }
    }
    /// Octets of the value itself.
    pub const fn length(self) -> u32 {
        match self {
            Field::V4 | Field::Mark => 4,
            Field::V6 => 16,
            Field::Transport => 1,
            Field::Port => 2,
        }
    }
    /// nft's number for the type, by which it prints (datatype.h: TYPE_IPADDR, TYPE_IP6ADDR, TYPE_INET_PROTOCOL,
    /// TYPE_INET_SERVICE, TYPE_MARK).
    pub const fn number(self) -> u32 {
        match self {
            Field::V4 => 7,
            Field::V6 => 8,
            Field::Transport => 12,
            Field::Port => 13,
            Field::Mark => 19,
        }
    }
}

/// The address of a family.
pub(super) const fn address(family: Family) -> Field {
    match family {
        Family::V4 => Field::V4,
        Family::V6 => Field::V6,
    }
}

/// A set, or a map when it has values.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Set {
    /// Its keys.
    pub key: Vec<Field>,
    /// Its values; none: a set.
    pub value: Vec<Field>,
    /// Keys are ranges.
    pub ranges: bool,
    /// What is in it: values by keys.
    pub elements: Elements,
}

/// First and last key of a range, one and the same where there are no ranges; octets as in registers.
pub type Keys = (Vec<u8>, Vec<u8>);

/// Values by keys.
pub type Elements = BTreeMap<Keys, Vec<u8>>;

/// A chain on a hook.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    /// `filter`, `nat` or `route`.
    pub kind: &'static str,
    /// `NF_INET_*` of linux/netfilter.h.
    pub hook: u32,
    /// Its name for people.
    pub hook_name: &'static str,
    /// `NF_IP_PRI_*` of linux/netfilter_ipv4.h.
    pub priority: i32,
    /// In order.
    pub rules: Vec<Rule>,
}

/// A rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// What the kernel does.
    pub expressions: Vec<Expression>,
    /// As nft prints it.
    pub text: String,
    /// The comment that it bears: a hash of its expressions.
    pub comment: String,
}

/// A step of a rule. Reads put into registers; what is not there ends the rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expression {
    /// Something about the packet.
    Meta(MetaKey, Register),
    /// The packet's mark.
    SetMark(Register),
    /// Something about its flow.
    Flow(FlowKey, Register),
    /// Octets of a header.
    Payload {
        /// Which header.
        header: Header,
        /// From where.
        offset: u32,
        /// How many.
        length: u32,
        /// To where.
        to: Register,
    },
    /// Bits under a mask, in place.
    And(Register, Vec<u8>),
    /// The rule goes on if it is so.
    Compare(Register, Comparison, Vec<u8>),
    /// The rule goes on if the key is there; its value is put into `value`.
    Lookup {
        /// Name.
        set: String,
        /// Where the key is.
        key: Register,
        /// Where the value goes.
        value: Option<Register>,
    },
    /// A constant.
    Load(Register, Vec<u8>),
    /// The type of the destination (`RTN_*` of linux/rtnetlink.h), in the host's order.
    DestinationType(Register),
    /// Whether the way back to the source is by the device that it came by.
    WayBack(Register),
    /// Another source.
    Source(Family, Register),
    /// Another destination and port.
    Destination(Family, Register, Register),
    /// The source of the device that it goes by.
    Masquerade,
    /// Not tracked.
    NoTrack,
    /// The end.
    Verdict(Verdict),
}

/// `NFT_META_*`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MetaKey {
    /// Mark, in the host's order.
    Mark,
    /// Device that it came by: 16 octets.
    In,
    /// Device that it goes by.
    Out,
    /// `AF_INET` or `AF_INET6`: one octet.
    Family,
    /// Transport protocol: one octet.
    Transport,
}

/// `NFT_CT_*`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FlowKey {
    /// State bits, in the host's order.
    State,
    /// Status bits (`IPS_*`), in the host's order.
    Status,
}

/// A header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Header {
    /// IP.
    Network,
    /// TCP, UDP, SCTP.
    Transport,
}

/// A comparison with a constant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Comparison {
    /// The same.
    Is,
    /// Not the same.
    IsNot,
}

/// A verdict.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Passes.
    Accept,
    /// Ends.
    Drop,
    /// Passes the rest of the chain.
    Return,
}

/// The table.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Table {
    /// By name.
    pub sets: BTreeMap<String, Set>,
    /// By name.
    pub chains: BTreeMap<String, Chain>,
}

/// What of a table is compared with the kernel's, beside elements.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Shape {
    /// Octets of keys and values, and flags, of each set.
    pub sets: BTreeMap<String, (u32, u32, u32)>,
    /// Kind, hook, priority and the comments of the rules, of each chain.
    pub chains: BTreeMap<String, (String, u32, i32, Vec<String>)>,
}

/// A table of ours as it is in the kernel.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Seen {
    /// Everything but elements.
    pub shape: Shape,
    /// Elements by set.
    pub elements: BTreeMap<String, Elements>,
}

impl Set {
    /// `NFT_SET_INTERVAL` 4, `NFT_SET_MAP` 8, `NFT_SET_CONCAT` 128 (with ranges alone, as nft has it).
    pub fn flags(&self) -> u32 {
        let map = if self.value.is_empty() { 0 } else { 8 };
        let ranges = match (self.ranges, self.key.len()) {
            (false, _) => 0,
            (true, 1) => 4,
            (true, _) => 4 | 128,
        };
        map | ranges
    }
    /// Octets of a key.
    pub fn key_octets(&self) -> u32 {
        octets(&self.key)
    }
    /// Octets of a value.
    pub fn value_octets(&self) -> u32 {
        octets(&self.value)
    }
}

/// A single field is as long as its value; several are whole registers.
fn octets(fields: &[Field]) -> u32 {
    match fields {
        [one] => one.length(),
        many => many.iter().map(|f| f.octets()).sum(),
    }
}

impl Table {
    /// What the kernel should show of it.
    pub fn shape(&self) -> Shape {
        let set = |(name, s): (&String, &Set)| (name.clone(), (s.key_octets(), s.value_octets(), s.flags()));
        let chain = |(name, c): (&String, &Chain)| {
            let rules = c.rules.iter().map(|r| r.comment.clone()).collect();
            (name.clone(), (c.kind.to_owned(), c.hook, c.priority, rules))
        };
        Shape {
            sets: self.sets.iter().map(set).collect(),
            chains: self.chains.iter().map(chain).collect(),
        }
    }

    /// The table as it is seen when the kernel holds it.
    pub fn seen(&self) -> Seen {
        Seen {
            shape: self.shape(),
            elements: self.sets.iter().map(|(n, s)| (n.clone(), s.elements.clone())).collect(),
        }
    }
}
