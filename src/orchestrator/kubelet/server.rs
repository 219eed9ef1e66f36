//! The kubelet's own HTTPS server (port 10250): logs, streams and health, for the cluster's API server and nobody else.

use super::Context;
use super::container::log_path;
use super::cri::messages::{Container, Map};
use super::logs::Options;
use super::logs::follow::Reader;
use super::observed::{LABEL_CONTAINER_NAME, LABEL_POD_NAME, LABEL_POD_NAMESPACE, LABEL_POD_UID};
use super::streams::{self, Wanted};
use crate::error::{Context as _, Kind, Result};
use crate::orchestrator::client::{Body, Informer};
use crate::sys::sockets;
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::{TokioExecutor, TokioIo};
use k8s_openapi::api::core::v1::Pod;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::net::{TcpListener, TcpStream};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;

pub const PORT: u16 = 10250;
/// The only caller: the API server's client certificate.
const CALLER: &str = "kprov:api-server";
/// A caller that does not finish its handshake is dropped.
const HANDSHAKE: std::time::Duration = std::time::Duration::from_secs(10);

/// Listens before it returns, so that a taken port is an error of the start.
pub async fn start(context: Arc<Context>, pods: Informer<Pod>, cancel: CancellationToken) -> Result<()> {
    let address = SocketAddr::new(context.config.address, PORT);
    let acceptor = acceptor(&context.config.pki)?;
    let listener = TcpListener::bind(address).await.or_fail(Kind::Host, || format!("could not listen on {address}"))?;
    tokio::spawn(async move {
        while let Some(accepted) = cancel.run_until_cancelled(listener.accept()).await {
            match accepted {
                Ok((stream, _)) => {
                    if let Err(error) = sockets::keep_alive(&stream) {
                        tracing::debug!(%error, "a connection may outlive its other end");
                    }
                    let served = serve(stream, acceptor.clone(), context.clone(), pods.clone());
                    tokio::spawn(cancel.clone().run_until_cancelled_owned(served));
                }
                // Out of descriptors: others will be closed.
                Err(error) => {
                    tracing::warn!(%error, "could not accept a connection");
                    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                }
            }
        }
    });
    Ok(())
}

fn acceptor(pki: &std::path::Path) -> Result<tokio_rustls::TlsAcceptor> {
    let read = |name: &str| std::fs::read(pki.join(name)).or_fail(Kind::Host, || format!("could not read {}", pki.join(name).display()));
    let wrong = || format!("could not use the certificates in {}", pki.display());
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&read("ca.crt")?) {
        roots.add(certificate.or_fail(Kind::Host, wrong)?).or_fail(Kind::Host, wrong)?;
    }
    let chain: std::result::Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&read("node.crt")?).collect();
    let key = PrivateKeyDer::from_pem_slice(&read("node.key")?).or_fail(Kind::Host, wrong)?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = rustls::server::WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .or_fail(Kind::Internal, wrong)?
        .with_client_cert_verifier(verifier.build().or_fail(Kind::Host, wrong)?)
        .with_single_cert(chain.or_fail(Kind::Host, wrong)?, key)
        .or_fail(Kind::Host, wrong)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config).into())
}

async fn serve(stream: TcpStream, acceptor: tokio_rustls::TlsAcceptor, context: Arc<Context>, pods: Informer<Pod>) {
    let Ok(Ok(stream)) = tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await else { return };
    let caller = stream.get_ref().1.peer_certificates().and_then(|chain| common_name(chain.first()?));
    let may = caller.as_deref() == Some(CALLER);
    let service = hyper::service::service_fn(move |request: Request<Incoming>| {
        let (context, pods) = (context.clone(), pods.clone());
        async move {
            if !may {
                return Ok::<_, std::convert::Infallible>(plain(StatusCode::FORBIDDEN, "only the API server may ask this node"));
            }
            Ok(answer(context, pods, request).await)
        }
    });
    let builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
    if let Err(error) = builder.serve_connection_with_upgrades(TokioIo::new(stream), service).await {
        tracing::debug!(%error, "a connection of the API server ended");
    }
}

