//! One core's answer to every RPC: the table of services, each in a file of its own.
//!
//! A [`Node`] lives on one shard. It knows who this member is and what the flags say; the shard
//! does the waiting.

use std::rc::Rc;

use ringkv_engine::error::Code;
use ringkv_raft::sequencer::Status as Consensus;

use crate::convert::Header;
use crate::lease::IdSource;
use crate::pb::etcdserverpb::*;
use crate::pb::health::health_check_response::ServingStatus;
use crate::pb::health::*;
use crate::service::{Ctx, Member, Replies, Requests, SERVICES, Services};
use crate::shard::Shard;
use crate::watch::Watching;
use crate::wire::Status;

/// What a member is and was told, the same on all shards.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Cluster id.
    pub cluster_id: u64,
    /// Member id.
    pub member_id: u64,
    /// `--max-txn-ops`.
    pub txn_ops_max: usize,
    /// `--max-request-bytes`.
    pub request_bytes_max: usize,
    /// `--quota-backend-bytes`, with 0 resolved to the default.
    pub quota_bytes: u64,
    /// Milliseconds without a sign of life after which etcd's `--watch-progress-notify-interval`
    /// sends one.
    pub watch_progress_ms: u64,
}

/// See the module.
pub struct Node {
    /// The core's share.
    pub shard: Rc<Shard>,
    /// Who and how.
    pub settings: Rc<Settings>,
    /// The core's watchers.
    pub watching: Rc<Watching>,
    /// Ids for leases that are granted without one.
    pub lease_ids: IdSource,
}

impl Node {
    /// Header fields of this member.
    #[must_use]
    pub fn header(&self) -> Header {
        Header {
            cluster_id: self.settings.cluster_id,
            member_id: self.settings.member_id,
            raft_term: self.consensus().term,
        }
    }

    /// A header at the store's current revision.
    #[must_use]
    pub fn header_now(&self) -> Option<ResponseHeader> {
        self.header().at(self.shard.pin(|view| view.revision))
    }

    /// Where consensus stands.
    #[must_use]
    pub fn consensus(&self) -> Consensus {
        self.shard.status()
    }
}

impl Services for Node {
    async fn range(&self, _: &Ctx, request: RangeRequest) -> Result<RangeResponse, Status> {
        crate::kv::range(self, &request).await
    }

    async fn range_stream(
        &self,
        _: &Ctx,
        request: RangeRequest,
        replies: &Replies<RangeStreamResponse>,
    ) -> Result<(), Status> {
        crate::kv::range_stream(self, request, replies).await
    }

    async fn put(&self, _: &Ctx, request: PutRequest) -> Result<PutResponse, Status> {
        crate::kv::put(self, &request).await
    }

    async fn delete_range(
        &self,
        _: &Ctx,
        request: DeleteRangeRequest,
    ) -> Result<DeleteRangeResponse, Status> {
        crate::kv::delete_range(self, &request).await
    }

    async fn txn(&self, _: &Ctx, request: TxnRequest) -> Result<TxnResponse, Status> {
        crate::kv::txn(self, &request).await
    }

    async fn compact(&self, _: &Ctx, r: CompactionRequest) -> Result<CompactionResponse, Status> {
        crate::kv::compact(self, &r).await
    }

    async fn watch(
        &self,
        ctx: &Ctx,
        requests: Requests<WatchRequest>,
        replies: &Replies<WatchResponse>,
    ) -> Result<(), Status> {
        crate::watch::watch(self, ctx, requests, replies).await
    }

    async fn lease_grant(
        &self,
        _: &Ctx,
        r: LeaseGrantRequest,
    ) -> Result<LeaseGrantResponse, Status> {
        crate::lease::grant(self, &r).await
    }

    async fn lease_revoke(
        &self,
        _: &Ctx,
        r: LeaseRevokeRequest,
    ) -> Result<LeaseRevokeResponse, Status> {
        crate::lease::revoke(self, &r).await
    }

