use core::convert::Infallible;
use std::collections::VecDeque;
use std::task::Waker;

use http_body::Frame;

use super::*;

/// A request body that arrives in the given pieces.
struct Pieces(VecDeque<Bytes>);

impl http_body::Body for Pieces {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.0.pop_front().map(|bytes| Ok(Frame::data(bytes))))
    }
}

struct Echo;

impl Services for Echo {
    async fn put(&self, ctx: &Ctx, request: PutRequest) -> Result<PutResponse, Status> {
        let key = [
            ctx.token.as_deref().unwrap_or("none").as_bytes(),
            &request.key,
        ]
        .concat();
        let fields = crate::wire::KvFields {
            key: &key,
            ..Default::default()
        };
        let prev_kv = Some(crate::wire::EncodedKv::encode(&fields));
        Ok(PutResponse {
            prev_kv,
            ..PutResponse::default()
        })
    }

    async fn watch(
        &self,
        _ctx: &Ctx,
        mut requests: Requests<WatchRequest>,
        replies: &Replies<WatchResponse>,
    ) -> Result<(), Status> {
        let mut watch_id = 0;
        while requests.next().await?.is_some() {
            watch_id += 1;
            replies
                .send(&WatchResponse {
                    watch_id,
                    ..WatchResponse::default()
                })
                .await?;
        }
        Err(Status::new(Code::Unavailable, "50% gone\u{e9}"))
    }
}

fn ready<T>(future: impl Future<Output = T>) -> T {
    match core::pin::pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => panic!("nothing to wait for"),
    }
}

fn call(path: &str, headers: &[(&str, &str)], pieces: &[&[u8]]) -> Response<Body> {
    let mut request = http::Request::post(path).header("content-type", "application/grpc");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let pieces = Pieces(
        pieces
            .iter()
            .map(|piece| Bytes::copy_from_slice(piece))
            .collect(),
    );
    let request = request.body(pieces).unwrap();
    ready(serve(
        &Rc::new(Echo),
        &Peer::new("127.0.0.1:1"),
        100,
        request,
    ))
}

fn framed(message: &impl Message) -> Vec<u8> {
    let mut out = BytesMut::new();
    encode(message, &mut out);
    out.to_vec()
}

fn put(key: &'static str) -> Vec<u8> {
    framed(&PutRequest {
        key: Bytes::from(key),
        ..PutRequest::default()
    })
}

/// Data and trailers of a response.
fn drain(response: Response<Body>) -> (Vec<u8>, HeaderMap) {
    let (mut data, mut trailers) = (Vec::new(), HeaderMap::new());
    let mut body = response.into_body();
    loop {
        let next = core::future::poll_fn(|cx| http_body::Body::poll_frame(Pin::new(&mut body), cx));
        match ready(next) {
            None => return (data, trailers),
            Some(Ok(frame)) => match frame.into_data() {
                Ok(bytes) => data.extend_from_slice(&bytes),
                Err(frame) => trailers = frame.into_trailers().unwrap_or_default(),
            },
        }
    }
}

fn key_of(data: &[u8]) -> Bytes {
    let reply = PutResponse::decode(&data[PREFIX_BYTES..]).unwrap();
    reply.prev_kv.unwrap().key().unwrap()
}

#[test]
fn a_unary_call_is_answered_with_status_ok() {
    let response = call("/etcdserverpb.KV/Put", &[("token", "t.1")], &[&put("k")]);
    assert_eq!(response.headers()[CONTENT_TYPE], "application/grpc");
    let (data, trailers) = drain(response);
    assert_eq!(key_of(&data), "t.1k");
    assert_eq!(trailers[GRPC_STATUS], "0");
}

#[test]
fn a_message_may_arrive_in_any_pieces() {
    let message = put("key");
    for at in 1..message.len() {
        let (head, tail) = message.split_at(at);
        let (data, _) = drain(call("/etcdserverpb.KV/Put", &[], &[head, tail]));
        assert_eq!(key_of(&data), "nonekey");
    }
    let bytes: Vec<&[u8]> = message.chunks(1).collect();
    assert_eq!(
        key_of(&drain(call("/etcdserverpb.KV/Put", &[], &bytes)).0),
        "nonekey"
    );
}

#[test]
fn several_messages_in_one_piece_are_told_apart() {
    let request = framed(&WatchRequest::default());
    let all = [&request[..], &request, &request].concat();
    let (data, trailers) = drain(call("/etcdserverpb.Watch/Watch", &[], &[&all]));
    let expected: Vec<u8> = (1..=3)
        .flat_map(|watch_id| {
            framed(&WatchResponse {
                watch_id,
                ..WatchResponse::default()
            })
        })
        .collect();
    assert_eq!(data, expected);
    assert_eq!(trailers[GRPC_STATUS], "14");
    assert_eq!(trailers[GRPC_MESSAGE], "50%25 gone%C3%A9");
}

