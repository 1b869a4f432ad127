//! Byte layout of segment headers, frames and records, with checked decoding.
//!
//! Pure functions over bytes; owned by nobody. All integers little-endian.
//!
//! **Segment header**, the first 4 KiB of a file: the same 512 B eight times, one per sector, so
//! that a torn heading is told from a damaged one (a sector is written whole or not at all).
//! ```text
//!  0 magic u64 | 8 version u32 | 12 copy u32 | 16 incarnation u64 | 24 seq u32 | 28 0 u32
//! 32 cluster u64 | 40 member u64 | 48 segment_bytes u64 | 56 format u32
//! 60 0 ... 508 checksum u32
//! ```
//! **Frame**, n x 4 KiB, one group commit, never rewritten, never over the end of its segment:
//! ```text
//!   0 magic u32 | 4 version u16 | 6 flags u16 | 8 incarnation u64 | 16 seq u32
//!  20 record_count u32
//!  24 lsn u64 | 32 frame_bytes u32 | 36 payload_bytes u32 | 40 flushed_lsn u64
//!  48 first_index u64 | 56 last_index u64 | 64 term u64 | 72 vote u64 | 80 commit u64
//!  88 offset u32 | 92 previous u32 | 96 0 ... 120 records_checksum u32 | 124 checksum u32
//! 128 records, payload_bytes of them | zeros up to frame_bytes
//! ```
//! `checksum` covers bytes 0..124 and is seeded with cluster, member, incarnation and seq (the
//! [`Salt`]): what an earlier life of the file left there never verifies. `previous` is the
//! `checksum` of the frame before, over segments too: the chain. `records_checksum` covers bytes
//! 0..28 of the records' headers, which in turn hold the checksums of the payloads, so each payload
//! byte is checksummed once. `last_index + 1 - first_index` is `record_count`: a frame's records
//! are contiguous, and an empty frame has `first_index` where the next record would be.
//!
//! **Record**, 16-aligned within the frame, position independent, identical on all members:
//! ```text
//! 0 payload_bytes u32 | 4 kind u8 | 5 0 | 8 index u64 | 16 term u64 | 24 payload_checksum u32
//! 28 header_checksum u32 (of bytes 0..28) | 32 payload | zeros up to a multiple of 16
//! ```
//! Everything not listed is zero and checked to be: any single flipped bit is detected (I12).

use crc32c::{crc32c, crc32c_append};

use crate::limits::format::{BLOCK_BYTES, VERSION};
use crate::types::{Index, Lsn, Term};

/// Bytes of a segment's header; the first frame begins behind it.
pub const SEGMENT_HEADER_BYTES: usize = BLOCK_BYTES;
/// Bytes of a frame's header.
pub const FRAME_HEADER_BYTES: usize = 128;
/// Bytes of a record's header.
pub const RECORD_HEADER_BYTES: usize = 32;
/// Records begin at multiples of this within their frame.
pub const RECORD_ALIGN_BYTES: usize = 16;

const SEGMENT_MAGIC: u64 = u64::from_le_bytes(*b"ringkvws");
const FRAME_MAGIC: u32 = u32::from_le_bytes(*b"rkwf");
const SECTOR_BYTES: usize = 512;
const HEADER_COPIES: usize = SEGMENT_HEADER_BYTES / SECTOR_BYTES;
const FRAME_VERSION: u16 = 1;

const _: () = {
    assert!(FRAME_HEADER_BYTES.is_multiple_of(RECORD_ALIGN_BYTES));
    assert!(RECORD_HEADER_BYTES.is_multiple_of(RECORD_ALIGN_BYTES));
    assert!(FRAME_VERSION as u32 == VERSION);
};

/// The frame only says that what was written before it is durable, or carries a vote; no records.
pub const FLAG_SEAL: u16 = 1;
/// The log begins anew at `first_index`: a snapshot replaced what came before.
pub const FLAG_RESET: u16 = 2;

/// Whose log it is. Both ids are in every segment header and salt every frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Identity {
    /// Cluster id.
    pub cluster: u64,
    /// Member id.
    pub member: u64,
}

