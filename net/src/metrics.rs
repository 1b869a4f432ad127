//! /metrics: etcd's names for what this member counts, in Prometheus' text format.
//!
//! Counts are per core and summed when asked; here are the gauges that any core can read.

use core::fmt::Write;

use crate::node::Node;

/// Counts the outcome of a health check; `kind` is `health`, `livez` or `readyz`.
pub fn health_checked(kind: &'static str, check: &'static str, passed: bool) {
    crate::log::debug!("health check", "kind" => kind, "check" => check, "passed" => passed);
}

/// Writes all metrics.
pub fn write(node: &Node, out: &mut String) {
    let status = node.consensus();
    let (revision, compacted, applied, bytes) = node
        .shard
        .pin(|view| (view.revision, view.compacted, view.applied, view.bytes));
    let leader = u8::from(status.leader != 0);
    let leads = u8::from(status.leader == node.settings.member_id);
    gauge(
        out,
        "etcd_server_has_leader",
        "Whether or not a leader exists. 1 is existence, 0 is not.",
        leader,
    );
    gauge(
        out,
        "etcd_server_is_leader",
        "Whether or not this member is a leader. 1 if is, 0 otherwise.",
        leads,
    );
    gauge(
        out,
        "etcd_server_proposals_committed_total",
        "The total number of consensus proposals committed.",
        status.committed,
    );
    gauge(
        out,
        "etcd_server_proposals_applied_total",
        "The total number of consensus proposals applied.",
        applied,
    );
    gauge(
        out,
        "etcd_debugging_mvcc_current_revision",
        "The current revision of store.",
        revision,
    );
    gauge(
        out,
        "etcd_debugging_mvcc_compact_revision",
        "The revision of the last compaction in store.",
        compacted,
    );
    gauge(
        out,
        "etcd_mvcc_db_total_size_in_bytes",
        "Total size of the underlying database physically allocated in bytes.",
        bytes,
    );
    gauge(
        out,
        "etcd_mvcc_db_total_size_in_use_in_bytes",
        "Total size of the underlying database logically in use in bytes.",
        bytes,
    );
    gauge(
        out,
        "etcd_server_quota_backend_bytes",
        "Current backend storage quota size in bytes.",
        node.settings.quota_bytes,
    );
}

fn gauge(out: &mut String, name: &str, help: &str, value: impl core::fmt::Display) {
    let _ = write!(
        out,
        "# HELP {name} {help}\n# TYPE {name} gauge\n{name} {value}\n"
    );
}
