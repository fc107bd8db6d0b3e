//! The promises of spec section 4, judged from what happened; the spec's formulas written down a second time.

use crate::driver::Run;
use crate::world::{MS, Monitoring, NEVER, SECOND};
use gracekeeper::machine::events::Event;
use gracekeeper::machine::status::LaunchFailure;
use gracekeeper::machine::types::{Ended, StopSignal};
use std::time::Duration;

macro_rules! promise {
    ($holds:expr, $($words:tt)+) => { if !$holds { return Err(format!($($words)+)); } };
}

fn us(time: Duration) -> u64 {
    time.as_micros() as u64
}

/// Section 4, adaptive grace.
fn adapted(run: &Run) -> (u64, u64) {
    let (mut hard, mut soft) = (us(run.limits.hard), us(run.limits.soft));
    if run.limits.adaptive {
        let seen = run.behaviour;
        let mut less = 0;
        less += if seen.network_attempts.unwrap_or(0) > 0 { 5 * SECOND } else { 0 };
        less += if seen.subprocesses.unwrap_or(0) > 2 { 3 * SECOND } else { 0 };
        less += if seen.memory_growth.unwrap_or(0) > 100_000_000 { 2 * SECOND } else { 0 };
        if less > 0 {
            // "never below 1 s", which lengthens no limit that was asked to be shorter.
            hard = hard.saturating_sub(less).max(hard.min(SECOND));
            soft = soft.min(hard / 2);
        }
    }
    (soft, hard)
}

/// Revoke and kill after a signal from outside, from the signal on.
fn outside(run: &Run, soft: u64, hard: u64) -> (u64, u64) {
    let grace = us(run.limits.grace);
    let reserve = (grace / 5).clamp(300 * MS, 3 * SECOND);
    let kill = hard.min((grace * 9 / 10).saturating_sub(reserve)).max(100 * MS);
    (soft.min(kill / 2), kill)
}

/// When the rungs are due, by the spec: the first trigger's plan, shortened by the first signal that came after it.
fn due(run: &Run) -> Option<(u64, u64)> {
    let (event, at) = run.first?;
    let (soft, hard) = adapted(run);
    let (mut revoke, mut kill) = match event {
        Event::Stop(_) => outside(run, soft, hard),
        Event::Woke { .. } => (soft.min(hard), hard),
        Event::OutputLimit => (us(run.limits.soft).min(us(run.limits.hard)), us(run.limits.hard)),
        Event::Ended { .. } | Event::Empty => {
            let kill = us(run.limits.soft).min(2 * SECOND);
            (kill, kill)
        }
        _ => (0, 0),
    };
    (revoke, kill) = (at + revoke, at + kill);
    if !matches!(event, Event::Stop(_))
        && let Some(stop) = run.outside_clock().filter(|&stop| stop >= at)
    {
        let (r, k) = outside(run, us(run.limits.soft), us(run.limits.hard));
        (revoke, kill) = (revoke.min(stop + r), kill.min(stop + k));
    }
    Some((revoke, kill))
}

fn expected_exit(run: &Run) -> u8 {
    let Some((event, _)) = run.first else {
        return if run.workload.launch == Some(LaunchFailure::NotFound) { 127 } else { 126 };
    };
    let own = match run.machine.ended() {
        Some(Ended::Exited(code)) => Some(code),
        Some(Ended::Signaled(n)) => Some(128 + n),
        None => None,
    };
    match event {
        // A finished command's verdict stands.
        Event::Ended { .. } | Event::Empty => own.unwrap_or(125),
        _ if !run.violations.is_empty() => 121,
        Event::Woke { .. } => 124,
        Event::Stop(StopSignal::Term) => 143,
        Event::Stop(StopSignal::Int) => 130,
        Event::Stop(StopSignal::Quit) => 131,
        Event::Stop(StopSignal::Hup) => 129,
        Event::OutputLimit | Event::Violation(_) => 121,
        _ => 125,
    }
}

