//! Walking the revisions: matching, collecting, queueing, parking (`watch.rs` has the rules).

use super::cohort::{self, Cohort};
use super::event::Event;
use super::stream::fragments;
use super::{Published, Response, StreamId, WatchShard, Watcher, WatcherKey};
use crate::types::Revision;

/// Encoded bytes that cost as much of a budget as looking at a record.
const BYTES_PER_BUDGET_UNIT: usize = 4096;

impl WatchShard {
    /// Walks what is published and not walked, feeds watchers that lag, sends progress that is due.
    /// `budget` bounds the work: records looked at plus 4 KiB pieces encoded; a revision is
    /// finished once begun. True when there is more to do; call it after each View, after taking
    /// responses, and at [`Self::next_tick_ms`].
    ///
    /// # Panics
    /// When `published` is older than one given before.
    pub fn advance(&mut self, published: &Published<'_>, now_ms: u64, budget: usize) -> bool {
        assert!(budget > 0);
        assert!(published.revision >= self.synced_main());
        self.unpark();
        // Writers that never stop must not starve those who lag.
        let reserve = if self.lagging.is_empty() {
            0
        } else {
            budget / 4
        };
        let mut left = budget - reserve;
        if self.synced.is_empty() {
            self.synced.next = published.revision + 1;
        } else if self.synced.next <= published.revision {
            let mut synced = core::mem::take(&mut self.synced);
            self.walk(&mut synced, published, published.revision, &mut left);
            self.synced = synced;
        }
        left += reserve;
        while left > 0 && !self.lagging.is_empty() {
            self.turn(published, &mut left);
        }
        if self.synced.next > published.revision {
            self.tick(now_ms);
            self.answer_progress();
        }
        self.synced.next <= published.revision || !self.lagging.is_empty()
    }

    /// One turn of a lagging cohort.
    fn turn(&mut self, published: &Published<'_>, left: &mut usize) {
        let alone = self.lagging.len() == 1;
        let mut allowance = if alone { *left } else { left.div_ceil(2) };
        *left -= allowance;
        self.nearest_turn = !self.nearest_turn;
        let (id, mut cohort) = self.lagging.take(!self.nearest_turn).expect("not empty");
        // Paid for even when nothing is walked, so that the caller's loop ends.
        allowance -= 1;
        if let Ok(compacted) = u64::try_from(published.compacted)
            && cohort.next < compacted
        {
            self.cancel_compacted(&mut cohort, compacted);
        }
        let meets = self
            .lagging
            .after(cohort.next)
            .unwrap_or(u64::MAX)
            .min(self.synced.next);
        if cohort.next < meets && !cohort.is_empty() {
            self.walk(&mut cohort, published, meets - 1, &mut allowance);
        }
        *left += allowance;
        if cohort.is_empty() {
            return;
        }
        if cohort.next >= self.synced.next {
            cohort::join(cohort, &mut self.synced, &mut self.watchers);
        } else {
            self.lagging.put(id, cohort, &mut self.watchers);
        }
    }

    /// Cancels the members that compaction has overtaken, and moves the others to where it is.
    fn cancel_compacted(&mut self, cohort: &mut Cohort, compacted: u64) {
        let overtaken =
            |key: &WatcherKey| self.watchers.get(*key).from.max(cohort.next) < compacted;
        let keys: Vec<WatcherKey> = cohort.members().iter().copied().filter(overtaken).collect();
        cohort.next = compacted;
        for key in keys {
            cohort.remove(&mut self.watchers, key);
            let Watcher {
                stream, watch_id, ..
            } = *self.watchers.get(key);
            assert!(self.remove(stream, watch_id));
            self.stream_mut(stream).overtaken.insert(watch_id);
            let response = Response {
                watch_id,
                canceled: true,
                compact_revision: i64::try_from(compacted).expect("came from an i64"),
                ..Response::default()
            };
            self.push(stream, response);
        }
    }

