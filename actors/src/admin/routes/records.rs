//! Events and logs.
//!
//! | asked | answered |
//! |---|---|
//! | nothing special | this node's stream: what is kept after `since` (or `Last-Event-ID`), then what comes |
//! | `?follow=false` | what is kept in the whole cluster, merged by time |
//! | `?follow=false&since=N` | what this node keeps after its number N |
//! | `?node=*` | the stream of the whole cluster, in the order of the hybrid logical clock; `?after=` a stamp resumes it at any node |
//! | `?decisions=true` | (with `follow=false`) only what was decided, which is kept longer |
//! | `?node=X` | the same of node X; a stream of another node is read from it in steps |

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tokio::sync::OwnedSemaphorePermit;

use super::nodes::of_all;
use super::{IsCarried, Params, escape};
use crate::admin::RecordsView;
use crate::admin::audit::caller;
use crate::admin::follow::{self, Filter, Format};
use crate::admin::gazette;
use crate::admin::office::{Office, Where, read_json, unreachable};
use crate::admin::relay::Call;
use crate::admin::reply::{Answer, ApiError, ok};
use crate::id::NodeId;

/// Records of one snapshot unless asked otherwise…
const DEFAULT_LIMIT: usize = 1000;
/// …at most this many…
const MAX_LIMIT: usize = 10_000;
/// …and at most these bytes, so that it fits into a frame.
const MAX_BYTES: usize = 512 * 1024;
/// Pause between two looks at another node's log.
const STEP: Duration = Duration::from_millis(500);

/// The query of both routes.
#[derive(Clone, Debug, Default, Deserialize)]
pub(super) struct Wanted {
    since: Option<u64>,
    follow: Option<bool>,
    node: Option<String>,
    limit: Option<usize>,
    level: Option<String>,
    actor: Option<String>,
    task: Option<String>,
    event: Option<String>,
    after: Option<String>,
    decisions: Option<bool>,
}

/// `GET /v1/events`: records with a stable event name.
pub(super) async fn events(
    State(office): State<Arc<Office>>,
    IsCarried(carried): IsCarried,
    Params(wanted): Params<Wanted>,
    headers: HeaderMap,
) -> Answer {
    records(office, carried, wanted, &headers, true).await
}

/// `GET /v1/logs`: all records.
pub(super) async fn logs(
    State(office): State<Arc<Office>>,
    IsCarried(carried): IsCarried,
    Params(wanted): Params<Wanted>,
    headers: HeaderMap,
) -> Answer {
    records(office, carried, wanted, &headers, false).await
}

async fn records(
    office: Arc<Office>,
    carried: bool,
    mut wanted: Wanted,
    headers: &HeaderMap,
    named: bool,
) -> Answer {
    let filter = wanted.filter(named)?;
    if carried {
        return ok(snapshot(&office, &wanted, &filter));
    }
    let header = |name: &str| headers.get(name).and_then(|v| v.to_str().ok());
    let last = header("last-event-id").map(str::trim);
    let format = format_of(headers);
    let lines = format == Format::Lines;
    if wanted.node.as_deref() == Some("*") {
        wanted.node = None;
        if wanted.follow != Some(false) {
            return of_the_cluster(office, &wanted, last, filter, format).await;
        }
    }
    let resumed = last.and_then(|id| id.parse().ok());
    wanted.since = resumed.or(wanted.since);
    let place = office.whose(wanted.node.as_deref())?;
    if wanted.follow == Some(false) {
        let view = match place {
            Where::There { id, name } => fetch(&office, id, &name, &wanted, named).await?,
            Where::Here if wanted.node.is_none() && wanted.since.is_none() => {
                merged(&office, &wanted, &filter, named).await
            }
            Where::Here => snapshot(&office, &wanted, &filter),
        };
        return if lines { as_lines(&view) } else { ok(view) };
    }
    let permit = enter(&office)?;
    let body = match place {
        Where::Here => {
            let tail = wanted.limit.unwrap_or(usize::MAX);
            follow::stream(office, wanted.since, tail, filter, format, permit)
        }
        Where::There { id, name } => in_steps(Steps {
            office,
            id,
            name,
            wanted,
            named,
            format,
            pause: false,
            _permit: permit,
        }),
    };
    Ok(streaming(format, body))
}

