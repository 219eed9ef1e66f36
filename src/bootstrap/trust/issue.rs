//! Makes certificates: what each kind of holder gets, and for how long.

use crate::engine::Cluster;
use crate::error::{Context, Kind, Result};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256, SanType,
};
use std::net::IpAddr;
use std::time::{Duration, SystemTime};

const DAY: Duration = Duration::from_secs(86_400);
/// Rotation of the authority itself needs two steps with overlap; ten years is what the peers use.
const CA_LIFE: Duration = DAY.checked_mul(3_650).expect("fits");
/// The CIS benchmark's bound. Renewed at two thirds of it (see `read::Life::rotate_at`).
const LEAF_LIFE: Duration = DAY.checked_mul(365).expect("fits");
/// A machine whose clock is behind ours must not refuse what we just made.
const BACKDATED: Duration = Duration::from_secs(3_600);

/// What every API server's certificate says, whatever its addresses are.
pub const SERVER_NAME: &str = "kubernetes";

/// A certificate and its private key, both PEM (PKCS#8).
#[derive(Clone, PartialEq, Eq)]
pub struct Pair {
    pub certificate: String,
    pub key: String,
}

impl std::fmt::Debug for Pair {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("Pair(..)")
    }
}

/// What the API server is called by those who connect to it.
#[derive(Debug, Clone)]
pub struct ServerNames<'a> {
    pub node: &'a str,
    pub advertise: IpAddr,
    /// First address of the service network: `kubernetes.default.svc`.
    pub service: IpAddr,
    /// e.g. `cluster.local`
    pub domain: &'a str,
    /// A public address or a load balancer's name, when there is one.
    pub others: &'a [String],
}

/// The cluster's authority, ready to sign.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    pub fn load(ca: &Pair) -> Result<Authority> {
        let failed = || "could not load the cluster's authority";
        let key = KeyPair::from_pem(&ca.key).or_fail(Kind::Host, failed)?;
        Ok(Authority { issuer: Issuer::from_ca_cert_pem(&ca.certificate, key).or_fail(Kind::Host, failed)? })
    }

    /// Serving certificate of the API.
    pub fn server(&self, names: &ServerNames<'_>, now: SystemTime) -> Result<Pair> {
        let mut sans = vec![
            names.advertise.to_string(),
            "127.0.0.1".into(),
            "localhost".into(),
            SERVER_NAME.into(),
            "kubernetes.default".into(),
            "kubernetes.default.svc".into(),
            format!("kubernetes.default.svc.{}", names.domain),
            names.service.to_string(),
            names.node.to_string(),
        ];
        sans.extend_from_slice(names.others);
        self.leaf(&Subject { user: "kprov:server", groups: &[], sans: &sans, usages: &[ExtendedKeyUsagePurpose::ServerAuth] }, now)
    }

    /// A node's one certificate: it is a client of the API and serves the kubelet port.
    pub fn node(&self, name: &str, address: IpAddr, now: SystemTime) -> Result<Pair> {
        let usages = [ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        let sans = [name.to_string(), address.to_string()];
        let user = format!("system:node:{name}");
        self.leaf(&Subject { user: &user, groups: &["system:nodes"], sans: &sans, usages: &usages }, now)
    }

    /// What the API server shows to kubelets.
    pub fn kubelet_client(&self, now: SystemTime) -> Result<Pair> {
        self.client("kprov:api-server", &[], now)
    }

    /// What people hold.
    pub fn admin(&self, now: SystemTime) -> Result<Pair> {
        self.client("kprov:admin", &["system:masters"], now)
    }

    /// Any other client, by user and groups.
    pub fn client(&self, user: &str, groups: &[&str], now: SystemTime) -> Result<Pair> {
        self.leaf(&Subject { user, groups, sans: &[], usages: &[ExtendedKeyUsagePurpose::ClientAuth] }, now)
    }

    fn leaf(&self, subject: &Subject<'_>, now: SystemTime) -> Result<Pair> {
        let failed = || format!("could not issue the certificate of {}", subject.user);
        let mut parameters = parameters(subject.user, subject.groups, LEAF_LIFE, now);
        for san in subject.sans {
            let san = match san.parse::<IpAddr>() {
                Ok(address) => SanType::IpAddress(address),
                Err(_) => SanType::DnsName(san.as_str().try_into().or_fail(Kind::Input, failed)?),
            };
            if !parameters.subject_alt_names.contains(&san) {
                parameters.subject_alt_names.push(san);
            }
        }
        parameters.is_ca = IsCa::ExplicitNoCa;
        parameters.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        parameters.extended_key_usages = subject.usages.to_vec();
        parameters.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).or_fail(Kind::Internal, failed)?;
        let certificate = parameters.signed_by(&key, &self.issuer).or_fail(Kind::Internal, failed)?;
        Ok(Pair { certificate: certificate.pem(), key: key.serialize_pem() })
    }
}

