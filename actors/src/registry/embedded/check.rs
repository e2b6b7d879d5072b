//! What can be told of a request by looking at it alone: keys, limits, double writes. Pure.

use std::collections::BTreeSet;

use bytes::Bytes;

use super::error::Refusal;
use super::range::KeyRange;
use super::txn::{Op, Put, Range, Txn};

/// etcd's bound on operations in one transaction.
pub(crate) const MAX_OPS: usize = 128;

/// Bound on all operations of a tree of transactions. etcd has none; the search for double writes is quadratic, so a
/// request of a megabyte of nested deletes and puts could hold the store for seconds.
pub(crate) const MAX_NESTED_OPS: usize = 16 * MAX_OPS;

/// Refuses a transaction that etcd would refuse unseen.
pub(super) fn txn(txn: &Txn) -> Result<(), Refusal> {
    check_level(txn, MAX_OPS)?;
    if count_ops(txn) > MAX_NESTED_OPS {
        return Err(Refusal::TooManyOps);
    }
    check_double_writes(&txn.success)?;
    check_double_writes(&txn.failure)?;
    Ok(())
}

/// Refuses a read without a key.
pub(super) fn range(range: &Range) -> Result<(), Refusal> {
    check_key(range.keys.from())
}

fn check_key(key: &Bytes) -> Result<(), Refusal> {
    if key.is_empty() {
        return Err(Refusal::EmptyKey);
    }
    Ok(())
}

fn check_put_request(put: &Put) -> Result<(), Refusal> {
    check_key(&put.key)?;
    if put.ignore_value && !put.value.is_empty() {
        return Err(Refusal::ValueProvided);
    }
    if put.ignore_lease && put.lease != 0 {
        return Err(Refusal::LeaseProvided);
    }
    Ok(())
}

/// `budget` operations are left at this depth; a nested transaction has what its parent leaves over, so depth is bounded too.
fn check_level(txn: &Txn, budget: usize) -> Result<(), Refusal> {
    let ops = [&txn.success, &txn.failure];
    let most = ops.iter().map(|ops| ops.len()).max().unwrap_or(0);
    let used = most.max(txn.compare.len());
    let left = budget.checked_sub(used).ok_or(Refusal::TooManyOps)?;
    for compare in &txn.compare {
        check_key(compare.keys.from())?;
    }
    for op in ops.into_iter().flatten() {
        match op {
            Op::Range(read) => range(read)?,
            Op::Put(put) => check_put_request(put)?,
            Op::Delete(delete) => check_key(delete.keys.from())?,
            Op::Txn(txn) => check_level(txn, left)?,
        }
    }
    Ok(())
}

fn count_ops(txn: &Txn) -> usize {
    let ops = txn.success.iter().chain(&txn.failure);
    ops.map(|op| match op {
        Op::Txn(txn) => 1 + count_ops(txn),
        _ => 1,
    })
    .sum()
}

#[derive(Default)]
struct Writes<'a> {
    puts: BTreeSet<&'a [u8]>,
    deletes: Vec<&'a KeyRange>,
}

impl Writes<'_> {
    fn deletes(&self, key: &[u8]) -> bool {
        self.deletes.iter().any(|range| range.contains(key))
    }
}

/// Refuses a list of operations that would put one key twice, or put and delete it, however deep they are nested. The two
/// branches of a nested transaction exclude each other. Stricter than etcd in one corner: a delete in a later nested
/// transaction of what an earlier one puts, which etcd overlooks, is refused too, because here a key has one record
/// per revision.
fn check_double_writes(ops: &[Op]) -> Result<Writes<'_>, Refusal> {
    let mut all = Writes::default();
    for op in ops {
        if let Op::Delete(delete) = op {
            all.deletes.push(&delete.keys);
        }
    }
    for op in ops {
        if let Op::Txn(txn) = op {
            let then = check_double_writes(&txn.success)?;
            let otherwise = check_double_writes(&txn.failure)?;
            add_branch(&mut all, then, otherwise)?;
        }
    }
    for op in ops {
        if let Op::Put(put) = op {
            add_put(&mut all, &put.key)?;
        }
    }
    Ok(all)
}

fn add_branch<'a>(all: &mut Writes<'a>, a: Writes<'a>, b: Writes<'a>) -> Result<(), Refusal> {
    let deletes: Vec<&KeyRange> = a.deletes.into_iter().chain(b.deletes).collect();
    let overlooked = |range: &&KeyRange| all.puts.iter().any(|key| range.contains(key));
    if deletes.iter().any(overlooked) {
        return Err(Refusal::DuplicateKey);
    }
    let puts: BTreeSet<&[u8]> = a.puts.union(&b.puts).copied().collect();
    for key in puts {
        add_put(all, key)?;
    }
    all.deletes.extend(deletes);
    Ok(())
}

