//! What a workload does to a target, and not to what is in it: moving it, covering it, forbidding it; and what has to stay.

use super::places::*;
use super::support::{BINARY, has, records};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;

const BUDGET: &[&str] = &["--scrub-budget", "20s"];

/// As UID 65532, without openat2(2): as under a seccomp profile from before Linux 5.6.
fn without_openat2(errno: &str) -> Vec<String> {
    let inject = format!("inject=openat2:error={errno}");
    let words = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", "trace=openat2", "-e", &inject];
    words.iter().map(|&word| word.to_owned()).chain(dropped(true)).collect()
}

fn owned_by_nobody(path: &Path) {
    ran("chown", &[&"-R", &"65532:65532", &path]);
}

/// A volume of the same file system: the same device, so that only the mount tells it from the tree.
#[test]
fn without_openat2_a_mount_below_stays() {
    if !has("root") || !has("strace") {
        return;
    }
    // The second one's own mode forbids it, and stays as well.
    for (errno, mode) in [("ENOSYS", 0o755), ("ENOSYS", 0o000), ("EPERM", 0o755)] {
        let mut place = ext4();
        let tree = place.path().join("tree");
        let volume = victim(&place.path(), true);
        fs::create_dir_all(tree.join("a/data")).unwrap();
        fs::write(tree.join("a/file"), "secret").unwrap();
        owned_by_nobody(&tree);
        // Its parent is root's, as runtimes make it: then the kernel says EACCES before it says EBUSY.
        ran("chown", &[&"root:root", &tree.join("a")]);
        fs::set_permissions(&volume, fs::Permissions::from_mode(mode)).unwrap();
        let before = digest(&volume);
        ran("mount", &[&"--bind", &volume, &tree.join("a/data")]);
        place.also(&tree.join("a/data"));
        assert_eq!(fs::metadata(&tree).unwrap().dev(), fs::metadata(tree.join("a/data")).unwrap().dev());
        let (run, path) = scrub(&tree, &without_openat2(errno), BUDGET);
        assert_eq!(digest(&volume), before, "{errno}: {run:#?}");
        assert_eq!(path["status"], "failed", "{path}");
    }
}

#[test]
fn without_openat2_no_part_of_the_path_may_be_a_symlink() {
    if !has("root") || !has("strace") {
        return;
    }
    let place = tmpfs();
    let volume = victim(&place.path(), true);
    let tree = place.path().join("p/sub");
    fs::create_dir_all(&tree).unwrap();
    fs::write(tree.join("file"), "secret").unwrap();
    owned_by_nobody(&place.path().join("p"));
    let before = digest(&volume);
    let workload = format!("cd ..; mv p q; ln -s {} p; [ -e p/sub/dir ]", volume.display());
    let (run, path) = scrub_after(&workload, &tree, &without_openat2("ENOSYS"), BUDGET);
    assert_eq!(run.seal()["process"]["exit_code"], 0, "the link leads there: {run:#?}");
    assert_eq!(digest(&volume), before, "{run:#?}");
    assert_eq!((&path["status"], &path["entries_removed"]), (&"failed".into(), &1.into()), "{path}");
    assert_eq!(fs::read_dir(place.path().join("q/sub")).unwrap().count(), 0);
}

#[test]
fn a_target_that_was_moved_is_emptied_where_it_is_and_that_is_said() {
    let make = |place: &Place| {
        let tree = place.path().join("target");
        fs::create_dir_all(tree.join("in")).unwrap();
        fs::write(tree.join("in/file"), "secret").unwrap();
        tree
    };
    for (workload, status, removed, left) in [
        ("true", "complete", 2, "target"),
        ("mv target elsewhere", "failed", 2, "elsewhere"),
        ("mv target elsewhere; ln -s elsewhere target", "failed", 2, "elsewhere"),
        ("mv target elsewhere; mkdir target", "failed", 2, "elsewhere"),
        // Nothing is left of it.
        ("rm -r target", "skipped", 0, ""),
        ("rm -r target; ln -s / target", "skipped", 0, ""),
        ("rm -r target; mkdir target; touch target/new", "complete", 1, "target"),
    ] {
        let place = tmpfs();
        let tree = make(&place);
        let (run, path) = scrub_after(workload, &tree, &[], BUDGET);
        assert_eq!(
            (&path["status"], &path["entries_removed"]),
            (&status.into(), &removed.into()),
            "{workload}: {path}"
        );
        assert_eq!(run.seal()["cleanup_status"] == "failed", status == "failed", "{workload}: {run:#?}");
        if !left.is_empty() {
            assert_eq!(fs::read_dir(place.path().join(left)).unwrap().count(), 0, "{workload}");
        }
    }
}

