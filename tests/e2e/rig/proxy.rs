//! A proxy that lies: throttles, fails, loses, repeats and delays what passes between kprov and a cloud, and writes down every call.

use super::http::{Request, answer, status};
use super::namespace::Namespace;
use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};

const QUIET: Duration = Duration::from_secs(120);

/// How one cloud speaks: what a request is, and how that cloud says "too many requests".
#[derive(Clone, Copy)]
pub struct Dialect {
    pub read: fn(&Request) -> Call,
    pub throttled: fn(&Request) -> Vec<u8>,
}

#[derive(Debug, Clone, PartialEq, Default)]
pub struct Call {
    pub action: String,
    /// The client's idempotency token, if it sent one.
    pub token: Option<String>,
    pub attempt: Option<u32>,
    /// It changes something.
    pub mutating: bool,
    /// What is asked for, without what differs from run to run: two calls of one identity want the same.
    pub identity: String,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Fault {
    Throttle,
    /// The cloud never hears of it.
    Status(u16),
    /// What a gateway says, in HTML.
    BadGateway,
    /// The connection is cut before the cloud hears of it.
    Reset,
    /// Nobody answers; the cloud never hears of it.
    Silent(Duration),
    /// Done, and the answer is lost.
    LostReply,
    /// Done, and half of the answer arrives.
    Truncated,
    /// Done twice; the second answer arrives.
    Duplicate,
    Slow(Duration),
    /// Stops before the cloud hears of it; for killing the client right there.
    HoldBefore,
    /// Done, and the answer is kept; for killing the client right there.
    HoldAfter,
}

pub struct Rule {
    matches: Box<dyn Fn(&Call, IpAddr) -> bool + Send>,
    count: usize,
    fault: Fault,
    fired: usize,
    freezes: bool,
}

impl Rule {
    pub fn on(action: &str, fault: Fault) -> Rule {
        let action = action.to_string();
        Rule::new(move |call, _| call.action == action, fault)
    }

    pub fn new(matches: impl Fn(&Call, IpAddr) -> bool + Send + 'static, fault: Fault) -> Rule {
        Rule { matches: Box::new(matches), count: 1, fault, fired: 0, freezes: false }
    }

    /// From its first hit on, the cloud hears nothing more of the client that was hit: for killing it right there.
    pub fn freezing(self) -> Rule {
        Rule { freezes: true, ..self }
    }

    pub fn count(self, count: usize) -> Rule {
        Rule { count, ..self }
    }

    fn take(&mut self, call: &Call, client: IpAddr) -> Option<Fault> {
        if !(self.matches)(call, client) || self.fired == self.count {
            return None;
        }
        self.fired += 1;
        Some(self.fault)
    }
}

/// One line of the ledger.
#[derive(Debug, Clone)]
pub struct Entry {
    pub call: Call,
    pub client: SocketAddr,
    pub fault: Option<Fault>,
    /// What the cloud answered; `None`: it never heard of it.
    pub status: Option<u16>,
}

impl Entry {
    /// Something changed in the cloud.
    pub fn took_effect(&self) -> bool {
        self.call.mutating && self.status.is_some_and(|status| (200..300).contains(&status))
    }
}

/// The calls by operation, and how many were answered with an error: dry runs always are, and questions for what is not there.
pub fn told<'a>(calls: impl IntoIterator<Item = &'a Entry>) -> String {
    let (mut counts, mut all, mut errors) = (BTreeMap::<&str, usize>::new(), 0, 0);
    for entry in calls {
        *counts.entry(&entry.call.action).or_default() += 1;
        all += 1;
        errors += usize::from(entry.status.is_none_or(|status| status >= 400));
    }
    let mut counts: Vec<(&str, usize)> = counts.into_iter().collect();
    counts.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    let list = counts.iter().map(|(action, count)| format!("{action} {count}")).collect::<Vec<_>>().join(", ");
    format!("{all} calls, {errors} answered with an error: {list}")
}

/// What the loop asks the cloud while nothing happens: for the README.
pub fn tell_quiet_calls(proxy: &Proxy) {
    let before = proxy.ledger().len();
    std::thread::sleep(QUIET);
    eprintln!("nobody, in two quiet minutes: {}", told(&proxy.ledger()[before..]));
}

#[derive(Default)]
struct State {
    rules: Vec<Rule>,
    ledger: Vec<Entry>,
    frozen: Option<IpAddr>,
}

/// What happens to a call.
enum Fate {
    Passes(Option<Fault>),
    Frozen,
}

impl State {
    fn fate(&mut self, call: &Call, client: IpAddr) -> Fate {
        if self.frozen == Some(client) {
            return Fate::Frozen;
        }
        let hit = self.rules.iter_mut().find_map(|rule| rule.take(call, client).map(|fault| (fault, rule.freezes)));
        if hit.is_some_and(|(_, freezes)| freezes) {
            self.frozen = Some(client);
        }
        Fate::Passes(hit.map(|(fault, _)| fault))
    }
}

