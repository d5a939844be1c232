//! What hangs on devices, and what has none: settings, addresses, neighbours, filters, routes, rules.

use std::collections::BTreeSet;

use super::{Planner, Stage};
use crate::{
    classify::Classifier,
    objects::{Ns, SeenSpace, Space},
    step::Step,
};

impl Planner<'_> {
    /// Everything of a namespace but its devices.
    pub(super) fn space(&mut self, ns: &Ns, wanted: &Space, seen: &SeenSpace) {
        let (set, add) = match ns {
            Ns::Host => (Stage::Host, Stage::Lead),
            Ns::Sandbox(_) => (Stage::Sandboxes, Stage::LeadInside),
            Ns::Task(_) => (Stage::Tasks, Stage::Tasks),
        };
        let named = |set: &BTreeSet<(Ns, String)>| {
            set.iter()
                .filter(|(n, _)| n == ns)
                .map(|(_, l)| l.clone())
                .collect::<BTreeSet<String>>()
        };
        let (fresh, dropped, condemned) = (named(&self.fresh), named(&self.dropped), named(&self.condemned));
        let (unknown, forgetful) = (named(&self.unknown), named(&self.forgetful));
        // A device that is made anew starts empty; one that is removed takes along what hangs on it.
        let stays = |link: &String| !fresh.contains(link) && !condemned.contains(link) && !unknown.contains(link);
        let usable = |link: &String| !dropped.contains(link) && !unknown.contains(link);
        let at = || ns.clone();
        let mut steps: Vec<(Stage, Step)> = Vec::new();

        for (key, sysctl) in &wanted.sysctls {
            let step = Step::SetSysctl {
                ns: at(),
                key: key.clone(),
                value: sysctl.value.to_owned(),
            };
            let device = step.link().map(str::to_owned);
            // An uplink that was unplugged has no settings to write.
            let exists = |d: &String| fresh.contains(d) || seen.links.contains_key(d);
            if device.as_ref().is_some_and(|d| !usable(d) || !exists(d)) {
                continue;
            }
            let now = seen.sysctls.get(key).filter(|_| device.as_ref().is_none_or(stays));
            let due = match sysctl.only_from {
                Some(from) => now.is_some_and(|v| v == from),
                None => now.is_none_or(|v| v != sysctl.value),
            };
            if due {
                steps.push((set, step));
            }
        }

        let wanted_addresses: BTreeSet<_> = wanted.addresses.iter().filter(|(l, _)| usable(l)).collect();
        let seen_addresses: BTreeSet<_> = seen.addresses.iter().filter(|(l, _)| stays(l)).collect();
        for (link, net) in wanted_addresses.difference(&seen_addresses) {
            steps.push((
                add,
                Step::AddAddress {
                    ns: at(),
                    link: link.clone(),
                    net: *net,
                },
            ));
        }
        for (link, net) in seen_addresses.difference(&wanted_addresses) {
            steps.push((
                Stage::Remove,
                Step::DeleteAddress {
                    ns: at(),
                    link: link.clone(),
                    net: *net,
                },
            ));
        }

        for (key @ (link, address), mac) in &wanted.neighbours {
            let there = seen.neighbours.get(key) == Some(mac) && stays(link) && !forgetful.contains(link);
            if usable(link) && !there {
                steps.push((
                    add,
                    Step::SetNeighbour {
                        ns: at(),
                        link: link.clone(),
                        address: *address,
                        mac: *mac,
                    },
                ));
            }
        }
        for key @ (link, address) in seen.neighbours.keys() {
            let unwanted = !wanted.neighbours.contains_key(key) || !usable(link);
            if unwanted && stays(link) && !forgetful.contains(link) {
                steps.push((
                    Stage::Remove,
                    Step::DeleteNeighbour {
                        ns: at(),
                        link: link.clone(),
                        address: *address,
                    },
                ));
            }
        }

        for ((link, mac), to) in wanted.fdb.iter().filter(|((l, _), _)| usable(l)) {
            if !stays(link) || !seen.fdb.contains(&(link.clone(), *mac, *to)) {
                let step = Step::SetFdb {
                    ns: at(),
                    link: link.clone(),
                    mac: *mac,
                    to: *to,
                };
                steps.push((add, step));
            }
        }
        for (link, mac, to) in seen.fdb.iter().filter(|(l, ..)| stays(l)) {
            if !usable(link) || wanted.fdb.get(&(link.clone(), *mac)) != Some(to) {
                let step = Step::DeleteFdb {
                    ns: at(),
                    link: link.clone(),
                    mac: *mac,
                    to: *to,
                };
                steps.push((Stage::Remove, step));
            }
        }

        // One that sends by another device names it by its number: a new device has another one.
        let leads = |c: &Classifier, holds: &dyn Fn(&String) -> bool| c.verdict.device().is_none_or(|d| holds(&d));
        let mut held: BTreeSet<(&String, &Classifier)> = BTreeSet::new();
        for (place, classifier) in seen.classifiers.iter().filter(|(p, _)| stays(&p.link)) {
            let good = classifier.as_ref().is_some_and(|c| {
                usable(&place.link)
                    && leads(c, &stays)
                    && wanted.classifiers.contains(&(place.link.clone(), *c))
                    && held.insert((&place.link, c))
            });
            if !good {
                let step = Step::DeleteClassifier {
                    ns: at(),
                    place: place.clone(),
                };
                steps.push((set, step));
            }
        }
        let mut hooked: BTreeSet<&String> = seen.clsact.iter().filter(|l| stays(l)).collect();
        // The last filter is what drops the rest, so it comes first.
        let can = |link: &String, c: &Classifier| usable(link) && leads(c, &usable);
        for (link, classifier) in wanted.classifiers.iter().rev().filter(|(l, c)| can(l, c)) {
            if hooked.insert(link) {
                let step = Step::AddClsact {
                    ns: at(),
                    link: link.clone(),
                };
                steps.push((set, step));
            }
            if !held.contains(&(link, classifier)) {
                let step = Step::AddClassifier {
                    ns: at(),
                    link: link.clone(),
                    classifier: *classifier,
                };
                steps.push((set, step));
            }
        }

        for (key, route) in wanted.routes.iter().filter(|(_, r)| usable(&r.link)) {
            let now = seen.routes.get(key).filter(|r| stays(&r.link));
            if now != Some(route) {
                // Ours may still hang on a device that goes only at the end.
                let replace = seen.routes.contains_key(key);
                steps.push((
                    add,
                    Step::AddRoute {
                        ns: at(),
                        key: key.clone(),
                        route: route.clone(),
                        replace,
                    },
                ));
            }
        }
        for (key, route) in seen.routes.iter().filter(|(_, r)| stays(&r.link)) {
            if wanted.routes.get(key).is_none_or(|r| !usable(&r.link)) {
                steps.push((
                    Stage::Remove,
                    Step::DeleteRoute {
                        ns: at(),
                        key: key.clone(),
                        route: route.clone(),
                    },
                ));
            }
        }

        for rule in wanted.rules.difference(&seen.rules) {
            steps.push((
                add,
                Step::AddRule {
                    ns: at(),
                    rule: rule.clone(),
                },
            ));
        }
        for rule in seen.rules.difference(&wanted.rules) {
            steps.push((
                Stage::Remove,
                Step::DeleteRule {
                    ns: at(),
                    rule: rule.clone(),
                },
            ));
        }
        self.staged.extend(steps);
    }
}
