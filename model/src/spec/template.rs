//! Templates in host names and environments: `{{.Service}}-{{.Slot}}`.

use std::cell::RefCell;

use crate::ids::{BadValue, Name, NodeId};

/// What a task's templates are filled with.
#[derive(Debug, Clone, Copy)]
pub struct Fill<'a> {
    /// Its service.
    pub service: &'a Name,
    /// Its slot.
    pub slot: u32,
    /// Its node.
    pub node: NodeId,
    /// The node's host name.
    pub hostname: &'a str,
}

/// Longest host name, octets (`HOST_NAME_MAX` of linux/limits.h).
pub const MAX_HOSTNAME: usize = 64;

/// What stands between `{{` and `}}`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Field {
    Service,
    Slot,
    Node,
    NodeId,
    Task,
}

impl Field {
    /// Our words, and Swarm's longer ones.
    fn parse(text: &str) -> Option<Field> {
        Some(match text.trim() {
            ".Service" | ".Service.Name" => Field::Service,
            ".Slot" | ".Task.Slot" => Field::Slot,
            ".Node" | ".Node.Hostname" => Field::Node,
            ".Node.ID" => Field::NodeId,
            ".Task" | ".Task.Name" => Field::Task,
            _ => return None,
        })
    }

    fn text(self, f: &Fill<'_>) -> String {
        match self {
            Field::Service => f.service.to_string(),
            Field::Slot => f.slot.to_string(),
            Field::Node => f.hostname.to_owned(),
            Field::NodeId => f.node.to_string(),
            Field::Task => format!("{}.{}", f.service, f.slot),
        }
    }
}

const KNOWN: &str = "{{.Service}}, {{.Slot}}, {{.Node}}, {{.Node.ID}}, {{.Task}}";

/// Hands the parts of a text to `plain` and `field`, in order.
fn parts(text: &str, mut plain: impl FnMut(&str), mut field: impl FnMut(Field)) -> Result<(), BadValue> {
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("{{") {
        plain(before);
        let (inside, behind) = after
            .split_once("}}")
            .ok_or_else(|| BadValue::new("template", text, "has a {{ without its }}", KNOWN))?;
        field(Field::parse(inside).ok_or_else(|| BadValue::new("template", text, "has an unknown field", KNOWN))?);
        rest = behind;
    }
    plain(rest);
    Ok(())
}

/// Refuses an unknown field, and a `{{` without its `}}`.
pub fn check(text: &str) -> Result<(), BadValue> {
    parts(text, |_| {}, |_| {})
}

/// Refuses what can be no host name, whatever it is filled with: other characters than letters, digits, `-` and `.`, or
/// more than [`MAX_HOSTNAME`] octets.
pub fn check_hostname(text: &str, service: &Name) -> Result<(), BadValue> {
    let (mut sound, mut plain, mut filled) = (true, 0, 0);
    parts(
        text,
        |t| {
            sound &= t.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '.'));
            plain += t.len();
        },
        |f| {
            filled += match f {
                Field::Service => service.as_str().len(),
                Field::Task => service.as_str().len() + 2,
                Field::Slot | Field::Node | Field::NodeId => 1,
            }
        },
    )?;
    let length = plain + filled;
    let hint = "--hostname '{{.Service}}-{{.Slot}}'";
    if !sound {
        let why = "has other characters than letters, digits, hyphens and dots";
        return Err(BadValue::new("host name", text, why, hint));
    }
    if length == 0 || length > MAX_HOSTNAME {
        return Err(BadValue::new("host name", text, "is not 1 to 64 characters long", hint));
    }
    Ok(())
}

/// Fills a template in. What cannot be read as one stays as it is: [`check`] came before.
pub fn fill(text: &str, with: &Fill<'_>) -> String {
    let out = RefCell::new(String::new());
    let add = |t: &str| out.borrow_mut().push_str(t);
    match parts(text, add, |f| add(&f.text(with))) {
        Ok(()) => out.into_inner(),
        Err(_) => text.to_owned(),
    }
}

/// A task's host name: [`fill`], what the node's name brings in made fit for one, cut to [`MAX_HOSTNAME`].
pub fn hostname(text: &str, with: &Fill<'_>) -> String {
    let fit = |c: char| match c.is_ascii_alphanumeric() || matches!(c, '-' | '.') {
        true => c,
        false => '-',
    };
    fill(text, with).chars().map(fit).take(MAX_HOSTNAME).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates() {
        let service: Name = "web".parse().unwrap();
        let with = Fill {
            service: &service,
            slot: 3,
            node: NodeId(7),
            hostname: "rack_4.example",
        };
        for (text, filled) in [
            ("", ""),
            ("plain {x} }}", "plain {x} }}"),
            ("{{.Service}}-{{ .Slot }}", "web-3"),
            ("{{.Service.Name}}.{{.Task.Slot}}.{{.Task.Name}}", "web.3.web.3"),
            (
                "{{.Node}}/{{.Node.Hostname}}/{{.Node.ID}}",
                "rack_4.example/rack_4.example/n7",
            ),
        ] {
            check(text).unwrap();
            assert_eq!(fill(text, &with), filled);
        }
        for bad in ["{{.Slut}}", "{{}}", "{{.Service", "{{{{.Slot}}}}", "{{range}}"] {
            let e = check(bad).unwrap_err();
            assert!(e.to_string().contains("{{.Slot}}"), "{e}");
        }
        assert_eq!(hostname("{{.Node}}-{{.Slot}}", &with), "rack-4.example-3");
        let long = Fill {
            hostname: &"x".repeat(200),
            ..with
        };
        assert_eq!(hostname("{{.Node}}", &long).len(), MAX_HOSTNAME);
    }

    #[test]
    fn host_names() {
        let service: Name = "web".parse().unwrap();
        for good in ["web", "{{.Service}}-{{.Slot}}", "a.b-c", "{{.Node}}"] {
            check_hostname(good, &service).unwrap();
        }
        let long = "x".repeat(62);
        check_hostname(&long, &service).unwrap();
        for bad in ["", "a b", "a_b", "ü", "{{.Task}}\n", &format!("{long}{{{{.Service}}}}")] {
            check_hostname(bad, &service).unwrap_err();
        }
    }
}
