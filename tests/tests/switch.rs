//! From one data path to the other and back: nothing of the one before is left, whoever is killed when, and who did not ask
//! for a change is not cut.
//!
//! Needs a kernel that has both: `cargo xtask test --lane kernel61 --e2e`.

use std::time::Duration;

use anyhow::ensure;
use lab::{Host, Lab, eventually};
use model::api::{NodeView, ServiceView};
use model::row::Datapath;
use tests::{SERVICE, address_kept, all_answered, create_web, in_lab, status};

/// For what is so a moment later.
const SOON: Duration = Duration::from_secs(40);

#[test]
#[ignore = "needs a kernel with both data paths: cargo xtask test --lane kernel61 --e2e"]
fn a_node_changes_its_data_path() {
    in_lab("switch", 2, |lab| {
        for node in lab.nodes() {
            node.use_data_path("ebpf")?;
        }
        lab.form_cluster()?;
        let n1 = lab.host("n1")?;
        n1.netctl("network create app --subnet 10.77.0.0/16 --ipv6")?.ok()?;
        n1.attach("t1", "app", None)?;
        create_web(lab, "app", 2)?;
        n1.netctl("service publish 80")?.ok()?;
        answered(lab, n1)?;
        drained(lab)?;
        under_tasks(lab)?;
        automatic(lab)
    });
}

/// A drained node: there, back, and there again with netd killed in the middle.
fn drained(lab: &Lab) -> anyhow::Result<()> {
    let (n1, n2) = (lab.host("n1")?, lab.host("n2")?);
    n1.netctl("node drain n2")?.ok()?;
    eventually("n2 to be empty", SOON, || {
        Ok(n2.processes("lab-tool serve")?.is_empty())
    })?;
    restart(n2, "ebpf", Datapath::Ebpf)?;
    let ebpf = Seen::of(n2)?;
    ensure!(
        ebpf.links.contains("nx0") && ebpf.pins.contains("prog_from_ep"),
        "{ebpf:?}"
    );
    restart(n2, "ipvs", Datapath::Ipvs)?;
    let ipvs = Seen::of(n2)?;
    ensure!(
        !ipvs.links.contains("nx0") && ipvs.pins.is_empty() && ipvs.programs.is_empty(),
        "of eBPF nothing is left: {ipvs:?}"
    );
    ensure!(
        ipvs.settings != ebpf.settings && ipvs.sandboxes.contains("net-"),
        "{ipvs:?}"
    );
    restart(n2, "ebpf", Datapath::Ebpf)?;
    same(&Seen::of(n2)?, &ebpf)?;

    n2.use_data_path("ipvs")?;
    n2.kill_netd()?;
    let took = n2.start_netd()?;
    same(&Seen::of(n2)?, &ipvs)?;
    let mut midst = 0;
    for (mode, wanted, seen) in [("ebpf", Datapath::Ebpf, &ebpf), ("ipvs", Datapath::Ipvs, &ipvs)] {
        for part in 2..6 {
            n2.kill_netd()?;
            // At first one way, then the other: what was begun is finished, or taken back.
            n2.use_data_path(if part % 2 == 0 { "ebpf" } else { "ipvs" })?;
            n2.begin_netd()?;
            std::thread::sleep(took * part / 6);
            let memory = std::fs::read_to_string(n2.folder().join("state/datapath"))?;
            midst += u32::from(memory.contains("after"));
        }
        restart(n2, mode, wanted)?;
        same(&Seen::of(n2)?, seen)?;
    }
    ensure!(midst > 0, "none was killed between the two");
    Ok(())
}

/// Who asks for it under tasks gets it: they go on, with their addresses.
fn under_tasks(lab: &Lab) -> anyhow::Result<()> {
    let n1 = lab.host("n1")?;
    let tasks = n1.processes("lab-tool serve --port 80")?;
    ensure!(tasks.len() == 2, "both tasks are here: {tasks:?}");
    restart(n1, "ipvs", Datapath::Ipvs)?;
    ensure!(n1.netd_log()?.contains("under 3 endpoints"), "it says what it does");
    answered(lab, n1)?;
    let n2 = lab.host("n2")?;
    address_kept(lab.client()?, None, &format!("--to {} -n 20", n2.at(80)))?;
    restart(n1, "ebpf", Datapath::Ebpf)?;
    answered(lab, n1)?;
    // The other one is still of IPVS: asked there, and answered here.
    address_kept(lab.client()?, None, &format!("--to {} -n 20", n2.at(80)))?;
    let links = Seen::of(n1)?.links;
    ensure!(
        links.contains("nx0") && !links.contains("nvh"),
        "of IPVS nothing is left: {links}"
    );
    ensure!(n1.processes("lab-tool serve --port 80")? == tasks, "the same tasks");
    Ok(())
}

