//! Who is a manager, and under which id in Raft.

use std::collections::BTreeSet;

use model::{
    NodeId,
    intent::{Availability, Node, Role},
};

use super::{Applied, NewNode, Refusal, State, nodes::check_node};
use crate::{
    ipam::{BLOCK_REST_MS, REST_MS},
    manager::FOUNDER,
    mutant::{self, Mutant},
    raft::{ConfChange, ConfStep},
};

/// Managers at most: more voters make writes slower and no longer safer.
pub const MAX_MANAGERS: usize = 9;

/// A cluster that was begun anew from one survivor or a backup goes on at the next multiple of this: its revisions lie
/// beyond all that the lost managers can have told anybody.
pub const EPOCH: u64 = 1 << 40;

/// Ids of nodes and of managers in Raft go on at the next multiple of this then.
const ID_JUMP: u64 = 1_000;

impl State {
    /// A fresh id in Raft.
    pub(super) fn raft_id(&mut self) -> u64 {
        let id = self.next_raft;
        self.next_raft += 1;
        if mutant::on(Mutant::ReuseRaftId) {
            let used = |id: u64| self.intent.nodes.values().any(|n| n.raft == Some(id));
            return (1..id).find(|id| !used(*id)).unwrap_or(id);
        }
        id
    }

    /// Whether a Raft id was given out and is no manager's any more: it never will be again.
    pub fn raft_is_gone(&self, raft: u64) -> bool {
        raft < self.next_raft && !self.is_some_raft(raft)
    }

    /// Whether a Raft id gets the log, as far as this state knows.
    pub fn is_raft_member(&self, raft: u64) -> bool {
        self.raft_members.contains(&raft) || self.raft_leaving.contains(&raft)
    }

    /// Whether a manager's Raft id never took part: then nobody can have voted under it, and an empty log may begin under
    /// it. An id that did must not come back without its log, also when a demotion that did not end took it out.
    pub fn raft_is_unused(&self, raft: u64) -> bool {
        let took_part = raft == FOUNDER || self.is_raft_member(raft) || self.raft_spent.contains(&raft);
        self.is_some_raft(raft) && (!took_part || mutant::on(Mutant::BeginUsedId))
    }

    fn is_some_raft(&self, raft: u64) -> bool {
        self.intent.nodes.values().any(|n| n.raft == Some(raft))
    }

    /// The entry at `index` changed who takes part in Raft.
    pub fn conf_changed(&mut self, index: u64, change: &ConfChange) {
        self.pass(index);
        // One step counts at once. Of several, who leaves votes until the joint configuration is left.
        self.raft_leaving.clear();
        for (step, id) in &change.steps {
            match step {
                ConfStep::Voter | ConfStep::Learner => drop(self.raft_members.insert(*id)),
                ConfStep::Remove => {
                    if self.raft_members.remove(id) && change.steps.len() > 1 {
                        self.raft_leaving.insert(*id);
                    }
                    self.raft_spent.insert(*id);
                }
            }
        }
        // One that is no manager's is gone in any case.
        let rafts: BTreeSet<u64> = self.intent.nodes.values().filter_map(|n| n.raft).collect();
        self.raft_spent.retain(|id| rafts.contains(id));
    }

    fn managers(&self) -> usize {
        let nodes = self.intent.nodes.values();
        nodes.filter(|n| n.role == Role::Manager).count()
    }

    /// Refuses to lose the last manager.
    pub(super) fn not_last(&self, id: NodeId, node: &Node) -> Result<(), Refusal> {
        if node.role == Role::Manager && self.managers() == 1 {
            return Err(Refusal::conflict(
                format!("{id} ({}) is the last manager: the cluster would end", node.hostname),
                "netctl node promote another one first, or netctl cluster leave --force on that node to end the cluster",
            ));
        }
        Ok(())
    }

    /// Refuses a manager beyond [`MAX_MANAGERS`].
    pub(super) fn room_for(&self, node: &NewNode) -> Result<(), Refusal> {
        let known = self.intent.nodes.values().any(|n| n.key == node.key);
        match node.role {
            Role::Manager if !known && self.managers() >= MAX_MANAGERS => Err(full()),
            _ => Ok(()),
        }
    }

