//! Two servers under the same load, in turn: `ringbench compare`.
//!
//! Each run starts a fresh server on an empty data directory, waits until it answers, loads it and
//! stops it. Runs come in pairs, a-b then b-a and so on, so that what drifts on the machine hits
//! both alike; a ratio is the median of the pairs' ratios. Main thread only; a server is stopped
//! and its directory removed on every way out.

use std::fs::{self, File};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

use crate::Error;
use crate::args::Run;
use crate::cpus::Cpus;
use crate::load::Plan;
use crate::report::{self, Figure, Report, Watch};
use crate::workload::Operation;

/// Patience with a server that starts or stops.
const START_TIMEOUT: Duration = Duration::from_secs(30);
const STOP_TIMEOUT: Duration = Duration::from_secs(10);
/// How often a starting or stopping server is looked at.
const POLL_INTERVAL: Duration = Duration::from_millis(20);
const NAMES: [&str; 2] = ["a", "b"];

/// What to compare.
#[derive(Debug)]
pub struct Compare {
    /// The load; its endpoints are replaced.
    pub run: Run,
    /// The servers' shell commands, with `{dir}`, `{port}`, `{peer}`.
    pub commands: [String; 2],
    /// Runs of each.
    pub runs: usize,
    /// First port to use.
    pub port: u16,
    /// Where data directories are made.
    pub tmp: PathBuf,
    /// Where the servers may run.
    pub server_cpus: Option<Cpus>,
}

/// Runs the comparison and prints it; whether every call succeeded.
///
/// # Errors
/// A server does not start or cannot be measured.
pub fn execute(compare: &Compare) -> Result<bool, Error> {
    let mut reports: [Vec<Report>; 2] = [Vec::new(), Vec::new()];
    for pair in 0..compare.runs {
        let order = if pair.is_multiple_of(2) {
            [0, 1]
        } else {
            [1, 0]
        };
        for side in order {
            let report = run_once(compare, side)?;
            let (name, figures) = (NAMES[side], report.figures());
            let shown: Vec<String> = figures
                .iter()
                .filter(|figure| ["throughput /s", "p50 us", "p99 us"].contains(&figure.name))
                .map(|figure| format!("{} {}", figure.name, number(figure.value)))
                .collect();
            eprintln!(
                "run {} of {}, {name}: {}",
                pair + 1,
                compare.runs,
                shown.join(", ")
            );
            if let Some(problem) = report.first_problem() {
                eprintln!("  {} calls failed, such as: {problem}", report.errors());
            }
            reports[side].push(report);
        }
    }
    let rows = rows(
        &reports
            .each_ref()
            .map(|side| side.iter().map(Report::figures).collect()),
    );
    if compare.run.json {
        print_json(compare, &reports, &rows);
    } else {
        print!(
            "{}{}",
            report::describe(&compare.run.plan),
            table(compare, &rows)
        );
    }
    Ok(reports.iter().flatten().all(Report::is_clean))
}

fn run_once(compare: &Compare, side: usize) -> Result<Report, Error> {
    let server = Server::start(compare, side)?;
    let mut run = compare.run.clone();
    run.plan.endpoints = vec![server.endpoint.clone()];
    run.watch = Watch {
        server_pid: Some(server.child.id()),
        data_dir: server.has_disk.clone(),
    };
    let unpinned = Cpus::of_this_thread()?;
    if let Some(cpus) = &run.client_cpus {
        cpus.pin_this_thread()?;
    }
    let report = (|| {
        if run.prefill {
            crate::prefill(&run)?;
        }
        report::measure(&run.plan, &run.watch)
    })();
    unpinned.pin_this_thread()?;
    report.map_err(|error| Error::new(format!("{}: {error}", NAMES[side])))
}

/// A server we started, with its directory.
#[derive(Debug)]
struct Server {
    child: Child,
    endpoint: String,
    /// Holds the data directory and the log.
    home: PathBuf,
    /// The data directory, where its disk has counters.
    has_disk: Option<PathBuf>,
}

