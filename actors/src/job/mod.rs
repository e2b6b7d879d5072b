//! Kinds of work. One file per built-in kind; an embedder adds its own by implementing [`Job`].
//!
//! Promises to a job: it runs on the task plane, never on the control plane; its input was checked against the size
//! limit; its deadline and a cancellation reach it through the [`JobContext`]. Asked of a job: be safe to run more than
//! once (tasks are executed at least once, recorded exactly once), and never block the thread.

pub mod exec;
pub mod multiply;
pub mod noop;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;

use crate::id::AttemptId;

/// What a job is told besides its input.
#[derive(Clone, Debug)]
pub struct JobContext {
    /// Which attempt this is; its token fences side effects.
    pub attempt: AttemptId,
    /// How long it may take.
    pub timeout: Duration,
    /// Becomes true when the attempt is cancelled.
    pub cancelled: tokio::sync::watch::Receiver<bool>,
}

/// Why a job gave no output.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JobError {
    /// Another try cannot help (bad input); the task is `failed`.
    #[error("{0}")]
    Failed(String),
    /// Another try may help.
    #[error("{0}")]
    Retry(String),
}

/// A kind of work: JSON bytes in, JSON bytes out.
pub trait Job: Send + Sync + 'static {
    /// Its name in `submit` and in registrations.
    fn name(&self) -> &str;
    /// Does one attempt. A panic inside counts as [`JobError::Retry`].
    fn run(&self, input: Bytes, context: JobContext)
    -> BoxFuture<'static, Result<Bytes, JobError>>;
}

/// The kinds of work a node knows.
#[derive(Clone, Default)]
pub struct Jobs(Vec<Arc<dyn Job>>);

impl Jobs {
    /// Adds a kind; a later one of the same name replaces the earlier.
    #[must_use]
    pub fn with(mut self, job: impl Job) -> Self {
        self.0.retain(|known| known.name() != job.name());
        self.0.push(Arc::new(job));
        self
    }

    /// The kind of this name.
    pub fn get(&self, name: &str) -> Option<Arc<dyn Job>> {
        self.0.iter().find(|job| job.name() == name).cloned()
    }

    /// Names of all kinds, in the order they were added.
    pub fn names(&self) -> Vec<String> {
        self.0.iter().map(|job| job.name().to_owned()).collect()
    }
}
