//! Flags and variables as text, and their way into a [`Config`].
//!
//! Lives only while the command line is read. Every value was checked against its kind when it came
//! in, so that typing it cannot fail.

use core::time::Duration;
use std::collections::BTreeMap;

use super::flags::{EXPERIMENTAL_GATES, FLAGS, FORGOTTEN, Flag, Kind, Support};
use super::value::{Url, check, parse_bool, parse_duration, parse_gates};
use super::{AutoCompaction, ClusterState, Config, ConfigError, Warning};
use crate::log;

/// Minimum of `--watch-progress-notify-interval` in etcd.
const WATCH_PROGRESS_INTERVAL_MIN: Duration = Duration::from_millis(100);

/// Values as text, checked against their kind.
#[derive(Default)]
pub struct Settings {
    given: BTreeMap<&'static str, String>,
    /// To be logged.
    pub warnings: Vec<Warning>,
    /// Whether `--help` was among the flags.
    pub help: bool,
}

impl Settings {
    /// Reads flags up to the first word that is none, which is returned.
    ///
    /// # Errors
    /// Go's text for the first that is wrong.
    pub fn read_args<'a>(&mut self, args: &'a [String]) -> Result<Option<&'a str>, ConfigError> {
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

    /// Reads `ETCD_` variables for flags that were not given.
    ///
    /// # Errors
    /// etcd's text for the first wrong value.
    pub fn read_env(
        &mut self,
        env: impl IntoIterator<Item = (String, String)>,
    ) -> Result<(), String> {
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

    /// Warns about flags without effect, by what the table says of them.
    ///
    /// # Errors
    /// The first flag without which it would be wrong to go on.
    pub fn refuse_unsupported(&mut self) -> Result<(), String> {
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

    /// A switch.
    pub fn bool(&self, name: &str) -> bool {
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

    /// Types all settings and fills in defaults.
    ///
    /// # Errors
    /// etcd's text for the first that is wrong by more than its kind.
    pub fn config(&self) -> Result<Config, String> {
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
