//! MVCC: the store's revisions, written by one owner, read through immutable Views.
//!
//! [`Store`] lives on the sequencer's core. It joins the index (newest revision of each key) and
//! the RevTable (every revision kept), gives out revisions (I1), compacts, and publishes a [`View`]
//! for each applied batch. Shards read Views, on their own cores, without a lock (I5).
//!
//! Reads of both kinds go through [`State`]: a View's, or the store's own inside a transaction,
//! which sees what that transaction has written so far.
//!
//! Not here: leases, requests, results (`apply.rs` joins them).

pub mod hash;
pub mod range;
mod sort;

use core::ops::ControlFlow;
use std::collections::VecDeque;
use std::sync::Arc;

use crate::error::ApiError;
use crate::index::{Index, Pinned, Publisher, Reader, Root, Tree};
use crate::limits::Limits;
use crate::revtable::kv::{Encoder, Fields};
use crate::revtable::{Prune, RevSnapshot, RevTable};
use crate::types::{self, KeyMeta, LeaseId, Revision};
use hash::{HashScan, KvHash};
use range::Span;

/// Hashes of past compactions that HashKV still answers with (etcd: 10).
const HASHES_MAX: usize = 10;

/// What the quota counts for a store without revisions, bytes: etcdctl divides by the size it is
/// told, and etcd's own is never 0.
pub const EMPTY_BYTES: u64 = 16 << 10;

/// The store as of one applied batch: immutable, shared by all cores.
pub struct View {
    /// Main revision; 1 while nothing was ever written.
    pub revision: u64,
    /// Revisions below this are refused; -1 before the first compaction.
    pub compacted: i64,
    /// How far compaction has physically got: at most `compacted`.
    pub pruned: i64,
    /// Log index of the last entry applied.
    pub applied: types::Index,
    /// What the quota counts, bytes.
    pub bytes: u64,
    /// Of past compactions, oldest first.
    pub hashes: Arc<[KvHash]>,
    /// All revisions.
    pub revs: RevSnapshot,
    root: Root,
}

impl View {
    /// For reading, for as long as the pin lasts.
    #[must_use]
    pub fn state<'g>(&'g self, pin: &'g Pinned<'_>) -> State<'g> {
        State {
            tree: self.root.read(pin),
            revs: &self.revs,
            revision: self.revision,
            compacted: self.compacted,
        }
    }
}

/// What a read runs on.
#[derive(Clone, Copy)]
pub struct State<'a> {
    /// Newest revision of each key.
    pub tree: Tree<'a>,
    /// All revisions.
    pub revs: &'a RevSnapshot,
    /// Current main revision.
    pub revision: u64,
    /// Compact revision, -1 for none.
    pub compacted: i64,
}

impl State<'_> {
    /// The main revision that a request for `revision` reads at: 0 and below mean the current one.
    ///
    /// # Errors
    /// `FutureRev`, `Compacted`.
    pub fn readable(&self, revision: i64) -> Result<u64, ApiError> {
        match u64::try_from(revision) {
            Err(_) | Ok(0) => Ok(self.revision),
            Ok(r) if r > self.revision => Err(ApiError::FutureRev),
            Ok(_) if revision < self.compacted => Err(ApiError::Compacted),
            Ok(r) => Ok(r),
        }
    }

    /// Visits the entries of `span`, tombstones included, in order of keys or against it, beginning
    /// behind key `after`, until `f` breaks.
    pub fn visit<B>(
        &self,
        span: &Span,
        after: Option<&[u8]>,
        backward: bool,
        mut f: impl FnMut(&[u8], KeyMeta) -> ControlFlow<B>,
    ) -> ControlFlow<B> {
        let behind = after.filter(|_| !backward).map(|key| [key, &[0]].concat());
        let mut cursor = if backward {
            self.tree.range_rev(span.start(), after.or(span.end()))
        } else {
            self.tree
                .range(behind.as_deref().unwrap_or(span.start()), span.end())
        };
        while let Some((key, meta)) = cursor.next() {
            f(key, meta)?;
        }
        ControlFlow::Continue(())
    }

    /// What was known at main revision `at` of the key of which `newest` is known now; `None` if it
    /// was not there.
    #[must_use]
    pub fn meta_at(&self, newest: KeyMeta, at: u64) -> Option<KeyMeta> {
        if newest.modified.main <= at {
            return (!newest.is_tombstone()).then_some(newest);
        }
        let modified = self.revs.at_or_before(newest.modified, at)?;
        let record = self.revs.get(modified).filter(|r| !r.tombstone)?;
        let Fields {
            created,
            version,
            lease,
            ..
        } = Fields::of(record.kv);
        Some(KeyMeta {
            modified,
            created,
            version,
            lease,
        })
    }

    /// The key's newest revision, unless it is deleted.
    #[must_use]
    pub fn live(&self, key: &[u8]) -> Option<KeyMeta> {
        self.tree.get(key).filter(|m| !m.is_tombstone())
    }

    /// The encoded KeyValue of a live revision.
    ///
    /// # Panics
    /// When `meta` is not of this state.
    #[must_use]
    pub fn kv(&self, meta: KeyMeta) -> &[u8] {
        self.revs.get(meta.modified).expect("live").kv
    }
}

