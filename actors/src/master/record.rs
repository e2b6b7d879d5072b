//! What the journal holds: records of what became of durable tasks, many to a segment. Pure.
//!
//! A segment is `version u8 | floor u64 LE (unix ms) | record (postcard)…`. Kinds are only appended; a version nobody knows is an
//! error, never skipped: a task in it would be lost. Each record stands on its own or on records that were committed
//! before it was made, so a segment that is missing between others takes nothing along.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::task::{Ending, Fate, Refusal, State, Task, Try, WorkerId};
use crate::id::{Attempt, Incarnation, NodeId, TaskId};
use crate::wire::TaskSpec;

/// The only version so far.
const VERSION: u8 = 1;
/// Bytes before the first record.
pub const HEADER: usize = 9;

/// How a task ended, or that it did not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// Not finished.
    Open,
    /// Its output.
    Done(Bytes),
    /// The job said "do not retry".
    Failed(String),
    /// No more attempts.
    Dead(String),
    /// Cancelled.
    Cancelled,
}

/// One try.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TryRecord {
    attempt: Attempt,
    worker: NodeId,
    incarnation: Incarnation,
    started_ms: u64,
    finished_ms: u64,
    /// Index into `Ending::ALL`.
    ending: u8,
    spent: bool,
    blamed: bool,
}

/// A task as a whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// As submitted.
    pub spec: TaskSpec,
    /// How it stands.
    pub answer: Answer,
    /// Unix ms; 0 while open.
    pub finished_ms: u64,
    /// Oldest first.
    pub tries: Vec<TryRecord>,
    /// Attempt, sender, reason.
    pub refused: Vec<(Attempt, NodeId, String)>,
}

/// See the module page.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Record {
    /// A task was accepted.
    Accepted(TaskSpec),
    /// It is finished.
    Finished {
        /// Which.
        task: TaskId,
        /// Its last try, when there was one.
        tried: Option<TryRecord>,
        /// How.
        answer: Answer,
        /// Unix ms.
        at_ms: u64,
    },
    /// A try ended without an answer; the task is queued again.
    Requeued {
        /// Which.
        task: TaskId,
        /// The try.
        tried: Option<TryRecord>,
    },
    /// Somebody gave a dead task another chance: its attempts and what it is blamed for count no more.
    Retried {
        /// Which.
        task: TaskId,
    },
    /// Copied forward from an older segment, which is deleted with the same transaction.
    Snapshot(Box<Snapshot>),
    /// Tasks whose receipts are gone and whose ids must still be known.
    Ids(Vec<(TaskId, Fate)>),
}

/// Why a segment cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    /// Made by another version of this program.
    #[error("its version is {0}, this program knows version {VERSION}")]
    Version(u8),
    /// Damaged, or of a newer version that forgot to say so.
    #[error("it is damaged at byte {at} of {bytes}: {why}")]
    Damaged {
        /// Where.
        at: usize,
        /// Of how many.
        bytes: usize,
        /// The decoder's words.
        why: String,
    },
}

/// An empty segment.
pub fn begin(floor_ms: u64) -> Vec<u8> {
    let mut bytes = vec![VERSION];
    bytes.extend_from_slice(&floor_ms.to_le_bytes());
    bytes
}

/// Appends a record.
pub fn append(segment: &mut Vec<u8>, record: &Record) {
    let bytes = std::mem::take(segment);
    let before = bytes.len();
    // Extending a vector cannot fail, and no type in a record refuses to be written.
    *segment = postcard::to_extend(record, bytes).unwrap_or_else(|_| Vec::with_capacity(before));
}

