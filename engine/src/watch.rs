//! The watchers of one shard: cursors in the RevTable, matched as revisions are published.
//!
//! Owned by one front shard; no other core touches it. Apply builds nothing for watches: when a new
//! View is published the shard walks its revisions ([`WatchShard::advance`]), matches each change
//! against its watchers, and queues responses on their streams. Each change is encoded once and
//! shared.
//!
//! A watcher is in one of three places:
//! - the synced cohort, which walks each revision once as it is published;
//! - a lagging cohort: it began in the past, or fell behind, and walks until it meets the next
//!   cohort, which it joins. Turns alternate between the nearest to the head, which is soon done,
//!   and the furthest behind, which gathers all others on its way: each revision is walked about
//!   twice at most, however many watchers lag;
//! - parked, as nothing but a cursor, because its stream has no room. It holds nobody up.
//!
//! Invariants: on a stream, for each watcher, revisions rise without gap or duplicate, a revision
//! is in one response (or the fragments of one), and progress is never ahead of events (I7).
//! Watchers behind the compact revision are canceled with it, but the synced cohort still walks
//! what was published before the compaction: physical compaction must wait for
//! [`WatchShard::synced_main`]. Everything queued is bounded by limits.rs; a single revision is
//! never split, so it may overshoot.
//!
//! Not here: the gRPC stream, permissions ([`WatchShard::refuse`] says no), header fields beyond
//! the revision, when to call.

mod cohort;
mod event;
mod matcher;
mod progress;
mod stream;
mod walk;

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use crate::error::ApiError;
use crate::limits::Limits;
use crate::mvcc::View;
use crate::revtable::RevSnapshot;
use cohort::{Cohort, Lagging, SYNCED};
use matcher::End;
pub use stream::Response;
use stream::Stream;

/// A stream of this shard, never used twice.
pub type StreamId = u64;
/// Place of a watcher in the shard's table; used again after it is gone.
type WatcherKey = u32;
type CohortId = u64;

/// In `watch_id` of a response: no watcher, or all of the stream.
pub const INVALID_WATCH_ID: i64 = -1;

const REASON_EMPTY_RANGE: &str = "mvcc: watcher range is empty";
const REASON_DUPLICATE_ID: &str = "mvcc: duplicate watch ID provided on the WatchStream";

/// What of a published View the watchers need.
#[derive(Clone, Copy)]
pub struct Published<'a> {
    /// Its main revision.
    pub revision: u64,
    /// Its compact revision, -1 before any compaction.
    pub compacted: i64,
    /// Its revisions.
    pub revs: &'a RevSnapshot,
}

impl<'v> From<&'v View> for Published<'v> {
    /// Borrows the pin that the View is borrowed from: who walks for long clones `revs` first.
    fn from(view: &'v View) -> Self {
        Self {
            revision: view.revision,
            compacted: view.compacted,
            revs: &view.revs,
        }
    }
}

/// A `WatchCreateRequest` whose permission was checked.
#[derive(Clone, Copy, Debug, Default)]
pub struct CreateRequest<'a> {
    /// Empty means the first key there can be.
    pub key: &'a [u8],
    /// Empty means `key` alone, a single 0 byte all keys from `key` on.
    pub range_end: &'a [u8],
    /// 0 means what comes next; may lie in the future.
    pub start_revision: i64,
    /// 0 lets the server choose.
    pub watch_id: i64,
    /// Periodic progress wanted.
    pub progress_notify: bool,
    /// Values before the changes wanted.
    pub prev_kv: bool,
    /// Large responses may be cut.
    pub fragment: bool,
    /// No PUT events.
    pub no_put: bool,
    /// No DELETE events.
    pub no_delete: bool,
}

/// Where a watcher stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Place {
    /// In the cohort, `at` among its members.
    Cohort { id: CohortId, at: usize },
    /// In none: it waits for room in its stream, or is on its way.
    Parked,
}

struct Watcher {
    stream: StreamId,
    watch_id: i64,
    key: Box<[u8]>,
    end: End,
    progress_notify: bool,
    prev_kv: bool,
    fragment: bool,
    no_put: bool,
    no_delete: bool,
    /// As the client gave it, 0 for none.
    start: u64,
    /// Takes no revision before this one; counts where it is after the cohort's next.
    from: u64,
    place: Place,
    /// Events collected in this walk and not yet queued, their revisions, how many these are.
    events: Vec<Bytes>,
    events_last: u64,
    revisions: usize,
    /// Everything up to this revision is queued, or was said to have passed.
    covered: u64,
    /// No event was sent since the last periodic progress was due.
    silent: bool,
}

