//! gRPC over HTTP/2: metadata, message framing, deadlines and statuses, with grpc-go's texts.
//!
//! One call is one future on the connection's core, owned by hyper's task for the stream. Replies
//! are encoded once, into a buffer of their exact size; requests are slices of the receive buffer.
//! Deliberately not here: the meaning of messages.

use core::cell::RefCell;
use core::fmt::Write as _;
use core::pin::Pin;
use core::task::{Context, Poll, ready};
use std::rc::Rc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, request};
use prost::Message;
use ringkv_engine::error::Code;

use super::body::{Body, Streaming};
use super::gzip::unpack;
use super::rt::within;
use crate::pb::etcdserverpb::*;
use crate::pb::health::*;
use crate::pb::v3electionpb::*;
use crate::pb::v3lockpb::*;
use crate::service::{
    Ctx, Outbox, PREFIX_BYTES, Peer, Replies, Requests, SERVICES, Services, Source, decode, encode,
    rpc_table,
};
use crate::wire::Status;

const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
const GRPC_CONTENT_TYPE: HeaderValue = HeaderValue::from_static("application/grpc");

/// Whether a request with these headers is meant for gRPC.
#[must_use]
pub fn is_grpc(headers: &HeaderMap) -> bool {
    headers
        .get(CONTENT_TYPE)
        .is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"))
}

/// Answers one request; `request_bytes_max` bounds each message of it.
pub async fn serve<S, B>(
    services: &Rc<S>,
    peer: &Rc<Peer>,
    request_bytes_max: usize,
    request: http::Request<B>,
) -> Response<Body>
where
    S: Services,
    B: http_body::Body<Data = Bytes> + Unpin + 'static,
{
    let (head, body) = request.into_parts();
    let (ctx, gzip) = match accept(&head, peer) {
        Ok(accepted) => accepted,
        Err((code, status)) => return refused(code, &status),
    };
    let messages = Messages {
        body,
        buffered: Bytes::new(),
        request_bytes_max,
        gzip,
    };
    dispatch(services, head.uri.path(), Call { ctx, messages }).await
}

/// Checks a request's head; gives what services may know of it, and whether it may be compressed.
fn accept(head: &request::Parts, peer: &Rc<Peer>) -> Result<(Ctx, bool), (StatusCode, Status)> {
    let mut ctx = Ctx::new(peer.clone());
    let mut gzip = false;
    let mut authorization = None;
    if !head.headers.contains_key(CONTENT_TYPE) {
        check_content_type(&HeaderValue::from_static(""))?;
    }
    for (name, value) in &head.headers {
        match name.as_str() {
            "content-type" => check_content_type(value)?,
            "grpc-timeout" => {
                let timeout = parse_timeout(value).map_err(|reason| {
                    let message = format!("malformed grpc-timeout: {reason}");
                    (
                        StatusCode::BAD_REQUEST,
                        Status::new(Code::Internal, message),
                    )
                })?;
                ctx.deadline = Instant::now().checked_add(timeout);
            }
            "grpc-encoding" if value == "gzip" => gzip = true,
            "grpc-encoding" if value != "identity" => {
                let message =
                    format!("grpc: Decompressor is not installed for grpc-encoding {value:?}");
                return Err((StatusCode::OK, Status::new(Code::Unimplemented, message)));
            }
            "token" if ctx.token.is_none() => ctx.token = value.to_str().ok().map(Box::from),
            "authorization" if authorization.is_none() => authorization = value.to_str().ok(),
            "hasleader" => ctx.require_leader = value == "true",
            "client-api-version" => {
                ctx.client_api_version = value
                    .to_str()
                    .ok()
                    .map(|version| peer.intern_api_version(version));
            }
            _ => {}
        }
    }
    if ctx.token.is_none() {
        ctx.token = authorization.map(Box::from);
    }
    if head.method != Method::POST {
        let message = format!(
            "Received a HEADERS frame with :method {:?} which should be POST",
            head.method.as_str()
        );
        return Err((
            StatusCode::METHOD_NOT_ALLOWED,
            Status::new(Code::Internal, message),
        ));
    }
    Ok((ctx, gzip))
}

fn check_content_type(value: &HeaderValue) -> Result<(), (StatusCode, Status)> {
    let rest = value.as_bytes().strip_prefix(b"application/grpc");
    match rest.map(<[u8]>::first) {
        Some(None | Some(b'+' | b';')) => Ok(()),
        Some(Some(_)) | None => {
            let message = format!("invalid gRPC request content-type {value:?}");
            let status = Status::new(Code::InvalidArgument, message);
            Err((StatusCode::UNSUPPORTED_MEDIA_TYPE, status))
        }
    }
}

