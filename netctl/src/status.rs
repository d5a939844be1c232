//! `netctl status`: everything on one screen.

use std::{
    io::{self, IsTerminal},
    time::Duration,
};

use clap::Args;
use model::{
    ApiError,
    api::{BackendView, NodeHealth, NodeView, ServiceView, Status},
};
use tokio::time::sleep;

use crate::{
    Run,
    cli::Context,
    endpoint, network, node,
    output::{self, Cell, Column, Format, Output, Table, Tone, cell, column, paint},
    service,
};

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  netctl status\n  netctl status --watch\n  netctl status -o json")]
pub(crate) struct StatusArgs {
    /// Show it again whenever it changes, until interrupted.
    #[arg(short, long)]
    watch: bool,
}

/// Pause between two looks of `--watch`.
const LOOK: Duration = Duration::from_millis(500);

pub(crate) async fn run(cx: &Context, args: StatusArgs) -> Run {
    if !args.watch {
        let status: Status = cx.client.get("/v1/status").await?;
        return output::stdout(&render(&status, cx.out)?);
    }
    let terminal = io::stdout().is_terminal();
    let mut last = String::new();
    loop {
        // A daemon that restarts is waited for: that is what one watches.
        let text = match cx.client.get::<Status>("/v1/status").await {
            Ok(status) => render(&status, cx.out)?,
            Err(e) if e.retryable => format!("{}\n", e.message),
            Err(e) => return Err(e),
        };
        if text != last {
            // Home, then clear to the end of the screen (ECMA-48 CUP, ED): without a flicker.
            let clear = if terminal { "\x1b[H\x1b[J" } else { "" };
            output::stdout(&format!("{clear}{text}"))?;
            last = text;
        }
        sleep(LOOK).await;
    }
}

fn render(s: &Status, out: Output) -> Result<String, ApiError> {
    match out.format {
        Format::Json => {
            let mut text = serde_json::to_string_pretty(s).unwrap_or_default();
            text.push('\n');
            Ok(text)
        }
        Format::Name => Ok(format!("{}\n", s.cluster)),
        Format::Table | Format::Wide => screen(s, out),
    }
}

fn screen(s: &Status, out: Output) -> Result<String, ApiError> {
    let mut text = String::new();
    if s.me.is_none() {
        text.push_str("this node is in no cluster\ntry: netctl cluster init\ntry: netctl cluster join TOKEN ADDR\n");
        problems(&mut text, s, out);
        return Ok(text);
    }
    text.push_str(&format!("cluster {}\n", s.cluster));
    let leader = s
        .leader
        .and_then(|id| s.nodes.iter().find(|n| n.id == id))
        .map_or_else(|| paint("none known", Tone::Bad, out.color), label);
    text.push_str(&format!("leader {leader}\n"));
    let (line, tone) = revision(s);
    text.push_str(&format!("{}\n", paint(&line, tone, out.color)));
    section(&mut text, "nodes", &node::table(&s.nodes), out)?;
    if !s.networks.is_empty() {
        section(&mut text, "networks", &network::table(&s.networks), out)?;
    }
    if !s.services.is_empty() {
        section(&mut text, "services", &services(&s.services), out)?;
    }
    text.push_str(&format!(
        "\nkernel writes  {} in the last of {} reconciles, {} in all\n",
        s.writes.last, s.writes.runs, s.writes.total
    ));
    let drops = counters(s, true);
    if !drops.is_empty() {
        text.push_str(&format!("drops          {drops}\n"));
    }
    let others = counters(s, false);
    if !others.is_empty() {
        text.push_str(&format!("counters       {others}\n"));
    }
    problems(&mut text, s, out);
    Ok(text)
}

fn label(n: &NodeView) -> String {
    format!("{} ({})", n.id, n.hostname)
}

fn section(text: &mut String, title: &str, table: &Table, out: Output) -> Result<(), ApiError> {
    text.push_str(&format!("\n{title}\n"));
    for line in table.render(out, &[])?.lines() {
        text.push_str(&format!("  {line}\n"));
    }
    Ok(())
}

/// `revision 42 applied on 3/3 living nodes`, and who lags or is dead.
fn revision(s: &Status) -> (String, Tone) {
    let Some(converged) = s.converged else {
        let line = format!(
            "revision {} known, {} applied here; the other nodes cannot be asked about",
            s.revision, s.applied
        );
        return (line, Tone::Warn);
    };
    let (living, dead): (Vec<&NodeView>, Vec<&NodeView>) = s.nodes.iter().partition(|n| n.health == NodeHealth::Ready);
    let lag: Vec<String> = living
        .iter()
        .filter(|n| n.applied.is_none_or(|a| a < s.revision))
        .map(|n| label(n))
        .collect();
    let mut line = format!(
        "revision {} applied on {}/{} living nodes",
        s.revision,
        living.len() - lag.len(),
        living.len()
    );
    if !lag.is_empty() {
        line.push_str(&format!("; not yet on {}", lag.join(", ")));
    }
    if !dead.is_empty() {
        let names: Vec<String> = dead.iter().map(|n| label(n)).collect();
        line.push_str(&format!("; not counted: {}", names.join(", ")));
    }
    let tone = match (converged, dead.is_empty()) {
        (true, true) => Tone::Good,
        (true, false) => Tone::Warn,
        (false, _) => Tone::Bad,
    };
    (line, tone)
}

