//! A kernel for tests: as strict as the real one about what must exist before what.

use std::{collections::BTreeMap, path::PathBuf};

use crate::*;

#[derive(Debug, Clone, Default)]
pub(crate) struct Kernel {
    pub(crate) seen: Observed,
    next: BTreeMap<Ns, u32>,
    /// Both ends of each veth, each way.
    pairs: BTreeMap<(Ns, String), (Ns, String)>,
}

type Outcome = Result<(), String>;

impl Kernel {
    pub(crate) fn new(tasks: &[&str]) -> Self {
        let mut k = Kernel::default();
        k.seen.tasks = tasks
            .iter()
            .map(|t| (PathBuf::from(t), Some(SeenSpace::default())))
            .collect();
        k.link(&Ns::Host, "lo", None);
        k.link(&Ns::Host, "up0", None);
        k.seen
            .host
            .sysctls
            .insert("net/ipv6/conf/up0/accept_ra".into(), "1".into());
        k
    }

    fn index(&mut self, ns: &Ns) -> u32 {
        let n = self.next.entry(ns.clone()).or_insert(0);
        *n += 1;
        *n
    }

    /// Adds a device that somebody else made.
    pub(crate) fn link(&mut self, ns: &Ns, name: &str, alias: Option<&str>) {
        let index = self.index(ns);
        let link = SeenLink {
            index,
            alias: alias.map(str::to_owned),
            mtu: 1500,
            up: true,
            generates_addresses: true,
            ..SeenLink::default()
        };
        self.space(ns).unwrap().links.insert(name.to_owned(), link);
    }

    pub(crate) fn space(&mut self, ns: &Ns) -> Result<&mut SeenSpace, String> {
        match ns {
            Ns::Host => Ok(&mut self.seen.host),
            Ns::Sandbox(path) => match self.seen.sandboxes.get_mut(path) {
                Some(SeenSandbox::Ours(space)) => Ok(space),
                _ => Err(format!("no namespace {ns}")),
            },
            Ns::Task(path) => self
                .seen
                .tasks
                .get_mut(path)
                .and_then(Option::as_mut)
                .ok_or_else(|| format!("no namespace {ns}")),
        }
    }

    /// A look at what is wanted: of sandboxes that are not there it says so.
    pub(crate) fn look(&mut self, wanted: &Wanted) {
        for path in wanted.sandboxes.keys() {
            self.seen.sandboxes.entry(path.clone()).or_insert(SeenSandbox::Absent);
        }
    }

    /// Somebody takes a sandbox's name away while it lives on: its VXLAN device is out of sight, and so are the other ends
    /// of its veths.
    pub(crate) fn lose(&mut self, path: &PathBuf) {
        let Some(SeenSandbox::Ours(space)) = self.seen.sandboxes.remove(path) else {
            return;
        };
        let ns = Ns::Sandbox(path.clone());
        self.next.remove(&ns);
        for (name, link) in space.links {
            self.pairs.remove(&(ns.clone(), name.clone()));
            if link.tunnel.is_some() {
                self.seen.strays.insert(Stray { nsid: 7, name });
            }
        }
        self.pairs.retain(|_, far| far.0 != ns);
    }

    /// The namespace ends: its devices go, and their other ends.
    pub(crate) fn end(&mut self, path: &str) {
        let ns = Ns::Task(PathBuf::from(path));
        let names: Vec<String> = self
            .space(&ns)
            .map(|s| s.links.keys().cloned().collect())
            .unwrap_or_default();
        for name in names {
            let _ = self.remove(&ns, &name);
        }
        self.seen.tasks.insert(PathBuf::from(path), None);
    }

    fn drop_one(space: &mut SeenSpace, name: &str) {
        space.links.remove(name);
        space.addresses.retain(|(l, _)| l != name);
        space.neighbours.retain(|(l, _), _| l != name);
        space.routes.retain(|_, r| r.link != name);
        space.fdb.retain(|(l, ..)| l != name);
        space.clsact.remove(name);
        space.classifiers.retain(|p, _| p.link != name);
        for c in space.classifiers.values_mut() {
            if c.is_some_and(|c| c.verdict.device().as_deref() == Some(name)) {
                *c = None;
            }
        }
        space.sysctls.retain(|k, _| device_of(k) != Some(name));
    }

    fn remove(&mut self, ns: &Ns, name: &str) -> Outcome {
        if !self.space(ns)?.links.contains_key(name) {
            return Ok(());
        }
        Self::drop_one(self.space(ns)?, name);
        if let Some((far, end)) = self.pairs.remove(&(ns.clone(), name.to_owned())) {
            self.pairs.remove(&(far.clone(), end.clone()));
            if let Ok(space) = self.space(&far) {
                Self::drop_one(space, &end);
            }
        }
        Ok(())
    }

    fn make(&mut self, ns: &Ns, name: &str, link: SeenLink) -> Outcome {
        if self.space(ns)?.links.contains_key(name) {
            return Err(format!("{name} exists in {ns}"));
        }
        self.space(ns)?.links.insert(name.to_owned(), link);
        Ok(())
    }

