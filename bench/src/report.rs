//! A run's figures: measured here, shown as a table for people or as JSON.
//!
//! Main thread only. Latencies and throughput are of the calls that succeeded; what an operation
//! cost is divided by all that ended, failed ones too.

use std::fmt::Write;
use std::path::Path;

use serde_json::{Value, json};

use crate::Error;
use crate::load::{self, Plan, Tally};
use crate::proc::{self, Device, Disk, ProcessSample, ProcessUse};
use crate::workload::Operation;

/// What of the machine to measure beside the calls.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Watch {
    /// The server's process.
    pub server_pid: Option<u32>,
    /// A directory on the server's disk.
    pub data_dir: Option<std::path::PathBuf>,
}

/// A run's figures.
#[derive(Debug)]
pub struct Report {
    tally: Tally,
    own_cpu_ns: u64,
    server: Option<ProcessUse>,
    device: Option<Device>,
}

/// Runs `plan`, connections opened before the measurement starts.
///
/// # Errors
/// A connection cannot be opened, or what `watch` names cannot be read. Calls that fail are
/// in the report.
pub fn measure(plan: &Plan, watch: &Watch) -> Result<Report, Error> {
    let disk = watch.data_dir.as_deref().map(disk_of).transpose()?;
    let links = load::connect(plan)?;
    let device_before = disk.as_ref().and_then(Disk::sample);
    let server_before = watch.server_pid.map(ProcessSample::take).transpose()?;
    let own_before = proc::own_cpu_ns();
    let tally = load::run(plan, links)?;
    let own_cpu_ns = proc::own_cpu_ns() - own_before;
    let server_after = watch.server_pid.map(ProcessSample::take).transpose()?;
    let device_after = disk.as_ref().and_then(Disk::sample);
    let device = device_before
        .zip(device_after)
        .map(|(before, after)| after.since(before));
    let server = server_before
        .zip(server_after)
        .map(|(before, after)| after.since(&before));
    Ok(Report {
        tally,
        own_cpu_ns,
        server,
        device,
    })
}

fn disk_of(dir: &Path) -> Result<Disk, Error> {
    let none = || Error::new(format!("{}: no disk with counters under it", dir.display()));
    Disk::of(dir).ok_or_else(none)
}

/// One figure that runs are compared by.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Figure {
    /// What it is, with its unit.
    pub name: &'static str,
    /// Its value.
    pub value: f64,
}

impl Report {
    /// Calls that succeeded.
    pub fn operations(&self) -> u64 {
        self.tally.latencies.len()
    }

    /// Calls that failed.
    pub fn errors(&self) -> u64 {
        self.tally.errors
    }

    /// Whether all went well: calls succeeded and none failed.
    pub fn is_clean(&self) -> bool {
        self.operations() > 0 && self.errors() == 0 && self.tally.problems.is_empty()
    }

    /// The most frequent reason of failure, if any.
    pub fn first_problem(&self) -> Option<&str> {
        let most = self.tally.problems.iter().max_by_key(|(_, count)| **count);
        most.map(|(reason, _)| reason.as_str())
    }

    /// The figures that runs are compared by, those that were measured.
    pub fn figures(&self) -> Vec<Figure> {
        let quantile = |q| self.tally.latencies.value_at_quantile(q) as f64 / 1e3;
        let mut figures = vec![
            Figure {
                name: "throughput /s",
                value: self.throughput(),
            },
            Figure {
                name: "p50 us",
                value: quantile(0.5),
            },
            Figure {
                name: "p90 us",
                value: quantile(0.9),
            },
            Figure {
                name: "p99 us",
                value: quantile(0.99),
            },
            Figure {
                name: "p99.9 us",
                value: quantile(0.999),
            },
            Figure {
                name: "max us",
                value: self.tally.latencies.max() as f64 / 1e3,
            },
            Figure {
                name: "ringbench CPU us/op",
                value: self.per_op(self.own_cpu_ns) / 1e3,
            },
        ];
        if let Some(server) = self.server {
            figures.extend([
                Figure {
                    name: "server CPU us/op",
                    value: self.per_op(server.cpu_ns) / 1e3,
                },
                Figure {
                    name: "server read B/op",
                    value: self.per_op(server.read_bytes),
                },
                Figure {
                    name: "server written B/op",
                    value: self.per_op(server.written_bytes),
                },
                Figure {
                    name: "server peak RSS MB",
                    value: server.rss_peak_bytes as f64 / 1e6,
                },
            ]);
        }
        if let Some(device) = self.device {
            figures.extend([
                Figure {
                    name: "disk flushes /op",
                    value: self.per_op(device.flushes),
                },
                Figure {
                    name: "disk writes /op",
                    value: self.per_op(device.writes),
                },
                Figure {
                    name: "disk written B/op",
                    value: self.per_op(device.written_bytes),
                },
            ]);
        }
        figures
    }

    fn throughput(&self) -> f64 {
        self.operations() as f64 / (self.tally.elapsed_ns.max(1) as f64 / 1e9)
    }

    fn per_op(&self, amount: u64) -> f64 {
        amount as f64 / (self.operations() + self.errors()).max(1) as f64
    }

