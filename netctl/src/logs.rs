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
}

/// Prints a line each; `-o json`: an object each.
pub(crate) async fn run(cx: &Context, path: &str, args: &LogArgs) -> Run {
    let mut ask = LogsAsk {
        tail: args.tail,
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
            text.push_str(&shown(cx.out.format, line)?);
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

/// `web.1@host | text`
fn shown(format: Format, line: &LogLine) -> Result<String, ApiError> {
    match format {
        Format::Json => output::line(line),
        Format::Name => Ok(format!("{}\n", line.line)),
        Format::Table | Format::Wide => {
            let host = match line.hostname.is_empty() {
                true => line.node.to_string(),
                false => line.hostname.clone(),
            };
            Ok(format!("{}@{host} | {}\n", line.task, line.line))
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
            line: "GET / 200".into(),
        };
        assert_eq!(shown(Format::Table, &line).unwrap(), "web.1@beta | GET / 200\n");
        assert_eq!(shown(Format::Name, &line).unwrap(), "GET / 200\n");
        let json = shown(Format::Json, &line).unwrap();
        assert!(
            json.starts_with('{') && json.ends_with("}\n") && json.lines().count() == 1,
            "{json}"
        );
        line.hostname.clear();
        assert_eq!(shown(Format::Wide, &line).unwrap(), "web.1@n2 | GET / 200\n");
    }
}