    fn tunnels(&self) -> impl Iterator<Item = Tunnel> {
        let sandboxes = self.seen.sandboxes.values().filter_map(|s| match s {
            SeenSandbox::Ours(space) => Some(space),
            _ => None,
        });
        sandboxes.flat_map(|s| s.links.values().filter_map(|l| l.tunnel))
    }

    fn on<'a>(&'a mut self, ns: &Ns, link: &str) -> Result<&'a mut SeenSpace, String> {
        let space = self.space(ns)?;
        if space.links.contains_key(link) {
            Ok(space)
        } else {
            Err(format!("no device {link} in {ns}"))
        }
    }

    pub(crate) fn apply(&mut self, step: &Step) -> Outcome {
        match step.clone() {
            Step::CreateVxlan {
                name,
                port,
                mac,
                mtu,
                alias,
            } => {
                if self.tunnels().any(|t| t.port == port) {
                    return Err("a tunnel has the port".into());
                }
                let link = SeenLink {
                    index: self.index(&Ns::Host),
                    alias: Some(alias),
                    kind: Some("vxlan".into()),
                    vxlan_port: Some(port),
                    mac: Some(mac),
                    mtu,
                    generates_addresses: true,
                    ..SeenLink::default()
                };
                self.make(&Ns::Host, &name, link)
            }
            Step::CreateTunnel {
                sandbox,
                name,
                tunnel,
                mac,
                mtu,
                alias,
            } => {
                if self.tunnels().any(|t| (t.vni, t.port) == (tunnel.vni, tunnel.port)) {
                    return Err("exists".into());
                }
                if self.seen.strays.iter().any(|s| s.name == name) {
                    return Err("exists, somewhere".into());
                }
                let host = &self.seen.host.links;
                if host.contains_key(&name) || host.values().any(|l| l.vxlan_port == Some(tunnel.port)) {
                    return Err("name or port is taken".into());
                }
                let ns = Ns::Sandbox(sandbox);
                self.space(&ns)?;
                let link = SeenLink {
                    index: self.index(&ns),
                    alias: Some(alias),
                    kind: Some("vxlan".into()),
                    tunnel: Some(tunnel),
                    mac: Some(mac),
                    mtu,
                    generates_addresses: true,
                    ..SeenLink::default()
                };
                self.make(&ns, &name, link)
            }
            Step::DeleteStray(stray) => {
                self.seen.strays.remove(&stray);
                Ok(())
            }
            Step::CreateSandbox { path, alias } => {
                if !matches!(self.seen.sandboxes.get(&path), None | Some(SeenSandbox::Absent)) {
                    return Err("something is there".into());
                }
                let ns = Ns::Sandbox(path.clone());
                self.seen
                    .sandboxes
                    .insert(path, SeenSandbox::Ours(SeenSpace::default()));
                self.link(&ns, "lo", Some(&alias));
                Ok(())
            }
            Step::RemoveSandbox { path } => {
                let ns = Ns::Sandbox(path.clone());
                let left: Vec<String> = self.space(&ns)?.links.keys().cloned().collect();
                if left != ["lo"] {
                    return Err(format!("{left:?} would go a moment later"));
                }
                self.next.remove(&ns);
                self.seen.sandboxes.remove(&path);
                Ok(())
            }
            Step::CreateVeth {
                ns,
                name,
                mac,
                mtu,
                alias,
                far,
                peer,
                peer_mac,
            } => {
                self.space(&far)?;
                let (a, b) = (self.index(&ns), self.index(&far));
                // In a sandbox the observer finds out where the other end lies.
                let known = |at: &Ns, of: &Ns| match at {
                    Ns::Sandbox(_) => PeerIn::Known(of.clone()),
                    _ => PeerIn::Unasked,
                };
                let near = SeenLink {
                    index: a,
                    alias: Some(alias),
                    kind: Some("veth".into()),
                    peer: Some(b),
                    peer_in: known(&ns, &far),
                    mac: Some(mac),
                    mtu,
                    generates_addresses: true,
                    ..SeenLink::default()
                };
                let there = SeenLink {
                    index: b,
                    alias: None,
                    peer: Some(a),
                    peer_in: known(&far, &ns),
                    mac: Some(peer_mac),
                    ..near.clone()
                };
                self.make(&far, &peer, there)?;
                self.make(&ns, &name, near)?;
                let ends = ((ns, name), (far, peer));
                self.pairs.insert(ends.1.clone(), ends.0.clone());
                self.pairs.insert(ends.0, ends.1);
                Ok(())
            }
            Step::ChangeLink { ns, name, change } => {
                let space = self.on(&ns, &name)?;
                if change.mac.is_some() {
                    space.neighbours.retain(|(l, _), _| *l != name);
                }
                let link = space.links.get_mut(&name).unwrap();
                link.mac = change.mac.or(link.mac);
                link.mtu = change.mtu.unwrap_or(link.mtu);
                link.alias = change.alias.or(link.alias.take());
                link.up |= change.up;
                link.generates_addresses &= !change.no_generated_addresses;
                Ok(())
            }
            Step::DeleteLink { ns, name } => self.remove(&ns, &name),
            Step::SetSysctl { ns, key, value } => {
                let device = step.link().map(str::to_owned);
                let space = self.space(&ns)?;
                if let Some(d) = device.filter(|d| !space.links.contains_key(d)) {
                    return Err(format!("no {d} for {key}"));
                }
                space.sysctls.insert(key, value);
                Ok(())
            }
            Step::AddAddress { ns, link, net } => {
                self.on(&ns, &link)?.addresses.insert((link, net));
                Ok(())
            }
            Step::DeleteAddress { ns, link, net } => {
                self.on(&ns, &link)?.addresses.remove(&(link, net));
                Ok(())
            }
            Step::SetNeighbour { ns, link, address, mac } => {
                let space = self.on(&ns, &link)?;
                if !space.links[&link].up {
                    return Err(format!("neighbour on {link}, which is down"));
                }
                space.neighbours.insert((link, address), mac);
                Ok(())
            }
            Step::DeleteNeighbour { ns, link, address } => {
                self.on(&ns, &link)?.neighbours.remove(&(link, address));
                Ok(())
            }
            Step::SetFdb { ns, link, mac, to } => {
                let space = self.on(&ns, &link)?;
                // vxlan_fdb_replace() of drivers/net/vxlan changes the first destination and leaves the others.
                let first = space.fdb.iter().find(|(l, m, _)| (l, m) == (&link, &mac)).cloned();
                first.map(|f| space.fdb.remove(&f));
                space.fdb.insert((link, mac, to));
                Ok(())
            }
            Step::DeleteFdb { ns, link, mac, to } => {
                self.on(&ns, &link)?.fdb.remove(&(link, mac, to));
                Ok(())
            }
            Step::AddClsact { ns, link } => {
                self.on(&ns, &link)?.clsact.insert(link);
                Ok(())
            }
            Step::AddClassifier { ns, link, classifier } => {
                let space = self.on(&ns, &link)?;
                if !space.clsact.contains(&link) {
                    return Err(format!("no hooks at {link}"));
                }
                if let Some(device) = classifier.verdict.device()
                    && !space.links.contains_key(&device)
                {
                    return Err(format!("{classifier}: no such device"));
                }
                let same = space.classifiers.iter().find_map(|(p, c)| {
                    let c = c.filter(|c| p.link == link && c.on == classifier.on)?;
                    (p.hook == classifier.hook && p.priority == classifier.priority).then_some(c.verdict)
                });
                match same {
                    Some(verdict) if verdict == classifier.verdict => return Ok(()),
                    Some(_) => return Err(format!("{classifier} exists, and does something else")),
                    None => {}
                }
                let place = ClassifierPlace {
                    link,
                    hook: classifier.hook,
                    priority: classifier.priority,
                    handle: 1 + space.classifiers.keys().map(|p| p.handle).max().unwrap_or(0),
                };
                space.classifiers.insert(place, Some(classifier));
                Ok(())
            }
            Step::DeleteClassifier { ns, place } => {
                self.on(&ns, &place.link)?.classifiers.remove(&place);
                Ok(())
            }
            Step::AddRoute {
                ns,
                key,
                route,
                replace,
            } => {
                let space = self.on(&ns, &route.link)?;
                if !space.links[&route.link].up {
                    return Err(format!("route on {}, which is down", route.link));
                }
                // The host has the addresses of its NIC.
                let source_is_ours = ns == Ns::Host
                    || route
                        .source
                        .is_none_or(|s| space.addresses.iter().any(|(_, n)| n.addr() == s));
                if !source_is_ours {
                    return Err(format!("route from {:?}, which is nobody's", route.source));
                }
                if !replace && space.routes.contains_key(&key) {
                    return Err(format!("route to {} exists", key.to));
                }
                space.routes.insert(key, route);
                Ok(())
            }
            Step::DeleteRoute { ns, key, .. } => {
                self.space(&ns)?.routes.remove(&key);
                Ok(())
            }
            Step::AddRule { ns, rule } => {
                if !self.space(&ns)?.rules.insert(rule) {
                    return Err("rule exists".into());
                }
                Ok(())
            }
            Step::DeleteRule { ns, rule } => {
                self.space(&ns)?.rules.remove(&rule);
                Ok(())
            }
            Step::SetFilter(filter) => {
                self.seen.filter = Some(filter);
                self.seen.filter_present = true;
                Ok(())
            }
            Step::RemoveFilter => {
                self.seen.filter = None;
                self.seen.filter_present = false;
                Ok(())
            }
        }
    }

    /// Carries out a whole plan; the first step that the kernel would refuse is the error.
    pub(crate) fn run(&mut self, plan: &Plan) -> Outcome {
        plan.steps
            .iter()
            .try_for_each(|s| self.apply(s).map_err(|e| format!("{s}: {e}")))
    }
}
