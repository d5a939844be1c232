//! `netctl cluster ...`

use std::time::Duration;

use clap::{Subcommand, ValueEnum};
use ipnet::Ipv4Net;
use model::api::{
    ClusterInit, ClusterInitAnswer, ClusterJoin, ClusterJoinAnswer, ClusterLeave, Discover, Discovered, MemberView,
    TokenAnswer,
};

use crate::{
    Run,
    cli::{Context, ListArgs, duration},
    node::health_cell,
    output::{Column, Table, cell, column, maybe, wide},
    progress::Progress,
    settings,
};

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Make a cluster with this node as its manager.
    #[command(
        after_help = "Example:\n  netctl cluster init --advertise-addr 198.51.100.1\n\nPrints the command that the other nodes join with."
    )]
    Init {
        #[command(flatten)]
        addresses: Addresses,
        /// UDP port of VXLAN on all nodes; default: 4789.
        #[arg(long, value_name = "PORT")]
        data_path_port: Option<u16>,
        /// Pool that networks without a subnet are cut from; default: 10.128.0.0/9.
        #[arg(long, value_name = "CIDR", alias = "default-pool")]
        default_addr_pool: Option<Ipv4Net>,
        /// Prefix length of what is cut from it; default: 16.
        #[arg(long, value_name = "LENGTH")]
        default_addr_pool_mask_length: Option<u8>,
        /// A setting that the cluster begins with, as netctl cluster update takes it; may be repeated.
        #[arg(long, value_name = "KEY=VALUE", value_parser = settings::pair)]
        set: Vec<(String, String)>,
        /// How long to wait for netd.
        #[arg(long, default_value = "60s", value_parser = duration, value_name = "TIME")]
        timeout: Duration,
    },
    /// Make this node a member of a cluster.
    #[command(
        after_help = "Example:\n  netctl cluster join TOKEN 198.51.100.1:2377\n  netctl cluster join TOKEN --discover etcd://198.51.100.9/production\n\nThe token is printed by netctl cluster token worker on a manager. It pins the cluster's CA:\nnothing secret is sent before the manager has proved that it holds it."
    )]
    Join {
        /// Token, from netctl cluster token worker.
        token: String,
        /// A manager.
        #[arg(
            value_name = "HOST[:PORT]",
            required_unless_present = "discover",
            conflicts_with = "discover"
        )]
        addr: Option<String>,
        /// Where managers can be found: nodes://a,10.0.0.[1:9], file:///path, dns://name, token://host/TOKEN,
        /// etcd://host/path, consul://host/path or zk://host/path. Each that is found is tried.
        #[arg(long, value_name = "URL")]
        discover: Option<String>,
        #[command(flatten)]
        addresses: Addresses,
        /// How long to wait for the manager.
        #[arg(long, default_value = "60s", value_parser = duration, value_name = "TIME")]
        timeout: Duration,
    },
    /// Take this node out of its cluster; its tasks are stopped and placed elsewhere.
    #[command(after_help = "Example:\n  netctl cluster leave")]
    Leave {
        /// Also when this is the last manager, or when managers cannot be told.
        #[arg(long)]
        force: bool,
        /// How long to wait for netd.
        #[arg(long, default_value = "60s", value_parser = duration, value_name = "TIME")]
        timeout: Duration,
    },
    /// List the members with their part in gossip and log.
    #[command(after_help = "Example:\n  netctl cluster members --filter role=manager")]
    Members(ListArgs),
    /// Print the token that new nodes join with.
    #[command(
        after_help = "Example:\n  netctl cluster token worker\n  netctl cluster token worker -q     the token alone"
    )]
    Token {
        /// What the new node becomes.
        #[arg(value_enum)]
        role: TokenRole,
    },
    /// Show the cluster and its settings.
    #[command(
        after_help = "Example:\n  netctl cluster inspect\n  netctl cluster inspect -o wide     ranges and what each setting does"
    )]
    Inspect(ListArgs),
    /// Change settings of the cluster, on all nodes, live.
    #[command(
        after_help = "Example:\n  netctl cluster update cert-expiry=720h node-grace=30s\n\nAll of them are changed, or none. netctl cluster inspect -o wide lists the keys and their ranges."
    )]
    Update(settings::Update),
}

/// Where a node is: options of init and join.
#[derive(Debug, clap::Args)]
pub(crate) struct Addresses {
    /// Address that the others reach this node by, or its device; needed where it has several. It may be one that only
    /// the others see (NAT). Without it, it follows the host's address.
    #[arg(long, value_name = "ADDR|DEVICE[:PORT]")]
    advertise_addr: Option<String>,
    /// Where the managers' RPC listens; default: 0.0.0.0:2377, or [cluster] listen.
    #[arg(long, value_name = "ADDR|DEVICE[:PORT]")]
    listen_addr: Option<String>,
    /// Where the others send VXLAN to, IPv4; default: the advertised address.
    #[arg(long, value_name = "ADDR|DEVICE")]
    data_path_addr: Option<String>,
    /// TCP and UDP port of gossip; default: 7946, or [cluster] gossip_port.
    #[arg(long, value_name = "PORT")]
    gossip_port: Option<u16>,
    /// Registry that this node is announced in while it is a manager: etcd://, consul:// or zk://, with ?ttl=30s.
    #[arg(long, value_name = "URL")]
    announce: Option<String>,
}

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  netctl discover etcd://198.51.100.9/production\n  netctl discover nodes://10.0.0.[1:9]:2377"
)]
pub(crate) struct Discovery {
    /// As for netctl cluster join --discover.
    url: String,
    #[command(flatten)]
    list: ListArgs,
}

