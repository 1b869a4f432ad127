//! Composition root: data directory, recovery, rings, listeners, one executor a shard, and the
//! order of start and stop.
//!
//! Runs on the main thread, which then only waits for a signal. Shard 0 runs the sequencer, so it
//! starts first and ends last. On stop the listeners go first: with io_uring they would outlive the
//! process by some 10 ms and swallow connections that are meant for its successor.

use core::sync::atomic::AtomicUsize;
use core::time::Duration;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::rc::Rc;
use std::sync::{Arc, mpsc};
use std::thread::available_parallelism;
use std::time::{SystemTime, UNIX_EPOCH};

use futures_channel::oneshot;
use glommio::channels::shared_channel::{SharedReceiver, SharedSender, new_bounded};
use glommio::{ExecutorJoinHandle, LocalExecutorBuilder, Placement, PoolPlacement};
use ringkv_engine::checkpoint::Superblock;
use ringkv_engine::command::Command;
use ringkv_engine::index::Reader;
use ringkv_engine::limits::Limits;
use ringkv_engine::mvcc::View;
use ringkv_raft::sequencer::{Identity, Sequencer};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::config::{AutoCompaction, Config};
use crate::datadir::DataDir;
use crate::disk::{FrameWriter, SyncMode, probe_sync_mode};
use crate::front::{Drain, FrontSettings};
use crate::http::Access;
use crate::launch::{Launched, launch};
use crate::lease::IdSource;
use crate::listen::{self, Accepted, Connections, Loads, Port};
use crate::log;
use crate::node::{Node, Settings};
use crate::periodic;
use crate::seq::{self, Driver, LocalPort, Mailbox, Outlet};
use crate::shard::{Shard, ToSequencer, ToShard};
use crate::task::spawn;
use crate::watch::Watching;

/// Time for in-flight calls to end after a signal; etcd's suites expect the end within 1.5 s.
const DRAIN_PATIENCE: Duration = Duration::from_millis(500);
/// Side threads of the sequencer's executor: log segments, and checkpoints beside them.
const SIDE_THREADS: usize = 2;
/// etcd's default for `--quota-backend-bytes`, bytes.
const QUOTA_BYTES_DEFAULT: u64 = 2 << 30;
/// etcd waits this long, and two election timeouts, for a request to be applied.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// Cluster version that a new cluster decides on.
const CLUSTER_VERSION: &str = "3.7.0";

/// Runs a server until SIGTERM or SIGINT, or until it fails; what failed is logged.
#[must_use]
pub fn run(config: &Config) -> ExitCode {
    match serve(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => {
            log::error!("failed to start etcd", "error" => reason);
            ExitCode::FAILURE
        }
    }
}

fn serve(config: &Config) -> Result<(), String> {
    // First of all, so that no signal ends the process by default.
    let mut signals =
        Signals::new([SIGTERM, SIGINT]).map_err(|error| format!("signal handlers: {error}"))?;
    let data_dir = DataDir::open(&config.data_dir)?;
    let ports = listen::ports(config)?;
    if !config.socket_reuse_port {
        listen::refuse_if_taken(&ports, data_dir.had_crashed())?;
    }
    let limits = Limits::PRODUCTION;
    let launched = launch(config, data_dir.path(), limits)?;
    let shards = start(config, &data_dir, &ports, launched)?;
    log::info!(
        "ready to serve client requests",
        "data-dir" => data_dir.path().display().to_string(),
        "shards" => shards.len(),
    );
    for port in &ports {
        log::info!(
            "serving client traffic insecurely; this is strongly discouraged!",
            "traffic" => port.traffic_name(),
            "address" => port.address.to_string(),
        );
    }
    if let Some(signal) = signals.forever().next() {
        log::info!("received signal; shutting down", "signal" => signal);
    }
    stop(shards)
}

async fn sync_mode(data_dir: &Path, unsafe_no_fsync: bool) -> Result<SyncMode, String> {
    let mode = if unsafe_no_fsync {
        SyncMode::Unsafe
    } else {
        probe_sync_mode(data_dir)
            .await
            .map_err(|error| format!("cannot measure the data directory's device: {error}"))?
    };
    log::info!("log writes are made durable", "by" => format!("{mode:?}"));
    Ok(mode)
}

