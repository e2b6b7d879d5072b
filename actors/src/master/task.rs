//! One task with its history, as the ledger keeps it. A task that only waits carries no history: a million of them must fit.

use std::borrow::Cow;
use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::id::{Attempt, AttemptId, Incarnation, NodeId};
use crate::wire::TaskSpec;

/// Refused results kept in a receipt; beyond, only counted.
const MAX_REFUSED: usize = 16;
/// Tries kept in a receipt, and attempts of a task at the most: those without blame are forgotten first.
pub const MAX_TRIES: usize = 100;
/// No wait is longer, whatever a task or a setting says: the clock must not overflow.
pub(super) const FAR: Duration = Duration::from_secs(365 * 24 * 3600);

/// A worker in one life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct WorkerId {
    /// Who.
    pub id: NodeId,
    /// Which life.
    pub incarnation: Incarnation,
}

/// How a task stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// Waits for a worker.
    Queued,
    /// The newest attempt is with a worker.
    Leased,
    /// Recorded: the output.
    Done(Box<[u8]>),
    /// Recorded: the job said "do not retry".
    Failed(Box<str>),
    /// Attempts used up, or it killed its workers; kept for a person to look at.
    Dead(Box<str>),
    /// Cancelled.
    Cancelled,
}

impl State {
    /// Its name in the API.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Leased => "leased",
            Self::Done(_) => "done",
            Self::Failed(_) => "failed",
            Self::Dead(_) => "dead",
            Self::Cancelled => "cancelled",
        }
    }

    /// Not finished.
    pub fn is_open(&self) -> bool {
        matches!(self, Self::Queued | Self::Leased)
    }

    /// Bytes of its answer.
    pub(super) fn weight(&self) -> usize {
        match self {
            Self::Done(output) => output.len(),
            Self::Failed(why) | Self::Dead(why) => why.len(),
            Self::Queued | Self::Leased | Self::Cancelled => 0,
        }
    }
}

/// How a task ended, when that is all that is still known of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Fate {
    /// It gave an output.
    Done,
    /// The job said "do not retry".
    Failed,
    /// Attempts used up.
    Dead,
    /// Cancelled.
    Cancelled,
}

impl Fate {
    /// That of a finished task.
    pub(super) fn of(state: &State) -> Self {
        match state {
            State::Done(_) => Self::Done,
            State::Failed(_) => Self::Failed,
            State::Queued | State::Leased | State::Dead(_) => Self::Dead,
            State::Cancelled => Self::Cancelled,
        }
    }

    /// Its name in the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Dead => "dead",
            Self::Cancelled => "cancelled",
        }
    }
}

/// How a try stands or ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// With its worker.
    Running,
    /// Gave an output.
    Done,
    /// The job said "do not retry".
    Failed,
    /// The job asked for another try.
    Retry,
    /// Overran its time.
    TimedOut,
    /// Its worker was lost, or lost it.
    Lost,
    /// A newer attempt was found running.
    Superseded,
    /// Never began: handed back, or not sent.
    Returned,
    /// Cancelled.
    Cancelled,
}

impl Ending {
    /// Every one, in the order of their numbers in the journal: only appended to.
    pub const ALL: [Self; 9] = [
        Self::Running,
        Self::Done,
        Self::Failed,
        Self::Retry,
        Self::TimedOut,
        Self::Lost,
        Self::Superseded,
        Self::Returned,
        Self::Cancelled,
    ];

    /// Its name in the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Retry => "retry",
            Self::TimedOut => "timed-out",
            Self::Lost => "lost",
            Self::Superseded => "superseded",
            Self::Returned => "returned",
            Self::Cancelled => "cancelled",
        }
    }
}

/// One try, for the receipt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Try {
    /// Its token.
    pub attempt: Attempt,
    /// With whom.
    pub worker: WorkerId,
    /// Unix ms on the worker's clock; 0 while unknown.
    pub started_ms: u64,
    /// Unix ms on the worker's clock; 0 until its result came.
    pub finished_ms: u64,
    /// How it stands or ended.
    pub ending: Ending,
    /// Whether it counts towards `max_attempts`: it executed, and its end is the task's own affair.
    pub spent: bool,
    /// It was executing when its worker died.
    pub blamed: bool,
}

/// A result that was not recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Which attempt.
    pub attempt: Attempt,
    /// Who sent it.
    pub worker: NodeId,
    /// Why.
    pub why: Cow<'static, str>,
}

/// What is decided of a durable task, and takes place once it is in the journal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// It is accepted, and must not be handed out for so long.
    Accept(Duration),
    /// It is finished.
    Finish(State, u64),
    /// It is queued again after this wait.
    Requeue(Duration),
    /// A dead one is given another chance.
    Retry,
}

/// A change that waits for the journal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pending {
    /// What will take place.
    pub change: Change,
    /// Who is to be told that its result was taken.
    pub answers: Option<(NodeId, AttemptId)>,
    /// Why, in words.
    pub why: &'static str,
}

