//! fsync(2) beside the loop: a disk that is slow, or gone, holds up neither the ladder nor the end of the run.
//!
//! A thread is started only once termination has begun; where there is none to be had (pids limit, memory) the caller is
//! told and decides. Invariant: waiting for it ends at the time that was named.

use super::clock;
use crate::machine::types::Instant;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::time::TimeSpec;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, OnceLock};

/// The kernel's answer, once it is there.
type Answer = OnceLock<Result<(), Errno>>;

/// One fsync on its way.
#[derive(Debug)]
pub struct Flush {
    shared: Arc<(Answer, EventFd)>,
}

impl Flush {
    /// Starts one on a duplicate of `fd`; `None` where there is no descriptor or no thread for it.
    #[must_use]
    pub fn start(fd: BorrowedFd<'_>) -> Option<Self> {
        let fd = fd.try_clone_to_owned().ok()?;
        let done = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK).ok()?;
        let shared = Arc::new((Answer::new(), done));
        let theirs = Arc::clone(&shared);
        let work = move || {
            let answer = nix::unistd::fsync(&fd);
            // First: the duplicate shares the file's lock (flock(2)), which the next run waits for.
            drop(fd);
            let _ = theirs.0.set(answer);
            // Nothing to do about a counter that cannot be raised: the answer is there for whoever looks.
            let _ = theirs.1.write(1);
        };
        std::thread::Builder::new().stack_size(64 * 1024).spawn(work).ok()?;
        Some(Self { shared })
    }

    /// The answer, if it comes by `until`.
    #[must_use]
    pub fn wait(&self, until: Instant) -> Option<Result<(), Errno>> {
        loop {
            if let Some(answer) = self.shared.0.get() {
                return Some(*answer);
            }
            let left = until.since(clock::now());
            if left.is_zero() {
                return None;
            }
            let mut fds = [PollFd::new(self.shared.1.as_fd(), PollFlags::POLLIN)];
            if !matches!(
                nix::poll::ppoll(&mut fds, Some(TimeSpec::from_duration(left)), None),
                Ok(_) | Err(Errno::EINTR)
            ) {
                return self.shared.0.get().copied();
            }
        }
    }
}
