//! The settings in use while the node runs: shown and changed through the API, read again on SIGHUP.
//!
//! `config/live` decides what changes; this tells the actors. A life of an actor that begins later is made from what is in use
//! then. A change that is refused changes nothing.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use actix::Addr;
use futures_util::future::BoxFuture;
use serde_json::Value as Json;
use tokio::time::{Duration, timeout};
use toml::Value;
use troupe_actors::admin::{ChangedView, SettingView, Settings};
use troupe_actors::discovery;
use troupe_actors::discovery::actor::DiscoveryActor;
use troupe_actors::master;
use troupe_actors::master::actor::MasterActor;
use troupe_actors::registry::actor::{Amend, RegistryActor};
use troupe_actors::transport::tls::Tls;

use crate::config::{self, Config, Merged, Told};
use crate::logging;
use crate::security;

/// How long whoever asked waits until the registry has a changed registration; it is told later when it is away.
const TOLD_WITHIN: Duration = Duration::from_secs(2);

/// Whom a change is told.
#[derive(Debug)]
pub struct Ports {
    /// What is registered.
    pub registry: Addr<RegistryActor>,
    /// Heartbeats, suspicion, election.
    pub discovery: Addr<DiscoveryActor>,
    /// Ledger, balancer, generator.
    pub master: Addr<MasterActor>,
}

/// The settings in use. Cheap to clone.
#[derive(Clone)]
pub struct Live(Arc<Inner>);

struct Inner {
    told: Told,
    name: Arc<Mutex<String>>,
    config: Mutex<Config>,
    tls: Option<Arc<Tls>>,
    ports: OnceLock<Ports>,
}

impl Live {
    /// `told` is what the command line said; it is part of every reload.
    pub fn new(
        config: Config,
        told: Told,
        name: Arc<Mutex<String>>,
        tls: Option<Arc<Tls>>,
    ) -> Self {
        Self(Arc::new(Inner {
            told,
            name,
            config: Mutex::new(config),
            tls,
            ports: OnceLock::new(),
        }))
    }

    /// From now on changes are told to these.
    pub fn connect(&self, ports: Ports) {
        self.0.ports.set(ports).ok();
    }

    /// What is in use.
    pub fn config(&self) -> Config {
        lock(&self.0.config).clone()
    }

    /// The generator makes nothing any more: the node is leaving.
    pub fn stop_making(&self) {
        let config = {
            let mut config = lock(&self.0.config);
            config.generator.enabled = false;
            config.clone()
        };
        if let Some(ports) = self.0.ports.get() {
            ports.master.do_send(reconfigure(&config));
        }
    }

    /// Reads every layer again, as at the start, and the files with secrets and certificates.
    pub async fn reload(self) -> Result<ChangedView, String> {
        let read = config::load(&self.0.told, std::env::vars());
        let merged = read.and_then(|new| self.config().merge(&new));
        let merged = merged.map_err(|why| why.to_string());
        // Which files they are cannot change; what is in them can.
        if let (Ok(merged), Some(tls)) = (&merged, &self.0.tls) {
            security::read_again(&merged.config, tls)?;
        }
        self.adopt(merged).await
    }

    async fn set(self, values: BTreeMap<String, Json>) -> Result<ChangedView, String> {
        let read = values
            .into_iter()
            .map(|(key, value)| match Value::try_from(&value) {
                Ok(toml) => Ok((key, toml)),
                Err(_) => Err(format!("`{key}` = {value}: is no value of a setting")),
            });
        let outcome = read
            .collect::<Result<BTreeMap<_, _>, String>>()
            .and_then(|values| self.config().with(&values).map_err(|why| why.to_string()));
        self.adopt(outcome).await
    }

    /// Uses what was merged, or says why nothing changes.
    async fn adopt(&self, outcome: Result<Merged, String>) -> Result<ChangedView, String> {
        let merged = match outcome {
            Ok(merged) => merged,
            Err(why) => {
                log::error!(target: "node", event = "config.rejected", reason = why.as_str(); "the configuration is wrong: nothing is changed");
                return Err(why);
            }
        };
        let before = std::mem::replace(&mut *lock(&self.0.config), merged.config.clone());
        self.tell(&before, &merged.config).await;
        let view = ChangedView {
            node: lock(&self.0.name).clone(),
            changed: merged.changed,
            needs_restart: merged.needs_restart,
        };
        log::info!(target: "node", event = "config.reloaded", changed = view.changed.join("; "), needs_restart = view.needs_restart.join("; "); "settings are in use; what needs a restart stays as it was");
        Ok(view)
    }

