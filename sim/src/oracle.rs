//! What must be true, whatever happens: a reference of the log, and the invariants of FAULTS.md against it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use cluster::{
    ipam::{BLOCK_REST_MS, REST_MS},
    raft::{Body, Entry, Kind, Message},
    state::{Applied, Command, Envelope, Outcome, State, TOKEN_WORKER},
};
use model::{
    Intent, Name, NodeId, Vni,
    intent::{Availability, Role, Vip},
};

use crate::rng::mix;

/// Something that must not be: the number of the invariant (FAULTS.md), and what was seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Number; 0: the simulator's own expectation.
    pub invariant: u8,
    /// What was seen.
    pub what: String,
}

/// A check.
pub(crate) type Check = Result<(), Violation>;

/// A violation.
pub(crate) fn broken<T>(invariant: u8, what: impl Into<String>) -> Result<T, Violation> {
    Err(Violation {
        invariant,
        what: what.into(),
    })
}

/// FNV-1a, eight octets at a time.
pub(crate) fn hash(bytes: &[u8]) -> u64 {
    let mut h = 0xcbf2_9ce4_8422_2325u64 ^ bytes.len() as u64;
    let mut chunks = bytes.chunks_exact(8);
    for c in &mut chunks {
        h = (h ^ u64::from_le_bytes(c.try_into().unwrap_or_default())).wrapping_mul(0x0100_0000_01b3);
        h ^= h >> 29;
    }
    for b in chunks.remainder() {
        h = (h ^ u64::from(*b)).wrapping_mul(0x0100_0000_01b3);
    }
    mix(h)
}

fn entry_hash(e: &Entry) -> u64 {
    let body = match &e.body {
        Body::Empty => 1,
        Body::Command(bytes) => hash(bytes),
        Body::Conf(c) => {
            let steps = c.steps.iter().map(|(s, id)| mix(*id).wrapping_add(*s as u64 + 7));
            steps.fold(3, |h, s| mix(h ^ s))
        }
    };
    mix(mix(e.term).wrapping_add(e.index)) ^ body
}

/// A digest of a state.
pub(crate) fn digest(state: &State) -> u64 {
    state.encode().map_or(0, |bytes| hash(&bytes))
}

/// See the module.
#[derive(Default)]
pub(crate) struct Oracle {
    /// The state after all that is committed, as one more manager would have it. A fault that all have alike is found by
    /// what must be true of it.
    pub state: State,
    entries: Vec<u64>,
    digests: Vec<u64>,
    intents: BTreeMap<u64, Arc<Intent>>,
    /// What became of each request: where it took effect, and its answer.
    requests: BTreeMap<u128, (u64, Outcome)>,
    registers: BTreeMap<u8, Vec<(u64, u64)>>,
    /// Highest place in the log that anybody was told of.
    pub floor: u64,
    leaders: BTreeMap<u64, u64>,
    votes: BTreeMap<(u64, u64), u64>,
    spoken: BTreeMap<u64, u64>,
    rafts: BTreeMap<u64, NodeId>,
    rafts_gone: BTreeSet<u64>,
    nodes_gone: BTreeSet<NodeId>,
    blocks_free: BTreeMap<(Vni, u32), u64>,
    vips_free: BTreeMap<(Vni, Vip), u64>,
}

impl Oracle {
    /// Entries that are committed.
    pub(crate) fn committed(&self) -> u64 {
        self.entries.len() as u64
    }

    /// The intent as of a revision.
    pub(crate) fn intent(&self, revision: u64) -> Option<&Arc<Intent>> {
        self.intents.get(&revision)
    }

    /// Digest of the state at an index.
    pub(crate) fn digest_at(&self, index: u64) -> Option<u64> {
        self.digests.get(usize::try_from(index).ok()?.checked_sub(1)?).copied()
    }

