//! Publication and reclamation: one atomic pointer, swapped once a batch, and crossbeam-epoch.
//!
//! Protocol:
//! 1. An index has at most one [`Publisher`], on the writer's core; every batch is sealed by it and
//!    published by one swap, with the next number. So batch `b` retires nodes that were reachable
//!    from roots below `b` only.
//! 2. A reader loads the pointer while pinned, and keeps the pin as long as anything borrowed lasts
//!    ([`Reader::pin`] takes a closure; nothing can leave it).
//! 3. After the swap the writer defers one closure: it moves what was replaced (the old View and the
//!    batch's retired nodes) to the writer's queue. The epoch runs it when no pin that could have
//!    loaded the old pointer lasts, on whichever core; that core moves one small struct. Freeing and
//!    dropping is done by the writer, in [`Publisher::collect`].
//! 4. A root of batch `r` may be read under a pin whose View is of batch `v <= r`: its nodes are
//!    retired by batches above `r`, whose closures were deferred after that of `v + 1`, which the
//!    pin holds back. [`Root::read`] checks `v <= r`, and that both are of the same index.
//!
//! Each publisher has a collector of its own, so that garbage and the gauge are of this index alone
//! and all is freed when the last handle goes. Under `--cfg crossbeam_loom` crossbeam-epoch runs on
//! loom's atomics, so that `tests/loom.rs` checks this very code.

use core::cell::OnceCell;
use core::marker::PhantomData;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;

use crossbeam_epoch::{Atomic, Collector, Guard, LocalHandle, Owned};
use crossbeam_queue::SegQueue;

use super::node::{Memory, Node, Retired};
use super::{Index, Tree};

/// What the index, its publisher and all readers share.
#[derive(Default)]
pub(super) struct Home {
    /// See [`Index::retired_bytes`].
    pub(super) retired_bytes: AtomicU64,
    /// Memory of the index once that is dropped: kept for the readers, freed with the last of them.
    grave: SegQueue<Memory>,
}

impl Home {
    pub(super) fn bury(&self, memory: Memory) {
        self.grave.push(memory);
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

// SAFETY: an address; `read` is what follows it, and that checks.
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
            "a root and a pin of one index"
        );
        assert!(self.batch >= pin.batch, "a root as new as the pinned View");
        // SAFETY: rule 4: sealed, hence immutable, and not freed while the pin lasts, which is at
        // least 'g. The memory itself lasts as long as the Home that the pin's reader holds.
        Tree::new(unsafe { Node::new(self.node) })
    }
}

/// Proof that the current thread is pinned, and since which View.
pub struct Pinned<'g> {
    home: &'g Home,
    batch: u64,
    guard: PhantomData<&'g Guard>,
}

struct Published<T> {
    batch: u64,
    view: T,
}

struct Shared<T> {
    current: Atomic<Published<T>>,
    collector: Collector,
    home: Arc<Home>,
}

impl<T> Drop for Shared<T> {
    fn drop(&mut self) {
        let current = core::mem::take(&mut self.current);
        // SAFETY: the last handle is gone, so nobody is pinned, and every older View went into the
        // queue by rule 3; this one did not.
        drop(unsafe { current.try_into_owned() });
    }
}

/// A participant of the collector, which may change threads.
struct Handle(LocalHandle);

// SAFETY: LocalHandle is !Send because its cells are for one thread at a time. They are touched by
// `pin`, by the guards it returns, and by drop. Here no guard outlives the call that pinned, and the
// caller of that holds a borrow; so a handle that is moved to another thread has no guard on this
// one, and the move orders both threads' accesses. crossbeam-epoch 0.9 keeps nothing by thread
// identity beside its default collector, which is not used.
unsafe impl Send for Handle {}

/// What a batch replaced.
struct Garbage<T> {
    view: NonNull<Published<T>>,
    retired: Retired,
}

// SAFETY: the sole owner of a View that is Send, by pointer.
unsafe impl<T: Send> Send for Garbage<T> {}

impl<T> Drop for Garbage<T> {
    fn drop(&mut self) {
        // SAFETY: made from a Box in `publish`; out of reach by rule 3, because a Garbage lies in
        // the deferred closure or in the queue after that, and is dropped once.
        drop(unsafe { Box::from_raw(self.view.as_ptr()) });
    }
}

/// The writing end: publishes a View with each batch. Belongs to the index's owner.
pub struct Publisher<T: Send + Sync + 'static> {
    shared: Arc<Shared<T>>,
    handle: Handle,
    /// What no reader can see any more.
    unreachable: Arc<SegQueue<Garbage<T>>>,
}

