//! The monotonic clock (clock_gettime(2)), as the machine's `Instant`.

use crate::machine::types::Instant;
use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_gettime};
use std::time::Duration;

/// The CPU time this thread has used: what a quota counts.
#[must_use]
pub fn used() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map(Duration::from).unwrap_or_default()
}

/// The time since the machine booted, sleep included: what `/proc/PID/stat` counts a start time in.
#[must_use]
pub fn since_boot() -> Duration {
    clock_gettime(ClockId::CLOCK_BOOTTIME).map(Duration::from).unwrap_or_default()
}

/// Now, on CLOCK_MONOTONIC. The call cannot fail for this clock on any Linux.
#[must_use]
pub fn now() -> Instant {
    clock_gettime(ClockId::CLOCK_MONOTONIC).map(|t| Instant(Duration::from(t))).unwrap_or_default()
}

/// A pause shorter than this takes longer to make than to wait for.
pub const SHORTEST: Duration = Duration::from_micros(10);

/// Pauses are over when they are said to be and not 50 µs later, which the kernel allows itself else (PR_SET_TIMERSLACK, prctl(2)).
pub fn exact() {
    // A kernel without it only lets us wait a little longer.
    let _ = nix::sys::prctl::set_timerslack(1);
}

/// Waits for about so long, less where the kernel refuses to (`std::thread::sleep` panics then): whoever waits has a deadline of its own.
pub fn pause(duration: Duration) {
    let _ = nix::poll::ppoll(&mut [], Some(TimeSpec::from_duration(duration)), None);
}
