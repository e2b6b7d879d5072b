//! Errors as every client sees them: `{"error":{"code","message",…}}` with a fitting status.

use std::fmt::Display;

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Map, Value, json};

/// A refusal with a stable code and a sentence.
#[derive(Clone, Debug)]
pub(crate) struct ApiError {
    pub(crate) status: StatusCode,
    pub(crate) code: String,
    pub(crate) message: String,
    /// Further fields of the error object.
    pub(crate) extra: Map<String, Value>,
}

impl ApiError {
    pub(crate) fn new(status: StatusCode, code: &str, message: impl Display) -> Self {
        Self {
            status,
            code: code.to_owned(),
            message: message.to_string(),
            extra: Map::new(),
        }
    }

    /// The request itself is wrong.
    pub(crate) fn bad(message: impl Display) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "bad_request", message)
    }

    /// There is no such thing.
    pub(crate) fn missing(code: &str, message: impl Display) -> Self {
        Self::new(StatusCode::NOT_FOUND, code, message)
    }

    /// Not now; `retry_after_s` says when.
    pub(crate) fn unavailable(code: &str, message: impl Display, retry_after_s: u64) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, code, message)
            .with("retry_after_s", json!(retry_after_s))
    }

    /// This node was taken for the master and is not; whoever carried the request looks again.
    pub(crate) fn not_master() -> Self {
        Self::unavailable(NOT_MASTER, "this node does not lead", 1)
    }

    #[must_use]
    pub(crate) fn with(mut self, key: &str, value: Value) -> Self {
        self.extra.insert(key.to_owned(), value);
        self
    }

    /// The JSON object.
    pub(crate) fn to_json(&self) -> Value {
        let mut error = Map::new();
        error.insert("code".to_owned(), json!(self.code));
        error.insert("message".to_owned(), json!(self.message));
        error.extend(self.extra.clone());
        json!({ "error": error })
    }

    /// Reads the error of another node's answer.
    pub(crate) fn from_answer(status: StatusCode, body: &[u8]) -> Self {
        let parsed = serde_json::from_slice::<Value>(body).ok();
        Self::from_json(status, parsed.as_ref().and_then(|v| v.get("error")))
    }

    /// Reads an error object.
    pub(crate) fn from_json(status: StatusCode, error: Option<&Value>) -> Self {
        let mut extra = error.and_then(Value::as_object).cloned();
        let mut take = |key: &str| match extra.as_mut().and_then(|e| e.remove(key)) {
            Some(Value::String(text)) => text,
            _ => format!("status {status}"),
        };
        let (code, message) = (take("code"), take("message"));
        Self {
            status,
            code,
            message,
            extra: extra.unwrap_or_default(),
        }
    }
}

/// Code of an answer by a node that was taken for the master.
pub(crate) const NOT_MASTER: &str = "not_master";

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.to_json())).into_response();
        if let Some(seconds) = self.extra.get("retry_after_s").and_then(Value::as_u64) {
            let value = HeaderValue::from(seconds);
            response.headers_mut().insert(header::RETRY_AFTER, value);
        }
        response
    }
}

/// What a handler answers.
pub(crate) type Answer = Result<Response, ApiError>;

/// 200 with JSON.
pub(crate) fn ok(body: impl serde::Serialize) -> Answer {
    Ok(Json(body).into_response())
}
