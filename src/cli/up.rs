//! `kprov up FILE`: makes what the blueprint says exist, hands it to the loop inside, and returns when it serves.
//!
//! ```text
//! load -> open (lock, provider, uid, trust) -> observe -> plan -> check -> agree -> remember
//!      the command line is the writer:  converge machines, hosts and the Blueprint object -> hand over
//!      the loop inside is the writer:   write the Blueprint object
//! -> wait until nodes, workloads and load balancers are there -> what to type next
//! ```

use super::progress::Progress;
use super::session::Session;
use super::world::blueprint_door;
use super::world::hosts::all_machines;
use super::world::outside::{Outside, Price};
use super::world::served::{Watch, until_answering, until_resolving, until_served};
use super::{logging, terminal};
use crate::blueprint::load::Loaded;
use crate::engine::handoff::Writer;
use crate::engine::{Observed, Verb, plan::Plan};
use crate::error::{Error, Kind, Result};
use crate::orchestrator::api::kinds::refusals;
use crate::orchestrator::client::Client;
use crate::providers::Settings;
use crate::providers::resources::{FILESYSTEM, LOAD_BALANCER, served_at};
use serde_json::{Value, json};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;
use tokio::time::Instant;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The blueprint
    file: PathBuf,
    /// Do not ask before doing what the plan says
    #[arg(short, long)]
    yes: bool,
    /// Give up after this many seconds; what was begun stays and a next run continues
    #[arg(long, default_value_t = 600, value_name = "SECONDS")]
    timeout: u64,
    /// Print the result as JSON
    #[arg(short, long, value_parser = ["json"])]
    output: Option<String>,
}

pub async fn run(args: &Args) -> Result<ExitCode> {
    let Some(loaded) = terminal::read_blueprint(&args.file, &refusals) else { return Ok(terminal::bad_input()) };
    let name = loaded.blueprint.metadata.name.clone();
    logging::to_file("up", &name)?;
    let mut session = Session::open(&name, Settings::of(&loaded.blueprint)).await?;
    bring_up(args, &loaded, &mut session).await.map(|()| ExitCode::SUCCESS)
}

async fn bring_up(args: &Args, loaded: &Loaded, session: &mut Session) -> Result<()> {
    let patience = Duration::from_secs(args.timeout);
    let mut deadline = Instant::now() + patience;
    let blueprint = &loaded.blueprint;
    session.borrow_trust().await?;
    let mut world = session.world(blueprint, &loaded.images).await?;
    let look = world.look().await?;
    let plan = look.plan;
    let mut progress = Progress::start();
    // A run that was killed right before the hand-off left nothing to make, but still a cluster to give to its loop.
    if !plan.is_empty() || !session.is_handed_over().await? {
        if !plan.is_empty() {
            terminal::talk(format_args!("{}\n", shown(&plan, world.price().as_ref())));
        }
        // Nobody is asked to agree to what would be refused.
        world.check(&plan).await?;
        if !plan.is_empty() && !args.yes {
            agree()?;
            // The time in which somebody read the plan is nobody's.
            progress.restart();
            deadline = Instant::now() + patience;
        }
        session.finish_what_is_begun()?;
        session.remember_trust()?;
        let (writer, adopted) = session.writer().await?;
        if adopted {
            world = session.world(blueprint, &loaded.images).await?;
        }
        let observed = match writer {
            Writer::Inside(_) => {
                world.provider.prepare(&world.desired).await?;
                hand_to_loop(session, &world, &progress).await?
            }
            Writer::Us(ours) => {
                let observed = match world.converge(ours.epoch, deadline, &progress).await {
                    Ok(observed) => observed,
                    Err(error) => return Err(priced(session.overtaken(&ours, error).await, session).await),
                };
                session.hand_over(&ours).await?;
                observed
            }
        };
        session.save_kubeconfig(&observed)?;
    } else {
        session.remember_trust()?;
        // Nothing to change, but the loop may have lost an archive that it needs for the next machine.
        session.bring(&world.images, &look.observed, &progress).await?;
    }
    session.finish_what_is_begun()?;
    let observed = tokio::select! {
        served = serve(session, loaded, deadline, &progress) => served?,
        // Only waiting is left: there is nothing in flight to finish.
        () = session.cancel.cancelled() => return Err(interrupted()),
    };
    progress.finish();
    report(args, session, &observed, &progress)
}

/// Goes on only when somebody says yes.
fn agree() -> Result<()> {
    if terminal::confirm("Do this?")? {
        return Ok(());
    }
    Err(Error::new(Kind::Interrupted, "could not go on: nobody agreed to the plan"))
}

/// The plan, what cannot be had back after it, and what all that the blueprint wants costs together, where that is known.
pub fn shown(plan: &Plan, price: Option<&Price>) -> String {
    let mut text = plan.to_string();
    for lost in plan.actions.iter().filter(|action| action.verb == Verb::Delete && action.id.kind == FILESYSTEM) {
        text += &format!("\n{} goes with everything that is stored in it.", lost.id);
    }
    if let Some(price) = price {
        text += &format!("\nAll of it together: {price}.");
    }
    text
}

fn interrupted() -> Error {
    Error::new(Kind::Interrupted, "could not see everything served: interrupted")
        .hint("the cluster goes on by itself; run the same command again to wait for it")
}

