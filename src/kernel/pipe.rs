//! Pipes between the workload and the supervisor's own stdout and stderr: making them, counting what is in them, and
//! moving bytes without ever waiting.
//!
//! Invariant: no inherited descriptor gets O_NONBLOCK, which everybody who shares its open file description would feel.

use super::nowait::write_now;
use super::spawn::above_stdio;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::stat::{FileStat, Mode, fstat};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

/// The largest write where the kernel cannot be asked not to wait: what poll(2)'s POLLOUT says there is room for.
const CAREFUL: usize = 512;

/// A new pipe: the reading end, which does not wait (a description of its own), and the writing end, which does.
///
/// # Errors
/// The errno of `pipe2(2)`: `EMFILE`, `ENFILE`.
pub fn pair() -> Result<(OwnedFd, OwnedFd), Errno> {
    let (read, write) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
    fcntl(&read, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    Ok((above_stdio(read)?, above_stdio(write)?))
}

/// How many bytes are in the pipe (FIONREAD, pipe(7)).
///
/// # Errors
/// The errno of `ioctl(2)`.
pub fn queued(pipe: impl AsFd) -> Result<u64, Errno> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: FIONREAD writes one int to the pointer, which is valid; the borrowed descriptor is open throughout.
    Errno::result(unsafe { libc::ioctl(pipe.as_fd().as_raw_fd(), libc::FIONREAD, &raw mut bytes) })?;
    Ok(u64::try_from(bytes).unwrap_or(0))
}

/// A pipe of our own between two others. splice(2) hands pages on with what their writer made of them: of one written in packet mode
/// (O_DIRECT, pipe(2)) a reader gets what it asks for and loses the rest, and neither the flag nor the mode can be seen from outside. A
/// copy that is written here is no packet, and leaves by a splice that does not wait, as a write into a shared pipe might.
#[derive(Debug)]
pub struct Stage {
    read: OwnedFd,
    write: OwnedFd,
    holds: usize,
}

impl Stage {
    /// An empty one.
    ///
    /// # Errors
    /// The errno of `pipe2(2)`.
    pub fn open() -> Result<Self, Errno> {
        let (read, write) = nix::unistd::pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
        Ok(Self { read: above_stdio(read)?, write: above_stdio(write)?, holds: 0 })
    }

    /// How many bytes are in it.
    #[must_use]
    pub const fn holds(&self) -> usize {
        self.holds
    }

    /// Puts in what fits.
    ///
    /// # Errors
    /// `EAGAIN` where nothing fits, `ENOMEM`.
    pub fn fill(&mut self, bytes: &[u8]) -> Result<usize, Errno> {
        let n = nix::unistd::write(&self.write, bytes)?;
        self.holds = self.holds.saturating_add(n);
        Ok(n)
    }

    /// Moves what fits to its destination.
    ///
    /// # Errors
    /// As `Destination::splice`.
    pub fn pour(&mut self, to: &Destination) -> Result<usize, Errno> {
        let n = to.splice(&self.read, self.holds)?;
        self.holds = self.holds.saturating_sub(n);
        Ok(n)
    }

    /// What is in it, back again.
    #[must_use]
    pub fn empty(self) -> Vec<u8> {
        let mut bytes = vec![0; self.holds];
        let mut there = 0;
        while let Ok(n @ 1..) = nix::unistd::read(&self.read, bytes.get_mut(there..).unwrap_or_default()) {
            there = there.saturating_add(n);
        }
        bytes.truncate(there);
        bytes
    }
}

/// Where the relay writes.
#[derive(Debug)]
pub struct Destination {
    fd: OwnedFd,
    kind: Kind,
    identity: (u64, u64),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// splice(2) with SPLICE_F_NONBLOCK.
    Pipe,
    /// A regular file: no reader can hold it up.
    File,
    /// `send(2)` with MSG_DONTWAIT.
    Socket,
    /// A terminal or device, opened anew with O_NONBLOCK.
    Anew,
    /// One that could not be opened anew.
    Shared,
}

