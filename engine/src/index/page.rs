//! The bytes of a node: sorted slots that grow up, a heap of entries that grows down.
//!
//! ```text
//! header | slot 0 | slot 1 | ... free ... | entry 1 | entry 0 | prefix
//! slot:  head (4 bytes of the key after the prefix, zero-padded) | offset u16 | length u16
//! entry: payload | bytes of the key after the head, or the pointer to a long key
//! ```
//! * `offset` counts from the end of the node, so that a node grows by moving its two halves apart;
//!   `length` is that of the key after the prefix, or `LONG` for a key over `INLINE_KEY_BYTES_MAX`,
//!   which lies outside and is whole there.
//! * The payload of a leaf entry is a `KeyMeta`, of an inner entry a child's link and its live keys
//!   (entries of the subtree that are no tombstones).
//! * Key `i` of an inner node is at most the smallest key of child `i` and above every key of child
//!   `i - 1`. Key 0 is not stored: child 0 takes all that is below key 1.
//!
//! Not here: pointers and memory (`node.rs`), whole nodes made anew (`build.rs`).

#![forbid(unsafe_code)]

use core::cmp::Ordering;

use super::node::{
    Blob, HEADER_BYTES, LEVEL_AT, Link, NODE_BYTES_MAX, Node, NodeMut, POINTER_BYTES,
};
use crate::types::{KeyMeta, Revision};

/// Longer keys lie outside of the nodes. Bounds an entry, so that any full node can be split.
pub(super) const INLINE_KEY_BYTES_MAX: usize = if cfg!(test) { 24 } else { 256 };
pub(super) const SLOT_BYTES: usize = 8;
const HEAD_BYTES: usize = 4;
const LONG: u16 = u16::MAX;
const META_BYTES: usize = 36;
const VERSION_AT: usize = 20;
const CHILD_BYTES: usize = POINTER_BYTES + 4;

const COUNT_AT: usize = 10;
const PREFIX_AT: usize = 12;
const HEAP_AT: usize = 14;
const DEAD_AT: usize = 16;

const _: () = {
    assert!(INLINE_KEY_BYTES_MAX < LONG as usize);
    // An overfull node splits in two that fit, wherever the middle falls: half of the overfull
    // node, the entry astride the middle, and a prefix of its own.
    let entry_max = SLOT_BYTES + META_BYTES + INLINE_KEY_BYTES_MAX;
    let half_max = (NODE_BYTES_MAX + entry_max) / 2 + entry_max;
    assert!(HEADER_BYTES + INLINE_KEY_BYTES_MAX + half_max <= NODE_BYTES_MAX);
};

/// What a slot carries beside its key.
pub(super) enum Payload<'a> {
    /// Bytes of a payload in another node.
    Same(&'a [u8]),
    Meta(KeyMeta),
    /// A child and the live keys in it.
    Child(Link, u32),
}

/// Bytes of a payload at this level.
pub(super) fn payload_bytes(level: u8) -> usize {
    if level == 0 { META_BYTES } else { CHILD_BYTES }
}

/// Heap bytes of a key of `len` bytes after a prefix of `prefix` bytes.
pub(super) fn heap_key_bytes(len: usize, prefix: usize) -> usize {
    if len > INLINE_KEY_BYTES_MAX {
        POINTER_BYTES
    } else {
        (len - prefix).saturating_sub(HEAD_BYTES)
    }
}

fn head_of(suffix: &[u8]) -> [u8; HEAD_BYTES] {
    let mut head = [0; HEAD_BYTES];
    let len = suffix.len().min(HEAD_BYTES);
    head[..len].copy_from_slice(&suffix[..len]);
    head
}

fn rest_of(suffix: &[u8]) -> &[u8] {
    suffix.get(HEAD_BYTES..).unwrap_or(&[])
}

type Slot = [u8; SLOT_BYTES];

fn slot_head(slot: &Slot) -> u32 {
    u32::from_be_bytes([slot[0], slot[1], slot[2], slot[3]])
}

