//! Transactions: compare, check, then execute, over the archived request in place.
//!
//! As in etcd, all comparisons, nested ones too, see the state before the transaction; the branches
//! they choose form a path, in the order in which execution meets the nested transactions. Checks
//! that can fail (leases, revisions, missing keys) come before the first change, so a transaction
//! changes all it says or nothing.
//!
//! Not here: limits and overlapping keys, which the front refuses (`net/src/guard.rs`).

use core::cmp::Ordering;
use core::ops::ControlFlow;

use bytes::Bytes;

use crate::command::{
    ArchivedCompare, ArchivedDeleteRange, ArchivedPut, ArchivedRange, ArchivedTarget, ArchivedTxn,
    ArchivedTxnOp, Range,
};
use crate::error::ApiError;
use crate::lease::Lessor;
use crate::mvcc::range::{RangeResult, RangeScan, Span};
use crate::mvcc::{State, Txn};
use crate::revtable::kv::Fields;
use crate::types::KeyMeta;

/// Result of a put.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PutResult {
    /// Header revision.
    pub revision: u64,
    /// The encoded KeyValue before, if asked for and there.
    pub prev_kv: Option<Bytes>,
}

/// Result of a delete.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DeleteResult {
    /// Header revision.
    pub revision: u64,
    /// Keys deleted.
    pub deleted: u64,
    /// Their encoded KeyValues before, if asked for.
    pub prev_kvs: Vec<Bytes>,
}

/// Result of a transaction.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TxnResult {
    /// Header revision; of a nested transaction etcd leaves it out.
    pub revision: u64,
    /// Whether all comparisons held.
    pub succeeded: bool,
    /// One for each operation of the branch taken.
    pub responses: Vec<OpResult>,
}

/// Result of one operation.
#[derive(Clone, PartialEq, Eq, Debug)]
#[allow(missing_docs, reason = "as TxnOp")]
pub enum OpResult {
    Range(RangeResult),
    Put(PutResult),
    DeleteRange(DeleteResult),
    Txn(TxnResult),
}

impl<'a> From<&'a ArchivedRange<'_>> for Range<'a> {
    fn from(r: &'a ArchivedRange<'_>) -> Self {
        Self {
            key: &r.key,
            range_end: &r.range_end,
            limit: r.limit.to_native(),
            revision: r.revision.to_native(),
            sort_order: r.sort_order.to_native(),
            sort_target: r.sort_target.to_native(),
            keys_only: r.keys_only,
            count_only: r.count_only,
            min_mod_revision: r.min_mod_revision.to_native(),
            max_mod_revision: r.max_mod_revision.to_native(),
            min_create_revision: r.min_create_revision.to_native(),
            max_create_revision: r.max_create_revision.to_native(),
        }
    }
}

fn branch<'t, 'a>(txn: &'t ArchivedTxn<'a>, succeeded: bool) -> &'t [ArchivedTxnOp<'a>] {
    if succeeded {
        &txn.success
    } else {
        &txn.failure
    }
}

/// Which branches are taken: this transaction's first, then those of the nested ones on it.
pub fn path(state: &State<'_>, txn: &ArchivedTxn<'_>) -> Vec<bool> {
    let mut taken = Vec::new();
    add_path(state, txn, &mut taken);
    taken
}

fn add_path(state: &State<'_>, txn: &ArchivedTxn<'_>, taken: &mut Vec<bool>) {
    let succeeded = txn.compare.iter().all(|c| holds(state, c));
    taken.push(succeeded);
    for op in branch(txn, succeeded) {
        if let ArchivedTxnOp::Txn(nested) = op {
            add_path(state, nested, taken);
        }
    }
}

/// Whether a comparison holds for every live key of its range; of no key, for zeros, and never for
/// a value.
fn holds(state: &State<'_>, compare: &ArchivedCompare<'_>) -> bool {
    let span = Span::of(&compare.key, &compare.range_end);
    let mut any = false;
    let flow = state.visit(&span, None, false, |_, meta| {
        if meta.is_tombstone() {
            return ControlFlow::Continue(());
        }
        any = true;
        if holds_for(state, compare, meta) {
            ControlFlow::Continue(())
        } else {
            ControlFlow::Break(())
        }
    });
    if any {
        return flow.is_continue();
    }
    !matches!(compare.target, ArchivedTarget::Value(_))
        && holds_for(state, compare, KeyMeta::default())
}

