//! Goal: damage to what was durable is reported where it is, and never cut or believed.

use super::*;
use crate::error::Corruption;
use crate::io::sim::Prng;

/// Sixteen data frames of different sizes over several segments, then a seal.
fn sealed() -> Direct {
    let mut direct = Direct::new();
    for index in 1..=16u64 {
        direct.append(index, &vec![index as u8; 600 * index as usize]);
        direct.submit();
    }
    direct.seal();
    assert!(direct.wal.stats().segments >= 3);
    direct
}

fn corruption(disk: &mut SimDisk) -> Corruption {
    match recover_all(disk, 99, 1) {
        Err(RecoverError::Corrupt(corruption)) => corruption,
        Err(error) => panic!("{error:?}"),
        Ok((recovered, _)) => panic!("recovered up to {}", recovered.last_index),
    }
}

/// Overwrites whole blocks, durably.
fn smash(disk: &mut SimDisk, file: &str, offset: u64, blocks: usize, byte: u8) {
    let mut buf = AlignedBuf::zeroed(blocks * BLOCK_BYTES);
    buf.as_mut_slice().fill(byte);
    disk.write_at(file, offset, buf.as_slice()).unwrap();
    disk.flush(file).unwrap();
}

#[test]
fn any_flipped_bit_before_the_seal_is_corruption() {
    let mut direct = sealed();
    let mut rng = Prng::new(7);
    let (_, covered) = direct.frames.split_last().unwrap();
    for (file, offset, len) in covered.iter().cloned() {
        // All of the header's words, and some bits of the rest.
        let header = (0..FRAME_HEADER_BYTES).step_by(4);
        let rest: Vec<usize> = (0..30).map(|_| rng.below(len)).collect();
        for byte in header.chain(rest) {
            let (at, bit) = (offset + byte as u64, rng.below(8) as u8);
            direct.disk.flip_bit(&file, at, bit);
            let found = corruption(&mut direct.disk);
            assert_eq!(
                (found.file.as_str(), found.offset),
                (file.as_str(), offset),
                "{byte}"
            );
            direct.disk.flip_bit(&file, at, bit);
        }
    }
    assert_eq!(direct.reopen(2, 1).len(), 16);
}

#[test]
fn frame_that_nothing_vouches_for_is_cut_until_a_seal_vouches() {
    for sealed in [false, true] {
        let mut direct = Direct::new();
        for index in 1..=5 {
            direct.append(index, b"x");
            direct.submit();
        }
        let (file, offset, _) = direct.frames.last().unwrap().clone();
        if sealed {
            direct.seal();
        }
        direct.disk.flip_bit(&file, offset + 130, 3);
        if sealed {
            assert_eq!(corruption(&mut direct.disk).offset, offset);
        } else {
            let (recovered, entries) = recover_all(&mut direct.disk, 2, 1).unwrap();
            assert_eq!(entries.len(), 4);
            let cut = recovered.cut.unwrap();
            assert_eq!((cut.file, cut.offset), (file, offset));
            assert_eq!(cut.what, "record header checksum mismatch");
        }
    }
}

#[test]
fn many_damaged_frames_are_reported_at_the_first() {
    let mut direct = sealed();
    let frames = direct.frames.clone();
    let (file, offset, _) = &frames[2];
    for (file, offset, _) in &frames[2..10] {
        smash(&mut direct.disk, file, *offset, 1, 0xee);
    }
    let found = corruption(&mut direct.disk);
    assert_eq!((&found.file, found.offset), (file, *offset));
}

#[test]
fn lost_write_is_corruption_once_covered() {
    let mut direct = Direct::new();
    for index in 1..=6 {
        direct.disk.faults_mut().lost = if index == 3 { 1000 } else { 0 };
        direct.append(index, b"x");
        direct.submit();
    }
    let (file, offset, _) = direct.frames[2].clone();
    let found = corruption(&mut direct.disk);
    assert_eq!(
        (found.file, found.offset, found.what),
        (file, offset, "no frame here")
    );
}