/// A running shard.
struct Running {
    /// Ends its connections.
    stop: oneshot::Sender<()>,
    /// Ends its executor.
    end: oneshot::Sender<()>,
    handle: ExecutorJoinHandle<()>,
}

/// The ends of the rings between shard 0 and another shard that the other one holds.
struct RemoteEnds {
    to_sequencer: SharedSender<ToSequencer>,
    from_sequencer: SharedReceiver<ToShard>,
    accepted: SharedReceiver<Accepted>,
}

/// The same rings' ends on shard 0.
struct HomeEnds {
    from_shard: SharedReceiver<ToSequencer>,
    to_shard: SharedSender<ToShard>,
    accepted: SharedSender<Accepted>,
}

fn rings(limits: &Limits) -> (HomeEnds, RemoteEnds) {
    let (to_sequencer, from_shard) = new_bounded(limits.ring_batches_max);
    let (to_shard, from_sequencer) = new_bounded(limits.ring_batches_max);
    let (accepting, accepted) = new_bounded(limits.ring_batches_max);
    (
        HomeEnds {
            from_shard,
            to_shard,
            accepted: accepting,
        },
        RemoteEnds {
            to_sequencer,
            from_sequencer,
            accepted,
        },
    )
}

/// What every shard is given.
#[derive(Clone)]
struct Common {
    identity: Identity,
    settings: Settings,
    front: FrontSettings,
    reader: Reader<View>,
    loads: Loads,
    timeout_s: u32,
    start_ms: u64,
}

impl Common {
    fn shard(&self, id: usize, port: Box<dyn crate::shard::Port>) -> Rc<Shard> {
        let id = u8::try_from(id).expect("at most 256 shards");
        let reader = self.reader.clone();
        Shard::new(
            id,
            self.identity,
            Limits::PRODUCTION,
            self.timeout_s,
            port,
            reader,
        )
    }

    fn connections(&self, id: usize, shard: &Rc<Shard>) -> Rc<Connections<Node>> {
        let node = Node {
            shard: Rc::clone(shard),
            watching: Watching::new(Rc::clone(shard), &self.settings),
            settings: Rc::new(self.settings.clone()),
            lease_ids: IdSource::new(self.start_ms, shard.id()),
        };
        Rc::new(Connections {
            node: Rc::new(node),
            settings: self.front.clone(),
            drain: Drain::default(),
            loads: self.loads.clone(),
            shard: id,
        })
    }
}

/// What only shard 0 is given.
struct Home {
    sequencer: Sequencer,
    superblock: Superblock,
    ends: Vec<HomeEnds>,
    ports: Vec<Port>,
    data_dir: PathBuf,
    unsafe_no_fsync: bool,
    heartbeat: Duration,
    auto_compaction: AutoCompaction,
    name: String,
    client_urls: Vec<String>,
}

type Ready = mpsc::Sender<Result<(), String>>;

/// Starts all executors and waits until they serve.
fn start(
    config: &Config,
    data_dir: &DataDir,
    ports: &[Port],
    launched: Launched,
) -> Result<Vec<Running>, String> {
    let cores = available_parallelism().map_or(1, core::num::NonZero::get);
    let count = config.shards.unwrap_or(cores).clamp(1, 256);
    let common = Common {
        identity: launched.identity,
        settings: settings(config, &launched),
        front: front_settings(config),
        reader: launched.sequencer.reader(),
        loads: (0..count).map(|_| AtomicUsize::new(0)).collect(),
        timeout_s: (REQUEST_TIMEOUT + 2 * config.election_timeout).as_secs() as u32,
        start_ms: SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |d| d.as_millis() as u64),
    };
    let (home_ends, remote_ends): (Vec<_>, Vec<_>) =
        (1..count).map(|_| rings(&Limits::PRODUCTION)).unzip();
    let home = Home {
        sequencer: launched.sequencer,
        superblock: launched.superblock,
        ends: home_ends,
        ports: ports.to_vec(),
        data_dir: data_dir.path().to_owned(),
        unsafe_no_fsync: config.unsafe_no_fsync,
        heartbeat: config.heartbeat_interval,
        auto_compaction: config.auto_compaction,
        name: config.name.clone(),
        client_urls: config
            .advertise_client_urls
            .iter()
            .map(ToString::to_string)
            .collect(),
    };
    let (ready, readies) = mpsc::channel();
    // Pinning pays only where a core can be spared for other processes.
    let pinned = cores > 2 && count <= cores;
    let mut shards = Vec::with_capacity(count);
    shards.push(spawn_shard(0, pinned, {
        let (common, ready) = (common.clone(), ready.clone());
        |stop, end| run_home(home, common, ready, stop, end)
    })?);
    for (i, ends) in remote_ends.into_iter().enumerate() {
        let (common, ready) = (common.clone(), ready.clone());
        shards.push(spawn_shard(i + 1, pinned, move |stop, end| {
            run_remote(i + 1, ends, common, ready, stop, end)
        })?);
    }
    for _ in 0..count {
        readies
            .recv()
            .map_err(|_| "a shard ended at its start".to_owned())??;
    }
    Ok(shards)
}

