//! The state machine against a naive model of etcd 3.7's mvcc, txn and apply, by random commands.
//!
//! The model keeps every change of every key for ever and answers by looking at all of them; what
//! it does was read from etcd's server/storage/mvcc, server/etcdserver/txn and .../apply. Compared
//! are results and errors of all commands, ranges with all options on published Views, run in steps
//! of random size while commands go on, HashKV at all readable revisions, hashes of compactions,
//! leases and their keys. HashKV's golden values are etcd's own (mvcc/hash_test.go).

#[path = "mvcc_model/model.rs"]
mod model;
#[path = "mvcc_model/op.rs"]
mod op;

use model::Model;
use op::{Change, Delete, Op, Put, Query, Step, Transaction};
use proptest::prelude::*;
use ringkv_engine::alarm;
use ringkv_engine::apply::{Machine, Outcome};
use ringkv_engine::command::{Command, Envelope, Origin};
use ringkv_engine::error::ApiError;
use ringkv_engine::index::Reader;
use ringkv_engine::lease::Lessor;
use ringkv_engine::limits::Limits;
use ringkv_engine::members::Members;
use ringkv_engine::mvcc::hash::{HashScan, KvHash};
use ringkv_engine::mvcc::range::{RangeResult, RangeScan};
use ringkv_engine::mvcc::{EMPTY_BYTES, View};
use ringkv_engine::txn;

/// Term of all entries.
pub const TERM: u64 = 5;
/// The lessor's minimum TTL, seconds.
const TTL_MIN: i64 = 2;

/// A range on its way, and what it must come to.
struct OpenScan {
    scan: RangeScan,
    at: u64,
    want: RangeResult,
}

/// Machine and model side by side.
struct Pair {
    machine: Machine,
    reader: Reader<View>,
    model: Model,
    /// Revision and compact revision of the newest View.
    published: (u64, i64),
    scans: Vec<OpenScan>,
    /// HashKVs on their way.
    hashes: Vec<(HashScan, KvHash)>,
}

impl Pair {
    fn new() -> Self {
        let lessor = Lessor::new(TTL_MIN, None, &Limits::SIM);
        let machine = Machine::new(Limits::SIM, lessor, Members::default());
        let reader = machine.store.reader();
        Self {
            machine,
            reader,
            model: Model::new(TTL_MIN),
            published: (1, -1),
            scans: Vec::new(),
            hashes: Vec::new(),
        }
    }

    fn apply(&mut self, command: Command<'_>, wanted: bool) -> Outcome {
        let envelope = Envelope {
            origin: Origin::NONE,
            command,
        };
        let index = self.machine.applied() + 1;
        let result = self
            .machine
            .apply(index, TERM, &envelope.to_bytes(), |_| wanted);
        result.expect("a record of ours").1
    }

