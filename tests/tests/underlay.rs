//! An underlay of IPv6: hosts that have no IPv4 address at all, and hosts that are apart because their addresses are of two
//! families. By IPVS; on the other data path it is refused by name. And hosts that have no IPv6.

use std::time::Duration;

use anyhow::{Context, ensure};
use lab::wire::Transfer;
use lab::{DaemonOptions, Host, Lab, Options, eventually};
use model::api::{MemberView, NodeView, ServiceView};
use tests::{SERVICE, address_kept, all_answered, by_ipvs, create_web, in_lab_with, status, tally, tunnel};

/// Nodes that find their addresses by themselves.
fn plain(nodes: u8, ipv4: bool) -> Options {
    Options {
        nodes,
        ipv4,
        daemon: DaemonOptions {
            no_addresses: true,
            ..DaemonOptions::default()
        },
        ..Options::default()
    }
}

/// Waits until a node has nothing to complain of.
fn no_problems(node: &Host) -> anyhow::Result<()> {
    let what = format!("{} to have no problem", node.name());
    eventually(&what, Duration::from_secs(30), || {
        let problems = status(node)?.problems;
        ensure!(problems.is_empty(), "{problems:?}");
        Ok(true)
    })?;
    Ok(())
}

/// Waits until a node complains of something that contains `text`.
fn complains(node: &Host, text: &str) -> anyhow::Result<()> {
    let what = format!("{} to complain of {text:?}", node.name());
    eventually(&what, Duration::from_secs(30), || {
        let problems = status(node)?.problems;
        ensure!(
            problems.iter().any(|p| p.contains(text) && p.contains("try: ")),
            "{problems:?}"
        );
        Ok(true)
    })?;
    Ok(())
}

#[test]
fn nodes_have_ipv6_addresses_alone() {
    if !by_ipvs() {
        return in_lab_with("six", plain(1, false), refused_by_name);
    }
    in_lab_with("six", plain(3, false), |lab| {
        form(lab)?;
        let n1 = lab.host("n1")?;
        n1.netctl("network create app --subnet 10.77.0.0/16 --ipv6")?.ok()?;
        plain_traffic(lab)?;
        create_web(lab, "app", 3)?;
        virtual_addresses(n1)?;
        published(lab)?;
        to_itself(n1)?;
        for node in lab.nodes() {
            no_problems(node)?;
            untracked(node)?;
        }
        managers(lab)
    });
}

/// eBPF sends to IPv4 alone: said at init, whatever names the address, and at the start of a node whose data path was changed.
fn refused_by_name(lab: &Lab) -> anyhow::Result<()> {
    let n1 = lab.host("n1")?;
    n1.start_netd()?;
    let by_flag = format!("--advertise-addr {} --data-path-addr eth0", n1.v6());
    for flags in ["", &format!("--advertise-addr {}", n1.v6()), &by_flag] {
        let said = n1.netctl(&format!("cluster init {flags}"))?;
        ensure!(
            !said.success() && said.stderr.contains("IPv4") && said.stderr.contains("try: "),
            "{flags}: {said:?}"
        );
    }
    let said = n1.netctl(&format!("cluster init --advertise-addr {}", n1.v6()))?;
    ensure!(
        said.stderr.contains("eBPF") && said.stderr.contains("mode = \"ipvs\""),
        "{said:?}"
    );
    Ok(())
}

/// A cluster of all nodes, without a word about addresses.
fn form(lab: &Lab) -> anyhow::Result<()> {
    let (n1, others) = lab.nodes().split_first().context("no node")?;
    for node in lab.nodes() {
        ensure!(node.sh("ip -4 route show default")?.stdout.is_empty(), "it has IPv4");
        node.start_netd()?;
    }
    n1.netctl("cluster init")?.ok()?;
    let token = n1.join_token()?;
    for node in others {
        node.netctl(&format!("cluster join {token} {}", n1.at(2377)))?.ok()?;
    }
    for node in lab.nodes() {
        node.start_runner()?;
    }
    for node in lab.nodes() {
        node.sees_ready(lab.nodes().len(), Duration::from_secs(40))?;
        no_problems(node)?;
    }
    let nodes: Vec<NodeView> = n1.netctl("node ls -o json")?.json()?;
    for node in lab.nodes() {
        let seen = nodes.iter().find(|n| n.hostname == node.name());
        let at = seen.and_then(|n| n.addr.clone());
        ensure!(at == Some(node.v6().to_string()), "{}: {at:?}", node.name());
    }
    Ok(())
}

