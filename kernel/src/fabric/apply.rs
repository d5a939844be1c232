//! Carrying out steps: those of one namespace that stand together travel in one chain, on one thread.

use std::{
    collections::{BTreeMap, BTreeSet},
    os::fd::AsFd,
    path::Path,
};

use nix::errno::Errno;
use overlay::{Change, Ns, Plan, Route, RouteKey, RouteKind, Rule, Step, Stray};

use super::{Report, StepError, carrier, sandbox};
use crate::{
    netfilter,
    netlink::{Refusal, Request},
    netns::{self, Netns},
    rtnl::{
        self, Address, Fdb, Neighbour, PROTOCOL, Rtnl,
        request::{self, LinkChange, VethEnd, Which},
        tc,
    },
    sysctl,
};

/// Carries out a plan in the calling thread's namespace (as the host's) and the tasks'. A failure stops only what builds
/// on it. Devices that come up can send when it returns.
pub fn apply(plan: &Plan) -> Report {
    let mut report = Report::default();
    let mut broken = Broken::default();
    for group in plan.steps.chunk_by(|a, b| a.ns() == b.ns()) {
        let Some(ns) = group.first().map(Step::ns) else {
            continue;
        };
        let outcome = match ns {
            Ns::Host => in_namespace(group, &mut broken),
            Ns::Sandbox(path) | Ns::Task(path) => in_other(path, group, &mut broken),
        };
        for (step, result) in group.iter().zip(outcome) {
            match result {
                Ok(()) => report.done += 1,
                Err(e) => report.failed.push((step.clone(), e)),
            }
        }
    }
    carrier::wait(plan);
    report
}

type Outcome = Vec<Result<(), StepError>>;

fn in_other(path: &Path, group: &[Step], broken: &mut Broken) -> Outcome {
    let netns = Netns::open(path);
    let outcome = netns.and_then(|netns| netns::run_in(&netns, || in_namespace(group, broken)));
    match outcome {
        Ok(outcome) => outcome,
        // It is gone in the meantime: the next look says so. One failure tells it, the others refer to it.
        Err(e) => {
            let mut first = Some(e);
            let each = |_| {
                Err(first
                    .take()
                    .map_or_else(|| StepError::Skipped(path.display().to_string()), StepError::Netns))
            };
            group.iter().map(each).collect()
        }
    }
}

fn in_namespace(group: &[Step], broken: &mut Broken) -> Outcome {
    match Rtnl::open() {
        Ok(rtnl) => {
            let mut hand = Hand {
                rtnl,
                indices: None,
                pending: Vec::new(),
                requests: Vec::new(),
                results: Vec::new(),
            };
            hand.results.resize_with(group.len(), || None);
            let mut at = 0;
            for run in group.chunk_by(|a, b| is_removal(a) == is_removal(b)) {
                if run.len() > 1 && run.iter().all(is_removal) {
                    hand.flush(group, broken);
                    hand.delete_links(at, run, broken);
                } else {
                    run.iter()
                        .enumerate()
                        .for_each(|(i, step)| hand.step(at + i, step, group, broken));
                }
                at += run.len();
            }
            hand.flush(group, broken);
            // Each step was given a result; an empty place would be a step that was forgotten.
            let forgotten = || Err(StepError::Skipped("an earlier step".to_owned()));
            hand.results.into_iter().map(|r| r.unwrap_or_else(forgotten)).collect()
        }
        Err(e) => {
            let mut first = Some(e);
            let each = |_| {
                Err(first
                    .take()
                    .map_or_else(|| StepError::Skipped("an rtnetlink socket".to_owned()), StepError::Rtnl))
            };
            group.iter().map(each).collect()
        }
    }
}

fn is_removal(step: &Step) -> bool {
    matches!(step, Step::DeleteLink { .. })
}

/// Namespaces and devices that could not be made or brought up: what builds on them is left out.
#[derive(Default)]
struct Broken {
    devices: BTreeSet<(Ns, String)>,
    sandboxes: BTreeSet<Ns>,
}

