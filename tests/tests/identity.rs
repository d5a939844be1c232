//! Tokens, certificates, the CA and gossip keys change under traffic; who is removed is out; a locked manager goes on
//! forwarding; a node that was away for longer than its certificate lives comes back with its tasks.

#![allow(clippy::disallowed_methods, reason = "what is promised in seconds is measured")]

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use lab::wire::Tally;
use lab::{Host, Lab, Process, eventually};
use model::api::{CustodyView, NodeHealth, NodeView, TokenAnswer};
use tests::{all_answered, create_web, in_cluster, in_lab, running, status, tally};

const SOON: Duration = Duration::from_secs(40);
/// How long a refusal may take that is asked for at once: TLS, and a busy machine.
const REFUSAL: Duration = Duration::from_secs(5);

fn custody(host: &Host) -> anyhow::Result<CustodyView> {
    host.netctl("cluster ca show -o json")?.json()
}

fn begin_cluster(lab: &Lab, joined: usize, init: &str) -> anyhow::Result<()> {
    let (first, others) = lab.nodes().split_first().context("no node")?;
    for node in lab.nodes() {
        node.start_netd()?;
        node.start_runner()?;
    }
    first
        .netctl(&format!("cluster init --advertise-addr {} {init}", first.v4()))?
        .ok()?;
    let token = first.join_token()?;
    for node in others.iter().take(joined.saturating_sub(1)) {
        join(first, node, &token)?.ok()?;
    }
    for node in lab.nodes().iter().take(joined) {
        node.sees_ready(joined, SOON)?;
    }
    Ok(())
}

fn join(manager: &Host, node: &Host, token: &str) -> anyhow::Result<lab::Output> {
    node.netctl(&format!(
        "cluster join {token} {} --advertise-addr {}",
        manager.at(2377),
        node.v4()
    ))
}

/// Requests to a published port, from outside, until it is asked.
struct Load {
    process: Process,
    through: String,
}

impl Load {
    fn begin(lab: &Lab, through: &Host, seconds: u32) -> anyhow::Result<Load> {
        let (to, seconds) = (through.at(80), seconds.to_string());
        let argv = [
            "lab-tool",
            "tally",
            "--announce",
            "--to",
            &to,
            "--rate",
            "50",
            "--duration",
            &seconds,
        ];
        let mut process = lab.client()?.spawn(&format!("load-{}", through.name()), &argv)?;
        process.line("ready", Duration::from_secs(20))?;
        Ok(Load {
            process,
            through: through.name().to_owned(),
        })
    }

    fn nothing_lost(mut self) -> anyhow::Result<u64> {
        let out = self.process.wait(Duration::from_secs(180))?;
        let json = out.stdout.lines().find(|l| l.starts_with('{')).context("no report")?;
        let seen: Tally = serde_json::from_str(json)?;
        ensure!(
            seen.errors() == 0 && seen.tried > 100,
            "requests through {} were lost: {seen}",
            self.through
        );
        Ok(seen.tried)
    }
}

