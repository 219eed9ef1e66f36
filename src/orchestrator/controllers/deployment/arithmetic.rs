//! The numbers of a roll-out: how far up and down each ReplicaSet may go. Numbers only, as upstream's deployment/util.

use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

/// A ReplicaSet's numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// `spec.replicas`.
    pub wanted: i32,
    /// `status.availableReplicas`.
    pub available: i32,
}

/// `maxSurge` and `maxUnavailable` in pods; never both zero, or nothing could move.
pub fn fence_posts(surge: Option<&IntOrString>, unavailable: Option<&IntOrString>, replicas: i32) -> (i32, i32) {
    let quarter = IntOrString::String("25%".into());
    let surge = resolve(surge.unwrap_or(&quarter), replicas, true);
    let unavailable = resolve(unavailable.unwrap_or(&quarter), replicas, false);
    if surge == 0 && unavailable == 0 { (0, 1) } else { (surge, unavailable.min(replicas)) }
}

pub fn resolve(value: &IntOrString, total: i32, round_up: bool) -> i32 {
    match value {
        IntOrString::Int(number) => *number,
        IntOrString::String(text) => {
            let percent: f64 = text.trim_end_matches('%').parse().unwrap_or(0.0);
            let exact = percent * f64::from(total) / 100.0;
            (if round_up { exact.ceil() } else { exact.floor() }) as i32
        }
    }
}

/// How large the new set may be now: as many as wanted, but all sets together within `replicas + surge`.
pub fn new_size(new: i32, all: i32, replicas: i32, surge: i32) -> i32 {
    if new >= replicas {
        return replicas;
    }
    let room = replicas + surge - all;
    if room <= 0 { new } else { new + room.min(replicas - new) }
}

/// The old sets' new sizes (oldest first), for a deployment that may go down to `replicas - unavailable` available pods.
/// First what is broken goes (it costs no availability), then as many working ones as the new set makes up for.
pub fn shrink_old(old: &[Size], new: Size, replicas: i32, unavailable: i32) -> Vec<i32> {
    let mut sizes: Vec<i32> = old.iter().map(|size| size.wanted).collect();
    let all: i32 = sizes.iter().sum::<i32>() + new.wanted;
    let floor = replicas - unavailable;
    let mut spare = all - floor - (new.wanted - new.available);
    if sizes.iter().sum::<i32>() == 0 || spare <= 0 {
        return sizes;
    }
    for (size, held) in sizes.iter_mut().zip(old) {
        let broken = (held.wanted - held.available).min(spare).max(0);
        *size -= broken;
        spare -= broken;
    }
    let mut working = old.iter().map(|held| held.available).sum::<i32>() + new.available - floor;
    for size in &mut sizes {
        let gone = (*size).min(working).max(0);
        *size -= gone;
        working -= gone;
    }
    sizes
}

/// One active set's share when a deployment is scaled in the middle of a roll-out.
#[derive(Debug, Clone, Copy)]
pub struct Share {
    pub wanted: i32,
    /// replicas + surge of the deployment when this set was last sized (its annotation), else the deployment's `status.replicas`.
    pub max_before: i32,
}

/// New sizes in proportion, in the given order (largest first); what rounding leaves goes to the first.
pub fn proportional(sets: &[Share], replicas: i32, surge: i32) -> Vec<i32> {
    let allowed = if replicas > 0 { replicas + surge } else { 0 };
    let to_add = allowed - sets.iter().map(|set| set.wanted).sum::<i32>();
    let mut added = 0;
    let mut sizes = Vec::new();
    for set in sets {
        let left = to_add - added;
        let share = if set.wanted == 0 || to_add == 0 || left == 0 {
            0
        } else if to_add > 0 {
            fraction(set, replicas, surge).min(left)
        } else {
            fraction(set, replicas, surge).max(left)
        };
        sizes.push(set.wanted + share);
        added += share;
    }
    if let Some(first) = sizes.first_mut()
        && to_add != 0
    {
        *first = (*first + to_add - added).max(0);
    }
    sizes
}

