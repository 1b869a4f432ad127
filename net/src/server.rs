//! Composition root: data directory, listeners, one executor a shard, and the order of start and
//! stop.
//!
//! Runs on the main thread, which then only waits for a signal. Listeners share their ports by
//! SO_REUSEPORT; before that, an exclusive bind makes sure that no other server has the port.
//! On stop the listeners go first: with io_uring they would outlive the process by some 10 ms and
//! swallow connections that are meant for its successor.

use core::time::Duration;
use std::net::{SocketAddr, ToSocketAddrs};
use std::process::ExitCode;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread::available_parallelism;

use futures_channel::oneshot;
use glommio::net::{TcpListener, TcpStream};
use glommio::{ExecutorJoinHandle, LocalExecutorBuilder, Placement, Task};
use rustix::net::{AddressFamily, SocketType, bind, socket, sockopt};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::config::Config;
use crate::config::value::Url;
use crate::datadir::DataDir;
use crate::front::{Drain, FrontSettings, Traffic, serve_connection};
use crate::http::Access;
use crate::log;
use crate::pb::etcdserverpb::AlarmMember;
use crate::service::{Member, Services};
use crate::wire::Status;
use ringkv_engine::error::ApiError;
use ringkv_engine::limits::Limits;

/// A few turns of an executor's ring.
const RING_TURN: Duration = Duration::from_millis(2);
/// Time for in-flight calls to end after a signal; etcd's suites expect the end within 1.5 s.
const DRAIN_PATIENCE: Duration = Duration::from_millis(500);
/// Pause after a failed accept: usually the process is out of files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

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
    let ports = ports(config)?;
    if !config.socket_reuse_port {
        ports.iter().try_for_each(Port::refuse_if_taken)?;
    }
    let shards = start_shards(config, &ports)?;
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
    stop_shards(shards)
}

/// One address to listen on.
#[derive(Clone, Copy, Debug)]
struct Port {
    address: SocketAddr,
    traffic: Traffic,
}

impl Port {
    fn new(url: &Url, traffic: Traffic) -> Result<Self, String> {
        let plain = url.host_port().filter(|_| !url.scheme.is_tls());
        let Some((host, port)) = plain else {
            return Err(format!("listening on {url} is not supported yet"));
        };
        let port: u16 = port
            .parse()
            .map_err(|_| format!("listen tcp: address {port}: invalid port"))?;
        let addresses = (host, port)
            .to_socket_addrs()
            .map_err(|error| format!("listen tcp: lookup {host}: {error}"))?;
        // Like Go: of a name's addresses, the first of IPv4.
        let address = addresses.min_by_key(|address| !address.is_ipv4());
        let address = address.ok_or_else(|| format!("listen tcp: lookup {host}: no such host"))?;
        Ok(Self { address, traffic })
    }

    const fn traffic_name(&self) -> &'static str {
        match self.traffic {
            Traffic::Both => "grpc+http",
            Traffic::Grpc => "grpc",
            Traffic::Http => "http",
            Traffic::Metrics => "metrics",
        }
    }

    /// Fails if anybody listens on the address. Sockets with SO_REUSEPORT would share it silently.
    fn refuse_if_taken(&self) -> Result<(), String> {
        let family = if self.address.is_ipv4() {
            AddressFamily::INET
        } else {
            AddressFamily::INET6
        };
        let probe = || {
            let probe = socket(family, SocketType::STREAM, None)?;
            sockopt::set_socket_reuseaddr(&probe, true)?;
            bind(&probe, &self.address)
        };
        probe().map_err(|errno| self.bind_error(errno.into()))
    }

    fn bind_error(&self, error: std::io::Error) -> String {
        let reason = match error.kind() {
            std::io::ErrorKind::AddrInUse => "address already in use".to_owned(),
            std::io::ErrorKind::AddrNotAvailable => "cannot assign requested address".to_owned(),
            std::io::ErrorKind::PermissionDenied => "permission denied".to_owned(),
            _ => error.to_string(),
        };
        format!("listen tcp {}: bind: {reason}", self.address)
    }
}

fn ports(config: &Config) -> Result<Vec<Port>, String> {
    let split = !config.listen_client_http_urls.is_empty();
    let client = if split { Traffic::Grpc } else { Traffic::Both };
    let http = config
        .listen_client_http_urls
        .iter()
        .chain(&config.listen_metrics_urls);
    let urls = config
        .listen_client_urls
        .iter()
        .map(|url| (url, client))
        .chain(http.map(|url| (url, Traffic::Http)));
    urls.map(|(url, traffic)| Port::new(url, traffic)).collect()
}

/// A running shard: what stops it, and its thread.
type Shard = (oneshot::Sender<()>, ExecutorJoinHandle<()>);