fn add_put<'a>(all: &mut Writes<'a>, key: &'a [u8]) -> Result<(), Refusal> {
    if all.deletes(key) || !all.puts.insert(key) {
        return Err(Refusal::DuplicateKey);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::txn::Delete;
    use super::*;

    fn put(key: &str) -> Op {
        Op::Put(Put {
            key: Bytes::from(key.to_owned()),
            value: Bytes::new(),
            lease: 0,
            prev_kv: false,
            ignore_value: false,
            ignore_lease: false,
        })
    }

    fn delete(key: &str, end: &str) -> Op {
        Op::Delete(Delete {
            keys: KeyRange::new(Bytes::from(key.to_owned()), Bytes::from(end.to_owned())),
            prev_kv: false,
        })
    }

    fn both(success: Vec<Op>, failure: Vec<Op>) -> Txn {
        Txn {
            compare: Vec::new(),
            success,
            failure,
        }
    }

    fn nested(success: Vec<Op>, failure: Vec<Op>) -> Op {
        Op::Txn(both(success, failure))
    }

    #[test]
    fn a_key_is_written_once_however_deep_the_writes_are() {
        let no = Err(Refusal::DuplicateKey);
        for (ops, answer) in [
            (vec![put("a"), put("b")], Ok(())),
            (vec![put("a"), put("a")], no),
            (vec![put("a"), delete("a", "")], no),
            (vec![put("b"), delete("a", "c")], no),
            (vec![put("c"), delete("a", "c")], Ok(())),
            (vec![delete("a", ""), delete("a", "b")], Ok(())),
            (vec![nested(vec![put("a")], vec![put("a")])], Ok(())),
            (vec![nested(vec![put("a")], vec![delete("a", "")])], Ok(())),
            (vec![put("a"), nested(vec![], vec![put("a")])], no),
            (vec![delete("a", ""), nested(vec![put("a")], vec![])], no),
            (vec![put("a"), nested(vec![delete("a", "")], vec![])], no),
            (
                vec![
                    nested(vec![put("a")], vec![]),
                    nested(vec![put("a")], vec![]),
                ],
                no,
            ),
            (
                vec![
                    nested(vec![put("a")], vec![]),
                    nested(vec![delete("a", "")], vec![]),
                ],
                no,
            ),
            (
                vec![
                    nested(vec![nested(vec![put("a")], vec![])], vec![]),
                    put("a"),
                ],
                no,
            ),
        ] {
            assert_eq!(txn(&both(ops.clone(), vec![])), answer, "{ops:?}");
            assert_eq!(txn(&both(vec![], ops.clone())), answer, "{ops:?}");
        }
    }

    #[test]
    fn operations_are_counted_along_the_nesting_and_in_all() {
        let many = |n: usize| (0..n).map(|i| put(&i.to_string())).collect::<Vec<_>>();
        let no = Err(Refusal::TooManyOps);
        assert_eq!(txn(&both(many(128), many(128))), Ok(()));
        assert_eq!(txn(&both(many(129), vec![])), no);
        assert_eq!(txn(&both(vec![nested(many(127), vec![])], vec![])), Ok(()));
        assert_eq!(txn(&both(vec![nested(many(128), vec![])], vec![])), no);
        let wide = (0..100).map(|_| nested(vec![], (0..28).map(|_| delete("a", "")).collect()));
        assert_eq!(txn(&both(wide.collect(), vec![])), no);
    }

    #[test]
    fn what_says_nothing_or_too_much_is_refused_in_etcds_words() {
        let of = |change: fn(&mut Put)| {
            let Op::Put(mut op) = put("a") else {
                unreachable!()
            };
            change(&mut op);
            txn(&both(vec![Op::Put(op)], vec![]))
                .unwrap_err()
                .to_string()
        };
        assert_eq!(
            of(|p| p.key = Bytes::new()),
            "etcdserver: key is not provided"
        );
        let value = of(|p| {
            p.ignore_value = true;
            p.value = Bytes::from("v");
        });
        assert_eq!(value, "etcdserver: value is provided");
        let lease = of(|p| {
            p.ignore_lease = true;
            p.lease = 1;
        });
        assert_eq!(lease, "etcdserver: lease is provided");
    }
}
