//! ringkv-tools
