//! What an operator says of a service's traffic: whom tasks see, who may come, how long a flow is remembered. By eBPF it is
//! refused with the node that cannot do it.

use anyhow::{Context, ensure};
use lab::{Host, Lab};
use model::api::{NetworkView, ServiceView};
use tests::{SERVICE, address_kept, all_answered, by_ipvs, create_web, in_cluster, tally};

/// Networks that nobody here is in.
const STRANGERS: &str = "--allow-from 203.0.113.0/24 --allow-from 2001:db8::/32";

fn update(host: &Host, words: &str) -> anyhow::Result<()> {
    host.netctl(&format!("service update {SERVICE} {words}"))?.ok()?;
    Ok(())
}

/// A client that is not let in: its packets are dropped, and nothing of the node answers in the task's place.
fn kept_out(client: &Host, to: &str, words: &str) -> anyhow::Result<()> {
    let seen = tally(client, None, &format!("--to {to} -n 3 --timeout-ms 500 {words}"))?;
    ensure!(
        seen.ok() == 0 && !seen.failed.contains_key("refused"),
        "{}, to {to} {words}: {seen}",
        client.name()
    );
    Ok(())
}

/// What nobody is asked for: the node itself, and a task on the network, by each way.
fn those_inside(n1: &Host) -> anyhow::Result<()> {
    for to in [n1.at(80), n1.at_v6(80), "127.0.0.1:80".to_owned()] {
        all_answered(n1, None, &format!("--to {to} -n 10"))?;
    }
    for to in [n1.at(80), n1.at_v6(80)] {
        all_answered(n1, Some("t1"), &format!("--to {to} -n 10"))?;
    }
    Ok(())
}

fn who_may_come(lab: &Lab) -> anyhow::Result<()> {
    let (n1, n2, client) = (lab.host("n1")?, lab.host("n2")?, lab.client()?);
    update(n1, STRANGERS)?;
    for node in lab.nodes() {
        for to in [node.at(80), node.at_v6(80)] {
            for words in ["", "--udp"] {
                kept_out(client, &to, words)?;
            }
        }
    }
    those_inside(n1)?;
    // The client's own address, and its whole IPv6 network, in which n2 is too.
    update(n1, &format!("--allow-from {} --allow-from fd18::/64", client.v4()))?;
    for node in [n1, lab.host("n3")?] {
        for to in [node.at(80), node.at_v6(80)] {
            for words in ["", "--udp"] {
                address_kept(client, None, &format!("--to {to} -n 10 {words}"))?;
            }
        }
    }
    kept_out(n2, &n1.at(80), "")?;
    kept_out(n2, &n1.at(80), "--udp")?;
    all_answered(n2, None, &format!("--to {} -n 10", n1.at_v6(80)))?;
    those_inside(n1)
}

/// Through each node its own address, over both families; who may come is asked of the client all the same.
fn whom_tasks_see(lab: &Lab) -> anyhow::Result<()> {
    let (n1, n2, client) = (lab.host("n1")?, lab.host("n2")?, lab.client()?);
    update(n1, "--source-ip masquerade")?;
    let masked = |node: &Host, to: String, words: &str, own: std::net::IpAddr| -> anyhow::Result<()> {
        let seen = all_answered(client, None, &format!("--to {to} -n 20 {words}"))?;
        ensure!(
            seen.seen_as.keys().eq([&own]),
            "through {} {words}: {seen}, seen as {:?}",
            node.name(),
            seen.seen_as
        );
        Ok(())
    };
    for node in lab.nodes() {
        masked(node, node.at(80), "", node.v4().into())?;
        masked(node, node.at_v6(80), "", node.v6().into())?;
    }
    // Flows that a filter remembers go on as they began: by UDP through a node that was not asked by it.
    masked(n2, n2.at(80), "--udp", n2.v4().into())?;
    masked(n2, n2.at_v6(80), "--udp", n2.v6().into())?;
    kept_out(n2, &n1.at(80), "")?;
    those_inside(n1)?;

    update(n1, "--source-ip preserve --allow-from all")?;
    for node in lab.nodes() {
        address_kept(client, None, &format!("--to {} -n 20", node.at(80)))?;
    }
    all_answered(n2, None, &format!("--to {} -n 10", n1.at(80)))?;
    Ok(())
}

