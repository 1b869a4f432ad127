//! The command line.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use crate::Error;
use crate::compare::Compare;
use crate::cpus::Cpus;
use crate::load::Plan;
use crate::report::Watch;
use crate::workload::{Keys, Operation};

/// What `--help` prints.
pub const HELP: &str = "\
ringbench: light load generator for etcd-like servers (gRPC over HTTP/2 without TLS)

  ringbench put   [OPTION...]               write keys
  ringbench range [OPTION...]               read keys, one a call
  ringbench compare [put|range] --a 'COMMAND' --b 'COMMAND' [OPTION...]
                                            start two servers in turn, same load, ratios

Load
  --endpoint HOST:PORT[,...]  where to (127.0.0.1:2379); connections go to each in turn
  --clients N       clients, each with at most one call under way (1)
  --conns N         connections the clients share (1)
  --threads N       load threads (1); one is good for about a million calls per second
  --seconds S       stop after S seconds (10, unless --total is given)
  --total N         stop after N calls
  --rate R          open loop: R calls per second, latency timed from the moment each call was
                    meant to start, however late it did; without it a closed loop: each client
                    calls again as soon as it is answered

Keys and values
  --keys N          key space (100k): decimal numbers, zero-padded
  --key-size B      bytes of a key (16)
  --value-size B    bytes of a value (256)
  --random          keys at random instead of in order
  --seed N          the random keys' seed (1)
  --serializable    range: read the member's own state (linearizable without it)
  --prefill         range: write every key of the key space before the measurement

Measurement
  --server-pid PID  also the server's CPU time (exact, all threads), disk bytes and peak memory
  --data-dir DIR    also flushes and writes of the disk under DIR, by whatever process
  --pin-client CPUS keep ringbench to these CPUs (0 or 0,2-3)
  --json            one JSON object instead of a table

