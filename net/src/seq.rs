//! Runs the sequencer on its core: events in from rings, devices and clocks; actions out.
//!
//! Lives on the sequencer's executor (shard 0's). One task steps; each frame, each side job and
//! each ring has a small task that turns its completion into an event. A shard is sent something
//! only when there is something for it: waking an idle core costs more than a put.
//!
//! Bounded by what shards let wait: a shard refuses requests beyond its share of bytes.

use core::cell::{Cell, RefCell};
use core::future::poll_fn;
use core::task::{Poll, Waker};
use std::collections::VecDeque;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use glommio::channels::shared_channel::{ConnectedReceiver, ConnectedSender};
use glommio::executor;
use glommio::timer::sleep;
use ringkv_engine::checkpoint::{CheckpointWriter, Superblock};
use ringkv_engine::command::Origin;
use ringkv_engine::io::{DiskError, DiskErrorKind, DiskOp};
use ringkv_engine::limits::Limits;
use ringkv_engine::types::{Index, ShardId};
use ringkv_engine::wal;
use ringkv_raft::sequencer::{Actions, Event, Sequencer, Status};

use crate::disk::{FrameWriter, FsDisk};
use crate::log;
use crate::shard::{Port, Registry, Shard, ToSequencer, ToShard};
use crate::task::spawn;

/// The log is sealed after this much silence.
const SEAL_AFTER: Duration = Duration::from_millis(10);

/// A queue that one task fills and another empties, on one core.
pub struct Mailbox<T> {
    items: RefCell<VecDeque<T>>,
    reader: Cell<Option<Waker>>,
}

impl<T> Default for Mailbox<T> {
    fn default() -> Self {
        Self {
            items: RefCell::default(),
            reader: Cell::new(None),
        }
    }
}

impl<T> Mailbox<T> {
    /// Adds at the end.
    pub fn push(&self, item: T) {
        self.items.borrow_mut().push_back(item);
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
    }

    fn pop(&self) -> Option<T> {
        self.items.borrow_mut().pop_front()
    }

    async fn filled(&self) {
        poll_fn(|cx| {
            if self.items.borrow().is_empty() {
                self.reader.set(Some(cx.waker().clone()));
                return Poll::Pending;
            }
            Poll::Ready(())
        })
        .await;
    }
}

/// The sequencer's queue, for the shard on its own core.
pub struct LocalPort(pub Rc<Mailbox<ToSequencer>>);

impl Port for LocalPort {
    fn send(&self, message: ToSequencer) {
        self.0.push(message);
    }
}

/// Passes on what is put into the mailbox, through a ring to another core, for as long as that
/// lives.
pub async fn pump<T: Send + 'static>(mailbox: Rc<Mailbox<T>>, ring: ConnectedSender<T>) {
    loop {
        mailbox.filled().await;
        while let Some(item) = mailbox.pop() {
            if ring.send(item).await.is_err() {
                return;
            }
        }
    }
}

/// Puts what comes through a ring into the sequencer's queue.
pub async fn collect(ring: ConnectedReceiver<ToSequencer>, inbox: Rc<Mailbox<ToSequencer>>) {
    while let Some(message) = ring.recv().await {
        inbox.push(message);
    }
}

/// Gives a shard what comes through its ring.
pub async fn deliver(ring: ConnectedReceiver<ToShard>, shard: Rc<Shard>) {
    while let Some(message) = ring.recv().await {
        shard.deliver(message);
    }
}

/// Where results of a shard go.
pub enum Outlet {
    /// The shard of this core.
    Local(Rc<Shard>),
    /// A ring's mailbox.
    Remote(Rc<Mailbox<ToShard>>),
}

impl Outlet {
    fn send(&self, message: ToShard) {
        match self {
            Self::Local(shard) => shard.deliver(message),
            Self::Remote(mailbox) => mailbox.push(message),
        }
    }
}

/// What the sequencer keeps of each shard.
struct Seat {
    outlet: Outlet,
    /// What there is for it after this turn.
    next: ToShard,
    due: bool,
    /// Whether it wants to hear of every View.
    follows: bool,
    /// How far its watchers have walked, if it has any.
    walked: Option<u64>,
}

/// See the module.
pub struct Driver {
    sequencer: Sequencer,
    seats: Vec<Seat>,
    inbox: Rc<Mailbox<ToSequencer>>,
    events: Rc<Mailbox<Event>>,
    writer: Rc<FrameWriter>,
    data_dir: PathBuf,
    started: Instant,
    /// Reads confirmed at an index that is not applied yet.
    unapplied: Vec<(ShardId, u64, Index)>,
    status: Status,
    registry_changes: Option<u64>,
    idle: Rc<IdleWatch>,
    /// Away while a checkpoint is written.
    superblock: Rc<Cell<Option<Superblock>>>,
}

