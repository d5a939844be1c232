//! Three managers.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, ensure};
use hyper::Method;
use lab::{DaemonOptions, Host, Lab, Options, eventually};
use model::api::{MemberView, Vote};

use super::{Cluster, Writer};
use crate::bench::mib;
use crate::bench::socket::Socket;

pub(in crate::bench) struct Managers {
    lab: Lab,
}

impl Managers {
    /// Three of them in a lab of that name, with so many hosts beside them; their logs lie in `disk`.
    pub(in crate::bench) fn new(name: &str, programs: &Path, disk: &Path, clients: u8) -> anyhow::Result<Managers> {
        let daemon = DaemonOptions {
            // Each host has its own.
            cluster: format!("log_dir = \"{}/{{name}}\"\n", disk.display()),
            ..DaemonOptions::default()
        };
        let lab = Lab::new(
            name,
            Options {
                nodes: 3,
                clients,
                ipv4: true,
                ipv6: false,
                bin_dir: Some(programs.to_owned()),
                daemon,
            },
        )?;
        for node in lab.nodes() {
            node.start_netd()?;
        }
        let n1 = lab.host("n1")?;
        n1.netctl(&format!("cluster init --advertise-addr {}", n1.v4()))?.ok()?;
        let token = n1.netctl("cluster token manager -q")?.ok()?.stdout.trim().to_owned();
        for node in lab.nodes().iter().skip(1) {
            let join = format!("cluster join {token} {} --advertise-addr {}", n1.at(2377), node.v4());
            node.netctl(&join)?.ok()?;
        }
        let ours = Managers { lab };
        ours.whole()?;
        Ok(ours)
    }

    /// The hosts.
    pub(in crate::bench) fn lab(&self) -> &Lab {
        &self.lab
    }

    pub(in crate::bench) fn node(&self, server: usize) -> anyhow::Result<&Host> {
        self.lab.nodes().get(server).context("no such manager")
    }

    fn members(&self) -> anyhow::Result<Vec<MemberView>> {
        let mut last = None;
        for node in self.lab.nodes() {
            match node.netctl("cluster members -o json").and_then(|o| o.json()) {
                Ok(members) => return Ok(members),
                Err(e) => last = Some(e),
            }
        }
        Err(last.context("no manager")?)
    }

    /// Waits until all three vote and one leads.
    fn whole(&self) -> anyhow::Result<()> {
        eventually("three voters", Duration::from_secs(30), || {
            let members = self.members()?;
            let votes = members
                .iter()
                .filter(|m| m.vote == Some(Vote::Voter) && m.reachable != Some(false));
            ensure!(votes.count() == 3 && members.iter().any(|m| m.leader), "{members:?}");
            Ok(true)
        })?;
        Ok(())
    }

    /// Who leads.
    pub(in crate::bench) fn leader(&self) -> anyhow::Result<usize> {
        let members = self.members()?;
        let leader = members.iter().find(|m| m.leader).context("nobody leads")?;
        let place = self.lab.nodes().iter().position(|n| n.name() == leader.hostname);
        place.context("the leader is none of the lab's hosts")
    }

    pub(super) fn kill(&self, server: usize) -> anyhow::Result<()> {
        self.node(server)?.kill_netd()
    }

    /// Starts a manager again and waits until it takes part; how long it took to be ready.
    pub(super) fn start(&self, server: usize) -> anyhow::Result<Duration> {
        let ready = self.node(server)?.start_netd()?;
        self.whole()?;
        Ok(ready)
    }

    /// Memory of the largest manager, MiB.
    pub(super) fn resident(&self) -> anyhow::Result<f64> {
        let mut most = 0.0f64;
        for node in self.lab.nodes() {
            most = most.max(mib(lab::resident(node.netd_pid()?)?));
        }
        Ok(most)
    }
}

impl Cluster for Managers {
    async fn writer(&self, server: usize) -> anyhow::Result<Writer> {
        Ok(Writer::Netd(Connection(Socket::connect(self.node(server)?).await?)))
    }
}

pub(super) struct Connection(Socket);

impl Connection {
    /// Sets a setting of the cluster: an entry of the log whose state is small.
    pub(super) async fn write(&mut self, n: u64) -> anyhow::Result<()> {
        let body = format!("{{\"set\":{{\"task-history-limit\":\"{}\"}}}}", n % 100 + 1);
        self.0.ask(Method::POST, "/v1/cluster/update", body).await?;
        Ok(())
    }
}
