//! Who asks: the owner of a client certificate of the cluster's CA, or of a service account token.

use super::server::Server;
use super::status::{Answer, Status};
use super::tokens;
use http::HeaderMap;
use http::header::AUTHORIZATION;
use serde_json::{Value, json};
use std::collections::BTreeMap;

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct User {
    pub name: String,
    pub uid: String,
    pub groups: Vec<String>,
    pub extra: BTreeMap<String, Vec<String>>,
}

pub const MASTERS: &str = "system:masters";
const AUTHENTICATED: &str = "system:authenticated";
const NODES: &str = "system:nodes";
const NODE_PREFIX: &str = "system:node:";

impl User {
    pub fn new(name: impl Into<String>, groups: impl IntoIterator<Item = String>) -> User {
        let groups = groups.into_iter().chain([AUTHENTICATED.to_owned()]).collect();
        User { name: name.into(), groups, ..User::default() }
    }
    /// The server's own controllers.
    pub fn server() -> User {
        User::new("system:kprov:server", [MASTERS.to_owned()])
    }
    pub fn is_in(&self, group: &str) -> bool {
        self.groups.iter().any(|own| own == group)
    }
    pub fn is_master(&self) -> bool {
        self.is_in(MASTERS)
    }
    /// The node's name if the user is one.
    pub fn node(&self) -> Option<&str> {
        self.name.strip_prefix(NODE_PREFIX).filter(|_| self.is_in(NODES))
    }
    /// As `UserInfo` of reviews.
    pub fn info(&self) -> Value {
        let mut info = json!({"username": self.name, "groups": self.groups});
        if !self.uid.is_empty() {
            info["uid"] = json!(self.uid);
        }
        if !self.extra.is_empty() {
            info["extra"] = json!(self.extra);
        }
        info
    }
}

/// From a verified client certificate (DER): the common name, and each organisation as a group.
pub fn from_certificate(der: &[u8]) -> Option<User> {
    let (_, certificate) = x509_parser::parse_x509_certificate(der).ok()?;
    let subject = certificate.subject();
    let name = subject.iter_common_name().next()?.as_str().ok()?.to_owned();
    let groups: Vec<String> = subject.iter_organization().filter_map(|group| group.as_str().ok().map(str::to_owned)).collect();
    (!name.is_empty()).then(|| User::new(name, groups))
}

/// Whom the user speaks for: himself, or (a cluster's administrator alone) somebody else, by the headers of `kubectl --as`, `--as-group`
/// and `--as-uid`.
pub fn speaks_for(user: User, headers: &HeaderMap) -> Answer<User> {
    let text = |name: &str| headers.get_all(name).iter().filter_map(|value| value.to_str().ok()).map(str::to_owned).collect::<Vec<_>>();
    let [names, groups, uids] = ["impersonate-user", "impersonate-group", "impersonate-uid"].map(text);
    let Some(name) = names.into_iter().next() else {
        return match groups.is_empty() && uids.is_empty() {
            true => Ok(user),
            false => Err(Status::bad_request("groups and a uid are impersonated together with a user")),
        };
    };
    if !user.is_master() {
        return Err(Status::forbidden("", "users", &name, &format!("User {:?} cannot impersonate resource \"users\"", user.name)));
    }
    let mut other = User::new(name, groups);
    other.uid = uids.into_iter().next().unwrap_or_default();
    Ok(other)
}

/// From an Authorization header, if there is one. Refused: there is one, and it proves nothing.
pub fn from_headers(server: &Server, headers: &HeaderMap) -> Answer<Option<User>> {
    let Some(header) = headers.get(AUTHORIZATION) else { return Ok(None) };
    let token = header.to_str().ok().and_then(|text| text.strip_prefix("Bearer ")).ok_or_else(Status::unauthorized)?;
    from_token(server, token.trim()).map(Some).ok_or_else(Status::unauthorized)
}

fn from_token(server: &Server, token: &str) -> Option<User> {
    let claims = server.keys.check(token, &tokens::issuer(server))?;
    let private = &claims.kubernetes;
    if !private.still_exists(server) {
        return None;
    }
    let (namespace, name) = (&private.namespace, &private.serviceaccount.name);
    let groups = ["system:serviceaccounts".to_owned(), format!("system:serviceaccounts:{namespace}")];
    let mut user = User::new(format!("system:serviceaccount:{namespace}:{name}"), groups);
    user.uid = private.serviceaccount.uid.clone();
    let mut note = |key: &str, value: &str| drop(user.extra.insert(format!("authentication.kubernetes.io/{key}"), vec![value.to_owned()]));
    note("credential-id", &format!("JTI={}", claims.jti));
    if let Some(pod) = &private.pod {
        note("pod-name", &pod.name);
        note("pod-uid", &pod.uid);
    }
    if let Some(node) = &private.node {
        note("node-name", &node.name);
        note("node-uid", &node.uid);
    }
    Some(user)
}
