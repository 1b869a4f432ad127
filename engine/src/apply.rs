//! The state machine: what one log entry does, visible in one function, [`Machine::apply`].
//!
//! Owned by the sequencer's core. A pure function of state and entry (I8): members that applied the
//! same entries are equal. The guards stand in etcd's order: alarms first, then the request's own
//! checks, then its change.

use core::ops::ControlFlow;

use crate::alarm::{self, Alarms};
use crate::command::{
    self, ArchivedCommand, ArchivedEnvelope, ArchivedTxn, ArchivedTxnOp, BadRecord, Origin,
};
use crate::error::ApiError;
use crate::lease::Lessor;
use crate::limits::Limits;
use crate::members::Members;
use crate::mvcc::Store;
use crate::mvcc::range::Span;
use crate::txn::{DeleteResult, Executor, PutResult, TxnResult};
use crate::types::{Index, KeyMeta, LeaseId, MemberId, Term};

/// What an entry did, for whoever waits for it.
#[derive(Clone, PartialEq, Eq, Debug)]
#[allow(missing_docs, reason = "as Command")]
pub enum Outcome {
    Put(PutResult),
    DeleteRange(DeleteResult),
    Txn(TxnResult),
    Compact {
        revision: u64,
    },
    LeaseGrant {
        id: LeaseId,
        ttl: i64,
        revision: u64,
    },
    LeaseRevoke {
        revision: u64,
    },
    Alarm {
        alarms: Vec<(MemberId, i32)>,
    },
    Done,
    Failed(ApiError),
}

/// All replicated state.
pub struct Machine {
    /// Keys and revisions.
    pub store: Store,
    /// Leases.
    pub lessor: Lessor,
    /// Alarms.
    pub alarms: Alarms,
    /// Members and cluster version.
    pub members: Members,
    applied: Index,
    /// Counts applied commands that end or reset leases: who waits for one looks again.
    lease_changes: u64,
    /// Counts changes of members, cluster version and alarms.
    registry_changes: u64,
}

impl Machine {
    /// Empty.
    #[must_use]
    pub fn new(limits: Limits, lessor: Lessor, members: Members) -> Self {
        let store = Store::new(limits);
        Self {
            store,
            lessor,
            alarms: Alarms::default(),
            members,
            applied: 0,
            lease_changes: 0,
            registry_changes: 0,
        }
    }

    /// Log index of the last entry applied.
    #[must_use]
    pub fn applied(&self) -> Index {
        self.applied
    }

    /// Counts applied commands that ended or reset leases.
    #[must_use]
    pub fn lease_changes(&self) -> u64 {
        self.lease_changes
    }

    /// Counts applied changes of members, cluster version and alarms.
    #[must_use]
    pub fn registry_changes(&self) -> u64 {
        self.registry_changes
    }

    /// Continues from a checkpoint, of which store and leases are in place: hangs the keys on their
    /// leases and publishes. False when a key names a lease that is not there.
    pub fn restored(&mut self, applied: Index) -> bool {
        assert_eq!(self.applied, 0);
        self.applied = applied;
        let Self { store, lessor, .. } = self;
        let flow = store.with_state(|state| {
            let attach = |key: &[u8], meta: KeyMeta| {
                if meta.lease != 0 {
                    if !lessor.contains(meta.lease) {
                        return ControlFlow::Break(());
                    }
                    lessor.attach(meta.lease, key);
                }
                ControlFlow::Continue(())
            };
            state.visit(&Span::of(&[], &[0]), None, false, attach)
        });
        store.publish(applied);
        flow.is_continue()
    }

    /// An entry without a command: a new leader's, or a change of membership.
    pub fn skip(&mut self, index: Index) {
        assert_eq!(index, self.applied + 1, "entries are applied in order");
        self.applied = index;
    }

    /// Applies the record of entry `index`. `wanted` tells from the origin whether somebody here
    /// waits; if not, nothing is read for the result.
    ///
    /// # Errors
    /// [`BadRecord`] when the entry is none of ours; the state is as before.
    pub fn apply(
        &mut self,
        index: Index,
        term: Term,
        record: &[u8],
        wanted: impl FnOnce(Origin) -> bool,
    ) -> Result<(Origin, Outcome), BadRecord> {
        let ArchivedEnvelope { origin, command } = command::check(record)?;
        let origin = Origin {
            member: origin.member.to_native(),
            start: origin.start.to_native(),
            sequence: origin.sequence.to_native(),
        };
        self.skip(index);
        let outcome = self.execute(term, command, wanted(origin));
        Ok((origin, outcome.unwrap_or_else(Outcome::Failed)))
    }

