//! What the kernel counted: CPU time and bytes of a process, flushes of a disk.
//!
//! Read before and after the measurement by the main thread; the difference is what it cost.
//! A thread that ended in between takes its CPU time with it. Kernel workers that act for a
//! process are not in its figures.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use crate::Error;

/// Bytes of a sector in /sys/block/*/stat, whatever the device's own.
const SECTOR_BYTES: u64 = 512;

/// A process at one moment.
#[derive(Debug)]
pub struct ProcessSample {
    cpu_ns: BTreeMap<u32, u64>,
    read_bytes: u64,
    written_bytes: u64,
    rss_peak_bytes: u64,
}

/// What a process used between two samples.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProcessUse {
    /// CPU time of all threads.
    pub cpu_ns: u64,
    /// Bytes it caused to be read from disks.
    pub read_bytes: u64,
    /// Bytes it caused to be written to disks.
    pub written_bytes: u64,
    /// Largest resident set since the process started.
    pub rss_peak_bytes: u64,
}

impl ProcessSample {
    /// Samples process `pid`.
    ///
    /// # Errors
    /// No such process, or another user's.
    pub fn take(pid: u32) -> Result<ProcessSample, Error> {
        let mut cpu_ns = BTreeMap::new();
        let task_dir = format!("/proc/{pid}/task");
        let tasks = fs::read_dir(&task_dir)
            .map_err(|error| Error::new(format!("no process {pid} to measure: {error}")))?;
        for task in tasks.flatten() {
            let Some(tid) = task.file_name().to_str().and_then(|name| name.parse().ok()) else {
                continue;
            };
            // A thread may end between the listing and the reading.
            let Ok(text) = fs::read_to_string(task.path().join("schedstat")) else {
                continue;
            };
            let Some(ns) = first_number(&text) else {
                return Err(Error::new(format!("{task_dir}/{tid}/schedstat: {text:?}")));
            };
            cpu_ns.insert(tid, ns);
        }
        let io = read(Path::new(&format!("/proc/{pid}/io")))?;
        let status = read(Path::new(&format!("/proc/{pid}/status")))?;
        Ok(ProcessSample {
            cpu_ns,
            read_bytes: field(&io, "read_bytes:").unwrap_or(0),
            written_bytes: field(&io, "write_bytes:").unwrap_or(0),
            rss_peak_bytes: field(&status, "VmHWM:").unwrap_or(0) * 1024,
        })
    }

    /// What was used since `before`.
    pub fn since(&self, before: &ProcessSample) -> ProcessUse {
        let spent = |(tid, ns): (&u32, &u64)| {
            ns.saturating_sub(before.cpu_ns.get(tid).copied().unwrap_or(0))
        };
        ProcessUse {
            cpu_ns: self.cpu_ns.iter().map(spent).sum(),
            read_bytes: self.read_bytes.saturating_sub(before.read_bytes),
            written_bytes: self.written_bytes.saturating_sub(before.written_bytes),
            rss_peak_bytes: self.rss_peak_bytes,
        }
    }
}

/// A disk's counters at one moment, or their difference.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Device {
    /// Read requests.
    pub reads: u64,
    /// Write requests.
    pub writes: u64,
    /// Bytes written.
    pub written_bytes: u64,
    /// Cache flushes.
    pub flushes: u64,
}

impl Device {
    /// What happened since `before`, by whatever process.
    pub fn since(self, before: Device) -> Device {
        Device {
            reads: self.reads.wrapping_sub(before.reads),
            writes: self.writes.wrapping_sub(before.writes),
            written_bytes: self.written_bytes.wrapping_sub(before.written_bytes),
            flushes: self.flushes.wrapping_sub(before.flushes),
        }
    }

    /// Parses a `stat` file of /sys/block; flushes are its 16th number (kernel 5.5).
    fn parse(text: &str) -> Option<Device> {
        let numbers: Vec<u64> = text
            .split_ascii_whitespace()
            .map(str::parse)
            .collect::<Result<_, _>>()
            .ok()?;
        Some(Device {
            reads: *numbers.first()?,
            writes: *numbers.get(4)?,
            written_bytes: numbers.get(6)?.checked_mul(SECTOR_BYTES)?,
            flushes: *numbers.get(15)?,
        })
    }
}

/// The disk that holds a directory.
#[derive(Debug)]
pub struct Disk {
    stat: PathBuf,
}

