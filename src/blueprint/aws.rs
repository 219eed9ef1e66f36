//! What can be wrong with `spec.providers.aws` before AWS is asked: ids, names and addresses that cannot be one.

use super::check::{elsewhere, word};
use super::hosts::is_user;
use super::structure::{Report, did_you_mean};
use super::tree::{Node, Place};
use std::collections::BTreeMap;

const PATH: &str = "spec.providers.aws";
/// Known by name; everything else is looked up as it is written.
pub const IMAGES: [&str; 2] = ["debian-12", "ubuntu-24.04"];

/// Nothing when another provider is chosen: its section may wait there.
pub fn aws(spec: &Node, report: &mut dyn Report) {
    let section = spec.field("providers").and_then(|providers| providers.field("aws"));
    let Some(section) = section.filter(|_| spec.text_of("provider") == Some("aws")) else { return };
    network(section, report);
    let known = IMAGES.join(", ");
    let hint = format!("{known}, ami-0123456789abcdef0, or <owner>/<pattern of names>, for instance 136693071363/debian-12-{{arch}}-*");
    word(section.field("image"), &format!("{PATH}.image"), is_image, "an image", &hint, report);
    word(section.field("user"), &format!("{PATH}.user"), is_user, "a user's name", "for instance admin or ubuntu", report);
    let address = "for instance https://vpce-1.ec2.eu-west-1.vpce.amazonaws.com";
    word(section.field("endpoint"), &format!("{PATH}.endpoint"), is_endpoint, "the address of an endpoint", address, report);
    for (key, node) in section.field("endpoints").into_iter().flat_map(Node::fields) {
        word(Some(node), &format!("{PATH}.endpoints.{}", key.name), is_endpoint, "the address of an endpoint", address, report);
    }
    groups(spec, section, report);
}

/// A network and its subnets are only good together: neither says which of the other are meant.
fn network(section: &Node, report: &mut dyn Report) {
    let (vpc, subnets) = (section.field("vpc"), section.field("subnets"));
    match (vpc, subnets.filter(|subnets| !subnets.items().is_empty())) {
        (Some(vpc), None) => {
            let hint = Some("add `subnets: [subnet-...]`: those of it that may be used, one in each zone".into());
            report.report(vpc.place, &format!("{PATH}.vpc"), "a network is given without its subnets".into(), hint);
        }
        (None, Some(subnets)) => {
            let place = Place { width: 1, ..subnets.place };
            let hint = Some("add `vpc: vpc-...`: the network that they are in".into());
            report.report(place, &format!("{PATH}.subnets"), "subnets are given without their network".into(), hint);
        }
        _ => {}
    }
    let mut id = |node: Option<&Node>, path: &str, prefix: &str, what: &str| {
        let hint = format!("for instance {prefix}0a1b2c3d4e5f67890");
        word(node, path, |text| is_id(text, prefix), &format!("the id of a {what}"), &hint, report);
    };
    id(vpc, &format!("{PATH}.vpc"), "vpc-", "network");
    let subnets = subnets.map_or(&[][..], Node::items);
    subnets.iter().enumerate().for_each(|(index, subnet)| id(Some(subnet), &format!("{PATH}.subnets[{index}]"), "subnet-", "subnet"));
    once(subnets, "subnets", report);
    zones(section, vpc.is_some(), report);
}

/// Those of a network of the cluster's own.
fn zones(section: &Node, is_given: bool, report: &mut dyn Report) {
    let Some(list) = section.field("zones").filter(|list| !list.items().is_empty()) else { return };
    if is_given {
        let hint = Some("leave `zones` away: those of the subnets are used".into());
        let place = Place { width: 1, ..list.place };
        report.report(place, &format!("{PATH}.zones"), "zones are given beside a network with subnets".into(), hint);
    }
    for (index, zone) in list.items().iter().enumerate() {
        word(Some(zone), &format!("{PATH}.zones[{index}]"), is_zone, "the name of a zone", "for instance eu-west-1a", report);
    }
    once(list.items(), "zones", report);
}

fn once(nodes: &[Node], field: &str, report: &mut dyn Report) {
    let mut seen: BTreeMap<&str, Place> = BTreeMap::new();
    for (index, (node, text)) in nodes.iter().enumerate().filter_map(|(index, node)| Some((index, (node, node.text()?)))) {
        match seen.get(text) {
            Some(first) => {
                report.report(node.place, &format!("{PATH}.{field}[{index}]"), format!("`{text}` is named twice"), elsewhere(*first));
            }
            None => drop(seen.insert(text, node.place)),
        }
    }
}

fn groups(spec: &Node, section: &Node, report: &mut dyn Report) {
    let groups: Vec<&str> = spec.field("machines").map_or(&[][..], Node::items).iter().filter_map(|group| group.text_of("name")).collect();
    for (key, _) in section.field("instanceTypes").into_iter().flat_map(Node::fields) {
        if !groups.contains(&key.name.as_str()) {
            let path = format!("{PATH}.instanceTypes.{}", key.name);
            report.report(key.place, &path, format!("no machine group is called `{}`", key.name), Some(did_you_mean(&key.name, &groups)));
        }
    }
}

