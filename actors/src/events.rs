//! The node's recent log records, kept in a bounded ring for `/v1/events` and `/v1/logs`.
//!
//! The logger pushes every record it prints; whoever follows gets what is pushed from then on, and is told what it missed.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use tokio::sync::broadcast;

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
}

/// A bounded ring of records that can be followed. Cheap to clone.
#[derive(Clone)]
pub struct EventLog {
    inner: Arc<Mutex<Ring>>,
    follow: broadcast::Sender<Arc<Record>>,
}

struct Ring {
    next: u64,
    keep: usize,
    records: VecDeque<Arc<Record>>,
}

impl EventLog {
    /// Keeps the last `keep` records; a follower that lags behind by more than 1,024 is told so.
    pub fn new(keep: usize) -> Self {
        let (follow, _) = broadcast::channel(1024);
        let ring = Ring {
            next: 1,
            keep: keep.max(1),
            records: VecDeque::new(),
        };
        Self {
            inner: Arc::new(Mutex::new(ring)),
            follow,
        }
    }

    /// Adds a record.
    pub fn push(&self, fields: serde_json::Map<String, serde_json::Value>) {
        let mut ring = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let record = Arc::new(Record {
            seq: ring.next,
            fields,
        });
        ring.next += 1;
        if ring.records.len() == ring.keep {
            ring.records.pop_front();
        }
        ring.records.push_back(Arc::clone(&record));
        // Nobody following is no error.
        self.follow.send(record).ok();
    }

    /// Number of the newest record; 0 before the first.
    pub fn newest(&self) -> u64 {
        let ring = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        ring.next - 1
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
}