impl Disk {
    /// The disk under `dir`; `None` where the file system has none (tmpfs, overlay, network).
    pub fn of(dir: &Path) -> Option<Disk> {
        let device = rustix::fs::stat(dir).ok()?.st_dev;
        let number = format!(
            "{}:{}",
            rustix::fs::major(device),
            rustix::fs::minor(device)
        );
        let mut block = fs::canonicalize(format!("/sys/dev/block/{number}")).ok()?;
        // Flushes are counted for the whole disk only.
        if block.join("partition").exists() {
            block.pop();
        }
        let disk = Disk {
            stat: block.join("stat"),
        };
        disk.sample().map(|_| disk)
    }

    /// The counters now.
    pub fn sample(&self) -> Option<Device> {
        Device::parse(&fs::read_to_string(&self.stat).ok()?)
    }
}

/// CPU time of this process, all threads, in nanoseconds.
pub fn own_cpu_ns() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    time.tv_sec.unsigned_abs() * 1_000_000_000 + time.tv_nsec.unsigned_abs()
}

fn read(path: &Path) -> Result<String, Error> {
    fs::read_to_string(path).map_err(|error| Error::new(format!("{}: {error}", path.display())))
}

fn first_number(text: &str) -> Option<u64> {
    text.split_ascii_whitespace().next()?.parse().ok()
}

/// The number after `name` at the start of a line.
fn field(text: &str, name: &str) -> Option<u64> {
    first_number(text.lines().find_map(|line| line.strip_prefix(name))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_of_proc_files() {
        let io = "rchar: 10\nwchar: 20\nread_bytes: 4096\nwrite_bytes: 8192\n\
                  cancelled_write_bytes: 7\n";
        assert_eq!(field(io, "read_bytes:"), Some(4096));
        assert_eq!(
            field(io, "write_bytes:"),
            Some(8192),
            "not the cancelled ones"
        );
        assert_eq!(
            field("VmPeak:\t 9 kB\nVmHWM:\t  1234 kB\n", "VmHWM:"),
            Some(1234)
        );
        assert_eq!(field(io, "absent:"), None);
        assert_eq!(first_number("449750 17868 3\n"), Some(449_750));
        assert_eq!(first_number("\n"), None);
    }

    #[test]
    fn device_counters() {
        let text = "  100 1 2 3  50 5 16 7 0 9 10 11 12 13 14  77 8\n";
        let device = Device::parse(text).unwrap();
        assert_eq!(
            device,
            Device {
                reads: 100,
                writes: 50,
                written_bytes: 8192,
                flushes: 77
            }
        );
        let before = Device {
            reads: 90,
            writes: 50,
            written_bytes: 512,
            flushes: 70,
        };
        let delta = Device {
            reads: 10,
            writes: 0,
            written_bytes: 7680,
            flushes: 7,
        };
        assert_eq!(device.since(before), delta);
        assert_eq!(
            Device::parse("1 2 3"),
            None,
            "a kernel without flush counters"
        );
    }

    #[test]
    fn cpu_of_threads_old_and_new() {
        let sample = |cpu: &[(u32, u64)], bytes| ProcessSample {
            cpu_ns: cpu.iter().copied().collect(),
            read_bytes: bytes,
            written_bytes: 2 * bytes,
            rss_peak_bytes: 5,
        };
        let before = sample(&[(1, 100), (2, 200)], 10);
        let used = sample(&[(1, 150), (3, 30)], 15).since(&before);
        let expected = ProcessUse {
            cpu_ns: 80,
            read_bytes: 5,
            written_bytes: 10,
            rss_peak_bytes: 5,
        };
        assert_eq!(used, expected);
    }

    #[test]
    fn this_process_can_be_sampled() {
        let before = ProcessSample::take(std::process::id()).unwrap();
        assert!(before.rss_peak_bytes > 0);
        let thread_cpu = || {
            let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
            time.tv_sec * 1_000_000_000 + time.tv_nsec
        };
        let (own_before, start) = (own_cpu_ns(), thread_cpu());
        while thread_cpu() - start < 30_000_000 {}
        assert!(own_cpu_ns() - own_before >= 30_000_000);
        // The counter of a running thread lags by up to a scheduler tick.
        let used = ProcessSample::take(std::process::id())
            .unwrap()
            .since(&before);
        assert!(used.cpu_ns >= 15_000_000, "{} ns", used.cpu_ns);
        let error = ProcessSample::take(u32::MAX).unwrap_err();
        assert!(
            error
                .to_string()
                .starts_with("no process 4294967295 to measure")
        );
    }
}
