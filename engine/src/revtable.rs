//! RevTable: every revision that compaction has left, in order, each with its encoded KeyValue.
//!
//! Watch catch-up, HashKV, compaction, checkpoints and exports walk it; a read at an old revision
//! finds a key's older changes through it (the index knows only the newest).
//!
//! Written by the sequencer's core through [`RevTable`]; read on any core through a
//! [`RevSnapshot`], which is part of a published View and keeps its chunks alive. Chunks are
//! immutable once full and compaction replaces them (`revtable/chunk.rs` has the protocol), so a
//! snapshot needs no lock and no epoch.
//!
//! Not here: keys in order (`index.rs`), what may be read at which revision (`mvcc.rs`).

mod chunk;
pub mod kv;

use std::sync::Arc;

pub use chunk::Record;
use chunk::{Chunk, Links, SUB_MAX, Tail};

use crate::types::Revision;

/// What one revision costs beside its KeyValue, as the quota counts it, bytes: slot, bucket key,
/// index entry.
pub const REVISION_OVERHEAD_BYTES: u64 = 128;

/// The chunks in order; never edited once shared.
#[derive(Clone, Default)]
struct Directory {
    chunks: Vec<Arc<Chunk>>,
    /// First revision of each chunk, to search without touching the chunks.
    firsts: Vec<Revision>,
}

impl Directory {
    /// The chunk that would hold `rev`.
    fn locate(&self, rev: Revision) -> Option<usize> {
        self.firsts
            .partition_point(|first| *first <= rev)
            .checked_sub(1)
    }

    fn find(&self, rev: Revision) -> Option<(usize, usize)> {
        let at = self.locate(rev)?;
        Some((at, self.chunks[at].find(rev)?))
    }
}

/// Read access to all revisions up to the main revision it was taken at.
#[derive(Clone)]
pub struct RevSnapshot {
    directory: Arc<Directory>,
    last_main: u64,
}

impl RevSnapshot {
    /// The last main revision that may be read.
    #[must_use]
    pub fn last_main(&self) -> u64 {
        self.last_main
    }

    /// The record of `rev`, unless compaction dropped it.
    #[must_use]
    pub fn get(&self, rev: Revision) -> Option<Record<'_>> {
        if rev.main > self.last_main {
            return None;
        }
        let (at, slot) = self.directory.find(rev)?;
        Some(self.directory.chunks[at].record(slot))
    }

    /// The newest change at or before main revision `at` of the key whose newest change is
    /// `newest`.
    ///
    /// `None` when the key did not exist then, or only as a tombstone that compaction dropped.
    /// O(log n) in the key's changes. Exact for every `at` that is not compacted.
    #[must_use]
    pub fn at_or_before(&self, newest: Revision, at: u64) -> Option<Revision> {
        let mut rev = newest;
        while rev.main > at {
            let links = self.get(rev)?.links()?;
            // Jump targets are looked at only above `at`, so compaction has not dropped them.
            rev = if links.jump.main > at {
                links.jump
            } else {
                links.previous
            };
        }
        Some(rev)
    }

    /// All records from `from` on, in order.
    #[must_use]
    pub fn scan(&self, from: Revision) -> Scan<'_> {
        self.scan_to(from, self.last_main)
    }

    /// All records from `from` to main revision `to` inclusive, in order.
    #[must_use]
    pub fn scan_to(&self, from: Revision, to: u64) -> Scan<'_> {
        let chunk = self.directory.locate(from).unwrap_or(0);
        let slot = self
            .directory
            .chunks
            .get(chunk)
            .map_or(0, |c| c.lower_bound(from));
        let mut scan = Scan {
            directory: &self.directory,
            chunk,
            slot,
            end: 0,
            to: to.min(self.last_main),
        };
        scan.set_end();
        scan
    }
}

/// See [`RevSnapshot::scan_to`].
pub struct Scan<'a> {
    directory: &'a Directory,
    chunk: usize,
    slot: usize,
    /// Slots of the current chunk that belong to it: compaction may be filling it with what the
    /// next one still holds.
    end: usize,
    to: u64,
}

impl Scan<'_> {
    fn set_end(&mut self) {
        let Some(chunk) = self.directory.chunks.get(self.chunk) else {
            return;
        };
        self.end = match self.directory.firsts.get(self.chunk + 1) {
            Some(next) => chunk.lower_bound(*next),
            None => chunk.len(),
        };
    }
}

