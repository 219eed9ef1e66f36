//! A network that was there before the cluster: whether machines can live in it. Pure; nothing of it is ever changed.

use crate::blueprint::providers::Aws as Section;
use crate::engine::Observed;
use crate::error::Error;
use crate::providers::{POD_NETWORK, SERVICE_NETWORK};
use aws_sdk_ec2::types::{Route, RouteState, RouteTable, Subnet, Vpc};
use ipnet::IpNet;
use std::collections::BTreeMap;

#[derive(Debug, Clone, PartialEq)]
pub struct Given {
    pub vpc: String,
    /// By zone.
    pub subnets: BTreeMap<String, String>,
    /// No subnet leads to an internet gateway: whatever is in them has addresses of the network only.
    pub private: bool,
}

/// What EC2 says of it.
#[derive(Debug, Default)]
pub struct Facts {
    pub vpc: Option<Vpc>,
    /// Those that the blueprint names, as far as they exist.
    pub subnets: Vec<Subnet>,
    /// All of the network.
    pub tables: Vec<RouteTable>,
    /// Whether names of AWS's filesystems are answered in it; `None`: nobody needs them.
    pub names: Option<bool>,
}

/// The network, or everything that stands against it.
pub fn judge(section: &Section, facts: &Facts) -> Result<Given, Vec<Error>> {
    let wanted = section.vpc.as_deref().unwrap_or_default();
    let Some(vpc) = &facts.vpc else {
        return Err(vec![missing(wanted)]);
    };
    let mut problems: Vec<Error> = overlaps(vpc).into_iter().chain(nameless(wanted, facts)).collect();
    let mut subnets: BTreeMap<String, String> = BTreeMap::new();
    let mut public = Vec::new();
    for id in &section.subnets {
        match place(id, wanted, facts) {
            Ok((zone, is_public)) => {
                public.push(is_public);
                if let Some(other) = subnets.insert(zone.clone(), id.clone()) {
                    problems.push(
                        Error::input(format!("could not use both {other} and {id}: they are in one zone, {zone}"))
                            .hint("name one subnet for each zone in spec.providers.aws.subnets"),
                    );
                }
            }
            Err(problem) => problems.push(problem),
        }
    }
    let private = !public.contains(&true);
    if !private && public.contains(&false) {
        problems.push(
            Error::input("could not use these subnets together: some lead to an internet gateway, some do not")
                .hint("name subnets of one kind in spec.providers.aws.subnets: public ones, or ones whose way out is a NAT gateway"),
        );
    }
    if problems.is_empty() { Ok(Given { vpc: wanted.into(), subnets, private }) } else { Err(problems) }
}

fn missing(vpc: &str) -> Error {
    Error::input(format!("could not find network {vpc} in this region and account"))
        .hint("aws ec2 describe-vpcs shows those that are there; spec.providers.aws.vpc names one")
}

/// A subnet's zone, and whether it leads to an internet gateway. One without a way out is of no use: machines install packages, and the
/// loop inside asks AWS itself.
fn place(id: &str, vpc: &str, facts: &Facts) -> Result<(String, bool), Error> {
    let hint = || format!("aws ec2 describe-subnets --filters Name=vpc-id,Values={vpc} shows those that are there");
    let subnet = facts.subnets.iter().find(|subnet| subnet.subnet_id() == Some(id));
    let subnet = subnet.ok_or_else(|| Error::input(format!("could not find subnet {id} in this region and account")).hint(hint()))?;
    let its = subnet.vpc_id().unwrap_or_default();
    if its != vpc {
        return Err(Error::input(format!("could not use subnet {id}: it is in {its}, not in {vpc}")).hint(hint()));
    }
    let table = |is_its: &dyn Fn(&RouteTable) -> bool| facts.tables.iter().find(|table| is_its(table));
    let own = table(&|table| table.associations().iter().any(|one| one.subnet_id() == Some(id)));
    let table = own.or_else(|| table(&|table| table.associations().iter().any(|one| one.main() == Some(true))));
    let out = table.and_then(|table| table.routes().iter().find(|route| leads_out(route)));
    let out = out.ok_or_else(|| {
        Error::input(format!("could not use subnet {id}: no route of it leads out of the network"))
            .hint("give its route table a route for 0.0.0.0/0 to an internet gateway or a NAT gateway, or name another subnet")
    })?;
    let is_public = out.gateway_id().is_some_and(|gateway| gateway.starts_with("igw-"));
    Ok((subnet.availability_zone().unwrap_or_default().into(), is_public))
}

