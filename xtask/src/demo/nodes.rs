//! Steps 1 and 9: the cluster and its one screen.

use std::time::{Duration, Instant};

use lab::Lab;
use model::api::Status;

use super::show::Show;
use crate::ui;

pub(super) fn form(lab: &Lab, show: &mut Show) -> anyhow::Result<()> {
    let mut slowest = Duration::ZERO;
    for node in lab.nodes() {
        slowest = slowest.max(ui::during(&format!("netd on {}", node.name()), || node.start_netd())?);
    }
    show.expect(
        "netd is ready, slowest of three",
        "<= 5000 ms",
        ms(slowest),
        slowest <= Duration::from_secs(5),
    );

    let n1 = lab.host("n1")?;
    show.run(n1, &format!("netctl cluster init --advertise-addr {}", n1.v4()))?
        .ok()?;
    let token = n1.join_token()?;
    let start = Instant::now();
    for node in lab.nodes().iter().skip(1) {
        let join = format!(
            "netctl cluster join {token} {} --advertise-addr {}",
            n1.at(2377),
            node.v4()
        );
        show.run(node, &join)?.ok()?;
    }
    for node in lab.nodes() {
        node.start_runner()?;
    }
    ui::during("every node sees three ready nodes", || {
        lab.nodes()
            .iter()
            .try_for_each(|n| n.sees_ready(3, Duration::from_secs(20)).map(drop))
    })?;
    show.expect(
        "two joins, until all nodes see all",
        "<= 10 s",
        ms(start.elapsed()),
        start.elapsed().as_secs() < 10,
    );
    show.run(n1, "netctl node ls")?.ok()?;
    show.run(n1, "netctl cluster members")?.ok()?;

    // A token for another cluster is refused before anything secret is sent.
    let wrong: String = token.chars().rev().collect();
    let refused = show.run(n1, &format!("netctl cluster join {wrong} {}", n1.at(2377)))?;
    let ok = !refused.success() && refused.stderr.contains("try:");
    show.expect(
        "a second cluster or a wrong token",
        "refused, with `try:`",
        format!("exit {}", refused.code),
        ok,
    );
    Ok(())
}

pub(super) fn status(lab: &Lab, show: &mut Show) -> anyhow::Result<()> {
    let n1 = lab.host("n1")?;
    let seen = show.run(n1, "netctl status")?;
    let status: Status = n1.netctl("status -o json")?.json()?;
    let living = status
        .nodes
        .iter()
        .filter(|n| n.health == model::api::NodeHealth::Ready)
        .count();
    let text = format!(
        "{living} nodes ready, leader {}, {} network(s), {} service(s), converged {:?}",
        status.leader.map_or("none".to_owned(), |l| l.to_string()),
        status.networks.len(),
        status.services.len(),
        status.converged
    );
    let ok = living == 3 && status.leader.is_some() && status.converged == Some(true) && !seen.stdout.is_empty();
    show.expect("status", "3 ready, a leader, converged", text, ok);
    show.expect(
        "problems told by n1",
        "none",
        format!("{:?}", status.problems),
        status.problems.is_empty(),
    );
    Ok(())
}

pub(super) fn ms(time: Duration) -> String {
    format!("{} ms", time.as_millis())
}
