//! ringkv: the server.
fn main() {}