impl Broken {
    fn note(&mut self, step: &Step) {
        match step {
            Step::CreateSandbox { path, .. } => {
                self.sandboxes.insert(Ns::Sandbox(path.clone()));
            }
            Step::CreateVxlan { name, .. } => {
                self.devices.insert((Ns::Host, name.clone()));
            }
            Step::CreateTunnel { sandbox, name, .. } => {
                self.devices.insert((Ns::Sandbox(sandbox.clone()), name.clone()));
            }
            Step::CreateVeth {
                ns, name, far, peer, ..
            } => {
                self.devices.insert((ns.clone(), name.clone()));
                self.devices.insert((far.clone(), peer.clone()));
            }
            Step::ChangeLink { ns, name, .. } => {
                self.devices.insert((ns.clone(), name.clone()));
            }
            // Without its filters a device would let in everybody.
            Step::AddClsact { ns, link } | Step::AddClassifier { ns, link, .. } => {
                self.devices.insert((ns.clone(), link.clone()));
            }
            _ => {}
        }
    }

    fn blocks(&self, step: &Step) -> Option<String> {
        if is_removal(step) {
            return None;
        }
        let target = match step {
            Step::CreateTunnel { sandbox, .. } => Some(Ns::Sandbox(sandbox.clone())),
            Step::CreateVeth { far, .. } => Some(far.clone()),
            _ => None,
        };
        let sandbox = [target.as_ref(), Some(step.ns())]
            .into_iter()
            .flatten()
            .find(|ns| self.sandboxes.contains(*ns));
        if let Some(ns) = sandbox {
            return Some(ns.to_string());
        }
        let key = (step.ns().clone(), step.link()?.to_owned());
        self.devices.contains(&key).then_some(key.1)
    }
}

/// Works on the steps of one namespace.
struct Hand {
    rtnl: Rtnl,
    /// Devices by name; `None`: not read since the last device was made.
    indices: Option<BTreeMap<String, u32>>,
    /// Steps whose requests wait to be sent: index, and number of requests.
    pending: Vec<(usize, usize)>,
    requests: Vec<Request>,
    results: Vec<Option<Result<(), StepError>>>,
}

impl Hand {
    fn settle(&mut self, i: usize, step: &Step, result: Result<(), StepError>, broken: &mut Broken) {
        if result.is_err() {
            broken.note(step);
        }
        if let Some(place) = self.results.get_mut(i) {
            *place = Some(result);
        }
    }

    fn step(&mut self, i: usize, step: &Step, group: &[Step], broken: &mut Broken) {
        if !self.waits(step) {
            // What follows needs to know how that went.
            self.flush(group, broken);
        }
        if let Some(link) = broken.blocks(step) {
            return self.settle(i, step, Err(StepError::Skipped(link)), broken);
        }
        let result = match step {
            Step::SetSysctl { key, value, .. } => sysctl::set(key, value).map(|_| None).map_err(StepError::from),
            Step::SetFilter(filter) => netfilter::set(filter).map(|_| None).map_err(StepError::from),
            Step::RemoveFilter => netfilter::remove().map(|_| None).map_err(StepError::from),
            Step::CreateVeth {
                far: Ns::Sandbox(path) | Ns::Task(path),
                ..
            } => self.with_far(step, path, create_veth).map(|()| None),
            Step::CreateTunnel { sandbox, .. } => self.with_far(step, sandbox, create_tunnel).map(|()| None),
            Step::CreateSandbox { path, alias } => sandbox::create(path, alias).map(|()| None),
            Step::RemoveSandbox { path } => netns::remove(path).map(|()| None).map_err(StepError::from),
            _ => self.requests(step).map(Some),
        };
        match result {
            Ok(None) => self.settle(i, step, Ok(()), broken),
            Ok(Some(requests)) => {
                self.pending.push((i, requests.len()));
                self.requests.extend(requests);
            }
            Err(e) => self.settle(i, step, Err(e), broken),
        }
    }

