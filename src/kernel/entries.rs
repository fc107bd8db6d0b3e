//! What is in a directory, as getdents64(2) writes it: names of any bytes, with nothing copied and nothing asked a second time.

use nix::errno::Errno;
use std::ffi::CStr;
use std::os::fd::{AsRawFd as _, BorrowedFd};

/// To the entry that follows the one whose `next` this is; 0 is the start of the directory (lseek(2)).
///
/// # Errors
/// The errno of `lseek(2)`.
pub fn seek(dir: BorrowedFd<'_>, to: i64) -> Result<(), Errno> {
    nix::unistd::lseek(dir, to, nix::unistd::Whence::SeekSet).map(drop)
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

/// The same behind what `buffer` holds already, into at most `most` bytes of its capacity, which nobody has to clear first.
///
/// # Errors
/// The errno of `getdents64(2)`.
pub fn append_entries(dir: BorrowedFd<'_>, buffer: &mut Vec<u8>, most: usize) -> Result<usize, Errno> {
    let spare = buffer.spare_capacity_mut();
    let most = most.min(spare.len());
    // SAFETY: getdents64 writes at most `most` bytes into the capacity that is left, which is at least that long.
    let n = unsafe { libc::syscall(libc::SYS_getdents64, dir.as_raw_fd(), spare.as_mut_ptr(), most) };
    let n = Errno::result(n).map(|n| usize::try_from(n).unwrap_or(0))?;
    // SAFETY: the kernel has just written these `n` bytes, and they are within the capacity.
    unsafe { buffer.set_len(buffer.len().saturating_add(n)) };
    Ok(n)
}

/// One entry as the kernel wrote it.
#[derive(Debug, Clone, Copy)]
pub struct Entry<'a> {
    /// The inode's number.
    pub inode: u64,
    /// Where in the directory the next entry is, for `seek`.
    pub next: i64,
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
    let (next, rest) = rest.split_first_chunk::<8>()?;
    let &[low, high, kind] = rest.get(..3)? else { return None };
    let length = usize::from(u16::from_ne_bytes([low, high])).max(20);
    let name = CStr::from_bytes_until_nul(record.get(19..length)?).ok()?;
    let entry = Entry { inode: u64::from_ne_bytes(*inode), next: i64::from_ne_bytes(*next), kind, name };
    Some((entry, at.saturating_add(length)))
}
