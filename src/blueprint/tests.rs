//! Stories of reading blueprints: what loads, and everything that is said about what does not.

pub(super) mod damage;

use super::load::{Entry, Files, Loaded, from_object, from_path, from_text};
use super::manifests::unjudged;
use super::{Problems, starter};
use crate::orchestrator::api::kinds::refusals;
use proptest::prelude::*;
use serde_json::json;
use std::collections::BTreeMap;
use std::io;
use std::path::Path;

const GOOD: &str = "apiVersion: kprov.dev/v1
kind: Blueprint
metadata: {name: shop}
spec:
  provider: local
  machines:
    - {name: control, role: control-plane, count: 1}
";

/// Files in memory; a folder is every path that others start with.
struct Memory(BTreeMap<&'static str, Vec<u8>>);

impl Files for Memory {
    fn look(&self, path: &Path) -> io::Result<Entry> {
        let path = path.to_string_lossy();
        if path == "pipe" {
            return Ok(Entry::Other);
        }
        if self.0.contains_key(path.as_ref()) {
            return Ok(Entry::File);
        }
        let folder = format!("{}/", path.trim_end_matches('/'));
        if self.0.keys().any(|name| name.starts_with(&folder)) { Ok(Entry::Folder) } else { Err(io::ErrorKind::NotFound.into()) }
    }
    fn read(&self, path: &Path, limit: u64) -> io::Result<Vec<u8>> {
        let bytes = self.0.get(path.to_string_lossy().as_ref()).ok_or(io::ErrorKind::NotFound)?;
        Ok(bytes.iter().copied().take(limit as usize).collect())
    }
    fn list(&self, folder: &Path) -> io::Result<Vec<String>> {
        let folder = format!("{}/", folder.display());
        Ok(self.0.keys().filter_map(|name| name.strip_prefix(&folder)).map(String::from).collect())
    }
}

fn files() -> Memory {
    let service = |name: &str, port: u16| {
        format!("apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: shop}}\nspec: {{ports: [{{port: {port}}}]}}\n")
    };
    let web = format!("---\n---\n{}---\n{}", service("web", 80), service("admin", 8443));
    let list = json!({"apiVersion": "v1", "kind": "List", "items": [
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "one"}}, {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "two"}}]});
    Memory(BTreeMap::from([
        ("web.yaml", web.into_bytes()),
        ("folder/b.yml", b"apiVersion: v1\nkind: ConfigMap\nmetadata: {name: b}\ndata: {mode: \"0644\"}\n".to_vec()),
        ("folder/a.json", list.to_string().into_bytes()),
        ("folder/notes.txt", b"not: read".to_vec()),
        ("broken.yaml", b"apiVersion: v1\nkind: [1\n".to_vec()),
        ("nameless.yaml", b"kind: 3\nmetadata: {generateName: x}\n---\n- 1\n---\napiVersion: v1\nkind: Pod\n".to_vec()),
        ("latin.yaml", b"a: 1\nb: \xe9\n".to_vec()),
        ("empty.yaml", b"# nothing\n".to_vec()),
        ("huge.yaml", vec![b'#'; (3 << 20) + 1]),
        ("demo.tar", b"archive".to_vec()),
        ("blank/readme.md", Vec::new()),
    ]))
}

fn load(text: &str) -> Result<Loaded, Problems> {
    from_text(text, Path::new("shop.yaml"), &files())
}

/// The problems of GOOD with `spec` added or replaced, one per line: place, message, hint.
fn check(text: &str, expected: &[&str]) {
    let problems = load(text).err().map_or(vec![], |problems| problems.0);
    let lines: Vec<String> = problems
        .iter()
        .map(|problem| {
            let file = problem.file.trim_start_matches("shop.yaml");
            let hint = problem.hint.as_ref().map(|hint| format!(" ({hint})")).unwrap_or_default();
            format!(
                "{file}{}:{} {}{hint}",
                if file.is_empty() { "" } else { ":" }.to_string() + &problem.line.to_string(),
                problem.column,
                problem.message
            )
        })
        .collect();
    assert_eq!(lines, expected, "\n{text}");
}

/// GOOD with more lines under `spec`; they start on line 8.
fn with(more: &str) -> String {
    format!("{GOOD}{more}")
}

