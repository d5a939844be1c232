//! What constraints and spread preferences say of nodes: `node.labels.zone==a`, `node.hostname!=db*`,
//! `node.platform.arch==/x86.*/`.

use std::{borrow::Cow, net::IpAddr};

use ipnet::IpNet;
use model::{
    NodeId,
    intent::{Node, Role},
};
use regex_lite::{Regex, RegexBuilder};

/// Longest text of one expression, octets.
const MAX_TEXT: usize = 512;
/// Largest program of a regular expression, octets: bounds what one match costs.
const MAX_REGEX: usize = 64 << 10;

/// Why a text is no expression.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadExpr {
    /// What and why.
    pub message: String,
    /// What to try.
    pub hint: String,
}

fn bad(message: impl Into<String>, hint: impl Into<String>) -> BadExpr {
    BadExpr {
        message: message.into(),
        hint: hint.into(),
    }
}

/// What is looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Key {
    /// `node.id`: `n2`.
    Id,
    /// `node.hostname`.
    Hostname,
    /// `node.role`: `manager` or `worker`.
    Role,
    /// `node.address`: of its data path.
    Address,
    /// `node.platform.os`: `linux`.
    Os,
    /// `node.platform.arch`: `x86_64`, `aarch64`.
    Arch,
    /// `node.labels.NAME`.
    Label(String),
}

impl Key {
    /// Reads one.
    pub fn parse(text: &str) -> Result<Key, BadExpr> {
        Ok(match text {
            "node.id" => Key::Id,
            "node.hostname" => Key::Hostname,
            "node.role" => Key::Role,
            "node.address" | "node.ip" => Key::Address,
            "node.platform.os" => Key::Os,
            "node.platform.arch" => Key::Arch,
            _ => match text.strip_prefix("node.labels.") {
                Some(label) if !label.is_empty() => Key::Label(label.to_owned()),
                _ => {
                    return Err(bad(
                        format!("{text:?} is nothing that a node has"),
                        "node.labels.NAME, node.hostname, node.id, node.role, node.address, node.platform.os or node.platform.arch",
                    ));
                }
            },
        })
    }

    /// What a node has there; `None`: nothing, or it has not told it yet.
    pub fn of<'n>(&self, id: NodeId, node: &'n Node) -> Option<Cow<'n, str>> {
        let told = |s: &'n str| (!s.is_empty()).then_some(Cow::Borrowed(s));
        match self {
            Key::Id => Some(id.to_string().into()),
            Key::Hostname => told(&node.hostname),
            Key::Role => Some(match node.role {
                Role::Manager => "manager".into(),
                Role::Worker => "worker".into(),
            }),
            Key::Address => node.machine.address.map(|a| a.to_string().into()),
            Key::Os => told(&node.machine.os),
            Key::Arch => told(&node.machine.arch),
            Key::Label(label) => node.labels.get(label).map(|v| v.as_str().into()),
        }
    }
}

/// What it is compared with.
#[derive(Debug, Clone)]
enum Value {
    Text(String),
    Glob(String),
    Regex(Regex),
    Net(IpNet),
}

/// A constraint: what it says of a node is true or not.
#[derive(Debug, Clone)]
pub struct Constraint {
    key: Key,
    equal: bool,
    value: Value,
}

impl Constraint {
    /// Reads one.
    pub fn parse(text: &str) -> Result<Constraint, BadExpr> {
        const EXAMPLES: &str = "node.labels.zone==a, node.hostname!=db*, node.platform.arch==/x86.*/";
        if text.len() > MAX_TEXT {
            return Err(bad(
                format!("a constraint is longer than {MAX_TEXT} characters"),
                EXAMPLES,
            ));
        }
        let at = [text.find("=="), text.find("!=")].into_iter().flatten().min();
        let Some(at) = at else {
            return Err(bad(format!("the constraint {text:?} has neither == nor !="), EXAMPLES));
        };
        let (key, rest) = text.split_at(at);
        let (op, value) = rest.split_at(2);
        let key = Key::parse(key.trim())?;
        let value = value.trim();
        if value.is_empty() {
            return Err(bad(format!("the constraint {text:?} compares with nothing"), EXAMPLES));
        }
        Ok(Constraint {
            equal: op == "==",
            value: value_of(&key, value)?,
            key,
        })
    }

    /// Whether it holds for a node. What a node does not have is equal to nothing.
    pub fn holds(&self, id: NodeId, node: &Node) -> bool {
        let same = match &self.value {
            Value::Net(net) => node.machine.address.is_some_and(|a| net.contains(&a)),
            value => self.key.of(id, node).is_some_and(|has| match value {
                Value::Text(text) => has == text.as_str() || (self.key == Key::Arch && arch(&has) == arch(text)),
                Value::Glob(pattern) => glob(pattern.as_bytes(), has.as_bytes()),
                Value::Regex(regex) => regex.is_match(&has),
                Value::Net(_) => false,
            }),
        };
        same == self.equal
    }
}

