//! The one table of all flags: etcd 3.7.1's and our own.
//!
//! Everything else about flags follows from it: parsing, `ETCD_` variables, `--help`, and what
//! happens to a flag that has no effect here.

use self::Group::{
    Auth, Clustering, Discovery, Features, Logging, Member, Monitoring, Ringkv, Security, Tracing,
    Unsafe,
};
use self::Kind::{Bool, Choice, Duration, Gates, Int, List, Text, Uint, Uint32, Uint64, Urls};
use self::Support::{Ignored, Refused, Supported};

/// What a flag's value must look like.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Go's booleans; may stand without a value.
    Bool,
    /// 64-bit signed.
    Int,
    /// Unsigned 64-bit.
    Uint,
    /// Unsigned 32-bit; its errors are worded by another part of Go.
    Uint32,
    /// Unsigned 64-bit.
    Uint64,
    /// Go's durations, such as `1m30s`.
    Duration,
    /// Anything.
    Text,
    /// Comma-separated text.
    List,
    /// Comma-separated URLs of listeners or members; empty is allowed.
    Urls,
    /// One of these words.
    Choice(&'static [&'static str]),
    /// Comma-separated `Feature=bool`.
    Gates,
}

/// What a flag does here.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Support {
    /// What it does in etcd.
    Supported,
    /// Nothing; a value other than the default is warned about. It tunes what we do not have.
    Ignored,
    /// A value other than the default ends the start: to go on without it would be wrong or unsafe.
    Refused,
}

/// Heading in `--help`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs, reason = "the headings are the names")]
pub enum Group {
    Member,
    Clustering,
    Discovery,
    Security,
    Auth,
    Monitoring,
    Logging,
    Tracing,
    Features,
    Unsafe,
    Ringkv,
}

impl Group {
    /// All, in the order of `--help`.
    pub const ALL: [Self; 11] = [
        Member, Clustering, Security, Auth, Monitoring, Logging, Features, Ringkv, Discovery,
        Tracing, Unsafe,
    ];

    /// The heading.
    #[must_use]
    pub const fn title(self) -> &'static str {
        match self {
            Member => "Member",
            Clustering => "Clustering",
            Discovery => "Discovery",
            Security => "Security",
            Auth => "Auth",
            Monitoring => "Profiling and Monitoring",
            Logging => "Logging",
            Tracing => "Distributed tracing",
            Features => "Features",
            Unsafe => "Unsafe (may break the guarantees of consensus)",
            Ringkv => "ringkv",
        }
    }
}

/// One flag.
#[derive(Clone, Copy, Debug)]
pub struct Flag {
    /// Name without dashes.
    pub name: &'static str,
    /// What its value must look like.
    pub kind: Kind,
    /// Default, as one would write it.
    pub default: &'static str,
    /// What it does here.
    pub support: Support,
    /// Heading in `--help`.
    pub group: Group,
    /// For `--help`.
    pub help: &'static str,
}

impl Flag {
    /// The environment variable: `ETCD_` and the name in capitals.
    #[must_use]
    pub fn env(&self) -> String {
        format!("ETCD_{}", self.name.to_ascii_uppercase().replace('-', "_"))
    }

    /// Finds a flag by name.
    #[must_use]
    pub fn find(name: &str) -> Option<&'static Self> {
        FLAGS.iter().find(|flag| flag.name == name)
    }
}

macro_rules! flags {
    ($(
        $group:ident $support:ident $kind:expr, $name:literal = $default:literal:
        $($help:literal)+;
    )*) => {
        /// All flags, etcd's first.
        pub const FLAGS: &[Flag] = &[$(Flag {
            name: $name,
            kind: $kind,
            default: $default,
            support: $support,
            group: $group,
            help: concat!($($help),+),
        },)*];
    };
}

