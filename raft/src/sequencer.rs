//! The heart: one owner of raft node, WAL and state machine.
//!
//! Lives on one core. A write passes through it in the stages accepted (in the open frame),
//! submitted (given to the device), flushed, committed, applied, published; results leave only
//! after the View that holds them is published (I3). Nothing waits in here: [`Sequencer::step`] is
//! total over [`Event`], and what it wants done comes back in [`Actions`].
//!
//! Back-pressure: a batch is proposed only when it fits the open frame; until then it waits in
//! `pending`, bounded in bytes: a client that gave up leaves its batch there, so what shards let
//! wait is no bound. Beyond it a batch is refused.
//!
//! Not here: time (it is told `now_ms`), devices, rings, who waits for a result.

mod leases;

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use raft_rs::eraftpb::{Entry as RaftEntry, EntryType};
use raft_rs::{Ready, Storage};
use ringkv_engine::apply::{Machine, Outcome};
use ringkv_engine::checkpoint::{CheckpointImage, Conf};
use ringkv_engine::command::{self, Command, Envelope, Origin};
use ringkv_engine::error::ApiError;
use ringkv_engine::io::AlignedBuf;
use ringkv_engine::limits::Limits;
use ringkv_engine::mvcc::View;
use ringkv_engine::types::{Index, LeaseId, Lsn, MemberId, ShardId, Term};
use ringkv_engine::wal::frame::{FRAME_HEADER_BYTES, record_bytes};
use ringkv_engine::wal::{self, Entry, EntryKind, FrameId, HardState, SegmentId, Wal, WriteFrame};

use self::leases::Parked;
pub use self::leases::{LeaseAnswer, LeaseAsk};
use crate::node::Node;
use crate::read::Reads;

/// Room of the open frame kept for entries of raft's and our own making, bytes; at most an eighth
/// of the frame.
const FRAME_RESERVE_BYTES_MAX: usize = 32 << 10;

/// What happens to the sequencer.
#[derive(Debug)]
pub enum Event {
    /// A shard's batch of records ([`command::BatchWriter`]).
    Propose(Bytes),
    /// A shard's reads wait for a round under this number.
    Read(ShardId, u64),
    /// A question about leases that only the leader's clock answers.
    Lease(ShardId, u64, LeaseAsk),
    /// The device has made a frame durable.
    Flushed(FrameId, AlignedBuf),
    /// A WAL action is done: this file is ready for frames.
    SegmentReady(SegmentId),
    /// A WAL action is done: this file is gone.
    SegmentRemoved(SegmentId),
    /// A heartbeat interval has passed.
    Tick,
    /// No event for a while: say so in the log.
    Idle,
    /// Time for one slice of background work. Watchers have walked all revisions up to `floor`.
    Background {
        /// Main revision.
        floor: u64,
    },
    /// A checkpoint of everything up to this index is durable.
    Checkpointed(Index),
}

/// What is to be done; filled by [`Sequencer::step`], emptied by the caller.
#[derive(Default)]
pub struct Actions {
    /// Write and flush, then [`Event::Flushed`]. A failure stops the process.
    pub frames: Vec<WriteFrame>,
    /// Run on a side thread, one at a time, then [`Event::SegmentReady`] or `SegmentRemoved`.
    pub wal: Vec<wal::Action>,
    /// By sequence number of the origin, to be given to its shard.
    pub results: Vec<(u64, Outcome)>,
    /// A shard's round is confirmed: its reads wait for this index to be applied.
    pub reads: Vec<(ShardId, u64, Index)>,
    /// Answers about leases.
    pub leases: Vec<(ShardId, u64, LeaseAnswer)>,
    /// Whether a new View was published.
    pub published: bool,
    /// Whether another [`Event::Background`] could go on at once.
    pub background: bool,
    /// Take a checkpoint now, then [`Event::Checkpointed`].
    pub checkpoint: bool,
}

/// Where consensus stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Status {
    /// Current term.
    pub term: Term,
    /// Leader, 0 for none.
    pub leader: MemberId,
    /// Highest committed index.
    pub committed: Index,
    /// Highest applied index.
    pub applied: Index,
}

/// Who this member is in this run.
#[derive(Clone, Copy, Debug)]
pub struct Identity {
    /// Member id.
    pub member: MemberId,
    /// Tells this run from earlier ones; in the origin of each proposal.
    pub start: u32,
}

