//! Requests on keys and what they answer. Pure.
//!
//! A request goes through three steps: [`check`] looks at the request alone (keys, limits, double writes), `plan` settles
//! every comparison and checks what depends on the store (leases, revisions, room) before anything is written, and
//! `apply` writes and cannot fail. So a refused transaction has changed nothing.

use std::sync::Arc;

use bytes::Bytes;

use super::check;
use super::error::Refusal;
use super::range::KeyRange;
use super::store::{Changes, Record, Store};

/// What a range is sorted by, and what a comparison looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Field {
    Key,
    Version,
    Create,
    Mod,
    Value,
}

/// A read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Range {
    pub(crate) keys: KeyRange,
    /// 0 is no limit.
    pub(crate) limit: usize,
    /// 0 is the newest.
    pub(crate) revision: i64,
    pub(crate) sort_by: Field,
    pub(crate) descending: bool,
    pub(crate) keys_only: bool,
    pub(crate) count_only: bool,
    /// Least and greatest `mod_revision`; 0 is no bound.
    pub(crate) modified: (i64, i64),
    /// Least and greatest `create_revision`; 0 is no bound.
    pub(crate) created: (i64, i64),
}

/// A write of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Put {
    pub(crate) key: Bytes,
    pub(crate) value: Bytes,
    pub(crate) lease: i64,
    pub(crate) prev_kv: bool,
    pub(crate) ignore_value: bool,
    pub(crate) ignore_lease: bool,
}

/// A deletion.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Delete {
    pub(crate) keys: KeyRange,
    pub(crate) prev_kv: bool,
}

/// One operation of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Op {
    Range(Range),
    Put(Put),
    Delete(Delete),
    Txn(Txn),
}

/// What a comparison expects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Expected {
    Version(i64),
    Create(i64),
    Mod(i64),
    Value(Bytes),
    Lease(i64),
}

/// How a comparison compares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Relation {
    Equal,
    Greater,
    Less,
    NotEqual,
}

/// A condition; over a range it must hold for every key, and an absent key counts as all zeroes, except that no
/// comparison of a value holds for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Compare {
    pub(crate) keys: KeyRange,
    pub(crate) relation: Relation,
    pub(crate) expected: Expected,
}

/// IF all `compare` THEN `success` ELSE `failure`.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub(crate) struct Txn {
    pub(crate) compare: Vec<Compare>,
    pub(crate) success: Vec<Op>,
    pub(crate) failure: Vec<Op>,
}

impl Txn {
    /// Whether it may change anything.
    pub(crate) fn writes(&self) -> bool {
        let mut ops = self.success.iter().chain(&self.failure);
        ops.any(|op| match op {
            Op::Range(_) => false,
            Op::Put(_) | Op::Delete(_) => true,
            Op::Txn(inner) => inner.writes(),
        })
    }
}

/// Answer to a [`Range`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RangeResult {
    pub(crate) revision: i64,
    pub(crate) records: Vec<Arc<Record>>,
    pub(crate) keys_only: bool,
    pub(crate) more: bool,
    pub(crate) count: usize,
}

/// Answer to one operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Done {
    Range(RangeResult),
    Put {
        revision: i64,
        prev: Option<Arc<Record>>,
    },
    Delete {
        revision: i64,
        deleted: usize,
        prev: Vec<Arc<Record>>,
    },
    Txn(TxnResult),
}

/// Answer to a [`Txn`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TxnResult {
    pub(crate) succeeded: bool,
    pub(crate) done: Vec<Done>,
}

impl Store {
    /// Does one read.
    pub(crate) fn range(&self, range: &Range) -> Result<RangeResult, Refusal> {
        check::range(range)?;
        self.check_revision(range.revision)?;
        Ok(self.read(range, self.revision()))
    }

    /// Does one transaction.
    pub(crate) fn txn(&mut self, txn: Txn) -> Result<TxnResult, Refusal> {
        check::txn(&txn)?;
        let plan = self.plan(txn);
        let mut room = 0;
        self.check_plan(&plan, &mut room)?;
        if room > 0 && !self.has_room_for(room) {
            return Err(Refusal::NoSpace);
        }
        let mut changes = Changes::default();
        let result = self.apply(plan, &mut changes);
        self.commit(changes);
        Ok(result)
    }

    /// Does one write.
    pub(crate) fn write_one(&mut self, op: Op) -> Result<Option<Done>, Refusal> {
        let txn = Txn {
            success: vec![op],
            ..Txn::default()
        };
        Ok(self.txn(txn)?.done.pop())
    }

    fn read(&self, range: &Range, newest: i64) -> RangeResult {
        let at = if range.revision > 0 {
            range.revision
        } else {
            newest
        };
        let mut count = 0;
        let mut records = Vec::new();
        for record in self.alive(&range.keys, at) {
            count += 1;
            if range.wants(record) && !range.has_enough(records.len()) {
                records.push(Arc::clone(record));
            }
        }
        sort(&mut records, range.sort_by, range.descending);
        let more = range.limit > 0 && records.len() > range.limit;
        if more {
            records.truncate(range.limit);
        }
        RangeResult {
            revision: newest,
            records,
            keys_only: range.keys_only,
            more,
            count,
        }
    }

