//! Byte layout of a checkpoint's blocks, with checked decoding. Pure functions over bytes.
//!
//! A checkpoint file is a sequence of blocks, each n x 4 KiB and at most the `block_bytes` that the
//! root names. All integers little-endian.
//! ```text
//!  0 magic u32 | 4 version u16 | 6 kind u16 | 8 id u64 | 16 sequence u32 | 20 payload_bytes u32
//! 24 offset u64 | 32 previous u32 | 36 checksum u32
//! 40 payload, payload_bytes of it | zeros up to a multiple of 4 KiB
//! ```
//! `checksum` covers everything else of the block, padding too, and is seeded with cluster, member
//! and checkpoint id: another member's or checkpoint's block never verifies. `previous` is the
//! checksum of the block before, so the last one's, which the root holds, vouches for all.

use crc32c::{crc32c, crc32c_append};

use crate::limits::format::{BLOCK_BYTES, VERSION};
use crate::wal::Identity;

/// Bytes of a block before its payload.
pub const HEADER_BYTES: usize = 40;
const CHECKSUM_AT: usize = 36;
const MAGIC: u32 = u32::from_le_bytes(*b"rkcb");

const _: () = assert!(CHECKSUM_AT + 4 == HEADER_BYTES && VERSION <= u16::MAX as u32);

/// What a block's payload is part of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u16)]
pub enum BlockKind {
    /// Everything but the revisions.
    State = 1,
    /// Revisions in order.
    Revisions = 2,
    /// The last block: how much there was.
    Footer = 3,
}

impl BlockKind {
    const fn from_u16(value: u16) -> Option<Self> {
        match value {
            1 => Some(Self::State),
            2 => Some(Self::Revisions),
            3 => Some(Self::Footer),
            _ => None,
        }
    }
}

/// Hash of everything that must be equal for superblock and checkpoint to mean the same.
pub fn format_hash() -> u32 {
    let constants = [
        BLOCK_BYTES,
        HEADER_BYTES,
        CHECKSUM_AT,
        super::item::HEAD_BYTES,
    ];
    constants.iter().fold(VERSION, |hash, &n| {
        crc32c_append(hash, &(n as u64).to_le_bytes())
    })
}

/// Where a block stands in its file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Place {
    /// Checkpoint.
    pub id: u64,
    /// Counts the blocks from 0.
    pub sequence: u32,
    /// Byte offset in the file.
    pub offset: u64,
    /// Checksum of the block before.
    pub previous: u32,
    seed: u32,
}

impl Place {
    /// The first block of a checkpoint.
    pub fn first(identity: Identity, id: u64) -> Self {
        let mut seed = crc32c(&identity.cluster.to_le_bytes());
        seed = crc32c_append(seed, &identity.member.to_le_bytes());
        seed = crc32c_append(seed, &id.to_le_bytes());
        Self {
            id,
            sequence: 0,
            offset: 0,
            previous: seed,
            seed,
        }
    }

    /// The place behind a block of so many bytes and this checksum.
    pub fn next(self, bytes: usize, checksum: u32) -> Self {
        Self {
            sequence: self
                .sequence
                .checked_add(1)
                .expect("4 G blocks are 16 TiB at least"),
            offset: self.offset + bytes as u64,
            previous: checksum,
            ..self
        }
    }

    fn checksum(&self, block: &[u8]) -> u32 {
        let head = crc32c_append(self.seed, &block[..CHECKSUM_AT]);
        crc32c_append(head, &block[HEADER_BYTES..])
    }

    /// Completes a block, whose header bytes are free and whose payload of `payload_bytes` is in
    /// place with zeros behind it; the block's checksum.
    pub fn seal(&self, kind: BlockKind, payload_bytes: usize, block: &mut [u8]) -> u32 {
        assert!(block.len().is_multiple_of(BLOCK_BYTES));
        assert_eq!(block.len(), padded(payload_bytes));
        let payload_bytes = u32::try_from(payload_bytes).expect("a block is far below 4 GiB");
        put_u32(block, 0, MAGIC);
        block[4..6].copy_from_slice(&(VERSION as u16).to_le_bytes());
        block[6..8].copy_from_slice(&(kind as u16).to_le_bytes());
        put_u64(block, 8, self.id);
        put_u32(block, 16, self.sequence);
        put_u32(block, 20, payload_bytes);
        put_u64(block, 24, self.offset);
        put_u32(block, 32, self.previous);
        let checksum = self.checksum(block);
        put_u32(block, CHECKSUM_AT, checksum);
        checksum
    }

    /// Checks the block at the start of `bytes`.
    ///
    /// # Errors
    /// What is wrong, for an operator.
    pub fn open<'b>(&self, bytes: &'b [u8]) -> Result<Opened<'b>, &'static str> {
        if bytes.len() < HEADER_BYTES || get_u32(bytes, 0) != MAGIC {
            return Err("no checkpoint block");
        }
        let payload_bytes = get_u32(bytes, 20) as usize;
        let Some(block) = bytes.get(..padded(payload_bytes)) else {
            return Err("length of a checkpoint block");
        };
        if get_u32(block, CHECKSUM_AT) != self.checksum(block) {
            return Err("checksum of a checkpoint block");
        }
        // From here on the bytes are as once written; these say that they belong here.
        if get_u64(block, 8) != self.id
            || get_u32(block, 16) != self.sequence
            || get_u64(block, 24) != self.offset
            || get_u32(block, 32) != self.previous
        {
            return Err("a checkpoint block of another place");
        }
        let kind = u16::from_le_bytes([block[6], block[7]]);
        let Some(kind) = BlockKind::from_u16(kind) else {
            return Err("kind of a checkpoint block");
        };
        Ok(Opened {
            kind,
            payload: &block[HEADER_BYTES..HEADER_BYTES + payload_bytes],
            bytes: block.len(),
            checksum: get_u32(block, CHECKSUM_AT),
        })
    }
}

/// A block that verified.
pub struct Opened<'b> {
    /// What it is part of.
    pub kind: BlockKind,
    /// Its part.
    pub payload: &'b [u8],
    /// Length of the block.
    pub bytes: usize,
    /// Its checksum.
    pub checksum: u32,
}

/// Bytes of a block with such a payload.
pub const fn padded(payload_bytes: usize) -> usize {
    (HEADER_BYTES + payload_bytes).next_multiple_of(BLOCK_BYTES)
}

pub fn get_u32(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

pub fn get_u64(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

pub fn put_u32(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

pub fn put_u64(bytes: &mut [u8], at: usize, value: u64) {
    bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
}
