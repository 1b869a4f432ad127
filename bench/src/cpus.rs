//! Sets of CPUs a thread may run on.

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use crate::Error;

/// A set of CPUs, by number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cpus(CpuSet);

impl Cpus {
    /// Parses a list as taskset and /sys write it: `0`, `0,2`, `0-3,6`.
    ///
    /// # Errors
    /// What is wrong with the list.
    pub fn parse(list: &str) -> Result<Cpus, Error> {
        let wrong = || Error::new(format!("{list:?} is no list of CPUs such as 0 or 0,2-3"));
        let number = |text: &str| text.parse().ok().filter(|&cpu| cpu < CpuSet::MAX_CPU);
        let mut set = CpuSet::new();
        for part in list.split(',') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (first, last) = number(first).zip(number(last)).ok_or_else(wrong)?;
            if first > last {
                return Err(wrong());
            }
            (first..=last).for_each(|cpu| set.set(cpu));
        }
        Ok(Cpus(set))
    }

    /// The CPUs the calling thread may use now.
    ///
    /// # Errors
    /// The kernel's.
    pub fn of_this_thread() -> Result<Cpus, Error> {
        let set = sched_getaffinity(None);
        set.map(Cpus)
            .map_err(|error| Error::new(format!("read CPU affinity: {error}")))
    }

    /// Keeps the calling thread, and what it starts from now on, to these CPUs.
    ///
    /// # Errors
    /// None of them exists or is allowed.
    pub fn pin_this_thread(&self) -> Result<(), Error> {
        sched_setaffinity(None, &self.0)
            .map_err(|error| Error::new(format!("pin to the CPUs given: {error}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists() {
        let set = Cpus::parse("0,2-4").unwrap().0;
        let members: Vec<usize> = (0..8).filter(|&cpu| set.is_set(cpu)).collect();
        assert_eq!(members, [0, 2, 3, 4]);
        for wrong in ["", "a", "1-", "3-2", "0,,1", "100000"] {
            assert!(Cpus::parse(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_pinned_thread_stays() {
        let one = Cpus::parse("0").unwrap();
        let pinned = std::thread::spawn(move || {
            one.pin_this_thread().unwrap();
            Cpus::of_this_thread().unwrap() == one
        });
        assert!(pinned.join().unwrap());
    }
}
