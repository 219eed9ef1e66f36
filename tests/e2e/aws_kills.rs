//! kill -9 of the real binary at every call to emulated AWS that changes something: `up`, a change of the count, hand-off, `down`.

use crate::aws_cluster::{UID, assert_single, begin, instance, instances, ours, serves};
use crate::harness::{Operated, json};
use crate::rig::kill::{kill_at_every_call, kill_the_loop_at_every_call};

#[test]
fn up_change_and_down_killed_at_every_call_converge() {
    let (aws, operator, file) = begin();
    let account = aws.dump();
    let mut decoys = Vec::new();
    let deaths = kill_at_every_call(&aws.proxy, &operator, &["up", &file, "--yes"], || {
        let uid = aws.dump().iter().find_map(|row| row.tags.get(UID).cloned().flatten());
        if let (Some(uid), true) = (uid, decoys.is_empty()) {
            let real = aws.dump();
            aws.decoys(&uid, operator.name);
            decoys = aws.dump().into_iter().filter(|row| !real.contains(row)).collect();
        }
        assert_single(&ours(&aws, &decoys));
    });
    assert!(decoys.len() >= 100, "{} near-identical strangers", decoys.len());
    deaths.assert_at(&[
        "CreateVpc",
        "CreateRole",
        "PutParameter",
        "RunInstances",
        "CreateFileSystem",
        "CreateMountTarget",
        "CreateListener",
    ]);
    let handed = deaths.known.iter().any(|(_, identity)| identity.ends_with("of an epoch cluster"));
    assert!(handed, "nobody died at the hand-off");
    let up = json(&operator.ok(&["up", &file, "--yes", "-o", "json"]));
    serves(&operator, &up);
    assert_eq!(instances(&aws).len(), 3, "{:?}", ours(&aws, &decoys));

    let text = std::fs::read_to_string(&file).expect("the blueprint");
    let more = text.replace("role: worker, count: 2", "role: worker, count: 3");
    assert_ne!(more, text);
    std::fs::write(&file, more).expect("the blueprint");
    let deaths =
        kill_the_loop_at_every_call(&aws.proxy, &operator, &["up", &file, "--yes"], &aws.machines, &instance(&aws, "machine/control-1"));
    deaths.assert_at(&["RunInstances", "RegisterTargets"]);
    assert_eq!(instances(&aws).len(), 4, "{:?}", ours(&aws, &decoys));
    assert_single(&ours(&aws, &decoys));

    let deaths = kill_at_every_call(&aws.proxy, &operator, &["down", &file, "--yes"], || ());
    deaths.assert_at(&["TerminateInstances", "DeleteLoadBalancer", "DeleteVpc", "DeleteRole", "DeleteFileSystem", "DeleteParameter"]);
    let mut left = account;
    left.extend(decoys);
    left.sort();
    let mut found = aws.dump();
    found.sort();
    assert_eq!(found, left, "nothing is left, and what is not ours is untouched");
    assert_eq!((aws.machines.names(), aws.namespace.links()), (vec![], vec![]), "no machine is left on this host");
}
