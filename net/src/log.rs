//! Log lines as etcd writes them: one JSON object a line, or its console format.
//!
//! Global, set once at start; every core writes for itself, one `write(2)` a line and no lock, so
//! lines never mix. A line is built only if its level passes. Deliberately not here: rotation
//! (journald's or the container's job) and sampling.
//!
//! ```
//! use ringkv_net::log;
//! log::info!("ready to serve client requests", "address" => "127.0.0.1:2379", "shards" => 2);
//! ```

use core::sync::atomic::{AtomicU8, Ordering};
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::sync::OnceLock;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::Value;

pub use crate::{log_debug as debug, log_error as error, log_info as info, log_warn as warn};

/// How much a line matters, in rising order.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[repr(u8)]
pub enum Level {
    /// Details of each step.
    Debug,
    /// What an operator may want to know.
    Info,
    /// What an operator should look at.
    Warn,
    /// What needs an operator.
    Error,
    /// The process ends with this line.
    Fatal,
}

impl Level {
    /// The name in lines and in `--log-level`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Debug => "debug",
            Self::Info => "info",
            Self::Warn => "warn",
            Self::Error => "error",
            Self::Fatal => "fatal",
        }
    }

    /// Reads `--log-level`; zap's `dpanic` and `panic` count as fatal.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        match name.to_ascii_lowercase().as_str() {
            "debug" => Some(Self::Debug),
            "info" | "" => Some(Self::Info),
            "warn" | "warning" => Some(Self::Warn),
            "error" => Some(Self::Error),
            "dpanic" | "panic" | "fatal" => Some(Self::Fatal),
            _ => None,
        }
    }
}

/// How a line looks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Format {
    /// One JSON object.
    Json,
    /// Tab-separated, fields as JSON at the end.
    Console,
}

struct Sink {
    format: Format,
    outputs: Vec<File>,
}

static LEVEL: AtomicU8 = AtomicU8::new(Level::Info as u8);
static SINK: OnceLock<Sink> = OnceLock::new();

/// Sets where and how lines are written; before it, JSON goes to stderr. The first call counts.
///
/// `outputs` are `default`, `stderr`, `stdout` or paths of files to append to.
///
/// # Errors
/// The first output that cannot be opened.
pub fn init(level: Level, format: Format, outputs: &[String]) -> io::Result<()> {
    let mut files = Vec::with_capacity(outputs.len());
    for output in outputs {
        files.push(match output.as_str() {
            "default" | "stderr" => File::from(io::stderr().as_fd().try_clone_to_owned()?),
            "stdout" => File::from(io::stdout().as_fd().try_clone_to_owned()?),
            path => OpenOptions::new().create(true).append(true).open(path)?,
        });
    }
    // Relaxed: a line more or less around start-up matters to nobody.
    LEVEL.store(level as u8, Ordering::Relaxed);
    let _ = SINK.set(Sink {
        format,
        outputs: files,
    });
    Ok(())
}

/// Whether lines of `level` are written.
#[must_use]
pub fn enabled(level: Level) -> bool {
    level as u8 >= LEVEL.load(Ordering::Relaxed)
}

/// Writes one line. Called through the macros, which check [`enabled`] first.
///
/// A line that cannot be written is lost: there is nowhere to say so.
pub fn write(level: Level, caller: &str, message: &str, fields: &[(&str, Value)]) {
    let since_epoch = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    match SINK.get() {
        Some(sink) => {
            let line = render(sink.format, level, since_epoch, caller, message, fields);
            for mut output in &sink.outputs {
                let _ = output.write(&line);
            }
        }
        None => {
            let line = render(Format::Json, level, since_epoch, caller, message, fields);
            let _ = rustix::io::write(io::stderr().as_fd(), &line);
        }
    }
}

