//! One whole member, simulated: sequencer, log, checkpoints and state machine on a disk that fails,
//! with clients, on one thread, under a virtual clock; everything follows from a seed.
//!
//! A [`run`] lets clients of three shards work while frames complete late and out of order,
//! segments get ready late, checkpoints and compactions go on step by step, space runs out, and the
//! power or the process fails again and again, also amid a checkpoint or amid a start. After each
//! failure the member comes back by the real recovery. The [`ledger`] checks all it does against
//! what the simulation saw go to the device, and against a naive [`model`].
//!
//! A [`Plant`] is a bug put between the parts, where the glue of a server could have it: the
//! checkers must find each.

pub mod ledger;
pub mod model;
pub mod shard;

use std::collections::VecDeque;

use ringkv_engine::checkpoint::{CheckpointWriter, Conf, Superblock};
use ringkv_engine::index::Reader;
use ringkv_engine::io::sim::{Faults, Prng, SimDisk};
use ringkv_engine::io::{AlignedBuf, Disk, DiskError, DiskErrorKind, FrameId};
use ringkv_engine::lease::min_ttl_seconds;
use ringkv_engine::limits::Limits;
use ringkv_engine::limits::format::BLOCK_BYTES;
use ringkv_engine::members::{Member, Members};
use ringkv_engine::mvcc::View;
use ringkv_engine::mvcc::hash::HashScan;
use ringkv_engine::types::{Index, LeaseId, ShardId};
use ringkv_engine::wal::frame::{FRAME_HEADER_BYTES, RECORD_HEADER_BYTES, record_bytes};
use ringkv_engine::wal::{self, RecoverOptions, WriteFrame};
use ringkv_raft::boot::{self, BootError, Booted};
use ringkv_raft::sequencer::{Actions, Event, LeaseAnswer, LeaseAsk, Sequencer};

use self::ledger::Ledger;
use self::model::Model;
use self::shard::Shard;

const LIMITS: Limits = Limits::SIM;
const HEARTBEAT_MS: u32 = 100;
const ELECTION_MS: u32 = 1000;
const IDENTITY: wal::Identity = wal::Identity {
    cluster: 0xc1,
    member: 0x3e,
};
const SHARDS: ShardId = 3;
/// More than any run needs: beyond it something waits for ever.
const STEPS_MAX: usize = 400_000;
const ACKNOWLEDGED_MIN: usize = 1000;

/// A bug to be found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Plant {
    /// None.
    Nothing,
    /// A frame is reported flushed when it is submitted.
    ReplyBeforeFlush,
    /// Frames are written and never flushed.
    FlushSkipped,
    /// A frame in twenty is reported flushed and was never written.
    AckUnwritten,
    /// A start loses the last frame of the log.
    LastFrameDropped,
    /// The root names a checkpoint whose blocks were not flushed.
    RootBeforeBlocks,
    /// Reads are answered without a round, from the View that the shard had at hand.
    ReadWithoutRound,
    /// Reads wait for their round, and are answered from a View loaded when the round's first came.
    ViewBeforeWait,
}

/// What happened in a run.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[allow(missing_docs, reason = "counts, by their names")]
pub struct Report {
    pub steps: usize,
    pub acknowledged: usize,
    pub refused: usize,
    pub reads: usize,
    pub lease_answers: usize,
    pub starts: usize,
    pub crashes_in_start: usize,
    pub crashes_in_checkpoint: usize,
    pub checkpoints: usize,
    pub no_space: usize,
    pub io_errors: usize,
    pub background_slices: usize,
    pub revision: u64,
    pub compacted: i64,
    pub hash: u32,
}

/// A frame given to the device.
struct Frame {
    id: FrameId,
    last_index: Index,
    durable: bool,
}

/// Where a frame is on the disk.
#[derive(Clone)]
struct Place {
    file: String,
    offset: u64,
    bytes: usize,
}

