//! Reads a checkpoint back into a state machine.

use super::block::{BlockKind, Place};
use super::item::{self, Item};
use super::superblock::{Root, Superblock};
use super::{CheckpointError, Conf, corrupt, file_name};
use crate::apply::Machine;
use crate::io::{AlignedBuf, Disk};
use crate::lease::Lessor;
use crate::limits::Limits;
use crate::limits::format::BLOCK_BYTES;
use crate::members::Members;
use crate::mvcc::hash::KvHash;
use crate::types::{Revision, Term};

/// A checkpoint's state.
pub struct Loaded {
    /// All replicated state, its first View published.
    pub machine: Machine,
    /// Term of the last entry in it.
    pub term: Term,
    /// Raft's configuration as of that entry.
    pub conf: Conf,
}

/// How far loading is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Progress {
    /// Bytes read.
    pub bytes_done: u64,
    /// Of so many.
    pub bytes_total: u64,
}

impl Superblock {
    /// Reads the checkpoint that the superblock names into a state machine with `limits` and
    /// `lessor`, a new one; `None` when there is no checkpoint. `on_progress` is called after each
    /// block.
    ///
    /// # Errors
    /// See [`CheckpointError`].
    ///
    /// # Panics
    /// When `lessor` has leases or is primary.
    pub fn load(
        &self,
        disk: &mut dyn Disk,
        limits: Limits,
        lessor: Lessor,
        on_progress: &mut dyn FnMut(Progress),
    ) -> Result<Option<Loaded>, CheckpointError> {
        assert!(lessor.is_empty() && !lessor.is_primary());
        let Some(root) = self.root() else {
            return Ok(None);
        };
        let file = file_name(root.id);
        let length = disk.len(&file)?;
        if length < root.file_bytes || root.file_bytes == 0 {
            return Err(corrupt(&file, length, "the checkpoint is too short"));
        }
        let mut loading = Loading::new(Machine::new(limits, lessor, Members::default()));
        let mut place = Place::first(self.identity(), root.id);
        let mut buf = block_buffer(root, &file)?;
        while place.offset < root.file_bytes {
            let left = root.file_bytes - place.offset;
            let want = left.min(u64::from(root.block_bytes)) as usize;
            let bytes = &mut buf.as_mut_slice()[..want];
            disk.read_at(&file, place.offset, bytes)?;
            let at = |what| corrupt(&file, place.offset, what);
            let block = place.open(bytes).map_err(at)?;
            loading.block(block.kind, block.payload).map_err(at)?;
            place = place.next(block.bytes, block.checksum);
            on_progress(Progress {
                bytes_done: place.offset,
                bytes_total: root.file_bytes,
            });
        }
        if place.previous != root.last {
            return Err(corrupt(
                &file,
                place.offset,
                "not the checkpoint that the root names",
            ));
        }
        let loaded = loading
            .finish()
            .map_err(|what| corrupt(&file, place.offset, what))?;
        if loaded.machine.applied() != root.applied || loaded.term != root.term {
            return Err(corrupt(&file, 0, "not of the index that the root names"));
        }
        Ok(Some(loaded))
    }
}

fn block_buffer(root: &Root, file: &str) -> Result<AlignedBuf, CheckpointError> {
    let bytes = root.block_bytes as usize;
    let whole = |n: u64| n.is_multiple_of(BLOCK_BYTES as u64);
    if bytes == 0 || !whole(bytes as u64) || !whole(root.file_bytes) {
        return Err(corrupt(file, 0, "the root names no whole blocks"));
    }
    Ok(AlignedBuf::zeroed(bytes))
}

struct Meta {
    revision: u64,
    compacted: i64,
    applied: u64,
}

/// A state machine as far as it is read.
struct Loading {
    machine: Machine,
    meta: Option<Meta>,
    term: Term,
    conf: Conf,
    hashes: Vec<KvHash>,
    /// The first bytes of an item that goes on in the next block.
    carry: Vec<u8>,
    last: Revision,
    revisions: u64,
    items: u64,
    ended: bool,
}

type Read = Result<(), &'static str>;

impl Loading {
    fn new(machine: Machine) -> Self {
        Self {
            machine,
            meta: None,
            term: 0,
            conf: Conf::default(),
            hashes: Vec::new(),
            carry: Vec::new(),
            last: Revision::ZERO,
            revisions: 0,
            items: 0,
            ended: false,
        }
    }

