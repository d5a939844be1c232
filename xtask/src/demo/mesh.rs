//! Step 5: a port of the whole cluster.

use std::time::Duration;

use anyhow::Context;
use lab::wire::Tally;
use lab::{Lab, eventually};
use model::api::ServiceView;

use super::show::Show;

pub(super) fn publish(lab: &Lab, show: &mut Show) -> anyhow::Result<()> {
    let (n1, client) = (lab.host("n1")?, lab.client()?);
    let published = show.run(n1, "netctl service publish 80")?.ok()?;
    let said = published.all();
    show.expect(
        "publish ends with",
        ":80 on 3 nodes -> web (2/2 healthy)",
        said.trim(),
        said.contains(":80 on 3 nodes -> web (2/2 healthy)"),
    );
    show.run(client, &format!("curl -sS http://{}/", n1.at(80)))?.ok()?;

    for node in lab.nodes() {
        let tally = show.tally(client, None, &format!("--to {} -n 400", node.at(80)))?;
        show.answered(&format!("client -> {}:80", node.name()), &tally);
        balanced(show, &format!("balance through {}", node.name()), &tally);
    }
    for node in lab.nodes() {
        let own = show.tally(node, None, &format!("--to {} -n 50", node.at(80)))?;
        show.expect(
            &format!("{} -> its own address", node.name()),
            "all answered",
            &own,
            own.ok() == 50,
        );
        let local = show.tally(node, None, "--to 127.0.0.1:80 -n 50")?;
        show.expect(
            &format!("{} -> 127.0.0.1", node.name()),
            "all answered",
            &local,
            local.ok() == 50,
        );
    }
    let curl = show.run(n1, "curl -sS --max-time 5 http://localhost/")?;
    show.expect("curl localhost on n1", "an answer", curl.stdout.trim(), curl.success());
    for node in lab.nodes() {
        let tally = show.tally(n1, Some("t1"), &format!("--to {} -n 50", node.at(80)))?;
        show.expect(
            &format!("task t1 on n1 -> {}:80", node.name()),
            "all answered",
            &tally,
            tally.ok() == 50,
        );
    }

    let web: ServiceView = n1.netctl("service inspect web -o json")?.json()?;
    let vip = web.service.vips.values().next().context("web has no virtual address")?;
    for to in std::iter::once(format!("{}:80", vip.v4)).chain(vip.v6.map(|a| format!("[{a}]:80"))) {
        for udp in ["", "--udp"] {
            let tally = show.tally(n1, Some("t1"), &format!("--to {to} -n 100 {udp}"))?;
            show.answered(&format!("task t1 -> VIP {to} {udp}"), &tally);
        }
    }
    udp(lab, show)?;
    taken(lab, show)?;

    // Unpublished, the port is closed again; published again, it answers again.
    show.run(n1, "netctl service unpublish 80")?.ok()?;
    let closed = show.tally(client, None, &format!("--to {} -n 5 --timeout-ms 300", n1.at(80)))?;
    show.expect("unpublish 80", "0 answers", &closed, closed.ok() == 0);
    show.run(n1, "netctl service publish 80")?.ok()?;
    let open = show.tally(client, None, &format!("--to {} -n 20", n1.at(80)))?;
    show.answered("published once more", &open);
    Ok(())
}

fn udp(lab: &Lab, show: &mut Show) -> anyhow::Result<()> {
    let (n1, client) = (lab.host("n1")?, lab.client()?);
    show.run(n1, "netctl service publish web 80/udp")?.ok()?;
    for node in lab.nodes() {
        let tally = show.tally(client, None, &format!("--udp --to {} -n 200", node.at(80)))?;
        show.answered(&format!("client -> {}:80/udp", node.name()), &tally);
    }
    Ok(())
}

/// A port that somebody on some node listens on.
fn taken(lab: &Lab, show: &mut Show) -> anyhow::Result<()> {
    let n2 = lab.host("n2")?;
    let mut owner = n2.spawn("owner", &["lab-tool", "serve", "--port", "8088"])?;
    owner.line("ready", Duration::from_secs(5))?;
    let refused = show.run(lab.host("n1")?, "netctl service publish web 8088:80")?;
    let said = refused.all();
    let ok = refused.code == 1 && said.contains("n2") && said.contains("lab-tool") && said.contains("try:");
    show.expect(
        "a port that is taken on n2",
        "refused: the node, the owner, `try:`",
        said.trim(),
        ok,
    );
    owner.kill();
    // Nothing half-made: the same port is free on every node once its owner is gone.
    eventually("the port to be free", Duration::from_secs(5), || {
        Ok(n2
            .run(&["lab-tool", "tally", "--to", "127.0.0.1:8088", "-n", "1"])?
            .json::<Tally>()?
            .ok()
            == 0)
    })?;
    Ok(())
}

/// Both backends take part: with a fair choice of 400 the smaller share is below 35 % once in 10^9 runs.
fn balanced(show: &mut Show, what: &str, tally: &Tally) {
    let smallest = tally.answered.values().min().copied().unwrap_or(0);
    let share = smallest * 100 / tally.tried.max(1);
    let ok = tally.answered.len() == 2 && share >= 35;
    let text: Vec<String> = tally.answered.iter().map(|(who, n)| format!("{who} {n}")).collect();
    show.expect(what, "2 backends, each >= 35 %", text.join(", "), ok);
}
