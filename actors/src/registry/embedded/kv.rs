//! etcd's KV service.

use std::sync::Arc;

use etcd_client::proto::{
    PbCompactionRequest, PbCompactionResponse, PbDeleteRequest, PbDeleteResponse, PbKvService,
    PbPutRequest, PbPutResponse, PbRangeRequest, PbRangeResponse, PbRangeStreamResponse,
    PbTxnRequest, PbTxnResponse,
};
use tokio_stream::Empty;
use tonic::{Request, Response, Status};

use super::convert;
use super::shared::Shared;
use super::trouble::{self, Reply};
use super::txn::{Done, Op};

pub(super) struct KvService(pub(super) Arc<Shared>);

#[tonic::async_trait]
impl PbKvService for KvService {
    async fn range(
        &self,
        request: Request<PbRangeRequest>,
    ) -> Result<Response<PbRangeResponse>, Status> {
        let range = convert::range(request.into_inner())?;
        let result = self.0.with(|store, _| store.range(&range))?;
        self.0.synced().await?;
        let header = self.0.header(result.revision);
        Ok(Response::new(PbRangeResponse {
            header,
            ..convert::range_response(&result)
        }))
    }

    type RangeStreamStream = Empty<Result<PbRangeStreamResponse, Status>>;

    /// Newer than the etcd this server speaks for; clients page instead.
    async fn range_stream(
        &self,
        _: Request<PbRangeRequest>,
    ) -> Result<Response<Self::RangeStreamStream>, Status> {
        Err(Status::unimplemented("unknown method RangeStream"))
    }

    async fn put(&self, request: Request<PbPutRequest>) -> Result<Response<PbPutResponse>, Status> {
        let request = request.into_inner();
        convert::check_size(&request)?;
        let op = Op::Put(convert::put(request));
        let done = self.0.with(|store, _| store.write_one(op))?;
        self.0.synced().await?;
        match done {
            Some(Done::Put { revision, prev }) => Ok(Response::new(PbPutResponse {
                header: self.0.header(revision),
                ..convert::put_response(revision, prev.as_deref())
            })),
            other => Err(mismatch(&other)),
        }
    }

    async fn delete_range(
        &self,
        request: Request<PbDeleteRequest>,
    ) -> Result<Response<PbDeleteResponse>, Status> {
        let request = request.into_inner();
        convert::check_size(&request)?;
        let op = Op::Delete(convert::delete(request));
        let done = self.0.with(|store, _| store.write_one(op))?;
        self.0.synced().await?;
        match done {
            Some(Done::Delete {
                revision,
                deleted,
                prev,
            }) => Ok(Response::new(PbDeleteResponse {
                header: self.0.header(revision),
                ..convert::delete_response(revision, deleted, &prev)
            })),
            other => Err(mismatch(&other)),
        }
    }

    async fn txn(&self, request: Request<PbTxnRequest>) -> Result<Response<PbTxnResponse>, Status> {
        let request = request.into_inner();
        convert::check_size(&request)?;
        let txn = convert::txn(request)?;
        let reply = if txn.writes() {
            trouble::reply()
        } else {
            Reply::Given
        };
        match reply {
            Reply::Given | Reply::LostAfter => {}
            Reply::LostBefore => return Err(lost()),
            Reply::Late(after) => {
                let shared = Arc::clone(&self.0);
                tokio::spawn(async move {
                    tokio::time::sleep(after).await;
                    // Nobody listens any more.
                    shared.with(|store, _| store.txn(txn)).ok();
                });
                return Err(lost());
            }
        }
        let (result, revision) = self
            .0
            .with(|store, _| store.txn(txn).map(|result| (result, store.revision())))?;
        self.0.synced().await?;
        if reply == Reply::LostAfter {
            return Err(lost());
        }
        Ok(Response::new(PbTxnResponse {
            header: self.0.header(revision),
            ..convert::txn_response(&result, revision)
        }))
    }

    async fn compact(
        &self,
        request: Request<PbCompactionRequest>,
    ) -> Result<Response<PbCompactionResponse>, Status> {
        let oldest = request.into_inner().revision;
        let revision = self
            .0
            .with(|store, _| store.compact(oldest).map(|()| store.revision()))?;
        Ok(Response::new(PbCompactionResponse {
            header: self.0.header(revision),
        }))
    }
}

/// etcd's words when it cannot tell what became of a request.
fn lost() -> Status {
    Status::unavailable("etcdserver: request timed out")
}

/// One write answers with one result of its own kind; anything else is a defect of the store, not of the request.
fn mismatch(done: &Option<Done>) -> Status {
    Status::internal(format!("the store answered with {done:?}"))
}