    fn block(&mut self, kind: BlockKind, mut payload: &[u8]) -> Read {
        if !self.carry.is_empty() {
            payload = self.complete_carry(kind, payload)?;
        }
        while let Some((item, rest)) = item::split(payload) {
            self.item(kind, item)?;
            payload = rest;
        }
        self.carry.extend_from_slice(payload);
        Ok(())
    }

    /// Takes what the carried item lacks from the start of `payload`; the rest.
    fn complete_carry<'p>(
        &mut self,
        kind: BlockKind,
        mut payload: &'p [u8],
    ) -> Result<&'p [u8], &'static str> {
        let mut carry = core::mem::take(&mut self.carry);
        // First the head, which says how much the rest is.
        for _ in 0..2 {
            let whole = item::item_bytes(&carry).unwrap_or(item::HEAD_BYTES);
            let lacks = whole.saturating_sub(carry.len()).min(payload.len());
            carry.extend_from_slice(&payload[..lacks]);
            payload = &payload[lacks..];
        }
        if item::item_bytes(&carry) == Some(carry.len()) {
            self.item(kind, &carry)?;
            carry.clear();
        }
        // Its memory serves the next one.
        self.carry = carry;
        Ok(payload)
    }

    fn item(&mut self, kind: BlockKind, bytes: &[u8]) -> Read {
        if self.ended {
            return Err("an item behind the last");
        }
        let item = item::decode(bytes).ok_or("an item that cannot be read")?;
        let expected = match item {
            Item::Revision { .. } => BlockKind::Revisions,
            Item::End { .. } => BlockKind::Footer,
            _ => BlockKind::State,
        };
        if kind != expected {
            return Err("an item in a block of another kind");
        }
        if let Item::Meta { .. } = item {
            if self.meta.is_some() {
                return Err("a second Meta");
            }
        } else if self.meta.is_none() {
            return Err("an item before Meta");
        }
        self.take(item)?;
        self.items += 1;
        Ok(())
    }

    fn take(&mut self, item: Item<'_>) -> Read {
        let machine = &mut self.machine;
        match item {
            Item::Meta {
                revision,
                compacted,
                applied,
                term,
            } => {
                self.term = term;
                self.meta = Some(Meta {
                    revision,
                    compacted,
                    applied,
                });
            }
            Item::Hash(hash) => self.hashes.push(hash),
            Item::Lease((id, ttl, remaining, granted_index)) => {
                let restored = machine.lessor.restore(id, ttl, remaining);
                restored.map_err(|_| "a lease that cannot be")?;
                machine.lessor.set_granted_index(id, granted_index);
            }
            Item::Alarm(member, alarm) => {
                machine.alarms.activate(member, alarm);
            }
            Item::Member(id, member) => machine.members.insert(id, member),
            Item::Version(version) => machine.members.cluster_version = Some(version),
            Item::Voter(id) => self.conf.voters.push(id),
            Item::Learner(id) => self.conf.learners.push(id),
            Item::Revision { rev, tombstone, kv } => self.revision(rev, tombstone, kv)?,
            Item::End { revisions, items } => {
                if (revisions, items) != (self.revisions, self.items) {
                    return Err("the number of items");
                }
                self.ended = true;
            }
        }
        Ok(())
    }

    fn revision(&mut self, rev: Revision, tombstone: bool, kv: &[u8]) -> Read {
        let revision = self.meta.as_ref().map_or(0, |m| m.revision);
        if rev <= self.last || rev.main > revision {
            return Err("revisions out of order");
        }
        self.last = rev;
        self.revisions += 1;
        self.machine
            .store
            .restore(rev, tombstone, kv)
            .map_err(|_| "a revision that cannot be read")
    }

    fn finish(self) -> Result<Loaded, &'static str> {
        let Self {
            mut machine,
            meta,
            term,
            conf,
            hashes,
            carry,
            ended,
            ..
        } = self;
        let Some(meta) = meta.filter(|_| ended && carry.is_empty()) else {
            return Err("the checkpoint is not complete");
        };
        if i64::try_from(meta.revision).map_or(true, |r| meta.compacted > r) {
            return Err("compacted beyond the last revision");
        }
        machine
            .store
            .restore_end(meta.revision, meta.compacted, &hashes);
        if !machine.restored(meta.applied) {
            return Err("a key of a lease that is not there");
        }
        Ok(Loaded {
            machine,
            term,
            conf,
        })
    }
}
