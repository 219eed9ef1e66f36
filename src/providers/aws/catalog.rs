//! What the region has: zones, instance types in them, the newest Debian image. Asked once per set of types.

use super::Aws;
use super::failure::OrFailure;
use super::resources::{Catalog, ZONES};
use super::sizes;
use crate::error::{Error, Result};
use aws_sdk_ec2::types::{Filter, LocationType};
use std::collections::{BTreeMap, BTreeSet};

/// Debian's own account.
const DEBIAN: &str = "136693071363";

pub fn filter(name: &str, values: impl IntoIterator<Item = impl Into<String>>) -> Filter {
    values.into_iter().fold(Filter::builder().name(name), |filter, value| filter.values(value)).build()
}

impl Aws {
    pub(super) async fn catalog(&self, types: &BTreeSet<String>) -> Result<Catalog> {
        if let Some(known) = self.catalogs.lock().get(types) {
            return Ok(known.clone());
        }
        let zones = self.zones().await?;
        let offered = self.offered(types, &zones).await?;
        let mut images = BTreeMap::new();
        for architecture in types.iter().map(|kind| sizes::architecture(kind)).collect::<BTreeSet<_>>() {
            images.extend(self.image(architecture).await?.map(|image| (architecture.to_string(), image)));
        }
        let catalog = Catalog { zones, offered, images };
        self.catalogs.lock().insert(types.clone(), catalog.clone());
        Ok(catalog)
    }

    async fn zones(&self) -> Result<Vec<String>> {
        let filters = vec![filter("state", ["available"])];
        let answer = self.clients.ec2.describe_availability_zones().set_filters(Some(filters)).send().await.or_failure("list zones")?;
        let ordinary = answer.availability_zones().iter().filter(|zone| zone.zone_type().is_none_or(|kind| kind == "availability-zone"));
        let zones: BTreeSet<String> = ordinary.filter_map(|zone| zone.zone_name().map(String::from)).collect();
        if zones.is_empty() {
            return Err(Error::input(format!("could not find a zone in region {}", self.clients.region)));
        }
        Ok(zones.into_iter().take(ZONES).collect())
    }

    async fn offered(&self, types: &BTreeSet<String>, zones: &[String]) -> Result<BTreeMap<String, BTreeSet<String>>> {
        let mut offered: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        let asked = self.clients.ec2.describe_instance_type_offerings().location_type(LocationType::AvailabilityZone);
        let mut pages = asked.filters(filter("instance-type", types.iter().cloned())).into_paginator().send();
        while let Some(page) = pages.next().await {
            for offering in page.or_failure("list instance types")?.instance_type_offerings() {
                let (Some(kind), Some(zone)) = (offering.instance_type(), offering.location()) else { continue };
                if zones.iter().any(|known| known == zone) {
                    offered.entry(kind.as_str().into()).or_default().insert(zone.into());
                }
            }
        }
        Ok(offered)
    }

    /// The newest; a running machine's older one is no difference.
    async fn image(&self, architecture: &str) -> Result<Option<(String, String)>> {
        let filters = vec![
            filter("name", [format!("debian-12-{}-*", if architecture == "arm64" { "arm64" } else { "amd64" })]),
            filter("architecture", [architecture]),
            filter("state", ["available"]),
        ];
        let asked = self.clients.ec2.describe_images().owners(DEBIAN).set_filters(Some(filters)).send().await;
        let answer = asked.or_failure("look for Debian's image")?;
        let newest = answer.images().iter().max_by_key(|image| (image.creation_date(), image.image_id()));
        Ok(newest.and_then(|image| Some((image.image_id()?.to_string(), image.name()?.to_string()))))
    }
}
