//! The whole machine simulated: random workloads, random kernels that refuse, are late or hang, and a driver that does what
//! `supervise` does. 100,000 evaluations a run (`GRACEKEEPER_SIMULATIONS`), each from a seed that a failure prints
//! (`GRACEKEEPER_SEED` runs that one again), and the promises of spec section 4 are checked on every one.
//!
//! The oracle recomputes the budget from the spec's formulas; it shares no arithmetic with `machine::plan`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
#![allow(clippy::cast_possible_truncation, clippy::cast_precision_loss, clippy::cast_sign_loss)]

mod driver;
mod oracle;
mod world;

use driver::Run;
use world::{Kernel, Rng, Workload};

const EVALUATIONS: u64 = 100_000;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name}={text}: not a number")))
}

/// What the evaluations went through: a simulation that never met a case says nothing about it.
#[derive(Debug, Default)]
struct Met([u64; 13]);

const CASES: [&str; 13] = [
    "completed",
    "timeout",
    "terminated",
    "violation",
    "output_limit",
    "supervisor_error",
    "launch_failed",
    "starved",
    "starved between two deadlines",
    "revoked",
    "survivors",
    "replanned",
    "repeated kills",
];

impl Met {
    fn count(&mut self, run: &Run) {
        let reason = run.reason();
        for (n, met) in self.0.iter_mut().enumerate() {
            *met += u64::from(match CASES[n] {
                "starved" => run.machine.starved(),
                "starved between two deadlines" => run.machine.starved() && run.between,
                "revoked" => run.revoked.is_some(),
                "survivors" => !run.machine.drained(),
                "replanned" => run.replanned,
                "repeated kills" => run.kills > 1,
                name => name == reason,
            });
        }
    }
}

fn evaluate(seed: u64) -> Run {
    let mut rng = Rng::new(seed);
    let (limits, monitoring) = world::limits(&mut rng);
    let kernel = Kernel::random(&mut rng);
    let workload = Workload::random(&mut rng, &limits);
    let mut run = Run::new(limits, monitoring, kernel, workload, rng);
    run.play();
    run
}

fn checked(seed: u64) -> Result<Run, String> {
    let run = std::panic::catch_unwind(|| evaluate(seed))
        .map_err(|panic| panic.downcast_ref::<String>().cloned().unwrap_or_default())?;
    oracle::check(&run).map(|()| run)
}

#[test]
fn the_promises_of_section_4_hold_in_every_evaluation() {
    if let Some(seed) = number("GRACEKEEPER_SEED") {
        let run = evaluate(seed);
        println!("{run:#?}");
        oracle::check(&run).unwrap_or_else(|broken| panic!("seed {seed}: {broken}"));
        return;
    }
    let evaluations = number("GRACEKEEPER_SIMULATIONS").unwrap_or(EVALUATIONS);
    let first = u64::from(std::process::id()) << 32;
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get() as u64);
    let all = std::thread::scope(|scope| {
        let one = |thread| {
            move || {
                let mut met = Met::default();
                for n in (thread..evaluations).step_by(threads as usize) {
                    let seed = first + n;
                    match checked(seed) {
                        Ok(run) => met.count(&run),
                        Err(broken) => panic!("GRACEKEEPER_SEED={seed}: {broken}"),
                    }
                }
                met
            }
        };
        let running: Vec<_> = (0..threads).map(|thread| scope.spawn(one(thread))).collect();
        running.into_iter().map(|t| t.join().unwrap()).fold(Met::default(), |mut all, met| {
            all.0.iter_mut().zip(met.0).for_each(|(all, met)| *all += met);
            all
        })
    });
    println!("{evaluations} evaluations from seed {first}:");
    for (name, met) in CASES.iter().zip(all.0) {
        println!("  {met:>7} {name}");
        assert!(met > evaluations / 2_000, "{name}: hardly met, the simulation says nothing of it");
    }
}

/// The oracle sees what it is there to see: a budget with the wrong part of the grace, a kill that waits, a lost escapee.
#[test]
fn the_oracle_finds_what_is_broken() {
    let broken = |spoil: fn(&mut Run)| {
        (0..400u64).any(|seed| {
            let mut run = evaluate(seed);
            oracle::check(&run).expect("sound before it is spoilt");
            spoil(&mut run);
            oracle::check(&run).is_err()
        })
    };
    assert!(broken(|run| run.sealed += run.limits.grace.as_micros() as u64 / 10), "sealed at the end of the grace");
    assert!(broken(|run| run.killed = run.killed.map(|at| at + 20_000)), "killed 20 ms late");
    assert!(broken(|run| run.killed = run.killed.map(|at| at.saturating_sub(20_000))), "killed 20 ms early");
    assert!(broken(|run| run.alive_at_scrub = Some(1)), "scrubbed beside a live process");
    assert!(broken(|run| run.seals = 2), "sealed twice");
    assert!(broken(|run| run.exit = Some(0)), "the wrong exit status");
    assert!(broken(|run| run.left_alive = 1), "somebody left alive");
    assert!(broken(|run| run.waited = Some(30_000)), "waited though nobody was left");
}
