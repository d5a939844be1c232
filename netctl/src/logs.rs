//! `netctl service logs` and `netctl task logs`

use std::{collections::BTreeSet, time::Duration};

use clap::Args;
use model::{
    ApiError,
    api::{LogLine, Logs, LogsAsk},
};

use crate::{
    Run,
    cli::Context,
    output::{self, Format},
    when,
};

/// Between two questions while a log is followed.
const PAUSE: Duration = Duration::from_millis(250);

#[derive(Debug, Args)]
pub(crate) struct LogArgs {
    /// Go on with what they say from now on.
    #[arg(short, long)]
    follow: bool,
    /// Only so many of the last lines of each task.
    #[arg(short = 'n', long, value_name = "N")]
    tail: Option<u64>,
    /// Only what was written since then: 10m for the last ten minutes, or 2026-11-28T19:03:11Z (by each node's clock).
    #[arg(long, value_name = "TIME", value_parser = since)]
    since: Option<u64>,
    /// Begin each line with the time at which it was written (RFC 3339, UTC; - when it is not known).
    #[arg(short, long)]
    timestamps: bool,
}

fn since(text: &str) -> Result<u64, String> {
    when::since(text, when::now_ms())
}

/// Prints a line each; `-o json`: an object each.
pub(crate) async fn run(cx: &Context, path: &str, args: &LogArgs) -> Run {
    let mut ask = LogsAsk {
        tail: args.tail,
        since_ms: args.since,
        follow: args.follow,
        ..LogsAsk::default()
    };
    let mut told = BTreeSet::new();
    loop {
        let piece: Result<Logs, ApiError> = cx.client.post(path, &ask).await;
        let piece = match piece {
            Ok(piece) => piece,
            // A leader that changes is waited for: what follows is not lost.
            Err(e) if args.follow && e.retryable => {
                note(&mut told, &e.message);
                tokio::time::sleep(PAUSE).await;
                continue;
            }
            Err(e) => return Err(e),
        };
        let mut text = String::new();
        for line in &piece.lines {
            text.push_str(&shown(cx.out.format, args.timestamps, line)?);
        }
        if !text.is_empty() {
            output::stdout(&text)?;
        }
        piece.problems.iter().for_each(|p| note(&mut told, p));
        ask.after = piece.after;
        // Tasks that come later are read from their beginning.
        ask.tail = ask.tail.filter(|_| ask.after.is_empty());
        if piece.more {
            continue;
        }
        if !args.follow {
            return Ok(());
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Once each.
fn note(told: &mut BTreeSet<String>, what: &str) {
    if told.insert(what.to_owned()) {
        output::stderr(&format!("note: {what}\n"));
    }
}

/// `2026-11-28T19:03:11.042Z web.1@host | text`
fn shown(format: Format, timestamps: bool, line: &LogLine) -> Result<String, ApiError> {
    let at = line.at_ms.map_or("-".to_owned(), when::rfc3339);
    let at = if timestamps { format!("{at} ") } else { String::new() };
    match format {
        Format::Json => output::line(line),
        Format::Name => Ok(format!("{at}{}\n", line.line)),
        Format::Table | Format::Wide => {
            let host = match line.hostname.is_empty() {
                true => line.node.to_string(),
                false => line.hostname.clone(),
            };
            Ok(format!("{at}{}@{host} | {}\n", line.task, line.line))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines() {
        let mut line = LogLine {
            task: "web.1".parse().unwrap(),
            node: model::NodeId(2),
            hostname: "beta".into(),
            at_ms: Some(1_795_892_591_042),
            line: "GET / 200".into(),
        };
        assert_eq!(shown(Format::Table, false, &line).unwrap(), "web.1@beta | GET / 200\n");
        assert_eq!(shown(Format::Name, false, &line).unwrap(), "GET / 200\n");
        let json = shown(Format::Json, false, &line).unwrap();
        assert!(
            json.starts_with('{') && json.ends_with("}\n") && json.lines().count() == 1,
            "{json}"
        );
        let stamped = "2026-11-28T19:03:11.042Z web.1@beta | GET / 200\n";
        assert_eq!(shown(Format::Table, true, &line).unwrap(), stamped);
        line.at_ms = None;
        assert_eq!(shown(Format::Name, true, &line).unwrap(), "- GET / 200\n");
        line.hostname.clear();
        assert_eq!(shown(Format::Wide, false, &line).unwrap(), "web.1@n2 | GET / 200\n");
    }
}
