//! Goal: every watcher gets exactly its events, in order, whatever else happens (I7), and answers
//! are etcd's. Method: named cases for each rule of etcd's; and random histories of writes,
//! compactions, slow readers and small budgets, where a client that knows all events by brute force
//! checks each response it takes.

mod model;

use std::collections::BTreeMap;

use super::*;
use crate::revtable::RevTable;
use crate::revtable::kv::Encoder;
use crate::types::Revision;

const CONFIG: WatchConfig = WatchConfig {
    progress_interval_ms: 1_000,
    fragment_bytes_max: 700,
};
const BUDGET: usize = 10_000;

/// A change, and its event as etcd encodes it.
struct Change {
    main: u64,
    key: Vec<u8>,
    put: bool,
    plain: Vec<u8>,
    with_previous: Vec<u8>,
}

struct Live {
    created: u64,
    version: u64,
    kv: Vec<u8>,
}

/// The store as far as watches see it.
struct Store {
    table: RevTable,
    revision: u64,
    compacted: i64,
    live: BTreeMap<Vec<u8>, Live>,
    newest: BTreeMap<Vec<u8>, Revision>,
    changes: Vec<Change>,
    snapshot: RevSnapshot,
}

fn field(tag: u8, bytes: &[u8]) -> Vec<u8> {
    let mut out = vec![tag];
    let mut len = bytes.len();
    while len >= 0x80 {
        out.push(len as u8 | 0x80);
        len >>= 7;
    }
    out.push(len as u8);
    [out, bytes.to_vec()].concat()
}

impl Store {
    fn new() -> Self {
        let table = RevTable::new(Limits::SIM.revtable_chunk_revisions);
        let snapshot = table.snapshot(1);
        Self {
            table,
            revision: 1,
            compacted: -1,
            live: BTreeMap::new(),
            newest: BTreeMap::new(),
            changes: Vec::new(),
            snapshot,
        }
    }

    /// One transaction; a key with no value is deleted if it is there.
    fn write(&mut self, changes: &[(&[u8], Option<&[u8]>)]) {
        let main = self.revision + 1;
        let mut sub = 0;
        let mut done: Vec<&[u8]> = Vec::new();
        for (key, value) in changes {
            if done.contains(key) || (value.is_none() && !self.live.contains_key(*key)) {
                continue;
            }
            done.push(key);
            let rev = Revision::new(main, sub);
            sub += 1;
            let before = self.live.remove(*key);
            let previous = self.newest.insert(key.to_vec(), rev);
            let (created, version) = before
                .as_ref()
                .map_or((main, 1), |b| (b.created, b.version + 1));
            let encoder = match value {
                Some(value) => Encoder::put(key, created, main, version, value, 0),
                None => Encoder::tombstone(key),
            };
            self.table.append(rev, value.is_none(), previous, &encoder);
            let kv = encoder.parts().concat();
            let plain = match value {
                Some(_) => field(0x12, &kv),
                None => {
                    let deleted = Encoder::deleted(key, main).parts().concat();
                    [vec![0x08, 0x01], field(0x12, &deleted)].concat()
                }
            };
            let previous_kv = before.map_or(Vec::new(), |before| field(0x1a, &before.kv));
            let with_previous = [plain.clone(), previous_kv].concat();
            let put = value.is_some();
            self.changes.push(Change {
                main,
                key: key.to_vec(),
                put,
                plain,
                with_previous,
            });
            if put {
                self.live.insert(
                    key.to_vec(),
                    Live {
                        created,
                        version,
                        kv,
                    },
                );
            }
        }
        if sub > 0 {
            self.revision = main;
            self.snapshot = self.table.snapshot(main);
        }
    }

    fn put(&mut self, key: &[u8], value: &[u8]) {
        self.write(&[(key, Some(value))]);
    }

    /// Compacts; `prune` also physically, but for the compact revision's own deletes, which etcd
    /// keeps.
    fn compact(&mut self, at: u64, prune: bool) {
        self.compacted = i64::try_from(at).unwrap();
        if prune && at > 1 {
            let mut prune = self.table.prune(at - 1);
            while self.table.prune_slice(&mut prune, |_, _| ()) {}
            self.snapshot = self.table.snapshot(self.revision);
        }
    }