    pub(super) fn set_role(
        &mut self,
        index: u64,
        id: NodeId,
        role: Role,
        rpc: Option<&str>,
    ) -> Result<Applied, Refusal> {
        let node = self.node(id)?.clone();
        let raft = match (role, rpc) {
            (Role::Worker, _) => {
                if node.role == Role::Worker {
                    return Ok(Applied::Unchanged);
                }
                self.not_last(id, &node)?;
                if node.raft.is_some_and(|r| self.is_raft_member(r)) {
                    // Promoted again meanwhile, perhaps: without its log the others may have no majority.
                    return Err(Refusal::conflict(
                        format!("{id} ({}) still takes part in Raft", node.hostname),
                        format!("netctl node demote {id}"),
                    ));
                }
                None
            }
            (Role::Manager, None) => {
                return Err(Refusal::invalid(
                    format!("{id} ({}) has no address for the managers' RPC", node.hostname),
                    "netctl node promote",
                ));
            }
            (Role::Manager, Some(rpc)) => {
                check_rpc(rpc)?;
                match node.raft {
                    Some(raft) if node.rpc.as_deref() == Some(rpc) => return Ok(Applied::Raft(raft)),
                    Some(raft) => Some(raft),
                    None if self.managers() >= MAX_MANAGERS => return Err(full()),
                    None => Some(self.raft_id()),
                }
            }
        };
        if let Some(n) = self.change(index).nodes.get_mut(&id) {
            n.role = role;
            n.raft = raft;
            n.rpc = rpc.filter(|_| role == Role::Manager).map(str::to_owned);
        }
        Ok(raft.map_or(Applied::Done, Applied::Raft))
    }

    pub(super) fn renew_raft(&mut self, index: u64, id: NodeId, old: u64) -> Result<Applied, Refusal> {
        let node = self.node(id)?;
        let Some(raft) = node.raft else {
            return Err(Refusal::conflict(
                format!("{id} ({}) is no manager", node.hostname),
                format!("netctl node promote {id}"),
            ));
        };
        if raft != old {
            return Ok(Applied::Raft(raft));
        }
        let new = self.raft_id();
        if let Some(n) = self.change(index).nodes.get_mut(&id) {
            n.raft = Some(new);
        }
        Ok(Applied::Raft(new))
    }

    /// The state of a cluster that goes on with one manager alone, whatever becomes of the others: they are workers until
    /// they are promoted again. The manager is found by its key, or added. Returns its ids, as a node and in Raft; the
    /// state stands at the first index of a new epoch.
    ///
    /// What the lost log has given out since is not known. Ids jump ahead; addresses, blocks and other numbers are given
    /// out from the other half of their circle, and what of the near half is free rests: until that is over whoever holds
    /// some of it has heard that it is not his.
    pub fn alone(&mut self, me: &NewNode) -> Result<(NodeId, u64), Refusal> {
        if !self.is_initialised() {
            return Err(super::no_cluster());
        }
        check_node(me)?;
        check_rpc(me.rpc.as_deref().unwrap_or_default())?;
        let index = (self.applied.max(self.intent.revision) / EPOCH + 1) * EPOCH;
        let mine = |n: &Node| n.rpc.is_some() && n.rpc == me.rpc && n.key != me.key;
        let former: Vec<NodeId> = self
            .intent
            .nodes
            .iter()
            .filter(|(_, n)| mine(n))
            .map(|(id, _)| *id)
            .collect();
        // Ids that were given out since, by a log that is lost, are not given to others.
        self.next_node = (self.next_node / ID_JUMP + 1) * ID_JUMP;
        self.next_raft = (self.next_raft / ID_JUMP + 1) * ID_JUMP;
        let now = self.now_ms;
        for pool in [&mut self.vnis, &mut self.indices, &mut self.marks] {
            pool.begin_anew(now, REST_MS);
        }
        for net in self.nets.values_mut() {
            net.vips.begin_anew(now, REST_MS);
            net.blocks.begin_anew(now, BLOCK_REST_MS);
        }
        for n in self.change(index).nodes.values_mut() {
            (n.role, n.rpc, n.raft) = (Role::Worker, None, None);
        }
        // Another node at this very address is what this machine was before it lost its disk.
        for id in former {
            self.remove_node(index, id)?;
        }
        let known = self.intent.nodes.iter().find(|(_, n)| n.key == me.key);
        let id = match known.map(|(id, _)| *id) {
            Some(id) => id,
            None => self.insert_node(
                index,
                &NewNode {
                    role: Role::Worker,
                    ..me.clone()
                },
                Availability::Active,
            ),
        };
        let raft = self.raft_id();
        if let Some(n) = self.change(index).nodes.get_mut(&id) {
            (n.role, n.rpc, n.raft, n.down) = (Role::Manager, me.rpc.clone(), Some(raft), false);
        }
        self.applied = index;
        self.raft_members = [raft].into();
        self.raft_leaving.clear();
        self.raft_spent.clear();
        Ok((id, raft))
    }
}

fn full() -> Refusal {
    Refusal::conflict(
        format!("there are {MAX_MANAGERS} managers already: more make changes slower and no longer safer"),
        "netctl node demote another one first",
    )
}