fn holds_for(state: &State<'_>, compare: &ArchivedCompare<'_>, meta: KeyMeta) -> bool {
    let ordering = match &compare.target {
        ArchivedTarget::Version(v) => (meta.version as i64).cmp(&v.to_native()),
        ArchivedTarget::Create(v) => (meta.created as i64).cmp(&v.to_native()),
        ArchivedTarget::Mod(v) => (meta.modified.main as i64).cmp(&v.to_native()),
        ArchivedTarget::Lease(v) => meta.lease.cmp(&v.to_native()),
        ArchivedTarget::Value(v) => Fields::of(state.kv(meta)).value.cmp(v),
        ArchivedTarget::Unknown => Ordering::Equal,
    };
    match compare.result.to_native() {
        0 => ordering.is_eq(),
        1 => ordering.is_gt(),
        2 => ordering.is_lt(),
        3 => ordering.is_ne(),
        _ => true,
    }
}

/// Checks everything on the path that could fail.
///
/// # Errors
/// `LeaseNotFound`, `KeyNotFound`, `FutureRev`, `Compacted`.
pub fn check(
    state: &State<'_>,
    lessor: &Lessor,
    txn: &ArchivedTxn<'_>,
    path: &[bool],
) -> Result<(), ApiError> {
    check_ops(state, lessor, txn, &mut path.iter())
}

type Path<'p> = core::slice::Iter<'p, bool>;

fn next_branch(path: &mut Path<'_>) -> bool {
    *path
        .next()
        .expect("a path has an entry for each transaction on it")
}

fn check_ops(
    state: &State<'_>,
    lessor: &Lessor,
    txn: &ArchivedTxn<'_>,
    path: &mut Path<'_>,
) -> Result<(), ApiError> {
    for op in branch(txn, next_branch(path)) {
        match op {
            ArchivedTxnOp::Range(r) => check_range(state, r.revision.to_native())?,
            ArchivedTxnOp::Put(p) => check_put(state, lessor, p)?,
            ArchivedTxnOp::DeleteRange(_) => {}
            ArchivedTxnOp::Txn(nested) => check_ops(state, lessor, nested, path)?,
        }
    }
    Ok(())
}

/// Unlike a range of its own, one in a transaction may not name a negative revision.
fn check_range(state: &State<'_>, revision: i64) -> Result<(), ApiError> {
    if revision > state.revision as i64 {
        return Err(ApiError::FutureRev);
    }
    if revision != 0 && revision < state.compacted {
        return Err(ApiError::Compacted);
    }
    Ok(())
}

fn check_put(state: &State<'_>, lessor: &Lessor, put: &ArchivedPut<'_>) -> Result<(), ApiError> {
    if put.lease != 0 && !lessor.contains(put.lease.to_native()) {
        return Err(ApiError::LeaseNotFound);
    }
    if (put.ignore_value || put.ignore_lease) && state.live(&put.key).is_none() {
        return Err(ApiError::KeyNotFound);
    }
    Ok(())
}

/// Executes a transaction of ranges only, on any core.
///
/// # Errors
/// As [`check`].
pub fn read_only(state: &State<'_>, txn: &ArchivedTxn<'_>) -> Result<TxnResult, ApiError> {
    let succeeded = path(state, txn)[0];
    let ops = branch(txn, succeeded);
    for op in ops {
        let ArchivedTxnOp::Range(r) = op else {
            panic!("checked to be read-only")
        };
        check_range(state, r.revision.to_native())?;
    }
    let responses = ops.iter().map(|op| {
        let ArchivedTxnOp::Range(r) = op else {
            panic!("checked to be read-only")
        };
        range(state, r).map(OpResult::Range)
    });
    let responses = responses.collect::<Result<_, _>>()?;
    Ok(TxnResult {
        revision: state.revision,
        succeeded,
        responses,
    })
}

fn range(state: &State<'_>, range: &ArchivedRange<'_>) -> Result<RangeResult, ApiError> {
    let mut scan = RangeScan::begin(&range.into(), state)?;
    while scan.step(state, usize::MAX)? {}
    Ok(scan.finish())
}

/// Executes changes within one store transaction, keeping leases in step.
pub struct Executor<'s, 'l> {
    txn: Txn<'s>,
    lessor: &'l mut Lessor,
    /// Whether somebody here waits for the results; if not, nothing is read for them.
    wanted: bool,
}

impl<'s, 'l> Executor<'s, 'l> {
    /// Begins; see [`Self::commit`].
    pub fn new(txn: Txn<'s>, lessor: &'l mut Lessor, wanted: bool) -> Self {
        Self {
            txn,
            lessor,
            wanted,
        }
    }

    /// Ends the transaction; the store's revision now.
    pub fn commit(self) -> u64 {
        self.txn.commit()
    }