    fn publish(&mut self) {
        let applied = self.machine.applied();
        self.machine.store.publish(applied);
        self.published = (self.model.revision, self.model.compacted);
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Change(change) => self.change(change),
            Step::Unwanted(change) => self.unwanted(change),
            Step::Publish => self.publish(),
            Step::Slice { floor } => {
                let floor = if *floor {
                    u64::MAX
                } else {
                    self.model.revision / 2
                };
                self.machine.store.compact_slice(floor);
            }
            Step::Range(query) => self.begin_range(query),
            Step::Read(txn) => self.read_only(txn),
            Step::Resume { nth, budget } => self.resume(*nth, *budget),
            Step::Hash { back } => self.begin_hash(*back),
            Step::ResumeHash { budget } => self.resume_hash(*budget),
        }
        self.check_leases();
    }

    fn change(&mut self, change: &Change) {
        let (got, want) = self.both(change, true);
        assert_eq!(got, want, "{change:?}");
    }

    /// What is not read for the result is no part of what happens.
    fn unwanted(&mut self, change: &Change) {
        let (got, want) = self.both(change, false);
        let failure = |outcome: &Outcome| match outcome {
            Outcome::Failed(error) => Some(*error),
            _ => None,
        };
        assert_eq!(failure(&got), failure(&want), "{change:?}");
    }

    /// The outcomes of machine and model.
    fn both(&mut self, change: &Change, wanted: bool) -> (Outcome, Outcome) {
        let compacting = self.machine.store.is_compacting();
        let command = change.command(self.model.revision);
        let got = self.apply(command, wanted);
        let want = self.model.change(change, compacting);
        assert_eq!(self.machine.store.revision(), self.model.revision);
        assert_eq!(self.machine.store.compacted(), self.model.compacted);
        (got, want)
    }

    fn begin_range(&mut self, query: &Query) {
        let (revision, compacted) = self.published;
        let query = query.resolved(revision);
        let range = query.command();
        let (got, again) = self.reader.pin(|view, pin| {
            let state = view.state(pin);
            let again = RangeScan::begin(&range, &state).and_then(|mut scan| {
                while scan.step(&state, usize::MAX)? {}
                Ok(scan.finish())
            });
            (RangeScan::begin(&range, &state), again)
        });
        let want = self.model.range(&query, revision, compacted);
        assert_eq!(again, want, "{query:?}");
        if let (Ok(scan), Ok(want)) = (got, want) {
            let at = u64::try_from(query.revision).unwrap_or(0);
            let at = if at == 0 { revision } else { at };
            self.scans.push(OpenScan { scan, at, want });
        }
    }

    fn resume(&mut self, nth: usize, budget: usize) {
        if self.scans.is_empty() {
            return;
        }
        let nth = nth % self.scans.len();
        let open = &mut self.scans[nth];
        let step = self
            .reader
            .pin(|view, pin| open.scan.step(&view.state(pin), budget));
        let compacted = (open.at as i64) < self.published.1;
        match step {
            Ok(true) => assert!(!compacted),
            Ok(false) => {
                assert!(!compacted);
                let open = self.scans.swap_remove(nth);
                assert_eq!(open.scan.finish(), open.want);
            }
            Err(error) => {
                assert_eq!(error, ApiError::Compacted);
                assert!(compacted);
                self.scans.swap_remove(nth);
            }
        }
    }

    fn read_only(&mut self, transaction: &Transaction) {
        let (revision, compacted) = self.published;
        let command = transaction.command();
        let record = Envelope {
            origin: Origin::NONE,
            command: Command::Txn(command),
        }
        .to_bytes();
        let envelope = ringkv_engine::command::check(&record).expect("ours");
        let ringkv_engine::command::ArchivedCommand::Txn(archived) = &envelope.command else {
            panic!("a txn")
        };
        let got = self
            .reader
            .pin(|view, pin| txn::read_only(&view.state(pin), archived));
        let want = self.model.as_of(revision, compacted).txn(transaction);
        assert_eq!(got, want, "{transaction:?}");
    }

    fn begin_hash(&mut self, back: i64) {
        let (revision, compacted) = self.published;
        let at = if back == 0 {
            0
        } else {
            revision as i64 + 1 - back
        };
        let got = self
            .reader
            .pin(|view, pin| HashScan::begin(at, &view.state(pin)));
        let want = self.model.hash_kv(at, revision, compacted);
        match (got, want) {
            (Ok(scan), Ok(want)) => self.hashes.push((scan, want)),
            (got, want) => assert_eq!(got.err(), want.err()),
        }
    }

    fn resume_hash(&mut self, budget: usize) {
        if let Some((scan, _)) = self.hashes.first_mut()
            && !scan.step(budget)
        {
            let (scan, want) = self.hashes.swap_remove(0);
            assert_eq!(scan.finish(), want);
        }
    }

    fn check_leases(&self) {
        let got = self.machine.lessor.iter().map(|(id, lease)| {
            let keys = lease.keys().map(<[u8]>::to_vec).collect();
            (id, (lease.granted_ttl(), lease.remaining_ttl(), keys))
        });
        assert_eq!(got.collect::<Vec<_>>(), self.model.leases());
    }

    /// Everything on its way comes to its end, and everything readable is as the model says.
    fn finish(mut self) {
        self.publish();
        while !self.hashes.is_empty() {
            self.resume_hash(3);
        }
        self.check_everything();
        while self.machine.store.compact_slice(u64::MAX) {}
        self.publish();
        while !self.scans.is_empty() {
            self.resume(0, 2);
        }
        self.check_everything();
        assert_eq!(
            &*self.machine.store.hashes(),
            &self.model.compaction_hashes[..]
        );
        self.reader.pin(|view, _| {
            assert_eq!(view.pruned, self.model.compacted);
            let revisions = self.model.bytes(view.compacted);
            assert_eq!(view.bytes, EMPTY_BYTES + revisions);
        });
    }

    fn check_everything(&mut self) {
        for at in self.published.1.max(1)..=self.published.0 as i64 {
            let query = Query {
                key: b"\0".to_vec(),
                range_end: b"\0".to_vec(),
                revision: at,
                ..Query::default()
            };
            let want = self.model.range(&query, self.published.0, self.published.1);
            let (got, hash) = self
                .reader
                .pin(|view, pin| {
                    let state = view.state(pin);
                    let mut scan = RangeScan::begin(&query.command(), &state)?;
                    while scan.step(&state, 5)? {}
                    let mut hash = HashScan::begin(at, &state)?;
                    while hash.step(4) {}
                    Ok::<_, ApiError>((scan.finish(), hash.finish()))
                })
                .expect("readable");
            assert_eq!(Ok(got), want, "at {at}");
            let want = self.model.hash_kv(at, self.published.0, self.published.1);
            assert_eq!(Ok(hash), want, "hash at {at}");
        }
    }
}

