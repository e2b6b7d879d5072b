//! What fuzzing calls: requests as they come off the wire, on a small store.

use std::time::{Duration, Instant};

use etcd_client::proto::{
    PbCompactionRequest, PbDeleteRequest, PbLeaseGrantRequest, PbLeaseRevokeRequest, PbPutRequest,
    PbRangeRequest, PbTxnRequest, PbWatchRequest, PbWatchRequestUnion,
};
use prost::Message;

use super::convert;
use super::error::Refusal;
use super::store::{Limits, Store};
use super::txn::Op;
use super::watches::{WatchRequest, Watches};

const LIMITS: Limits = Limits {
    history_revisions: 32,
    history_bytes: 64 * 1024,
    live_bytes: 256 * 1024,
};

/// A list of `length u16 BE | what u8 | protobuf`. A refused request changes nothing; revisions never fall; what watches are told
/// and what is answered can be written.
pub fn requests(mut data: &[u8]) {
    let now = Instant::now();
    let mut stage = Stage {
        store: Store::new(100, LIMITS, now),
        watches: Watches::default(),
        now,
    };
    while let Some((length, rest)) = data.split_first_chunk::<2>() {
        let length = usize::from(u16::from_be_bytes(*length)).min(rest.len());
        let (request, behind) = rest.split_at(length);
        data = behind;
        if let Some((what, body)) = request.split_first() {
            stage.play(*what, body);
        }
    }
}

struct Stage {
    store: Store,
    watches: Watches,
    now: Instant,
}

impl Stage {
    fn play(&mut self, what: u8, body: &[u8]) {
        self.now += Duration::from_millis(u64::from(what) * 100);
        self.store.tick(self.now);
        let before = (self.store.revision(), self.store.live_bytes());
        let answer = match what % 9 {
            0 => self.range(body),
            1 => self.put(body),
            2 => self.delete(body),
            3 | 4 => self.txn(body),
            5 => self.compact(body),
            6 => self.grant(body),
            7 => self.revoke(body),
            _ => self.watch(body),
        };
        let after = (self.store.revision(), self.store.live_bytes());
        assert!(after.0 >= before.0, "the revision fell");
        match answer {
            Some(Err(why)) => {
                assert_eq!(after, before, "refused ({why}) and done all the same");
                let status = tonic::Status::from(why);
                assert!(!status.message().is_empty());
            }
            Some(Ok(bytes)) => drop(bytes),
            // No message at all: refused by the transport below.
            None => assert_eq!(after, before),
        }
        let most = LIMITS.live_bytes + super::convert::MAX_REQUEST_BYTES;
        assert!(self.store.live_bytes() <= most);
        let (notices, _) = self.watches.pull(&self.store, self.now, Duration::MAX);
        drop(notices);
    }

    fn range(&mut self, body: &[u8]) -> Option<Result<Vec<u8>, Refusal>> {
        let request = PbRangeRequest::decode(body).ok()?;
        let limit = usize::try_from(request.limit).unwrap_or(0);
        Some(convert::range(request).and_then(|range| {
            let result = self.store.range(&range)?;
            assert!(limit == 0 || result.records.len() <= limit);
            Ok(convert::range_response(&result).encode_to_vec())
        }))
    }

    fn put(&mut self, body: &[u8]) -> Option<Result<Vec<u8>, Refusal>> {
        let request = PbPutRequest::decode(body).ok()?;
        Some(convert::check_size(&request).and_then(|()| {
            let done = self.store.write_one(Op::Put(convert::put(request)))?;
            assert!(matches!(done, Some(super::txn::Done::Put { .. })));
            Ok(Vec::new())
        }))
    }

    fn delete(&mut self, body: &[u8]) -> Option<Result<Vec<u8>, Refusal>> {
        let request = PbDeleteRequest::decode(body).ok()?;
        Some(convert::check_size(&request).and_then(|()| {
            let done = self.store.write_one(Op::Delete(convert::delete(request)))?;
            assert!(matches!(done, Some(super::txn::Done::Delete { .. })));
            Ok(Vec::new())
        }))
    }

    fn txn(&mut self, body: &[u8]) -> Option<Result<Vec<u8>, Refusal>> {
        let request = PbTxnRequest::decode(body).ok()?;
        Some(convert::check_size(&request).and_then(|()| {
            let result = self.store.txn(convert::txn(request)?)?;
            let revision = self.store.revision();
            Ok(convert::txn_response(&result, revision).encode_to_vec())
        }))
    }

    fn compact(&mut self, body: &[u8]) -> Option<Result<Vec<u8>, Refusal>> {
        let request = PbCompactionRequest::decode(body).ok()?;
        Some(self.store.compact(request.revision).map(|()| Vec::new()))
    }

    fn grant(&mut self, body: &[u8]) -> Option<Result<Vec<u8>, Refusal>> {
        let request = PbLeaseGrantRequest::decode(body).ok()?;
        // 0 lets the server choose, by chance.
        let id = if request.id == 0 { 77 } else { request.id };
        let granted = self.store.grant(id, request.ttl, self.now);
        Some(granted.map(|ttl| {
            assert!(ttl > 0);
            assert!(self.store.renew(id, self.now).is_some());
            assert!(self.store.lease(id, self.now).is_some());
            Vec::new()
        }))
    }

    fn revoke(&mut self, body: &[u8]) -> Option<Result<Vec<u8>, Refusal>> {
        let request = PbLeaseRevokeRequest::decode(body).ok()?;
        Some(self.store.end_lease(request.id).map(|()| Vec::new()))
    }

    fn watch(&mut self, body: &[u8]) -> Option<Result<Vec<u8>, Refusal>> {
        match PbWatchRequest::decode(body).ok()?.request_union? {
            PbWatchRequestUnion::CreateRequest(c) => {
                let key = if c.key.is_empty() { vec![0] } else { c.key };
                let request = WatchRequest {
                    keys: convert::key_range(key, c.range_end),
                    start: c.start_revision,
                    id: c.watch_id,
                    progress: c.progress_notify,
                    prev_kv: c.prev_kv,
                    fragment: c.fragment,
                    no_put: c.filters.contains(&0),
                    no_delete: c.filters.contains(&1),
                };
                self.watches.create(request, &self.store, self.now);
            }
            PbWatchRequestUnion::CancelRequest(c) => {
                self.watches.cancel(c.watch_id, &self.store);
            }
            PbWatchRequestUnion::ProgressRequest(_) => drop(self.watches.progress(&self.store)),
        }
        Some(Ok(Vec::new()))
    }
}
