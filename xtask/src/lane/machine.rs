//! A guest: a process that writes lines, from its first to its last.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::Context;

/// Lines of the kernel's console that are kept to be shown when something went wrong.
const CONSOLE_LINES: usize = 60;

/// Ends the guest however the lane ends.
#[derive(Debug)]
pub(super) struct Machine(Child);

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// How a guest ended.
#[derive(Debug)]
pub(super) struct Ended {
    /// Of its process; `None`: its time was over.
    pub(super) status: Option<ExitStatus>,
    /// The last lines of its kernel.
    pub(super) console: String,
}

enum Line {
    /// Of the script.
    Said(String),
    /// Of the kernel, or of what it runs in.
    Console(String),
}

impl Machine {
    /// Starts it. Its standard output is the script's, its standard error the kernel's.
    ///
    /// # Errors
    ///
    /// When the program cannot be run.
    pub(super) fn start(command: &mut Command) -> std::io::Result<Machine> {
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().map(Machine)
    }

    /// Calls `each` with every line of the script until the guest has ended, or the time is over and it was ended.
    ///
    /// # Errors
    ///
    /// When it cannot be waited for.
    pub(super) fn follow(mut self, limit: Duration, each: &mut dyn FnMut(&str)) -> anyhow::Result<Ended> {
        let start = Instant::now();
        let (send, lines) = mpsc::channel();
        if let Some(stream) = self.0.stdout.take() {
            forward(stream, Line::Said, send.clone());
        }
        if let Some(stream) = self.0.stderr.take() {
            forward(stream, Line::Console, send.clone());
        }
        drop(send);
        let mut console = VecDeque::new();
        let status = loop {
            match lines.recv_timeout(limit.saturating_sub(start.elapsed())) {
                Ok(Line::Said(line)) => each(&line),
                Ok(Line::Console(line)) => {
                    if console.len() == CONSOLE_LINES {
                        console.pop_front();
                    }
                    console.push_back(line);
                }
                Err(RecvTimeoutError::Timeout) => break None,
                Err(RecvTimeoutError::Disconnected) => break Some(self.0.wait().context("waiting for the guest")?),
            }
        };
        let console: Vec<String> = console.into();
        Ok(Ended {
            status,
            console: console.join("\n"),
        })
    }
}

fn forward(stream: impl Read + Send + 'static, kind: fn(String) -> Line, to: mpsc::Sender<Line>) {
    std::thread::spawn(move || {
        let mut stream = BufReader::new(stream);
        let mut line = Vec::new();
        while stream.read_until(b'\n', &mut line).is_ok_and(|n| n > 0) {
            let text = String::from_utf8_lossy(&line);
            if to.send(kind(text.trim_end().to_owned())).is_err() {
                return;
            }
            line.clear();
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(script: &str, limit: Duration) -> (Vec<String>, Ended) {
        let machine = Machine::start(Command::new("sh").args(["-c", script])).unwrap();
        let mut said = Vec::new();
        let ended = machine.follow(limit, &mut |line| said.push(line.to_owned())).unwrap();
        (said, ended)
    }

    #[test]
    fn what_the_script_says_is_told_apart_from_the_console() {
        let (said, ended) = run("echo a; echo k >&2; printf 'b\\r\\n'; exit 3", Duration::from_secs(20));
        assert_eq!(
            (said, ended.console.as_str()),
            (vec!["a".to_owned(), "b".to_owned()], "k")
        );
        assert_eq!(ended.status.and_then(|s| s.code()), Some(3));
    }

    #[test]
    fn one_that_hangs_is_ended_and_its_last_words_are_kept() {
        let (said, ended) = run("echo a; echo stuck >&2; exec sleep 600", Duration::from_millis(300));
        assert_eq!((said, ended.console.as_str()), (vec!["a".to_owned()], "stuck"));
        assert!(ended.status.is_none());
    }

    #[test]
    fn of_a_talkative_console_the_end_is_kept() {
        let (_, ended) = run("seq 1 1000 >&2", Duration::from_secs(20));
        assert_eq!(ended.console.lines().count(), CONSOLE_LINES);
        assert!(ended.console.ends_with("\n1000"));
    }
}