    /// Sends requests that name another namespace, which must be open then: at once.
    fn with_far(
        &mut self,
        step: &Step,
        path: &Path,
        requests: fn(&Step, &Netns) -> Vec<Request>,
    ) -> Result<(), StepError> {
        let netns = Netns::open(path)?;
        let results = self.rtnl.execute(&requests(step, &netns))?;
        self.indices = None;
        verdict(step, results)
    }

    /// Whether a step may be queued behind those that wait.
    fn waits(&self, step: &Step) -> bool {
        !matches!(
            step,
            Step::SetSysctl { .. }
                | Step::SetFilter(_)
                | Step::RemoveFilter
                | Step::CreateVeth { .. }
                | Step::CreateTunnel { .. }
                | Step::CreateSandbox { .. }
                | Step::RemoveSandbox { .. }
        )
    }

    fn flush(&mut self, group: &[Step], broken: &mut Broken) {
        if self.requests.is_empty() {
            return;
        }
        let requests = std::mem::take(&mut self.requests);
        let pending = std::mem::take(&mut self.pending);
        match self.rtnl.execute(&requests) {
            Ok(results) => {
                let mut results = results.into_iter();
                for (i, n) in pending {
                    let Some(step) = group.get(i) else { continue };
                    let of_step: Vec<_> = results.by_ref().take(n).collect();
                    self.settle(i, step, verdict(step, of_step), broken);
                }
            }
            // No answers: nobody knows what was done. The next look does.
            Err(e) => {
                let mut first = Some(StepError::from(e));
                for (i, _) in pending {
                    let Some(step) = group.get(i) else { continue };
                    let error = first
                        .take()
                        .unwrap_or_else(|| StepError::Skipped("an answer of the kernel".to_owned()));
                    self.settle(i, step, Err(error), broken);
                }
            }
        }
    }

    /// Removes devices in groups.
    fn delete_links(&mut self, at: usize, run: &[Step], broken: &mut Broken) {
        for (chunk, from) in run
            .chunks(request::DELETE_AT_ONCE)
            .zip((at..).step_by(request::DELETE_AT_ONCE))
        {
            let mut there = Vec::new();
            for (i, step) in (from..).zip(chunk) {
                match self.index(step.link().unwrap_or_default()) {
                    Ok(index) => there.push((i, step, index)),
                    Err(StepError::NoLink(_)) => self.settle(i, step, Ok(()), broken),
                    Err(e) => self.settle(i, step, Err(e), broken),
                }
            }
            let indices: Vec<u32> = there.iter().map(|(_, _, index)| *index).collect();
            if indices.is_empty() {
                continue;
            }
            // The last result, that of the removal, is everybody's.
            let mut results = self
                .rtnl
                .execute(&request::delete_links(&indices))
                .map_err(|e| e.to_string());
            let removal = results.as_mut().ok().and_then(Vec::pop).unwrap_or(Ok(()));
            for (n, (i, step, _)) in there.into_iter().enumerate() {
                let result = match &results {
                    Ok(each) => verdict(
                        step,
                        each.get(n).cloned().into_iter().chain([removal.clone()]).collect(),
                    ),
                    Err(e) => Err(StepError::Skipped(e.clone())),
                };
                self.settle(i, step, result, broken);
            }
            self.indices = None;
        }
    }

    fn index(&mut self, name: &str) -> Result<u32, StepError> {
        if self.indices.is_none() {
            self.indices = Some(self.rtnl.links()?.into_iter().map(|l| (l.name, l.index)).collect());
        }
        let found = self.indices.as_ref().and_then(|m| m.get(name)).copied();
        found.ok_or_else(|| StepError::NoLink(name.to_owned()))
    }

