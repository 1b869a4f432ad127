//! Random histories against a client that knows every event there ever was.

use proptest::prelude::*;

use super::*;

/// What a client knows of one of its watchers.
struct Client {
    stream: StreamId,
    watch_id: i64,
    request: Wanted,
    /// The first revision it may get.
    from: u64,
    /// Of its events by brute force, how many it has got.
    got: usize,
    /// Everything up to here was promised to be sent.
    covered: u64,
    last: u64,
    in_fragments: bool,
    created: bool,
    canceled: bool,
}

#[derive(Clone, Debug)]
struct Wanted {
    key: Vec<u8>,
    range_end: Vec<u8>,
    back: Option<i64>,
    prev_kv: bool,
    fragment: bool,
    filters: u8,
    progress_notify: bool,
}

#[derive(Clone, Debug)]
enum Op {
    Open,
    Close(prop::sample::Index),
    Create(prop::sample::Index, Wanted),
    Cancel(prop::sample::Index),
    Write(Vec<(u8, Option<usize>)>),
    Compact(u64, bool),
    Restore,
    Progress(prop::sample::Index),
    Advance(u64, usize),
    Take(prop::sample::Index, usize),
}

fn key() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(0..3u8, 0..3)
}

fn wanted() -> impl Strategy<Value = Wanted> {
    let back = prop::option::of(prop_oneof![-3..4i64, 0..30i64]);
    (
        key(),
        key(),
        back,
        any::<bool>(),
        any::<bool>(),
        0..6u8,
        any::<bool>(),
    )
        .prop_map(
            |(key, range_end, back, prev_kv, fragment, filters, progress_notify)| Wanted {
                key,
                range_end,
                back,
                prev_kv,
                fragment,
                filters,
                progress_notify,
            },
        )
}

fn op() -> impl Strategy<Value = Op> {
    let which = any::<prop::sample::Index>;
    let change = (
        0..9u8,
        prop::option::weighted(0.75, prop_oneof![4 => 0..20usize, 1 => 0..600usize]),
    );
    prop_oneof![
        2 => Just(Op::Open),
        1 => which().prop_map(Op::Close),
        6 => (which(), wanted()).prop_map(|(s, w)| Op::Create(s, w)),
        2 => which().prop_map(Op::Cancel),
        12 => prop::collection::vec(change, 1..5).prop_map(Op::Write),
        1 => (0..12u64, any::<bool>()).prop_map(|(back, prune)| Op::Compact(back, prune)),
        1 => Just(Op::Restore),
        2 => which().prop_map(Op::Progress),
        8 => (0..900u64, 1..12usize).prop_map(|(ms, budget)| Op::Advance(ms, budget)),
        6 => (which(), 1..1_500usize).prop_map(|(s, bytes)| Op::Take(s, bytes)),
    ]
}

struct World {
    store: Store,
    shard: WatchShard,
    now_ms: u64,
    streams: Vec<StreamId>,
    clients: Vec<Client>,
}

impl World {
    fn new() -> Self {
        let store = Store::new();
        let shard = shard(&store);
        Self {
            store,
            shard,
            now_ms: 0,
            streams: Vec::new(),
            clients: Vec::new(),
        }
    }