    fn published(&self) -> Published<'_> {
        Published {
            revision: self.revision,
            compacted: self.compacted,
            revs: &self.snapshot,
        }
    }
}

fn shard(store: &Store) -> WatchShard {
    WatchShard::new(Limits::SIM, CONFIG, store.revision)
}

fn take(shard: &mut WatchShard, stream: StreamId) -> Vec<Response> {
    let mut all = Vec::new();
    loop {
        let some = shard.take_responses(stream, usize::MAX);
        if some.is_empty() {
            return all;
        }
        all.extend(some);
    }
}

fn advance(shard: &mut WatchShard, store: &Store) {
    while shard.advance(&store.published(), 0, BUDGET) {}
}

/// All there is for a stream, making room for what waits.
fn take_all(shard: &mut WatchShard, store: &Store, stream: StreamId) -> Vec<Response> {
    let mut all = Vec::new();
    loop {
        advance(shard, store);
        let some = take(shard, stream);
        if some.is_empty() {
            return all;
        }
        all.extend(some);
    }
}

fn request(key: &[u8]) -> CreateRequest<'_> {
    CreateRequest {
        key,
        ..CreateRequest::default()
    }
}

fn created(watch_id: i64, revision: u64) -> Response {
    Response {
        watch_id,
        revision,
        created: true,
        ..Response::default()
    }
}

fn refused(reason: &'static str, revision: u64) -> Response {
    Response {
        watch_id: -1,
        revision,
        created: true,
        canceled: true,
        cancel_reason: reason,
        ..Response::default()
    }
}

fn events(watch_id: i64, revision: u64, events: &[&[u8]]) -> Response {
    let events = events.iter().map(|event| event.to_vec().into()).collect();
    Response {
        watch_id,
        revision,
        events,
        ..Response::default()
    }
}

fn progress(watch_id: i64, revision: u64) -> Response {
    Response {
        watch_id,
        revision,
        ..Response::default()
    }
}

#[test]
fn events_are_etcds_bytes() {
    let mut store = Store::new();
    let mut shard = shard(&store);
    let stream = shard.open_stream(0);
    let request = CreateRequest {
        prev_kv: true,
        ..request(b"foo")
    };
    shard.create(stream, &request, &store.published());
    store.put(b"foo", b"bar");
    store.write(&[(b"foo", None)]);
    advance(&mut shard, &store);
    let kv = b"\x0a\x03foo\x10\x02\x18\x02\x20\x01\x2a\x03bar";
    let put = [b"\x12\x10", &kv[..]].concat();
    let delete = [b"\x08\x01\x12\x07\x0a\x03foo\x18\x03\x1a\x10", &kv[..]].concat();
    assert_eq!(
        take(&mut shard, stream),
        [created(0, 1), events(0, 3, &[&put, &delete])]
    );
}

#[test]
fn ids_are_given_chosen_or_refused() {
    let store = Store::new();
    let mut shard = shard(&store);
    let stream = shard.open_stream(0);
    for watch_id in [0, 1, 0, 7, 7, 0] {
        let request = CreateRequest {
            watch_id,
            ..request(b"k")
        };
        shard.create(stream, &request, &store.published());
    }
    let duplicate = refused("mvcc: duplicate watch ID provided on the WatchStream", 1);
    let ids = [
        created(0, 1),
        created(1, 1),
        created(2, 1),
        created(7, 1),
        duplicate,
        created(3, 1),
    ];
    assert_eq!(take(&mut shard, stream), ids);
    // Another stream has ids of its own.
    let other = shard.open_stream(0);
    shard.create(other, &request(b"k"), &store.published());
    assert_eq!(take(&mut shard, other), [created(0, 1)]);
    assert_eq!((shard.streams(), shard.watchers()), (2, 6));
    shard.close_stream(stream);
    assert_eq!(
        (shard.streams(), shard.watchers(), shard.queued_bytes()),
        (1, 1, 0)
    );
}