/// One of the places for followers.
pub(super) fn enter(office: &Office) -> Result<OwnedSemaphorePermit, ApiError> {
    let permit = Arc::clone(&office.followers).try_acquire_owned();
    permit.map_err(|_| {
        let words = "too many followers";
        office.seed.audit.refuse("followers", &caller().from, words);
        ApiError::unavailable("busy", words, 5)
    })
}

/// The stream of all members.
async fn of_the_cluster(
    office: Arc<Office>,
    wanted: &Wanted,
    last: Option<&str>,
    filter: Filter,
    format: Format,
) -> Answer {
    let permit = enter(&office)?;
    let all = |since| Wanted {
        since,
        limit: Some(DEFAULT_LIMIT),
        ..Wanted::default()
    };
    let here = Arc::clone(&office);
    let local = move |since| snapshot(&here, &all(since), &Filter::default());
    let ask = move |office: Arc<Office>, id, since| async move {
        let answer = fetch(&office, id, "it", &all(since), false).await;
        answer.map_err(|why| why.message)
    };
    let reader = gazette::read(&office, local, ask);
    office.gazette.round().await;
    let since = last.and_then(|id| office.gazette.number(id));
    let kept = follow::kept_in(office.gazette.log(), since);
    let tail = wanted.limit.unwrap_or(usize::MAX);
    let body = follow::follow(office, kept, Some(reader), tail, filter, format, permit);
    Ok(streaming(format, body))
}

/// Lines of JSON when they are asked for, else Server-Sent Events.
pub(super) fn format_of(headers: &HeaderMap) -> Format {
    let accept = headers.get(header::ACCEPT).and_then(|v| v.to_str().ok());
    match accept.is_some_and(|a| a.contains("application/x-ndjson")) {
        true => Format::Lines,
        false => Format::Sse,
    }
}

pub(super) fn streaming(format: Format, body: Body) -> Response {
    let headers = [
        (header::CONTENT_TYPE, format.content_type()),
        (header::CACHE_CONTROL, "no-store"),
    ];
    (headers, body).into_response()
}

fn as_lines(view: &RecordsView) -> Answer {
    let seq = |fields: &Map<String, Value>| fields.get("seq").and_then(Value::as_u64).unwrap_or(0);
    let records = view.records.iter();
    let mut text: String = records.map(|f| Format::Lines.record(seq(f), f)).collect();
    if view.missed > 0 {
        text.push_str(&Format::Lines.notice("lagged", json!({ "missed": view.missed })));
    }
    for (node, why) in &view.missing {
        let notice = json!({ "node": node, "err": why });
        text.push_str(&Format::Lines.notice("unreachable", notice));
    }
    let kind = Format::Lines.content_type();
    Ok(([(header::CONTENT_TYPE, kind)], text).into_response())
}

impl Wanted {
    fn filter(&self, named: bool) -> Result<Filter, ApiError> {
        let level = self.level.as_deref().map(str::parse::<log::Level>);
        let level = level.transpose().map_err(|_| {
            ApiError::bad("level is error, warn, info, debug or trace; graver ones are included")
        })?;
        Ok(Filter {
            named,
            level,
            actor: self.actor.clone(),
            task: self.task.clone(),
            event: self.event.clone(),
            after: self.after.clone(),
        })
    }

    fn limit(&self) -> usize {
        self.limit.unwrap_or(DEFAULT_LIMIT).clamp(1, MAX_LIMIT)
    }

    /// The path that asks another node for its part.
    fn path(&self, named: bool) -> String {
        let route = if named { "events" } else { "logs" };
        let mut path = format!("/v1/{route}?follow=false&limit={}", self.limit());
        let since = self.since.map(|since| since.to_string());
        let decisions = self.decisions.map(|wanted| wanted.to_string());
        for (key, value) in [
            ("since", &since),
            ("level", &self.level),
            ("actor", &self.actor),
            ("task", &self.task),
            ("event", &self.event),
            ("after", &self.after),
            ("decisions", &decisions),
        ] {
            if let Some(value) = value {
                path.push_str(&format!("&{key}={}", escape(value)));
            }
        }
        path
    }
}

