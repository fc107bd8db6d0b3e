//! A signal to exactly one process, or thread, that was looked at: through a pidfd, so that a number which is somebody else's meanwhile
//! reaches nobody.

use crate::kernel::clock;
use crate::kernel::mark::Mark;
use crate::kernel::proc::{Identity, Proc, Stat};
use crate::machine::types::Instant;
use crate::switches::without;
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// Sends SIGSTOP to each thread of a process that is not still. The process's own SIGSTOP is for whichever thread takes it, and one
/// that waits in vfork is chosen and takes none (signal(7)). Whether all of them were still.
pub(super) fn hold(proc_: &Proc, mark: &Mark, stat: &Stat, until: Instant) -> bool {
    if stat.threads <= 1 {
        return proc_.is_still(stat.pid, stat);
    }
    let mut still = true;
    let whole = proc_.each_thread(stat.pid, |thread| {
        if !proc_.is_still(stat.pid, thread) {
            still = false;
            if !without("each_thread") {
                // Gone meanwhile is as good.
                let _ = stop_thread(proc_, mark, stat.identity(), thread.pid);
            }
        }
        clock::now() < until
    });
    whole && still
}

/// Sends SIGSTOP to thread `tid` of exactly `who`.
fn stop_thread(proc_: &Proc, mark: &Mark, who: Identity, tid: i32) -> Result<(), Errno> {
    let held = match pidfd_open(tid, libc::PIDFD_THREAD) {
        Ok(fd) => Some(fd),
        // Before Linux 6.9 the call that names the process as well narrows it down.
        Err(Errno::EINVAL | Errno::ENOSYS) => None,
        Err(errno) => return Err(errno),
    };
    // Still a thread of that process: then what is held is this thread, or one that is gone.
    mark.check(proc_, who)?;
    if !proc_.has_thread(who.pid, tid) {
        return Err(Errno::ESRCH);
    }
    let result = match held {
        // SAFETY: tgkill(2) takes integers.
        None => unsafe { libc::syscall(libc::SYS_tgkill, who.pid, tid, libc::SIGSTOP) },
        Some(fd) => {
            /// PIDFD_SIGNAL_THREAD (linux/pidfd.h)
            const THREAD: u32 = 1;
            // SAFETY: as in `send_to`.
            unsafe {
                libc::syscall(
                    libc::SYS_pidfd_send_signal,
                    fd.as_raw_fd(),
                    libc::SIGSTOP,
                    std::ptr::null::<libc::siginfo_t>(),
                    THREAD,
                )
            }
        }
    };
    Errno::result(result).map(drop)
}

/// Sends `signal` to exactly `who`: the pidfd is opened first, then the start time and the mark are looked at. If the process of the
/// pidfd is there when the signal comes it had the number all the time, so it was looked at; else nobody is signalled.
///
/// # Errors
/// `ESRCH` where it is gone or not the workload's, else the errno of `pidfd_open(2)` or `pidfd_send_signal(2)`.
pub(super) fn send(proc_: &Proc, mark: &Mark, who: Identity, signal: Signal) -> Result<(), Errno> {
    match held(proc_, mark, who)? {
        None => kill(Pid::from_raw(who.pid), signal),
        Some(fd) => send_to(&fd, signal as libc::c_int),
    }
}

/// `who`, looked at after it was taken hold of; `None` where the kernel has no pidfds.
fn held(proc_: &Proc, mark: &Mark, who: Identity) -> Result<Option<OwnedFd>, Errno> {
    let held = match pidfd(who.pid) {
        Ok(fd) => Some(fd),
        // gVisor before it had pidfds: the start time still narrows the race to the instant between two calls.
        Err(Errno::ENOSYS) => None,
        Err(errno) => return Err(errno),
    };
    mark.check(proc_, who)?;
    Ok(held)
}

/// Whether exactly `who` has its number, and is the workload's.
pub(super) fn is_there(proc_: &Proc, mark: &Mark, who: Identity) -> Result<(), Errno> {
    held(proc_, mark, who)?.map_or(Ok(()), |fd| send_to(&fd, 0))
}

fn send_to(process: &OwnedFd, signal: libc::c_int) -> Result<(), Errno> {
    // SAFETY: pidfd_send_signal(2) takes a descriptor, a signal (0 is none), a siginfo pointer that may be null, and flags 0; `process`
    // is open for the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            process.as_raw_fd(),
            signal,
            std::ptr::null::<libc::siginfo_t>(),
            0u32,
        )
    };
    Errno::result(result).map(drop)
}

/// A descriptor for a process (pidfd_open(2), Linux 5.3; close-on-exec by itself).
///
/// # Errors
/// `ESRCH`, `ENOSYS`, `EMFILE` as the manual page says.
pub fn pidfd(pid: i32) -> Result<OwnedFd, Errno> {
    pidfd_open(pid, 0)
}

/// A descriptor for one thread of a process, so that pidfd_getfd(2) finds that thread's descriptor table: of the main thread it
/// is the process's, else it takes PIDFD_THREAD (pidfd_open(2), Linux 6.9).
///
/// # Errors
/// As `pidfd`; `EINVAL` where the kernel does not know the flag.
pub fn pidfd_of_thread(pid: i32, tid: i32) -> Result<OwnedFd, Errno> {
    pidfd_open(tid, if pid == tid { 0 } else { libc::PIDFD_THREAD })
}

fn pidfd_open(id: i32, flags: libc::c_uint) -> Result<OwnedFd, Errno> {
    // SAFETY: pidfd_open(2) takes two integers and touches no memory of ours.
    let fd = Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_open, id, flags) })?;
    let fd = i32::try_from(fd).map_err(|_| Errno::EBADF)?;
    // SAFETY: the kernel just gave us this descriptor, and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
