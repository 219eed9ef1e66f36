//! Workloads: Deployments, ReplicaSets, DaemonSets and what belongs to them.

use super::common::{IMMUTABLE, NOT_NEGATIVE, Problems};
use super::{Case, pod};
use crate::orchestrator::api::kinds::json::{integer, text};
use crate::orchestrator::api::kinds::selector::LabelSelector;
use serde_json::Value;

pub fn deployment(case: &Case, problems: &mut Problems) {
    let spec = &case.new["spec"];
    workload(case, "deployment", problems);
    for name in ["replicas", "minReadySeconds", "revisionHistoryLimit", "progressDeadlineSeconds"] {
        problems.not_negative(spec, name, "spec");
    }
    let (deadline, ready) = (integer(spec, "/progressDeadlineSeconds"), integer(spec, "/minReadySeconds").unwrap_or_default());
    if deadline.is_some_and(|deadline| deadline <= ready) {
        problems.invalid("spec.progressDeadlineSeconds", &spec["progressDeadlineSeconds"], "must be greater than minReadySeconds");
    }
    let strategy = &spec["strategy"];
    problems.one_of(strategy, "type", "spec.strategy", &["Recreate", "RollingUpdate"]);
    match (text(strategy, "/type"), strategy.get("rollingUpdate")) {
        ("Recreate", Some(_)) => {
            problems.forbidden("spec.strategy.rollingUpdate", "may not be specified when strategy `type` is 'Recreate'");
        }
        ("RollingUpdate", Some(rolling)) => rolling_update(rolling, "spec.strategy.rollingUpdate", problems),
        _ => {}
    }
}

pub fn replica_set(case: &Case, problems: &mut Problems) {
    workload(case, "replica set", problems);
    for name in ["replicas", "minReadySeconds"] {
        problems.not_negative(&case.new["spec"], name, "spec");
    }
}

pub fn daemon_set(case: &Case, problems: &mut Problems) {
    let spec = &case.new["spec"];
    workload(case, "daemonset", problems);
    for name in ["minReadySeconds", "revisionHistoryLimit"] {
        problems.not_negative(spec, name, "spec");
    }
    let strategy = &spec["updateStrategy"];
    problems.one_of(strategy, "type", "spec.updateStrategy", &["RollingUpdate", "OnDelete"]);
    if let ("RollingUpdate", Some(rolling)) = (text(strategy, "/type"), strategy.get("rollingUpdate")) {
        let path = "spec.updateStrategy.rollingUpdate";
        let (unavailable, surge) = (amount(rolling, "maxUnavailable", path, problems), amount(rolling, "maxSurge", path, problems));
        match (unavailable, surge) {
            (Some(0), Some(0)) => {
                problems.invalid(format!("{path}.maxUnavailable"), &rolling["maxUnavailable"], "cannot be 0 when maxSurge is 0");
            }
            (Some(some), Some(more)) if some > 0 && more > 0 => {
                problems.invalid(format!("{path}.maxSurge"), &rolling["maxSurge"], "may not be set when maxUnavailable is non-zero");
            }
            _ => {}
        }
    }
}

/// Selector and template, and that the one selects what the other makes.
fn workload(case: &Case, kind: &str, problems: &mut Problems) {
    let spec = &case.new["spec"];
    match spec.get("selector").filter(|selector| selector.is_object()) {
        None => problems.required("spec.selector", ""),
        Some(selector) => {
            problems.label_selector(selector, "spec.selector");
            match LabelSelector::from_value(Some(selector)) {
                Ok(Some(parsed)) if parsed.is_empty() => {
                    problems.invalid("spec.selector", selector, &format!("empty selector is invalid for {kind}"));
                }
                Ok(Some(parsed)) => {
                    let labels = spec.pointer("/template/metadata/labels");
                    if !parsed.matches_labels(labels) {
                        let shown = labels.cloned().unwrap_or_else(|| Value::Object(Default::default()));
                        problems.invalid("spec.template.metadata.labels", &shown, "`selector` does not match template `labels`");
                    }
                }
                // The selector's own problems have been named already.
                _ => {}
            }
        }
    }
    let title = match kind {
        "deployment" => "Deployment",
        "daemonset" => "DaemonSet",
        _ => "ReplicaSet",
    };
    pod::template(&spec["template"], "spec.template", title, problems);
    if let Some(old) = case.old {
        problems.immutable(spec.get("selector"), old.pointer("/spec/selector"), "spec.selector");
    }
}

fn rolling_update(rolling: &Value, path: &str, problems: &mut Problems) {
    let unavailable = amount(rolling, "maxUnavailable", path, problems);
    let surge = amount(rolling, "maxSurge", path, problems);
    if (unavailable, surge) == (Some(0), Some(0)) {
        problems.invalid(format!("{path}.maxUnavailable"), &rolling["maxUnavailable"], "may not be 0 when `maxSurge` is 0");
    }
    if rolling["maxUnavailable"].is_string() && unavailable.is_some_and(|percent| percent > 100) {
        problems.invalid(format!("{path}.maxUnavailable"), &rolling["maxUnavailable"], "must not be greater than 100%");
    }
}

