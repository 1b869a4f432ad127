//! Questions about leases, answered by the leader's clock.
//!
//! Part of [`Sequencer`]. A keepalive that must be logged first, or whose lease may be ending, is
//! parked until the log has the word; others are answered at once, or when the clocks run.

use bytes::Bytes;
use ringkv_engine::command::Command;
use ringkv_engine::error::ApiError;
use ringkv_engine::lease::Renewal;
use ringkv_engine::types::{LeaseId, ShardId};

use super::{Actions, Sequencer};

/// Questions to the lessor.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LeaseAsk {
    /// Renew.
    KeepAlive(LeaseId),
    /// What it has left; with its keys or not.
    TimeToLive(LeaseId, bool),
    /// All ids.
    List,
}

/// Answers to [`LeaseAsk`].
#[derive(Clone, PartialEq, Eq, Debug)]
#[allow(missing_docs, reason = "as LeaseAsk")]
pub enum LeaseAnswer {
    /// TTL in seconds.
    KeptAlive(i64),
    /// TTLs in seconds; keys if asked for.
    TimeToLive {
        granted: i64,
        remaining: i64,
        keys: Vec<Bytes>,
    },
    List(Vec<LeaseId>),
    Failed(ApiError),
}

/// Who waits for an answer about a lease.
pub(super) type Parked = (ShardId, u64);

impl Sequencer {
    pub(super) fn lease(
        &mut self,
        now_ms: u64,
        waiter: Parked,
        ask: LeaseAsk,
        actions: &mut Actions,
    ) {
        let lessor = &self.machine.lessor;
        if !lessor.is_primary() {
            if self.early.len() < self.limits.shard_requests_max {
                return self.early.push((waiter, ask));
            }
            let refused = LeaseAnswer::Failed(ApiError::NoLeader);
            return actions.leases.push((waiter.0, waiter.1, refused));
        }
        let answer = match ask {
            LeaseAsk::KeepAlive(id) => {
                return self.keep_alive(now_ms, id, waiter, actions);
            }
            LeaseAsk::TimeToLive(id, keys) => match lessor.time_to_live(id, now_ms) {
                None => LeaseAnswer::Failed(ApiError::LeaseNotFound),
                Some(ttl) => {
                    let keys = lessor
                        .get(id)
                        .filter(|_| keys)
                        .map(|lease| lease.keys().map(Bytes::copy_from_slice).collect());
                    LeaseAnswer::TimeToLive {
                        granted: ttl.granted,
                        remaining: ttl.remaining.unwrap_or(ttl.granted),
                        keys: keys.unwrap_or_default(),
                    }
                }
            },
            LeaseAsk::List => LeaseAnswer::List(lessor.ids()),
        };
        actions.leases.push((waiter.0, waiter.1, answer));
    }

    fn keep_alive(&mut self, now_ms: u64, id: LeaseId, waiter: Parked, actions: &mut Actions) {
        let answer = match self.machine.lessor.renew(id, now_ms) {
            Renewal::Renewed { ttl } => LeaseAnswer::KeptAlive(ttl),
            Renewal::NotFound => LeaseAnswer::Failed(ApiError::LeaseNotFound),
            Renewal::NotPrimary => LeaseAnswer::Failed(ApiError::NoLeader),
            Renewal::Pending => return self.parked.entry(id).or_default().push(waiter),
            Renewal::ResetFirst => {
                // The first to wait proposes for all.
                if !self.parked.contains_key(&id) {
                    let remaining = vec![(id, 0)];
                    let applied = self.machine.applied();
                    let reset = Command::LeaseCheckpoint { remaining, applied };
                    if !self.propose_own(reset) {
                        return self.early.push((waiter, LeaseAsk::KeepAlive(id)));
                    }
                }
                return self.parked.entry(id).or_default().push(waiter);
            }
        };
        actions.leases.push((waiter.0, waiter.1, answer));
    }

    /// After leases changed by the log, those who waited ask again.
    pub(super) fn retry_parked(&mut self, now_ms: u64, actions: &mut Actions) {
        let changes = self.machine.lease_changes();
        if changes == self.lease_changes_seen {
            return;
        }
        self.lease_changes_seen = changes;
        for (id, waiters) in core::mem::take(&mut self.parked) {
            for waiter in waiters {
                self.keep_alive(now_ms, id, waiter, actions);
            }
        }
    }

    /// Asks again what came too early.
    pub(super) fn ask_again(&mut self, now_ms: u64, actions: &mut Actions) {
        if self.machine.lessor.is_primary() {
            for (waiter, ask) in core::mem::take(&mut self.early) {
                self.lease(now_ms, waiter, ask, actions);
            }
        }
    }
}
