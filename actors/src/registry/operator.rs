//! What an operator sees of the registry's keys, and may do to them.
//!
//! A change is conditional on the revision that the operator looked at, so that nobody overwrites what was not seen, and
//! stays below the cluster's prefix. It keeps the key's lease. What is binary (the journal) can be deleted, not written. Nodes take
//! a change of what they watch as any other: a registration that is deleted makes its owner register anew, a deleted master
//! key is a vacancy.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::session::{Keys, View, owner_of};
use super::{
    Backend, Compare, EditKey, EditRefused, KeyView, Kv, Op, RegistryError, Txn, WatchStream,
};

/// Keys under `prefix`, which is relative to the cluster's unless it starts with `/`, with what is left of their leases.
pub(super) async fn list(
    backend: &dyn Backend,
    keys: &Keys,
    prefix: &str,
    view: impl FnOnce() -> View,
) -> Result<Vec<KeyView>, RegistryError> {
    let listing = backend.list(&absolute(keys, prefix)).await?;
    let mut leases: BTreeMap<i64, Option<u64>> = BTreeMap::new();
    for kv in &listing.kvs {
        if kv.lease != 0 && !leases.contains_key(&kv.lease) {
            let left = backend.remaining(kv.lease).await.ok();
            leases.insert(kv.lease, left.map(|d| d.as_secs()));
        }
    }
    let view = view();
    let all = listing.kvs.iter();
    Ok(all
        .map(|kv| key_view(kv, &view, leases.get(&kv.lease).copied().flatten()))
        .collect())
}

/// Changes or deletes one key, if it is as the operator saw it; answers the revision of that change.
pub(super) async fn edit(
    backend: &dyn Backend,
    keys: &Keys,
    edit: EditKey,
) -> Result<i64, EditRefused> {
    let key = absolute(keys, &edit.key);
    if !key.starts_with(keys.prefix()) {
        let prefix = keys.prefix().to_owned();
        return Err(EditRefused::Foreign { key, prefix });
    }
    let read = Txn {
        then: vec![Op::Get(key.clone())],
        ..Txn::default()
    };
    let mut found = backend.txn(read).await?.reads;
    let seen = edit.seen;
    let now = match found.pop().and_then(|mut kvs| kvs.pop()) {
        Some(now) if now.mod_revision == seen => now,
        other => {
            let is = other.map_or(0, |kv| kv.mod_revision);
            return Err(EditRefused::Changed { key, seen, is });
        }
    };
    if edit.value.is_some() && (key.starts_with(&keys.journal()) || is_binary(&now.value)) {
        return Err(EditRefused::Binary { key });
    }
    let change = match edit.value {
        None => Op::Delete(key.clone()),
        Some(value) => Op::Put {
            key: key.clone(),
            value,
            lease: now.lease,
        },
    };
    let txn = Txn {
        when: vec![Compare::Modified(key.clone(), seen)],
        then: vec![change],
        otherwise: Vec::new(),
    };
    let outcome = backend.txn(txn).await.map_err(|why| match why {
        RegistryError::Unreachable { .. } => EditRefused::Unknown(why),
        refused => EditRefused::Registry(refused),
    })?;
    if outcome.succeeded {
        return Ok(outcome.stamp.revision);
    }
    let is = outcome.stamp.revision;
    Err(EditRefused::Changed { key, seen, is })
}

/// Changes under `prefix` from now on.
pub(super) async fn watch(
    backend: &dyn Backend,
    keys: &Keys,
    prefix: &str,
) -> Result<WatchStream, RegistryError> {
    let prefix = absolute(keys, prefix);
    let now = backend.list(&format!("{prefix}\0")).await?.stamp.revision;
    backend.watch(&prefix, now + 1).await
}

/// What cannot be written as an operator would.
fn is_binary(value: &Bytes) -> bool {
    std::str::from_utf8(value).is_err()
}

fn absolute(keys: &Keys, key: &str) -> String {
    match key.starts_with('/') {
        true => key.to_owned(),
        false => format!("{}{key}", keys.prefix()),
    }
}

fn key_view(kv: &Kv, view: &View, ttl_s: Option<u64>) -> KeyView {
    let text = String::from_utf8_lossy(&kv.value);
    let value = serde_json::from_slice(&kv.value)
        .unwrap_or_else(|_| serde_json::Value::String(text.into_owned()));
    let id = value.get("id").and_then(|id| id.as_str()?.parse().ok());
    let id = id.or_else(|| owner_of(kv));
    let member = view.members.iter().find(|m| Some(m.registration.id) == id);
    let stale = match (id, member) {
        (Some(_), None) => Some("its owner is not registered".to_owned()),
        _ => None,
    };
    KeyView {
        key: kv.key.clone(),
        value,
        create_revision: kv.create_revision,
        mod_revision: kv.mod_revision,
        lease: kv.lease,
        ttl_s,
        owner: member.map(|m| m.registration.name.clone()),
        stale,
        binary: is_binary(&kv.value),
    }
}

/// The bytes of a value as an operator writes it: a text as it is, all else as JSON.
pub fn value_bytes(value: &serde_json::Value) -> Bytes {
    match value {
        serde_json::Value::String(text) => Bytes::from(text.clone()),
        other => Bytes::from(other.to_string()),
    }
}
