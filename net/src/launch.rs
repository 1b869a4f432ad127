//! From a data dir to a sequencer that is ready to run: identity, recovery, bootstrap.
//!
//! Runs once on the main thread, blocking, before the executors. Nothing is served until it is
//! done, and it changes nothing that it could not do again after a crash.

use std::hash::{BuildHasher, RandomState};
use std::path::Path;

use ringkv_engine::checkpoint::{Conf, Superblock};
use ringkv_engine::io::{Disk, DiskError};
use ringkv_engine::limits::Limits;
use ringkv_engine::members::{Member, Members};
use ringkv_engine::types::MemberId;
use ringkv_engine::wal;
use ringkv_raft::boot::{self, BootError, Booted, cluster_id, member_id};
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
    let fail = |error: BootError| error.to_string();
    let ready = disk.ensure_dir(wal::DIR);
    ready.map_err(|error| fail(error.into()))?;
    let options = boot::Options {
        limits,
        heartbeat_ms: config.heartbeat_interval.as_millis() as u32,
        election_ms: config.election_timeout.as_millis() as u32,
        lease_checkpoint_ms: Some(LEASE_CHECKPOINT_MS),
        random: random(),
    };
    let existing = Superblock::open(&mut disk);
    let existing = existing.map_err(|error| fail(BootError::Checkpoint(error)))?;
    let superblock = match existing.filter(|superblock| superblock.root().is_some()) {
        Some(superblock) => superblock,
        None => bootstrap(config, &mut disk, &options)?,
    };
    if superblock.damaged_copies() > 0 {
        log::warn!(
            "damaged copies of the superblock were mended",
            "copies" => superblock.damaged_copies(),
        );
    }
    let booted = boot::restart(&mut disk, superblock, &options, &mut report).map_err(fail)?;
    let Booted {
        sequencer,
        superblock,
        identity,
    } = booted;
    Ok(Launched {
        sequencer,
        cluster_id: superblock.identity().cluster,
        superblock,
        identity,
    })
}

fn report(progress: boot::Progress) {
    match progress {
        boot::Progress::Checkpoint(p) => {
            log::info!("reading the checkpoint", "bytes" => p.bytes_done, "of" => p.bytes_total);
        }
        boot::Progress::Log(p) => log::info!(
            "reading the log",
            "segment" => p.segments_done,
            "of" => p.segments_total,
            "last-index" => p.last_index,
        ),
        boot::Progress::LogEnd(cut) => log::info!(
            "the log ends here",
            "file" => cut.file.as_str(),
            "offset" => cut.offset,
            "found" => cut.what,
        ),
    }
}

/// Makes a data dir that holds a new cluster before its first entry.
fn bootstrap(
    config: &Config,
    disk: &mut FsDisk,
    options: &boot::Options,
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
    let conf = Conf {
        voters: ids,
        learners: Vec::new(),
    };
    boot::bootstrap(disk, identity, members, conf, options).map_err(fail)
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

/// A number that no other run has: from the system's own random keys.
fn random() -> u64 {
    RandomState::new().hash_one(std::process::id())
}