    fn holds(&self, compare: &Compare) -> bool {
        let mut found = self.alive(&compare.keys, self.revision()).peekable();
        if found.peek().is_none() {
            let absent = Record::default();
            return !matches!(compare.expected, Expected::Value(_)) && compare.accepts(&absent);
        }
        found.all(|record| compare.accepts(record))
    }

    /// Settles every comparison, nested ones too, against the store as it is before the transaction.
    fn plan(&self, txn: Txn) -> Plan {
        let succeeded = txn.compare.iter().all(|compare| self.holds(compare));
        let ops = if succeeded { txn.success } else { txn.failure };
        let steps = ops
            .into_iter()
            .map(|op| match op {
                Op::Range(range) => Step::Range(range),
                Op::Put(put) => Step::Put(put),
                Op::Delete(delete) => Step::Delete(delete),
                Op::Txn(txn) => Step::Txn(self.plan(txn)),
            })
            .collect();
        Plan { succeeded, steps }
    }

    fn check_plan(&self, plan: &Plan, room: &mut usize) -> Result<(), Refusal> {
        for step in &plan.steps {
            match step {
                Step::Range(range) => self.check_revision(range.revision)?,
                Step::Put(put) => {
                    self.check_put(put)?;
                    *room += put.key.len() + put.value.len();
                }
                Step::Delete(_) => {}
                Step::Txn(plan) => self.check_plan(plan, room)?,
            }
        }
        Ok(())
    }

    fn check_put(&self, put: &Put) -> Result<(), Refusal> {
        if (put.ignore_value || put.ignore_lease) && self.current(&put.key).is_none() {
            return Err(Refusal::KeyNotFound);
        }
        if !self.has_lease(put.lease) {
            return Err(Refusal::LeaseNotFound);
        }
        Ok(())
    }

    fn apply(&mut self, plan: Plan, changes: &mut Changes) -> TxnResult {
        let done = plan
            .steps
            .into_iter()
            .map(|step| match step {
                Step::Range(range) => Done::Range(self.read(&range, self.newest(changes))),
                Step::Put(put) => self.apply_put(put, changes),
                Step::Delete(delete) => self.apply_delete(&delete, changes),
                Step::Txn(plan) => Done::Txn(self.apply(plan, changes)),
            })
            .collect();
        TxnResult {
            succeeded: plan.succeeded,
            done,
        }
    }

    /// The revision a read inside a transaction sees: its own writes count.
    fn newest(&self, changes: &Changes) -> i64 {
        self.revision() + i64::from(!changes.is_empty())
    }

    fn apply_put(&mut self, put: Put, changes: &mut Changes) -> Done {
        let prev = self.current(&put.key).cloned();
        let (value, lease) = match &prev {
            Some(old) => (
                if put.ignore_value {
                    old.value.clone()
                } else {
                    put.value
                },
                if put.ignore_lease {
                    old.lease
                } else {
                    put.lease
                },
            ),
            None => (put.value, put.lease),
        };
        self.put(put.key, value, lease, changes);
        Done::Put {
            revision: self.newest(changes),
            prev: prev.filter(|_| put.prev_kv),
        }
    }

    fn apply_delete(&mut self, delete: &Delete, changes: &mut Changes) -> Done {
        let gone: Vec<Arc<Record>> = self
            .alive(&delete.keys, self.newest(changes))
            .cloned()
            .collect();
        for record in &gone {
            self.delete(record.key.clone(), changes);
        }
        Done::Delete {
            revision: self.newest(changes),
            deleted: gone.len(),
            prev: if delete.prev_kv { gone } else { Vec::new() },
        }
    }
}

struct Plan {
    succeeded: bool,
    steps: Vec<Step>,
}

enum Step {
    Range(Range),
    Put(Put),
    Delete(Delete),
    Txn(Plan),
}

impl Compare {
    fn accepts(&self, record: &Record) -> bool {
        let order = match &self.expected {
            Expected::Version(n) => record.version.cmp(n),
            Expected::Create(n) => record.create_revision.cmp(n),
            Expected::Mod(n) => record.mod_revision.cmp(n),
            Expected::Lease(n) => record.lease.cmp(n),
            Expected::Value(v) => record.value.cmp(v),
        };
        match self.relation {
            Relation::Equal => order.is_eq(),
            Relation::Greater => order.is_gt(),
            Relation::Less => order.is_lt(),
            Relation::NotEqual => order.is_ne(),
        }
    }
}

impl Range {
    fn wants(&self, record: &Record) -> bool {
        !self.count_only
            && within(record.mod_revision, self.modified)
            && within(record.create_revision, self.created)
    }

    /// Whether `found` records and one that tells "there are more" will do; not so when they are still to be sorted.
    fn has_enough(&self, found: usize) -> bool {
        let in_order = self.sort_by == Field::Key && !self.descending;
        in_order && self.limit > 0 && found > self.limit
    }
}

fn within(revision: i64, (least, greatest): (i64, i64)) -> bool {
    (least == 0 || revision >= least) && (greatest == 0 || revision <= greatest)
}

fn sort(records: &mut [Arc<Record>], by: Field, descending: bool) {
    match by {
        Field::Key => {} // they come in this order
        Field::Version => records.sort_by_key(|r| r.version),
        Field::Create => records.sort_by_key(|r| r.create_revision),
        Field::Mod => records.sort_by_key(|r| r.mod_revision),
        Field::Value => records.sort_by(|a, b| a.value.cmp(&b.value)),
    }
    if descending {
        records.reverse();
    }
}
