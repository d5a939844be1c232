//! Filters at devices: clsact, flower, fw and their actions (linux/pkt_cls.h, linux/pkt_sched.h, linux/tc_act/).
//!
//! Only what [`overlay::Classifier`] can say is written, and only that is understood when it is read; another filter at
//! one of netd's priorities is known by its place alone.

use std::net::IpAddr;

use ipnet::IpNet;
use model::Mac;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use overlay::{Classifier, FIRST_PRIORITY, Hook, LAST_PRIORITY, Match, Verdict};

use super::{Rtnl, RtnlError};
use crate::netlink::{Attrs, Request, Writer};

const RTM_NEWQDISC: u16 = 36;
const RTM_GETQDISC: u16 = 38;
const RTM_NEWTFILTER: u16 = 44;
const RTM_DELTFILTER: u16 = 45;
const RTM_GETTFILTER: u16 = 46;
/// `TC_H_CLSACT`: where a device has its one qdisc of this kind.
const CLSACT: u32 = 0xffff_fff1;
/// `TC_H_MAKE(TC_H_CLSACT, 0)`: the qdisc's own number.
const CLSACT_HANDLE: u32 = 0xffff_0000;
/// `TC_H_MAKE(TC_H_CLSACT, TC_H_MIN_INGRESS)` and `..EGRESS`.
const INGRESS: u32 = 0xffff_fff2;
const EGRESS: u32 = 0xffff_fff3;
/// Octets of `struct tcmsg`.
const TCMSG: usize = 20;

const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;

const FLOWER_ACT: u16 = 3;
const FLOWER_ETH_SRC: u16 = 6;
const FLOWER_ETH_SRC_MASK: u16 = 7;
const FLOWER_ETH_TYPE: u16 = 8;
const FLOWER_IPV4_SRC: u16 = 10;
const FLOWER_IPV4_SRC_MASK: u16 = 11;
const FLOWER_IPV6_SRC: u16 = 14;
const FLOWER_IPV6_SRC_MASK: u16 = 15;
/// `TCA_FLOWER_FLAGS`: whether hardware has it, which is no property of ours.
const FLOWER_FLAGS: u16 = 22;
/// `TCA_FLOWER_IN_HW_COUNT`, likewise.
const FLOWER_IN_HW_COUNT: u16 = 86;
const FW_ACT: u16 = 4;

const ACT_KIND: u16 = 1;
const ACT_OPTIONS: u16 = 2;
/// `TCA_GACT_PARMS`, `TCA_SKBEDIT_PARMS` and `TCA_SKBMOD_PARMS` are one number.
const PARMS: u16 = 2;
const SKBEDIT_MARK: u16 = 5;
const SKBMOD_DMAC: u16 = 3;
/// `SKBMOD_F_DMAC`.
const SKBMOD_F_DMAC: u64 = 1;
const TC_ACT_OK: i32 = 0;
const TC_ACT_SHOT: i32 = 2;

/// `ETH_P_*` of linux/if_ether.h.
const ETH_P_ALL: u16 = 3;
const ETH_P_IP: u16 = 0x0800;
const ETH_P_IPV6: u16 = 0x86dd;

fn header(index: u32, handle: u32, parent: u32, info: u32) -> Writer {
    let mut body = vec![0u8; 4];
    for word in [index, handle, parent, info] {
        body.extend(word.to_ne_bytes());
    }
    Writer(body)
}

fn parent(hook: Hook) -> u32 {
    match hook {
        Hook::Ingress => INGRESS,
        Hook::Egress => EGRESS,
    }
}

fn info(priority: u16, protocol: u16) -> u32 {
    u32::from(priority) << 16 | u32::from(protocol.to_be())
}

fn protocol(on: &Match) -> u16 {
    match on {
        Match::Frame { source: Some(net), .. } if net.addr().is_ipv4() => ETH_P_IP,
        Match::Frame { source: Some(_), .. } => ETH_P_IPV6,
        Match::Frame { source: None, .. } | Match::Mark(_) => ETH_P_ALL,
    }
}

