//! Keeps images from filling the disk, and says when it is nearly full; figures and rules are upstream's.

use super::cri::Refusal;
use super::cri::messages::{Container, Image, Map};
use super::observed::{Nanos, SECOND};
use super::{Context, machine, node, worker};
use crate::sys::oci;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// How often the disks are measured.
const LOOK: Duration = Duration::from_secs(10);
/// How often it is noted which images are in use, and cleared up where there is need.
const PERIOD: Nanos = 300 * SECOND;
/// Unused images go from the first share on, until the second is reached.
const HIGH_PERCENT: u64 = 85;
const LOW_PERCENT: u64 = 80;
/// An image that has just come waits for its container.
const LEAST_AGE: Nanos = 120 * SECOND;
/// What must be free where pods write, and where images lie.
const LEAST_FREE_PERCENT: u64 = 10;
const LEAST_FREE_FOR_IMAGES_PERCENT: u64 = 15;
/// A disk that is seldom full must not send pods to and fro.
const TRANSITION: Nanos = 300 * SECOND;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Room {
    used: u64,
    /// Without what is kept for root: when pods can write no more, the disk is full.
    capacity: u64,
}

impl Room {
    fn measure(folder: &Path) -> std::io::Result<Room> {
        let stat = nix::sys::statvfs::statvfs(folder)?;
        let bytes = |blocks: u64| blocks.saturating_mul(stat.fragment_size());
        let used = bytes(stat.blocks().saturating_sub(stat.blocks_free()));
        Ok(Room { used, capacity: used + bytes(stat.blocks_available()) })
    }

    fn is_used(self, percent: u64) -> bool {
        self.capacity > 0 && u128::from(self.used) * 100 >= u128::from(self.capacity) * u128::from(percent)
    }

    /// How much must go until no more than that is used.
    fn above(self, percent: u64) -> u64 {
        self.used.saturating_sub(self.capacity / 100 * percent)
    }
}

/// What is known of an image beyond the runtime's word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Seen {
    first: Nanos,
    last_used: Option<Nanos>,
}

/// By the image's id. Forgotten with the process, as upstream's.
#[derive(Debug, Default)]
struct Images(HashMap<String, Seen>);

impl Images {
    /// Only containers that are still there use an image; ended ones may be asked for their logs and start again.
    fn note(&mut self, images: &[Image], containers: &[Container], now: Nanos) {
        self.0.retain(|id, _| images.iter().any(|image| image.id == *id));
        for image in images {
            let seen = self.0.entry(image.id.clone()).or_insert(Seen { first: now, last_used: None });
            if containers.iter().any(|container| uses(container, image)) {
                seen.last_used = Some(now);
            }
        }
    }

    /// What may go, the longest unused first. `now` is when use was noted last.
    fn unused<'a>(&self, images: &'a [Image], now: Nanos) -> Vec<&'a Image> {
        let mut unused: Vec<(Seen, &Image)> = images.iter().filter_map(|image| Some((*self.0.get(&image.id)?, image))).collect();
        unused.retain(|(seen, image)| seen.last_used != Some(now) && now - seen.first >= LEAST_AGE && can_return(image));
        unused.sort_by_key(|(seen, image)| (seen.last_used, seen.first, image.id.clone()));
        unused.into_iter().map(|(_, image)| image).collect()
    }
}

fn uses(container: &Container, image: &Image) -> bool {
    let named = container.image.as_ref().map(|spec| spec.image.as_str());
    [Some(container.image_ref.as_str()), named]
        .into_iter()
        .flatten()
        .any(|name| name == image.id || image.repo_tags.iter().chain(&image.repo_digests).any(|reference| reference == name))
}

/// What came from an archive has no digest of a registry: nobody could bring it again. So has kprov's own image.
fn can_return(image: &Image) -> bool {
    !image.pinned && !image.repo_digests.is_empty() && !image.repo_tags.iter().any(|tag| tag == oci::KPROV_IMAGE)
}

/// Of `unused`, as many from the front as it takes to free `wanted` bytes.
fn enough(unused: Vec<&Image>, wanted: u64) -> Vec<&Image> {
    let mut freed = 0_u64;
    let too_few = |image: &&Image| {
        freed < wanted && {
            freed = freed.saturating_add(image.size);
            true
        }
    };
    unused.into_iter().take_while(too_few).collect()
}

