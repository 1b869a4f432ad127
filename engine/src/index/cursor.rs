//! Reading a tree: point lookups, counts, and cursors in either direction.
//!
//! Used by readers on any core under a pin, and by the writer on its unpublished tree. Nothing here
//! allocates but a cursor's key buffer and path.
//!
//! Not here: how a root is reached and kept (`reclaim.rs`).

#![forbid(unsafe_code)]

use super::node::Node;
use crate::types::KeyMeta;

/// All keys at one moment, borrowed from what keeps them: a pin, or the writer's [`super::Index`].
#[derive(Clone, Copy)]
pub struct Tree<'a> {
    root: Node<'a>,
}

impl<'a> Tree<'a> {
    pub(super) fn new(root: Node<'a>) -> Self {
        Self { root }
    }

    /// The entry of `key`, tombstones included.
    #[must_use]
    pub fn get(self, key: &[u8]) -> Option<KeyMeta> {
        let mut node = self.root;
        while !node.is_leaf() {
            node = node.child(node.child_for(key));
        }
        node.search(key).ok().map(|i| node.meta(i))
    }

    /// Keys in `start..end` that are no tombstones; `None` means no end. O(log n).
    #[must_use]
    pub fn live_count(self, start: &[u8], end: Option<&[u8]>) -> u64 {
        let to = end.map_or_else(|| self.root.live(), |end| self.live_below(end));
        // An end before the start makes an empty range.
        to.saturating_sub(self.live_below(start))
    }

    fn live_below(self, key: &[u8]) -> u64 {
        let mut node = self.root;
        let mut live = 0;
        while !node.is_leaf() {
            let i = node.child_for(key);
            live += node.live_before(i);
            node = node.child(i);
        }
        live + node.live_before(node.lower_bound(key))
    }

    /// Entries in `start..end`, ascending, tombstones included; `None` means no end.
    #[must_use]
    pub fn range<'r>(self, start: &[u8], end: Option<&'r [u8]>) -> Cursor<'a, 'r> {
        let (path, leaf) = self.descend(Some(start));
        let mut cursor = Cursor {
            at: leaf.lower_bound(start),
            ..Cursor::new(path, leaf)
        };
        cursor.bounds = Bounds::Ascending { end };
        cursor.enter(leaf);
        cursor
    }

    /// Entries in `start..end`, descending, tombstones included; `None` means no end.
    #[must_use]
    pub fn range_rev<'r>(self, start: &'r [u8], end: Option<&[u8]>) -> Cursor<'a, 'r> {
        let (path, leaf) = self.descend(end);
        let at = end.map_or(leaf.count(), |end| leaf.lower_bound(end));
        let mut cursor = Cursor {
            at,
            ..Cursor::new(path, leaf)
        };
        cursor.bounds = Bounds::Descending { start };
        cursor.enter(leaf);
        cursor
    }

    /// Way to the leaf of `key`, or to the last leaf.
    fn descend(self, key: Option<&[u8]>) -> (Vec<(Node<'a>, usize)>, Node<'a>) {
        let mut path = Vec::with_capacity(usize::from(self.root.level()));
        let mut node = self.root;
        while !node.is_leaf() {
            let i = key.map_or(node.count() - 1, |key| node.child_for(key));
            path.push((node, i));
            node = node.child(i);
        }
        (path, node)
    }
}

