//! Leases by the clock: keys go when the time is over, not before, and kept ones stay.

use std::time::{Duration, Instant};

use tokio_stream::wrappers::ReceiverStream;

use crate::client::pb::mvccpb::event::EventType;
use crate::client::{
    Client, LeaseGrantRequest, LeaseKeepAliveRequest, LeaseTimeToLiveRequest, PutRequest, put,
};
use crate::server::{Setup, TempDir};

/// etcd looks every half second; the rest is for a busy machine.
const LATE_MAX: Duration = Duration::from_secs(4);

async fn grant(client: &mut Client, id: i64, ttl: i64) {
    let grant = LeaseGrantRequest { ttl, id };
    let granted = client.lease.lease_grant(grant).await.unwrap().into_inner();
    assert_eq!((granted.id, granted.ttl), (id, ttl));
    let attached = PutRequest {
        lease: id,
        ..put(&format!("of-{id}"), "")
    };
    client.try_put(attached).await.unwrap();
}

async fn seconds_left(client: &mut Client, id: i64) -> i64 {
    let ask = LeaseTimeToLiveRequest { id, keys: false };
    let left = client.lease.lease_time_to_live(ask).await.unwrap();
    left.into_inner().ttl
}

#[tokio::test]
async fn a_lease_expires_in_time_unless_kept() {
    let dir = TempDir::new();
    let server = Setup::new(dir.path()).start();
    let mut client = Client::connect(server.port).await;
    let ttl = Duration::from_secs(2);
    let begun = Instant::now();
    grant(&mut client, 1, 2).await;
    grant(&mut client, 2, 2).await;
    let mut events = client.watch_all(0).await;

    let (keep, requests) = tokio::sync::mpsc::channel(1);
    let keep_two = LeaseKeepAliveRequest { id: 2 };
    keep.send(keep_two).await.unwrap();
    let stream = ReceiverStream::new(requests);
    let kept = client.lease.lease_keep_alive(stream).await.unwrap();
    let mut kept = kept.into_inner();
    let mut last_kept = Instant::now();
    let mut first_gone = None;
    // Lease 2 is kept for twice the time that it has.
    while begun.elapsed() < 2 * ttl || first_gone.is_none() {
        assert!(begun.elapsed() < 2 * ttl + LATE_MAX);
        last_kept = Instant::now();
        assert_eq!(kept.message().await.unwrap().unwrap().ttl, 2);
        let pause = tokio::time::sleep(ttl / 8);
        tokio::select! {
            () = pause => {}
            event = events.next() => {
                let event = event.unwrap().pop().unwrap();
                assert_eq!(event.r#type(), EventType::Delete);
                assert_eq!(event.kv.unwrap().key, b"of-1");
                assert_eq!(first_gone.replace(begun.elapsed()), None);
            }
        }
        keep.send(keep_two).await.unwrap();
    }
    let first_gone = first_gone.unwrap();
    assert!(
        first_gone >= ttl && first_gone < ttl + LATE_MAX,
        "{first_gone:?}"
    );
    assert!(client.get("of-2").await.is_some());

    // The last word for lease 2 was sent after `last_kept`.
    let event = events.next_one(ttl + LATE_MAX).await;
    assert_eq!(event.r#type(), EventType::Delete);
    assert_eq!(event.kv.unwrap().key, b"of-2");
    assert!(last_kept.elapsed() >= ttl, "{:?}", last_kept.elapsed());
    assert_eq!(seconds_left(&mut client, 2).await, -1);
    server.stop();
}

#[tokio::test]
async fn leases_outlive_restarts() {
    let dir = TempDir::new();
    let setup = Setup::new(dir.path());
    let server = setup.start();
    let mut client = Client::connect(server.port).await;
    grant(&mut client, 1, 3).await;
    grant(&mut client, 2, 1000).await;
    server.kill();

    let begun = Instant::now();
    let server = setup.start();
    let mut client = Client::connect(server.port).await;
    let mut events = client.watch_all(0).await;
    let left = seconds_left(&mut client, 2).await;
    assert!((980..=1000).contains(&left), "{left}");
    // A new leader gives each lease its whole time again, as etcd's does: nobody could keep it
    // alive meanwhile.
    let event = events.next_one(Duration::from_secs(3) + LATE_MAX).await;
    assert_eq!(event.r#type(), EventType::Delete);
    assert_eq!(event.kv.unwrap().key, b"of-1");
    assert!(begun.elapsed() >= Duration::from_secs(3));
    assert!(client.get("of-2").await.is_some());
    server.stop();
}
