//! When the next call starts.
//!
//! Closed loop: as soon as a client is free. Open loop: at fixed times, whether the server keeps
//! up or not; a call that had to wait for a free client is still timed from the moment it was
//! meant to start, so a stalled server is charged for every call it delayed (no coordinated
//! omission). Times are nanoseconds since the start of the measurement; no clock here.

/// How long after the end calls that were due before it may still start.
const LATE_NS_MAX: u64 = 100_000_000;

/// The schedule of one load thread.
#[derive(Debug)]
pub struct Pace {
    /// Nanoseconds between intended starts; `None`: closed loop.
    interval_ns: Option<f64>,
    /// Calls to start in all.
    total: u64,
    /// No call is meant to start at or after this.
    end_ns: u64,
    started: u64,
}

impl Pace {
    /// A schedule of `rate` calls per second (`None`: closed loop) that ends after `total` calls
    /// or at `end_ns`, whichever comes first.
    pub fn new(rate: Option<f64>, total: u64, end_ns: u64) -> Pace {
        assert!(rate.is_none_or(|rate| rate > 0.0));
        Pace {
            interval_ns: rate.map(|rate| 1e9 / rate),
            total,
            end_ns,
            started: 0,
        }
    }

    /// Takes the next call, if one is due: its intended start, at most `now_ns`.
    pub fn take(&mut self, now_ns: u64) -> Option<u64> {
        if self.is_over(now_ns) {
            return None;
        }
        let start_ns = self.intended_ns().unwrap_or(now_ns);
        if start_ns > now_ns || start_ns >= self.end_ns {
            return None;
        }
        self.started += 1;
        Some(start_ns)
    }

    /// When to look again if nothing is due at `now_ns`; `None`: no call will ever be due again.
    pub fn next_ns(&self, now_ns: u64) -> Option<u64> {
        if self.is_over(now_ns) {
            return None;
        }
        Some(self.intended_ns().unwrap_or(now_ns).min(self.end_ns))
    }

    /// A call of an open loop that was due just before the end may start a little after it.
    fn is_over(&self, now_ns: u64) -> bool {
        let is_late = self
            .intended_ns()
            .is_some_and(|start_ns| start_ns < self.end_ns);
        let grace_ns = if is_late { LATE_NS_MAX } else { 0 };
        self.started == self.total || now_ns >= self.end_ns.saturating_add(grace_ns)
    }

    /// Calls of an open loop that were meant to start before `now_ns` and never did: the server
    /// (or `--clients`) was too slow for the rate.
    pub fn missed(&self, now_ns: u64) -> u64 {
        let Some(interval_ns) = self.interval_ns else {
            return 0;
        };
        let due = (now_ns.min(self.end_ns) as f64 / interval_ns).ceil() as u64;
        due.min(self.total).saturating_sub(self.started)
    }

    fn intended_ns(&self) -> Option<u64> {
        self.interval_ns
            .map(|interval_ns| (self.started as f64 * interval_ns) as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hdrhistogram::Histogram;

    #[test]
    fn a_closed_loop_starts_now_until_its_end() {
        let mut pace = Pace::new(None, 2, 1000);
        assert_eq!(pace.take(5), Some(5));
        assert_eq!(pace.next_ns(7), Some(7));
        assert_eq!(pace.take(9), Some(9));
        assert_eq!(
            (pace.take(10), pace.next_ns(10)),
            (None, None),
            "total reached"
        );
        let mut pace = Pace::new(None, u64::MAX, 1000);
        assert_eq!(pace.take(999), Some(999));
        assert_eq!(
            (pace.take(1000), pace.missed(1000)),
            (None, 0),
            "time is up"
        );
    }

    #[test]
    fn an_open_loop_keeps_its_times() {
        let mut pace = Pace::new(Some(1e6), 4, u64::MAX);
        assert_eq!(pace.take(0), Some(0));
        assert_eq!((pace.take(999), pace.next_ns(999)), (None, Some(1000)));
        assert_eq!(pace.take(2500), Some(1000));
        assert_eq!(pace.take(2500), Some(2000));
        assert_eq!(pace.take(2500), None);
        assert_eq!(pace.take(3000), Some(3000));
        assert_eq!((pace.take(9000), pace.next_ns(9000)), (None, None));
    }

    #[test]
    fn an_open_loop_lasts_to_its_end_and_starts_what_was_due() {
        let mut pace = Pace::new(Some(1e6), u64::MAX, 2500);
        assert_eq!([pace.take(2600), pace.take(2600)], [Some(0), Some(1000)]);
        assert_eq!(pace.next_ns(2000), Some(2000));
        let mut slow = Pace::new(Some(1e6), u64::MAX, 2500);
        assert_eq!(slow.take(2500 + LATE_NS_MAX), None, "too late");
        assert_eq!([pace.take(2600), pace.take(2600)], [Some(2000), None]);
        assert_eq!((pace.next_ns(2400), pace.next_ns(2500)), (Some(2500), None));
        assert_eq!((pace.missed(2500), slow.missed(2500)), (0, 3));
    }

    #[test]
    fn calls_that_never_started_are_counted() {
        let mut pace = Pace::new(Some(1e6), u64::MAX, 10_000);
        assert_eq!(pace.take(0), Some(0));
        assert_eq!(pace.missed(2500), 2, "those of 1000 and 2000");
        assert_eq!(pace.missed(50_000), 9);
        let pace = Pace::new(Some(1e6), 3, 10_000);
        assert_eq!(pace.missed(50_000), 3);
    }

    /// A server that answers in 1 us but stalls once for 1 s, one client, 1000 calls per second:
    /// timed from the intended start, the stall shows in 1000 calls; a closed loop sees one.
    #[test]
    fn latency_from_the_intended_start_shows_a_stall() {
        let slow_calls = |rate| {
            let mut latencies = Histogram::<u64>::new_with_bounds(1, 10_000_000_000, 3).unwrap();
            let mut pace = Pace::new(rate, 3000, u64::MAX);
            let mut now_ns = 0;
            while let Some(next_ns) = pace.next_ns(now_ns) {
                now_ns = now_ns.max(next_ns);
                let start_ns = pace.take(now_ns).unwrap();
                let stalls = latencies.len() == 1000;
                now_ns += if stalls { 1_000_000_000 } else { 1000 };
                latencies.record(now_ns - start_ns).unwrap();
            }
            latencies.len() - latencies.count_between(0, 10_000_000)
        };
        assert_eq!(slow_calls(None), 1);
        let shown = slow_calls(Some(1000.0));
        assert!((985..=995).contains(&shown), "{shown} calls above 10 ms");
    }
}