#[test]
fn everything_rotates_and_no_request_is_lost() {
    in_lab("identity", 4, |lab| {
        // Certificates of ten seconds: every node renews several times while this runs.
        begin_cluster(lab, 3, "--set cert-expiry=10s")?;
        let (n1, n2, n3, n4) = (lab.host("n1")?, lab.host("n2")?, lab.host("n3")?, lab.host("n4")?);
        n1.netctl("network create app --subnet 10.77.0.0/16")?.ok()?;
        create_web(lab, "app", 3)?;
        n1.netctl("service publish 80")?.ok()?;
        let load = [Load::begin(lab, n1, 45)?, Load::begin(lab, n2, 45)?];
        let begun = Instant::now();

        tokens(n1, n4)?;
        let renewed = custody(n1)?;

        // Gossip keys: a change each second, until all nodes have gone through some.
        let first = custody(n1)?.gossip.keys;
        n1.netctl("cluster update gossip-key-rotation=1s")?.ok()?;
        eventually("the gossip keys to change several times", SOON, || {
            let keys = custody(n1)?.gossip.keys;
            Ok(keys.first() >= first.first().map(|k| k + 4).as_ref())
        })?;
        n1.netctl("cluster update gossip-key-rotation=12h")?.ok()?;
        eventually("the change of gossip keys to end", SOON, || {
            Ok(custody(n1)?.gossip.phase.is_none())
        })?;
        ensure!(
            custody(n1)?.gossip.keys.len() == 3,
            "a ring of three: {:?}",
            custody(n1)?.gossip
        );
        for node in lab.nodes().iter().take(3) {
            node.sees_ready(3, SOON)?;
        }

        // The CA, twice.
        let before = custody(n1)?.ca.signs.fingerprint;
        let old_token = n1.join_token()?;
        let asked = Instant::now();
        n1.netctl("cluster ca rotate")?.ok()?;
        println!("the CA was changed in {:?}", asked.elapsed());
        n1.netctl("cluster ca rotate")?.ok()?;
        let after = custody(n1)?;
        ensure!(
            after.ca.signs.fingerprint != before && after.ca.trusted.len() == 1 && after.ca.phase.is_none(),
            "{after:?}"
        );
        let refused = join(n1, n4, &old_token)?;
        ensure!(
            refused.code == 1 && refused.stderr.contains("does not match the token"),
            "the old pin: {refused:?}"
        );
        join(n1, n4, &n1.join_token()?)?.ok()?;
        n4.sees_ready(4, SOON)?;

        // Certificates have been renewed under all this.
        for node in [n1, n2, n3] {
            eventually("two renewals by time", SOON, || {
                Ok(node.netd_log()?.matches("its time has come").count() >= 2)
            })?;
        }
        let later = custody(n1)?;
        ensure!(
            renewed
                .certificates
                .iter()
                .all(|(id, until)| later.certificates.get(id) > Some(until)),
            "{renewed:?} {later:?}"
        );

        removed(lab, n1, n4)?;
        expired(n1, n3)?;

        println!("load began {:?} ago", begun.elapsed());
        for l in load {
            let tried = l.nothing_lost()?;
            println!("{tried} requests, none lost");
        }
        Ok(())
    });
}

/// A token that was changed is worth nothing at once; nobody is told a secret who has not proved the CA.
fn tokens(n1: &Host, n4: &Host) -> anyhow::Result<()> {
    let old = n1.join_token()?;
    let new: TokenAnswer = n1.netctl("cluster token worker --rotate -o json")?.json()?;
    let asked = Instant::now();
    let refused = join(n1, n4, &old)?;
    ensure!(
        refused.code == 1 && refused.stderr.contains("not valid") && asked.elapsed() < REFUSAL,
        "after {:?}: {refused:?}",
        asked.elapsed()
    );
    ensure!(new.token != old && n1.join_token()? == new.token, "a new token");
    let manager: TokenAnswer = n1.netctl("cluster token manager -o json")?.json()?;
    ensure!(manager.token != new.token, "each role has its own");
    // The pin of another cluster: nothing is sent, and it is said.
    let mut other = new.token.clone();
    let sign = if other.as_bytes().get(10) == Some(&b'a') {
        "b"
    } else {
        "a"
    };
    other.replace_range(10..=10, sign);
    let refused = join(n1, n4, &other)?;
    ensure!(
        refused.code == 1 && refused.stderr.contains("does not match the token") && refused.stderr.contains("try:"),
        "{refused:?}"
    );
    ensure!(status(n4)?.me.is_none(), "nothing half-made");
    Ok(())
}

fn signal(host: &Host, name: &str) -> anyhow::Result<()> {
    let pid = host.netd_pid()?.to_string();
    let done = std::process::Command::new("kill").args([name, &pid]).status()?;
    ensure!(done.success(), "kill {name}: {done}");
    Ok(())
}

