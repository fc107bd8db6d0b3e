//! Where a record goes: the audit file and the termination message here, stderr in `stderr`. All are opened before the
//! workload runs, close-on-exec and on descriptors from 3 up, and are never opened by path again.
//!
//! Nothing here decides what is written. Invariants: no write blocks on a reader; no path is followed through a symlink
//! in its last component; a record that is not the seal never uses up the space reserved for the seal.

use crate::kernel::Cause;
use crate::kernel::clock;
use crate::kernel::files;
use crate::kernel::flush::Flush;
use crate::kernel::outcome::OFF;
use crate::machine::types::Instant;
use crate::switches::without;
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, OFlag, fallocate};
use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::fd::{AsFd as _, AsRawFd};
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What is kept free on the disk for the seal; also the longest line that is written.
pub const RESERVE: usize = 128 * 1024;
/// What is reserved beyond that at a time, so that not every record costs a call.
const AHEAD: u64 = 16 * 1024;
/// The kubelet reads no more of a termination message.
pub const MESSAGE_LIMIT: usize = 4096;

/// The errno of a failure of the standard library.
#[must_use]
pub fn errno(error: &io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}

pub(super) fn refused(what: &'static str) -> impl Fn(io::Error) -> Cause {
    move |error| Cause::refused(what, errno(&error))
}

/// Above 0 to 2, even where these were closed: `try_clone` duplicates with F_DUPFD_CLOEXEC from 3 (fcntl(2)). The
/// duplicate is the same open file, so a lock and O_APPEND stay.
pub(super) fn above_stdio(file: File) -> Result<File, Cause> {
    if file.as_raw_fd() >= 3 { Ok(file) } else { file.try_clone().map_err(refused("dup")) }
}

/// Opens a regular file with one name, and nothing else. O_NONBLOCK so that a FIFO answers at once (open(2)).
fn open_regular(options: &mut OpenOptions, path: &Path) -> Result<File, Cause> {
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

/// What became of one record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Written {
    /// It is in the file.
    Yes,
    /// The disk is full; what is left is the seal's.
    NoSpace,
    /// The file does not take it.
    Failed(Cause),
}

/// The audit file.
#[derive(Debug)]
pub struct AuditSink {
    file: File,
    path: PathBuf,
    /// Where the file has to end, if only this process writes to it.
    end: u64,
    /// Up to where the disk has promised room.
    reserved: u64,
    /// Why it does not promise any.
    unreserved: Option<Cause>,
    /// The file ends in a torn line: the next record begins with a newline.
    torn: bool,
    /// The permissions it had when it was opened.
    mode: u32,
    /// Somebody else changed the file.
    disturbed: Option<&'static str>,
    /// The fsyncs that the ladder did not wait for.
    flushing: Option<Flush>,
    /// When one more is to follow.
    soon: Option<Instant>,
}

/// As long as a disk may take where nobody waits outside.
const FOR_EVER: Duration = Duration::from_secs(3600);
/// How long after the trigger its record is synced, where the run is not over before.
const SOON: Duration = Duration::from_millis(50);
/// A disk that does not answer.
pub const LATE: &str = "fsync did not come back in time";

fn answered(answer: Option<Result<(), Cause>>) -> Result<(), Cause> {
    answer.unwrap_or(Err(Cause::because(LATE)))
}

/// Whether it is in memory, where fsync does nothing and cannot hang.
fn in_memory(file: &File) -> bool {
    files::file_system(file.as_fd()) == libc::TMPFS_MAGIC
}

/// Starts one that the kernel does by itself, besides those that are on their way.
fn in_kernel(file: &File, flush: &mut Option<Flush>) -> Result<(), Cause> {
    let new = flush.take().map_or_else(Flush::in_kernel, Ok)?;
    flush.insert(new).submit(file.as_fd())
}

/// `fsync(2)` here, or, with `until`, beside us and given up then. By a thread only where nobody of the workload is left; where
/// somebody is, and the kernel does not do it by itself, not at all: it could make us wait by using up what that takes.
fn sync_until(file: &File, flush: &mut Option<Flush>, until: Option<Instant>, alone: bool) -> Result<(), Cause> {
    let here = || file.sync_all().map_err(refused("fsync"));
    let Some(until) = until.filter(|_| !in_memory(file)) else { return here() };
    if alone && let Some(mut thread) = Flush::in_thread(file.as_fd()) {
        return answered(thread.wait(until));
    }
    match in_kernel(file, flush) {
        // No thread to be had either (pids limit, no memory): without a deadline.
        Err(_) if alone => return here(),
        started => started?,
    }
    answered(flush.as_mut().and_then(|flush| flush.wait(until)))
}

