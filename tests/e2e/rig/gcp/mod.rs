//! Google Cloud on this machine: Compute Engine and Filestore over plain HTTP on loopback, as strict as Google's own documents and manners.
//!
//! `schema` holds every request against the discovery documents, `cloud` keeps things and operations, `rules` and `shares` know the kinds.
//! A request that Google would not take is refused and remembered: `violations` must be empty at the end of every test.

mod cloud;
pub mod estate;
mod fabric;
mod filter;
mod rules;
mod schema;
mod shares;

pub use cloud::Cloud;
pub use rules::ACCOUNT;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use kprov::blueprint::ProviderName;
use kprov::providers::Settings;
use parking_lot::{Mutex, MutexGuard};
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio::time::Instant;

pub const PROJECT: &str = "shop-1";
pub const REGION: &str = "europe-west1";
/// Where it listens in a namespace of its own.
pub const PORT: u16 = 8085;
/// How the addresses of the cluster's own machines begin.
const MACHINES: &[u8] = b"10.128.";
/// Long enough to be seen, short enough for a test.
const PACE: Duration = Duration::from_millis(20);
/// The longest that Google holds a wait.
const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// What goes wrong with the next call of a method.
#[derive(Clone, Debug)]
pub enum Fault {
    /// The connection ends before the request is looked at.
    LostRequest,
    /// It is carried out, and the connection ends without an answer.
    LostReply,
    /// An answer of this status and reason, without effect.
    Refused(u16, &'static str),
}

pub struct Google {
    address: SocketAddr,
    inner: Arc<Inner>,
    server: JoinHandle<()>,
}

pub struct Inner {
    cloud: Mutex<Cloud>,
    /// By method, in order; and how many have happened.
    faults: Mutex<Vec<(String, Fault)>>,
    calls: Mutex<Vec<String>>,
    /// What every call of these methods is answered with, without effect; and what those of the cluster's own machines are.
    standing: Mutex<Standing>,
    standing_inside: Mutex<Standing>,
}

type Standing = Vec<(String, u16, &'static str)>;

impl Google {
    pub async fn start() -> Google {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let inner = Inner::new(true);
        let server = tokio::spawn(serve(listener, inner.clone()));
        Google { address, inner, server }
    }

    /// What a blueprint would say to reach this one.
    pub fn settings(&self) -> Settings {
        let own = json!({"project": PROJECT, "region": REGION, "endpoint": format!("http://{}", self.address)});
        Settings { provider: ProviderName::Gcp, location: None, own }
    }

    pub fn cloud(&self) -> MutexGuard<'_, Cloud> {
        self.inner.cloud()
    }

    /// The next call of this method (`compute.instances.insert`) that has no fault before it meets this one.
    pub fn fault(&self, method: &str, fault: Fault) {
        self.inner.faults.lock().push((method.into(), fault));
    }

    /// Faults that never happened prove nothing.
    pub fn unfired(&self) -> usize {
        self.inner.faults.lock().len()
    }

    /// Methods called so far, in order.
    pub fn calls(&self) -> Vec<String> {
        self.inner.calls.lock().clone()
    }

    /// The next operation of this method fails with this code.
    pub fn fail(&self, method: &str, code: &str, message: &str) {
        let error = json!({"errors": [{"code": code, "message": message}]});
        self.cloud().failures.entry(method.into()).or_default().push(error);
    }

    /// Something that was there before us.
    pub fn plant(&self, path: &str, body: Value) {
        self.cloud().plant(path, body);
    }

    /// Everything that exists, by path.
    pub fn paths(&self) -> Vec<String> {
        self.cloud().things.keys().cloned().collect()
    }

    /// From now on these methods (by their beginning) answer so, without effect; nothing at all ends it.
    pub fn refuse(&self, standing: &[(&str, u16, &'static str)]) {
        *self.inner.standing.lock() = standing.iter().map(|(method, code, reason)| (method.to_string(), *code, *reason)).collect();
    }

    pub fn assert_fair(&self) {
        assert_eq!(self.cloud().violations, Vec::<String>::new(), "every request is one that Google takes");
        assert_eq!(self.unfired(), 0, "every fault has happened");
    }
}

impl Drop for Google {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn serve(listener: TcpListener, inner: Arc<Inner>) {
    loop {
        let Ok((stream, _)) = listener.accept().await else { return };
        let inner = inner.clone();
        tokio::spawn(async move {
            let service = service_fn(move |request| answer(inner.clone(), request));
            // An error is a client that went away, or a fault that was asked for.
            let _ = auto::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

/// An error ends the connection without an answer.
async fn answer(inner: Arc<Inner>, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, std::io::Error> {
    let (verb, uri) = (request.method().to_string(), request.uri().clone());
    let from_inside = request.headers().get("x-forwarded-for").is_some_and(|client| client.as_bytes().starts_with(MACHINES));
    let body = request.into_body().collect().await.map_err(std::io::Error::other)?.to_bytes();
    let body: Value = if body.is_empty() { Value::Null } else { serde_json::from_slice(&body).map_err(std::io::Error::other)? };
    let Some(call) = schema::shared().call(&verb, uri.path(), uri.query().unwrap_or_default(), body) else {
        inner.cloud.lock().violations.push(format!("no method {verb} {}", uri.path()));
        return Ok(reply(404, &json!({"error": {"code": 404, "message": "no such method"}})));
    };
    inner.calls.lock().push(call.method.clone());
    let fault = inner.next_fault(&call.method);
    match fault {
        Some(Fault::LostRequest) => return Err(std::io::Error::other("lost")),
        Some(Fault::Refused(code, reason)) => return Ok(refused(code, reason, &call.method)),
        _ => {}
    }
    let of = |standing: &Mutex<Standing>| standing.lock().iter().find(|(method, _, _)| call.method.starts_with(method)).cloned();
    if let Some((_, code, reason)) = of(&inner.standing).or_else(|| of(&inner.standing_inside).filter(|_| from_inside)) {
        return Ok(refused(code, reason, &call.method));
    }
    if !call.problems.is_empty() {
        let problems = call.problems.iter().map(|problem| format!("{}: {problem}", call.method));
        inner.cloud.lock().violations.extend(problems);
        let (code, body) = cloud::refusal(400, "invalid", call.problems.join("; "));
        return Ok(reply(code, &body));
    }
    let end = inner.cloud.lock().end_of(&call).map(|end| end.saturating_duration_since(std::time::Instant::now()));
    if let Some(left) = end {
        tokio::time::sleep_until(Instant::now() + left.min(LONGEST_WAIT)).await;
    }
    let answered = inner.cloud.lock().answer(&call);
    if matches!(fault, Some(Fault::LostReply)) {
        return Err(std::io::Error::other("lost"));
    }
    Ok(match answered {
        Ok(body) => reply(200, &body),
        Err((code, body)) => reply(code, &body),
    })
}

impl Inner {
    fn new(by_itself: bool) -> Arc<Inner> {
        let cloud = Mutex::new(Cloud { pace: PACE, by_itself, ..Cloud::default() });
        let (standing, standing_inside) = (Mutex::default(), Mutex::default());
        Arc::new(Inner { cloud, faults: Mutex::default(), calls: Mutex::default(), standing, standing_inside })
    }

    pub fn cloud(&self) -> MutexGuard<'_, Cloud> {
        let mut cloud = self.cloud.lock();
        cloud.pass_time();
        cloud
    }

    fn next_fault(&self, method: &str) -> Option<Fault> {
        let mut faults = self.faults.lock();
        let place = faults.iter().position(|(other, _)| other == method)?;
        Some(faults.remove(place).1)
    }
}

/// In the words that Google has for it.
fn refused(code: u16, reason: &str, method: &str) -> Response<Full<Bytes>> {
    let permission = method.replace(".insert", ".create");
    let message = match code {
        401 => "Request had invalid authentication credentials. Expected OAuth 2 access token.".to_string(),
        403 if reason == "forbidden" => format!("Required '{permission}' permission for 'projects/{PROJECT}'"),
        _ => format!("refused: {reason}"),
    };
    let (code, body) = cloud::refusal(code, reason, message);
    reply(code, &body)
}

fn reply(code: u16, body: &Value) -> Response<Full<Bytes>> {
    let text = serde_json::to_vec(body).expect("JSON");
    let response = Response::builder().status(code).header("content-type", "application/json; charset=UTF-8");
    response.body(Full::new(Bytes::from(text))).expect("an answer")
}
