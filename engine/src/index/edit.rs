//! Changes of the tree: upsert, remove, bulk load. Each takes a subtree's link and returns the link
//! of what it has become, so that the parent is written once.
//!
//! Runs on the index's writer. Recursion is as deep as the tree. A node is split when it would pass
//! `NODE_BYTES_MAX`; it is merged with a neighbour when it falls below a quarter and both fit three
//! quarters, else it stays small: sizes are flexible, so small nodes waste little.
//!
//! Not here: bytes of nodes (`page.rs`, `build.rs`), batches and roots (`index.rs`).

#![forbid(unsafe_code)]

use super::build::{Entries, shortest_separator};
use super::node::{Link, Memory, NODE_BYTES_MAX, NodeMut};
use super::page::{INLINE_KEY_BYTES_MAX, Payload};
use crate::types::KeyMeta;

/// A node smaller than this looks for a neighbour to merge with, bytes.
const MERGE_BELOW_BYTES: usize = NODE_BYTES_MAX / 4;
/// A merged node leaves room to grow, bytes.
const MERGED_BYTES_MAX: usize = NODE_BYTES_MAX / 4 * 3;
/// A loaded node leaves room to grow, bytes.
const LOADED_BYTES_MAX: usize = NODE_BYTES_MAX / 10 * 9;

/// The right half of a node that was split.
struct Split {
    separator: Vec<u8>,
    right: Link,
}

struct Upserted {
    previous: Option<KeyMeta>,
    split: Option<Split>,
}

fn live_change(previous: Option<KeyMeta>, now: Option<KeyMeta>) -> i64 {
    let live = |meta: Option<KeyMeta>| i64::from(meta.is_some_and(|m| !m.is_tombstone()));
    live(now) - live(previous)
}

fn add_child_live(node: &mut NodeMut, i: usize, change: i64) {
    if change != 0 {
        let live = u64::from(node.node().child_live(i)).checked_add_signed(change);
        node.set_child_live(
            i,
            live.expect("a child has as many live keys as its parent says"),
        );
    }
}

/// `link` as a private node with room for an entry of `room` bytes, which must fit a node.
fn own(memory: &mut Memory, link: Link, room: usize) -> NodeMut {
    let node = link.node();
    if memory.is_private(&link) && node.has_room(room) {
        return memory.private(link);
    }
    let mut copy = memory.allocate(node.level(), node.used() + room);
    copy.copy_from(node);
    memory.discard(link);
    copy
}

/// Sets the entry of `key` in the tree `root`; returns the tree and the entry before.
pub(super) fn upsert(
    memory: &mut Memory,
    root: Link,
    key: &[u8],
    meta: KeyMeta,
) -> (Link, Option<KeyMeta>) {
    let (root, done) = upsert_below(memory, root, key, meta);
    let Some(split) = done.split else {
        return (root, done.previous);
    };
    let mut entries = Entries::new(root.node().level() + 1);
    push_child(&mut entries, &[], root);
    push_child(&mut entries, &split.separator, split.right);
    (entries.build(memory, 0, 2), done.previous)
}

fn push_child(entries: &mut Entries<'_>, key: &[u8], link: Link) {
    let live = live_u32(&link);
    entries.push(key, Payload::Child(link, live));
}

fn live_u32(link: &Link) -> u32 {
    u32::try_from(link.node().live()).expect("a key takes more than 64 bytes")
}

fn upsert_below(memory: &mut Memory, link: Link, key: &[u8], meta: KeyMeta) -> (Link, Upserted) {
    if link.node().is_leaf() {
        return upsert_leaf(memory, link, key, meta);
    }
    let mut node = own(memory, link, 0);
    let i = node.node().child_for(key);
    let done = node.with_child(i, |child| upsert_below(memory, child, key, meta));
    let Some(split) = done.split else {
        add_child_live(&mut node, i, live_change(done.previous, Some(meta)));
        return (node.into_link(), done);
    };
    let live = node.node().child(i).live();
    node.set_child_live(i, live);
    let live = live_u32(&split.right);
    let right = Payload::Child(split.right, live);
    let (link, split) = insert_entry(memory, node.into_link(), i + 1, &split.separator, right);
    (
        link,
        Upserted {
            previous: done.previous,
            split,
        },
    )
}

