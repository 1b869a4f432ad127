//! Recovery: which frames on the disk are the log, what was torn, what is damaged.
//!
//! Runs once at boot, blocking, before the sequencer starts. It **changes nothing it reads**: it
//! flushes each file before believing it, removes only half-created files, and leaves what is
//! behind the cut where it is. So it may crash anywhere and be run again with the same result.
//!
//! **The log** is the chain of frames: each begins where the one before ends (LSN) and names its
//! checksum. It runs through the segments in the order of their sequence numbers. A new run goes on
//! in a new segment, at the LSN of the cut; therefore a segment whose first frame has an LSN at or
//! beyond that of a segment with a higher sequence number is *superseded*: it was cut away. Within
//! a segment, the chain ends where the next segment's first frame begins, even if an older run's
//! frame is readable there now (its write was in flight when the process died, and landed later).
//!
//! **Torn or corrupt.** Let the chain end at LSN `x`, where the next frame is missing or bad. Every
//! frame carries `flushed_lsn`, the contiguous durable prefix when it was submitted. If any frame
//! header of any segment says `flushed_lsn > x`, then the frame at `x` was durable and may have
//! been acknowledged: corruption, never cut. Else nothing says that it ever was, and it and all
//! after it is cut. Why frames of older runs cannot mislead this search: a run that cut at `y`
//! found no header with `flushed_lsn > y`, so whatever it left behind has `flushed_lsn <= y`; later
//! runs only append at or beyond `y`, so `x >= y`. And why what was cut is never believed later: it
//! lies in a segment superseded by, or at an LSN taken over by, the first frame written afterwards;
//! until that frame is durable nothing was acknowledged, so that to believe it after all is to
//! believe a write that was in flight.
//!
//! **Entries** are handed over in order, each index once: an entry above the commit index is held
//! back until it is known not to be superseded.
//!
//! Not here: repair, and the decision what a member with a damaged log may still do.

use std::collections::VecDeque;

use super::frame::{
    FLAG_RESET, FLAG_SEAL, FrameHeader, Heading, SEGMENT_HEADER_BYTES, SegmentHeader,
};
use super::live::LiveLog;
use super::pool::{Pool, Segment};
use super::read::{LogEntry, SegmentReader, entries};
use super::{DIR, Found, HardState, Identity, Wal, flushed_frame};
use crate::error::Corruption;
use crate::io::{Disk, DiskError, SegmentId};
use crate::limits::Limits;
use crate::limits::format::BLOCK_BYTES;
use crate::types::{Index, Lsn, Term};

/// What recovery is told.
#[derive(Clone, Copy, Debug)]
pub struct RecoverOptions {
    /// Bounds, of which `segment_bytes` must be what the segments were made with.
    pub limits: Limits,
    /// Whose log it must be.
    pub identity: Identity,
    /// A random number never used before: salts the segments that this run will write.
    pub incarnation: u64,
    /// First entry to hand over: the checkpoint's index + 1.
    pub start_index: Index,
}

/// What recovery found.
pub struct Recovered {
    /// The log, ready to append; it needs a segment prepared before the first frame.
    pub wal: Wal,
    /// As of the last frame; all zero for an empty log.
    pub hard_state: HardState,
    /// Index of the last entry (or what the log was reset to); 0 for an empty log.
    pub last_index: Index,
    /// Term of the last entry that was read; 0 if none was, or the log was reset since.
    pub last_term: Term,
    /// Where the log ends and why; `None` for an empty log.
    pub cut: Option<Cut>,
}

/// Where the chain of frames ends.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Cut {
    /// File.
    pub file: String,
    /// Byte offset in it.
    pub offset: u64,
    /// Position in the log.
    pub lsn: Lsn,
    /// What is there instead of a frame, for an operator.
    pub what: &'static str,
}

/// How far recovery is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Progress {
    /// Segments done.
    pub segments_done: usize,
    /// Of so many.
    pub segments_total: usize,
    /// Last index seen.
    pub last_index: Index,
}

/// Why there is no log to go on with. Nothing was changed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum RecoverError {
    /// The device failed.
    Disk(DiskError),
    /// What was durable is not what was written. A member that votes must not go on.
    Corrupt(Corruption),
    /// A segment of another cluster or member.
    Foreign {
        /// Its name.
        file: String,
        /// Whose it is.
        found: Identity,
    },
    /// A segment of another format version, other constants, or another size.
    Format {
        /// Its name.
        file: String,
    },
}

impl From<DiskError> for RecoverError {
    fn from(error: DiskError) -> Self {
        Self::Disk(error)
    }
}

