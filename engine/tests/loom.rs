//! Publish, pin and retire under loom: every interleaving of one writer and one reader, with every
//! value that weak memory allows a load to see (I5).
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p ringkv-engine --test loom --release`
//!
//! Dropping a View writes to a cell that readers of the View read, so loom reports a View dropped
//! too early, or without the order that makes reuse of its memory sound; nodes are reused at the
//! same point, and a reader that meets a free one panics. The tree itself lies in memory that loom
//! does not watch.

#![cfg(loom)]

use loom::cell::UnsafeCell;
use ringkv_engine::index::{Index, Publisher, Reader, Root};
use ringkv_engine::types::{KeyMeta, Revision};

struct View {
    root: Root,
    main: u64,
    cell: UnsafeCell<u64>,
}

// SAFETY: the cell is written in Drop only; that nobody reads it then is what loom checks.
unsafe impl Sync for View {}

impl View {
    fn new(root: Root, main: u64) -> Self {
        let cell = UnsafeCell::new(main);
        Self { root, main, cell }
    }
}

impl Drop for View {
    fn drop(&mut self) {
        // SAFETY: the pointer is valid; loom checks that the access is exclusive.
        self.cell.with_mut(|cell| unsafe { cell.write(0) });
    }
}

fn meta(main: u64) -> KeyMeta {
    KeyMeta {
        modified: Revision::new(main, 0),
        created: 1,
        version: main,
        lease: 0,
    }
}

struct Writer {
    index: Index,
    publisher: Publisher<View>,
    main: u64,
}

impl Writer {
    fn new() -> Self {
        let mut index = Index::new();
        index.upsert(b"key", meta(1));
        let publisher = Publisher::new(&mut index, |root| View::new(root, 1));
        Self {
            index,
            publisher,
            main: 1,
        }
    }

    fn write(&mut self) {
        self.main += 1;
        let main = self.main;
        self.index.upsert(b"key", meta(main));
        self.publisher
            .publish(&mut self.index, |root| View::new(root, main));
    }
}

/// Reads the View, and that the tree is the View's; returns its main revision.
fn read(reader: &Reader<View>) -> u64 {
    reader.pin(|view, pin| {
        // SAFETY: the pointer is valid; loom checks that nobody writes.
        let main = view.cell.with(|cell| unsafe { cell.read() });
        assert_eq!(main, view.main);
        let found = view.root.read(pin).get(b"key").expect("always there");
        assert_eq!(found.modified.main, main);
        main
    })
}

fn explore(preemptions: Option<usize>, model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = preemptions;
    builder.check(model);
}

#[test]
fn a_pinned_view_stays() {
    explore(None, || {
        let mut writer = Writer::new();
        let reader = writer.publisher.reader();
        let thread = loom::thread::spawn(move || {
            let first = read(&reader);
            assert!(first <= read(&reader), "Views do not go back");
        });
        writer.write();
        writer.write();
        thread.join().expect("no panic");
        writer.write();
        assert_eq!(writer.index.retired_bytes(), 0);
    });
}

#[test]
fn readers_come_and_go() {
    explore(Some(4), || {
        let mut writer = Writer::new();
        let reader = writer.publisher.reader();
        let thread = loom::thread::spawn(move || {
            let second = reader.clone();
            drop(reader);
            read(&second);
            let third = second.clone();
            drop(second);
            read(&third);
        });
        writer.write();
        writer.write();
        thread.join().expect("no panic");
    });
}

#[test]
fn an_inner_pin_does_not_end_the_outer() {
    explore(None, || {
        let mut writer = Writer::new();
        let reader = writer.publisher.reader();
        let thread = loom::thread::spawn(move || {
            reader.pin(|outer, pin| {
                assert!(outer.main <= read(&reader));
                // SAFETY: the pointer is valid; loom checks that nobody writes.
                let main = outer.cell.with(|cell| unsafe { cell.read() });
                assert_eq!(main, outer.main);
                let found = outer.root.read(pin).get(b"key").expect("always there");
                assert_eq!(found.modified.main, main);
            });
        });
        writer.write();
        writer.write();
        thread.join().expect("no panic");
    });
}

#[test]
fn readers_outlive_index_and_publisher() {
    explore(None, || {
        let mut writer = Writer::new();
        let reader = writer.publisher.reader();
        let thread = loom::thread::spawn(move || read(&reader));
        writer.write();
        drop(writer);
        thread.join().expect("no panic");
    });
}
