//! The Unix socket: HTTP/1.1 and JSON below `/v1`. Root alone may connect in this version.
//!
//! Handlers check, call the rooms, and wait for nothing but the answer; waiting for convergence is the client's, by
//! `/v1/convergence`.

mod answer;
mod cluster;
pub(crate) mod command;
mod endpoints;
mod forwarded;
mod networks;
mod nodes;
mod placing;
mod ports;
mod route;
mod serve;
mod services;
mod settings;
mod status;
mod tasks;
mod watch;

use std::sync::Arc;

use axum::{
    Router,
    routing::{get, post, put},
};

use crate::daemon::Daemon;

pub use answer::{Answer, Fail};
pub(crate) use command::{PATH as COMMAND_PATH, SETTLED as SETTLED_PATH, encode as encode_command};
pub use forwarded::query;
pub(crate) use route::NOT_LEADER;
pub use serve::{listen, serve};

/// State of every handler.
pub type Shared = Arc<Daemon>;

/// All paths.
pub fn router(daemon: Shared) -> Router {
    Router::new()
        .route("/v1/healthz", get(status::healthz))
        .route("/v1/readyz", get(status::readyz))
        .route("/v1/status", get(status::status))
        .route("/v1/convergence", get(status::convergence))
        .route("/v1/cluster/init", post(cluster::init))
        .route("/v1/cluster/join", post(cluster::join))
        .route("/v1/cluster/leave", post(cluster::leave))
        .route("/v1/cluster/members", get(cluster::members))
        .route("/v1/cluster/token", get(cluster::token).post(cluster::rotate_token))
        .route("/v1/cluster/renew", post(cluster::renew))
        .route("/v1/cluster/custody", get(cluster::custody))
        .route("/v1/cluster/ca/rotate", post(cluster::rotate_ca))
        .route("/v1/cluster/unlock", post(cluster::unlock))
        .route(
            "/v1/cluster/unlock-key",
            get(cluster::unlock_key).post(cluster::rotate_unlock_key),
        )
        .route("/v1/cluster/quorum", get(cluster::quorum))
        .route("/v1/cluster/transfer", post(cluster::transfer))
        .route("/v1/cluster/recover", post(cluster::recover))
        .route("/v1/cluster/backup", post(cluster::backup))
        .route(
            "/v1/cluster/restore",
            post(cluster::restore).layer(axum::extract::DefaultBodyLimit::max(answer::MAX_RESTORE)),
        )
        .route("/v1/discover", post(cluster::discover))
        .route("/v1/cluster", get(settings::inspect))
        .route("/v1/cluster/update", post(settings::update))
        .route("/v1/nodes", get(nodes::list))
        .route(
            "/v1/nodes/{id}",
            get(nodes::one).post(nodes::update).delete(nodes::remove),
        )
        .route("/v1/nodes/{id}/role", post(nodes::role))
        .route("/v1/nodes/{id}/tasks", get(tasks::on))
        .route("/v1/networks", get(networks::list))
        .route(
            "/v1/networks/{name}",
            put(networks::create).get(networks::one).delete(networks::remove),
        )
        .route("/v1/services", get(services::list))
        .route(
            "/v1/services/{name}",
            put(services::create).get(services::one).delete(services::remove),
        )
        .route("/v1/services/{name}/scale", post(services::scale))
        .route("/v1/services/{name}/update", post(services::update))
        .route("/v1/services/{name}/rollback", post(services::rollback))
        .route("/v1/services/{name}/rebalance", post(placing::rebalance))
        .route("/v1/services/{name}/preview", post(placing::preview))
        .route("/v1/services/{name}/tasks", get(services::tasks))
        .route("/v1/services/{name}/logs", post(services::logs))
        .route("/v1/publish", post(ports::publish))
        .route("/v1/unpublish", post(ports::unpublish))
        .route("/v1/watch", get(watch::watch))
        .route("/v1/tasks", get(tasks::list))
        .route("/v1/tasks/{id}", get(tasks::one))
        .route("/v1/tasks/{id}/logs", post(tasks::logs))
        .route("/v1/tasks/{id}/status", put(watch::task_status))
        .route("/v1/endpoints", get(endpoints::list))
        .route(
            "/v1/endpoints/{id}",
            put(endpoints::attach).get(endpoints::one).delete(endpoints::detach),
        )
        .route("/v1/endpoints/{id}/drain", post(endpoints::drain))
        .route(
            command::PATH,
            post(command::command).layer(axum::extract::DefaultBodyLimit::max(command::MAX)),
        )
        .route(command::SETTLED, get(command::settled))
        .fallback(answer::unknown_path)
        .method_not_allowed_fallback(answer::wrong_method)
        .layer(axum::extract::DefaultBodyLimit::max(answer::MAX_BODY))
        .layer(axum::middleware::from_fn_with_state(daemon.clone(), route::route))
        .with_state(daemon)
}
