//! Goal: whatever was acknowledged survives every crash, and nothing is invented.
//!
//! Method: a seed drives appends, overwrites, votes, resets, seals, releases, delayed segment
//! preparation and completions in any order, on a disk with power cuts; the model remembers the log
//! and hard state as of each submitted frame. After a crash, recovery (itself cut off now and then)
//! must find exactly the state of one frame, not before the last acknowledged one. Then it goes on.
//! The same checker runs with planted bugs and must object.

use std::rc::Rc;

use super::*;
use crate::io::DiskErrorKind;
use crate::io::sim::Prng;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Bug {
    None,
    /// The device promises durability and does not give it.
    SkipFlush,
    /// Recovery does not see the last frame.
    DropLastFrame,
    /// A frame counts as flushed when it is submitted.
    AckBeforeFlush,
    /// The device loses a frame that it acknowledged.
    LostWrite,
    /// Recovery starts at the checkpoint's own entry + 2.
    SkipFirstEntry,
}

type Payload = Rc<(u64, EntryKind, Vec<u8>)>;

/// What the log must say as of one frame.
#[derive(Clone)]
struct State {
    hard_state: HardState,
    /// Index of `entries[0]`.
    first: Index,
    entries: Vec<Payload>,
}

impl State {
    fn last(&self) -> Index {
        self.first + self.entries.len() as u64 - 1
    }

    fn cut_from(&mut self, index: Index) {
        self.entries
            .truncate(usize::try_from(index - self.first).unwrap());
    }

    /// The state as the header of a frame submitted now would have it.
    fn in_frame(&self) -> Self {
        let mut state = self.clone();
        state.hard_state.commit = state.hard_state.commit.min(self.last());
        state
    }

    fn equals(&self, recovered: &Recovered, entries: &[LogEntry], start: Index) -> bool {
        let skipped = start
            .saturating_sub(self.first)
            .min(self.entries.len() as u64);
        let expected = &self.entries[usize::try_from(skipped).unwrap()..];
        let first = self.first + skipped;
        self.hard_state == recovered.hard_state
            && self.last() == recovered.last_index
            && expected.len() == entries.len()
            && expected
                .iter()
                .zip(first..)
                .zip(entries)
                .all(|((want, index), got)| {
                    index == got.index
                        && (want.0, want.1, want.2.as_slice()) == (got.term, got.kind, &got.payload)
                })
    }
}

struct Life {
    rng: Prng,
    bug: Bug,
    disk: SimDisk,
    wal: Wal,
    /// As accepted.
    model: State,
    /// `frames[n]` is the state as of the nth frame of this run; `frames[0]` is what was recovered.
    frames: Vec<State>,
    /// Completed out of order, beyond `acked`.
    completed: Vec<bool>,
    /// Frames acknowledged: index in `frames`.
    acked: usize,
    /// Durable checkpoint.
    checkpoint: Index,
    action: Option<Action>,
    runs: u64,
}

impl Life {
    fn new(seed: u64, bug: Bug) -> Self {
        let mut rng = Prng::new(seed);
        let mut faults = Faults::POWER_CUTS;
        faults.skip_flush = bug == Bug::SkipFlush;
        faults.lost = if bug == Bug::LostWrite { 50 } else { 0 };
        if rng.chance(200) {
            faults.capacity_bytes = 300 << 10;
        }
        if rng.chance(200) {
            faults.io_error = 10;
        }
        let mut disk = SimDisk::new(rng.next_u64(), faults);
        let (recovered, _) = recover_all(&mut disk, rng.next_u64(), 1).unwrap();
        let model = State {
            hard_state: HardState::default(),
            first: 1,
            entries: Vec::new(),
        };
        Self {
            rng,
            bug,
            disk,
            wal: recovered.wal,
            frames: vec![model.clone()],
            model,
            completed: Vec::new(),
            acked: 0,
            checkpoint: 0,
            action: None,
            runs: 0,
        }
    }

