//! Two servers never share a port or a data directory; the first does not notice.

use std::time::Duration;

use crate::client::Client;
use crate::server::{Setup, TempDir};

/// A refusal is for people who look at a terminal.
const AT_ONCE: Duration = Duration::from_secs(2);

#[tokio::test]
async fn a_second_server_on_the_port_refuses() {
    let (dir, other_dir) = (TempDir::new(), TempDir::new());
    let setup = Setup::new(dir.path());
    let server = setup.start();
    let mut client = Client::connect(server.port).await;
    client.put("a", "1").await;

    let mut second = setup.clone();
    second.data_dir = other_dir.path().to_owned();
    let refusal = second.start_refused();
    let address = format!("listen tcp 127.0.0.1:{}: bind:", server.port);
    let text = format!("{address} address already in use");
    assert!(refusal.line.contains(&text), "{}", refusal.line);
    assert!(refusal.took < AT_ONCE, "{:?}", refusal.took);

    client.put("b", "2").await;
    assert_eq!(client.all(0).await.count, 2);
    server.stop();
}

#[tokio::test]
async fn a_second_server_on_the_data_dir_refuses() {
    let dir = TempDir::new();
    let setup = Setup::new(dir.path());
    let server = setup.start();
    let mut client = Client::connect(server.port).await;
    client.put("a", "1").await;

    let refusal = setup.elsewhere().start_refused();
    let text = format!(
        "the data directory {} is in use by another process",
        dir.path().display()
    );
    assert!(refusal.line.contains(&text), "{}", refusal.line);
    assert!(refusal.took < AT_ONCE, "{:?}", refusal.took);

    client.put("b", "2").await;
    drop(server);
    // Nothing of the refused start is in the way of the next.
    let server = setup.elsewhere().start();
    assert_eq!(Client::connect(server.port).await.all(0).await.count, 2);
}