#[derive(Clone)]
pub struct Proxy {
    shared: Arc<(Mutex<State>, Condvar)>,
}

impl Proxy {
    /// Listens inside the namespace as long as the process lives.
    pub fn start(namespace: &Namespace, listen: SocketAddr, upstream: SocketAddr, dialect: Dialect) -> Proxy {
        let proxy = Proxy { shared: Arc::default() };
        let serving = proxy.clone();
        let listener = namespace.run(|| std::net::TcpListener::bind(listen)).expect("the proxy's address is free");
        namespace.thread(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(serving.serve(listener, upstream, dialect)).expect("the proxy serves");
        });
        proxy
    }

    /// The rule's number, for `fired`.
    pub fn rule(&self, rule: Rule) -> usize {
        let mut state = self.state();
        state.rules.push(rule);
        state.rules.len() - 1
    }

    pub fn fired(&self, rule: usize) -> usize {
        self.state().rules[rule].fired
    }

    /// No faults from here on, and an empty ledger.
    pub fn clear(&self) {
        *self.state() = State::default();
    }

    pub fn ledger(&self) -> Vec<Entry> {
        self.state().ledger.clone()
    }

    /// True as soon as the ledger is as wanted.
    pub fn wait(&self, limit: Duration, mut wanted: impl FnMut(&[Entry]) -> bool) -> bool {
        let deadline = Instant::now() + limit;
        let mut state = self.state();
        loop {
            if wanted(&state.ledger) {
                return true;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            state = self.shared.1.wait_timeout(state, left).expect("the ledger").0;
        }
    }

    /// The call that a rule holds, as soon as there is one.
    pub fn held(&self, limit: Duration) -> Option<Call> {
        let held = |entry: &&Entry| matches!(entry.fault, Some(Fault::HoldBefore | Fault::HoldAfter));
        self.wait(limit, |ledger| ledger.iter().any(|entry| held(&entry)));
        self.state().ledger.iter().find(held).map(|entry| entry.call.clone())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.0.lock().expect("the ledger")
    }

    fn write_down(&self, entry: Entry) {
        self.state().ledger.push(entry);
        self.shared.1.notify_all();
    }

    async fn serve(self, listener: std::net::TcpListener, upstream: SocketAddr, dialect: Dialect) -> io::Result<()> {
        listener.set_nonblocking(true)?;
        let listener = TcpListener::from_std(listener)?;
        loop {
            let (stream, client) = listener.accept().await?;
            let proxy = self.clone();
            tokio::spawn(async move {
                // A client that goes away is no fault of the proxy's.
                let _ = proxy.pass(stream, client, upstream, dialect).await;
            });
        }
    }

    async fn pass(self, mut stream: TcpStream, client: SocketAddr, upstream: SocketAddr, dialect: Dialect) -> io::Result<()> {
        let Some(request) = Request::read(&mut stream).await? else { return Ok(()) };
        let call = (dialect.read)(&request);
        let fate = self.state().fate(&call, client.ip());
        let Fate::Passes(fault) = fate else { return std::future::pending().await };
        let note = |status: Option<u16>| self.write_down(Entry { call: call.clone(), client, fault, status });
        let refusal = match fault {
            Some(Fault::Throttle) => Some((dialect.throttled)(&request)),
            Some(Fault::Status(code)) => Some(answer(code, "text/plain", "")),
            Some(Fault::BadGateway) => Some(answer(502, "text/html", "<html><body><h1>502 Bad Gateway</h1></body></html>")),
            _ => None,
        };
        if let Some(refusal) = refusal {
            note(None);
            return stream.write_all(&refusal).await;
        }
        match fault {
            Some(Fault::Reset) => {
                note(None);
                return reset(stream);
            }
            Some(Fault::Silent(pause)) => {
                note(None);
                tokio::time::sleep(pause).await;
                return reset(stream);
            }
            Some(Fault::HoldBefore) => {
                note(None);
                return std::future::pending().await;
            }
            Some(Fault::Slow(pause)) => tokio::time::sleep(pause).await,
            Some(Fault::Duplicate) => drop(request.forward(upstream, client.ip()).await?),
            _ => {}
        }
        let answer = request.forward(upstream, client.ip()).await?;
        note(Some(status(&answer)));
        match fault {
            Some(Fault::LostReply) => reset(stream),
            Some(Fault::Truncated) => {
                stream.write_all(&answer[..answer.len().saturating_sub(answer.len() / 4).max(1)]).await?;
                stream.flush().await?;
                Ok(())
            }
            Some(Fault::HoldAfter) => std::future::pending().await,
            _ => stream.write_all(&answer).await,
        }
    }
}

/// Closes so that the other side sees a broken connection, not an end.
fn reset(stream: TcpStream) -> io::Result<()> {
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    let size = size_of::<libc::linger>() as u32;
    // SAFETY: the descriptor is open, the value lives through the call and has the size told.
    unsafe { libc::setsockopt(stream.as_raw_fd(), libc::SOL_SOCKET, libc::SO_LINGER, (&raw const linger).cast(), size) };
    drop(stream);
    Ok(())
}
