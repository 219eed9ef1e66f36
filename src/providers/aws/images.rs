//! Which image machines boot, and who logs in to it. Pure.

use crate::blueprint::providers::Aws as Section;
use aws_sdk_ec2::types::BlockDeviceMapping;

/// The accounts that publish images, and whom those let in.
const DEBIAN: &str = "136693071363";
const CANONICAL: &str = "099720109477";
const USERS: [(&str, &str); 3] = [(DEBIAN, "admin"), (CANONICAL, "ubuntu"), ("amazon", "ec2-user")];

/// By the names of `blueprint::aws::IMAGES`.
const KNOWN: [(&str, &str, &str); 2] = [
    ("debian-12", DEBIAN, "debian-12-{arch}-*"),
    ("ubuntu-24.04", CANONICAL, "ubuntu/images/hvm-ssd-gp3/ubuntu-noble-24.04-{arch}-server-*"),
];

/// How an image is looked for.
#[derive(Debug, PartialEq)]
pub enum Search {
    Id(String),
    /// The newest of an owner whose name is like this.
    Named {
        owner: String,
        pattern: String,
    },
}

/// What was found.
#[derive(Debug, Clone, PartialEq)]
pub struct Image {
    pub id: String,
    pub name: String,
    /// Where its disk is attached: another device would be a second disk.
    pub root_device: String,
    /// What its disk holds: a smaller one is refused.
    pub root_gib: i32,
    pub user: String,
}

/// What the blueprint calls it.
pub fn wanted(section: &Section) -> &str {
    section.image.as_deref().unwrap_or(KNOWN[0].0)
}

pub fn search(image: &str, architecture: &str) -> Search {
    let (owner, pattern) = match KNOWN.iter().find(|(name, ..)| *name == image) {
        Some((_, owner, pattern)) => (*owner, *pattern),
        None => match image.split_once('/') {
            Some(own) => own,
            None => return Search::Id(image.into()),
        },
    };
    let word = if architecture == "arm64" { "arm64" } else { "amd64" };
    Search::Named { owner: owner.into(), pattern: pattern.replace("{arch}", word) }
}

/// The blueprint's word, else what is known of the image's owner (an account, or the alias that AWS gives it).
pub fn user(section: &Section, owners: [Option<&str>; 2]) -> Option<String> {
    let known = || USERS.iter().find(|(owner, _)| owners.contains(&Some(owner))).map(|(_, user)| user.to_string());
    section.user.clone().or_else(known)
}

/// The size of an image's own disk, as far as the image says it.
pub fn root_gib(device: &str, disks: &[BlockDeviceMapping]) -> i32 {
    let root = disks.iter().find(|disk| disk.device_name() == Some(device));
    root.and_then(|disk| disk.ebs()?.volume_size()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blueprint::aws::IMAGES;
    use aws_sdk_ec2::types::EbsBlockDevice;

    #[test]
    fn an_image_is_looked_for_by_its_name_its_owner_or_its_id() {
        assert_eq!(KNOWN.map(|(name, ..)| name), IMAGES);
        let named = |owner: &str, pattern: &str| Search::Named { owner: owner.into(), pattern: pattern.into() };
        assert_eq!(search(wanted(&Section::default()), "x86_64"), named(DEBIAN, "debian-12-amd64-*"));
        assert_eq!(search("debian-12", "arm64"), named(DEBIAN, "debian-12-arm64-*"));
        assert_eq!(search("self/golden/kprov-*", "x86_64"), named("self", "golden/kprov-*"));
        assert_eq!(search("ami-1", "x86_64"), Search::Id("ami-1".into()));
    }

    #[test]
    fn an_image_says_how_large_its_own_disk_is() {
        let disk = |device: &str, size| {
            let ebs = EbsBlockDevice::builder().volume_size(size).build();
            BlockDeviceMapping::builder().device_name(device).ebs(ebs).build()
        };
        let disks = [disk("/dev/sdb", 100), disk("/dev/xvda", 30)];
        assert_eq!((root_gib("/dev/xvda", &disks), root_gib("/dev/sda1", &disks)), (30, 0));
    }

    #[test]
    fn who_logs_in_follows_from_the_owner_unless_it_is_said() {
        let own = Section { user: Some("core".into()), ..Section::default() };
        assert_eq!(user(&own, [Some(DEBIAN), None]).as_deref(), Some("core"));
        assert_eq!(user(&Section::default(), [Some(CANONICAL), None]).as_deref(), Some("ubuntu"));
        assert_eq!(user(&Section::default(), [Some("137112412989"), Some("amazon")]).as_deref(), Some("ec2-user"));
        assert_eq!(user(&Section::default(), [Some("123456789012"), None]), None);
    }
}
