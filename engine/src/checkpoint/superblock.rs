//! The superblock: four copies of the data dir's root, of which the newest that two hold counts.
//!
//! File `superblock`, four blocks of 4 KiB, one copy in each. All integers little-endian.
//! ```text
//!   0 magic u64 | 8 version u32 | 12 format u32 | 16 copy u32 | 20 starts u32 | 24 sequence u64
//!  32 cluster u64 | 40 member u64
//!  48 root: id u64 (0 for none), file_bytes u64, applied u64, term u64, block_bytes u32, last u32
//!  88 0 ... 4092 checksum u32 of all before
//! ```
//! A change writes copies 0 and 1, flushes, writes copies 2 and 3, flushes. Whatever a crash
//! leaves, two copies agree: the old ones until the first flush is done, the new ones from then on.
//! Opening brings all four in line before anything else is changed; so between two changes a
//! flipped bit costs one copy of four, and never brings back an older root.

use crc32c::crc32c;

use super::block::{format_hash, get_u32, get_u64, put_u32, put_u64};
use super::{CheckpointError, DIR, corrupt, file_name};
use crate::io::{AlignedBuf, Disk, DiskError};
use crate::limits::format::{BLOCK_BYTES, VERSION};
use crate::types::{Index, Term};
use crate::wal::Identity;

const FILE: &str = "superblock";
/// Name while it is being made.
const NEW_FILE: &str = "superblock.new";
const COPIES: usize = 4;
/// Copies that must agree.
const QUORUM: usize = 2;
const MAGIC: u64 = u64::from_le_bytes(*b"ringkvsb");
const CHECKSUM_AT: usize = BLOCK_BYTES - 4;

/// What names a checkpoint.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Root {
    /// Names the file ([`super::file_name`]); from 1, rising.
    pub id: u64,
    /// Length of the file.
    pub file_bytes: u64,
    /// Log index of the last entry in it.
    pub applied: Index,
    /// Term of that entry.
    pub term: Term,
    /// Largest block.
    pub(super) block_bytes: u32,
    /// Checksum of the last block, which chains all before.
    pub(super) last: u32,
}

/// The root of a data dir, in memory as it is on disk. One owner: boot, then the side thread.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Superblock {
    identity: Identity,
    sequence: u64,
    starts: u32,
    root: Option<Root>,
    damaged: u32,
}

impl Superblock {
    /// Makes a new data dir's superblock; to be done before the first segment of its log.
    ///
    /// # Errors
    /// Of the device.
    pub fn create(disk: &mut dyn Disk, identity: Identity) -> Result<Self, DiskError> {
        let superblock = Self {
            identity,
            sequence: 1,
            starts: 0,
            root: None,
            damaged: 0,
        };
        disk.ensure_dir(DIR)?;
        if disk.list("")?.iter().any(|name| name == NEW_FILE) {
            disk.remove(NEW_FILE)?;
        }
        disk.create(NEW_FILE, (COPIES * BLOCK_BYTES) as u64)?;
        superblock.write_copies(disk, NEW_FILE, 0..COPIES)?;
        disk.rename(NEW_FILE, FILE)?;
        disk.flush_dir("")?;
        Ok(superblock)
    }

    /// Reads the superblock, brings its copies in line, and removes checkpoint files that it does
    /// not name. `None` when there is none: the data dir is new.
    ///
    /// # Errors
    /// `Corrupt` when no two copies agree, or there are checkpoints and no superblock; `Format`.
    pub fn open(disk: &mut dyn Disk) -> Result<Option<Self>, CheckpointError> {
        if !disk.list("")?.iter().any(|name| name == FILE) {
            if !disk.list(DIR)?.is_empty() {
                return Err(corrupt(FILE, 0, "gone, but there are checkpoints"));
            }
            return Ok(None);
        }
        if disk.len(FILE)? != (COPIES * BLOCK_BYTES) as u64 {
            return Err(corrupt(FILE, 0, "length of the superblock"));
        }
        // Never act on bytes that were only in a cache.
        disk.flush(FILE)?;
        disk.flush_dir("")?;
        let mut buf = AlignedBuf::zeroed(COPIES * BLOCK_BYTES);
        disk.read_at(FILE, 0, buf.as_mut_slice())?;
        let copies: Vec<Decoded> = (0u32..)
            .zip(buf.as_slice().chunks_exact(BLOCK_BYTES))
            .map(|(nth, copy)| Self::decode(nth, copy))
            .collect();
        if copies.contains(&Decoded::Foreign) {
            return Err(CheckpointError::Format {
                file: FILE.to_owned(),
            });
        }
        let whole = |copy: &Decoded| match copy {
            Decoded::Whole(superblock) => Some(superblock.clone()),
            Decoded::Foreign | Decoded::Damaged => None,
        };
        let agreed = |candidate: &Superblock| {
            let same = copies.iter().filter_map(whole).filter(|s| s == candidate);
            same.count() >= QUORUM
        };
        let newest = copies.iter().filter_map(whole).filter(agreed);
        let Some(mut newest) = newest.max_by_key(|s| s.sequence) else {
            return Err(corrupt(FILE, 0, "no two copies of the superblock agree"));
        };
        newest.mend(disk, &copies)?;
        newest.sweep(disk)?;
        Ok(Some(newest))
    }

