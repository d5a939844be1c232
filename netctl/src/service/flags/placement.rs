//! Which nodes.

use clap::Args;
use model::{
    ApiError, Name, ServiceSpec,
    spec::{Mode, Strategy},
};

#[derive(Debug, Args)]
#[command(next_help_heading = "Placement")]
pub(super) struct PlacementFlags {
    /// One task on each node that may have one, instead of --replicas; --global=false goes back.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    global: Option<bool>,
    /// Nodes that tasks may be on, e.g. node.labels.zone==a, node.hostname!=db*, node.role==worker,
    /// node.address==10.0.0.0/8, node.platform.arch==/x86.*/; may be repeated, all must hold; '' takes all away.
    #[arg(long, value_name = "KEY==VALUE")]
    constraint: Vec<String>,
    /// Only on nodes that have tasks of this service; may be repeated; '' takes all away.
    #[arg(long, value_name = "SERVICE", value_parser = service)]
    near: Vec<Option<Name>>,
    /// Only on nodes that have none of this service's tasks; its own name: one task a node; may be repeated; '' takes
    /// all away.
    #[arg(long, value_name = "SERVICE", value_parser = service)]
    apart: Vec<Option<Name>>,
    /// Not before this service is placed; may be repeated; '' takes all away.
    #[arg(long, value_name = "SERVICE", value_parser = service)]
    after: Vec<Option<Name>>,
    /// Label over whose values tasks are spread evenly, e.g. zone, or node.hostname; may be repeated, the first one comes
    /// first; '' takes all away.
    #[arg(long, value_name = "LABEL")]
    spread: Vec<String>,
    /// Which node is taken: spread (the emptiest), binpack (the fullest with room), random; default: spread.
    #[arg(long, value_name = "NAME", value_parser = strategy)]
    strategy: Option<Strategy>,
    /// Most tasks of this service on one node; 0: no limit.
    #[arg(long, value_name = "N")]
    max_per_node: Option<u32>,
    /// CPUs that each task is counted as, e.g. 0.5; 0: none.
    #[arg(long, value_name = "CPUS", value_parser = cpus)]
    reserve_cpu: Option<u64>,
    /// Memory that each task is counted as, e.g. 512M, 2G; 0: none.
    #[arg(long, value_name = "SIZE", value_parser = size)]
    reserve_memory: Option<u64>,
}

/// The name of a service; empty: none.
fn service(text: &str) -> Result<Option<Name>, String> {
    match text {
        "" => Ok(None),
        _ => text.parse().map(Some).map_err(|e: model::BadValue| e.to_string()),
    }
}

fn strategy(text: &str) -> Result<Strategy, String> {
    match text {
        "spread" => Ok(Strategy::Spread),
        "binpack" => Ok(Strategy::Binpack),
        "random" => Ok(Strategy::Random),
        _ => Err(format!(
            "{text:?} is none of spread, binpack and random; try: --strategy spread"
        )),
    }
}

/// `2`, `0.5`, `.25`: thousandths.
fn cpus(text: &str) -> Result<u64, String> {
    let bad = || format!("{text:?} is not a number of CPUs in thousandths; try: 0.5");
    let (whole, part) = text.split_once('.').unwrap_or((text, ""));
    if part.len() > 3 || (whole.is_empty() && part.is_empty()) {
        return Err(bad());
    }
    let number = |t: &str| match t.bytes().all(|b| b.is_ascii_digit()) {
        true if t.is_empty() => Ok(0),
        true => t.parse::<u64>().map_err(|_| bad()),
        false => Err(bad()),
    };
    let milli = number(whole)?.checked_mul(1000);
    let part = number(&format!("{part:0<3}"))?;
    milli.and_then(|m| m.checked_add(part)).ok_or_else(bad)
}

/// `512M`, `2GiB`, `1000000`: octets; the letters count in 1024.
fn size(text: &str) -> Result<u64, String> {
    let bad = || format!("{text:?} is not a size; try: 512M or 2G");
    let at = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(at);
    let shift = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        _ => return Err(bad()),
    };
    let number: u64 = number.parse().map_err(|_| bad())?;
    number.checked_mul(1 << shift).ok_or_else(bad)
}

/// `zone` stands for `node.labels.zone`.
fn key(text: &str) -> String {
    match text.starts_with("node.") {
        true => text.to_owned(),
        false => format!("node.labels.{text}"),
    }
}

