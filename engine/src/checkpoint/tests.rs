//! Checkpoints of random histories, on a disk that fails by seed: what is loaded is what was
//! written, whatever happens in between; and the checkers notice a planted bug.

use std::collections::BTreeMap;

use super::block::{BlockKind, Place};
use super::*;
use crate::command::{Command, DeleteRange, Envelope, Origin, Put, Range, Txn, TxnOp};
use crate::io::sim::{Faults, Prng, SimDisk};
use crate::io::{AlignedBuf, Disk};
use crate::lease::Lessor;
use crate::limits::Limits;
use crate::limits::format::BLOCK_BYTES;
use crate::members::Members;
use crate::mvcc::hash::HashScan;
use crate::mvcc::range::{RangeResult, RangeScan};
use crate::wal::Identity;

const IDENTITY: Identity = Identity {
    cluster: 0xc1,
    member: 0xe1,
};

const SUPERBLOCK: &str = "superblock";

fn lessor() -> Lessor {
    Lessor::new(2, None, &Limits::SIM)
}

/// A state machine under random commands; its own log.
struct History {
    machine: Machine,
    rng: Prng,
}

impl History {
    fn new(seed: u64) -> Self {
        let mut members = Members::default();
        for id in [7, 3] {
            let member = Member {
                name: format!("m{id}"),
                peer_urls: vec![format!("http://10.0.0.{id}:2380"), String::new()],
                client_urls: Vec::new(),
                learner: id == 7,
            };
            members.insert(id, member);
        }
        Self {
            machine: Machine::new(Limits::SIM, lessor(), members),
            rng: Prng::new(seed),
        }
    }

    fn apply(&mut self, command: Command<'_>) {
        let record = Envelope {
            origin: Origin::NONE,
            command,
        }
        .to_bytes();
        let index = self.machine.applied() + 1;
        let applied = self.machine.apply(index, self.term(), &record, |_| true);
        applied.expect("ours");
        self.machine.store.publish(index);
    }

    fn term(&self) -> Term {
        1 + self.machine.applied() / 10
    }

    fn conf(&self) -> Conf {
        Conf {
            voters: vec![3, 9],
            learners: vec![7],
        }
    }

    fn image(&self) -> CheckpointImage {
        self.machine.image(self.term(), self.conf())
    }

    fn run(&mut self, commands: usize) {
        for _ in 0..commands {
            self.random_command();
            if self.rng.below(3) == 0 {
                self.machine.store.compact_slice(u64::MAX);
            }
        }
    }

    fn random_command(&mut self) {
        let rng = &mut self.rng;
        let keys: [Vec<u8>; 3] = core::array::from_fn(|_| {
            let key = rng.below(9);
            let mut name = format!("k{key}").into_bytes();
            // One key is longer than a block.
            name.resize(if key == 8 { 5000 } else { 2 }, b'x');
            name
        });
        let value = vec![b'v'; [0, 3, 700, 10_000][rng.below(4)]];
        let lease = [0, 11, 12, 13][rng.below(4)];
        let lease = if self.machine.lessor.contains(lease) {
            lease
        } else {
            0
        };
        let put = |key| Put {
            key,
            value: &value,
            lease,
            prev_kv: false,
            ignore_value: false,
            ignore_lease: false,
        };
        let id = 11 + rng.below(3) as i64;
        let draw = rng.below(20);
        let revision = self.machine.store.revision();
        match draw {
            0 | 1 => self.apply(Command::LeaseGrant { id, ttl: 100 }),
            2 => self.apply(Command::LeaseRevoke { id }),
            3 => self.apply(Command::LeaseCheckpoint {
                remaining: vec![(id, 40)],
                applied: self.machine.applied(),
            }),
            4 => self.apply(Command::Compact {
                revision: revision.saturating_sub(id as u64 - 11) as i64,
            }),
            5 => self.apply(Command::Alarm {
                action: 1 + (id & 1) as i32,
                member: 3,
                alarm: crate::alarm::CORRUPT + 1,
            }),
            6 => self.apply(Command::ClusterVersion { version: "3.7.0" }),
            7 => self.apply(Command::MemberAttributes {
                member: 3,
                name: "renamed",
                client_urls: vec!["http://c".to_owned()],
            }),
            8..=10 => self.apply(Command::DeleteRange(DeleteRange {
                key: &keys[0],
                range_end: if draw == 8 { b"k3" } else { b"" },
                prev_kv: false,
            })),
            11..=13 => {
                let mut distinct = keys.clone().to_vec();
                distinct.sort();
                distinct.dedup();
                let success = distinct.iter().map(|key| TxnOp::Put(put(key))).collect();
                self.apply(Command::Txn(Txn {
                    compare: vec![],
                    success,
                    failure: vec![],
                }));
            }
            _ => self.apply(Command::Put(put(&keys[0]))),
        }
    }
}

