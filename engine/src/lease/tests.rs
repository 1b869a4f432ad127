//! Goal: the lessor does what etcd's does, at its own speed. Method: named cases for each rule, and
//! a random history against a lessor that keeps no queues and looks at every lease each time.

use proptest::prelude::*;

use super::*;

const INTERVAL_MS: u64 = 300_000;

fn lessor() -> Lessor {
    Lessor::new(2, Some(INTERVAL_MS), &Limits::SIM)
}

fn keys(lessor: &Lessor, id: LeaseId) -> Vec<&[u8]> {
    lessor.get(id).expect("granted").keys().collect()
}

/// All that is due now, as a caller loops for it.
fn all_expired(lessor: &mut Lessor, now_ms: u64, max: usize) -> Vec<LeaseId> {
    let mut all = Vec::new();
    loop {
        let some = lessor.expired(now_ms, max);
        assert!(some.len() <= max);
        all.extend(&some);
        let due = lessor.primary.as_ref().and_then(|p| p.expiries.first());
        if due.is_none_or(|due| due.0 > now_ms) {
            return all;
        }
    }
}

#[test]
fn min_ttl_is_etcds() {
    assert_eq!(min_ttl_seconds(10, 100), 2);
    assert_eq!(min_ttl_seconds(5, 100), 1);
    assert_eq!(min_ttl_seconds(10, 10), 1);
    assert_eq!(min_ttl_seconds(50, 500), 38);
}

#[test]
fn grant_refuses_as_etcd() {
    let mut l = lessor();
    assert_eq!(l.grant(0, 10), Err(ApiError::LeaseNotFound));
    assert_eq!(
        l.grant(1, TTL_SECONDS_MAX + 1),
        Err(ApiError::LeaseTtlTooLarge)
    );
    assert_eq!(l.grant(1, TTL_SECONDS_MAX), Ok(TTL_SECONDS_MAX));
    assert_eq!(l.grant(1, 10), Err(ApiError::LeaseExist));
    assert_eq!(l.grant(2, 1), Ok(2));
    assert_eq!(l.grant(-3, -7), Ok(2));
    assert_eq!(l.ids(), [-3, 1, 2]);
    assert_eq!(l.len(), 3);
}

#[test]
fn keys_come_out_in_order() {
    let mut l = lessor();
    l.grant(1, 10).unwrap();
    for key in [b"b", b"a", b"c", b"b"] {
        l.attach(1, key);
    }
    l.detach(1, b"c");
    l.detach(1, b"none");
    l.detach(9, b"a");
    assert_eq!(keys(&l, 1), [b"a", b"b"]);
    let revoked: Vec<_> = l.remove(1).unwrap().collect();
    assert_eq!(
        revoked,
        [b"a".to_vec().into_boxed_slice(), b"b".to_vec().into()]
    );
    assert!(l.remove(1).is_none());
    assert!(!l.contains(1));
}

#[test]
fn followers_neither_expire_nor_renew() {
    let mut l = lessor();
    l.grant(1, 10).unwrap();
    assert_eq!(l.renew(1, 5), Renewal::NotPrimary);
    assert_eq!(l.expired(u64::MAX, 9), [0_i64; 0]);
    assert_eq!(l.due_checkpoints(u64::MAX, 9), [(0_i64, 0_i64); 0]);
    assert_eq!(l.next_deadline_ms(), None);
    let ttl = l.time_to_live(1, 0).unwrap();
    assert_eq!((ttl.granted, ttl.remaining), (10, None));
    assert_eq!(l.time_to_live(2, 0), None);
}