    /// A put on its own: check and change.
    ///
    /// # Errors
    /// `LeaseNotFound`, `KeyNotFound`.
    pub fn checked_put(&mut self, put: &ArchivedPut<'_>) -> Result<PutResult, ApiError> {
        // Without the flags only the lease can be wrong: no look at the state.
        if put.lease != 0 || put.ignore_value || put.ignore_lease {
            self.txn
                .with_state(|state| check_put(state, self.lessor, put))?;
        }
        Ok(self.put(put))
    }

    fn put(&mut self, put: &ArchivedPut<'_>) -> PutResult {
        let mut lease = put.lease.to_native();
        let mut prev_kv = None;
        if (put.prev_kv && self.wanted) || put.ignore_value || put.ignore_lease {
            prev_kv = self.txn.with_state(|state| {
                state
                    .live(&put.key)
                    .map(|meta| Bytes::copy_from_slice(state.kv(meta)))
            });
        }
        let previous = prev_kv.as_deref().map(Fields::of);
        let mut value: &[u8] = &put.value;
        // Checked before the transaction's first change, but an operation before this one may have
        // deleted the key by a range "from this key on". etcd crashes then, on every member and at
        // each start; here there is nothing to keep.
        if put.ignore_value {
            value = previous.map_or(&[], |p| p.value);
        }
        if put.ignore_lease {
            lease = previous.map_or(0, |p| p.lease);
        }
        let old_lease = self.txn.put(&put.key, value, lease);
        if old_lease != lease {
            if old_lease != 0 {
                self.lessor.detach(old_lease, &put.key);
            }
            if lease != 0 {
                self.lessor.attach(lease, &put.key);
            }
        }
        let prev_kv = prev_kv.filter(|_| put.prev_kv && self.wanted);
        PutResult {
            revision: self.txn.revision(),
            prev_kv,
        }
    }

    /// Deletes a range.
    pub fn delete_range(&mut self, delete: &ArchivedDeleteRange<'_>) -> DeleteResult {
        let span = Span::of(&delete.key, &delete.range_end);
        let prev_kvs = delete.prev_kv && self.wanted;
        let (keys, prev_kvs) = self.txn.with_state(|state| {
            let (mut keys, mut kvs) = (Vec::new(), Vec::new());
            let _ = state.visit(&span, None, false, |key, meta| {
                if !meta.is_tombstone() {
                    keys.push(key.to_vec());
                    if prev_kvs {
                        kvs.push(Bytes::copy_from_slice(state.kv(meta)));
                    }
                }
                ControlFlow::<()>::Continue(())
            });
            (keys, kvs)
        });
        self.delete_keys(keys.iter());
        let deleted = keys.len() as u64;
        DeleteResult {
            revision: self.txn.revision(),
            deleted,
            prev_kvs,
        }
    }

    /// Deletes these live keys, in this order.
    pub fn delete_keys(&mut self, keys: impl Iterator<Item = impl AsRef<[u8]>>) {
        for key in keys {
            let key = key.as_ref();
            let lease = self.txn.delete(key);
            if lease != 0 {
                self.lessor.detach(lease, key);
            }
        }
    }

    /// A whole transaction: compare, check, execute.
    ///
    /// # Errors
    /// As [`check`]; nothing is changed then.
    pub fn txn(&mut self, txn: &ArchivedTxn<'_>) -> Result<TxnResult, ApiError> {
        let path = self.txn.with_state(|state| {
            let path = path(state, txn);
            check(state, self.lessor, txn, &path).map(|()| path)
        })?;
        let mut result = self.ops(txn, &mut path.iter());
        result.revision = self.txn.revision();
        Ok(result)
    }

    fn ops(&mut self, txn: &ArchivedTxn<'_>, path: &mut Path<'_>) -> TxnResult {
        let succeeded = next_branch(path);
        let responses = branch(txn, succeeded).iter().map(|op| match op {
            ArchivedTxnOp::Range(r) => OpResult::Range(self.range(r)),
            ArchivedTxnOp::Put(p) => OpResult::Put(self.put(p)),
            ArchivedTxnOp::DeleteRange(d) => OpResult::DeleteRange(self.delete_range(d)),
            ArchivedTxnOp::Txn(nested) => OpResult::Txn(self.ops(nested, path)),
        });
        let responses = responses.collect();
        TxnResult {
            revision: 0,
            succeeded,
            responses,
        }
    }

    fn range(&mut self, r: &ArchivedRange<'_>) -> RangeResult {
        if !self.wanted {
            return RangeResult {
                revision: self.txn.revision(),
                ..RangeResult::default()
            };
        }
        self.txn
            .with_state(|state| range(state, r))
            .expect("checked before the first change")
    }
}
