//! Streams across the service boundary: [`Requests`] in, [`Replies`] out, both with backpressure.
//!
//! Owned by the call's future, on one core. Requests are pulled: nothing is read ahead of the
//! service, HTTP/2's flow control holds the client back. Replies are encoded when sent into one
//! buffer that holds at most [`Outbox::BYTES_MAX`] bytes beyond one reply; then `send` waits.

use core::cell::RefCell;
use core::future::poll_fn;
use core::marker::PhantomData;
use core::task::{Context, Poll, Waker};
use std::collections::VecDeque;
use std::rc::Rc;

use bytes::{BufMut, Bytes, BytesMut};
use prost::Message;
use ringkv_engine::error::Code;

use crate::wire::Status;

/// Bytes in front of each gRPC message: a compression flag and the length, big endian.
pub const PREFIX_BYTES: usize = 5;

/// Where encoded requests come from, one whole message each; `None` after the last.
pub trait Source {
    /// The next message, without its prefix.
    ///
    /// # Errors
    /// If the stream broke off, or the message is too large or compressed.
    fn poll_message(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, Status>>;
}

/// A client's request stream.
pub struct Requests<M> {
    source: Box<dyn Source>,
    message: PhantomData<M>,
}

impl<M: Message + Default> Requests<M> {
    /// A stream of what `source` gives.
    pub fn new(source: impl Source + 'static) -> Self {
        Self {
            source: Box::new(source),
            message: PhantomData,
        }
    }

    /// A stream of `messages`, for callers that have them all.
    #[must_use]
    pub fn from_messages(messages: &[M]) -> Self {
        struct Ready(VecDeque<Bytes>);
        impl Source for Ready {
            fn poll_message(
                &mut self,
                _cx: &mut Context<'_>,
            ) -> Poll<Result<Option<Bytes>, Status>> {
                Poll::Ready(Ok(self.0.pop_front()))
            }
        }
        Self::new(Ready(
            messages.iter().map(|m| m.encode_to_vec().into()).collect(),
        ))
    }

    /// The next request, `None` once the client has closed its side. Cancel-safe.
    ///
    /// # Errors
    /// If the stream broke off or a message does not decode.
    pub async fn next(&mut self) -> Result<Option<M>, Status> {
        poll_fn(|cx| self.poll_next(cx)).await
    }

    /// [`Requests::next`] for callers that poll several things at once.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<M>, Status>> {
        self.source
            .poll_message(cx)
            .map(|message| message?.map(decode).transpose())
    }
}

/// Decodes one request.
///
/// # Errors
/// `Internal` with grpc-go's words if the bytes are no `M`.
pub fn decode<M: Message + Default>(bytes: Bytes) -> Result<M, Status> {
    M::decode(bytes).map_err(|error| {
        let message = format!("grpc: error unmarshalling request: {error}");
        Status::new(Code::Internal, message)
    })
}

/// Appends `message` with its prefix to `out`, growing it at most once, to the exact size.
///
/// # Panics
/// If the message has 4 GiB or more: replies are bounded far below.
pub fn encode(message: &impl Message, out: &mut BytesMut) {
    let len = message.encoded_len();
    let len_u32 = u32::try_from(len).expect("a reply is bounded below 4 GiB");
    out.reserve(PREFIX_BYTES + len);
    out.put_u8(0);
    out.put_u32(len_u32);
    let before = out.len();
    message.encode_raw(out);
    assert_eq!(
        out.len() - before,
        len,
        "a message wrote another length than it said"
    );
}

/// The client is gone: stop.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Closed;

/// Encoded replies between a service and its connection.
#[derive(Default)]
pub struct Outbox {
    bytes: BytesMut,
    closed: bool,
    /// Of the connection, when it waits for replies.
    reader: Option<Waker>,
    /// Of senders, when they wait for room.
    writers: Vec<Waker>,
}

impl Outbox {
    /// A sender waits while this many encoded bytes are not yet taken.
    pub const BYTES_MAX: usize = 256 << 10;

    /// Takes everything encoded so far; registers `cx` if there is nothing.
    pub fn poll_take(&mut self, cx: &mut Context<'_>) -> Poll<Bytes> {
        if self.poll_filled(cx).is_pending() {
            return Poll::Pending;
        }
        self.writers.drain(..).for_each(Waker::wake);
        Poll::Ready(self.bytes.split().freeze())
    }

    /// Ready once something was encoded; registers `cx` until then.
    pub fn poll_filled(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.bytes.is_empty() {
            self.reader = Some(cx.waker().clone());
            return Poll::Pending;
        }
        Poll::Ready(())
    }