#[test]
fn a_grants_clock_starts_when_the_time_is_told() {
    let mut l = lessor();
    l.promote(1000, 0);
    assert_eq!(l.next_deadline_ms(), None);
    l.grant(1, 10).unwrap();
    assert_eq!(l.next_deadline_ms(), Some(0));
    assert_eq!(l.time_to_live(1, 7000).unwrap().remaining, Some(10));
    assert_eq!(l.expired(7000, 9), [0_i64; 0]);
    assert_eq!(l.next_deadline_ms(), Some(17_000));
    // Revoked and granted again before the time is told: one clock.
    l.remove(1).unwrap();
    l.grant(1, 20).unwrap();
    l.remove(1).unwrap();
    l.grant(1, 30).unwrap();
    assert_eq!(l.expired(8000, 9), [0_i64; 0]);
    assert_eq!(l.next_deadline_ms(), Some(38_000));
    assert_eq!(l.expired(37_999, 9), [0_i64; 0]);
    assert_eq!(l.expired(38_000, 9), [1]);
    assert_eq!(l.next_deadline_ms(), None);
}

#[test]
fn time_to_live_is_in_whole_seconds_towards_zero() {
    let mut l = lessor();
    l.grant(1, 10).unwrap();
    l.promote(0, 0);
    let left = |now| l.time_to_live(1, now).unwrap().remaining.unwrap();
    assert_eq!(left(0), 10);
    assert_eq!(left(1), 9);
    assert_eq!(left(9_001), 0);
    assert_eq!(left(10_999), 0);
    assert_eq!(left(11_000), -1);
}

#[test]
fn a_proposed_expiry_cannot_be_renewed_until_it_failed() {
    let mut l = lessor();
    l.grant(1, 10).unwrap();
    l.promote(0, 0);
    // Overdue, but nothing was proposed.
    assert_eq!(l.renew(1, 15_000), Renewal::Renewed { ttl: 10 });
    assert_eq!(l.expired(24_999, 9), [0_i64; 0]);
    assert_eq!(l.expired(25_000, 9), [1]);
    assert_eq!(l.expired(26_000, 9), [0_i64; 0]);
    assert_eq!(l.renew(1, 26_000), Renewal::Pending);
    assert_eq!(l.next_deadline_ms(), None);
    l.expiry_failed(1, 30_000);
    l.expiry_failed(1, 90_000);
    assert_eq!(l.expired(29_999, 9), [0_i64; 0]);
    assert_eq!(l.renew(1, 29_999), Renewal::Renewed { ttl: 10 });
    assert_eq!(all_expired(&mut l, 39_999, 9), [1]);
    l.remove(1).unwrap();
    assert_eq!(l.renew(1, 40_000), Renewal::NotFound);
    l.expiry_failed(1, 41_000);
    assert_eq!(l.next_deadline_ms(), None);
}

#[test]
fn a_demoted_lessor_forgets_what_it_proposed() {
    let mut l = lessor();
    l.grant(1, 10).unwrap();
    l.promote(0, 0);
    assert_eq!(l.expired(10_000, 9), [1]);
    l.demote();
    assert_eq!(l.renew(1, 11_000), Renewal::NotPrimary);
    l.promote(12_000, 1_000);
    assert_eq!(l.renew(1, 12_000), Renewal::Renewed { ttl: 10 });
}

#[test]
fn a_renewal_takes_back_what_promotion_gave() {
    let mut l = lessor();
    l.grant(1, 10).unwrap();
    l.promote(0, 60_000);
    assert_eq!(l.time_to_live(1, 0).unwrap().remaining, Some(70));
    assert_eq!(l.renew(1, 1_000), Renewal::Renewed { ttl: 10 });
    assert_eq!(l.next_deadline_ms(), Some(11_000));
    assert_eq!(l.expired(11_000, 9), [1]);
}

#[test]
fn expiry_is_in_order_and_listed_so() {
    let mut l = lessor();
    for (id, ttl) in [(1, 9), (2, 4), (3, 9), (4, 2)] {
        l.grant(id, ttl).unwrap();
    }
    l.promote(0, 0);
    assert_eq!(l.ids(), [4, 2, 1, 3]);
    assert_eq!(l.renew(4, 6_500), Renewal::Renewed { ttl: 2 });
    assert_eq!(l.ids(), [2, 4, 1, 3]);
    assert_eq!(all_expired(&mut l, 100_000, 1), [2, 4, 1, 3]);
}

