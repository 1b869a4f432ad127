//! Cost of the index: upserts in batches that are published, lookups, scans, counts, pins, bulk
//! load; and, printed first, its bytes for each key.
//!
//! `cargo bench -p ringkv-engine --bench index`

use std::hint::black_box;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput};
use ringkv_engine::index::{Index, Publisher, Root};
use ringkv_engine::types::{KeyMeta, Revision};

const SIZES: [u64; 2] = [100_000, 1_000_000];

/// Bijective mixing, so that no two keys are equal (splitmix64).
fn mix(n: u64) -> u64 {
    let n = n.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let n = (n ^ (n >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let n = (n ^ (n >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    n ^ (n >> 31)
}

fn random_key(n: u64) -> Vec<u8> {
    let words = [mix(n), mix(n ^ 1 << 60), mix(n ^ 1 << 61), mix(n ^ 1 << 62)];
    words.iter().flat_map(|w| w.to_be_bytes()).collect()
}

fn pod_key(n: u64) -> Vec<u8> {
    format!("/registry/pods/default/pod-{n:08}").into_bytes()
}

fn meta(n: u64) -> KeyMeta {
    KeyMeta {
        modified: Revision::new(n, 0),
        created: n,
        version: 1,
        lease: 0,
    }
}

fn filled(count: u64, batch: u64, key: impl Fn(u64) -> Vec<u8>) -> (Index, Publisher<Root>) {
    let mut index = Index::new();
    let mut publisher = Publisher::new(&mut index, |root| root);
    for n in 0..count {
        index.upsert(&key(n), meta(n));
        if n % batch == batch - 1 {
            publisher.publish(&mut index, |root| root);
        }
    }
    publisher.publish(&mut index, |root| root);
    (index, publisher)
}

fn print_bytes() {
    let count = 1_000_000;
    let shuffled = |n: u64| (n * 7_368_787) % count;
    let report = |name: &str, index: &Index| {
        let bytes = index.bytes() as f64 / count as f64;
        eprintln!("{name}: {bytes:.1} bytes for each of {count} keys");
    };
    for batch in [1, 100] {
        let (index, _) = filled(count, batch, random_key);
        report(&format!("random 32 B keys, batches of {batch}"), &index);
        let (index, _) = filled(count, batch, pod_key);
        report(&format!("pods ascending, batches of {batch}"), &index);
        let (index, _) = filled(count, batch, |n| pod_key(shuffled(n)));
        report(&format!("pods shuffled, batches of {batch}"), &index);
    }
    report(
        "pods loaded",
        &Index::from_sorted((0..count).map(|n| (pod_key(n), meta(n)))),
    );
}

fn upsert(c: &mut Criterion) {
    let mut group = c.benchmark_group("upsert_existing");
    for size in SIZES {
        let (mut index, mut publisher) = filled(size, 100, random_key);
        for batch in [1, 10, 100, 1000] {
            let mut n = 0;
            group.throughput(Throughput::Elements(batch));
            let id = BenchmarkId::new(format!("{size}_keys"), format!("batch_{batch}"));
            group.bench_function(id, |b| {
                b.iter(|| {
                    for _ in 0..batch {
                        n += 1;
                        index.upsert(&random_key(mix(n) % size), meta(n));
                    }
                    publisher.publish(&mut index, |root| root);
                });
            });
        }
    }
    group.finish();
    let mut group = c.benchmark_group("upsert_new");
    for size in SIZES {
        let (mut index, mut publisher) = filled(size, 100, random_key);
        let mut n = size;
        group.throughput(Throughput::Elements(100));
        group.bench_function(BenchmarkId::new(format!("{size}_keys"), "batch_100"), |b| {
            b.iter(|| {
                for _ in 0..100 {
                    n += 1;
                    index.upsert(&random_key(n), meta(n));
                }
                publisher.publish(&mut index, |root| root);
            });
        });
    }
    group.finish();
}

fn read(c: &mut Criterion) {
    let mut group = c.benchmark_group("read");
    for size in SIZES {
        let (_index, publisher) = filled(size, 100, random_key);
        let reader = publisher.reader();
        let mut n = 0;
        group.bench_function(BenchmarkId::new("key_only", size), |b| {
            b.iter(|| {
                n += 1;
                black_box(random_key(mix(n) % size));
            });
        });
        group.bench_function(BenchmarkId::new("get", size), |b| {
            b.iter(|| {
                n += 1;
                let key = random_key(mix(n) % size);
                reader.pin(|root, pin| black_box(root.read(pin).get(&key)))
            });
        });
        group.bench_function(BenchmarkId::new("live_count", size), |b| {
            b.iter(|| {
                n += 1;
                let (a, z) = (random_key(mix(n) % size), random_key(n % size));
                reader.pin(|root, pin| black_box(root.read(pin).live_count(&a, Some(&z))))
            });
        });
        for (name, descending) in [("scan_256", false), ("scan_256_descending", true)] {
            group.bench_function(BenchmarkId::new(name, size), |b| {
                b.iter(|| {
                    n += 1;
                    let key = random_key(mix(n) % size);
                    reader.pin(|root, pin| {
                        let tree = root.read(pin);
                        let mut cursor = if descending {
                            tree.range_rev(b"", Some(&key))
                        } else {
                            tree.range(&key, None)
                        };
                        for _ in 0..256 {
                            let Some(entry) = cursor.next() else { break };
                            black_box(entry);
                        }
                    });
                });
            });
        }
    }
    let (_index, publisher) = filled(1, 1, random_key);
    let reader = publisher.reader();
    group.bench_function("pin", |b| b.iter(|| reader.pin(|root, _| black_box(*root))));
    group.finish();
}

fn publish(c: &mut Criterion) {
    let mut index = Index::new();
    let mut publisher = Publisher::new(&mut index, |root| root);
    let _readers: Vec<_> = (0..8).map(|_| publisher.reader()).collect();
    c.bench_function("publish_nothing_8_readers", |b| {
        b.iter(|| publisher.publish(&mut index, |root| root));
    });
}

fn load(c: &mut Criterion) {
    let pods: Vec<_> = (0..1_000_000).map(|n| (pod_key(n), meta(n))).collect();
    let mut group = c.benchmark_group("from_sorted");
    group
        .sample_size(10)
        .throughput(Throughput::Elements(pods.len() as u64));
    group.bench_function("1000000_pods", |b| {
        b.iter(|| Index::from_sorted(pods.iter().map(|(k, m)| (k, *m))));
    });
    group.finish();
}

fn main() {
    print_bytes();
    let mut c = Criterion::default()
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
        .sample_size(20)
        .configure_from_args();
    upsert(&mut c);
    read(&mut c);
    publish(&mut c);
    load(&mut c);
    c.final_summary();
}
