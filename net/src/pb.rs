//! The messages of etcd's API, generated from `proto/` at build time: nothing written by hand.
//!
//! Plain values without an owner. `bytes` fields are slices of the request's receive buffer, so
//! whoever keeps one beyond the request copies it. `mvccpb.KeyValue` is
//! [`crate::wire::EncodedKv`].

#![allow(missing_docs, clippy::all, clippy::pedantic, reason = "generated")]

/// User, role and permission records.
pub mod authpb {
    include!(concat!(env!("OUT_DIR"), "/authpb.rs"));
}

/// Events.
pub mod mvccpb {
    pub use crate::wire::{EncodedEvent as Event, EncodedKv as KeyValue};
}

/// KV, Watch, Lease, Cluster, Maintenance and Auth.
pub mod etcdserverpb {
    include!(concat!(env!("OUT_DIR"), "/etcdserverpb.rs"));
}

/// Lock.
pub mod v3lockpb {
    include!(concat!(env!("OUT_DIR"), "/v3lockpb.rs"));
}

/// Election.
pub mod v3electionpb {
    include!(concat!(env!("OUT_DIR"), "/v3electionpb.rs"));
}

/// gRPC's health protocol.
pub mod health {
    include!(concat!(env!("OUT_DIR"), "/grpc.health.v1.rs"));
}
