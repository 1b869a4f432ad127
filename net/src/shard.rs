//! One core's share of the server: requests that wait, the batch that fills, the View to read.
//!
//! Lives on one executor and never leaves it. Requests of one turn of the executor gather into one
//! batch, which goes to the sequencer at the end of the turn; results come back by the batch and
//! wake exactly those who wait. Reads that need a confirmed index join the round of their turn.
//!
//! Bounded: at most `shard_requests_max` requests wait (then `too many requests`), each at most the
//! request timeout (then etcd's `request timed out`). Not here: what requests mean (`kv.rs` and the
//! other services), how batches travel (`seq.rs`).

use core::cell::{Cell, RefCell};
use core::future::poll_fn;
use core::task::{Context, Poll, Waker};
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use ringkv_engine::apply::Outcome;
use ringkv_engine::command::{BatchWriter, Command, Envelope, Origin};
use ringkv_engine::error::ApiError;
use ringkv_engine::index::Reader;
use ringkv_engine::limits::Limits;
use ringkv_engine::members::Member;
use ringkv_engine::mvcc::{State, View};
use ringkv_engine::types::{MemberId, ShardId};
use ringkv_raft::sequencer::{Identity, LeaseAnswer, LeaseAsk, Status};

use crate::task::spawn;

/// From a shard to the sequencer.
#[derive(Debug)]
pub enum ToSequencer {
    /// A batch of records.
    Propose(Bytes),
    /// Reads wait under this round number.
    Read(ShardId, u64),
    /// A question about leases.
    Lease(ShardId, u64, LeaseAsk),
    /// The shard's watchers have walked all revisions up to this one; `None`: it has none.
    Walked(ShardId, Option<u64>),
    /// Whether the shard wants to hear of every new View.
    Follow(ShardId, bool),
}

/// What changes rarely and every shard wants to know.
#[derive(Debug, Default)]
pub struct Registry {
    /// All members, in order of ids.
    pub members: Vec<(MemberId, Member)>,
    /// `major.minor.patch`.
    pub cluster_version: Option<String>,
    /// Member and alarm type of each alarm raised.
    pub alarms: Vec<(MemberId, i32)>,
}

/// From the sequencer to a shard: all it has for it after one turn.
#[derive(Debug, Default)]
pub struct ToShard {
    /// Results by the shard's own count.
    pub results: Vec<(u64, Outcome)>,
    /// Rounds of reads that may go ahead: confirmed, applied and published.
    pub reads: Vec<u64>,
    /// Answers about leases.
    pub leases: Vec<(u64, LeaseAnswer)>,
    /// Where consensus stands.
    pub status: Status,
    /// The registry, when it has changed.
    pub registry: Option<Arc<Registry>>,
}

/// How a shard reaches the sequencer: a queue on its own core, or a ring to another.
pub trait Port {
    /// Hands over; the order is kept. The queue is bounded by what a shard lets wait.
    fn send(&self, message: ToSequencer);
}

/// Something that is awaited by number, mostly in order of numbers.
struct Waiting<T> {
    /// Number of the first slot.
    first: u64,
    slots: VecDeque<Slot<T>>,
    taken: usize,
}

enum Slot<T> {
    /// Since when, in the shard's seconds, and who.
    Waits(u32, Option<Waker>),
    Ready(T),
    /// Taken, or nobody waits any more.
    Done,
}

impl<T> Waiting<T> {
    fn new() -> Self {
        // 0 means "nobody".
        Self {
            first: 1,
            slots: VecDeque::new(),
            taken: 0,
        }
    }

    fn len(&self) -> usize {
        self.slots.len() - self.taken
    }

    fn open(&mut self, second: u32) -> u64 {
        self.slots.push_back(Slot::Waits(second, None));
        self.first + self.slots.len() as u64 - 1
    }

    fn slot(&mut self, number: u64) -> Option<&mut Slot<T>> {
        self.slots
            .get_mut(usize::try_from(number.checked_sub(self.first)?).ok()?)
    }

    fn fulfil(&mut self, number: u64, value: T) {
        let Some(slot) = self.slot(number) else {
            return;
        };
        if let Slot::Waits(_, waker) = slot {
            let waker = waker.take();
            *slot = Slot::Ready(value);
            if let Some(waker) = waker {
                waker.wake();
            }
        }
    }

    fn poll(&mut self, number: u64, cx: &Context<'_>) -> Poll<T> {
        let slot = self.slot(number).expect("a slot stays until it is done");
        match slot {
            Slot::Waits(_, waker) => {
                *waker = Some(cx.waker().clone());
                Poll::Pending
            }
            Slot::Ready(_) => {
                let Slot::Ready(value) = core::mem::replace(slot, Slot::Done) else {
                    unreachable!("just matched")
                };
                self.taken += 1;
                self.shrink();
                Poll::Ready(value)
            }
            Slot::Done => panic!("a result is taken once"),
        }
    }

