//! Addresses are attributes: how they are found, who holds the ports, and what happens when they change.

#![allow(clippy::disallowed_methods, reason = "a gap is timed")]

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use lab::wire::{Figure, Tally, Transfer};
use lab::{DaemonOptions, Host, Lab, Options, Process, eventually};
use model::api::{MemberView, NodeView, ServiceView};
use serde::de::DeserializeOwned;
use tests::{by_ipvs, in_lab_with, status, tally, tunnel};

/// Longest time without an answer from a node that has moved.
const GAP: Duration = Duration::from_secs(3);

fn plain(nodes: u8) -> Options {
    Options {
        nodes,
        daemon: DaemonOptions {
            no_addresses: true,
            ..DaemonOptions::default()
        },
        ..Options::default()
    }
}

/// A cluster of all nodes, without a word about addresses.
fn form(lab: &Lab) -> anyhow::Result<()> {
    for node in lab.nodes() {
        node.start_netd()?;
    }
    let (n1, others) = lab.nodes().split_first().context("no node")?;
    n1.netctl("cluster init")?.ok()?;
    let token = n1.join_token()?;
    for node in others {
        node.netctl(&format!("cluster join {token} {}", n1.at(2377)))?.ok()?;
    }
    for node in lab.nodes() {
        node.sees_ready(lab.nodes().len(), Duration::from_secs(20))?;
    }
    Ok(())
}

/// A backend of the service `web` in a namespace of its own.
fn backend(host: &Host, name: &str, service: &str) -> anyhow::Result<()> {
    host.attach(name, "app", Some(service))?;
    host.serve_in_netns(name, &format!("serve-{name}"), &["lab-tool", "serve", "--port", "80"])
}

/// Other addresses for the same device, as a DHCP server would give them: the old one goes first.
fn change(host: &Host, old: &str, new: &str) -> anyhow::Result<()> {
    let line = format!(
        "ip address del {old}/24 dev eth0; ip address add {new}/24 dev eth0; ip route replace default via 198.18.0.1"
    );
    host.run(&["sh", "-c", &line])?.ok()?;
    Ok(())
}

/// 200 datagrams a second for so many seconds, each with a limit of 2 s: none is sent twice, so one that is lost stays
/// lost, and one that is late is not.
fn datagrams(host: &Host, name: &str, to: &str, seconds: &str) -> anyhow::Result<Process> {
    let argv = [
        "lab-tool",
        "tally",
        "--announce",
        "--udp",
        "--to",
        to,
        "--rate",
        "200",
        "--timeout-ms",
        "2000",
        "--duration",
        seconds,
    ];
    let mut load = host.spawn(name, &argv)?;
    load.line("ready", Duration::from_secs(20))?;
    Ok(load)
}

fn report<T: DeserializeOwned>(process: &mut Process) -> anyhow::Result<T> {
    let out = process.wait(Duration::from_secs(60))?;
    let json = out.stdout.lines().find(|l| l.starts_with('{'));
    Ok(serde_json::from_str(
        json.with_context(|| format!("no report: {}", out.stdout))?,
    )?)
}

/// Waits until `observer` knows `name` by `address`.
fn known_at(observer: &Host, name: &str, address: &str) -> anyhow::Result<Duration> {
    eventually(
        &format!("{} to know {name} at {address}", observer.name()),
        Duration::from_secs(20),
        || {
            let nodes: Vec<NodeView> = observer.netctl("node ls -o json")?.json()?;
            let seen = nodes.iter().find(|n| n.hostname == name).and_then(|n| n.addr.clone());
            ensure!(seen.as_deref() == Some(address), "it is known at {seen:?}");
            Ok(true)
        },
    )
}

/// Makes a network. All nodes are asked which subnets they route: one that has lost its manager may take seconds to try
/// again.
fn made(by: &Host, network: &str) -> anyhow::Result<()> {
    let line = format!("network create {network} --timeout 20s");
    eventually(network, Duration::from_secs(20), || {
        by.netctl(&line)?.ok().map(|_| true)
    })?;
    Ok(())
}

