//! Looking at the registry's keys through a node.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::FutureExt;
use serde_json::json;
use tokio::time::sleep;
use toml::Value;
use troupe_actors::admin::RegistryView;
use troupe_actors::registry::copy;
use troupe_actors::registry::etcd::EtcdBackend;
use troupe_actors::registry::session::Keys;
use troupe_actors::registry::{KeyView, Timeouts};

use super::api::{Api, Failure, Json, query};
use super::say::{Screen, complain};
use super::{read, show};
use crate::cli::pair;
use crate::config::{self, Told};
use crate::security;

/// Settings of `[registry]` by which a registry lets somebody in.
const ACCESS: [&str; 5] = ["ca_file", "cert_file", "key_file", "user", "password_file"];
/// Pause after each look: durable tasks change keys all the time, and a look reads all of them.
const BETWEEN_LOOKS: Duration = Duration::from_millis(500);
/// Pause before a watch that ended is opened again.
const OPEN_AGAIN: Duration = Duration::from_secs(1);

async fn keys(api: &Api, prefix: &str) -> Result<Json, Failure> {
    api.get(&query("/v1/registry", &[("prefix", Some(prefix))]))
        .await
}

/// `troupe registry ls`.
pub(super) async fn list(api: &Api, screen: &Screen, prefix: &str) -> Result<(), Failure> {
    let answer = keys(api, prefix).await?;
    screen.answer(answer, |view: &RegistryView| show::keys(&view.keys))
}

/// `troupe registry get`: exit 3 when there is nothing.
pub(super) async fn get(api: &Api, screen: &Screen, prefix: &str) -> Result<(), Failure> {
    let view: RegistryView = read(keys(api, prefix).await?)?;
    if view.keys.is_empty() {
        return Err(no_such_key(prefix));
    }
    screen.value(&view.keys, || show::values(&view.keys))
}

/// `troupe registry watch`: a line per change, as it comes. When the stream ends, it is opened again and what was missed is shown.
pub(super) async fn watch(api: &Api, screen: &Screen, prefix: &str) -> Result<(), Failure> {
    let mut known: Option<BTreeMap<String, KeyView>> = None;
    loop {
        let path = query("/v1/registry/watch", &[("prefix", Some(prefix))]);
        let mut stream = api.lines(&path).await?;
        // The first line says that the watch stands: whatever changes from now on is told.
        while stream.next().await.is_some() {
            // One look shows all that was told by now.
            while let Some(Some(_)) = stream.next().now_or_never() {}
            let view: RegistryView = read(keys(api, prefix).await?)?;
            let now: BTreeMap<_, _> = view.keys.into_iter().map(|k| (k.key.clone(), k)).collect();
            if let Some(before) = &known {
                for change in changes(before, &now) {
                    tell(screen, &change)?;
                }
            }
            known = Some(now);
            sleep(BETWEEN_LOOKS).await;
        }
        sleep(OPEN_AGAIN).await;
    }
}

/// `troupe registry put` and `rm`: looks at the key, then changes it if it still is as it was seen.
pub(super) async fn edit(
    api: &Api,
    screen: &Screen,
    key: &str,
    value: Option<&str>,
) -> Result<(), Failure> {
    let view: RegistryView = read(keys(api, key).await?)?;
    // Relative to `/<cluster>/`, whatever that is called.
    let full = |k: &&KeyView| {
        let before = k.key.strip_suffix(key);
        before.is_some_and(|b| b.is_empty() || b.ends_with('/') && b.matches('/').count() == 2)
    };
    let Some(seen) = view.keys.iter().find(full) else {
        return Err(no_such_key(key));
    };
    let seen_at = seen.mod_revision.to_string();
    let path = query(
        "/v1/registry",
        &[("key", Some(&seen.key)), ("seen", Some(&seen_at))],
    );
    let answer = match value {
        Some(value) => api.put(&path, json_or_text(value)).await?,
        None => api.delete(&path).await?,
    };
    screen.answer(answer, |edited: &serde_json::Value| {
        format!("{} at revision {}", seen.key, edited["revision"])
    })
}

/// What is no JSON is a text.
fn json_or_text(value: &str) -> String {
    match serde_json::from_str::<serde_json::Value>(value) {
        Ok(_) => value.to_owned(),
        Err(_) => serde_json::Value::from(value).to_string(),
    }
}

