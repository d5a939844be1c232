//! Managers that lag too far behind for entries.

use super::*;

impl Net {
    /// The third of three managers is far behind, and the first has made a snapshot that it needs.
    fn one_far_behind() -> Net {
        let mut net = Net::three();
        net.cut = vec![3];
        for n in 50..80 {
            net.propose(1, n.into(), worker(n)).unwrap();
        }
        net.managers.get_mut(&1).unwrap().snapshot().unwrap();
        net.cut.clear();
        net
    }

    /// Fills the segment of the leader's log that is there, on a disk that has no room for another.
    fn stall(&mut self) {
        self.disks[&1].0.borrow_mut().full = true;
        let secret = || Some(crate::state::Secret(vec![1; 4000]));
        for request in 1000..1100 {
            if self.managers[&1].is_stalled() {
                return;
            }
            self.ask(
                1,
                request,
                Command::SetSecrets(BTreeMap::from([("x".into(), secret())])),
            );
        }
        panic!("the disk is not full");
    }
}

#[test]
fn one_that_is_far_behind_gets_a_snapshot() {
    let mut net = Net::one_far_behind();
    let now = net.now;
    let mut sent = false;
    net.until("it has caught up", |n| {
        if n.wire.iter().any(|w| w.1.kind == raft::Kind::Snapshot) {
            sent = true;
        }
        if n.managers[&1].status(n.now).members.iter().any(|m| m.snapshot) && n.now > now + Duration::from_secs(2) {
            n.input(1, Input::SnapshotSent { id: 3, arrived: true });
        }
        *n.managers[&3].read() == *n.managers[&1].read()
    });
    assert!(sent);
    // Also after a restart.
    net.reopen(3);
    net.until("again", |n| *n.managers[&3].read() == *n.managers[&1].read());
}

/// Simulator, seed 143332: the leader's disk was full when it heard what became of its snapshot, and for the rest of its
/// term it waited to hear it.
#[test]
fn a_full_disk_does_not_hide_what_became_of_a_snapshot() {
    for arrived in [false, true] {
        let mut net = Net::one_far_behind();
        let is_snapshot = |m: &(Duration, Message)| m.1.kind == raft::Kind::Snapshot;
        net.until("a snapshot is sent", |n| n.wire.iter().any(is_snapshot));
        if !arrived {
            net.wire.retain(|m| !is_snapshot(m));
        }
        net.stall();
        // Shorter than an election: the leader stays. What the third answers, it does not hear.
        net.run(Duration::from_millis(100));
        net.input(1, Input::SnapshotSent { id: 3, arrived });
        net.disks[&1].0.borrow_mut().full = false;
        net.work(1);
        assert!(!net.managers[&1].is_stalled());
        let room = net.now;
        net.until("it has caught up", |n| {
            assert!(n.now - room < Duration::from_secs(1), "arrived: {arrived}");
            assert_eq!(n.leader(), Some(1));
            let all = n.managers[&1].status(n.now);
            all.members.iter().all(|m| m.matched == Some(all.last_index))
        });
    }
}