fn corrupt(file: SegmentId, offset: u64, what: &'static str) -> RecoverError {
    RecoverError::Corrupt(Corruption {
        file: file.name(),
        offset,
        what,
    })
}

/// Reads the log back.
///
/// `on_entry` gets the entries from `start_index` on, ascending, without gaps, each once; those
/// above the last known commit index come last. `on_progress` is called after each segment.
///
/// # Errors
/// See [`RecoverError`]. Entries may have been handed over before.
pub fn recover(
    disk: &mut dyn Disk,
    options: &RecoverOptions,
    on_entry: &mut dyn FnMut(LogEntry),
    on_progress: &mut dyn FnMut(Progress),
) -> Result<Recovered, RecoverError> {
    assert!(options.start_index >= 1);
    let survey = survey(disk, options)?;
    let mut scan = Scan {
        options,
        survey: &survey,
        replay: Replay::new(options.start_index, on_entry),
        live: LiveLog::default(),
        last: None,
        accepted: 0,
    };
    let end = scan.chain(disk, on_progress)?;
    scan.judge(disk, end.as_ref())?;
    let Scan {
        mut replay,
        live,
        last,
        accepted,
        ..
    } = scan;
    if let Some(end) = &end {
        replay
            .finish()
            .map_err(|what| corrupt(end.file, end.offset, what))?;
    }
    let last_term = replay.last_term;
    let hard_state = last.map_or_else(HardState::default, |(header, _)| header.hard_state);
    let found = found(options, survey, accepted, last, live);
    let last_index = found.live.last_index();
    let wal = Wal::from_found(options.limits, found);
    let cut = end.map(
        |End {
             file,
             offset,
             lsn,
             what,
             ..
         }| Cut {
            file: file.name(),
            offset,
            lsn,
            what,
        },
    );
    Ok(Recovered {
        wal,
        hard_state,
        last_index,
        last_term,
        cut,
    })
}

/// The pieces from which the log goes on. `accepted` segments of the chain hold believed frames.
fn found(
    options: &RecoverOptions,
    survey: Survey,
    accepted: usize,
    last: Option<(FrameHeader, u32)>,
    live: LiveLog,
) -> Found {
    // What holds nothing is re-headed first: a superseded segment must be gone before the one that
    // supersedes it is, else it would be taken for the oldest part of the log.
    let Survey {
        mut free,
        unstarted,
        chain,
        next_file,
        next_seq,
    } = survey;
    free.extend(unstarted.iter().map(|segment| segment.file));
    free.extend(chain[accepted..].iter().map(|started| started.segment.file));
    let RecoverOptions {
        limits,
        identity,
        incarnation,
        ..
    } = options;
    let next = (next_file, next_seq);
    let pool = Pool::new(limits, *identity, *incarnation, free, next);
    let (lsn, chain_checksum) = last.map_or((0, 0), |(header, sum)| (header.lsn_end(), sum));
    let covered_lsn = last.map_or(0, |(header, _)| header.flushed_lsn);
    let sealed = last.is_some_and(|(header, _)| header.flags & FLAG_SEAL != 0);
    Found {
        segments: chain[..accepted]
            .iter()
            .map(|started| started.segment)
            .collect(),
        pool,
        hard_state: last.map_or_else(HardState::default, |(header, _)| header.hard_state),
        chain: chain_checksum,
        lsn,
        covered_lsn,
        content_lsn: if sealed { covered_lsn } else { lsn },
        live,
    }
}

/// A segment with a readable first frame header.
struct Started {
    segment: Segment,
    first: FrameHeader,
}

/// The segment files, sorted out by their headers and the headers of their first frames.
struct Survey {
    /// Segments that can hold the log, oldest first; LSNs of their first frames ascend.
    chain: Vec<Started>,
    /// Segments without a readable first frame: never used, or torn, or damaged.
    unstarted: Vec<Segment>,
    /// Files that hold nothing: superseded, or half re-headed.
    free: VecDeque<SegmentId>,
    next_file: u32,
    next_seq: u32,
}

