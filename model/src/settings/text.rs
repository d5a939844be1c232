//! Values as people write them.

use super::{ExternalCa, Slot, Value};

const UNITS: [(&str, u64); 4] = [("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];

/// `2160h`, `90m`, `5s`, `500ms` in milliseconds.
pub fn parse_time(s: &str) -> Option<u64> {
    let at = s.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = s.split_at(at);
    let (_, ms) = UNITS.iter().find(|(u, _)| *u == unit)?;
    number.parse::<u64>().ok()?.checked_mul(*ms)
}

/// Milliseconds in the largest unit that holds them whole; [`parse_time`] reads it.
pub fn show_time(ms: u64) -> String {
    if ms == 0 {
        return "0s".to_owned();
    }
    let (unit, size) = UNITS
        .iter()
        .find(|(_, size)| ms.is_multiple_of(*size))
        .unwrap_or(&("ms", 1));
    format!("{}{unit}", ms / size)
}

pub(super) fn show(slot: &Slot<'_>) -> String {
    match slot {
        Slot::Time(v, _) => show_time(**v),
        Slot::Count(v, _) => v.to_string(),
        Slot::Mask(v, _) => v.to_string(),
        Slot::Port(v, _) => v.to_string(),
        Slot::Switch(v) => v.to_string(),
        Slot::Pool(v) => v.to_string(),
        Slot::Pool6(v) => v.map(|n| n.to_string()).unwrap_or_default(),
        Slot::Signers(v) => {
            let one = |s: &ExternalCa| match &s.ca {
                Some(ca) => format!("url={},cacert={ca}", s.url),
                None => format!("url={}", s.url),
            };
            v.iter().map(one).collect::<Vec<_>>().join(";")
        }
    }
}

/// `None`: not of the slot's kind.
pub(super) fn read(slot: &Slot<'_>, s: &str) -> Option<Value> {
    match slot {
        Slot::Time(..) => parse_time(s).map(Value::Time),
        Slot::Count(..) | Slot::Mask(..) | Slot::Port(..) => s.parse().ok().map(Value::Count),
        Slot::Switch(_) => match s {
            "true" | "on" | "yes" => Some(Value::Switch(true)),
            "false" | "off" | "no" => Some(Value::Switch(false)),
            _ => None,
        },
        Slot::Pool(_) => s.parse().ok().map(Value::Pool),
        Slot::Pool6(_) => s.parse().ok().map(Value::Pool6),
        Slot::Signers(_) => signers(s).map(Value::Signers),
    }
}

/// `url=https://a/sign,cacert=PEM;url=https://b/sign`, or a bare URL. A PEM has neither comma nor semicolon.
fn signers(s: &str) -> Option<Vec<ExternalCa>> {
    let s = s.trim();
    if s.is_empty() {
        return Some(Vec::new());
    }
    s.split(';').map(signer).collect()
}

fn signer(s: &str) -> Option<ExternalCa> {
    if s.starts_with("https://") && !s.contains(',') {
        return Some(ExternalCa {
            url: s.to_owned(),
            ca: None,
        });
    }
    let (mut url, mut ca) = (None, None);
    for part in s.split(',') {
        let (key, value) = part.split_once('=')?;
        let at = match key {
            "url" => &mut url,
            "cacert" => &mut ca,
            // What Swarm's users write; CSR over HTTPS is all there is.
            "protocol" if value == "cfssl" => continue,
            _ => return None,
        };
        if at.replace(value.to_owned()).is_some() {
            return None;
        }
    }
    Some(ExternalCa { url: url?, ca })
}
