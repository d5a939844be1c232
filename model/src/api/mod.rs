//! What is said on `/run/netd/netd.sock`: HTTP/1.1 with JSON below `/v1`. Each type names its path.

mod cluster;
mod endpoints;
mod identity;
mod logs;
mod nodes;
mod place;
mod services;
mod tasks;

pub use cluster::*;
pub use endpoints::*;
pub use identity::*;
pub use logs::*;
pub use nodes::*;
pub use place::*;
pub use services::*;
pub use tasks::*;

/// Header of a request: a hexadecimal number that its sender chose. The same one sent again changes nothing again.
pub const REQUEST_HEADER: &str = "netd-request";

/// Header of an answer that may be old, and why.
pub const STALE_HEADER: &str = "netd-stale";
