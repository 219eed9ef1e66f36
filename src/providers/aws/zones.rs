//! In which zones a network of the cluster's own has subnets. Pure.

use super::resources::ZONES;
use crate::error::{Error, Result};
use std::collections::{BTreeMap, BTreeSet};

/// What is known of the region's zones.
#[derive(Debug, Default)]
pub struct Zones {
    /// Those that are available.
    pub there: BTreeSet<String>,
    /// By wanted type, those that have it.
    pub offered: BTreeMap<String, BTreeSet<String>>,
    /// Those in which the cluster has a subnet, with its range.
    pub kept: BTreeMap<String, String>,
}

/// Those that the blueprint names; else where subnets are already, and of the others those that have every wanted type (the most of
/// them, if none has all). Sorted.
pub fn choose(named: &[String], zones: &Zones) -> Result<Vec<String>> {
    if !named.is_empty() {
        return chosen_by_name(named, zones);
    }
    let types = |zone: &&String| zones.offered.values().filter(|its| its.contains(*zone)).count();
    let most = zones.there.iter().map(|zone| types(&zone)).max().unwrap_or_default();
    let others = zones.there.iter().filter(|zone| !zones.kept.contains_key(*zone) && types(zone) == most);
    let room = ZONES.saturating_sub(zones.kept.len());
    let all: BTreeSet<&String> = zones.kept.keys().chain(others.take(room)).collect();
    Ok(all.into_iter().cloned().collect())
}

/// A subnet that machines are in cannot go, and machines do not move.
fn chosen_by_name(named: &[String], zones: &Zones) -> Result<Vec<String>> {
    let named: BTreeSet<&String> = named.iter().collect();
    if let Some(unknown) = named.iter().find(|zone| !zones.there.contains(**zone) && !zones.kept.contains_key(**zone)) {
        let there: Vec<&str> = zones.there.iter().map(String::as_str).collect();
        return Err(Error::input(format!("could not find zone {unknown}: this region and account have {}", there.join(", ")))
            .hint("spec.providers.aws.zones names zones of the region"));
    }
    if let Some(left) = zones.kept.keys().find(|zone| !named.contains(zone)) {
        return Err(Error::input(format!("could not leave zone {left}: the cluster has a subnet there"))
            .hint(format!("add {left} to spec.providers.aws.zones, or take the cluster away first (kprov down)")));
    }
    Ok(named.into_iter().cloned().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(zones: &str) -> BTreeSet<String> {
        zones.split_whitespace().map(String::from).collect()
    }

    /// Zones a to e; what is offered is `small` everywhere but in c, and `big` in the zones given.
    fn check(named: &str, kept: &str, big: &str, expected: Result<&str, &str>) {
        let offered = [("small".to_string(), set("a b d e")), ("big".to_string(), set(big))].into();
        let kept = set(kept).into_iter().map(|zone| (zone, String::new())).collect();
        let zones = Zones { there: set("a b c d e"), offered, kept };
        let named: Vec<String> = named.split_whitespace().map(String::from).collect();
        match (choose(&named, &zones), expected) {
            (Ok(zones), Ok(expected)) => assert_eq!(zones.join(" "), expected),
            (Err(error), Err(part)) => assert!(error.to_string().contains(part) && !error.hints().is_empty(), "{error}"),
            (got, wanted) => panic!("{got:?} instead of {wanted:?}"),
        }
    }

    #[test]
    fn zones_that_have_every_type_are_taken() {
        check("", "", "a b c d e", Ok("a b d"));
        check("", "", "b c e", Ok("b e"));
        check("", "", "", Ok("a b d"));
        check("", "", "c", Ok("a b c"));
    }

    #[test]
    fn zones_with_a_subnet_stay_and_others_fill_up() {
        check("", "c", "a b d e", Ok("a b c"));
        check("", "c d e", "a b", Ok("c d e"));
        check("", "a b c d", "", Ok("a b c d"));
    }

    #[test]
    fn the_blueprint_names_zones_that_are_there_and_leaves_none_with_a_subnet() {
        check("e c", "", "", Ok("c e"));
        check("e c a d", "c e", "", Ok("a c d e"));
        check("a z", "", "", Err("could not find zone z: this region and account have a, b, c, d, e"));
        check("a b", "b c", "", Err("could not leave zone c"));
    }
}
