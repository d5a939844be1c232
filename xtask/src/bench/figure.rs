//! What a bench reports.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

type Text = Cow<'static, str>;

/// One line of a report.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Figure {
    pub(super) bench: Text,
    pub(super) metric: Text,
    /// Who netd is compared with.
    pub(super) contender: Option<Text>,
    /// How many times better netd is: the median over the rounds.
    pub(super) ratio: Option<f64>,
    /// netd's own figure: the median over the rounds.
    pub(super) value: f64,
    pub(super) unit: String,
    /// Rounds.
    pub(super) n: usize,
    /// Smallest ratio of a round.
    pub(super) min: f64,
    /// Largest ratio of a round.
    pub(super) max: f64,
}

impl Figure {
    /// From pairs (netd, contender), one a round; more is better. `None` without a round.
    pub(super) fn from_rounds(
        bench: &'static str,
        metric: impl Into<Text>,
        contender: &'static str,
        unit: &'static str,
        rounds: &[(f64, f64)],
    ) -> Option<Figure> {
        let ratios: Vec<f64> = rounds
            .iter()
            .filter(|(_, other)| *other > 0.0)
            .map(|(own, other)| own / other)
            .collect();
        Some(Figure {
            bench: bench.into(),
            metric: metric.into(),
            contender: Some(contender.into()),
            ratio: Some(round(median(&ratios)?)),
            value: round(median(&rounds.iter().map(|r| r.0).collect::<Vec<_>>())?),
            unit: unit.to_owned(),
            n: ratios.len(),
            min: round(ratios.iter().copied().fold(f64::INFINITY, f64::min)),
            max: round(ratios.iter().copied().fold(f64::NEG_INFINITY, f64::max)),
        })
    }
}

impl Figure {
    /// From pairs (netd, contender) of a cost, one a round; less is better, so the ratio is contender / netd.
    pub(super) fn of_costs(
        bench: &'static str,
        metric: impl Into<Text>,
        contender: &'static str,
        unit: &'static str,
        rounds: &[(f64, f64)],
    ) -> Option<Figure> {
        let turned: Vec<(f64, f64)> = rounds.iter().map(|(own, other)| (*other, *own)).collect();
        let own: Vec<f64> = rounds.iter().map(|r| r.0).collect();
        let mut figure = Figure::from_rounds(bench, metric, contender, unit, &turned)?;
        figure.value = round(median(&own)?);
        Some(figure)
    }

    /// A figure of netd's own: the median, and between which values it lay.
    pub(super) fn own(bench: &'static str, metric: impl Into<Text>, unit: &str, values: &[f64]) -> Figure {
        Figure {
            bench: bench.into(),
            metric: metric.into(),
            contender: None,
            ratio: None,
            value: round(median(values).unwrap_or(0.0)),
            unit: unit.to_owned(),
            n: values.len(),
            min: round(values.iter().copied().fold(f64::INFINITY, f64::min)),
            max: round(values.iter().copied().fold(f64::NEG_INFINITY, f64::max)),
        }
    }
}

/// The middle value; between two, their mean.
fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let upper = *sorted.get(sorted.len() / 2)?;
    if sorted.len() % 2 == 1 {
        return Some(upper);
    }
    Some(f64::midpoint(*sorted.get(sorted.len() / 2 - 1)?, upper))
}

fn round(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

pub(super) fn table(figures: &[Figure]) -> String {
    let mut rows = vec![
        ["bench", "metric", "against", "ratio", "min", "max", "n", "netd", "unit"]
            .map(str::to_owned)
            .to_vec(),
    ];
    for f in figures {
        rows.push(vec![
            f.bench.clone().into_owned(),
            f.metric.clone().into_owned(),
            f.contender.as_deref().unwrap_or("-").to_owned(),
            f.ratio.map_or("-".to_owned(), |r| format!("{r:.3}")),
            format!("{:.3}", f.min),
            format!("{:.3}", f.max),
            f.n.to_string(),
            format!("{:.2}", f.value),
            f.unit.clone(),
        ]);
    }
    crate::ui::table(&rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle_is_taken() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), Some(2.5));
    }

    #[test]
    fn of_a_cost_less_is_better() {
        let f = Figure::of_costs("gossip", "row_p99", "serf", "s", &[(0.1, 0.2), (0.2, 0.2), (0.1, 0.4)]).unwrap();
        assert_eq!((f.ratio, f.min, f.max, f.value), (Some(2.0), 1.0, 4.0, 0.1));
    }

    #[test]
    fn a_figure_is_read_as_it_was_written() {
        let one = Figure::from_rounds("ipvs", format!("{}_short", "swarm"), "direct", "conn/s", &[(1.0, 2.0)]).unwrap();
        for figure in [one, Figure::own("mesh", "change_100_ms", "ms", &[0.5])] {
            let text = serde_json::to_string(&figure).unwrap();
            assert_eq!(serde_json::from_str::<Figure>(&text).unwrap(), figure);
        }
    }

    #[test]
    fn a_ratio_is_of_one_round() {
        // The machine is twice as fast in the second round: the ratio does not see it.
        let f = Figure::from_rounds("mesh", "short", "direct", "conn/s", &[(110.0, 100.0), (220.0, 200.0)]).unwrap();
        assert_eq!((f.ratio, f.min, f.max, f.n, f.value), (Some(1.1), 1.1, 1.1, 2, 165.0));
        assert!(Figure::from_rounds("mesh", "short", "direct", "conn/s", &[]).is_none());
    }
}
