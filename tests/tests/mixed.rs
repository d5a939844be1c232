//! Nodes of both data paths in one cluster: n1 and n2 are of eBPF, n3 balances by IPVS, and whoever asks where is answered
//! by tasks of all three, who see the client's own address.
//!
//! Needs a kernel that has both: `cargo xtask test --lane kernel61 --e2e`. Elsewhere netd on n3 says what is missing.

use std::time::Duration;

use anyhow::{Context, ensure};
use lab::wire::{Tally, Transfer};
use lab::{Attached, Host, Lab};
use model::api::{NodeView, ServiceView};
use model::row::Datapath;
use tests::{
    SERVICE, address_kept, all_answered, counter, create_web, homes, in_lab, known, ports_apart, rate, running, status,
};

/// One node's data path each.
const MODES: [(&str, &str, Datapath); 3] = [
    ("n1", "ebpf", Datapath::Ebpf),
    ("n2", "ebpf", Datapath::Ebpf),
    ("n3", "ipvs", Datapath::Ipvs),
];

/// What goes one way has ports of its own, as many: a client's port that was used on another way to the same backend is not
/// answered by IPVS for a while.
const PORTS: u16 = 250;
/// The same for a load.
const LOAD: u16 = 2000;

#[test]
#[ignore = "needs a kernel with both data paths: cargo xtask test --lane kernel61 --e2e"]
fn nodes_of_both_data_paths_carry_each_others_traffic() {
    in_lab("mixed", 3, |lab| {
        for (name, mode, _) in MODES {
            lab.host(name)?.use_data_path(mode)?;
        }
        lab.form_cluster().context("a kernel with both data paths?")?;
        let n1 = lab.host("n1")?;
        for (name, _, wanted) in MODES {
            let seen: NodeView = n1.netctl(&format!("node inspect {name} -o json"))?.json()?;
            ensure!(
                seen.datapath == Some(wanted),
                "{name}: {:?}, {:?}",
                seen.datapath,
                seen.datapath_why
            );
        }
        n1.netctl("network create app --subnet 10.77.0.0/16 --ipv6")?.ok()?;
        let mut tasks = Vec::new();
        for node in lab.nodes() {
            let name = format!("t-{}", node.name());
            let at = node.attach(&name, "app", None)?;
            tasks.push((node, name, at));
        }
        create_web(lab, "app", 3)?;
        ensure!(homes(n1)?.len() == 3, "a task on each node: {:?}", homes(n1)?);
        for port in ["8080:80", "8080:80/udp"] {
            n1.netctl(&format!("service publish web {port}"))?.ok()?;
        }
        between_tasks(&tasks)?;
        virtual_address(lab, &tasks)?;
        published(lab, &tasks)?;
        scaled_under_load(lab)?;
        for node in lab.nodes() {
            let problems = status(node)?.problems;
            ensure!(problems.is_empty(), "{}: {problems:?}", node.name());
        }
        // Each way was taken: what this story is about did not happen in another one.
        for name in [
            "service_translated_early",
            "overlay_return_translated",
            "overlay_translated_delivered",
        ] {
            ensure!(counter(n1, name)? > 0, "{name}: {:?}", status(n1)?.counters);
        }
        Ok(())
    });
}

type Tasks<'a> = [(&'a Host, String, Attached)];

/// Nobody balances, each to each: both families and protocols, and octets that come as they were sent.
fn between_tasks(tasks: &Tasks<'_>) -> anyhow::Result<()> {
    for (node, name, _) in tasks {
        node.serve_in_netns(name, &format!("serve-{name}"), &["lab-tool", "serve", "--port", "7000"])?;
    }
    for (node, name, _) in tasks {
        for (_, other, at) in tasks.iter().filter(|(_, other, _)| other != name) {
            let v6 = at.v6.as_ref().context("no IPv6")?;
            for to in [format!("{}:7000", at.v4), format!("[{v6}]:7000")] {
                for udp in ["", "--udp"] {
                    address_kept(node, Some(name.as_str()), &format!("--to {to} -n 10 {udp}"))
                        .with_context(|| format!("{name} to {other}"))?;
                }
                whole(node, Some(name.as_str()), &to)?;
            }
        }
    }
    Ok(())
}

