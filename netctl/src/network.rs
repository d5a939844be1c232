//! `netctl network ...`

use clap::{Args, Subcommand};
use ipnet::{Ipv4Net, Ipv6Net};
use model::{
    ApiError, Code, Name, NetworkSpec, Vni,
    api::{Changed, NetworkView},
};

use crate::{
    Run,
    cli::{Context, ListArgs, WaitArgs},
    output::{Column, Table, cell, column, maybe, wide},
    progress::Progress,
    wait,
};

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Make a network on all nodes.
    #[command(
        after_help = "Examples:\n  netctl network create app\n  netctl network create app --subnet 10.77.0.0/16 --ipv6"
    )]
    Create(Create),
    /// List the networks.
    #[command(visible_alias = "list", after_help = "Example:\n  netctl network ls -o wide")]
    Ls(ListArgs),
    /// Show all about a network, as JSON.
    #[command(after_help = "Example:\n  netctl network inspect app")]
    Inspect {
        /// Name.
        name: Name,
    },
    /// Remove a network that nothing is attached to.
    #[command(visible_alias = "remove", after_help = "Example:\n  netctl network rm app")]
    Rm {
        /// Name.
        name: Name,
        #[command(flatten)]
        wait: WaitArgs,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Create {
    /// Name: a DNS label.
    name: Name,
    /// IPv4 subnet, /8 to /24; default: a free /16 of the cluster's pool.
    #[arg(long, value_name = "CIDR")]
    subnet: Option<Ipv4Net>,
    /// Give tasks IPv6 addresses too.
    #[arg(long)]
    ipv6: bool,
    /// IPv6 subnet, /48 to /104; implies --ipv6; default: a free /64 of the cluster's ULA prefix.
    #[arg(long, value_name = "CIDR")]
    subnet6: Option<Ipv6Net>,
    /// Nothing leaves it: no way out through the node, no names but the cluster's.
    #[arg(long)]
    internal: bool,
    /// MTU inside, octets; default: the underlay's less 50.
    #[arg(long, value_name = "OCTETS")]
    mtu: Option<u16>,
    /// Number on the wire, 1 to 16777215; default: a free one.
    #[arg(long, value_parser = vni, value_name = "NUMBER")]
    vni: Option<Vni>,
    #[command(flatten)]
    wait: WaitArgs,
}

fn vni(text: &str) -> Result<Vni, String> {
    let number: u32 = text
        .parse()
        .map_err(|_| format!("{text:?} is no number; try: --vni 4100"))?;
    Vni::try_from(number).map_err(|e| e.to_string())
}

pub(crate) async fn run(cx: &Context, verb: Verb) -> Run {
    match verb {
        Verb::Create(args) => create(cx, args).await,
        Verb::Ls(list) => {
            let networks: Vec<NetworkView> = cx.client.get("/v1/networks").await?;
            cx.out.table(&table(&networks), &list.filter)
        }
        Verb::Inspect { name } => {
            let view: NetworkView = cx.client.get(&format!("/v1/networks/{name}")).await?;
            cx.out.one(view.name.as_str(), &view)
        }
        Verb::Rm { name, wait } => {
            let path = format!("/v1/networks/{name}");
            let changed: Changed = cx.client.delete(&path).await?;
            settle(cx, &wait, &changed).await?;
            cx.out.done(&changed.message, name.as_str(), &changed)
        }
    }
}

async fn create(cx: &Context, args: Create) -> Run {
    let path = format!("/v1/networks/{}", args.name);
    let spec = spec(&args)?;
    let changed: Changed = cx.client.put(&path, &spec).await?;
    settle(cx, &args.wait, &changed).await?;
    cx.out.done(&changed.message, args.name.as_str(), &changed)
}

/// A subnet with host bits is a slip of the hand: which subnet was meant is asked, not guessed.
fn spec(args: &Create) -> Result<NetworkSpec, ApiError> {
    let slip = |flag: &str, given: String, meant: String| {
        ApiError::new(
            Code::Invalid,
            format!("{flag} {given} has host bits set"),
            format!("netctl network create {} {flag} {meant}", args.name),
        )
    };
    if let Some(n) = args.subnet.filter(|n| n.trunc() != *n) {
        return Err(slip("--subnet", n.to_string(), n.trunc().to_string()));
    }
    if let Some(n) = args.subnet6.filter(|n| n.trunc() != *n) {
        return Err(slip("--subnet6", n.to_string(), n.trunc().to_string()));
    }
    Ok(NetworkSpec {
        subnet: args.subnet,
        ipv6: args.ipv6 || args.subnet6.is_some(),
        subnet6: args.subnet6,
        internal: args.internal,
        mtu: args.mtu,
        vni: args.vni,
    })
}

async fn settle(cx: &Context, wait: &WaitArgs, changed: &Changed) -> Run {
    if !wait.detach {
        let mut progress = Progress::new(cx.out);
        wait::everywhere(cx, wait, changed.revision, &mut progress).await?;
    }
    Ok(())
}

const COLUMNS: &[Column] = &[
    column("NAME"),
    column("VNI"),
    column("SUBNET"),
    column("SUBNET6"),
    column("SERVICES"),
    column("ENDPOINTS"),
    wide("INTERNAL"),
    wide("MTU"),
    wide("BLOCKS"),
];

/// The table of networks, also on the status screen.
pub(crate) fn table(networks: &[NetworkView]) -> Table {
    let mut table = Table::new(COLUMNS);
    for n in networks {
        let services: Vec<&str> = n.services.iter().map(Name::as_str).collect();
        let blocks: Vec<String> = n
            .blocks
            .iter()
            .map(|(node, prefixes)| format!("{node}:{}", prefixes.join(",")))
            .collect();
        let cells = vec![
            cell(&n.name),
            cell(n.network.vni),
            cell(n.network.subnet),
            maybe(n.network.subnet6),
            cell(services.join(",")),
            cell(n.endpoints),
            cell(if n.network.internal { "yes" } else { "no" }),
            maybe(n.network.mtu),
            cell(blocks.join(" ")),
        ];
        table.row(&n.name, cells, n);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture;

    #[test]
    fn networks() {
        insta::assert_snapshot!(fixture::show(&table(&fixture::networks())));
    }

    #[test]
    fn numbers_on_the_wire() {
        assert_eq!(vni("4100").unwrap().get(), 4100);
        assert!(vni("0").is_err() && vni("16777216").is_err() && vni("x").is_err());
    }
}
