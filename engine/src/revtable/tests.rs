use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

type Change = (Revision, bool, Option<Revision>);

/// The naive RevTable: every change in order, with the key's change before it.
#[derive(Default)]
struct Model {
    all: Vec<(Vec<u8>, Change)>,
    newest: BTreeMap<Vec<u8>, Revision>,
}

impl Model {
    fn at_or_before(&self, key: &[u8], at: u64) -> Option<Revision> {
        let mut of_key = self.all.iter().rev().filter(|(k, _)| k == key);
        of_key.find(|(_, c)| c.0.main <= at).map(|(_, c)| c.0)
    }

    fn kept(&self, upto: u64) -> Vec<Revision> {
        let superseded = |rev: Revision, key: &[u8]| {
            self.all
                .iter()
                .any(|(k, c)| k == key && c.0 > rev && c.0.main <= upto)
        };
        self.all
            .iter()
            .filter(|(k, c)| !(superseded(c.0, k) || (c.1 && c.0.main < upto)))
            .map(|(_, c)| c.0)
            .collect()
    }
}

fn change(table: &mut RevTable, model: &mut Model, rev: Revision, key: u8, tombstone: bool) {
    let key = [key];
    let value = vec![b'v'; (rev.main as usize * 37) % 9000];
    let previous = model.newest.get(&key[..]).copied();
    let kv = if tombstone {
        kv::Encoder::tombstone(&key)
    } else {
        kv::Encoder::put(&key, 1, rev.main, 1, &value, 0)
    };
    table.append(rev, tombstone, previous, &kv);
    model.all.push((key.to_vec(), (rev, tombstone, previous)));
    model.newest.insert(key.to_vec(), rev);
}

fn prune_all(table: &mut RevTable, upto: u64) -> Vec<Revision> {
    let mut gone = Vec::new();
    let mut prune = table.prune(upto);
    while table.prune_slice(&mut prune, |_, rev| gone.push(rev)) {
        // Half way, nothing that is still readable is missing or doubled.
        let revs: Vec<_> = table
            .snapshot(u64::MAX)
            .scan(Revision::ZERO)
            .map(|r| r.revision)
            .collect();
        assert!(revs.is_sorted_by(|a, b| a < b));
    }
    gone
}

fn cases() -> u32 {
    if cfg!(miri) { 4 } else { 256 }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: cases(), failure_persistence: None, ..ProptestConfig::default()
    })]

    #[test]
    fn agrees_with_the_model(
        steps in prop::collection::vec((0u8..6, any::<bool>(), 0u8..20, 0u8..4), 1..120),
        chunk in 1usize..9,
    ) {
        let mut table = RevTable::new(chunk);
        let mut model = Model::default();
        let (mut main, mut sub, mut compacted) = (1, 0, 0);
        let mut touched = Vec::new();
        for (key, tombstone, compact, same) in steps {
            if same > 0 && !touched.contains(&key) && main > 1 {
                sub += 1;
            } else {
                (main, sub) = (main + 1, 0);
                touched.clear();
            }
            touched.push(key);
            change(&mut table, &mut model, Revision::new(main, sub), key, tombstone);
            if compact == 0 && main > compacted + 2 {
                let held = table.snapshot(main);
                let before: Vec<_> =
                    held.scan(Revision::ZERO).map(|r| (r.revision, r.kv.to_vec())).collect();
                compacted = main - 2;
                prune_all(&mut table, compacted);
                let after: Vec<_> =
                    held.scan(Revision::ZERO).map(|r| (r.revision, r.kv.to_vec())).collect();
                prop_assert_eq!(before, after, "a held snapshot does not change");
                // What the table dropped cannot be met again through the model either.
                let snapshot = table.snapshot(main);
                let revs: Vec<_> = snapshot.scan(Revision::ZERO).map(|r| r.revision).collect();
                prop_assert_eq!(&revs, &model.kept(compacted));
                prop_assert_eq!(table.len(), revs.len() as u64);
            }
        }
        let snapshot = table.snapshot(main);
        for at in compacted.max(1)..=main {
            for (key, newest) in &model.newest {
                let want = model.at_or_before(key, at);
                let got = snapshot.at_or_before(*newest, at);
                // A tombstone at or before the compaction is gone, and with it the way to it.
                let live = |rev: &Revision| snapshot.get(*rev).is_some_and(|r| !r.tombstone);
                prop_assert_eq!(got.filter(live), want.filter(live));
                if let Some(rev) = want.filter(live) {
                    prop_assert_eq!(snapshot.get(rev).expect("live").key(), &key[..]);
                }
            }
        }
        for from in 0..=main {
            let got = snapshot.scan_to(Revision::new(from, 0), main - 1);
            let got: Vec<_> = got.map(|r| r.revision).collect();
            let want: Vec<_> = model.kept(compacted).into_iter()
                .filter(|r| r.main >= from && r.main < main).collect();
            prop_assert_eq!(got, want);
        }
    }
}

#[test]
fn a_long_history_is_walked_in_few_steps() {
    let mut table = RevTable::new(64);
    let mut previous = None;
    let n = if cfg!(miri) { 300 } else { 20_000 };
    for main in 2..n {
        let rev = Revision::new(main, 0);
        table.append(
            rev,
            false,
            previous,
            &kv::Encoder::put(b"k", 2, main, main - 1, b"v", 0),
        );
        previous = Some(rev);
    }
    let snapshot = table.snapshot(n);
    for at in [2, 3, n / 3, n / 2, n - 2] {
        let (mut rev, mut steps) = (previous.expect("written"), 0);
        while rev.main > at {
            let links = snapshot.get(rev).expect("kept").links().expect("linked");
            rev = if links.jump.main > at {
                links.jump
            } else {
                links.previous
            };
            steps += 1;
        }
        assert_eq!(rev.main, at);
        assert!(steps < 60, "{steps} steps to {at}");
    }
}

#[test]
fn readers_on_other_threads_see_whole_records() {
    let mut table = RevTable::new(16);
    let rounds = if cfg!(miri) { 40 } else { 4000 };
    let (to_reader, snapshots) = std::sync::mpsc::channel::<RevSnapshot>();
    let reader = std::thread::spawn(move || {
        let mut seen = 0;
        for snapshot in snapshots {
            seen = snapshot
                .scan(Revision::ZERO)
                .inspect(|r| assert_eq!(r.key(), b"key"))
                .count();
        }
        seen
    });
    for main in 2..rounds {
        let kv = kv::Encoder::put(b"key", 2, main, 1, b"some value", 0);
        table.append(Revision::new(main, 0), false, None, &kv);
        to_reader
            .send(table.snapshot(main))
            .expect("the reader runs");
    }
    drop(to_reader);
    assert_eq!(reader.join().expect("no panic"), rounds as usize - 2);
}
