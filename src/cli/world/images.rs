//! What an image archive holds: its names and its digest, read once before anything is sent.

use crate::blueprint::{Blueprint, Spec};
use crate::bootstrap::spec::Image;
use crate::error::{Context, Error, Kind, Result};
use crate::sys::executable::sha256_of;
use serde_json::Value;
use std::fs::File;
use std::io::{Read, Seek};
use std::path::{Path, PathBuf};

/// An index is a few hundred bytes; a file of this name with more is something else.
const MOST_INDEX_BYTES: u64 = 1 << 20;

pub fn read(path: &Path) -> Result<Image> {
    let failed = || format!("could not read the image archive {}", path.display());
    let mut file = File::open(path).or_fail(Kind::Input, failed)?;
    let (sha256, size) = sha256_of(&mut file).or_fail(Kind::Host, failed)?;
    file.rewind().or_fail(Kind::Host, failed)?;
    let names = names(file).or_fail(Kind::Input, failed)?;
    if names.is_empty() {
        return Err(Error::input(format!("{}: no image name was found in it", failed()))
            .hint("make it with `docker save`, `skopeo copy ... oci-archive:FILE:NAME` or `ctr images export`"));
    }
    Ok(Image { names, sha256, size, source: path.into() })
}

/// Between an archive's name as written and its digest, in the blueprint that the cluster keeps.
const DIGEST: &str = "@sha256:";

/// The blueprint as the cluster keeps it: each archive named with its digest, so that another archive of one name is another wish.
pub fn pinned(blueprint: &Blueprint, images: &[Image]) -> Blueprint {
    let mut blueprint = blueprint.clone();
    for (name, image) in blueprint.spec.images.iter_mut().zip(images) {
        *name = format!("{name}{DIGEST}{}", image.sha256);
    }
    blueprint
}

/// Of the archives that are pinned: one that somebody wrote into the object by hand names nothing that a control plane has.
pub fn digests(spec: &Spec) -> Vec<&str> {
    let digests = spec.images.iter().filter_map(|name| name.rsplit_once(DIGEST)).map(|(_, digest)| digest);
    digests.filter(|digest| digest.len() == 64 && digest.bytes().all(|byte| byte.is_ascii_hexdigit())).collect()
}

/// The archives as this control plane keeps them; `known` saves reading them again. One that is not there has no size: whoever has to
/// send it says so, and nobody else needs it.
pub fn kept(spec: &Spec, known: &[Image]) -> Vec<Image> {
    let image = |digest: &str| {
        let bare = Image { names: Vec::new(), sha256: digest.to_string(), size: 0, source: PathBuf::new() };
        let bare = Image { source: bare.kept(), ..bare };
        let known = known.iter().find(|image| image.sha256 == digest && image.size > 0 && image.source.exists()).cloned();
        known.or_else(|| read(&bare.source).ok().filter(|image| image.sha256 == digest)).unwrap_or(bare)
    };
    digests(spec).into_iter().map(image).collect()
}

/// From an OCI layout's `index.json`, or a Docker archive's `manifest.json`.
fn names(file: impl Read) -> std::io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in tar::Archive::new(file).entries()? {
        let entry = entry?;
        let path = entry.path()?.to_string_lossy().trim_start_matches("./").to_string();
        if path != "index.json" && path != "manifest.json" {
            continue;
        }
        let mut text = Vec::new();
        entry.take(MOST_INDEX_BYTES).read_to_end(&mut text)?;
        let document: Value = serde_json::from_slice(&text)?;
        names.extend(if path == "index.json" { from_index(&document) } else { from_docker(&document) });
    }
    names.sort();
    names.dedup();
    Ok(names)
}

fn from_index(index: &Value) -> Vec<String> {
    let manifests = index["manifests"].as_array().into_iter().flatten();
    let name = |manifest: &Value| {
        let annotations = &manifest["annotations"];
        let full = annotations["io.containerd.image.name"].as_str();
        // A bare tag names nothing; a reference does.
        let reference = annotations["org.opencontainers.image.ref.name"].as_str().filter(|text| text.contains([':', '/']));
        full.or(reference).map(str::to_string)
    };
    manifests.filter_map(name).collect()
}

fn from_docker(manifest: &Value) -> Vec<String> {
    let images = manifest.as_array().into_iter().flatten();
    images.flat_map(|image| image["RepoTags"].as_array().into_iter().flatten()).filter_map(|tag| tag.as_str().map(str::to_string)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::oci;

    #[test]
    fn our_own_archive_says_its_name() {
        let mut bytes = Vec::new();
        oci::write_archive(&mut bytes, oci::KPROV_IMAGE, b"binary", "amd64").expect("archive");
        assert_eq!(names(bytes.as_slice()).expect("names"), [oci::KPROV_IMAGE]);
    }

    #[test]
    fn an_archive_is_pinned_by_its_digest_and_found_again_by_it() {
        let text = serde_json::json!({"apiVersion": "kprov.dev/v1", "kind": "Blueprint", "metadata": {"name": "shop"},
            "spec": {"provider": "local", "machines": [], "images": ["demo.tar"]}});
        let blueprint: Blueprint = serde_json::from_value(text).expect("a blueprint");
        let sha256 = "a".repeat(64);
        let image = Image { names: vec!["demo:1".into()], sha256: sha256.clone(), size: 7, source: "demo.tar".into() };
        assert!(digests(&blueprint.spec).is_empty(), "a bare name is not pinned");
        let pinned = pinned(&blueprint, &[image]);
        assert_eq!(pinned.spec.images, [format!("demo.tar@sha256:{sha256}")]);
        assert_eq!(digests(&pinned.spec), [sha256.as_str()]);
        let missing = kept(&pinned.spec, &[]);
        assert_eq!((missing.len(), missing[0].size), (1, 0), "an archive that is not there has no size");
    }

    #[test]
    fn docker_archives_and_bare_tags_are_told_apart() {
        assert_eq!(from_docker(&serde_json::json!([{"RepoTags": ["a:1", "b:2"]}])), ["a:1", "b:2"]);
        let index = serde_json::json!({"manifests": [{"annotations": {"org.opencontainers.image.ref.name": "latest"}}]});
        assert!(from_index(&index).is_empty());
    }
}
