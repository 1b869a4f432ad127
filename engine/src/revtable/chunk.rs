//! One chunk of the RevTable: a fixed number of revisions and the memory of their records.
//!
//! Protocol (this file holds all its unsafe code):
//! 1. A chunk has one writer, its [`Tail`], on the sequencer's core, and any number of readers on
//!    any core, which reach it through an `Arc`.
//! 2. Slot `i` of `slots` is written once, before `len` is raised past `i` with Release; a reader
//!    touches slot `i` only after it saw `len > i` with Acquire. After that the slot is immutable,
//!    but for `superseded`, which is atomic.
//! 3. Record bytes live in blocks that the chunk owns; a record is written before its slot and is
//!    immutable afterwards. `blocks` itself is touched only by the `Tail` and by `Drop`.
//! 4. Memory goes when the last `Arc` goes: who holds a chunk holds its records. Compaction never
//!    edits a chunk, it makes a new one.
//!
//! Not here: which chunks there are, and what a revision means (`revtable.rs`).

use core::alloc::Layout;
use core::cell::UnsafeCell;
use core::mem::MaybeUninit;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::alloc::{alloc, dealloc, handle_alloc_error};
use std::sync::Arc;

use crate::types::Revision;

/// Block from which small records are cut, bytes.
const BLOCK_BYTES: usize = 64 << 10;
/// A record longer than this has a block of its own, bytes.
const SMALL_RECORD_BYTES_MAX: usize = 8 << 10;
/// Encoded length of [`Links`].
const LINKS_BYTES: usize = 28;

const TOMBSTONE: u32 = 1 << 31;
const LINKED: u32 = 1 << 30;
/// Changes in one transaction stay below this, so that the flags fit beside `sub`.
pub(super) const SUB_MAX: u32 = LINKED - 1;

/// Way back to older revisions of the same key.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Links {
    /// The change of this key before this one.
    pub previous: Revision,
    /// An older one still, so that any ancestor is found in O(log n) steps.
    pub jump: Revision,
    /// Changes of this key before this one that were linked when it was written.
    pub depth: u32,
}

impl Links {
    fn to_bytes(self) -> [u8; LINKS_BYTES] {
        let mut b = [0; LINKS_BYTES];
        b[0..8].copy_from_slice(&self.previous.main.to_le_bytes());
        b[8..12].copy_from_slice(&self.previous.sub.to_le_bytes());
        b[12..20].copy_from_slice(&self.jump.main.to_le_bytes());
        b[20..24].copy_from_slice(&self.jump.sub.to_le_bytes());
        b[24..28].copy_from_slice(&self.depth.to_le_bytes());
        b
    }

    fn from_bytes(b: &[u8]) -> Self {
        let u64_at = |i: usize| u64::from_le_bytes(b[i..i + 8].try_into().expect("8 bytes"));
        let u32_at = |i: usize| u32::from_le_bytes(b[i..i + 4].try_into().expect("4 bytes"));
        Self {
            previous: Revision::new(u64_at(0), u32_at(8)),
            jump: Revision::new(u64_at(12), u32_at(20)),
            depth: u32_at(24),
        }
    }
}

/// 32 bytes for each revision.
struct Slot {
    main: u64,
    /// Start of the record: links if LINKED, then the encoded KeyValue.
    record: NonNull<u8>,
    /// Main revision of the next change of the same key, 0 while this is the newest.
    superseded: AtomicU64,
    sub_and_flags: u32,
    /// Bytes of the encoded KeyValue, links not counted.
    kv_len: u32,
}

const _: () = assert!(size_of::<Slot>() == 32);

struct Block {
    start: NonNull<u8>,
    layout: Layout,
}

/// See the module's protocol.
pub(super) struct Chunk {
    slots: Box<[UnsafeCell<MaybeUninit<Slot>>]>,
    len: AtomicU32,
    blocks: UnsafeCell<Vec<Block>>,
}

// SAFETY: rules 1-4 of the module: shared slots and records are immutable once visible through
// `len`, `superseded` is atomic, and `blocks` is touched by the one writer and by Drop only.
unsafe impl Send for Chunk {}
// SAFETY: as above.
unsafe impl Sync for Chunk {}

