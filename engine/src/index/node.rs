//! Nodes of the index: their memory, the pointers between them, and who may write which.
//!
//! Protocol (with `reclaim.rs`, this file holds all unsafe code of the index; `page.rs`, `build.rs`
//! and `edit.rs` are safe code inside the same boundary and keep rules 2 and 3 for the bytes they
//! write):
//! 1. A node has exactly one [`Link`] in the writer's newest tree: the root's, or the one in its
//!    parent. Who holds the `Link` by value owns the subtree. Older trees that readers see hold
//!    copies of the same pointer, but no reader ever turns one into a `Link`.
//! 2. The heap entry of slot `i` of an inner node starts with a `Link`; an entry whose slot says
//!    `LONG` ends with a [`Blob`]. Both are written and read as pointers, never as integers.
//! 3. A node is written only through [`NodeMut`], which exists only for nodes stamped with the
//!    current batch: no root that contains them has been published. All others are immutable.
//! 4. A node leaves the newest tree through [`Memory::discard`]: a private one is free at once, a
//!    published one goes into [`Retired`] and is free when `reclaim.rs` says that every root that
//!    contains it is out of reach. Blobs always go through `Retired`.
//! 5. All memory belongs to [`Memory`] and is returned to the allocator only when that is dropped,
//!    which is after the last reader is gone (`reclaim::Home`).
//!
//! Owned by the index's writer; `Node` is read on any core. Not here: what the bytes of a node mean
//! beyond its header (`page.rs`).

use core::alloc::Layout;
use core::marker::PhantomData;
use core::ptr::NonNull;
use std::alloc::{alloc, alloc_zeroed, dealloc, handle_alloc_error};

use super::space::{CHUNK_UNITS, Run, Space};

/// Granule of node sizes, bytes: small nodes take little, so that splits leave little slack.
pub(super) const UNIT_BYTES: usize = if cfg!(test) { 64 } else { 256 };
/// Largest node, in units. Under test small enough that a few keys make a deep tree.
pub(super) const UNITS_MAX: usize = if cfg!(test) { 6 } else { 8 };
/// Largest node, bytes.
pub(super) const NODE_BYTES_MAX: usize = UNIT_BYTES * UNITS_MAX;
/// What nodes are cut from, bytes, and where it starts: a node's chunk is found by its address.
const CHUNK_BYTES: usize = CHUNK_UNITS * UNIT_BYTES;

/// Free nodes of one size that are kept as they are, because the next batch wants the same sizes.
const RECENT_NODES_MAX: usize = if cfg!(test) { 2 } else { 64 };

const CHUNK_LAYOUT: Layout = match Layout::from_size_align(CHUNK_BYTES, CHUNK_BYTES) {
    Ok(layout) => layout,
    Err(_) => panic!("a power of two"),
};

/// Bytes of the header; its fields are named by the `_AT` offsets.
///
/// ```text
/// 0 batch u64 | 8 units u8 | 9 level u8 | 10 count u16 | 12 prefix u16 | 14 heap u16 | 16 dead u16
/// ```
pub(super) const HEADER_BYTES: usize = 20;
pub(super) const BATCH_AT: usize = 0;
pub(super) const UNITS_AT: usize = 8;
pub(super) const LEVEL_AT: usize = 9;
/// Level of a node on the free list, so that a stray reader trips over it.
const LEVEL_FREE: u8 = 0xFF;

/// Bytes of a `Link` or a `Blob` inside a node.
pub(super) const POINTER_BYTES: usize = size_of::<NonNull<u8>>();

const _: () = {
    assert!(CHUNK_BYTES.is_power_of_two());
    assert!(NODE_BYTES_MAX <= u16::MAX as usize && UNITS_MAX <= u8::MAX as usize);
    assert!(POINTER_BYTES == 8);
};

/// Ownership of a node and all below it in the newest tree. Neither `Copy` nor `Clone` (rule 1).
#[repr(transparent)]
pub(super) struct Link(NonNull<u8>);

