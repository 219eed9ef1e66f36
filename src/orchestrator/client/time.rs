//! Wall-clock time as the API writes it.

use k8s_openapi::jiff::Timestamp;

/// k8s-openapi builds its time crate without the system clock, hence the detour.
pub fn now() -> Timestamp {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    Timestamp::new(since.as_secs() as i64, since.subsec_nanos() as i32).expect("the year is below 9999")
}

/// RFC 3339 in whole seconds: `metav1.Time`.
pub fn text(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// RFC 3339 in microseconds: `metav1.MicroTime` (leases).
pub fn micro_text(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%S%.6fZ").to_string()
}

pub fn now_text() -> String {
    text(now())
}
