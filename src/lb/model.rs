//! Who gets the next connection: health and balance as a state machine, without a socket or a clock.

use serde::{Deserialize, Serialize};
use std::net::SocketAddr;

/// One address that is served, and by whom.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Listener {
    pub address: SocketAddr,
    pub backends: Vec<Backend>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backend {
    /// The machine's.
    pub name: String,
    pub address: SocketAddr,
}

/// Failed checks in a row that take a backend out. One good check brings it back.
const FALL: u32 = 2;

/// The backends of one listener. New ones count as healthy: the first connection need not wait for a check, and a failed one moves on.
#[derive(Debug, Default)]
pub struct Pool {
    members: Vec<Member>,
    /// Where the search starts, so that equals take turns.
    turn: usize,
}

#[derive(Debug)]
struct Member {
    backend: Backend,
    failures: u32,
    up: bool,
    connections: usize,
}

impl Pool {
    /// Replaces the backends; those that stay keep their health and connections.
    pub fn set(&mut self, backends: &[Backend]) {
        let mut old = std::mem::take(&mut self.members);
        let keep = |backend: &Backend| match old.iter().position(|member| member.backend == *backend) {
            Some(place) => old.swap_remove(place),
            None => Member { backend: backend.clone(), failures: 0, up: true, connections: 0 },
        };
        self.members = backends.iter().map(keep).collect();
    }

    pub fn backends(&self) -> impl Iterator<Item = (&Backend, bool)> {
        self.members.iter().map(|member| (&member.backend, member.up))
    }

    /// The healthy backend with the fewest connections that was not `tried`. When none is healthy any untried one: a wrong verdict
    /// must not turn clients away, and one that has just come up answers before its next check.
    pub fn pick(&mut self, tried: &[SocketAddr]) -> Option<SocketAddr> {
        let count = self.members.len();
        let turns =
            (0..count).map(|step| (self.turn + step) % count).filter(|place| !tried.contains(&self.members[*place].backend.address));
        let best = turns.min_by_key(|place| (!self.members[*place].up, self.members[*place].connections))?;
        self.turn = best + 1;
        Some(self.members[best].backend.address)
    }

    pub fn opened(&mut self, address: SocketAddr) {
        self.change(address, |member| member.connections += 1);
    }

    pub fn closed(&mut self, address: SocketAddr) {
        // It may have left and come back since, with a new count.
        self.change(address, |member| member.connections = member.connections.saturating_sub(1));
    }

    /// A client's connection failed: the next client must not be the one to find out again.
    pub fn refused(&mut self, address: SocketAddr) {
        self.change(address, |member| (member.up, member.failures) = (false, FALL));
    }

    pub fn checked(&mut self, address: SocketAddr, answered: bool) {
        self.change(address, |member| {
            member.failures = if answered { 0 } else { member.failures + 1 };
            member.up = answered || (member.up && member.failures < FALL);
        });
    }

    fn change(&mut self, address: SocketAddr, change: impl FnOnce(&mut Member)) {
        if let Some(member) = self.members.iter_mut().find(|member| member.backend.address == address) {
            change(member);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(last: u8) -> SocketAddr {
        ([10, 88, 0, last], 32000).into()
    }

    fn backends(lasts: &[u8]) -> Vec<Backend> {
        lasts.iter().map(|last| Backend { name: format!("worker-{last}"), address: at(*last) }).collect()
    }

    fn pool(lasts: &[u8]) -> Pool {
        let mut pool = Pool::default();
        pool.set(&backends(lasts));
        pool
    }

    fn check_picks(pool: &mut Pool, expected: &[u8]) {
        let picks: Vec<_> = expected.iter().map(|_| pool.pick(&[])).collect();
        assert_eq!(picks, expected.iter().map(|last| Some(at(*last))).collect::<Vec<_>>());
    }

    #[test]
    fn equals_take_turns() {
        check_picks(&mut pool(&[1, 2, 3]), &[1, 2, 3, 1, 2]);
    }

    #[test]
    fn the_least_busy_is_preferred() {
        let mut pool = pool(&[1, 2]);
        pool.opened(at(1));
        check_picks(&mut pool, &[2, 2]);
        pool.closed(at(1));
        pool.opened(at(2));
        check_picks(&mut pool, &[1]);
    }

    #[test]
    fn one_failed_connection_or_two_failed_checks_take_a_backend_out_and_one_good_check_brings_it_back() {
        let mut pool = pool(&[1, 2]);
        pool.refused(at(1));
        check_picks(&mut pool, &[2, 2]);
        pool.checked(at(1), true);
        check_picks(&mut pool, &[1, 2]);
        pool.checked(at(2), false);
        check_picks(&mut pool, &[1, 2]);
        pool.checked(at(2), false);
        check_picks(&mut pool, &[1, 1]);
    }

    #[test]
    fn with_all_backends_down_each_is_still_tried_once() {
        let mut pool = pool(&[1, 2]);
        pool.refused(at(1));
        pool.refused(at(2));
        let first = pool.pick(&[]).unwrap();
        let second = pool.pick(&[first]).unwrap();
        assert_ne!(first, second);
        assert_eq!(pool.pick(&[first, second]), None);
    }

    #[test]
    fn a_change_of_backends_keeps_what_is_known_of_those_that_stay() {
        let mut pool = pool(&[1, 2]);
        pool.refused(at(1));
        pool.set(&backends(&[1, 3]));
        assert_eq!(pool.backends().map(|(_, up)| up).collect::<Vec<_>>(), [false, true]);
        check_picks(&mut pool, &[3, 3]);
        pool.set(&[]);
        assert_eq!(pool.pick(&[]), None);
    }
}