#[test]
fn bad_requests_are_refused_in_etcds_words() {
    let store = Store::new();
    let mut shard = shard(&store);
    let stream = shard.open_stream(0);
    let negative = CreateRequest {
        start_revision: -1,
        ..request(b"k")
    };
    shard.create(stream, &negative, &store.published());
    for range_end in [&b"k"[..], b"a"] {
        let empty = CreateRequest {
            range_end,
            ..request(b"k")
        };
        shard.create(stream, &empty, &store.published());
    }
    let compacted = refused("etcdserver: mvcc: required revision has been compacted", 1);
    let empty = refused("mvcc: watcher range is empty", 1);
    assert_eq!(take(&mut shard, stream), [compacted, empty.clone(), empty]);
    for _ in 0..Limits::SIM.watchers_per_shard_max {
        shard.create(stream, &request(b"k"), &store.published());
    }
    take(&mut shard, stream);
    shard.create(stream, &request(b"k"), &store.published());
    assert_eq!(
        take(&mut shard, stream),
        [refused("etcdserver: too many requests", 1)]
    );
}

#[test]
fn ranges_are_etcds() {
    let mut store = Store::new();
    let mut shard = shard(&store);
    type Case = (&'static [u8], &'static [u8], &'static [&'static [u8]]);
    let cases: [Case; 5] = [
        (b"b", b"", &[b"b"]),
        (b"b", b"c", &[b"b", b"bb"]),
        (b"b", b"\0", &[b"b", b"bb", b"c"]),
        (b"", b"\0", &[b"a", b"b", b"bb", b"c", b"\0"]),
        (b"", b"", &[b"\0"]),
    ];
    let streams: Vec<StreamId> = cases
        .iter()
        .map(|(key, range_end, _)| {
            let stream = shard.open_stream(0);
            let request = CreateRequest {
                key,
                range_end,
                ..CreateRequest::default()
            };
            shard.create(stream, &request, &store.published());
            take(&mut shard, stream);
            stream
        })
        .collect();
    for key in [&b"a"[..], b"b", b"bb", b"c", b"\0"] {
        store.put(key, b"v");
    }
    advance(&mut shard, &store);
    for (stream, (.., keys)) in streams.into_iter().zip(cases) {
        let all = store
            .changes
            .iter()
            .filter(|change| keys.contains(&&change.key[..]));
        let want: Vec<&[u8]> = all.map(|change| &change.plain[..]).collect();
        let got: Vec<Bytes> = take(&mut shard, stream)
            .into_iter()
            .flat_map(|r| r.events)
            .collect();
        assert_eq!(got, want);
    }
}

#[test]
fn filters_leave_out_and_silence_is_not_answered() {
    let mut store = Store::new();
    let mut shard = shard(&store);
    let streams = [(true, false), (false, true), (true, true)].map(|(no_put, no_delete)| {
        let stream = shard.open_stream(0);
        let request = CreateRequest {
            no_put,
            no_delete,
            ..request(b"k")
        };
        shard.create(stream, &request, &store.published());
        take(&mut shard, stream);
        stream
    });
    store.put(b"k", b"v");
    advance(&mut shard, &store);
    store.write(&[(b"k", None)]);
    advance(&mut shard, &store);
    let [put, delete] = [0, 1].map(|i| &store.changes[i].plain[..]);
    assert_eq!(take(&mut shard, streams[0]), [events(0, 3, &[delete])]);
    assert_eq!(take(&mut shard, streams[1]), [events(0, 2, &[put])]);
    assert_eq!(take(&mut shard, streams[2]), []);
}

#[test]
fn a_past_start_catches_up_in_batches_of_revisions() {
    let mut store = Store::new();
    for i in 0..10u8 {
        store.write(&[(b"a", Some(&[i])), (b"b", Some(&[i]))]);
    }
    let mut shard = shard(&store);
    let stream = shard.open_stream(0);
    let request = CreateRequest {
        range_end: b"\0",
        start_revision: 3,
        ..request(b"")
    };
    shard.create(stream, &request, &store.published());
    assert_eq!((shard.slow_watchers(), shard.min_cursor()), (1, 3));
    advance(&mut shard, &store);
    assert_eq!((shard.slow_watchers(), shard.min_cursor()), (0, 12));
    let taken = take(&mut shard, stream);
    let shape: Vec<_> = taken.iter().map(|r| (r.revision, r.events.len())).collect();
    assert_eq!(shape, [(11, 0), (6, 8), (10, 8), (11, 2)]);
}

