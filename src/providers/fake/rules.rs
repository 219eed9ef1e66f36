//! What a request does to the cloud, and the judge that watches every one.

use super::faults::Part;
use super::shape::Once;
use super::{BLUEPRINT, Call, Shape, State, Thing};
use crate::engine::plan::difference;
use crate::engine::{HOST, Id, MACHINE, Request, Verb};
use crate::error::{Error, Result};
use crate::providers::aws::names::{GATEWAY, TARGETS};
use crate::providers::gcp::resources::INSTANCE_GROUP;
use crate::providers::resources::LOAD_BALANCER;
use rand::RngExt;
use serde_json::Value;
use std::sync::Arc;
use std::time::Duration;

/// What a request came to: the handle it is about, or nothing that exists any more.
type Effect = Option<String>;

/// Whether the door that sent a request still waits for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Arrives {
    InTime,
    Late,
}

/// What sends to machines: its targets may go under it, as in real clouds.
const SENDS: [&str; 3] = [LOAD_BALANCER, TARGETS, INSTANCE_GROUP];

impl State {
    /// Whether `other` keeps `thing` from being deleted. So may not what sends to a machine, nor what is installed on it.
    pub(super) fn holds(&self, other: &Thing, thing: &Thing) -> bool {
        let kind = other.id.kind.as_str();
        let soft = thing.id.kind == MACHINE && (SENDS.contains(&kind) || matches!(kind, HOST | BLUEPRINT));
        let also = other.uid == thing.uid && thing.unmade == 0 && self.manners.shape.also_holds(kind, &thing.id.kind);
        !soft && (also || other.needs.contains(&thing.handle))
    }

    /// What the door sees before it sends a create: the thing that is wished for, from an earlier try.
    pub(super) fn look(&mut self, uid: &str, request: &Request) -> Option<String> {
        let seen = self.seen();
        let same = |thing: &&std::sync::Arc<Thing>| thing.uid == uid && thing.id == request.id && thing.generation == request.generation;
        seen.values().find(same).filter(|thing| thing.gone_at.is_none()).map(|thing| thing.handle.clone())
    }

    pub(super) fn is_there(&self, handle: &Option<String>) -> bool {
        let by_name = !self.manners.tags_checked;
        by_name || handle.as_ref().is_some_and(|handle| self.things.contains_key(handle) || self.foreign.contains_key(handle))
    }

    /// The door's own look at the epoch, right before it acts.
    pub(super) fn door_fence(&mut self, uid: &str, request: &Request) -> Result<()> {
        let kept = self.epochs.get(uid).map_or(0, |epoch| epoch.epoch);
        if request.epoch > kept && kept > 0 {
            self.violation(format!("{} {} carries epoch {}, which nobody was given", request.verb, request.id, request.epoch));
        }
        if request.epoch < kept && !self.manners.epochs_checked {
            self.violation(format!("{} {} of epoch {} was sent in epoch {kept}", request.verb, request.id, request.epoch));
        } else if request.epoch < kept {
            return Err(Error::conflict(format!("epoch {} is over, {kept} writes now", request.epoch)));
        }
        Ok(())
    }

    pub(super) fn effect(&mut self, uid: &str, part: &Part, arrives: Arrives) -> Result<Effect> {
        let request = &part.request;
        let result = self.fenced(uid, request).and_then(|()| match request.verb {
            Verb::Await => Ok(request.handle.clone()),
            _ if !part.decides => self.step(uid, part),
            Verb::Create => self.create(uid, part, arrives),
            Verb::Update | Verb::Repair => self.change(uid, request).map(Some),
            Verb::Delete => self.delete(uid, request).map(|()| None),
        });
        let effect = match &result {
            Ok(Some(handle)) => format!("{} {handle}", request.verb),
            Ok(None) => "nothing there".into(),
            Err(error) => format!("refused: {error}"),
        };
        if request.verb != Verb::Await {
            self.ledger.push(Call {
                verb: request.verb,
                id: request.id.clone(),
                uid: uid.into(),
                epoch: request.epoch,
                call: self.manners.shape.calls(&request.id.kind, request.verb).get(usize::from(part.number)).copied().unwrap_or_default(),
                at: self.now(),
                effect,
                late: arrives == Arrives::Late,
            });
        }
        result
    }