impl AuditSink {
    /// Opens, locks, and reserves the seal's room. With it the hash of the file's last line, where there is one.
    ///
    /// # Errors
    /// What was refused, or what the path is instead of a file of its own.
    pub fn open(path: &Path) -> Result<(Self, Option<String>), Cause> {
        let file = open_regular(OpenOptions::new().read(true).append(true).create(true).mode(0o600), path)?;
        file.try_lock().map_err(|error| match error {
            std::fs::TryLockError::WouldBlock => Cause::because("another process has it locked"),
            std::fs::TryLockError::Error(error) => Cause::refused("flock", errno(&error)),
        })?;
        let meta = file.metadata().map_err(refused("fstat"))?;
        let (end, mode) = (meta.len(), meta.mode());
        let (last, torn) = last_line(&file, end).map_err(refused("read"))?;
        let resolved = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        let mut sink = Self {
            file,
            path: resolved,
            end,
            reserved: end,
            unreserved: None,
            torn,
            mode,
            disturbed: None,
            flushing: None,
            soon: None,
        };
        // Refused for want of room: the file is still there for whatever fits.
        if sink.reserve(0).is_err() {
            sink.unreserved = Some(Cause::refused("fallocate", Errno::ENOSPC));
        }
        Ok((sink, last))
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Why no room is promised.
    #[must_use]
    pub const fn unreserved(&self) -> Option<Cause> {
        self.unreserved
    }

    /// What somebody else did to the file.
    #[must_use]
    pub const fn disturbed(&self) -> Option<&'static str> {
        self.disturbed
    }

    /// Its descriptor.
    #[must_use]
    pub fn fd(&self) -> i32 {
        self.file.as_raw_fd()
    }

    /// `fsync(2)`.
    ///
    /// # Errors
    /// What was refused.
    pub fn sync(&self) -> Result<(), Cause> {
        self.file.sync_all().map_err(refused("fsync"))
    }

    /// `fsync(2)` of what is written now, soon and waited for by nobody: the kill must not come late because a disk is slow. Not at once:
    /// where the run is over before, the seal's does for both, and exit(2) has not the kernel's own to wait for (`flush`).
    ///
    /// # Errors
    /// What was refused, where nothing has to be waited for.
    pub fn sync_soon(&mut self) -> Result<(), Cause> {
        if without("beside") || in_memory(&self.file) {
            return self.sync();
        }
        self.soon.get_or_insert_with(|| clock::now().plus(SOON));
        Ok(())
    }

    /// When the one that was to be soon is to be started.
    #[must_use]
    pub const fn due(&self) -> Option<Instant> {
        self.soon
    }

    /// Starts it. Where it cannot be had without a thread it is left to the seal's: the workload is alive, and a thread is a name for us
    /// that the filter does not know.
    ///
    /// # Errors
    /// Why it is left to the seal's.
    pub fn sync_beside(&mut self) -> Result<(), Cause> {
        self.soon = None;
        if without("flush_thread") {
            self.flushing = Flush::in_thread(self.file.as_fd());
            return Ok(());
        }
        in_kernel(&self.file, &mut self.flushing)
    }

    /// `fsync(2)`, the last one. With `until` it is given up then. `alone` where nobody of the workload is left.
    ///
    /// # Errors
    /// What was refused, now or of the one before; `LATE` where the disk did not answer.
    pub fn sync_until(&mut self, until: Option<Instant>, alone: bool) -> Result<(), Cause> {
        self.soon = None;
        // Without an outside clock it may take as long as the one that follows, for the same disk.
        let patience = until.unwrap_or_else(|| clock::now().plus(FOR_EVER));
        let before = self.flushing.as_mut().map_or(Ok(()), |flush| answered(flush.wait(patience)));
        if before == Err(Cause::because(LATE)) {
            return before;
        }
        before.and(sync_until(&self.file, &mut self.flushing, until, alone))
    }

