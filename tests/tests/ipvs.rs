//! What the IPVS data path alone has: virtual servers and rules that an operator can look at, and what others do to them.
//!
//! Where a host has no IPVS it is refused by name. The stories of the mesh hold on both data paths and stand in their files.

use std::time::Duration;

use anyhow::{Context, ensure};
use lab::wire::Held;
use lab::{Host, Lab, Output, Process, eventually};
use tests::{address_kept, all_answered, by_ipvs, create_web, homes, in_cluster, in_lab, running, status, tally};

/// Within which a foreign flush is repaired.
const REPAIRED: Duration = Duration::from_secs(1);
/// How long a kernel whose programs start slowly may take for it: User-Mode Linux, about 50 ms a program.
const REPAIRED_SLOWLY: Duration = Duration::from_secs(8);

#[test]
fn servers_are_to_be_seen_and_what_others_do_is_mended() {
    if !by_ipvs() {
        return in_lab("ipvs", 1, refused_by_name);
    }
    in_cluster("ipvs", 3, |lab| {
        let (n1, client) = (lab.host("n1")?, lab.client()?);
        n1.netctl("network create app --subnet 10.77.0.0/16 --ipv6")?.ok()?;
        println!("{}", seen(n1, "before")?);
        create_web(lab, "app", 3)?;
        n1.netctl("service publish 80")?.ok()?;
        n1.netctl("service publish web 80/udp")?.ok()?;
        for node in lab.nodes() {
            address_kept(client, None, &format!("--to {} -n 50", node.at(80)))?;
        }
        println!("{}", seen(n1, "published")?);
        captured(lab)?;
        drained_everywhere(lab)?;
        ports_come_back(client, n1)?;
        flushed(lab)?;
        full_table(n1, client)
    });
}

/// `datapath.mode = "ipvs"` on a kernel without: not taken for another, and it says what is missing and what to do.
fn refused_by_name(lab: &Lab) -> anyhow::Result<()> {
    let n1 = lab.host("n1")?;
    if shell(n1, "test -e /proc/net/ip_vs || modprobe -n ip_vs")?.success() {
        println!("this kernel has IPVS: the story is that of a run over it");
        return Ok(());
    }
    let file = n1.folder().join("ipvs.toml");
    std::fs::write(&file, "[datapath]\nmode = \"ipvs\"\n")?;
    let said = n1.run(&["netd", "--config", &file.display().to_string()])?;
    ensure!(
        !said.success() && said.stderr.contains("IPVS") && said.stderr.contains("modprobe ip_vs"),
        "what is missing, and what to do: {said:?}"
    );
    Ok(())
}

/// Lines for a shell: with pipes, loops and redirections.
fn shell(host: &Host, script: &str) -> anyhow::Result<Output> {
    host.run(&["sh", "-c", script])
}

/// What an operator looks at.
fn seen(host: &Host, when: &str) -> anyhow::Result<String> {
    let folder = "/run/netd/netns";
    let script = format!(
        "for n in $(ls {folder} | grep ^net-); do echo \"# nsenter --net={folder}/$n ipvsadm -Ln\"; \
         nsenter --net={folder}/$n ipvsadm -Ln || nsenter --net={folder}/$n cat /proc/net/ip_vs; done 2>/dev/null; \
         echo '# iptables-legacy-save'; iptables-legacy-save 2>/dev/null | grep -v '^#'; nft list ruleset 2>/dev/null"
    );
    let said = n_lines(&shell(host, &script)?.all());
    Ok(format!("--- {} {when}\n{said}", host.name()))
}

fn n_lines(text: &str) -> String {
    text.lines().map(|l| format!("    {l}\n")).collect()
}