fn fraction(set: &Share, replicas: i32, surge: i32) -> i32 {
    if replicas == 0 {
        return -set.wanted;
    }
    if set.max_before == 0 {
        return 0;
    }
    let size = f64::from(set.wanted) * f64::from(replicas + surge) / f64::from(set.max_before);
    size.round() as i32 - set.wanted
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size(wanted: i32, available: i32) -> Size {
        Size { wanted, available }
    }

    #[test]
    fn surge_rounds_up_and_unavailable_down_and_never_both_zero() {
        let percent = |text: &str| IntOrString::String(text.into());
        assert_eq!(fence_posts(None, None, 3), (1, 0));
        assert_eq!(fence_posts(None, None, 10), (3, 2));
        assert_eq!(fence_posts(Some(&IntOrString::Int(0)), Some(&percent("10%")), 3), (0, 1));
        assert_eq!(fence_posts(Some(&IntOrString::Int(2)), Some(&IntOrString::Int(9)), 4), (2, 4));
    }

    #[test]
    fn the_new_set_grows_into_the_surge() {
        assert_eq!(new_size(0, 3, 3, 1), 1);
        assert_eq!(new_size(1, 4, 3, 1), 1);
        assert_eq!(new_size(2, 3, 3, 1), 3);
        assert_eq!(new_size(5, 5, 3, 1), 3);
    }

    #[test]
    fn old_sets_shrink_only_as_far_as_availability_allows() {
        assert_eq!(shrink_old(&[size(3, 3)], size(1, 0), 3, 0), [3]);
        assert_eq!(shrink_old(&[size(3, 3)], size(1, 1), 3, 0), [2]);
        assert_eq!(shrink_old(&[size(10, 10)], size(3, 0), 10, 2), [8]);
        // Broken old pods go at once, though nothing new is ready.
        assert_eq!(shrink_old(&[size(8, 4), size(2, 2)], size(3, 0), 10, 2), [6, 2]);
        assert_eq!(shrink_old(&[size(0, 0), size(1, 1)], size(3, 3), 3, 0), [0, 0]);
    }

    #[test]
    fn scaling_in_the_middle_of_a_rollout_is_proportional() {
        let share = |wanted, max_before| Share { wanted, max_before };
        assert_eq!(proportional(&[share(8, 13), share(5, 13)], 15, 3), [11, 7]);
        assert_eq!(proportional(&[share(8, 13), share(5, 13)], 0, 3), [0, 0]);
        assert_eq!(proportional(&[share(10, 10)], 5, 0), [5]);
        assert_eq!(proportional(&[share(8, 13), share(5, 13)], 5, 1).iter().sum::<i32>(), 6);
    }

    /// Plays whole roll-outs where pods become available in the worst order, and holds both fences at every step.
    #[test]
    fn every_rollout_ends_and_stays_between_its_fences() {
        for replicas in 1..12 {
            for (surge, unavailable) in [(0, 1), (1, 0), (1, 1), (3, 0), (2, 5)] {
                let unavailable = unavailable.min(replicas);
                let (mut old, mut new) = (size(replicas, replicas), size(0, 0));
                let mut steps = 0;
                while (old.wanted, new.available) != (0, replicas) {
                    steps += 1;
                    assert!(steps < 200, "replicas {replicas} surge {surge} unavailable {unavailable} does not end: {old:?} {new:?}");
                    let grown = new_size(new.wanted, old.wanted + new.wanted, replicas, surge);
                    if grown != new.wanted {
                        new.wanted = grown;
                    } else {
                        let shrunk = shrink_old(&[old], new, replicas, unavailable)[0];
                        if shrunk == old.wanted {
                            new.available = (new.available + 1).min(new.wanted);
                        }
                        old = size(shrunk, old.available.min(shrunk));
                    }
                    assert!(old.wanted + new.wanted <= replicas + surge);
                    assert!(old.available + new.available >= replicas - unavailable, "{replicas} {surge} {unavailable}: {old:?} {new:?}");
                }
            }
        }
    }
}