/// Every pair of nodes, both families, packets of each size.
fn plain_traffic(lab: &Lab) -> anyhow::Result<()> {
    let mut there = Vec::new();
    for node in lab.nodes() {
        there.push(node.attach(&format!("t-{}", node.name()), "app", None)?);
    }
    for node in lab.nodes() {
        let netns = format!("t-{}", node.name());
        for to in &there {
            for to in [Some(&to.v4), to.v6.as_ref()] {
                let to = to.context("an endpoint without IPv6")?;
                eventually(&format!("{netns} to reach {to}"), Duration::from_secs(10), || {
                    Ok(node.in_netns(&netns, &["ping", "-c1", "-W1", to])?.success())
                })?;
                // Whole, and in pieces.
                for octets in ["1382", "4000"] {
                    let argv = ["ping", "-c2", "-i0.1", "-W2", "-s", octets, to];
                    node.in_netns(&netns, &argv)?.ok()?;
                }
            }
        }
    }
    let n1 = lab.host("n1")?;
    let argv = ["ip", "-o", "link", "show", "eth0"];
    let (outer, inner) = (n1.run(&argv)?.ok()?.stdout, n1.in_netns("t-n1", &argv)?.ok()?.stdout);
    ensure!(
        outer.contains(" mtu 1500 ") && inner.contains(" mtu 1430 "),
        "{inner} within {outer}"
    );
    Ok(())
}

/// VIPs of both families, both protocols, from a task; and many octets.
fn virtual_addresses(n1: &Host) -> anyhow::Result<()> {
    let web: ServiceView = n1.netctl(&format!("service inspect {SERVICE} -o json"))?.json()?;
    let vip = *web.service.vips.values().next().context("web has no VIP")?;
    let v6 = vip.v6.context("web has no IPv6 VIP")?;
    for to in [format!("{}:80", vip.v4), format!("[{v6}]:80")] {
        for udp in ["", "--udp"] {
            let seen = address_kept(n1, Some("t-n1"), &format!("--to {to} -n 100 {udp}"))?;
            ensure!(seen.answered.len() == 3, "{to} {udp}: {seen}");
        }
        let argv = ["lab-tool", "fetch", "--to", &to, "--octets", "5000000"];
        let stream: Transfer = n1.in_netns("t-n1", &argv)?.json()?;
        ensure!(stream.lost() == 0 && stream.error.is_none(), "{to}: {stream:?}");
    }
    for to in [vip.v4.to_string(), v6.to_string()] {
        n1.in_netns("t-n1", &["ping", "-c1", "-W2", &to])?.ok()?;
    }
    Ok(())
}

/// A port of every node, from outside with the client's address, from the node itself, and from a task.
fn published(lab: &Lab) -> anyhow::Result<()> {
    let (n1, client) = (lab.host("n1")?, lab.client()?);
    n1.netctl("service publish 80")?.ok()?;
    n1.netctl("service publish web 80/udp")?.ok()?;
    for node in lab.nodes() {
        for udp in ["", "--udp"] {
            let seen = address_kept(client, None, &format!("--to {} -n 60 {udp}", node.at(80)))?;
            ensure!(seen.answered.len() == 3, "{udp}: {seen}");
        }
        let argv = ["lab-tool", "fetch", "--to", &node.at(80), "--octets", "5000000"];
        let stream: Transfer = client.run(&argv)?.json()?;
        ensure!(stream.lost() == 0 && stream.error.is_none(), "{stream:?}");
        all_answered(node, None, &format!("--to {} -n 30", node.at(80)))?;
        // It has no IPv4 address but this one.
        all_answered(node, None, "--to 127.0.0.1:80 -n 30")?;
        all_answered(n1, Some("t-n1"), &format!("--to {} -n 30", node.at(80)))?;
    }
    // What a node without IPv4 cannot have is no hole: the client has no way there.
    ensure!(
        tally(client, None, &format!("--to {}:80 -n 1 --timeout-ms 500", n1.v4()))?.errors() == 1,
        "nobody has that address"
    );
    Ok(())
}

