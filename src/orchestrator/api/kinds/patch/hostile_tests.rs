//! Patches that nobody sane would send, of objects that people do write: made from the object's own places, so that they get far.

use super::tests::any_json;
use super::*;
use crate::orchestrator::api::kinds::Registry;
use crate::orchestrator::api::kinds::json::Object;
use crate::orchestrator::api::kinds::place::Place;
use crate::sys::fuzz::fuzz;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestCaseResult;
use serde_json::{Map, json};
use std::fmt;

/// Fields that no schema knows: people's own, and those of later versions.
const UNKNOWN: &str = "x-mine";

/// An object with [`UNKNOWN`] fields at its root, in its metadata, its spec, the elements of its lists and whatever it is a template of.
fn objects() -> [(&'static str, &'static str, Value); 3] {
    let mine = json!({"kept": [1, {"deep": null}], "text": "ü"});
    let spec = json!({
        UNKNOWN: mine, "restartPolicy": "Always", "nodeSelector": {"disk": "fast"},
        "containers": [
            {"name": "main", "image": "a:1", "args": ["demo"], UNKNOWN: mine, "ports": [{"name": "http", "containerPort": 8080, "protocol": "TCP"}],
             "env": [{"name": "A", "value": "1"}, {"name": "B", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
             "volumeMounts": [{"name": "data", "mountPath": "/data", UNKNOWN: 1}], "resources": {"limits": {"memory": "64Mi"}}},
            {"name": "side", "image": "b:1", "readinessProbe": {"httpGet": {"path": "/", "port": "http"}, "periodSeconds": 1}},
        ],
        "volumes": [{"name": "data", "emptyDir": {}}],
        "tolerations": [{"key": "a", "operator": "Exists", "effect": "NoSchedule"}],
    });
    let metadata = json!({"name": "a", "labels": {"app": "a"}, "annotations": {"b": "c"}, "finalizers": ["kprov.dev/one", "kprov.dev/two"], UNKNOWN: mine});
    let pod = json!({"metadata": metadata, "spec": spec, UNKNOWN: mine});
    let template = json!({"metadata": {"labels": {"app": "a"}, UNKNOWN: mine}, "spec": spec, UNKNOWN: mine});
    let strategy = json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": "25%"}});
    let deployment = json!({"metadata": metadata, UNKNOWN: mine,
        "spec": {"replicas": 3, "selector": {"matchLabels": {"app": "a"}}, "strategy": strategy, "template": template, UNKNOWN: mine}});
    let ports = json!([{"name": "http", "port": 80, "targetPort": "http", UNKNOWN: mine}, {"name": "dns", "port": 53, "protocol": "UDP"}]);
    let service = json!({"metadata": metadata, "spec": {"selector": {"app": "a"}, "ports": ports, UNKNOWN: mine}, UNKNOWN: mine});
    [("", "Pod", pod), ("apps", "Deployment", deployment), ("", "Service", service)]
}

/// One patch of one object.
#[derive(Clone)]
pub struct Case {
    pub group: &'static str,
    pub kind: &'static str,
    pub object: Value,
    pub format: PatchType,
    pub patch: Value,
}

/// As JSON, to be sent again by hand.
impl fmt::Debug for Case {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{:?} patch {} of the {} {}", self.format, self.patch, self.kind, self.object)
    }
}

/// One change: what, where, from where, and a new value. Places are taken modulo those that there are.
type Step = (u8, usize, usize, Value);

fn steps(most: usize) -> impl Strategy<Value = Vec<Step>> {
    vec((0..16_u8, 0..10_000_usize, 0..10_000_usize, values()), 0..most)
}

fn values() -> impl Strategy<Value = Value> {
    let edges = select(vec![
        json!(u64::MAX),
        json!(i64::MIN),
        json!(-1),
        json!(0.5),
        json!(""),
        json!("\u{0}\u{7f}\u{2028}\u{10ffff}\"\\"),
        json!("x".repeat(300)),
        json!({}),
        json!([]),
        (0..90).fold(json!(1), |inner, _| json!([inner])),
        json!({"$patch": "delete"}),
        json!({"$patch": "replace", "name": "new"}),
        json!([{"$patch": "replace"}, {"name": "new"}]),
        json!([{"name": "main", "$patch": "delete"}]),
        json!({"$retainKeys": ["name", "type"]}),
        json!({"$setElementOrder/containers": [{"name": "side"}, {"name": "main"}]}),
        json!({"$deleteFromPrimitiveList/finalizers": ["kprov.dev/one"]}),
    ]);
    prop_oneof![1 => Just(Value::Null), 2 => edges, 2 => any_json()]
}

/// Pods, deployments and services with patches; `damaged`: the objects have been changed without sense, too.
pub fn cases(damaged: bool) -> impl Strategy<Value = Case> {
    let formats = select(vec![PatchType::Json, PatchType::Merge, PatchType::Strategic]);
    let damages = steps(if damaged { 4 } else { 1 });
    (select(objects().to_vec()), damages, formats, steps(9)).prop_map(|((group, kind, sound), damages, format, steps)| {
        let mut object = sound.clone();
        json_patch_of(&mut object, &damages);
        // No object that came as JSON is deeper.
        let object = if depth(&object) > MAX_DEPTH { sound } else { object };
        let patch = match format {
            PatchType::Json => Value::Array(json_patch_of(&mut object.clone(), &steps)),
            PatchType::Merge => merge_patch_of(&object, &steps, false),
            PatchType::Strategic => merge_patch_of(&object, &steps, true),
        };
        Case { group, kind, object, format, patch }
    })
}

/// The pointers to all values, the root's first.
fn places(value: &Value) -> Vec<String> {
    let below = |name: String, inner: &Value| places(inner).into_iter().map(move |place| format!("/{name}{place}")).collect::<Vec<_>>();
    let inner: Vec<String> = match value {
        Value::Object(object) => object.iter().flat_map(|(name, inner)| below(name.replace('~', "~0").replace('/', "~1"), inner)).collect(),
        Value::Array(list) => list.iter().enumerate().flat_map(|(at, inner)| below(at.to_string(), inner)).collect(),
        _ => Vec::new(),
    };
    [String::new()].into_iter().chain(inner).collect()
}

/// Where the object has fields that no schema knows, outside of lists.
pub fn unknown_places(object: &Value) -> Vec<String> {
    let end = format!("/{UNKNOWN}");
    places(object)
        .into_iter()
        .filter(|place| place.ends_with(&end) && !place.split('/').any(|name| name.parse::<usize>().is_ok()))
        .collect()
}

/// Whether a merge patch says anything of this place: of it, of what is in it, or by replacing what it is in.
pub fn names(patch: &Value, place: &str) -> bool {
    let mut at = Some(patch);
    for name in place.split('/').skip(1) {
        match at {
            Some(Value::Object(fields)) => at = fields.get(name),
            _ => break,
        }
    }
    at.is_some()
}

/// Operations that mostly succeed one after the other, and what they make of the object.
fn json_patch_of(object: &mut Value, steps: &[Step]) -> Vec<Value> {
    let strange = [
        "/-",
        "/~",
        "/~2",
        "//",
        "no slash",
        "/spec/containers/01",
        "/spec/containers/99999999999999999999",
        "/metadata/labels/a~1b",
        "/a/b/c",
    ];
    let mut operations = Vec::new();
    for (what, place, other, value) in steps {
        let places = places(object);
        let (path, from) = (&places[place % places.len()], &places[other % places.len()]);
        let operation = match what {
            0 | 1 => json!({"op": "replace", "path": path, "value": value}),
            2 | 3 => json!({"op": "remove", "path": path}),
            4 => json!({"op": "add", "path": path, "value": value}),
            5 => json!({"op": "add", "path": format!("{path}/new"), "value": value}),
            6 => json!({"op": "add", "path": format!("{path}/-"), "value": value}),
            7 => json!({"op": "add", "path": format!("{path}/0"), "value": value}),
            8 => json!({"op": "copy", "from": from, "path": path}),
            9 | 10 => json!({"op": "copy", "from": from, "path": format!("{path}/-")}),
            11 => json!({"op": "copy", "from": from, "path": format!("{path}/copy")}),
            12 => json!({"op": "move", "from": from, "path": path}),
            13 => json!({"op": "test", "path": path, "value": object.pointer(path)}),
            14 => json!({"op": "test", "path": path, "value": value}),
            _ => json!({"op": "add", "path": strange[place % strange.len()], "value": value}),
        };
        let applied: Result<Patch, _> = serde_json::from_value(json!([operation]));
        let fine = applied.is_ok_and(|patch| json_patch::patch(object, &patch).is_ok());
        // One that fails ends the patch: now and then, and last.
        if fine || other % 16 == 0 {
            operations.push(operation);
        }
    }
    operations
}

/// What would set some of the object's places to null, to other parts of it, or to something new.
fn merge_patch_of(object: &Value, steps: &[Step], strategic: bool) -> Value {
    let places = places(object);
    let mut patch = json!({});
    for (what, place, other, value) in steps {
        let path = &places[place % places.len()];
        let mut names: Vec<&str> = path.split('/').skip(1).collect();
        let leaf = match what {
            0..4 => Value::Null,
            4..6 => object.pointer(&places[other % places.len()]).cloned().unwrap_or_default(),
            6..8 if strategic => {
                names.push("$patch");
                json!(["delete", "replace", "merge", "none"][other % 4])
            }
            8..10 => {
                names.push("new");
                value.clone()
            }
            _ => value.clone(),
        };
        // The patch itself is an object, or it would be refused at once.
        if !names.is_empty() {
            set(&mut patch, object, &names, leaf, strategic);
        }
    }
    patch
}

fn set(patch: &mut Value, current: &Value, names: &[&str], leaf: Value, strategic: bool) {
    let Some((first, rest)) = names.split_first() else { return *patch = leaf };
    let name = first.replace("~1", "/").replace("~0", "~");
    match current {
        Value::Object(fields) => {
            let missing = Value::Null;
            set(&mut object_at(patch)[&name], fields.get(&name).unwrap_or(&missing), rest, leaf, strategic);
        }
        Value::Array(list) if strategic && !rest.is_empty() => {
            let Some(element) = name.parse().ok().and_then(|at: usize| list.get(at)) else { return };
            let keys = ["name", "containerPort", "port", "mountPath"].into_iter();
            let identity: Object = keys.filter_map(|key| Some((key.to_string(), element.get(key)?.clone()))).collect();
            let mut change = Value::Object(identity);
            set(&mut change, element, rest, leaf, strategic);
            match patch {
                Value::Array(changes) => changes.push(change),
                _ => *patch = json!([change]),
            }
        }
        _ => object_at(patch)[&name] = leaf,
    }
}

fn object_at(value: &mut Value) -> &mut Value {
    if !value.is_object() {
        *value = json!({});
    }
    value
}

/// What holds for any patch that was taken: it is no larger than what went into it, and can be read again.
fn is_bounded(case: &Case, new: &Value) -> TestCaseResult {
    let text = new.to_string();
    let copied = if case.format == PatchType::Json { MAX_COPIED_BYTES } else { 0 };
    let most = case.object.to_string().len() + case.patch.to_string().len() + copied;
    prop_assert!(text.len() <= most, "{} bytes of at most {most}", text.len());
    prop_assert_eq!(&serde_json::from_str::<Value>(&text).expect("it can be read again"), new);
    Ok(())
}

/// RFC 7386, said another way than by its own recursion: what the patch names is as it says, all else is as it was.
fn is_merged(before: &Value, patch: &Object, after: &Value) -> TestCaseResult {
    let none = Map::new();
    let (before, after) = (before.as_object().unwrap_or(&none), after.as_object());
    prop_assert!(after.is_some(), "a merge gives an object");
    let after = after.unwrap_or(&none);
    for (name, old) in before.iter().filter(|(name, _)| !patch.contains_key(*name)) {
        prop_assert_eq!(after.get(name), Some(old), "{} was not named", name);
    }
    for (name, wanted) in patch {
        match wanted {
            Value::Null => prop_assert!(!after.contains_key(name), "{name} was to go"),
            Value::Object(wanted) => {
                is_merged(before.get(name).unwrap_or(&Value::Null), wanted, after.get(name).unwrap_or(&Value::Null))?;
            }
            wanted => prop_assert_eq!(after.get(name), Some(wanted), "{} was to be set", name),
        }
    }
    prop_assert!(after.keys().all(|name| before.contains_key(name) || patch.contains_key(name)), "nothing else appears");
    Ok(())
}

/// What a strategic patch does not name stays, in elements of lists that merge by a key, too.
fn unnamed_stays(place: Place, before: &Object, patch: &Object, after: &Object) -> TestCaseResult {
    if patch.contains_key("$patch") || patch.contains_key("$retainKeys") {
        return Ok(());
    }
    for (name, old) in before {
        let (inner, rule) = place.field(name);
        let ordered = patch.keys().any(|directive| directive.starts_with('$') && directive.ends_with(&format!("/{name}")));
        match (old, patch.get(name), after.get(name)) {
            _ if ordered => {}
            (old, None, new) => prop_assert_eq!(new, Some(old), "{} was not named", name),
            (Value::Object(old), Some(Value::Object(change)), Some(Value::Object(new))) => unnamed_stays(inner, old, change, new)?,
            (Value::Array(old), Some(Value::Array(change)), Some(Value::Array(new))) => {
                let Some(key) = rule.filter(|rule| rule.merges() && !rule.merge_key.is_empty()).map(|rule| rule.merge_key) else {
                    continue;
                };
                unnamed_elements_stay(inner.item(), key, old, change, new)?;
            }
            _ => {}
        }
    }
    Ok(())
}

fn unnamed_elements_stay(place: Place, key: &str, before: &[Value], change: &[Value], after: &[Value]) -> TestCaseResult {
    if change.iter().any(|element| element.get("$patch").is_some()) {
        return Ok(());
    }
    let of =
        |list: &'_ [Value], element: &Value| list.iter().filter(|other| other.get(key) == element.get(key)).cloned().collect::<Vec<_>>();
    for old in before {
        match (&of(before, old)[..], &of(change, old)[..], &of(after, old)[..]) {
            (_, [], new) => prop_assert!(new.contains(old), "{old} was not named"),
            ([Value::Object(old)], [Value::Object(change)], [Value::Object(new)]) => unnamed_stays(place, old, change, new)?,
            _ => {}
        }
    }
    Ok(())
}

fn holds(case: &Case) -> TestCaseResult {
    let row = Registry::builtin().find_kind(case.group, "v1", case.kind).expect("a kind");
    let patch = case.patch.to_string();
    let new = match apply(row, case.format, &case.object, patch.as_bytes()) {
        Ok(new) => new,
        Err(refused) => {
            prop_assert!([400, 422].contains(&refused.code) && !refused.message.is_empty(), "{refused:?}");
            return Ok(());
        }
    };
    is_bounded(case, &new)?;
    let Some(change) = case.patch.as_object() else { return Ok(()) };
    if case.format == PatchType::Merge {
        is_merged(&case.object, change, &new)?;
        prop_assert_eq!(apply(row, case.format, &new, patch.as_bytes()), Ok(new), "the same patch again changes nothing");
        return Ok(());
    }
    let place = Place::root(Schemas::builtin(), Schemas::builtin().of(row).expect("a built-in kind"));
    unnamed_stays(place, case.object.as_object().unwrap_or(&Map::new()), change, new.as_object().expect("an object"))
}

#[test]
fn fuzz_patches_are_bounded_and_leave_alone_what_they_do_not_name() {
    let bytes = vec(any::<u8>(), 0..40);
    let senseless = (0..Registry::builtin().all().len(), any_json(), any_json(), bytes);
    fuzz(&(cases(true), senseless), 2000, |(case, (row, current, patch, bytes))| {
        holds(&case)?;
        // No JSON at all makes a patch of any kind panic.
        for format in [PatchType::Json, PatchType::Merge, PatchType::Strategic] {
            let _ = apply(&Registry::builtin().all()[row], format, &current, patch.to_string().as_bytes());
            let _ = apply(&Registry::builtin().all()[row], format, &current, &bytes);
        }
        Ok(())
    });
}

/// Otherwise the other test could be full of patches that are refused, and find nothing.
#[test]
fn most_hostile_patches_of_sound_objects_are_taken() {
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    for format in [PatchType::Json, PatchType::Merge, PatchType::Strategic] {
        let cases = cases(false).prop_filter("of this format", move |case| case.format == format);
        let (mut taken, mut changed) = (0, 0);
        for _ in 0..200 {
            let case = cases.new_tree(&mut runner).expect("a case").current();
            let row = Registry::builtin().find_kind(case.group, "v1", case.kind).expect("a kind");
            let new = apply(row, format, &case.object, case.patch.to_string().as_bytes());
            taken += usize::from(new.is_ok());
            changed += usize::from(new.is_ok_and(|new| new != case.object));
        }
        assert!(taken >= 60 && changed >= 50, "{format:?}: {taken} taken, {changed} with an effect");
    }
}
