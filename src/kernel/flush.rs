//! fsync(2) beside the loop: a disk that is slow, or gone, holds up neither the ladder nor the end of the run.
//!
//! The kernel does it by itself (Linux AIO with IOCB_CMD_FSYNC, Linux 4.18). A thread of ours would be in /proc/PID/task, where the
//! workload reads its number: a name for this process that the filter does not know, by which it takes away its limits. So a
//! thread is only for where nobody of the workload is left. What cannot be had, the caller is told, and decides.
//! Invariants: `in_kernel` starts no thread and waits for no disk; waiting ends at the time that was named.
//!
//! The context is never given back: io_destroy(2) waits for whatever is on its way, and for the kernel's readers besides
//! (about 30 ms). Both are waited for in exit(2), when the record is written, as a thread that hangs would be.

use super::clock;
use super::outcome::Cause;
use crate::machine::types::Instant;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::time::TimeSpec;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd};
use std::sync::{Arc, OnceLock};

/// The kernel's answer, once it is there.
type Answer = OnceLock<Result<(), Errno>>;

/// Fsyncs on their way.
#[derive(Debug)]
pub enum Flush {
    /// The kernel's own.
    Kernel {
        /// `aio_context_t`.
        context: libc::c_ulong,
        /// How many have not been answered.
        flying: u32,
    },
    /// One thread's.
    Thread(Arc<(Answer, EventFd)>),
}

/// More than there are replanned triggers.
const AT_MOST: libc::c_long = 8;

/// `struct iocb` (linux/aio_abi.h) as on both supported architectures, which are little-endian.
#[repr(C)]
#[derive(Default)]
struct Iocb {
    data: u64,
    key: u32,
    rw_flags: u32,
    opcode: u16,
    priority: i16,
    fd: u32,
    buffer: u64,
    length: u64,
    offset: i64,
    reserved: u64,
    flags: u32,
    event_fd: u32,
}

/// IOCB_CMD_FSYNC.
const FSYNC: u16 = 2;

/// `struct io_event`.
#[repr(C)]
#[derive(Default)]
struct Event {
    data: u64,
    iocb: u64,
    result: i64,
    more: i64,
}

impl Flush {
    /// Room for some that the kernel does by itself.
    ///
    /// # Errors
    /// What refused it: no AIO in this kernel or profile, or fs.aio-max-nr, which the workload can use up.
    pub fn in_kernel() -> Result<Self, Cause> {
        let mut context: libc::c_ulong = 0;
        // SAFETY: io_setup(2) reads and writes one aio_context_t, an unsigned long, which is a live local and zero.
        let answer = unsafe { libc::syscall(libc::SYS_io_setup, AT_MOST, &raw mut context) };
        Errno::result(answer).map_err(|errno| Cause::refused("fsync beside the loop: io_setup", errno))?;
        Ok(Self::Kernel { context, flying: 0 })
    }

    /// A thread with one on a duplicate of `fd`, for where nobody of the workload is left; `None` where there is no descriptor or
    /// no thread for it (pids limit, memory).
    #[must_use]
    pub fn in_thread(fd: BorrowedFd<'_>) -> Option<Self> {
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
        Some(Self::Thread(shared))
    }

    /// One more, on `fd`, which stays open in the kernel until it is done. What is by thread gets another thread.
    ///
    /// # Errors
    /// What refused it; EINVAL before Linux 4.18.
    pub fn submit(&mut self, fd: BorrowedFd<'_>) -> Result<(), Cause> {
        let Self::Kernel { context, flying } = self else {
            *self = Self::in_thread(fd).ok_or(Cause::because("no thread for an fsync"))?;
            return Ok(());
        };
        let fd = u32::try_from(fd.as_raw_fd()).unwrap_or(u32::MAX); // A borrowed one is never negative.
        let mut iocb = Iocb { opcode: FSYNC, fd, ..Iocb::default() };
        let list = [&raw mut iocb];
        let one: libc::c_long = 1;
        // SAFETY: the context is io_setup's and is never destroyed; `list` holds one pointer to a live iocb, of which the kernel
        // reads everything and writes the key, both before the call returns. An fsync has no buffer.
        let answer = unsafe { libc::syscall(libc::SYS_io_submit, *context, one, list.as_ptr()) };
        Errno::result(answer).map_err(|errno| Cause::refused("fsync beside the loop: io_submit", errno))?;
        *flying = flying.saturating_add(1);
        Ok(())
    }

