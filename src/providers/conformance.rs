//! The suite that every provider passes: what the engine relies on, asked of the door itself. Panics with a sentence when it fails.
//!
//! The fake runs it on virtual time; a real provider runs it from its end-to-end test, in two clusters of its own that are empty
//! before and after.

use super::{Context, Provider};
use crate::blueprint::Blueprint;
use crate::engine::handoff::Epoch;
use crate::engine::plan::difference;
use crate::engine::{Action, Cluster, Id, Inputs, Observed, Phase, Request, Resource, Verb};
use crate::error::{Error, Kind, Result};
use crate::providers::resources::{LOAD_BALANCER, NETWORK};
use serde_json::json;
use std::time::Duration;
use tokio::time::Instant;

/// Runs every story in clusters `a` and `b`. `make` gives the provider's door of a cluster, as a new process would get it.
pub async fn run<P: Provider>(make: impl AsyncFn(&Cluster) -> P, a: &Cluster, b: &Cluster, ssh_public_key: &str) {
    let first = Subject::new(make(a).await, a, ssh_public_key).await;
    let second = Subject::new(make(b).await, b, ssh_public_key).await;
    first.is_empty("before anything").await;
    let requests = first.everything_is_made_in_order_and_seen().await;
    first.the_same_request_again_makes_nothing(&requests).await;
    Subject::new(make(a).await, a, ssh_public_key).await.another_process_sees_the_same(&first).await;
    first.what_is_needed_cannot_be_deleted().await;
    first.a_change_in_place_keeps_the_thing().await;
    second.is_empty("while another cluster lives").await;
    second.everything_is_made_in_order_and_seen().await;
    second.another_clusters_things_cannot_be_touched(&first).await;
    second.everything_goes_children_first().await;
    first.is_whole("after another cluster went").await;
    first.everything_goes_children_first().await;
    first.deleting_again_is_fine(&requests).await;
    first.the_next_generation_can_be_made_after_the_last().await;
    first.an_old_epoch_is_refused_where_epochs_are_kept().await;
    first.is_empty("at the end").await;
    second.is_empty("at the end").await;
}

struct Subject<P> {
    provider: P,
    resources: Vec<Resource>,
}

impl<P: Provider> Subject<P> {
    async fn new(provider: P, cluster: &Cluster, ssh_public_key: &str) -> Self {
        let context = Context { cluster: cluster.clone(), ssh_public_key: ssh_public_key.into(), service_load_balancers: vec![] };
        let resources = provider.resources(&blueprint(&cluster.name), &context).await.expect("a small blueprint expands");
        Subject { provider, resources }
    }

    async fn observe(&self) -> Vec<Observed> {
        self.provider.observe(&[]).await.expect("observing works")
    }

