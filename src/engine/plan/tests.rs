//! Plans as stories.

use super::*;

pub(crate) fn resource(id: &str, spec: Value, needs: &[&str]) -> Resource {
    Resource {
        id: parse(id),
        spec,
        needs: needs.iter().map(|need| parse(need)).collect(),
        replace_on: vec!["size".into()],
        summary: String::new(),
    }
}

pub(crate) fn observed(id: &str, spec: Value, phase: Phase, needs: &[&str]) -> Observed {
    let id = parse(id);
    Observed {
        handle: format!("h-{}", id.name),
        generation: 1,
        phase,
        spec,
        outputs: json!({}),
        needs: needs.iter().map(|need| parse(need)).collect(),
        id,
    }
}

fn parse(id: &str) -> Id {
    let (kind, name) = id.split_once('/').expect("kind/name");
    Id::new(kind, name)
}

/// `["create machine/a after network/n", ...]` of the plan.
fn check(desired: &[Resource], observed: &[Observed], expected: &[&str]) -> Plan {
    let plan = plan(desired, observed, &BTreeMap::new());
    let said: Vec<String> = plan
        .actions
        .iter()
        .map(|action| {
            let after: Vec<String> = action.after.iter().map(Key::to_string).collect();
            if after.is_empty() { action.key().to_string() } else { format!("{} after {}", action.key(), after.join(", ")) }
        })
        .collect();
    assert_eq!(said, expected);
    plan
}

fn cluster_spec(role: &str) -> Value {
    json!({"role": role, "size": 1})
}

/// A network, one control plane, two workers, their hosts, and a load balancer over the workers.
fn shop() -> Vec<Resource> {
    let mut all = vec![resource("network/shop", json!({}), &[])];
    for (name, role) in [("control-1", "control-plane"), ("worker-1", "worker"), ("worker-2", "worker")] {
        all.push(resource(&format!("machine/{name}"), cluster_spec(role), &["network/shop"]));
        all.push(resource(&format!("host/{name}"), json!({"role": role}), &[&format!("machine/{name}")]));
    }
    all.push(resource("load-balancer/web", json!({"machines": ["worker-1", "worker-2"]}), &["machine/worker-1", "machine/worker-2"]));
    all
}

fn running(resources: &[Resource]) -> Vec<Observed> {
    let thing = |resource: &Resource| Observed {
        id: resource.id.clone(),
        handle: format!("h-{}", resource.id.name),
        generation: 1,
        phase: Phase::Ready,
        spec: resource.spec.clone(),
        outputs: json!({}),
        needs: resource.needs.clone(),
    };
    resources.iter().map(thing).collect()
}

#[test]
fn what_is_as_it_should_be_needs_nothing() {
    let plan = check(&shop(), &running(&shop()), &[]);
    assert!(plan.is_empty());
    assert_eq!((plan.unchanged, plan.footer().as_str()), (8, "Plan: 0 to create, 0 to change, 0 to delete."));
}

#[test]
fn an_empty_world_gets_everything_after_what_it_needs() {
    check(
        &shop(),
        &[],
        &[
            "create network/shop",
            "create machine/control-1 after create network/shop",
            "create machine/worker-1 after create network/shop",
            "create machine/worker-2 after create network/shop",
            "create host/control-1 after create machine/control-1",
            "create host/worker-1 after create machine/worker-1",
            "create host/worker-2 after create machine/worker-2",
            "create load-balancer/web after create machine/worker-1, create machine/worker-2",
        ],
    );
}

#[test]
fn one_worker_less_is_drained_and_leaves_the_load_balancer_before_its_machine_goes() {
    let mut wish: Vec<Resource> = shop().into_iter().filter(|resource| resource.id.name != "worker-2").collect();
    let balancer = wish.last_mut().expect("the load balancer");
    balancer.spec = json!({"machines": ["worker-1"]});
    balancer.needs.pop();
    let plan = check(
        &wish,
        &running(&shop()),
        &[
            "delete host/worker-2",
            "update load-balancer/web",
            "delete machine/worker-2 after delete host/worker-2, update load-balancer/web",
        ],
    );
    assert_eq!(plan.actions[0].spec, json!({"drain": true}));
    assert_eq!(plan.actions[1].reason, "machines: [worker-1 worker-2] -> [worker-1]");
}

