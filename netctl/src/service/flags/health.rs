//! `http:8080/healthz,interval=5s,timeout=2s,retries=3,start=10s`

use std::str::FromStr;

use model::spec::{Health, Probe};

use super::task::ms;
use crate::cli::duration;

const HINT: &str = "try: --health http:8080/healthz,interval=5s, --health tcp:5432 or --health 'cmd:pg_isready -q'";

/// A health check in words: the probe, then what differs from the defaults.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct HealthFlag(pub(super) Health);

impl FromStr for HealthFlag {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        // A comma may be part of a path or command: only what looks like one of ours is taken off its end.
        let mut head = s;
        let mut options = Vec::new();
        while let Some((before, last)) = head.rsplit_once(',') {
            let Some((key, value)) = last.split_once('=').filter(|(k, _)| KEYS.contains(k)) else {
                break;
            };
            options.push((key, value));
            head = before;
        }
        let mut health = Health::of(probe(head)?);
        for (key, value) in options {
            match key {
                "interval" => health.interval_ms = ms(duration(value)?),
                "timeout" => health.timeout_ms = ms(duration(value)?),
                "start" => health.start_period_ms = ms(duration(value)?),
                _ => {
                    let bad = |_| format!("retries={value} is no number; {HINT}");
                    health.retries = value.parse().map_err(bad)?;
                }
            }
        }
        Ok(HealthFlag(health))
    }
}

const KEYS: [&str; 4] = ["interval", "timeout", "retries", "start"];

fn probe(text: &str) -> Result<Probe, String> {
    let bad = |why: &str| format!("{text:?} {why}; {HINT}");
    let port = |p: &str| match p.parse::<u16>() {
        Ok(0) | Err(_) => Err(bad("has no port from 1 to 65535")),
        Ok(p) => Ok(p),
    };
    match text.split_once(':') {
        Some(("http", rest)) => {
            let at = rest.find('/').unwrap_or(rest.len());
            let (number, path) = rest.split_at(at);
            Ok(Probe::Http {
                port: port(number)?,
                path: if path.is_empty() { "/" } else { path }.to_owned(),
            })
        }
        Some(("tcp", number)) => Ok(Probe::Tcp { port: port(number)? }),
        Some(("cmd", line)) => match words(line) {
            Some(words) if !words.is_empty() => Ok(Probe::Command(words)),
            Some(_) => Err(bad("has no command")),
            None => Err(bad("has a quote that does not end")),
        },
        _ => Err(bad("is neither http:, tcp: nor cmd:")),
    }
}

/// A line in words: blanks part them, quotes of both kinds hold them together. No shell is asked; `cmd:sh -c '...'` does.
fn words(line: &str) -> Option<Vec<String>> {
    let (mut out, mut word, mut quote) = (Vec::new(), None::<String>, None);
    for c in line.chars() {
        match (quote, c) {
            (Some(q), c) if q == c => quote = None,
            (None, '\'' | '"') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (None, c) if c.is_whitespace() => out.extend(word.take()),
            (_, c) => word.get_or_insert_default().push(c),
        }
    }
    if quote.is_some() {
        return None;
    }
    out.extend(word);
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(s: &str) -> Result<Health, String> {
        s.parse::<HealthFlag>().map(|h| h.0)
    }

    #[test]
    fn checks() {
        let h = parse("http:8080/a,b?c=d,interval=1s,timeout=500ms,retries=5,start=1m").unwrap();
        let path = "/a,b?c=d".to_owned();
        assert_eq!(h.probe, Probe::Http { port: 8080, path });
        assert_eq!(
            (h.interval_ms, h.timeout_ms, h.retries, h.start_period_ms),
            (1000, 500, 5, 60_000)
        );
        assert_eq!(
            parse("http:80").unwrap().probe,
            Probe::Http {
                port: 80,
                path: "/".into()
            }
        );
        assert_eq!(parse("tcp:5432").unwrap(), Health::of(Probe::Tcp { port: 5432 }));
        let h = parse("cmd:sh -c 'test -e /x, && exit 0' \"\",retries=1").unwrap();
        let words = ["sh", "-c", "test -e /x, && exit 0", ""].map(str::to_owned).to_vec();
        assert_eq!((h.probe, h.retries), (Probe::Command(words), 1));
    }

    #[test]
    fn slips_are_told() {
        for (text, word) in [
            ("http:/x", "65535"),
            ("http:0/x", "65535"),
            ("tcp:x", "65535"),
            ("cmd: ", "no command"),
            ("cmd:a 'b", "quote"),
            ("ping", "neither"),
            ("tcp:80,retries=x", "no number"),
            ("tcp:80,interval=soon", "not a time"),
            ("tcp:80,tries=3", "65535"),
        ] {
            let e = parse(text).unwrap_err();
            assert!(e.contains(word) && e.contains("try:"), "{text}: {e}");
        }
    }
}
