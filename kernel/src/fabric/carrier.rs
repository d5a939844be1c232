//! What was brought up can send.
//!
//! Both ends of a new pair are up at once, but their first packets go to nobody until a thread of the kernel (its link
//! watch) has come by: some milliseconds later as a rule, and up to a second where many devices come and go. A client whose
//! first packet, or whose answer, is lost so waits for a second.

use std::{
    collections::BTreeMap,
    thread::sleep,
    time::{Duration, Instant},
};

use overlay::{Ns, Plan, Step};

use crate::{
    netns::{self, Netns},
    rtnl::Rtnl,
};

/// Longest wait for all devices of a plan.
const LIMIT: Duration = Duration::from_secs(2);
/// Between looks.
const AGAIN: Duration = Duration::from_millis(2);

/// Waits until the devices that a plan has brought up can send.
pub(super) fn wait(plan: &Plan) {
    let mut up: BTreeMap<&Ns, Vec<&str>> = BTreeMap::new();
    for step in &plan.steps {
        if let Step::ChangeLink { ns, name, change } = step
            && change.up
        {
            up.entry(ns).or_default().push(name);
        }
    }
    let until = Instant::now() + LIMIT;
    for (ns, names) in up {
        match ns {
            Ns::Host => running(&names, until),
            Ns::Sandbox(path) | Ns::Task(path) => {
                // Who is gone in the meantime sends nothing.
                let _ = Netns::open(path).and_then(|netns| netns::run_in(&netns, || running(&names, until)));
            }
        }
    }
}

/// Waits for devices of the calling thread's namespace.
fn running(names: &[&str], until: Instant) {
    let Ok(mut rtnl) = Rtnl::open() else {
        return;
    };
    for name in names {
        while let Ok(Some(link)) = rtnl.link(name)
            && link.up
            && link.carrier
            && !link.running
            && Instant::now() < until
        {
            sleep(AGAIN);
        }
    }
}
