//! Which watchers want a key: a map of single keys and an interval tree of ranges.
//!
//! Owned by a cohort (`watch.rs`). The tree is an AVL tree over the distinct ranges, ordered by
//! start, each node knowing the range of its subtree that ends last: all ranges that hold a key are
//! found in O(log n + hits), whatever ranges clients choose.

use core::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};

use super::WatcherKey;

/// Where a watched range ends.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum End {
    /// It is its one start key.
    Single,
    /// Before this key, which is after the start.
    Before(Box<[u8]>),
    /// With the last key there is.
    Unbounded,
}

/// See the module.
#[derive(Default)]
pub(super) struct Matcher {
    exact: BTreeMap<Box<[u8]>, BTreeSet<WatcherKey>>,
    ranges: Ranges,
}

impl Matcher {
    pub(super) fn insert(&mut self, start: &[u8], end: &End, watcher: WatcherKey) {
        let added = match end {
            End::Single => match self.exact.get_mut(start) {
                Some(watchers) => watchers.insert(watcher),
                None => self
                    .exact
                    .insert(start.into(), BTreeSet::from([watcher]))
                    .is_none(),
            },
            _ => self.ranges.insert(start, bound(end), watcher),
        };
        assert!(added, "a watcher is in one cohort once");
    }

    pub(super) fn remove(&mut self, start: &[u8], end: &End, watcher: WatcherKey) {
        let removed = match end {
            End::Single => {
                let watchers = self.exact.get_mut(start).expect("inserted");
                let removed = watchers.remove(&watcher);
                if watchers.is_empty() {
                    self.exact.remove(start);
                }
                removed
            }
            _ => self.ranges.remove(start, bound(end), watcher),
        };
        assert!(removed, "a watcher leaves the cohort it is in");
    }

    /// Appends the watchers of `key` to `hits`, in an order that depends on the watchers alone.
    pub(super) fn find(&self, key: &[u8], hits: &mut Vec<WatcherKey>) {
        if let Some(watchers) = self.exact.get(key) {
            hits.extend(watchers);
        }
        self.ranges.find(self.ranges.root, key, hits);
    }
}

/// End of a range as the tree has it: `None` is after every key.
fn bound(end: &End) -> Option<&[u8]> {
    match end {
        End::Single => unreachable!("single keys are not in the tree"),
        End::Before(key) => Some(key),
        End::Unbounded => None,
    }
}

fn compare_ends(a: Option<&[u8]>, b: Option<&[u8]>) -> Ordering {
    match (a, b) {
        (Some(a), Some(b)) => a.cmp(b),
        (a, b) => a.is_none().cmp(&b.is_none()),
    }
}

/// No node.
const NIL: u32 = u32::MAX;

struct Node {
    start: Box<[u8]>,
    end: Option<Box<[u8]>>,
    watchers: BTreeSet<WatcherKey>,
    left: u32,
    right: u32,
    height: u32,
    /// The node of this subtree whose range ends last.
    last: u32,
}

struct Ranges {
    nodes: Vec<Node>,
    free: Vec<u32>,
    root: u32,
}

impl Default for Ranges {
    fn default() -> Self {
        Self {
            nodes: Vec::new(),
            free: Vec::new(),
            root: NIL,
        }
    }
}

impl Ranges {
    fn insert(&mut self, start: &[u8], end: Option<&[u8]>, watcher: WatcherKey) -> bool {
        let (root, added) = self.insert_at(self.root, start, end, watcher);
        self.root = root;
        added
    }

    fn remove(&mut self, start: &[u8], end: Option<&[u8]>, watcher: WatcherKey) -> bool {
        let (root, removed) = self.remove_at(self.root, start, end, watcher);
        self.root = root;
        removed
    }

    fn find(&self, at: u32, key: &[u8], hits: &mut Vec<WatcherKey>) {
        if at == NIL {
            return;
        }
        let node = self.node(at);
        let holds = |end: &Option<Box<[u8]>>| end.as_ref().is_none_or(|end| key < &**end);
        if !holds(&self.node(node.last).end) {
            return;
        }
        self.find(node.left, key, hits);
        if &*node.start <= key {
            if holds(&node.end) {
                hits.extend(&node.watchers);
            }
            self.find(node.right, key, hits);
        }
    }