/// Waits until a node has nothing to complain of.
fn no_problems(node: &Host) -> anyhow::Result<()> {
    eventually(
        &format!("{} to have no problem", node.name()),
        Duration::from_secs(20),
        || {
            let problems = status(node)?.problems;
            ensure!(problems.is_empty(), "{problems:?}");
            Ok(true)
        },
    )?;
    Ok(())
}

#[test]
fn nodes_move_under_traffic() {
    in_lab_with("address", plain(3), |lab| {
        form(lab)?;
        let (n1, n2, n3) = (lab.host("n1")?, lab.host("n2")?, lab.host("n3")?);
        n1.netctl("network create app --subnet 10.77.0.0/16")?.ok()?;
        n1.netctl("service create web --network app")?.ok()?;
        n1.netctl("service publish web 80/udp")?.ok()?;
        backend(n2, "b2", "web")?;
        let to = n1.at(80);
        eventually("the backend to answer", Duration::from_secs(10), || {
            Ok(tally(lab.client()?, None, &format!("--udp --to {to} -n 5 --timeout-ms 200"))?.errors() == 0)
        })?;

        // Flows that are there when it happens: a task of n2 that speaks to n3 by a VIP, and a client's stream to n2.
        n1.netctl("service create east --network app")?.ok()?;
        n1.netctl("service publish web 80")?.ok()?;
        backend(n3, "e3", "east")?;
        n2.attach("c2", "app", None)?;
        let services: Vec<ServiceView> = n2.netctl("service ls -o json")?.json()?;
        let east = services
            .iter()
            .find(|s| s.name.as_str() == "east")
            .context("no service")?;
        let vip = east.service.vips.values().next().context("no VIP")?.v4;
        eventually("the VIP to answer", Duration::from_secs(10), || {
            Ok(tally(n2, Some("c2"), &format!("--to {vip}:80 -n 5 --timeout-ms 300"))?.errors() == 0)
        })?;
        let vip = format!("{vip}:80");
        let talk = [
            "nsenter",
            "--net=/run/netns/c2",
            "--",
            "lab-tool",
            "load",
            "requests",
            "--to",
            &vip,
            // The daemons of all nodes need a processor too, and some kernels have but one.
            "--pause-ms",
            "2",
            "--duration",
            "8",
        ];
        let mut talk = n2.spawn("talk", &talk)?;
        let stream = [
            "lab-tool", "fetch", "--to", &to, "--octets", "24000000", "--rate", "4000000",
        ];
        let mut stream = lab.client()?.spawn("stream", &stream)?;
        stream.line("receiving", Duration::from_secs(10))?;

        // 1. The backend's node gets another address; nothing restarts, nobody is told.
        let mut load = datagrams(lab.client()?, "move-n2", &to, "6")?;
        let start = Instant::now();
        change(n2, &n2.v4().to_string(), "198.18.0.212")?;
        known_at(n1, "n2", "198.18.0.212")?;
        let told = start.elapsed();
        let seen: Tally = report(&mut load)?;
        eprintln!(
            "n2 moved: the others knew after {} ms; longest gap {} ms, {} of {} datagrams lost",
            told.as_millis(),
            seen.longest_gap_ms,
            seen.errors(),
            seen.tried
        );
        ensure!(
            seen.ok() > 0 && u128::from(seen.longest_gap_ms) <= GAP.as_millis(),
            "{seen}"
        );
        let kept: Transfer = report(&mut stream)?;
        ensure!(
            kept.lost() == 0 && kept.error.is_none(),
            "a stream to its backend: {kept:?}"
        );
        let kept: Figure = report(&mut talk).context("a connection of its task")?;
        eprintln!("{} answers on a connection that outlived the move", kept.count);
        for node in lab.nodes() {
            node.sees_ready(3, Duration::from_secs(20))?;
        }
        no_problems(n2)?;
        // And it takes intent as before.
        made(n1, "later")?;

        // 2. The only manager moves: the workers find it again, the log knows it, a token leads to it.
        backend(n3, "b3", "web")?;
        let mut load = datagrams(lab.client()?, "move-n1", &n3.at(80), "6")?;
        change(n1, &n1.v4().to_string(), "198.18.0.211")?;
        known_at(n3, "n1", "198.18.0.211")?;
        let seen: Tally = report(&mut load)?;
        eprintln!(
            "n1 moved: longest gap through n3 {} ms, {} lost",
            seen.longest_gap_ms,
            seen.errors()
        );
        ensure!(seen.errors() == 0, "n1 is on nobody's way: {seen}");
        made(n1, "latest")?;
        let said = n1.netctl("cluster token worker")?.ok()?.stdout;
        ensure!(said.contains("198.18.0.211:2377"), "{said}");
        let members: Vec<MemberView> = n3.netctl("cluster members -o json")?.json()?;
        ensure!(
            members.iter().any(|m| m.addr.as_deref() == Some("198.18.0.211:7946")),
            "{members:?}"
        );

        // 3. A node moves while its daemon is down: it comes back as itself.
        let me = status(n3)?.me;
        n3.stop_netd()?;
        change(n3, &n3.v4().to_string(), "198.18.0.213")?;
        n3.start_netd()?;
        known_at(n1, "n3", "198.18.0.213")?;
        for node in lab.nodes() {
            node.sees_ready(3, Duration::from_secs(20))?;
        }
        ensure!(status(n3)?.me == me, "the same node");
        eventually("its backend to answer", Duration::from_secs(20), || {
            let seen = tally(lab.client()?, None, "--udp --to 198.18.0.211:80 -n 60 --timeout-ms 300")?;
            ensure!(seen.errors() == 0 && seen.answered.len() == 2, "{seen}");
            Ok(true)
        })?;
        made(n1, "last")?;
        Ok(())
    });
}

