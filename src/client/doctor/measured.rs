//! How long things took in this cluster, from the records that its nodes keep. Pure.
//!
//! | measured | from | to |
//! |---|---|---|
//! | detection | the last word of a peer | the verdict (`duration_ms` of `peer.condemned`) |
//! | without a master, lost | the last word of the master | `master.promoted` |
//! | without a master, handed over | `master.handing_over` | `master.promoted` |
//! | re-execution | the last word of the worker | `task.assigned` of a task that was queued again after it |

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use serde_json::{Map, Value};

type Record = Map<String, Value>;

/// A take-over longer after its cause than this has another.
const BELONGS: Duration = Duration::from_secs(120);

/// The longest of each, as far as the records reach.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Measured {
    /// Of a process that was gone.
    pub(super) detection_gone: Option<Duration>,
    /// Of one that fell silent.
    pub(super) detection_silent: Option<Duration>,
    /// After a master that was lost.
    pub(super) masterless_lost: Option<Duration>,
    /// At a hand-over.
    pub(super) masterless_handed: Option<Duration>,
    /// Until a lost attempt was handed out again.
    pub(super) again: Option<Duration>,
}

/// `records` in their order.
pub(super) fn measure(records: &[Record]) -> Measured {
    let mut measured = Measured::default();
    // When the last word of the master before came, and whether it handed over.
    let mut vacant: Option<(SystemTime, bool)> = None;
    let mut lost_at: Option<SystemTime> = None;
    let mut queued: BTreeMap<&str, SystemTime> = BTreeMap::new();
    for record in records {
        let Some(at) = time(record) else { continue };
        match text(record, "event") {
            "peer.condemned" => {
                let silent = millis(record, "duration_ms");
                let gone = text(record, "reason").contains("refuse");
                let slot = match gone {
                    true => &mut measured.detection_gone,
                    false => &mut measured.detection_silent,
                };
                longest(slot, silent);
                let last_word = at.checked_sub(silent);
                lost_at = last_word;
                if record.get("was_master") == Some(&Value::Bool(true)) {
                    vacant = last_word.map(|at| (at, false));
                }
            }
            "master.handing_over" => vacant = Some((at, true)),
            "master.promoted" => {
                let Some((since, handed)) = vacant.take() else {
                    continue;
                };
                let slot = match handed {
                    true => &mut measured.masterless_handed,
                    false => &mut measured.masterless_lost,
                };
                longest(slot, between(since, at));
            }
            "task.requeued" if text(record, "reason").contains("gone") => {
                if let Some(lost) = lost_at {
                    queued.insert(text(record, "task"), lost);
                }
            }
            "task.assigned" => {
                if let Some(lost) = queued.remove(text(record, "task")) {
                    longest(&mut measured.again, between(lost, at));
                }
            }
            _ => {}
        }
    }
    measured
}

fn longest(slot: &mut Option<Duration>, measured: Duration) {
    if measured < BELONGS {
        *slot = Some(slot.unwrap_or_default().max(measured));
    }
}

/// Clocks of several machines are compared here: what seems to be negative took no time.
fn between(from: SystemTime, to: SystemTime) -> Duration {
    to.duration_since(from).unwrap_or_default()
}

fn time(record: &Record) -> Option<SystemTime> {
    humantime::parse_rfc3339(text(record, "ts")).ok()
}

fn text<'a>(record: &'a Record, key: &str) -> &'a str {
    record.get(key).and_then(Value::as_str).unwrap_or("")
}

fn millis(record: &Record, key: &str) -> Duration {
    Duration::from_millis(record.get(key).and_then(Value::as_u64).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_longest_of_each_is_found_in_the_records() {
        let records = [
            json!({"ts": "2026-01-01T10:00:01.000000Z", "event": "peer.condemned", "reason": "its session broke and its machine refuses connections",
                "duration_ms": 40, "was_master": true}),
            json!({"ts": "2026-01-01T10:00:01.010000Z", "event": "master.promoted"}),
            json!({"ts": "2026-01-01T10:00:01.020000Z", "event": "task.requeued", "task": "t", "reason": "its worker is gone"}),
            json!({"ts": "2026-01-01T10:00:02.100000Z", "event": "task.assigned", "task": "t"}),
            json!({"ts": "2026-01-01T10:00:03.000000Z", "event": "master.handing_over"}),
            json!({"ts": "2026-01-01T10:00:03.007000Z", "event": "master.promoted"}),
            json!({"ts": "2026-01-01T10:00:09.000000Z", "event": "master.promoted"}),
            json!({"ts": "2026-01-01T10:00:20.000000Z", "event": "peer.condemned", "reason": "silent", "duration_ms": 1300}),
        ];
        let records: Vec<Record> = records
            .into_iter()
            .map(|r| serde_json::from_value(r).unwrap())
            .collect();
        let ms = |n| Some(Duration::from_millis(n));
        let expected = Measured {
            detection_gone: ms(40),
            detection_silent: ms(1300),
            masterless_lost: ms(50),
            masterless_handed: ms(7),
            again: ms(1140),
        };
        assert_eq!(measure(&records), expected);
    }
}
