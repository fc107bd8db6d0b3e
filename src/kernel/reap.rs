//! Reaping: `waitpid` until it has nothing more, since SIGCHLD coalesces.

use crate::machine::types::Ended;
use nix::errno::Errno;

/// One thing that `waitpid(2)` reported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reaped {
    /// A process is gone.
    Ended {
        /// Which.
        pid: i32,
        /// How.
        how: Ended,
        /// Its largest resident set in bytes (getrusage(2)); children it waited for included.
        max_rss: u64,
    },
    /// A process was stopped by this signal.
    Stopped {
        /// Which.
        pid: i32,
        /// The signal that stopped it.
        signal: i32,
    },
}

/// The next thing to reap: `Ok(None)` where children are left but none has anything to say.
///
/// # Errors
/// `ECHILD` where no child is left at all: with every orphan coming to us (PID 1 or child subreaper) this means that
/// no descendant is left.
pub fn next() -> Result<Option<Reaped>, Errno> {
    loop {
        let mut status = 0;
        // SAFETY: rusage is plain integers, for which all-zero bytes are valid.
        let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
        // SAFETY: `wait4` writes to the two pointers, which are valid for writes for the call.
        let pid =
            unsafe { libc::wait4(-1, &raw mut status, libc::WNOHANG | libc::WUNTRACED | libc::__WALL, &raw mut usage) };
        match Errno::result(pid) {
            Ok(0) => return Ok(None),
            Ok(pid) if libc::WIFEXITED(status) => {
                let how = Ended::Exited(u8::try_from(libc::WEXITSTATUS(status) & 0xff).unwrap_or(u8::MAX));
                return Ok(Some(Reaped::Ended { pid, how, max_rss: bytes(usage.ru_maxrss) }));
            }
            Ok(pid) if libc::WIFSIGNALED(status) => {
                let how = Ended::Signaled(u8::try_from(libc::WTERMSIG(status)).unwrap_or(u8::MAX));
                return Ok(Some(Reaped::Ended { pid, how, max_rss: bytes(usage.ru_maxrss) }));
            }
            Ok(pid) if libc::WIFSTOPPED(status) => {
                return Ok(Some(Reaped::Stopped { pid, signal: libc::WSTOPSIG(status) }));
            }
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}

fn bytes(kib: libc::c_long) -> u64 {
    u64::try_from(kib).unwrap_or(0).saturating_mul(1024)
}

/// User and system CPU time of every child reaped so far, theirs included (getrusage(2), RUSAGE_CHILDREN).
#[must_use]
pub fn children_cpu() -> Option<(std::time::Duration, std::time::Duration)> {
    let usage = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_CHILDREN).ok()?;
    let duration = |t: nix::sys::time::TimeVal| {
        let micros = u64::try_from(t.tv_usec()).unwrap_or(0);
        std::time::Duration::from_secs(u64::try_from(t.tv_sec()).unwrap_or(0))
            + std::time::Duration::from_micros(micros)
    };
    Some((duration(usage.user_time()), duration(usage.system_time())))
}