    /// The answer, if it comes by `until`: the first refusal, where there are several.
    #[must_use]
    pub fn wait(&mut self, until: Instant) -> Option<Result<(), Cause>> {
        match self {
            Self::Kernel { context, flying } => {
                let mut all = Ok(());
                while *flying > 0 {
                    let answer = next(*context, until).transpose()?;
                    // Whoever cannot be asked any more has nothing on its way for us.
                    *flying = answer.as_ref().map_or(0, |_| flying.saturating_sub(1));
                    all = all.and(answer.and_then(|fsync| fsync.map_err(|errno| Cause::refused("fsync", errno))));
                }
                Some(all)
            }
            Self::Thread(shared) => {
                let (answer, done) = &**shared;
                loop {
                    let answer = || answer.get().map(|answer| answer.map_err(|errno| Cause::refused("fsync", errno)));
                    let left = until.since(clock::now());
                    if answer().is_some() || left.is_zero() {
                        return answer();
                    }
                    let mut fds = [PollFd::new(done.as_fd(), PollFlags::POLLIN)];
                    if !matches!(
                        nix::poll::ppoll(&mut fds, Some(TimeSpec::from_duration(left)), None),
                        Ok(_) | Err(Errno::EINTR)
                    ) {
                        return answer();
                    }
                }
            }
        }
    }
}

/// What the kernel answers next, `None` where nothing is there by `until`.
fn next(context: libc::c_ulong, until: Instant) -> Result<Option<Result<(), Errno>>, Cause> {
    loop {
        let mut event = Event::default();
        let left = TimeSpec::from_duration(until.since(clock::now()));
        let one: libc::c_long = 1;
        let timeout: *const libc::timespec = left.as_ref();
        // SAFETY: the context is io_setup's and is never destroyed; the kernel writes at most one io_event to the live local, and
        // reads one timespec.
        let answer = unsafe { libc::syscall(libc::SYS_io_getevents, context, one, one, &raw mut event, timeout) };
        return match Errno::result(answer) {
            Err(Errno::EINTR) => continue,
            Err(errno) => Err(Cause::refused("fsync beside the loop: io_getevents", errno)),
            Ok(0) => Ok(None),
            Ok(_) if event.result < 0 => {
                Ok(Some(Err(i32::try_from(-event.result).map_or(Errno::EIO, Errno::from_raw))))
            }
            Ok(_) => Ok(Some(Ok(()))),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;
    use std::time::Duration;

    #[test]
    fn each_is_answered_and_a_refusal_is_not_lost() {
        let until = clock::now().plus(Duration::from_secs(10));
        let mut file = tempfile::tempfile().unwrap();
        let mut flush = Flush::in_kernel().unwrap();
        assert_eq!(flush.wait(until), Some(Ok(())), "nothing is on its way");
        for _ in 0..3 {
            file.write_all(b"x").unwrap();
            flush.submit(file.as_fd()).unwrap();
        }
        assert!(matches!(flush, Flush::Kernel { flying: 3, .. }));
        assert_eq!(flush.wait(until), Some(Ok(())));
        // A pipe has no fsync, which is refused at once; nothing is waited for then.
        let (end, _other) = nix::unistd::pipe().unwrap();
        assert_eq!(flush.submit(end.as_fd()).unwrap_err().errno, Some(Errno::EINVAL));
        assert_eq!(flush.wait(until), Some(Ok(())));
        // Of a context that is not there nothing is on its way either.
        let mut broken = Flush::Kernel { context: 0, flying: 2 };
        assert_eq!(broken.wait(until).unwrap().unwrap_err().errno, Some(Errno::EINVAL));
        assert_eq!(broken.wait(until), Some(Ok(())));
        let mut thread = Flush::in_thread(file.as_fd()).unwrap();
        assert_eq!(thread.wait(until), Some(Ok(())));
    }

    #[test]
    fn an_iocb_is_as_the_kernel_has_it() {
        assert_eq!((size_of::<Iocb>(), size_of::<Event>()), (64, 32));
        assert_eq!((std::mem::offset_of!(Iocb, opcode), std::mem::offset_of!(Iocb, fd)), (16, 20));
    }
}
