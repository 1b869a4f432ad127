//! The only door to devices: aligned buffers, the blocking [`Disk`], and the WAL's writes as
//! values.
//!
//! Owned by whoever calls: boot, recovery, checkpoints and segment preparation use [`Disk`] off the
//! hot path (a side thread, or before the cores start); the sequencer's core hands [`WriteFrame`]
//! values to its ring and gets the buffer back with the completion. Nothing here waits for anything
//! but the call itself, so that the seeded [`sim::SimDisk`] and the real device are the same to the
//! engine.
//!
//! Invariants: a device write starts at, and is long, a multiple of [`BLOCK_BYTES`]; a buffer never
//! moves while it lives; a failed write or flush is final (never retried, the caller stops).
//!
//! Not here: the device itself (`net/src/disk.rs`), scheduling, any knowledge of formats.

pub mod sim;

use core::fmt;

use crate::limits::format::BLOCK_BYTES;
use crate::types::Lsn;

/// A zeroed heap buffer whose bytes start at a multiple of [`BLOCK_BYTES`], as O_DIRECT demands.
///
/// It has a fixed capacity and never reallocates, so its address is stable for life. `len` counts
/// the bytes in use; bytes beyond it are whatever an earlier use left there.
pub struct AlignedBuf {
    /// Over-allocated by just under one block; the aligned part begins at `start`.
    bytes: Vec<u8>,
    start: usize,
    len: usize,
    capacity: usize,
}

impl AlignedBuf {
    /// An empty buffer for `capacity` bytes, a multiple of [`BLOCK_BYTES`].
    ///
    /// # Panics
    /// If `capacity` is zero or not a multiple of the block.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        assert!(capacity > 0);
        assert!(capacity.is_multiple_of(BLOCK_BYTES));
        let bytes = vec![0; capacity + BLOCK_BYTES - 1];
        let address = bytes.as_ptr().addr();
        let start = address.next_multiple_of(BLOCK_BYTES) - address;
        assert!(start + capacity <= bytes.len());
        Self {
            bytes,
            start,
            len: 0,
            capacity,
        }
    }

    /// A buffer whose `len` bytes are all in use and zero: the target of a read.
    ///
    /// # Panics
    /// As [`Self::new`].
    #[must_use]
    pub fn zeroed(len: usize) -> Self {
        Self {
            len,
            ..Self::new(len)
        }
    }

    /// The bytes in use.
    #[must_use]
    pub fn as_slice(&self) -> &[u8] {
        &self.bytes[self.start..self.start + self.len]
    }

    /// The bytes in use, to write into.
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + self.len]
    }

    /// Bytes in use.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether no byte is in use.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes that fit, fixed for life.
    #[must_use]
    pub const fn capacity(&self) -> usize {
        self.capacity
    }

    /// Forgets the bytes in use; the memory stays.
    pub const fn clear(&mut self) {
        self.len = 0;
    }

    /// Appends a copy of `source`.
    ///
    /// # Panics
    /// If it does not fit: the caller checks first.
    pub fn extend_from_slice(&mut self, source: &[u8]) {
        let end = self
            .len
            .checked_add(source.len())
            .expect("lengths of real slices add up");
        assert!(end <= self.capacity);
        self.bytes[self.start + self.len..self.start + end].copy_from_slice(source);
        self.len = end;
    }

    /// Appends `count` zeros.
    ///
    /// # Panics
    /// If they do not fit.
    pub fn extend_zeroed(&mut self, count: usize) {
        let end = self
            .len
            .checked_add(count)
            .expect("no count comes near the address space");
        assert!(end <= self.capacity);
        self.bytes[self.start + self.len..self.start + end].fill(0);
        self.len = end;
    }

    /// Zeroes up to the next multiple of the block, which becomes the length.
    pub fn pad_to_block(&mut self) {
        self.extend_zeroed(self.len.next_multiple_of(BLOCK_BYTES) - self.len);
        debug_assert!(self.len.is_multiple_of(BLOCK_BYTES));
    }
}

