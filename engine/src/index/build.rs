//! Nodes made anew from sorted entries: splits, merges, a shorter prefix, bulk load.
//!
//! Owned by the index's writer, transient. Not here: when to do so (`edit.rs`).

#![forbid(unsafe_code)]

use super::node::{Blob, HEADER_BYTES, Link, Memory, NODE_BYTES_MAX, Node};
use super::page::{INLINE_KEY_BYTES_MAX, Payload, SLOT_BYTES, heap_key_bytes, payload_bytes};

enum Key<'a> {
    /// A range of `Entries::keys`.
    Copied { start: usize, len: usize },
    /// A long key that has its memory already.
    Long(Blob<'a>),
}

struct Entry<'a> {
    key: Key<'a>,
    payload: Payload<'a>,
}

/// Sorted entries of one or two nodes to be, with whole keys.
pub(super) struct Entries<'a> {
    level: u8,
    keys: Vec<u8>,
    entries: Vec<Entry<'a>>,
}

/// Length of what both begin with.
pub(super) fn common_prefix(a: &[u8], b: &[u8]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

/// The shortest key above `below` and at most `above`.
pub(super) fn shortest_separator(below: &[u8], above: &[u8]) -> Vec<u8> {
    assert!(below < above);
    above[..=common_prefix(below, above)].to_vec()
}

impl<'a> Entries<'a> {
    pub(super) fn new(level: u8) -> Self {
        Self {
            level,
            keys: Vec::new(),
            entries: Vec::new(),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Appends all entries of a node of this level. Key 0 of an inner node, which is not stored, is
    /// `first_key`.
    pub(super) fn push_node(&mut self, node: Node<'a>, first_key: &[u8]) {
        assert!(node.level() == self.level);
        for i in 0..node.count() {
            let payload = Payload::Same(node.payload(i));
            if i == 0 && self.level > 0 {
                self.push(first_key, payload);
                continue;
            }
            let key = match node.blob(i) {
                Some(blob) => Key::Long(blob),
                None => {
                    let start = self.keys.len();
                    self.keys.extend_from_slice(node.prefix());
                    node.push_suffix(i, &mut self.keys);
                    Key::Copied {
                        start,
                        len: self.keys.len() - start,
                    }
                }
            };
            self.entries.push(Entry { key, payload });
        }
    }

    /// Appends one entry, copying its key.
    pub(super) fn push(&mut self, key: &[u8], payload: Payload<'a>) {
        self.insert(self.len(), key, payload);
    }

    /// Puts one entry at `i`, copying its key.
    pub(super) fn insert(&mut self, i: usize, key: &[u8], payload: Payload<'a>) {
        let start = self.keys.len();
        self.keys.extend_from_slice(key);
        let key = Key::Copied {
            start,
            len: key.len(),
        };
        self.entries.insert(i, Entry { key, payload });
    }

    pub(super) fn key(&self, i: usize) -> &[u8] {
        match &self.entries[i].key {
            Key::Copied { start, len } => &self.keys[*start..start + len],
            Key::Long(blob) => blob.key(),
        }
    }

    /// The memory of key `i` if it is long and has it already.
    pub(super) fn blob(&self, i: usize) -> Option<Blob<'a>> {
        match self.entries[i].key {
            Key::Copied { .. } => None,
            Key::Long(blob) => Some(blob),
        }
    }

    /// Drops all but the last entry, which has its key here.
    pub(super) fn keep_last(&mut self) {
        let last = self.len() - 1;
        let key = self.key(last).to_vec();
        self.entries.drain(..last);
        self.entries[0].key = Key::Copied {
            start: 0,
            len: key.len(),
        };
        self.keys = key;
    }

    /// The first of these entries whose key is stored.
    fn first_stored(&self, from: usize) -> usize {
        if self.level == 0 { from } else { from + 1 }
    }

    /// Prefix of a node with the entries `from..to`.
    fn prefix(&self, from: usize, to: usize) -> &[u8] {
        let first = self.first_stored(from);
        if first >= to {
            return &[];
        }
        let first = self.key(first);
        let first = &first[..first.len().min(INLINE_KEY_BYTES_MAX)];
        &first[..common_prefix(first, self.key(to - 1))]
    }

    /// Bytes of entry `i` in a node with a prefix of that length.
    fn entry_bytes(&self, i: usize, prefix: usize) -> usize {
        SLOT_BYTES + payload_bytes(self.level) + heap_key_bytes(self.key(i).len(), prefix)
    }

    /// Bytes of a node with the entries `from..to`.
    pub(super) fn node_bytes(&self, from: usize, to: usize) -> usize {
        assert!(from < to);
        let prefix = self.prefix(from, to).len();
        let first = self.first_stored(from);
        let unstored = (first - from) * (SLOT_BYTES + payload_bytes(self.level));
        let stored: usize = (first..to).map(|i| self.entry_bytes(i, prefix)).sum();
        HEADER_BYTES + prefix + unstored + stored
    }

    /// Where to split entries that do not fit one node, the new one being `new`.
    pub(super) fn split_point(&self, new: usize) -> usize {
        let n = self.len();
        assert!(n >= 2);
        // At either end, as in a run of ascending or descending keys, the others stay together.
        let preferred = if new + 1 == n {
            n - 1
        } else if new == 0 {
            1
        } else {
            self.middle()
        };
        let fits = |at: &usize| {
            self.node_bytes(0, *at) <= NODE_BYTES_MAX && self.node_bytes(*at, n) <= NODE_BYTES_MAX
        };
        let nearest = |at: &usize| at.abs_diff(preferred);
        if fits(&preferred) {
            return preferred;
        }
        // Exists: the middle by the assert in page.rs, and where the new key shortened the prefix
        // of all others, it lies at one end, and they fitted one node before.
        (1..n)
            .filter(fits)
            .min_by_key(nearest)
            .expect("two halves fit two nodes")
    }

    /// First entry past half of the bytes.
    fn middle(&self) -> usize {
        let n = self.len();
        let prefix = self.prefix(0, n).len();
        let first = self.first_stored(0);
        let half = (first..n)
            .map(|i| self.entry_bytes(i, prefix))
            .sum::<usize>()
            / 2;
        let mut bytes = 0;
        let at = (first..n).find(|i| {
            bytes += self.entry_bytes(*i, prefix);
            bytes > half
        });
        at.expect("the sum is past its half").clamp(1, n - 1)
    }

    /// Makes a node of the entries `from..to`, which leave `self`.
    pub(super) fn build(&mut self, memory: &mut Memory, from: usize, to: usize) -> Link {
        let prefix_len = self.prefix(from, to).len();
        let mut node = memory.allocate(self.level, self.node_bytes(from, to));
        node.set_prefix(self.prefix(from, to));
        for i in from..to {
            let payload = core::mem::replace(&mut self.entries[i].payload, Payload::Same(&[]));
            let at = i - from;
            if i < self.first_stored(from) {
                node.insert(at, &[], None, payload);
                continue;
            }
            let key = self.key(i);
            let long = key.len() > INLINE_KEY_BYTES_MAX;
            let blob = long.then(|| self.blob(i).unwrap_or_else(|| memory.new_blob(key)));
            node.insert(at, &key[prefix_len..], blob, payload);
        }
        node.into_link()
    }
}
