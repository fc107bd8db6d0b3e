//! `--scrub-mode zero`, seen through descriptors that were opened before: they show what the file's space holds after its end.

use super::places::*;
use std::fs;
use std::io::Read;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;

const SECRET: &[u8] = b"the secret";

/// An attribute of the user's.
fn attribute(path: &Path) {
    let path = std::ffi::CString::new(path.as_os_str().as_encoded_bytes()).unwrap();
    // SAFETY: two strings that end in NUL, and as many bytes as are named.
    let set = unsafe { libc::setxattr(path.as_ptr(), c"user.x".as_ptr(), SECRET.as_ptr().cast(), SECRET.len(), 0) };
    assert_eq!(set, 0, "{}", std::io::Error::last_os_error());
}

/// Makes files in `tree`, scrubs it in `mode`, and returns what one of each kind holds afterwards.
fn scrubbed(place: &Path, mode: &str, unprivileged: bool) -> (Vec<Vec<u8>>, serde_json::Value) {
    let below = tempfile::tempdir_in(place).unwrap();
    fs::set_permissions(below.path(), fs::Permissions::from_mode(0o1777)).unwrap();
    let tree = below.path().join("tree");
    fs::create_dir_all(tree.join("in")).unwrap();
    let mut files = vec![];
    for (name, mode) in [("plain", 0o600), ("in/locked", 0o000), ("in/read-only", 0o400)] {
        fs::write(tree.join(name), SECRET.repeat(20_000)).unwrap();
        fs::set_permissions(tree.join(name), fs::Permissions::from_mode(mode)).unwrap();
        files.push(fs::File::open(tree.join(name)).unwrap());
    }
    let sparse = fs::File::options().read(true).write(true).create_new(true).open(tree.join("sparse")).unwrap();
    sparse.write_all_at(SECRET, 1 << 38).unwrap();
    // What cannot be overwritten: an attribute's bytes.
    fs::write(tree.join("attribute"), SECRET).unwrap();
    attribute(&tree.join("attribute"));
    // A name outside the tree for the same file.
    fs::write(below.path().join("outside"), SECRET).unwrap();
    fs::hard_link(below.path().join("outside"), tree.join("hard")).unwrap();
    if unprivileged {
        ran("chown", &[&"-hR", &"65532:65532", &below.path()]);
    }
    let (_, path) = scrub(&tree, &dropped(unprivileged), &["--scrub-mode", mode, "--scrub-budget", "50s"]);
    assert_eq!((&path["status"], fs::read_dir(&tree).unwrap().count()), (&"complete".into(), 0), "{path}");
    assert_eq!(fs::read(below.path().join("outside")).unwrap(), SECRET, "a file with a name outside was written to");
    let mut held: Vec<Vec<u8>> = files
        .iter_mut()
        .map(|file| {
            let mut bytes = vec![];
            file.read_to_end(&mut bytes).unwrap();
            bytes
        })
        .collect();
    let mut end = vec![0; SECRET.len()];
    sparse.read_exact_at(&mut end, 1 << 38).unwrap();
    held.push(end);
    (held, path)
}

#[test]
fn what_was_in_a_file_is_overwritten_where_that_means_anything() {
    if !super::support::has("root") {
        return;
    }
    for place in [tmpfs(), ext4()] {
        for unprivileged in [false, true] {
            let (held, path) = scrubbed(&place.path(), "zero", unprivileged);
            assert!(
                held.iter().all(|bytes| !bytes.is_empty() && bytes.iter().all(|&b| b == 0)),
                "{}: {path}",
                place.name
            );
            let zeroed = &path["zeroed"];
            assert_eq!((&zeroed["files"], &zeroed["skipped"]), (&4.into(), &2.into()), "{path}");
            let bytes = zeroed["bytes"].as_u64().unwrap();
            // The hole of the sparse file is not filled.
            assert!((600_000..2_000_000).contains(&bytes), "{path}");
            // Control: without it the space still holds what it held.
            let (held, path) = scrubbed(&place.path(), "delete", unprivileged);
            assert!(held.iter().all(|bytes| bytes.starts_with(SECRET)) && path["zeroed"].is_null(), "{path}");
        }
    }
}

#[test]
fn on_an_overlay_nothing_is_written_and_the_record_says_so() {
    let Some(place) = overlay() else { return };
    let (held, path) = scrubbed(&place.path(), "zero", false);
    assert!(held.iter().all(|bytes| bytes.starts_with(SECRET)), "{path}");
    assert_eq!((&path["zeroed"]["files"], &path["zeroed"]["bytes"]), (&0.into(), &0.into()), "{path}");
    assert!(path["zeroed"]["why"].as_str().unwrap().contains("does not write in place"), "{path}");
}