impl AsRef<[u8]> for AlignedBuf {
    fn as_ref(&self) -> &[u8] {
        self.as_slice()
    }
}

impl fmt::Debug for AlignedBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AlignedBuf({} of {} B)", self.len, self.capacity)
    }
}

/// Why a device operation failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DiskErrorKind {
    /// No such file.
    NotFound,
    /// The file to create is there already.
    Exists,
    /// The device is full.
    NoSpace,
    /// The read goes beyond the end of the file.
    UnexpectedEnd,
    /// Any other error, by its errno.
    Io(i32),
}

/// What was being done when a [`DiskError`] arose.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs, reason = "the methods of Disk")]
pub enum DiskOp {
    List,
    Create,
    Read,
    Write,
    Flush,
    Rename,
    Remove,
    Length,
}

/// A failed device operation. After a failed write or flush the state of the file is unknown, and
/// the process must stop: a retried flush may report success over lost pages.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DiskError {
    /// What went wrong.
    pub kind: DiskErrorKind,
    /// In which operation.
    pub op: DiskOp,
    /// On which file or directory, within the data dir.
    pub file: String,
}

impl DiskError {
    /// An error of `op` on `file`.
    #[must_use]
    pub fn new(kind: DiskErrorKind, op: DiskOp, file: &str) -> Self {
        Self {
            kind,
            op,
            file: file.to_owned(),
        }
    }
}

impl fmt::Display for DiskError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} of {} failed: {:?}", self.op, self.file, self.kind)
    }
}

impl core::error::Error for DiskError {}

/// Files of one data dir, blocking. Names are flat or one level deep (`wal/0000000000000001.wal`),
/// with `/`, relative to the data dir.
///
/// Durability is only by [`Disk::flush`] (bytes and length) and [`Disk::flush_dir`] (names).
pub trait Disk: Send {
    /// Names of the files in `dir` (`""` for the data dir itself), with `dir` in front, ascending.
    /// A directory that is not there has none.
    ///
    /// # Errors
    /// `Io`.
    fn list(&mut self, dir: &str) -> Result<Vec<String>, DiskError>;

    /// Makes `dir` if it is not there.
    ///
    /// # Errors
    /// `Io`, `NoSpace`.
    fn ensure_dir(&mut self, dir: &str) -> Result<(), DiskError>;

    /// Creates `file` of `size` bytes, each *written* as zero (not merely allocated: an unwritten
    /// extent costs a journal commit at its first overwrite).
    ///
    /// # Errors
    /// `Exists`, `NoSpace` (the file may then be there in part), `Io`.
    fn create(&mut self, file: &str, size: u64) -> Result<(), DiskError>;

    /// Fills `buf` from `offset`. Offset and length are multiples of the block, and `buf` lies in
    /// an [`AlignedBuf`].
    ///
    /// # Errors
    /// `NotFound`, `UnexpectedEnd`, `Io`.
    fn read_at(&mut self, file: &str, offset: u64, buf: &mut [u8]) -> Result<(), DiskError>;

    /// Writes all of `bytes` at `offset`, growing the file if need be; alignment as in `read_at`.
    ///
    /// # Errors
    /// `NotFound`, `NoSpace`, `Io`.
    fn write_at(&mut self, file: &str, offset: u64, bytes: &[u8]) -> Result<(), DiskError>;

    /// Makes the bytes and the length of `file` durable.
    ///
    /// # Errors
    /// `NotFound`, `Io`.
    fn flush(&mut self, file: &str) -> Result<(), DiskError>;

    /// Makes the names in `dir` durable: creations, renames and removals up to now.
    ///
    /// # Errors
    /// `Io`.
    fn flush_dir(&mut self, dir: &str) -> Result<(), DiskError>;

    /// Renames `source` to `target`, atomically, replacing it.
    ///
    /// # Errors
    /// `NotFound`, `Io`.
    fn rename(&mut self, source: &str, target: &str) -> Result<(), DiskError>;

