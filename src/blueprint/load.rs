//! Text to a checked blueprint with its manifests inline, or every problem.

use super::check;
use super::diagnostic::{Problem, Problems};
use super::manifests::{self, Judge, Object, unjudged};
use super::schema::{self, Blueprint};
use super::structure::{self, Report};
use super::tree::{self, Data, Node, Place};
use serde_json::Value;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// A blueprint of 1,000 machine groups has 100 KiB.
const MOST_BLUEPRINT_BYTES: u64 = 1 << 20;
const TOO_LARGE: &str = "the file is larger than 1 MiB";
/// The blueprint with its manifests becomes one object of the cluster; Kubernetes takes 3 MiB in one request.
const MOST_MANIFEST_BYTES: u64 = 3 << 20;
const MOST_FILES_IN_FOLDER: usize = 1000;
/// More is noise for a reader and work for nothing.
const MOST_PROBLEMS: usize = 100;

/// A blueprint that can be acted on.
#[derive(Debug, Clone, PartialEq)]
pub struct Loaded {
    /// `spec.workloads` holds objects alone, in the order of the files; `spec.images` is as written.
    pub blueprint: Blueprint,
    /// The archives of `spec.images`, as paths from where kprov runs.
    pub images: Vec<PathBuf>,
    pub warnings: Vec<String>,
}

/// What is at a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry {
    File,
    Folder,
    /// A pipe or a device: reading it may never end.
    Other,
}

/// The files beside a blueprint.
pub trait Files {
    fn look(&self, path: &Path) -> io::Result<Entry>;
    /// At most `limit` bytes from the start.
    fn read(&self, path: &Path, limit: u64) -> io::Result<Vec<u8>>;
    fn list(&self, folder: &Path) -> io::Result<Vec<String>>;
}

/// The real ones.
pub struct Disk;

impl Files for Disk {
    fn look(&self, path: &Path) -> io::Result<Entry> {
        let metadata = fs::metadata(path)?;
        Ok(if metadata.is_file() {
            Entry::File
        } else if metadata.is_dir() {
            Entry::Folder
        } else {
            Entry::Other
        })
    }
    fn read(&self, path: &Path, limit: u64) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        File::open(path)?.take(limit).read_to_end(&mut bytes)?;
        Ok(bytes)
    }
    fn list(&self, folder: &Path) -> io::Result<Vec<String>> {
        fs::read_dir(folder)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
    }
}

/// Reads and checks a blueprint file and everything it names; `judge` says what the cluster will refuse of a manifest.
pub fn from_path(path: &Path, judge: Judge<'_>) -> Result<Loaded, Problems> {
    let shown = path.display().to_string();
    match read_text(&Disk, path, MOST_BLUEPRINT_BYTES, TOO_LARGE) {
        Ok(text) => judged(&text, path, &Disk, judge),
        Err((place, message, hint)) => Err(Problems(vec![Problem::at(&shown, "", place, "", message, hint)])),
    }
}

/// The same with the text at hand, and manifests judged by nobody; they and images are looked for beside `file`.
pub fn from_text(text: &str, file: &Path, files: &dyn Files) -> Result<Loaded, Problems> {
    judged(text, file, files, &unjudged)
}

fn judged(text: &str, file: &Path, files: &dyn Files, judge: Judge<'_>) -> Result<Loaded, Problems> {
    let shown = file.display().to_string();
    let mut sink = Sink::new(&shown, text);
    if text.len() as u64 > MOST_BLUEPRINT_BYTES {
        sink.report(Place::default(), "", TOO_LARGE.into(), None);
        return Err(Problems(sink.problems));
    }
    let (documents, mistakes) = tree::read(text);
    sink.mistakes(mistakes);
    match documents.as_slice() {
        [] if sink.problems.is_empty() => {
            sink.report(Place::default(), "", "the file is empty".into(), Some("`kprov init` writes a blueprint to start from".into()));
        }
        [_, second, ..] => sink.report(
            Place { width: 1, ..second.place },
            "",
            "a second document follows the blueprint".into(),
            Some("write manifests to files of their own and name them in spec.workloads".into()),
        ),
        _ => {}
    }
    match documents.first() {
        // What was read before a syntax error is half a blueprint: checking it would invent problems.
        Some(tree) => check_tree(tree, sink, Some(Beside { folder: file.parent().unwrap_or(Path::new("")), files, judge })),
        None => Err(Problems(sink.problems)),
    }
}

/// Checks a blueprint that is an object already, for instance one that kubectl changed in the cluster. Server-made metadata and
/// status are left out of the result.
pub fn from_object(object: &Value) -> Result<Loaded, Problems> {
    let mut object = object.clone();
    if let Some(fields) = object.as_object_mut() {
        fields.remove("status");
    }
    if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.retain(|name, _| matches!(name.as_str(), "name" | "labels" | "annotations"));
    }
    check_tree(&Node::from_value(&object), Sink::new("the blueprint", ""), None)
}

