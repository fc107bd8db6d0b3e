//! One tree for each thing an adversary may do, made by the very UID that the scrub has.

use super::places::*;
use std::ffi::CString;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

pub const SHAPES: [&str; 11] =
    ["many", "flat", "deep", "names", "modes", "links", "special", "sizes", "bits", "wide", "legs"];

/// Makes the tree `shape` below `below`, as UID 65532 where `unprivileged`. A process of its own, which this test binary is.
pub fn make(shape: &str, below: &Path, unprivileged: bool) -> PathBuf {
    let tree = below.join(format!("tree-{shape}"));
    // A copy, where everybody may execute it: the checkout may lie below a directory that others cannot enter.
    let copy = std::env::temp_dir().join(format!(
        "gracekeeper-maker-{}-{:?}",
        std::process::id(),
        std::thread::current().id()
    ));
    // By another process: a fork of ours in between would keep it open for writing (ETXTBSY).
    assert!(Command::new("cp").arg(std::env::current_exe().unwrap()).arg(&copy).status().unwrap().success());
    let mut command = Command::new(&copy);
    command
        .args(["--exact", "trees::maker", "--nocapture"])
        .env("GRACEKEEPER_MAKE", shape)
        .env("GRACEKEEPER_BELOW", below);
    if unprivileged {
        command.uid(NOBODY).gid(NOBODY);
    }
    let out = command.output();
    std::fs::remove_file(&copy).unwrap();
    let out = out.unwrap();
    assert!(out.status.success() && tree.exists(), "{shape}: {}{}", text_of(&out.stdout), text_of(&out.stderr));
    tree
}

/// Not a test: what `make` runs.
#[test]
fn maker() {
    let Some(shape) = std::env::var_os("GRACEKEEPER_MAKE") else { return };
    let below = PathBuf::from(std::env::var_os("GRACEKEEPER_BELOW").unwrap());
    let shape = shape.to_str().unwrap();
    let tree = below.join(format!("tree-{shape}"));
    fs::create_dir(&tree).unwrap();
    let victim = below.join("victim");
    match shape {
        "many" => {
            for d in 0..size(1000, 60) {
                let dir = tree.join(format!("directory-{d}"));
                fs::create_dir(&dir).unwrap();
                (0..size(1000, 100)).for_each(|f| fs::write(dir.join(format!("file-{f}")), "secret").unwrap());
            }
        }
        "flat" => (0..size(500_000, 8000)).for_each(|f| fs::write(tree.join(format!("file-{f}")), "").unwrap()),
        "deep" => deep(&tree, size(100_000, 5000)),
        "names" => names(&tree),
        "modes" => modes(&tree),
        "links" => links(&tree, &victim),
        "special" => special(&tree),
        "sizes" => {
            fs::File::create(tree.join("sparse")).unwrap().set_len(1 << 40).unwrap();
            fs::write(tree.join("big"), vec![7; 32 << 20]).unwrap();
        }
        "bits" => {
            for mode in [0o1777, 0o2775, 0o7777, 0o1000, 0o2000] {
                let dir = tree.join(format!("{mode:o}"));
                fs::create_dir_all(dir.join("in/side")).unwrap();
                fs::write(dir.join("in/file"), "x").unwrap();
                fs::set_permissions(&dir, fs::Permissions::from_mode(mode)).unwrap();
            }
        }
        "wide" => {
            // More names than one read or one list holds, and nested below the window.
            let mut at = tree.clone();
            for _ in 0..60 {
                at.push("level");
            }
            fs::create_dir_all(&at).unwrap();
            for dir in [&tree, &at] {
                for i in 0..600 {
                    fs::create_dir_all(dir.join(format!("{i:0>240}")).join("in")).unwrap();
                    fs::create_dir_all(dir.join(format!("empty-{i}"))).unwrap();
                }
            }
        }
        // A chain, and at each level more to do beside it: whoever goes down leaves every level open behind him.
        "legs" => {
            let mut at = tree.clone();
            for level in 0..40 {
                (0..200).for_each(|i| fs::create_dir_all(at.join(format!("{i:0>200}/leg"))).unwrap());
                at.push(format!("level-{level}"));
                fs::create_dir(&at).unwrap();
            }
        }
        // As many directories as may be open, and deeper trees at the end of them than one worker may keep the levels of.
        "roots" => {
            let mut at = tree.clone();
            for _ in 0..27 {
                fs::create_dir_all(at.join("beside/in")).unwrap();
                at.push("level");
                fs::create_dir(&at).unwrap();
            }
            for root in 0..4 {
                let root = at.join(format!("root-{root}"));
                fs::create_dir(&root).unwrap();
                deep(&root, 100_000);
            }
        }
        other => panic!("no such shape: {other}"),
    }
}

fn deep(tree: &Path, levels: usize) {
    use nix::fcntl::{OFlag, open, openat};
    use nix::sys::stat::{Mode, mkdirat};
    let mut at = open(tree, OFlag::O_DIRECTORY, Mode::empty()).unwrap();
    for level in 0..levels {
        let name = if level % 2 == 0 { "d" } else { "a-longer-name" };
        mkdirat(&at, name, Mode::S_IRWXU).unwrap();
        if level % 100 == 0 {
            drop(openat(&at, "secret", OFlag::O_CREAT | OFlag::O_WRONLY, Mode::S_IRUSR).unwrap());
        }
        at = openat(&at, name, OFlag::O_DIRECTORY, Mode::empty()).unwrap();
    }
}