    async fn tell(&self, before: &Config, now: &Config) {
        logging::set_level(now.log_level);
        let Some(ports) = self.0.ports.get() else {
            return;
        };
        if before.discovery != now.discovery {
            let settings = now.discovery.clone();
            ports.discovery.do_send(discovery::Reconfigure(settings));
        }
        if before.master != now.master || before.generator != now.generator {
            ports.master.do_send(reconfigure(now));
        }
        let said = amended(now);
        let old = amended(before);
        if (said.weight, said.eligible, &said.tags) != (old.weight, old.eligible, &old.tags) {
            // A registry that is away is told when it is back.
            timeout(TOLD_WITHIN, ports.registry.send(said)).await.ok();
        }
    }
}

fn reconfigure(config: &Config) -> master::Reconfigure {
    master::Reconfigure {
        settings: config.master.clone(),
        generator: config.generator.clone(),
    }
}

fn amended(config: &Config) -> Amend {
    Amend {
        weight: config.discovery.weight,
        eligible: config.discovery.eligible,
        tags: config.node.tags.clone(),
    }
}

impl Settings for Live {
    fn show(&self) -> BTreeMap<String, SettingView> {
        let shown = self.config().shown().into_iter();
        let view = |(key, value, origin): (String, String, config::Origin)| {
            let value = redacted(&key, &value);
            let live = Config::is_live(&key);
            let origin = origin.to_string();
            (
                key,
                SettingView {
                    value,
                    origin,
                    live,
                },
            )
        };
        shown.map(view).collect()
    }

    fn set(
        &self,
        values: BTreeMap<String, Json>,
    ) -> BoxFuture<'static, Result<ChangedView, String>> {
        Box::pin(self.clone().set(values))
    }

    fn reload(&self) -> BoxFuture<'static, Result<ChangedView, String>> {
        Box::pin(self.clone().reload())
    }
}

/// A shown value as JSON, without what may be a secret: what a command finds in its environment, a password in an address.
fn redacted(key: &str, shown: &str) -> Json {
    let table = toml::from_str::<toml::Table>(&format!("v = {shown}"));
    let value = table.ok().and_then(|mut t| t.remove("v"));
    let json = value.and_then(|v| serde_json::to_value(v).ok());
    let hidden = key.starts_with("jobs.") && key.ends_with(".env");
    without_passwords(json.unwrap_or(Json::Null), hidden)
}

fn without_passwords(value: Json, hidden: bool) -> Json {
    match value {
        Json::String(text) if text.is_empty() => Json::Null,
        Json::String(_) if hidden => "(not shown)".into(),
        Json::String(text) => match (text.find("://"), text.rfind('@')) {
            (Some(scheme), Some(at)) if scheme < at => {
                format!("{}://(not shown){}", &text[..scheme], &text[at..]).into()
            }
            _ => text.into(),
        },
        Json::Array(items) => {
            let items = items.into_iter();
            items.map(|item| without_passwords(item, hidden)).collect()
        }
        Json::Object(fields) => {
            let fields = fields.into_iter();
            let fields = fields.map(|(key, value)| (key, without_passwords(value, hidden)));
            Json::Object(fields.collect())
        }
        other => other,
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_may_be_a_secret_is_not_shown() {
        for (key, shown, seen) in [
            (
                "jobs.x.env",
                "{ \"TOKEN\" = \"hunter2\" }",
                json!({ "TOKEN": "(not shown)" }),
            ),
            (
                "registry.endpoints",
                "[\"http://root:hunter2@10.0.0.1:2379\"]",
                json!(["http://(not shown)@10.0.0.1:2379"]),
            ),
            ("node.tags", "{ \"a\" = \"b\" }", json!({ "a": "b" })),
            ("node.name", "\"\"", Json::Null),
            ("discovery.weight", "-3", json!(-3)),
        ] {
            assert_eq!(redacted(key, shown), seen, "{key}");
        }
    }
}
