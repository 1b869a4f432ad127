//! ringkv's server: sockets, HTTP/2 and gRPC, flags, the process frame.
//!
//! Calls go from here to `ringkv_raft` and `ringkv_engine`, never back. The order of the `mod`
//! lines is the layer order, lowest first; `pb` and `wire` name each other, and so do `http` and
//! `front`, which share the body of responses, and `node` and the services that it consists of.

#![forbid(unsafe_code)]

pub mod log;
pub mod task;
pub mod pb;
pub mod wire;
pub mod service;
pub mod http;
pub mod front;
pub mod config;
pub mod probe;
pub mod datadir;
pub mod disk;
pub mod shard;
pub mod seq;
pub mod periodic;
pub mod convert;
pub mod guard;
pub mod maintenance;
pub mod kv;
pub mod lease;
pub mod watch;
pub mod cluster;
pub mod metrics;
pub mod node;
pub mod launch;
pub mod listen;
pub mod server;
