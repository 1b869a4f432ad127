//! The KV service: check, convert, propose or read, convert.

use bytes::Bytes;
use ringkv_engine::apply::Outcome;
use ringkv_engine::command::{ArchivedCommand, Command, Envelope, Origin, check};
use ringkv_engine::error::ApiError;
use ringkv_engine::mvcc::range::{RangeResult, RangeScan};
use ringkv_engine::revtable::kv;
use ringkv_engine::txn;

use crate::node::Node;
use crate::pb::etcdserverpb::*;
use crate::service::Replies;
use crate::wire::Status;
use crate::{convert, guard};

/// Reads that a range is begun anew for when compactions keep overtaking it.
const RESTARTS_MAX: usize = 8;

/// KV.Range.
///
/// # Errors
/// etcd's.
pub async fn range(node: &Node, request: &RangeRequest) -> Result<RangeResponse, Status> {
    guard::range(request)?;
    if !request.serializable {
        node.shard.read_gate().await?;
    }
    let result = scan(node, request).await?;
    let header = node.header().at(result.revision);
    Ok(convert::range_reply(result, header))
}

/// Runs the range in steps, each under a pin of its own, giving way to others in between.
async fn scan(node: &Node, request: &RangeRequest) -> Result<RangeResult, ApiError> {
    let query = convert::range(request);
    let budget = node.shard.limits().pin_keys_max;
    'anew: for _ in 0..RESTARTS_MAX {
        let first = node.shard.read(|state| {
            let mut scan = RangeScan::begin(&query, state)?;
            let more = scan.step(state, budget)?;
            Ok::<_, ApiError>((scan, more))
        });
        let (mut scan, mut more) = first?;
        while more {
            glommio::executor().yield_task_queue_now().await;
            match node.shard.read(|state| scan.step(state, budget)) {
                Ok(m) => more = m,
                // It read at what was current then: what is current now serves as well.
                Err(ApiError::Compacted) if request.revision <= 0 => continue 'anew,
                Err(error) => return Err(error),
            }
        }
        return Ok(scan.finish());
    }
    Err(ApiError::Compacted)
}

/// Keys in the first chunk of a RangeStream.
const STREAM_KEYS_FIRST: i64 = 10;

/// KV.RangeStream: the same keys in chunks, all at one revision; header, count and more come with
/// the last.
///
/// # Errors
/// etcd's.
pub async fn range_stream(
    node: &Node,
    mut request: RangeRequest,
    replies: &Replies<RangeStreamResponse>,
) -> Result<(), Status> {
    guard::range(&request)?;
    guard::range_stream(&request)?;
    if !request.serializable {
        node.shard.read_gate().await?;
    }
    if request.count_only {
        let result = scan(node, &request).await?;
        let header = node.header().at(result.revision);
        return send(replies, convert::range_reply(result, header)).await;
    }
    let limit = if request.limit == 0 {
        i64::MAX
    } else {
        request.limit
    };
    request.limit = STREAM_KEYS_FIRST.min(limit);
    let (mut count, mut revision) = (0, None);
    loop {
        let chunk = scan(node, &request).await?;
        let revision = *revision.get_or_insert(chunk.revision);
        if request.revision == 0 {
            request.revision = revision as i64;
        }
        count += chunk.kvs.len() as i64;
        let next = chunk
            .kvs
            .last()
            .filter(|_| chunk.more)
            .map(|kv| [kv::key(kv), &[0]].concat());
        let bytes: usize = chunk.kvs.iter().map(Bytes::len).sum();
        let more = chunk.more;
        let done = !more || count == limit;
        let mut reply = convert::range_reply(chunk, None);
        (reply.more, reply.count) = (false, 0);
        if let Some(next) = next {
            request.key = next.into();
        }
        if done {
            reply.header = node.header().at(revision);
            (reply.more, reply.count) = (more, count);
            if more {
                let rest = RangeRequest {
                    count_only: true,
                    limit: 0,
                    ..request.clone()
                };
                reply.count += scan(node, &rest).await?.count as i64;
            }
        }
        send(replies, reply).await?;
        if done {
            return Ok(());
        }
        let chunk_limit = next_chunk_keys(request.limit, bytes, node.settings.request_bytes_max);
        request.limit = chunk_limit.min(limit - count);
    }
}