/// Gives a device its hooks; refused (EEXIST) where it has them.
pub fn add_clsact(index: u32) -> Request {
    let mut w = header(index, CLSACT_HANDLE, CLSACT, 0);
    w.string(TCA_KIND, "clsact");
    Request {
        kind: RTM_NEWQDISC,
        flags: NLM_F_CREATE | NLM_F_EXCL,
        body: w.0,
    }
}

/// Adds a filter; refused (EEXIST) where one that looks at the same is at its priority.
pub fn add(index: u32, c: &Classifier) -> Request {
    let handle = match c.on {
        Match::Frame { .. } => 0,
        Match::Mark(mark) => mark,
    };
    let mut w = header(index, handle, parent(c.hook), info(c.priority, protocol(&c.on)));
    match c.on {
        Match::Frame { mac, source } => {
            w.string(TCA_KIND, "flower").nest(TCA_OPTIONS, |o| {
                if let Some(mac) = mac {
                    o.bytes(FLOWER_ETH_SRC, &mac.0).bytes(FLOWER_ETH_SRC_MASK, &[0xff; 6]);
                }
                if let Some(net) = source {
                    o.bytes(FLOWER_ETH_TYPE, &protocol(&c.on).to_be_bytes());
                    match net {
                        IpNet::V4(n) => o
                            .bytes(FLOWER_IPV4_SRC, &n.network().octets())
                            .bytes(FLOWER_IPV4_SRC_MASK, &n.netmask().octets()),
                        IpNet::V6(n) => o
                            .bytes(FLOWER_IPV6_SRC, &n.network().octets())
                            .bytes(FLOWER_IPV6_SRC_MASK, &n.netmask().octets()),
                    };
                }
                o.nest(FLOWER_ACT, |list| action(list, c.verdict));
            });
        }
        Match::Mark(_) => {
            w.string(TCA_KIND, "fw").nest(TCA_OPTIONS, |o| {
                o.nest(FW_ACT, |list| action(list, c.verdict));
            });
        }
    }
    Request {
        kind: RTM_NEWTFILTER,
        flags: NLM_F_CREATE | NLM_F_EXCL,
        body: w.0,
    }
}

/// Removes a filter.
pub fn delete(index: u32, hook: Hook, priority: u16, handle: u32) -> Request {
    // No protocol: whatever the priority's is.
    Request {
        kind: RTM_DELTFILTER,
        flags: 0,
        body: header(index, handle, parent(hook), info(priority, 0)).0,
    }
}

/// `tc_gen` of linux/pkt_cls.h: index, capabilities, what follows, two counts.
fn general(follows: i32) -> Vec<u8> {
    let mut out = vec![0; 8];
    out.extend(follows.to_ne_bytes());
    out.resize(20, 0);
    out
}

/// A list of one action.
fn action(list: &mut Writer, verdict: Verdict) {
    let (kind, follows) = match verdict {
        Verdict::Pass => ("gact", TC_ACT_OK),
        Verdict::Drop => ("gact", TC_ACT_SHOT),
        Verdict::SetMark(_) => ("skbedit", TC_ACT_OK),
        Verdict::SetDestination(_) => ("skbmod", TC_ACT_OK),
    };
    list.nest(1, |a| {
        a.string(ACT_KIND, kind).nest(ACT_OPTIONS, |o| {
            let mut parms = general(follows);
            match verdict {
                Verdict::Pass | Verdict::Drop => {
                    o.bytes(PARMS, &parms);
                }
                Verdict::SetMark(mark) => {
                    o.bytes(PARMS, &parms).bytes(SKBEDIT_MARK, &mark.to_ne_bytes());
                }
                Verdict::SetDestination(mac) => {
                    // `struct tc_skbmod`: the flags are aligned to eight octets.
                    parms.resize(24, 0);
                    parms.extend(SKBMOD_F_DMAC.to_ne_bytes());
                    o.bytes(PARMS, &parms).bytes(SKBMOD_DMAC, &mac.0);
                }
            }
        });
    });
}

