//! Commands: what a log entry asks of the state machine, as rkyv archives.
//!
//! Built once, on the shard that took the request, from slices of the request; validated once where
//! bytes enter (network, disk); read in place ever after. The layout is our on-disk format: rkyv's
//! version is pinned and the golden test below holds the bytes.
//!
//! A record is one archive of [`Envelope`]; a shard's batch is a sequence of length-prefixed
//! records ([`BatchWriter`], [`batch_records`]). Records hold no time and no random number: what
//! apply does with one is a pure function of it and the state (I8).
#![allow(
    missing_docs,
    reason = "the derive writes resolvers without any; all we write has its own"
)]

use bytes::Bytes;
use rkyv::rancor::Failure;
use rkyv::util::AlignedVec;
use rkyv::with::InlineAsBox;
use rkyv::{Archive, Serialize};

use crate::types::{Index, LeaseId, MemberId, ShardId};

/// Where a proposal came from; it is answered by whoever finds its own origin in an applied entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Archive, Serialize)]
#[rkyv(attr(allow(missing_docs)))]
pub struct Origin {
    /// The member that took the request.
    pub member: MemberId,
    /// How often that member had started by then.
    pub start: u32,
    /// Shard in the top byte, then that shard's own count.
    pub sequence: u64,
}

impl Origin {
    /// Nobody waits for the result.
    pub const NONE: Self = Self {
        member: 0,
        start: 0,
        sequence: 0,
    };

    /// Sequence number `count` of `shard`.
    #[must_use]
    pub const fn sequence_of(shard: ShardId, count: u64) -> u64 {
        assert!(count < 1 << 56);
        (shard as u64) << 56 | count
    }

    /// The shard's own count in a sequence number.
    #[must_use]
    pub const fn count_of(sequence: u64) -> u64 {
        sequence & ((1 << 56) - 1)
    }

    /// The shard of a sequence number.
    #[must_use]
    pub const fn shard_of(sequence: u64) -> ShardId {
        (sequence >> 56) as ShardId
    }
}

/// One record: a command and who waits for its result.
#[derive(Archive, Serialize)]
#[rkyv(attr(allow(missing_docs)))]
pub struct Envelope<'a> {
    /// Who waits.
    pub origin: Origin,
    /// What to do.
    pub command: Command<'a>,
}

/// Everything that changes the state machine.
#[derive(Archive, Serialize)]
#[rkyv(attr(allow(missing_docs)))]
#[allow(missing_docs, reason = "etcd's request names and fields")]
pub enum Command<'a> {
    Put(Put<'a>),
    DeleteRange(DeleteRange<'a>),
    Txn(Txn<'a>),
    Compact {
        revision: i64,
    },
    LeaseGrant {
        id: LeaseId,
        ttl: i64,
    },
    /// A client's revoke.
    LeaseRevoke {
        id: LeaseId,
    },
    /// The leader's expiry: each lease in its own transaction. `term` fences it: a later leader's
    /// log refuses what an older one thought expired (I10).
    /// `applied` is what the leader had applied: a lease granted since is another, of the same id.
    LeaseExpire {
        ids: Vec<LeaseId>,
        term: u64,
        applied: Index,
    },
    /// `applied` as in `LeaseExpire`.
    LeaseCheckpoint {
        remaining: Vec<(LeaseId, i64)>,
        applied: Index,
    },
    Alarm {
        action: i32,
        member: MemberId,
        alarm: i32,
    },
    /// Name and client URLs of a member that has started.
    MemberAttributes {
        member: MemberId,
        #[rkyv(with = InlineAsBox)]
        name: &'a str,
        client_urls: Vec<String>,
    },
    ClusterVersion {
        #[rkyv(with = InlineAsBox)]
        version: &'a str,
    },
}

/// As etcd's PutRequest.
#[derive(Archive, Serialize)]
#[rkyv(attr(allow(missing_docs)))]
#[allow(missing_docs, reason = "etcd's field names")]
pub struct Put<'a> {
    #[rkyv(with = InlineAsBox)]
    pub key: &'a [u8],
    #[rkyv(with = InlineAsBox)]
    pub value: &'a [u8],
    pub lease: LeaseId,
    pub prev_kv: bool,
    pub ignore_value: bool,
    pub ignore_lease: bool,
}

/// As etcd's DeleteRangeRequest.
#[derive(Archive, Serialize)]
#[rkyv(attr(allow(missing_docs)))]
#[allow(missing_docs, reason = "etcd's field names")]
pub struct DeleteRange<'a> {
    #[rkyv(with = InlineAsBox)]
    pub key: &'a [u8],
    #[rkyv(with = InlineAsBox)]
    pub range_end: &'a [u8],
    pub prev_kv: bool,
}