#[test]
fn promotion_spreads_a_pile_up() {
    let per_second = Limits::SIM.lease_expiries_per_second_max;
    let mut l = lessor();
    for id in 1..=40 {
        l.grant(id, 10 + id / 30).unwrap();
    }
    l.promote(1_000, 2_000);
    let mut times: Vec<(u64, LeaseId)> = l
        .primary
        .as_ref()
        .unwrap()
        .expiries
        .iter()
        .copied()
        .collect();
    times.sort_unstable();
    assert_eq!(times.len(), 40);
    assert_eq!(times[0], (13_000, 1));
    for (i, &(at, id)) in times.iter().enumerate() {
        assert!(at >= 3_000 + 1_000 * l.get(id).unwrap().granted_ttl() as u64);
        let within = times[i..].iter().filter(|later| later.0 < at + 1_000);
        assert!(within.count() as u64 <= per_second);
    }
    // As tight as allowed: no lease lives longer than the pile needs.
    assert_eq!(times[39].0, 13_000 + 39 * 1_000 / per_second);
    // Below a second's worth nothing moves.
    let mut l = lessor();
    for id in 1..per_second as i64 {
        l.grant(id, 10).unwrap();
    }
    l.promote(0, 0);
    assert_eq!(all_expired(&mut l, 10_000, 9).len() as u64, per_second - 1);
}

#[test]
fn a_checkpoint_outlives_the_leader() {
    let mut l = lessor();
    l.grant(1, 1_000).unwrap();
    l.grant(2, 300).unwrap();
    l.promote(0, 0);
    assert_eq!(l.due_checkpoints(INTERVAL_MS - 1, 9), [(0_i64, 0_i64); 0]);
    let due = l.due_checkpoints(INTERVAL_MS + 1, 9);
    assert_eq!(due, [(1, 700)]);
    assert_eq!(l.get(1).unwrap().remaining_ttl(), 0);
    l.checkpoint(1, 700);
    l.checkpoint(7, 700);
    assert_eq!(l.get(1).unwrap().remaining_ttl(), 700);
    // The running clock is not touched.
    assert_eq!(l.time_to_live(1, 301_000).unwrap().remaining, Some(699));
    assert_eq!(l.due_checkpoints(2 * INTERVAL_MS, 9), [(0_i64, 0_i64); 0]);
    assert_eq!(l.due_checkpoints(2 * INTERVAL_MS + 1, 9), [(1, 400)]);
    l.promote(5_000_000, 1_000);
    assert_eq!(l.time_to_live(1, 5_000_000).unwrap().remaining, Some(701));
}

#[test]
fn a_renewal_first_clears_the_checkpoint() {
    let mut l = lessor();
    l.grant(1, 1_000).unwrap();
    l.promote(0, 0);
    assert_eq!(l.due_checkpoints(INTERVAL_MS, 9), [(1, 700)]);
    // Proposed, not applied: it would come after the renewal.
    assert_eq!(l.renew(1, 300_001), Renewal::ResetFirst);
    l.checkpoint(1, 700);
    assert_eq!(l.renew(1, 300_002), Renewal::ResetFirst);
    // None is proposed while the reset is under way.
    assert_eq!(l.due_checkpoints(600_001, 9), [(0_i64, 0_i64); 0]);
    l.checkpoint(1, 0);
    assert_eq!(l.renew(1, 600_001), Renewal::Renewed { ttl: 1_000 });
    assert_eq!(l.time_to_live(1, 600_001).unwrap().remaining, Some(1_000));
    assert_eq!(l.due_checkpoints(900_000, 9), [(0_i64, 0_i64); 0]);
    assert_eq!(l.due_checkpoints(900_001, 9), [(1, 700)]);
}

#[test]
fn a_lease_kept_alive_is_not_checkpointed() {
    let mut l = lessor();
    l.grant(1, 400).unwrap();
    l.promote(0, 0);
    for now in (0..3_000_000).step_by(100_000) {
        assert_eq!(l.renew(1, now), Renewal::Renewed { ttl: 400 });
        assert_eq!(l.due_checkpoints(now, 9), [(0_i64, 0_i64); 0]);
    }
    assert_eq!(l.due_checkpoints(2_900_000 + INTERVAL_MS, 9), [(1, 100)]);
}

