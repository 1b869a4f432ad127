//! ReadIndex rounds: many reads, one confirmation.
//!
//! Owned by the sequencer. A shard's request joins only a round that has not been sent: a round in
//! flight may have been confirmed before the read arrived, and would then prove nothing about
//! writes acknowledged in between. At most two rounds are open, so the waiting ones gather behind
//! them.

use std::collections::VecDeque;

use ringkv_engine::types::{Index, ShardId};

/// Rounds in flight at once.
const OPEN_MAX: usize = 2;

/// A shard and the number by which it knows its waiting reads.
pub type Waiter = (ShardId, u64);

/// See the module.
#[derive(Default)]
pub struct Reads {
    waiting: Vec<Waiter>,
    open: VecDeque<(u64, Vec<Waiter>)>,
    last_round: u64,
}

impl Reads {
    /// A shard's reads wait.
    pub fn wait(&mut self, waiter: Waiter) {
        self.waiting.push(waiter);
    }

    /// Opens a round for all who wait, if there may be one more; its number, to be sent.
    pub fn open(&mut self) -> Option<u64> {
        if self.waiting.is_empty() || self.open.len() >= OPEN_MAX {
            return None;
        }
        self.last_round += 1;
        self.open
            .push_back((self.last_round, core::mem::take(&mut self.waiting)));
        Some(self.last_round)
    }

    /// Round `round` is confirmed at `index`, and with it every earlier one: who waited for them.
    pub fn confirmed(&mut self, round: u64, index: Index) -> impl Iterator<Item = (Waiter, Index)> {
        let count = self.open.partition_point(|(number, _)| *number <= round);
        let confirmed: Vec<_> = self.open.drain(..count).flat_map(|(_, w)| w).collect();
        confirmed.into_iter().map(move |waiter| (waiter, index))
    }

    /// The term has changed: rounds in flight may never be answered, their reads wait again.
    pub fn term_changed(&mut self) {
        let open = self.open.drain(..).flat_map(|(_, waiters)| waiters);
        self.waiting.splice(0..0, open);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_read_never_joins_a_round_that_was_sent() {
        let mut reads = Reads::default();
        reads.wait((0, 1));
        assert_eq!(reads.open(), Some(1));
        reads.wait((1, 1));
        let got: Vec<_> = reads.confirmed(1, 7).collect();
        assert_eq!(got, [((0, 1), 7)], "the later read is still waiting");
        assert_eq!(reads.open(), Some(2));
        assert_eq!(reads.confirmed(2, 9).collect::<Vec<_>>(), [((1, 1), 9)]);
    }

    #[test]
    fn two_rounds_are_open_at_most_and_a_later_one_confirms_an_earlier() {
        let mut reads = Reads::default();
        for shard in 0..2 {
            reads.wait((shard, 0));
            assert!(reads.open().is_some());
        }
        reads.wait((2, 0));
        assert_eq!(reads.open(), None);
        let got: Vec<_> = reads.confirmed(2, 5).collect();
        assert_eq!(got, [((0, 0), 5), ((1, 0), 5)]);
        assert_eq!(reads.open(), Some(3));
    }

    #[test]
    fn rounds_die_with_their_term() {
        let mut reads = Reads::default();
        reads.wait((0, 0));
        reads.open();
        reads.term_changed();
        assert_eq!(
            reads.confirmed(1, 5).count(),
            0,
            "a late answer of the old term"
        );
        assert_eq!(reads.open(), Some(2));
        assert_eq!(reads.confirmed(2, 6).collect::<Vec<_>>(), [((0, 0), 6)]);
    }
}
