//! What exists, in the overlay's words.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use overlay::{
    ClassifierPlace, LinkKind, MaskedMark, Ns, Observed, Route, RouteKey, RouteKind, Rule, SeenLink, SeenSpace, Space,
    Tunnel, Wanted, names,
};

use super::{ObserveError, StepError, Survey, sandbox};
use crate::{
    netfilter::{self, FilterError, Seen},
    netns::{self, Netns},
    rtnl::{self, Link, PROTOCOL, Rtnl, RtnlError},
    sysctl::{self, SysctlError},
};

/// Reads the calling thread's namespace as the host's, the sandboxes, and those of the tasks in `wanted`; with `only`, of
/// those alone.
pub fn observe(wanted: &Wanted, only: Option<&BTreeSet<PathBuf>>) -> Result<Survey, ObserveError> {
    let sandboxes = sandbox::look(wanted, only)?;
    // The plan leaves the devices of other tasks alone, so their settings (most of the work) are not read.
    let passed_over = |device: &str| match wanted.host.links.get(device).map(|l| &l.kind) {
        Some(LinkKind::Veth {
            far: Ns::Task(task), ..
        }) => only.is_some_and(|o| !o.contains(task)),
        Some(LinkKind::Veth {
            far: Ns::Sandbox(path), ..
        }) => !sandboxes.sandboxes.contains_key(path),
        _ => false,
    };
    let host = SeenSpace {
        sysctls: sysctls(&wanted.host, passed_over)?,
        ..space(&mut Rtnl::open()?)?
    };
    let mut observed = Observed {
        host,
        sandboxes: sandboxes.sandboxes,
        strays: sandboxes.strays,
        ..Observed::default()
    };
    match netfilter::observe() {
        _ if wanted.filter_elsewhere => {}
        Ok(Seen::Ours(filter)) => (observed.filter, observed.filter_present) = (Some(filter), true),
        Ok(Seen::Other) => observed.filter_present = true,
        Ok(Seen::Absent) => {}
        // A kernel without nf_tables holds no table; the step that makes one says what is missing.
        Err(FilterError::Missing { .. }) => {}
        Err(e) => return Err(e.into()),
    }
    let mut unreadable = sandboxes.unreadable;
    for (path, wanted) in wanted
        .tasks
        .iter()
        .filter(|(path, _)| only.is_none_or(|o| o.contains(*path)))
    {
        match task(path, wanted) {
            Ok(seen) => {
                observed.tasks.insert(path.clone(), Some(seen));
            }
            Err(StepError::Netns(e)) if e.is_absent() => {
                observed.tasks.insert(path.clone(), None);
            }
            Err(e) => unreadable.push((path.clone(), e)),
        }
    }
    Ok(Survey { observed, unreadable })
}

fn task(path: &Path, wanted: &Space) -> Result<SeenSpace, StepError> {
    netns::run_in(&Netns::open(path)?, || {
        Ok(SeenSpace {
            sysctls: sysctls(wanted, |_| false)?,
            ..space(&mut Rtnl::open()?)?
        })
    })?
}

/// The wanted settings, as they are in the calling thread's namespace.
pub(super) fn sysctls(
    wanted: &Space,
    passed_over: impl Fn(&str) -> bool,
) -> Result<BTreeMap<String, String>, SysctlError> {
    let mut out = BTreeMap::new();
    for key in wanted
        .sysctls
        .keys()
        .filter(|k| !overlay::device_of(k).is_some_and(&passed_over))
    {
        if let Some(value) = sysctl::read(key)? {
            out.insert(key.clone(), value);
        }
    }
    Ok(out)
}

fn seen_link(l: &Link) -> SeenLink {
    let vxlan = l.vxlan.filter(|v| v.external && !v.learning);
    let tunnel = l.vxlan.filter(|v| !v.external && !v.learning && l.lower_elsewhere);
    let tunnel = tunnel.and_then(|v| {
        Some(Tunnel {
            vni: v.vni.try_into().ok()?,
            port: v.port,
            local: v.local?,
        })
    });
    SeenLink {
        index: l.index,
        alias: l.alias.clone(),
        kind: l.kind.clone(),
        vxlan_port: vxlan.map(|v| v.port),
        tunnel,
        peer_in: Default::default(),
        peer: l.lower.filter(|_| l.kind.as_deref() == Some("veth")),
        mac: l.mac,
        mtu: l.mtu,
        up: l.up,
        generates_addresses: l.generates_addresses,
    }
}

