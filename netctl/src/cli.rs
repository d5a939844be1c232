//! The top of the command line and what every verb shares.

use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use model::client::{Client, DEFAULT_SOCKET, SOCKET_ENV, Target};

use crate::{
    cluster, endpoint, network, node,
    output::{self, Filter, Format, Output},
    service, status, task,
};

const EXAMPLES: &str = "\
Examples:
  netctl cluster init                                  on the first node
  netctl cluster join TOKEN 198.51.100.1:2377          on the others
  netctl network create app
  netctl service create web --network app --replicas 2 -- nginx -g 'daemon off;'
  netctl service publish 80                            :80 on every node
  netctl status --watch

Exit codes: 0 done, 1 error, 2 usage, 3 not true everywhere in time, 4 netd cannot be reached, 5 degraded.";

/// Networks, names, virtual addresses and published ports over many Linux hosts.
///
/// Verbs that change something wait until every living node has it; --detach does not wait. Tables go to standard
/// output, progress and errors to standard error.
#[derive(Debug, Parser)]
#[command(name = "netctl", version, after_help = EXAMPLES, arg_required_else_help = true)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) common: Common,
    #[command(subcommand)]
    pub(crate) noun: Noun,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Noun {
    /// Make, join, leave and look at the cluster.
    #[command(subcommand)]
    Cluster(cluster::Verb),
    /// The machines of the cluster.
    #[command(subcommand)]
    Node(node::Verb),
    /// Overlay networks.
    #[command(subcommand)]
    Network(network::Verb),
    /// Namespaces of this node that are attached to networks.
    #[command(subcommand)]
    Endpoint(endpoint::Verb),
    /// Services: tasks behind one name, one virtual address and published ports.
    #[command(subcommand)]
    Service(service::Verb),
    /// Tasks of all services.
    #[command(subcommand)]
    Task(task::Verb),
    /// Everything on one screen.
    Status(status::StatusArgs),
    /// List the managers that a registry knows.
    Discover(cluster::Discovery),
    /// Pass standard input and output on to netd's socket: the far end of ssh://.
    #[command(
        hide = true,
        after_help = "Example:\n  printf 'GET /v1/healthz HTTP/1.1\\r\\nHost: netd\\r\\nConnection: close\\r\\n\\r\\n' | netctl dial-stdio"
    )]
    DialStdio,
    /// Print a completion script for a shell.
    #[command(after_help = "Example:\n  netctl completion bash > /etc/bash_completion.d/netctl")]
    Completion {
        /// The shell.
        shell: clap_complete::Shell,
    },
}

/// Options of every verb.
#[derive(Debug, Args)]
#[command(next_help_heading = "Common options")]
pub(crate) struct Common {
    /// Which netd: the path of its Unix socket, or ssh://[user@]host[:port][/path] for one on another host, where netctl
    /// must be in PATH.
    #[arg(long, global = true, env = SOCKET_ENV, default_value = DEFAULT_SOCKET, value_name = "PATH|ssh://HOST")]
    pub(crate) socket: Target,
    /// How to print: table, wide (more columns), json (what netd answered) or name (names alone).
    #[arg(
        short,
        long,
        global = true,
        value_enum,
        default_value_t,
        value_name = "FORMAT",
        hide_possible_values = true
    )]
    pub(crate) output: Format,
    /// Print names alone; the same as -o name.
    #[arg(short, long, global = true)]
    pub(crate) quiet: bool,
}

/// Options of verbs that change something.
#[derive(Debug, Clone, Args)]
pub(crate) struct WaitArgs {
    /// Do not wait until it is true everywhere.
    #[arg(short, long)]
    pub(crate) detach: bool,
    /// How long to wait.
    #[arg(long, default_value = "60s", value_parser = duration, value_name = "TIME")]
    pub(crate) timeout: Duration,
}

/// Options of lists.
#[derive(Debug, Clone, Args)]
pub(crate) struct ListArgs {
    /// Show only rows whose column has this value, e.g. health=ready; may be repeated.
    #[arg(short, long, value_name = "COLUMN=VALUE")]
    pub(crate) filter: Vec<Filter>,
}

/// Said beside an answer that no leader has confirmed.
fn stale(why: &str) {
    output::stderr(&format!("note: what is shown may be old: {why}\n"));
}

/// What a verb works with.
pub(crate) struct Context {
    pub(crate) client: Client,
    pub(crate) out: Output,
}

impl Context {
    pub(crate) fn new(common: &Common) -> Self {
        let format = if common.quiet { Format::Name } else { common.output };
        Context {
            client: Client::to(common.socket.clone()).with_notice(stale),
            out: Output::new(format),
        }
    }
}

/// `500ms`, `10s`, `2m`, `1h`; a bare number is seconds.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let at = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(at);
    let bad = || format!("{text:?} is not a time; try: 500ms, 10s, 2m or 1h");
    let number: u64 = number.parse().map_err(|_| bad())?;
    let ms = match unit {
        "ms" => 1,
        "" | "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err(bad()),
    };
    number
        .checked_mul(ms)
        .filter(|ms| *ms <= 365 * 24 * 3_600_000)
        .map(Duration::from_millis)
        .ok_or_else(|| format!("{text:?} is longer than a year; try: 10s"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        for (text, ms) in [
            ("10s", 10_000),
            ("500ms", 500),
            ("2m", 120_000),
            ("1h", 3_600_000),
            ("7", 7_000),
            ("0s", 0),
        ] {
            assert_eq!(duration(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        for text in ["", "s", "-1s", "1d", "1.5s", "99999999999999999999s", "10000h"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }
}
