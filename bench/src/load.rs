//! The load: clients that call, each with one call under way, over few or many connections.
//!
//! Each load thread owns its links, its epoll, its pace and its histogram; threads meet only at
//! the end, when their tallies are added. In both loops a free client waits in `idle`: a closed
//! loop takes it out at once, an open loop when the next call is due.
//! Not here: what is asked (workload), when (pace), what it cost the machine (proc).

use std::collections::{BTreeMap, VecDeque};
use std::num::NonZeroU64;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};

use crate::Error;
use crate::link::{Link, SCRATCH_BYTES};
use crate::pace::Pace;
use crate::workload::{Bodies, Keys, Operation};

/// Calls under way and no reply for this long: the server is given up.
const SILENCE_MAX: Duration = Duration::from_secs(10);
/// Distinct reasons of failure that are kept by their text.
const PROBLEMS_MAX: usize = 16;
/// Largest latency the histogram tells apart; longer ones count as this.
const LATENCY_NS_MAX: u64 = 1_000_000_000_000;
/// Digits the histogram keeps.
const LATENCY_DIGITS: u8 = 3;
const EVENTS_MAX: usize = 1024;

/// What to do.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// `host:port` each; connections go to them in turn.
    pub endpoints: Vec<String>,
    /// Connections, at least one a thread.
    pub conns: usize,
    /// Clients, at least one a connection.
    pub clients: usize,
    /// Load threads.
    pub threads: usize,
    /// The call.
    pub operation: Operation,
    /// Its keys.
    pub keys: Keys,
    /// Ends after so many calls.
    pub total: Option<u64>,
    /// Ends after this time.
    pub time: Option<Duration>,
    /// Calls per second in all; `None`: closed loop.
    pub rate: Option<f64>,
}

/// What came of it.
#[derive(Debug)]
pub struct Tally {
    /// Latencies of the calls that succeeded, nanoseconds.
    pub latencies: Histogram<u64>,
    /// Calls that failed.
    pub errors: u64,
    /// Ranges that succeeded and found no key.
    pub misses: u64,
    /// Calls of an open loop that were due and never started.
    pub missed: u64,
    /// Reasons of failure, how often each.
    pub problems: BTreeMap<String, u64>,
    /// From the start to the last reply or the end of the time.
    pub elapsed_ns: u64,
}

impl Tally {
    fn new() -> Tally {
        let latencies = Histogram::new_with_bounds(1, LATENCY_NS_MAX, LATENCY_DIGITS);
        Tally {
            latencies: latencies.expect("valid bounds"),
            errors: 0,
            misses: 0,
            missed: 0,
            problems: BTreeMap::new(),
            elapsed_ns: 0,
        }
    }

    fn add(&mut self, other: &Tally) {
        self.latencies.add(&other.latencies).expect("equal bounds");
        self.errors += other.errors;
        self.misses += other.misses;
        self.missed += other.missed;
        for (text, count) in &other.problems {
            self.problem(text, *count);
        }
        self.elapsed_ns = self.elapsed_ns.max(other.elapsed_ns);
    }

    fn problem(&mut self, text: &str, count: u64) {
        let known = self.problems.contains_key(text);
        let text = if known || self.problems.len() < PROBLEMS_MAX {
            text
        } else {
            "other reasons"
        };
        *self.problems.entry(text.to_owned()).or_default() += count;
    }
}

/// Opens the plan's connections.
///
/// # Errors
/// One cannot be opened, or the server allows fewer calls a connection than the plan needs.
pub fn connect(plan: &Plan) -> Result<Vec<Link>, Error> {
    assert!(plan.threads >= 1);
    assert!(plan.conns >= plan.threads);
    assert!(plan.clients >= plan.conns);
    let clients_per_link = plan.clients.div_ceil(plan.conns);
    let endpoints = plan.endpoints.iter().cycle().take(plan.conns);
    let (path, inspect) = (plan.operation.path(), plan.operation.inspect());
    let mut links = Vec::with_capacity(plan.conns);
    for endpoint in endpoints {
        let link = Link::connect(endpoint, path, inspect)?;
        if let Some(max) = link.session.streams_max()
            && clients_per_link > max as usize
        {
            return Err(Error::new(format!(
                "{endpoint} allows {max} calls a connection at a time: {} clients need --conns {}",
                plan.clients,
                plan.clients.div_ceil((max as usize).max(1)),
            )));
        }
        links.push(link);
    }
    Ok(links)
}