/// All that can be asked of a state machine.
#[derive(PartialEq, Debug)]
struct Answers {
    applied: Index,
    revision: u64,
    compacted: i64,
    hashes: Vec<KvHash>,
    /// At each readable revision: everything, and HashKV.
    at: Vec<(RangeResult, KvHash)>,
    leases: BTreeMap<LeaseId, (i64, i64, Vec<Vec<u8>>)>,
    alarms: Vec<(MemberId, i32)>,
    members: Vec<(MemberId, Member)>,
    cluster_version: Option<String>,
}

fn answers(machine: &Machine) -> Answers {
    let store = &machine.store;
    let at = |at: i64| {
        store.with_state(|state| {
            let query = Range {
                key: b"\0",
                range_end: b"\0",
                revision: at,
                ..Range::default()
            };
            let mut range = RangeScan::begin(&query, state).expect("readable");
            while range.step(state, 3).expect("readable") {}
            let mut hash = HashScan::begin(at, state).expect("readable");
            while hash.step(3) {}
            (range.finish(), hash.finish())
        })
    };
    let leases = machine.lessor.iter().map(|(id, lease)| {
        let keys = lease.keys().map(<[u8]>::to_vec).collect();
        (id, (lease.granted_ttl(), lease.remaining_ttl(), keys))
    });
    Answers {
        applied: machine.applied(),
        revision: store.revision(),
        compacted: store.compacted(),
        hashes: store.hashes().to_vec(),
        at: (store.compacted().max(1)..=store.revision() as i64)
            .map(at)
            .collect(),
        leases: leases.collect(),
        alarms: machine.alarms.get(crate::alarm::NONE).collect(),
        members: machine
            .members
            .iter()
            .map(|(id, m)| (id, m.clone()))
            .collect(),
        cluster_version: machine.members.cluster_version.clone(),
    }
}

fn write(
    disk: &mut SimDisk,
    superblock: Superblock,
    image: CheckpointImage,
) -> Result<Superblock, DiskError> {
    let mut writer = CheckpointWriter::new(superblock, image, &Limits::SIM);
    while writer.step(disk)? {}
    Ok(writer.finish())
}

fn load(disk: &mut SimDisk, superblock: &Superblock) -> Result<Option<Loaded>, CheckpointError> {
    superblock.load(disk, Limits::SIM, lessor(), &mut |_| {})
}

/// A disk with one checkpoint of a history.
fn written(seed: u64, commands: usize) -> (SimDisk, Superblock, History) {
    let mut disk = SimDisk::new(seed, Faults::NONE);
    let mut history = History::new(seed);
    history.run(commands);
    let superblock = Superblock::create(&mut disk, IDENTITY).unwrap();
    let superblock = write(&mut disk, superblock, history.image()).unwrap();
    (disk, superblock, history)
}

fn seeds() -> u64 {
    if cfg!(miri) { 1 } else { 30 }
}

