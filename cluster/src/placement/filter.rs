//! What keeps a node from having slots, or more of them.

use std::fmt;

use model::NodeId;
use model::intent::{Availability, Node};
use model::spec::Resources;

use super::{Host, Request, expr::Constraint};
use crate::mutant::{self, Mutant};

/// A reason, in the order in which they are looked at. Numbers are places in the lists of the request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Filter {
    /// It is down.
    Health,
    /// It is paused or drained.
    Availability,
    /// The service's restarts there are used up.
    Avoid,
    /// A constraint does not hold.
    Constraint(usize),
    /// A service that it should be near is not there.
    Near(usize),
    /// A service that it should be apart from is there.
    Apart(usize),
    /// A service holds a port there.
    HostPorts,
    /// As many slots of this service as may be there.
    PerNode,
    /// As many tasks as may be there.
    MaxTasks,
    /// A service that comes first is not placed.
    After(usize),
    /// It has not told what it has.
    Untold,
    /// Too little CPU is left.
    Cpu,
    /// Too little memory is left.
    Memory,
}

impl Filter {
    /// Whether it tells which nodes a service is meant for: a global service lacks nothing on the others.
    pub(super) fn is_meant(self) -> bool {
        matches!(self, Filter::Health | Filter::Availability | Filter::Constraint(_))
    }
}

/// What a node may have.
#[derive(Debug, Clone, Copy)]
pub(super) struct Verdict {
    /// Of what runs there, so much may stay.
    pub(super) keeps: u32,
    /// The most that it may have in all; below `keeps`: no more than it keeps.
    pub(super) cap: u32,
    /// Why no more than that.
    pub(super) limit: Filter,
}

/// The filters of a request, read once.
#[derive(Debug)]
pub(super) struct Filters<'a> {
    ask: &'a Request<'a>,
    constraints: Vec<Option<Constraint>>,
    /// Most slots on one node, and why.
    own: (u32, Filter),
    after: Option<usize>,
}

