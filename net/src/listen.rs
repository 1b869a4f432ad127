//! Listening: which addresses, whether they are free, and which shard serves a connection.
//!
//! Shard 0 owns the listeners. It keeps the first connections for itself, for there a request needs
//! no other core to wake, and hands later ones to whichever shard has the fewest. One listener a
//! port spreads them evenly, which the kernel's hashing over SO_REUSEPORT does not.

use core::sync::atomic::{AtomicUsize, Ordering};
use core::time::Duration;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use glommio::Task;
use glommio::channels::shared_channel::{ConnectedReceiver, ConnectedSender};
use glommio::net::{AcceptedTcpStream, TcpListener, TcpStream};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketType, bind, socket, sockopt};

use crate::config::Config;
use crate::config::value::Url;
use crate::front::{Drain, FrontSettings, Traffic, serve_connection};
use crate::log;
use crate::service::{Member, Services};

/// Pause after a failed accept: usually the process is out of files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// How long a killed server's listeners may stay.
const GHOST_PATIENCE: Duration = Duration::from_secs(2);
const GHOST_PAUSE: Duration = Duration::from_millis(5);
/// How long a listener may take to answer when it is looked for.
const CONNECT_PATIENCE: Duration = Duration::from_millis(500);
/// A few turns of an executor's ring.
const RING_TURN: Duration = Duration::from_millis(2);
/// Connections that stay on the sequencer's core before others get any.
const FEW_CONNECTIONS: usize = 4;

/// One address to listen on.
#[derive(Clone, Copy, Debug)]
pub struct Port {
    /// Where.
    pub address: SocketAddr,
    /// What.
    pub traffic: Traffic,
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

    /// As the log calls it.
    #[must_use]
    pub const fn traffic_name(&self) -> &'static str {
        match self.traffic {
            Traffic::Both => "grpc+http",
            Traffic::Grpc => "grpc",
            Traffic::Http => "http",
            Traffic::Metrics => "metrics",
        }
    }

    /// Fails if anybody listens on the address. Sockets with SO_REUSEPORT would share it silently.
    ///
    /// # Errors
    /// Go's text.
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
        match probe() {
            // Connections that a killed server left half closed hold the port against this bind,
            // but not against one that shares it.
            Err(Errno::ADDRINUSE) if !self.is_listening() => Ok(()),
            result => result.map_err(|errno| self.bind_error(errno.into())),
        }
    }

    /// Whether a connection to the address is taken.
    fn is_listening(&self) -> bool {
        let mut address = self.address;
        if address.ip().is_unspecified() {
            address.set_ip(if address.is_ipv4() {
                Ipv4Addr::LOCALHOST.into()
            } else {
                Ipv6Addr::LOCALHOST.into()
            });
        }
        let connected = std::net::TcpStream::connect_timeout(&address, CONNECT_PATIENCE);
        // The kernel may have picked this very port for our end, and joined the two.
        connected.is_ok_and(|stream| stream.local_addr().ok() != stream.peer_addr().ok())
    }

    /// Go's text for a failed bind.
    #[must_use]
    pub fn bind_error(&self, error: std::io::Error) -> String {
        let reason = match error.kind() {
            std::io::ErrorKind::AddrInUse => "address already in use".to_owned(),
            std::io::ErrorKind::AddrNotAvailable => "cannot assign requested address".to_owned(),
            std::io::ErrorKind::PermissionDenied => "permission denied".to_owned(),
            _ => error.to_string(),
        };
        format!("listen tcp {}: bind: {reason}", self.address)
    }
}

/// Makes sure that nobody listens on any of `ports`.
///
/// With io_uring the listener of a killed process outlives it by some milliseconds: after a crash
/// of this directory's last server they are waited for.
///
/// # Errors
/// Go's text for the first that is taken.
pub fn refuse_if_taken(ports: &[Port], after_crash: bool) -> Result<(), String> {
    let patience = if after_crash {
        GHOST_PATIENCE
    } else {
        Duration::ZERO
    };
    let start = Instant::now();
    for port in ports {
        while let Err(error) = port.refuse_if_taken() {
            if start.elapsed() >= patience {
                return Err(error);
            }
            std::thread::sleep(GHOST_PAUSE);
        }
    }
    Ok(())
}

/// All addresses that the flags name.
///
/// # Errors
/// Go's text for one that cannot be listened on.
pub fn ports(config: &Config) -> Result<Vec<Port>, String> {
    let split = !config.listen_client_http_urls.is_empty();
    let client = if split { Traffic::Grpc } else { Traffic::Both };
    let urls = [
        (&config.listen_client_urls, client),
        (&config.listen_client_http_urls, Traffic::Http),
        (&config.listen_metrics_urls, Traffic::Metrics),
    ];
    let urls = urls
        .iter()
        .flat_map(|(urls, traffic)| urls.iter().map(|url| (url, *traffic)));
    urls.map(|(url, traffic)| Port::new(url, traffic)).collect()
}