fn no_such_key(prefix: &str) -> Failure {
    Failure::Refused {
        status: 404,
        code: "no_such_key".to_owned(),
        message: format!("there is no key under {prefix:?}"),
        id: None,
        retry_after: None,
    }
}

/// A registry that is named on the command line.
pub(super) struct Place(EtcdBackend);

impl Place {
    /// At this URL, which lets us in by these settings of `[registry]`.
    pub(super) fn new(flag: &str, url: &str, access: &[String]) -> Result<Self, Failure> {
        let wrong = |why: String| Failure::Usage(format!("{flag} {url:?}: {why}"));
        let mut told = Told {
            file: Some("/dev/null".into()),
            ..Told::default()
        };
        let endpoints = (
            "registry.endpoints".to_owned(),
            Value::String(url.to_owned()),
        );
        told.values
            .push((endpoints.0, endpoints.1, flag.to_owned()));
        for set in access {
            let (key, value) = pair(set).map_err(wrong)?;
            if !ACCESS.contains(&key.as_str()) {
                return Err(wrong(format!("{key:?} is none of {}", ACCESS.join(", "))));
            }
            let (key, value) = (format!("registry.{key}"), Value::String(value));
            told.values.push((key, value, format!("{flag}-access")));
        }
        let config = config::load(&told, std::iter::empty());
        let config = config.map_err(|why| wrong(why.to_string()))?;
        let access = security::registry_access(&config).map_err(wrong)?;
        let endpoints = config.registry.endpoints;
        let backend = EtcdBackend::with_access(endpoints, Timeouts::default(), access);
        backend.map(Self).map_err(|why| wrong(why.to_string()))
    }
}

/// `troupe registry copy`.
pub(super) async fn copy(
    screen: &Screen,
    from: &Place,
    to: &Place,
    cluster: &str,
) -> Result<(), Failure> {
    let copied = copy::copy(&Keys::new(cluster), &from.0, &to.0).await;
    let copied = copied.map_err(|why| {
        complain(&why.to_string());
        Failure::Failed
    })?;
    let value = json!({ "segments": copied.segments, "bytes": copied.bytes });
    screen.value(&value, || {
        format!(
            "{} segments, {} bytes: the durable tasks of {cluster} are there; name the new registry to all nodes",
            copied.segments, copied.bytes
        )
    })
}

#[derive(Debug, PartialEq)]
enum Change<'a> {
    Put(&'a KeyView),
    Deleted(&'a str),
}

fn changes<'a>(
    before: &'a BTreeMap<String, KeyView>,
    now: &'a BTreeMap<String, KeyView>,
) -> Vec<Change<'a>> {
    let revision = |key: &KeyView| before.get(&key.key).map(|k| k.mod_revision);
    let put = now
        .values()
        .filter(|key| revision(key) != Some(key.mod_revision));
    let mut put: Vec<_> = put.collect();
    put.sort_by_key(|key| key.mod_revision);
    let gone = before.keys().filter(|key| !now.contains_key(*key));
    let gone = gone.map(|key| Change::Deleted(key));
    gone.chain(put.into_iter().map(Change::Put)).collect()
}

fn tell(screen: &Screen, change: &Change<'_>) -> Result<(), Failure> {
    match change {
        Change::Put(key) => {
            let value = json!({ "type": "put", "key": key });
            screen.value(&value, || {
                format!("put {} {} rev {}", key.key, key.value, key.mod_revision)
            })
        }
        Change::Deleted(key) => {
            let value = json!({ "type": "delete", "key": { "key": key } });
            screen.value(&value, || format!("delete {key}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(keys: &[(&str, i64)]) -> BTreeMap<String, KeyView> {
        let key = |(key, revision): &(&str, i64)| KeyView {
            key: (*key).to_owned(),
            value: json!(1),
            create_revision: 1,
            mod_revision: *revision,
            lease: 0,
            ttl_s: None,
            owner: None,
            stale: None,
            binary: false,
        };
        let keys = keys.iter().map(key);
        keys.map(|k| (k.key.clone(), k)).collect()
    }

    #[test]
    fn a_watch_tells_what_went_and_then_what_came_by_revision() {
        let before = view(&[("a", 1), ("b", 2), ("c", 3)]);
        let now = view(&[("b", 2), ("c", 9), ("d", 8)]);
        let told = changes(&before, &now);
        let expected = [
            Change::Deleted("a"),
            Change::Put(&now["d"]),
            Change::Put(&now["c"]),
        ];
        assert_eq!(told, expected);
    }
}
