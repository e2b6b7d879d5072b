//! The routes of the API, one file per group, and what stands around all of them.

use std::convert::Infallible;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use axum::Router;
use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{FromRequestParts, Query, Request};
use axum::http::request::Parts;
use axum::http::{Method, StatusCode, Uri, header};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use futures_util::FutureExt;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::time::timeout;
use tower::ServiceExt;

use super::audit::{Caller, caller};
use super::office::Office;
use super::reply::ApiError;
use crate::wire::{ApiRequest, ApiResponse};

mod assets;
mod cluster;
mod guard;
mod mastership;
mod nodes;
mod probes;
mod records;
mod registry;
mod tasks;
mod why;

/// Largest answer that is carried to another node, bytes: a frame's default cap less its head.
const MAX_CARRIED_ANSWER: usize = 1000 * 1024;

/// All routes over one office.
pub fn router(office: Arc<Office>) -> Router {
    Router::new()
        .route("/", get(assets::index))
        .route("/app.css", get(assets::style))
        .route("/app.js", get(assets::app))
        .route("/live.js", get(assets::live))
        .route("/parts.js", get(assets::parts))
        .route("/cluster.js", get(assets::cluster))
        .route("/tasks.js", get(assets::tasks))
        .route("/pages.js", get(assets::pages))
        .route("/openapi.json", get(assets::openapi))
        .route("/livez", get(probes::livez))
        .route("/readyz", get(probes::readyz))
        .route("/metrics", get(probes::metrics))
        .route("/v1/status", get(cluster::status))
        .route("/v1/members", get(cluster::members))
        .route(
            "/v1/registry",
            get(registry::list)
                .put(registry::put)
                .delete(registry::remove),
        )
        .route("/v1/registry/watch", get(registry::watch))
        .route("/v1/master", get(mastership::master))
        .route("/v1/master/ledger", get(mastership::ledger))
        .route("/v1/master/step-down", post(mastership::step_down))
        .route("/v1/members/{name}/promote", post(mastership::promote))
        .route("/v1/members/{name}/drain", post(nodes::drain))
        .route("/v1/debug", get(cluster::debug))
        .route("/v1/config", get(nodes::config).post(nodes::set_config))
        .route("/v1/config/reload", post(nodes::reload_config))
        .route("/v1/actors", get(nodes::actors))
        .route("/v1/actors/{name}/kill", post(nodes::kill))
        .route("/v1/actors/{name}/failure", get(nodes::failure))
        .route("/v1/tasks", get(tasks::list).post(tasks::submit))
        .route("/v1/tasks/{id}", get(tasks::read).delete(tasks::cancel))
        .route("/v1/tasks/{id}/retry", post(tasks::retry))
        .route("/v1/events", get(records::events))
        .route("/v1/logs", get(records::logs))
        .route("/v1/why/node/{name}", get(why::node))
        .route("/v1/why/master", get(why::master))
        .fallback(no_route)
        .method_not_allowed_fallback(no_method)
        .with_state(Arc::clone(&office))
        .layer(from_fn(contain_panics))
        .layer(from_fn_with_state(office, guard::guard))
}

/// Marks a request that another node let in and carried here, with whoever asked it: it is answered here or not at all.
#[derive(Clone)]
struct Carried(Caller);

/// Answers a request that another node carried here. Never fails: a refusal is an answer too.
pub async fn answer_carried(office: &Office, router: Router, request: ApiRequest) -> ApiResponse {
    let nonce = request.nonce;
    let answer = match (office.relayed.try_acquire(), rebuild(request)) {
        (_, Err(error)) => error.into_response(),
        (Err(_), _) => {
            ApiError::unavailable("busy", "too many carried requests", 1).into_response()
        }
        (Ok(_permit), Ok(request)) => {
            let settings = &office.seed.settings;
            let within = settings.max_wait + settings.relay_timeout;
            match timeout(within, router.oneshot(request)).await {
                Ok(Ok(response)) => response,
                Err(_) => ApiError::new(StatusCode::GATEWAY_TIMEOUT, "slow", "took too long")
                    .into_response(),
            }
        }
    };
    pack(nonce, answer).await
}

fn rebuild(request: ApiRequest) -> Result<Request, ApiError> {
    let method = Method::from_bytes(request.method.as_bytes()).map_err(ApiError::bad)?;
    let uri: Uri = request.path.parse().map_err(ApiError::bad)?;
    let mut rebuilt = Request::new(Body::from(request.body));
    *rebuilt.method_mut() = method;
    *rebuilt.uri_mut() = uri;
    let caller = Caller::from_wire(&request.by);
    rebuilt.extensions_mut().insert(Carried(caller));
    Ok(rebuilt)
}

