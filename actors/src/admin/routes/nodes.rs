//! What belongs to one node: its actors, breaking them, draining it.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::IntoResponse;
use futures_util::StreamExt;
use futures_util::stream::iter;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::timeout;

use super::tasks::parse_wait;
use super::{AtNode, IsCarried, Params, escape, take_body};
use crate::admin::audit::caller;
use crate::admin::office::{Office, pass_on, unreachable};
use crate::admin::relay::Call;
use crate::admin::reply::{Answer, ApiError, ok};
use crate::admin::{
    ActorView, ActorsView, ChangedView, ConfigView, DrainView, FailureView, KillBody, KilledView,
    NodeActors,
};
use crate::id::NodeId;

/// Members asked at one time; bounds what a fan-out puts on the sessions.
const SIDE_BY_SIDE: usize = 64;

/// `GET /v1/actors`: this node's tree and, unless carried here or asked for one node, those of all members.
pub(super) async fn actors(
    State(office): State<Arc<Office>>,
    IsCarried(carried): IsCarried,
    Params(at): Params<AtNode>,
) -> Answer {
    let own = || NodeActors {
        node: office.seed.identity.name(),
        actors: office.seed.actors.report(),
        state: None,
        error: None,
    };
    if carried || at.node.is_some() {
        let call = |_| Call::get("/v1/actors");
        let local = async { ok(ActorsView { nodes: vec![own()] }) };
        return office
            .at_node(carried, at.node.as_deref(), call, local)
            .await;
    }
    let mut nodes = of_all(&office, "/v1/actors", |name, answer| {
        answer
            .and_then(|body| serde_json::from_slice(&body).map_err(|e| e.to_string()))
            .and_then(|view: ActorsView| {
                let first = view.nodes.into_iter().next();
                first.ok_or_else(|| "it named no actors".to_owned())
            })
            .unwrap_or_else(|why| NodeActors {
                node: name,
                actors: Vec::new(),
                state: Some("unreachable".to_owned()),
                error: Some(why),
            })
    })
    .await;
    let picture = office.picture();
    let mut members = picture.cluster.members.iter();
    let position = members.position(|m| m.registration.id == office.me());
    nodes.insert(position.unwrap_or(0).min(nodes.len()), own());
    ok(ActorsView { nodes })
}

/// Asks every other member for `path`, each with the relay's deadline; what comes back is read by `read`, in the view's order.
pub(super) async fn of_all<T>(
    office: &Office,
    path: &str,
    read: impl Fn(String, Result<bytes::Bytes, String>) -> T,
) -> Vec<T> {
    let picture = office.picture();
    let others = picture.cluster.members.iter().map(|m| &m.registration);
    let others = others.filter(|r| r.id != office.me());
    let others: Vec<(NodeId, String)> = others.map(|r| (r.id, r.name.clone())).collect();
    let within = office.seed.settings.relay_timeout;
    let asked = others.into_iter().map(|(id, name)| async move {
        let answer = office.carry(id, Call::get(path), within).await;
        let answer = match answer {
            Ok(answer) => {
                let body = answer.body.clone();
                pass_on(answer).map(|_| body)
            }
            Err(why) => Err(unreachable(&name, &why)),
        };
        (name, answer.map_err(|error| error.message))
    });
    let answers = iter(asked).buffered(SIDE_BY_SIDE);
    answers
        .map(|(name, answer)| read(name, answer))
        .collect()
        .await
}

/// `POST /v1/actors/{name}/kill[?node=]` with `{"how":"panic|stop|hang"}`; an empty body means `panic`.
pub(super) async fn kill(
    State(office): State<Arc<Office>>,
    IsCarried(carried): IsCarried,
    Path(actor): Path<String>,
    Params(at): Params<AtNode>,
    body: Body,
) -> Answer {
    let body = take_body(&office, body).await?;
    let how = if body.is_empty() {
        KillBody::panic()
    } else {
        let parsed: KillBody = serde_json::from_slice(&body).map_err(ApiError::bad)?;
        parsed.how
    };
    if !["panic", "stop", "hang"].contains(&how.as_str()) {
        let message = format!("how is panic, stop or hang, not {how:?}");
        return Err(ApiError::bad(message));
    }
    let call = |id: NodeId| {
        let path = format!("/v1/actors/{}/kill?node={id}", escape(&actor));
        Call::post(path, json!({ "how": how }).to_string())
    };
    let local = async { kill_here(&office, &actor, &how) };
    office
        .at_node(carried, at.node.as_deref(), call, local)
        .await
}

/// `GET /v1/actors/{name}/failure[?node=]`: what an actor last died of, with the calls that led there.
pub(super) async fn failure(
    State(office): State<Arc<Office>>,
    IsCarried(carried): IsCarried,
    Path(actor): Path<String>,
    Params(at): Params<AtNode>,
) -> Answer {
    let call = |id: NodeId| {
        let path = format!("/v1/actors/{}/failure?node={id}", escape(&actor));
        Call::get(path)
    };
    let local = failure_here(&office, &actor);
    office
        .at_node(carried, at.node.as_deref(), call, local)
        .await
}