fn leads_out(route: &Route) -> bool {
    route.destination_cidr_block() == Some("0.0.0.0/0") && route.state() != Some(&RouteState::Blackhole)
}

/// Pods and services have addresses of their own, which must not be somebody else's there.
fn overlaps(vpc: &Vpc) -> Option<Error> {
    let more = vpc.cidr_block_association_set().iter().filter_map(|one| one.cidr_block());
    let taken = vpc.cidr_block().into_iter().chain(more).filter_map(|range| range.parse::<IpNet>().ok());
    let ours = [POD_NETWORK, SERVICE_NETWORK].map(|range| range.parse::<IpNet>().expect("a range"));
    let meets = |range: &IpNet| ours.iter().find(|own| own.contains(range) || range.contains(*own)).copied();
    let (range, own) = taken.into_iter().find_map(|range| Some((range, meets(&range)?)))?;
    let id = vpc.vpc_id().unwrap_or_default();
    Some(
        Error::input(format!("could not use network {id}: its range {range} meets {own}, which pods or services have"))
            .hint("name another network in spec.providers.aws.vpc"),
    )
}

/// Filesystems are mounted by names that the network's own DNS answers.
fn nameless(vpc: &str, facts: &Facts) -> Option<Error> {
    (facts.names == Some(false)).then(|| {
        Error::input(format!("could not use filesystems in network {vpc}: it answers no names of AWS's"))
            .hint(format!("aws ec2 modify-vpc-attribute --vpc-id {vpc} --enable-dns-support; and once more with --enable-dns-hostnames"))
    })
}

