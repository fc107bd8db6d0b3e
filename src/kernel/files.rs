//! Descriptor-relative file calls for the scrub: nothing here follows a symlink or crosses a mount.

use crate::switches::without;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, openat, openat2};
use nix::sys::stat::{Mode, fchmod, fstat, fstatat};
use nix::unistd::{UnlinkatFlags, unlinkat};
use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

const DIRECTORY: OFlag = OFlag::O_RDONLY.union(OFlag::O_DIRECTORY).union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);

const BELOW: ResolveFlag =
    ResolveFlag::RESOLVE_NO_XDEV.union(ResolveFlag::RESOLVE_NO_SYMLINKS).union(ResolveFlag::RESOLVE_BENEATH);

/// Opens a directory by an absolute path none of whose parts may be a symlink (openat2(2), Linux 5.6; where it is
/// missing each part is opened in turn).
///
/// # Errors
/// `ELOOP` for a symlink, `ENOTDIR`, `ENOENT`, `EACCES`.
pub fn open_path(path: &Path) -> Result<OwnedFd, Errno> {
    by_path(path, DIRECTORY)
}

/// The same directory as something to look at: no permission of its own is needed (O_PATH, open(2)).
///
/// # Errors
/// As `open_path`.
pub fn see_path(path: &Path) -> Result<OwnedFd, Errno> {
    by_path(path, SEEN)
}

const SEEN: OFlag = OFlag::O_PATH.union(OFlag::O_DIRECTORY).union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);

fn by_path(path: &Path, flags: OFlag) -> Result<OwnedFd, Errno> {
    let how = OpenHow::new().flags(flags).resolve(ResolveFlag::RESOLVE_NO_SYMLINKS);
    match openat2(nix::fcntl::AT_FDCWD, path, how) {
        // EPERM: an old seccomp profile that does not know the call (libseccomp before 2.5 answers so).
        Err(Errno::ENOSYS | Errno::EPERM) => part_by_part(path, flags),
        // Of the last part O_DIRECTORY is asked first.
        Err(Errno::ENOTDIR) if path.is_symlink() => Err(Errno::ELOOP),
        result => result,
    }
}

fn part_by_part(path: &Path, flags: OFlag) -> Result<OwnedFd, Errno> {
    use std::path::Component;
    let mut parts = path.components().peekable();
    let mut at = nix::fcntl::open(".", SEEN, Mode::empty())?;
    while let Some(part) = parts.next() {
        let flags = if parts.peek().is_some() { SEEN } else { flags };
        at = match part {
            Component::RootDir => nix::fcntl::open("/", flags, Mode::empty())?,
            Component::Normal(name) => match openat(&at, name, flags, Mode::empty()) {
                // O_DIRECTORY asks first.
                Err(Errno::ENOTDIR) if is_symlink(at.as_fd(), name) => return Err(Errno::ELOOP),
                result => result?,
            },
            // Those of a path that was looked up are gone; of another one nobody knows where they lead.
            _ => return Err(Errno::ELOOP),
        };
    }
    Ok(at)
}

fn is_symlink(dir: BorrowedFd<'_>, name: &std::ffi::OsStr) -> bool {
    fstatat(dir, name, AtFlags::AT_SYMLINK_NOFOLLOW).is_ok_and(|stat| stat.st_mode & libc::S_IFMT == libc::S_IFLNK)
}

/// The path without symlinks, as far as it exists; what does not is kept as it is.
#[must_use]
pub fn real(path: &Path) -> PathBuf {
    for above in path.ancestors() {
        if let Ok(real) = std::fs::canonicalize(above) {
            let rest = path.strip_prefix(above).unwrap_or(Path::new(""));
            return if rest.as_os_str().is_empty() { real } else { real.join(rest) };
        }
    }
    path.to_owned()
}

/// What tells a file from every other one that is there, and the mount it is seen through from another one of the same file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// The device.
    pub device: u64,
    /// The inode's number.
    pub inode: u64,
    /// The mount (mountinfo's first field); `None` where the kernel does not say.
    pub mount: Option<u64>,
}