fn survey(disk: &mut dyn Disk, options: &RecoverOptions) -> Result<Survey, RecoverError> {
    disk.ensure_dir(DIR)?;
    let mut free = VecDeque::new();
    let mut headed: Vec<(u32, Segment)> = Vec::new();
    let (mut next_file, mut next_seq) = (1, 1);
    for name in disk.list(DIR)? {
        if name.ends_with(".new") {
            disk.remove(&name)?;
        }
        let Some(file) = SegmentId::from_name(&name) else {
            continue;
        };
        // At the maximum, `Wal::action` refuses to go on.
        next_file = next_file.max(file.0.saturating_add(1));
        let (seq, segment) = read_heading(disk, options, file)?;
        next_seq = next_seq.max(seq.saturating_add(1));
        match segment {
            Some(segment) => headed.push((seq, segment)),
            None => free.push_back(file),
        }
    }
    disk.flush_dir(DIR)?;
    headed.sort_unstable_by_key(|&(seq, _)| seq);
    if let Some(twins) = headed.windows(2).find(|pair| pair[0].0 == pair[1].0) {
        return Err(corrupt(
            twins[1].1.file,
            0,
            "two segments with one sequence number",
        ));
    }
    let (mut chain, mut unstarted) = (Vec::new(), Vec::new());
    let mut superseded_from = Lsn::MAX;
    for &(_, segment) in headed.iter().rev() {
        match first_frame(disk, options, &segment)? {
            None => unstarted.push(segment),
            Some(first) if first.lsn < superseded_from => {
                superseded_from = first.lsn;
                chain.push(Started { segment, first });
            }
            Some(_) => free.push_back(segment.file),
        }
    }
    chain.reverse();
    unstarted.reverse();
    Ok(Survey {
        chain,
        unstarted,
        free,
        next_file,
        next_seq,
    })
}

/// The sequence number in a file's header, and the segment if it is one.
fn read_heading(
    disk: &mut dyn Disk,
    options: &RecoverOptions,
    file: SegmentId,
) -> Result<(u32, Option<Segment>), RecoverError> {
    let name = file.name();
    disk.flush(&name)?;
    let size = disk.len(&name)?;
    if size < SEGMENT_HEADER_BYTES as u64 {
        return Err(corrupt(file, size, "segment file is cut short"));
    }
    let mut reader = SegmentReader::new(file, size, BLOCK_BYTES);
    let block = reader
        .bytes(disk, 0, SEGMENT_HEADER_BYTES)?
        .expect("the file is long enough");
    let header = match SegmentHeader::decode(&block) {
        Heading::Whole(header) => header,
        Heading::Torn { seq } => return Ok((seq, None)),
        Heading::Foreign => return Err(RecoverError::Format { file: name }),
        Heading::Damaged => return Err(corrupt(file, 0, "segment header is damaged")),
    };
    if header.identity != options.identity {
        return Err(RecoverError::Foreign {
            file: name,
            found: header.identity,
        });
    }
    if header.segment_bytes != options.limits.segment_bytes {
        return Err(RecoverError::Format { file: name });
    }
    if size != header.segment_bytes {
        return Err(corrupt(file, size, "segment file has the wrong size"));
    }
    Ok((
        header.seq,
        Some(Segment {
            file,
            salt: header.salt(),
        }),
    ))
}

fn first_frame(
    disk: &mut dyn Disk,
    options: &RecoverOptions,
    segment: &Segment,
) -> Result<Option<FrameHeader>, DiskError> {
    let offset = SEGMENT_HEADER_BYTES as u64;
    let mut reader = SegmentReader::new(segment.file, options.limits.segment_bytes, BLOCK_BYTES);
    let block = reader
        .bytes(disk, offset, BLOCK_BYTES)?
        .expect("a segment holds two frames");
    Ok(FrameHeader::decode(&block, &segment.salt, offset)
        .ok()
        .map(|(header, _)| header))
}

/// Where the chain ends.
struct End {
    /// Which segment of the survey's chain.
    nth: usize,
    file: SegmentId,
    offset: u64,
    lsn: Lsn,
    what: &'static str,
}

/// The walk along the chain.
struct Scan<'a> {
    options: &'a RecoverOptions,
    survey: &'a Survey,
    replay: Replay<'a>,
    live: LiveLog,
    /// The last believed frame and its checksum.
    last: Option<(FrameHeader, u32)>,
    /// How many segments of the chain have believed frames.
    accepted: usize,
}

