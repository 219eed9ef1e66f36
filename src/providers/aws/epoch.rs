//! The writer's epoch in the account itself: one parameter per epoch, `/kprov/<uid>/epoch/<number>`. A parameter that is there is not
//! made again, so making one is the compare-and-swap; no bucket is needed and nothing is paid for.

use super::Aws;
use super::clients::ssm_tags;
use super::failure::{OrFailure, failure};
use super::names::parameters;
use crate::engine::handoff::{Epoch, EpochStore};
use crate::error::Result;
use crate::providers::ownership;
use async_trait::async_trait;
use aws_sdk_ec2::error::ProvideErrorMetadata;
use aws_sdk_ssm::types::ParameterType;

#[async_trait]
impl EpochStore for Aws {
    async fn read(&self) -> Result<Option<Epoch>> {
        Ok(self.epochs_there().await?.into_iter().max_by_key(|epoch| epoch.epoch))
    }

    async fn swap(&self, expected: Option<&Epoch>, next: &Epoch) -> Result<bool> {
        let current = EpochStore::read(self).await?;
        if current.as_ref() == Some(next) {
            return Ok(true);
        }
        if current.as_ref() != expected || expected.is_some_and(|expected| expected.epoch >= next.epoch) {
            return Ok(false);
        }
        let asked = self.clients.ssm.put_parameter().name(self.epoch_name(next.epoch)).value(&next.owner).r#type(ParameterType::String);
        match asked.overwrite(false).set_tags(Some(ssm_tags(&ownership::owner(&self.cluster)))).send().await {
            Ok(_) => {}
            // Ours, when an earlier reply was lost: the look tells.
            Err(error) if error.code() == Some("ParameterAlreadyExists") => {}
            Err(error) => return Err(failure("become the cluster's writer", &error)),
        }
        // Somebody may have made a higher one meanwhile.
        let ours = EpochStore::read(self).await?.as_ref() == Some(next);
        if ours {
            self.forget_epochs(next.epoch).await?;
        }
        Ok(ours)
    }
}

impl Aws {
    /// Numbers of equal length, so that names sort as they count.
    fn epoch_name(&self, number: u64) -> String {
        format!("{}/epoch/{number:012}", parameters(&self.cluster))
    }

    async fn epochs_there(&self) -> Result<Vec<Epoch>> {
        let path = format!("{}/epoch", parameters(&self.cluster));
        let mut pages = self.clients.ssm.get_parameters_by_path().path(path).into_paginator().send();
        let mut found = Vec::new();
        while let Some(page) = pages.next().await {
            let page = page.or_failure("read who writes")?;
            found.extend(page.parameters().iter().filter_map(|one| epoch(one.name()?, one.value()?)));
        }
        Ok(found)
    }

    /// Those below `limit`: the next writer clears up after the last.
    pub(super) async fn forget_epochs(&self, limit: u64) -> Result<()> {
        for old in self.epochs_there().await?.into_iter().filter(|old| old.epoch < limit) {
            match self.clients.ssm.delete_parameter().name(self.epoch_name(old.epoch)).send().await {
                Err(error) if error.code() != Some("ParameterNotFound") => return Err(failure("forget a former writer", &error)),
                _ => {}
            }
        }
        Ok(())
    }
}

fn epoch(name: &str, owner: &str) -> Option<Epoch> {
    let number = name.rsplit('/').next()?.parse().ok()?;
    Some(Epoch { epoch: number, owner: owner.into() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parameter_is_an_epoch_by_its_name() {
        assert_eq!(epoch("/kprov/u-1/epoch/000000000007", "cluster"), Some(Epoch { epoch: 7, owner: "cluster".into() }));
        assert_eq!(epoch("/kprov/u-1/ssh-key", "x"), None);
    }
}