/// Counters by kind: those of dropped packets, or the others. The largest come first.
fn counters(s: &Status, drops: bool) -> String {
    let mut picked: Vec<(&String, &u64)> = s
        .counters
        .iter()
        .filter(|(k, _)| k.starts_with("drop") == drops)
        .collect();
    picked.sort_by(|a, b| b.1.cmp(a.1).then(a.0.cmp(b.0)));
    let texts: Vec<String> = picked
        .iter()
        .map(|(k, v)| {
            let bare = k.trim_start_matches("drops").trim_start_matches("drop");
            let bare = bare.trim_start_matches(['_', '.', '-', '/', ':', ' ']);
            let name = if drops && !bare.is_empty() { bare } else { k };
            format!("{name} {v}")
        })
        .collect();
    texts.join(", ")
}

fn problems(text: &mut String, s: &Status, out: Output) {
    let own = s.problems.iter().cloned();
    let others = s
        .nodes
        .iter()
        .filter(|n| !n.me)
        .flat_map(|n| n.problems.iter().map(|p| format!("{}: {p}", label(n))));
    let mut all: Vec<String> = own.chain(others).collect();
    all.extend(
        s.services
            .iter()
            .filter_map(|v| Some(format!("{}: {}", v.name, v.trouble()?))),
    );
    if !all.is_empty() {
        text.push_str("\nproblems\n");
    }
    for p in all {
        text.push_str(&format!("  {}\n", paint(&p, Tone::Bad, out.color)));
    }
}

const SERVICES: &[Column] = &[
    column("NAME"),
    column("HEALTHY"),
    column("VIPS / ADDRESSES"),
    column("PORTS / NODE"),
    column("STATE"),
    column("WHY OUT"),
];

/// A line a service, below it one a backend.
fn services(services: &[ServiceView]) -> Table {
    let mut table = Table::new(SERVICES);
    for s in services {
        let ports: Vec<String> = service::ports(&s.service).iter().map(ToString::to_string).collect();
        let head = vec![
            cell(&s.name),
            service::health_cell(s),
            cell(service::vips(&s.service).join(",")),
            cell(ports.join(",")),
            cell(""),
            cell(""),
        ];
        table.row(&s.name, head, s);
        for b in &s.backends {
            table.row(&b.endpoint, backend(b), b);
        }
    }
    table
}

fn backend(b: &BackendView) -> Vec<Cell> {
    let v4 = b.v4.map(|a| a.to_string());
    let v6 = b.v6.map(|a| a.to_string());
    let addresses: Vec<String> = v4.into_iter().chain(v6).collect();
    let (mark, tone) = if b.in_use {
        ("in", Tone::Good)
    } else {
        ("out", Tone::Bad)
    };
    vec![
        cell(format!("  {}", b.endpoint)),
        Cell::toned(mark, tone),
        cell(addresses.join(",")),
        cell(format!("{} {}", b.node, b.hostname).trim_end()),
        endpoint::state_cell(b.state),
        cell(b.why.as_deref().unwrap_or_default()),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture;

    const PLAIN: Output = Output {
        format: Format::Table,
        color: false,
    };

    #[test]
    fn the_screen() {
        insta::assert_snapshot!(screen(&fixture::status(), PLAIN).unwrap());
    }

    #[test]
    fn in_no_cluster() {
        let mut s = fixture::status();
        s.me = None;
        s.problems = vec!["no BTF: CONFIG_DEBUG_INFO_BTF is not set".into()];
        insta::assert_snapshot!(screen(&s, PLAIN).unwrap());
    }

    #[test]
    fn who_has_the_revision() {
        let mut s = fixture::status();
        for n in &mut s.nodes {
            n.health = NodeHealth::Ready;
            n.applied = Some(42);
        }
        assert_eq!(
            revision(&s),
            ("revision 42 applied on 3/3 living nodes".into(), Tone::Good)
        );
        s.nodes[1].applied = Some(40);
        s.nodes[2].health = NodeHealth::Down;
        s.converged = Some(false);
        let (line, tone) = revision(&s);
        assert_eq!(
            line,
            "revision 42 applied on 1/2 living nodes; not yet on n2 (beta); not counted: n3 (gamma)"
        );
        assert_eq!(tone, Tone::Bad);
        s.converged = None;
        assert!(revision(&s).0.contains("cannot be asked"));
    }

    #[test]
    fn colours_mark_what_is_wrong() {
        let color = Output {
            format: Format::Table,
            color: true,
        };
        let text = screen(&fixture::status(), color).unwrap();
        assert!(text.contains("\x1b[31mdown\x1b[0m"), "{text}");
    }
}
