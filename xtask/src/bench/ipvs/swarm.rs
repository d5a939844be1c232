//! The contender `swarm`: what Docker Swarm's ingress mesh makes of a kernel, by hand.
//!
//! On each node a bridge to the outside (`gw`), a namespace with the network's own bridge and VXLAN device, whose neighbours
//! and forwarding entries stand for each remote endpoint, and on the ingress node a namespace (`sbox`) on both. The published
//! port is translated to that namespace on the host, marked there, given by the mark to a virtual server (rr, masquerading),
//! and its source is replaced by the namespace's address on the network, so that the answer comes back here: the backend does
//! not see its client. The settings of IPVS are Swarm's. Left out, in its favour: the chains of its filter table, and the
//! redirection of ports in the task's namespace.

use std::path::Path;

use anyhow::Context;
use lab::{Host, Lab, Options};

use super::{Side, answers, lines};

/// The ingress namespace and the task on the network; MACs are made from addresses, as theirs are.
const SBOX: (&str, &str) = ("10.0.0.2", "02:42:0a:00:00:02");
const TASK: (&str, &str) = ("10.0.0.4", "02:42:0a:00:00:04");
const PORT: u16 = 80;

pub(super) fn side(programs: &Path) -> anyhow::Result<Side> {
    let lab = Lab::new(
        "bench-swarm",
        Options {
            nodes: 2,
            clients: 1,
            bin_dir: Some(programs.to_owned()),
            ..Options::default()
        },
    )?;
    let (n1, n2) = (lab.host("n1")?, lab.host("n2")?);
    network(n1, "sbox", SBOX, 2, (n2, TASK))?;
    network(n2, "task", TASK, 3, (n1, SBOX))?;
    lines(n1, &ingress())?;
    n2.serve_in_netns("task", "server", &["lab-tool", "serve", "--port", &PORT.to_string()])?;
    let target = n1.at(PORT);
    answers(&lab, &target, SBOX.0.parse()?).context("Swarm's rules")?;
    Ok(Side { lab, target })
}

/// A node's part of the network, with one namespace on it, which is also `172.18.0.N` on the bridge to the outside.
fn network(
    node: &Host,
    netns: &str,
    (address, mac): (&str, &str),
    outside: u8,
    (peer, (peer_address, peer_mac)): (&Host, (&str, &str)),
) -> anyhow::Result<()> {
    node.make_netns(netns)?;
    node.make_netns("net")?;
    let (local, remote) = (node.v4(), peer.v4());
    lines(
        node,
        &format!(
            "
echo 1 >/proc/sys/net/ipv4/ip_forward
ip link add gw type bridge
ip addr add 172.18.0.1/16 dev gw
ip link set gw up
ip link add gw1 type veth peer name eth1 netns {netns}
ip link set gw1 master gw up
ip -n {netns} addr add 172.18.0.{outside}/16 dev eth1
ip -n {netns} link set eth1 up
ip -n {netns} route add default via 172.18.0.1

ip link add vx0 type vxlan id 4096 local {local} dstport 4789 learning proxy l2miss l3miss
ip link set vx0 netns net
ip -n net link add br0 type bridge stp_state 0 forward_delay 0
ip -n net addr add 10.0.0.1/24 dev br0
ip -n net link set br0 up
ip -n net link set vx0 master br0 up
ip -n net link add veth0 mtu 1450 type veth peer name eth0 netns {netns} address {mac} mtu 1450
ip -n net link set veth0 master br0 up
ip -n {netns} addr add {address}/24 dev eth0
ip -n {netns} link set eth0 up
ip -n net neigh replace {peer_address} lladdr {peer_mac} dev vx0 nud permanent
bridge -n net fdb replace {peer_mac} dev vx0 dst {remote} self permanent
"
        ),
    )
}

/// The rules of the ingress node.
fn ingress() -> String {
    let (sbox, task) = (SBOX.0, TASK.0);
    format!(
        "
iptables-legacy-restore <<END
*nat
:INGRESS - [0:0]
-A PREROUTING -m addrtype --dst-type LOCAL -j INGRESS
-A OUTPUT -m addrtype --dst-type LOCAL -j INGRESS
-A INGRESS -p tcp -m tcp --dport {PORT} -j DNAT --to-destination 172.18.0.2:{PORT}
-A INGRESS -j RETURN
-A POSTROUTING -o gw -m addrtype --src-type LOCAL -j MASQUERADE
-A POSTROUTING -s 172.18.0.0/16 ! -o gw -j MASQUERADE
COMMIT
END
nsenter --net=/run/netns/sbox iptables-legacy-restore <<END
*mangle
-A PREROUTING -p tcp -m tcp --dport {PORT} -j MARK --set-mark 0x100
COMMIT
*nat
-A POSTROUTING -d 10.0.0.0/24 -m ipvs --ipvs -j SNAT --to-source {sbox}
COMMIT
END
nsenter --net=/run/netns/sbox sh -e <<END
cd /proc/sys/net/ipv4
echo 1 >ip_forward
echo 1 >vs/conntrack
echo 0 >vs/conn_reuse_mode
echo 1 >vs/expire_nodest_conn
echo 1 >vs/expire_quiescent_template
ipvsadm -A -f 256 -s rr
ipvsadm -a -f 256 -r {task}:0 -m
END
"
    )
}