/// Starts all executors and waits until all of them listen.
fn start_shards(config: &Config, ports: &[Port]) -> Result<Vec<Shard>, String> {
    let cores = available_parallelism().map_or(1, core::num::NonZero::get);
    let count = config.shards.unwrap_or(cores);
    let settings = front_settings(config);
    let (listening, listens) = mpsc::channel();
    let mut shards = Vec::with_capacity(count);
    for id in 0..count {
        // Pinning pays only where a core can be spared for other processes.
        let pinned = cores > 2 && count <= cores;
        let placement = if pinned {
            Placement::Fixed(id)
        } else {
            Placement::Unbound
        };
        let (stop, stopped) = oneshot::channel();
        let (ports, listening) = (ports.to_vec(), listening.clone());
        let handle = LocalExecutorBuilder::new(placement)
            .name(&format!("shard-{id}"))
            .spawn({
                let settings = settings.clone();
                move || run_shard(ports, settings, listening, stopped)
            })
            .map_err(|error| format!("cannot start shard {id}: {error}"))?;
        shards.push((stop, handle));
    }
    for _ in 0..count {
        listens
            .recv()
            .map_err(|_| "a shard ended at its start".to_owned())??;
    }
    Ok(shards)
}

fn stop_shards(shards: Vec<Shard>) -> Result<(), String> {
    let mut handles = Vec::with_capacity(shards.len());
    for (stop, handle) in shards {
        // A shard that has ended by itself is seen when joined.
        let _ = stop.send(());
        handles.push(handle);
    }
    for handle in handles {
        handle
            .join()
            .map_err(|error| format!("a shard failed: {error}"))?;
    }
    Ok(())
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

async fn run_shard(
    ports: Vec<Port>,
    settings: FrontSettings,
    listening: mpsc::Sender<Result<(), String>>,
    stopped: oneshot::Receiver<()>,
) {
    let node = Rc::new(Storeless);
    let drain = Drain::default();
    let mut accepting: Vec<Task<()>> = Vec::with_capacity(ports.len());
    for port in ports {
        let listener = match TcpListener::bind(port.address) {
            Ok(listener) => listener,
            Err(error) => {
                let _ = listening.send(Err(port.bind_error(error.into())));
                return;
            }
        };
        let settings = FrontSettings {
            traffic: port.traffic,
            ..settings.clone()
        };
        let accept = accept(listener, node.clone(), settings, drain.clone());
        accepting.push(glommio::spawn_local(accept));
    }
    // The receiver is gone only if another shard has failed.
    let _ = listening.send(Ok(()));
    // An error means that the main thread is gone, which is as good as a signal.
    let _ = stopped.await;
    close_listeners(accepting).await;
    if !drain.finish(DRAIN_PATIENCE).await {
        log::warn!("connections were cut at shutdown", "count" => drain.open_count());
    }
}

/// Cancels accept tasks and waits until the kernel has closed their sockets too.
pub async fn close_listeners(accepting: Vec<Task<()>>) {
    for task in accepting {
        task.cancel().await;
    }
    // The ring holds a socket until the cancelled poll has gone through it.
    glommio::timer::sleep(RING_TURN).await;
}

/// Accepts connections until cancelled, each served by a task of its own on this shard.
pub async fn accept<N: Services + Member>(
    listener: TcpListener,
    node: Rc<N>,
    settings: FrontSettings,
    drain: Drain,
) {
    let settings = Rc::new(settings);
    loop {
        match listener.accept().await {
            Ok(stream) => spawn_connection(stream, node.clone(), settings.clone(), drain.clone()),
            Err(error) => {
                log::warn!("cannot accept a connection", "error" => error.to_string());
                glommio::timer::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Serves a connection by a task of its own on this shard, wherever it was accepted.
pub fn spawn_connection<N: Services + Member>(
    stream: TcpStream,
    node: Rc<N>,
    settings: Rc<FrontSettings>,
    drain: Drain,
) {
    // A connection that was reset before it was accepted has no address and no future.
    let Ok(remote) = stream.peer_addr() else {
        return;
    };
    if stream.set_nodelay(true).is_err() {
        return;
    }
    let task = async move {
        serve_connection(stream, &remote.to_string(), node, &settings, &drain).await;
    };
    let queue = glommio::executor().current_task_queue();
    glommio::spawn_local_into(task, queue)
        .expect("the queue that runs this task exists")
        .detach();
}

/// A member without a store: every RPC is unimplemented, every read finds no leader.
struct Storeless;

impl Services for Storeless {}

impl Member for Storeless {
    fn cluster_version(&self) -> Option<String> {
        None
    }

    fn storage_version(&self) -> Option<String> {
        None
    }

    fn alarms(&self) -> Vec<AlarmMember> {
        Vec::new()
    }

    fn has_leader(&self) -> bool {
        false
    }

    fn is_learner(&self) -> bool {
        false
    }

    async fn probe_read(&self, _serializable: bool) -> Result<(), Status> {
        Err(ApiError::NoLeader.into())
    }

    fn health_checked(&self, _kind: &'static str, _check: &'static str, _passed: bool) {}

    fn write_metrics(&self, _out: &mut String) {}
}
