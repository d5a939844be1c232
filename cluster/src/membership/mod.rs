//! Who is alive: SWIM (foca drives the protocol; this drives foca) and what becomes of its verdicts ([`Watch`]).
//!
//! Nothing here has a clock or a socket. Events go in through [`Membership::handle_data`] and [`Membership::tick`], what
//! is to be done comes out of [`Membership::poll`]; [`Membership::next_timer`] tells when to tick again. The same seed
//! and events give the same outputs.

mod codec;
mod health;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, VecDeque},
    net::SocketAddr,
    num::{NonZeroU8, NonZeroUsize},
    time::Duration,
};

use foca::{Codec as _, Foca, NoCustomBroadcast, Notification, PeriodicParams, Runtime, State, Timer};
use model::ids::NodeId;
use rand::{SeedableRng, rngs::StdRng};
use ring::digest::{Context, SHA256};
use serde::{Deserialize, Serialize};

pub use codec::Member;
pub use health::{Outcome, PROBE_TIMEOUT, PROBE_TRIES, Watch};

use crate::seal::MAX_PLAIN;

/// How often one member is probed.
pub const PROBE_PERIOD: Duration = Duration::from_millis(300);
/// How long a direct answer may take before others are asked to probe.
pub const PROBE_RTT: Duration = Duration::from_millis(100);
/// How long a suspected member has time to object.
pub const SUSPICION: Duration = Duration::from_millis(1500);
/// A tick that comes later than this means that this node stood still: the time is not counted against the others.
pub const LAG: Duration = Duration::from_millis(200);
/// Octets of a SWIM message, at most: a sealed packet less the octet that tells its kind.
pub const MAX_MESSAGE: usize = MAX_PLAIN - 1;
/// Members that are told at once when this node's address changes; the others hear it by gossip.
const GREETED: usize = 8;
/// Most members that a state of [`Membership::state`] is read with.
pub const MAX_MEMBERS: usize = 16_384;

/// What the shell is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Send this to a member.
    Send {
        /// To whom.
        to: Member,
        /// At most [`MAX_MESSAGE`] octets.
        bytes: Vec<u8>,
    },
    /// A member answers.
    Up(Member),
    /// A member was declared dead, or has left.
    Down(Member),
    /// This node was declared dead wrongly and has taken a new generation: keep it on disk.
    Rejoined(Member),
}

/// How SWIM sees a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Liveness {
    /// Answers.
    Alive,
    /// Did not answer lately.
    Suspect,
    /// Dead or gone.
    Down,
}

/// A member as it is told to another node, or kept on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberState {
    /// Who.
    pub member: Member,
    /// SWIM's counter of objections.
    pub incarnation: u16,
    /// How it is seen.
    pub liveness: Liveness,
}

/// Why a message was not taken.
#[derive(Debug, thiserror::Error)]
pub enum MembershipError {
    /// Malformed or out of place.
    #[error("a gossip message was not taken; try: run the same version of netd on all nodes")]
    Message(#[source] foca::Error),
    /// From a node that was removed.
    #[error("a gossip message of {0}, which was removed from the cluster; try: netctl cluster leave there")]
    Removed(NodeId),
}

/// What foca asks for, kept until the shell polls or the time has come.
#[derive(Debug, Default)]
struct Pending {
    out: VecDeque<Output>,
    timers: BTreeMap<(Duration, u64), Timer<Member>>,
    count: u64,
    now: Duration,
}

impl Runtime<Member> for &mut Pending {
    fn notify(&mut self, n: Notification<'_, Member>) {
        match n {
            Notification::MemberUp(m) => self.out.push_back(Output::Up(*m)),
            Notification::MemberDown(m) => self.out.push_back(Output::Down(*m)),
            Notification::Rejoin(m) => self.out.push_back(Output::Rejoined(*m)),
            // A renewed member that was alive all the time is no news; the others concern this node alone.
            _ => {}
        }
    }

    fn send_to(&mut self, to: Member, data: &[u8]) {
        self.out.push_back(Output::Send {
            to,
            bytes: data.to_vec(),
        });
    }