/// GOOD with other machines; they start on line 7.
fn machines(lines: &str) -> String {
    let head = GOOD.split_once("    - ").expect("a machine").0;
    format!("{head}{lines}")
}

#[test]
fn what_the_cluster_would_refuse_is_told_where_it_stands() {
    let folder = tempfile::tempdir().expect("a folder");
    let manifest = "apiVersion: v1\nkind: List\nitems:\n  - apiVersion: v1\n    kind: Service\n    metadata: {name: web}\n    spec:\n      ports:\n        - {port: 80}\n        - {name: tls, port: 99999}\n";
    std::fs::write(folder.path().join("web.yaml"), manifest).expect("written");
    let inline = "    - {apiVersion: apps/v1, kind: StatefulSet, metadata: {name: db}}\n    - web.yaml\n";
    let file = folder.path().join("blueprint.yaml");
    std::fs::write(&file, format!("{GOOD}  workloads:\n{inline}")).expect("written");
    let problems = from_path(&file, &refusals).expect_err("refused").0;
    let told: Vec<_> =
        problems.iter().map(|problem| (problem.line, problem.column, problem.path.as_str(), problem.message.as_str())).collect();
    assert_eq!(
        told,
        [
            (9, 35, "spec.workloads[0].kind", "this cluster does not serve apps/v1 StatefulSet"),
            (9, 11, "items[0].spec.ports[0].name", "Required value"),
            (10, 29, "items[0].spec.ports[1].port", "Invalid value: 99999: must be between 1 and 65535, inclusive"),
        ]
    );
}

#[test]
fn examples_and_the_starter_load_without_problems() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("blueprints");
    let mut blueprints = 0;
    for entry in std::fs::read_dir(&folder).expect("blueprints/ is there") {
        let path = entry.expect("readable").path();
        if std::fs::read_to_string(&path).expect("text").contains("kind: Blueprint") {
            let loaded = from_path(&path, &refusals).unwrap_or_else(|problems| panic!("{problems}"));
            assert_eq!(loaded.warnings, Vec::<String>::new());
            blueprints += 1;
        }
    }
    assert!(blueprints > 0);
    let loaded = load(&starter::text("my-cluster")).unwrap_or_else(|problems| panic!("{problems}"));
    assert_eq!(loaded.blueprint.metadata.name, "my-cluster");
    assert_eq!(loaded.blueprint.spec.workloads.len(), 3);
}

#[test]
fn manifests_become_objects_in_the_order_of_their_files() {
    let inline = "    - {apiVersion: v1, kind: ConfigMap, metadata: {name: here}, data: {mode: 0644}}\n";
    let loaded = load(&with(&format!("  images: [demo.tar]\n  workloads:\n    - web.yaml\n    - folder\n{inline}"))).expect("good");
    let names: Vec<_> = loaded.blueprint.spec.workloads.iter().map(|object| object["metadata"]["name"].as_str().unwrap_or("?")).collect();
    assert_eq!(names, ["web", "admin", "one", "two", "b", "here"]);
    assert_eq!(loaded.blueprint.spec.workloads[5]["data"]["mode"], 420);
    assert_eq!(loaded.images, [Path::new("demo.tar")]);
}

#[test]
fn defaults_are_filled_in() {
    let blueprint = load(GOOD).expect("good").blueprint;
    let size = &blueprint.spec.machines[0].size;
    assert_eq!((size.cpu_millis(), size.memory_bytes(), size.disk_bytes()), (1000, 1 << 30, 10 << 30));
}

