//! What the command line says to people and to scripts: words, data, exit codes, and Ctrl-C.

use crate::harness::{Operated, Story, assert_gone, http_get, json, text};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const MACHINES: [&str; 3] = ["control-1", "worker-1", "worker-2"];

#[test]
fn the_command_line_says_what_people_need() {
    let story = Story::new("cli");
    what_is_said_before_the_first_cluster(&story);
    let blueprint = story.example();
    let file = word(&blueprint);

    let up = json(&run(&story, &["up", file, "--yes", "-o", "json"], 0).stdout);
    what_a_cluster_is_asked(&story, &up);
    a_workload_that_cannot_run_is_named(&story, file);
    a_workload_that_is_refused_ends_the_wait(&story, file);
    a_listener_goes_and_another_takes_its_place(&story, file, &up);
    a_machine_that_is_away_is_missed(&story);

    let cluster = story.cluster();
    let down = run(&story, &["down", &story.name, "--yes"], 0);
    assert_eq!(down.stdout.lines().count(), 1, "{down:?}");
    assert!(down.stdout.starts_with(&format!("{} is gone after ", story.name)), "{down:?}");
    assert_gone(&cluster);
    assert!(listed(&story).is_none());
    assert!(run(&story, &["down", &story.name, "--yes"], 1).stderr.contains(&story.name));
}

#[test]
fn the_first_interrupt_finishes_what_is_begun_and_the_next_up_goes_on() {
    let story = Story::new("interrupt");
    let blueprint = story.example();
    let file = word(&blueprint);
    let said = interrupted(&story, &["up", file, "--yes"], "] created ");
    assert!(said.contains("stopping: nothing new is started"), "{said}");
    assert!(said.contains("nothing is in flight any more"), "{said}");
    assert!(said.contains("hint: run the same command again"), "{said}");
    assert!(!said.contains("created blueprint/"), "nothing new was to be started: {said}");
    let missing = said.lines().find(|line| line.contains("missing: ")).unwrap_or_else(|| panic!("what is missing was not said: {said}"));
    assert!(missing.contains("host/control-1") && missing.contains("blueprint/"), "{said}");

    // What was said is so, and what it advised works.
    let plan = run(&story, &["plan", file, "--exit-code"], 2).stdout;
    let (created, _) = said.split_once("stopping: ").expect("it was stopped");
    for id in created.lines().filter_map(|line| Some(line.split_once("] created ")?.1)) {
        assert!(!plan.contains(&format!("+ {id} ")), "{id} was created: {plan}");
    }
    run(&story, &["up", file, "--yes"], 0);
    run(&story, &["plan", file, "--exit-code"], 0);
    let cluster = story.cluster();
    run(&story, &["down", file, "--yes"], 0);
    assert_gone(&cluster);
}

fn what_is_said_before_the_first_cluster(story: &Story) {
    let broken = every_mistake_is_shown_with_its_place(story);
    let example = story.example();
    nothing_is_half_said_in_json(story, &example, &broken);
    let valid = run(story, &["validate", word(&example)], 0);
    let words = format!("is valid: cluster {}, 3 machines, 1 load balancer, 1 filesystem, ", story.name);
    assert!(valid.stdout.contains(&words), "{valid:?}");

    let schema = json(&run(story, &["schema"], 0).stdout);
    for field in ["apiVersion", "kind", "metadata", "spec"] {
        assert!(schema["properties"][field].is_object(), "{field} is missing: {schema}");
    }
    for field in ["provider", "access", "machines", "loadBalancers", "filesystems", "images", "workloads", "providers"] {
        assert!(schema["$defs"]["Spec"]["properties"][field].is_object(), "spec.{field} is missing: {schema}");
    }

    for name in ["shop", "null"] {
        let starter = story.write("starter.yaml", &run(story, &["init", name], 0).stdout);
        assert!(run(story, &["validate", word(&starter)], 0).stdout.contains(&format!("is valid: cluster {name}, ")));
    }
    let refused = run(story, &["init", "Bad_Name"], 1);
    assert!(refused.stdout.is_empty() && refused.stderr.contains("hint: for instance `bad-name`"), "{refused:?}");

    let completions = run(story, &["completions", "bash"], 0).stdout;
    assert!(completions.contains("complete -F _kprov") && completions.contains("kubeconfig"), "{completions}");
    assert!(!completions.contains("agent") && !completions.contains("server"), "what machines run is nobody's to type: {completions}");
    let script = story.write("completions.bash", &completions);
    assert!(Command::new("bash").arg("-n").arg(script).status().expect("bash starts").success());

    let doctor = run(story, &["doctor"], 0).stdout;
    assert!(doctor.contains("sshd: ") && doctor.lines().all(|line| line.starts_with("✓ ")), "{doctor}");
    let without = story.command().env("PATH", "/nowhere").arg("doctor").output().expect("kprov starts");
    let said = text(&without);
    assert!(said.contains("! kubectl: not installed\n  hint: apt-get install kubernetes-client"), "{said}");
    assert_eq!(without.status.code(), Some(0), "kprov does without kubectl: {said}");
    let findings = json(&run(story, &["doctor", "-o", "json"], 0).stdout);
    assert_eq!(findings.as_array().map(Vec::len), Some(doctor.lines().count()), "{findings}");

    let refused = run(story, &["up", word(&example)], 1);
    assert!(refused.stderr.contains("Plan: 10 to create") && refused.stderr.contains("hint: add --yes"), "{refused:?}");
    assert!(refused.stderr.lines().take_while(|line| !line.is_empty()).all(|line| line.chars().count() <= 80), "{refused:?}");
    run(story, &["plan", word(&example), "--exit-code"], 2);
    assert!(listed(story).is_none(), "nobody agreed, and yet it is remembered");
    assert!(!story.kubeconfig().parent().expect("a folder").exists(), "nobody agreed, and yet something stays");
    assert!(run(story, &["down", "no-such-cluster"], 1).stderr.contains("hint: kprov list shows the clusters"));
    assert!(run(story, &["status", "no-such-cluster"], 1).stderr.contains("could not find cluster no-such-cluster"));
}

