//! What exists, in the overlay's words.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use overlay::{LinkKind, Observed, Route, RouteKey, Rule, SeenLink, SeenSpace, Space, Wanted, names};

use super::{ObserveError, StepError, Survey};
use crate::{
    netfilter::{self, FilterError, Seen},
    netns::{self, Netns},
    rtnl::{Link, PROTOCOL, Rtnl, RtnlError},
    sysctl::{self, SysctlError},
};

/// Reads the calling thread's namespace as the host's, and those of the tasks in `wanted`; with `only`, of those alone.
pub fn observe(wanted: &Wanted, only: Option<&BTreeSet<PathBuf>>) -> Result<Survey, ObserveError> {
    // The plan leaves the devices of other tasks alone, so their settings (most of the work) are not read.
    let passed_over = |device: &str| match wanted.host.links.get(device).map(|l| &l.kind) {
        Some(LinkKind::Veth { task, .. }) => only.is_some_and(|o| !o.contains(task)),
        _ => false,
    };
    let mut observed = Observed {
        host: SeenSpace {
            sysctls: sysctls(&wanted.host, passed_over)?,
            ..space(&mut Rtnl::open()?)?
        },
        ..Observed::default()
    };
    match netfilter::observe() {
        Ok(Seen::Ours(filter)) => (observed.filter, observed.filter_present) = (Some(filter), true),
        Ok(Seen::Other) => observed.filter_present = true,
        Ok(Seen::Absent) => {}
        // A kernel without nf_tables holds no table; the step that makes one says what is missing.
        Err(FilterError::Missing { .. }) => {}
        Err(e) => return Err(e.into()),
    }
    let mut unreadable = Vec::new();
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
fn sysctls(wanted: &Space, passed_over: impl Fn(&str) -> bool) -> Result<BTreeMap<String, String>, SysctlError> {
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
    SeenLink {
        index: l.index,
        alias: l.alias.clone(),
        kind: l.kind.clone(),
        vxlan_port: vxlan.map(|v| v.port),
        peer: l.lower.filter(|_| l.kind.as_deref() == Some("veth")),
        mac: l.mac,
        mtu: l.mtu,
        up: l.up,
        generates_addresses: l.generates_addresses,
    }
}

/// Everything but the settings.
fn space(rtnl: &mut Rtnl) -> Result<SeenSpace, RtnlError> {
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
    for r in rtnl.routes()?.into_iter().filter(|r| r.protocol == PROTOCOL) {
        let key = RouteKey {
            table: r.table,
            to: r.to,
        };
        out.routes.extend(name_of(r.index).map(|link| {
            (
                key,
                Route {
                    link,
                    via: r.via,
                    source: r.source,
                },
            )
        }));
    }
    let rules = rtnl.rules()?.into_iter().filter(|r| r.protocol == PROTOCOL);
    out.rules = rules
        .map(|r| Rule {
            from: r.from,
            table: r.table,
            priority: r.priority,
        })
        .collect();
    Ok(out)
}
