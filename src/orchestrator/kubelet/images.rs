//! Images by pull policy, with the events and waiting reasons that `kubectl` shows.

use super::cri::Runtime;
use super::cri::messages::{AuthConfig, Image};
use super::observed::{Failure, Nanos, SECOND};
use base64::Engine;
use k8s_openapi::api::core::v1::{Container, Secret};
use serde_json::Value;
use std::sync::Arc;

/// How long a failed pull shows its own error before it shows the back-off.
const SHOWN: Nanos = 2 * SECOND;
const FIRST_PAUSE: Nanos = 10 * SECOND;
const LONGEST_PAUSE: Nanos = 300 * SECOND;

/// Something to tell people: (reason, message, is a warning).
pub type Talk = Vec<(&'static str, String, bool)>;

/// `Always` for the tag `latest`, else `IfNotPresent`, unless the pod says which.
pub fn policy(spec: &Container) -> &str {
    let image = spec.image.as_deref().unwrap_or_default();
    let tag = image.rsplit('/').next().and_then(|name| name.split_once(':')).map(|(_, tag)| tag);
    let latest = !image.contains('@') && matches!(tag, None | Some("latest"));
    spec.image_pull_policy.as_deref().unwrap_or(if latest { "Always" } else { "IfNotPresent" })
}

/// A pull that failed is first shown as the error, then as the back-off; `None` means: try (again) now.
pub fn back_off(before: Option<&Failure>, image: &str, now: Nanos) -> Option<(Failure, Talk)> {
    let before = before.filter(|before| before.reason == "ErrImagePull" && before.retry_at <= now)?;
    let message = format!("Back-off pulling image \"{image}\": ErrImagePull: {}", before.message);
    let talk =
        vec![("BackOff", format!("Back-off pulling image \"{image}\""), false), ("Failed", "Error: ImagePullBackOff".to_owned(), true)];
    Some((Failure { reason: "ImagePullBackOff", message, retry_at: now + before.pause, pause: before.pause }, talk))
}

/// Makes sure that the image is here. `pause` is what the last failure waited.
pub async fn ensure(
    runtime: &Runtime,
    spec: &Container,
    auth: Vec<AuthConfig>,
    pause: Option<Nanos>,
    now: Nanos,
) -> (Result<Image, Failure>, Talk) {
    let name = spec.image.clone().unwrap_or_default();
    let failed = |reason, message: String| Failure {
        reason,
        message,
        retry_at: now + if reason == "ErrImagePull" { SHOWN } else { FIRST_PAUSE },
        pause: pause.map_or(FIRST_PAUSE, |pause| (pause * 2).min(LONGEST_PAUSE)),
    };
    let policy = policy(spec);
    if policy != "Always" {
        match runtime.image_status(&name).await {
            Ok(Some(image)) => {
                let talk = vec![("Pulled", format!("Container image \"{name}\" already present on machine"), false)];
                return (Ok(image), talk);
            }
            Err(refusal) => return (Err(failed("ImageInspectError", refusal.message.clone())), vec![("Failed", refusal.message, true)]),
            Ok(None) if policy == "Never" => {
                let message = format!("Container image \"{name}\" is not present with pull policy of Never");
                let talk = vec![("ErrImageNeverPull", message.clone(), true), ("Failed", "Error: ErrImageNeverPull".to_owned(), true)];
                return (Err(failed("ErrImageNeverPull", message)), talk);
            }
            Ok(None) => {}
        }
    }
    let pulling = ("Pulling", format!("Pulling image \"{name}\""), false);
    let begun = std::time::Instant::now();
    match pull(runtime, &name, auth).await {
        Ok(image) => {
            let seconds = begun.elapsed().as_secs_f64();
            let message = format!("Successfully pulled image \"{name}\" in {seconds:.3}s. Image size: {} bytes.", image.size);
            (Ok(image), vec![pulling, ("Pulled", message, false)])
        }
        Err(message) => {
            let talk = vec![
                pulling,
                ("Failed", format!("Failed to pull image \"{name}\": {message}"), true),
                ("Failed", "Error: ErrImagePull".to_owned(), true),
            ];
            (Err(failed("ErrImagePull", message)), talk)
        }
    }
}

/// With each secret that fits, then without any.
async fn pull(runtime: &Runtime, name: &str, auth: Vec<AuthConfig>) -> Result<Image, String> {
    let mut last = String::new();
    for auth in auth.into_iter().map(Some).chain([None]) {
        match runtime.pull_image(name, auth).await {
            Ok(reference) => {
                let image = runtime.image_status(&reference).await.map_err(|refusal| refusal.message)?;
                return image.ok_or_else(|| format!("the runtime pulled {name} but does not know it"));
            }
            Err(refusal) => last = refusal.message,
        }
    }
    Err(last)
}

/// The registry of an image by Docker's rules.
fn registry(image: &str) -> &str {
    match image.split_once('/') {
        Some((host, _)) if host.contains('.') || host.contains(':') || host == "localhost" => host,
        _ => "docker.io",
    }
}

/// What `imagePullSecrets` hold for this image.
pub fn credentials(secrets: &[Arc<Secret>], image: &str) -> Vec<AuthConfig> {
    let wanted = registry(image);
    let documents = secrets.iter().filter_map(|secret| {
        let data = secret.data.as_ref()?;
        let whole: Option<Value> = data.get(".dockerconfigjson").and_then(|bytes| serde_json::from_slice(&bytes.0).ok());
        let old: Option<Value> = data.get(".dockercfg").and_then(|bytes| serde_json::from_slice(&bytes.0).ok());
        whole.and_then(|mut value| value.get_mut("auths").map(Value::take)).or(old)
    });
    let mut found = Vec::new();
    for auths in documents {
        for (server, entry) in auths.as_object().into_iter().flatten() {
            let host = server.trim_start_matches("https://").trim_start_matches("http://").split('/').next().unwrap_or_default();
            if host == wanted || (wanted == "docker.io" && host == "index.docker.io") {
                found.push(credential(server, entry));
            }
        }
    }
    found
}

fn credential(server: &str, entry: &Value) -> AuthConfig {
    let text = |key: &str| entry[key].as_str().unwrap_or_default().to_owned();
    let decoded = base64::engine::general_purpose::STANDARD.decode(text("auth")).ok().and_then(|bytes| String::from_utf8(bytes).ok());
    let (user, word) = decoded.as_deref().and_then(|text| text.split_once(':')).unwrap_or_default();
    let or = |own: String, decoded: &str| if own.is_empty() { decoded.to_owned() } else { own };
    AuthConfig {
        username: or(text("username"), user),
        password: or(text("password"), word),
        server_address: server.to_owned(),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_policy_follows_the_tag() {
        let check = |image: &str, wanted: &str| {
            assert_eq!(policy(&serde_json::from_value(json!({"name": "a", "image": image})).unwrap()), wanted, "{image}");
        };
        check("web", "Always");
        check("web:latest", "Always");
        check("web:1.2", "IfNotPresent");
        check("localhost:5000/web", "Always");
        check("localhost:5000/web:1", "IfNotPresent");
        check("web@sha256:00", "IfNotPresent");
    }

    #[test]
    fn a_failed_pull_shows_the_error_then_the_back_off_then_tries_again() {
        let failed = Failure { reason: "ErrImagePull", message: "no route".into(), retry_at: 5, pause: 10 * SECOND };
        assert!(back_off(Some(&failed), "web", 4).is_none());
        let (waiting, _) = back_off(Some(&failed), "web", 5).unwrap();
        assert_eq!((waiting.reason, waiting.retry_at), ("ImagePullBackOff", 5 + 10 * SECOND));
        assert!(back_off(Some(&waiting), "web", waiting.retry_at).is_none());
    }

    #[test]
    fn credentials_are_for_their_registry_only() {
        let document = json!({"auths": {"https://r.example:5000/v1/": {"auth": "dTpw"}, "other": {"username": "x"}}}).to_string();
        let encoded = base64::engine::general_purpose::STANDARD.encode(document);
        let secret: Secret = serde_json::from_value(json!({"data": {".dockerconfigjson": encoded}})).unwrap();
        let found = credentials(&[Arc::new(secret)], "r.example:5000/team/web:1");
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].username.as_str(), found[0].password.as_str()), ("u", "p"));
        assert_eq!(registry("library/web"), "docker.io");
    }
}
