//! Published ports that the log chooses, of single nodes, of single addresses; names that mean the tasks.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, ensure};
use lab::{Host, eventually};
use model::api::ServiceView;
use tests::{SERVICE, address_kept, create_web, in_cluster, tally};

/// What the `try`s of a client at a node say.
fn refused(client: &Host, to: &str) -> anyhow::Result<()> {
    let seen = tally(client, None, &format!("--to {to} -n 3 --timeout-ms 500"))?;
    ensure!(seen.ok() == 0 && seen.failed.contains_key("refused"), "{to}: {seen}");
    Ok(())
}

#[test]
fn chosen_by_the_log_and_kept() {
    in_cluster("auto", 3, |lab| {
        let (n1, n3, client) = (lab.host("n1")?, lab.host("n3")?, lab.client()?);
        n1.netctl("network create app --subnet 10.77.0.0/16 --ipv6")?.ok()?;
        create_web(lab, "app", 2)?;
        // A process of one host is in the way of the second number.
        n3.serve("held", &["lab-tool", "serve", "--port", "30001"])?;
        eventually("the other process to listen", Duration::from_secs(5), || {
            Ok(n3.sh("ss -Hltn sport = :30001")?.stdout.contains("30001"))
        })?;
        let said = n1.netctl("service publish web auto:80")?.ok()?.all();
        ensure!(said.contains(":30000 on 3 nodes -> web:80 (2/2 healthy)"), "{said}");
        let said = n1.netctl("service publish web auto:80/udp")?.ok()?.all();
        ensure!(said.contains(":30002/udp on 3 nodes -> web:80"), "{said}");
        for node in lab.nodes() {
            for to in [node.at(30_000), node.at_v6(30_000)] {
                address_kept(client, None, &format!("--to {to} -n 30"))?;
            }
            for to in [node.at(30_002), node.at_v6(30_002)] {
                address_kept(client, None, &format!("--to {to} -n 30 --udp"))?;
            }
        }
        // Kept over changes, printed again, listed; at create too.
        n1.netctl("service scale web=3")?.ok()?;
        n1.netctl("service publish web 8080:80")?.ok()?;
        let said = n1.netctl("service publish web auto:80")?.ok()?.all();
        ensure!(said.contains(":30000 on 3 nodes"), "{said}");
        let listed = n1.netctl("service ls")?.ok()?.stdout;
        ensure!(
            listed.contains("30000:80/tcp") && listed.contains("30002:80/udp"),
            "{listed}"
        );
        let serve = format!("-- {} serve --port 80", n1.tool());
        let made = n1
            .netctl(&format!("service create api --network app --publish auto:80 {serve}"))?
            .ok()?;
        ensure!(made.stdout.contains(":30003 -> 80"), "{made:?}");
        // It is refused to others by its holder's name, and goes by its number.
        let e = n1.netctl("service publish api 30000:80")?;
        ensure!(
            e.code != 0 && e.stderr.contains("published by the service web"),
            "{e:?}"
        );
        n1.netctl("service unpublish 30000")?.ok()?;
        refused(client, &n1.at(30_000))?;
        let said = n1.netctl("service publish web auto:80")?.ok()?.all();
        ensure!(said.contains(":30004 on"), "the first one rests: {said}");
        Ok(())
    });
}

#[test]
fn of_the_nodes_that_run_a_task() {
    in_cluster("hostports", 3, |lab| {
        let (n1, client) = (lab.host("n1")?, lab.client()?);
        n1.netctl("network create app --subnet 10.77.0.0/16 --ipv6")?.ok()?;
        create_web(lab, "app", 2)?;
        let said = n1.netctl("service publish web 81:80 --mode host")?.ok()?.all();
        ensure!(said.contains(":81 on n") && said.contains("its own task"), "{said}");
        n1.netctl("service publish web published=81,target=80,protocol=udp,mode=host")?
            .ok()?;
        let homes = tests::homes(n1)?;
        ensure!(homes.len() == 2, "{homes:?}");
        for node in lab.nodes() {
            if !homes.contains(node.name()) {
                refused(client, &node.at(81))?;
                refused(client, &node.at_v6(81))?;
                continue;
            }
            for to in [node.at(81), node.at_v6(81)] {
                for udp in ["", "--udp"] {
                    let seen = address_kept(client, None, &format!("--to {to} -n 40 {udp}"))?;
                    let own = format!("{}/", node.name());
                    ensure!(
                        seen.answered.keys().all(|k| k.starts_with(&own)),
                        "its own task: {seen}"
                    );
                }
            }
            tests::all_answered(node, None, "--to 127.0.0.1:81 -n 20")?;
        }
        // One task a node; another service may have it where the first one is not.
        let serve = format!("-- {} serve --port 80", n1.tool());
        let more = n1.netctl("service scale web=4 --timeout 5s")?;
        ensure!(more.code != 0 && more.stderr.contains("81/tcp"), "{more:?}");
        ensure!(tests::homes(n1)?.len() == 3, "a node each");
        n1.netctl("service scale web=2")?.ok()?;
        n1.netctl(&format!(
            "service create api --network app --publish 81:80,mode=host {serve}"
        ))?
        .ok()?;
        let homes = tests::homes(n1)?;
        let other = lab
            .nodes()
            .iter()
            .find(|n| !homes.contains(n.name()))
            .context("no node")?;
        eventually("api to answer on its node", Duration::from_secs(10), || {
            let seen = tally(client, None, &format!("--to {} -n 20", other.at(81)))?;
            Ok(seen.ok() == 20 && seen.answered.keys().all(|k| k.contains("/api.")))
        })?;
        let e = n1.netctl(&format!("service create mesh --network app --publish 81:80 {serve}"))?;
        ensure!(e.code != 0 && e.stderr.contains("published by the service"), "{e:?}");
        Ok(())
    });
}

