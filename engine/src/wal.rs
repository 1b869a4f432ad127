//! The write-ahead log: accept records into the open frame, submit frames, learn what is flushed.
//!
//! Owned by the sequencer's core. It does no I/O: frames leave as [`WriteFrame`] values and come
//! back by [`Wal::flushed`]; preparing and removing files are [`Action`] values that the caller
//! runs on a side thread, one at a time. Reads below the RAM tail are [`ReadPlan`] values. Recovery
//! ([`recover::recover`]) is the only way to get a [`Wal`].
//!
//! Group commit has no timer: the next frame fills while others are in flight, and the caller
//! submits whenever it can. When nothing can be submitted and the open frame is full, the caller
//! has to wait: back-pressure, never an error.
//!
//! Invariants
//! - `flushed <= submitted <= accepted` (I2); flushed is contiguous, whatever the order of
//!   completions.
//! - A term and the entries of that term are never torn apart (I4): an entry is accepted only if
//!   the hard state has its term, and the frame that takes it carries that hard state.
//! - LSNs count bytes of frames without gaps, over segments. Within a run of the process the
//!   segments are filled in the order of their sequence numbers. A new run never writes into a
//!   segment of an older one: what a crash left behind the cut is never overwritten in place, not
//!   even by a write of the dead process that lands late, and recovery changes nothing it reads
//!   (see `recover.rs`).
//! - A segment is released (I9) in order of age, only when its live entries are all at or below a
//!   durable checkpoint and a later segment holds a flushed frame (which has the hard state).
//!
//! Not here: bytes of the layout (`frame.rs`), the files (`pool.rs`), trust in what is read
//! (`recover.rs`), which entries raft still needs, the RAM tail, the device.

pub mod frame;
mod live;
mod pool;
pub mod read;
pub mod recover;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;

pub use self::frame::{Entry, EntryKind, HardState, Identity};
use self::frame::{
    FLAG_RESET, FLAG_SEAL, FRAME_HEADER_BYTES, FrameHeader, RECORD_HEADER_BYTES,
    SEGMENT_HEADER_BYTES,
};
use self::live::{FlushedFrame, LiveLog};
pub use self::pool::{Action, DIR, PrepareSegment, remove_segment};
use self::pool::{Pool, Segment};
use self::read::PlannedRead;
pub use self::read::{LogEntry, ReadError, ReadPlan};
pub use self::recover::{RecoverError, RecoverOptions, Recovered, recover};
use crate::io::{AlignedBuf, Disk};
pub use crate::io::{FrameId, SegmentId, WriteFrame};
use crate::limits::Limits;
use crate::limits::format::BLOCK_BYTES;
use crate::types::{Index, Lsn};

/// Where a record is; the payload is [`frame::RECORD_HEADER_BYTES`] further. Local to this member.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct RecordPosition {
    /// Sequence number of the segment.
    pub segment: u32,
    /// Byte offset in it, a multiple of 16.
    pub offset: u32,
}

/// The open frame does not take this: submit it first, or wait until that is possible.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Full;

/// Counts since the start of the run, and what is held now.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Stats {
    /// Frames submitted.
    pub frames: u64,
    /// Bytes of them.
    pub frame_bytes: u64,
    /// Records accepted.
    pub records: u64,
    /// Bytes of their payloads.
    pub payload_bytes: u64,
    /// Segments that hold the log now.
    pub segments: usize,
    /// Free files now.
    pub free_segments: usize,
}

/// The frame that fills.
struct OpenFrame {
    /// Room for the header, then records.
    buf: AlignedBuf,
    /// Where in `buf` each record begins.
    offsets: Vec<u32>,
    records_checksum: u32,
    flags: u16,
    /// Whether there is anything that must become durable: records, a term or vote, a reset.
    dirty: bool,
}

impl OpenFrame {
    fn start(mut buf: AlignedBuf, mut offsets: Vec<u32>) -> Self {
        buf.clear();
        buf.extend_zeroed(FRAME_HEADER_BYTES);
        offsets.clear();
        Self {
            buf,
            offsets,
            records_checksum: 0,
            flags: 0,
            dirty: false,
        }
    }

    fn frame_bytes(&self) -> usize {
        self.buf.len().next_multiple_of(BLOCK_BYTES)
    }
}

/// A submitted frame.
struct InFlight {
    id: FrameId,
    lsn_end: Lsn,
    frame: FlushedFrame,
    completed: bool,
}

