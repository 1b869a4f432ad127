//! What the machine must allow before anything runs: io_uring, locked memory, open files.
//!
//! Called once by the main thread, before the first executor: glommio panics or exits by itself
//! where one of these is missing, with texts that tell an operator nothing. Keeps nothing.

use core::fmt;
use std::io;

use io_uring::{IoUring, Probe, opcode};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// glommio refuses to start below this, bytes.
pub const MEMLOCK_BYTES_MIN: u64 = 512 << 10;

/// Why the server cannot run here; the text says what to allow.
#[derive(Debug)]
pub enum Unfit {
    /// `io_uring_setup` failed.
    NoUring(io::Error),
    /// The kernel's io_uring lacks an operation.
    OldKernel(&'static str),
    /// `RLIMIT_MEMLOCK`, bytes, cannot be raised far enough.
    Memlock(u64),
}

impl fmt::Display for Unfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoUring(error) => write!(
                f,
                "io_uring is not usable here ({error}): allow io_uring_setup, io_uring_enter and \
                 io_uring_register in the container's seccomp profile, and set \
                 kernel.io_uring_disabled=0"
            ),
            Self::OldKernel(operation) => {
                write!(
                    f,
                    "this kernel's io_uring has no {operation}: Linux 5.8 or newer is needed"
                )
            }
            Self::Memlock(bytes) => write!(
                f,
                "the limit of locked memory is {} KiB: allow at least {} KiB \
                 (ulimit -l, LimitMEMLOCK=, or docker run --ulimit memlock=-1)",
                bytes >> 10,
                MEMLOCK_BYTES_MIN >> 10
            ),
        }
    }
}

/// Raises limits as far as the process may, then checks all that is needed.
///
/// # Errors
/// The first thing missing.
pub fn check() -> Result<(), Unfit> {
    raise(Resource::Nofile);
    let memlock = raise(Resource::Memlock);
    if memlock < MEMLOCK_BYTES_MIN {
        return Err(Unfit::Memlock(memlock));
    }
    let ring = IoUring::new(8).map_err(Unfit::NoUring)?;
    let mut probe = Probe::new();
    ring.submitter()
        .register_probe(&mut probe)
        .map_err(Unfit::NoUring)?;
    missing(|code| probe.is_supported(code)).map_or(Ok(()), |name| Err(Unfit::OldKernel(name)))
}

/// Sets the soft limit to the hard one; returns the soft limit that is now in force.
fn raise(resource: Resource) -> u64 {
    let limit = getrlimit(resource);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    // A refusal leaves the old limit, which is what is judged.
    let in_force = if setrlimit(resource, raised).is_ok() {
        raised
    } else {
        limit
    };
    in_force.current.unwrap_or(u64::MAX)
}

/// Operations that glommio submits, and the first that is not supported.
fn missing(supported: impl Fn(u8) -> bool) -> Option<&'static str> {
    let needed = [
        (opcode::Nop::CODE, "NOP"),
        (opcode::Readv::CODE, "READV"),
        (opcode::Writev::CODE, "WRITEV"),
        (opcode::Fsync::CODE, "FSYNC"),
        (opcode::ReadFixed::CODE, "READ_FIXED"),
        (opcode::WriteFixed::CODE, "WRITE_FIXED"),
        (opcode::PollAdd::CODE, "POLL_ADD"),
        (opcode::PollRemove::CODE, "POLL_REMOVE"),
        (opcode::SendMsg::CODE, "SENDMSG"),
        (opcode::RecvMsg::CODE, "RECVMSG"),
        (opcode::Timeout::CODE, "TIMEOUT"),
        (opcode::TimeoutRemove::CODE, "TIMEOUT_REMOVE"),
        (opcode::Accept::CODE, "ACCEPT"),
        (opcode::AsyncCancel::CODE, "ASYNC_CANCEL"),
        (opcode::LinkTimeout::CODE, "LINK_TIMEOUT"),
        (opcode::Connect::CODE, "CONNECT"),
        (opcode::Fallocate::CODE, "FALLOCATE"),
        (opcode::OpenAt::CODE, "OPENAT"),
        (opcode::Close::CODE, "CLOSE"),
        (opcode::Statx::CODE, "STATX"),
        (opcode::Read::CODE, "READ"),
        (opcode::Write::CODE, "WRITE"),
        (opcode::Send::CODE, "SEND"),
        (opcode::Recv::CODE, "RECV"),
    ];
    needed
        .into_iter()
        .find(|&(code, _)| !supported(code))
        .map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_missing_operation_is_named() {
        assert_eq!(missing(|_| true), None);
        assert_eq!(missing(|code| code != opcode::Accept::CODE), Some("ACCEPT"));
    }

    #[test]
    fn every_failure_says_what_to_allow_in_one_line() {
        let failures = [
            (Unfit::NoUring(io::Error::from_raw_os_error(1)), "seccomp"),
            (Unfit::OldKernel("STATX"), "Linux 5.8"),
            (Unfit::Memlock(64 << 10), "64 KiB"),
        ];
        for (failure, hint) in failures {
            let text = failure.to_string();
            assert!(text.contains(hint) && !text.contains('\n'), "{text}");
        }
    }
}