/// Notices when the log has been silent.
#[derive(Default)]
struct IdleWatch {
    last: Cell<Option<Instant>>,
    waiting: Cell<bool>,
}

impl Driver {
    /// Runs `sequencer` for shards behind `outlets`, in order of their ids, which send to `inbox`.
    #[must_use]
    pub fn new(
        sequencer: Sequencer,
        outlets: Vec<Outlet>,
        inbox: Rc<Mailbox<ToSequencer>>,
        writer: Rc<FrameWriter>,
        data_dir: PathBuf,
        superblock: Superblock,
    ) -> Self {
        let seat = |outlet| Seat {
            outlet,
            next: ToShard::default(),
            due: false,
            follows: false,
            walked: None,
        };
        Self {
            sequencer,
            seats: outlets.into_iter().map(seat).collect(),
            inbox,
            events: Rc::default(),
            writer,
            data_dir,
            started: Instant::now(),
            unapplied: Vec::new(),
            status: Status::default(),
            registry_changes: None,
            idle: Rc::default(),
            superblock: Rc::new(Cell::new(Some(superblock))),
        }
    }

    /// Runs for ever; a tick of raft's clock is `heartbeat`.
    pub async fn run(mut self, heartbeat: Duration) {
        spawn(tick(heartbeat, Rc::clone(&self.events)));
        let mut actions = Actions::default();
        self.sequencer.start(self.now_ms(), &mut actions);
        self.carry_out(&mut actions);
        loop {
            if !core::mem::take(&mut actions.background) {
                self.wait().await;
            }
            let now_ms = self.now_ms();
            while let Some(event) = self.next_event() {
                self.sequencer.step(now_ms, event, &mut actions);
            }
            self.carry_out(&mut actions);
            if self.sequencer.has_background_work() {
                // Others first: this is work that nobody waits for.
                executor().yield_task_queue_now().await;
                let floor = self.watch_floor();
                self.sequencer
                    .step(now_ms, Event::Background { floor }, &mut actions);
                self.carry_out(&mut actions);
            }
        }
    }

    fn now_ms(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }

    async fn wait(&self) {
        let (inbox, events) = (&self.inbox, &self.events);
        poll_fn(|cx| {
            if !inbox.items.borrow().is_empty() || !events.items.borrow().is_empty() {
                return Poll::Ready(());
            }
            inbox.reader.set(Some(cx.waker().clone()));
            events.reader.set(Some(cx.waker().clone()));
            Poll::Pending
        })
        .await;
    }

    fn next_event(&mut self) -> Option<Event> {
        if let Some(event) = self.events.pop() {
            return Some(event);
        }
        loop {
            return Some(match self.inbox.pop()? {
                ToSequencer::Propose(batch) => Event::Propose(batch),
                ToSequencer::Read(shard, round) => Event::Read(shard, round),
                ToSequencer::Lease(shard, request, ask) => Event::Lease(shard, request, ask),
                ToSequencer::Walked(shard, walked) => {
                    self.seats[usize::from(shard)].walked = walked;
                    continue;
                }
                ToSequencer::Follow(shard, follows) => {
                    let seat = &mut self.seats[usize::from(shard)];
                    seat.follows = follows;
                    // What it has not asked for so far it must look at once.
                    seat.due |= follows;
                    continue;
                }
            });
        }
    }

    /// The main revision up to which all watchers have walked.
    fn watch_floor(&self) -> u64 {
        self.seats
            .iter()
            .filter_map(|s| s.walked)
            .min()
            .unwrap_or(u64::MAX)
    }

    fn carry_out(&mut self, actions: &mut Actions) {
        for frame in actions.frames.drain(..) {
            self.idle.last.set(Some(Instant::now()));
            spawn(write(
                frame,
                Rc::clone(&self.writer),
                Rc::clone(&self.events),
            ));
        }
        for action in actions.wal.drain(..) {
            spawn(side_job(
                action,
                self.data_dir.clone(),
                Rc::clone(&self.events),
            ));
        }
        if core::mem::take(&mut actions.checkpoint) {
            let superblock = self.superblock.take().expect("one checkpoint at a time");
            let writer =
                CheckpointWriter::new(superblock, self.sequencer.image(), &Limits::PRODUCTION);
            let back = (Rc::clone(&self.superblock), Rc::clone(&self.events));
            spawn(checkpoint(writer, self.data_dir.clone(), back));
        }
        self.hand_out(actions);
        if self.idle.last.get().is_some() && !self.idle.waiting.replace(true) {
            spawn(seal_when_idle(
                Rc::clone(&self.idle),
                Rc::clone(&self.events),
            ));
        }
    }

