//! Goal: the bytes on disk are exactly these, and any one wrong bit among them is noticed.

use proptest::prelude::*;

use super::*;
use crate::wal::frame::{Heading, SegmentHeader, records, verify_records};

const HEADER: SegmentHeader = SegmentHeader {
    identity: IDENTITY,
    incarnation: 0x1122_3344_5566_7788,
    seq: 5,
    segment_bytes: 40 << 10,
};

/// One frame at `offset` 8192 with the given records, as the log builds it.
fn frame_of(entries: &[(u64, EntryKind, Vec<u8>)]) -> Vec<u8> {
    let first_index = 41;
    let mut checksum = 0;
    let mut buf = AlignedBuf::new(16 << 10);
    buf.extend_zeroed(FRAME_HEADER_BYTES);
    for ((term, kind, payload), index) in entries.iter().zip(first_index..) {
        let entry = Entry {
            index,
            term: *term,
            kind: *kind,
            payload,
        };
        let head = frame::record_header(&entry);
        checksum = frame::add_record_header(checksum, &head);
        buf.extend_from_slice(&head);
        buf.extend_from_slice(payload);
        buf.extend_zeroed(buf.len().next_multiple_of(16) - buf.len());
    }
    let payload_bytes = buf.len() - FRAME_HEADER_BYTES;
    buf.pad_to_block();
    let header = FrameHeader {
        flags: 0,
        record_count: entries.len() as u32,
        lsn: 0x10_0000,
        frame_bytes: buf.len() as u32,
        payload_bytes: payload_bytes as u32,
        flushed_lsn: 0xf_f000,
        first_index,
        hard_state: HardState {
            term: 3,
            vote: 0xe1,
            commit: 40,
        },
        offset: 8192,
        previous: 0xdead_beef,
        records_checksum: checksum,
    };
    header.encode(&HEADER.salt(), buf.as_mut_slice());
    buf.as_slice().to_vec()
}

fn decode(bytes: &[u8]) -> Result<FrameHeader, &'static str> {
    let (header, _) = FrameHeader::decode(bytes, &HEADER.salt(), 8192)?;
    verify_records(&header, bytes)?;
    Ok(header)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn golden_entries() -> Vec<(u64, EntryKind, Vec<u8>)> {
    vec![
        (2, EntryKind::Normal, b"value".to_vec()),
        (3, EntryKind::Empty, Vec::new()),
        (3, EntryKind::ConfChangeV2, vec![0xab; 17]),
    ]
}

#[test]
fn frame_golden() {
    let frame = frame_of(&golden_entries());
    assert_eq!(frame.len(), 4096);
    let lines: Vec<String> = frame.chunks(16).map(hex).collect();
    let expected = [
        "726b7766010000008877665544332211", // magic, version, flags, incarnation
        "05000000030000000000100000000000", // seq, records, lsn
        "001000009000000000f00f0000000000", // frame and payload bytes, flushed_lsn
        "29000000000000002b00000000000000", // first and last index
        "0300000000000000e100000000000000", // term, vote
        "280000000000000000200000efbeadde", // commit, offset, previous
        "00000000000000000000000000000000",
        "000000000000000027d41f7979b3f884", // checksums of the records' headers, of this header
        "05000000010000002900000000000000", // payload bytes, kind, index
        "02000000000000006303e0e163ecd2ec", // term, checksums of the payload, of this header
        "76616c75650000000000000000000000",
        "00000000020000002a00000000000000",
        "03000000000000000000000031ad4bf0",
        "11000000040000002b00000000000000",
        "0300000000000000bd452958ed349319",
        "abababababababababababababababab",
        "ab000000000000000000000000000000",
    ];
    assert_eq!(lines[..expected.len()], expected);
    assert!(frame[expected.len() * 16..].iter().all(|&b| b == 0));
}

#[test]
fn segment_header_golden() {
    let mut block = vec![1; SEGMENT_HEADER_BYTES];
    HEADER.encode(&mut block);
    for (copy, sector) in block.chunks(512).enumerate() {
        assert_eq!(sector[12], copy as u8);
        assert!(sector[60..508].iter().all(|&b| b == 0));
    }
    let lines: Vec<String> = block[..64].chunks(16).map(hex).collect();
    let expected = [
        "72696e676b7677730100000000000000", // magic, version, copy
        "88776655443322110500000000000000", // incarnation, seq
        "c100000000000000e100000000000000", // cluster, member
        "00a0000000000000e7aaae3300000000", // segment bytes, format
    ];
    assert_eq!(lines, expected);
    assert_eq!(hex(&block[508..512]), "8edfc037");
    assert_eq!(SegmentHeader::decode(&block), Heading::Whole(HEADER));
}

