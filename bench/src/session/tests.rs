//! The server's side is written by hand, frame by frame; what the client sent is parsed back.

use super::*;
use proptest::prelude::*;

const OK_HEADERS: &[u8] = &[0x88];
/// `grpc-status: 0`, literal without indexing.
const OK_TRAILERS: &[u8] = b"\x00\x0bgrpc-status\x010";

fn frame_of(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    frame::put(&mut out, kind, flags, stream, payload);
    out
}

fn settings(pairs: &[(u16, u32)]) -> Vec<u8> {
    let payload: Vec<u8> = pairs
        .iter()
        .flat_map(|(n, v)| [&n.to_be_bytes()[..], &v.to_be_bytes()].concat())
        .collect();
    frame_of(kind::SETTINGS, 0, 0, &payload)
}

fn grpc(message: &[u8]) -> Vec<u8> {
    [&[0], &(message.len() as u32).to_be_bytes()[..], message].concat()
}

fn reply(stream: u32, message: &[u8]) -> Vec<u8> {
    [
        frame_of(kind::HEADERS, flag::END_HEADERS, stream, OK_HEADERS),
        frame_of(kind::DATA, 0, stream, &grpc(message)),
        frame_of(
            kind::HEADERS,
            flag::END_HEADERS | flag::END_STREAM,
            stream,
            OK_TRAILERS,
        ),
    ]
    .concat()
}

/// A session that had its settings, with nothing left to send.
fn session(pairs: &[(u16, u32)]) -> Session {
    let mut session = Session::new("/p", "a:1", |message| message == b"hit");
    assert!(session.out.starts_with(PREFACE));
    let greeting = frames(&session.out[PREFACE.len()..]);
    assert_eq!(greeting[0].0.kind, kind::SETTINGS);
    assert_eq!(greeting[1].0.kind, kind::WINDOW_UPDATE);
    session.out.clear();
    assert!(!session.is_ready());
    feed(&mut session, &settings(pairs));
    assert!(session.is_ready());
    assert_eq!(
        frames(&session.out),
        [(head(0, kind::SETTINGS, flag::ACK, 0), vec![])]
    );
    session.out.clear();
    session
}

fn head(length: usize, kind: u8, flags: u8, stream: u32) -> Head {
    Head {
        length,
        kind,
        flags,
        stream,
    }
}

fn feed(session: &mut Session, bytes: &[u8]) {
    assert_eq!(session.feed(bytes), Ok(bytes.len()));
}

fn frames(mut bytes: &[u8]) -> Vec<(Head, Vec<u8>)> {
    let mut out = Vec::new();
    while let Some(head) = Head::parse(bytes) {
        let (frame, rest) = bytes.split_at(HEAD_BYTES + head.length);
        out.push((head, frame[HEAD_BYTES..].to_vec()));
        bytes = rest;
    }
    assert!(bytes.is_empty());
    out
}

/// (stream, flags, payload bytes) of the DATA frames in `out`, which is emptied.
fn sent_data(session: &mut Session) -> Vec<(u32, u8, usize)> {
    let sent = frames(&std::mem::take(&mut session.out));
    let data = sent.iter().filter(|(head, _)| head.kind == kind::DATA);
    data.map(|(head, _)| (head.stream, head.flags, head.length))
        .collect()
}

fn outcomes(session: &mut Session) -> Vec<(u64, Result<bool, String>)> {
    session
        .finished
        .drain(..)
        .map(|call| (call.start_ns, call.outcome))
        .collect()
}

/// What one call comes to when the server answers with `frames`.
fn outcome(frames: &[Vec<u8>]) -> Result<bool, String> {
    let mut session = session(&[]);
    session.call(0, &grpc(b"x"));
    feed(&mut session, &frames.concat());
    assert_eq!(session.in_flight(), 0);
    let [(0, outcome)] = &outcomes(&mut session)[..] else {
        panic!("one call")
    };
    outcome.clone()
}

fn headers(flags: u8, block: &[u8]) -> Vec<u8> {
    frame_of(kind::HEADERS, flag::END_HEADERS | flags, 1, block)
}

