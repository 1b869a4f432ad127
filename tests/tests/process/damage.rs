//! A flipped bit on disk is noticed, said with its place, and changes nothing; flipped back, the
//! data is there.
//!
//! Offsets come from the layouts in `engine/src/wal/frame.rs` and
//! `engine/src/checkpoint/superblock.rs`, read here without their code.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::hash::{DefaultHasher, Hasher};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::client::Client;
use crate::server::{Setup, TempDir};

const BLOCK_BYTES: u64 = 4096;
const COPIES: u64 = 4;
const PATIENCE: Duration = Duration::from_secs(10);

fn flip(file: &Path, offset: u64) {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(file)
        .unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    byte[0] ^= 0x10;
    file.write_all_at(&byte, offset).unwrap();
}

/// Hashes of all files.
fn contents(dir: &Path) -> BTreeMap<PathBuf, u64> {
    let mut hashes = BTreeMap::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            hashes.append(&mut contents(&path));
        } else {
            let mut hasher = DefaultHasher::new();
            hasher.write(&fs::read(&path).unwrap());
            hashes.insert(path, hasher.finish());
        }
    }
    hashes
}

/// Where the frames of a segment begin, up to the first block that is none.
fn frames(segment: &Path) -> Vec<u64> {
    let file = File::open(segment).unwrap();
    let mut offsets = Vec::new();
    let mut offset = BLOCK_BYTES;
    loop {
        let mut header = [0; 36];
        file.read_exact_at(&mut header, offset).unwrap();
        if header[..4] != *b"rkwf" {
            return offsets;
        }
        offsets.push(offset);
        offset += u64::from(u32::from_le_bytes(header[32..36].try_into().unwrap()));
    }
}

/// A data dir with `keys` keys, each put by itself, of a server that has stopped.
async fn written(setup: &Setup, keys: usize) {
    let server = setup.start();
    let mut client = Client::connect(server.port).await;
    for key in 0..keys {
        client.put(&format!("key-{key}"), "value").await;
    }
    server.stop();
}

async fn count(setup: &Setup) -> i64 {
    let server = setup.start();
    let count = Client::connect(server.port).await.all(0).await.count;
    server.stop();
    count
}

/// A start refuses, names `file` and `offset`, and changes nothing.
fn refuses(setup: &Setup, what: &str, file: &str, offset: Option<u64>) {
    let before = contents(&setup.data_dir);
    let line = setup.start_refused().line;
    assert!(line.contains(what), "{line}");
    let place = match offset {
        Some(offset) => format!("{file} at byte {offset}: "),
        None => format!("{file} at byte "),
    };
    assert!(line.contains(&place), "no {place} in {line}");
    let remedy = "restore this data directory from a copy";
    assert!(line.contains(remedy), "{line}");
    assert!(contents(&setup.data_dir) == before, "changed: {line}");
}

#[tokio::test]
async fn a_flipped_bit_in_the_log() {
    let dir = TempDir::new();
    let setup = Setup::new(dir.path());
    written(&setup, 8).await;
    let name = "wal/0000000000000001.wal";
    let segment = dir.path().join(name);
    let frames = frames(&segment);
    assert!(frames.len() > 8, "{frames:?}");
    let middle = frames[frames.len() / 2];
    // In the frame's header, a record's header, and a record's payload.
    for within in [24, 128 + 8, 128 + 32 + 4] {
        flip(&segment, middle + within);
        refuses(&setup, "the log is damaged", name, Some(middle));
        flip(&segment, middle + within);
    }
    assert_eq!(count(&setup).await, 8);
}

#[tokio::test]
async fn a_flipped_bit_in_the_checkpoint() {
    let dir = TempDir::new();
    let setup = Setup::new(dir.path());
    written(&setup, 3).await;
    let name = "checkpoint/0000000000000001.ckpt";
    let checkpoint = dir.path().join(name);
    let bytes = checkpoint.metadata().unwrap().len();
    for offset in [0, 100, bytes / 2, bytes - 1] {
        flip(&checkpoint, offset);
        refuses(&setup, "", name, None);
        flip(&checkpoint, offset);
    }
    assert_eq!(count(&setup).await, 3);
}

#[tokio::test]
async fn flipped_bits_in_copies_of_the_superblock() {
    let dir = TempDir::new();
    let setup = Setup::new(dir.path());
    written(&setup, 3).await;
    let superblock = dir.path().join("superblock");
    for copy in 0..COPIES {
        flip(&superblock, copy * BLOCK_BYTES + 24);
        let mut server = setup.start();
        assert!(
            server
                .line_seen("damaged copies of the superblock were mended")
                .is_some()
        );
        server.signal(rustix::process::Signal::TERM);
        server.wait_exit(PATIENCE);
        let bytes = fs::read(&superblock).unwrap();
        // Each copy says which it is, and has a checksum of that.
        let same = |copy: &[u8]| [&copy[..16], &copy[20..4092]].concat();
        let mut copies = bytes.chunks_exact(BLOCK_BYTES as usize).map(same);
        let first = copies.next().unwrap();
        assert!(copies.all(|copy| copy == first));
    }
    for copy in 0..COPIES {
        flip(&superblock, copy * BLOCK_BYTES + 24);
    }
    refuses(&setup, "no two copies", "superblock", Some(0));
    for copy in 0..COPIES {
        flip(&superblock, copy * BLOCK_BYTES + 24);
    }
    assert_eq!(count(&setup).await, 3);
}
