use super::flags::{FLAGS, OURS};
use super::value::check;
use super::*;

/// All flags of etcd 3.7.1.
const ETCD_FLAGS: &str = "
advertise-client-urls auth-token auth-token-ttl auto-compaction-mode auto-compaction-retention
auto-tls backend-batch-interval backend-batch-limit backend-bbolt-freelist-type bcrypt-cost
bootstrap-defrag-threshold-megabytes cert-file cipher-suites client-cert-allowed-hostname
client-cert-auth client-cert-file client-crl-file client-key-file compact-hash-check-time
compaction-batch-limit compaction-sleep-interval config-file corrupt-check-time cors data-dir
discovery-cacert discovery-cert discovery-dial-timeout discovery-endpoints discovery-fallback
discovery-insecure-skip-tls-verify discovery-insecure-transport discovery-keepalive-time
discovery-keepalive-timeout discovery-key discovery-password discovery-request-timeout
discovery-srv discovery-srv-name discovery-token discovery-user distributed-tracing-address
distributed-tracing-instance-id distributed-tracing-sampling-rate distributed-tracing-service-name
downgrade-check-time election-timeout enable-distributed-tracing enable-grpc-gateway
enable-log-rotation enable-pprof feature-gates force-new-cluster grpc-keepalive-interval
grpc-keepalive-min-time grpc-keepalive-timeout heartbeat-interval host-whitelist
initial-advertise-peer-urls initial-cluster initial-cluster-state initial-cluster-token
initial-election-tick-advance key-file listen-client-http-urls listen-client-urls
listen-metrics-urls listen-peer-urls log-format log-level log-outputs log-rotation-config-json
logger max-concurrent-streams max-learners max-request-bytes max-snapshots max-txn-ops max-wals
memory-mlock metrics name peer-auto-tls peer-cert-allowed-cn peer-cert-allowed-hostname
peer-cert-file peer-client-cert-auth peer-client-cert-file peer-client-key-file peer-crl-file
peer-key-file peer-skip-client-san-verification peer-trusted-ca-file pre-vote quota-backend-bytes
raft-read-timeout raft-write-timeout self-signed-cert-validity snapshot-catchup-entries
snapshot-count socket-reuse-address socket-reuse-port strict-reconfig-check tls-max-version
tls-min-version trusted-ca-file unsafe-no-fsync v2-deprecation version wal-dir
warning-apply-duration warning-unary-request-duration watch-progress-notify-interval";

fn parse_with(args: &[&str], env: &[(&str, &str)]) -> Result<Command, ConfigError> {
    let args: Vec<String> = args.iter().map(ToString::to_string).collect();
    parse(
        &args,
        env.iter()
            .map(|&(name, value)| (name.to_owned(), value.to_owned())),
    )
}

#[track_caller]
fn run(args: &[&str]) -> (Config, Vec<Warning>) {
    match parse_with(args, &[]) {
        Ok(Command::Run(config, warnings)) => (*config, warnings),
        other => panic!("{args:?}: {other:?}"),
    }
}

#[track_caller]
fn usage_error(args: &[&str]) -> String {
    match parse_with(args, &[]) {
        Err(ConfigError::Usage(text)) => text,
        other => panic!("{args:?}: {other:?}"),
    }
}

#[track_caller]
fn invalid(args: &[&str]) -> String {
    match parse_with(args, &[]) {
        Err(ConfigError::Invalid(text)) => text,
        other => panic!("{args:?}: {other:?}"),
    }
}

#[test]
fn the_table_has_etcds_flags_and_ours() {
    let mut expected: Vec<&str> = ETCD_FLAGS.split_whitespace().collect();
    assert_eq!(expected.len(), 113);
    expected.extend(OURS);
    expected.sort_unstable();
    let mut names: Vec<&str> = FLAGS.iter().map(|flag| flag.name).collect();
    names.sort_unstable();
    assert_eq!(names, expected);
}

#[test]
fn every_default_is_a_value_of_its_kind() {
    for flag in FLAGS {
        assert_eq!(check(flag.kind, flag.default), Ok(()), "{}", flag.name);
    }
}

#[test]
fn without_flags_the_defaults_are_etcds() {
    let (config, warnings) = run(&[]);
    assert_eq!(warnings, []);
    assert_eq!(config.name, "default");
    assert_eq!(config.data_dir, PathBuf::from("default.etcd"));
    assert_eq!(join(&config.listen_client_urls), "http://localhost:2379");
    assert_eq!(join(&config.advertise_client_urls), "http://localhost:2379");
    assert_eq!(
        config.initial_cluster_text(),
        "default=http://localhost:2380"
    );
    assert_eq!(config.verify_bootstrap(), Ok(()));
    assert_eq!(
        config.grpc_keepalive_interval,
        Some(Duration::from_hours(2))
    );
    assert_eq!(config.compaction_batch_limit, 1000);
    assert_eq!(
        config.watch_progress_notify_interval,
        Duration::from_mins(10)
    );
    assert_eq!(config.auto_compaction, AutoCompaction::Off);
    assert_eq!(config.shards, None);
    assert!(config.gate("FastLeaseKeepAlive") && !config.gate("CompactHashCheck"));
}