flags! {
    Member Supported Text, "name" = "default":
        "Name of this member for people; unique in the cluster.";
    Member Supported Text, "data-dir" = "":
        "Directory of all data of this member; empty means ${name}.etcd.";
    Member Refused Text, "wal-dir" = "":
        "Directory for the write-ahead log alone.";
    Member Ignored Uint64, "snapshot-count" = "10000":
        "Committed entries after which a snapshot is taken.";
    Member Ignored Uint64, "snapshot-catchup-entries" = "5000":
        "Entries kept behind a snapshot for slow followers.";
    Member Supported Uint, "heartbeat-interval" = "100":
        "Time between heartbeats, milliseconds.";
    Member Supported Uint, "election-timeout" = "1000":
        "Silence of the leader after which an election starts, milliseconds; at least 5 "
        "heartbeats.";
    Member Ignored Bool, "initial-election-tick-advance" = "true":
        "Shorten the first election after a start.";
    Member Supported Urls, "listen-peer-urls" = "http://localhost:2380":
        "URLs to listen on for other members.";
    Member Supported Urls, "listen-client-urls" = "http://localhost:2379":
        "URLs to listen on for clients: gRPC, and HTTP unless --listen-client-http-urls takes "
        "it away.";
    Member Supported Urls, "listen-client-http-urls" = "":
        "URLs to listen on for clients' HTTP only; --listen-client-urls then serve gRPC only.";
    Member Ignored Uint, "max-snapshots" = "5":
        "Snapshot files to keep. Deprecated in 3.6.";
    Member Ignored Uint, "max-wals" = "5":
        "Log files to keep.";
    Member Ignored Bool, "memory-mlock" = "false":
        "Keep all memory from being swapped out.";
    Member Supported Int, "quota-backend-bytes" = "0":
        "Size of the stored data beyond which writes are refused and an alarm is raised, "
        "bytes; 0 means 2 GiB.";
    Member Ignored Text, "backend-bbolt-freelist-type" = "":
        "Free-page list of bbolt, which ringkv does not use.";
    Member Ignored Duration, "backend-batch-interval" = "0s":
        "Commit interval of bbolt, which ringkv does not use.";
    Member Ignored Int, "backend-batch-limit" = "0":
        "Commit size of bbolt, which ringkv does not use.";
    Member Supported Uint, "max-txn-ops" = "128":
        "Operations allowed in one transaction.";
    Member Supported Uint, "max-request-bytes" = "1572864":
        "Largest request of a client, bytes.";
    Member Supported Uint32, "max-concurrent-streams" = "4294967295":
        "Streams that a client may have open at once on a connection.";
    Member Ignored Duration, "grpc-keepalive-min-time" = "5s":
        "Least time between two pings of a client.";
    Member Supported Duration, "grpc-keepalive-interval" = "2h":
        "Silence after which the server pings a client; 0 disables.";
    Member Supported Duration, "grpc-keepalive-timeout" = "20s":
        "Time for a client to answer that ping; 0 disables.";
    Member Supported Bool, "socket-reuse-port" = "false":
        "Set SO_REUSEPORT, so that another process may listen on the same port.";
    Member Ignored Bool, "socket-reuse-address" = "false":
        "Set SO_REUSEADDR, so that a port in TIME_WAIT can be bound.";
    Member Ignored Bool, "enable-grpc-gateway" = "true":
        "Serve the JSON gateway under /v3/.";
    Member Ignored Duration, "raft-read-timeout" = "5s":
        "Read timeout of connections between members.";
    Member Ignored Duration, "raft-write-timeout" = "5s":
        "Write timeout of connections between members.";
    Member Ignored Gates, "feature-gates" = "":
        "Features to switch, as Name=true|false: CompactHashCheck, FastLeaseKeepAlive, "
        "InitialCorruptCheck, LeaseCheckpoint, LeaseCheckpointPersist, PriorityRequest, "
        "SetMemberLocalAddr, StopGRPCServiceOnDefrag, TxnModeWriteWithSharedBuffer.";
    Member Refused Text, "config-file" = "":
        "File with all settings; flags and variables are then ignored.";
    Member Supported Bool, "version" = "false":
        "Print the version and exit.";

    Clustering Supported Urls, "initial-advertise-peer-urls" = "http://localhost:2380":
        "This member's peer URLs as the other members reach them.";
    Clustering Supported Text, "initial-cluster" = "default=http://localhost:2380":
        "All members of a new cluster: name=peer-url, comma-separated.";
    Clustering Supported Choice(&["new", "existing"]), "initial-cluster-state" = "new":
        "Whether the cluster is started ('new') or joined ('existing'); without effect on "
        "restarts.";
    Clustering Supported Text, "initial-cluster-token" = "etcd-cluster":
        "Keeps clusters apart that are started from the same configuration.";
    Clustering Supported Urls, "advertise-client-urls" = "http://localhost:2379":
        "This member's client URLs as clients reach them; required with --listen-client-urls.";
    Clustering Ignored Bool, "strict-reconfig-check" = "true":
        "Refuse membership changes that would lose the quorum.";
    Clustering Ignored Bool, "pre-vote" = "true":
        "Ask before an election, so that a returning member disturbs nobody.";
    Clustering Supported Text, "auto-compaction-retention" = "0":
        "History that automatic compaction keeps: hours or a duration, or a number of "
        "revisions; 0 disables.";
    Clustering Supported Text, "auto-compaction-mode" = "periodic":
        "How --auto-compaction-retention is meant: 'periodic' or 'revision'.";
    Clustering Ignored
        Choice(&["write-only", "write-only-skip-check", "write-only-drop-data", "gone"]),
        "v2-deprecation" = "write-only":
        "Phase of the removal of etcd's v2 store. Deprecated, to be removed in 3.8.";
    Clustering Ignored Int, "max-learners" = "1":
        "Learners allowed in the cluster.";

    Discovery Refused Text, "discovery-token" = "":
        "Token of the cluster at the discovery service.";
    Discovery Refused List, "discovery-endpoints" = "":
        "Endpoints of the discovery service.";
    Discovery Ignored Duration, "discovery-dial-timeout" = "2s":
        "Time to connect to the discovery service.";
    Discovery Ignored Duration, "discovery-request-timeout" = "5s":
        "Time for a request to the discovery service.";
    Discovery Ignored Duration, "discovery-keepalive-time" = "2s":
        "Keepalive time of the connection to the discovery service.";
    Discovery Ignored Duration, "discovery-keepalive-timeout" = "6s":
        "Keepalive timeout of the connection to the discovery service.";
    Discovery Ignored Bool, "discovery-insecure-transport" = "true":
        "Connect to the discovery service without TLS.";
    Discovery Ignored Bool, "discovery-insecure-skip-tls-verify" = "false":
        "Do not verify the discovery service's certificate.";
    Discovery Ignored Text, "discovery-cert" = "":
        "Client certificate for the discovery service.";
    Discovery Ignored Text, "discovery-key" = "":
        "Key of that certificate.";
    Discovery Ignored Text, "discovery-cacert" = "":
        "CA of the discovery service.";
    Discovery Ignored Text, "discovery-user" = "":
        "User, or user:password, for the discovery service.";
    Discovery Ignored Text, "discovery-password" = "":
        "Password for the discovery service.";
    Discovery Ignored Choice(&["exit", "proxy"]), "discovery-fallback" = "exit":
        "What to do if discovery fails.";
    Discovery Refused Text, "discovery-srv" = "":
        "DNS domain whose SRV records name the members.";
    Discovery Refused Text, "discovery-srv-name" = "":
        "Suffix of the service in those records.";

    Security Refused Text, "cert-file" = "":
        "Server certificate for clients.";
    Security Refused Text, "key-file" = "":
        "Key of that certificate.";
    Security Refused Bool, "client-cert-auth" = "false":
        "Demand a certificate of each client.";
    Security Refused Text, "client-cert-file" = "":
        "Certificate for the gateway's own connections, if not the server's.";
    Security Refused Text, "client-key-file" = "":
        "Key of that certificate.";
    Security Refused Text, "client-crl-file" = "":
        "Revoked client certificates.";
    Security Refused List, "client-cert-allowed-hostname" = "":
        "Hostnames of which a client certificate must have one.";
    Security Refused Text, "trusted-ca-file" = "":
        "CA of client certificates.";
    Security Refused Bool, "auto-tls" = "false":
        "Serve clients with a generated certificate.";
    Security Refused Text, "peer-cert-file" = "":
        "Certificate for other members.";
    Security Refused Text, "peer-key-file" = "":
        "Key of that certificate.";
    Security Refused Bool, "peer-client-cert-auth" = "false":
        "Demand a certificate of each peer.";
    Security Refused Text, "peer-client-cert-file" = "":
        "Certificate for outgoing peer connections, if not --peer-cert-file.";
    Security Refused Text, "peer-client-key-file" = "":
        "Key of that certificate.";
    Security Refused Text, "peer-trusted-ca-file" = "":
        "CA of peers' certificates.";
    Security Refused List, "peer-cert-allowed-cn" = "":
        "Common names of which a peer certificate must have one.";
    Security Refused List, "peer-cert-allowed-hostname" = "":
        "Hostnames of which a peer certificate must have one.";
    Security Refused Bool, "peer-auto-tls" = "false":
        "Serve peers with a generated certificate.";
    Security Ignored Uint, "self-signed-cert-validity" = "1":
        "Validity of generated certificates, years.";
    Security Refused Text, "peer-crl-file" = "":
        "Revoked peer certificates.";
    Security Refused Bool, "peer-skip-client-san-verification" = "false":
        "Do not compare a peer's address with its certificate.";
    Security Ignored List, "cipher-suites" = "":
        "TLS cipher suites.";
    Security Supported List, "cors" = "*":
        "Origins that browsers may call from.";
    Security Supported List, "host-whitelist" = "*":
        "Host names that HTTP clients may use if the server has no TLS.";
    Security Ignored Text, "tls-min-version" = "TLS1.2":
        "Least TLS version: TLS1.2 or TLS1.3.";
    Security Ignored Text, "tls-max-version" = "":
        "Highest TLS version: TLS1.2 or TLS1.3.";

    Auth Ignored Text, "auth-token" = "simple":
        "Kind of authentication tokens: 'simple', or 'jwt' with its options.";
    Auth Ignored Uint, "bcrypt-cost" = "10":
        "Cost of password hashes, 4 to 31.";
    Auth Ignored Uint, "auth-token-ttl" = "300":
        "Life of a simple token, seconds.";

    Monitoring Ignored Bool, "enable-pprof" = "false":
        "Serve Go's profiles under /debug/pprof/.";
    Monitoring Ignored Text, "metrics" = "basic":
        "'basic', or 'extensive' for histograms of each gRPC method.";
    Monitoring Supported Urls, "listen-metrics-urls" = "":
        "URLs to listen on for /metrics and /health alone.";

    Logging Supported Text, "logger" = "zap":
        "Kind of logger: 'zap'.";
    Logging Supported List, "log-outputs" = "default":
        "Where logs go: 'stderr', 'stdout', 'default' (stderr), or files, comma-separated.";
    Logging Supported Text, "log-level" = "info":
        "Least level that is logged: debug, info, warn, error, panic or fatal.";
    Logging Supported Text, "log-format" = "json":
        "'json' or 'console'.";
    Logging Ignored Bool, "enable-log-rotation" = "false":
        "Rotate the log file.";
    Logging Ignored Text, "log-rotation-config-json" =
        r#"{"maxsize": 100, "maxage": 0, "maxbackups": 0, "localtime": false, "compress": false}"#:
        "How the log file is rotated.";
    Logging Ignored Duration, "warning-unary-request-duration" = "300ms":
        "Unary requests that take longer are logged.";
    Logging Ignored Duration, "warning-apply-duration" = "100ms":
        "Applied entries that take longer are logged.";

    Tracing Ignored Bool, "enable-distributed-tracing" = "false":
        "Send traces with OpenTelemetry.";
    Tracing Ignored Text, "distributed-tracing-address" = "localhost:4317":
        "Address of the collector.";
    Tracing Ignored Text, "distributed-tracing-service-name" = "etcd":
        "Service name in traces.";
    Tracing Ignored Text, "distributed-tracing-instance-id" = "":
        "Instance id in traces.";
    Tracing Ignored Int, "distributed-tracing-sampling-rate" = "0":
        "Samples per million spans.";

    Features Ignored Duration, "corrupt-check-time" = "0s":
        "Time between checks for corruption in the cluster; 0 disables.";
    Features Ignored Duration, "compact-hash-check-time" = "1m":
        "Time between checks of compaction hashes.";
    Features Ignored Int, "compaction-batch-limit" = "0":
        "Revisions deleted in one step of a compaction; 0 means 1000.";
    Features Ignored Duration, "compaction-sleep-interval" = "0s":
        "Pause between two steps of a compaction; 0 means 10 ms.";
    Features Supported Duration, "watch-progress-notify-interval" = "0s":
        "Time between progress notifications of idle watches; 0 means 10 minutes.";
    Features Ignored Uint, "bootstrap-defrag-threshold-megabytes" = "0":
        "Defragment at start if this much is freed, megabytes; 0 disables.";
    Features Ignored Duration, "downgrade-check-time" = "5s":
        "Time between two looks at a running downgrade.";

    Unsafe Refused Bool, "force-new-cluster" = "false":
        "Make a one-member cluster of this member's data.";
    Unsafe Supported Bool, "unsafe-no-fsync" = "false":
        "Do not flush the disk: a crash of the machine loses data.";

    Ringkv Supported Uint, "shards" = "0":
        "Cores to run on, each with one thread; 0 means all.";
}

