//! A sequencer on a simulated disk whose frames complete when the test says so.

use ringkv_engine::command::{BatchWriter, Put};
use ringkv_engine::io::sim::{Faults, SimDisk};
use ringkv_engine::members::Members;

use super::*;
use crate::boot;

const MEMBER: MemberId = 7;

struct Member {
    sequencer: Sequencer,
    disk: SimDisk,
    start: u32,
    sequence: u64,
}

impl Member {
    fn boot(mut disk: SimDisk) -> Self {
        use ringkv_engine::checkpoint::Superblock;
        let options = boot::Options {
            limits: Limits::SIM,
            heartbeat_ms: 100,
            election_ms: 1000,
            lease_checkpoint_ms: Some(1000),
            random: 1,
        };
        let superblock = Superblock::open(&mut disk).expect("no faults");
        let superblock = superblock.unwrap_or_else(|| {
            let identity = wal::Identity {
                cluster: 1,
                member: MEMBER,
            };
            let conf = Conf {
                voters: vec![MEMBER],
                learners: Vec::new(),
            };
            boot::bootstrap(&mut disk, identity, Members::default(), conf, &options)
                .expect("no faults")
        });
        let booted = boot::restart(&mut disk, superblock, &options, &mut |_| {});
        let booted = booted.unwrap_or_else(|error| panic!("{error}"));
        Self {
            sequencer: booted.sequencer,
            disk,
            start: booted.identity.start,
            sequence: 0,
        }
    }

    fn step(&mut self, event: Event) -> Actions {
        let mut actions = Actions::default();
        self.sequencer.step(0, event, &mut actions);
        actions
    }

    fn start(&mut self) -> Actions {
        let mut actions = Actions::default();
        self.sequencer.start(0, &mut actions);
        actions
    }

    /// Carries out all there is to do, and what follows from it; results and answers come back.
    fn finish(&mut self, mut actions: Actions) -> Actions {
        let mut outcome = Actions::default();
        loop {
            let mut events = Vec::new();
            for action in actions.wal.drain(..) {
                action.run(&mut self.disk).expect("no faults");
                let wal::Action::PrepareSegment(prepare) = action else {
                    panic!("nothing is to be removed");
                };
                events.push(Event::SegmentReady(prepare.file));
            }
            for frame in actions.frames.drain(..) {
                self.disk.submit(frame);
            }
            while let Some(done) = self.disk.complete() {
                events.push(Event::Flushed(done.id, done.buf));
            }
            outcome.results.append(&mut actions.results);
            outcome.leases.append(&mut actions.leases);
            if events.is_empty() {
                return outcome;
            }
            for event in events {
                self.sequencer.step(0, event, &mut actions);
            }
        }
    }

    fn batch(&mut self, command: Command<'_>) -> Event {
        self.sequence += 1;
        let origin = Origin {
            member: MEMBER,
            start: self.start,
            sequence: self.sequence,
        };
        let mut batch = BatchWriter::default();
        batch.push(&Envelope { origin, command });
        Event::Propose(batch.take())
    }
}

#[test]
fn a_question_about_a_lease_waits_for_the_log_to_be_applied() {
    let mut member = Member::boot(SimDisk::new(1, Faults::NONE));
    let actions = member.start();
    member.finish(actions);
    let grant = member.batch(Command::LeaseGrant { id: 5, ttl: 60 });
    let actions = member.step(grant);
    assert_eq!(member.finish(actions).results.len(), 1);

    let mut member = Member::boot(member.disk);
    let mut started = member.start();
    let asked = member.step(Event::Lease(0, 1, LeaseAsk::TimeToLive(5, false)));
    assert_eq!(
        asked.leases,
        [],
        "the grant is in the log, and not applied yet"
    );
    started.frames.extend(asked.frames);
    started.wal.extend(asked.wal);
    let answer = LeaseAnswer::TimeToLive {
        granted: 60,
        remaining: 60,
        keys: Vec::new(),
    };
    assert_eq!(member.finish(started).leases, [(0, 1, answer)]);
}

#[test]
fn a_batch_that_fits_no_frame_is_refused_and_holds_up_nothing() {
    let mut member = Member::boot(SimDisk::new(1, Faults::NONE));
    let started = member.start();
    member.finish(started);
    let put = |value| {
        Command::Put(Put {
            key: b"k",
            value,
            lease: 0,
            prev_kv: false,
            ignore_value: false,
            ignore_lease: false,
        })
    };
    let large = vec![0; Limits::SIM.frame_bytes_max];
    let batch = member.batch(put(&large));
    let actions = member.step(batch);
    let outcomes: Vec<&Outcome> = actions.results.iter().map(|(_, outcome)| outcome).collect();
    assert_eq!(outcomes, [&Outcome::Failed(ApiError::RequestTooLarge)]);
    let batch = member.batch(put(b"small"));
    let actions = member.step(batch);
    assert_eq!(member.finish(actions).results.len(), 1);
}

#[test]
fn batches_are_refused_when_too_much_waits_for_the_device() {
    let mut member = Member::boot(SimDisk::new(1, Faults::NONE));
    // No segment ever becomes ready: the open frame fills, then batches wait.
    let mut stalled = member.start();
    let value = vec![0; 1000];
    let mut refused = 0;
    for _ in 0..100 {
        let put = Put {
            key: b"k",
            value: &value,
            lease: 0,
            prev_kv: false,
            ignore_value: false,
            ignore_lease: false,
        };
        let batch = member.batch(Command::Put(put));
        let actions = member.step(batch);
        for (_, outcome) in &actions.results {
            assert_eq!(*outcome, Outcome::Failed(ApiError::TooManyRequests));
        }
        refused += actions.results.len();
        stalled.wal.extend(actions.wal);
        assert!(member.sequencer.pending_bytes <= Limits::SIM.pending_bytes_max);
    }
    assert!(refused > 60);
    // What was not refused is done once the device comes back.
    assert_eq!(member.finish(stalled).results.len(), 100 - refused);
}