struct Beside<'a> {
    folder: &'a Path,
    files: &'a dyn Files,
    judge: Judge<'a>,
}

fn check_tree(tree: &Node, mut sink: Sink<'_>, beside: Option<Beside<'_>>) -> Result<Loaded, Problems> {
    if let Some(kind) = tree.text_of("kind").filter(|kind| *kind != schema::KIND) {
        let place = tree.field("kind").map_or(tree.place, |node| node.place);
        let hint = format!("a blueprint says `kind: {}`; manifests belong to spec.workloads", schema::KIND);
        sink.report(place, "kind", format!("this is of kind {kind}, not a blueprint"), Some(hint));
        return Err(Problems(sink.problems));
    }
    let json_schema = schema::json_schema();
    structure::walk(tree, &json_schema, &json_schema, "", &mut sink);
    let mut images = Vec::new();
    let mut others = Vec::new();
    let objects = workloads(tree, &mut sink, beside.as_ref(), &mut others);
    if let Some(beside) = &beside {
        images = image_paths(tree, beside, &mut sink);
    }
    // A manifest that could not be read may hold the very service that a listener names.
    let all_read = others.is_empty() && !sink.problems.iter().any(|problem| problem.path.starts_with("spec.workloads"));
    check::meaning(tree, if all_read { &objects } else { &[] }, &mut sink);
    let mut problems = sink.finish();
    problems.extend(others);
    if !problems.is_empty() {
        return Err(Problems(problems));
    }
    let warnings = check::warnings(tree, &objects);
    let mut value = tree.to_value();
    if let Some(workloads) = value.pointer_mut("/spec/workloads") {
        *workloads = objects.into_iter().map(|object| object.value).collect();
    }
    match serde_json::from_value(value) {
        Ok(blueprint) => Ok(Loaded { blueprint, images, warnings }),
        // The schema is made from the type, so this is a bug in their agreement; still no reason to panic on input.
        Err(error) => Err(Problems(vec![Problem::at("the blueprint", "", Place::default(), "", error.to_string(), None)])),
    }
}

/// The objects of all workloads. Problems of the blueprint itself go to `sink`, those of manifest files to `others`.
fn workloads(tree: &Node, sink: &mut Sink<'_>, beside: Option<&Beside<'_>>, others: &mut Vec<Problem>) -> Vec<Object> {
    let mut objects = Vec::new();
    let mut left = MOST_MANIFEST_BYTES;
    let items = tree.field("spec").and_then(|spec| spec.field("workloads")).map_or(&[][..], Node::items);
    for (index, item) in items.iter().enumerate() {
        let path = format!("spec.workloads[{index}]");
        match (&item.data, beside) {
            (Data::Map(_), beside) => {
                // What is an object of the cluster already is judged there.
                let judge: Judge<'_> = beside.map_or(&unjudged, |beside| beside.judge);
                manifests::collect(item, &sink.file.clone(), &path, judge, &mut objects, sink);
            }
            (Data::Text(name), Some(beside)) => match manifest_files(beside, name) {
                Ok(files) => {
                    for file in files {
                        match manifest_file(beside, &file, &mut left, &mut objects) {
                            Ok(problems) => others.extend(problems),
                            Err((place, message, hint)) if place.line == 0 => {
                                sink.report(item.place, &path, format!("could not read {}: {message}", file.display()), hint);
                            }
                            Err((place, message, hint)) => {
                                others.push(Problem::at(&file.display().to_string(), "", place, "", message, hint));
                            }
                        }
                    }
                }
                Err((message, hint)) => sink.report(item.place, &path, message, hint),
            },
            (Data::Text(_), None) => {
                sink.report(
                    item.place,
                    &path,
                    "a file cannot be read from inside the cluster".into(),
                    Some("write the object itself".into()),
                );
            }
            _ => {
                let message = format!("a workload is a file, a folder or an object, not {}", item.kind());
                sink.report(item.place, &path, message, None);
            }
        }
    }
    objects
}

/// The files that one entry of `workloads` means: itself, or a folder's manifests in the order of their names.
fn manifest_files(beside: &Beside<'_>, name: &str) -> Result<Vec<PathBuf>, (String, Option<String>)> {
    let path = beside.folder.join(name);
    match beside.files.look(&path) {
        Ok(Entry::File) => Ok(vec![path]),
        Ok(Entry::Other) => Err((format!("`{name}` is neither a file nor a folder"), None)),
        Ok(Entry::Folder) => {
            let mut names = beside.files.list(&path).map_err(|error| (format!("could not list `{name}`: {error}"), None))?;
            names.retain(|name| [".yaml", ".yml", ".json"].iter().any(|end| name.ends_with(end)) && !name.starts_with('.'));
            names.sort();
            if names.is_empty() {
                return Err((
                    format!("the folder `{name}` holds no manifest"),
                    Some("files that end in .yaml, .yml or .json are read".into()),
                ));
            }
            if names.len() > MOST_FILES_IN_FOLDER {
                return Err((format!("the folder `{name}` holds more than {MOST_FILES_IN_FOLDER} manifests"), None));
            }
            Ok(names.into_iter().map(|name| path.join(name)).collect())
        }
        Err(error) => Err((unreadable(beside, name, &error), Some("paths are relative to the blueprint's folder".into()))),
    }
}