    /// A manager holds this entry for committed.
    pub(crate) fn commits(&mut self, who: u64, e: &Entry) -> Check {
        let h = entry_hash(e);
        let at = usize::try_from(e.index.saturating_sub(1)).unwrap_or(usize::MAX);
        if let Some(known) = self.entries.get(at) {
            return match *known == h {
                true => Ok(()),
                false => broken(
                    3,
                    format!(
                        "manager {who} commits another entry {} than was committed before",
                        e.index
                    ),
                ),
            };
        }
        if at != self.entries.len() {
            return broken(
                0,
                format!("manager {who} commits entry {} before those in front of it", e.index),
            );
        }
        self.entries.push(h);
        let before = self.state.intent();
        let time = self.state.now_ms();
        match &e.body {
            Body::Command(bytes) => {
                let Ok(envelope) = Envelope::decode(bytes) else {
                    return broken(0, format!("entry {} cannot be read", e.index));
                };
                let (secrets_at, token) = (
                    self.state.secrets_at(),
                    self.state.secret(TOKEN_WORKER).map(<[u8]>::to_vec),
                );
                let outcome = self.state.apply(e.index, &envelope);
                if !self.requests.contains_key(&envelope.request) && outcome.is_ok() {
                    match &envelope.command {
                        Command::ReplaceSecrets { seen, .. } if *seen != secrets_at => {
                            return broken(5, format!("secrets of {secrets_at} were replaced, {seen} was seen"));
                        }
                        Command::Join { secret, .. } if Some(&secret.0) != token.as_ref() => {
                            return broken(17, "a stranger has joined");
                        }
                        _ => {}
                    }
                }
                if let Command::SetSecrets(s) = &envelope.command
                    && !self.requests.contains_key(&envelope.request)
                    && outcome.is_ok()
                {
                    for (name, value) in s {
                        if let (Some(r), Some(v)) = (name.strip_prefix('r').and_then(|r| r.parse().ok()), value) {
                            let value = v.0.clone().try_into().map_or(0, u64::from_le_bytes);
                            self.registers.entry(r).or_default().push((e.index, value));
                        }
                    }
                }
                self.requests.entry(envelope.request).or_insert((e.index, outcome));
            }
            Body::Empty => self.state.pass(e.index),
            Body::Conf(change) => self.state.conf_changed(e.index, change),
        }
        self.digests.push(digest(&self.state));
        let after = self.state.intent();
        if self.state.now_ms() < time {
            return broken(6, "log time went back");
        }
        if after.revision != before.revision {
            self.intents.insert(after.revision, Arc::clone(&after));
            self.intent_changed(&before, &after)?;
        }
        Ok(())
    }

    /// A manager's state is not the reference's.
    pub(crate) fn applied(&self, who: u64, state: &State) -> Check {
        match self.digest_at(state.applied()) {
            Some(d) if d == digest(state) => Ok(()),
            None if state.applied() == 0 => Ok(()),
            None => broken(
                3,
                format!(
                    "manager {who} has applied entry {}, which is not committed",
                    state.applied()
                ),
            ),
            Some(_) => {
                // With a planted fault the state is wrong everywhere alike: say what is wrong with it.
                check_intent(&state.intent())?;
                broken(
                    2,
                    format!(
                        "the state of manager {who} at entry {} is not what the log says",
                        state.applied()
                    ),
                )
            }
        }
    }

    /// A client was told that its request was carried out.
    pub(crate) fn acknowledged(&mut self, request: u128, outcome: &Outcome, floor: u64) -> Check {
        let Some((index, first)) = self.requests.get(&request) else {
            return broken(4, format!("request {request:x} was acknowledged and is not committed"));
        };
        if first != outcome {
            return broken(
                4,
                format!("request {request:x} was answered {outcome:?}, and {first:?} before"),
            );
        }
        // A retry may be answered long after its effect: what counts is that it was not carried out before it was asked.
        if *index <= floor {
            return broken(
                5,
                format!("request {request:x} took effect at {index}, before it was made (at {floor})"),
            );
        }
        self.floor = self.floor.max(*index);
        Ok(())
    }

    /// A client read a register from a state at `index`.
    pub(crate) fn read(&mut self, register: u8, index: u64, value: u64, floor: u64) -> Check {
        if index < floor {
            return broken(
                5,
                format!("a read saw the state at {index}, and {floor} was known before it began"),
            );
        }
        let writes = self.registers.get(&register);
        let last = writes.and_then(|w| w.iter().rev().find(|(i, _)| *i <= index));
        let wanted = last.map_or(0, |w| w.1);
        if wanted != value {
            return broken(
                5,
                format!("register {register} read {value:x} at {index}, it held {wanted:x}"),
            );
        }
        self.floor = self.floor.max(index);
        Ok(())
    }

