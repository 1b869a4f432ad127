//! The state machine and the disk formats of ringkv: sync, sans-IO, deterministic.
//!
//! Nothing here reads a clock, a random number, a socket or the environment, and nothing awaits:
//! `raft` and readers call in, values come back. The order of the `mod` lines is the layer order,
//! lowest first: a file may `use` only modules above its own (held by `tests/tests/tidy.rs`).

pub mod command;
pub mod error;
pub mod lease;
pub mod limits;
pub mod revtable;
pub mod types;
pub mod watch;
