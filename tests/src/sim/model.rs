//! The state machine, naively: replays log entries over maps and keeps every revision for ever.
//!
//! It shares with the engine the decoding of records and nothing else; it takes the commands that
//! the simulation's clients and the sequencer make, and panics at others.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use ringkv_engine::apply::Outcome;
use ringkv_engine::command::{
    self, ArchivedCommand, ArchivedCompare, ArchivedDeleteRange, ArchivedPut, ArchivedRange,
    ArchivedTarget, ArchivedTxn, ArchivedTxnOp, Origin,
};
use ringkv_engine::error::ApiError;
use ringkv_engine::mvcc::hash::bucket_key;
use ringkv_engine::mvcc::range::RangeResult;
use ringkv_engine::txn::{DeleteResult, OpResult, PutResult, TxnResult};
use ringkv_engine::types::{Index, LeaseId, Revision};

/// One revision of a key.
#[derive(Clone)]
struct Change {
    revision: Revision,
    created: u64,
    version: u64,
    /// `None` for a tombstone.
    value: Option<Vec<u8>>,
    lease: LeaseId,
}

/// A lease's replicated state.
#[derive(Clone, Default)]
pub struct ModelLease {
    /// Granted TTL, seconds.
    pub ttl: i64,
    /// Checkpointed remaining TTL, seconds; 0 for none.
    pub remaining: i64,
    /// Log index of its grant.
    pub granted_index: Index,
    /// Keys that hang on it.
    pub keys: BTreeSet<Vec<u8>>,
}

/// See the module.
pub struct Model {
    /// Index of the last entry replayed.
    pub applied: Index,
    /// Main revision.
    pub revision: u64,
    /// Compact revision, -1 for none.
    pub compacted: i64,
    /// Leases by id.
    pub leases: BTreeMap<LeaseId, ModelLease>,
    keys: BTreeMap<Vec<u8>, Vec<Change>>,
    ttl_min: i64,
    /// Changes of the transaction under way.
    changes: u32,
}

impl Model {
    /// Empty; shorter TTLs are raised to `ttl_min`, seconds.
    #[must_use]
    pub fn new(ttl_min: i64) -> Self {
        Self {
            applied: 0,
            revision: 1,
            compacted: -1,
            leases: BTreeMap::new(),
            keys: BTreeMap::new(),
            ttl_min,
            changes: 0,
        }
    }

    /// Replays the next entry; an empty payload is an entry without a command.
    pub fn apply(&mut self, index: Index, term: u64, payload: &[u8]) -> (Origin, Outcome) {
        assert_eq!(index, self.applied + 1, "the model replays in order");
        self.applied = index;
        if payload.is_empty() {
            return (Origin::NONE, Outcome::Done);
        }
        let envelope = command::check(payload).expect("what is in the log is ours");
        let origin = Origin {
            member: envelope.origin.member.to_native(),
            start: envelope.origin.start.to_native(),
            sequence: envelope.origin.sequence.to_native(),
        };
        let outcome = self.execute(term, &envelope.command);
        self.revision += u64::from(core::mem::take(&mut self.changes) > 0);
        (origin, outcome.unwrap_or_else(Outcome::Failed))
    }

    fn execute(&mut self, term: u64, command: &ArchivedCommand<'_>) -> Result<Outcome, ApiError> {
        Ok(match command {
            ArchivedCommand::Put(put) => {
                self.check_put(put)?;
                Outcome::Put(self.put(put))
            }
            ArchivedCommand::DeleteRange(delete) => Outcome::DeleteRange(self.delete(delete)),
            ArchivedCommand::Txn(txn) => Outcome::Txn(self.txn(txn)?),
            ArchivedCommand::Compact { revision } => {
                let revision = revision.to_native();
                if revision <= self.compacted {
                    return Err(ApiError::Compacted);
                }
                if revision > self.revision as i64 {
                    return Err(ApiError::FutureRev);
                }
                self.compacted = revision;
                Outcome::Compact {
                    revision: self.revision,
                }
            }
            ArchivedCommand::LeaseGrant { id, ttl } => {
                let (id, ttl) = (id.to_native(), ttl.to_native().max(self.ttl_min));
                if self.leases.contains_key(&id) {
                    return Err(ApiError::LeaseExist);
                }
                let lease = ModelLease {
                    ttl,
                    granted_index: self.applied,
                    ..ModelLease::default()
                };
                self.leases.insert(id, lease);
                Outcome::LeaseGrant {
                    id,
                    ttl,
                    revision: self.revision,
                }
            }
            ArchivedCommand::LeaseRevoke { id } => {
                self.revoke(id.to_native())?;
                Outcome::LeaseRevoke {
                    revision: self.revision,
                }
            }
            ArchivedCommand::LeaseExpire {
                ids,
                term: of,
                applied,
            } => {
                let by = applied.to_native();
                for id in ids.iter().map(|id| id.to_native()) {
                    if of.to_native() == term && self.was_granted_by(id, by) {
                        self.revoke(id)?;
                    }
                }
                Outcome::Done
            }
            ArchivedCommand::LeaseCheckpoint { remaining, applied } => {
                for pair in remaining.iter() {
                    let (id, remaining) = (pair.0.to_native(), pair.1.to_native());
                    if self.was_granted_by(id, applied.to_native()) {
                        let lease = self.leases.get_mut(&id).expect("just seen");
                        lease.remaining = remaining.clamp(0, lease.ttl);
                    }
                }
                Outcome::Done
            }
            _ => panic!("no client of the simulation asks for this"),
        })
    }

