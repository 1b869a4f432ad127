//! The lessor: which leases there are, which keys hang on them, and on the leader when they expire.
//!
//! Owned by the sequencer's core. Two kinds of state, kept apart in the types:
//! - replicated ([`Lease`]): granted TTL, last checkpointed remaining TTL, attached keys. Changed
//!   by apply only, equal on all members (I8), never touched by time;
//! - primary (`Primary`): the leader's clocks. Built by [`Lessor::promote`], dropped by
//!   [`Lessor::demote`]. All times are `now_ms`, a monotonic count in milliseconds that the caller
//!   passes and that means nothing to another process.
//!
//! Invariants: a lease ends only by an applied revoke (I10), so expiry merely names candidates;
//! between that and the outcome the lease cannot be renewed. Ids come out in an order that depends
//! on state alone. A lease's time is never shorter than its TTL; it may be longer.
//!
//! After a restart or a new leader a lease runs for its last checkpointed remaining TTL, else for
//! the granted one. A lease is checkpointed when it ran for the checkpoint interval since its last
//! renewal (etcd counts from its last checkpoint, so that a kept-alive lease costs two log entries
//! an interval for nothing).
//!
//! Not here: deleting the keys of a revoked lease (apply does, in one transaction), proposing
//! (the sequencer), which term may revoke, permissions, lease ids for requests that bring none.

use std::collections::{BTreeMap, BTreeSet, btree_set};

use crate::error::ApiError;
use crate::limits::Limits;
use crate::types::{Index, LeaseId};

/// The longest TTL that may be granted, seconds, as in etcd.
pub const TTL_SECONDS_MAX: i64 = 9_000_000_000;

/// Queue entries that one call looks at for each lease it may return: renewals leave entries that
/// are early and must only be moved.
const LOOKS_PER_RESULT: usize = 8;

const MS_PER_SECOND: u64 = 1000;

/// etcd's shortest TTL, seconds: one and a half election timeouts, rounded up.
#[must_use]
pub const fn min_ttl_seconds(election_ticks: u32, heartbeat_ms: u32) -> i64 {
    let ms = (3 * election_ticks as i64 / 2) * heartbeat_ms as i64;
    (ms + 999) / 1000
}

/// The replicated state of one lease.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Lease {
    ttl: i64,
    remaining: i64,
    granted_index: Index,
    keys: BTreeSet<Box<[u8]>>,
}

impl Lease {
    /// Granted TTL, seconds, at least the lessor's minimum.
    #[must_use]
    pub fn granted_ttl(&self) -> i64 {
        self.ttl
    }

    /// Last checkpointed remaining TTL, seconds; 0 for none.
    #[must_use]
    pub fn remaining_ttl(&self) -> i64 {
        self.remaining
    }

    /// Log index of the grant.
    #[must_use]
    pub fn granted_index(&self) -> Index {
        self.granted_index
    }

    /// Attached keys in key order.
    pub fn keys(&self) -> impl ExactSizeIterator<Item = &[u8]> {
        self.keys.iter().map(|key| &**key)
    }

    /// What the lease runs for when a clock starts on it, milliseconds.
    fn run_ms(&self) -> u64 {
        let seconds = if self.remaining > 0 {
            self.remaining
        } else {
            self.ttl
        };
        u64::try_from(seconds).expect("a TTL is positive") * MS_PER_SECOND
    }
}

/// Keys of a lease that [`Lessor::remove`] took out, in key order, to be deleted by apply.
///
/// They are handed over, not copied, and freed as they are consumed.
pub type RevokedKeys = btree_set::IntoIter<Box<[u8]>>;