/// See the module.
pub struct Sequencer {
    node: Node,
    wal: Wal,
    machine: Machine,
    identity: Identity,
    limits: Limits,
    election_ms: u64,
    /// With the bytes that each takes in a frame.
    pending: VecDeque<(Bytes, usize)>,
    /// Of `pending`.
    pending_bytes: usize,
    /// What records that raft was given and has not handed out will take of the open frame.
    unframed_bytes: usize,
    /// Readys whose entries are in frames up to this LSN.
    unflushed: VecDeque<(u64, Lsn)>,
    reads: Reads,
    /// Keepalives that wait for the outcome of an entry in the log.
    parked: BTreeMap<LeaseId, Vec<Parked>>,
    /// Questions to be asked again with the next step: those that came before the clocks run, when
    /// not all of the log is applied and what is known of leases may be long past, and keepalives
    /// that found no room for what must be logged first.
    early: Vec<(Parked, LeaseAsk)>,
    lease_changes_seen: u64,
    /// Index of the last expiry or checkpoint of leases proposed.
    lease_proposal: Index,
    term: Term,
    was_leader: bool,
    conf: Conf,
    checkpoint: CheckpointPace,
    status: Status,
}

/// When the next checkpoint is due: when the log since the last is as long as that was, or the
/// segments held are twice that, which many short runs leave behind.
struct CheckpointPace {
    since: Lsn,
    taking: bool,
}

/// Tells the shard that nothing of its batch is in the log, nor will be.
fn refuse(batch: &Bytes, error: ApiError, actions: &mut Actions) {
    for record in command::batch_records(batch) {
        let origin = &command::check(&record).expect("made by a shard").origin;
        let refused = Outcome::Failed(error);
        actions.results.push((origin.sequence.to_native(), refused));
    }
}

impl Sequencer {
    /// Goes on from what recovery left; `machine` has applied what its checkpoint covered.
    #[must_use]
    pub fn new(
        node: Node,
        wal: Wal,
        machine: Machine,
        identity: Identity,
        conf: Conf,
        election_ms: u64,
        limits: Limits,
    ) -> Self {
        let since = wal.flushed_lsn();
        Self {
            node,
            wal,
            machine,
            identity,
            limits,
            election_ms,
            pending: VecDeque::new(),
            pending_bytes: 0,
            unframed_bytes: 0,
            unflushed: VecDeque::new(),
            reads: Reads::default(),
            parked: BTreeMap::new(),
            early: Vec::new(),
            lease_changes_seen: 0,
            lease_proposal: 0,
            term: 0,
            was_leader: false,
            conf,
            checkpoint: CheckpointPace {
                since,
                taking: false,
            },
            status: Status::default(),
        }
    }

    /// First step of a run: the only voter makes itself leader.
    pub fn start(&mut self, now_ms: u64, actions: &mut Actions) {
        self.node.campaign_if_alone();
        self.drive(now_ms, actions);
    }

    /// The state machine, to be read (checkpoints, readers, members).
    #[must_use]
    pub fn machine(&self) -> &Machine {
        &self.machine
    }

    /// For shards.
    #[must_use]
    pub fn reader(&self) -> ringkv_engine::index::Reader<View> {
        self.machine.store.reader()
    }

    /// Where consensus stands.
    #[must_use]
    pub fn status(&self) -> Status {
        self.status
    }

    /// Whether [`Event::Background`] has work to do.
    #[must_use]
    pub fn has_background_work(&self) -> bool {
        self.machine.store.is_compacting()
    }

    /// Takes one event.
    pub fn step(&mut self, now_ms: u64, event: Event, actions: &mut Actions) {
        match event {
            Event::Propose(batch) => self.take(batch, actions),
            Event::Read(shard, round) => self.reads.wait((shard, round)),
            Event::Lease(shard, request, ask) => self.lease(now_ms, (shard, request), ask, actions),
            Event::Flushed(frame, buf) => self.flushed(frame, buf),
            Event::SegmentReady(file) => self.wal.segment_ready(file),
            Event::SegmentRemoved(file) => self.wal.segment_removed(file),
            Event::Tick => self.tick(now_ms),
            Event::Idle => actions.frames.extend(self.wal.seal()),
            Event::Background { floor } => {
                actions.background = self.machine.store.compact_slice(floor);
                self.publish(actions);
            }
            Event::Checkpointed(index) => {
                self.checkpoint.taking = false;
                self.wal.release(index);
            }
        }
        self.drive(now_ms, actions);
    }

