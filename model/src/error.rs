//! The error that leaves netd: one shape on the socket, one exit code in netctl.

use serde::{Deserialize, Serialize};

/// Why a request was refused or failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Code {
    /// The request is malformed (400, exit 2).
    Invalid,
    /// The request fits several things; the message lists them (409, exit 2).
    Ambiguous,
    /// The caller may not do that (403, exit 1).
    Forbidden,
    /// No such thing (404, exit 1).
    NotFound,
    /// It exists already, or is in use (409, exit 1).
    Conflict,
    /// This node is in no cluster (409, exit 1).
    NoCluster,
    /// Only a manager can do that; the message names them (421, exit 1).
    NotManager,
    /// No quorum, no leader, a peer cannot be reached (503, exit 1).
    Unavailable,
    /// Accepted, but not true everywhere in time (504, exit 3).
    NotConverged,
    /// netd itself cannot be reached (exit 4); made by clients.
    Unreachable,
    /// True, but with less than asked for (exit 5).
    Degraded,
    /// This host lacks something; the message names it (501, exit 1).
    Unsupported,
    /// A fault of netd's or of the kernel (500, exit 1).
    Internal,
    /// This manager's keys are sealed until a person gives the key (423, exit 1).
    Locked,
}

impl Code {
    /// HTTP status.
    pub const fn http(self) -> u16 {
        match self {
            Code::Invalid => 400,
            Code::Forbidden => 403,
            Code::NotFound => 404,
            Code::Ambiguous | Code::Conflict | Code::NoCluster => 409,
            Code::NotManager => 421,
            Code::Locked => 423,
            Code::Internal => 500,
            Code::Unsupported => 501,
            Code::Unavailable | Code::Unreachable | Code::Degraded => 503,
            Code::NotConverged => 504,
        }
    }
    /// netctl's exit code (CLIENTS, netctl: habits).
    pub const fn exit(self) -> u8 {
        match self {
            Code::Invalid | Code::Ambiguous => 2,
            Code::NotConverged => 3,
            Code::Unreachable => 4,
            Code::Degraded => 5,
            _ => 1,
        }
    }
}

/// What a client gets instead of an answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    /// Kind.
    pub code: Code,
    /// What failed and why, one or more lines.
    pub message: String,
    /// What to try: a command or setting, without `try:`. May be empty.
    #[serde(default)]
    pub hint: String,
    /// Id of the request, also in netd's log.
    #[serde(default)]
    pub request_id: String,
    /// Whether the same request may succeed later.
    #[serde(default)]
    pub retryable: bool,
}

impl ApiError {
    /// An error with a hint.
    pub fn new(code: Code, message: impl Into<String>, hint: impl Into<String>) -> Self {
        ApiError {
            code,
            message: message.into(),
            hint: hint.into(),
            request_id: String::new(),
            retryable: matches!(code, Code::Unavailable | Code::NotConverged | Code::Unreachable),
        }
    }
}

impl From<crate::ids::BadValue> for ApiError {
    fn from(e: crate::ids::BadValue) -> Self {
        ApiError::new(Code::Invalid, format!("{} {:?} {}", e.what, e.value, e.why), e.hint)
    }
}