/// What raft must not forget, in every frame's header.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct HardState {
    /// Current term.
    pub term: Term,
    /// Member voted for in that term, 0 for none.
    pub vote: u64,
    /// Highest index known to be committed.
    pub commit: Index,
}

/// What a record's payload is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum EntryKind {
    /// A command of the state machine.
    Normal = 1,
    /// Nothing: a new leader's first entry.
    Empty = 2,
    /// A raft `ConfChange`.
    ConfChange = 3,
    /// A raft `ConfChangeV2`.
    ConfChangeV2 = 4,
}

impl EntryKind {
    const fn from_u8(value: u8) -> Option<Self> {
        match value {
            1 => Some(Self::Normal),
            2 => Some(Self::Empty),
            3 => Some(Self::ConfChange),
            4 => Some(Self::ConfChangeV2),
            _ => None,
        }
    }
}

/// An entry to append. The payload is borrowed and copied once, into the open frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Entry<'a> {
    /// Position in the raft log.
    pub index: Index,
    /// Term in which it was proposed.
    pub term: Term,
    /// What the payload is.
    pub kind: EntryKind,
    /// Its bytes.
    pub payload: &'a [u8],
}

/// Identity of a segment file's contents.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SegmentHeader {
    /// Whose log.
    pub identity: Identity,
    /// Random number of the run that wrote this header.
    pub incarnation: u64,
    /// Rises by one with each segment taken into use.
    pub seq: u32,
    /// Size of the file, bytes.
    pub segment_bytes: u64,
}

/// What a segment file's first block says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Heading {
    /// It is this segment.
    Whole(SegmentHeader),
    /// A crash hit while the file was given a new header: its old contents were released before,
    /// the new header was never reported ready, so the file is free. `seq` is the highest named in
    /// it.
    Torn {
        /// Highest sequence number of the two headers.
        seq: u32,
    },
    /// Written by another version or with other format constants.
    Foreign,
    /// No copy of the header is readable.
    Damaged,
}

/// Hash of everything that must be equal for the bytes to mean the same.
fn format_hash() -> u32 {
    let constants = [
        BLOCK_BYTES,
        SEGMENT_HEADER_BYTES,
        FRAME_HEADER_BYTES,
        RECORD_HEADER_BYTES,
        RECORD_ALIGN_BYTES,
        HEADER_COPIES,
    ];
    constants.iter().fold(VERSION, |hash, &n| {
        crc32c_append(hash, &(n as u64).to_le_bytes())
    })
}

impl SegmentHeader {
    /// Writes all copies into `block`.
    ///
    /// # Panics
    /// If `block` is not [`SEGMENT_HEADER_BYTES`] long.
    pub fn encode(&self, block: &mut [u8]) {
        assert_eq!(block.len(), SEGMENT_HEADER_BYTES);
        block.fill(0);
        for (copy, sector) in (0u32..).zip(block.chunks_exact_mut(SECTOR_BYTES)) {
            put_u64(sector, 0, SEGMENT_MAGIC);
            put_u32(sector, 8, VERSION);
            put_u32(sector, 12, copy);
            put_u64(sector, 16, self.incarnation);
            put_u32(sector, 24, self.seq);
            put_u64(sector, 32, self.identity.cluster);
            put_u64(sector, 40, self.identity.member);
            put_u64(sector, 48, self.segment_bytes);
            put_u32(sector, 56, format_hash());
            let checksum = crc32c(&sector[..508]);
            put_u32(sector, 508, checksum);
        }
    }

