//! Whether ports can be published: what the hosts of living nodes say, before the log is asked.

use std::collections::BTreeSet;

use cluster::state::Command;
use model::{ApiError, Code, NodeId, On, PortSpec};

use super::Manager;
use crate::{
    daemon::{Cluster, internal},
    rpc::{Answer, Ask},
};

impl Manager {
    /// Refuses a port that a process of any living node uses, and an address that none has. Of an automatic port the log
    /// is told which ones hosts use, so that it gives none of these.
    pub async fn port_free(&self, c: &Cluster, port: PortSpec) -> Result<(), ApiError> {
        if port.is_auto() {
            self.see_ports(c).await?;
            if port.on == On::All {
                return Ok(());
            }
        // One that is ours already is the log's to refuse.
        } else if c.intent().holders(&port).next().is_some() {
            return Ok(());
        }
        let (mut asked, mut here) = (0, 0);
        for (node, answer) in self.ask_all(c, Ask::PortFree(port)).await {
            asked += 1;
            match answer {
                Ok(Answer::Free) => here += 1,
                Ok(Answer::NotHere) => {}
                Ok(Answer::Taken { owner }) => return Err(taken(c, node, port, &owner)),
                Ok(Answer::Failed { why }) | Err(why) => {
                    return Err(ApiError::new(
                        Code::Unavailable,
                        format!("{node} cannot say whether port {} is free: {why}", port.key()),
                        "netctl node ls",
                    ));
                }
                Ok(_) => return Err(internal("port", format!("{node} gave an odd answer"))),
            }
        }
        let what = match port.on {
            On::All => return Ok(()),
            On::Address(a) => format!("the address {a}"),
            On::Device(d) => format!("a device {d} with an address"),
        };
        if asked > 0 && here == 0 {
            return Err(ApiError::new(
                Code::NotFound,
                format!("none of {asked} living nodes has {what}: {port} would answer nowhere"),
                "ip address show (on the nodes), or no address to publish on all",
            ));
        }
        Ok(())
    }

    /// Tells the log which ports it must not give. Always one command: a request that is done again has as many.
    async fn see_ports(&self, c: &Cluster) -> Result<(), ApiError> {
        let mut seen = BTreeSet::new();
        for (node, answer) in self.ask_all(c, Ask::PortsInUse).await {
            match answer {
                Ok(Answer::Ports { ports }) => seen.extend(ports),
                Ok(Answer::Failed { why }) | Err(why) => {
                    return Err(ApiError::new(
                        Code::Unavailable,
                        format!("{node} cannot say which ports are in use there: {why}"),
                        "netctl node ls",
                    ));
                }
                Ok(_) => return Err(internal("ports", format!("{node} gave an odd answer"))),
            }
        }
        self.propose(Command::SeePorts(seen.into_iter().collect())).await?;
        Ok(())
    }
}

fn taken(c: &Cluster, node: NodeId, port: PortSpec, owner: &str) -> ApiError {
    let hostname = c.intent().nodes.get(&node).map(|n| n.hostname.clone());
    let other = PortSpec {
        published: port.published.checked_add(8000).unwrap_or(8080),
        ..port
    };
    ApiError::new(
        Code::Conflict,
        format!(
            "port {} is already listened on by {owner} on node {node} ({})",
            port.key(),
            hostname.unwrap_or_default()
        ),
        format!("stop it there, or netctl service publish {other}"),
    )
}