impl Server {
    /// Starts one and waits until it answers.
    fn start(compare: &Compare, side: usize) -> Result<Server, Error> {
        let name = NAMES[side];
        let [port, peer] = free_ports(compare.port)?;
        let home = compare
            .tmp
            .join(format!("ringbench-{}-{name}-{port}", std::process::id()));
        let data_dir = home.join("data");
        let log = home.join("log");
        let failed =
            |what: std::io::Error| Error::new(format!("{name}: {}: {what}", home.display()));
        fs::create_dir_all(&home).map_err(failed)?;
        let out = File::create(&log).map_err(failed)?;
        let err = out.try_clone().map_err(failed)?;
        let line = compare.commands[side]
            .replace("{dir}", &data_dir.to_string_lossy())
            .replace("{port}", &port.to_string())
            .replace("{peer}", &peer.to_string())
            .replace('\n', " ");
        let unpinned = Cpus::of_this_thread()?;
        if let Some(cpus) = &compare.server_cpus {
            // The child inherits it.
            cpus.pin_this_thread()?;
        }
        let child = Command::new("/bin/sh")
            .arg("-c")
            .arg(format!("exec {line}"))
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(err)
            .spawn();
        unpinned.pin_this_thread()?;
        let child = child.map_err(failed)?;
        let endpoint = format!("127.0.0.1:{port}");
        let mut server = Server {
            child,
            endpoint,
            home,
            has_disk: None,
        };
        server
            .wait_until_ready(&log)
            .map_err(|error| Error::new(format!("{name}: {error}")))?;
        let has_disk = data_dir.exists() && crate::proc::Disk::of(&data_dir).is_some();
        server.has_disk = has_disk.then_some(data_dir);
        Ok(server)
    }

