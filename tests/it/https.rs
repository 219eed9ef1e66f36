//! The client over mutual TLS against the real API, through a wire that can be cut.

use k8s_openapi::api::core::v1::ConfigMap;
use kprov::bootstrap::trust::issue::ServerNames;
use kprov::bootstrap::trust::{SERVER_NAME, Trust};
use kprov::engine::Cluster;
use kprov::orchestrator::api::{InProcess, Server, User, server_tls};
use kprov::orchestrator::client::{Client, Informer, Object, Selector, https};
use serde_json::json;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Carries connections between the client and the API, until dropped.
struct Wire {
    _carriers: JoinSet<()>,
}

impl Wire {
    async fn lay(listener: Arc<TcpListener>, api: SocketAddr) -> Wire {
        let mut carriers = JoinSet::new();
        carriers.spawn(async move {
            let mut pairs = JoinSet::new();
            loop {
                let (mut near, _) = listener.accept().await.unwrap();
                pairs.spawn(async move {
                    let mut far = TcpStream::connect(api).await.unwrap();
                    let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
                });
            }
        });
        Wire { _carriers: carriers }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_connection_is_made_again_and_no_event_is_lost() {
    let now = SystemTime::now();
    let trust = Trust::create(&Cluster { name: "test".into(), uid: "u".into() }, now).unwrap();
    let local = "127.0.0.1".parse().unwrap();
    let names =
        ServerNames { node: "control", advertise: local, service: "10.96.0.1".parse().unwrap(), domain: "cluster.local", others: &[] };
    let serving = trust.authority().unwrap().server(&names, now).unwrap();
    let pki = tempfile::tempdir().unwrap();
    for (name, text) in [("ca.crt", &trust.ca.certificate), ("server.crt", &serving.certificate), ("server.key", &serving.key)] {
        std::fs::write(pki.path().join(name), text).unwrap();
    }
    let server = Server::ephemeral().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let api = listener.local_addr().unwrap();
    let tls = server_tls(pki.path()).unwrap();
    let served = server.clone();
    tokio::spawn(async move { served.serve(listener, tls).await });

    let near = Arc::new(TcpListener::bind("127.0.0.1:0").await.unwrap());
    let address = format!("https://{}", near.local_addr().unwrap());
    let wire = Wire::lay(near.clone(), api).await;
    let named = |name| https::connect_named(&address, name, &trust.ca.certificate, &trust.admin.certificate, &trust.admin.key).unwrap();
    let client = named(SERVER_NAME);
    let cancel = CancellationToken::new();
    let informer = Informer::<ConfigMap>::start(client.clone(), Selector::all(), &cancel);
    let mut changes = informer.changes();
    let map = |name: &str| json!({"metadata": {"name": name}});
    client.create::<ConfigMap>("default", &map("first")).await.unwrap();
    assert_eq!(changes.recv().await.unwrap().key.name, "first");

    drop(wire);
    let inside = Client::new(Arc::new(InProcess { server: server.clone(), user: User::server() }));
    inside.create::<ConfigMap>("default", &map("second")).await.unwrap();
    assert_eq!(informer.get("default", "first").unwrap().name(), "first", "what was seen stays readable");
    let _wire = Wire::lay(near, api).await;
    let next = tokio::time::timeout(Duration::from_secs(60), changes.recv()).await.expect("reconnected").unwrap();
    assert_eq!(next.key.name, "second");
    assert!(client.get::<ConfigMap>("default", "second").await.unwrap().is_some());

    let stranger = https::connect_with_token(&address, &trust.ca.certificate, "nonsense").unwrap();
    assert_eq!(stranger.get::<ConfigMap>("default", "first").await.unwrap_err().code(), Some(401));
    let elsewhere = named("kubernetes.example").get::<ConfigMap>("default", "first").await;
    assert!(elsewhere.unwrap_err().code().is_none(), "a certificate without the name is no API of ours");
    let other = Trust::create(&Cluster { name: "other".into(), uid: "o".into() }, now).unwrap();
    let deceived = https::connect(&address, &other.ca.certificate, &other.admin.certificate, &other.admin.key).unwrap();
    assert!(
        deceived.get::<ConfigMap>("default", "first").await.unwrap_err().code().is_none(),
        "a stranger's certificate is no API of ours"
    );
    cancel.cancel();
    server.shut_down();
}
