//! Reading segments: large aligned reads, and the plan of a log read below the tail in RAM.
//!
//! A [`ReadPlan`] is a value: the WAL makes it on the sequencer's core, any thread runs it.
//! Payloads come back as slices of the read buffers, so an entry kept for long pins up to one
//! largest frame: copy it out then. What is read is verified like in recovery, apart from the
//! chain.
//!
//! Not here: which part of the log is where (`wal.rs`), the order and trust of frames
//! (`recover.rs`).

use bytes::Bytes;

use super::frame::{self, FrameHeader, RECORD_HEADER_BYTES, Salt};
use super::{EntryKind, RecordPosition};
use crate::error::Corruption;
use crate::io::{AlignedBuf, Disk, DiskError, SegmentId};
use crate::limits::format::BLOCK_BYTES;
use crate::types::{Index, Term};

/// An entry read back from the log. Owns a share of its read buffer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LogEntry {
    /// Position in the raft log.
    pub index: Index,
    /// Term in which it was proposed.
    pub term: Term,
    /// What the payload is.
    pub kind: EntryKind,
    /// Its bytes.
    pub payload: Bytes,
    /// Where its record is.
    pub position: RecordPosition,
}

/// Why entries could not be read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ReadError {
    /// The device failed.
    Disk(DiskError),
    /// The bytes are not what was written.
    Corrupt(Corruption),
    /// The entries are not in the flushed log (released, or not yet flushed).
    Missing,
}

impl From<DiskError> for ReadError {
    fn from(error: DiskError) -> Self {
        Self::Disk(error)
    }
}

/// Reads one segment in chunks of at least `chunk_bytes`, mostly each byte once.
pub(super) struct SegmentReader {
    name: String,
    segment_bytes: u64,
    chunk_bytes: usize,
    chunk: Bytes,
    chunk_start: u64,
}

impl SegmentReader {
    /// A reader of `segment`, a file of `segment_bytes`.
    pub(super) fn new(segment: SegmentId, segment_bytes: u64, chunk_bytes: usize) -> Self {
        assert!(chunk_bytes.is_multiple_of(BLOCK_BYTES));
        let name = segment.name();
        Self {
            name,
            segment_bytes,
            chunk_bytes,
            chunk: Bytes::new(),
            chunk_start: 0,
        }
    }

    /// `len` bytes from `offset`, both whole blocks; `None` beyond the end of the file.
    pub(super) fn bytes(
        &mut self,
        disk: &mut dyn Disk,
        offset: u64,
        len: usize,
    ) -> Result<Option<Bytes>, DiskError> {
        assert!(offset.is_multiple_of(BLOCK_BYTES as u64));
        assert!(len.is_multiple_of(BLOCK_BYTES));
        let left = self.segment_bytes.saturating_sub(offset);
        if left < len as u64 {
            return Ok(None);
        }
        let chunk_end = self.chunk_start + self.chunk.len() as u64;
        if offset < self.chunk_start || offset + len as u64 > chunk_end {
            let want = self.chunk_bytes.max(len);
            // Bounded by `want`, a usize.
            let want = left.min(want as u64) as usize;
            let mut buf = AlignedBuf::zeroed(want);
            disk.read_at(&self.name, offset, buf.as_mut_slice())?;
            self.chunk = Bytes::from_owner(buf);
            self.chunk_start = offset;
        }
        // Within the chunk, whose length is a usize.
        let start = (offset - self.chunk_start) as usize;
        Ok(Some(self.chunk.slice(start..start + len)))
    }

    /// The verified frame at `offset`, its checksum and all its bytes.
    ///
    /// The inner error says what is wrong with the frame.
    pub(super) fn frame(
        &mut self,
        disk: &mut dyn Disk,
        salt: &Salt,
        offset: u64,
    ) -> Result<Result<(FrameHeader, u32, Bytes), &'static str>, DiskError> {
        let Some(block) = self.bytes(disk, offset, BLOCK_BYTES)? else {
            return Ok(Err("the segment is full"));
        };
        let (header, checksum) = match FrameHeader::decode(&block, salt, offset) {
            Ok(decoded) => decoded,
            Err(what) => return Ok(Err(what)),
        };
        let Some(bytes) = self.bytes(disk, offset, header.frame_bytes as usize)? else {
            return Ok(Err("frame reaches over the end of its segment"));
        };
        if let Err(what) = frame::verify_records(&header, &bytes) {
            return Ok(Err(what));
        }
        Ok(Ok((header, checksum, bytes)))
    }
}

/// The entries of a verified frame.
pub(super) fn entries<'a>(
    header: &FrameHeader,
    bytes: &'a Bytes,
    seq: u32,
) -> impl Iterator<Item = LogEntry> + use<'a> {
    let frame_offset = header.offset;
    frame::records(header, bytes).map(move |record| {
        let start = record.offset + RECORD_HEADER_BYTES;
        let within = u32::try_from(record.offset).expect("a frame has less than 4 GiB");
        LogEntry {
            index: record.index,
            term: record.term,
            kind: record.kind,
            payload: bytes.slice(start..start + record.payload_bytes),
            position: RecordPosition {
                segment: seq,
                offset: frame_offset + within,
            },
        }
    })
}

/// A run of frames with contiguous entries, part of a [`ReadPlan`].
#[derive(Clone, Debug)]
pub(super) struct PlannedRead {
    pub(super) file: SegmentId,
    pub(super) salt: Salt,
    /// Where the first of the frames begins.
    pub(super) offset: u64,
    /// First index in the frame at `offset`.
    pub(super) first_index: Index,
    /// Last index to take from here.
    pub(super) last_index: Index,
}

/// What to read for a range of entries; see `Wal::plan_read`. Valid until one of its segments is
/// released: the caller holds releases back meanwhile.
#[derive(Clone, Debug)]
pub struct ReadPlan {
    pub(super) runs: Vec<PlannedRead>,
    pub(super) low: Index,
    pub(super) payload_bytes_max: u64,
    pub(super) segment_bytes: u64,
    pub(super) chunk_bytes: usize,
}

impl ReadPlan {
    /// The entries from `low`, ascending and without gaps, until the planned end or until the next
    /// payload would exceed the bytes asked for; at least one.
    ///
    /// # Errors
    /// `Disk`, `Corrupt`.
    pub fn run(&self, disk: &mut dyn Disk) -> Result<Vec<LogEntry>, ReadError> {
        let mut found = Vec::new();
        let mut payload_bytes = 0;
        for run in &self.runs {
            let mut reader = SegmentReader::new(run.file, self.segment_bytes, self.chunk_bytes);
            let mut offset = run.offset;
            let mut next = run.first_index;
            while next <= run.last_index {
                let damaged = |what| {
                    let file = run.file.name();
                    Err(ReadError::Corrupt(Corruption { file, offset, what }))
                };
                let (header, bytes) = match reader.frame(disk, &run.salt, offset)? {
                    Ok((header, _, bytes)) if header.first_index == next => (header, bytes),
                    Ok(_) => return damaged("frame does not continue the log"),
                    Err(what) => return damaged(what),
                };
                for entry in entries(&header, &bytes, run.salt.seq()) {
                    if entry.index < self.low || entry.index > run.last_index {
                        continue;
                    }
                    payload_bytes += entry.payload.len() as u64;
                    if payload_bytes > self.payload_bytes_max && !found.is_empty() {
                        return Ok(found);
                    }
                    found.push(entry);
                }
                next = header.last_index() + 1;
                offset += u64::from(header.frame_bytes);
            }
        }
        Ok(found)
    }
}