    fn step(&mut self, op: &Op) {
        let pick = |which: &prop::sample::Index, n: usize| (n > 0).then(|| which.index(n));
        match op {
            Op::Open => self.streams.push(self.shard.open_stream(self.now_ms)),
            Op::Close(which) => {
                if let Some(at) = pick(which, self.streams.len()) {
                    let stream = self.streams.swap_remove(at);
                    self.shard.close_stream(stream);
                    self.clients.retain(|client| client.stream != stream);
                }
            }
            Op::Create(which, wanted) => {
                if let Some(at) = pick(which, self.streams.len()) {
                    self.create(self.streams[at], wanted);
                }
            }
            Op::Cancel(which) => {
                if let Some(at) = pick(which, self.clients.len()) {
                    let client = &self.clients[at];
                    self.shard
                        .cancel(client.stream, client.watch_id, self.store.revision);
                }
            }
            Op::Write(changes) => self.write(changes),
            Op::Compact(back, prune) => {
                let at = self.store.revision.saturating_sub(*back).max(1);
                if i64::try_from(at).unwrap() > self.store.compacted {
                    // Physically only what the shard has walked.
                    self.store
                        .compact(at, *prune && self.shard.synced_main() >= at);
                }
            }
            Op::Restore => self.shard.restore(&self.store.published()),
            Op::Progress(which) => {
                if let Some(at) = pick(which, self.streams.len()) {
                    self.shard.progress(self.streams[at]);
                }
            }
            Op::Advance(ms, budget) => {
                self.now_ms += ms;
                let published = self.store.published();
                let more = self.shard.advance(&published, self.now_ms, *budget);
                assert_eq!(more, self.shard.min_walking() <= self.store.revision);
            }
            Op::Take(which, bytes) => {
                if let Some(at) = pick(which, self.streams.len()) {
                    self.take(self.streams[at], *bytes);
                }
            }
        }
    }

    fn write(&mut self, changes: &[(u8, Option<usize>)]) {
        let keys: Vec<Vec<u8>> = changes
            .iter()
            .map(|(n, _)| {
                if *n < 3 {
                    vec![*n]
                } else {
                    vec![n / 3 - 1, n % 3]
                }
            })
            .collect();
        let values: Vec<Option<Vec<u8>>> = changes
            .iter()
            .map(|(n, len)| len.map(|len| vec![*n; len]))
            .collect();
        let all: Vec<(&[u8], Option<&[u8]>)> = keys
            .iter()
            .zip(&values)
            .map(|(k, v)| (&k[..], v.as_deref()))
            .collect();
        self.store.write(&all);
    }

    fn create(&mut self, stream: StreamId, wanted: &Wanted) {
        let revision = self.store.revision;
        let start = wanted
            .back
            .map_or(0, |back| (revision as i64 - back).max(1));
        let before = self.shard.watchers();
        let request = CreateRequest {
            key: &wanted.key,
            range_end: &wanted.range_end,
            start_revision: start,
            watch_id: 0,
            progress_notify: wanted.progress_notify,
            prev_kv: wanted.prev_kv,
            fragment: wanted.fragment,
            no_put: wanted.filters == 1,
            no_delete: wanted.filters == 2,
        };
        self.shard.create(stream, &request, &self.store.published());
        if self.shard.watchers() == before {
            return;
        }
        let watch_id = self.shard.streams[&stream].next_watch_id - 1;
        let from = if start == 0 {
            revision + 1
        } else {
            start as u64
        };
        self.clients.push(Client {
            stream,
            watch_id,
            request: wanted.clone(),
            from,
            got: 0,
            covered: from - 1,
            last: 0,
            in_fragments: false,
            created: false,
            canceled: false,
        });
    }

    fn take(&mut self, stream: StreamId, bytes: usize) -> bool {
        let responses = self.shard.take_responses(stream, bytes);
        for response in &responses {
            self.receive(stream, response);
        }
        !responses.is_empty()
    }

    /// Checks a response as a client sees it.
    fn receive(&mut self, stream: StreamId, response: &Response) {
        let Self { store, clients, .. } = self;
        if response.watch_id == -1 {
            if response.created {
                assert!(response.canceled && !response.cancel_reason.is_empty());
                return;
            }
            let all = clients.iter_mut().filter(|c| c.stream == stream);
            for client in all.filter(|c| c.created && !c.canceled) {
                client.receive_progress(store, response.revision);
            }
            return;
        }
        let client = clients
            .iter_mut()
            .find(|c| c.stream == stream && c.watch_id == response.watch_id)
            .expect("only for watchers there are");
        assert!(!client.canceled, "nothing after the last response");
        assert!(response.created != client.created);
        if response.created {
            assert!(!response.canceled);
            client.created = true;
        } else if response.canceled {
            client.canceled = true;
            if response.compact_revision != 0 {
                assert!(response.compact_revision <= store.compacted);
                assert!(client.from.max(client.covered + 1) < response.compact_revision as u64);
                assert_eq!(response.revision, 0);
            }
        } else if response.events.is_empty() {
            assert!(client.request.progress_notify);
            client.receive_progress(store, response.revision);
        } else {
            client.receive_events(store, response);
        }
    }

