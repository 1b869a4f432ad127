//! Command line and environment to one checked [`Config`], with etcd's rules, texts and exit codes.
//!
//! Read once by the main thread before anything runs; immutable afterwards. Flags win over `ETCD_`
//! variables, the last of a repeated flag wins. Deliberately not here: config files, DNS and
//! discovery (refused), and any look at the disk or the network.

use core::time::Duration;
use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::log;
use flags::{EXPERIMENTAL_GATES, FLAGS, FORGOTTEN, Flag, Kind, Support};
use value::{Url, check, parse_bool, parse_duration, parse_gates};

pub mod flags;
mod help;
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

/// Minimum of `--watch-progress-notify-interval` in etcd.
const WATCH_PROGRESS_INTERVAL_MIN: Duration = Duration::from_millis(100);
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

/// Values as text, checked against their kind.
#[derive(Default)]
struct Settings {
    given: BTreeMap<&'static str, String>,
    warnings: Vec<Warning>,
    help: bool,
}

impl Settings {
    /// Reads flags up to the first word that is none, which is returned.
    fn read_args<'a>(&mut self, args: &'a [String]) -> Result<Option<&'a str>, ConfigError> {
        let mut args = args.iter();
        while let Some(arg) = args.next() {
            let Some(name) = arg.strip_prefix('-').filter(|name| !name.is_empty()) else {
                return Ok(Some(arg));
            };
            if arg == "--" {
                return Ok(args.next().map(String::as_str));
            }
            let name = name.strip_prefix('-').unwrap_or(name);
            if name.starts_with(['-', '=']) {
                return Err(ConfigError::Usage(format!("bad flag syntax: {arg}")));
            }
            let (name, value) = match name.split_once('=') {
                Some((name, value)) => (name, Some(value)),
                None => (name, None),
            };
            if matches!(name, "h" | "help") {
                self.help = true;
                return Ok(None);
            }
            self.read_flag(name, value, &mut args)
                .map_err(ConfigError::Usage)?;
        }
        Ok(None)
    }

    fn read_flag<'a>(
        &mut self,
        name: &str,
        value: Option<&str>,
        rest: &mut impl Iterator<Item = &'a String>,
    ) -> Result<(), String> {
        if FORGOTTEN.contains(&name) {
            self.warn("flag is no longer supported - ignoring", name);
            return Ok(());
        }
        let flag = match Flag::find(name) {
            Some(flag) => flag,
            None => match name.strip_prefix("experimental-") {
                Some(current) => match self.read_experimental(name, current, value)? {
                    Some(flag) => flag,
                    None => return Ok(()),
                },
                None => return Err(format!("flag provided but not defined: -{name}")),
            },
        };
        let value = match (value, flag.kind) {
            (Some(value), _) => value,
            (None, Kind::Bool) => "true",
            (None, _) => rest
                .next()
                .ok_or_else(|| format!("flag needs an argument: -{name}"))?,
        };
        check(flag.kind, value).map_err(|reason| match flag.kind {
            Kind::Bool => format!("invalid boolean value {value:?} for -{name}: {reason}"),
            _ => format!("invalid value {value:?} for flag -{name}: {reason}"),
        })?;
        match flag.kind {
            Kind::Gates => self.give_gates(value),
            _ => drop(self.given.insert(flag.name, value.to_owned())),
        }
        Ok(())
    }

    /// Gates add up, where other flags replace each other.
    fn give_gates(&mut self, pairs: &str) {
        let gates = self.given.entry("feature-gates").or_default();
        gates.push(',');
        gates.push_str(pairs);
    }

    /// The flag that a flag of etcd 3.5 is now, or nothing if it became a gate or went away.
    fn read_experimental(
        &mut self,
        name: &str,
        current: &str,
        value: Option<&str>,
    ) -> Result<Option<&'static Flag>, String> {
        if let Some(flag) = Flag::find(current) {
            let message = format!("--{name} is deprecated, use --{current} instead");
            self.warn(&message, name);
            return Ok(Some(flag));
        }
        let Some(&(_, gate)) = EXPERIMENTAL_GATES.iter().find(|gate| gate.0 == current) else {
            self.warn("flag is no longer supported - ignoring", name);
            return Ok(None);
        };
        let value = value.unwrap_or("true");
        let on = parse_bool(value)
            .ok_or_else(|| format!("invalid boolean value {value:?} for -{name}: parse error"))?;
        self.warn(
            &format!("--{name} is deprecated, use --feature-gates={gate}={on} instead"),
            name,
        );
        self.give_gates(&format!("{gate}={on}"));
        Ok(None)
    }

    fn read_env(&mut self, env: impl IntoIterator<Item = (String, String)>) -> Result<(), String> {
        let names: BTreeMap<String, &Flag> = FLAGS.iter().map(|flag| (flag.env(), flag)).collect();
        for (variable, value) in env {
            if !variable.starts_with("ETCD_") {
                continue;
            }
            let Some(&flag) = names.get(&variable) else {
                self.warn("unrecognized environment variable", &variable);
                continue;
            };
            if self.given.contains_key(flag.name) {
                let message = "environment variable is shadowed by the command-line flag";
                self.warn(message, &variable);
            } else if !value.is_empty() {
                check(flag.kind, &value).map_err(|reason| {
                    format!("invalid value {value:?} for {variable}: {reason}")
                })?;
                self.given.insert(flag.name, value);
            }
        }
        Ok(())
    }

    fn refuse_unsupported(&mut self) -> Result<(), String> {
        for flag in FLAGS {
            let Some(value) = self.given.get(flag.name) else {
                continue;
            };
            let same = match flag.kind {
                Kind::Bool => parse_bool(value) == parse_bool(flag.default),
                Kind::Duration => parse_duration(value) == parse_duration(flag.default),
                _ => value == flag.default,
            };
            match flag.support {
                Support::Refused if !same => {
                    return Err(format!("--{}={value} is not supported yet", flag.name));
                }
                Support::Ignored if flag.name == "max-snapshots" => self.warn(
                    "--max-snapshots is deprecated in 3.6 and will be decommissioned in 3.8.",
                    flag.name,
                ),
                Support::Ignored if flag.name == "v2-deprecation" => self.warn(
                    "--v2-deprecation is deprecated and scheduled for removal in v3.8. \
                     The default value is enforced, ignoring user input.",
                    flag.name,
                ),
                Support::Ignored if !same => {
                    self.warn("flag has no effect in ringkv - ignoring", flag.name);
                }
                Support::Supported | Support::Ignored | Support::Refused => {}
            }
        }
        Ok(())
    }

    fn warn(&mut self, message: &str, about: &str) {
        self.warnings.push(Warning {
            message: message.to_owned(),
            about: about.to_owned(),
        });
    }

    fn text(&self, name: &str) -> &str {
        let flag = Flag::find(name).expect("settings are asked for by names of the table");
        self.given
            .get(flag.name)
            .map_or(flag.default, String::as_str)
    }

    fn bool(&self, name: &str) -> bool {
        parse_bool(self.text(name)).expect("checked when read")
    }

    fn number<T: core::str::FromStr>(&self, name: &str) -> T {
        self.text(name).parse().ok().expect("checked when read")
    }

    fn duration(&self, name: &str) -> Duration {
        parse_duration(self.text(name)).expect("checked when read")
    }

    fn duration_or(&self, name: &str, zero_means: Duration) -> Duration {
        Some(self.duration(name))
            .filter(|given| !given.is_zero())
            .unwrap_or(zero_means)
    }

    fn millis(&self, name: &str) -> Duration {
        Duration::from_millis(self.number(name))
    }

    fn urls(&self, name: &str) -> Vec<Url> {
        Url::parse_list(self.text(name)).expect("checked when read")
    }

    fn list(&self, name: &str) -> Vec<String> {
        let words = self.text(name).split(',').filter(|word| !word.is_empty());
        words.map(str::to_owned).collect()
    }

    fn config(&self) -> Result<Config, String> {
        let name = self.text("name").to_owned();
        let given = |flag| self.given.contains_key(flag);
        let data_dir = match self.text("data-dir") {
            "" => format!("{name}.etcd"),
            dir => dir.to_owned(),
        };
        let unadvertised = given("listen-client-urls") && !given("advertise-client-urls");
        let keepalive = |flag| Some(self.duration(flag)).filter(|time| !time.is_zero());
        let progress = self.duration_or("watch-progress-notify-interval", Duration::from_mins(10));
        let peer_urls = self.urls("initial-advertise-peer-urls");
        Ok(Config {
            data_dir: data_dir.into(),
            snapshot_count: self.number("snapshot-count"),
            snapshot_catchup_entries: self.number("snapshot-catchup-entries"),
            heartbeat_interval: self.millis("heartbeat-interval"),
            election_timeout: self.millis("election-timeout"),
            quota_backend_bytes: self.number("quota-backend-bytes"),
            max_txn_ops: self.number("max-txn-ops"),
            max_request_bytes: self.number("max-request-bytes"),
            max_concurrent_streams: self.number("max-concurrent-streams"),
            grpc_keepalive_interval: keepalive("grpc-keepalive-interval"),
            grpc_keepalive_timeout: keepalive("grpc-keepalive-timeout"),
            socket_reuse_port: self.bool("socket-reuse-port"),
            socket_reuse_address: self.bool("socket-reuse-address"),
            listen_peer_urls: self.urls("listen-peer-urls"),
            listen_client_urls: self.urls("listen-client-urls"),
            listen_client_http_urls: self.urls("listen-client-http-urls"),
            listen_metrics_urls: self.urls("listen-metrics-urls"),
            advertise_client_urls: if unadvertised {
                Vec::new()
            } else {
                self.urls("advertise-client-urls")
            },
            initial_cluster: self.initial_cluster(&name, &peer_urls)?,
            initial_advertise_peer_urls: peer_urls,
            initial_cluster_state: match self.text("initial-cluster-state") {
                "new" => ClusterState::New,
                _ => ClusterState::Existing,
            },
            initial_cluster_token: self.text("initial-cluster-token").to_owned(),
            strict_reconfig_check: self.bool("strict-reconfig-check"),
            pre_vote: self.bool("pre-vote"),
            auto_compaction: self.auto_compaction()?,
            max_learners: self.number("max-learners"),
            cors: self.list("cors"),
            host_whitelist: self.list("host-whitelist"),
            extensive_metrics: self.text("metrics") == "extensive",
            log_level: self.log_level()?,
            log_format: self.log_format()?,
            log_outputs: self.list("log-outputs"),
            warning_unary_request_duration: self
                .duration_or("warning-unary-request-duration", Duration::from_millis(300)),
            warning_apply_duration: self.duration("warning-apply-duration"),
            compaction_batch_limit: match self.number::<i64>("compaction-batch-limit") {
                0 => 1000,
                limit => usize::try_from(limit)
                    .map_err(|_| "--compaction-batch-limit must be >=0".to_owned())?,
            },
            compaction_sleep_interval: self
                .duration_or("compaction-sleep-interval", Duration::from_millis(10)),
            watch_progress_notify_interval: progress.max(WATCH_PROGRESS_INTERVAL_MIN),
            feature_gates: parse_gates(self.text("feature-gates"))?,
            unsafe_no_fsync: self.bool("unsafe-no-fsync"),
            shards: Some(self.number("shards")).filter(|&count| count > 0),
            explicit: self.given.keys().copied().collect(),
            name,
        })
    }

    fn initial_cluster(
        &self,
        name: &str,
        peer_urls: &[Url],
    ) -> Result<BTreeMap<String, Vec<Url>>, String> {
        let default = Flag::find("initial-cluster")
            .expect("the table has it")
            .default;
        let text = self.text("initial-cluster");
        // As in etcd, a name alone changes the default cluster to this member's own.
        if name != "default" && text == default {
            return Ok(BTreeMap::from([(name.to_owned(), peer_urls.to_vec())]));
        }
        let mut members: BTreeMap<String, Vec<Url>> = BTreeMap::new();
        for pair in text.split(',').filter(|pair| !pair.is_empty()) {
            let (member, url) = pair.split_once('=').unwrap_or((pair, ""));
            members
                .entry(member.to_owned())
                .or_default()
                .push(Url::parse(url)?);
        }
        members
            .values_mut()
            .for_each(|urls| urls.sort_by_cached_key(Url::to_string));
        Ok(members)
    }

    fn auto_compaction(&self) -> Result<AutoCompaction, String> {
        let retention = self.text("auto-compaction-retention");
        let count = retention.parse::<u64>().ok();
        match (self.text("auto-compaction-mode"), count) {
            ("periodic" | "revision", Some(0)) => Ok(AutoCompaction::Off),
            ("revision", Some(revisions)) => Ok(AutoCompaction::Revision(revisions)),
            ("periodic", Some(hours)) => hours
                .checked_mul(3600)
                .map(|secs| AutoCompaction::Periodic(Duration::from_secs(secs)))
                .ok_or_else(|| compaction_error(retention)),
            ("periodic" | "revision", None) => match parse_duration(retention) {
                Some(Duration::ZERO) => Ok(AutoCompaction::Off),
                Some(time) => Ok(AutoCompaction::Periodic(time)),
                None => Err(compaction_error(retention)),
            },
            ("", _) => Err("undefined auto-compaction-mode".to_owned()),
            (mode, _) => Err(format!("unknown auto-compaction-mode {mode:?}")),
        }
    }

    fn log_level(&self) -> Result<log::Level, String> {
        let level = self.text("log-level");
        log::Level::parse(level).ok_or_else(|| format!("unrecognized level: {level:?}"))
    }

    fn log_format(&self) -> Result<log::Format, String> {
        if self.text("logger") != "zap" {
            return Err(format!("unknown logger option {:?}", self.text("logger")));
        }
        match self.text("log-format") {
            "json" | "" => Ok(log::Format::Json),
            "console" => Ok(log::Format::Console),
            other => Err(format!(
                "unknown log format: {other}, supported values json, console"
            )),
        }
    }
}

fn compaction_error(retention: &str) -> String {
    format!("error parsing CompactionRetention: time: invalid duration {retention:?}")
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
