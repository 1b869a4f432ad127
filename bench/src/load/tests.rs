//! Whole runs against a toy server: one thread a connection, blocking, which answers each DATA
//! frame that ends a stream.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};

use super::*;
use crate::frame::{self, HEAD_BYTES, Head, flag, kind, setting};

/// How the toy server behaves.
#[derive(Debug, Clone, Copy)]
struct Toy {
    streams_max: u32,
    /// Closes a connection after so many replies.
    replies: u64,
    /// The reply's gRPC message, behind its prefix.
    message: &'static [u8],
    grpc_status: u8,
}

const TOY: Toy = Toy {
    streams_max: 1000,
    replies: u64::MAX,
    message: b"",
    grpc_status: b'0',
};

impl Toy {
    fn start(self) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = listener.local_addr().unwrap().to_string();
        std::thread::spawn(move || {
            for socket in listener.incoming() {
                let socket = socket.unwrap();
                std::thread::spawn(move || self.serve(socket));
            }
        });
        endpoint
    }

    fn serve(self, mut socket: TcpStream) {
        let mut preface = [0; 24];
        socket.read_exact(&mut preface).unwrap();
        let [n0, n1] = setting::MAX_CONCURRENT_STREAMS.to_be_bytes();
        let [v0, v1, v2, v3] = self.streams_max.to_be_bytes();
        let mut out = Vec::new();
        frame::put(&mut out, kind::SETTINGS, 0, 0, &[n0, n1, v0, v1, v2, v3]);
        let mut replied = 0;
        while socket.write_all(&out).is_ok() && replied < self.replies {
            out.clear();
            let mut head = [0; HEAD_BYTES];
            if socket.read_exact(&mut head).is_err() {
                return;
            }
            let head = Head::parse(&head).unwrap();
            let mut payload = vec![0; head.length];
            socket.read_exact(&mut payload).unwrap();
            if head.kind == kind::DATA {
                let credit = (head.length as u32).to_be_bytes();
                frame::put(&mut out, kind::WINDOW_UPDATE, 0, 0, &credit);
                if head.has(flag::END_STREAM) {
                    self.reply(&mut out, head.stream);
                    replied += 1;
                }
            }
        }
        // What is unread when a socket closes resets the connection and takes replies with it.
        let _ = socket.shutdown(Shutdown::Write);
        let _ = std::io::copy(&mut socket, &mut std::io::sink());
    }

    fn reply(self, out: &mut Vec<u8>, stream: u32) {
        let trailers = [b"\x00\x0bgrpc-status\x01", &[self.grpc_status][..]].concat();
        let message = [&[0, 0, 0, 0, self.message.len() as u8], self.message].concat();
        frame::put(out, kind::HEADERS, flag::END_HEADERS, stream, &[0x88]);
        frame::put(out, kind::DATA, 0, stream, &message);
        let flags = flag::END_HEADERS | flag::END_STREAM;
        frame::put(out, kind::HEADERS, flags, stream, &trailers);
    }
}

fn plan(endpoint: String) -> Plan {
    Plan {
        endpoints: vec![endpoint],
        conns: 3,
        clients: 10,
        threads: 1,
        operation: Operation::Put { value_bytes: 100 },
        keys: Keys {
            count: 10,
            bytes: 4,
            seed: None,
        },
        total: Some(1001),
        time: None,
        rate: None,
    }
}

fn tally_of(plan: &Plan) -> Tally {
    run(plan, connect(plan).unwrap()).unwrap()
}

#[test]
fn a_closed_loop_makes_every_call_once() {
    let mut plan = plan(TOY.start());
    for threads in [1, 2, 3] {
        plan.threads = threads;
        let tally = tally_of(&plan);
        assert_eq!(
            (tally.latencies.len(), tally.errors, tally.misses),
            (1001, 0, 0)
        );
        assert!(tally.problems.is_empty());
        assert!(tally.latencies.max() <= tally.elapsed_ns);
    }
}

#[test]
fn values_larger_than_every_window_arrive() {
    let mut plan = plan(TOY.start());
    // Below the windows' 64 KiB alone, far beyond them together.
    plan.operation = Operation::Put {
        value_bytes: 60_000,
    };
    plan.total = Some(50);
    assert_eq!(tally_of(&plan).latencies.len(), 50);
}

#[test]
fn an_open_loop_keeps_its_rate() {
    let mut plan = plan(TOY.start());
    (plan.rate, plan.total) = (Some(2000.0), Some(101));
    let tally = tally_of(&plan);
    assert_eq!((tally.latencies.len(), tally.missed), (101, 0));
    assert!(
        tally.elapsed_ns >= 50_000_000,
        "the last call starts after 50 ms"
    );
    plan.total = None;
    plan.time = Some(Duration::from_millis(20));
    let tally = tally_of(&plan);
    assert_eq!(tally.latencies.len() + tally.missed, 40);
    assert!(tally.elapsed_ns >= 20_000_000);
}

#[test]
fn ranges_that_find_nothing_are_misses() {
    let mut plan = plan(TOY.start());
    plan.operation = Operation::Range {
        serializable: false,
    };
    assert_eq!(tally_of(&plan).misses, 1001);
    plan.endpoints = vec![
        Toy {
            message: b"\x12\x00",
            ..TOY
        }
        .start(),
    ];
    assert_eq!(tally_of(&plan).misses, 0);
}

#[test]
fn failed_calls_are_errors_and_have_no_latency() {
    let plan = plan(
        Toy {
            grpc_status: b'8',
            ..TOY
        }
        .start(),
    );
    let tally = tally_of(&plan);
    assert_eq!((tally.latencies.len(), tally.errors), (0, 1001));
    assert_eq!(
        tally.problems,
        BTreeMap::from([("RESOURCE_EXHAUSTED: ".to_owned(), 1001)])
    );
}

#[test]
fn a_lost_connection_ends_its_clients_only() {
    let mut plan = plan(TOY.start());
    plan.endpoints.push(Toy { replies: 20, ..TOY }.start());
    let tally = tally_of(&plan);
    // One of three connections has 3 of the 10 clients, all with a call under way when it ends.
    assert_eq!(
        (tally.latencies.len() + tally.errors, tally.errors),
        (1001, 3)
    );
    let lost: u64 = tally.problems.values().sum();
    assert_eq!((tally.problems.len(), lost), (1, 3), "{:?}", tally.problems);

    plan.endpoints = vec![Toy { replies: 20, ..TOY }.start()];
    let tally = tally_of(&plan);
    assert_eq!(
        (tally.latencies.len(), tally.errors),
        (60, 10),
        "the run ends with the last one"
    );
}

#[test]
fn too_many_clients_for_a_connection_are_refused() {
    let plan = plan(
        Toy {
            streams_max: 3,
            ..TOY
        }
        .start(),
    );
    let error = connect(&plan).unwrap_err().to_string();
    assert!(error.ends_with("allows 3 calls a connection at a time: 10 clients need --conns 4"));
}

#[test]
fn reasons_of_failure_are_bounded() {
    let mut tally = Tally::new();
    for reason in 0..40 {
        tally.problem(&reason.to_string(), 2);
    }
    tally.problem("3", 1);
    assert_eq!(tally.problems.len(), PROBLEMS_MAX + 1);
    assert_eq!(
        (tally.problems["3"], tally.problems["other reasons"]),
        (3, 48)
    );
}
