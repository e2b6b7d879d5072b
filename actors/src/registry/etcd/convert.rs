//! Between the contract's types and etcd's messages.

use std::time::Duration;

use etcd_client::proto::{PbKeyValue, PbTxnOpResponse};
use etcd_client::{CompareOp, GetOptions, ResponseHeader};

use super::super::{Change, Compare, Kv, Op, RegistryError, Stamp, Txn, WatchBatch};
use super::links::refused;

pub(super) fn seconds_of(seconds: i64) -> Duration {
    Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
}

pub(super) fn stamp(header: Option<&ResponseHeader>) -> Stamp {
    Stamp {
        cluster_id: header.map_or(0, ResponseHeader::cluster_id),
        revision: header.map_or(0, ResponseHeader::revision),
    }
}

/// First key and end of all that starts with `prefix`; an empty one is everything.
pub(super) fn prefix_range(prefix: &[u8]) -> (Vec<u8>, Vec<u8>) {
    if prefix.is_empty() {
        return (vec![0], vec![0]);
    }
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last + 1);
            return (prefix.to_vec(), end);
        }
    }
    (prefix.to_vec(), vec![0])
}

pub(super) fn kv(pb: PbKeyValue) -> Result<Kv, RegistryError> {
    Ok(Kv {
        key: text(pb.key)?,
        value: pb.value.into(),
        create_revision: pb.create_revision,
        mod_revision: pb.mod_revision,
        version: pb.version,
        lease: pb.lease,
    })
}

fn text(key: Vec<u8>) -> Result<String, RegistryError> {
    String::from_utf8(key).map_err(|e| refused(format!("a key is not UTF-8: {e}")))
}

pub(super) fn batch(response: etcd_client::WatchResponse) -> Result<WatchBatch, RegistryError> {
    if response.canceled() {
        return Err(match response.compact_revision() {
            0 => refused(format!("watch cancelled: {}", response.cancel_reason())),
            oldest => RegistryError::Compacted { oldest },
        });
    }
    Ok(WatchBatch {
        stamp: stamp(response.header()),
        changes: response
            .0
            .events
            .into_iter()
            .filter_map(|event| event.kv.map(|kv| (event.r#type, kv)))
            .map(|(kind, pb)| change(kind, pb))
            .collect::<Result<_, _>>()?,
    })
}

fn change(kind: i32, pb: PbKeyValue) -> Result<Change, RegistryError> {
    const DELETE: i32 = etcd_client::EventType::Delete as i32;
    if kind == DELETE {
        return Ok(Change::Delete {
            revision: pb.mod_revision,
            key: text(pb.key)?,
        });
    }
    Ok(Change::Put(kv(pb)?))
}

pub(super) fn read_of(response: Option<PbTxnOpResponse>) -> Result<Vec<Kv>, RegistryError> {
    match response {
        Some(PbTxnOpResponse::ResponseRange(range)) => range.kvs.into_iter().map(kv).collect(),
        _ => Ok(Vec::new()),
    }
}

impl Txn {
    fn ops(&self) -> impl Iterator<Item = &Op> {
        self.then.iter().chain(&self.otherwise)
    }

    pub(super) fn writes(&self) -> bool {
        self.ops().any(|op| !matches!(op, Op::Get(_) | Op::List(_)))
    }

    /// The lease it puts under: a node's own, so there is one at most.
    pub(super) fn lease(&self) -> i64 {
        let leases = self.ops().filter_map(|op| match op {
            Op::Put { lease, .. } if *lease != 0 => Some(*lease),
            _ => None,
        });
        leases.last().unwrap_or(0)
    }
}

pub(super) fn etcd_txn(txn: Txn) -> etcd_client::Txn {
    let ops = |ops: Vec<Op>| ops.into_iter().map(etcd_op).collect::<Vec<_>>();
    let when: Vec<_> = txn.when.into_iter().map(etcd_compare).collect();
    etcd_client::Txn::new()
        .when(when)
        .and_then(ops(txn.then))
        .or_else(ops(txn.otherwise))
}

fn etcd_compare(compare: Compare) -> etcd_client::Compare {
    match compare {
        Compare::Created(key, revision) => {
            etcd_client::Compare::create_revision(key, CompareOp::Equal, revision)
        }
        Compare::Modified(key, revision) => {
            etcd_client::Compare::mod_revision(key, CompareOp::Equal, revision)
        }
    }
}

fn etcd_op(op: Op) -> etcd_client::TxnOp {
    use etcd_client::{DeleteOptions, PutOptions, TxnOp};
    match op {
        Op::Put { key, value, lease } => {
            TxnOp::put(key, value, Some(PutOptions::new().with_lease(lease)))
        }
        Op::Delete(key) => TxnOp::delete(key, None),
        Op::DeletePrefix(prefix) => {
            let (first, end) = prefix_range(prefix.as_bytes());
            TxnOp::delete(first, Some(DeleteOptions::new().with_range(end)))
        }
        Op::Get(key) => TxnOp::get(key, None),
        Op::List(prefix) => {
            let (first, end) = prefix_range(prefix.as_bytes());
            TxnOp::get(first, Some(GetOptions::new().with_range(end)))
        }
    }
}
