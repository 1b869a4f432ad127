//! The tree against a `BTreeMap`, with nodes so small that a few keys make it deep; publication and
//! reclamation with pinned readers.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::types::Revision;

type Model = BTreeMap<Vec<u8>, KeyMeta>;

fn meta(n: u64) -> KeyMeta {
    KeyMeta {
        modified: Revision::new(n, (n % 7) as u32),
        created: n / 2,
        version: n % 3,
        lease: -(n as i64),
    }
}

fn live(model: &Model, start: &[u8], end: Option<&[u8]>) -> u64 {
    bounded(model, start, end)
        .filter(|(_, m)| !m.is_tombstone())
        .count() as u64
}

fn bounded<'m>(
    model: &'m Model,
    start: &[u8],
    end: Option<&'m [u8]>,
) -> impl DoubleEndedIterator<Item = (&'m Vec<u8>, &'m KeyMeta)> {
    let stop = end.map_or(core::ops::Bound::Unbounded, core::ops::Bound::Excluded);
    let empty = end.is_some_and(|end| end <= start);
    let range = (core::ops::Bound::Included(start), stop);
    let range = (!empty).then(|| model.range::<[u8], _>(range));
    range.into_iter().flatten()
}

fn collect(mut cursor: Cursor<'_, '_>) -> Vec<(Vec<u8>, KeyMeta)> {
    let mut all = Vec::new();
    while let Some((key, meta)) = cursor.next() {
        all.push((key.to_vec(), meta));
    }
    assert!(cursor.next().is_none(), "the end is the end");
    all
}

fn owned<'m>(entries: impl Iterator<Item = (&'m Vec<u8>, &'m KeyMeta)>) -> Vec<(Vec<u8>, KeyMeta)> {
    entries.map(|(k, m)| (k.clone(), *m)).collect()
}

fn check_range(tree: Tree<'_>, model: &Model, start: &[u8], end: Option<&[u8]>) {
    assert_eq!(
        collect(tree.range(start, end)),
        owned(bounded(model, start, end))
    );
    assert_eq!(
        collect(tree.range_rev(start, end)),
        owned(bounded(model, start, end).rev())
    );
    assert_eq!(tree.live_count(start, end), live(model, start, end));
}

fn check(tree: Tree<'_>, model: &Model) {
    tree.check();
    check_range(tree, model, b"", None);
    for (key, meta) in model {
        assert_eq!(tree.get(key), Some(*meta));
    }
}

/// Keys that share prefixes, contain zeros, and lie on both sides of the inline limit.
fn key() -> impl Strategy<Value = Vec<u8>> {
    let byte = prop_oneof![Just(0_u8), Just(1), Just(b'a'), Just(b'b'), Just(255)];
    let tail = prop::collection::vec(byte, 0..6);
    let head = prop_oneof![
        4 => Just(Vec::new()),
        4 => Just(b"/registry/".to_vec()),
        2 => Just(b"/registry/pods/default".to_vec()),
        1 => Just(vec![b'x'; 60]),
        1 => Just(vec![b'y'; 900]),
    ];
    (head, tail).prop_map(|(head, tail)| [head, tail].concat())
}

#[derive(Clone, Debug)]
enum Step {
    Upsert(Vec<u8>),
    Remove(prop::sample::Index),
    RemoveMany(prop::sample::Index, usize),
    Publish,
    Pin,
    Unpin,
    Range(Vec<u8>, Option<Vec<u8>>),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        40 => key().prop_map(Step::Upsert),
        10 => any::<prop::sample::Index>().prop_map(Step::Remove),
        2 => (any::<prop::sample::Index>(), 1..40_usize).prop_map(|(i, n)| Step::RemoveMany(i, n)),
        6 => Just(Step::Publish),
        3 => Just(Step::Pin),
        3 => Just(Step::Unpin),
        4 => (key(), prop::option::of(key())).prop_map(|(s, e)| Step::Range(s, e)),
    ]
}

struct View {
    root: Root,
    model: Model,
}

/// Runs steps with views pinned by nested pins, each checked when it is let go.
struct Run {
    index: Index,
    publisher: Publisher<View>,
    model: Model,
    writes: u64,
}

impl Run {
    fn new() -> Self {
        let mut index = Index::new();
        let publisher = Publisher::new(&mut index, |root| View {
            root,
            model: Model::new(),
        });
        Self {
            index,
            publisher,
            model: Model::new(),
            writes: 0,
        }
    }