impl Destination {
    /// A duplicate of `fd`. A terminal or a device is opened anew below /proc, with a description of its own that can be
    /// O_NONBLOCK (proc_pid_fd(5)); a file is not, since it would lose its offset.
    ///
    /// # Errors
    /// The errno of `fcntl(2)` or `fstat(2)`.
    pub fn of(fd: impl AsFd) -> Result<Self, Errno> {
        let stat: FileStat = fstat(&fd)?;
        let identity = (stat.st_dev, stat.st_ino);
        let anew = || {
            let flags = OFlag::O_WRONLY | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
            let path = format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd());
            nix::fcntl::open(path.as_str(), flags, Mode::empty()).and_then(above_stdio)
        };
        let kind = match stat.st_mode & libc::S_IFMT {
            libc::S_IFIFO => Kind::Pipe,
            libc::S_IFREG => Kind::File,
            libc::S_IFSOCK => Kind::Socket,
            _ => match anew() {
                Ok(fd) => return Ok(Self { fd, kind: Kind::Anew, identity }),
                Err(_) => Kind::Shared,
            },
        };
        let fd =
            above_stdio(fd.as_fd().try_clone_to_owned().map_err(|e| Errno::from_raw(e.raw_os_error().unwrap_or(0)))?)?;
        Ok(Self { fd, kind, identity })
    }

    /// Whether both are the same file, so that one pipe keeps the order between them.
    #[must_use]
    pub fn is(&self, other: &Self) -> bool {
        self.identity == other.identity
    }

    /// Whether a write can be kept from waiting, whatever its reader does.
    #[must_use]
    pub fn never_waits(&self) -> bool {
        self.kind != Kind::Shared
    }

    /// Whether `splice` is worth trying.
    #[must_use]
    pub fn splices(&self) -> bool {
        matches!(self.kind, Kind::Pipe | Kind::File)
    }

    /// Whether a `Stage` is needed before it.
    #[must_use]
    pub fn is_pipe(&self) -> bool {
        self.kind == Kind::Pipe
    }

    /// Moves up to `len` bytes out of the pipe; 0 is the pipe's end. It never waits.
    ///
    /// # Errors
    /// `EAGAIN` where the pipe is empty or the destination full; `EINVAL` where the destination cannot splice (a file in
    /// append mode, an old kernel's device); what the destination's write answered.
    pub fn splice(&self, from: impl AsFd, len: usize) -> Result<usize, Errno> {
        let (from, to) = (from.as_fd().as_raw_fd(), self.fd.as_raw_fd());
        let flags = libc::SPLICE_F_NONBLOCK | libc::SPLICE_F_MOVE;
        // SAFETY: splice(2) takes two open descriptors, null offsets (a pipe has none, a file uses its own), and touches
        // no memory of ours.
        let n = unsafe { libc::splice(from, std::ptr::null_mut(), to, std::ptr::null_mut(), len, flags) };
        usize::try_from(n).map_err(|_| Errno::last())
    }

    /// Writes what fits now.
    ///
    /// # Errors
    /// `EAGAIN` where nothing fits, or what `write(2)` answered.
    pub fn write(&self, bytes: &[u8]) -> Result<usize, Errno> {
        let careful = bytes.get(..CAREFUL).unwrap_or(bytes);
        match self.kind {
            Kind::File | Kind::Anew => nix::unistd::write(&self.fd, bytes),
            Kind::Socket => {
                let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
                // SAFETY: send(2) reads `bytes.len()` bytes from a valid slice.
                let n = unsafe { libc::send(self.fd.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), flags) };
                usize::try_from(n).map_err(|_| Errno::last())
            }
            Kind::Pipe | Kind::Shared => match write_now(&self.fd, careful) {
                Err(Errno::EOPNOTSUPP | Errno::ENOSYS | Errno::EINVAL | Errno::EPERM | Errno::ESPIPE) => {
                    let mut polled = [PollFd::new(self.fd.as_fd(), PollFlags::POLLOUT)];
                    match poll(&mut polled, PollTimeout::ZERO) {
                        Ok(0) => Err(Errno::EAGAIN),
                        Ok(_) => nix::unistd::write(&self.fd, careful),
                        Err(errno) => Err(errno),
                    }
                }
                result => result,
            },
        }
    }
}

impl AsFd for Destination {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
