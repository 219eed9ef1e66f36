//! Where in Google Cloud a cluster lives: project, region, endpoint; from the blueprint, then the environment, then the credentials. Pure
//! but for `read`.

use crate::blueprint::providers::Gcp;
use crate::error::{Error, Result};
use crate::providers;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

pub const ENDPOINT: &str = "KPROV_GCP_ENDPOINT";
/// What gcloud reads, too: each API's own.
const COMPUTE_ENDPOINT: &str = "CLOUDSDK_API_ENDPOINT_OVERRIDES_COMPUTE";
const FILE_ENDPOINT: &str = "CLOUDSDK_API_ENDPOINT_OVERRIDES_FILE";
const PROJECT: &str = "GOOGLE_CLOUD_PROJECT";
const CREDENTIALS: &str = "GOOGLE_APPLICATION_CREDENTIALS";
const DEFAULT_IMAGE: &str = "debian-cloud/debian-12";

/// Everything that is decided before the first call. Nothing secret: the loop inside gets it as its credentials.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Settings {
    pub project: String,
    /// Empty when nothing names one; what exists of a cluster does.
    pub region: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// Filestore's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file_endpoint: Option<String>,
    /// `<project>/<family>`.
    pub image: String,
    /// By machine group.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub machine_types: BTreeMap<String, String>,
    /// Of control plane machines: what the loop inside acts as.
    pub service_account: String,
}

/// What the neutral `location` means here; a region's own name means itself.
const LOCATIONS: [(&str, &str); 10] = [
    ("eu-west", "europe-west1"),
    ("eu-central", "europe-west3"),
    ("eu-north", "europe-north1"),
    ("eu-south", "europe-south1"),
    ("us-east", "us-east1"),
    ("us-central", "us-central1"),
    ("us-west", "us-west1"),
    ("ap-south", "asia-south1"),
    ("ap-southeast", "asia-southeast1"),
    ("ap-northeast", "asia-northeast1"),
];

/// Reads the environment and, when nothing else names a project, the credentials' file.
pub fn read(settings: &providers::Settings) -> Result<Settings> {
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    decide(settings.own()?, settings.location.as_deref(), variable, project_of_credentials)
}

fn decide(
    own: Gcp,
    location: Option<&str>,
    variable: impl Fn(&str) -> Option<String>,
    project_of_credentials: impl Fn(Option<String>) -> Option<String>,
) -> Result<Settings> {
    let project = own.project.or_else(|| variable(PROJECT)).or_else(|| project_of_credentials(variable(CREDENTIALS)));
    let project = project.ok_or_else(|| {
        Error::input("could not find out which Google Cloud project to use")
            .hint(format!("say it in spec.providers.gcp.project, or set {PROJECT}"))
    })?;
    let region = own.region.or_else(|| location.map(|location| region(location).to_string())).unwrap_or_default();
    for (what, text) in [("project", &project), ("region", &region)] {
        let is_absent = what == "region" && text.is_empty();
        if !is_absent && !is_name(text) {
            return Err(Error::input(format!("could not use {text:?} as a {what} of Google Cloud: it is not a name")));
        }
    }
    let both = own.endpoint.or_else(|| variable(ENDPOINT));
    let of_one = |name: &str| both.clone().or_else(|| variable(name)).map(|url| origin(&url)).transpose();
    let (endpoint, file_endpoint) = (of_one(COMPUTE_ENDPOINT)?, of_one(FILE_ENDPOINT)?);
    let image = own.image.unwrap_or_else(|| DEFAULT_IMAGE.into());
    if image.split('/').filter(|part| is_name(part)).count() != 2 || image.matches('/').count() != 1 {
        return Err(Error::input(format!("could not use image {image:?}"))
            .hint(format!("write <project>/<image family>, e.g. {DEFAULT_IMAGE} or ubuntu-os-cloud/ubuntu-2404-lts-amd64")));
    }
    let service_account = own.service_account.unwrap_or_else(|| "default".into());
    Ok(Settings { project, region, endpoint, file_endpoint, image, machine_types: own.machine_types, service_account })
}

pub fn no_region() -> Error {
    Error::input("could not find out which Google Cloud region to use")
        .hint("say it in spec.location (e.g. eu-west) or spec.providers.gcp.region (e.g. europe-west1)")
}

/// The region that a neutral location means.
fn region(location: &str) -> &str {
    LOCATIONS.iter().find(|(neutral, _)| *neutral == location).map_or(location, |(_, region)| region)
}

/// `https://host:port` of an endpoint that may name a path, too, as gcloud's do: the paths are the API's own.
fn origin(endpoint: &str) -> Result<String> {
    is_anonymous(endpoint)?;
    let uri: http::Uri = endpoint.parse().map_err(|_| Error::input(format!("could not use endpoint {endpoint}")))?;
    Ok(format!("{}://{}", uri.scheme_str().unwrap_or_default(), uri.authority().map_or("", |authority| authority.as_str())))
}

