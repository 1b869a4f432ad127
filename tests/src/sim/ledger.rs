//! What the simulation knows to be true, whatever the member says: the log that it saw go to the
//! device, what is durable of it, what clients were shown, and the naive state machine.
//!
//! Every method is a checker: it panics with what was violated.

use std::collections::BTreeMap;

use ringkv_engine::apply::{Machine, Outcome};
use ringkv_engine::command::{self, ArchivedCommand, Origin};
use ringkv_engine::error::ApiError;
use ringkv_engine::mvcc::View;
use ringkv_engine::mvcc::hash::HashScan;
use ringkv_engine::types::{Index, LeaseId};
use ringkv_engine::wal::LogEntry;
use ringkv_raft::sequencer::{LeaseAnswer, LeaseAsk};

use super::model::Model;

/// An entry as it was given to the device.
struct Logged {
    term: u64,
    payload: Vec<u8>,
}

/// The promise of a lease: it lives at least for `ttl` seconds from `from_ms` on.
struct Life {
    from_ms: u64,
    ttl: i64,
}

/// See the module.
pub struct Ledger {
    /// The naive state machine, as far as any run has applied the log.
    pub model: Model,
    /// Highest index of which a client was shown something.
    pub shown: Index,
    log: BTreeMap<Index, Logged>,
    /// Outcomes of this run's proposals that it has not handed out yet.
    expected: BTreeMap<u64, (Index, Outcome)>,
    /// Index of the last result handed out to each shard in this run.
    result_of_shard: BTreeMap<u8, Index>,
    lives: BTreeMap<LeaseId, Life>,
    /// This run's count of starts.
    start: u32,
}

impl Ledger {
    /// Of a member without history.
    #[must_use]
    pub fn new(model: Model) -> Self {
        Self {
            model,
            shown: 0,
            log: BTreeMap::new(),
            expected: BTreeMap::new(),
            result_of_shard: BTreeMap::new(),
            lives: BTreeMap::new(),
            start: 0,
        }
    }

    fn last_index(&self) -> Index {
        self.log.last_key_value().map_or(0, |(index, _)| *index)
    }

    /// A frame with this entry is on its way to the device.
    pub fn submitted(&mut self, index: Index, term: u64, payload: &[u8]) {
        assert_eq!(index, self.last_index() + 1, "the log has no gap");
        let payload = payload.to_vec();
        self.log.insert(index, Logged { term, payload });
    }

    /// Leases that the entry would end because they have expired.
    fn expiring(&self, index: Index) -> Vec<LeaseId> {
        let payload = &self.log[&index].payload;
        if payload.is_empty() {
            return Vec::new();
        }
        let envelope = command::check(payload).expect("what is in the log is ours");
        let ArchivedCommand::LeaseExpire { ids, .. } = &envelope.command else {
            return Vec::new();
        };
        let ids = ids.iter().map(|id| id.to_native());
        ids.filter(|id| self.model.leases.contains_key(id))
            .collect()
    }

    fn check_expired(&self, ids: &[LeaseId], now_ms: u64) {
        for id in ids {
            let ended = !self.model.leases.contains_key(id);
            let life = self.lives.get(id).filter(|_| ended);
            let until_ms = life.map_or(0, |life| life.from_ms + life.ttl as u64 * 1000);
            assert!(
                now_ms >= until_ms,
                "lease {id} ends at {now_ms}, not {until_ms}"
            );
        }
    }

    /// What recovery reads back, from the checkpoint on: `entries`, and the log ends at `last`.
    pub fn recovered(&mut self, entries: &[LogEntry], last: Index) {
        assert!(
            last >= self.shown,
            "an acknowledged write is gone: the log ends at {last}, shown was {}",
            self.shown
        );
        assert!(last >= self.model.applied, "an applied entry is gone");
        for entry in entries {
            let logged = self
                .log
                .get(&entry.index)
                .expect("the log was written by us");
            let same = logged.term == entry.term && logged.payload == entry.payload;
            assert!(
                same,
                "entry {} has other content than was written",
                entry.index
            );
        }
        assert!(last <= self.last_index(), "more than was ever written");
        let _ = self.log.split_off(&(last + 1));
    }

    /// A run of the member begins.
    pub fn started(&mut self, start: u32) {
        assert!(start > self.start, "each start has a number of its own");
        self.start = start;
        self.expected.clear();
        self.result_of_shard.clear();
    }

    /// The member has applied all up to `applied`, of which `flushed` is durable.
    pub fn applied(&mut self, applied: Index, flushed: Index, now_ms: u64) {
        assert!(
            applied <= flushed,
            "applied {applied} before it was flushed: {flushed}"
        );
        while self.model.applied < applied {
            let index = self.model.applied + 1;
            let expiring = self.expiring(index);
            let Logged { term, payload } = &self.log[&index];
            let (origin, outcome) = self.model.apply(index, *term, payload);
            self.check_expired(&expiring, now_ms);
            if let Outcome::LeaseGrant { id, ttl, .. } = outcome {
                let from_ms = now_ms;
                self.lives.insert(id, Life { from_ms, ttl });
            }
            if origin.start == self.start && origin.sequence != 0 {
                self.expected.insert(origin.sequence, (index, outcome));
            }
        }
    }

