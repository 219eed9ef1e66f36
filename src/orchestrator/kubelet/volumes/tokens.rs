//! Service account tokens of pods: asked from the API, bound to the pod, renewed at 80% of their life.

use crate::orchestrator::client::Client;
use crate::orchestrator::kubelet::sandbox::{name, namespace, uid};
use k8s_openapi::api::core::v1::{Pod, ServiceAccountTokenProjection};
use k8s_openapi::jiff::Timestamp;
use parking_lot::Mutex;
use serde_json::json;
use std::collections::HashMap;
use std::sync::Arc;

/// An hour and a little, as upstream's API server gives to projected tokens.
const DEFAULT_SECONDS: i64 = 3607;

#[derive(Clone)]
struct Token {
    text: String,
    renew_at: Timestamp,
    expires_at: Timestamp,
}

/// The pod's uid, the audience, the life in seconds.
type Wanted = (String, String, i64);

#[derive(Clone)]
pub struct Tokens {
    client: Client,
    held: Arc<Mutex<HashMap<Wanted, Token>>>,
}

impl Tokens {
    pub fn new(client: Client) -> Tokens {
        Tokens { client, held: Arc::default() }
    }

    /// The token and when to ask for the next one.
    pub async fn get(&self, pod: &Pod, wanted: &ServiceAccountTokenProjection) -> Result<(String, Timestamp), String> {
        let audience = wanted.audience.clone().unwrap_or_default();
        let seconds = wanted.expiration_seconds.unwrap_or(DEFAULT_SECONDS);
        let key = (uid(pod).to_owned(), audience.clone(), seconds);
        let now = crate::orchestrator::client::time::now();
        let held = self.held.lock().get(&key).cloned();
        if let Some(token) = held.as_ref().filter(|token| token.renew_at > now) {
            return Ok((token.text.clone(), token.renew_at));
        }
        match (self.request(pod, &audience, seconds, now).await, held) {
            (Ok(token), _) => {
                self.held.lock().insert(key, token.clone());
                Ok((token.text, token.renew_at))
            }
            // The API is away: the token is still good, and is tried again in a minute.
            (Err(_), Some(token)) if token.expires_at > now => {
                Ok((token.text, Timestamp::from_second(now.as_second() + 60).unwrap_or(now)))
            }
            (Err(error), _) => Err(error),
        }
    }

    async fn request(&self, pod: &Pod, audience: &str, seconds: i64, now: Timestamp) -> Result<Token, String> {
        let account =
            pod.spec.as_ref().and_then(|spec| spec.service_account_name.as_deref()).filter(|name| !name.is_empty()).unwrap_or("default");
        let path = format!("/api/v1/namespaces/{}/serviceaccounts/{account}/token", namespace(pod));
        let audiences = if audience.is_empty() { json!([]) } else { json!([audience]) };
        let bound = json!({"kind": "Pod", "apiVersion": "v1", "name": name(pod), "uid": uid(pod)});
        let body = json!({
            "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest",
            "spec": {"audiences": audiences, "expirationSeconds": seconds, "boundObjectRef": bound},
        });
        let answer = self.client.create_sub(&path, &body).await.map_err(|error| format!("failed to fetch token: {error}"))?;
        let text = answer["status"]["token"].as_str().ok_or("failed to fetch token: the answer holds none")?.to_owned();
        let expires_at = answer["status"]["expirationTimestamp"].as_str().and_then(|text| text.parse().ok());
        let expires_at = expires_at.unwrap_or_else(|| Timestamp::from_second(now.as_second() + seconds).unwrap_or(now));
        let life = (expires_at.as_second() - now.as_second()).max(0);
        let renew_at = Timestamp::from_second(now.as_second() + life * 4 / 5).unwrap_or(now);
        Ok(Token { text, renew_at, expires_at })
    }

    pub fn release(&self, uid: &str) {
        self.held.lock().retain(|(user, _, _), _| user != uid);
    }
}
