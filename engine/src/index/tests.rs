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
        cases: if cfg!(miri) { 3 } else { 150 },
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn behaves_as_a_map_and_views_do_not_change(
        steps in prop::collection::vec(step(), 0..if cfg!(miri) { 120 } else { 600 }),
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
    }

    #[test]
    fn loads_what_is_sorted(
        keys in prop::collection::btree_set(key(), 0..if cfg!(miri) { 60 } else { 500 }),
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
