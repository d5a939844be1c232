//! Step 4: names inside a task's namespace.

use std::collections::BTreeSet;

use lab::{Host, Lab};
use model::api::ServiceView;

use super::services::tasks;
use super::show::Show;

pub(super) fn ask(lab: &Lab, show: &mut Show) -> anyhow::Result<()> {
    let n1 = lab.host("n1")?;
    lab.switch()
        .serve("names", &["lab-tool", "names", "--listen", "198.18.0.1:53"])?;
    let web: ServiceView = n1.netctl("service inspect web -o json")?.json()?;
    let vips: BTreeSet<String> = web.service.vips.values().map(|v| v.v4.to_string()).collect();
    let backends: BTreeSet<String> = tasks(n1)?
        .into_iter()
        .filter(|t| t.desired)
        .flat_map(|t| t.addresses)
        .filter(|a| !a.contains(':'))
        .collect();

    for (what, words, expected) in [
        ("web by UDP", "web A", &vips),
        ("web by TCP", "+tcp web A", &vips),
        ("tasks.web", "tasks.web A", &backends),
    ] {
        let answers: BTreeSet<String> = dig(show, n1, &format!("+short {words}"))?
            .lines()
            .map(str::to_owned)
            .collect();
        show.expect(
            what,
            list(expected),
            list(&answers),
            !answers.is_empty() && &answers == expected,
        );
    }
    let vips6: BTreeSet<String> = web
        .service
        .vips
        .values()
        .filter_map(|v| v.v6)
        .map(|a| a.to_string())
        .collect();
    let answers: BTreeSet<String> = dig(show, n1, "+short web AAAA")?.lines().map(str::to_owned).collect();
    show.expect(
        "web, IPv6",
        list(&vips6),
        list(&answers),
        !answers.is_empty() && answers == vips6,
    );

    let unknown = dig(show, n1, "nosuchservice A")?;
    let status = unknown
        .split("status: ")
        .nth(1)
        .and_then(|r| r.split(',').next())
        .unwrap_or("no answer")
        .to_owned();
    show.expect("an unknown name of ours", "NXDOMAIN", &status, status == "NXDOMAIN");
    let foreign = dig(show, n1, "+short www.example.org A")?;
    show.expect(
        "a foreign name, from the host's resolver",
        "192.0.2.53",
        foreign.trim(),
        foreign.trim() == "192.0.2.53",
    );
    Ok(())
}

fn dig(show: &Show, host: &Host, words: &str) -> anyhow::Result<String> {
    let line = format!("nsenter --net=/run/netns/t1 -- dig @127.0.0.11 +time=2 +tries=1 {words}");
    Ok(show.run(host, &line)?.stdout)
}

fn list(all: &BTreeSet<String>) -> String {
    if all.is_empty() {
        "-".to_owned()
    } else {
        all.iter().cloned().collect::<Vec<_>>().join(" ")
    }
}