/// What VXLAN devices of ours send where, and the filters of our devices.
pub(super) fn forwarding(rtnl: &mut Rtnl, out: &mut SeenSpace) -> Result<(), RtnlError> {
    let of = |kind: &str| -> BTreeMap<u32, String> {
        out.links
            .iter()
            .filter(|(_, l)| names::is_ours(l.alias.as_deref()) && l.kind.as_deref() == Some(kind))
            .map(|(name, l)| (l.index, name.clone()))
            .collect()
    };
    let (tunnels, veths) = (of("vxlan"), of("veth"));
    for f in rtnl.fdb()? {
        out.fdb
            .extend(tunnels.get(&f.index).map(|link| (link.clone(), f.mac, f.to)));
    }
    let device = |index: u32| tunnels.get(&index).or_else(|| veths.get(&index)).cloned();
    for (index, link) in tunnels.clone().into_iter().chain(veths.clone()) {
        if !rtnl.has_clsact(index)? {
            continue;
        }
        out.clsact.insert(link.clone());
        out.classifiers
            .extend(rtnl.classifiers(index, &device)?.into_iter().map(|c| {
                let place = ClassifierPlace {
                    link: link.clone(),
                    hook: c.hook,
                    priority: c.priority,
                    handle: c.handle,
                };
                (place, c.classifier)
            }));
    }
    Ok(())
}

/// Everything but the settings, and what only sandboxes have.
pub(super) fn space(rtnl: &mut Rtnl) -> Result<SeenSpace, RtnlError> {
    let links = rtnl.links()?;
    let name: BTreeMap<u32, &str> = links.iter().map(|l| (l.index, l.name.as_str())).collect();
    let name_of = |index: u32| name.get(&index).map(|n| (*n).to_owned());
    let ours: BTreeMap<u32, &str> = links
        .iter()
        .filter(|l| names::is_ours(l.alias.as_deref()))
        .map(|l| (l.index, l.name.as_str()))
        .collect();
    let mut out = SeenSpace {
        links: links.iter().map(|l| (l.name.clone(), seen_link(l))).collect(),
        ..SeenSpace::default()
    };
    for a in rtnl.addresses()?.into_iter().filter(|a| a.no_prefix_route) {
        out.addresses
            .extend(ours.get(&a.index).map(|n| ((*n).to_owned(), a.net)));
    }
    for n in rtnl
        .neighbours()?
        .into_iter()
        .filter(|n| n.protocol == PROTOCOL && n.permanent)
    {
        out.neighbours
            .extend(name_of(n.index).map(|link| ((link, n.address), n.mac)));
    }
    for r in rtnl
        .routes_of_any_kind()?
        .into_iter()
        .filter(|r| r.protocol == PROTOCOL)
    {
        let key = RouteKey {
            table: r.table,
            to: r.to,
        };
        let (kind, link) = match r.kind {
            rtnl::RouteKind::Unicast => (RouteKind::Unicast, name_of(r.index)),
            rtnl::RouteKind::Local => (RouteKind::Local, name_of(r.index)),
            rtnl::RouteKind::Unreachable => (RouteKind::Unreachable, Some("lo".to_owned())),
        };
        out.routes.extend(link.map(|link| {
            let route = Route {
                kind,
                link,
                via: r.via,
                source: r.source,
            };
            (key, route)
        }));
    }
    let rules = rtnl.rules()?.into_iter().filter(|r| r.protocol == PROTOCOL);
    out.rules = rules
        .map(|r| Rule {
            from: r.from,
            mark: (r.mark.1 > 0).then_some(MaskedMark {
                value: r.mark.0,
                mask: r.mark.1,
            }),
            own: r.own,
            table: r.table,
            priority: r.priority,
        })
        .collect();
    Ok(out)
}
