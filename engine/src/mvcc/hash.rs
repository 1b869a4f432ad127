//! HashKV: a checksum of all key-value pairs up to a revision, byte-equal to etcd's.
//!
//! CRC-32C over "key" (the bucket's name), then over bucket key and encoded KeyValue of each
//! revision in order. Of what a compaction covers only the pairs live at the revision count,
//! whether or not the compaction has got round to dropping the others: etcd filters so as well, and
//! therefore the result does not depend on how far any member is with that.

use super::State;
use crate::error::ApiError;
use crate::revtable::{Record, RevSnapshot};
use crate::types::Revision;

/// The answer of a HashKV.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct KvHash {
    /// CRC-32C.
    pub hash: u32,
    /// Compact revision that the hash was computed under, -1 for none.
    pub compacted: i64,
    /// Revision up to which pairs were hashed.
    pub revision: u64,
}

/// A hash on its way. It holds the revisions as they were when it began, so that no compaction
/// takes away what it has yet to hash, and may go on on any core.
pub struct HashScan {
    revs: RevSnapshot,
    compacted: i64,
    at: u64,
    next: Revision,
    /// Where some key is live at `at`: pairs that compaction covers count if live at `at`.
    some_live: u32,
    /// Where none is, etcd's filter is off: what compaction leaves behind counts.
    none_live: u32,
    any_live: bool,
    /// Whether a tombstone of `at` itself counts as live when it comes to the filter: in etcd the
    /// hash of a compaction keeps it, that of a request does not.
    keeps_tombstone: bool,
}

impl HashScan {
    /// For `revision`, 0 for the current one.
    ///
    /// # Errors
    /// `Compacted`, `FutureRev`.
    pub fn begin(revision: i64, state: &State<'_>) -> Result<Self, ApiError> {
        if revision > 0 && revision < state.compacted {
            return Err(ApiError::Compacted);
        }
        if revision > 0 && revision > state.revision as i64 {
            return Err(ApiError::FutureRev);
        }
        let at = if revision == 0 {
            state.revision
        } else {
            u64::try_from(revision).unwrap_or(0)
        };
        Ok(Self::new(state, at))
    }

    /// For a compaction at `at`, as long as `state` has the compact revision before it.
    #[must_use]
    pub fn of_compaction(at: u64, state: &State<'_>) -> Self {
        Self {
            keeps_tombstone: true,
            ..Self::new(state, at)
        }
    }

    fn new(state: &State<'_>, at: u64) -> Self {
        let seed = crc32c::crc32c(b"key");
        Self {
            revs: state.revs.clone(),
            compacted: state.compacted,
            at,
            next: Revision::ZERO,
            some_live: seed,
            none_live: seed,
            any_live: false,
            keeps_tombstone: false,
        }
    }

    /// Hashes up to `budget` revisions; true while there are more.
    pub fn step(&mut self, budget: usize) -> bool {
        // The clone of a reference count, so that the scan may borrow it.
        let revs = self.revs.clone();
        let mut scan = revs.scan_to(self.next, self.at);
        for record in scan.by_ref().take(budget) {
            self.add(&record);
            self.next = Revision::new(record.revision.main, record.revision.sub + 1);
        }
        scan.next().is_some()
    }

    fn add(&mut self, record: &Record<'_>) {
        let superseded = record.superseded().unwrap_or(u64::MAX);
        let live = !record.tombstone && superseded > self.at;
        let kept = record.tombstone && record.revision.main == self.at && superseded > self.at;
        self.any_live |= live || (kept && self.keeps_tombstone);
        let covered = record.revision.main as i64 <= self.compacted;
        if !covered || live {
            self.some_live = append(self.some_live, record);
        }
        if !covered || (!record.tombstone && superseded > self.compacted.max(0) as u64) {
            self.none_live = append(self.none_live, record);
        }
    }

    /// The result, after the last step.
    #[must_use]
    pub fn finish(self) -> KvHash {
        let hash = if self.any_live {
            self.some_live
        } else {
            self.none_live
        };
        KvHash {
            hash,
            compacted: self.compacted,
            revision: self.at,
        }
    }
}

/// Key of a revision in etcd's bucket: main, '_', sub, both big endian, and a 't' on a tombstone.
#[must_use]
pub fn bucket_key(rev: Revision, tombstone: bool) -> ([u8; 18], usize) {
    let mut key = [0; 18];
    key[..8].copy_from_slice(&rev.main.to_be_bytes());
    key[8] = b'_';
    key[9..17].copy_from_slice(&u64::from(rev.sub).to_be_bytes());
    key[17] = b't';
    (key, if tombstone { 18 } else { 17 })
}

fn append(crc: u32, record: &Record<'_>) -> u32 {
    let (key, len) = bucket_key(record.revision, record.tombstone);
    crc32c::crc32c_append(crc32c::crc32c_append(crc, &key[..len]), record.kv)
}
