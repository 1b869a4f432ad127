//! etcd's state machine, naive: every change is kept for ever, every question looks at all of them.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use ringkv_engine::alarm;
use ringkv_engine::apply::Outcome;
use ringkv_engine::error::ApiError;
use ringkv_engine::mvcc::hash::KvHash;
use ringkv_engine::mvcc::range::{RangeResult, order, target};
use ringkv_engine::revtable::REVISION_OVERHEAD_BYTES;
use ringkv_engine::txn::{DeleteResult, OpResult, PutResult, TxnResult};

use crate::op::{Change, Compare, Delete, Op, Put, Query, Target, Transaction};

/// mvccpb.KeyValue.
#[derive(Clone, PartialEq, Debug, Default)]
struct Kv {
    key: Vec<u8>,
    created: u64,
    modified: u64,
    version: u64,
    value: Vec<u8>,
    lease: i64,
}

fn varint(mut n: u64, out: &mut Vec<u8>) {
    while n > 127 {
        out.push((n % 128) as u8 + 128);
        n /= 128;
    }
    out.push(n as u8);
}

impl Kv {
    /// As protobuf.
    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        let bytes = |tag: u8, bytes: &[u8], out: &mut Vec<u8>| {
            if !bytes.is_empty() {
                out.push(tag << 3 | 2);
                varint(bytes.len() as u64, out);
                out.extend_from_slice(bytes);
            }
        };
        bytes(1, &self.key, &mut out);
        for (tag, n) in [(2u8, self.created), (3, self.modified), (4, self.version)] {
            if n != 0 {
                out.push(tag << 3);
                varint(n, &mut out);
            }
        }
        bytes(5, &self.value, &mut out);
        if self.lease != 0 {
            out.push(6 << 3);
            varint(self.lease as u64, &mut out);
        }
        out
    }

    fn bytes(&self) -> Bytes {
        self.encode().into()
    }
}

/// One revision.
#[derive(Clone, Debug)]
struct Entry {
    main: u64,
    sub: u64,
    key: Vec<u8>,
    /// `None`: deleted.
    kv: Option<Kv>,
}

impl Entry {
    fn encoded(&self) -> Vec<u8> {
        let tombstone = Kv {
            key: self.key.clone(),
            ..Kv::default()
        };
        self.kv.as_ref().unwrap_or(&tombstone).encode()
    }

    /// Key and value in etcd's bucket.
    fn in_bucket(&self) -> Vec<u8> {
        let mut out = self.main.to_be_bytes().to_vec();
        out.push(b'_');
        out.extend_from_slice(&self.sub.to_be_bytes());
        if self.kv.is_none() {
            out.push(b't');
        }
        out.extend_from_slice(&self.encoded());
        out
    }
}

fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ (0x82f6_3b78 * (crc & 1))
        })
    })
}

fn within(key: &[u8], start: &[u8], end: &[u8]) -> bool {
    match end {
        [] => key == start,
        [0] => key >= start,
        end => key >= start && key < end,
    }
}

/// Granted TTL, remaining TTL and keys of a lease, by its id.
pub type LeaseRow = (i64, (i64, i64, Vec<Vec<u8>>));

#[derive(Clone)]
pub struct Model {
    log: Vec<Entry>,
    pub revision: u64,
    pub compacted: i64,
    /// Granted and remaining TTL of each lease.
    leases: BTreeMap<i64, (i64, i64)>,
    ttl_min: i64,
    alarms: BTreeSet<i32>,
    pub compaction_hashes: Vec<KvHash>,
    /// Changes of the transaction that is on its way.
    changes: u64,
}

impl Model {
    pub fn new(ttl_min: i64) -> Self {
        Self {
            log: Vec::new(),
            revision: 1,
            compacted: -1,
            leases: BTreeMap::new(),
            ttl_min,
            alarms: BTreeSet::new(),
            compaction_hashes: Vec::new(),
            changes: 0,
        }
    }

