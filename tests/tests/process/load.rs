//! Concurrent writers that remember what they were told, and the check that it was true.
//!
//! Writers run on a thread of their own, so that a test can wait for the server's lines meanwhile.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::client::{Client, KeyValue, put};
use crate::server::Server;

/// Longest wait for the next acknowledgement of a server that is well.
const ACK_PATIENCE: Duration = Duration::from_secs(10);

/// A write that was acknowledged, or an event that was seen.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Told {
    key: String,
    value_bytes: usize,
    revision: i64,
}

/// All that clients of one data directory were told, over any number of servers.
#[derive(Default)]
pub struct Memory {
    told: BTreeMap<String, Told>,
    revision_max: i64,
}

impl Memory {
    fn add(&mut self, told: Told) {
        self.revision_max = self.revision_max.max(told.revision);
        let known = self.told.insert(told.key.clone(), told.clone());
        assert!(known.is_none_or(|known| known == told));
    }

    /// How many writes are known.
    pub fn len(&self) -> usize {
        self.told.len()
    }

    /// Everything that anybody was told is there, each write has a revision of its own, and the
    /// next revision is one that nobody has seen. Compares values to their last byte.
    pub async fn verify(&self, port: u16) {
        let mut client = Client::connect(port).await;
        let all = client.all(0).await;
        let revision = all.header.unwrap().revision;
        assert!(revision >= self.revision_max);
        let revisions: BTreeSet<i64> = all.kvs.iter().map(|kv| kv.mod_revision).collect();
        assert_eq!(revisions.len(), all.kvs.len());
        let found: BTreeMap<&[u8], &KeyValue> =
            all.kvs.iter().map(|kv| (&kv.key[..], kv)).collect();
        for told in self.told.values() {
            let kv = found
                .get(told.key.as_bytes())
                .unwrap_or_else(|| panic!("{told:?} is lost"));
            assert_eq!(kv.mod_revision, told.revision, "{told:?}");
            assert_eq!(kv.version, 1, "{told:?} was applied twice");
            assert!(kv.value == value(&told.key, told.value_bytes), "{told:?}");
        }
        assert_eq!(client.put("probe", "").await, revision + 1);
        let request = crate::client::DeleteRangeRequest {
            key: b"probe".to_vec(),
            ..Default::default()
        };
        client.kv.delete_range(request).await.unwrap();
    }
}

/// What belongs under `key`: different for every key and hard to compress into a shared page.
fn value(key: &str, bytes: usize) -> Vec<u8> {
    key.bytes().cycle().take(bytes).collect()
}

/// Running writers, each with one put under way at a time, and a watcher of all keys.
pub struct Load {
    told: Receiver<Told>,
    thread: JoinHandle<()>,
    stop: tokio::sync::watch::Sender<bool>,
}

impl Load {
    /// Starts `writers` of values of `value_bytes`; their keys begin with `name`, which must be new
    /// to the server. They end with their connection.
    pub fn start(server: &Server, name: &str, writers: usize, value_bytes: usize) -> Self {
        let (port, name) = (server.port, name.to_owned());
        let (sender, told) = channel();
        let (stop, stopped) = tokio::sync::watch::channel(false);
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            let tasks = tokio::task::LocalSet::new();
            tasks.block_on(&runtime, async move {
                let mut client = Client::connect(port).await;
                let events = client.watch_all(0).await;
                let watching = tokio::task::spawn_local(watch(events, sender.clone()));
                let writing: Vec<_> = (0..writers)
                    .map(|writer| {
                        let prefix = format!("{name}/{writer}");
                        let (client, sender) = (client.clone(), sender.clone());
                        let stopped = stopped.clone();
                        tokio::task::spawn_local(write(
                            client,
                            prefix,
                            value_bytes,
                            sender,
                            stopped,
                        ))
                    })
                    .collect();
                for writer in writing {
                    writer.await.unwrap();
                }
                watching.abort();
                if let Err(error) = watching.await {
                    assert!(error.is_cancelled());
                }
            });
        });
        Self { told, thread, stop }
    }

    /// Waits for `count` more acknowledgements.
    pub fn wait_for(&self, count: usize, memory: &mut Memory) {
        let before = memory.len();
        while memory.len() < before + count {
            memory.add(self.told.recv_timeout(ACK_PATIENCE).unwrap());
        }
    }

    /// Waits until there has been no acknowledgement for `silence`.
    pub fn wait_for_silence(&self, silence: Duration, memory: &mut Memory) {
        loop {
            match self.told.recv_timeout(silence) {
                Ok(told) => memory.add(told),
                Err(RecvTimeoutError::Timeout) => return,
                Err(RecvTimeoutError::Disconnected) => panic!("the writers have ended"),
            }
        }
    }

    /// Lets writers end after the put they are at, and remembers what they were told.
    pub fn stop(self, memory: &mut Memory) {
        self.stop.send(true).unwrap();
        self.finish(memory);
    }

    /// Waits until the writers have ended with their server, and remembers what they were told.
    pub fn finish(self, memory: &mut Memory) {
        for told in self.told.iter() {
            memory.add(told);
        }
        self.thread.join().unwrap();
    }
}

async fn write(
    mut client: Client,
    prefix: String,
    value_bytes: usize,
    sender: Sender<Told>,
    stopped: tokio::sync::watch::Receiver<bool>,
) {
    for count in 0.. {
        let key = format!("{prefix}/{count}");
        let request = put(&key, value(&key, value_bytes));
        // An error says nothing about what was written.
        let Ok(revision) = client.try_put(request).await else {
            return;
        };
        let told = Told {
            key,
            value_bytes,
            revision,
        };
        if sender.send(told).is_err() || *stopped.borrow() {
            return;
        }
    }
}

async fn watch(mut events: crate::client::Events, sender: Sender<Told>) {
    while let Some(events) = events.next().await {
        for kv in events.into_iter().filter_map(|event| event.kv) {
            let told = Told {
                key: String::from_utf8(kv.key).unwrap(),
                value_bytes: kv.value.len(),
                revision: kv.mod_revision,
            };
            if sender.send(told).is_err() {
                return;
            }
        }
    }
}
