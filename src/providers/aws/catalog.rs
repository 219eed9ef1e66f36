//! What the region has: zones, instance types in them, images, the network that is given. Asked once per question.

use super::Aws;
use super::failure::OrFailure;
use super::given::{self, Facts, Given};
use super::images::{self, Image, Search};
use super::names::{GROUP, SUBNET};
use super::resources::{self, Catalog};
use super::zones::{self, Zones};
use super::{check, sizes};
use crate::blueprint::Blueprint;
use crate::blueprint::providers::Aws as Section;
use crate::error::{Error, Result};
use crate::providers::resources::NETWORK;
use aws_sdk_ec2::types::{Filter, LocationType, VpcAttributeName};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

pub fn filter(name: &str, values: impl IntoIterator<Item = impl Into<String>>) -> Filter {
    values.into_iter().fold(Filter::builder().name(name), |filter, value| filter.values(value)).build()
}

impl Aws {
    pub(super) async fn catalog(&self, blueprint: &Blueprint) -> Result<Catalog> {
        let section = &blueprint.spec.providers.aws;
        let types: BTreeSet<String> = resources::types(blueprint)?.into_values().collect();
        let names = !blueprint.spec.filesystems.is_empty();
        let Section { image, user, vpc, subnets, zones, .. } = section;
        let question = format!("{types:?} {image:?} {user:?} {vpc:?} {subnets:?} {zones:?} {names}");
        if let Some(known) = self.catalogs.lock().get(&question) {
            return Ok(known.clone());
        }
        let given = self.given(section, names).await?;
        let mut offered = self.offered(&types).await?;
        let (zones, ranges) = match &given {
            Some(given) => (given.subnets.keys().cloned().collect(), BTreeMap::new()),
            None => {
                let known = Zones { there: self.zones().await?, kept: self.ranges().await?, offered: offered.clone() };
                (zones::choose(zones, &known)?, known.kept)
            }
        };
        offered.values_mut().for_each(|places| places.retain(|zone| zones.contains(zone)));
        let mut images = BTreeMap::new();
        for architecture in types.iter().map(|kind| sizes::architecture(kind)).collect::<BTreeSet<_>>() {
            images.extend(self.image(section, architecture).await?.map(|image| (architecture.to_string(), image)));
        }
        let catalog = Catalog { zones, ranges, offered, images, given };
        // Only another network is another question: the loop, which asks the same every time, need not look again.
        self.stays(&catalog).await?;
        self.catalogs.lock().insert(question, catalog.clone());
        Ok(catalog)
    }

    /// The network that the blueprint names. `names`: somebody will ask its DNS for filesystems.
    async fn given(&self, section: &Section, names: bool) -> Result<Option<Given>> {
        let Some(vpc) = &section.vpc else { return Ok(None) };
        let ec2 = &self.clients.ec2;
        let of_vpc = || filter("vpc-id", [vpc]);
        let subnets = ec2.describe_subnets().filters(filter("subnet-id", section.subnets.iter().cloned()));
        let (vpcs, subnets, tables) = futures::join!(
            ec2.describe_vpcs().filters(of_vpc()).send(),
            subnets.send(),
            ec2.describe_route_tables().filters(of_vpc()).send(),
        );
        let vpcs = vpcs.or_failure("look for the given network")?.vpcs.unwrap_or_default();
        let mut facts = Facts {
            vpc: vpcs.into_iter().next(),
            subnets: subnets.or_failure("look for the given subnets")?.subnets.unwrap_or_default(),
            tables: tables.or_failure("look for the given network's routes")?.route_tables.unwrap_or_default(),
            names: None,
        };
        if names && facts.vpc.is_some() {
            facts.names = Some(self.answers_names(vpc).await?);
        }
        match given::judge(section, &facts) {
            Ok(given) => Ok(Some(given)),
            Err(problems) => check::together(problems).map(|()| None),
        }
    }

