//! One HTTP/2 connection that makes unary gRPC calls: bytes in, bytes out, no socket, no clock.
//!
//! Owned by the load thread that owns the connection. The caller sends `out` and feeds what the
//! server sent; `finished` collects the calls that ended.
//! Invariants: stream ids are handed out 1, 3, 5, ...; `streams[i]` is stream `first + 2 i`;
//! `in_flight` counts the live ones; a body is never sent beyond the server's windows, and bodies
//! held back by a window go out in order.
//! Not here: retries, streaming calls, compression, priorities, trailers of our own.

use std::collections::VecDeque;

use crate::Error;
use crate::frame::{self, HEAD_BYTES, Head, PAYLOAD_BYTES_MAX, flag, kind, setting};
use crate::hpack::{Decoder, Encoder, Fields};

/// What a client says first.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Bytes before a gRPC message: compressed flag, length.
pub const GRPC_PREFIX_BYTES: usize = 5;
/// Received bytes after which the connection's window is opened again, in one update.
const REFILL_BYTES: u32 = 1 << 30;
/// A header block longer than this is no reply of an etcd-like server.
const BLOCK_BYTES_MAX: usize = 64 * 1024;
/// Streams kept, live or behind a live one: what bounds a session's memory.
const STREAMS_MAX: usize = 1 << 20;
/// Stream ids end here (RFC 7540, 5.1.1).
const STREAM_ID_MAX: u32 = (1 << 31) - 1;

/// A call that ended.
#[derive(Debug, PartialEq, Eq)]
pub struct Finished {
    /// As given to `Session::call`.
    pub start_ns: u64,
    /// Ok: whether the reply passed the session's `inspect`. Err: why the call failed, one line.
    pub outcome: Result<bool, String>,
}

#[derive(Debug)]
struct Stream {
    start_ns: u64,
    /// Body bytes sent less credit received: the stream's window is the server's initial window
    /// (which may change under way) less this.
    window_used: i64,
    /// Body bytes a window holds back.
    unsent: Vec<u8>,
    reply: Reply,
    live: bool,
}

/// What came of a reply so far.
#[derive(Debug, Default)]
struct Reply {
    http_status: Option<u16>,
    prefix: [u8; GRPC_PREFIX_BYTES],
    /// DATA bytes received, prefix included.
    received: usize,
    passed: bool,
}

/// See the module.
#[derive(Debug)]
pub struct Session {
    /// Bytes to send; the caller empties it from the front.
    pub out: Vec<u8>,
    /// Calls that ended since the caller last drained this.
    pub finished: Vec<Finished>,
    inspect: fn(&[u8]) -> bool,
    encoder: Encoder,
    decoder: Decoder,
    streams: VecDeque<Stream>,
    first: u32,
    next: u32,
    in_flight: usize,
    /// Streams with `unsent` bytes, oldest first; ended ones are skipped when their turn comes.
    held_back: VecDeque<u32>,
    window: i64,
    stream_window: i64,
    payload_bytes_max: usize,
    streams_max: Option<u32>,
    ready: bool,
    /// Bytes received since the last window update.
    unacknowledged: u32,
    /// A header block that goes on in a CONTINUATION: its first head and what came so far.
    partial_block: Option<(Head, Vec<u8>)>,
    going_away: Option<String>,
}

