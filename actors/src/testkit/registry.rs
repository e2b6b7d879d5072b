//! What the registry's own history must obey: revisions rise, only the living lead, the fenced write nothing. Pure.
//!
//! It reads `sim.put` (key, value, created, modified) and `sim.delete` (key, revision), in the order of the registry's
//! revisions, and `sim.replaced` when an empty registry took the place of the one before.

use std::collections::BTreeMap;
use std::time::Duration;

use super::trace::Record;
use crate::cluster::{MasterRecord, Registration};
use crate::id::{Epoch, Generation, NodeId};

/// A registry that lived for less than this may share its generation with the next.
const BRIEF: Duration = Duration::from_secs(2);

/// A key as last seen.
#[derive(Clone, Debug)]
pub struct Key {
    /// Its value.
    pub value: String,
    /// Revision at which its life began.
    pub created: i64,
    /// Revision of its last change.
    pub modified: i64,
}

/// The registry as told so far.
#[derive(Debug, Default)]
pub struct History {
    keys: BTreeMap<String, Key>,
    revision: i64,
    generation: Generation,
    generated: Duration,
    /// An empty registry took the place of the one before, and nobody has made a generation since.
    fresh: bool,
    /// Who made each epoch.
    owners: BTreeMap<Epoch, NodeId>,
}

impl History {
    /// Takes one record; answers what is wrong with it.
    pub fn observe(&mut self, record: &Record) -> Option<String> {
        match record.event.as_str() {
            "sim.replaced" => {
                self.keys.clear();
                self.fresh = true;
                None
            }
            "sim.put" => self.put(record),
            "sim.delete" => self.delete(record),
            _ => None,
        }
    }

    fn rises(&mut self, revision: i64) -> Option<String> {
        if revision < self.revision {
            let known = self.revision;
            return Some(format!(
                "the registry fell from revision {known} to {revision}"
            ));
        }
        self.revision = revision;
        None
    }

    fn put(&mut self, record: &Record) -> Option<String> {
        let (name, value) = (record.get("key"), record.get("value"));
        let key = Key {
            value: value.to_owned(),
            created: record.number("created"),
            modified: record.number("modified"),
        };
        let modified = key.modified;
        if let Some(wrong) = self.rises(modified) {
            return Some(wrong);
        }
        let old = self.keys.insert(name.to_owned(), key);
        if name.ends_with("/generation") {
            let generation = Generation(value.parse().unwrap_or(0));
            // Seconds tell registries apart that lived for longer; two within a second are told apart by their revisions.
            let brief = record.at.saturating_sub(self.generated) < BRIEF;
            // The first in an empty one may be made by somebody who knew nothing, or whose wall clock is behind: those who know
            // better make another.
            let risen = generation > self.generation || (generation == self.generation && brief);
            let fresh = std::mem::take(&mut self.fresh);
            if !(risen || fresh) {
                return Some(format!("generation {value} does not rise"));
            }
            self.generation = generation;
            self.generated = record.at;
        }
        // What was listed after a gap may owe its place to what is gone.
        if record.get("listed") == "true" {
            return None;
        }
        if name.ends_with("/master") {
            return self.mastership(value, modified);
        }
        if let (Some(old), true) = (old, name.contains("/services/")) {
            return Some(format!(
                "{name} was overwritten: {} took over incarnation {}",
                value, old.created
            ));
        }
        self.fenced(name)
    }

    /// A put of the master key: by a registered life.
    fn mastership(&mut self, value: &str, modified: i64) -> Option<String> {
        let Ok(record) = serde_json::from_str::<MasterRecord>(value) else {
            return Some(format!("the master key holds {value:?}"));
        };
        let epoch = Epoch {
            generation: self.generation,
            revision: modified,
        };
        self.owners.insert(epoch, record.id);
        let seated = self
            .registered()
            .any(|(r, incarnation)| r.id == record.id && incarnation == record.incarnation.0);
        (!seated).then(|| {
            format!(
                "{} took mastership while not registered as incarnation {}",
                record.id, record.incarnation
            )
        })
    }

    /// A durable write names the epoch it was made under: it must be the one that holds the key.
    fn fenced(&self, name: &str) -> Option<String> {
        let (_, rest) = name.split_once("/journal/")?;
        let under = super::trace::epoch(rest.split('/').next()?)?;
        let holds = self.epoch();
        (under != holds)
            .then(|| format!("{name} was written while the key was under epoch {holds}"))
    }

    fn delete(&mut self, record: &Record) -> Option<String> {
        self.keys.remove(record.get("key"));
        self.rises(record.number("revision"))
    }

