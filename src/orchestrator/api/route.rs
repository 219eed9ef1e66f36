//! What a request's path means: a resource of some group, or a document. One parser for all paths.

use percent_encoding::percent_decode_str;

/// A resource's address.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Target {
    /// Empty for the core group.
    pub group: String,
    pub version: String,
    /// Empty for cluster-scoped kinds and for all namespaces.
    pub namespace: String,
    /// The plural: `pods`.
    pub resource: String,
    /// Empty for the collection.
    pub name: String,
    pub subresource: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Route {
    Resource(Target),
    /// A document, or nothing at all: the path's decoded segments.
    Document(Vec<String>),
}

/// Never panics, whatever the path.
pub fn parse(path: &str) -> Route {
    let segments: Vec<String> = path.split('/').filter(|segment| !segment.is_empty()).map(decode).collect();
    resource(&segments).map_or(Route::Document(segments), Route::Resource)
}

fn decode(segment: &str) -> String {
    percent_decode_str(segment).decode_utf8_lossy().into_owned()
}

fn resource(segments: &[String]) -> Option<Target> {
    // A decoded slash would change the key an object is kept under; no name can hold one.
    if segments.iter().any(|segment| segment.contains('/') || segment.contains('\0') || segment == "." || segment == "..") {
        return None;
    }
    let (group, version, rest) = match segments {
        [api, version, rest @ ..] if api == "api" => ("", version, rest),
        [apis, group, version, rest @ ..] if apis == "apis" => (group.as_str(), version, rest),
        _ => return None,
    };
    let mut target = Target { group: group.into(), version: version.clone(), ..Target::default() };
    let rest = match rest {
        [] => return None,
        // `namespaces/x/status` speaks of the namespace, `namespaces/x/pods` of what is in it.
        [kind, name, tail @ ..] if kind == "namespaces" && !tail.is_empty() && !namespace_part(&target.group, tail) => {
            target.namespace = name.clone();
            tail
        }
        [kind, name, ..] if kind == "namespaces" => {
            target.namespace = name.clone();
            rest
        }
        _ => rest,
    };
    let mut parts = rest.iter().cloned();
    target.resource = parts.next()?;
    target.name = parts.next().unwrap_or_default();
    target.subresource = parts.next().unwrap_or_default();
    // Nothing lies below a subresource here (upstream's proxy paths do).
    parts.next().is_none().then_some(target)
}

fn namespace_part(group: &str, tail: &[String]) -> bool {
    group.is_empty() && matches!(tail, [part] if part == "status" || part == "finalize")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// group version namespace resource name subresource, `-` for empty
    fn check(path: &str, expected: &str) {
        let Route::Resource(found) = parse(path) else { panic!("{path} is no resource") };
        let fields = [found.group, found.version, found.namespace, found.resource, found.name, found.subresource];
        let text: Vec<&str> = fields.iter().map(|field| if field.is_empty() { "-" } else { field }).collect();
        assert_eq!(text.join(" "), expected, "{path}");
    }

    #[test]
    fn every_shape_of_path_is_understood() {
        check("/api/v1/pods", "- v1 - pods - -");
        check("/api/v1/namespaces/shop/pods", "- v1 shop pods - -");
        check("/api/v1/namespaces/shop/pods/web/log", "- v1 shop pods web log");
        check("/api/v1/namespaces", "- v1 - namespaces - -");
        check("/api/v1/namespaces/shop", "- v1 shop namespaces shop -");
        check("/api/v1/namespaces/shop/", "- v1 shop namespaces shop -");
        check("/api/v1/namespaces/shop/finalize", "- v1 shop namespaces shop finalize");
        check("/apis/apps/v1/namespaces/shop/deployments/web/scale", "apps v1 shop deployments web scale");
        check("/api/v1/nodes/w%2D1", "- v1 - nodes w-1 -");
    }

    #[test]
    fn documents_and_nonsense_are_no_resources() {
        for path in ["/", "/api", "/api/v1", "/apis/apps/v1", "/version", "/api/v1/pods/a%2Fb", "/api/v1/nodes/..", "/api/v1/a/b/c/d/e"] {
            assert!(matches!(parse(path), Route::Document(_)), "{path}");
        }
    }

    proptest! {
        #[test]
        fn no_path_panics_and_no_part_can_leave_its_place(path in "(/[a-z%/.0-9\\PC]{0,12}){0,7}") {
            if let Route::Resource(target) = parse(&path) {
                for part in [target.namespace, target.resource, target.name, target.subresource] {
                    prop_assert!(!part.contains('/') && part != "..");
                }
            }
        }
    }
}
