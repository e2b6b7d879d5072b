//! What of the configuration can change while a node runs. Pure: two configurations in, one out, with what differs in words.

use std::collections::BTreeMap;

use toml::Value;

use super::{Config, ConfigError, KEYS, Origin, check, set};

/// Keys that take effect at once. Everything else is part of what a node is built from: addresses, the registry, sessions,
/// capacity, jobs.
const LIVE: &[&str] = &[
    "node.tags",
    "node.drain",
    "discovery.heartbeat",
    "discovery.suspect_floor",
    "discovery.suspect_ceiling",
    "discovery.probe_timeout",
    "discovery.challenge_window",
    "discovery.stagger",
    "discovery.abstain",
    "discovery.master_turn_limit",
    "discovery.weight",
    "discovery.eligible",
    "registry.compact",
    "generator.enabled",
    "generator.every",
    "generator.min",
    "generator.max",
    "master.balancer",
    "master.master_works",
    "master.max_attempts",
    "master.retry_wait",
    "master.task_timeout",
    "master.max_queued",
    "master.max_queued_bytes",
    "master.keep_finished",
    "master.keep_finished_bytes",
    "master.keep_finished_for",
    "master.max_kills",
    "master.commit_timeout",
    "master.recovery_wait",
    "log.level",
];

/// A configuration that is to be used from now on.
#[derive(Clone, Debug)]
pub struct Merged {
    /// What is in use then.
    pub config: Config,
    /// Live settings that differ, `key = value`.
    pub changed: Vec<String>,
    /// Others that differ: they stay as they were, `key = value`.
    pub needs_restart: Vec<String>,
}

impl Config {
    /// Whether a key can be changed while the node runs.
    pub fn is_live(key: &str) -> bool {
        LIVE.contains(&key)
    }

    /// Takes from a configuration that was read again what can change while the node runs.
    ///
    /// # Errors
    /// What of it contradicts something that cannot change now.
    pub fn merge(&self, new: &Self) -> Result<Merged, ConfigError> {
        let mut config = self.clone();
        let before: BTreeMap<_, _> = self.shown().into_iter().map(|(k, v, _)| (k, v)).collect();
        let after: BTreeMap<_, _> = new.shown().into_iter().map(|(k, v, _)| (k, v)).collect();
        let (mut changed, mut needs_restart) = (Vec::new(), Vec::new());
        for key in before
            .keys()
            .chain(after.keys().filter(|k| !before.contains_key(*k)))
        {
            let (old, wanted) = (before.get(key), after.get(key));
            let words = match wanted {
                // What a command sees of its surroundings may be a secret; an address may have a password in it.
                _ if key.starts_with("jobs.") || key == "registry.endpoints" => key.clone(),
                Some(value) => format!("{key} = {value}"),
                None => format!("{key} is not set"),
            };
            match Self::is_live(key) {
                // Where it comes from may be another place, even when it is the same.
                true => {
                    copy(&mut config, new, key)?;
                    changed.extend((old != wanted).then_some(words));
                }
                false => needs_restart.extend((old != wanted).then_some(words)),
            }
        }
        check(&config)?;
        Ok(Merged {
            config,
            changed,
            needs_restart,
        })
    }

    /// This configuration with other values for some keys.
    ///
    /// # Errors
    /// Which key is unknown, cannot be changed while the node runs, or does not take its value.
    pub fn with(&self, values: &BTreeMap<String, Value>) -> Result<Merged, ConfigError> {
        let mut new = self.clone();
        for (key, value) in values {
            set(&mut new, key, value, Origin::Operator)?;
            if !Self::is_live(key) {
                return Err(ConfigError::Bad {
                    origin: Origin::Operator,
                    key: key.clone(),
                    value: value.to_string(),
                    rule: "set where the node is started: it cannot change while it runs"
                        .to_owned(),
                });
            }
        }
        self.merge(&new)
    }
}

fn copy(to: &mut Config, from: &Config, name: &str) -> Result<(), ConfigError> {
    let Some(key) = KEYS.iter().find(|k| k.name == name) else {
        return Ok(());
    };
    // What is shown can be read again; a test holds that.
    let shown = toml::from_str::<toml::Table>(&format!("v = {}", (key.get)(from)));
    let value = shown.ok().and_then(|mut table| table.remove("v"));
    let value = value.unwrap_or_else(|| Value::String(String::new()));
    set(to, name, &value, from.origin(name))?;
    if from.origin(name) == Origin::Default {
        to.origins.remove(name);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(pairs: &[(&str, Value)]) -> BTreeMap<String, Value> {
        pairs
            .iter()
            .map(|(k, v)| ((*k).to_owned(), v.clone()))
            .collect()
    }

    #[test]
    fn every_live_key_is_a_key_and_can_be_copied() {
        let config = Config::defaults();
        for key in LIVE {
            assert!(KEYS.iter().any(|k| k.name == *key), "{key}");
            copy(&mut config.clone(), &config, key).unwrap();
        }
    }

    #[test]
    fn what_is_shown_can_be_read_again() {
        let shown = Config::defaults().shown();
        for (name, value, _) in shown {
            if value == "\"\"" {
                continue;
            }
            let value: toml::Table = toml::from_str(&format!("v = {value}")).unwrap();
            let mut config = Config::defaults();
            set(&mut config, &name, &value["v"], Origin::Default).unwrap();
        }
    }

    #[test]
    fn live_keys_change_others_are_named() {
        let old = Config::defaults();
        let mut new = Config::defaults();
        new.discovery.weight = 7;
        new.transport.bulk_queue = 99;
        new.registry.endpoints = vec!["http://root:hunter2@10.0.0.1:2379".to_owned()];
        new.node.tags = BTreeMap::from([("disk".to_owned(), "ssd".to_owned())]);
        let merged = old.merge(&new).unwrap();
        assert_eq!(merged.config.discovery.weight, 7);
        assert_eq!(merged.config.node.tags, new.node.tags);
        assert_eq!(merged.config.transport.bulk_queue, old.transport.bulk_queue);
        assert_eq!(merged.changed.len(), 2, "{:?}", merged.changed);
        assert_eq!(
            merged.needs_restart,
            ["registry.endpoints", "transport.bulk_queue = 99"]
        );
    }

    #[test]
    fn what_does_not_fit_changes_nothing_and_says_why() {
        let config = Config::defaults();
        for (key, value, words) in [
            (
                "discovery.weight",
                Value::Integer(9999),
                "from -1000 to 1000",
            ),
            ("discovery.wieght", Value::Integer(1), "did you mean"),
            ("node.bind", Value::from("0.0.0.0:1"), "while it runs"),
            (
                "discovery.heartbeat",
                Value::from("5s"),
                "3 × discovery.heartbeat",
            ),
        ] {
            let refused = config.with(&values(&[(key, value)])).unwrap_err();
            assert!(refused.to_string().contains(words), "{refused}");
        }
    }

    #[test]
    fn what_an_operator_set_is_forgotten_at_the_next_reload() {
        let config = Config::defaults();
        let weight = values(&[("discovery.weight", Value::Integer(5))]);
        let set = config.with(&weight).unwrap();
        assert_eq!(set.changed, ["discovery.weight = 5"]);
        assert_eq!(set.config.origin("discovery.weight"), Origin::Operator);
        let again = set.config.merge(&config).unwrap();
        assert_eq!(again.config.discovery.weight, 0);
        assert_eq!(again.config.origin("discovery.weight"), Origin::Default);
        assert_eq!(again.changed, ["discovery.weight = 0"]);
    }
}