#[test]
fn what_is_loaded_is_what_was_written() {
    let mut pending = 0;
    for seed in 0..seeds() {
        let (mut disk, superblock, mut history) = written(seed, 150);
        pending += u32::from(history.machine.store.is_compacting());
        let mut progress = Vec::new();
        let opened = Superblock::open(&mut disk).unwrap().unwrap();
        assert_eq!(opened, superblock);
        let loaded = opened
            .load(&mut disk, Limits::SIM, lessor(), &mut |p| progress.push(p))
            .unwrap()
            .unwrap();
        assert_eq!(answers(&loaded.machine), answers(&history.machine));
        assert_eq!(
            (loaded.term, &loaded.conf),
            (history.term(), &history.conf())
        );
        assert!(progress.len() > 2 && progress.is_sorted_by_key(|p| p.bytes_done));
        let last = progress.last().unwrap();
        assert_eq!(last.bytes_done, last.bytes_total);

        // The two go on alike, to the end of the compactions that the image found on their way.
        let mut again = History {
            machine: loaded.machine,
            rng: history.rng.clone(),
        };
        // A checkpoint keeps no compaction's hash that was not done.
        for h in [&mut history, &mut again] {
            h.run(60);
            while h.machine.store.compact_slice(u64::MAX) {}
        }
        let mut want = answers(&history.machine);
        let mut got = answers(&again.machine);
        (want.hashes, got.hashes) = (Vec::new(), Vec::new());
        assert_eq!(got, want);
        assert_eq!(again.machine.store.bytes(), history.machine.store.bytes());
    }
    assert!(pending > 0, "no image was taken amid a compaction");
}

#[test]
fn an_empty_machine_comes_back() {
    let (mut disk, superblock, history) = written(0, 0);
    let loaded = load(&mut disk, &superblock).unwrap().unwrap();
    assert_eq!(answers(&loaded.machine), answers(&history.machine));
    assert_eq!(loaded.machine.store.revision(), 1);
}

#[test]
fn the_store_goes_on_while_a_checkpoint_is_written() {
    fn assert_send<T: Send>(_: &T) {}
    for seed in 0..seeds() {
        let mut history = History::new(seed);
        history.run(100);
        let want = answers(&history.machine);
        let mut disk = SimDisk::new(seed, Faults::NONE);
        let superblock = Superblock::create(&mut disk, IDENTITY).unwrap();
        let mut writer = CheckpointWriter::new(superblock, history.image(), &Limits::SIM);
        assert_send(&writer);
        assert_eq!(writer.applied(), want.applied);
        while writer.step(&mut disk).unwrap() {
            history.run(2);
        }
        assert!(history.machine.store.compacted() > want.compacted);
        let loaded = load(&mut disk, &writer.finish()).unwrap().unwrap();
        assert_eq!(answers(&loaded.machine), want);
    }
}

/// What a crash run finds when power comes back.
#[derive(PartialEq, Debug)]
enum Found {
    Old,
    New,
    /// Something that must not be.
    Broken(String),
}