#[test]
fn a_future_start_waits_for_its_revision() {
    let mut store = Store::new();
    let mut shard = shard(&store);
    let stream = shard.open_stream(0);
    let request = CreateRequest {
        start_revision: 4,
        ..request(b"k")
    };
    shard.create(stream, &request, &store.published());
    assert_eq!(take(&mut shard, stream), [created(0, 1)]);
    for _ in 0..4 {
        // Progress is for watchers that have begun.
        shard.progress(stream, store.revision);
        advance(&mut shard, &store);
        let begun = vec![
            events(
                0,
                4,
                &[b"\x12\x0c\x0a\x01k\x10\x02\x18\x04\x20\x03\x2a\x01v"],
            ),
            progress(-1, 4),
        ];
        let want = if store.revision == 4 { begun } else { vec![] };
        assert_eq!(take(&mut shard, stream), want);
        store.put(b"k", b"v");
    }
    advance(&mut shard, &store);
    assert_eq!(
        take(&mut shard, stream),
        [events(0, 5, &[&store.changes[3].plain])]
    );
}

#[test]
fn a_watcher_created_ahead_of_the_walk_gets_nothing_before_its_creation() {
    let mut store = Store::new();
    let mut shard = shard(&store);
    let stream = shard.open_stream(0);
    store.put(b"k", b"1");
    // The View is newer than what the shard has walked.
    shard.create(stream, &request(b"k"), &store.published());
    store.put(b"k", b"2");
    shard.progress(stream, store.revision);
    advance(&mut shard, &store);
    let want = [
        created(0, 2),
        events(0, 3, &[&store.changes[1].plain]),
        progress(-1, 3),
    ];
    assert_eq!(take(&mut shard, stream), want);
}

#[test]
fn cancel_answers_once_and_comes_after_events() {
    let mut store = Store::new();
    let mut shard = shard(&store);
    let stream = shard.open_stream(0);
    shard.create(stream, &request(b"k"), &store.published());
    store.put(b"k", b"v");
    advance(&mut shard, &store);
    shard.cancel(stream, 0, 2);
    shard.cancel(stream, 0, 2);
    shard.cancel(stream, 5, 2);
    store.put(b"k", b"v");
    advance(&mut shard, &store);
    let canceled = Response {
        watch_id: 0,
        revision: 2,
        canceled: true,
        ..Response::default()
    };
    let want = [
        created(0, 1),
        events(0, 2, &[&store.changes[0].plain]),
        canceled,
    ];
    assert_eq!(take(&mut shard, stream), want);
}

#[test]
fn compaction_cancels_those_behind_it() {
    let mut store = Store::new();
    for i in 0..5u8 {
        store.put(b"k", &[i]);
    }
    store.compact(4, true);
    let mut shard = shard(&store);
    let stream = shard.open_stream(0);
    for start_revision in [3, 4] {
        let request = CreateRequest {
            start_revision,
            prev_kv: true,
            ..request(b"k")
        };
        shard.create(stream, &request, &store.published());
    }
    advance(&mut shard, &store);
    let canceled = Response {
        watch_id: 0,
        canceled: true,
        compact_revision: 4,
        ..Response::default()
    };
    let changes = &store.changes[2..];
    // What was before revision 4 can no longer be read.
    let all = [
        &changes[0].plain[..],
        &changes[1].with_previous,
        &changes[2].with_previous,
    ];
    let taken = take(&mut shard, stream);
    let of = |id: i64| {
        taken
            .iter()
            .filter(|r| r.watch_id == id)
            .cloned()
            .collect::<Vec<_>>()
    };
    assert_eq!(of(0), [created(0, 6), canceled]);
    assert_eq!(of(1), [created(1, 6), events(1, 6, &all)]);
    assert_eq!(shard.watchers(), 1);
}

#[test]
fn the_synced_walk_what_compaction_has_overtaken() {
    let mut store = Store::new();
    let mut shard = shard(&store);
    let stream = shard.open_stream(0);
    shard.create(stream, &request(b"k"), &store.published());
    store.put(b"k", b"1");
    store.put(b"k", b"2");
    store.compact(3, false);
    assert_eq!(shard.synced_main(), 1);
    advance(&mut shard, &store);
    assert_eq!(shard.synced_main(), 3);
    let [one, two] = [0, 1].map(|i| &store.changes[i].plain[..]);
    assert_eq!(
        take(&mut shard, stream),
        [created(0, 1), events(0, 3, &[one, two])]
    );
}