    /// Runs until the steps end, or, when `pinned`, until an `Unpin`.
    fn run(&mut self, steps: &mut std::vec::IntoIter<Step>, pinned: bool) {
        while let Some(step) = steps.next() {
            match step {
                Step::Upsert(key) => {
                    self.writes += 1;
                    let meta = meta(self.writes);
                    let previous = self.index.upsert(&key, meta);
                    assert_eq!(previous, self.model.insert(key.clone(), meta));
                    assert_eq!(self.index.get(&key), Some(meta));
                }
                Step::Remove(i) => self.remove(i, 1),
                Step::RemoveMany(i, n) => self.remove(i, n),
                Step::Publish => {
                    let model = self.model.clone();
                    self.publisher
                        .publish(&mut self.index, |root| View { root, model });
                }
                Step::Pin => {
                    let reader = self.publisher.reader();
                    reader.pin(|view, pin| {
                        self.run(steps, true);
                        check(view.root.read(pin), &view.model);
                    });
                }
                Step::Unpin if pinned => return,
                Step::Unpin => {}
                Step::Range(start, end) => {
                    check_range(self.index.tree(), &self.model, &start, end.as_deref());
                }
            }
        }
    }

    fn remove(&mut self, i: prop::sample::Index, n: usize) {
        if self.model.is_empty() {
            assert_eq!(self.index.remove(b"absent"), None);
            return;
        }
        let from = i.index(self.model.len());
        let keys: Vec<_> = self.model.keys().skip(from).take(n).cloned().collect();
        for key in keys {
            assert_eq!(self.index.remove(&key), self.model.remove(&key));
            assert_eq!(self.index.get(&key), None);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: if cfg!(miri) { 1 } else { 150 },
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn behaves_as_a_map_and_views_do_not_change(
        steps in prop::collection::vec(step(), 0..if cfg!(miri) { 80 } else { 600 }),
    ) {
        let mut run = Run::new();
        run.run(&mut steps.into_iter(), false);
        check(run.index.tree(), &run.model);
        // Without pins one batch brings everything back.
        let model = run.model.clone();
        run.publisher.publish(&mut run.index, |root| View { root, model });
        prop_assert_eq!(run.index.retired_bytes(), 0);
        run.model.keys().cloned().collect::<Vec<_>>().iter().for_each(|key| {
            assert_eq!(run.index.remove(key), run.model.remove(key));
            if run.model.len().is_multiple_of(8) {
                run.index.tree().check();
            }
        });
        check(run.index.tree(), &run.model);
        run.publisher.publish(&mut run.index, |root| View { root, model: Model::new() });
        let root = run.index.root().node().bytes().len() / node::UNIT_BYTES;
        prop_assert_eq!(run.index.memory.in_use(), (root as u64, 0), "only the root is left");
    }

    #[test]
    fn loads_what_is_sorted(
        keys in prop::collection::btree_set(key(), 0..if cfg!(miri) { 40 } else { 500 }),
        more in prop::collection::vec(key(), 0..20),
    ) {
        let mut model: Model = keys.into_iter().zip((1..).map(meta)).collect();
        let mut index = Index::from_sorted(model.iter().map(|(k, m)| (k, *m)));
        check(index.tree(), &model);
        for key in more {
            prop_assert_eq!(index.upsert(&key, meta(9)), model.insert(key, meta(9)));
        }
        check(index.tree(), &model);
    }
}

fn number_key(n: u64) -> Vec<u8> {
    format!("/registry/pods/{n:06}").into_bytes()
}

fn count() -> u64 {
    if cfg!(miri) { 60 } else { 600 }
}

/// Orders in which `n` numbers come: up, down, and mixed.
fn orders(n: u64) -> [Vec<u64>; 3] {
    let mixed = (0..n).map(|i| (i * 7919) % n).collect();
    [(0..n).collect(), (0..n).rev().collect(), mixed]
}

#[test]
fn grows_and_shrinks_in_any_order() {
    for inserted in orders(count()) {
        for removed in orders(count()) {
            let (mut index, mut model) = (Index::new(), Model::new());
            for n in inserted.iter().copied() {
                assert_eq!(index.upsert(&number_key(n), meta(n)), None);
                model.insert(number_key(n), meta(n));
            }
            check(index.tree(), &model);
            let full = index.bytes();
            for n in removed {
                assert_eq!(index.remove(&number_key(n)), Some(meta(n)));
            }
            index.tree().check();
            assert!(index.tree().range(b"", None).next().is_none());
            assert_eq!(index.tree().live_count(b"", None), 0);
            for n in inserted.iter().copied() {
                index.upsert(&number_key(n), meta(n));
            }
            check(index.tree(), &model);
            let after = index.bytes();
            assert!(after <= full / 4 * 5, "free nodes are used again");
        }
    }
}

#[test]
fn keys_in_order_fill_their_nodes() {
    let nodes = |order: Vec<u64>| {
        let mut index = Index::new();
        for n in order {
            index.upsert(&number_key(n), meta(n));
        }
        index.tree().check()
    };
    let loaded = Index::from_sorted((0..count()).map(|n| (number_key(n), meta(n))));
    let loaded = loaded.tree().check();
    let [up, down, mixed] = orders(count()).map(nodes);
    assert!(loaded < mixed && up <= loaded && down <= loaded + 1);
}

#[test]
fn small_neighbours_merge() {
    let mut index = Index::new();
    for n in 0..600_u64 {
        index.upsert(&number_key(n * 7 % 600), meta(n));
    }
    let full = index.tree().check();
    for n in (0..600_u64).filter(|n| !n.is_multiple_of(16)) {
        index.remove(&number_key(n));
    }
    assert!(index.tree().check() * 5 < full);
}

#[test]
fn keys_as_long_as_a_request_work() {
    let len = if cfg!(miri) { 5_000 } else { 3 << 19 };
    let long = |n: u8| [vec![b'k'; len - 1], vec![n]].concat();
    let (mut index, mut model) = (Index::new(), Model::new());
    let mut publisher = Publisher::new(&mut index, |root| root);
    for n in (0..30_u8).rev() {
        index.upsert(&long(n), meta(1));
        index.upsert(&[n], meta(2));
        index.upsert(&long(n), meta(3));
        model.insert(long(n), meta(3));
        model.insert(vec![n], meta(2));
    }
    publisher.publish(&mut index, |root| root);
    check(index.tree(), &model);
    check_range(index.tree(), &model, &long(5), Some(&long(9)));
    check_range(index.tree(), &model, &long(5)[..len - 1], None);
    let full = index.bytes();
    assert!(full > 30 * len as u64);
    for n in 0..30_u8 {
        assert_eq!(index.remove(&long(n)), model.remove(&long(n)));
    }
    check(index.tree(), &model);
    assert!(
        index.bytes() == full,
        "published keys stay until a batch is over"
    );
    publisher.publish(&mut index, |root| root);
    assert!(
        index.bytes() < full - 29 * len as u64,
        "long keys go back to the allocator"
    );
}

#[test]
fn a_change_costs_no_memory_unless_pinned() {
    let mut index = Index::from_sorted((0..count()).map(|n| (number_key(n), meta(n))));
    let mut publisher = Publisher::new(&mut index, |root| root);
    let reader = publisher.reader();
    let mut change = |index: &mut Index, n: u64| {
        index.upsert(&number_key(n * 31 % count()), meta(n));
        publisher.publish(index, |root| root);
    };
    (0..count()).for_each(|n| change(&mut index, n));
    assert_eq!(index.retired_bytes(), 0);
    let bytes = index.bytes();
    (0..count()).for_each(|n| change(&mut index, n));
    assert_eq!(index.bytes(), bytes);
    reader.pin(|root, pin| {
        (0..count()).for_each(|n| change(&mut index, n));
        assert!(index.retired_bytes() > count() * node::UNIT_BYTES as u64);
        assert_eq!(root.read(pin).get(&number_key(0)), Some(meta(0)));
    });
    assert!(index.bytes() > bytes);
    publisher.collect(&mut index);
    assert_eq!(index.retired_bytes(), 0);
}

#[test]
fn a_panic_in_a_pin_ends_it() {
    let mut index = Index::new();
    let mut publisher = Publisher::new(&mut index, |root| root);
    let reader = publisher.reader();
    let pinned = std::panic::AssertUnwindSafe(|| reader.pin(|_, _| panic!("in a pin")));
    assert!(std::panic::catch_unwind(pinned).is_err());
    index.upsert(b"key", meta(1));
    publisher.publish(&mut index, |root| root);
    assert_eq!(index.retired_bytes(), 0);
}

#[test]
fn readers_outlive_index_and_publisher() {
    let long = vec![b'k'; 1000];
    let mut index = Index::new();
    index.upsert(&long, meta(1));
    let mut publisher = Publisher::new(&mut index, |root| root);
    let reader = publisher.reader();
    reader.pin(|old, pin| {
        index.remove(&long);
        index.upsert(b"short", meta(2));
        publisher.publish(&mut index, |root| root);
        drop(publisher);
        index.upsert(b"unpublished", meta(3));
        drop(index);
        assert_eq!(old.read(pin).get(&long), Some(meta(1)));
    });
    reader.clone().pin(|root, pin| {
        assert_eq!(root.read(pin).get(&long), None);
        assert_eq!(root.read(pin).get(b"short"), Some(meta(2)));
        assert_eq!(root.read(pin).get(b"unpublished"), None);
    });
}

#[test]
fn a_newer_root_is_read_under_an_older_pin() {
    let mut index = Index::new();
    let mut publisher = Publisher::new(&mut index, |root| root);
    let reader = publisher.reader();
    reader.pin(|_, outer| {
        index.upsert(b"key", meta(1));
        publisher.publish(&mut index, |root| root);
        let newer = reader.pin(|root, _| *root);
        for n in 0..count() {
            index.upsert(&number_key(n), meta(n));
            publisher.publish(&mut index, |root| root);
        }
        assert_eq!(newer.read(outer).live_count(b"", None), 1);
    });
}

#[test]
#[should_panic(expected = "the root is as new as the pinned View")]
fn a_root_is_not_read_under_a_newer_pin() {
    let mut index = Index::new();
    let mut publisher = Publisher::new(&mut index, |root| root);
    let reader = publisher.reader();
    let stale = reader.pin(|root, _| *root);
    publisher.publish(&mut index, |root| root);
    reader.pin(|_, pin| stale.read(pin).get(b""));
}

#[test]
#[should_panic(expected = "root and pin are of one index")]
fn a_root_is_not_read_under_another_indexs_pin() {
    let (mut one, mut two) = (Index::new(), Index::new());
    let one = Publisher::new(&mut one, |root| root).reader();
    let two = Publisher::new(&mut two, |root| root).reader();
    let root = one.pin(|root, _| *root);
    two.pin(|_, pin| root.read(pin).get(b""));
}

#[test]
#[should_panic(expected = "an index has one publisher")]
fn an_index_has_no_second_publisher() {
    let mut index = Index::new();
    drop(Publisher::new(&mut index, |root| root));
    Publisher::new(&mut index, |root| root);
}

#[test]
#[should_panic(expected = "its own index")]
fn a_publisher_takes_no_other_index() {
    let (mut one, mut two) = (Index::new(), Index::new());
    let mut publisher = Publisher::new(&mut one, |root| root);
    publisher.publish(&mut two, |root| root);
}

#[test]
#[should_panic(expected = "at most READERS_MAX readers")]
fn readers_are_bounded() {
    let mut index = Index::new();
    let publisher = Publisher::new(&mut index, |root| root);
    let readers: Vec<_> = (0..READERS_MAX).map(|_| publisher.reader()).collect();
    let _one_too_many = readers[0].clone();
}

#[test]
#[should_panic(expected = "keys come in order")]
fn loads_nothing_unsorted() {
    Index::from_sorted([(b"b", meta(1)), (b"a", meta(1))]);
}

struct Numbered {
    root: Root,
    main: u64,
}

/// Every batch writes all keys with its number: a reader must see one number only, and the keys
/// that come and go with it.
#[test]
fn readers_on_other_threads_see_whole_batches() {
    let (keys, batches) = if cfg!(miri) { (12, 20) } else { (300, 500) };
    let mut index = Index::new();
    let mut publisher = Publisher::new(&mut index, |root| Numbered { root, main: 0 });
    let reader = publisher.reader();
    std::thread::scope(|scope| {
        for _ in 0..2 {
            let reader = reader.clone();
            scope.spawn(move || {
                let mut last = 0;
                while last < batches {
                    last = reader.pin(|view, pin| {
                        assert!(view.main >= last, "Views do not go back");
                        let tree = view.root.read(pin);
                        let mut seen = 0;
                        let mut cursor = tree.range(b"", None);
                        while let Some((_, meta)) = cursor.next() {
                            assert_eq!(meta.modified.main, view.main);
                            seen += 1;
                        }
                        assert_eq!(
                            seen,
                            if view.main == 0 {
                                0
                            } else {
                                keys + view.main % 7
                            }
                        );
                        view.main
                    });
                }
            });
        }
        for main in 1..=batches {
            let meta = KeyMeta {
                modified: Revision::new(main, 0),
                ..KeyMeta::default()
            };
            for n in 0..keys + 7 {
                let key = number_key(n);
                if n < keys + main % 7 {
                    index.upsert(&key, meta);
                } else {
                    index.remove(&key);
                }
            }
            publisher.publish(&mut index, |root| Numbered { root, main });
        }
    });
    publisher.collect(&mut index);
    assert_eq!(index.retired_bytes(), 0);
}
