//! Descriptor-relative file calls for the scrub: nothing here follows a symlink or crosses a mount.

use crate::switches::without;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, openat, openat2};
use nix::sys::stat::{Mode, fchmod, fstat, fstatat};
use nix::unistd::{UnlinkatFlags, unlinkat};
use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

const DIRECTORY: OFlag = OFlag::O_RDONLY.union(OFlag::O_DIRECTORY).union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);

/// A small file of /proc or /sys as text, at most `MOST` bytes of it: one open, one read, one close (`std::fs::read` asks for a
/// size that these files do not have, and then reads them in eight pieces). Invalid UTF-8 is replaced.
#[must_use]
pub fn text(path: &Path) -> Option<String> {
    const MOST: usize = 8192;
    let fd = nix::fcntl::open(path, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty()).ok()?;
    let mut bytes = [0u8; MOST];
    let n = nix::unistd::read(&fd, &mut bytes).ok()?;
    Some(String::from_utf8_lossy(bytes.get(..n)?).into_owned())
}

/// Opens a directory by an absolute path none of whose parts may be a symlink (openat2(2), Linux 5.6; where it is
/// missing only the last part is checked).
///
/// # Errors
/// `ELOOP` for a symlink, `ENOTDIR`, `ENOENT`, `EACCES`.
pub fn open_path(path: &Path) -> Result<OwnedFd, Errno> {
    let how = OpenHow::new().flags(DIRECTORY).resolve(ResolveFlag::RESOLVE_NO_SYMLINKS);
    match openat2(nix::fcntl::AT_FDCWD, path, how) {
        Err(Errno::ENOSYS | Errno::EPERM) => nix::fcntl::open(path, DIRECTORY, Mode::empty()),
        result => result,
    }
}

/// Opens the directory `name` in `dir`, on the same mount only.
///
/// # Errors
/// `EXDEV` for a mount point, `ELOOP` or `ENOTDIR` for what is no directory (any more), `EACCES` for one without the
/// owner's permission.
pub fn open_below(dir: BorrowedFd<'_>, name: &CStr, device: u64) -> Result<OwnedFd, Errno> {
    if without("own_tree") {
        return openat(dir, name, OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty());
    }
    let how = OpenHow::new().flags(DIRECTORY).resolve(ResolveFlag::RESOLVE_NO_XDEV | ResolveFlag::RESOLVE_NO_SYMLINKS);
    match openat2(dir, name, how) {
        // EPERM: an old seccomp profile that does not know the call (libseccomp before 2.5 answers so).
        Err(Errno::ENOSYS | Errno::EPERM) => {
            let fd = openat(dir, name, DIRECTORY, Mode::empty())?;
            if fstat(&fd)?.st_dev == device { Ok(fd) } else { Err(Errno::EXDEV) }
        }
        result => result,
    }
}

/// Gives the owner access to the directory `name` in `dir`, through an O_PATH descriptor, so that what was checked is what
/// is changed (open(2); the descriptor's /proc entry is followed by chmod, not by name).
///
/// # Errors
/// `EPERM` for somebody else's directory, `ELOOP`/`ENOTDIR` for what is no directory.
pub fn make_accessible(dir: BorrowedFd<'_>, name: &CStr) -> Result<(), Errno> {
    let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let fd = openat(dir, name, flags, Mode::empty())?;
    let link = format!("/proc/self/fd/{}", fd.as_raw_fd());
    nix::sys::stat::fchmodat(
        nix::fcntl::AT_FDCWD,
        link.as_str(),
        Mode::S_IRWXU,
        nix::sys::stat::FchmodatFlags::FollowSymlink,
    )
}

/// Gives the owner access to an open directory.
///
/// # Errors
/// The errno of `fchmod(2)`.
pub fn make_writable(dir: BorrowedFd<'_>) -> Result<(), Errno> {
    fchmod(dir, Mode::S_IRWXU)
}

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A directory.
    Directory,
    /// A regular file of this many bytes.
    Regular(u64),
    /// Anything else: never opened.
    Other,
}

