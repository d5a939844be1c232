//! `cargo xtask bench gossip`: how soon everybody knows, beside serf with its LAN profile.
//!
//! Both clusters stand at once, one host a member, and are measured in turns. An event counts from the moment when its
//! own member tells of it to the moment when another one does, as a reader of its stream sees it; a death from before the
//! host is switched off.

mod limit;
mod netd;
mod room;
mod serf;

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use super::figure::Figure;
use super::{Effort, Extra};
use crate::ui;

/// What a member told, and when it was read.
struct Told {
    /// Number of the member, from 0.
    by: usize,
    at: Instant,
    what: Word,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Word {
    /// An event, by its name.
    Event(String),
    /// Member so and so is dead.
    Dead(usize),
}

/// One of the two that are measured in turns.
trait Side {
    /// Whose members they are.
    fn name(&self) -> &'static str;
    /// Lets a member tell something under a name.
    fn tell(&mut self, by: usize, name: &str) -> anyhow::Result<()>;
    /// What members told.
    fn told(&self) -> &Receiver<Told>;
    /// Members.
    fn members(&self) -> usize;
}

/// An event that is not everywhere by then is lost.
const PATIENCE: Duration = Duration::from_secs(60);
/// Events of each side in a round.
const EVENTS: usize = 8;

pub(super) fn run(programs: &Path, effort: Effort, extra: &Extra) -> anyhow::Result<Vec<Figure>> {
    let members = usize::from(extra.nodes);
    let _room = room::for_neighbours(members)?;
    let mut ours = ui::during(&format!("{members} netd"), || netd::Cluster::new(programs, extra.nodes))?;
    let mut figures = ui::during("idle netd", || ours.idle(effort.idle()))?;
    let mut other = match serf::Cluster::new(programs, extra.nodes) {
        Ok(s) => Some(s),
        Err(e) => {
            eprintln!("serf is left out: {e:#}");
            None
        }
    };
    let (mut rows, mut events) = (Vec::new(), Vec::new());
    for round in 0..effort.rounds {
        rows.push(spread(&mut ours, round as usize)?);
        if let Some(other) = &mut other {
            events.push(spread(other, round as usize)?);
        }
        eprintln!(
            "    row: p99 {:.3} s{}",
            rows.last().copied().unwrap_or(0.0),
            events
                .last()
                .map(|e| format!(", serf's event {e:.3} s"))
                .unwrap_or_default()
        );
    }
    figures.push(Figure::own("gossip", "row_p99_s", "s", &rows));
    // A cost: how many times longer the other one takes.
    let pairs: Vec<(f64, f64)> = rows.iter().copied().zip(events.iter().copied()).collect();
    figures.extend(Figure::of_costs("gossip", "row_p99", "serf", "s", &pairs));

    // Serf has nothing to be compared with here: some of its members do not hear of a death within a minute.
    drop(other);
    let mut deaths = Vec::new();
    for round in 0..effort.rounds {
        // From the last one on: the first is the manager.
        let seen = death(&mut ours, members - 1 - round as usize)?;
        eprintln!("    death: seen by all after {seen:.3} s");
        deaths.push(seen);
    }
    figures.push(Figure::own("gossip", "death_p99_s", "s", &deaths));
    drop(ours);
    figures.push(ui::during("slow nodes", || {
        netd::false_deaths(programs, extra.nodes, extra.minutes_or(effort.quick))
    })?);
    Ok(figures)
}

/// Several events; the 99th percentile over all members that heard them, seconds.
fn spread(side: &mut impl Side, round: usize) -> anyhow::Result<f64> {
    let mut all = Vec::new();
    for n in 0..EVENTS {
        let by = (round * EVENTS + n) % side.members();
        let name = format!("e{round}-{n}");
        while side.told().try_recv().is_ok() {}
        side.tell(by, &name)?;
        let word = Word::Event(name);
        let (own, others) = wait(side, &word, Some(by), &BTreeSet::new())?;
        let own = own.context("the member itself did not tell")?;
        all.extend(others.iter().map(|at| at.saturating_duration_since(own).as_secs_f64()));
    }
    Ok(percentile(&mut all, 0.99))
}

/// Switches a host off: the 99th percentile over the others, seconds.
fn death(side: &mut netd::Cluster, victim: usize) -> anyhow::Result<f64> {
    while side.told().try_recv().is_ok() {}
    let dead: BTreeSet<usize> = (victim..side.members()).collect();
    let start = Instant::now();
    side.switch_off(victim)?;
    let (_, others) = wait(side, &Word::Dead(victim), None, &dead)?;
    let mut all: Vec<f64> = others
        .iter()
        .map(|at| at.saturating_duration_since(start).as_secs_f64())
        .collect();
    Ok(percentile(&mut all, 0.99))
}

/// When `own` told a word first, and when each of the others did; `without` are not waited for.
fn wait(
    side: &impl Side,
    word: &Word,
    own: Option<usize>,
    without: &BTreeSet<usize>,
) -> anyhow::Result<(Option<Instant>, Vec<Instant>)> {
    let mut missing: BTreeSet<usize> = (0..side.members()).filter(|m| !without.contains(m)).collect();
    let (mut first, mut others) = (None, Vec::new());
    let until = Instant::now() + PATIENCE;
    while !missing.is_empty() {
        match side
            .told()
            .recv_timeout(until.saturating_duration_since(Instant::now()))
        {
            Ok(told) if told.what == *word && missing.remove(&told.by) => {
                if Some(told.by) == own {
                    first = Some(told.at);
                } else {
                    others.push(told.at);
                }
            }
            Ok(_) => {}
            Err(RecvTimeoutError::Timeout) => bail!(
                "members {missing:?} of {} did not hear of {word:?} in {} s",
                side.name(),
                PATIENCE.as_secs()
            ),
            Err(RecvTimeoutError::Disconnected) => bail!("every member's stream has ended"),
        }
    }
    Ok((first, others))
}

/// The value below which a share of all lie; 0 of none.
fn percentile(all: &mut [f64], share: f64) -> f64 {
    all.sort_by(f64::total_cmp);
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "an index from a share"
    )]
    let at = ((all.len() as f64 * share).ceil() as usize).saturating_sub(1);
    all.get(at).copied().unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::percentile;

    #[test]
    fn the_slow_ones_count() {
        let mut all: Vec<f64> = (1..=100).map(f64::from).collect();
        assert!((percentile(&mut all, 0.99) - 99.0).abs() < 1e-9);
        assert!((percentile(&mut all[..10], 0.99) - 10.0).abs() < 1e-9);
        assert!(percentile(&mut [], 0.5).abs() < 1e-9);
    }
}