#[test]
fn flags_are_read_in_every_spelling_and_the_last_wins() {
    let (config, _) = run(&[
        "--name=a",
        "-name",
        "b",
        "--pre-vote",
        "-strict-reconfig-check=F",
    ]);
    assert_eq!(config.name, "b");
    assert!(config.pre_vote && !config.strict_reconfig_check);
    assert_eq!(config.initial_cluster_text(), "b=http://localhost:2380");
    assert_eq!(
        config.explicit,
        ["name", "pre-vote", "strict-reconfig-check"]
    );
    assert!(matches!(
        parse_with(&["--version"], &[]),
        Ok(Command::Version)
    ));
    assert!(matches!(
        parse_with(&["--name=a", "-h", "--nope"], &[]),
        Ok(Command::Help)
    ));
}

#[test]
fn wrong_command_lines_have_gos_texts() {
    assert_eq!(
        usage_error(&["--foo=1"]),
        "flag provided but not defined: -foo"
    );
    assert_eq!(usage_error(&["--name"]), "flag needs an argument: -name");
    assert_eq!(usage_error(&["---name"]), "bad flag syntax: ---name");
    let text = r#"invalid value "x" for flag -heartbeat-interval: parse error"#;
    assert_eq!(usage_error(&["--heartbeat-interval=x"]), text);
    let text = r#"invalid boolean value "maybe" for -pre-vote: parse error"#;
    assert_eq!(usage_error(&["--pre-vote=maybe"]), text);
    let text = r#"invalid value "odd" for flag -initial-cluster-state: invalid value"#;
    assert_eq!(usage_error(&["--initial-cluster-state=odd"]), text);
    let text = r#"invalid value "not-yet" for flag -v2-deprecation: invalid value "not-yet""#;
    assert_eq!(usage_error(&["--v2-deprecation=not-yet"]), text);
    let text = "invalid value \"-1\" for flag -max-concurrent-streams: \
                strconv.ParseUint: parsing \"-1\": invalid syntax";
    assert_eq!(usage_error(&["--max-concurrent-streams=-1"]), text);
    let text = "invalid value \"99999999999999999999\" for flag -max-txn-ops: value out of range";
    assert_eq!(usage_error(&["--max-txn-ops=99999999999999999999"]), text);
    let text = "invalid value \"foo\" for flag -listen-peer-urls: \
                URL scheme must be http, https, unix, or unixs: foo";
    assert_eq!(usage_error(&["--listen-peer-urls=foo"]), text);
    assert_eq!(
        invalid(&["--name=a", "arg", "--foo"]),
        r#""arg" is not a valid flag"#
    );
}

#[test]
fn settings_that_do_not_fit_together_have_etcds_texts() {
    let text = "--advertise-client-urls is required when --listen-client-urls is set explicitly";
    assert_eq!(invalid(&["--listen-client-urls=http://127.0.0.1:1"]), text);
    let text = "--election-timeout[1000ms] should be at least as 5 times as \
                --heartbeat-interval[300ms]";
    assert_eq!(invalid(&["--heartbeat-interval=300"]), text);
    let text = "--election-timeout[50001ms] is too long, and should be set less than 50000ms";
    assert_eq!(invalid(&["--election-timeout=50001"]), text);
    let text = "expected IP in URL for binding (http://foo:1)";
    assert_eq!(invalid(&["--listen-peer-urls=http://foo:1"]), text);
    let text = "--initial-advertise-peer-urls \"http://:1\" must be \"host:port\" \
                (unexpected empty host (http://:1))";
    assert_eq!(invalid(&["--initial-advertise-peer-urls=http://:1"]), text);
    let text = "enabling feature gate LeaseCheckpointPersist requires enabling feature gate \
                LeaseCheckpoint";
    assert_eq!(
        invalid(&["--feature-gates=LeaseCheckpointPersist=true"]),
        text
    );
    assert_eq!(
        invalid(&["--auto-compaction-mode=x"]),
        r#"unknown auto-compaction-mode "x""#
    );
    assert_eq!(
        invalid(&["--log-level=loud"]),
        r#"unrecognized level: "loud""#
    );
}

