//! The registry's keys: looked at, watched, and, where it is enabled, changed.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use futures_util::{StreamExt, stream};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, timeout_at};

use super::records::{enter, format_of, streaming};
use super::{IsCarried, Params, take_body};
use crate::admin::RegistryView;
use crate::admin::audit::caller;
use crate::admin::follow::Format;
use crate::admin::office::Office;
use crate::admin::reply::{Answer, ApiError, ok};
use crate::registry::operator::value_bytes;
use crate::registry::{
    AskRegistry, Change, EditKey, EditRefused, ListKeys, RegistryError, RegistrySnapshot,
    WatchBatch, WatchKeys, WatchStream,
};

/// `?prefix=`.
#[derive(Deserialize)]
pub(super) struct Prefix {
    #[serde(default)]
    prefix: String,
}

fn away(why: RegistryError) -> ApiError {
    ApiError::unavailable("registry_unreachable", why, 1)
}

/// `GET /v1/registry?prefix=`: read by the asked node itself.
pub(super) async fn list(
    State(office): State<Arc<Office>>,
    Params(Prefix { prefix }): Params<Prefix>,
) -> Answer {
    let seed = &office.seed;
    let (keys, snapshot): (_, Result<RegistrySnapshot, ApiError>) = tokio::join!(
        office.ask("registry", &seed.list_keys, ListKeys { prefix }),
        office.ask("registry", &seed.ask_registry, AskRegistry),
    );
    ok(RegistryView {
        keys: keys?.map_err(away)?,
        registry: snapshot.ok(),
        editable: seed.settings.edit_registry,
    })
}

/// `?key=&seen=`: which key, and the `mod_revision` it had when it was looked at.
#[derive(Deserialize)]
pub(super) struct Seen {
    key: String,
    seen: i64,
}

/// Answer to a change.
#[derive(Serialize)]
struct Edited {
    key: String,
    revision: i64,
}

/// `PUT /v1/registry?key=&seen=` with the new value: JSON, or a JSON text for what is none.
pub(super) async fn put(
    State(office): State<Arc<Office>>,
    Params(seen): Params<Seen>,
    body: Body,
) -> Answer {
    let body = take_body(&office, body).await?;
    let value: Value = serde_json::from_slice(&body).map_err(ApiError::bad)?;
    edit(&office, seen, Some(value)).await
}

/// `DELETE /v1/registry?key=&seen=`.
pub(super) async fn remove(
    State(office): State<Arc<Office>>,
    Params(seen): Params<Seen>,
) -> Answer {
    edit(&office, seen, None).await
}

async fn edit(office: &Office, Seen { key, seen }: Seen, value: Option<Value>) -> Answer {
    if !office.seed.settings.edit_registry {
        let why = "keys are not changed through this node: admin.edit_registry is off";
        return Err(ApiError::new(StatusCode::FORBIDDEN, "not_enabled", why));
    }
    let what = if value.is_some() {
        "changed"
    } else {
        "deleted"
    };
    let caller = caller();
    log::warn!(target: "admin", event = "admin.edit_registry", key = key.as_str(), what = what, seen = seen, by = caller.by.as_str(), from = caller.from.as_str(); "an operator changes a key of the registry");
    let edit = EditKey {
        key: key.clone(),
        seen,
        value: value.as_ref().map(value_bytes),
    };
    let answer = office
        .ask_for("registry", &office.seed.edit_key, edit)
        .await?;
    let revision = answer.map_err(|why| match why {
        EditRefused::Registry(why @ RegistryError::Unreachable { .. }) => away(why),
        EditRefused::Registry(_) | EditRefused::Foreign { .. } | EditRefused::Binary { .. } => {
            ApiError::bad(why)
        }
        EditRefused::Unknown(_) => ApiError::unavailable("unknown", why, 1),
        EditRefused::Changed { .. } => ApiError::new(StatusCode::CONFLICT, "changed", why),
    })?;
    ok(Edited { key, revision })
}

/// `GET /v1/registry/watch?prefix=`: a record per change, as it comes. It ends with the node's own contact to the registry, or
/// when its history is dropped: whoever watches reads the list again and opens it anew.
pub(super) async fn watch(
    State(office): State<Arc<Office>>,
    IsCarried(carried): IsCarried,
    Params(Prefix { prefix }): Params<Prefix>,
    headers: HeaderMap,
) -> Answer {
    if carried {
        return Err(ApiError::bad("a watch is asked for at the node itself"));
    }
    let permit = enter(&office)?;
    let ask = WatchKeys { prefix };
    let changes = office.ask("registry", &office.seed.watch_keys, ask).await?;
    let format = format_of(&headers);
    let watcher = Watcher {
        office,
        format,
        changes: changes.map_err(away)?,
        _permit: permit,
    };
    let begun = format.notice("watching", json!({}));
    let body = stream::once(async { begun }).chain(stream::unfold(watcher, |mut w| async {
        let text = w.next().await?;
        Some((text, w))
    }));
    let body = Body::from_stream(body.map(Ok::<_, std::convert::Infallible>));
    Ok(streaming(format, body))
}

/// Pulled by its reader: what is not read stays in the registry's own bounded stream.
struct Watcher {
    office: Arc<Office>,
    format: Format,
    changes: WatchStream,
    _permit: OwnedSemaphorePermit,
}

impl Watcher {
    /// What came, or a sign of life; `None` at its end.
    async fn next(&mut self) -> Option<String> {
        let quiet_until = Instant::now() + self.office.seed.settings.keep_alive;
        loop {
            tokio::select! {
                biased;
                () = self.office.closed() => return None,
                batch = timeout_at(quiet_until, self.changes.next()) => match batch {
                    Err(_) => return Some(self.format.sign_of_life().to_owned()),
                    // The registry's own sign of life.
                    Ok(Some(Ok(batch))) if batch.changes.is_empty() => {}
                    Ok(Some(Ok(batch))) => return Some(self.write(&batch)),
                    Ok(Some(Err(_)) | None) => return None,
                },
            }
        }
    }

    fn write(&self, batch: &WatchBatch) -> String {
        let one = |change: &Change| {
            let (what, key, revision) = match change {
                Change::Put(kv) => ("put", &kv.key, kv.mod_revision),
                Change::Delete { key, revision } => ("delete", key, *revision),
            };
            let fields = json!({ "change": what, "key": key, "revision": revision });
            let Value::Object(fields) = fields else {
                return String::new();
            };
            self.format.record(revision, &fields)
        };
        batch.changes.iter().map(one).collect()
    }
}
