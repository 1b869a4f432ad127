//! Checks of KV requests before anything is proposed or read, in etcd's order and words.
//!
//! Pure functions. Not here: what only the state can tell (leases, revisions, missing keys: apply).

use std::collections::BTreeSet;

use prost::Message;
use ringkv_engine::error::{ApiError, Code};

use crate::pb::etcdserverpb::request_op::Request;
use crate::pb::etcdserverpb::{
    DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest, range_request,
};
use crate::wire::Status;

/// What etcd's own envelope adds to a request when it measures it against `--max-request-bytes`.
const ENVELOPE_BYTES: usize = 16;

/// Refuses a request that is larger than `--max-request-bytes`.
///
/// # Errors
/// `RequestTooLarge`.
pub fn size(request: &impl Message, request_bytes_max: usize) -> Result<(), ApiError> {
    if request.encoded_len() + ENVELOPE_BYTES > request_bytes_max {
        return Err(ApiError::RequestTooLarge);
    }
    Ok(())
}

/// Checks a range.
///
/// # Errors
/// `EmptyKey`, `InvalidSortOption`.
pub fn range(r: &RangeRequest) -> Result<(), ApiError> {
    if r.key.is_empty() {
        return Err(ApiError::EmptyKey);
    }
    if range_request::SortOrder::try_from(r.sort_order).is_err()
        || range_request::SortTarget::try_from(r.sort_target).is_err()
    {
        return Err(ApiError::InvalidSortOption);
    }
    Ok(())
}

/// Checks what RangeStream does not offer.
///
/// # Errors
/// `Unimplemented`, in etcd's words.
pub fn range_stream(r: &RangeRequest) -> Result<(), Status> {
    let by_key = r.sort_target == range_request::SortTarget::Key as i32;
    let ascending = r.sort_order == range_request::SortOrder::Ascend as i32;
    if r.sort_order != range_request::SortOrder::None as i32 && !(by_key && ascending) {
        let text = "RangeStream does not support custom sort orders";
        return Err(Status::new(Code::Unimplemented, text));
    }
    let filters = [
        r.min_mod_revision,
        r.max_mod_revision,
        r.min_create_revision,
        r.max_create_revision,
    ];
    if filters != [0; 4] {
        let text = "RangeStream does not support revision filters";
        return Err(Status::new(Code::Unimplemented, text));
    }
    Ok(())
}

/// Checks a put.
///
/// # Errors
/// `EmptyKey`, `ValueProvided`, `LeaseProvided`.
pub fn put(r: &PutRequest) -> Result<(), ApiError> {
    if r.key.is_empty() {
        return Err(ApiError::EmptyKey);
    }
    if r.ignore_value && !r.value.is_empty() {
        return Err(ApiError::ValueProvided);
    }
    if r.ignore_lease && r.lease != 0 {
        return Err(ApiError::LeaseProvided);
    }
    Ok(())
}

/// Checks a delete.
///
/// # Errors
/// `EmptyKey`.
pub fn delete(r: &DeleteRangeRequest) -> Result<(), ApiError> {
    if r.key.is_empty() {
        Err(ApiError::EmptyKey)
    } else {
        Ok(())
    }
}

/// Checks a transaction with all that is nested in it.
///
/// # Errors
/// `TooManyOps`, `EmptyKey`, those of its operations, `KeyNotFound` for an empty operation,
/// `DuplicateKey` where a key would be changed twice.
pub fn txn(r: &TxnRequest, ops_max: usize) -> Result<(), ApiError> {
    txn_ops(r, ops_max)?;
    overlaps(&r.success)?;
    overlaps(&r.failure)?;
    Ok(())
}

fn txn_ops(r: &TxnRequest, ops_max: usize) -> Result<(), ApiError> {
    let count = r.compare.len().max(r.success.len()).max(r.failure.len());
    let Some(left) = ops_max.checked_sub(count) else {
        return Err(ApiError::TooManyOps);
    };
    if r.compare.iter().any(|c| c.key.is_empty()) {
        return Err(ApiError::EmptyKey);
    }
    for op in r.success.iter().chain(&r.failure) {
        match &op.request {
            Some(Request::RequestRange(r)) => range(r)?,
            Some(Request::RequestPut(r)) => put(r)?,
            Some(Request::RequestDeleteRange(r)) => delete(r)?,
            Some(Request::RequestTxn(r)) => txn_ops(r, left)?,
            None => return Err(ApiError::KeyNotFound),
        }
    }
    Ok(())
}

/// Keys put and ranges deleted by a list of operations.
#[derive(Default)]
struct Changes<'r> {
    puts: BTreeSet<&'r [u8]>,
    deletes: Vec<Deleted<'r>>,
}

/// A deleted range as etcd's interval tree takes it: a `range_end` of one zero byte is an ordinary
/// end there, so that a delete "from this key on" overlaps nothing.
#[derive(Clone, Copy)]
struct Deleted<'r> {
    key: &'r [u8],
    range_end: &'r [u8],
}

impl Deleted<'_> {
    fn covers(&self, key: &[u8]) -> bool {
        match self.range_end {
            [] => self.key == key,
            end => self.key <= key && key < end,
        }
    }
}

impl<'r> Changes<'r> {
    fn put(&mut self, key: &'r [u8]) -> Result<(), ApiError> {
        if self.deletes.iter().any(|d| d.covers(key)) || !self.puts.insert(key) {
            return Err(ApiError::DuplicateKey);
        }
        Ok(())
    }
}

