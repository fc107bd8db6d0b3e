//! Where records go: the audit file, else stderr; and the termination message. All are opened before the workload runs.
//!
//! Invariant: nothing here blocks the ladder on a stuck reader, follows a symlink or takes a descriptor below 3.

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, FcntlArg, Flock, FlockArg, OFlag, fallocate, fcntl, open};
use nix::sys::stat::{Mode, SFlag, fstat};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What is kept free behind the end of the file, so that a full disk cannot suppress the seal.
pub const SEAL_SPACE: i64 = 64 * 1024;

/// A sink that could not be opened: what, where, why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SinkError {
    /// The call, or what is wrong with the file.
    pub what: &'static str,
    /// The path.
    pub path: PathBuf,
    /// The kernel's answer.
    pub errno: Errno,
}

impl std::fmt::Display for SinkError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let path = crate::settings::cli::printable(self.path.as_os_str());
        write!(f, "{} {path}: {} ({:?})", self.what, self.errno.desc(), self.errno)
    }
}

impl std::error::Error for SinkError {}

/// The open audit file, locked for this run.
#[derive(Debug)]
pub struct AuditFile {
    file: Flock<OwnedFd>,
    /// Its path, made absolute.
    pub path: PathBuf,
    /// Whether space for the seal is reserved.
    pub reserved: Result<(), Errno>,
    /// SHA-256 of the last whole line; `None` for a new chain.
    pub last: Option<String>,
    torn: bool,
}

impl AuditFile {
    /// Opens, locks and checks the file, finds the end of its chain and reserves space for the seal.
    ///
    /// # Errors
    /// Not openable, not a regular file, hard-linked elsewhere, in use by another supervisor, or not fsyncable.
    pub fn open(path: &Path) -> Result<Self, SinkError> {
        let fail = |what, errno| SinkError { what, path: path.to_owned(), errno };
        // O_NONBLOCK: a FIFO in the file's place must not hang us; it means nothing for a regular file.
        let flags =
            OFlag::O_RDWR | OFlag::O_APPEND | OFlag::O_CREAT | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
        let fd = open(path, flags, Mode::S_IRUSR | Mode::S_IWUSR).map_err(|e| fail("cannot open audit file", e))?;
        let fd = above_stdio(fd).map_err(|e| fail("cannot open audit file", e))?;
        let stat = fstat(&fd).map_err(|e| fail("cannot stat audit file", e))?;
        if SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT != SFlag::S_IFREG {
            return Err(fail("audit file is not a regular file:", Errno::EINVAL));
        }
        if stat.st_nlink != 1 {
            return Err(fail("audit file has another name (hard link):", Errno::EMLINK));
        }
        let file = Flock::lock(fd, FlockArg::LockExclusiveNonblock)
            .map_err(|(_, e)| fail("audit file is in use by another supervisor:", e))?;
        let mut this = Self { file, path: absolute(path), reserved: Ok(()), last: None, torn: false };
        (this.last, this.torn) = this.tail(stat.st_size).map_err(|e| fail("cannot read audit file", e))?;
        this.reserved = this.reserve(0);
        nix::unistd::fsync(&*this.file).map_err(|e| fail("cannot fsync audit file", e))?;
        Ok(this)
    }

    /// Keeps the seal's space free behind the next `extra` bytes.
    ///
    /// # Errors
    /// `ENOSPC` where the disk is full, `EOPNOTSUPP` where the file system cannot reserve.
    pub fn reserve(&self, extra: i64) -> Result<(), Errno> {
        let size = fstat(&*self.file)?.st_size;
        fallocate(&*self.file, FallocateFlags::FALLOC_FL_KEEP_SIZE, size, SEAL_SPACE.saturating_add(extra))
    }

    /// Appends one line and its newline in one write where the kernel lets it.
    ///
    /// # Errors
    /// The errno of `write(2)`.
    pub fn append(&mut self, line: &str) -> Result<(), Errno> {
        let mut text = String::with_capacity(line.len().saturating_add(2));
        if std::mem::take(&mut self.torn) {
            // The torn line is left as it is; ours begins on a line of its own.
            text.push('\n');
        }
        text.push_str(line);
        text.push('\n');
        let mut rest = text.as_bytes();
        while !rest.is_empty() {
            match nix::unistd::write(&*self.file, rest) {
                Ok(0) => return Err(Errno::EIO),
                Ok(n) => rest = rest.get(n..).unwrap_or_default(),
                Err(Errno::EINTR) => {}
                Err(errno) => {
                    // Half a line is on the disk: whatever comes next must not be glued to it.
                    self.torn = rest.len() < text.len();
                    return Err(errno);
                }
            }
        }
        Ok(())
    }

    /// Makes it durable.
    ///
    /// # Errors
    /// The errno of `fsync(2)`.
    pub fn sync(&self) -> Result<(), Errno> {
        nix::unistd::fsync(&*self.file)
    }

    /// SHA-256 of the last whole line, and whether the file ends in a torn one.
    fn tail(&self, size: i64) -> Result<(Option<String>, bool), Errno> {
        /// No line of ours comes near this; a longer one is somebody else's.
        const LONGEST: i64 = 1 << 20;
        if size == 0 {
            return Ok((None, false));
        }
        let from = size.saturating_sub(LONGEST).max(0);
        let mut text = vec![0u8; usize::try_from(size.saturating_sub(from)).unwrap_or(0)];
        let mut used = 0usize;
        while let Some(rest) = text.get_mut(used..).filter(|r| !r.is_empty()) {
            let at = from.saturating_add(i64::try_from(used).unwrap_or(i64::MAX));
            match nix::sys::uio::pread(&*self.file, rest, at) {
                Ok(0) => break,
                Ok(n) => used = used.saturating_add(n),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno),
            }
        }
        text.truncate(used);
        let Some(body) = text.strip_suffix(b"\n") else { return Ok((None, true)) };
        let line = match body.iter().rposition(|&b| b == b'\n') {
            Some(at) => body.get(at.saturating_add(1)..),
            None if from == 0 => Some(body),
            None => None,
        };
        // A whole line that is not a record (a torn one that somebody terminated) cannot be continued either.
        Ok((line.filter(|l| super::chain::take_apart(l).is_some()).map(super::chain::sha256), false))
    }
}