    /// Whether all replies were taken.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Makes every later send fail.
    pub fn close(&mut self) {
        self.closed = true;
        self.writers.drain(..).for_each(Waker::wake);
    }
}

/// Where a service puts the replies of a stream.
pub struct Replies<M> {
    outbox: Rc<RefCell<Outbox>>,
    message: PhantomData<M>,
}

impl<M: Message> Replies<M> {
    /// Replies that go to `outbox`.
    #[must_use]
    pub const fn new(outbox: Rc<RefCell<Outbox>>) -> Self {
        Self {
            outbox,
            message: PhantomData,
        }
    }

    /// Encodes `message` and queues it, after waiting for room. Cancel-safe: sent or not at all.
    ///
    /// # Errors
    /// [`Closed`] if the client is gone.
    pub async fn send(&self, message: &M) -> Result<(), Closed> {
        poll_fn(|cx| self.poll_room(cx)).await?;
        let mut outbox = self.outbox.borrow_mut();
        encode(message, &mut outbox.bytes);
        if let Some(reader) = outbox.reader.take() {
            reader.wake();
        }
        Ok(())
    }

    fn poll_room(&self, cx: &mut Context<'_>) -> Poll<Result<(), Closed>> {
        let mut outbox = self.outbox.borrow_mut();
        if outbox.closed {
            return Poll::Ready(Err(Closed));
        }
        if outbox.bytes.len() < Outbox::BYTES_MAX {
            return Poll::Ready(Ok(()));
        }
        if !outbox
            .writers
            .iter()
            .any(|writer| writer.will_wake(cx.waker()))
        {
            outbox.writers.push(cx.waker().clone());
        }
        Poll::Pending
    }
}

impl From<Closed> for Status {
    fn from(Closed: Closed) -> Self {
        Self::new(Code::Cancelled, "context canceled")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pb::etcdserverpb::{SnapshotResponse, StatusRequest, WatchRequest};

    fn poll<T>(future: impl Future<Output = T>) -> Poll<T> {
        core::pin::pin!(future).poll(&mut Context::from_waker(Waker::noop()))
    }

    #[test]
    fn a_prefix_carries_the_length() {
        let mut out = BytesMut::new();
        encode(
            &SnapshotResponse {
                remaining_bytes: 1,
                ..Default::default()
            },
            &mut out,
        );
        assert_eq!(&out[..], [0, 0, 0, 0, 2, 0x10, 1]);
    }

    #[test]
    fn a_large_reply_takes_one_allocation_of_its_size() {
        let blob = Bytes::from(vec![1; 10 << 20]);
        let mut out = BytesMut::new();
        encode(
            &SnapshotResponse {
                blob,
                ..Default::default()
            },
            &mut out,
        );
        assert!(
            out.capacity() < out.len() + 4096,
            "{} for {}",
            out.capacity(),
            out.len()
        );
    }

    #[test]
    fn a_full_outbox_holds_the_sender_until_it_is_taken() {
        let outbox = Rc::new(RefCell::new(Outbox::default()));
        let replies = Replies::new(outbox.clone());
        let big = SnapshotResponse {
            blob: Bytes::from(vec![1; Outbox::BYTES_MAX]),
            ..SnapshotResponse::default()
        };
        assert_eq!(poll(replies.send(&big)), Poll::Ready(Ok(())));
        assert_eq!(poll(replies.send(&big)), Poll::Pending);
        let mut cx = Context::from_waker(Waker::noop());
        let taken = outbox.borrow_mut().poll_take(&mut cx);
        assert!(matches!(taken, Poll::Ready(bytes) if bytes.len() > big.blob.len()));
        assert_eq!(poll(replies.send(&big)), Poll::Ready(Ok(())));
        outbox.borrow_mut().close();
        assert_eq!(poll(replies.send(&big)), Poll::Ready(Err(Closed)));
    }

    #[test]
    fn requests_come_in_order_and_end() {
        let mut requests = Requests::from_messages(&[StatusRequest {}, StatusRequest {}]);
        assert_eq!(
            poll(requests.next()),
            Poll::Ready(Ok(Some(StatusRequest {})))
        );
        assert_eq!(
            poll(requests.next()),
            Poll::Ready(Ok(Some(StatusRequest {})))
        );
        assert_eq!(poll(requests.next()), Poll::Ready(Ok(None)));
    }

    #[test]
    fn a_message_that_does_not_decode_is_internal() {
        let error = decode::<WatchRequest>(Bytes::from_static(&[0xff])).unwrap_err();
        assert_eq!(error.code, Code::Internal);
        assert!(
            error
                .message
                .starts_with("grpc: error unmarshalling request: ")
        );
    }
}
