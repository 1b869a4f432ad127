//! Random commands, owned, and what of the engine they become.

use proptest::prelude::*;
use ringkv_engine::command::{self, Command, TxnOp};
use ringkv_engine::mvcc::range::{order, target};

#[derive(Clone, Debug, Default)]
pub struct Put {
    pub key: Vec<u8>,
    pub value: Vec<u8>,
    pub lease: i64,
    pub prev_kv: bool,
    pub ignore_value: bool,
    pub ignore_lease: bool,
}

impl Put {
    pub fn command(&self) -> command::Put<'_> {
        command::Put {
            key: &self.key,
            value: &self.value,
            lease: self.lease,
            prev_kv: self.prev_kv,
            ignore_value: self.ignore_value,
            ignore_lease: self.ignore_lease,
        }
    }
}

#[derive(Clone, Debug, Default)]
pub struct Delete {
    pub key: Vec<u8>,
    pub range_end: Vec<u8>,
    pub prev_kv: bool,
}

impl Delete {
    pub fn command(&self) -> command::DeleteRange<'_> {
        command::DeleteRange {
            key: &self.key,
            range_end: &self.range_end,
            prev_kv: self.prev_kv,
        }
    }
}

#[derive(Clone, Debug, Default)]
pub struct Query {
    pub key: Vec<u8>,
    pub range_end: Vec<u8>,
    pub limit: i64,
    /// Of a generated query above 1000: 1000 more than how far back.
    pub revision: i64,
    pub sort_order: i32,
    pub sort_target: i32,
    pub keys_only: bool,
    pub count_only: bool,
    /// Min and max mod, min and max create revision.
    pub filters: [i64; 4],
}

impl Query {
    /// With its revision counted back from the current one.
    pub fn resolved(&self, revision: u64) -> Self {
        let back = self.revision - 1000;
        let mut query = self.clone();
        if back >= 0 {
            query.revision = revision as i64 + 2 - back;
        }
        query
    }

    pub fn command(&self) -> command::Range<'_> {
        let [
            min_mod_revision,
            max_mod_revision,
            min_create_revision,
            max_create_revision,
        ] = self.filters;
        command::Range {
            key: &self.key,
            range_end: &self.range_end,
            limit: self.limit,
            revision: self.revision,
            sort_order: self.sort_order,
            sort_target: self.sort_target,
            keys_only: self.keys_only,
            count_only: self.count_only,
            min_mod_revision,
            max_mod_revision,
            min_create_revision,
            max_create_revision,
        }
    }
}

#[derive(Clone, Debug)]
pub enum Target {
    Version(i64),
    Create(i64),
    Mod(i64),
    Value(Vec<u8>),
    Lease(i64),
    Unknown,
}

#[derive(Clone, Debug)]
pub struct Compare {
    pub key: Vec<u8>,
    pub range_end: Vec<u8>,
    pub result: i32,
    pub target: Target,
}

impl Compare {
    fn command(&self) -> command::Compare<'_> {
        command::Compare {
            key: &self.key,
            range_end: &self.range_end,
            result: self.result,
            target: match &self.target {
                Target::Version(v) => command::Target::Version(*v),
                Target::Create(v) => command::Target::Create(*v),
                Target::Mod(v) => command::Target::Mod(*v),
                Target::Value(v) => command::Target::Value(v),
                Target::Lease(v) => command::Target::Lease(*v),
                Target::Unknown => command::Target::Unknown,
            },
        }
    }
}

#[derive(Clone, Debug)]
pub enum Op {
    Range(Query),
    Put(Put),
    Delete(Delete),
    Txn(Transaction),
}

#[derive(Clone, Debug)]
pub struct Transaction {
    pub compares: Vec<Compare>,
    pub success: Vec<Op>,
    pub failure: Vec<Op>,
}

impl Transaction {
    pub fn command(&self) -> command::Txn<'_> {
        fn ops(ops: &[Op]) -> Vec<TxnOp<'_>> {
            fn op(op: &Op) -> TxnOp<'_> {
                match op {
                    Op::Range(r) => TxnOp::Range(r.command()),
                    Op::Put(p) => TxnOp::Put(p.command()),
                    Op::Delete(d) => TxnOp::DeleteRange(d.command()),
                    Op::Txn(t) => TxnOp::Txn(t.command()),
                }
            }
            ops.iter().map(op).collect()
        }
        command::Txn {
            compare: self.compares.iter().map(Compare::command).collect(),
            success: ops(&self.success),
            failure: ops(&self.failure),
        }
    }
}

