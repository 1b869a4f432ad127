//! A restart changes nothing that a client can ask for, neither from the log nor from a checkpoint.

use std::time::Duration;

use tonic::Code;

use crate::client::{Client, DeleteRangeRequest, KeyValue, RangeRequest, everything};
use crate::load::{Load, Memory};
use crate::server::{Setup, TempDir};

/// All that a store answers about its past.
#[derive(PartialEq, Debug)]
struct Past {
    revision: i64,
    /// By revision: all keys and values, then the hash and what it counts as compacted.
    states: Vec<(i64, Vec<KeyValue>, u32, i64)>,
}

async fn past(port: u16, from: i64) -> Past {
    let mut client = Client::connect(port).await;
    let revision = client.all(0).await.header.unwrap().revision;
    let mut states = Vec::new();
    for at in from..=revision {
        let kvs = client.all(at).await.kvs;
        let hash = client.hash(at).await;
        assert_eq!(hash.hash_revision, at);
        states.push((at, kvs, hash.hash, hash.compact_revision));
    }
    Past { revision, states }
}

async fn is_compacted(port: u16, revision: i64) -> bool {
    let request = RangeRequest {
        revision,
        ..everything()
    };
    match Client::connect(port).await.range(request).await {
        Ok(_) => false,
        Err(status) => {
            assert_eq!(status.code(), Code::OutOfRange);
            let text = "etcdserver: mvcc: required revision has been compacted";
            assert_eq!(status.message(), text);
            true
        }
    }
}

#[tokio::test]
async fn history_outlives_restarts() {
    let dir = TempDir::new();
    let setup = Setup::new(dir.path());
    let server = setup.start();
    let mut client = Client::connect(server.port).await;
    for round in 0..4 {
        for key in ["a", "b", "c"] {
            client.put(key, format!("{key}{round}")).await;
        }
        let delete = DeleteRangeRequest {
            key: b"b".to_vec(),
            ..DeleteRangeRequest::default()
        };
        client.kv.delete_range(delete).await.unwrap();
    }
    let whole = past(server.port, 2).await;
    assert_eq!(whole.revision, 17);
    server.stop();

    let server = setup.start();
    assert_eq!(past(server.port, 2).await, whole);
    Client::connect(server.port).await.compact(9).await;
    let rest = past(server.port, 9).await;
    server.kill();

    let server = setup.start();
    assert!(is_compacted(server.port, 8).await);
    assert!(!is_compacted(server.port, 9).await);
    assert_eq!(past(server.port, 9).await, rest);
    server.stop();
}

#[tokio::test]
async fn a_checkpoint_is_written_and_started_from() {
    let dir = TempDir::new();
    let setup = Setup::new(dir.path());
    let mut server = setup.start();
    let mut memory = Memory::default();
    let load = Load::start(&server, "filling", 8, 1 << 20);
    load.wait_for(250, &mut memory);
    server.wait_for("wrote a checkpoint", Duration::from_secs(30));
    load.stop(&mut memory);
    let mut client = Client::connect(server.port).await;
    client.put("afterwards", "").await;
    let hash = client.hash(0).await;
    server.kill();
    assert!(!dir.path().join("checkpoint/0000000000000001.ckpt").exists());
    assert!(dir.path().join("checkpoint/0000000000000002.ckpt").exists());

    let server = setup.start();
    let mut client = Client::connect(server.port).await;
    assert_eq!(client.hash(0).await.hash, hash.hash);
    memory.verify(server.port).await;
    server.stop();
}