/// `grpc-timeout`: at most 8 digits and a unit.
fn parse_timeout(value: &HeaderValue) -> Result<Duration, String> {
    let text = value
        .to_str()
        .map_err(|_| "transport: timeout is not text".to_owned())?;
    if text.len() < 2 {
        return Err(format!("transport: timeout string is too short: {text:?}"));
    }
    if text.len() > 9 {
        return Err(format!("transport: timeout string is too long: {text:?}"));
    }
    let (digits, unit) = text.split_at(text.len() - 1);
    let unit = match unit {
        "H" => Duration::from_secs(3600),
        "M" => Duration::from_secs(60),
        "S" => Duration::from_secs(1),
        "m" => Duration::from_millis(1),
        "u" => Duration::from_micros(1),
        "n" => Duration::from_nanos(1),
        _ => {
            return Err(format!(
                "transport: timeout unit is not recognized: {text:?}"
            ));
        }
    };
    if !digits.bytes().all(|digit| digit.is_ascii_digit()) {
        return Err(format!(
            "strconv.ParseUint: parsing {digits:?}: invalid syntax"
        ));
    }
    let count: u32 = digits.parse().expect("8 digits fit 32 bits");
    Ok(unit.saturating_mul(count))
}

/// A call whose head was accepted.
struct Call<B> {
    ctx: Ctx,
    messages: Messages<B>,
}

impl<B: http_body::Body<Data = Bytes> + Unpin + 'static> Call<B> {
    async fn unary<Q, R>(
        mut self,
        handler: impl AsyncFnOnce(&Ctx, Q) -> Result<R, Status>,
    ) -> Response<Body>
    where
        Q: Message + Default,
        R: Message,
    {
        let deadline = self.ctx.deadline;
        let expired = || Err(Status::deadline_exceeded());
        let reply = within(deadline, expired, async {
            let request = self.messages.only().await?;
            handler(&self.ctx, request).await
        });
        match reply.await {
            Ok(reply) => {
                let mut bytes = BytesMut::new();
                encode(&reply, &mut bytes);
                let trailers = Some(trailers(None));
                respond(Body::Whole {
                    bytes: Some(bytes.freeze()),
                    trailers,
                })
            }
            Err(status) => refused(StatusCode::OK, &status),
        }
    }

    async fn server<Q, R>(
        mut self,
        handler: impl AsyncFnOnce(&Ctx, Q, &Replies<R>) -> Result<(), Status> + 'static,
    ) -> Response<Body>
    where
        Q: Message + Default,
        R: Message + 'static,
    {
        stream(self.ctx.deadline, async move |replies: Replies<R>| {
            let request = self.messages.only().await?;
            handler(&self.ctx, request, &replies).await
        })
        .await
    }

    async fn bidi<Q, R>(
        self,
        handler: impl AsyncFnOnce(&Ctx, Requests<Q>, &Replies<R>) -> Result<(), Status> + 'static,
    ) -> Response<Body>
    where
        Q: Message + Default,
        R: Message + 'static,
    {
        let Self { ctx, messages } = self;
        stream(ctx.deadline, async move |replies: Replies<R>| {
            handler(&ctx, Requests::new(messages), &replies).await
        })
        .await
    }
}

/// Runs `handler` until its first reply, and on as the body of the response.
async fn stream<R: Message + 'static>(
    deadline: Option<Instant>,
    handler: impl AsyncFnOnce(Replies<R>) -> Result<(), Status> + 'static,
) -> Response<Body> {
    let outbox = Rc::new(RefCell::new(Outbox::default()));
    let replies = Replies::new(outbox.clone());
    let expired = || Err(Status::deadline_exceeded());
    let handler = Box::pin(async move { within(deadline, expired, handler(replies)).await });
    match Streaming::new(handler, outbox).start().await {
        Ok(streaming) => respond(Body::Stream(streaming)),
        Err(status) => refused(StatusCode::OK, &status),
    }
}

/// Runs one line of the table. Only hot calls live inside the caller's future.
macro_rules! run_call {
    (hot, $services:ident, $call:ident, $name:ident, $req:ty, $resp:ty) => {
        $call
            .unary(async |ctx: &Ctx, request: $req| $services.$name(ctx, request).await)
            .await
    };
    (unary, $services:ident, $call:ident, $name:ident, $req:ty, $resp:ty) => {
        Box::pin($call.unary(async |ctx: &Ctx, request: $req| $services.$name(ctx, request).await))
            .await
    };
    (server, $services:ident, $call:ident, $name:ident, $req:ty, $resp:ty) => {{
        let services = $services.clone();
        Box::pin($call.server(
            async move |ctx: &Ctx, request: $req, replies: &Replies<$resp>| {
                services.$name(ctx, request, replies).await
            },
        ))
        .await
    }};
    (bidi, $services:ident, $call:ident, $name:ident, $req:ty, $resp:ty) => {{
        let services = $services.clone();
        Box::pin($call.bidi(
            async move |ctx: &Ctx, requests: Requests<$req>, replies: &Replies<$resp>| {
                services.$name(ctx, requests, replies).await
            },
        ))
        .await
    }};
}

macro_rules! define_dispatch {
    ($($service:literal {
        $($kind:ident $method:literal $name:ident($req:ty) -> $resp:ty;)*
    })*) => {
        async fn dispatch<S, B>(services: &Rc<S>, path: &str, call: Call<B>) -> Response<Body>
        where
            S: Services,
            B: http_body::Body<Data = Bytes> + Unpin + 'static,
        {
            match path {
                $($(
                    concat!("/", $service, "/", $method) => {
                        run_call!($kind, services, call, $name, $req, $resp)
                    }
                )*)*
                _ => refused(StatusCode::OK, &unknown(path)),
            }
        }
    };
}