/// As etcd's RangeRequest; also the query that a shard runs on a View.
#[derive(Archive, Serialize, Clone, Copy, Default, Debug)]
#[rkyv(attr(allow(missing_docs)))]
#[allow(missing_docs, reason = "etcd's field names")]
pub struct Range<'a> {
    #[rkyv(with = InlineAsBox)]
    pub key: &'a [u8],
    #[rkyv(with = InlineAsBox)]
    pub range_end: &'a [u8],
    pub limit: i64,
    pub revision: i64,
    pub sort_order: i32,
    pub sort_target: i32,
    pub keys_only: bool,
    pub count_only: bool,
    pub min_mod_revision: i64,
    pub max_mod_revision: i64,
    pub min_create_revision: i64,
    pub max_create_revision: i64,
}

/// As etcd's TxnRequest.
#[derive(Archive, Serialize)]
#[rkyv(
    attr(allow(missing_docs)),
    serialize_bounds(
        __S: rkyv::ser::Writer + rkyv::ser::Allocator,
        __S::Error: rkyv::rancor::Source,
    ),
    bytecheck(bounds(__C: rkyv::validation::ArchiveContext, __C::Error: rkyv::rancor::Source))
)]
#[allow(missing_docs, reason = "etcd's field names")]
pub struct Txn<'a> {
    pub compare: Vec<Compare<'a>>,
    #[rkyv(omit_bounds)]
    pub success: Vec<TxnOp<'a>>,
    #[rkyv(omit_bounds)]
    pub failure: Vec<TxnOp<'a>>,
}

/// One operation of a transaction.
#[derive(Archive, Serialize)]
#[rkyv(
    attr(allow(missing_docs)),
    serialize_bounds(
        __S: rkyv::ser::Writer + rkyv::ser::Allocator,
        __S::Error: rkyv::rancor::Source,
    ),
    bytecheck(bounds(__C: rkyv::validation::ArchiveContext, __C::Error: rkyv::rancor::Source))
)]
#[allow(missing_docs, reason = "etcd's names")]
pub enum TxnOp<'a> {
    Range(Range<'a>),
    Put(Put<'a>),
    DeleteRange(DeleteRange<'a>),
    Txn(#[rkyv(omit_bounds)] Txn<'a>),
}

/// As etcd's Compare.
#[derive(Archive, Serialize)]
#[rkyv(attr(allow(missing_docs)))]
#[allow(missing_docs, reason = "etcd's field names")]
pub struct Compare<'a> {
    #[rkyv(with = InlineAsBox)]
    pub key: &'a [u8],
    #[rkyv(with = InlineAsBox)]
    pub range_end: &'a [u8],
    /// EQUAL 0, GREATER 1, LESS 2, NOT_EQUAL 3; anything else is always true, as in etcd.
    pub result: i32,
    pub target: Target<'a>,
}

/// What is compared, with what.
#[derive(Archive, Serialize, Clone, Copy)]
#[rkyv(attr(allow(missing_docs)))]
#[allow(missing_docs, reason = "etcd's names")]
pub enum Target<'a> {
    Version(i64),
    Create(i64),
    Mod(i64),
    Value(#[rkyv(with = InlineAsBox)] &'a [u8]),
    Lease(i64),
    /// A target number that etcd does not know: the comparison is of 0 with 0.
    Unknown,
}

/// A record could not be read: not an archive of ours.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BadRecord;

impl Envelope<'_> {
    /// The archive of one record, for what the sequencer itself proposes.
    #[must_use]
    pub fn to_bytes(&self) -> Bytes {
        let archive = rkyv::to_bytes::<Failure>(self).expect("memory is the only limit");
        Bytes::from_owner(archive)
    }
}

/// Checks that `record` is an archive of ours: to be called once where bytes enter.
///
/// # Errors
/// [`BadRecord`] when it is not.
pub fn check(record: &[u8]) -> Result<&ArchivedEnvelope<'_>, BadRecord> {
    rkyv::access::<ArchivedEnvelope<'_>, Failure>(record).map_err(|_| BadRecord)
}

/// Bytes before each record of a batch: its length, little endian.
const PREFIX_BYTES: usize = 4;

/// Collects a shard's records into one buffer, the one that raft entries and peers share.
pub struct BatchWriter {
    buffer: AlignedVec,
    records: usize,
}

