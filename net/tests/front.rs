//! The front as a client sees it: real sockets, glommio, services that echo.
//!
//! The HTTP/2 client here speaks frames and nothing more, so that no client library hides what the
//! server sends; response headers stay encoded, data and flags are looked at.

use core::sync::atomic::AtomicUsize;
use core::time::Duration;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::rc::Rc;
use std::sync::{Arc, mpsc};

use futures_channel::oneshot;
use glommio::net::TcpListener;
use glommio::{ExecutorJoinHandle, LocalExecutorBuilder, Placement};
use prost::Message;
use ringkv_net::front::{Drain, FrontSettings, Traffic};
use ringkv_net::listen::{self, Connections};
use ringkv_net::pb::etcdserverpb::{
    PutRequest, PutResponse, RangeRequest, RangeResponse, WatchRequest, WatchResponse,
};

#[path = "front/echo.rs"]
mod echo;

const PATIENCE: Duration = Duration::from_secs(20);

/// A front on one executor of its own.
struct Server {
    address: SocketAddr,
    stop: oneshot::Sender<()>,
    thread: ExecutorJoinHandle<bool>,
    /// What lock calls say of themselves.
    locks: mpsc::Receiver<&'static str>,
}

impl Server {
    fn start() -> Self {
        let (listening, listens) = mpsc::channel();
        let (stop, stopped) = oneshot::channel();
        let (words, locks) = mpsc::channel();
        let thread = LocalExecutorBuilder::new(Placement::Unbound)
            .io_memory(1 << 20)
            .spawn(move || async move {
                let listener = TcpListener::bind("127.0.0.1:0").unwrap();
                listening.send(listener.local_addr().unwrap()).unwrap();
                let drain = Drain::default();
                let connections = Rc::new(Connections {
                    node: Rc::new(echo::Echo::new(words)),
                    settings: FrontSettings::default(),
                    drain: drain.clone(),
                    loads: Arc::new([AtomicUsize::new(0)]),
                    shard: 0,
                });
                let accept = listen::accept(listener, Traffic::Both, connections, Rc::default());
                let accepting = glommio::spawn_local(accept);
                let _ = stopped.await;
                listen::close(vec![accepting]).await;
                drain.finish(Duration::from_secs(10)).await
            })
            .unwrap();
        Self {
            address: listens.recv().unwrap(),
            stop,
            thread,
            locks,
        }
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    fn expect_lock(&self, word: &str) {
        assert_eq!(self.locks.recv_timeout(PATIENCE), Ok(word));
    }

    /// Whether all connections had ended in time.
    fn stop(self) -> bool {
        self.stop.send(()).unwrap();
        self.thread.join().unwrap()
    }
}

fn get(server: &Server, method: &str, target: &str) -> String {
    let mut stream = server.connect();
    write!(
        stream,
        "{method} {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    )
    .unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

fn assert_answer(answer: &str, code: u16, headers: &[&str], body: &str) {
    let (head, got) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with(&format!("HTTP/1.1 {code} ")), "{answer}");
    for header in headers {
        assert!(
            head.lines().any(|line| line == *header),
            "{header} in {answer}"
        );
    }
    assert_eq!(got, body);
}

#[test]
fn plain_endpoints_answer_as_etcd_does() {
    let server = Server::start();
    let text = ["content-type: text/plain; charset=utf-8"];
    let nosniff = [
        "content-type: text/plain; charset=utf-8",
        "x-content-type-options: nosniff",
    ];
    let version = r#"{"etcdserver":"3.7.1","etcdcluster":"3.7.0","storage":"3.7.0"}"#;
    let json = ["content-type: application/json"];
    assert_answer(&get(&server, "GET", "/version"), 200, &json, version);
    let health = r#"{"health":"true","reason":""}"#;
    assert_answer(&get(&server, "GET", "/health"), 200, &text, health);
    assert_answer(&get(&server, "GET", "/livez"), 200, &nosniff, "ok\n");
    let verbose = "[+]data_corruption ok\n[+]serializable_read ok\n[+]non_learner ok\nok\n";
    let target = "/readyz?verbose&exclude=linearizable_read";
    assert_answer(&get(&server, "GET", target), 200, &nosniff, verbose);
    let one = "[+]non_learner ok\nok\n";
    assert_answer(
        &get(&server, "GET", "/readyz/non_learner?verbose"),
        200,
        &nosniff,
        one,
    );
    assert_answer(
        &get(&server, "GET", "/livez/non_learner"),
        404,
        &nosniff,
        "404 page not found\n",
    );
    assert_answer(
        &get(&server, "GET", "/metrics"),
        200,
        &[],
        "echo_revision 1\n",
    );
    let refused = ["allow: GET", "content-type: text/plain; charset=utf-8"];
    assert_answer(
        &get(&server, "POST", "/health"),
        405,
        &refused,
        "Method Not Allowed\n",
    );
    assert_answer(
        &get(&server, "GET", "/x"),
        404,
        &nosniff,
        "404 page not found\n",
    );
    assert!(server.stop());
}

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;

const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const ACK: u8 = 1;

struct Frame {
    kind: u8,
    flags: u8,
    stream: u32,
    payload: Vec<u8>,
}

/// An HTTP/2 client that speaks frames.
struct Http2 {
    socket: TcpStream,
}

impl Http2 {
    fn connect(server: &Server) -> Self {
        let mut client = Self {
            socket: server.connect(),
        };
        client
            .socket
            .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
            .unwrap();
        // Windows as large as they may be: initial stream window, then the connection's.
        client.send(SETTINGS, 0, 0, &[0, 4, 0x7f, 0xff, 0xff, 0xff]);
        client.send(WINDOW_UPDATE, 0, 0, &0x7fff_0000u32.to_be_bytes());
        client
    }

    fn send(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        let len = u32::try_from(payload.len()).unwrap().to_be_bytes();
        let mut frame = vec![len[1], len[2], len[3], kind, flags];
        frame.extend_from_slice(&stream.to_be_bytes());
        frame.extend_from_slice(payload);
        self.socket.write_all(&frame).unwrap();
    }

    /// Opens a stream with literal headers.
    fn open(&mut self, stream: u32, path: &str, extra: &[(&str, &str)]) {
        let mut block = Vec::new();
        let usual = [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", path),
            (":authority", "x"),
            ("content-type", "application/grpc"),
        ];
        for (name, value) in usual.iter().chain(extra) {
            // Literal without indexing, both strings plain (RFC 7541, 6.2.2).
            block.extend_from_slice(&[0, u8::try_from(name.len()).unwrap()]);
            block.extend_from_slice(name.as_bytes());
            block.push(u8::try_from(value.len()).unwrap());
            block.extend_from_slice(value.as_bytes());
        }
        self.send(HEADERS, END_HEADERS, stream, &block);
    }

    fn message(&mut self, stream: u32, flags: u8, message: &impl Message) {
        let mut payload = vec![0];
        payload.extend_from_slice(&u32::try_from(message.encoded_len()).unwrap().to_be_bytes());
        payload.extend_from_slice(&message.encode_to_vec());
        self.send(DATA, flags, stream, &payload);
    }

    fn frame(&mut self) -> Frame {
        let mut head = [0; 9];
        self.socket.read_exact(&mut head).unwrap();
        let [l0, l1, l2, kind, flags, stream @ ..] = head;
        let mut payload = vec![0; u32::from_be_bytes([0, l0, l1, l2]) as usize];
        self.socket.read_exact(&mut payload).unwrap();
        Frame {
            kind,
            flags,
            stream: u32::from_be_bytes(stream),
            payload,
        }
    }

    /// The next frame of a stream, acknowledging settings and pings on the way.
    fn stream_frame(&mut self) -> Frame {
        loop {
            let frame = self.frame();
            match (frame.kind, frame.flags & ACK) {
                (SETTINGS | PING, 0) => self.send(frame.kind, ACK, 0, &frame.payload_of_ack()),
                (SETTINGS | PING | WINDOW_UPDATE | GOAWAY, _) => {}
                _ => return frame,
            }
        }
    }

    /// All data of a stream, up to its end.
    fn data_to_end(&mut self, stream: u32) -> Vec<u8> {
        let mut data = Vec::new();
        loop {
            let frame = self.stream_frame();
            assert_eq!(frame.stream, stream);
            assert_ne!(frame.kind, RST_STREAM);
            if frame.kind == DATA {
                data.extend_from_slice(&frame.payload);
            }
            if frame.flags & END_STREAM != 0 {
                return data;
            }
        }
    }

    /// The next message of a stream, whose frames hold one message each.
    fn reply<M: Message + Default>(&mut self) -> M {
        let mut frame = self.stream_frame();
        if frame.kind == HEADERS {
            frame = self.stream_frame();
        }
        assert_eq!(frame.kind, DATA);
        M::decode(&frame.payload[5..]).unwrap()
    }
}

impl Frame {
    fn payload_of_ack(&self) -> Vec<u8> {
        if self.kind == PING {
            self.payload.clone()
        } else {
            Vec::new()
        }
    }
}

#[test]
fn unary_calls_share_a_connection() {
    let server = Server::start();
    let mut client = Http2::connect(&server);
    for stream in [1, 3, 5] {
        client.open(stream, "/etcdserverpb.KV/Put", &[]);
        let key = "k".into();
        client.message(
            stream,
            END_STREAM,
            &PutRequest {
                key,
                ..PutRequest::default()
            },
        );
        let reply = PutResponse::decode(&client.data_to_end(stream)[5..]).unwrap();
        assert_eq!(reply.header.unwrap().revision, i64::from(stream / 2 + 1));
    }
    drop(client);
    assert!(server.stop());
}

#[test]
fn a_reply_far_larger_than_the_request_limit_passes() {
    let server = Server::start();
    let mut client = Http2::connect(&server);
    client.open(1, "/etcdserverpb.KV/Range", &[]);
    client.message(
        1,
        END_STREAM,
        &RangeRequest {
            limit: 40 << 20,
            ..RangeRequest::default()
        },
    );
    let reply = RangeResponse::decode(&client.data_to_end(1)[5..]).unwrap();
    assert_eq!(reply.kvs[0].value().unwrap().len(), 40 << 20);
    drop(client);
    assert!(server.stop());
}

#[test]
fn a_deadline_ends_a_call_that_would_never_end() {
    let server = Server::start();
    let mut client = Http2::connect(&server);
    client.open(1, "/v3lockpb.Lock/Lock", &[("grpc-timeout", "50m")]);
    client.message(1, END_STREAM, &PutRequest::default());
    assert!(client.data_to_end(1).is_empty());
    server.expect_lock("begun");
    server.expect_lock("dropped");
    drop(client);
    assert!(server.stop());
}

#[test]
fn streams_answer_while_they_are_open_and_outlast_a_drain() {
    let server = Server::start();
    let mut client = Http2::connect(&server);
    client.open(1, "/etcdserverpb.Watch/Watch", &[]);
    for watch_id in 0..3 {
        client.message(1, 0, &WatchRequest::default());
        let reply: WatchResponse = client.reply();
        assert_eq!(reply.watch_id, watch_id);
    }
    let Server {
        address,
        stop,
        thread,
        ..
    } = server;
    stop.send(()).unwrap();
    while client.frame().kind != GOAWAY {}
    // The listener is closed before clients are sent away.
    assert!(TcpStream::connect(address).is_err());
    client.message(1, END_STREAM, &WatchRequest::default());
    assert!(!client.data_to_end(1).is_empty());
    assert!(thread.join().unwrap());
}

#[test]
fn a_reset_stream_cancels_its_call() {
    let server = Server::start();
    let mut client = Http2::connect(&server);
    client.open(1, "/v3lockpb.Lock/Lock", &[]);
    client.message(1, END_STREAM, &PutRequest::default());
    server.expect_lock("begun");
    client.send(RST_STREAM, 0, 1, &8u32.to_be_bytes());
    server.expect_lock("dropped");
}
