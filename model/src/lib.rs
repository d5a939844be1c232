//! The vocabulary of netd: ids, specs, intent, rows, and what is said on the Unix socket.
//!
//! Plain data and its checks, nothing that decides. Every other room speaks in these types; the names are the field's:
//! network, service, task, slot, endpoint, backend, VIP, VNI, published port.

pub mod api;
#[cfg(feature = "client")]
pub mod client;
pub mod error;
pub mod ids;
pub mod intent;
pub mod row;
pub mod settings;
pub mod shared;
pub mod spec;
pub mod stamps;

pub use error::{ApiError, Code};
pub use ids::{BadValue, Device, EndpointId, Mac, Name, NodeId, Proto, Vni};
pub use intent::Intent;
pub use row::{EndpointRow, EndpointState, NodeRow, Row, RowBody, RowKey};
pub use settings::ClusterSettings;
pub use shared::Shared;
pub use spec::{NetworkSpec, On, PortSpec, PublishMode, ServiceSpec};