/// What became of a [`Lessor::renew`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Renewal {
    /// The lease runs for its granted TTL from now; seconds.
    Renewed {
        /// Granted TTL, seconds.
        ttl: i64,
    },
    /// A checkpoint with remaining TTL 0 must be proposed for this lease; once it is applied the
    /// caller renews again. Otherwise the renewal would not outlive the leader.
    ResetFirst,
    /// Its expiry is proposed. The caller waits for [`Lessor::remove`] and answers "not found", or
    /// for [`Lessor::expiry_failed`] or [`Lessor::demote`] and renews again.
    Pending,
    /// There is no such lease.
    NotFound,
    /// Only the leader renews.
    NotPrimary,
}

/// What a lease has left.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TimeToLive {
    /// Granted TTL, seconds.
    pub granted: i64,
    /// Whole seconds until expiry, negative when overdue; `None` where no clock runs (not leader).
    pub remaining: Option<i64>,
}

/// The leader's clock for one lease.
#[derive(Clone, Copy)]
struct Timer {
    expiry_ms: u64,
    /// Last start or renewal.
    refreshed_ms: u64,
    /// Its entry in `Primary::expiries`: before `expiry_ms` when a renewal left it behind, after it
    /// when a proposal failed and is to be repeated, `None` while the expiry is proposed.
    expiry_queued_ms: Option<u64>,
    /// Its entry in `Primary::checkpoints`.
    checkpoint_queued_ms: Option<u64>,
    /// A checkpoint is proposed and not yet applied.
    checkpoint_proposed: bool,
}

impl Timer {
    fn start(expiry_ms: u64, now_ms: u64, interval_ms: Option<u64>) -> Self {
        let mut timer = Self {
            expiry_ms,
            refreshed_ms: now_ms,
            expiry_queued_ms: Some(expiry_ms),
            checkpoint_queued_ms: None,
            checkpoint_proposed: false,
        };
        timer.checkpoint_queued_ms = timer.next_checkpoint(now_ms, interval_ms);
        timer
    }

    /// An interval after `from_ms`, if the lease lives to see it.
    fn next_checkpoint(&self, from_ms: u64, interval_ms: Option<u64>) -> Option<u64> {
        let due_ms = from_ms.saturating_add(interval_ms?);
        (due_ms < self.expiry_ms).then_some(due_ms)
    }
}

/// The leader's clocks.
#[derive(Default)]
struct Primary {
    timers: BTreeMap<LeaseId, Timer>,
    /// One entry for each timer whose expiry is not proposed.
    expiries: BTreeSet<(u64, LeaseId)>,
    checkpoints: BTreeSet<(u64, LeaseId)>,
    /// Granted since the last call that brought the time: apply has no clock.
    unstarted: Vec<LeaseId>,
}

/// All leases; see the module.
pub struct Lessor {
    ttl_seconds_min: i64,
    /// `None` when leases are not checkpointed.
    checkpoint_interval_ms: Option<u64>,
    expiries_per_second_max: u64,
    leases: BTreeMap<LeaseId, Lease>,
    primary: Option<Primary>,
}

impl Lessor {
    /// A lessor without leases, not primary. `ttl_seconds_min` is at least 1 (see
    /// [`min_ttl_seconds`]); `checkpoint_interval_ms` of `None` turns checkpoints off (etcd: five
    /// minutes).
    ///
    /// To rebuild one: `restore` each lease and `attach` each key.
    #[must_use]
    pub fn new(ttl_seconds_min: i64, checkpoint_interval_ms: Option<u64>, limits: &Limits) -> Self {
        assert!((1..=TTL_SECONDS_MAX).contains(&ttl_seconds_min));
        assert!(checkpoint_interval_ms != Some(0));
        assert!(limits.lease_expiries_per_second_max > 0);
        Self {
            ttl_seconds_min,
            checkpoint_interval_ms,
            expiries_per_second_max: limits.lease_expiries_per_second_max,
            leases: BTreeMap::new(),
            primary: None,
        }
    }