/// With what it costs to leave everything as the failed run left it, where that is known.
async fn priced(error: Error, session: &Session) -> Error {
    let there = session.observe_provider().await.unwrap_or_default();
    match there.iter().filter_map(|thing| session.provider.price(&thing.id, &thing.spec)).sum::<f64>() {
        0.0 => error,
        price => error.hint(format!("what is there costs about ${price:.2} an hour at list prices, as long as it is left there")),
    }
}

/// The cluster is its own writer: it is told the wish and does the rest. The archives are there before the wish that names them, and
/// looked for again after it: until then they were nobody's, and a sweep may have taken them.
async fn hand_to_loop(session: &Session, world: &Outside, progress: &Progress) -> Result<Vec<Observed>> {
    let observed = session.observe_provider().await?;
    let blueprint = world.blueprint.as_ref().ok_or_else(|| Error::internal("there is no blueprint to hand over"))?;
    session.bring(&world.images, &observed, progress).await?;
    blueprint_door::write(&session.api(&observed)?, blueprint).await?;
    session.bring(&world.images, &observed, progress).await?;
    progress.waiting("the blueprint is written; the loop inside the cluster carries it out");
    Ok(observed)
}

/// Waits for nodes, workloads and load balancers; the machines are looked at again, since the loop may have made some of them.
async fn serve(session: &Session, loaded: &Loaded, deadline: Instant, progress: &Progress) -> Result<Vec<Observed>> {
    let observed = session.observe_provider().await?;
    let client: Client = session.api(&observed)?;
    session.save_kubeconfig(&observed)?;
    let watch = Watch::start(&client);
    let machines = all_machines(&loaded.blueprint);
    until_served(&watch, &loaded.blueprint, &machines, deadline, &|text| progress.waiting(text)).await?;
    let observed = session.observe_provider().await?;
    until_resolving(&session.ssh()?, &observed, deadline).await?;
    // What is served behind a host that one goes through is asked for by those inside.
    let reachable: Vec<Observed> = observed.iter().filter(|thing| thing.outputs["inside"] != true).cloned().collect();
    for (address, port, name) in endpoints(&reachable) {
        progress.waiting(&format!("waiting for load balancer {name} to answer"));
        until_answering(&address, port, deadline).await?;
    }
    Ok(observed)
}

/// Every listener of every load balancer that has an address, be it a name.
fn endpoints(observed: &[Observed]) -> Vec<(String, u16, String)> {
    let balancers = observed.iter().filter(|thing| thing.id.kind == LOAD_BALANCER);
    balancers
        .flat_map(|balancer| {
            let address = served_at(balancer).map(str::to_string);
            let listeners = balancer.spec["listeners"].as_array().cloned().unwrap_or_default();
            listeners.into_iter().filter_map(move |listener| {
                let tcp = listener["protocol"].as_str().is_none_or(|protocol| protocol == "TCP");
                let port = listener["port"].as_u64().and_then(|port| u16::try_from(port).ok()).filter(|_| tcp)?;
                Some((address.clone()?, port, balancer.id.name.clone()))
            })
        })
        .collect()
}

fn report(args: &Args, session: &Session, observed: &[Observed], progress: &Progress) -> Result<()> {
    let endpoints = endpoints(observed);
    let kubeconfig = session.kubeconfig();
    let seconds = (progress.elapsed().as_secs_f64() * 10.0).round() / 10.0;
    if args.output.is_some() {
        let balancers: Vec<Value> =
            endpoints.iter().map(|(address, port, name)| json!({"name": name, "address": address, "port": port})).collect();
        let answer = json!({"cluster": session.cluster.name, "uid": session.cluster.uid, "kubeconfig": kubeconfig,
            "loadBalancers": balancers, "seconds": seconds});
        return terminal::print_json(&answer);
    }
    terminal::talk(format_args!("{} is up after {seconds} s.", session.cluster.name));
    for (address, port, name) in endpoints {
        let port = if port == 80 { String::new() } else { format!(":{port}") };
        terminal::print(format_args!("{name}: http://{address}{port}/\n"))?;
    }
    if observed.iter().any(|thing| thing.outputs["wayIn"].is_boolean()) {
        terminal::talk(
            "The machines are behind another host: kubectl needs a way to the address in the kubeconfig, e.g. through a VPN or sshuttle.",
        );
    }
    terminal::print(format_args!("kubectl --kubeconfig {} get pods -A\n", kubeconfig.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::plan::plan;
    use crate::engine::{Id, Phase};

    #[test]
    fn a_plan_says_what_cannot_be_had_back() {
        let there = |kind: &str| Observed {
            id: Id::new(kind, "media"),
            handle: "h".into(),
            generation: 1,
            phase: Phase::Ready,
            spec: json!({}),
            outputs: json!({}),
            needs: Vec::new(),
        };
        let gone = plan(&[], &[there(FILESYSTEM), there(LOAD_BALANCER)], &Default::default());
        let text = shown(&gone, Some(&Price { dollars: 1.5, unknown: Vec::new() }));
        assert!(
            text.ends_with(
                "\nfilesystem/media goes with everything that is stored in it.\nAll of it together: about $1.50 an hour at list prices."
            ),
            "{text}"
        );
        assert_eq!(text.matches("everything that is stored").count(), 1, "{text}");
    }
}