async fn send(replies: &Replies<RangeStreamResponse>, reply: RangeResponse) -> Result<(), Status> {
    replies
        .send(&RangeStreamResponse {
            range_response: Some(reply),
        })
        .await?;
    Ok(())
}

/// Aims at chunks of about `bytes_wanted`, as etcd does: doubles or halves when far off.
fn next_chunk_keys(keys: i64, bytes: usize, bytes_wanted: usize) -> i64 {
    if bytes < bytes_wanted / 2 {
        keys.saturating_mul(2)
    } else if bytes > bytes_wanted * 2 {
        (keys / 2).max(1)
    } else {
        keys
    }
}

/// KV.Put.
///
/// # Errors
/// etcd's.
pub async fn put(node: &Node, request: &PutRequest) -> Result<PutResponse, Status> {
    guard::put(request)?;
    guard::size(request, node.settings.request_bytes_max)?;
    crate::maintenance::check_quota(node, request.key.len() + request.value.len()).await?;
    let Outcome::Put(result) = node.shard.propose(request.into()).await? else {
        unreachable!("a command has an outcome of its kind")
    };
    let header = node.header().at(result.revision);
    Ok(convert::put_reply(result, header))
}

/// KV.DeleteRange.
///
/// # Errors
/// etcd's.
pub async fn delete_range(
    node: &Node,
    request: &DeleteRangeRequest,
) -> Result<DeleteRangeResponse, Status> {
    guard::delete(request)?;
    guard::size(request, node.settings.request_bytes_max)?;
    let Outcome::DeleteRange(result) = node.shard.propose(request.into()).await? else {
        unreachable!("a command has an outcome of its kind")
    };
    let header = node.header().at(result.revision);
    Ok(convert::delete_reply(result, header))
}

/// KV.Txn.
///
/// # Errors
/// etcd's.
pub async fn txn(node: &Node, request: &TxnRequest) -> Result<TxnResponse, Status> {
    guard::txn(request, node.settings.txn_ops_max)?;
    if guard::is_read_only(request) {
        if !guard::is_serializable(request) {
            node.shard.read_gate().await?;
        }
        let command = Command::from(request);
        let record = Envelope {
            origin: Origin::NONE,
            command,
        }
        .to_bytes();
        let ArchivedCommand::Txn(archived) = &check(&record).expect("just made").command else {
            unreachable!("made from a transaction")
        };
        let result = node.shard.read(|state| txn::read_only(state, archived))?;
        let header = node.header().at(result.revision);
        return Ok(convert::txn_reply(result, header));
    }
    guard::size(request, node.settings.request_bytes_max)?;
    crate::maintenance::check_quota(node, guard::put_bytes(request)).await?;
    let Outcome::Txn(result) = node.shard.propose(request.into()).await? else {
        unreachable!("a command has an outcome of its kind")
    };
    let header = node.header().at(result.revision);
    Ok(convert::txn_reply(result, header))
}

/// KV.Compact; with `physical` it waits until what was compacted is gone.
///
/// # Errors
/// etcd's.
pub async fn compact(
    node: &Node,
    request: &CompactionRequest,
) -> Result<CompactionResponse, Status> {
    let command = Command::Compact {
        revision: request.revision,
    };
    let Outcome::Compact { revision } = node.shard.propose(command).await? else {
        unreachable!("a command has an outcome of its kind")
    };
    if request.physical {
        let mut follower = node.shard.follow();
        while node.shard.pin(|view| view.pruned) < request.revision {
            follower.next_view().await;
        }
    }
    Ok(CompactionResponse {
        header: node.header().at(revision),
    })
}
