//! Published ports, and what the service's name leads to.

use clap::{Args, ValueEnum};
use model::{
    ApiError, PortSpec, ServiceSpec,
    spec::{EndpointMode, Lb},
};

#[derive(Debug, Args)]
pub(super) struct PublishFlags {
    /// Port to publish: 80, 80:8080 (on the nodes, then in the tasks), 53/udp, 3868/sctp (not while a node balances by
    /// eBPF), auto:80 (a free one of 30000-32767),
    /// 192.0.2.1:80, [2001:db8::1]:80 or eth0:80 (there alone), or the long form
    /// published=80,target=8080,protocol=tcp,mode=host (on the nodes of its tasks alone); may be repeated.
    #[arg(short, long, value_name = "PORT")]
    publish: Vec<PortSpec>,
    /// What its name leads to: a virtual address (vip), or the addresses of its ready tasks (dnsrr); default: vip.
    #[arg(long, visible_alias = "mode", value_name = "vip|dnsrr")]
    endpoint_mode: Option<Leads>,
    /// Who of its tasks gets a new flow: by hash of the client's address and port (maglev), in turn (rr; by weights of
    /// the nodes: wrr), the one with the fewest flows (lc, wlc), by hash of the client's address (sh); default: maglev.
    /// Only maglev while a node balances by eBPF. A node's weight is its label netd.weight (1).
    #[arg(long, value_name = "maglev|rr|wrr|lc|wlc|sh")]
    lb: Option<Lb>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Leads {
    Vip,
    Dnsrr,
}

impl PublishFlags {
    pub(super) fn apply(&self, spec: &mut ServiceSpec) -> Result<(), ApiError> {
        if !self.publish.is_empty() {
            spec.publish.clone_from(&self.publish);
        }
        match self.endpoint_mode {
            Some(Leads::Vip) => spec.endpoint_mode = EndpointMode::Vip,
            Some(Leads::Dnsrr) => spec.endpoint_mode = EndpointMode::Dnsrr,
            None => {}
        }
        spec.lb = self.lb.unwrap_or(spec.lb);
        Ok(())
    }
}