    /// A call before or after the one that decides.
    fn step(&mut self, uid: &str, part: &Part) -> Result<Effect> {
        let request = &part.request;
        if request.id.kind == HOST && request.verb != Verb::Delete {
            let needs: Vec<String> = serde_json::from_value(request.body["needs"].clone()).unwrap_or_default();
            let gone = needs.iter().find(|need| self.things.get(*need).is_none_or(|machine| machine.gone_at.is_some()));
            return gone.map_or(Ok(None), |machine| Err(Error::transient(format!("{machine} does not answer"))));
        }
        let Some(thing) = self.owned(uid, request)? else { return Err(Error::transient(format!("{} is not there", request.id))) };
        let mut unmade = thing.unmade;
        match request.verb {
            Verb::Create if self.network_is_taken(&thing) => {}
            Verb::Create => unmade = unmade.min(part.of - part.number - 1),
            Verb::Delete if request.id.kind != HOST => {
                self.judge_delete(uid, &thing, request);
                self.refuse_if_used(&thing)?;
                unmade = unmade.max(1);
            }
            _ => {}
        }
        self.remember();
        if let Some(thing) = self.things.get_mut(&thing.handle) {
            Arc::make_mut(thing).unmade = unmade;
        }
        Ok(Some(thing.handle.clone()))
    }

    /// A network has one gateway: a second one of its stays outside, and does not work.
    fn network_is_taken(&self, gateway: &Thing) -> bool {
        let same = |other: &&Arc<Thing>| other.id == gateway.id && other.uid == gateway.uid && other.handle != gateway.handle;
        gateway.id.kind == GATEWAY && self.things.values().filter(same).any(|other| other.unmade == 0 && other.needs == gateway.needs)
    }

    fn refuse_if_used(&self, thing: &Thing) -> Result<()> {
        let user = self.things.values().find(|other| self.holds(other, thing)).filter(|_| self.manners.dependencies_checked);
        user.map_or(Ok(()), |user| {
            let text = format!("{} still needs {}", user.handle, thing.handle);
            // EC2's DependencyViolation may pass by itself, and is taken so.
            Err(if self.manners.shape == Shape::Aws { Error::transient(text) } else { Error::provider(text) })
        })
    }

    fn violation(&mut self, text: String) {
        self.violations.push(text);
    }

    fn fenced(&mut self, uid: &str, request: &Request) -> Result<()> {
        if !self.manners.epochs || self.manners.door_fences {
            return Ok(());
        }
        // A host and the API of the cluster keep no epochs.
        if self.manners.shape != Shape::Neutral && matches!(request.id.kind.as_str(), HOST | BLUEPRINT) {
            return Ok(());
        }
        let (kept, seen) = (self.epochs.get(uid).map_or(0, |epoch| epoch.epoch), self.highest_epoch.get(uid).copied().unwrap_or(0));
        if request.epoch < kept.max(seen) && self.manners.epochs_checked {
            return Err(Error::conflict(format!("epoch {} is over, {} writes now", request.epoch, kept.max(seen))));
        }
        if request.epoch < kept.max(seen) {
            self.violation(format!("{} {} of epoch {} took effect in epoch {kept}", request.verb, request.id, request.epoch));
        }
        if kept > 0 && request.epoch > kept {
            self.violation(format!("{} {} carries epoch {}, which nobody was given", request.verb, request.id, request.epoch));
            return Ok(());
        }
        self.highest_epoch.insert(uid.into(), seen.max(request.epoch));
        Ok(())
    }

    fn live(&self, uid: &str, id: &Id) -> Vec<&Thing> {
        self.things.values().map(Arc::as_ref).filter(|thing| thing.uid == uid && thing.id == *id && thing.gone_at.is_none()).collect()
    }

    /// What is installed on a machine is there once, whoever installs it again.
    fn installed(&mut self, uid: &str, request: &Request) -> Option<String> {
        let there = self.live(uid, &request.id).first().map(|thing| thing.handle.clone());
        let handle = there.filter(|_| matches!(request.id.kind.as_str(), HOST | BLUEPRINT))?;
        self.remember();
        let thing = Arc::make_mut(self.things.get_mut(&handle)?);
        thing.spec = request.body["spec"].clone();
        thing.generation = thing.generation.max(request.generation);
        Some(handle)
    }