// SAFETY: owns plain memory, and nodes that other threads read are immutable (rule 3).
unsafe impl Send for Link {}

impl Link {
    pub(super) fn node(&self) -> Node<'_> {
        // SAFETY: a Link's node is neither freed (rule 4) nor written (that takes the Link by
        // value) while the Link is borrowed.
        unsafe { Node::new(self.0) }
    }

    /// Address for a published root; it owns nothing.
    pub(super) fn address(&self) -> NonNull<u8> {
        self.0
    }
}

/// A node for reading, with everything below it: all of it immutable for `'a`.
#[derive(Clone, Copy)]
pub(super) struct Node<'a> {
    bytes: &'a [u8],
}

impl<'a> Node<'a> {
    /// # Safety
    /// `start` is a node that, with all below it, is neither freed nor written during `'a`.
    pub(super) unsafe fn new(start: NonNull<u8>) -> Self {
        // SAFETY: within the header of a node, which the caller vouches for.
        let units_at = unsafe { start.add(UNITS_AT) };
        // SAFETY: as above, and written before the node could be reached.
        let units = unsafe { units_at.read() };
        debug_assert!((1..=UNITS_MAX).contains(&usize::from(units)));
        // SAFETY: a node is `units` long, initialised (`Memory::cut`), and the caller vouches for
        // its life and immutability.
        let bytes =
            unsafe { core::slice::from_raw_parts(start.as_ptr(), usize::from(units) * UNIT_BYTES) };
        let node = Self { bytes };
        assert_ne!(node.bytes[LEVEL_AT], LEVEL_FREE, "read of a recycled node");
        node
    }

    pub(super) fn bytes(self) -> &'a [u8] {
        self.bytes
    }

    /// Batch that made the node.
    pub(super) fn batch(self) -> u64 {
        u64::from_le_bytes(
            self.bytes[BATCH_AT..BATCH_AT + 8]
                .try_into()
                .expect("8 bytes"),
        )
    }

    /// The child whose link lies at byte `at` of this inner node.
    pub(super) fn child_at(self, at: usize) -> Node<'a> {
        let start = self.pointer_at(at);
        // SAFETY: rule 2, and the child lives and rests as long as its parent.
        unsafe { Node::new(start) }
    }

    /// The blob whose pointer lies at byte `at` of this node.
    pub(super) fn blob_at(self, at: usize) -> Blob<'a> {
        Blob {
            start: self.pointer_at(at),
            life: PhantomData,
        }
    }

    fn pointer_at(self, at: usize) -> NonNull<u8> {
        let from: *const u8 = self.bytes[at..at + POINTER_BYTES].as_ptr();
        // SAFETY: in bounds by the slicing above; the callers ask only where rule 2 put a pointer.
        unsafe { from.cast::<NonNull<u8>>().read_unaligned() }
    }
}

/// A key too long for a node, in memory of its own: immutable, shared by all copies of its entry.
///
/// ```text
/// 0 position in Memory::blobs u32 (the writer's alone) | 4 key bytes u32 | 8 key
/// ```
#[derive(Clone, Copy)]
pub(super) struct Blob<'a> {
    start: NonNull<u8>,
    life: PhantomData<&'a [u8]>,
}

const BLOB_HEADER_BYTES: usize = 8;

impl<'a> Blob<'a> {
    fn len(self) -> usize {
        // SAFETY: within the header of a blob, which lives for 'a.
        let len_at = unsafe { self.start.add(4) };
        // SAFETY: aligned to 8 at allocation, immutable since.
        let len = unsafe { len_at.cast::<u32>().read() };
        len as usize
    }

    pub(super) fn key(self) -> &'a [u8] {
        // SAFETY: the key follows the header.
        let key = unsafe { self.start.add(BLOB_HEADER_BYTES) };
        // SAFETY: `len` bytes were written at allocation; immutable, and alive for 'a.
        unsafe { core::slice::from_raw_parts(key.as_ptr(), self.len()) }
    }

    fn layout(self) -> Layout {
        Self::layout_of(self.len())
    }

    fn layout_of(len: usize) -> Layout {
        Layout::from_size_align(BLOB_HEADER_BYTES + len, 8).expect("bounded by the request size")
    }
}