fn check_rpc(rpc: &str) -> Result<(), Refusal> {
    match rpc.parse::<std::net::SocketAddr>() {
        Ok(a) if a.port() != 0 && !a.ip().is_unspecified() => Ok(()),
        _ => Err(Refusal::invalid(
            format!("{rpc:?} is no address for the managers' RPC"),
            "an address with a port, such as 192.0.2.1:2377",
        )),
    }
}

#[cfg(test)]
mod tests {
    use model::Code;

    use super::{super::tests::Log, *};
    use crate::state::Command;

    fn promote(n: u64) -> Command {
        Command::SetRole {
            node: NodeId(n),
            role: Role::Manager,
            rpc: Some(format!("198.18.0.{n}:2377")),
        }
    }

    fn demote(n: u64) -> Command {
        Command::SetRole {
            node: NodeId(n),
            role: Role::Worker,
            rpc: None,
        }
    }

    #[test]
    fn an_id_in_raft_is_never_given_twice() {
        let mut log = Log::new(2);
        let raft = |log: &Log, n| log.state.intent.nodes[&NodeId(n)].raft;
        assert_eq!(raft(&log, 1), Some(1), "the founder's");
        assert_eq!(log.ok(promote(3)), Applied::Raft(2));
        assert_eq!(log.ok(promote(3)), Applied::Raft(2), "it is one already");
        assert_eq!(log.ok(promote(2)), Applied::Raft(3));
        assert_eq!(log.ok(demote(3)), Applied::Done);
        assert_eq!(log.ok(demote(3)), Applied::Unchanged);
        let node = log.state.intent.nodes[&NodeId(3)].clone();
        assert_eq!((node.role, node.rpc, node.raft), (Role::Worker, None, None));
        assert_eq!(log.ok(promote(3)), Applied::Raft(4));
        let lost = |old| Command::RenewRaft { node: NodeId(3), old };
        assert_eq!(log.ok(lost(4)), Applied::Raft(5));
        assert_eq!(log.ok(lost(4)), Applied::Raft(5), "asked twice, changed once");
        assert_eq!(raft(&log, 3), Some(5));
    }

    #[test]
    fn what_would_end_the_cluster_is_refused() {
        let mut log = Log::new(1);
        assert!(log.no(demote(1)).message.contains("last manager"));
        log.ok(promote(2));
        let e = log.no(Command::RemoveNode { node: NodeId(2) });
        assert!(e.hint.contains("netctl node demote n2"), "{e}");
        log.ok(demote(1));
        assert!(log.no(demote(2)).message.contains("last manager"));
        assert_eq!(
            log.no(Command::RenewRaft {
                node: NodeId(1),
                old: 1
            })
            .code,
            Code::Conflict,
            "a worker has none"
        );
        for rpc in [None, Some("here"), Some("0.0.0.0:2377"), Some("198.18.0.1:0")] {
            let command = Command::SetRole {
                node: NodeId(1),
                role: Role::Manager,
                rpc: rpc.map(str::to_owned),
            };
            assert_eq!(log.no(command).code, Code::Invalid, "{rpc:?}");
        }
    }

    #[test]
    fn who_takes_part_in_raft_is_no_worker() {
        let mut log = Log::new(2);
        log.ok(promote(2));
        log.ok(promote(3));
        let change = |steps: &[(ConfStep, u64)]| ConfChange { steps: steps.to_vec() };
        log.state.conf_changed(90, &change(&[(ConfStep::Learner, 2)]));
        log.state.conf_changed(91, &change(&[(ConfStep::Voter, 2)]));
        let e = log.no(demote(2));
        assert!(e.message.contains("still takes part"), "{e}");
        log.state
            .conf_changed(92, &change(&[(ConfStep::Remove, 2), (ConfStep::Learner, 3)]));
        assert!(
            log.no(demote(2)).message.contains("still takes part"),
            "it votes until the joint configuration is left"
        );
        log.state.conf_changed(93, &change(&[]));
        log.ok(demote(2));
        assert!(log.no(demote(3)).message.contains("still takes part"));
        let kept = State::decode(&log.state.encode().unwrap()).unwrap();
        assert!(kept.is_raft_member(3) && !kept.is_raft_member(2), "also in a snapshot");
    }

