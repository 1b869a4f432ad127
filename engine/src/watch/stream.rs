//! The sending side of one watch stream: its responses in order, counted in bytes.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;

use super::WatcherKey;

/// What a queued event costs beside its bytes, bytes.
pub(super) const EVENT_OVERHEAD_BYTES: usize = 32;
/// What a queued response costs beside its events, bytes.
const RESPONSE_OVERHEAD_BYTES: usize = 128;
/// At least what an encoded response needs beside its events, bytes: header, ids, flags, reason.
const ENCODED_OVERHEAD_BYTES: usize = 128;
/// At least what an encoded event needs in a response beside its own bytes: tag and length.
const ENCODED_EVENT_OVERHEAD_BYTES: usize = 6;

/// A `WatchResponse`, but for the parts of its header that are the member's own.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Response {
    /// The watcher, or -1: a refused create, or progress of all watchers of the stream.
    pub watch_id: i64,
    /// The header's revision: with events or progress, the watcher has everything up to it; 0 when
    /// canceled by compaction, as in etcd.
    pub revision: u64,
    /// First response of a watcher, or refusal of one.
    pub created: bool,
    /// Last response of a watcher.
    pub canceled: bool,
    /// More of the same follows in the next response of this watcher.
    pub fragment: bool,
    /// What the watcher fell behind, when compaction canceled it; otherwise 0.
    pub compact_revision: i64,
    /// Why it was canceled; empty when the client asked for it or compaction did it.
    pub cancel_reason: &'static str,
    /// Encoded `mvccpb.Event`s in order of revision; shared with other streams of the shard.
    pub events: Vec<Bytes>,
}

impl Response {
    /// What it counts against the queue, bytes.
    fn cost(&self) -> usize {
        RESPONSE_OVERHEAD_BYTES + self.events.iter().map(event_cost).sum::<usize>()
    }
}

/// What an event counts against the queue, bytes.
pub(super) fn event_cost(event: &Bytes) -> usize {
    EVENT_OVERHEAD_BYTES + event.len()
}

/// See the module. Fields are the shard's to use.
pub(super) struct Stream {
    pub(super) watchers: BTreeMap<i64, WatcherKey>,
    /// Tried first when the server chooses an id.
    pub(super) next_watch_id: i64,
    /// Watchers that wait for room in the queue.
    pub(super) parked: BTreeSet<WatcherKey>,
    /// The client asked for progress and has not got it.
    pub(super) progress_asked: bool,
    /// When periodic progress is next due.
    pub(super) tick_ms: u64,
    queue: VecDeque<Response>,
    /// Queued responses, and events collected for one that is not queued yet.
    bytes: usize,
}

impl Stream {
    pub(super) fn new(tick_ms: u64) -> Self {
        Self {
            watchers: BTreeMap::new(),
            next_watch_id: 0,
            parked: BTreeSet::new(),
            progress_asked: false,
            tick_ms,
            queue: VecDeque::new(),
            bytes: 0,
        }
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn is_idle(&self) -> bool {
        self.queue.is_empty()
    }

    /// Counts an event that a later `push` brings; returns its cost.
    pub(super) fn reserve(&mut self, event: &Bytes) -> usize {
        self.bytes += event_cost(event);
        event_cost(event)
    }

    /// Queues a response, its events reserved before; returns what it costs more.
    pub(super) fn push(&mut self, response: Response) -> usize {
        self.queue.push_back(response);
        self.bytes += RESPONSE_OVERHEAD_BYTES;
        RESPONSE_OVERHEAD_BYTES
    }

    pub(super) fn pop(&mut self) -> Option<(Response, usize)> {
        let response = self.queue.pop_front()?;
        let cost = response.cost();
        self.bytes -= cost;
        Some((response, cost))
    }
}

/// Cuts a response so that each piece encodes to less than `bytes_max`, or has a single event.
pub(super) fn fragments(mut response: Response, bytes_max: usize) -> Vec<Response> {
    let encoded = |event: &Bytes| event.len() + ENCODED_EVENT_OVERHEAD_BYTES;
    let events = core::mem::take(&mut response.events);
    let mut pieces = Vec::new();
    let mut piece = response.clone();
    let mut bytes = ENCODED_OVERHEAD_BYTES;
    for event in events {
        if !piece.events.is_empty() && bytes + encoded(&event) >= bytes_max {
            piece.fragment = true;
            pieces.push(core::mem::replace(&mut piece, response.clone()));
            bytes = ENCODED_OVERHEAD_BYTES;
        }
        bytes += encoded(&event);
        piece.events.push(event);
    }
    pieces.push(piece);
    pieces
}
