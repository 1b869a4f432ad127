//! The WAL's cost on the hot path: 64 records of 300 B appended, checksummed and closed into a
//! frame. And recovery's: bytes of log verified per second, from memory.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use ringkv_engine::io::Disk;
use ringkv_engine::io::sim::{Faults, SimDisk};
use ringkv_engine::limits::Limits;
use ringkv_engine::wal::{
    Action, Entry, EntryKind, HardState, Identity, RecoverOptions, Wal, recover,
};

const RECORDS: u64 = 64;
const PAYLOAD_BYTES: usize = 300;
const OPTIONS: RecoverOptions = RecoverOptions {
    limits: Limits {
        segment_bytes: 16 << 20,
        ..Limits::PRODUCTION
    },
    identity: Identity {
        cluster: 1,
        member: 2,
    },
    incarnation: 3,
    start_index: 1,
};

fn chores(wal: &mut Wal, disk: &mut SimDisk) {
    while let Some(action) = wal.action() {
        action.run(disk).expect("the simulated disk is honest");
        match action {
            Action::PrepareSegment(prepare) => wal.segment_ready(prepare.file),
            Action::RemoveSegment(file) => wal.segment_removed(file),
        }
    }
}

fn open(disk: &mut SimDisk) -> Wal {
    let recovered = recover(disk, &OPTIONS, &mut |_| {}, &mut |_| {});
    let mut wal = recovered.expect("the disk is empty").wal;
    wal.set_hard_state(HardState {
        term: 1,
        vote: 1,
        commit: 0,
    });
    chores(&mut wal, disk);
    wal
}

/// Appends and submits one frame; its completion is immediate and its bytes go nowhere.
fn frame(wal: &mut Wal, next_index: &mut u64, payload: &[u8]) {
    for _ in 0..RECORDS {
        let entry = Entry {
            index: *next_index,
            term: 1,
            kind: EntryKind::Normal,
            payload,
        };
        wal.append(entry).expect("a frame takes that much");
        *next_index += 1;
    }
    let frame = black_box(wal.submit().expect("a segment is ready"));
    wal.flushed(frame.id, frame.buf);
}

fn append(c: &mut Criterion) {
    let mut disk = SimDisk::new(0, Faults::NONE);
    let mut wal = open(&mut disk);
    let payload = [7; PAYLOAD_BYTES];
    let mut next_index = 1;
    let mut group = c.benchmark_group("wal");
    group.throughput(Throughput::Elements(RECORDS));
    group.bench_function("append 64 records of 300 B and submit", |b| {
        b.iter(|| {
            frame(&mut wal, &mut next_index, &payload);
            // Once in 800 frames; it writes one header.
            wal.release(next_index - 1);
            chores(&mut wal, &mut disk);
        });
    });
    group.finish();
}

fn recovery(c: &mut Criterion) {
    let mut disk = SimDisk::new(0, Faults::NONE);
    let mut wal = open(&mut disk);
    let payload = [7; PAYLOAD_BYTES];
    for index in 1..=100_000 {
        let entry = Entry {
            index,
            term: 1,
            kind: EntryKind::Normal,
            payload: &payload,
        };
        wal.append(entry).expect("a frame takes that much");
        if index % RECORDS == 0 {
            disk.submit(wal.submit().expect("a segment is ready"));
            let done = disk.complete().expect("it was submitted");
            wal.flushed(done.id, done.buf);
            chores(&mut wal, &mut disk);
        }
    }
    let mut group = c.benchmark_group("wal");
    group.sample_size(10);
    group.throughput(Throughput::Bytes(wal.flushed_lsn()));
    group.bench_function("recover 100,000 records of 300 B", |b| {
        b.iter(|| {
            let mut count = 0u64;
            let recovered = recover(
                &mut disk as &mut dyn Disk,
                &OPTIONS,
                &mut |_| count += 1,
                &mut |_| {},
            );
            black_box(recovered.expect("the log is sound"));
            count
        });
    });
    group.finish();
}

criterion_group!(benches, append, recovery);
criterion_main!(benches);