#[test]
fn a_checkpoint_is_less_than_was_granted() {
    let mut l = lessor();
    l.grant(1, 1_000).unwrap();
    l.promote(0, 2 * INTERVAL_MS);
    assert!(l.due_checkpoints(INTERVAL_MS, 9).is_empty());
    assert!(l.due_checkpoints(2 * INTERVAL_MS, 9).is_empty());
    assert_eq!(l.due_checkpoints(3 * INTERVAL_MS, 9), [(1, 700)]);
}

#[test]
fn a_call_looks_at_few_entries() {
    let mut l = lessor();
    for id in 1..=100 {
        l.grant(id, 10).unwrap();
    }
    l.expiries_per_second_max = 1_000;
    l.promote(0, 0);
    for id in 1..=99 {
        assert_eq!(l.renew(id, 5_000), Renewal::Renewed { ttl: 10 });
    }
    let mut calls = 1;
    while l.expired(10_000, 1).is_empty() {
        assert_eq!(l.next_deadline_ms(), Some(10_000));
        calls += 1;
    }
    assert_eq!(calls, 100usize.div_ceil(LOOKS_PER_RESULT));
    assert_eq!(l.renew(100, 10_000), Renewal::Pending);
    assert_eq!(l.next_deadline_ms(), Some(15_000));
}

#[test]
fn checkpoints_can_be_off() {
    let mut l = Lessor::new(2, None, &Limits::SIM);
    l.grant(1, 1_000).unwrap();
    l.promote(0, 0);
    l.grant(2, 1_000).unwrap();
    assert_eq!(l.renew(1, 10), Renewal::Renewed { ttl: 1_000 });
    assert_eq!(l.due_checkpoints(900_000, 9), [(0_i64, 0_i64); 0]);
    assert_eq!(l.next_deadline_ms(), Some(1_000_000));
}

/// A lessor that looks at every lease each time.
#[derive(Default)]
struct Model {
    leases: BTreeMap<LeaseId, ModelLease>,
    primary: bool,
}

#[derive(Default, Clone)]
struct ModelLease {
    ttl: i64,
    remaining: i64,
    keys: BTreeSet<Vec<u8>>,
    expiry_ms: Option<u64>,
    refreshed_ms: u64,
    checkpointed_ms: u64,
    submitted: bool,
    retry_ms: u64,
    checkpoint_proposed: bool,
}

impl ModelLease {
    fn run_ms(&self) -> u64 {
        1_000
            * if self.remaining > 0 {
                self.remaining
            } else {
                self.ttl
            } as u64
    }

    fn start(&mut self, now: u64, extend: u64) {
        self.expiry_ms = Some(now + extend + self.run_ms());
        self.refreshed_ms = now;
        self.checkpointed_ms = now;
        self.submitted = false;
        self.retry_ms = 0;
        self.checkpoint_proposed = false;
    }

    /// When it is next to be proposed as expired.
    fn end_ms(&self) -> Option<u64> {
        Some(self.expiry_ms?.max(self.retry_ms))
    }

    /// When its next checkpoint is due.
    fn due_ms(&self) -> Option<u64> {
        let due = self.refreshed_ms.max(self.checkpointed_ms) + INTERVAL_MS;
        (!self.submitted && due < self.expiry_ms?).then_some(due)
    }
}

#[derive(Clone, Debug)]
enum Op {
    Grant(LeaseId, i64),
    Remove(LeaseId),
    Attach(LeaseId, u8),
    Detach(LeaseId, u8),
    Checkpoint(LeaseId, i64),
    Promote(u64),
    Demote,
    Advance(u64),
    Renew(LeaseId),
    Expire(usize),
    Failed(LeaseId, u64),
    Due(usize),
}