    /// Registered nodes with their incarnations.
    pub fn registered(&self) -> impl Iterator<Item = (Registration, i64)> + '_ {
        self.keys
            .iter()
            .filter(|(name, _)| name.contains("/services/"))
            .filter_map(|(_, key)| {
                let registration = serde_json::from_str(&key.value).ok()?;
                Some((registration, key.created))
            })
    }

    /// The lease-independent truth about mastership: the epoch of the key as it stands; NONE when absent.
    pub fn epoch(&self) -> Epoch {
        let key = self.keys.iter().find(|(name, _)| name.ends_with("/master"));
        key.map_or(Epoch::NONE, |(_, key)| Epoch {
            generation: self.generation,
            revision: key.modified,
        })
    }

    /// Who made this epoch, when that was seen.
    pub fn owner(&self, epoch: Epoch) -> Option<NodeId> {
        self.owners.get(&epoch).copied()
    }

    /// Keys with their values, for words to people.
    pub fn keys(&self) -> impl Iterator<Item = (&String, &Key)> {
        self.keys.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::Incarnation;

    fn put(key: &str, value: &str, created: i64, modified: i64) -> Record {
        let record = Record::new(Duration::from_secs(100), "witness", 1, "sim.put");
        let record = record.with("key", key).with("value", value);
        record.with("created", created).with("modified", modified)
    }

    fn deleted(key: &str, revision: i64) -> Record {
        let record = Record::new(Duration::from_secs(100), "witness", 1, "sim.delete");
        record.with("key", key).with("revision", revision)
    }

    fn registered(n: u128, at: i64) -> Record {
        let registration = Registration {
            id: NodeId(n),
            name: format!("n{n}"),
            ip: "n".to_owned(),
            port: 1,
            admin: String::new(),
            host: String::new(),
            boot: String::new(),
            pid: 1,
            version: String::new(),
            protocol: 1,
            weight: 0,
            eligible: true,
            insecure: false,
            roles: Vec::new(),
            jobs: Vec::new(),
            capacity: 1,
            tags: BTreeMap::new(),
            started_at: 0,
        };
        let value = serde_json::to_string(&registration).unwrap();
        put(&format!("/c/services/n{n}"), &value, at, at)
    }

    fn leads(n: u128, incarnation: i64, at: i64) -> Record {
        let master = MasterRecord {
            id: NodeId(n),
            incarnation: Incarnation(incarnation),
            address: String::new(),
        };
        let value = serde_json::to_string(&master).unwrap();
        put("/c/master", &value, at, at)
    }

    /// What is said of the last of these, when nothing is wrong with those before.
    fn wrong(records: &[Record]) -> Option<String> {
        let mut history = History::default();
        let (last, before) = records.split_last().unwrap();
        for record in before {
            assert_eq!(history.observe(record), None, "{record}");
        }
        history.observe(last)
    }

    #[test]
    fn revisions_and_generations_rise() {
        let generation = |value: &str, at| put("/c/generation", value, 1, at);
        assert_eq!(wrong(&[generation("7", 1), generation("8", 2)]), None);
        assert!(wrong(&[generation("7", 2), deleted("/c/x", 1)]).is_some());
        let mut again = generation("7", 2);
        again.at += BRIEF;
        assert!(wrong(&[generation("7", 1), again]).is_some());
        assert!(wrong(&[generation("7", 1), generation("6", 2)]).is_some());
    }

    #[test]
    fn only_a_registered_life_leads() {
        assert_eq!(wrong(&[registered(1, 5), leads(1, 5, 6)]), None);
        assert!(wrong(&[leads(1, 5, 6)]).is_some());
        assert!(wrong(&[registered(1, 5), leads(1, 4, 6)]).is_some());
        assert!(
            wrong(&[
                registered(1, 5),
                deleted("/c/services/n1", 6),
                leads(1, 5, 7)
            ])
            .is_some()
        );
    }

    #[test]
    fn a_registration_is_deleted_and_never_overwritten() {
        let gone = deleted("/c/services/n1", 6);
        assert_eq!(wrong(&[registered(1, 5), gone, registered(1, 7)]), None);
        assert!(wrong(&[registered(1, 5), registered(1, 7)]).is_some());
    }

    #[test]
    fn the_journal_is_written_under_the_epoch_that_holds_the_key() {
        let generation = put("/c/generation", "7", 1, 1);
        let reign = [generation, registered(1, 5), leads(1, 5, 6)];
        let written = |key: &str| wrong(&[&reign[..], &[put(key, "", 8, 8)]].concat());
        assert_eq!(written("/c/journal/7-6/0"), None);
        assert!(written("/c/journal/7-5/0").is_some());
        assert!(written("/c/journal/6-6/0").is_some());
    }
}
