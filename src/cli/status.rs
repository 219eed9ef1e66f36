//! `kprov status [NAME]`: one screen: what is wanted, what is, what it waits for and why.

use super::session::Session;
use super::state::{self, Named, Record};
use super::terminal::{self, paint_data};
use super::world::hosts::all_machines;
use super::world::served::Watch;
use super::world::waiting::{Waiting, is_ready, keeping, waiting};
use crate::blueprint::{Blueprint, ProviderName, schema::Metadata};
use crate::engine::plan::beside;
use crate::engine::{Id, MACHINE, Observed, Phase};
use crate::error::{Error, Kind, Result};
use crate::orchestrator::client::blueprint::BlueprintObject;
use crate::providers::resources::served_at;
use k8s_openapi::api::core::v1::Node;
use serde_json::{Value, json};
use std::fmt;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

/// A screen should not keep people waiting: an API that is silent for this long is reported as silent.
const PATIENCE: Duration = Duration::from_secs(5);

/// Things of one sort that fit a screen; of more, those that are well are counted, and what is waited for is cut off.
const MOST_ROWS: usize = 12;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The cluster; without it, the only one there is
    name: Option<String>,
    /// Its provider, where clusters of this name are on several
    #[arg(long, value_parser = state::provider_name)]
    provider: Option<ProviderName>,
    /// Print as JSON
    #[arg(short, long, value_parser = ["json"])]
    output: Option<String>,
}

/// What is known of a cluster at this moment.
struct Picture {
    name: String,
    writer: String,
    things: Vec<Observed>,
    inside: Result<Inside>,
}

struct Inside {
    nodes: Vec<Arc<Node>>,
    wanted: Option<Blueprint>,
    /// What the loop is doing and what failed, in its own words.
    status: Value,
    waiting: Vec<Waiting>,
}

pub async fn run(args: &Args) -> Result<ExitCode> {
    let record = match &args.name {
        Some(name) => Named { name: name.clone(), provider: args.provider }.find().await?,
        None => only_one()?,
    };
    let name = record.cluster.name.clone();
    let mut session = Session::view(record).await?;
    session.borrow_trust().await?;
    let things = session.observe_provider().await?;
    let inside = match tokio::time::timeout(PATIENCE, look_inside(&session, &things)).await {
        Ok(inside) => inside,
        Err(_) => Err(Error::timeout(format!("the API did not answer within {} s", PATIENCE.as_secs()))),
    };
    let writer = session.provider.epochs().read().await?.map_or("nobody yet".to_string(), |epoch| epoch.owner);
    let picture = Picture { name, writer, things, inside };
    let well = picture.is_well();
    if args.output.is_some() {
        terminal::print_json(&picture.json())?;
    } else {
        terminal::print(&picture)?;
    }
    Ok(if well { ExitCode::SUCCESS } else { ExitCode::from(Kind::Timeout.exit_code()) })
}

fn only_one() -> Result<Record> {
    let records = state::all();
    match records.as_slice() {
        [record] => Ok(record.clone()),
        [] => Err(Error::input("there is no cluster yet").hint("kprov init > shop.yaml && kprov up shop.yaml")),
        several => {
            let names: Vec<&str> = several.iter().map(|record| record.cluster.name.as_str()).collect();
            Err(Error::input("there is more than one cluster").hint(format!("name one of: {}", names.join(", "))))
        }
    }
}

async fn look_inside(session: &Session, things: &[Observed]) -> Result<Inside> {
    let client = session.api(things)?;
    let object = client.get::<BlueprintObject>("", &session.cluster.name).await.map_err(Error::from)?;
    let watch = Watch::start(&client);
    watch.synced().await;
    let objects = watch.objects();
    let wanted = object.as_ref().map(|object| Blueprint {
        api_version: "kprov.dev/v1".into(),
        kind: "Blueprint".into(),
        metadata: Metadata { name: session.cluster.name.clone(), labels: Default::default(), annotations: Default::default() },
        spec: object.spec.clone(),
    });
    let mut left =
        wanted.as_ref().map(|blueprint| waiting(&all_machines(blueprint), &blueprint.spec.workloads, &objects)).unwrap_or_default();
    match &object {
        Some(object) => left.extend(keeping(object)),
        None => {
            left.push(Waiting { what: format!("blueprint/{}", session.cluster.name), why: "kprov up has not handed it over yet".into() })
        }
    }
    Ok(Inside { nodes: objects.nodes, wanted, status: object.and_then(|object| object.status).unwrap_or_default(), waiting: left })
}

