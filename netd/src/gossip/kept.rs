//! Connections that are kept between comparisons, so that nodes which have nothing to say do not shake hands all day.
//!
//! Nothing counts because it counted before: whoever takes a connection from here or puts it back asks the log about its
//! peer, and what the log, the clock or a new certificate of this node has overtaken is closed, not used.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use model::{ids::NodeId, intent::Intent};

use crate::identity::{PeerId, admit_node};

/// Most connections that a node keeps to others. Enough for news to find a way around a few nodes that hang; few enough
/// that their buffers do not matter.
pub(super) const KEPT: usize = 8;
/// One that was not used for so long is closed. The other end waits longer, so that it is this one who closes.
const IDLE: Duration = Duration::from_secs(60);
/// None lives longer: in a cluster of more than [`KEPT`] nodes the partners change by that.
const LIFE: Duration = Duration::from_secs(300);

/// A connection to a node.
#[derive(Debug)]
pub(super) struct Conn<S> {
    pub(super) stream: S,
    pub(super) peer: PeerId,
    /// Where it leads.
    pub(super) addr: SocketAddr,
    /// When it was made.
    pub(super) made: Duration,
    /// Which of this node's certificates it was made with ([`Tls::replaced`](crate::identity::Tls::replaced)).
    pub(super) with: u64,
}

/// What a kept connection is held against.
#[derive(Debug, Clone, Copy)]
pub(super) struct Now<'a> {
    pub(super) time: Duration,
    pub(super) intent: &'a Intent,
    /// Number of this node's certificate.
    pub(super) with: u64,
}

impl Now<'_> {
    fn fits<S>(&self, c: &Conn<S>) -> bool {
        c.with == self.with && self.time.saturating_sub(c.made) < LIFE && admit_node(self.intent, &c.peer).is_ok()
    }
}

/// Connections that nobody uses at the moment, one a node at most.
#[derive(Debug)]
pub(super) struct Kept<S>(BTreeMap<NodeId, (Duration, Conn<S>)>);

impl<S> Default for Kept<S> {
    fn default() -> Self {
        Kept(BTreeMap::new())
    }
}

impl<S> Kept<S> {
    /// The connection to a node at an address, if there is one that counts.
    pub(super) fn take(&mut self, now: Now<'_>, node: NodeId, addr: SocketAddr) -> Option<Conn<S>> {
        self.sweep(now);
        let (_, c) = self.0.remove(&node)?;
        (c.addr == addr).then_some(c)
    }

    /// Keeps a connection for the next time, if it counts and there is room for it.
    pub(super) fn put(&mut self, now: Now<'_>, c: Conn<S>) {
        self.sweep(now);
        let room = self.0.len() < KEPT || self.0.contains_key(&c.peer.node);
        if room && now.fits(&c) {
            self.0.insert(c.peer.node, (now.time, c));
        }
    }

    /// Closes those that do not count any more.
    pub(super) fn sweep(&mut self, now: Now<'_>) {
        self.0
            .retain(|_, (used, c)| now.time.saturating_sub(*used) < IDLE && now.fits(c));
    }

    /// Whom they lead to.
    pub(super) fn nodes(&self) -> Vec<NodeId> {
        self.0.keys().copied().collect()
    }

    /// Closes all.
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }
}

#[cfg(test)]
mod tests {
    use std::{
        rc::Rc,
        time::{SystemTime, UNIX_EPOCH},
    };

    use model::intent::{Availability, Node, Role};

    use super::*;

    const S: Duration = Duration::from_secs(1);

    fn intent(ids: std::ops::RangeInclusive<u64>) -> Intent {
        let node = |i: u64| Node {
            hostname: format!("h{i}"),
            role: Role::Worker,
            availability: Availability::Active,
            key: key(i),
            down: false,
            rpc: None,
            raft: None,
            labels: Default::default(),
            max_tasks: None,
            machine: Default::default(),
        };
        Intent {
            revision: 1,
            cluster: "c1".into(),
            nodes: ids.map(|i| (NodeId(i), node(i))).collect(),
            ..Intent::default()
        }
    }

    fn key(i: u64) -> Vec<u8> {
        vec![u8::try_from(i).unwrap(); 32]
    }

    fn addr(i: u64) -> SocketAddr {
        format!("198.18.0.{i}:7946").parse().unwrap()
    }

