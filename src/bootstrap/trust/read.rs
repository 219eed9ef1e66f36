//! Reads certificates: how long they live, when to renew, and whether one still says what is wanted. Pure.

use crate::error::{Context, Error, Kind, Result};
use std::time::{Duration, SystemTime};
use x509_parser::prelude::*;

/// The span in which a certificate is valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Life {
    pub not_before: SystemTime,
    pub not_after: SystemTime,
}

impl Life {
    /// Two thirds of the life: early enough that a machine switched off over a long holiday comes back with a valid one.
    pub fn rotate_at(&self) -> SystemTime {
        let whole = self.not_after.duration_since(self.not_before).unwrap_or_default();
        self.not_before + whole / 3 * 2
    }
}

/// The span of the first certificate in `pem`.
pub fn life(pem: &str) -> Result<Life> {
    with(pem, |certificate| Life {
        not_before: moment(certificate.validity().not_before),
        not_after: moment(certificate.validity().not_after),
    })
}

/// When it ends.
pub fn not_after(pem: &str) -> Result<SystemTime> {
    Ok(life(pem)?.not_after)
}

/// Time to renew?
pub fn due(pem: &str, now: SystemTime) -> Result<bool> {
    Ok(now >= life(pem)?.rotate_at())
}

/// Does `kept` still do for what `offered` was made for (same authority, subject, names and purposes), with a third of its life left?
/// Then a host keeps its key instead of taking a new one on every run. A damaged file never does.
pub fn still_good(kept: &str, offered: &str, now: SystemTime) -> bool {
    let essence = |pem: &str| {
        with(pem, |certificate| {
            let mut extensions: Vec<_> = certificate
                .extensions()
                .iter()
                // The key of the certificate itself is what may differ.
                .filter(|extension| extension.oid != oid_registry::OID_X509_EXT_SUBJECT_KEY_IDENTIFIER)
                .map(|extension| (extension.oid.to_id_string(), extension.value.to_vec()))
                .collect();
            extensions.sort();
            (certificate.issuer().as_raw().to_vec(), certificate.subject().as_raw().to_vec(), extensions)
        })
    };
    match (essence(kept), essence(offered), due(kept, now)) {
        (Ok(kept), Ok(offered), Ok(due)) => kept == offered && !due,
        _ => false,
    }
}

/// Is this private key the certificate's?
pub fn key_fits(certificate: &str, key: &str) -> bool {
    let held = rcgen::KeyPair::from_pem(key).map(|key| key.public_key_raw().to_vec());
    let named = with(certificate, |certificate| certificate.public_key().subject_public_key.data.to_vec());
    matches!((held, named), (Ok(held), Ok(named)) if held == named)
}

fn with<T>(pem: &str, read: impl FnOnce(&X509Certificate<'_>) -> T) -> Result<T> {
    let failed = || "could not read a certificate";
    let (_, pem) = parse_x509_pem(pem.as_bytes()).map_err(|error| Error::host(failed()).because(error))?;
    let certificate = pem.parse_x509().map_err(|error| error.to_string()).or_fail(Kind::Host, failed)?;
    Ok(read(&certificate))
}

fn moment(time: ASN1Time) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(time.timestamp().max(0).unsigned_abs())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bootstrap::trust::issue::{Authority, authority};
    use crate::engine::Cluster;

    fn at(days: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000 + days * 86_400)
    }

    fn new_authority() -> Authority {
        Authority::load(&authority(&Cluster { name: "shop".into(), uid: "u1".into() }, at(0)).unwrap()).unwrap()
    }

    #[test]
    fn renewal_is_due_after_two_thirds_of_the_life() {
        let life = Life { not_before: at(0), not_after: at(300) };
        assert_eq!(life.rotate_at(), at(200));
        let pem = new_authority().admin(at(0)).unwrap().certificate;
        assert!(!due(&pem, at(242)).unwrap());
        assert!(due(&pem, at(244)).unwrap());
    }

    #[test]
    fn a_host_keeps_its_certificate_until_it_is_old_or_says_something_else() {
        let authority = new_authority();
        let node = |name: &str, address: &str| authority.node(name, address.parse().unwrap(), at(0)).unwrap().certificate;
        let kept = node("worker-1", "10.88.0.11");
        let check = |what: &str, kept: &str, offered: &str, day: u64, expected: bool| {
            assert_eq!(still_good(kept, offered, at(day)), expected, "{what}");
        };
        check("the same holder", &kept, &node("worker-1", "10.88.0.11"), 1, true);
        check("another address", &kept, &node("worker-1", "10.88.0.12"), 1, false);
        check("another name", &kept, &node("worker-2", "10.88.0.11"), 1, false);
        check("two thirds over", &kept, &node("worker-1", "10.88.0.11"), 250, false);
        check("half a file", &kept[..200], &node("worker-1", "10.88.0.11"), 1, false);
        let other = new_authority().node("worker-1", "10.88.0.11".parse().unwrap(), at(0)).unwrap().certificate;
        check("another authority of the same name", &kept, &other, 1, false);
    }
}
