//! The pure machine under random event sequences: it always ends before its budget, seals exactly once, never scrubs before
//! everything is dead, never kills before it may.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use gracekeeper::machine::events::{Action, Event};
use gracekeeper::machine::plan::Limits;
use gracekeeper::machine::status::LaunchFailure;
use gracekeeper::machine::step::{Machine, State};
use gracekeeper::machine::types::{Behaviour, Ended, Instant, Rule, StopSignal, Trigger};
use proptest::prelude::*;
use std::time::Duration;

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

#[derive(Debug, Clone, Copy)]
enum Step {
    /// Time passes; the driver wakes at the deadline, if that comes first, late by so much.
    Pass(u64, u64),
    /// It wakes at a time of its own, late by so much.
    Tick(u64),
    Event(Event),
}

fn events() -> impl Strategy<Value = Event> {
    let how = prop_oneof![any::<u8>().prop_map(Ended::Exited), (1u8..64).prop_map(Ended::Signaled)];
    prop_oneof![
        Just(Event::Launched),
        Just(Event::LaunchFailed(LaunchFailure::NotFound)),
        (how, any::<bool>()).prop_map(|(how, alone)| Event::Ended { how, alone }),
        prop_oneof![Just(StopSignal::Term), Just(StopSignal::Int), Just(StopSignal::Quit), Just(StopSignal::Hup)]
            .prop_map(Event::Stop),
        prop_oneof![Just(StopSignal::Int), Just(StopSignal::Hup)].prop_map(Event::Insisted),
        Just(Event::Violation(Rule::ForkBomb)),
        Just(Event::OutputLimit),
        Just(Event::Fault),
        Just(Event::Pressed),
        Just(Event::Empty),
    ]
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        3 => (0u64..4000, prop_oneof![4 => Just(0u64), 1 => 0u64..800]).prop_map(|(t, late)| Step::Pass(t, late)),
        1 => (0u64..2000).prop_map(Step::Tick),
        2 => events().prop_map(Step::Event),
    ];
    proptest::collection::vec(step, 0..40)
}

fn limits() -> impl Strategy<Value = Limits> {
    (1u64..20_000, 200u64..40_000, 1u64..20_000, 1u64..40_000, 1u64..10_000, any::<bool>()).prop_map(
        |(timeout, grace, soft, hard, scrub, adaptive)| Limits {
            timeout: Some(ms(timeout)),
            grace: ms(grace),
            soft: ms(soft),
            hard: ms(hard),
            scrub_budget: ms(scrub),
            adaptive,
        },
    )
}

/// The world of one run: whether the workload is still alive, as the events said so far.
struct World {
    machine: Machine,
    now: Instant,
    dead: bool,
    command_ended: bool,
    killed: bool,
    seals: u32,
    scrubs: u32,
    exits: Vec<u8>,
    stopped_at: Option<Instant>,
    sealed_at: Option<Instant>,
    /// How late the driver has been in all: the machine cannot be held to time it was not given.
    late: Duration,
    limits: Limits,
    interrupts: u32,
    early: bool,
}

impl World {
    fn feed(&mut self, event: Event) {
        // The kernel's own order: nothing ends twice, and the dead raise nothing.
        match event {
            Event::Ended { alone, .. } => {
                if self.command_ended || self.dead {
                    return;
                }
                self.command_ended = true;
                self.dead |= alone;
            }
            Event::Empty => {
                if self.dead || !self.command_ended {
                    return;
                }
                self.dead = true;
            }
            Event::LaunchFailed(_) => {
                if self.machine.state() != State::Launching {
                    return;
                }
                self.dead = true;
                self.command_ended = true;
            }
            Event::Stop(signal) => {
                self.stopped_at = self.stopped_at.or(Some(self.now));
                if matches!(signal, StopSignal::Int | StopSignal::Quit) {
                    self.interrupts += 1;
                }
            }
            Event::Insisted(_) => {
                self.stopped_at = self.stopped_at.or(Some(self.now));
                self.interrupts += 2;
            }
            Event::Violation(_) | Event::Fault => self.early = true,
            _ => {}
        }
        let mut next = Some(event);
        while let Some(event) = next.take() {
            let before = self.machine.plan();
            for action in self.machine.step(self.now, event) {
                match action {
                    Action::Kill { starved, again } => {
                        if !again && !starved && !self.early && self.interrupts < 2 {
                            let due = before.or(self.machine.plan()).unwrap().kill;
                            assert!(self.now >= due.min(self.machine.plan().unwrap().kill), "killed before its time");
                        }
                        self.killed = true;
                    }
                    Action::Scrub { .. } => {
                        assert!(self.dead, "scrubbed beside a live workload");
                        self.scrubs += 1;
                    }
                    Action::Seal => {
                        self.seals += 1;
                        self.sealed_at = Some(self.now);
                        next = Some(Event::Sealed);
                    }
                    Action::Exit(code) => self.exits.push(code),
                    Action::Term | Action::Announce { .. } | Action::Revoke { .. } | Action::Shorten { .. } => {}
                }
            }
        }
    }