#[test]
fn a_restored_store_cancels_what_it_cannot_serve() {
    let mut store = Store::new();
    let mut shard = shard(&store);
    let stream = shard.open_stream(0);
    shard.create(stream, &request(b"k"), &store.published());
    let future = CreateRequest {
        start_revision: 4,
        ..request(b"k")
    };
    shard.create(stream, &future, &store.published());
    for i in 0..6u8 {
        store.put(b"k", &[i]);
    }
    store.compact(4, true);
    shard.restore(&store.published());
    assert_eq!((shard.synced_main(), shard.slow_watchers()), (7, 2));
    advance(&mut shard, &store);
    let canceled = Response {
        watch_id: 0,
        canceled: true,
        compact_revision: 4,
        ..Response::default()
    };
    let all: Vec<&[u8]> = store.changes[2..].iter().map(|c| &c.plain[..]).collect();
    let want = [
        created(0, 1),
        created(1, 1),
        canceled,
        events(1, 7, &all[..4]),
    ];
    assert_eq!(take(&mut shard, stream), want);
    // Nothing was missed: all stay synced.
    shard.restore(&store.published());
    assert_eq!((shard.slow_watchers(), shard.watchers()), (0, 1));
}

#[test]
fn a_slow_stream_is_bounded_and_holds_nobody_up() {
    let mut store = Store::new();
    let mut shard = shard(&store);
    let [slow, fast] = [0, 1].map(|_| {
        let stream = shard.open_stream(0);
        shard.create(stream, &request(b"k"), &store.published());
        take(&mut shard, stream);
        stream
    });
    let value = [7; 200];
    let mut got = 0;
    for i in 1..=50 {
        store.put(b"k", &value);
        advance(&mut shard, &store);
        got += take(&mut shard, fast)
            .iter()
            .map(|r| r.events.len())
            .sum::<usize>();
        assert_eq!(got, i);
        let overshoot = 2 * (200 + 256);
        assert!(shard.queued_bytes() < Limits::SIM.watch_stream_bytes_max + overshoot);
    }
    assert_eq!(shard.slow_watchers(), 1);
    assert!(!shard.accepts_requests(slow));
    // It does not come back for each response taken.
    let queued = shard.queued_bytes();
    assert_eq!(shard.take_responses(slow, 1).len(), 1);
    advance(&mut shard, &store);
    assert_eq!(shard.slow_watchers(), 1);
    assert!(shard.queued_bytes() < queued);
    assert!(shard.min_cursor() < 10);
    // Progress waits until the stream has caught up.
    shard.progress(slow, store.revision);
    let taken = take_all(&mut shard, &store, slow);
    let (last, before) = taken.split_last().unwrap();
    assert_eq!(*last, progress(-1, 51));
    assert!(before.iter().all(|r| !r.events.is_empty()));
    assert_eq!(before.iter().map(|r| r.events.len()).sum::<usize>(), 49);
    assert_eq!((shard.slow_watchers(), shard.queued_bytes()), (0, 0));
}

#[test]
fn a_full_shard_still_feeds_a_stream_with_nothing_queued() {
    let mut store = Store::new();
    let mut shard = shard(&store);
    let streams: Vec<StreamId> = (0..10)
        .map(|_| {
            let stream = shard.open_stream(0);
            shard.create(stream, &request(b"k"), &store.published());
            stream
        })
        .collect();
    for _ in 0..20 {
        store.put(b"k", &[7; 200]);
        advance(&mut shard, &store);
    }
    assert!(shard.queued_bytes() >= Limits::SIM.watch_shard_bytes_max);
    // One revision for each stream above.
    assert!(shard.queued_bytes() < Limits::SIM.watch_shard_bytes_max + 10 * (200 + 256));
    let mut taken = 0;
    while taken < 20 {
        let some = take(&mut shard, streams[9]);
        assert!(!some.is_empty());
        taken += some.iter().map(|r| r.events.len()).sum::<usize>();
        advance(&mut shard, &store);
    }
}