/// What `netctl network inspect` points at is there, and the flows in it bear what was asked for.
fn how_long(lab: &Lab) -> anyhow::Result<()> {
    let (n1, client) = (lab.host("n1")?, lab.client()?);
    update(n1, "--idle-timeout tcp=15m,tcp-fin=40s,udp=30s")?;
    let told: NetworkView = n1.netctl("network inspect app -o json")?.json()?;
    let place = told.here.context("network inspect does not tell where its rules are")?;
    let kept = place.kept.context("nor how long flows are remembered")?;
    ensure!((kept.tcp_s, kept.tcp_fin_s, kept.udp_s) == (900, 40, 30), "{kept:?}");
    let namespace = place.namespace.context("nor in which namespace")?;
    // Another service of the network, which says nothing, keeps its flows as it was promised.
    n1.netctl("service create quiet --network app")?.ok()?;
    let told: NetworkView = n1.netctl("network inspect app -o json")?.json()?;
    let kept = told.here.and_then(|p| p.kept).context("nothing")?;
    ensure!((kept.tcp_s, kept.tcp_fin_s, kept.udp_s) == (7440, 120, 300), "{kept:?}");
    n1.netctl("service rm quiet")?.ok()?;

    all_answered(client, None, &format!("--to {} -n 10 --udp", n1.at(80)))?;
    let flows = n1
        .sh(&format!("nsenter --net={namespace} cat /proc/net/ip_vs_conn"))?
        .ok()?
        .stdout;
    // Pro FromIP FPrt ToIP TPrt DestIP DPrt State Expires (net/netfilter/ipvs/ip_vs_conn.c); those that were asked for
    // by UDP before were asked for under the longer one.
    let expires = flows.lines().map(str::split_whitespace).filter_map(|mut words| {
        let protocol = words.next()?;
        let seconds = words.nth(7)?.parse::<u32>().ok()?;
        (protocol == "UDP").then_some(seconds)
    });
    let fresh = expires.filter(|s| (20..=30).contains(s)).count();
    ensure!(fresh >= 8, "{fresh} of 10 flows end in 30 s: {flows}");

    // The commands that it names show it, as far as their programs are installed here.
    let rules = place
        .look
        .iter()
        .find(|line| !line.contains("ipvsadm"))
        .context("no command")?;
    let shown = n1.sh(rules)?.ok()?.stdout;
    ensure!(shown.to_lowercase().contains("netd"), "{rules}: {shown}");
    let counted = tests::counter(n1, "ipvs_flows")?;
    ensure!(counted > 0, "n1 has balanced, and counts {counted}");
    Ok(())
}

/// The third protocol: known to be listened on, published, balanced with the client's address kept, guarded, drained.
fn by_sctp(lab: &Lab) -> anyhow::Result<()> {
    let (n1, client) = (lab.host("n1")?, lab.client()?);
    let serve = format!("-- {} serve --port 3868 --sctp", n1.tool());
    n1.netctl(&format!("service create aaa --network app --replicas 2 {serve}"))?
        .ok()?;
    tests::known(lab, "aaa", 2)?;
    // Its tasks listen on it: nobody needs to be named.
    let said = n1.netctl("service publish 3868/sctp")?.ok()?.all();
    ensure!(said.contains(":3868/sctp on 3 nodes -> aaa (2/2 healthy)"), "{said}");
    for node in lab.nodes() {
        for to in [node.at(3868), node.at_v6(3868)] {
            let seen = address_kept(client, None, &format!("--to {to} -n 20 --sctp --timeout-ms 3000"))?;
            ensure!(seen.answered.len() == 2, "by both tasks: {seen}");
        }
    }
    let aaa: ServiceView = n1.netctl("service inspect aaa -o json")?.json()?;
    let vip = aaa.service.vips.values().next().context("aaa has no VIP")?.v4;
    all_answered(
        n1,
        Some("t1"),
        &format!("--to {vip}:3868 -n 10 --sctp --timeout-ms 3000"),
    )?;
    // The published port by TCP is somebody else's, or nobody's.
    let seen = tally(client, None, &format!("--to {} -n 3", n1.at(3868)))?;
    ensure!(seen.ok() == 0, "{seen}");
    n1.netctl(&format!("service update aaa {STRANGERS}"))?.ok()?;
    kept_out(client, &n1.at(3868), "--sctp")?;
    n1.netctl("service rm aaa")?.ok()?;
    Ok(())
}

#[test]
fn whom_tasks_see_who_may_come_and_how_long() {
    in_cluster("knobs", 3, |lab| {
        let n1 = lab.host("n1")?;
        n1.netctl("network create app --subnet 10.77.0.0/16 --ipv6")?.ok()?;
        n1.attach("t1", "app", None)?;
        create_web(lab, "app", 2)?;
        n1.netctl("service publish web 80")?.ok()?;
        n1.netctl("service publish web 80/udp")?.ok()?;
        let direct = n1.netctl("service update web --source-ip direct")?;
        ensure!(
            direct.code == 2 && direct.stderr.contains("reverse path") && direct.stderr.contains("preserve"),
            "{direct:?}"
        );
        if by_ipvs() {
            who_may_come(lab)?;
            whom_tasks_see(lab)?;
            how_long(lab)?;
            return by_sctp(lab);
        }
        for (words, instead) in [
            ("--source-ip masquerade", "--source-ip preserve"),
            (STRANGERS, "--allow-from all"),
            ("--idle-timeout udp=30s", "udp=usual"),
            ("--lb rr", "--lb maglev"),
            ("--publish-add 3868/sctp", "80/tcp"),
        ] {
            let no = n1.netctl(&format!("service update web {words}"))?;
            let flag = words.trim_start_matches("--publish-add ").split(' ').next();
            let flag = flag.unwrap_or_default();
            ensure!(no.code == 1, "{words}: {no:?}");
            for word in [flag, "n1", "eBPF", "try:", instead] {
                ensure!(no.stderr.contains(word), "{words}: {no:?}");
            }
        }
        let told: NetworkView = n1.netctl("network inspect app -o json")?.json()?;
        let place = told.here.context("network inspect does not tell where its rules are")?;
        ensure!(
            place.namespace.is_none() && place.devices.contains_key("nx0"),
            "{place:?}"
        );
        address_kept(lab.client()?, None, &format!("--to {} -n 20", n1.at(80)))?;
        Ok(())
    });
}
