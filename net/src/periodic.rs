//! What is done by the clock: automatic compaction, by age or by number of revisions.
//!
//! One task on shard 0. etcd's rules: by age, the revision is sampled ten times an interval (the
//! retention, at most an hour), and once an interval everything older than the retention goes; by
//! number, every five minutes all but the newest revisions. Only the leader compacts.

use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Duration;

use glommio::timer::sleep;
use ringkv_engine::command::Command;
use ringkv_engine::error::ApiError;

use crate::config::AutoCompaction;
use crate::log;
use crate::shard::Shard;

/// Longest interval between two compactions by age.
const INTERVAL_MAX: Duration = Duration::from_hours(1);
/// Samples of the revision in an interval.
const SAMPLES: u32 = 10;
/// Interval of compactions by number.
const REVISION_INTERVAL: Duration = Duration::from_mins(5);

/// Compacts by `rule` for ever.
pub async fn auto_compact(shard: Rc<Shard>, rule: AutoCompaction) {
    match rule {
        AutoCompaction::Off => {}
        AutoCompaction::Periodic(retention) => by_age(&shard, retention).await,
        AutoCompaction::Revision(keep) => by_number(&shard, keep).await,
    }
}

async fn by_age(shard: &Rc<Shard>, retention: Duration) {
    let step = retention.min(INTERVAL_MAX) / SAMPLES;
    let mut ages = Ages::new((retention.as_nanos() / step.as_nanos().max(1)) as usize);
    let mut last = 0;
    loop {
        sleep(step).await;
        let revision = shard.pin(|view| view.revision);
        if let Some(old) = ages.sample(revision) {
            last = compact(shard, old, last).await;
        }
    }
}

/// Revisions as of past samples.
struct Ages {
    window: VecDeque<u64>,
    len: usize,
    since: u32,
}

impl Ages {
    fn new(len: usize) -> Self {
        Self {
            window: VecDeque::with_capacity(len + 1),
            len,
            since: 0,
        }
    }

    /// Takes the current revision; once an interval the one from `len` samples ago.
    fn sample(&mut self, revision: u64) -> Option<u64> {
        self.window.push_back(revision);
        self.since += 1;
        if self.window.len() <= self.len {
            return None;
        }
        let old = self.window.pop_front().expect("longer than len");
        if self.since < SAMPLES {
            return None;
        }
        self.since = 0;
        Some(old)
    }
}

async fn by_number(shard: &Rc<Shard>, keep: u64) {
    let mut last = 0;
    loop {
        sleep(REVISION_INTERVAL).await;
        let revision = shard.pin(|view| view.revision);
        last = compact(shard, revision.saturating_sub(keep), last).await;
    }
}

/// Compacts at `revision` if that is news; the last revision compacted at.
async fn compact(shard: &Rc<Shard>, revision: u64, last: u64) -> u64 {
    let leads = shard.status().leader == shard.identity().member;
    if revision <= last || !leads {
        return last;
    }
    let command = Command::Compact {
        revision: revision as i64,
    };
    match shard.propose(command).await {
        Ok(_) | Err(ApiError::Compacted) => {
            log::info!("completed auto compaction", "revision" => revision);
            revision
        }
        Err(error) => {
            log::warn!(
                "failed auto compaction",
                "revision" => revision,
                "error" => error.to_string(),
            );
            last
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_older_than_the_retention_goes_once_an_interval() {
        // Two intervals of retention: 20 samples.
        let mut ages = Ages::new(20);
        let taken: Vec<(u64, u64)> = (1..=45)
            .filter_map(|now| Some((now, ages.sample(now)?)))
            .collect();
        assert_eq!(taken, [(21, 1), (31, 11), (41, 21)]);
    }
}