    async fn answers_names(&self, vpc: &str) -> Result<bool> {
        let ask = |attribute| self.clients.ec2.describe_vpc_attribute().vpc_id(vpc).attribute(attribute).send();
        let (hostnames, support) = futures::join!(ask(VpcAttributeName::EnableDnsHostnames), ask(VpcAttributeName::EnableDnsSupport));
        let what = "read the given network's attributes";
        let hostnames = hostnames.or_failure(what)?.enable_dns_hostnames().and_then(|one| one.value()).unwrap_or_default();
        let support = support.or_failure(what)?.enable_dns_support().and_then(|one| one.value()).unwrap_or_default();
        Ok(hostnames && support)
    }

    /// Refuses a blueprint that would move the cluster to another network.
    async fn stays(&self, catalog: &Catalog) -> Result<()> {
        let groups = self.look(GROUP).await?;
        if groups.is_empty() {
            return Ok(());
        }
        let networks = self.look(NETWORK).await?;
        given::moved(catalog.given.as_ref(), &groups, &networks).map_or(Ok(()), Err)
    }

    /// Where the cluster has subnets of its own, and which.
    async fn ranges(&self) -> Result<BTreeMap<String, String>> {
        let text = |spec: &Value, field: &str| spec[field].as_str().map(String::from);
        Ok(self.look(SUBNET).await?.iter().filter_map(|subnet| Some((text(&subnet.spec, "zone")?, text(&subnet.spec, "cidr")?))).collect())
    }

    async fn zones(&self) -> Result<BTreeSet<String>> {
        let filters = vec![filter("state", ["available"])];
        let answer = self.clients.ec2.describe_availability_zones().set_filters(Some(filters)).send().await.or_failure("list zones")?;
        let ordinary = answer.availability_zones().iter().filter(|zone| zone.zone_type().is_none_or(|kind| kind == "availability-zone"));
        let zones: BTreeSet<String> = ordinary.filter_map(|zone| zone.zone_name().map(String::from)).collect();
        if zones.is_empty() {
            return Err(Error::input(format!("could not find a zone in region {}", self.clients.region)));
        }
        Ok(zones)
    }

    /// By type, all zones of the region that have it.
    async fn offered(&self, types: &BTreeSet<String>) -> Result<BTreeMap<String, BTreeSet<String>>> {
        let mut offered: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        let asked = self.clients.ec2.describe_instance_type_offerings().location_type(LocationType::AvailabilityZone);
        let mut pages = asked.filters(filter("instance-type", types.iter().cloned())).into_paginator().send();
        while let Some(page) = pages.next().await {
            for offering in page.or_failure("list instance types")?.instance_type_offerings() {
                let (Some(kind), Some(zone)) = (offering.instance_type(), offering.location()) else { continue };
                offered.entry(kind.as_str().into()).or_default().insert(zone.into());
            }
        }
        Ok(offered)
    }

    /// The newest; a running machine's older one is no difference.
    async fn image(&self, section: &Section, architecture: &str) -> Result<Option<Image>> {
        let asked = self.clients.ec2.describe_images().filters(filter("architecture", [architecture]));
        let asked = asked.filters(filter("state", ["available"]));
        let asked = match images::search(images::wanted(section), architecture) {
            // By a filter: an id that is not there is an empty answer, not a refusal.
            Search::Id(id) => asked.filters(filter("image-id", [id])),
            Search::Named { owner, pattern } => asked.owners(owner).filters(filter("name", [pattern])),
        };
        let answer = asked.send().await.or_failure("look for an image")?;
        let newest = answer.images().iter().max_by_key(|image| (image.creation_date(), image.image_id()));
        let Some(newest) = newest else { return Ok(None) };
        let text = |value: Option<&str>| value.unwrap_or_default().to_string();
        let (id, name) = (text(newest.image_id()), text(newest.name()));
        let user = images::user(section, [newest.owner_id(), newest.image_owner_alias()]).ok_or_else(|| {
            Error::input(format!("could not tell who logs in to {id} ({name})"))
                .hint("say it in spec.providers.aws.user: who may use sudo without a password there")
        })?;
        let root_device = text(newest.root_device_name());
        Ok(Some(Image { id, name, root_gib: images::root_gib(&root_device, newest.block_device_mappings()), root_device, user }))
    }
}
