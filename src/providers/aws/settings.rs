//! Where in AWS: a region from the blueprint's own section, its neutral location, or the usual environment. Pure.

use crate::blueprint::providers::{Aws as Section, AwsEndpoints};
use crate::error::{Error, Result};
use crate::providers;
use serde::{Deserialize, Serialize};

/// What finds the account's place again, also for the loop inside. Nothing secret.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Settings {
    /// `None`: what the environment and the configuration files say.
    pub region: Option<String>,
    /// Likewise, of each service.
    #[serde(default)]
    pub endpoints: AwsEndpoints,
}

/// Neutral places; the exact name of a region passes through.
const PLACES: [(&str, &str); 10] = [
    ("eu", "eu-west-1"),
    ("eu-west", "eu-west-1"),
    ("eu-central", "eu-central-1"),
    ("eu-north", "eu-north-1"),
    ("us", "us-east-1"),
    ("us-east", "us-east-1"),
    ("us-west", "us-west-2"),
    ("asia-east", "ap-northeast-1"),
    ("asia-south", "ap-south-1"),
    ("asia-southeast", "ap-southeast-1"),
];

pub fn read(settings: &providers::Settings) -> Result<Settings> {
    let own: Section = settings.own()?;
    let endpoints = endpoints(&own);
    let region = own.region.or_else(|| settings.location.as_deref().map(region));
    if let Some(region) = region.as_deref().filter(|region| !is_region(region)) {
        let places: Vec<&str> = PLACES.iter().map(|(place, _)| *place).collect();
        return Err(Error::input(format!("could not find AWS region {region}: AWS's own names are like eu-west-1"))
            .hint(format!("spec.location takes those, and {}", places.join(", "))));
    }
    Ok(Settings { region, endpoints })
}

/// What the blueprint says of each service: its own address, else the one for all.
fn endpoints(own: &Section) -> AwsEndpoints {
    let of = |one: &Option<String>| one.clone().or_else(|| own.endpoint.clone());
    let AwsEndpoints { ec2, elastic_load_balancing, efs, iam, ssm, sts } = &own.endpoints;
    AwsEndpoints {
        ec2: of(ec2),
        elastic_load_balancing: of(elastic_load_balancing),
        efs: of(efs),
        iam: of(iam),
        ssm: of(ssm),
        sts: of(sts),
    }
}

fn region(location: &str) -> String {
    PLACES.iter().find(|(place, _)| *place == location).map_or(location, |(_, region)| region).into()
}

/// `eu-west-1`, `us-gov-east-1`: two letters, words, a number. Which of those exist only AWS knows.
fn is_region(text: &str) -> bool {
    let mut words: Vec<&str> = text.split('-').collect();
    let number = words.pop().is_some_and(|last| !last.is_empty() && last.chars().all(|letter| letter.is_ascii_digit()));
    let letters = words.iter().all(|word| !word.is_empty() && word.chars().all(|letter| letter.is_ascii_lowercase()));
    number && letters && words.len() >= 2 && words[0].len() == 2
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_neutral_place_is_a_region_and_a_region_is_itself() {
        assert_eq!(region("eu-west"), "eu-west-1");
        assert_eq!(region("ap-southeast-4"), "ap-southeast-4");
    }

    #[test]
    fn a_services_own_endpoint_comes_before_the_one_for_all() {
        let ec2 = AwsEndpoints { ec2: Some("https://ec2.example".into()), ..AwsEndpoints::default() };
        let own = Section { endpoint: Some("https://all.example".into()), endpoints: ec2.clone(), ..Section::default() };
        let decided = endpoints(&own);
        assert_eq!((decided.ec2.as_deref(), decided.sts.as_deref()), (Some("https://ec2.example"), Some("https://all.example")));
        assert_eq!(endpoints(&Section { endpoints: ec2.clone(), ..Section::default() }), ec2);
    }

    #[test]
    fn what_cannot_be_a_region_is_told_from_what_may_be_one() {
        assert!(PLACES.iter().all(|(_, region)| is_region(region)) && is_region("us-gov-east-1"));
        for wrong in ["nowhere-1", "eu-west", "europe-west1", "eu-west-", "", "1"] {
            assert!(!is_region(wrong), "{wrong}");
        }
    }
}
