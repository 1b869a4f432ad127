//! Publication and reclamation: one atomic pointer to the View, swapped once a batch, and one word
//! for each reader that says since which batch it is pinned.
//!
//! Protocol:
//! 1. An index has at most one [`Publisher`], on the writer's core; every batch is sealed by it and
//!    published by one swap of `current`, with the next number. So batch `n` replaces the View
//!    before, and retires nodes that are reachable from roots below `n` only.
//! 2. A reader pins by writing into its slot a batch number `b` that was published, then loads
//!    `current`, which is of batch `b` or later. It keeps the slot as long as anything borrowed
//!    lasts ([`Reader::pin`] takes a closure; nothing can leave it), then writes `IDLE`.
//! 3. After the swap the writer looks at all slots; what batch `n` replaced is freed when every
//!    slot says `n` or more. A slot that says less, or says so too late to be seen, is covered:
//!    between its two steps each side has a SeqCst fence, so either the writer sees the slot, or
//!    the reader loads the new View.
//! 4. A root of batch `r` may be read under a pin whose View is of batch `v <= r`: its nodes are
//!    retired by batches above `r`, and the pin's slot, which says `v` or less, holds those back.
//!    [`Root::read`] checks `v <= r`, and that both are of the same index.
//!
//! Views are dropped and nodes reused on the writer's core only, and at once when nobody is pinned,
//! so that the next batch writes into warm memory. What pins hold back lies in
//! `Publisher::garbage`.
//!
//! crossbeam-epoch was tried in this place: it frees one to three batches later, runs collections
//! on readers' cores, and Miri rejects it under both of its aliasing models. Under `--cfg loom` the
//! atomics are loom's, so that `tests/loom.rs` explores this very code.

use core::cell::Cell;
use core::ptr::NonNull;
use std::collections::VecDeque;
use std::sync::{Arc, OnceLock};

use super::node::{Memory, Node, Retired};
use super::{Index, Tree};
use primitive::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering, SharedArc, fence};

#[cfg(not(loom))]
mod primitive {
    pub(super) use core::sync::atomic::{
        AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering, fence,
    };
    pub(super) use std::sync::Arc as SharedArc;
}
#[cfg(loom)]
mod primitive {
    pub(super) use loom::sync::Arc as SharedArc;
    pub(super) use loom::sync::atomic::{
        AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering, fence,
    };
}

/// Readers of one publisher at a time: a few for each core.
pub const READERS_MAX: usize = if cfg!(loom) {
    2
} else if cfg!(test) {
    64
} else {
    1024
};
/// What a slot says while its reader is not pinned.
const IDLE: u64 = u64::MAX;

/// What the index and all that read it share: its name, and its memory when it is dropped first.
#[derive(Default)]
pub(super) struct Home {
    grave: OnceLock<Memory>,
}

impl Home {
    /// Keeps the memory of a dropped index until the last reader has gone.
    pub(super) fn bury(&self, memory: Memory) {
        assert!(self.grave.set(memory).is_ok(), "an index is dropped once");
    }
}

/// A sealed tree. Just its address: reading it takes a pin.
#[derive(Clone, Copy)]
pub struct Root {
    node: NonNull<u8>,
    batch: u64,
    /// Address of the index's `Home`, which names the index.
    home: *const Home,
}

// SAFETY: addresses; `read` is what follows one, and that checks.
unsafe impl Send for Root {}
// SAFETY: as above.
unsafe impl Sync for Root {}

impl Root {
    pub(super) fn new(node: NonNull<u8>, batch: u64, home: &Arc<Home>) -> Self {
        Self {
            node,
            batch,
            home: Arc::as_ptr(home),
        }
    }

    /// The tree, for as long as the pin lasts.
    ///
    /// # Panics
    /// If the pin is of another index, or its View newer than this root: then the tree may be gone.
    #[must_use]
    pub fn read<'g>(&self, pin: &'g Pinned<'_>) -> Tree<'g> {
        assert!(
            core::ptr::eq(self.home, pin.home),
            "root and pin are of one index"
        );
        assert!(
            self.batch >= pin.batch,
            "the root is as new as the pinned View"
        );
        // SAFETY: rule 4: sealed, hence immutable, and not reused while the pin lasts, which is at
        // least 'g. The memory itself lasts as long as the Home that the pin's reader holds.
        Tree::new(unsafe { Node::new(self.node) })
    }
}

/// Proof that a reader is pinned, and since which View.
pub struct Pinned<'g> {
    home: &'g Home,
    batch: u64,
}

struct Published<T> {
    batch: u64,
    view: T,
}

/// One reader's word; alone on its cache lines, for the reader writes it twice a pin.
#[repr(align(128))]
struct Slot {
    taken: AtomicBool,
    /// Batch number at or before the pinned View's, or `IDLE`.
    pinned: AtomicU64,
}

