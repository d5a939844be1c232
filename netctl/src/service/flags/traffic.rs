//! What becomes of a service's traffic on its way.

use std::{str::FromStr, time::Duration};

use clap::Args;
use ipnet::IpNet;
use model::{
    ApiError, Code, ServiceSpec,
    spec::{SourceIp, Timeouts},
};

use super::twice;
use crate::cli::duration;

#[derive(Debug, Args)]
pub(super) struct TrafficFlags {
    /// What its tasks see as the source of what comes by a published port: the client (preserve), or the node that it asked
    /// (masquerade; not while a node balances by eBPF); default: preserve.
    #[arg(long, value_name = "preserve|masquerade")]
    source_ip: Option<SourceIp>,
    /// Who reaches its published ports: clients of this network or address alone; may be repeated; all: everybody, the
    /// default. It is asked when a flow begins; not asked are a node of itself, and tasks on the service's networks. Not
    /// while a node balances by eBPF.
    #[arg(long, value_name = "CIDR|all", value_delimiter = ',')]
    allow_from: Vec<Source>,
    /// How long its flows are remembered without a packet: tcp=TIME (2h4m unless told), tcp-fin=TIME after the first FIN
    /// (2m), udp=TIME (5m; by a published port not longer than net.netfilter.nf_conntrack_udp_timeout_stream), or =usual.
    /// One network has one set: the longest of its services' counts, see netctl network inspect. Not while a node
    /// balances by eBPF.
    #[arg(long, value_name = "tcp=2h,udp=5m", value_delimiter = ',')]
    idle_timeout: Vec<Timeout>,
}

/// `192.0.2.0/24`, `192.0.2.7`, `all`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    All,
    Net(IpNet),
}

impl FromStr for Source {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        if s == "all" {
            return Ok(Source::All);
        }
        let address = s.parse::<std::net::IpAddr>().map(IpNet::from);
        let net: IpNet = s
            .parse()
            .or(address)
            .map_err(|_| format!("{s:?} is neither a network nor an address; try: --allow-from 192.0.2.0/24"))?;
        match net.trunc() == net {
            true => Ok(Source::Net(net)),
            false => Err(format!("{s} has host bits set; try: --allow-from {}", net.trunc())),
        }
    }
}

/// `tcp=15m`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Timeout {
    of: &'static str,
    seconds: Option<u32>,
}

impl FromStr for Timeout {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        const KINDS: [&str; 3] = ["tcp", "tcp-fin", "udp"];
        let (of, time) = s
            .split_once('=')
            .ok_or_else(|| format!("{s:?} is not KIND=TIME; try: --idle-timeout tcp=2h,udp=5m"))?;
        let of = KINDS
            .into_iter()
            .find(|k| *k == of)
            .ok_or_else(|| format!("{of:?} is none of {}; try: --idle-timeout tcp=2h", KINDS.join(", ")))?;
        if time == "usual" {
            return Ok(Timeout { of, seconds: None });
        }
        let time = duration(time)?;
        let whole = |t: Duration| u32::try_from(t.as_secs()).ok().filter(|_| t.subsec_millis() == 0);
        match whole(time) {
            Some(s @ 1..=Timeouts::MAX) => Ok(Timeout { of, seconds: Some(s) }),
            _ => Err(format!(
                "{s:?} is not whole seconds between 1 s and {} h; try: --idle-timeout {of}=2h",
                Timeouts::MAX / 3600
            )),
        }
    }
}

impl TrafficFlags {
    pub(super) fn apply(&self, spec: &mut ServiceSpec) -> Result<(), ApiError> {
        spec.source_ip = self.source_ip.unwrap_or(spec.source_ip);
        if !self.allow_from.is_empty() {
            spec.allow_from = match &*self.allow_from {
                [Source::All] => Default::default(),
                some => some.iter().map(net).collect::<Result<_, _>>()?,
            };
        }
        for (n, t) in self.idle_timeout.iter().enumerate() {
            if self.idle_timeout.iter().take(n).any(|before| before.of == t.of) {
                return Err(twice(&format!("--idle-timeout {}", t.of), "TIME"));
            }
            match t.of {
                "tcp" => spec.timeouts.tcp_s = t.seconds,
                "tcp-fin" => spec.timeouts.tcp_fin_s = t.seconds,
                _ => spec.timeouts.udp_s = t.seconds,
            }
        }
        Ok(())
    }
}

fn net(from: &Source) -> Result<IpNet, ApiError> {
    match from {
        Source::Net(n) => Ok(*n),
        Source::All => Err(ApiError::new(
            Code::Invalid,
            "--allow-from all lets everybody in, and others name some",
            "--allow-from all, or the networks alone",
        )),
    }
}