fn cases() -> u32 {
    if cfg!(miri) { 2 } else { 400 }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: cases(),
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn the_state_machine_does_what_the_model_does(
        steps in prop::collection::vec(op::step(), 1..100)
    ) {
        let mut pair = Pair::new();
        for step in &steps {
            pair.step(step);
        }
        pair.finish();
    }
}

fn run(steps: &[Step]) {
    let mut pair = Pair::new();
    for step in steps {
        pair.step(step);
    }
    pair.finish();
}

fn put(key: &str) -> Op {
    Op::Put(Put {
        key: key.into(),
        value: key.into(),
        ..Put::default()
    })
}

fn delete_from(key: &str) -> Op {
    Op::Delete(Delete {
        key: key.into(),
        range_end: vec![0],
        prev_kv: true,
    })
}

/// etcd's check for keys changed twice in a transaction takes the end of a range "from this key on"
/// for an ordinary one, so a transaction may put a key and delete it, in any order.
#[test]
fn a_transaction_may_put_and_delete_the_same_key() {
    let orders = [
        vec![put("k"), delete_from("k")],
        vec![delete_from("a"), put("k")],
        vec![delete_from("a"), put("k"), delete_from("b")],
    ];
    for before in [vec![], vec![put("k")], vec![put("k"), put("l")]] {
        for success in &orders {
            let txn = |success: &Vec<Op>| {
                Step::Change(Change::Txn(Transaction {
                    compares: vec![],
                    success: success.clone(),
                    failure: vec![],
                }))
            };
            let compact = Step::Change(Change::Compact { back: 0 });
            run(&[txn(&before), txn(success), txn(success)]);
            run(&[txn(&before), txn(success), compact, txn(success)]);
        }
    }
}

/// A put that keeps a value which an operation before it has deleted: etcd indexes beyond the end.
#[test]
fn a_put_that_keeps_what_the_transaction_deleted_finds_nothing_to_keep() {
    let keep = Op::Put(Put {
        key: b"k".to_vec(),
        ignore_value: true,
        ignore_lease: true,
        ..Put::default()
    });
    let txn = |success| {
        Step::Change(Change::Txn(Transaction {
            compares: vec![],
            success,
            failure: vec![],
        }))
    };
    run(&[txn(vec![put("k")]), txn(vec![delete_from("a"), keep])]);
}

