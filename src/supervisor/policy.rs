//! The service manager's decisions, without a process in sight: when to start again, in which order.

use super::Service;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

const FIRST_DELAY: Duration = Duration::from_millis(100);
const LONGEST_DELAY: Duration = Duration::from_secs(10);
/// A service that lived this long was well; its next death starts the back-off anew.
const HEALTHY_AFTER: Duration = Duration::from_secs(10);

/// How long to wait before the next start, from the previous wait and how long the process lived.
pub fn delay(previous: Option<Duration>, lived: Duration) -> Duration {
    match previous {
        Some(previous) if lived < HEALTHY_AFTER => (previous * 2).min(LONGEST_DELAY),
        _ => FIRST_DELAY,
    }
}

/// Names so that each comes after what it is `after`; what is unknown, or in a circle, does not hold anything up.
pub fn order(services: &BTreeMap<String, Service>) -> Vec<String> {
    let mut done: BTreeSet<&str> = BTreeSet::new();
    let mut order = Vec::new();
    while order.len() < services.len() {
        let ready = |service: &&Service| {
            !done.contains(service.name.as_str())
                && service.after.iter().all(|name| done.contains(name.as_str()) || !services.contains_key(name))
        };
        let next = services.values().find(ready).or_else(|| services.values().find(|service| !done.contains(service.name.as_str())));
        let next = next.expect("fewer ordered than there are");
        done.insert(&next.name);
        order.push(next.name.clone());
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_delay(previous: Option<u64>, lived: u64, expected: u64) {
        let delay = delay(previous.map(Duration::from_millis), Duration::from_millis(lived));
        assert_eq!(delay, Duration::from_millis(expected), "previous {previous:?} lived {lived}");
    }

    #[test]
    fn back_off_doubles_to_ten_seconds_and_starts_anew_after_a_healthy_life() {
        check_delay(None, 0, 100);
        check_delay(Some(100), 50, 200);
        check_delay(Some(6400), 9_999, 10_000);
        check_delay(Some(10_000), 0, 10_000);
        check_delay(Some(10_000), 10_000, 100);
    }

    fn check_order(wish: &[(&str, &[&str])], expected: &[&str]) {
        let services = wish.iter().map(|(name, after)| {
            let after = after.iter().map(|name| name.to_string()).collect();
            (name.to_string(), Service { after, ..Service::new(name, &["/bin/true"]) })
        });
        assert_eq!(order(&services.collect()), expected);
    }

    #[test]
    fn services_start_after_what_they_need() {
        check_order(&[("agent", &["containerd"]), ("containerd", &["sshd"]), ("sshd", &[])], &["sshd", "containerd", "agent"]);
    }

    #[test]
    fn an_unknown_or_circular_need_does_not_keep_services_from_starting() {
        check_order(&[("a", &["gone"]), ("b", &["c"]), ("c", &["b"])], &["a", "b", "c"]);
    }
}
