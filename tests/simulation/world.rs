//! What is simulated: limits, a kernel with its faults, a workload with its manners. Time in microseconds.

use gracekeeper::machine::plan::Limits;
use gracekeeper::machine::types::{Ended, StopSignal};
use std::time::Duration;

pub const MS: u64 = 1_000;
pub const SECOND: u64 = 1_000_000;
pub const NEVER: u64 = u64::MAX;

/// SplitMix64: the whole evaluation from one seed.
#[derive(Debug)]
pub struct Rng(u64);

impl Rng {
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// From `low` to `high`, both included.
    pub fn range(&mut self, low: u64, high: u64) -> u64 {
        low + self.next() % (high - low + 1)
    }

    pub fn one_in(&mut self, n: u64) -> bool {
        self.next().is_multiple_of(n)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Monitoring {
    Off,
    Standard,
    Aggressive,
}

/// Half the time a risk level's own numbers, else anything.
pub fn limits(rng: &mut Rng) -> (Limits, Monitoring) {
    let s = Duration::from_secs;
    let any = |rng: &mut Rng, low: u64, high: u64| Duration::from_millis(rng.range(low, high));
    let profile = |timeout, grace, soft, hard, scrub, adaptive| Limits {
        timeout: Some(s(timeout)),
        grace: s(grace),
        soft: s(soft),
        hard: s(hard),
        scrub_budget: s(scrub),
        adaptive,
    };
    match rng.next() % 8 {
        0 => (profile(300, 30, 10, 20, 8, false), Monitoring::Off),
        1 => (profile(180, 10, 5, 10, 8, true), Monitoring::Standard),
        2 => (profile(90, 5, 2, 5, 10, true), Monitoring::Aggressive),
        3 => (profile(55, 2, 1, 2, 2, true), Monitoring::Aggressive),
        _ => {
            let limits = Limits {
                timeout: if rng.one_in(6) { None } else { Some(any(rng, 1, 20_000)) },
                grace: any(rng, 400, 40_000),
                soft: any(rng, 1, 20_000),
                hard: any(rng, 1, 40_000),
                scrub_budget: any(rng, 1, 10_000),
                adaptive: rng.one_in(2),
            };
            let monitoring = [Monitoring::Off, Monitoring::Standard, Monitoring::Aggressive][rng.range(0, 2) as usize];
            (limits, monitoring)
        }
    }
}

/// What the kernel does to the supervisor.
#[derive(Debug)]
pub struct Kernel {
    /// Whether it is PID 1: one kill reaches everybody.
    pub pid1: bool,
    /// The supervisor wakes up to so much late.
    pub late: u64,
    /// A record takes up to so long to write.
    pub write: u64,
    /// TERM is refused.
    pub no_term: bool,
    /// The limits of the revoke rung are refused: who forks goes on forking.
    pub no_limits: bool,
    /// The sockets cannot be cut and nobody can be stopped.
    pub no_cut: bool,
    /// How long the revoke takes.
    pub revoke: u64,
    /// Not PID 1: who is not reached by the first kills, out of ten.
    pub missed: u64,
    /// The processes cannot be counted.
    pub blind: bool,
    /// The scrub takes so long; `NEVER`: it hangs in the kernel.
    pub scrub: u64,
    /// The supervisor fails at this time.
    pub fault: u64,
}

impl Kernel {
    pub fn random(rng: &mut Rng) -> Self {
        let honest = rng.one_in(2);
        let sometimes = |rng: &mut Rng, n| !honest && rng.one_in(n);
        let pid1 = rng.one_in(2);
        Self {
            pid1,
            late: if sometimes(rng, 2) { rng.range(0, 1_500 * MS) } else { 0 },
            write: if sometimes(rng, 3) { rng.range(0, 200 * MS) } else { 0 },
            no_term: sometimes(rng, 4),
            no_limits: sometimes(rng, 3),
            no_cut: sometimes(rng, 3),
            revoke: if honest { 0 } else { rng.range(0, 100 * MS) },
            missed: if pid1 { 0 } else { rng.range(0, 8) },
            blind: sometimes(rng, 8),
            scrub: if sometimes(rng, 6) { NEVER } else { rng.range(0, 3) * rng.range(0, SECOND) },
            fault: if sometimes(rng, 20) { rng.range(0, 20 * SECOND) } else { NEVER },
        }
    }
}

/// What becomes of one process.
#[derive(Debug, Clone, Copy)]
pub struct Process {
    pub alive: bool,
    /// It dies so long after TERM; `NEVER`: it ignores it.
    pub term: u64,
    /// So long after KILL; `NEVER`: in an uninterruptible system call.
    pub kill: u64,
    /// It forks every so often; `NEVER`: it does not.
    pub forks: u64,
    /// When it dies.
    pub dies: u64,
    /// When it forks next.
    pub next_fork: u64,
}

/// The workload: process 0 is the command.
#[derive(Debug)]
pub struct Workload {
    pub launch: Option<gracekeeper::machine::status::LaunchFailure>,
    /// When the exec is known to have worked, or not.
    pub launched: u64,
    pub processes: Vec<Process>,
    pub how: Ended,
    /// Bytes a second it sends outside, from its start on.
    pub sends: u64,
    pub output_limit: u64,
    /// Stop signals from outside.
    pub stops: Vec<(u64, StopSignal)>,
    pub attempts: u64,
    pub growth: u64,
}

impl Workload {
    pub fn random(rng: &mut Rng, limits: &Limits) -> Self {
        use gracekeeper::machine::status::LaunchFailure;
        let horizon = limits.timeout.map_or(20 * SECOND, |t| t.as_micros() as u64) + 2 * SECOND;
        let at = |rng: &mut Rng| rng.range(0, horizon);
        let ends_by_itself = limits.timeout.is_none() || rng.one_in(3);
        let mut processes: Vec<Process> =
            (0..1 + rng.range(0, 3) * rng.range(0, 8)).map(|_| Process::random(rng)).collect();
        if rng.one_in(6) {
            for process in &mut processes {
                process.forks = if rng.one_in(3) { rng.range(10 * MS, 400 * MS) } else { NEVER };
            }
        }
        if ends_by_itself {
            processes[0].dies = at(rng);
        }
        for process in &mut processes[1..] {
            if rng.one_in(3) {
                process.dies = at(rng);
            }
        }
        let stop = |rng: &mut Rng| {
            [StopSignal::Term, StopSignal::Int, StopSignal::Quit, StopSignal::Hup][rng.range(0, 3) as usize]
        };
        let mut stops: Vec<(u64, StopSignal)> = Vec::new();
        if rng.one_in(2) {
            let first = at(rng);
            for _ in 0..rng.range(1, 3) {
                stops.push((first + rng.range(0, 3) * rng.range(0, SECOND), stop(rng)));
            }
        }
        stops.sort_unstable_by_key(|&(at, _)| at);
        Self {
            launch: rng.one_in(50).then_some(if rng.one_in(2) {
                LaunchFailure::NotFound
            } else {
                LaunchFailure::NotExecutable
            }),
            launched: rng.range(0, 5 * MS),
            processes,
            how: if rng.one_in(4) {
                Ended::Signaled(rng.range(1, 63) as u8)
            } else {
                Ended::Exited(rng.range(0, 255) as u8)
            },
            sends: if rng.one_in(8) { rng.range(0, 5_000_000) } else { 0 },
            output_limit: if rng.one_in(10) { at(rng) } else { NEVER },
            stops,
            attempts: rng.range(0, 1),
            growth: rng.range(0, 200_000_000),
        }
    }
}

impl Process {
    pub fn random(rng: &mut Rng) -> Self {
        Self {
            alive: true,
            term: if rng.one_in(2) { NEVER } else { rng.range(0, 4) * rng.range(0, SECOND) },
            kill: if rng.one_in(200) { NEVER } else { rng.range(0, 3 * MS) },
            forks: NEVER,
            dies: NEVER,
            next_fork: NEVER,
        }
    }
}
