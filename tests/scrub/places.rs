//! Where trees are made, how they are scrubbed by the real binary, and what is looked at afterwards.

use super::support::*;
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

pub const NOBODY: u32 = 65532;

/// Full size or scaled.
pub fn size(full: usize, scaled: usize) -> usize {
    if std::env::var_os("GRACEKEEPER_FULL").is_some() { full } else { scaled }
}

/// A file system of its own, gone at the end.
pub struct Place {
    pub name: &'static str,
    pub dir: tempfile::TempDir,
    mounts: Vec<PathBuf>,
    below: Vec<PathBuf>,
    _image: Option<tempfile::NamedTempFile>,
}

impl Drop for Place {
    fn drop(&mut self) {
        for mount in self.mounts.iter().chain(&self.below).rev() {
            let _ = Command::new("umount").arg("-l").arg(mount).status();
        }
    }
}

pub fn ran(program: &str, words: &[&dyn AsRef<std::ffi::OsStr>]) {
    let out = Command::new(program).args(words.iter().map(AsRef::as_ref)).output().unwrap();
    assert!(out.status.success(), "{program}: {}", String::from_utf8_lossy(&out.stderr));
}

fn place(name: &'static str, below: &str) -> Place {
    let dir = tempfile::Builder::new().prefix("gracekeeper-scrub-test-").tempdir_in(below).unwrap();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o1777)).unwrap();
    Place { name, dir, mounts: vec![], below: vec![], _image: None }
}

pub fn tmpfs() -> Place {
    place("tmpfs", "/dev/shm")
}

/// An ext4 in memory, for root; else whatever the temporary directory is on.
pub fn ext4() -> Place {
    if !nix::unistd::geteuid().is_root() {
        return place("disk", std::env::temp_dir().to_str().unwrap());
    }
    let image = tempfile::NamedTempFile::new_in("/dev/shm").unwrap();
    image.as_file().set_len(size(8 << 30, 1 << 30) as u64).unwrap();
    ran("mkfs.ext4", &[&"-q", &"-F", &"-N", &size(1_200_000, 150_000).to_string(), &image.path()]);
    let mut place = place("ext4", "/dev/shm");
    ran("mount", &[&"-o", &"loop", &image.path(), &place.dir.path()]);
    ran("chmod", &[&"1777", &place.dir.path()]);
    place.mounts.push(place.dir.path().to_owned());
    place._image = Some(image);
    place
}

/// The kernel's overlay, with a lower layer that holds files of its own.
pub fn overlay() -> Option<Place> {
    if !has("root") {
        return None;
    }
    let mut place = place("overlay", "/dev/shm");
    let layers = place.dir.path().join("layers");
    for part in ["lower/image/deep/er", "upper", "work", "on"] {
        std::fs::create_dir_all(layers.join(part)).unwrap();
    }
    std::fs::write(layers.join("lower/image/deep/er/file"), "of the image").unwrap();
    let chain = (0..60).fold(layers.join("lower/chain"), |at, level| at.join(format!("level-{level}")));
    std::fs::create_dir_all(&chain).unwrap();
    std::fs::write(chain.join("file"), "of the image").unwrap();
    let on = layers.join("on");
    let part = |p: &str| layers.join(p).display().to_string();
    let options = format!("lowerdir={},upperdir={},workdir={}", part("lower"), part("upper"), part("work"));
    ran("mount", &[&"-t", &"overlay", &"overlay", &"-o", &options, &on]);
    ran("chmod", &[&"1777", &on]);
    place.mounts.push(on);
    Some(place)
}

impl Place {
    /// A mount below it, which goes with it.
    pub fn also(&mut self, mount: &Path) {
        self.below.push(mount.to_owned());
    }

    /// Where trees go.
    pub fn path(&self) -> PathBuf {
        self.mounts.last().cloned().unwrap_or_else(|| self.dir.path().to_owned())
    }
}