#[test]
fn of_one_address_or_device() {
    in_cluster("addresses", 3, |lab| {
        let (n1, n2, client) = (lab.host("n1")?, lab.host("n2")?, lab.client()?);
        n1.netctl("network create app --subnet 10.77.0.0/16 --ipv6")?.ok()?;
        create_web(lab, "app", 2)?;
        let device = n1
            .sh(&format!("ip -o -4 addr show to {}", n1.v4()))?
            .ok()?
            .stdout
            .split_whitespace()
            .nth(1)
            .context("no device")?
            .to_owned();
        n1.sh(&format!("ip addr add 198.18.0.201/24 dev {device}"))?.ok()?;
        n1.sh(&format!("ip addr add fd18::201/64 dev {device} nodad"))?.ok()?;
        n1.netctl("service publish web 198.18.0.201:82:80")?.ok()?;
        n1.netctl("service publish web 82:80/udp --address fd18::201")?.ok()?;
        address_kept(client, None, "--to 198.18.0.201:82 -n 40")?;
        address_kept(client, None, "--to [fd18::201]:82 -n 40 --udp")?;
        for to in [n1.at(82), n1.at_v6(82), n2.at(82)] {
            refused(client, &to)?;
        }
        // On the other address it is somebody else's; who holds it is told.
        let serve = format!("-- {} serve --port 80", n1.tool());
        n1.netctl(&format!(
            "service create api --network app --publish {}:82:80 {serve}",
            n1.v4()
        ))?
        .ok()?;
        let seen = address_kept(client, None, &format!("--to {} -n 40", n1.at(82)))?;
        ensure!(seen.answered.keys().all(|k| k.contains("/api.")), "{seen}");
        let seen = address_kept(client, None, "--to 198.18.0.201:82 -n 40")?;
        ensure!(seen.answered.keys().all(|k| k.contains("/web.")), "{seen}");
        let e = n1.netctl("service publish api 198.18.0.201:82:80")?;
        ensure!(
            e.code != 0 && e.stderr.contains("published by the service web"),
            "{e:?}"
        );
        let e = n1.netctl("service publish web 192.0.2.77:83:80")?;
        ensure!(e.code != 0 && e.stderr.contains("none of 3 living nodes"), "{e:?}");
        // A device: the loopback's address answers the node's own processes alone.
        n1.netctl("service publish web 84:80 --interface lo")?.ok()?;
        for node in lab.nodes() {
            tests::all_answered(node, None, "--to 127.0.0.1:84 -n 10")?;
            refused(client, &node.at(84))?;
        }
        n1.netctl("service unpublish web lo:84")?.ok()?;
        Ok(())
    });
}

#[test]
fn a_name_that_means_the_tasks() {
    in_cluster("dnsrr", 2, |lab| {
        let n1 = lab.host("n1")?;
        n1.netctl("network create app --subnet 10.77.0.0/16 --ipv6")?.ok()?;
        n1.attach("t1", "app", None)?;
        let serve = format!("-- {} serve --port 80", n1.tool());
        let create = format!("service create {SERVICE} --network app --replicas 3 --endpoint-mode dnsrr");
        let e = n1.netctl(&format!("{create} --publish 80 {serve}"))?;
        ensure!(
            e.code != 0 && e.stderr.contains("dnsrr") && e.stderr.contains("mode=host"),
            "{e:?}"
        );
        n1.netctl(&format!("{create} {serve}"))?.ok()?;
        let web: ServiceView = n1.netctl(&format!("service inspect {SERVICE} -o json"))?.json()?;
        ensure!(web.service.vips.is_empty(), "no VIP");
        let dig = |words: &str| -> anyhow::Result<Vec<String>> {
            let line = format!("nsenter --net=/run/netns/t1 -- dig @127.0.0.11 +short +time=3 +tries=2 {words}");
            Ok(n1.sh(&line)?.stdout.lines().map(str::to_owned).collect())
        };
        let set = |all: Vec<String>| -> BTreeSet<String> { all.into_iter().collect() };
        for family in ["A", "AAAA"] {
            eventually("the name to be three tasks", Duration::from_secs(10), || {
                let now = set(dig(&format!("web {family}"))?);
                Ok(now.len() == 3 && now == set(dig(&format!("tasks.web {family}"))?))
            })?;
        }
        let mut firsts = BTreeSet::new();
        for _ in 0..30 {
            firsts.extend(dig("web A")?.into_iter().next());
        }
        ensure!(firsts.len() == 3, "shuffled: {firsts:?}");
        for address in dig("web A")? {
            for udp in ["", "--udp"] {
                tests::all_answered(n1, Some("t1"), &format!("--to {address}:80 -n 20 {udp}"))?;
            }
        }
        n1.netctl("service scale web=1")?.ok()?;
        eventually("one address", Duration::from_secs(20), || Ok(dig("web A")?.len() == 1))?;
        Ok(())
    });
}
