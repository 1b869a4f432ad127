//! Connections: tells HTTP/1.1 from HTTP/2, runs hyper, hands requests to gRPC or plain HTTP.
//!
//! Owned by one shard: a connection lives and dies on the executor that serves it. This is the
//! part that a purpose-built HTTP/2 front replaces; nothing behind [`Services`] knows of it.
//! Deliberately not here: listening (`server.rs`), TLS, and grpc-go's enforcement of a minimum
//! ping interval: hyper answers pings by itself and does not tell.

use core::cell::RefCell;
use core::convert::Infallible;
use core::future::poll_fn;
use core::pin::{Pin, pin};
use core::task::{Context, Poll, Waker};
use std::collections::BTreeMap;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_io::{AsyncRead, AsyncWrite};
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;

use crate::http::Access;
use crate::log;
use crate::service::{Member, Peer, Services};

mod body;
mod grpc;
mod gzip;
mod rt;

pub use body::Body;
use rt::{Io, LocalExecutor, LocalTimer, within};

/// What a port offers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Traffic {
    /// gRPC and plain HTTP.
    Both,
    /// gRPC only: `--listen-client-urls` beside `--listen-client-http-urls`.
    Grpc,
    /// Plain HTTP only.
    Http,
    /// Metrics and health only.
    Metrics,
}

/// What one connection may do.
#[derive(Clone, Debug)]
pub struct FrontSettings {
    /// Who may use plain HTTP.
    pub access: Arc<Access>,
    /// What is served.
    pub traffic: Traffic,
    /// Largest request message, bytes: `--max-request-bytes` and gRPC's overhead.
    pub request_bytes_max: usize,
    /// Streams open at once (`--max-concurrent-streams`).
    pub streams_max: u32,
    /// HTTP/2 flow-control window of a stream and of the connection, bytes. Clients that overrun
    /// the protocol's 64 KiB before they have read our settings are cut off, so it is larger.
    pub window_bytes: u32,
    /// Header list of one request, bytes.
    pub header_bytes_max: u32,
    /// Replies of one stream waiting for the socket, bytes.
    pub send_bytes_max: usize,
    /// Streams that a client may reset before we have seen them; one more ends the connection.
    pub resets_max: usize,
    /// Silence after which the server pings (`--grpc-keepalive-interval`), `None` for never.
    pub keepalive_interval: Option<Duration>,
    /// Time for the answer to that ping (`--grpc-keepalive-timeout`).
    pub keepalive_timeout: Duration,
    /// Time for a new connection to show its protocol (grpc-go: 120 s).
    pub handshake_timeout: Duration,
    /// Time for an HTTP/1.1 client to send its headers (etcd: 5 min).
    pub http1_header_timeout: Duration,
}

impl Default for FrontSettings {
    /// etcd's defaults.
    fn default() -> Self {
        Self {
            access: Arc::default(),
            traffic: Traffic::Both,
            request_bytes_max: (3 << 19) + (512 << 10),
            streams_max: u32::MAX,
            window_bytes: 1 << 20,
            header_bytes_max: 256 << 10,
            send_bytes_max: 1 << 20,
            resets_max: 1024,
            keepalive_interval: Some(Duration::from_hours(2)),
            keepalive_timeout: Duration::from_secs(20),
            handshake_timeout: Duration::from_secs(120),
            http1_header_timeout: Duration::from_mins(5),
        }
    }
}

/// Serves one accepted connection until it closes, fails, or is drained.
///
/// `remote` is the client's `ip:port`. Must run on a glommio executor.
pub async fn serve_connection<T, N>(
    mut stream: T,
    remote: &str,
    node: Rc<N>,
    settings: &Rc<FrontSettings>,
    drain: &Drain,
) where
    T: AsyncRead + AsyncWrite + Unpin + 'static,
    N: Services + Member,
{
    let deadline = Instant::now().checked_add(settings.handshake_timeout);
    let expired = || Err(io::Error::from(io::ErrorKind::TimedOut));
    let sniffed = within(deadline, expired, sniff(&mut stream)).await;
    let outcome = match sniffed {
        Ok((_, ahead)) if ahead.is_empty() => return,
        Ok((Protocol::Http1, _)) if settings.traffic == Traffic::Grpc => return,
        Ok((Protocol::Http1, ahead)) => {
            serve_http1(Io::new(stream, ahead), node, settings, drain).await
        }
        Ok((Protocol::Http2, ahead)) => {
            serve_http2(
                Io::new(stream, ahead),
                Peer::new(remote),
                node,
                settings,
                drain,
            )
            .await
        }
        Err(error) => {
            log::debug!("connection failed", "remote-addr" => remote, "error" => error.to_string());
            return;
        }
    };
    if let Err(error) = outcome {
        log::debug!("connection failed", "remote-addr" => remote, "error" => error.to_string());
    }
}

