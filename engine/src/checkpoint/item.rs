//! Items: what a checkpoint says, one by one, as bytes. Pure functions.
//!
//! The payloads of a checkpoint's blocks, put together, are a sequence of items; one may begin in a
//! block and end in a later one of the same kind.
//! ```text
//! 0 kind u8 | 1 len u32 | 5 body, len bytes
//! Meta      revision u64, compacted i64, applied u64, term u64     first of all
//! Hash      hash u32, compacted i64, revision u64                  oldest first
//! Lease     id i64, ttl i64, remaining i64, granted index u64      by id
//! Alarm     member u64, alarm i32
//! Member    id u64, learner u8, name, peer_urls, client_urls       by id
//! Version   text                                                   cluster version, if known
//! Voter     member u64
//! Learner   member u64
//! Revision  main u64, sub u32, tombstone u8, KeyValue              ascending
//! End       revisions u64, items u64 (this one not counted)        last of all
//! ```
//! A text in a Member is a length u32 and its bytes; a list of them a count u32 before. Integers
//! are little-endian.

use super::CheckpointImage;
use crate::members::Member;
use crate::mvcc::hash::KvHash;
use crate::revtable::Record;
use crate::types::{MemberId, Revision};

/// Bytes before an item's body.
pub const HEAD_BYTES: usize = 5;
/// Bytes of a Revision before its KeyValue, the item's head included.
pub const REVISION_HEAD_BYTES: usize = HEAD_BYTES + 13;

const META: u8 = 1;
const HASH: u8 = 2;
const LEASE: u8 = 3;
const ALARM: u8 = 4;
const MEMBER: u8 = 5;
const VERSION: u8 = 6;
const VOTER: u8 = 7;
const LEARNER: u8 = 8;
const REVISION: u8 = 9;
const END: u8 = 10;

/// One item, decoded; borrows its bytes.
#[derive(Debug)]
pub enum Item<'a> {
    Meta {
        revision: u64,
        compacted: i64,
        applied: u64,
        term: u64,
    },
    Hash(KvHash),
    Lease(super::LeaseItem),
    Alarm(MemberId, i32),
    Member(MemberId, Member),
    Version(String),
    Voter(MemberId),
    Learner(MemberId),
    Revision {
        rev: Revision,
        tombstone: bool,
        kv: &'a [u8],
    },
    End {
        revisions: u64,
        items: u64,
    },
}

/// Splits the first item off `bytes`; `None` when they hold no whole one.
pub fn split(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    bytes.split_at_checked(item_bytes(bytes)?)
}

/// Length of the first item, as soon as its head is there.
pub fn item_bytes(bytes: &[u8]) -> Option<usize> {
    let len = u32::from_le_bytes(bytes.get(1..HEAD_BYTES)?.try_into().ok()?);
    (len as usize).checked_add(HEAD_BYTES)
}

/// Item `nth` of what comes before the revisions; `None` behind the last.
pub fn of_state(image: &CheckpointImage, nth: usize) -> Option<Vec<u8>> {
    if nth == 0 {
        return Some(meta(image));
    }
    let mut nth = nth - 1;
    // Takes `nth` if it falls into the next `len` items, else counts them off.
    let mut within = |len: usize| {
        let at = nth;
        nth = nth.wrapping_sub(len);
        (at < len).then_some(at)
    };
    if let Some(i) = within(image.hashes.len()) {
        return Some(hash(&image.hashes[i]));
    }
    if let Some(i) = within(image.leases.len()) {
        let (id, ttl, remaining, granted_index) = image.leases[i];
        return Some(item(
            LEASE,
            &[
                &id.to_le_bytes(),
                &ttl.to_le_bytes(),
                &remaining.to_le_bytes(),
                &granted_index.to_le_bytes(),
            ],
        ));
    }
    if let Some(i) = within(image.alarms.len()) {
        let (member, alarm) = image.alarms[i];
        return Some(item(ALARM, &[&member.to_le_bytes(), &alarm.to_le_bytes()]));
    }
    if let Some(i) = within(image.members.len()) {
        return Some(member(&image.members[i]));
    }
    if let Some(version) = &image.cluster_version
        && within(1).is_some()
    {
        return Some(item(VERSION, &[version.as_bytes()]));
    }
    for (kind, ids) in [(VOTER, &image.conf.voters), (LEARNER, &image.conf.learners)] {
        if let Some(i) = within(ids.len()) {
            return Some(item(kind, &[&ids[i].to_le_bytes()]));
        }
    }
    None
}

