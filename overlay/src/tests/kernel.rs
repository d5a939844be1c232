//! A kernel for tests: as strict as the real one about what must exist before what.

use std::{collections::BTreeMap, path::PathBuf};

use crate::*;

#[derive(Debug, Clone, Default)]
pub(crate) struct Kernel {
    pub(crate) seen: Observed,
    next: BTreeMap<Ns, u32>,
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
            kind: None,
            vxlan_port: None,
            peer: None,
            mac: None,
            mtu: 1500,
            up: true,
            generates_addresses: true,
        };
        self.space(ns).unwrap().links.insert(name.to_owned(), link);
    }

    pub(crate) fn space(&mut self, ns: &Ns) -> Result<&mut SeenSpace, String> {
        match ns {
            Ns::Host => Ok(&mut self.seen.host),
            Ns::Task(path) => self
                .seen
                .tasks
                .get_mut(path)
                .and_then(Option::as_mut)
                .ok_or_else(|| format!("no namespace {ns}")),
        }
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
        space.sysctls.retain(|k, _| k.split('/').nth(3) != Some(name));
    }

    fn remove(&mut self, ns: &Ns, name: &str) -> Outcome {
        let Some(link) = self.space(ns)?.links.get(name).cloned() else {
            return Ok(());
        };
        Self::drop_one(self.space(ns)?, name);
        let others: Vec<Ns> = std::iter::once(Ns::Host)
            .chain(self.seen.tasks.keys().cloned().map(Ns::Task))
            .filter(|o| o != ns)
            .collect();
        for other in others {
            let Ok(space) = self.space(&other) else { continue };
            let end = space
                .links
                .iter()
                .find(|(_, l)| l.peer == Some(link.index) && link.peer == Some(l.index))
                .map(|(n, _)| n.clone());
            if let Some(end) = end {
                Self::drop_one(space, &end);
                break;
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
                let index = self.index(&Ns::Host);
                let link = SeenLink {
                    index,
                    alias: Some(alias),
                    kind: Some("vxlan".into()),
                    vxlan_port: Some(port),
                    peer: None,
                    mac: Some(mac),
                    mtu,
                    up: false,
                    generates_addresses: true,
                };
                self.make(&Ns::Host, &name, link)
            }
            Step::CreateVeth {
                name,
                mac,
                mtu,
                alias,
                task,
                peer,
                peer_mac,
            } => {
                let inside = Ns::Task(task);
                self.space(&inside)?;
                let (a, b) = (self.index(&Ns::Host), self.index(&inside));
                let near = SeenLink {
                    index: a,
                    alias: Some(alias),
                    kind: Some("veth".into()),
                    vxlan_port: None,
                    peer: Some(b),
                    mac: Some(mac),
                    mtu,
                    up: false,
                    generates_addresses: true,
                };
                let far = SeenLink {
                    index: b,
                    alias: None,
                    peer: Some(a),
                    mac: Some(peer_mac),
                    ..near.clone()
                };
                self.make(&inside, &peer, far)?;
                self.make(&Ns::Host, &name, near)
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
                let source_is_ours = route
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