fn common_name(certificate: &CertificateDer) -> Option<String> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
    parsed.subject().iter_common_name().next()?.as_str().ok().map(str::to_owned)
}

async fn answer(context: Arc<Context>, pods: Informer<Pod>, mut request: Request<Incoming>) -> Response<Body> {
    let uri = request.uri().clone();
    let (path, query) = (uri.path().to_owned(), uri.query().unwrap_or_default());
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    let wanted = match *parts.as_slice() {
        ["exec", namespace, pod, container] => Some(Wanted::Exec { namespace, pod, container, query }),
        ["attach", namespace, pod, container] => Some(Wanted::Attach { namespace, pod, container, query }),
        ["portforward", namespace, pod] => Some(Wanted::PortForward { namespace, pod }),
        _ => None,
    };
    if let Some(wanted) = wanted {
        return streams::open(&context, wanted, &mut request).await.unwrap_or_else(|error| {
            let status = if error.kind == Kind::Input { StatusCode::NOT_FOUND } else { StatusCode::INTERNAL_SERVER_ERROR };
            plain(status, &error.chain())
        });
    }
    if request.method() != Method::GET {
        return plain(StatusCode::METHOD_NOT_ALLOWED, "only GET is served");
    }
    match parts.as_slice() {
        ["healthz"] => plain(StatusCode::OK, "ok"),
        ["pods"] => json_answer(pod_list(&pods)),
        ["stats", "summary"] => match summary(&context).await {
            Ok(value) => json_answer(value),
            Err(refusal) => plain(StatusCode::SERVICE_UNAVAILABLE, &refusal.message),
        },
        ["containerLogs", namespace, pod, container] => logs(&context, &pods, namespace, pod, container, query).await,
        _ => plain(StatusCode::NOT_FOUND, "there is nothing at this path"),
    }
}

fn pod_list(pods: &Informer<Pod>) -> Value {
    let items: Vec<Value> = pods.list().iter().filter_map(|pod| serde_json::to_value(&**pod).ok()).collect();
    json!({"apiVersion": "v1", "kind": "PodList", "metadata": {}, "items": items})
}

/// The part of upstream's summary that says how much each container uses.
async fn summary(context: &Context) -> std::result::Result<Value, super::cri::Refusal> {
    let mut pods: std::collections::BTreeMap<String, Value> = Default::default();
    for stats in context.runtime.list_stats().await? {
        let attributes = stats.attributes.unwrap_or_default();
        let label = |key: &str| attributes.labels.get(key).cloned().unwrap_or_default();
        let pod = pods.entry(label(LABEL_POD_UID)).or_insert_with(|| {
            let reference = json!({"name": label(LABEL_POD_NAME), "namespace": label(LABEL_POD_NAMESPACE), "uid": label(LABEL_POD_UID)});
            json!({"podRef": reference, "containers": []})
        });
        let container = json!({
            "name": label(LABEL_CONTAINER_NAME),
            "cpu": {"usageCoreNanoSeconds": stats.cpu.and_then(|cpu| cpu.usage_core_nano_seconds).map(|value| value.value)},
            "memory": {"workingSetBytes": stats.memory.and_then(|memory| memory.working_set_bytes).map(|value| value.value)},
        });
        if let Some(list) = pod["containers"].as_array_mut() {
            list.push(container);
        }
    }
    Ok(json!({"node": {"nodeName": context.config.node_name}, "pods": pods.into_values().collect::<Vec<_>>()}))
}

