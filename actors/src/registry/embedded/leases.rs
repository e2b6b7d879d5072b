//! etcd's Lease service.

use std::pin::Pin;
use std::sync::Arc;

use etcd_client::proto::{
    PbLeaseGrantRequest, PbLeaseGrantResponse, PbLeaseKeepAliveRequest, PbLeaseKeepAliveResponse,
    PbLeaseLeasesRequest, PbLeaseLeasesResponse, PbLeaseRevokeRequest, PbLeaseRevokeResponse,
    PbLeaseService, PbLeaseStatus, PbLeaseTimeToLiveRequest, PbLeaseTimeToLiveResponse,
};
use futures_util::{Stream, StreamExt, TryStreamExt};
use rand::RngExt;
use tonic::{Request, Response, Status, Streaming};

use super::shared::Shared;

pub(super) struct LeaseService(pub(super) Arc<Shared>);

#[tonic::async_trait]
impl PbLeaseService for LeaseService {
    async fn lease_grant(
        &self,
        request: Request<PbLeaseGrantRequest>,
    ) -> Result<Response<PbLeaseGrantResponse>, Status> {
        let PbLeaseGrantRequest { ttl, id } = request.into_inner();
        let id = if id == 0 { random_id() } else { id };
        let (ttl, revision) = self
            .0
            .with(|store, now| store.grant(id, ttl, now).map(|ttl| (ttl, store.revision())))?;
        self.0.synced().await?;
        Ok(Response::new(PbLeaseGrantResponse {
            header: self.0.header(revision),
            id,
            ttl,
            error: String::new(),
        }))
    }

    async fn lease_revoke(
        &self,
        request: Request<PbLeaseRevokeRequest>,
    ) -> Result<Response<PbLeaseRevokeResponse>, Status> {
        let id = request.into_inner().id;
        let revision = self
            .0
            .with(|store, _| store.end_lease(id).map(|()| store.revision()))?;
        self.0.synced().await?;
        Ok(Response::new(PbLeaseRevokeResponse {
            header: self.0.header(revision),
        }))
    }

    type LeaseKeepAliveStream =
        Pin<Box<dyn Stream<Item = Result<PbLeaseKeepAliveResponse, Status>> + Send>>;

    /// One answer per request, made when the client takes it, so nothing queues up.
    async fn lease_keep_alive(
        &self,
        request: Request<Streaming<PbLeaseKeepAliveRequest>>,
    ) -> Result<Response<Self::LeaseKeepAliveStream>, Status> {
        let shared = Arc::clone(&self.0);
        let closing = Arc::clone(&self.0);
        let answers = request
            .into_inner()
            .map_ok(move |request| renew(&shared, request.id))
            .take_until(async move { closing.closed().await });
        Ok(Response::new(answers.boxed()))
    }

    async fn lease_time_to_live(
        &self,
        request: Request<PbLeaseTimeToLiveRequest>,
    ) -> Result<Response<PbLeaseTimeToLiveResponse>, Status> {
        let PbLeaseTimeToLiveRequest { id, keys } = request.into_inner();
        let (info, revision) = self
            .0
            .with(|store, now| (store.lease(id, now), store.revision()));
        let gone = PbLeaseTimeToLiveResponse {
            header: self.0.header(revision),
            id,
            ttl: -1,
            ..PbLeaseTimeToLiveResponse::default()
        };
        let Some(info) = info else {
            return Ok(Response::new(gone));
        };
        let listed = if keys { info.keys } else { Vec::new() };
        Ok(Response::new(PbLeaseTimeToLiveResponse {
            ttl: info.remaining,
            granted_ttl: info.granted,
            keys: listed.into_iter().map(Into::into).collect(),
            ..gone
        }))
    }

    async fn lease_leases(
        &self,
        _: Request<PbLeaseLeasesRequest>,
    ) -> Result<Response<PbLeaseLeasesResponse>, Status> {
        let (ids, revision) = self
            .0
            .with(|store, _| (store.lease_ids(), store.revision()));
        Ok(Response::new(PbLeaseLeasesResponse {
            header: self.0.header(revision),
            leases: ids.into_iter().map(|id| PbLeaseStatus { id }).collect(),
        }))
    }
}

/// A lease that is gone answers with ttl 0, as etcd's does: no error.
fn renew(shared: &Shared, id: i64) -> PbLeaseKeepAliveResponse {
    let (ttl, revision) = shared.with(|store, now| (store.renew(id, now), store.revision()));
    PbLeaseKeepAliveResponse {
        header: shared.header(revision),
        id,
        ttl: ttl.unwrap_or(0),
    }
}

/// Positive, like etcd's own.
fn random_id() -> i64 {
    (crate::chance::rng().random::<i64>() & i64::MAX).max(1)
}