    /// Nobody waits for `number` any more.
    fn abandon(&mut self, number: u64) {
        if let Some(slot) = self.slot(number)
            && !matches!(slot, Slot::Done)
        {
            *slot = Slot::Done;
            self.taken += 1;
            self.shrink();
        }
    }

    fn shrink(&mut self) {
        while let Some(Slot::Done) = self.slots.front() {
            self.slots.pop_front();
            self.first += 1;
            self.taken -= 1;
        }
    }

    /// Fulfils with `value` what waits since before `second`.
    fn expire(&mut self, second: u32, mut value: impl FnMut() -> T) {
        for slot in &mut self.slots {
            let Slot::Waits(since, waker) = slot else {
                continue;
            };
            if *since >= second {
                break;
            }
            let waker = waker.take();
            *slot = Slot::Ready(value());
            if let Some(waker) = waker {
                waker.wake();
            }
        }
    }
}

/// Reads of one turn, waiting for their round.
#[derive(Default)]
struct Round {
    ready: Cell<Option<Result<(), ApiError>>>,
    /// Second in which it opened.
    since: Cell<u32>,
    wakers: RefCell<Vec<Waker>>,
}

impl Round {
    fn end(&self, result: Result<(), ApiError>) {
        self.ready.set(Some(result));
        self.wakers.borrow_mut().drain(..).for_each(Waker::wake);
    }
}

struct Rounds {
    /// Number of the first of `open`.
    first: u64,
    /// Sent, or to be sent at the end of this turn, oldest first.
    open: VecDeque<Rc<Round>>,
    /// Whether the last of `open` may still be joined.
    joinable: bool,
}

/// See the module.
pub struct Shard {
    id: ShardId,
    identity: Identity,
    limits: Limits,
    timeout_s: u32,
    port: Box<dyn Port>,
    reader: Reader<View>,
    batch: RefCell<BatchWriter>,
    /// Whether the end of this turn is already being waited for.
    flush_due: Cell<bool>,
    results: RefCell<Waiting<Outcome>>,
    leases: RefCell<Waiting<LeaseAnswer>>,
    rounds: RefCell<Rounds>,
    status: Cell<Status>,
    second: Cell<u32>,
    registry: RefCell<Arc<Registry>>,
    /// Woken whenever a new View may be there.
    view_waiters: RefCell<Vec<Waker>>,
    view_count: Cell<u64>,
    followers: Cell<usize>,
}

impl Shard {
    /// A shard that reads through `reader` and sends through `port`.
    #[must_use]
    pub fn new(
        id: ShardId,
        identity: Identity,
        limits: Limits,
        timeout_s: u32,
        port: Box<dyn Port>,
        reader: Reader<View>,
    ) -> Rc<Self> {
        Rc::new(Self {
            id,
            identity,
            limits,
            timeout_s,
            port,
            reader,
            batch: RefCell::default(),
            flush_due: Cell::new(false),
            results: RefCell::new(Waiting::new()),
            leases: RefCell::new(Waiting::new()),
            rounds: RefCell::new(Rounds {
                first: 1,
                open: VecDeque::new(),
                joinable: false,
            }),
            status: Cell::default(),
            second: Cell::new(0),
            registry: RefCell::default(),
            view_waiters: RefCell::default(),
            view_count: Cell::new(0),
            followers: Cell::new(0),
        })
    }

    /// Which one.
    #[must_use]
    pub fn id(&self) -> ShardId {
        self.id
    }

    /// Which member, in which run.
    #[must_use]
    pub fn identity(&self) -> Identity {
        self.identity
    }

    /// Bounds.
    #[must_use]
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// The newest View's numbers.
    pub fn pin<R>(&self, f: impl FnOnce(&View) -> R) -> R {
        self.reader.pin(|view, _| f(view))
    }

