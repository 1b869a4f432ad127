//! A shard and its clients: makes commands, reads and questions by seed, and checks each read.

use std::collections::{BTreeMap, VecDeque};

use ringkv_engine::command::{
    BatchWriter, Command, Compare, DeleteRange, Envelope, Origin, Put, Range, Target, Txn, TxnOp,
};
use ringkv_engine::error::ApiError;
use ringkv_engine::index::Reader;
use ringkv_engine::io::sim::Prng;
use ringkv_engine::limits::Limits;
use ringkv_engine::mvcc::View;
use ringkv_engine::mvcc::range::{RangeResult, RangeScan};
use ringkv_engine::types::{Index, LeaseId, ShardId};
use ringkv_raft::sequencer::{Event, Identity, LeaseAsk};

use super::Plant;
use super::ledger::Ledger;

const KEYS: usize = 40;
const LEASES: usize = 8;

/// A client's read.
struct Read {
    /// It must see all up to here: what clients were shown before it began.
    floor: Index,
    key: Vec<u8>,
    range_end: Vec<u8>,
    revision: i64,
    /// A planted bug's: what the View had applied that it is answered from.
    old_view: Option<Index>,
}

/// A read on its way.
struct Reading {
    read: Read,
    applied: Index,
    at: u64,
    scan: RangeScan,
}

/// One front core.
pub struct Shard {
    /// Which one.
    pub id: ShardId,
    /// Messages that the sequencer has not taken yet, in order.
    pub ring: VecDeque<Event>,
    /// Lease questions not answered yet.
    pub asks: BTreeMap<u64, LeaseAsk>,
    /// Commands that wait for their result.
    pub waiting: usize,
    identity: Identity,
    limits: Limits,
    batch: BatchWriter,
    count: u64,
    next_ask: u64,
    /// Reads that gather for the next round.
    joined: Vec<Read>,
    /// What the View had applied when the round's first read came, or that of the round before.
    view_of_round: Index,
    rounds: BTreeMap<u64, Vec<Read>>,
    next_round: u64,
    confirmed: VecDeque<Read>,
    reading: Option<Reading>,
}

impl Shard {
    /// Shard `id` of this run.
    #[must_use]
    pub fn new(id: ShardId, identity: Identity, limits: Limits) -> Self {
        Self {
            id,
            ring: VecDeque::new(),
            asks: BTreeMap::new(),
            waiting: 0,
            identity,
            limits,
            batch: BatchWriter::default(),
            count: 0,
            next_ask: 0,
            joined: Vec::new(),
            view_of_round: 0,
            rounds: BTreeMap::new(),
            next_round: 0,
            confirmed: VecDeque::new(),
            reading: None,
        }
    }