    fn was_granted_by(&self, id: LeaseId, index: Index) -> bool {
        let lease = self.leases.get(&id);
        lease.is_some_and(|lease| lease.granted_index <= index)
    }

    /// A revoke is a transaction of its own, also within an expiry of several.
    fn revoke(&mut self, id: LeaseId) -> Result<(), ApiError> {
        let lease = self.leases.remove(&id).ok_or(ApiError::LeaseNotFound)?;
        for key in lease.keys {
            self.change(&key, None, 0);
        }
        self.revision += u64::from(core::mem::take(&mut self.changes) > 0);
        Ok(())
    }

    fn now(&self) -> u64 {
        self.revision + u64::from(self.changes > 0)
    }

    /// Writes a revision of `key`, and keeps leases in step.
    fn change(&mut self, key: &[u8], value: Option<Vec<u8>>, lease: LeaseId) {
        let revision = Revision::new(self.revision + 1, self.changes);
        self.changes += 1;
        let history = self.keys.entry(key.to_vec()).or_default();
        let before = history.last().filter(|c| c.value.is_some()).cloned();
        let (created, version) = match (&value, &before) {
            (None, _) => (0, 0),
            (Some(_), Some(before)) => (before.created, before.version + 1),
            (Some(_), None) => (revision.main, 1),
        };
        history.push(Change {
            revision,
            created,
            version,
            value,
            lease,
        });
        if let Some(old) = before.and_then(|before| self.leases.get_mut(&before.lease)) {
            old.keys.remove(key);
        }
        if let Some(new) = self.leases.get_mut(&lease) {
            new.keys.insert(key.to_vec());
        }
    }

    fn check_put(&self, put: &ArchivedPut<'_>) -> Result<(), ApiError> {
        assert!(!put.ignore_lease && !put.ignore_value);
        let lease = put.lease.to_native();
        if lease != 0 && !self.leases.contains_key(&lease) {
            return Err(ApiError::LeaseNotFound);
        }
        Ok(())
    }

    fn put(&mut self, put: &ArchivedPut<'_>) -> PutResult {
        let prev_kv = put.prev_kv.then(|| self.get(&put.key, u64::MAX)).flatten();
        self.change(&put.key, Some(put.value.to_vec()), put.lease.to_native());
        PutResult {
            revision: self.now(),
            prev_kv,
        }
    }

    fn delete(&mut self, delete: &ArchivedDeleteRange<'_>) -> DeleteResult {
        let kvs = self.range(&delete.key, &delete.range_end, u64::MAX);
        for (key, _) in &kvs {
            self.change(key, None, 0);
        }
        DeleteResult {
            revision: self.now(),
            deleted: kvs.len() as u64,
            prev_kvs: match delete.prev_kv {
                true => kvs.into_iter().map(|(_, kv)| kv).collect(),
                false => Vec::new(),
            },
        }
    }

    fn txn(&mut self, txn: &ArchivedTxn<'_>) -> Result<TxnResult, ApiError> {
        let succeeded = txn.compare.iter().all(|compare| self.holds(compare));
        let ops = if succeeded {
            &txn.success
        } else {
            &txn.failure
        };
        for op in ops.iter() {
            if let ArchivedTxnOp::Put(put) = op {
                self.check_put(put)?;
            }
        }
        let responses = ops.iter().map(|op| match op {
            ArchivedTxnOp::Put(put) => OpResult::Put(self.put(put)),
            ArchivedTxnOp::DeleteRange(delete) => OpResult::DeleteRange(self.delete(delete)),
            ArchivedTxnOp::Range(range) => OpResult::Range(self.range_result(range)),
            ArchivedTxnOp::Txn(_) => panic!("no client of the simulation nests"),
        });
        let responses = responses.collect();
        Ok(TxnResult {
            revision: self.now(),
            succeeded,
            responses,
        })
    }