#[test]
fn down_stops_the_loop_first_and_deletes_its_machine_last_and_drains_nothing() {
    let plan = check(
        &[],
        &running(&shop()),
        &[
            "delete host/control-1",
            "delete host/worker-1 after delete host/control-1",
            "delete host/worker-2 after delete host/control-1",
            "delete load-balancer/web after delete host/control-1",
            "delete machine/worker-1 after delete host/control-1, delete host/worker-1, delete load-balancer/web",
            "delete machine/worker-2 after delete host/control-1, delete host/worker-2, delete load-balancer/web",
            "delete machine/control-1 after delete host/control-1, delete machine/worker-1, delete machine/worker-2",
            "delete network/shop after delete host/control-1, delete machine/control-1, delete machine/worker-1, delete machine/worker-2",
        ],
    );
    let hosts = plan.actions.iter().filter(|action| action.id.kind == HOST);
    assert!(hosts.clone().count() == 3 && hosts.into_iter().all(|host| host.spec == json!({"drain": false})));
}

#[test]
fn what_the_loop_reaches_through_the_api_goes_before_the_loop_is_stopped() {
    let mut world = running(&shop());
    world.push(observed("workloads/all", json!({}), Phase::Ready, &["host/control-1"]));
    let plan = plan(&[], &world, &BTreeMap::new());
    assert_eq!(plan.actions[0].key().to_string(), "delete workloads/all");
    assert!(plan.actions.iter().all(|action| action.after.iter().all(|key| key.id != action.id)));
}

#[test]
fn a_field_that_cannot_change_in_place_replaces_machine_and_host() {
    let mut wish = shop();
    wish[3].spec["size"] = json!(2);
    let plan = check(
        &wish,
        &running(&shop()),
        &[
            "delete host/worker-1",
            "delete machine/worker-1 after delete host/worker-1",
            "create machine/worker-1 after delete machine/worker-1",
            "create host/worker-1 after create machine/worker-1, delete host/worker-1",
        ],
    );
    let made = &plan.actions[2];
    assert_eq!((made.generation, made.reason.as_str()), (2, "size: 1 -> 2"));
    assert_eq!(plan.footer(), "Plan: 0 to create, 0 to change, 0 to delete, 2 to replace.");
}

#[test]
fn a_machine_that_vanished_is_made_again_and_its_host_with_it() {
    let world: Vec<Observed> = running(&shop()).into_iter().filter(|thing| thing.id != parse("machine/worker-1")).collect();
    let plan = check(
        &shop(),
        &world,
        &["delete host/worker-1", "create machine/worker-1", "create host/worker-1 after create machine/worker-1, delete host/worker-1"],
    );
    assert_eq!(plan.actions[0].spec, json!({"drain": false}), "a machine that is gone cannot be drained");
}

#[test]
fn broken_is_repaired_and_pending_is_awaited_never_replaced() {
    let mut wish = shop();
    let mut world = running(&wish);
    world[3].phase = Phase::Broken("its first process ended".into());
    world[5].phase = Phase::Pending;
    wish[5].spec["size"] = json!(2);
    let plan = check(&wish, &world, &["repair machine/worker-1", "await machine/worker-2"]);
    assert_eq!(plan.actions[0].reason, "its first process ended");
    assert_eq!(plan.waiting, [Waiting { id: parse("machine/worker-2"), why: "started earlier and not ready yet".into() }]);
}

#[test]
fn what_is_on_its_way_out_is_awaited_and_then_made_again_if_still_wanted() {
    let wish = [resource("network/shop", json!({}), &[])];
    let world = [observed("network/shop", json!({}), Phase::Deleting, &[])];
    check(&wish, &world, &["await network/shop", "create network/shop after await network/shop"]);
    check(&[], &world, &["await network/shop"]);
}

