//! Carrying out one request: look by tag first, make what is not there, see to all that belongs to it, wait until it is ready or gone.

use super::Aws;
use super::machines::HOST_KEY;
use crate::engine::handoff;
use crate::engine::{Observed, Phase, Progress, Request, Verb};
use crate::error::{Error, Kind, Result};
use crate::providers::ownership::Mark;
use crate::providers::resources::MACHINE;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// All that wait share their looks, so a short pause costs little and finds what is ready soon.
const FIRST_LOOK: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// Between two looks at one kind, however many wait for it: EC2 allows twenty a second.
const APART: Duration = Duration::from_millis(250);

/// EC2 takes a machine's disk away within seconds after the machine.
const LAST_DISKS: Duration = Duration::from_secs(30);

/// When a look began, and what it saw.
pub type SharedLook = Arc<tokio::sync::Mutex<Option<(Instant, Arc<Vec<Observed>>)>>>;

impl Aws {
    pub(super) async fn carry_out(&self, request: &Request, progress: Progress<'_>) -> Result<Option<Observed>> {
        if request.verb != Verb::Await {
            // AWS keeps no epochs: a writer whose epoch is over is stopped by its own look.
            handoff::fence(self, request.epoch).await?;
        }
        let kind = request.id.kind.as_str();
        let things = self.look(kind).await?;
        let known = |handle: &str| things.iter().find(|thing| thing.handle == handle && thing.id == request.id);
        let handle = request.handle.as_deref().unwrap_or_default();
        match request.verb {
            Verb::Delete => {
                let Some(thing) = known(handle) else { return Ok(None) };
                if thing.phase != Phase::Deleting {
                    self.delete(thing).await?;
                }
                progress("waiting until it is gone");
                self.gone(kind, handle).await.map(|()| None)
            }
            Verb::Create => {
                let same = things.iter().find(|thing| thing.id == request.id && thing.generation == request.generation);
                let handle = match same {
                    Some(thing) if thing.phase == Phase::Deleting => return Ok(None),
                    Some(thing) => thing.handle.clone(),
                    None => {
                        progress("asking AWS");
                        let Some(handle) = self.create(request).await? else { return Ok(None) };
                        handle
                    }
                };
                self.ensure_new(request, &handle).await?;
                progress("waiting until it is ready");
                self.ready(kind, &handle, request).await
            }
            Verb::Update | Verb::Repair => {
                if known(handle).is_none() {
                    return Err(Error::transient(format!("could not change {}: it is not there", request.id)));
                }
                self.ensure(request, handle).await?;
                self.ready(kind, handle, request).await
            }
            Verb::Await => match known(handle) {
                Some(thing) if thing.phase == Phase::Deleting => self.gone(kind, handle).await.map(|()| None),
                Some(_) => self.ready(kind, handle, request).await,
                None => Ok(None),
            },
        }
    }

    /// One look for all that ask while the last one was on its way: a hundred machines that boot cost no more calls than one.
    async fn look_together(&self, kind: &str) -> Result<Arc<Vec<Observed>>> {
        let asked = Instant::now();
        let slot = self.looks.lock().entry(kind.to_string()).or_default().clone();
        let mut last = slot.lock().await;
        if let Some((began, things)) = &*last {
            if *began >= asked {
                return Ok(things.clone());
            }
            tokio::time::sleep_until(*began + APART).await;
        }
        let began = Instant::now();
        let things = Arc::new(self.look(kind).await?);
        *last = Some((began, things.clone()));
        Ok(things)
    }

    /// The machine that another run made with this request's token; `None` when none shows within the settle window: it came and went.
    pub(super) async fn made_from_other_bytes(&self, request: &Request) -> Result<Option<String>> {
        let twin = self.twin(request).await?;
        Ok(twin.filter(|thing| thing.phase != Phase::Deleting).map(|thing| thing.handle))
    }

    /// After a request that no token makes harmless and whose answer never came (`error`): what it made, once it shows. To ask again before
    /// that would make a second one.
    pub(super) async fn made_unheard(&self, request: &Request, error: Error) -> Result<Option<String>> {
        self.twin(request).await?.map_or(Err(error), |thing| Ok(Some(thing.handle)))
    }