/// A number, or a percentage's number.
fn amount(object: &Value, name: &str, path: &str, problems: &mut Problems) -> Option<i64> {
    let value = object.get(name)?;
    let field = format!("{path}.{name}");
    match value {
        Value::String(text) => {
            let digits = text.strip_suffix('%').filter(|digits| !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()));
            if digits.is_none() {
                let detail = "a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%',  or '93%', regex used for validation is '[0-9]+%')";
                problems.invalid(field, value, detail);
            }
            digits?.parse().ok()
        }
        value => {
            let number = value.as_i64()?;
            if number < 0 {
                problems.invalid(field, value, NOT_NEGATIVE);
            }
            Some(number)
        }
    }
}

pub fn controller_revision(case: &Case, problems: &mut Problems) {
    if integer(case.new, "/revision").is_some_and(|revision| revision < 0) {
        problems.invalid("revision", &case.new["revision"], NOT_NEGATIVE);
    }
    if let Some(old) = case.old
        && case.new.get("data") != old.get("data")
    {
        problems.invalid("data", &case.new["data"], IMMUTABLE);
    }
}

pub fn scale(case: &Case, problems: &mut Problems) {
    problems.not_negative(&case.new["spec"], "replicas", "spec");
}

#[cfg(test)]
mod tests {
    use super::super::tests::problems;
    use serde_json::{Value, json};

    fn workload() -> Value {
        json!({"spec": {"selector": {"matchLabels": {"app": "web"}}, "template": {"metadata": {"labels": {"app": "web"}},
            "spec": {"containers": [{"name": "c", "image": "a"}]}}}})
    }
    fn check(kind: &str, change: fn(&mut Value), expected: &[&str]) {
        let mut object = workload();
        change(&mut object);
        assert_eq!(problems("apps", kind, object, None), expected, "{kind}");
    }

    #[test]
    fn the_selector_selects_what_the_template_makes() {
        for kind in ["Deployment", "ReplicaSet", "DaemonSet"] {
            check(kind, |_| {}, &[]);
            check(
                kind,
                |object| object["spec"]["template"]["metadata"]["labels"] = json!({"app": "db"}),
                &["spec.template.metadata.labels: Invalid value: {\"app\":\"db\"}: `selector` does not match template `labels`"],
            );
            check(
                kind,
                |object| {
                    object["spec"].as_object_mut().expect("a map").remove("selector");
                },
                &["spec.selector: Required value"],
            );
            check(
                kind,
                |object| object["spec"]["template"]["spec"]["restartPolicy"] = "Never".into(),
                &["spec.template.spec.restartPolicy: Unsupported value: \"Never\": supported values: \"Always\""],
            );
        }
        check(
            "Deployment",
            |object| object["spec"]["selector"] = json!({}),
            &["spec.selector: Invalid value: {}: empty selector is invalid for deployment"],
        );
    }

    #[test]
    fn the_selector_stays() {
        let mut new = workload();
        new["spec"]["selector"]["matchLabels"] = json!({"app": "web", "x": "y"});
        new["spec"]["template"]["metadata"]["labels"] = json!({"app": "web", "x": "y"});
        let found = problems("apps", "Deployment", new, Some(workload()));
        assert_eq!(found, ["spec.selector: Invalid value: {\"matchLabels\":{\"app\":\"web\",\"x\":\"y\"}}: field is immutable"]);
    }

    #[test]
    fn counts_and_rolling_updates_make_sense() {
        check(
            "Deployment",
            |object| object["spec"]["replicas"] = json!(-1),
            &["spec.replicas: Invalid value: -1: must be greater than or equal to 0"],
        );
        check(
            "ReplicaSet",
            |object| object["spec"]["replicas"] = json!(-1),
            &["spec.replicas: Invalid value: -1: must be greater than or equal to 0"],
        );
        check(
            "Deployment",
            |object| object["spec"]["strategy"] = json!({"type": "Recreate", "rollingUpdate": {}}),
            &["spec.strategy.rollingUpdate: Forbidden: may not be specified when strategy `type` is 'Recreate'"],
        );
        check(
            "Deployment",
            |object| object["spec"]["strategy"] = json!({"rollingUpdate": {"maxSurge": 0, "maxUnavailable": "0%"}}),
            &["spec.strategy.rollingUpdate.maxUnavailable: Invalid value: \"0%\": may not be 0 when `maxSurge` is 0"],
        );
        check(
            "Deployment",
            |object| object["spec"]["strategy"] = json!({"rollingUpdate": {"maxSurge": "x%", "maxUnavailable": "200%"}}),
            &[
                "spec.strategy.rollingUpdate.maxSurge: Invalid value: \"x%\": a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%',  or '93%', regex used for validation is '[0-9]+%')",
                "spec.strategy.rollingUpdate.maxUnavailable: Invalid value: \"200%\": must not be greater than 100%",
            ],
        );
        check(
            "Deployment",
            |object| object["spec"]["strategy"] = json!({"type": "Roll"}),
            &["spec.strategy.type: Unsupported value: \"Roll\": supported values: \"Recreate\", \"RollingUpdate\""],
        );
        check(
            "DaemonSet",
            |object| object["spec"]["updateStrategy"] = json!({"rollingUpdate": {"maxUnavailable": 0}}),
            &["spec.updateStrategy.rollingUpdate.maxUnavailable: Invalid value: 0: cannot be 0 when maxSurge is 0"],
        );
    }
}
