//! A whole member under faults, by seed.
//!
//! `RINGKV_SIM_SEED=S` runs one seed, `RINGKV_SIM_SEEDS=N` so many fresh ones; without either a few
//! fixed seeds and a few fresh ones run. Seeds are printed before they run.

use std::hash::{BuildHasher, RandomState};
use std::panic::catch_unwind;

use ringkv_tests::sim::{Plant, Report, run};

/// Seeds that run always.
const FIXED: core::ops::RangeInclusive<u64> = 1..=40;
const FRESH: u64 = 20;
/// Seeds within which a planted bug is found.
const SEEDS_TO_FIND: u64 = 10;

fn number(name: &str) -> Option<u64> {
    let value = std::env::var(name).ok()?;
    Some(value.parse().expect("a number"))
}

fn seeds() -> Vec<u64> {
    if let Some(seed) = number("RINGKV_SIM_SEED") {
        return vec![seed];
    }
    let count = number("RINGKV_SIM_SEEDS");
    let first = RandomState::new().hash_one(0) >> 16;
    let fresh = first..first + count.unwrap_or(FRESH);
    match count {
        Some(_) => fresh.collect(),
        None => FIXED.chain(fresh).collect(),
    }
}

fn checked(seed: u64) -> Report {
    println!("RINGKV_SIM_SEED={seed}");
    let report = run(seed, Plant::Nothing);
    println!("{report:?}");
    report
}

#[test]
fn a_member_keeps_its_promises() {
    let reports: Vec<Report> = seeds().into_iter().map(checked).collect();
    for report in &reports {
        assert!(report.acknowledged >= 1000);
        assert!(report.starts > 2);
        assert!(report.reads > 0);
        assert!(report.lease_answers > 0);
    }
    if reports.len() < FIXED.count() {
        return;
    }
    // What must happen in some run, or the simulation has gone blind.
    let happens = |of: fn(&Report) -> usize| reports.iter().map(of).sum::<usize>() > 0;
    assert!(happens(|report| report.checkpoints));
    assert!(happens(|report| report.crashes_in_checkpoint));
    assert!(happens(|report| report.crashes_in_start));
    assert!(happens(|report| report.background_slices));
    assert!(happens(|report| report.no_space));
    assert!(happens(|report| report.io_errors));
    assert!(happens(|report| report.refused));
}

#[test]
fn a_seed_replays() {
    assert_eq!(run(7, Plant::Nothing), run(7, Plant::Nothing));
}

fn found(plant: Plant, by: &[&str]) {
    for seed in 1..=SEEDS_TO_FIND {
        let Err(panic) = catch_unwind(|| run(seed, plant)) else {
            continue;
        };
        let what = panic
            .downcast_ref::<String>()
            .cloned()
            .or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
            .expect("panics bring their text");
        let expected = by.iter().any(|text| what.contains(text));
        assert!(expected, "{plant:?} is found otherwise: {what}");
        println!("{plant:?} found by seed {seed}: {what}");
        return;
    }
    panic!("{plant:?} is not found in {SEEDS_TO_FIND} seeds");
}

#[test]
fn a_reply_before_the_flush_is_found() {
    found(Plant::ReplyBeforeFlush, &["before it was flushed"]);
}

#[test]
fn a_skipped_flush_is_found() {
    found(Plant::FlushSkipped, &["is gone", "cannot start"]);
}

#[test]
fn an_unwritten_frame_is_found() {
    found(Plant::AckUnwritten, &["is gone", "cannot start"]);
}

#[test]
fn a_dropped_last_frame_is_found() {
    found(Plant::LastFrameDropped, &["is gone", "cannot start"]);
}

#[test]
fn a_root_before_its_blocks_is_found() {
    found(Plant::RootBeforeBlocks, &["cannot start"]);
}

#[test]
fn a_read_without_a_round_is_found() {
    found(Plant::ReadWithoutRound, &["a stale read"]);
}

#[test]
fn a_view_before_the_wait_is_found() {
    found(Plant::ViewBeforeWait, &["a stale read"]);
}