impl Picture {
    fn is_well(&self) -> bool {
        let inside = self.inside.as_ref().is_ok_and(|inside| inside.wanted.is_some() && inside.waiting.is_empty());
        inside && self.missing().is_empty() && self.things.iter().all(|thing| thing.phase == Phase::Ready)
    }

    /// Machines that the blueprint wants and that are not there, and why, in the loop's own words.
    fn missing(&self) -> Vec<Waiting> {
        let Ok(inside) = &self.inside else { return Vec::new() };
        let Some(wanted) = &inside.wanted else { return Vec::new() };
        let there = |name: &String| self.things.iter().any(|thing| thing.id.kind == MACHINE && thing.id.name == *name);
        let names = all_machines(wanted).into_iter().filter(|name| !there(name));
        names.map(|name| Waiting { what: Id::new(MACHINE, &name).to_string(), why: inside.why_missing(&name) }).collect()
    }

    fn json(&self) -> Value {
        let inside = match &self.inside {
            Ok(inside) => json!({
                "nodes": inside.nodes.iter().map(|node| json!({"name": node.metadata.name, "ready": is_ready(node)})).collect::<Vec<_>>(),
                "waiting": inside.waiting,
                "loop": inside.status,
            }),
            Err(error) => json!({"error": error.chain()}),
        };
        json!({"cluster": self.name, "writer": self.writer, "well": self.is_well(), "resources": self.things, "missing": self.missing(),
            "inside": inside})
    }

    /// What there is and what is missing: id, address, colour, words. Of many, those that are well are only counted.
    fn rows(&self) -> Vec<[String; 4]> {
        let of_thing = |thing: &Observed| {
            let (colour, words) = phase(&thing.phase);
            [thing.id.to_string(), served_at(thing).unwrap_or("").into(), colour.into(), words]
        };
        let many = self.things.len() > MOST_ROWS;
        let shown = self.things.iter().filter(|thing| !many || thing.phase != Phase::Ready).map(of_thing);
        let missing = self.missing().into_iter().map(|one| [one.what, "-".into(), "31".into(), format!("missing: {}", one.why)]);
        let ready = self.things.iter().filter(|thing| many && thing.phase == Phase::Ready).count();
        let counted = (ready > 0).then(|| [format!("{ready} more"), String::new(), "32".into(), "ready".into()]);
        shown.chain(missing).chain(counted).collect()
    }
}

impl fmt::Display for Picture {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = if self.is_well() { paint_data("32", "as wanted") } else { paint_data("33", "not as wanted yet") };
        writeln!(out, "{}: {state} (writer: {})", self.name, self.writer)?;
        let rows = self.rows();
        let widest = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
        let (ids, addresses) = (widest(0), widest(1));
        for [id, address, colour, words] in &rows {
            let words = beside(ids + addresses + 6, words);
            // The state alone is coloured, and it is one word.
            let end = words.find([':', ' ', '\n']).unwrap_or(words.len());
            writeln!(out, "  {id:ids$}  {address:addresses$}  {}{}", paint_data(colour, &words[..end]), &words[end..])?;
        }
        match &self.inside {
            Err(error) => writeln!(out, "{} {}", paint_data("31", "inside:"), beside(8, &error.chain())),
            Ok(inside) => inside.fmt(out),
        }
    }
}

impl fmt::Display for Inside {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ready = self.nodes.iter().filter(|node| is_ready(node)).count();
        match &self.wanted {
            Some(blueprint) => writeln!(out, "nodes: {ready} of {} ready", all_machines(blueprint).len())?,
            None => writeln!(out, "nodes: {ready} ready")?,
        }
        let mut lines: Vec<String> = Vec::new();
        for key in ["doing", "failed"] {
            lines.extend(self.told(key).map(|line| format!("{key}: {line}")));
        }
        // The loop's own reason for the Blueprint was said just now.
        let news = self.waiting.iter().filter(|one| !self.told("doing").chain(self.told("failed")).any(|line| line == one.why));
        lines.extend(news.map(|one| format!("waiting for {one}")));
        if lines.is_empty() {
            return writeln!(out, "waiting for nothing");
        }
        for line in lines.iter().take(MOST_ROWS) {
            writeln!(out, "  {}", beside(4, line))?;
        }
        if lines.len() > MOST_ROWS {
            writeln!(out, "  ... and {} more (-o json has all)", lines.len() - MOST_ROWS)?;
        }
        Ok(())
    }
}

impl Inside {
    /// What the loop says of its last round under this name.
    fn told(&self, key: &str) -> impl Iterator<Item = &str> {
        self.status[key].as_array().into_iter().flatten().filter_map(Value::as_str)
    }

