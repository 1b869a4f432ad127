//! Every bound of the server, with its unit (I11): what grows is refused beyond a number from here.
//!
//! [`Limits::PRODUCTION`] is what the server runs with; [`Limits::SIM`] is its tiny twin, so that
//! every full queue and wrap-around happens in each simulated run. Constants of the disk *format*
//! (they corrupt data when changed) are in [`format`].

/// Bounds that may differ between production and simulation.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// WAL segment file, bytes; a multiple of [`format::BLOCK_BYTES`].
    pub segment_bytes: u64,
    /// Largest WAL frame, bytes, header and padding included.
    pub frame_bytes_max: usize,
    /// WAL frames submitted and not yet flushed.
    pub frames_in_flight_max: usize,
    /// Largest batch that a shard hands to the sequencer, bytes.
    pub batch_bytes_max: usize,
    /// Largest batch that a shard hands to the sequencer, records.
    pub batch_records_max: usize,
    /// Batches waiting in one shard's ring to the sequencer.
    pub ring_batches_max: usize,
    /// Requests of one shard that await their result.
    pub shard_requests_max: usize,
    /// Slack over `--max-request-bytes` that gRPC framing may use, bytes (etcd: 512 KiB).
    pub grpc_overhead_bytes: usize,
    /// Revisions in one RevTable chunk.
    pub revtable_chunk_revisions: usize,
    /// Keys a reader visits under one epoch pin.
    pub pin_keys_max: usize,
    /// Largest raft append message, bytes.
    pub raft_message_bytes_max: u64,
    /// Raft append messages in flight to one peer.
    pub raft_inflight_max: usize,
    /// Raft entries kept in RAM, bytes; older ones are read from the WAL.
    pub raft_tail_bytes_max: usize,
    /// Entries proposed and not committed, bytes; beyond it batches are refused.
    pub raft_uncommitted_bytes_max: u64,
    /// Batches that wait for room in the open frame, bytes; beyond it batches are refused.
    pub pending_bytes_max: usize,
    /// Committed entries applied in one step, bytes.
    pub apply_bytes_max: u64,
    /// Watch events sent in one response batch, revisions (etcd: 1000).
    pub watch_batch_revisions_max: usize,
    /// Keys that one slice of background work (compaction, expiry) may touch between batches.
    pub slice_keys_max: usize,
    /// Leases whose expiry is proposed in one round (etcd: 500 each 500 ms).
    pub lease_revokes_per_round_max: usize,
    /// A checkpoint is due when the log since the last one is at least this long, bytes.
    pub checkpoint_log_bytes_min: u64,
    /// Leases that a new leader lets expire in one second (etcd: 750).
    pub lease_expiries_per_second_max: u64,
    /// Remaining TTLs in one checkpoint entry (etcd: 1000).
    pub lease_checkpoints_per_entry_max: usize,
    /// Responses queued on one watch stream, bytes; its watchers wait beyond it. One revision may
    /// overshoot. Catch-up responses grow to this, and etcd's tests want 10 MiB in one.
    pub watch_stream_bytes_max: usize,
    /// Responses queued on all watch streams of a shard, bytes; beyond it only streams with
    /// nothing queued get more.
    pub watch_shard_bytes_max: usize,
    /// Watchers on one shard; more are refused.
    pub watchers_per_shard_max: usize,
    /// Free WAL segment files kept for recycling; more are removed.
    pub wal_free_segments_max: usize,
    /// Largest block of a checkpoint file, bytes: one write, one read; a multiple of
    /// [`format::BLOCK_BYTES`].
    pub checkpoint_block_bytes: usize,
}

impl Limits {
    /// What the server runs with.
    pub const PRODUCTION: Self = Self {
        segment_bytes: 64 << 20,
        frame_bytes_max: 4 << 20,
        frames_in_flight_max: 2,
        batch_bytes_max: 2 << 20,
        batch_records_max: 1024,
        ring_batches_max: 64,
        shard_requests_max: 64 << 10,
        grpc_overhead_bytes: 512 << 10,
        revtable_chunk_revisions: 4096,
        pin_keys_max: 256,
        raft_message_bytes_max: 1 << 20,
        raft_inflight_max: 128,
        raft_tail_bytes_max: 64 << 20,
        raft_uncommitted_bytes_max: 256 << 20,
        pending_bytes_max: 256 << 20,
        apply_bytes_max: 16 << 20,
        watch_batch_revisions_max: 1000,
        slice_keys_max: 512,
        lease_revokes_per_round_max: 500,
        checkpoint_log_bytes_min: 256 << 20,
        lease_expiries_per_second_max: 750,
        lease_checkpoints_per_entry_max: 1000,
        watch_stream_bytes_max: 16 << 20,
        watch_shard_bytes_max: 256 << 20,
        watchers_per_shard_max: 1 << 20,
        wal_free_segments_max: 4,
        checkpoint_block_bytes: 1 << 20,
    };

    /// The tiny twin for simulation.
    pub const SIM: Self = Self {
        segment_bytes: 64 << 10,
        frame_bytes_max: 16 << 10,
        frames_in_flight_max: 2,
        batch_bytes_max: 4 << 10,
        batch_records_max: 8,
        ring_batches_max: 2,
        shard_requests_max: 64,
        grpc_overhead_bytes: 1 << 10,
        revtable_chunk_revisions: 8,
        pin_keys_max: 4,
        raft_message_bytes_max: 8 << 10,
        raft_inflight_max: 4,
        raft_tail_bytes_max: 16 << 10,
        raft_uncommitted_bytes_max: 64 << 10,
        pending_bytes_max: 8 << 10,
        apply_bytes_max: 4 << 10,
        watch_batch_revisions_max: 4,
        slice_keys_max: 4,
        lease_revokes_per_round_max: 3,
        checkpoint_log_bytes_min: 128 << 10,
        lease_expiries_per_second_max: 5,
        lease_checkpoints_per_entry_max: 2,
        watch_stream_bytes_max: 1 << 10,
        watch_shard_bytes_max: 4 << 10,
        watchers_per_shard_max: 32,
        wal_free_segments_max: 1,
        checkpoint_block_bytes: format::BLOCK_BYTES,
    };
}

const _: () = {
    let all = [Limits::PRODUCTION, Limits::SIM];
    let mut i = 0;
    while i < all.len() {
        let l = all[i];
        assert!(l.segment_bytes.is_multiple_of(format::BLOCK_BYTES as u64));
        // A segment holds its header block, at least two of the largest frames, and a seal.
        assert!(l.segment_bytes >= 2 * l.frame_bytes_max as u64 + 2 * format::BLOCK_BYTES as u64);
        // Any batch fits one frame, with room for the frame header.
        assert!(l.batch_bytes_max + format::BLOCK_BYTES <= l.frame_bytes_max);
        assert!(l.frames_in_flight_max >= 1);
        assert!(l.raft_tail_bytes_max >= l.frame_bytes_max);
        assert!(l.checkpoint_block_bytes > 0);
        assert!(l.checkpoint_block_bytes.is_multiple_of(format::BLOCK_BYTES));
        i += 1;
    }
};

/// Constants of the disk format.
pub mod format {
    /// Every device write starts at, and is long, a multiple of this. Covers the logical block of
    /// all devices in use (512 or 4096 B) and the page of the page cache.
    pub const BLOCK_BYTES: usize = 4096;
    /// Version of segment, frame, record and checkpoint layouts together.
    pub const VERSION: u32 = 1;
}