    fn wake(&mut self, late: Duration) {
        if let Some(asked) = self.machine.deadline() {
            self.now = self.now.max(asked);
            self.woken(late);
        }
    }

    /// Section 4: "if it is late by more than a quarter of what is left before `kill`, it kills at once", and only then; who is late
    /// by less than 10 ms is not.
    fn woken(&mut self, late: Duration) {
        self.now = self.now.plus(late);
        self.late += late;
        let before = self.machine.starved();
        let left = self.machine.plan().map_or(Duration::MAX, |plan| plan.kill.since(self.now));
        let too_late = late > ms(10) && late > left / 4 && !left.is_zero();
        let ladder = matches!(self.machine.state(), State::Terminating(_));
        self.feed(Event::Woke { late });
        if ladder {
            assert_eq!(self.machine.starved(), before || too_late, "late by {late:?} of {left:?}");
            assert!(!too_late || matches!(self.machine.state(), State::Draining { .. }), "not killed at once");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 20_000, ..ProptestConfig::default() })]
    #[test]
    fn every_run_ends_in_time_with_one_seal(
        limits in limits(),
        steps in steps(),
        seen in (proptest::option::of(0u64..3), proptest::option::of(0u64..9), proptest::option::of(0u64..300_000_000)),
        dies_of_kill in any::<bool>(),
    ) {
        let mut world = World {
            machine: Machine::new(limits, Instant::default()), now: Instant::default(), dead: false, command_ended: false,
            killed: false, seals: 0, scrubs: 0, exits: vec![], stopped_at: None, sealed_at: None, late: Duration::ZERO, limits,
            interrupts: 0, early: false,
        };
        world.machine.observe(Behaviour { network_attempts: seen.0, subprocesses: seen.1, memory_growth: seen.2 });
        for step in steps {
            match step {
                Step::Event(event) => world.feed(event),
                Step::Tick(late) => world.woken(ms(late)),
                Step::Pass(time, late) => {
                    let to = world.now.plus(ms(time));
                    if world.machine.deadline().is_some_and(|d| d <= to) { world.wake(ms(late)) } else { world.now = to }
                }
            }
        }
        // From here on nothing happens but time; a killed workload dies, or (uninterruptible) does not.
        let mut turns = 0;
        while !matches!(world.machine.state(), State::Done(_)) {
            turns += 1;
            prop_assert!(turns < 20_000, "it does not end: {:?}", world.machine);
            if world.killed && dies_of_kill && !world.dead {
                world.command_ended = true;
                world.feed(Event::Empty);
            } else if matches!(world.machine.state(), State::Scrubbing { .. }) && dies_of_kill {
                world.feed(Event::Scrubbed);
            } else {
                world.wake(Duration::ZERO);
            }
        }
        prop_assert_eq!(world.seals, 1);
        prop_assert_eq!(world.exits.len(), 1);
        prop_assert!(world.scrubs <= 1);
        prop_assert_eq!(world.exits[0], world.machine.verdict().exit_code);
        if let (Some(stop), Some(sealed)) = (world.stopped_at, world.sealed_at) {
            // The outside clock: 0.9 x grace from the first stop, plus what the driver itself was late. A finished command's
            // verdict stands, but the clock runs all the same.
            let allowed = (world.limits.grace * 9 / 10).max(ms(100)) + world.late + ms(30);
            prop_assert!(sealed.since(stop) <= allowed, "{:?} after the stop, allowed {:?}: {:?}", sealed.since(stop), allowed, world.machine);
        }
        if let (Some((Trigger::Completed, _)), Some(Ended::Exited(code))) = (world.machine.trigger(), world.machine.ended()) {
            prop_assert_eq!(world.exits[0], code, "a finished command's verdict stands");
        }
    }
}
