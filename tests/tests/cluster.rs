//! A cluster is made, joined, looked at and left.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::ensure;
use lab::eventually;
use model::api::{MemberView, NodeHealth, NodeView};
use model::intent::Role;
use tests::{in_lab, status};

#[test]
fn init_join_restart_leave() {
    in_lab("cluster", 3, |lab| {
        let (n1, n2, n3) = (lab.host("n1")?, lab.host("n2")?, lab.host("n3")?);
        for node in lab.nodes() {
            node.start_netd()?;
            ensure!(status(node)?.me.is_none(), "{} is in no cluster yet", node.name());
        }
        n1.netctl(&format!("cluster init --advertise-addr {}", n1.v4()))?.ok()?;
        let token = n1.join_token()?;
        for node in [n2, n3] {
            node.netctl(&format!(
                "cluster join {token} {} --advertise-addr {}",
                n1.at(2377),
                node.v4()
            ))?
            .ok()?;
        }
        for node in lab.nodes() {
            node.sees_ready(3, Duration::from_secs(20))?;
        }

        let nodes: Vec<NodeView> = n2.netctl("node ls -o json")?.json()?;
        let names: BTreeSet<&str> = nodes.iter().map(|n| n.hostname.as_str()).collect();
        ensure!(
            names == BTreeSet::from(["n1", "n2", "n3"]),
            "nodes by their host names: {names:?}"
        );
        let managers: Vec<&str> = nodes
            .iter()
            .filter(|n| n.role == Role::Manager)
            .map(|n| n.hostname.as_str())
            .collect();
        ensure!(managers == ["n1"], "n1 alone is a manager: {managers:?}");
        let members: Vec<MemberView> = n1.netctl("cluster members -o json")?.json()?;
        ensure!(
            members.iter().filter(|m| m.leader).count() == 1,
            "one leader: {members:?}"
        );

        // What the log holds is on the disk: a manager that was killed comes back as itself.
        n1.netctl("network create app --subnet 10.77.0.0/16")?.ok()?;
        let before = status(n1)?;
        n1.kill_netd()?;
        n1.start_netd()?;
        n1.sees_ready(3, Duration::from_secs(20))?;
        let after = status(n1)?;
        ensure!(
            (&after.me, &after.cluster) == (&before.me, &before.cluster),
            "the same node of the same cluster"
        );
        ensure!(
            after.networks.iter().any(|n| n.name.as_str() == "app"),
            "the network survived"
        );
        // And a worker too, without a new token.
        n2.kill_netd()?;
        n2.start_netd()?;
        n2.sees_ready(3, Duration::from_secs(20))?;

        // SIGTERM ends the daemon with 0.
        ensure!(n2.stop_netd()? == 0, "SIGTERM is a good end");
        n2.start_netd()?;
        n2.sees_ready(3, Duration::from_secs(20))?;

        n3.netctl("cluster leave")?.ok()?;
        ensure!(status(n3)?.me.is_none(), "n3 is in no cluster any more");
        eventually("n3 to be out of the list", Duration::from_secs(20), || {
            let nodes: Vec<NodeView> = n1.netctl("node ls -o json")?.json()?;
            Ok(nodes
                .iter()
                .all(|n| n.hostname != "n3" || n.health != NodeHealth::Ready))
        })?;
        let devices = n3.sh("ls /sys/class/net")?.ok()?.stdout;
        ensure!(
            devices.split_whitespace().collect::<BTreeSet<_>>() == BTreeSet::from(["eth0", "lo"]),
            "who left keeps no link of ours: {devices}"
        );
        let pins = n3.sh("ls /sys/fs/bpf")?.ok()?.stdout;
        ensure!(!pins.contains("netd"), "nor a pin: {pins}");
        Ok(())
    });
}