/// Writes an old and a new checkpoint; power fails before operation `crash_at` of the new one (and
/// again at each later attempt to open). Also: whether the new one had been written to its end.
fn crash_run(seed: u64, crash_at: u32, plant: bool) -> (Found, bool) {
    let (mut disk, mut superblock, mut history) = written(seed, 20);
    let old = answers(&history.machine);
    assert_eq!(superblock.next_start(&mut disk).unwrap(), 1);
    history.run(20);
    let new = answers(&history.machine);
    *disk.faults_mut() = Faults {
        operations_left: crash_at,
        ..Faults::POWER_CUTS
    };
    let mut writer = CheckpointWriter::new(superblock, history.image(), &Limits::SIM);
    writer.plant_root_first = plant;
    let done = loop {
        match writer.step(&mut disk) {
            Ok(true) => {}
            Ok(false) => break true,
            Err(_) => break false,
        }
    };
    disk.crash();
    let mut attempt = 0;
    let superblock = loop {
        // The next start may fail at each of its operations, too.
        disk.faults_mut().operations_left = attempt;
        match Superblock::open(&mut disk) {
            Ok(Some(mut superblock)) => match superblock.next_start(&mut disk) {
                Ok(start) => {
                    assert!(start >= 2, "each start has its own count");
                    break superblock;
                }
                Err(_) => disk.crash(),
            },
            Err(CheckpointError::Disk(_)) => disk.crash(),
            other => return (Found::Broken(format!("{other:?}")), done),
        }
        attempt += 1;
    };
    disk.faults_mut().operations_left = u32::MAX;
    let found = match load(&mut disk, &superblock) {
        Ok(Some(loaded)) if answers(&loaded.machine) == old => Found::Old,
        Ok(Some(loaded)) if answers(&loaded.machine) == new => Found::New,
        Ok(_) => Found::Broken("another state".to_owned()),
        Err(error) => return (Found::Broken(error.to_string()), done),
    };
    // And from here everything works.
    history.run(5);
    let superblock = write(&mut disk, superblock, history.image()).unwrap();
    disk.crash();
    let opened = Superblock::open(&mut disk).unwrap().unwrap();
    assert_eq!(opened.root(), superblock.root());
    let loaded = load(&mut disk, &opened).unwrap().unwrap();
    assert_eq!(answers(&loaded.machine), answers(&history.machine));
    assert_eq!(disk.list(DIR).unwrap().len(), 1, "nothing else is left");
    (found, done)
}

#[test]
fn a_crash_at_any_operation_leaves_the_old_or_the_new_checkpoint() {
    let mut found = [0, 0];
    for seed in 0..seeds().min(5) {
        for crash_at in 0.. {
            let (what, done) = crash_run(seed, crash_at, false);
            match what {
                Found::Old => assert!(!done, "seed {seed} crash at {crash_at}: new one lost"),
                Found::New => {}
                Found::Broken(how) => panic!("seed {seed} crash at {crash_at}: {how}"),
            }
            found[usize::from(what == Found::New)] += 1;
            if done {
                break;
            }
        }
    }
    assert!(found.iter().all(|&n| n > 20), "{found:?}");
}

#[test]
fn a_root_written_before_its_blocks_is_noticed() {
    let broken = (0..12).any(|seed| {
        (0..60).any(|crash_at| matches!(crash_run(seed, crash_at, true).0, Found::Broken(_)))
    });
    assert!(broken);
}

#[test]
fn a_flipped_bit_anywhere_in_a_checkpoint_is_detected() {
    let (mut disk, superblock, _) = written(5, 40);
    let root = superblock.root().unwrap();
    let file = file_name(root.id);
    assert!(root.file_bytes > 4 * BLOCK_BYTES as u64);
    let mut rng = Prng::new(1);
    let flips = if cfg!(miri) { 5 } else { 400 };
    let heads = (0..root.file_bytes)
        .step_by(BLOCK_BYTES)
        .flat_map(|b| b..b + 48);
    let somewhere = (0..flips)
        .map(|_| rng.next_u64() % root.file_bytes)
        .collect::<Vec<_>>();
    for offset in heads
        .step_by(if cfg!(miri) { 97 } else { 1 })
        .chain(somewhere)
    {
        let bit = (offset % 8) as u8;
        disk.flip_bit(&file, offset, bit);
        let Err(CheckpointError::Corrupt(corruption)) = load(&mut disk, &superblock) else {
            panic!("bit {bit} of byte {offset} was not noticed");
        };
        assert_eq!(corruption.file, file);
        assert!(corruption.offset <= offset);
        disk.flip_bit(&file, offset, bit);
    }
    assert!(load(&mut disk, &superblock).is_ok());
}