#[test]
fn addresses_and_ports_are_chosen_or_refused_by_name() {
    in_lab_with("ports", plain(3), |lab| {
        let (n1, n2, n3) = (lab.host("n1")?, lab.host("n2")?, lab.host("n3")?);
        for node in lab.nodes() {
            node.start_netd()?;
        }
        // Several candidates.
        n1.run(&[
            "sh",
            "-c",
            "ip link add eth1 type bridge && ip link set eth1 up && ip address add 192.168.7.1/24 dev eth1",
        ])?
        .ok()?;
        let refused = n1.netctl("cluster init")?;
        let said = refused.all();
        ensure!(refused.code == 2, "{said}");
        for part in [
            &format!("{} (eth0)", n1.v4()),
            "192.168.7.1 (eth1)",
            &format!("--advertise-addr {}", n1.v4()),
        ] {
            ensure!(said.contains(part), "{part} is not in: {said}");
        }
        // The tunnels of eBPF nodes are over IPv4; by IPVS an address that is not here is that of a translator.
        let far = (!by_ipvs()).then_some(("--advertise-addr fd00::1", "sends to IPv4 alone"));
        let bad = [
            ("--advertise-addr eth9", "no device of this host"),
            ("--advertise-addr 198.18.0.999", "neither an IP address"),
            ("--advertise-addr fe80::1", "no address of one host"),
            ("--advertise-addr eth0 --default-addr-pool 127.0.0.0/8", "reserved"),
            ("--advertise-addr eth0 --set node-grace=25h", "0s to 24h"),
            ("--advertise-addr eth0 --set node-grase=25h", "node-grace"),
        ];
        for (flags, why) in bad.into_iter().chain(far) {
            let refused = n1.netctl(&format!("cluster init {flags}"))?;
            ensure!(
                refused.code != 0 && refused.all().contains(why),
                "{flags}: {}",
                refused.all()
            );
        }

        // A swarm's ports: two sockets of a process, and a VXLAN device.
        n1.serve("manager", &["lab-tool", "serve", "--port", "2377"])?;
        n1.serve("gossip", &["lab-tool", "serve", "--port", "7946"])?;
        n1.sh("ip link add vx0 type vxlan id 256 dstport 4789 dev eth0")?.ok()?;
        let refused = n1.netctl("cluster init --advertise-addr eth0")?;
        let said = refused.all();
        ensure!(refused.code == 1, "{said}");
        for part in [
            "the managers' port 2377/tcp is held by lab-tool (pid",
            "gossip's port 7946/tcp is held by lab-tool (pid",
            "gossip's port 7946/udp is held by lab-tool (pid",
            "the data path's port 4789/udp is held by the VXLAN device vx0",
            "try: --listen-addr 0.0.0.0:12377",
            "try: --gossip-port 17946",
            "try: --data-path-port 14789",
        ] {
            ensure!(said.contains(part), "{part} is not in: {said}");
        }
        // dockerd moves its devices into other namespaces; their sockets stay.
        n1.run(&[
            "sh",
            "-c",
            "ip netns add swarm && ip link set vx0 netns swarm && ip -n swarm link set vx0 up",
        ])?
        .ok()?;
        let said = n1.netctl("cluster init --advertise-addr eth0")?.all();
        ensure!(
            said.contains("4789/udp is held by a VXLAN device in another namespace"),
            "{said}"
        );
        n1.netctl(
            "cluster init --advertise-addr eth0 --listen-addr 0.0.0.0:12377 --gossip-port 17946 --data-path-port 14789",
        )?
        .ok()?;

        // The others come by the ports that were chosen, with ports of their own.
        let token = n1.join_token()?;
        n2.serve("gossip", &["lab-tool", "serve", "--port", "7946"])?;
        let refused = n2.netctl(&format!("cluster join {token} {}", n1.at(12377)))?;
        ensure!(refused.all().contains("--gossip-port 17946"), "{}", refused.all());
        n2.netctl(&format!("cluster join {token} {} --gossip-port 7947", n1.at(12377)))?
            .ok()?;
        // The cluster's data path port is learnt when joining; who cannot have it is not left behind in the log.
        n3.sh("ip link add vx0 type vxlan id 256 dstport 14789 dev eth0")?
            .ok()?;
        let refused = n3.netctl(&format!("cluster join {token} {}", n1.at(12377)))?;
        let said = refused.all();
        ensure!(
            refused.code == 1 && said.contains("14789/udp is held by the VXLAN device vx0"),
            "{said}"
        );
        eventually("n3 not to be in the list", Duration::from_secs(10), || {
            let nodes: Vec<NodeView> = n1.netctl("node ls -o json")?.json()?;
            Ok(nodes.iter().all(|n| n.hostname != "n3"))
        })?;
        n3.sh("ip link del vx0")?.ok()?;
        n3.netctl(&format!("cluster join {token} {}", n1.at(12377)))?.ok()?;
        for node in lab.nodes() {
            node.sees_ready(3, Duration::from_secs(20))?;
        }
        // And they reach each other.
        n1.netctl("network create app --subnet 10.77.0.0/16")?.ok()?;
        let there = n3.attach("t3", "app", None)?;
        n1.attach("t1", "app", None)?;
        n2.attach("t2", "app", None)?;
        let ping = |host: &Host, netns: &str| {
            eventually(&format!("{netns} to reach t3"), Duration::from_secs(10), || {
                Ok(host.in_netns(netns, &["ping", "-c1", "-W1", &there.v4])?.success())
            })
        };
        ping(n1, "t1")?;
        ping(n2, "t2")?;
        // The port is the cluster's, and is changed for all nodes at once.
        n1.netctl("cluster update data-path-port=14790")?.ok()?;
        for node in lab.nodes() {
            let (device, ip) = tunnel(node)?;
            let shown = node.sh(&format!("{ip} -d link show {device}"))?.ok()?.stdout;
            ensure!(shown.contains("dstport 14790"), "{}: {shown}", node.name());
        }
        ping(n1, "t1")?;
        ping(n2, "t2")?;

        // What was chosen survives a restart.
        for node in [n1, n2] {
            node.kill_netd()?;
            node.start_netd()?;
        }
        for node in lab.nodes() {
            node.sees_ready(3, Duration::from_secs(20))?;
        }
        Ok(())
    });
}