    /// Rewrites the copies that are not this one; those that are stay untouched, so that there are
    /// two all the time.
    fn mend(&mut self, disk: &mut dyn Disk, copies: &[Decoded]) -> Result<(), DiskError> {
        let own = Decoded::Whole(self.clone());
        for (nth, copy) in copies.iter().enumerate().filter(|(_, copy)| **copy != own) {
            self.damaged += u32::from(*copy == Decoded::Damaged);
            self.write_copies(disk, FILE, nth..nth + 1)?;
        }
        Ok(())
    }

    fn sweep(&self, disk: &mut dyn Disk) -> Result<(), DiskError> {
        let named = self.root.map(|root| file_name(root.id));
        for name in disk.list(DIR)? {
            if Some(&name) != named.as_ref() {
                disk.remove(&name)?;
            }
        }
        Ok(())
    }

    /// Whose data dir it is.
    #[must_use]
    pub fn identity(&self) -> Identity {
        self.identity
    }

    /// The checkpoint to start from.
    #[must_use]
    pub fn root(&self) -> Option<&Root> {
        self.root.as_ref()
    }

    /// Copies that could not be read when it was opened, and were rewritten: by a crash amid a
    /// change, or by a device that loses bits.
    #[must_use]
    pub fn damaged_copies(&self) -> u32 {
        self.damaged
    }

    /// Counts this start of the server, durably; the count, from 1, which no other start of this
    /// member gets.
    ///
    /// # Errors
    /// Of the device.
    pub fn next_start(&mut self, disk: &mut dyn Disk) -> Result<u32, DiskError> {
        let starts = self.starts.checked_add(1).expect("nobody starts 4 G times");
        let next = Self {
            starts,
            ..self.successor()
        };
        next.write_copies(disk, FILE, 0..QUORUM)?;
        next.write_copies(disk, FILE, QUORUM..COPIES)?;
        *self = next;
        Ok(starts)
    }

    pub(super) fn with_root(&self, root: Root) -> Self {
        assert!(
            self.root
                .is_none_or(|old| old.id < root.id && old.applied <= root.applied)
        );
        Self {
            root: Some(root),
            ..self.successor()
        }
    }

    fn successor(&self) -> Self {
        Self {
            sequence: self.sequence + 1,
            ..self.clone()
        }
    }

    /// The first half of a change; once done, the new root holds.
    pub(super) fn write_first_copies(&self, disk: &mut dyn Disk) -> Result<(), DiskError> {
        self.write_copies(disk, FILE, 0..QUORUM)
    }

    /// The second half.
    pub(super) fn write_last_copies(&self, disk: &mut dyn Disk) -> Result<(), DiskError> {
        self.write_copies(disk, FILE, QUORUM..COPIES)
    }

    fn write_copies(
        &self,
        disk: &mut dyn Disk,
        file: &str,
        copies: core::ops::Range<usize>,
    ) -> Result<(), DiskError> {
        let mut buf = AlignedBuf::zeroed(BLOCK_BYTES);
        for copy in copies {
            self.encode(copy as u32, buf.as_mut_slice());
            disk.write_at(file, (copy * BLOCK_BYTES) as u64, buf.as_slice())?;
        }
        disk.flush(file)
    }

    fn encode(&self, copy: u32, out: &mut [u8]) {
        out.fill(0);
        put_u64(out, 0, MAGIC);
        put_u32(out, 8, VERSION);
        put_u32(out, 12, format_hash());
        put_u32(out, 16, copy);
        put_u32(out, 20, self.starts);
        put_u64(out, 24, self.sequence);
        put_u64(out, 32, self.identity.cluster);
        put_u64(out, 40, self.identity.member);
        if let Some(root) = &self.root {
            assert!(root.id > 0);
            put_u64(out, 48, root.id);
            put_u64(out, 56, root.file_bytes);
            put_u64(out, 64, root.applied);
            put_u64(out, 72, root.term);
            put_u32(out, 80, root.block_bytes);
            put_u32(out, 84, root.last);
        }
        let checksum = crc32c(&out[..CHECKSUM_AT]);
        put_u32(out, CHECKSUM_AT, checksum);
    }

    fn decode(copy: u32, bytes: &[u8]) -> Decoded {
        if get_u64(bytes, 0) != MAGIC
            || get_u32(bytes, CHECKSUM_AT) != crc32c(&bytes[..CHECKSUM_AT])
            || get_u32(bytes, 16) != copy
        {
            return Decoded::Damaged;
        }
        if get_u32(bytes, 8) != VERSION || get_u32(bytes, 12) != format_hash() {
            return Decoded::Foreign;
        }
        let root = Root {
            id: get_u64(bytes, 48),
            file_bytes: get_u64(bytes, 56),
            applied: get_u64(bytes, 64),
            term: get_u64(bytes, 72),
            block_bytes: get_u32(bytes, 80),
            last: get_u32(bytes, 84),
        };
        Decoded::Whole(Self {
            identity: Identity {
                cluster: get_u64(bytes, 32),
                member: get_u64(bytes, 40),
            },
            sequence: get_u64(bytes, 24),
            starts: get_u32(bytes, 20),
            root: (root.id != 0).then_some(root),
            damaged: 0,
        })
    }
}

/// What one copy is.
#[derive(PartialEq, Eq)]
enum Decoded {
    Whole(Superblock),
    Foreign,
    Damaged,
}
