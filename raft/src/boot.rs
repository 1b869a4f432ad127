//! What a member is before its first entry, and how it goes on after a crash.
//!
//! Ids are etcd's: a member's is the first 8 bytes of a SHA-1 over its peer URLs, sorted and
//! joined, and the cluster token; the cluster's likewise over the member ids in order.
//!
//! [`bootstrap`] makes a data dir that holds a new cluster; [`restart`] brings a member back from
//! any data dir: checkpoint, log, raft node, sequencer. Both are blocking, run before anything is
//! served, and change nothing that they could not do again after a crash.
//!
//! Not here: where the data dir is, its lock, flags, what an operator is told.

use core::fmt;

use ringkv_engine::apply::Machine;
use ringkv_engine::checkpoint::{
    self, CheckpointError, CheckpointWriter, Conf, Loaded, Superblock,
};
use ringkv_engine::io::{Disk, DiskError};
use ringkv_engine::lease::{Lessor, min_ttl_seconds};
use ringkv_engine::limits::Limits;
use ringkv_engine::members::Members;
use ringkv_engine::types::{Index, MemberId};
use ringkv_engine::wal::recover::Cut;
use ringkv_engine::wal::{self, EntryKind, LogEntry, RecoverError, RecoverOptions};
use sha1::{Digest, Sha1};

use crate::log::Log;
use crate::node::{self, Node};
use crate::sequencer::{Identity, Sequencer};

/// What a run of a member is told; nothing of it is on disk.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Bounds; those of the disk's formats as when the data dir was made.
    pub limits: Limits,
    /// Interval of raft's clock, milliseconds.
    pub heartbeat_ms: u32,
    /// Silence after which a follower campaigns, milliseconds.
    pub election_ms: u32,
    /// Remaining TTLs of leases are written to the log this often; `None` for never.
    pub lease_checkpoint_ms: Option<u64>,
    /// A number that no other run of any member has.
    pub random: u64,
}

impl Options {
    fn election_ticks(&self) -> u32 {
        (self.election_ms / self.heartbeat_ms).max(2)
    }

    fn lessor(&self) -> Lessor {
        let ttl_min = min_ttl_seconds(self.election_ticks(), self.heartbeat_ms);
        Lessor::new(ttl_min, self.lease_checkpoint_ms, &self.limits)
    }
}

/// A member that has its state back.
pub struct Booted {
    /// To be run.
    pub sequencer: Sequencer,
    /// Names the checkpoint, and the next one.
    pub superblock: Superblock,
    /// Who this is in this run.
    pub identity: Identity,
}

/// How far [`restart`] is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Progress {
    /// A block of the checkpoint was read.
    Checkpoint(checkpoint::Progress),
    /// A segment of the log was read.
    Log(wal::recover::Progress),
    /// The log has been read; it ends here.
    LogEnd(Cut),
}

/// Why there is no member to run.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum BootError {
    /// The device failed.
    Disk(DiskError),
    /// There is no state to begin from.
    Checkpoint(CheckpointError),
    /// There is no log to go on with.
    Log(RecoverError),
    /// The log ends before the checkpoint: a segment is missing.
    LogTooShort {
        /// Index of the log's last entry.
        last_index: Index,
        /// Index that the checkpoint covers.
        applied: Index,
    },
}

impl From<DiskError> for BootError {
    fn from(error: DiskError) -> Self {
        Self::Disk(error)
    }
}

impl fmt::Display for BootError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Disk(error) => write!(f, "cannot use the data directory: {error}"),
            Self::Checkpoint(error) => {
                write!(f, "{error}; restore this data directory from a copy")
            }
            Self::Log(RecoverError::Disk(error)) => write!(f, "cannot read the log: {error}"),
            Self::Log(RecoverError::Corrupt(what)) => write!(
                f,
                "the log is damaged, and acknowledged writes are behind the damage: {what}; restore \
                 this data directory from a copy"
            ),
            Self::Log(RecoverError::Foreign { file, found }) => write!(
                f,
                "{file} belongs to member {:x} of cluster {:x}: this is another member's data \
                 directory, or --name, --initial-cluster or --initial-cluster-token have changed",
                found.member, found.cluster
            ),
            Self::Log(RecoverError::Format { file }) => write!(
                f,
                "{file} was written by a version of ringkv with another disk format"
            ),
            Self::LogTooShort {
                last_index,
                applied,
            } => write!(
                f,
                "the log ends at index {last_index}, before the checkpoint at {applied}: a segment \
                 is missing; restore this data directory from a copy"
            ),
        }
    }
}

impl core::error::Error for BootError {}

