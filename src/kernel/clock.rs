//! The monotonic clock (clock_gettime(2)), as the machine's `Instant`.

use crate::machine::types::Instant;
use crate::switches::without;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags};
use nix::sys::signal::{SigEvent, SigevNotify, Signal};
use nix::sys::time::TimeSpec;
use nix::sys::timer::Timer;
use nix::sys::timerfd::{Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use nix::time::{ClockId, clock_gettime};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::sync::OnceLock;
use std::time::Duration;

/// The CPU time this thread has used: what a quota counts.
#[must_use]
pub fn used() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map(Duration::from).unwrap_or_default()
}

/// The CPU time that all threads of this process have used.
#[must_use]
pub fn used_by_all() -> Duration {
    clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID).map(Duration::from).unwrap_or_default()
}

/// The time since the machine booted, sleep included: what `/proc/PID/stat` counts a start time in.
#[must_use]
pub fn since_boot() -> Duration {
    clock_gettime(ClockId::CLOCK_BOOTTIME).map(Duration::from).unwrap_or_default()
}

/// The same in the ticks of `/proc/PID/stat`: USER_HZ, 100 a second on every architecture of ours (proc_pid_stat(5)).
#[must_use]
pub fn ticks() -> u64 {
    u64::try_from(since_boot().as_millis() / 10).unwrap_or(u64::MAX)
}

/// Now, on CLOCK_MONOTONIC. The call cannot fail for this clock on any Linux.
#[must_use]
pub fn now() -> Instant {
    clock_gettime(ClockId::CLOCK_MONOTONIC).map(|t| Instant(Duration::from(t))).unwrap_or_default()
}

/// A pause shorter than this takes longer to make than to wait for.
pub const SHORTEST: Duration = Duration::from_micros(10);

/// How often who waits for another thread looks itself whether it has come back: the kernel may refuse the write that rings.
pub const LOOK: Duration = Duration::from_millis(20);

/// Pauses are over when they are said to be and not 50 µs later, which the kernel allows itself else (PR_SET_TIMERSLACK, prctl(2)).
pub fn exact() {
    // A kernel without it only lets us wait a little longer.
    let _ = nix::sys::prctl::set_timerslack(1);
}

/// Readable after so long, for a poll beside its own timeout; `None` where there is nothing to wait for, or no timer. Only for the
/// main thread: there is one.
///
/// What a call that waits is late by at most (PR_SET_TIMERSLACK) a holder of CAP_SYS_NICE can set to years, in /proc/PID/timerslack_ns
/// (proc(5)), which is open to everybody and never asks whether we are dumpable. A timer of its own (timerfd_create(2)) is never late.
pub fn timer(after: Duration) -> Option<BorrowedFd<'static>> {
    static TIMER: OnceLock<Option<TimerFd>> = OnceLock::new();
    if after.is_zero() || without("own_timer") {
        return None;
    }
    let flags = TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK;
    let timer = TIMER.get_or_init(|| TimerFd::new(nix::sys::timerfd::ClockId::CLOCK_MONOTONIC, flags).ok()).as_ref()?;
    timer.set(Expiration::OneShot(TimeSpec::from_duration(after)), TimerSetTimeFlags::empty()).ok()?;
    Some(timer.as_fd())
}

/// ppoll(2) of these, for so long at most, with the timer beside them (`timer`); a signal is no error, and a spurious return possible.
///
/// # Errors
/// The errno of `ppoll(2)`.
pub fn wait(fds: &mut Vec<PollFd<'_>>, timeout: Option<Duration>) -> Result<(), Errno> {
    fds.extend(timeout.and_then(timer).map(|timer| PollFd::new(timer, PollFlags::POLLIN)));
    match nix::poll::ppoll(fds, timeout.map(TimeSpec::from_duration), None) {
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(errno) => Err(errno),
    }
}

/// SIGCONT for this process at that time and every second after it, until the timer is dropped: who is stopped meanwhile goes on in time
/// (timer_create(2)), and who stops just after it came does not stay.
///
/// # Errors
/// `EAGAIN` where the user has too many signals queued (RLIMIT_SIGPENDING).
pub fn continue_at(at: Instant) -> Result<Timer, Errno> {
    let signal = SigevNotify::SigevSignal { signal: Signal::SIGCONT, si_value: 0 };
    let mut timer = Timer::new(ClockId::CLOCK_MONOTONIC, SigEvent::new(signal))?;
    // Zero would disarm it.
    let first = at.since(now()).max(Duration::from_millis(1));
    let each = TimeSpec::from_duration(Duration::from_secs(1));
    timer.set(Expiration::IntervalDelayed(TimeSpec::from_duration(first), each), TimerSetTimeFlags::empty())?;
    Ok(timer)
}

/// Waits for about so long, less where the kernel refuses to (`std::thread::sleep` panics then): whoever waits has a deadline of its own.
pub fn pause(duration: Duration) {
    let mut timer = timer(duration).map(|timer| PollFd::new(timer, PollFlags::POLLIN));
    let _ = nix::poll::ppoll(timer.as_mut_slice(), Some(TimeSpec::from_duration(duration)), None);
}

/// The same for any other thread, which has no timer. What it waits longer by (`timer`) it inherited, and is taken back first.
pub fn pause_beside(duration: Duration) {
    exact();
    let _ = nix::poll::ppoll(&mut [], Some(TimeSpec::from_duration(duration)), None);
}
