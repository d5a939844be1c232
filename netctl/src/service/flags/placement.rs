//! Which nodes.

use clap::Args;
use model::{ApiError, ServiceSpec};

#[derive(Debug, Args)]
pub(super) struct PlacementFlags {}

impl PlacementFlags {
    pub(super) fn apply(&self, _: &mut ServiceSpec) -> Result<(), ApiError> {
        Ok(())
    }
}
