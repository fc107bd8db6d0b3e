//! Zeros over what a regular file holds, where writing to it means anything.

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::stat::{Mode, fstat};
use std::os::fd::{AsRawFd as _, BorrowedFd, OwnedFd};

/// The file systems (statfs(2)) that overwrite in place: tmpfs, ramfs, ext2 to ext4, XFS. Not overlay: writing to a file of a
/// lower layer makes a copy, and what the upper one is on cannot be seen.
pub const IN_PLACE: [i64; 4] = [0x0102_1994, 0x8584_58f6, 0xef53, 0x5846_5342];

/// How many names a regular file has; `None` for anything else.
#[must_use]
// A u32 on aarch64.
#[allow(clippy::useless_conversion)]
pub fn links(fd: BorrowedFd<'_>) -> Option<u64> {
    let stat = fstat(fd).ok()?;
    (stat.st_mode & libc::S_IFMT == libc::S_IFREG).then_some(stat.st_nlink.into())
}

/// Whether the file has extended attributes of the user's, which hold bytes too (xattr(7)).
#[must_use]
pub fn has_user_attributes(file: BorrowedFd<'_>) -> bool {
    let mut names = [0u8; 1024];
    // SAFETY: flistxattr(2) writes at most the length given.
    let n = unsafe { libc::flistxattr(file.as_raw_fd(), names.as_mut_ptr().cast(), names.len()) };
    // ERANGE: more than these.
    usize::try_from(n).map_or_else(
        |_| Errno::last() == Errno::ERANGE,
        |n| names.get(..n).unwrap_or_default().split(|&b| b == 0).any(|name| name.starts_with(b"user.")),
    )
}

/// Opens the very file that `seen` (an O_PATH descriptor of a regular file) is, for writing; one whose mode forbids it is
/// changed.
///
/// # Errors
/// The errno of `open(2)`.
pub fn open_for_overwriting(seen: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    let link = format!("/proc/self/fd/{}", seen.as_raw_fd());
    // Non-blocking: a lease of somebody's is not waited for.
    let open =
        || nix::fcntl::open(link.as_str(), OFlag::O_WRONLY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC, Mode::empty());
    match open() {
        Err(Errno::EACCES) => {
            let follow = nix::sys::stat::FchmodatFlags::FollowSymlink;
            nix::sys::stat::fchmodat(nix::fcntl::AT_FDCWD, link.as_str(), Mode::S_IRUSR | Mode::S_IWUSR, follow)?;
            open()
        }
        result => result,
    }
}

/// Writes zeros over every byte of `file` that is allocated, and waits for the disk where there is one (fdatasync(2)); adds
/// what was written to `written`.
///
/// # Errors
/// `ETIME` when `stop` says so, else what the file system answers.
pub fn overwrite(file: BorrowedFd<'_>, chunk: usize, written: &mut u64, stop: &dyn Fn() -> bool) -> Result<(), Errno> {
    use nix::unistd::Whence::{SeekData, SeekHole};
    let zeros = vec![0u8; chunk];
    let mut end = 0;
    loop {
        // ENXIO: nothing but a hole follows.
        let mut at = match nix::unistd::lseek(file, end, SeekData) {
            Err(Errno::ENXIO) => break,
            result => result?,
        };
        end = nix::unistd::lseek(file, at, SeekHole)?;
        while at < end {
            if stop() {
                return Err(Errno::ETIME);
            }
            let left = usize::try_from(end.saturating_sub(at)).unwrap_or(chunk).min(chunk);
            let n = nix::sys::uio::pwrite(file, zeros.get(..left).unwrap_or_default(), at)?;
            if n == 0 {
                return Err(Errno::EIO);
            }
            *written = written.saturating_add(u64::try_from(n).unwrap_or(0));
            at = at.saturating_add(i64::try_from(n).unwrap_or(0));
        }
    }
    nix::unistd::fdatasync(file)
}