    /// A manager leads.
    pub(crate) fn leads(&mut self, term: u64, who: u64) -> Check {
        match *self.leaders.entry(term).or_insert(who) {
            known if known == who => Ok(()),
            known => broken(1, format!("managers {known} and {who} lead in term {term}")),
        }
    }

    /// A manager says something.
    pub(crate) fn says(&mut self, m: &Message) -> Check {
        let (voter, candidate) = match m.kind {
            Kind::Vote => (m.from, m.from),
            Kind::VoteReply if !m.reject => (m.from, m.to),
            Kind::AppendReply | Kind::HeartbeatReply => {
                let term = self.spoken.entry(m.from).or_default();
                *term = m.term.max(*term);
                return Ok(());
            }
            _ => return Ok(()),
        };
        let term = self.spoken.entry(voter).or_default();
        *term = m.term.max(*term);
        match *self.votes.entry((voter, m.term)).or_insert(candidate) {
            known if known == candidate => Ok(()),
            known => broken(
                6,
                format!(
                    "manager {voter} votes for {candidate} in term {}, and has voted for {known}",
                    m.term
                ),
            ),
        }
    }

    /// A manager was started with a term.
    pub(crate) fn starts(&self, who: u64, term: u64) -> Check {
        let spoken = self.spoken.get(&who).copied().unwrap_or(0);
        match term >= spoken {
            true => Ok(()),
            false => broken(
                6,
                format!("manager {who} starts in term {term}, it has spoken in {spoken}"),
            ),
        }
    }

    fn intent_changed(&mut self, old: &Intent, new: &Arc<Intent>) -> Check {
        check_intent(new)?;
        crate::roll::moved(old, new)?;
        let now = self.state.now_ms();
        for (id, node) in &new.nodes {
            if self.nodes_gone.contains(id) {
                return broken(17, format!("{id} was removed and is back"));
            }
            if (node.role == Role::Manager) != node.raft.is_some() {
                return broken(
                    17,
                    format!("{id} has a role and an id in Raft that contradict each other"),
                );
            }
            let Some(raft) = node.raft else { continue };
            if self.rafts_gone.contains(&raft) || *self.rafts.entry(raft).or_insert(*id) != *id {
                return broken(6, format!("id {raft} in Raft is given out again, to {id}"));
            }
        }
        for (id, node) in &old.nodes {
            let now = new.nodes.get(id);
            if now.is_none() {
                if node.role == Role::Manager {
                    return broken(17, format!("manager {id} was removed and not demoted"));
                }
                self.nodes_gone.insert(*id);
            }
            if let Some(raft) = node.raft.filter(|r| now.and_then(|n| n.raft) != Some(*r)) {
                self.rafts_gone.insert(raft);
            }
        }
        self.addresses_changed(old, new, now)
    }

    fn addresses_changed(&mut self, old: &Intent, new: &Intent, now: u64) -> Check {
        for (name, was) in &old.networks {
            match new.networks.get(name) {
                Some(is) if is.vni != was.vni => {
                    return broken(9, format!("the VNI of {name} was {} and is {}", was.vni, is.vni));
                }
                _ => {}
            }
        }
        let vni = |i: &Intent, n: &Name| i.networks.get(n).map(|n| n.vni);
        for (name, was) in &old.services {
            for (network, vip) in &was.vips {
                let Some(net) = vni(old, network) else { continue };
                let is = new.services.get(name).filter(|s| s.index == was.index);
                match is.map(|s| s.vips.get(network)) {
                    Some(Some(v)) if v != vip => {
                        return broken(9, format!("the VIP of {name} was {vip:?} and is {v:?}"));
                    }
                    Some(Some(_)) => {}
                    _ => drop(self.vips_free.insert((net, *vip), now)),
                }
            }
        }
        for (name, is) in &new.services {
            for (network, vip) in &is.vips {
                let Some(net) = vni(new, network) else { continue };
                let was = old.services.get(name).and_then(|s| s.vips.get(network));
                if was == Some(vip) {
                    continue;
                }
                if let Some(free) = self.vips_free.remove(&(net, *vip))
                    && now < free + REST_MS
                {
                    return broken(7, format!("VIP {vip:?} of {name} rested {} ms", now - free));
                }
            }
        }
        for (net, blocks) in &old.blocks {
            for (number, owner) in blocks {
                if new.blocks.get(net).and_then(|b| b.get(number)) != Some(owner) {
                    self.blocks_free.insert((*net, *number), now);
                }
            }
        }
        for (net, blocks) in &new.blocks {
            for (number, owner) in blocks {
                let was = old.blocks.get(net).and_then(|b| b.get(number));
                if was == Some(owner) {
                    continue;
                }
                if was.is_some() {
                    return broken(8, format!("block {number} of {net} went from {was:?} to {owner}"));
                }
                if let Some(free) = self.blocks_free.remove(&(*net, *number))
                    && now < free + BLOCK_REST_MS
                {
                    return broken(8, format!("block {number} of {net} rested {} ms", now - free));
                }
            }
        }
        Ok(())
    }
}