    /// Removes `file`.
    ///
    /// # Errors
    /// `NotFound`, `Io`.
    fn remove(&mut self, file: &str) -> Result<(), DiskError>;

    /// Length of `file`, bytes.
    ///
    /// # Errors
    /// `NotFound`, `Io`.
    fn len(&mut self, file: &str) -> Result<u64, DiskError>;
}

/// A WAL segment file, by its number in the pool. The number names the file only; which part of the
/// log it holds is in its header.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct SegmentId(pub u32);

impl SegmentId {
    /// File name within the data dir.
    #[must_use]
    pub fn name(self) -> String {
        format!("wal/{:016x}.wal", self.0)
    }

    /// Name of the file while it is being created.
    #[must_use]
    pub fn creation_name(self) -> String {
        format!("wal/{:016x}.new", self.0)
    }

    /// The reverse of [`Self::name`]; `None` for any other name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        let number = name.strip_prefix("wal/")?.strip_suffix(".wal")?;
        let id = Self(u32::from_str_radix(number, 16).ok()?);
        (id.name() == name).then_some(id)
    }
}

/// A frame on its way to the device, rising by one with each submitted frame of a run.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct FrameId(pub u64);

/// One durable write of the hot path: the caller writes `buf` at `offset` of `segment`, flushes
/// (O_DSYNC or fdatasync), and hands `id` and `buf` back by `Wal::flushed`.
#[derive(Debug)]
pub struct WriteFrame {
    /// Names the completion.
    pub id: FrameId,
    /// File to write.
    pub segment: SegmentId,
    /// Where in it, bytes, a multiple of the block.
    pub offset: u64,
    /// What, whole blocks. Owned by the device until the completion.
    pub buf: AlignedBuf,
    /// Position in the log of the first byte.
    pub lsn: Lsn,
    /// Position in the log behind the last byte.
    pub lsn_end: Lsn,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aligned_buf_is_aligned_zeroed_and_never_moves() {
        for blocks in 1..5 {
            let mut buf = AlignedBuf::new(blocks * BLOCK_BYTES);
            let address = buf.as_slice().as_ptr().addr();
            assert!(address.is_multiple_of(BLOCK_BYTES));
            buf.extend_from_slice(&[7; 100]);
            buf.extend_zeroed(28);
            buf.pad_to_block();
            assert_eq!(buf.len(), BLOCK_BYTES);
            assert_eq!(&buf.as_slice()[..100], &[7; 100]);
            assert!(buf.as_slice()[100..].iter().all(|&b| b == 0));
            buf.extend_zeroed(buf.capacity() - buf.len());
            let moved = buf;
            assert_eq!(moved.as_slice().as_ptr().addr(), address);
        }
    }

    #[test]
    fn reused_buffer_pads_with_zeros_over_old_bytes() {
        let mut buf = AlignedBuf::new(BLOCK_BYTES);
        buf.extend_from_slice(&[0xff; BLOCK_BYTES]);
        buf.clear();
        buf.extend_from_slice(b"x");
        buf.pad_to_block();
        assert!(buf.as_slice()[1..].iter().all(|&b| b == 0));
    }

    #[test]
    #[should_panic(expected = "end <= self.capacity")]
    fn aligned_buf_does_not_grow() {
        AlignedBuf::new(BLOCK_BYTES).extend_from_slice(&[0; BLOCK_BYTES + 1]);
    }

    #[test]
    fn segment_names_are_exact() {
        assert_eq!(SegmentId(0x1f).name(), "wal/000000000000001f.wal");
        assert_eq!(
            SegmentId::from_name("wal/000000000000001f.wal"),
            Some(SegmentId(31))
        );
        for other in [
            "wal/1f.wal",
            "wal/000000000000001F.wal",
            "000000000000001f.wal",
            "wal/x",
        ] {
            assert_eq!(SegmentId::from_name(other), None);
        }
    }
}
