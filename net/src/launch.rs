//! From a data dir to a sequencer that is ready to run: identity, recovery, bootstrap.
//!
//! Runs once on the main thread, blocking, before the executors. Nothing is served until it is done,
//! and it changes nothing that it could not do again after a crash.

use std::hash::{BuildHasher, RandomState};
use std::path::Path;

use ringkv_engine::apply::Machine;
use ringkv_engine::checkpoint::{
    self, CheckpointError, CheckpointWriter, Conf, Loaded, Superblock,
};
use ringkv_engine::io::{Disk, DiskError};
use ringkv_engine::lease::{Lessor, min_ttl_seconds};
use ringkv_engine::limits::Limits;
use ringkv_engine::members::{Member, Members};
use ringkv_engine::types::MemberId;
use ringkv_engine::wal::{self, RecoverError, RecoverOptions};
use ringkv_raft::boot::{cluster_id, member_id};
use ringkv_raft::log::Log;
use ringkv_raft::node::{self, Node};
use ringkv_raft::sequencer::{Identity, Sequencer};

use crate::config::Config;
use crate::config::value::Url;
use crate::disk::FsDisk;
use crate::log;

/// Remaining TTLs are written to the log this often (etcd: 5 min), so that they outlive a restart.
const LEASE_CHECKPOINT_MS: u64 = 5 * 60 * 1000;

/// A member that has its state back.
pub struct Launched {
    /// To be run.
    pub sequencer: Sequencer,
    /// Names the checkpoint, and the next one.
    pub superblock: Superblock,
    /// Cluster id.
    pub cluster_id: u64,
    /// Who this is in this run.
    pub identity: Identity,
}

/// Recovers what is in `data_dir`, or begins a new cluster.
///
/// # Errors
/// One line that says what is wrong, where, and what to do.
pub fn launch(config: &Config, data_dir: &Path, limits: Limits) -> Result<Launched, String> {
    let mut disk = FsDisk::new(data_dir);
    let unusable = |error: DiskError| format!("cannot use the data directory: {error}");
    disk.ensure_dir(wal::DIR).map_err(unusable)?;
    let heartbeat_ms = config.heartbeat_interval.as_millis() as u32;
    let election_ticks = (config.election_timeout.as_millis() as u32 / heartbeat_ms).max(2);
    let ttl_min = min_ttl_seconds(election_ticks, heartbeat_ms);
    let lessor = || Lessor::new(ttl_min, Some(LEASE_CHECKPOINT_MS), &limits);

    let existing = Superblock::open(&mut disk).map_err(|error| damaged(&error))?;
    let mut superblock = match existing.filter(|superblock| superblock.root().is_some()) {
        Some(superblock) => superblock,
        None => bootstrap(config, &mut disk, lessor(), &limits)?,
    };
    if superblock.damaged_copies() > 0 {
        log::warn!(
            "damaged copies of the superblock were mended",
            "copies" => superblock.damaged_copies(),
        );
    }
    let wal_identity = superblock.identity();
    let mut on_progress = |p: checkpoint::Progress| {
        log::info!("reading the checkpoint", "bytes" => p.bytes_done, "of" => p.bytes_total);
    };
    let loaded = superblock.load(&mut disk, limits, lessor(), &mut on_progress);
    let loaded = loaded
        .map_err(|error| damaged(&error))?
        .expect("there is a root");
    let Loaded {
        machine,
        term,
        conf,
    } = loaded;

    let applied = machine.applied();
    let conf_state = node::conf_state(&conf.voters);
    let mut raft_log = Log::new(Default::default(), conf_state, (applied, term));
    let options = RecoverOptions {
        limits,
        identity: wal_identity,
        incarnation: random(),
        start_index: applied + 1,
    };
    let mut on_progress = |p: wal::recover::Progress| {
        log::info!(
            "reading the log",
            "segment" => p.segments_done,
            "of" => p.segments_total,
            "last-index" => p.last_index,
        );
    };
    let recovered = wal::recover(
        &mut disk,
        &options,
        &mut |entry| raft_log.recover(entry),
        &mut on_progress,
    );
    let mut recovered = recovered.map_err(|error| recovery_failed(&error))?;
    if let Some(cut) = &recovered.cut {
        log::info!(
            "the log ends here",
            "file" => cut.file.as_str(),
            "offset" => cut.offset,
            "found" => cut.what,
        );
    }
    if recovered.last_index < applied {
        return Err(format!(
            "the log ends at index {}, before the checkpoint at {applied}: a segment is missing; \
             restore this data directory from a copy",
            recovered.last_index
        ));
    }
    // Nothing before this has changed what a refused start would leave for repair.
    let start = superblock.next_start(&mut disk).map_err(unusable)?;
    recovered.wal.release(applied);
    raft_log.set_hard_state(node::hard_state(recovered.hard_state, applied));
    let member = wal_identity.member;
    let settings = node::Settings {
        id: member,
        election_ticks: election_ticks as usize,
        seed: random(),
    };
    let raft_node = Node::new(&settings, raft_log, applied, &limits);
    let identity = Identity { member, start };
    let election_ms = config.election_timeout.as_millis() as u64;
    let sequencer = Sequencer::new(
        raft_node,
        recovered.wal,
        machine,
        identity,
        conf,
        election_ms,
        limits,
    );
    Ok(Launched {
        sequencer,
        superblock,
        cluster_id: wal_identity.cluster,
        identity,
    })
}