    fn submit_after(&mut self, event: Timer<Member>, after: Duration) {
        self.count += 1;
        self.timers.insert((self.now + after, self.count), event);
    }
}

/// The SWIM state of this node. Times are counted from any fixed moment.
pub struct Membership {
    foca: Foca<Member, codec::Codec, StdRng, NoCustomBroadcast>,
    pending: Pending,
    /// Time that this node stood still, taken off every time given.
    stood_still: Duration,
    removed: Box<dyn Fn(NodeId) -> bool + Send + Sync>,
}

impl std::fmt::Debug for Membership {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Membership")
            .field("me", self.foca.identity())
            .field("members", &self.foca.num_members())
            .finish_non_exhaustive()
    }
}

fn config() -> foca::Config {
    let n = |n| NonZeroUsize::new(n).unwrap_or(NonZeroUsize::MIN);
    let every = |ms, members| {
        Some(PeriodicParams {
            frequency: Duration::from_millis(ms),
            num_members: n(members),
        })
    };
    foca::Config {
        probe_period: PROBE_PERIOD,
        probe_rtt: PROBE_RTT,
        num_indirect_probes: n(3),
        max_transmissions: NonZeroU8::new(10).unwrap_or(NonZeroU8::MIN),
        suspect_to_down_after: SUSPICION,
        // Generations tell the living from the dead; this only bounds the memory of members long gone.
        remove_down_after: Some(Duration::from_secs(3600)),
        max_packet_size: n(MAX_MESSAGE),
        notify_down_members: true,
        periodic_announce: every(30_000, 1),
        periodic_announce_to_down_members: every(5_000, 2),
        periodic_gossip: every(200, 3),
    }
}

impl Membership {
    /// This node's membership; `seed` feeds its random choices.
    pub fn new(me: Member, seed: u64) -> Self {
        Membership {
            foca: Foca::new(me, config(), StdRng::seed_from_u64(seed), codec::Codec),
            pending: Pending::default(),
            stood_still: Duration::ZERO,
            removed: Box::new(|_| false),
        }
    }

    /// This node.
    pub fn me(&self) -> Member {
        *self.foca.identity()
    }

    /// Nodes that `removed` names are refused from now on, and no longer probed. Nodes that the log does not know *yet*
    /// are let in: they hold the cluster's key, and a row or a vote of theirs counts only with the log.
    pub fn refuse(&mut self, now: Duration, removed: impl Fn(NodeId) -> bool + Send + Sync + 'static) {
        self.at(now);
        self.removed = Box::new(removed);
        let gone: Vec<_> = self
            .foca
            .iter_members()
            .filter(|m| (self.removed)(m.id().node))
            .map(|m| foca::Member::new(*m.id(), m.incarnation(), State::Down))
            .collect();
        // Fails only when a member cannot be encoded, and the codec writes into a growing buffer.
        let _ = self.foca.apply_many(gone.into_iter(), true, &mut self.pending);
    }

    fn at(&mut self, now: Duration) {
        self.pending.now = self.pending.now.max(now.saturating_sub(self.stood_still));
    }

    /// Takes a message that came in a sealed packet.
    pub fn handle_data(&mut self, now: Duration, bytes: &[u8]) -> Result<(), MembershipError> {
        self.at(now);
        let header = codec::Codec
            .decode_header(bytes)
            .map_err(|e| MembershipError::Message(foca::Error::Decode(Box::new(e))))?;
        if (self.removed)(header.src.node) {
            return Err(MembershipError::Removed(header.src.node));
        }
        self.foca
            .handle_data(bytes, &mut self.pending)
            .map_err(MembershipError::Message)
    }

    /// When [`Membership::tick`] is due; none: nothing is planned.
    pub fn next_timer(&self) -> Option<Duration> {
        // Nobody is woken to tell nothing: that timer runs with the next one, or as soon as there is news.
        let quiet = self.foca.updates_backlog() == 0;
        self.first(|t| !(quiet && matches!(t, Timer::PeriodicGossip(_))))
    }

    fn first(&self, which: impl Fn(&Timer<Member>) -> bool) -> Option<Duration> {
        let mut timers = self.pending.timers.iter();
        let ((at, _), _) = timers.find(|(_, t)| which(t))?;
        Some(*at + self.stood_still)
    }