impl Scan<'_> {
    /// Walks the chain to its end; `None` if there is not one frame to begin with.
    fn chain(
        &mut self,
        disk: &mut dyn Disk,
        on_progress: &mut dyn FnMut(Progress),
    ) -> Result<Option<End>, RecoverError> {
        let survey = self.survey;
        let segments_total = survey.chain.len();
        for (nth, started) in survey.chain.iter().enumerate() {
            let next_lsn = survey.chain.get(nth + 1).map(|next| next.first.lsn);
            let end = self.segment(disk, nth, &started.segment, next_lsn)?;
            on_progress(Progress {
                segments_done: nth + 1,
                segments_total,
                last_index: self.live.last_index(),
            });
            if end.is_some() {
                return Ok(end);
            }
        }
        Ok(None)
    }

    /// Walks one segment; `None` if the chain goes on in the next.
    fn segment(
        &mut self,
        disk: &mut dyn Disk,
        nth: usize,
        segment: &Segment,
        next_lsn: Option<Lsn>,
    ) -> Result<Option<End>, RecoverError> {
        let limits = &self.options.limits;
        let file = segment.file;
        let mut reader = SegmentReader::new(file, limits.segment_bytes, limits.frame_bytes_max);
        let mut offset = SEGMENT_HEADER_BYTES as u64;
        loop {
            let lsn = self.last.as_ref().map_or(0, |(header, _)| header.lsn_end());
            if next_lsn.is_some_and(|next| self.last.is_some() && lsn == next) {
                return Ok(None);
            }
            let end = |what| {
                Ok(Some(End {
                    nth,
                    file,
                    offset,
                    lsn,
                    what,
                }))
            };
            let (header, checksum, bytes) = match reader.frame(disk, &segment.salt, offset)? {
                Ok(frame) => frame,
                Err(what) => return end(what),
            };
            let follows = self
                .last
                .as_ref()
                .is_none_or(|(last, sum)| (last.lsn_end(), *sum) == (header.lsn, header.previous));
            if !follows {
                // What ends here now is not what ended here when this frame was written.
                if self
                    .last
                    .as_ref()
                    .is_some_and(|(last, _)| last.lsn_end() == header.lsn)
                {
                    return Err(corrupt(file, offset, "frame continues another log"));
                }
                return end("frame does not continue the chain");
            }
            if next_lsn.is_some_and(|next| header.lsn_end() > next) {
                return Err(corrupt(
                    file,
                    offset,
                    "the next segment begins inside this frame",
                ));
            }
            let read = entries(&header, &bytes, segment.salt.seq());
            if let Err(what) = self.replay.frame(&header, self.last.is_none(), read) {
                return Err(corrupt(file, offset, what));
            }
            self.live
                .flushed(flushed_frame(&header, segment.salt.seq()));
            self.last = Some((header, checksum));
            self.accepted = nth + 1;
            offset += u64::from(header.frame_bytes);
        }
    }

    /// Decides whether what is missing at `end` was torn or is corruption.
    fn judge(&self, disk: &mut dyn Disk, end: Option<&End>) -> Result<(), RecoverError> {
        let survey = self.survey;
        let start = SEGMENT_HEADER_BYTES as u64;
        let end_lsn = end.map_or(0, |end| end.lsn);
        let mut witnessed = false;
        // Damaged first frames by LSN: a segment that starts before the chain's end has lost one.
        let mut damaged: Option<(Lsn, SegmentId)> = None;
        for unstarted in &survey.unstarted {
            let claims = self.claims(disk, unstarted, start)?;
            // Without a chain this is the oldest segment, kept for the sake of its flushed frames.
            let oldest = end.is_none() && claims.start_lsn > 0 && claims.start_lsn < Lsn::MAX;
            if claims.flushed_lsn > claims.start_lsn || oldest {
                let found = (claims.start_lsn, unstarted.file);
                damaged = Some(damaged.map_or(found, |other| other.min(found)));
            }
            witnessed |= claims.flushed_lsn > end_lsn;
        }
        let Some(end) = end else {
            return match damaged {
                Some((_, file)) => Err(corrupt(file, start, "first frame is damaged")),
                None => Ok(()),
            };
        };
        for (nth, started) in survey.chain.iter().enumerate().skip(end.nth) {
            let offset = if nth == end.nth { end.offset } else { start };
            witnessed |= self.claims(disk, &started.segment, offset)?.flushed_lsn > end_lsn;
        }
        // The same of the oldest segment with a readable first frame.
        witnessed |= self.last.is_none() && survey.chain[end.nth].first.lsn > 0;
        match damaged {
            Some((lsn, file)) if lsn <= end_lsn => {
                Err(corrupt(file, start, "first frame is damaged"))
            }
            _ if witnessed => Err(corrupt(end.file, end.offset, end.what)),
            _ => Ok(()),
        }
    }

    /// What the frame headers of `segment`, at or behind `offset`, say about the log.
    fn claims(
        &self,
        disk: &mut dyn Disk,
        segment: &Segment,
        offset: u64,
    ) -> Result<Claims, DiskError> {
        let limits = &self.options.limits;
        let mut reader =
            SegmentReader::new(segment.file, limits.segment_bytes, limits.frame_bytes_max);
        let mut claims = Claims {
            flushed_lsn: 0,
            start_lsn: Lsn::MAX,
        };
        for offset in (offset..limits.segment_bytes).step_by(BLOCK_BYTES) {
            let block = reader
                .bytes(disk, offset, BLOCK_BYTES)?
                .expect("within the file");
            if let Ok((header, _)) = FrameHeader::decode(&block, &segment.salt, offset) {
                let before = offset - SEGMENT_HEADER_BYTES as u64;
                claims.flushed_lsn = claims.flushed_lsn.max(header.flushed_lsn);
                claims.start_lsn = claims.start_lsn.min(header.lsn.saturating_sub(before));
            }
        }
        Ok(claims)
    }
}