/// Where nothing is live at a compaction but a key was deleted by its very revision, etcd's hash of
/// the compaction is not that of a request for the same revision, before it or after. Values from
/// etcd 3.7.1.
#[test]
fn the_hash_of_a_compaction_at_the_last_deletion() {
    let mut pair = Pair::new();
    pair.change(&Change::Put(Put {
        key: b"a".to_vec(),
        value: b"a".to_vec(),
        ..Put::default()
    }));
    pair.compact_now(2);
    pair.change(&Change::Delete(Delete {
        key: b"a".to_vec(),
        ..Delete::default()
    }));
    assert_eq!(pair.hash_now(3).hash, 1_089_006_714);
    pair.compact_now(3);
    assert_eq!(pair.hash_now(3).hash, 1_084_519_789);
    let kept: Vec<u32> = pair.machine.store.hashes().iter().map(|h| h.hash).collect();
    assert_eq!(kept, [3_407_656_708, 3_681_333_679]);
    pair.finish();
}

/// A hash on its way needs revisions that a compaction after its begin drops.
#[test]
fn a_compaction_does_not_reach_a_hash_on_its_way() {
    let put_a = || {
        Step::Change(Change::Put(Put {
            key: b"a".to_vec(),
            ..Put::default()
        }))
    };
    let mut steps: Vec<Step> = (0..30).map(|_| put_a()).collect();
    steps.extend([
        Step::Publish,
        Step::Hash { back: 0 },
        Step::ResumeHash { budget: 1 },
        Step::Change(Change::Compact { back: 1 }),
    ]);
    steps.extend((0..40).map(|_| Step::Slice { floor: true }));
    steps.extend([Step::Publish, Step::ResumeHash { budget: 100 }]);
    run(&steps);
}

#[test]
fn a_raised_alarm_refuses_what_grows() {
    let alarm = |action, alarm| Step::Change(Change::Alarm { action, alarm });
    let nested = Transaction {
        compares: vec![],
        success: vec![],
        failure: vec![Op::Txn(Transaction {
            compares: vec![],
            success: vec![put("k")],
            failure: vec![],
        })],
    };
    let all = [
        Change::Txn(nested),
        Change::Put(Put {
            key: b"k".to_vec(),
            ..Put::default()
        }),
        Change::Grant { id: 1, ttl: 5 },
        Change::Delete(Delete {
            key: b"k".to_vec(),
            ..Delete::default()
        }),
        Change::Revoke { id: 1 },
        Change::Compact { back: 0 },
    ];
    for kind in [alarm::NOSPACE, alarm::CORRUPT] {
        let mut steps = vec![alarm(1, kind), alarm(0, alarm::NONE)];
        steps.extend(all.iter().cloned().map(Step::Change));
        steps.extend([alarm(2, kind), alarm(2, kind)]);
        steps.extend(all.iter().cloned().map(Step::Change));
        run(&steps);
    }
}

/// etcd's testutil.CompactionCycle.
const CYCLE: i64 = 71;

/// etcd's testutil.PickKey.
fn pick_key(i: i64) -> &'static str {
    if i % (CYCLE * 2) == 30 {
        return "zenek";
    }
    if i % CYCLE == 30 {
        return "xavery";
    }
    [
        "alice",
        "bob",
        "celine",
        "dominik",
        "eve",
        "frederica",
        "gorge",
    ][(i % 7) as usize]
}

impl Pair {
    fn put_number(&mut self, i: i64) {
        self.change(&Change::Put(Put {
            key: pick_key(i).into(),
            value: i.to_string().into_bytes(),
            ..Put::default()
        }));
    }

    fn put_numbers(&mut self, from: i64, count: i64) {
        (from..=from + count).for_each(|i| self.put_number(i));
    }

    fn hash_now(&mut self, at: i64) -> KvHash {
        self.publish();
        let mut scan = self
            .reader
            .pin(|view, pin| HashScan::begin(at, &view.state(pin)))
            .expect("readable");
        while scan.step(100) {}
        scan.finish()
    }

