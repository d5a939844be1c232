use std::{
    fs::File,
    io::Write,
    time::{Duration, Instant, SystemTime},
};

use model::stamps::{Stamp, Times, aside, cut_of};

use super::{cut::Max, *};

struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Folder {
        let path = std::env::temp_dir().join(format!("netd-run-logs-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).unwrap();
        Folder(path)
    }
    fn open(&self) -> Logs {
        Logs::open(&self.0).unwrap()
    }
    fn log(&self) -> PathBuf {
        self.0.join("web.1.log")
    }
    /// As a task has it.
    fn writer(&self) -> File {
        File::options().append(true).create(true).open(self.log()).unwrap()
    }
    fn stamps(&self, log: &Path) -> Vec<Stamp> {
        let times = Times::open(&model::stamps::path(log).unwrap(), cut_of(&self.log()).unwrap());
        times
            .unwrap()
            .map_or_else(Vec::new, |t| t.between(0, u64::MAX).unwrap())
    }
    /// Waits until somebody has seen that the log is so long, and tells when it became so.
    fn seen(&self, length: u64) -> u64 {
        let end = Instant::now() + Duration::from_secs(10);
        loop {
            match self.stamps(&self.log()).last() {
                Some(s) if s.length == length => return s.at_ms,
                _ if Instant::now() > end => panic!("{length} octets are not seen"),
                _ => std::thread::yield_now(),
            }
        }
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn id() -> EndpointId {
    "web.1".parse().unwrap()
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    u64::try_from(since.as_millis()).unwrap()
}

#[test]
fn what_a_task_writes_is_seen_when_it_writes() {
    let f = Folder::new("seen");
    let logs = f.open();
    logs.begin(&id());
    let mut task = f.writer();
    // The file system's clock ticks some milliseconds behind.
    let before = now_ms() - 20;
    task.write_all(b"one\n").unwrap();
    let first = f.seen(4);
    assert!((before..=now_ms()).contains(&first), "{before} {first} {}", now_ms());
    task.write_all(b"two\n").unwrap();
    assert!(f.seen(8) >= first);
    assert_eq!(f.stamps(&f.log()).len(), 2);
    // Others' files in the folder are nothing to us.
    fs::write(f.0.join("foreign.log"), "text").unwrap();
    task.write_all(b"three\n").unwrap();
    f.seen(14);
    assert!(!f.0.join("times/foreign.log").exists());
    logs.end(&id());
    task.write_all(b"four\n").unwrap();
    logs.see_all();
    assert_eq!(
        f.stamps(&f.log()).last().map(|s| s.length),
        Some(14),
        "nobody looks any more"
    );
}

#[test]
fn what_was_written_while_nobody_looked_has_the_last_write_as_its_time() {
    let f = Folder::new("away");
    f.writer().write_all(b"from before there were times\n").unwrap();
    let logs = f.open();
    logs.begin(&id());
    assert_eq!(f.stamps(&f.log()), [Stamp { length: 29, at_ms: 0 }], "nobody knows");
    drop(logs);
    f.writer().write_all(b"away\n").unwrap();
    let at = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
    f.writer().set_modified(at).unwrap();
    // What a crash has left of a record does not count.
    let times = f.0.join("times/web.1.log");
    File::options()
        .append(true)
        .open(&times)
        .unwrap()
        .write_all(b"half")
        .unwrap();
    let logs = f.open();
    logs.begin(&id());
    let at_ms = 1_000_000_000;
    assert_eq!(f.stamps(&f.log())[1..], [Stamp { length: 34, at_ms }]);
    // Emptied by somebody else.
    f.writer().set_len(0).unwrap();
    logs.see(&id());
    assert_eq!(f.stamps(&f.log()), []);
    f.writer().write_all(b"again\n").unwrap();
    f.seen(6);
}

#[test]
fn a_long_log_is_cut_while_it_is_written_and_its_times_with_it() {
    let f = Folder::new("cut");
    let (logs, mut task) = (f.open(), f.writer());
    logs.begin(&id());
    let max = |log, times| Max { log, times };
    task.write_all(b"12345").unwrap();
    f.seen(5);
    assert!(!cut::trim(&f.log(), max(5, 1000)).unwrap());
    task.write_all(b"6").unwrap();
    f.seen(6);
    let known = logs.known();
    assert!(cut::trim(&f.log(), max(5, 1000)).unwrap());
    task.write_all(b"7").unwrap();
    assert_eq!(fs::read(aside(&f.log())).unwrap(), b"123456");
    assert_eq!(fs::read(f.log()).unwrap(), b"7");
    let lengths = |log: &Path| f.stamps(log).iter().map(|s| s.length).collect::<Vec<_>>();
    let former = lengths(&aside(&f.log()));
    assert_eq!((former.first(), former.last()), (Some(&5), Some(&6)), "{former:?}");
    assert_eq!(lengths(&f.log()), [0; 0]);
    drop(known);
    logs.trim(&id());
    assert_eq!(lengths(&f.log()), [1]);
    // Many short lines: their times would grow without end.
    assert!(cut::trim(&f.log(), max(1000, 16)).unwrap());
    assert_eq!(fs::read(aside(&f.log())).unwrap(), b"7");
    assert!(!cut::trim(&f.0.join("absent.log"), max(5, 5)).unwrap());
}

#[test]
fn what_tasks_have_left_is_swept() {
    let f = Folder::new("sweep");
    let logs = f.open();
    let day = Duration::from_secs(24 * 3600);
    let start = SystemTime::now();
    for (n, hours) in [(1, 30), (2, 20), (3, 10), (4, 1), (5, 40), (6, 40)] {
        let id: EndpointId = format!("web.{n}").parse().unwrap();
        logs.begin(&id);
        for path in [logs.path(&id), aside(&logs.path(&id))] {
            fs::write(&path, [b'x'; 500]).unwrap();
            let at = start - Duration::from_secs(hours * 3600);
            File::options()
                .append(true)
                .open(path)
                .unwrap()
                .set_modified(at)
                .unwrap();
        }
        if n != 6 {
            logs.end(&id);
        }
        let times = f.0.join(format!("times/web.{n}.log"));
        let at = start - Duration::from_secs(hours * 3600);
        File::options()
            .append(true)
            .open(times)
            .unwrap()
            .set_modified(at)
            .unwrap();
    }
    fs::write(f.0.join("auth.log"), "foreign").unwrap();
    File::options()
        .append(true)
        .open(f.0.join("auth.log"))
        .unwrap()
        .set_modified(start - 9 * day)
        .unwrap();
    let there = || -> Vec<String> {
        let files = fs::read_dir(&f.0).unwrap().flatten();
        let mut names: Vec<String> = files.map(|e| e.file_name().into_string().unwrap()).collect();
        names.retain(|n| n.ends_with(".log"));
        names.sort();
        names
    };
    let living = BTreeSet::from(["web.5".parse().unwrap()]);
    assert_eq!(
        logs.sweep_to(&living, start, 1 << 20).unwrap(),
        1,
        "a day is over for one"
    );
    let all = [
        "auth.log",
        "web.2.log",
        "web.3.log",
        "web.4.log",
        "web.5.log",
        "web.6.log",
    ];
    assert_eq!(there(), all, "foreign, living and known ones stay");
    assert!(!f.0.join("web.1.log.1").exists() && !f.0.join("times/web.1.log").exists());
    assert_eq!(logs.sweep_to(&living, start, 2200).unwrap(), 1, "room for two");
    assert_eq!(
        there(),
        ["auth.log", "web.3.log", "web.4.log", "web.5.log", "web.6.log"]
    );
    assert_eq!(logs.sweep_to(&living, start + 2 * day, 1 << 20).unwrap(), 2);
    assert_eq!(there(), ["auth.log", "web.5.log", "web.6.log"]);
    assert_eq!(logs.sweep_to(&living, start + 2 * day, 1 << 20).unwrap(), 0);
}
