//! The Watch service: a stream of requests in, a stream of events out.
//!
//! All streams of a core share one [`WatchShard`]; one task walks it when a View is published, and
//! each stream's own task takes what is queued for it. A client that does not read stops its own
//! stream and nothing else.

use core::cell::{Cell, RefCell};
use core::future::poll_fn;
use core::task::{Poll, Waker};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::{Duration, Instant};

use glommio::executor;
use glommio::timer::sleep;
use ringkv_engine::watch::{CreateRequest, Published, Response, StreamId, WatchConfig, WatchShard};

use crate::node::{Node, Settings};
use crate::pb::etcdserverpb::watch_create_request::FilterType;
use crate::pb::etcdserverpb::watch_request::RequestUnion;
use crate::pb::etcdserverpb::*;
use crate::service::{Ctx, Replies, Requests};
use crate::shard::{Follower, Shard};
use crate::task::spawn;
use crate::wire::{EncodedEvent, Status};

/// Responses taken from a stream's queue at once, bytes.
const TAKE_BYTES: usize = 64 << 10;
/// Revisions walked before others have a turn.
const WALK_BUDGET: usize = 512;
/// How often progress that is due by the clock is looked for.
const TICK: Duration = Duration::from_millis(100);

/// The watchers of one core.
pub struct Watching {
    shard: Rc<Shard>,
    core: RefCell<WatchShard>,
    /// Of streams that wait for responses.
    wakers: RefCell<BTreeMap<StreamId, Waker>>,
    /// Whether the walking task lives.
    walking: Cell<bool>,
    /// Whether there may be something to walk, and who waits for that.
    due: Cell<bool>,
    walker: Cell<Option<Waker>>,
    started: Instant,
}

impl Watching {
    /// Without watchers.
    #[must_use]
    pub fn new(shard: Rc<Shard>, settings: &Settings) -> Rc<Self> {
        let config = WatchConfig {
            progress_interval_ms: settings.watch_progress_ms.max(1),
            fragment_bytes_max: settings.request_bytes_max + shard.limits().grpc_overhead_bytes,
        };
        let revision = shard.pin(|view| view.revision);
        let core = WatchShard::new(*shard.limits(), config, revision);
        Rc::new(Self {
            shard,
            core: RefCell::new(core),
            wakers: RefCell::default(),
            walking: Cell::new(false),
            due: Cell::new(false),
            walker: Cell::new(None),
            started: Instant::now(),
        })
    }

    fn now_ms(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }

    /// Lets the walking task look again.
    fn kick(&self) {
        self.due.set(true);
        if let Some(walker) = self.walker.take() {
            walker.wake();
        }
    }

    fn open(self: &Rc<Self>) -> Stream {
        if !self.walking.replace(true) {
            // Before the first watcher, so that compaction leaves it what it will walk.
            self.shard.walked(Some(self.core.borrow().synced_main()));
            let follower = self.shard.follow();
            spawn(Rc::clone(self).follow(follower));
            spawn(Rc::clone(self).tick());
            spawn(Rc::clone(self).walk());
        }
        let id = self.core.borrow_mut().open_stream(self.now_ms());
        Stream {
            watching: Rc::clone(self),
            id,
        }
    }

    fn is_needed(&self) -> bool {
        self.core.borrow().streams() > 0
    }

    async fn follow(self: Rc<Self>, mut follower: Follower) {
        while self.is_needed() {
            follower.next_view().await;
            self.kick();
        }
    }

    async fn tick(self: Rc<Self>) {
        while self.is_needed() {
            sleep(TICK).await;
            self.kick();
        }
    }

    async fn walk(self: Rc<Self>) {
        while self.is_needed() {
            poll_fn(|cx| {
                if self.due.replace(false) {
                    return Poll::Ready(());
                }
                self.walker.set(Some(cx.waker().clone()));
                Poll::Pending
            })
            .await;
            while self.advance() {
                executor().yield_task_queue_now().await;
            }
        }
        self.walking.set(false);
        self.shard.walked(None);
    }