    /// Whether nothing is on its way.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.ring.is_empty()
            && self.waiting == 0
            && self.asks.is_empty()
            && self.joined.is_empty()
            && self.rounds.is_empty()
            && self.confirmed.is_empty()
            && self.reading.is_none()
    }

    /// A client submits a command, if the shard takes one more.
    pub fn submit(&mut self, rng: &mut Prng, revision: u64) {
        if self.waiting >= self.limits.shard_requests_max {
            return;
        }
        self.count += 1;
        self.waiting += 1;
        let sequence = Origin::sequence_of(self.id, self.count);
        let bytes = format!("{}.{sequence:x}.", self.identity.start).into_bytes();
        let (keys, mut value) = ([key(rng), key(rng), key(rng)], bytes);
        let padding = match rng.below(30) {
            0 => rng.below(3000),
            _ => rng.below(150),
        };
        value.resize(value.len() + padding, b'x');
        let command = command(rng, &keys, &value, revision);
        let origin = Origin {
            member: self.identity.member,
            start: self.identity.start,
            sequence,
        };
        self.batch.push(&Envelope { origin, command });
        if self.batch.bytes() >= self.limits.batch_bytes_max / 4
            || self.batch.records() >= self.limits.batch_records_max
        {
            self.ring.push_back(Event::Propose(self.batch.take()));
        }
    }

    /// A client asks for a range.
    pub fn read(&mut self, rng: &mut Prng, ledger: &Ledger, view: &Reader<View>, plant: Plant) {
        let (key, end) = (key(rng), key(rng));
        let range_end = match rng.below(3) {
            0 => Vec::new(),
            1 => vec![0],
            _ => end,
        };
        let revision = match rng.below(3) {
            0 => ledger.model.revision as i64 + 1 - rng.below(20) as i64,
            _ => 0,
        };
        let old_view = self.view_of_round;
        if self.joined.is_empty() {
            self.view_of_round = view.pin(|view, _| view.applied);
        }
        let mut read = Read {
            floor: ledger.shown,
            key,
            range_end,
            revision: revision.max(0),
            old_view: None,
        };
        match plant {
            Plant::ReadWithoutRound => {
                read.old_view = Some(old_view);
                return self.confirmed.push_back(read);
            }
            Plant::ViewBeforeWait => read.old_view = Some(self.view_of_round),
            _ => {}
        }
        self.joined.push(read);
    }

    /// A client asks the lessor.
    pub fn ask(&mut self, rng: &mut Prng) {
        if self.asks.len() >= self.limits.shard_requests_max {
            return;
        }
        let ask = match rng.below(8) {
            0..5 => LeaseAsk::KeepAlive(lease(rng)),
            5..7 => LeaseAsk::TimeToLive(lease(rng), rng.below(2) == 0),
            _ => LeaseAsk::List,
        };
        self.next_ask += 1;
        self.asks.insert(self.next_ask, ask);
        let event = Event::Lease(self.id, self.next_ask, ask);
        self.ring.push_back(event);
    }

    /// The end of the executor's turn: the round, then the batch.
    pub fn end_turn(&mut self) {
        if !self.joined.is_empty() {
            self.next_round += 1;
            let reads = core::mem::take(&mut self.joined);
            self.rounds.insert(self.next_round, reads);
            self.ring.push_back(Event::Read(self.id, self.next_round));
        }
        if self.batch.records() > 0 {
            self.ring.push_back(Event::Propose(self.batch.take()));
        }
    }

    /// The sequencer says that a round's reads may go ahead.
    pub fn confirmed(&mut self, round: u64) {
        let reads = self.rounds.remove(&round);
        let reads = reads.expect("a round is confirmed once, after it was sent");
        self.confirmed.extend(reads);
    }

    /// One pin's worth of reading; true when a read was answered.
    pub fn progress(&mut self, ledger: &mut Ledger, view: &Reader<View>) -> bool {
        let Some(mut reading) = self.reading.take() else {
            return self.begin(ledger, view);
        };
        let step = view.pin(|view, pin| {
            let budget = self.limits.pin_keys_max;
            reading.scan.step(&view.state(pin), budget)
        });
        match step {
            Ok(true) => {
                self.reading = Some(reading);
                false
            }
            Ok(false) => {
                let Reading {
                    read,
                    applied,
                    at,
                    scan,
                } = reading;
                read.check(ledger, applied, at, &scan.finish());
                true
            }
            Err(error) => {
                assert_eq!(error, ApiError::Compacted);
                assert!(ledger.model.compacted > reading.at as i64);
                true
            }
        }
    }

    fn begin(&mut self, ledger: &mut Ledger, view: &Reader<View>) -> bool {
        let Some(read) = self.confirmed.pop_front() else {
            return false;
        };
        let begun = view.pin(|view, pin| {
            let applied = read.old_view.unwrap_or(view.applied);
            let floor = read.floor;
            assert!(applied >= floor, "a stale read: {applied} of {floor}");
            let state = view.state(pin);
            let at = state.readable(read.revision);
            (
                view.applied,
                view.revision,
                at,
                RangeScan::begin(&read.query(), &state),
            )
        });
        match begun {
            (applied, _, Ok(at), Ok(scan)) => {
                self.reading = Some(Reading {
                    read,
                    applied,
                    at,
                    scan,
                });
                false
            }
            (_, revision, Err(error), Err(same)) => {
                assert_eq!(error, same);
                match error {
                    ApiError::FutureRev => assert!(read.revision > revision as i64),
                    ApiError::Compacted => assert!(read.revision < ledger.model.compacted),
                    other => panic!("a read fails: {other}"),
                }
                true
            }
            _ => panic!("two opinions on revision {}", read.revision),
        }
    }
}

