mod sim;

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::raft::Body;
use sim::{Kept, Sim};

const KEY: [u8; 32] = [3; 32];

fn options() -> Options {
    Options {
        segment: 4096,
        snapshots: 2,
        owner: 7,
    }
}

fn open(disk: &Sim, seed: u8) -> Result<Option<(Log<Sim>, Recovered)>, LogError> {
    Log::open(disk.clone(), &KEY, [seed; 32], options())
}

fn entry(index: u64, term: u64, len: usize) -> Entry {
    Entry {
        term,
        index,
        body: Body::Command(vec![index as u8; len]),
    }
}

/// What was acknowledged, and what the log is told next.
#[derive(Debug, Clone, Default, PartialEq)]
struct Model {
    hard: HardState,
    entries: BTreeMap<u64, Entry>,
    base: u64,
    snapshot: Option<Snapshot>,
}

impl Model {
    fn last(&self) -> u64 {
        self.entries.keys().last().copied().unwrap_or(self.base)
    }
}

#[derive(Debug, Clone)]
enum Op {
    /// Overwrites so many of the last entries, then appends.
    Append {
        over: u64,
        count: u64,
        len: usize,
    },
    Snapshot {
        behind: u64,
        len: usize,
    },
    Compact,
    Install {
        ahead: u64,
    },
}

/// Carries an operation out on a log; `model` becomes what is true if it is acknowledged.
fn carry_out(op: &Op, model: &mut Model, log: &mut Log<Sim>) -> Result<(), LogError> {
    model.hard.term += 1;
    match *op {
        Op::Append { over, count, len } => {
            // What a snapshot covers is committed, and never overwritten.
            let covered = model.snapshot.as_ref().map_or(0, |s| s.index);
            let from = model.last().saturating_sub(over).max(covered) + 1;
            model.entries.retain(|i, _| *i < from);
            let new: Vec<Entry> = (from..from + count).map(|i| entry(i, model.hard.term, len)).collect();
            model.entries.extend(new.iter().map(|e| (e.index, e.clone())));
            log.append(Some(model.hard), &new, true)
        }
        Op::Snapshot { behind, len } => {
            model.hard.term -= 1;
            let covered = model.snapshot.as_ref().map_or(0, |s| s.index);
            let index = model.last().saturating_sub(behind).max(covered);
            let Some(e) = model.entries.get(&index) else {
                return Ok(());
            };
            let s = Snapshot {
                index,
                term: e.term,
                conf: Conf::single(1),
                data: vec![9; len],
            };
            model.snapshot = Some(s.clone());
            log.save(&s)
        }
        Op::Compact => {
            model.hard.term -= 1;
            log.compact(model.snapshot.as_ref().map_or(0, |s| s.index))
        }
        Op::Install { ahead } => {
            let index = model.last() + ahead;
            model.hard.commit = index;
            model.base = index;
            model.entries.clear();
            let s = Snapshot {
                index,
                term: model.hard.term,
                conf: Conf::single(1),
                data: vec![8; 10],
            };
            model.snapshot = Some(s.clone());
            log.install(&s, Some(model.hard))
        }
    }
}

/// Whether what was recovered is `model`: entries may reach further back than needed, never less.
fn same(r: &Start, model: &Model) -> Result<(), String> {
    let newest = r.snapshot.as_deref();
    if newest != model.snapshot.as_ref() {
        return Err("snapshot".into());
    }
    let needed = newest.map_or(0, |s| s.index);
    if r.base.0 > needed {
        return Err(format!("entries begin behind {} but {needed} is needed", r.base.0));
    }
    let last = r.entries.last().map_or(r.base.0, |e| e.index);
    if last != model.last() {
        return Err(format!("ends at {last}, not {}", model.last()));
    }
    for (i, e) in r.entries.iter().enumerate() {
        if e.index != r.base.0 + 1 + i as u64 {
            return Err("a gap".into());
        }
        if model.entries.get(&e.index).is_some_and(|m| m != e)
            || (e.index > needed && !model.entries.contains_key(&e.index))
        {
            return Err(format!("entry {}", e.index));
        }
    }
    if r.hard.term != model.hard.term {
        return Err(format!("term {} not {}", r.hard.term, model.hard.term));
    }
    Ok(())
}