/// What only a task has that was once handed out, finished or made to wait.
#[derive(Clone, Debug, Default)]
pub(super) struct History {
    pub(super) tries: Vec<Try>,
    pub(super) refused: Vec<Refusal>,
    pub(super) finished_ms: u64,
    pub(super) finished_at: Option<Instant>,
    pub(super) waits_until: Option<Instant>,
    pub(super) deadline: Option<Instant>,
    pub(super) pending: Option<Pending>,
    /// What a job last told of its progress.
    pub(super) progress: Option<Box<str>>,
}

/// A task with its history.
#[derive(Clone, Debug)]
pub struct Task {
    /// As submitted.
    pub spec: TaskSpec,
    /// How it stands.
    pub state: State,
    pub(super) history: Option<Box<History>>,
    /// Rises with acceptance.
    pub(super) seq: u64,
    /// Which line it waits in.
    pub(super) line: u32,
    /// Recovered, and kept aside until the workers have reported.
    pub(super) held: bool,
}

impl Task {
    pub(super) fn new(spec: TaskSpec, seq: u64, line: u32) -> Self {
        Self {
            spec,
            state: State::Queued,
            history: None,
            seq,
            line,
            held: false,
        }
    }

    /// Oldest first.
    pub fn tries(&self) -> &[Try] {
        self.history.as_ref().map_or(&[], |h| &h.tries)
    }

    /// Results that were not recorded; bounded.
    pub fn refused(&self) -> &[Refusal] {
        self.history.as_ref().map_or(&[], |h| &h.refused)
    }

    /// Unix ms; 0 while open.
    pub fn finished_ms(&self) -> u64 {
        self.history.as_ref().map_or(0, |h| h.finished_ms)
    }

    /// What a job last told of its progress.
    pub fn progress(&self) -> Option<&str> {
        self.history.as_ref()?.progress.as_deref()
    }

    /// Recovered from the journal, and kept aside until the workers have reported.
    pub fn is_held(&self) -> bool {
        self.held
    }

    /// A change of it is on its way into the journal.
    pub fn pending(&self) -> Option<&Pending> {
        self.history.as_ref()?.pending.as_ref()
    }

    /// Not accepted yet: its record is on its way, and nobody is to see it.
    pub fn is_proposed(&self) -> bool {
        self.pending()
            .is_some_and(|p| matches!(p.change, Change::Accept(_)))
    }

    pub(super) fn history(&mut self) -> &mut History {
        self.history.get_or_insert_default()
    }

    /// Higher priority first, then in order of acceptance.
    pub(super) fn place(&self) -> Place {
        (Reverse(self.spec.priority), self.seq)
    }

    pub(super) fn spent(&self) -> usize {
        self.tries().iter().filter(|t| t.spent).count()
    }

    /// Distinct workers that died while they executed it.
    pub fn kills(&self) -> usize {
        let blamed = self.tries().iter().filter(|t| t.blamed);
        let workers: BTreeSet<NodeId> = blamed.map(|t| t.worker.id).collect();
        workers.len()
    }

    pub(super) fn begin(&mut self, attempt: Attempt, worker: WorkerId, started_ms: u64) {
        self.push_try(Try {
            attempt,
            worker,
            started_ms,
            finished_ms: 0,
            ending: Ending::Running,
            spent: true,
            blamed: false,
        });
    }

    pub(super) fn push_try(&mut self, new: Try) {
        let tries = &mut self.history().tries;
        if tries.len() >= MAX_TRIES {
            let blameless = tries.iter().position(|t| !t.spent && !t.blamed);
            tries.remove(blameless.unwrap_or(0));
        }
        tries.push(new);
    }

    pub(super) fn refuse(&mut self, attempt: Attempt, worker: NodeId, why: &'static str) {
        let refused = &mut self.history().refused;
        if refused.len() < MAX_REFUSED {
            refused.push(Refusal {
                attempt,
                worker,
                why: why.into(),
            });
        }
    }

    /// Twice as long each time, and ± 20 % by the chance that is in the id, so that what failed together does not return
    /// together.
    pub(super) fn back_off(&self, first: Duration) -> Duration {
        let spent = u32::try_from(self.spent()).unwrap_or(u32::MAX);
        let doublings = spent.saturating_sub(1).min(16);
        let mixed = (self.spec.id.0.as_u128() as u64)
            .wrapping_add(u64::from(spent))
            .wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let per_mille = 800 + u32::try_from((mixed >> 32) % 401).unwrap_or(200);
        first.saturating_mul(1 << doublings).min(FAR) * per_mille / 1000
    }

    /// Bytes of it in the journal, about; the same from acceptance to the end, but for its answer.
    pub(super) fn weight_of_answer(&self) -> usize {
        self.spec.weight() + self.state.weight() + 80
    }

    /// Bytes of its receipt, about; fixed once it is finished.
    pub(super) fn weight(&self) -> usize {
        self.spec.weight() + self.state.weight() + 80 * self.tries().len()
    }
}

/// Where a task stands in its line.
pub type Place = (Reverse<i32>, u64);
