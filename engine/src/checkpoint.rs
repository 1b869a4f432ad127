//! Full checkpoints: the whole state machine in one file, so that a restart reads that file and the
//! log's tail, and the segments before it are recycled.
//!
//! A [`CheckpointImage`] is taken on the sequencer's core, between two entries; it shares the
//! RevTable's chunks, which nobody edits, and copies the rest. A side thread then writes it with a
//! [`CheckpointWriter`], step by step, while the store goes on. At start [`Superblock::load`] reads
//! it back.
//!
//! Invariants: the root in the superblock names a checkpoint only after all bytes of that are
//! durable, and the one before is removed only after the new root is: a crash at any point leaves
//! the one or the other. Any flipped bit is detected before it is used (I12). Memory of writing and
//! reading beside the state itself is one block and one item.
//!
//! Not here: when a checkpoint is due (`raft/src/sequencer.rs`), which log it makes superfluous
//! (`wal.rs`), values outside of RAM, sending a checkpoint to another member.

mod block;
mod item;
mod load;
mod superblock;
mod write;

use core::fmt;
use std::sync::Arc;

use crate::apply::Machine;
use crate::error::Corruption;
use crate::io::DiskError;
use crate::members::Member;
use crate::mvcc::hash::KvHash;
use crate::revtable::RevSnapshot;
use crate::types::{Index, LeaseId, MemberId, Term};

pub use load::{Loaded, Progress};
pub use superblock::{Root, Superblock};
pub use write::CheckpointWriter;

/// Directory of the checkpoint files.
const DIR: &str = "checkpoint";

/// Name of checkpoint `id` within the data dir.
#[must_use]
pub fn file_name(id: u64) -> String {
    format!("{DIR}/{id:016x}.ckpt")
}

/// Raft's configuration as of the applied index.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Conf {
    /// Members with a vote.
    pub voters: Vec<MemberId>,
    /// Members without.
    pub learners: Vec<MemberId>,
}

/// A lease as it is kept: id, granted TTL and checkpointed remaining TTL (0 for none), seconds, and
/// the log index of its grant.
/// Its keys are those whose newest revision names it.
type LeaseItem = (LeaseId, i64, i64, Index);

/// The state machine as of one applied index; immutable, to be written by any thread.
pub struct CheckpointImage {
    revs: RevSnapshot,
    revision: u64,
    compacted: i64,
    applied: Index,
    term: Term,
    hashes: Arc<[KvHash]>,
    leases: Vec<LeaseItem>,
    alarms: Vec<(MemberId, i32)>,
    members: Vec<(MemberId, Member)>,
    cluster_version: Option<String>,
    conf: Conf,
}

impl CheckpointImage {
    /// Log index of the last entry in it.
    #[must_use]
    pub fn applied(&self) -> Index {
        self.applied
    }
}

impl Machine {
    /// The state as of now, of which the last entry applied is of `term` and `conf` is raft's
    /// configuration. Costs a copy of the lease table (32 bytes for each) and of the members; keys
    /// and values are shared.
    #[must_use]
    pub fn image(&self, term: Term, conf: Conf) -> CheckpointImage {
        let lease = |(id, lease): (LeaseId, &crate::lease::Lease)| {
            (
                id,
                lease.granted_ttl(),
                lease.remaining_ttl(),
                lease.granted_index(),
            )
        };
        CheckpointImage {
            revs: self.store.snapshot(),
            revision: self.store.revision(),
            compacted: self.store.compacted(),
            applied: self.applied(),
            term,
            hashes: self.store.hashes(),
            leases: self.lessor.iter().map(lease).collect(),
            alarms: self.alarms.get(crate::alarm::NONE).collect(),
            members: self.members.iter().map(|(id, m)| (id, m.clone())).collect(),
            cluster_version: self.members.cluster_version.clone(),
            conf,
        }
    }
}

/// Why there is no state to go on with.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum CheckpointError {
    /// The device failed.
    Disk(DiskError),
    /// What was durable is not what was written.
    Corrupt(Corruption),
    /// Written by another version or with other format constants.
    Format {
        /// Its name.
        file: String,
    },
}

impl From<DiskError> for CheckpointError {
    fn from(error: DiskError) -> Self {
        Self::Disk(error)
    }
}

impl fmt::Display for CheckpointError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Disk(error) => error.fmt(f),
            Self::Corrupt(corruption) => corruption.fmt(f),
            Self::Format { file } => write!(f, "{file} is of another format version"),
        }
    }
}

impl core::error::Error for CheckpointError {}

fn corrupt(file: &str, offset: u64, what: &'static str) -> CheckpointError {
    CheckpointError::Corrupt(Corruption {
        file: file.to_owned(),
        offset,
        what,
    })
}

#[cfg(test)]
mod tests;
