//! A folder of one machine, mounted by all of them and by nobody else.

use super::assert_same;
use crate::harness::{Operated, until};
use crate::rig::hosts::Hosts;

/// The NFS server's own table.
fn exported(hosts: &Hosts, host: &str) -> String {
    String::from_utf8_lossy(&hosts.machines.inside(host, "exportfs -s").stdout).into_owned()
}

#[test]
fn a_host_that_exports_folders_of_its_own_keeps_them_beside_the_clusters() {
    let mut hosts = Hosts::new("exports");
    hosts.root(81);
    let own = "mkdir /srv/own; echo theirs >/srv/own/file; echo '/srv/own 10.99.0.0/24(ro,sync,no_subtree_check)' >/etc/exports\n\
               service nfs-kernel-server start";
    hosts.host(82, "debian", own);
    let before = hosts.inventories();
    let theirs = exported(&hosts, "host-82");
    assert!(theirs.starts_with("/srv/own  10.99.0.0/24("), "{theirs}");

    let file = hosts.example(1, "      filesystems: {media: 10.99.0.82}\n");
    let file = file.to_str().expect("path");
    hosts.ok(&["up", file, "--yes"]);
    let both = exported(&hosts, "host-82");
    assert!(both.contains(theirs.trim()) && both.matches("/var/lib/kprov-filesystems/").count() == 2, "{both}");
    assert_eq!(exported(&hosts, "host-81"), "", "the blueprint says which host keeps it");

    // What somebody takes away, the loop inside brings back.
    let folder = both.lines().find_map(|line| line.split(' ').next().filter(|folder| folder.contains("kprov"))).expect("our folder");
    hosts.machines.inside("host-82", &format!("exportfs -u 10.99.0.81:{folder}"));
    until("it is exported to the other", || exported(&hosts, "host-82").contains("10.99.0.81("));

    hosts.ok(&["down", file, "--yes"]);
    assert_eq!(exported(&hosts, "host-82"), theirs);
    assert_same(&before, &hosts.inventories());
}

#[test]
fn machines_mount_it_as_they_come_and_may_no_more_when_they_are_gone() {
    let mut hosts = Hosts::new("mounts");
    hosts.root(84);
    hosts.sudo(85);
    let before = hosts.inventories();
    let file = hosts.example(1, "");
    hosts.ok(&["up", file.to_str().expect("path"), "--yes"]);
    let clients = |hosts: &Hosts| exported(hosts, "host-84").lines().filter(|line| line.contains("kprov")).count();
    assert_eq!(clients(&hosts), 2);
    hosts.root(86);
    let third = hosts.inventory("host-86");
    let file = hosts.example(2, "");
    hosts.ok(&["up", file.to_str().expect("path"), "--yes"]);
    assert_eq!(clients(&hosts), 3);
    let mounts = |host: &str| String::from_utf8_lossy(&hosts.machines.inside(host, "cat /var/log/mount.nfs4.log").stdout).into_owned();
    until("the new machine mounts it", || mounts("host-86").starts_with("10.99.0.84:/var/lib/kprov-filesystems/"));
    assert_eq!(mounts("host-84"), "", "the machine that keeps it has it without NFS");

    std::fs::remove_dir_all(hosts.home()).expect("the state is lost");
    let file = hosts.example(1, "");
    let file = file.to_str().expect("path");
    hosts.ok(&["up", file, "--yes"]);
    until("the host is as before", || clients(&hosts) == 2 && hosts.inventory("host-86") == third);
    hosts.ok(&["down", file, "--yes"]);
    assert_same(&before, &hosts.inventories()[..2]);
}
