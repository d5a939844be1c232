//! Published ports.

use clap::Args;
use model::{ApiError, PortSpec, ServiceSpec};

#[derive(Debug, Args)]
pub(super) struct PublishFlags {
    /// Port to publish on every node, e.g. 80, 80:8080, 53/udp; may be repeated.
    #[arg(short, long, value_name = "PORT[:TARGET][/PROTO]")]
    publish: Vec<PortSpec>,
}

impl PublishFlags {
    pub(super) fn apply(&self, spec: &mut ServiceSpec) -> Result<(), ApiError> {
        if !self.publish.is_empty() {
            spec.publish.clone_from(&self.publish);
        }
        Ok(())
    }
}
