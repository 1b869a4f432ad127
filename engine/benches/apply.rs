//! Cost of applying puts: the record checked, its value copied, its revision and its key entered,
//! and the View published once a batch.
//!
//! `cargo bench -p ringkv-engine --bench apply`; an iteration is one batch. Keys of 32 B come in no
//! order, values have 256 B. "new keys" starts from an empty machine, "overwrites" from one that
//! has all keys once. Not measured: encoding the record (the shard's work) and the log's.

#![allow(missing_docs, reason = "criterion's macros")]

use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use ringkv_engine::apply::{Machine, Outcome};
use ringkv_engine::command::{BatchWriter, Command, Envelope, Origin, Put, batch_records};
use ringkv_engine::lease::Lessor;
use ringkv_engine::limits::Limits;
use ringkv_engine::members::Members;

use bytes::Bytes;

/// Keys of a machine; a power of two, so that an odd step meets each of them once.
const KEYS: usize = 1 << 16;
const STEP: usize = 40_503;
const TERM: u64 = 1;
const BATCHES: [usize; 2] = [1, 100];

fn records() -> Vec<Bytes> {
    let mut writer = BatchWriter::default();
    for n in 0..KEYS {
        let key = format!("/registry/pods/default/p{:08}", n * STEP % KEYS);
        writer.push(&Envelope {
            origin: Origin::NONE,
            command: Command::Put(Put {
                key: key.as_bytes(),
                value: &[7; 256],
                lease: 0,
                prev_kv: false,
                ignore_value: false,
                ignore_lease: false,
            }),
        });
    }
    batch_records(&writer.take()).collect()
}

fn machine() -> Machine {
    let lessor = Lessor::new(1, None, &Limits::PRODUCTION);
    Machine::new(Limits::PRODUCTION, lessor, Members::default())
}

fn apply(machine: &mut Machine, records: &[Bytes]) {
    for record in records {
        let index = machine.applied() + 1;
        let (_, outcome) = machine
            .apply(index, TERM, record, |_| true)
            .expect("a record of ours");
        assert!(matches!(outcome, Outcome::Put(_)), "{outcome:?}");
    }
    machine.store.publish(machine.applied());
}

/// Time of `iterations` batches, on as many machines as that takes.
fn measure(records: &[Bytes], batch: usize, overwrite: bool, mut iterations: u64) -> Duration {
    let mut spent = Duration::ZERO;
    while iterations > 0 {
        let mut machine = machine();
        if overwrite {
            apply(&mut machine, records);
        }
        let batches = records.chunks_exact(batch);
        let batches = batches.take(usize::try_from(iterations).unwrap_or(usize::MAX));
        iterations -= batches.len() as u64;
        let start = Instant::now();
        batches.for_each(|batch| apply(&mut machine, batch));
        spent += start.elapsed();
    }
    spent
}

fn puts(c: &mut Criterion) {
    let records = records();
    let mut group = c.benchmark_group("apply");
    group.sample_size(20);
    for (name, overwrite) in [("new keys", false), ("overwrites", true)] {
        for batch in BATCHES {
            group.throughput(Throughput::Elements(batch as u64));
            group.bench_function(format!("{name}, {batch} a batch"), |b| {
                b.iter_custom(|iterations| measure(&records, batch, overwrite, iterations));
            });
        }
    }
    group.finish();
}

criterion_group!(benches, puts);
criterion_main!(benches);
