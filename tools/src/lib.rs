//! ringkv-tools
#![forbid(unsafe_code)]
