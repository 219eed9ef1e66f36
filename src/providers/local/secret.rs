//! How the cluster's own loop and the local cloud know each other: a token one way, a pinned certificate the other.

use super::layout::Layout;
use super::record;
use crate::error::{Context, Error, Kind, Result};
use crate::sys::files;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// The name in the certificate; addresses change from cluster to cluster, trust is by the certificate itself.
pub const SERVER_NAME: &str = "local.kprov.dev";

#[derive(Serialize, Deserialize)]
pub struct Secret {
    pub token: String,
    pub certificate: String,
    key: String,
}

impl Secret {
    /// Made once per cluster: the loop's credentials stay valid over every restart.
    pub fn ensure(layout: &Layout) -> Result<Secret> {
        let failed = || "could not make the local cloud's certificate";
        if let Some(secret) = record::read(&layout.secret())? {
            return Ok(secret);
        }
        let key = rcgen::KeyPair::generate().or_fail(Kind::Internal, failed)?;
        let mut wish = rcgen::CertificateParams::new([SERVER_NAME.to_string()]).or_fail(Kind::Internal, failed)?;
        // As long as the cluster: both ends are on one host and the certificate is pinned, so there is no authority that could renew it.
        wish.not_before = rcgen::date_time_ymd(2020, 1, 1);
        wish.not_after = rcgen::date_time_ymd(2120, 1, 1);
        wish.distinguished_name.push(rcgen::DnType::CommonName, SERVER_NAME);
        let certificate = wish.self_signed(&key).or_fail(Kind::Internal, failed)?;
        let token = crate::sys::random::token(32)?;
        let secret = Secret { token, certificate: certificate.pem(), key: key.serialize_pem() };
        let text = serde_json::to_vec(&secret).or_fail(Kind::Internal, failed)?;
        files::write_atomic(&layout.secret(), &text, 0o600).or_fail(Kind::Host, failed)?;
        Ok(secret)
    }

    pub fn server(&self) -> Result<Arc<rustls::ServerConfig>> {
        let failed = || "could not use the local cloud's certificate";
        let certificate = CertificateDer::from_pem_slice(self.certificate.as_bytes()).or_fail(Kind::Host, failed)?;
        let key = PrivateKeyDer::from_pem_slice(self.key.as_bytes()).or_fail(Kind::Host, failed)?;
        let config = rustls::ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .or_fail(Kind::Internal, failed)?;
        Ok(Arc::new(config.with_no_client_auth().with_single_cert(vec![certificate], key).or_fail(Kind::Host, failed)?))
    }

    /// `Authorization: Bearer <token>`, compared in constant time.
    pub fn admits(&self, header: Option<&http::HeaderValue>) -> bool {
        let given = header.and_then(|value| value.as_bytes().strip_prefix(b"Bearer ")).unwrap_or_default();
        aws_lc_rs::constant_time::verify_slices_are_equal(given, self.token.as_bytes()).is_ok()
    }
}

/// Trusts this one certificate and nothing else.
pub fn client(certificate: &str) -> Result<Arc<rustls::ClientConfig>> {
    let failed = || "could not use the local cloud's credentials";
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(certificate.as_bytes()).or_fail(Kind::Input, failed)?).or_fail(Kind::Input, failed)?;
    let config =
        rustls::ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions().or_fail(Kind::Internal, failed)?;
    Ok(Arc::new(config.with_root_certificates(roots).with_no_client_auth()))
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

/// For messages that name the peer.
pub fn server_name() -> Result<rustls::pki_types::ServerName<'static>> {
    rustls::pki_types::ServerName::try_from(SERVER_NAME).map_err(|error| Error::internal("could not name the local cloud").because(error))
}