/// A filter at one of netd's priorities.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// Direction.
    pub hook: Hook,
    /// Priority.
    pub priority: u16,
    /// The kernel's number for it.
    pub handle: u32,
    /// What it is; `None`: nothing that netd makes.
    pub classifier: Option<Classifier>,
}

impl Rtnl {
    fn tc(&mut self, kind: u16, index: u32, parent: u32) -> Result<Vec<crate::netlink::Answer>, RtnlError> {
        let request = Request {
            kind,
            flags: 0,
            body: header(index, 0, parent, 0).0,
        };
        let answers = self.socket.dump(&request).map_err(|source| RtnlError::List {
            what: "filters of devices",
            source,
        })?;
        Ok(answers)
    }

    /// Whether a device has the hooks of clsact.
    pub fn has_clsact(&mut self, index: u32) -> Result<bool, RtnlError> {
        let seen = self.tc(RTM_GETQDISC, index, 0)?;
        Ok(seen
            .iter()
            .any(|a| word(&a.body, 4) == Some(index) && word(&a.body, 12) == Some(CLSACT)))
    }

    /// The filters of a device at netd's priorities.
    pub fn classifiers(&mut self, index: u32) -> Result<Vec<Seen>, RtnlError> {
        let mut out = Vec::new();
        for hook in [Hook::Ingress, Hook::Egress] {
            let answers = self.tc(RTM_GETTFILTER, index, parent(hook))?;
            out.extend(answers.iter().filter_map(|a| seen(&a.body, index, hook)));
        }
        Ok(out)
    }
}

fn word(body: &[u8], at: usize) -> Option<u32> {
    body.get(at..)?.first_chunk().map(|b| u32::from_ne_bytes(*b))
}

fn seen(body: &[u8], index: u32, hook: Hook) -> Option<Seen> {
    let (handle, info) = (word(body, 8)?, word(body, 16)?);
    let priority = (info >> 16) as u16;
    // A number of 0 is the priority itself.
    if word(body, 4)? != index || handle == 0 || !(FIRST_PRIORITY..=LAST_PRIORITY).contains(&priority) {
        return None;
    }
    let attributes = Attrs(body.get(TCMSG..)?);
    let options = attributes.get(TCA_OPTIONS).map(Attrs);
    let read = match attributes.string(TCA_KIND).as_deref() {
        Some("flower") => options.and_then(flower),
        Some("fw") => options.and_then(|o| Some((Match::Mark(handle), verdict(o.get(FW_ACT)?)?))),
        _ => None,
    };
    let classifier = read.map(|(on, verdict)| Classifier {
        hook,
        priority,
        on,
        verdict,
    });
    Some(Seen {
        hook,
        priority,
        handle,
        // A filter of another protocol would look at fewer packets.
        classifier: classifier.filter(|c| info as u16 == protocol(&c.on).to_be()),
    })
}

fn flower(options: Attrs<'_>) -> Option<(Match, Verdict)> {
    let known = [
        FLOWER_ACT,
        FLOWER_ETH_SRC,
        FLOWER_ETH_SRC_MASK,
        FLOWER_ETH_TYPE,
        FLOWER_IPV4_SRC,
        FLOWER_IPV4_SRC_MASK,
        FLOWER_IPV6_SRC,
        FLOWER_IPV6_SRC_MASK,
        FLOWER_FLAGS,
        FLOWER_IN_HW_COUNT,
    ];
    if options.into_iter().any(|(kind, _)| !known.contains(&kind)) {
        return None;
    }
    let mac = match (options.get(FLOWER_ETH_SRC), options.get(FLOWER_ETH_SRC_MASK)) {
        (None, _) => None,
        (Some(mac), Some([0xff, 0xff, 0xff, 0xff, 0xff, 0xff])) => Some(Mac(mac.try_into().ok()?)),
        _ => return None,
    };
    let v4 = address::<4>(options, FLOWER_IPV4_SRC, FLOWER_IPV4_SRC_MASK)?;
    let v6 = address::<16>(options, FLOWER_IPV6_SRC, FLOWER_IPV6_SRC_MASK)?;
    Some((
        Match::Frame { mac, source: v4.or(v6) },
        verdict(options.get(FLOWER_ACT)?)?,
    ))
}

