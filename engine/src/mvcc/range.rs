//! Range: etcd's query with all its options, run in steps so that none holds a core for long.
//!
//! A [`RangeScan`] fixes its revision when it begins and keeps only keys and bytes of its own, so
//! each step may run on a newer View: what the keys were at that revision does not change, until a
//! compaction passes it ([`ApiError::Compacted`]).
//!
//! Runs on any core (a shard's reads) and inside apply (ranges of a transaction).

use core::cmp::Ordering;
use core::ops::ControlFlow;

use bytes::{Bytes, BytesMut};

use super::State;
use super::sort::sort_as_go;
use crate::command::Range;
use crate::error::ApiError;
use crate::revtable::kv::{Encoder, Fields};
use crate::types::KeyMeta;

/// Memory is taken for results in pieces of this, bytes.
const PIECE_BYTES: usize = 64 << 10;

/// Numbers of `RangeRequest.SortOrder`.
pub mod order {
    #![allow(missing_docs, reason = "etcd's names")]
    pub const NONE: i32 = 0;
    pub const ASCEND: i32 = 1;
    pub const DESCEND: i32 = 2;
}

/// Numbers of `RangeRequest.SortTarget`.
pub mod target {
    #![allow(missing_docs, reason = "etcd's names")]
    pub const KEY: i32 = 0;
    pub const VERSION: i32 = 1;
    pub const CREATE: i32 = 2;
    pub const MOD: i32 = 3;
    pub const VALUE: i32 = 4;
}

/// The interval of keys that `key` and `range_end` of a request stand for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Span {
    start: Vec<u8>,
    /// `None`: no end.
    end: Option<Vec<u8>>,
}

impl Span {
    /// etcd's reading: no end is one key, an end of one zero byte is no bound at all.
    #[must_use]
    pub fn of(key: &[u8], range_end: &[u8]) -> Self {
        let start = key.to_vec();
        match range_end {
            [] => Self {
                end: Some([key, &[0]].concat()),
                start,
            },
            [0] => Self { start, end: None },
            end => Self {
                start,
                end: Some(end.to_vec()),
            },
        }
    }

    /// First key inside.
    #[must_use]
    pub fn start(&self) -> &[u8] {
        &self.start
    }

    /// First key beyond, `None` for no bound.
    #[must_use]
    pub fn end(&self) -> Option<&[u8]> {
        self.end.as_deref()
    }
}

/// What a range found. `kvs` are encoded `mvccpb.KeyValue`s.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct RangeResult {
    /// Header revision: the store's, not the one read at.
    pub revision: u64,
    /// In the order asked for.
    pub kvs: Vec<Bytes>,
    /// Whether the limit left some out.
    pub more: bool,
    /// Keys in the interval at that revision, before filters and limit.
    pub count: u64,
}

/// One kept key, for sorting and filters.
struct Item {
    kv: Bytes,
    modified: u64,
    created: u64,
    version: u64,
}

/// A range on its way.
pub struct RangeScan {
    span: Span,
    /// Main revision read at.
    at: u64,
    /// The store's at the beginning.
    revision: u64,
    limit: usize,
    /// Keys to collect before the scan may stop collecting.
    wanted: usize,
    sort_order: i32,
    sort_target: i32,
    keys_only: bool,
    count_only: bool,
    backward: bool,
    filters: Filters,
    /// Last key visited.
    last: Option<Vec<u8>>,
    items: Vec<Item>,
    piece: BytesMut,
    count: u64,
    /// Whether `count` came from the index at once, so that the scan may stop when it has `wanted`.
    counted: bool,
}

#[derive(Clone, Copy)]
struct Filters {
    min_mod: i64,
    max_mod: i64,
    min_create: i64,
    max_create: i64,
}

impl Filters {
    fn any(self) -> bool {
        [self.min_mod, self.max_mod, self.min_create, self.max_create] != [0; 4]
    }

    fn pass(self, modified: u64, created: u64) -> bool {
        let (modified, created) = (modified as i64, created as i64);
        (self.max_mod == 0 || modified <= self.max_mod)
            && (self.min_mod == 0 || modified >= self.min_mod)
            && (self.max_create == 0 || created <= self.max_create)
            && (self.min_create == 0 || created >= self.min_create)
    }
}

