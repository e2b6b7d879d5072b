//! Kinds of work. One file per built-in kind; an embedder adds its own by [`from_fn`], [`blocking`] or by implementing [`Job`].
//!
//! Promises to a job: it runs on the task plane, never on the control plane; its input was checked against the size
//! limit; its deadline and a cancellation reach it through the [`JobContext`]. Asked of a job: be safe to run more than
//! once (tasks are executed at least once, recorded exactly once), and never block the thread unless it is a [`blocking`] one.

mod context;
pub mod exec;
mod function;
pub mod multiply;
pub mod noop;

use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;

pub use self::context::JobContext;
pub(crate) use self::context::Signals;
pub use self::function::{blocking, from_fn};
use crate::id::JobName;

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
    /// How many attempts run side by side on one node, if that is fewer than the node's capacity.
    fn concurrency(&self) -> Option<usize> {
        None
    }
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

    /// Adds all of these, as [`Jobs::with`].
    #[must_use]
    pub fn with_all(mut self, more: Self) -> Self {
        self.0.retain(|known| more.get(known.name()).is_none());
        self.0.extend(more.0);
        self
    }

    /// The kind of this name.
    pub fn get(&self, name: &str) -> Option<Arc<dyn Job>> {
        self.0.iter().find(|job| job.name() == name).cloned()
    }

    /// How many attempts of this kind may run side by side on one node, when that is limited.
    pub(crate) fn limit(&self, name: &JobName) -> Option<usize> {
        let job = self.0.iter().find(|job| job.name() == name.as_str())?;
        job.concurrency()
    }

    /// Names of all kinds, in the order they were added.
    pub fn names(&self) -> Vec<String> {
        self.0.iter().map(|job| job.name().to_owned()).collect()
    }
}

/// What is said of a task is for people: nobody reads more than this.
pub(crate) fn clip(mut why: String) -> String {
    const MOST: usize = 16 * 1024;
    if why.len() > MOST {
        let end = (0..=MOST).rev().find(|at| why.is_char_boundary(*at));
        why.truncate(end.unwrap_or(0));
    }
    why
}
