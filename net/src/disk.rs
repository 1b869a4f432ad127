//! The devices: blocking files for boot and background work, O_DIRECT frames for the hot path.
//!
//! [`FsDisk`] implements the engine's [`Disk`] with plain files below the data dir; it runs on the
//! main thread at boot and on side threads later, never on an executor. [`FrameWriter`] lives on
//! the sequencer's executor and writes WAL frames through glommio, durably. Neither repeats a
//! failed write or flush: what a device holds after one is unknown (Rebello et al., ATC'20).

use core::cell::RefCell;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant};

use glommio::io::{DmaFile, OpenOptions as DmaOptions};
use ringkv_engine::io::{Disk, DiskError, DiskErrorKind, DiskOp, SegmentId, WriteFrame};
use ringkv_engine::limits::format::BLOCK_BYTES;
use rustix::fs::OFlags;

/// Zeros are written in pieces of this, bytes.
const ZERO_PIECE_BYTES: usize = 1 << 20;
/// Segment files kept open: the one being filled and the one before it, whose frames may fly.
const OPEN_FILES_MAX: usize = 3;
/// Writes with which a sync mode is measured.
const PROBE_WRITES: usize = 12;

/// Files of one data dir, blocking.
#[derive(Clone, Debug)]
pub struct FsDisk {
    root: PathBuf,
}

impl FsDisk {
    /// Files below `root`.
    #[must_use]
    pub fn new(root: &Path) -> Self {
        Self {
            root: root.to_owned(),
        }
    }

    fn open(&self, op: DiskOp, file: &str) -> Result<File, DiskError> {
        let path = self.root.join(file);
        let opened = OpenOptions::new().read(true).write(true).open(path);
        opened.map_err(|e| failed(&e, op, file))
    }
}

fn failed(error: &io::Error, op: DiskOp, file: &str) -> DiskError {
    let kind = match error.kind() {
        io::ErrorKind::NotFound => DiskErrorKind::NotFound,
        io::ErrorKind::AlreadyExists => DiskErrorKind::Exists,
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => DiskErrorKind::NoSpace,
        io::ErrorKind::UnexpectedEof => DiskErrorKind::UnexpectedEnd,
        _ => DiskErrorKind::Io(error.raw_os_error().unwrap_or(0)),
    };
    DiskError::new(kind, op, file)
}

impl Disk for FsDisk {
    fn list(&mut self, dir: &str) -> Result<Vec<String>, DiskError> {
        let entries = match fs::read_dir(self.root.join(dir)) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(|e| failed(&e, DiskOp::List, dir))?,
        };
        let mut names = Vec::new();
        for entry in entries {
            let entry = entry.map_err(|e| failed(&e, DiskOp::List, dir))?;
            // A name that is no text is none of ours.
            let Ok(name) = entry.file_name().into_string() else {
                continue;
            };
            names.push(if dir.is_empty() {
                name
            } else {
                format!("{dir}/{name}")
            });
        }
        names.sort_unstable();
        Ok(names)
    }

    fn ensure_dir(&mut self, dir: &str) -> Result<(), DiskError> {
        fs::create_dir_all(self.root.join(dir)).map_err(|e| failed(&e, DiskOp::Create, dir))
    }

    fn create(&mut self, file: &str, size: u64) -> Result<(), DiskError> {
        let fail = |e: io::Error| failed(&e, DiskOp::Create, file);
        let options = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .clone();
        let created = options.open(self.root.join(file)).map_err(fail)?;
        let zeros = vec![0; ZERO_PIECE_BYTES];
        let mut at = 0;
        while at < size {
            let piece = (size - at).min(ZERO_PIECE_BYTES as u64);
            created
                .write_all_at(&zeros[..piece as usize], at)
                .map_err(fail)?;
            at += piece;
        }
        Ok(())
    }

    fn read_at(&mut self, file: &str, offset: u64, buf: &mut [u8]) -> Result<(), DiskError> {
        let opened = self.open(DiskOp::Read, file)?;
        opened
            .read_exact_at(buf, offset)
            .map_err(|e| failed(&e, DiskOp::Read, file))
    }

    fn write_at(&mut self, file: &str, offset: u64, bytes: &[u8]) -> Result<(), DiskError> {
        let opened = self.open(DiskOp::Write, file)?;
        opened
            .write_all_at(bytes, offset)
            .map_err(|e| failed(&e, DiskOp::Write, file))
    }

    fn flush(&mut self, file: &str) -> Result<(), DiskError> {
        let opened = self.open(DiskOp::Flush, file)?;
        opened
            .sync_all()
            .map_err(|e| failed(&e, DiskOp::Flush, file))
    }

    fn flush_dir(&mut self, dir: &str) -> Result<(), DiskError> {
        let opened = File::open(self.root.join(dir)).and_then(|d| d.sync_all());
        opened.map_err(|e| failed(&e, DiskOp::Flush, dir))
    }

    fn rename(&mut self, source: &str, target: &str) -> Result<(), DiskError> {
        let renamed = fs::rename(self.root.join(source), self.root.join(target));
        renamed.map_err(|e| failed(&e, DiskOp::Rename, source))
    }

    fn remove(&mut self, file: &str) -> Result<(), DiskError> {
        fs::remove_file(self.root.join(file)).map_err(|e| failed(&e, DiskOp::Remove, file))
    }

    fn len(&mut self, file: &str) -> Result<u64, DiskError> {
        let metadata = fs::metadata(self.root.join(file));
        metadata
            .map(|m| m.len())
            .map_err(|e| failed(&e, DiskOp::Length, file))
    }
}

