//! Service account tokens: ES256 JWTs bound to an object, checked against what still exists.

use super::object::{key, meta, peek};
use super::server::Server;
use crate::error::{Context, Kind, Result};
use crate::orchestrator::store::Entry;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation, decode, encode};
use serde::{Deserialize, Serialize};
use std::path::Path;

pub struct Keys {
    encoding: EncodingKey,
    decoding: DecodingKey,
}

impl Keys {
    /// `sa.key` (PKCS#8) and `sa.pub` (SPKI) of the folder.
    pub fn read(pki: &Path) -> Result<Keys> {
        let read = |name: &str| {
            let path = pki.join(name);
            std::fs::read(&path).or_fail(Kind::Host, || format!("could not read {}", path.display()))
        };
        Self::of(&read("sa.key")?, &read("sa.pub")?)
    }

    /// A pair that nobody else knows.
    pub fn generate() -> Result<Keys> {
        let pair = rcgen::KeyPair::generate().or_fail(Kind::Internal, || "could not make a key for service account tokens")?;
        Self::of(pair.serialize_pem().as_bytes(), pair.public_key_pem().as_bytes())
    }

    fn of(private: &[u8], public: &[u8]) -> Result<Keys> {
        let failed = || "could not use the keys for service account tokens";
        let encoding = EncodingKey::from_ec_pem(private).or_fail(Kind::Host, failed)?;
        let decoding = DecodingKey::from_ec_pem(public).or_fail(Kind::Host, failed)?;
        Ok(Keys { encoding, decoding })
    }

    pub fn sign(&self, claims: &Claims) -> Result<String> {
        encode(&Header::new(Algorithm::ES256), claims, &self.encoding).or_fail(Kind::Internal, || "could not sign a token")
    }

    /// The claims of a token that is signed by this cluster, in time, from and for this API.
    pub fn check(&self, token: &str, issuer: &str) -> Option<Claims> {
        let mut validation = Validation::new(Algorithm::ES256);
        validation.set_issuer(&[issuer]);
        validation.set_audience(&[issuer]);
        validation.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
        validation.validate_nbf = true;
        decode::<Claims>(token, &self.decoding, &validation).ok().map(|token| token.claims)
    }
}

/// As certificates are: a clock that is set back by an hour takes no token away.
pub const BACKDATED_SECONDS: i64 = 3600;

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Claims {
    pub aud: Vec<String>,
    pub exp: i64,
    pub iat: i64,
    pub iss: String,
    pub jti: String,
    pub nbf: i64,
    pub sub: String,
    #[serde(rename = "kubernetes.io")]
    pub kubernetes: Private,
}

/// What the token is bound to: it dies with these objects.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Private {
    pub namespace: String,
    pub serviceaccount: Reference,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<Reference>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<Reference>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<Reference>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Reference {
    pub name: String,
    pub uid: String,
}

impl Private {
    /// All bound objects still exist, and are not others of the same name.
    pub fn still_exists(&self, server: &Server) -> bool {
        let same = |resource: &str, namespace: &str, reference: &Reference| {
            find(server, resource, namespace, &reference.name).is_some_and(|entry| meta(peek(&entry), "uid") == reference.uid)
        };
        let bound = [("pods", &self.pod), ("secrets", &self.secret)];
        same("serviceaccounts", &self.namespace, &self.serviceaccount)
            && bound
                .iter()
                .all(|(resource, reference)| reference.as_ref().is_none_or(|reference| same(resource, &self.namespace, reference)))
    }
}

/// An object of a core kind.
pub fn find(server: &Server, resource: &str, namespace: &str, name: &str) -> Option<Entry> {
    let row = server.registry.find("", "v1", resource)?;
    server.store.get(&key(row, namespace, name))
}

/// Whom tokens are from and, unless asked otherwise, for.
pub fn issuer(server: &Server) -> String {
    format!("https://kubernetes.default.svc.{}", server.config.cluster_domain)
}
