//! ringkv: the server, with etcd's command line.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use ringkv_net::config::{self, Command, ConfigError};
use ringkv_net::{log, probe, server};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Exit code for a command line that is none, as Go's.
const USAGE: u8 = 2;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args_os()
        .skip(1)
        .map(|arg| arg.to_string_lossy().into_owned())
        .collect();
    // Variables that are not text are none of ours.
    let env = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    match config::parse(&args, env) {
        Ok(Command::Version) => {
            print!("{}", config::version_text());
            ExitCode::SUCCESS
        }
        Ok(Command::Help) => {
            config::print_help();
            ExitCode::SUCCESS
        }
        Ok(Command::Run(config, warnings)) => run(&args, &config, &warnings),
        Err(ConfigError::Usage(text)) => {
            config::print_usage(&text);
            ExitCode::from(USAGE)
        }
        Err(ConfigError::Invalid(reason)) => {
            log::error!("failed to verify flags", "error" => reason);
            ExitCode::FAILURE
        }
    }
}

fn run(args: &[String], config: &config::Config, warnings: &[config::Warning]) -> ExitCode {
    if let Err(error) = log::init(config.log_level, config.log_format, &config.log_outputs) {
        log::error!("failed to open log outputs", "error" => error.to_string());
        return ExitCode::FAILURE;
    }
    log::info!("Running: ", "args" => args.to_vec());
    for warning in warnings {
        log::warn!(&warning.message, "name" => warning.about.as_str());
    }
    if let Err(unfit) = probe::check() {
        log::error!("this machine cannot run ringkv", "error" => unfit.to_string());
        return ExitCode::FAILURE;
    }
    server::run(config)
}
