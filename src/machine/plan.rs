//! The budget (section 4): when each rung is due, and by when the last byte is durable.
//!
//! Pure arithmetic on durations. Invariant: a plan is only ever shortened.

use super::types::{Behaviour, Instant, Trigger};
use std::time::Duration;

/// The resolved limits a plan is made from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// The internal timeout; `None` is off.
    pub timeout: Option<Duration>,
    /// The pod's terminationGracePeriodSeconds.
    pub grace: Duration,
    /// `term` → `revoke`.
    pub soft: Duration,
    /// → `kill`.
    pub hard: Duration,
    /// The scrub's own budget where no outside clock runs.
    pub scrub_budget: Duration,
    /// Whether behaviour shortens the hard limit.
    pub adaptive: bool,
}

/// What shortened the hard limit, with its evidence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shortened {
    /// The rule's name in the record.
    pub rule: &'static str,
    /// The evidence.
    pub value: u64,
    /// By how much.
    pub by: Duration,
}

/// When the rungs are due. Absolute points of the monotonic clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    /// The `revoke` rung; not before `kill` means that it is not taken.
    pub revoke: Instant,
    /// The `kill` rung.
    pub kill: Instant,
    /// When waiting for the killed to be gone ends.
    pub drained: Instant,
    /// When the scrub has to stop, where an outside clock runs; else it has its own budget.
    pub scrubbed: Option<Instant>,
    /// When the last byte has to be durable, where an outside clock runs.
    pub sealed: Option<Instant>,
}

/// How long after `kill` the supervisor waits for processes that do not go, where no outside clock runs. A killed
/// process is only held up by a system call that cannot be interrupted.
const DRAIN: Duration = Duration::from_secs(10);
/// No plan kills earlier than this after a signal (section 4).
const LEAST_KILL: Duration = Duration::from_millis(100);
/// Adaptive grace goes no lower than this (section 4).
const LEAST_HARD: Duration = Duration::from_secs(1);
/// What a completed command's leftovers get at the most (section 4).
const LEFTOVERS: Duration = Duration::from_secs(2);
/// Memory growth above this shortens the grace, in bytes a second.
const FAST_GROWTH: u64 = 100_000_000;

/// The hard and soft limits after adaptive grace, and what shortened them: at most three.
#[must_use]
pub fn adapt(limits: &Limits, seen: &Behaviour) -> (Duration, Duration, Vec<Shortened>) {
    let mut by = Vec::new();
    if limits.adaptive {
        let mut rule = |rule, value: Option<u64>, above, seconds| {
            if let Some(value) = value.filter(|&v| v > above) {
                by.push(Shortened { rule, value, by: Duration::from_secs(seconds) });
            }
        };
        rule("network_attempts", seen.network_attempts, 0, 5);
        rule("subprocesses", seen.subprocesses, 2, 3);
        rule("memory_growth", seen.memory_growth, FAST_GROWTH, 2);
    }
    if by.is_empty() {
        return (limits.hard, limits.soft, by);
    }
    let total: Duration = by.iter().map(|s| s.by).sum();
    // A hard limit that was asked to be below the floor is not lengthened by being suspicious.
    let hard = limits.hard.saturating_sub(total).max(LEAST_HARD.min(limits.hard));
    (hard, limits.soft.min(hard / 2), by)
}

/// The time kept back for scrub and seal when the outside clock runs: clamp(0.2 × grace, 0.3 s, 3 s).
#[must_use]
pub fn reserve(grace: Duration) -> Duration {
    (grace / 5).clamp(Duration::from_millis(300), Duration::from_secs(3))
}