/// Makes a data dir that holds a new cluster before its first entry.
fn bootstrap(
    config: &Config,
    disk: &mut FsDisk,
    lessor: Lessor,
    limits: &Limits,
) -> Result<Superblock, String> {
    config.verify_bootstrap()?;
    let (ids, members) = bootstrap_members(config);
    if ids.len() > 1 {
        return Err("a cluster of more than one member is not supported yet".to_owned());
    }
    let own = config.initial_cluster.get(&config.name).ok_or_else(|| {
        format!(
            "couldn't find local name \"{}\" in the initial cluster configuration",
            config.name
        )
    })?;
    let member = member_id(&texts(own), &config.initial_cluster_token);
    let identity = wal::Identity {
        cluster: cluster_id(&ids),
        member,
    };
    let fail = |error: DiskError| format!("cannot make the data directory: {error}");
    let superblock = Superblock::create(disk, identity).map_err(fail)?;
    let machine = Machine::new(*limits, lessor, members);
    let conf = Conf {
        voters: ids,
        learners: Vec::new(),
    };
    let mut writer = CheckpointWriter::new(superblock, machine.image(0, conf), limits);
    while writer.step(disk).map_err(fail)? {}
    Ok(writer.finish())
}

fn damaged(error: &CheckpointError) -> String {
    format!("{error}; restore this data directory from a copy")
}

fn texts(urls: &[Url]) -> Vec<String> {
    urls.iter().map(Url::to_string).collect()
}

/// The members that `--initial-cluster` names, in order of ids.
fn bootstrap_members(config: &Config) -> (Vec<MemberId>, Members) {
    let mut members = Members::default();
    for urls in config.initial_cluster.values() {
        let peer_urls = texts(urls);
        let id = member_id(&peer_urls, &config.initial_cluster_token);
        members.insert(
            id,
            Member {
                peer_urls,
                ..Member::default()
            },
        );
    }
    (members.iter().map(|(id, _)| id).collect(), members)
}

fn recovery_failed(error: &RecoverError) -> String {
    match error {
        RecoverError::Disk(error) => format!("cannot read the log: {error}"),
        RecoverError::Corrupt(what) => format!(
            "the log is damaged, and acknowledged writes are behind the damage: {what}; restore this \
             data directory from a copy"
        ),
        RecoverError::Foreign { file, found } => format!(
            "{file} belongs to member {:x} of cluster {:x}: this is another member's data directory, \
             or --name, --initial-cluster or --initial-cluster-token have changed",
            found.member, found.cluster
        ),
        RecoverError::Format { file } => {
            format!("{file} was written by a version of ringkv with another disk format")
        }
    }
}

/// A number that no other run has: from the system's own random keys.
fn random() -> u64 {
    RandomState::new().hash_one(std::process::id())
}