/// Which file a descriptor is of: statx(2), whose STATX_MNT_ID is from Linux 5.8, or fstat(2) and `mnt_id` of proc_pid_fdinfo(5).
///
/// # Errors
/// The errno of fstat(2).
pub fn identity(fd: BorrowedFd<'_>) -> Result<Identity, Errno> {
    // SAFETY: statx is plain integers, for which all-zero bytes are valid.
    let mut seen: libc::statx = unsafe { std::mem::zeroed() };
    let (flags, mask) = (libc::AT_EMPTY_PATH | libc::AT_STATX_DONT_SYNC, libc::STATX_INO | libc::STATX_MNT_ID);
    // SAFETY: the path is an empty string, and the kernel writes one statx into `seen`.
    let result = unsafe { libc::statx(fd.as_raw_fd(), c"".as_ptr(), flags, mask, &raw mut seen) };
    if result == 0 && seen.stx_mask & mask == mask {
        let device = libc::makedev(seen.stx_dev_major, seen.stx_dev_minor);
        return Ok(Identity { device, inode: seen.stx_ino, mount: Some(seen.stx_mnt_id) });
    }
    let stat = fstat(fd)?;
    let info = super::procfile::text(Path::new(&format!("/proc/self/fdinfo/{}", fd.as_raw_fd())));
    let line = info.as_deref().and_then(|info| info.lines().find_map(|line| line.strip_prefix("mnt_id:")));
    let mount = line.and_then(|number| number.trim().parse().ok());
    Ok(Identity { device: stat.st_dev, inode: stat.st_ino, mount })
}

/// Device and inode of what `name` in `dir` is, a symlink itself included, and whether it is a directory.
///
/// # Errors
/// The errno of fstatat(2).
pub fn inode_of(dir: BorrowedFd<'_>, name: &CStr) -> Result<((u64, u64), bool), Errno> {
    let stat = fstatat(dir, name, AtFlags::AT_SYMLINK_NOFOLLOW)?;
    Ok(((stat.st_dev, stat.st_ino), stat.st_mode & libc::S_IFMT == libc::S_IFDIR))
}

/// Device and inode of an open file.
///
/// # Errors
/// The errno of fstat(2).
pub fn inode(fd: BorrowedFd<'_>) -> Result<(u64, u64), Errno> {
    fstat(fd).map(|stat| (stat.st_dev, stat.st_ino))
}

/// Whether the file has no name any more.
#[must_use]
pub fn is_removed(fd: BorrowedFd<'_>) -> bool {
    fstat(fd).is_ok_and(|stat| stat.st_nlink == 0)
}

/// Opens for reading the directory that is only looked at, wherever it is now.
///
/// # Errors
/// `EACCES`, and what else `openat(2)` answers.
pub fn read_seen(seen: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    openat(seen, c".", DIRECTORY, Mode::empty())
}

/// Opens the directory `name` in `dir`, on the same mount only.
///
/// # Errors
/// `EXDEV` for a mount point, `ELOOP` or `ENOTDIR` for what is no directory (any more), `EACCES` for one without the
/// owner's permission.
pub fn open_below(dir: BorrowedFd<'_>, name: &CStr) -> Result<OwnedFd, Errno> {
    if without("own_tree") {
        return openat(dir, name, OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty());
    }
    below(dir, name, DIRECTORY)
}

fn below(dir: BorrowedFd<'_>, name: &CStr, flags: OFlag) -> Result<OwnedFd, Errno> {
    match openat2(dir, name, OpenHow::new().flags(flags).resolve(BELOW)) {
        Err(Errno::ENOSYS | Errno::EPERM) => {
            let fd = openat(dir, name, flags, Mode::empty())?;
            if without("mount_id") {
                return if inode(dir)?.0 == inode(fd.as_fd())?.0 { Ok(fd) } else { Err(Errno::EXDEV) };
            }
            // Another mount of the same file system is on the same device.
            let mount = identity(dir)?.mount;
            if mount.is_some() && identity(fd.as_fd())?.mount == mount { Ok(fd) } else { Err(Errno::EXDEV) }
        }
        result => result,
    }
}

/// Gives the owner access to the directory `name` in `dir`, through an O_PATH descriptor, so that what was checked is what
/// is changed, and opens it. The mode it had comes with it.
///
/// # Errors
/// `EPERM` for somebody else's directory, `ELOOP`/`ENOTDIR` for what is no directory, `EXDEV` for a mount point.
pub fn open_accessible(dir: BorrowedFd<'_>, name: &CStr) -> Result<(OwnedFd, u32), Errno> {
    let seen = below(dir, name, SEEN)?;
    let mode = mode(seen.as_fd())?;
    set_mode(seen.as_fd(), mode | 0o700)?;
    read_seen(seen.as_fd()).map(|fd| (fd, mode)).inspect_err(|_| {
        // Its first error is the one to tell.
        let _ = set_mode(seen.as_fd(), mode);
    })
}

