//! What the workload builds below /tmp to lead the scrub astray.

use super::fuse::Hanging;
use super::place::*;
use super::support::*;
use std::process::{Command, Stdio};
use std::time::Instant;

const VICTIM: &str = "/media/victim";

/// Whether the victim's file is gone, and what was left in /tmp.
fn run(guard: Guard<'_>, place: Place, root: bool, attack: &str) -> (bool, Attempt) {
    let mut stage = Stage::new(place).options(&["--scrub", "/tmp"]);
    stage.root = root;
    assert!(!root || attack == "mount", "whoever follows links as root goes far");
    let own =
        if guard == Guard::Plain { "touch /tmp/.mounted-for-this-attack-alone; chown 65532 /tmp/.m*" } else { ":" };
    stage.before = format!("{own}; mkdir {VICTIM}; echo precious > {VICTIM}/file; chown -R 65532:65532 {VICTIM}");
    let ran = stage.run(guard, &[attack, VICTIM]);
    assert!(ran.says("succeeded"), "{ran:#?}");
    (!ran.share().join("victim/file").exists(), ran)
}

#[test]
fn links_that_lead_out() {
    if !able() {
        return;
    }
    for place in [Pid1, Below] {
        assert!(run(Guard::Plain, place, false, "links").0, "control");
        assert!(run(Guard::Without("own_tree"), place, false, "links").0, "control");
        let (gone, ran) = run(Guard::Full, place, false, "links");
        let seal = ran.seal().unwrap();
        assert!(!gone, "{ran:#?}");
        let tmp = seal["cleanup"]["paths"].as_array().unwrap().iter().find(|p| p["path"] == "/tmp").unwrap();
        // Two directories and three links.
        assert_eq!((&tmp["status"], &tmp["entries_removed"]), (&"complete".into(), &5.into()), "{seal:#}");
    }
}

/// As root with CAP_SYS_ADMIN, as a container may be.
#[test]
fn mounts_below() {
    if !able() {
        return;
    }
    for place in [Pid1, Below] {
        assert!(run(Guard::Plain, place, true, "mount").0, "control");
        assert!(run(Guard::Without("own_tree"), place, true, "mount").0, "control");
        let (gone, ran) = run(Guard::Full, place, true, "mount");
        assert!(!gone, "{ran:#?}");
        // The mount point cannot go, and that is said.
        assert_eq!(ran.seal().unwrap()["cleanup_status"], "failed", "{ran:#?}");
    }
}

/// A volume of the target's own file system, on a mount point that root made, as runtimes do; and a kernel or a profile without
/// openat2(2), whose RESOLVE_NO_XDEV says it else. Its device is the target's, and the kernel says EACCES before it says EBUSY.
#[test]
fn a_volume_of_the_same_file_system_without_openat2() {
    const SCRIPT: &str = r#"set -e
mount -t tmpfs -o mode=1777 none /mnt; cd /mnt; cp "$BINARY" gracekeeper; chmod 755 gracekeeper
mkdir -p tree/a/data volume/dir; touch volume/file volume/dir/file tree/own; chown -R 65532:65532 volume tree; chown 0:0 tree/a
mount --bind volume tree/a/data
TMPDIR=/mnt strace -f -qq -o /dev/null -e trace=openat2 -e inject=openat2:error=ENOSYS \
    setpriv --reuid 65532 --regid 65532 --clear-groups --no-new-privs --bounding-set -all --inh-caps -all \
    ./gracekeeper --scrub /mnt/tree -- true >&2
echo own $(find tree -name own | wc -l) volume $(find volume -type f | wc -l)"#;
    if !able() || !has("strace") {
        return;
    }
    let left = |without: &str| {
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", SCRIPT]).env_clear().env("PATH", std::env::var_os("PATH").unwrap());
        command.env("BINARY", switched()).env("GRACEKEEPER_TEST_WITHOUT", without);
        let out = command.output().unwrap();
        assert!(out.status.success(), "{out:?}");
        String::from_utf8(out.stdout).unwrap()
    };
    assert_eq!(left("mount_id"), "own 0 volume 0\n", "control: the device is the same");
    assert_eq!(left(""), "own 0 volume 2\n");
}

/// A target on a file system that does not answer, and one beside it: with one CPU there is one worker, which waits.
#[test]
fn one_that_hangs_beside_one_that_does_not() {
    if !able() {
        return;
    }
    let status = |without: &str| {
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let (hangs, other, audit) = (dir.path().join("hangs"), dir.path().join("other"), dir.path().join("audit.json"));
        std::fs::create_dir(&hangs).unwrap();
        std::fs::create_dir(&other).unwrap();
        std::fs::write(other.join("secret"), "secret").unwrap();
        let fuse = Hanging::mount(&hangs);
        let mut command = Command::new("taskset");
        command.args(["-c", "0"]).arg(switched()).args(["--scrub-budget", "1s", "--audit-file"]).arg(&audit);
        command.arg("--scrub").arg(&hangs).arg("--scrub").arg(&other).args(["--", "true"]);
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap()).env("TMPDIR", dir.path());
        command.env("GRACEKEEPER_TEST_WITHOUT", without);
        let began = Instant::now();
        let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let text = || std::fs::read_to_string(&audit).unwrap_or_default();
        until("the seal is there", || text().contains("evaluation_terminated"));
        fuse.abort();
        finish(child, began);
        let seal = records(&text()).pop().unwrap();
        let paths = seal["cleanup"]["paths"].as_array().unwrap();
        let of = |path: &std::path::Path| {
            let path = path.to_str().unwrap();
            paths.iter().find(|found| found["path"] == path).unwrap()["status"].as_str().unwrap().to_owned()
        };
        (of(&hangs), of(&other), other.join("secret").exists())
    };
    assert_eq!(status("nudge"), ("partial".into(), "partial".into(), true), "control: nobody is left for it");
    assert_eq!(status(""), ("partial".into(), "complete".into(), false));
}