    /// Lets planned things happen. After a pause of more than [`LAG`] the time lost is not counted, so that the answers
    /// that wait in the socket are read before anybody is suspected.
    pub fn tick(&mut self, now: Duration) {
        // The timer for news may have waited for some.
        if let Some(due) = self.first(|t| !matches!(t, Timer::PeriodicGossip(_)))
            && now.saturating_sub(due) > LAG
        {
            self.stood_still += now - due;
        }
        self.at(now);
        while let Some(first) = self.pending.timers.first_entry()
            && first.key().0 <= self.pending.now
        {
            let event = first.remove();
            // An incomplete probe cycle (after a pause) heals itself; nothing else can fail here.
            let _ = self.foca.handle_timer(event, &mut self.pending);
        }
    }

    /// The next thing to do.
    pub fn poll(&mut self) -> Option<Output> {
        self.pending.out.pop_front()
    }

    /// This node is spoken to elsewhere from now on: it takes a new generation (keep it on disk) and tells the others.
    pub fn moved(&mut self, now: Duration, addr: SocketAddr) -> Member {
        self.at(now);
        let me = self.me();
        let new = Member {
            generation: me.generation.saturating_add(1),
            addr,
            ..me
        };
        // Fails only when nothing changes, or a member cannot be encoded.
        let _ = self.foca.change_identity(new, &mut self.pending);
        // It probes again when somebody has answered the new one.
        let living: Vec<Member> = self.living().take(GREETED).collect();
        for m in living {
            let _ = self.foca.announce(m, &mut self.pending);
        }
        self.me()
    }

    /// Makes this node known to a member (of whom only the node must be right) and asks for others.
    pub fn announce(&mut self, now: Duration, to: Member) {
        self.at(now);
        let _ = self.foca.announce(to, &mut self.pending);
    }

    /// All members, this node included, as told to another node.
    pub fn state(&self) -> Vec<MemberState> {
        let me = MemberState {
            member: self.me(),
            incarnation: 0,
            liveness: Liveness::Alive,
        };
        let others = self.foca.iter_membership_state().map(|m| MemberState {
            member: *m.id(),
            incarnation: m.incarnation(),
            liveness: match m.state() {
                State::Alive => Liveness::Alive,
                State::Suspect => Liveness::Suspect,
                State::Down => Liveness::Down,
            },
        });
        std::iter::once(me).chain(others).collect()
    }

    /// Digest of who lives, where, and who of them is suspected: equal at two nodes that have nothing to tell each other
    /// about members. Those that are down do not count: nodes forget them at different times, and whoever still holds
    /// one of them for alive has another digest.
    pub fn digest(&self) -> u64 {
        let others = self.foca.iter_members().map(|m| (*m.id(), m.state() == State::Suspect));
        let all: BTreeMap<NodeId, (Member, bool)> = others
            .chain([(self.me(), false)])
            .map(|(m, suspect)| (m.node, (m, suspect)))
            .collect();
        let mut c = Context::new(&SHA256);
        for (member, suspect) in all.values() {
            let mut bytes = Vec::with_capacity(64);
            codec::put_member(&mut bytes, member);
            bytes.push(u8::from(*suspect));
            c.update(&bytes);
        }
        c.finish()
            .as_ref()
            .first_chunk::<8>()
            .map_or(0, |b| u64::from_be_bytes(*b))
    }

    /// Takes what another node (or the disk) knows; more than [`MAX_MEMBERS`] are not looked at.
    pub fn apply(&mut self, now: Duration, states: &[MemberState]) {
        self.at(now);
        let updates: Vec<_> = states
            .iter()
            .take(MAX_MEMBERS)
            .filter(|s| !(self.removed)(s.member.node))
            .map(|s| {
                let state = match s.liveness {
                    Liveness::Alive => State::Alive,
                    Liveness::Suspect => State::Suspect,
                    Liveness::Down => State::Down,
                };
                foca::Member::new(s.member, s.incarnation, state)
            })
            .collect();
        let _ = self.foca.apply_many(updates.into_iter(), true, &mut self.pending);
    }

    /// Members that SWIM holds for alive or suspect, without this node.
    pub fn living(&self) -> impl Iterator<Item = Member> + '_ {
        self.foca.iter_members().map(|m| *m.id())
    }

    /// Tells some members that this node goes for good.
    pub fn leave(&mut self, now: Duration) {
        self.at(now);
        let _ = self.foca.leave_cluster(&mut self.pending);
    }
}
