//! The end-to-end tests: one program a story, two programs at a time.
//!
//! A story mostly waits: for a death to be confirmed, a grace to end, a certificate to grow old. Within a program one
//! lab at a time. Those that time something closely run alone, when the others are through.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::Mutex;
use std::time::Instant;

use anyhow::{Context, ensure};

use crate::build;
use crate::test::{Part, cargo_test};

/// At a time.
const WORKERS: usize = 2;
/// These run alone.
const ALONE: &[&str] = &["failures", "mesh"];
/// The longest one: what begins last should not be.
const FIRST: &str = "rolling";

/// Runs them all, or the tests whose name contains `filter`. Answers whether all passed.
///
/// # Errors
///
/// They could not be built, or their programs not be listed.
pub(crate) fn run(filter: Option<&str>, programs: &Path, parts: &mut Vec<Part>) -> anyhow::Result<bool> {
    let built = build::cargo()
        .args(["test", "--locked", "-p", "tests", "--no-run"])
        .status()
        .context("running cargo test")?;
    ensure!(built.success(), "the end-to-end tests could not be built");
    let (alone, together): (VecDeque<String>, _) = stories()?.into_iter().partition(|s| ALONE.contains(&s.as_str()));
    let run = Run {
        filter,
        programs,
        done: Mutex::new((Vec::new(), true)),
    };
    run.all(together, WORKERS)?;
    run.all(alone, 1)?;
    let (mut done, well) = run.done.into_inner().unwrap_or_else(|e| e.into_inner());
    done.sort_by(|a, b| a.name.cmp(&b.name));
    parts.append(&mut done);
    Ok(well)
}

/// Their names: files of `tests/tests`, and `--lib` for the crate itself.
fn stories() -> anyhow::Result<Vec<String>> {
    let folder = build::root().join("tests/tests");
    let mut names = vec!["--lib".to_owned()];
    for entry in std::fs::read_dir(&folder).with_context(|| format!("listing {}", folder.display()))? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == "rs")
            && let Some(stem) = path.file_stem()
        {
            names.push(stem.to_string_lossy().into_owned());
        }
    }
    names.sort_by_key(|n| (n != FIRST, n.clone()));
    Ok(names)
}

struct Run<'a> {
    filter: Option<&'a str>,
    programs: &'a Path,
    /// What they came to, and whether all is well.
    done: Mutex<(Vec<Part>, bool)>,
}

impl Run<'_> {
    fn all(&self, stories: VecDeque<String>, workers: usize) -> anyhow::Result<()> {
        let queue = Mutex::new(stories);
        std::thread::scope(|scope| {
            let workers: Vec<_> = (0..workers)
                .map(|_| {
                    scope.spawn(|| {
                        loop {
                            let next = queue.lock().unwrap_or_else(|e| e.into_inner()).pop_front();
                            match next {
                                Some(story) => self.one(&story)?,
                                None => return anyhow::Ok(()),
                            }
                        }
                    })
                })
                .collect();
            for w in workers {
                w.join().map_err(|_| anyhow::anyhow!("a story's thread panicked"))??;
            }
            Ok(())
        })
    }

    fn one(&self, story: &str) -> anyhow::Result<()> {
        let what: &[&str] = match story {
            "--lib" => &["-p", "tests", "--lib"],
            story => &["-p", "tests", "--test", story],
        };
        let threads: Vec<&str> = self.filter.into_iter().chain(["--test-threads=1"]).collect();
        println!("... {story}");
        let (start, mut parts, mut lines) = (Instant::now(), Vec::new(), Vec::new());
        let well = cargo_test(what, &threads, self.programs, &mut parts, &mut |line| {
            lines.push(line.to_owned());
        })?;
        let mut done = self.done.lock().unwrap_or_else(|e| e.into_inner());
        // All at once: of two that run at a time each is to be read as one.
        for line in lines.iter().filter(|l| !l.trim().is_empty()) {
            println!("{line}");
        }
        let word = if well { "done" } else { "FAILED" };
        println!("... {story}: {word}, {:.0} s", start.elapsed().as_secs_f64());
        done.0.append(&mut parts);
        done.1 &= well;
        Ok(())
    }
}
