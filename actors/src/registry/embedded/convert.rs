//! Between etcd's protobuf messages and the store's own types.

use std::sync::Arc;

use bytes::Bytes;
use etcd_client::proto::{
    PbCompare, PbDeleteRequest, PbDeleteResponse, PbEvent, PbKeyValue, PbPutRequest, PbPutResponse,
    PbRangeRequest, PbRangeResponse, PbResponseHeader, PbResponseOp, PbTargetUnion, PbTxnOpRequest,
    PbTxnOpResponse, PbTxnRequest, PbTxnRequestOp, PbTxnResponse,
};
use prost::Message;
use tonic::{Code, Status};

use super::error::Refusal;
use super::range::KeyRange;
use super::store::Record;
use super::txn::{
    Compare, Delete, Done, Expected, Field, Op, Put, Range, RangeResult, Relation, Txn, TxnResult,
};
use super::watches::Event;

/// etcd's default `--max-request-bytes`.
pub(crate) const MAX_REQUEST_BYTES: usize = 1536 << 10;

/// Refuses what etcd would refuse to propose.
pub(super) fn check_size(message: &impl Message) -> Result<(), Refusal> {
    if message.encoded_len() > MAX_REQUEST_BYTES {
        return Err(Refusal::RequestTooLarge);
    }
    Ok(())
}

/// etcd's code for each refusal.
impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Self {
        let code = match refusal {
            Refusal::EmptyKey
            | Refusal::KeyNotFound
            | Refusal::ValueProvided
            | Refusal::LeaseProvided
            | Refusal::TooManyOps
            | Refusal::DuplicateKey
            | Refusal::InvalidSort
            | Refusal::RequestTooLarge => Code::InvalidArgument,
            Refusal::Compacted | Refusal::FutureRevision | Refusal::LeaseTtlTooLarge => {
                Code::OutOfRange
            }
            Refusal::NoSpace | Refusal::TooManyRequests => Code::ResourceExhausted,
            Refusal::LeaseNotFound => Code::NotFound,
            Refusal::LeaseExists => Code::FailedPrecondition,
        };
        Self::new(code, refusal.to_string())
    }
}

pub(super) fn range(pb: PbRangeRequest) -> Result<Range, Refusal> {
    let sort_by = match pb.sort_target {
        0 => Field::Key,
        1 => Field::Version,
        2 => Field::Create,
        3 => Field::Mod,
        4 => Field::Value,
        _ => return Err(Refusal::InvalidSort),
    };
    if !(0..=2).contains(&pb.sort_order) {
        return Err(Refusal::InvalidSort);
    }
    Ok(Range {
        keys: key_range(pb.key, pb.range_end),
        limit: usize::try_from(pb.limit).unwrap_or(0),
        revision: pb.revision,
        sort_by,
        descending: pb.sort_order == 2,
        keys_only: pb.keys_only,
        count_only: pb.count_only,
        modified: (pb.min_mod_revision, pb.max_mod_revision),
        created: (pb.min_create_revision, pb.max_create_revision),
    })
}

pub(super) fn put(pb: PbPutRequest) -> Put {
    Put {
        key: pb.key.into(),
        value: pb.value.into(),
        lease: pb.lease,
        prev_kv: pb.prev_kv,
        ignore_value: pb.ignore_value,
        ignore_lease: pb.ignore_lease,
    }
}

pub(super) fn delete(pb: PbDeleteRequest) -> Delete {
    Delete {
        keys: key_range(pb.key, pb.range_end),
        prev_kv: pb.prev_kv,
    }
}

/// Recursion is bounded by prost's own limit on nested messages.
pub(super) fn txn(pb: PbTxnRequest) -> Result<Txn, Refusal> {
    Ok(Txn {
        compare: pb.compare.into_iter().map(compare).collect(),
        success: ops(pb.success)?,
        failure: ops(pb.failure)?,
    })
}

fn ops(pb: Vec<PbTxnRequestOp>) -> Result<Vec<Op>, Refusal> {
    pb.into_iter().map(op).collect()
}

fn op(pb: PbTxnRequestOp) -> Result<Op, Refusal> {
    match pb.request {
        Some(PbTxnOpRequest::RequestRange(r)) => Ok(Op::Range(range(r)?)),
        Some(PbTxnOpRequest::RequestPut(p)) => Ok(Op::Put(put(p))),
        Some(PbTxnOpRequest::RequestDeleteRange(d)) => Ok(Op::Delete(delete(d))),
        Some(PbTxnOpRequest::RequestTxn(t)) => Ok(Op::Txn(txn(t)?)),
        // An operation of no known kind; etcd says the same.
        None => Err(Refusal::KeyNotFound),
    }
}