/// Runs the plan over `links`, as opened by `connect`.
///
/// # Errors
/// The kernel refuses an epoll; failures of calls and connections are in the tally.
pub fn run(plan: &Plan, mut links: Vec<Link>) -> Result<Tally, Error> {
    let clock = Instant::now();
    let threads = plan.threads;
    if threads == 1 {
        return Worker::new(plan, 0, links, clock)?.run();
    }
    let mut workers = Vec::with_capacity(threads);
    for thread in 0..threads {
        let rest = links.split_off(share(plan.conns, threads, thread));
        workers.push(Worker::new(
            plan,
            thread,
            std::mem::replace(&mut links, rest),
            clock,
        )?);
    }
    assert!(links.is_empty());
    let mut tally = Tally::new();
    std::thread::scope(|scope| {
        let running: Vec<_> = workers
            .into_iter()
            .map(|worker| scope.spawn(move || worker.run()))
            .collect();
        for thread in running {
            tally.add(&thread.join().expect("a load thread does not panic")?);
        }
        Ok(tally)
    })
}

/// The part of `whole` that falls to one of `parts`; the first ones get the rest of the division.
fn share(whole: usize, parts: usize, part: usize) -> usize {
    whole / parts + usize::from(part < whole % parts)
}

#[derive(Debug)]
struct Worker {
    links: Vec<Link>,
    /// By link: false once its connection ended.
    alive: Vec<bool>,
    /// By link: waits until the socket is writable.
    blocked: Vec<bool>,
    /// Links that have something to send.
    dirty: Vec<usize>,
    /// The link of each free client, longest free first.
    idle: VecDeque<usize>,
    in_flight: usize,
    epoll: OwnedFd,
    clock: Instant,
    last_reply_ns: u64,
    pace: Pace,
    bodies: Bodies,
    scratch: Vec<u8>,
    tally: Tally,
}

