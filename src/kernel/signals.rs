//! Signals: blocked before anything else and for good, read from a signalfd(2), each with its sender.
//!
//! Invariant: every signal stays blocked, so nothing is interrupted and nothing is lost. The kernel queues a blocked signal
//! whatever its disposition, also one that is ignored by default and also for PID 1 (kernel/signal.c, `sig_ignored`), so what
//! arrives between exec and the first wait is there to be read.

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags};
use nix::sys::signal::{SigSet, SigmaskHow, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::OnceLock;

/// The mask gracekeeper was started with: the workload gets it back.
static OLD_MASK: OnceLock<SigSet> = OnceLock::new();

/// Blocks every signal; the first call keeps the mask that was there.
pub fn block_all() {
    let mut old = SigSet::empty();
    if sigprocmask(SigmaskHow::SIG_BLOCK, Some(&SigSet::all()), Some(&mut old)).is_ok() {
        let _ = OLD_MASK.set(old);
    }
}

/// The mask gracekeeper was started with.
#[must_use]
pub fn old_mask() -> SigSet {
    OLD_MASK.get().copied().unwrap_or_else(SigSet::empty)
}

/// Gives the verbs that supervise nothing the mask back: Ctrl-C ends them as any other program.
pub fn unblock() {
    // SIG_SETMASK with a valid set cannot fail (sigprocmask(2)).
    let _ = sigprocmask(SigmaskHow::SIG_SETMASK, Some(&old_mask()), None);
}

/// Whether SIGHUP is ignored, as nohup(1) leaves it: then the run goes on after a hangup. PID 1's dispositions are its runtime's affair,
/// and nobody's wish.
#[must_use]
pub fn hangups_are_ignored() -> bool {
    // SAFETY: sigaction is plain integers and a pointer that may be null, for which all-zero bytes are valid.
    let mut now: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: without a new action sigaction(2) only writes the one that is in force.
    let asked = unsafe { libc::sigaction(libc::SIGHUP, std::ptr::null(), &raw mut now) };
    asked == 0 && now.sa_sigaction == libc::SIG_IGN && nix::unistd::getpid().as_raw() != 1
}

/// What siginfo says of a signal's sender (sigaction(2), si_code).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Code {
    /// `kill(2)`: SI_USER. Cannot be forged by an ordinary process.
    User,
    /// `tgkill(2)`: SI_TKILL.
    Tkill,
    /// `sigqueue(3)`: SI_QUEUE; the pid is the sender's word.
    Queue,
    /// The kernel: SI_KERNEL, e.g. a terminal's Ctrl-C.
    Kernel,
    /// Anything else, e.g. O_ASYNC's POLL_IN.
    Other,
}

impl Code {
    /// The record's word for it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::User => "SI_USER",
            Self::Tkill => "SI_TKILL",
            Self::Queue => "SI_QUEUE",
            Self::Kernel => "SI_KERNEL",
            Self::Other => "other",
        }
    }
}

/// A signal that was delivered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Received {
    /// Its number.
    pub signal: i32,
    /// The sender's pid; 0 is outside this PID namespace, or none.
    pub sender: i32,
    /// How it was sent.
    pub code: Code,
}

impl Code {
    const fn of(si_code: i32) -> Self {
        match si_code {
            libc::SI_USER => Self::User,
            libc::SI_TKILL => Self::Tkill,
            libc::SI_QUEUE | libc::SI_MESGQ => Self::Queue,
            libc::SI_KERNEL => Self::Kernel,
            _ => Self::Other,
        }
    }
}

/// The open signal source.
#[derive(Debug)]
pub struct Signals {
    fd: SignalFd,
    no_hangups: bool,
}

/// What the kernel sends to who did something, by the number the same as what somebody sent. A fault of our own is never read: the kernel
/// lifts the block, takes the default for the handler and ends us, PID 1 too (kernel/signal.c, force_sig_info_to_task).
const FAULTS: [i32; 7] =
    [libc::SIGILL, libc::SIGFPE, libc::SIGSEGV, libc::SIGBUS, libc::SIGTRAP, libc::SIGSYS, libc::SIGABRT];
/// Nor do we stop by touching the terminal. SIGXFSZ: an attacker may lower our RLIMIT_FSIZE; the write must fail with EFBIG, not kill us.
/// SIGXCPU likewise.
const IGNORED: [i32; 5] = [libc::SIGPIPE, libc::SIGTTIN, libc::SIGTTOU, libc::SIGXFSZ, libc::SIGXCPU];

impl Received {
    /// Whether it is for something that we did ourselves, and nobody sent it. SIGPIPE and SIGXFSZ come as if we had sent them, SIGXCPU and
    /// the terminal's two from the kernel.
    #[must_use]
    pub fn is_our_own(&self) -> bool {
        let sent = matches!(self.code, Code::User | Code::Tkill | Code::Queue);
        (FAULTS.contains(&self.signal) || IGNORED.contains(&self.signal))
            && (!sent || self.sender == nix::unistd::getpid().as_raw())
    }
}

impl Signals {
    /// Every signal; SIGKILL and SIGSTOP cannot be read.
    ///
    /// # Errors
    /// What `signalfd(2)` refused.
    pub fn open() -> Result<Self, Errno> {
        for signal in IGNORED {
            // SAFETY: `signal(2)` with SIG_IGN installs no handler; the numbers are valid, so it cannot fail.
            unsafe { libc::signal(signal, libc::SIG_IGN) };
        }
        let fd = SignalFd::with_flags(&SigSet::all(), SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
        Ok(Self { fd, no_hangups: hangups_are_ignored() })
    }

    /// The descriptor that is readable while a signal is pending.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Whether it is a hangup and those are ignored. It was blocked when it came, so the kernel kept it for us all the same.
    #[must_use]
    pub const fn ignores(&self, signal: i32) -> bool {
        self.no_hangups && signal == libc::SIGHUP
    }

    /// The next signal that is pending.
    pub fn next(&self) -> Option<Received> {
        let info = self.fd.read_signal().ok().flatten()?;
        Some(Received {
            signal: info.ssi_signo.cast_signed(),
            sender: info.ssi_pid.cast_signed(),
            code: Code::of(info.ssi_code),
        })
    }

    /// The poll entry for `fd()`.
    #[must_use]
    pub fn poll_fd(&self) -> PollFd<'_> {
        PollFd::new(self.fd(), PollFlags::POLLIN)
    }
}

/// The name of a signal by its number.
#[must_use]
pub fn name(signal: i32) -> String {
    nix::sys::signal::Signal::try_from(signal).map_or_else(|_| format!("SIG{signal}"), |s| s.as_str().to_owned())
}

/// Sends any signal, real-time ones included, to a process group.
///
/// # Errors
/// The errno of `kill(2)`.
pub fn send_group(group: i32, signal: i32) -> Result<(), Errno> {
    // Never 0 or -1: those would mean our own group, or everybody.
    if group <= 1 {
        return Err(Errno::EINVAL);
    }
    // SAFETY: kill(2) takes two integers.
    Errno::result(unsafe { libc::kill(-group, signal) }).map(drop)
}
