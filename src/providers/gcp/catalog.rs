//! What Google offers in a region: zones, machine types in them, and where the cluster's machines are already.

use super::Gcp;
use super::api::{Answer, plain};
use super::failure::{Cause, Failure};
use super::look::logical_names;
use super::operations::last;
use super::read::{self, number};
use super::request::{handle_of, of_handle};
use super::resources::Catalog;
use super::sizes;
use crate::error::Result;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

impl Gcp {
    /// Zones and types are asked for once per process.
    pub(super) async fn catalog(&self, types: &BTreeSet<String>) -> Result<Catalog> {
        let read = async {
            let (mut catalog, placed, shares) = futures::try_join!(self.offers(types), self.placed(), self.shares())?;
            catalog.placed = placed;
            catalog.reserved = shares.iter().filter_map(|share| read::reserved(&self.cluster.uid, share)).collect();
            Ok(catalog)
        };
        read.await.map_err(|failure: Failure| self.error(failure, "could not read what Google Cloud offers"))
    }

    async fn offers(&self, types: &BTreeSet<String>) -> Answer<Catalog> {
        if let Some(known) = self.offers.lock().get(types) {
            return Ok(known.clone());
        }
        let (custom, predefined): (Vec<&String>, Vec<&String>) = types.iter().partition(|name| sizes::is_custom(name));
        let (zones, mut found) = futures::try_join!(self.zones(), self.machine_types(&predefined))?;
        found.extend(self.custom_types(&custom, &zones).await?);
        let catalog = Catalog { offers: offers(&found, &zones), cores: cores(&found), zones, ..Catalog::default() };
        self.offers.lock().insert(types.clone(), catalog.clone());
        Ok(catalog)
    }

    async fn zones(&self) -> Answer<Vec<String>> {
        let region = &self.settings.region;
        let call = self.api.zones.list().set_project(&self.settings.project).set_filter(format!("name eq \"{region}-.*\""));
        let answer = call.send().await?;
        let mut zones: Vec<String> = answer.items.into_iter().filter_map(|zone| zone.name).collect();
        zones.sort();
        Ok(zones)
    }

    /// No list has these: whether a zone takes one is the answer to asking for it there.
    async fn custom_types(&self, types: &[&String], zones: &[String]) -> Answer<Vec<Value>> {
        let asked = types.iter().flat_map(|name| {
            zones.iter().map(move |zone| async move {
                let call = self.api.machine_types.get().set_project(&self.settings.project).set_zone(zone).set_machine_type(*name);
                match call.send().await.map_err(Failure::from) {
                    Ok(kind) => plain(kind).map(Some),
                    // Refused: its numbers are none that this series comes with.
                    Err(failure) if matches!(failure.cause, Cause::NotFound | Cause::Refused) => Ok(None),
                    Err(failure) => Err(failure),
                }
            })
        });
        Ok(futures::future::try_join_all(asked).await?.into_iter().flatten().collect())
    }

    async fn machine_types(&self, types: &[&String]) -> Answer<Vec<Value>> {
        if types.is_empty() {
            return Ok(Vec::new());
        }
        let filter: Vec<String> = types.iter().map(|name| format!("(name = \"{name}\")")).collect();
        let (mut found, mut page) = (Vec::new(), None);
        loop {
            let call = self.api.machine_types.aggregated_list().set_project(&self.settings.project).set_filter(filter.join(" OR "));
            let answer = call.set_or_clear_page_token(page).send().await?;
            page = answer.next_page_token.clone().filter(|token| !token.is_empty());
            found.extend(answer.items.into_values().flat_map(|scope| scope.machine_types).filter_map(|kind| plain(kind).ok()));
            if page.is_none() {
                return Ok(found);
            }
        }
    }

    async fn placed(&self) -> Answer<BTreeMap<String, String>> {
        let instances = self.instances().await?;
        let names = logical_names(&self.cluster.uid, &instances);
        let handles = instances.iter().map(handle_of);
        let place = |handle: String| {
            let (zone, name) = of_handle(&handle);
            Some((names.get(name)?.clone(), zone.to_string()))
        };
        Ok(handles.filter_map(place).collect())
    }
}

fn cores(found: &[Value]) -> BTreeMap<String, u64> {
    let counted = found.iter().filter_map(|kind| Some((kind["name"].as_str()?.to_string(), number(&kind["guestCpus"])?)));
    counted.collect()
}

/// Types by name, with the zones of the region that have them.
fn offers(found: &[Value], zones: &[String]) -> BTreeMap<String, BTreeSet<String>> {
    let mut offers: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for kind in found {
        let zone = kind["zone"].as_str().map_or("", last).to_string();
        if let Some(name) = kind["name"].as_str().filter(|_| zones.contains(&zone)) {
            offers.entry(name.into()).or_default().insert(zone);
        }
    }
    offers
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_type_counts_in_the_regions_own_zones() {
        let kind = |name: &str, zone: &str| json!({"name": name, "zone": zone});
        let found = [kind("e2-medium", "europe-west1-b"), kind("e2-medium", "us-east1-b"), kind("n2-x", "us-east1-b")];
        let offers = offers(&found, &["europe-west1-b".into(), "europe-west1-c".into()]);
        assert_eq!(offers, BTreeMap::from([("e2-medium".into(), BTreeSet::from(["europe-west1-b".to_string()]))]));
    }
}
