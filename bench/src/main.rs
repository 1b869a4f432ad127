//! `ringbench`: a load generator for etcd-like servers, light enough not to be the limit.
//!
//! One process, one load thread by default; each thread owns its connections and everything about
//! them, the main thread measures. From the wire upwards: `huffman` and `hpack` (header blocks),
//! `frame` (frames), `session` (one HTTP/2 connection, sans-IO), `link` (its socket), `workload`
//! (bodies), `pace` (start times), `load` (the loop), `proc` (what the kernel counted), `report`
//! (figures of a run), `compare` (two servers in turn), `args`.
//! Not here: watches, leases, transactions, TLS, authentication.

#![forbid(unsafe_code)]

mod args;
mod compare;
mod cpus;
mod frame;
mod hpack;
mod huffman;
mod link;
mod load;
mod pace;
mod proc;
mod report;
mod session;
mod workload;

use std::fmt;
use std::process::ExitCode;

use crate::args::{Command, Run};

/// Why `ringbench` cannot go on: one line for a person.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error(String);

impl Error {
    fn new(text: impl Into<String>) -> Error {
        Error(text.into())
    }
}

impl fmt::Display for Error {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

/// Exit codes: 0 all calls succeeded, 1 some failed or nothing could be measured, 2 bad arguments.
fn main() -> ExitCode {
    let command = match args::parse(std::env::args().skip(1)) {
        Ok(command) => command,
        Err(error) => {
            eprintln!("ringbench: {error} (ringbench --help explains)");
            return ExitCode::from(2);
        }
    };
    let clean = match command {
        Command::Help => {
            print!("{}", args::HELP);
            Ok(true)
        }
        Command::Run(run) => execute(&run),
        Command::Compare(compare) => compare::execute(&compare),
    };
    match clean {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("ringbench: {error}");
            ExitCode::FAILURE
        }
    }
}

/// One measurement; whether it was clean.
fn execute(run: &Run) -> Result<bool, Error> {
    if let Some(cpus) = &run.client_cpus {
        cpus.pin_this_thread()?;
    }
    if run.prefill {
        prefill(run)?;
    }
    let report = report::measure(&run.plan, &run.watch)?;
    if run.json {
        println!("{}", report.json(&run.plan));
    } else {
        print!("{}", report.table(&run.plan));
    }
    Ok(report.is_clean())
}

/// Writes every key of the run's key space once.
fn prefill(run: &Run) -> Result<(), Error> {
    let plan = run.prefill_plan();
    let report = report::measure(&plan, &report::Watch::default())?;
    match report.first_problem() {
        Some(problem) => Err(Error::new(format!("prefill: {problem}"))),
        None => Ok(()),
    }
}