/// The records of the frame submitted last.
struct Submitted {
    seq: u32,
    offset: u32,
    first_index: Index,
    offsets: Vec<u32>,
}

/// The write-ahead log of one member. See the module's description.
pub struct Wal {
    limits: Limits,

    /// Segments that hold the log, oldest first.
    segments: VecDeque<Segment>,
    /// Whether this run opened the last of them, and so may write to it.
    open_segment: bool,
    /// Where the next frame goes in the open segment.
    segment_used: u64,
    pool: Pool,

    open: OpenFrame,
    hard_state: HardState,
    accepted_index: Index,
    /// Commit index in the frame submitted last.
    submitted_commit: Index,
    submitted: Submitted,
    in_flight: VecDeque<InFlight>,
    buffers: Vec<AlignedBuf>,
    next_frame: u64,
    /// Checksum of the frame submitted last.
    chain: u32,
    submitted_lsn: Lsn,
    flushed_lsn: Lsn,
    /// `flushed_lsn` in the header of the frame submitted last.
    covered_lsn: Lsn,
    /// Behind the last frame that is more than a seal.
    content_lsn: Lsn,
    /// Segment of the last flushed frame; 0 if there is none.
    flushed_seq: u32,
    live: LiveLog,
    stats: Stats,
}

/// What recovery found, for the log to go on from.
struct Found {
    segments: VecDeque<Segment>,
    pool: Pool,
    hard_state: HardState,
    chain: u32,
    lsn: Lsn,
    covered_lsn: Lsn,
    content_lsn: Lsn,
    live: LiveLog,
}

impl Wal {
    fn from_found(limits: Limits, found: Found) -> Self {
        let buffer = || AlignedBuf::new(limits.frame_bytes_max);
        let accepted_index = found.live.last_index();
        Self {
            limits,
            flushed_seq: found
                .segments
                .back()
                .map_or(0, |segment| segment.salt.seq()),
            segments: found.segments,
            open_segment: false,
            segment_used: 0,
            pool: found.pool,
            open: OpenFrame::start(buffer(), Vec::new()),
            hard_state: found.hard_state,
            accepted_index,
            submitted_commit: found.hard_state.commit,
            submitted: Submitted {
                seq: 0,
                offset: 0,
                first_index: 1,
                offsets: Vec::new(),
            },
            in_flight: VecDeque::with_capacity(limits.frames_in_flight_max),
            buffers: (0..limits.frames_in_flight_max).map(|_| buffer()).collect(),
            next_frame: 0,
            chain: found.chain,
            submitted_lsn: found.lsn,
            flushed_lsn: found.lsn,
            covered_lsn: found.covered_lsn,
            content_lsn: found.content_lsn,
            live: found.live,
            stats: Stats::default(),
        }
    }

    /// Largest payload of a record, bytes.
    #[must_use]
    pub const fn payload_bytes_max(limits: &Limits) -> usize {
        limits.frame_bytes_max - FRAME_HEADER_BYTES - RECORD_HEADER_BYTES
    }

    /// Accepts a record into the open frame: the one copy of the payload.
    ///
    /// A frame's records are contiguous, so an index accepted before (a new leader's overwrite)
    /// goes into a fresh frame.
    ///
    /// # Errors
    /// [`Full`]: the open frame has to be submitted first.
    ///
    /// # Panics
    /// If the entry leaves a gap, overwrites one that an earlier frame says is committed, is of a
    /// later term than the hard state, or can never fit a frame.
    pub fn append(&mut self, entry: Entry<'_>) -> Result<(), Full> {
        assert!(entry.index > self.submitted_commit);
        assert!(entry.index <= self.accepted_index + 1);
        assert!(entry.term >= 1);
        assert!(entry.term <= self.hard_state.term);
        assert!(entry.payload.len() <= Self::payload_bytes_max(&self.limits));
        let open = &mut self.open;
        let follows = entry.index == self.accepted_index + 1;
        let end = open.buf.len() + frame::record_bytes(entry.payload.len());
        if end > open.buf.capacity() || !(follows || open.offsets.is_empty()) {
            assert!(open.dirty);
            return Err(Full);
        }
        assert!(follows || open.flags & FLAG_RESET == 0);
        let offset = open.buf.len();
        let head = frame::record_header(&entry);
        open.offsets
            .push(u32::try_from(offset).expect("a frame has less than 4 GiB"));
        open.records_checksum = frame::add_record_header(open.records_checksum, &head);
        open.buf.extend_from_slice(&head);
        open.buf.extend_from_slice(entry.payload);
        open.buf.extend_zeroed(end - open.buf.len());
        open.dirty = true;
        self.accepted_index = entry.index;
        self.stats.records += 1;
        self.stats.payload_bytes += entry.payload.len() as u64;
        Ok(())
    }