impl PlacementFlags {
    pub(super) fn apply(&self, spec: &mut ServiceSpec) -> Result<(), ApiError> {
        if let Some(global) = self.global {
            spec.mode = if global { Mode::Global } else { Mode::Replicated };
        }
        let p = &mut spec.placement;
        let some = |list: &[String]| list.iter().filter(|t| !t.is_empty()).cloned().collect::<Vec<_>>();
        if !self.constraint.is_empty() {
            p.constraints = some(&self.constraint);
        }
        if !self.spread.is_empty() {
            p.spread = some(&self.spread).iter().map(|t| key(t)).collect();
        }
        for (given, kept) in [
            (&self.near, &mut p.near),
            (&self.apart, &mut p.apart),
            (&self.after, &mut p.after),
        ] {
            if !given.is_empty() {
                *kept = given.iter().flatten().cloned().collect();
            }
        }
        p.strategy = self.strategy.unwrap_or(p.strategy);
        if let Some(n) = self.max_per_node {
            p.max_per_node = (n > 0).then_some(n);
        }
        p.reserve.cpu_milli = self.reserve_cpu.unwrap_or(p.reserve.cpu_milli);
        p.reserve.memory = self.reserve_memory.unwrap_or(p.reserve.memory);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        flags: PlacementFlags,
    }

    fn over(spec: &mut ServiceSpec, words: &[&str]) -> Result<(), String> {
        let line = Line::try_parse_from(["x"].iter().chain(words)).map_err(|e| e.to_string())?;
        line.flags.apply(spec).map_err(|e| e.to_string())
    }

    #[test]
    fn what_is_given_changes_and_the_rest_stays() {
        let mut s = ServiceSpec::default();
        over(
            &mut s,
            &[
                "--global",
                "--constraint",
                "node.labels.zone==a",
                "--constraint",
                "node.role!=manager",
                "--near",
                "db",
                "--apart",
                "web",
                "--after",
                "db",
                "--spread",
                "zone",
                "--spread",
                "node.hostname",
                "--strategy",
                "binpack",
                "--max-per-node",
                "2",
                "--reserve-cpu",
                "0.25",
                "--reserve-memory",
                "512M",
            ],
        )
        .unwrap();
        let p = s.placement.clone();
        assert_eq!((s.mode, p.strategy), (Mode::Global, Strategy::Binpack));
        assert_eq!(p.constraints, ["node.labels.zone==a", "node.role!=manager"]);
        assert_eq!(p.spread, ["node.labels.zone", "node.hostname"]);
        assert_eq!(
            (p.near[0].as_str(), p.apart[0].as_str(), p.after[0].as_str()),
            ("db", "web", "db")
        );
        assert_eq!(
            (p.max_per_node, p.reserve.cpu_milli, p.reserve.memory),
            (Some(2), 250, 512 << 20)
        );
        over(&mut s, &[]).unwrap();
        assert_eq!(s.placement, p);
        over(
            &mut s,
            &[
                "--global=false",
                "--constraint",
                "",
                "--near",
                "",
                "--spread",
                "",
                "--max-per-node",
                "0",
            ],
        )
        .unwrap();
        assert_eq!(s.mode, Mode::Replicated);
        assert!(s.placement.constraints.is_empty() && s.placement.near.is_empty() && s.placement.spread.is_empty());
        assert_eq!((s.placement.max_per_node, s.placement.after.len()), (None, 1));
    }

    #[test]
    fn numbers() {
        for (text, milli) in [
            ("1", 1000),
            ("0.5", 500),
            (".25", 250),
            ("2.", 2000),
            ("0", 0),
            ("1.125", 1125),
        ] {
            assert_eq!(cpus(text), Ok(milli), "{text}");
        }
        for (text, octets) in [("0", 0), ("10", 10), ("1k", 1024), ("2GiB", 2 << 30), ("3mb", 3 << 20)] {
            assert_eq!(size(text), Ok(octets), "{text}");
        }
        for bad in ["", ".", "-1", "1.0001", "a", "1m", "99999999999999999999"] {
            assert!(cpus(bad).is_err(), "{bad}");
        }
        for bad in ["", "M", "-1", "1.5G", "1X", "99999999999T"] {
            assert!(size(bad).is_err(), "{bad}");
        }
    }
}
