//! The node's recent log records, kept in a bounded ring for `/v1/events` and `/v1/logs`.
//!
//! The logger pushes every record it prints; whoever follows gets what is pushed from then on, and is told what it missed.
//! Each record is stamped by the node's hybrid logical clock, which the transport moves on with every frame that arrives: so
//! the records of a cause sort before those of its effect, also at another node. Records of decisions (who was condemned,
//! who leads, what was restarted) are kept in a ring of their own, so that a busy hour of tasks does not wash them out.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use tokio::sync::broadcast;

use crate::time::unix_ms;
use crate::transport::hlc::HybridClock;

/// Decisions kept: some days of an ordinary cluster, minutes of a flapping one, and below 2 MB.
const DECISIONS_KEPT: usize = 2048;

/// Event names (by their beginning) of decisions.
const DECISIONS: [&str; 8] = [
    "peer.",
    "master.",
    "node.",
    "actor.",
    "registry.",
    "session.",
    "admin.",
    "config.",
];

/// One log record, as printed in JSON.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Rises by one per record of this process; the id for resuming.
    pub seq: u64,
    /// The JSON object of the log line: `ts`, `level`, `event`, `node`, …
    pub fields: serde_json::Map<String, serde_json::Value>,
}

impl Record {
    /// The stable event name; empty for a plain log line.
    pub fn event(&self) -> &str {
        self.fields
            .get("event")
            .and_then(serde_json::Value::as_str)
            .unwrap_or("")
    }

    /// Whether it tells of a decision, not of the daily work.
    pub fn is_decision(&self) -> bool {
        DECISIONS
            .iter()
            .any(|begin| self.event().starts_with(begin))
    }
}

/// A bounded ring of records that can be followed. Cheap to clone.
#[derive(Clone)]
pub struct EventLog {
    inner: Arc<Mutex<Ring>>,
    follow: broadcast::Sender<Arc<Record>>,
    clock: HybridClock,
}

struct Ring {
    next: u64,
    keep: usize,
    records: VecDeque<Arc<Record>>,
    decisions: VecDeque<Arc<Record>>,
}

impl EventLog {
    /// Keeps the last `keep` records; a follower that lags behind by more than 1,024 is told so.
    pub fn new(keep: usize) -> Self {
        let (follow, _) = broadcast::channel(1024);
        let ring = Ring {
            next: 1,
            keep: keep.max(1),
            records: VecDeque::new(),
            decisions: VecDeque::new(),
        };
        Self {
            inner: Arc::new(Mutex::new(ring)),
            follow,
            clock: HybridClock::default(),
        }
    }

    /// The clock that stamps records; the transport merges what it hears into it.
    pub fn clock(&self) -> HybridClock {
        self.clock.clone()
    }

    /// A stamp of now, as records carry it in `hlc`: sixteen hex digits, which sort as text.
    pub fn stamp(&self) -> String {
        format!("{:016x}", self.clock.tick(unix_ms()).0)
    }

    /// Adds a record; it is stamped unless it came with a stamp.
    pub fn push(&self, mut fields: serde_json::Map<String, serde_json::Value>) {
        let mut ring = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        // Under the lock, so that the numbers and the stamps rise together.
        if !fields.contains_key("hlc") {
            fields.insert("hlc".to_owned(), self.stamp().into());
        }
        let record = Arc::new(Record {
            seq: ring.next,
            fields,
        });
        ring.next += 1;
        if ring.records.len() == ring.keep {
            ring.records.pop_front();
        }
        ring.records.push_back(Arc::clone(&record));
        if record.is_decision() {
            if ring.decisions.len() == DECISIONS_KEPT {
                ring.decisions.pop_front();
            }
            ring.decisions.push_back(Arc::clone(&record));
        }
        // Nobody following is no error.
        self.follow.send(record).ok();
    }

    /// Number of the newest record; 0 before the first.
    pub fn newest(&self) -> u64 {
        let ring = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        ring.next - 1
    }

    /// Kept records of decisions, oldest first.
    pub fn decisions(&self) -> Vec<Arc<Record>> {
        let ring = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        ring.decisions.iter().cloned().collect()
    }

    /// Kept records with `seq` above `since`, oldest first, and a receiver for what comes after them without a gap.
    pub fn since(&self, since: u64) -> (Vec<Arc<Record>>, broadcast::Receiver<Arc<Record>>) {
        let ring = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = ring.records.iter().filter(|r| r.seq > since).cloned();
        (kept.collect(), self.follow.subscribe())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ring_keeps_the_newest_and_a_follower_has_no_gap() {
        let log = EventLog::new(2);
        for _ in 0..3 {
            log.push(serde_json::Map::new());
        }
        let (kept, mut follow) = log.since(0);
        assert_eq!(kept.iter().map(|r| r.seq).collect::<Vec<_>>(), [2, 3]);
        log.push(serde_json::Map::new());
        assert_eq!(follow.try_recv().map(|r| r.seq), Ok(4));
    }

    #[test]
    fn a_decision_outlives_the_daily_work_and_stamps_rise_with_numbers() {
        let log = EventLog::new(2);
        let named = |event: &str| {
            let mut fields = serde_json::Map::new();
            fields.insert("event".to_owned(), event.into());
            fields
        };
        log.push(named("peer.condemned"));
        for _ in 0..5 {
            log.push(named("task.finished"));
        }
        let decisions = log.decisions();
        assert_eq!(decisions.len(), 1);
        assert_eq!(decisions[0].event(), "peer.condemned");
        let (kept, _) = log.since(0);
        let stamps: Vec<_> = kept.iter().map(|r| r.fields["hlc"].as_str()).collect();
        assert!(stamps.is_sorted_by(|a, b| a < b), "{stamps:?}");
    }
}