/// One revision as it stands in a chunk; borrows the chunk.
#[derive(Clone, Copy)]
pub struct Record<'a> {
    /// Its revision.
    pub revision: Revision,
    /// Whether it deleted the key.
    pub tombstone: bool,
    /// The `mvccpb.KeyValue`, encoded; of a tombstone only the key.
    pub kv: &'a [u8],
    superseded: &'a AtomicU64,
    links: Option<&'a [u8]>,
}

impl<'a> Record<'a> {
    /// The key, borrowed from the encoded KeyValue, whose first field it is.
    #[must_use]
    pub fn key(&self) -> &'a [u8] {
        super::kv::key(self.kv)
    }

    /// The previous change of the same key, which compaction may have dropped, and which may be of
    /// the same transaction.
    #[must_use]
    pub fn previous(&self) -> Option<Revision> {
        self.links().map(|l| l.previous)
    }

    /// Main revision of the next change of the same key, `None` while this is the newest. May be
    /// its own: etcd lets a transaction put a key and delete it with a range "from this key on", in
    /// any order.
    #[must_use]
    pub fn superseded(&self) -> Option<u64> {
        // Relaxed: a reader at revision R only asks whether the value is <= R, and the store of
        // any such value happened before R was published.
        match self.superseded.load(Ordering::Relaxed) {
            0 => None,
            main => Some(main),
        }
    }

    pub(super) fn links(&self) -> Option<Links> {
        self.links.map(Links::from_bytes)
    }

    pub(super) fn supersede(&self, main: u64) {
        assert!(main >= self.revision.main);
        self.superseded.store(main, Ordering::Relaxed);
    }
}

impl Chunk {
    fn new(capacity: usize) -> Self {
        assert!(capacity > 0 && u32::try_from(capacity).is_ok());
        let mut slots = Vec::with_capacity(capacity);
        slots.resize_with(capacity, || UnsafeCell::new(MaybeUninit::uninit()));
        Self {
            slots: slots.into_boxed_slice(),
            len: AtomicU32::new(0),
            blocks: UnsafeCell::new(Vec::new()),
        }
    }

    /// Revisions that may be read.
    pub(super) fn len(&self) -> usize {
        self.len.load(Ordering::Acquire) as usize
    }

    fn slot(&self, i: usize) -> &Slot {
        assert!(i < self.len());
        let slot: *const MaybeUninit<Slot> = self.slots[i].get();
        // SAFETY: i < len (rule 2), so the slot is initialised and no longer written.
        let slot: &MaybeUninit<Slot> = unsafe { &*slot };
        // SAFETY: initialised, as above.
        unsafe { slot.assume_init_ref() }
    }

    pub(super) fn revision(&self, i: usize) -> Revision {
        let slot = self.slot(i);
        Revision::new(slot.main, slot.sub_and_flags & SUB_MAX)
    }