    /// Reads what `block` says. One readable copy is enough; two different ones are a torn heading.
    ///
    /// # Panics
    /// If `block` is not [`SEGMENT_HEADER_BYTES`] long.
    #[must_use]
    pub fn decode(block: &[u8]) -> Heading {
        assert_eq!(block.len(), SEGMENT_HEADER_BYTES);
        let mut found: Option<Self> = None;
        let mut torn = false;
        let mut seq_max = 0;
        for (copy, sector) in (0u32..).zip(block.chunks_exact(SECTOR_BYTES)) {
            let intact = get_u64(sector, 0) == SEGMENT_MAGIC
                && get_u32(sector, 508) == crc32c(&sector[..508])
                && get_u32(sector, 12) == copy;
            if !intact {
                continue;
            }
            if get_u32(sector, 8) != VERSION || get_u32(sector, 56) != format_hash() {
                return Heading::Foreign;
            }
            let header = Self {
                identity: Identity {
                    cluster: get_u64(sector, 32),
                    member: get_u64(sector, 40),
                },
                incarnation: get_u64(sector, 16),
                seq: get_u32(sector, 24),
                segment_bytes: get_u64(sector, 48),
            };
            torn |= found.is_some_and(|first| first != header);
            seq_max = seq_max.max(header.seq);
            found = Some(header);
        }
        match found {
            None => Heading::Damaged,
            Some(_) if torn => Heading::Torn { seq: seq_max },
            Some(header) => Heading::Whole(header),
        }
    }

    /// What this segment's frames are salted with.
    #[must_use]
    pub fn salt(&self) -> Salt {
        let mut seed = crc32c(&self.identity.cluster.to_le_bytes());
        seed = crc32c_append(seed, &self.identity.member.to_le_bytes());
        seed = crc32c_append(seed, &self.incarnation.to_le_bytes());
        seed = crc32c_append(seed, &self.seq.to_le_bytes());
        Salt {
            incarnation: self.incarnation,
            seq: self.seq,
            seed,
        }
    }
}

/// Ties a frame to one life of one segment file: no two headings share (incarnation, seq).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Salt {
    incarnation: u64,
    seq: u32,
    seed: u32,
}

impl Salt {
    /// Sequence number of the segment.
    #[must_use]
    pub const fn seq(&self) -> u32 {
        self.seq
    }
}

/// A frame's header, decoded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FrameHeader {
    /// [`FLAG_SEAL`], [`FLAG_RESET`].
    pub flags: u16,
    /// Records in the frame.
    pub record_count: u32,
    /// Position in the log of the frame's first byte.
    pub lsn: Lsn,
    /// Length, whole blocks.
    pub frame_bytes: u32,
    /// Bytes of records behind the header.
    pub payload_bytes: u32,
    /// Everything below this was durable, without a gap, when the frame was submitted.
    pub flushed_lsn: Lsn,
    /// Index of the first record, or of the next one to come.
    pub first_index: Index,
    /// Raft's hard state as of this frame.
    pub hard_state: HardState,
    /// Where in the segment the frame begins, bytes.
    pub offset: u32,
    /// Checksum of the frame before.
    pub previous: u32,
    /// Checksum over the records' headers.
    pub records_checksum: u32,
}

impl FrameHeader {
    /// Index of the last record; of the last entry of the log, in a frame without records.
    #[must_use]
    pub const fn last_index(&self) -> Index {
        self.first_index + self.record_count as u64 - 1
    }

    /// Position in the log behind the frame.
    #[must_use]
    pub const fn lsn_end(&self) -> Lsn {
        self.lsn + self.frame_bytes as u64
    }

    /// Writes the header into the first [`FRAME_HEADER_BYTES`] of `out`; the frame's checksum comes
    /// back, for the next one's `previous`.
    ///
    /// # Panics
    /// If `out` is too short, or the header is not one that [`Self::decode`] takes.
    pub fn encode(&self, salt: &Salt, out: &mut [u8]) -> u32 {
        assert!(self.frame_bytes as usize >= FRAME_HEADER_BYTES + self.payload_bytes as usize);
        assert!((self.frame_bytes as usize).is_multiple_of(BLOCK_BYTES));
        assert!(self.flushed_lsn <= self.lsn);
        assert!(self.first_index >= 1);
        let out = &mut out[..FRAME_HEADER_BYTES];
        out.fill(0);
        put_u32(out, 0, FRAME_MAGIC);
        put_u16(out, 4, FRAME_VERSION);
        put_u16(out, 6, self.flags);
        put_u64(out, 8, salt.incarnation);
        put_u32(out, 16, salt.seq);
        put_u32(out, 20, self.record_count);
        put_u64(out, 24, self.lsn);
        put_u32(out, 32, self.frame_bytes);
        put_u32(out, 36, self.payload_bytes);
        put_u64(out, 40, self.flushed_lsn);
        put_u64(out, 48, self.first_index);
        put_u64(out, 56, self.last_index());
        put_u64(out, 64, self.hard_state.term);
        put_u64(out, 72, self.hard_state.vote);
        put_u64(out, 80, self.hard_state.commit);
        put_u32(out, 88, self.offset);
        put_u32(out, 92, self.previous);
        put_u32(out, 120, self.records_checksum);
        let checksum = crc32c_append(salt.seed, &out[..124]);
        put_u32(out, 124, checksum);
        checksum
    }