/// An accepted connection on its way to its shard.
pub struct Accepted {
    stream: AcceptedTcpStream,
    traffic: Traffic,
}

/// Open connections of each shard; a gauge that shard 0 reads.
pub type Loads = Arc<[AtomicUsize]>;

/// Serves connections on one shard.
pub struct Connections<N> {
    /// What answers.
    pub node: Rc<N>,
    /// Bounds.
    pub settings: FrontSettings,
    /// Ends them.
    pub drain: Drain,
    /// Of all shards.
    pub loads: Loads,
    /// This shard.
    pub shard: usize,
}

impl<N: Services + Member> Connections<N> {
    fn spawn(&self, stream: TcpStream, traffic: Traffic) {
        // A connection that was reset before it was accepted has no address and no future.
        let Ok(remote) = stream.peer_addr() else {
            return;
        };
        if stream.set_nodelay(true).is_err() {
            return;
        }
        let settings = Rc::new(FrontSettings {
            traffic,
            ..self.settings.clone()
        });
        let (node, drain) = (Rc::clone(&self.node), self.drain.clone());
        let counted = Counted::new(&self.loads, self.shard);
        let task = async move {
            serve_connection(stream, &remote.to_string(), node, &settings, &drain).await;
            drop(counted);
        };
        crate::task::spawn(task);
    }

    /// Serves what another shard accepted.
    pub async fn take_over(self: Rc<Self>, accepted: ConnectedReceiver<Accepted>) {
        while let Some(Accepted { stream, traffic }) = accepted.recv().await {
            self.spawn(stream.bind_to_executor(), traffic);
        }
    }
}

/// Counts a connection while it lives.
struct Counted {
    loads: Loads,
    shard: usize,
}

impl Counted {
    fn new(loads: &Loads, shard: usize) -> Self {
        // Relaxed: a gauge.
        loads[shard].fetch_add(1, Ordering::Relaxed);
        Self {
            loads: Arc::clone(loads),
            shard,
        }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.loads[self.shard].fetch_sub(1, Ordering::Relaxed);
    }
}

/// Listens on all `ports`; the tasks accept until they are cancelled ([`close`]).
///
/// # Errors
/// Go's text for one that cannot be bound.
pub fn accept_all<N: Services + Member>(
    ports: Vec<Port>,
    own: &Rc<Connections<N>>,
    others: Vec<ConnectedSender<Accepted>>,
) -> Result<Vec<Task<()>>, String> {
    let others = Rc::new(others);
    let start = |port: Port| {
        let listener =
            TcpListener::bind(port.address).map_err(|error| port.bind_error(error.into()))?;
        let (own, others) = (Rc::clone(own), Rc::clone(&others));
        Ok(glommio::spawn_local(accept(
            listener,
            port.traffic,
            own,
            others,
        )))
    };
    ports.into_iter().map(start).collect()
}

/// Accepts on one port until cancelled. `others` lead to shards 1 and up.
pub async fn accept<N: Services + Member>(
    listener: TcpListener,
    traffic: Traffic,
    own: Rc<Connections<N>>,
    others: Rc<Vec<ConnectedSender<Accepted>>>,
) {
    loop {
        let stream = match listener.shared_accept().await {
            Ok(stream) => stream,
            Err(error) => {
                log::warn!("cannot accept a connection", "error" => error.to_string());
                glommio::timer::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        match choose(&own.loads) {
            0 => own.spawn(stream.bind_to_executor(), traffic),
            // It fails only when that shard is gone, and then the server is going.
            shard => drop(others[shard - 1].send(Accepted { stream, traffic }).await),
        }
    }
}

/// Cancels accept tasks and waits until the kernel has closed their sockets too.
pub async fn close(accepting: Vec<Task<()>>) {
    for task in accepting {
        task.cancel().await;
    }
    // The ring holds a socket until the cancelled poll has gone through it.
    glommio::timer::sleep(RING_TURN).await;
}

fn choose(loads: &Loads) -> usize {
    let load = |shard: usize| loads[shard].load(Ordering::Relaxed);
    if load(0) < FEW_CONNECTIONS {
        return 0;
    }
    (0..loads.len())
        .min_by_key(|&shard| load(shard))
        .expect("there is a shard")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_few_stay_and_the_rest_are_spread() {
        let loads: Loads = [0, 0, 0].map(AtomicUsize::new).into_iter().collect();
        let chosen: Vec<usize> = (0..12)
            .map(|_| {
                let shard = choose(&loads);
                loads[shard].fetch_add(1, Ordering::Relaxed);
                shard
            })
            .collect();
        assert_eq!(chosen, [0, 0, 0, 0, 1, 2, 1, 2, 1, 2, 1, 2]);
    }
}