impl<'a> Iterator for Scan<'a> {
    type Item = Record<'a>;

    fn next(&mut self) -> Option<Record<'a>> {
        while self.slot >= self.end {
            if self.chunk + 1 >= self.directory.chunks.len() {
                return None;
            }
            self.chunk += 1;
            self.slot = 0;
            self.set_end();
        }
        let record = self.directory.chunks[self.chunk].record(self.slot);
        if record.revision.main > self.to {
            return None;
        }
        self.slot += 1;
        Some(record)
    }
}

/// The writer's side; one owner, the sequencer's core.
pub struct RevTable {
    directory: Arc<Directory>,
    /// Beside each chunk: whether compaction may find something to drop in it.
    dirty: Vec<bool>,
    /// Writes the last chunk of the directory; `None` when that one is closed.
    tail: Option<Tail>,
    chunk_revisions: usize,
    last: Revision,
    bytes: u64,
    count: u64,
}

/// A physical compaction on its way.
pub struct Prune {
    upto: u64,
    next: Revision,
    /// Writes the chunk before the one to be looked at next.
    out: Option<Tail>,
}

impl Prune {
    /// Main revision up to which superseded revisions and tombstones are dropped.
    #[must_use]
    pub fn upto(&self) -> u64 {
        self.upto
    }
}

impl RevTable {
    /// Empty; chunks of `chunk_revisions` revisions.
    #[must_use]
    pub fn new(chunk_revisions: usize) -> Self {
        Self {
            directory: Arc::default(),
            dirty: Vec::new(),
            tail: None,
            chunk_revisions,
            last: Revision::ZERO,
            bytes: 0,
            count: 0,
        }
    }

    /// Appends `rev`, newer than all before it. `previous` is the key's change before this one, or
    /// one that compaction has dropped.
    ///
    /// # Panics
    /// When `rev` is not the newest or its sub is beyond 2^30.
    pub fn append(
        &mut self,
        rev: Revision,
        tombstone: bool,
        previous: Option<Revision>,
        kv: &kv::Encoder<'_>,
    ) {
        assert!(self.last < rev);
        assert!(rev.sub <= SUB_MAX);
        let links = previous.and_then(|previous| self.link(rev, previous));
        self.push(rev, tombstone, 0, links, &kv.parts());
        self.bytes += kv.len() as u64 + REVISION_OVERHEAD_BYTES;
        self.count += 1;
        self.last = rev;
        if tombstone {
            *self.dirty.last_mut().expect("just pushed") = true;
        }
    }

    /// Marks `previous` superseded; the links of its successor, `None` if it was compacted away.
    fn link(&mut self, rev: Revision, previous: Revision) -> Option<Links> {
        let (at, slot) = self.directory.find(previous)?;
        self.dirty[at] = true;
        let record = self.directory.chunks[at].record(slot);
        record.supersede(rev.main);
        let far = |links: Links| {
            let (at, slot) = self.directory.find(links.jump)?;
            Some(self.directory.chunks[at].record(slot).links().map_or(
                // The end of the chain, as far as it is kept.
                Links {
                    previous: links.jump,
                    jump: links.jump,
                    depth: 0,
                },
                |l| l,
            ))
        };
        // Skew-binary jump pointers (Myers 1983): two jumps of equal length merge into one.
        let (depth, jump) = match record.links() {
            None => (1, previous),
            Some(p) => {
                let merged = far(p)
                    .filter(|j| p.depth.wrapping_sub(j.depth) > 0)
                    .and_then(|j| Some((j, far(j)?)))
                    .filter(|(j, jj)| p.depth - j.depth == j.depth.saturating_sub(jj.depth))
                    .map(|(j, _)| j.jump);
                (p.depth.saturating_add(1), merged.unwrap_or(previous))
            }
        };
        Some(Links {
            previous,
            jump,
            depth,
        })
    }

    fn push(
        &mut self,
        rev: Revision,
        tombstone: bool,
        superseded: u64,
        links: Option<Links>,
        parts: &[&[u8]],
    ) {
        if let Some(tail) = self.tail.as_mut().filter(|t| !t.is_full()) {
            tail.push(rev, tombstone, superseded, links, parts);
            return;
        }
        let mut tail = Tail::new(self.chunk_revisions);
        tail.push(rev, tombstone, superseded, links, parts);
        let directory = Arc::make_mut(&mut self.directory);
        directory.chunks.push(Arc::clone(tail.chunk()));
        directory.firsts.push(rev);
        self.dirty.push(false);
        self.tail = Some(tail);
    }