    /// Observes until `is_so`, at most for the settle window: the contract lets reads lag so far and no further.
    async fn eventually(&self, what: &str, is_so: impl Fn(&[Observed]) -> bool) -> Vec<Observed> {
        let end = Instant::now() + self.provider.settle();
        loop {
            let observed = self.observe().await;
            if is_so(&observed) {
                return observed;
            }
            assert!(Instant::now() <= end, "{what}, but observed is {observed:#?}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    async fn inputs(&self) -> Inputs {
        let observed =
            self.eventually("everything is seen", |observed| self.resources.iter().all(|wish| find(observed, &wish.id).is_some())).await;
        observed.into_iter().map(|thing| (thing.id.clone(), thing)).collect()
    }

    async fn execute(&self, request: &Request) -> Result<Option<Observed>> {
        let current = self.provider.epochs().read().await.expect("the epoch can be read");
        self.provider.execute(&Request { epoch: current.map_or(0, |epoch| epoch.epoch), ..request.clone() }, &|_| ()).await
    }

    async fn is_empty(&self, when: &str) {
        self.eventually(&format!("nothing is there {when}"), <[Observed]>::is_empty).await;
    }

    async fn is_whole(&self, when: &str) {
        let as_wished = |observed: &[Observed], wish: &Resource| {
            find(observed, &wish.id).is_some_and(|thing| thing.phase == Phase::Ready && difference(&wish.spec, &thing.spec).is_empty())
        };
        let whole =
            |observed: &[Observed]| observed.len() == self.resources.len() && self.resources.iter().all(|wish| as_wished(observed, wish));
        self.eventually(&format!("each resource is there once, ready and as wished {when}: {:#?}", self.resources), whole).await;
    }

    async fn everything_is_made_in_order_and_seen(&self) -> Vec<Request> {
        let (mut inputs, mut requests) = (Inputs::new(), Vec::new());
        for wish in &self.resources {
            assert!(wish.needs.iter().all(|need| inputs.contains_key(need)), "{} comes after what it needs", wish.id);
            assert!(self.provider.kinds().contains(&wish.id.kind.as_str()), "{} is of a kind that the door names", wish.id);
            let action = action(Verb::Create, wish, 1, None);
            let request = self.provider.render(&action, &inputs).expect("a create renders");
            assert_eq!(self.provider.render(&action, &inputs).expect("a create renders"), request, "rendering is pure");
            assert!(request.token.len() <= 64 && request.token.is_ascii(), "a token fits every cloud");
            let thing = self.execute(&request).await.unwrap_or_else(|error| panic!("{} is made: {}", wish.id, error.chain()));
            let thing = thing.unwrap_or_else(|| panic!("{} is there after its create", wish.id));
            assert_eq!(
                (&thing.id, thing.generation, &thing.phase),
                (&wish.id, 1, &Phase::Ready),
                "a create returns when the thing is ready"
            );
            inputs.insert(wish.id.clone(), thing);
            requests.push(request);
        }
        self.is_whole("after its creation").await;
        requests
    }

    async fn the_same_request_again_makes_nothing(&self, requests: &[Request]) {
        let before = self.inputs().await;
        for request in requests {
            let again = self.execute(request).await.expect("the same request again").expect("the thing that is there");
            assert_eq!(again.handle, before[&request.id].handle, "{} sent twice is made once", request.id);
        }
        self.is_whole("after every create was sent twice").await;
    }

    async fn another_process_sees_the_same(&self, other: &Subject<P>) {
        assert_eq!(handles(&self.inputs().await), handles(&other.inputs().await), "truth is in the provider, not in a process");
    }

    async fn what_is_needed_cannot_be_deleted(&self) {
        let inputs = self.inputs().await;
        let network = self.resources.iter().find(|wish| wish.id.kind == NETWORK).expect("every cluster has a network");
        let request = self.provider.render(&removal(&inputs[&network.id]), &inputs).expect("a delete renders");
        let error = self.execute(&request).await.expect_err("a network with machines on it stays");
        assert_ne!(error.kind, Kind::Internal, "{}", error.chain());
        self.is_whole("after a delete that was refused").await;
    }

    async fn a_change_in_place_keeps_the_thing(&self) {
        let inputs = self.inputs().await;
        let balancer = self.resources.iter().find(|wish| wish.id.kind == LOAD_BALANCER).expect("the blueprint has a load balancer");
        let mut changed = balancer.clone();
        changed.spec["listeners"][0]["port"] = json!(8081);
        for wish in [&changed, balancer, balancer] {
            let before = &inputs[&wish.id];
            let request = self
                .provider
                .render(&action(Verb::Update, wish, before.generation, Some(&before.handle)), &inputs)
                .expect("an update renders");
            let thing = self.execute(&request).await.expect("an update").expect("the thing stays");
            assert_eq!((&thing.handle, thing.generation), (&before.handle, before.generation), "an update keeps the thing");
            let as_wished =
                |observed: &[Observed]| find(observed, &wish.id).is_some_and(|thing| difference(&wish.spec, &thing.spec).is_empty());
            self.eventually("the update shows", as_wished).await;
        }
        self.is_whole("after a change and back").await;
    }

    async fn another_clusters_things_cannot_be_touched(&self, other: &Subject<P>) {
        let (ours, theirs) = (self.inputs().await, other.inputs().await);
        for thing in theirs.values() {
            let request = self.provider.render(&removal(thing), &ours).expect("a delete renders");
            // Refused, or nothing found: both leave it alone. A name that both clusters use may be found as our own, and refused as needed.
            if handles(&ours).contains(&thing.handle) {
                continue;
            }
            let _ = self.execute(&request).await;
        }
        other.is_whole("after another cluster tried to delete it").await;
    }

    async fn everything_goes_children_first(&self) {
        let inputs = self.inputs().await;
        for wish in self.resources.iter().rev() {
            let request = self.provider.render(&removal(&inputs[&wish.id]), &inputs).expect("a delete renders");
            let end = self.execute(&request).await.unwrap_or_else(|error| panic!("{} goes: {}", wish.id, error.chain()));
            assert!(end.is_none(), "a delete returns when the thing is gone");
            self.eventually("what was deleted is gone", |observed| find(observed, &wish.id).is_none()).await;
        }
        self.is_empty("after everything was deleted").await;
    }

    async fn deleting_again_is_fine(&self, requests: &[Request]) {
        for request in requests.iter().rev() {
            let request = Request { verb: Verb::Delete, handle: Some(format!("{}-that-is-not-there", request.id.name)), ..request.clone() };
            assert!(self.execute(&request).await.expect("deleting what is gone is no error").is_none());
        }
    }

    async fn the_next_generation_can_be_made_after_the_last(&self) {
        let wish = &self.resources[0];
        let create =
            |generation| self.provider.render(&action(Verb::Create, wish, generation, None), &Inputs::new()).expect("a create renders");
        // A provider that remembers the token says that what it made is gone; one that does not makes it again.
        let thing = match self.execute(&create(1)).await.expect("an old create sent late") {
            Some(thing) => thing,
            None => self.execute(&create(2)).await.expect("the next generation").expect("a thing"),
        };
        let request = self.provider.render(&removal(&thing), &Inputs::new()).expect("a delete renders");
        assert!(self.execute(&request).await.expect("a delete").is_none());
        self.is_empty("after the next generation went").await;
    }

    async fn an_old_epoch_is_refused_where_epochs_are_kept(&self) {
        let store = self.provider.epochs();
        let current = store.read().await.expect("the epoch can be read");
        let number = current.as_ref().map_or(0, |epoch| epoch.epoch);
        let next = Epoch { epoch: number + 2, owner: "cli:conformance:1".into() };
        assert!(store.swap(current.as_ref(), &next).await.expect("a swap"), "a swap from what is there succeeds");
        assert!(store.swap(current.as_ref(), &next).await.expect("a swap"), "a swap whose reply was lost can be repeated");
        let late = Epoch { epoch: number + 1, owner: "cli:late:1".into() };
        assert!(!store.swap(current.as_ref(), &late).await.expect("a swap"), "a swap from what is no longer there fails");
        assert_eq!(store.read().await.expect("the epoch can be read"), Some(next));
        let request = self.provider.render(&action(Verb::Create, &self.resources[0], 3, None), &Inputs::new()).expect("a create renders");
        match self.provider.execute(&Request { epoch: number + 1, ..request }, &|_| ()).await {
            Err(Error { kind: Kind::Conflict, .. }) => {}
            Err(error) => panic!("an old epoch is a conflict: {}", error.chain()),
            // A cloud that cannot keep epochs: the writer has to stop by itself before another starts.
            Ok(thing) => {
                let thing = thing.expect("a thing");
                let request = self.provider.render(&removal(&thing), &Inputs::new()).expect("a delete renders");
                self.execute(&request).await.expect("a delete");
            }
        }
    }
}

fn find<'a>(observed: &'a [Observed], id: &Id) -> Option<&'a Observed> {
    observed.iter().find(|thing| thing.id == *id)
}

