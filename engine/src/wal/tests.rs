//! The log against a naive model on a disk that fails, by seed; damage of every kind; the layout.

mod crash;
mod damage;
mod layout;

use super::*;
use crate::io::sim::{Faults, SimDisk};

const IDENTITY: Identity = Identity {
    cluster: 0x0c1u64,
    member: 0x0e1,
};

/// Segments of nine blocks behind the header, frames of up to four.
const LIMITS: Limits = Limits {
    segment_bytes: 40 << 10,
    frame_bytes_max: 16 << 10,
    frames_in_flight_max: 3,
    ..Limits::SIM
};

fn options(incarnation: u64, start_index: Index) -> RecoverOptions {
    RecoverOptions {
        limits: LIMITS,
        identity: IDENTITY,
        incarnation,
        start_index,
    }
}

fn recover_all(
    disk: &mut SimDisk,
    incarnation: u64,
    start_index: Index,
) -> Result<(Recovered, Vec<LogEntry>), RecoverError> {
    let mut entries = Vec::new();
    let options = options(incarnation, start_index);
    let recovered = recover(
        disk,
        &options,
        &mut |entry| entries.push(entry),
        &mut |_| {},
    )?;
    Ok((recovered, entries))
}

/// A log on an honest disk, with everything done at once.
struct Direct {
    disk: SimDisk,
    wal: Wal,
    /// File, offset and length of each frame.
    frames: Vec<(String, u64, usize)>,
}

impl Direct {
    fn new() -> Self {
        let mut disk = SimDisk::new(0, Faults::NONE);
        let (recovered, entries) = recover_all(&mut disk, 1, 1).unwrap();
        assert!(entries.is_empty());
        let mut direct = Self {
            disk,
            wal: recovered.wal,
            frames: Vec::new(),
        };
        direct.wal.set_hard_state(HardState {
            term: 1,
            vote: 7,
            commit: 0,
        });
        direct.chores();
        direct
    }

    fn reopen(&mut self, incarnation: u64, start_index: Index) -> Vec<LogEntry> {
        let (recovered, entries) = recover_all(&mut self.disk, incarnation, start_index).unwrap();
        self.wal = recovered.wal;
        self.chores();
        entries
    }

    fn chores(&mut self) {
        while let Some(action) = self.wal.action() {
            action.run(&mut self.disk).unwrap();
            match action {
                Action::PrepareSegment(prepare) => self.wal.segment_ready(prepare.file),
                Action::RemoveSegment(file) => self.wal.segment_removed(file),
            }
        }
    }

    fn append(&mut self, index: Index, payload: &[u8]) {
        let term = self.wal.hard_state().term;
        let entry = Entry {
            index,
            term,
            kind: EntryKind::Normal,
            payload,
        };
        if self.wal.append(entry).is_err() {
            self.submit();
            self.wal.append(entry).unwrap();
        }
    }

    fn write(&mut self, frame: WriteFrame) {
        self.frames
            .push((frame.segment.name(), frame.offset, frame.buf.len()));
        self.disk.submit(frame);
        let done = self.disk.complete().unwrap();
        done.result.unwrap();
        self.wal.flushed(done.id, done.buf);
        self.chores();
    }

    fn submit(&mut self) {
        let frame = self.wal.submit().unwrap();
        self.write(frame);
    }

    fn seal(&mut self) {
        let frame = self.wal.seal().unwrap();
        self.write(frame);
    }
}

#[test]
fn log_survives_a_reopen_and_goes_on() {
    let mut direct = Direct::new();
    for index in 1..=100 {
        direct.append(index, format!("entry {index}").as_bytes());
        if index % 3 == 0 {
            direct.submit();
        }
    }
    direct.submit();
    assert!(direct.wal.stats().segments > 3);
    for run in 2..5 {
        let entries = direct.reopen(run, 11);
        assert_eq!(entries.len(), 90);
        for (index, entry) in (11..).zip(&entries) {
            assert_eq!(entry.index, index);
            assert_eq!(entry.payload, format!("entry {index}").as_bytes());
        }
        assert_eq!(direct.wal.flushed_index(), 100);
        assert_eq!(
            direct.wal.hard_state(),
            HardState {
                term: 1,
                vote: 7,
                commit: 0
            }
        );
    }
    direct.append(101, b"more");
    direct.submit();
    assert_eq!(direct.reopen(9, 100).len(), 2);
}

#[test]
fn vote_is_a_frame_without_records() {
    let mut direct = Direct::new();
    direct.submit();
    assert!(direct.wal.submit().is_none());
    direct.wal.set_hard_state(HardState {
        term: 4,
        vote: 9,
        commit: 0,
    });
    direct.submit();
    direct.reopen(2, 1);
    assert_eq!(
        direct.wal.hard_state(),
        HardState {
            term: 4,
            vote: 9,
            commit: 0
        }
    );
    // A commit index alone makes no frame due, but travels with the next one, within its log.
    direct.append(1, b"x");
    direct.submit();
    direct.wal.set_hard_state(HardState {
        term: 4,
        vote: 9,
        commit: 5,
    });
    assert!(direct.wal.submit().is_none());
    direct.append(2, b"y");
    direct.submit();
    direct.reopen(3, 1);
    assert_eq!(
        direct.wal.hard_state(),
        HardState {
            term: 4,
            vote: 9,
            commit: 2
        }
    );
}