/// A router between n3 and the others that translates addresses one to one, both ways.
fn nat(lab: &Lab, outside: &str) -> anyhow::Result<()> {
    let n3 = lab.host("n3")?;
    let inside = n3.v4();
    let rules = format!(
        "table ip nat {{ \
           chain pre {{ type nat hook prerouting priority -100; ip daddr {outside} dnat to {inside}; }}; \
           chain post {{ type nat hook postrouting priority 100; ip saddr {inside} snat to {outside}; }}; }}"
    );
    let file = lab.switch().folder().join("nat.nft");
    std::fs::write(&file, rules)?;
    if !lab.switch().sh(&format!("nft -f {}", file.display()))?.success() {
        // A kernel whose nf_tables know no IPv4.
        let by_iptables = format!(
            "iptables-legacy -t nat -A PREROUTING -d {outside} -j DNAT --to-destination {inside} && \
             iptables-legacy -t nat -A POSTROUTING -s {inside} -j SNAT --to-source {outside}"
        );
        lab.switch().run(&["sh", "-c", &by_iptables])?.ok()?;
    }
    let quiet = "for f in /proc/sys/net/ipv4/conf/*/send_redirects; do echo 0 >$f; done";
    lab.switch().run(&["sh", "-c", quiet])?.ok()?;
    for node in ["n1", "n2"] {
        n3.sh(&format!("ip route add {} via 198.18.0.1", lab.host(node)?.v4()))?
            .ok()?;
    }
    Ok(())
}