/// What some frame headers of one segment say about the log.
struct Claims {
    /// Everything below was durable; 0 if there is no header.
    flushed_lsn: Lsn,
    /// Where the segment's first frame began; `Lsn::MAX` if there is no header.
    start_lsn: Lsn,
}

/// Turns frames into entries in order, each index once.
struct Replay<'a> {
    on_entry: &'a mut dyn FnMut(LogEntry),
    /// Next index to hand over.
    next_index: Index,
    /// Entries above `commit`, from `next_index` on.
    held: VecDeque<LogEntry>,
    commit: Index,
    last_index: Index,
    last_term: Term,
}

impl<'a> Replay<'a> {
    fn new(start_index: Index, on_entry: &'a mut dyn FnMut(LogEntry)) -> Self {
        let (held, commit, last_index, last_term) = (VecDeque::new(), 0, 0, 0);
        Self {
            on_entry,
            next_index: start_index,
            held,
            commit,
            last_index,
            last_term,
        }
    }

    fn frame(
        &mut self,
        header: &FrameHeader,
        is_first: bool,
        entries: impl Iterator<Item = LogEntry>,
    ) -> Result<(), &'static str> {
        let reset = header.flags & FLAG_RESET != 0;
        if header.first_index > self.last_index + 1 && !reset && !is_first {
            return Err("entries are missing between two frames");
        }
        if header.first_index <= self.commit {
            return Err("a committed entry is overwritten");
        }
        if reset {
            self.last_term = 0;
        }
        for entry in entries {
            while self
                .held
                .back()
                .is_some_and(|held| held.index >= entry.index)
            {
                self.held.pop_back();
            }
            self.last_term = entry.term;
            if entry.index >= self.next_index {
                self.held.push_back(entry);
            }
        }
        self.last_index = header.last_index();
        self.commit = self.commit.max(header.hard_state.commit);
        self.hand_over(self.commit)
    }

    fn hand_over(&mut self, up_to: Index) -> Result<(), &'static str> {
        while self.held.front().is_some_and(|entry| entry.index <= up_to) {
            let entry = self.held.pop_front().expect("just seen");
            if entry.index != self.next_index {
                return Err("entries are missing between the checkpoint and the log");
            }
            self.next_index += 1;
            (self.on_entry)(entry);
        }
        Ok(())
    }

    fn finish(&mut self) -> Result<(), &'static str> {
        self.hand_over(Index::MAX)?;
        if self.last_index >= self.next_index {
            return Err("the log was reset beyond the checkpoint");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(first_index: Index, record_count: u32, commit: Index, flags: u16) -> FrameHeader {
        FrameHeader {
            flags,
            record_count,
            lsn: 0,
            frame_bytes: 4096,
            payload_bytes: 0,
            flushed_lsn: 0,
            first_index,
            hard_state: HardState {
                term: 1,
                vote: 0,
                commit,
            },
            offset: 4096,
            previous: 0,
            records_checksum: 0,
        }
    }

    #[test]
    fn frames_that_contradict_the_log_are_refused() {
        let mut on_entry = |_| {};
        let mut replay = Replay::new(1, &mut on_entry);
        let none = || core::iter::empty();
        replay.frame(&header(5, 3, 6, 0), true, none()).unwrap();
        replay.frame(&header(7, 1, 6, 0), false, none()).unwrap();
        let overwrite = replay.frame(&header(6, 1, 6, 0), false, none());
        assert_eq!(overwrite, Err("a committed entry is overwritten"));
        let gap = replay.frame(&header(9, 1, 6, 0), false, none());
        assert_eq!(gap, Err("entries are missing between two frames"));
        replay
            .frame(&header(9, 1, 6, FLAG_RESET), false, none())
            .unwrap();
    }
}