impl<T: Send + Sync + 'static> Publisher<T> {
    /// Publishes the first View, made by `view` from the root of the index as it is.
    ///
    /// # Panics
    /// If the index has had a publisher.
    pub fn new(index: &mut Index, view: impl FnOnce(Root) -> T) -> Self {
        assert!(!index.published, "an index has one publisher");
        index.published = true;
        let (root, retired) = index.seal();
        // SAFETY: the first publisher, so no root of before can be read.
        unsafe { recycle(index, retired) };
        let collector = Collector::new();
        let handle = Handle(collector.register());
        let first = Published {
            batch: root.batch,
            view: view(root),
        };
        let home = Arc::clone(&index.home);
        let shared = Shared {
            current: Atomic::new(first),
            collector,
            home,
        };
        Self {
            shared: Arc::new(shared),
            handle,
            unreachable: Arc::default(),
        }
    }

    /// Ends the batch and publishes the View that `view` makes of its root. Readers that pin from
    /// now on see it; memory that older batches replaced returns to the index.
    ///
    /// # Panics
    /// If it is not the index that this publisher was made for.
    pub fn publish(&mut self, index: &mut Index, view: impl FnOnce(Root) -> T) {
        assert!(
            Arc::ptr_eq(&self.shared.home, &index.home),
            "the publisher's own index"
        );
        let (root, retired) = index.seal();
        let next = Owned::from(Box::new(Published {
            batch: root.batch,
            view: view(root),
        }));
        let guard = self.handle.0.pin();
        // Release: readers that see the pointer see the nodes. Acquire is for nothing but the old
        // pointer, which this thread wrote.
        let old = self.shared.current.swap(next, Ordering::AcqRel, &guard);
        let view = NonNull::new(old.as_raw().cast_mut()).expect("never null");
        let garbage = Garbage { view, retired };
        let unreachable = Arc::clone(&self.unreachable);
        guard.defer(move || unreachable.push(garbage));
        // To the global queue at once, and one try to advance: garbage of the batch before last
        // comes back even if nobody else pins.
        guard.flush();
        drop(guard);
        self.collect(index);
    }

    /// Frees what no reader can see any more. `publish` does it as well; call it when idle.
    ///
    /// # Panics
    /// If it is not the index that this publisher was made for.
    pub fn collect(&mut self, index: &mut Index) {
        assert!(
            Arc::ptr_eq(&self.shared.home, &index.home),
            "the publisher's own index"
        );
        while let Some(mut garbage) = self.unreachable.pop() {
            let retired = core::mem::take(&mut garbage.retired);
            // SAFETY: sealed by `publish` of this index; in the queue, so by rule 3 no pin can reach
            // the View before it, nor by rule 4 a root of before it.
            unsafe { recycle(index, retired) };
        }
    }

    /// A reading end, for any core.
    #[must_use]
    pub fn reader(&self) -> Reader<T> {
        Reader {
            shared: Arc::clone(&self.shared),
            handle: OnceCell::new(),
        }
    }
}

/// Gives what a batch replaced back to its index.
///
/// # Safety
/// `retired` came from `index.seal()`, and no reader can reach a root of before that.
unsafe fn recycle(index: &mut Index, retired: Retired) {
    index
        .home
        .retired_bytes
        .fetch_sub(retired.bytes(), Ordering::Relaxed);
    // SAFETY: the caller's promise.
    unsafe { index.memory.recycle(retired) };
}

/// The reading end; one for each thread that reads, made by cloning.
pub struct Reader<T: Send + Sync + 'static> {
    shared: Arc<Shared<T>>,
    /// Registered at the first pin, so that clones are cheap until used.
    handle: OnceCell<Handle>,
}

impl<T: Send + Sync + 'static> Clone for Reader<T> {
    fn clone(&self) -> Self {
        Self {
            shared: Arc::clone(&self.shared),
            handle: OnceCell::new(),
        }
    }
}

impl<T: Send + Sync + 'static> Reader<T> {
    /// Runs `f` on the newest View, pinned: the View and what is read from its root with the
    /// [`Pinned`] stay until `f` returns. Never waits. Pins may nest; the inner one may see a newer
    /// View.
    pub fn pin<R>(&self, f: impl FnOnce(&T, &Pinned<'_>) -> R) -> R {
        let register = || Handle(self.shared.collector.register());
        let guard = self.handle.get_or_init(register).0.pin();
        // Acquire pairs with the Release of the swap: the nodes are visible with the pointer.
        let current = self.shared.current.load(Ordering::Acquire, &guard);
        // SAFETY: never null, and freed only after this guard is gone (rules 2 and 3).
        let current = unsafe { current.deref() };
        let pinned = Pinned {
            home: &self.shared.home,
            batch: current.batch,
            guard: PhantomData,
        };
        f(&current.view, &pinned)
    }
}