#[test]
fn ipv6_for_control_and_a_node_behind_nat() {
    in_lab_with("families", plain(3), |lab| {
        let (n1, n2, n3) = (lab.host("n1")?, lab.host("n2")?, lab.host("n3")?);
        for node in lab.nodes() {
            node.start_netd()?;
        }
        // Managers and gossip on IPv6, the data path on IPv4.
        n1.netctl(&format!(
            "cluster init --advertise-addr {} --data-path-addr eth0",
            n1.v6()
        ))?
        .ok()?;
        let token = n1.join_token()?;
        let said = n1.netctl("cluster token worker")?.ok()?.stdout;
        ensure!(said.contains(&format!("[{}]:2377", n1.v6())), "{said}");
        n2.netctl(&format!(
            "cluster join {token} {} --advertise-addr {} --data-path-addr {}",
            n1.at_v6(2377),
            n2.v6(),
            n2.v4()
        ))?
        .ok()?;

        // The others know n3 by an address that it does not have.
        let outside = "203.0.113.3";
        nat(lab, outside)?;
        n3.netctl(&format!(
            "cluster join {token} {} --advertise-addr {outside}",
            n1.at(2377)
        ))?
        .ok()?;
        for node in lab.nodes() {
            node.sees_ready(3, Duration::from_secs(20))?;
            no_problems(node)?;
        }
        known_at(n1, "n3", outside)?;
        let members: Vec<MemberView> = n3.netctl("cluster members -o json")?.json()?;
        let at = |name: &str| members.iter().find(|m| m.hostname == name).and_then(|m| m.addr.clone());
        ensure!(at("n2") == Some(format!("[{}]:7946", n2.v6())), "{members:?}");
        ensure!(at("n3") == Some(format!("{outside}:7946")), "{members:?}");

        // Every pair of nodes, every way.
        n1.netctl("network create app --subnet 10.77.0.0/16")?.ok()?;
        let mut there = Vec::new();
        for node in lab.nodes() {
            there.push(node.attach(&format!("t-{}", node.name()), "app", None)?);
        }
        for node in lab.nodes() {
            for to in &there {
                let netns = format!("t-{}", node.name());
                eventually(&format!("{netns} to reach {}", to.v4), Duration::from_secs(10), || {
                    Ok(node.in_netns(&netns, &["ping", "-c1", "-W1", &to.v4])?.success())
                })?;
            }
        }
        // A published port whose backend is behind the router.
        n1.netctl("service create web --network app")?.ok()?;
        n1.netctl("service publish web 80")?.ok()?;
        backend(n3, "b3", "web")?;
        eventually("the backend behind the router", Duration::from_secs(10), || {
            let seen = tally(
                lab.client()?,
                None,
                &format!("--to {} -n 20 --timeout-ms 500", n1.at(80)),
            )?;
            ensure!(seen.errors() == 0 && seen.address_kept == 20, "{seen}");
            Ok(true)
        })?;
        Ok(())
    });
}