/// With `-o json`, stdout is one whole document or nothing; what went wrong is told on stderr and by the exit code.
fn nothing_is_half_said_in_json(story: &Story, example: &Path, broken: &Path) {
    let (example, broken) = (word(example), word(broken));
    let failing = [
        ["up", example],
        ["up", broken],
        ["plan", broken],
        ["down", broken],
        ["status", "no-such-cluster"],
        ["down", "no-such-cluster"],
        ["plan", "no-such-file.yaml"],
    ];
    for arguments in failing {
        let refused = run(story, &[&arguments[..], &["-o", "json"]].concat(), 1);
        assert!(refused.stdout.is_empty() && refused.stderr.contains("error: "), "{arguments:?}: {refused:?}");
    }
    // Who cannot be asked takes nothing from the list of those who can.
    let nobody = [("AWS_ENDPOINT_URL", "http://127.0.0.1:9"), ("AWS_REGION", "eu-west-1"), ("AWS_MAX_ATTEMPTS", "1")];
    let keys = [("AWS_ACCESS_KEY_ID", "none"), ("AWS_SECRET_ACCESS_KEY", "none")];
    let list = story.command().args(["list", "--provider", "aws", "-o", "json"]).envs(nobody).envs(keys).output().expect("kprov starts");
    assert!(!list.status.success() && String::from_utf8_lossy(&list.stderr).contains("error: could not ask aws"), "{}", text(&list));
    assert!(json(&String::from_utf8_lossy(&list.stdout)).is_array());
}

fn every_mistake_is_shown_with_its_place(story: &Story) -> PathBuf {
    let broken = story.write(
        "broken.yaml",
        "apiVersion: kprov.dev/v1
kind: Blueprint
metadata: {name: Bad_Name}
spec:
  provider: locall
  machines:
    - {name: control, role: control-plane, count: two}
    - {name: worker, role: worker, count: 2, sise: {cpu: 1}}
  workloads: [missing.yaml]
",
    );
    let refused = run(story, &["validate", word(&broken)], 1);
    assert!(refused.stdout.is_empty(), "{refused:?}");
    let at = |place: &str, source: &str, caret: &str, words: &str| {
        let shown = format!(" --> {}:{place}\n  |\n{source}\n{caret}\n", broken.display());
        assert!(refused.stderr.contains(&shown) && refused.stderr.contains(words), "{place}, {words}: {}", refused.stderr);
    };
    at("3:18", "3 | metadata: {name: Bad_Name}", "  |                  ^^^^^^^^", "hint: for instance `bad-name`");
    at("5:13", "5 |   provider: locall", "  |             ^^^^^^", "hint: did you mean `local`?");
    at(
        "7:51",
        "7 |     - {name: control, role: control-plane, count: two}",
        "  |                                                   ^^^",
        "must be a whole number",
    );
    at(
        "8:46",
        "8 |     - {name: worker, role: worker, count: 2, sise: {cpu: 1}}",
        "  |                                              ^^^^",
        "hint: did you mean `size`?",
    );
    at("9:15", "9 |   workloads: [missing.yaml]", "  |               ^^^^^^^^^^^^", "there is no file `missing.yaml`");
    assert_eq!(refused.stderr.matches("error: ").count(), 5, "{}", refused.stderr);
    assert_eq!(run(story, &["up", word(&broken), "--yes"], 1).stderr, refused.stderr, "up says what validate says");

    let answer = json(&run(story, &["validate", word(&broken), "-o", "json"], 1).stdout);
    let places: Vec<_> =
        answer["problems"].as_array().into_iter().flatten().map(|one| (one["line"].as_u64(), one["column"].as_u64())).collect();
    assert_eq!(places, [(3, 18), (5, 13), (7, 51), (8, 46), (9, 15)].map(|(line, column)| (Some(line), Some(column))), "{answer}");
    broken
}