    /// What this request, or one like it, has made; looked for until it must show.
    async fn twin(&self, request: &Request) -> Result<Option<Observed>> {
        let started = Instant::now();
        loop {
            let things = self.look_together(&request.id.kind).await?;
            let twin = things.iter().find(|thing| thing.id == request.id && thing.generation == request.generation);
            if twin.is_some() || started.elapsed() > super::SETTLE {
                return Ok(twin.cloned());
            }
            sleep(APART).await;
        }
    }

    /// AWS may not know for a moment what it has just made. Begun anew instead, by a look that does not show it either, there would be two.
    async fn ensure_new(&self, request: &Request, handle: &str) -> Result<()> {
        let (started, mut pause) = (Instant::now(), FIRST_LOOK);
        loop {
            match self.ensure(request, handle).await {
                Err(error) if error.kind == Kind::Transient && started.elapsed() < super::SETTLE => {
                    tracing::debug!(id = %request.id, handle, "not yet: {}", error.chain());
                    sleep(pause).await;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
                end => return end,
            }
        }
    }

    /// Until it is ready. Reads may lag: what was made a moment ago and is not seen is "not yet" for the settle window.
    async fn ready(&self, kind: &str, handle: &str, request: &Request) -> Result<Option<Observed>> {
        let (started, mut seen, mut pause) = (Instant::now(), false, FIRST_LOOK);
        loop {
            let things = self.look_together(kind).await?;
            let thing = things.iter().find(|thing| thing.handle == handle).cloned();
            match thing {
                Some(thing) if matches!(thing.phase, Phase::Ready | Phase::Broken(_)) => {
                    self.remember_host_key(&thing).await?;
                    return Ok(Some(self.marked(thing, request)));
                }
                Some(thing) => seen |= thing.phase != Phase::Deleting,
                None if seen && kind == MACHINE => {
                    return Err(Error::provider(format!("could not start {}: {handle} went away", request.id))
                        .hint("the instance's state reason in the console says why; often a quota, or no capacity"));
                }
                None if seen || started.elapsed() > super::SETTLE => {
                    return Err(Error::transient(format!("could not find {} ({handle}) again", request.id)));
                }
                None => {}
            }
            sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// A mount target's own generation is written nowhere: it is the one that was asked for.
    fn marked(&self, thing: Observed, request: &Request) -> Observed {
        Observed { generation: if thing.id.kind == super::names::MOUNT { request.generation } else { thing.generation }, ..thing }
    }

    /// The volumes that are still there when those that go with their machines had the time to go.
    pub(super) async fn volumes_that_stay(&self) -> Result<Vec<String>> {
        let started = Instant::now();
        loop {
            let volumes = self.volumes().await?;
            if volumes.is_empty() || started.elapsed() > LAST_DISKS {
                return Ok(volumes);
            }
            sleep(LONGEST_PAUSE).await;
        }
    }

    async fn gone(&self, kind: &str, handle: &str) -> Result<()> {
        let mut pause = FIRST_LOOK;
        while self.look_together(kind).await?.iter().any(|thing| thing.handle == handle) {
            sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
        Ok(())
    }

    /// A call of its own: the key is the machine's, and known only when it has booted.
    async fn remember_host_key(&self, thing: &Observed) -> Result<()> {
        let keys = thing.outputs["hostKeys"].as_array().into_iter().flatten().filter_map(serde_json::Value::as_str);
        let Some(key) = keys.min_by_key(|key| !key.starts_with("ssh-ed25519")).filter(|_| thing.id.kind == MACHINE) else { return Ok(()) };
        // Tags hold 256 letters.
        if key.len() > 256 || self.consoles.lock().is_tagged(&thing.handle) {
            return Ok(());
        }
        let turn = self.consoles.lock().tag_turn(Instant::now());
        tokio::time::sleep_until(turn).await;
        match self.tag(&thing.handle, &BTreeMap::from([(HOST_KEY.to_string(), key.to_string())])).await {
            Ok(()) => {
                self.consoles.lock().tagged(&thing.handle);
                Ok(())
            }
            Err(error) if error.kind == Kind::Transient => Ok(()),
            Err(error) => Err(error),
        }
    }

    pub(super) fn tags_of(&self, request: &Request) -> BTreeMap<String, String> {
        let mut tags = Mark::new(&self.cluster, &request.id, request.generation).tags();
        tags.insert("Name".into(), format!("{} {}", self.cluster.name, request.id.name));
        tags
    }
}