fn render(
    format: Format,
    level: Level,
    since_epoch: Duration,
    caller: &str,
    message: &str,
    fields: &[(&str, Value)],
) -> Vec<u8> {
    let mut line = Vec::with_capacity(256);
    let ts = timestamp(since_epoch);
    match format {
        Format::Json => {
            put(&mut line, b"{\"level\":", &level.name().into());
            put(&mut line, b",\"ts\":", &ts.into());
            put(&mut line, b",\"caller\":", &caller.into());
            put(&mut line, b",\"msg\":", &message.into());
            for (key, value) in fields {
                put(&mut line, b",", &(*key).into());
                put(&mut line, b":", value);
            }
            line.extend_from_slice(b"}\n");
        }
        Format::Console => {
            line.extend_from_slice(
                format!("{ts}\t{}\t{caller}\t{message}", level.name()).as_bytes(),
            );
            for (at, (key, value)) in fields.iter().enumerate() {
                put(
                    &mut line,
                    if at == 0 { b"\t{" } else { b", " },
                    &(*key).into(),
                );
                put(&mut line, b": ", value);
            }
            line.extend_from_slice(if fields.is_empty() { b"\n" } else { b"}\n" });
        }
    }
    line
}

fn put(line: &mut Vec<u8>, before: &[u8], value: &Value) {
    line.extend_from_slice(before);
    serde_json::to_writer(line, value).expect("a JSON value goes into memory");
}

/// Go's `2006-01-02T15:04:05.999999Z0700` in UTC: microseconds without trailing zeros.
fn timestamp(since_epoch: Duration) -> String {
    let (year, month, day) = civil_date(since_epoch.as_secs() / 86_400);
    let second = since_epoch.as_secs() % 86_400;
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    let mut text = format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}");
    let micros = since_epoch.subsec_micros();
    if micros > 0 {
        let digits = format!(".{micros:06}");
        text.push_str(digits.trim_end_matches('0'));
    }
    text.push('Z');
    text
}

/// Year, month and day of a day counted from 1970-01-01, in the Gregorian calendar.
///
/// Counts in eras of 400 years that begin on 1 March, so that leap days come last
/// (Howard Hinnant, "chrono-compatible low-level date algorithms").
const fn civil_date(days_since_epoch: u64) -> (u64, u64, u64) {
    let days = days_since_epoch + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 {
        month_from_march + 3
    } else {
        month_from_march - 9
    };
    let year = era * 400 + year_of_era + if month <= 2 { 1 } else { 0 };
    (year, month, day)
}

/// A duration as Go prints it, in whole units down to the nanosecond: `1.5s`, `20ms`, `2h0m0s`.
#[must_use]
pub fn go_duration(duration: Duration) -> String {
    let nanos = duration.as_nanos();
    let scaled = |unit: u128, digits: usize, name: &str| {
        let fraction = format!("{:0digits$}", nanos % unit);
        let fraction = fraction.trim_end_matches('0');
        let dot = if fraction.is_empty() { "" } else { "." };
        format!("{}{dot}{fraction}{name}", nanos / unit)
    };
    match nanos {
        0 => "0s".to_owned(),
        1..1_000 => format!("{nanos}ns"),
        1_000..1_000_000 => scaled(1_000, 3, "µs"),
        1_000_000..1_000_000_000 => scaled(1_000_000, 6, "ms"),
        _ => {
            let secs = duration.as_secs();
            let below_minute = Duration::new(secs % 60, duration.subsec_nanos());
            let nanos = below_minute.as_nanos();
            let fraction = format!("{:09}", nanos % 1_000_000_000);
            let fraction = fraction.trim_end_matches('0');
            let dot = if fraction.is_empty() { "" } else { "." };
            let seconds = format!("{}{dot}{fraction}s", nanos / 1_000_000_000);
            match (secs / 3600, secs / 60 % 60) {
                (0, 0) => seconds,
                (0, minutes) => format!("{minutes}m{seconds}"),
                (hours, minutes) => format!("{hours}h{minutes}m{seconds}"),
            }
        }
    }
}

