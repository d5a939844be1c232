//! Networks' namespaces: made with their mark, found again, told from somebody else's.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
};

use overlay::{LinkKind, Ns, PeerIn, SeenSandbox, SeenSpace, Space, Stray, Wanted, names};

use super::{ObserveError, StepError, observe};
use crate::{
    netns::{self, Netns, NetnsError},
    rtnl::{Rtnl, RtnlError},
};

/// Makes one; what bears the mark already is accepted.
pub(super) fn create(path: &Path, alias: &str) -> Result<(), StepError> {
    match netns::create_marked(path, alias) {
        Ok(_) => Ok(()),
        Err(e @ NetnsError::Exists { .. }) => {
            let marked = netns::run_in(&Netns::open(path)?, || is_marked(&mut Rtnl::open()?, alias))??;
            if marked { Ok(()) } else { Err(e.into()) }
        }
        Err(e) => Err(e.into()),
    }
}

fn is_marked(rtnl: &mut Rtnl, alias: &str) -> Result<bool, RtnlError> {
    let lo = rtnl.link_by_index(1)?;
    Ok(lo.is_some_and(|lo| lo.alias.as_deref() == Some(alias)))
}

/// What the sandboxes hold.
pub(super) struct Seen {
    pub(super) sandboxes: BTreeMap<PathBuf, SeenSandbox>,
    pub(super) strays: BTreeSet<Stray>,
    pub(super) unreadable: Vec<(PathBuf, StepError)>,
}

/// Looks at the wanted sandboxes, and at those of ours that are left in the folder; with `only` at those alone that one of
/// these tasks is wanted in.
pub(super) fn look(wanted: &Wanted, only: Option<&BTreeSet<PathBuf>>) -> Result<Seen, ObserveError> {
    let mut out = Seen {
        sandboxes: BTreeMap::new(),
        strays: BTreeSet::new(),
        unreadable: Vec::new(),
    };
    let host = Netns::current()?;
    let with_one_of = |space: &Space, tasks: &BTreeSet<PathBuf>| tasks_of(space).any(|task| tasks.contains(task));
    for (path, sandbox) in &wanted.sandboxes {
        if only.is_none_or(|tasks| with_one_of(&sandbox.space, tasks)) {
            let seen = one(path, &sandbox.alias, Some(&sandbox.space), wanted, &host);
            out.note(path, seen);
        }
    }
    if only.is_none() {
        for (path, alias) in left(wanted)? {
            match one(&path, &alias, None, wanted, &host) {
                // Nothing of ours: it may stay.
                Ok(SeenSandbox::Foreign | SeenSandbox::Absent) => {}
                other => out.note(&path, other),
            }
        }
    }
    out.strays = strays(wanted, &out.sandboxes)?;
    Ok(out)
}

impl Seen {
    fn note(&mut self, path: &Path, seen: Result<SeenSandbox, StepError>) {
        match seen {
            Ok(seen) => {
                self.sandboxes.insert(path.to_owned(), seen);
            }
            Err(e) => self.unreadable.push((path.to_owned(), e)),
        }
    }
}

/// Tasks whose devices belong into a sandbox.
fn tasks_of(space: &Space) -> impl Iterator<Item = &PathBuf> {
    space.links.values().filter_map(|l| match &l.kind {
        LinkKind::Veth {
            far: Ns::Task(path), ..
        } => Some(path),
        _ => None,
    })
}

/// Files in the folder that are named as sandboxes are, without the wanted ones, and the marks that these would bear.
fn left(wanted: &Wanted) -> Result<Vec<(PathBuf, String)>, ObserveError> {
    let Some(folder) = &wanted.sandbox_folder else {
        return Ok(Vec::new());
    };
    let unreadable = |source| ObserveError::Folder {
        path: folder.clone(),
        source,
    };
    let entries = match fs::read_dir(folder) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(unreadable)?,
    };
    let mut out = Vec::new();
    for entry in entries {
        let path = entry.map_err(unreadable)?.path();
        if let Some(vni) = names::sandbox_of(&path).filter(|_| !wanted.sandboxes.contains_key(&path)) {
            out.push((path, names::sandbox_alias(vni)));
        }
    }
    Ok(out)
}