#[derive(Clone, Copy)]
enum Bounds<'r> {
    Ascending { end: Option<&'r [u8]> },
    Descending { start: &'r [u8] },
}

/// Walks a range of a [`Tree`]. To go on later, or elsewhere, make a new one from a key.
pub struct Cursor<'a, 'r> {
    /// Inner nodes from the root down, each with the child that was taken; empty as well when no
    /// further leaf belongs to the range.
    path: Vec<(Node<'a>, usize)>,
    leaf: Node<'a>,
    bounds: Bounds<'r>,
    /// Ascending: next entry. Descending: one above it.
    at: usize,
    /// `at` when the leaf has no more entries of the range.
    stop: usize,
    /// The current key; between calls it begins with the leaf's prefix.
    key: Vec<u8>,
}

impl<'a, 'r> Cursor<'a, 'r> {
    fn new(path: Vec<(Node<'a>, usize)>, leaf: Node<'a>) -> Self {
        let bounds = Bounds::Ascending { end: None };
        Self {
            path,
            leaf,
            bounds,
            at: 0,
            stop: 0,
            key: Vec::new(),
        }
    }

    /// The next entry; the key is lent from the cursor's buffer until the next call.
    #[allow(
        clippy::should_implement_trait,
        reason = "it lends, which Iterator cannot"
    )]
    pub fn next(&mut self) -> Option<(&[u8], KeyMeta)> {
        while self.at == self.stop {
            self.next_leaf()?;
        }
        let i = match self.bounds {
            Bounds::Ascending { .. } => {
                self.at += 1;
                self.at - 1
            }
            Bounds::Descending { .. } => {
                self.at -= 1;
                self.at
            }
        };
        self.key.truncate(self.leaf.prefix().len());
        self.leaf.push_suffix(i, &mut self.key);
        Some((&self.key, self.leaf.meta(i)))
    }

    /// Goes to the neighbouring leaf, if the range may go on there.
    fn next_leaf(&mut self) -> Option<()> {
        let (node, i) = loop {
            let (node, i) = self.path.pop()?;
            match self.bounds {
                Bounds::Ascending { .. } if i + 1 < node.count() => break (node, i + 1),
                Bounds::Descending { .. } if i > 0 => break (node, i - 1),
                _ => {}
            }
        };
        self.path.push((node, i));
        let mut node = node.child(i);
        while !node.is_leaf() {
            let i = match self.bounds {
                Bounds::Ascending { .. } => 0,
                Bounds::Descending { .. } => node.count() - 1,
            };
            self.path.push((node, i));
            node = node.child(i);
        }
        self.at = match self.bounds {
            Bounds::Ascending { .. } => 0,
            Bounds::Descending { .. } => node.count(),
        };
        self.enter(node);
        Some(())
    }

    /// Makes `leaf` the current one, `at` being set.
    fn enter(&mut self, leaf: Node<'a>) {
        self.leaf = leaf;
        self.key.clear();
        self.key.extend_from_slice(leaf.prefix());
        let last = match self.bounds {
            Bounds::Ascending { end } => {
                self.stop = end
                    .map_or(leaf.count(), |end| leaf.lower_bound(end))
                    .max(self.at);
                self.stop < leaf.count()
            }
            Bounds::Descending { start } => {
                self.stop = leaf.lower_bound(start).min(self.at);
                self.stop > 0
            }
        };
        if last {
            self.path.clear();
        }
    }
}

#[cfg(test)]
impl Tree<'_> {
    /// Asserts order, separators, levels, counts and sizes of all nodes; returns how many.
    pub(super) fn check(self) -> usize {
        fn check(node: Node<'_>, lower: &[u8], upper: Option<&[u8]>) -> usize {
            assert!(node.used() <= node.bytes().len());
            let mut last: Option<Vec<u8>> = None;
            let mut nodes = 1;
            for i in 0..node.count() {
                let mut key = node.prefix().to_vec();
                node.push_suffix(i, &mut key);
                if i == 0 && !node.is_leaf() {
                    key = lower.to_vec();
                }
                assert!(&key[..] >= lower);
                assert!(upper.is_none_or(|upper| &key[..] < upper));
                assert!(last.is_none_or(|last| last < key));
                if !node.is_leaf() {
                    let mut next = node.prefix().to_vec();
                    let has_next = i + 1 < node.count();
                    if has_next {
                        node.push_suffix(i + 1, &mut next);
                    }
                    let child = node.child(i);
                    assert!(child.count() > 0);
                    assert_eq!(child.level() + 1, node.level());
                    assert_eq!(u64::from(node.child_live(i)), child.live());
                    nodes += check(child, &key, if has_next { Some(&next) } else { upper });
                }
                last = Some(key);
            }
            nodes
        }
        assert!(self.root.is_leaf() || self.root.count() > 1);
        check(self.root, b"", None)
    }
}