    fn range_result(&self, range: &ArchivedRange<'_>) -> RangeResult {
        let kvs = self.range(&range.key, &range.range_end, u64::MAX);
        RangeResult {
            revision: self.now(),
            more: false,
            count: kvs.len() as u64,
            kvs: kvs.into_iter().map(|(_, kv)| kv).collect(),
        }
    }

    /// Equality of the value, or any comparison of the mod revision, of one key.
    fn holds(&self, compare: &ArchivedCompare<'_>) -> bool {
        let newest = self.keys.get(&compare.key[..]).and_then(|h| h.last());
        let live = newest.filter(|change| change.value.is_some());
        match &compare.target {
            ArchivedTarget::Value(value) => {
                assert_eq!(compare.result.to_native(), 0);
                live.is_some_and(|c| c.value.as_deref() == Some(&value[..]))
            }
            ArchivedTarget::Mod(revision) => {
                let own = live.map_or(0, |c| c.revision.main as i64);
                match compare.result.to_native() {
                    0 => own == revision.to_native(),
                    1 => own > revision.to_native(),
                    2 => own < revision.to_native(),
                    _ => own != revision.to_native(),
                }
            }
            _ => panic!("no client of the simulation compares this"),
        }
    }

    fn get(&self, key: &[u8], at: u64) -> Option<Bytes> {
        let history = self.keys.get(key)?;
        let change = history.iter().rev().find(|c| c.revision.main <= at)?;
        change.value.as_ref()?;
        Some(encode(key, change))
    }

    /// Keys and encoded KeyValues of an interval at main revision `at`, in order of keys.
    #[must_use]
    pub fn range(&self, key: &[u8], range_end: &[u8], at: u64) -> Vec<(Vec<u8>, Bytes)> {
        let within = |k: &Vec<u8>| match range_end {
            [] => k == key,
            [0] => k.as_slice() >= key,
            end => k.as_slice() >= key && k.as_slice() < end,
        };
        let keys = self.keys.keys().filter(|k| within(k));
        keys.filter_map(|k| Some((k.clone(), self.get(k, at)?)))
            .collect()
    }

    /// etcd's HashKV at the current revision, from its definition.
    #[must_use]
    pub fn hash_kv(&self) -> u32 {
        let mut all = BTreeMap::new();
        for (key, history) in &self.keys {
            for (nth, change) in history.iter().enumerate() {
                let superseded = history.get(nth + 1).map(|next| next.revision.main);
                all.insert(change.revision, (key, change, superseded));
            }
        }
        let live = |change: &Change, superseded: Option<u64>, at: u64| {
            change.value.is_some() && superseded.is_none_or(|s| s > at)
        };
        let any_live = all.values().any(|(_, c, s)| live(c, *s, self.revision));
        // Where nothing is left alive etcd hashes what the compaction left.
        let at = if any_live {
            self.revision
        } else {
            self.compacted.max(0) as u64
        };
        let mut crc = crc32c::crc32c(b"key");
        for (revision, (key, change, superseded)) in all {
            if revision.main as i64 > self.compacted || live(change, superseded, at) {
                let (name, len) = bucket_key(revision, change.value.is_none());
                crc = crc32c::crc32c_append(crc, &name[..len]);
                crc = crc32c::crc32c_append(crc, &encode(key, change));
            }
        }
        crc
    }
}

/// `mvccpb.KeyValue` as protobuf writes it: no zero fields; of a tombstone only the key.
fn encode(key: &[u8], change: &Change) -> Bytes {
    let mut out = Vec::new();
    let bytes = |out: &mut Vec<u8>, tag: u8, bytes: &[u8]| {
        if !bytes.is_empty() {
            out.push(tag);
            varint(out, bytes.len() as u64);
            out.extend_from_slice(bytes);
        }
    };
    let number = |out: &mut Vec<u8>, tag: u8, number: u64| {
        if number != 0 {
            out.push(tag);
            varint(out, number);
        }
    };
    bytes(&mut out, 0x0a, key);
    if let Some(value) = &change.value {
        number(&mut out, 0x10, change.created);
        number(&mut out, 0x18, change.revision.main);
        number(&mut out, 0x20, change.version);
        bytes(&mut out, 0x2a, value);
        number(&mut out, 0x30, change.lease as u64);
    }
    out.into()
}

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}
