use std::{
    fs::{self, File},
    io::Write,
    path::PathBuf,
    time::{Duration, SystemTime},
};

use model::stamps::{self, Stamp};

use super::*;

struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Folder {
        let path = std::env::temp_dir().join(format!("netd-logs-{name}-{}", std::process::id()));
        fs::create_dir_all(path.join(stamps::FOLDER)).unwrap();
        Folder(path)
    }
    fn log(&self) -> PathBuf {
        self.0.join("web.1.log")
    }
    fn add(&self, text: &str) {
        let mut file = fs::OpenOptions::new()
            .append(true)
            .create(true)
            .open(self.log())
            .unwrap();
        file.write_all(text.as_bytes()).unwrap();
    }
    /// As netd-run does it.
    fn cut(&self) {
        let fresh = self.0.join("fresh");
        fs::copy(self.log(), &fresh).unwrap();
        // Another time than the last cut's, whatever the file system's clock.
        let at = SystemTime::now() + Duration::from_nanos(self.marks());
        File::options()
            .write(true)
            .open(&fresh)
            .unwrap()
            .set_modified(at)
            .unwrap();
        fs::rename(&fresh, self.0.join("web.1.log.1")).unwrap();
        fs::write(self.log(), "").unwrap();
    }
    fn marks(&self) -> u64 {
        cut_of(&self.log()).unwrap() % 1000 + 1_000_000
    }
    fn read(&self, from: LogFrom) -> LogPart {
        self.since(from, None)
    }
    fn since(&self, from: LogFrom, since_ms: Option<u64>) -> LogPart {
        let limits = Limits {
            since_ms,
            max: 1 << 20,
            follow: true,
        };
        read(&self.log(), from, limits).unwrap()
    }
    /// As netd-run writes it down: the log was so long at a time, each.
    fn times(&self, log: &Path, stamps: &[(u64, u64)]) {
        let mut bytes = stamps::header(cut_of(&self.log()).unwrap()).to_vec();
        for (length, at_ms) in stamps.iter().copied() {
            bytes.extend(Stamp { length, at_ms }.encode());
        }
        fs::write(stamps::path(log).unwrap(), bytes).unwrap();
    }
    fn written(&self, at_ms: u64) {
        let at = SystemTime::UNIX_EPOCH + Duration::from_millis(at_ms);
        File::options()
            .append(true)
            .open(self.log())
            .unwrap()
            .set_modified(at)
            .unwrap();
    }
}

fn texts(part: &LogPart) -> Vec<&str> {
    part.lines.iter().map(|l| l.text.as_str()).collect()
}