fn op() -> impl Strategy<Value = Op> {
    let id = || 1..9i64;
    prop_oneof![
        4 => (id(), prop_oneof![-1..20i64, 290..2_000i64]).prop_map(|(i, t)| Op::Grant(i, t)),
        1 => id().prop_map(Op::Remove),
        2 => (id(), 0..4u8).prop_map(|(i, k)| Op::Attach(i, k)),
        1 => (id(), 0..4u8).prop_map(|(i, k)| Op::Detach(i, k)),
        2 => (id(), -5..3_000i64).prop_map(|(i, r)| Op::Checkpoint(i, r)),
        1 => (0..5_000u64).prop_map(Op::Promote),
        1 => Just(Op::Demote),
        6 => prop_oneof![0..10_000u64, 0..400_000u64].prop_map(Op::Advance),
        6 => id().prop_map(Op::Renew),
        4 => (1..4usize).prop_map(Op::Expire),
        2 => (id(), 0..5_000u64).prop_map(|(i, t)| Op::Failed(i, t)),
        4 => (1..4usize).prop_map(Op::Due),
    ]
}

impl Model {
    fn grant(&mut self, id: LeaseId, ttl: i64) -> Result<i64, ApiError> {
        if self.leases.contains_key(&id) {
            return Err(ApiError::LeaseExist);
        }
        let ttl = ttl.max(2);
        self.leases.insert(
            id,
            ModelLease {
                ttl,
                ..ModelLease::default()
            },
        );
        Ok(ttl)
    }

    fn renew(&mut self, id: LeaseId, now: u64) -> Renewal {
        if !self.primary {
            return Renewal::NotPrimary;
        }
        let Some(lease) = self.leases.get_mut(&id) else {
            return Renewal::NotFound;
        };
        if lease.submitted {
            return Renewal::Pending;
        }
        lease.refreshed_ms = now;
        if lease.remaining > 0 || lease.checkpoint_proposed {
            return Renewal::ResetFirst;
        }
        lease.expiry_ms = Some(now + lease.run_ms());
        lease.retry_ms = 0;
        Renewal::Renewed { ttl: lease.ttl }
    }

    fn expired(&mut self, now: u64) -> Vec<LeaseId> {
        let mut due: Vec<(u64, LeaseId)> = self
            .leases
            .iter()
            .filter(|(_, lease)| !lease.submitted)
            .filter_map(|(id, lease)| Some((lease.end_ms().filter(|at| *at <= now)?, *id)))
            .collect();
        due.sort_unstable();
        for (_, id) in &due {
            self.leases.get_mut(id).unwrap().submitted = true;
        }
        due.into_iter().map(|(_, id)| id).collect()
    }

    fn due(&mut self, now: u64) -> BTreeSet<(LeaseId, i64)> {
        let mut all = BTreeSet::new();
        for (id, lease) in &mut self.leases {
            if lease.due_ms().is_none_or(|due| due > now) {
                continue;
            }
            let expiry = lease.expiry_ms.unwrap();
            if expiry <= now {
                continue;
            }
            lease.checkpointed_ms = now;
            let left = (expiry - now).div_ceil(1_000) as i64;
            if left < lease.ttl {
                lease.checkpoint_proposed = true;
                all.insert((*id, left));
            }
        }
        all
    }

    fn deadline(&self, now: u64) -> Option<u64> {
        let times = self.leases.values().filter(|lease| !lease.submitted);
        let first = |lease: &ModelLease| {
            let due = lease.due_ms().filter(|_| lease.expiry_ms > Some(now));
            due.into_iter().chain(lease.end_ms()).min()
        };
        times.filter_map(first).min()
    }
}

fn all_due(lessor: &mut Lessor, now_ms: u64, max: usize) -> BTreeSet<(LeaseId, i64)> {
    let mut all = BTreeSet::new();
    loop {
        let some = lessor.due_checkpoints(now_ms, max);
        assert!(some.len() <= max);
        for one in some {
            assert!(all.insert(one));
        }
        let due = lessor.primary.as_ref().and_then(|p| p.checkpoints.first());
        if due.is_none_or(|due| due.0 > now_ms) {
            return all;
        }
    }
}

