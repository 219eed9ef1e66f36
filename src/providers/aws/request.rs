//! An action becomes the request that is journaled and sent: the wish, and the ids of what it refers to. Pure.

use super::names::*;
use super::resources::{crossed, target_name};
use crate::engine::{Action, Cluster, Id, Inputs, Pace, Request, Verb};
use crate::error::{Error, Result};
use crate::providers::resources::{FILESYSTEM, LOAD_BALANCER, MACHINE, NETWORK};
use serde_json::{Map, Value, json};

/// Machines that boot, above all: two are launched per second, and each takes half a minute. One look serves all that wait.
pub const AT_ONCE: usize = 128;

/// EC2's documented request rates ("Request throttling for the Amazon EC2 API"): launches are the narrowest, all others are mutating
/// calls of which one request makes a few. The other services' limits are as wide or wider.
pub fn pace(request: &Request) -> Option<Pace> {
    let pace = |bucket, burst, per_second| Some(Pace { bucket, burst, per_second });
    match (request.id.kind.as_str(), request.verb) {
        (_, Verb::Await) => None,
        (MACHINE, Verb::Create) => pace("RunInstances", 5, 2.0),
        (MACHINE, Verb::Repair) => pace("StartInstances", 5, 2.0),
        (MACHINE, Verb::Delete) => pace("TerminateInstances", 100, 5.0),
        _ => pace("mutating", 20, 5.0),
    }
}

pub fn render(cluster: &Cluster, action: &Action, inputs: &Inputs) -> Result<Request> {
    let body = match action.verb {
        Verb::Create | Verb::Update | Verb::Repair => json!({"spec": action.spec, "refs": refs(cluster, action, inputs)?}),
        Verb::Delete | Verb::Await => json!({}),
    };
    Ok(Request::of(cluster, action, body))
}

fn refs(cluster: &Cluster, action: &Action, inputs: &Inputs) -> Result<Value> {
    let handle = |kind: &str, name: &str| -> Result<Value> {
        let id = Id::new(kind, name);
        let thing = inputs.get(&id).ok_or_else(|| Error::transient(format!("could not refer to {id}: it is not there yet")))?;
        Ok(json!(thing.handle))
    };
    let all = |kind: &str, names: Vec<String>| -> Result<Value> {
        let pairs: Result<Map<String, Value>> = names.into_iter().map(|name| Ok((name.clone(), handle(kind, &name)?))).collect();
        Ok(Value::Object(pairs?))
    };
    let spec = &action.spec;
    let text = |field: &str| spec[field].as_str().unwrap_or_default();
    let texts = |field: &str| spec[field].as_array().into_iter().flatten().filter_map(Value::as_str).map(String::from).collect::<Vec<_>>();
    // A given one is named in the wish.
    let network = || if spec["vpc"].is_string() { Ok(spec["vpc"].clone()) } else { handle(NETWORK, &cluster.name) };
    let subnet = || if spec["subnet"].is_string() { Ok(spec["subnet"].clone()) } else { handle(SUBNET, text("zone")) };
    Ok(match action.id.kind.as_str() {
        SUBNET | GATEWAY => json!({"network": network()?}),
        TARGETS => json!({"network": network()?, "machines": all(MACHINE, texts("machines"))?}),
        ROUTES => json!({"network": network()?, "gateway": handle(GATEWAY, MAIN)?, "subnets": all(SUBNET, texts("subnets"))?}),
        GROUP => {
            // The machines' group also refers to itself, which is only known when it is there.
            let known = if action.id.name == MACHINES { all(GROUP, vec![BALANCERS.into()])? } else { json!({}) };
            json!({"network": network()?, "groups": known})
        }
        MOUNT => json!({
            "filesystem": handle(FILESYSTEM, text("filesystem"))?, "subnet": subnet()?,
            "group": handle(GROUP, MACHINES)?,
        }),
        MACHINE => {
            let mut refs = json!({"subnet": subnet()?, "group": handle(GROUP, MACHINES)?, "key": plain(cluster, MAIN)});
            if text("role") == CONTROL_PLANE {
                refs["profile"] = handle(PROFILE, CONTROL_PLANE)?;
            }
            refs
        }
        LOAD_BALANCER => {
            if let Some(error) = crossed(spec) {
                return Err(error);
            }
            let own = inputs.keys().filter(|id| id.kind == SUBNET).map(|id| id.name.clone()).collect();
            let subnets = if spec["subnets"].is_object() { spec["subnets"].clone() } else { all(SUBNET, own)? };
            let target = |listener: &Value| {
                let node_port = listener["nodePort"].as_u64().and_then(|port| u16::try_from(port).ok())?;
                Some(target_name(&action.id.name, listener["protocol"].as_str().unwrap_or_default(), node_port))
            };
            let targets = spec["listeners"].as_array().into_iter().flatten().filter_map(target).collect();
            json!({"subnets": subnets, "group": handle(GROUP, BALANCERS)?, "targets": all(TARGETS, targets)?})
        }
        _ => json!({}),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{Observed, Phase};

    fn action(id: Id, spec: Value) -> Action {
        Action { verb: Verb::Create, id, generation: 1, spec, handle: None, after: vec![], reason: String::new(), summary: String::new() }
    }

    #[test]
    fn a_machine_refers_to_what_was_made_a_moment_ago_and_waits_for_what_was_not() {
        let cluster = Cluster { name: "shop".into(), uid: "u-1".into() };
        let wish = action(Id::new(MACHINE, "control-1"), json!({"role": "control-plane", "zone": "eu-west-1a"}));
        let thing = |kind: &str, name: &str, handle: &str| {
            let id = Id::new(kind, name);
            let (spec, outputs) = (json!({}), json!({}));
            (id.clone(), Observed { id, handle: handle.into(), generation: 1, phase: Phase::Ready, spec, outputs, needs: vec![] })
        };
        let mut inputs = Inputs::from([thing(SUBNET, "eu-west-1a", "subnet-1"), thing(GROUP, MACHINES, "sg-1")]);
        assert_eq!(render(&cluster, &wish, &inputs).expect_err("no profile yet").kind, crate::error::Kind::Transient);
        inputs.extend([thing(PROFILE, CONTROL_PLANE, "kprov-shop")]);
        let request = render(&cluster, &wish, &inputs).expect("a request");
        assert_eq!(
            request.body["refs"],
            json!({"subnet": "subnet-1", "group": "sg-1", "key": plain(&cluster, MAIN), "profile": "kprov-shop"})
        );
    }
}