    fn why_missing(&self, name: &str) -> String {
        let of_machine = format!(" machine/{name}: ");
        let about = |key: &str| self.told(key).find_map(|line| Some(line.split_once(&of_machine)?.1.to_string()));
        let doing = || about("doing").map(|_| "the loop is making it".into());
        about("failed").or_else(doing).unwrap_or_else(|| "the loop has not looked yet".into())
    }
}

fn phase(phase: &Phase) -> (&'static str, String) {
    match phase {
        Phase::Ready => ("32", "ready".into()),
        Phase::Pending => ("33", "pending".into()),
        Phase::Deleting => ("33", "going".into()),
        Phase::Broken(why) => ("31", format!("broken: {why}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blueprint::from_object;

    fn thing(kind: &str, name: &str, phase: Phase) -> Observed {
        let outputs = json!({"address": "10.88.0.11"});
        Observed { id: Id::new(kind, name), handle: name.into(), generation: 1, phase, spec: json!({}), outputs, needs: Vec::new() }
    }

    fn picture(workers: usize, things: Vec<Observed>, status: Value, waiting: &[(&str, &str)]) -> Picture {
        let object = json!({"apiVersion": "kprov.dev/v1", "kind": "Blueprint", "metadata": {"name": "shop"}, "spec": {"provider": "local",
            "machines": [{"name": "control", "role": "control-plane", "count": 1}, {"name": "worker", "role": "worker", "count": workers}]}});
        let wanted = Some(from_object(&object).expect("a blueprint").blueprint);
        let waiting = waiting.iter().map(|(what, why)| Waiting { what: (*what).into(), why: (*why).into() }).collect();
        let inside = Ok(Inside { nodes: Vec::new(), wanted, status, waiting });
        Picture { name: "shop".into(), writer: "cluster".into(), things, inside }
    }

    #[test]
    fn machines_that_are_wanted_and_not_there_are_listed_with_the_loops_reason() {
        let why = "quota INSTANCES in europe-west1 is full: 12 are there, 12 are allowed, and nobody has asked for more yet";
        let failed = format!("create machine/worker-2: {why}");
        let status = json!({"doing": ["create machine/worker-1: not there", "create machine/worker-2: not there"], "failed": [failed]});
        let things = vec![thing(MACHINE, "control-1", Phase::Ready), thing("load-balancer", "web", Phase::Broken("no backend".into()))];
        let picture = picture(
            3,
            things,
            status,
            &[("blueprint/shop", "create machine/worker-1: not there"), ("node/worker-3", "has not joined yet")],
        );
        let expected = "shop: not as wanted yet (writer: cluster)
  machine/control-1  10.88.0.11  ready
  load-balancer/web  10.88.0.11  broken: no backend
  machine/worker-1   -           missing: the loop is making it
  machine/worker-2   -           missing: quota INSTANCES in europe-west1 is
                                 full: 12 are there, 12 are allowed, and nobody
                                 has asked for more yet
  machine/worker-3   -           missing: the loop has not looked yet
nodes: 0 of 4 ready
  doing: create machine/worker-1: not there
  doing: create machine/worker-2: not there
  failed: create machine/worker-2: quota INSTANCES in europe-west1 is full: 12
    are there, 12 are allowed, and nobody has asked for more yet
  waiting for node/worker-3: has not joined yet
";
        assert_eq!(picture.to_string(), expected);
        assert_eq!(picture.json()["missing"][0], json!({"what": "machine/worker-1", "why": "the loop is making it"}));
        assert!(!picture.is_well());
    }

    #[test]
    fn many_machines_fit_one_screen() {
        let mut things: Vec<Observed> = (1..=99).map(|number| thing(MACHINE, &format!("worker-{number}"), Phase::Ready)).collect();
        things[41].phase = Phase::Pending;
        things.push(thing(MACHINE, "control-1", Phase::Ready));
        let waiting: Vec<(String, &str)> = (1..=99).map(|number| (format!("node/worker-{number}"), "has not joined yet")).collect();
        let waiting: Vec<(&str, &str)> = waiting.iter().map(|(what, why)| (what.as_str(), *why)).collect();
        let text = picture(99, things, json!(null), &waiting).to_string();
        assert!(
            text.contains("\n  machine/worker-42  10.88.0.11  pending\n  99 more                        ready\nnodes: 0 of 100 ready\n"),
            "{text}"
        );
        assert!(text.ends_with("  ... and 87 more (-o json has all)\n") && text.lines().count() <= 24, "{text}");
    }
}
