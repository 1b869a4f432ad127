//! What was acknowledged, or seen by a watcher, outlives the process, however that ends.

use std::time::Duration;

use crate::load::{Load, Memory};
use crate::server::{Setup, TempDir};

/// etcd's suites wait this long for a stop.
const STOP_MAX: Duration = Duration::from_millis(1500);

#[tokio::test]
async fn killed_amid_writes_and_started_again_at_once() {
    let dir = TempDir::new();
    let setup = Setup::new(dir.path());
    let mut memory = Memory::default();
    for round in 0..5 {
        let server = setup.start();
        memory.verify(server.port).await;
        let load = Load::start(&server, &format!("round-{round}"), 24, 200 + 900 * round);
        load.wait_for(100 + 40 * round, &mut memory);
        server.kill();
        load.finish(&mut memory);
    }
    let server = setup.start();
    memory.verify(server.port).await;
}

#[tokio::test]
async fn stopped_amid_writes() {
    let dir = TempDir::new();
    let setup = Setup::new(dir.path());
    let mut memory = Memory::default();
    for round in 0..2 {
        let server = setup.start();
        let load = Load::start(&server, &format!("round-{round}"), 24, 300);
        load.wait_for(200, &mut memory);
        let took = server.stop();
        assert!(took < STOP_MAX, "{took:?}");
        load.finish(&mut memory);
    }
    let server = setup.start();
    memory.verify(server.port).await;
}