#[test]
fn an_initial_cluster_must_hold_this_member_as_it_advertises_itself() {
    let verify = |args: &[&str]| run(args).0.verify_bootstrap();
    let error = |args: &[&str]| verify(args).unwrap_err();
    let text = r#"couldn't find local name "default" in the initial cluster configuration"#;
    assert_eq!(error(&["--initial-cluster=a=http://127.0.0.1:1"]), text);
    let text = "--initial-cluster has default=http://localhost:2380 but missing from \
                --initial-advertise-peer-urls=http://127.0.0.1:1";
    assert_eq!(
        error(&["--initial-advertise-peer-urls=http://127.0.0.1:1"]),
        text
    );
    let text = "initial cluster a=http://1.1.1.1:1,b=http://1.1.1.1:1 has duplicate url";
    let advertise = "--initial-advertise-peer-urls=http://1.1.1.1:1";
    let cluster = "--initial-cluster=b=http://1.1.1.1:1,a=http://1.1.1.1:1";
    assert_eq!(error(&["--name=a", advertise, cluster]), text);
    let local = "--initial-advertise-peer-urls=http://127.0.0.1:2380";
    assert_eq!(verify(&[local]), Ok(()));
    let joining = "--initial-cluster-state=existing";
    assert_eq!(
        verify(&[joining, "--initial-advertise-peer-urls=http://127.0.0.1:1"]),
        Ok(())
    );
}

#[test]
fn variables_are_read_after_flags() {
    let env = [
        ("ETCD_NAME", "env"),
        ("ETCD_MAX_TXN_OPS", "7"),
        ("ETCD_VERIFY", "all"),
        ("HOME", "/"),
        ("ETCD_SNAPSHOT_COUNT", ""),
    ];
    let Ok(Command::Run(config, warnings)) = parse_with(&["--name=flag"], &env) else {
        panic!("a correct command line")
    };
    assert_eq!((config.name.as_str(), config.max_txn_ops), ("flag", 7));
    assert_eq!(config.snapshot_count, 10_000);
    let about: Vec<&str> = warnings
        .iter()
        .map(|warning| warning.about.as_str())
        .collect();
    assert_eq!(about, ["ETCD_NAME", "ETCD_VERIFY"]);
    let error = parse_with(&[], &[("ETCD_HEARTBEAT_INTERVAL", "x")]).unwrap_err();
    let text = r#"invalid value "x" for ETCD_HEARTBEAT_INTERVAL: parse error"#;
    assert_eq!(error, ConfigError::Invalid(text.to_owned()));
}

#[test]
fn what_is_not_supported_is_refused_or_warned_about_unless_it_is_the_default() {
    assert_eq!(
        invalid(&["--auto-tls"]),
        "--auto-tls=true is not supported yet"
    );
    assert_eq!(
        invalid(&["--cert-file=x"]),
        "--cert-file=x is not supported yet"
    );
    let (_, warnings) = run(&["--auto-tls=0", "--cert-file=", "--raft-read-timeout=5000ms"]);
    assert_eq!(warnings, []);
    let (_, warnings) = run(&["--memory-mlock", "--max-snapshots=5", "--force=3"]);
    let messages: Vec<&str> = warnings
        .iter()
        .map(|warning| warning.message.as_str())
        .collect();
    assert_eq!(
        messages,
        [
            "flag is no longer supported - ignoring",
            "--max-snapshots is deprecated in 3.6 and will be decommissioned in 3.8.",
            "flag has no effect in ringkv - ignoring",
        ]
    );
}

#[test]
fn flags_of_older_etcds_are_taken_with_a_warning() {
    let (config, warnings) = run(&[
        "--enable-v2",
        "--experimental-watch-progress-notify-interval",
        "1m",
        "--experimental-initial-corrupt-check=true",
        "--experimental-enable-lease-checkpoint",
        "--experimental-long-gone",
        "--feature-gates=FastLeaseKeepAlive=false",
    ]);
    assert_eq!(warnings.len(), 6);
    assert_eq!(
        config.watch_progress_notify_interval,
        Duration::from_mins(1)
    );
    assert!(config.gate("InitialCorruptCheck") && config.gate("LeaseCheckpoint"));
    assert!(!config.gate("FastLeaseKeepAlive"));
}

#[test]
fn retention_is_read_by_its_mode() {
    let retention = |mode: &str, text: &str| {
        let args = [
            format!("--auto-compaction-mode={mode}"),
            format!("--auto-compaction-retention={text}"),
        ];
        run(&[&args[0], &args[1]]).0.auto_compaction
    };
    assert_eq!(
        retention("periodic", "2"),
        AutoCompaction::Periodic(Duration::from_hours(2))
    );
    assert_eq!(
        retention("periodic", "5m"),
        AutoCompaction::Periodic(Duration::from_mins(5))
    );
    assert_eq!(
        retention("revision", "1000"),
        AutoCompaction::Revision(1000)
    );
    assert_eq!(retention("revision", "0"), AutoCompaction::Off);
}