fn unreadable(beside: &Beside<'_>, name: &str, error: &io::Error) -> String {
    if error.kind() == io::ErrorKind::NotFound {
        let folder = beside.folder.display().to_string();
        return format!("there is no file `{name}`{}", if folder.is_empty() { String::new() } else { format!(" in {folder}") });
    }
    format!("could not look at `{name}`: {error}")
}

type Refusal = (Place, String, Option<String>);

fn manifest_file(beside: &Beside<'_>, path: &Path, left: &mut u64, objects: &mut Vec<Object>) -> Result<Vec<Problem>, Refusal> {
    let text = read_text(beside.files, path, *left, "all manifests together are larger than 3 MiB")?;
    *left -= text.len() as u64;
    let shown = path.display().to_string();
    let mut sink = Sink::new(&shown, &text);
    let (documents, mistakes) = tree::read(&text);
    sink.mistakes(mistakes);
    for document in documents.iter().filter(|document| document.data != Data::Null) {
        manifests::collect(document, &shown, "", beside.judge, objects, &mut sink);
    }
    if documents.is_empty() && sink.problems.is_empty() {
        sink.report(Place::default(), "", "the file holds no object".into(), None);
    }
    Ok(sink.finish())
}

fn image_paths(tree: &Node, beside: &Beside<'_>, sink: &mut Sink<'_>) -> Vec<PathBuf> {
    let mut paths = Vec::new();
    let items = tree.field("spec").and_then(|spec| spec.field("images")).map_or(&[][..], Node::items);
    for (index, item) in items.iter().enumerate() {
        let Some(name) = item.text() else { continue };
        let path = beside.folder.join(name);
        let problem = match beside.files.look(&path) {
            Ok(Entry::File) => {
                paths.push(path);
                continue;
            }
            Ok(_) => (
                format!("`{name}` is not a file"),
                Some("an image is an OCI archive, for instance from `docker save` or `skopeo copy`".into()),
            ),
            Err(error) => (unreadable(beside, name, &error), Some("paths are relative to the blueprint's folder".into())),
        };
        sink.report(item.place, &format!("spec.images[{index}]"), problem.0, problem.1);
    }
    paths
}

fn read_text(files: &dyn Files, path: &Path, limit: u64, too_large: &str) -> Result<String, Refusal> {
    let refuse = |message: String, hint: Option<&str>| (Place::default(), message, hint.map(String::from));
    let cannot = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound => refuse("there is no such file".into(), Some("`kprov init` writes a blueprint to start from")),
        _ => refuse(format!("could not read the file: {error}"), None),
    };
    match files.look(path).map_err(cannot)? {
        Entry::File => {}
        Entry::Folder => return Err(refuse("this is a folder, not a file".into(), None)),
        Entry::Other => return Err(refuse("this is not a regular file".into(), None)),
    }
    let bytes = files.read(path, limit + 1).map_err(cannot)?;
    if bytes.len() as u64 > limit {
        return Err(refuse(too_large.into(), None));
    }
    String::from_utf8(bytes).map_err(|error| {
        let good = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let line_start = good.iter().rposition(|byte| *byte == b'\n').map_or(0, |position| position + 1);
        let line = good.iter().filter(|byte| **byte == b'\n').count() + 1;
        let column = String::from_utf8_lossy(&good[line_start..]).chars().count() + 1;
        (Place { line, column, width: 1 }, "this is not text in UTF-8".into(), None)
    })
}

/// Problems of one file.
struct Sink<'a> {
    file: String,
    content: &'a str,
    problems: Vec<Problem>,
}

impl<'a> Sink<'a> {
    fn new(file: &str, content: &'a str) -> Self {
        Sink { file: file.into(), content, problems: Vec::new() }
    }
    fn mistakes(&mut self, mistakes: Vec<tree::Mistake>) {
        for mistake in mistakes {
            self.report(mistake.place, "", mistake.message, mistake.hint);
        }
    }
    fn finish(mut self) -> Vec<Problem> {
        self.problems.sort_by_key(|problem| (problem.line, problem.column));
        self.problems
    }
}

impl Report for Sink<'_> {
    fn report(&mut self, place: Place, path: &str, message: String, hint: Option<String>) {
        if !self.full() {
            self.problems.push(Problem::at(&self.file, self.content, place, path, message, hint));
        }
    }
    fn full(&self) -> bool {
        self.problems.len() >= MOST_PROBLEMS
    }
}
