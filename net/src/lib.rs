//! ringkv-net
