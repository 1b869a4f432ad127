//! A disk in memory that fails as disks do, by seed.
//!
//! Owned by a simulation or a test; part of the crate because `raft`'s and `tests`' simulators use
//! it too. It keeps what is durable apart from what is merely written: [`SimDisk::crash`] drops,
//! keeps or tears each write that was not flushed, sector by sector, and keeps a prefix of the
//! directory operations that were not flushed. The hot path's frames are submitted, then completed
//! one by one in an order the seed chooses; a completed frame is durable.
//!
//! Every fault has its switch in [`Faults`]; with [`Faults::NONE`] the disk is honest. `lost` and
//! `skip_flush` break promises that no recovery can survive: they exist to prove that checkers
//! notice.
//!
//! Not here: time (the caller decides when to complete), and reads that lie (use
//! [`SimDisk::flip_bit`]).

use std::collections::BTreeMap;

use super::{AlignedBuf, Disk, DiskError, DiskErrorKind, DiskOp, FrameId, WriteFrame};
use crate::limits::format::BLOCK_BYTES;

/// The unit that a device writes whole or not at all.
pub const SECTOR_BYTES: usize = 512;

/// A small generator (splitmix64) for simulations; the seed comes from the caller.
#[derive(Clone, Debug)]
pub struct Prng(u64);

