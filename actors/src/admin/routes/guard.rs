//! What stands around all routes: who is let in, what is audited, and the headers of every answer.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use tokio::time::Instant;

use super::Carried;
use crate::admin::access::{Asked, Refusal, Who};
use crate::admin::audit::{CALLER, Caller, Change, Submits};
use crate::admin::office::Office;
use crate::admin::reply::ApiError;
use crate::admin::serve::Remote;

/// For every answer. What may be loaded by a page is said by the page; nothing else is one.
const HEADERS: [(HeaderName, HeaderValue); 7] = [
    (
        header::CONTENT_SECURITY_POLICY,
        HeaderValue::from_static("default-src 'none'; frame-ancestors 'none'"),
    ),
    (
        header::X_CONTENT_TYPE_OPTIONS,
        HeaderValue::from_static("nosniff"),
    ),
    (header::X_FRAME_OPTIONS, HeaderValue::from_static("DENY")),
    (
        header::REFERRER_POLICY,
        HeaderValue::from_static("no-referrer"),
    ),
    (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
    (
        HeaderName::from_static("cross-origin-opener-policy"),
        HeaderValue::from_static("same-origin"),
    ),
    (
        HeaderName::from_static("cross-origin-resource-policy"),
        HeaderValue::from_static("same-origin"),
    ),
];

/// Answers who may ask, tells of every change, and says in words why somebody may not.
pub(super) async fn guard(
    State(office): State<Arc<Office>>,
    request: Request,
    next: Next,
) -> Response {
    // Another node let it in already.
    if let Some(Carried(caller)) = request.extensions().get::<Carried>() {
        let caller = caller.clone();
        return CALLER.scope(caller, next.run(request)).await;
    }
    let from = request.extensions().get::<Remote>();
    let from = from.map_or_else(String::new, |Remote(address)| address.ip().to_string());
    let judged = judge(&office, &request);
    let mut response = match judged {
        Ok(who) => admit(&office, who, from, request, next).await,
        Err(refusal) => {
            let code = refusal.code();
            office.seed.audit.refuse(code, &from, &refusal.to_string());
            if refusal == Refusal::ReadOnly {
                let mut change = change(&request, Who::Reader, from);
                change.status = StatusCode::FORBIDDEN;
                office.seed.audit.change(&change);
            }
            refused(&refusal)
        }
    };
    let headers = response.headers_mut();
    for (name, value) in HEADERS {
        headers.entry(name).or_insert(value);
    }
    response
}

fn judge(office: &Office, request: &Request) -> Result<Who, Refusal> {
    let headers = request.headers();
    let asked = Asked {
        path: request.uri().path(),
        safe: request.method().is_safe(),
        host: text(headers, &header::HOST),
        origin: text(headers, &header::ORIGIN),
        site: text(headers, &HeaderName::from_static("sec-fetch-site")),
        authorization: text(headers, &header::AUTHORIZATION),
    };
    office.seed.access.judge(&asked)
}

/// A header's one value; `?`, which nothing is called, when there are several or it is no text.
fn text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    let mut values = headers.get_all(name).iter();
    let first = values.next()?;
    match values.next() {
        None => Some(first.to_str().unwrap_or("?")),
        Some(_) => Some("?"),
    }
}

async fn admit(office: &Office, who: Who, from: String, request: Request, next: Next) -> Response {
    let encoded = request.headers().get(header::CONTENT_ENCODING);
    if encoded.is_some_and(|encoding| encoding != "identity") {
        let words = "a body must come as it is: no content-encoding is taken";
        office.seed.audit.refuse("encoded", &from, words);
        let status = StatusCode::UNSUPPORTED_MEDIA_TYPE;
        return ApiError::new(status, "encoded", words).into_response();
    }
    let (began, safe) = (Instant::now(), request.method().is_safe());
    let submit = !safe && request.uri().path() == "/v1/tasks";
    let mut change = change(&request, who, from);
    let caller = change.caller.clone();
    let response = CALLER.scope(caller, next.run(request)).await;
    match response.extensions().get::<Submits>() {
        _ if safe => {}
        Some(submits) => office.seed.audit.submits(&change.caller, *submits),
        None if submit => office.seed.audit.submits(&change.caller, Submits::REFUSED),
        None => {
            (change.status, change.took) = (response.status(), began.elapsed());
            office.seed.audit.change(&change);
        }
    }
    response
}

fn change(request: &Request, who: Who, from: String) -> Change {
    let path = request.uri().path_and_query();
    Change {
        caller: Caller {
            by: who.as_str().to_owned(),
            from,
        },
        method: request.method().to_string(),
        path: path.map_or_else(String::new, ToString::to_string),
        status: StatusCode::OK,
        took: std::time::Duration::ZERO,
    }
}

fn refused(refusal: &Refusal) -> Response {
    let status = match refusal {
        Refusal::ForeignHost(_) => StatusCode::MISDIRECTED_REQUEST,
        Refusal::CrossSite | Refusal::ReadOnly => StatusCode::FORBIDDEN,
        Refusal::NoToken | Refusal::WrongToken => StatusCode::UNAUTHORIZED,
    };
    let mut response = ApiError::new(status, refusal.code(), refusal).into_response();
    if status == StatusCode::UNAUTHORIZED {
        let how = HeaderValue::from_static("Bearer realm=\"troupe\"");
        response.headers_mut().insert(header::WWW_AUTHENTICATE, how);
    }
    response
}
