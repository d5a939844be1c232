//! What filters do: gact, skbedit, skbmod, ct, connmark and mirred (linux/tc_act/).

use model::Mac;
use overlay::{Verdict, names};

use crate::netlink::{Attrs, Writer};

const ACT_KIND: u16 = 1;
const ACT_OPTIONS: u16 = 2;
/// `TCA_GACT_PARMS`, and those of skbedit, skbmod and mirred, are one number.
const PARMS: u16 = 2;
/// `TCA_CT_PARMS` and `TCA_CONNMARK_PARMS` are another one.
const CT_PARMS: u16 = 1;
const SKBEDIT_MARK: u16 = 5;
const SKBMOD_DMAC: u16 = 3;
const SKBMOD_SMAC: u16 = 4;
/// `SKBMOD_F_DMAC`, `SKBMOD_F_SMAC`.
const SKBMOD_F_DMAC: u64 = 1;
const SKBMOD_F_SMAC: u64 = 2;
const CT_ACTION: u16 = 3;
const CT_ZONE: u16 = 4;
const CT_MARK: u16 = 5;
const CT_MARK_MASK: u16 = 6;
/// `TCA_CT_ACT_COMMIT`.
const CT_COMMIT: u16 = 1;
/// `TCA_EGRESS_REDIR`.
const EGRESS_REDIRECT: u32 = 1;

/// `TC_ACT_UNSPEC`: the next filter looks at the packet.
const CONTINUE: i32 = -1;
const OK: i32 = 0;
const SHOT: i32 = 2;
/// The next action of the list.
const PIPE: i32 = 3;
const STOLEN: i32 = 4;

/// `tc_gen` of linux/pkt_cls.h: index, capabilities, what follows, two counts.
fn general(follows: i32) -> Vec<u8> {
    let mut out = vec![0; 8];
    out.extend(follows.to_ne_bytes());
    out.resize(20, 0);
    out
}

/// `struct tc_skbmod`: the flags are aligned to eight octets.
fn skbmod(follows: i32, flag: u64) -> Vec<u8> {
    let mut out = general(follows);
    out.resize(24, 0);
    out.extend(flag.to_ne_bytes());
    out
}

/// `struct tc_mirred`.
fn redirect(by: u32) -> Vec<u8> {
    let mut out = general(STOLEN);
    out.extend(EGRESS_REDIRECT.to_ne_bytes());
    out.extend(by.to_ne_bytes());
    out
}

/// The actions of a verdict; `by` is the index of the device that it needs.
pub(super) fn write(list: &mut Writer, verdict: Verdict, by: u32) {
    let mut order = 0;
    let mut action = |kind: &str, options: &dyn Fn(&mut Writer)| {
        order += 1;
        list.nest(order, |a| {
            a.string(ACT_KIND, kind).nest(ACT_OPTIONS, |o| options(o));
        });
    };
    match verdict {
        Verdict::Pass => action("gact", &|o| {
            o.bytes(PARMS, &general(OK));
        }),
        Verdict::Drop => action("gact", &|o| {
            o.bytes(PARMS, &general(SHOT));
        }),
        Verdict::SetMark(mark) => action("skbedit", &|o| {
            o.bytes(PARMS, &general(OK)).bytes(SKBEDIT_MARK, &mark.to_ne_bytes());
        }),
        Verdict::SetDestination(mac) => {
            action("skbmod", &|o| {
                o.bytes(PARMS, &skbmod(PIPE, SKBMOD_F_DMAC)).bytes(SKBMOD_DMAC, &mac.0);
            });
            action("skbedit", &|o| {
                o.bytes(PARMS, &general(OK)).bytes(SKBEDIT_MARK, &[0; 4]);
            });
        }
        Verdict::Keep { connection, packet } => {
            action("ct", &|o| {
                o.bytes(CT_PARMS, &general(PIPE))
                    .bytes(CT_ACTION, &CT_COMMIT.to_ne_bytes())
                    .bytes(CT_MARK, &connection.to_ne_bytes())
                    .bytes(CT_MARK_MASK, &u32::MAX.to_ne_bytes());
            });
            action("skbedit", &|o| {
                o.bytes(PARMS, &general(OK)).bytes(SKBEDIT_MARK, &packet.to_ne_bytes());
            });
        }
        Verdict::Recall => {
            // Kept, or each packet of a flow that begins here would have one made for it.
            action("ct", &|o| {
                o.bytes(CT_PARMS, &general(PIPE))
                    .bytes(CT_ACTION, &CT_COMMIT.to_ne_bytes());
            });
            action("connmark", &|o| {
                // `struct tc_connmark`: the zone, 0, and two octets of nothing.
                let mut parms = general(CONTINUE);
                parms.resize(24, 0);
                o.bytes(CT_PARMS, &parms);
            });
        }
        Verdict::Redirect { source, .. } => {
            action("skbmod", &|o| {
                o.bytes(PARMS, &skbmod(PIPE, SKBMOD_F_SMAC))
                    .bytes(SKBMOD_SMAC, &source.0);
            });
            action("mirred", &|o| {
                o.bytes(PARMS, &redirect(by));
            });
        }
        Verdict::ToHost(mac) => {
            action("skbmod", &|o| {
                o.bytes(PARMS, &skbmod(PIPE, SKBMOD_F_DMAC)).bytes(SKBMOD_DMAC, &mac.0);
            });
            action("mirred", &|o| {
                o.bytes(PARMS, &redirect(by));
            });
        }
    }
}