impl Default for BatchWriter {
    fn default() -> Self {
        Self {
            buffer: AlignedVec::new(),
            records: 0,
        }
    }
}

impl BatchWriter {
    /// Serialises one record at the end of the batch: the copy from request to record.
    pub fn push(&mut self, envelope: &Envelope<'_>) {
        let start = self.buffer.len();
        self.buffer.extend_from_slice(&[0; PREFIX_BYTES]);
        let buffer = core::mem::take(&mut self.buffer);
        // Positions inside an archive are relative, so a record may begin anywhere.
        self.buffer = rkyv::api::high::to_bytes_in::<_, Failure>(envelope, buffer)
            .expect("memory is the only limit");
        let len = self.buffer.len() - start - PREFIX_BYTES;
        let len = u32::try_from(len).expect("bounded by the request size");
        self.buffer[start..start + PREFIX_BYTES].copy_from_slice(&len.to_le_bytes());
        self.records += 1;
    }

    /// Records collected.
    #[must_use]
    pub fn records(&self) -> usize {
        self.records
    }

    /// Bytes collected.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.buffer.len()
    }

    /// The batch, and a new one begins.
    #[must_use]
    pub fn take(&mut self) -> Bytes {
        self.records = 0;
        Bytes::from_owner(core::mem::take(&mut self.buffer))
    }
}

/// The records of a batch, as slices that share it.
pub fn batch_records(batch: &Bytes) -> impl Iterator<Item = Bytes> + '_ {
    let mut at = 0;
    core::iter::from_fn(move || {
        let (prefix, rest) = batch[at..].split_first_chunk::<PREFIX_BYTES>()?;
        let len = u32::from_le_bytes(*prefix) as usize;
        assert!(len <= rest.len(), "a batch is made by BatchWriter");
        at += PREFIX_BYTES + len;
        Some(batch.slice(at - len..at))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(key: &[u8]) -> Envelope<'_> {
        let command = Command::Put(Put {
            key,
            value: b"value",
            lease: 7,
            prev_kv: true,
            ignore_value: false,
            ignore_lease: false,
        });
        Envelope {
            origin: Origin {
                member: 1,
                start: 2,
                sequence: 3,
            },
            command,
        }
    }

    #[test]
    fn records_come_back_from_a_batch() {
        let mut w = BatchWriter::default();
        for key in [&b"a"[..], b"", b"ccc"] {
            w.push(&put(key));
        }
        assert_eq!(w.records(), 3);
        let batch = w.take();
        let keys: Vec<Vec<u8>> = batch_records(&batch)
            .map(|r| match &check(&r).expect("ours").command {
                ArchivedCommand::Put(p) => p.key.to_vec(),
                _ => panic!("a put"),
            })
            .collect();
        assert_eq!(keys, [b"a".to_vec(), b"".to_vec(), b"ccc".to_vec()]);
        assert_eq!(w.records(), 0);
    }

    #[test]
    fn a_nested_transaction_comes_back() {
        let range = Range {
            key: b"k",
            range_end: b"\0",
            limit: -1,
            ..Range::default()
        };
        let inner = Txn {
            compare: vec![],
            success: vec![TxnOp::Range(range)],
            failure: vec![],
        };
        let compare = Compare {
            key: b"c",
            range_end: b"",
            result: 3,
            target: Target::Value(b"v"),
        };
        let txn = Txn {
            compare: vec![compare],
            success: vec![TxnOp::Txn(inner)],
            failure: vec![],
        };
        let bytes = Envelope {
            origin: Origin::NONE,
            command: Command::Txn(txn),
        }
        .to_bytes();
        let ArchivedCommand::Txn(txn) = &check(&bytes).expect("ours").command else {
            panic!("a txn")
        };
        let ArchivedTarget::Value(v) = &txn.compare[0].target else {
            panic!("a value")
        };
        assert_eq!(&v[..], b"v");
        let ArchivedTxnOp::Txn(inner) = &txn.success[0] else {
            panic!("a txn")
        };
        let ArchivedTxnOp::Range(r) = &inner.success[0] else {
            panic!("a range")
        };
        assert_eq!((&r.key[..], r.limit.to_native()), (&b"k"[..], -1));
    }

    #[test]
    fn foreign_bytes_are_refused() {
        let bytes = put(b"key").to_bytes();
        for cut in 0..size_of::<ArchivedEnvelope<'_>>() {
            assert_eq!(check(&bytes[..cut]).err(), Some(BadRecord));
        }
        assert_eq!(check(&[0xff; 256]).err(), Some(BadRecord));
    }
}
