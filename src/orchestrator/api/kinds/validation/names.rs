//! The syntax of names, labels and annotations: upstream's `k8s.io/apimachinery/pkg/util/validation`, with its sentences.

const DNS_LABEL: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
const DNS_SUBDOMAIN: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
const DNS_1035_LABEL: &str = "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation is '[a-z]([-a-z0-9]*[a-z0-9])?')";
const QUALIFIED: &str = "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";
const LABEL_VALUE: &str = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')";
const CONFIG_KEY: &str = "a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')";

fn too_long(limit: usize) -> String {
    format!("must be no more than {limit} bytes")
}

fn lower(byte: u8) -> bool {
    byte.is_ascii_lowercase() || byte.is_ascii_digit()
}

/// Starts and ends with `edge`, holds only `edge` or one of `inner`.
fn shaped(text: &str, edge: fn(u8) -> bool, inner: &[u8]) -> bool {
    let bytes = text.as_bytes();
    let ends = bytes.first().is_some_and(|byte| edge(*byte)) && bytes.last().is_some_and(|byte| edge(*byte));
    ends && bytes.iter().all(|byte| edge(*byte) || inner.contains(byte))
}

/// RFC 1123 label: at most 63 bytes.
pub fn dns_label(text: &str) -> Result<(), String> {
    if text.len() > 63 {
        return Err(too_long(63));
    }
    if shaped(text, lower, b"-") { Ok(()) } else { Err(DNS_LABEL.into()) }
}

/// RFC 1123 subdomain: at most 253 bytes.
pub fn dns_subdomain(text: &str) -> Result<(), String> {
    if text.len() > 253 {
        return Err(too_long(253));
    }
    if text.split('.').all(|label| shaped(label, lower, b"-")) { Ok(()) } else { Err(DNS_SUBDOMAIN.into()) }
}

/// RFC 1035 label, as Service names: must start with a letter.
pub fn dns_1035_label(text: &str) -> Result<(), String> {
    if text.len() > 63 {
        return Err(too_long(63));
    }
    let starts = text.as_bytes().first().is_some_and(u8::is_ascii_lowercase);
    if starts && shaped(text, lower, b"-") { Ok(()) } else { Err(DNS_1035_LABEL.into()) }
}

fn alphanumeric(byte: u8) -> bool {
    byte.is_ascii_alphanumeric()
}

/// A label's or annotation's key: an optional DNS prefix, a slash, a name of at most 63 bytes.
pub fn qualified_name(text: &str) -> Result<(), String> {
    let name = match text.split_once('/') {
        None => text,
        Some((_, name)) if name.contains('/') => {
            return Err(format!("a qualified name {QUALIFIED} with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')"));
        }
        Some(("", _)) => return Err("prefix part must be non-empty".into()),
        Some((prefix, name)) => {
            dns_subdomain(prefix).map_err(|error| format!("prefix part {error}"))?;
            name
        }
    };
    match name {
        "" => Err("name part must be non-empty".into()),
        name if name.len() > 63 => Err(format!("name part {}", too_long(63))),
        name if shaped(name, alphanumeric, b"-_.") => Ok(()),
        _ => Err(format!("name part {QUALIFIED}")),
    }
}

/// A label's value: at most 63 bytes, or empty.
pub fn label_value(text: &str) -> Result<(), String> {
    if text.len() > 63 {
        return Err(too_long(63));
    }
    if text.is_empty() || shaped(text, alphanumeric, b"-_.") { Ok(()) } else { Err(LABEL_VALUE.into()) }
}

/// A key of a ConfigMap or Secret.
pub fn config_key(text: &str) -> Result<(), String> {
    match text {
        text if text.len() > 253 => Err(too_long(253)),
        "" => Err(CONFIG_KEY.into()),
        text if !text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte)) => Err(CONFIG_KEY.into()),
        "." => Err("must not be '.'".into()),
        ".." => Err("must not be '..'".into()),
        text if text.starts_with("..") => Err("must not start with '..'".into()),
        _ => Ok(()),
    }
}

/// A port's name (IANA service name): at most 15 bytes, with a letter.
pub fn port_name(text: &str) -> Result<(), String> {
    if text.len() > 15 {
        return Err("must be no more than 15 characters".into());
    }
    if !text.bytes().all(|byte| lower(byte) || byte == b'-') || text.is_empty() {
        return Err("must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)".into());
    }
    if !text.bytes().any(|byte| byte.is_ascii_lowercase()) {
        return Err("must contain at least one letter (a-z)".into());
    }
    if text.contains("--") {
        return Err("must not contain consecutive hyphens".into());
    }
    if text.starts_with('-') || text.ends_with('-') {
        return Err("must not begin or end with a hyphen".into());
    }
    Ok(())
}

/// A variable's name: printable ASCII without `=`.
pub fn environment_name(text: &str) -> Result<(), String> {
    let allowed = |byte: u8| (b' '..=b'~').contains(&byte) && byte != b'=';
    if !text.is_empty() && text.bytes().all(allowed) {
        return Ok(());
    }
    Err("a valid environment variable name must consist only of printable ASCII characters other than '='".into())
}

pub fn ip(text: &str) -> Result<(), String> {
    match text.parse::<std::net::IpAddr>() {
        Ok(_) => Ok(()),
        Err(_) => Err("must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(rule: fn(&str) -> Result<(), String>, good: &[&str], bad: &[&str]) {
        for text in good {
            assert_eq!(rule(text), Ok(()), "{text}");
        }
        for text in bad {
            assert!(rule(text).is_err(), "{text}");
        }
    }

    #[test]
    fn names_follow_the_rfcs() {
        let long = "a".repeat(64);
        check(dns_label, &["a", "1", "my-name", &long[1..]], &["", "A", "-a", "a-", "a.b", "a_b", "é", &long]);
        check(dns_subdomain, &["a", "a.b", "1.2.3", "example.com"], &["", ".", "a.", ".a", "a..b", "a.-b", &"a".repeat(254)]);
        check(dns_1035_label, &["a", "a1", "a-1"], &["", "1a", "a-", "A"]);
    }

    #[test]
    fn labels_and_keys_follow_upstream() {
        check(qualified_name, &["a", "A_b.c-d", "example.com/a"], &["", "/a", "a/", "a/b/c", "-a", "A.com/x", "a b"]);
        check(label_value, &["", "a", "A-b_c.d"], &["-", "a b", ".a", &"a".repeat(64)]);
        check(config_key, &["a", ".a", "-", "a.b_c-D"], &["", ".", "..", "..a", "a/b", "a b"]);
    }
    #[test]
    fn ports_variables_and_addresses_have_their_syntax() {
        check(port_name, &["http", "a1", "1a", "p-1"], &["", "80", "A", "a--b", "-a", "a-", "abcdefghijklmnop"]);
        check(environment_name, &["A", "a.b", "1", "A B"], &["", "A=B", "ü", "A\n"]);
        check(ip, &["10.0.0.1", "::1"], &["", "10.0.0", "a", "10.0.0.1/8"]);
    }
}
