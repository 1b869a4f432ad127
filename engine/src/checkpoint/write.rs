//! Writes a checkpoint in steps, each of at most one block or one flush.

use super::block::{BlockKind, HEADER_BYTES, Place};
use super::superblock::{Root, Superblock};
use super::{CheckpointImage, DIR, file_name, item};
use crate::io::{AlignedBuf, Disk, DiskError};
use crate::limits::Limits;
use crate::types::{Index, Revision};

/// What the next step does, in this order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    Create,
    State,
    Revisions,
    Footer,
    Flush,
    FlushName,
    /// From the end of this one on the new checkpoint holds.
    RootFirst,
    RootLast,
    RemoveOld,
    Done,
}

/// A checkpoint on its way; owned by the side thread. Dropped midway it leaves a file that the next
/// start removes, and the old checkpoint holds.
pub struct CheckpointWriter {
    superblock: Superblock,
    image: CheckpointImage,
    stage: Stage,
    file: String,
    block_bytes: usize,
    /// Where the next block goes.
    place: Place,
    /// The next block, as far as it is filled.
    buf: AlignedBuf,
    /// Next item of the state.
    nth: usize,
    /// Next revision.
    next: Revision,
    /// Bytes of the next item that are in blocks already.
    part: usize,
    items: u64,
    revisions: u64,
    #[cfg(test)]
    pub(super) plant_root_first: bool,
}

impl CheckpointWriter {
    /// Begins to write `image` as the successor of what `superblock` names.
    #[must_use]
    pub fn new(superblock: Superblock, image: CheckpointImage, limits: &Limits) -> Self {
        let id = superblock.root().map_or(1, |root| root.id + 1);
        let place = Place::first(superblock.identity(), id);
        Self {
            superblock,
            image,
            stage: Stage::Create,
            file: file_name(id),
            block_bytes: limits.checkpoint_block_bytes,
            place,
            buf: AlignedBuf::new(limits.checkpoint_block_bytes),
            nth: 0,
            next: Revision::ZERO,
            part: 0,
            items: 0,
            revisions: 0,
            #[cfg(test)]
            plant_root_first: false,
        }
    }

    /// Log index that this checkpoint covers: the log up to there may go when it is done.
    #[must_use]
    pub fn applied(&self) -> Index {
        self.image.applied
    }

    /// Does a bounded piece of the work; true while there is more.
    ///
    /// # Errors
    /// Of the device, after which the writer is of no more use: a failed write or flush is fatal.
    pub fn step(&mut self, disk: &mut dyn Disk) -> Result<bool, DiskError> {
        let done = match self.stage {
            Stage::Create => disk.create(&self.file, 0).map(|()| true)?,
            Stage::State => self.step_blocks(disk, BlockKind::State)?,
            Stage::Revisions => self.step_blocks(disk, BlockKind::Revisions)?,
            Stage::Footer => self.step_blocks(disk, BlockKind::Footer)?,
            Stage::Flush => disk.flush(&self.file).map(|()| true)?,
            Stage::FlushName => disk.flush_dir(DIR).map(|()| true)?,
            Stage::RootFirst => self.successor().write_first_copies(disk).map(|()| true)?,
            Stage::RootLast => {
                self.superblock = self.successor();
                self.superblock.write_last_copies(disk).map(|()| true)?
            }
            Stage::RemoveOld => self.remove_old(disk).map(|()| true)?,
            Stage::Done => false,
        };
        if done {
            self.stage = self.next_stage();
        }
        Ok(self.stage != Stage::Done)
    }

    /// The superblock, naming the new checkpoint.
    ///
    /// # Panics
    /// When [`Self::step`] still has more to do.
    #[must_use]
    pub fn finish(self) -> Superblock {
        assert_eq!(self.stage, Stage::Done);
        self.superblock
    }

    fn next_stage(&self) -> Stage {
        #[cfg(test)]
        if self.plant_root_first {
            match self.stage {
                Stage::Footer => return Stage::RootFirst,
                Stage::RootLast => return Stage::Flush,
                Stage::FlushName => return Stage::RemoveOld,
                _ => {}
            }
        }
        match self.stage {
            Stage::Create => Stage::State,
            Stage::State => Stage::Revisions,
            Stage::Revisions => Stage::Footer,
            Stage::Footer => Stage::Flush,
            Stage::Flush => Stage::FlushName,
            Stage::FlushName => Stage::RootFirst,
            Stage::RootFirst => Stage::RootLast,
            Stage::RootLast => Stage::RemoveOld,
            Stage::RemoveOld | Stage::Done => Stage::Done,
        }
    }

    fn successor(&self) -> Superblock {
        self.superblock.with_root(Root {
            id: self.place.id,
            file_bytes: self.place.offset,
            applied: self.image.applied,
            term: self.image.term,
            block_bytes: u32::try_from(self.block_bytes).expect("a block is far below 4 GiB"),
            last: self.place.previous,
        })
    }

    fn remove_old(&self, disk: &mut dyn Disk) -> Result<(), DiskError> {
        // Not one name but all others: an attempt that failed may have left one, too.
        for name in disk.list(DIR)? {
            if name != self.file {
                disk.remove(&name)?;
            }
        }
        disk.flush_dir(DIR)
    }

    /// Fills and writes one block; true when it was the last of its kind. There may be none.
    fn step_blocks(&mut self, disk: &mut dyn Disk, kind: BlockKind) -> Result<bool, DiskError> {
        self.buf.clear();
        self.buf.extend_zeroed(HEADER_BYTES);
        let last = match kind {
            BlockKind::State => self.fill_state(),
            BlockKind::Revisions => self.fill_revisions(),
            BlockKind::Footer => {
                let end = item::end(self.revisions, self.items);
                let whole = pack(&mut self.buf, &mut self.part, &[&end]);
                assert!(whole, "a block holds the footer");
                true
            }
        };
        let payload_bytes = self.buf.len() - HEADER_BYTES;
        if payload_bytes == 0 {
            return Ok(last);
        }
        self.buf.pad_to_block();
        let checksum = self
            .place
            .seal(kind, payload_bytes, self.buf.as_mut_slice());
        disk.write_at(&self.file, self.place.offset, self.buf.as_slice())?;
        self.place = self.place.next(self.buf.len(), checksum);
        Ok(last)
    }

    fn fill_state(&mut self) -> bool {
        while let Some(item) = item::of_state(&self.image, self.nth) {
            if !pack(&mut self.buf, &mut self.part, &[&item]) {
                return false;
            }
            self.nth += 1;
            self.items += 1;
        }
        true
    }

    fn fill_revisions(&mut self) -> bool {
        for record in self.image.revs.scan_to(self.next, self.image.revision) {
            // Again from here if the block ends within it.
            self.next = record.revision;
            let head = item::revision_head(&record);
            if !pack(&mut self.buf, &mut self.part, &[&head, record.kv]) {
                return false;
            }
            self.next.sub += 1;
            self.items += 1;
            self.revisions += 1;
        }
        true
    }
}

/// Appends what is left of an item beyond its first `part` bytes, as far as it fits; whether all of
/// it is in blocks now.
fn pack(buf: &mut AlignedBuf, part: &mut usize, item: &[&[u8]]) -> bool {
    let mut skip = *part;
    for piece in item {
        let rest = &piece[skip.min(piece.len())..];
        skip = skip.saturating_sub(piece.len());
        let fits = rest.len().min(buf.capacity() - buf.len());
        buf.extend_from_slice(&rest[..fits]);
        *part += fits;
        if fits < rest.len() {
            return false;
        }
    }
    *part = 0;
    true
}