    /// Applies a grant and returns the effective TTL, seconds: a short one is raised to the
    /// minimum.
    ///
    /// # Errors
    /// `LeaseNotFound` for id 0, `LeaseTtlTooLarge`, `LeaseExist`, checked in this order as etcd
    /// does.
    pub fn grant(&mut self, id: LeaseId, ttl: i64) -> Result<i64, ApiError> {
        if id == 0 {
            return Err(ApiError::LeaseNotFound);
        }
        if ttl > TTL_SECONDS_MAX {
            return Err(ApiError::LeaseTtlTooLarge);
        }
        if self.leases.contains_key(&id) {
            return Err(ApiError::LeaseExist);
        }
        let ttl = ttl.max(self.ttl_seconds_min);
        let lease = Lease {
            ttl,
            remaining: 0,
            granted_index: 0,
            keys: BTreeSet::new(),
        };
        self.leases.insert(id, lease);
        if let Some(primary) = &mut self.primary {
            primary.unstarted.push(id);
        }
        Ok(ttl)
    }

    /// Notes by which log entry the lease was granted: it tells it from an earlier one of the same
    /// id.
    ///
    /// # Panics
    /// When there is no such lease.
    pub fn set_granted_index(&mut self, id: LeaseId, index: Index) {
        let lease = self.leases.get_mut(&id).expect("just granted");
        lease.granted_index = index;
    }

    /// Whether there is such a lease, granted by entry `index` or before.
    #[must_use]
    pub fn was_granted_by(&self, id: LeaseId, index: Index) -> bool {
        let lease = self.leases.get(&id);
        lease.is_some_and(|lease| lease.granted_index <= index)
    }

    /// Takes over a lease from a checkpoint: its TTL as granted, whatever the minimum is by now,
    /// and its remaining TTL, 0 for none; seconds.
    ///
    /// # Errors
    /// When no lessor could have such a lease: `LeaseNotFound` for id 0, `LeaseExist`,
    /// `LeaseTtlTooLarge` for a TTL outside of what may be.
    pub fn restore(&mut self, id: LeaseId, ttl: i64, remaining: i64) -> Result<(), ApiError> {
        if !(1..=TTL_SECONDS_MAX).contains(&ttl) || !(0..=ttl).contains(&remaining) {
            return Err(ApiError::LeaseTtlTooLarge);
        }
        self.grant(id, ttl)?;
        let lease = self.leases.get_mut(&id).expect("just granted");
        (lease.ttl, lease.remaining) = (ttl, remaining);
        Ok(())
    }

    /// Applies the lease's end and hands over its keys in key order, for apply to delete in one
    /// transaction; renewals that wait for this id are to be answered "not found".
    /// `None` when there is no such lease.
    pub fn remove(&mut self, id: LeaseId) -> Option<RevokedKeys> {
        let lease = self.leases.remove(&id)?;
        if let Some(primary) = &mut self.primary {
            primary.forget(id);
        }
        Some(lease.keys.into_iter())
    }

    /// Applies the attachment of `key`, which must hang on no other lease.
    ///
    /// # Panics
    /// When there is no such lease: apply has checked.
    pub fn attach(&mut self, id: LeaseId, key: &[u8]) {
        let lease = self.leases.get_mut(&id).expect("apply checked the lease");
        if !lease.keys.contains(key) {
            lease.keys.insert(key.into());
        }
    }

    /// Applies the detachment of `key`; nothing happens when it, or the lease, is gone.
    pub fn detach(&mut self, id: LeaseId, key: &[u8]) {
        if let Some(lease) = self.leases.get_mut(&id) {
            lease.keys.remove(key);
        }
    }

    /// Applies a checkpoint of the remaining TTL, seconds; 0 clears it. Running clocks go on: it
    /// counts when the next one starts. Nothing happens when there is no such lease.
    pub fn checkpoint(&mut self, id: LeaseId, remaining: i64) {
        let Some(lease) = self.leases.get_mut(&id) else {
            return;
        };
        lease.remaining = remaining.clamp(0, lease.ttl);
        let timer = self.primary.as_mut().and_then(|p| p.timers.get_mut(&id));
        if let Some(timer) = timer {
            timer.checkpoint_proposed = false;
        }
    }

