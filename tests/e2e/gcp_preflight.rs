//! What goes wrong on Google before or at the first create: said at once, with the next step, and `down` works from there.

use crate::gcp_cluster::*;
use crate::harness::{Operated, json, text};
use crate::rig::gcp::ACCOUNT;
use crate::rig::gcp::estate::Estate;
use crate::rig::operator::Operator;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// The example with one place changed.
fn with(operator: &Operator, from: &str, to: &str) -> String {
    let file = operator.example();
    let text = std::fs::read_to_string(&file).expect("the blueprint");
    assert!(text.contains(from), "{from}");
    std::fs::write(&file, text.replace(from, to)).expect("the blueprint");
    file.to_str().expect("a path").to_string()
}

/// `up` ends badly and says all of this.
fn refused(operator: &Operator, file: &str, parts: &[&str]) {
    let output = operator.kprov(&["up", file, "--yes"]);
    let said = text(&output);
    assert!(!output.status.success(), "{said}");
    for part in parts {
        assert!(said.contains(part), "{part:?} is not said:\n{said}");
    }
}

/// Nothing was made, not even for a moment.
fn check_untouched(from: &str, to: &str, parts: &[&str]) {
    let (estate, operator, _) = begin();
    refused(&operator, &with(&operator, from, to), parts);
    assert_eq!(estate.changes(), Vec::<String>::new(), "nothing was made");
    estate.assert_fair();
}

#[test]
fn a_region_that_google_does_not_have_is_said_before_the_first_create() {
    check_untouched("location: eu-west ", "location: mars-west1 ", &["there is no region \"mars-west1\""]);
}

#[test]
fn unknown_types_and_images_and_missing_quota_are_all_said_before_the_first_create() {
    let own = "  providers:\n    gcp: {machineTypes: {worker: n2-standard-128}, image: debian-cloud/debian-99}";
    let (estate, operator, _) = begin();
    with(&operator, "  providers:", own);
    let file = operator.path("shop.yaml");
    let text = std::fs::read_to_string(&file).expect("the blueprint").replace("role: worker, count: 2", "role: worker, count: 30");
    std::fs::write(&file, text).expect("the blueprint");
    let parts = [
        "no machine type n2-standard-128",
        "could not find image family debian-cloud/debian-99",
        "quota INSTANCES: 31",
        "machineTypes",
        "quotas",
    ];
    refused(&operator, file.to_str().expect("a path"), &parts);
    assert_eq!(estate.changes(), Vec::<String>::new(), "nothing was made");
    estate.assert_fair();
}

#[test]
fn credentials_that_are_wrong_are_said_before_the_first_create() {
    let (estate, operator, file) = begin();
    estate.refuse(&[("", 401, "authError")]);
    refused(&operator, &file, &["gcloud auth application-default login"]);
    estate.refuse(&[("compute.", 403, "accessNotConfigured")]);
    refused(&operator, &file, &["gcloud services enable compute.googleapis.com"]);
    estate.refuse(&[("compute.networks.list", 403, "forbidden")]);
    refused(&operator, &file, &["lack compute.networks.list"]);
    assert_eq!(estate.changes(), Vec::<String>::new(), "nothing was made");
}

/// Something stops `up` half-way: what is there, what is missing and how to go on is said, and `down` takes it all away.
fn check_halfway(begins: impl Fn(&Estate), ends: impl Fn(&Estate), parts: &[&str], most_asked: usize) {
    let (estate, operator, file) = begin();
    begins(&estate);
    let common =
        ["there: ", "network/shop", "missing: ", "machine/worker-1", "run the same command again", "kprov down", "costs about $0."];
    refused(&operator, &file, &[&common[..], parts].concat());
    let asked = estate.proxy.ledger().iter().filter(|entry| entry.call.action == "instances.insert").count();
    assert!((1..=most_asked).contains(&asked), "asked for a machine {asked} times");
    ends(&estate);
    estate.proxy.clear();
    operator.ok(&["down", &file, "--yes"]);
    assert_gone(&estate, &BTreeMap::new());
}

#[test]
fn a_permission_that_is_missing_on_google_is_named_at_once_and_down_works() {
    let denied = [("compute.instances.insert", 403, "forbidden")];
    check_halfway(|estate| estate.refuse(&denied), |estate| estate.refuse(&[]), &["lack compute.instances.create: grant a role"], 3);
}

#[test]
fn credentials_that_expire_half_way_on_google_are_said_at_once_and_down_works() {
    let denied = [("compute.instances.insert", 401, "authError")];
    check_halfway(|estate| estate.refuse(&denied), |estate| estate.refuse(&[]), &["gcloud auth application-default login"], 3);
}

/// Since 2024 a new project's default account has no roles: everything comes up, and the loop inside may not even ask whether it is the writer.
#[test]
fn a_service_account_without_roles_is_said_before_the_timeout_and_up_goes_on_when_it_has_them() {
    let (estate, operator, file) = begin();
    estate.refuse_inside(&[("compute.", 403, "forbidden"), ("file.", 403, "forbidden")]);
    let began = Instant::now();
    let grant = format!("--member serviceAccount:{ACCOUNT} --role roles/compute.admin");
    let parts = ["lack compute.healthChecks.list", grant.as_str(), "roles/file.editor", "roles/iam.serviceAccountUser"];
    let output = operator.kprov(&["up", &file, "--yes"]);
    let said = text(&output);
    assert_eq!(output.status.code(), Some(4), "{said}");
    assert!(began.elapsed() < Duration::from_secs(300), "long before the timeout of ten minutes");
    // In as many columns as there are.
    let status = text(&operator.kprov(&["status", operator.name])).split_whitespace().collect::<Vec<_>>().join(" ");
    for part in parts {
        assert!(said.contains(part), "{part:?} is not said:\n{said}");
        assert!(status.contains(part), "{part:?} is not in the status:\n{status}");
    }
    estate.refuse_inside(&[]);
    let up = json(&operator.ok(&["up", &file, "--yes", "-o", "json"]));
    serves(&operator, balancer(&up));
    operator.ok(&["down", &file, "--yes"]);
    assert_gone(&estate, &BTreeMap::new());
}

/// The next operations that make machines fail so.
fn fail_machines(estate: &Estate, code: &str) {
    let error = || json!({"errors": [{"code": code, "message": "no more of it"}]});
    let errors: Vec<Value> = (0..9).map(|_| error()).collect();
    estate.cloud().failures.insert("compute.instances.insert".into(), errors);
}

#[test]
fn capacity_that_is_missing_on_google_is_said_at_once_and_down_works() {
    let parts = ["no more of it", "choose another type in spec.providers.gcp.machineTypes or another region"];
    check_halfway(|estate| fail_machines(estate, "ZONE_RESOURCE_POOL_EXHAUSTED"), |_| (), &parts, 3);
}

#[test]
fn quota_that_runs_out_half_way_on_google_is_said_at_once_and_up_goes_on_when_there_is_more() {
    check_halfway(
        |estate| {
            estate.cloud().quotas.insert("instances".into(), 2);
        },
        |_| (),
        &["ask for more quota"],
        3,
    );
    let (estate, operator, file) = begin();
    estate.cloud().quotas.insert("instances".into(), 2);
    refused(&operator, &file, &["ask for more quota"]);
    estate.cloud().quotas.clear();
    let up = json(&operator.ok(&["up", &file, "--yes", "-o", "json"]));
    serves(&operator, balancer(&up));
    operator.ok(&["down", &file, "--yes"]);
    assert_gone(&estate, &BTreeMap::new());
}
