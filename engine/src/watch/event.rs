//! `mvccpb.Event` as bytes, made once for each change and shared by all watchers of a shard.
//!
//! Fields: 1 type (left out for PUT, which is 0), 2 kv, 3 prev_kv. Of a DELETE, kv is the key and
//! the mod revision.

use bytes::Bytes;

use crate::revtable::kv::{Encoder, Fields, Small};
use crate::revtable::{Record, RevSnapshot};

const TYPE_DELETE: [u8; 2] = [0x08, 0x01];
const KV: u8 = 0x12;
const PREV_KV: u8 = 0x1a;

/// The encodings of one change, made when first asked for.
pub(super) struct Event<'a> {
    record: Record<'a>,
    plain: Option<Bytes>,
    with_previous: Option<Bytes>,
}

impl<'a> Event<'a> {
    pub(super) fn new(record: Record<'a>) -> Self {
        Self {
            record,
            plain: None,
            with_previous: None,
        }
    }

    pub(super) fn record(&self) -> &Record<'a> {
        &self.record
    }

    /// Without prev_kv.
    pub(super) fn plain(&mut self) -> Bytes {
        let record = &self.record;
        self.plain
            .get_or_insert_with(|| encode(record, None))
            .clone()
    }

    /// With the value before the change, unless there was none or it is no longer to be read at
    /// `compacted`.
    pub(super) fn with_previous(&mut self, revs: &RevSnapshot, compacted: i64) -> Bytes {
        if let Some(event) = &self.with_previous {
            return event.clone();
        }
        let event = match previous(&self.record, revs, compacted) {
            Some(kv) => encode(&self.record, Some(kv)),
            None => self.plain(),
        };
        self.with_previous = Some(event.clone());
        event
    }
}

/// The key's KeyValue as a read at the main revision before the change would find it: not what the
/// same transaction put before it deleted a range, and, as in etcd, nothing for a change that
/// creates the key, even if the same transaction deleted it first.
fn previous<'r>(record: &Record<'_>, revs: &'r RevSnapshot, compacted: i64) -> Option<&'r [u8]> {
    let main = record.revision.main;
    if !i64::try_from(main).is_ok_and(|main| main > compacted) {
        return None;
    }
    if !record.tombstone && Fields::of(record.kv).created == main {
        return None;
    }
    let before = revs.get(revs.at_or_before(record.revision, main - 1)?)?;
    (!before.tombstone).then_some(before.kv)
}

fn encode(record: &Record<'_>, previous: Option<&[u8]>) -> Bytes {
    let deleted = record
        .tombstone
        .then(|| Encoder::deleted(record.key(), record.revision.main));
    let kv: [&[u8]; 5] = match &deleted {
        Some(encoder) => encoder.parts(),
        None => [record.kv, &[], &[], &[], &[]],
    };
    let head = field_head(KV, kv.iter().map(|part| part.len()).sum());
    let previous_head = previous.map(|kv| field_head(PREV_KV, kv.len()));
    let event_type: &[u8] = if record.tombstone { &TYPE_DELETE } else { &[] };
    let mut parts = [&[][..]; 9];
    parts[0] = event_type;
    parts[1] = head.as_slice();
    parts[2..7].copy_from_slice(&kv);
    if let (Some(head), Some(kv)) = (&previous_head, previous) {
        parts[7] = head.as_slice();
        parts[8] = kv;
    }
    parts.concat().into()
}

fn field_head(tag: u8, len: usize) -> Small<11> {
    let mut head = Small::new();
    head.push(tag);
    head.varint(len as u64);
    head
}
