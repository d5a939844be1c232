//! Names inside a task's namespace.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, ensure};
use lab::{Host, eventually};
use model::api::ServiceView;
use tests::{SERVICE, create_web, in_cluster, running, tasks};

#[test]
fn services_tasks_unknown_and_foreign_names() {
    in_cluster("names", 2, |lab| {
        let n1 = lab.host("n1")?;
        lab.switch()
            .serve("names", &["lab-tool", "names", "--listen", "198.18.0.1:53"])?;
        n1.netctl("network create app --subnet 10.77.0.0/16 --ipv6")?.ok()?;
        n1.attach("t1", "app", None)?;
        create_web(lab, "app", 2)?;
        let web: ServiceView = n1.netctl(&format!("service inspect {SERVICE} -o json"))?.json()?;
        let vip = *web.service.vips.values().next().context("web has no VIP")?;

        ensure!(short(n1, "web A")? == set([vip.v4]), "web is its VIP");
        ensure!(short(n1, "+tcp web A")? == set([vip.v4]), "also over TCP");
        ensure!(short(n1, "WeB. A")? == set([vip.v4]), "in any case, with the final dot");
        ensure!(
            short(n1, "web AAAA")? == set([vip.v6.context("web has no IPv6 VIP")?]),
            "IPv6 too"
        );
        eventually("tasks.web to be the backends", Duration::from_secs(10), || {
            Ok(short(n1, "tasks.web A")? == addresses(n1)?)
        })?;

        // A change is seen, both ways.
        n1.netctl("service scale web=4")?.ok()?;
        running(n1, 4)?;
        eventually("four addresses", Duration::from_secs(10), || {
            let seen = short(n1, "tasks.web A")?;
            Ok(seen.len() == 4 && seen == addresses(n1)?)
        })?;
        n1.netctl("service scale web=1")?.ok()?;
        eventually("one address", Duration::from_secs(20), || {
            Ok(short(n1, "tasks.web A")?.len() == 1)
        })?;

        // Ours and unknown; ours and of another kind; not ours.
        ensure!(rcode(n1, "nosuchservice A")? == "NXDOMAIN", "an unknown name of ours");
        ensure!(rcode(n1, "+tcp nosuchservice A")? == "NXDOMAIN", "over TCP too");
        let none = dig(n1, "web TXT")?;
        ensure!(
            none.contains("status: NOERROR") && none.contains("ANSWER: 0"),
            "no such data: {none}"
        );
        ensure!(
            short(n1, "www.example.org A")? == set(["192.0.2.53"]),
            "forwarded to the host's resolver"
        );
        ensure!(
            short(n1, "+tcp www.example.org A")? == set(["192.0.2.53"]),
            "over TCP too"
        );
        ensure!(
            rcode(n1, "missing.example.org A")? == "NXDOMAIN",
            "the resolver's NXDOMAIN comes through"
        );

        // The resolver is away: our names do not care, foreign ones fail in time.
        lab.switch().sh("ip addr del 198.18.0.1/24 dev br0")?.ok()?;
        ensure!(short(n1, "web A")? == set([vip.v4]), "own names need no resolver");
        let failed = dig(n1, "uncached.example.org A")?;
        ensure!(failed.contains("SERVFAIL") || failed.contains("timed out"), "{failed}");

        n1.netctl(&format!("service rm {SERVICE}"))?.ok()?;
        eventually("the name to go", Duration::from_secs(20), || {
            Ok(rcode(n1, "web A")? == "NXDOMAIN")
        })?;
        Ok(())
    });
}

fn dig(host: &Host, words: &str) -> anyhow::Result<String> {
    let line = format!("nsenter --net=/run/netns/t1 -- dig @127.0.0.11 +time=3 +tries=2 {words}");
    Ok(host.sh(&line)?.stdout)
}

fn short(host: &Host, words: &str) -> anyhow::Result<BTreeSet<String>> {
    Ok(dig(host, &format!("+short {words}"))?
        .lines()
        .map(str::to_owned)
        .collect())
}

fn rcode(host: &Host, words: &str) -> anyhow::Result<String> {
    let said = dig(host, words)?;
    Ok(said
        .split("status: ")
        .nth(1)
        .and_then(|r| r.split(',').next())
        .unwrap_or("no answer")
        .to_owned())
}

fn addresses(host: &Host) -> anyhow::Result<BTreeSet<String>> {
    Ok(tasks(host)?
        .into_iter()
        .filter(|t| t.desired)
        .flat_map(|t| t.addresses)
        .filter(|a| !a.contains(':'))
        .collect())
}

fn set<T: ToString>(all: impl IntoIterator<Item = T>) -> BTreeSet<String> {
    all.into_iter().map(|a| a.to_string()).collect()
}