impl Session {
    /// A session that calls `path` at `authority`; `out` holds the preface. A successful reply
    /// whose message came in one DATA frame is shown to `inspect`, longer ones count as passed.
    pub fn new(path: &str, authority: &str, inspect: fn(&[u8]) -> bool) -> Session {
        let mut out = PREFACE.to_vec();
        let mut settings = Vec::new();
        for (number, value) in [
            (setting::ENABLE_PUSH, 0),
            (setting::INITIAL_WINDOW_SIZE, frame::WINDOW_BYTES_MAX),
        ] {
            settings.extend_from_slice(&number.to_be_bytes());
            settings.extend_from_slice(&value.to_be_bytes());
        }
        frame::put(&mut out, kind::SETTINGS, 0, 0, &settings);
        let credit = frame::WINDOW_BYTES_MAX - frame::WINDOW_BYTES_DEFAULT;
        frame::put(&mut out, kind::WINDOW_UPDATE, 0, 0, &credit.to_be_bytes());
        Session {
            out,
            finished: Vec::new(),
            inspect,
            encoder: Encoder::new(path, authority),
            decoder: Decoder::new(),
            streams: VecDeque::new(),
            first: 1,
            next: 1,
            in_flight: 0,
            held_back: VecDeque::new(),
            window: i64::from(frame::WINDOW_BYTES_DEFAULT),
            stream_window: i64::from(frame::WINDOW_BYTES_DEFAULT),
            payload_bytes_max: PAYLOAD_BYTES_MAX,
            streams_max: None,
            ready: false,
            unacknowledged: 0,
            partial_block: None,
            going_away: None,
        }
    }

    /// Whether the server's SETTINGS came: calls may start.
    pub fn is_ready(&self) -> bool {
        self.ready
    }

    /// Calls under way.
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// How many calls the server allows at a time; `None`: as many as you like.
    pub fn streams_max(&self) -> Option<u32> {
        self.streams_max
    }

    /// Why no new call may start on this connection, if so.
    pub fn closing(&self) -> Option<&str> {
        if self.next > STREAM_ID_MAX {
            return Some("stream ids of the connection are used up (2^30 calls): use more --conns");
        }
        if self.streams.len() >= STREAMS_MAX {
            return Some("a call was not answered while a million later ones were");
        }
        self.going_away.as_deref()
    }

    /// Starts a call with `body` (gRPC prefix and message), timed from `start_ns`.
    ///
    /// # Panics
    /// When the session is `closing`.
    pub fn call(&mut self, start_ns: u64, body: &[u8]) {
        assert!(self.closing().is_none(), "no calls on a closing connection");
        let id = self.next;
        self.next += 2;
        self.in_flight += 1;
        let block = self.encoder.block();
        let head = Head {
            length: block.len(),
            kind: kind::HEADERS,
            flags: flag::END_HEADERS,
            stream: id,
        };
        self.out.extend_from_slice(&head.encode());
        self.out.extend_from_slice(block);

        let reply = Reply::default();
        let mut stream = Stream {
            start_ns,
            window_used: 0,
            unsent: Vec::new(),
            reply,
            live: true,
        };
        let bytes = body.len() as i64;
        let in_one_frame = bytes <= self.window.min(self.stream_window)
            && body.len() <= self.payload_bytes_max
            && self.held_back.is_empty();
        if in_one_frame {
            frame::put(&mut self.out, kind::DATA, flag::END_STREAM, id, body);
            self.window -= bytes;
            stream.window_used = bytes;
        } else {
            stream.unsent = body.to_vec();
            self.held_back.push_back(id);
        }
        self.streams.push_back(stream);
        if !in_one_frame {
            self.send_held_back();
        }
    }

    /// Takes bytes from the server; returns how many make whole frames. The caller keeps the rest
    /// and offers it again, with more behind it.
    ///
    /// # Errors
    /// A protocol violation or a reply we do not understand: the connection is then useless.
    pub fn feed(&mut self, input: &[u8]) -> Result<usize, Error> {
        let mut at = 0;
        while let Some(head) = Head::parse(&input[at..]) {
            if head.length > PAYLOAD_BYTES_MAX {
                return Err(if self.ready {
                    protocol(&format!("a frame of {} bytes", head.length))
                } else {
                    Error::new("the server does not speak HTTP/2 without TLS")
                });
            }
            let end = at + HEAD_BYTES + head.length;
            let Some(payload) = input.get(at + HEAD_BYTES..end) else {
                break;
            };
            self.frame(head, payload)?;
            at = end;
        }
        Ok(at)
    }