fn one(
    path: &Path,
    alias: &str,
    space: Option<&Space>,
    wanted: &Wanted,
    host: &Netns,
) -> Result<SeenSandbox, StepError> {
    let netns = match Netns::open(path) {
        Err(e) if e.is_absent() => return Ok(SeenSandbox::Absent),
        other => other?,
    };
    netns::run_in(&netns, || {
        let mut rtnl = Rtnl::open()?;
        if !is_marked(&mut rtnl, alias)? {
            return Ok(SeenSandbox::Foreign);
        }
        let mut seen = observe::space(&mut rtnl)?;
        observe::forwarding(&mut rtnl, &mut seen)?;
        if let Some(space) = space {
            seen.sysctls = observe::sysctls(space, |_| false)?;
        }
        peers(&mut rtnl, &mut seen, space, wanted, host)?;
        Ok(SeenSandbox::Ours(seen))
    })?
}

/// Finds out where the other ends of a sandbox's devices lie. Those that belong here are asked for; all the others only
/// when a device of ours leads to none of those.
fn peers(
    rtnl: &mut Rtnl,
    seen: &mut SeenSpace,
    space: Option<&Space>,
    wanted: &Wanted,
    host: &Netns,
) -> Result<(), RtnlError> {
    let numbers: BTreeMap<String, i32> = rtnl
        .links()?
        .into_iter()
        .filter(|l| l.kind.as_deref() == Some("veth"))
        .filter_map(|l| Some((l.name, l.elsewhere?)))
        .collect();
    let mut known: BTreeMap<i32, Ns> = BTreeMap::new();
    known.extend(rtnl.number_of(host)?.map(|n| (n, Ns::Host)));
    let ask = |rtnl: &mut Rtnl, known: &mut BTreeMap<i32, Ns>, task: &PathBuf| -> Result<(), RtnlError> {
        // A task that is gone has no other end.
        if let Ok(netns) = Netns::open(task) {
            known.extend(rtnl.number_of(&netns)?.map(|n| (n, Ns::Task(task.clone()))));
        }
        Ok(())
    };
    for task in space.into_iter().flat_map(tasks_of) {
        ask(rtnl, &mut known, task)?;
    }
    let unknown = |(name, link): (&String, &overlay::SeenLink), known: &BTreeMap<i32, Ns>| {
        names::is_ours(link.alias.as_deref()) && numbers.get(name).is_some_and(|n| !known.contains_key(n))
    };
    if seen.links.iter().any(|link| unknown(link, &known)) {
        for task in wanted.tasks.keys() {
            ask(rtnl, &mut known, task)?;
        }
    }
    for (name, link) in seen.links.iter_mut().filter(|(_, l)| l.peer.is_some()) {
        let ns = numbers.get(name).and_then(|n| known.get(n));
        link.peer_in = ns.map_or(PeerIn::Elsewhere, |ns| PeerIn::Known(ns.clone()));
    }
    Ok(())
}

/// VXLAN devices of wanted sandboxes that are not there, and are in a namespace that no path leads to (somebody unmounted
/// it while a process held it): the kernel would make no second one, and say "exists".
fn strays(wanted: &Wanted, seen: &BTreeMap<PathBuf, SeenSandbox>) -> Result<BTreeSet<Stray>, ObserveError> {
    let mut missing: Vec<(&String, &String)> = Vec::new();
    for (path, sandbox) in &wanted.sandboxes {
        let there = match seen.get(path) {
            Some(SeenSandbox::Ours(space)) => Some(space),
            Some(SeenSandbox::Absent) => None,
            Some(SeenSandbox::Foreign) | None => continue,
        };
        let tunnels = sandbox.space.links.iter().filter(|(name, link)| {
            matches!(link.kind, LinkKind::Tunnel(_)) && there.is_none_or(|s| !s.links.contains_key(*name))
        });
        missing.extend(tunnels.map(|(name, link)| (name, &link.alias)));
    }
    let mut out = BTreeSet::new();
    if missing.is_empty() {
        return Ok(out);
    }
    let mut rtnl = Rtnl::open()?;
    let mut known = BTreeSet::new();
    for path in wanted.tasks.keys().chain(seen.keys()) {
        if let Ok(netns) = Netns::open(path) {
            known.extend(rtnl.number_of(&netns)?);
        }
    }
    for nsid in rtnl.numbers()?.into_iter().filter(|n| !known.contains(n)) {
        for (name, alias) in &missing {
            let link = rtnl.link_of(nsid, name)?;
            if link.is_some_and(|l| l.alias.as_ref() == Some(alias) && l.vxlan.is_some()) {
                out.insert(Stray {
                    nsid,
                    name: (*name).clone(),
                });
            }
        }
    }
    Ok(out)
}
