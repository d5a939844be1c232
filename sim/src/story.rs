//! What happened: as a hash, and as text.

use crate::{
    event::{Event, Packet},
    rng::mix,
    world::World,
};

impl World {
    pub(crate) fn note(&mut self, event: &Event) {
        let what = match event {
            Event::Act(i) => mix(1 + *i as u64),
            Event::Run { host, boot } => mix(2) ^ (*host as u64) << 8 ^ u64::from(*boot) << 16,
            Event::Raft { to, message: m } => {
                mix(3 ^ (m.kind as u64) << 8 ^ (*to as u64) << 16)
                    ^ mix(m.term << 32 ^ m.index << 8 ^ m.from)
                    ^ m.commit
            }
            Event::Sent { id, arrived, .. } => mix(4 ^ id << 8 ^ u64::from(*arrived) << 4),
            Event::Ask {
                host, client, request, ..
            } => mix(5 ^ (*host as u64) << 8 ^ (*client as u64) << 16) ^ *request as u64,
            Event::Told { client, request, .. } => mix(6 ^ (*client as u64) << 16) ^ *request as u64,
            Event::Try { client, request, turn } => {
                mix(7 ^ (*client as u64) << 16 ^ u64::from(*turn) << 8) ^ *request as u64
            }
            Event::Boot { host, .. } => mix(8 ^ (*host as u64) << 8),
            Event::Agent { host, .. } => mix(9 ^ (*host as u64) << 8),
            Event::Packet { from, to, packet } => {
                let size = match packet {
                    Packet::Swim(b) | Packet::Rows(b) | Packet::Rest(b) | Packet::Lacks(b, _) => crate::oracle::hash(b),
                    Packet::Pull(revision) => *revision,
                    Packet::View(d) => d.to ^ d.from << 32,
                    Packet::Pages(p) => p.len() as u64,
                    Packet::Compare(s) => s.0.values().fold(0, |a, b| a ^ b),
                };
                mix(10 ^ (*from as u64) << 8 ^ (*to as u64) << 16) ^ size
            }
        };
        self.trace = mix(self.trace.rotate_left(9) ^ what ^ mix(self.now));
    }

    /// Says what happens, for whoever looks for the reason.
    pub(crate) fn tell_story(&self, event: &Event) {
        let at = self.now / 1000;
        match event {
            Event::Act(i) => eprintln!("{at:>6} ms ** {:?}", self.script.acts[*i].1),
            Event::Raft { to, message: m } => eprintln!(
                "{at:>6} ms host {to} <- {:?} of {} to {} term {} index {}/{} commit {} entries {}{}",
                m.kind,
                m.from,
                m.to,
                m.term,
                m.index,
                m.log_term,
                m.commit,
                m.entries.len(),
                if m.reject { " rejected" } else { "" }
            ),
            Event::Ask {
                host,
                client,
                request,
                ask,
            } => {
                eprintln!("{at:>6} ms host {host} <- client {client} {request:x} {ask:?}");
            }
            Event::Told { client, request, told } => eprintln!("{at:>6} ms client {client} <- {request:x} {told:?}"),
            Event::Boot { host, .. } => eprintln!("{at:>6} ms host {host} starts"),
            _ => {}
        }
    }
}