#[test]
fn a_flipped_bit_in_the_superblock_costs_one_copy() {
    let (mut disk, superblock, _) = written(6, 10);
    for offset in (0..4 * BLOCK_BYTES as u64).step_by(if cfg!(miri) { 4001 } else { 13 }) {
        disk.flip_bit(SUPERBLOCK, offset, (offset % 8) as u8);
        let opened = Superblock::open(&mut disk).unwrap().unwrap();
        assert_eq!(
            (opened.root(), opened.damaged_copies()),
            (superblock.root(), 1)
        );
        let opened = Superblock::open(&mut disk).unwrap().unwrap();
        assert_eq!(opened.damaged_copies(), 0, "it was rewritten");
    }
    for copy in 0..3 {
        disk.flip_bit(SUPERBLOCK, copy * BLOCK_BYTES as u64 + 50, 0);
    }
    let error = Superblock::open(&mut disk).unwrap_err();
    assert!(matches!(error, CheckpointError::Corrupt(c) if c.file == SUPERBLOCK));
}

#[test]
fn a_checkpoint_that_is_short_gone_or_anothers_is_refused() {
    let (mut disk, superblock, _) = written(7, 40);
    let file = file_name(1);
    let bytes = disk.contents(&file).to_vec();
    let is_corrupt = |result: Result<Option<Loaded>, CheckpointError>| {
        matches!(result, Err(CheckpointError::Corrupt(_)))
    };
    // Another member's, byte for byte.
    let other = Identity {
        member: 2,
        ..IDENTITY
    };
    let mut foreign = SimDisk::new(0, Faults::NONE);
    let theirs = Superblock::create(&mut foreign, other).unwrap();
    let mut history = History::new(7);
    history.run(40);
    write(&mut foreign, theirs, history.image()).unwrap();
    disk.remove(&file).unwrap();
    assert!(matches!(
        load(&mut disk, &superblock),
        Err(CheckpointError::Disk(_))
    ));
    for contents in [foreign.contents(&file), &bytes[..BLOCK_BYTES]] {
        disk.create(&file, 0).unwrap();
        overwrite(&mut disk, &file, 0, contents);
        assert!(is_corrupt(load(&mut disk, &superblock)));
        disk.remove(&file).unwrap();
    }
}

/// Overwrites whole blocks of a file.
fn overwrite(disk: &mut SimDisk, file: &str, offset: usize, bytes: &[u8]) {
    let mut buf = AlignedBuf::new(bytes.len());
    buf.extend_from_slice(bytes);
    disk.write_at(file, offset as u64, buf.as_slice()).unwrap();
}

#[test]
fn blocks_of_another_checkpoint_of_the_same_name_are_refused() {
    let run = |value: &[u8]| {
        let mut history = History::new(9);
        history.run(60);
        history.apply(Command::Put(Put {
            key: b"last",
            value,
            lease: 0,
            prev_kv: false,
            ignore_value: false,
            ignore_lease: false,
        }));
        let mut disk = SimDisk::new(0, Faults::NONE);
        let superblock = Superblock::create(&mut disk, IDENTITY).unwrap();
        let superblock = write(&mut disk, superblock, history.image()).unwrap();
        (disk, superblock)
    };
    let file = file_name(1);
    let (mut disk, superblock) = run(b"one");
    let (theirs, _) = run(b"two");
    let (own, theirs) = (
        disk.contents(&file).to_vec(),
        theirs.contents(&file).to_vec(),
    );
    assert_eq!(own.len(), theirs.len());
    let differ = |at: &usize| own[*at..at + BLOCK_BYTES] != theirs[*at..at + BLOCK_BYTES];
    let blocks: Vec<usize> = (0..own.len()).step_by(BLOCK_BYTES).filter(differ).collect();
    assert!(
        blocks.len() >= 2,
        "the changed one, and the footer by its chain"
    );
    for at in blocks {
        overwrite(&mut disk, &file, at, &theirs[at..at + BLOCK_BYTES]);
        let error = load(&mut disk, &superblock).err();
        assert!(
            matches!(error, Some(CheckpointError::Corrupt(_))),
            "block at {at}"
        );
        overwrite(&mut disk, &file, at, &own[at..at + BLOCK_BYTES]);
    }
    assert!(load(&mut disk, &superblock).is_ok());
    overwrite(&mut disk, &file, 0, &theirs);
    let error = load(&mut disk, &superblock).err();
    assert!(
        matches!(error, Some(CheckpointError::Corrupt(_))),
        "the whole file"
    );
}