#[test]
fn a_call_is_headers_and_data() {
    let mut session = session(&[]);
    session.call(7, &grpc(b"abc"));
    let sent = frames(&session.out);
    assert_eq!(
        (sent[0].0.kind, sent[0].0.flags),
        (kind::HEADERS, flag::END_HEADERS)
    );
    assert_eq!(
        sent[1],
        (head(8, kind::DATA, flag::END_STREAM, 1), grpc(b"abc"))
    );
    session.out.clear();
    session.call(8, &grpc(b"d"));
    assert_eq!(
        frames(&session.out)[0].0,
        head(7, kind::HEADERS, flag::END_HEADERS, 3)
    );
    assert_eq!(session.in_flight(), 2);
}

#[test]
fn replies_end_calls_in_any_order() {
    let mut session = session(&[]);
    for start_ns in 0..4 {
        session.call(start_ns, &grpc(b""));
    }
    feed(
        &mut session,
        &[reply(5, b"hit"), reply(1, b"miss")].concat(),
    );
    assert_eq!(outcomes(&mut session), [(2, Ok(true)), (0, Ok(false))]);
    assert_eq!(
        (session.in_flight(), session.first, session.streams.len()),
        (2, 3, 3)
    );
    feed(&mut session, &[reply(7, b"hit"), reply(3, b"hit")].concat());
    assert_eq!(
        (session.in_flight(), session.first, session.streams.len()),
        (0, 9, 0)
    );
}

#[test]
fn failures_carry_their_reason() {
    let failed = |code: &str, message: &str| {
        let mut block = OK_HEADERS.to_vec();
        for (name, value) in [("grpc-status", code), ("grpc-message", message)] {
            block.extend([0, name.len() as u8]);
            block.extend_from_slice(name.as_bytes());
            block.push(value.len() as u8);
            block.extend_from_slice(value.as_bytes());
        }
        outcome(&[headers(flag::END_STREAM, &block)]).unwrap_err()
    };
    assert_eq!(
        failed("8", "etcdserver: no space"),
        "RESOURCE_EXHAUSTED: etcdserver: no space"
    );
    assert_eq!(failed("99", "a%0Ab"), "status 99: a\\nb");
    let ended = |frames: &[Vec<u8>]| outcome(frames).unwrap_err();
    assert_eq!(
        ended(&[headers(flag::END_STREAM, &[0x8d])]),
        "HTTP status 404"
    );
    assert_eq!(
        ended(&[headers(flag::END_STREAM, OK_HEADERS)]),
        "reply without grpc-status"
    );
    let data = |flags, bytes: &[u8]| frame_of(kind::DATA, flags, 1, bytes);
    let text_page = [headers(0, &[0x8d]), data(flag::END_STREAM, b"not found")];
    assert_eq!(ended(&text_page), "HTTP status 404");
    let no_trailers = [headers(0, OK_HEADERS), data(flag::END_STREAM, &grpc(b"x"))];
    assert_eq!(ended(&no_trailers), "reply without grpc-status");
    for bytes in [&b""[..], b"\0\0\0\0", b"\0\0\0\0\x02x", b"\0\0\0\0\x01xy"] {
        let bad = [
            headers(0, OK_HEADERS),
            data(0, bytes),
            headers(flag::END_STREAM, OK_TRAILERS),
        ];
        assert_eq!(
            ended(&bad),
            "reply without exactly one whole message",
            "{bytes:?}"
        );
    }
    let compressed = [
        headers(0, OK_HEADERS),
        data(0, b"\x01\0\0\0\x01x"),
        headers(flag::END_STREAM, OK_TRAILERS),
    ];
    assert!(ended(&compressed).starts_with("compressed reply"));
    let reset = frame_of(kind::RST_STREAM, 0, 1, &7u32.to_be_bytes());
    assert_eq!(ended(&[reset]), "stream reset: REFUSED_STREAM");
}