#[test]
fn an_event_is_encoded_once_for_all() {
    let mut store = Store::new();
    let mut shard = shard(&store);
    store.put(b"k", b"0");
    let streams = [false, false, true, true].map(|prev_kv| {
        let stream = shard.open_stream(0);
        let request = CreateRequest {
            prev_kv,
            ..request(b"k")
        };
        shard.create(stream, &request, &store.published());
        take(&mut shard, stream);
        stream
    });
    store.put(b"k", b"1");
    advance(&mut shard, &store);
    let at = streams.map(|stream| take(&mut shard, stream)[0].events[0].as_ptr());
    assert_eq!(at[0], at[1]);
    assert_eq!(at[2], at[3]);
    assert_ne!(at[0], at[2]);
}

#[test]
fn a_large_revision_is_cut_only_for_those_who_allow_it() {
    let mut store = Store::new();
    let mut shard = shard(&store);
    let [whole, cut] = [false, true].map(|fragment| {
        let stream = shard.open_stream(0);
        let request = CreateRequest {
            fragment,
            range_end: b"\0",
            ..request(b"")
        };
        shard.create(stream, &request, &store.published());
        take(&mut shard, stream);
        stream
    });
    let values = [300, 200, 100, 900].map(|len| vec![7; len]);
    let keys = [&b"a"[..], b"b", b"c", b"d"];
    let changes: Vec<_> = keys
        .into_iter()
        .zip(values.iter().map(|v| Some(&v[..])))
        .collect();
    store.write(&changes);
    advance(&mut shard, &store);
    let shape = |taken: Vec<Response>| -> Vec<_> {
        assert!(taken.iter().all(|r| r.revision == 2));
        taken.iter().map(|r| (r.events.len(), r.fragment)).collect()
    };
    assert_eq!(shape(take(&mut shard, whole)), [(4, false)]);
    assert_eq!(
        shape(take(&mut shard, cut)),
        [(2, true), (1, true), (1, false)]
    );
}

#[test]
fn progress_is_periodic_for_the_silent_only() {
    let mut store = Store::new();
    let mut shard = shard(&store);
    let stream = shard.open_stream(0);
    let tick = |shard: &mut WatchShard, store: &Store| {
        let at = shard.next_tick_ms().unwrap();
        while shard.advance(&store.published(), at - 1, BUDGET) {}
        let early = take(shard, stream);
        while shard.advance(&store.published(), at, BUDGET) {}
        (early, take(shard, stream))
    };
    for progress_notify in [true, false] {
        let request = CreateRequest {
            progress_notify,
            ..request(b"k")
        };
        shard.create(stream, &request, &store.published());
    }
    assert_eq!(
        tick(&mut shard, &store),
        (vec![created(0, 1), created(1, 1)], vec![progress(0, 1)])
    );
    assert!((2_000..2_200).contains(&shard.next_tick_ms().unwrap()));
    store.put(b"k", b"v");
    let event = &store.changes[0].plain[..];
    let both = vec![events(0, 2, &[event]), events(1, 2, &[event])];
    assert_eq!(tick(&mut shard, &store), (both, vec![]));
    store.put(b"other", b"v");
    assert_eq!(tick(&mut shard, &store), (vec![], vec![progress(0, 3)]));
    shard.close_stream(stream);
    assert_eq!(shard.next_tick_ms(), None);
}

#[test]
fn asked_progress_waits_for_all_watchers_of_the_stream() {
    let mut store = Store::new();
    for _ in 0..20 {
        store.put(b"k", b"v");
    }
    let mut shard = shard(&store);
    let stream = shard.open_stream(0);
    // Nobody to speak for.
    shard.progress(stream, store.revision);
    shard.create(stream, &request(b"k"), &store.published());
    let past = CreateRequest {
        start_revision: 2,
        ..request(b"k")
    };
    shard.create(stream, &past, &store.published());
    shard.progress(stream, store.revision);
    shard.progress(stream, store.revision);
    take(&mut shard, stream);
    assert!(shard.advance(&store.published(), 0, 4));
    assert_eq!(
        take(&mut shard, stream)
            .iter()
            .filter(|r| r.events.is_empty())
            .count(),
        0
    );
    let taken = take_all(&mut shard, &store, stream);
    let (last, before) = taken.split_last().unwrap();
    assert_eq!(*last, progress(-1, 21));
    assert!(
        before
            .iter()
            .all(|r| r.watch_id == 1 && !r.events.is_empty())
    );
}