fn spawn_shard<F: Future<Output = ()> + 'static>(
    id: usize,
    pinned: bool,
    run: impl FnOnce(oneshot::Receiver<()>, oneshot::Receiver<()>) -> F + Send + 'static,
) -> Result<Running, String> {
    let placement = if pinned {
        Placement::Fixed(id)
    } else {
        Placement::Unbound
    };
    let (stop, stopped) = oneshot::channel();
    let (end, ended) = oneshot::channel();
    let handle = LocalExecutorBuilder::new(placement)
        .name(&format!("shard-{id}"))
        .blocking_thread_pool_placement(PoolPlacement::Unbound(SIDE_THREADS))
        .spawn(move || run(stopped, ended))
        .map_err(|error| format!("cannot start shard {id}: {error}"))?;
    Ok(Running { stop, end, handle })
}

fn stop(shards: Vec<Running>) -> Result<(), String> {
    let mut running = Vec::with_capacity(shards.len());
    for Running { stop, end, handle } in shards {
        // A shard that has ended by itself is seen when joined.
        let _ = stop.send(());
        running.push((end, handle));
    }
    // Shard 0 last: the others' requests need its sequencer.
    while let Some((end, handle)) = running.pop() {
        let _ = end.send(());
        handle
            .join()
            .map_err(|error| format!("a shard failed: {error}"))?;
    }
    Ok(())
}

fn settings(config: &Config, launched: &Launched) -> Settings {
    let quota = u64::try_from(config.quota_backend_bytes).unwrap_or(u64::MAX);
    Settings {
        cluster_id: launched.cluster_id,
        member_id: launched.identity.member,
        txn_ops_max: usize::try_from(config.max_txn_ops).unwrap_or(usize::MAX),
        request_bytes_max: usize::try_from(config.max_request_bytes).unwrap_or(usize::MAX),
        quota_bytes: if quota == 0 {
            QUOTA_BYTES_DEFAULT
        } else {
            quota
        },
        watch_progress_ms: config.watch_progress_notify_interval.as_millis() as u64,
    }
}

fn front_settings(config: &Config) -> FrontSettings {
    let request_bytes = usize::try_from(config.max_request_bytes).unwrap_or(usize::MAX);
    let defaults = FrontSettings::default();
    FrontSettings {
        access: Arc::new(Access {
            origins: config.cors.clone(),
            hosts: config.host_whitelist.clone(),
        }),
        request_bytes_max: request_bytes.saturating_add(Limits::PRODUCTION.grpc_overhead_bytes),
        streams_max: config.max_concurrent_streams,
        keepalive_interval: config.grpc_keepalive_interval.filter(|_| {
            // Without time for an answer, every ping would end its connection.
            config.grpc_keepalive_timeout.is_some()
        }),
        keepalive_timeout: config
            .grpc_keepalive_timeout
            .unwrap_or(defaults.keepalive_timeout),
        ..defaults
    }
}

async fn seconds(shard: Rc<Shard>) {
    loop {
        glommio::timer::sleep(Duration::from_secs(1)).await;
        shard.second_passed();
    }
}

