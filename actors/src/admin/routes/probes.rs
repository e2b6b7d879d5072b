//! Probes and metrics. Liveness depends on nothing but that this handler runs.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;

use super::Params;
use crate::admin::office::{Office, master_view};
use crate::admin::reply::ApiError;
use crate::admin::{CheckView, ReadyView, metrics as page, process};
use crate::master::AskMaster;
use crate::registry::AskRegistry;
use crate::worker::AskWorker;

/// `GET /livez`.
pub(super) async fn livez() -> &'static str {
    "ok\n"
}

/// `?verbose`.
#[derive(Deserialize)]
pub(super) struct Verbose {
    verbose: Option<String>,
}

/// `GET /readyz[?verbose]`: was registered once and knows a master. A registry that went away later changes nothing.
pub(super) async fn readyz(
    State(office): State<Arc<Office>>,
    params: Result<Params<Verbose>, ApiError>,
) -> Response {
    let picture = office.picture();
    let master = master_view(&picture);
    let check = |name: &str, ok: bool, detail: String| CheckView {
        name: name.to_owned(),
        ok,
        detail,
    };
    let registered = match picture.registered_once {
        true => format!("incarnation {}", picture.cluster.incarnation),
        false => "not registered yet".to_owned(),
    };
    let leads = master.as_ref().map_or("nobody leads".to_owned(), |m| {
        format!("{} leads under {}", m.name, m.epoch)
    });
    let checks = vec![
        check("registered", picture.registered_once, registered),
        check("master", master.is_some(), leads),
    ];
    let ready = checks.iter().all(|check| check.ok);
    // A probe with a strange query still is a probe.
    let verbose = params.is_ok_and(|Params(p)| p.verbose.is_some_and(|v| v != "false"));
    let checks = if verbose { checks } else { Vec::new() };
    let status = match ready {
        true => StatusCode::OK,
        false => StatusCode::SERVICE_UNAVAILABLE,
    };
    (status, Json(ReadyView { ready, checks })).into_response()
}

/// `GET /metrics`: of this node; what an actor does not tell in time is left out.
pub(super) async fn metrics(State(office): State<Arc<Office>>) -> Response {
    let seed = &office.seed;
    let (master, worker, registry) = tokio::join!(
        office.ask("master", &seed.ask_master, AskMaster),
        office.ask("worker", &seed.ask_worker, AskWorker),
        office.ask("registry", &seed.ask_registry, AskRegistry),
    );
    let text = page::render(&page::Facts {
        picture: &office.picture(),
        actors: seed.actors.report(),
        master: master.ok(),
        worker: worker.ok(),
        registry: registry.ok(),
        refusals: seed.refusals.all(),
        process: process::figures(),
        started_ms: seed.started_at,
        followers: office.following(),
        log_records: seed.events.newest(),
        refused: seed.audit.refused(),
    });
    let kind = "text/plain; version=0.0.4; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], text).into_response()
}