/// `netctl discover URL`.
pub(crate) async fn discover(cx: &Context, args: Discovery) -> Run {
    let body = Discover { url: args.url };
    let found: Discovered = cx.client.post("/v1/discover", &body).await?;
    let mut table = Table::new(ADDRESSES);
    for a in &found.addresses {
        table.row(a, vec![cell(a)], a);
    }
    cx.out.table(&table, &args.list.filter)
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum TokenRole {
    /// Runs tasks.
    Worker,
}

pub(crate) async fn run(cx: &Context, verb: Verb) -> Run {
    match verb {
        Verb::Init {
            addresses,
            data_path_port,
            default_addr_pool,
            default_addr_pool_mask_length,
            mut set,
            timeout,
        } => {
            let flag = |key: &str, value: Option<String>| value.map(|v| (key.to_owned(), v));
            set.extend(flag("default-addr-pool", default_addr_pool.map(|p| p.to_string())));
            let mask = default_addr_pool_mask_length.map(|m| m.to_string());
            set.extend(flag("default-addr-pool-mask-length", mask));
            set.extend(flag("data-path-port", data_path_port.map(|p| p.to_string())));
            let body = ClusterInit {
                announce: addresses.announce,
                advertise_addr: addresses.advertise_addr,
                listen_addr: addresses.listen_addr,
                data_path_addr: addresses.data_path_addr,
                gossip_port: addresses.gossip_port,
                settings: settings::collect(set)?,
            };
            let answer: ClusterInitAnswer = slow(cx, timeout, "making the cluster", "/v1/cluster/init", &body).await?;
            let sentence = format!(
                "cluster {} is made; this node is {}, its manager\nto add a node, run on it:\n  netctl cluster join {} {}",
                answer.cluster, answer.node, answer.worker_token, answer.addr
            );
            cx.out.done(&sentence, &answer.cluster, &answer)
        }
        Verb::Join {
            token,
            addr,
            discover,
            addresses,
            timeout,
        } => {
            let addr = addr.unwrap_or_default();
            let what = format!("joining at {}", discover.as_deref().unwrap_or(&addr));
            let body = ClusterJoin {
                token,
                addr,
                discover,
                announce: addresses.announce,
                advertise_addr: addresses.advertise_addr,
                listen_addr: addresses.listen_addr,
                data_path_addr: addresses.data_path_addr,
                gossip_port: addresses.gossip_port,
            };
            let answer: ClusterJoinAnswer = slow(cx, timeout, &what, "/v1/cluster/join", &body).await?;
            let sentence = format!(
                "this node is {}, a {} of cluster {}",
                answer.node,
                crate::node::role_word(answer.role),
                answer.cluster
            );
            cx.out.done(&sentence, &answer.node.to_string(), &answer)
        }
        Verb::Leave { force, timeout } => {
            let body = ClusterLeave { force };
            let answer: serde_json::Value = slow(cx, timeout, "leaving", "/v1/cluster/leave", &body).await?;
            cx.out.done("this node has left its cluster", "", &answer)
        }
        Verb::Members(list) => {
            let members: Vec<MemberView> = cx.client.get("/v1/cluster/members").await?;
            cx.out.table(&members_table(&members), &list.filter)
        }
        Verb::Token {
            role: TokenRole::Worker,
        } => {
            let answer: TokenAnswer = cx.client.get("/v1/cluster/token?role=worker").await?;
            let sentence = format!(
                "to add a worker, run on it:\n  netctl cluster join {} {}",
                answer.token, answer.addr
            );
            cx.out.done(&sentence, &answer.token, &answer)
        }
        Verb::Inspect(list) => settings::inspect(cx, list).await,
        Verb::Update(args) => settings::update(cx, args).await,
    }
}

/// A request that takes netd a while.
async fn slow<T: serde::de::DeserializeOwned>(
    cx: &Context,
    timeout: Duration,
    what: &str,
    path: &str,
    body: &(impl serde::Serialize + Sync),
) -> Result<T, model::ApiError> {
    let mut progress = Progress::new(cx.out);
    progress.say(what);
    let client = cx.client.clone().with_timeout(timeout);
    client.post(path, body).await
}

const ADDRESSES: &[Column] = &[column("ADDRESS")];

const MEMBERS: &[Column] = &[
    column("ID"),
    column("HOSTNAME"),
    column("ROLE"),
    column("HEALTH"),
    column("ADDRESS"),
    column("LEADER"),
    wide("TERM"),
    wide("LOG"),
];

fn members_table(members: &[MemberView]) -> Table {
    let mut table = Table::new(MEMBERS);
    for m in members {
        let cells = vec![
            cell(m.id),
            cell(&m.hostname),
            cell(crate::node::role_word(m.role)),
            health_cell(m.health),
            maybe(m.addr.as_ref()),
            cell(if m.leader { "leader" } else { "" }),
            maybe(m.term),
            maybe(m.log_index),
        ];
        table.row(m.id, cells, m);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture;

    #[test]
    fn members() {
        insta::assert_snapshot!(fixture::show(&members_table(&fixture::members())));
    }
}
