//! What bad input gets: a clear error with `try:`, the right exit code, and nothing half-made.

use std::time::Duration;

use anyhow::ensure;
use lab::{Host, Output};
use tests::{create_web, in_lab, status};

/// Words of netctl, exit code, and what the error names.
type Case<'a> = (&'a str, i32, &'a [&'a str]);

#[test]
fn errors_say_what_why_and_what_to_try() {
    in_lab("bad-input", 2, |lab| {
        let (n1, n2) = (lab.host("n1")?, lab.host("n2")?);

        // No daemon.
        check(n1, &("status", 4, &["try:"]))?;
        settings(n1)?;

        n1.start_netd()?;
        n2.start_netd()?;
        // No cluster yet.
        check(n1, &("service ls", 1, &["cluster init"]))?;
        check(n1, &("network create app", 1, &["cluster init"]))?;

        n1.netctl(&format!("cluster init --advertise-addr {}", n1.v4()))?.ok()?;
        let token = n1.join_token()?;
        // One sign of the secret; both are in the alphabet of base32.
        let mut wrong = token.clone();
        let at = wrong.len() - 4;
        let sign = if wrong.as_bytes().get(at) == Some(&b'a') {
            "c"
        } else {
            "a"
        };
        wrong.replace_range(at..=at, sign);
        let (good, absent) = (n1.at(2377), "198.18.0.99:2377");
        for (line, code, named) in [
            (format!("cluster join {wrong} {good}"), 1, ["token", "try:"]),
            (format!("cluster join nonsense {good}"), 2, ["token", "try:"]),
            (
                format!("cluster join {token} {absent} --timeout 5s"),
                1,
                ["198.18.0.99", "try:"],
            ),
        ] {
            check(n2, &(&line, code, &named))?;
            ensure!(status(n2)?.me.is_none(), "nothing half-made by: netctl {line}");
        }
        n2.netctl(&format!("cluster join {token} {good} --advertise-addr {}", n2.v4()))?
            .ok()?;
        for node in [n1, n2] {
            node.start_runner()?;
            node.sees_ready(2, Duration::from_secs(20))?;
        }
        n1.netctl("network create app --subnet 10.77.0.0/16")?.ok()?;
        create_web(lab, "app", 2)?;
        n1.netctl("service create other --network app --replicas 0")?.ok()?;
        let revision = status(n1)?.revision;

        let again = format!("cluster join {token} {good}");
        let mut owner = n2.spawn("owner", &["lab-tool", "serve", "--port", "8088"])?;
        owner.line("ready", Duration::from_secs(20))?;
        let cases: &[Case<'_>] = &[
            ("frobnicate", 2, &["frobnicate"]),
            ("service frobnicate", 2, &["frobnicate"]),
            ("service scale web", 2, &["web"]),
            ("service scale web=many", 2, &["many"]),
            ("cluster init", 1, &["cluster", "try:"]),
            (&again, 1, &["cluster", "try:"]),
            (
                "network create overlap --subnet 10.77.128.0/17",
                1,
                &["10.77", "app", "try:"],
            ),
            (
                "network create routed --subnet 198.18.0.0/24",
                1,
                &["198.18.0.0", "try:"],
            ),
            ("network create loop --subnet 127.0.0.0/16", 2, &["127.0.0.0", "try:"]),
            ("network create app", 1, &["app", "try:"]),
            ("network create bad_name", 2, &["bad_name"]),
            ("network create -- -bad", 2, &["-bad"]),
            ("network rm nosuch", 1, &["nosuch", "try:"]),
            ("network rm app", 1, &["web", "try:"]),
            ("service create web --network app", 1, &["web", "try:"]),
            ("service create x --network nosuch", 1, &["nosuch", "try:"]),
            ("service create UPPER_case --network app", 2, &["UPPER_case"]),
            ("service inspect nosuch", 1, &["nosuch", "try:"]),
            ("service rm nosuch", 1, &["nosuch", "try:"]),
            ("service scale nosuch=2", 1, &["nosuch", "try:"]),
            ("service publish nosuch 80", 1, &["nosuch", "try:"]),
            ("service publish web 0", 2, &["0"]),
            ("service publish web 70000", 2, &["70000"]),
            ("service publish web 80/dccp", 2, &["dccp", "sctp"]),
            ("service publish web 8088:80", 1, &["8088", "n2", "lab-tool", "try:"]),
            ("service publish 9999", 2, &["netctl service publish"]),
            ("service unpublish web 80", 1, &["80", "try:"]),
            (
                "endpoint add e1 --netns /run/netns/nosuch --network app",
                1,
                &["/run/netns/nosuch", "try:"],
            ),
            (
                "endpoint add e1 --netns /etc/hostname --network app",
                1,
                &["/etc/hostname", "try:"],
            ),
            ("endpoint add e1 --pid 999999 --network app", 1, &["999999", "try:"]),
            ("endpoint rm nosuch", 1, &["nosuch", "try:"]),
            ("node inspect nosuch", 1, &["nosuch", "try:"]),
            ("cluster leave", 1, &["--force", "try:"]),
        ];
        let wrong: Vec<String> = cases
            .iter()
            .filter_map(|case| check(n1, case).err())
            .map(|e| format!("{e:#}"))
            .collect();
        ensure!(
            wrong.is_empty(),
            "{} of {} cases:\n{}",
            wrong.len(),
            cases.len(),
            wrong.join("\n")
        );
        let after = status(n1)?.revision;
        ensure!(
            after == revision,
            "a refused command has changed the intent: revision {revision} -> {after}"
        );

        // Garbage on every port and on the socket: the daemon lives.
        for node in [n1, n2] {
            for port in [7946, 4789] {
                lab.client()?
                    .run(&[
                        "lab-tool",
                        "send",
                        "--to",
                        &node.at(port),
                        "--hex",
                        "ff00ff00aabbccdd",
                        "-n",
                        "50",
                    ])?
                    .ok()?;
            }
            for port in [2377, 7946] {
                // Refused or cut off; that it hangs up and lives is what counts.
                lab.client()?.run(&[
                    "lab-tool",
                    "tally",
                    "--to",
                    &node.at(port),
                    "-n",
                    "5",
                    "--timeout-ms",
                    "500",
                ])?;
            }
            node.run(&[
                "curl",
                "-sS",
                "--max-time",
                "5",
                "--unix-socket",
                "/run/netd/netd.sock",
                "-X",
                "PUT",
                "-d",
                "{",
                "http://netd/v1/endpoints/x",
            ])?
            .ok()?;
        }
        n1.sees_ready(2, Duration::from_secs(20))?;
        Ok(())
    });
}