#[test]
fn the_value_before_is_that_of_the_revision_before() {
    let mut store = Store::new();
    let mut shard = shard(&store);
    let stream = shard.open_stream(0);
    store.put(b"k", b"1");
    let request = CreateRequest {
        prev_kv: true,
        ..request(b"k")
    };
    shard.create(stream, &request, &store.published());
    // One transaction may put a key and then delete a range with it.
    let old = Revision::new(2, 0);
    let put = Encoder::put(b"k", 2, 3, 2, b"2", 0);
    store
        .table
        .append(Revision::new(3, 0), false, Some(old), &put);
    let deleted = Encoder::tombstone(b"k");
    let last = Revision::new(3, 1);
    store
        .table
        .append(last, true, Some(Revision::new(3, 0)), &deleted);
    let created = Encoder::put(b"k", 3, 3, 1, b"3", 0);
    store
        .table
        .append(Revision::new(3, 2), false, Some(last), &created);
    store.revision = 3;
    store.snapshot = store.table.snapshot(3);
    let taken = take_all(&mut shard, &store, stream);
    let events: Vec<&Bytes> = taken.iter().flat_map(|r| &r.events).collect();
    let old = store.snapshot.get(old).unwrap().kv;
    let with_old: Vec<bool> = events.iter().map(|event| event.ends_with(old)).collect();
    assert_eq!(with_old, [true, true, false]);
}

#[test]
fn progress_is_of_the_newest_view() {
    let mut store = Store::new();
    let mut shard = shard(&store);
    let stream = shard.open_stream(0);
    let request = CreateRequest {
        progress_notify: true,
        ..request(b"k")
    };
    shard.create(stream, &request, &store.published());
    take(&mut shard, stream);
    for _ in 0..5 {
        store.put(b"other", b"v");
    }
    shard.progress(stream, store.revision);
    assert!(shard.advance(&store.published(), 5_000, 2));
    assert_eq!(take(&mut shard, stream), []);
    while shard.advance(&store.published(), 5_000, 2) {}
    assert_eq!(take(&mut shard, stream), [progress(0, 6), progress(-1, 6)]);
}

#[test]
fn progress_is_not_asked_of_who_has_yet_to_begin_or_was_overtaken() {
    let mut store = Store::new();
    let mut shard = shard(&store);
    let stream = shard.open_stream(0);
    for _ in 0..4 {
        store.put(b"k", b"v");
    }
    let create = |shard: &mut WatchShard, store: &Store, start_revision| {
        let request = CreateRequest {
            start_revision,
            ..request(b"k")
        };
        shard.create(stream, &request, &store.published());
    };
    create(&mut shard, &store, 6);
    shard.progress(stream, store.revision);
    store.put(b"k", b"v");
    advance(&mut shard, &store);
    let taken = take(&mut shard, stream);
    assert!(taken.iter().all(|r| r.watch_id == 0), "{taken:?}");

    store.compact(5, false);
    create(&mut shard, &store, 2);
    advance(&mut shard, &store);
    assert_eq!(
        take(&mut shard, stream).last().map(|r| r.compact_revision),
        Some(5)
    );
    shard.progress(stream, store.revision);
    advance(&mut shard, &store);
    assert_eq!(take(&mut shard, stream), []);
    // Its id is in use until the client has canceled it.
    let again = CreateRequest {
        watch_id: 1,
        ..request(b"k")
    };
    shard.create(stream, &again, &store.published());
    assert_eq!(
        take(&mut shard, stream)[0].cancel_reason,
        REASON_DUPLICATE_ID
    );
    shard.cancel(stream, 1, store.revision);
    assert!(take(&mut shard, stream)[0].canceled);
    shard.progress(stream, store.revision);
    advance(&mut shard, &store);
    assert_eq!(take(&mut shard, stream), [progress(-1, 6)]);
}