/// The plan for a trigger at `now`, with the limits as `adapt` left them.
#[must_use]
pub fn plan(trigger: Trigger, now: Instant, limits: &Limits, hard: Duration, soft: Duration) -> Plan {
    match trigger {
        Trigger::Terminated(_) => {
            let end = limits.grace * 9 / 10;
            let kept = reserve(limits.grace);
            let kill = hard.min(end.saturating_sub(kept)).max(LEAST_KILL);
            let sealing = (kept / 4).min(Duration::from_millis(500));
            let scrubbed = now.plus(end.saturating_sub(sealing).max(kill));
            Plan {
                revoke: now.plus(soft.min(kill / 2)),
                kill: now.plus(kill),
                drained: scrubbed,
                scrubbed: Some(scrubbed),
                sealed: Some(now.plus(end)),
            }
        }
        Trigger::Timeout | Trigger::OutputLimit => inside(now, soft.min(hard), hard),
        Trigger::Completed => {
            let kill = soft.min(LEFTOVERS);
            inside(now, kill, kill)
        }
        Trigger::Violation(_) | Trigger::SupervisorError => inside(now, Duration::ZERO, Duration::ZERO),
    }
}

fn inside(now: Instant, revoke: Duration, kill: Duration) -> Plan {
    Plan {
        revoke: now.plus(revoke),
        kill: now.plus(kill),
        drained: now.plus(kill).plus(DRAIN),
        scrubbed: None,
        sealed: None,
    }
}

impl Plan {
    /// The stricter of two plans in every point: a signal during a ladder never lengthens it.
    #[must_use]
    pub fn shortened_to(self, other: Self) -> Self {
        let least = |a: Option<Instant>, b: Option<Instant>| match (a, b) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        Self {
            revoke: self.revoke.min(other.revoke),
            kill: self.kill.min(other.kill),
            drained: self.drained.min(other.drained),
            scrubbed: least(self.scrubbed, other.scrubbed),
            sealed: least(self.sealed, other.sealed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::types::StopSignal;

    const fn limits(grace: u64, soft: u64, hard: u64) -> Limits {
        Limits {
            timeout: None,
            grace: Duration::from_secs(grace),
            soft: Duration::from_secs(soft),
            hard: Duration::from_secs(hard),
            scrub_budget: Duration::from_secs(10),
            adaptive: true,
        }
    }

    #[test]
    fn the_profiles_plans() {
        // grace, soft, hard -> revoke, kill, sealed in ms, by section 4's formulas.
        for (grace, soft, hard, revoke, kill, sealed) in [
            (30, 10, 20, 10_000, 20_000, 27_000),
            (10, 5, 10, 3_500, 7_000, 9_000),
            (5, 2, 5, 1_750, 3_500, 4_500),
            (2, 1, 2, 700, 1_400, 1_800),
            (1, 1, 1, 300, 600, 900),
        ] {
            let l = limits(grace, soft, hard);
            let p = plan(Trigger::Terminated(StopSignal::Term), Instant::default(), &l, l.hard, l.soft);
            assert_eq!(p.revoke.0.as_millis(), revoke);
            assert_eq!(p.kill.0.as_millis(), kill);
            assert_eq!(p.sealed.map(|i| i.0.as_millis()), Some(sealed));
            assert!(p.kill <= p.drained && p.scrubbed < p.sealed);
        }
    }

    #[test]
    fn adaptive_grace_has_a_floor_and_its_evidence() {
        let l = limits(30, 10, 20);
        let none = Behaviour::default();
        assert_eq!(adapt(&l, &none), (l.hard, l.soft, vec![]));
        let all = Behaviour { network_attempts: Some(1), subprocesses: Some(3), memory_growth: Some(FAST_GROWTH + 1) };
        let (hard, soft, why) = adapt(&l, &all);
        assert_eq!((hard.as_secs(), soft.as_secs(), why.len()), (10, 5, 3));
        let high = limits(5, 2, 5);
        assert_eq!(adapt(&high, &all).0, Duration::from_secs(1));
        let at = Behaviour { network_attempts: Some(0), subprocesses: Some(2), memory_growth: Some(FAST_GROWTH) };
        assert_eq!(adapt(&l, &at).0, l.hard);
        assert_eq!(adapt(&Limits { adaptive: false, ..l }, &all).0, l.hard);
    }
}