async fn pack(nonce: u64, response: Response) -> ApiResponse {
    let (parts, body) = response.into_parts();
    let Ok(body) = to_bytes(body, MAX_CARRIED_ANSWER).await else {
        return too_large(nonce);
    };
    let content_type = parts.headers.get(header::CONTENT_TYPE);
    let content_type = content_type.and_then(|v| v.to_str().ok()).unwrap_or("");
    ApiResponse {
        nonce,
        status: parts.status.as_u16(),
        content_type: content_type.to_owned(),
        body,
    }
}

/// The answer in place of one that no frame can hold.
pub(crate) fn too_large(nonce: u64) -> ApiResponse {
    let message = "the answer is too large to be carried; ask that node itself";
    let error = ApiError::new(StatusCode::BAD_GATEWAY, "too_large", message);
    ApiResponse {
        nonce,
        status: error.status.as_u16(),
        content_type: "application/json".to_owned(),
        body: Bytes::from(error.to_json().to_string()),
    }
}

/// Whether another node carried this request here.
pub(crate) struct IsCarried(pub(crate) bool);

impl<S: Sync> FromRequestParts<S> for IsCarried {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        Ok(Self(parts.extensions.get::<Carried>().is_some()))
    }
}

/// `?node=NAME`: which node is meant.
#[derive(Deserialize)]
pub(super) struct AtNode {
    node: Option<String>,
}

/// The query string, refused in JSON when it does not fit.
pub(crate) struct Params<T>(pub(crate) T);

impl<T: DeserializeOwned, S: Sync> FromRequestParts<S> for Params<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        let query = Query::try_from_uri(&parts.uri);
        let refused = |why: axum::extract::rejection::QueryRejection| {
            // Its own text says "Failed to deserialize query string: …".
            ApiError::bad(why.body_text())
        };
        query.map(|Query(params)| Self(params)).map_err(refused)
    }
}

/// Takes in a body: bounded in size, in time, and in how many at once.
pub(crate) async fn take_body(office: &Office, body: Body) -> Result<Bytes, ApiError> {
    let settings = &office.seed.settings;
    let from = caller().from;
    let refuse = |reason, words: &str| office.seed.audit.refuse(reason, &from, words);
    let Ok(_permit) = office.uploads.try_acquire() else {
        refuse("uploads", "too many bodies are taken in at once");
        return Err(ApiError::unavailable("busy", "too many uploads at once", 1));
    };
    let error = match timeout(settings.body_timeout, to_bytes(body, settings.max_body)).await {
        Ok(Ok(bytes)) => return Ok(bytes),
        Ok(Err(_)) => ApiError::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "too_large",
            format!(
                "the body is larger than {} bytes or broke off",
                settings.max_body
            ),
        ),
        Err(_) => ApiError::new(
            StatusCode::REQUEST_TIMEOUT,
            "slow_body",
            format!("the body did not arrive within {:?}", settings.body_timeout),
        ),
    };
    let reason = match error.status {
        StatusCode::REQUEST_TIMEOUT => "slow_body",
        _ => "large_body",
    };
    refuse(reason, &error.message);
    Err(error)
}

/// A parameter inside a path, so that no name can change its shape.
pub(crate) fn escape(segment: &str) -> String {
    let mut escaped = String::with_capacity(segment.len());
    for byte in segment.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                escaped.push(char::from(byte));
            }
            _ => escaped.push_str(&format!("%{byte:02X}")),
        }
    }
    escaped
}

async fn no_route(uri: Uri) -> ApiError {
    ApiError::missing(
        "no_such_route",
        format!("there is nothing at {}", uri.path()),
    )
}

async fn no_method(method: Method, uri: Uri) -> ApiError {
    let message = format!("{} does not take {method}", uri.path());
    ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "no_such_method", message)
}

/// A handler that panics costs its own request, nothing else.
async fn contain_panics(request: Request, next: Next) -> Response {
    let path = request.uri().path().to_owned();
    match AssertUnwindSafe(next.run(request)).catch_unwind().await {
        Ok(response) => response,
        Err(_) => {
            log::error!(target: "admin", event = "admin.handler_failed", path = path.as_str(); "a handler panicked");
            let message = "the handler of this route failed; see the log";
            ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", message).into_response()
        }
    }
}
