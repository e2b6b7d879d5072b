//! Key ranges in etcd's convention: a key and a `range_end`.
//!
//! | `range_end` | keys meant |
//! |---|---|
//! | empty | `key` alone |
//! | `"\0"` | all from `key` on |
//! | anything else | `key <= k < range_end`; none when it is not above `key` |

use std::ops::Bound;

use bytes::Bytes;

/// One key, or all keys between two.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct KeyRange {
    from: Bytes,
    until: Until,
}

/// Lower and upper, as `BTreeMap::range` takes them.
type Bounds<'a> = (Bound<&'a [u8]>, Bound<&'a [u8]>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Until {
    Itself,
    Below(Bytes),
    End,
}

impl KeyRange {
    /// Reads etcd's pair of fields.
    pub(crate) fn new(key: Bytes, range_end: Bytes) -> Self {
        let until = match range_end.as_ref() {
            [] => Until::Itself,
            [0] => Until::End,
            _ => Until::Below(range_end),
        };
        Self { from: key, until }
    }

    /// The first key, also where an empty one is refused.
    pub(crate) fn from(&self) -> &Bytes {
        &self.from
    }

    /// Whether no key can be in it.
    pub(crate) fn is_empty(&self) -> bool {
        matches!(&self.until, Until::Below(end) if *end <= self.from)
    }

    /// Whether `key` is meant.
    pub(crate) fn contains(&self, key: &[u8]) -> bool {
        match &self.until {
            Until::Itself => self.from == key,
            Until::Below(end) => *self.from <= *key && *key < **end,
            Until::End => *self.from <= *key,
        }
    }

    /// For `BTreeMap::range`, which panics on bounds that cross: `None` for an empty range.
    pub(crate) fn bounds(&self) -> Option<Bounds<'_>> {
        if self.is_empty() {
            return None;
        }
        let upper = match &self.until {
            Until::Itself => Bound::Included(self.from.as_ref()),
            Until::Below(end) => Bound::Excluded(end.as_ref()),
            Until::End => Bound::Unbounded,
        };
        Some((Bound::Included(self.from.as_ref()), upper))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(key: &'static str, end: &'static str) -> KeyRange {
        KeyRange::new(Bytes::from(key), Bytes::from(end))
    }

    #[test]
    fn the_table_of_range_ends_holds() {
        for (key, end, inside, outside) in [
            ("b", "", vec!["b"], vec!["a", "ba", "c"]),
            ("b", "c", vec!["b", "ba", "bz"], vec!["a", "c"]),
            ("b", "\0", vec!["b", "c", "zz"], vec!["a"]),
            ("\0", "\0", vec!["\0", "a", "zz"], vec![]),
            ("b", "a", vec![], vec!["a", "b"]),
        ] {
            let range = range(key, end);
            assert!(
                inside.iter().all(|k| range.contains(k.as_bytes())),
                "{key:?} {end:?}"
            );
            assert!(
                !outside.iter().any(|k| range.contains(k.as_bytes())),
                "{key:?} {end:?}"
            );
        }
    }

    #[test]
    fn a_range_that_ends_before_it_begins_has_no_bounds() {
        assert_eq!(range("b", "b").bounds(), None);
        assert_eq!(range("b", "a").bounds(), None);
        assert!(range("b", "c").bounds().is_some());
    }
}
