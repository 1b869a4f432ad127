//! ringkv's server: sockets, HTTP/2 and gRPC, flags, the process frame.
//!
//! Calls go from here to `ringkv_raft` and `ringkv_engine`, never back. The order of the `mod`
//! lines is the layer order, lowest first.

pub mod front;
pub mod http;
pub mod log;
pub mod pb;
pub mod service;
pub mod wire;
