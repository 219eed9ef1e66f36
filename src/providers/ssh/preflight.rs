//! All hosts are asked before the first change, and everything that is wrong with any of them is told at once.

use super::Machines;
use super::hosts::{Host, Silence};
use super::survey::{self, Facts, Problem, Shares};
use super::world::World;
use crate::engine::{Phase, Resource};
use crate::error::{Error, Result};
use crate::providers::resources::{FILESYSTEM, MACHINE, MachineSpec};
use futures::future::join_all;
use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

const TIMEOUT: Duration = Duration::from_secs(30);

impl Machines {
    pub(super) async fn preflight(&self, resources: &[Resource]) -> Result<()> {
        let world = self.world().await?;
        let wishes = wishes(resources, &world);
        let hosts = self.hosts.all().await;
        let asked = hosts.iter().map(|(place, host)| self.ask(place, host.as_ref(), &world, wishes.get(place)));
        let found: Vec<(String, Vec<Problem>)> = join_all(asked).await.into_iter().filter(|(_, problems)| !problems.is_empty()).collect();
        verdict(&found, hosts.len()).map_or(Ok(()), Err)
    }

    async fn ask(&self, place: &str, host: Result<&Host, &Silence>, world: &World, wish: Option<&Wish>) -> (String, Vec<Problem>) {
        let problems = match (host, wish) {
            (Err(silence), _) => vec![Problem { text: silence.text.clone(), hint: "correct its entry in spec.providers.ssh.hosts".into() }],
            (Ok(host), Some(wish)) => self.examine(host, wish).await,
            (Ok(host), None) => match self.hosts.connect(host).await {
                // It could hold the records of this very cluster.
                Err(silence) if world.anchor.is_none() => vec![survey::silent(host, &silence)],
                _ => Vec::new(),
            },
        };
        (place.to_string(), problems)
    }

    async fn examine(&self, host: &Host, wish: &Wish) -> Vec<Problem> {
        let connection = match self.hosts.connect(host).await {
            Ok(connection) => connection,
            Err(silence) => return vec![survey::silent(host, &silence)],
        };
        let output = match tokio::time::timeout(TIMEOUT, connection.shell(survey::SCRIPT, b"")).await {
            Ok(Ok(output)) => output,
            Ok(Err(error)) => return vec![survey::refused(host, &error.chain())],
            Err(_) => return vec![survey::refused(host, "no answer")],
        };
        match Facts::parse(&String::from_utf8_lossy(&output.stdout)) {
            Ok(facts) => {
                let (uid, arch) = (&self.cluster.uid, std::env::consts::ARCH);
                let machine = wish.machine.iter().flat_map(|machine| survey::problems(&facts, machine, uid, arch, SystemTime::now()));
                let mut problems: Vec<Problem> = machine.chain(survey::sharing(&facts, wish.shares)).collect();
                problems.extend(wish.machine.as_ref().and_then(|_| survey::addressing(&facts, host.private)));
                problems.extend(self.foreign(host).await);
                problems
            }
            Err(_) => vec![survey::refused(host, &String::from_utf8_lossy(&output.stderr))],
        }
    }

    /// Claimed by somebody else, by name.
    async fn foreign(&self, host: &Host) -> Option<Problem> {
        let seen = self.hosts.see(host).await.ok()?;
        if let Some(text) = seen.damaged {
            let hint = "if no cluster uses this host, remove /etc/kprov/claim.json there";
            return Some(Problem { text: format!("its claim cannot be read: {text:.80}"), hint: hint.into() });
        }
        let claim = seen.claim.filter(|claim| claim.cluster_uid != self.cluster.uid)?;
        let hint = format!("take that cluster away first (kprov down {}), or list another host", claim.cluster);
        Some(Problem { text: format!("it is {} of cluster {}", claim.machine, claim.cluster), hint })
    }
}

/// What is still to come to a host.
#[derive(Default)]
struct Wish {
    machine: Option<MachineSpec>,
    shares: Shares,
}

/// The machines that are still to be claimed and the filesystems that are still to be made, by host.
fn wishes(resources: &[Resource], world: &World) -> BTreeMap<String, Wish> {
    let mut wishes: BTreeMap<String, Wish> = BTreeMap::new();
    let machines = resources.iter().filter(|resource| resource.id.kind == MACHINE);
    let open = machines.filter(|machine| {
        !world.thing(&machine.id).is_some_and(|thing| thing.phase == Phase::Ready && machine.spec["host"] == thing.handle.as_str())
    });
    let filesystems = || resources.iter().filter(|resource| resource.id.kind == FILESYSTEM);
    for machine in open {
        let wish = wishes.entry(machine.spec["host"].as_str().unwrap_or_default().into()).or_default();
        wish.machine = serde_json::from_value(machine.spec.clone()).ok();
        wish.shares.mounts = filesystems().next().is_some();
    }
    for filesystem in filesystems().filter(|filesystem| world.thing(&filesystem.id).is_none()) {
        let wish = wishes.entry(filesystem.spec["host"].as_str().unwrap_or_default().into()).or_default();
        *wish.shares.keeps.get_or_insert(0) += filesystem.spec["sizeBytes"].as_u64().unwrap_or(0);
    }
    wishes
}

/// One error for all: a line per host, each next step once.
fn verdict(found: &[(String, Vec<Problem>)], hosts: usize) -> Option<Error> {
    if found.is_empty() {
        return None;
    }
    let texts = |problems: &[Problem]| problems.iter().map(|problem| problem.text.as_str()).collect::<Vec<_>>().join("; ");
    let lines: Vec<String> = found.iter().map(|(place, problems)| format!("\n  {place}: {}", texts(problems))).collect();
    let error = Error::host(format!("could not use {} of {hosts} hosts; nothing was changed:{}", found.len(), lines.concat()));
    let mut hints: Vec<String> = Vec::new();
    for (place, problem) in found.iter().flat_map(|(place, problems)| problems.iter().map(move |problem| (place, problem))) {
        let hint = format!("{place}: {}", problem.hint);
        if !hints.contains(&hint) {
            hints.push(hint);
        }
    }
    Some(hints.into_iter().fold(error, Error::hint))
}
