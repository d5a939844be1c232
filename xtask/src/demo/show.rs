//! What the demo prints.

use std::fmt::Display;

use lab::wire::Tally;
use lab::{Host, Output};

use crate::ui::{bold, table, verdict};

/// Longest output of a command that is shown whole, in lines.
const LINES: usize = 24;

struct Row {
    step: usize,
    what: String,
    expected: String,
    measured: String,
    ok: bool,
}

/// The story so far.
#[derive(Default)]
pub(super) struct Show {
    step: usize,
    rows: Vec<Row>,
}

impl Show {
    pub(super) fn heading(&mut self, number: usize, title: &str) {
        self.step = number;
        println!("\n{}", bold(&format!("{number}. {title}")));
    }

    /// Runs a command of one line and shows it with its output.
    pub(super) fn run(&self, host: &Host, line: &str) -> anyhow::Result<Output> {
        let argv: Vec<&str> = line.split_whitespace().collect();
        self.argv(host, &argv)
    }

    /// As [`Show::run`], for words that hold blanks.
    pub(super) fn argv(&self, host: &Host, argv: &[&str]) -> anyhow::Result<Output> {
        let out = host.run(argv)?;
        show(&out);
        Ok(out)
    }

    /// Runs `lab-tool tally` and shows the command with a summary.
    pub(super) fn tally(&self, host: &Host, netns: Option<&str>, words: &str) -> anyhow::Result<Tally> {
        let line = format!("lab-tool tally {words}");
        let argv: Vec<&str> = line.split_whitespace().collect();
        let out = match netns {
            Some(netns) => host.in_netns(netns, &argv)?,
            None => host.run(&argv)?,
        };
        println!("  {}", out.command);
        let tally: Tally = out.json()?;
        println!("    {tally}");
        Ok(tally)
    }

    /// Records what was measured beside what was promised.
    pub(super) fn expect(&mut self, what: &str, expected: impl Display, measured: impl Display, ok: bool) {
        let row = Row {
            step: self.step,
            what: what.to_owned(),
            expected: expected.to_string(),
            measured: measured.to_string(),
            ok,
        };
        println!("  -> {}: {} ({})", row.what, first_line(&row.measured), verdict(ok));
        self.rows.push(row);
    }

    /// Records that every try was answered and the client's address was seen by the backend.
    pub(super) fn answered(&mut self, what: &str, tally: &Tally) {
        let ok = tally.errors() == 0 && tally.tried > 0 && tally.address_kept == tally.ok();
        self.expect(what, "all answered, client address kept", tally, ok);
    }

    /// How many expectations were not met.
    pub(super) fn short(&self) -> usize {
        self.rows.iter().filter(|r| !r.ok).count()
    }

    pub(super) fn table(&self) -> String {
        let mut rows = vec![
            ["step", "what", "expected", "verdict", "measured"]
                .map(str::to_owned)
                .to_vec(),
        ];
        for row in &self.rows {
            rows.push(vec![
                row.step.to_string(),
                row.what.clone(),
                row.expected.clone(),
                // Without colour here: escapes would disturb the columns.
                if row.ok { "ok" } else { "FELL SHORT" }.to_owned(),
                first_line(&row.measured).to_owned(),
            ]);
        }
        table(&rows)
    }
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}

fn show(out: &Output) {
    println!("  {}", bold(&out.command));
    let all = out.all();
    for line in all.lines().take(LINES) {
        println!("    {line}");
    }
    if all.lines().count() > LINES {
        println!("    ... {} more lines", all.lines().count() - LINES);
    }
    if !out.success() {
        println!("    (exit {})", out.code);
    }
}
