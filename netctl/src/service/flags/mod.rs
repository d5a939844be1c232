//! Flags that say what a service should be: `create` lays them over the defaults, `update` over what there is.

mod health;
mod placement;
mod publish;
mod rolling;
mod task;
mod traffic;

pub(super) use task::Pair;

use clap::Args;
use model::{ApiError, Code, ServiceSpec};

/// All of them; what is not given stays as it is.
#[derive(Debug, Args)]
pub(super) struct SpecFlags {
    #[command(flatten)]
    task: task::TaskFlags,
    #[command(flatten)]
    publish: publish::PublishFlags,
    #[command(flatten)]
    traffic: traffic::TrafficFlags,
    #[command(flatten)]
    placement: placement::PlacementFlags,
    #[command(flatten)]
    rolling: rolling::RollingFlags,
}

impl SpecFlags {
    /// Changes what is given.
    pub(super) fn apply(&self, spec: &mut ServiceSpec) -> Result<(), ApiError> {
        self.task.apply(spec)?;
        self.publish.apply(spec)?;
        self.traffic.apply(spec)?;
        self.placement.apply(spec)?;
        self.rolling.apply(spec)
    }
}

fn twice(flag: &str, value: &str) -> ApiError {
    ApiError::new(
        Code::Invalid,
        format!("{flag} is given twice"),
        format!("{flag}={value}"),
    )
}