    /// Fails every call under way with `reason`, as when the connection ended.
    pub fn fail_all(&mut self, reason: &str) {
        for at in 0..self.streams.len() {
            self.finish(at, Err(reason.to_owned()));
        }
        self.shrink();
        assert_eq!(self.in_flight, 0);
    }

    fn frame(&mut self, head: Head, payload: &[u8]) -> Result<(), Error> {
        if self.partial_block.is_some() && head.kind != kind::CONTINUATION {
            return Err(protocol("a header block without its end"));
        }
        if !self.ready && head.kind != kind::SETTINGS {
            return Err(protocol("the first frame is not SETTINGS"));
        }
        match head.kind {
            kind::DATA => self.data(head, payload),
            kind::HEADERS => {
                let block =
                    frame::unpad(head, payload).ok_or_else(|| protocol("malformed padding"))?;
                if head.has(flag::END_HEADERS) {
                    return self.headers(head, block);
                }
                self.partial_block = Some((head, block.to_vec()));
                Ok(())
            }
            kind::CONTINUATION => self.continuation(head, payload),
            kind::RST_STREAM => self.reset(head, payload),
            kind::SETTINGS => self.settings(head, payload),
            kind::PUSH_PROMISE => Err(protocol("a pushed stream")),
            kind::PING => {
                if !head.has(flag::ACK) {
                    frame::put(&mut self.out, kind::PING, flag::ACK, 0, payload);
                }
                Ok(())
            }
            kind::GOAWAY => self.go_away(payload),
            kind::WINDOW_UPDATE => self.window_update(head, payload),
            _ => Ok(()),
        }
    }

    /// Position in `streams` of a live stream; `None` for one that ended.
    fn position(&self, id: u32) -> Result<Option<usize>, Error> {
        if id.is_multiple_of(2) || id >= self.next {
            return Err(protocol(&format!(
                "a frame for stream {id}, which we never opened"
            )));
        }
        let at = id
            .checked_sub(self.first)
            .map(|distance| (distance / 2) as usize);
        Ok(at.filter(|&at| self.streams[at].live))
    }

    fn data(&mut self, head: Head, payload: &[u8]) -> Result<(), Error> {
        self.unacknowledged += payload.len() as u32;
        if self.unacknowledged >= REFILL_BYTES {
            let credit = std::mem::take(&mut self.unacknowledged).to_be_bytes();
            frame::put(&mut self.out, kind::WINDOW_UPDATE, 0, 0, &credit);
        }
        let bytes = frame::unpad(head, payload).ok_or_else(|| protocol("malformed padding"))?;
        let Some(at) = self.position(head.stream)? else {
            return Ok(());
        };
        self.streams[at].reply.take(bytes, self.inspect);
        if head.has(flag::END_STREAM) {
            let reply = &self.streams[at].reply;
            let outcome = match reply.http_status {
                Some(200) => Err("reply without grpc-status".to_owned()),
                status => Err(http_failure(status)),
            };
            self.finish(at, outcome);
            self.shrink();
        }
        Ok(())
    }

    fn continuation(&mut self, head: Head, payload: &[u8]) -> Result<(), Error> {
        let (first, mut block) = self
            .partial_block
            .take()
            .ok_or_else(|| protocol("CONTINUATION out of place"))?;
        if head.stream != first.stream {
            return Err(protocol("CONTINUATION of another stream"));
        }
        block.extend_from_slice(payload);
        if block.len() > BLOCK_BYTES_MAX {
            return Err(protocol("a header block beyond 64 KiB"));
        }
        if head.has(flag::END_HEADERS) {
            return self.headers(first, &block);
        }
        self.partial_block = Some((first, block));
        Ok(())
    }

    fn headers(&mut self, head: Head, block: &[u8]) -> Result<(), Error> {
        // Also for streams that ended: the table depends on every block.
        let fields = self.decoder.decode(block).map_err(protocol)?;
        let Some(at) = self.position(head.stream)? else {
            return Ok(());
        };
        let reply = &mut self.streams[at].reply;
        reply.http_status = reply.http_status.or(fields.http_status);
        if head.has(flag::END_STREAM) {
            let outcome = reply.verdict(&fields);
            self.finish(at, outcome);
            self.shrink();
        } else if reply.http_status.is_some_and(|status| status < 200) {
            reply.http_status = None;
        }
        Ok(())
    }

