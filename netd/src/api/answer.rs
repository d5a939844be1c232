//! Answers and errors in the one shape that clients know.

use axum::{
    body::Bytes,
    extract::{FromRequest, Path, Request, rejection::BytesRejection},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use model::{ApiError, Code};
use serde::{Serialize, de::DeserializeOwned};

/// Largest request body, octets: a service with a long environment fits many times.
pub(super) const MAX_BODY: usize = 1 << 20;

/// The same where it carries a backup.
pub(super) const MAX_RESTORE: usize = 256 << 20;

/// A successful answer as JSON.
pub struct Answer<T>(pub T);

impl<T: Serialize> IntoResponse for Answer<T> {
    fn into_response(self) -> Response {
        match serde_json::to_vec(&self.0) {
            Ok(body) => (StatusCode::OK, [(header::CONTENT_TYPE, "application/json")], body).into_response(),
            Err(e) => Fail(ApiError::new(
                Code::Internal,
                format!("the answer cannot be written as JSON: {e}"),
                "",
            ))
            .into_response(),
        }
    }
}

/// A failed request.
#[derive(Debug)]
pub struct Fail(pub ApiError);

impl Fail {
    /// A failure with a hint.
    pub fn new(code: Code, message: impl Into<String>, hint: impl Into<String>) -> Fail {
        Fail(ApiError::new(code, message, hint))
    }
}

impl From<ApiError> for Fail {
    fn from(e: ApiError) -> Self {
        Fail(e)
    }
}

impl From<model::BadValue> for Fail {
    fn from(e: model::BadValue) -> Self {
        Fail(e.into())
    }
}

impl IntoResponse for Fail {
    fn into_response(self) -> Response {
        let mut e = self.0;
        if e.request_id.is_empty() {
            e.request_id = format!("{:016x}", rand::random::<u64>());
        }
        if e.code.http() >= 500 {
            tracing::warn!(request_id = %e.request_id, code = ?e.code, "request failed: {}", e.message);
        } else {
            tracing::debug!(request_id = %e.request_id, code = ?e.code, "request refused: {}", e.message);
        }
        let status = StatusCode::from_u16(e.code.http()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let body = serde_json::to_vec(&e).unwrap_or_default();
        (status, [(header::CONTENT_TYPE, "application/json")], body).into_response()
    }
}

/// A JSON body, whatever its Content-Type; an empty one is the type's default object.
pub(super) struct Body<T>(pub(super) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Body<T> {
    type Rejection = Fail;
    async fn from_request(req: Request, state: &S) -> Result<Self, Fail> {
        let bytes = Bytes::from_request(req, state).await.map_err(|e: BytesRejection| {
            Fail::new(
                Code::Invalid,
                format!("the body cannot be read: {e}"),
                format!("at most {MAX_BODY} octets of JSON"),
            )
        })?;
        let bytes: &[u8] = if bytes.is_empty() { b"{}" } else { &bytes };
        serde_json::from_slice(bytes).map(Body).map_err(|e| {
            Fail::new(
                Code::Invalid,
                format!("the body is not what this path takes: {e}"),
                "netctl --help",
            )
        })
    }
}

/// A path segment read as `T`.
pub(super) fn segment<T: std::str::FromStr<Err = model::BadValue>>(Path(text): Path<String>) -> Result<T, Fail> {
    Ok(text.parse::<T>()?)
}

pub(super) async fn unknown_path(req: Request) -> Fail {
    Fail::new(
        Code::NotFound,
        format!("no such path: {}", req.uri().path()),
        "netctl and netd of one version; paths begin with /v1",
    )
}

pub(super) async fn wrong_method(req: Request) -> Fail {
    Fail::new(
        Code::Invalid,
        format!("{} is not offered on {}", req.method(), req.uri().path()),
        "",
    )
}