/// `None`: it is there and is no address with a prefix.
fn address<const N: usize>(options: Attrs<'_>, key: u16, mask: u16) -> Option<Option<IpNet>>
where
    IpAddr: From<[u8; N]>,
{
    let Some(value) = options.get(key) else {
        return Some(None);
    };
    let value = <[u8; N]>::try_from(value).ok()?;
    let mask = <[u8; N]>::try_from(options.get(mask)?).ok()?;
    let prefix = ipnet::ip_mask_to_prefix(IpAddr::from(mask)).ok()?;
    Some(Some(IpNet::new(IpAddr::from(value), prefix).ok()?))
}

fn verdict(list: &[u8]) -> Option<Verdict> {
    let mut actions = Attrs(list).into_iter();
    let (Some((_, action)), None) = (actions.next(), actions.next()) else {
        return None;
    };
    let action = Attrs(action);
    let options = Attrs(action.get(ACT_OPTIONS)?);
    let follows = word(options.get(PARMS)?, 8)? as i32;
    match (action.string(ACT_KIND)?.as_str(), follows) {
        ("gact", TC_ACT_OK) => Some(Verdict::Pass),
        ("gact", TC_ACT_SHOT) => Some(Verdict::Drop),
        ("skbedit", TC_ACT_OK) => {
            let mark = options.get(SKBEDIT_MARK)?.first_chunk()?;
            Some(Verdict::SetMark(u32::from_ne_bytes(*mark)))
        }
        ("skbmod", TC_ACT_OK) => Some(Verdict::SetDestination(Mac(options
            .get(SKBMOD_DMAC)?
            .try_into()
            .ok()?))),
        _ => None,
    }
}

/// A part of tc that filters need, and whether the kernel has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lack {
    /// What is missing.
    pub what: &'static str,
    /// Build option.
    pub option: &'static str,
    /// Module with it.
    pub module: &'static str,
}