/// A private node (rule 3), for writing.
pub(super) struct NodeMut(Link);

impl NodeMut {
    pub(super) fn node(&self) -> Node<'_> {
        self.0.node()
    }

    /// Ends writing through this handle.
    pub(super) fn into_link(self) -> Link {
        self.0
    }

    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        let len = self.node().bytes.len();
        // SAFETY: the node is private (rule 3) and this is the only handle to it (rule 1).
        unsafe { core::slice::from_raw_parts_mut(self.0.0.as_ptr(), len) }
    }

    /// Passes the child at byte `at` through `f`, which may replace it.
    pub(super) fn with_child_at<R>(&mut self, at: usize, f: impl FnOnce(Link) -> (Link, R)) -> R {
        // If `f` panics the pointer stays behind twice; the tree is then never read again, because
        // the index has its root taken out while it is edited.
        let (link, result) = f(Link(self.node().pointer_at(at)));
        self.put_link(at, link);
        result
    }

    /// Takes the child at byte `at` out; the caller removes the entry or the whole node.
    pub(super) fn take_link(&mut self, at: usize) -> Link {
        Link(self.node().pointer_at(at))
    }

    pub(super) fn put_link(&mut self, at: usize, link: Link) {
        self.put_pointer(at, link.0);
    }

    pub(super) fn put_blob(&mut self, at: usize, blob: Blob<'_>) {
        self.put_pointer(at, blob.start);
    }

    fn put_pointer(&mut self, at: usize, pointer: NonNull<u8>) {
        let to: *mut u8 = self.bytes_mut()[at..at + POINTER_BYTES].as_mut_ptr();
        // SAFETY: in bounds by the slicing above.
        unsafe { to.cast::<NonNull<u8>>().write_unaligned(pointer) };
    }
}

/// What one batch replaced: out of the newest tree, but perhaps in older ones that readers hold.
#[derive(Default)]
pub(super) struct Retired {
    nodes: Vec<NonNull<u8>>,
    blobs: Vec<NonNull<u8>>,
    bytes: u64,
}

// SAFETY: lists of addresses; only `Memory::recycle` of the owning index follows them.
unsafe impl Send for Retired {}

/// All memory of one index.
pub(super) struct Memory {
    /// Stamp of private nodes.
    batch: u64,
    /// Each `CHUNK_BYTES` long; the first word is its place here.
    chunks: Vec<NonNull<u8>>,
    space: Space,
    /// Nodes freed last, by their units, not joined with free neighbours: the next ones to use.
    recent: [Vec<NonNull<u8>>; UNITS_MAX + 1],
    blobs: Vec<NonNull<u8>>,
    retired: Retired,
    /// Bytes of all chunks and blobs.
    bytes: u64,
    /// Bytes sealed as retired and not yet recycled.
    held_bytes: u64,
}

// SAFETY: the one owner of plain memory; readers on other threads only read immutable parts.
unsafe impl Send for Memory {}
// SAFETY: a shared Memory tells numbers only.
unsafe impl Sync for Memory {}

impl Memory {
    pub(super) fn new() -> Self {
        Self {
            batch: 1,
            chunks: Vec::new(),
            space: Space::new(),
            recent: [const { Vec::new() }; UNITS_MAX + 1],
            blobs: Vec::new(),
            retired: Retired::default(),
            bytes: 0,
            held_bytes: 0,
        }
    }

    /// Bytes held from the allocator, free nodes included.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Bytes of free nodes.
    pub(super) fn free_bytes(&self) -> u64 {
        let recent = self
            .recent
            .iter()
            .enumerate()
            .map(|(units, list)| units * list.len());
        (self.space.free_units() + recent.sum::<usize>() as u64) * UNIT_BYTES as u64
    }

    /// Bytes that left the newest tree and are not free yet.
    pub(super) fn retired_bytes(&self) -> u64 {
        self.held_bytes + self.retired.bytes
    }