#[test]
fn structure_mistakes_come_all_at_once() {
    check(
        "apiVersion: kprov.dev/v2\nkind: Blueprint\nmetadata: {nam: shop}\nspec:\n  provider: lokal\n  machine:\n    - {}\n  images: demo.tar\n  loadbalancers: []\n",
        &[
            "1:13 apiVersion is `kprov.dev/v2` (a blueprint says `apiVersion: kprov.dev/v1`)",
            "3:11 `name` is missing in `metadata` (The cluster's name: a DNS label of at most 40 characters)",
            "3:12 unknown field `nam` in `metadata` (did you mean `name`?)",
            "5:3 `machines` is missing in `spec` (Groups of equal machines, each with a name, a role and a count)",
            "5:13 `lokal` is no provider (did you mean `local`?)",
            "6:3 unknown field `machine` in `spec` (did you mean `machines`?)",
            "8:11 `spec.images` must be a list, not a text",
            "9:3 unknown field `loadbalancers` in `spec` (did you mean `loadBalancers`?)",
        ],
    );
    check(
        &machines(
            "    - {name: 1, role: boss, count: \"2\", size: {cpus: 1, cpu: [1], memory: 1024}}\n    - {name: b, role: worker, count: {min: 1, max: 3}}\n    - name: c\n      name: d\n      role:\n      count: -1\n      color: red\n",
        ),
        &[
            "7:14 `spec.machines[0].name` must be a text, not a number (put it in quotes)",
            "7:23 `boss` is no role (known here: control-plane, worker)",
            "7:36 `spec.machines[0].count` must be a whole number, not a text (write the number without quotes)",
            "7:48 unknown field `cpus` in `spec.machines[0].size` (did you mean `cpu`?)",
            "7:62 `spec.machines[0].size.cpu` must be a number or a text, not a list",
            "7:75 `spec.machines[0].size.memory` must be a text, not a number (put it in quotes)",
            "8:38 `spec.machines[1].count` must be a whole number, not a map (count is one number for now; a range ({min, max}) cannot be kept yet)",
            "10:7 `name` is written twice (the first one is on line 9)",
            "11:11 `spec.machines[2].role` must be a text, not nothing (give it a value or remove the field)",
            "12:14 -1 is out of range: count goes from 0 to 1000",
            "13:7 unknown field `color` in `spec.machines[2]` (known here: count, name, role, size)",
        ],
    );
}

#[test]
fn what_is_no_blueprint_says_so_once() {
    check("", &["0:0 the file is empty (`kprov init` writes a blueprint to start from)"]);
    check("[1, 2]", &["1:1 the blueprint must be a map, not a list"]);
    check(
        "apiVersion: v1\nkind: Pod\nmetadata: {name: x}\n",
        &["2:7 this is of kind Pod, not a blueprint (a blueprint says `kind: Blueprint`; manifests belong to spec.workloads)"],
    );
    check("a: [1\nb: 2\n", &["2:2 this is not YAML: illegal placement of ':' indicator"]);
    check(
        "a:\n\tb: 1\n",
        &[
            "2:2 this is not YAML: tabs disallowed within this context (block indentation) (indent with spaces; YAML does not allow tabs there)",
        ],
    );
    check(
        &with("---\nkind: Pod\n"),
        &["9:1 a second document follows the blueprint (write manifests to files of their own and name them in spec.workloads)"],
    );
}

#[test]
fn control_planes_are_odd_and_present() {
    let none = "no machine has the role control-plane (one group needs `role: control-plane` and `count: 1`)";
    check(&machines("    - {name: w, role: worker, count: 1}\n"), &[&format!("7:5 {none}")]);
    check(&machines("    - {name: c, role: control-plane, count: 0}\n"), &[&format!("7:45 {none}")]);
    check(&machines("    []\n"), &["7:5 `spec.machines` is empty (at least one entry is needed)"]);
    check(
        &machines("    - {name: c, role: control-plane, count: 1}\n    - {name: d, role: control-plane, count: 3}\n"),
        &["8:45 4 control-plane machines: their store is not replicated yet, so there can be only one (use 1)"],
    );
    check(
        &machines("    - {name: c, role: control-plane, count: 3}\n"),
        &["7:45 3 control-plane machines: their store is not replicated yet, so there can be only one (use 1)"],
    );
    check(
        &machines("    - {name: c, role: control-plane, count: 1}\n    - {name: w, role: worker, count: 1000}\n"),
        &["7:5 1001 machines in all; a blueprint holds at most 1000"],
    );
    check(&machines("    - {name: c, role: control-plane, count: 1001}\n"), &["7:45 1001 is out of range: count goes from 0 to 1000"]);
}

