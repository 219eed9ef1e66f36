//! Images in containerd: kprov's own, packed here from the program itself, and archives that the other side sends when asked.

use super::{Outcome, Reporter, machine};
use crate::bootstrap::frame::Report;
use crate::bootstrap::spec::{ARCHIVES, CONTAINERD_SOCKET, CONTROL_PLANE, HostSpec, Image, Marker};
use crate::error::{Context, Error, Kind, Result};
use crate::sys::{executable, oci, paths};
use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::Stdio;

pub fn ensure(spec: &HostSpec, before: Option<&Marker>, program: &str, mut input: impl Read, reporter: &Reporter) -> Result<()> {
    let present = present()?;
    let has = |name: &str| present.iter().any(|found| found == name);
    reporter.step(&format!("image {}", oci::KPROV_IMAGE), || {
        // The image is as old as the program that an earlier run finished with.
        if has(oci::KPROV_IMAGE) && before.is_some_and(|marker| marker.program == program) {
            return Ok(Outcome::default());
        }
        reporter.doing("packing kprov's own image");
        import_own().map(|()| true.into())
    })?;
    for image in &spec.images {
        reporter.step(&format!("image {}", image.names.join(", ")), || {
            let imported = before.is_some_and(|marker| marker.images.contains(&image.sha256));
            let imported = imported && image.names.iter().all(|name| has(name));
            // A control plane sends it on to machines that come later.
            let keep = spec.role == CONTROL_PLANE;
            if imported && (!keep || image.kept().exists()) {
                return Ok(Outcome::default());
            }
            let path = arrive(image, &mut input, reporter)?;
            let outcome = if imported { Ok(()) } else { import(image, &path) };
            if !keep {
                let _ = fs::remove_file(&path);
            }
            outcome.map(|()| true.into())
        })?;
    }
    Ok(())
}

/// Brings archives to a control plane; the install that follows imports them and takes away the others.
pub fn keep(images: &[Image], mut input: impl Read, reporter: &Reporter) -> Result<()> {
    images.iter().try_for_each(|image| arrive(image, &mut input, reporter).map(drop))
}

/// Takes away what the blueprint no longer names, and what a killed run has left half-way.
pub fn sweep(images: &[Image]) -> Result<()> {
    sweep_folder(Path::new(ARCHIVES), images)
}

fn sweep_folder(folder: &Path, images: &[Image]) -> Result<()> {
    let wanted: Vec<String> = images.iter().map(|image| format!("{}.tar", image.sha256)).collect();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if !wanted.iter().any(|name| entry.file_name() == name.as_str()) {
            fs::remove_file(entry.path()).or_fail(Kind::Host, || format!("could not remove {}", entry.path().display()))?;
        }
    }
    Ok(())
}

/// The archive on this machine's disk: it is whole where it is there, else it is asked for.
fn arrive(image: &Image, input: &mut impl Read, reporter: &Reporter) -> Result<PathBuf> {
    let path = image.kept();
    if path.exists() {
        return Ok(path);
    }
    reporter.send(&Report::Need { sha256: image.sha256.clone() }).or_fail(Kind::Transient, || "could not ask for an image")?;
    park(image, input, Path::new(ARCHIVES))
}

/// Names of the images in the kubelet's namespace.
fn present() -> Result<Vec<String>> {
    let text = machine::run(&mut ctr(&["images", "list", "--quiet"]), "could not list the images on the machine")?;
    Ok(text.lines().map(str::to_string).collect())
}

fn import_own() -> Result<()> {
    let failed = || "could not pack kprov's own image";
    let program = fs::read(paths::BINARY).or_fail(Kind::Host, failed)?;
    let mut child = ctr(&["images", "import", "-"]);
    let mut child = child.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().or_fail(Kind::Host, failed)?;
    let pipe = child.stdin.take().expect("stdin is piped");
    let written = oci::write_archive(std::io::BufWriter::with_capacity(1 << 20, pipe), oci::KPROV_IMAGE, &program, oci::architecture());
    let output = child.wait_with_output().or_fail(Kind::Host, failed)?;
    if !output.status.success() {
        return Err(Error::host(failed()).because(String::from_utf8_lossy(&output.stderr).trim().to_string()));
    }
    written.or_fail(Kind::Host, failed)
}

