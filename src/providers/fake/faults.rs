//! What goes wrong, at which call.

use crate::engine::{Request, Verb};
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;
use tokio::time::Instant;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// No effect, and an error worth retrying: a reset connection, a 5xx.
    LostRequest,
    /// The effect, and the same error.
    LostReply,
    /// The error first, the effect after this long: a retry may overtake it.
    LateSuccess(Duration),
    /// No answer for this long, then an error worth retrying; it never arrived.
    Hangs(Duration),
    /// The effect, and no answer for this long.
    HangsAfter(Duration),
    /// This many calls in a row are sent away.
    Throttle(u32),
    /// A refusal for good (quota, permission), which a later run does not meet.
    Refused,
    /// The effect; and as long as reads may lag, they show the world as it was before.
    StaleReads,
    /// The same, and the process dies before it sees the reply.
    CrashStale,
    /// The process dies before the request leaves it.
    CrashBefore,
    /// The process dies before it sees the reply.
    CrashAfter,
    /// The process dies, and its request takes effect after this long.
    CrashLate(Duration),
    /// Another writer takes over just before this call.
    Usurped,
    /// The process stops for this long before the request leaves it; meanwhile another writer takes over.
    Paused(Duration),
    /// Somebody deletes the thing right after this call.
    ForeignDelete,
    /// The thing breaks right after this call.
    Breaks,
}

/// Faults by number of the mutating call, and requests on their long way.
#[derive(Default)]
pub(super) struct Faults {
    calls: usize,
    at: BTreeMap<usize, Fault>,
    throttled: u32,
    flying: VecDeque<(Instant, String, Part)>,
}

/// One call of a request: its number, and whether it is the one that makes, changes or ends the thing.
#[derive(Debug, Clone)]
pub(super) struct Part {
    pub request: Request,
    pub number: u8,
    pub of: u8,
    pub decides: bool,
}

impl Faults {
    pub fn inject(&mut self, call: usize, fault: Fault) {
        self.at.insert(self.calls + call, fault);
    }

    /// Counts one call and answers what it meets. A fault that means nothing to this call waits for the next one that it does.
    pub fn next(&mut self, verb: Verb) -> Option<Fault> {
        let number = self.calls;
        self.calls += 1;
        if self.throttled > 0 {
            self.throttled -= 1;
            return Some(Fault::LostRequest);
        }
        let fault = self.at.remove(&number)?;
        let exists = matches!(verb, Verb::Create | Verb::Update | Verb::Repair);
        if matches!(fault, Fault::ForeignDelete | Fault::Breaks) && !exists {
            self.at.entry(number + 1).or_insert(fault);
            return None;
        }
        if let Fault::Throttle(count) = fault {
            self.throttled = count - 1;
        }
        Some(fault)
    }

    pub fn calls(&self) -> usize {
        self.calls
    }

    pub fn left(&self) -> usize {
        self.at.len()
    }

    /// Those that have not happened never will.
    pub fn forget(&mut self) -> usize {
        std::mem::take(&mut self.at).len()
    }

    pub fn launch(&mut self, delay: Duration, uid: &str, part: &Part) {
        self.flying.push_back((Instant::now() + delay, uid.into(), part.clone()));
    }

    pub fn next_landing(&self) -> Option<Instant> {
        self.flying.iter().map(|(at, ..)| *at).min()
    }

    /// Takes the request that lands next.
    pub fn land(&mut self) -> (Instant, String, Part) {
        let next = self.next_landing().expect("asked only when one is flying");
        let place = self.flying.iter().position(|(at, ..)| *at == next).expect("just found");
        self.flying.remove(place).expect("just found")
    }
}
