//! netd's side: real daemons, read through their sockets.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use anyhow::Context;
use lab::{Host, Lab, Options};
use model::NodeId;
use model::api::{EndpointsSeen, NodeHealth, NodesSeen};

use super::limit::Limits;
use super::{Side, Told, Word};
use crate::bench::{figure::Figure, mib, process};

/// Share of a CPU that a slow node has.
const SLOW: f64 = 0.05;
/// Nodes that are slowed.
const SLOWED: usize = 5;

pub(super) struct Cluster {
    lab: Lab,
    told: Receiver<Told>,
}

fn lab(name: &str, programs: &Path, nodes: u8) -> anyhow::Result<Lab> {
    let lab = Lab::new(
        name,
        Options {
            nodes,
            clients: 0,
            ipv6: false,
            bin_dir: Some(programs.to_owned()),
            ..Options::default()
        },
    )?;
    lab.form_cluster()?;
    Ok(lab)
}

/// Ids by place: the node that joined first is the first. The log gives ids in the order of joining.
fn place(id: NodeId) -> usize {
    usize::try_from(id.0).unwrap_or(usize::MAX).saturating_sub(1)
}

impl Cluster {
    pub(super) fn new(programs: &Path, nodes: u8) -> anyhow::Result<Cluster> {
        let lab = lab("gossip-netd", programs, nodes)?;
        lab.host("n1")?
            .netctl("network create bench --subnet 10.88.0.0/16")?
            .ok()?;
        let (tell, told) = channel();
        for (by, node) in lab.nodes().iter().enumerate() {
            watch_rows(by, node, tell.clone())?;
            watch_nodes(by, node, tell.clone())?;
        }
        Ok(Cluster { lab, told })
    }

    /// Switches a node's host off.
    pub(super) fn switch_off(&self, member: usize) -> anyhow::Result<()> {
        self.lab.nodes().get(member).context("no such node")?.power_cut()
    }

    /// CPU, memory and octets on the wire while nothing happens: the daemon that costs most.
    pub(super) fn idle(&self, time: Duration) -> anyhow::Result<Vec<Figure>> {
        let look = || -> anyhow::Result<Vec<(f64, f64, f64)>> { self.lab.nodes().iter().map(cost).collect() };
        let before = look()?;
        std::thread::sleep(time);
        let after = look()?;
        let seconds = time.as_secs_f64();
        let rate = |of: fn(&(f64, f64, f64)) -> f64| -> Vec<f64> {
            before
                .iter()
                .zip(&after)
                .map(|(b, a)| (of(a) - of(b)) / seconds)
                .collect()
        };
        let most = |all: Vec<f64>| all.into_iter().fold(0.0, f64::max);
        Ok(vec![
            Figure::own("gossip", "idle_cpu_pct", "% of a core", &[most(rate(|c| c.0)) * 100.0]),
            Figure::own("gossip", "rss_mib", "MiB", &[most(after.iter().map(|c| c.1).collect())]),
            Figure::own("gossip", "bytes_s", "octets/s", &[most(rate(|c| c.2))]),
        ])
    }
}

/// CPU seconds, MiB of memory, octets sent by a node's daemon since its start.
fn cost(node: &Host) -> anyhow::Result<(f64, f64, f64)> {
    let pid = node.netd_pid()?;
    let cpu = process::cpu_seconds(pid)?;
    let devices = std::fs::read_to_string(format!("/proc/{}/net/dev", node.init_pid())).context("reading counters")?;
    let sent = devices
        .lines()
        .find_map(|l| {
            l.trim()
                .strip_prefix("eth0:")?
                .split_whitespace()
                .nth(8)?
                .parse::<f64>()
                .ok()
        })
        .context("no eth0")?;
    Ok((cpu, mib(lab::resident(pid)?), sent))
}

impl Side for Cluster {
    fn name(&self) -> &'static str {
        "netd"
    }

    fn tell(&mut self, by: usize, name: &str) -> anyhow::Result<()> {
        let node = self.lab.nodes().get(by).context("no such node")?;
        node.attach(name, "bench", None)?;
        Ok(())
    }

    fn told(&self) -> &Receiver<Told> {
        &self.told
    }

    fn members(&self) -> usize {
        self.lab.nodes().len()
    }
}

/// The socket of a host's netd, from outside of the host.
fn socket(node: &Host) -> PathBuf {
    format!("/proc/{}/root/run/netd/netd.sock", node.init_pid()).into()
}

/// Reads a watch until it ends; each line goes to `take`.
fn watch(node: &Host, resource: &str, mut take: impl FnMut(&[u8], Instant) + Send + 'static) -> anyhow::Result<()> {
    let socket = socket(node);
    let mut stream = UnixStream::connect(&socket).with_context(|| format!("connecting to netd of {}", node.name()))?;
    write!(
        stream,
        "GET /v1/watch?resource={resource} HTTP/1.1\r\nHost: netd\r\nAccept: application/json\r\n\r\n"
    )
    .context("asking for a watch")?;
    std::thread::spawn(move || {
        // A line is one chunk of the answer; the chunks' lengths and the head are no JSON objects.
        for line in BufReader::new(stream).split(b'\n').map_while(Result::ok) {
            if line.first() == Some(&b'{') {
                take(&line, Instant::now());
            }
        }
    });
    Ok(())
}

fn watch_rows(by: usize, node: &Host, tell: Sender<Told>) -> anyhow::Result<()> {
    watch(node, "endpoints", move |line, at| {
        let seen: EndpointsSeen = serde_json::from_slice(line).unwrap_or_default();
        for endpoint in seen.changed {
            let what = Word::Event(endpoint.at.id.to_string());
            // Nobody listens any more when the bench is over.
            let _ = tell.send(Told { by, at, what });
        }
    })
}

fn watch_nodes(by: usize, node: &Host, tell: Sender<Told>) -> anyhow::Result<()> {
    let mut known: BTreeMap<NodeId, NodeHealth> = BTreeMap::new();
    watch(node, "nodes", move |line, at| {
        let seen: NodesSeen = serde_json::from_slice(line).unwrap_or_default();
        for (id, health) in &seen.nodes {
            let dead = |h: Option<&NodeHealth>| matches!(h, Some(NodeHealth::Down | NodeHealth::DaemonDown));
            if dead(Some(health)) && !dead(known.get(id)) {
                let what = Word::Dead(place(*id));
                let _ = tell.send(Told { by, at, what });
            }
        }
        known = seen.nodes;
    })
}

/// How many living nodes were held for dead while some had hardly any CPU.
pub(super) fn false_deaths(programs: &Path, nodes: u8, time: Duration) -> anyhow::Result<Figure> {
    let lab = lab("gossip-slow", programs, nodes)?;
    let (tell, told) = channel();
    for (by, node) in lab.nodes().iter().enumerate() {
        watch_nodes(by, node, tell.clone())?;
    }
    while told.try_recv().is_ok() {}
    let slow = lab.nodes().iter().rev().take(SLOWED);
    let pids: Vec<u32> = slow.map(Host::netd_pid).collect::<anyhow::Result<_>>()?;
    let _limits = Limits::new(&pids, SLOW)?;
    let until = Instant::now() + time;
    let mut deaths = 0.0;
    while let Ok(t) = told.recv_timeout(until.saturating_duration_since(Instant::now())) {
        eprintln!("    {:?} says member {}", t.what, t.by);
        deaths += 1.0;
    }
    Ok(Figure::own(
        "gossip",
        "false_deaths",
        &format!("in {:.1} min", time.as_secs_f64() / 60.0),
        &[deaths],
    ))
}
