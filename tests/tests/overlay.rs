//! Namespaces on different nodes, on one network.

use std::time::Duration;

use anyhow::{Context, ensure};
use lab::{OUTSIDE_V4, eventually};
use tests::{address_kept, all_answered, by_ipvs, counter, grows, in_cluster};

#[test]
fn attached_namespaces_talk_and_strangers_do_not() {
    in_cluster("overlay", 2, |lab| {
        let (n1, n2, client) = (lab.host("n1")?, lab.host("n2")?, lab.client()?);
        n1.netctl("network create app --subnet 10.77.0.0/16 --ipv6")?.ok()?;
        n1.netctl("network create other --subnet 10.78.0.0/16")?.ok()?;
        let t1 = n1.attach("t1", "app", None)?;
        let t2 = n2.attach("t2", "app", None)?;
        let t3 = n1.attach("t3", "app", None)?;
        let stranger = n2.attach("stranger", "other", None)?;
        let v6 = t2.v6.clone().context("t2 has no IPv6 address")?;
        ensure!(t1.v4 != t2.v4 && t1.v4 != t3.v4, "addresses are unique");
        n2.serve_in_netns("t2", "t2", &["lab-tool", "serve", "--port", "9000", "--task", "t2"])?;
        n1.serve_in_netns("t3", "t3", &["lab-tool", "serve", "--port", "9000", "--task", "t3"])?;
        eventually("t1 to know where t2 is", Duration::from_secs(10), || {
            Ok(n1.in_netns("t1", &["ping", "-c", "1", "-W", "1", &t2.v4])?.success())
        })?;

        // Ping, TCP and UDP, IPv4 and IPv6, to another node and to the same one.
        for address in [&t2.v4, &v6, &t3.v4] {
            n1.in_netns("t1", &["ping", "-c", "5", "-i", "0.05", "-W", "1", address])?
                .ok()?;
        }
        let t3v6 = t3.v6.context("t3 has no IPv6 address")?;
        for to in [
            &format!("{}:9000", t2.v4),
            &format!("[{v6}]:9000"),
            &format!("{}:9000", t3.v4),
            &format!("[{t3v6}]:9000"),
        ] {
            for udp in ["", "--udp"] {
                address_kept(n1, Some("t1"), &format!("--to {to} -n 50 {udp}"))?;
            }
        }
        // Large packets too: the whole MTU, and a stream.
        let mtu = mtu(n1)?;
        ensure!((1200..1500).contains(&mtu), "room for the tunnel's header: MTU {mtu}");
        let payload = (mtu - 28).to_string();
        n1.in_netns(
            "t1",
            &["ping", "-c", "3", "-i", "0.05", "-M", "do", "-s", &payload, &t2.v4],
        )?
        .ok()?;
        let fetched: lab::wire::Transfer = n1
            .in_netns(
                "t1",
                &[
                    "lab-tool",
                    "fetch",
                    "--to",
                    &format!("{}:9000", t2.v4),
                    "--octets",
                    "20000000",
                ],
            )?
            .json()?;
        ensure!(fetched.lost() == 0 && fetched.error.is_none(), "{fetched:?}");

        // The outside, masqueraded.
        lab.switch()
            .serve("outside", &["lab-tool", "serve", "--port", "8000", "--task", "outside"])?;
        let out = all_answered(n1, Some("t1"), &format!("--to {OUTSIDE_V4}:8000 -n 10"))?;
        ensure!(
            out.seen_as.keys().all(|ip| *ip == std::net::IpAddr::from(n1.v4())),
            "seen as the node: {out}"
        );

        // Another network is another world.
        ensure!(
            !n2.in_netns("stranger", &["ping", "-c", "1", "-W", "1", &t2.v4])?
                .success(),
            "other -> app is closed"
        );
        ensure!(
            !n1.in_netns("t1", &["ping", "-c", "1", "-W", "1", &stranger.v4])?
                .success(),
            "app -> other is closed"
        );

        // VXLAN (RFC 7348) from a host that is no member; a source that the task was not given.
        // (IPVS mode tells no counters: that the kernel drops these is shown by its own tests, `fabric::tests::routed`.)
        let told = !by_ipvs();
        let before = counter(n2, "drop_vxlan_from_stranger")?;
        let frame = format!("0800000000000100{}0800{}", "020000000001020000000002", "00".repeat(46));
        client
            .run(&["lab-tool", "send", "--to", &n2.at(4789), "--hex", &frame, "-n", "10"])?
            .ok()?;
        if told {
            grows(n2, "drop_vxlan_from_stranger", before, 10)?;
        }
        let before = counter(n1, "drop_task_source_not_its_own")?;
        n1.sh("ip -n t1 addr add 10.77.200.200/32 dev eth0")?.ok()?;
        let forged = n1.in_netns(
            "t1",
            &[
                "ping",
                "-c",
                "3",
                "-i",
                "0.05",
                "-W",
                "1",
                "-I",
                "10.77.200.200",
                &t2.v4,
            ],
        )?;
        ensure!(!forged.success(), "a foreign source got through");
        if told {
            grows(n1, "drop_task_source_not_its_own", before, 3)?;
        }

        // A route of ours does not lead the underlay to a task.
        ensure!(
            !client.sh(&format!("ping -c 1 -W 1 {}", t2.v4))?.success(),
            "tasks are not on the underlay"
        );

        // What the node's own IPsec policies say holds for the tunnel too, from one second to the next: here that nothing
        // may leave. Programs that send past the host's stack must not send past them.
        let policy = format!("src {}/32 dst {}/32 proto udp dport 4789 dir out", n1.v4(), n2.v4());
        n1.sh(&format!("ip xfrm policy add {policy} action block"))?.ok()?;
        let reached = || Ok(n1.in_netns("t1", &["ping", "-c", "1", "-W", "1", &t2.v4])?.success());
        eventually("the policy to hold", Duration::from_secs(10), || Ok(!reached()?))?;
        let ping = n1.in_netns("t1", &["ping", "-c", "5", "-i", "0.05", "-W", "1", &t2.v4])?;
        ensure!(!ping.success(), "a packet passed by the host's policy: {}", ping.stdout);
        n1.sh(&format!("ip xfrm policy delete {policy}"))?.ok()?;
        eventually("the tunnel without the policy", Duration::from_secs(10), reached)?;
        all_answered(n1, Some("t1"), &format!("--to {}:9000 -n 50", t2.v4))?;

        // Gone means gone: the address answers nobody, and adding again works.
        n2.netctl("endpoint rm t2")?.ok()?;
        eventually("t2 to be gone", Duration::from_secs(10), || {
            Ok(!n1.in_netns("t1", &["ping", "-c", "1", "-W", "1", &t2.v4])?.success())
        })?;
        n2.netctl("endpoint add t2 --netns /run/netns/t2 --network app")?.ok()?;
        Ok(())
    });
}

/// /sys shows the namespace that it was mounted in: `ip` asks the one that is meant.
fn mtu(host: &lab::Host) -> anyhow::Result<u32> {
    let out = host.sh("ip -n t1 -o link show eth0")?.ok()?.stdout;
    let mtu = out
        .split_whitespace()
        .skip_while(|w| *w != "mtu")
        .nth(1)
        .context("ip tells no MTU")?;
    Ok(mtu.parse()?)
}