/// A task that is led back to itself by its own service's VIP, in both families: one of them the host has no address of.
fn to_itself(n1: &Host) -> anyhow::Result<()> {
    n1.netctl("service create solo --network app")?.ok()?;
    n1.attach("s1", "app", Some("solo"))?;
    n1.serve_in_netns("s1", "serve-s1", &["lab-tool", "serve", "--port", "80"])?;
    let solo: ServiceView = n1.netctl("service inspect solo -o json")?.json()?;
    let vip = *solo.service.vips.values().next().context("solo has no VIP")?;
    let v6 = vip.v6.context("solo has no IPv6 VIP")?;
    for to in [format!("{}:80", vip.v4), format!("[{v6}]:80")] {
        eventually(&format!("{to} to lead somewhere"), Duration::from_secs(10), || {
            Ok(tally(n1, Some("t-n1"), &format!("--to {to} -n 1 --timeout-ms 500"))?.errors() == 0)
        })?;
        for udp in ["", "--udp"] {
            all_answered(n1, Some("s1"), &format!("--to {to} -n 20 {udp}"))?;
        }
    }
    Ok(())
}

/// The tunnel's packets are not in the host's table of connections: their source port differs for each flow within.
fn untracked(node: &Host) -> anyhow::Result<()> {
    let table = node.sh("cat /proc/net/nf_conntrack")?;
    if !table.success() {
        println!("{}: this kernel does not list its connections", node.name());
        return Ok(());
    }
    let tunnel: Vec<&str> = table.stdout.lines().filter(|l| l.contains("dport=4789")).collect();
    ensure!(tunnel.is_empty(), "{}: {tunnel:?}", node.name());
    Ok(())
}

/// Raft and gossip by IPv6: two more managers, and one of three that dies.
fn managers(lab: &Lab) -> anyhow::Result<()> {
    let (n1, n2) = (lab.host("n1")?, lab.host("n2")?);
    for node in ["n2", "n3"] {
        n1.netctl(&format!("node promote {node}"))?.ok()?;
    }
    n1.kill_netd()?;
    eventually("two of three managers to decide", Duration::from_secs(40), || {
        let made = n2.netctl("network create later --timeout 10s")?;
        ensure!(
            made.success() || made.all().contains("exists already"),
            "{}",
            made.all()
        );
        Ok(true)
    })?;
    let members: Vec<MemberView> = n2.netctl("cluster members -o json")?.json()?;
    for node in lab.nodes() {
        let seen = members.iter().find(|m| m.hostname == node.name());
        let at = seen.and_then(|m| m.addr.clone());
        ensure!(at == Some(format!("[{}]:7946", node.v6())), "{}: {at:?}", node.name());
    }
    // It comes back, and has nothing to write: what it had is what it should have.
    let (device, ip) = tunnel(n1)?;
    let index = || anyhow::Ok(n1.sh(&format!("{ip} -o link show {device}"))?.ok()?.stdout);
    let before = index()?;
    n1.start_netd()?;
    n1.sees_ready(3, Duration::from_secs(40))?;
    ensure!(before == index()?, "the tunnel is another one: {before}");
    Ok(())
}