/// The newest of what this node keeps, bounded.
fn snapshot(office: &Office, wanted: &Wanted, filter: &Filter) -> RecordsView {
    if wanted.decisions == Some(true) {
        let decisions = office.seed.events.decisions();
        let fitting = decisions.iter().filter(|record| filter.takes(record));
        let all: Vec<_> = fitting.map(|record| follow::numbered(record)).collect();
        let (records, missed) = newest(all, wanted.limit());
        return RecordsView {
            records,
            missed,
            missing: BTreeMap::new(),
        };
    }
    let kept = follow::kept(office, wanted.since);
    let fitting = kept.records.iter().filter(|record| filter.takes(record));
    let all: Vec<_> = fitting.map(|record| follow::numbered(record)).collect();
    let (records, cut) = newest(all, wanted.limit());
    RecordsView {
        records,
        missed: kept.missed + cut,
        missing: BTreeMap::new(),
    }
}

/// The last records that fit into the bounds, and how many did not.
fn newest(mut records: Vec<Map<String, Value>>, limit: usize) -> (Vec<Map<String, Value>>, u64) {
    let mut bytes = 0;
    let fitting = records.iter().rev().take(limit).take_while(|record| {
        bytes += serde_json::to_string(record).map_or(0, |json| json.len());
        bytes <= MAX_BYTES
    });
    let cut = records.len() - fitting.count();
    records.drain(..cut);
    (records, cut as u64)
}

/// What all members keep decided, about whatever: the evidence of `/v1/why`.
pub(super) async fn decisions(office: &Office) -> RecordsView {
    let wanted = Wanted {
        decisions: Some(true),
        limit: Some(MAX_LIMIT),
        ..Wanted::default()
    };
    merged(office, &wanted, &Filter::default(), true).await
}

/// What all members keep, by their clocks.
async fn merged(office: &Office, wanted: &Wanted, filter: &Filter, named: bool) -> RecordsView {
    let mut merged = snapshot(office, wanted, filter);
    let path = wanted.path(named);
    let parts = of_all(office, &path, |name, answer| {
        let view = answer.and_then(|body| parse(&body));
        (name, view)
    });
    for (name, view) in parts.await {
        match view {
            Ok(view) => {
                merged.records.extend(view.records);
                merged.missed += view.missed;
            }
            Err(why) => {
                merged.missing.insert(name, why);
            }
        }
    }
    merged.records.sort_by_cached_key(gazette::order);
    let (records, cut) = newest(merged.records, wanted.limit());
    RecordsView {
        records,
        missed: merged.missed + cut,
        missing: merged.missing,
    }
}

fn parse(body: &[u8]) -> Result<RecordsView, String> {
    serde_json::from_slice(body).map_err(|why| why.to_string())
}

async fn fetch(
    office: &Office,
    id: NodeId,
    name: &str,
    wanted: &Wanted,
    named: bool,
) -> Result<RecordsView, ApiError> {
    let within = office.seed.settings.relay_timeout;
    let carried = office.carry(id, Call::get(wanted.path(named)), within);
    let answer = carried.await.map_err(|why| unreachable(name, &why))?;
    read_json(answer)
}

/// A stream of another node's records, read from it in steps.
struct Steps {
    office: Arc<Office>,
    id: NodeId,
    name: String,
    wanted: Wanted,
    named: bool,
    format: Format,
    pause: bool,
    _permit: OwnedSemaphorePermit,
}

fn in_steps(steps: Steps) -> Body {
    Body::from_stream(stream::unfold(Some(steps), |steps| async {
        let mut steps = steps?;
        let (text, goes_on) = steps.step().await?;
        Some((
            Ok::<_, std::convert::Infallible>(text),
            goes_on.then_some(steps),
        ))
    }))
}

impl Steps {
    /// The next chunk (perhaps empty), and whether more follow.
    async fn step(&mut self) -> Option<(String, bool)> {
        if self.pause {
            tokio::select! {
                biased;
                () = self.office.closed() => return None,
                () = tokio::time::sleep(STEP) => {}
            }
        }
        self.pause = true;
        match fetch(&self.office, self.id, &self.name, &self.wanted, self.named).await {
            Ok(view) => Some((self.write(&view), true)),
            Err(why) => {
                let notice = json!({ "node": self.name, "err": why.message });
                Some((self.format.notice("unreachable", notice), false))
            }
        }
    }

    fn write(&mut self, view: &RecordsView) -> String {
        let mut text = String::new();
        if view.missed > 0 && self.wanted.since.is_some() {
            text.push_str(
                &self
                    .format
                    .notice("lagged", json!({ "missed": view.missed })),
            );
        }
        for fields in &view.records {
            let seq = fields.get("seq").and_then(Value::as_u64).unwrap_or(0);
            text.push_str(&self.format.record(seq, fields));
            self.wanted.since = Some(seq);
        }
        text
    }
}