#[test]
fn half_written_header_is_told_from_a_damaged_one() {
    let mut old = vec![0; SEGMENT_HEADER_BYTES];
    let mut new = vec![0; SEGMENT_HEADER_BYTES];
    HEADER.encode(&mut old);
    SegmentHeader {
        seq: 9,
        incarnation: 1,
        ..HEADER
    }
    .encode(&mut new);
    for sectors in 1u32..255 {
        let mut block = old.clone();
        for nth in (0..8).filter(|nth| sectors & (1 << nth) != 0) {
            block[nth * 512..][..512].copy_from_slice(&new[nth * 512..][..512]);
        }
        assert_eq!(SegmentHeader::decode(&block), Heading::Torn { seq: 9 });
    }
    for byte in 0..SEGMENT_HEADER_BYTES {
        let mut block = old.clone();
        block[byte] ^= 0x10;
        assert_eq!(SegmentHeader::decode(&block), Heading::Whole(HEADER));
    }
    assert_eq!(
        SegmentHeader::decode(&[0; SEGMENT_HEADER_BYTES]),
        Heading::Damaged
    );
    // A copy in the wrong sector does not count.
    let mut shifted = vec![0; SEGMENT_HEADER_BYTES];
    shifted[512..1024].copy_from_slice(&old[..512]);
    assert_eq!(SegmentHeader::decode(&shifted), Heading::Damaged);
}

#[test]
fn every_single_flipped_bit_of_a_frame_is_noticed() {
    let mut frame = frame_of(&golden_entries());
    assert!(decode(&frame).is_ok());
    for byte in 0..frame.len() {
        for bit in 0..8 {
            frame[byte] ^= 1 << bit;
            assert!(decode(&frame).is_err(), "bit {bit} of byte {byte}");
            frame[byte] ^= 1 << bit;
        }
    }
}

#[test]
fn frame_of_another_life_or_place_is_refused() {
    let frame = frame_of(&golden_entries());
    let other_lives = [
        SegmentHeader { seq: 6, ..HEADER },
        SegmentHeader {
            incarnation: 1,
            ..HEADER
        },
        SegmentHeader {
            identity: Identity {
                member: 1,
                ..IDENTITY
            },
            ..HEADER
        },
        SegmentHeader {
            identity: Identity {
                cluster: 1,
                ..IDENTITY
            },
            ..HEADER
        },
    ];
    for other in other_lives {
        assert!(FrameHeader::decode(&frame, &other.salt(), 8192).is_err());
    }
    let wrong_place = FrameHeader::decode(&frame, &HEADER.salt(), 4096);
    assert_eq!(wrong_place.err(), Some("frame written to the wrong place"));
}

/// A record that is sound in itself, but not the one that was written with this header: what an
/// earlier life of the file may leave in the sectors of a torn frame.
#[test]
fn sound_record_of_another_frame_is_refused() {
    let other = vec![
        (2, EntryKind::Normal, b"VALUE".to_vec()),
        (9, EntryKind::Empty, Vec::new()),
        (3, EntryKind::ConfChangeV2, vec![0xba; 17]),
    ];
    let (frame, other) = (frame_of(&golden_entries()), frame_of(&other));
    for (start, end) in [(128, 176), (176, 208), (208, 272), (128, 272)] {
        let mut mixed = frame.clone();
        mixed[start..end].copy_from_slice(&other[start..end]);
        assert_eq!(decode(&mixed), Err("records checksum mismatch"));
    }
}

fn any_kind() -> impl Strategy<Value = EntryKind> {
    prop_oneof![
        Just(EntryKind::Normal),
        Just(EntryKind::Empty),
        Just(EntryKind::ConfChange),
        Just(EntryKind::ConfChangeV2),
    ]
}

fn any_entries() -> impl Strategy<Value = Vec<(u64, EntryKind, Vec<u8>)>> {
    let payload = proptest::collection::vec(any::<u8>(), 0..900);
    proptest::collection::vec((any::<u64>(), any_kind(), payload), 0..12)
}

proptest! {
    #[test]
    fn frames_decode_to_what_was_encoded(entries in any_entries()) {
        let frame = frame_of(&entries);
        let header = decode(&frame).unwrap();
        let decoded: Vec<_> = records(&header, &frame).collect();
        prop_assert_eq!(decoded.len(), entries.len());
        for ((record, want), index) in decoded.iter().zip(&entries).zip(41..) {
            let start = record.offset + RECORD_HEADER_BYTES;
            prop_assert_eq!(record.offset % 16, 0);
            prop_assert_eq!((record.index, record.term, record.kind), (index, want.0, want.1));
            prop_assert_eq!(&frame[start..start + record.payload_bytes], &want.2[..]);
        }
    }

    #[test]
    fn a_flipped_bit_or_a_torn_sector_is_noticed(
        entries in any_entries(),
        byte in any::<prop::sample::Index>(),
        bit in 0..8,
        torn in any::<prop::sample::Index>(),
    ) {
        let frame = frame_of(&entries);
        let mut flipped = frame.clone();
        flipped[byte.index(frame.len())] ^= 1u8 << bit;
        prop_assert!(decode(&flipped).is_err());
        // A sector that still has something older; unless it is equal, it is noticed.
        let mut older = frame.clone();
        let start = torn.index(frame.len() / 512) * 512;
        older[start..start + 512].fill(0x5a);
        prop_assert!(decode(&older).is_err());
    }

    #[test]
    fn decoding_anything_does_not_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(decode(&bytes).is_err());
        // Behind a sound header, too.
        let mut frame = frame_of(&golden_entries());
        let (header, _) = FrameHeader::decode(&frame, &HEADER.salt(), 8192).unwrap();
        frame[128..128 + bytes.len()].copy_from_slice(&bytes);
        let _ = verify_records(&header, &frame);
        let _ = verify_records(&header, &bytes);
    }
}