#[test]
fn misdirected_writes_never_invent_a_log() {
    let mut reported = 0;
    for seed in 0..300 {
        let mut direct = Direct::new();
        direct.disk = SimDisk::new(seed, Faults::NONE);
        direct.wal = recover_all(&mut direct.disk, 1, 1).unwrap().0.wal;
        direct.wal.set_hard_state(HardState {
            term: 1,
            vote: 1,
            commit: 0,
        });
        direct.chores();
        for index in 1..=12 {
            direct.disk.faults_mut().misdirected = if index == 4 { 1000 } else { 0 };
            direct.append(index, &vec![index as u8; 500 * index as usize]);
            direct.submit();
        }
        direct.seal();
        match recover_all(&mut direct.disk, 2, 1) {
            Err(RecoverError::Corrupt(_)) => reported += 1,
            Err(error) => panic!("{error:?}"),
            // It went where it belonged, by chance.
            Ok((_, entries)) => assert_eq!(entries.len(), 12),
        }
    }
    assert!(reported > 200);
}

#[test]
fn damaged_first_frame_of_a_segment_is_found_there() {
    let mut direct = sealed();
    let frames = direct.frames.clone();
    let firsts = frames.iter().filter(|(_, offset, _)| *offset == 4096);
    assert!(firsts.clone().count() >= 2);
    for (file, offset, _) in firsts {
        direct.disk.flip_bit(file, offset + 8, 0);
        let found = corruption(&mut direct.disk);
        assert_eq!((&found.file, found.offset), (file, 4096));
        direct.disk.flip_bit(file, offset + 8, 0);
    }
}

#[test]
fn one_good_copy_of_a_segment_header_is_enough_and_none_is_corruption() {
    let mut direct = sealed();
    let (file, _, _) = direct.frames[0].clone();
    for copy in 0..7 {
        direct.disk.flip_bit(&file, copy * 512 + 30, 1);
    }
    assert_eq!(direct.reopen(2, 1).len(), 16);
    smash(&mut direct.disk, &file, 0, 1, 0);
    let found = corruption(&mut direct.disk);
    assert_eq!((found.file, found.offset), (file, 0));
}

#[test]
fn missing_or_short_segment_file_is_corruption() {
    let mut direct = sealed();
    let middle = direct.wal.segments[1].file.name();
    direct.disk.remove(&middle).unwrap();
    corruption(&mut direct.disk);

    let mut direct = sealed();
    direct
        .disk
        .create("wal/00000000000000aa.wal", 8192)
        .unwrap();
    assert_eq!(
        corruption(&mut direct.disk).what,
        "segment header is damaged"
    );
}

#[test]
fn two_segments_with_one_sequence_number_are_corruption() {
    let mut direct = sealed();
    let first = direct.wal.segments[0].file.name();
    let mut copy = AlignedBuf::zeroed(LIMITS.segment_bytes as usize);
    direct.disk.read_at(&first, 0, copy.as_mut_slice()).unwrap();
    let twin = SegmentId(77).name();
    direct.disk.create(&twin, LIMITS.segment_bytes).unwrap();
    direct.disk.write_at(&twin, 0, copy.as_slice()).unwrap();
    assert_eq!(
        corruption(&mut direct.disk).what,
        "two segments with one sequence number"
    );
}

#[test]
fn recovery_changes_no_byte() {
    let mut direct = sealed();
    let (file, offset, _) = direct.frames.last().unwrap().clone();
    direct.disk.flip_bit(&file, offset + 20, 0);
    direct
        .disk
        .create("wal/0000000000000063.new", 4096)
        .unwrap();
    let names = direct.disk.list(DIR).unwrap();
    let before: Vec<Vec<u8>> = names
        .iter()
        .filter(|name| name.ends_with(".wal"))
        .map(|name| direct.disk.contents(name).to_vec())
        .collect();
    recover_all(&mut direct.disk, 5, 1).unwrap();
    let names = direct.disk.list(DIR).unwrap();
    let after: Vec<Vec<u8>> = names
        .iter()
        .map(|name| direct.disk.contents(name).to_vec())
        .collect();
    assert!(before == after);
}

/// A write of a killed process that reaches the device only after the next process went on.
#[test]
fn write_that_lands_late_changes_nothing() {
    let mut direct = Direct::new();
    direct.append(1, b"acknowledged");
    direct.submit();
    direct.append(2, b"in flight when killed");
    let late = direct.wal.submit().unwrap();
    direct.append(3, b"as well");
    let later = direct.wal.submit().unwrap();
    assert_eq!(direct.reopen(2, 1).len(), 1);
    direct.append(2, b"of the next run");
    direct.submit();
    for frame in [late, later] {
        let file = frame.segment.name();
        direct
            .disk
            .write_at(&file, frame.offset, frame.buf.as_slice())
            .unwrap();
        direct.disk.flush(&file).unwrap();
    }
    for run in 3..5 {
        let entries = direct.reopen(run, 1);
        assert_eq!(entries.len(), 2);
        assert_eq!(entries[1].payload, b"of the next run".as_slice());
    }
}