/// The member while it runs; gone with each crash.
struct Process {
    sequencer: Sequencer,
    view: Reader<View>,
    started_ms: u64,
    superblock: Option<Superblock>,
    checkpoint: Option<CheckpointWriter>,
    /// Completions that the sequencer has not heard of.
    late: Vec<Event>,
    jobs: VecDeque<wal::Action>,
    frames: VecDeque<Frame>,
    /// Index of the last entry of the durable prefix of frames.
    flushed_index: Index,
    last_written: Option<Place>,
    unapplied: Vec<(ShardId, u64, Index)>,
    shards: Vec<Shard>,
    next_tick_ms: u64,
}

/// The whole world of one seed.
struct Sim {
    rng: Prng,
    plant: Plant,
    clock_ms: u64,
    disk: SimDisk,
    ledger: Ledger,
    report: Report,
    process: Process,
    /// Steps until there is space again.
    full_for: usize,
    quiet: bool,
}

/// Runs one seed to its end.
///
/// # Panics
/// With what was violated.
#[must_use]
pub fn run(seed: u64, plant: Plant) -> Report {
    let mut sim = Sim::new(seed, plant);
    let starts_min = 3 + sim.rng.below(6);
    while sim.report.acknowledged < ACKNOWLEDGED_MIN || sim.report.starts <= starts_min {
        sim.turn();
    }
    sim.settle();
    sim.check_state();
    sim.crash();
    sim.settle();
    sim.check_state();
    sim.drain_leases();
    sim.report.revision = sim.ledger.model.revision;
    sim.report.compacted = sim.ledger.model.compacted;
    sim.report.hash = sim.ledger.model.hash_kv();
    sim.report
}

impl Sim {
    fn new(seed: u64, plant: Plant) -> Self {
        let mut rng = Prng::new(seed);
        let io_error = if rng.below(2) == 0 { 2 } else { 0 };
        let faults = Faults {
            io_error,
            ..Faults::POWER_CUTS
        };
        let mut disk = SimDisk::new(rng.next_u64(), faults);
        let ttl_min = min_ttl_seconds(ELECTION_MS / HEARTBEAT_MS, HEARTBEAT_MS);
        let mut ledger = Ledger::new(Model::new(ttl_min));
        let mut report = Report::default();
        let process = start(&mut rng, &mut disk, &mut ledger, 0, &mut report);
        let mut sim = Self {
            rng,
            plant,
            clock_ms: 0,
            disk,
            ledger,
            report,
            process,
            full_for: 0,
            quiet: false,
        };
        sim.first_step();
        sim
    }

    /// Something happens.
    fn turn(&mut self) {
        self.report.steps += 1;
        assert!(
            self.report.steps < STEPS_MAX,
            "no headway: {:?}",
            self.report
        );
        self.pass_time();
        let nth = self.rng.below(self.process.shards.len());
        match self.rng.below(100) {
            0..20 if !self.quiet => self.client(nth),
            20..30 => self.process.shards[nth].end_turn(),
            30..50 => {
                if let Some(event) = self.process.shards[nth].ring.pop_front() {
                    self.step(event);
                }
            }
            50..62 => self.complete_frame(),
            62..75 => {
                let count = self.process.late.len();
                if count > 0 {
                    let nth = self.rng.below(count);
                    let event = self.process.late.swap_remove(nth);
                    self.step(event);
                }
            }
            75..80 => self.side_job(),
            80..90 => self.checkpoint_step(),
            90..97 => {
                let Process { shards, view, .. } = &mut self.process;
                let answered = shards[nth].progress(&mut self.ledger, view);
                self.report.reads += usize::from(answered);
            }
            97 => self.background(),
            98 => self.step(Event::Idle),
            _ => self.trouble(),
        }
    }

    fn client(&mut self, nth: usize) {
        let revision = self.ledger.model.revision;
        let Process { shards, view, .. } = &mut self.process;
        let shard = &mut shards[nth];
        match self.rng.below(10) {
            0..7 => shard.submit(&mut self.rng, revision),
            7..9 => shard.read(&mut self.rng, &self.ledger, view, self.plant),
            _ => shard.ask(&mut self.rng),
        }
    }

    fn pass_time(&mut self) {
        if self.rng.below(4) == 0 {
            self.clock_ms += self.rng.below(12) as u64;
        }
        if self.clock_ms >= self.process.next_tick_ms {
            self.process.next_tick_ms = self.clock_ms + u64::from(HEARTBEAT_MS);
            self.step(Event::Tick);
        }
        if self.full_for > 0 {
            self.full_for -= 1;
            if self.full_for == 0 {
                self.disk.faults_mut().capacity_bytes = u64::MAX;
            }
        }
    }

