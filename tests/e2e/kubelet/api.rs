//! The real API in this process, asked as the node, and as an administrator; its way to the node can be cut.

use async_trait::async_trait;
use bytes::Bytes;
use http::{Request, Response};
use kprov::error::{Error, Result};
use kprov::orchestrator::api::{InProcess, Server, User};
use kprov::orchestrator::client::{Body, Client, Delete, Patch, Transport};
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

pub struct Api {
    pub admin: Client,
    node: Arc<Way>,
}

/// The node's way to the API.
struct Way {
    inner: InProcess,
    away: AtomicBool,
}

#[async_trait]
impl Transport for Way {
    async fn call(&self, request: Request<Bytes>) -> Result<Response<Body>> {
        if self.away.load(Ordering::SeqCst) {
            return Err(Error::transient("could not reach the API"));
        }
        let (method, path) = (request.method().clone(), request.uri().clone());
        let response = self.inner.call(request).await?;
        if response.status().is_client_error() && response.status() != 404 {
            println!("{method} {path} -> {}", response.status());
        }
        Ok(response)
    }
}

impl Api {
    pub async fn start() -> Api {
        let server = Server::ephemeral().await;
        let user = User::new("system:node:n1", ["system:nodes".to_owned()]);
        let node = Arc::new(Way { inner: InProcess { server: server.clone(), user }, away: AtomicBool::new(false) });
        let api = Api { admin: Client::new(Arc::new(InProcess { server, user: User::server() })), node };
        // What controllers do elsewhere.
        api.put("/api/v1/namespaces/default/serviceaccounts", json!({"metadata": {"name": "default"}})).await;
        api.put("/api/v1/namespaces/default/configmaps", json!({"metadata": {"name": "kube-root-ca.crt"}, "data": {"ca.crt": "CA"}})).await;
        api
    }

    pub fn node_client(&self) -> Client {
        Client::new(self.node.clone())
    }

    pub fn cut(&self, away: bool) {
        self.node.away.store(away, Ordering::SeqCst);
    }

    pub async fn put(&self, collection: &str, object: Value) -> Value {
        let (group, kind) = match collection.rsplit('/').next().unwrap() {
            "pods" => ("v1", "Pod"),
            "configmaps" => ("v1", "ConfigMap"),
            "secrets" => ("v1", "Secret"),
            "serviceaccounts" => ("v1", "ServiceAccount"),
            other => panic!("no kind for {other}"),
        };
        let mut object = object;
        (object["apiVersion"], object["kind"]) = (group.into(), kind.into());
        self.admin.create_value(collection, &object).await.unwrap_or_else(|failure| panic!("{collection}: {failure}"))
    }

    pub async fn get(&self, path: &str) -> Option<Value> {
        self.admin.get_value(path).await.unwrap()
    }

    pub async fn merge(&self, path: &str, patch: Value) {
        self.admin.patch_value(path, Patch::Merge, &patch).await.unwrap();
    }

    pub async fn delete(&self, path: &str, seconds: i64) {
        self.admin.delete_value(path, &Delete { grace_seconds: Some(seconds), ..Delete::default() }).await.unwrap();
    }

    pub async fn list(&self, path: &str) -> Vec<Value> {
        self.admin.list_values(path, &Default::default()).await.unwrap().items
    }
}
