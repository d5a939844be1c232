//! Progress on standard error: a spinner on a terminal, changed lines anywhere else.

use std::{
    io::{self, IsTerminal},
    time::Duration,
};

use indicatif::{ProgressBar, ProgressStyle};

use crate::output::{self, Format, Output};

/// What is going on, for the user's eyes. Cleared when dropped.
pub(crate) struct Progress {
    bar: Option<ProgressBar>,
    silent: bool,
    last: String,
}

impl Progress {
    pub(crate) fn new(out: Output) -> Self {
        let silent = out.format == Format::Name;
        let bar = (!silent && io::stderr().is_terminal()).then(|| {
            let bar = ProgressBar::new_spinner();
            if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} ({elapsed})") {
                bar.set_style(style);
            }
            bar.enable_steady_tick(Duration::from_millis(100));
            bar
        });
        Progress {
            bar,
            silent,
            last: String::new(),
        }
    }

    /// Shows what is waited for; off a terminal only when it changed.
    pub(crate) fn say(&mut self, text: &str) {
        if self.last == text {
            return;
        }
        text.clone_into(&mut self.last);
        match &self.bar {
            Some(bar) => bar.set_message(text.to_owned()),
            None if self.silent => {}
            None => output::stderr(&format!("{text}\n")),
        }
    }

    /// Prints a line that stays.
    pub(crate) fn note(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.println(text),
            None => output::stderr(&format!("{text}\n")),
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