    fn node(&self, at: u32) -> &Node {
        &self.nodes[at as usize]
    }

    fn node_mut(&mut self, at: u32) -> &mut Node {
        &mut self.nodes[at as usize]
    }

    fn height(&self, at: u32) -> u32 {
        if at == NIL { 0 } else { self.node(at).height }
    }

    fn compare(&self, start: &[u8], end: Option<&[u8]>, at: u32) -> Ordering {
        let node = self.node(at);
        start
            .cmp(&node.start)
            .then_with(|| compare_ends(end, node.end.as_deref()))
    }

    fn add_node(&mut self, start: &[u8], end: Option<&[u8]>, watcher: WatcherKey) -> u32 {
        let at = self.free.pop().unwrap_or_else(|| {
            u32::try_from(self.nodes.len()).expect("fewer ranges than watchers")
        });
        let node = Node {
            start: start.into(),
            end: end.map(Into::into),
            watchers: BTreeSet::from([watcher]),
            left: NIL,
            right: NIL,
            height: 1,
            last: at,
        };
        match self.nodes.get_mut(at as usize) {
            Some(slot) => *slot = node,
            None => self.nodes.push(node),
        }
        at
    }

    fn insert_at(
        &mut self,
        at: u32,
        start: &[u8],
        end: Option<&[u8]>,
        watcher: WatcherKey,
    ) -> (u32, bool) {
        if at == NIL {
            return (self.add_node(start, end, watcher), true);
        }
        let (left, right) = (self.node(at).left, self.node(at).right);
        let added = match self.compare(start, end, at) {
            Ordering::Equal => return (at, self.node_mut(at).watchers.insert(watcher)),
            Ordering::Less => {
                let (left, added) = self.insert_at(left, start, end, watcher);
                self.node_mut(at).left = left;
                added
            }
            Ordering::Greater => {
                let (right, added) = self.insert_at(right, start, end, watcher);
                self.node_mut(at).right = right;
                added
            }
        };
        (self.balance(at), added)
    }

    fn remove_at(
        &mut self,
        at: u32,
        start: &[u8],
        end: Option<&[u8]>,
        watcher: WatcherKey,
    ) -> (u32, bool) {
        if at == NIL {
            return (NIL, false);
        }
        let (left, right) = (self.node(at).left, self.node(at).right);
        let removed = match self.compare(start, end, at) {
            Ordering::Equal => {
                let watchers = &mut self.node_mut(at).watchers;
                let removed = watchers.remove(&watcher);
                if watchers.is_empty() {
                    return (self.unlink(at), removed);
                }
                return (at, removed);
            }
            Ordering::Less => {
                let (left, removed) = self.remove_at(left, start, end, watcher);
                self.node_mut(at).left = left;
                removed
            }
            Ordering::Greater => {
                let (right, removed) = self.remove_at(right, start, end, watcher);
                self.node_mut(at).right = right;
                removed
            }
        };
        (self.balance(at), removed)
    }

    /// Takes node `at` out; the root of what was below it.
    fn unlink(&mut self, at: u32) -> u32 {
        let (left, right) = (self.node(at).left, self.node(at).right);
        self.free.push(at);
        if left == NIL || right == NIL {
            return if left == NIL { right } else { left };
        }
        let (right, first) = self.unlink_first(right);
        self.node_mut(first).left = left;
        self.node_mut(first).right = right;
        self.balance(first)
    }

    /// Takes the first node of a subtree out of it: its new root, and the node.
    fn unlink_first(&mut self, at: u32) -> (u32, u32) {
        let (left, right) = (self.node(at).left, self.node(at).right);
        if left == NIL {
            return (right, at);
        }
        let (left, first) = self.unlink_first(left);
        self.node_mut(at).left = left;
        (self.balance(at), first)
    }

    /// Restores the balance of a node whose children are balanced; the subtree's root.
    fn balance(&mut self, at: u32) -> u32 {
        let (left, right) = (self.node(at).left, self.node(at).right);
        let (left_height, right_height) = (self.height(left), self.height(right));
        if left_height > right_height + 1 {
            let (outer, inner) = (self.node(left).left, self.node(left).right);
            if self.height(inner) > self.height(outer) {
                let left = self.rotate_left(left);
                self.node_mut(at).left = left;
            }
            return self.rotate_right(at);
        }
        if right_height > left_height + 1 {
            let (inner, outer) = (self.node(right).left, self.node(right).right);
            if self.height(inner) > self.height(outer) {
                let right = self.rotate_right(right);
                self.node_mut(at).right = right;
            }
            return self.rotate_left(at);
        }
        self.update(at);
        at
    }

