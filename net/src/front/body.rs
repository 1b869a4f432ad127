//! The body of every response: nothing, one piece, or the replies of a stream.
//!
//! Owned by hyper's task for the request. A [`Streaming`] body owns the service's future: polling
//! the body runs the service, dropping the body (reset, disconnect) cancels it. So a stream costs
//! no task of its own, and a client that does not read stops its service by flow control.

use core::cell::RefCell;
use core::convert::Infallible;
use core::future::poll_fn;
use core::pin::Pin;
use core::task::{Context, Poll};
use std::rc::Rc;

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Frame, SizeHint};

use super::grpc::trailers;
use crate::service::Outbox;
use crate::wire::Status;

/// A service's future that ends its stream.
pub type Handler = Pin<Box<dyn Future<Output = Result<(), Status>>>>;

/// A response body.
pub enum Body {
    /// One piece, then trailers; either may be absent.
    Whole {
        /// Taken when sent.
        bytes: Option<Bytes>,
        /// Taken when sent. With them, the length of the body is not announced.
        trailers: Option<HeaderMap>,
    },
    /// Replies until the service ends.
    Stream(Streaming),
}

impl Body {
    /// No bytes at all.
    pub const EMPTY: Self = Self::Whole {
        bytes: None,
        trailers: None,
    };

    /// `bytes` with an announced length.
    #[must_use]
    pub fn plain(bytes: Bytes) -> Self {
        Self::Whole {
            bytes: Some(bytes).filter(|bytes| !bytes.is_empty()),
            trailers: None,
        }
    }
}

/// A running service and the replies that it has not yet handed over.
pub struct Streaming {
    /// `None` once it has ended.
    handler: Option<Handler>,
    outbox: Rc<RefCell<Outbox>>,
    /// How it ended, taken when sent as trailers.
    outcome: Option<Result<(), Status>>,
}

impl Streaming {
    /// `handler` sends its replies to `outbox`.
    #[must_use]
    pub const fn new(handler: Handler, outbox: Rc<RefCell<Outbox>>) -> Self {
        Self {
            handler: Some(handler),
            outbox,
            outcome: None,
        }
    }

    /// Runs the service until its first reply.
    ///
    /// # Errors
    /// The status with which it ended before any reply.
    pub async fn start(mut self) -> Result<Self, Status> {
        poll_fn(|cx| {
            self.run(cx);
            let waits =
                self.handler.is_some() && self.outbox.borrow_mut().poll_filled(cx).is_pending();
            if waits {
                Poll::Pending
            } else {
                Poll::Ready(())
            }
        })
        .await;
        if self.outbox.borrow().is_empty()
            && let Some(Err(status)) = self.outcome.take_if(|outcome| outcome.is_err())
        {
            return Err(status);
        }
        Ok(self)
    }

    fn run(&mut self, cx: &mut Context<'_>) {
        let Some(handler) = &mut self.handler else {
            return;
        };
        if let Poll::Ready(outcome) = handler.as_mut().poll(cx) {
            self.handler = None;
            self.outcome = Some(outcome);
        }
    }

    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Frame<Bytes>>> {
        self.run(cx);
        let mut outbox = self.outbox.borrow_mut();
        if let Poll::Ready(bytes) = outbox.poll_take(cx) {
            return Poll::Ready(Some(Frame::data(bytes)));
        }
        if self.handler.is_some() {
            return Poll::Pending;
        }
        outbox.close();
        Poll::Ready(
            self.outcome
                .take()
                .map(|outcome| Frame::trailers(trailers(outcome.as_ref().err()))),
        )
    }
}

impl Drop for Streaming {
    fn drop(&mut self) {
        self.outbox.borrow_mut().close();
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match self.get_mut() {
            Self::Whole { bytes, trailers } => {
                let frame = bytes
                    .take()
                    .map(Frame::data)
                    .or_else(|| trailers.take().map(Frame::trailers));
                Poll::Ready(frame.map(Ok))
            }
            Self::Stream(stream) => stream.poll_frame(cx).map(|frame| frame.map(Ok)),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole { bytes, trailers } => bytes.is_none() && trailers.is_none(),
            Self::Stream(stream) => stream.handler.is_none() && stream.outcome.is_none(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole {
                bytes,
                trailers: None,
            } => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Self::Whole { .. } | Self::Stream(_) => SizeHint::default(),
        }
    }
}