Compare (all options above but --endpoint, --server-pid and --data-dir)
  --a, --b COMMAND  shell commands; {dir} is replaced by an empty data directory, {port} by the
                    client port, {peer} by a second free port
  --runs N          runs of each (5), order alternating
  --port N          first port to use (23790)
  --tmp DIR         where data directories are made (system's temporary directory)
  --pin-server CPUS keep the servers to these CPUs

Numbers may end in k or M. Exit code: 0 every call succeeded, 1 not so, 2 bad arguments.

Examples
  How fast is one client, and what does the server pay for it?
    ringbench put --seconds 5 --server-pid $(pidof etcd)
  Throughput of 1000 clients on 100 connections:
    ringbench put --clients 1000 --conns 100 --total 1M
  Latency at half of that, without coordinated omission:
    ringbench put --clients 1000 --conns 100 --rate 10k --seconds 20
  Random reads of a million keys:
    ringbench range --prefill --keys 1M --random --clients 100 --conns 10
  Two servers, each on CPU 0, the load on CPU 1:
    ringbench compare put --clients 100 --conns 10 --pin-server 0 --pin-client 1 \\
      --a 'etcd --data-dir {dir} --listen-client-urls http://127.0.0.1:{port}
           --advertise-client-urls http://127.0.0.1:{port}
           --listen-peer-urls http://127.0.0.1:{peer}
           --initial-advertise-peer-urls http://127.0.0.1:{peer}
           --initial-cluster default=http://127.0.0.1:{peer}' \\
      --b '...'
";

/// Keys of the key space without `--keys`.
const KEYS_DEFAULT: u64 = 100_000;
const KEY_BYTES_DEFAULT: usize = 16;
const KEY_BYTES_MAX: usize = 64 * 1024;
const VALUE_BYTES_DEFAULT: usize = 256;
/// Beyond any server's limit; only so that sizes stay sane.
const VALUE_BYTES_MAX: usize = 1 << 30;
const SECONDS_DEFAULT: f64 = 10.0;
const CLIENTS_MAX: usize = 1_000_000;
/// A prefill is not measured: enough clients to make it fast.
const PREFILL_CLIENTS_MIN: usize = 256;
const PREFILL_CONNS_MIN: usize = 4;

/// What to do.
#[derive(Debug)]
pub enum Command {
    /// Print `HELP`.
    Help,
    /// Measure one running server.
    Run(Box<Run>),
    /// Measure two servers in turn.
    Compare(Box<Compare>),
}

/// One measurement.
#[derive(Debug, Clone, PartialEq)]
pub struct Run {
    /// The load.
    pub plan: Plan,
    /// What else to measure.
    pub watch: Watch,
    /// Write every key first.
    pub prefill: bool,
    /// Size of the values a prefill writes, bytes.
    pub value_bytes: usize,
    /// Where ringbench may run.
    pub client_cpus: Option<Cpus>,
    /// JSON instead of a table.
    pub json: bool,
}

impl Run {
    /// The load that writes every key once.
    pub fn prefill_plan(&self) -> Plan {
        let conns = self.plan.conns.max(PREFILL_CONNS_MIN);
        Plan {
            operation: Operation::Put {
                value_bytes: self.value_bytes,
            },
            keys: Keys {
                seed: None,
                ..self.plan.keys
            },
            clients: self.plan.clients.max(PREFILL_CLIENTS_MIN).max(conns),
            conns,
            threads: 1,
            total: Some(self.plan.keys.count),
            time: None,
            rate: None,
            endpoints: self.plan.endpoints.clone(),
        }
    }
}

/// Options as given, before they are checked against each other.
#[derive(Debug, Default)]
struct Options {
    words: Vec<String>,
    endpoints: Option<String>,
    clients: Option<usize>,
    conns: Option<usize>,
    threads: Option<usize>,
    seconds: Option<f64>,
    total: Option<u64>,
    rate: Option<f64>,
    keys: Option<u64>,
    key_bytes: Option<usize>,
    value_bytes: Option<usize>,
    random: bool,
    seed: Option<u64>,
    serializable: bool,
    prefill: bool,
    server_pid: Option<u32>,
    data_dir: Option<PathBuf>,
    client_cpus: Option<Cpus>,
    json: bool,
    command_a: Option<String>,
    command_b: Option<String>,
    runs: Option<usize>,
    port: Option<u16>,
    tmp: Option<PathBuf>,
    server_cpus: Option<Cpus>,
}

/// Parses the arguments after the program's name.
///
/// # Errors
/// The first thing that is wrong.
pub fn parse(args: impl Iterator<Item = String>) -> Result<Command, Error> {
    let Some(options) = Options::read(args)? else {
        return Ok(Command::Help);
    };
    let words: Vec<&str> = options.words.iter().map(String::as_str).collect();
    let (compare, put) = match words[..] {
        ["put"] => (false, true),
        ["range"] => (false, false),
        ["compare"] | ["compare", "put"] => (true, true),
        ["compare", "range"] => (true, false),
        [] => return Err(Error::new("say put, range or compare")),
        _ => return Err(Error::new(format!("{:?} is no command", words.join(" ")))),
    };
    options.check_use(compare, put)?;
    let run = options.run(put)?;
    if !compare {
        return Ok(Command::Run(Box::new(run)));
    }
    let missing = |name| Error::new(format!("compare needs {name} 'COMMAND'"));
    Ok(Command::Compare(Box::new(Compare {
        run,
        commands: [
            options.command_a.ok_or_else(|| missing("--a"))?,
            options.command_b.ok_or_else(|| missing("--b"))?,
        ],
        runs: options.runs.unwrap_or(5),
        port: options.port.unwrap_or(23_790),
        tmp: options.tmp.unwrap_or_else(std::env::temp_dir),
        server_cpus: options.server_cpus,
    })))
}

impl Options {
    /// `None`: help is wanted.
    fn read(mut args: impl Iterator<Item = String>) -> Result<Option<Options>, Error> {
        let mut options = Options::default();
        while let Some(arg) = args.next() {
            if arg == "--help" || arg == "-h" || arg == "help" {
                return Ok(None);
            }
            if !arg.starts_with('-') {
                options.words.push(arg);
                continue;
            }
            let (name, attached) = match arg.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (arg.as_str(), None),
            };
            if let Some(switch) = options.switch(name) {
                if attached.is_some() {
                    return Err(Error::new(format!("{name} takes no value")));
                }
                *switch = true;
                continue;
            }
            let needed = || Error::new(format!("{name} needs a value"));
            let mut value = || attached.clone().or_else(|| args.next()).ok_or_else(needed);
            options.set(name, &mut value)?;
        }
        Ok(Some(options))
    }

    fn switch(&mut self, name: &str) -> Option<&mut bool> {
        match name {
            "--random" => Some(&mut self.random),
            "--serializable" => Some(&mut self.serializable),
            "--prefill" => Some(&mut self.prefill),
            "--json" => Some(&mut self.json),
            _ => None,
        }
    }

    fn set(
        &mut self,
        name: &str,
        value: &mut dyn FnMut() -> Result<String, Error>,
    ) -> Result<(), Error> {
        match name {
            "--endpoint" => self.endpoints = Some(value()?),
            "--clients" => self.clients = Some(count(name, &value()?)?),
            "--conns" => self.conns = Some(count(name, &value()?)?),
            "--threads" => self.threads = Some(count(name, &value()?)?),
            "--seconds" => self.seconds = Some(positive(name, &value()?)?),
            "--total" => self.total = Some(count(name, &value()?)? as u64),
            "--rate" => self.rate = Some(positive(name, &value()?)?),
            "--keys" => self.keys = Some(count(name, &value()?)? as u64),
            "--key-size" => self.key_bytes = Some(count(name, &value()?)?),
            "--value-size" => self.value_bytes = Some(scaled(name, &value()?)? as usize),
            "--seed" => self.seed = Some(plain(name, &value()?)?),
            "--server-pid" => self.server_pid = Some(plain(name, &value()?)?),
            "--data-dir" => self.data_dir = Some(value()?.into()),
            "--pin-client" => self.client_cpus = Some(Cpus::parse(&value()?)?),
            "--a" => self.command_a = Some(value()?),
            "--b" => self.command_b = Some(value()?),
            "--runs" => self.runs = Some(count(name, &value()?)?),
            "--port" => self.port = Some(plain(name, &value()?)?),
            "--tmp" => self.tmp = Some(value()?.into()),
            "--pin-server" => self.server_cpus = Some(Cpus::parse(&value()?)?),
            _ => return Err(Error::new(format!("{name} is no option"))),
        }
        Ok(())
    }

    /// An option that would have no effect is an error: the figures are not what was meant.
    fn check_use(&self, compare: bool, put: bool) -> Result<(), Error> {
        let compare_only = [
            ("--a", self.command_a.is_some()),
            ("--b", self.command_b.is_some()),
            ("--runs", self.runs.is_some()),
            ("--port", self.port.is_some()),
            ("--tmp", self.tmp.is_some()),
            ("--pin-server", self.server_cpus.is_some()),
        ];
        let run_only = [
            ("--endpoint", self.endpoints.is_some()),
            ("--server-pid", self.server_pid.is_some()),
            ("--data-dir", self.data_dir.is_some()),
        ];
        let range_only = [
            ("--serializable", self.serializable),
            ("--prefill", self.prefill),
        ];
        let given = |options: &[(&'static str, bool)]| {
            options
                .iter()
                .find(|(_, given)| *given)
                .map(|(name, _)| *name)
        };
        let misused = |name, with| Error::new(format!("{name} goes with {with} only"));
        if let Some(name) = given(&compare_only).filter(|_| !compare) {
            return Err(misused(name, "compare"));
        }
        if let Some(name) = given(&run_only).filter(|_| compare) {
            return Err(misused(name, "put and range"));
        }
        if let Some(name) = given(&range_only).filter(|_| put) {
            return Err(misused(name, "range"));
        }
        if self.seed.is_some() && !self.random {
            return Err(misused("--seed", "--random"));
        }
        if self.value_bytes.is_some() && !put && !self.prefill {
            return Err(misused("--value-size", "put or --prefill"));
        }
        Ok(())
    }

    fn run(&self, put: bool) -> Result<Run, Error> {
        let value_bytes = self.value_bytes.unwrap_or(VALUE_BYTES_DEFAULT);
        if value_bytes > VALUE_BYTES_MAX {
            return Err(Error::new(format!(
                "--value-size is at most {VALUE_BYTES_MAX}"
            )));
        }
        let operation = match put {
            true => Operation::Put { value_bytes },
            false => Operation::Range {
                serializable: self.serializable,
            },
        };
        let (threads, conns) = (self.threads.unwrap_or(1), self.conns.unwrap_or(1));
        let clients = self.clients.unwrap_or(1);
        if clients > CLIENTS_MAX {
            return Err(Error::new(format!("--clients is at most {CLIENTS_MAX}")));
        }
        if conns > clients {
            return Err(Error::new(format!(
                "{conns} connections need as many --clients at least"
            )));
        }
        if threads > conns {
            return Err(Error::new(format!(
                "{threads} threads need as many --conns at least"
            )));
        }
        let seconds = self
            .seconds
            .or(self.total.is_none().then_some(SECONDS_DEFAULT));
        let time = seconds.map(Duration::try_from_secs_f64).transpose();
        Ok(Run {
            plan: Plan {
                endpoints: endpoints(self.endpoints.as_deref().unwrap_or("127.0.0.1:2379"))?,
                conns,
                clients,
                threads,
                operation,
                keys: self.key_space()?,
                total: self.total,
                time: time.map_err(|error| Error::new(format!("--seconds: {error}")))?,
                rate: self.rate,
            },
            watch: Watch {
                server_pid: self.server_pid,
                data_dir: self.data_dir.clone(),
            },
            prefill: self.prefill,
            value_bytes,
            client_cpus: self.client_cpus.clone(),
            json: self.json,
        })
    }

    fn key_space(&self) -> Result<Keys, Error> {
        let count = self.keys.unwrap_or(KEYS_DEFAULT);
        let bytes = self.key_bytes.unwrap_or(KEY_BYTES_DEFAULT);
        let digits = (count - 1).to_string().len();
        if !(digits..=KEY_BYTES_MAX).contains(&bytes) {
            let range = format!("{digits} to {KEY_BYTES_MAX}");
            return Err(Error::new(format!(
                "--key-size for {count} keys is {range} bytes"
            )));
        }
        Ok(Keys {
            count,
            bytes,
            seed: self.random.then(|| self.seed.unwrap_or(1)),
        })
    }
}

fn endpoints(list: &str) -> Result<Vec<String>, Error> {
    let endpoint = |text: &str| {
        let text = text
            .strip_prefix("http://")
            .unwrap_or(text)
            .trim_end_matches('/');
        let port = text.rsplit_once(':').map(|(_, port)| port.parse::<u16>());
        match port {
            Some(Ok(_)) => Ok(text.to_owned()),
            _ => Err(Error::new(format!("--endpoint {text:?} is not HOST:PORT"))),
        }
    };
    list.split(',').map(endpoint).collect()
}

fn plain<T: FromStr>(name: &str, text: &str) -> Result<T, Error> {
    text.parse()
        .map_err(|_| Error::new(format!("{name} {text:?} is no number it takes")))
}

/// A whole number that may end in k or M.
fn scaled(name: &str, text: &str) -> Result<u64, Error> {
    let (digits, unit) = match text.as_bytes().last() {
        Some(b'k') => (&text[..text.len() - 1], 1_000),
        Some(b'M') => (&text[..text.len() - 1], 1_000_000),
        _ => (text, 1),
    };
    let number = digits
        .parse::<u64>()
        .ok()
        .and_then(|number| number.checked_mul(unit));
    number.ok_or_else(|| Error::new(format!("{name} {text:?} is no whole number")))
}

fn count(name: &str, text: &str) -> Result<usize, Error> {
    match scaled(name, text)? {
        0 => Err(Error::new(format!("{name} is at least 1"))),
        number => Ok(number as usize),
    }
}

fn positive(name: &str, text: &str) -> Result<f64, Error> {
    let number = match text.parse::<f64>() {
        Ok(number) => number,
        Err(_) => scaled(name, text)? as f64,
    };
    match number.is_finite() && number > 0.0 {
        true => Ok(number),
        false => Err(Error::new(format!("{name} is more than 0"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Command, String> {
        parse(line.split(' ').map(str::to_owned)).map_err(|error| error.to_string())
    }

    fn run(line: &str) -> Run {
        match parsed(line) {
            Ok(Command::Run(run)) => *run,
            other => panic!("{line}: {other:?}"),
        }
    }

    #[test]
    fn a_load_in_full() {
        let run = run(
            "range --endpoint=http://a:1,b:2 --clients 1k --conns 100 --threads 2 \
                       --total 1M --rate 2.5 --keys 1k --key-size 3 --random --seed 9 \
                       --serializable --prefill --value-size 0 --json",
        );
        assert_eq!(run.plan.endpoints, ["a:1", "b:2"]);
        assert_eq!(
            (run.plan.clients, run.plan.conns, run.plan.threads),
            (1000, 100, 2)
        );
        assert_eq!(
            (run.plan.total, run.plan.time, run.plan.rate),
            (Some(1_000_000), None, Some(2.5))
        );
        assert_eq!(
            run.plan.keys,
            Keys {
                count: 1000,
                bytes: 3,
                seed: Some(9)
            }
        );
        assert_eq!(run.plan.operation, Operation::Range { serializable: true });
        assert!(run.prefill);
        assert!(run.json);
        let prefill = run.prefill_plan();
        assert_eq!(prefill.operation, Operation::Put { value_bytes: 0 });
        assert_eq!(
            (prefill.total, prefill.keys.seed, prefill.rate),
            (Some(1000), None, None)
        );
    }

    #[test]
    fn defaults() {
        let run = run("put");
        assert_eq!(run.plan.operation, Operation::Put { value_bytes: 256 });
        assert_eq!(
            (run.plan.total, run.plan.time),
            (None, Some(Duration::from_secs(10)))
        );
        assert_eq!(
            run.plan.keys,
            Keys {
                count: 100_000,
                bytes: 16,
                seed: None
            }
        );
    }

    #[test]
    fn help_wins() {
        assert!(parsed("put --nonsense --help").is_err());
        assert!(matches!(parsed("put --help --nonsense"), Ok(Command::Help)));
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for (line, text) in [
            ("", "\"\" is no command"),
            ("get", "\"get\" is no command"),
            ("put --clients", "--clients needs a value"),
            ("put --clients x", "--clients \"x\" is no whole number"),
            ("put --clients 0", "--clients is at least 1"),
            (
                "put --conns 2",
                "2 connections need as many --clients at least",
            ),
            ("put --threads 2", "2 threads need as many --conns at least"),
            (
                "put --keys 101 --key-size 2",
                "--key-size for 101 keys is 3 to 65536 bytes",
            ),
            ("put --json=1", "--json takes no value"),
            ("put --rate 0", "--rate is more than 0"),
            ("put --seed 1", "--seed goes with --random only"),
            ("put --prefill", "--prefill goes with range only"),
            (
                "range --value-size 1",
                "--value-size goes with put or --prefill only",
            ),
            ("put --runs 2", "--runs goes with compare only"),
            (
                "compare --server-pid 1",
                "--server-pid goes with put and range only",
            ),
            ("compare --a x", "compare needs --b 'COMMAND'"),
            ("put --endpoint a", "--endpoint \"a\" is not HOST:PORT"),
            ("put --speed 3", "--speed is no option"),
        ] {
            assert_eq!(parsed(line).unwrap_err(), text, "{line}");
        }
    }
}