/// What `name` in `dir` is (fstatat(2), symlinks not followed).
///
/// # Errors
/// The errno of `fstatat(2)`.
pub fn kind(dir: BorrowedFd<'_>, name: &CStr) -> Result<Kind, Errno> {
    let flags = if without("own_tree") { AtFlags::empty() } else { AtFlags::AT_SYMLINK_NOFOLLOW };
    let stat = fstatat(dir, name, flags)?;
    Ok(match stat.st_mode & libc::S_IFMT {
        libc::S_IFDIR => Kind::Directory,
        libc::S_IFREG => Kind::Regular(u64::try_from(stat.st_size).unwrap_or(0)),
        _ => Kind::Other,
    })
}

/// Removes an entry that is no directory.
///
/// # Errors
/// The errno of `unlinkat(2)`.
pub fn unlink(dir: BorrowedFd<'_>, name: &CStr) -> Result<(), Errno> {
    unlinkat(dir, name, UnlinkatFlags::NoRemoveDir)
}

/// Removes an empty directory.
///
/// # Errors
/// The errno of `unlinkat(2)`.
pub fn rmdir(dir: BorrowedFd<'_>, name: &CStr) -> Result<(), Errno> {
    unlinkat(dir, name, UnlinkatFlags::RemoveDir)
}

/// The device of an open directory.
///
/// # Errors
/// The errno of `fstat(2)`.
pub fn device(dir: BorrowedFd<'_>) -> Result<u64, Errno> {
    Ok(fstat(dir)?.st_dev)
}

/// Whether an open directory's file system is mounted read-only.
#[must_use]
pub fn is_read_only(dir: BorrowedFd<'_>) -> bool {
    nix::sys::statvfs::fstatvfs(dir).is_ok_and(|s| s.flags().contains(nix::sys::statvfs::FsFlags::ST_RDONLY))
}

/// A directory being read through a fixed buffer.
#[derive(Debug)]
pub struct Listing {
    fd: OwnedFd,
    buffer: Box<[u8]>,
    from: usize,
    to: usize,
}

/// One entry's name and what the file system says of its type.
#[derive(Debug, Clone)]
pub struct Entry {
    /// The name, any bytes.
    pub name: std::ffi::CString,
    /// `DT_*` of readdir(3); `DT_UNKNOWN` where the file system does not say.
    pub kind: u8,
}

impl Listing {
    /// Reads `fd` from its start.
    #[must_use]
    pub fn new(fd: OwnedFd) -> Self {
        Self { fd, buffer: vec![0; 16 * 1024].into_boxed_slice(), from: 0, to: 0 }
    }

    /// The directory.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Back to the start.
    ///
    /// # Errors
    /// The errno of `lseek(2)`.
    pub fn rewind(&mut self) -> Result<(), Errno> {
        self.from = 0;
        self.to = 0;
        nix::unistd::lseek(&self.fd, 0, nix::unistd::Whence::SeekSet).map(drop)
    }

    /// The next entry but `.` and `..`; `None` at the end.
    ///
    /// # Errors
    /// The errno of `getdents64(2)`.
    pub fn next_entry(&mut self) -> Result<Option<Entry>, Errno> {
        loop {
            if self.from >= self.to {
                // SAFETY: getdents64 writes at most the length given into the buffer, which is valid for that many bytes.
                let n = Errno::result(unsafe {
                    libc::syscall(
                        libc::SYS_getdents64,
                        self.fd.as_raw_fd(),
                        self.buffer.as_mut_ptr(),
                        self.buffer.len(),
                    )
                })?;
                self.from = 0;
                self.to = usize::try_from(n).unwrap_or(0);
                if self.to == 0 {
                    return Ok(None);
                }
            }
            // struct linux_dirent64: ino 8, off 8, reclen 2, type 1, name.
            let entry = self.buffer.get(self.from..self.to).unwrap_or_default();
            let Some(&[low, high, kind]) = entry.get(16..19) else { return Err(Errno::EIO) };
            let length = usize::from(u16::from_ne_bytes([low, high])).max(19);
            let name = entry.get(19..length).and_then(|n| CStr::from_bytes_until_nul(n).ok()).map(CStr::to_owned);
            self.from = self.from.saturating_add(length);
            match name {
                Some(name) if name.as_c_str() != c"." && name.as_c_str() != c".." => {
                    return Ok(Some(Entry { name, kind }));
                }
                _ => {}
            }
        }
    }
}