    /// Rare things: failures, a full device, a look at the whole state.
    fn trouble(&mut self) {
        if self.quiet {
            return;
        }
        let in_checkpoint = self.process.checkpoint.is_some();
        match self.rng.below(60) {
            0 | 1 => self.crash(),
            2 => self.kill(),
            3 | 4 if in_checkpoint => self.crash(),
            5 => {
                self.full_for = 1 + self.rng.below(400);
                self.disk.faults_mut().capacity_bytes = 0;
            }
            6 => self.disk.faults_mut().operations_left = self.rng.below(12) as u32,
            7 | 8 => self.check_state(),
            _ => {}
        }
    }

    fn first_step(&mut self) {
        let mut actions = Actions::default();
        self.process.sequencer.start(0, &mut actions);
        self.carry_out(actions);
    }

    fn step(&mut self, event: Event) {
        let now_ms = self.clock_ms - self.process.started_ms;
        let mut actions = Actions::default();
        self.process.sequencer.step(now_ms, event, &mut actions);
        self.carry_out(actions);
    }

    fn carry_out(&mut self, actions: Actions) {
        for frame in actions.frames {
            self.submit(frame);
        }
        self.process.jobs.extend(actions.wal);
        let mut kept_alive = Vec::new();
        let wrong = self.wrong_answers(actions.leases, &mut kept_alive);
        let status = self.process.sequencer.status();
        assert!(status.applied <= status.committed);
        self.ledger
            .applied(status.applied, self.process.flushed_index, self.clock_ms);
        for id in kept_alive {
            self.ledger.kept_alive(id, self.clock_ms);
        }
        // An answer is as of before the step, or as of after it.
        for (ask, answer) in wrong {
            let right = self.ledger.is_right(ask, &answer, self.clock_ms);
            assert!(
                right,
                "{ask:?} is answered {answer:?} at {}; {}",
                self.clock_ms,
                self.ledger.promise(ask)
            );
        }
        let view_applied = self.process.view.pin(|view, _| view.applied);
        assert_eq!(view_applied, status.applied, "what is applied is published");
        for (sequence, outcome) in actions.results {
            let applied = self.ledger.result(sequence, &outcome, view_applied);
            self.report.acknowledged += usize::from(applied);
            self.report.refused += usize::from(!applied);
            let shard = ringkv_engine::command::Origin::shard_of(sequence);
            self.process.shards[usize::from(shard)].waiting -= 1;
        }
        self.process.unapplied.extend(actions.reads);
        let Process {
            unapplied, shards, ..
        } = &mut self.process;
        for (shard, round, _) in unapplied.extract_if(.., |(_, _, index)| *index <= status.applied)
        {
            shards[usize::from(shard)].confirmed(round);
        }
        if actions.checkpoint {
            let superblock = self.process.superblock.take();
            let superblock = superblock.expect("one checkpoint at a time");
            let image = self.process.sequencer.image();
            self.process.checkpoint = Some(CheckpointWriter::new(superblock, image, &LIMITS));
        }
    }

    /// Answers that are not right as of what the model has applied so far.
    fn wrong_answers(
        &mut self,
        answers: Vec<(ShardId, u64, LeaseAnswer)>,
        kept_alive: &mut Vec<LeaseId>,
    ) -> Vec<(LeaseAsk, LeaseAnswer)> {
        let mut wrong = Vec::new();
        for (shard, number, answer) in answers {
            self.report.lease_answers += 1;
            let asks = &mut self.process.shards[usize::from(shard)].asks;
            let ask = asks.remove(&number).expect("a question is answered once");
            if !self.ledger.is_right(ask, &answer, self.clock_ms) {
                wrong.push((ask, answer.clone()));
            }
            if let (LeaseAsk::KeepAlive(id), LeaseAnswer::KeptAlive(_)) = (ask, answer) {
                kept_alive.push(id);
            }
        }
        wrong
    }