fn import(image: &Image, path: &Path) -> Result<()> {
    let path = path.display().to_string();
    machine::run(&mut ctr(&["images", "import", &path]), &format!("could not import {}", image.names.join(", "))).map(drop)
}

/// Exactly `size` bytes follow on the connection. They get their name only after their sum is known to be right.
fn park(image: &Image, input: &mut impl Read, folder: &Path) -> Result<PathBuf> {
    let failed = || format!("could not receive {}", image.names.join(", "));
    fs::create_dir_all(folder).or_fail(Kind::Host, failed)?;
    let (path, part) = (folder.join(format!("{}.tar", image.sha256)), folder.join(format!("{}.part", image.sha256)));
    let mut file = fs::File::create(&part).or_fail(Kind::Host, failed)?;
    let mut bytes = Tee { from: input.take(image.size), to: &mut file };
    let arrived = executable::sha256_of(&mut bytes);
    if arrived.as_ref().is_ok_and(|(sum, size)| (sum.as_str(), *size) == (image.sha256.as_str(), image.size)) {
        file.sync_all().and_then(|()| fs::rename(&part, &path)).or_fail(Kind::Host, failed)?;
        return Ok(path);
    }
    let _ = fs::remove_file(&part);
    match arrived {
        Err(error) if error.kind() == std::io::ErrorKind::StorageFull => {
            Err(Error::host(failed()).because(error).hint("make room on the machine's disk, or choose a larger one"))
        }
        Err(error) => Err(Error::transient(failed()).because(error)),
        Ok(_) => Err(Error::transient(format!("{}: what arrived is damaged", failed()))),
    }
}

/// Writes what is read through it.
struct Tee<'a, R> {
    from: R,
    to: &'a mut fs::File,
}

impl<R: Read> Read for Tee<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let count = self.from.read(buffer)?;
        self.to.write_all(&buffer[..count])?;
        Ok(count)
    }
}

fn ctr(arguments: &[&str]) -> std::process::Command {
    let mut command = machine::command("ctr");
    command.args(["--address", CONTAINERD_SOCKET, "--namespace", "k8s.io"]).args(arguments);
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(content: &[u8]) -> Image {
        let sha256 = executable::sha256(content);
        Image { names: vec!["demo:1".into()], sha256, size: content.len() as u64, source: "demo.tar".into() }
    }

    #[test]
    fn an_archive_takes_only_its_own_bytes_from_the_connection() {
        let folder = tempfile::tempdir().unwrap();
        let mut input = b"archiveNEXT".as_slice();
        let path = park(&image(b"archive"), &mut input, folder.path()).unwrap();
        assert_eq!(fs::read(path).unwrap(), b"archive");
        assert_eq!(input, b"NEXT");
    }

    #[test]
    fn a_sweep_leaves_what_is_wanted_alone() {
        let folder = tempfile::tempdir().unwrap();
        let wanted = park(&image(b"archive"), &mut b"archive".as_slice(), folder.path()).unwrap();
        fs::write(folder.path().join("old.tar"), "old").unwrap();
        fs::write(folder.path().join("half.part"), "half").unwrap();
        sweep_folder(folder.path(), &[image(b"archive")]).unwrap();
        let left: Vec<_> = fs::read_dir(folder.path()).unwrap().flatten().map(|entry| entry.path()).collect();
        assert_eq!(left, [wanted]);
    }

    #[test]
    fn a_damaged_or_short_archive_is_not_kept() {
        let folder = tempfile::tempdir().unwrap();
        for sent in [b"archivX".as_slice(), b"arch"] {
            let error = park(&image(b"archive"), &mut &*sent, folder.path()).unwrap_err();
            assert_eq!(error.kind, Kind::Transient);
            assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
        }
    }
}
