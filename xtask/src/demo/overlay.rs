//! Step 2: two namespaces on two nodes, one network.

use std::time::Duration;

use anyhow::Context;
use lab::{Attached, Host, Lab, OUTSIDE_V4, eventually};
use model::{
    api::{NetworkView, NodeView, Status},
    row::Datapath,
};

use super::show::Show;

pub(super) fn talk(lab: &Lab, show: &mut Show) -> anyhow::Result<()> {
    let (n1, n2) = (lab.host("n1")?, lab.host("n2")?);
    show.run(n1, "netctl network create app --subnet 10.77.0.0/16 --ipv6")?
        .ok()?;
    n1.make_netns("t1")?;
    n2.make_netns("t2")?;
    show.run(n1, "netctl endpoint add t1 --netns /run/netns/t1 --network app")?
        .ok()?;
    show.run(n2, "netctl endpoint add t2 --netns /run/netns/t2 --network app")?
        .ok()?;
    let t2 = addresses(n2, "t2")?;
    n2.serve_in_netns("t2", "t2", &["lab-tool", "serve", "--port", "9000", "--task", "t2"])?;
    let v6 = t2.v6.clone().context("the endpoint has no IPv6 address")?;
    // The row of t2 travels by gossip: the first ping waits for it.
    eventually("t1 to know where t2 is", Duration::from_secs(10), || {
        Ok(n1.in_netns("t1", &["ping", "-c", "1", "-W", "1", &t2.v4])?.success())
    })?;

    for address in [t2.v4.as_str(), v6.as_str()] {
        let ping = n1.in_netns("t1", &["ping", "-c", "10", "-i", "0.05", "-W", "1", address])?;
        println!(
            "  {}\n    {}",
            ping.command,
            ping.stdout.lines().rev().take(2).collect::<Vec<_>>().join("; ")
        );
        let lost = ping
            .stdout
            .split(", ")
            .find(|p| p.contains("packet loss"))
            .unwrap_or("no answer")
            .to_owned();
        show.expect(
            &format!("ping t1 -> t2, {address}"),
            "0% packet loss",
            &lost,
            lost.starts_with("0% "),
        );
    }
    for to in [format!("{}:9000", t2.v4), format!("[{v6}]:9000")] {
        for udp in ["", "--udp"] {
            let tally = show.tally(n1, Some("t1"), &format!("--to {to} -n 100 {udp}"))?;
            show.answered(
                &format!("{} t1 -> t2, {to}", if udp.is_empty() { "TCP" } else { "UDP" }),
                &tally,
            );
        }
    }

    lab.switch()
        .serve("outside", &["lab-tool", "serve", "--port", "8000", "--task", "outside"])?;
    let out = show.tally(n1, Some("t1"), &format!("--to {OUTSIDE_V4}:8000 -n 20"))?;
    let masqueraded = out.ok() == 20 && out.seen_as.keys().all(|ip| *ip == std::net::IpAddr::from(n1.v4()));
    show.expect(
        "t1 -> outside",
        format!("answered, seen as the node ({})", n1.v4()),
        &out,
        masqueraded,
    );

    let neighbours = n1
        .run(&["ip", "-n", "t1", "neigh", "show", "dev", "eth0"])?
        .ok()?
        .stdout;
    let v4 = neighbours
        .lines()
        .filter(|l| !l.contains(':') || l.starts_with(|c: char| c.is_ascii_digit()))
        .count();
    show.expect("neighbour entries of t1, IPv4", "1", v4, v4 == 1);
    forged(lab, show, n1, &t2)
}

