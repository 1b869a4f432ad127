//! What hyper needs of a runtime, over glommio: byte streams, timers and a place for its tasks.
//!
//! Everything here belongs to the executor that it was made on. The send wrapper is sound because a
//! connection never leaves its core; it panics if one ever did.

use core::cell::RefCell;
use core::pin::Pin;
use core::task::{Context, Poll};
use std::io;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_io::{AsyncRead, AsyncWrite};
use glommio::timer::Timer;
use hyper::rt::{ReadBufCursor, Sleep};
use send_wrapper::SendWrapper;

/// Most bytes taken from a socket at once.
const READ_BYTES_MAX: usize = 64 << 10;

thread_local! {
    /// Reads go through here because hyper's buffer is uninitialised memory, which only unsafe code
    /// may hand to a reader. One copy in the L1 cache costs less than a system call saves.
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; READ_BYTES_MAX].into());
}

/// A byte stream as hyper wants it, with the bytes that were read ahead to tell the protocol.
pub struct Io<S> {
    stream: S,
    ahead: Bytes,
}

impl<S> Io<S> {
    /// `stream`, whose first bytes `ahead` were read already.
    pub const fn new(stream: S, ahead: Bytes) -> Self {
        Self { stream, ahead }
    }
}

impl<S: AsyncRead + Unpin> hyper::rt::Read for Io<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut cursor: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.ahead.is_empty() {
            let count = self.ahead.len().min(cursor.remaining());
            cursor.put_slice(&self.ahead.split_to(count));
            return Poll::Ready(Ok(()));
        }
        SCRATCH.with_borrow_mut(|scratch| {
            let room = cursor.remaining().min(READ_BYTES_MAX);
            Pin::new(&mut self.stream)
                .poll_read(cx, &mut scratch[..room])
                .map_ok(|count| cursor.put_slice(&scratch[..count]))
        })
    }
}

impl<S: AsyncWrite + Unpin> hyper::rt::Write for Io<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_close(cx)
    }
}

/// hyper's tasks on this core.
#[derive(Clone, Copy)]
pub struct LocalExecutor;

impl<F> hyper::rt::Executor<F> for LocalExecutor
where
    F: Future + 'static,
    F::Output: 'static,
{
    fn execute(&self, future: F) {
        crate::task::spawn(future);
    }
}

/// hyper's timers on this core.
#[derive(Clone, Copy)]
pub struct LocalTimer;

impl hyper::rt::Timer for LocalTimer {
    fn sleep(&self, duration: Duration) -> Pin<Box<dyn Sleep>> {
        Box::pin(LocalSleep(SendWrapper::new(Timer::new(duration))))
    }

    fn sleep_until(&self, deadline: Instant) -> Pin<Box<dyn Sleep>> {
        self.sleep(deadline.saturating_duration_since(Instant::now()))
    }
}

struct LocalSleep(SendWrapper<Timer>);

impl Future for LocalSleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        Pin::new(&mut *self.0).poll(cx).map(|_| ())
    }
}

impl Sleep for LocalSleep {}

/// Ends `future` with `expired()` when `deadline` passes. The timer is made only if it has to wait.
pub async fn within<T>(
    deadline: Option<Instant>,
    expired: impl FnOnce() -> T,
    future: impl Future<Output = T>,
) -> T {
    let Some(deadline) = deadline else {
        return future.await;
    };
    let mut future = core::pin::pin!(future);
    let mut timer = None;
    let outcome = core::future::poll_fn(|cx| {
        if let Poll::Ready(value) = future.as_mut().poll(cx) {
            return Poll::Ready(Some(value));
        }
        let timer = timer
            .get_or_insert_with(|| Timer::new(deadline.saturating_duration_since(Instant::now())));
        Pin::new(timer).poll(cx).map(|_| None)
    })
    .await;
    outcome.unwrap_or_else(expired)
}
