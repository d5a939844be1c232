//! The wire between the hosts: a bridge in the switch, one veth a host.
//!
//! Nothing is made in the machine's own namespaces, not even for a moment: `ip` runs inside the switch and makes both
//! ends of a link in the namespaces where they belong.

use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::process::{Command, Stdio};

use anyhow::{Context, bail};

/// The switch's address on the underlay, every host's default gateway and resolver.
pub const SWITCH_V4: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);
/// As [`SWITCH_V4`], IPv6.
pub const SWITCH_V6: Ipv6Addr = Ipv6Addr::new(0xfd18, 0, 0, 0, 0, 0, 0, 1);
/// An address beyond the gateway: "the outside" for tasks.
pub const OUTSIDE_V4: Ipv4Addr = Ipv4Addr::new(198, 19, 0, 1);
/// As [`OUTSIDE_V4`], IPv6.
pub const OUTSIDE_V6: Ipv6Addr = Ipv6Addr::new(0xfd19, 0, 0, 0, 0, 0, 0, 1);

/// A host's place on the wire.
#[derive(Debug, Clone)]
pub(crate) struct Port {
    /// Name of the host and of its port on the bridge.
    pub(crate) name: String,
    pub(crate) init: u32,
    pub(crate) v4: Ipv4Addr,
    pub(crate) v6: Ipv6Addr,
}

/// Underlay addresses by place: nodes from .11, clients from .101.
pub(crate) fn address(place: u8) -> (Ipv4Addr, Ipv6Addr) {
    (
        Ipv4Addr::new(198, 18, 0, place),
        Ipv6Addr::new(0xfd18, 0, 0, 0, 0, 0, 0, u16::from(place)),
    )
}

/// Links, and addresses of IPv4, of IPv6 or of both.
pub(crate) fn build(switch: u32, ports: &[Port], (ipv4, ipv6): (bool, bool)) -> anyhow::Result<()> {
    // No spanning tree and no snooping: a port carries from the first packet.
    let mut lines = vec![
        "link set lo up".to_owned(),
        "link add br0 type bridge stp_state 0 forward_delay 0 mcast_snooping 0".to_owned(),
        "link set br0 up".to_owned(),
    ];
    if ipv4 {
        lines.push(format!("addr add {SWITCH_V4}/24 dev br0"));
        lines.push(format!("addr add {OUTSIDE_V4}/32 dev lo"));
    }
    if ipv6 {
        lines.push(format!("addr add {SWITCH_V6}/64 dev br0 nodad"));
        lines.push(format!("addr add {OUTSIDE_V6}/128 dev lo nodad"));
    }
    for Port { name, init, .. } in ports {
        lines.push(format!("link add {name} type veth peer name eth0 netns {init}"));
        lines.push(format!("link set {name} master br0 up"));
    }
    ip(switch, &lines)?;
    for port in ports {
        let mut lines = vec!["link set lo up".to_owned(), "link set eth0 up".to_owned()];
        if ipv4 {
            lines.push(format!("addr add {}/24 dev eth0", port.v4));
            lines.push(format!("route add default via {SWITCH_V4}"));
        }
        if ipv6 {
            lines.push(format!("addr add {}/64 dev eth0 nodad", port.v6));
            lines.push(format!("route add default via {SWITCH_V6}"));
        }
        ip(port.init, &lines)?;
    }
    Ok(())
}

/// Takes the host's port on the bridge down or up: as if its cable were pulled.
pub(crate) fn set_link(switch: u32, port: &str, up: bool) -> anyhow::Result<()> {
    ip(switch, &[format!("link set {port} {}", if up { "up" } else { "down" })])
}

/// Runs a batch of `ip` in the network namespace of a process; process numbers in it are those of the caller.
fn ip(init: u32, lines: &[String]) -> anyhow::Result<()> {
    let mut child = Command::new("nsenter")
        .args(["-t", &init.to_string(), "-n", "--", "ip", "-batch", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("running ip in a host; try: install iproute2 and util-linux")?;
    let mut stdin = child.stdin.take().context("ip takes no input")?;
    let batch = lines.iter().map(|l| format!("{l}\n")).collect::<String>();
    // When ip has ended early, its message below is the better reason.
    let _ = stdin.write_all(batch.as_bytes());
    drop(stdin);
    let out = child.wait_with_output().context("waiting for ip")?;
    if !out.status.success() {
        bail!(
            "ip refused one of:\n{batch}{}",
            String::from_utf8_lossy(&out.stderr).trim_end()
        );
    }
    Ok(())
}

/// `a:p`, with brackets around IPv6.
pub(crate) fn socket_address(ip: IpAddr, port: u16) -> String {
    std::net::SocketAddr::new(ip, port).to_string()
}
