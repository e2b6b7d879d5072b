//! One thing that happened, where and when; parsed from JSON logs, written for people. Pure.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use crate::id::{Epoch, Generation};

/// Faults as they were planned, then the last records of a trace.
pub fn tell(
    text: &mut String,
    faults: &[(Duration, impl fmt::Debug)],
    trace: &[Record],
    last: usize,
) {
    use fmt::Write as _;
    for (at, fault) in faults {
        // Writing to a string does not fail.
        writeln!(text, "  +{:>7.3} {fault:?}", at.as_secs_f64()).ok();
    }
    for record in &trace[trace.len().saturating_sub(last)..] {
        writeln!(text, "{record}").ok();
    }
}

/// One thing that happened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Record {
    /// Since the run began.
    pub at: Duration,
    /// Where: a machine's name (`n1`), or who watches (`registry`, `world`).
    pub node: String,
    /// Which process on that machine, from 1.
    pub life: u32,
    /// Stable dotted name.
    pub event: String,
    /// Its values as text.
    pub fields: BTreeMap<String, String>,
}

impl Record {
    /// A record of what a test itself did or saw.
    pub fn new(at: Duration, node: &str, life: u32, event: &str) -> Self {
        Self {
            at,
            node: node.to_owned(),
            life,
            event: event.to_owned(),
            fields: BTreeMap::new(),
        }
    }

    /// With one more value.
    #[must_use]
    pub fn with(mut self, key: &str, value: impl fmt::Display) -> Self {
        self.fields.insert(key.to_owned(), value.to_string());
        self
    }

    /// The same values under another name.
    #[must_use]
    pub fn named(mut self, event: &str) -> Self {
        event.clone_into(&mut self.event);
        self
    }

    /// A value as text; empty when it is not there.
    pub fn get(&self, key: &str) -> &str {
        self.fields.get(key).map_or("", String::as_str)
    }

    /// A value as a number; 0 when it is none.
    pub fn number(&self, key: &str) -> i64 {
        self.get(key).parse().unwrap_or(0)
    }

    /// A value as an epoch.
    pub fn epoch(&self, key: &str) -> Option<Epoch> {
        epoch(self.get(key))
    }

    /// The attempt, `epoch/n`.
    pub fn attempt(&self) -> Option<(Epoch, u32)> {
        let (of, n) = self.get("attempt").split_once('/')?;
        Some((epoch(of)?, n.parse().ok()?))
    }

    /// From one line of a node's JSON log; `None` when it is not one. The time is its own, unix microseconds being read by
    /// the caller.
    pub fn from_json(line: &str, at: Duration, node: &str, life: u32) -> Option<Self> {
        let object: serde_json::Map<String, serde_json::Value> = serde_json::from_str(line).ok()?;
        let event = object.get("event")?.as_str()?;
        let mut record = Self::new(at, node, life, event);
        for (key, value) in &object {
            let text = match value {
                serde_json::Value::String(text) => text.clone(),
                other => other.to_string(),
            };
            record.fields.insert(key.clone(), text);
        }
        Some(record)
    }
}

impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = format!("{}/{}", self.node, self.life);
        let at = self.at.as_secs_f64();
        write!(f, "{at:>10.3} {place:<9} {:<22}", self.event)?;
        for (key, value) in &self.fields {
            if value.contains(' ') || value.is_empty() {
                write!(f, " {key}={value:?}")?;
            } else {
                write!(f, " {key}={value}")?;
            }
        }
        Ok(())
    }
}

/// `generation-revision`.
pub fn epoch(text: &str) -> Option<Epoch> {
    let (generation, revision) = text.split_once('-')?;
    Some(Epoch {
        generation: Generation(generation.parse().ok()?),
        revision: revision.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_a_json_log_becomes_a_record_with_its_epoch_and_attempt() {
        let line =
            r#"{"event":"task.finished","epoch":"17-42","attempt":"17-40/2","duration_ms":5}"#;
        let record = Record::from_json(line, Duration::ZERO, "n1", 1).unwrap();
        assert_eq!(record.event, "task.finished");
        assert_eq!(record.number("duration_ms"), 5);
        assert_eq!(record.epoch("epoch").map(|e| e.revision), Some(42));
        assert_eq!(
            record.attempt().map(|(e, n)| (e.revision, n)),
            Some((40, 2))
        );
        assert!(Record::from_json("no json", Duration::ZERO, "n1", 1).is_none());
    }
}