/// Makes a data dir that holds a new cluster of `members`, of which `conf` vote, before its first
/// entry: a superblock and the checkpoint that it names.
///
/// # Errors
/// Of the device; to be done again from the start.
pub fn bootstrap(
    disk: &mut dyn Disk,
    identity: wal::Identity,
    members: Members,
    conf: Conf,
    options: &Options,
) -> Result<Superblock, DiskError> {
    let superblock = Superblock::create(disk, identity)?;
    let machine = Machine::new(options.limits, options.lessor(), members);
    let mut writer = CheckpointWriter::new(superblock, machine.image(0, conf), &options.limits);
    while writer.step(disk)? {}
    Ok(writer.finish())
}

/// Brings the member back whose data dir has `superblock`.
///
/// # Errors
/// See [`BootError`]; nothing is changed then but the count of starts.
///
/// # Panics
/// When the superblock names no checkpoint: [`bootstrap`] comes first.
pub fn restart(
    disk: &mut dyn Disk,
    mut superblock: Superblock,
    options: &Options,
    on_progress: &mut dyn FnMut(Progress),
) -> Result<Booted, BootError> {
    let limits = options.limits;
    let mut read = |p| on_progress(Progress::Checkpoint(p));
    let loaded = superblock.load(disk, limits, options.lessor(), &mut read);
    let loaded = loaded.map_err(BootError::Checkpoint)?;
    let Loaded {
        mut machine,
        term,
        conf,
    } = loaded.expect("bootstrap has made a checkpoint");
    let applied = machine.applied();
    let member = superblock.identity().member;

    let conf_state = node::conf_state(&conf.voters);
    let mut log = Log::new(Default::default(), conf_state, (applied, term));
    let alone = conf.voters == [member] && conf.learners.is_empty();
    let recover = RecoverOptions {
        limits,
        identity: superblock.identity(),
        incarnation: options.random,
        start_index: applied + 1,
    };
    let mut on_entry = |entry: LogEntry| {
        if alone {
            // What the only voter has flushed is committed: it need not all be in RAM at once.
            replay(&mut machine, &entry);
            log.restart_at((entry.index, entry.term));
        } else {
            log.recover(entry);
        }
    };
    let mut read = |p| on_progress(Progress::Log(p));
    let recovered = wal::recover(disk, &recover, &mut on_entry, &mut read);
    let mut recovered = recovered.map_err(BootError::Log)?;
    if let Some(cut) = recovered.cut {
        on_progress(Progress::LogEnd(cut));
    }
    let last_index = recovered.last_index;
    if last_index < applied {
        return Err(BootError::LogTooShort {
            last_index,
            applied,
        });
    }
    // Nothing before this has changed what a refused start would leave for repair.
    let start = superblock.next_start(disk)?;
    recovered.wal.release(applied);
    let applied = machine.applied();
    machine.store.publish(applied);
    log.set_hard_state(node::hard_state(recovered.hard_state, applied));
    let settings = node::Settings {
        id: member,
        election_ticks: options.election_ticks() as usize,
        seed: options.random,
    };
    let node = Node::new(&settings, log, applied, &limits);
    let identity = Identity { member, start };
    let election_ms = u64::from(options.election_ms);
    let wal = recovered.wal;
    let sequencer = Sequencer::new(node, wal, machine, identity, conf, election_ms, limits);
    Ok(Booted {
        sequencer,
        superblock,
        identity,
    })
}

/// Applies a committed entry for nobody.
fn replay(machine: &mut Machine, entry: &LogEntry) {
    if entry.kind != EntryKind::Normal {
        return machine.skip(entry.index);
    }
    machine
        .apply(entry.index, entry.term, &entry.payload, |_| false)
        .expect("records are checked where they enter");
}

/// Id of the member with these peer URLs in the cluster with this token.
#[must_use]
pub fn member_id(peer_urls: &[String], token: &str) -> MemberId {
    let mut urls: Vec<&str> = peer_urls.iter().map(String::as_str).collect();
    urls.sort_unstable();
    first_8_bytes(&[urls.concat().as_bytes(), token.as_bytes()].concat())
}

/// Id of the cluster of these members.
#[must_use]
pub fn cluster_id(members: &[MemberId]) -> u64 {
    let mut ids = members.to_vec();
    ids.sort_unstable();
    first_8_bytes(
        &ids.iter()
            .flat_map(|id| id.to_be_bytes())
            .collect::<Vec<u8>>(),
    )
}

fn first_8_bytes(bytes: &[u8]) -> u64 {
    let digest = Sha1::digest(bytes);
    u64::from_be_bytes(digest[..8].try_into().expect("20 bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_etcds() {
        // What etcd 3.7.1 started with its defaults reports (`etcdctl endpoint status -w json`).
        let member = member_id(&["http://localhost:2380".to_owned()], "etcd-cluster");
        assert_eq!(member, 0x8e9e_05c5_2164_694d);
        assert_eq!(cluster_id(&[member]), 0xcdf8_1819_4e3a_8c32);
    }
}