#[test]
fn last_record_of_an_index_wins_and_cuts_what_follows() {
    let mut direct = Direct::new();
    for index in 1..=9 {
        direct.append(index, b"old");
    }
    direct.submit();
    direct.wal.set_hard_state(HardState {
        term: 2,
        vote: 0,
        commit: 4,
    });
    direct.append(6, b"new");
    direct.submit();
    let read = direct
        .wal
        .read_entries(&mut direct.disk, 1, 7, u64::MAX)
        .unwrap();
    let entries = direct.reopen(2, 1);
    assert_eq!(read, entries);
    assert_eq!(entries.len(), 6);
    assert_eq!(entries[4].payload, b"old".as_slice());
    assert_eq!(
        (entries[5].payload.as_ref(), entries[5].term),
        (b"new".as_slice(), 2)
    );
    // The same again inside what would have been one frame.
    direct.append(7, b"a");
    direct.append(8, b"b");
    let entry = Entry {
        index: 7,
        term: 2,
        kind: EntryKind::Empty,
        payload: b"",
    };
    assert_eq!(direct.wal.append(entry), Err(Full));
    direct.submit();
    direct.wal.append(entry).unwrap();
    direct.submit();
    let entries = direct.reopen(3, 7);
    assert_eq!(entries.len(), 1);
    assert_eq!(entries[0].kind, EntryKind::Empty);
}

#[test]
fn full_frame_no_slot_and_no_segment_hold_back() {
    let mut direct = Direct::new();
    let payload = vec![1; Wal::payload_bytes_max(&LIMITS)];
    direct.append(1, &payload);
    let entry = Entry {
        index: 2,
        term: 1,
        kind: EntryKind::Normal,
        payload: b"",
    };
    assert_eq!(direct.wal.append(entry), Err(Full));
    // Three of the largest frames: two fit the first segment, the next is ready, then none is.
    let mut frames = Vec::new();
    for index in 2..=4 {
        frames.push(direct.wal.submit().unwrap());
        direct
            .wal
            .append(Entry {
                index,
                payload: &payload,
                ..entry
            })
            .unwrap();
        if index == 3 {
            direct.chores();
        }
    }
    assert_eq!(direct.wal.in_flight_count(), LIMITS.frames_in_flight_max);
    assert!(!direct.wal.can_submit());
    assert!(direct.wal.submit().is_none());
    for frame in frames {
        direct.disk.submit(frame);
        let done = direct.disk.complete().unwrap();
        direct.wal.flushed(done.id, done.buf);
    }
    // A slot is free and the open segment has room for one more, not for two.
    let frame = direct.wal.submit().unwrap();
    direct.disk.submit(frame);
    direct
        .wal
        .append(Entry {
            index: 5,
            payload: &payload,
            ..entry
        })
        .unwrap();
    assert!(!direct.wal.can_submit());
    direct.chores();
    assert!(direct.wal.can_submit());
}

#[test]
fn completions_in_any_order_advance_over_the_contiguous_prefix_only() {
    let mut direct = Direct::new();
    let mut frames = Vec::new();
    for index in 1..=3 {
        direct.append(index, b"x");
        frames.push(direct.wal.submit().unwrap());
    }
    let third = frames.pop().unwrap();
    let second = frames.pop().unwrap();
    let first = frames.pop().unwrap();
    let (first_end, second_end, third_end) = (first.lsn_end, second.lsn_end, third.lsn_end);
    assert_eq!(direct.wal.flushed(third.id, third.buf), 0);
    assert_eq!(direct.wal.flushed_index(), 0);
    assert_eq!(direct.wal.flushed(first.id, first.buf), first_end);
    assert_eq!(direct.wal.flushed_index(), 1);
    assert!(second_end < third_end);
    assert_eq!(direct.wal.flushed(second.id, second.buf), third_end);
    assert_eq!(direct.wal.flushed_index(), 3);
    assert_eq!(direct.wal.submitted_lsn(), third_end);
    assert_eq!(direct.wal.accepted_lsn(), third_end);
}

#[test]
fn seal_comes_once_after_content() {
    let mut direct = Direct::new();
    direct.append(1, b"x");
    assert!(direct.wal.seal().is_none());
    direct.submit();
    direct.seal();
    assert!(direct.wal.seal().is_none());
    // What a reopened log believes is covered soon too.
    direct.append(2, b"y");
    direct.submit();
    direct.reopen(2, 1);
    direct.seal();
    assert!(direct.wal.seal().is_none());
    direct.reopen(3, 1);
    assert!(direct.wal.seal().is_none());
}

