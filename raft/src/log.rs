//! raft's view of the log: a tail of entries in RAM, answering `raft::Storage`.
//!
//! Entries come in as they are given to the WAL, before they are flushed: raft asks only for what
//! it handed out itself, and the sequencer tells it separately what has been flushed. Payloads are
//! slices of the shards' batches (or of the buffer that recovery read), never copied here.
//!
//! Not here: entries older than the tail; they are in the WAL and a checkpoint covers them.

use std::collections::VecDeque;

use raft_rs::eraftpb::{ConfState, Entry, EntryType, HardState, Snapshot};
use raft_rs::{Error, GetEntriesContext, RaftState, Storage, StorageError};
use ringkv_engine::types::{Index, Term};
use ringkv_engine::wal::{EntryKind, LogEntry};

/// What an entry costs in RAM beside its payload, bytes.
const ENTRY_OVERHEAD_BYTES: usize = size_of::<Entry>();

/// The tail of the log; owned by the sequencer's raft node.
pub struct Log {
    hard_state: HardState,
    conf_state: ConfState,
    /// Index and term of the entry before the tail.
    before: (Index, Term),
    entries: VecDeque<Entry>,
    bytes: usize,
}

impl Log {
    /// A log that ends at `before` (index and term; 0, 0 when new).
    #[must_use]
    pub fn new(hard_state: HardState, conf_state: ConfState, before: (Index, Term)) -> Self {
        Self {
            hard_state,
            conf_state,
            before,
            entries: VecDeque::new(),
            bytes: 0,
        }
    }

    /// Index of the last entry.
    #[must_use]
    pub fn last(&self) -> Index {
        self.before.0 + self.entries.len() as u64
    }

    /// Appends `entry`; one of the same index and all after it are replaced, as a new leader does.
    ///
    /// # Panics
    /// On a gap, or when the entry is older than the tail.
    pub fn append(&mut self, entry: Entry) {
        assert!(entry.index > self.before.0, "older than the tail");
        assert!(entry.index <= self.last() + 1, "the log has no gap");
        while self.last() >= entry.index {
            let gone = self.entries.pop_back().expect("within the tail");
            self.bytes -= cost(&gone);
        }
        self.bytes += cost(&entry);
        self.entries.push_back(entry);
    }

    /// The log is empty and ends at `before`.
    ///
    /// # Panics
    /// When it has entries, or goes back.
    pub fn restart_at(&mut self, before: (Index, Term)) {
        assert!(self.entries.is_empty());
        assert!(before.0 > self.before.0);
        self.before = before;
    }

    /// What recovery knows at its end: term, vote, and a commit index raised to what the checkpoint
    /// covers.
    pub fn set_hard_state(&mut self, hard_state: HardState) {
        self.hard_state = hard_state;
    }

    /// Appends an entry that recovery has read.
    pub fn recover(&mut self, entry: LogEntry) {
        let kind = match entry.kind {
            EntryKind::Normal | EntryKind::Empty => EntryType::EntryNormal,
            EntryKind::ConfChange => EntryType::EntryConfChange,
            EntryKind::ConfChangeV2 => EntryType::EntryConfChangeV2,
        };
        let mut recovered = Entry {
            index: entry.index,
            term: entry.term,
            ..Entry::default()
        };
        recovered.data = entry.payload;
        recovered.set_entry_type(kind);
        self.append(recovered);
    }

    /// Drops entries up to `applied` from RAM while the tail is longer than `bytes_max`.
    pub fn trim(&mut self, applied: Index, bytes_max: usize) {
        while self.bytes > bytes_max
            && self
                .entries
                .front()
                .is_some_and(|oldest| oldest.index <= applied)
        {
            let oldest = self.entries.pop_front().expect("seen");
            self.bytes -= cost(&oldest);
            self.before = (oldest.index, oldest.term);
        }
    }

    /// Bytes of the tail.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    fn first(&self) -> Index {
        self.before.0 + 1
    }
}