    fn wait_until_ready(&mut self, log: &Path) -> Result<(), Error> {
        let probe = Plan {
            endpoints: vec![self.endpoint.clone()],
            conns: 1,
            clients: 1,
            threads: 1,
            operation: Operation::Range {
                serializable: false,
            },
            keys: crate::workload::Keys {
                count: 1,
                bytes: 1,
                seed: None,
            },
            total: Some(1),
            time: None,
            rate: None,
        };
        let start = Instant::now();
        loop {
            if let Ok(Some(status)) = self.child.try_wait() {
                return Err(Error::new(format!(
                    "the server ended ({status}): {}",
                    gist(log)
                )));
            }
            let problem = match report::measure(&probe, &Watch::default()) {
                Ok(report) if report.is_clean() => return Ok(()),
                Ok(report) => report.first_problem().unwrap_or("no reply").to_owned(),
                Err(error) => error.to_string(),
            };
            if start.elapsed() > START_TIMEOUT {
                let said = gist(log);
                return Err(Error::new(format!("no answer in 30 s ({problem}); {said}")));
            }
            std::thread::sleep(POLL_INTERVAL);
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(pid) = Pid::from_raw(self.child.id().cast_signed()) {
            // It may have ended by itself; then there is nothing to stop.
            let _ = kill_process(pid, Signal::TERM);
        }
        let start = Instant::now();
        while matches!(self.child.try_wait(), Ok(None)) && start.elapsed() < STOP_TIMEOUT {
            std::thread::sleep(POLL_INTERVAL);
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Err(error) = fs::remove_dir_all(&self.home) {
            eprintln!("ringbench: {} stays behind: {error}", self.home.display());
        }
    }
}

/// Two ports nobody listens on, at or after `first`.
fn free_ports(first: u16) -> Result<[u16; 2], Error> {
    let is_free = |port: &u16| TcpListener::bind(("127.0.0.1", *port)).is_ok();
    let mut free = (first..=u16::MAX).filter(is_free);
    match (free.next(), free.next()) {
        (Some(port), Some(peer)) => Ok([port, peer]),
        _ => Err(Error::new(format!("no free port from {first} on"))),
    }
}

/// The first and the last line of a server's log: one of them mostly has the reason.
fn gist(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    match (lines.next(), lines.next_back()) {
        (Some(first), Some(last)) => format!("it said {first:?} ... {last:?}"),
        (Some(only), None) => format!("it said {only:?}"),
        _ => "it said nothing".to_owned(),
    }
}

/// One compared figure: medians of both sides, and the pairs' ratios b / a.
#[derive(Debug, PartialEq)]
struct Row {
    name: &'static str,
    medians: [f64; 2],
    ratio: f64,
    ratio_min: f64,
    ratio_max: f64,
}

/// The figures both sides have in every run, compared.
fn rows(sides: &[Vec<Vec<Figure>>; 2]) -> Vec<Row> {
    let Some(first) = sides[0].first() else {
        return Vec::new();
    };
    let values = |side: usize, name| -> Option<Vec<f64>> {
        let value = |run: &Vec<Figure>| run.iter().find(|f| f.name == name).map(|f| f.value);
        sides[side].iter().map(value).collect()
    };
    let row = |figure: &Figure| {
        let (a, b) = values(0, figure.name).zip(values(1, figure.name))?;
        let mut ratios: Vec<f64> = b.iter().zip(&a).map(|(b, a)| b / a).collect();
        ratios.sort_unstable_by(f64::total_cmp);
        Some(Row {
            name: figure.name,
            ratio: median(&ratios),
            ratio_min: *ratios.first()?,
            ratio_max: *ratios.last()?,
            medians: [median(&a), median(&b)],
        })
    };
    first.iter().filter_map(row).collect()
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() % 2 {
        1 => sorted[middle],
        _ => (sorted[middle - 1] + sorted[middle]) / 2.0,
    }
}

fn table(compare: &Compare, rows: &[Row]) -> String {
    let mut text = format!("a: {}\nb: {}\n", compare.commands[0], compare.commands[1]);
    text.push_str(&format!(
        "{:<22} {:>12} {:>12} {:>8}   (medians of {}; ratios by pair)\n",
        "", "a", "b", "b/a", compare.runs
    ));
    for row in rows {
        let [a, b] = row.medians.map(number);
        let ratio = match row.ratio.is_finite() {
            true => format!(
                "{:>8.3}   {:.3} to {:.3}",
                row.ratio, row.ratio_min, row.ratio_max
            ),
            false => format!("{:>8}", "-"),
        };
        text.push_str(&format!("{:<22} {a:>12} {b:>12} {ratio}\n", row.name));
    }
    text
}

fn print_json(compare: &Compare, reports: &[Vec<Report>; 2], rows: &[Row]) {
    let plan = &compare.run.plan;
    let runs = |side: usize| {
        reports[side]
            .iter()
            .map(|run| run.json(plan))
            .collect::<Vec<_>>()
    };
    let figures: Vec<_> = rows
        .iter()
        .map(|row| {
            json!({
                "name": row.name, "a": row.medians[0], "b": row.medians[1],
                "ratio": row.ratio, "ratio_min": row.ratio_min, "ratio_max": row.ratio_max,
            })
        })
        .collect();
    let whole = json!({
        "plan": report::plan_json(plan),
        "commands": { "a": compare.commands[0], "b": compare.commands[1] },
        "figures": figures,
        "runs": { "a": runs(0), "b": runs(1) },
    });
    println!("{whole}");
}

/// A figure with as many digits as say something.
fn number(value: f64) -> String {
    match value.abs() {
        1000.0.. => format!("{value:.0}"),
        10.0.. => format!("{value:.1}"),
        _ => format!("{value:.3}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runs(values: &[f64]) -> Vec<Vec<Figure>> {
        values
            .iter()
            .map(|&value| {
                vec![Figure {
                    name: "p50 us",
                    value,
                }]
            })
            .collect()
    }

    #[test]
    fn ratios_are_of_pairs() {
        let rows = rows(&[runs(&[10.0, 20.0, 40.0]), runs(&[20.0, 20.0, 10.0])]);
        let expected = Row {
            name: "p50 us",
            medians: [20.0, 20.0],
            ratio: 1.0,
            ratio_min: 0.25,
            ratio_max: 2.0,
        };
        assert_eq!(rows, [expected]);
    }

    #[test]
    fn a_figure_of_one_side_only_is_left_out() {
        let mut sides = [runs(&[1.0]), runs(&[1.0])];
        sides[0][0].push(Figure {
            name: "disk flushes /op",
            value: 1.0,
        });
        assert_eq!(rows(&sides).len(), 1);
    }

    #[test]
    fn medians() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
    }
}