#[test]
fn a_service_leads_a_task_back_to_itself_on_a_host_without_ipv6() {
    let options = Options {
        nodes: 1,
        ipv6: false,
        ..Options::default()
    };
    in_lab_with("four", options, |lab| {
        lab.form_cluster()?;
        let n1 = lab.host("n1")?;
        n1.netctl("network create app --subnet 10.77.0.0/16 --ipv6")?.ok()?;
        n1.attach("t-n1", "app", None)?;
        to_itself(n1)?;
        no_problems(n1)
    });
}

#[test]
fn nodes_of_two_families_are_apart_and_say_so() {
    if !by_ipvs() {
        println!("an IPv6 data path is refused here: the other story");
        return;
    }
    in_lab_with("apart", plain(3, true), |lab| {
        let (n1, n2, n3) = (lab.host("n1")?, lab.host("n2")?, lab.host("n3")?);
        for node in lab.nodes() {
            node.start_netd()?;
        }
        n1.netctl(&format!("cluster init --advertise-addr {}", n1.v6()))?.ok()?;
        let token = n1.join_token()?;
        // Who joins by an IPv6 address takes one of its own, where it has both.
        n2.netctl(&format!("cluster join {token} {}", n1.at_v6(2377)))?.ok()?;
        n3.netctl(&format!("cluster join {token} {}", n1.at(2377)))?.ok()?;
        for node in lab.nodes() {
            node.sees_ready(3, Duration::from_secs(40))?;
        }
        complains(n1, "node n3 (n3) is not reached through networks")?;
        complains(n2, "node n3 (n3) is not reached through networks")?;
        complains(n3, "node n1 (n1) is not reached through networks")?;
        complains(n3, "node n2 (n2) is not reached through networks")?;

        n1.netctl("network create app --subnet 10.77.0.0/16 --ipv6")?.ok()?;
        n1.netctl("service create web --network app")?.ok()?;
        n1.attach("t1", "app", None)?;
        let t2 = n2.attach("t2", "app", Some("web"))?;
        let t3 = n3.attach("t3", "app", Some("web"))?;
        for (node, netns) in [(n2, "t2"), (n3, "t3")] {
            node.serve_in_netns(netns, "serve", &["lab-tool", "serve", "--port", "80"])?;
        }
        eventually("n1 to reach n2's task", Duration::from_secs(20), || {
            Ok(n1.in_netns("t1", &["ping", "-c1", "-W1", &t2.v4])?.success())
        })?;
        // Not a silence: the task is told that there is no way.
        let said = n1.in_netns("t1", &["ping", "-c1", "-W2", &t3.v4])?;
        ensure!(
            !said.success() && said.all().to_lowercase().contains("unreachable"),
            "{said:?}"
        );
        // Nor a share of the flows: what is not reached is no backend here.
        let web: ServiceView = n1.netctl("service inspect web -o json")?.json()?;
        let vip = web.service.vips.values().next().context("web has no VIP")?.v4;
        eventually("the VIP to answer", Duration::from_secs(20), || {
            Ok(tally(n1, Some("t1"), &format!("--to {vip}:80 -n 1 --timeout-ms 500"))?.errors() == 0)
        })?;
        let seen = address_kept(n1, Some("t1"), &format!("--to {vip}:80 -n 60"))?;
        ensure!(seen.answered.len() == 1, "{seen}");

        // n3 gets an address of the others' family: all are together.
        n3.configure(&format!("[datapath]\naddress = \"{}\"\n", n3.v6()))?;
        n3.kill_netd()?;
        n3.start_netd()?;
        for node in lab.nodes() {
            no_problems(node)?;
        }
        eventually("n1 to reach n3's task", Duration::from_secs(20), || {
            Ok(n1.in_netns("t1", &["ping", "-c1", "-W1", &t3.v4])?.success())
        })?;
        eventually("both backends to answer", Duration::from_secs(20), || {
            Ok(tally(n1, Some("t1"), &format!("--to {vip}:80 -n 60"))?.answered.len() == 2)
        })?;
        Ok(())
    });
}