struct Subject<'a> {
    user: &'a str,
    groups: &'a [&'a str],
    sans: &'a [String],
    usages: &'a [ExtendedKeyUsagePurpose],
}

/// A new self-signed authority. Its name carries the cluster's uid: two clusters of one name never look alike in a trust store.
pub(super) fn authority(cluster: &Cluster, now: SystemTime) -> Result<Pair> {
    let failed = || "could not make the cluster's authority";
    let mut parameters = parameters(&format!("kprov:{}", cluster.uid), &[], CA_LIFE, now);
    // Nothing below it may be an authority again.
    parameters.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).or_fail(Kind::Internal, failed)?;
    let certificate = parameters.self_signed(&key).or_fail(Kind::Internal, failed)?;
    Ok(Pair { certificate: certificate.pem(), key: key.serialize_pem() })
}

/// An ECDSA P-256 pair: PKCS#8 and SPKI, PEM.
pub(super) fn signing_key() -> Result<(String, String)> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).or_fail(Kind::Internal, || "could not make the service account key")?;
    Ok((key.serialize_pem(), key.public_key_pem()))
}

/// rcgen's own dates are 1975 to 4096: both are always set here.
fn parameters(user: &str, groups: &[&str], life: Duration, now: SystemTime) -> CertificateParams {
    let mut name = DistinguishedName::new();
    // Kubernetes reads O as the user's groups; an attribute type can be there once in rcgen, and nobody here has two groups.
    debug_assert!(groups.len() <= 1);
    for group in groups {
        name.push(DnType::OrganizationName, *group);
    }
    name.push(DnType::CommonName, user);
    let since_epoch = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let moment = |offset: Duration| rcgen::date_time_ymd(1970, 1, 1) + offset;
    let mut parameters = CertificateParams::default();
    parameters.distinguished_name = name;
    parameters.not_before = moment(since_epoch.saturating_sub(BACKDATED));
    parameters.not_after = moment(since_epoch + life);
    parameters
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bootstrap::trust::read;
    use x509_parser::prelude::*;

    fn with_authority(check: impl FnOnce(&Pair, &Authority)) {
        let ca = authority(&Cluster { name: "shop".into(), uid: "u1".into() }, SystemTime::now()).unwrap();
        check(&ca, &Authority::load(&ca).unwrap());
    }

    /// Subject, alternative names and purposes as one line each.
    fn shown(pem: &str) -> (String, Vec<String>, Vec<&'static str>) {
        let (_, pem) = parse_x509_pem(pem.as_bytes()).unwrap();
        let certificate = pem.parse_x509().unwrap();
        let sans = certificate.subject_alternative_name().unwrap().map(|sans| sans.value.general_names.clone()).unwrap_or_default();
        let usage = certificate.extended_key_usage().unwrap().unwrap().value.clone();
        let names = sans.iter().map(|name| match name {
            GeneralName::IPAddress(bytes) => bytes.iter().map(u8::to_string).collect::<Vec<_>>().join("."),
            GeneralName::DNSName(name) => name.to_string(),
            other => panic!("{other:?}"),
        });
        let usages = [(usage.client_auth, "client"), (usage.server_auth, "server")];
        (certificate.subject().to_string(), names.collect(), usages.iter().filter(|(on, _)| *on).map(|(_, name)| *name).collect())
    }

    fn signed_by(leaf: &str, ca: &str) -> bool {
        let (_, ca) = parse_x509_pem(ca.as_bytes()).unwrap();
        let (_, leaf) = parse_x509_pem(leaf.as_bytes()).unwrap();
        leaf.parse_x509().unwrap().verify_signature(Some(ca.parse_x509().unwrap().public_key())).is_ok()
    }

    #[test]
    fn a_node_is_client_and_server_in_the_nodes_group() {
        with_authority(|ca, authority| {
            let pair = authority.node("worker-1", "10.88.0.11".parse().unwrap(), SystemTime::now()).unwrap();
            let (subject, sans, usages) = shown(&pair.certificate);
            assert!(subject.contains("O=system:nodes") && subject.contains("CN=system:node:worker-1"), "{subject}");
            assert_eq!(sans, ["worker-1", "10.88.0.11"]);
            assert_eq!(usages, ["client", "server"]);
            assert!(signed_by(&pair.certificate, &ca.certificate));
        });
    }

    #[test]
    fn the_api_is_known_by_every_name_that_clients_use() {
        with_authority(|_, authority| {
            let names = ServerNames {
                node: "control-1",
                advertise: "10.88.0.10".parse().unwrap(),
                service: "10.96.0.1".parse().unwrap(),
                domain: "cluster.local",
                others: &["api.example.com".into()],
            };
            let (_, sans, usages) = shown(&authority.server(&names, SystemTime::now()).unwrap().certificate);
            for name in [
                "10.88.0.10",
                "127.0.0.1",
                "localhost",
                "kubernetes",
                "kubernetes.default",
                "kubernetes.default.svc",
                "kubernetes.default.svc.cluster.local",
                "10.96.0.1",
                "control-1",
                "api.example.com",
            ] {
                assert!(sans.iter().any(|san| san == name), "{name} is missing in {sans:?}");
            }
            assert_eq!(usages, ["server"]);
        });
    }

    #[test]
    fn people_are_masters_and_the_api_servers_client_is_in_no_group() {
        with_authority(|_, authority| {
            let (admin, _, usages) = shown(&authority.admin(SystemTime::now()).unwrap().certificate);
            assert!(admin.contains("O=system:masters") && admin.contains("CN=kprov:admin"), "{admin}");
            assert_eq!(usages, ["client"]);
            let (kubelet, ..) = shown(&authority.kubelet_client(SystemTime::now()).unwrap().certificate);
            assert_eq!(kubelet, "CN=kprov:api-server");
        });
    }

    #[test]
    fn a_certificate_is_valid_an_hour_before_it_was_made_and_for_a_year() {
        with_authority(|ca, authority| {
            let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
            let life = read::life(&authority.admin(now).unwrap().certificate).unwrap();
            assert_eq!(life.not_before, now - Duration::from_secs(3_600));
            assert_eq!(life.not_after, now + 365 * DAY);
            assert!(read::not_after(&ca.certificate).unwrap() > SystemTime::now() + 3_649 * DAY);
        });
    }

    #[test]
    fn another_clusters_authority_does_not_vouch_for_our_nodes() {
        with_authority(|_, authority| {
            with_authority(|other, _| {
                let pair = authority.node("worker-1", "10.88.0.11".parse().unwrap(), SystemTime::now()).unwrap();
                assert!(!signed_by(&pair.certificate, &other.certificate));
            });
        });
    }
}
