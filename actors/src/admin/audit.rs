//! Who asked for what: every change is an event at the node that was asked; what is carried to another node says who asked.
//!
//! | event | told of |
//! |---|---|
//! | `admin.audit` | each change but submits, also one that was refused to somebody who showed a token |
//! | `audit.submit` | submits: the first of a caller at once, those of the second after it in a sum. Nothing is left out |
//! | `admin.refused` | whoever was let in nowhere, and what ran into a bound: counted by reason, spoken of every 10 s |

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::http::StatusCode;
use tokio::time::{Instant, sleep};

use crate::id::TaskId;

/// Submits of one caller are summed up for this long.
const WINDOW: Duration = Duration::from_secs(1);
/// Callers whose submits are summed up at one time; those of further ones are told one by one.
const MAX_WINDOWS: usize = 256;
/// Refusals are spoken of this often.
const REFUSALS: Duration = Duration::from_secs(10);
/// Longest path in an event.
const MAX_PATH: usize = 200;

/// Whoever asked, as the node that was asked knows it.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Caller {
    /// `loopback`, `reader` or `operator`.
    pub(crate) by: String,
    /// From which address.
    pub(crate) from: String,
}

impl Caller {
    pub(crate) fn to_wire(&self) -> String {
        match self.by.is_empty() {
            true => String::new(),
            false => format!("{}@{}", self.by, self.from),
        }
    }

    pub(crate) fn from_wire(text: &str) -> Self {
        let (by, from) = text.split_once('@').unwrap_or((text, ""));
        Self {
            by: by.to_owned(),
            from: from.to_owned(),
        }
    }
}

tokio::task_local! {
    /// Whose request this task answers.
    pub(crate) static CALLER: Caller;
}

/// Whose request is being answered; nobody's outside of one.
pub(crate) fn caller() -> Caller {
    CALLER.try_with(Clone::clone).unwrap_or_default()
}

/// What a submit came to, left in its answer for the audit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Submits {
    pub(crate) accepted: u64,
    pub(crate) refused: u64,
    /// When there was one task only.
    pub(crate) task: Option<TaskId>,
}

impl Submits {
    /// The whole request was.
    pub(crate) const REFUSED: Self = Self {
        accepted: 0,
        refused: 1,
        task: None,
    };
}

/// One change that was asked for, and what became of it.
#[derive(Clone, Debug)]
pub(crate) struct Change {
    pub(crate) caller: Caller,
    pub(crate) method: String,
    /// Path and query.
    pub(crate) path: String,
    pub(crate) status: StatusCode,
    pub(crate) took: Duration,
}

#[derive(Default)]
struct Sum {
    requests: u64,
    accepted: u64,
    refused: u64,
}

#[derive(Default)]
struct Refusals {
    totals: BTreeMap<&'static str, u64>,
    since: u64,
    spoke: Option<Instant>,
}

/// The audit of one node. It outlives the lives of AdminActor.
#[derive(Clone, Default)]
pub struct Audit {
    windows: Arc<Mutex<BTreeMap<Caller, Sum>>>,
    refusals: Arc<Mutex<Refusals>>,
}

impl std::fmt::Debug for Audit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Audit")
    }
}

impl Audit {
    /// Tells of a change.
    pub(crate) fn change(&self, change: &Change) {
        let Caller { by, from } = &change.caller;
        let path: String = change.path.chars().take(MAX_PATH).collect();
        let status = change.status.as_u16();
        let outcome = match status {
            200..=299 => "done",
            400..=499 => "refused",
            _ => "failed",
        };
        let duration_ms = u64::try_from(change.took.as_millis()).unwrap_or(u64::MAX);
        log::info!(target: "admin", event = "admin.audit", by = by.as_str(), from = from.as_str(), method = change.method.as_str(), path = path.as_str(), status = status, outcome = outcome, duration_ms = duration_ms; "a change was asked for");
    }

    /// Tells of a submit and opens a window; those within one are told when it ends.
    pub(crate) fn submits(&self, caller: &Caller, submits: Submits) {
        let mut windows = lock(&self.windows);
        if let Some(sum) = windows.get_mut(caller) {
            sum.requests += 1;
            sum.accepted += submits.accepted;
            sum.refused += submits.refused;
            return;
        }
        if windows.len() < MAX_WINDOWS {
            windows.insert(caller.clone(), Sum::default());
            let (windows, caller) = (Arc::clone(&self.windows), caller.clone());
            actix_rt::spawn(async move {
                sleep(WINDOW).await;
                let sum = lock(&windows).remove(&caller);
                if let Some(sum) = sum.filter(|sum| sum.requests > 0) {
                    tell(&caller, &sum);
                }
            });
        }
        drop(windows);
        let sum = Sum {
            requests: 1,
            accepted: submits.accepted,
            refused: submits.refused,
        };
        match submits.task {
            None => tell(caller, &sum),
            Some(task) => {
                let Caller { by, from } = caller;
                log::info!(target: "admin", event = "audit.submit", by = by.as_str(), from = from.as_str(), requests = 1, accepted = sum.accepted, refused = sum.refused, task = task.to_string(); "a task was submitted");
            }
        }
    }

    /// Something was not answered, or cut off, for this reason: counted, and spoken of now and then.
    pub(crate) fn refuse(&self, reason: &'static str, from: &str, words: &str) {
        let mut refusals = lock(&self.refusals);
        *refusals.totals.entry(reason).or_default() += 1;
        refusals.since += 1;
        let now = Instant::now();
        if refusals.spoke.is_some_and(|spoke| now - spoke < REFUSALS) {
            return;
        }
        refusals.spoke = Some(now);
        let count = std::mem::take(&mut refusals.since);
        drop(refusals);
        log::warn!(target: "admin", event = "admin.refused", reason = reason, from = from, refused = count, err = words; "a request was refused");
    }

    /// How many were refused, by reason.
    pub(crate) fn refused(&self) -> BTreeMap<&'static str, u64> {
        lock(&self.refusals).totals.clone()
    }
}

fn tell(caller: &Caller, sum: &Sum) {
    let Caller { by, from } = caller;
    log::info!(target: "admin", event = "audit.submit", by = by.as_str(), from = from.as_str(), requests = sum.requests, accepted = sum.accepted, refused = sum.refused; "tasks were submitted");
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