/// One action as it is listed.
struct Action<'a> {
    kind: String,
    options: Attrs<'a>,
}

impl<'a> Action<'a> {
    fn of(attribute: &'a [u8]) -> Option<Self> {
        let action = Attrs(attribute);
        Some(Action {
            kind: action.string(ACT_KIND)?,
            options: Attrs(action.get(ACT_OPTIONS)?),
        })
    }

    fn parms(&self) -> Option<&'a [u8]> {
        let key = match self.kind.as_str() {
            "ct" | "connmark" => CT_PARMS,
            _ => PARMS,
        };
        self.options.get(key)
    }

    fn follows(&self) -> Option<i32> {
        super::word(self.parms()?, 8).map(|w| w as i32)
    }

    fn number(&self, key: u16) -> Option<u32> {
        self.options.get(key)?.first_chunk().map(|b| u32::from_ne_bytes(*b))
    }

    fn short(&self, key: u16) -> u16 {
        let octets = self.options.get(key).and_then(|v| v.first_chunk());
        octets.map_or(0, |b| u16::from_ne_bytes(*b))
    }

    fn mac(&self, key: u16) -> Option<Mac> {
        Some(Mac(self.options.get(key)?.try_into().ok()?))
    }
}

/// `None`: nothing that [`write`] makes.
pub(super) fn read(list: &[u8], device: &dyn Fn(u32) -> Option<String>) -> Option<Verdict> {
    let actions: Option<Vec<Action<'_>>> = Attrs(list).into_iter().map(|(_, a)| Action::of(a)).collect();
    let actions = actions?;
    let mut steps = Vec::new();
    for a in &actions {
        steps.push((a.kind.as_str(), a.follows()?));
    }
    let (first, last) = (actions.first()?, actions.last()?);
    match steps.as_slice() {
        [("gact", OK)] => Some(Verdict::Pass),
        [("gact", SHOT)] => Some(Verdict::Drop),
        [("skbedit", OK)] => Some(Verdict::SetMark(first.number(SKBEDIT_MARK)?)),
        [("skbmod", PIPE), ("skbedit", OK)] => {
            let mac = first.mac(SKBMOD_DMAC)?;
            (last.number(SKBEDIT_MARK)? == 0).then_some(Verdict::SetDestination(mac))
        }
        [("ct", PIPE), ("skbedit", OK)] => {
            let ours = first.short(CT_ACTION) == CT_COMMIT
                && first.short(CT_ZONE) == 0
                && first.number(CT_MARK_MASK)? == u32::MAX;
            let (connection, packet) = (first.number(CT_MARK)?, last.number(SKBEDIT_MARK)?);
            ours.then_some(Verdict::Keep { connection, packet })
        }
        [("ct", PIPE), ("connmark", CONTINUE)] => {
            let plain = first.short(CT_ACTION) == CT_COMMIT
                && first.short(CT_ZONE) == 0
                && first.options.get(CT_MARK_MASK).is_none();
            let zone = last.parms()?.get(20..22)?;
            (plain && zone == [0, 0]).then_some(Verdict::Recall)
        }
        [("skbmod", PIPE), ("mirred", STOLEN)] => {
            let parms = last.parms()?;
            let direction = super::word(parms, 20)?;
            let by = device(super::word(parms, 24)?).filter(|_| direction == EGRESS_REDIRECT)?;
            match (first.mac(SKBMOD_SMAC), first.mac(SKBMOD_DMAC)) {
                (Some(source), None) => {
                    let tunnel = names::network_of_tunnel(&by)?;
                    Some(Verdict::Redirect { tunnel, source })
                }
                (None, Some(mac)) => (by == names::SANDBOX_END).then_some(Verdict::ToHost(mac)),
                _ => None,
            }
        }
        _ => None,
    }
}
