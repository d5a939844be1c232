//! A cluster in a lab, in the fewest steps: for tests and benchmarks that begin where one exists.

use std::time::Duration;

use anyhow::Context;
use serde_json::Value;

use crate::host::{Host, Lab};
use crate::wait::eventually;

impl Lab {
    /// Starts netd and netd-run on every node, makes a cluster of the first and lets the others join.
    ///
    /// # Errors
    ///
    /// When a step fails, or when the nodes do not see each other as ready within 40 s.
    pub fn form_cluster(&self) -> anyhow::Result<()> {
        let (first, others) = self.nodes().split_first().context("a cluster needs a node")?;
        for node in self.nodes() {
            node.start_netd()?;
        }
        first
            .netctl(&format!("cluster init --advertise-addr {}", first.address()))?
            .ok()?;
        let token = first.join_token()?;
        for node in others {
            node.netctl(&format!(
                "cluster join {token} {} --advertise-addr {}",
                first.at(2377),
                node.address()
            ))?
            .ok()?;
        }
        for node in self.nodes() {
            node.start_runner()?;
        }
        for node in self.nodes() {
            node.sees_ready(self.nodes().len(), Duration::from_secs(40))?;
        }
        Ok(())
    }
}

impl Host {
    /// The token that workers join with.
    ///
    /// # Errors
    ///
    /// When this node is no manager.
    pub fn join_token(&self) -> anyhow::Result<String> {
        Ok(self.netctl("cluster token worker -q")?.ok()?.stdout.trim().to_owned())
    }

    /// Waits until this node sees so many nodes as ready. Answers how long that took.
    ///
    /// # Errors
    ///
    /// When the time is over.
    pub fn sees_ready(&self, nodes: usize, limit: Duration) -> anyhow::Result<Duration> {
        eventually(&format!("{} to see {nodes} nodes ready", self.name()), limit, || {
            let seen: Value = self.netctl("node ls -o json")?.json()?;
            let ready = seen
                .as_array()
                .map_or(0, |all| all.iter().filter(|n| n["health"] == "ready").count());
            anyhow::ensure!(ready == nodes, "{ready} of {nodes} are ready");
            Ok(true)
        })
    }

    /// Makes a namespace on this host, attaches it to a network, and answers its addresses.
    ///
    /// # Errors
    ///
    /// When netd refuses.
    pub fn attach(&self, name: &str, network: &str, service: Option<&str>) -> anyhow::Result<Attached> {
        let netns = self.make_netns(name)?;
        let service = service.map(|s| format!(" --service {s}")).unwrap_or_default();
        let seen: Value = self
            .netctl(&format!(
                "endpoint add {name} --netns {netns} --network {network}{service} -o json"
            ))?
            .json()?;
        let text = |key: &str| seen[key].as_str().map(str::to_owned);
        Ok(Attached {
            v4: text("v4").context("the endpoint has no IPv4 address")?,
            v6: text("v6"),
            netns,
        })
    }
}

/// A namespace that is attached to a network.
#[derive(Debug, Clone)]
pub struct Attached {
    /// Its IPv4 address there.
    pub v4: String,
    /// Its IPv6 address there, when the network has IPv6.
    pub v6: Option<String>,
    /// Path of the namespace in its host.
    pub netns: String,
}