    /// Reads a header from the start of `bytes`, which lie at `offset` of the segment with `salt`.
    /// The frame's checksum comes with it.
    ///
    /// # Errors
    /// What is wrong, for an operator. `bytes` may be anything.
    pub fn decode(bytes: &[u8], salt: &Salt, offset: u64) -> Result<(Self, u32), &'static str> {
        let Some(bytes) = bytes.get(..FRAME_HEADER_BYTES) else {
            return Err("frame header is cut short");
        };
        if get_u32(bytes, 0) != FRAME_MAGIC {
            return Err("no frame here");
        }
        let checksum = crc32c_append(salt.seed, &bytes[..124]);
        if checksum != get_u32(bytes, 124) {
            return Err("frame header checksum mismatch");
        }
        // From here on the bytes are ours, if perhaps in the wrong place.
        if get_u64(bytes, 8) != salt.incarnation || get_u32(bytes, 16) != salt.seq {
            return Err("frame of another life of this file");
        }
        let header = Self {
            flags: get_u16(bytes, 6),
            record_count: get_u32(bytes, 20),
            lsn: get_u64(bytes, 24),
            frame_bytes: get_u32(bytes, 32),
            payload_bytes: get_u32(bytes, 36),
            flushed_lsn: get_u64(bytes, 40),
            first_index: get_u64(bytes, 48),
            hard_state: HardState {
                term: get_u64(bytes, 64),
                vote: get_u64(bytes, 72),
                commit: get_u64(bytes, 80),
            },
            offset: get_u32(bytes, 88),
            previous: get_u32(bytes, 92),
            records_checksum: get_u32(bytes, 120),
        };
        if u64::from(header.offset) != offset {
            return Err("frame written to the wrong place");
        }
        header.check_fields(bytes)?;
        Ok((header, checksum))
    }

    fn check_fields(&self, bytes: &[u8]) -> Result<(), &'static str> {
        let frame_bytes = self.frame_bytes as usize;
        let last_index = self
            .first_index
            .checked_add(u64::from(self.record_count))
            .and_then(|end| end.checked_sub(1));
        let sound = get_u16(bytes, 4) == FRAME_VERSION
            && self.flags & !(FLAG_SEAL | FLAG_RESET) == 0
            && frame_bytes.is_multiple_of(BLOCK_BYTES)
            && frame_bytes >= FRAME_HEADER_BYTES + self.payload_bytes as usize
            && frame_bytes - (FRAME_HEADER_BYTES + self.payload_bytes as usize) < BLOCK_BYTES
            && self.flushed_lsn <= self.lsn
            && self.lsn.checked_add(frame_bytes as u64).is_some()
            && self.first_index >= 1
            && last_index == Some(get_u64(bytes, 56))
            && bytes[96..120].iter().all(|&b| b == 0);
        if sound {
            Ok(())
        } else {
            Err("frame header is not one we write")
        }
    }
}