async fn serve_http2<T, N>(
    io: Io<T>,
    peer: Rc<Peer>,
    node: Rc<N>,
    settings: &Rc<FrontSettings>,
    drain: &Drain,
) -> hyper::Result<()>
where
    T: AsyncRead + AsyncWrite + Unpin + 'static,
    N: Services + Member,
{
    let shared = settings.clone();
    let service = service_fn(move |request: Request<Incoming>| {
        let (node, peer, settings) = (node.clone(), peer.clone(), shared.clone());
        async move {
            let grpc = match settings.traffic {
                Traffic::Both => grpc::is_grpc(request.headers()),
                Traffic::Grpc => true,
                Traffic::Http | Traffic::Metrics => false,
            };
            if grpc {
                let request_bytes_max = settings.request_bytes_max;
                return infallible(grpc::serve(&node, &peer, request_bytes_max, request).await);
            }
            infallible(plain(&*node, &settings, request).await)
        }
    });
    let connection = http2::Builder::new(LocalExecutor)
        .timer(LocalTimer)
        .initial_stream_window_size(settings.window_bytes)
        .initial_connection_window_size(settings.window_bytes)
        .max_concurrent_streams(settings.streams_max)
        .max_header_list_size(settings.header_bytes_max)
        .max_send_buf_size(settings.send_bytes_max)
        .max_pending_accept_reset_streams(settings.resets_max)
        .keep_alive_interval(settings.keepalive_interval)
        .keep_alive_timeout(settings.keepalive_timeout)
        .auto_date_header(false)
        .serve_connection(io, service);
    let mut connection = pin!(connection);
    let mut member = drain.join();
    poll_fn(|cx| {
        if member.poll_started(cx) {
            connection.as_mut().graceful_shutdown();
        }
        connection.as_mut().poll(cx)
    })
    .await
}

async fn serve_http1<T, N>(
    io: Io<T>,
    node: Rc<N>,
    settings: &Rc<FrontSettings>,
    drain: &Drain,
) -> hyper::Result<()>
where
    T: AsyncRead + AsyncWrite + Unpin + 'static,
    N: Member,
{
    let shared = settings.clone();
    let service = service_fn(move |request: Request<Incoming>| {
        let (node, settings) = (node.clone(), shared.clone());
        async move { infallible(plain(&*node, &settings, request).await) }
    });
    let connection = http1::Builder::new()
        .timer(LocalTimer)
        .header_read_timeout(settings.http1_header_timeout)
        .serve_connection(io, service);
    let mut connection = pin!(connection);
    let mut member = drain.join();
    poll_fn(|cx| {
        if member.poll_started(cx) {
            connection.as_mut().graceful_shutdown();
        }
        connection.as_mut().poll(cx)
    })
    .await
}

async fn plain(
    member: &impl Member,
    settings: &FrontSettings,
    request: Request<Incoming>,
) -> Response<Body> {
    // The body stays until the answer is there, or HTTP/2 would reset the stream.
    let (head, _body) = request.into_parts();
    match settings.traffic {
        Traffic::Metrics => crate::http::observe(member, &head).await,
        Traffic::Both | Traffic::Grpc | Traffic::Http => {
            crate::http::serve(member, &settings.access, &head).await
        }
    }
}