fn is_id(text: &str, prefix: &str) -> bool {
    let is_hexadecimal = |letter: char| letter.is_ascii_digit() || ('a'..='f').contains(&letter);
    text.strip_prefix(prefix).is_some_and(|rest| (8..=17).contains(&rest.len()) && rest.chars().all(is_hexadecimal))
}

/// A region's name and a letter; which of those exist only AWS knows.
fn is_zone(text: &str) -> bool {
    let letter = text.chars().last().filter(char::is_ascii_lowercase);
    let region = text.strip_suffix(|last| Some(last) == letter).unwrap_or_default();
    region.ends_with(|last: char| last.is_ascii_digit())
        && region.split('-').count() >= 3
        && region.chars().all(|one| one.is_ascii_lowercase() || one.is_ascii_digit() || one == '-')
}

fn is_image(text: &str) -> bool {
    let owned = |(owner, pattern): (&str, &str)| {
        let account = owner.len() == 12 && owner.chars().all(|letter| letter.is_ascii_digit());
        (account || ["self", "amazon", "aws-marketplace"].contains(&owner)) && !pattern.is_empty()
    };
    IMAGES.contains(&text) || is_id(text, "ami-") || text.split_once('/').is_some_and(owned)
}

fn is_endpoint(text: &str) -> bool {
    let rest = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
    rest.is_some_and(|rest| !rest.is_empty() && !rest.contains(|letter: char| letter.is_whitespace() || letter == '@'))
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Said(Vec<String>);

    impl Report for Said {
        fn report(&mut self, place: Place, path: &str, message: String, _hint: Option<String>) {
            self.0.push(format!("{}:{} {}: {message}", place.line, place.column, path.trim_start_matches(PATH)));
        }
        fn full(&self) -> bool {
            false
        }
    }

    fn check(section: &str, expected: &[&str]) {
        let text = format!("provider: aws\nmachines: [{{name: control}}, {{name: worker}}]\nproviders:\n  aws: {section}\n");
        let (documents, mistakes) = super::super::tree::read(&text);
        assert_eq!(mistakes, []);
        let mut said = Said(Vec::new());
        aws(&documents[0], &mut said);
        assert_eq!(said.0, expected, "{text}");
    }

    #[test]
    fn every_mistake_in_the_section_is_told_with_its_place() {
        check("{vpc: vpc-0a1b2c3d, subnets: [subnet-0a1b2c3d], instanceTypes: {worker: m7i.large}, user: root}", &[]);
        check("{vpc: vpc-0a1b2c3d}", &["4:14 .vpc: a network is given without its subnets"]);
        check("{subnets: [subnet-0a1b2c3d]}", &["4:18 .subnets: subnets are given without their network"]);
        check(
            "{vpc: my-net, subnets: [subnet-0a1b2c3d, subnet-X, subnet-0a1b2c3d]}",
            &[
                "4:14 .vpc: `my-net` is not the id of a network",
                "4:49 .subnets[1]: `subnet-X` is not the id of a subnet",
                "4:59 .subnets[2]: `subnet-0a1b2c3d` is named twice",
            ],
        );
        check("{zones: [eu-west-1a, eu-west-1b]}", &[]);
        check(
            "{zones: [eu-west-1, eu-west-1a, eu-west-1a]}",
            &["4:17 .zones[0]: `eu-west-1` is not the name of a zone", "4:40 .zones[2]: `eu-west-1a` is named twice"],
        );
        check(
            "{vpc: vpc-0a1b2c3d, subnets: [subnet-0a1b2c3d], zones: [eu-west-1a]}",
            &["4:63 .zones: zones are given beside a network with subnets"],
        );
        check(
            "{image: fedora, user: -x, endpoint: here, endpoints: {ec2: \"ftp://x\"}, instanceTypes: {workr: m7i.large}}",
            &[
                "4:16 .image: `fedora` is not an image",
                "4:30 .user: `-x` is not a user's name",
                "4:44 .endpoint: `here` is not the address of an endpoint",
                "4:67 .endpoints.ec2: `ftp://x` is not the address of an endpoint",
                "4:95 .instanceTypes.workr: no machine group is called `workr`",
            ],
        );
    }

    #[test]
    fn a_zone_is_a_region_and_a_letter() {
        assert!(["eu-west-1a", "us-gov-east-1b", "us-east-1f"].into_iter().all(is_zone));
        assert!(!["", "a", "eu-west-1", "EU-west-1a", "1a", "eu-west-a", "europe-west1-b"].into_iter().any(is_zone));
    }

    #[test]
    fn an_image_is_a_known_one_an_id_or_an_owners() {
        for good in ["debian-12", "ubuntu-24.04", "ami-0a1b2c3d", "self/mine-*", "099720109477/ubuntu/images/hvm-ssd-gp3/*"] {
            assert!(is_image(good), "{good}");
        }
        for wrong in ["", "ubuntu", "ami-", "somebody/x", "123/x", "self/"] {
            assert!(!is_image(wrong), "{wrong}");
        }
    }
}
