//! The Google Cloud provider against a fake that is as strict as Google's own documents.

use crate::rig::gcp::{Fault, Google};
use kprov::blueprint::Blueprint;
use kprov::engine::handoff::Epoch;
use kprov::engine::{Action, Cluster, Door, Id, Inputs, Observed, Phase, Request, Resource, Verb};
use kprov::error::Kind;
use kprov::providers::gcp::{self, Gcp};
use kprov::providers::{Context, Provider, conformance};
use serde_json::{Value, json};

const KEY: &str = "ssh-ed25519 AAAAcluster";

fn cluster(uid: &str) -> Cluster {
    Cluster { name: "same-name".into(), uid: uid.into() }
}

/// Uids that begin alike: names are near, owners are not.
fn ours() -> Cluster {
    cluster("3f2a9c11-d0e4-4b6f-9a51-0c1d2e3f4a5b")
}

async fn provider(google: &Google, cluster: &Cluster) -> Gcp {
    gcp::connect(&google.settings(), cluster).await.expect("a provider")
}

/// Two machines in two zones, a load balancer, a filesystem.
fn blueprint() -> Blueprint {
    let value = json!({
        "apiVersion": "kprov.dev/v1", "kind": "Blueprint", "metadata": {"name": "same-name"},
        "spec": {
            "provider": "gcp", "location": "eu-west", "access": {"from": ["192.0.2.0/24"]},
            "machines": [
                {"name": "control", "role": "control-plane", "count": 1},
                {"name": "worker", "role": "worker", "count": 2},
            ],
            "loadBalancers": [{"name": "web", "listeners": [{"port": 80, "service": "web"}, {"port": 443, "service": "web"}]}],
            "filesystems": [{"name": "media", "size": "5Gi"}],
        },
    });
    serde_json::from_value(value).expect("a blueprint")
}

async fn wishes(provider: &Gcp, cluster: &Cluster) -> Vec<Resource> {
    let context = Context { cluster: cluster.clone(), ssh_public_key: KEY.into(), service_load_balancers: vec![] };
    provider.resources(&blueprint(), &context).await.expect("a good blueprint")
}

fn action(verb: Verb, id: &Id, spec: &Value, handle: Option<&str>) -> Action {
    Action {
        verb,
        id: id.clone(),
        generation: 1,
        spec: spec.clone(),
        handle: handle.map(str::to_string),
        after: vec![],
        reason: String::new(),
        summary: String::new(),
    }
}

async fn send(provider: &Gcp, action: &Action, inputs: &Inputs) -> kprov::error::Result<Option<Observed>> {
    let request: Request = provider.render(action, inputs).expect("it renders");
    provider.execute(&request, &|_| ()).await
}

/// Everything of the blueprint, in order; what came of it by id.
async fn make_all(provider: &Gcp, cluster: &Cluster) -> Inputs {
    let mut inputs = Inputs::new();
    for wish in wishes(provider, cluster).await {
        let made = send(provider, &action(Verb::Create, &wish.id, &wish.spec, None), &inputs).await;
        let thing = made.unwrap_or_else(|error| panic!("{}: {}", wish.id, error.chain())).expect("it is there");
        assert_eq!(thing.phase, Phase::Ready, "{}", wish.id);
        inputs.insert(wish.id, thing);
    }
    inputs
}

/// The network and all that a first machine needs.
async fn make_ground(provider: &Gcp, cluster: &Cluster) -> Inputs {
    let mut inputs = Inputs::new();
    for wish in wishes(provider, cluster).await.into_iter().take_while(|wish| wish.id.kind != "filesystem") {
        let thing = send(provider, &action(Verb::Create, &wish.id, &wish.spec, None), &inputs).await.expect("it is made").expect("a thing");
        inputs.insert(wish.id, thing);
    }
    inputs
}

async fn machine(provider: &Gcp, cluster: &Cluster) -> Resource {
    wishes(provider, cluster).await.into_iter().find(|wish| wish.id == Id::new("machine", "worker-1")).expect("a machine")
}