    /// Walks a cohort that was taken out to main revision `to`, or as far as `left` goes, but at
    /// least one revision.
    fn walk(&mut self, cohort: &mut Cohort, published: &Published<'_>, to: u64, left: &mut usize) {
        assert!(cohort.next <= to);
        assert!(to <= published.revision);
        let mut reached = to;
        let mut current = 0;
        for record in published.revs.scan_to(Revision::new(cohort.next, 0), to) {
            let main = record.revision.main;
            if main != current {
                if *left == 0 && current != 0 {
                    reached = main - 1;
                    break;
                }
                current = main;
            }
            *left = left.saturating_sub(1);
            let mut hits = core::mem::take(&mut self.hits);
            cohort.matcher.find(record.key(), &mut hits);
            let mut event = Event::new(record);
            for key in hits.drain(..) {
                self.deliver(cohort, key, &mut event, published, left);
            }
            self.hits = hits;
        }
        let mut touched = core::mem::take(&mut self.touched);
        for key in touched.drain(..) {
            self.flush(key, reached);
        }
        self.touched = touched;
        cohort.next = reached + 1;
    }

    /// Gives a change to a watcher whose range holds its key.
    fn deliver(
        &mut self,
        cohort: &mut Cohort,
        key: WatcherKey,
        event: &mut Event<'_>,
        published: &Published<'_>,
        left: &mut usize,
    ) {
        let main = event.record().revision.main;
        let watcher = self.watchers.get(key);
        let filtered = if event.record().tombstone {
            watcher.no_delete
        } else {
            watcher.no_put
        };
        if main < watcher.from || filtered {
            return;
        }
        let stream_id = watcher.stream;
        let begins = watcher.events.is_empty() || watcher.events_last != main;
        if begins {
            let full = self.is_full(&self.streams[&stream_id]);
            let batch_full = watcher.revisions == self.limits.watch_batch_revisions_max;
            if full || batch_full {
                self.flush(key, main - 1);
            }
            if full {
                return self.park(cohort, key, main);
            }
        }
        let watcher = self.watchers.get_mut(key);
        assert!(main > watcher.covered, "no revision twice");
        let bytes = if watcher.prev_kv {
            event.with_previous(published.revs, published.compacted)
        } else {
            event.plain()
        };
        *left = left.saturating_sub(bytes.len() / BYTES_PER_BUDGET_UNIT);
        if watcher.events.is_empty() {
            self.touched.push(key);
        }
        if begins {
            watcher.revisions += 1;
            watcher.events_last = main;
        }
        let stream = self.streams.get_mut(&stream_id).expect("an open stream");
        self.bytes += stream.reserve(&bytes);
        watcher.events.push(bytes);
    }

    /// Queues what was collected for a watcher; it has everything up to `covered` then.
    fn flush(&mut self, key: WatcherKey, covered: u64) {
        let watcher = self.watchers.get_mut(key);
        if watcher.events.is_empty() {
            return;
        }
        assert!(
            watcher.events_last <= covered,
            "a response covers its events"
        );
        assert!(watcher.covered < covered);
        watcher.covered = covered;
        watcher.silent = false;
        watcher.revisions = 0;
        let response = Response {
            watch_id: watcher.watch_id,
            revision: covered,
            events: core::mem::take(&mut watcher.events),
            ..Response::default()
        };
        let stream = watcher.stream;
        if !watcher.fragment {
            return self.push(stream, response);
        }
        for piece in fragments(response, self.config.fragment_bytes_max) {
            self.push(stream, piece);
        }
    }

    /// Takes a watcher out of the cohort that is walking: it goes on at `from` when there is room.
    fn park(&mut self, cohort: &mut Cohort, key: WatcherKey, from: u64) {
        cohort.remove(&mut self.watchers, key);
        let watcher = self.watchers.get_mut(key);
        watcher.from = from;
        let stream_id = watcher.stream;
        self.stream_mut(stream_id).parked.insert(key);
        self.parked.insert(stream_id);
    }

    /// Lets the watchers of streams that have room again walk on.
    fn unpark(&mut self) {
        let streams: Vec<StreamId> = self.parked.iter().copied().collect();
        for id in streams {
            let stream = &self.streams[&id];
            // Half empty, so that it does not come back for each revision.
            let half_full = stream.bytes() > self.limits.watch_stream_bytes_max / 2;
            if half_full || self.is_full(stream) {
                continue;
            }
            self.parked.remove(&id);
            for key in core::mem::take(&mut self.stream_mut(id).parked) {
                self.place(key);
            }
        }
    }
}