impl Prng {
    /// A generator that depends on `seed` only.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next 64 bits.
    pub const fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`.
    ///
    /// # Panics
    /// If `bound` is zero.
    pub fn below(&mut self, bound: usize) -> usize {
        assert!(bound > 0);
        // The remainder is below a usize; its slight bias does not matter here.
        (self.next_u64() % bound as u64) as usize
    }

    /// True `per_mille` times in a thousand.
    pub fn chance(&mut self, per_mille: u16) -> bool {
        self.below(1000) < usize::from(per_mille)
    }
}

/// Which faults may happen. Rates are per thousand operations.
#[derive(Clone, Copy, Debug)]
pub struct Faults {
    /// A crash may leave a prefix of an unflushed write's sectors.
    pub torn_prefix: bool,
    /// A crash may leave any subset of an unflushed write's sectors.
    pub torn_sectors: bool,
    /// Frames complete in any order, not as submitted.
    pub reorder: bool,
    /// A frame lands in another place of the same file and is reported durable.
    pub misdirected: u16,
    /// A frame is reported durable and is nowhere.
    pub lost: u16,
    /// A frame fails with EIO; it may be there in part.
    pub io_error: u16,
    /// Bytes that all files together may have.
    pub capacity_bytes: u64,
    /// Blocking operations that still succeed; then all fail with EIO until [`SimDisk::crash`].
    pub operations_left: u32,
    /// Planted bug: completions and `flush` promise durability without giving it.
    pub skip_flush: bool,
}

impl Faults {
    /// An honest disk of any size, on which a crash keeps or drops whole unflushed writes.
    pub const NONE: Self = Self {
        torn_prefix: false,
        torn_sectors: false,
        reorder: false,
        misdirected: 0,
        lost: 0,
        io_error: 0,
        capacity_bytes: u64::MAX,
        operations_left: u32::MAX,
        skip_flush: false,
    };

    /// Everything that a sound device and a power cut may do.
    pub const POWER_CUTS: Self = Self {
        torn_prefix: true,
        torn_sectors: true,
        reorder: true,
        ..Self::NONE
    };
}

/// A write that a crash may drop, keep or tear.
struct Unflushed {
    offset: usize,
    bytes: Vec<u8>,
}

/// Contents of a file, whatever its name.
#[derive(Default)]
struct File {
    /// What reads see.
    current: Vec<u8>,
    /// What a crash leaves, before the unflushed writes have their say.
    durable: Vec<u8>,
    unflushed: Vec<Unflushed>,
}

/// A change of a directory that is not durable yet.
enum NameChange {
    Bind(String, usize),
    Unbind(String),
}

/// What became of a submitted frame.
#[derive(Debug)]
pub struct Completion {
    /// Which frame.
    pub id: FrameId,
    /// Its buffer, back.
    pub buf: AlignedBuf,
    /// Durable, or the failure at which a real server stops.
    pub result: Result<(), DiskError>,
}

/// The simulated disk.
pub struct SimDisk {
    rng: Prng,
    faults: Faults,
    files: Vec<File>,
    /// Names as seen now.
    names: BTreeMap<String, usize>,
    durable_names: BTreeMap<String, usize>,
    name_changes: Vec<NameChange>,
    in_flight: Vec<WriteFrame>,
}

impl SimDisk {
    /// An empty disk.
    #[must_use]
    pub const fn new(seed: u64, faults: Faults) -> Self {
        Self {
            rng: Prng::new(seed),
            faults,
            files: Vec::new(),
            names: BTreeMap::new(),
            durable_names: BTreeMap::new(),
            name_changes: Vec::new(),
            in_flight: Vec::new(),
        }
    }

    /// The switches, to be thrown at any time.
    pub const fn faults_mut(&mut self) -> &mut Faults {
        &mut self.faults
    }

    /// Takes a frame to be written and flushed.
    pub fn submit(&mut self, frame: WriteFrame) {
        self.in_flight.push(frame);
    }

    /// Frames submitted and not completed.
    #[must_use]
    pub const fn in_flight_count(&self) -> usize {
        self.in_flight.len()
    }

    /// Completes one frame in flight, if there is one.
    pub fn complete(&mut self) -> Option<Completion> {
        if self.in_flight.is_empty() {
            return None;
        }
        let nth = if self.faults.reorder {
            self.rng.below(self.in_flight.len())
        } else {
            0
        };
        let frame = self.in_flight.remove(nth);
        let name = frame.segment.name();
        let file = self
            .find(&name, DiskOp::Write)
            .expect("frames go to files that are there");
        let mut offset = usize::try_from(frame.offset).expect("a simulated file fits memory");
        if self.rng.chance(self.faults.io_error) {
            let unflushed = Unflushed {
                offset,
                bytes: frame.buf.as_slice().to_vec(),
            };
            self.files[file].unflushed.push(unflushed);
            let result = Err(DiskError::new(DiskErrorKind::Io(5), DiskOp::Write, &name));
            return Some(Completion {
                id: frame.id,
                buf: frame.buf,
                result,
            });
        }
        if self.rng.chance(self.faults.misdirected) {
            let room = self.files[file].current.len() - frame.buf.len();
            offset = self.rng.below(room / BLOCK_BYTES + 1) * BLOCK_BYTES;
        }
        if !self.rng.chance(self.faults.lost) {
            let bytes = frame.buf.as_slice();
            overwrite(&mut self.files[file].current, offset, bytes);
            if self.faults.skip_flush {
                let unflushed = Unflushed {
                    offset,
                    bytes: bytes.to_vec(),
                };
                self.files[file].unflushed.push(unflushed);
            } else {
                overwrite(&mut self.files[file].durable, offset, bytes);
            }
        }
        Some(Completion {
            id: frame.id,
            buf: frame.buf,
            result: Ok(()),
        })
    }

    /// Power fails and comes back: what was not flushed is lost, kept or torn, by seed.
    pub fn crash(&mut self) {
        self.faults.operations_left = u32::MAX;
        for frame in core::mem::take(&mut self.in_flight) {
            let file = self.names[&frame.segment.name()];
            let offset = usize::try_from(frame.offset).expect("a simulated file fits memory");
            let bytes = frame.buf.as_slice().to_vec();
            self.files[file].unflushed.push(Unflushed { offset, bytes });
        }
        let kept = self.rng.below(self.name_changes.len() + 1);
        for change in self.name_changes.drain(..).take(kept) {
            match change {
                NameChange::Bind(name, file) => self.durable_names.insert(name, file),
                NameChange::Unbind(name) => self.durable_names.remove(&name),
            };
        }
        self.names.clone_from(&self.durable_names);
        let Self {
            rng, faults, files, ..
        } = self;
        for file in files {
            // A length that was not flushed may be any between the old and the new one.
            let grown = file.current.len().saturating_sub(file.durable.len());
            if grown > 0 {
                let kept = rng.below(grown / BLOCK_BYTES + 1) * BLOCK_BYTES;
                file.durable.resize(file.durable.len() + kept, 0);
            }
            for write in file.unflushed.drain(..) {
                keep_some(rng, faults, &mut file.durable, &write);
            }
            file.current.clone_from(&file.durable);
        }
    }

    /// The process dies and the machine lives on: what was written stays to be read, and no more
    /// durable than it was; each frame in flight lands or does not, by seed.
    pub fn kill(&mut self) {
        self.faults.operations_left = u32::MAX;
        for frame in core::mem::take(&mut self.in_flight) {
            if self.rng.chance(500) {
                let file = &mut self.files[self.names[&frame.segment.name()]];
                let offset = usize::try_from(frame.offset).expect("a simulated file fits memory");
                let bytes = frame.buf.as_slice().to_vec();
                overwrite(&mut file.current, offset, &bytes);
                file.unflushed.push(Unflushed { offset, bytes });
            }
        }
    }

    /// Flips one bit at rest: bit `bit` (0..8) of the byte at `offset`.
    ///
    /// # Panics
    /// If there is no such byte.
    pub fn flip_bit(&mut self, name: &str, offset: u64, bit: u8) {
        assert!(bit < 8);
        let offset = usize::try_from(offset).expect("a simulated file fits memory");
        let file = &mut self.files[self.names[name]];
        file.current[offset] ^= 1 << bit;
        file.durable[offset] ^= 1 << bit;
    }

    /// The bytes of a file as reads see them, for checkers.
    ///
    /// # Panics
    /// If there is no such file.
    #[must_use]
    pub fn contents(&self, name: &str) -> &[u8] {
        &self.files[self.names[name]].current
    }

    /// Counts a blocking operation, which may find the power gone.
    fn begin(&mut self, op: DiskOp, name: &str) -> Result<(), DiskError> {
        match self.faults.operations_left {
            0 => Err(DiskError::new(DiskErrorKind::Io(5), op, name)),
            u32::MAX => Ok(()),
            left => {
                self.faults.operations_left = left - 1;
                Ok(())
            }
        }
    }

    fn find(&self, name: &str, op: DiskOp) -> Result<usize, DiskError> {
        let file = self.names.get(name).copied();
        file.ok_or_else(|| DiskError::new(DiskErrorKind::NotFound, op, name))
    }

    fn bind(&mut self, name: &str, file: usize) {
        self.names.insert(name.to_owned(), file);
        self.name_changes
            .push(NameChange::Bind(name.to_owned(), file));
    }

    fn unbind(&mut self, name: &str) {
        self.names.remove(name);
        self.name_changes.push(NameChange::Unbind(name.to_owned()));
    }

    fn reserve(&self, more: usize, op: DiskOp, name: &str) -> Result<(), DiskError> {
        let used: usize = self
            .names
            .values()
            .map(|&file| self.files[file].current.len())
            .sum();
        if (used + more) as u64 > self.faults.capacity_bytes {
            return Err(DiskError::new(DiskErrorKind::NoSpace, op, name));
        }
        Ok(())
    }
}

/// What a crash leaves of one unflushed write. It never makes the file longer.
fn keep_some(rng: &mut Prng, faults: &Faults, durable: &mut [u8], write: &Unflushed) {
    let sectors = write.bytes.len() / SECTOR_BYTES;
    let outcome = rng.below(4);
    let prefix = rng.below(sectors + 1);
    for (nth, sector) in write.bytes.chunks_exact(SECTOR_BYTES).enumerate() {
        let keep = match outcome {
            0 => false,
            2 if faults.torn_prefix => nth < prefix,
            3 if faults.torn_sectors => rng.below(2) == 0,
            _ => true,
        };
        let at = write.offset + nth * SECTOR_BYTES;
        if keep && at + SECTOR_BYTES <= durable.len() {
            durable[at..at + SECTOR_BYTES].copy_from_slice(sector);
        }
    }
}

fn overwrite(file: &mut Vec<u8>, offset: usize, bytes: &[u8]) {
    let end = offset + bytes.len();
    if file.len() < end {
        file.resize(end, 0);
    }
    file[offset..end].copy_from_slice(bytes);
}

impl Disk for SimDisk {
    fn list(&mut self, dir: &str) -> Result<Vec<String>, DiskError> {
        self.begin(DiskOp::List, dir)?;
        let within = |name: &&String| match name.rsplit_once('/') {
            Some((parent, _)) => parent == dir,
            None => dir.is_empty(),
        };
        Ok(self.names.keys().filter(within).cloned().collect())
    }

    fn ensure_dir(&mut self, _dir: &str) -> Result<(), DiskError> {
        Ok(())
    }

    fn create(&mut self, file: &str, size: u64) -> Result<(), DiskError> {
        self.begin(DiskOp::Create, file)?;
        if self.names.contains_key(file) {
            return Err(DiskError::new(DiskErrorKind::Exists, DiskOp::Create, file));
        }
        let size = usize::try_from(size).expect("a simulated file fits memory");
        let room = self.reserve(size, DiskOp::Create, file);
        self.files.push(File::default());
        self.bind(file, self.files.len() - 1);
        room?;
        self.files.last_mut().expect("just pushed").current = vec![0; size];
        Ok(())
    }

    fn read_at(&mut self, file: &str, offset: u64, buf: &mut [u8]) -> Result<(), DiskError> {
        self.begin(DiskOp::Read, file)?;
        assert!(offset.is_multiple_of(BLOCK_BYTES as u64));
        assert!(buf.len().is_multiple_of(BLOCK_BYTES));
        assert!(buf.as_ptr().addr().is_multiple_of(BLOCK_BYTES));
        let contents = &self.files[self.find(file, DiskOp::Read)?].current;
        let start = usize::try_from(offset).expect("a simulated file fits memory");
        let Some(source) = contents.get(start..start + buf.len()) else {
            return Err(DiskError::new(
                DiskErrorKind::UnexpectedEnd,
                DiskOp::Read,
                file,
            ));
        };
        buf.copy_from_slice(source);
        Ok(())
    }

    fn write_at(&mut self, file: &str, offset: u64, bytes: &[u8]) -> Result<(), DiskError> {
        self.begin(DiskOp::Write, file)?;
        assert!(offset.is_multiple_of(BLOCK_BYTES as u64));
        assert!(bytes.len().is_multiple_of(BLOCK_BYTES));
        assert!(bytes.as_ptr().addr().is_multiple_of(BLOCK_BYTES));
        let id = self.find(file, DiskOp::Write)?;
        let offset = usize::try_from(offset).expect("a simulated file fits memory");
        let grown = (offset + bytes.len()).saturating_sub(self.files[id].current.len());
        self.reserve(grown, DiskOp::Write, file)?;
        overwrite(&mut self.files[id].current, offset, bytes);
        self.files[id].unflushed.push(Unflushed {
            offset,
            bytes: bytes.to_vec(),
        });
        Ok(())
    }

    fn flush(&mut self, file: &str) -> Result<(), DiskError> {
        self.begin(DiskOp::Flush, file)?;
        let id = self.find(file, DiskOp::Flush)?;
        if !self.faults.skip_flush {
            let file = &mut self.files[id];
            file.durable.clone_from(&file.current);
            file.unflushed.clear();
        }
        Ok(())
    }

    fn flush_dir(&mut self, dir: &str) -> Result<(), DiskError> {
        self.begin(DiskOp::Flush, dir)?;
        if !self.faults.skip_flush {
            self.durable_names.clone_from(&self.names);
            self.name_changes.clear();
        }
        Ok(())
    }

    fn rename(&mut self, source: &str, target: &str) -> Result<(), DiskError> {
        self.begin(DiskOp::Rename, source)?;
        let file = self.find(source, DiskOp::Rename)?;
        // One change of the directory in a journalled file system; here the new name appears first.
        self.bind(target, file);
        self.unbind(source);
        Ok(())
    }

    fn remove(&mut self, file: &str) -> Result<(), DiskError> {
        self.begin(DiskOp::Remove, file)?;
        self.find(file, DiskOp::Remove)?;
        self.unbind(file);
        Ok(())
    }

    fn len(&mut self, file: &str) -> Result<u64, DiskError> {
        self.begin(DiskOp::Length, file)?;
        Ok(self.files[self.find(file, DiskOp::Length)?].current.len() as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::SegmentId;

    fn block(byte: u8) -> AlignedBuf {
        let mut buf = AlignedBuf::zeroed(BLOCK_BYTES);
        buf.as_mut_slice().fill(byte);
        buf
    }

    fn disk_with_file(seed: u64, faults: Faults) -> (SimDisk, String) {
        let mut disk = SimDisk::new(seed, faults);
        let name = SegmentId(1).name();
        disk.create(&name, 4 * BLOCK_BYTES as u64).unwrap();
        disk.flush(&name).unwrap();
        disk.flush_dir("wal").unwrap();
        (disk, name)
    }

    fn frame(id: u64, nth_block: u64) -> WriteFrame {
        let offset = nth_block * BLOCK_BYTES as u64;
        let buf = block(id as u8);
        WriteFrame {
            id: FrameId(id),
            segment: SegmentId(1),
            offset,
            buf,
            lsn: 0,
            lsn_end: 4096,
        }
    }

    #[test]
    fn flushed_bytes_survive_every_crash_and_unflushed_ones_only_some() {
        let mut outcomes = [0; 3];
        for seed in 0..200 {
            let (mut disk, name) = disk_with_file(seed, Faults::POWER_CUTS);
            disk.write_at(&name, 0, block(1).as_slice()).unwrap();
            disk.flush(&name).unwrap();
            disk.write_at(&name, 4096, block(2).as_slice()).unwrap();
            disk.crash();
            assert!(disk.contents(&name)[..4096].iter().all(|&b| b == 1));
            let kept = disk.contents(&name)[4096..8192]
                .iter()
                .filter(|&&b| b == 2)
                .count();
            outcomes[usize::from(kept > 0) + usize::from(kept == 4096)] += 1;
        }
        assert!(outcomes.iter().all(|&count| count > 10), "{outcomes:?}");
    }

    #[test]
    fn completed_frames_are_durable_and_complete_out_of_order() {
        let mut reordered = 0;
        for seed in 0..100 {
            let (mut disk, name) = disk_with_file(seed, Faults::POWER_CUTS);
            for id in 1..4 {
                disk.submit(frame(id, id));
            }
            let done = disk.complete().unwrap();
            done.result.unwrap();
            reordered += usize::from(done.id != FrameId(1));
            disk.crash();
            assert_eq!(disk.in_flight_count(), 0);
            let at = done.id.0 as usize * BLOCK_BYTES;
            assert_eq!(
                &disk.contents(&name)[at..at + BLOCK_BYTES],
                done.buf.as_slice()
            );
        }
        assert!(reordered > 20);
    }

    #[test]
    fn names_need_a_directory_flush() {
        let mut lost = 0;
        for seed in 0..50 {
            let (mut disk, name) = disk_with_file(seed, Faults::NONE);
            disk.create("wal/b.new", 4096).unwrap();
            disk.flush("wal/b.new").unwrap();
            disk.rename("wal/b.new", "wal/b").unwrap();
            disk.crash();
            let names = disk.list("wal").unwrap();
            assert!(names.contains(&name));
            lost += usize::from(names.len() == 1);
        }
        assert!(lost > 5);
    }

    #[test]
    fn lies_and_failures_are_seen() {
        let (mut disk, name) = disk_with_file(
            1,
            Faults {
                lost: 1000,
                ..Faults::NONE
            },
        );
        disk.submit(frame(9, 1));
        disk.complete().unwrap().result.unwrap();
        assert!(disk.contents(&name).iter().all(|&b| b == 0));

        *disk.faults_mut() = Faults {
            io_error: 1000,
            ..Faults::NONE
        };
        disk.submit(frame(9, 1));
        let error = disk.complete().unwrap().result.unwrap_err();
        assert_eq!(error.kind, DiskErrorKind::Io(5));

        *disk.faults_mut() = Faults {
            capacity_bytes: 20000,
            ..Faults::NONE
        };
        let error = disk.create("wal/full", 4096).unwrap_err();
        assert_eq!(error.kind, DiskErrorKind::NoSpace);
    }
}