#[test]
fn replies_may_be_cut_anywhere() {
    let informational = [0x08, 3, b'1', b'0', b'0'];
    let priority = [&[0; 5][..], OK_HEADERS].concat();
    let (first_half, second_half) = OK_TRAILERS.split_at(4);
    let end = [
        frame_of(kind::HEADERS, flag::END_STREAM, 1, first_half),
        frame_of(kind::CONTINUATION, flag::END_HEADERS, 1, second_half),
    ];
    let message = grpc(b"hit");
    let cut = [
        headers(0, &informational),
        headers(flag::PRIORITY, &priority),
        frame_of(
            kind::DATA,
            flag::PADDED,
            1,
            &[&[2], &message[..3], &[0, 0]].concat(),
        ),
        frame_of(0xfa, 0, 1, b"an unknown kind"),
        frame_of(kind::DATA, 0, 1, &message[3..]),
        end.concat(),
    ];
    assert_eq!(outcome(&cut), Ok(true));
}

#[test]
fn pings_are_echoed_and_answers_are_not() {
    let mut session = session(&[]);
    feed(
        &mut session,
        &frame_of(kind::PING, flag::ACK, 0, b"ours....."),
    );
    assert!(session.out.is_empty());
    feed(&mut session, &frame_of(kind::PING, 0, 0, b"12345678"));
    assert_eq!(session.out, frame_of(kind::PING, flag::ACK, 0, b"12345678"));
}

#[test]
fn the_window_is_opened_in_bulk() {
    let mut session = session(&[]);
    session.call(0, &grpc(b""));
    session.unacknowledged = REFILL_BYTES - 6;
    feed(&mut session, &frame_of(kind::DATA, 0, 1, b"12345"));
    assert!(session.out.len() > 13, "only the call");
    session.out.clear();
    // Padding counts; so does data of a stream that ended.
    feed(&mut session, &frame_of(kind::RST_STREAM, 0, 1, &[0; 4]));
    feed(&mut session, &frame_of(kind::DATA, flag::PADDED, 1, &[0]));
    assert_eq!(
        session.out,
        frame_of(kind::WINDOW_UPDATE, 0, 0, &REFILL_BYTES.to_be_bytes())
    );
    assert_eq!(session.unacknowledged, 0);
}

#[test]
fn bodies_wait_for_the_stream_window() {
    let mut session = session(&[(setting::INITIAL_WINDOW_SIZE, 10)]);
    session.call(0, &grpc(&[0; 20]));
    session.call(1, &grpc(b"abc"));
    assert_eq!(
        sent_data(&mut session),
        [(1, 0, 10), (3, flag::END_STREAM, 8)],
        "one stream's shut window does not hold up another"
    );
    feed(
        &mut session,
        &frame_of(kind::WINDOW_UPDATE, 0, 1, &6u32.to_be_bytes()),
    );
    assert_eq!(sent_data(&mut session), [(1, 0, 6)]);
    feed(
        &mut session,
        &settings(&[(setting::INITIAL_WINDOW_SIZE, 5)]),
    );
    assert_eq!(sent_data(&mut session), [], "the window is negative now");
    feed(
        &mut session,
        &settings(&[(setting::INITIAL_WINDOW_SIZE, 100)]),
    );
    assert_eq!(sent_data(&mut session), [(1, flag::END_STREAM, 9)]);
}

#[test]
fn bodies_wait_for_the_connection_window_in_order() {
    let mut session = session(&[(setting::INITIAL_WINDOW_SIZE, 1 << 20)]);
    session.call(0, &grpc(&[0; 65_535 - 5 - 10]));
    let sizes: Vec<usize> = sent_data(&mut session).iter().map(|data| data.2).collect();
    assert_eq!(
        sizes,
        [16_384, 16_384, 16_384, 16_373],
        "cut at the largest payload"
    );
    session.call(1, &grpc(&[0; 15]));
    session.call(2, &grpc(b""));
    assert_eq!(sent_data(&mut session), [(3, 0, 10)]);
    feed(
        &mut session,
        &frame_of(kind::WINDOW_UPDATE, 0, 0, &12u32.to_be_bytes()),
    );
    assert_eq!(
        sent_data(&mut session),
        [(3, flag::END_STREAM, 10), (5, 0, 2)]
    );
    // Stream 5 is answered before it was sent whole.
    feed(
        &mut session,
        &frame_of(
            kind::HEADERS,
            flag::END_HEADERS | flag::END_STREAM,
            5,
            &[0x8d],
        ),
    );
    assert_eq!(
        session.out,
        frame_of(kind::RST_STREAM, 0, 5, &8u32.to_be_bytes())
    );
    session.out.clear();
    feed(
        &mut session,
        &frame_of(kind::WINDOW_UPDATE, 0, 0, &12u32.to_be_bytes()),
    );
    assert!(session.out.is_empty());
}