/// gracekeeper's own duplicate of stderr; `None` where it was closed at start.
#[derive(Debug)]
pub struct Stderr(Option<OwnedFd>);

impl Stderr {
    /// Duplicates descriptor 2 above the standard three.
    #[must_use]
    pub fn open() -> Self {
        Self(std::io::stderr().as_fd().try_clone_to_owned().ok())
    }

    /// Writes one line. A reader that is stuck costs at most a tenth of a second, and then the rest of the line: the pipe is
    /// shared with others, so it cannot be made non-blocking.
    ///
    /// # Errors
    /// `EBADF` where there is no stderr, `EAGAIN` where the reader is stuck, else the errno of `write(2)`.
    pub fn append(&self, line: &str) -> Result<(), Errno> {
        let fd = self.0.as_ref().ok_or(Errno::EBADF)?;
        let text = format!("{line}\n");
        let mut rest = text.as_bytes();
        let mut patience = 5;
        while !rest.is_empty() {
            let mut poll = [nix::poll::PollFd::new(fd.as_fd(), nix::poll::PollFlags::POLLOUT)];
            let ready = nix::poll::ppoll(
                &mut poll,
                Some(nix::sys::time::TimeSpec::from_duration(Duration::from_millis(20))),
                None,
            );
            if !matches!(ready, Ok(1..)) {
                patience -= 1;
                if patience == 0 {
                    return Err(Errno::EAGAIN);
                }
                continue;
            }
            // A pipe that polls writable has room for PIPE_BUF bytes (pipe(7)), so this much does not block.
            let (now, _) = rest.split_at_checked(4096).unwrap_or((rest, &[]));
            match nix::unistd::write(fd, now) {
                Ok(n) => rest = rest.get(n.max(1)..).unwrap_or_default(),
                Err(Errno::EINTR | Errno::EAGAIN) => {}
                Err(errno) => return Err(errno),
            }
        }
        Ok(())
    }
}

/// The termination message's file (Kubernetes: `terminationMessagePath`), opened before the workload runs.
#[derive(Debug)]
pub struct TerminationMessage(OwnedFd);

impl TerminationMessage {
    /// Opens a file that is already there: the kubelet makes it.
    ///
    /// # Errors
    /// Absent (`ENOENT`), a symlink (`ELOOP`), not a regular file, or not writable.
    pub fn open(path: &Path) -> Result<Self, SinkError> {
        let fail = |what, errno| SinkError { what, path: path.to_owned(), errno };
        let flags = OFlag::O_WRONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
        let fd = open(path, flags, Mode::empty()).map_err(|e| fail("cannot open termination log", e))?;
        let fd = above_stdio(fd).map_err(|e| fail("cannot open termination log", e))?;
        let stat = fstat(&fd).map_err(|e| fail("cannot stat termination log", e))?;
        if SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT != SFlag::S_IFREG {
            return Err(fail("termination log is not a regular file:", Errno::EINVAL));
        }
        Ok(Self(fd))
    }

    /// Replaces its content: what the workload wrote there is gone.
    ///
    /// # Errors
    /// The errno of the call that failed.
    pub fn write(&self, text: &str) -> Result<(), Errno> {
        nix::unistd::ftruncate(&self.0, 0)?;
        let mut rest = text.as_bytes();
        let mut at = 0;
        while !rest.is_empty() {
            match nix::sys::uio::pwrite(&self.0, rest, at) {
                Ok(0) => return Err(Errno::EIO),
                Ok(n) => {
                    rest = rest.get(n..).unwrap_or_default();
                    at = at.saturating_add(i64::try_from(n).unwrap_or(0));
                }
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno),
            }
        }
        self.sync()
    }

    /// Makes it durable.
    ///
    /// # Errors
    /// The errno of `fsync(2)`.
    pub fn sync(&self) -> Result<(), Errno> {
        nix::unistd::fsync(&self.0)
    }
}

/// Moves a descriptor above the standard three: one of those that was closed at start must not become a sink that the
/// workload inherits as its stdout.
fn above_stdio(fd: OwnedFd) -> Result<OwnedFd, Errno> {
    use std::os::fd::AsRawFd;
    if fd.as_raw_fd() > 2 {
        return Ok(fd);
    }
    // try_clone_to_owned is F_DUPFD_CLOEXEC with a minimum of 3.
    fd.as_fd().try_clone_to_owned().map_err(|e| Errno::from_raw(e.raw_os_error().unwrap_or(0)))
}

/// The path without symlinks, for the directory the workload is kept out of; the plain one where that fails.
fn absolute(path: &Path) -> PathBuf {
    std::fs::canonicalize(path).or_else(|_| std::path::absolute(path)).unwrap_or_else(|_| path.to_owned())
}

/// Whether `fd` can be used at all: what `F_GETFD` says.
#[must_use]
pub fn is_open(fd: impl AsFd) -> bool {
    fcntl(fd.as_fd(), FcntlArg::F_GETFD).is_ok()
}