    /// Runs until raft has nothing more to hand out.
    fn drive(&mut self, now_ms: u64, actions: &mut Actions) {
        let applied_before = self.machine.applied();
        loop {
            self.feed(actions);
            if self.node.can_read()
                && let Some(round) = self.reads.open()
            {
                self.node.read_index(round);
            }
            let Some(ready) = self.node.ready() else {
                break;
            };
            self.handle(now_ms, ready, actions);
        }
        if self.machine.applied() > applied_before {
            self.publish(actions);
            let tail_bytes = self.tail_bytes_max();
            self.node.log_mut().trim(self.machine.applied(), tail_bytes);
        }
        self.retry_parked(now_ms, actions);
        self.ask_again(now_ms, actions);
        while let Some(frame) = self.wal.submit() {
            actions.frames.push(frame);
        }
        while let Some(action) = self.wal.action() {
            actions.wal.push(action);
        }
        self.pace_checkpoint(actions);
        self.status = Status {
            term: self.node.term(),
            leader: self.node.leader(),
            committed: self.node.committed(),
            applied: self.machine.applied(),
        };
        self.invariants();
    }

    fn invariants(&self) {
        assert!(self.wal.flushed_lsn() <= self.wal.submitted_lsn());
        assert!(self.wal.submitted_lsn() <= self.wal.accepted_lsn());
        assert!(self.machine.applied() <= self.node.committed());
        assert!(self.wal.accepted_index() == self.node.log().last());
    }

    /// Proposes waiting batches, as many as fit the open frame.
    fn feed(&mut self, actions: &mut Actions) {
        if !self.node.is_leader() {
            return;
        }
        // Entries proposed and not yet handed out by raft are not in the frame: one batch at a
        // time.
        let Some(&(_, bytes)) = self.pending.front() else {
            return;
        };
        if bytes + self.reserve() > self.room() {
            return;
        }
        let (batch, _) = self.pending.pop_front().expect("seen");
        self.pending_bytes -= batch.len();
        if !self.node.propose(command::batch_records(&batch)) {
            // Too much is uncommitted: none of the batch is in the log, and none will be.
            return refuse(&batch, ApiError::TooManyRequests, actions);
        }
        self.unframed_bytes += bytes;
    }

    /// What the open frame takes beside what raft is about to hand out for it, bytes.
    fn room(&self) -> usize {
        self.wal.open_room().saturating_sub(self.unframed_bytes)
    }

    /// Room of the open frame that batches leave.
    fn reserve(&self) -> usize {
        FRAME_RESERVE_BYTES_MAX.min(self.limits.frame_bytes_max / 8)
    }

    fn take(&mut self, batch: Bytes, actions: &mut Actions) {
        let records = command::batch_records(&batch);
        let bytes: usize = records.map(|record| record_bytes(record.len())).sum();
        if bytes + self.reserve() + FRAME_HEADER_BYTES > self.limits.frame_bytes_max {
            // It would wait for ever, and all behind it: flags may allow requests that large.
            return refuse(&batch, ApiError::RequestTooLarge, actions);
        }
        if self.pending_bytes + batch.len() > self.limits.pending_bytes_max {
            return refuse(&batch, ApiError::TooManyRequests, actions);
        }
        self.pending_bytes += batch.len();
        self.pending.push_back((batch, bytes));
    }

    fn handle(&mut self, now_ms: u64, mut ready: Ready, actions: &mut Actions) {
        if let Some(hs) = ready.hs() {
            let hard_state = HardState {
                term: hs.term,
                vote: hs.vote,
                commit: hs.commit,
            };
            self.wal.set_hard_state(hard_state);
        }
        for entry in ready.take_entries() {
            self.append(entry);
        }
        self.unframed_bytes = 0;
        for state in ready.take_read_states() {
            let round = state
                .request_ctx
                .as_slice()
                .try_into()
                .map(u64::from_le_bytes);
            let round = round.expect("made by read_index");
            let confirmed = self.reads.confirmed(round, state.index);
            actions
                .reads
                .extend(confirmed.map(|((shard, number), index)| (shard, number, index)));
        }
        let committed = ready.take_committed_entries();
        self.unflushed
            .push_back((ready.number(), self.wal.accepted_lsn()));
        self.node.advance(ready);
        for entry in &committed {
            self.apply(entry, actions);
        }
        if let Some(last) = committed.last() {
            self.node.applied(last.index);
        }
        self.follow_term(now_ms);
        self.confirm_flushed();
    }

    fn append(&mut self, entry: RaftEntry) {
        let kind = match (entry.get_entry_type(), entry.data.is_empty()) {
            (EntryType::EntryNormal, true) => EntryKind::Empty,
            (EntryType::EntryNormal, false) => EntryKind::Normal,
            (EntryType::EntryConfChange, _) => EntryKind::ConfChange,
            (EntryType::EntryConfChangeV2, _) => EntryKind::ConfChangeV2,
        };
        let record = Entry {
            index: entry.index,
            term: entry.term,
            kind,
            payload: &entry.data,
        };
        // A single voter appends only what `feed` made sure of; nobody overwrites its log.
        self.wal
            .append(record)
            .expect("what is proposed fits the open frame");
        self.node.log_mut().append(entry);
    }

