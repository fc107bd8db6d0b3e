//! Under a quota below one CPU: the scrub's last steps before its deadline, slow enough that there is CPU time left for the seal.
//!
//! Who has used up the quota of a period does not run until the next one begins (CFS bandwidth control): up to 80 ms later of 100 ms
//! with 0.2 CPU, and nobody in the cgroup does. When periods begin nobody says. So in the last one and a half of them before the deadline
//! no stretch of a period's length sees more used than `allowed`, and at the deadline the rest of the quota is there, whatever the phase.
//! Before that the scrub uses all that it gets. Invariant: nobody pauses past the deadline, nor without such a quota.

use crate::kernel::clock;
use crate::kernel::cpu::Quota;
use crate::machine::types::Instant;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// What is kept of each period for what comes after the scrub: half of the quota, and never more than this. The seal takes one to three
/// milliseconds; the kernel counts at its ticks, up to 10 ms late.
const KEPT: Duration = Duration::from_millis(10);
/// Less than this is not worth a pause.
const LEAST: Duration = Duration::from_micros(500);

/// What the crew may still use, and when.
#[derive(Debug)]
pub struct Pace {
    /// The quota's period, and how much of each may be used; `None` where there is no such quota.
    limits: Option<(Duration, Duration)>,
    /// By when what was used is paid for, and how much CPU time that was.
    paid: Mutex<Option<(Instant, Duration)>>,
}

impl Pace {
    /// The pace under `quota`.
    #[must_use]
    pub fn new(quota: Option<Quota>) -> Self {
        let below_one = quota.filter(|quota| quota.milli < 1000);
        let limits = below_one.map(|Quota { milli, period }| {
            let all = period.saturating_mul(u32::try_from(milli).unwrap_or(u32::MAX)) / 1000;
            (period, all.saturating_sub(KEPT.min(all / 2)))
        });
        Self { limits, paid: Mutex::new(None) }
    }

    /// Whether there is anything to keep to.
    #[must_use]
    pub const fn is_kept(&self) -> bool {
        self.limits.is_some()
    }

    /// To be called every few calls, with the deadline: waits where more was used than may be.
    pub fn keep(&self, until: Instant) {
        let now = clock::now();
        let left = until.since(now);
        let Some((period, _)) = self.limits.filter(|(period, _)| left < *period * 3 / 2) else { return };
        // Of all threads: two workers share what one may use.
        let pause = self.step(now, clock::used_by_all()).min(left).min(period);
        if pause > LEAST {
            clock::pause_beside(pause);
        }
    }

    /// `used` so far at `now`: how long to wait until that is paid for. What was not used is not saved up: it would all be used at once.
    fn step(&self, now: Instant, used: Duration) -> Duration {
        let Some((period, allowed)) = self.limits else { return Duration::ZERO };
        let mut paid = self.paid.lock().unwrap_or_else(PoisonError::into_inner);
        let (by, before) = paid.unwrap_or((now, used));
        let more = used.saturating_sub(before);
        let costs = more.as_nanos().saturating_mul(period.as_nanos()) / allowed.as_nanos().max(1);
        let costs = Duration::from_nanos(u64::try_from(costs).unwrap_or(u64::MAX));
        let by = by.max(now.minus(more)).plus(costs);
        *paid = Some((by, used));
        by.since(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    /// Steps of so long until `end`: what was used of CPU time in each millisecond.
    fn work(quota: Quota, steps: &[u64], end: u64) -> Vec<u64> {
        let pace = Pace::new(Some(quota));
        let (mut now, mut used) = (0, 0);
        let mut busy = vec![0; usize::try_from(end).unwrap() + 1000];
        for step in steps.iter().cycle() {
            now += u64::try_from(pace.step(Instant(ms(now)), ms(used)).as_millis()).unwrap();
            if now >= end {
                break;
            }
            (now..now + step).for_each(|t| busy[usize::try_from(t).unwrap()] = 1);
            (now, used) = (now + step, used + step);
        }
        busy
    }

    #[test]
    fn at_any_instant_a_periods_worth_has_something_left() {
        for (milli, period, allowed) in [(200, 100, 10), (500, 100, 40), (900, 100, 80), (100, 100, 5), (200, 50, 5)] {
            let quota = Quota { milli, period: ms(period) };
            for steps in [&[1][..], &[2, 1, 3]] {
                let busy = work(quota, steps, 2000);
                let longest = *steps.iter().max().unwrap();
                let worth =
                    busy.windows(usize::try_from(period).unwrap()).map(|w| w.iter().sum::<u64>()).max().unwrap();
                // One step is known only when it is done.
                assert!(worth <= allowed + longest, "{quota:?}, {steps:?}: {worth} ms of {allowed}");
                let all: u64 = busy.iter().sum();
                assert!(all * 10 >= allowed * 2000 / period * 9, "{quota:?}, {steps:?}: {all} ms used");
            }
        }
    }

    #[test]
    fn who_was_kept_from_running_does_not_catch_up() {
        let pace = Pace::new(Some(Quota { milli: 200, period: ms(100) }));
        assert_eq!(pace.step(Instant(ms(0)), ms(50)), ms(0), "what was before is paid for");
        assert_eq!(pace.step(Instant(ms(80)), ms(51)), ms(9));
        assert_eq!(pace.step(Instant(ms(89)), ms(52)), ms(10));
    }

    #[test]
    fn without_a_quota_below_one_cpu_nobody_waits() {
        for quota in [None, Some(Quota { milli: 1000, period: ms(100) })] {
            let pace = Pace::new(quota);
            (0..10).for_each(|n| assert_eq!(pace.step(Instant(ms(n)), ms(n * 50)), Duration::ZERO));
        }
    }
}
