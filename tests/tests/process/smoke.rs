//! Each service answers, by gRPC and by HTTP.

use std::time::Duration;

use crate::client::pb::mvccpb::event::EventType;
use crate::client::{
    Client, Compare, DeleteRangeRequest, LeaseGrantRequest, LeaseRevokeRequest,
    LeaseTimeToLiveRequest, PutRequest, RequestOp, TxnRequest, compare, http_get, put, request_op,
};
use crate::server::{Setup, TempDir};

const PATIENCE: Duration = Duration::from_secs(5);

#[tokio::test]
async fn keys_transactions_watches_and_leases() {
    let dir = TempDir::new();
    let server = Setup::new(dir.path()).start();
    let mut client = Client::connect(server.port).await;
    let mut events = client.watch_all(0).await;

    assert_eq!(client.put("a", "1").await, 2);
    let kv = client.get("a").await.unwrap();
    assert_eq!(
        (&kv.value[..], kv.version, kv.mod_revision),
        (&b"1"[..], 1, 2)
    );

    let is_one = Compare {
        result: compare::CompareResult::Equal.into(),
        target: compare::CompareTarget::Value.into(),
        key: b"a".to_vec(),
        target_union: Some(compare::TargetUnion::Value(b"1".to_vec())),
        ..Compare::default()
    };
    let op = |request| RequestOp {
        request: Some(request_op::Request::RequestPut(request)),
    };
    let txn = TxnRequest {
        compare: vec![is_one],
        success: vec![op(put("a", "2")), op(put("b", "3"))],
        failure: vec![op(put("a", "wrong"))],
    };
    let response = client.kv.txn(txn.clone()).await.unwrap().into_inner();
    assert!(response.succeeded);
    assert_eq!(response.header.unwrap().revision, 3);

    let delete = DeleteRangeRequest {
        key: b"a".to_vec(),
        range_end: b"c".to_vec(),
        prev_kv: true,
    };
    let deleted = client.kv.delete_range(delete).await.unwrap().into_inner();
    assert_eq!(deleted.deleted, 2);
    assert_eq!(deleted.prev_kvs[0].value, b"2");
    assert_eq!(client.get("a").await, None);

    let mut seen = Vec::new();
    while seen.len() < 5 {
        let next = tokio::time::timeout(PATIENCE, events.next());
        for event in next.await.unwrap().unwrap() {
            let kv = event.kv.as_ref().unwrap();
            let key = String::from_utf8(kv.key.clone()).unwrap();
            seen.push((event.r#type(), key, kv.mod_revision));
        }
    }
    let event = |kind, key: &str, revision| (kind, key.to_owned(), revision);
    let expected = [
        event(EventType::Put, "a", 2),
        event(EventType::Put, "a", 3),
        event(EventType::Put, "b", 3),
        event(EventType::Delete, "a", 4),
        event(EventType::Delete, "b", 4),
    ];
    assert_eq!(seen, expected);

    lease_smoke(&mut client).await;
    server.stop();
}

async fn lease_smoke(client: &mut Client) {
    let grant = LeaseGrantRequest { ttl: 100, id: 7 };
    let granted = client.lease.lease_grant(grant).await.unwrap().into_inner();
    assert_eq!((granted.id, granted.ttl), (7, 100));
    let attached = PutRequest {
        lease: 7,
        ..put("leased", "x")
    };
    client.try_put(attached).await.unwrap();
    let ask = LeaseTimeToLiveRequest { id: 7, keys: true };
    let left = client.lease.lease_time_to_live(ask).await.unwrap();
    let left = left.into_inner();
    assert!((95..=100).contains(&left.ttl), "{left:?}");
    assert_eq!(left.keys, [b"leased"]);
    let revoke = LeaseRevokeRequest { id: 7 };
    client.lease.lease_revoke(revoke).await.unwrap();
    assert_eq!(client.get("leased").await, None);
}

#[test]
fn version_health_and_metrics_by_http() {
    let dir = TempDir::new();
    let server = Setup::new(dir.path()).start();
    let version = http_get(server.port, "/version");
    assert!(version.contains(r#""etcdserver":"3.7."#), "{version}");
    assert!(version.contains(r#""etcdcluster":"3.7.0""#), "{version}");
    let health = http_get(server.port, "/health");
    assert!(health.contains(r#""health":"true""#), "{health}");
    assert!(http_get(server.port, "/readyz").starts_with("ok"));
    assert!(http_get(server.port, "/livez").starts_with("ok"));
    let metrics = http_get(server.port, "/metrics");
    let leader = "\netcd_server_has_leader 1\n";
    assert!(metrics.contains(leader), "{metrics}");
}