#[test]
fn names_are_labels_and_used_once() {
    check(
        &machines(
            "    - {name: Web_1, role: control-plane, count: 1}\n    - {name: w, role: worker, count: 1}\n    - {name: w, role: worker, count: 1}\n",
        ),
        &[
            "7:14 `Web_1` is not a machine group's name: small letters, digits and dashes, a letter first, no dash last (for instance `web-1`)",
            "9:14 two machine groups have the name `w` (the first one is on line 8)",
        ],
    );
    check(
        &GOOD.replace("name: shop", &format!("name: {}", "s".repeat(41))),
        &["3:18 a cluster's name has at most 40 letters, this one has 41"],
    );
    check(
        &with(
            "  loadBalancers:\n    - {name: svc-a, listeners: []}\n    - {name: b, listeners: [{port: 80, service: a/b}, {port: 80, service: a}, {port: 0, service: a/b/c}]}\n  filesystems:\n    - {name: m, size: 1Gi}\n    - {name: m, size: 1Gb}\n  providers: {azure: {}}\n",
        ),
        &[
            "9:14 names that start with `svc-` belong to services of type LoadBalancer (choose another name)",
            "9:32 `spec.loadBalancers[0].listeners` is empty (at least one entry is needed)",
            "10:62 two listeners of one load balancer have port 80 (the first one is on line 10)",
            "10:86 0 is out of range: port goes from 1 to 65535",
            "10:98 `a/b/c` is not the name of a service (write namespace/service, for instance shop/web)",
            "13:14 two filesystems have the name `m` (the first one is on line 12)",
            "13:23 `1Gb` is not a quantity: `Gb` is no suffix; use m, k, M, G, T, P, E or Ki, Mi, Gi, Ti, Pi, Ei (for instance \"512Mi\" or \"10Gi\")",
            "14:15 unknown field `azure` in `spec.providers` (known here: aws, gcp, local, ssh)",
        ],
    );
}

#[test]
fn sizes_and_ranges_are_checked() {
    check(
        &machines("    - {name: c, role: control-plane, count: 1, size: {cpu: 0.05, memory: 100Mi, disk: -1}}\n"),
        &[
            "7:60 this is too small: cpu is at least 100m (for instance 2 or \"500m\")",
            "7:74 this is too small: memory is at least 256Mi (for instance \"512Mi\" or \"10Gi\")",
            "7:87 `spec.machines[0].size.disk` must be a text, not a number (put it in quotes)",
        ],
    );
    check(
        &with("  access: {from: [192.0.2.0/24, 192.0.2.1, 10.0.0.0/33, \"::/0\"]}\n"),
        &[
            "8:33 `192.0.2.1` is no address range (for this one address write 192.0.2.1/32)",
            "8:44 `10.0.0.0/33` is no address range (for instance 192.0.2.0/24 or 2001:db8::/32)",
        ],
    );
    let open = load(&with("  access: {from: [\"::/0\"]}\n")).expect("allowed");
    assert_eq!(open.warnings, ["spec.access.from: ::/0 lets everybody reach SSH and the API"]);
}

#[test]
fn what_may_be_left_out_is_checked_like_the_rest_even_for_other_providers() {
    let host = |fields: &str| with(&format!("  providers: {{ssh: {{hosts: [{{address: a, {fields}}}]}}}}\n"));
    check(&host("role: null, port: ~, privateAddress: \"::1\""), &[]);
    check(
        &host("role: true, port: 0, privateAddress: here"),
        &[
            "8:48 `spec.providers.ssh.hosts[0].role` must be a text, not true or false (put it in quotes)",
            "8:60 0 is out of range: port goes from 1 to 65535",
            "8:79 `here` is not an IP address (for instance 10.0.0.5)",
        ],
    );
    check(&host("role: wroker"), &["8:48 `wroker` is no role (did you mean `worker`?)"]);
}

#[test]
fn listeners_lead_to_services_of_the_workloads() {
    let listeners = |workloads: &str| {
        with(&format!(
            "  loadBalancers:\n    - name: web\n      listeners:\n        - {{port: 1, service: shop/web}}\n        - {{port: 2, service: shop/admin}}\n        - {{port: 3, service: shop/wep}}\n        - {{port: 4, service: web}}\n        - {{port: 5, service: shop/web, targetPort: 81}}\n{workloads}"
        ))
    };
    check(
        &listeners("  workloads: [web.yaml]\n"),
        &[
            "12:30 the service shop/admin has no port 80 (say `targetPort: 8443`)",
            "13:30 no workload defines the service shop/wep (did you mean `shop/web`?)",
            "14:30 no workload defines the service default/web (known here: shop/web, shop/admin)",
            "15:52 the service shop/web has no port 81 (say `targetPort: 80`)",
        ],
    );
    check(&listeners(""), &[]);
}