/// A compaction that has been ordered; its physical part runs in slices between batches.
struct Compaction {
    revision: u64,
    /// Hash up to the new compact revision under the previous one, before anything is dropped.
    hash: Option<HashScan>,
    prune: Option<Prune>,
}

/// The writer's side of the store.
pub struct Store {
    index: Index,
    revs: RevTable,
    revision: u64,
    compacted: i64,
    pruned: i64,
    compactions: VecDeque<Compaction>,
    hashes: Arc<[KvHash]>,
    publisher: Publisher<View>,
    limits: Limits,
}

impl Store {
    /// Empty, at revision 1, with a first View published.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        let mut index = Index::new();
        let revs = RevTable::new(limits.revtable_chunk_revisions);
        let publisher = Publisher::new(&mut index, |root| View {
            revision: 1,
            compacted: -1,
            pruned: -1,
            applied: 0,
            bytes: EMPTY_BYTES,
            hashes: Arc::from([]),
            revs: revs.snapshot(1),
            root,
        });
        Self {
            index,
            revs,
            revision: 1,
            compacted: -1,
            pruned: -1,
            compactions: VecDeque::new(),
            hashes: Arc::from([]),
            publisher,
            limits,
        }
    }

    /// For readers on any core.
    #[must_use]
    pub fn reader(&self) -> Reader<View> {
        self.publisher.reader()
    }

    /// Main revision of the last transaction.
    #[must_use]
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// Compact revision, -1 for none.
    #[must_use]
    pub fn compacted(&self) -> i64 {
        self.compacted
    }

    /// What the quota counts, bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        EMPTY_BYTES + self.revs.bytes()
    }

    /// All revisions up to the current one, immutable from now on.
    #[must_use]
    pub fn snapshot(&self) -> RevSnapshot {
        self.revs.snapshot(self.revision)
    }

    /// Hashes of past compactions, oldest first.
    #[must_use]
    pub fn hashes(&self) -> Arc<[KvHash]> {
        Arc::clone(&self.hashes)
    }

    /// Runs `f` on the current state, unpublished writes included.
    pub fn with_state<R>(&self, f: impl FnOnce(&State<'_>) -> R) -> R {
        self.with_state_at(self.revision, f)
    }

    fn with_state_at<R>(&self, revision: u64, f: impl FnOnce(&State<'_>) -> R) -> R {
        let revs = self.revs.snapshot(revision);
        let state = State {
            tree: self.index.tree(),
            revs: &revs,
            revision,
            compacted: self.compacted,
        };
        f(&state)
    }

    /// Begins a transaction; it takes a revision with its first change.
    pub fn begin(&mut self) -> Txn<'_> {
        Txn {
            store: self,
            changes: 0,
        }
    }

    /// Publishes all that was written since the last call as one View (I5).
    pub fn publish(&mut self, applied: types::Index) {
        let bytes = self.bytes();
        let view = |root| View {
            revision: self.revision,
            compacted: self.compacted,
            pruned: self.pruned,
            applied,
            bytes,
            hashes: Arc::clone(&self.hashes),
            revs: self.revs.snapshot(self.revision),
            root,
        };
        self.publisher.publish(&mut self.index, view);
    }

    /// Refuses reads below `revision` from now on, and orders the physical part.
    ///
    /// # Errors
    /// `Compacted` when that is done already, `FutureRev`.
    pub fn compact(&mut self, revision: i64) -> Result<(), ApiError> {
        if revision <= self.compacted {
            return Err(ApiError::Compacted);
        }
        let Some(at) = u64::try_from(revision).ok().filter(|r| *r <= self.revision) else {
            return Err(ApiError::FutureRev);
        };
        // etcd keeps a hash only of a compaction that found the one before it finished.
        let idle = self.compactions.is_empty();
        let hash = idle.then(|| self.with_state(|state| HashScan::of_compaction(at, state)));
        self.compacted = revision;
        // One on its way and one waiting is all there is: a later one covers an earlier one.
        self.compactions.truncate(1);
        self.compactions.push_back(Compaction {
            revision: at,
            hash,
            prune: None,
        });
        Ok(())
    }

    /// One slice of physical compaction; true when another could go on from here. Revisions after
    /// main revision `floor` are still walked by somebody who must see them all.
    pub fn compact_slice(&mut self, floor: u64) -> bool {
        let Some(mut compaction) = self.compactions.pop_front() else {
            return false;
        };
        if let Some(mut scan) = compaction.hash.take() {
            if scan.step(self.limits.slice_keys_max) {
                compaction.hash = Some(scan);
            } else {
                self.remember_hash(scan.finish());
            }
            self.compactions.push_front(compaction);
            return true;
        }
        if compaction.prune.is_none() && floor < compaction.revision {
            self.compactions.push_front(compaction);
            return false;
        }
        let prune = compaction
            .prune
            .get_or_insert_with(|| self.revs.prune(compaction.revision));
        let index = &mut self.index;
        let more = self.revs.prune_slice(prune, |key, rev| {
            // A key that was created again after its tombstone stays.
            if index.get(key).is_some_and(|m| m.modified == rev) {
                index.remove(key);
            }
        });
        if more {
            self.compactions.push_front(compaction);
        } else {
            self.pruned = compaction.revision as i64;
        }
        !self.compactions.is_empty()
    }

    /// Whether a physical compaction is on its way.
    #[must_use]
    pub fn is_compacting(&self) -> bool {
        !self.compactions.is_empty()
    }

    fn remember_hash(&mut self, hash: KvHash) {
        let from = (self.hashes.len() + 1).saturating_sub(HASHES_MAX);
        let mut hashes = self.hashes[from..].to_vec();
        hashes.push(hash);
        self.hashes = hashes.into();
    }

    /// Takes over one revision from a checkpoint: `kv` as encoded when it was written, in order of
    /// revisions, on a new store. [`Self::restore_end`] concludes.
    ///
    /// # Errors
    /// `Corrupt` when `kv` is not what a change at `rev` writes.
    pub fn restore(&mut self, rev: Revision, tombstone: bool, kv: &[u8]) -> Result<(), ApiError> {
        let fields = Fields::checked(kv).ok_or(ApiError::Corrupt)?;
        let Fields {
            key,
            created,
            modified,
            version,
            value,
            lease,
        } = fields;
        let possible = if tombstone {
            fields
                == (Fields {
                    key,
                    ..Fields::default()
                })
        } else {
            modified == rev.main && version > 0 && (1..=modified).contains(&created)
        };
        if !possible {
            return Err(ApiError::Corrupt);
        }
        let meta = KeyMeta {
            modified: rev,
            created,
            version,
            lease,
        };
        let previous = self.index.upsert(key, meta).map(|m| m.modified);
        let encoder = if tombstone {
            Encoder::tombstone(key)
        } else {
            Encoder::put(key, created, modified, version, value, lease)
        };
        self.revs.append(rev, tombstone, previous, &encoder);
        Ok(())
    }

    /// Concludes [`Self::restore`].
    pub fn restore_end(&mut self, revision: u64, compacted: i64, hashes: &[KvHash]) {
        assert!(compacted <= revision as i64);
        self.revision = revision;
        self.compacted = compacted;
        self.hashes = hashes.into();
        if compacted > 0 {
            // What was dropped, or was about to be, when the checkpoint was written.
            let at = compacted as u64;
            self.compactions.push_back(Compaction {
                revision: at,
                hash: None,
                prune: None,
            });
        }
    }
}

