//! The files of /proc and /sys, which have no size: read in one piece where they are short, to their end where they are not.

use nix::fcntl::OFlag;
use nix::sys::stat::Mode;
use std::io::Read as _;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::OnceLock;

/// A small file of /proc or /sys as text, at most `MOST` bytes of it: one open, one read, one close (`std::fs::read` asks for a
/// size that these files do not have, and then reads them in eight pieces). Invalid UTF-8 is replaced.
#[must_use]
pub fn text(path: &Path) -> Option<String> {
    const MOST: usize = 8192;
    let fd = nix::fcntl::open(path, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty()).ok()?;
    let mut bytes = [0u8; MOST];
    let n = nix::unistd::read(&fd, &mut bytes).ok()?;
    Some(lossy(bytes.get(..n)?))
}

/// Text in which invalid UTF-8 is replaced. Valid text, which is nearly all of it, is checked a word at a time and not by character.
#[must_use]
pub fn lossy(bytes: &[u8]) -> String {
    std::str::from_utf8(bytes).map_or_else(|_| String::from_utf8_lossy(bytes).into_owned(), str::to_owned)
}

/// This process's cgroups (cgroups(7)), read once.
pub fn own_cgroup() -> Option<&'static str> {
    static OWN: OnceLock<Option<String>> = OnceLock::new();
    OWN.get_or_init(|| text(Path::new("/proc/self/cgroup"))).as_deref()
}

/// A file of /proc of any length: the same, read to its end. `None` where that is not all of it.
#[must_use]
pub fn whole(path: &Path) -> Option<Vec<u8>> {
    let fd = nix::fcntl::open(path, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty()).ok()?;
    rest(fd, u64::MAX).ok()
}

/// What is left to read of a file of /proc, at most `most` bytes: into memory that is not cleared first, which costs more than
/// most of these files do.
///
/// # Errors
/// As read(2); `EINTR` is none.
pub fn rest(fd: OwnedFd, most: u64) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(4096);
    // `take` also keeps it from asking for a size first, which these files do not have.
    std::fs::File::from(fd).take(most).read_to_end(&mut bytes)?;
    Ok(bytes)
}