fn names(tree: &Path) {
    for byte in (1..=255u8).filter(|&b| b != b'/') {
        // "." itself cannot be made.
        let name = if byte == b'.' { vec![byte; 3] } else { vec![byte] };
        fs::write(tree.join(std::ffi::OsStr::from_bytes(&name)), "x").unwrap();
        let long = tree.join(std::ffi::OsStr::from_bytes(&[byte; 255]));
        fs::create_dir_all(long.join(std::ffi::OsStr::from_bytes(&[byte; 254]))).unwrap();
    }
    for name in ["-rf", "a\nb", "$(id)", "..a", ". ", "**", "\u{2215}etc"] {
        fs::create_dir_all(tree.join(name).join(name)).unwrap();
    }
}

fn modes(tree: &Path) {
    let mut at = tree.to_owned();
    let mut made = vec![];
    for level in 0..60 {
        for (i, mode) in [0o000, 0o100, 0o200, 0o300, 0o400, 0o500].into_iter().enumerate() {
            let dir = at.join(format!("side-{i}"));
            fs::create_dir(&dir).unwrap();
            fs::write(dir.join("file"), "secret").unwrap();
            fs::set_permissions(dir.join("file"), fs::Permissions::from_mode(0o000)).unwrap();
            made.push((dir, mode));
        }
        at.push(format!("level-{level}"));
        fs::create_dir(&at).unwrap();
        made.push((at.clone(), [0o000, 0o500, 0o100][level % 3]));
    }
    made.iter().rev().for_each(|(dir, mode)| fs::set_permissions(dir, fs::Permissions::from_mode(*mode)).unwrap());
}

fn links(tree: &Path, victim: &Path) {
    for dir in [tree.to_owned(), tree.join("a"), tree.join("a/b/c")] {
        fs::create_dir_all(&dir).unwrap();
        symlink(victim, dir.join("to-victim")).unwrap();
        symlink(victim.join("file-1"), dir.join("to-file")).unwrap();
        symlink("../victim", dir.join("relative")).unwrap();
        symlink("..", dir.join("up")).unwrap();
        symlink("/", dir.join("root")).unwrap();
        symlink("loop", dir.join("loop")).unwrap();
        symlink("nowhere", dir.join("dangling")).unwrap();
        for i in 0..20 {
            fs::hard_link(victim.join(format!("file-{i}")), dir.join(format!("hard-{i}"))).unwrap();
        }
    }
}

fn special(tree: &Path) {
    for dir in [tree.to_owned(), tree.join("below")] {
        fs::create_dir_all(&dir).unwrap();
        nix::unistd::mkfifo(&dir.join("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        let path = CString::new(dir.join("socket").as_os_str().as_bytes()).unwrap();
        // SAFETY: mknod(2) with a path that lives through the call; a socket's node needs no privilege.
        assert_eq!(unsafe { libc::mknod(path.as_ptr(), libc::S_IFSOCK | 0o600, 0) }, 0);
        if nix::unistd::geteuid().is_root() {
            for (name, kind) in [("null", libc::S_IFCHR), ("disk", libc::S_IFBLK)] {
                let path = CString::new(dir.join(name).as_os_str().as_bytes()).unwrap();
                // SAFETY: as above. A device that nothing drives: whoever opened it would get ENXIO.
                assert_eq!(unsafe { libc::mknod(path.as_ptr(), kind | 0o600, libc::makedev(240, 77)) }, 0);
            }
        }
    }
}

#[test]
fn every_shape_everywhere() {
    everywhere(|place, unprivileged| {
        for shape in SHAPES {
            let below = tempfile::Builder::new().prefix("case-").tempdir_in(place.path()).unwrap();
            if unprivileged {
                ran("chown", &[&"65532:65532", &below.path()]);
            }
            let what = format!("{shape} on {} {}", place.name, if unprivileged { "as 65532" } else { "as root" });
            let victim = victim(below.path(), unprivileged);
            let tree = make(shape, below.path(), unprivileged);
            let (before, entries) = (digest(&victim), count(&tree));
            let (run, path) = scrub(&tree, &dropped(unprivileged), &["--scrub-budget", "50s"]);
            assert_eq!(path["status"], "complete", "{what}: {run:#?}");
            assert_eq!(fs::read_dir(&tree).unwrap().count(), 0, "{what}");
            assert_eq!(path["entries_removed"], entries, "{what}: {path}");
            assert_eq!(digest(&victim), before, "{what}: the victim changed");
            println!("{what}: {entries} entries, {} ms", run.seal()["cleanup"]["used_ms"]);
        }
    });
}

/// The digest of the test above sees what a walker that follows links would do.
#[test]
fn the_digest_sees_a_change() {
    let place = tmpfs();
    let victim = victim(&place.path(), false);
    let before = digest(&victim);
    assert_eq!(digest(&victim), before);
    fs::write(victim.join("sub/dir/file-3"), vec![b'w'; 5000]).unwrap();
    let changed = digest(&victim);
    assert_ne!(changed, before);
    fs::remove_file(victim.join("sub/dir/file-3")).unwrap();
    assert!(digest(&victim) != changed);
}