/// All watchers of a shard.
#[derive(Default)]
struct Watchers {
    slots: Vec<Option<Watcher>>,
    free: Vec<WatcherKey>,
}

impl Watchers {
    fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    fn insert(&mut self, watcher: Watcher) -> WatcherKey {
        if let Some(key) = self.free.pop() {
            self.slots[key as usize] = Some(watcher);
            return key;
        }
        self.slots.push(Some(watcher));
        u32::try_from(self.slots.len() - 1).expect("limited")
    }

    fn remove(&mut self, key: WatcherKey) -> Watcher {
        self.free.push(key);
        self.slots[key as usize].take().expect("a key in use")
    }

    fn get(&self, key: WatcherKey) -> &Watcher {
        self.slots[key as usize].as_ref().expect("a key in use")
    }

    fn get_mut(&mut self, key: WatcherKey) -> &mut Watcher {
        self.slots[key as usize].as_mut().expect("a key in use")
    }
}

/// How a shard watches.
#[derive(Clone, Copy, Debug)]
pub struct WatchConfig {
    /// `--watch-progress-notify-interval`, milliseconds (etcd: ten minutes, at least 100 ms).
    pub progress_interval_ms: u64,
    /// A response of a watcher that allows fragments is cut below this, bytes
    /// (etcd: `--max-request-bytes` + 512 KiB).
    pub fragment_bytes_max: usize,
}

/// See the module.
pub struct WatchShard {
    limits: Limits,
    config: WatchConfig,
    streams: BTreeMap<StreamId, Stream>,
    last_stream: StreamId,
    watchers: Watchers,
    synced: Cohort,
    lagging: Lagging,
    /// Whose turn it is next among the lagging.
    nearest_turn: bool,
    /// Streams with parked watchers.
    parked: BTreeSet<StreamId>,
    /// Streams that wait for progress they asked for.
    asked: BTreeSet<StreamId>,
    /// When periodic progress is due.
    ticks: BTreeSet<(u64, StreamId)>,
    /// Streams whose queue began to fill since the caller last asked.
    ready: BTreeSet<StreamId>,
    /// Sum of the streams' bytes.
    bytes: usize,
    /// Of the current record; kept for its memory.
    hits: Vec<WatcherKey>,
    /// Watchers with collected events in the current walk; kept for its memory.
    touched: Vec<WatcherKey>,
}

/// Streams and watchers.
impl WatchShard {
    /// Without streams; everything up to main revision `revision` has passed.
    #[must_use]
    pub fn new(limits: Limits, config: WatchConfig, revision: u64) -> Self {
        assert!(config.progress_interval_ms > 0);
        Self {
            limits,
            config,
            streams: BTreeMap::new(),
            last_stream: 0,
            watchers: Watchers::default(),
            synced: Cohort::new(revision + 1),
            lagging: Lagging::default(),
            nearest_turn: true,
            parked: BTreeSet::new(),
            asked: BTreeSet::new(),
            ticks: BTreeSet::new(),
            ready: BTreeSet::new(),
            bytes: 0,
            hits: Vec::new(),
            touched: Vec::new(),
        }
    }

    /// Opens a stream without watchers.
    pub fn open_stream(&mut self, now_ms: u64) -> StreamId {
        self.last_stream += 1;
        let id = self.last_stream;
        let tick_ms = now_ms.saturating_add(self.tick_interval_ms(id));
        self.streams.insert(id, Stream::new(tick_ms));
        self.ticks.insert((tick_ms, id));
        id
    }

    /// Forgets a stream, its watchers and what is queued. Nothing happens when it is not open.
    pub fn close_stream(&mut self, id: StreamId) {
        let Some(stream) = self.streams.get(&id) else {
            return;
        };
        let watch_ids: Vec<i64> = stream.watchers.keys().copied().collect();
        for watch_id in watch_ids {
            self.remove(id, watch_id);
        }
        let stream = self.streams.remove(&id).expect("looked at above");
        assert!(stream.parked.is_empty());
        self.bytes -= stream.bytes();
        self.ticks.remove(&(stream.tick_ms, id));
        self.ready.remove(&id);
    }

