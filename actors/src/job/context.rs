//! What a job is told besides its input, and what it can say while it runs.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

use crate::id::AttemptId;
use crate::wire::Labels;

/// What a job is told besides its input.
#[derive(Clone, Debug)]
pub struct JobContext {
    attempt: AttemptId,
    timeout: Duration,
    meta: Labels,
    signals: Arc<Signals>,
}

impl JobContext {
    pub(crate) fn new(
        attempt: AttemptId,
        timeout: Duration,
        meta: Labels,
        signals: Arc<Signals>,
    ) -> Self {
        Self {
            attempt,
            timeout,
            meta,
            signals,
        }
    }

    /// The task, and which attempt at it this is: the first is number 1.
    pub fn attempt(&self) -> AttemptId {
        self.attempt
    }

    /// The fence token for side effects: of one task a later attempt's is greater, as a pair of numbers and as this text.
    /// A store that keeps the greatest it has seen, and refuses smaller ones, is safe from attempts that were superseded.
    pub fn fence(&self) -> String {
        let attempt = self.attempt.attempt;
        format!(
            "{:016x}-{:016x}-{:08x}",
            attempt.epoch.generation.0, attempt.epoch.revision, attempt.n
        )
    }

    /// What came with the task beside its input, such as the `traceparent` of whoever submitted it.
    pub fn meta(&self) -> &BTreeMap<String, String> {
        &self.meta
    }

    /// How long it may take, from its start or from its last word of progress.
    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Whether the attempt has been cancelled: by a person, or because it was superseded.
    pub fn is_cancelled(&self) -> bool {
        self.signals.cancelled.load(Ordering::Acquire)
    }

    /// Ends once the attempt is cancelled. A job has half a second from then; after it, it is dropped.
    pub async fn cancelled(&self) {
        self.signals.cancelled().await;
    }

    /// Says how far it is; the newest words are shown with the task, and its time-out begins anew.
    pub fn progress(&self, told: impl Into<String>) {
        let mut news = self.signals.news();
        *news = Some(told.into());
        self.signals.told.notify_one();
    }
}

/// Between an attempt that runs and the worker that runs it.
#[derive(Debug, Default)]
pub(crate) struct Signals {
    cancelled: AtomicBool,
    cancel: Notify,
    news: Mutex<Option<String>>,
    told: Notify,
}

impl Signals {
    pub(crate) fn cancel(&self) {
        self.cancelled.store(true, Ordering::Release);
        self.cancel.notify_waiters();
    }

    pub(crate) async fn cancelled(&self) {
        let mut woken = std::pin::pin!(self.cancel.notified());
        // Registered before the look, so that no cancellation falls between the two.
        woken.as_mut().enable();
        if !self.cancelled.load(Ordering::Acquire) {
            woken.await;
        }
    }

    /// The newest words of progress that nobody has taken.
    pub(crate) async fn progress(&self) -> String {
        loop {
            if let Some(told) = self.news().take() {
                return told;
            }
            self.told.notified().await;
        }
    }

    fn news(&self) -> std::sync::MutexGuard<'_, Option<String>> {
        self.news.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::{Attempt, Epoch, Generation, TaskId};

    fn context(n: u32, revision: i64) -> JobContext {
        let epoch = Epoch {
            generation: Generation(7),
            revision,
        };
        let attempt = AttemptId {
            task: TaskId(uuid::Uuid::from_u128(1)),
            attempt: Attempt { epoch, n },
        };
        JobContext::new(
            attempt,
            Duration::from_secs(1),
            Labels::default(),
            Arc::default(),
        )
    }

    #[test]
    fn fence_tokens_of_later_attempts_are_greater_as_text() {
        let fences = [
            context(9, 5),
            context(10, 5),
            context(1, 99),
            context(2, 100),
        ];
        let texts: Vec<String> = fences.iter().map(JobContext::fence).collect();
        assert!(texts.is_sorted(), "{texts:?}");
    }

    #[tokio::test]
    async fn a_cancellation_is_heard_before_and_after_it_came() {
        let context = context(1, 1);
        let waits = context.clone();
        let heard = tokio::spawn(async move { waits.cancelled().await });
        tokio::task::yield_now().await;
        context.signals.cancel();
        heard.await.unwrap();
        context.cancelled().await;
        assert!(context.is_cancelled());
    }

    #[tokio::test]
    async fn the_newest_progress_is_told() {
        let context = context(1, 1);
        context.progress("1 of 2");
        context.progress("2 of 2");
        assert_eq!(context.signals.progress().await, "2 of 2");
    }
}