    /// The lease, if there is one.
    #[must_use]
    pub fn get(&self, id: LeaseId) -> Option<&Lease> {
        self.leases.get(&id)
    }

    /// Whether there is such a lease.
    #[must_use]
    pub fn contains(&self, id: LeaseId) -> bool {
        self.leases.contains_key(&id)
    }

    /// All leases in id order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (LeaseId, &Lease)> {
        self.leases.iter().map(|(id, lease)| (*id, lease))
    }

    /// Leases there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.leases.len()
    }

    /// Whether there is no lease.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.leases.is_empty()
    }

    /// All ids: on the leader by expiry, as etcd lists them, elsewhere by id.
    #[must_use]
    pub fn ids(&self) -> Vec<LeaseId> {
        let mut ids: Vec<LeaseId> = self.leases.keys().copied().collect();
        if let Some(primary) = &self.primary {
            let expiry = |id: &LeaseId| primary.timers.get(id).map_or(u64::MAX, |t| t.expiry_ms);
            ids.sort_by_cached_key(expiry);
        }
        ids
    }

    /// What the lease has left; `None` when there is no such lease.
    #[must_use]
    pub fn time_to_live(&self, id: LeaseId, now_ms: u64) -> Option<TimeToLive> {
        let lease = self.leases.get(&id)?;
        let remaining = self.primary.as_ref().map(|primary| {
            let expiry_ms = primary
                .timers
                .get(&id)
                .map_or(now_ms.saturating_add(lease.run_ms()), |t| t.expiry_ms);
            // Whole seconds towards zero, overdue ones negative, as etcd's.
            let whole = |ms: u64| i64::try_from(ms / MS_PER_SECOND).unwrap_or(i64::MAX);
            whole(expiry_ms.saturating_sub(now_ms)) - whole(now_ms.saturating_sub(expiry_ms))
        });
        Some(TimeToLive {
            granted: lease.ttl,
            remaining,
        })
    }
}

/// The leader's side.
impl Lessor {
    /// Whether clocks run here.
    #[must_use]
    pub fn is_primary(&self) -> bool {
        self.primary.is_some()
    }

    /// Starts a clock on each lease: what it has left plus `extend_ms` (the election timeout), and
    /// where many would expire together later still, so that their holders have time to renew.
    /// Costs O(n log n); forgets what an earlier term proposed.
    pub fn promote(&mut self, now_ms: u64, extend_ms: u64) {
        let start_ms = now_ms.saturating_add(extend_ms);
        let mut order: Vec<(u64, LeaseId)> = self
            .leases
            .iter()
            .map(|(id, lease)| (start_ms.saturating_add(lease.run_ms()), *id))
            .collect();
        order.sort_unstable();
        // Fewer leases than may expire in a second cannot pile up.
        if order.len() as u64 >= self.expiries_per_second_max {
            spread(&mut order, self.expiries_per_second_max);
        }
        let mut primary = Primary::default();
        for &(expiry_ms, id) in &order {
            let timer = Timer::start(expiry_ms, now_ms, self.checkpoint_interval_ms);
            primary.timers.insert(id, timer);
            let due_ms = timer.checkpoint_queued_ms;
            primary.checkpoints.extend(due_ms.map(|due| (due, id)));
        }
        primary.expiries = order.into_iter().collect();
        self.primary = Some(primary);
    }

    /// Stops all clocks. Renewals that wait are to be renewed elsewhere.
    pub fn demote(&mut self) {
        self.primary = None;
    }