    pub(super) fn record(&self, i: usize) -> Record<'_> {
        let slot = self.slot(i);
        let links_len = if slot.sub_and_flags & LINKED == 0 {
            0
        } else {
            LINKS_BYTES
        };
        // SAFETY: the record's links_len + kv_len bytes were written before the slot (rule 3), are
        // immutable, and live as long as the chunk that `self` borrows.
        let bytes = unsafe {
            core::slice::from_raw_parts(slot.record.as_ptr(), links_len + slot.kv_len as usize)
        };
        let (links, kv) = bytes.split_at(links_len);
        Record {
            revision: Revision::new(slot.main, slot.sub_and_flags & SUB_MAX),
            tombstone: slot.sub_and_flags & TOMBSTONE != 0,
            kv,
            superseded: &slot.superseded,
            links: (links_len > 0).then_some(links),
        }
    }

    /// First slot at or after `rev`; `len` when all are before it.
    pub(super) fn lower_bound(&self, rev: Revision) -> usize {
        let len = self.len();
        if len == 0 || self.revision(0) >= rev {
            return 0;
        }
        // One change in each transaction and nothing compacted: the slot is known by counting.
        let guess = usize::try_from(rev.main - self.revision(0).main).unwrap_or(usize::MAX);
        if guess < len && self.revision(guess) == rev {
            return guess;
        }
        let (mut low, mut high) = (
            1,
            len.min(guess.saturating_add(1 + rev.sub as usize)).max(1),
        );
        // Several changes a transaction put the slot beyond the guess.
        if self.revision(high - 1) < rev {
            low = high;
            high = len;
        }
        while low < high {
            let middle = low.midpoint(high);
            if self.revision(middle) < rev {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        low
    }

    pub(super) fn find(&self, rev: Revision) -> Option<usize> {
        let i = self.lower_bound(rev);
        (i < self.len() && self.revision(i) == rev).then_some(i)
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        for block in self.blocks.get_mut() {
            // SAFETY: allocated in Tail::allocate with this layout and freed once, here.
            unsafe { dealloc(block.start.as_ptr(), block.layout) };
        }
    }
}

/// The writing end of one chunk; there is never a second one.
pub(super) struct Tail {
    chunk: Arc<Chunk>,
    free: NonNull<u8>,
    free_len: usize,
}

// SAFETY: the raw pointer leads into a block of the chunk, which is Send and outlives it here.
unsafe impl Send for Tail {}

impl Tail {
    pub(super) fn new(capacity: usize) -> Self {
        Self {
            chunk: Arc::new(Chunk::new(capacity)),
            free: NonNull::dangling(),
            free_len: 0,
        }
    }

    pub(super) fn chunk(&self) -> &Arc<Chunk> {
        &self.chunk
    }

    pub(super) fn is_full(&self) -> bool {
        self.chunk.len() == self.chunk.slots.len()
    }

    /// Appends a record whose KeyValue is the concatenation of `parts`.
    pub(super) fn push(
        &mut self,
        rev: Revision,
        tombstone: bool,
        superseded: u64,
        links: Option<Links>,
        parts: &[&[u8]],
    ) {
        let len = self.chunk.len();
        assert!(len < self.chunk.slots.len());
        assert!(rev.sub <= SUB_MAX);
        assert!(len == 0 || self.chunk.revision(len - 1) < rev);
        let kv_len: usize = parts.iter().map(|p| p.len()).sum();
        let links = links.map(Links::to_bytes);
        let record = self.allocate(kv_len + links.map_or(0, |l| l.len()));
        let mut to = record;
        for part in links.iter().map(|l| &l[..]).chain(parts.iter().copied()) {
            // SAFETY: `allocate` gave this many bytes, not yet visible to anybody, and `part`
            // lies elsewhere.
            unsafe { core::ptr::copy_nonoverlapping(part.as_ptr(), to.as_ptr(), part.len()) };
            // SAFETY: stays within, or one past, the allocated bytes.
            to = unsafe { to.add(part.len()) };
        }
        let flags =
            if tombstone { TOMBSTONE } else { 0 } | if links.is_some() { LINKED } else { 0 };
        let slot = Slot {
            main: rev.main,
            record,
            superseded: AtomicU64::new(superseded),
            sub_and_flags: rev.sub | flags,
            kv_len: u32::try_from(kv_len).expect("bounded by the request size"),
        };
        let to = self.chunk.slots[len].get();
        // SAFETY: slot `len` is not visible yet (rule 2), and this is the one writer (rule 1).
        unsafe { to.write(MaybeUninit::new(slot)) };
        // Release pairs with the Acquire in `Chunk::len`: slot and record are visible with it.
        self.chunk.len.store(len as u32 + 1, Ordering::Release);
    }

    fn allocate(&mut self, len: usize) -> NonNull<u8> {
        if len > SMALL_RECORD_BYTES_MAX {
            return self.new_block(len);
        }
        if len > self.free_len {
            self.free = self.new_block(BLOCK_BYTES);
            self.free_len = BLOCK_BYTES;
        }
        let at = self.free;
        // SAFETY: len <= free_len, so the sum stays within, or one past, the block.
        self.free = unsafe { self.free.add(len) };
        self.free_len -= len;
        at
    }

    fn new_block(&mut self, len: usize) -> NonNull<u8> {
        let layout = Layout::array::<u8>(len.max(1)).expect("bounded by the request size");
        // SAFETY: the layout is not empty.
        let start = unsafe { alloc(layout) };
        let Some(start) = NonNull::new(start) else {
            handle_alloc_error(layout)
        };
        let blocks = self.chunk.blocks.get();
        // SAFETY: only the one writer reaches `blocks` while the chunk lives (rule 3).
        let blocks: &mut Vec<Block> = unsafe { &mut *blocks };
        blocks.push(Block { start, layout });
        start
    }
}
