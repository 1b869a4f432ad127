//! What a published revision costs a shard, by how many watch and what they watch.
//!
//! `cargo bench -p ringkv-engine --bench watch`; each iteration walks [`REVISIONS`] revisions, so
//! divide by that. "miss" watch elsewhere, "hit" take each event (and the stream is drained).

#![allow(missing_docs, reason = "criterion's macros")]

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use ringkv_engine::limits::Limits;
use ringkv_engine::revtable::kv::Encoder;
use ringkv_engine::revtable::{RevSnapshot, RevTable};
use ringkv_engine::types::Revision;
use ringkv_engine::watch::{CreateRequest, Published, StreamId, WatchConfig, WatchShard};

const REVISIONS: u64 = 1000;

/// Name, key and range end of each watcher, whether they want prev_kv, start revision.
type Case = (&'static str, Vec<(String, String)>, bool, u64);

/// Puts of 256 B values to 100 keys `/registry/pods/...`.
fn revisions() -> RevSnapshot {
    let mut table = RevTable::new(Limits::PRODUCTION.revtable_chunk_revisions);
    let mut newest = [None; 100];
    for main in 2..2 + REVISIONS {
        let n = main % 100;
        let key = format!("/registry/pods/namespace/pod-{n:06}");
        let encoder = Encoder::put(key.as_bytes(), 2, main, 1, &[7; 256], 0);
        let rev = Revision::new(main, 0);
        table.append(rev, false, newest[n as usize].replace(rev), &encoder);
    }
    table.snapshot(1 + REVISIONS)
}

/// A shard at revision 1 whose watchers, one for each key and range end, are on one stream.
fn shard(
    revs: &RevSnapshot,
    watches: &[(String, String)],
    request: CreateRequest<'_>,
) -> (WatchShard, StreamId) {
    let config = WatchConfig {
        progress_interval_ms: 600_000,
        fragment_bytes_max: 2 << 20,
    };
    let mut shard = WatchShard::new(Limits::PRODUCTION, config, 1);
    let stream = shard.open_stream(0);
    for (key, end) in watches {
        let request = CreateRequest {
            key: key.as_bytes(),
            range_end: end.as_bytes(),
            ..request
        };
        shard.create(
            stream,
            &request,
            &Published {
                revision: 1,
                compacted: -1,
                revs,
            },
        );
    }
    drop(shard.take_responses(stream, usize::MAX));
    (shard, stream)
}

fn matching(c: &mut Criterion) {
    let revs = revisions();
    let revs = &revs;
    let published = Published {
        revision: 1 + REVISIONS,
        compacted: -1,
        revs,
    };
    let exact = |n: u64| (format!("/registry/leases/node-{n:06}"), String::new());
    let range = |n: u64| {
        (
            format!("/registry/crd-{n:04}/"),
            format!("/registry/crd-{n:04}0"),
        )
    };
    let pods = |_: u64| ("/registry/pods/".to_owned(), "/registry/pods0".to_owned());
    let cases: [Case; 8] = [
        ("nobody", vec![], false, 0),
        ("1k exact, miss", (0..1000).map(exact).collect(), false, 0),
        ("1k ranges, miss", (0..1000).map(range).collect(), false, 0),
        (
            "10k exact and 10k ranges, miss",
            both(exact, range),
            false,
            0,
        ),
        ("1 range, hit", (0..1).map(pods).collect(), false, 0),
        ("1 range, hit, prev_kv", (0..1).map(pods).collect(), true, 0),
        ("100 ranges, hit", (0..100).map(pods).collect(), false, 0),
        (
            "100 ranges from the past, hit",
            (0..100).map(pods).collect(),
            false,
            2,
        ),
    ];
    let mut group = c.benchmark_group("walk");
    group.throughput(Throughput::Elements(REVISIONS));
    for (name, watches, prev_kv, start) in cases {
        let start_revision = i64::try_from(start).expect("small");
        let request = CreateRequest {
            prev_kv,
            start_revision,
            ..CreateRequest::default()
        };
        group.bench_function(name, |b| {
            b.iter_batched_ref(
                || shard(revs, &watches, request),
                |(shard, stream)| {
                    while shard.advance(&published, 0, 4096) || shard.queued_bytes() > 0 {
                        drop(shard.take_responses(*stream, usize::MAX));
                    }
                },
                BatchSize::LargeInput,
            );
        });
    }
}

fn both<T>(a: impl Fn(u64) -> T, b: impl Fn(u64) -> T) -> Vec<T> {
    (0..10_000).flat_map(|n| [a(n), b(n)]).collect()
}

criterion_group!(benches, matching);
criterion_main!(benches);