fn slot_offset(slot: &Slot) -> usize {
    usize::from(u16::from_le_bytes([slot[4], slot[5]]))
}

fn slot_len(slot: &Slot) -> u16 {
    u16::from_le_bytes([slot[6], slot[7]])
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("4 bytes"))
}

fn decode_meta(b: &[u8]) -> KeyMeta {
    let b: &[u8; META_BYTES] = b.try_into().expect("the payload of a leaf");
    KeyMeta {
        modified: Revision::new(u64_at(b, 0), u32_at(b, 8)),
        created: u64_at(b, 12),
        version: u64_at(b, VERSION_AT),
        lease: u64_at(b, 28).cast_signed(),
    }
}

fn encode_meta(meta: &KeyMeta, b: &mut [u8]) {
    let b: &mut [u8; META_BYTES] = b.try_into().expect("the payload of a leaf");
    b[0..8].copy_from_slice(&meta.modified.main.to_le_bytes());
    b[8..12].copy_from_slice(&meta.modified.sub.to_le_bytes());
    b[12..20].copy_from_slice(&meta.created.to_le_bytes());
    b[20..28].copy_from_slice(&meta.version.to_le_bytes());
    b[28..36].copy_from_slice(&meta.lease.to_le_bytes());
}

impl<'a> Node<'a> {
    /// 0 for a leaf, else one more than its children's.
    pub(super) fn level(self) -> u8 {
        self.bytes()[LEVEL_AT]
    }

    pub(super) fn is_leaf(self) -> bool {
        self.level() == 0
    }

    /// Entries.
    pub(super) fn count(self) -> usize {
        self.field(COUNT_AT)
    }