    /// A connection that is seen to be open by a count of its stream.
    fn conn(i: u64, made: Duration, stream: &Rc<()>) -> Conn<Rc<()>> {
        Conn {
            stream: stream.clone(),
            peer: PeerId {
                cluster: "c1".into(),
                node: NodeId(i),
                role: Role::Worker,
                key: key(i),
                until: SystemTime::now() + S * 3600,
            },
            addr: addr(i),
            made,
            with: 0,
        }
    }

    fn at(time: Duration, intent: &Intent) -> Now<'_> {
        Now { time, intent, with: 0 }
    }

    /// Two kept connections, to nodes 1 and 2, and how many are open.
    fn two() -> (Kept<Rc<()>>, impl Fn() -> usize) {
        let open = Rc::new(());
        let (mut kept, all) = (Kept::default(), intent(1..=2));
        for i in 1..=2 {
            kept.put(at(S, &all), conn(i, S, &open));
        }
        let count = move || Rc::strong_count(&open) - 1;
        assert_eq!(count(), 2);
        (kept, count)
    }

    #[test]
    fn what_is_put_back_is_taken_again() {
        let (mut kept, open) = two();
        let all = intent(1..=2);
        let c = kept.take(at(S * 2, &all), NodeId(1), addr(1)).unwrap();
        assert!(kept.take(at(S * 2, &all), NodeId(1), addr(1)).is_none(), "it is in use");
        kept.put(at(S * 2, &all), c);
        assert_eq!((kept.nodes(), open()), (vec![NodeId(1), NodeId(2)], 2));
        // The node has moved: what leads to its old address is closed.
        assert!(kept.take(at(S * 2, &all), NodeId(1), addr(9)).is_none());
        assert_eq!(open(), 1);
    }

    #[test]
    fn they_are_bounded() {
        let open = Rc::new(());
        let (mut kept, all) = (Kept::default(), intent(1..=100));
        for i in 1..=100 {
            kept.put(at(S, &all), conn(i, S, &open));
        }
        assert_eq!((kept.nodes().len(), Rc::strong_count(&open) - 1), (KEPT, KEPT));
        // A second one to the same node takes the place of the first.
        kept.put(at(S, &all), conn(1, S, &open));
        assert_eq!((kept.nodes().len(), Rc::strong_count(&open) - 1), (KEPT, KEPT));
    }

    #[test]
    fn the_log_closes_them() {
        // Node 2 was removed.
        let (mut kept, open) = two();
        kept.sweep(at(S * 2, &intent(1..=1)));
        assert_eq!((kept.nodes(), open()), (vec![NodeId(1)], 1));
        // Removed while it is in use: it is not put back.
        let (mut kept, open) = two();
        let c = kept.take(at(S * 2, &intent(1..=2)), NodeId(2), addr(2)).unwrap();
        kept.put(at(S * 2, &intent(1..=1)), c);
        assert_eq!((kept.nodes(), open()), (vec![NodeId(1)], 1));
        // And not given out when nobody has swept before.
        let (mut kept, open) = two();
        assert!(kept.take(at(S * 2, &intent(1..=1)), NodeId(2), addr(2)).is_none());
        assert_eq!(open(), 1);
        // Another node under the same number, with another key.
        let (mut kept, open) = two();
        let mut other = intent(1..=2);
        other.nodes.get_mut(&NodeId(2)).unwrap().key = key(7);
        kept.sweep(at(S * 2, &other));
        assert_eq!((kept.nodes(), open()), (vec![NodeId(1)], 1));
    }

    #[test]
    fn certificates_close_them() {
        // This node has a new one.
        let (mut kept, open) = two();
        let all = intent(1..=2);
        kept.sweep(Now {
            with: 1,
            ..at(S * 2, &all)
        });
        assert_eq!(open(), 0);
        // The peer's has ended.
        let mut old = conn(1, S, &Rc::new(()));
        old.peer.until = UNIX_EPOCH;
        kept.put(at(S * 2, &all), old);
        assert_eq!(kept.nodes(), []);
    }

    #[test]
    fn time_closes_them() {
        let (mut kept, open) = two();
        let all = intent(1..=2);
        let mut now = S;
        // Used all the time, but not for ever.
        while now + IDLE / 2 < S + LIFE {
            now += IDLE / 2;
            let c = kept.take(at(now, &all), NodeId(1), addr(1)).unwrap();
            kept.put(at(now, &all), c);
        }
        assert_eq!((kept.nodes(), open()), (vec![NodeId(1)], 1), "node 2's was not used");
        assert!(kept.take(at(S + LIFE, &all), NodeId(1), addr(1)).is_none());
        assert_eq!(open(), 0);
    }
}