fn handles(inputs: &Inputs) -> Vec<String> {
    inputs.values().map(|thing| thing.handle.clone()).collect()
}

fn action(verb: Verb, wish: &Resource, generation: u32, handle: Option<&String>) -> Action {
    let (id, spec, summary) = (wish.id.clone(), wish.spec.clone(), wish.summary.clone());
    Action { verb, id, generation, spec, handle: handle.cloned(), after: vec![], reason: "conformance".into(), summary }
}

fn removal(thing: &Observed) -> Action {
    let (id, handle) = (thing.id.clone(), Some(thing.handle.clone()));
    Action {
        verb: Verb::Delete,
        id,
        generation: thing.generation,
        spec: json!({}),
        handle,
        after: vec![],
        reason: String::new(),
        summary: String::new(),
    }
}

/// One of each kind, as small as they come.
fn blueprint(name: &str) -> Blueprint {
    let value = json!({
        "apiVersion": "kprov.dev/v1", "kind": "Blueprint", "metadata": {"name": name},
        "spec": {
            "provider": "local",
            "machines": [{"name": "control", "role": "control-plane", "count": 1, "size": {"cpu": 1, "memory": "512Mi", "disk": "1Gi"}}],
            "loadBalancers": [{"name": "web", "listeners": [{"port": 8080, "service": "shop/web"}]}],
            "filesystems": [{"name": "media", "size": "1Gi"}],
        },
    });
    serde_json::from_value(value).expect("a blueprint")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::providers::fake::{Cloud, Manners};

    async fn check(manners: Manners) {
        let cloud = Cloud::new(manners, 7);
        let cluster = |uid: &str| Cluster { name: "same-name".into(), uid: uid.into() };
        run(async |cluster: &Cluster| cloud.provider(cluster), &cluster("u-a"), &cluster("u-b"), "ssh-ed25519 AAAA").await;
    }

    #[tokio::test(start_paused = true)]
    async fn the_fake_conforms_with_epochs_and_immediate_reads() {
        check(Manners::strict()).await;
    }

    #[tokio::test(start_paused = true)]
    async fn the_fake_conforms_with_reads_that_lag() {
        check(Manners::eventual()).await;
    }

    #[tokio::test(start_paused = true)]
    #[should_panic(expected = "sent twice is made once")]
    async fn a_provider_that_ignores_tokens_does_not_conform() {
        check(Manners { tokens: false, ..Manners::strict() }).await;
    }

    #[tokio::test(start_paused = true)]
    #[should_panic(expected = "a network with machines on it stays")]
    async fn a_provider_that_ignores_needs_does_not_conform() {
        check(Manners { dependencies_checked: false, ..Manners::strict() }).await;
    }

    #[tokio::test(start_paused = true)]
    #[should_panic]
    async fn a_provider_that_looks_up_by_name_does_not_conform() {
        check(Manners { tags_checked: false, ..Manners::strict() }).await;
    }
}