    /// What all keys of the node begin with.
    pub(super) fn prefix(self) -> &'a [u8] {
        let bytes = self.bytes();
        &bytes[bytes.len() - self.field(PREFIX_AT)..]
    }

    fn prefix_len(self) -> usize {
        self.field(PREFIX_AT)
    }

    fn field(self, at: usize) -> usize {
        let bytes = self.bytes();
        usize::from(u16::from_le_bytes([bytes[at], bytes[at + 1]]))
    }

    /// Bytes in use; a copy needs no more.
    pub(super) fn used(self) -> usize {
        HEADER_BYTES + self.count() * SLOT_BYTES + self.field(HEAP_AT) - self.field(DEAD_AT)
    }

    /// Bytes between slots and heap.
    fn gap(self) -> usize {
        self.bytes().len() - HEADER_BYTES - self.count() * SLOT_BYTES - self.field(HEAP_AT)
    }

    fn slots(self) -> &'a [Slot] {
        let end = HEADER_BYTES + self.count() * SLOT_BYTES;
        self.bytes()[HEADER_BYTES..end].as_chunks().0
    }

    fn entry_at(self, i: usize) -> usize {
        self.bytes().len() - slot_offset(&self.slots()[i])
    }

    /// Heap bytes of entry `i`.
    fn entry_bytes(self, i: usize) -> usize {
        let key = match slot_len(&self.slots()[i]) {
            LONG => POINTER_BYTES,
            len => usize::from(len).saturating_sub(HEAD_BYTES),
        };
        payload_bytes(self.level()) + key
    }

    pub(super) fn payload(self, i: usize) -> &'a [u8] {
        let at = self.entry_at(i);
        &self.bytes()[at..at + payload_bytes(self.level())]
    }

    /// What leaf entry `i` says of its key.
    pub(super) fn meta(self, i: usize) -> KeyMeta {
        debug_assert!(self.is_leaf());
        let at = self.entry_at(i);
        decode_meta(&self.bytes()[at..at + META_BYTES])
    }

    pub(super) fn child(self, i: usize) -> Node<'a> {
        assert!(!self.is_leaf());
        self.child_at(self.entry_at(i))
    }

    /// Live keys in child `i`.
    pub(super) fn child_live(self, i: usize) -> u32 {
        debug_assert!(!self.is_leaf());
        u32_at(self.bytes(), self.entry_at(i) + POINTER_BYTES)
    }

    /// Live keys in the first `n` entries.
    pub(super) fn live_before(self, n: usize) -> u64 {
        if self.is_leaf() {
            let live = |i: &usize| u64_at(self.bytes(), self.entry_at(*i) + VERSION_AT) != 0;
            return (0..n).filter(live).count() as u64;
        }
        (0..n).map(|i| u64::from(self.child_live(i))).sum()
    }

    /// Live keys in the node and below it.
    pub(super) fn live(self) -> u64 {
        self.live_before(self.count())
    }

    /// The long key of entry `i`, if it is one.
    pub(super) fn blob(self, i: usize) -> Option<Blob<'a>> {
        if slot_len(&self.slots()[i]) != LONG {
            return None;
        }
        Some(self.blob_at(self.entry_at(i) + payload_bytes(self.level())))
    }

    /// Key `i` after the prefix, in two parts: head and rest.
    fn suffix(self, i: usize) -> (&'a [u8], &'a [u8]) {
        let slot = &self.slots()[i];
        let len = usize::from(slot_len(slot));
        if len == usize::from(LONG) {
            let suffix = &self.blob(i).expect("LONG").key()[self.prefix_len()..];
            return suffix.split_at(suffix.len().min(HEAD_BYTES));
        }
        if len <= HEAD_BYTES {
            return (&slot[..len], &[]);
        }
        let at = self.entry_at(i) + payload_bytes(self.level());
        (
            &slot[..HEAD_BYTES],
            &self.bytes()[at..at + len - HEAD_BYTES],
        )
    }

    /// Appends key `i` without the prefix.
    pub(super) fn push_suffix(self, i: usize, to: &mut Vec<u8>) {
        let (head, rest) = self.suffix(i);
        to.extend_from_slice(head);
        to.extend_from_slice(rest);
    }

    /// Where `key` is, or would be, among the entries from `from` on.
    fn search_from(self, from: usize, key: &[u8]) -> Result<usize, usize> {
        let prefix = self.prefix();
        let Some(suffix) = key.strip_prefix(prefix) else {
            return Err(if key < prefix { from } else { self.count() });
        };
        let head = u32::from_be_bytes(head_of(suffix));
        let slots = self.slots();
        let mut low = from + slots[from..].partition_point(|slot| slot_head(slot) < head);
        let mut high = slots.len();
        // Heads seldom repeat: one comparison of whole keys, then bisection among equal heads.
        let mut at = low;
        while low < high {
            if slot_head(&slots[at]) != head {
                high = at;
            } else {
                match self.compare(at, suffix) {
                    Ordering::Less => low = at + 1,
                    Ordering::Equal => return Ok(at),
                    Ordering::Greater => high = at,
                }
            }
            at = low.midpoint(high);
        }
        Err(low)
    }

    /// Key `i` against a key with the same prefix and head.
    fn compare(self, i: usize, suffix: &[u8]) -> Ordering {
        let (head, rest) = self.suffix(i);
        // Equal heads of different length differ by trailing zeros only, so the length decides.
        let lengths = (head.len() + rest.len()).cmp(&suffix.len());
        rest.cmp(rest_of(suffix)).then(lengths)
    }

    /// Where `key` is in this leaf, or where it would be.
    pub(super) fn search(self, key: &[u8]) -> Result<usize, usize> {
        debug_assert!(self.is_leaf());
        self.search_from(0, key)
    }

    /// First entry of this leaf at or above `key`.
    pub(super) fn lower_bound(self, key: &[u8]) -> usize {
        self.search(key).unwrap_or_else(|at| at)
    }

    /// The child of this inner node that `key` belongs to.
    pub(super) fn child_for(self, key: &[u8]) -> usize {
        debug_assert!(!self.is_leaf() && self.count() > 0);
        self.search_from(1, key).unwrap_or_else(|at| at - 1)
    }

    /// Bytes that an entry with this key would take here, if the key has the node's prefix.
    pub(super) fn bytes_for(self, key: &[u8]) -> Option<usize> {
        key.starts_with(self.prefix()).then(|| {
            let heap = payload_bytes(self.level()) + heap_key_bytes(key.len(), self.prefix_len());
            SLOT_BYTES + heap
        })
    }

    /// Whether an entry of `bytes` can be added without making the node anew.
    pub(super) fn has_room(self, bytes: usize) -> bool {
        self.gap() >= bytes
    }
}