    fn once(&self, kind: &str) -> Once {
        if self.manners.tokens { self.manners.shape.once(kind) } else { Once::Look }
    }

    fn create(&mut self, uid: &str, part: &Part, arrives: Arrives) -> Result<Effect> {
        let request = &part.request;
        let token = format!("{uid} {}", request.token);
        let once = self.once(&request.id.kind);
        // Google remembers the request, too, beside the name.
        if (once == Once::Token || self.manners.shape == Shape::Gcp)
            && let Some((handle, body)) = self.tokens.get(&token)
        {
            let made = self.things.get(handle).filter(|thing| thing.gone_at.is_none());
            if made.is_some() && *body != request.body {
                return Err(Error::provider("the token was used for another request"));
            }
            return Ok(made.map(|thing| thing.handle.clone()));
        }
        if once == Once::Name
            && let Some(same) = self.things.values().find(|thing| thing.uid == uid && thing.id == request.id)
        {
            let is_this = same.generation == request.generation && same.gone_at.is_none();
            return match is_this && self.manners.shape == Shape::Gcp {
                // Google's answer to a name that exists: asked for by name, it shows at once.
                true => Ok(Some(same.handle.clone())),
                false => Err(Error::transient(format!("{} is still there, or cannot be seen yet", same.handle))),
            };
        }
        let same = self.live(uid, &request.id).into_iter().find(|thing| thing.generation == request.generation);
        if self.manners.looks_first
            && self.manners.shape == Shape::Neutral
            && arrives == Arrives::InTime
            && let Some(same) = same
        {
            return Ok(Some(same.handle.clone()));
        }
        if let Some(handle) = self.installed(uid, request) {
            return Ok(Some(handle));
        }
        if !self.live(uid, &request.id).is_empty() && once != Once::Look && !self.manners.door_fences {
            self.violation(format!("a second {} was made", request.id));
        }
        if self.things.values().filter(|thing| thing.uid == uid).count() >= self.manners.quota {
            return Err(Error::provider("the quota is used up"));
        }
        let needs: Vec<String> = serde_json::from_value(request.body["needs"].clone()).unwrap_or_default();
        let now = self.now();
        let usable = |thing: &Arc<Thing>| thing.gone_at.is_none() && !thing.broken && thing.ready_at <= now;
        if let Some(need) = needs.iter().find(|need| !self.things.get(*need).is_some_and(usable)) {
            return Err(Error::provider(format!("{need} does not exist or is not ready")));
        }
        let handle = self.next_handle(&request.id.kind);
        let boot = match self.manners.published {
            true => self.manners.shape.takes(&request.id.kind, Verb::Create),
            false => Duration::from_millis(self.random.random_range(50..3000)),
        };
        self.remember();
        self.tokens.insert(token, (handle.clone(), request.body.clone()));
        let (id, generation, spec) = (request.id.clone(), request.generation, request.body["spec"].clone());
        let ready_at = self.now() + boot;
        let (handle_of, uid, unmade) = (handle.clone(), uid.into(), if request.id.kind == HOST { 0 } else { part.of - 1 });
        let thing = Thing { handle: handle_of, uid, id, generation, spec, needs, broken: false, unmade, ready_at, gone_at: None };
        self.things.insert(handle.clone(), Arc::new(thing));
        Ok(Some(handle))
    }

    /// The thing under the request's handle, if it may be touched.
    fn owned(&mut self, uid: &str, request: &Request) -> Result<Option<Arc<Thing>>> {
        let by_handle = request.handle.as_ref().and_then(|handle| self.things.get(handle).or_else(|| self.foreign.get(handle))).cloned();
        // A door that looks up by name instead of by tag takes the first that looks right.
        let by_name = || self.foreign.values().chain(self.things.values()).find(|thing| thing.id == request.id).cloned();
        let thing = if self.manners.tags_checked { by_handle } else { by_name() };
        let Some(thing) = thing else { return Ok(None) };
        if thing.uid != uid {
            self.violation(format!("{} {} touched {} of another owner", request.verb, request.id, thing.handle));
            return if self.manners.tags_checked { Err(Error::provider("not yours")) } else { Ok(Some(thing)) };
        }
        Ok(Some(thing))
    }