/// What the kernel lacks for filters, found by trying in a namespace that ends with the trial. Empty: nothing.
pub fn lacks() -> Result<Vec<Lack>, RtnlError> {
    let frame = Match::Frame {
        mac: None,
        source: None,
    };
    let drop_all = (Hook::Ingress, frame, Verdict::Drop);
    let set_mark = (Hook::Ingress, frame, Verdict::SetMark(1));
    let by_mark = (Hook::Egress, Match::Mark(1), Verdict::Drop);
    let set_mac = (Hook::Egress, frame, Verdict::SetDestination(Mac([2; 6])));
    let trials = [
        (
            drop_all,
            "the classifier flower, or the action gact",
            "CONFIG_NET_CLS_FLOWER, CONFIG_NET_ACT_GACT",
            "cls_flower, act_gact",
        ),
        (set_mark, "the action skbedit", "CONFIG_NET_ACT_SKBEDIT", "act_skbedit"),
        (by_mark, "the classifier fw", "CONFIG_NET_CLS_FW", "cls_fw"),
        (set_mac, "the action skbmod", "CONFIG_NET_ACT_SKBMOD", "act_skbmod"),
    ];
    crate::netns::run_in_new(|| {
        let mut rtnl = Rtnl::open()?;
        let mut out = Vec::new();
        // The loopback has index 1 in every namespace.
        if !matches!(rtnl.execute(&[add_clsact(1)])?.as_slice(), [Ok(())]) {
            return Ok(vec![Lack {
                what: "the qdisc clsact",
                option: "CONFIG_NET_SCH_INGRESS",
                module: "sch_ingress",
            }]);
        }
        for (i, ((hook, on, verdict), what, option, module)) in (0..).zip(trials) {
            let classifier = Classifier {
                hook,
                priority: FIRST_PRIORITY + i,
                on,
                verdict,
            };
            if !matches!(rtnl.execute(&[add(1, &classifier)])?.as_slice(), [Ok(())]) {
                out.push(Lack { what, option, module });
            }
        }
        Ok(out)
    })?
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{netns, testing::Folder};

    fn all() -> Vec<Classifier> {
        let frame = |mac, source: Option<&str>| Match::Frame {
            mac,
            source: source.map(|s| s.parse().unwrap()),
        };
        let member = Mac([6, 0x6e, 0, 0, 0, 2]);
        let mac = Some(member);
        let at = |hook, n, on, verdict| Classifier {
            hook,
            priority: FIRST_PRIORITY + n,
            on,
            verdict,
        };
        vec![
            at(Hook::Ingress, 1, frame(mac, Some("10.77.16.16/28")), Verdict::Pass),
            at(Hook::Ingress, 1, frame(mac, Some("10.77.99.9/32")), Verdict::Pass),
            at(Hook::Ingress, 2, frame(mac, Some("fd00:77::1010/124")), Verdict::Pass),
            at(Hook::Ingress, 3, frame(None, Some("10.77.0.0/16")), Verdict::Drop),
            at(Hook::Ingress, 4, frame(None, Some("fd00:77::/64")), Verdict::Drop),
            at(Hook::Ingress, 5, frame(mac, None), Verdict::SetMark(0x6f00_0002)),
            at(Hook::Ingress, 6, frame(None, None), Verdict::Drop),
            at(
                Hook::Egress,
                5,
                Match::Mark(0x6f00_0002),
                Verdict::SetDestination(member),
            ),
        ]
    }

    /// What is written is what is read, from the messages alone: on every kernel.
    #[test]
    fn a_filter_reads_as_it_was_written() {
        for c in all() {
            let mut body = add(7, &c).body;
            // The kernel gives a number to what had none.
            if matches!(c.on, Match::Frame { .. }) {
                body[8] = 1;
            }
            let seen = seen(&body, 7, c.hook).unwrap();
            assert_eq!(seen.classifier, Some(c), "{c}");
            assert_eq!(super::seen(&body, 8, c.hook), None, "another device's");
            // Another protocol than ours in the header: not ours.
            body[16] ^= 1;
            assert_eq!(super::seen(&body, 7, c.hook).unwrap().classifier, None, "{c}");
        }
    }

    #[test]
    fn what_the_kernel_lacks_is_named_and_what_it_has_works() {
        let lacks = lacks().unwrap();
        let folder = Folder::new("tc");
        let ns = netns::create(&folder.path().join("a")).unwrap();
        let mut rtnl = Rtnl::open_in(&ns).unwrap();
        assert!(!rtnl.has_clsact(1).unwrap());
        rtnl.execute_all(&[add_clsact(1)]).unwrap();
        assert!(rtnl.has_clsact(1).unwrap());
        assert_eq!(rtnl.classifiers(1).unwrap(), []);
        let adds: Vec<Request> = all().iter().map(|c| add(1, c)).collect();
        let results = rtnl.execute(&adds).unwrap();
        eprintln!("this kernel lacks {lacks:?}");
        assert_eq!(lacks.is_empty(), results.iter().all(Result::is_ok), "{results:?}");
        if !lacks.is_empty() {
            return;
        }
        let seen = rtnl.classifiers(1).unwrap();
        let mut read: Vec<Classifier> = seen.iter().filter_map(|s| s.classifier).collect();
        read.sort();
        let mut wanted = all();
        wanted.sort();
        assert_eq!(read, wanted);
        let again = rtnl.execute(&adds).unwrap();
        assert!(
            again
                .iter()
                .all(|r| r.as_ref().is_err_and(|e| e.errno == nix::errno::Errno::EEXIST)),
            "{again:?}"
        );
        let removals: Vec<Request> = seen.iter().map(|s| delete(1, s.hook, s.priority, s.handle)).collect();
        rtnl.execute_all(&removals).unwrap();
        assert_eq!(rtnl.classifiers(1).unwrap(), []);
        assert!(
            rtnl.execute(&removals)
                .unwrap()
                .iter()
                .all(|r| r.as_ref().is_err_and(|e| e.is_absent()))
        );
    }
}
