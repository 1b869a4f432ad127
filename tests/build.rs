//! Generates a tonic client from `net/proto`, so that the black-box tests share no wire code with
//! the server they judge.

use std::error::Error;

const PROTO: &str = "../net/proto";
const FILES: [&str; 3] = ["auth.proto", "kv.proto", "rpc.proto"];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed={PROTO}");
    let descriptors = protox::compile(FILES, [PROTO])?;
    tonic_prost_build::configure()
        .build_server(false)
        .compile_fds(descriptors)?;
    Ok(())
}