    #[test]
    fn an_empty_log_begins_under_an_id_that_never_took_part() {
        let mut log = Log::new(2);
        assert!(!log.state.raft_is_unused(1), "the founder's took part from the start");
        assert!(!log.state.raft_is_unused(2), "nobody's");
        log.ok(promote(2));
        assert!(log.state.raft_is_unused(2));
        let change = |step| ConfChange { steps: vec![(step, 2)] };
        log.state.conf_changed(90, &change(ConfStep::Learner));
        log.state.conf_changed(91, &change(ConfStep::Voter));
        assert!(!log.state.raft_is_unused(2));
        // A demotion that did not end: a manager by the log, and out of Raft. It may have voted.
        log.state.conf_changed(92, &change(ConfStep::Remove));
        assert!(!log.state.raft_is_unused(2));
        let kept = State::decode(&log.state.encode().unwrap()).unwrap();
        assert!(!kept.raft_is_unused(2), "also in a snapshot");
        // Its log was lost meanwhile.
        let (node, old) = (NodeId(2), 2);
        assert_eq!(log.ok(Command::RenewRaft { node, old }), Applied::Raft(3));
        assert!(log.state.raft_is_unused(3) && !log.state.raft_is_unused(2));
        let other = ConfChange {
            steps: vec![(ConfStep::Learner, 3)],
        };
        log.state.conf_changed(95, &other);
        assert!(log.state.raft_spent.is_empty(), "what is nobody's is not remembered");
    }

    #[test]
    fn nine_managers_are_enough() {
        let mut log = Log::new(9);
        for n in 2..=9 {
            log.ok(promote(n));
        }
        assert_eq!(log.no(promote(10)).code, Code::Conflict);
        log.ok(demote(4));
        log.ok(promote(10));
    }

    #[test]
    fn what_was_given_out_after_a_backup_is_not_given_again() {
        let mut log = Log::new(3);
        let net = model::NetworkSpec {
            subnet: Some("10.77.0.0/20".parse().unwrap()),
            ..Default::default()
        };
        let create = Command::CreateNetwork {
            name: "app".parse().unwrap(),
            spec: net,
            avoid: vec![],
        };
        let Applied::Network { vni, .. } = log.ok(create) else {
            panic!("no network");
        };
        let block = |log: &mut Log, n| log.ok(Command::AssignBlock { node: NodeId(n), vni });
        block(&mut log, 1);
        let backup = log.state.encode().unwrap();
        let since: Vec<Applied> = (0..40).map(|i| block(&mut log, i % 3 + 1)).collect();

        // Restored.
        log.state = State::decode(&backup).unwrap();
        let me = NewNode {
            hostname: "new".into(),
            role: Role::Manager,
            key: vec![99; 32],
            rpc: Some("198.18.0.9:2377".into()),
        };
        log.state.alone(&me).unwrap();
        let now = log.state.now_ms();
        log.go_on(log.state.applied(), now);
        let after: Vec<Applied> = (0..40).map(|i| block(&mut log, i % 2 + 2)).collect();
        assert!(after.iter().all(|b| !since.contains(b)), "{after:?}");
        // All that is left over is given out, and then there is a rest.
        let vni = Command::AssignBlock { node: NodeId(2), vni };
        let mut got = Vec::new();
        while let Ok((_, b)) = log.run(vni.clone()) {
            got.push(b);
        }
        assert!(got.iter().all(|b| !since.contains(b)));
        log.go_on(log.state.applied(), now + BLOCK_REST_MS);
        assert!(since.contains(&log.ok(vni)), "and at last these");
    }

    #[test]
    fn one_goes_on_alone() {
        let mut log = Log::new(3);
        log.ok(promote(2));
        log.ok(promote(3));
        let before = log.state.clone();
        let me = NewNode {
            hostname: "host2".into(),
            role: Role::Manager,
            key: before.intent.nodes[&NodeId(2)].key.clone(),
            rpc: Some("198.18.0.9:2377".into()),
        };
        let mut state = before.clone();
        assert_eq!(state.alone(&me), Ok((NodeId(2), 1_000)));
        let managers: Vec<_> = state.intent.nodes.iter().filter(|(_, n)| n.raft.is_some()).collect();
        assert_eq!(managers.len(), 1);
        assert_eq!(managers[0].1.rpc.as_deref(), Some("198.18.0.9:2377"));
        assert_eq!((state.applied, state.intent.revision), (EPOCH, EPOCH));
        assert_eq!(state.secrets, before.secrets);
        assert_eq!(state.intent.networks, before.intent.networks);
        // And again, on a machine that was never in it.
        let stranger = NewNode {
            key: vec![99; 32],
            hostname: "new".into(),
            ..me
        };
        assert_eq!(state.alone(&stranger), Ok((NodeId(2_000), 2_000)));
        assert!(
            !state.intent.nodes.contains_key(&NodeId(2)),
            "who had this address before is gone with its disk"
        );
        assert_eq!(state.intent.revision, 2 * EPOCH);
        assert_eq!(State::default().alone(&stranger).unwrap_err().code, Code::NoCluster);
    }
}
