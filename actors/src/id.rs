//! Newtypes for everything that is compared, ordered or fenced: who a node is, which life of it, which reign, which task and attempt.

use std::cell::RefCell;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// Identity of one node process: 128 random bits, new at every start. Shown as 32 hex digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct NodeId(pub u128);

impl NodeId {
    /// A fresh random identity.
    pub fn random(rng: &mut impl rand::Rng) -> Self {
        let mut bytes = [0u8; 16];
        rng.fill_bytes(&mut bytes);
        Self(u128::from_be_bytes(bytes))
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}", self.0 >> 96)
    }
}

/// A string that is not the textual form of an id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{value:?} is not {expected}")]
pub struct ParseIdError {
    /// What was given.
    pub value: String,
    /// What the textual form looks like.
    pub expected: &'static str,
}

impl FromStr for NodeId {
    type Err = ParseIdError;

    fn from_str(s: &str) -> Result<Self, ParseIdError> {
        // `from_str_radix` would take a sign, too.
        let digits = s.len() == 32 && s.bytes().all(|b| b.is_ascii_hexdigit());
        match u128::from_str_radix(s, 16) {
            Ok(bits) if digits => Ok(Self(bits)),
            _ => Err(ParseIdError {
                value: s.to_owned(),
                expected: "a node id (32 hex digits)",
            }),
        }
    }
}

/// Which life of a node: the registry's `create_revision` of its registration key. 0 while it is not registered.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug, Serialize, Deserialize,
)]
pub struct Incarnation(pub i64);

impl Incarnation {
    /// Not (yet) registered.
    pub const NONE: Self = Self(0);
}

impl fmt::Display for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// Which life of the registry itself: unix seconds at which its `generation` key was made. 0 is unknown.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug, Serialize, Deserialize,
)]
pub struct Generation(pub u64);

/// The fence: (generation, `mod_revision` of the master key), ordered in that order. Unique, and it only rises.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Epoch {
    /// Which life of the registry.
    pub generation: Generation,
    /// `mod_revision` of the master key.
    pub revision: i64,
}

impl Epoch {
    /// Below every epoch that was ever claimed.
    pub const NONE: Self = Self {
        generation: Generation(0),
        revision: 0,
    };
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.generation.0, self.revision)
    }
}

impl fmt::Debug for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Identity of a task and its idempotency key: a UUIDv7, so that ids sort by the time they were made.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct TaskId(pub uuid::Uuid);

impl TaskId {
    /// A UUIDv7 of the given unix time in milliseconds.
    pub fn new(unix_ms: u64, rng: &mut impl rand::Rng) -> Self {
        let mut bytes = [0u8; 10];
        rng.fill_bytes(&mut bytes);
        Self(uuid::Builder::from_unix_timestamp_millis(unix_ms, &bytes).into_uuid())
    }
}

impl fmt::Display for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl fmt::Debug for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for TaskId {
    type Err = ParseIdError;

    fn from_str(s: &str) -> Result<Self, ParseIdError> {
        uuid::Uuid::parse_str(s)
            .map(Self)
            .map_err(|_| ParseIdError {
                value: s.to_owned(),
                expected: "a task id (a UUID)",
            })
    }
}

/// Token of one try at a task: the epoch it was first handed out under, and its number (from 1). Ordered in that order;
/// only the newest may record. An adopted attempt keeps its token and reports under the new epoch.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug, Serialize, Deserialize,
)]
pub struct Attempt {
    /// The epoch under which it was handed out.
    pub epoch: Epoch,
    /// 1 for the first try.
    pub n: u32,
}

impl fmt::Display for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.epoch, self.n)
    }
}

/// One attempt of one task.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct AttemptId {
    /// The task.
    pub task: TaskId,
    /// Which try at it.
    pub attempt: Attempt,
}

/// Name of a job. Cheap to clone: a million tasks of one job share one text.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct JobName(Arc<str>);

/// Names that a thread remembers, so that equal ones are shared. A cluster has few jobs; whoever sends others makes new texts.
const SHARED_NAMES: usize = 64;

thread_local! {
    static NAMES: RefCell<Vec<Arc<str>>> = const { RefCell::new(Vec::new()) };
}

impl JobName {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<&str> for JobName {
    fn from(name: &str) -> Self {
        NAMES.with_borrow_mut(|names| {
            if let Some(known) = names.iter().find(|known| &***known == name) {
                return Self(Arc::clone(known));
            }
            if names.len() >= SHARED_NAMES {
                names.remove(0);
            }
            let new: Arc<str> = name.into();
            names.push(Arc::clone(&new));
            Self(new)
        })
    }
}

impl std::ops::Deref for JobName {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for JobName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for JobName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.0, f)
    }
}

impl Serialize for JobName {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for JobName {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Text;
        impl serde::de::Visitor<'_> for Text {
            type Value = JobName;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a job's name")
            }

            fn visit_str<E: serde::de::Error>(self, name: &str) -> Result<JobName, E> {
                Ok(JobName::from(name))
            }
        }
        d.deserialize_str(Text)
    }
}

macro_rules! hex_serde {
    ($t:ty) => {
        impl Serialize for $t {
            fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                if s.is_human_readable() {
                    s.collect_str(self)
                } else {
                    self.0.serialize(s)
                }
            }
        }
        impl<'de> Deserialize<'de> for $t {
            fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                if d.is_human_readable() {
                    let text = std::borrow::Cow::<'de, str>::deserialize(d)?;
                    text.parse().map_err(serde::de::Error::custom)
                } else {
                    u128::deserialize(d).map(Self)
                }
            }
        }
    };
}
hex_serde!(NodeId);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn epochs_are_ordered_by_generation_first() {
        let old = Epoch {
            generation: Generation(1),
            revision: 900,
        };
        let new = Epoch {
            generation: Generation(2),
            revision: 5,
        };
        assert!(Epoch::NONE < old && old < new);
    }

    #[test]
    fn a_node_id_survives_json_and_postcard() {
        let id = NodeId(0x0123_4567_89ab_cdef_0123_4567_89ab_cdef);
        let json = serde_json::to_string(&id).unwrap();
        assert_eq!(json, "\"0123456789abcdef0123456789abcdef\"");
        assert_eq!(serde_json::from_str::<NodeId>(&json).unwrap(), id);
        let bytes = postcard::to_stdvec(&id).unwrap();
        assert_eq!(postcard::from_bytes::<NodeId>(&bytes).unwrap(), id);
        for other in [
            "xyz",
            "+123456789abcdef0123456789abcdef",
            "+0123456789abcdef0123456789abcde",
        ] {
            assert!(other.parse::<NodeId>().is_err(), "{other}");
        }
    }
}