#[test]
fn of_two_with_one_name_the_working_older_one_stays() {
    let twin = |handle: &str, generation, phase| Observed {
        handle: handle.into(),
        generation,
        phase,
        ..observed("network/shop", json!({}), Phase::Ready, &[])
    };
    let wish = [resource("network/shop", json!({}), &[])];
    let keeps = |world: &[Observed]| {
        let plan = plan(&wish, world, &BTreeMap::new());
        plan.actions.iter().map(|action| (action.verb, action.handle.clone().unwrap_or_default())).collect::<Vec<_>>()
    };
    assert_eq!(keeps(&[twin("b", 1, Phase::Ready), twin("a", 1, Phase::Ready)]), [(Verb::Delete, "b".into())]);
    assert_eq!(keeps(&[twin("a", 1, Phase::Pending), twin("b", 2, Phase::Ready)]), [(Verb::Delete, "a".into())]);
    let both = plan(&[], &[twin("a", 1, Phase::Ready), twin("b", 1, Phase::Ready)], &BTreeMap::new());
    assert_eq!(both.actions.len(), 2);
}

#[test]
fn the_next_generation_is_above_everything_anybody_remembers() {
    let wish = [resource("network/shop", json!({}), &[])];
    let remembered = BTreeMap::from([(parse("network/shop"), 4)]);
    assert_eq!(plan(&wish, &[], &remembered).actions[0].generation, 5);
}

#[test]
fn fields_that_cannot_be_read_back_are_not_compared() {
    let wish = json!({"a": 1, "deep": {"x": 1, "y": 2}});
    assert!(difference(&wish, &json!({})).is_empty());
    assert!(difference(&wish, &json!({"deep": {"x": 1}})).is_empty());
    assert_eq!(compare::reason(&difference(&wish, &json!({"deep": {"y": 3}, "gone": true}))), "deep.y: 3 -> 2, gone: true -> none");
    let sizes = difference(&json!({"memoryBytes": 2u64 << 30, "cpuMillis": 1500}), &json!({"memoryBytes": 512 << 20, "cpuMillis": 1000}));
    assert_eq!(compare::reason(&sizes), "cpu: 1 -> 1500m, memory: 512Mi -> 2Gi");
}

#[test]
fn prints_every_word_within_eighty_columns() {
    let mut wish = shop();
    for resource in &mut wish {
        if resource.id.kind == MACHINE {
            resource.summary = "t3.micro: 2 cpu, 1Gi memory, 10Gi disk, debian-12-amd64, eu-west-1a, $0.0114/h".into();
        }
    }
    let mut world = running(&wish);
    world.retain(|thing| thing.id.name != "worker-2");
    wish[7].spec["machines"] = json!(["worker-1", "worker-2", "worker-with-a-very-long-name"]);
    wish[1].spec["size"] = json!(2);
    let text = plan(&wish, &world, &BTreeMap::new()).to_string();
    assert_eq!(
        text,
        "\
+   machine/worker-2   t3.micro: 2 cpu, 1Gi memory, 10Gi disk, debian-12-amd64,
                       eu-west-1a, $0.0114/h
+   host/worker-2
~   load-balancer/web  (machines changed)
-/+ machine/control-1  t3.micro: 2 cpu, 1Gi memory, 10Gi disk, debian-12-amd64,
                       eu-west-1a, $0.0114/h (size: 1 -> 2)
-/+ host/control-1     (its machine is made again)

Plan: 2 to create, 1 to change, 0 to delete, 2 to replace."
    );
    assert!(text.lines().all(|line| line.chars().count() <= 80));
}

#[test]
fn a_plan_survives_json() {
    let plan = plan(&shop(), &[], &BTreeMap::new());
    let text = serde_json::to_string(&plan).expect("plain data");
    assert_eq!(serde_json::from_str::<Plan>(&text).expect("what was written"), plan);
}