async fn logs(context: &Context, pods: &Informer<Pod>, namespace: &str, pod: &str, container: &str, query: &str) -> Response<Body> {
    let options = match Options::parse(query, crate::orchestrator::client::time::now()) {
        Ok(options) => options,
        Err(message) => return plain(StatusCode::BAD_REQUEST, &message),
    };
    let labels: Map = [
        (LABEL_POD_NAMESPACE.to_owned(), namespace.to_owned()),
        (LABEL_POD_NAME.to_owned(), pod.to_owned()),
        (LABEL_CONTAINER_NAME.to_owned(), container.to_owned()),
    ]
    .into();
    let mut found = match context.runtime.list_containers(labels).await {
        Ok(found) => found,
        Err(refusal) => return plain(StatusCode::SERVICE_UNAVAILABLE, &refusal.message),
    };
    found.sort_by_key(|container| std::cmp::Reverse((container.created_at, attempt(container))));
    // A pod that was replaced under the same name may still be ending: the newest pod is meant.
    let newest = found.first().and_then(|container| container.labels.get(LABEL_POD_UID)).cloned();
    found.retain(|container| container.labels.get(LABEL_POD_UID) == newest.as_ref());
    let Some(chosen) = found.into_iter().nth(usize::from(options.previous)) else {
        let message = match options.previous {
            true => format!("previous terminated container \"{container}\" in pod \"{pod}\" not found"),
            false => {
                let known = pods.get(namespace, pod);
                let why = known.as_ref().and_then(|pod| waiting_reason(pod, container)).unwrap_or("ContainerCreating");
                format!("container \"{container}\" in pod \"{pod}\" is waiting to start: {why}")
            }
        };
        return plain(StatusCode::BAD_REQUEST, &message);
    };
    let uid = chosen.labels.get(LABEL_POD_UID).cloned().unwrap_or_default();
    let file = context.logs.join(format!("{namespace}_{pod}_{uid}")).join(log_path(container, attempt(&chosen)));
    let (out, stream) = tokio::sync::mpsc::channel(4);
    let reader = Reader {
        runtime: context.runtime.clone(),
        container_id: chosen.id,
        file,
        options,
        happenings: context.happenings.subscribe(),
        out,
    };
    tokio::spawn(reader.run());
    let body = StreamBody::new(ReceiverStream::new(stream).map(|chunk| chunk.map(Frame::data)));
    Response::builder()
        .header("content-type", "text/plain")
        .body(BodyExt::boxed_unsync(body))
        .expect("a status and one constant header make a valid response")
}

/// What the pod's status says of a container that has not started.
fn waiting_reason<'a>(pod: &'a Pod, container: &str) -> Option<&'a str> {
    let status = pod.status.as_ref()?;
    let all = [&status.init_container_statuses, &status.container_statuses].into_iter().flatten().flatten();
    let state = all.filter(|told| told.name == container).find_map(|told| told.state.as_ref())?;
    state.waiting.as_ref()?.reason.as_deref()
}

fn attempt(container: &Container) -> u32 {
    container.metadata.as_ref().map_or(0, |metadata| metadata.attempt)
}

fn plain(status: StatusCode, text: &str) -> Response<Body> {
    respond(status, "text/plain", text.to_owned().into())
}

fn json_answer(value: Value) -> Response<Body> {
    respond(StatusCode::OK, "application/json", value.to_string().into())
}

fn respond(status: StatusCode, kind: &str, bytes: Bytes) -> Response<Body> {
    let body = Full::new(bytes).map_err(|never| match never {}).boxed_unsync();
    Response::builder().status(status).header("content-type", kind).body(body).expect("a status and one plain header make a valid response")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_that_has_not_started_says_what_it_waits_for() {
        let told =
            |name: &str, state: Value| json!({"name": name, "image": "", "imageID": "", "ready": false, "restartCount": 0, "state": state});
        let pod: Pod = serde_json::from_value(json!({"status": {
            "initContainerStatuses": [told("first", json!({"waiting": {"reason": "ImagePullBackOff"}}))],
            "containerStatuses": [told("main", json!({"waiting": {"reason": "PodInitializing"}})), told("other", json!({"running": {}}))],
        }}))
        .expect("a pod");
        let said = ["first", "main", "other", "none"].map(|container| waiting_reason(&pod, container));
        assert_eq!(said, [Some("ImagePullBackOff"), Some("PodInitializing"), None, None]);
        assert_eq!(waiting_reason(&Pod::default(), "main"), None);
    }
}