/// `test(place, unprivileged)` on every file system, as root and as UID 65532 where root is here.
pub fn everywhere(test: impl Fn(&Place, bool)) {
    let root = has("root");
    for place in [Some(tmpfs()), Some(ext4()), overlay()].into_iter().flatten() {
        for unprivileged in [false, true] {
            if root || !unprivileged {
                test(&place, unprivileged);
            }
        }
    }
}

/// The program and words that run as UID 65532 without anything, or nothing.
pub fn dropped(unprivileged: bool) -> Vec<String> {
    let words = "setpriv --reuid 65532 --regid 65532 --clear-groups --no-new-privs --bounding-set -all --inh-caps -all";
    if unprivileged { words.split(' ').map(str::to_owned).collect() } else { vec![] }
}

/// Runs `gracekeeper OPTIONS --scrub TREE -- true` behind `before`; the run, and what it says of the tree.
pub fn scrub(tree: &Path, before: &[String], options: &[&str]) -> (Ran, Value) {
    scrub_after("", tree, before, options)
}

/// The same behind a workload that is a shell script, in the tree's parent.
pub fn scrub_after(workload: &str, tree: &Path, before: &[String], options: &[&str]) -> (Ran, Value) {
    let binary = accessible();
    let mut words: Vec<&str> = before.iter().map(String::as_str).collect();
    words.push(binary.to_str().unwrap());
    let mut command = Command::new(words[0]);
    command.args(&words[1..]).args(options).arg("--scrub").arg(tree).args(["--", "sh", "-c", workload]);
    command.current_dir(tree.parent().unwrap());
    command.env_clear().env("PATH", std::env::var_os("PATH").unwrap()).env("TMPDIR", tree.parent().unwrap());
    command
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped());
    let ran = finish(command.spawn().unwrap(), Instant::now());
    let paths = ran.seal()["cleanup"]["paths"].as_array().unwrap().clone();
    let path = paths.into_iter().find(|p| p["path"] == tree.to_str().unwrap());
    let path = path.unwrap_or_else(|| panic!("no such path: {ran:#?}"));
    (ran, path)
}

/// The binary where UID 65532 may execute it.
fn accessible() -> PathBuf {
    PathBuf::from(BINARY)
}

/// How many entries are below `tree`, by a program that is not ours.
pub fn count(tree: &Path) -> u64 {
    let out = Command::new("find").arg(tree).args(["-mindepth", "1", "-printf", "x"]).output().unwrap();
    assert!(out.status.success(), "{}", text_of(&out.stderr));
    out.stdout.len() as u64
}

pub fn text_of(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Something beside the tree that the links in it point to.
pub fn victim(below: &Path, owner: bool) -> PathBuf {
    let dir = below.join("victim");
    std::fs::create_dir_all(dir.join("sub/dir")).unwrap();
    for i in 0..20 {
        std::fs::write(dir.join(format!("file-{i}")), format!("precious {i}")).unwrap();
        std::fs::write(dir.join(format!("sub/dir/file-{i}")), vec![b'v'; 5000]).unwrap();
    }
    if owner && nix::unistd::geteuid().is_root() {
        ran("chown", &[&"-R", &"65532:65532", &dir]);
    }
    dir
}

/// SHA-256 over every name, mode, owner, size, time and byte below `dir`.
pub fn digest(dir: &Path) -> String {
    let mut hash = Sha256::new();
    let mut left = vec![dir.to_owned()];
    while let Some(path) = left.pop() {
        let meta = std::fs::symlink_metadata(&path).unwrap();
        hash.update(path.as_os_str().as_bytes());
        // A directory's size and times are not what it says: making a hard link changes neither.
        hash.update(format!("{:o} {} {} {}", meta.mode(), meta.uid(), meta.mtime(), meta.mtime_nsec()));
        if meta.is_dir() {
            let mut names: Vec<_> = std::fs::read_dir(&path).unwrap().map(|e| e.unwrap().path()).collect();
            names.sort();
            left.extend(names);
        } else {
            hash.update(std::fs::read(&path).unwrap());
        }
    }
    format!("{:x}", hash.finalize())
}
