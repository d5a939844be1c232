//! Settings of the cluster: from the first manager's configuration, changed live, the same everywhere.
#![allow(clippy::disallowed_methods, reason = "a grace time is timed")]

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use lab::{Host, eventually};
use model::api::ClusterView;
use tests::{create_web, homes, in_lab, running};

fn value(host: &Host, key: &str) -> anyhow::Result<String> {
    let view: ClusterView = host.netctl("cluster inspect -o json")?.json()?;
    let row = view.table.into_iter().find(|s| s.key == key);
    Ok(row.with_context(|| format!("no setting {key}"))?.value)
}

#[test]
fn settings_are_changed_live_on_all_nodes() {
    in_lab("settings", 3, |lab| {
        let (n1, n2) = (lab.host("n1")?, lab.host("n2")?);
        n1.configure("[cluster.none]\n")?;
        ensure!(n1.start_netd().is_err(), "an unknown key is an error");
        n1.configure("")?;
        lab.form_cluster()?;

        // Wrong keys and values say what there is.
        for (words, code, parts) in [
            (
                "node-grase=3s",
                2,
                &["no setting of the cluster", "cert-expiry", "node-grace"][..],
            ),
            ("node-grace=25h", 2, &["25h is not 0s to 24h", "node-grace=10s"]),
            ("node-grace=3", 2, &["\"3\" is not 0s to 24h"]),
            ("node-grace=3s task-history-limit=0", 2, &["0 is not 1 to 100"]),
            ("default-addr-pool=127.0.0.0/8", 2, &["reserved"]),
            ("node-grace=3s node-grace=4s", 2, &["given twice"]),
            (
                "external-ca=url=https://ca,cacert=/nowhere.pem",
                2,
                &["/nowhere.pem cannot be read"],
            ),
        ] {
            let refused = n1.netctl(&format!("cluster update {words}"))?;
            ensure!(refused.code == code, "{words}: {}", refused.all());
            for part in parts {
                ensure!(
                    refused.all().contains(part),
                    "{words}: {part} is not in {}",
                    refused.all()
                );
            }
        }
        ensure!(value(n1, "node-grace")? == "10s", "a refused change changes nothing");

        // A good one is on every node when the command returns, and outlives a restart.
        let said = n1.netctl("cluster update node-grace=0s cert-expiry=720h default-addr-pool=172.30.0.0/16 default-addr-pool-mask-length=24")?.ok()?;
        ensure!(said.stdout.contains("node-grace=0s"), "{}", said.stdout);
        for node in lab.nodes() {
            ensure!(value(node, "node-grace")? == "0s", "{} has not heard it", node.name());
            ensure!(
                value(node, "cert-expiry")? == "720h",
                "{} has not heard it",
                node.name()
            );
        }
        n1.netctl("cluster update node-grace=0s")?.ok()?;
        n1.kill_netd()?;
        n1.start_netd()?;
        n1.sees_ready(3, Duration::from_secs(20))?;
        ensure!(value(n1, "node-grace")? == "0s", "it is in the log");
        let table = n2.netctl("cluster inspect -o wide")?.ok()?.stdout;
        ensure!(
            table.contains("snapshot-interval") && table.contains("10 to 10000000"),
            "{table}"
        );

        // A later network comes from the new pool.
        eventually("the streams to come back", Duration::from_secs(10), || {
            let made = n1.netctl("network create app")?;
            ensure!(made.success(), "{}", made.all());
            ensure!(made.stdout.contains("172.30.0.0/24"), "{}", made.stdout);
            Ok(true)
        })?;

        // The grace time counts at once: with 0 s a dead node's slots move when its death is confirmed (5 s), not 10 s later.
        create_web(lab, "app", 3)?;
        let victim = lab.host("n3")?;
        ensure!(homes(n1)?.contains("n3"), "a task runs on n3");
        victim.power_cut()?;
        let start = Instant::now();
        eventually("its slots to be placed elsewhere", Duration::from_secs(20), || {
            Ok(!homes(n1)?.contains("n3"))
        })?;
        let took = start.elapsed();
        eprintln!("slots of a dead node moved after {} ms (grace 0 s)", took.as_millis());
        // A death takes more than a second to be seen: with the default grace of 10 s it would be more than this.
        ensure!(took < Duration::from_secs(11), "{took:?}");
        running(n1, 3)?;
        // One state of each slot is kept when one is asked for.
        ensure!(tests::tasks(n1)?.len() > 3, "where they were is told");
        n1.netctl("cluster update task-history-limit=1")?.ok()?;
        eventually("the history to be forgotten", Duration::from_secs(20), || {
            Ok(tests::tasks(n1)?.len() == 3)
        })?;
        Ok(())
    });
}

#[test]
fn a_cluster_begins_as_configured() {
    in_lab("begins", 1, |lab| {
        let n1 = lab.host("n1")?;
        n1.start_netd()?;
        n1.netctl("cluster init --advertise-addr eth0 --default-addr-pool 172.30.0.0/16 --default-addr-pool-mask-length 20 --set drain-ack-timeout=7s --set daemon-grace=1h")?
            .ok()?;
        for (key, wanted) in [
            ("default-addr-pool", "172.30.0.0/16"),
            ("default-addr-pool-mask-length", "20"),
            ("drain-ack-timeout", "7s"),
            ("daemon-grace", "1h"),
            ("node-grace", "10s"),
        ] {
            ensure!(value(n1, key)? == wanted, "{key}");
        }
        let said = n1.netctl("network ls")?.ok()?.stdout;
        ensure!(said.contains("172.30.0.0/20"), "the network default: {said}");
        Ok(())
    });
}
