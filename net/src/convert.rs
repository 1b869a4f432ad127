//! Between etcd's messages and the engine's commands and results. Pure functions, one a message.

use prost::bytes::Bytes;
use ringkv_engine::command::{Command, Compare, DeleteRange, Put, Range, Target, Txn, TxnOp};
use ringkv_engine::mvcc::range::RangeResult;
use ringkv_engine::txn::{DeleteResult, OpResult, PutResult, TxnResult};

use crate::pb::etcdserverpb::compare::{CompareTarget, TargetUnion};
use crate::pb::etcdserverpb::request_op::Request;
use crate::pb::etcdserverpb::response_op::Response;
use crate::pb::etcdserverpb::{self as pb, ResponseHeader, ResponseOp};
use crate::wire::EncodedKv;

/// A range, borrowed from its request.
#[must_use]
pub fn range(r: &pb::RangeRequest) -> Range<'_> {
    Range {
        key: &r.key,
        range_end: &r.range_end,
        limit: r.limit,
        revision: r.revision,
        sort_order: r.sort_order,
        sort_target: r.sort_target,
        keys_only: r.keys_only,
        count_only: r.count_only,
        min_mod_revision: r.min_mod_revision,
        max_mod_revision: r.max_mod_revision,
        min_create_revision: r.min_create_revision,
        max_create_revision: r.max_create_revision,
    }
}

/// A put, borrowed from its request.
#[must_use]
pub fn put(r: &pb::PutRequest) -> Put<'_> {
    Put {
        key: &r.key,
        value: &r.value,
        lease: r.lease,
        prev_kv: r.prev_kv,
        ignore_value: r.ignore_value,
        ignore_lease: r.ignore_lease,
    }
}

/// A delete, borrowed from its request.
#[must_use]
pub fn delete(r: &pb::DeleteRangeRequest) -> DeleteRange<'_> {
    DeleteRange {
        key: &r.key,
        range_end: &r.range_end,
        prev_kv: r.prev_kv,
    }
}

/// A transaction, borrowed from its request, which `guard::txn` has let pass.
#[must_use]
pub fn txn(r: &pb::TxnRequest) -> Txn<'_> {
    Txn {
        compare: r.compare.iter().map(compare).collect(),
        success: r.success.iter().map(op).collect(),
        failure: r.failure.iter().map(op).collect(),
    }
}

fn op(op: &pb::RequestOp) -> TxnOp<'_> {
    match op
        .request
        .as_ref()
        .expect("guard::txn refuses empty operations")
    {
        Request::RequestRange(r) => TxnOp::Range(range(r)),
        Request::RequestPut(r) => TxnOp::Put(put(r)),
        Request::RequestDeleteRange(r) => TxnOp::DeleteRange(delete(r)),
        Request::RequestTxn(r) => TxnOp::Txn(txn(r)),
    }
}

/// A value of another kind than the target's counts as zero, as in etcd.
fn compare(c: &pb::Compare) -> Compare<'_> {
    let union = c.target_union.as_ref();
    let target = match CompareTarget::try_from(c.target) {
        Ok(CompareTarget::Version) => Target::Version(match union {
            Some(TargetUnion::Version(v)) => *v,
            _ => 0,
        }),
        Ok(CompareTarget::Create) => Target::Create(match union {
            Some(TargetUnion::CreateRevision(v)) => *v,
            _ => 0,
        }),
        Ok(CompareTarget::Mod) => Target::Mod(match union {
            Some(TargetUnion::ModRevision(v)) => *v,
            _ => 0,
        }),
        Ok(CompareTarget::Lease) => Target::Lease(match union {
            Some(TargetUnion::Lease(v)) => *v,
            _ => 0,
        }),
        Ok(CompareTarget::Value) => Target::Value(match union {
            Some(TargetUnion::Value(v)) => v,
            _ => &[],
        }),
        Err(_) => Target::Unknown,
    };
    Compare {
        key: &c.key,
        range_end: &c.range_end,
        result: c.result,
        target,
    }
}

/// Who answers: etcd puts it into the header of every reply.
#[derive(Clone, Copy, Debug)]
pub struct Header {
    /// Cluster id.
    pub cluster_id: u64,
    /// Member id.
    pub member_id: u64,
    /// Current term.
    pub raft_term: u64,
}

impl Header {
    /// At `revision`.
    #[must_use]
    pub fn at(&self, revision: u64) -> Option<ResponseHeader> {
        let Self {
            cluster_id,
            member_id,
            raft_term,
        } = *self;
        Some(ResponseHeader {
            cluster_id,
            member_id,
            revision: revision as i64,
            raft_term,
        })
    }
}

/// Inside a transaction a header has only the revision.
fn inner(revision: u64) -> Option<ResponseHeader> {
    Some(ResponseHeader {
        revision: revision as i64,
        ..ResponseHeader::default()
    })
}

fn kvs(kvs: Vec<Bytes>) -> Vec<EncodedKv> {
    kvs.into_iter().map(EncodedKv).collect()
}

/// Reply to a range.
#[must_use]
pub fn range_reply(r: RangeResult, header: Option<ResponseHeader>) -> pb::RangeResponse {
    pb::RangeResponse {
        header,
        kvs: kvs(r.kvs),
        more: r.more,
        count: r.count as i64,
    }
}

/// Reply to a put.
#[must_use]
pub fn put_reply(r: PutResult, header: Option<ResponseHeader>) -> pb::PutResponse {
    pb::PutResponse {
        header,
        prev_kv: r.prev_kv.map(EncodedKv),
    }
}

/// Reply to a delete.
#[must_use]
pub fn delete_reply(r: DeleteResult, header: Option<ResponseHeader>) -> pb::DeleteRangeResponse {
    let (deleted, prev_kvs) = (r.deleted as i64, kvs(r.prev_kvs));
    pb::DeleteRangeResponse {
        header,
        deleted,
        prev_kvs,
    }
}

/// Reply to a transaction.
#[must_use]
pub fn txn_reply(r: TxnResult, header: Option<ResponseHeader>) -> pb::TxnResponse {
    let responses = r.responses.into_iter().map(op_reply).collect();
    pb::TxnResponse {
        header,
        succeeded: r.succeeded,
        responses,
    }
}

fn op_reply(result: OpResult) -> ResponseOp {
    let response = match result {
        OpResult::Range(r) => {
            let header = inner(r.revision);
            Response::ResponseRange(range_reply(r, header))
        }
        OpResult::Put(r) => {
            let header = inner(r.revision);
            Response::ResponsePut(put_reply(r, header))
        }
        OpResult::DeleteRange(r) => {
            let header = inner(r.revision);
            Response::ResponseDeleteRange(delete_reply(r, header))
        }
        // etcd leaves the header of a nested transaction empty.
        OpResult::Txn(r) => Response::ResponseTxn(txn_reply(r, Some(ResponseHeader::default()))),
    };
    ResponseOp {
        response: Some(response),
    }
}

/// A command for each request that goes through the log as it is.
impl<'r> From<&'r pb::PutRequest> for Command<'r> {
    fn from(r: &'r pb::PutRequest) -> Self {
        Self::Put(put(r))
    }
}

impl<'r> From<&'r pb::DeleteRangeRequest> for Command<'r> {
    fn from(r: &'r pb::DeleteRangeRequest) -> Self {
        Self::DeleteRange(delete(r))
    }
}

impl<'r> From<&'r pb::TxnRequest> for Command<'r> {
    fn from(r: &'r pb::TxnRequest) -> Self {
        Self::Txn(txn(r))
    }
}