#[test]
fn the_targets_own_mode_is_what_it_was() {
    let modes = [0o000, 0o300, 0o500, 0o1777, 0o2770];
    for mode in modes {
        let place = tmpfs();
        let tree = place.path().join("target");
        fs::create_dir_all(tree.join("in")).unwrap();
        fs::write(tree.join("in/file"), "secret").unwrap();
        let nobody = has("root");
        if nobody {
            owned_by_nobody(&tree);
        }
        fs::set_permissions(&tree, fs::Permissions::from_mode(mode)).unwrap();
        let (_, path) = scrub(&tree, &dropped(nobody), BUDGET);
        assert_eq!((&path["status"], &path["entries_removed"]), (&"complete".into(), &2.into()), "{mode:o}: {path}");
        assert_eq!(fs::metadata(&tree).unwrap().mode() & 0o7777, mode);
    }
}

/// Directories that have to be changed to be emptied, and then stay for what is at the end of them: a mount point, and a file that
/// nobody may remove. Also deeper than there are descriptors.
#[test]
fn a_directory_that_stays_has_its_own_mode() {
    if !has("root") {
        return;
    }
    let modes = [0o500, 0o000, 0o100, 0o1500, 0o755, 0o400, 0o2300, 0o200];
    for depth in [6, 60] {
        for volume in [true, false] {
            let mut place = ext4();
            let tree = place.path().join("tree");
            let mut levels = vec![tree.clone()];
            for n in 0..depth {
                let below = levels[n].join(format!("level-{n}"));
                // What goes: a file, a directory that may not be read.
                fs::create_dir_all(&below).unwrap();
                fs::create_dir(levels[n].join("side")).unwrap();
                fs::write(levels[n].join("side/file"), "secret").unwrap();
                fs::write(levels[n].join("file"), "secret").unwrap();
                owned_by_nobody(&levels[n]);
                fs::set_permissions(levels[n].join("side"), fs::Permissions::from_mode(0o000)).unwrap();
                levels.push(below);
            }
            let last = levels.pop().unwrap();
            if volume {
                let victim = victim(&place.path(), true);
                ran("mount", &[&"--bind", &victim, &last]);
                place.also(&last);
            } else {
                fs::write(last.join("kept"), "kept").unwrap();
                levels.push(last.clone());
                ran("chattr", &[&"+i", &last.join("kept")]);
            }
            let mode = |n: usize| if n == 0 { 0o1777 } else { modes[n % modes.len()] };
            for (n, level) in levels.iter().enumerate().rev() {
                fs::set_permissions(level, fs::Permissions::from_mode(mode(n))).unwrap();
            }
            let (run, path) = scrub(&tree, &dropped(true), BUDGET);
            let found: Vec<u32> = levels.iter().map(|level| fs::metadata(level).unwrap().mode() & 0o7777).collect();
            let kept = if volume { count(&last) } else { u64::from(last.join("kept").exists()) };
            if !volume {
                ran("chattr", &[&"-i", &last.join("kept")]);
            }
            assert_eq!(path["status"], "failed", "{run:#?}");
            // Everything else is gone, which takes every right to each of the levels.
            assert_eq!(path["entries_removed"], 3 * depth, "{depth} {volume}: {run:#?}");
            assert!(levels.iter().all(|level| fs::read_dir(level).unwrap().count() == 1), "{run:#?}");
            assert_eq!(kept, if volume { 42 } else { 1 });
            assert_eq!(found, (0..levels.len()).map(mode).collect::<Vec<_>>(), "{depth} {volume}");
        }
    }
}

