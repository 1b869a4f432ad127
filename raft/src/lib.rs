//! ringkv-raft