/// A torn frame behind which others of its run are whole: they were cut, in their segment and in
/// the next one, and stay cut while the log grows over their LSNs and their files are recycled.
#[test]
fn what_was_cut_stays_cut() {
    let mut direct = Direct::new();
    direct.append(1, b"acknowledged");
    direct.submit();
    let payload = vec![9; Wal::payload_bytes_max(&LIMITS)];
    let mut frames = Vec::new();
    for index in 2..=4 {
        direct.append(index, &payload);
        frames.push(direct.wal.submit().unwrap());
    }
    // The third of them went to the next segment.
    assert_ne!(frames[0].segment, frames[2].segment);
    for frame in &frames[1..] {
        let file = frame.segment.name();
        direct
            .disk
            .write_at(&file, frame.offset, frame.buf.as_slice())
            .unwrap();
        direct.disk.flush(&file).unwrap();
    }
    for run in 0..8u64 {
        let entries = direct.reopen(2 + run, 1);
        assert_eq!(entries.len() as u64, 1 + run * 3);
        for index in 2 + run * 3..5 + run * 3 {
            direct.append(index, &[run as u8; 6000]);
            direct.submit();
            direct.chores();
        }
    }
    let first = direct.wal.first_index();
    direct.wal.release(20);
    assert!(direct.wal.first_index() > first);
    for index in 26..60 {
        direct.append(index, &[1; 6000]);
        direct.submit();
        direct.wal.release(index - 5);
        direct.chores();
        let (recovered, _) = recover_all(&mut direct.disk, 50, index - 4).unwrap();
        assert_eq!(recovered.last_index, index);
    }
}

/// Overwrites `file` of `target` with that of `source`.
fn copy_file(source: &mut SimDisk, target: &mut SimDisk, file: &str) {
    let mut buf = AlignedBuf::zeroed(LIMITS.segment_bytes as usize);
    source.read_at(file, 0, buf.as_mut_slice()).unwrap();
    target.write_at(file, 0, buf.as_slice()).unwrap();
    target.flush(file).unwrap();
}

/// Two logs with a common past, one segment for each of `payloads` behind it.
fn fork(payloads: &[&[u8]]) -> Direct {
    let mut direct = Direct::new();
    direct.append(1, b"common");
    direct.submit();
    for (index, payload) in (2..).zip(payloads) {
        direct.reopen(index, 1);
        direct.append(index, payload);
        direct.submit();
    }
    direct
}

#[test]
fn segments_of_another_history_are_corruption() {
    let mut ours = fork(&[b"two", b"three"]);
    let mut theirs = fork(&[b"zwei", b"drei"]);
    let last = ours.frames[2].0.clone();
    copy_file(&mut theirs.disk, &mut ours.disk, &last);
    let found = corruption(&mut ours.disk);
    assert_eq!(
        (found.file, found.what),
        (last, "frame continues another log")
    );

    // Now the boundaries do not even agree.
    let mut ours = fork(&[&[1; 5000], b"three"]);
    let mut theirs = fork(&[b"zwei", b"drei"]);
    let (middle, last) = (ours.frames[1].0.clone(), ours.frames[2].0.clone());
    copy_file(&mut theirs.disk, &mut ours.disk, &last);
    let found = corruption(&mut ours.disk);
    assert_eq!(
        (found.file, found.what),
        (middle, "the next segment begins inside this frame")
    );
}