/// Checks every byte of the records of a frame whose header is `header`; `frame` is all of it.
///
/// # Errors
/// What is wrong, for an operator. `frame` may be anything.
pub fn verify_records(header: &FrameHeader, frame: &[u8]) -> Result<(), &'static str> {
    let end = FRAME_HEADER_BYTES + header.payload_bytes as usize;
    if frame.len() != header.frame_bytes as usize || end > frame.len() {
        return Err("frame is cut short");
    }
    if !is_zero(&frame[end..]) {
        return Err("frame padding is not zero");
    }
    let mut checksum = 0;
    let mut offset = FRAME_HEADER_BYTES;
    for nth in 0..u64::from(header.record_count) {
        let Some(head) = frame[..end].get(offset..offset + RECORD_HEADER_BYTES) else {
            return Err("frame has fewer records than it says");
        };
        if crc32c(&head[..28]) != get_u32(head, 28) {
            return Err("record header checksum mismatch");
        }
        checksum = add_record_header(checksum, head);
        let start = offset + RECORD_HEADER_BYTES;
        let payload_end = start + get_u32(head, 0) as usize;
        let next = payload_end.next_multiple_of(RECORD_ALIGN_BYTES);
        if next > end {
            return Err("record is longer than its frame");
        }
        if crc32c(&frame[start..payload_end]) != get_u32(head, 24) {
            return Err("record payload checksum mismatch");
        }
        let sound = EntryKind::from_u8(head[4]).is_some()
            && head[5..8] == [0; 3]
            && get_u64(head, 8) == header.first_index + nth
            && is_zero(&frame[payload_end..next]);
        if !sound {
            return Err("record is not one we write");
        }
        offset = next;
    }
    if offset != end || checksum != header.records_checksum {
        return Err("records checksum mismatch");
    }
    Ok(())
}

/// A record within a verified frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Record {
    /// Index of the entry.
    pub index: Index,
    /// Its term.
    pub term: Term,
    /// What the payload is.
    pub kind: EntryKind,
    /// Where in the frame the record begins, bytes; its payload is [`RECORD_HEADER_BYTES`] further.
    pub offset: usize,
    /// Bytes of the payload.
    pub payload_bytes: usize,
}

/// The records of a frame that [`verify_records`] found sound.
///
/// # Panics
/// If it did not.
pub fn records<'a>(
    header: &FrameHeader,
    frame: &'a [u8],
) -> impl Iterator<Item = Record> + use<'a> {
    let mut offset = FRAME_HEADER_BYTES;
    (0..header.record_count).map(move |_| {
        let head = &frame[offset..offset + RECORD_HEADER_BYTES];
        let record = Record {
            index: get_u64(head, 8),
            term: get_u64(head, 16),
            kind: EntryKind::from_u8(head[4]).expect("the frame was verified"),
            offset,
            payload_bytes: get_u32(head, 0) as usize,
        };
        offset += record_bytes(record.payload_bytes);
        record
    })
}

/// Bytes that a record with `payload_bytes` takes in a frame.
#[must_use]
pub const fn record_bytes(payload_bytes: usize) -> usize {
    RECORD_HEADER_BYTES + payload_bytes.next_multiple_of(RECORD_ALIGN_BYTES)
}

/// The header of `entry`'s record.
///
/// # Panics
/// If the payload has 4 GiB or more.
#[must_use]
pub fn record_header(entry: &Entry<'_>) -> [u8; RECORD_HEADER_BYTES] {
    let mut head = [0; RECORD_HEADER_BYTES];
    let len = u32::try_from(entry.payload.len()).expect("a payload fits a frame");
    put_u32(&mut head, 0, len);
    head[4] = entry.kind as u8;
    put_u64(&mut head, 8, entry.index);
    put_u64(&mut head, 16, entry.term);
    put_u32(&mut head, 24, crc32c(entry.payload));
    let checksum = crc32c(&head[..28]);
    put_u32(&mut head, 28, checksum);
    head
}

/// Adds a record's header to its frame's `records_checksum`. Without the header's own checksum: a
/// CRC over bytes and their CRC is the same whatever the bytes.
///
/// # Panics
/// If `head` is shorter than a header.
#[must_use]
pub fn add_record_header(checksum: u32, head: &[u8]) -> u32 {
    crc32c_append(checksum, &head[..28])
}

fn is_zero(bytes: &[u8]) -> bool {
    let (words, rest) = bytes.as_chunks::<16>();
    words.iter().all(|word| *word == [0; 16]) && rest.iter().all(|&b| b == 0)
}

fn get_u16(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(bytes[at..at + 2].try_into().expect("two bytes"))
}

fn get_u32(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn get_u64(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

fn put_u16(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_le_bytes());
}

fn put_u32(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

fn put_u64(bytes: &mut [u8], at: usize, value: u64) {
    bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
}