/// True at once when a disk is nearly full, false only after it has not been for a while.
#[derive(Debug, Default)]
struct Pressure {
    last: Option<Nanos>,
}

impl Pressure {
    fn note(&mut self, is_full: bool, now: Nanos) -> bool {
        if is_full {
            self.last = Some(now);
        }
        self.last.is_some_and(|last| now - last < TRANSITION)
    }
}

fn is_full(pods: Room, images: Room) -> bool {
    pods.is_used(100 - LEAST_FREE_PERCENT) || images.is_used(100 - LEAST_FREE_FOR_IMAGES_PERCENT)
}

/// Looks after the disks until cancelled.
pub async fn keep(context: Arc<Context>, cancel: CancellationToken) {
    if machine::shares_its_disk() {
        // Its shares are not this machine's to judge: others fill that disk, too, and its owner may be used to that.
        return;
    }
    let mut keeper = Keeper { context, images: Images::default(), folder: None, pressure: Pressure::default(), due: None, was_high: false };
    while !cancel.is_cancelled() {
        keeper.look().await;
        cancel.run_until_cancelled(tokio::time::sleep(LOOK)).await;
    }
}

struct Keeper {
    context: Arc<Context>,
    images: Images,
    /// Where the runtime keeps images.
    folder: Option<PathBuf>,
    pressure: Pressure,
    /// When use is noted next.
    due: Option<Nanos>,
    was_high: bool,
}

impl Keeper {
    async fn look(&mut self) {
        if self.folder.is_none() {
            self.folder = self.context.runtime.image_folder().await.ok().flatten();
        }
        let data = &self.context.config.data;
        let rooms = Room::measure(data).and_then(|pods| Ok((pods, Room::measure(self.folder.as_deref().unwrap_or(data))?)));
        let (pods, images) = match rooms {
            Ok(rooms) => rooms,
            Err(error) => return tracing::warn!(%error, "could not measure the disks"),
        };
        let now = worker::now();
        let pressure = self.pressure.note(is_full(pods, images), now);
        if *self.context.disk_pressure.borrow() != pressure {
            self.context.disk_pressure.send_replace(pressure);
            let reason = if pressure { "NodeHasDiskPressure" } else { "NodeHasNoDiskPressure" };
            let name = &self.context.config.node_name;
            self.context.recorder.normal(node::subject(name), reason, format!("Node {name} status is now: {reason}"));
        }
        let is_high = images.is_used(HIGH_PERCENT);
        // A pull that filled the disk is not to wait for the next turn.
        let has_risen = is_high && !std::mem::replace(&mut self.was_high, is_high);
        if !has_risen && self.due.is_some_and(|due| now < due) {
            return;
        }
        self.due = Some(now + PERIOD);
        if let Err(refusal) = self.clear_up(images, is_high, now).await {
            tracing::warn!(%refusal, "could not look for unused images");
        }
    }

