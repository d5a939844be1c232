//! A majority is lost, or all managers are: a new beginning from one survivor, from a backup.

use std::time::Duration;

use anyhow::ensure;
use lab::eventually;
use model::api::NodeView;
use model::intent::Role;
use tests::managers::{SETTLED, all_reached, form, leader, quorum, voters};
use tests::{address_kept, create_web, in_cluster, in_lab, running, status};

#[test]
fn a_survivor_goes_on_alone() {
    in_lab("survivor", 4, |lab| {
        form(lab, 3)?;
        let (n1, n2, n3, n4) = (lab.host("n1")?, lab.host("n2")?, lab.host("n3")?, lab.host("n4")?);
        n1.netctl("network create app --subnet 10.77.0.0/16")?.ok()?;
        create_web(lab, "app", 2)?;
        n1.netctl("service publish 80")?.ok()?;
        for host in [n1, n2, n3] {
            let refused = host.netctl("cluster init --force-new")?;
            ensure!(
                refused.code == 1 && refused.stderr.contains("majority"),
                "a quorum answers: {}",
                refused.stderr
            );
        }
        let known = status(n1)?.revision;

        n2.kill_netd()?;
        n3.kill_netd()?;
        // Nothing can be changed, which is said with the way out; what is known is shown, as what it is.
        let refused = n1.netctl("service scale web=3")?;
        ensure!(
            refused.code == 1 && refused.stderr.contains("1 of 3") && refused.stderr.contains("--force-new"),
            "{}",
            refused.stderr
        );
        let shown = n1.netctl("network ls")?.ok()?;
        ensure!(
            shown.stdout.contains("app") && shown.stderr.contains("may be old"),
            "{shown:?}"
        );
        ensure!(quorum(n1)?.problem.is_some(), "members say so too");
        ensure!(
            status(n1)?.problems.iter().any(|p| p.contains("1 of 3")),
            "and status: {:?}",
            status(n1)?.problems
        );
        address_kept(lab.client()?, None, &format!("--to {} -n 20", n4.at(80)))?;

        let said = n1.netctl("cluster init --force-new")?.ok()?;
        ensure!(
            said.stdout.contains("n2 (n2)") && said.stdout.contains("n3 (n3)"),
            "{}",
            said.stdout
        );
        all_reached(n1, 1)?;
        let now = status(n1)?;
        ensure!(now.revision > known, "later than all that was known: {}", now.revision);
        ensure!(now.networks.iter().any(|n| n.name.as_str() == "app"), "nothing is lost");
        address_kept(lab.client()?, None, &format!("--to {} -n 20", n4.at(80)))?;
        n1.netctl("service scale web=3 --detach")?.ok()?;

        // Those that were given up come back, together, and find that they are workers: no second cluster.
        n2.start_netd()?;
        n3.start_netd()?;
        n1.sees_ready(4, SETTLED)?;
        for host in [n2, n3] {
            eventually(&format!("{} to be a worker", host.name()), SETTLED, || {
                let nodes: Vec<NodeView> = host.netctl("node ls -o json")?.json()?;
                let managers = nodes.iter().filter(|n| n.role == Role::Manager).count();
                Ok(managers == 1 && host.netctl("service scale web=3 --detach")?.stderr.contains("worker"))
            })?;
        }
        running(n1, 3)?;
        n1.netctl("node promote n2 n3")?.ok()?;
        ensure!(voters(n1)?.len() == 3, "three again");
        ensure!(leader(lab, n4)?.name() == "n1", "n1 leads");
        n2.netctl("service scale web=2")?.ok()?;
        Ok(())
    });
}

#[test]
fn a_backup_brings_a_cluster_back() {
    in_cluster("backup", 4, |lab| {
        let (n1, n2, n4) = (lab.host("n1")?, lab.host("n2")?, lab.host("n4")?);
        n4.netctl("cluster leave")?.ok()?;
        n1.netctl("network create app --subnet 10.77.0.0/16")?.ok()?;
        create_web(lab, "app", 2)?;
        n1.netctl("service publish 80")?.ok()?;
        let (file, key) = (n1.folder().join("cluster.netd"), n1.folder().join("backup.key"));
        let (file, key) = (file.display().to_string(), key.display().to_string());
        std::fs::write(&key, [7; 32])?;
        let refused = n1.netctl(&format!("cluster backup {file}"))?;
        ensure!(
            refused.code == 2 && refused.stderr.contains("--key-file"),
            "{}",
            refused.stderr
        );
        n1.netctl(&format!("cluster backup {file} --key-file {key}"))?.ok()?;
        let again = n1.netctl(&format!("cluster backup {file} --key-file {key}"))?;
        ensure!(again.code == 2, "a backup is never overwritten");
        let octets = std::fs::read(&file)?;
        ensure!(!octets.windows(3).any(|w| w == b"web"), "nothing of it can be read");

        // Not here, not with another key, not damaged, not while the cluster lives.
        let refused = n1.netctl(&format!("cluster restore {file} --key-file {key}"))?;
        ensure!(refused.stderr.contains("in cluster"), "{}", refused.stderr);
        let refused = n4.netctl(&format!("cluster restore {file} --key-file {file}"))?;
        ensure!(refused.stderr.contains("not the passphrase"), "{}", refused.stderr);
        let mut bad = octets.clone();
        bad[octets.len() / 2] ^= 1;
        std::fs::write(n4.folder().join("bad"), bad)?;
        let refused = n4.netctl(&format!(
            "cluster restore {}/bad --key-file {key}",
            n4.folder().display()
        ))?;
        ensure!(refused.stderr.contains("damaged"), "{}", refused.stderr);
        let refused = n4.netctl(&format!("cluster restore {file} --key-file {key}"))?;
        ensure!(refused.stderr.contains("lives"), "{}", refused.stderr);
        ensure!(status(n4)?.me.is_none(), "nothing is half-made");

        // What was written after the backup is lost, and told to nobody as kept.
        n1.netctl("network create late")?.ok()?;
        n1.kill_netd()?;
        std::fs::remove_dir_all(n1.folder().join("state"))?;
        n1.start_netd()?;
        let said = n1
            .netctl(&format!(
                "cluster restore {file} --key-file {key} --advertise-addr {}",
                n1.v4()
            ))?
            .ok()?;
        ensure!(said.stdout.contains("only manager"), "{}", said.stdout);
        let now = status(n1)?;
        let names: Vec<&str> = now.networks.iter().map(|n| n.name.as_str()).collect();
        ensure!(names.contains(&"app") && !names.contains(&"late"), "{names:?}");
        // The others come back by themselves, and follow.
        eventually("n2 to follow", SETTLED, || {
            let seen = status(n2)?;
            Ok(seen.revision >= now.revision
                && seen.converged == Some(true)
                && !seen.networks.iter().any(|n| n.name.as_str() == "late"))
        })?;
        n1.netctl("service scale web=3")?.ok()?;
        eventually("three tasks", Duration::from_secs(40), || running(n1, 3).map(|()| true))?;
        address_kept(lab.client()?, None, &format!("--to {} -n 20", n2.at(80)))?;
        Ok(())
    });
}
