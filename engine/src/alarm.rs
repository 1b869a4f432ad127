//! Alarms: NOSPACE and CORRUPT, per member, replicated.
//!
//! Owned by the state machine on the sequencer's core; numbers are those of etcd's `AlarmType`.

use std::collections::BTreeSet;

use crate::types::MemberId;

/// `AlarmType.NONE`: in requests it stands for all types.
pub const NONE: i32 = 0;
/// `AlarmType.NOSPACE`.
pub const NOSPACE: i32 = 1;
/// `AlarmType.CORRUPT`.
pub const CORRUPT: i32 = 2;

/// The alarms raised, ordered by type, then member.
#[derive(Clone, Default, Debug)]
pub struct Alarms {
    raised: BTreeSet<(i32, MemberId)>,
}

impl Alarms {
    /// Raises; what is raised then, whether it was before or not.
    pub fn activate(&mut self, member: MemberId, alarm: i32) -> (MemberId, i32) {
        self.raised.insert((alarm, member));
        (member, alarm)
    }

    /// Takes back; `None` when it was not raised.
    pub fn deactivate(&mut self, member: MemberId, alarm: i32) -> Option<(MemberId, i32)> {
        self.raised
            .remove(&(alarm, member))
            .then_some((member, alarm))
    }

    /// Those of a type, of all for [`NONE`].
    pub fn get(&self, alarm: i32) -> impl Iterator<Item = (MemberId, i32)> + '_ {
        let wanted = move |(a, _): &&(i32, MemberId)| alarm == NONE || *a == alarm;
        self.raised.iter().filter(wanted).map(|&(a, m)| (m, a))
    }

    /// Whether any member raised it.
    #[must_use]
    pub fn is_raised(&self, alarm: i32) -> bool {
        self.get(alarm).next().is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn raised_until_taken_back() {
        let mut a = Alarms::default();
        assert_eq!(a.activate(7, NOSPACE), (7, NOSPACE));
        a.activate(7, NOSPACE);
        a.activate(3, CORRUPT);
        assert_eq!(
            a.get(NONE).collect::<Vec<_>>(),
            [(7, NOSPACE), (3, CORRUPT)]
        );
        assert_eq!(a.get(CORRUPT).collect::<Vec<_>>(), [(3, CORRUPT)]);
        assert_eq!(a.deactivate(7, NOSPACE), Some((7, NOSPACE)));
        assert_eq!(a.deactivate(7, NOSPACE), None);
        assert!(!a.is_raised(NOSPACE));
    }
}