/// The floor and the records of a segment.
///
/// # Errors
/// Why it cannot be read; nothing of it may be used then.
pub fn read(segment: &[u8]) -> Result<(u64, Vec<Record>), Unreadable> {
    let damaged = |at: usize, why: &str| Unreadable::Damaged {
        at,
        bytes: segment.len(),
        why: why.to_owned(),
    };
    let Some((version, rest)) = segment.split_first() else {
        return Err(damaged(0, "it is empty"));
    };
    if *version != VERSION {
        return Err(Unreadable::Version(*version));
    }
    let Some((floor, mut rest)) = rest.split_first_chunk::<8>() else {
        return Err(damaged(1, "it ends within its header"));
    };
    let mut records = Vec::new();
    while !rest.is_empty() {
        let at = segment.len() - rest.len();
        let (record, behind) = postcard::take_from_bytes::<Record>(rest)
            .map_err(|err| damaged(at, &err.to_string()))?;
        records.push(record);
        rest = behind;
    }
    Ok((u64::from_le_bytes(*floor), records))
}

impl From<&Try> for TryRecord {
    fn from(t: &Try) -> Self {
        let ending = Ending::ALL.iter().position(|e| *e == t.ending);
        Self {
            attempt: t.attempt,
            worker: t.worker.id,
            incarnation: t.worker.incarnation,
            started_ms: t.started_ms,
            finished_ms: t.finished_ms,
            ending: u8::try_from(ending.unwrap_or(0)).unwrap_or(0),
            spent: t.spent,
            blamed: t.blamed,
        }
    }
}

impl From<&TryRecord> for Try {
    fn from(t: &TryRecord) -> Self {
        let ending = Ending::ALL.get(usize::from(t.ending)).copied();
        Self {
            attempt: t.attempt,
            worker: WorkerId {
                id: t.worker,
                incarnation: t.incarnation,
            },
            started_ms: t.started_ms,
            finished_ms: t.finished_ms,
            ending: ending.unwrap_or(Ending::Lost),
            spent: t.spent,
            blamed: t.blamed,
        }
    }
}

impl From<&State> for Answer {
    fn from(state: &State) -> Self {
        match state {
            State::Queued | State::Leased => Self::Open,
            State::Done(output) => Self::Done(Bytes::copy_from_slice(output)),
            State::Failed(why) => Self::Failed(why.to_string()),
            State::Dead(why) => Self::Dead(why.to_string()),
            State::Cancelled => Self::Cancelled,
        }
    }
}

impl From<&Answer> for State {
    fn from(answer: &Answer) -> Self {
        match answer {
            Answer::Open => Self::Queued,
            Answer::Done(output) => Self::Done(output[..].into()),
            Answer::Failed(why) => Self::Failed(why.as_str().into()),
            Answer::Dead(why) => Self::Dead(why.as_str().into()),
            Answer::Cancelled => Self::Cancelled,
        }
    }
}

impl Snapshot {
    /// A task that was just accepted.
    pub fn new(spec: TaskSpec) -> Self {
        Self {
            spec,
            answer: Answer::Open,
            finished_ms: 0,
            tries: Vec::new(),
            refused: Vec::new(),
        }
    }

    /// The task, in this state.
    pub(super) fn of(task: &Task, state: &State, finished_ms: u64) -> Self {
        let refused = |r: &Refusal| (r.attempt, r.worker, r.why.to_string());
        Self {
            spec: task.spec.clone(),
            answer: state.into(),
            finished_ms,
            tries: task.tries().iter().map(TryRecord::from).collect(),
            refused: task.refused().iter().map(refused).collect(),
        }
    }

    /// What became of a try is known now.
    pub(super) fn tried(&mut self, tried: Option<TryRecord>) {
        let Some(tried) = tried else { return };
        match self.tries.iter_mut().find(|t| t.attempt == tried.attempt) {
            Some(known) => *known = tried,
            None => self.tries.push(tried),
        }
    }

    /// Its attempts count no more.
    pub(super) fn retried(&mut self) {
        self.answer = Answer::Open;
        self.finished_ms = 0;
        for t in &mut self.tries {
            (t.spent, t.blamed) = (false, false);
        }
    }
}
