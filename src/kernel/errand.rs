//! Something that a disk may not answer, done by a thread that is not waited for longer than there is time.
//!
//! Only where nobody of the workload is left: a thread is in /proc/PID/task, where the workload would read its number, a name for this
//! process that the filter does not know. One that hangs is waited for in exit(2) all the same, when the record is written.

use super::clock;
use super::outcome::Cause;
use crate::machine::types::Instant;
use nix::poll::{PollFd, PollFlags};
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::os::fd::AsFd as _;
use std::sync::{Arc, OnceLock};

/// One of them, on its way or back.
#[derive(Debug)]
pub struct Errand(Arc<(OnceLock<Result<(), Cause>>, EventFd)>);

impl Errand {
    /// Sends a thread; `None` where there is no descriptor or no thread for it (pids limit, memory).
    #[must_use]
    pub fn send(work: impl FnOnce() -> Result<(), Cause> + Send + 'static) -> Option<Self> {
        let done = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK).ok()?;
        let shared = Arc::new((OnceLock::new(), done));
        let theirs = Arc::clone(&shared);
        let run = move || {
            let _ = theirs.0.set(work());
            // Where it does not ring, the answer is there for whoever looks (clock::LOOK).
            let _ = theirs.1.write(1);
        };
        std::thread::Builder::new().stack_size(64 * 1024).spawn(run).ok()?;
        Some(Self(shared))
    }

    /// The answer, if it comes by `until`.
    #[must_use]
    pub fn wait(&self, until: Instant) -> Option<Result<(), Cause>> {
        let (answer, done) = &*self.0;
        loop {
            let left = until.since(clock::now());
            if answer.get().is_some() || left.is_zero() {
                return answer.get().copied();
            }
            let mut fds = vec![PollFd::new(done.as_fd(), PollFlags::POLLIN)];
            if clock::wait(&mut fds, Some(left.min(clock::LOOK))).is_err() {
                return answer.get().copied();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::errno::Errno;
    use std::time::Duration;

    #[test]
    fn who_comes_back_is_heard_and_who_does_not_is_not_waited_for() {
        let soon = || clock::now().plus(Duration::from_secs(10));
        assert_eq!(Errand::send(|| Ok(())).unwrap().wait(soon()), Some(Ok(())));
        let refused = Cause::refused("fsync", Errno::EIO);
        assert_eq!(Errand::send(move || Err(refused)).unwrap().wait(soon()), Some(Err(refused)));
        let (end, other) = nix::unistd::pipe().unwrap();
        let stuck = Errand::send(move || {
            let _ = nix::unistd::read(&end, &mut [0]);
            Ok(())
        });
        assert_eq!(stuck.unwrap().wait(clock::now().plus(Duration::from_millis(20))), None);
        drop(other);
    }
}