impl NodeMut {
    fn set_field(&mut self, at: usize, value: usize) {
        let value = u16::try_from(value).expect("below NODE_BYTES_MAX");
        self.bytes_mut()[at..at + 2].copy_from_slice(&value.to_le_bytes());
    }

    /// Takes `bytes` from the heap; returns where they start.
    fn push_heap(&mut self, bytes: usize) -> usize {
        assert!(self.node().gap() >= bytes);
        let heap = self.node().field(HEAP_AT) + bytes;
        self.set_field(HEAP_AT, heap);
        self.node().bytes().len() - heap
    }

    /// Gives an empty node its prefix.
    pub(super) fn set_prefix(&mut self, prefix: &[u8]) {
        assert!(self.node().count() == 0 && self.node().field(HEAP_AT) == 0);
        let at = self.push_heap(prefix.len());
        self.bytes_mut()[at..].copy_from_slice(prefix);
        self.set_field(PREFIX_AT, prefix.len());
    }

    /// Puts an entry at `i`; `suffix` is its key after the prefix, `blob` has a key that is long.
    pub(super) fn insert(
        &mut self,
        i: usize,
        suffix: &[u8],
        blob: Option<Blob<'_>>,
        payload: Payload<'_>,
    ) {
        let (count, level) = (self.node().count(), self.node().level());
        assert!(i <= count);
        let rest = rest_of(suffix);
        let key_bytes = if blob.is_some() {
            POINTER_BYTES
        } else {
            rest.len()
        };
        assert!(self.node().gap() >= SLOT_BYTES + payload_bytes(level) + key_bytes);
        let at = self.push_heap(payload_bytes(level) + key_bytes);
        self.put_payload(at, level, payload);
        let key_at = at + payload_bytes(level);
        let len = match blob {
            Some(blob) => {
                self.put_blob(key_at, blob);
                LONG
            }
            None => {
                self.bytes_mut()[key_at..key_at + rest.len()].copy_from_slice(rest);
                u16::try_from(suffix.len()).expect("at most INLINE_KEY_BYTES_MAX")
            }
        };
        let offset = self.node().field(HEAP_AT) as u16;
        let slot_at = HEADER_BYTES + i * SLOT_BYTES;
        let slots_end = HEADER_BYTES + count * SLOT_BYTES;
        let bytes = self.bytes_mut();
        bytes.copy_within(slot_at..slots_end, slot_at + SLOT_BYTES);
        bytes[slot_at..slot_at + 4].copy_from_slice(&head_of(suffix));
        bytes[slot_at + 4..slot_at + 6].copy_from_slice(&offset.to_le_bytes());
        bytes[slot_at + 6..slot_at + 8].copy_from_slice(&len.to_le_bytes());
        self.set_field(COUNT_AT, count + 1);
    }

    fn put_payload(&mut self, at: usize, level: u8, payload: Payload<'_>) {
        let end = at + payload_bytes(level);
        match payload {
            Payload::Same(from) => self.bytes_mut()[at..end].copy_from_slice(from),
            Payload::Meta(meta) => encode_meta(&meta, &mut self.bytes_mut()[at..end]),
            Payload::Child(link, live) => {
                assert!(level > 0);
                self.put_link(at, link);
                self.bytes_mut()[at + POINTER_BYTES..end].copy_from_slice(&live.to_le_bytes());
            }
        }
    }

    /// Drops entry `i`; what it points to is the caller's to retire.
    pub(super) fn remove(&mut self, i: usize) {
        let count = self.node().count();
        assert!(i < count);
        let dead = self.node().field(DEAD_AT) + self.node().entry_bytes(i);
        self.set_field(DEAD_AT, dead);
        let slot_at = HEADER_BYTES + i * SLOT_BYTES;
        let slots_end = HEADER_BYTES + count * SLOT_BYTES;
        self.bytes_mut()
            .copy_within(slot_at + SLOT_BYTES..slots_end, slot_at);
        self.set_field(COUNT_AT, count - 1);
    }