/// An immutable file: what cannot be removed is said, and its directory is what it was.
#[test]
fn what_is_immutable_is_said_and_changes_no_mode() {
    let place = ext4();
    let tree = place.path().join("target");
    fs::create_dir(&tree).unwrap();
    fs::write(tree.join("file"), "secret").unwrap();
    fs::set_permissions(&tree, fs::Permissions::from_mode(0o1777)).unwrap();
    let file = tree.join("file");
    if !has("root") || !Command::new("chattr").arg("+i").arg(&file).status().is_ok_and(|status| status.success()) {
        println!("skipped: no immutable file here");
        return;
    }
    let (_, path) = scrub(&tree, &[], BUDGET);
    ran("chattr", &[&"-i", &file]);
    assert_eq!((&path["status"], &path["why"]), (&"failed".into(), &"EPERM".into()), "{path}");
    assert_eq!(fs::metadata(&tree).unwrap().mode() & 0o7777, 0o1777);
}

/// As PID 1: the audit file, gracekeeper itself and a directory that is a target of its own, all of them below /tmp.
#[test]
fn own_files_and_named_directories_below_a_target_stay() {
    if !has("root") {
        return;
    }
    const INNER: &str = r#"set -e
for d in /tmp /var/tmp /dev/shm; do mount -t tmpfs -o mode=1777 none $d; done
mkdir -p /tmp/own/deep /tmp/named; chmod 777 /tmp/own/deep /tmp/named; cp "$BINARY" /tmp/own/gracekeeper; chmod 755 /tmp/own/gracekeeper; cd /
$DROP /tmp/own/gracekeeper --audit-file /tmp/own/deep/audit.json --scrub /tmp/named -- sh -c 'mkdir -p /tmp/x/y; touch /tmp/x/y/z /tmp/own/deep/other /tmp/named/file; mkdir /tmp/named/dir' 2>&1
echo FOUND; find /tmp -mindepth 1 | sort; echo AUDIT; cat /tmp/own/deep/audit.json"#;
    for unprivileged in [false, true] {
        // gracekeeper is the child of a shell, so a PID namespace of its own inside.
        let drop = format!("unshare --fork --pid --mount-proc {}", dropped(unprivileged).join(" "));
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", INNER]).env_clear().env("PATH", std::env::var_os("PATH").unwrap());
        let out = command.env("DROP", drop).env("BINARY", BINARY).output().unwrap();
        let (stdout, stderr) = (text_of(&out.stdout), text_of(&out.stderr));
        assert!(out.status.success(), "{stdout}{stderr}");
        let found = stdout.split_once("FOUND\n").unwrap().1.split_once("AUDIT").unwrap();
        let wanted = "/tmp/named\n/tmp/own\n/tmp/own/deep\n/tmp/own/deep/audit.json\n/tmp/own/gracekeeper\n";
        assert_eq!(found.0, wanted, "{stdout}{stderr}");
        let seal = records(found.1).pop().unwrap_or_else(|| panic!("{stdout}{stderr}"));
        assert_eq!(seal["cleanup_status"], "complete", "{seal:#}");
        let paths = seal["cleanup"]["paths"].as_array().unwrap();
        let tmp = paths.iter().find(|path| path["path"] == "/tmp").unwrap();
        assert!(tmp["why"].as_str().unwrap().contains("which stays"), "{tmp}");
        let removed: u64 = paths.iter().map(|path| path["entries_removed"].as_u64().unwrap()).sum();
        assert_eq!(removed, 6, "{seal:#}");
    }
}

/// The directory between two targets stays. Removed by the workload, it leaves its number to the next file on such a file system.
#[test]
fn a_number_that_is_used_again_keeps_no_file() {
    if !has("root") {
        return;
    }
    const ATTACK: &str = r#"cd "$D"; number=$(stat -c %i work); mv work/out out; rmdir work; n=0
while [ $n -lt 400 ]; do n=$((n+1)); echo secret > file-$n; [ $(stat -c %i file-$n) = $number ] && touch again && break; done; rmdir out"#;
    const INNER: &str = r#"set -e
for d in /tmp /var/tmp /dev/shm /mnt; do mount -t tmpfs -o mode=1777 none $d; done; cp "$BINARY" /mnt/gracekeeper
unshare --fork --pid --mount-proc /mnt/gracekeeper --audit-file /mnt/audit.json --env inherit --scrub "$D" --scrub "$D/work/out" -- sh -c "$ATTACK" >&2
cat /mnt/audit.json"#;
    let place = ext4();
    for (name, script) in [("control", ATTACK), ("scrubbed", INNER)] {
        // Not below /dev/shm, which is covered.
        let tree = place.path().join(name);
        fs::create_dir_all(tree.join("work/out")).unwrap();
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c"]).arg(format!(
            "mount -t tmpfs none /run && mkdir /run/place && mount --bind \"$PLACE\" /run/place\n{script}"
        ));
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap()).env("BINARY", BINARY).env("ATTACK", ATTACK);
        let out = command.env("PLACE", place.path()).env("D", format!("/run/place/{name}")).output().unwrap();
        let (stdout, stderr) = (text_of(&out.stdout), text_of(&out.stderr));
        assert!(out.status.success(), "{stdout}{stderr}");
        if name == "control" {
            assert!(tree.join("again").exists(), "the number came again");
            continue;
        }
        let seal = records(&stdout).pop().unwrap_or_else(|| panic!("{stdout}{stderr}"));
        assert_eq!(seal["cleanup_status"], "complete", "{seal:#}");
        assert_eq!(count(&tree), 0, "{seal:#}");
    }
}