    fn submit(&mut self, frame: WriteFrame) {
        let last_index = self.note_records(frame.buf.as_slice());
        let before = self.process.frames.back().map(|frame| frame.last_index);
        let last_index = last_index.or(before).unwrap_or(self.process.flushed_index);
        self.process.frames.push_back(Frame {
            id: frame.id,
            last_index,
            durable: false,
        });
        self.process.last_written = Some(Place {
            file: frame.segment.name(),
            offset: frame.offset,
            bytes: frame.buf.len(),
        });
        if self.plant == Plant::ReplyBeforeFlush {
            let mut copy = AlignedBuf::new(frame.buf.capacity());
            copy.extend_from_slice(frame.buf.as_slice());
            self.process.late.push(Event::Flushed(frame.id, copy));
        }
        self.disk.submit(frame);
    }

    /// The records of a frame, read by the layout that `wal/frame.rs` draws; index of the last.
    fn note_records(&mut self, frame: &[u8]) -> Option<Index> {
        let u32_at = |at: usize| u32::from_le_bytes(frame[at..at + 4].try_into().expect("4"));
        let u64_at = |at: usize| u64::from_le_bytes(frame[at..at + 8].try_into().expect("8"));
        let mut at = FRAME_HEADER_BYTES;
        let mut last = None;
        for _ in 0..u32_at(20) {
            let bytes = u32_at(at) as usize;
            let (index, term) = (u64_at(at + 8), u64_at(at + 16));
            let payload = &frame[at + RECORD_HEADER_BYTES..][..bytes];
            self.ledger.submitted(index, term, payload);
            last = Some(index);
            at += record_bytes(bytes);
        }
        last
    }

    fn complete_frame(&mut self) {
        let faults = self.disk.faults_mut();
        let honest = *faults;
        match self.plant {
            Plant::FlushSkipped => faults.skip_flush = true,
            Plant::AckUnwritten => faults.lost = 50,
            _ => {}
        }
        if self.quiet {
            faults.io_error = 0;
        }
        let done = self.disk.complete();
        *self.disk.faults_mut() = honest;
        let Some(done) = done else {
            return;
        };
        if done.result.is_err() {
            // A server stops at once.
            self.report.io_errors += 1;
            return self.kill();
        }
        let frames = &mut self.process.frames;
        let frame = frames.iter_mut().find(|frame| frame.id == done.id);
        frame.expect("it was submitted").durable = true;
        while let Some(frame) = frames.pop_front_if(|frame| frame.durable) {
            self.process.flushed_index = frame.last_index;
        }
        if self.plant != Plant::ReplyBeforeFlush {
            self.process.late.push(Event::Flushed(done.id, done.buf));
        }
    }

    fn side_job(&mut self) {
        let Some(action) = self.process.jobs.pop_front() else {
            return;
        };
        match action.run(&mut self.disk) {
            Ok(()) => self.process.late.push(match action {
                wal::Action::PrepareSegment(prepare) => Event::SegmentReady(prepare.file),
                wal::Action::RemoveSegment(file) => Event::SegmentRemoved(file),
            }),
            Err(error) if error.kind == DiskErrorKind::NoSpace => {
                self.report.no_space += 1;
                self.process.jobs.push_back(action);
            }
            Err(_) => self.crash(),
        }
    }

    fn checkpoint_step(&mut self) {
        let Some(mut writer) = self.process.checkpoint.take() else {
            return;
        };
        let step = if self.plant == Plant::RootBeforeBlocks {
            writer.step(&mut Hasty(&mut self.disk))
        } else {
            writer.step(&mut self.disk)
        };
        match step {
            Ok(true) => self.process.checkpoint = Some(writer),
            Ok(false) => {
                self.report.checkpoints += 1;
                let applied = writer.applied();
                self.process.superblock = Some(writer.finish());
                self.process.late.push(Event::Checkpointed(applied));
            }
            Err(error) if error.kind == DiskErrorKind::NoSpace => self.kill(),
            Err(_) => self.crash(),
        }
    }

    fn background(&mut self) {
        if self.process.sequencer.has_background_work() {
            let floor = match self.rng.below(4) {
                0 => self.ledger.model.revision.saturating_sub(30),
                _ => u64::MAX,
            };
            self.report.background_slices += 1;
            self.step(Event::Background { floor });
        }
    }