    /// For a View at main revision `last_main`.
    #[must_use]
    pub fn snapshot(&self, last_main: u64) -> RevSnapshot {
        RevSnapshot {
            directory: Arc::clone(&self.directory),
            last_main,
        }
    }

    /// What the quota counts: all revisions kept, with [`REVISION_OVERHEAD_BYTES`] for each.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Revisions kept.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.count
    }

    /// Whether nothing is kept.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Begins to drop what nobody can read at or after main revision `upto`: revisions superseded
    /// by then, and tombstones before it.
    pub fn prune(&mut self, upto: u64) -> Prune {
        // The open chunk too: what it holds counts against the quota. The next write opens a new
        // one.
        self.tail = None;
        Prune {
            upto,
            next: Revision::ZERO,
            out: None,
        }
    }

    /// Looks at one chunk; true while there is more to do. `dropped` is given each tombstone that
    /// went, with its key.
    pub fn prune_slice(
        &mut self,
        prune: &mut Prune,
        mut dropped: impl FnMut(&[u8], Revision),
    ) -> bool {
        let start = self
            .directory
            .firsts
            .partition_point(|first| *first < prune.next);
        let open = self.tail.as_ref().map(|t| Arc::as_ptr(t.chunk()));
        let candidate = (start..self.directory.chunks.len()).find(|&i| self.dirty[i]);
        let Some(at) = candidate.filter(|&i| {
            self.directory.firsts[i].main <= prune.upto
                && open != Some(Arc::as_ptr(&self.directory.chunks[i]))
        }) else {
            return false;
        };
        if at != start {
            // Clean chunks lie between: what is written next would not be in order.
            prune.out = None;
        }
        let chunk = Arc::clone(&self.directory.chunks[at]);
        let end = match self.directory.firsts.get(at + 1) {
            Some(next) => {
                prune.next = *next;
                chunk.lower_bound(*next)
            }
            None => {
                let last = chunk.revision(chunk.len() - 1);
                prune.next = Revision::new(last.main, last.sub + 1);
                chunk.len()
            }
        };
        let upto = prune.upto;
        // As etcd: a tombstone at the compact revision itself stays, for watches that begin there.
        let dead = |r: &Record<'_>| {
            r.superseded().is_some_and(|s| s <= upto) || (r.tombstone && r.revision.main < upto)
        };
        let mut later = false;
        let mut dead_count = 0;
        for record in (0..end).map(|i| chunk.record(i)) {
            if dead(&record) {
                dead_count += 1;
                self.bytes -= record.kv.len() as u64 + REVISION_OVERHEAD_BYTES;
                self.count -= 1;
                if record.tombstone {
                    dropped(record.key(), record.revision);
                }
            } else {
                later |= record.tombstone || record.superseded().is_some();
            }
        }
        if dead_count == 0 {
            self.dirty[at] = later;
            prune.out = None;
            return true;
        }
        let survivors = (0..end).map(|i| chunk.record(i)).filter(|r| !dead(r));
        let mut fresh = Vec::new();
        let continued = prune.out.is_some();
        for record in survivors {
            if prune.out.as_ref().is_none_or(Tail::is_full) {
                let out = Tail::new(self.chunk_revisions);
                fresh.push((Arc::clone(out.chunk()), record.revision));
                prune.out = Some(out);
            }
            let out = prune.out.as_mut().expect("made above");
            let superseded = record.superseded().unwrap_or(0);
            out.push(
                record.revision,
                record.tombstone,
                superseded,
                record.links(),
                &[record.kv],
            );
        }
        if continued {
            // Survivors went into the chunk before this one.
            self.dirty[at - 1] |= later;
        }
        let directory = Arc::make_mut(&mut self.directory);
        directory
            .chunks
            .splice(at..=at, fresh.iter().map(|f| Arc::clone(&f.0)));
        directory.firsts.splice(at..=at, fresh.iter().map(|f| f.1));
        self.dirty.splice(at..=at, fresh.iter().map(|_| later));
        true
    }
}

#[cfg(test)]
mod tests;
