//! The contender `direct`: the same hops with no balancer, over a VXLAN made by hand.
//!
//! client -> n1 (routes) -> VXLAN -> n2 (bridge) -> a namespace with the server. This is the kernel's own way to carry
//! a packet to a container on another host, with nothing that chooses a backend.

use std::path::Path;

use anyhow::Context;
use lab::{Lab, Options};

/// Network of the hand-made VXLAN; n1 is .1, the server .2.
const SERVER: &str = "10.99.0.2";
const PORT: &str = "80";

/// Makes the lab; answers it with the address that the client asks.
pub(super) fn lab(name: &str, programs: &Path) -> anyhow::Result<(Lab, String)> {
    let lab = Lab::new(
        name,
        Options {
            nodes: 2,
            clients: 1,
            bin_dir: Some(programs.to_owned()),
            ..Options::default()
        },
    )?;
    let (n1, n2) = (lab.host("n1")?, lab.host("n2")?);
    let (a, b) = (n1.v4(), n2.v4());
    // nolearning with one entry each: what a control plane would have written.
    let vxlan = |local, remote| {
        format!("ip link add vx0 type vxlan id 99 local {local} remote {remote} dev eth0 dstport 4789 nolearning")
    };
    for line in [
        vxlan(a, b).as_str(),
        "ip link set vx0 up",
        "ip addr add 10.99.0.1/24 dev vx0",
    ] {
        n1.sh(line)?.ok()?;
    }
    n1.run(&["sh", "-c", "echo 1 >/proc/sys/net/ipv4/ip_forward"])?.ok()?;
    let netns = n2.make_netns("backend")?;
    for line in [
        vxlan(b, a).as_str(),
        "ip link add br0 type bridge stp_state 0 forward_delay 0",
        "ip link set vx0 master br0 up",
        "ip link set br0 up",
        "ip link add veth0 type veth peer name eth0 netns backend",
        "ip link set veth0 master br0 up",
        // The same room for the inner packet on the whole path (RFC 7348: 50 octets of overhead on IPv4).
        "ip -n backend link set eth0 mtu 1450 up",
        "ip -n backend addr add 10.99.0.2/24 dev eth0",
        "ip -n backend route add default via 10.99.0.1",
    ] {
        n2.sh(line)?.ok()?;
    }
    n2.serve_in_netns(&netns, "server", &["lab-tool", "serve", "--port", PORT])?;
    let client = lab.client()?;
    client.sh(&format!("ip route add 10.99.0.0/24 via {a}"))?.ok()?;
    client
        .run(&["lab-tool", "tally", "--to", &format!("{SERVER}:{PORT}"), "-n", "3"])?
        .json::<lab::wire::Tally>()
        .and_then(|t| if t.ok() == 3 { Ok(()) } else { anyhow::bail!("{t}") })
        .context("the hand-made VXLAN does not carry")?;
    Ok((lab, format!("{SERVER}:{PORT}")))
}