/// A node that is removed while it stands still, and then goes on as if nothing were.
fn removed(lab: &Lab, n1: &Host, n4: &Host) -> anyhow::Result<()> {
    let keys = custody(n1)?.gossip.keys;
    signal(n4, "-STOP")?;
    eventually("n4's silence to be noticed", SOON, || {
        let nodes: Vec<NodeView> = n1.netctl("node ls -o json")?.json()?;
        Ok(nodes
            .iter()
            .any(|n| n.hostname == "n4" && n.health != NodeHealth::Ready))
    })?;
    n1.netctl("node rm n4")?.ok()?;
    let asked = Instant::now();
    signal(n4, "-CONT")?;
    eventually("n4 to be refused", Duration::from_secs(5), || {
        Ok(n4.netd_log()?.contains("is not in the cluster"))
    })?;
    println!("the removed node was refused after {:?}", asked.elapsed());
    eventually("gossip keys that it does not know", Duration::from_secs(5), || {
        let now = custody(n1)?.gossip;
        Ok(now.phase.is_none() && now.keys.len() == 1 && now.keys.first() > keys.first())
    })?;
    println!("what it knew of gossip was worth nothing after {:?}", asked.elapsed());
    for node in lab.nodes().iter().take(3) {
        let nodes: Vec<NodeView> = node.netctl("node ls -o json")?.json()?;
        ensure!(
            nodes.iter().all(|n| n.hostname != "n4"),
            "{} still lists n4",
            node.name()
        );
        node.sees_ready(3, SOON)?;
    }
    let told = status(n4)?.problems.join("\n");
    ensure!(told.contains("is not in the cluster"), "n4 says why: {told}");
    n4.netctl("cluster leave --force")?.ok()?;
    Ok(())
}

/// Off for longer than a certificate lives.
fn expired(n1: &Host, n3: &Host) -> anyhow::Result<()> {
    let before = pids(n3)?;
    let until = *custody(n1)?
        .certificates
        .iter()
        .find(|(id, _)| id.to_string() == "n3")
        .context("n3 has reported no certificate")?
        .1;
    n3.kill_netd()?;
    // The CA is changed meanwhile too: neither its certificate nor its root counts any more.
    n1.netctl("cluster ca rotate --detach")?.ok()?;
    eventually("the certificate to end", SOON, || {
        let now = std::time::SystemTime::now().duration_since(std::time::SystemTime::UNIX_EPOCH)?;
        Ok(now.as_secs() > until)
    })?;
    let asked = Instant::now();
    n3.start_netd()?;
    for host in [n1, n3] {
        host.sees_ready(3, SOON)?;
    }
    eventually("n3 to hold what the others hold", SOON, || {
        let view = custody(n1)?;
        Ok(view.ca.phase.is_none() && status(n3)?.converged == Some(true))
    })?;
    println!("the expired node was back after {:?}", asked.elapsed());
    ensure!(pids(n3)? == before, "its tasks ran on: {before:?} {:?}", pids(n3)?);
    Ok(())
}

/// Processes of the tasks on a node.
fn pids(host: &Host) -> anyhow::Result<Vec<u32>> {
    let mut pids = host.processes("serve --port 80")?;
    pids.sort_unstable();
    ensure!(!pids.is_empty(), "no task runs on {}", host.name());
    Ok(pids)
}