    async fn clear_up(&mut self, room: Room, is_high: bool, now: Nanos) -> Result<(), Refusal> {
        let runtime = &self.context.runtime;
        let images = runtime.list_images().await?;
        self.images.note(&images, &runtime.list_containers(Map::new()).await?, now);
        if !is_high {
            return Ok(());
        }
        let wanted = room.above(LOW_PERCENT);
        let mut freed = 0_u64;
        for image in enough(self.images.unused(&images, now), wanted) {
            match runtime.remove_image(&image.id).await {
                Ok(()) => {
                    tracing::info!(image = image.repo_digests[0], bytes = image.size, "removed an unused image: the disk is nearly full");
                    freed = freed.saturating_add(image.size);
                }
                Err(refusal) => tracing::warn!(%refusal, image = image.repo_digests[0], "could not remove an unused image"),
            }
        }
        if freed < wanted {
            let (used, capacity) = (room.used >> 20, room.capacity >> 20);
            let message = format!(
                "The disk that holds images is nearly full ({used} of {capacity} MiB), and unused images were only {} MiB of it. Look for what else fills it: images in use, logs, volumes.",
                freed >> 20
            );
            self.context.recorder.warning(node::subject(&self.context.config.node_name), "FreeDiskSpaceFailed", message);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::orchestrator::kubelet::cri::messages::ImageSpec;

    const MIB: u64 = 1 << 20;

    fn image(id: &str, mib: u64) -> Image {
        let repo_digests = vec![format!("r.example/{id}@sha256:{id}")];
        Image { id: id.into(), repo_tags: vec![format!("r.example/{id}:1")], repo_digests, size: mib * MIB, ..Image::default() }
    }

    fn ids(images: &[&Image]) -> String {
        images.iter().map(|image| image.id.as_str()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn the_longest_unused_go_first_until_it_is_enough() {
        let all = [image("a", 10), image("b", 20), image("c", 30), image("d", 40)];
        let of = |name: &str| Container { image_ref: name.into(), ..Container::default() };
        let mut known = Images::default();
        known.note(&all[..3], &[of("a"), of("b")], 0);
        known.note(&all[..3], &[of("b")], LEAST_AGE);
        let now = 2 * LEAST_AGE;
        // By another of its names; `d` has just come.
        let by_name = Container { image: Some(ImageSpec { image: "r.example/b:1".into() }), ..Container::default() };
        known.note(&all, std::slice::from_ref(&by_name), now);
        assert_eq!(ids(&known.unused(&all, now)), "c a");
        let later = now + LEAST_AGE;
        known.note(&all, &[], later);
        let unused = known.unused(&all, later);
        assert_eq!(ids(&unused), "c d a b");
        let check = |mib: u64, expected: &str| assert_eq!(ids(&enough(unused.clone(), mib * MIB)), expected, "{mib} MiB");
        check(0, "");
        check(1, "c");
        check(30, "c");
        check(31, "c d");
        check(1000, "c d a b");
        // One that went and came again is new.
        known.note(&all[..1], &[], later);
        known.note(&all, &[], later + 1);
        assert_eq!(ids(&known.unused(&all, later + 1)), "a");
    }

    #[test]
    fn what_nobody_could_bring_again_stays() {
        let archived = Image { repo_digests: Vec::new(), ..image("archived", 1) };
        let pinned = Image { pinned: true, ..image("pinned", 1) };
        let own = Image { repo_tags: vec![oci::KPROV_IMAGE.into()], ..image("own", 1) };
        // A pull by digest has no tag.
        let by_digest = Image { repo_tags: Vec::new(), ..image("digest", 1) };
        let all = [archived, pinned, own, by_digest];
        let mut known = Images::default();
        known.note(&all, &[], 0);
        assert_eq!(ids(&known.unused(&all, LEAST_AGE)), "digest");
    }

    #[test]
    fn shares_of_a_disk_are_exact_and_an_unknown_size_is_no_reason() {
        let room = |used, capacity| Room { used, capacity };
        assert!(!room(849, 1000).is_used(HIGH_PERCENT) && room(850, 1000).is_used(HIGH_PERCENT));
        assert!(!room(0, 0).is_used(HIGH_PERCENT));
        assert_eq!((room(850, 1000).above(LOW_PERCENT), room(700, 1000).above(LOW_PERCENT)), (50, 0));
        assert!(room(u64::MAX - 1, u64::MAX).is_used(HIGH_PERCENT));
        let half = room(500, 1000);
        let check = |pods, images, expected| assert_eq!(is_full(pods, images), expected, "{pods:?} {images:?}");
        check(half, half, false);
        check(room(899, 1000), half, false);
        check(room(900, 1000), half, true);
        check(half, room(849, 1000), false);
        check(half, room(850, 1000), true);
    }

    #[test]
    fn pressure_comes_at_once_and_goes_late() {
        let mut pressure = Pressure::default();
        assert!(!pressure.note(false, 0));
        assert!(pressure.note(true, 1));
        assert!(pressure.note(false, 1 + TRANSITION - 1));
        assert!(!pressure.note(false, 1 + TRANSITION));
    }

    #[test]
    fn a_real_disk_has_room() {
        let room = Room::measure(&std::env::temp_dir()).unwrap();
        assert!(room.capacity > 0 && room.used <= room.capacity, "{room:?}");
    }
}