    fn reset(&mut self, head: Head, payload: &[u8]) -> Result<(), Error> {
        let code = frame::integer(payload).ok_or_else(|| protocol("malformed RST_STREAM"))?;
        if let Some(at) = self.position(head.stream)? {
            self.finish(
                at,
                Err(format!("stream reset: {}", frame::error_name(code))),
            );
            self.shrink();
        }
        Ok(())
    }

    fn settings(&mut self, head: Head, payload: &[u8]) -> Result<(), Error> {
        if head.has(flag::ACK) {
            return Ok(());
        }
        let (pairs, rest) = payload.as_chunks::<6>();
        if !rest.is_empty() {
            return Err(protocol("malformed SETTINGS"));
        }
        for &[n0, n1, v0, v1, v2, v3] in pairs {
            let value = u32::from_be_bytes([v0, v1, v2, v3]);
            match u16::from_be_bytes([n0, n1]) {
                setting::HEADER_TABLE_SIZE => self.encoder.resize(value),
                setting::MAX_CONCURRENT_STREAMS => self.streams_max = Some(value),
                setting::INITIAL_WINDOW_SIZE => self.stream_window = i64::from(value),
                setting::MAX_FRAME_SIZE => self.payload_bytes_max = value as usize,
                _ => {}
            }
        }
        self.ready = true;
        frame::put(&mut self.out, kind::SETTINGS, flag::ACK, 0, &[]);
        self.send_held_back();
        Ok(())
    }

    fn go_away(&mut self, payload: &[u8]) -> Result<(), Error> {
        let (last, code) = frame::integer(payload)
            .zip(payload.get(4..).and_then(frame::integer))
            .ok_or_else(|| protocol("malformed GOAWAY"))?;
        let said = String::from_utf8_lossy(&payload[8..]);
        let name = frame::error_name(code);
        let reason = match said.is_empty() {
            true => format!("server sent GOAWAY {name}"),
            false => format!("server sent GOAWAY {name}: {}", said.escape_debug()),
        };
        for at in 0..self.streams.len() {
            if self.first + 2 * at as u32 > last {
                self.finish(at, Err(reason.clone()));
            }
        }
        self.shrink();
        self.going_away = Some(reason);
        Ok(())
    }

    fn window_update(&mut self, head: Head, payload: &[u8]) -> Result<(), Error> {
        let credit = frame::integer(payload).ok_or_else(|| protocol("malformed WINDOW_UPDATE"))?;
        let credit = i64::from(credit & frame::WINDOW_BYTES_MAX);
        if head.stream == 0 {
            self.window += credit;
        } else if let Some(at) = self.position(head.stream)? {
            self.streams[at].window_used -= credit;
        }
        self.send_held_back();
        Ok(())
    }

    /// Sends what the windows allow of the bodies held back, oldest first. A stream whose own
    /// window is shut stays in the queue without holding up the others.
    fn send_held_back(&mut self) {
        for _ in 0..self.held_back.len() {
            let id = self.held_back.pop_front().expect("as many as counted");
            let Ok(Some(at)) = self.position(id) else {
                continue;
            };
            let stream = &mut self.streams[at];
            let mut sent = 0;
            while sent < stream.unsent.len() {
                let window = self.window.min(self.stream_window - stream.window_used);
                let Some(window) = usize::try_from(window).ok().filter(|&bytes| bytes > 0) else {
                    break;
                };
                let left = stream.unsent.len() - sent;
                let bytes = left.min(window).min(self.payload_bytes_max);
                let flags = if bytes == left { flag::END_STREAM } else { 0 };
                let payload = &stream.unsent[sent..sent + bytes];
                frame::put(&mut self.out, kind::DATA, flags, id, payload);
                sent += bytes;
                self.window -= bytes as i64;
                stream.window_used += bytes as i64;
            }
            stream.unsent.drain(..sent);
            if !stream.unsent.is_empty() {
                self.held_back.push_back(id);
            }
        }
    }