#[test]
fn a_locked_manager_goes_on_forwarding() {
    in_cluster("autolock", 2, |lab| {
        let (n1, client) = (lab.host("n1")?, lab.client()?);
        n1.netctl("network create app --subnet 10.77.0.0/16")?.ok()?;
        create_web(lab, "app", 2)?;
        n1.netctl("service publish 80")?.ok()?;
        n1.attach("t1", "app", None)?;

        let said = n1.netctl("cluster update autolock=true")?.ok()?.all();
        let first = said
            .split_whitespace()
            .find(|w| w.starts_with("NETDKEY-1-"))
            .context(format!("no unlock key in: {said}"))?
            .to_owned();
        ensure!(
            n1.netctl("cluster unlock-key -q")?.ok()?.stdout.trim() == first,
            "the key can be shown again while the manager is open"
        );
        let key = rotate_key(n1)?;
        let token = n1.join_token()?;
        canaries(n1, &[&token, &key])?;
        let limits = fs::read_to_string(format!("/proc/{}/limits", n1.netd_pid()?))?;
        ensure!(
            limits.lines().any(|l| l
                .split_whitespace()
                .collect::<Vec<_>>()
                .starts_with(&["Max", "core", "file", "size", "0", "0"])),
            "no core files: {limits}"
        );

        let load = Load::begin(lab, n1, 15)?;
        let before = pids(n1)?;
        n1.kill_netd()?;
        canaries(n1, &[&token, &key])?;
        n1.start_netd()?;
        for line in ["status", "service ls", "cluster token worker", "cluster init"] {
            let out = n1.netctl(line)?;
            ensure!(
                out.code == 1 && out.stderr.contains("locked") && out.stderr.contains("try: netctl cluster unlock"),
                "netctl {line}: {out:?}"
            );
        }
        // What stands goes on, names too.
        all_answered(client, None, &format!("--to {} -n 50", n1.at(80)))?;
        let dig = ["dig", "+short", "+time=1", "+tries=2", "@127.0.0.11", "web"];
        eventually("names to be answered", SOON, || {
            let named = n1.in_netns("t1", &dig)?.ok()?;
            ensure!(named.stdout.starts_with("10.77."), "{named:?}");
            Ok(true)
        })?;

        let file = n1.folder().join("key");
        let unlock = |text: &str| -> anyhow::Result<lab::Output> {
            fs::write(&file, text)?;
            let line = format!("netctl cluster unlock < {}", file.display());
            n1.run(&["sh", "-c", &line])
        };
        let wrong = unlock(&first)?;
        ensure!(
            wrong.code == 1 && wrong.stderr.contains("does not open this manager"),
            "{wrong:?}"
        );
        // A view that is older than what the kernel holds takes nothing away: nobody can tell whether it is right.
        n1.kill_netd()?;
        forget_services(n1)?;
        n1.start_netd()?;
        ensure!(n1.netctl("status")?.stderr.contains("locked"), "locked again");
        all_answered(client, None, &format!("--to {} -n 50", n1.at(80)))?;
        ensure!(pids(n1)? == before, "no task was touched");

        let slip = unlock(&key[..key.len() - 1])?;
        ensure!(slip.code == 2, "{slip:?}");
        ensure!(n1.netctl("status")?.code == 1, "still locked");
        unlock(&key)?.ok()?;
        fs::remove_file(&file)?;
        for node in lab.nodes() {
            node.sees_ready(2, SOON)?;
        }
        running(n1, 2)?;
        ensure!(n1.join_token()? == token, "nothing was changed");
        ensure!(pids(n1)? == before, "its tasks ran on: {before:?} {:?}", pids(n1)?);
        println!("{} requests, none lost", load.nothing_lost()?);

        // Another key, then none.
        let new = rotate_key(n1)?;
        n1.kill_netd()?;
        n1.start_netd()?;
        ensure!(unlock(&key)?.code == 1, "the old key is worth nothing");
        unlock(&new)?.ok()?;
        fs::remove_file(&file)?;
        n1.sees_ready(2, SOON)?;
        n1.netctl("cluster update autolock=false")?.ok()?;
        n1.kill_netd()?;
        n1.start_netd()?;
        n1.sees_ready(2, SOON)?;
        let seen = tally(client, None, &format!("--to {} -n 20", n1.at(80)))?;
        ensure!(seen.errors() == 0, "{seen}");

        // A key that is lost: there is a way out, and it is said what it costs.
        n1.netctl("cluster update autolock=true")?.ok()?;
        n1.kill_netd()?;
        n1.start_netd()?;
        let refused = n1.netctl("cluster leave")?;
        ensure!(refused.code == 1 && refused.stderr.contains("locked"), "{refused:?}");
        n1.netctl("cluster leave --force")?.ok()?;
        ensure!(status(n1)?.me.is_none(), "n1 is in no cluster");
        ensure!(
            !n1.folder().join("state/identity/lock").exists(),
            "nothing of the old identity is left"
        );
        Ok(())
    });
}

