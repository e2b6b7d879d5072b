//! etcd's Maintenance and Cluster services, as far as one member without raft and without a file has anything to say.

use std::net::SocketAddr;
use std::sync::Arc;

use etcd_client::proto::{
    PbAlarmRequest, PbAlarmResponse, PbClusterService, PbDefragmentRequest, PbDefragmentResponse,
    PbDowngradeRequest, PbDowngradeResponse, PbHashKvRequest, PbHashKvResponse, PbHashRequest,
    PbHashResponse, PbMaintenanceService, PbMember, PbMemberAddRequest, PbMemberAddResponse,
    PbMemberListRequest, PbMemberListResponse, PbMemberPromoteRequest, PbMemberPromoteResponse,
    PbMemberRemoveRequest, PbMemberRemoveResponse, PbMemberUpdateRequest, PbMemberUpdateResponse,
    PbMoveLeaderRequest, PbMoveLeaderResponse, PbSnapshotRequest, PbSnapshotResponse,
    PbStatusRequest, PbStatusResponse,
};
use tokio_stream::Empty;
use tonic::{Request, Response, Status};

use super::shared::Shared;

/// The etcd whose protocol is spoken, and that this is not it.
const VERSION: &str = "3.4.0+troupe";

pub(super) struct StatusService {
    pub(super) shared: Arc<Shared>,
    pub(super) address: Option<SocketAddr>,
}

fn only_one_member<T>() -> Result<Response<T>, Status> {
    Err(Status::unimplemented(
        "the embedded registry has one member and no raft",
    ))
}

#[tonic::async_trait]
impl PbMaintenanceService for StatusService {
    async fn status(
        &self,
        _: Request<PbStatusRequest>,
    ) -> Result<Response<PbStatusResponse>, Status> {
        let (bytes, live, revision) = self
            .shared
            .with(|store, _| (store.bytes(), store.live_bytes(), store.revision()));
        let index = revision.unsigned_abs();
        let header = self.shared.header(revision);
        Ok(Response::new(PbStatusResponse {
            version: VERSION.to_owned(),
            db_size: i64::try_from(self.shared.disk_size().unwrap_or(bytes as u64))
                .unwrap_or(i64::MAX),
            db_size_in_use: i64::try_from(live).unwrap_or(i64::MAX),
            leader: self.shared.member_id(),
            raft_index: index,
            raft_applied_index: index,
            raft_term: header.as_ref().map_or(0, |h| h.raft_term),
            header,
            ..PbStatusResponse::default()
        }))
    }

    /// There are no alarms: a full store refuses puts and takes them again once there is room.
    async fn alarm(&self, _: Request<PbAlarmRequest>) -> Result<Response<PbAlarmResponse>, Status> {
        let revision = self.shared.with(|store, _| store.revision());
        Ok(Response::new(PbAlarmResponse {
            header: self.shared.header(revision),
            alarms: Vec::new(),
        }))
    }

    /// Nothing to do in memory.
    async fn defragment(
        &self,
        _: Request<PbDefragmentRequest>,
    ) -> Result<Response<PbDefragmentResponse>, Status> {
        let revision = self.shared.with(|store, _| store.revision());
        Ok(Response::new(PbDefragmentResponse {
            header: self.shared.header(revision),
        }))
    }

    async fn hash(&self, _: Request<PbHashRequest>) -> Result<Response<PbHashResponse>, Status> {
        only_one_member()
    }

    async fn hash_kv(
        &self,
        _: Request<PbHashKvRequest>,
    ) -> Result<Response<PbHashKvResponse>, Status> {
        only_one_member()
    }

    type SnapshotStream = Empty<Result<PbSnapshotResponse, Status>>;

    async fn snapshot(
        &self,
        _: Request<PbSnapshotRequest>,
    ) -> Result<Response<Self::SnapshotStream>, Status> {
        Err(Status::unimplemented(
            "the embedded registry has no snapshots",
        ))
    }

    async fn move_leader(
        &self,
        _: Request<PbMoveLeaderRequest>,
    ) -> Result<Response<PbMoveLeaderResponse>, Status> {
        only_one_member()
    }

    async fn downgrade(
        &self,
        _: Request<PbDowngradeRequest>,
    ) -> Result<Response<PbDowngradeResponse>, Status> {
        only_one_member()
    }
}

#[tonic::async_trait]
impl PbClusterService for StatusService {
    async fn member_list(
        &self,
        _: Request<PbMemberListRequest>,
    ) -> Result<Response<PbMemberListResponse>, Status> {
        let revision = self.shared.with(|store, _| store.revision());
        let urls = self.address.map(|address| format!("http://{address}"));
        Ok(Response::new(PbMemberListResponse {
            header: self.shared.header(revision),
            members: vec![PbMember {
                id: self.shared.member_id(),
                name: "embedded".to_owned(),
                client_ur_ls: urls.into_iter().collect(),
                ..PbMember::default()
            }],
        }))
    }

    async fn member_add(
        &self,
        _: Request<PbMemberAddRequest>,
    ) -> Result<Response<PbMemberAddResponse>, Status> {
        only_one_member()
    }

    async fn member_remove(
        &self,
        _: Request<PbMemberRemoveRequest>,
    ) -> Result<Response<PbMemberRemoveResponse>, Status> {
        only_one_member()
    }

    async fn member_update(
        &self,
        _: Request<PbMemberUpdateRequest>,
    ) -> Result<Response<PbMemberUpdateResponse>, Status> {
        only_one_member()
    }

    async fn member_promote(
        &self,
        _: Request<PbMemberPromoteRequest>,
    ) -> Result<Response<PbMemberPromoteResponse>, Status> {
        only_one_member()
    }
}
