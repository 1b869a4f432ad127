//! The front alone, on one core: `cargo run --release -p ringkv-net --example echo -- ADDRESS`.
//!
//! For measuring what connections, HTTP/2 and gRPC cost, and for trying clients.

use core::sync::atomic::AtomicUsize;
use std::rc::Rc;
use std::sync::{Arc, mpsc};

use glommio::net::TcpListener;
use glommio::{LocalExecutorBuilder, Placement};
use ringkv_net::front::{Drain, FrontSettings, Traffic};
use ringkv_net::listen::{self, Connections};

#[path = "../tests/front/echo.rs"]
mod echo;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() {
    let address = std::env::args().nth(1).expect("an address to listen on");
    let shard = LocalExecutorBuilder::new(Placement::Unbound)
        .spawn(|| async move {
            let listener = TcpListener::bind(&address).expect("a free address");
            let connections = Rc::new(Connections {
                node: Rc::new(echo::Echo::new(mpsc::channel().0)),
                settings: FrontSettings::default(),
                drain: Drain::default(),
                loads: Arc::new([AtomicUsize::new(0)]),
                shard: 0,
            });
            listen::accept(listener, Traffic::Both, connections, Rc::default()).await;
        })
        .expect("an executor");
    shard.join().expect("a shard that ends without a panic");
}