/// What must not get through: VXLAN from a stranger, a task with somebody else's address.
fn forged(lab: &Lab, show: &mut Show, n1: &Host, t2: &Attached) -> anyhow::Result<()> {
    let n2 = lab.host("n2")?;
    let node: NodeView = n2.netctl("node inspect n2 -o json")?.json()?;
    if node.datapath == Some(Datapath::Ipvs) {
        strange(lab, show, n1, n2)?;
        let ping = from_elsewhere(n1, t2)?;
        show.expect("5 pings from a foreign source", "0 answered", ping, !ping);
        return Ok(());
    }
    let before = counter(n2, "drop_vxlan_from_stranger")?;
    // VXLAN header (RFC 7348) with VNI 1, then an empty Ethernet frame: the outer source alone decides.
    let frame = format!("0800000000000100{}0800", "020000000001020000000002");
    let line = format!(
        "lab-tool send --to {} --hex {frame}{} -n 20",
        n2.at(4789),
        "00".repeat(46)
    );
    show.run(lab.client()?, &line)?.ok()?;
    let grown = grows(n2, "drop_vxlan_from_stranger", before, 20)?;
    show.expect(
        "20 VXLAN packets from a stranger",
        "20 dropped and counted",
        grown,
        grown == 20,
    );

    let before = counter(n1, "drop_task_source_not_its_own")?;
    let answered = from_elsewhere(n1, t2)?;
    let grown = grows(n1, "drop_task_source_not_its_own", before, 5)?;
    show.expect(
        "5 pings from a foreign source",
        "0 answered, 5 counted",
        grown,
        !answered && grown >= 5,
    );
    Ok(())
}

/// Pings from inside t1, from an address that t1 was not given: whether one was answered.
fn from_elsewhere(n1: &Host, t2: &Attached) -> anyhow::Result<bool> {
    n1.run(&["ip", "-n", "t1", "addr", "add", "10.77.200.200/32", "dev", "eth0"])?
        .ok()?;
    let ping = n1.in_netns(
        "t1",
        &[
            "ping",
            "-c",
            "5",
            "-i",
            "0.05",
            "-W",
            "1",
            "-I",
            "10.77.200.200",
            &t2.v4,
        ],
    )?;
    n1.run(&["ip", "-n", "t1", "addr", "del", "10.77.200.200/32", "dev", "eth0"])?
        .ok()?;
    Ok(ping.success())
}

/// By IPVS the packet filter drops a stranger's packets, and `status` does not count them: none comes out of the network's
/// VXLAN device, although each names a member as the sender of its frame.
fn strange(lab: &Lab, show: &mut Show, n1: &Host, n2: &Host) -> anyhow::Result<()> {
    let networks: Vec<NetworkView> = n2.netctl("network ls -o json")?.json()?;
    let app = networks.iter().find(|n| n.name.as_str() == "app");
    let vni = app.context("there is no network app")?.network.vni.get();
    let device = |host: &Host| -> anyhow::Result<serde_json::Value> {
        let line = format!("nsenter --net=/run/netd/netns/net-{vni} ip -j -s link show nx{vni}");
        host.sh(&line)?.json()
    };
    let mac = |host: &Host| -> anyhow::Result<String> {
        let told = device(host)?;
        let mac = told[0]["address"].as_str().context("the device has no MAC")?;
        Ok(mac.replace(':', ""))
    };
    let came = || -> anyhow::Result<u64> {
        let told = device(n2)?;
        told[0]["stats64"]["rx"]["packets"]
            .as_u64()
            .context("the device does not count")
    };
    let before = came()?;
    let frame = format!("08000000{vni:06x}00{}{}0800{}", mac(n2)?, mac(n1)?, "00".repeat(46));
    let line = format!("lab-tool send --to {} --hex {frame} -n 20", n2.at(4789));
    show.run(lab.client()?, &line)?.ok()?;
    let seen = came()? - before;
    show.expect("20 VXLAN packets from a stranger", "none comes in", seen, seen == 0);
    Ok(())
}

pub(super) fn addresses(host: &Host, endpoint: &str) -> anyhow::Result<Attached> {
    let view: model::api::EndpointView = host.netctl(&format!("endpoint inspect {endpoint} -o json"))?.json()?;
    Ok(Attached {
        v4: view.v4.context("the endpoint has no IPv4 address")?.to_string(),
        v6: view.v6.map(|a| a.to_string()),
        netns: view.netns,
    })
}

fn counter(host: &Host, name: &str) -> anyhow::Result<u64> {
    let status: Status = host.netctl("status -o json")?.json()?;
    Ok(status.counters.get(name).copied().unwrap_or(0))
}

/// How far a counter has grown once it has reached `by` or 2 s are over.
fn grows(host: &Host, name: &str, before: u64, by: u64) -> anyhow::Result<u64> {
    let mut grown = 0;
    let _ = eventually(name, Duration::from_secs(2), || {
        grown = counter(host, name)?.saturating_sub(before);
        Ok(grown >= by)
    });
    Ok(grown)
}
