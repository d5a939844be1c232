//! Tasks on several networks: reachable through published ports and on each network, answered where they were asked.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, ensure};
use lab::{Host, eventually};
use model::api::{EndpointView, ServiceView};
use model::{Name, intent::Vip};
use tests::{SERVICE, address_kept, all_answered, attached, in_cluster, known, running, tasks};

/// A published service on two networks is what Swarm's users could not have: moby issue 24637.
#[test]
fn a_published_service_on_two_networks() {
    in_cluster("networks", 3, |lab| {
        let (n1, n2, client) = (lab.host("n1")?, lab.host("n2")?, lab.client()?);
        n1.netctl("network create front --subnet 10.77.0.0/16 --ipv6")?.ok()?;
        n1.netctl("network create back --subnet 10.78.0.0/16 --ipv6")?.ok()?;
        // Each network has a task of its own, and one of both.
        n1.attach("only-front", "front", None)?;
        n1.attach("only-back", "back", None)?;
        let both = n1.make_netns("both")?;
        n1.netctl(&format!(
            "endpoint add both --netns {both} --network back --network front"
        ))?
        .ok()?;
        let serve = format!("-- {} serve --port 80", n1.tool());
        let made = n1
            .netctl(&format!(
                "service create {SERVICE} --network front --network back --replicas 2 --publish 80 --publish 80/udp {serve}"
            ))?
            .ok()?;
        ensure!(
            made.stdout.contains("2/2 healthy"),
            "tasks are counted, not endpoints: {made:?}"
        );
        n1.netctl(&format!("service create db --network back --replicas 1 {serve}"))?
            .ok()?;
        known(lab, SERVICE, 2)?;
        known(lab, "db", 1)?;

        // From outside, through every node.
        for node in lab.nodes() {
            for to in [node.at(80), node.at_v6(80)] {
                for udp in ["", "--udp"] {
                    let seen = address_kept(client, None, &format!("--to {to} -n 100 {udp}"))?;
                    ensure!(seen.answered.len() == 2, "both tasks answer: {seen}");
                }
            }
        }
        // From tasks of either network through a node's address: the answer comes from where it was asked.
        for netns in ["only-front", "only-back", "both"] {
            for to in [n1.at(80), n1.at_v6(80), n2.at(80), n2.at_v6(80)] {
                for udp in ["", "--udp"] {
                    let seen = all_answered(n1, Some(netns), &format!("--to {to} -n 40 {udp}"))
                        .with_context(|| format!("from {netns} to {to} {udp}"))?;
                    ensure!(seen.answered.len() == 2, "both tasks answer {netns}: {seen}");
                }
            }
        }
        // By its name, on each network the VIP of that network; a task on both has them in its own order.
        let web: ServiceView = n1.netctl(&format!("service inspect {SERVICE} -o json"))?.json()?;
        let vip = |net: &str| -> anyhow::Result<Vip> {
            let net: Name = net.parse()?;
            web.service
                .vips
                .get(&net)
                .copied()
                .with_context(|| format!("no VIP on {net}"))
        };
        for (netns, net) in [("only-front", "front"), ("only-back", "back"), ("both", "back")] {
            let vip = vip(net)?;
            let v6 = vip.v6.context("no IPv6")?;
            ensure!(
                short(n1, netns, "web A")? == [vip.v4.to_string()].into(),
                "{netns}: web"
            );
            ensure!(
                short(n1, netns, "web AAAA")? == [v6.to_string()].into(),
                "{netns}: web, IPv6"
            );
            for to in [format!("{}:80", vip.v4), format!("[{v6}]:80")] {
                for udp in ["", "--udp"] {
                    let seen = address_kept(n1, Some(netns), &format!("--to {to} -n 100 {udp}"))
                        .with_context(|| format!("from {netns} to {to} {udp}"))?;
                    ensure!(seen.answered.len() == 2, "{netns}: {seen}");
                }
            }
        }
        ensure!(short(n1, "only-front", "db A")?.is_empty(), "db is not on front");
        // A task of web finds db on its second network.
        let home = tasks(n1)?.into_iter().find(|t| t.desired).context("no task")?;
        let (id, host) = (home.id.to_string(), lab.host(&home.hostname)?);
        ensure!(
            home.addresses.len() == 4,
            "two networks, two families: {:?}",
            home.addresses
        );
        let inside = format!("nsenter --net=/run/netd/netns/{id} --");
        let answer = host.sh(&format!("{inside} dig @127.0.0.11 +short +time=3 +tries=1 db A"))?;
        let db: ServiceView = n1.netctl("service inspect db -o json")?.json()?;
        let db = db.service.vips.values().next().context("db has no VIP")?.v4;
        ensure!(answer.stdout.trim() == db.to_string(), "{answer:?}");
        let asked = host.sh(&format!("{inside} lab-tool tally --to {db}:80 -n 20"))?.ok()?;
        ensure!(asked.stdout.contains("\"failed\":{}"), "{asked:?}");
        // Each address has its rule, in both families.
        for family in ["-4", "-6"] {
            let rules = host.sh(&format!("{inside} ip {family} rule"))?.ok()?.stdout;
            ensure!(rules.matches("from ").count() >= 2 + 2, "ip {family} rule: {rules}");
        }

        // netd and netd-run begin anew: the same endpoints, the same process.
        let before: Vec<EndpointView> = host.netctl("endpoint ls -o json")?.json()?;
        let processes = host.processes("lab-tool serve --port 80")?;
        host.kill_netd()?;
        let runner = *host.processes("netd-run")?.first().context("netd-run does not run")?;
        host.kill_process(runner)?;
        host.start_netd()?;
        host.start_runner()?;
        running(n1, 2)?;
        eventually("all endpoints to be as they were", Duration::from_secs(20), || {
            let now: Vec<EndpointView> = host.netctl("endpoint ls -o json")?.json()?;
            let key = |all: &[EndpointView]| -> BTreeSet<String> {
                all.iter()
                    .map(|e| format!("{} {:?} {} {:?}", e.id, e.v4, e.interface, e.state))
                    .collect()
            };
            Ok(key(&now) == key(&before))
        })?;
        ensure!(
            host.processes("lab-tool serve --port 80")? == processes,
            "found, not started again"
        );
        for to in [host.at(80), host.at_v6(80)] {
            address_kept(client, None, &format!("--to {to} -n 100"))?;
        }

        // A part of a task is not taken away alone.
        let refused = host.netctl(&format!("endpoint rm {id}.back"))?;
        ensure!(
            refused.code == 1 && refused.stderr.contains("belongs to"),
            "{refused:?}"
        );

        // All goes at the end.
        n1.netctl(&format!("service rm {SERVICE}"))?.ok()?;
        n1.netctl("service rm db")?.ok()?;
        n1.netctl("endpoint rm both")?.ok()?;
        eventually("every endpoint and namespace to go", Duration::from_secs(30), || {
            for node in lab.nodes() {
                let (left, veths) = attached(node)?;
                ensure!(left.is_empty(), "namespaces on {}: {left:?}", node.name());
                let wanted = if node.name() == "n1" { 2 } else { 0 };
                ensure!(veths == wanted, "{veths} veths on {}", node.name());
            }
            Ok(true)
        })?;
        Ok(())
    });
}

fn short(host: &Host, netns: &str, words: &str) -> anyhow::Result<BTreeSet<String>> {
    let line = format!("nsenter --net=/run/netns/{netns} -- dig @127.0.0.11 +short +time=3 +tries=2 {words}");
    Ok(host.sh(&line)?.stdout.lines().map(str::to_owned).collect())
}