    /// One random step. False: the server died of a failed write.
    fn step(&mut self) -> Result<bool, String> {
        match self.rng.below(100) {
            0..30 => self.append(None),
            30..33 => self.overwrite(),
            33..37 => self.change_hard_state(),
            37..38 => self.reset(),
            38..60 => {
                let frame = self.wal.submit();
                self.submitted(frame);
            }
            60..63 => {
                let frame = self.wal.seal();
                self.submitted(frame);
            }
            63..85 => return Ok(self.complete()),
            85..95 => self.chore(),
            95..97 => self.release(),
            _ => self.read_back()?,
        }
        Ok(true)
    }

    fn append(&mut self, index: Option<Index>) {
        if self.model.hard_state.term == 0 {
            return;
        }
        let index = index.unwrap_or(self.model.last() + 1);
        let kinds = [
            EntryKind::Normal,
            EntryKind::Empty,
            EntryKind::ConfChange,
            EntryKind::ConfChangeV2,
        ];
        let kind = kinds[self.rng.below(4)];
        let len = match self.rng.below(20) {
            0 => Wal::payload_bytes_max(&LIMITS),
            1..5 => self.rng.below(5000),
            _ => self.rng.below(200),
        };
        let payload = vec![(self.rng.next_u64() & 0xff) as u8; len];
        let term = self.model.hard_state.term;
        let entry = Entry {
            index,
            term,
            kind,
            payload: &payload,
        };
        if self.wal.append(entry).is_err() {
            let frame = self.wal.submit();
            self.submitted(frame);
            if self.wal.append(entry).is_err() {
                return;
            }
        }
        self.model.cut_from(index);
        self.model.entries.push(Rc::new((term, kind, payload)));
    }

    fn overwrite(&mut self) {
        let low = self.model.hard_state.commit.max(self.checkpoint) + 1;
        if low > self.model.last() {
            return;
        }
        let index = low + self.rng.below((self.model.last() + 1 - low) as usize) as u64;
        self.model.hard_state.term += 1;
        self.model.hard_state.vote = 0;
        self.wal.set_hard_state(self.model.hard_state);
        self.append(Some(index));
    }

    fn change_hard_state(&mut self) {
        let hard_state = &mut self.model.hard_state;
        if hard_state.term == 0 || self.rng.chance(300) {
            hard_state.term += 1 + self.rng.below(2) as u64;
            hard_state.vote = 0;
        }
        if hard_state.vote == 0 {
            hard_state.vote = self.rng.below(4) as u64;
        }
        let last = self.model.first + self.model.entries.len() as u64 - 1;
        let ahead = last.saturating_sub(hard_state.commit) as usize;
        hard_state.commit += self.rng.below(ahead + 1) as u64;
        self.wal.set_hard_state(*hard_state);
    }

    fn reset(&mut self) {
        let next = self.model.last() + 2 + self.rng.below(5) as u64;
        if self.model.hard_state.term == 0 || self.wal.reset(next).is_err() {
            return;
        }
        // The snapshot was durable before.
        self.checkpoint = next - 1;
        self.model.first = next;
        self.model.entries.clear();
        self.model.hard_state.commit = next - 1;
        self.wal.set_hard_state(self.model.hard_state);
    }

    fn submitted(&mut self, frame: Option<WriteFrame>) {
        let Some(frame) = frame else { return };
        assert_eq!(frame.id.0 as usize, self.completed.len());
        self.frames.push(self.model.in_frame());
        self.completed.push(false);
        self.disk.submit(frame);
        if self.bug == Bug::AckBeforeFlush {
            self.acked = self.frames.len() - 1;
        }
    }

    fn complete(&mut self) -> bool {
        let Some(done) = self.disk.complete() else {
            return true;
        };
        if done.result.is_err() {
            return false;
        }
        self.completed[done.id.0 as usize] = true;
        while self.completed.get(self.acked) == Some(&true) {
            self.acked += 1;
        }
        self.wal.flushed(done.id, done.buf);
        true
    }

    fn chore(&mut self) {
        self.action = self.action.or_else(|| self.wal.action());
        let Some(action) = self.action else { return };
        match action.run(&mut self.disk) {
            Err(error) => assert_eq!(error.kind, DiskErrorKind::NoSpace),
            // The report may come later, or never.
            Ok(()) if self.rng.chance(300) => {}
            Ok(()) => {
                match action {
                    Action::PrepareSegment(prepare) => self.wal.segment_ready(prepare.file),
                    Action::RemoveSegment(file) => self.wal.segment_removed(file),
                }
                self.action = None;
            }
        }
    }

