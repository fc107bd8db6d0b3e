//! Descriptor-relative file calls for the scrub: nothing here follows a symlink or crosses a mount.

use crate::switches::without;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, openat, openat2};
use nix::sys::stat::{Mode, fchmod, fstat, fstatat};
use nix::unistd::{UnlinkatFlags, unlinkat};
use std::ffi::CStr;
use std::io::Read;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::OnceLock;

const DIRECTORY: OFlag = OFlag::O_RDONLY.union(OFlag::O_DIRECTORY).union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);

const BELOW: ResolveFlag =
    ResolveFlag::RESOLVE_NO_XDEV.union(ResolveFlag::RESOLVE_NO_SYMLINKS).union(ResolveFlag::RESOLVE_BENEATH);

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
    let how = OpenHow::new().flags(DIRECTORY).resolve(BELOW);
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

/// The space that goes with the name `name` in `dir` (fstatat(2), symlinks not followed): what is allocated to a regular
/// file that has no other name, else nothing.
#[must_use]
pub fn space_of(dir: BorrowedFd<'_>, name: &CStr) -> u64 {
    let Ok(stat) = fstatat(dir, name, AtFlags::AT_SYMLINK_NOFOLLOW) else { return 0 };
    if stat.st_mode & libc::S_IFMT != libc::S_IFREG || stat.st_nlink != 1 {
        return 0;
    }
    u64::try_from(stat.st_blocks).unwrap_or(0).saturating_mul(512)
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

/// The file systems (statfs(2)) that overwrite in place: tmpfs, ramfs, ext2 to ext4, XFS. Not overlay: writing to a file of a
/// lower layer makes a copy, and what the upper one is on cannot be seen.
pub const IN_PLACE: [i64; 4] = [0x0102_1994, 0x8584_58f6, 0xef53, 0x5846_5342];

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

/// How many names a regular file has; `None` for anything else.
#[must_use]
// A u32 on aarch64.
#[allow(clippy::useless_conversion)]
pub fn links(fd: BorrowedFd<'_>) -> Option<u64> {
    let stat = fstat(fd).ok()?;
    (stat.st_mode & libc::S_IFMT == libc::S_IFREG).then_some(stat.st_nlink.into())
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

/// Moves the directory `name` in `dir` to `to`, as `fresh`.
///
/// # Errors
/// The errno of `renameat(2)`.
pub fn rename(dir: BorrowedFd<'_>, name: &CStr, to: BorrowedFd<'_>, fresh: &CStr) -> Result<(), Errno> {
    nix::fcntl::renameat(dir, name, to, fresh)
}

/// Back to the start of the directory (lseek(2)).
///
/// # Errors
/// The errno of `lseek(2)`.
pub fn rewind(dir: BorrowedFd<'_>) -> Result<(), Errno> {
    nix::unistd::lseek(dir, 0, nix::unistd::Whence::SeekSet).map(drop)
}

/// Reads the next entries into `buffer`, for `entries`; how many bytes, 0 at the end.
///
/// # Errors
/// The errno of `getdents64(2)`.
pub fn read_entries(dir: BorrowedFd<'_>, buffer: &mut [u8]) -> Result<usize, Errno> {
    // SAFETY: getdents64 writes at most the length given into the buffer, which is valid for that many bytes.
    let n = unsafe { libc::syscall(libc::SYS_getdents64, dir.as_raw_fd(), buffer.as_mut_ptr(), buffer.len()) };
    Errno::result(n).map(|n| usize::try_from(n).unwrap_or(0))
}

/// One entry as the kernel wrote it.
#[derive(Debug, Clone, Copy)]
pub struct Entry<'a> {
    /// The inode's number.
    pub inode: u64,
    /// `DT_*` of readdir(3); `DT_UNKNOWN` where the file system does not say.
    pub kind: u8,
    /// The name, any bytes but NUL and slash.
    pub name: &'a CStr,
}

/// The entry at `at`, and where the next one is; `None` at the end of what was read.
#[must_use]
pub fn entry(read: &[u8], at: usize) -> Option<(Entry<'_>, usize)> {
    // struct linux_dirent64: ino 8, off 8, reclen 2, type 1, name.
    let record = read.get(at..)?;
    let (inode, rest) = record.split_first_chunk::<8>()?;
    let &[low, high, kind] = rest.get(8..11)? else { return None };
    let length = usize::from(u16::from_ne_bytes([low, high])).max(20);
    let name = CStr::from_bytes_until_nul(record.get(19..length)?).ok()?;
    Some((Entry { inode: u64::from_ne_bytes(*inode), kind, name }, at.saturating_add(length)))
}
