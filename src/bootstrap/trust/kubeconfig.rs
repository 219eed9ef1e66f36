//! The administrator's kubeconfig: one file that needs nothing beside it. Pure.

use super::{Pair, SERVER_NAME};
use base64::Engine;
use serde_json::json;

/// kubectl reads JSON as well as YAML; a serialiser cannot be talked into broken quoting.
pub fn render(cluster: &str, server: &str, ca: &str, admin: &Pair) -> String {
    let encode = |pem: &str| base64::engine::general_purpose::STANDARD.encode(pem);
    let user = format!("{cluster}-admin");
    let config = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": cluster, "cluster": {"server": server, "tls-server-name": SERVER_NAME, "certificate-authority-data": encode(ca)}}],
        "users": [{"name": user, "user": {"client-certificate-data": encode(&admin.certificate), "client-key-data": encode(&admin.key)}}],
        "contexts": [{"name": cluster, "context": {"cluster": cluster, "user": user}}],
        "current-context": cluster,
    });
    serde_saphyr::to_string(&config).unwrap_or_else(|_| config.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_context_is_called_like_the_cluster() {
        let pair = Pair { certificate: "CERT".into(), key: "KEY".into() };
        let text = render("shop", "https://10.88.0.10:6443", "CA", &pair);
        let value: serde_json::Value = serde_saphyr::from_str(&text).unwrap();
        assert_eq!(value["current-context"], "shop");
        assert_eq!(value["clusters"][0]["cluster"]["server"], "https://10.88.0.10:6443");
        assert_eq!(value["clusters"][0]["cluster"]["tls-server-name"], "kubernetes");
        assert_eq!(value["clusters"][0]["cluster"]["certificate-authority-data"], "Q0E=");
        assert_eq!(value["users"][0]["user"]["client-key-data"], "S0VZ");
        assert_eq!(value["contexts"][0]["context"]["user"], value["users"][0]["name"]);
    }
}
