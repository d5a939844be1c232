//! Chains, rules and lists.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
};

use ipnet::IpNet;
use model::Proto;

use super::super::{Family, Mark};

/// A transport protocol with ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP. Its destination port is where that of the others is (RFC 9260, 3.1).
    Sctp,
}

impl Transport {
    /// IP protocol number (IANA).
    pub const fn number(self) -> u8 {
        match self {
            Transport::Tcp => 6,
            Transport::Udp => 17,
            Transport::Sctp => 132,
        }
    }
}

impl From<Proto> for Transport {
    fn from(p: Proto) -> Self {
        match p {
            Proto::Tcp => Transport::Tcp,
            Proto::Udp => Transport::Udp,
            Proto::Sctp => Transport::Sctp,
        }
    }
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Transport::Tcp => "tcp",
            Transport::Udp => "udp",
            Transport::Sctp => "sctp",
        })
    }
}

/// A table, as iptables names them: what is done at a hook in which order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TableName {
    /// Before connection tracking.
    Raw,
    /// Marks.
    Mangle,
    /// Addresses; only a flow's first packet passes.
    Nat,
    /// Who may pass.
    Filter,
}

impl TableName {
    /// All of them.
    pub const ALL: [TableName; 4] = [TableName::Raw, TableName::Mangle, TableName::Nat, TableName::Filter];

    /// Its name.
    pub const fn as_str(self) -> &'static str {
        match self {
            TableName::Raw => "raw",
            TableName::Mangle => "mangle",
            TableName::Nat => "nat",
            TableName::Filter => "filter",
        }
    }
}

impl fmt::Display for TableName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Where in a packet's way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Hook {
    /// As it came in.
    Prerouting,
    /// On its way through.
    Forward,
    /// Of the namespace's own.
    Output,
    /// Before it goes out.
    Postrouting,
}

impl Hook {
    /// iptables' name of the chain there.
    pub const fn as_str(self) -> &'static str {
        match self {
            Hook::Prerouting => "PREROUTING",
            Hook::Forward => "FORWARD",
            Hook::Output => "OUTPUT",
            Hook::Postrouting => "POSTROUTING",
        }
    }
}

/// A device by its name, or all whose names begin so.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Device {
    /// This one.
    Named(String),
    /// Those.
    Prefix(String),
}

impl Device {
    /// This one.
    pub fn named(name: &str) -> Self {
        Device::Named(name.to_owned())
    }
    /// All whose names begin so.
    pub fn prefix(name: &str) -> Self {
        Device::Prefix(name.to_owned())
    }
}

/// What must be true of a packet. A rule's matches must all be.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Match {
    /// It is of this family. Matches with addresses imply theirs.
    Of(Family),
    /// It came by this device. At [`Hook::Postrouting`]: Linux 5.7 and newer.
    In(Device),
    /// It goes by this device.
    Out(Device),
    /// Its source.
    From(IpNet),
    /// Its destination.
    To(IpNet),
    /// Its destination is outside.
    NotTo(IpNet),
    /// Its destination port.
    Port(Transport, u16),
    /// Its destination is an address of the namespace: a lookup in the FIB, so for first packets alone.
    Local,
    /// It begins a flow.
    New,
    /// It belongs to a flow that is known, or is related to one.
    Known,
    /// It belongs to a flow whose destination was changed here.
    Translated,
    /// The way back to its source is not by the device that it came by.
    NoWayBack,
    /// It is in a list.
    Listed(&'static str),
}

/// What becomes of a packet for which all matches are true.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Action {
    /// It passes this table.
    Accept,
    /// It passes this table if it is in a list, however long that is.
    AcceptBy(&'static str),
    /// It ends.
    Drop,
    /// It passes the rest of the chain.
    Return,
    /// It is not tracked. The chain goes on.
    NoTrack,
    /// It bears the mark that a list has for it, if one. The chain goes on.
    MarkBy(&'static str),
    /// Its destination is the one that a list has for it, if one.
    TranslateBy(&'static str),
    /// Its source is this address.
    Source(IpAddr),
    /// Its source is the address of the device that it goes by.
    Masquerade,
}

/// A rule.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rule {
    /// What must be true.
    pub matches: Vec<Match>,
    /// What then.
    pub action: Action,
}

impl Rule {
    /// A rule.
    pub fn new(matches: impl IntoIterator<Item = Match>, action: Action) -> Self {
        Rule {
            matches: matches.into_iter().collect(),
            action,
        }
    }
}

/// Families that a rule can be about; none: its matches exclude each other.
pub fn families_of(rule: &Rule) -> BTreeSet<Family> {
    let of = |net: &IpNet| Family::of(net.addr());
    let mut out = BTreeSet::from([Family::V4, Family::V6]);
    for m in &rule.matches {
        match m {
            Match::Of(f) => out.retain(|o| o == f),
            Match::From(n) | Match::To(n) | Match::NotTo(n) => out.retain(|o| *o == of(n)),
            _ => {}
        }
    }
    if let Action::Source(a) = &rule.action {
        out.retain(|o| *o == Family::of(*a));
    }
    out
}

/// What of a packet a list is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    /// Its source, by network.
    pub from: bool,
    /// Its destination.
    pub to: bool,
    /// Its transport protocol.
    pub transport: bool,
    /// Its destination port; only beside the protocol.
    pub port: bool,
}

/// An entry of a list; what its [`Key`] has not is `None` in each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Entry {
    /// Family of the packets, of `from`, of `to`, and of the value.
    pub family: Family,
    /// Source.
    pub from: Option<IpNet>,
    /// Destination.
    pub to: Option<IpAddr>,
    /// Protocol.
    pub transport: Option<Transport>,
    /// Destination port.
    pub port: Option<u16>,
}

/// What a list has for an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Value {
    /// Nothing but that it is there.
    There,
    /// A mark.
    Mark(Mark),
    /// A destination.
    To(IpAddr, u16),
}

/// What a list has for all of its entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Holds {
    /// [`Value::There`].
    Nothing,
    /// [`Value::Mark`].
    Marks,
    /// [`Value::To`].
    Targets,
}

/// A list. Sources of entries that are otherwise the same do not overlap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct List {
    /// What it is about.
    pub key: Key,
    /// What it has for them.
    pub holds: Holds,
    /// What is in it.
    pub entries: BTreeMap<Entry, Value>,
}

impl List {
    /// An empty one.
    pub fn new(key: Key, holds: Holds) -> Self {
        List {
            key,
            holds,
            entries: BTreeMap::new(),
        }
    }
    /// What is in it of one family.
    pub fn of(&self, family: Family) -> impl Iterator<Item = (&Entry, &Value)> {
        self.entries.iter().filter(move |(e, _)| e.family == family)
    }
}

/// The rules of one namespace. Both filters' own chains are empty where nothing is wanted.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Rules {
    /// Rules by table and hook, in order.
    pub chains: BTreeMap<(TableName, Hook), Vec<Rule>>,
    /// Lists by name: lower case letters, at most 12.
    pub lists: BTreeMap<&'static str, List>,
}

impl Rules {
    /// Adds a rule to the end of a chain.
    pub fn add(&mut self, table: TableName, hook: Hook, matches: impl IntoIterator<Item = Match>, action: Action) {
        let chain = self.chains.entry((table, hook)).or_default();
        chain.push(Rule::new(matches, action));
    }
}