    /// A checkpoint of what is committed and flushed; now and then what it covers is released.
    fn release(&mut self) {
        let flushed = &self.frames[self.acked];
        if flushed.first != self.model.first {
            return;
        }
        // Of what is flushed, as much as is not superseded in the meantime.
        let pairs = flushed.entries.iter().zip(&self.model.entries);
        let same = pairs
            .take_while(|(flushed, accepted)| Rc::ptr_eq(flushed, accepted))
            .count();
        let applied = self
            .model
            .hard_state
            .commit
            .min(flushed.first + same as u64 - 1);
        if applied > self.checkpoint && self.bug != Bug::AckBeforeFlush {
            self.checkpoint += self.rng.below((applied - self.checkpoint) as usize + 1) as u64;
        }
        let retained = self.rng.below(10) as u64;
        self.wal.release(self.checkpoint.saturating_sub(retained));
    }

    fn read_back(&mut self) -> Result<(), String> {
        let (first, next) = (self.wal.first_index(), self.wal.flushed_index() + 1);
        // What a snapshot replaces is not compared: it no longer tells two states apart.
        if first >= next || next <= self.checkpoint || self.bug != Bug::None {
            return Ok(());
        }
        let low = first + self.rng.below((next - first) as usize) as u64;
        let high = low + 1 + self.rng.below((next - low) as usize) as u64;
        let entries = self.wal.read_entries(&mut self.disk, low, high, u64::MAX);
        let entries = entries.map_err(|error| format!("read {low}..{high}: {error:?}"))?;
        let state = &self.frames[self.acked];
        let same = entries.len() as u64 == high - low
            && entries.iter().zip(low..).all(|(entry, index)| {
                let want = &state.entries[(index - state.first) as usize];
                entry.index == index && entry.payload == want.2 && entry.term == want.0
            });
        if same {
            Ok(())
        } else {
            Err(format!("read {low}..{high} gave other entries"))
        }
    }

    fn crash(&mut self) -> Result<(), String> {
        if self.rng.chance(300) {
            // The power goes while a segment is prepared or removed.
            self.disk.faults_mut().operations_left = self.rng.below(6) as u32;
            self.action = self.action.or_else(|| self.wal.action());
            if let Some(action) = self.action {
                let _ = action.run(&mut self.disk);
            }
        }
        if self.rng.chance(300) {
            // Only the process dies, at first.
            self.disk.kill();
        } else {
            self.disk.crash();
        }
        if self.bug == Bug::DropLastFrame {
            self.drop_last_frame();
        }
        let mut start = self.start_index();
        if self.bug == Bug::SkipFirstEntry {
            start += 1;
        }
        while self.rng.chance(300) {
            // The power goes during recovery.
            self.disk.faults_mut().operations_left = self.rng.below(40) as u32;
            match recover_all(&mut self.disk, self.rng.next_u64(), start) {
                Ok(_) | Err(RecoverError::Disk(_)) => {}
                Err(error) => return Err(format!("cannot recover: {error:?}")),
            }
            self.disk.crash();
        }
        let recovered = recover_all(&mut self.disk, self.rng.next_u64(), start);
        let (recovered, entries) = recovered.map_err(|error| format!("no recovery: {error:?}"))?;
        let start = if self.bug == Bug::SkipFirstEntry {
            start - 1
        } else {
            start
        };
        let state = self.check(&recovered, &entries, start)?;
        let stats = recovered.wal.stats();
        if stats.segments + stats.free_segments != self.disk.list(DIR).unwrap().len() {
            return Err(format!("files are forgotten: {stats:?}"));
        }
        self.runs += 1;
        self.go_on(recovered, state);
        Ok(())
    }

    /// Recovery has to start behind the checkpoint, and may start at any older entry still there.
    fn start_index(&mut self) -> Index {
        let next = self.checkpoint + 1;
        let first = self.wal.first_index();
        let was_reset = self.frames[self.acked..]
            .iter()
            .any(|state| state.first > first);
        // Before a reset that was lost, states were not told apart: see `go_on`.
        let lost_reset = self.frames[self.acked].last() < self.checkpoint;
        if was_reset || lost_reset || first >= next {
            return next;
        }
        first + self.rng.below((next - first) as usize + 1) as u64
    }