/// What is on the wire between the node that a client asked and the node of the backend that answered: the client's address
/// both ways, and the reply goes to the asked node.
fn captured(lab: &Lab) -> anyhow::Result<()> {
    let (n1, client) = (lab.host("n1")?, lab.client()?);
    let home = homes(n1)?.into_iter().find(|h| h != n1.name());
    let home = lab.host(&home.context("every task runs on n1")?)?;
    let mac = |host: &Host| -> anyhow::Result<String> {
        let (device, ip) = network(host)?;
        let said = host.sh(&format!("{ip} ip -o link show {device}"))?.ok()?.stdout;
        let mac = said.split_whitespace().skip_while(|w| *w != "link/ether").nth(1);
        Ok(mac.context("a tunnel without a MAC")?.to_owned())
    };
    let (asked, own) = (mac(n1)?, mac(home)?);
    let (device, inside) = network(home)?;
    let words = format!("{inside} tcpdump -Ulnte -i {device} tcp port 80");
    let argv: Vec<&str> = words.split_whitespace().collect();
    let mut capture = home.spawn("capture", &argv)?;
    capture.line("listening on", Duration::from_secs(20))?;
    address_kept(client, None, &format!("--to {} -n 20", n1.at(80)))?;
    let address = client.v4().to_string();
    let replied = format!("80 > {address}.");
    // tcpdump tells a packet a little after it passed.
    capture.line(&replied, Duration::from_secs(10))?;
    capture.kill();
    let seen = capture.output();
    let lines: Vec<&str> = seen.lines().filter(|l| l.contains(&address)).collect();
    println!(
        "--- on {device} of {} (MAC {own}); n1 is {asked}, the client {address}",
        home.name()
    );
    for line in lines.iter().take(10) {
        println!("    {line}");
    }
    let (back, there): (Vec<&str>, Vec<&str>) = lines.into_iter().partition(|l| l.contains(&replied));
    println!(
        "--- {} packets from the client by n1, {} back by n1",
        there.len(),
        back.len()
    );
    ensure!(!there.is_empty() && !back.is_empty(), "nothing was captured: {seen}");
    ensure!(
        there
            .iter()
            .all(|l| l.starts_with(&format!("{asked} > {own}")) && l.contains(&format!("{address}."))),
        "{there:?}"
    );
    ensure!(
        back.iter().all(|l| l.starts_with(&format!("{own} > {asked}"))),
        "{back:?}"
    );
    Ok(())
}

/// The tunnel of a host's network with virtual servers, and the words that lead into its sandbox.
fn network(host: &Host) -> anyhow::Result<(String, String)> {
    let folder = "/run/netd/netns";
    let script =
        format!("cd {folder} && for n in net-*; do nsenter --net=$n grep -q FWM /proc/net/ip_vs && echo $n; done");
    let name = host.run(&["sh", "-c", &script])?.stdout;
    let vni = name
        .trim()
        .strip_prefix("net-")
        .context("no network has virtual servers")?;
    Ok((format!("nx{vni}"), format!("nsenter --net={folder}/net-{vni}")))
}

/// The virtual servers of a host, as the kernel lists them: address and port in hexadecimal, forwarding, weight.
fn servers(host: &Host) -> anyhow::Result<String> {
    let script = "for n in /run/netd/netns/net-*; do nsenter --net=$n cat /proc/net/ip_vs; done";
    Ok(shell(host, script)?.ok()?.stdout)
}

/// Weights of all backends on a host.
fn weights(host: &Host) -> anyhow::Result<Vec<u32>> {
    let lines = servers(host)?;
    let backends = lines.lines().filter(|l| l.trim_start().starts_with("->")).skip(1);
    Ok(backends
        .filter_map(|l| l.split_whitespace().nth(3)?.parse().ok())
        .collect())
}

/// A backend that leaves weighs nothing on every node while its flow goes on, and is gone with it.
fn drained_everywhere(lab: &Lab) -> anyhow::Result<()> {
    let (n1, client) = (lab.host("n1")?, lab.client()?);
    n1.netctl("service update web --drain-timeout 20s")?.ok()?;
    running(n1, 3)?;
    let held = hold(client, "held", n1)?;
    // The command ends when it is done, which is after the flows' end.
    let mut scale = n1.spawn("scale", &["netctl", "service", "scale", "web=2"])?;
    for node in lab.nodes() {
        eventually(
            &format!("a backend of weight 0 on {}", node.name()),
            Duration::from_secs(10),
            || {
                let weights = weights(node)?;
                ensure!(weights.contains(&0) && weights.contains(&1), "{weights:?}");
                Ok(true)
            },
        )?;
    }
    println!("{}", seen(n1, "draining")?);
    unharmed(held)?;
    ensure!(scale.wait(Duration::from_secs(40))?.success(), "service scale");
    for node in lab.nodes() {
        eventually(
            &format!("it to be gone on {}", node.name()),
            Duration::from_secs(10),
            || {
                let weights = weights(node)?;
                ensure!(!weights.contains(&0), "{weights:?}");
                Ok(true)
            },
        )?;
    }
    println!("{}", seen(n1, "drained")?);
    Ok(())
}

