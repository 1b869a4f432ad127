//! A gRPC client generated from etcd's own protocol files, and an HTTP client of a few lines.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use tonic::transport::{Channel, Endpoint};

/// No call of these tests takes longer, not even one that waits for a device.
const CALL_PATIENCE: Duration = Duration::from_secs(15);

#[allow(
    dead_code,
    missing_docs,
    unused_qualifications,
    clippy::all,
    clippy::pedantic,
    reason = "generated"
)]
pub mod pb {
    pub mod authpb {
        tonic::include_proto!("authpb");
    }
    pub mod mvccpb {
        tonic::include_proto!("mvccpb");
    }
    pub mod etcdserverpb {
        tonic::include_proto!("etcdserverpb");
    }
}

pub use pb::etcdserverpb::*;
pub use pb::mvccpb::{Event, KeyValue};

/// One connection and the services on it.
#[derive(Clone)]
pub struct Client {
    pub kv: kv_client::KvClient<Channel>,
    pub watch: watch_client::WatchClient<Channel>,
    pub lease: lease_client::LeaseClient<Channel>,
    pub maintenance: maintenance_client::MaintenanceClient<Channel>,
}

impl Client {
    pub async fn connect(port: u16) -> Self {
        let endpoint = Endpoint::from_shared(format!("http://127.0.0.1:{port}"))
            .unwrap()
            .connect_timeout(CALL_PATIENCE);
        let channel = endpoint.connect().await.unwrap();
        let bytes_max = usize::MAX;
        Self {
            kv: kv_client::KvClient::new(channel.clone()).max_decoding_message_size(bytes_max),
            watch: watch_client::WatchClient::new(channel.clone()),
            lease: lease_client::LeaseClient::new(channel.clone()),
            maintenance: maintenance_client::MaintenanceClient::new(channel),
        }
    }

    /// Puts, and returns the revision.
    pub async fn put(&mut self, key: &str, value: impl Into<Vec<u8>>) -> i64 {
        self.try_put(put(key, value)).await.unwrap()
    }

    /// Puts, and returns the revision.
    pub async fn try_put(&mut self, request: PutRequest) -> Result<i64, tonic::Status> {
        let call = tokio::time::timeout(CALL_PATIENCE, self.kv.put(request));
        let response = call.await.expect("the server answers in time")?;
        Ok(response.into_inner().header.unwrap().revision)
    }

    /// Reads, linearizably.
    pub async fn range(&mut self, request: RangeRequest) -> Result<RangeResponse, tonic::Status> {
        let call = tokio::time::timeout(CALL_PATIENCE, self.kv.range(request));
        let response = call.await.expect("the server answers in time")?;
        Ok(response.into_inner())
    }

    /// All keys as of `revision`, 0 for now.
    pub async fn all(&mut self, revision: i64) -> RangeResponse {
        let request = RangeRequest {
            revision,
            ..everything()
        };
        self.range(request).await.unwrap()
    }

    /// The value of `key` now.
    pub async fn get(&mut self, key: &str) -> Option<KeyValue> {
        let request = RangeRequest {
            key: key.into(),
            ..RangeRequest::default()
        };
        self.range(request).await.unwrap().kvs.pop()
    }

    /// HashKV at `revision`, 0 for now.
    pub async fn hash(&mut self, revision: i64) -> HashKvResponse {
        let request = HashKvRequest { revision };
        let response = self.maintenance.hash_kv(request).await.unwrap();
        response.into_inner()
    }

    /// Forgets the history below `revision`.
    pub async fn compact(&mut self, revision: i64) {
        let request = CompactionRequest {
            revision,
            physical: true,
        };
        self.kv.compact(request).await.unwrap();
    }

    /// Watches all keys from `start_revision`, 0 for now; back when the watch exists.
    pub async fn watch_all(&mut self, start_revision: i64) -> Events {
        let RangeRequest { key, range_end, .. } = everything();
        let create = WatchCreateRequest {
            key,
            range_end,
            start_revision,
            ..WatchCreateRequest::default()
        };
        let create = WatchRequest {
            request_union: Some(watch_request::RequestUnion::CreateRequest(create)),
        };
        let (requests, queue) = tokio::sync::mpsc::channel(1);
        requests.send(create).await.unwrap();
        let queue = tokio_stream::wrappers::ReceiverStream::new(queue);
        let mut responses = self.watch.watch(queue).await.unwrap().into_inner();
        let created = responses.message().await.unwrap().unwrap();
        assert!(created.created);
        Events {
            responses,
            _requests: requests,
        }
    }
}

/// Events of a watch.
pub struct Events {
    responses: tonic::Streaming<WatchResponse>,
    /// Its end would end the watch.
    _requests: tokio::sync::mpsc::Sender<WatchRequest>,
}

impl Events {
    /// The next events; `None` when the connection has ended.
    pub async fn next(&mut self) -> Option<Vec<Event>> {
        let response = self.responses.message().await.ok()??;
        assert!(!response.canceled, "{response:?}");
        Some(response.events)
    }

    /// The next event, which must come within `patience`, alone.
    pub async fn next_one(&mut self, patience: Duration) -> Event {
        let next = tokio::time::timeout(patience, self.next());
        let mut events = next.await.expect("an event in time").unwrap();
        assert_eq!(events.len(), 1);
        events.pop().unwrap()
    }
}

/// A request for all keys.
pub fn everything() -> RangeRequest {
    RangeRequest {
        key: vec![0],
        range_end: vec![0],
        ..RangeRequest::default()
    }
}

pub fn put(key: &str, value: impl Into<Vec<u8>>) -> PutRequest {
    PutRequest {
        key: key.into(),
        value: value.into(),
        ..PutRequest::default()
    }
}

/// The body of a 200 response to `GET path`.
pub fn http_get(port: u16, path: &str) -> String {
    let mut connection = TcpStream::connect(("127.0.0.1", port)).unwrap();
    connection.set_read_timeout(Some(CALL_PATIENCE)).unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    connection.write_all(request.as_bytes()).unwrap();
    let mut response = String::new();
    connection.read_to_string(&mut response).unwrap();
    let (head, body) = response.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    body.to_owned()
}