fn instances(google: &Google) -> usize {
    google.paths().iter().filter(|path| path.contains("/instances/kprov-")).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn conformance() {
    let google = Google::start().await;
    let (a, b) = (ours(), cluster("3f2a9c11-d0e5-4b6f-9a51-0c1d2e3f4a5b"));
    conformance::run(async |cluster: &Cluster| provider(&google, cluster).await, &a, &b, KEY).await;
    for cluster in [&a, &b] {
        assert_eq!(provider(&google, cluster).await.leftovers().await, Vec::<String>::new());
    }
    assert_eq!(google.paths(), Vec::<String>::new(), "nothing at all is left");
    google.assert_fair();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_reply_makes_no_second_machine() {
    let google = Google::start().await;
    let provider = provider(&google, &ours()).await;
    let inputs = make_ground(&provider, &ours()).await;
    let wish = machine(&provider, &ours()).await;
    google.fault("compute.instances.insert", Fault::LostReply);
    google.fault("compute.instances.insert", Fault::LostRequest);
    google.fault("compute.instances.insert", Fault::Refused(503, "backendError"));
    google.fault("compute.instances.insert", Fault::Refused(429, "rateLimitExceeded"));
    let made = send(&provider, &action(Verb::Create, &wish.id, &wish.spec, None), &inputs).await.expect("it is made").expect("a machine");
    assert_eq!((instances(&google), made.phase), (1, Phase::Ready));
    google.assert_fair();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_of_a_killed_run_is_adopted_also_when_google_has_forgotten_the_request() {
    let google = Google::start().await;
    let first = provider(&google, &ours()).await;
    let inputs = make_ground(&first, &ours()).await;
    let wish = machine(&first, &ours()).await;
    let create = action(Verb::Create, &wish.id, &wish.spec, None);
    let made = send(&first, &create, &inputs).await.expect("it is made").expect("a machine");
    google.cloud().requests.clear();
    let second = provider(&google, &ours()).await;
    let again = send(&second, &create, &inputs).await.expect("it is adopted").expect("a machine");
    assert_eq!((again.handle, instances(&google)), (made.handle, 1));
    google.assert_fair();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_operation_is_an_error_and_the_next_try_is_a_new_one() {
    let google = Google::start().await;
    let provider = provider(&google, &ours()).await;
    let inputs = make_ground(&provider, &ours()).await;
    let wish = machine(&provider, &ours()).await;
    let create = action(Verb::Create, &wish.id, &wish.spec, None);
    let policy = "Constraint constraints/compute.vmExternalIpAccess violated for project 1.";
    for (code, message, hint) in [
        ("QUOTA_EXCEEDED", "no more of it", "quota"),
        ("ZONE_RESOURCE_POOL_EXHAUSTED", "no more of it", "machineTypes"),
        ("CONDITION_NOT_MET", policy, "the policy constraints/compute.vmExternalIpAccess forbids it"),
    ] {
        google.fail("compute.instances.insert", code, message);
        let error = send(&provider, &create, &inputs).await.expect_err("the operation failed");
        assert_eq!((error.kind, instances(&google)), (Kind::Provider, 0), "{}", error.chain());
        assert!(error.hints()[0].contains(hint) && error.chain().contains(message), "{} {:?}", error.chain(), error.hints());
    }
    send(&provider, &create, &inputs).await.expect("now there is room").expect("a machine");
    google.assert_fair();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_looks_like_ours_but_is_not_stays_as_it_is() {
    let google = Google::start().await;
    let provider = provider(&google, &ours()).await;
    let global = |name: &str| format!("projects/shop-1/global/networks/{name}");
    let other = json!({"kprov-cluster-uid": "3f2a9c11-d0e4-0000-0000-000000000000", "kprov-cluster-name": "same-name",
        "kprov-kind": "network", "kprov-name": "same-name", "kprov-generation": "1"});
    let strangers = [
        (global("kprov-3f2a9c11d0e4-network-same-name"), json!({"description": "somebody's own"})),
        (global("kprov-3f2a9c11d0e4-network-same-name-2"), json!({"description": other.to_string()})),
        ("projects/shop-1/global/firewalls/kprov-3f2a9c11d0e4-firewall-ssh".into(), json!({})),
        (
            "projects/shop-1/zones/europe-west1-b/instances/kprov-3f2a9c11d0e4-machine-worker-1".into(),
            json!({"labels": {"kprov-cluster-uid": ours().uid}, "zone": "zones/europe-west1-b", "status": "RUNNING"}),
        ),
    ];
    for (path, body) in &strangers {
        google.plant(path, body.clone());
    }
    let before = google.paths();
    assert_eq!(provider.observe(&[]).await.expect("a look"), vec![]);
    let wish = &wishes(&provider, &ours()).await[0];
    let error = send(&provider, &action(Verb::Create, &wish.id, &wish.spec, None), &Inputs::new()).await.expect_err("the name is taken");
    assert!(error.chain().contains("is not this cluster's"), "{}", error.chain());
    for (path, kind) in strangers.iter().zip(["network", "network", "firewall", "machine"]).map(|((path, _), kind)| (path, kind)) {
        let name = path.rsplit('/').next().expect("a name");
        let handle = if kind == "machine" { format!("europe-west1-b/{name}") } else { name.to_string() };
        let delete = action(Verb::Delete, &Id::new(kind, "same-name"), &json!({}), Some(&handle));
        send(&provider, &delete, &Inputs::new()).await.expect_err("not ours");
    }
    assert_eq!(google.paths(), before);
    assert_eq!(google.cloud().ledger, Vec::<String>::new(), "nothing was touched");
    google.assert_fair();
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_is_seen_as_wished_and_groups_follow_their_machines() {
    let google = Google::start().await;
    let provider = provider(&google, &ours()).await;
    let inputs = make_all(&provider, &ours()).await;
    let plan = |observed: &[Observed], wishes: &[Resource]| kprov::engine::plan::plan(wishes, observed, &Default::default()).to_string();
    let wanted = wishes(&provider, &ours()).await;
    let observed = provider.observe(&[]).await.expect("a look");
    assert!(kprov::engine::plan::plan(&wanted, &observed, &Default::default()).is_empty(), "{}", plan(&observed, &wanted));

    let worker = &inputs[&Id::new("machine", "worker-2")];
    send(&provider, &action(Verb::Delete, &worker.id, &json!({}), Some(&worker.handle)), &inputs).await.expect("it goes");
    let observed = provider.observe(&[]).await.expect("a look");
    let text = plan(&observed, &wanted);
    assert!(text.contains("machine/worker-2") && text.contains("instance-group/europe-west1-c"), "{text}");
    google.assert_fair();
}

#[tokio::test(flavor = "multi_thread")]
async fn one_listener_changes_and_the_others_rules_stand() {
    let google = Google::start().await;
    let provider = provider(&google, &ours()).await;
    let inputs = make_all(&provider, &ours()).await;
    let balancer = &inputs[&Id::new("load-balancer", "web")];
    let mut spec = balancer.spec.clone();
    spec["listeners"][1]["port"] = json!(8443);
    google.cloud().ledger.clear();
    let changed = send(&provider, &action(Verb::Update, &balancer.id, &spec, Some(&balancer.handle)), &inputs).await.expect("an update");
    assert_eq!(changed.expect("it stays").spec, spec);
    let touched: Vec<String> = google.cloud().ledger.iter().map(|line| line.rsplit('-').next().unwrap_or_default().to_string()).collect();
    assert_eq!(touched, ["443", "8443"]);
    google.assert_fair();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_machine_is_broken_and_repaired_by_starting_it_and_a_suspended_one_by_resuming_it() {
    let google = Google::start().await;
    let provider = provider(&google, &ours()).await;
    let inputs = make_ground(&provider, &ours()).await;
    let wish = machine(&provider, &ours()).await;
    let made = send(&provider, &action(Verb::Create, &wish.id, &wish.spec, None), &inputs).await.expect("it is made").expect("a machine");
    for status in ["TERMINATED", "SUSPENDED"] {
        google
            .cloud()
            .things
            .values_mut()
            .filter(|thing| thing.body["status"] == "RUNNING")
            .for_each(|thing| thing.body["status"] = json!(status));
        let observed = provider.observe(&[]).await.expect("a look");
        let seen = observed.iter().find(|thing| thing.id == wish.id).expect("the machine");
        assert_eq!(seen.phase, Phase::Broken(format!("the instance is {status}")));
        let repaired = send(&provider, &action(Verb::Repair, &wish.id, &wish.spec, Some(&made.handle)), &inputs).await.expect("a repair");
        assert_eq!(repaired.expect("the machine").phase, Phase::Ready);
    }
    google.assert_fair();
}

#[tokio::test(flavor = "multi_thread")]
async fn where_a_policy_hides_guest_attributes_a_machine_is_pending_for_a_reason_and_can_go() {
    let google = Google::start().await;
    let provider = provider(&google, &ours()).await;
    let inputs = make_ground(&provider, &ours()).await;
    let wish = machine(&provider, &ours()).await;
    google.refuse(&[("compute.instances.getGuestAttributes", 412, "conditionNotMet")]);
    let error = send(&provider, &action(Verb::Create, &wish.id, &wish.spec, None), &inputs).await.expect_err("its keys stay unknown");
    assert_eq!(error.kind, Kind::Provider, "{}", error.chain());
    assert!(error.hints()[0].contains("constraints/compute.disableGuestAttributesAccess"), "{:?}", error.hints());
    let observed = provider.observe(&[]).await.expect("a look");
    let seen = observed.iter().find(|thing| thing.id == wish.id).expect("the machine");
    assert_eq!((&seen.phase, seen.outputs["hostKeysRefused"].is_string()), (&Phase::Pending, true));
    send(&provider, &action(Verb::Delete, &wish.id, &json!({}), Some(&seen.handle)), &inputs).await.expect("it goes");
    assert_eq!(instances(&google), 0);
    google.assert_fair();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_zone_that_filestore_cannot_see_into_is_not_taken_for_an_empty_one() {
    let google = Google::start().await;
    let provider = provider(&google, &ours()).await;
    google.cloud().unreachable = vec!["projects/shop-1/locations/us-east1-b".into()];
    provider.observe(&[]).await.expect("another region's zone is no matter");
    google.cloud().unreachable = vec!["projects/shop-1/locations/europe-west1-b".into()];
    let error = provider.observe(&[]).await.expect_err("what is there cannot be said");
    assert_eq!(error.kind, Kind::Transient, "{}", error.chain());
}

#[tokio::test(flavor = "multi_thread")]
async fn custom_types_and_series_with_hyperdisks_alone_are_made() {
    let google = Google::start().await;
    let mut settings = google.settings();
    settings.own["machineTypes"] = json!({"control": "e2-custom-4-8192", "worker": "n4-standard-2"});
    let provider = gcp::connect(&settings, &ours()).await.expect("a provider");
    provider.check(&wishes(&provider, &ours()).await).await.expect("both are sold there");
    make_all(&provider, &ours()).await;
    google.assert_fair();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_is_let_in_beside_the_clusters_own_and_is_no_drift() {
    let google = Google::start().await;
    let provider = provider(&google, &ours()).await;
    let inputs = make_ground(&provider, &ours()).await;
    let wish = machine(&provider, &ours()).await;
    let made = send(&provider, &action(Verb::Create, &wish.id, &wish.spec, None), &inputs).await.expect("it is made").expect("a machine");
    google.fault("compute.instances.setMetadata", Fault::LostReply);
    provider.admit_key(&made, "ssh-ed25519 AAAAguest operator@home").await.expect("let in");
    let metadata = google.cloud().things.values().find(|thing| !thing.body["metadata"].is_null()).expect("it").body["metadata"].clone();
    let lines = metadata["items"][0]["value"].as_str().expect("keys").to_string();
    assert!(lines.starts_with("kprov:ssh-ed25519 AAAAcluster\nkprov:ssh-ed25519 AAAAguest google-ssh {"), "{lines}");
    let observed = provider.observe(&[]).await.expect("a look");
    let seen = observed.iter().find(|thing| thing.id == wish.id).expect("the machine");
    assert_eq!(seen.spec["sshPublicKey"], KEY, "the guest's key is no drift");
    google.assert_fair();
}

#[tokio::test(flavor = "multi_thread")]
async fn one_of_many_writers_wins_each_epoch() {
    let google = Google::start().await;
    let epoch = |number: u64, owner: &str| Epoch { epoch: number, owner: owner.into() };
    let racers = futures::future::join_all((0..6).map(|number| {
        let google = &google;
        async move {
            let provider = provider(google, &ours()).await;
            provider.epochs().swap(None, &epoch(1, &format!("cli:{number}"))).await.expect("a swap")
        }
    }));
    let won = racers.await.into_iter().filter(|won| *won).count();
    assert_eq!(won, 1, "one writer");
    let provider = provider(&google, &ours()).await;
    let first = provider.epochs().read().await.expect("a read").expect("a writer");
    assert!(provider.epochs().swap(Some(&first), &epoch(2, "cluster")).await.expect("a swap"));
    assert!(provider.epochs().swap(Some(&first), &epoch(2, "cluster")).await.expect("a repeat of it"));
    let wish = &wishes(&provider, &ours()).await[0];
    let old = provider.render(&action(Verb::Create, &wish.id, &wish.spec, None), &Inputs::new()).expect("it renders");
    let error = provider.execute(&Request { epoch: 1, ..old }, &|_| ()).await.expect_err("the epoch is over");
    assert_eq!(error.kind, Kind::Conflict);
    assert_eq!(google.paths().len(), 1, "old records are taken away: {:?}", google.paths());
    assert_eq!(provider.leftovers().await, Vec::<String>::new());
    assert_eq!(google.paths(), Vec::<String>::new());
    google.assert_fair();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_is_found_by_its_network_alone_and_so_is_its_region() {
    let google = Google::start().await;
    let found = provider(&google, &ours()).await;
    make_ground(&found, &ours()).await;
    assert_eq!(gcp::clusters(&google.settings()).await.expect("clusters"), [ours()]);
    let mut settings = google.settings();
    settings.own["region"] = Value::Null;
    let again = gcp::connect(&settings, &ours()).await.expect("the network says where it is");
    assert_eq!(again.observe(&[]).await.expect("a look").len(), found.observe(&[]).await.expect("a look").len());
    assert!(gcp::connect(&settings, &cluster("other")).await.is_err(), "a new cluster needs a region");
    google.assert_fair();
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_that_is_wrong_is_said_before_the_first_create() {
    let google = Google::start().await;
    let mut settings = google.settings();
    settings.own["machineTypes"] = json!({"worker": "n2-standard-128"});
    settings.own["image"] = json!("debian-cloud/debian-99");
    let provider = gcp::connect(&settings, &ours()).await.expect("a provider");
    let context = Context { cluster: ours(), ssh_public_key: KEY.into(), service_load_balancers: vec![] };
    let mut wrong = blueprint();
    wrong.spec.access.from.clear();
    wrong.spec.machines[1].count = 30;
    let resources = provider.resources(&wrong, &context).await.expect("an expansion");
    let error = provider.check(&resources).await.expect_err("much is wrong");
    for part in ["access.from", "n2-standard-128", "debian-99", "quota INSTANCES: 31"] {
        assert!(error.chain().contains(part), "{part} is missing in {}", error.chain());
    }
    provider.check(&wishes(&self::provider(&google, &ours()).await, &ours()).await).await.expect("a good blueprint");
    assert_eq!(google.cloud().ledger, Vec::<String>::new());
    google.assert_fair();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_denied_call_names_the_permission_and_is_not_repeated() {
    let google = Google::start().await;
    let provider = provider(&google, &ours()).await;
    google.fault("compute.networks.insert", Fault::Refused(403, "forbidden"));
    let wish = &wishes(&provider, &ours()).await[0];
    let error = send(&provider, &action(Verb::Create, &wish.id, &wish.spec, None), &Inputs::new()).await.expect_err("denied");
    assert_eq!((error.kind, error.hints().len()), (Kind::Provider, 1), "{}", error.chain());
    assert_eq!(google.calls().iter().filter(|call| *call == "compute.networks.insert").count(), 1);
    google.assert_fair();
}