    fn execute(
        &mut self,
        term: Term,
        command: &ArchivedCommand<'_>,
        wanted: bool,
    ) -> Result<Outcome, ApiError> {
        self.guard(command)?;
        match command {
            ArchivedCommand::Put(put) => {
                let mut executor = self.executor(wanted);
                let result = executor.checked_put(put)?;
                executor.commit();
                Ok(Outcome::Put(result))
            }
            ArchivedCommand::DeleteRange(delete) => {
                let mut executor = self.executor(wanted);
                let result = executor.delete_range(delete);
                executor.commit();
                Ok(Outcome::DeleteRange(result))
            }
            ArchivedCommand::Txn(txn) => {
                let mut executor = self.executor(wanted);
                let result = executor.txn(txn)?;
                executor.commit();
                Ok(Outcome::Txn(result))
            }
            ArchivedCommand::Compact { revision } => {
                self.store.compact(revision.to_native())?;
                Ok(Outcome::Compact {
                    revision: self.store.revision(),
                })
            }
            ArchivedCommand::LeaseGrant { id, ttl } => {
                let id = id.to_native();
                let ttl = self.lessor.grant(id, ttl.to_native())?;
                self.lessor.set_granted_index(id, self.applied);
                Ok(Outcome::LeaseGrant {
                    id,
                    ttl,
                    revision: self.store.revision(),
                })
            }
            ArchivedCommand::LeaseRevoke { id } => {
                self.revoke(id.to_native())?;
                Ok(Outcome::LeaseRevoke {
                    revision: self.store.revision(),
                })
            }
            ArchivedCommand::LeaseExpire {
                ids,
                term: proposed_in,
                applied,
            } => {
                // Fenced (I10): what an earlier leader thought expired may have been renewed since.
                let current = proposed_in.to_native() == term;
                let ids = ids.iter().map(|id| id.to_native()).filter(|_| current);
                self.expire(ids, applied.to_native());
                Ok(Outcome::Done)
            }
            ArchivedCommand::LeaseCheckpoint { remaining, applied } => {
                let remaining = remaining.iter();
                let remaining = remaining.map(|pair| (pair.0.to_native(), pair.1.to_native()));
                self.checkpoint_leases(remaining, applied.to_native());
                Ok(Outcome::Done)
            }
            ArchivedCommand::Alarm {
                action,
                member,
                alarm,
            } => {
                self.registry_changes += 1;
                let alarms = self.alarm(action.to_native(), member.to_native(), alarm.to_native());
                Ok(Outcome::Alarm { alarms })
            }
            ArchivedCommand::MemberAttributes {
                member,
                name,
                client_urls,
            } => {
                self.registry_changes += 1;
                let urls = client_urls.iter().map(|u| u.to_string()).collect();
                self.members.set_attributes(member.to_native(), name, urls);
                Ok(Outcome::Done)
            }
            ArchivedCommand::ClusterVersion { version } => {
                self.registry_changes += 1;
                self.members.cluster_version = Some(version.to_string());
                Ok(Outcome::Done)
            }
        }
    }

    fn executor(&mut self, wanted: bool) -> Executor<'_, '_> {
        Executor::new(self.store.begin(), &mut self.lessor, wanted)
    }

    /// Under an alarm etcd's applier is exchanged for one that refuses.
    fn guard(&self, command: &ArchivedCommand<'_>) -> Result<(), ApiError> {
        if self.alarms.is_raised(alarm::CORRUPT) && is_refused_when_corrupt(command) {
            return Err(ApiError::Corrupt);
        }
        if self.alarms.is_raised(alarm::NOSPACE) && grows(command) {
            return Err(ApiError::NoSpace);
        }
        Ok(())
    }

    fn revoke(&mut self, id: LeaseId) -> Result<(), ApiError> {
        self.lease_changes += 1;
        // etcd deletes a lease's keys in one transaction, in order of keys.
        let keys = self.lessor.remove(id).ok_or(ApiError::LeaseNotFound)?;
        let mut executor = self.executor(false);
        executor.delete_keys(keys);
        executor.commit();
        Ok(())
    }