fn value_of(key: &Key, value: &str) -> Result<Value, BadExpr> {
    if let Some(pattern) = value.strip_prefix('/').and_then(|v| v.strip_suffix('/')) {
        let regex = RegexBuilder::new(pattern).size_limit(MAX_REGEX).build();
        return regex
            .map(Value::Regex)
            .map_err(|e| bad(format!("/{pattern}/ is no regular expression: {e}"), "/^db[0-9]+$/"));
    }
    if *key == Key::Address {
        let one = value.parse::<IpAddr>().map(IpNet::from);
        return value.parse::<IpNet>().or(one).map(Value::Net).map_err(|_| {
            bad(
                format!("{value:?} is neither an address nor a prefix"),
                "node.address==198.51.100.0/24",
            )
        });
    }
    if value.contains(['*', '?']) {
        return Ok(Value::Glob(value.to_owned()));
    }
    if *key == Key::Role && !matches!(value, "manager" | "worker") {
        return Err(bad(
            format!("{value:?} is no role: a node is a manager or a worker"),
            "node.role==worker",
        ));
    }
    Ok(Value::Text(value.to_owned()))
}

/// The words of containers' images for architectures mean the same as the kernel's.
fn arch(text: &str) -> &str {
    match text {
        "amd64" => "x86_64",
        "arm64" => "aarch64",
        other => other,
    }
}

/// Whether `*` (any run) and `?` (any one octet) in `pattern` can stand for what `text` has there. Never more than
/// the product of both lengths in steps.
fn glob(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p, t));
                p += 1;
            }
            Some(c) if *c == b'?' || *c == text[t] => {
                p += 1;
                t += 1;
            }
            _ => match &mut star {
                // The last star takes one more.
                Some((at, upto)) => {
                    *upto += 1;
                    (p, t) = (*at + 1, *upto);
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|c| *c == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node() -> Node {
        let mut n = super::super::tests::node("db1");
        n.labels.insert("zone".into(), "a".into());
        n.machine.os = "linux".into();
        n.machine.arch = "x86_64".into();
        n.machine.address = Some("198.51.100.7".parse().unwrap());
        n
    }

    #[test]
    fn what_holds() {
        for (text, holds) in [
            ("node.id==n3", true),
            ("node.id!=n3", false),
            ("node.hostname == db1", true),
            ("node.hostname==db*", true),
            ("node.hostname==d?1", true),
            ("node.hostname==d?", false),
            ("node.hostname!=web*", true),
            ("node.hostname==*b*1*", true),
            ("node.hostname==/^db[0-9]$/", true),
            ("node.hostname==/b/", true),
            ("node.hostname!=/b/", false),
            ("node.role==worker", true),
            ("node.role!=manager", true),
            ("node.role==man*", false),
            ("node.address==198.51.100.0/24", true),
            ("node.address==198.51.100.7", true),
            ("node.address!=198.51.100.8", true),
            ("node.address==2001:db8::/32", false),
            ("node.ip==198.51.0.0/16", true),
            ("node.platform.os==linux", true),
            ("node.platform.arch==amd64", true),
            ("node.platform.arch==x86_64", true),
            ("node.platform.arch==/x86.*/", true),
            ("node.platform.arch==arm64", false),
            ("node.labels.zone==a", true),
            ("node.labels.zone!=b", true),
            ("node.labels.rack==1", false),
            ("node.labels.rack!=1", true),
            ("node.labels.rack==*", false),
        ] {
            let c = Constraint::parse(text).unwrap();
            assert_eq!(c.holds(NodeId(3), &node()), holds, "{text}");
        }
    }

    #[test]
    fn what_is_none() {
        for (text, word) in [
            ("", "neither == nor !="),
            ("node.hostname", "neither == nor !="),
            ("node.hostname=a", "neither == nor !="),
            ("node.hostname==", "with nothing"),
            ("node.labels.==a", "nothing that a node has"),
            ("engine.labels.x==a", "nothing that a node has"),
            ("node.role==boss", "manager or a worker"),
            ("node.address==db", "neither an address nor a prefix"),
            ("node.id==/(/", "no regular expression"),
            ("node.id==/(a{1000}){1000}/", "no regular expression"),
        ] {
            let e = Constraint::parse(text).unwrap_err();
            assert!(e.message.contains(word), "{text}: {}", e.message);
            assert!(!e.hint.is_empty());
        }
        assert!(Constraint::parse(&format!("node.id=={}", "x".repeat(600))).is_err());
    }

    #[test]
    fn globs_end() {
        let many = "*a".repeat(200);
        assert!(!glob(many.as_bytes(), "a".repeat(150).as_bytes()));
        assert!(glob(b"**", b"") && glob(b"", b"") && !glob(b"", b"a") && glob(b"a*", b"a"));
    }
}