/// As PID 1 and root with CAP_SYS_ADMIN, as a container may be: what was mounted over a target, or made of its mount, is said.
#[test]
fn a_target_that_was_covered_or_made_read_only_is_said() {
    if !has("root") {
        return;
    }
    const INNER: &str = r#"set -e
for d in /tmp /var/tmp /dev/shm /mnt; do mount -t tmpfs -o mode=1777 none $d; done; cd /; cp "$BINARY" /mnt/gracekeeper
unshare --fork --pid --mount-proc /mnt/gracekeeper --audit-file /mnt/audit.json -- sh -c "touch /tmp/secret; $ATTACK" >&2
echo LEFT $(ls /tmp); cat /mnt/audit.json"#;
    for (attack, why, left) in [
        ("true", None, ""),
        ("mount -t tmpfs none /tmp; touch /tmp/decoy", Some("it is not at its path any more"), ""),
        ("mount -o remount,ro /tmp", Some("read-only, and was not"), "secret"),
    ] {
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", INNER]).env_clear().env("PATH", std::env::var_os("PATH").unwrap());
        let out = command.env("BINARY", BINARY).env("ATTACK", attack).output().unwrap();
        let (stdout, stderr) = (text_of(&out.stdout), text_of(&out.stderr));
        assert!(out.status.success(), "{stdout}{stderr}");
        let (found, audit) = stdout.strip_prefix("LEFT").unwrap().split_once('\n').unwrap();
        assert_eq!(found.trim(), left, "{attack}: {stdout}{stderr}");
        let seal = records(audit).pop().unwrap();
        let paths = seal["cleanup"]["paths"].as_array().unwrap();
        let tmp = paths.iter().find(|path| path["path"] == "/tmp").unwrap();
        assert_eq!(seal["cleanup_status"], if why.is_some() { "failed" } else { "complete" }, "{attack}: {seal:#}");
        assert!(why.is_none_or(|why| tmp["why"].as_str().unwrap().contains(why)), "{attack}: {tmp}");
    }
}

/// Deeper than there are descriptors, in directories of the image that the kernel moves nowhere (EXDEV, redirect_dir of overlay).
#[test]
fn a_chain_of_the_image_goes() {
    let Some(place) = overlay() else { return };
    let tree = place.path().join("chain");
    // Control: what moves a directory of the image is refused.
    let refused = fs::rename(tree.join("level-0"), place.path().join("moved"));
    assert_eq!(refused.map_err(|e| e.raw_os_error()), Err(Some(libc::EXDEV)));
    let (_, path) = scrub(&tree, &[], BUDGET);
    assert_eq!((&path["status"], &path["entries_removed"]), (&"complete".into(), &61.into()), "{path}");
}

/// Two workers, each with one name of every file.
#[test]
fn the_space_of_a_file_with_two_names_is_counted_once() {
    let place = ext4();
    let tree = place.path().join("tree");
    for round in 0..5 {
        for dir in ["a", "b"] {
            fs::create_dir_all(tree.join(dir)).unwrap();
        }
        for n in 0..3000 {
            fs::write(tree.join(format!("a/{n}")), "x").unwrap();
            fs::hard_link(tree.join(format!("a/{n}")), tree.join(format!("b/{n}"))).unwrap();
        }
        let (_, path) = scrub(&tree, &[], BUDGET);
        let block = fs::metadata(place.path()).unwrap().blksize();
        assert_eq!(path["entries_removed"], 6002, "round {round}: {path}");
        assert_eq!(path["bytes_removed"], 3000 * block, "round {round}: {path}");
    }
}