    async fn lease_keep_alive(
        &self,
        _: &Ctx,
        requests: Requests<LeaseKeepAliveRequest>,
        replies: &Replies<LeaseKeepAliveResponse>,
    ) -> Result<(), Status> {
        crate::lease::keep_alive(self, requests, replies).await
    }

    async fn lease_time_to_live(
        &self,
        _: &Ctx,
        r: LeaseTimeToLiveRequest,
    ) -> Result<LeaseTimeToLiveResponse, Status> {
        crate::lease::time_to_live(self, &r).await
    }

    async fn lease_leases(
        &self,
        _: &Ctx,
        _: LeaseLeasesRequest,
    ) -> Result<LeaseLeasesResponse, Status> {
        crate::lease::leases(self).await
    }

    async fn member_list(
        &self,
        _: &Ctx,
        r: MemberListRequest,
    ) -> Result<MemberListResponse, Status> {
        crate::cluster::member_list(self, &r).await
    }

    async fn alarm(&self, _: &Ctx, request: AlarmRequest) -> Result<AlarmResponse, Status> {
        crate::maintenance::alarm(self, &request).await
    }

    async fn status(&self, _: &Ctx, _: StatusRequest) -> Result<StatusResponse, Status> {
        Ok(crate::maintenance::status(self))
    }

    async fn defragment(
        &self,
        _: &Ctx,
        _: DefragmentRequest,
    ) -> Result<DefragmentResponse, Status> {
        Ok(crate::maintenance::defragment())
    }

    async fn hash_kv(&self, _: &Ctx, request: HashKvRequest) -> Result<HashKvResponse, Status> {
        crate::maintenance::hash_kv(self, &request).await
    }

    async fn health_check(
        &self,
        _: &Ctx,
        request: HealthCheckRequest,
    ) -> Result<HealthCheckResponse, Status> {
        health(&request.service).ok_or_else(|| Status::new(Code::NotFound, "unknown service"))
    }

    async fn health_watch(
        &self,
        _: &Ctx,
        request: HealthCheckRequest,
        replies: &Replies<HealthCheckResponse>,
    ) -> Result<(), Status> {
        let unknown = HealthCheckResponse {
            status: ServingStatus::ServiceUnknown.into(),
        };
        replies
            .send(&health(&request.service).unwrap_or(unknown))
            .await?;
        // Nothing changes while the server runs; the connection's end ends this.
        core::future::pending().await
    }
}

fn health(service: &str) -> Option<HealthCheckResponse> {
    let known = service.is_empty() || SERVICES.contains(&service);
    known.then(|| HealthCheckResponse {
        status: ServingStatus::Serving.into(),
    })
}

impl Member for Node {
    fn cluster_version(&self) -> Option<String> {
        self.shard.registry().cluster_version.clone()
    }

    fn storage_version(&self) -> Option<String> {
        Some("3.7.0".to_owned())
    }

    fn alarms(&self) -> Vec<AlarmMember> {
        let registry = self.shard.registry();
        registry
            .alarms
            .iter()
            .map(crate::maintenance::alarm_member)
            .collect()
    }

    fn has_leader(&self) -> bool {
        self.consensus().leader != 0
    }

    fn is_learner(&self) -> bool {
        let registry = self.shard.registry();
        let own = registry
            .members
            .iter()
            .find(|(id, _)| *id == self.settings.member_id);
        own.is_some_and(|(_, member)| member.learner)
    }

    async fn probe_read(&self, serializable: bool) -> Result<(), Status> {
        if !serializable {
            self.shard.read_gate().await?;
        }
        Ok(())
    }

    fn health_checked(&self, kind: &'static str, check: &'static str, passed: bool) {
        crate::metrics::health_checked(kind, check, passed);
    }

    fn write_metrics(&self, out: &mut String) {
        crate::metrics::write(self, out);
    }
}
