//! The same seed is the same run: in another process, on another thread, and from its script as text.

use std::{collections::BTreeSet, process::Command};

use sim::{Script, run};

fn hashes(threads: &str) -> BTreeSet<String> {
    let out = Command::new(env!("CARGO_BIN_EXE_sim"))
        .args(["--seeds", "24", "--from", "40", "--hashes", "--threads", threads])
        .output()
        .expect("the simulator runs");
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let text = String::from_utf8(out.stdout).expect("text");
    text.lines().map(str::to_owned).collect()
}

#[test]
fn two_processes_see_the_same() {
    let first = hashes("1");
    assert_eq!(first.len(), 24);
    assert_eq!(first, hashes("1"));
    assert_eq!(first, hashes("2"), "threads do not matter");
    let kinds: BTreeSet<&str> = first.iter().filter_map(|l| l.split_once(' ')).map(|l| l.1).collect();
    assert_eq!(kinds.len(), 24, "other seeds, other runs");
}

#[test]
fn a_script_is_the_whole_run() {
    for seed in 0..6 {
        let script = Script::generate(seed);
        let text = script.print().unwrap();
        let read = Script::parse(&text).unwrap();
        assert_eq!(read, script);
        assert_eq!(run(&read, false), run(&script, false));
    }
    assert!(Script::parse("").is_err());
    assert!(Script::parse("# only words\n{}").is_err());
}

#[test]
fn nothing_is_broken_in_the_first_seeds() {
    let (mut acknowledged, mut reads, mut terms) = (0, 0, 0);
    for seed in 0..40 {
        let report = run(&Script::generate(seed), false);
        assert_eq!(report.violation, None, "seed {seed}");
        acknowledged += report.acknowledged;
        reads += report.reads;
        terms += report.terms;
    }
    // It would be easy to break nothing by doing nothing.
    assert!(
        acknowledged > 2000 && reads > 500 && terms > 100,
        "{acknowledged} {reads} {terms}"
    );
}