    /// Bytes that the open frame still takes ([`frame::record_bytes`] for each record).
    #[must_use]
    pub fn open_room(&self) -> usize {
        self.open.buf.capacity() - self.open.buf.len()
    }

    /// The hard state that the next frame carries. Set it *before* appending entries of its term.
    ///
    /// A new term or vote makes a frame due, even without records; a new commit index does not
    /// (raft never needs it durable), and is written no higher than the log of its frame.
    ///
    /// # Panics
    /// If the term or commit index falls, or the vote changes within its term.
    pub fn set_hard_state(&mut self, hard_state: HardState) {
        let old = self.hard_state;
        assert!(hard_state.term >= old.term);
        assert!(hard_state.commit >= old.commit);
        assert!(hard_state.term > old.term || old.vote == 0 || hard_state.vote == old.vote);
        self.open.dirty |= (hard_state.term, hard_state.vote) != (old.term, old.vote);
        self.hard_state = hard_state;
    }

    /// The log begins anew at `next_index`: a snapshot, durable already, replaced what came before.
    ///
    /// # Errors
    /// [`Full`]: the open frame has records and has to be submitted first.
    ///
    /// # Panics
    /// If committed entries would be replaced.
    pub fn reset(&mut self, next_index: Index) -> Result<(), Full> {
        assert!(next_index > self.submitted_commit);
        if !self.open.offsets.is_empty() {
            return Err(Full);
        }
        self.open.flags |= FLAG_RESET;
        self.open.dirty = true;
        self.accepted_index = next_index - 1;
        Ok(())
    }

    /// Whether a frame could be submitted now: fewer than `frames_in_flight_max` are in flight and
    /// the open frame fits the open segment, or another is ready.
    #[must_use]
    pub fn can_submit(&self) -> bool {
        self.in_flight.len() < self.limits.frames_in_flight_max
            && (self.fits_open_segment() || self.pool.is_ready())
    }

    fn fits_open_segment(&self) -> bool {
        let left = self.limits.segment_bytes - self.segment_used;
        self.open_segment && self.open.frame_bytes() as u64 <= left
    }

    /// Closes the open frame, if there is anything in it and [`Self::can_submit`].
    pub fn submit(&mut self) -> Option<WriteFrame> {
        (self.open.dirty && self.can_submit()).then(|| self.write_open_frame())
    }

    /// An empty frame that says that everything before it is durable, so that damage to what was
    /// acknowledged last is told from a torn write. Call it when the log was idle for a while;
    /// `None` if it is not idle or there is nothing to say.
    pub fn seal(&mut self) -> Option<WriteFrame> {
        let idle = !self.open.dirty && self.in_flight.is_empty();
        if !idle || self.content_lsn <= self.covered_lsn || !self.can_submit() {
            return None;
        }
        self.open.flags |= FLAG_SEAL;
        Some(self.write_open_frame())
    }

    fn write_open_frame(&mut self) -> WriteFrame {
        assert!(self.can_submit());
        if !self.fits_open_segment() {
            self.segments
                .push_back(self.pool.take().expect("can_submit saw it"));
            self.open_segment = true;
            self.segment_used = SEGMENT_HEADER_BYTES as u64;
        }
        let segment = *self.segments.back().expect("one is open");
        let buffer = self
            .buffers
            .pop()
            .expect("there is one more than frames in flight");
        let offsets = core::mem::take(&mut self.submitted.offsets);
        let open = core::mem::replace(&mut self.open, OpenFrame::start(buffer, offsets));
        let OpenFrame {
            mut buf,
            offsets,
            records_checksum,
            flags,
            ..
        } = open;

        let payload_bytes = buf.len() - FRAME_HEADER_BYTES;
        buf.pad_to_block();
        let fits = "a frame has less than 4 GiB, a segment too";
        let record_count = u32::try_from(offsets.len()).expect(fits);
        let commit = self.hard_state.commit.min(self.accepted_index);
        let header = FrameHeader {
            flags,
            record_count,
            lsn: self.submitted_lsn,
            frame_bytes: u32::try_from(buf.len()).expect(fits),
            payload_bytes: u32::try_from(payload_bytes).expect(fits),
            flushed_lsn: self.flushed_lsn,
            first_index: self.accepted_index + 1 - u64::from(record_count),
            hard_state: HardState {
                commit,
                ..self.hard_state
            },
            offset: u32::try_from(self.segment_used).expect(fits),
            previous: self.chain,
            records_checksum,
        };
        self.chain = header.encode(&segment.salt, buf.as_mut_slice());
        let offset = self.segment_used;
        self.segment_used += buf.len() as u64;
        assert!(self.segment_used <= self.limits.segment_bytes);
        self.note_submitted(&header, segment.salt.seq(), offsets);
        let id = FrameId(self.next_frame - 1);
        let (lsn, lsn_end) = (header.lsn, header.lsn_end());
        WriteFrame {
            id,
            segment: segment.file,
            offset,
            buf,
            lsn,
            lsn_end,
        }
    }

