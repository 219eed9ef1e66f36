//! What can be known before the first create: who we are, who may reach the machines. All problems at once.

use super::Aws;
use super::failure::OrFailure;
use super::names::{GROUP, MACHINES};
use crate::engine::{Id, Resource};
use crate::error::{Error, Kind, Result};
use crate::providers::resources::MACHINE;
use serde_json::Value;

impl Aws {
    pub(super) async fn check_all(&self, resources: &[Resource]) -> Result<()> {
        let who = self.clients.sts.get_caller_identity().send().await.or_failure("sign in to AWS").map(drop);
        let problems: Vec<Error> = who.err().into_iter().chain(closed(resources)).chain(foreign_processors(resources)).collect();
        together(problems)
    }
}

/// Nothing would be able to reach SSH: kprov itself could not.
fn closed(resources: &[Resource]) -> Option<Error> {
    let group = resources.iter().find(|resource| resource.id == Id::new(GROUP, MACHINES))?;
    let opens_ssh = group.spec["rules"].as_array().into_iter().flatten().filter_map(Value::as_str).any(|rule| rule.starts_with("tcp 22 "));
    (!opens_ssh).then(|| crate::providers::firewall::check(&Default::default()).err()).flatten()
}

/// kprov uploads itself: its own program must run there.
fn foreign_processors(resources: &[Resource]) -> Option<Error> {
    let kinds = resources.iter().filter(|resource| resource.id.kind == MACHINE).filter_map(|machine| machine.spec["instanceType"].as_str());
    let ours = if std::env::consts::ARCH == "aarch64" { "arm64" } else { "x86_64" };
    let other = kinds.map(|kind| (kind, super::sizes::architecture(kind))).find(|(_, architecture)| *architecture != ours)?;
    Some(Error::input(format!("could not use {}: it is {}, and this kprov is built for {ours}", other.0, other.1)))
}

fn together(problems: Vec<Error>) -> Result<()> {
    let mut problems = problems.into_iter();
    let Some(first) = problems.next() else { return Ok(()) };
    let rest: Vec<Error> = problems.collect();
    if rest.is_empty() {
        return Err(first);
    }
    let kind = if first.kind == Kind::Transient { Kind::Provider } else { first.kind };
    let error = Error::new(kind, "could not start: several things are missing").hint(first.chain());
    let hints =
        first.hints().to_vec().into_iter().chain(rest.iter().flat_map(|one| std::iter::once(one.chain()).chain(one.hints().to_vec())));
    Err(hints.fold(error, Error::hint))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn resource(kind: &str, name: &str, spec: Value) -> Resource {
        Resource { id: Id::new(kind, name), spec, needs: vec![], replace_on: vec![], summary: String::new() }
    }

    #[test]
    fn a_closed_door_and_a_foreign_processor_are_said_together() {
        let resources = [
            resource(GROUP, MACHINES, json!({"rules": ["all from machines"]})),
            resource(
                MACHINE,
                "worker-1",
                json!({"instanceType": if std::env::consts::ARCH == "aarch64" { "m7i.large" } else { "m7g.large" }}),
            ),
        ];
        let problems: Vec<Error> = closed(&resources).into_iter().chain(foreign_processors(&resources)).collect();
        assert_eq!(problems.len(), 2);
        let error = together(problems).expect_err("two problems");
        assert!(error.hints().iter().any(|hint| hint.contains("spec.access.from")), "{:?}", error.hints());
        let open = [resource(GROUP, MACHINES, json!({"rules": ["tcp 22 from 192.0.2.0/24"]}))];
        assert!(closed(&open).is_none());
    }
}