    /// One step; true when there is more to walk.
    fn advance(&self) -> bool {
        // Held by its chunks, not by a pin: a walk may take longer than a pin should.
        let (revision, compacted, pruned, revs) = self.shard.pin(|view| {
            (
                view.revision,
                view.compacted,
                view.pruned,
                view.revs.clone(),
            )
        });
        let published = Published {
            revision,
            compacted,
            revs: &revs,
        };
        let mut core = self.core.borrow_mut();
        let more = core.advance(&published, self.now_ms(), WALK_BUDGET);
        let mut wakers = self.wakers.borrow_mut();
        for stream in core.take_ready() {
            if let Some(waker) = wakers.remove(&stream) {
                waker.wake();
            }
        }
        if pruned < compacted {
            self.shard.walked(Some(core.synced_main()));
        }
        more
    }
}

/// One client's stream; closed when dropped.
struct Stream {
    watching: Rc<Watching>,
    id: StreamId,
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.watching.core.borrow_mut().close_stream(self.id);
        self.watching.wakers.borrow_mut().remove(&self.id);
        self.watching.kick();
    }
}

enum Next {
    Responses(Vec<Response>),
    Request(WatchRequest),
    End,
}

impl Stream {
    async fn next(&self, requests: &mut Requests<WatchRequest>) -> Result<Next, Status> {
        poll_fn(|cx| {
            let accepts = {
                let mut core = self.watching.core.borrow_mut();
                let responses = core.take_responses(self.id, TAKE_BYTES);
                if !responses.is_empty() {
                    return Poll::Ready(Ok(Next::Responses(responses)));
                }
                core.accepts_requests(self.id)
            };
            self.watching
                .wakers
                .borrow_mut()
                .insert(self.id, cx.waker().clone());
            if !accepts {
                return Poll::Pending;
            }
            requests
                .poll_next(cx)
                .map(|request| Ok(request?.map_or(Next::End, Next::Request)))
        })
        .await
    }

    fn take(&self, request: WatchRequest) {
        let watching = &self.watching;
        let (revision, compacted, revs) = watching
            .shard
            .pin(|view| (view.revision, view.compacted, view.revs.clone()));
        let published = Published {
            revision,
            compacted,
            revs: &revs,
        };
        let mut core = watching.core.borrow_mut();
        match request.request_union {
            Some(RequestUnion::CreateRequest(create)) => {
                core.create(self.id, &create_request(&create), &published);
            }
            Some(RequestUnion::CancelRequest(cancel)) => {
                core.cancel(self.id, cancel.watch_id, revision);
            }
            Some(RequestUnion::ProgressRequest(_)) => core.progress(self.id, revision),
            // etcd, too, goes on without a word.
            None => {}
        }
        drop(core);
        watching.kick();
    }
}

fn create_request(r: &WatchCreateRequest) -> CreateRequest<'_> {
    let filtered = |filter: FilterType| r.filters.contains(&(filter as i32));
    CreateRequest {
        key: &r.key,
        range_end: &r.range_end,
        start_revision: r.start_revision,
        watch_id: r.watch_id,
        progress_notify: r.progress_notify,
        prev_kv: r.prev_kv,
        fragment: r.fragment,
        no_put: filtered(FilterType::Noput),
        no_delete: filtered(FilterType::Nodelete),
    }
}

/// Watch.Watch.
///
/// # Errors
/// The client's own going away.
pub async fn watch(
    node: &Node,
    _: &Ctx,
    mut requests: Requests<WatchRequest>,
    replies: &Replies<WatchResponse>,
) -> Result<(), Status> {
    let stream = node.watching.open();
    loop {
        match stream.next(&mut requests).await? {
            Next::Request(request) => stream.take(request),
            Next::Responses(responses) => {
                for response in responses {
                    replies.send(&reply(node, response)).await?;
                }
                // There is room again.
                node.watching.kick();
            }
            Next::End => return Ok(()),
        }
    }
}

fn reply(node: &Node, response: Response) -> WatchResponse {
    WatchResponse {
        header: node.header().at(response.revision),
        watch_id: response.watch_id,
        created: response.created,
        canceled: response.canceled,
        compact_revision: response.compact_revision,
        cancel_reason: response.cancel_reason.to_owned(),
        fragment: response.fragment,
        events: response.events.into_iter().map(EncodedEvent).collect(),
    }
}