    /// Reads the newest View's keys, for at most a millisecond or `pin_keys_max` keys.
    pub fn read<R>(&self, f: impl FnOnce(&State<'_>) -> R) -> R {
        self.reader.pin(|view, pin| f(&view.state(pin)))
    }

    /// Where consensus stood at the last word from the sequencer.
    #[must_use]
    pub fn status(&self) -> Status {
        self.status.get()
    }

    /// Proposes `command` and waits until it is applied and published.
    ///
    /// # Errors
    /// What apply said, `TooManyRequests`, `Timeout`.
    pub async fn propose(self: &Rc<Self>, command: Command<'_>) -> Result<Outcome, ApiError> {
        let count = self.submit(command)?;
        let mut wait = Wait {
            shard: self,
            of: Shard::results,
            number: count,
            done: false,
        };
        match wait.ready().await {
            Outcome::Failed(error) => Err(error),
            outcome => Ok(outcome),
        }
    }

    fn results(&self) -> &RefCell<Waiting<Outcome>> {
        &self.results
    }

    fn leases(&self) -> &RefCell<Waiting<LeaseAnswer>> {
        &self.leases
    }

    fn submit(self: &Rc<Self>, command: Command<'_>) -> Result<u64, ApiError> {
        let mut results = self.results.borrow_mut();
        if results.len() >= self.limits.shard_requests_max {
            return Err(ApiError::TooManyRequests);
        }
        let count = results.open(self.second.get());
        let Identity { member, start } = self.identity;
        let origin = Origin {
            member,
            start,
            sequence: Origin::sequence_of(self.id, count),
        };
        let full = {
            let mut batch = self.batch.borrow_mut();
            batch.push(&Envelope { origin, command });
            // The next record may be as large as a request may be.
            batch.bytes() >= self.limits.batch_bytes_max / 4
                || batch.records() >= self.limits.batch_records_max
        };
        if full {
            self.send_batch();
        } else {
            self.flush_at_end_of_turn();
        }
        Ok(count)
    }

    /// Asks the leader's lessor.
    ///
    /// # Errors
    /// What the lessor said, `TooManyRequests`, `Timeout`.
    pub async fn ask_lessor(self: &Rc<Self>, ask: LeaseAsk) -> Result<LeaseAnswer, ApiError> {
        let number = {
            let mut leases = self.leases.borrow_mut();
            if leases.len() >= self.limits.shard_requests_max {
                return Err(ApiError::TooManyRequests);
            }
            leases.open(self.second.get())
        };
        self.port.send(ToSequencer::Lease(self.id, number, ask));
        let mut wait = Wait {
            shard: self,
            of: Shard::leases,
            number,
            done: false,
        };
        match wait.ready().await {
            LeaseAnswer::Failed(error) => Err(error),
            answer => Ok(answer),
        }
    }

    /// Waits until this core's View holds all that was acknowledged anywhere before this call.
    ///
    /// # Errors
    /// `Timeout`.
    pub async fn read_gate(self: &Rc<Self>) -> Result<(), ApiError> {
        let round = {
            let mut rounds = self.rounds.borrow_mut();
            if !rounds.joinable {
                rounds.joinable = true;
                let round = Rc::new(Round::default());
                round.since.set(self.second.get());
                rounds.open.push_back(round);
            }
            Rc::clone(rounds.open.back().expect("one is joinable"))
        };
        self.flush_at_end_of_turn();
        poll_fn(|cx| {
            if let Some(result) = round.ready.get() {
                return Poll::Ready(result);
            }
            round.wakers.borrow_mut().push(cx.waker().clone());
            Poll::Pending
        })
        .await
    }

    fn flush_at_end_of_turn(self: &Rc<Self>) {
        if self.flush_due.replace(true) {
            return;
        }
        let shard = Rc::clone(self);
        // Scheduled, not polled at once: it runs after all that is ready in this turn.
        let flush = async move {
            shard.flush_due.set(false);
            shard.send_round();
            shard.send_batch();
        };
        spawn(flush);
    }

    fn send_round(&self) {
        let mut rounds = self.rounds.borrow_mut();
        if core::mem::take(&mut rounds.joinable) {
            let number = rounds.first + rounds.open.len() as u64 - 1;
            self.port.send(ToSequencer::Read(self.id, number));
        }
    }

    fn send_batch(&self) {
        let mut batch = self.batch.borrow_mut();
        if batch.records() > 0 {
            self.port.send(ToSequencer::Propose(batch.take()));
        }
    }

    /// The shard's watchers have walked up to `revision`; `None` when there are none left.
    pub fn walked(&self, revision: Option<u64>) {
        self.port.send(ToSequencer::Walked(self.id, revision));
    }

    /// Takes what the sequencer sends.
    pub fn deliver(&self, message: ToShard) {
        self.status.set(message.status);
        {
            let mut results = self.results.borrow_mut();
            for (count, outcome) in message.results {
                results.fulfil(count, outcome);
            }
        }
        {
            let mut leases = self.leases.borrow_mut();
            for (number, answer) in message.leases {
                leases.fulfil(number, answer);
            }
        }
        self.confirm_rounds(&message.reads);
        self.view_count.set(self.view_count.get() + 1);
        if let Some(registry) = message.registry {
            self.registry.replace(registry);
        }
        self.view_waiters
            .borrow_mut()
            .drain(..)
            .for_each(Waker::wake);
    }

    fn confirm_rounds(&self, reads: &[u64]) {
        let mut rounds = self.rounds.borrow_mut();
        for &number in reads {
            // A later round's confirmation covers the earlier ones.
            while rounds.first <= number {
                rounds.first += 1;
                // One that has waited too long is gone already.
                if let Some(round) = rounds.open.pop_front() {
                    round.end(Ok(()));
                }
            }
        }
    }

    /// Members and alarms.
    #[must_use]
    pub fn registry(&self) -> Arc<Registry> {
        Arc::clone(&self.registry.borrow())
    }

    /// Hears of every new View until dropped.
    #[must_use]
    pub fn follow(self: &Rc<Self>) -> Follower {
        self.followers.set(self.followers.get() + 1);
        if self.followers.get() == 1 {
            self.port.send(ToSequencer::Follow(self.id, true));
        }
        Follower {
            shard: Rc::clone(self),
            seen: self.view_count.get(),
        }
    }

    /// To be called once a second: ends what has waited for longer than a request may.
    pub fn second_passed(&self) {
        let second = self.second.get() + 1;
        self.second.set(second);
        let oldest = second.saturating_sub(self.timeout_s);
        self.results
            .borrow_mut()
            .expire(oldest, || Outcome::Failed(ApiError::Timeout));
        self.leases
            .borrow_mut()
            .expire(oldest, || LeaseAnswer::Failed(ApiError::Timeout));
        let rounds = self.rounds.borrow();
        for round in rounds.open.iter().filter(|r| r.since.get() < oldest) {
            round.end(Err(ApiError::Timeout));
        }
    }
}

/// See [`Shard::follow`].
pub struct Follower {
    shard: Rc<Shard>,
    seen: u64,
}

impl Follower {
    /// Waits until there may be a newer View than at the last call.
    pub async fn next_view(&mut self) {
        poll_fn(|cx| {
            let count = self.shard.view_count.get();
            if self.seen != count {
                self.seen = count;
                return Poll::Ready(());
            }
            self.shard
                .view_waiters
                .borrow_mut()
                .push(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        let followers = &self.shard.followers;
        followers.set(followers.get() - 1);
        if followers.get() == 0 {
            self.shard
                .port
                .send(ToSequencer::Follow(self.shard.id, false));
        }
    }
}

/// Waits for a number; gives the slot back when dropped.
struct Wait<'s, T> {
    shard: &'s Shard,
    of: fn(&Shard) -> &RefCell<Waiting<T>>,
    number: u64,
    done: bool,
}

impl<T> Wait<'_, T> {
    async fn ready(&mut self) -> T {
        poll_fn(|cx| {
            let value = (self.of)(self.shard).borrow_mut().poll(self.number, cx);
            self.done |= value.is_ready();
            value
        })
        .await
    }
}

impl<T> Drop for Wait<'_, T> {
    fn drop(&mut self) {
        if !self.done {
            (self.of)(self.shard).borrow_mut().abandon(self.number);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn poll<T>(w: &mut Waiting<T>, number: u64) -> Option<T> {
        match w.poll(number, &Context::from_waker(Waker::noop())) {
            Poll::Ready(value) => Some(value),
            Poll::Pending => None,
        }
    }

    #[test]
    fn results_in_any_order_reach_who_waits() {
        let mut w = Waiting::new();
        let numbers: Vec<u64> = (0..4).map(|_| w.open(0)).collect();
        assert_eq!(poll(&mut w, numbers[2]), None);
        w.fulfil(numbers[2], "c");
        w.fulfil(numbers[0], "a");
        assert_eq!(poll(&mut w, numbers[2]), Some("c"));
        assert_eq!(w.len(), 3);
        w.abandon(numbers[1]);
        w.fulfil(numbers[1], "nobody wants it");
        assert_eq!(poll(&mut w, numbers[0]), Some("a"));
        assert_eq!(w.len(), 1);
        assert_eq!(w.slots.len(), 1, "all before the last are gone");
        w.fulfil(numbers[3], "d");
        assert_eq!(poll(&mut w, numbers[3]), Some("d"));
        assert!(w.slots.is_empty());
    }

    #[test]
    fn what_waits_too_long_is_ended() {
        let mut w = Waiting::new();
        let (old, new) = (w.open(1), w.open(5));
        w.expire(5, || "late");
        assert_eq!(poll(&mut w, old), Some("late"));
        assert_eq!(poll(&mut w, new), None);
    }
}