rpc_table!(define_dispatch);

/// What grpc-go says of a path that nobody serves.
fn unknown(path: &str) -> Status {
    let Some((service, method)) = path
        .strip_prefix('/')
        .and_then(|path| path.rsplit_once('/'))
    else {
        return Status::new(
            Code::Unimplemented,
            format!("malformed method name: {path:?}"),
        );
    };
    if SERVICES.contains(&service) {
        return Status::unknown_method(service, method);
    }
    Status::new(Code::Unimplemented, format!("unknown service {service}"))
}

fn respond(body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    response
        .headers_mut()
        .insert(CONTENT_TYPE, GRPC_CONTENT_TYPE);
    response
}

/// A response of headers only.
fn refused(code: StatusCode, status: &Status) -> Response<Body> {
    let mut response = Response::new(Body::EMPTY);
    *response.status_mut() = code;
    *response.headers_mut() = trailers(Some(status));
    response
        .headers_mut()
        .insert(CONTENT_TYPE, GRPC_CONTENT_TYPE);
    response
}

/// `grpc-status` and `grpc-message` for how a call ended, `None` for success.
#[must_use]
pub fn trailers(status: Option<&Status>) -> HeaderMap {
    let mut map = HeaderMap::with_capacity(3);
    let Some(status) = status else {
        map.insert(GRPC_STATUS, HeaderValue::from_static("0"));
        return map;
    };
    map.insert(GRPC_STATUS, HeaderValue::from(status.code as u16));
    let message = HeaderValue::from_str(&percent_encode(&status.message));
    map.insert(
        GRPC_MESSAGE,
        message.expect("percent-encoded text is printable ASCII"),
    );
    map
}

/// gRPC's encoding of a message: everything but printable ASCII, and `%`, as `%XX`.
fn percent_encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'%' | ..b' ' | 0x7f.. => {
                write!(out, "%{byte:02X}").expect("a String takes everything");
            }
            printable => out.push(char::from(printable)),
        }
    }
    out
}

/// The messages of a request body.
struct Messages<B> {
    body: B,
    /// Received and not yet split off.
    buffered: Bytes,
    request_bytes_max: usize,
    /// Whether messages may be compressed.
    gzip: bool,
}

impl<B: http_body::Body<Data = Bytes> + Unpin> Messages<B> {
    /// The message of a call that has exactly one.
    async fn only<Q: Message + Default>(&mut self) -> Result<Q, Status> {
        let bytes = core::future::poll_fn(|cx| self.poll_message(cx)).await?;
        let missing = || Status::new(Code::Internal, "EOF");
        decode(bytes.ok_or_else(missing)?)
    }

    /// Splits the first message off what is buffered, if it is all there.
    fn split(&mut self) -> Result<Option<Bytes>, Status> {
        let Some((prefix, rest)) = self.buffered.split_first_chunk::<PREFIX_BYTES>() else {
            return Ok(None);
        };
        let [compressed, len @ ..] = *prefix;
        let len = u32::from_be_bytes(len) as usize;
        if compressed > 1 {
            let message = format!("grpc: received unexpected payload format {compressed}");
            return Err(Status::new(Code::Internal, message));
        }
        if len > self.request_bytes_max {
            let max = self.request_bytes_max;
            let message = format!("grpc: received message larger than max ({len} vs. {max})");
            return Err(Status::new(Code::ResourceExhausted, message));
        }
        if compressed == 1 && !self.gzip {
            let message = "grpc: compressed flag set with identity or empty encoding";
            return Err(Status::new(Code::Internal, message));
        }
        if rest.len() < len {
            return Ok(None);
        }
        let mut message = self.buffered.split_to(PREFIX_BYTES + len);
        let message = message.split_off(PREFIX_BYTES);
        if compressed == 1 {
            return unpack(&message, self.request_bytes_max).map(Some);
        }
        Ok(Some(message))
    }

    fn append(&mut self, data: Bytes) {
        if self.buffered.is_empty() {
            self.buffered = data;
            return;
        }
        // In place when `buffered` is the buffer that the last call made here.
        let mut joined = BytesMut::from(core::mem::take(&mut self.buffered));
        joined.extend_from_slice(&data);
        self.buffered = joined.freeze();
    }
}

impl<B: http_body::Body<Data = Bytes> + Unpin> Source for Messages<B> {
    fn poll_message(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, Status>> {
        loop {
            if let Some(message) = self.split()? {
                return Poll::Ready(Ok(Some(message)));
            }
            match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
                None if self.buffered.is_empty() => return Poll::Ready(Ok(None)),
                None => {
                    let status = Status::new(Code::Internal, "unexpected EOF");
                    return Poll::Ready(Err(status));
                }
                Some(Err(_)) => {
                    let status = Status::new(Code::Cancelled, "context canceled");
                    return Poll::Ready(Err(status));
                }
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        self.append(data);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