    /// Forgets key 0 of an inner node, as all of them do; its blob is the caller's to retire.
    pub(super) fn clear_first_key(&mut self) {
        assert!(!self.node().is_leaf() && self.node().count() > 0);
        let key_bytes = self.node().entry_bytes(0) - CHILD_BYTES;
        let dead = self.node().field(DEAD_AT) + key_bytes;
        self.set_field(DEAD_AT, dead);
        let slot = &mut self.bytes_mut()[HEADER_BYTES..HEADER_BYTES + SLOT_BYTES];
        slot[..4].fill(0);
        slot[6..8].fill(0);
    }

    /// Overwrites what leaf entry `i` says of its key.
    pub(super) fn set_meta(&mut self, i: usize, meta: &KeyMeta) {
        assert!(self.node().is_leaf());
        let at = self.node().entry_at(i);
        encode_meta(meta, &mut self.bytes_mut()[at..at + META_BYTES]);
    }

    pub(super) fn set_child_live(&mut self, i: usize, live: u64) {
        assert!(!self.node().is_leaf());
        let live = u32::try_from(live).expect("a key takes more than 64 bytes");
        let at = self.node().entry_at(i) + POINTER_BYTES;
        self.bytes_mut()[at..at + 4].copy_from_slice(&live.to_le_bytes());
    }

    /// Passes child `i` through `f`, which may replace it.
    pub(super) fn with_child<R>(&mut self, i: usize, f: impl FnOnce(Link) -> (Link, R)) -> R {
        assert!(!self.node().is_leaf());
        self.with_child_at(self.node().entry_at(i), f)
    }

    /// Takes child `i` out; the caller removes the entry or discards the node.
    pub(super) fn take_child(&mut self, i: usize) -> Link {
        assert!(!self.node().is_leaf());
        self.take_link(self.node().entry_at(i))
    }

    /// Fills this empty node with the entries of `from`, which has as many live bytes as fit here.
    pub(super) fn copy_from(&mut self, from: Node<'_>) {
        assert!(self.node().count() == 0 && self.node().field(HEAP_AT) == 0);
        assert!(self.node().level() == from.level());
        if from.field(DEAD_AT) > 0 {
            return self.copy_compacted(from);
        }
        let (slots, heap) = (from.count() * SLOT_BYTES, from.field(HEAP_AT));
        let (from_len, to_len) = (from.bytes().len(), self.node().bytes().len());
        assert!(HEADER_BYTES + slots + heap <= to_len);
        let bytes = self.bytes_mut();
        bytes[COUNT_AT..HEADER_BYTES + slots]
            .copy_from_slice(&from.bytes()[COUNT_AT..HEADER_BYTES + slots]);
        bytes[to_len - heap..].copy_from_slice(&from.bytes()[from_len - heap..]);
    }

    /// As [`Self::copy_from`], leaving dead bytes behind.
    fn copy_compacted(&mut self, from: Node<'_>) {
        self.set_prefix(from.prefix());
        for i in 0..from.count() {
            let entry = from.entry_at(i)..from.entry_at(i) + from.entry_bytes(i);
            assert!(self.node().gap() >= SLOT_BYTES + entry.len());
            let at = self.push_heap(entry.len());
            let heap = self.node().field(HEAP_AT);
            let mut slot = from.slots()[i];
            slot[4..6].copy_from_slice(&(heap as u16).to_le_bytes());
            let slot_at = HEADER_BYTES + i * SLOT_BYTES;
            let bytes = self.bytes_mut();
            bytes[at..at + entry.len()].copy_from_slice(&from.bytes()[entry]);
            bytes[slot_at..slot_at + SLOT_BYTES].copy_from_slice(&slot);
            self.set_field(COUNT_AT, i + 1);
        }
    }
}