#[test]
fn progress_waits_for_room_and_for_somebody_to_have_it() {
    let store = Store::new();
    let mut shard = shard(&store);
    let stream = shard.open_stream(0);
    let request = CreateRequest {
        progress_notify: true,
        ..request(b"k")
    };
    while shard.accepts_requests(stream) {
        shard.create(stream, &request, &store.published());
    }
    shard.progress(stream, store.revision);
    while shard.advance(&store.published(), 5_000, BUDGET) {}
    assert!(take(&mut shard, stream).iter().all(|r| r.created));
    while shard.advance(&store.published(), 5_000, BUDGET) {}
    assert_eq!(take(&mut shard, stream), [progress(-1, 1)]);

    shard.progress(stream, store.revision);
    for watch_id in 0..shard.watchers() as i64 {
        shard.cancel(stream, watch_id, 1);
    }
    take(&mut shard, stream);
    advance(&mut shard, &store);
    assert_eq!(take(&mut shard, stream), []);
}

#[test]
fn writers_that_never_stop_do_not_starve_those_who_lag() {
    let mut store = Store::new();
    for _ in 0..50 {
        store.put(b"other", b"v");
    }
    let mut shard = shard(&store);
    let stream = shard.open_stream(0);
    let request = CreateRequest {
        start_revision: 2,
        ..request(b"k")
    };
    shard.create(stream, &request, &store.published());
    for _ in 0..50 {
        for _ in 0..8 {
            store.put(b"other", b"v");
        }
        assert!(shard.advance(&store.published(), 0, 8));
    }
    assert!(shard.min_cursor() >= 50);
}

#[test]
fn the_lagging_join_a_synced_cohort_that_is_behind() {
    let mut store = Store::new();
    store.put(b"k", b"v");
    let mut shard = shard(&store);
    let [costly, cheap] = [0, 1].map(|_| shard.open_stream(0));
    shard.create(costly, &request(b"k"), &store.published());
    let past = CreateRequest {
        start_revision: 2,
        ..request(b"other")
    };
    shard.create(cheap, &past, &store.published());
    for _ in 0..9 {
        store.put(b"k", &[7; 40 * 4096]);
    }
    // The synced walk one revision each time, the other could walk nine.
    for main in 3..=11 {
        shard.advance(&store.published(), 0, 40);
        take(&mut shard, costly);
        assert_eq!((shard.synced_main(), shard.slow_watchers()), (main, 0));
    }
}

#[test]
fn without_watchers_nothing_is_walked() {
    let mut store = Store::new();
    let mut shard = shard(&store);
    for _ in 0..50 {
        store.put(b"k", b"v");
    }
    assert!(!shard.advance(&store.published(), 0, 1));
    assert_eq!(shard.synced_main(), 51);
}

#[test]
fn large_values_cost_more_of_the_budget() {
    let mut store = Store::new();
    let mut shard = shard(&store);
    let stream = shard.open_stream(0);
    shard.create(stream, &request(b"k"), &store.published());
    store.put(b"k", &[7; 10 * 4096]);
    store.put(b"other", b"v");
    assert!(shard.advance(&store.published(), 0, 8));
    assert_eq!(shard.synced_main(), 2);
}

#[test]
fn lagging_cohorts_join_on_the_way() {
    let mut store = Store::new();
    for _ in 0..100 {
        store.put(b"k", b"v");
    }
    let mut shard = shard(&store);
    for i in 0..20 {
        let stream = shard.open_stream(0);
        let request = CreateRequest {
            start_revision: 2 + i * 5,
            ..request(b"other")
        };
        shard.create(stream, &request, &store.published());
    }
    assert_eq!((shard.lagging.len(), shard.lagging.watchers()), (20, 20));
    let mut looked = 0;
    while shard.advance(&store.published(), 0, 1) {
        looked += 1;
    }
    // Each revision about twice, not twenty times; a turn costs one besides.
    assert!(looked < 2 * 100 + 20, "{looked}");
    assert_eq!(shard.slow_watchers(), 0);
}

#[test]
fn ready_streams_are_named_until_emptied() {
    let store = Store::new();
    let mut shard = shard(&store);
    let stream = shard.open_stream(0);
    assert!(shard.take_ready().is_empty());
    for _ in 0..2 {
        shard.create(stream, &request(b"k"), &store.published());
    }
    assert_eq!(shard.take_ready(), BTreeSet::from([stream]));
    assert!(shard.take_ready().is_empty());
    assert_eq!(shard.take_responses(stream, 1).len(), 1);
    assert_eq!(shard.take_ready(), BTreeSet::from([stream]));
    assert_eq!(shard.take_responses(stream, 1).len(), 1);
    assert!(shard.take_ready().is_empty());
}