impl<'a> Filters<'a> {
    pub(super) fn new(ask: &'a Request<'a>) -> Filters<'a> {
        let spec = ask.spec;
        let mut own = (spec.max_per_node.unwrap_or(u32::MAX), Filter::PerNode);
        if !ask.host_ports.is_empty() && own.0 > 1 {
            own = (1, Filter::HostPorts);
        }
        if let Some(at) = ask
            .apart
            .iter()
            .position(|o| o.name == ask.service)
            .filter(|_| own.0 > 1)
        {
            own = (1, Filter::Apart(at));
        }
        Filters {
            ask,
            // One that cannot be read was refused before it came here; if one did, it holds for nobody.
            constraints: spec.constraints.iter().map(|c| Constraint::parse(c).ok()).collect(),
            own,
            after: ask.after.iter().position(|o| o.placed.is_none_or(|p| p.is_empty())),
        }
    }

    /// Whether all constraints hold for a node.
    pub(super) fn holds(&self, id: NodeId, node: &Node) -> bool {
        self.broken(id, node).is_none()
    }

    /// The first constraint that does not hold.
    fn broken(&self, id: NodeId, node: &Node) -> Option<usize> {
        let fails = |c: &Option<Constraint>| c.as_ref().is_none_or(|c| !c.holds(id, node));
        self.constraints.iter().position(fails)
    }

    /// What a node may have that has `had` slots now.
    pub(super) fn look(&self, host: &Host<'_>, had: u32) -> Verdict {
        let nothing = |limit| Verdict {
            keeps: 0,
            cap: 0,
            limit,
        };
        let node = host.node;
        if node.down {
            return nothing(Filter::Health);
        }
        if node.availability == Availability::Drain && !mutant::on(Mutant::IgnoreDrain) {
            return nothing(Filter::Availability);
        }
        let paused = node.availability != Availability::Active;
        let constraint = self.broken(host.id, node).map(Filter::Constraint);
        let taken = self.ask.taken.get(&host.id);
        let taken = taken.is_some_and(|t| !t.is_disjoint(&self.ask.host_ports));
        // What runs on a paused node must leave it all the same, if something else says so.
        let leaves = constraint.or(taken.then_some(Filter::HostPorts));
        if let Some(limit) = leaves {
            return nothing(if paused { Filter::Availability } else { limit });
        }
        let keeps = had.min(self.own.0);
        let no_more = |limit| Verdict {
            keeps,
            cap: keeps,
            limit,
        };
        if paused {
            return no_more(Filter::Availability);
        }
        if host.avoid {
            return no_more(Filter::Avoid);
        }
        let there = |o: &super::Other<'_>| o.placed.is_some_and(|p| p.contains_key(&host.id));
        if let Some(at) = self.ask.near.iter().position(|o| !there(o)) {
            return no_more(Filter::Near(at));
        }
        let apart = |o: &super::Other<'_>| o.name != self.ask.service && there(o);
        if let Some(at) = self.ask.apart.iter().position(apart) {
            return no_more(Filter::Apart(at));
        }
        let (mut cap, mut limit) = self.own;
        let mut least = |room: u64, why: Filter| {
            let room = u32::try_from(room).unwrap_or(u32::MAX);
            if room < cap {
                (cap, limit) = (room, why);
            }
        };
        if let Some(most) = node.max_tasks {
            least(u64::from(most).saturating_sub(host.others.tasks), Filter::MaxTasks);
        }
        if let Some(at) = self.after {
            least(0, Filter::After(at));
        }
        let each = self.ask.spec.reserve;
        if each != Resources::default() {
            let all = node.machine.capacity;
            if all == Resources::default() {
                least(0, Filter::Untold);
            }
            let fit = |all: u64, used: u64, each: u64| all.saturating_sub(used).checked_div(each).unwrap_or(u64::MAX);
            let used = host.others.reserved;
            least(fit(all.cpu_milli, used.cpu_milli, each.cpu_milli), Filter::Cpu);
            least(fit(all.memory, used.memory, each.memory), Filter::Memory);
        }
        Verdict { keeps, cap, limit }
    }
}

/// How many nodes each filter excluded.
pub(super) fn tally(limits: impl Iterator<Item = Filter>) -> Vec<(Filter, u32)> {
    let mut count = std::collections::BTreeMap::new();
    for limit in limits {
        *count.entry(limit).or_insert(0) += 1;
    }
    count.into_iter().collect()
}

/// A filter beside the request that it belongs to, in words.
pub(super) struct Told<'a>(pub(super) Filter, pub(super) &'a Request<'a>);

impl fmt::Display for Told<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Told(filter, ask) = self;
        let other = |list: &[super::Other<'_>], at: usize| list.get(at).map_or(String::new(), |o| o.name.to_string());
        match *filter {
            Filter::Health => f.write_str("health"),
            Filter::Availability => f.write_str("availability"),
            Filter::Avoid => f.write_str("restarts used up"),
            Filter::Constraint(at) => {
                let text = ask.spec.constraints.get(at).map_or("", String::as_str);
                write!(f, "constraint {text}")
            }
            Filter::Near(at) => write!(f, "near {}", other(&ask.near, at)),
            Filter::Apart(at) => write!(f, "apart {}", other(&ask.apart, at)),
            Filter::HostPorts => {
                let ports: Vec<&str> = ask.host_ports.iter().map(String::as_str).collect();
                write!(f, "host ports {}", ports.join(","))
            }
            Filter::PerNode => write!(f, "max-per-node {}", ask.spec.max_per_node.unwrap_or(u32::MAX)),
            Filter::MaxTasks => f.write_str("max-tasks"),
            Filter::After(at) => write!(f, "after {}", other(&ask.after, at)),
            Filter::Untold => f.write_str("capacity not told"),
            Filter::Cpu => f.write_str("CPU"),
            Filter::Memory => f.write_str("memory"),
        }
    }
}