    /// Ends the call of `streams[at]`, if it is still live.
    fn finish(&mut self, at: usize, outcome: Result<bool, String>) {
        let stream = &mut self.streams[at];
        if !stream.live {
            return;
        }
        stream.live = false;
        if !std::mem::take(&mut stream.unsent).is_empty() {
            // Answered before the whole request was sent: tell the server not to wait for it.
            let (id, cancel) = (self.first + 2 * at as u32, 8u32.to_be_bytes());
            frame::put(&mut self.out, kind::RST_STREAM, 0, id, &cancel);
        }
        self.in_flight -= 1;
        self.finished.push(Finished {
            start_ns: stream.start_ns,
            outcome,
        });
    }

    fn shrink(&mut self) {
        while self.streams.front().is_some_and(|stream| !stream.live) {
            self.streams.pop_front();
            self.first += 2;
        }
        debug_assert_eq!(
            self.first as usize + 2 * self.streams.len(),
            self.next as usize
        );
    }
}

impl Reply {
    fn take(&mut self, bytes: &[u8], inspect: fn(&[u8]) -> bool) {
        let mut rest = bytes;
        if self.received < GRPC_PREFIX_BYTES {
            let taken = rest.len().min(GRPC_PREFIX_BYTES - self.received);
            self.prefix[self.received..self.received + taken].copy_from_slice(&rest[..taken]);
            rest = &rest[taken..];
            self.received += taken;
            let whole = self.received == GRPC_PREFIX_BYTES && rest.len() == self.message_bytes();
            self.passed = !whole || inspect(rest);
        }
        self.received += rest.len();
    }

    fn message_bytes(&self) -> usize {
        let [_, b0, b1, b2, b3] = self.prefix;
        u32::from_be_bytes([b0, b1, b2, b3]) as usize
    }

    /// The call's outcome, when its last header block says `fields`.
    fn verdict(&self, fields: &Fields) -> Result<bool, String> {
        if let Some(code @ 1..) = fields.grpc_status {
            let said = fields.grpc_message.as_deref().unwrap_or("");
            return Err(format!("{}: {}", status_name(code), said.escape_debug()));
        }
        if self.http_status != Some(200) {
            return Err(http_failure(self.http_status));
        }
        if fields.grpc_status.is_none() {
            return Err("reply without grpc-status".to_owned());
        }
        if self.prefix[0] != 0 {
            return Err("compressed reply, though we offered no compression".to_owned());
        }
        if self.received != GRPC_PREFIX_BYTES + self.message_bytes() {
            return Err("reply without exactly one whole message".to_owned());
        }
        Ok(self.passed)
    }
}

fn http_failure(status: Option<u16>) -> String {
    match status {
        Some(status) => format!("HTTP status {status}"),
        None => "reply without HTTP status".to_owned(),
    }
}

fn protocol(what: &str) -> Error {
    Error::new(format!("server broke HTTP/2: {what}"))
}

/// Name of a gRPC status code.
fn status_name(code: u32) -> String {
    const NAMES: [&str; 17] = [
        "OK",
        "CANCELLED",
        "UNKNOWN",
        "INVALID_ARGUMENT",
        "DEADLINE_EXCEEDED",
        "NOT_FOUND",
        "ALREADY_EXISTS",
        "PERMISSION_DENIED",
        "RESOURCE_EXHAUSTED",
        "FAILED_PRECONDITION",
        "ABORTED",
        "OUT_OF_RANGE",
        "UNIMPLEMENTED",
        "INTERNAL",
        "UNAVAILABLE",
        "DATA_LOSS",
        "UNAUTHENTICATED",
    ];
    NAMES
        .get(code as usize)
        .map_or_else(|| format!("status {code}"), |&name| name.to_owned())
}

#[cfg(test)]
mod tests;
