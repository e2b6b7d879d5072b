//! Streams of events and logs: what is kept, then what comes, as Server-Sent Events or as lines of JSON.
//!
//! A follower pulls: what it does not read stays in the log's own bounded ring, and what falls out there is told to it as
//! `lagged` with a count. Nothing is buffered per follower.

use std::collections::VecDeque;
use std::sync::Arc;

use axum::body::{Body, Bytes};
use futures_util::stream;
use serde_json::{Map, Value, json};
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::{RecvError, TryRecvError};
use tokio::time::{Instant, sleep_until};

use super::gazette::Reader;
use super::office::Office;
use crate::events::{EventLog, Record};

/// Bytes put into one chunk of a stream before it is handed on.
const CHUNK: usize = 32 * 1024;

/// Which records somebody wants.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Filter {
    /// Only records with a stable event name.
    pub(crate) named: bool,
    /// This level and graver ones.
    pub(crate) level: Option<log::Level>,
    /// Of this actor.
    pub(crate) actor: Option<String>,
    /// About this task.
    pub(crate) task: Option<String>,
    /// Whose event name starts with this.
    pub(crate) event: Option<String>,
    /// Stamped after this.
    pub(crate) after: Option<String>,
}

impl Filter {
    pub(crate) fn takes(&self, record: &Record) -> bool {
        let text = |key: &str| record.fields.get(key).and_then(Value::as_str);
        let equal = |key: &str, wanted: &Option<String>| {
            wanted.as_deref().is_none_or(|w| text(key) == Some(w))
        };
        let level = || text("level").and_then(|l| l.parse::<log::Level>().ok());
        let grave = |wanted: log::Level| level().is_some_and(|l| l <= wanted);
        let begins = |prefix: &str| record.event().starts_with(prefix);
        // The logger names a plain line "log".
        (!self.named || !["", "log"].contains(&record.event()))
            && self.level.is_none_or(grave)
            && self.event.as_deref().is_none_or(begins)
            && equal("actor", &self.actor)
            && equal("task", &self.task)
            && self
                .after
                .as_deref()
                .is_none_or(|after| text("hlc") > Some(after))
    }
}

/// How records are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    /// `text/event-stream`.
    Sse,
    /// `application/x-ndjson`.
    Lines,
}

impl Format {
    pub(crate) fn content_type(self) -> &'static str {
        match self {
            Self::Sse => "text/event-stream",
            Self::Lines => "application/x-ndjson",
        }
    }

    /// One record; `id` is what a follower resumes from.
    pub(crate) fn record(self, id: impl std::fmt::Display, fields: &Map<String, Value>) -> String {
        let json = Value::Object(fields.clone());
        match self {
            // JSON text has no raw line break in it, so one data line is enough.
            Self::Sse => format!("id: {id}\ndata: {json}\n\n"),
            Self::Lines => format!("{json}\n"),
        }
    }

    /// Something about the stream itself.
    pub(crate) fn notice(self, name: &str, mut fields: Value) -> String {
        fields["event"] = json!(name);
        match self {
            Self::Sse => format!("event: {name}\ndata: {fields}\n\n"),
            Self::Lines => format!("{fields}\n"),
        }
    }

    pub(crate) fn sign_of_life(self) -> &'static str {
        match self {
            Self::Sse => ": still here\n\n",
            Self::Lines => "\n",
        }
    }
}

/// The fields of a record with its number.
pub(crate) fn numbered(record: &Record) -> Map<String, Value> {
    let mut fields = record.fields.clone();
    fields.insert("seq".to_owned(), json!(record.seq));
    fields
}

/// What is kept after `since`, and how much of what came after it is lost.
pub(crate) struct Kept {
    pub(crate) records: Vec<Arc<Record>>,
    pub(crate) coming: Receiver<Arc<Record>>,
    pub(crate) missed: u64,
}

/// Reads the log from `since` on; all that is kept when absent. A number above the newest is from an earlier process:
/// all that is kept is new to whoever asks.
pub(crate) fn kept(office: &Office, since: Option<u64>) -> Kept {
    kept_in(&office.seed.events, since)
}