async fn run_remote(
    id: usize,
    ends: RemoteEnds,
    common: Common,
    ready: Ready,
    stop: oneshot::Receiver<()>,
    end: oneshot::Receiver<()>,
) {
    let outbox = Rc::new(Mailbox::default());
    let shard = common.shard(id, Box::new(LocalPort(Rc::clone(&outbox))));
    let connections = common.connections(id, &shard);
    let to_sequencer = ends.to_sequencer.connect().await;
    let from_sequencer = ends.from_sequencer.connect().await;
    let accepted = ends.accepted.connect().await;
    spawn(seq::pump(outbox, to_sequencer));
    spawn(seq::deliver(from_sequencer, Rc::clone(&shard)));
    spawn(Rc::clone(&connections).take_over(accepted));
    spawn(seconds(shard));
    // The receiver is gone only if another shard has failed.
    let _ = ready.send(Ok(()));
    drain(&connections.drain, stop).await;
    let _ = end.await;
}

async fn run_home(
    home: Home,
    common: Common,
    ready: Ready,
    stop: oneshot::Receiver<()>,
    end: oneshot::Receiver<()>,
) {
    let inbox: Rc<Mailbox<ToSequencer>> = Rc::default();
    let shard = common.shard(0, Box::new(LocalPort(Rc::clone(&inbox))));
    let mut outlets = vec![Outlet::Local(Rc::clone(&shard))];
    let mut others = Vec::with_capacity(home.ends.len());
    for ends in home.ends {
        let from_shard = ends.from_shard.connect().await;
        let to_shard = ends.to_shard.connect().await;
        others.push(ends.accepted.connect().await);
        let mailbox = Rc::new(Mailbox::default());
        spawn(seq::collect(from_shard, Rc::clone(&inbox)));
        spawn(seq::pump(Rc::clone(&mailbox), to_shard));
        outlets.push(Outlet::Remote(mailbox));
    }
    let sync_mode = match sync_mode(&home.data_dir, home.unsafe_no_fsync).await {
        Ok(mode) => mode,
        Err(reason) => {
            let _ = ready.send(Err(reason));
            return;
        }
    };
    let writer = FrameWriter::new(&home.data_dir, sync_mode);
    let driver = Driver::new(
        home.sequencer,
        outlets,
        inbox,
        writer,
        home.data_dir,
        home.superblock,
    );
    spawn(driver.run(home.heartbeat));
    spawn(seconds(Rc::clone(&shard)));

    if let Err(error) = announce(&shard, &home.name, home.client_urls).await {
        let _ = ready.send(Err(format!(
            "cannot publish this member to the cluster: {error}; is the disk full?"
        )));
        return;
    }
    spawn(periodic::auto_compact(
        Rc::clone(&shard),
        home.auto_compaction,
    ));
    let connections = common.connections(0, &shard);
    let accepting = match listen::accept_all(home.ports, &connections, others) {
        Ok(accepting) => accepting,
        Err(reason) => {
            let _ = ready.send(Err(reason));
            return;
        }
    };
    let _ = ready.send(Ok(()));
    let _ = stop.await;
    listen::close(accepting).await;
    drain_now(&connections.drain).await;
    let _ = end.await;
}

/// Tells the cluster this member's name and URLs, and a new cluster its version.
async fn announce(
    shard: &Rc<Shard>,
    name: &str,
    client_urls: Vec<String>,
) -> Result<(), ringkv_engine::error::ApiError> {
    let member = shard.identity().member;
    shard
        .propose(Command::MemberAttributes {
            member,
            name,
            client_urls,
        })
        .await?;
    if shard.registry().cluster_version.is_none() {
        shard
            .propose(Command::ClusterVersion {
                version: CLUSTER_VERSION,
            })
            .await?;
    }
    Ok(())
}

async fn drain(drain: &Drain, stop: oneshot::Receiver<()>) {
    // An error means that the main thread is gone, which is as good as a signal.
    let _ = stop.await;
    drain_now(drain).await;
}

async fn drain_now(drain: &Drain) {
    if !drain.finish(DRAIN_PATIENCE).await {
        log::warn!("connections were cut at shutdown", "count" => drain.open_count());
    }
}