/// Flags of etcd that only ours follow in [`FLAGS`].
pub const OURS: &[&str] = &["shards"];

/// Flags that etcd accepts and ignores, and `--enable-v2` of etcd 3.5. They take no value of their
/// own: `--flag value` leaves `value` over.
pub const FORGOTTEN: &[&str] = &[
    "cluster-active-size",
    "cluster-remove-delay",
    "cluster-sync-interval",
    "config",
    "enable-v2",
    "force",
    "max-result-buffer",
    "max-retry-attempts",
    "peer-election-timeout",
    "peer-heartbeat-interval",
    "retry-interval",
    "snapshot",
    "test.coverprofile",
    "test.outputdir",
    "v",
    "vv",
];

/// Switches of etcd 3.5 that became feature gates.
pub const EXPERIMENTAL_GATES: &[(&str, &str)] = &[
    ("compact-hash-check-enabled", "CompactHashCheck"),
    ("enable-lease-checkpoint", "LeaseCheckpoint"),
    ("enable-lease-checkpoint-persist", "LeaseCheckpointPersist"),
    ("initial-corrupt-check", "InitialCorruptCheck"),
    ("set-member-localaddr", "SetMemberLocalAddr"),
    ("stop-grpc-service-on-defrag", "StopGRPCServiceOnDefrag"),
    (
        "txn-mode-write-with-shared-buffer",
        "TxnModeWriteWithSharedBuffer",
    ),
];

/// Feature gates and their defaults.
pub const GATES: &[(&str, bool)] = &[
    ("CompactHashCheck", false),
    ("FastLeaseKeepAlive", true),
    ("InitialCorruptCheck", false),
    ("LeaseCheckpoint", false),
    ("LeaseCheckpointPersist", false),
    ("PriorityRequest", false),
    ("SetMemberLocalAddr", false),
    ("StopGRPCServiceOnDefrag", false),
    ("TxnModeWriteWithSharedBuffer", true),
];
