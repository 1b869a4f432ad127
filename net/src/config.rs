//! Command line and environment to one checked [`Config`], with etcd's rules, texts and exit codes.
//!
//! Read once by the main thread before anything runs; immutable afterwards. Flags win over `ETCD_`
//! variables, the last of a repeated flag wins. Deliberately not here: config files, DNS and
//! discovery (refused), and any look at the disk or the network.

use core::time::Duration;
use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::log;
use settings::Settings;
use value::Url;

pub mod flags;
mod help;
mod settings;
pub mod value;

pub use help::{print_help, print_usage, version_text};

/// Whether the cluster is started or joined.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ClusterState {
    /// All members start it together.
    New,
    /// It runs, and this member was added to it.
    Existing,
}

/// What automatic compaction keeps.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AutoCompaction {
    /// Everything: it is off.
    Off,
    /// The history of this time.
    Periodic(Duration),
    /// This many revisions.
    Revision(u64),
}

/// All settings of a server that have an effect.
#[derive(Clone, Debug)]
#[allow(
    missing_docs,
    reason = "each field is the flag of the same name, see flags.rs"
)]
pub struct Config {
    pub name: String,
    /// `${name}.etcd` if the flag was empty.
    pub data_dir: PathBuf,
    /// Entries.
    pub snapshot_count: u64,
    /// Entries.
    pub snapshot_catchup_entries: u64,
    pub heartbeat_interval: Duration,
    pub election_timeout: Duration,
    /// Bytes, 0 for the default.
    pub quota_backend_bytes: i64,
    pub max_txn_ops: u64,
    /// Bytes.
    pub max_request_bytes: u64,
    pub max_concurrent_streams: u32,
    /// `None` for no pings.
    pub grpc_keepalive_interval: Option<Duration>,
    /// `None` if no pings are sent.
    pub grpc_keepalive_timeout: Option<Duration>,
    pub socket_reuse_port: bool,
    pub socket_reuse_address: bool,
    pub listen_peer_urls: Vec<Url>,
    pub listen_client_urls: Vec<Url>,
    pub listen_client_http_urls: Vec<Url>,
    pub listen_metrics_urls: Vec<Url>,
    pub initial_advertise_peer_urls: Vec<Url>,
    pub advertise_client_urls: Vec<Url>,
    /// Member names and their peer URLs, sorted by name.
    pub initial_cluster: BTreeMap<String, Vec<Url>>,
    pub initial_cluster_state: ClusterState,
    pub initial_cluster_token: String,
    pub strict_reconfig_check: bool,
    pub pre_vote: bool,
    pub auto_compaction: AutoCompaction,
    pub max_learners: i64,
    /// Origins, `*` for all.
    pub cors: Vec<String>,
    /// Host names, `*` for all.
    pub host_whitelist: Vec<String>,
    /// `--metrics=extensive`.
    pub extensive_metrics: bool,
    pub log_level: log::Level,
    pub log_format: log::Format,
    pub log_outputs: Vec<String>,
    pub warning_unary_request_duration: Duration,
    pub warning_apply_duration: Duration,
    /// Revisions.
    pub compaction_batch_limit: usize,
    pub compaction_sleep_interval: Duration,
    pub watch_progress_notify_interval: Duration,
    /// Every gate with its setting, by name.
    pub feature_gates: Vec<(&'static str, bool)>,
    pub unsafe_no_fsync: bool,
    /// `None` for one on each core.
    pub shards: Option<usize>,
    /// Names of the flags that were given, by command line or environment.
    pub explicit: Vec<&'static str>,
}

/// What a command line asks for.
#[derive(Debug)]
pub enum Command {
    /// Run a server; the lines are to be logged as warnings first.
    Run(Box<Config>, Vec<Warning>),
    /// Print the version.
    Version,
    /// Print all flags.
    Help,
}

/// Something to log once the logger is set up.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Warning {
    /// The message.
    pub message: String,
    /// Flag or variable that it is about; empty for none.
    pub about: String,
}

/// Why there is no [`Config`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ConfigError {
    /// The command line is no command line: text for stderr, with the usage; exit code 2.
    Usage(String),
    /// A setting cannot be: to be logged; exit code 1.
    Invalid(String),
}

/// Maximum of `--election-timeout`, milliseconds.
const ELECTION_MS_MAX: u64 = 50_000;

/// Reads `args` (without the program's name) and `env`.
///
/// # Errors
/// With etcd's texts.
pub fn parse(
    args: &[String],
    env: impl IntoIterator<Item = (String, String)>,
) -> Result<Command, ConfigError> {
    let mut settings = Settings::default();
    let rest = settings.read_args(args)?;
    if settings.help {
        return Ok(Command::Help);
    }
    if let Some(word) = rest {
        return Err(ConfigError::Invalid(format!(
            "{word:?} is not a valid flag"
        )));
    }
    if settings.bool("version") {
        return Ok(Command::Version);
    }
    settings.read_env(env).map_err(ConfigError::Invalid)?;
    settings
        .refuse_unsupported()
        .map_err(ConfigError::Invalid)?;
    let config = settings.config().map_err(ConfigError::Invalid)?;
    config.validate().map_err(ConfigError::Invalid)?;
    Ok(Command::Run(Box::new(config), settings.warnings))
}

impl Config {
    /// Whether a feature gate is on.
    #[must_use]
    pub fn gate(&self, name: &str) -> bool {
        self.feature_gates.contains(&(name, true))
    }