    fn requests(&mut self, step: &Step) -> Result<Vec<Request>, StepError> {
        Ok(match step {
            Step::CreateVxlan {
                name,
                port,
                mac,
                mtu,
                alias,
            } => {
                self.indices = None;
                vec![
                    request::create_external_vxlan(name, *port, *mac, *mtu),
                    mark(name, alias),
                ]
            }
            Step::ChangeLink { name, change, .. } => changes(name, change),
            Step::DeleteLink { name, .. } => vec![request::delete_link(&Which::Name(name))],
            Step::AddAddress { link, net, .. } | Step::DeleteAddress { link, net, .. } => {
                let address = Address {
                    index: self.index(link)?,
                    net: *net,
                    no_prefix_route: true,
                    tentative: false,
                };
                vec![if matches!(step, Step::AddAddress { .. }) {
                    request::add_address(&address)
                } else {
                    request::delete_address(&address)
                }]
            }
            Step::SetNeighbour { link, address, mac, .. } => {
                let n = Neighbour {
                    index: self.index(link)?,
                    address: *address,
                    mac: *mac,
                    permanent: true,
                    protocol: PROTOCOL,
                };
                vec![request::set_neighbour(&n)]
            }
            Step::DeleteNeighbour { link, address, .. } => {
                let n = Neighbour {
                    index: self.index(link)?,
                    address: *address,
                    mac: model::Mac([0; 6]),
                    permanent: true,
                    protocol: PROTOCOL,
                };
                vec![request::delete_neighbour(&n)]
            }
            Step::AddRoute {
                key, route, replace, ..
            } => {
                let route = self.route(key, route)?;
                vec![if *replace {
                    request::replace_route(&route)
                } else {
                    request::add_route(&route)
                }]
            }
            Step::DeleteRoute { key, route, .. } => vec![request::delete_route(&self.route(key, route)?)],
            Step::AddRule { rule, .. } => vec![request::add_rule(&to_rule(rule))],
            Step::DeleteRule { rule, .. } => vec![request::delete_rule(&to_rule(rule))],
            Step::SetFdb { link, mac, to, .. } => vec![request::set_fdb(&self.fdb(link, *mac, *to)?)],
            Step::DeleteFdb { link, mac, to, .. } => vec![request::delete_fdb(&self.fdb(link, *mac, *to)?)],
            Step::AddClsact { link, .. } => vec![tc::add_clsact(self.index(link)?)],
            Step::AddClassifier { link, classifier, .. } => {
                let by = classifier.verdict.device().map_or(Ok(0), |d| self.index(&d))?;
                vec![tc::add(self.index(link)?, classifier, by)]
            }
            Step::DeleteClassifier { place, .. } => {
                let index = self.index(&place.link)?;
                vec![tc::delete(index, place.hook, place.priority, place.handle)]
            }
            Step::DeleteStray(Stray { nsid, name }) => vec![request::delete_link_of(*nsid, name)],
            Step::CreateVeth { .. }
            | Step::CreateTunnel { .. }
            | Step::CreateSandbox { .. }
            | Step::RemoveSandbox { .. }
            | Step::SetSysctl { .. }
            | Step::SetFilter(_)
            | Step::RemoveFilter => Vec::new(),
        })
    }

    fn fdb(&mut self, link: &str, mac: model::Mac, to: std::net::IpAddr) -> Result<Fdb, StepError> {
        let index = self.index(link)?;
        Ok(Fdb { index, mac, to })
    }

    fn route(&mut self, key: &RouteKey, route: &Route) -> Result<rtnl::Route, StepError> {
        let kind = match route.kind {
            RouteKind::Unicast => rtnl::RouteKind::Unicast,
            RouteKind::Local => rtnl::RouteKind::Local,
            RouteKind::Unreachable => rtnl::RouteKind::Unreachable,
        };
        Ok(rtnl::Route {
            kind,
            table: key.table,
            to: key.to,
            via: route.via,
            index: self.index(&route.link)?,
            source: route.source,
            onlink: route.via.is_some(),
            protocol: PROTOCOL,
            metric: 0,
            mtu: None,
        })
    }
}

