//! The mounts of this namespace, from `/proc/self/mountinfo` (proc_pid_mountinfo(5)).
//!
//! Read once, before the workload runs. Invariant: a line that is not what the manual page says is left out, never guessed at.

use super::procfile;
use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// One mount: where, what kind, and which part of its file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// Where it is.
    pub point: PathBuf,
    /// The directory of its file system that is seen there.
    pub root: PathBuf,
    /// The device of the file system, `major:minor`.
    pub device: String,
    /// The type of the file system.
    pub kind: String,
    /// Nothing can be written there: the mount or its file system is read-only.
    pub read_only: bool,
}

/// Every mount that can be seen, in the kernel's order; `None` where they cannot be read.
#[must_use]
pub fn all() -> Option<Vec<Mount>> {
    let text = procfile::whole(Path::new("/proc/self/mountinfo"))?;
    Some(text.split(|&b| b == b'\n').filter_map(mount).collect())
}

/// The deepest mount point above the path holds it; of several on the same point the last one is taken to be on top. A mount that a
/// later one above it hides is not told apart: nothing that has to be right may rest on this alone.
#[must_use]
pub fn holder<'a>(path: &Path, mounts: &'a [Mount]) -> Option<&'a Mount> {
    let bytes = path.as_os_str().as_bytes();
    // Part by part only where a path is not written as the kernel writes a mount point, or begins as one.
    let odd = bytes.windows(2).any(|two| two == b"//" || two == b"/.");
    let above = |m: &&Mount| (odd || bytes.starts_with(m.point.as_os_str().as_bytes())) && path.starts_with(&m.point);
    let deepest = mounts.iter().filter(above).max_by_key(|m| m.point.components().count())?;
    mounts.iter().rfind(|m| m.point == deepest.point)
}

/// `36 35 98:0 /root /point options optional… - type source options`
fn mount(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|&b| b == b' ');
    let text = |field: &[u8]| String::from_utf8_lossy(field).into_owned();
    let device = text(fields.nth(2)?);
    let root = unescaped(fields.next()?);
    let point = unescaped(fields.next()?);
    let has_ro = |options: &[u8]| options.split(|&b| b == b',').any(|option| option == b"ro");
    let own = has_ro(fields.next()?);
    let mut fields = fields.skip_while(|field| *field != b"-").skip(1);
    let kind = text(fields.next()?);
    let read_only = own || fields.nth(1).is_some_and(has_ro);
    Some(Mount { point, root, device, kind, read_only })
}

/// A path in which blanks, newlines and backslashes are `\ooo`.
fn unescaped(field: &[u8]) -> PathBuf {
    if !field.contains(&b'\\') {
        return PathBuf::from(OsString::from_vec(field.to_vec()));
    }
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, after)) = rest.split_first() {
        let octal = after.get(..3).filter(|_| first == b'\\').and_then(|digits| {
            let digits = std::str::from_utf8(digits).ok()?;
            u8::from_str_radix(digits, 8).ok()
        });
        match octal {
            Some(byte) => {
                bytes.push(byte);
                rest = after.get(3..).unwrap_or_default();
            }
            None => {
                bytes.push(first);
                rest = after;
            }
        }
    }
    PathBuf::from(OsString::from_vec(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_the_manual_page() {
        let line = br"36 35 98:0 /mnt1 /a\040b\134\011 rw,noatime master:1 shared:2 - ext3 /dev/root rw";
        let (point, root) = ("/a b\\\t".into(), "/mnt1".into());
        let wanted = Mount { point, root, device: "98:0".into(), kind: "ext3".into(), read_only: false };
        assert_eq!(mount(line), Some(wanted));
        assert!(mount(b"36 35 98:0 / /x ro - ext4 none rw").unwrap().read_only);
        assert!(mount(b"36 35 98:0 / /x rw,nosuid shared:1 - ext4 none ro,seclabel").unwrap().read_only);
        assert_eq!(mount(b"36 35 98:0 / /x rw - ext4 none rw").unwrap().kind, "ext4");
        assert_eq!(mount(b"36 35 98:0 / /x rw"), None);
        assert_eq!(mount(b""), None);
        assert_eq!(unescaped(br"\9\777\"), Path::new(r"\9\777\"));
    }

    #[test]
    fn the_root_is_mounted() {
        let mounts = all().unwrap();
        assert!(mounts.iter().any(|m| m.point == Path::new("/")));
        let proc_ = holder(Path::new("/proc/self/fd"), &mounts).unwrap();
        assert_eq!((proc_.kind.as_str(), proc_.point.as_path()), ("proc", Path::new("/proc")));
        assert_eq!(holder(Path::new("//proc/./self/"), &mounts), Some(proc_));
        assert_ne!(holder(Path::new("/processes"), &mounts), Some(proc_));
    }

    #[test]
    fn no_mutation_of_a_line_panics() {
        proptest::proptest!(|(line in crate::corpus::mutated("mountinfo"))| {
            for line in line.split(|&b| b == b'\n') {
                let _ = mount(line);
            }
        });
    }
}