    fn crash(&mut self) {
        self.disk.crash();
        self.restart();
    }

    fn kill(&mut self) {
        self.disk.kill();
        self.restart();
    }

    fn restart(&mut self) {
        self.report.crashes_in_checkpoint += usize::from(self.process.checkpoint.is_some());
        self.disk.faults_mut().capacity_bytes = u64::MAX;
        self.full_for = 0;
        let last = self.process.last_written.take();
        if let Some(Place {
            file,
            offset,
            bytes,
        }) = last.filter(|_| self.plant == Plant::LastFrameDropped)
        {
            let zeros = AlignedBuf::zeroed(bytes);
            let dropped = self.disk.write_at(&file, offset, zeros.as_slice());
            dropped.expect("the segment is there");
        }
        self.clock_ms += self.rng.below(1500) as u64;
        self.process = start(
            &mut self.rng,
            &mut self.disk,
            &mut self.ledger,
            self.clock_ms,
            &mut self.report,
        );
        self.first_step();
    }

    /// No clients, no failures: all that is on its way arrives.
    fn settle(&mut self) {
        self.quiet = true;
        self.full_for = 0;
        self.disk.faults_mut().capacity_bytes = u64::MAX;
        self.disk.faults_mut().operations_left = u32::MAX;
        for shard in &mut self.process.shards {
            shard.end_turn();
        }
        while !self.is_idle() {
            self.turn();
        }
    }

    fn is_idle(&self) -> bool {
        let process = &self.process;
        process.shards.iter().all(Shard::is_idle)
            && process.jobs.is_empty()
            && process.late.is_empty()
            && process.frames.is_empty()
            && process.checkpoint.is_none()
            && process.sequencer.status().applied >= self.ledger.model.applied
            && process.sequencer.machine().lessor.is_primary()
    }

    /// Nobody renews: every lease ends, and with it its keys.
    fn drain_leases(&mut self) {
        for _ in 0..400 {
            self.clock_ms += u64::from(HEARTBEAT_MS);
            self.step(Event::Tick);
            self.settle();
        }
        assert!(self.ledger.model.leases.is_empty(), "a lease never ends");
        self.check_state();
    }

    fn check_state(&mut self) {
        let Process {
            sequencer, view, ..
        } = &self.process;
        view.pin(|view, pin| {
            let hash = HashScan::begin(0, &view.state(pin)).expect("the current revision");
            self.ledger.check_state(sequencer.machine(), view, hash);
        });
    }
}

/// What is on the disk becomes a running member, however often the power fails on the way.
fn start(
    rng: &mut Prng,
    disk: &mut SimDisk,
    ledger: &mut Ledger,
    clock_ms: u64,
    report: &mut Report,
) -> Process {
    loop {
        let options = boot::Options {
            limits: LIMITS,
            heartbeat_ms: HEARTBEAT_MS,
            election_ms: ELECTION_MS,
            lease_checkpoint_ms: Some(1000),
            random: rng.next_u64(),
        };
        let last_index = read_back(disk, ledger);
        if rng.below(3) == 0 {
            disk.faults_mut().operations_left = rng.below(60) as u32;
        }
        match boot(disk, &options) {
            Ok(booted) => return process(booted, last_index, ledger, clock_ms, report),
            Err(error) if disk.faults_mut().operations_left == 0 => {
                assert!(
                    matches!(io_error(&error), Some(DiskErrorKind::Io(_))),
                    "{error}"
                );
                report.crashes_in_start += 1;
                disk.crash();
            }
            Err(error) => panic!("the member cannot start: {error}"),
        }
    }
}

fn io_error(error: &BootError) -> Option<DiskErrorKind> {
    match error {
        BootError::Disk(DiskError { kind, .. })
        | BootError::Checkpoint(ringkv_engine::checkpoint::CheckpointError::Disk(DiskError {
            kind,
            ..
        }))
        | BootError::Log(wal::RecoverError::Disk(DiskError { kind, .. })) => Some(*kind),
        _ => None,
    }
}

