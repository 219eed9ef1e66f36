//! OCI image archives made from one static binary: how kprov's own image (sandbox process, demo) exists without any registry. Pure.

use serde_json::{Value, json};
use std::io::{self, Write};

/// The image every cluster has: `/kprov` as entrypoint, `pause` as its command.
pub const KPROV_IMAGE: &str = "kprov.dev/kprov:latest";

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// Writes an OCI image layout as a tar stream: one layer with `binary` as `/kprov`. The same bytes in give the same bytes out, so that
/// an image is imported once. `architecture` is Go's name (`amd64`, `arm64`).
pub fn write_archive(out: impl Write, name: &str, binary: &[u8], architecture: &str) -> io::Result<()> {
    let layer = layer(binary)?;
    // The one blob that is large: hashed once.
    let layer_digest = digest(&layer);
    let config = encode(&json!({
        "architecture": architecture, "os": "linux",
        "config": {"Entrypoint": ["/kprov"], "Cmd": ["pause"], "WorkingDir": "/", "Env": ["PATH=/"]},
        "rootfs": {"type": "layers", "diff_ids": [layer_digest]},
        "history": [{"created_by": "kprov", "comment": "one static binary"}],
    }));
    let manifest = encode(&json!({
        "schemaVersion": 2, "mediaType": MANIFEST,
        "config": descriptor(CONFIG, &config),
        "layers": [{"mediaType": LAYER, "digest": layer_digest, "size": layer.len()}],
    }));
    let mut entry = descriptor(MANIFEST, &manifest);
    entry["annotations"] = json!({
        "io.containerd.image.name": name,
        "org.opencontainers.image.ref.name": name.rsplit_once(':').map_or("latest", |(_, tag)| tag),
    });
    let index = encode(&json!({"schemaVersion": 2, "manifests": [entry]}));
    let mut archive = tar::Builder::new(out);
    append(&mut archive, "oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#, 0o644)?;
    append(&mut archive, "index.json", &index, 0o644)?;
    for (blob, digest) in [(&config, digest(&config)), (&manifest, digest(&manifest)), (&layer, layer_digest)] {
        append(&mut archive, &format!("blobs/sha256/{}", &digest["sha256:".len()..]), blob, 0o644)?;
    }
    archive.into_inner()?.flush()
}

/// This machine's architecture in Go's words, as image configurations spell it.
pub fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn layer(binary: &[u8]) -> io::Result<Vec<u8>> {
    let mut layer = tar::Builder::new(Vec::with_capacity(binary.len() + 4096));
    append(&mut layer, "kprov", binary, 0o755)?;
    // A world-writable /tmp and the mount points that runtimes expect, so that a read-only root works too.
    for (folder, mode) in [("tmp/", 0o1777), ("etc/", 0o755), ("proc/", 0o755), ("sys/", 0o755), ("dev/", 0o755)] {
        let mut header = header(0, mode);
        header.set_entry_type(tar::EntryType::Directory);
        layer.append_data(&mut header, folder, io::empty())?;
    }
    layer.into_inner()
}

fn append(archive: &mut tar::Builder<impl Write>, path: &str, bytes: &[u8], mode: u32) -> io::Result<()> {
    archive.append_data(&mut header(bytes.len() as u64, mode), path, bytes)
}

/// No times and no owners: nothing in the bytes depends on when or where they were made.
fn header(size: u64, mode: u32) -> tar::Header {
    let mut header = tar::Header::new_ustar();
    header.set_size(size);
    header.set_mode(mode);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    header
}

fn descriptor(media_type: &str, bytes: &[u8]) -> Value {
    json!({"mediaType": media_type, "digest": digest(bytes), "size": bytes.len()})
}

fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", super::executable::sha256(bytes))
}

fn encode(value: &Value) -> Vec<u8> {
    value.to_string().into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;
    use std::io::Read;

    fn archive(binary: &[u8]) -> BTreeMap<String, Vec<u8>> {
        let mut bytes = Vec::new();
        write_archive(&mut bytes, KPROV_IMAGE, binary, "amd64").expect("archive");
        let mut files = BTreeMap::new();
        for entry in tar::Archive::new(bytes.as_slice()).entries().expect("entries") {
            let mut entry = entry.expect("entry");
            let mut content = Vec::new();
            entry.read_to_end(&mut content).expect("content");
            files.insert(entry.path().expect("path").display().to_string(), content);
        }
        files
    }

    #[test]
    fn every_blob_is_named_by_its_digest_and_reachable_from_the_index() {
        let files = archive(b"\x7fELF binary");
        let blob = |descriptor: &Value| {
            let digest = descriptor["digest"].as_str().expect("digest");
            let content = &files[&format!("blobs/sha256/{}", &digest[7..])];
            assert_eq!(super::digest(content), digest);
            assert_eq!(descriptor["size"], content.len());
            content.clone()
        };
        let index: Value = serde_json::from_slice(&files["index.json"]).expect("index");
        assert_eq!(index["manifests"][0]["annotations"]["io.containerd.image.name"], KPROV_IMAGE);
        let manifest: Value = serde_json::from_slice(&blob(&index["manifests"][0])).expect("manifest");
        let config: Value = serde_json::from_slice(&blob(&manifest["config"])).expect("config");
        let layer = blob(&manifest["layers"][0]);
        assert_eq!(config["rootfs"]["diff_ids"][0], super::digest(&layer), "uncompressed: diff id and digest agree");
        let mut layer = tar::Archive::new(layer.as_slice());
        let first = layer.entries().expect("entries").next().expect("one").expect("entry");
        assert_eq!((first.path().expect("path").to_str(), first.header().mode().expect("mode")), (Some("kprov"), 0o755));
    }

    #[test]
    fn the_same_binary_gives_the_same_archive() {
        assert_eq!(archive(b"a"), archive(b"a"));
        assert_ne!(archive(b"a"), archive(b"b"));
    }
}