    fn rotate_left(&mut self, at: u32) -> u32 {
        let root = self.node(at).right;
        self.node_mut(at).right = self.node(root).left;
        self.update(at);
        self.node_mut(root).left = at;
        self.update(root);
        root
    }

    fn rotate_right(&mut self, at: u32) -> u32 {
        let root = self.node(at).left;
        self.node_mut(at).left = self.node(root).right;
        self.update(at);
        self.node_mut(root).right = at;
        self.update(root);
        root
    }

    /// Height and last end of a node from its children's.
    fn update(&mut self, at: u32) {
        let (left, right) = (self.node(at).left, self.node(at).right);
        let mut last = at;
        for child in [left, right] {
            if child == NIL {
                continue;
            }
            let other = self.node(child).last;
            let end = |at: u32| self.node(at).end.as_deref();
            if compare_ends(end(other), end(last)).is_gt() {
                last = other;
            }
        }
        let height = 1 + self.height(left).max(self.height(right));
        let node = self.node_mut(at);
        node.height = height;
        node.last = last;
    }
}

#[cfg(test)]
mod tests {
    //! Goal: finds what looking at every watcher finds. Method: random inserts and removals of
    //! ranges over a small alphabet, every key asked after each; the tree's shape checked too.

    use proptest::prelude::*;

    use super::*;

    fn check(ranges: &Ranges, at: u32) -> u32 {
        if at == NIL {
            return 0;
        }
        let node = ranges.node(at);
        let (left, right) = (check(ranges, node.left), check(ranges, node.right));
        assert!(left.abs_diff(right) <= 1);
        assert_eq!(node.height, 1 + left.max(right));
        assert!(!node.watchers.is_empty());
        node.height
    }

    fn key() -> impl Strategy<Value = Vec<u8>> {
        prop::collection::vec(0..3u8, 1..3)
    }

    fn span() -> impl Strategy<Value = (Vec<u8>, End)> {
        (key(), key(), 0..4u8).prop_map(|(a, b, kind)| match kind {
            0 => (a, End::Single),
            1 => (a, End::Unbounded),
            _ if a < b => (a, End::Before(b.into())),
            _ => (a.clone(), End::Before([&a[..], &[0]].concat().into())),
        })
    }

    proptest! {
        #[test]
        fn finds_what_a_scan_finds(
            ops in prop::collection::vec(
                (span(), any::<bool>(), any::<prop::sample::Index>()), 1..80
            )
        ) {
            let mut matcher = Matcher::default();
            let mut all: Vec<(WatcherKey, Vec<u8>, End)> = Vec::new();
            for (i, ((start, end), remove, which)) in ops.into_iter().enumerate() {
                if remove && !all.is_empty() {
                    let (watcher, start, end) = all.swap_remove(which.index(all.len()));
                    matcher.remove(&start, &end, watcher);
                } else {
                    matcher.insert(&start, &end, i as u32);
                    all.push((i as u32, start, end));
                }
                check(&matcher.ranges, matcher.ranges.root);
                let keys = (0..3u8).flat_map(|a| {
                    [vec![a]].into_iter().chain((0..3u8).map(move |b| vec![a, b]))
                });
                for key in keys {
                    let mut hits = Vec::new();
                    matcher.find(&key, &mut hits);
                    hits.sort_unstable();
                    let mut want: Vec<_> = all
                        .iter()
                        .filter(|(_, start, end)| match end {
                            End::Single => *start == key,
                            End::Before(end) => *start <= key && key[..] < **end,
                            End::Unbounded => *start <= key,
                        })
                        .map(|w| w.0)
                        .collect();
                    want.sort_unstable();
                    prop_assert_eq!(hits, want);
                }
            }
            let used = matcher.ranges.nodes.len() - matcher.ranges.free.len();
            prop_assert!(used <= all.len());
        }
    }
}