/// What loading makes of a file of these blocks, checksums and root in order.
fn crafted(blocks: &[(BlockKind, Vec<Vec<u8>>)]) -> Result<Option<Loaded>, CheckpointError> {
    let mut disk = SimDisk::new(0, Faults::NONE);
    let superblock = Superblock::create(&mut disk, IDENTITY).unwrap();
    let file = file_name(1);
    disk.create(&file, 0).unwrap();
    let mut place = Place::first(IDENTITY, 1);
    for (kind, items) in blocks {
        let payload = items.concat();
        let mut block = vec![0; block::HEADER_BYTES];
        block.extend_from_slice(&payload);
        block.resize(block::padded(payload.len()), 0);
        let checksum = place.seal(*kind, payload.len(), &mut block);
        overwrite(&mut disk, &file, place.offset as usize, &block);
        place = place.next(block.len(), checksum);
    }
    let root = Root {
        id: 1,
        file_bytes: place.offset,
        applied: 0,
        term: 1,
        block_bytes: BLOCK_BYTES as u32,
        last: place.previous,
    };
    load(&mut disk, &superblock.with_root(root))
}

#[test]
fn what_no_writer_writes_is_refused_though_its_checksums_hold() {
    use BlockKind::{Footer, Revisions, State};
    let mut history = History::new(0);
    history.machine.lessor.grant(5, 10).unwrap();
    for _ in 0..2 {
        let mut txn = history.machine.store.begin();
        txn.put(b"k", b"", 5);
        txn.commit();
    }
    let image = CheckpointImage {
        applied: 0,
        ..history.image()
    };
    let meta = item::of_state(&image, 0).unwrap();
    let lease = item::of_state(&image, 1).unwrap();
    let revisions: Vec<Vec<u8>> = image
        .revs
        .scan(crate::types::Revision::ZERO)
        .map(|record| [&item::revision_head(&record), record.kv].concat())
        .collect();
    let state = || (State, vec![meta.clone(), lease.clone()]);
    let revs = || (Revisions, revisions.clone());
    let end = |revisions, items| (Footer, vec![item::end(revisions, items)]);
    let what = |blocks: &[(BlockKind, Vec<Vec<u8>>)]| match crafted(blocks) {
        Ok(loaded) => loaded.map_or("nothing", |_| "loaded"),
        Err(CheckpointError::Corrupt(corruption)) => corruption.what,
        Err(other) => panic!("{other}"),
    };
    assert_eq!(what(&[state(), revs(), end(2, 4)]), "loaded");
    for (revisions, items) in [(1, 4), (2, 3)] {
        let blocks = [state(), revs(), end(revisions, items)];
        assert_eq!(what(&blocks), "the number of items");
    }
    let incomplete = "the checkpoint is not complete";
    assert_eq!(what(&[state(), revs()]), incomplete);
    let cut = (Revisions, vec![revisions[0][..9].to_vec()]);
    assert_eq!(what(&[state(), cut]), incomplete);
    let doubled = (State, vec![meta.clone(), meta.clone()]);
    assert_eq!(what(&[doubled]), "a second Meta");
    let headless = (State, vec![lease.clone()]);
    assert_eq!(what(&[headless]), "an item before Meta");
    let twice = (State, vec![meta.clone(), lease.clone(), lease.clone()]);
    assert_eq!(what(&[twice]), "a lease that cannot be");
    let backwards = (Revisions, revisions.iter().rev().cloned().collect());
    assert_eq!(what(&[state(), backwards]), "revisions out of order");
    let misplaced = (State, [vec![meta.clone()], revisions.clone()].concat());
    assert_eq!(what(&[misplaced]), "an item in a block of another kind");
    let trailing = [state(), revs(), end(2, 4), end(2, 5)];
    assert_eq!(what(&trailing), "an item behind the last");
    let unknown = (State, vec![vec![99, 0, 0, 0, 0]]);
    assert_eq!(what(&[unknown]), "an item that cannot be read");
    let mut torn = revisions[0].clone();
    *torn.last_mut().unwrap() = 0xff;
    let mut early = revisions[0].clone();
    early[item::HEAD_BYTES] += 1;
    let mut deleted = revisions[0].clone();
    deleted[item::REVISION_HEAD_BYTES - 1] = 1;
    for bad in [torn, early, deleted] {
        let bad = (Revisions, vec![bad]);
        assert_eq!(what(&[state(), bad]), "a revision that cannot be read");
    }
    let unleased = [(State, vec![meta.clone()]), revs(), end(2, 3)];
    assert_eq!(what(&unleased), "a key of a lease that is not there");
}

