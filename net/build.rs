//! Compiles `proto/` into message types, with a compiler written in Rust: no protoc is needed.
//!
//! Services are not generated: `src/service.rs` has them as one readable table, and a test there
//! compares it with the `.proto` files.

use std::error::Error;

const FILES: [&str; 6] = [
    "auth.proto",
    "health.proto",
    "kv.proto",
    "rpc.proto",
    "v3election.proto",
    "v3lock.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(FILES, ["proto"])?;
    prost_build::Config::new()
        .bytes(["."])
        .extern_path(".mvccpb.KeyValue", "crate::wire::EncodedKv")
        .extern_path(".mvccpb.Event", "crate::wire::EncodedEvent")
        .compile_fds(descriptors)?;
    Ok(())
}