/// The same of any log.
pub(crate) fn kept_in(log: &EventLog, since: Option<u64>) -> Kept {
    let since = since.filter(|since| *since <= log.newest());
    let (records, coming) = log.since(since.unwrap_or(0));
    let missed = match (since, records.first()) {
        (Some(since), Some(first)) => first.seq.saturating_sub(since + 1),
        _ => 0,
    };
    Kept {
        records,
        coming,
        missed,
    }
}

/// A stream of this node's records from `since` on; of what is kept, only the last `tail`.
pub(crate) fn stream(
    office: Arc<Office>,
    since: Option<u64>,
    tail: usize,
    filter: Filter,
    format: Format,
    permit: OwnedSemaphorePermit,
) -> Body {
    let kept = kept(&office, since);
    follow(office, kept, None, tail, filter, format, permit)
}

/// A stream of `kept` and what comes. Of a log whose records are numbered by their nodes (the whole cluster's), `life`
/// is said beside the number, so that nobody resumes from the number of another life.
pub(crate) fn follow(
    office: Arc<Office>,
    kept: Kept,
    life: Option<Reader>,
    tail: usize,
    filter: Filter,
    format: Format,
    permit: OwnedSemaphorePermit,
) -> Body {
    let mut backlog: VecDeque<_> = kept.records.into();
    backlog.retain(|record| filter.takes(record));
    backlog.drain(..backlog.len().saturating_sub(tail));
    let notice = (kept.missed > 0).then(|| lagged(format, kept.missed));
    let follower = Follower {
        office,
        filter,
        format,
        notice,
        backlog,
        coming: kept.coming,
        life,
        _permit: permit,
    };
    Body::from_stream(stream::unfold(follower, |mut follower| async {
        let chunk = follower.next().await?;
        Some((Ok::<_, std::convert::Infallible>(chunk), follower))
    }))
}

fn lagged(format: Format, missed: u64) -> String {
    format.notice("lagged", json!({ "missed": missed }))
}

struct Follower {
    office: Arc<Office>,
    filter: Filter,
    format: Format,
    notice: Option<String>,
    backlog: VecDeque<Arc<Record>>,
    coming: Receiver<Arc<Record>>,
    life: Option<Reader>,
    _permit: OwnedSemaphorePermit,
}

impl Follower {
    /// The next chunk; `None` when this life of AdminActor is over.
    async fn next(&mut self) -> Option<Bytes> {
        let mut chunk = self.notice.take().unwrap_or_default();
        while chunk.len() < CHUNK
            && let Some(record) = self.backlog.pop_front()
        {
            self.write(&record, &mut chunk);
        }
        if chunk.is_empty() {
            self.wait(&mut chunk).await?;
        }
        Some(Bytes::from(chunk))
    }

    async fn wait(&mut self, chunk: &mut String) -> Option<()> {
        let quiet_until = Instant::now() + self.office.seed.settings.keep_alive;
        while chunk.is_empty() {
            let came = tokio::select! {
                biased;
                () = self.office.closed() => return None,
                came = self.coming.recv() => came,
                () = sleep_until(quiet_until) => {
                    chunk.push_str(self.format.sign_of_life());
                    return Some(());
                }
            };
            match came {
                Ok(record) => self.write(&record, chunk),
                Err(RecvError::Lagged(missed)) => chunk.push_str(&lagged(self.format, missed)),
                Err(RecvError::Closed) => return None,
            }
            self.drain(chunk);
        }
        Some(())
    }

    /// Takes what is there already, up to a chunk.
    fn drain(&mut self, chunk: &mut String) {
        while chunk.len() < CHUNK {
            match self.coming.try_recv() {
                Ok(record) => self.write(&record, chunk),
                Err(TryRecvError::Lagged(missed)) => chunk.push_str(&lagged(self.format, missed)),
                Err(TryRecvError::Empty | TryRecvError::Closed) => return,
            }
        }
    }

    fn write(&self, record: &Record, chunk: &mut String) {
        if !self.filter.takes(record) {
            return;
        }
        let text = match &self.life {
            None => self.format.record(record.seq, &numbered(record)),
            Some(reader) => {
                let id = format!("{:x}-{}", reader.life, record.seq);
                self.format.record(id, &record.fields)
            }
        };
        chunk.push_str(&text);
    }
}
