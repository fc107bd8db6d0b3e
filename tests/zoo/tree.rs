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

/// As PID 1 and root with CAP_SYS_ADMIN: a volume that is mounted where a target is not, or is no more; as long as the target is there
/// it is known by itself (`evasions::a_target_that_was_covered_or_made_read_only_is_said`).
#[test]
fn a_volume_where_no_target_was() {
    const SCRIPT: &str = r#"set -e
for d in /tmp /dev/shm /mnt; do mount -t tmpfs -o mode=1777 none $d; done; mount -t tmpfs -o mode=755 none /var; cd /
cp "$BINARY" /mnt/gracekeeper; mkdir -p /var/named /mnt/many; for n in 1 2 3 4 5 6 7 8 9; do mkdir /mnt/many/$n; done
for d in /var/volume /mnt/volume /mnt/var/tmp; do mkdir -p $d/dir; touch $d/file $d/dir/file; chmod 700 $d; done
unshare --fork --pid --mount-proc /mnt/gracekeeper --audit-file /mnt/audit.json $OPTIONS -- sh -c "$ATTACK" >&2
echo volumes $(find /mnt/volume /mnt/var/tmp /var/volume -type f | wc -l)
cat /mnt/audit.json"#;
    if !able() {
        return;
    }
    let attack = |without: &str, options: &str, attack: &str, path: &str| {
        let mut command = Command::new("unshare");
        command
            .args(["--mount", "--ipc", "sh", "-c", SCRIPT])
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap());
        command.env("BINARY", switched()).env("GRACEKEEPER_TEST_WITHOUT", without);
        let out = command.env("OPTIONS", options).env("ATTACK", attack).output().unwrap();
        assert!(out.status.success(), "{attack}: {out:?}");
        let out = String::from_utf8(out.stdout).unwrap();
        let left = out.lines().find_map(|line| line.strip_prefix("volumes ")).unwrap().parse::<u32>().unwrap();
        let seal = records(&out).pop().unwrap();
        assert_eq!(seal["process"]["exit_code"], 0, "{attack}: {seal:#}");
        let paths = seal["cleanup"]["paths"].as_array().unwrap();
        let found = paths.iter().find(|found| found["path"] == path).unwrap_or_else(|| panic!("{seal:#}")).clone();
        (left, found["status"].as_str().unwrap().to_owned(), found)
    };
    let many: String = (1..=9).map(|n| format!(" --scrub /mnt/many/{n}")).collect();
    let (absent, named, ninth) = ("/var/tmp", "--scrub /var/named", "/mnt/many/9");
    for (options, path, script) in [
        // Of the same file system, of another one, and in the place of the mount that it would have been on.
        ("", absent, "mkdir /var/tmp && mount --bind /var/volume /var/tmp"),
        ("", absent, "mkdir /var/tmp && mount --bind /mnt/volume /var/tmp"),
        ("", absent, "umount -l /var && mount --bind /mnt/var /var"),
        (named, "/var/named", "rmdir /var/named && mkdir /var/named && mount --bind /var/volume /var/named"),
        (named, "/var/named", "rmdir /var/named && mkdir /var/named && mount --bind /mnt/volume /var/named"),
        // More than are held: known by their numbers.
        (&many, ninth, "mount --bind /mnt/volume /mnt/many/9"),
    ] {
        let (left, ..) = attack("known_mount", options, script, path);
        assert_eq!(left, 4, "control: {script}");
        let (left, status, found) = attack("", options, script, path);
        assert_eq!((left, status.as_str()), (6, "failed"), "{script}: {found}");
        assert!(found["why"].as_str().unwrap().contains("another mount"), "{script}: {found}");
    }
    // What is no mount is emptied, or not there.
    for (options, path, script, status, removed) in [
        ("", absent, "true", "skipped", 0),
        ("", absent, "mkdir -p /var/tmp/dir; touch /var/tmp/file", "complete", 2),
        ("", absent, "mkdir -m 0 /var/tmp", "complete", 0),
        ("", absent, "ln -s volume /var/tmp", "skipped", 0),
        (named, "/var/named", "rmdir /var/named; mkdir -p /var/named/dir", "complete", 1),
        (&many, ninth, "rmdir /mnt/many/9; mkdir -p /mnt/many/9/dir", "failed", 1),
    ] {
        let (left, found_status, found) = attack("", options, script, path);
        assert_eq!((left, found_status.as_str()), (6, status), "{script}: {found}");
        assert_eq!(found["entries_removed"], removed, "{script}: {found}");
    }
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
