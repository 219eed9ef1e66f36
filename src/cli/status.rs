//! `kprov status [NAME]`: one screen: what is wanted, what is, what it waits for and why.

use super::session::Session;
use super::state::{self, Named, Record};
use super::terminal::{self, paint_data};
use super::world::hosts::all_machines;
use super::world::served::Watch;
use super::world::waiting::{Waiting, is_ready, keeping, waiting};
use crate::blueprint::{Blueprint, ProviderName, schema::Metadata};
use crate::engine::{Observed, Phase};
use crate::error::{Error, Kind, Result};
use crate::orchestrator::client::blueprint::BlueprintObject;
use k8s_openapi::api::core::v1::Node;
use serde_json::{Value, json};
use std::fmt;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

/// A screen should not keep people waiting: an API that is silent for this long is reported as silent.
const PATIENCE: Duration = Duration::from_secs(5);

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
    left.extend(object.iter().flat_map(keeping));
    Ok(Inside { nodes: objects.nodes, wanted, status: object.and_then(|object| object.status).unwrap_or_default(), waiting: left })
}

impl Picture {
    fn is_well(&self) -> bool {
        let inside = self.inside.as_ref().is_ok_and(|inside| inside.wanted.is_some() && inside.waiting.is_empty());
        inside && self.things.iter().all(|thing| thing.phase == Phase::Ready)
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
        json!({"cluster": self.name, "writer": self.writer, "well": self.is_well(), "resources": self.things, "inside": inside})
    }
}

impl fmt::Display for Picture {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = if self.is_well() { paint_data("32", "as wanted") } else { paint_data("33", "not as wanted yet") };
        writeln!(out, "{}: {state} (writer: {})", self.name, self.writer)?;
        for thing in &self.things {
            let address = thing.outputs["address"].as_str().unwrap_or("");
            writeln!(out, "  {:<28} {:<16} {}", thing.id.to_string(), address, phase(&thing.phase))?;
        }
        match &self.inside {
            Err(error) => writeln!(out, "{} {}", paint_data("31", "inside:"), error.chain()),
            Ok(inside) => inside.fmt(out),
        }
    }
}

impl fmt::Display for Inside {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ready = self.nodes.iter().filter(|node| is_ready(node)).count();
        let wanted = self.wanted.as_ref().map_or(self.nodes.len(), |blueprint| all_machines(blueprint).len());
        writeln!(out, "nodes: {ready} of {wanted} ready")?;
        for key in ["doing", "failed"] {
            for line in self.status[key].as_array().into_iter().flatten().filter_map(Value::as_str) {
                writeln!(out, "  {key}: {line}")?;
            }
        }
        if self.waiting.is_empty() {
            writeln!(out, "waiting for nothing")?;
        }
        for one in &self.waiting {
            writeln!(out, "  waiting for {one}")?;
        }
        Ok(())
    }
}

fn phase(phase: &Phase) -> String {
    match phase {
        Phase::Ready => paint_data("32", "ready"),
        Phase::Pending => paint_data("33", "pending"),
        Phase::Deleting => paint_data("33", "going"),
        Phase::Broken(why) => paint_data("31", &format!("broken: {why}")),
    }
}
