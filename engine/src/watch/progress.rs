//! Progress responses: periodic ones, and those that clients ask for.

use super::cohort::SYNCED;
use super::{INVALID_WATCH_ID, Place, Response, StreamId, WatchShard, WatcherKey};

impl WatchShard {
    /// When [`Self::advance`] must be called at the latest, for periodic progress.
    #[must_use]
    pub fn next_tick_ms(&self) -> Option<u64> {
        self.ticks.first().map(|tick| tick.0)
    }

    /// Up to a tenth longer than asked for, another for each stream, so that streams that were
    /// opened together are not due together.
    pub(super) fn tick_interval_ms(&self, id: StreamId) -> u64 {
        let interval = self.config.progress_interval_ms;
        let spread = interval / 10;
        // Fibonacci hashing: neighbours land far apart.
        let hash = id.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        if spread == 0 {
            interval
        } else {
            interval.saturating_add(hash % spread)
        }
    }

    /// Periodic progress for watchers that want it and had no event for an interval.
    pub(super) fn tick(&mut self, now_ms: u64) {
        while let Some(&(tick_ms, id)) = self.ticks.first().filter(|tick| tick.0 <= now_ms) {
            self.ticks.remove(&(tick_ms, id));
            let next_ms = now_ms.saturating_add(self.tick_interval_ms(id));
            self.ticks.insert((next_ms, id));
            let stream = self.stream_mut(id);
            stream.tick_ms = next_ms;
            let keys: Vec<WatcherKey> = stream.watchers.values().copied().collect();
            for key in keys {
                let ready = self.progress_ready(key) && !self.is_full(&self.streams[&id]);
                let revision = self.synced_main();
                let watcher = self.watchers.get_mut(key);
                if !watcher.progress_notify {
                    continue;
                }
                let silent = core::mem::replace(&mut watcher.silent, true);
                if silent && ready {
                    let watch_id = watcher.watch_id;
                    self.say_progress(key, revision);
                    self.push(
                        id,
                        Response {
                            watch_id,
                            revision,
                            ..Response::default()
                        },
                    );
                }
            }
        }
    }

    /// Progress that clients asked for, where all watchers of the stream are synced.
    pub(super) fn answer_progress(&mut self) {
        let revision = self.synced_main();
        let asked: Vec<StreamId> = self.asked.iter().copied().collect();
        for id in asked {
            let stream = &self.streams[&id];
            assert!(stream.progress_asked);
            if self.is_full(stream)
                || !stream
                    .watchers
                    .values()
                    .all(|key| self.progress_ready(*key))
            {
                continue;
            }
            let keys: Vec<WatcherKey> = stream.watchers.values().copied().collect();
            for key in keys {
                self.say_progress(key, revision);
            }
            self.stream_mut(id).progress_asked = false;
            self.asked.remove(&id);
            let watch_id = INVALID_WATCH_ID;
            self.push(
                id,
                Response {
                    watch_id,
                    revision,
                    ..Response::default()
                },
            );
        }
    }

    /// Whether the watcher has everything up to where the synced cohort is, and has begun.
    fn progress_ready(&self, key: WatcherKey) -> bool {
        let watcher = self.watchers.get(key);
        matches!(watcher.place, Place::Cohort { id: SYNCED, .. })
            && watcher.from <= self.synced.next
            && watcher.start < self.synced.next
    }

    /// Notes that a progress response is about to be queued.
    fn say_progress(&mut self, key: WatcherKey, revision: u64) {
        let watcher = self.watchers.get_mut(key);
        assert!(
            watcher.events.is_empty(),
            "progress comes after the events it covers"
        );
        assert!(watcher.covered <= revision, "progress never goes back");
        watcher.covered = revision;
    }
}