    fn change(&mut self, uid: &str, request: &Request) -> Result<String> {
        let Some(thing) = self.owned(uid, request)? else { return Err(Error::transient(format!("{} is not there", request.id))) };
        if thing.gone_at.is_some() {
            return Err(Error::transient(format!("{} is being deleted", request.id)));
        }
        let needs: Vec<String> = serde_json::from_value(request.body["needs"].clone()).unwrap_or_default();
        if let Some(need) = needs.iter().find(|need| !self.things.contains_key(*need)) {
            return Err(Error::transient(format!("{need} does not exist")));
        }
        let unmade = if self.network_is_taken(&thing) { thing.unmade } else { 0 };
        self.remember();
        let Some(changed) = self.things.get_mut(&thing.handle).or_else(|| self.foreign.get_mut(&thing.handle)) else {
            return Err(Error::transient(format!("{} is not there", request.id)));
        };
        let changed = Arc::make_mut(changed);
        changed.spec = request.body["spec"].clone();
        changed.needs = needs;
        changed.broken &= request.verb != Verb::Repair;
        changed.unmade = unmade;
        Ok(thing.handle.clone())
    }

    fn delete(&mut self, uid: &str, request: &Request) -> Result<()> {
        let Some(thing) = self.owned(uid, request)? else { return Ok(()) };
        if thing.gone_at.is_some() {
            return Ok(());
        }
        self.judge_delete(uid, &thing, request);
        if thing.id.kind == HOST && request.body["spec"]["drain"] == Value::Bool(false) && thing.spec["role"] != "control-plane" {
            // Left to its machine's end.
            return Ok(());
        }
        self.refuse_if_used(&thing)?;
        let undrained = self.things.values().any(|other| other.id.kind == HOST && other.needs.contains(&thing.handle));
        let goes = !self.wanted.get(uid).is_some_and(|wanted| wanted.iter().any(|wish| wish.id.kind == MACHINE));
        if undrained && !goes && !thing.broken {
            self.violation(format!("{} was deleted under a host that was not drained", thing.id));
        }
        let replaced = self.wanted.get(uid).is_some_and(|wanted| wanted.iter().any(|wish| wish.id == thing.id));
        let serving = self.things.values().any(|other| SENDS.contains(&other.id.kind.as_str()) && other.needs.contains(&thing.handle));
        if serving && !goes && !replaced {
            self.violation(format!("{} was deleted while a load balancer still sent to it", thing.id));
        }
        self.remember();
        let time = match self.manners.published {
            true => self.manners.shape.takes(&thing.id.kind, Verb::Delete),
            false => Duration::from_millis(self.random.random_range(20..2000)),
        };
        let end = self.now() + time;
        if let Some(going) = self.things.get_mut(&thing.handle).or_else(|| self.foreign.get_mut(&thing.handle)) {
            Arc::make_mut(going).gone_at = Some(end);
        }
        Ok(())
    }

    /// Nothing healthy that is wanted as it is may be deleted.
    fn judge_delete(&mut self, uid: &str, thing: &Thing, request: &Request) {
        let Some(wish) = self.wanted.get(uid).and_then(|wanted| wanted.iter().find(|wish| wish.id == thing.id)) else { return };
        let differs = difference(&wish.spec, &thing.spec).iter().any(|difference| wish.replace_on.contains(&difference.path[0]));
        let twins = self.live(uid, &thing.id).len() > 1;
        let machine = self.things.values().find(|other| other.uid == uid && other.id == Id::new(MACHINE, &thing.id.name));
        let machine_wish = self.wanted[uid].iter().find(|wish| wish.id == Id::new(MACHINE, &thing.id.name));
        let machine_stays = machine.zip(machine_wish).is_some_and(|(machine, wish)| {
            machine.gone_at.is_none()
                && !difference(&wish.spec, &machine.spec).iter().any(|difference| wish.replace_on.contains(&difference.path[0]))
        });
        let justified = differs || twins || (thing.id.kind == HOST && !machine_stays);
        if !justified {
            self.violation(format!("{} was deleted ({}) although it is wanted as it is", thing.id, request.verb));
        }
    }
}