    /// Renews a lease for its granted TTL, unless its expiry is already proposed: overdue is not
    /// too late, proposed is.
    pub fn renew(&mut self, id: LeaseId, now_ms: u64) -> Renewal {
        self.start_clocks(now_ms);
        let Some(primary) = &mut self.primary else {
            return Renewal::NotPrimary;
        };
        let Some(lease) = self.leases.get(&id) else {
            return Renewal::NotFound;
        };
        let timer = primary.timers.get_mut(&id).expect("each lease has a clock");
        let Some(queued_ms) = timer.expiry_queued_ms else {
            return Renewal::Pending;
        };
        // Also keeps a new checkpoint from being proposed between the reset and the next attempt.
        timer.refreshed_ms = now_ms;
        // One that is proposed and not applied would set the remaining TTL after this renewal.
        if lease.remaining > 0 || timer.checkpoint_proposed {
            return Renewal::ResetFirst;
        }
        timer.expiry_ms = now_ms.saturating_add(lease.run_ms());
        if timer.expiry_ms < queued_ms {
            // A promotion had given it more than its TTL.
            primary.expiries.remove(&(queued_ms, id));
            primary.expiries.insert((timer.expiry_ms, id));
            timer.expiry_queued_ms = Some(timer.expiry_ms);
        }
        if timer.checkpoint_queued_ms.is_none() {
            timer.checkpoint_queued_ms = timer.next_checkpoint(now_ms, self.checkpoint_interval_ms);
            let due_ms = timer.checkpoint_queued_ms;
            primary.checkpoints.extend(due_ms.map(|due| (due, id)));
        }
        Renewal::Renewed { ttl: lease.ttl }
    }

    /// At most `max` leases that have expired, in order of expiry (then id), each returned once:
    /// the caller proposes their revokes. Call again while [`Self::next_deadline_ms`] is not after
    /// `now_ms`; a call may return none and still have made headway.
    #[must_use]
    pub fn expired(&mut self, now_ms: u64, max: usize) -> Vec<LeaseId> {
        self.start_clocks(now_ms);
        let Some(primary) = &mut self.primary else {
            return Vec::new();
        };
        let mut ids = Vec::new();
        let mut looks = max.saturating_mul(LOOKS_PER_RESULT);
        while ids.len() < max && looks > 0 {
            let Some(&(queued_ms, id)) = primary.expiries.first().filter(|e| e.0 <= now_ms) else {
                break;
            };
            looks -= 1;
            primary.expiries.pop_first();
            let timer = primary.timers.get_mut(&id).expect("queued means clocked");
            assert!(timer.expiry_queued_ms == Some(queued_ms));
            if queued_ms < timer.expiry_ms {
                timer.expiry_queued_ms = Some(timer.expiry_ms);
                primary.expiries.insert((timer.expiry_ms, id));
            } else {
                timer.expiry_queued_ms = None;
                ids.push(id);
            }
        }
        ids
    }

    /// The proposed revoke of an expired lease was dropped and can never be applied: the lease may
    /// be renewed again, and is not returned as expired before `retry_ms`.
    pub fn expiry_failed(&mut self, id: LeaseId, retry_ms: u64) {
        let Some(primary) = &mut self.primary else {
            return;
        };
        let Some(timer) = primary.timers.get_mut(&id) else {
            return;
        };
        if timer.expiry_queued_ms.is_some() {
            return;
        }
        let queued_ms = timer.expiry_ms.max(retry_ms);
        timer.expiry_queued_ms = Some(queued_ms);
        primary.expiries.insert((queued_ms, id));
    }