    fn compact_now(&mut self, at: i64) {
        let back = self.model.revision as i64 - at;
        self.change(&Change::Compact { back });
        while self.machine.store.compact_slice(u64::MAX) {}
        self.publish();
    }

    /// etcd's testHashByRev: the hash up to `at`, 0 for the current revision, and a compaction
    /// there.
    fn hash_and_compact(&mut self, at: i64) -> (u32, i64, u64) {
        let hash = self.hash_now(at);
        self.compact_now(hash.revision as i64);
        (hash.hash, hash.compacted, hash.revision)
    }
}

fn golden_run(at: impl Fn(i64, i64) -> i64) -> Vec<(u32, i64, u64)> {
    const TOTAL: i64 = 1210;
    let mut pair = Pair::new();
    let mut got = Vec::new();
    let mut rev = 0;
    while rev < TOTAL {
        pair.put_numbers(rev, CYCLE);
        got.push(pair.hash_and_compact(at(rev, CYCLE)));
        rev += CYCLE;
    }
    pair.put_numbers(rev, TOTAL);
    got.push(pair.hash_and_compact(at(rev, TOTAL)));
    got
}

/// etcd's TestHashByRevValue.
#[test]
fn test_hash_by_rev_value() {
    let got = golden_run(|rev, count| rev + count / 2);
    let want = [
        (4_082_599_214, -1, 35),
        (2_279_933_401, 35, 106),
        (3_284_231_217, 106, 177),
        (126_286_495, 177, 248),
        (900_108_730, 248, 319),
        (2_475_485_232, 319, 390),
        (1_226_296_507, 390, 461),
        (2_503_661_030, 461, 532),
        (4_155_130_747, 532, 603),
        (106_915_399, 603, 674),
        (406_914_006, 674, 745),
        (1_882_211_381, 745, 816),
        (806_177_088, 816, 887),
        (664_311_366, 887, 958),
        (1_496_914_449, 958, 1029),
        (2_434_525_091, 1029, 1100),
        (3_988_652_253, 1100, 1171),
        (1_122_462_288, 1171, 1242),
        (724_436_716, 1242, 1883),
    ];
    assert_eq!(got, want);
}

/// etcd's TestHashByRevValueLastRevision.
#[test]
fn test_hash_by_rev_value_last_revision() {
    let got = golden_run(|_, _| 0);
    let want = [
        (1_913_897_190, -1, 73),
        (224_860_069, 73, 145),
        (1_565_167_519, 145, 217),
        (1_566_261_620, 217, 289),
        (2_037_173_024, 289, 361),
        (691_659_396, 361, 433),
        (2_713_730_748, 433, 505),
        (3_919_322_507, 505, 577),
        (769_967_540, 577, 649),
        (2_909_194_793, 649, 721),
        (1_576_921_157, 721, 793),
        (4_067_701_532, 793, 865),
        (2_226_384_237, 865, 937),
        (2_923_408_134, 937, 1009),
        (2_680_329_256, 1009, 1081),
        (1_546_717_673, 1081, 1153),
        (2_713_657_846, 1153, 1225),
        (1_046_575_299, 1225, 1297),
        (2_017_735_779, 1297, 2508),
    ];
    assert_eq!(got, want);
}

/// etcd's TestCompactionHash: a request's hash before a compaction there is the compaction's.
#[test]
fn test_compaction_hash() {
    let mut pair = Pair::new();
    let mut spans: Vec<(i64, i64)> = (0..1210).step_by(71).map(|s| (s, s + CYCLE)).collect();
    spans.push((1278, 1278 + 1210));
    for (start, stop) in spans {
        for i in start..=stop {
            if i % 67 == 0 {
                pair.change(&Change::Delete(Delete {
                    key: pick_key(i + 83).into(),
                    ..Delete::default()
                }));
            } else {
                pair.put_number(i);
            }
        }
        let hash = pair.hash_now(stop);
        pair.compact_now(stop);
        assert_eq!(pair.machine.store.hashes().last(), Some(&hash));
    }
}