    /// The member hands out a result; true when it is that of an applied entry.
    pub fn result(&mut self, sequence: u64, outcome: &Outcome, view_applied: Index) -> bool {
        let Some((index, expected)) = self.expected.remove(&sequence) else {
            let refused = *outcome == Outcome::Failed(ApiError::TooManyRequests);
            assert!(refused, "a result of nothing that was applied: {outcome:?}");
            return false;
        };
        assert_eq!(*outcome, expected, "the result of entry {index}");
        assert!(view_applied >= index, "a result before its View");
        let last = self.result_of_shard.entry(Origin::shard_of(sequence));
        let last = last.or_default();
        assert!(*last < index, "results out of order");
        *last = index;
        self.shown = self.shown.max(index);
        true
    }

    /// Whether the answer is right as of what the model has applied.
    #[must_use]
    pub fn is_right(&self, ask: LeaseAsk, answer: &LeaseAnswer, now_ms: u64) -> bool {
        let leases = &self.model.leases;
        match (ask, answer) {
            (_, LeaseAnswer::Failed(ApiError::NoLeader)) => true,
            (LeaseAsk::KeepAlive(id) | LeaseAsk::TimeToLive(id, _), LeaseAnswer::Failed(error)) => {
                *error == ApiError::LeaseNotFound && !leases.contains_key(&id)
            }
            (LeaseAsk::KeepAlive(id), LeaseAnswer::KeptAlive(ttl)) => {
                leases.get(&id).is_some_and(|lease| lease.ttl == *ttl)
            }
            (LeaseAsk::TimeToLive(id, with_keys), answer) => {
                let LeaseAnswer::TimeToLive {
                    granted,
                    remaining,
                    keys,
                } = answer
                else {
                    return false;
                };
                let Some(lease) = leases.get(&id) else {
                    return false;
                };
                let promised = self.lives.get(&id).map_or(0, |life| {
                    (life.from_ms + life.ttl as u64 * 1000).saturating_sub(now_ms) / 1000
                });
                // A start spreads leases that would expire together.
                let spread = leases.len() as i64 + 1;
                *granted == lease.ttl
                    && (promised == 0 || *remaining >= promised as i64)
                    && *remaining <= lease.ttl + spread
                    && (!with_keys || keys.iter().eq(lease.keys.iter()))
            }
            (LeaseAsk::List, LeaseAnswer::List(ids)) => {
                let mut ids = ids.clone();
                ids.sort_unstable();
                ids.iter().eq(leases.keys())
            }
            _ => false,
        }
    }

    /// What is known of the lease that a question is about, for a failure's text.
    #[must_use]
    pub fn promise(&self, ask: LeaseAsk) -> String {
        let (LeaseAsk::KeepAlive(id) | LeaseAsk::TimeToLive(id, _)) = ask else {
            return format!("there are {:?}", self.model.leases.keys());
        };
        let lease = self.model.leases.get(&id);
        let lease = lease.map(|lease| (lease.ttl, lease.remaining, &lease.keys));
        let life = self.lives.get(&id).map(|life| (life.from_ms, life.ttl));
        format!("TTL, remaining, keys {lease:?}; since when and TTL {life:?}")
    }

    /// A client was told that its lease runs anew.
    pub fn kept_alive(&mut self, id: LeaseId, now_ms: u64) {
        let from_ms = now_ms;
        if let Some(lease) = self.model.leases.get(&id) {
            let ttl = lease.ttl;
            self.lives.insert(id, Life { from_ms, ttl });
        }
    }

    /// The machine's whole state is the model's, if it has applied as much.
    pub fn check_state(&self, machine: &Machine, view: &View, hash: HashScan) {
        let model = &self.model;
        if machine.applied() != model.applied {
            assert!(machine.applied() < model.applied);
            return;
        }
        assert_eq!(view.applied, model.applied);
        assert_eq!(view.revision, model.revision);
        assert_eq!(view.compacted, model.compacted);
        let mut hash = hash;
        while hash.step(64) {}
        assert_eq!(hash.finish().hash, model.hash_kv(), "HashKV");
        assert!(machine.lessor.len() == model.leases.len());
        for ((id, lease), (model_id, expected)) in machine.lessor.iter().zip(&model.leases) {
            assert_eq!(id, *model_id);
            assert_eq!(lease.granted_ttl(), expected.ttl);
            assert_eq!(lease.remaining_ttl(), expected.remaining);
            assert!(
                lease.keys().eq(expected.keys.iter().map(Vec::as_slice)),
                "keys of {id}"
            );
        }
    }
}