/// One client that uses the same few ports again and again: each connection is answered within a second, although the one
/// before it is remembered. (With vs.conntrack=1 and vs.conn_reuse_mode=1 the kernel drops such a first packet.)
fn ports_come_back(client: &Host, node: &Host) -> anyhow::Result<()> {
    let words = format!("--to {} -n 1000 --bye --ports 41000-41019", node.at(80));
    let seen = tally(client, None, &words)?;
    println!(
        "--- 1000 connections from 20 ports: longest pause {} ms, {seen}",
        seen.longest_gap_ms
    );
    ensure!(seen.errors() == 0 && seen.longest_gap_ms < 1000, "{seen}");
    Ok(())
}

/// Others flush everything: repaired, and what others have is left alone.
fn flushed(lab: &Lab) -> anyhow::Result<()> {
    let (n1, client) = (lab.host("n1")?, lab.client()?);
    let to = n1.at(80);
    let by_nft = shell(n1, "nft list table inet netd")?.success();
    let foreign = "iptables-legacy -t mangle";
    shell(n1, &format!("{foreign} -N OTHERS && {foreign} -A OTHERS -j RETURN"))?.ok()?;
    let flushes = match by_nft {
        true => vec![
            "nft flush ruleset",
            "for n in /run/netd/netns/net-*; do nsenter --net=$n nft flush ruleset; done",
        ],
        false => vec![
            "for t in raw nat; do iptables-legacy -t $t -F PREROUTING; done; iptables-legacy -F FORWARD",
            "for n in /run/netd/netns/net-*; do for t in raw mangle; do nsenter --net=$n iptables-legacy -t $t -F; done; done",
        ],
    };
    for flush in flushes {
        shell(n1, flush)?.ok()?;
        let limit = if by_nft { REPAIRED } else { REPAIRED_SLOWLY };
        let after = eventually(&format!("`{flush}` to be repaired"), limit, || {
            Ok(tally(client, None, &format!("--to {to} -n 5 --timeout-ms 200"))?.errors() == 0)
        })?;
        println!("--- {flush}: repaired after {} ms", after.as_millis());
    }
    ensure!(
        shell(n1, &format!("{foreign} -S OTHERS"))?
            .ok()?
            .stdout
            .contains("-A OTHERS -j RETURN"),
        "others' rules survive"
    );
    shell(n1, &format!("{foreign} -F OTHERS && {foreign} -X OTHERS"))?.ok()?;
    address_kept(client, None, &format!("--to {to} -n 50"))?;
    all_answered(n1, None, "--to 127.0.0.1:80 -n 30")?;
    Ok(())
}

/// A full table of connections: status names it, and all is well again when there is room.
fn full_table(n1: &Host, client: &Host) -> anyhow::Result<()> {
    let max = "/proc/sys/net/netfilter/nf_conntrack_max";
    // One number for all namespaces, which the first one alone may change: that of this test, in a guest of its own.
    let before = std::fs::read_to_string(max)?;
    let set = |to: &str| std::fs::write(max, to).with_context(|| format!("writing {max}"));
    set("10")?;
    let told = eventually("status to name the full table", Duration::from_secs(20), || {
        let problems = status(n1)?.problems;
        ensure!(problems.iter().any(|p| p.contains("nf_conntrack_max")), "{problems:?}");
        Ok(true)
    });
    set(before.trim())?;
    told?;
    eventually("status to forget it", Duration::from_secs(20), || {
        Ok(status(n1)?.problems.is_empty())
    })?;
    address_kept(client, None, &format!("--to {} -n 30", n1.at(80)))?;
    Ok(())
}

/// Twelve connections of one to twelve seconds, all of them established.
fn hold(client: &Host, name: &str, node: &Host) -> anyhow::Result<Process> {
    let to = node.at(80);
    let words = "lab-tool hold --connections 12 --life 12 --duration 0.2 --announce --to";
    let argv: Vec<&str> = words.split(' ').chain([to.as_str()]).collect();
    let mut held = client.spawn(name, &argv)?;
    held.line("ready", Duration::from_secs(20))?;
    eventually("twelve connections", Duration::from_secs(5), || {
        let established = client.sh("ss -Htn state established")?.ok()?.stdout;
        let count = established.matches(&to).count();
        ensure!(count == 12, "{count} of them");
        Ok(true)
    })?;
    Ok(held)
}

/// They ended by themselves, and nothing was lost on them.
fn unharmed(mut held: Process) -> anyhow::Result<()> {
    let out = held.wait(Duration::from_secs(40))?;
    let json = out.stdout.lines().find(|l| l.starts_with('{')).context("no report")?;
    let held: Held = serde_json::from_str(json)?;
    ensure!(held.errors() == 0 && held.cut == 0 && held.requests > 0, "{held:?}");
    Ok(())
}