impl Read {
    fn query(&self) -> Range<'_> {
        Range {
            key: &self.key,
            range_end: &self.range_end,
            revision: self.revision,
            ..Range::default()
        }
    }

    /// The answer is what the log says, and no older than what was shown before the read began.
    fn check(&self, ledger: &mut Ledger, applied: Index, at: u64, result: &RangeResult) {
        assert!(
            applied >= self.floor,
            "a stale read: {applied} of {}",
            self.floor
        );
        let at = match self.revision {
            0 => at,
            revision => revision as u64,
        };
        let expected = ledger.model.range(&self.key, &self.range_end, at);
        assert!(
            result.kvs.iter().eq(expected.iter().map(|(_, kv)| kv)),
            "a read's keys"
        );
        assert_eq!(result.count, expected.len() as u64);
        ledger.shown = ledger.shown.max(applied);
    }
}

fn key(rng: &mut Prng) -> Vec<u8> {
    format!("k{:02}", rng.below(KEYS)).into_bytes()
}

fn lease(rng: &mut Prng) -> LeaseId {
    1 + rng.below(LEASES) as LeaseId
}

fn put<'a>(rng: &mut Prng, key: &'a [u8], value: &'a [u8]) -> Put<'a> {
    Put {
        key,
        value,
        lease: if rng.below(4) == 0 { lease(rng) } else { 0 },
        prev_kv: rng.below(4) == 0,
        ignore_value: false,
        ignore_lease: false,
    }
}

fn delete<'a>(rng: &mut Prng, key: &'a [u8], range_end: &'a [u8]) -> DeleteRange<'a> {
    DeleteRange {
        key,
        range_end,
        prev_kv: rng.below(2) == 0,
    }
}

fn command<'a>(
    rng: &mut Prng,
    [a, b, c]: &'a [Vec<u8>; 3],
    value: &'a [u8],
    revision: u64,
) -> Command<'a> {
    match rng.below(100) {
        0..55 => Command::Put(put(rng, a, value)),
        55..65 => Command::DeleteRange(delete(rng, a, &[])),
        65..67 => Command::DeleteRange(delete(rng, a, b)),
        67..82 => Command::Txn(txn(rng, [a, b, c], value, revision)),
        82..85 => Command::Compact {
            revision: revision as i64 + 2 - rng.below(60) as i64,
        },
        85..95 => Command::LeaseGrant {
            id: lease(rng),
            ttl: rng.below(6) as i64,
        },
        _ => Command::LeaseRevoke { id: lease(rng) },
    }
}

fn txn<'a>(rng: &mut Prng, [a, b, c]: [&'a [u8]; 3], value: &'a [u8], revision: u64) -> Txn<'a> {
    let target = match rng.below(2) {
        0 => Target::Mod(revision.saturating_sub(rng.below(50) as u64) as i64),
        _ => Target::Value(value),
    };
    let result = match target {
        Target::Mod(_) => rng.below(4) as i32,
        _ => 0,
    };
    let compare = Compare {
        key: a,
        range_end: &[],
        result,
        target,
    };
    let range = Range {
        key: b"k",
        range_end: &[0],
        ..Range::default()
    };
    let mut success = vec![TxnOp::Put(put(rng, a, value))];
    if b != a {
        success.push(TxnOp::DeleteRange(delete(rng, b, &[])));
        success.push(TxnOp::Range(range));
    }
    if c != a && c != b {
        success.push(TxnOp::Put(put(rng, c, value)));
    }
    Txn {
        compare: vec![compare],
        success,
        failure: vec![TxnOp::Put(put(rng, b, value))],
    }
}
