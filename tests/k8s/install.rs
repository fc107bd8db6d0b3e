//! `gracekeeper install` where a Job uses it: from an image that holds nothing else, as UID 65532, onto a pod's volume.

use super::images::Images;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::{Command, Output};

/// The init container's settings of k8s/base, with other volumes.
fn install(images: &Images, volumes: &[&str], dest: &str) -> Output {
    let image = images.name(concat!("gracekeeper-scratch:", env!("CARGO_PKG_VERSION"))).unwrap();
    let hardened = ["--user=65532:65532", "--cap-drop=ALL", "--security-opt=no-new-privileges", "--read-only"];
    let limits = ["--network=none", "--memory=128m", "--cpus=0.2", "--pids-limit=50"];
    let mut command = Command::new("docker");
    command.args(["run", "--rm"]).args(hardened).args(limits).args(volumes).args([&image, "install", dest]);
    command.output().unwrap()
}

fn refused(out: &Output, wanted: &[&str]) {
    let told = String::from_utf8_lossy(&out.stderr).into_owned();
    assert_eq!((out.status.code(), told.lines().count()), (Some(125), 1), "{told}");
    assert!(wanted.iter().all(|part| told.contains(part)), "{wanted:?}: {told}");
}

fn names(directory: &Path) -> Vec<String> {
    std::fs::read_dir(directory).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
}

#[test]
fn it_installs_onto_a_volume_and_over_itself() {
    let Some(images) = Images::get() else { return };
    let root = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    std::fs::set_permissions(root.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
    let volume = format!("--volume={}:/gk", root.path().display());
    let file = root.path().join("gracekeeper");
    let mut inodes = Vec::new();
    for _ in 0..2 {
        let out = install(&images, &[&volume], "/gk/gracekeeper");
        assert!(out.status.success(), "{out:?}");
        let metadata = std::fs::metadata(&file).unwrap();
        assert_eq!((metadata.mode() & 0o7777, metadata.uid()), (0o555, 65532));
        inodes.push(metadata.ino());
    }
    assert_ne!(inodes[0], inodes[1], "a new file in its place, not the old one written over");
    // While the copy runs as a container's PID 1, which a write to it would refuse (ETXTBSY) or crash.
    let name = format!("gk-k8s-{}-running", std::process::id());
    let plain = images.name("busybox:stable").unwrap();
    let running =
        ["run", "-d", "--name", &name, "--network=none", "--pids-limit=50", &volume, "--entrypoint=/gk/gracekeeper"];
    super::images::run(Command::new("docker").args(running).args([&plain, "--", "sleep", "600"]));
    let out = install(&images, &[&volume], "/gk/gracekeeper");
    let state = Command::new("docker").args(["inspect", "-f", "{{.State.Running}}", &name]).output().unwrap();
    let _ = Command::new("docker").args(["rm", "-f", &name]).output();
    assert!(out.status.success(), "{out:?}");
    assert_eq!(state.stdout, b"true\n");
    assert_eq!(names(root.path()), ["gracekeeper"], "nothing is left behind");
}

#[test]
fn what_is_in_its_way_is_said_in_one_line() {
    let Some(images) = Images::get() else { return };
    let root = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    std::fs::set_permissions(root.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
    std::fs::create_dir(root.path().join("directory")).unwrap();
    let volume = format!("--volume={}:/gk", root.path().display());
    refused(
        &install(&images, &["--tmpfs=/gk:size=64k,mode=0777"], "/gk/gracekeeper"),
        &["cannot write", "No space left"],
    );
    refused(&install(&images, &[&format!("{volume}:ro")], "/gk/gracekeeper"), &["/gk", "Read-only file system"]);
    refused(&install(&images, &[], "/gk/gracekeeper"), &["/gk", "No such file"]);
    refused(&install(&images, &[], "/gracekeeper"), &["Read-only file system"]);
    refused(&install(&images, &[&volume], "/gk/directory"), &["is a directory"]);
    refused(&install(&images, &[&volume], "/gk/"), &["is a directory"]);
    std::fs::set_permissions(root.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    refused(&install(&images, &[&volume], "/gk/gracekeeper"), &["/gk", "Permission denied"]);
    assert_eq!(names(root.path()), ["directory"], "nothing is left behind");
}
