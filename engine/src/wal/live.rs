//! Where the live entries of the flushed log are: the last record of each index.
//!
//! Part of [`super::Wal`], on the sequencer's core. It remembers runs of frames, not entries: a run
//! begins at a frame, lies in one segment, holds contiguous indexes, and is scanned from its start;
//! a run is at most [`RUN_BYTES`] before its last frame, so memory is bounded by the retained log
//! and a read scans little in vain.
//!
//! Invariant: indexes ascend strictly over the runs, and so do their places in the log; when a
//! later frame carries an index again, what it supersedes is cut off the runs before it.
//!
//! Not here: bytes, and entries that are not flushed.

use std::collections::VecDeque;

use crate::types::Index;

/// A run takes no further frame at or beyond this distance from its start.
pub(super) const RUN_BYTES: u64 = 64 << 10;

/// Frames of one segment with contiguous live entries.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Run {
    /// Segment.
    pub(super) seq: u32,
    /// Where in it the first frame begins.
    pub(super) offset: u64,
    /// First index in that frame.
    pub(super) first_index: Index,
    /// Last live index; later records of these frames are superseded.
    pub(super) last_index: Index,
    /// Takes no further frame: its end was superseded.
    closed: bool,
}

/// A flushed frame, as far as this file cares.
#[derive(Clone, Copy, Debug)]
pub(super) struct FlushedFrame {
    pub(super) seq: u32,
    pub(super) offset: u64,
    pub(super) first_index: Index,
    /// `first_index - 1` if it has no records.
    pub(super) last_index: Index,
    /// The log begins anew at `first_index`.
    pub(super) reset: bool,
}

/// The live part of the flushed log.
#[derive(Default, Debug)]
pub(super) struct LiveLog {
    runs: VecDeque<Run>,
    last_index: Index,
}

impl LiveLog {
    /// Index of the last live entry, or the index that the log was reset to; 0 for an empty log.
    pub(super) const fn last_index(&self) -> Index {
        self.last_index
    }

    /// Index of the oldest live entry; `last_index + 1` if there is none.
    pub(super) fn first_index(&self) -> Index {
        self.runs
            .front()
            .map_or(self.last_index + 1, |run| run.first_index)
    }

    /// Takes note of the next frame in log order.
    pub(super) fn flushed(&mut self, frame: FlushedFrame) {
        assert!(frame.first_index >= 1);
        assert!(frame.last_index + 1 >= frame.first_index);
        if frame.reset {
            self.runs.clear();
        } else if frame.last_index >= frame.first_index {
            self.cut_from(frame.first_index);
        }
        if frame.last_index >= frame.first_index {
            self.extend(frame);
        }
        self.last_index = frame.last_index;
    }

    /// Drops what is live at `index` and beyond.
    fn cut_from(&mut self, index: Index) {
        while let Some(run) = self.runs.back_mut() {
            if run.last_index < index {
                return;
            }
            if run.first_index < index {
                run.last_index = index - 1;
                run.closed = true;
                return;
            }
            self.runs.pop_back();
        }
    }

    fn extend(&mut self, frame: FlushedFrame) {
        let FlushedFrame {
            seq,
            offset,
            first_index,
            last_index,
            ..
        } = frame;
        if let Some(run) = self.runs.back_mut() {
            assert!(run.last_index + 1 == first_index);
            assert!((run.seq, run.offset) < (seq, offset));
            if run.seq == seq && !run.closed && offset - run.offset < RUN_BYTES {
                run.last_index = last_index;
                return;
            }
        }
        self.runs.push_back(Run {
            seq,
            offset,
            first_index,
            last_index,
            closed: false,
        });
    }

    /// The runs that hold `low..high`, ascending.
    pub(super) fn runs(&self, low: Index, high: Index) -> impl Iterator<Item = &Run> {
        let start = self.runs.partition_point(|run| run.last_index < low);
        self.runs
            .range(start..)
            .take_while(move |run| run.first_index < high)
    }

    /// Greatest live index in segment `seq`, the oldest one that has any; `None` if it has none.
    pub(super) fn last_index_in(&self, seq: u32) -> Option<Index> {
        let within = self.runs.iter().take_while(|run| run.seq <= seq);
        within.last().map(|run| run.last_index)
    }

    /// Forgets segment `seq` and everything before it.
    pub(super) fn release(&mut self, seq: u32) {
        while self.runs.front().is_some_and(|run| run.seq <= seq) {
            self.runs.pop_front();
        }
    }
}
