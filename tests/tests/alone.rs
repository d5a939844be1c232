//! Nodes without managers: everything that needs none goes on, also after a reboot.

use std::collections::BTreeSet;

use anyhow::{Context, ensure};
use lab::{Host, eventually};
use model::api::EndpointView;
use tests::managers::SETTLED;
use tests::{address_kept, all_answered, by_ipvs, create_web, in_cluster, running, status};

#[test]
fn workers_go_on_without_managers() {
    in_cluster("alone", 3, |lab| {
        let (n1, n2, n3, client) = (lab.host("n1")?, lab.host("n2")?, lab.host("n3")?, lab.client()?);
        n1.netctl("network create app --subnet 10.77.0.0/16")?.ok()?;
        create_web(lab, "app", 3)?;
        n1.netctl("service publish 80")?.ok()?;
        let first = n2.attach("a1", "app", None)?;
        names(n2, "a1")?;

        // 1. The only manager's daemon dies.
        n1.kill_netd()?;
        eventually("n2 to miss it", SETTLED, || Ok(status(n2)?.converged.is_none()))?;
        address_kept(client, None, &format!("--to {} -n 30", n2.at(80)))?;
        names(n2, "a1")?;
        let second = n2.attach("a2", "app", None)?;
        ensure!(first.v4 != second.v4, "an address of its own block");
        names(n2, "a2")?;
        all_answered(n2, Some("a2"), &format!("--to {} -n 20", vip(n2)?))?;
        // A task that dies is started again.
        let task = n2.processes("serve --port 80")?;
        let pid = task.first().copied().context("no task on n2")?;
        n2.kill_process(pid)?;
        eventually("its task to run again", SETTLED, || {
            let now = n2.processes("serve --port 80")?;
            Ok(!now.is_empty() && !now.contains(&pid))
        })?;
        let answered = || address_kept(client, None, &format!("--to {} -n 30", n2.at(80))).map(|_| true);
        eventually("the published port", SETTLED, answered)?;
        let refused = n2.netctl("network create x")?;
        ensure!(refused.code == 1, "a worker changes nothing: {}", refused.stdout);

        // 2. It reboots in that state: nothing of it is in the kernel, its last view is on the disk.
        reboot(n2)?;
        n2.start_netd()?;
        n2.start_runner()?;
        eventually("its task to run", SETTLED, || {
            Ok(!n2.processes("serve --port 80")?.is_empty())
        })?;
        eventually("the published port", SETTLED, answered)?;
        n2.attach("a3", "app", None)?;
        names(n2, "a3")?;
        all_answered(n2, Some("a3"), &format!("--to {} -n 20", vip(n2)?))?;

        // 3. One that has lost even its last view leaves the kernel as it is.
        n3.kill_netd()?;
        std::fs::remove_file(n3.folder().join("state/intent.json"))?;
        let before = held(n3)?;
        n3.start_netd()?;
        let now = status(n3)?;
        ensure!(now.writes.total == 0, "nothing is written: {:?}", now.writes);
        ensure!(
            now.problems.iter().any(|p| p.contains("knows no intent")),
            "{:?}",
            now.problems
        );
        ensure!(held(n3)? == before, "nothing is taken away");
        ensure!(!n3.processes("serve --port 80")?.is_empty(), "its task is left alone");
        address_kept(client, None, &format!("--to {} -n 30", n3.at(80)))?;

        // 4. The manager returns, and they catch up.
        n1.start_netd()?;
        // All nodes are asked which subnets they route: some may take seconds to try the manager again.
        eventually("a network", SETTLED, || {
            n1.netctl("network create later --subnet 10.78.0.0/16")?
                .ok()
                .map(|_| true)
        })?;
        for host in [n2, n3] {
            eventually(&format!("{} to catch up", host.name()), SETTLED, || {
                let seen = status(host)?;
                Ok(seen.converged == Some(true) && seen.networks.iter().any(|n| n.name.as_str() == "later"))
            })?;
        }
        // The one that had its last view got what had changed, the one that had lost it got all.
        let (kept, lost) = (status(n2)?.taken, status(n3)?.taken);
        ensure!(kept.whole == 0 && kept.increments > 0, "n2: {kept:?}");
        ensure!(lost.whole == 1, "n3: {lost:?}");
        running(n1, 3)?;
        let here: Vec<EndpointView> = n2.netctl("endpoint ls -o json")?.json()?;
        ensure!(
            here.iter().any(|e| e.id.to_string() == "a3"),
            "what was attached meanwhile stays: {here:?}"
        );
        address_kept(client, None, &format!("--to {} -n 30", n3.at(80)))?;
        Ok(())
    });
}

/// `web` is answered in a namespace, at once: what is attached can ask.
fn names(host: &Host, netns: &str) -> anyhow::Result<()> {
    let dig = ["dig", "+short", "+tries=2", "+time=2", "@127.0.0.11", "web", "A"];
    let answer = host.in_netns(netns, &dig)?.ok()?;
    ensure!(
        answer.stdout.trim().starts_with("10.77."),
        "web in {netns}: {}",
        answer.stdout
    );
    Ok(())
}

/// The VIP of web, with its port.
fn vip(host: &Host) -> anyhow::Result<String> {
    let service: model::api::ServiceView = host.netctl("service inspect web -o json")?.json()?;
    let vip = service.service.vips.values().next().context("web has no VIP")?;
    Ok(format!("{}:80", vip.v4))
}

/// What netd holds in a host's kernel: links, and pins or sandboxes.
fn held(host: &Host) -> anyhow::Result<BTreeSet<String>> {
    let links = host.sh("ls /sys/class/net")?.ok()?.stdout;
    let folder = if by_ipvs() {
        "/run/netd/netns"
    } else {
        "/sys/fs/bpf/netd"
    };
    let pins = host.sh(&format!("find {folder}"))?.ok()?.stdout;
    Ok(links
        .split_whitespace()
        .chain(pins.split_whitespace())
        .map(str::to_owned)
        .collect())
}

/// Ends everything on a host, and takes out of its kernel and /run what a reboot takes.
fn reboot(host: &Host) -> anyhow::Result<()> {
    host.power_cut()?;
    for line in [
        "rm -rf /sys/fs/bpf/netd",
        "ip link del nx0",
        "nft delete table inet netd",
        "find /run/netd/netns /run/netns -type f -exec umount {} ;",
        "rm -rf /run/netd /run/netns",
    ] {
        // Not all of it is there on every host.
        host.sh(line)?;
    }
    for tool in ["iptables-legacy", "ip6tables-legacy"].iter().filter(|_| by_ipvs()) {
        for table in ["raw", "mangle", "nat", "filter"] {
            host.sh(&format!("{tool} -t {table} -F"))?.ok()?;
            host.sh(&format!("{tool} -t {table} -X"))?.ok()?;
        }
    }
    host.heal()
}