#[test]
fn released_segments_are_recycled_and_few_are_kept() {
    let mut direct = Direct::new();
    for index in 1..=200 {
        direct.append(index, &[7; 1000]);
        direct.submit();
    }
    assert!(direct.wal.stats().segments > 10);
    let released = direct.wal.release(150);
    assert!(released > 10);
    let first = direct.wal.first_index();
    assert!(first > 100 && first <= 151);
    assert_eq!(
        direct.wal.plan_read(first - 1, 160, 1).map(|_| ()),
        Err(ReadError::Missing)
    );
    direct.chores();
    assert_eq!(
        direct.wal.stats().free_segments,
        LIMITS.wal_free_segments_max
    );
    let files = direct.disk.list(DIR).unwrap().len();
    for index in 201..=300 {
        direct.append(index, &[8; 1000]);
        direct.submit();
        direct.wal.release(index - 30);
        direct.chores();
    }
    assert!(direct.disk.list(DIR).unwrap().len() <= files);
    assert_eq!(direct.reopen(2, 271).len(), 30);
    // The segment with the last hard state stays, whatever the checkpoint covers.
    direct.wal.release(300);
    assert_eq!(direct.wal.stats().segments, 1);
    assert_eq!(direct.reopen(3, 301).len(), 0);
    assert_eq!(direct.wal.hard_state().term, 1);
    assert_eq!(direct.wal.flushed_index(), 300);
}

#[test]
fn reset_begins_the_log_anew() {
    let mut direct = Direct::new();
    for index in 1..=5 {
        direct.append(index, b"x");
    }
    assert_eq!(direct.wal.reset(50), Err(Full));
    direct.submit();
    direct.wal.reset(50).unwrap();
    direct.submit();
    assert_eq!(direct.wal.flushed_index(), 49);
    // A checkpoint older than the reset cannot be gone on from.
    for start in [3, 49] {
        assert!(matches!(
            recover_all(&mut direct.disk, 3, start),
            Err(RecoverError::Corrupt(_))
        ));
    }
    direct.append(50, b"y");
    direct.submit();
    let entries = direct.reopen(2, 50);
    assert_eq!(entries.len(), 1);
    assert_eq!(
        (direct.wal.first_index(), direct.wal.flushed_index()),
        (50, 50)
    );
    // A checkpoint older than the reset cannot be gone on from.
    let error = recover_all(&mut direct.disk, 3, 3).err().unwrap();
    assert!(matches!(error, RecoverError::Corrupt(_)));
}

#[test]
fn positions_name_the_record() {
    let mut direct = Direct::new();
    let mut positions = Vec::new();
    for index in 1..=40u64 {
        direct.append(index, format!("payload {index}").as_bytes());
        if index % 4 == 0 {
            direct.submit();
            positions.extend(direct.wal.submitted_positions());
        }
    }
    let entries = direct.reopen(2, 1);
    assert_eq!(positions.len(), entries.len());
    for ((index, position), entry) in positions.into_iter().zip(entries) {
        assert_eq!((index, position), (entry.index, entry.position));
        let file = direct.wal.segments[position.segment as usize - 1]
            .file
            .name();
        let start = position.offset as usize + RECORD_HEADER_BYTES;
        let contents = direct.disk.contents(&file);
        assert_eq!(
            &contents[start..start + entry.payload.len()],
            &entry.payload[..]
        );
    }
}

#[test]
fn reads_are_bounded_in_bytes_but_give_one_entry() {
    let mut direct = Direct::new();
    for index in 1..=60 {
        direct.append(index, &[index as u8; 900]);
        direct.submit();
    }
    let disk = &mut direct.disk;
    for (low, high, bytes, want) in [
        (1, 61, u64::MAX, 60),
        (5, 6, 0, 1),
        (30, 61, 1800, 2),
        (59, 61, 1799, 1),
    ] {
        let entries = direct.wal.read_entries(disk, low, high, bytes).unwrap();
        assert_eq!(entries.len(), want);
        for (index, entry) in (low..).zip(entries) {
            assert_eq!((entry.index, entry.payload[0]), (index, index as u8));
        }
    }
    assert_eq!(
        direct.wal.read_entries(disk, 60, 62, 1),
        Err(ReadError::Missing)
    );
}

#[test]
fn segments_of_others_are_refused() {
    let mut direct = Direct::new();
    direct.submit();
    let other = Identity {
        member: 5,
        ..IDENTITY
    };
    let ours = options(2, 1);
    for (options, foreign) in [
        (
            RecoverOptions {
                identity: other,
                ..ours
            },
            true,
        ),
        (
            RecoverOptions {
                limits: Limits {
                    segment_bytes: 44 << 10,
                    ..LIMITS
                },
                ..ours
            },
            false,
        ),
    ] {
        let error = recover(&mut direct.disk, &options, &mut |_| {}, &mut |_| {})
            .err()
            .unwrap();
        match error {
            RecoverError::Foreign { found, .. } => assert!(foreign && found == IDENTITY),
            RecoverError::Format { .. } => assert!(!foreign),
            other => panic!("{other:?}"),
        }
    }
}