fn check(host: &Host, (words, code, named): &Case<'_>) -> anyhow::Result<()> {
    let out: Output = host.netctl(words)?;
    let said = out.all();
    ensure!(
        out.code == *code,
        "netctl {words}: exit {} instead of {code}: {}",
        out.code,
        said.trim_end()
    );
    for part in *named {
        ensure!(
            said.contains(part),
            "netctl {words}: {part:?} is not in: {}",
            said.trim_end()
        );
    }
    ensure!(!said.contains("panicked"), "netctl {words}: {said}");
    Ok(())
}

/// Settings that netd must refuse before it touches anything.
fn settings(host: &Host) -> anyhow::Result<()> {
    for (text, named) in [
        ("[node]\nnmae = \"x\"\n", "nmae"),
        ("[datapath]\nport = 99999\n", "port"),
        ("[datapath]\nmode = \"magic\"\n", "magic"),
        ("[cluster]\nlisten = \"nowhere\"\n", "listen"),
        ("not toml", "not"),
    ] {
        let file = host.folder().join("bad.toml");
        std::fs::write(&file, text)?;
        let out = host.run(&["netd", "--config", &file.display().to_string()])?;
        ensure!(
            !out.success() && out.stderr.contains(named),
            "netd with {text:?}: {out:?}"
        );
    }
    let absent = host.run(&["netd", "--config", "/nonexistent.toml"])?;
    ensure!(
        !absent.success() && absent.stderr.contains("/nonexistent.toml"),
        "{absent:?}"
    );
    Ok(())
}