fn upsert_leaf(memory: &mut Memory, link: Link, key: &[u8], meta: KeyMeta) -> (Link, Upserted) {
    match link.node().search(key) {
        Ok(i) => {
            let mut leaf = own(memory, link, 0);
            let previous = Some(leaf.node().meta(i));
            leaf.set_meta(i, &meta);
            (
                leaf.into_link(),
                Upserted {
                    previous,
                    split: None,
                },
            )
        }
        Err(i) => {
            let (link, split) = insert_entry(memory, link, i, key, Payload::Meta(meta));
            (
                link,
                Upserted {
                    previous: None,
                    split,
                },
            )
        }
    }
}

/// Puts a new entry at `i` of a node, in place if it fits.
fn insert_entry(
    memory: &mut Memory,
    link: Link,
    i: usize,
    key: &[u8],
    payload: Payload<'_>,
) -> (Link, Option<Split>) {
    let node = link.node();
    let Some(room) = node
        .bytes_for(key)
        .filter(|room| node.used() + room <= NODE_BYTES_MAX)
    else {
        return insert_anew(memory, link, i, key, payload);
    };
    let prefix = node.prefix().len();
    let blob = (key.len() > INLINE_KEY_BYTES_MAX).then(|| memory.new_blob(key));
    let mut node = own(memory, link, room);
    node.insert(i, &key[prefix..], blob, payload);
    (node.into_link(), None)
}

/// As [`insert_entry`], with new nodes: the prefix gets shorter, or the node is split.
fn insert_anew(
    memory: &mut Memory,
    link: Link,
    i: usize,
    key: &[u8],
    payload: Payload<'_>,
) -> (Link, Option<Split>) {
    let mut entries = Entries::new(link.node().level());
    entries.push_node(link.node(), &[]);
    entries.insert(i, key, payload);
    let n = entries.len();
    let (left, split) = if entries.node_bytes(0, n) <= NODE_BYTES_MAX {
        (entries.build(memory, 0, n), None)
    } else {
        let at = entries.split_point(i);
        let separator = if link.node().is_leaf() {
            shortest_separator(entries.key(at - 1), entries.key(at))
        } else {
            // The right half's key 0 is not stored in it: it moves up.
            entries
                .blob(at)
                .into_iter()
                .for_each(|blob| memory.retire_blob(blob));
            entries.key(at).to_vec()
        };
        let left = entries.build(memory, 0, at);
        let right = entries.build(memory, at, n);
        (left, Some(Split { separator, right }))
    };
    drop(entries);
    memory.discard(link);
    (left, split)
}

/// Removes `key`, which is in the tree `root`; returns the tree and the entry.
pub(super) fn remove(memory: &mut Memory, root: Link, key: &[u8]) -> (Link, KeyMeta) {
    let (mut root, removed) = remove_below(memory, root, key);
    while !root.node().is_leaf() && root.node().count() <= 1 {
        let mut shell = own(memory, root, 0);
        let only = (shell.node().count() == 1).then(|| shell.take_child(0));
        memory.discard(shell.into_link());
        root = only.unwrap_or_else(|| memory.allocate(0, 1).into_link());
    }
    (root, removed)
}

fn remove_below(memory: &mut Memory, link: Link, key: &[u8]) -> (Link, KeyMeta) {
    let mut node = own(memory, link, 0);
    if node.node().is_leaf() {
        let i = node.node().search(key).expect("the caller found the key");
        let removed = node.node().meta(i);
        remove_entry(memory, &mut node, i);
        return (node.into_link(), removed);
    }
    let i = node.node().child_for(key);
    let removed = node.with_child(i, |child| remove_below(memory, child, key));
    add_child_live(&mut node, i, live_change(Some(removed), None));
    tend_child(memory, &mut node, i);
    (node.into_link(), removed)
}

fn remove_entry(memory: &mut Memory, node: &mut NodeMut, i: usize) {
    node.node()
        .blob(i)
        .into_iter()
        .for_each(|blob| memory.retire_blob(blob));
    node.remove(i);
    if i == 0 && !node.node().is_leaf() && node.node().count() > 0 {
        node.node()
            .blob(0)
            .into_iter()
            .for_each(|blob| memory.retire_blob(blob));
        node.clear_first_key();
    }
}

