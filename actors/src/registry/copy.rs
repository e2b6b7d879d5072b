//! Copies the durable tasks of a cluster from one registry to another, while none of its nodes runs on either.
//!
//! Segments keep their order under names of their own, below those of any master to come; one that is there already is left, so
//! that a copy which was interrupted can be done again.

use std::fmt;

use super::session::Keys;
use super::{Backend, Compare, Kv, Op, RegistryError, Txn};

/// Why nothing, or not all, was copied.
#[derive(Debug)]
pub enum CopyError {
    /// A registry does not answer; `from` or `to`.
    Registry(&'static str, RegistryError),
    /// Something is not as it must be, in words.
    Unfit(String),
}

impl fmt::Display for CopyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Registry(which, err) => write!(f, "the registry to copy {which}: {err}"),
            Self::Unfit(why) => f.write_str(why),
        }
    }
}

impl std::error::Error for CopyError {}

/// What was copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Copied {
    /// Segments of the journal that are there now.
    pub segments: usize,
    /// Their bytes.
    pub bytes: usize,
}

/// Copies the journal of a cluster.
///
/// # Errors
/// Nodes are registered in either registry, or the other one has a journal or an older generation of its own: nothing was copied. A registry
/// that ceases to answer: the rest is copied by doing it again.
pub async fn copy(keys: &Keys, from: &dyn Backend, to: &dyn Backend) -> Result<Copied, CopyError> {
    let (before, after) = (
        generation(keys, from, "from").await?,
        generation(keys, to, "to").await?,
    );
    if let (Some(before), Some(after)) = (before, after)
        && after <= before
    {
        return Err(CopyError::Unfit(format!(
            "the registry to copy to has generation {after}, not above {before}: epochs would fall; delete {} there, with all nodes stopped",
            keys.generation()
        )));
    }
    let segments = read(from, "from", &keys.journal()).await?;
    let there = read(to, "to", &keys.journal()).await?;
    let named: Vec<(String, Kv)> = (0..)
        .zip(segments)
        .map(|(n, segment): (u64, Kv)| {
            (
                format!("{}{:016x}-{:016x}/{n:016x}", keys.journal(), 0, 0),
                segment,
            )
        })
        .collect();
    let ours = |kv: &Kv| {
        named
            .iter()
            .any(|(key, from)| *key == kv.key && from.value == kv.value)
    };
    if let Some(other) = there.iter().find(|kv| !ours(kv)) {
        return Err(CopyError::Unfit(format!(
            "the registry to copy to has a journal of its own ({}): its tasks would be mixed with these",
            other.key
        )));
    }
    let mut copied = Copied {
        segments: 0,
        bytes: 0,
    };
    for (key, segment) in named {
        let bytes = segment.value.len();
        put(to, keys, key, segment).await?;
        copied.segments += 1;
        copied.bytes += bytes;
    }
    Ok(copied)
}

/// Puts a segment that is not there, unless somebody leads.
async fn put(to: &dyn Backend, keys: &Keys, key: String, segment: Kv) -> Result<(), CopyError> {
    let value = segment.value;
    let put = Op::Put {
        key: key.clone(),
        value,
        lease: 0,
    };
    let txn = Txn {
        when: vec![
            Compare::Created(key.clone(), 0),
            Compare::Created(keys.master(), 0),
        ],
        then: vec![put],
        otherwise: vec![Op::Get(key)],
    };
    let done = to
        .txn(txn)
        .await
        .map_err(|err| CopyError::Registry("to", err))?;
    let is_there = done.reads.first().is_some_and(|read| !read.is_empty());
    if done.succeeded || is_there {
        return Ok(());
    }
    Err(CopyError::Unfit(
        "a node leads on the registry to copy to: stop all nodes first".to_owned(),
    ))
}

async fn read(of: &dyn Backend, which: &'static str, prefix: &str) -> Result<Vec<Kv>, CopyError> {
    let listing = of.list(prefix).await;
    listing
        .map(|l| l.kvs)
        .map_err(|err| CopyError::Registry(which, err))
}

/// The generation there, once it is sure that no node is.
async fn generation(
    keys: &Keys,
    of: &dyn Backend,
    which: &'static str,
) -> Result<Option<u64>, CopyError> {
    if let Some(node) = read(of, which, &keys.services()).await?.first() {
        return Err(CopyError::Unfit(format!(
            "{} is registered in the registry to copy {which}: stop all nodes; one that was killed is gone when its lease ends",
            node.key
        )));
    }
    let found = read(of, which, &keys.generation()).await?;
    let text = found
        .first()
        .map(|kv| String::from_utf8_lossy(&kv.value).into_owned());
    Ok(text.and_then(|text| text.trim().parse().ok()))
}