/// Changes the mode of what a descriptor, an O_PATH one too, is of.
///
/// # Errors
/// `EPERM` for somebody else's file, `EROFS`.
pub fn set_mode(seen: BorrowedFd<'_>, mode: u32) -> Result<(), Errno> {
    // The descriptor's /proc entry is followed by chmod, not by name (open(2), O_PATH).
    let link = format!("/proc/self/fd/{}", seen.as_raw_fd());
    let mode = Mode::from_bits_truncate(mode & 0o7777);
    nix::sys::stat::fchmodat(nix::fcntl::AT_FDCWD, link.as_str(), mode, nix::sys::stat::FchmodatFlags::FollowSymlink)
}

/// The mode of an open file.
///
/// # Errors
/// The errno of fstat(2).
pub fn mode(fd: BorrowedFd<'_>) -> Result<u32, Errno> {
    fstat(fd).map(|stat| stat.st_mode & 0o7777)
}

/// Gives the owner of an open directory every right to it. The mode it had, where that changed anything.
///
/// # Errors
/// The errno of `fchmod(2)`.
pub fn make_writable(dir: BorrowedFd<'_>) -> Result<Option<u32>, Errno> {
    let mode = mode(dir)?;
    if mode & 0o700 == 0o700 {
        return Ok(None);
    }
    fchmod(dir, Mode::from_bits_truncate(mode | 0o700)).map(|()| Some(mode))
}

/// Gives an open directory the mode that it had.
///
/// # Errors
/// The errno of `fchmod(2)`: it may be somebody else's by now.
pub fn give_back_mode(dir: BorrowedFd<'_>, mode: u32) -> Result<(), Errno> {
    fchmod(dir, Mode::from_bits_truncate(mode & 0o7777))
}

/// The space allocated to the regular file `name` in `dir`, and how many names it has (fstatat(2), symlinks not followed); nothing
/// for anything else.
#[must_use]
// A u32 on aarch64.
#[allow(clippy::useless_conversion)]
pub fn space_of(dir: BorrowedFd<'_>, name: &CStr) -> (u64, u64) {
    let Ok(stat) = fstatat(dir, name, AtFlags::AT_SYMLINK_NOFOLLOW) else { return (0, 0) };
    if stat.st_mode & libc::S_IFMT != libc::S_IFREG {
        return (0, 0);
    }
    (u64::try_from(stat.st_blocks).unwrap_or(0).saturating_mul(512), stat.st_nlink.into())
}

/// Whether `name` in `dir` leads to a directory, by whatever way: for the naive walker of the zoo's controls.
#[must_use]
pub fn leads_to_directory(dir: BorrowedFd<'_>, name: &CStr) -> bool {
    fstatat(dir, name, AtFlags::empty()).is_ok_and(|stat| stat.st_mode & libc::S_IFMT == libc::S_IFDIR)
}

/// Who owns `name` in `dir`.
#[must_use]
pub fn owner(dir: BorrowedFd<'_>, name: &CStr) -> Option<u32> {
    fstatat(dir, name, AtFlags::AT_SYMLINK_NOFOLLOW).ok().map(|stat| stat.st_uid)
}

/// The space in use on the tmpfs that `dir` is on; `None` on any other file system, and on a tmpfs that does not count.
#[must_use]
pub fn tmpfs_used(dir: BorrowedFd<'_>) -> Option<u64> {
    let fs = nix::sys::statfs::fstatfs(dir).ok()?;
    (fs.filesystem_type() == nix::sys::statfs::TMPFS_MAGIC && fs.blocks() > 0).then(|| {
        let block = u64::try_from(fs.block_size()).unwrap_or(0);
        fs.blocks().saturating_sub(fs.blocks_free()).saturating_mul(block)
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

/// The kind of file system `fd` is on; 0 where it does not say.
#[must_use]
pub fn file_system(fd: BorrowedFd<'_>) -> i64 {
    nix::sys::statfs::fstatfs(fd).map_or(0, |fs| fs.filesystem_type().0)
}

/// A descriptor of whatever `name` in `dir` is, which opens nothing (O_PATH).
///
/// # Errors
/// The errno of `openat(2)`.
pub fn look_at(dir: BorrowedFd<'_>, name: &CStr) -> Result<OwnedFd, Errno> {
    openat(dir, name, OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC, Mode::empty())
}

/// Whether an open directory's file system is mounted read-only.
#[must_use]
pub fn is_read_only(dir: BorrowedFd<'_>) -> bool {
    nix::sys::statvfs::fstatvfs(dir).is_ok_and(|s| s.flags().contains(nix::sys::statvfs::FsFlags::ST_RDONLY))
}

/// The directory that `dir` is in.
///
/// # Errors
/// The errno of `openat(2)`.
pub fn parent(dir: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    openat(dir, c"..", DIRECTORY, Mode::empty())
}
