//! The index: every key with its newest revision, in order. A single-writer copy-on-write B+tree.
//!
//! [`Index`] belongs to the sequencer's core, which alone changes it, batch by batch. A batch edits
//! its own nodes in place and copies all others, so that whatever was published stays as it is.
//! [`Publisher::publish`] ends the batch: it hands a [`Root`] of the new tree to the View that it
//! swaps in, and what the batch replaced is used again once no reader can see it. Any core reads
//! through a [`Reader`], which pins, and gets from the View's `Root` a [`Tree`] for as long as the
//! pin lasts. No reader waits, and none ever frees a node.
//!
//! Invariant I5: a View is immutable; no node reachable from a pinned View is freed. Safe code
//! cannot break it: a `Root` is read only with a [`Pinned`] of the same index, whose View is no
//! newer than the `Root` (checked on each [`Root::read`]).
//!
//! A pin held long keeps everything that is replaced meanwhile: keep it under 256 keys or 1 ms, and
//! go on from the last key with a new cursor. [`Index::retired_bytes`] shows what pins hold back.
//!
//! Not here: what a revision means, and reads at old ones (`mvcc.rs`, `revtable.rs`).

mod build;
mod cursor;
mod edit;
mod node;
mod page;
mod reclaim;
mod space;
#[cfg(test)]
mod tests;

use std::sync::Arc;

pub use cursor::{Cursor, Tree};
use node::{Link, Memory, Retired};
use reclaim::Home;
pub use reclaim::{Pinned, Publisher, READERS_MAX, Reader, Root};

use crate::types::KeyMeta;

/// The newest tree; see the module. `Send`, but for one owner at a time.
pub struct Index {
    /// Out only while it is edited: a panic in there leaves an index that refuses every use.
    root: Option<Link>,
    memory: Memory,
    home: Arc<Home>,
    /// Whether a publisher has been made for it.
    published: bool,
}

impl Default for Index {
    fn default() -> Self {
        Self::new()
    }
}

impl Index {
    /// An index without keys.
    #[must_use]
    pub fn new() -> Self {
        Self::from_sorted(core::iter::empty::<(&[u8], KeyMeta)>())
    }

    /// An index of entries that come in ascending order of their keys, each key once; its leaves
    /// are nine tenths full.
    ///
    /// # Panics
    /// If a key is not above the one before.
    pub fn from_sorted<K: AsRef<[u8]>>(entries: impl IntoIterator<Item = (K, KeyMeta)>) -> Self {
        let mut memory = Memory::new();
        let mut loader = edit::Loader::default();
        for (key, meta) in entries {
            loader.push(&mut memory, key.as_ref(), meta);
        }
        let root = loader.finish(&mut memory);
        Self {
            root: Some(root),
            memory,
            home: Arc::default(),
            published: false,
        }
    }

    fn root(&self) -> &Link {
        self.root.as_ref().expect("an edit has panicked")
    }

    /// The tree as the writer sees it, with what is not published yet.
    #[must_use]
    pub fn tree(&self) -> Tree<'_> {
        Tree::new(self.root().node())
    }

    /// The entry of `key`, tombstones included; sees what is not published yet.
    #[must_use]
    pub fn get(&self, key: &[u8]) -> Option<KeyMeta> {
        self.tree().get(key)
    }

    /// Sets the entry of `key`, of any length up to `u32::MAX` bytes; returns the one before.
    pub fn upsert(&mut self, key: &[u8], meta: KeyMeta) -> Option<KeyMeta> {
        let root = self.root.take().expect("an edit has panicked");
        let (root, previous) = edit::upsert(&mut self.memory, root, key, meta);
        self.root = Some(root);
        previous
    }

    /// Forgets `key`, tombstone or not; returns its entry.
    pub fn remove(&mut self, key: &[u8]) -> Option<KeyMeta> {
        self.get(key)?;
        let root = self.root.take().expect("an edit has panicked");
        let (root, removed) = edit::remove(&mut self.memory, root, key);
        self.root = Some(root);
        Some(removed)
    }

    /// Bytes held from the allocator: nodes in use, retired or free, and long keys.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.memory.bytes()
    }

    /// Bytes of free nodes, which the next nodes are made of; they are not given back before the
    /// index is dropped.
    #[must_use]
    pub fn free_bytes(&self) -> u64 {
        self.memory.free_bytes()
    }

    /// Bytes of nodes and long keys that were replaced, by the batch at hand or by published ones
    /// that pins hold back.
    #[must_use]
    pub fn retired_bytes(&self) -> u64 {
        self.memory.retired_bytes()
    }

    /// Ends the batch. Only a publisher may have that: it is the one who knows when what the batch
    /// replaced is out of reach.
    fn seal(&mut self) -> (Root, Retired) {
        let root = self.root().address();
        let (batch, retired) = self.memory.seal();
        (Root::new(root, batch, &self.home), retired)
    }
}

impl Drop for Index {
    fn drop(&mut self) {
        // Readers may be pinned now or later: the memory goes when the last of them has gone.
        let memory = core::mem::replace(&mut self.memory, Memory::new());
        self.home.bury(memory);
    }
}