    /// Room for `length` bytes and the seal after them; FALLOC_FL_KEEP_SIZE leaves the file's length alone
    /// (fallocate(2)). A file system that cannot promise (EOPNOTSUPP) is remembered and not asked again.
    fn reserve(&mut self, length: u64) -> Result<(), ()> {
        if without("audit_space_reserved") {
            self.unreserved = Some(Cause::because(OFF));
            return Ok(());
        }
        let needed = self.end.saturating_add(length).saturating_add(u64::try_from(RESERVE).unwrap_or(0));
        if needed <= self.reserved {
            return Ok(());
        }
        if self.unreserved.is_some_and(|cause| cause.errno != Some(Errno::ENOSPC)) {
            return Ok(());
        }
        for until in [needed.saturating_add(AHEAD), needed] {
            let length = i64::try_from(until.saturating_sub(self.end)).unwrap_or(i64::MAX);
            let from = i64::try_from(self.end).unwrap_or(i64::MAX);
            match fallocate(&self.file, FallocateFlags::FALLOC_FL_KEEP_SIZE, from, length) {
                Ok(()) => {
                    self.reserved = until;
                    self.unreserved = None;
                    return Ok(());
                }
                Err(Errno::ENOSPC | Errno::EDQUOT | Errno::EINTR) => {}
                Err(errno) => {
                    self.unreserved = Some(Cause::refused("fallocate", errno));
                    return Ok(());
                }
            }
        }
        Err(())
    }

    /// Did somebody else touch the file, or take it away?
    /// The path is only looked up for the seal: a descriptor's fstat(2) asks no directory.
    pub fn look(&mut self, path_too: bool) {
        let Ok(meta) = self.file.metadata() else { return };
        let here = path_too.then(|| std::fs::symlink_metadata(&self.path));
        let same = here.is_none_or(|here| here.is_ok_and(|here| (here.dev(), here.ino()) == (meta.dev(), meta.ino())));
        let what = if meta.nlink() == 0 || !same {
            Some("the audit file was removed or replaced")
        } else if meta.nlink() > 1 {
            Some("the audit file was given a second name")
        } else if meta.len() < self.end {
            Some("the audit file was truncated")
        } else if meta.len() > self.end {
            Some("somebody else wrote to the audit file")
        } else {
            None
        };
        if what.is_some() {
            self.disturbed = what;
        }
        if path_too && meta.mode() != self.mode && !without("own_mode") {
            // Its owner may, whom Landlock does not keep from it: the next run has to be able to open it.
            let mode = std::fs::Permissions::from_mode(self.mode & 0o7777);
            if self.file.set_permissions(mode).is_err() {
                self.disturbed = self.disturbed.or(Some("the audit file's mode was changed"));
            }
        }
        if meta.len() != self.end {
            // A strange part of a line must not swallow ours. What was reserved beyond a cut is gone.
            self.torn = meta.len() > 0;
            self.reserved = 0;
            self.end = meta.len();
        }
    }

    /// Appends one line with its newline, in one `write(2)` where the kernel takes it whole; else it is completed, or
    /// taken back.
    pub fn append(&mut self, line: &str, seal: bool) -> Written {
        self.look(seal);
        let mut bytes = Vec::with_capacity(line.len().saturating_add(2));
        if self.torn {
            bytes.push(b'\n');
        }
        bytes.extend_from_slice(line.as_bytes());
        bytes.push(b'\n');
        let length = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        if !seal && self.reserve(length).is_err() {
            return Written::NoSpace;
        }
        // write_all goes on after EINTR and after a short write.
        match (&self.file).write_all(&bytes) {
            Ok(()) => {
                self.end = self.end.saturating_add(length);
                self.torn = false;
                Written::Yes
            }
            Err(error) => {
                self.take_back(length);
                match errno(&error) {
                    Errno::ENOSPC | Errno::EDQUOT => Written::NoSpace,
                    errno => Written::Failed(Cause::refused("write", errno)),
                }
            }
        }
    }

    /// Gives back what was reserved, once nothing more is written: room beyond the end of a file is invisible in its
    /// length and would be lost to the disk (fallocate(2), FALLOC_FL_PUNCH_HOLE).
    pub fn release(&mut self) {
        let unchanged = self.file.metadata().is_ok_and(|meta| meta.len() == self.end);
        if unchanged && self.reserved > self.end {
            let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
            let from = i64::try_from(self.end).unwrap_or(i64::MAX);
            let length = i64::try_from(self.reserved.saturating_sub(self.end)).unwrap_or(0);
            // tmpfs frees by the hole, ext4 by a truncation to the same length; where neither does, the room stays lost.
            let _ = fallocate(&self.file, flags, from, length);
            let _ = self.file.set_len(self.end);
            self.reserved = self.end;
        }
    }

