//! The state machine and the disk formats of ringkv: sync, sans-IO, deterministic.
//!
//! Nothing here reads a clock, a random number, a socket or the environment, and nothing awaits:
//! `raft` and readers call in, values come back. The order of the `mod` lines is the layer order,
//! lowest first: a file may `use` only modules above its own (held by `tests/tests/tidy.rs`).

pub mod limits;
pub mod types;
pub mod error;
pub mod io;
pub mod wal;
pub mod command;
pub mod index;
pub mod revtable;
pub mod mvcc;
pub mod watch;
pub mod lease;
pub mod alarm;
pub mod members;
pub mod txn;
pub mod apply;
pub mod checkpoint;