#[test]
fn a_stream_that_fails_before_its_first_reply_has_headers_only() {
    let response = call("/etcdserverpb.Watch/Watch", &[], &[]);
    assert_eq!(response.headers()[GRPC_STATUS], "14");
    assert!(http_body::Body::is_end_stream(response.body()));
}

#[track_caller]
fn assert_refused(response: &Response<Body>, http: u16, status: &str, message: &str) {
    assert_eq!(response.status(), http);
    assert_eq!(response.headers()[GRPC_STATUS], status);
    assert_eq!(response.headers()[GRPC_MESSAGE], message);
    assert!(http_body::Body::is_end_stream(response.body()));
}

#[test]
fn refusals_have_grpc_gos_codes_and_texts() {
    let put_path = "/etcdserverpb.KV/Put";
    let refused = |path: &str, message: &str| {
        assert_refused(&call(path, &[], &[&put("k")]), 200, "12", message);
    };
    refused(
        "/etcdserverpb.KV/Nope",
        "unknown method Nope for service etcdserverpb.KV",
    );
    refused("/no.Such/Put", "unknown service no.Such");
    refused(
        "/etcdserverpb.KV/Range",
        "unknown method Range for service etcdserverpb.KV",
    );

    let prefix_only = [0, 0, 0, 0, 101];
    let message = "grpc: received message larger than max (101 vs. 100)";
    assert_refused(&call(put_path, &[], &[&prefix_only]), 200, "8", message);

    let message = "grpc: Decompressor is not installed for grpc-encoding \"snappy\"";
    assert_refused(
        &call(put_path, &[("grpc-encoding", "snappy")], &[&put("k")]),
        200,
        "12",
        message,
    );
    let message = "malformed grpc-timeout: transport: timeout unit is not recognized: \"5x\"";
    assert_refused(
        &call(put_path, &[("grpc-timeout", "5x")], &[&put("k")]),
        400,
        "13",
        message,
    );

    let odd = |method, content_type| {
        let request = http::Request::builder().method(method).uri(put_path);
        let request = request.header("content-type", content_type);
        let request = request.body(Pieces(VecDeque::new())).unwrap();
        ready(serve(&Rc::new(Echo), &Peer::new(""), 9, request))
    };
    let message = "Received a HEADERS frame with :method \"GET\" which should be POST";
    assert_refused(&odd("GET", "application/grpc"), 405, "13", message);
    let message = "invalid gRPC request content-type \"application/grpcx\"";
    assert_refused(&odd("POST", "application/grpcx"), 415, "3", message);
}

#[test]
fn a_request_of_exactly_the_limit_passes() {
    let key: &'static str = "x".repeat(98).leak();
    let message = put(key);
    assert_eq!(message.len(), PREFIX_BYTES + 100);
    assert_eq!(
        drain(call("/etcdserverpb.KV/Put", &[], &[&message])).1[GRPC_STATUS],
        "0"
    );
}

#[test]
fn broken_bodies_are_internal_errors() {
    let put_path = "/etcdserverpb.KV/Put";
    assert_refused(&call(put_path, &[], &[]), 200, "13", "EOF");
    assert_refused(
        &call(put_path, &[], &[&put("k")[..6]]),
        200,
        "13",
        "unexpected EOF",
    );
    let message = "grpc: compressed flag set with identity or empty encoding";
    assert_refused(
        &call(put_path, &[], &[&[1, 0, 0, 0, 0]]),
        200,
        "13",
        message,
    );
    let message = "grpc: received unexpected payload format 2";
    assert_refused(
        &call(put_path, &[], &[&[2, 0, 0, 0, 0]]),
        200,
        "13",
        message,
    );
}

#[test]
fn timeouts_are_read_as_the_protocol_says() {
    let parse = |text: &'static str| parse_timeout(&HeaderValue::from_static(text));
    assert_eq!(parse("1H"), Ok(Duration::from_hours(1)));
    assert_eq!(parse("2M"), Ok(Duration::from_mins(2)));
    assert_eq!(parse("3S"), Ok(Duration::from_secs(3)));
    assert_eq!(parse("99999999m"), Ok(Duration::from_millis(99_999_999)));
    assert_eq!(parse("5u"), Ok(Duration::from_micros(5)));
    assert_eq!(parse("6n"), Ok(Duration::from_nanos(6)));
    for bad in ["", "S", "123456789S", "1s", "-1S", "+1S", " 1S"] {
        assert!(parse(bad).is_err(), "{bad:?}");
    }
}

#[test]
fn a_call_is_small_enough_to_be_moved() {
    let request = http::Request::post("/")
        .body(Pieces(VecDeque::new()))
        .unwrap();
    let (services, peer) = (Rc::new(Echo), Peer::new(""));
    let call = serve(&services, &peer, 9, request);
    let bytes = size_of_val(&call);
    assert!(bytes <= 2048, "{bytes} bytes");
}
