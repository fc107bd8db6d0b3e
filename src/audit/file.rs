//! The audit file: opened, locked, and with room for the last line before the workload runs; after that nothing of it goes by a path.
//!
//! It does one task after another for `scribe`, and decides nothing. Invariants: a record that is not the seal never uses up the room
//! reserved for the seal; what somebody else did to the file is seen before it is written to.

use super::message::MessageSink;
use super::sinks::{open_regular, refused};
use crate::kernel::Cause;
use crate::kernel::files;
use crate::kernel::outcome::{OFF, errno};
use crate::switches::without;
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, OFlag, fallocate};
use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::fd::{AsFd as _, AsRawFd};
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

/// What is kept free on the disk for the seal; also the longest line that is written.
pub const RESERVE: usize = 128 * 1024;
/// What is reserved beyond that at a time, so that not every record costs a call.
const AHEAD: u64 = 16 * 1024;
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
    /// Its directory (device, inode, permissions), where the workload's UID can change those.
    directory: Option<(u64, u64, u32)>,
    /// Somebody else changed the file.
    disturbed: Option<&'static str>,
    /// It is in memory, where fsync does nothing and nothing hangs.
    in_memory: bool,
}

/// What can be asked of the audit file.
#[derive(Debug)]
pub enum Task {
    /// One more line.
    Append {
        /// Without its newline.
        line: String,
        /// It may use what is reserved for the seal.
        must: bool,
    },
    /// Whether somebody else touched the file, or what is at its path; its mode is put right.
    Look,
    /// fsync(2).
    Sync,
    /// Nothing more is written: what was reserved is given back.
    Release,
}

/// What became of it.
#[derive(Debug, Clone, Copy)]
pub struct Done {
    /// The task itself.
    pub written: Written,
    /// What somebody else did to the file.
    pub disturbed: Option<&'static str>,
    /// Why no room is promised.
    pub unreserved: Option<Cause>,
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
        let in_memory = files::file_system(file.as_fd()) == libc::TMPFS_MAGIC;
        let (last, torn) = last_line(&file, end).map_err(refused("read"))?;
        let resolved = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        let own = |meta: &std::fs::Metadata| meta.uid() == nix::unistd::geteuid().as_raw();
        let directory = resolved.parent().and_then(|dir| std::fs::metadata(dir).ok()).filter(own);
        let directory = directory.map(|meta| (meta.dev(), meta.ino(), meta.mode()));
        let mut sink = Self {
            file,
            path: resolved,
            end,
            reserved: end,
            unreserved: None,
            torn,
            mode,
            directory,
            disturbed: None,
            in_memory,
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

    /// Its descriptor.
    #[must_use]
    pub fn fd(&self) -> i32 {
        self.file.as_raw_fd()
    }

    /// Why no room is promised.
    #[must_use]
    pub const fn unreserved(&self) -> Option<Cause> {
        self.unreserved
    }

    /// Whether the termination message would be written over it.
    #[must_use]
    pub fn is(&self, message: &MessageSink) -> bool {
        let own = self.file.metadata().ok().map(|meta| (meta.dev(), meta.ino()));
        own.is_some() && own == message.inode()
    }

    /// Whether it is in memory.
    #[must_use]
    pub const fn is_in_memory(&self) -> bool {
        self.in_memory
    }

    /// `fsync(2)`.
    ///
    /// # Errors
    /// What was refused.
    pub fn sync(&self) -> Result<(), Cause> {
        self.file.sync_all().map_err(refused("fsync"))
    }

    /// Does one task.
    pub fn perform(&mut self, task: Task) -> Done {
        let written = match task {
            Task::Append { line, must } => self.append(&line, must),
            Task::Look => {
                self.look(true);
                Written::Yes
            }
            Task::Sync => self.sync().map_or_else(Written::Failed, |()| Written::Yes),
            Task::Release => {
                self.release();
                Written::Yes
            }
        };
        Done { written, disturbed: self.disturbed, unreserved: self.unreserved }
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
    fn look(&mut self, path_too: bool) {
        let Ok(meta) = self.file.metadata() else { return };
        let locked = path_too && self.unlock_directory();
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
        } else if locked {
            Some("the audit directory's mode was changed")
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

    /// Gives the directory back the permissions it had: its owner could keep every later run from its file. Whether they were others.
    fn unlock_directory(&self) -> bool {
        let (Some((device, inode, mode)), Some(path)) = (self.directory, self.path.parent()) else { return false };
        // What is at its path may be another one by now: only that very one, by its descriptor.
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let Ok(dir) = nix::fcntl::open(path, flags, nix::sys::stat::Mode::empty()) else { return false };
        let dir = File::from(dir);
        let same = |meta: &std::fs::Metadata| (meta.dev(), meta.ino()) == (device, inode) && meta.mode() != mode;
        if !dir.metadata().is_ok_and(|meta| same(&meta)) || without("own_mode") {
            return false;
        }
        let by_descriptor = format!("/proc/self/fd/{}", dir.as_raw_fd());
        let _ = std::fs::set_permissions(by_descriptor, std::fs::Permissions::from_mode(mode & 0o7777));
        true
    }

    /// Appends one line with its newline, in one `write(2)` where the kernel takes it whole; else it is completed, or
    /// taken back.
    fn append(&mut self, line: &str, must: bool) -> Written {
        self.look(false);
        let mut bytes = Vec::with_capacity(line.len().saturating_add(2));
        if self.torn {
            bytes.push(b'\n');
        }
        bytes.extend_from_slice(line.as_bytes());
        bytes.push(b'\n');
        let length = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        if !must && self.reserve(length).is_err() {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn its_directory_keeps_its_permissions() {
        let dir = tempfile::tempdir().unwrap();
        let (place, other) = (dir.path().join("audit"), dir.path().join("other"));
        std::fs::create_dir(&place).unwrap();
        let mode = |dir: &Path| std::fs::metadata(dir).unwrap().mode() & 0o777;
        let set = |dir: &Path, mode| std::fs::set_permissions(dir, std::fs::Permissions::from_mode(mode)).unwrap();
        set(&place, 0o750);
        let (mut sink, _) = AuditSink::open(&place.join("a.json")).unwrap();
        assert_eq!(sink.perform(Task::Look).disturbed, None);
        set(&place, 0);
        assert_eq!(sink.perform(Task::Look).disturbed, Some("the audit directory's mode was changed"));
        assert_eq!(mode(&place), 0o750);
        // Another one in its place is nobody's to change.
        std::fs::rename(&place, &other).unwrap();
        std::fs::create_dir(&place).unwrap();
        set(&place, 0o700);
        set(&other, 0o700);
        assert_eq!(sink.perform(Task::Look).disturbed, Some("the audit file was removed or replaced"));
        assert_eq!((mode(&place), mode(&other)), (0o700, 0o700));
        std::fs::remove_dir(&place).unwrap();
        std::os::unix::fs::symlink(&other, &place).unwrap();
        let _ = sink.perform(Task::Look);
        assert_eq!(mode(&other), 0o700);
    }

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
