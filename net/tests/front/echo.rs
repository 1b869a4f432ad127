//! Services without a store that answer at once: what is left is the front.

use core::cell::Cell;
use core::future::pending;
use std::sync::mpsc;

use bytes::Bytes;
use ringkv_engine::error::ApiError;
use ringkv_net::pb::etcdserverpb::*;
use ringkv_net::pb::v3lockpb::{LockRequest, LockResponse};
use ringkv_net::service::{Ctx, Member, Replies, Requests, Services};
use ringkv_net::wire::{EncodedKv, KvFields, Status};

/// Counts what it is asked, and echoes.
pub struct Echo {
    revision: Cell<i64>,
    locks: mpsc::Sender<&'static str>,
}

/// Says so when a call is dropped.
struct Dropped<'a>(&'a mpsc::Sender<&'static str>);

impl Drop for Dropped<'_> {
    fn drop(&mut self) {
        // Nobody listens in the example.
        let _ = self.0.send("dropped");
    }
}

impl Echo {
    /// An echo that says a word to `locks` when a lock call begins and when it is dropped.
    pub const fn new(locks: mpsc::Sender<&'static str>) -> Self {
        Self {
            revision: Cell::new(0),
            locks,
        }
    }

    fn header(&self) -> Option<ResponseHeader> {
        Some(ResponseHeader {
            revision: self.revision.get(),
            ..ResponseHeader::default()
        })
    }
}

impl Services for Echo {
    /// Counts; gives the pair back as the previous one if asked to.
    async fn put(&self, _ctx: &Ctx, request: PutRequest) -> Result<PutResponse, Status> {
        self.revision.update(|revision| revision + 1);
        let fields = KvFields {
            key: &request.key,
            value: &request.value,
            ..KvFields::default()
        };
        let prev_kv = request.prev_kv.then(|| EncodedKv::encode(&fields));
        Ok(PutResponse {
            header: self.header(),
            prev_kv,
        })
    }

    /// A value of `limit` bytes.
    async fn range(&self, _ctx: &Ctx, request: RangeRequest) -> Result<RangeResponse, Status> {
        let value = vec![b'x'; usize::try_from(request.limit).unwrap_or(0)];
        let fields = KvFields {
            key: &request.key,
            value: &value,
            ..KvFields::default()
        };
        let kvs = vec![EncodedKv::encode(&fields)];
        Ok(RangeResponse {
            header: self.header(),
            kvs,
            count: 1,
            more: false,
        })
    }

    /// Fails.
    async fn delete_range(
        &self,
        _ctx: &Ctx,
        _request: DeleteRangeRequest,
    ) -> Result<DeleteRangeResponse, Status> {
        Err(ApiError::NoLeader.into())
    }

    /// Never answers.
    async fn lock(&self, _ctx: &Ctx, _request: LockRequest) -> Result<LockResponse, Status> {
        let _ = self.locks.send("begun");
        let _dropped = Dropped(&self.locks);
        pending().await
    }

    /// Confirms each watcher, then ends with the client.
    async fn watch(
        &self,
        _ctx: &Ctx,
        mut requests: Requests<WatchRequest>,
        replies: &Replies<WatchResponse>,
    ) -> Result<(), Status> {
        let mut watch_id = 0;
        while requests.next().await?.is_some() {
            let header = self.header();
            replies
                .send(&WatchResponse {
                    header,
                    watch_id,
                    created: true,
                    ..WatchResponse::default()
                })
                .await?;
            watch_id += 1;
        }
        Ok(())
    }

    /// 64 pieces of 1 MiB.
    async fn snapshot(
        &self,
        _ctx: &Ctx,
        _request: SnapshotRequest,
        replies: &Replies<SnapshotResponse>,
    ) -> Result<(), Status> {
        let blob = Bytes::from(vec![7; 1 << 20]);
        for remaining_bytes in (0..64).rev().map(|piece| piece << 20) {
            let blob = blob.clone();
            replies
                .send(&SnapshotResponse {
                    remaining_bytes,
                    blob,
                    ..SnapshotResponse::default()
                })
                .await?;
        }
        Ok(())
    }

    async fn status(&self, ctx: &Ctx, _request: StatusRequest) -> Result<StatusResponse, Status> {
        let version = ctx
            .client_api_version
            .as_deref()
            .unwrap_or("none")
            .to_owned();
        Ok(StatusResponse {
            header: self.header(),
            version,
            ..StatusResponse::default()
        })
    }
}

impl Member for Echo {
    fn cluster_version(&self) -> Option<String> {
        Some("3.7.0".to_owned())
    }

    fn storage_version(&self) -> Option<String> {
        Some("3.7.0".to_owned())
    }

    fn alarms(&self) -> Vec<AlarmMember> {
        Vec::new()
    }

    fn has_leader(&self) -> bool {
        true
    }

    fn is_learner(&self) -> bool {
        false
    }

    async fn probe_read(&self, _serializable: bool) -> Result<(), Status> {
        Ok(())
    }

    fn health_checked(&self, _kind: &'static str, _check: &'static str, _passed: bool) {}

    fn write_metrics(&self, out: &mut String) {
        out.push_str("echo_revision 1\n");
    }
}
