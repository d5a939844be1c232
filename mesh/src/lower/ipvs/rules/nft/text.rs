//! A table as text to read, as nft prints it.

use std::{
    fmt,
    net::{Ipv4Addr, Ipv6Addr},
};

use super::{Field, Set, Table};

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "table inet netd {{")?;
        for (name, set) in &self.sets {
            one_set(f, name, set)?;
        }
        for (name, chain) in &self.chains {
            writeln!(f, "\tchain {name} {{")?;
            let (kind, hook, priority) = (chain.kind, chain.hook_name, chain.priority);
            writeln!(f, "\t\ttype {kind} hook {hook} priority {priority}; policy accept;")?;
            for rule in &chain.rules {
                writeln!(f, "\t\t{} comment \"{}\"", rule.text, rule.comment)?;
            }
            writeln!(f, "\t}}")?;
        }
        writeln!(f, "}}")
    }
}

fn one_set(f: &mut fmt::Formatter<'_>, name: &str, set: &Set) -> fmt::Result {
    let (word, value) = if set.value.is_empty() {
        ("set", String::new())
    } else {
        ("map", format!(" : {}", types(&set.value)))
    };
    writeln!(f, "\t{word} {name} {{")?;
    writeln!(f, "\t\ttype {}{value}", types(&set.key))?;
    if set.ranges {
        writeln!(f, "\t\tflags interval")?;
    }
    let elements: Vec<String> = set.elements.iter().map(|(k, v)| element(set, k, v)).collect();
    if !elements.is_empty() {
        writeln!(f, "\t\telements = {{ {} }}", elements.join(",\n\t\t\t     "))?;
    }
    writeln!(f, "\t}}")
}

fn types(fields: &[Field]) -> String {
    let name = |f: &Field| match f {
        Field::V4 => "ipv4_addr",
        Field::V6 => "ipv6_addr",
        Field::Transport => "inet_proto",
        Field::Port => "inet_service",
        Field::Mark => "mark",
    };
    fields.iter().map(name).collect::<Vec<_>>().join(" . ")
}

fn element(set: &Set, (first, last): &(Vec<u8>, Vec<u8>), value: &[u8]) -> String {
    let (first, last) = (values(&set.key, first), values(&set.key, last));
    let key = first
        .iter()
        .zip(&last)
        .map(|(a, b)| if a == b { a.clone() } else { format!("{a}-{b}") });
    let key = key.collect::<Vec<_>>().join(" . ");
    if set.value.is_empty() {
        key
    } else {
        format!("{key} : {}", values(&set.value, value).join(" . "))
    }
}

fn values(fields: &[Field], mut octets: &[u8]) -> Vec<String> {
    let mut out = Vec::new();
    for field in fields {
        let (own, rest) = octets.split_at(octets.len().min(field.octets() as usize));
        octets = rest;
        out.push(match (field, own) {
            (Field::V4, [a, b, c, d]) => Ipv4Addr::new(*a, *b, *c, *d).to_string(),
            (Field::V6, own) => {
                <[u8; 16]>::try_from(own).map_or_else(|_| "?".into(), |a| Ipv6Addr::from(a).to_string())
            }
            (Field::Transport, [6, ..]) => "tcp".to_owned(),
            (Field::Transport, [17, ..]) => "udp".to_owned(),
            (Field::Transport, [132, ..]) => "sctp".to_owned(),
            (Field::Port, [a, b, ..]) => u16::from_be_bytes([*a, *b]).to_string(),
            (Field::Mark, [a, b, c, d]) => format!("{:#010x}", u32::from_ne_bytes([*a, *b, *c, *d])),
            _ => "?".to_owned(),
        });
    }
    out
}