struct Shared<T> {
    /// The newest View; never null.
    current: AtomicPtr<Published<T>>,
    /// Its batch or, for a moment, the one before.
    batch: AtomicU64,
    slots: Box<[Slot]>,
    /// Slots from here on were never taken.
    slots_used: AtomicUsize,
    home: Arc<Home>,
    /// What pins held back when the publisher was dropped.
    grave: OnceLock<VecDeque<Garbage<T>>>,
}

impl<T> Drop for Shared<T> {
    fn drop(&mut self) {
        let current = self.current.load(Ordering::Acquire);
        // SAFETY: made from a Box in `publish` or `new`, and not replaced since; the last handle is
        // gone, so nobody is pinned.
        drop(unsafe { Box::from_raw(current) });
    }
}

/// What batch `batch` replaced.
struct Garbage<T> {
    batch: u64,
    view: NonNull<Published<T>>,
    retired: Retired,
}

// SAFETY: the sole owner of a View, by pointer, and of addresses.
unsafe impl<T: Send> Send for Garbage<T> {}
// SAFETY: a shared Garbage gives access to nothing.
unsafe impl<T: Send> Sync for Garbage<T> {}

impl<T> Drop for Garbage<T> {
    fn drop(&mut self) {
        // SAFETY: made from a Box in `publish` or `new`. A Garbage is dropped by `collect` after
        // rule 3 found nobody pinned to it, or with `Shared` when no reader is left.
        drop(unsafe { Box::from_raw(self.view.as_ptr()) });
    }
}

/// The writing end: publishes a View with each batch. Belongs to the index's owner.
///
/// Dropped before the index, it leaves the last View to the readers; what the index replaces from
/// then on is not used again.
pub struct Publisher<T: Send + Sync> {
    shared: SharedArc<Shared<T>>,
    /// What may still be seen, oldest first.
    garbage: VecDeque<Garbage<T>>,
}

impl<T: Send + Sync> Publisher<T> {
    /// Publishes the first View, made by `view` from the root of the index as it is.
    ///
    /// # Panics
    /// If the index has had a publisher.
    pub fn new(index: &mut Index, view: impl FnOnce(Root) -> T) -> Self {
        assert!(!index.published, "an index has one publisher");
        index.published = true;
        let (root, retired) = index.seal();
        // SAFETY: sealed just now; without a publisher before, no root of before can be read.
        unsafe { index.memory.recycle(retired) };
        let free = || Slot {
            taken: AtomicBool::new(false),
            pinned: AtomicU64::new(IDLE),
        };
        let shared = Shared {
            current: AtomicPtr::new(published(root.batch, view(root)).as_ptr()),
            batch: AtomicU64::new(root.batch),
            slots: (0..READERS_MAX).map(|_| free()).collect(),
            slots_used: AtomicUsize::new(0),
            home: Arc::clone(&index.home),
            grave: OnceLock::new(),
        };
        Self {
            shared: SharedArc::new(shared),
            garbage: VecDeque::new(),
        }
    }

    /// Ends the batch and publishes the View that `view` makes of its root. Readers that pin from
    /// now on see it; what no reader can see any more returns to the index.
    ///
    /// # Panics
    /// If it is not the index that this publisher was made for.
    pub fn publish(&mut self, index: &mut Index, view: impl FnOnce(Root) -> T) {
        assert!(Arc::ptr_eq(&self.shared.home, &index.home), "its own index");
        let (root, retired) = index.seal();
        let next = published(root.batch, view(root)).as_ptr();
        // Release pairs with the load in `pin`: who sees the pointer sees View and nodes.
        let old = self.shared.current.swap(next, Ordering::AcqRel);
        // Release pairs with the first load in `pin`: who sees the number sees the pointer.
        self.shared.batch.store(root.batch, Ordering::Release);
        self.garbage.push_back(Garbage {
            batch: root.batch,
            view: NonNull::new(old).expect("never null"),
            retired,
        });
        self.collect(index);
    }

    /// Frees what no reader can see any more. `publish` does it as well; call it when idle after a
    /// long pin.
    ///
    /// # Panics
    /// If it is not the index that this publisher was made for.
    pub fn collect(&mut self, index: &mut Index) {
        assert!(Arc::ptr_eq(&self.shared.home, &index.home), "its own index");
        let pinned = self.shared.oldest_pin();
        while self.garbage.front().is_some_and(|g| g.batch <= pinned) {
            let mut garbage = self.garbage.pop_front().expect("seen");
            let retired = core::mem::take(&mut garbage.retired);
            // SAFETY: sealed in `publish` of this index; by rule 3 no pin lasts that could reach
            // the View before that seal, nor by rule 4 a root of before it.
            unsafe { index.memory.recycle(retired) };
        }
    }

    /// A reading end, for any core.
    ///
    /// # Panics
    /// If there are [`READERS_MAX`] of them.
    #[must_use]
    pub fn reader(&self) -> Reader<T> {
        Reader::new(&self.shared)
    }
}

fn published<T>(batch: u64, view: T) -> NonNull<Published<T>> {
    // By raw pointer from here to the Box::from_raw: readers borrow it meanwhile.
    let published = Box::into_raw(Box::new(Published { batch, view }));
    NonNull::new(published).expect("a Box is not null")
}