/// Runs one operation on both and compares what they say.
fn step(real: &mut Lessor, model: &mut Model, now: &mut u64, op: &Op) {
    match *op {
        Op::Grant(id, ttl) => {
            assert_eq!(real.grant(id, ttl), model.grant(id, ttl));
            let told = real.expired(*now, 0);
            assert!(told.is_empty());
            if let Some(lease) = model.leases.get_mut(&id)
                && model.primary
                && lease.expiry_ms.is_none()
            {
                lease.start(*now, 0);
            }
        }
        Op::Remove(id) => {
            let keys = real
                .remove(id)
                .map(|keys| keys.map(Vec::from).collect::<Vec<_>>());
            let lease = model.leases.remove(&id);
            assert_eq!(keys, lease.map(|lease| lease.keys.into_iter().collect()));
        }
        Op::Attach(id, key) => {
            if let Some(lease) = model.leases.get_mut(&id) {
                lease.keys.insert(vec![key]);
                real.attach(id, &[key]);
            }
        }
        Op::Detach(id, key) => {
            real.detach(id, &[key]);
            if let Some(lease) = model.leases.get_mut(&id) {
                lease.keys.remove(&vec![key]);
            }
        }
        Op::Checkpoint(id, remaining) => {
            real.checkpoint(id, remaining);
            if let Some(lease) = model.leases.get_mut(&id) {
                lease.remaining = remaining.max(0).min(lease.ttl);
                lease.checkpoint_proposed = false;
            }
        }
        Op::Promote(extend) => {
            real.promote(*now, extend);
            model.primary = true;
            model
                .leases
                .values_mut()
                .for_each(|lease| lease.start(*now, extend));
        }
        Op::Demote => {
            real.demote();
            model.primary = false;
            model
                .leases
                .values_mut()
                .for_each(|lease| lease.expiry_ms = None);
        }
        Op::Advance(ms) => *now += ms,
        Op::Renew(id) => assert_eq!(real.renew(id, *now), model.renew(id, *now)),
        Op::Expire(max) => {
            assert_eq!(all_expired(real, *now, max), model.expired(*now));
        }
        Op::Failed(id, after) => {
            real.expiry_failed(id, *now + after);
            if let Some(lease) = model
                .leases
                .get_mut(&id)
                .filter(|l| l.submitted && model.primary)
            {
                lease.submitted = false;
                lease.retry_ms = *now + after;
            }
        }
        Op::Due(max) => assert_eq!(all_due(real, *now, max), model.due(*now)),
    }
}

fn compare(real: &Lessor, model: &Model, now: u64) {
    assert_eq!(real.len(), model.leases.len());
    for ((id, real_lease), (model_id, lease)) in real.iter().zip(&model.leases) {
        assert_eq!(id, *model_id);
        assert_eq!(real_lease.granted_ttl(), lease.ttl);
        assert_eq!(real_lease.remaining_ttl(), lease.remaining);
        assert!(real_lease.keys().eq(lease.keys.iter().map(|key| &key[..])));
        let left = lease.expiry_ms.map(|at| (at as i64 - now as i64) / 1_000);
        assert_eq!(real.time_to_live(id, now).unwrap().remaining, left);
    }
    // Waking is never late, and early only for renewed leases.
    match (real.next_deadline_ms(), model.deadline(now)) {
        (Some(at), Some(first)) => assert!(at <= first),
        (None, first) => assert_eq!(first, None),
        (Some(_), None) => assert!(model.primary),
    }
    if let Some(primary) = &real.primary {
        assert!(primary.unstarted.is_empty());
        assert!(primary.timers.keys().eq(real.leases.keys()));
        assert!(primary.expiries.len() <= real.len());
        assert!(primary.checkpoints.len() <= real.len());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]
    #[test]
    fn does_what_a_lessor_without_queues_does(ops in prop::collection::vec(op(), 1..120)) {
        // More than the model has leases, so that promotion spreads nothing.
        let limits = Limits { lease_expiries_per_second_max: 100, ..Limits::SIM };
        let mut real = Lessor::new(2, Some(INTERVAL_MS), &limits);
        let mut model = Model::default();
        let mut now = 1_000;
        for op in &ops {
            step(&mut real, &mut model, &mut now, op);
            compare(&real, &model, now);
        }
    }
}