/// A transaction: all its changes have one main revision.
pub struct Txn<'s> {
    store: &'s mut Store,
    changes: u32,
}

impl Txn<'_> {
    /// The store's revision as this transaction sees it: with a change, the new one.
    #[must_use]
    pub fn revision(&self) -> u64 {
        self.store.revision + u64::from(self.changes > 0)
    }

    /// Runs `f` on the state with this transaction's changes so far.
    pub fn with_state<R>(&self, f: impl FnOnce(&State<'_>) -> R) -> R {
        self.store.with_state_at(self.revision(), f)
    }

    /// The key's newest revision, unless it is deleted.
    #[must_use]
    pub fn live(&self, key: &[u8]) -> Option<KeyMeta> {
        self.store.index.get(key).filter(|m| !m.is_tombstone())
    }

    fn next(&mut self) -> Revision {
        let rev = Revision::new(self.store.revision + 1, self.changes);
        self.changes += 1;
        rev
    }

    /// Puts; the lease that the key had before, 0 for none.
    pub fn put(&mut self, key: &[u8], value: &[u8], lease: LeaseId) -> LeaseId {
        let modified = self.next();
        let previous = self.store.index.get(key);
        let (created, version, old_lease) = match previous {
            Some(p) if !p.is_tombstone() => (p.created, p.version + 1, p.lease),
            _ => (modified.main, 1, 0),
        };
        let kv = Encoder::put(key, created, modified.main, version, value, lease);
        self.store
            .revs
            .append(modified, false, previous.map(|p| p.modified), &kv);
        self.store.index.upsert(
            key,
            KeyMeta {
                modified,
                created,
                version,
                lease,
            },
        );
        old_lease
    }

    /// Deletes a key that is there; the lease that it had, 0 for none.
    ///
    /// # Panics
    /// When the key is not there.
    pub fn delete(&mut self, key: &[u8]) -> LeaseId {
        let modified = self.next();
        let previous = self.live(key).expect("the key is there");
        let kv = Encoder::tombstone(key);
        self.store
            .revs
            .append(modified, true, Some(previous.modified), &kv);
        self.store.index.upsert(
            key,
            KeyMeta {
                modified,
                ..KeyMeta::default()
            },
        );
        previous.lease
    }

    /// Ends the transaction; the store's revision now.
    pub fn commit(self) -> u64 {
        self.store.revision += u64::from(self.changes > 0);
        self.store.revision
    }
}