impl<T> Shared<T> {
    /// The lowest batch number that a slot says.
    fn oldest_pin(&self) -> u64 {
        // Rule 3, with the fence in `pin`.
        fence(Ordering::SeqCst);
        // Relaxed: the fences of rule 3 order it; a slot taken too late to be counted is one that
        // pins too late.
        let used = self.slots_used.load(Ordering::Relaxed);
        // Acquire pairs with the Release stores of a slot: what the reader read under the pin that
        // it has let go, it read before we write there.
        let pinned = |slot: &Slot| slot.pinned.load(Ordering::Acquire);
        self.slots[..used].iter().map(pinned).min().unwrap_or(IDLE)
    }

    fn take_slot(&self) -> usize {
        let taken = |slot: &Slot| {
            // Acquire pairs with the Release of the reader that had it.
            slot.taken
                .compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed)
                .is_ok()
        };
        let at = self.slots.iter().position(taken);
        let at = at.expect("at most READERS_MAX readers");
        // Relaxed: see `oldest_pin`.
        self.slots_used.fetch_max(at + 1, Ordering::Relaxed);
        at
    }
}

impl<T: Send + Sync> Drop for Publisher<T> {
    fn drop(&mut self) {
        // Readers may be pinned: it goes with the last of them.
        let garbage = core::mem::take(&mut self.garbage);
        assert!(
            self.shared.grave.set(garbage).is_ok(),
            "a publisher is dropped once"
        );
    }
}

/// The reading end; one for each thread that reads, made by cloning.
pub struct Reader<T: Send + Sync> {
    shared: SharedArc<Shared<T>>,
    slot: usize,
    /// Pins that last.
    depth: Cell<u32>,
}

impl<T: Send + Sync> Clone for Reader<T> {
    /// # Panics
    /// If there are [`READERS_MAX`] readers.
    fn clone(&self) -> Self {
        Self::new(&self.shared)
    }
}

impl<T: Send + Sync> Drop for Reader<T> {
    fn drop(&mut self) {
        let slot = &self.shared.slots[self.slot];
        debug_assert_eq!(self.depth.get(), 0);
        slot.taken.store(false, Ordering::Release);
    }
}

/// Ends a pin, also when the closure panics.
struct Unpin<'a> {
    slot: &'a Slot,
    depth: &'a Cell<u32>,
}

impl Drop for Unpin<'_> {
    fn drop(&mut self) {
        self.depth.set(self.depth.get() - 1);
        if self.depth.get() == 0 {
            // Release: see `oldest_pin`.
            self.slot.pinned.store(IDLE, Ordering::Release);
        }
    }
}

impl<T: Send + Sync> Reader<T> {
    fn new(shared: &SharedArc<Shared<T>>) -> Self {
        Self {
            slot: shared.take_slot(),
            shared: SharedArc::clone(shared),
            depth: Cell::new(0),
        }
    }

    /// Runs `f` on the newest View, pinned: the View, and what is read from its root with the
    /// [`Pinned`], stay until `f` returns. Never waits. Pins may nest; an inner one may see a newer
    /// View.
    ///
    /// ```
    /// # use ringkv_engine::{index::{Index, Publisher}, types::KeyMeta};
    /// # let mut index = Index::new();
    /// # let publisher = Publisher::new(&mut index, |root| root);
    /// let reader = publisher.reader();
    /// let meta: Option<KeyMeta> = reader.pin(|root, pin| root.read(pin).get(b"key"));
    /// ```
    /// What is borrowed from the pin does not leave it:
    /// ```compile_fail
    /// # use ringkv_engine::{index::{Index, Publisher}, types::KeyMeta};
    /// # let mut index = Index::new();
    /// # let publisher = Publisher::new(&mut index, |root| root);
    /// let reader = publisher.reader();
    /// let tree = reader.pin(|root, pin| root.read(pin));
    /// ```
    pub fn pin<R>(&self, f: impl FnOnce(&T, &Pinned<'_>) -> R) -> R {
        let slot = &self.shared.slots[self.slot];
        if self.depth.get() == 0 {
            // Acquire pairs with the store in `publish`: the View loaded below is not older.
            let batch = self.shared.batch.load(Ordering::Acquire);
            // Release: see `oldest_pin`.
            slot.pinned.store(batch, Ordering::Release);
            // Rule 3, with the fence in `oldest_pin`.
            fence(Ordering::SeqCst);
        }
        self.depth.set(self.depth.get() + 1);
        let _unpin = Unpin {
            slot,
            depth: &self.depth,
        };
        // Acquire pairs with the swap in `publish`: View and nodes are visible with the pointer.
        let current = self.shared.current.load(Ordering::Acquire);
        // SAFETY: never null; by rules 2 and 3 it is not freed before `_unpin` drops.
        let current = unsafe { &*current };
        let pinned = Pinned {
            home: &self.shared.home,
            batch: current.batch,
        };
        f(&current.view, &pinned)
    }
}