#[test]
fn managers_move_and_keep_their_quorum() {
    in_lab_with("quorum", plain(3), |lab| {
        form(lab)?;
        let (n1, n2, n3) = (lab.host("n1")?, lab.host("n2")?, lab.host("n3")?);
        for node in ["n2", "n3"] {
            n1.netctl(&format!("node promote {node}"))?.ok()?;
        }
        let leads = |seen_by: &Host, name: &str| {
            let members: Vec<MemberView> = seen_by.netctl("cluster members -o json")?.json()?;
            anyhow::Ok(members.iter().any(|m| m.leader && m.hostname == name))
        };
        // The leader first, then a follower: whoever they are by then, each of the three moves.
        let mut order = [n1, n2, n3];
        let leader = order.iter().position(|h| leads(n1, h.name()).unwrap_or(false));
        order.swap(0, leader.context("nobody leads")?);
        for (i, host) in order.into_iter().enumerate() {
            let new = format!("198.18.0.22{i}");
            let other = order[(i + 1) % 3];
            change(host, &host.v4().to_string(), &new)?;
            let start = Instant::now();
            eventually(
                &format!("a change after {} moved", host.name()),
                Duration::from_secs(20),
                || {
                    let made = other.netctl(&format!("network create net{i} --timeout 10s"))?;
                    // A try whose answer came too late has made it.
                    let made_before = made.all().contains("exists already");
                    ensure!(made.success() || made_before, "{}", made.all());
                    Ok(true)
                },
            )?;
            let took = start.elapsed().as_millis();
            ensure!(took < 15_000, "a change took {took} ms");
            eprintln!(
                "{} moved (the leader: {}): a change was made {took} ms later",
                host.name(),
                i == 0
            );
            // The log knows where it is, and so does a token; it takes part again.
            eventually(
                &format!("{} to be a manager at {new}", host.name()),
                Duration::from_secs(20),
                || {
                    let members: Vec<MemberView> = other.netctl("cluster members -o json")?.json()?;
                    let it = members
                        .iter()
                        .find(|m| m.hostname == host.name())
                        .context("not listed")?;
                    ensure!(it.addr.as_deref() == Some(&format!("{new}:7946")), "{it:?}");
                    let said = host.netctl("cluster token worker")?.all();
                    ensure!(said.contains(&format!("{new}:2377")), "{said}");
                    Ok(true)
                },
            )?;
            host.netctl(&format!("network rm net{i} --timeout 20s"))?.ok()?;
        }
        for node in lab.nodes() {
            node.sees_ready(3, Duration::from_secs(20))?;
        }
        Ok(())
    });
}