    /// Makes room and walks until nothing is left to do.
    fn finish(&mut self) {
        loop {
            let published = self.store.published();
            while self.shard.advance(&published, self.now_ms, 5) {}
            let streams = self.streams.clone();
            let mut any = false;
            for stream in streams {
                any |= self.take(stream, 400);
            }
            if !any {
                break;
            }
        }
        assert_eq!(self.shard.queued_bytes(), 0);
        assert_eq!(self.shard.slow_watchers(), 0);
        let live = self.clients.iter().filter(|client| !client.canceled);
        assert_eq!(live.clone().count(), self.shard.watchers());
        for client in live {
            assert_eq!(client.got, client.events(&self.store, u64::MAX).count());
        }
    }
}

impl WatchShard {
    /// As `min_cursor`, without those that wait for room.
    fn min_walking(&self) -> u64 {
        self.lagging
            .first()
            .unwrap_or(u64::MAX)
            .min(self.synced.next)
    }
}

impl Client {
    /// Its events up to revision `to`, by looking at all there are.
    fn events<'a>(&'a self, store: &'a Store, to: u64) -> impl Iterator<Item = &'a Change> {
        let start = if self.request.key.is_empty() {
            &[0][..]
        } else {
            &self.request.key
        };
        let end = &self.request.range_end[..];
        store.changes.iter().filter(move |change| {
            let in_range = match end {
                [] => change.key == start,
                [0] => &change.key[..] >= start,
                end => &change.key[..] >= start && &change.key[..] < end,
            };
            let filtered = self.request.filters == if change.put { 1 } else { 2 };
            in_range && !filtered && (self.from..=to).contains(&change.main)
        })
    }

    /// It has all it was promised up to `revision`.
    fn receive_progress(&mut self, store: &Store, revision: u64) {
        assert!(!self.in_fragments);
        assert_eq!(self.got, self.events(store, revision).count());
        assert!(self.covered <= revision);
        self.covered = revision;
    }

    fn receive_events(&mut self, store: &Store, response: &Response) {
        if response.fragment {
            assert!(self.request.fragment);
        }
        if response.fragment || self.in_fragments {
            let bytes: usize = response.events.iter().map(|event| event.len() + 3).sum();
            assert!(response.events.len() == 1 || bytes < CONFIG.fragment_bytes_max);
        }
        let mut first = true;
        for event in &response.events {
            let all: Vec<&Change> = self.events(store, u64::MAX).collect();
            let change = all[self.got];
            let readable = i64::try_from(change.main).unwrap() > store.compacted;
            if self.request.prev_kv && readable {
                assert_eq!(event, &change.with_previous);
            } else if self.request.prev_kv {
                // Compacted before it was encoded, or after.
                assert!(event == &change.with_previous || event == &change.plain);
            } else {
                assert_eq!(event, &change.plain);
            }
            assert!(change.main <= response.revision);
            if first && !self.in_fragments {
                assert!(change.main > self.last, "one revision in one response");
                assert!(change.main > self.covered);
            }
            first = false;
            self.last = change.main;
            self.got += 1;
        }
        self.in_fragments = response.fragment;
        if !response.fragment {
            self.receive_progress(store, response.revision);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn every_client_gets_all_its_events_once(ops in prop::collection::vec(op(), 1..150)) {
        let mut world = World::new();
        for op in &ops {
            world.step(op);
        }
        world.finish();
    }
}
