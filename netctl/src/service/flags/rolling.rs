//! How changes are carried out.

use clap::Args;
use model::{ApiError, ServiceSpec};

#[derive(Debug, Args)]
pub(super) struct RollingFlags {}

impl RollingFlags {
    pub(super) fn apply(&self, _: &mut ServiceSpec) -> Result<(), ApiError> {
        Ok(())
    }
}
