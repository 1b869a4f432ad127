//! The Maintenance service, and the quota that every write is measured against.

use ringkv_engine::alarm;
use ringkv_engine::apply::Outcome;
use ringkv_engine::command::Command;
use ringkv_engine::error::ApiError;
use ringkv_engine::mvcc::hash::{HashScan, KvHash};
use ringkv_engine::revtable::REVISION_OVERHEAD_BYTES;
use ringkv_engine::types::MemberId;

use crate::http::ETCD_VERSION;
use crate::node::Node;
use crate::pb::etcdserverpb::*;
use crate::wire::Status;

const ACTIVATE: i32 = 1;

/// Maintenance.Alarm.
///
/// # Errors
/// etcd's.
pub async fn alarm(node: &Node, r: &AlarmRequest) -> Result<AlarmResponse, Status> {
    let alarms = propose_alarm(node, r.action, r.member_id, r.alarm).await?;
    let alarms = alarms.iter().map(alarm_member).collect();
    Ok(AlarmResponse {
        header: node.header_now(),
        alarms,
    })
}

async fn propose_alarm(
    node: &Node,
    action: i32,
    member: MemberId,
    alarm: i32,
) -> Result<Vec<(MemberId, i32)>, ApiError> {
    let outcome = node
        .shard
        .propose(Command::Alarm {
            action,
            member,
            alarm,
        })
        .await?;
    let Outcome::Alarm { alarms } = outcome else {
        unreachable!("a command has an outcome of its kind")
    };
    Ok(alarms)
}

/// As etcd's message has it.
#[must_use]
pub fn alarm_member(&(member_id, alarm): &(MemberId, i32)) -> AlarmMember {
    AlarmMember { member_id, alarm }
}

/// Refuses a write of `bytes` beyond `--quota-backend-bytes`, and raises the alarm for it.
///
/// # Errors
/// `NoSpace`.
pub async fn check_quota(node: &Node, bytes: usize) -> Result<(), ApiError> {
    let used = node.shard.pin(|view| view.bytes);
    if used + bytes as u64 + REVISION_OVERHEAD_BYTES <= node.settings.quota_bytes {
        return Ok(());
    }
    // As etcd: the request is refused whether or not the alarm gets through.
    let _ = propose_alarm(node, ACTIVATE, node.settings.member_id, alarm::NOSPACE).await;
    Err(ApiError::NoSpace)
}

/// Maintenance.Status.
#[must_use]
pub fn status(node: &Node) -> StatusResponse {
    let consensus = node.consensus();
    let (bytes, applied) = node.shard.pin(|view| (view.bytes, view.applied));
    let registry = node.shard.registry();
    let mut errors = Vec::new();
    if consensus.leader == 0 {
        errors.push(ApiError::NoLeader.text().to_owned());
    }
    for &(member, alarm) in &registry.alarms {
        let name = AlarmType::try_from(alarm).map_or("UNKNOWN", |a| a.as_str_name());
        errors.push(format!("memberID:{member} alarm:{name} "));
    }
    StatusResponse {
        header: node.header_now(),
        version: ETCD_VERSION.to_owned(),
        db_size: bytes as i64,
        leader: consensus.leader,
        raft_index: consensus.committed,
        raft_term: consensus.term,
        raft_applied_index: applied,
        errors,
        db_size_in_use: bytes as i64,
        is_learner: crate::service::Member::is_learner(node),
        storage_version: "3.7.0".to_owned(),
        db_size_quota: node.settings.quota_bytes as i64,
        downgrade_info: Some(DowngradeInfo::default()),
    }
}

/// Maintenance.Defragment: space is free for use again without it.
#[must_use]
pub fn defragment() -> DefragmentResponse {
    DefragmentResponse::default()
}

/// Maintenance.HashKV.
///
/// # Errors
/// etcd's.
pub async fn hash_kv(node: &Node, r: &HashKvRequest) -> Result<HashKvResponse, Status> {
    let hash = match past_hash(node, r.revision) {
        Some(hash) => hash,
        None => compute_hash(node, r.revision).await?,
    };
    Ok(HashKvResponse {
        header: node.header_now(),
        hash: hash.hash,
        compact_revision: hash.compacted,
        // etcd gives a negative revision back as it came; nothing is hashed for it.
        hash_revision: if r.revision < 0 {
            r.revision
        } else {
            hash.revision as i64
        },
    })
}

fn past_hash(node: &Node, revision: i64) -> Option<KvHash> {
    let hashes = node.shard.pin(|view| view.hashes.clone());
    hashes
        .iter()
        .find(|h| h.revision as i64 == revision)
        .copied()
}

async fn compute_hash(node: &Node, revision: i64) -> Result<KvHash, ApiError> {
    let budget = node.shard.limits().pin_keys_max;
    let mut scan = node.shard.read(|state| HashScan::begin(revision, state))?;
    while scan.step(budget) {
        glommio::executor().yield_task_queue_now().await;
    }
    Ok(scan.finish())
}
