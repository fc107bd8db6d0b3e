//! A file that the operator names, to be read to its end: a regular one, what a shell puts there (`/dev/stdin`, `<(…)`), or `-`, the
//! standard input.
//!
//! Invariant: nobody is waited for who may never come.

use crate::kernel::files;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, poll};
use std::fs::{File, OpenOptions};
use std::io::{self, Cursor, Read};
use std::os::fd::AsFd as _;
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _};
use std::path::Path;

/// The file system of the pipes that have no name (statfs(2)).
const PIPEFS: i64 = 0x5049_5045;
/// How long a FIFO's writer may take to come, who may have been started just before us.
const LATE_MS: u16 = 2000;

/// Opens it. Reading waits, as for a pipe it has to.
///
/// # Errors
/// What open(2) and fstat(2) answer; a FIFO that nobody has open for writing, whose open(2) would wait for somebody (fifo(7)).
pub fn open(path: &Path) -> io::Result<impl Read> {
    if path.as_os_str() == "-" {
        // Not opened anew, as /dev/stdin would be: it may be a socket, which open(2) refuses, or somebody else's file.
        return Ok(Cursor::new(Vec::new()).chain(File::from(io::stdin().as_fd().try_clone_to_owned()?)));
    }
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path)?;
    let kind = file.metadata()?.file_type();
    let mut first = Vec::new();
    if kind.is_fifo() && files::file_system(file.as_fd()) != PIPEFS {
        // A writer counts from when it begins to open it, before anybody reads; and what it wrote before it went is still there.
        let _ = poll(&mut [PollFd::new(file.as_fd(), PollFlags::POLLIN)], LATE_MS);
        let mut byte = [0];
        match (&file).read(&mut byte) {
            Ok(0) => return Err(io::Error::other("not a regular file but a FIFO that nobody writes to")),
            Ok(_) => first.extend(byte),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    if !kind.is_file() {
        waiting(&file)?;
    }
    Ok(Cursor::new(first).chain(file))
}

/// Takes O_NONBLOCK from it. The description is our own: /dev/stdin and its kin are opened anew (open(2)).
fn waiting(file: &File) -> Result<(), Errno> {
    let flags = OFlag::from_bits_retain(fcntl(file, FcntlArg::F_GETFL)?);
    fcntl(file, FcntlArg::F_SETFL(flags - OFlag::O_NONBLOCK)).map(drop)
}