const fn infallible(response: Response<Body>) -> Result<Response<Body>, Infallible> {
    Ok(response)
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Protocol {
    Http1,
    Http2,
}

/// How every HTTP/2 connection begins (RFC 9113, 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Reads until the protocol is certain; gives what was read, nothing if the client left.
async fn sniff(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<(Protocol, Bytes)> {
    let mut ahead = [0; PREFACE.len()];
    let mut len = 0;
    while len < PREFACE.len() && PREFACE.starts_with(&ahead[..len]) {
        match poll_fn(|cx| Pin::new(&mut *stream).poll_read(cx, &mut ahead[len..])).await? {
            0 => break,
            count => len += count,
        }
    }
    let protocol = if ahead[..len] == *PREFACE {
        Protocol::Http2
    } else {
        Protocol::Http1
    };
    Ok((protocol, Bytes::copy_from_slice(&ahead[..len])))
}

/// Asks all connections of a shard to finish what they are doing and close.
#[derive(Clone, Default)]
pub struct Drain(Rc<RefCell<DrainState>>);

#[derive(Default)]
struct DrainState {
    started: bool,
    next_id: u64,
    /// Open connections; the waker once they were polled.
    open: BTreeMap<u64, Option<Waker>>,
    /// Waits for `open` to be empty.
    waiter: Option<Waker>,
}

impl Drain {
    /// Open connections.
    #[must_use]
    pub fn open_count(&self) -> usize {
        self.0.borrow().open.len()
    }

    /// Tells clients to go away and waits until all in-flight calls are answered and all
    /// connections closed, at most `patience`. Whether none was left; the caller drops the rest.
    pub async fn finish(&self, patience: Duration) -> bool {
        let wakers: Vec<Waker> = {
            let mut state = self.0.borrow_mut();
            state.started = true;
            state.open.values_mut().filter_map(Option::take).collect()
        };
        wakers.into_iter().for_each(Waker::wake);
        let deadline = Instant::now().checked_add(patience);
        within(deadline, || false, poll_fn(|cx| self.poll_empty(cx))).await
    }

    fn poll_empty(&self, cx: &mut Context<'_>) -> Poll<bool> {
        let mut state = self.0.borrow_mut();
        if state.open.is_empty() {
            return Poll::Ready(true);
        }
        state.waiter = Some(cx.waker().clone());
        Poll::Pending
    }

    fn join(&self) -> Drained {
        let mut state = self.0.borrow_mut();
        let id = state.next_id;
        state.next_id += 1;
        state.open.insert(id, None);
        Drained {
            drain: self.clone(),
            id,
            known: false,
            registered: false,
        }
    }
}

/// One connection's share of a [`Drain`].
struct Drained {
    drain: Drain,
    id: u64,
    /// Whether the connection was told.
    known: bool,
    /// Whether the connection's waker is kept. A task keeps its waker for life.
    registered: bool,
}

impl Drained {
    /// True once, when draining has started.
    fn poll_started(&mut self, cx: &mut Context<'_>) -> bool {
        if self.known {
            return false;
        }
        let mut state = self.drain.0.borrow_mut();
        if state.started {
            self.known = true;
        } else if !self.registered {
            self.registered = true;
            state.open.insert(self.id, Some(cx.waker().clone()));
        }
        self.known
    }
}

impl Drop for Drained {
    fn drop(&mut self) {
        let mut state = self.drain.0.borrow_mut();
        state.open.remove(&self.id);
        if state.open.is_empty()
            && let Some(waiter) = state.waiter.take()
        {
            waiter.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Chunks(Vec<&'static [u8]>);

    impl AsyncRead for Chunks {
        fn poll_read(
            mut self: Pin<&mut Self>,
            _cx: &mut Context<'_>,
            out: &mut [u8],
        ) -> Poll<io::Result<usize>> {
            if self.0.is_empty() {
                return Poll::Ready(Ok(0));
            }
            let chunk = self.0.remove(0);
            out[..chunk.len()].copy_from_slice(chunk);
            Poll::Ready(Ok(chunk.len()))
        }
    }

    fn sniffed(chunks: &[&'static [u8]]) -> (Protocol, Bytes) {
        let mut stream = Chunks(chunks.to_vec());
        let sniffing = pin!(sniff(&mut stream));
        match sniffing.poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(found) => found.unwrap(),
            Poll::Pending => panic!("reads were ready"),
        }
    }

    #[test]
    fn the_preface_tells_the_protocol_however_it_is_cut() {
        let http2 = (Protocol::Http2, Bytes::from_static(PREFACE));
        assert_eq!(sniffed(&[PREFACE]), http2);
        assert_eq!(
            sniffed(&[&PREFACE[..1], &PREFACE[1..20], &PREFACE[20..]]),
            http2
        );
        let http1 = |bytes| (Protocol::Http1, Bytes::from_static(bytes));
        assert_eq!(sniffed(&[b"P", b"OST / "]), http1(b"POST / "));
        assert_eq!(sniffed(&[b"GET"]), http1(b"GET"));
        assert_eq!(sniffed(&[]), http1(b""));
    }
}