/// What comes before the KeyValue of a revision.
pub fn revision_head(record: &Record<'_>) -> [u8; REVISION_HEAD_BYTES] {
    let body = REVISION_HEAD_BYTES - HEAD_BYTES + record.kv.len();
    let mut head = [0; REVISION_HEAD_BYTES];
    head[0] = REVISION;
    head[1..5].copy_from_slice(&length(body));
    head[5..13].copy_from_slice(&record.revision.main.to_le_bytes());
    head[13..17].copy_from_slice(&record.revision.sub.to_le_bytes());
    head[17] = u8::from(record.tombstone);
    head
}

/// The last item.
pub fn end(revisions: u64, items: u64) -> Vec<u8> {
    item(END, &[&revisions.to_le_bytes(), &items.to_le_bytes()])
}

fn length(len: usize) -> [u8; 4] {
    u32::try_from(len)
        .expect("bounded by the request size")
        .to_le_bytes()
}

fn item(kind: u8, parts: &[&[u8]]) -> Vec<u8> {
    let body: usize = parts.iter().map(|p| p.len()).sum();
    let mut bytes = Vec::with_capacity(HEAD_BYTES + body);
    bytes.push(kind);
    bytes.extend_from_slice(&length(body));
    for part in parts {
        bytes.extend_from_slice(part);
    }
    bytes
}

fn meta(image: &CheckpointImage) -> Vec<u8> {
    let numbers = [
        image.revision.to_le_bytes(),
        image.compacted.to_le_bytes(),
        image.applied.to_le_bytes(),
        image.term.to_le_bytes(),
    ];
    item(META, &[numbers.as_flattened()])
}

fn hash(hash: &KvHash) -> Vec<u8> {
    let parts: [&[u8]; 3] = [
        &hash.hash.to_le_bytes(),
        &hash.compacted.to_le_bytes(),
        &hash.revision.to_le_bytes(),
    ];
    item(HASH, &parts)
}

fn member((id, member): &(MemberId, Member)) -> Vec<u8> {
    let mut body = id.to_le_bytes().to_vec();
    body.push(u8::from(member.learner));
    let text = |body: &mut Vec<u8>, text: &str| {
        body.extend_from_slice(&length(text.len()));
        body.extend_from_slice(text.as_bytes());
    };
    text(&mut body, &member.name);
    for urls in [&member.peer_urls, &member.client_urls] {
        body.extend_from_slice(&length(urls.len()));
        for url in urls {
            text(&mut body, url);
        }
    }
    item(MEMBER, &[&body])
}

/// Reads a body from its start.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn bytes(&mut self, len: usize) -> Option<&'a [u8]> {
        let (bytes, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(bytes)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (array, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*array)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    fn i64(&mut self) -> Option<i64> {
        self.array().map(i64::from_le_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn flag(&mut self) -> Option<bool> {
        match self.array()? {
            [0] => Some(false),
            [1] => Some(true),
            _ => None,
        }
    }

    fn text(&mut self) -> Option<String> {
        let len = self.u32()? as usize;
        String::from_utf8(self.bytes(len)?.to_vec()).ok()
    }

    fn texts(&mut self) -> Option<Vec<String>> {
        (0..self.u32()?).map(|_| self.text()).collect()
    }

    fn rest(&mut self) -> &'a [u8] {
        core::mem::take(&mut self.0)
    }
}

/// Decodes one whole item; `None` when it is none that this file writes.
pub fn decode(bytes: &[u8]) -> Option<Item<'_>> {
    if item_bytes(bytes)? != bytes.len() {
        return None;
    }
    let mut r = Reader(&bytes[HEAD_BYTES..]);
    let item = match bytes[0] {
        META => Item::Meta {
            revision: r.u64()?,
            compacted: r.i64()?,
            applied: r.u64()?,
            term: r.u64()?,
        },
        HASH => Item::Hash(KvHash {
            hash: r.u32()?,
            compacted: r.i64()?,
            revision: r.u64()?,
        }),
        LEASE => Item::Lease((r.i64()?, r.i64()?, r.i64()?, r.u64()?)),
        ALARM => Item::Alarm(r.u64()?, i32::from_le_bytes(r.array()?)),
        MEMBER => {
            let id = r.u64()?;
            let learner = r.flag()?;
            let member = Member {
                name: r.text()?,
                peer_urls: r.texts()?,
                client_urls: r.texts()?,
                learner,
            };
            Item::Member(id, member)
        }
        VERSION => Item::Version(String::from_utf8(r.rest().to_vec()).ok()?),
        VOTER => Item::Voter(r.u64()?),
        LEARNER => Item::Learner(r.u64()?),
        REVISION => Item::Revision {
            rev: Revision::new(r.u64()?, r.u32()?),
            tombstone: r.flag()?,
            kv: r.rest(),
        },
        END => Item::End {
            revisions: r.u64()?,
            items: r.u64()?,
        },
        _ => return None,
    };
    r.0.is_empty().then_some(item)
}