/// `auto` takes IPVS where the kernel has it, and leaves a node with tasks as it is.
fn automatic(lab: &Lab) -> anyhow::Result<()> {
    let (n1, n2) = (lab.host("n1")?, lab.host("n2")?);
    restart(n1, "auto", Datapath::Ebpf)?;
    let why = inspect(n1)?.datapath_why.unwrap_or_default();
    ensure!(
        why.contains("endpoints") && why.contains("try: netctl node drain"),
        "{why}"
    );
    answered(lab, n1)?;
    restart(n2, "ebpf", Datapath::Ebpf)?;
    restart(n2, "auto", Datapath::Ipvs)?;
    let why = inspect(n2)?.datapath_why.unwrap_or_default();
    ensure!(why.contains("mode is auto") && why.contains("mh"), "{why}");
    n1.netctl("node activate n2")?.ok()?;
    for node in lab.nodes() {
        address_kept(lab.client()?, None, &format!("--to {} -n 20", node.at(80)))?;
    }
    Ok(())
}

/// Ends netd by force and starts it with another setting.
fn restart(host: &Host, mode: &str, wanted: Datapath) -> anyhow::Result<()> {
    host.kill_netd()?;
    host.use_data_path(mode)?;
    host.start_netd()?;
    let seen = inspect(host)?;
    ensure!(
        seen.datapath == Some(wanted),
        "{mode} on {}: {:?}, {:?}",
        host.name(),
        seen.datapath,
        seen.datapath_why
    );
    eventually("all to be applied", SOON, || {
        let problems = status(host)?.problems;
        ensure!(problems.is_empty(), "{problems:?}");
        Ok(true)
    })?;
    Ok(())
}

fn inspect(host: &Host) -> anyhow::Result<NodeView> {
    host.netctl(&format!("node inspect {} -o json", host.name()))?.json()
}

/// A host's own published port, and the virtual address in its task.
fn answered(lab: &Lab, host: &Host) -> anyhow::Result<()> {
    address_kept(lab.client()?, None, &format!("--to {} -n 20", host.at(80)))?;
    all_answered(host, None, "--to 127.0.0.1:80 -n 10")?;
    let web: ServiceView = host.netctl(&format!("service inspect {SERVICE} -o json"))?.json()?;
    for vip in web.service.vips.values() {
        address_kept(host, Some("t1"), &format!("--to {}:80 -n 20", vip.v4))?;
        if let Some(v6) = vip.v6 {
            address_kept(host, Some("t1"), &format!("--to [{v6}]:80 -n 20"))?;
        }
    }
    Ok(())
}

/// What a data path leaves on a host, as its tools tell it; without what another object of the same kind would have otherwise.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    links: String,
    programs: String,
    pins: String,
    sandboxes: String,
    settings: String,
    rules: String,
    routes: String,
    filter: Vec<String>,
}

impl Seen {
    fn of(host: &Host) -> anyhow::Result<Seen> {
        let ask = |script: &str| -> anyhow::Result<String> { Ok(host.run(&["sh", "-c", script])?.ok()?.stdout) };
        let mut filter: Vec<String> = ask("nft -s list ruleset; iptables-legacy-save 2>/dev/null | grep NETD || true")?
            .split_whitespace()
            .map(|word| word.trim_end_matches(',').to_owned())
            .collect();
        filter.sort_unstable();
        Ok(Seen {
            links: ask("ip -o link | cut -d: -f2 | cut -d@ -f1 | sort")?,
            programs: ask(
                "for d in $(ip -o link | cut -d: -f2 | cut -d@ -f1); do tc filter show dev $d ingress; tc filter show dev $d egress; done \
                 | grep -o 'from_[a-z]*' | sort || true",
            )?,
            // The pin of a program at a device bears the device's number.
            pins: ask("ls /sys/fs/bpf/netd 2>/dev/null | sed 's/_[0-9]*$//' | sort || true")?,
            sandboxes: ask("ls /run/netd/netns 2>/dev/null || true")?,
            settings: ask(
                "cd /proc/sys/net/ipv4/conf; grep . lo/accept_local lo/route_localnet all/send_redirects all/route_localnet",
            )?,
            rules: ask("ip rule; ip -6 rule")?,
            routes: ask(
                "ip route show table all proto 110; ip -6 route show table all proto 110 | sed 's/ metric.*//'",
            )?,
            filter,
        })
    }
}

fn same(seen: &Seen, before: &Seen) -> anyhow::Result<()> {
    ensure!(seen == before, "it is not as it was: {seen:#?}\nbefore: {before:#?}");
    Ok(())
}
