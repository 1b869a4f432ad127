//! One TCP connection with its session: connect, handshake, non-blocking receive and flush.
//!
//! Owned by one load thread. Not here: readiness (the load loop's epoll), TLS.

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use crate::Error;
use crate::session::Session;

/// Patience with a server that neither accepts nor speaks.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Size of the receive buffer a load thread shares among its links.
pub const SCRATCH_BYTES: usize = 256 * 1024;

/// See the module.
#[derive(Debug)]
pub struct Link {
    /// The protocol's state.
    pub session: Session,
    socket: TcpStream,
    /// Start of a frame whose rest is to come.
    held: Vec<u8>,
    /// Bytes of `session.out` already sent.
    sent: usize,
}

impl Link {
    /// Connects to `endpoint` (`host:port`) for calls of `path`, and waits for the server's
    /// settings.
    ///
    /// # Errors
    /// One line that names the endpoint.
    pub fn connect(endpoint: &str, path: &str, inspect: fn(&[u8]) -> bool) -> Result<Link, Error> {
        let named = |what: &dyn std::fmt::Display| Error::new(format!("{endpoint}: {what}"));
        let address = endpoint
            .to_socket_addrs()
            .map_err(|error| named(&error))?
            .next()
            .ok_or_else(|| named(&"no address"))?;
        let socket =
            TcpStream::connect_timeout(&address, CONNECT_TIMEOUT).map_err(|error| named(&error))?;
        let options = || -> std::io::Result<()> {
            socket.set_nodelay(true)?;
            socket.set_read_timeout(Some(CONNECT_TIMEOUT))?;
            socket.set_write_timeout(Some(CONNECT_TIMEOUT))
        };
        options().map_err(|error| named(&error))?;
        let session = Session::new(path, endpoint, inspect);
        let mut link = Link {
            session,
            socket,
            held: Vec::new(),
            sent: 0,
        };
        link.shake_hands().map_err(|error| named(&error))?;
        link.socket
            .set_nonblocking(true)
            .map_err(|error| named(&error))?;
        Ok(link)
    }

    /// The socket, for epoll.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    fn shake_hands(&mut self) -> Result<(), Error> {
        let mut scratch = vec![0; SCRATCH_BYTES];
        self.flush()?;
        while !self.session.is_ready() {
            if !self.receive(&mut scratch)? {
                return Err(Error::new(
                    "connected, but no HTTP/2 settings came within 5 s",
                ));
            }
        }
        self.flush().map(|_| ())
    }

    /// Reads once and feeds the session. False: nothing was there.
    ///
    /// # Errors
    /// The connection ended or the server broke the protocol.
    pub fn receive(&mut self, scratch: &mut [u8]) -> Result<bool, Error> {
        let held = self.held.len();
        assert!(held < scratch.len());
        scratch[..held].copy_from_slice(&self.held);
        match self.socket.read(&mut scratch[held..]) {
            Ok(0) => Err(self.ended("connection closed by the server")),
            Ok(bytes) => {
                let input = &scratch[..held + bytes];
                let used = self.session.feed(input)?;
                self.held.clear();
                self.held.extend_from_slice(&input[used..]);
                Ok(true)
            }
            Err(error) if is_transient(&error) => Ok(false),
            Err(error) => Err(self.ended(&format!("receive: {error}"))),
        }
    }

    /// Sends what the session has to send. False: the socket is full, wait until it is writable.
    ///
    /// # Errors
    /// The connection ended.
    pub fn flush(&mut self) -> Result<bool, Error> {
        while self.sent < self.session.out.len() {
            match self.socket.write(&self.session.out[self.sent..]) {
                Ok(bytes) => self.sent += bytes,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if is_transient(&error) => return Ok(false),
                Err(error) => return Err(self.ended(&format!("send: {error}"))),
            }
        }
        self.session.out.clear();
        self.sent = 0;
        Ok(true)
    }

    /// A GOAWAY explains the end of a connection better than the socket's error.
    fn ended(&self, otherwise: &str) -> Error {
        Error::new(self.session.closing().unwrap_or(otherwise))
    }
}

fn is_transient(error: &std::io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted
    )
}
