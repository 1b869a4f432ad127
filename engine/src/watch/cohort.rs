//! Watchers that walk the revisions together: all that stand at the same revision.
//!
//! Owned by the shard (`watch.rs`). One cohort is the synced one, which has walked all that is
//! published (or is about to); the others lag behind it, each at a revision of its own.

use std::collections::BTreeMap;

use super::matcher::Matcher;
use super::{CohortId, Place, WatcherKey, Watchers};

/// The synced cohort; never in [`Lagging`].
pub(super) const SYNCED: CohortId = 0;

/// See the module.
#[derive(Default)]
pub(super) struct Cohort {
    /// The main revision to be walked next. A member takes nothing before its own `from`.
    pub(super) next: u64,
    pub(super) matcher: Matcher,
    members: Vec<WatcherKey>,
}

impl Cohort {
    pub(super) fn new(next: u64) -> Self {
        Self {
            next,
            ..Self::default()
        }
    }

    pub(super) fn members(&self) -> &[WatcherKey] {
        &self.members
    }

    pub(super) fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// Adds a watcher that stands nowhere, at this cohort's revision or after it.
    pub(super) fn insert(&mut self, id: CohortId, watchers: &mut Watchers, key: WatcherKey) {
        let at = self.members.len();
        self.members.push(key);
        let watcher = watchers.get_mut(key);
        assert!(matches!(watcher.place, Place::Parked));
        watcher.place = Place::Cohort { id, at };
        self.matcher.insert(&watcher.key, &watcher.end, key);
    }

    /// Takes a member out; it stands nowhere then.
    pub(super) fn remove(&mut self, watchers: &mut Watchers, key: WatcherKey) {
        let watcher = watchers.get_mut(key);
        let Place::Cohort { at, .. } = core::mem::replace(&mut watcher.place, Place::Parked) else {
            panic!("a member knows its place");
        };
        self.matcher.remove(&watcher.key, &watcher.end, key);
        assert!(self.members.swap_remove(at) == key);
        if let Some(moved) = self.members.get(at) {
            match &mut watchers.get_mut(*moved).place {
                Place::Cohort { at: moved_at, .. } => *moved_at = at,
                Place::Parked => panic!("a member knows its place"),
            }
        }
    }

    /// Moves all members to `target`, which stands where this cohort stands, or before and then all
    /// members start later. What is left of this cohort is to be dropped.
    fn merge_into(&mut self, id: CohortId, target: &mut Self, watchers: &mut Watchers) {
        assert!(target.next <= self.next);
        for key in core::mem::take(&mut self.members) {
            let watcher = watchers.get_mut(key);
            assert!(target.next == self.next || watcher.from >= self.next);
            watcher.place = Place::Parked;
            target.insert(id, watchers, key);
        }
    }
}

/// The cohorts behind the synced one, by the revision they stand at, each at another.
#[derive(Default)]
pub(super) struct Lagging {
    cohorts: BTreeMap<CohortId, Cohort>,
    order: BTreeMap<u64, CohortId>,
    last_id: CohortId,
}

impl Lagging {
    pub(super) fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.order.len()
    }

    /// Watchers in all of them.
    pub(super) fn watchers(&self) -> usize {
        self.cohorts
            .values()
            .map(|cohort| cohort.members.len())
            .sum()
    }

    /// The revision of the one furthest behind.
    pub(super) fn first(&self) -> Option<u64> {
        self.order.first_key_value().map(|entry| *entry.0)
    }

    /// Adds a watcher that stands nowhere, at its own `from`.
    pub(super) fn insert(&mut self, watchers: &mut Watchers, key: WatcherKey) {
        let from = watchers.get(key).from;
        let id = match self.order.get(&from) {
            Some(id) => *id,
            None => self.add(Cohort::new(from)),
        };
        let cohort = self.cohorts.get_mut(&id).expect("in the order");
        cohort.insert(id, watchers, key);
    }

    /// Takes a member of cohort `id` out.
    pub(super) fn remove(&mut self, id: CohortId, watchers: &mut Watchers, key: WatcherKey) {
        let cohort = self.cohorts.get_mut(&id).expect("a member knows its place");
        cohort.remove(watchers, key);
        if cohort.is_empty() {
            self.order.remove(&cohort.next);
            self.cohorts.remove(&id);
        }
    }

    /// Takes out the cohort nearest to the head, or the one furthest behind, to walk it.
    pub(super) fn take(&mut self, nearest: bool) -> Option<(CohortId, Cohort)> {
        let entry = if nearest {
            self.order.pop_last()
        } else {
            self.order.pop_first()
        };
        let id = entry?.1;
        Some((id, self.cohorts.remove(&id).expect("in the order")))
    }

    /// The first revision at or after `from` at which a cohort stands.
    pub(super) fn after(&self, from: u64) -> Option<u64> {
        self.order.range(from..).next().map(|entry| *entry.0)
    }

    /// Puts a cohort back that was taken out and has walked, into one that stands there if any.
    pub(super) fn put(&mut self, id: CohortId, mut cohort: Cohort, watchers: &mut Watchers) {
        let Some(&there) = self.order.get(&cohort.next) else {
            self.order.insert(cohort.next, id);
            self.cohorts.insert(id, cohort);
            return;
        };
        let target = self.cohorts.get_mut(&there).expect("in the order");
        if target.members.len() >= cohort.members.len() {
            cohort.merge_into(there, target, watchers);
            return;
        }
        // The smaller moves, so that a watcher moves O(log n) times.
        target.merge_into(id, &mut cohort, watchers);
        self.cohorts.remove(&there);
        self.order.insert(cohort.next, id);
        self.cohorts.insert(id, cohort);
    }

    /// Adds a cohort of its own, its members told where they are.
    pub(super) fn put_new(&mut self, mut cohort: Cohort, watchers: &mut Watchers) {
        if cohort.is_empty() {
            return;
        }
        let id = match self.order.get(&cohort.next) {
            Some(id) => *id,
            None => self.add(Cohort::new(cohort.next)),
        };
        let target = self.cohorts.get_mut(&id).expect("in the order");
        cohort.merge_into(id, target, watchers);
    }

    fn add(&mut self, cohort: Cohort) -> CohortId {
        // Never used twice: 2^64 cohorts do not come about.
        self.last_id += 1;
        assert!(self.last_id != SYNCED);
        self.order.insert(cohort.next, self.last_id);
        self.cohorts.insert(self.last_id, cohort);
        self.last_id
    }
}

/// Joins a cohort that has caught up to the synced one.
pub(super) fn join(mut cohort: Cohort, synced: &mut Cohort, watchers: &mut Watchers) {
    cohort.merge_into(SYNCED, synced, watchers);
}