    fn hand_out(&mut self, actions: &mut Actions) {
        let status = self.sequencer.status();
        let known = (self.status.term, self.status.leader);
        let news = known != (status.term, status.leader);
        self.status = status;
        let changes = self.sequencer.machine().registry_changes();
        let registry = (self.registry_changes != Some(changes)).then(|| self.registry());
        self.registry_changes = Some(changes);
        for (sequence, outcome) in actions.results.drain(..) {
            let seat = &mut self.seats[usize::from(Origin::shard_of(sequence))];
            seat.next
                .results
                .push((Origin::count_of(sequence), outcome));
            seat.due = true;
        }
        self.unapplied.append(&mut actions.reads);
        let seats = &mut self.seats;
        self.unapplied.retain(|&(shard, round, index)| {
            if index > status.applied {
                return true;
            }
            let seat = &mut seats[usize::from(shard)];
            seat.next.reads.push(round);
            seat.due = true;
            false
        });
        for (shard, request, answer) in actions.leases.drain(..) {
            let seat = &mut self.seats[usize::from(shard)];
            seat.next.leases.push((request, answer));
            seat.due = true;
        }
        let published = core::mem::take(&mut actions.published);
        for seat in &mut self.seats {
            if seat.due || news || registry.is_some() || (published && seat.follows) {
                seat.due = false;
                let mut message = core::mem::take(&mut seat.next);
                message.status = status;
                message.registry.clone_from(&registry);
                seat.outlet.send(message);
            }
        }
    }

    fn registry(&self) -> Arc<Registry> {
        let machine = self.sequencer.machine();
        let members = machine
            .members
            .iter()
            .map(|(id, member)| (id, member.clone()))
            .collect();
        Arc::new(Registry {
            members,
            cluster_version: machine.members.cluster_version.clone(),
            alarms: machine.alarms.get(ringkv_engine::alarm::NONE).collect(),
        })
    }
}

async fn tick(heartbeat: Duration, events: Rc<Mailbox<Event>>) {
    loop {
        sleep(heartbeat).await;
        events.push(Event::Tick);
    }
}

async fn write(frame: wal::WriteFrame, writer: Rc<FrameWriter>, events: Rc<Mailbox<Event>>) {
    match writer.write(frame).await {
        Ok(frame) => events.push(Event::Flushed(frame.id, frame.buf)),
        Err(error) => fatal(
            "failed to write the log; stopping, for what the device holds is unknown",
            &error,
        ),
    }
}

/// Prepares or removes a segment file on a side thread.
async fn side_job(action: wal::Action, data_dir: PathBuf, events: Rc<Mailbox<Event>>) {
    loop {
        let mut disk = FsDisk::new(&data_dir);
        let job = executor().spawn_blocking(move || action.run(&mut disk));
        match job.await {
            Ok(()) => break,
            // A flush that finds no space has failed like any other: its file system promised it.
            Err(error) if error.kind == DiskErrorKind::NoSpace && error.op != DiskOp::Flush => {
                log::warn!(
                    "no space for the next log segment; writes wait until there is",
                    "error" => error.to_string(),
                );
                sleep(Duration::from_secs(1)).await;
            }
            Err(error) => fatal("failed to prepare the log; stopping", &error.to_string()),
        }
    }
    events.push(match action {
        wal::Action::PrepareSegment(prepare) => Event::SegmentReady(prepare.file),
        wal::Action::RemoveSegment(segment) => Event::SegmentRemoved(segment),
    });
}

/// Writes a checkpoint on a side thread; the superblock that names it comes back.
async fn checkpoint(
    mut writer: CheckpointWriter,
    data_dir: PathBuf,
    (home, events): (Rc<Cell<Option<Superblock>>>, Rc<Mailbox<Event>>),
) {
    let (applied, start) = (writer.applied(), Instant::now());
    log::info!("writing a checkpoint", "applied-index" => applied);
    let job = executor().spawn_blocking(move || {
        let mut disk = FsDisk::new(&data_dir);
        while writer.step(&mut disk)? {}
        Ok::<_, DiskError>(writer.finish())
    });
    let superblock = match job.await {
        Ok(superblock) => superblock,
        Err(error) => fatal("failed to write a checkpoint; stopping", &error.to_string()),
    };
    let bytes = superblock.root().map_or(0, |root| root.file_bytes);
    log::info!(
        "wrote a checkpoint",
        "applied-index" => applied,
        "bytes" => bytes,
        "took" => log::go_duration(start.elapsed()),
    );
    home.set(Some(superblock));
    events.push(Event::Checkpointed(applied));
}

async fn seal_when_idle(idle: Rc<IdleWatch>, events: Rc<Mailbox<Event>>) {
    loop {
        sleep(SEAL_AFTER).await;
        let silent = idle
            .last
            .get()
            .is_none_or(|last| last.elapsed() >= SEAL_AFTER);
        if silent {
            break;
        }
    }
    idle.waiting.set(false);
    idle.last.set(None);
    events.push(Event::Idle);
}

/// Says why, and ends the process: nothing may be acknowledged after this.
pub fn fatal(what: &str, error: &str) -> ! {
    log::error!(what, "error" => error);
    std::process::exit(1)
}