/// Drops child `i` if it is empty, merges it if it is small.
fn tend_child(memory: &mut Memory, node: &mut NodeMut, i: usize) {
    let child = node.node().child(i);
    if child.count() == 0 {
        let empty = node.take_child(i);
        remove_entry(memory, node, i);
        memory.discard(empty);
        return;
    }
    if child.used() >= MERGE_BELOW_BYTES {
        return;
    }
    let last = node.node().count() - 1;
    if i < last && merge(memory, node, i) {
        return;
    }
    if i > 0 {
        merge(memory, node, i - 1);
    }
}

/// Merges children `i` and `i + 1` if they fit.
fn merge(memory: &mut Memory, node: &mut NodeMut, i: usize) -> bool {
    let (left, right) = (node.node().child(i), node.node().child(i + 1));
    assert!(left.level() == right.level());
    if left.used() + right.used() > MERGED_BYTES_MAX + left.prefix().len() + right.prefix().len() {
        return false;
    }
    let mut separator = node.node().prefix().to_vec();
    node.node().push_suffix(i + 1, &mut separator);
    let mut entries = Entries::new(left.level());
    entries.push_node(left, &[]);
    entries.push_node(right, &separator);
    let n = entries.len();
    if entries.node_bytes(0, n) > MERGED_BYTES_MAX {
        return false;
    }
    let merged = entries.build(memory, 0, n);
    drop(entries);
    let live = merged.node().live();
    let right = node.take_child(i + 1);
    remove_entry(memory, node, i + 1);
    node.set_child_live(i, live);
    let left = node.with_child(i, |left| (merged, left));
    memory.discard(left);
    memory.discard(right);
    true
}

/// Makes a tree of entries that come in order of their keys.
#[derive(Default)]
pub(super) struct Loader {
    levels: Vec<Level>,
    last_key: Vec<u8>,
}

struct Level {
    /// Entries of the node to come.
    entries: Entries<'static>,
    /// Separator below which the node's keys do not go.
    lower: Vec<u8>,
}

impl Loader {
    /// Appends an entry; `key` must be above all before.
    pub(super) fn push(&mut self, memory: &mut Memory, key: &[u8], meta: KeyMeta) {
        let first = self
            .levels
            .first()
            .is_none_or(|leaf| leaf.entries.len() == 0);
        assert!(first || key > &self.last_key[..], "keys come in order");
        self.push_at(memory, 0, key, Payload::Meta(meta));
        key.clone_into(&mut self.last_key);
    }

    fn push_at(&mut self, memory: &mut Memory, level: u8, key: &[u8], payload: Payload<'static>) {
        let at = usize::from(level);
        if at == self.levels.len() {
            self.levels.push(Level {
                entries: Entries::new(level),
                lower: Vec::new(),
            });
        }
        let entries = &mut self.levels[at].entries;
        entries.push(key, payload);
        if entries.node_bytes(0, entries.len()) <= LOADED_BYTES_MAX {
            return;
        }
        let n = entries.len();
        let full = entries.build(memory, 0, n - 1);
        let lower = match level {
            0 => shortest_separator(entries.key(n - 2), key),
            _ => key.to_vec(),
        };
        entries.keep_last();
        let before = core::mem::replace(&mut self.levels[at].lower, lower);
        self.push_child(memory, level + 1, &before, full);
    }

    fn push_child(&mut self, memory: &mut Memory, level: u8, lower: &[u8], child: Link) {
        let live = live_u32(&child);
        self.push_at(memory, level, lower, Payload::Child(child, live));
    }

    /// The tree.
    pub(super) fn finish(mut self, memory: &mut Memory) -> Link {
        let mut at = 0;
        while at < self.levels.len() {
            let n = self.levels[at].entries.len();
            let node = self.levels[at].entries.build(memory, 0, n);
            if at + 1 == self.levels.len() {
                return node;
            }
            let lower = core::mem::take(&mut self.levels[at].lower);
            at += 1;
            let level = node.node().level() + 1;
            self.push_child(memory, level, &lower, node);
        }
        memory.allocate(0, 1).into_link()
    }
}