    /// Creates a watcher, or says in the response why not.
    ///
    /// # Panics
    /// When the stream is not open.
    pub fn create(
        &mut self,
        stream: StreamId,
        request: &CreateRequest<'_>,
        published: &Published<'_>,
    ) {
        let key: &[u8] = if request.key.is_empty() {
            &[0]
        } else {
            request.key
        };
        let end = match request.range_end {
            [] => End::Single,
            [0] => End::Unbounded,
            end => End::Before(end.into()),
        };
        let Ok(start) = u64::try_from(request.start_revision) else {
            // etcd's answer to a negative revision.
            return self.refuse(stream, ApiError::Compacted.text(), published.revision);
        };
        if matches!(&end, End::Before(end) if key >= &**end) {
            return self.refuse(stream, REASON_EMPTY_RANGE, published.revision);
        }
        let ids = self.watchers.len() + self.stream_mut(stream).overtaken.len();
        if ids >= self.limits.watchers_per_shard_max {
            return self.refuse(stream, ApiError::TooManyRequests.text(), published.revision);
        }
        let Some(watch_id) = self.choose_watch_id(stream, request.watch_id) else {
            return self.refuse(stream, REASON_DUPLICATE_ID, published.revision);
        };
        let from = if start == 0 {
            published.revision + 1
        } else {
            start
        };
        let watcher = Watcher {
            stream,
            watch_id,
            key: key.into(),
            end,
            progress_notify: request.progress_notify,
            prev_kv: request.prev_kv,
            fragment: request.fragment,
            no_put: request.no_put,
            no_delete: request.no_delete,
            start,
            from,
            place: Place::Parked,
            events: Vec::new(),
            events_last: 0,
            revisions: 0,
            covered: from - 1,
            silent: true,
        };
        let key = self.watchers.insert(watcher);
        self.stream_mut(stream).watchers.insert(watch_id, key);
        let response = Response {
            watch_id,
            revision: published.revision,
            created: true,
            ..Response::default()
        };
        self.push(stream, response);
        if self.synced.is_empty() && self.synced.next <= published.revision {
            // Nobody to walk for.
            self.synced.next = published.revision + 1;
        }
        if i64::try_from(from).is_ok_and(|from| from < published.compacted) {
            // To be canceled, also where the synced cohort has not walked that far.
            self.lagging.insert(&mut self.watchers, key);
        } else {
            self.place(key);
        }
    }

    /// The id for a new watcher, `None` when the wanted one is taken.
    fn choose_watch_id(&mut self, stream: StreamId, wanted: i64) -> Option<i64> {
        let stream = self.stream_mut(stream);
        if wanted != 0 {
            return (!stream.is_taken(wanted)).then_some(wanted);
        }
        while stream.is_taken(stream.next_watch_id) {
            stream.next_watch_id += 1;
        }
        stream.next_watch_id += 1;
        Some(stream.next_watch_id - 1)
    }

    /// Answers a create request with `reason`; `revision` is the published one.
    ///
    /// # Panics
    /// When the stream is not open.
    pub fn refuse(&mut self, stream: StreamId, reason: &'static str, revision: u64) {
        let response = Response {
            watch_id: INVALID_WATCH_ID,
            revision,
            created: true,
            canceled: true,
            cancel_reason: reason,
            ..Response::default()
        };
        self.push(stream, response);
    }

    /// Cancels a watcher as its client asks, after what is queued for it. Nothing happens when
    /// there is none. `revision` is the published one.
    ///
    /// # Panics
    /// When the stream is not open.
    pub fn cancel(&mut self, stream: StreamId, watch_id: i64, revision: u64) {
        // As in etcd the id of a watcher that compaction canceled is in use until its client
        // cancels.
        if self.remove(stream, watch_id) || self.stream_mut(stream).overtaken.remove(&watch_id) {
            let response = Response {
                watch_id,
                revision,
                canceled: true,
                ..Response::default()
            };
            self.push(stream, response);
        }
    }

    /// The client asks for the progress of all watchers of its stream: it gets it when all are
    /// synced, once for all requests until then. As in etcd nothing happens for a stream without
    /// watchers, with one that has yet to begin, or with one that compaction canceled and the
    /// client has not. `revision` is the published one.
    ///
    /// # Panics
    /// When the stream is not open.
    pub fn progress(&mut self, id: StreamId, revision: u64) {
        let stream = &self.streams[&id];
        let begun = |key: &WatcherKey| self.watchers.get(*key).start <= revision;
        if stream.watchers.is_empty()
            || !stream.overtaken.is_empty()
            || !stream.watchers.values().all(begun)
        {
            return;
        }
        self.stream_mut(id).progress_asked = true;
        self.asked.insert(id);
    }

    /// Whether the caller may read another request from the client: otherwise it first takes
    /// responses.
    ///
    /// # Panics
    /// When the stream is not open.
    #[must_use]
    pub fn accepts_requests(&self, stream: StreamId) -> bool {
        !self.is_full(&self.streams[&stream])
    }