fn cost(entry: &Entry) -> usize {
    entry.data.len() + ENTRY_OVERHEAD_BYTES
}

impl Storage for Log {
    fn initial_state(&self) -> raft_rs::Result<RaftState> {
        Ok(RaftState::new(
            self.hard_state.clone(),
            self.conf_state.clone(),
        ))
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        _: GetEntriesContext,
    ) -> raft_rs::Result<Vec<Entry>> {
        if low < self.first() {
            return Err(Error::Store(StorageError::Compacted));
        }
        assert!(
            high <= self.last() + 1,
            "raft asks for entries it was given"
        );
        let max = max_size.into().unwrap_or(u64::MAX);
        let range = (low - self.first()) as usize..(high - self.first()) as usize;
        let mut size = 0;
        let fits = |e: &&Entry| {
            let first = size == 0;
            size += cost(e) as u64;
            first || size <= max
        };
        Ok(self
            .entries
            .range(range)
            .take_while(fits)
            .cloned()
            .collect())
    }

    fn term(&self, index: u64) -> raft_rs::Result<u64> {
        if index == self.before.0 {
            return Ok(self.before.1);
        }
        let Some(offset) = index.checked_sub(self.first()) else {
            return Err(Error::Store(StorageError::Compacted));
        };
        let entry = self.entries.get(offset as usize);
        entry
            .map(|e| e.term)
            .ok_or(Error::Store(StorageError::Unavailable))
    }

    fn first_index(&self) -> raft_rs::Result<u64> {
        Ok(self.first())
    }

    fn last_index(&self) -> raft_rs::Result<u64> {
        Ok(self.last())
    }

    fn snapshot(&self, _: u64, _: u64) -> raft_rs::Result<Snapshot> {
        // Asked for only on behalf of a follower that is behind the tail.
        Err(Error::Store(StorageError::SnapshotTemporarilyUnavailable))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(index: u64, term: u64) -> Entry {
        Entry {
            index,
            term,
            data: vec![0; 100].into(),
            ..Entry::default()
        }
    }

    fn log(entries: &[(u64, u64)]) -> Log {
        let mut log = Log::new(HardState::default(), ConfState::default(), (2, 1));
        for (index, term) in entries {
            log.append(entry(*index, *term));
        }
        log
    }

    #[test]
    fn a_new_leader_replaces_the_end() {
        let mut log = log(&[(3, 1), (4, 1), (5, 1)]);
        log.append(entry(4, 2));
        assert_eq!(log.last(), 4);
        assert_eq!(log.term(4), Ok(2));
        assert_eq!(log.term(5), Err(Error::Store(StorageError::Unavailable)));
        assert_eq!(log.term(2), Ok(1));
        assert_eq!(log.term(1), Err(Error::Store(StorageError::Compacted)));
    }

    #[test]
    fn only_applied_entries_leave() {
        let mut log = log(&[(3, 1), (4, 1), (5, 1)]);
        log.trim(4, 0);
        assert_eq!(log.first_index(), Ok(5));
        assert_eq!(log.term(4), Ok(1));
        let got = log
            .entries(5, 6, None, GetEntriesContext::empty(false))
            .expect("in the tail");
        assert_eq!(got.len(), 1);
        assert_eq!(log.bytes(), cost(&entry(5, 1)));
        assert_eq!(
            log.entries(4, 6, None, GetEntriesContext::empty(false)),
            Err(Error::Store(StorageError::Compacted))
        );
    }

    #[test]
    fn a_size_limit_still_gives_one() {
        let log = log(&[(3, 1), (4, 1), (5, 1)]);
        let get = |max| {
            log.entries(3, 6, Some(max), GetEntriesContext::empty(false))
                .map(|e| e.len())
        };
        assert_eq!(get(0), Ok(1));
        assert_eq!(get(2 * cost(&entry(3, 1)) as u64), Ok(2));
        assert_eq!(get(u64::MAX), Ok(3));
    }
}