/// `up` is what the command said in JSON.
fn what_a_cluster_is_asked(story: &Story, up: &Value) {
    let name = &story.name;
    let listed = listed(story).expect("the cluster is listed");
    assert_eq!((&listed["provider"], &listed["uid"], &listed["exists"]), (&"local".into(), &up["uid"], &true.into()));

    let path = PathBuf::from(up["kubeconfig"].as_str().expect("where the kubeconfig is"));
    assert_eq!(run(story, &["kubeconfig", name], 0).stdout, std::fs::read_to_string(&path).expect("the kubeconfig"));
    assert_eq!(std::fs::metadata(&path).expect("the kubeconfig").permissions().mode() & 0o7777, 0o600);

    run(story, &["ssh", name, "worker-1", "--", "sh", "-c", "exit 7"], 7);
    assert_eq!(run(story, &["ssh", name, "worker-2", "--", "hostname"], 0).stdout, "worker-2\n");
    let unknown = run(story, &["ssh", name, "worker-9", "--", "true"], 1).stderr;
    assert!(unknown.contains("could not find machine worker-9") && unknown.contains(&MACHINES.join(", ")), "{unknown}");

    let status = run(story, &["status", name], 0).stdout;
    assert!(status.starts_with(&format!("{name}: as wanted (writer: cluster)\n")), "{status}");
    assert!(status.contains("nodes: 3 of 3 ready\nwaiting for nothing\n"), "{status}");
    for machine in MACHINES {
        let is_ready = |line: &str| line.contains(&format!("machine/{machine} ")) && line.ends_with(" ready");
        assert!(status.lines().any(is_ready), "{machine}: {status}");
    }
    // Only this cluster is in the story's own state folder.
    assert_eq!(run(story, &["status"], 0).stdout, status);
}

/// An image that is nowhere: the rollout keeps what serves and never ends.
fn a_workload_that_cannot_run_is_named(story: &Story, file: &str) {
    let manifest = std::fs::read_to_string(story.path("web.yaml")).expect("web.yaml");
    let nowhere = manifest.replace("kprov.dev/kprov:latest", "example.dev/nowhere:1").replace("IfNotPresent", "Never");
    assert!(nowhere.contains("imagePullPolicy: Never"), "the example has changed: {nowhere}");
    story.write("web.yaml", &nowhere);

    let said = interrupted(story, &["up", file, "--yes"], "ErrImageNeverPull");
    assert!(said.contains("hint: the cluster goes on by itself; run the same command again to wait for it"), "{said}");
    let status = run(story, &["status", &story.name], 5).stdout;
    assert!(status.starts_with(&format!("{}: not as wanted yet ", story.name)), "{status}");
    assert!(status.contains("waiting for deployment/shop/web: ") && status.contains("ErrImageNeverPull"), "{status}");

    let logs = story.kubectl(&["logs", "-n", "shop", "-l", "app=web", "-c", "web"]);
    assert!(text(&logs).contains("is waiting to start: ErrImageNeverPull"), "{}", text(&logs));

    let begun = Instant::now();
    let late = run(story, &["up", file, "--yes", "--timeout", "2"], 5).stderr;
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?} for a timeout of 2 s", begun.elapsed());
    let error = late.split_once("error: could not see everything served in time; still waiting for:\n").map(|(_, error)| error);
    assert!(error.is_some_and(|error| error.starts_with("  deployment/shop/web: ")), "{late}");
    assert!(late.contains("hint: kprov status shows what it waits for"), "{late}");
}

/// What the API will never take is no reason to wait for ten minutes.
fn a_workload_that_is_refused_ends_the_wait(story: &Story, file: &str) {
    let manifest = std::fs::read_to_string(story.path("web.yaml")).expect("web.yaml");
    let other = manifest.replace("matchLabels: {app: web}", "matchLabels: {app: other}");
    story.write("web.yaml", &other);
    let said = run(story, &["up", file, "--yes"], 1).stderr;
    assert!(
        said.contains("web.yaml:31:") && said.contains("`selector` does not match template `labels`"),
        "known without a cluster: {said}"
    );
    // Sound by itself; but what is there has another selector, and that never changes.
    let refused = other.replace("      labels: {app: web}", "      labels: {app: other}");
    assert_eq!(refused.matches("{app: other}").count(), 2, "the example has changed: {refused}");
    story.write("web.yaml", &refused);
    let said = run(story, &["up", file, "--yes", "-o", "json"], 1);
    assert!(said.stdout.is_empty(), "{said:?}");
    assert!(said.stderr.contains("error: could not apply all workloads; the API refuses:\n  deployment/shop/web: "), "{said:?}");
    assert!(said.stderr.contains("hint: change these manifests and run kprov up again"), "{said:?}");
    // What is served is served still, and the next version is taken.
    story.example();
    run(story, &["up", file, "--yes"], 0);
}