    /// Ends the batch: every node is immutable from now on. Returns its number and what it
    /// replaced.
    pub(super) fn seal(&mut self) -> (u64, Retired) {
        let sealed = self.batch;
        self.batch += 1;
        self.held_bytes += self.retired.bytes;
        (sealed, core::mem::take(&mut self.retired))
    }

    /// Makes retired memory usable again.
    ///
    /// # Safety
    /// `retired` came from [`Self::seal`] of this `Memory`, and no reader can reach a root of
    /// before that seal.
    pub(super) unsafe fn recycle(&mut self, retired: Retired) {
        self.held_bytes -= retired.bytes;
        for start in retired.nodes {
            self.free_node(start);
        }
        for start in retired.blobs {
            self.free_blob(start);
        }
    }

    /// An empty private node of at least `bytes`.
    pub(super) fn allocate(&mut self, level: u8, bytes: usize) -> NodeMut {
        assert!(level < LEVEL_FREE);
        assert!((1..=NODE_BYTES_MAX).contains(&bytes));
        let units = bytes.div_ceil(UNIT_BYTES);
        let recent = self.recent[units].pop();
        let start = recent.unwrap_or_else(|| self.allocate_run(units));
        stamp(start, units, level);
        let batch = self.batch;
        let mut node = NodeMut(Link(start));
        let header = &mut node.bytes_mut()[..HEADER_BYTES];
        header[BATCH_AT..UNITS_AT].copy_from_slice(&batch.to_le_bytes());
        header[LEVEL_AT + 1..].fill(0);
        node
    }

    fn allocate_run(&mut self, units: usize) -> NonNull<u8> {
        let run = match self.space.take(units) {
            Some(run) => run,
            None => {
                self.add_chunk();
                self.space.take(units).expect("a chunk holds any node")
            }
        };
        // SAFETY: a run lies within its chunk.
        unsafe { self.chunks[run.chunk()].add(run.unit() * UNIT_BYTES) }
    }

    fn add_chunk(&mut self) {
        // Zeroed, so that every byte of every node is initialised.
        // SAFETY: the layout is not empty.
        let start = unsafe { alloc_zeroed(CHUNK_LAYOUT) };
        let Some(start) = NonNull::new(start) else {
            handle_alloc_error(CHUNK_LAYOUT)
        };
        let chunk = self.space.add_chunk();
        assert!(chunk == self.chunks.len());
        self.chunks.push(start);
        let number = u32::try_from(chunk).expect("fewer than 2^32 units in an index");
        // SAFETY: the first unit belongs to no node.
        unsafe { start.cast::<u32>().write(number) };
        self.bytes += CHUNK_BYTES as u64;
    }

    /// Whether `link` may be written in place.
    pub(super) fn is_private(&self, link: &Link) -> bool {
        link.node().batch() == self.batch
    }

    /// `link` as a private node, if it is one.
    pub(super) fn private(&self, link: Link) -> NodeMut {
        assert!(self.is_private(&link));
        NodeMut(link)
    }

    /// Takes one node (not what is below it, which the caller has moved) out of the newest tree.
    pub(super) fn discard(&mut self, link: Link) {
        if self.is_private(&link) {
            self.free_node(link.0);
        } else {
            self.retired.bytes += link.node().bytes.len() as u64;
            self.retired.nodes.push(link.0);
        }
    }

    fn free_node(&mut self, start: NonNull<u8>) {
        // SAFETY: a node that nobody reads any more (rule 4), within its header.
        let units_at = unsafe { start.add(UNITS_AT) };
        // SAFETY: as above.
        let units = usize::from(unsafe { units_at.read() });
        // SAFETY: as above.
        let level_at = unsafe { start.add(LEVEL_AT) };
        // SAFETY: as above.
        let level = unsafe { level_at.replace(LEVEL_FREE) };
        assert_ne!(level, LEVEL_FREE, "a node is freed once");
        if self.recent[units].len() < RECENT_NODES_MAX {
            self.recent[units].push(start);
            return;
        }
        let offset = start.addr().get() % CHUNK_BYTES;
        // SAFETY: chunks start at multiples of their length.
        let chunk = unsafe { start.sub(offset) };
        // SAFETY: the first word of each chunk, written in `add_chunk`.
        let chunk = unsafe { chunk.cast::<u32>().read() } as usize;
        debug_assert!(self.chunks[chunk].addr().get() + offset == start.addr().get());
        self.space.give(Run::new(chunk, offset / UNIT_BYTES), units);
    }