/// From a task of each node, also by a port that is not published.
fn virtual_address(lab: &Lab, tasks: &Tasks<'_>) -> anyhow::Result<()> {
    let web: ServiceView = lab
        .host("n1")?
        .netctl(&format!("service inspect {SERVICE} -o json"))?
        .json()?;
    let vip = *web.service.vips.values().next().context("web has no VIP")?;
    let v6 = vip.v6.context("web has no IPv6 VIP")?;
    for (node, name, _) in tasks {
        for port in [8080, 80] {
            for to in [format!("{}:{port}", vip.v4), format!("[{v6}]:{port}")] {
                for udp in ["", "--udp"] {
                    ports_apart(node, Some(name.as_str()), PORTS)?;
                    let seen = address_kept(node, Some(name.as_str()), &format!("--to {to} -n 40 {udp}"))
                        .with_context(|| format!("from {name}"))?;
                    all_three(&seen)?;
                }
                whole(node, Some(name.as_str()), &to)?;
            }
        }
    }
    Ok(())
}

/// From outside, from the nodes themselves and each other, and from tasks, through every node.
fn published(lab: &Lab, tasks: &Tasks<'_>) -> anyhow::Result<()> {
    let client = lab.client()?;
    for through in lab.nodes() {
        for to in [through.at(8080), through.at_v6(8080)] {
            for udp in ["", "--udp"] {
                ports_apart(client, None, PORTS)?;
                let seen = address_kept(client, None, &format!("--to {to} -n 40 {udp}"))?;
                all_three(&seen)?;
                for node in lab.nodes() {
                    ports_apart(node, None, PORTS)?;
                    let seen = all_answered(node, None, &format!("--to {to} -n 40 {udp}"))
                        .with_context(|| format!("from {}", node.name()))?;
                    all_three(&seen)?;
                }
                for (node, name, _) in tasks {
                    ports_apart(node, Some(name.as_str()), PORTS)?;
                    let seen = all_answered(node, Some(name.as_str()), &format!("--to {to} -n 40 {udp}"))
                        .with_context(|| format!("from {name}"))?;
                    all_three(&seen)?;
                }
            }
            // Some of them reach a task elsewhere.
            for _ in 0..4 {
                whole(client, None, &to)?;
            }
        }
        all_three(&all_answered(through, None, "--to 127.0.0.1:8080 -n 40")?)?;
    }
    Ok(())
}

/// More tasks take part, and those that go leave without a loss, through a node of each data path.
fn scaled_under_load(lab: &Lab) -> anyhow::Result<()> {
    let (n1, client, often) = (lab.host("n1")?, lab.client()?, rate(100));
    for through in ["n1", "n3"] {
        n1.netctl("service scale web=6")?.ok()?;
        running(n1, 6)?;
        known(lab, SERVICE, 6)?;
        let to = lab.host(through)?.at(8080);
        ports_apart(client, None, LOAD)?;
        let argv = [
            "lab-tool",
            "tally",
            "--announce",
            "--to",
            &to,
            "--rate",
            &often,
            "--duration",
            "15",
        ];
        let mut load = client.spawn(&format!("load-{through}"), &argv)?;
        load.line("ready", Duration::from_secs(20))?;
        n1.netctl("service scale web=3")?.ok()?;
        let out = load.wait(Duration::from_secs(60))?;
        let json = out.stdout.lines().find(|l| l.starts_with('{')).context("no report")?;
        let seen: Tally = serde_json::from_str(json)?;
        ensure!(
            seen.errors() == 0 && seen.tried > 0,
            "through {through}, drained without a loss: {seen}"
        );
        running(n1, 3)?;
    }
    Ok(())
}

/// Octets in both directions of a flow that is longer than a few packets.
fn whole(host: &Host, netns: Option<&str>, to: &str) -> anyhow::Result<()> {
    let argv = ["lab-tool", "fetch", "--to", to, "--octets", "300000"];
    let fetched: Transfer = match netns {
        Some(netns) => host.in_netns(netns, &argv)?,
        None => host.run(&argv)?,
    }
    .json()?;
    ensure!(
        fetched.lost() == 0 && fetched.error.is_none(),
        "{} from {to}: {fetched:?}",
        host.name()
    );
    Ok(())
}

/// A task of each node answered.
fn all_three(seen: &Tally) -> anyhow::Result<()> {
    let hosts: std::collections::BTreeSet<&str> =
        seen.answered.keys().filter_map(|who| who.split('/').next()).collect();
    ensure!(hosts.len() == 3, "not a task of every node answers: {seen}");
    Ok(())
}