impl RangeScan {
    /// Checks `query` against `state` and fixes the revision to read at.
    ///
    /// # Errors
    /// `FutureRev`, `Compacted`.
    pub fn begin(query: &Range<'_>, state: &State<'_>) -> Result<Self, ApiError> {
        let at = state.readable(query.revision)?;
        let filters = Filters {
            min_mod: query.min_mod_revision,
            max_mod: query.max_mod_revision,
            min_create: query.min_create_revision,
            max_create: query.max_create_revision,
        };
        // As etcd: a target without an order sorts ascending.
        let sort_order = match query.sort_order {
            order::NONE if query.sort_target != target::KEY => order::ASCEND,
            o => o,
        };
        let by_key = query.sort_target == target::KEY;
        let early = (by_key || query.sort_order == order::NONE) && !filters.any();
        // etcd takes limit + 1 in key order even where it then sorts by another target.
        let limit = usize::try_from(query.limit).unwrap_or(0);
        Ok(Self {
            span: Span::of(query.key, query.range_end),
            at,
            revision: state.revision,
            limit,
            wanted: if early && limit > 0 {
                limit.saturating_add(1)
            } else {
                usize::MAX
            },
            sort_order,
            sort_target: query.sort_target,
            keys_only: query.keys_only,
            count_only: query.count_only,
            backward: by_key && sort_order == order::DESCEND,
            filters,
            last: None,
            items: Vec::new(),
            piece: BytesMut::new(),
            count: 0,
            counted: false,
        })
    }

    /// Visits up to `budget` keys; true while there are more.
    ///
    /// # Errors
    /// `Compacted` when a compaction has passed the revision meanwhile.
    pub fn step(&mut self, state: &State<'_>, budget: usize) -> Result<bool, ApiError> {
        if (self.at as i64) < state.compacted {
            return Err(ApiError::Compacted);
        }
        if self.last.is_none() && self.at == state.revision {
            self.count = state.tree.live_count(self.span.start(), self.span.end());
            self.counted = true;
        }
        if self.counted && (self.count_only || self.count == 0) {
            return Ok(false);
        }
        let mut visited = 0;
        let mut last = None;
        let resume = self.last.take();
        let span = self.span.clone();
        let flow = state.visit(&span, resume.as_deref(), self.backward, |key, meta| {
            visited += 1;
            self.take(state, key, meta);
            if self.counted && self.items.len() >= self.wanted {
                return ControlFlow::Break(false);
            }
            if visited >= budget {
                last = Some(key.to_vec());
                return ControlFlow::Break(true);
            }
            ControlFlow::Continue(())
        });
        self.last = last;
        Ok(matches!(flow, ControlFlow::Break(true)))
    }

    fn take(&mut self, state: &State<'_>, key: &[u8], newest: KeyMeta) {
        let Some(meta) = state.meta_at(newest, self.at) else {
            return;
        };
        if !self.counted {
            self.count += 1;
        }
        if self.count_only
            || self.items.len() >= self.wanted
            || !self.filters.pass(meta.modified.main, meta.created)
        {
            return;
        }
        let (created, modified, version) = (meta.created, meta.modified.main, meta.version);
        let kv = if self.keys_only && self.sort_target != target::VALUE {
            // etcd answers this from its index, which knows no lease.
            let e = Encoder::put(key, created, modified, version, &[], 0);
            self.keep(&e.parts())
        } else {
            let record = state
                .revs
                .get(meta.modified)
                .expect("live at a readable revision");
            self.keep(&[record.kv])
        };
        self.items.push(Item {
            kv,
            modified,
            created,
            version,
        });
    }

    fn keep(&mut self, parts: &[&[u8]]) -> Bytes {
        let len = parts.iter().map(|p| p.len()).sum();
        if self.piece.capacity() < len {
            // The first piece is small: most ranges are of one key.
            let piece = if self.items.is_empty() {
                0
            } else {
                PIECE_BYTES
            };
            self.piece = BytesMut::with_capacity(len.max(piece));
        }
        for part in parts {
            self.piece.extend_from_slice(part);
        }
        self.piece.split().freeze()
    }

    /// The result, after the last step.
    #[must_use]
    pub fn finish(mut self) -> RangeResult {
        self.sort();
        let more = self.limit > 0 && self.items.len() > self.limit;
        if more {
            self.items.truncate(self.limit);
        }
        let strip = self.keys_only && self.sort_target == target::VALUE;
        let kv = |item: Item| {
            if strip {
                without_value(&item.kv)
            } else {
                item.kv
            }
        };
        RangeResult {
            revision: self.revision,
            more,
            count: self.count,
            kvs: self.items.into_iter().map(kv).collect(),
        }
    }

    fn sort(&mut self) {
        if self.sort_target == target::KEY {
            return;
        }
        let compare: fn(&Item, &Item) -> Ordering = match self.sort_target {
            target::VERSION => |a, b| a.version.cmp(&b.version),
            target::CREATE => |a, b| a.created.cmp(&b.created),
            target::MOD => |a, b| a.modified.cmp(&b.modified),
            _ => |a, b| Fields::of(&a.kv).value.cmp(Fields::of(&b.kv).value),
        };
        let descend = self.sort_order == order::DESCEND;
        let less = |a: &Item, b: &Item| {
            let (a, b) = if descend { (b, a) } else { (a, b) };
            compare(a, b) == Ordering::Less
        };
        sort_as_go(&mut self.items, less);
    }
}

fn without_value(kv: &[u8]) -> Bytes {
    let f = Fields::of(kv);
    Encoder::put(f.key, f.created, f.modified, f.version, &[], f.lease)
        .parts()
        .concat()
        .into()
}