/// What is true in every intent by itself.
pub(crate) fn check_intent(i: &Intent) -> Check {
    let mut vnis = BTreeSet::new();
    for (name, n) in &i.networks {
        if !vnis.insert(n.vni) {
            return broken(7, format!("VNI {} of {name} is another network's too", n.vni));
        }
    }
    let (mut vips, mut indices, mut marks) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    for (name, s) in &i.services {
        if !indices.insert(s.index) {
            return broken(7, format!("index {} of {name} is another service's too", s.index));
        }
        for (network, vip) in &s.vips {
            if !vips.insert((network, vip)) {
                return broken(
                    7,
                    format!("VIP {vip:?} of {name} on {network} is another service's too"),
                );
            }
        }
        for p in s.ports.values() {
            if !marks.insert(p.mark) {
                return broken(7, format!("mark {} of {name} is another port's too", p.mark));
            }
        }
        let mut placed = BTreeSet::new();
        for (node, slots) in i.placements.get(name).into_iter().flatten() {
            for slot in slots.iter() {
                // A service that shrank keeps what runs, so numbers may be above its size.
                if slot == 0 || !placed.insert(slot) {
                    return broken(10, format!("slot {slot} of {name} is placed twice"));
                }
            }
            match i.nodes.get(node) {
                Some(n) if !n.down && n.availability != Availability::Drain => {}
                _ => return broken(10, format!("{name} is placed on {node}, which may run nothing")),
            }
        }
        let surge = s.rollout.as_ref().filter(|r| r.is_open()).map_or(0, |r| r.surge.len());
        let asked = (placed.len() as u32).saturating_sub(surge);
        let all = s.spec.command.is_empty() || asked == s.spec.replicas;
        if asked > s.spec.replicas || (!all && s.problem.is_none()) {
            return broken(10, format!("{asked} of {} slots of {name} are placed", s.spec.replicas));
        }
        for (node, left) in i.leaving.get(name).into_iter().flatten() {
            let twice = left
                .iter()
                .find(|slot| i.slots(name, *node).is_some_and(|s| s.contains(*slot)));
            if let Some(slot) = twice {
                return broken(10, format!("slot {slot} of {name} leaves {node}, where it is placed"));
            }
            let orphan = left.iter().find(|slot| !placed.contains(slot));
            if let Some(slot) = orphan.filter(|_| s.problem.is_none()) {
                return broken(
                    10,
                    format!("slot {slot} of {name} goes on on {node}, and nobody asked for it"),
                );
            }
            if i.nodes.get(node).is_none_or(|n| n.down) {
                return broken(10, format!("{name} goes on on {node}, which is gone"));
            }
        }
    }
    for name in i.placements.keys().chain(i.leaving.keys()) {
        if !i.services.contains_key(name) {
            return broken(10, format!("{name} is placed and is no service"));
        }
    }
    let managers = i.nodes.values().filter(|n| n.role == Role::Manager).count();
    match i.cluster.is_empty() || managers > 0 {
        true => Ok(()),
        false => broken(17, "no manager is left"),
    }
}

/// What a request gave out, if it was carried out.
pub(crate) fn gave(outcome: &Outcome) -> Option<&Applied> {
    outcome.as_ref().ok().map(|o| &o.1)
}

impl Oracle {
    /// Terms in which somebody led.
    pub(crate) fn terms(&self) -> usize {
        self.leaders.len()
    }

    /// Blocks of a network that rest at most.
    pub(crate) fn resting_blocks(&self, vni: Vni) -> usize {
        self.blocks_free.keys().filter(|(v, _)| *v == vni).count()
    }
}