    /// Ends leases that had expired when `applied` was. One that a client has revoked meanwhile is
    /// gone, or granted anew.
    fn expire(&mut self, ids: impl Iterator<Item = LeaseId>, applied: Index) {
        self.lease_changes += 1;
        for id in ids {
            if self.lessor.was_granted_by(id, applied) {
                self.revoke(id).expect("the lease is there");
            }
        }
    }

    /// Notes what leases had left when `applied` was.
    fn checkpoint_leases(
        &mut self,
        remaining: impl Iterator<Item = (LeaseId, i64)>,
        applied: Index,
    ) {
        self.lease_changes += 1;
        for (id, remaining) in remaining {
            if self.lessor.was_granted_by(id, applied) {
                self.lessor.checkpoint(id, remaining);
            }
        }
    }

    fn alarm(&mut self, action: i32, member: MemberId, alarm: i32) -> Vec<(MemberId, i32)> {
        match action {
            0 => self.alarms.get(alarm).collect(),
            1 if alarm != alarm::NONE => vec![self.alarms.activate(member, alarm)],
            2 => self.alarms.deactivate(member, alarm).into_iter().collect(),
            _ => Vec::new(),
        }
    }
}

fn is_refused_when_corrupt(command: &ArchivedCommand<'_>) -> bool {
    matches!(
        command,
        ArchivedCommand::Put(_)
            | ArchivedCommand::DeleteRange(_)
            | ArchivedCommand::Txn(_)
            | ArchivedCommand::Compact { .. }
            | ArchivedCommand::LeaseGrant { .. }
            | ArchivedCommand::LeaseRevoke { .. }
            | ArchivedCommand::LeaseExpire { .. }
    )
}

fn grows(command: &ArchivedCommand<'_>) -> bool {
    match command {
        ArchivedCommand::Put(_) | ArchivedCommand::LeaseGrant { .. } => true,
        ArchivedCommand::Txn(txn) => txn_puts(txn),
        _ => false,
    }
}

fn txn_puts(txn: &ArchivedTxn<'_>) -> bool {
    txn.success
        .iter()
        .chain(txn.failure.iter())
        .any(|op| match op {
            ArchivedTxnOp::Put(_) => true,
            ArchivedTxnOp::Txn(nested) => txn_puts(nested),
            _ => false,
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::{Command, Envelope};

    fn apply(machine: &mut Machine, command: Command<'_>) {
        let record = Envelope {
            origin: Origin::NONE,
            command,
        };
        let index = machine.applied() + 1;
        let applied = machine.apply(index, 1, &record.to_bytes(), |_| false);
        assert_eq!(applied, Ok((Origin::NONE, Outcome::Done)));
    }

    fn grant(machine: &mut Machine) {
        let index = machine.applied() + 1;
        let command = Command::LeaseGrant { id: 7, ttl: 60 };
        let origin = Origin::NONE;
        let record = Envelope { origin, command }.to_bytes();
        machine
            .apply(index, 1, &record, |_| false)
            .expect("a record");
    }

    #[test]
    fn what_was_meant_for_an_earlier_lease_leaves_one_of_the_same_id_alone() {
        let limits = Limits::SIM;
        let lessor = Lessor::new(1, None, &limits);
        let mut machine = Machine::new(limits, lessor, Members::default());
        grant(&mut machine);
        let applied = machine.applied();
        // The leader sees the lease of now expire while its end and its successor are in the log.
        machine.lessor.remove(7);
        grant(&mut machine);
        let remaining = vec![(7, 5)];
        let checkpoint = Command::LeaseCheckpoint { remaining, applied };
        apply(&mut machine, checkpoint);
        assert_eq!(machine.lessor.get(7).map(|l| l.remaining_ttl()), Some(0));
        let (ids, term) = (vec![7], 1);
        let expire = Command::LeaseExpire { ids, term, applied };
        apply(&mut machine, expire);
        assert!(machine.lessor.contains(7));

        let (ids, applied) = (vec![7], machine.applied());
        let expire = Command::LeaseExpire { ids, term, applied };
        apply(&mut machine, expire);
        assert!(!machine.lessor.contains(7));
    }
}