    /// At most `max` leases whose remaining TTL (seconds, rounded up) is to be checkpointed: the
    /// caller proposes them in one entry. One whose proposal is dropped comes again an interval
    /// later.
    #[must_use]
    pub fn due_checkpoints(&mut self, now_ms: u64, max: usize) -> Vec<(LeaseId, i64)> {
        self.start_clocks(now_ms);
        let (Some(primary), Some(interval_ms)) = (&mut self.primary, self.checkpoint_interval_ms)
        else {
            return Vec::new();
        };
        let mut due = Vec::new();
        let mut looks = max.saturating_mul(LOOKS_PER_RESULT);
        while due.len() < max && looks > 0 {
            let Some(&(queued_ms, id)) = primary.checkpoints.first().filter(|c| c.0 <= now_ms)
            else {
                break;
            };
            looks -= 1;
            primary.checkpoints.pop_first();
            let timer = primary.timers.get_mut(&id).expect("queued means clocked");
            assert!(timer.checkpoint_queued_ms == Some(queued_ms));
            timer.checkpoint_queued_ms = None;
            if timer.expiry_ms <= now_ms {
                continue;
            }
            let mut from_ms = timer.refreshed_ms;
            if from_ms.saturating_add(interval_ms) <= now_ms {
                let left_ms = timer.expiry_ms - now_ms;
                let left = i64::try_from(left_ms.div_ceil(MS_PER_SECOND)).unwrap_or(i64::MAX);
                // A promotion's extension may leave more than was granted.
                if left < self.leases[&id].ttl {
                    timer.checkpoint_proposed = true;
                    due.push((id, left));
                }
                from_ms = now_ms;
            }
            timer.checkpoint_queued_ms = timer.next_checkpoint(from_ms, Some(interval_ms));
            let next_ms = timer.checkpoint_queued_ms;
            primary.checkpoints.extend(next_ms.map(|next| (next, id)));
        }
        due
    }

    /// When [`Self::expired`] or [`Self::due_checkpoints`] may have something: not later than the
    /// first of their deadlines, possibly earlier. `None` when nothing will ever be due; 0 when a
    /// grant was applied and its clock still has to be started.
    #[must_use]
    pub fn next_deadline_ms(&self) -> Option<u64> {
        let primary = self.primary.as_ref()?;
        if !primary.unstarted.is_empty() {
            return Some(0);
        }
        let first = |queue: &BTreeSet<(u64, LeaseId)>| queue.first().map(|entry| entry.0);
        [first(&primary.expiries), first(&primary.checkpoints)]
            .into_iter()
            .flatten()
            .min()
    }

    /// Starts the clocks of leases granted since the time was last told.
    fn start_clocks(&mut self, now_ms: u64) {
        let Some(primary) = &mut self.primary else {
            return;
        };
        for id in core::mem::take(&mut primary.unstarted) {
            // Revoked meanwhile. One granted anew is listed twice, and its clock set twice alike.
            let Some(lease) = self.leases.get(&id) else {
                continue;
            };
            let expiry_ms = now_ms.saturating_add(lease.run_ms());
            let timer = Timer::start(expiry_ms, now_ms, self.checkpoint_interval_ms);
            primary.timers.insert(id, timer);
            primary.expiries.insert((expiry_ms, id));
            let due_ms = timer.checkpoint_queued_ms;
            primary.checkpoints.extend(due_ms.map(|due| (due, id)));
        }
    }
}

impl Primary {
    fn forget(&mut self, id: LeaseId) {
        let Some(timer) = self.timers.remove(&id) else {
            return;
        };
        if let Some(queued_ms) = timer.expiry_queued_ms {
            assert!(self.expiries.remove(&(queued_ms, id)));
        }
        if let Some(queued_ms) = timer.checkpoint_queued_ms {
            assert!(self.checkpoints.remove(&(queued_ms, id)));
        }
    }
}

/// Moves expiries, sorted, to later where more than `per_second` fall into a second; stays sorted.
fn spread(order: &mut [(u64, LeaseId)], per_second: u64) {
    let gap_us = (MS_PER_SECOND * 1000).div_ceil(per_second);
    // Microseconds since the first expiry, so that the sum cannot overflow before the clock does.
    let Some(base_ms) = order.first().map(|first| first.0) else {
        return;
    };
    let mut free_us = 0u64;
    for entry in order {
        let own_us = (entry.0 - base_ms).saturating_mul(1000);
        let at_us = own_us.max(free_us);
        entry.0 = base_ms.saturating_add(at_us.div_ceil(1000));
        free_us = at_us.saturating_add(gap_us);
    }
}

#[cfg(test)]
mod tests;
