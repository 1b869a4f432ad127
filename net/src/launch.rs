//! From a data dir to a sequencer that is ready to run: identity, recovery, bootstrap.
//!
//! Runs once on the main thread, blocking, before the executors. Nothing is served until it is done,
//! and it changes nothing that it could not do again after a crash.

use std::hash::{BuildHasher, RandomState};
use std::path::Path;

use ringkv_engine::apply::Machine;
use ringkv_engine::io::Disk;
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
    disk.ensure_dir(wal::DIR)
        .map_err(|e| format!("cannot use the data directory: {e}"))?;
    let (ids, members) = bootstrap_members(config);
    let cluster_id = cluster_id(&ids);
    let own = config.initial_cluster.get(&config.name).ok_or_else(|| {
        format!(
            "couldn't find local name \"{}\" in the initial cluster configuration",
            config.name
        )
    })?;
    let member = member_id(&texts(own), &config.initial_cluster_token);
    if ids.len() > 1 {
        return Err("a cluster of more than one member is not supported yet".to_owned());
    }

    let heartbeat_ms = config.heartbeat_interval.as_millis() as u32;
    let election_ticks = (config.election_timeout.as_millis() as u32 / heartbeat_ms).max(2);
    let ttl_min = min_ttl_seconds(election_ticks, heartbeat_ms);
    let lessor = Lessor::new(ttl_min, Some(LEASE_CHECKPOINT_MS), &limits);
    let machine = Machine::new(limits, lessor, members);

    let conf_state = node::conf_state(&ids);
    let mut raft_log = Log::new(Default::default(), conf_state, (0, 0));
    let options = RecoverOptions {
        limits,
        identity: wal::Identity {
            cluster: cluster_id,
            member,
        },
        incarnation: random(),
        start_index: machine.applied() + 1,
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
    let recovered = recovered.map_err(|error| recovery_failed(&error))?;
    if let Some(cut) = &recovered.cut {
        log::info!(
            "the log ends here",
            "file" => cut.file.as_str(),
            "offset" => cut.offset,
            "found" => cut.what,
        );
    }
    raft_log.set_hard_state(node::hard_state(recovered.hard_state, machine.applied()));
    let settings = node::Settings {
        id: member,
        election_ticks: election_ticks as usize,
        seed: random(),
    };
    let raft_node = Node::new(&settings, raft_log, machine.applied(), &limits);
    let identity = Identity {
        member,
        start: random() as u32,
    };
    let election_ms = config.election_timeout.as_millis() as u64;
    let sequencer = Sequencer::new(
        raft_node,
        recovered.wal,
        machine,
        identity,
        election_ms,
        limits,
    );
    Ok(Launched {
        sequencer,
        cluster_id,
        identity,
    })
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
