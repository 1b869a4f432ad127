//! raft-rs, wrapped: its settings, its gaps, and nothing else of it leaves this file and `log.rs`.
//!
//! Version 0.7.0 is pinned; what it lacks is made up for here:
//! - it asserts at start that applied <= commit, but a commit index is never flushed on its own:
//!   the caller raises it to the checkpoint's applied index first ([`Node::new`]);
//! - it draws election timeouts from the thread's generator: overridden after each change of term
//!   from the seed given, or a simulation would not replay;
//! - it sends one entry per message by default: `max_size_per_msg` is set;
//! - it drops a ReadIndex that comes before the leader's first commit in its term:
//!   [`Node::can_read`] tells.

use bytes::Bytes;
use raft_rs::eraftpb::{ConfState, Entry, HardState, Message, MessageType};
use raft_rs::{Config, RawNode, ReadOnlyOption, Ready, StateRole};
use ringkv_engine::limits::Limits;
use ringkv_engine::types::{Index, MemberId, Term};
use slog::{Discard, Logger, o};

use crate::log::Log;

/// How a node is set up.
#[derive(Clone, Debug)]
pub struct Settings {
    /// This member.
    pub id: MemberId,
    /// Heartbeat intervals until an election (etcd: election-timeout / heartbeat-interval).
    pub election_ticks: usize,
    /// Seed of the election timeouts.
    pub seed: u64,
}

/// One raft node; owned by the sequencer.
pub struct Node {
    raw: RawNode<Log>,
    election_ticks: usize,
    random: u64,
    term_seen: Term,
}

impl Node {
    /// Starts from `log`, of which entries up to `applied` are in the state machine.
    ///
    /// # Panics
    /// On settings that raft-rs refuses.
    #[must_use]
    pub fn new(settings: &Settings, log: Log, applied: Index, limits: &Limits) -> Self {
        let config = Config {
            id: settings.id,
            election_tick: settings.election_ticks,
            heartbeat_tick: 1,
            applied,
            max_size_per_msg: limits.raft_message_bytes_max,
            max_inflight_msgs: limits.raft_inflight_max,
            check_quorum: true,
            pre_vote: true,
            read_only_option: ReadOnlyOption::Safe,
            max_uncommitted_size: limits.raft_uncommitted_bytes_max,
            max_committed_size_per_ready: limits.apply_bytes_max,
            ..Config::default()
        };
        let raw = RawNode::new(&config, log, &Logger::root(Discard, o!()))
            .expect("settings are checked where they are made");
        let mut node = Self {
            raw,
            election_ticks: settings.election_ticks,
            random: settings.seed,
            term_seen: 0,
        };
        node.draw_election_timeout();
        node
    }

    /// The only voter need not wait for a timeout.
    pub fn campaign_if_alone(&mut self) {
        let alone = self.raw.raft.prs().is_singleton() && self.raw.raft.promotable();
        if alone {
            self.raw.campaign().expect("a voter may campaign");
        }
    }

    /// One heartbeat interval has passed.
    pub fn tick(&mut self) {
        self.raw.tick();
        self.draw_election_timeout();
    }

    /// Proposes these records, one entry each, as one message; false when raft drops them (no
    /// leader, or too much is uncommitted): then none of them is in the log.
    #[must_use]
    pub fn propose(&mut self, records: impl Iterator<Item = Bytes>) -> bool {
        if !self.is_leader() {
            // raft-rs would forward them; a proposal is sent once, by whoever took it.
            return false;
        }
        let mut message = Message::default();
        message.set_msg_type(MessageType::MsgPropose);
        message.from = self.raw.raft.id;
        let entry = |data| Entry {
            data,
            ..Entry::default()
        };
        message.entries = records.map(entry).collect();
        self.raw.step(message).is_ok()
    }

    /// Asks for a read index under the caller's `round`; the answer comes in a Ready.
    pub fn read_index(&mut self, round: u64) {
        self.raw.read_index(round.to_le_bytes().to_vec());
    }

    /// Whether a ReadIndex would not be dropped.
    #[must_use]
    pub fn can_read(&self) -> bool {
        let raft = &self.raw.raft;
        // A follower's goes to the leader; a leader's waits for its first commit.
        if raft.state != StateRole::Leader {
            return raft.leader_id != 0;
        }
        raft.raft_log.term(raft.raft_log.committed) == Ok(raft.term)
    }

    /// Whether this member leads.
    #[must_use]
    pub fn is_leader(&self) -> bool {
        self.raw.raft.state == StateRole::Leader
    }

    /// The leader known, 0 for none.
    #[must_use]
    pub fn leader(&self) -> MemberId {
        self.raw.raft.leader_id
    }

    /// Current term.
    #[must_use]
    pub fn term(&self) -> Term {
        self.raw.raft.term
    }

    /// Highest index known committed.
    #[must_use]
    pub fn committed(&self) -> Index {
        self.raw.raft.raft_log.committed
    }

    /// The log.
    #[must_use]
    pub fn log(&self) -> &Log {
        self.raw.store()
    }

    /// The log, to append what a Ready brings and to trim.
    pub fn log_mut(&mut self) -> &mut Log {
        self.raw.mut_store()
    }

    /// What is to be done, if anything; each must go back through [`Self::advance`] before anything
    /// else is called.
    pub fn ready(&mut self) -> Option<Ready> {
        self.draw_election_timeout();
        self.raw.has_ready().then(|| self.raw.ready())
    }

    /// The Ready's entries are in the log and in the open WAL frame, its committed ones taken.
    pub fn advance(&mut self, ready: Ready) {
        self.raw.advance_append_async(ready);
    }

    /// All up to Ready `number` has been flushed.
    pub fn flushed(&mut self, number: u64) {
        self.raw.on_persist_ready(number);
    }

    /// All up to `index` has been applied.
    pub fn applied(&mut self, index: Index) {
        self.raw.advance_apply_to(index);
    }

    fn draw_election_timeout(&mut self) {
        if self.term_seen == self.raw.raft.term && self.term_seen != 0 {
            return;
        }
        self.term_seen = self.raw.raft.term;
        // splitmix64
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.random;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let extra = (x ^ (x >> 31)) as usize % self.election_ticks;
        self.raw
            .raft
            .set_randomized_election_timeout(self.election_ticks + extra);
    }
}

/// raft's hard state from the WAL's, with the commit index raised to what a checkpoint covers.
#[must_use]
pub fn hard_state(wal: ringkv_engine::wal::HardState, applied: Index) -> HardState {
    HardState {
        term: wal.term,
        vote: wal.vote,
        commit: wal.commit.max(applied),
        ..HardState::default()
    }
}

/// Voters and nothing else.
#[must_use]
pub fn conf_state(voters: &[MemberId]) -> ConfState {
    ConfState {
        voters: voters.to_vec(),
        ..ConfState::default()
    }
}
