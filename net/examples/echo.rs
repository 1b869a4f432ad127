//! The front alone, on one core: `cargo run --release -p ringkv-net --example echo -- ADDRESS`.
//!
//! For measuring what connections, HTTP/2 and gRPC cost, and for trying clients.

use std::rc::Rc;
use std::sync::mpsc;

use glommio::net::TcpListener;
use glommio::{LocalExecutorBuilder, Placement};
use ringkv_net::front::{Drain, FrontSettings};
use ringkv_net::server::accept;

#[path = "../tests/front/echo.rs"]
mod echo;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() {
    let address = std::env::args().nth(1).expect("an address to listen on");
    let shard = LocalExecutorBuilder::new(Placement::Unbound)
        .spawn(|| async move {
            let listener = TcpListener::bind(&address).expect("a free address");
            let node = Rc::new(echo::Echo::new(mpsc::channel().0));
            accept(listener, node, FrontSettings::default(), Drain::default()).await;
        })
        .expect("an executor");
    shard.join().expect("a shard that ends without a panic");
}