/// The oldest segment is kept because its frames were flushed, so its first frame was.
#[test]
fn damaged_first_frame_of_the_oldest_segment_is_corruption() {
    for byte in [10, 200] {
        let mut direct = fork(&[b"two"]);
        let (oldest, last) = (direct.frames[0].0.clone(), direct.frames[1].0.clone());
        assert_ne!(oldest, last);
        // Another frame was in flight with the damaged one, so that it does not vouch for it.
        if byte == 10 {
            direct.reopen(9, 1);
            direct.append(3, b"three");
            let first = direct.wal.submit().unwrap();
            direct.append(4, b"four");
            let second = direct.wal.submit().unwrap();
            direct.write(first);
            direct.write(second);
        }
        let newest = direct.frames[direct.frames.len() - if byte == 10 { 2 } else { 1 }]
            .0
            .clone();
        for file in direct.disk.list(DIR).unwrap() {
            if direct.frames.iter().any(|frame| frame.0 == file) && file != newest {
                direct.disk.remove(&file).unwrap();
            }
        }
        direct.disk.flip_bit(&newest, 4096 + byte, 1);
        let found = corruption(&mut direct.disk);
        assert_eq!((found.file, found.offset), (newest, 4096));
    }
}

#[test]
fn missing_oldest_segment_is_noticed_if_its_entries_are_needed() {
    let mut direct = sealed();
    let oldest = direct.frames[0].0.clone();
    direct.disk.remove(&oldest).unwrap();
    let found = corruption(&mut direct.disk);
    assert_eq!(
        found.what,
        "entries are missing between the checkpoint and the log"
    );
    let first = direct.wal.segments[1].salt.seq();
    let index = direct.wal.live.last_index_in(first - 1).unwrap() + 1;
    let (_, entries) = recover_all(&mut direct.disk, 2, index).unwrap();
    assert_eq!(entries[0].index, index);
}

/// A file that was renamed into place by a process that died before it made the name durable.
#[test]
fn names_are_made_durable_before_they_are_relied_on() {
    for seed in 0..20 {
        let mut disk = SimDisk::new(seed, Faults::NONE);
        let mut wal = recover_all(&mut disk, 1, 1).unwrap().0.wal;
        disk.faults_mut().operations_left = 5;
        wal.action().unwrap().run(&mut disk).unwrap_err();
        disk.kill();
        assert!(disk.list(DIR).unwrap().contains(&SegmentId(1).name()));
        let mut direct = Direct::new();
        (direct.disk, direct.wal) = (disk, wal);
        let (recovered, _) = recover_all(&mut direct.disk, 2, 1).unwrap();
        direct.wal = recovered.wal;
        direct.wal.set_hard_state(HardState {
            term: 1,
            vote: 1,
            commit: 0,
        });
        let action = direct.wal.action().unwrap();
        action.run(&mut direct.disk).unwrap();
        direct.wal.segment_ready(SegmentId(1));
        direct.append(1, b"acknowledged");
        let frame = direct.wal.submit().unwrap();
        direct.disk.submit(frame);
        direct.disk.complete().unwrap().result.unwrap();
        direct.disk.crash();
        assert_eq!(direct.reopen(3, 1).len(), 1);
    }
}

/// Three frames in flight at once, of which none vouches for another; the third is alone in the
/// second segment.
fn three_in_flight() -> Direct {
    let mut direct = Direct::new();
    let payload = vec![5; Wal::payload_bytes_max(&LIMITS)];
    let mut frames = Vec::new();
    for index in 1..=3 {
        direct.append(index, &payload);
        frames.push(direct.wal.submit().unwrap());
        direct.chores();
    }
    for frame in frames {
        direct.write(frame);
    }
    assert_ne!(direct.frames[1].0, direct.frames[2].0);
    direct
}

#[test]
fn oldest_frame_needs_nobody_to_vouch_for_it() {
    let mut direct = three_in_flight();
    let (file, offset, _) = direct.frames[2].clone();
    direct.disk.remove(&direct.frames[0].0.clone()).unwrap();
    direct.disk.flip_bit(&file, offset + 500, 1);
    let found = corruption(&mut direct.disk);
    assert_eq!((found.file, found.offset), (file, offset));
}

#[test]
fn frame_behind_a_damaged_one_vouches_for_what_is_missing_before_both() {
    let mut direct = fork(&[b"two"]);
    direct.reopen(9, 1);
    direct.append(3, b"three");
    let first = direct.wal.submit().unwrap();
    direct.append(4, b"four");
    let second = direct.wal.submit().unwrap();
    direct.write(first);
    direct.write(second);
    let (missing, damaged) = (direct.frames[1].0.clone(), direct.frames[2].0.clone());
    direct.disk.remove(&missing).unwrap();
    direct.disk.flip_bit(&damaged, 4096 + 20, 1);
    // Reported where the chain breaks.
    assert_eq!(corruption(&mut direct.disk).file, direct.frames[0].0);
}
