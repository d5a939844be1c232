//! What is wrong with what a service says of each of its tasks.

use model::{
    BadValue, Name, ServiceSpec,
    spec::{Health, Probe, Restart, template},
};

use super::Refusal;

/// Longest time that a task's rules may name, ms: a day.
const DAY_MS: u64 = 24 * 3600 * 1000;
/// Shortest time between two probes, ms.
const MIN_INTERVAL_MS: u64 = 100;
/// Most failures in a row that a health check may bear.
const MAX_RETRIES: u32 = 100;
/// Most restarts that can be counted.
const MAX_ATTEMPTS: u32 = 1_000;
/// Most labels, and longest name or value of one, octets.
const MAX_LABELS: (usize, usize) = (128, 4096);
/// Longest path of a health check, octets.
const MAX_PATH: usize = 1024;

fn bad(e: BadValue) -> Refusal {
    Refusal::invalid(format!("{} {:?} {}", e.what, e.value, e.why), e.hint)
}

pub(super) fn check(name: &Name, spec: &ServiceSpec) -> Result<(), Refusal> {
    spec.env.values().try_for_each(|v| template::check(v)).map_err(bad)?;
    if let Some(hostname) = &spec.hostname {
        template::check_hostname(hostname, name).map_err(bad)?;
    }
    if spec.labels.len() > MAX_LABELS.0 {
        return Err(Refusal::invalid(
            format!("a service may have {} labels at most", MAX_LABELS.0),
            "fewer --label",
        ));
    }
    let text = |t: &String| t.len() <= MAX_LABELS.1 && !t.contains('\0');
    if let Some((k, _)) = spec.labels.iter().find(|(k, v)| k.is_empty() || !text(k) || !text(v)) {
        return Err(Refusal::invalid(
            format!(
                "the label {k:?} has no name, more than {} octets, or a NUL character",
                MAX_LABELS.1
            ),
            "--label NAME=VALUE",
        ));
    }
    restart(&spec.restart)?;
    spec.health.as_ref().map_or(Ok(()), health)
}

fn restart(r: &Restart) -> Result<(), Refusal> {
    if r.delay_ms > DAY_MS || r.window_ms > DAY_MS {
        return Err(Refusal::invalid(
            "a restart's delay or window is longer than a day",
            "--restart-delay 5s",
        ));
    }
    match r.max_attempts {
        Some(n) if !(1..=MAX_ATTEMPTS).contains(&n) => Err(Refusal::invalid(
            format!("{n} restarts cannot be counted: 1 to {MAX_ATTEMPTS} can"),
            "--restart-max-attempts 3; without it there is no limit",
        )),
        _ => Ok(()),
    }
}

