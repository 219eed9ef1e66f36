//! What a request does to the cloud, and the judge that watches every one.

use super::{Call, State, Thing};
use crate::engine::plan::difference;
use crate::engine::{HOST, Id, MACHINE, Request, Verb};
use crate::error::{Error, Result};
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

/// Whether `other` keeps `thing` from being deleted. A load balancer's targets may go under it, as in real clouds; so may a host's
/// machine.
pub(super) fn holds(other: &Thing, thing: &Thing) -> bool {
    let soft = thing.id.kind == MACHINE && matches!(other.id.kind.as_str(), HOST | LOAD_BALANCER);
    !soft && other.needs.contains(&thing.handle)
}

impl State {
    pub(super) fn effect(&mut self, uid: &str, request: &Request, arrives: Arrives) -> Result<Effect> {
        let result = self.fenced(uid, request).and_then(|()| match request.verb {
            Verb::Create => self.create(uid, request, arrives),
            Verb::Update | Verb::Repair => self.change(uid, request).map(Some),
            Verb::Delete => self.delete(uid, request).map(|()| None),
            Verb::Await => Ok(request.handle.clone()),
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
                effect,
                late: arrives == Arrives::Late,
            });
        }
        result
    }

    fn violation(&mut self, text: String) {
        self.violations.push(text);
    }

    fn fenced(&mut self, uid: &str, request: &Request) -> Result<()> {
        if !self.manners.epochs {
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

    fn create(&mut self, uid: &str, request: &Request, arrives: Arrives) -> Result<Effect> {
        let token = format!("{uid} {}", request.token);
        if self.manners.tokens
            && let Some((handle, body)) = self.tokens.get(&token)
        {
            let made = self.things.get(handle).filter(|thing| thing.gone_at.is_none());
            if made.is_some() && *body != request.body {
                return Err(Error::provider("the token was used for another request"));
            }
            return Ok(made.map(|thing| thing.handle.clone()));
        }
        let same = self.live(uid, &request.id).into_iter().find(|thing| thing.generation == request.generation);
        if self.manners.looks_first
            && arrives == Arrives::InTime
            && let Some(same) = same
        {
            return Ok(Some(same.handle.clone()));
        }
        if !self.live(uid, &request.id).is_empty() && !self.manners.looks_first {
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
        let boot = Duration::from_millis(self.random.random_range(50..3000));
        self.remember();
        self.tokens.insert(token, (handle.clone(), request.body.clone()));
        let (id, generation, spec) = (request.id.clone(), request.generation, request.body["spec"].clone());
        let ready_at = self.now() + boot;
        let thing = Thing { handle: handle.clone(), uid: uid.into(), id, generation, spec, needs, broken: false, ready_at, gone_at: None };
        self.things.insert(handle.clone(), Arc::new(thing));
        Ok(Some(handle))
    }

    /// The thing under the request's handle, if it may be touched.
    fn owned(&mut self, uid: &str, request: &Request) -> Result<Option<Arc<Thing>>> {
        let by_handle = request.handle.as_ref().and_then(|handle| self.things.get(handle)).cloned();
        // A door that looks up by name instead of by tag takes the first that looks right.
        let by_name = || self.things.values().find(|thing| thing.id == request.id).cloned();
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
        self.remember();
        let changed = Arc::make_mut(self.things.get_mut(&thing.handle).expect("just found"));
        changed.spec = request.body["spec"].clone();
        changed.needs = needs;
        changed.broken &= request.verb != Verb::Repair;
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
        let user = |other: &&Arc<Thing>| holds(other, &thing);
        if let Some(user) = self.things.values().find(user).filter(|_| self.manners.dependencies_checked) {
            return Err(Error::provider(format!("{} still needs {}", user.handle, thing.handle)));
        }
        let undrained = self.things.values().any(|other| other.id.kind == HOST && other.needs.contains(&thing.handle));
        let goes = !self.wanted.get(uid).is_some_and(|wanted| wanted.iter().any(|wish| wish.id.kind == MACHINE));
        if undrained && !goes && !thing.broken {
            self.violation(format!("{} was deleted under a host that was not drained", thing.id));
        }
        let replaced = self.wanted.get(uid).is_some_and(|wanted| wanted.iter().any(|wish| wish.id == thing.id));
        let serving = self.things.values().any(|other| other.id.kind == LOAD_BALANCER && other.needs.contains(&thing.handle));
        if serving && !goes && !replaced {
            self.violation(format!("{} was deleted while a load balancer still sent to it", thing.id));
        }
        self.remember();
        let time = Duration::from_millis(self.random.random_range(20..2000));
        let end = self.now() + time;
        Arc::make_mut(self.things.get_mut(&thing.handle).expect("just found")).gone_at = Some(end);
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