impl Worker {
    fn new(plan: &Plan, thread: usize, links: Vec<Link>, clock: Instant) -> Result<Worker, Error> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(kernel)?;
        for (at, link) in links.iter().enumerate() {
            let data = epoll::EventData::new_u64(at as u64);
            epoll::add(&epoll, link.fd(), data, epoll::EventFlags::IN).map_err(kernel)?;
        }
        let total = plan.total.unwrap_or(u64::MAX);
        let total = match plan.total {
            Some(_) => share(total as usize, plan.threads, thread) as u64,
            None => total,
        };
        let end_ns = plan.time.map_or(u64::MAX, |time| time.as_nanos() as u64);
        let rate = plan.rate.map(|rate| rate / plan.threads as f64);
        let clients = share(plan.clients, plan.threads, thread);
        let count = links.len();
        Ok(Worker {
            alive: vec![true; count],
            blocked: vec![false; count],
            dirty: Vec::with_capacity(count),
            idle: (0..clients).map(|client| client % count).collect(),
            links,
            in_flight: 0,
            epoll,
            clock,
            last_reply_ns: 0,
            pace: Pace::new(rate, total, end_ns),
            bodies: Bodies::new(
                plan.operation,
                plan.keys,
                thread as u64,
                plan.threads as u64,
            ),
            scratch: vec![0; SCRATCH_BYTES],
            tally: Tally::new(),
        })
    }

    fn run(mut self) -> Result<Tally, Error> {
        // Or an open loop's starts would be late by the default 50 us.
        rustix::thread::set_current_timer_slack(NonZeroU64::new(1)).map_err(kernel)?;
        let mut events = Vec::with_capacity(EVENTS_MAX);
        let mut now_ns = self.now_ns();
        loop {
            self.start_due(now_ns);
            self.flush_dirty();
            let Some(wake_ns) = self.wake_ns(now_ns) else {
                break;
            };
            let wait_ns = wake_ns.saturating_sub(now_ns);
            let wait = Timespec {
                tv_sec: (wait_ns / 1_000_000_000) as i64,
                tv_nsec: (wait_ns % 1_000_000_000) as i64,
            };
            events.clear();
            match epoll::wait(&self.epoll, spare_capacity(&mut events), Some(&wait)) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(kernel(error)),
            }
            now_ns = self.now_ns();
            for event in &events {
                now_ns = self.serve(event.data.u64() as usize, event.flags);
            }
            if self.in_flight > 0 && now_ns >= self.silence_ns() {
                self.give_up();
                break;
            }
        }
        self.tally.elapsed_ns = now_ns;
        self.tally.missed = self.pace.missed(now_ns);
        Ok(self.tally)
    }

    fn now_ns(&self) -> u64 {
        self.clock.elapsed().as_nanos() as u64
    }

    fn silence_ns(&self) -> u64 {
        self.last_reply_ns + SILENCE_MAX.as_nanos() as u64
    }

    /// When to look up even if no reply comes; `None`: all is over.
    fn wake_ns(&self, now_ns: u64) -> Option<u64> {
        let next_ns = if self.idle.is_empty() {
            None
        } else {
            self.pace.next_ns(now_ns)
        };
        let silence_ns = (self.in_flight > 0).then(|| self.silence_ns());
        match (next_ns, silence_ns) {
            (Some(next_ns), Some(silence_ns)) => Some(next_ns.min(silence_ns)),
            (one, other) => one.or(other),
        }
    }

    /// Starts the calls that are due, as far as clients are free.
    fn start_due(&mut self, now_ns: u64) {
        while let Some(&at) = self.idle.front() {
            if let Some(reason) = self.links[at].session.closing().filter(|_| self.alive[at]) {
                self.tally.problem(reason, 1);
                self.idle.pop_front();
                continue;
            }
            if !self.alive[at] {
                self.idle.pop_front();
                continue;
            }
            let Some(start_ns) = self.pace.take(now_ns) else {
                break;
            };
            self.idle.pop_front();
            if self.in_flight == 0 {
                // The silence before a call is not the server's.
                self.last_reply_ns = self.last_reply_ns.max(now_ns);
            }
            self.in_flight += 1;
            let session = &mut self.links[at].session;
            if session.out.is_empty() {
                self.dirty.push(at);
            }
            session.call(start_ns, self.bodies.next());
        }
    }

    fn flush_dirty(&mut self) {
        while let Some(at) = self.dirty.pop() {
            if self.alive[at] && !self.blocked[at] {
                self.flush(at);
            }
        }
    }

    fn flush(&mut self, at: usize) {
        match self.links[at].flush() {
            Ok(sent) => self.set_blocked(at, !sent),
            Err(error) => self.lose(at, &error),
        }
    }

    fn set_blocked(&mut self, at: usize, blocked: bool) {
        if self.blocked[at] == blocked {
            return;
        }
        self.blocked[at] = blocked;
        let flags = match blocked {
            true => epoll::EventFlags::IN | epoll::EventFlags::OUT,
            false => epoll::EventFlags::IN,
        };
        let data = epoll::EventData::new_u64(at as u64);
        epoll::modify(&self.epoll, self.links[at].fd(), data, flags)
            .expect("the socket is registered while its link is alive");
    }

    /// Handles readiness of one link; returns the time its replies are booked at.
    fn serve(&mut self, at: usize, flags: epoll::EventFlags) -> u64 {
        let ended = epoll::EventFlags::ERR | epoll::EventFlags::HUP;
        if self.alive[at]
            && flags.intersects(epoll::EventFlags::IN | ended)
            && let Err(error) = self.links[at].receive(&mut self.scratch)
        {
            self.lose(at, &error);
        }
        let now_ns = self.now_ns();
        self.book(at, now_ns);
        self.start_due(now_ns);
        if self.alive[at] {
            // Also acknowledgements, and what waited for a writable socket.
            self.flush(at);
        }
        self.flush_dirty();
        now_ns
    }

    /// Books the calls of a link that ended.
    fn book(&mut self, at: usize, now_ns: u64) {
        let alive = self.alive[at];
        for call in self.links[at].session.finished.drain(..) {
            self.in_flight -= 1;
            self.last_reply_ns = now_ns;
            match call.outcome {
                Ok(passed) => {
                    self.tally
                        .latencies
                        .saturating_record(now_ns.saturating_sub(call.start_ns));
                    self.tally.misses += u64::from(!passed);
                }
                Err(reason) => {
                    self.tally.errors += 1;
                    self.tally.problem(&reason, 1);
                }
            }
            if alive {
                self.idle.push_back(at);
            }
        }
    }

    /// A connection ended: its calls failed, its clients are gone.
    fn lose(&mut self, at: usize, error: &Error) {
        if !self.alive[at] {
            return;
        }
        self.alive[at] = false;
        epoll::delete(&self.epoll, self.links[at].fd()).expect("the socket was registered");
        let reason = error.to_string();
        if self.links[at].session.in_flight() == 0 {
            self.tally.problem(&reason, 1);
        }
        self.links[at].session.fail_all(&reason);
        self.book(at, self.now_ns());
    }

    fn give_up(&mut self) {
        let now_ns = self.now_ns();
        for at in 0..self.links.len() {
            self.alive[at] = false;
            self.links[at].session.fail_all("no reply within 10 s");
            self.book(at, now_ns);
        }
        assert_eq!(self.in_flight, 0);
    }
}

fn kernel(error: rustix::io::Errno) -> Error {
    Error::new(format!("epoll: {error}"))
}

#[cfg(test)]
mod tests;
