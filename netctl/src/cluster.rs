//! `netctl cluster ...`

use std::time::Duration;

use clap::Subcommand;
use ipnet::Ipv4Net;
use model::api::{ClusterInit, ClusterInitAnswer, ClusterJoin, ClusterJoinAnswer, ClusterLeave, Discover, Discovered};
use model::intent::Availability;

use crate::{
    Run, backup,
    cli::{Context, ListArgs, duration},
    identity, managers,
    output::{Column, Table, cell, column},
    progress::Progress,
    settings,
};

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Make a cluster with this node as its manager.
    #[command(
        after_help = "Example:\n  netctl cluster init --advertise-addr 198.51.100.1\n\nPrints the command that the other nodes join with. When most managers are lost for good, run\nnetctl cluster init --force-new on one that is left: it goes on alone with all that it knows."
    )]
    Init {
        /// Begin the cluster that this manager is in anew, with this manager alone: for when most managers are lost for good.
        #[arg(long, conflicts_with_all = ["advertise_addr", "default_addr_pool", "default_addr_pool_mask_length", "set"])]
        force_new: bool,
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
        /// Seal managers' keys on disk; after a restart a manager asks for the key that is printed here.
        #[arg(long)]
        autolock: bool,
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
        /// Token, from netctl cluster token worker; - reads it from standard input.
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
        /// Whether it is given tasks from the beginning: active, pause or drain; a node that is known keeps what it has.
        #[arg(long, default_value = "active", hide_default_value = true, value_parser = crate::availability::word)]
        availability: Availability,
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
        after_help = "Example:\n  netctl cluster token worker\n  netctl cluster token worker -q     the token alone\n  netctl cluster token manager --rotate"
    )]
    Token(identity::Token),
    /// Hand the lead over to another manager.
    #[command(
        after_help = "Example:\n  netctl cluster transfer n2\n\nA manager that is stopped or leaves does so by itself."
    )]
    Transfer(managers::TransferArgs),
    /// Write all that the managers know, keys included, into a sealed file.
    #[command(
        after_help = "Example:\n  head -c 32 /dev/urandom > backup.key\n  netctl cluster backup cluster.netd --key-file backup.key"
    )]
    Backup(backup::BackupArgs),
    /// Make a cluster of this node alone from such a file; its nodes come back by themselves.
    #[command(
        after_help = "Example:\n  netctl cluster restore cluster.netd --key-file backup.key\n\nThis node must be in no cluster, and best has the address of a former manager: there the nodes look for one."
    )]
    Restore(backup::RestoreArgs),
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
    /// The cluster's CA: look at it, change it.
    #[command(subcommand)]
    Ca(identity::Ca),
    /// Open this manager after a restart, where autolock is on; the key is read from standard input.
    #[command(
        after_help = "Example:\n  netctl cluster unlock              asks for the key\n  netctl cluster unlock < FILE\n\nUntil then what this node forwards and answers goes on as it was last known."
    )]
    Unlock,
    /// Print the key that opens managers after a restart.
    #[command(
        after_help = "Example:\n  netctl cluster unlock-key\n  netctl cluster unlock-key --rotate\n\nnetctl cluster update autolock=true makes one."
    )]
    UnlockKey(identity::UnlockKey),
    /// Prove this node anew by a token, when it was away for too long to come back by itself. Its tasks stay.
    #[command(after_help = "Example:\n  netctl cluster renew TOKEN 198.51.100.1:2377")]
    Renew(identity::Renew),
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
    /// Where the others send VXLAN to: IPv4, with IPVS also IPv6; default: the advertised address.
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

pub(crate) async fn run(cx: &Context, verb: Verb) -> Run {
    match verb {
        Verb::Init {
            force_new: true,
            timeout,
            ..
        } => backup::force_new(cx, timeout).await,
        Verb::Init {
            force_new: false,
            addresses,
            data_path_port,
            default_addr_pool,
            default_addr_pool_mask_length,
            autolock,
            mut set,
            timeout,
        } => {
            let flag = |key: &str, value: Option<String>| value.map(|v| (key.to_owned(), v));
            set.extend(flag("default-addr-pool", default_addr_pool.map(|p| p.to_string())));
            let mask = default_addr_pool_mask_length.map(|m| m.to_string());
            set.extend(flag("default-addr-pool-mask-length", mask));
            set.extend(flag("data-path-port", data_path_port.map(|p| p.to_string())));
            set.extend(flag("autolock", autolock.then(|| "true".to_owned())));
            let body = ClusterInit {
                announce: addresses.announce,
                advertise_addr: addresses.advertise_addr,
                listen_addr: addresses.listen_addr,
                data_path_addr: addresses.data_path_addr,
                gossip_port: addresses.gossip_port,
                settings: settings::collect(set)?,
            };
            let answer: ClusterInitAnswer = slow(cx, timeout, "making the cluster", "/v1/cluster/init", &body).await?;
            let mut sentence = format!(
                "cluster {} is made; this node is {}, its manager\nto add a node, run on it:\n  netctl cluster join {} {}",
                answer.cluster, answer.node, answer.worker_token, answer.addr
            );
            if let Some(key) = &answer.unlock_key {
                sentence.push_str(&format!(
                    "\nafter a restart this manager is opened by: netctl cluster unlock\nkeep this key where no manager's disk is:\n  {key}"
                ));
            }
            cx.out.done(&sentence, &answer.cluster, &answer)
        }
        Verb::Join {
            token,
            addr,
            discover,
            addresses,
            availability,
            timeout,
        } => {
            let addr = addr.unwrap_or_default();
            let what = format!("joining at {}", discover.as_deref().unwrap_or(&addr));
            let body = ClusterJoin {
                token: identity::typed_token(token)?,
                addr,
                discover,
                announce: addresses.announce,
                advertise_addr: addresses.advertise_addr,
                listen_addr: addresses.listen_addr,
                data_path_addr: addresses.data_path_addr,
                gossip_port: addresses.gossip_port,
                availability,
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
        Verb::Members(list) => managers::members(cx, &list).await,
        Verb::Token(args) => identity::token(cx, args).await,
        Verb::Ca(verb) => identity::ca(cx, verb).await,
        Verb::Unlock => identity::unlock(cx).await,
        Verb::UnlockKey(args) => identity::unlock_key(cx, args).await,
        Verb::Renew(args) => identity::renew(cx, args).await,
        Verb::Transfer(args) => managers::transfer(cx, args).await,
        Verb::Backup(args) => backup::backup(cx, args).await,
        Verb::Restore(args) => backup::restore(cx, args).await,
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