/// As etcd, a target without its operand compares with zero.
fn compare(pb: PbCompare) -> Compare {
    let expected = match (pb.target, pb.target_union) {
        (0, Some(PbTargetUnion::Version(n))) => Expected::Version(n),
        (1, Some(PbTargetUnion::CreateRevision(n))) => Expected::Create(n),
        (2, Some(PbTargetUnion::ModRevision(n))) => Expected::Mod(n),
        (3, Some(PbTargetUnion::Value(v))) => Expected::Value(v.into()),
        (4, Some(PbTargetUnion::Lease(n))) => Expected::Lease(n),
        (1, _) => Expected::Create(0),
        (2, _) => Expected::Mod(0),
        (3, _) => Expected::Value(Bytes::new()),
        (4, _) => Expected::Lease(0),
        (_, _) => Expected::Version(0),
    };
    let relation = match pb.result {
        1 => Relation::Greater,
        2 => Relation::Less,
        3 => Relation::NotEqual,
        _ => Relation::Equal,
    };
    Compare {
        keys: key_range(pb.key, pb.range_end),
        relation,
        expected,
    }
}

pub(super) fn key_range(key: Vec<u8>, range_end: Vec<u8>) -> KeyRange {
    KeyRange::new(key.into(), range_end.into())
}

pub(super) fn key_value(record: &Record) -> PbKeyValue {
    PbKeyValue {
        value: record.value.to_vec(),
        ..key_only(record)
    }
}

fn key_only(record: &Record) -> PbKeyValue {
    PbKeyValue {
        key: record.key.to_vec(),
        create_revision: record.create_revision,
        mod_revision: record.mod_revision,
        version: record.version,
        value: Vec::new(),
        lease: record.lease,
    }
}

pub(super) fn event(event: &Event) -> PbEvent {
    PbEvent {
        r#type: i32::from(event.record.is_deletion()),
        kv: Some(key_value(&event.record)),
        prev_kv: event.prev.as_deref().map(key_value),
    }
}

fn at(revision: i64) -> Option<PbResponseHeader> {
    Some(PbResponseHeader {
        revision,
        ..PbResponseHeader::default()
    })
}

pub(super) fn range_response(result: &RangeResult) -> PbRangeResponse {
    let kv: fn(&Arc<Record>) -> PbKeyValue = if result.keys_only {
        |r| key_only(r)
    } else {
        |r| key_value(r)
    };
    PbRangeResponse {
        header: at(result.revision),
        kvs: result.records.iter().map(kv).collect(),
        more: result.more,
        count: i64::try_from(result.count).unwrap_or(i64::MAX),
    }
}

pub(super) fn put_response(revision: i64, prev: Option<&Record>) -> PbPutResponse {
    PbPutResponse {
        header: at(revision),
        prev_kv: prev.map(key_value),
    }
}

pub(super) fn delete_response(
    revision: i64,
    deleted: usize,
    prev: &[Arc<Record>],
) -> PbDeleteResponse {
    PbDeleteResponse {
        header: at(revision),
        deleted: i64::try_from(deleted).unwrap_or(i64::MAX),
        prev_kvs: prev.iter().map(|r| key_value(r)).collect(),
    }
}

pub(super) fn txn_response(result: &TxnResult, revision: i64) -> PbTxnResponse {
    PbTxnResponse {
        header: at(revision),
        succeeded: result.succeeded,
        responses: result.done.iter().map(response_op).collect(),
    }
}

fn response_op(done: &Done) -> PbResponseOp {
    let response = match done {
        Done::Range(result) => PbTxnOpResponse::ResponseRange(range_response(result)),
        Done::Put { revision, prev } => {
            PbTxnOpResponse::ResponsePut(put_response(*revision, prev.as_deref()))
        }
        Done::Delete {
            revision,
            deleted,
            prev,
        } => PbTxnOpResponse::ResponseDeleteRange(delete_response(*revision, *deleted, prev)),
        Done::Txn(result) => PbTxnOpResponse::ResponseTxn(txn_response(result, 0)),
    };
    PbResponseOp {
        response: Some(response),
    }
}