    /// The state that was recovered.
    fn check(
        &self,
        recovered: &Recovered,
        entries: &[LogEntry],
        start: Index,
    ) -> Result<State, String> {
        let is_state = |state: &&State| state.equals(recovered, entries, start);
        if let Some(state) = self.frames[self.acked..].iter().rfind(is_state) {
            return Ok(state.clone());
        }
        let older = self.frames[..self.acked]
            .iter()
            .rposition(|state| is_state(&state));
        Err(match older {
            Some(nth) => format!("acknowledged frames lost: {nth} of {}", self.acked),
            None => format!(
                "not a state that ever was: {:?}, last {}, {} entries from {start}; acked {:?} to {}",
                recovered.hard_state,
                recovered.last_index,
                entries.len(),
                self.frames[self.acked].hard_state,
                self.frames[self.acked].last(),
            ),
        })
    }

    fn go_on(&mut self, recovered: Recovered, state: State) {
        let start = self.checkpoint + 1;
        self.model = state;
        self.wal = recovered.wal;
        self.frames = vec![self.model.clone()];
        self.completed.clear();
        self.acked = 0;
        self.action = None;
        let hard_state = &mut self.model.hard_state;
        if recovered.last_index < self.checkpoint {
            // The snapshot was durable, the reset was not.
            self.wal.reset(start).unwrap();
            self.model.first = start;
            self.model.entries.clear();
        }
        hard_state.commit = hard_state.commit.max(self.checkpoint);
        hard_state.term = hard_state.term.max(1);
        self.wal.set_hard_state(*hard_state);
    }

    fn drop_last_frame(&mut self) {
        let Some(segment) = self.wal.segments.back() else {
            return;
        };
        let (name, salt) = (segment.file.name(), segment.salt);
        let last = (1..LIMITS.segment_bytes / BLOCK_BYTES as u64)
            .rev()
            .find(|nth| {
                let offset = nth * BLOCK_BYTES as u64;
                let block = &self.disk.contents(&name)[offset as usize..];
                FrameHeader::decode(block, &salt, offset).is_ok()
            });
        if let Some(nth) = last {
            self.disk.flip_bit(&name, nth * BLOCK_BYTES as u64, 0);
        }
    }
}

fn live(seed: u64, bug: Bug) -> Result<u64, String> {
    let mut life = Life::new(seed, bug);
    for _ in 0..1 + seed % 4 {
        for _ in 0..life.rng.below(150) {
            if !life.step()? {
                break;
            }
        }
        life.crash()?;
    }
    Ok(life.runs)
}

const SEEDS: u64 = 4000;

#[test]
fn acknowledged_frames_survive_crashes() {
    let mut runs = 0;
    for seed in 0..SEEDS {
        match live(seed, Bug::None) {
            Ok(more) => runs += more,
            Err(what) => panic!("seed {seed}: {what}"),
        }
    }
    assert!(runs > SEEDS * 2);
}

/// How many of the first seeds the checker objects to, and whether it ever says `what`.
fn objections(bug: Bug, what: &str) -> (usize, bool) {
    let found: Vec<String> = (0..100).filter_map(|seed| live(seed, bug).err()).collect();
    (found.len(), found.iter().any(|text| text.contains(what)))
}

#[test]
fn checker_notices_planted_bugs() {
    assert_eq!(objections(Bug::None, ""), (0, false));
    for (bug, what) in [
        (Bug::SkipFlush, "acknowledged frames lost"),
        (Bug::DropLastFrame, "acknowledged frames lost"),
        (Bug::AckBeforeFlush, "acknowledged frames lost"),
        (Bug::LostWrite, "frames lost"),
        (Bug::SkipFirstEntry, "not a state that ever was"),
    ] {
        let (count, said) = objections(bug, what);
        assert!(count > 5, "{bug:?} noticed {count} times");
        assert!(said, "{bug:?}: never {what}");
    }
}