    fn note_submitted(&mut self, header: &FrameHeader, seq: u32, offsets: Vec<u32>) {
        let id = FrameId(self.next_frame);
        self.next_frame += 1;
        self.in_flight.push_back(InFlight {
            id,
            lsn_end: header.lsn_end(),
            frame: flushed_frame(header, seq),
            completed: false,
        });
        self.submitted_lsn = header.lsn_end();
        self.submitted_commit = header.hard_state.commit;
        self.covered_lsn = header.flushed_lsn;
        if header.flags & FLAG_SEAL == 0 {
            self.content_lsn = header.lsn_end();
        }
        let first_index = header.first_index;
        self.submitted = Submitted {
            seq,
            offset: header.offset,
            first_index,
            offsets,
        };
        self.stats.frames += 1;
        self.stats.frame_bytes += u64::from(header.frame_bytes);
        self.check();
    }

    /// The records of the frame submitted last, ascending, and where they are.
    pub fn submitted_positions(&self) -> impl Iterator<Item = (Index, RecordPosition)> {
        let Submitted {
            seq,
            offset,
            first_index,
            ref offsets,
        } = self.submitted;
        (first_index..).zip(offsets).map(move |(index, within)| {
            (
                index,
                RecordPosition {
                    segment: seq,
                    offset: offset + within,
                },
            )
        })
    }

    /// Takes a completion, in any order; gives the new flushed position. A *failed* write or flush
    /// is not reported here: the process stops.
    ///
    /// # Panics
    /// If no such frame is in flight, or `buf` is not one of the log's.
    pub fn flushed(&mut self, id: FrameId, buf: AlignedBuf) -> Lsn {
        assert_eq!(buf.capacity(), self.limits.frame_bytes_max);
        let frame = self.in_flight.iter_mut().find(|frame| frame.id == id);
        let frame = frame.expect("a completed frame was in flight");
        assert!(!frame.completed);
        frame.completed = true;
        self.buffers.push(buf);
        assert!(self.buffers.len() <= self.limits.frames_in_flight_max);
        while self.in_flight.front().is_some_and(|frame| frame.completed) {
            let InFlight { lsn_end, frame, .. } = self.in_flight.pop_front().expect("just seen");
            assert!(lsn_end > self.flushed_lsn);
            self.flushed_lsn = lsn_end;
            self.flushed_seq = frame.seq;
            self.live.flushed(frame);
        }
        self.check();
        self.flushed_lsn
    }

    /// What a side thread should do now; the same is not said twice.
    pub fn action(&mut self) -> Option<Action> {
        self.pool.action()
    }

    /// The outstanding [`Action::PrepareSegment`] is done, durably.
    ///
    /// # Panics
    /// If it is not outstanding.
    pub fn segment_ready(&mut self, file: SegmentId) {
        self.pool.prepared(file);
    }

    /// The outstanding [`Action::RemoveSegment`] is done, durably.
    ///
    /// # Panics
    /// If it is not outstanding.
    pub fn segment_removed(&mut self, file: SegmentId) {
        self.pool.removed(file);
    }

    /// Frees the segments whose live entries are all at or below `checkpoint_index`: durable in a
    /// checkpoint, outside raft's retention, and read by nobody. Gives their number.
    pub fn release(&mut self, checkpoint_index: Index) -> usize {
        let mut count = 0;
        while let Some(segment) = self.segments.front() {
            let seq = segment.salt.seq();
            let live = self.live.last_index_in(seq);
            // The last flushed frame stays: it has the hard state.
            if seq >= self.flushed_seq || live.is_some_and(|index| index > checkpoint_index) {
                break;
            }
            self.live.release(seq);
            self.pool.release(segment.file);
            self.segments.pop_front();
            count += 1;
        }
        count
    }