    /// Memory for a long key.
    pub(super) fn new_blob(&mut self, key: &[u8]) -> Blob<'static> {
        let layout = Blob::layout_of(key.len());
        let index = u32::try_from(self.blobs.len()).expect("fewer long keys than bytes of memory");
        let len = u32::try_from(key.len()).expect("bounded by the request size");
        // SAFETY: the layout is not empty.
        let start = unsafe { alloc(layout) };
        let Some(start) = NonNull::new(start) else {
            handle_alloc_error(layout)
        };
        // SAFETY: the header is part of the layout, which is aligned for it.
        unsafe { start.cast::<[u32; 2]>().write([index, len]) };
        // SAFETY: the key's bytes follow the header in the layout.
        let to = unsafe { start.add(BLOB_HEADER_BYTES) };
        // SAFETY: new memory of that length, so it does not overlap.
        unsafe { core::ptr::copy_nonoverlapping(key.as_ptr(), to.as_ptr(), key.len()) };
        self.blobs.push(start);
        self.bytes += layout.size() as u64;
        Blob {
            start,
            life: PhantomData,
        }
    }

    /// The entry of this long key has left the newest tree.
    pub(super) fn retire_blob(&mut self, blob: Blob<'_>) {
        self.retired.bytes += blob.layout().size() as u64;
        self.retired.blobs.push(blob.start);
    }

    fn free_blob(&mut self, start: NonNull<u8>) {
        // SAFETY: the blob's header; this word is the writer's alone.
        let index = unsafe { start.cast::<u32>().read() } as usize;
        assert!(self.blobs[index] == start, "a blob is freed once");
        self.blobs.swap_remove(index);
        if let Some(moved) = self.blobs.get(index) {
            // SAFETY: as above; readers of the moved blob do not touch this word.
            unsafe { moved.cast::<u32>().write(index as u32) };
        }
        let layout = Blob {
            start,
            life: PhantomData,
        }
        .layout();
        self.bytes -= layout.size() as u64;
        // SAFETY: allocated in `new_blob` with this layout, and out of the list that Drop walks.
        unsafe { dealloc(start.as_ptr(), layout) };
    }
}

/// Writes size and level of a free node, which nobody else knows of.
fn stamp(start: NonNull<u8>, units: usize, level: u8) {
    debug_assert!((1..=UNITS_MAX).contains(&units));
    // SAFETY: the callers hold free memory of at least one unit.
    let units_at = unsafe { start.add(UNITS_AT) };
    // SAFETY: as above.
    unsafe { units_at.write(units as u8) };
    // SAFETY: as above.
    let level_at = unsafe { start.add(LEVEL_AT) };
    // SAFETY: as above.
    unsafe { level_at.write(level) };
}

#[cfg(test)]
impl Memory {
    /// Units of nodes in use, and long keys.
    pub(super) fn in_use(&self) -> (u64, usize) {
        let units = self.chunks.len() as u64 * (CHUNK_UNITS as u64 - 1);
        (
            units - self.free_bytes() / UNIT_BYTES as u64,
            self.blobs.len(),
        )
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        for start in &self.blobs {
            let layout = Blob {
                start: *start,
                life: PhantomData,
            }
            .layout();
            // SAFETY: allocated in `new_blob` with this layout; rule 5.
            unsafe { dealloc(start.as_ptr(), layout) };
        }
        for start in &self.chunks {
            // SAFETY: allocated in `add_chunk` with this layout; rule 5.
            unsafe { dealloc(start.as_ptr(), CHUNK_LAYOUT) };
        }
    }
}
