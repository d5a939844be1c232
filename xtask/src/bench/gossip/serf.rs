//! The contender: one serf agent a host, its LAN profile, read by `serf monitor`.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use lab::{Host, Lab, Options, Process, eventually};

use super::{Side, Told, Word};
use crate::packages;

const RPC: &str = "-rpc-addr=127.0.0.1:7373";

pub(super) struct Cluster {
    // Monitors end before the hosts that they look into.
    monitors: Vec<Child>,
    agents: Vec<Process>,
    lab: Lab,
    told: Receiver<Told>,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for m in &mut self.monitors {
            let _ = m.kill();
            let _ = m.wait();
        }
        self.agents.clear();
    }
}

impl Cluster {
    pub(super) fn new(programs: &Path, nodes: u8) -> anyhow::Result<Cluster> {
        packages::ensure(packages::SERF)?;
        let lab = Lab::new(
            "gossip-serf",
            Options {
                nodes,
                clients: 0,
                ipv6: false,
                bin_dir: Some(programs.to_owned()),
                ..Options::default()
            },
        )?;
        let (tell, told) = channel();
        let mut cluster = Cluster {
            monitors: Vec::new(),
            agents: Vec::new(),
            lab,
            told,
        };
        let seed = cluster.lab.host("n1")?.v4();
        for node in cluster.lab.nodes() {
            let (name, bind) = (format!("-node={}", node.name()), format!("-bind={}", node.v4()));
            let join = format!("-retry-join={seed}");
            let agent = node.spawn("serf", &["serf", "agent", &name, &bind, RPC, "-profile=lan", &join])?;
            cluster.agents.push(agent);
        }
        for node in cluster.lab.nodes() {
            eventually("serf to know everybody", Duration::from_secs(60), || {
                let seen = node.sh(&format!("serf members {RPC} -status=alive"))?.ok()?.stdout;
                let alive = seen.lines().count();
                ensure!(alive == usize::from(nodes), "{alive} of {nodes} on {}", node.name());
                Ok(true)
            })?;
        }
        for (by, node) in cluster.lab.nodes().iter().enumerate() {
            cluster.monitors.push(monitor(by, node, tell.clone())?);
        }
        // A monitor that has not said hello to its agent yet would miss the first event.
        let mut deaf: std::collections::BTreeSet<usize> = (0..cluster.lab.nodes().len()).collect();
        let until = Instant::now() + Duration::from_secs(30);
        while !deaf.is_empty() {
            ensure!(Instant::now() < until, "monitors of members {deaf:?} hear nothing");
            cluster.tell(0, "hello")?;
            while let Ok(t) = cluster.told.recv_timeout(Duration::from_millis(500)) {
                deaf.remove(&t.by);
            }
        }
        Ok(cluster)
    }
}

/// Reads what an agent hears.
fn monitor(by: usize, node: &Host, tell: Sender<Told>) -> anyhow::Result<Child> {
    let mut child = Command::new("nsenter")
        .args([
            "-t",
            &node.init_pid().to_string(),
            "-n",
            "--",
            "serf",
            "monitor",
            RPC,
            "-log-level=ERR",
        ])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .context("running serf monitor")?;
    let out = child.stdout.take().context("serf monitor says nothing")?;
    std::thread::spawn(move || {
        for line in BufReader::new(out).lines().map_while(Result::ok) {
            let at = Instant::now();
            let line = line.trim();
            if let Some(name) = line.strip_prefix("Name: ") {
                let what = Word::Event(name.trim_matches('"').to_owned());
                // Nobody listens any more when the bench is over.
                let _ = tell.send(Told { by, at, what });
            }
        }
    });
    Ok(child)
}

impl Side for Cluster {
    fn name(&self) -> &'static str {
        "serf"
    }

    fn tell(&mut self, by: usize, name: &str) -> anyhow::Result<()> {
        let node = self.lab.nodes().get(by).context("no such member")?;
        node.run(&["serf", "event", RPC, "-coalesce=false", name])?.ok()?;
        Ok(())
    }

    fn told(&self) -> &Receiver<Told> {
        &self.told
    }

    fn members(&self) -> usize {
        self.lab.nodes().len()
    }
}