    /// As it was.
    pub fn as_of(&self, revision: u64, compacted: i64) -> Self {
        let mut past = self.clone();
        past.log.retain(|e| e.main <= revision);
        (past.revision, past.compacted) = (revision, compacted);
        past
    }

    /// Main revision as the transaction sees it.
    fn now(&self) -> u64 {
        self.revision + u64::from(self.changes > 0)
    }

    /// Newest change of each key at `at`.
    fn newest(&self, at: u64) -> BTreeMap<&[u8], &Entry> {
        let entries = self.log.iter().filter(|e| e.main <= at);
        entries.map(|e| (&e.key[..], e)).collect()
    }

    fn live(&self, at: u64, key: &[u8], end: &[u8]) -> Vec<Kv> {
        let newest = self.newest(at).into_iter();
        let inside = newest.filter(|(k, _)| within(k, key, end));
        inside.filter_map(|(_, e)| e.kv.clone()).collect()
    }

    fn live_now(&self, key: &[u8]) -> Option<Kv> {
        self.live(self.now(), key, b"").pop()
    }

    /// Each lease with its TTL and keys.
    pub fn leases(&self) -> Vec<LeaseRow> {
        let live = self.live(self.revision, b"\0", b"\0");
        let keys = |id| {
            let of = live.iter().filter(|kv| kv.lease == id);
            of.map(|kv| kv.key.clone()).collect()
        };
        self.leases
            .iter()
            .map(|(id, (ttl, remaining))| (*id, (*ttl, *remaining, keys(*id))))
            .collect()
    }

    pub fn range(&self, q: &Query, revision: u64, compacted: i64) -> Result<RangeResult, ApiError> {
        if q.revision > revision as i64 {
            return Err(ApiError::FutureRev);
        }
        let at = if q.revision <= 0 {
            revision as i64
        } else {
            q.revision
        };
        if at < compacted {
            return Err(ApiError::Compacted);
        }
        let mut kvs = self.live(at as u64, &q.key, &q.range_end);
        let count = kvs.len() as u64;
        if q.count_only {
            kvs.clear();
        }
        let in_order = q.sort_order == order::NONE
            || (q.sort_target == target::KEY && q.sort_order == order::ASCEND);
        let limit = usize::try_from(q.limit).unwrap_or(0);
        if in_order && q.filters == [0; 4] && limit > 0 {
            kvs.truncate(limit.saturating_add(1));
        }
        if q.keys_only && q.sort_target != target::VALUE {
            kvs.iter_mut().for_each(|kv| kv.lease = 0);
        }
        let [min_mod, max_mod, min_create, max_create] = q.filters;
        kvs.retain(|kv| {
            let (modified, created) = (kv.modified as i64, kv.created as i64);
            (min_mod == 0 || modified >= min_mod)
                && (max_mod == 0 || modified <= max_mod)
                && (min_create == 0 || created >= min_create)
                && (max_create == 0 || created <= max_create)
        });
        sort(&mut kvs, q.sort_target, q.sort_order);
        let more = limit > 0 && kvs.len() > limit;
        if more {
            kvs.truncate(limit);
        }
        if q.keys_only {
            kvs.iter_mut().for_each(|kv| kv.value.clear());
        }
        Ok(RangeResult {
            revision,
            more,
            count,
            kvs: kvs.iter().map(Kv::bytes).collect(),
        })
    }

    fn append(&mut self, key: &[u8], kv: Option<Kv>) {
        self.log.push(Entry {
            main: self.revision + 1,
            sub: self.changes,
            key: key.to_vec(),
            kv,
        });
        self.changes += 1;
    }

    fn commit(&mut self) {
        self.revision = self.now();
        self.changes = 0;
    }

    fn check_put(&self, p: &Put) -> Result<(), ApiError> {
        if p.lease != 0 && !self.leases.contains_key(&p.lease) {
            return Err(ApiError::LeaseNotFound);
        }
        if (p.ignore_value || p.ignore_lease) && self.live_now(&p.key).is_none() {
            return Err(ApiError::KeyNotFound);
        }
        Ok(())
    }