    /// The table for people.
    pub fn table(&self, plan: &Plan) -> String {
        let tally = &self.tally;
        let mut text = describe(plan);
        let elapsed = tally.elapsed_ns as f64 / 1e9;
        let mut line = |name: &str, value: String| {
            writeln!(text, "  {name:<15} {value}").expect("a string takes everything");
        };
        line(
            "operations",
            format!("{} in {elapsed:.2} s", self.operations()),
        );
        line("errors", tally.errors.to_string());
        for (reason, count) in &tally.problems {
            line("", format!("{count} x {reason}"));
        }
        if matches!(plan.operation, Operation::Range { .. }) && tally.misses > 0 {
            line(
                "misses",
                format!("{} (no such key: --prefill writes them)", tally.misses),
            );
        }
        if tally.missed > 0 {
            let clients = plan.clients;
            line(
                "never started",
                format!("{} (rate too high for {clients} clients)", tally.missed),
            );
        }
        line("throughput", format!("{:.0} /s", self.throughput()));
        let latency = [
            ("p50", 0.5),
            ("p90", 0.9),
            ("p99", 0.99),
            ("p99.9", 0.999),
            ("max", 1.0),
        ]
        .map(|(name, q)| format!("{name} {}", duration(tally.latencies.value_at_quantile(q))));
        line("latency", latency.join("   "));
        if let Some(server) = self.server {
            line(
                "server CPU",
                format!("{:.2} us/op", self.per_op(server.cpu_ns) / 1e3),
            );
            let (read, written) = (server.read_bytes, server.written_bytes);
            let (read, written) = (self.per_op(read), self.per_op(written));
            line(
                "server I/O",
                format!("read {read:.0} B/op   written {written:.0} B/op"),
            );
            line(
                "server memory",
                format!("peak {:.0} MB", server.rss_peak_bytes as f64 / 1e6),
            );
        }
        if let Some(device) = self.device {
            let [flushes, writes, bytes] =
                [device.flushes, device.writes, device.written_bytes].map(|n| self.per_op(n));
            line(
                "disk",
                format!("{flushes:.4} flushes, {writes:.4} writes, {bytes:.0} B per op"),
            );
        }
        line(
            "ringbench CPU",
            format!("{:.2} us/op", self.per_op(self.own_cpu_ns) / 1e3),
        );
        text
    }

    /// All figures, with the plan.
    pub fn json(&self, plan: &Plan) -> Value {
        let tally = &self.tally;
        let at = |q| tally.latencies.value_at_quantile(q);
        json!({
            "plan": plan_json(plan),
            "ops": self.operations(),
            "errors": tally.errors,
            "problems": tally.problems,
            "misses": tally.misses,
            "never_started": tally.missed,
            "elapsed_s": tally.elapsed_ns as f64 / 1e9,
            "throughput_per_s": self.throughput(),
            "latency_ns": {
                "p50": at(0.5), "p90": at(0.9), "p99": at(0.99), "p99.9": at(0.999),
                "max": tally.latencies.max(), "mean": tally.latencies.mean(),
            },
            "ringbench_cpu_ns_per_op": self.per_op(self.own_cpu_ns),
            "server": self.server.map(|server| json!({
                "cpu_ns": server.cpu_ns,
                "cpu_ns_per_op": self.per_op(server.cpu_ns),
                "read_bytes": server.read_bytes,
                "written_bytes": server.written_bytes,
                "rss_peak_bytes": server.rss_peak_bytes,
            })),
            "disk": self.device.map(|device| json!({
                "flushes": device.flushes,
                "reads": device.reads,
                "writes": device.writes,
                "written_bytes": device.written_bytes,
            })),
        })
    }
}

/// The plan as an object.
pub fn plan_json(plan: &Plan) -> Value {
    let (value_bytes, serializable) = match plan.operation {
        Operation::Put { value_bytes } => (Some(value_bytes), None),
        Operation::Range { serializable } => (None, Some(serializable)),
    };
    json!({
        "operation": plan.operation.name(),
        "value_bytes": value_bytes,
        "serializable": serializable,
        "key_bytes": plan.keys.bytes,
        "keys": plan.keys.count,
        "random_seed": plan.keys.seed,
        "clients": plan.clients,
        "conns": plan.conns,
        "threads": plan.threads,
        "rate_per_s": plan.rate,
    })
}

/// The plan in one line.
pub fn describe(plan: &Plan) -> String {
    let what = match plan.operation {
        Operation::Put { value_bytes } => format!("put of {value_bytes} B values"),
        Operation::Range { serializable: true } => "serializable range of one key".to_owned(),
        Operation::Range {
            serializable: false,
        } => "linearizable range of one key".to_owned(),
    };
    let order = match plan.keys.seed {
        Some(seed) => format!("random (seed {seed})"),
        None => "in order".to_owned(),
    };
    let pace = match plan.rate {
        Some(rate) => format!("open loop at {rate} /s"),
        None => "closed loop".to_owned(),
    };
    let (count, bytes) = (plan.keys.count, plan.keys.bytes);
    let (clients, conns) = (plan.clients, plan.conns);
    format!(
        "{what}, {count} keys of {bytes} B {order}, clients/connections {clients}/{conns}, {pace}\n"
    )
}

/// Nanoseconds with a unit people read easily.
fn duration(ns: u64) -> String {
    match ns {
        0..1_000_000 => format!("{:.1} us", ns as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.2} ms", ns as f64 / 1e6),
        _ => format!("{:.2} s", ns as f64 / 1e9),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_readable_units() {
        assert_eq!(duration(999_900), "999.9 us");
        assert_eq!(duration(1_500_000), "1.50 ms");
        assert_eq!(duration(2_500_000_000), "2.50 s");
    }
}
