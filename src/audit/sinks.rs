//! What the sinks have in common: the audit file (`file`), the termination message (`message`) and stderr (`stderr`) are opened before
//! the workload runs, close-on-exec and on descriptors from 3 up, and are never opened by path again.
//!
//! Invariants: no open waits for a reader; no path is followed through a symlink in its last component.

use crate::kernel::Cause;
use crate::kernel::outcome::errno;
use crate::switches::without;
use nix::fcntl::OFlag;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

/// A disk that does not answer.
pub const LATE: &str = "its disk did not answer in time";

pub(super) fn refused(what: &'static str) -> impl Fn(io::Error) -> Cause {
    move |error| Cause::refused(what, errno(&error))
}

/// Above 0 to 2, even where these were closed: `try_clone` duplicates with F_DUPFD_CLOEXEC from 3 (fcntl(2)). The
/// duplicate is the same open file, so a lock and O_APPEND stay.
pub(super) fn above_stdio(file: File) -> Result<File, Cause> {
    if file.as_raw_fd() >= 3 { Ok(file) } else { file.try_clone().map_err(refused("dup")) }
}

/// Opens a regular file with one name, and nothing else. O_NONBLOCK so that a FIFO answers at once (open(2)).
pub(super) fn open_regular(options: &mut OpenOptions, path: &Path) -> Result<File, Cause> {
    let follow = if without("own_file") { OFlag::empty() } else { OFlag::O_NOFOLLOW };
    let flags = follow | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
    let file = options.custom_flags(flags.bits()).open(path).map_err(refused("open"))?;
    let file = above_stdio(file)?;
    let meta = file.metadata().map_err(refused("fstat"))?;
    if !meta.is_file() {
        return Err(Cause::because("not a regular file"));
    }
    if meta.nlink() != 1 && !without("own_file") {
        return Err(Cause::because("has more than one name"));
    }
    Ok(file)
}