#[test]
fn unreadable_manifests_are_reported_where_they_are() {
    check(
        &with(
            "  images: [none.tar, folder]\n  workloads: [none.yaml, blank, pipe, 7, broken.yaml, nameless.yaml, latin.yaml, empty.yaml, huge.yaml, {kind: Pod}]\n",
        ),
        &[
            "8:12 there is no file `none.tar` (paths are relative to the blueprint's folder)",
            "8:22 `folder` is not a file (an image is an OCI archive, for instance from `docker save` or `skopeo copy`)",
            "9:15 there is no file `none.yaml` (paths are relative to the blueprint's folder)",
            "9:26 the folder `blank` holds no manifest (files that end in .yaml, .yml or .json are read)",
            "9:33 `pipe` is neither a file nor a folder",
            "9:39 a workload is a file, a folder or an object, not a number",
            "9:94 could not read huge.yaml: all manifests together are larger than 3 MiB",
            "9:105 the object has no apiVersion",
            "9:105 the object has no metadata.name (add `metadata: {name: ...}`)",
            "broken.yaml:2:7 this is not YAML: unclosed bracket '['",
            "nameless.yaml:1:1 the object has no apiVersion",
            "nameless.yaml:1:7 `kind` must be a text, not a number (put it in quotes)",
            "nameless.yaml:2:11 the object has no metadata.name (generateName would make a new object at every `kprov up`: write a name)",
            "nameless.yaml:4:1 a list is not a Kubernetes object (a manifest starts with apiVersion, kind and metadata)",
            "nameless.yaml:6:1 the object has no metadata.name (add `metadata: {name: ...}`)",
            "latin.yaml:2:4 this is not text in UTF-8",
            "empty.yaml:0:0 the file holds no object",
        ],
    );
}

#[test]
fn a_problem_is_shown_with_its_line_a_caret_and_a_hint() {
    let text = GOOD.replace("machines:", "machinez:");
    let shown = load(&text).expect_err("wrong").to_string();
    let expected = "error: `machines` is missing in `spec`\n --> shop.yaml:5:3\n  |\n5 |   provider: local\n  |   ^\n hint: Groups of equal machines, each with a name, a role and a count\n\nerror: unknown field `machinez` in `spec`\n --> shop.yaml:6:3\n  |\n6 |   machinez:\n  |   ^^^^^^^^\n hint: did you mean `machines`?\n";
    assert_eq!(shown, expected);
}

#[test]
fn an_object_of_the_cluster_is_checked_the_same_way() {
    let mut object = json!({"apiVersion": "kprov.dev/v1", "kind": "Blueprint", "metadata": {"name": "shop", "uid": "u", "resourceVersion": "7"},
        "spec": {"provider": "local", "machines": [{"name": "control", "role": "control-plane", "count": 1}]}, "status": {"x": 1}});
    assert_eq!(from_object(&object).expect("good").blueprint, load(GOOD).expect("good").blueprint);
    object["spec"]["machines"][0]["count"] = json!(2);
    let problems = from_object(&object).expect_err("even").0;
    assert_eq!((problems.len(), problems[0].path.as_str()), (1, "spec.machines[0].count"));
}

#[test]
fn missing_and_strange_files_are_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let message = |path: &Path| from_path(path, &unjudged).expect_err("refused").0[0].message.clone();
    assert_eq!(message(&folder.path().join("none.yaml")), "there is no such file");
    assert_eq!(message(folder.path()), "this is a folder, not a file");
    assert_eq!(message(Path::new("/dev/zero")), "this is not a regular file");
    let nonsense = folder.path().join("nonsense.yaml");
    std::fs::write(&nonsense, vec![b'{'; 10 << 20]).expect("written");
    assert_eq!(message(&nonsense), "the file is larger than 1 MiB");
}

#[test]
fn a_file_full_of_mistakes_ends_in_a_hundred_problems() {
    let fields: String = (0..50_000).map(|index| format!("f{index}: 1\n")).collect();
    assert_eq!(load(&fields).expect_err("wrong").0.len(), 100);
}
