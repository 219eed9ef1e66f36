//! Streams into running pods (exec, attach, port-forward): the runtime is asked for one, and what the API server sends is passed on to it.

use super::Context;
use super::cri::Refusal;
use super::cri::messages::{AttachRequest, Container, ExecRequest, Map, SANDBOX_READY, container_state};
use super::observed::{LABEL_CONTAINER_NAME, LABEL_POD_NAME, LABEL_POD_NAMESPACE};
use crate::error::{Context as _, Error, Kind, Result};
use crate::orchestrator::client::Body;
use crate::orchestrator::upgrade;
use http::{Request, Response, Uri};
use hyper::body::Incoming;
use tokio::net::TcpStream;

/// Which container or pod, and how.
pub enum Wanted<'a> {
    Exec { namespace: &'a str, pod: &'a str, container: &'a str, query: &'a str },
    Attach { namespace: &'a str, pod: &'a str, container: &'a str, query: &'a str },
    PortForward { namespace: &'a str, pod: &'a str },
}

/// Answers as the runtime does, which is an upgrade when all is well.
pub async fn open(context: &Context, wanted: Wanted<'_>, request: &mut Request<Incoming>) -> Result<Response<Body>> {
    let refused = |refusal: Refusal| Error::host("could not open a stream").because(refusal.message);
    let url = address(context, &wanted).await?.map_err(refused)?;
    let failed = || format!("could not use the runtime's address of a stream, {url}");
    let uri: Uri = url.parse().or_fail(Kind::Internal, failed)?;
    let authority = uri.authority().ok_or_else(|| Error::internal(failed()))?;
    let stream = TcpStream::connect(authority.as_str()).await.or_fail(Kind::Host, failed)?;
    stream.set_nodelay(true).or_fail(Kind::Host, failed)?;
    let client = hyper::upgrade::on(&mut *request);
    upgrade::pass_on(request.headers(), client, stream, uri.path_and_query().map_or("/", |path| path.as_str())).await
}

async fn address(context: &Context, wanted: &Wanted<'_>) -> Result<Result<String, Refusal>> {
    let runtime = &context.runtime;
    Ok(match wanted {
        Wanted::Exec { namespace, pod, container, query } => {
            let flags = Flags::of(query);
            let container_id = running(context, namespace, pod, container).await?;
            let Flags { command: cmd, tty, stdin, stdout, stderr } = flags;
            runtime.exec_stream(ExecRequest { container_id, cmd, tty, stdin, stdout, stderr }).await
        }
        Wanted::Attach { namespace, pod, container, query } => {
            let container_id = running(context, namespace, pod, container).await?;
            let Flags { tty, stdin, stdout, stderr, .. } = Flags::of(query);
            runtime.attach_stream(AttachRequest { container_id, stdin, tty, stdout, stderr }).await
        }
        Wanted::PortForward { namespace, pod } => runtime.port_forward_stream(&sandbox(context, namespace, pod).await?).await,
    })
}

/// Of `PodExecOptions`.
#[derive(Debug, PartialEq, Eq)]
struct Flags {
    command: Vec<String>,
    tty: bool,
    stdin: bool,
    stdout: bool,
    stderr: bool,
}

impl Flags {
    fn of(query: &str) -> Flags {
        let pairs: Vec<(String, String)> = form_urlencoded::parse(query.as_bytes()).into_owned().collect();
        let all = |name: &'static str| pairs.iter().filter(move |(key, _)| key == name).map(|(_, value)| value);
        let flag = |name| all(name).next_back().is_some_and(|value| matches!(value.as_str(), "true" | "1"));
        let tty = flag("tty");
        // With a terminal both outputs are one.
        Flags {
            command: all("command").cloned().collect(),
            tty,
            stdin: flag("stdin"),
            stdout: flag("stdout"),
            stderr: flag("stderr") && !tty,
        }
    }
}

fn labels(namespace: &str, pod: &str) -> Map {
    [(LABEL_POD_NAMESPACE.to_owned(), namespace.to_owned()), (LABEL_POD_NAME.to_owned(), pod.to_owned())].into()
}

async fn running(context: &Context, namespace: &str, pod: &str, container: &str) -> Result<String> {
    let mut labels = labels(namespace, pod);
    labels.insert(LABEL_CONTAINER_NAME.to_owned(), container.to_owned());
    let found = context
        .runtime
        .list_containers(labels)
        .await
        .map_err(|refusal| Error::host("could not list containers").because(refusal.message))?;
    let alive = found.into_iter().filter(|container: &Container| container.state == container_state::RUNNING);
    let newest = alive.max_by_key(|container| container.created_at);
    newest.map(|container| container.id).ok_or_else(|| Error::input(format!("container not found ({container:?})")))
}

async fn sandbox(context: &Context, namespace: &str, pod: &str) -> Result<String> {
    let found = context.runtime.list_sandboxes(labels(namespace, pod)).await;
    let found = found.map_err(|refusal| Error::host("could not list sandboxes").because(refusal.message))?;
    let newest = found.into_iter().filter(|sandbox| sandbox.state == SANDBOX_READY).max_by_key(|sandbox| sandbox.created_at);
    newest.map(|sandbox| sandbox.id).ok_or_else(|| Error::input(format!("pod not found ({pod:?})")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_keeps_its_words_and_a_terminal_has_one_output() {
        let flags = Flags::of("command=sh&command=-c&command=echo+%22a+b%22%26&stdin=true&stdout=1&stderr=true");
        assert_eq!(flags.command, ["sh", "-c", "echo \"a b\"&"]);
        assert_eq!((flags.tty, flags.stdin, flags.stdout, flags.stderr), (false, true, true, true));
        let flags = Flags::of("command=sh&tty=true&stdout=true&stderr=true&stdin=false");
        assert_eq!((flags.tty, flags.stdin, flags.stdout, flags.stderr), (true, false, true, false));
    }
}
