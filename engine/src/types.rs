//! Scalars that every layer names alike. No logic beyond ordering and display.
//!
//! Owned by nobody: plain `Copy` values. The words are etcd's and raft's own.

use core::fmt;

/// Position of an entry in the raft log, from 1.
pub type Index = u64;
/// Raft term, from 1.
pub type Term = u64;
/// Byte position in the write-ahead log: counts every frame byte ever written, never reused.
pub type Lsn = u64;
/// Member id: first 8 bytes, big endian, of a SHA-1 (see `ringkv_raft::boot`).
pub type MemberId = u64;
/// Lease id as clients see it (int64 on the wire); 0 means "no lease".
pub type LeaseId = i64;
/// Which front core; shard 0 also runs the sequencer on small machines.
pub type ShardId = u8;

/// A point in the store's history: `main` counts mutating transactions, `sub` the changes within
/// one.
///
/// The empty store is at main 1, as in etcd; the first write makes main 2.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Revision {
    /// Store-wide, rises by exactly 1 with each mutating transaction (I1).
    pub main: u64,
    /// Counts from 0 within one transaction.
    pub sub: u32,
}

impl Revision {
    /// Before every change.
    pub const ZERO: Self = Self { main: 0, sub: 0 };

    /// Revision `main.sub`.
    #[must_use]
    pub const fn new(main: u64, sub: u32) -> Self {
        Self { main, sub }
    }
}

impl fmt::Debug for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.main, self.sub)
    }
}

/// What the index knows of a key without looking at its value: its newest revision.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct KeyMeta {
    /// Newest change of the key, tombstone or not.
    pub modified: Revision,
    /// Main revision at which the current generation began; 0 for a tombstone.
    pub created: u64,
    /// Changes in the current generation, from 1; 0 for a tombstone.
    pub version: u64,
    /// Attached lease, 0 for none.
    pub lease: LeaseId,
}

impl KeyMeta {
    /// Whether the newest change deleted the key.
    #[must_use]
    pub const fn is_tombstone(&self) -> bool {
        self.version == 0
    }
}
