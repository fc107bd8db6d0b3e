//! stderr as a sink: where records go that have no file, and what the seal falls back to.
//!
//! Invariant: no write waits longer than `PATIENCE` for a reader, and none makes the descriptor of anybody else non-blocking. No
//! record is the rest of somebody else's line.

use super::sinks::{above_stdio, refused};
use crate::kernel::nowait::write_now;
use crate::kernel::outcome::errno;
use crate::kernel::terminal::Terminal;
use crate::kernel::{Cause, clock};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::fs::{File, OpenOptions};
use std::io::{self, Seek as _, SeekFrom, Write as _};
use std::os::fd::{AsFd as _, AsRawFd, OwnedFd};
use std::os::unix::fs::{FileExt as _, FileTypeExt as _, OpenOptionsExt as _};
use std::time::Duration;

/// How long a stuck reader of stderr is waited for, for one record.
const PATIENCE: Duration = Duration::from_millis(100);
/// A pipe that polls writable takes this much without blocking (pipe(7), PIPE_BUF).
const CHUNK: usize = 4096;

/// stderr, as it was when the run began.
#[derive(Debug)]
pub struct StderrSink {
    file: Option<File>,
    /// It is a pipe of our own description, or a regular file: no reader can hold up a write, and one is enough.
    nonblocking: bool,
    /// A regular file. Who shares its description may move its position, or set flags (fcntl(2), F_SETFL) by which writes fail.
    regular: bool,
    /// A terminal. One that may not be opened anew polls writable with room for less than a line: it gets a byte at a time.
    device: bool,
    /// Nobody read the last record: the next are given no time, so that a stuck reader costs the ladder nothing more.
    stuck: bool,
    /// A record was broken off: the next begins on a new line.
    torn: bool,
    /// Others write here as well: what they wrote last may have no newline, and a pipe, a socket or a terminal does not say. Each
    /// line begins on a new one then, at the price of an empty line.
    shared: bool,
    /// How it was, where it is a terminal.
    terminal: Option<Terminal>,
}

impl StderrSink {
    /// Duplicates stderr. A pipe or a terminal is opened anew below /proc instead: that is another open file description, so that
    /// O_NONBLOCK does not reach the others who write to the same one (open(2), proc_pid_fd(5)).
    #[must_use]
    pub fn open() -> Self {
        let Ok(duplicate) = io::stderr().as_fd().try_clone_to_owned() else {
            return Self::none();
        };
        Self::from_fd(duplicate)
    }

    const fn none() -> Self {
        Self {
            file: None,
            nonblocking: false,
            regular: false,
            device: false,
            stuck: false,
            torn: false,
            shared: false,
            terminal: None,
        }
    }

    /// The same for any descriptor.
    #[must_use]
    pub fn from_fd(fd: OwnedFd) -> Self {
        let file = File::from(fd);
        let terminal = Terminal::of(&file);
        let regular = file.metadata().is_ok_and(|meta| meta.is_file());
        let device = file.metadata().is_ok_and(|meta| meta.file_type().is_char_device());
        if device || file.metadata().is_ok_and(|meta| meta.file_type().is_fifo()) {
            let flags = OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
            let path = format!("/proc/self/fd/{}", file.as_raw_fd());
            let anew = OpenOptions::new().write(true).custom_flags(flags.bits()).open(path);
            if let Ok(anew) = anew.map_err(refused("open")).and_then(above_stdio) {
                return Self { file: Some(anew), nonblocking: true, device, terminal, ..Self::none() };
            }
        }
        Self { file: Some(file), nonblocking: regular, regular, device, terminal, ..Self::none() }
    }

    /// Its descriptor.
    #[must_use]
    pub fn fd(&self) -> Option<i32> {
        self.file.as_ref().map(AsRawFd::as_raw_fd)
    }

    /// The workload has it from now on.
    pub const fn share(&mut self) {
        self.shared = true;
    }

    /// One line, given up a tenth of a second after it was begun (a reader that takes a byte now and then must not hold up the
    /// ladder either); `patient` waits that long also where the last one was given up.
    ///
    /// # Errors
    /// What was refused; ETIMEDOUT where nobody reads.
    pub fn write(&mut self, line: &str, patient: bool) -> Result<(), Cause> {
        self.write_within(line, if self.stuck && !patient { Duration::ZERO } else { PATIENCE })
    }