/// A cluster stays in its network: groups and machines cannot move, and a half-moved cluster would lose its way out.
pub fn moved(given: Option<&Given>, groups: &[Observed], networks: &[Observed]) -> Option<Error> {
    let at_home = |network: &str| match given {
        Some(given) => given.vpc == network,
        None => networks.iter().any(|own| own.handle == network),
    };
    let elsewhere = groups.iter().filter_map(|group| group.outputs["network"].as_str()).find(|network| !at_home(network))?;
    let wanted = given.map_or("a network of its own", |given| &given.vpc);
    Some(
        Error::input(format!("could not move the cluster from {elsewhere} to {wanted}"))
            .hint("take it away first (kprov down), give the blueprint another name, or keep spec.providers.aws.vpc as it was"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{Id, Phase};
    use crate::providers::aws::names::GROUP;
    use aws_sdk_ec2::types::RouteTableAssociation;
    use serde_json::json;

    fn subnet(id: &str, vpc: &str, zone: &str) -> Subnet {
        Subnet::builder().subnet_id(id).vpc_id(vpc).availability_zone(zone).build()
    }

    fn table(association: RouteTableAssociation, route: Route) -> RouteTable {
        let local = Route::builder().destination_cidr_block("10.0.0.0/16").gateway_id("local").build();
        RouteTable::builder().associations(association).routes(local).routes(route).build()
    }

    fn out() -> aws_sdk_ec2::types::builders::RouteBuilder {
        Route::builder().destination_cidr_block("0.0.0.0/0")
    }

    fn of(subnet: &str) -> RouteTableAssociation {
        RouteTableAssociation::builder().subnet_id(subnet).build()
    }

    /// Two public subnets by the main table, a private one, one whose gateway is gone, one of another network.
    fn facts() -> Facts {
        let main = table(RouteTableAssociation::builder().main(true).build(), out().gateway_id("igw-1").build());
        let nat = table(of("subnet-n"), out().nat_gateway_id("nat-1").build());
        let gone = table(of("subnet-x"), out().gateway_id("igw-1").state(RouteState::Blackhole).build());
        let subnets = [("a", "a"), ("b", "b"), ("n", "a"), ("x", "b")].map(|(id, zone)| subnet(&format!("subnet-{id}"), "vpc-1", zone));
        Facts {
            vpc: Some(Vpc::builder().vpc_id("vpc-1").cidr_block("10.0.0.0/16").build()),
            subnets: [&subnets[..], &[subnet("subnet-o", "vpc-2", "c")]].concat(),
            tables: vec![main, nat, gone],
            names: Some(true),
        }
    }

    fn check(facts: &Facts, subnets: &[&str], expected: Result<bool, &[&str]>) {
        let subnets: Vec<String> = subnets.iter().map(ToString::to_string).collect();
        let section = Section { vpc: Some("vpc-1".into()), subnets, ..Section::default() };
        match (judge(&section, facts), expected) {
            (Ok(given), Ok(private)) => assert_eq!((given.private, given.subnets.len()), (private, section.subnets.len())),
            (Err(problems), Err(parts)) => {
                let said: Vec<String> = problems.iter().map(Error::to_string).collect();
                assert_eq!(said.len(), parts.len(), "{said:?}");
                assert!(said.iter().zip(parts).all(|(said, part)| said.contains(part)), "{said:?}");
                assert!(problems.iter().all(|problem| !problem.hints().is_empty()), "every problem has a next step");
            }
            (got, wanted) => panic!("{got:?} instead of {wanted:?}"),
        }
    }

    #[test]
    fn a_given_network_has_a_way_out_of_one_kind_in_each_zone() {
        check(&facts(), &["subnet-a", "subnet-b"], Ok(false));
        check(&facts(), &["subnet-n"], Ok(true));
        check(&facts(), &["subnet-b", "subnet-n"], Err(&["some lead to an internet gateway"]));
        check(&facts(), &["subnet-a", "subnet-n"], Err(&["in one zone, a", "some lead"]));
        let all = ["no route of it leads out", "it is in vpc-2, not in vpc-1", "could not find subnet subnet-z"];
        check(&facts(), &["subnet-x", "subnet-o", "subnet-z"], Err(&all));
    }

    #[test]
    fn a_given_network_is_there_answers_names_and_has_other_addresses_than_pods() {
        check(&Facts { vpc: None, ..facts() }, &["subnet-a"], Err(&["could not find network vpc-1"]));
        check(&Facts { names: Some(false), ..facts() }, &["subnet-a"], Err(&["it answers no names"]));
        let wide = Vpc::builder().vpc_id("vpc-1").cidr_block("10.0.0.0/8").build();
        check(&Facts { vpc: Some(wide), ..facts() }, &["subnet-a"], Err(&["10.0.0.0/8 meets 10.244.0.0/14"]));
    }

    #[test]
    fn a_cluster_stays_in_the_network_that_its_groups_are_in() {
        let thing = |kind: &str, handle: &str, outputs| {
            let (spec, needs) = (json!({}), vec![]);
            Observed { id: Id::new(kind, "x"), handle: handle.into(), generation: 1, phase: Phase::Ready, spec, outputs, needs }
        };
        let groups = [thing(GROUP, "sg-1", json!({"network": "vpc-1"}))];
        let own = [thing("network", "vpc-1", json!({}))];
        let given = |vpc: &str| Given { vpc: vpc.into(), subnets: BTreeMap::new(), private: false };
        assert!(moved(Some(&given("vpc-1")), &groups, &[]).is_none() && moved(None, &groups, &own).is_none());
        assert!(moved(Some(&given("vpc-2")), &groups, &own).is_some() && moved(None, &groups, &[]).is_some());
        assert!(moved(Some(&given("vpc-2")), &[], &own).is_none());
    }
}