    fn put(&mut self, p: &Put) -> PutResult {
        let previous = self.live_now(&p.key);
        let old = previous.clone().unwrap_or_default();
        let modified = self.revision + 1;
        let kv = Kv {
            key: p.key.clone(),
            created: if old.version == 0 {
                modified
            } else {
                old.created
            },
            modified,
            version: old.version + 1,
            value: if p.ignore_value {
                old.value
            } else {
                p.value.clone()
            },
            lease: if p.ignore_lease { old.lease } else { p.lease },
        };
        self.append(&p.key, Some(kv));
        PutResult {
            revision: modified,
            prev_kv: previous.filter(|_| p.prev_kv).map(|kv| kv.bytes()),
        }
    }

    fn delete(&mut self, d: &Delete) -> DeleteResult {
        let gone = self.live(self.now(), &d.key, &d.range_end);
        for kv in &gone {
            self.append(&kv.key, None);
        }
        DeleteResult {
            revision: self.now(),
            deleted: gone.len() as u64,
            prev_kvs: gone.iter().filter(|_| d.prev_kv).map(Kv::bytes).collect(),
        }
    }

    fn holds(&self, c: &Compare) -> bool {
        let kvs = self.live(self.revision, &c.key, &c.range_end);
        let one = |kv: &Kv| {
            let ordering = match &c.target {
                Target::Version(v) => (kv.version as i64).cmp(v),
                Target::Create(v) => (kv.created as i64).cmp(v),
                Target::Mod(v) => (kv.modified as i64).cmp(v),
                Target::Value(v) => kv.value.cmp(v),
                Target::Lease(v) => kv.lease.cmp(v),
                Target::Unknown => Ordering::Equal,
            };
            match c.result {
                0 => ordering == Ordering::Equal,
                1 => ordering == Ordering::Greater,
                2 => ordering == Ordering::Less,
                3 => ordering != Ordering::Equal,
                _ => true,
            }
        };
        if kvs.is_empty() {
            return !matches!(c.target, Target::Value(_)) && one(&Kv::default());
        }
        kvs.iter().all(one)
    }