#[test]
fn goaway_fails_what_the_server_will_not_answer() {
    let mut session = session(&[]);
    for start_ns in 0..3 {
        session.call(start_ns, &grpc(b""));
    }
    let payload = [
        &3u32.to_be_bytes()[..],
        &11u32.to_be_bytes(),
        b"too_many_pings",
    ]
    .concat();
    feed(&mut session, &frame_of(kind::GOAWAY, 0, 0, &payload));
    let reason = "server sent GOAWAY ENHANCE_YOUR_CALM: too_many_pings";
    assert_eq!(session.closing(), Some(reason));
    assert_eq!(outcomes(&mut session), [(2, Err(reason.to_owned()))]);
    feed(&mut session, &reply(3, b"hit"));
    assert_eq!(outcomes(&mut session), [(1, Ok(true))]);
    session.fail_all("gone");
    assert_eq!(outcomes(&mut session), [(0, Err("gone".to_owned()))]);
}

#[test]
fn stream_ids_end() {
    let mut session = session(&[]);
    (session.first, session.next) = (STREAM_ID_MAX, STREAM_ID_MAX);
    assert_eq!(session.closing(), None);
    session.call(0, &grpc(b""));
    assert!(session.closing().unwrap().contains("use more --conns"));
}

#[test]
fn an_unanswered_call_does_not_fill_the_memory() {
    let mut session = session(&[]);
    session.call(0, &grpc(b""));
    while session.closing().is_none() {
        session.call(1, &grpc(b""));
        let at = session.streams.len() - 1;
        session.finish(at, Ok(true));
        session.shrink();
        session.out.clear();
        session.finished.clear();
    }
    assert_eq!(
        (session.streams.len(), session.in_flight()),
        (STREAMS_MAX, 1)
    );
    feed(&mut session, &reply(1, b""));
    assert_eq!((session.streams.len(), session.closing()), (0, None));
}

#[test]
fn settings_are_taken() {
    let session = session(&[
        (setting::MAX_CONCURRENT_STREAMS, 100),
        (setting::MAX_FRAME_SIZE, 20_000),
        (setting::HEADER_TABLE_SIZE, 0),
        (0xfff, 1),
    ]);
    assert_eq!(
        (session.streams_max(), session.payload_bytes_max),
        (Some(100), 20_000)
    );
    let mut encoder = session.encoder;
    assert_eq!(
        encoder.block()[..2],
        [0x20, 0x20],
        "both size updates, to zero"
    );
}