    /// The line after which nothing follows. The workload may have left a terminal stopped, or with settings that garble it.
    ///
    /// # Errors
    /// As `write`.
    pub fn write_last(&mut self, line: &str) -> Result<(), Cause> {
        if let (Some(terminal), Some(file)) = (&self.terminal, &self.file) {
            terminal.give_back(file);
        }
        self.write(line, true)
    }

    /// One line, given up after `patience`.
    ///
    /// # Errors
    /// As `write`.
    pub fn write_within(&mut self, line: &str, patience: Duration) -> Result<(), Cause> {
        let Some(mut file) = self.file.as_ref() else { return Err(Cause::refused("stderr", Errno::EBADF)) };
        let mut bytes = Vec::with_capacity(line.len().saturating_add(2));
        if self.torn || self.shared {
            bytes.push(b'\n');
        }
        bytes.extend_from_slice(line.as_bytes());
        bytes.push(b'\n');
        if self.regular && self.shared {
            // Not over what is there. It is at the end already, unless somebody moved it.
            let _ = file.seek(SeekFrom::End(0));
        }
        let deadline = clock::now().plus(patience);
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            let left = deadline.since(clock::now());
            let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO);
            let mut polled = vec![PollFd::new(file.as_fd(), PollFlags::POLLOUT)];
            polled.extend(clock::timer(left).map(|timer| PollFd::new(timer, PollFlags::POLLIN)));
            match poll(&mut polled, timeout) {
                Ok(0) => {
                    self.torn |= rest.len() < bytes.len();
                    self.stuck = true;
                    return Err(Cause::refused("stderr", Errno::ETIMEDOUT));
                }
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => return Err(Cause::refused("poll", errno)),
            }
            if polled.first().is_none_or(|polled| polled.revents().is_none_or(|events| events.is_empty())) {
                continue; // EINTR, or the time is over: the next look says so.
            }
            let most = if self.device { 1 } else { CHUNK };
            let chunk = if self.nonblocking { rest } else { rest.get(..most).unwrap_or(rest) };
            // Between the poll and the write somebody else may have filled the pipe; where the kernel cannot be asked
            // not to wait, only that moment is left open.
            let now = if self.nonblocking { Err(Errno::EOPNOTSUPP) } else { write_now(file, chunk) };
            let written = match now {
                Err(Errno::EOPNOTSUPP | Errno::ENOSYS | Errno::EINVAL | Errno::EPERM | Errno::ESPIPE) => {
                    file.write(chunk)
                }
                now => now.map_err(io::Error::from),
            };
            let spoilt = |error: &io::Error| self.regular && is_spoilt(error);
            let written = match written {
                Err(error) if spoilt(&error) => write_apart(file, chunk).or(Err(error)),
                written => written,
            };
            match written {
                Ok(written) => rest = rest.get(written..).unwrap_or_default(),
                Err(error) if matches!(errno(&error), Errno::EINTR) => {}
                Err(error) if matches!(errno(&error), Errno::EAGAIN) && !left.is_zero() => {
                    // A pipe polls writable with one free page, which may be too little for an atomic write.
                    clock::pause(Duration::from_millis(1));
                }
                Err(error) => {
                    self.torn |= rest.len() < bytes.len();
                    self.stuck = true;
                    return Err(Cause::refused("stderr", errno(&error)));
                }
            }
        }
        (self.torn, self.stuck) = (false, false);
        Ok(())
    }
}

/// Writes to a regular file by an open file description of our own: at its end, or, where nothing fits behind that, in its first hole (lseek(2)).
fn write_apart(file: &File, bytes: &[u8]) -> io::Result<usize> {
    let mut anew = OpenOptions::new().write(true).open(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
    let end = anew.seek(SeekFrom::End(0))?;
    match anew.write_at(bytes, end) {
        Err(error) if is_spoilt(&error) => {
            let hole = nix::unistd::lseek(&anew, 0, nix::unistd::Whence::SeekHole)?;
            anew.write_at(bytes, u64::try_from(hole).unwrap_or(end))
        }
        written => written,
    }
}

/// What a write answers at the largest offset there is, or past what the file system takes (EFBIG), or with O_DIRECT.
fn is_spoilt(error: &io::Error) -> bool {
    matches!(errno(error), Errno::EINVAL | Errno::EFBIG)
}