/// Makes the last view on a host's disk one from before there was any service.
fn forget_services(host: &Host) -> anyhow::Result<()> {
    let path = host.folder().join("state/intent.json");
    let mut view: serde_json::Value = serde_json::from_str(&fs::read_to_string(&path)?)?;
    ensure!(
        view.pointer("/services/web").is_some(),
        "the view has a service: {view}"
    );
    for part in ["services", "placements"] {
        view[part] = serde_json::json!({});
    }
    view["revision"] = serde_json::json!(view["revision"].as_u64().context("no revision")? - 1);
    fs::write(&path, serde_json::to_vec(&view)?)?;
    Ok(())
}

fn rotate_key(host: &Host) -> anyhow::Result<String> {
    Ok(host
        .netctl("cluster unlock-key --rotate -q")?
        .ok()?
        .stdout
        .trim()
        .to_owned())
}

#[test]
fn several_managers_keep_the_secrets_together() {
    in_lab("custody", 5, |lab| {
        for node in lab.nodes() {
            node.start_netd()?;
        }
        let managers: Vec<&Host> = lab.nodes().iter().take(3).collect();
        let (n1, n2, n3, n4, n5) = (
            lab.host("n1")?,
            lab.host("n2")?,
            lab.host("n3")?,
            lab.host("n4")?,
            lab.host("n5")?,
        );
        n1.netctl(&format!(
            "cluster init --advertise-addr {} --set cert-expiry=20s",
            n1.v4()
        ))?
        .ok()?;
        let token = n1.netctl("cluster token manager -q")?.ok()?.stdout.trim().to_owned();
        for node in [n2, n3] {
            join(n1, node, &token)?.ok()?;
        }
        join(n1, n4, &n1.join_token()?)?.ok()?;
        for node in lab.nodes().iter().take(4) {
            node.start_runner()?;
            node.sees_ready(4, SOON)?;
        }
        tests::managers::all_reached(n1, 3)?;
        n1.netctl("network create app --subnet 10.77.0.0/16")?.ok()?;
        create_web(lab, "app", 2)?;
        n1.netctl("service publish 80")?.ok()?;
        let load = Load::begin(lab, n4, 55)?;

        // A token is changed through one manager, and worth nothing at any other.
        let old = n1.join_token()?;
        n2.netctl("cluster token worker --rotate")?.ok()?;
        for manager in &managers {
            let asked = Instant::now();
            let refused = join(manager, n5, &old)?;
            ensure!(
                refused.code == 1 && refused.stderr.contains("not valid") && asked.elapsed() < REFUSAL,
                "{} after {:?}: {refused:?}",
                manager.name(),
                asked.elapsed()
            );
        }

        // The leader dies while the CA is changed: the next one goes on, and the dead one trades in when it returns.
        let before = custody(n2)?.ca.signs.fingerprint;
        n2.netctl("cluster ca rotate --detach")?.ok()?;
        let leader = tests::managers::leader(lab, n4)?;
        leader.kill_netd()?;
        let others: Vec<&&Host> = managers.iter().filter(|m| m.name() != leader.name()).collect();
        let other = others.first().context("no other manager")?;
        eventually("another leader to answer for the change", SOON, || {
            Ok(custody(other)?.ca.signs.fingerprint != before || custody(other)?.ca.phase.is_some())
        })?;
        leader.start_netd()?;
        eventually("the change of the CA to end", SOON, || {
            let view = custody(other)?;
            Ok(view.ca.phase.is_none() && view.ca.signs.fingerprint != before && view.ca.trusted.len() == 1)
        })?;
        for manager in &managers {
            tests::managers::all_reached(manager, 3)?;
        }

        // Demoted: it loses the secrets, and its certificate says so.
        n1.netctl("node demote n3")?.ok()?;
        eventually("n3 to hold a worker's certificate", SOON, || {
            let text = fs::read_to_string(n3.folder().join("state/identity/credentials.json"))?;
            Ok(text.contains("\"role\": \"worker\"") && !n3.folder().join("state/identity/log.key").exists())
        })?;
        ensure!(
            n3.netctl("cluster token worker")?.code == 1,
            "n3 knows no token any more"
        );

        // All are off until every certificate has ended, and begin again together.
        for node in lab.nodes().iter().take(4) {
            node.kill_netd()?;
        }
        std::thread::sleep(Duration::from_secs(21));
        let asked = Instant::now();
        for node in lab.nodes().iter().take(4) {
            node.start_netd()?;
        }
        for node in lab.nodes().iter().take(4) {
            node.sees_ready(4, SOON)?;
        }
        tests::managers::all_reached(n2, 2)?;
        join(n2, n5, &n2.join_token()?)?.ok()?;
        println!("all had expired: the cluster was back after {:?}", asked.elapsed());
        println!("{} requests, none lost", load.nothing_lost()?);
        Ok(())
    });
}

