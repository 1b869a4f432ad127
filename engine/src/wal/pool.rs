//! Segment files: preparing the next one off the hot path, recycling, removing.
//!
//! Part of [`super::Wal`], on the sequencer's core; the work itself is an [`Action`], run on a side
//! thread, one at a time. One segment is kept ready: the next is prepared as soon as that one
//! opens, and a restart finds a file that is zero-filled already.
//!
//! Invariant: files are re-headed and removed in the order in which they became free, each durably
//! before the next begins. So what a crash leaves of released segments always borders on the log,
//! and a segment that was cut away is gone before the one that took over its LSNs is (see
//! `recover.rs`).
//!
//! Not here: when a segment may be released (`wal.rs`).

use std::collections::VecDeque;

use super::frame::{Identity, SEGMENT_HEADER_BYTES, Salt, SegmentHeader};
use crate::io::{AlignedBuf, Disk, DiskError, DiskErrorKind, SegmentId};
use crate::limits::Limits;

/// Directory of the segments, within the data dir.
pub const DIR: &str = "wal";

/// A segment of the log.
#[derive(Clone, Copy, Debug)]
pub(super) struct Segment {
    pub(super) file: SegmentId,
    pub(super) salt: Salt,
}

/// Work for a side thread. At most one is outstanding.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Action {
    /// [`Action::run`], then [`super::Wal::segment_ready`].
    PrepareSegment(PrepareSegment),
    /// [`Action::run`], then [`super::Wal::segment_removed`].
    RemoveSegment(SegmentId),
}

impl Action {
    /// Does it, durably. May be run again after an error (say, when there is space again).
    ///
    /// # Errors
    /// Any of the disk. After a failed flush the process must stop.
    pub fn run(&self, disk: &mut dyn Disk) -> Result<(), DiskError> {
        match self {
            Self::PrepareSegment(prepare) => prepare.run(disk),
            Self::RemoveSegment(file) => remove_segment(*file, disk),
        }
    }
}

/// Makes a file ready to take frames: created and zero-filled, or recycled, under a new header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PrepareSegment {
    /// The file.
    pub file: SegmentId,
    /// Whether it is to be created; else it is there and full of frames nobody needs.
    pub create: bool,
    /// Its new header.
    pub header: SegmentHeader,
}

impl PrepareSegment {
    /// Does it, as [`Action::run`].
    ///
    /// # Errors
    /// Any of the disk. After a failed flush the process must stop.
    pub fn run(&self, disk: &mut dyn Disk) -> Result<(), DiskError> {
        let mut block = AlignedBuf::zeroed(SEGMENT_HEADER_BYTES);
        self.header.encode(block.as_mut_slice());
        let name = self.file.name();
        if !self.create {
            disk.write_at(&name, 0, block.as_slice())?;
            return disk.flush(&name);
        }
        // The name appears only when the contents are durable: a segment file is always whole.
        let creation_name = self.file.creation_name();
        remove_if_there(disk, &creation_name)?;
        disk.create(&creation_name, self.header.segment_bytes)?;
        disk.write_at(&creation_name, 0, block.as_slice())?;
        disk.flush(&creation_name)?;
        disk.rename(&creation_name, &name)?;
        disk.flush_dir(DIR)
    }
}

/// Runs [`Action::RemoveSegment`], durably.
///
/// # Errors
/// Any of the disk.
pub fn remove_segment(segment: SegmentId, disk: &mut dyn Disk) -> Result<(), DiskError> {
    remove_if_there(disk, &segment.name())?;
    disk.flush_dir(DIR)
}

fn remove_if_there(disk: &mut dyn Disk, file: &str) -> Result<(), DiskError> {
    match disk.remove(file) {
        Err(error) if error.kind == DiskErrorKind::NotFound => Ok(()),
        result => result,
    }
}

/// The files that do not hold the log.
pub(super) struct Pool {
    identity: Identity,
    /// Salts every segment of this run.
    incarnation: u64,
    segment_bytes: u64,
    free_max: usize,
    ready: Option<Segment>,
    outstanding: Option<Action>,
    /// Files to re-head or remove, in this order.
    free: VecDeque<SegmentId>,
    next_file: u32,
    next_seq: u32,
}

impl Pool {
    /// `free` files, oldest first; `next_file` and `next_seq` are above all that were ever seen.
    pub(super) fn new(
        limits: &Limits,
        identity: Identity,
        incarnation: u64,
        free: VecDeque<SegmentId>,
        (next_file, next_seq): (u32, u32),
    ) -> Self {
        Self {
            identity,
            incarnation,
            segment_bytes: limits.segment_bytes,
            free_max: limits.wal_free_segments_max,
            ready: None,
            outstanding: None,
            free,
            next_file,
            next_seq,
        }
    }

    /// Whether [`Self::take`] would give a segment.
    pub(super) const fn is_ready(&self) -> bool {
        self.ready.is_some()
    }

    /// The segment that is ready to take frames.
    pub(super) const fn take(&mut self) -> Option<Segment> {
        self.ready.take()
    }

    /// `file` holds nothing anybody needs.
    pub(super) fn release(&mut self, file: SegmentId) {
        self.free.push_back(file);
    }

    /// Files that could be re-headed.
    pub(super) fn free_count(&self) -> usize {
        self.free.len()
    }

    /// See [`super::Wal::action`].
    pub(super) fn action(&mut self) -> Option<Action> {
        if self.outstanding.is_some() {
            return None;
        }
        let action = if self.ready.is_none() {
            Action::PrepareSegment(self.prepare())
        } else if self.free.len() > self.free_max {
            let oldest = self
                .free
                .pop_front()
                .expect("there are more than the maximum");
            Action::RemoveSegment(oldest)
        } else {
            return None;
        };
        self.outstanding = Some(action);
        Some(action)
    }

    fn prepare(&mut self) -> PrepareSegment {
        let recycled = self.free.pop_front();
        let file = recycled.unwrap_or(SegmentId(self.next_file));
        if recycled.is_none() {
            self.next_file = self
                .next_file
                .checked_add(1)
                .expect("2^32 files never exist");
        }
        let header = SegmentHeader {
            identity: self.identity,
            incarnation: self.incarnation,
            seq: self.next_seq,
            segment_bytes: self.segment_bytes,
        };
        self.next_seq = self
            .next_seq
            .checked_add(1)
            .expect("2^32 segments outlast the device");
        PrepareSegment {
            file,
            create: recycled.is_none(),
            header,
        }
    }

    /// The outstanding preparation is done.
    pub(super) fn prepared(&mut self, file: SegmentId) {
        let Some(Action::PrepareSegment(prepared)) = self.outstanding.take() else {
            panic!("no segment was being prepared");
        };
        assert_eq!(prepared.file, file);
        assert!(self.ready.is_none());
        self.ready = Some(Segment {
            file,
            salt: prepared.header.salt(),
        });
    }

    /// The outstanding removal is done.
    pub(super) fn removed(&mut self, file: SegmentId) {
        assert_eq!(self.outstanding.take(), Some(Action::RemoveSegment(file)));
    }
}
