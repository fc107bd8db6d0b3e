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
        /// Whether it is but a thread of a process; not known, and `false`, unless asked for.
        thread: bool,
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

/// What a child has to say, left for `next`: `None` where it is not our child, 0 where it has nothing to say.
fn peek(which: libc::idtype_t, id: i32, flags: libc::c_int) -> Option<libc::siginfo_t> {
    // SAFETY: siginfo_t is plain data, for which all-zero bytes are valid.
    let mut seen: libc::siginfo_t = unsafe { std::mem::zeroed() };
    let flags = flags | libc::WEXITED | libc::WNOHANG | libc::WNOWAIT | libc::__WALL;
    // SAFETY: waitid(2) writes one siginfo_t. WNOWAIT leaves the state to be waited for again.
    (unsafe { libc::waitid(which, id.cast_unsigned(), &raw mut seen, flags) } == 0).then_some(seen)
}

/// Whether there is any child, dead ones included.
#[must_use]
pub fn has_children() -> bool {
    peek(libc::P_ALL, 0, 0).is_some()
}

/// Whether it is a child of ours that has not been reaped: nobody else has its number.
#[must_use]
pub fn is_child(pid: i32) -> bool {
    peek(libc::P_PID, pid, 0).is_some()
}

/// Whether it is a child of ours that has not ended.
#[must_use]
pub fn is_alive(pid: i32) -> bool {
    // SAFETY: waitid(2) filled the SIGCHLD fields, or left zeros.
    peek(libc::P_PID, pid, 0).is_some_and(|seen| unsafe { seen.si_pid() } == 0)
}

/// The child that `next` will hear next, where it has ended and is but a thread of another: one that made us trace it (PTRACE_TRACEME)
/// is heard by itself. Its number, or 0 where nobody has anything to say, and whether it is.
fn whole_or_thread() -> (i32, bool) {
    // wait4(2) says why there is nobody.
    let Some(seen) = peek(libc::P_ALL, 0, libc::WSTOPPED) else { return (-1, false) };
    // SAFETY: waitid(2) filled the SIGCHLD fields, or left zeros.
    let pid = unsafe { seen.si_pid() };
    if pid == 0 {
        return (0, false);
    }
    // It is there, and no process has its number: a thread of one (tgkill(2) compares the two).
    // SAFETY: tgkill(2) takes integers, and signal 0 is none.
    let asked = Errno::result(unsafe { libc::syscall(libc::SYS_tgkill, pid, pid, 0) });
    (pid, asked == Err(Errno::ESRCH))
}

/// The next thing to reap: `Ok(None)` where children are left but none has anything to say. With `tell` a thread is told from a
/// process, which costs two calls more.
///
/// # Errors
/// `ECHILD` where no child is left at all: with every orphan coming to us (PID 1 or child subreaper) this means that
/// no descendant is left.
pub fn next(tell: bool) -> Result<Option<Reaped>, Errno> {
    let (mut who, mut thread) = if tell { whole_or_thread() } else { (-1, false) };
    if who == 0 {
        return Ok(None);
    }
    loop {
        let mut status = 0;
        // SAFETY: rusage is plain integers, for which all-zero bytes are valid.
        let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
        // SAFETY: `wait4` writes to the two pointers, which are valid for writes for the call.
        let pid = unsafe {
            libc::wait4(who, &raw mut status, libc::WNOHANG | libc::WUNTRACED | libc::__WALL, &raw mut usage)
        };
        match Errno::result(pid) {
            // It went on, or is gone, since it was looked at: that says nothing of the others.
            Ok(0) | Err(Errno::ECHILD) if who > 0 => (who, thread) = (-1, false),
            Ok(0) => return Ok(None),
            Ok(pid) if libc::WIFEXITED(status) => {
                let how = Ended::Exited(u8::try_from(libc::WEXITSTATUS(status) & 0xff).unwrap_or(u8::MAX));
                return Ok(Some(Reaped::Ended { pid, how, thread, max_rss: bytes(usage.ru_maxrss) }));
            }
            Ok(pid) if libc::WIFSIGNALED(status) => {
                let how = Ended::Signaled(u8::try_from(libc::WTERMSIG(status)).unwrap_or(u8::MAX));
                return Ok(Some(Reaped::Ended { pid, how, thread, max_rss: bytes(usage.ru_maxrss) }));
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