    /// What to read for the entries `low..high`, at most `payload_bytes_max` but at least one
    /// entry.
    ///
    /// # Errors
    /// `Missing` if one of them is not in the flushed log.
    ///
    /// # Panics
    /// If the range is empty.
    pub fn plan_read(
        &self,
        low: Index,
        high: Index,
        payload_bytes_max: u64,
    ) -> Result<ReadPlan, ReadError> {
        assert!(low < high);
        if low < self.first_index() || high > self.flushed_index() + 1 {
            return Err(ReadError::Missing);
        }
        let front_seq = self
            .segments
            .front()
            .map_or(0, |segment| segment.salt.seq());
        let planned = self.live.runs(low, high).map(|run| {
            assert!(run.seq >= front_seq);
            let nth = self
                .segments
                .partition_point(|segment| segment.salt.seq() < run.seq);
            let Segment { file, salt } = self.segments[nth];
            assert_eq!(salt.seq(), run.seq);
            PlannedRead {
                file,
                salt,
                offset: run.offset,
                first_index: run.first_index,
                last_index: run.last_index.min(high - 1),
            }
        });
        Ok(ReadPlan {
            runs: planned.collect(),
            low,
            payload_bytes_max,
            segment_bytes: self.limits.segment_bytes,
            chunk_bytes: self.limits.frame_bytes_max,
        })
    }

    /// Reads the entries `low..high` of the flushed log: [`Self::plan_read`], run at once.
    ///
    /// # Errors
    /// As [`Self::plan_read`] and [`ReadPlan::run`].
    pub fn read_entries(
        &self,
        disk: &mut dyn Disk,
        low: Index,
        high: Index,
        payload_bytes_max: u64,
    ) -> Result<Vec<LogEntry>, ReadError> {
        self.plan_read(low, high, payload_bytes_max)?.run(disk)
    }

    /// Everything below is durable.
    #[must_use]
    pub const fn flushed_lsn(&self) -> Lsn {
        self.flushed_lsn
    }

    /// Everything below was handed out as frames.
    #[must_use]
    pub const fn submitted_lsn(&self) -> Lsn {
        self.submitted_lsn
    }

    /// Behind the open frame, as it is now.
    #[must_use]
    pub fn accepted_lsn(&self) -> Lsn {
        let open = if self.open.dirty {
            self.open.frame_bytes() as u64
        } else {
            0
        };
        self.submitted_lsn + open
    }

    /// Index of the oldest entry that can be read back; `flushed_index + 1` if there is none.
    #[must_use]
    pub fn first_index(&self) -> Index {
        self.live.first_index()
    }

    /// Index of the last entry of the flushed log.
    #[must_use]
    pub const fn flushed_index(&self) -> Index {
        self.live.last_index()
    }

    /// Index of the last accepted entry.
    #[must_use]
    pub const fn accepted_index(&self) -> Index {
        self.accepted_index
    }

    /// The hard state as set last.
    #[must_use]
    pub const fn hard_state(&self) -> HardState {
        self.hard_state
    }

    /// Frames in flight.
    #[must_use]
    pub fn in_flight_count(&self) -> usize {
        self.in_flight.len()
    }

    /// Counts.
    #[must_use]
    pub fn stats(&self) -> Stats {
        Stats {
            segments: self.segments.len(),
            free_segments: self.pool.free_count(),
            ..self.stats
        }
    }

    fn check(&self) {
        assert!(self.flushed_lsn <= self.submitted_lsn);
        assert!(self.covered_lsn <= self.flushed_lsn);
        assert!(self.content_lsn <= self.submitted_lsn);
        assert!(self.in_flight.len() <= self.limits.frames_in_flight_max);
        assert_eq!(
            self.in_flight.is_empty(),
            self.flushed_lsn == self.submitted_lsn
        );
        debug_assert!(self.submitted_lsn <= self.accepted_lsn());
    }
}

fn flushed_frame(header: &FrameHeader, seq: u32) -> FlushedFrame {
    FlushedFrame {
        seq,
        offset: u64::from(header.offset),
        first_index: header.first_index,
        last_index: header.last_index(),
        reset: header.flags & FLAG_RESET != 0,
    }
}