/// As a server does at its start.
fn boot(disk: &mut SimDisk, options: &boot::Options) -> Result<Booted, BootError> {
    disk.ensure_dir(wal::DIR)?;
    let existing = Superblock::open(disk).map_err(BootError::Checkpoint)?;
    let superblock = match existing.filter(|superblock| superblock.root().is_some()) {
        Some(superblock) => superblock,
        None => {
            let mut members = Members::default();
            members.insert(IDENTITY.member, Member::default());
            let conf = Conf {
                voters: vec![IDENTITY.member],
                learners: Vec::new(),
            };
            boot::bootstrap(disk, IDENTITY, members, conf, options)?
        }
    };
    boot::restart(disk, superblock, options, &mut |_| {})
}

/// Recovery changes nothing that it reads: what it will find can be looked at before.
fn read_back(disk: &mut SimDisk, ledger: &mut Ledger) -> Index {
    let superblock = Superblock::open(disk);
    let superblock = superblock.unwrap_or_else(|error| panic!("the member cannot start: {error}"));
    let applied = superblock
        .as_ref()
        .and_then(Superblock::root)
        .map_or(0, |root| root.applied);
    let options = RecoverOptions {
        limits: LIMITS,
        identity: IDENTITY,
        incarnation: 0,
        start_index: applied + 1,
    };
    let mut entries = Vec::new();
    let mut on_entry = |entry| entries.push(entry);
    let recovered = wal::recover(disk, &options, &mut on_entry, &mut |_| {});
    let recovered = recovered.unwrap_or_else(|error| panic!("the member cannot start: {error:?}"));
    assert!(
        recovered.last_index >= applied,
        "the log ends before the checkpoint"
    );
    ledger.recovered(&entries, recovered.last_index);
    recovered.last_index
}

fn process(
    booted: Booted,
    last_index: Index,
    ledger: &mut Ledger,
    clock_ms: u64,
    report: &mut Report,
) -> Process {
    report.starts += 1;
    let Booted {
        sequencer,
        superblock,
        identity,
    } = booted;
    ledger.started(identity.start);
    Process {
        view: sequencer.reader(),
        sequencer,
        started_ms: clock_ms,
        superblock: Some(superblock),
        checkpoint: None,
        late: Vec::new(),
        jobs: VecDeque::new(),
        frames: VecDeque::new(),
        flushed_index: last_index,
        last_written: None,
        unapplied: Vec::new(),
        shards: (0..SHARDS)
            .map(|id| Shard::new(id, identity, LIMITS))
            .collect(),
        next_tick_ms: clock_ms,
    }
}

/// A planted bug's disk: it does not flush checkpoint files.
struct Hasty<'a>(&'a mut SimDisk);

impl Disk for Hasty<'_> {
    fn list(&mut self, dir: &str) -> Result<Vec<String>, DiskError> {
        self.0.list(dir)
    }

    fn ensure_dir(&mut self, dir: &str) -> Result<(), DiskError> {
        self.0.ensure_dir(dir)
    }

    fn create(&mut self, file: &str, size: u64) -> Result<(), DiskError> {
        self.0.create(file, size)
    }

    fn read_at(&mut self, file: &str, offset: u64, buf: &mut [u8]) -> Result<(), DiskError> {
        self.0.read_at(file, offset, buf)
    }

    fn write_at(&mut self, file: &str, offset: u64, bytes: &[u8]) -> Result<(), DiskError> {
        self.0.write_at(file, offset, bytes)
    }

    fn flush(&mut self, file: &str) -> Result<(), DiskError> {
        if file.starts_with("checkpoint/") {
            return Ok(());
        }
        self.0.flush(file)
    }

    fn flush_dir(&mut self, dir: &str) -> Result<(), DiskError> {
        self.0.flush_dir(dir)
    }

    fn rename(&mut self, source: &str, target: &str) -> Result<(), DiskError> {
        self.0.rename(source, target)
    }

    fn remove(&mut self, file: &str) -> Result<(), DiskError> {
        self.0.remove(file)
    }

    fn len(&mut self, file: &str) -> Result<u64, DiskError> {
        self.0.len(file)
    }
}

const _: () = assert!(LIMITS.frame_bytes_max.is_multiple_of(BLOCK_BYTES));
