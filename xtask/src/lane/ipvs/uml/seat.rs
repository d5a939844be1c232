//! Which CPU of this machine is a guest's.
//!
//! A guest has one CPU, but the processes in it are processes of this machine, which its kernel stops and starts in turn, one at
//! a time (ptrace(2)). Where they are on several CPUs, each system call of the guest wakes one CPU to leave another, and what
//! else runs there is in the way: on a machine with two CPUs, system calls took two to three times as long as on one of them.

use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::sched::{CpuSet, sched_getaffinity};
use nix::unistd::Pid;

/// Those that guests of this process have.
static TAKEN: Mutex<Vec<usize>> = Mutex::new(Vec::new());

fn taken() -> MutexGuard<'static, Vec<usize>> {
    TAKEN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The guest's for as long as this lives.
#[derive(Debug)]
pub(super) struct Seat(usize);

impl Seat {
    /// `None`: this machine does not tell its CPUs; a guest runs where it may.
    pub(super) fn take() -> Option<Seat> {
        let allowed = sched_getaffinity(Pid::from_raw(0)).ok()?;
        let allowed: Vec<usize> = (0..CpuSet::count())
            .filter(|cpu| allowed.is_set(*cpu).unwrap_or(false))
            .collect();
        let mut taken = taken();
        // Two lanes on one machine do not know of each other.
        let cpu = choose(&allowed, &taken, Pid::this().as_raw().unsigned_abs() as usize)?;
        taken.push(cpu);
        Some(Seat(cpu))
    }

    /// Its number.
    pub(super) fn cpu(&self) -> usize {
        self.0
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut taken = taken();
        if let Some(at) = taken.iter().position(|cpu| *cpu == self.0) {
            taken.swap_remove(at);
        }
    }
}

/// One that the fewest have; of those the first from a place on.
fn choose(allowed: &[usize], taken: &[usize], from: usize) -> Option<usize> {
    let (before, after) = allowed.split_at_checked(from.checked_rem(allowed.len())?)?;
    let have = |cpu: usize| taken.iter().filter(|t| **t == cpu).count();
    after.iter().chain(before).copied().min_by_key(|cpu| have(*cpu))
}

#[cfg(test)]
mod tests {
    use super::choose;

    #[test]
    fn each_guest_has_its_own_cpu_while_there_are_some() {
        assert_eq!(choose(&[0, 1], &[], 4), Some(0));
        assert_eq!(choose(&[0, 1], &[], 5), Some(1));
        assert_eq!(choose(&[0, 1], &[1], 5), Some(0));
        assert_eq!(choose(&[0, 1], &[1, 0], 5), Some(1));
        assert_eq!(
            choose(&[2, 5, 9], &[2, 5, 9, 2, 5], 3),
            Some(9),
            "only those that it may have"
        );
        assert_eq!(choose(&[], &[], 5), None);
    }
}