#[derive(Clone, Debug)]
pub enum Change {
    Put(Put),
    Delete(Delete),
    Txn(Transaction),
    Compact { back: i64 },
    Grant { id: i64, ttl: i64 },
    Revoke { id: i64 },
    Expire { ids: Vec<i64>, fenced: bool },
    Remaining { id: i64, ttl: i64 },
    Alarm { action: i32, alarm: i32 },
}

impl Change {
    /// At the store's current revision.
    pub fn command(&self, revision: u64) -> Command<'_> {
        match self {
            Self::Put(put) => Command::Put(put.command()),
            Self::Delete(delete) => Command::DeleteRange(delete.command()),
            Self::Txn(txn) => Command::Txn(txn.command()),
            Self::Compact { back } => Command::Compact {
                revision: revision as i64 - back,
            },
            Self::Grant { id, ttl } => Command::LeaseGrant { id: *id, ttl: *ttl },
            Self::Revoke { id } => Command::LeaseRevoke { id: *id },
            Self::Expire { ids, fenced } => Command::LeaseExpire {
                ids: ids.clone(),
                term: crate::TERM - u64::from(*fenced),
                applied: u64::MAX,
            },
            Self::Remaining { id, ttl } => Command::LeaseCheckpoint {
                remaining: vec![(*id, *ttl)],
                applied: u64::MAX,
            },
            Self::Alarm { action, alarm } => Command::Alarm {
                action: *action,
                member: 1,
                alarm: *alarm,
            },
        }
    }
}

#[derive(Clone, Debug)]
pub enum Step {
    Change(Change),
    /// One whose result nobody here waits for.
    Unwanted(Change),
    Publish,
    Slice {
        floor: bool,
    },
    Range(Query),
    Read(Transaction),
    Resume {
        nth: usize,
        budget: usize,
    },
    Hash {
        back: i64,
    },
    ResumeHash {
        budget: usize,
    },
}

/// Ten at most: beyond twelve, Go's sort is not stable, and the model's is (`mvcc/sort.rs` is
/// tested on its own).
const KEYS: [&[u8]; 9] = [
    b"a", b"a\0", b"ab", b"abc", b"b", b"b\xff", b"c", b"\xff", b"d",
];
const VALUES: [&[u8]; 5] = [b"", b"1", b"2", b"22", &[b'x'; 9000]];

fn key() -> impl Strategy<Value = Vec<u8>> {
    prop::sample::select(&KEYS[..]).prop_map(<[u8]>::to_vec)
}

fn value() -> impl Strategy<Value = Vec<u8>> {
    prop::sample::select(&VALUES[..]).prop_map(<[u8]>::to_vec)
}

fn range_end() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![4 => Just(vec![]), 3 => Just(vec![0]), 5 => key()]
}

fn lease() -> impl Strategy<Value = i64> {
    prop_oneof![6 => Just(0i64), 3 => 1..4i64]
}

fn rarely() -> impl Strategy<Value = bool> {
    prop::bool::weighted(0.15)
}

fn put() -> impl Strategy<Value = Put> {
    (key(), value(), lease(), any::<bool>(), rarely(), rarely()).prop_map(
        |(key, value, lease, prev_kv, ignore_value, ignore_lease)| Put {
            key,
            value,
            lease,
            prev_kv,
            ignore_value,
            ignore_lease,
        },
    )
}

fn delete() -> impl Strategy<Value = Delete> {
    // Mostly one key, or little would ever be there.
    let range_end = prop_oneof![4 => Just(vec![]), 1 => range_end()];
    (key(), range_end, any::<bool>()).prop_map(|(key, range_end, prev_kv)| Delete {
        key,
        range_end,
        prev_kv,
    })
}

fn filter() -> impl Strategy<Value = i64> {
    prop_oneof![8 => Just(0i64), 1 => 1..40i64]
}