/// Writes a line at a level given by name; the other macros are this one.
#[doc(hidden)]
#[macro_export]
macro_rules! log_line {
    ($level:ident, $message:expr $(, $key:literal => $value:expr)* $(,)?) => {
        if $crate::log::enabled($crate::log::Level::$level) {
            $crate::log::write(
                $crate::log::Level::$level,
                concat!(file!(), ":", line!()),
                $message,
                &[$(($key, ::serde_json::Value::from($value))),*],
            );
        }
    };
}

/// Logs details of a step.
#[macro_export]
macro_rules! log_debug {
    ($($line:tt)*) => { $crate::log_line!(Debug, $($line)*) };
}

/// Logs what an operator may want to know.
#[macro_export]
macro_rules! log_info {
    ($($line:tt)*) => { $crate::log_line!(Info, $($line)*) };
}

/// Logs what an operator should look at.
#[macro_export]
macro_rules! log_warn {
    ($($line:tt)*) => { $crate::log_line!(Warn, $($line)*) };
}

/// Logs what needs an operator.
#[macro_export]
macro_rules! log_error {
    ($($line:tt)*) => { $crate::log_line!(Error, $($line)*) };
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT: Duration = Duration::new(1_136_214_245, 120_000_000);

    fn fields() -> [(&'static str, Value); 3] {
        [
            ("z", "quote \" and \n".into()),
            ("a", 7.into()),
            ("list", vec!["x", "y"].into()),
        ]
    }

    #[test]
    fn a_json_line_has_etcds_keys_first_and_fields_in_order() {
        let line = render(
            Format::Json,
            Level::Info,
            AT,
            "net/src/x.rs:1",
            "hello",
            &fields(),
        );
        assert_eq!(
            String::from_utf8(line).unwrap(),
            concat!(
                r#"{"level":"info","ts":"2006-01-02T15:04:05.12Z","caller":"net/src/x.rs:1","#,
                r#""msg":"hello","z":"quote \" and \n","a":7,"list":["x","y"]}"#,
                "\n"
            )
        );
    }

    #[test]
    fn a_console_line_is_separated_by_tabs() {
        let line = render(
            Format::Console,
            Level::Warn,
            AT,
            "x.rs:1",
            "hello",
            &fields()[1..2],
        );
        let text = String::from_utf8(line).unwrap();
        assert_eq!(
            text,
            "2006-01-02T15:04:05.12Z\twarn\tx.rs:1\thello\t{\"a\": 7}\n"
        );
        let line = render(Format::Console, Level::Warn, AT, "x.rs:1", "hello", &[]);
        assert!(line.ends_with(b"\thello\n"));
    }

    #[test]
    fn timestamps_are_gos() {
        assert_eq!(timestamp(Duration::ZERO), "1970-01-01T00:00:00Z");
        assert_eq!(
            timestamp(Duration::new(951_782_400, 1_000)),
            "2000-02-29T00:00:00.000001Z"
        );
        assert_eq!(
            timestamp(Duration::from_secs(4_107_542_399)),
            "2100-02-28T23:59:59Z"
        );
        assert_eq!(
            timestamp(Duration::from_secs(4_107_542_400)),
            "2100-03-01T00:00:00Z"
        );
    }

    #[test]
    fn durations_are_gos() {
        let cases = [
            (Duration::ZERO, "0s"),
            (Duration::from_nanos(15), "15ns"),
            (Duration::from_nanos(1_500), "1.5µs"),
            (Duration::from_millis(100), "100ms"),
            (Duration::from_micros(1_050), "1.05ms"),
            (Duration::from_millis(1_500), "1.5s"),
            (Duration::from_secs(60), "1m0s"),
            (Duration::from_secs(7200), "2h0m0s"),
        ];
        for (duration, text) in cases {
            assert_eq!(go_duration(duration), text);
        }
    }

    #[test]
    fn levels_filter_in_order() {
        assert!(Level::Debug < Level::Info && Level::Info < Level::Warn);
        assert!(enabled(Level::Info) && !enabled(Level::Debug));
        assert_eq!(Level::parse("WARN"), Some(Level::Warn));
        assert_eq!(Level::parse("loud"), None);
    }
}