/// Runs `ops` until the power goes after `stop` steps. Returns the disk, and what was true before and would be true after
/// the operation under way.
fn run_until(ops: &[Op], stop: u64) -> (Sim, Vec<Model>) {
    let disk = Sim::default();
    disk.stop_after(stop);
    let mut model = Model::default();
    let log = Log::create(disk.clone(), &KEY, [1; 32], options(), &Conf::single(1));
    let Ok(mut log) = log else {
        return (disk, vec![model]);
    };
    for op in ops {
        let before = model.clone();
        if carry_out(op, &mut model, &mut log).is_err() {
            assert!(disk.stopped());
            let again = log.append(None, &[entry(1, 1, 1)], true);
            assert!(
                matches!(again, Err(LogError::Broken)),
                "nothing is acknowledged after an error"
            );
            // An installation is two steps: its snapshot may be there without its record.
            let mut half = before.clone();
            if matches!(op, Op::Install { .. }) {
                half = model.clone();
                half.hard = before.hard;
            }
            return (disk, vec![before, model, half]);
        }
    }
    (disk, vec![model])
}

fn check_recovery(ops: &[Op], stop: u64, kept: Kept) {
    let (disk, allowed) = run_until(ops, stop);
    let disk = disk.reboot(kept);
    let what = || format!("power gone after {stop} steps, {kept:?}, {ops:?}");
    let found = open(&disk, 2).unwrap_or_else(|e| panic!("{}: {e}", what()));
    let Some((mut log, recovered)) = found else {
        assert_eq!(allowed, [Model::default()], "{}", what());
        return;
    };
    let errors: Vec<String> = allowed.iter().filter_map(|m| same(&recovered.start, m).err()).collect();
    assert!(errors.len() < allowed.len(), "{}: {errors:?}", what());
    crate::raft::Peer::new(
        &crate::raft::Options {
            id: 1,
            election_ticks: 10,
            heartbeat_ticks: 1,
            seed: 0,
        },
        recovered.start.clone(),
    )
    .unwrap_or_else(|e| panic!("{}: {e}", what()));

    // Life goes on behind the crash, and is there after the next start.
    let mut model = allowed.into_iter().find(|m| same(&recovered.start, m).is_ok()).unwrap();
    for op in [
        Op::Append {
            over: 1,
            count: 2,
            len: 5,
        },
        Op::Append {
            over: 0,
            count: 1,
            len: 700,
        },
    ] {
        carry_out(&op, &mut model, &mut log).unwrap();
    }
    let (_, again) = open(&disk.reboot(Kept::Nothing), 3).unwrap().unwrap();
    assert_eq!(same(&again.start, &model), Ok(()), "{}", what());
    assert_eq!(again.cut, 0);
}

fn story() -> Vec<Op> {
    vec![
        Op::Append {
            over: 0,
            count: 1,
            len: 3,
        },
        Op::Append {
            over: 0,
            count: 3,
            len: 400,
        },
        Op::Append {
            over: 2,
            count: 1,
            len: 40,
        },
        Op::Snapshot { behind: 0, len: 100 },
        Op::Append {
            over: 0,
            count: 2,
            len: 1500,
        },
        Op::Append {
            over: 1,
            count: 1,
            len: 600,
        },
        Op::Snapshot { behind: 1, len: 10 },
        Op::Append {
            over: 0,
            count: 1,
            len: 5000,
        },
        Op::Snapshot { behind: 0, len: 10 },
        Op::Compact,
        Op::Append {
            over: 0,
            count: 1,
            len: 1,
        },
    ]
}

#[test]
fn a_crash_at_every_octet_loses_nothing_acknowledged() {
    let ops = story();
    let (disk, _) = run_until(&ops, u64::MAX);
    let steps = disk.steps();
    assert!(steps > 2000, "{steps}");
    for stop in 0..=steps {
        check_recovery(&ops, stop, Kept::All);
    }
    for stop in (0..=steps).step_by(7) {
        check_recovery(&ops, stop, Kept::Nothing);
        check_recovery(&ops, stop, Kept::Sectors(0x5555_5555_5555_5555));
    }
}