/// How a frame is made durable.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SyncMode {
    /// Each write is durable when it completes: O_DSYNC.
    Dsync,
    /// A write, then fdatasync.
    Fdatasync,
    /// Not at all: `--unsafe-no-fsync`.
    Unsafe,
}

/// Measures which of the two durable modes is faster, on this device and through this executor: the
/// kernel completes them on different threads. A file of a few blocks is made and removed.
///
/// O_DSYNC must win clearly, as it does where the device writes through its cache by itself (FUA):
/// elsewhere its flush waits for a kernel worker, for milliseconds when the cores are busy.
///
/// # Errors
/// The device's.
pub async fn probe_sync_mode(root: &Path) -> io::Result<SyncMode> {
    let path = root.join("sync-probe");
    fs::write(&path, vec![0; BLOCK_BYTES * PROBE_WRITES])?;
    let dsync = median_write(&path, SyncMode::Dsync).await?;
    let fdatasync = median_write(&path, SyncMode::Fdatasync).await?;
    fs::remove_file(&path)?;
    Ok(if dsync < fdatasync * 3 / 4 {
        SyncMode::Dsync
    } else {
        SyncMode::Fdatasync
    })
}

async fn median_write(path: &Path, mode: SyncMode) -> io::Result<Duration> {
    let file = open_durable(path, mode).await?;
    file.fdatasync().await?;
    let mut took = Vec::with_capacity(PROBE_WRITES);
    for i in 0..PROBE_WRITES {
        let mut block = file.alloc_dma_buffer(BLOCK_BYTES);
        block.as_bytes_mut().fill(0);
        let start = Instant::now();
        file.write_at(block, (i * BLOCK_BYTES) as u64).await?;
        if mode == SyncMode::Fdatasync {
            file.fdatasync().await?;
        }
        took.push(start.elapsed());
    }
    file.close().await?;
    took.sort_unstable();
    Ok(took[PROBE_WRITES / 2])
}

async fn open_durable(path: &Path, mode: SyncMode) -> glommio::Result<DmaFile, ()> {
    let flags = if mode == SyncMode::Dsync {
        OFlags::DSYNC
    } else {
        OFlags::empty()
    };
    let mut options = DmaOptions::new();
    options.write(true).custom_flags(flags.bits().cast_signed());
    options.dma_open(path).await
}

/// Writes frames of the WAL, durably, on the executor it was made on.
pub struct FrameWriter {
    root: PathBuf,
    mode: SyncMode,
    /// Newest last.
    open: RefCell<Vec<(SegmentId, Rc<DmaFile>)>>,
}

impl FrameWriter {
    /// For segments below `root`.
    #[must_use]
    pub fn new(root: &Path, mode: SyncMode) -> Rc<Self> {
        Rc::new(Self {
            root: root.to_owned(),
            mode,
            open: RefCell::default(),
        })
    }

    /// Writes and flushes one frame; the frame's buffer comes back.
    ///
    /// # Errors
    /// The device's: the process must stop.
    pub async fn write(&self, frame: WriteFrame) -> Result<WriteFrame, String> {
        let written = self.write_durably(&frame).await;
        written
            .map_err(|error| format!("{} at {}: {error}", frame.segment.name(), frame.offset))?;
        Ok(frame)
    }

    async fn write_durably(&self, frame: &WriteFrame) -> glommio::Result<(), ()> {
        let file = self.file(frame.segment).await?;
        let bytes = frame.buf.as_slice();
        // glommio writes from buffers of its own registration only: one more copy, of a few pages.
        let mut buffer = file.alloc_dma_buffer(bytes.len());
        buffer.as_bytes_mut().copy_from_slice(bytes);
        let written = file.write_at(buffer, frame.offset).await?;
        if written != bytes.len() {
            return Err(io::Error::new(io::ErrorKind::WriteZero, "short write").into());
        }
        if self.mode == SyncMode::Fdatasync {
            file.fdatasync().await?;
        }
        Ok(())
    }

    async fn file(&self, segment: SegmentId) -> glommio::Result<Rc<DmaFile>, ()> {
        if let Some((_, file)) = self.open.borrow().iter().find(|(id, _)| *id == segment) {
            return Ok(Rc::clone(file));
        }
        let opened = open_durable(&self.root.join(segment.name()), self.mode).await?;
        let file = Rc::new(opened);
        let mut open = self.open.borrow_mut();
        if let Some((_, file)) = open.iter().find(|(id, _)| *id == segment) {
            // Another frame of the segment was faster.
            return Ok(Rc::clone(file));
        }
        open.push((segment, Rc::clone(&file)));
        if open.len() > OPEN_FILES_MAX {
            open.remove(0);
        }
        Ok(file)
    }
}