fn overlaps(ops: &[RequestOp]) -> Result<Changes<'_>, ApiError> {
    let mut changes = Changes::default();
    for op in ops {
        if let Some(Request::RequestDeleteRange(d)) = &op.request {
            changes.deletes.push(Deleted {
                key: &d.key,
                range_end: &d.range_end,
            });
        }
    }
    for op in ops {
        let Some(Request::RequestTxn(nested)) = &op.request else {
            continue;
        };
        let then = overlaps(&nested.success)?;
        let otherwise = overlaps(&nested.failure)?;
        for key in &then.puts {
            changes.put(key)?;
        }
        for key in &otherwise.puts {
            // Only one of the two branches is taken.
            if !then.puts.contains(key) {
                changes.put(key)?;
            } else if changes.deletes.iter().any(|d| d.covers(key)) {
                return Err(ApiError::DuplicateKey);
            }
        }
        changes
            .deletes
            .extend(then.deletes.iter().chain(&otherwise.deletes));
    }
    for op in ops {
        if let Some(Request::RequestPut(p)) = &op.request {
            changes.put(&p.key)?;
        }
    }
    Ok(changes)
}

/// Whether a transaction only reads: etcd then takes it past the log. Nested ones count as writes.
#[must_use]
pub fn is_read_only(r: &TxnRequest) -> bool {
    r.success
        .iter()
        .chain(&r.failure)
        .all(|op| matches!(op.request, Some(Request::RequestRange(_))))
}

/// Whether all ranges of a read-only transaction are serializable.
#[must_use]
pub fn is_serializable(r: &TxnRequest) -> bool {
    r.success
        .iter()
        .chain(&r.failure)
        .all(|op| matches!(&op.request, Some(Request::RequestRange(range)) if range.serializable))
}

/// Bytes that a transaction may put: of the larger branch, as etcd's quota counts.
#[must_use]
pub fn put_bytes(r: &TxnRequest) -> usize {
    let of = |ops: &[RequestOp]| -> usize {
        let bytes = |op: &RequestOp| match &op.request {
            Some(Request::RequestPut(p)) => p.key.len() + p.value.len(),
            Some(Request::RequestTxn(t)) => put_bytes(t),
            _ => 0,
        };
        ops.iter().map(bytes).sum()
    };
    of(&r.success).max(of(&r.failure))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn op(request: Request) -> RequestOp {
        RequestOp {
            request: Some(request),
        }
    }

    fn put_of(key: &'static str) -> RequestOp {
        op(Request::RequestPut(PutRequest {
            key: key.into(),
            ..Default::default()
        }))
    }

    fn delete_of(key: &'static str, end: &'static str) -> RequestOp {
        let (key, range_end) = (key.into(), end.into());
        op(Request::RequestDeleteRange(DeleteRangeRequest {
            key,
            range_end,
            ..Default::default()
        }))
    }

    fn nested(success: Vec<RequestOp>, failure: Vec<RequestOp>) -> RequestOp {
        op(Request::RequestTxn(TxnRequest {
            success,
            failure,
            ..Default::default()
        }))
    }

    fn check(success: Vec<RequestOp>) -> Result<(), ApiError> {
        txn(
            &TxnRequest {
                success,
                ..Default::default()
            },
            128,
        )
    }

    #[test]
    fn a_key_is_changed_once() {
        let duplicate = Err(ApiError::DuplicateKey);
        assert_eq!(check(vec![put_of("a"), put_of("b")]), Ok(()));
        assert_eq!(check(vec![put_of("a"), put_of("a")]), duplicate);
        assert_eq!(check(vec![put_of("b"), delete_of("a", "c")]), duplicate);
        assert_eq!(check(vec![put_of("c"), delete_of("a", "c")]), Ok(()));
        assert_eq!(
            check(vec![put_of("b"), delete_of("a", "\0")]),
            Ok(()),
            "as etcd has it"
        );
        assert_eq!(
            check(vec![nested(vec![put_of("a")], vec![put_of("a")])]),
            Ok(())
        );
        assert_eq!(
            check(vec![nested(vec![put_of("a")], vec![]), put_of("a")]),
            duplicate
        );
        assert_eq!(
            check(vec![nested(vec![delete_of("a", "")], vec![]), put_of("a")]),
            duplicate
        );
        let twice = vec![
            nested(vec![put_of("a")], vec![]),
            nested(vec![], vec![put_of("a")]),
        ];
        assert_eq!(check(twice), duplicate);
    }

    #[test]
    fn operations_are_counted_with_the_nested_ones() {
        let many = |n| (0..n).map(|_| delete_of("k", "")).collect::<Vec<_>>();
        let t = |success| {
            txn(
                &TxnRequest {
                    success,
                    ..Default::default()
                },
                4,
            )
        };
        assert_eq!(t(many(4)), Ok(()));
        assert_eq!(t(many(5)), Err(ApiError::TooManyOps));
        assert_eq!(t(vec![nested(many(3), vec![])]), Ok(()));
        assert_eq!(t(vec![nested(many(4), vec![])]), Err(ApiError::TooManyOps));
    }

    #[test]
    fn an_operation_without_content_is_refused() {
        assert_eq!(
            check(vec![RequestOp { request: None }]),
            Err(ApiError::KeyNotFound)
        );
    }
}