fn to_rule(rule: &Rule) -> rtnl::Rule {
    rtnl::Rule {
        from: rule.from,
        mark: rule.mark.map_or((0, 0), |m| (m.value, m.mask)),
        own: rule.own,
        table: rule.table,
        priority: rule.priority,
        protocol: PROTOCOL,
    }
}

/// The kernel takes no alias when it makes a device, so the mark follows in the same system call: no kill can come
/// between.
fn mark(name: &str, alias: &str) -> Request {
    request::change_link(
        &Which::Name(name),
        &LinkChange {
            alias: Some(alias),
            ..LinkChange::default()
        },
    )
}

fn create_veth(step: &Step, netns: &Netns) -> Vec<Request> {
    let Step::CreateVeth {
        name,
        mac,
        mtu,
        alias,
        peer,
        peer_mac,
        ..
    } = step
    else {
        return Vec::new();
    };
    let near = VethEnd {
        name,
        mac: Some(*mac),
        mtu: Some(*mtu),
        netns: None,
    };
    let far = VethEnd {
        name: peer,
        mac: Some(*peer_mac),
        mtu: Some(*mtu),
        netns: Some(netns.as_fd()),
    };
    vec![request::create_veth(&near, &far), mark(name, alias)]
}

/// The device is made where its outer packets shall be, then moved; one chain, so no kill can come between. It is named by
/// an index that nobody else gives: what follows must not meet somebody else's device when it cannot be made.
fn create_tunnel(step: &Step, netns: &Netns) -> Vec<Request> {
    /// Far above what the kernel counts up to, the VNI below it: "N" in ASCII.
    const INDEX: u32 = 0x4e00_0000;
    let Step::CreateTunnel {
        name,
        tunnel,
        mac,
        mtu,
        alias,
        ..
    } = step
    else {
        return Vec::new();
    };
    let index = INDEX | tunnel.vni.get();
    let change = LinkChange {
        mtu: Some(*mtu),
        alias: Some(alias),
        ..LinkChange::default()
    };
    vec![
        request::create_vxlan_at(index, name, tunnel.vni.get(), tunnel.port, tunnel.local, *mac),
        request::change_link(&Which::Index(index), &change),
        request::move_link(&Which::Index(index), netns.as_fd()),
    ]
}

/// The kernel applies attributes in an order of its own and stops at the first that it refuses; a device comes up only
/// when the rest is right, so that is a request of its own.
fn changes(name: &str, change: &Change) -> Vec<Request> {
    let which = Which::Name(name);
    let rest = LinkChange {
        mtu: change.mtu,
        mac: change.mac,
        alias: change.alias.as_deref(),
        generates_addresses: change.no_generated_addresses.then_some(false),
        ..LinkChange::default()
    };
    let up = LinkChange {
        up: Some(true),
        ..LinkChange::default()
    };
    let all = [(rest != LinkChange::default(), rest), (change.up, up)];
    all.iter()
        .filter(|(due, _)| *due)
        .map(|(_, c)| request::change_link(&which, c))
        .collect()
}

/// One result for a step's requests. What is gone needs no removal; a rule or filter that is there needs no adding.
fn verdict(step: &Step, results: Vec<Result<(), Refusal>>) -> Result<(), StepError> {
    let removal = matches!(
        step,
        Step::DeleteLink { .. }
            | Step::DeleteAddress { .. }
            | Step::DeleteNeighbour { .. }
            | Step::DeleteFdb { .. }
            | Step::DeleteClassifier { .. }
            | Step::DeleteStray(_)
            | Step::DeleteRoute { .. }
            | Step::DeleteRule { .. }
    );
    let repeatable = matches!(
        step,
        Step::AddRule { .. } | Step::AddClsact { .. } | Step::AddClassifier { .. }
    );
    for refusal in results.into_iter().filter_map(Result::err) {
        let harmless = removal && refusal.is_absent() || repeatable && refusal.errno == Errno::EEXIST;
        if !harmless {
            return Err(StepError::Refused(refusal));
        }
    }
    Ok(())
}