    /// Replaces each transaction by the branch it takes, seen from before all of them.
    fn choose<'t>(&self, txn: &'t Transaction) -> Chosen<'t> {
        let succeeded = txn.compares.iter().all(|c| self.holds(c));
        let ops = if succeeded {
            &txn.success
        } else {
            &txn.failure
        };
        let nested = |op: &'t Op| match op {
            Op::Txn(txn) => (op, Some(self.choose(txn))),
            _ => (op, None),
        };
        Chosen {
            succeeded,
            ops: ops.iter().map(nested).collect(),
        }
    }

    fn check(&self, chosen: &Chosen<'_>) -> Result<(), ApiError> {
        for (op, nested) in &chosen.ops {
            match op {
                Op::Range(q) if q.revision > self.revision as i64 => {
                    return Err(ApiError::FutureRev);
                }
                Op::Range(q) if q.revision != 0 && q.revision < self.compacted => {
                    return Err(ApiError::Compacted);
                }
                Op::Put(p) => self.check_put(p)?,
                _ => {}
            }
            if let Some(nested) = nested {
                self.check(nested)?;
            }
        }
        Ok(())
    }

    fn execute(&mut self, chosen: &Chosen<'_>) -> TxnResult {
        let responses = chosen.ops.iter().map(|(op, nested)| match (op, nested) {
            (Op::Range(q), _) => {
                let result = self.range(q, self.now(), self.compacted);
                OpResult::Range(result.expect("checked"))
            }
            (Op::Put(p), _) => OpResult::Put(self.put(p)),
            (Op::Delete(d), _) => OpResult::DeleteRange(self.delete(d)),
            (_, Some(nested)) => OpResult::Txn(self.execute(nested)),
            (Op::Txn(_), None) => unreachable!("chosen"),
        });
        TxnResult {
            responses: responses.collect(),
            revision: 0,
            succeeded: chosen.succeeded,
        }
    }

    pub fn txn(&mut self, txn: &Transaction) -> Result<TxnResult, ApiError> {
        let chosen = self.choose(txn);
        self.check(&chosen)?;
        let mut result = self.execute(&chosen);
        self.commit();
        result.revision = self.revision;
        Ok(result)
    }

    fn revoke(&mut self, id: i64) -> Result<(), ApiError> {
        self.leases.remove(&id).ok_or(ApiError::LeaseNotFound)?;
        for kv in self.live(self.revision, b"\0", b"\0") {
            if kv.lease == id {
                self.append(&kv.key, None);
            }
        }
        self.commit();
        Ok(())
    }

    fn grant(&mut self, id: i64, ttl: i64) -> Result<i64, ApiError> {
        if id == 0 {
            return Err(ApiError::LeaseNotFound);
        }
        if ttl > 9_000_000_000 {
            return Err(ApiError::LeaseTtlTooLarge);
        }
        if self.leases.contains_key(&id) {
            return Err(ApiError::LeaseExist);
        }
        let ttl = ttl.max(self.ttl_min);
        self.leases.insert(id, (ttl, 0));
        Ok(ttl)
    }

    /// `compacting`: a compaction is not finished, so that this one's hash is not kept.
    fn compact(&mut self, at: i64, compacting: bool) -> Result<(), ApiError> {
        if at <= self.compacted {
            return Err(ApiError::Compacted);
        }
        if at > self.revision as i64 {
            return Err(ApiError::FutureRev);
        }
        if !compacting {
            let hash = self.hash(at as u64, self.compacted, true);
            self.compaction_hashes.push(hash);
            let beyond = self.compaction_hashes.len().saturating_sub(10);
            self.compaction_hashes.drain(..beyond);
        }
        self.compacted = at;
        Ok(())
    }

    fn guard(&self, change: &Change) -> Result<(), ApiError> {
        fn puts(txn: &Transaction) -> bool {
            txn.success.iter().chain(&txn.failure).any(|op| match op {
                Op::Put(_) => true,
                Op::Txn(nested) => puts(nested),
                _ => false,
            })
        }
        if self.alarms.contains(&alarm::CORRUPT)
            && !matches!(change, Change::Alarm { .. } | Change::Remaining { .. })
        {
            return Err(ApiError::Corrupt);
        }
        let grows = match change {
            Change::Put(_) | Change::Grant { .. } => true,
            Change::Txn(txn) => puts(txn),
            _ => false,
        };
        if self.alarms.contains(&alarm::NOSPACE) && grows {
            return Err(ApiError::NoSpace);
        }
        Ok(())
    }

    pub fn change(&mut self, change: &Change, compacting: bool) -> Outcome {
        self.try_change(change, compacting)
            .unwrap_or_else(Outcome::Failed)
    }

    fn try_change(&mut self, change: &Change, compacting: bool) -> Result<Outcome, ApiError> {
        self.guard(change)?;
        Ok(match change {
            Change::Put(p) => {
                self.check_put(p)?;
                let result = self.put(p);
                self.commit();
                Outcome::Put(result)
            }
            Change::Delete(d) => {
                let result = self.delete(d);
                self.commit();
                Outcome::DeleteRange(result)
            }
            Change::Txn(txn) => Outcome::Txn(self.txn(txn)?),
            Change::Compact { back } => {
                self.compact(self.revision as i64 - back, compacting)?;
                Outcome::Compact {
                    revision: self.revision,
                }
            }
            Change::Grant { id, ttl } => Outcome::LeaseGrant {
                id: *id,
                ttl: self.grant(*id, *ttl)?,
                revision: self.revision,
            },
            Change::Revoke { id } => {
                self.revoke(*id)?;
                Outcome::LeaseRevoke {
                    revision: self.revision,
                }
            }
            Change::Expire { ids, fenced } => {
                for id in ids.iter().filter(|_| !fenced) {
                    let _ = self.revoke(*id);
                }
                Outcome::Done
            }
            Change::Remaining { id, ttl } => {
                if let Some((granted, remaining)) = self.leases.get_mut(id) {
                    *remaining = (*ttl).clamp(0, *granted);
                }
                Outcome::Done
            }
            Change::Alarm { action, alarm } => Outcome::Alarm {
                alarms: self.alarm(*action, *alarm),
            },
        })
    }

    fn alarm(&mut self, action: i32, alarm: i32) -> Vec<(u64, i32)> {
        let alarms: Vec<i32> = match action {
            0 => {
                let raised = self.alarms.iter().copied();
                raised.filter(|a| alarm == 0 || alarm == *a).collect()
            }
            1 if alarm != 0 => {
                self.alarms.insert(alarm);
                vec![alarm]
            }
            2 => self.alarms.take(&alarm).into_iter().collect(),
            _ => vec![],
        };
        alarms.into_iter().map(|a| (1, a)).collect()
    }

    pub fn hash_kv(&self, at: i64, revision: u64, compacted: i64) -> Result<KvHash, ApiError> {
        if at > 0 && at < compacted {
            return Err(ApiError::Compacted);
        }
        if at > revision as i64 {
            return Err(ApiError::FutureRev);
        }
        let at = if at == 0 { revision } else { at.max(0) as u64 };
        Ok(self.hash(at, compacted, false))
    }

    /// etcd's kvHasher over a bucket from which the compaction at `compacted` has dropped what it
    /// drops.
    fn hash(&self, at: u64, compacted: i64, of_compaction: bool) -> KvHash {
        let id = |e: &Entry| (e.main, e.sub);
        let newest = self.newest(at);
        let keep: BTreeSet<(u64, u64)> = newest
            .values()
            .filter(|e| e.kv.is_some() || (of_compaction && e.main == at))
            .map(|e| id(e))
            .collect();
        let left = self.left(compacted);
        let mut input = b"key".to_vec();
        for e in self.log.iter().filter(|e| e.main <= at) {
            let covered = e.main as i64 <= compacted;
            if covered && !left.contains(&id(e)) {
                continue;
            }
            if covered && !keep.is_empty() && !keep.contains(&id(e)) {
                continue;
            }
            if e.main as i64 == compacted && e.kv.is_none() {
                continue;
            }
            input.extend_from_slice(&e.in_bucket());
        }
        KvHash {
            hash: crc32c(&input),
            compacted,
            revision: at,
        }
    }

    /// What a finished compaction leaves of the revisions that it covers: what is live there.
    fn left(&self, compacted: i64) -> BTreeSet<(u64, u64)> {
        let newest = self.newest(compacted.max(0) as u64).into_values();
        let live = newest.filter(|e| e.kv.is_some());
        live.map(|e| (e.main, e.sub)).collect()
    }

    /// What the quota counts once compaction at `compacted` is finished: it leaves a tombstone of
    /// that very revision, too.
    pub fn bytes(&self, compacted: i64) -> u64 {
        let newest = self.newest(compacted.max(0) as u64);
        let left = |e: &Entry| {
            newest
                .get(&e.key[..])
                .is_some_and(|n| (n.main, n.sub) == (e.main, e.sub))
                && (e.kv.is_some() || e.main as i64 == compacted)
        };
        let kept = self
            .log
            .iter()
            .filter(|e| e.main as i64 > compacted || left(e));
        kept.map(|e| e.encoded().len() as u64 + REVISION_OVERHEAD_BYTES)
            .sum()
    }
}

/// The branch of a transaction, and of those nested in it.
struct Chosen<'t> {
    succeeded: bool,
    ops: Vec<(&'t Op, Option<Chosen<'t>>)>,
}

fn sort(kvs: &mut [Kv], by: i32, direction: i32) {
    let compare = |a: &Kv, b: &Kv| match by {
        target::KEY => a.key.cmp(&b.key),
        target::VERSION => a.version.cmp(&b.version),
        target::CREATE => a.created.cmp(&b.created),
        target::MOD => a.modified.cmp(&b.modified),
        _ => a.value.cmp(&b.value),
    };
    match direction {
        order::NONE if by == target::KEY => {}
        order::DESCEND => kvs.sort_by(|a, b| compare(b, a)),
        _ => kvs.sort_by(compare),
    }
}