fn health(h: &Health) -> Result<(), Refusal> {
    let times = [h.interval_ms, h.timeout_ms, h.start_period_ms];
    if times.iter().any(|t| *t > DAY_MS) || h.interval_ms < MIN_INTERVAL_MS || h.timeout_ms == 0 {
        return Err(Refusal::invalid(
            format!(
                "the times of a health check are not within {MIN_INTERVAL_MS} ms (interval), 1 ms (timeout) and a day"
            ),
            "--health http:8080/,interval=5s,timeout=2s",
        ));
    }
    if !(1..=MAX_RETRIES).contains(&h.retries) {
        return Err(Refusal::invalid(
            format!("{} retries of a health check are not 1 to {MAX_RETRIES}", h.retries),
            "--health tcp:8080,retries=3",
        ));
    }
    let port = |p: u16| match p {
        0 => Err(Refusal::invalid("port 0 cannot be asked", "--health tcp:8080")),
        _ => Ok(()),
    };
    match &h.probe {
        Probe::Tcp { port: p } => port(*p),
        Probe::Http { port: p, path } => {
            port(*p)?;
            let sound = path.starts_with('/') && path.len() <= MAX_PATH && path.bytes().all(|b| b.is_ascii_graphic());
            match sound {
                true => Ok(()),
                false => Err(Refusal::invalid(
                    format!("{path:?} is no path for a health check: / and then no spaces, at most {MAX_PATH} octets"),
                    "--health http:8080/healthz",
                )),
            }
        }
        Probe::Command(words) => match words.first() {
            Some(w) if !w.is_empty() && !words.iter().any(|w| w.contains('\0')) => Ok(()),
            _ => Err(Refusal::invalid(
                "the command of a health check is empty, or has a NUL character",
                "--health 'cmd:test -e /run/ready'",
            )),
        },
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use model::spec::Condition;

    use super::*;

    fn refused(change: impl FnOnce(&mut ServiceSpec)) -> Option<String> {
        let mut spec = ServiceSpec::default();
        change(&mut spec);
        let refusal = super::check(&"web".parse().unwrap(), &spec).err()?;
        assert!(!refusal.hint.is_empty(), "{refusal:?}");
        Some(refusal.message)
    }

    fn probe(probe: Probe) -> Option<Health> {
        Some(Health::of(probe))
    }

    #[test]
    fn what_is_sound_passes() {
        let none = refused(|s| {
            s.env.insert("A".into(), "{{.Service}}.{{.Slot}}@{{.Node}}".into());
            s.hostname = Some("{{.Service}}-{{.Slot}}".into());
            s.labels.insert("a".into(), String::new());
            s.restart = Restart {
                condition: Condition::None,
                delay_ms: DAY_MS,
                max_attempts: Some(MAX_ATTEMPTS),
                window_ms: DAY_MS,
            };
            s.health = probe(Probe::Command(vec!["true".into()]));
        });
        assert_eq!(none, None);
        assert_eq!(refused(|s| s.health = probe(Probe::Tcp { port: 1 })), None);
    }

    #[test]
    fn what_is_not_is_refused_with_the_reason() {
        let http = |path: &str| {
            let path = path.to_owned();
            probe(Probe::Http { port: 80, path })
        };
        let with = |change: fn(&mut Health)| {
            let mut h = Health::of(Probe::Tcp { port: 80 });
            change(&mut h);
            Some(h)
        };
        type Change<'a> = Box<dyn FnOnce(&mut ServiceSpec) + 'a>;
        let table: Vec<(&str, Change<'_>)> = vec![
            (
                "unknown field",
                Box::new(|s| s.env = BTreeMap::from([("A".into(), "{{.Slut}}".into())])),
            ),
            ("unknown field", Box::new(|s| s.hostname = Some("{{.Pod}}".into()))),
            ("host name", Box::new(|s| s.hostname = Some("a_b".into()))),
            ("64", Box::new(|s| s.hostname = Some("x".repeat(65)))),
            (
                "label",
                Box::new(|s| s.labels = BTreeMap::from([(String::new(), "x".into())])),
            ),
            (
                "128 labels",
                Box::new(|s| s.labels = (0..129).map(|n| (n.to_string(), String::new())).collect()),
            ),
            ("a day", Box::new(|s| s.restart.delay_ms = DAY_MS + 1)),
            ("1 to 1000", Box::new(|s| s.restart.max_attempts = Some(0))),
            ("1 to 1000", Box::new(|s| s.restart.max_attempts = Some(1_001))),
            ("interval", Box::new(|s| s.health = with(|h| h.interval_ms = 99))),
            ("timeout", Box::new(|s| s.health = with(|h| h.timeout_ms = 0))),
            (
                "a day",
                Box::new(|s| s.health = with(|h| h.start_period_ms = DAY_MS + 1)),
            ),
            ("1 to 100", Box::new(|s| s.health = with(|h| h.retries = 0))),
            ("port 0", Box::new(|s| s.health = probe(Probe::Tcp { port: 0 }))),
            ("path", Box::new(|s| s.health = http("x"))),
            ("path", Box::new(|s| s.health = http("/a b"))),
            ("path", Box::new(|s| s.health = http("/a\r\nX: y"))),
            ("empty", Box::new(|s| s.health = probe(Probe::Command(Vec::new())))),
            (
                "NUL",
                Box::new(|s| s.health = probe(Probe::Command(vec!["a\0".into()]))),
            ),
        ];
        for (word, change) in table {
            let message = refused(change).expect(word);
            assert!(message.contains(word), "{word}: {message}");
        }
    }
}