fn query() -> impl Strategy<Value = Query> {
    let whole = (Just(b"\0".to_vec()), Just(vec![0]));
    let span = prop_oneof![1 => whole, 1 => (key(), range_end())];
    let revision = prop_oneof![
        4 => Just(0i64),
        4 => 1000..1012i64,
        1 => 1000..1060i64,
        1 => -3..3i64
    ];
    let limit = prop_oneof![2 => Just(0i64), 3 => 1..5i64, 1 => Just(-1i64), 1 => Just(i64::MAX)];
    let sort = (order::NONE..=order::DESCEND, target::KEY..=target::VALUE);
    let filters = [filter(), filter(), filter(), filter()];
    (span, revision, limit, sort, rarely(), rarely(), filters).prop_map(
        |((key, range_end), revision, limit, sort, keys_only, count_only, filters)| Query {
            key,
            range_end,
            limit,
            revision,
            sort_order: sort.0,
            sort_target: sort.1,
            keys_only,
            count_only,
            filters,
        },
    )
}

/// Within a transaction a revision is as it is: mostly the current one, else one near.
fn query_within() -> impl Strategy<Value = Query> {
    let revision = prop_oneof![9 => Just(0i64), 1 => -2..20i64];
    (query(), revision).prop_map(|(query, revision)| Query { revision, ..query })
}

fn compare() -> impl Strategy<Value = Compare> {
    let number = 0..12i64;
    let target = prop_oneof![
        (0..3i64).prop_map(Target::Version),
        number.clone().prop_map(Target::Create),
        number.prop_map(Target::Mod),
        value().prop_map(Target::Value),
        lease().prop_map(Target::Lease),
        Just(Target::Unknown),
    ];
    (key(), range_end(), 0..5i32, target).prop_map(|(key, range_end, result, target)| Compare {
        key,
        range_end,
        result,
        target,
    })
}

fn transaction(op: impl Strategy<Value = Op> + Clone) -> impl Strategy<Value = Transaction> {
    let ops = || prop::collection::vec(op.clone(), 0..4);
    (prop::collection::vec(compare(), 0..3), ops(), ops()).prop_map(
        |(compares, success, failure)| Transaction {
            compares,
            success,
            failure,
        },
    )
}

fn op() -> impl Strategy<Value = Op> + Clone {
    let leaf = prop_oneof![
        1 => query_within().prop_map(Op::Range),
        3 => put().prop_map(Op::Put),
        1 => delete().prop_map(Op::Delete),
    ];
    leaf.prop_recursive(2, 8, 3, |inner| transaction(inner).prop_map(Op::Txn))
}

fn change() -> impl Strategy<Value = Change> {
    let id = || 1..4i64;
    let ttl = prop_oneof![Just(0i64), 3..9i64, Just(i64::MAX)];
    let back = prop_oneof![6 => 0..6i64, 1 => -2..60i64];
    let alarm = prop_oneof![Just((1, 1)), Just((1, 2)), Just((0, 0)), Just((3, 1))];
    prop_oneof![
        24 => put().prop_map(Change::Put),
        6 => delete().prop_map(Change::Delete),
        12 => transaction(op()).prop_map(Change::Txn),
        2 => back.prop_map(|back| Change::Compact { back }),
        4 => (prop_oneof![9 => id(), 1 => Just(0i64)], ttl)
            .prop_map(|(id, ttl)| Change::Grant { id, ttl }),
        1 => id().prop_map(|id| Change::Revoke { id }),
        1 => (prop::collection::vec(id(), 1..3), rarely())
            .prop_map(|(ids, fenced)| Change::Expire { ids, fenced }),
        1 => (id(), -1..12i64).prop_map(|(id, ttl)| Change::Remaining { id, ttl }),
        1 => (alarm, 0..4u8).prop_map(|((action, alarm), often)| {
            // Mostly the alarms end.
            let action = if often > 0 && action == 1 { 2 } else { action };
            Change::Alarm { action, alarm }
        }),
    ]
}

pub fn step() -> impl Strategy<Value = Step> {
    let read = transaction(query_within().prop_map(Op::Range).boxed());
    prop_oneof![
        10 => change().prop_map(Step::Change),
        2 => change().prop_map(Step::Unwanted),
        4 => Just(Step::Publish),
        4 => any::<bool>().prop_map(|floor| Step::Slice { floor }),
        6 => query().prop_map(Step::Range),
        2 => read.prop_map(Step::Read),
        8 => (any::<usize>(), 1..5usize).prop_map(|(nth, budget)| Step::Resume { nth, budget }),
        2 => (0..12i64).prop_map(|back| Step::Hash { back }),
        3 => (1..9usize).prop_map(|budget| Step::ResumeHash { budget }),
    ]
}