    /// The oldest responses of a stream, until they reach `bytes_max` together. Call
    /// [`Self::advance`] afterwards: there is room again.
    ///
    /// # Panics
    /// When the stream is not open.
    #[must_use]
    pub fn take_responses(&mut self, id: StreamId, bytes_max: usize) -> Vec<Response> {
        let stream = self.streams.get_mut(&id).expect("an open stream");
        let mut taken = Vec::new();
        let mut bytes = 0;
        while bytes < bytes_max {
            let Some((response, cost)) = stream.pop() else {
                break;
            };
            bytes += cost;
            taken.push(response);
        }
        self.bytes -= bytes;
        if stream.is_idle() {
            self.ready.remove(&id);
        } else {
            self.ready.insert(id);
        }
        taken
    }

    /// Streams that have responses to take, which began to fill or were not emptied since the last
    /// call.
    pub fn take_ready(&mut self) -> BTreeSet<StreamId> {
        core::mem::take(&mut self.ready)
    }

    fn stream_mut(&mut self, id: StreamId) -> &mut Stream {
        self.streams.get_mut(&id).expect("an open stream")
    }

    /// Forgets a watcher; whether there was one.
    fn remove(&mut self, id: StreamId, watch_id: i64) -> bool {
        let stream = self.streams.get_mut(&id).expect("an open stream");
        let Some(key) = stream.watchers.remove(&watch_id) else {
            return false;
        };
        match self.watchers.get(key).place {
            Place::Cohort { id: SYNCED, .. } => self.synced.remove(&mut self.watchers, key),
            Place::Cohort { id, .. } => self.lagging.remove(id, &mut self.watchers, key),
            Place::Parked => {
                stream.parked.remove(&key);
                if stream.parked.is_empty() {
                    self.parked.remove(&id);
                }
            }
        }
        if stream.watchers.is_empty() {
            stream.progress_asked = false;
            self.asked.remove(&id);
        }
        let watcher = self.watchers.remove(key);
        assert!(watcher.events.is_empty(), "collected only within a walk");
        true
    }

    /// Puts a watcher that stands nowhere into the cohort where it belongs.
    fn place(&mut self, key: WatcherKey) {
        if self.watchers.get(key).from >= self.synced.next {
            self.synced.insert(SYNCED, &mut self.watchers, key);
        } else {
            self.lagging.insert(&mut self.watchers, key);
        }
    }

    fn is_full(&self, stream: &Stream) -> bool {
        stream.bytes() >= self.limits.watch_stream_bytes_max
            || (self.bytes >= self.limits.watch_shard_bytes_max && stream.bytes() > 0)
    }

    fn push(&mut self, id: StreamId, response: Response) {
        let stream = self.streams.get_mut(&id).expect("an open stream");
        self.bytes += stream.push(response);
        self.ready.insert(id);
    }
}

/// Gauges and the store's side.
impl WatchShard {
    /// The main revision up to which the synced cohort has walked: what is after it must not be
    /// compacted away physically.
    #[must_use]
    pub fn synced_main(&self) -> u64 {
        self.synced.next - 1
    }

    /// The store was replaced by another member's snapshot: revisions that were not walked may be
    /// missing, so all synced watchers become lagging ones.
    pub fn restore(&mut self, published: &Published<'_>) {
        assert!(published.revision >= self.synced_main());
        let fresh = Cohort::new(published.revision + 1);
        let synced = core::mem::replace(&mut self.synced, fresh);
        if synced.next > published.revision {
            cohort::join(synced, &mut self.synced, &mut self.watchers);
        } else {
            self.lagging.put_new(synced, &mut self.watchers);
        }
    }

    /// The oldest revision that a watcher still has to walk.
    #[must_use]
    pub fn min_cursor(&self) -> u64 {
        let streams = self.parked.iter().map(|id| &self.streams[id]);
        let parked = streams
            .flat_map(|s| &s.parked)
            .map(|key| self.watchers.get(*key).from);
        parked
            .chain(self.lagging.first())
            .fold(self.synced.next, u64::min)
    }

    /// Open streams.
    #[must_use]
    pub fn streams(&self) -> usize {
        self.streams.len()
    }

    /// Watchers on all streams.
    #[must_use]
    pub fn watchers(&self) -> usize {
        self.watchers.len()
    }

    /// Watchers that are not synced.
    #[must_use]
    pub fn slow_watchers(&self) -> usize {
        let parked = self.parked.iter().map(|id| self.streams[id].parked.len());
        self.lagging.watchers() + parked.sum::<usize>()
    }

    /// Responses queued on all streams, bytes.
    #[must_use]
    pub fn queued_bytes(&self) -> usize {
        self.bytes
    }
}

#[cfg(test)]
mod tests;
