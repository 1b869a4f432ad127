//! Which units of which chunk are free: best fit, neighbours joined at once.
//!
//! Node sizes change with every few changes of a node, and so does the mix of sizes in demand;
//! without joining, nodes of sizes out of demand pile up (measured: 115 instead of 69 bytes a key
//! after churn). Kept beside the chunks, because nodes that readers see must not be written.
//!
//! Owned by `node::Memory`. Not here: addresses.

#![forbid(unsafe_code)]

use super::node::UNITS_MAX;

/// Units of a chunk; the first holds the chunk's number.
pub(super) const CHUNK_UNITS: usize = if cfg!(test) { 64 } else { 1024 };
/// Longer runs of free units are in one list.
const CLASSES: usize = UNITS_MAX + 2;

const _: () = assert!(UNITS_MAX < CHUNK_UNITS && CHUNK_UNITS.is_power_of_two());

/// A run of units: chunk number and first unit in one number.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Run(u32);

impl Run {
    pub(super) fn new(chunk: usize, unit: usize) -> Self {
        assert!(unit < CHUNK_UNITS);
        let run = u32::try_from(chunk * CHUNK_UNITS + unit);
        Self(run.expect("fewer than 2^32 units in an index"))
    }

    pub(super) fn chunk(self) -> usize {
        self.0 as usize / CHUNK_UNITS
    }

    pub(super) fn unit(self) -> usize {
        self.0 as usize % CHUNK_UNITS
    }
}

/// What is known of one chunk, by unit.
struct Map {
    /// At the first and the last unit of a free run its length; elsewhere at a run's ends 0.
    free: [u16; CHUNK_UNITS],
    /// At the first unit of a free run its position in its list.
    position: [u32; CHUNK_UNITS],
}

/// See the module.
pub(super) struct Space {
    #[allow(clippy::vec_box, reason = "a growing Vec of Maps would move megabytes")]
    maps: Vec<Box<Map>>,
    /// Free runs by length, the last list for all that are longer than a node.
    lists: [Vec<Run>; CLASSES],
    free_units: u64,
}

fn class(units: usize) -> usize {
    units.min(CLASSES - 1)
}

impl Space {
    pub(super) fn new() -> Self {
        Self {
            maps: Vec::new(),
            lists: [const { Vec::new() }; CLASSES],
            free_units: 0,
        }
    }

    /// Free units of all chunks.
    pub(super) fn free_units(&self) -> u64 {
        self.free_units
    }

    /// Takes `units`, if there is a run of them.
    pub(super) fn take(&mut self, units: usize) -> Option<Run> {
        assert!((1..=UNITS_MAX).contains(&units));
        let run = (units..CLASSES).find_map(|class| self.lists[class].last().copied())?;
        let len = self.remove(run);
        if len > units {
            self.insert(Run::new(run.chunk(), run.unit() + units), len - units);
        }
        Some(run)
    }

    /// Gives a run back.
    pub(super) fn give(&mut self, run: Run, units: usize) {
        assert!((1..=UNITS_MAX).contains(&units));
        let (chunk, mut first, mut end) = (run.chunk(), run.unit(), run.unit() + units);
        assert!(first > 0 && end <= CHUNK_UNITS);
        let map = &self.maps[chunk];
        assert!(map.free[first] == 0 && map.free[end - 1] == 0, "freed once");
        let before = usize::from(map.free[first - 1]);
        let after = map.free.get(end).map_or(0, |len| usize::from(*len));
        if before > 0 {
            first -= before;
            self.remove(Run::new(chunk, first));
        }
        if after > 0 {
            self.remove(Run::new(chunk, end));
            end += after;
        }
        self.insert(Run::new(chunk, first), end - first);
    }

    /// Adds a chunk, free but for its first unit; returns its number.
    pub(super) fn add_chunk(&mut self) -> usize {
        let map = Map {
            free: [0; CHUNK_UNITS],
            position: [0; CHUNK_UNITS],
        };
        self.maps.push(Box::new(map));
        let chunk = self.maps.len() - 1;
        self.insert(Run::new(chunk, 1), CHUNK_UNITS - 1);
        chunk
    }

    fn insert(&mut self, run: Run, units: usize) {
        let list = &mut self.lists[class(units)];
        let map = &mut self.maps[run.chunk()];
        let len = u16::try_from(units).expect("within a chunk");
        map.free[run.unit()] = len;
        map.free[run.unit() + units - 1] = len;
        map.position[run.unit()] = u32::try_from(list.len()).expect("fewer than units");
        list.push(run);
        self.free_units += units as u64;
    }

    /// Takes a free run out of its list; returns its length.
    fn remove(&mut self, run: Run) -> usize {
        let map = &mut self.maps[run.chunk()];
        let units = usize::from(map.free[run.unit()]);
        assert!(units > 0);
        map.free[run.unit()] = 0;
        map.free[run.unit() + units - 1] = 0;
        let position = map.position[run.unit()];
        let list = &mut self.lists[class(units)];
        assert!(list.swap_remove(position as usize) == run);
        if let Some(moved) = list.get(position as usize) {
            self.maps[moved.chunk()].position[moved.unit()] = position;
        }
        self.free_units -= units as u64;
        units
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig {
            cases: if cfg!(miri) { 2 } else { 100 },
            failure_persistence: None,
            ..ProptestConfig::default()
        })]

        /// Takes and gives at random: runs never overlap, and all come together again.
        #[test]
        fn runs_do_not_overlap_and_join(
            steps in prop::collection::vec((any::<bool>(), 1..=UNITS_MAX, any::<usize>()), 0..300),
        ) {
            let mut space = Space::new();
            let mut taken: Vec<(Run, usize)> = Vec::new();
            let mut used = Vec::new();
            for (take, units, pick) in steps {
                if take {
                    let run = space.take(units).unwrap_or_else(|| {
                        assert_eq!(space.add_chunk(), used.len());
                        used.push([false; CHUNK_UNITS]);
                        space.take(units).expect("a new chunk")
                    });
                    prop_assert!(run.unit() > 0);
                    let used = &mut used[run.chunk()][run.unit()..run.unit() + units];
                    prop_assert!(!used.contains(&true));
                    used.fill(true);
                    taken.push((run, units));
                } else if !taken.is_empty() {
                    let (run, units) = taken.swap_remove(pick % taken.len());
                    used[run.chunk()][run.unit()..run.unit() + units].fill(false);
                    space.give(run, units);
                }
                let in_use: usize = taken.iter().map(|(_, units)| units).sum();
                let all = used.len() * (CHUNK_UNITS - 1);
                prop_assert_eq!(space.free_units() as usize, all - in_use);
            }
            for (run, units) in taken {
                space.give(run, units);
            }
            prop_assert_eq!(space.lists[CLASSES - 1].len(), used.len());
            prop_assert!(space.lists[..CLASSES - 1].iter().all(Vec::is_empty));
        }
    }
}