/// No secret lies on the disk or in the log as it is, whatever form it may be written in.
fn canaries(host: &Host, texts: &[&str]) -> anyhow::Result<()> {
    let mut needles: Vec<(String, Vec<u8>)> = vec![("a private key".into(), b"PRIVATE KEY".to_vec())];
    for text in texts {
        let secret = text.rsplit('-').next().unwrap_or_default();
        needles.push((
            format!("{}...", text.get(..6).unwrap_or_default()),
            secret.as_bytes().to_vec(),
        ));
        let octets = base32(secret)?;
        needles.push(("octets".into(), octets.clone()));
        let hex: String = octets.iter().map(|b| format!("{b:02x}")).collect();
        needles.push(("hexadecimal".into(), hex.into_bytes()));
        let list: Vec<String> = octets.iter().take(16).map(ToString::to_string).collect();
        needles.push(("a JSON list".into(), list.join(",").into_bytes()));
    }
    // Gossip keys are JSON lists called `secret` where they are not sealed.
    needles.push(("a gossip key".into(), b"\"secret\":".to_vec()));
    let mut files = 0;
    look(&host.folder().join("state"), &needles, &mut files)?;
    ensure!(files > 5, "only {files} files were looked at");
    let log = host.netd_log().unwrap_or_default();
    for (what, needle) in &needles {
        let text = String::from_utf8_lossy(needle);
        ensure!(!log.contains(&*text), "{what} is in the log");
    }
    Ok(())
}

fn look(dir: &Path, needles: &[(String, Vec<u8>)], files: &mut usize) -> anyhow::Result<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            look(&path, needles, files)?;
            continue;
        }
        *files += 1;
        let bytes = fs::read(&path)?;
        for (what, needle) in needles {
            if bytes.windows(needle.len()).any(|w| w == needle.as_slice()) {
                bail!("{what} lies in {} as it is", path.display());
            }
        }
    }
    Ok(())
}

/// RFC 4648 6 in lower case.
fn base32(text: &str) -> anyhow::Result<Vec<u8>> {
    let (mut out, mut buffer, mut bits) = (Vec::new(), 0u32, 0);
    for c in text.bytes() {
        let value = b"abcdefghijklmnopqrstuvwxyz234567"
            .iter()
            .position(|b| *b == c)
            .context("no base32")?;
        buffer = ((buffer << 5) | u32::try_from(value)?) & 0xffff;
        bits += 5;
        if bits >= 8 {
            bits -= 8;
            out.push(u8::try_from((buffer >> bits) & 0xff)?);
        }
    }
    Ok(out)
}