/// Node ports go by a listener's place in the blueprint: what comes after one that goes moves up.
fn a_listener_goes_and_another_takes_its_place(story: &Story, file: &str, up: &Value) {
    let address = up["loadBalancers"][0]["address"].as_str().expect("an address");
    let example = std::fs::read_to_string(file).expect("the blueprint");
    let listeners = |ports: &[u16]| {
        let listeners: Vec<String> = ports.iter().map(|port| format!("{{port: {port}, service: shop/web}}")).collect();
        let changed = example.replace("{port: 80, service: shop/web}", &listeners.join(", "));
        std::fs::write(file, changed).expect("the blueprint");
        run(story, &["up", file, "--yes"], 0);
    };
    listeners(&[80, 81]);
    listeners(&[81]);
    let answer = http_get(&format!("{address}:81"), "/").expect("it answers as soon as up has ended");
    assert!(answer.contains("Hello from web-"), "{answer}");
    assert!(http_get(&format!("{address}:80"), "/").is_err(), "nobody listens there any more");
    listeners(&[80]);
}

/// The blueprint wants more than there is: as long as it is so, `status` says which and why.
fn a_machine_that_is_away_is_missed(story: &Story) {
    let more = r#"[{"op": "replace", "path": "/spec/machines/1/count", "value": 3}]"#;
    story.kubectl_ok(&["patch", "blueprint", &story.name, "--type=json", "-p", more]);
    let status = text(&story.kprov(&["status", &story.name]));
    let is_missed = |line: &str| line.contains("machine/worker-3 ") && line.contains(" missing: the loop ");
    let is_there = |line: &str| line.contains("machine/worker-3 ") && (line.ends_with(" pending") || line.ends_with(" ready"));
    assert!(status.starts_with(&format!("{}: not as wanted yet ", story.name)), "{status}");
    assert!(status.lines().any(|line| is_missed(line) || is_there(line)), "{status}");
    assert!(status.lines().all(|line| line.chars().count() <= 80), "{status}");
}

#[derive(Debug)]
struct Said {
    stdout: String,
    stderr: String,
}

/// Runs, and must end with this code. No escape sequence is written: there is no terminal.
fn run(story: &Story, arguments: &[&str], code: i32) -> Said {
    let output = story.kprov(arguments);
    let all = text(&output);
    assert_eq!(output.status.code(), Some(code), "kprov {arguments:?}:\n{all}");
    assert!(!all.contains('\x1b'), "kprov {arguments:?} writes escape sequences where there is no terminal:\n{all:?}");
    let utf8 = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
    Said { stdout: utf8(output.stdout), stderr: utf8(output.stderr) }
}

/// Runs, and is interrupted, as by Ctrl-C, at the first line on stderr with `word`: must end by itself as interrupted. All that it said there.
fn interrupted(story: &Story, arguments: &[&str], word: &str) -> String {
    let mut child = story.command().args(arguments).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("kprov starts");
    let pid = Pid::from_raw(i32::try_from(child.id()).expect("a process id"));
    let (mut said, mut is_told) = (String::new(), false);
    for line in BufReader::new(child.stderr.take().expect("stderr")).lines().map_while(Result::ok) {
        if !is_told && line.contains(word) {
            kill(pid, Signal::SIGINT).expect("kprov runs still");
            is_told = true;
        }
        said.push_str(&line);
        said.push('\n');
    }
    let status = child.wait().expect("kprov ends");
    assert!(is_told, "the moment to interrupt at never came:\n{said}");
    assert_eq!(status.code(), Some(130), "kprov {arguments:?}:\n{said}");
    assert!(!said.contains('\x1b'), "{said:?}");
    said
}

/// The story's cluster as `kprov list` has it.
fn listed(story: &Story) -> Option<Value> {
    let clusters = json(&run(story, &["list", "-o", "json"], 0).stdout);
    clusters.as_array().expect("a list").iter().find(|cluster| cluster["name"] == story.name.as_str()).cloned()
}

fn word(path: &Path) -> &str {
    path.to_str().expect("a path of text")
}