    /// Removes a part of a record, unless somebody else wrote behind it.
    fn take_back(&mut self, length: u64) {
        let Ok(now) = self.file.metadata().map(|meta| meta.len()) else { return };
        if now > self.end && now < self.end.saturating_add(length) {
            if self.file.set_len(self.end).is_ok() {
                self.reserved = self.end; // Truncating frees what was reserved (fallocate(2)).
                let _ = self.reserve(0); // Where it fails the next record finds out.
            } else {
                self.end = now;
                self.torn = true;
            }
        }
    }
}

/// The hash of the last line, torn or whole, and whether it is torn. Reads back at most the longest line; a longer one
/// has no hash here, and `verify` refuses it anyway.
fn last_line(file: &File, end: u64) -> io::Result<(Option<String>, bool)> {
    let limit = u64::try_from(super::verify::LINE_LIMIT).unwrap_or(u64::MAX).saturating_add(2);
    // Nearly every line is in the first piece, and no more memory is taken than the last one needs.
    let mut length = 8192;
    loop {
        let from = end.saturating_sub(length);
        let mut tail = vec![0; usize::try_from(end.saturating_sub(from)).unwrap_or(0)];
        file.read_exact_at(&mut tail, from)?;
        if tail.is_empty() {
            return Ok((None, false));
        }
        let (text, torn) = match tail.strip_suffix(b"\n") {
            Some(text) => (text, false),
            None => (tail.as_slice(), true),
        };
        let line = text.rsplit(|byte| *byte == b'\n').next().unwrap_or_default();
        if line.len() < text.len() || from == 0 {
            return Ok((Some(super::chain::sha256(line)), torn));
        }
        if length >= limit {
            return Ok((None, torn));
        }
        length = length.saturating_mul(8).min(limit);
    }
}

/// The termination message of the kubelet: a file that is there already, or none.
#[derive(Debug)]
pub struct MessageSink {
    file: File,
}

impl MessageSink {
    /// Opens it for writing; it is never created.
    ///
    /// # Errors
    /// What was refused; ENOENT is the ordinary case outside Kubernetes.
    pub fn open(path: &Path) -> Result<Self, Cause> {
        Ok(Self { file: open_regular(OpenOptions::new().write(true), path)? })
    }

    /// `fsync(2)`.
    ///
    /// # Errors
    /// What was refused.
    pub fn sync(&self) -> Result<(), Cause> {
        self.file.sync_all().map_err(refused("fsync"))
    }

    /// Its descriptor.
    #[must_use]
    pub fn fd(&self) -> i32 {
        self.file.as_raw_fd()
    }

    /// Replaces whatever is in it; with `until` its fsync is given up then. `alone` where nobody of the workload is left.
    ///
    /// # Errors
    /// What was refused.
    pub fn replace(&self, message: &str, until: Option<Instant>, alone: bool) -> Result<(), Cause> {
        if without("message") {
            return Err(Cause::because(OFF));
        }
        self.file.set_len(0).map_err(refused("ftruncate"))?;
        self.file.write_all_at(message.as_bytes(), 0).map_err(refused("pwrite"))?;
        sync_until(&self.file, &mut None, until, alone)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_line_is_found_whatever_its_length() {
        let file = tempfile::tempfile().unwrap();
        for length in [0usize, 1, 8190, 8191, 8192, 8193, 65_534, 65_536, 70_000, 600_000] {
            for (before, torn) in [("", false), ("", true), ("first\nsecond\n", false), ("first\n", true)] {
                let line = "x".repeat(length);
                let text = format!("{before}{line}{}", if torn { "" } else { "\n" });
                file.set_len(0).unwrap();
                file.write_all_at(text.as_bytes(), 0).unwrap();
                let (hash, is_torn) = last_line(&file, text.len() as u64).unwrap();
                let wanted = match (length, before, torn) {
                    (0, "", true) => None,
                    // Nothing of it was written: the one before is whole.
                    (0, _, true) => Some("first"),
                    _ => Some(line.as_str()),
                };
                assert_eq!(
                    hash,
                    wanted.map(|line| crate::audit::chain::sha256(line.as_bytes())),
                    "{length} {before:?} {torn}"
                );
                assert_eq!(is_torn, torn && length > 0, "{length} {before:?}");
            }
        }
        // Longer than any line may be.
        file.set_len(0).unwrap();
        file.write_all_at(&vec![b'x'; 2 << 20], 0).unwrap();
        assert_eq!(last_line(&file, 2 << 20).unwrap(), (None, true));
    }
}