/// Whether an endpoint is called without credentials: an emulator on this machine. Real credentials never travel unencrypted.
pub fn is_anonymous(endpoint: &str) -> Result<bool> {
    let failed = |why: &str| Error::input(format!("could not use endpoint {endpoint}: {why}"));
    let uri: http::Uri = endpoint.parse().map_err(|_| failed("it is not an address like https://host"))?;
    let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
    let is_loopback = host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
    match uri.scheme_str() {
        Some("https") => Ok(false),
        Some("http") if is_loopback => Ok(true),
        Some("http") => Err(failed("without TLS only this machine is allowed")),
        _ => Err(failed("it is not an address like https://host")),
    }
}

/// From the file that application default credentials come from.
fn project_of_credentials(file: Option<String>) -> Option<String> {
    let usual = || Some(PathBuf::from(std::env::var_os("HOME")?).join(".config/gcloud/application_default_credentials.json"));
    let text = std::fs::read(file.map(PathBuf::from).or_else(usual)?).ok()?;
    let content: Value = serde_json::from_slice(&text).ok()?;
    ["project_id", "quota_project_id"].iter().find_map(|field| content[field].as_str().map(str::to_string))
}

/// Letters, digits and dashes: all that ends up in a path of the API. Old projects have a domain before a colon.
fn is_name(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|letter| letter.is_ascii_lowercase() || letter.is_ascii_digit() || "-.:".contains(letter))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decided(own: Gcp, location: Option<&str>, environment: &[(&str, &str)]) -> Result<Settings> {
        let environment: BTreeMap<String, String> = environment.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect();
        decide(own, location, |name| environment.get(name).cloned(), |file| file.map(|_| "of-the-file".into()))
    }

    fn check(own: Gcp, location: Option<&str>, environment: &[(&str, &str)], project: &str, region: &str) {
        let settings = decided(own, location, environment).expect("good settings");
        assert_eq!((settings.project.as_str(), settings.region.as_str()), (project, region));
    }

    #[test]
    fn the_blueprint_comes_before_the_environment_and_that_before_the_credentials() {
        let own = |project: &str| Gcp { project: Some(project.into()), ..Gcp::default() };
        let environment = [(PROJECT, "of-the-environment"), (CREDENTIALS, "/file")];
        check(own("own"), Some("eu-west"), &environment, "own", "europe-west1");
        check(Gcp::default(), Some("us-east"), &environment, "of-the-environment", "us-east1");
        check(Gcp::default(), Some("europe-west4"), &environment[1..], "of-the-file", "europe-west4");
        let region = Gcp { region: Some("asia-east1".into()), ..own("own") };
        check(region, Some("eu-west"), &[], "own", "asia-east1");
    }

    #[test]
    fn without_a_project_the_next_step_is_said_and_what_is_no_name_is_refused() {
        let error = decided(Gcp::default(), Some("eu-west"), &[]).expect_err("no project");
        assert!(error.hints()[0].contains(PROJECT), "{error}");
        check(Gcp::default(), None, &[(PROJECT, "p")], "p", "");
        assert!(decided(Gcp { project: Some("a/../b".into()), ..Gcp::default() }, Some("eu-west"), &[]).is_err());
        assert!(decided(Gcp { image: Some("debian-12".into()), ..Gcp::default() }, Some("eu-west"), &[(PROJECT, "p")]).is_err());
    }

    #[test]
    fn each_api_may_have_an_endpoint_of_its_own_as_gcloud_has_it() {
        let of = |environment: &[(&str, &str)]| {
            let environment: Vec<_> = environment.iter().copied().chain([(PROJECT, "p")]).collect();
            let settings = decided(Gcp::default(), Some("eu-west"), &environment).expect("good settings");
            (settings.endpoint, settings.file_endpoint)
        };
        let gcloud = [(COMPUTE_ENDPOINT, "https://compute.example/compute/v1/"), (FILE_ENDPOINT, "http://127.0.0.1:8085/")];
        assert_eq!(of(&gcloud), (Some("https://compute.example".into()), Some("http://127.0.0.1:8085".into())));
        assert_eq!(of(&gcloud[..1]), (Some("https://compute.example".into()), None));
        let one = "http://localhost:1";
        assert_eq!(of(&[gcloud[0], (ENDPOINT, one)]), (Some(one.into()), Some(one.into())));
    }

    #[test]
    fn only_an_emulator_on_this_machine_is_called_without_credentials() {
        assert!(is_anonymous("http://127.0.0.1:8080").expect("an endpoint"));
        assert!(is_anonymous("http://localhost:8080").expect("an endpoint"));
        assert!(is_anonymous("http://[::1]:8080").expect("an endpoint"));
        assert!(!is_anonymous("https://compute-private.example.com").expect("an endpoint"));
        for refused in ["http://10.0.0.1:8080", "http://127.0.0.1.evil.example", "ftp://127.0.0.1", "nonsense"] {
            assert!(is_anonymous(refused).is_err(), "{refused}");
        }
    }
}
