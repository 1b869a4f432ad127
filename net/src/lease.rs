//! The Lease service. Grants and revokes go through the log; keepalives and questions to the
//! leader's lessor.

use core::cell::Cell;

use ringkv_engine::apply::Outcome;
use ringkv_engine::command::Command;
use ringkv_engine::error::ApiError;
use ringkv_engine::types::LeaseId;
use ringkv_raft::sequencer::{LeaseAnswer, LeaseAsk};

use crate::node::Node;
use crate::pb::etcdserverpb::*;
use crate::service::{Replies, Requests};
use crate::wire::Status;

/// Draws lease ids for grants that name none: the time of start, the shard, a count.
#[derive(Debug)]
pub struct IdSource {
    next: Cell<u64>,
}

impl IdSource {
    /// For `shard` of a run that started `start_ms` after the Unix epoch.
    #[must_use]
    pub fn new(start_ms: u64, shard: u8) -> Self {
        // 40 bits of time, 5 of shards, 18 of counts that may run on into the time.
        let base = (start_ms & ((1 << 40) - 1)) << 23 | u64::from(shard & 31) << 18;
        Self {
            next: Cell::new(base),
        }
    }

    fn draw(&self) -> LeaseId {
        self.next.set(self.next.get() + 1);
        (self.next.get() & (i64::MAX as u64)) as LeaseId
    }
}

/// Lease.LeaseGrant.
///
/// # Errors
/// etcd's.
pub async fn grant(node: &Node, r: &LeaseGrantRequest) -> Result<LeaseGrantResponse, Status> {
    crate::maintenance::check_quota(node, 0).await?;
    let id = if r.id == 0 {
        node.lease_ids.draw()
    } else {
        r.id
    };
    let outcome = node
        .shard
        .propose(Command::LeaseGrant { id, ttl: r.ttl })
        .await?;
    let Outcome::LeaseGrant { id, ttl, revision } = outcome else {
        unreachable!("a command has an outcome of its kind")
    };
    let header = node.header().at(revision);
    Ok(LeaseGrantResponse {
        header,
        id,
        ttl,
        error: String::new(),
    })
}

/// Lease.LeaseRevoke.
///
/// # Errors
/// etcd's.
pub async fn revoke(node: &Node, r: &LeaseRevokeRequest) -> Result<LeaseRevokeResponse, Status> {
    let outcome = node
        .shard
        .propose(Command::LeaseRevoke { id: r.id })
        .await?;
    let Outcome::LeaseRevoke { revision } = outcome else {
        unreachable!("a command has an outcome of its kind")
    };
    Ok(LeaseRevokeResponse {
        header: node.header().at(revision),
    })
}

/// Lease.LeaseKeepAlive: a reply for each request, in order; TTL 0 for a lease that is not there.
///
/// # Errors
/// etcd's.
pub async fn keep_alive(
    node: &Node,
    mut requests: Requests<LeaseKeepAliveRequest>,
    replies: &Replies<LeaseKeepAliveResponse>,
) -> Result<(), Status> {
    while let Some(request) = requests.next().await? {
        // As of before the renewal: who sees a later revision knows that the lease was there.
        let header = node.header_now();
        let ttl = match node.shard.ask_lessor(LeaseAsk::KeepAlive(request.id)).await {
            Ok(LeaseAnswer::KeptAlive(ttl)) => ttl,
            Ok(_) => unreachable!("an answer is of its question's kind"),
            Err(ApiError::LeaseNotFound) => 0,
            Err(error) => return Err(error.into()),
        };
        replies
            .send(&LeaseKeepAliveResponse {
                header,
                id: request.id,
                ttl,
            })
            .await?;
    }
    Ok(())
}

/// Lease.LeaseTimeToLive: TTL -1 for a lease that is not there.
///
/// # Errors
/// etcd's.
pub async fn time_to_live(
    node: &Node,
    r: &LeaseTimeToLiveRequest,
) -> Result<LeaseTimeToLiveResponse, Status> {
    let answer = node
        .shard
        .ask_lessor(LeaseAsk::TimeToLive(r.id, r.keys))
        .await;
    let header = node.header_now();
    let missing = LeaseTimeToLiveResponse {
        header,
        id: r.id,
        ttl: -1,
        ..Default::default()
    };
    match answer {
        Ok(LeaseAnswer::TimeToLive {
            granted,
            remaining,
            keys,
        }) => Ok(LeaseTimeToLiveResponse {
            ttl: remaining,
            granted_ttl: granted,
            keys,
            ..missing
        }),
        Ok(_) => unreachable!("an answer is of its question's kind"),
        Err(ApiError::LeaseNotFound) => Ok(missing),
        Err(error) => Err(error.into()),
    }
}

/// Lease.LeaseLeases.
///
/// # Errors
/// etcd's.
pub async fn leases(node: &Node) -> Result<LeaseLeasesResponse, Status> {
    let LeaseAnswer::List(ids) = node.shard.ask_lessor(LeaseAsk::List).await? else {
        unreachable!("an answer is of its question's kind")
    };
    let leases = ids.into_iter().map(|id| LeaseStatus { id }).collect();
    Ok(LeaseLeasesResponse {
        header: node.header_now(),
        leases,
    })
}