    /// Checks settings against each other, as etcd does before it looks at the disk.
    fn validate(&self) -> Result<(), String> {
        for urls in [
            &self.listen_peer_urls,
            &self.listen_client_urls,
            &self.listen_client_http_urls,
            &self.listen_metrics_urls,
        ] {
            check_bind_urls(urls)?;
        }
        check_host_urls(&self.initial_advertise_peer_urls).map_err(|reason| {
            let urls = join(&self.initial_advertise_peer_urls);
            format!(r#"--initial-advertise-peer-urls {urls:?} must be "host:port" ({reason})"#)
        })?;
        check_host_urls(&self.advertise_client_urls).map_err(|reason| {
            let urls = join(&self.advertise_client_urls);
            let forms = r#""host:port", "unix:/path/to/socket" or "unixs:/path/to/socket""#;
            format!("--advertise-client-urls {urls:?} must be in the format {forms} ({reason})")
        })?;
        self.validate_times()?;
        if !self.listen_client_urls.is_empty() && self.advertise_client_urls.is_empty() {
            let message = "--advertise-client-urls is required when --listen-client-urls is set \
                           explicitly";
            return Err(message.to_owned());
        }
        if self.gate("LeaseCheckpointPersist") && !self.gate("LeaseCheckpoint") {
            let message = "enabling feature gate LeaseCheckpointPersist requires enabling feature \
                           gate LeaseCheckpoint";
            return Err(message.to_owned());
        }
        Ok(())
    }

    fn validate_times(&self) -> Result<(), String> {
        let (tick, election) = (
            self.heartbeat_interval.as_millis(),
            self.election_timeout.as_millis(),
        );
        if tick == 0 {
            return Err("--heartbeat-interval must be >0 (set to 0ms)".to_owned());
        }
        if election == 0 {
            return Err("--election-timeout must be >0 (set to 0ms)".to_owned());
        }
        if 5 * tick > election {
            return Err(format!(
                "--election-timeout[{election}ms] should be at least as 5 times as \
                 --heartbeat-interval[{tick}ms]"
            ));
        }
        if election > u128::from(ELECTION_MS_MAX) {
            return Err(format!(
                "--election-timeout[{election}ms] is too long, and should be set less than \
                 {ELECTION_MS_MAX}ms"
            ));
        }
        Ok(())
    }

    /// Checks the initial cluster; to be called only if the data directory holds no member yet.
    ///
    /// # Errors
    /// With etcd's texts.
    pub fn verify_bootstrap(&self) -> Result<(), String> {
        let Some(urls) = self.initial_cluster.get(&self.name) else {
            let name = &self.name;
            let place = "in the initial cluster configuration";
            return Err(format!("couldn't find local name {name:?} {place}"));
        };
        if self.initial_cluster_state == ClusterState::New {
            self.advertise_matches(urls)?;
        }
        let mut all: Vec<&Url> = self.initial_cluster.values().flatten().collect();
        all.sort();
        if all.windows(2).any(|pair| pair[0] == pair[1]) {
            return Err(format!(
                "initial cluster {} has duplicate url",
                self.initial_cluster_text()
            ));
        }
        Ok(())
    }

    /// `--initial-cluster` in its canonical form: pairs sorted as text.
    #[must_use]
    pub fn initial_cluster_text(&self) -> String {
        let members = self.initial_cluster.iter();
        let mut pairs: Vec<String> = members
            .flat_map(|(name, urls)| urls.iter().map(move |u| format!("{name}={u}")))
            .collect();
        pairs.sort();
        pairs.join(",")
    }

    fn advertise_matches(&self, cluster: &[Url]) -> Result<(), String> {
        let advertised = &self.initial_advertise_peer_urls;
        if same_addresses(advertised, cluster) {
            return Ok(());
        }
        let name = &self.name;
        let pair = |url: &Url| format!("{name}={url}");
        let missing = |from: &[Url], of: &[Url]| -> Vec<Url> {
            of.iter()
                .filter(|&url| !from.contains(url))
                .cloned()
                .collect()
        };
        let lost = missing(advertised, cluster);
        if !lost.is_empty() {
            return Err(format!(
                "--initial-cluster has {} but missing from --initial-advertise-peer-urls={}",
                lost.iter().map(pair).collect::<Vec<_>>().join(","),
                join(advertised)
            ));
        }
        Err(format!(
            "--initial-advertise-peer-urls has {} but missing from --initial-cluster={}",
            join(&missing(cluster, advertised)),
            cluster.iter().map(pair).collect::<Vec<_>>().join(",")
        ))
    }
}

/// Whether both lists name the same places; `localhost` counts as 127.0.0.1.
fn same_addresses(a: &[Url], b: &[Url]) -> bool {
    let places = |urls: &[Url]| -> Vec<String> {
        let mut places: Vec<String> = urls
            .iter()
            .map(|url| url.to_string().replace("//localhost:", "//127.0.0.1:"))
            .collect();
        places.sort();
        places
    };
    places(a) == places(b)
}

fn join(urls: &[Url]) -> String {
    urls.iter()
        .map(Url::to_string)
        .collect::<Vec<_>>()
        .join(",")
}

/// Listeners take addresses, not names.
fn check_bind_urls(urls: &[Url]) -> Result<(), String> {
    for url in urls {
        let Some((host, _)) = url.host_port() else {
            continue;
        };
        if host != "localhost" && host.parse::<core::net::IpAddr>().is_err() {
            return Err(format!("expected IP in URL for binding ({url})"));
        }
    }
    Ok(())
}

fn check_host_urls(urls: &[Url]) -> Result<(), String> {
    let hostless = urls
        .iter()
        .find(|url| matches!(url.host_port(), Some(("", _))));
    hostless.map_or(Ok(()), |url| Err(format!("unexpected empty host ({url})")))
}

#[cfg(test)]
mod tests;
