//! How changes are carried out.

use std::time::Duration;

use clap::{Args, ValueEnum};
use model::{
    ApiError, ServiceSpec,
    spec::{FailureAction, Order, RollingUpdate},
};

use super::task::ms;
use crate::cli::duration;

#[derive(Debug, Args)]
#[command(next_help_heading = "How changes are carried out")]
pub(super) struct RollingFlags {
    /// Tasks replaced at a time; 0: all at once; default: 1.
    #[arg(long, value_name = "N")]
    update_parallelism: Option<u32>,
    /// Between two such batches; default: 0s.
    #[arg(long, value_parser = duration, value_name = "TIME")]
    update_delay: Option<Duration>,
    /// stop-first: each task is drained and stopped, then its successor starts; start-first: never fewer ready tasks than
    /// asked for; default: stop-first.
    #[arg(long, value_name = "ORDER")]
    update_order: Option<OrderArg>,
    /// How long a new task is watched for a failure after it is ready; default: 1s.
    #[arg(long, value_parser = duration, value_name = "TIME")]
    update_monitor: Option<Duration>,
    /// Share of tasks that may fail, 0.0 to 1.0; default: 0.
    #[arg(long, value_parser = ratio, value_name = "RATIO")]
    update_max_failure_ratio: Option<u16>,
    /// When more fail: pause, continue, or rollback; default: pause.
    #[arg(long, value_name = "ACTION")]
    update_failure_action: Option<ActionArg>,
    /// As --update-parallelism, for a rollback.
    #[arg(long, value_name = "N")]
    rollback_parallelism: Option<u32>,
    /// As --update-delay, for a rollback.
    #[arg(long, value_parser = duration, value_name = "TIME")]
    rollback_delay: Option<Duration>,
    /// As --update-order, for a rollback.
    #[arg(long, value_name = "ORDER")]
    rollback_order: Option<OrderArg>,
    /// As --update-monitor, for a rollback.
    #[arg(long, value_parser = duration, value_name = "TIME")]
    rollback_monitor: Option<Duration>,
    /// As --update-max-failure-ratio, for a rollback.
    #[arg(long, value_parser = ratio, value_name = "RATIO")]
    rollback_max_failure_ratio: Option<u16>,
    /// When more fail in a rollback: pause or continue; default: pause.
    #[arg(long, value_name = "ACTION")]
    rollback_failure_action: Option<BackArg>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum OrderArg {
    StopFirst,
    StartFirst,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum ActionArg {
    Pause,
    Continue,
    Rollback,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum BackArg {
    Pause,
    Continue,
}

impl From<OrderArg> for Order {
    fn from(o: OrderArg) -> Order {
        match o {
            OrderArg::StopFirst => Order::StopFirst,
            OrderArg::StartFirst => Order::StartFirst,
        }
    }
}

impl From<ActionArg> for FailureAction {
    fn from(a: ActionArg) -> FailureAction {
        match a {
            ActionArg::Pause => FailureAction::Pause,
            ActionArg::Continue => FailureAction::Continue,
            ActionArg::Rollback => FailureAction::Rollback,
        }
    }
}

impl From<BackArg> for FailureAction {
    fn from(a: BackArg) -> FailureAction {
        match a {
            BackArg::Pause => FailureAction::Pause,
            BackArg::Continue => FailureAction::Continue,
        }
    }
}

/// `0.25` as thousandths.
fn ratio(text: &str) -> Result<u16, String> {
    let bad = || format!("{text:?} is not a share from 0.0 to 1.0, in thousandths; try: 0.25");
    let (whole, part) = text.split_once('.').unwrap_or((text, "0"));
    let digits = |t: &str| !t.is_empty() && t.bytes().all(|b| b.is_ascii_digit());
    if !digits(whole) || !digits(part) || part.len() > 3 {
        return Err(bad());
    }
    let whole: u16 = whole.parse().map_err(|_| bad())?;
    let part: u16 = format!("{part:0<3}").parse().map_err(|_| bad())?;
    let all = whole.checked_mul(1000).and_then(|w| w.checked_add(part));
    all.filter(|n| *n <= 1000).ok_or_else(bad)
}

/// The flags of one of the two.
struct Given {
    parallelism: Option<u32>,
    delay: Option<Duration>,
    order: Option<Order>,
    monitor: Option<Duration>,
    ratio: Option<u16>,
    action: Option<FailureAction>,
}

impl Given {
    fn apply(self, rules: &mut RollingUpdate) {
        rules.parallelism = self.parallelism.unwrap_or(rules.parallelism);
        rules.delay_ms = self.delay.map_or(rules.delay_ms, ms);
        rules.order = self.order.unwrap_or(rules.order);
        rules.monitor_ms = self.monitor.map_or(rules.monitor_ms, ms);
        rules.max_failure_permille = self.ratio.unwrap_or(rules.max_failure_permille);
        rules.failure_action = self.action.unwrap_or(rules.failure_action);
    }
}

impl RollingFlags {
    pub(super) fn apply(&self, spec: &mut ServiceSpec) -> Result<(), ApiError> {
        Given {
            parallelism: self.update_parallelism,
            delay: self.update_delay,
            order: self.update_order.map(Order::from),
            monitor: self.update_monitor,
            ratio: self.update_max_failure_ratio,
            action: self.update_failure_action.map(FailureAction::from),
        }
        .apply(&mut spec.update);
        Given {
            parallelism: self.rollback_parallelism,
            delay: self.rollback_delay,
            order: self.rollback_order.map(Order::from),
            monitor: self.rollback_monitor,
            ratio: self.rollback_max_failure_ratio,
            action: self.rollback_failure_action.map(FailureAction::from),
        }
        .apply(&mut spec.rollback);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares() {
        for (text, n) in [
            ("0", 0),
            ("0.0", 0),
            ("1", 1000),
            ("1.0", 1000),
            ("0.25", 250),
            ("0.005", 5),
        ] {
            assert_eq!(ratio(text), Ok(n), "{text}");
        }
        for text in ["", ".", "1.1", "2", "-0.1", "0.2500", "a", "0.x", ".5"] {
            assert!(ratio(text).is_err(), "{text}");
        }
    }
}
