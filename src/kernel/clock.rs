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

/// Waits for about so long, less where the kernel refuses to (`std::thread::sleep` panics then): whoever waits has a deadline of its own.
pub fn pause(duration: Duration) {
    let _ = nix::poll::ppoll(&mut [], Some(TimeSpec::from_duration(duration)), None);
}