pub fn check(run: &Run) -> Result<(), String> {
    promise!(run.seals == 1, "sealed {} times", run.seals);
    promise!(run.exit == Some(expected_exit(run)), "exit {:?}, expected {}", run.exit, expected_exit(run));

    // Everything is dead, and before the scrub; what cannot die is said.
    if run.machine.drained() {
        promise!(run.left_alive == 0, "{} left alive", run.left_alive);
        promise!(run.alive_at_scrub == Some(0), "scrubbed beside {:?}", run.alive_at_scrub);
    } else {
        promise!(run.alive_at_scrub.is_none(), "a scrub, though not drained");
        promise!(run.given_up_on > 0, "said to be left, and nobody is");
    }

    // By 0.9 x grace, plus only what the kernel took from the supervisor. A scrub that hangs is left 10 ms after its end.
    if let Some(stop) = run.outside_clock() {
        let end = us(run.limits.grace) * 9 / 10;
        let slack = run.taken + if run.kernel.scrub == NEVER { 10 * MS } else { 0 };
        promise!(
            run.sealed <= stop + end.max(100 * MS) + slack,
            "sealed {} us after the stop of {end}",
            run.sealed - stop
        );
    }

    if let (Some((revoke, kill)), Some((first, began))) = (due(run), run.first) {
        let interrupts = run.stops.iter().filter(|(s, _)| matches!(s, StopSignal::Int | StopSignal::Quit)).count();
        let early = run.machine.starved()
            || !run.violations.is_empty()
            || interrupts > 1
            || run.faulted
            || matches!(first, Event::Violation(_));
        if let Some(killed) = run.killed {
            promise!(early || killed >= kill, "killed {} us early", kill - killed);
            promise!(killed <= kill.max(began) + run.taken_before_kill, "killed {} us late", killed - kill);
        }
        if let Some(revoked) = run.revoked {
            promise!(revoked >= revoke, "revoked {} us early", revoke - revoked);
            promise!(revoked <= revoke + run.taken, "revoked {} us late", revoked - revoke);
            promise!(revoked < kill, "revoked at the kill");
            promise!(run.killed.is_none_or(|killed| revoked <= killed), "revoked after the kill");
            promise!(run.asked.is_some_and(|asked| asked <= revoked), "revoked before it was asked");
        }
        // No rung is left out: who was still there when it was due, and was not killed for a reason, had it.
        if !early && run.killed.is_some() && revoke < kill && run.taken == 0 {
            promise!(run.revoked.is_some(), "killed without a revoke");
        }
        if !early && run.killed.is_some() {
            promise!(run.asked.is_some(), "killed without having been asked");
        }
    }
    if let Some(late) = run.too_late {
        promise!(
            run.killed.is_some_and(|killed| killed <= late),
            "late at {late}, and not killed at once: {:?}",
            run.killed
        );
    }
    promise!(!run.machine.starved() || run.taken > 0, "starved, though never late");

    // Nobody waits for a limit to pass.
    if let Some(waited) = run.waited.filter(|_| run.workload.launch.is_none()) {
        promise!(waited <= run.taken, "waited {waited} us though nobody was left");
    }
    if let Some((began, until)) = run.scrubbed {
        let own = began + us(run.limits.scrub_budget);
        promise!(until <= own, "a longer scrub than its budget");
        promise!(run.scrub_over <= until.max(began) + 10 * MS + run.taken, "the scrub overran");
    }

    // An attack in the grace is dead within a sample: what left is a megabyte and one sample's worth.
    if run.monitoring != Monitoring::Off {
        let sample = if run.monitoring == Monitoring::Aggressive { 20 * MS } else { 100 * MS };
        // Not as PID 1 the kill is repeated until a pass finds nobody.
        let passes = if run.kernel.pid1 { 0 } else { 40 * MS };
        let worth = run.workload.sends * (sample + run.taken + passes + 4 * MS) / SECOND;
        let undying = run.workload.processes.iter().any(|p| p.kill == NEVER);
        promise!(undying || run.sent <= 1_000_000 + 1_000 + worth, "{} bytes left", run.sent);
    }
    Ok(())
}
