//! Signals: blocked before anything else, taken only while the loop waits, each with its sender.
//!
//! Invariant: outside `wait` every signal is blocked, so nothing is interrupted and nothing is lost: a signal that
//! arrives between exec and the first wait is pending, also for PID 1, whose kernel drops a signal that is neither
//! handled nor blocked (pid_namespaces(7)).

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags};
use nix::sys::signal::{SigSet, SigmaskHow, sigprocmask};
use nix::sys::time::TimeSpec;
use signal_hook::iterator::backend::SignalDelivery;
use signal_hook::iterator::exfiltrator::WithOrigin;
use signal_hook::low_level::siginfo::{Cause, Origin, Sent};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::OnceLock;
use std::time::Duration;

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

impl From<Origin> for Received {
    fn from(origin: Origin) -> Self {
        let code = match origin.cause {
            Cause::Sent(Sent::User) => Code::User,
            Cause::Sent(Sent::TKill) => Code::Tkill,
            Cause::Sent(Sent::Queue | Sent::MesgQ) => Code::Queue,
            Cause::Kernel => Code::Kernel,
            _ => Code::Other,
        };
        Self { signal: origin.signal, sender: origin.process.map_or(0, |p| p.pid), code }
    }
}

/// The open signal source.
#[derive(Debug)]
pub struct Signals {
    delivery: SignalDelivery<UnixStream, WithOrigin>,
    while_waiting: SigSet,
}

impl Signals {
    /// Installs a handler for every signal that can be handled and means something to a supervisor: all but the
    /// faults, SIGPIPE (ignored) and the terminal's SIGTTIN and SIGTTOU (ignored, so that the supervisor never stops
    /// itself by touching the terminal).
    ///
    /// # Errors
    /// What `sigaction(2)` or `socketpair(2)` refused.
    pub fn open() -> std::io::Result<Self> {
        let (read, write) = UnixStream::pair()?;
        read.set_nonblocking(true)?;
        let handled: Vec<i32> = (1..32)
            .filter(|s| {
                !matches!(
                    *s,
                    libc::SIGKILL
                        | libc::SIGSTOP
                        | libc::SIGILL
                        | libc::SIGFPE
                        | libc::SIGSEGV
                        | libc::SIGBUS
                        | libc::SIGTRAP
                        | libc::SIGSYS
                        | libc::SIGABRT
                        | libc::SIGPIPE
                        | libc::SIGTTIN
                        | libc::SIGTTOU
                        | libc::SIGXFSZ
                        | libc::SIGXCPU
                )
            })
            .chain(libc::SIGRTMIN()..=libc::SIGRTMAX())
            .collect();
        let delivery = SignalDelivery::with_pipe(read, write, WithOrigin::default(), &handled)?;
        // SIGXFSZ: an attacker may lower our RLIMIT_FSIZE; the write must fail with EFBIG, not kill us. SIGXCPU likewise.
        for signal in [libc::SIGPIPE, libc::SIGTTIN, libc::SIGTTOU, libc::SIGXFSZ, libc::SIGXCPU] {
            // SAFETY: `signal(2)` with SIG_IGN installs no handler; the numbers are valid, so it cannot fail.
            unsafe { libc::signal(signal, libc::SIG_IGN) };
        }
        let mut while_waiting = SigSet::all();
        for signal in handled {
            // SAFETY: `sigdelset` needs a valid, initialised set, which SigSet is, and a valid number, which each of
            // `handled` is; nix's own `remove` cannot name the real-time signals.
            unsafe { libc::sigdelset(std::ptr::from_mut(&mut while_waiting).cast::<libc::sigset_t>(), signal) };
        }
        Ok(Self { delivery, while_waiting })
    }

    /// The descriptor that turns readable after a handler ran.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.delivery.get_read().as_fd()
    }

    /// Waits until one of `fds` is ready, a signal was handled, or `timeout` has passed (`None`: for ever). Handlers
    /// run in here and nowhere else.
    ///
    /// # Errors
    /// `ENOMEM` or `EINVAL` of `ppoll(2)`; a handled signal is not an error.
    pub fn wait(&self, fds: &mut [PollFd<'_>], timeout: Option<Duration>) -> Result<(), Errno> {
        match nix::poll::ppoll(fds, timeout.map(TimeSpec::from_duration), Some(self.while_waiting)) {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(errno) => Err(errno),
        }
    }

    /// Hands out what has been received since the last call.
    pub fn received(&mut self) -> impl Iterator<Item = Received> + '_ {
        self.delivery.pending().map(Received::from)
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