async fn failure_here(office: &Office, actor: &str) -> Answer {
    let report = find(office, actor)?;
    let (actors, name) = (Arc::clone(&office.seed.actors), actor.to_owned());
    // Looking up names of functions blocks; not here.
    let trace = tokio::task::spawn_blocking(move || actors.trace(&name));
    ok(FailureView {
        node: office.seed.identity.name(),
        actor: report.name,
        failure: report.last_failure,
        trace: trace.await.unwrap_or_default(),
    })
}

fn find(office: &Office, actor: &str) -> Result<ActorView, ApiError> {
    let mut known = office.seed.actors.report();
    match known.iter().position(|a| a.name == actor) {
        Some(at) => Ok(known.swap_remove(at)),
        None => {
            let names: Vec<_> = known.into_iter().map(|a| a.name).collect();
            let message = format!("no actor is called {actor}; there are {}", names.join(", "));
            Err(ApiError::missing("no_such_actor", message).with("actors", json!(names)))
        }
    }
}

fn kill_here(office: &Office, actor: &str, how: &str) -> Answer {
    find(office, actor)?;
    let caller = caller();
    log::warn!(target: "admin", event = "admin.kill", victim = actor, how = how, by = caller.by.as_str(), from = caller.from.as_str(); "an operator breaks an actor");
    let refused = |why| ApiError::new(StatusCode::CONFLICT, "not_killed", why);
    office.seed.actors.kill(actor, how).map_err(refused)?;
    ok(KilledView {
        node: office.seed.identity.name(),
        actor: actor.to_owned(),
        how: how.to_owned(),
    })
}

/// `?wait=30s`.
#[derive(Deserialize)]
pub(super) struct Waits {
    wait: Option<String>,
}

/// `POST /v1/members/{name}/drain`: 202, the drain has begun; with `?wait=`, 200 and its receipt once it is known.
pub(super) async fn drain(
    State(office): State<Arc<Office>>,
    IsCarried(carried): IsCarried,
    Path(name): Path<String>,
    Params(Waits { wait }): Params<Waits>,
) -> Answer {
    let within = parse_wait(&office, wait.as_deref())?;
    let call = |id: NodeId| {
        let wait = within.as_millis();
        Call::post(format!("/v1/members/{id}/drain?wait={wait}ms"), "")
    };
    let local = async {
        let caller = caller();
        log::info!(target: "admin", event = "admin.drain", by = caller.by.as_str(), from = caller.from.as_str(); "an operator drains this node");
        // Before it begins, so that it is waited with the receipt until we have read it.
        let mut drained = office.seed.drained.clone();
        (office.seed.drain)();
        let known = timeout(within, drained.wait_for(Option::is_some)).await;
        if let (Ok(Ok(receipt)), false) = (known, within.is_zero()) {
            return ok(receipt.clone());
        }
        let view = DrainView {
            node: office.seed.identity.name(),
            draining: true,
        };
        Ok((StatusCode::ACCEPTED, axum::Json(view)).into_response())
    };
    let patience = within + office.seed.settings.relay_timeout;
    office
        .at_node_within(patience, carried, Some(&name), call, local)
        .await
}

/// `GET /v1/config[?node=]`: every setting in use, its origin, and whether it can be changed while the node runs.
pub(super) async fn config(
    State(office): State<Arc<Office>>,
    IsCarried(carried): IsCarried,
    Params(at): Params<AtNode>,
) -> Answer {
    let call = |_| Call::get("/v1/config");
    let local = async {
        ok(ConfigView {
            node: office.seed.identity.name(),
            settings: office.seed.config.show(),
        })
    };
    office
        .at_node(carried, at.node.as_deref(), call, local)
        .await
}

/// `POST /v1/config[?node=]` with `{"discovery.weight": 5}`: all of it or nothing, until the next reload.
pub(super) async fn set_config(
    State(office): State<Arc<Office>>,
    IsCarried(carried): IsCarried,
    Params(at): Params<AtNode>,
    body: Body,
) -> Answer {
    let body = take_body(&office, body).await?;
    let values: BTreeMap<String, Value> = serde_json::from_slice(&body).map_err(ApiError::bad)?;
    let call = |id: NodeId| Call::post(format!("/v1/config?node={id}"), body.clone());
    let local = async {
        let keys: Vec<_> = values.keys().map(String::as_str).collect();
        let caller = caller();
        log::info!(target: "admin", event = "admin.set", keys = keys.join(","), by = caller.by.as_str(), from = caller.from.as_str(); "an operator changes settings of this node");
        changed(office.seed.config.set(values.clone()).await)
    };
    office
        .at_node(carried, at.node.as_deref(), call, local)
        .await
}

/// `POST /v1/config/reload[?node=]`: what SIGHUP does.
pub(super) async fn reload_config(
    State(office): State<Arc<Office>>,
    IsCarried(carried): IsCarried,
    Params(at): Params<AtNode>,
) -> Answer {
    let call = |id: NodeId| Call::post(format!("/v1/config/reload?node={id}"), "");
    let local = async {
        let caller = caller();
        log::info!(target: "admin", event = "admin.reload", by = caller.by.as_str(), from = caller.from.as_str(); "an operator has this node read its configuration again");
        changed(office.seed.config.reload().await)
    };
    office
        .at_node(carried, at.node.as_deref(), call, local)
        .await
}

fn changed(outcome: Result<ChangedView, String>) -> Answer {
    let refused = |why| ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, "config_rejected", why);
    ok(outcome.map_err(refused)?)
}