#[test]
fn a_start_is_counted_in_all_copies() {
    for copy in 0..4 {
        let mut disk = SimDisk::new(0, Faults::NONE);
        let mut superblock = Superblock::create(&mut disk, IDENTITY).unwrap();
        assert_eq!(superblock.next_start(&mut disk).unwrap(), 1);
        disk.flip_bit(SUPERBLOCK, copy * BLOCK_BYTES as u64 + 20, 1);
        let mut opened = Superblock::open(&mut disk).unwrap().unwrap();
        assert_eq!(opened.next_start(&mut disk).unwrap(), 2);
    }
}

#[test]
fn a_data_dir_without_superblock_is_new_only_without_checkpoints() {
    let mut disk = SimDisk::new(0, Faults::NONE);
    assert_eq!(Superblock::open(&mut disk).unwrap(), None);
    let (mut disk, _, _) = written(0, 3);
    disk.remove(SUPERBLOCK).unwrap();
    assert!(matches!(
        Superblock::open(&mut disk),
        Err(CheckpointError::Corrupt(_))
    ));
}

#[test]
fn starts_are_counted_over_crashes_and_creation_is_all_or_nothing() {
    for seed in 0..200 {
        let mut disk = SimDisk::new(seed, Faults::POWER_CUTS);
        disk.faults_mut().operations_left = (seed % 20) as u32;
        let created = Superblock::create(&mut disk, IDENTITY);
        let started = created.clone().and_then(|mut s| s.next_start(&mut disk));
        disk.crash();
        match Superblock::open(&mut disk).unwrap() {
            None => assert!(created.is_err()),
            Some(mut superblock) => {
                assert_eq!(superblock.identity(), IDENTITY);
                let next = superblock.next_start(&mut disk).unwrap();
                assert!(next == 2 || (next == 1 && started.is_err()));
                let opened = Superblock::open(&mut disk).unwrap().unwrap();
                assert_eq!(opened.clone().next_start(&mut disk).unwrap(), next + 1);
                continue;
            }
        }
        Superblock::create(&mut disk, IDENTITY).unwrap();
    }
}

#[test]
fn the_format_is_held() {
    let (disk, superblock, _) = written(1, 12);
    let crc = |name: &str| crc32c::crc32c(disk.contents(name));
    let got = (
        crc(SUPERBLOCK),
        crc(&file_name(superblock.root().unwrap().id)),
    );
    // To change with limits::format::VERSION only.
    assert_eq!(got, GOLDEN, "{got:#010x?}");
}

const GOLDEN: (u32, u32) = (0x43e8_c60b, 0x657c_320c);