    fn apply(&mut self, entry: &RaftEntry, actions: &mut Actions) {
        if entry.get_entry_type() != EntryType::EntryNormal || entry.data.is_empty() {
            return self.machine.skip(entry.index);
        }
        let ours = |origin: Origin| {
            origin.member == self.identity.member && origin.start == self.identity.start
        };
        let (origin, outcome) = self
            .machine
            .apply(entry.index, entry.term, &entry.data, ours)
            .expect("records are checked where they enter");
        if ours(origin) && origin.sequence != 0 {
            actions.results.push((origin.sequence, outcome));
        }
    }

    /// Applied entries stay in RAM for followers; where there are none, memory that is used again
    /// at once is warm.
    fn tail_bytes_max(&self) -> usize {
        if self.conf.voters.len() == 1 && self.conf.learners.is_empty() {
            0
        } else {
            self.limits.raft_tail_bytes_max
        }
    }

    fn publish(&mut self, actions: &mut Actions) {
        self.machine.store.publish(self.machine.applied());
        actions.published = true;
    }

    fn flushed(&mut self, frame: FrameId, buf: AlignedBuf) {
        self.wal.flushed(frame, buf);
        self.confirm_flushed();
    }

    fn confirm_flushed(&mut self) {
        let flushed = self.wal.flushed_lsn();
        while let Some((number, _)) = self.unflushed.pop_front_if(|(_, lsn)| *lsn <= flushed) {
            self.node.flushed(number);
        }
    }

    fn follow_term(&mut self, now_ms: u64) {
        if self.node.term() != self.term {
            self.term = self.node.term();
            self.reads.term_changed();
        }
        let leader = self.node.is_leader();
        // Clocks run when all that earlier leaders committed is applied.
        let current =
            leader && self.node.can_read() && self.machine.applied() == self.node.committed();
        if current && !self.machine.lessor.is_primary() {
            let extend_ms = if self.was_leader { self.election_ms } else { 0 };
            self.machine.lessor.promote(now_ms, extend_ms);
            self.was_leader = true;
        }
        if !leader && self.machine.lessor.is_primary() {
            self.machine.lessor.demote();
        }
    }

    fn tick(&mut self, now_ms: u64) {
        self.node.tick();
        if !self.machine.lessor.is_primary() || self.lease_proposal > self.machine.applied() {
            return;
        }
        let ids = self
            .machine
            .lessor
            .expired(now_ms, self.limits.lease_revokes_per_round_max);
        if !ids.is_empty() {
            let term = self.node.term();
            let retry = ids.clone();
            let expire = Command::LeaseExpire {
                ids,
                term,
                applied: self.machine.applied(),
            };
            if !self.propose_own(expire) {
                for id in retry {
                    self.machine
                        .lessor
                        .expiry_failed(id, now_ms + self.election_ms);
                }
            }
        }
        let max = self.limits.lease_revokes_per_round_max;
        let remaining = self.machine.lessor.due_checkpoints(now_ms, max);
        if !remaining.is_empty() {
            // One that is dropped is due again an interval later.
            let applied = self.machine.applied();
            let _ = self.propose_own(Command::LeaseCheckpoint { remaining, applied });
        }
    }

    /// Proposes what nobody waits for; false when it did not get into the log.
    fn propose_own(&mut self, command: Command<'_>) -> bool {
        let record = Envelope {
            origin: Origin::NONE,
            command,
        }
        .to_bytes();
        let bytes = record_bytes(record.len());
        if bytes > self.room() {
            return false;
        }
        let proposed = self.node.propose(core::iter::once(record));
        self.unframed_bytes += if proposed { bytes } else { 0 };
        self.lease_proposal = self.node.log().last() + u64::from(proposed);
        proposed
    }

    fn pace_checkpoint(&mut self, actions: &mut Actions) {
        if self.checkpoint.taking {
            return;
        }
        let state_bytes = self.machine.store.bytes();
        let worth = state_bytes.max(self.limits.checkpoint_log_bytes_min);
        let grown = self.wal.flushed_lsn() - self.checkpoint.since;
        let held = self.wal.stats().segments as u64 * self.limits.segment_bytes;
        if grown >= worth || (held >= 2 * worth && grown > 0) {
            self.checkpoint.taking = true;
            self.checkpoint.since = self.wal.flushed_lsn();
            actions.checkpoint = true;
        }
    }

    /// The state machine as it is now, for a checkpoint.
    #[must_use]
    pub fn image(&self) -> CheckpointImage {
        let term = self.node.log().term(self.machine.applied());
        let term = term.expect("an applied entry is in the log, or the one before it");
        self.machine.image(term, self.conf.clone())
    }
}

#[cfg(test)]
mod tests;