/// `one@5 two@?`
fn timed(part: &LogPart) -> String {
    let at = |l: &Line| l.at_ms.map_or("?".to_owned(), |at| at.to_string());
    let all: Vec<String> = part.lines.iter().map(|l| format!("{}@{}", l.text, at(l))).collect();
    all.join(" ")
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn a_log_is_followed_over_its_cuts() {
    let f = Folder::new("follow");
    assert_eq!(texts(&f.read(LogFrom::Start)), [""; 0], "nothing is there yet");
    f.add("one\ntwo\nthr");
    let part = f.read(LogFrom::Start);
    assert_eq!(texts(&part), ["one", "two"]);
    f.add("ee\nfour\n");
    let part = f.read(LogFrom::At(part.place));
    assert_eq!((texts(&part).join(" ").as_str(), part.more), ("three four", false));
    f.add("five\n");
    f.cut();
    f.add("six\n");
    let part = f.read(LogFrom::At(part.place));
    assert_eq!(texts(&part), ["five", "six"]);
    assert_eq!(texts(&f.read(LogFrom::At(part.place))), [""; 0]);
    // Cut and grown beyond the place meanwhile: nothing is read twice, nothing is passed over.
    f.add("seven\n");
    f.cut();
    f.add("a rather long line, longer than all that was there\n");
    let part = f.read(LogFrom::At(part.place));
    assert_eq!(
        texts(&part),
        ["seven", "a rather long line, longer than all that was there"]
    );
    assert_eq!(f.read(LogFrom::Start).lines.len(), 3, "six, seven, and the long one");
}

#[test]
fn the_end_of_a_log() {
    let f = Folder::new("tail");
    f.add("one\ntwo\n");
    f.cut();
    f.add("three\nfour\nfi");
    for (n, want) in [
        (0, vec![]),
        (1, vec!["four"]),
        (3, vec!["two", "three", "four"]),
        (99, vec!["one", "two", "three", "four"]),
    ] {
        let part = f.read(LogFrom::Tail(n));
        assert_eq!(texts(&part), want, "{n}");
        f.read(LogFrom::At(part.place));
    }
    let limits = Limits {
        since_ms: None,
        max: 1 << 20,
        follow: false,
    };
    let whole = read(&f.log(), LogFrom::Tail(2), limits).unwrap();
    assert_eq!(texts(&whole), ["four", "fi"], "also what has no end yet");
    let part = f.read(LogFrom::Tail(1));
    f.add("ve\n");
    assert_eq!(texts(&f.read(LogFrom::At(part.place))), ["five"]);
}

#[test]
fn a_long_log_comes_in_pieces_and_endless_lines_are_broken_up() {
    let f = Folder::new("long");
    for n in 0..20_000 {
        f.add(&format!("line {n}\n"));
    }
    f.cut();
    f.add(&"x".repeat(3 * LINE));
    f.add("\nend \u{fffd}\n");
    let (mut from, mut all, mut pieces) = (LogFrom::Start, Vec::new(), 0);
    loop {
        let limits = Limits {
            since_ms: None,
            max: 40_000,
            follow: true,
        };
        let part = read(&f.log(), from, limits).unwrap();
        assert!(part.lines.iter().map(|l| l.text.len()).sum::<usize>() <= 80_000);
        all.extend(part.lines.into_iter().map(|l| l.text));
        from = LogFrom::At(part.place);
        pieces += 1;
        if !part.more {
            break;
        }
        assert!(pieces < 100);
    }
    assert!(pieces > 3);
    assert_eq!(all[..2], ["line 0", "line 1"]);
    assert_eq!(all[19_999], "line 19999");
    assert_eq!(all[20_000..20_003].concat(), "x".repeat(3 * LINE));
    assert_eq!(all.last().unwrap(), "end \u{fffd}");
}

#[test]
fn lines_have_the_times_at_which_they_were_ended() {
    let f = Folder::new("times");
    f.add("one\ntwo\nthree\nfo");
    assert_eq!(
        timed(&f.read(LogFrom::Start)),
        "one@? two@? three@?",
        "from before there were times"
    );
    f.times(&f.log(), &[(4, 0), (6, 1000), (14, 2000), (16, 3000)]);
    f.written(3000);
    let part = f.read(LogFrom::Start);
    assert_eq!(timed(&part), "one@? two@2000 three@2000");
    f.add("ur\nfive\n");
    f.written(4000);
    assert_eq!(
        timed(&f.read(LogFrom::At(part.place))),
        "four@4000 five@4000",
        "nobody has written it down yet"
    );
    f.times(&f.log(), &[(4, 0), (14, 2000), (18, 3500), (24, 4000)]);
    assert_eq!(timed(&f.read(LogFrom::At(part.place))), "four@4000 five@4000");
    assert_eq!(timed(&f.read(LogFrom::Tail(2))), "four@4000 five@4000");
    // Cut: its times go with it; between the two nothing is told, and nothing wrong.
    f.cut();
    f.add("six\n");
    f.written(5000);
    assert_eq!(timed(&f.read(LogFrom::Tail(2))), "five@? six@?");
    f.times(&aside(&f.log()), &[(14, 2000), (24, 4000)]);
    f.times(&f.log(), &[]);
    assert_eq!(timed(&f.read(LogFrom::At(part.place))), "four@4000 five@4000 six@5000");
    assert_eq!(timed(&f.read(LogFrom::Tail(2))), "five@4000 six@5000");
}

#[test]
fn what_was_written_since_a_time() {
    let f = Folder::new("since");
    f.add("one\ntwo\nthree\n");
    let asked = |from, since_ms| timed(&f.since(from, Some(since_ms)));
    let all = LogFrom::Tail(9);
    // Without times the last write decides.
    f.written(2000);
    for from in [LogFrom::Start, all] {
        assert_eq!(asked(from, 2000), "one@? two@? three@?");
        assert_eq!(asked(from, 2001), "");
    }
    // The second line was begun before the first was told.
    f.times(&f.log(), &[(6, 1000), (8, 2000), (14, 3000)]);
    let all_of_it = "one@1000 two@2000 three@3000";
    for (since, want) in [
        (0, all_of_it),
        (1000, all_of_it),
        (1001, "two@2000 three@3000"),
        (2500, "three@3000"),
        (3001, ""),
    ] {
        assert_eq!(asked(LogFrom::Start, since), want, "since {since}");
        assert_eq!(asked(all, since), want, "the last ones since {since}");
    }
    assert_eq!(asked(LogFrom::Tail(1), 0), "three@3000");
    // Over a cut.
    f.cut();
    f.add("four\n");
    f.times(&aside(&f.log()), &[(6, 1000), (8, 2000), (14, 3000)]);
    f.times(&f.log(), &[(5, 4000)]);
    for (since, want) in [(2500, "three@3000 four@4000"), (3001, "four@4000"), (4001, "")] {
        assert_eq!(asked(LogFrom::Start, since), want, "since {since}");
        assert_eq!(asked(all, since), want, "the last ones since {since}");
    }
    // It is read on from there, whatever comes.
    let part = f.since(LogFrom::Start, Some(4001));
    f.add("five\n");
    f.written(1);
    assert_eq!(texts(&f.since(LogFrom::At(part.place), Some(4001))), ["five"]);
}