#[test]
fn violations_end_the_connection() {
    let refused = |bytes: &[u8]| {
        let mut session = session(&[]);
        session.call(0, &grpc(b""));
        session.feed(bytes).unwrap_err().to_string()
    };
    for (bytes, what) in [
        (
            frame_of(kind::DATA, 0, 3, b""),
            "a frame for stream 3, which we never opened",
        ),
        (
            frame_of(kind::DATA, 0, 2, b""),
            "a frame for stream 2, which we never opened",
        ),
        (
            frame_of(kind::DATA, flag::PADDED, 1, b""),
            "malformed padding",
        ),
        (
            frame_of(kind::HEADERS, flag::END_HEADERS, 1, &[0x80]),
            "header index 0",
        ),
        (
            frame_of(kind::CONTINUATION, 0, 1, b""),
            "CONTINUATION out of place",
        ),
        (frame_of(kind::PUSH_PROMISE, 0, 1, b""), "a pushed stream"),
        (
            frame_of(kind::SETTINGS, 0, 0, b"12345"),
            "malformed SETTINGS",
        ),
        (frame_of(kind::GOAWAY, 0, 0, b"1234567"), "malformed GOAWAY"),
        (
            frame_of(kind::RST_STREAM, 0, 1, b"123"),
            "malformed RST_STREAM",
        ),
        (
            head(16_385, kind::DATA, 0, 1).encode().to_vec(),
            "a frame of 16385 bytes",
        ),
        (
            [
                frame_of(kind::HEADERS, 0, 1, b""),
                frame_of(kind::PING, 0, 0, b"12345678"),
            ]
            .concat(),
            "a header block without its end",
        ),
        (
            [
                frame_of(kind::HEADERS, 0, 1, b""),
                frame_of(kind::CONTINUATION, 0, 3, b""),
            ]
            .concat(),
            "CONTINUATION of another stream",
        ),
    ] {
        assert_eq!(refused(&bytes), format!("server broke HTTP/2: {what}"));
    }
    let mut endless = frame_of(kind::HEADERS, 0, 1, b"");
    for _ in 0..5 {
        endless.extend(frame_of(kind::CONTINUATION, 0, 1, &[0; 16_000]));
    }
    assert_eq!(
        refused(&endless),
        "server broke HTTP/2: a header block beyond 64 KiB"
    );
}

#[test]
fn another_protocol_is_named() {
    let fresh = || Session::new("/p", "a:1", |_| true);
    let http1 = fresh()
        .feed(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        .unwrap_err()
        .to_string();
    assert_eq!(http1, "the server does not speak HTTP/2 without TLS");
    let tls_alert = fresh()
        .feed(b"\x15\x03\x01\x00\x02\x02\x16PADDING")
        .unwrap_err()
        .to_string();
    assert_eq!(tls_alert, "the server does not speak HTTP/2 without TLS");
    let early = fresh()
        .feed(&frame_of(kind::PING, 0, 0, b"12345678"))
        .unwrap_err()
        .to_string();
    assert_eq!(
        early,
        "server broke HTTP/2: the first frame is not SETTINGS"
    );
}

proptest! {
    /// However the bytes are cut on their way, the calls end alike.
    #[test]
    fn input_may_come_in_any_pieces(
        calls in 1usize..20,
        cuts in proptest::collection::vec(1usize..60, 1..40),
    ) {
        let mut session = session(&[]);
        let mut input = Vec::new();
        let mut expected = Vec::new();
        for call in 0..calls {
            session.call(call as u64, &grpc(b"x"));
            let message: &[u8] = if call % 3 == 0 { b"hit" } else { b"missed" };
            input.extend(reply(2 * call as u32 + 1, message));
            expected.push((call as u64, Ok(call % 3 == 0)));
        }
        let mut held = Vec::new();
        let mut cuts = cuts.into_iter().cycle();
        while !input.is_empty() {
            let cut = cuts.next().unwrap().min(input.len());
            held.extend(input.drain(..cut));
            let used = session.feed(&held).unwrap();
            held.drain(..used);
        }
        prop_assert!(held.is_empty());
        prop_assert_eq!(outcomes(&mut session), expected);
    }

    /// Whatever a server sends, the session answers with an error at worst.
    #[test]
    fn garbage_is_survived(
        frames in proptest::collection::vec(
            (0u8..11, any::<u8>(), 0u32..8, proptest::collection::vec(any::<u8>(), 0..40)), 0..30,
        ),
    ) {
        let mut session = session(&[]);
        for start_ns in 0..3 {
            session.call(start_ns, &grpc(&[0; 100]));
        }
        for (kind, flags, stream, payload) in frames {
            if session.feed(&frame_of(kind, flags, stream, &payload)).is_err() {
                break;
            }
        }
        let live = session.streams.iter().filter(|stream| stream.live).count();
        prop_assert_eq!(live, session.in_flight());
        prop_assert_eq!(session.finished.len() + live, 3);
    }
}