fn any_op() -> impl Strategy<Value = Op> {
    prop_oneof![
        6 => (0u64..4, 1u64..4, prop_oneof![0usize..60, 0usize..3000])
            .prop_map(|(over, count, len)| Op::Append { over, count, len }),
        1 => (0u64..3, prop_oneof![0usize..100, Just(200_000)]).prop_map(|(behind, len)| Op::Snapshot { behind, len }),
        1 => Just(Op::Compact),
        1 => (1u64..5).prop_map(|ahead| Op::Install { ahead }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Any story, a crash anywhere, any of the unsynced sectors kept.
    #[test]
    fn any_crash(ops in prop::collection::vec(any_op(), 1..25), at in 0.0f64..1.0, sectors in any::<u64>(), how in 0u8..3) {
        let total = run_until(&ops, u64::MAX).0.steps();
        let stop = (total as f64 * at) as u64;
        let kept = match how {
            0 => Kept::All,
            1 => Kept::Nothing,
            _ => Kept::Sectors(sectors),
        };
        check_recovery(&ops, stop, kept);
    }

    /// Any file content is an error or a log, never a panic.
    #[test]
    fn garbage_is_no_log(mut bytes in prop::collection::vec(any::<u8>(), 0..300), sound_head in any::<bool>()) {
        if sound_head {
            let head = segment::Head {
                epoch: 1,
                first_seq: 0,
                owner: 7,
            };
            bytes.splice(0..0, head.encode());
        }
        let disk = Sim::default();
        disk.put("log-0000000000000001", bytes.clone());
        let _ = open(&disk, 1);
        disk.put("snap-0000000000000001", bytes);
        let _ = open(&disk, 1);
    }
}

/// A log with a snapshot and two segments, nothing under way.
fn quiet() -> (Sim, Model) {
    let (disk, models) = run_until(&story(), u64::MAX);
    (disk, models.into_iter().next().unwrap())
}

#[test]
fn a_flipped_bit_is_told_never_guessed_over() {
    let (disk, model) = quiet();
    let mut told = 0;
    let mut harmless = 0;
    for name in disk.list().unwrap() {
        let len = disk.read(&name).unwrap().len();
        for at in 0..len {
            let spoiled = disk.reboot(Kept::Nothing);
            spoiled.flip(&name, at, (at % 8) as u8);
            match open(&spoiled, 2) {
                Err(LogError::Damaged { .. } | LogError::WrongKey { .. } | LogError::Newer { .. }) => told += 1,
                Err(e) => panic!("{name} {at}: {e}"),
                // Padding, the zeros behind the end, the older snapshot.
                Ok(found) => {
                    let (_, r) = found.unwrap();
                    assert_eq!(same(&r.start, &model), Ok(()), "{name} {at}");
                    harmless += 1;
                }
            }
        }
    }
    assert!(told > 5000 && harmless > 100, "{told} {harmless}");
}

#[test]
fn files_that_are_missing_are_missed() {
    let (disk, _) = quiet();
    let logs: Vec<String> = disk
        .list()
        .unwrap()
        .into_iter()
        .filter(|n| n.starts_with("log-"))
        .collect();
    assert!(logs.len() >= 2, "{logs:?}");
    let without = |names: &[&String]| {
        let mut d = disk.reboot(Kept::Nothing);
        for n in names {
            d.remove(n).unwrap();
        }
        open(&d, 2)
    };
    let all: Vec<&String> = logs.iter().collect();
    assert!(
        matches!(without(&all), Err(LogError::Damaged { .. })),
        "a snapshot alone is no log"
    );
    let mut d = Sim::default();
    let mut log = Log::create(d.clone(), &KEY, [1; 32], options(), &Conf::single(1)).unwrap();
    let mut model = Model::default();
    for _ in 0..9 {
        carry_out(
            &Op::Append {
                over: 0,
                count: 1,
                len: 1500,
            },
            &mut model,
            &mut log,
        )
        .unwrap();
    }
    let logs = d.list().unwrap();
    d.remove(&logs[1]).unwrap();
    assert!(matches!(
        open(&d, 2),
        Err(LogError::Damaged {
            why: "records before it are missing",
            ..
        })
    ));
}

#[test]
fn another_key_and_a_newer_format_are_told_apart() {
    let (disk, _) = quiet();
    let wrong = Log::open(disk.clone(), &[4; 32], [2; 32], options());
    assert!(matches!(wrong, Err(LogError::WrongKey { .. })));
    let name = disk
        .list()
        .unwrap()
        .into_iter()
        .find(|n| n.starts_with("log-"))
        .unwrap();
    let mut bytes = disk.read(&name).unwrap();
    bytes[8] = 2;
    let crc = crc32c::crc32c(&bytes[..60]);
    bytes[60..64].copy_from_slice(&crc.to_le_bytes());
    disk.put(&name, bytes.clone());
    let newer = open(&disk, 2).map(|_| ());
    assert!(matches!(&newer, Err(LogError::Newer { format: 2, .. })), "{newer:?}");
    assert_eq!(disk.read(&name).unwrap(), bytes, "and nothing was changed");
}

#[test]
fn a_failed_sync_ends_all_acknowledgement() {
    let disk = Sim::default();
    let mut log = Log::create(disk.clone(), &KEY, [1; 32], options(), &Conf::single(1)).unwrap();
    disk.fail_syncs();
    let e = log.append(None, &[entry(1, 1, 1)], true).unwrap_err();
    assert!(
        matches!(&e, LogError::Io { .. }) && e.to_string().contains("try:"),
        "{e}"
    );
    assert!(matches!(
        log.append(None, &[entry(1, 1, 1)], true),
        Err(LogError::Broken)
    ));
    assert!(matches!(log.save(&Snapshot::default()), Err(LogError::Broken)));
}

#[test]
fn nothing_is_written_for_a_commit_index_alone() {
    let disk = Sim::default();
    let mut log = Log::create(disk.clone(), &KEY, [1; 32], options(), &Conf::single(1)).unwrap();
    let steps = disk.steps();
    let hard = HardState {
        term: 1,
        vote: 1,
        commit: 5,
    };
    log.append(Some(hard), &[], false).unwrap();
    assert_eq!(disk.steps(), steps);
    log.append(None, &[entry(1, 1, 1)], true).unwrap();
    let (_, r) = open(&disk, 2).unwrap().unwrap();
    assert_eq!(r.start.hard, hard, "it goes with the next record");
    assert!(matches!(
        Log::create(disk, &KEY, [1; 32], options(), &Conf::single(1)),
        Err(LogError::Exists)
    ));
    assert!(open(&Sim::default(), 1).unwrap().is_none());
}

#[test]
fn old_segments_and_snapshots_go() {
    let disk = Sim::default();
    let mut log = Log::create(disk.clone(), &KEY, [1; 32], options(), &Conf::single(1)).unwrap();
    let mut model = Model::default();
    for _ in 0..50 {
        carry_out(
            &Op::Append {
                over: 0,
                count: 5,
                len: 300,
            },
            &mut model,
            &mut log,
        )
        .unwrap();
        carry_out(&Op::Snapshot { behind: 2, len: 10 }, &mut model, &mut log).unwrap();
        carry_out(&Op::Compact, &mut model, &mut log).unwrap();
    }
    let names = disk.list().unwrap();
    assert!(names.len() < 8 && log.size() < 6 * 4096, "{names:?}");
    let (_, r) = open(&disk, 2).unwrap().unwrap();
    assert_eq!(same(&r.start, &model), Ok(()));
}

#[test]
fn what_is_on_disk_is_sealed() {
    let disk = Sim::default();
    let mut log = Log::create(disk.clone(), &KEY, [1; 32], options(), &Conf::single(1)).unwrap();
    let canary = b"canary-canary-canary".to_vec();
    let body = Body::Command(canary.clone());
    log.append(
        None,
        &[Entry {
            term: 1,
            index: 1,
            body,
        }],
        true,
    )
    .unwrap();
    log.save(&Snapshot {
        index: 1,
        term: 1,
        conf: Conf::single(1),
        data: canary.clone(),
    })
    .unwrap();
    for name in disk.list().unwrap() {
        let bytes = disk.read(&name).unwrap();
        assert!(!bytes.windows(canary.len()).any(|w| w == canary), "{name}");
    }
}

#[test]
fn the_power_goes_again_while_a_torn_write_is_cut_off() {
    let mut cases = 0;
    for torn in (1..1500).step_by(149) {
        for kept in [
            Kept::All,
            Kept::Sectors(0b101),
            Kept::Sectors(0b1010),
            Kept::Sectors(0b10),
        ] {
            let disk = Sim::default();
            let mut log = Log::create(disk.clone(), &KEY, [1; 32], options(), &Conf::single(1)).unwrap();
            log.append(None, &[entry(1, 1, 400)], true).unwrap();
            disk.stop_after(torn);
            if log.append(None, &[entry(2, 1, 1300)], true).is_ok() {
                continue;
            }
            let once = disk.reboot(kept);
            for at in (0..70).chain((70..1500).step_by(97)) {
                let twice = once.reboot(Kept::All);
                twice.stop_after(at);
                if open(&twice, 2).is_ok() {
                    break;
                }
                cases += 1;
                for kept in [Kept::All, Kept::Nothing, Kept::Sectors(0b10)] {
                    let again = twice.reboot(kept);
                    let found = open(&again, 3).unwrap_or_else(|e| panic!("{torn} {at} {kept:?}: {e}"));
                    assert_eq!(found.unwrap().1.start.entries, [entry(1, 1, 400)]);
                }
            }
        }
    }
    assert!(cases > 500, "{cases}");
}
