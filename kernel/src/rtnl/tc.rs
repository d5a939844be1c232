//! Filters at devices: clsact, flower and fw (linux/pkt_cls.h, linux/pkt_sched.h); their actions are in [`action`].
//!
//! Only what [`overlay::Classifier`] can say is written, and only that is understood when it is read; another filter at
//! one of netd's priorities is known by its place alone.

use std::net::IpAddr;

use ipnet::IpNet;
use model::Mac;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use overlay::{Classifier, FIRST_PRIORITY, Hook, LAST_PRIORITY, MaskedMark, Match};

use super::{Rtnl, RtnlError};
use crate::netlink::{Attrs, Request, Writer};

mod action;
mod probe;

pub use probe::{Lack, lacks};

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
const FLOWER_IPV4_DST: u16 = 12;
const FLOWER_IPV4_DST_MASK: u16 = 13;
const FLOWER_IPV6_SRC: u16 = 14;
const FLOWER_IPV6_SRC_MASK: u16 = 15;
const FLOWER_IPV6_DST: u16 = 16;
const FLOWER_IPV6_DST_MASK: u16 = 17;
/// `TCA_FLOWER_FLAGS`: whether hardware has it, which is no property of ours.
const FLOWER_FLAGS: u16 = 22;
/// `TCA_FLOWER_IN_HW_COUNT`, likewise.
const FLOWER_IN_HW_COUNT: u16 = 86;
/// `TCA_FLOWER_KEY_FLAGS` and its mask, in the network's order.
const FLOWER_KEY_FLAGS: u16 = 47;
const FLOWER_KEY_FLAGS_MASK: u16 = 48;
/// `TCA_FLOWER_KEY_FLAGS_IS_FRAGMENT`.
const IS_FRAGMENT: [u8; 4] = [0, 0, 0, 1];
const FW_ACT: u16 = 4;
const FW_MASK: u16 = 5;

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
    let net = match on {
        Match::Frame {
            source, destination, ..
        } => source.or(*destination),
        Match::Fragment | Match::Mark(_) => None,
    };
    match net {
        Some(IpNet::V4(_)) => ETH_P_IP,
        Some(IpNet::V6(_)) => ETH_P_IPV6,
        None => ETH_P_ALL,
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

/// Adds a filter; refused (EEXIST) where one that looks at the same is at its priority. `by`: the index of the device
/// that its verdict needs ([`Verdict::device`]), else of no meaning.
pub fn add(index: u32, c: &Classifier, by: u32) -> Request {
    let handle = match c.on {
        Match::Frame { .. } | Match::Fragment => 0,
        Match::Mark(mark) => mark.value,
    };
    let mut w = header(index, handle, parent(c.hook), info(c.priority, protocol(&c.on)));
    match c.on {
        Match::Frame {
            mac,
            source,
            destination,
        } => {
            w.string(TCA_KIND, "flower").nest(TCA_OPTIONS, |o| {
                if let Some(mac) = mac {
                    o.bytes(FLOWER_ETH_SRC, &mac.0).bytes(FLOWER_ETH_SRC_MASK, &[0xff; 6]);
                }
                if source.or(destination).is_some() {
                    o.bytes(FLOWER_ETH_TYPE, &protocol(&c.on).to_be_bytes());
                }
                if let Some(net) = source {
                    within(o, net, FLOWER_IPV4_SRC, FLOWER_IPV6_SRC);
                }
                if let Some(net) = destination {
                    within(o, net, FLOWER_IPV4_DST, FLOWER_IPV6_DST);
                }
                o.nest(FLOWER_ACT, |list| action::write(list, c.verdict, by));
            });
        }
        Match::Fragment => {
            w.string(TCA_KIND, "flower").nest(TCA_OPTIONS, |o| {
                o.bytes(FLOWER_KEY_FLAGS, &IS_FRAGMENT)
                    .bytes(FLOWER_KEY_FLAGS_MASK, &IS_FRAGMENT)
                    .nest(FLOWER_ACT, |list| action::write(list, c.verdict, by));
            });
        }
        Match::Mark(mark) => {
            w.string(TCA_KIND, "fw").nest(TCA_OPTIONS, |o| {
                if mark.mask != u32::MAX {
                    o.bytes(FW_MASK, &mark.mask.to_ne_bytes());
                }
                o.nest(FW_ACT, |list| action::write(list, c.verdict, by));
            });
        }
    }
    Request {
        kind: RTM_NEWTFILTER,
        flags: NLM_F_CREATE | NLM_F_EXCL,
        body: w.0,
    }
}

/// An address and, by the next number, its mask.
fn within(o: &mut Writer, net: IpNet, v4: u16, v6: u16) {
    match net {
        IpNet::V4(n) => o.bytes(v4, &n.network().octets()).bytes(v4 + 1, &n.netmask().octets()),
        IpNet::V6(n) => o.bytes(v6, &n.network().octets()).bytes(v6 + 1, &n.netmask().octets()),
    };
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

    /// The filters of a device at netd's priorities. `device` tells the name of the one that has an index.
    pub fn classifiers(&mut self, index: u32, device: &dyn Fn(u32) -> Option<String>) -> Result<Vec<Seen>, RtnlError> {
        let mut out = Vec::new();
        for hook in [Hook::Ingress, Hook::Egress] {
            let answers = self.tc(RTM_GETTFILTER, index, parent(hook))?;
            out.extend(answers.iter().filter_map(|a| seen(&a.body, index, hook, device)));
        }
        Ok(out)
    }
}

fn word(body: &[u8], at: usize) -> Option<u32> {
    body.get(at..)?.first_chunk().map(|b| u32::from_ne_bytes(*b))
}

fn seen(body: &[u8], index: u32, hook: Hook, device: &dyn Fn(u32) -> Option<String>) -> Option<Seen> {
    let (handle, info) = (word(body, 8)?, word(body, 16)?);
    let priority = (info >> 16) as u16;
    // A number of 0 is the priority itself.
    if word(body, 4)? != index || handle == 0 || !(FIRST_PRIORITY..=LAST_PRIORITY).contains(&priority) {
        return None;
    }
    let attributes = Attrs(body.get(TCMSG..)?);
    let options = attributes.get(TCA_OPTIONS).map(Attrs);
    let read = match attributes.string(TCA_KIND).as_deref() {
        Some("flower") => options.and_then(|o| Some((flower(o)?, action::read(o.get(FLOWER_ACT)?, device)?))),
        Some("fw") => options.and_then(|o| Some((marked(o, handle)?, action::read(o.get(FW_ACT)?, device)?))),
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

fn marked(options: Attrs<'_>, handle: u32) -> Option<Match> {
    let mask = match options.get(FW_MASK) {
        Some(mask) => u32::from_ne_bytes(*mask.first_chunk()?),
        None => u32::MAX,
    };
    Some(Match::Mark(MaskedMark { value: handle, mask }))
}

fn flower(options: Attrs<'_>) -> Option<Match> {
    let known = [
        FLOWER_ACT,
        FLOWER_ETH_SRC,
        FLOWER_ETH_SRC_MASK,
        FLOWER_ETH_TYPE,
        FLOWER_IPV4_SRC,
        FLOWER_IPV4_SRC_MASK,
        FLOWER_IPV4_DST,
        FLOWER_IPV4_DST_MASK,
        FLOWER_IPV6_SRC,
        FLOWER_IPV6_SRC_MASK,
        FLOWER_IPV6_DST,
        FLOWER_IPV6_DST_MASK,
        FLOWER_KEY_FLAGS,
        FLOWER_KEY_FLAGS_MASK,
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
    let net = |v4: u16, v6: u16| {
        let (v4, v6) = (address::<4>(options, v4)?, address::<16>(options, v6)?);
        Some(v4.or(v6))
    };
    let (source, destination) = (
        net(FLOWER_IPV4_SRC, FLOWER_IPV6_SRC)?,
        net(FLOWER_IPV4_DST, FLOWER_IPV6_DST)?,
    );
    let flags = [FLOWER_KEY_FLAGS, FLOWER_KEY_FLAGS_MASK].map(|key| options.get(key));
    match flags {
        [None, None] => Some(Match::Frame {
            mac,
            source,
            destination,
        }),
        // Nothing else is asked of a fragment.
        [Some(flags), Some(mask)] => {
            let alone = mac.is_none() && source.is_none() && destination.is_none();
            (alone && flags == IS_FRAGMENT && mask == IS_FRAGMENT).then_some(Match::Fragment)
        }
        _ => None,
    }
}

/// `None`: it is there and is no address with a prefix.
fn address<const N: usize>(options: Attrs<'_>, key: u16) -> Option<Option<IpNet>>
where
    IpAddr: From<[u8; N]>,
{
    let Some(value) = options.get(key) else {
        return Some(None);
    };
    let value = <[u8; N]>::try_from(value).ok()?;
    let mask = <[u8; N]>::try_from(options.get(key + 1)?).ok()?;
    let prefix = ipnet::ip_mask_to_prefix(IpAddr::from(mask)).ok()?;
    Some(Some(IpNet::new(IpAddr::from(value), prefix).ok()?))
}

#[cfg(test)]
mod tests {
    use overlay::Verdict;

    use super::*;
    use crate::{netns, testing::Folder};

    fn network() -> model::Vni {
        4097.try_into().unwrap()
    }

    /// The loopback stands for a network's VXLAN device.
    fn tunnel(index: u32) -> Option<String> {
        (index == 1).then(|| "nx4097".to_owned())
    }

    /// And for the veth to the host.
    fn up(index: u32) -> Option<String> {
        (index == 1).then(|| "nvup".to_owned())
    }

    fn all() -> Vec<Classifier> {
        let frame = |mac, source: Option<&str>| Match::Frame {
            mac,
            source: source.map(|s| s.parse().unwrap()),
            destination: None,
        };
        let to = |net: &str| Match::Frame {
            mac: None,
            source: None,
            destination: Some(net.parse().unwrap()),
        };
        let marked = |value, mask| Match::Mark(MaskedMark { value, mask });
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
                marked(0x6f00_0002, u32::MAX),
                Verdict::SetDestination(member),
            ),
            at(Hook::Ingress, 7, to("10.77.0.0/16"), Verdict::Pass),
            at(Hook::Ingress, 8, to("fd00:77::/64"), Verdict::Pass),
            at(Hook::Ingress, 9, frame(None, Some("10.77.16.5/32")), Verdict::Recall),
            at(
                Hook::Ingress,
                10,
                marked(0x6f00_0000, 0xff00_0000),
                Verdict::Redirect {
                    tunnel: network(),
                    source: member,
                },
            ),
            at(Hook::Egress, 8, Match::Fragment, Verdict::Pass),
            at(
                Hook::Egress,
                9,
                marked(0x6e00_0000, 0xff00_0000),
                Verdict::Keep {
                    connection: 7,
                    packet: 8,
                },
            ),
        ]
    }

    /// What is written is what is read, from the messages alone: on every kernel.
    #[test]
    fn a_filter_reads_as_it_was_written() {
        let to_host = Classifier {
            hook: Hook::Egress,
            priority: FIRST_PRIORITY + 7,
            on: all()[0].on,
            verdict: Verdict::ToHost(Mac([2; 6])),
        };
        for c in all().into_iter().chain([to_host]) {
            let mut body = add(7, &c, 1).body;
            // The kernel gives a number to what had none.
            if !matches!(c.on, Match::Mark(_)) {
                body[8] = 1;
            }
            let by: &dyn Fn(u32) -> Option<String> = match c.verdict {
                Verdict::ToHost(_) => &up,
                _ => &tunnel,
            };
            let seen = seen(&body, 7, c.hook, by).unwrap();
            assert_eq!(seen.classifier, Some(c), "{c}");
            assert_eq!(super::seen(&body, 8, c.hook, &tunnel), None, "another device's");
            let away = super::seen(&body, 7, c.hook, &|_| None).unwrap().classifier;
            assert_eq!(
                away.is_none(),
                c.verdict.device().is_some(),
                "{c} to a device that is gone"
            );
            // Another protocol than ours in the header: not ours.
            body[16] ^= 1;
            assert_eq!(super::seen(&body, 7, c.hook, &tunnel).unwrap().classifier, None, "{c}");
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
        assert_eq!(rtnl.classifiers(1, &tunnel).unwrap(), []);
        let adds: Vec<Request> = all().iter().map(|c| add(1, c, 1)).collect();
        let results = rtnl.execute(&adds).unwrap();
        eprintln!("this kernel lacks {lacks:?}");
        assert_eq!(lacks.is_empty(), results.iter().all(Result::is_ok), "{results:?}");
        if !lacks.is_empty() {
            return;
        }
        let seen = rtnl.classifiers(1, &tunnel).unwrap();
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
        assert_eq!(rtnl.classifiers(1, &tunnel).unwrap(), []);
        assert!(
            rtnl.execute(&removals)
                .unwrap()
                .iter()
                .all(|r| r.as_ref().is_err_and(|e| e.is_absent()))
        );
    }
}
