//! The state machine: `Launching → Running → Terminating → Draining → Scrubbing → Sealing → Done`.
//!
//! Pure: the driver says what happened and when, the machine says what to do. Invariants (tested by properties): it
//! always ends before its budget, seals exactly once, never scrubs before everything is dead, never kills before it may.

use super::events::{Action, Actions, Event};
use super::plan::{Limits, Plan, Shortened, adapt, plan};
use super::status::{LaunchFailure, Verdict, launch_failed, verdict};
use super::types::{Behaviour, Ended, Instant, Rung, StopSignal, Trigger};
use std::time::Duration;

/// Where the run stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Between fork and exec.
    Launching,
    /// The workload runs.
    Running,
    /// On the ladder; `rung` is the last one taken.
    Terminating(Rung),
    /// Killed; waiting for everything to be gone. The kill is repeated at `next`.
    Draining {
        /// When the kill is repeated.
        next: Instant,
        /// The wait after that.
        pause: Duration,
    },
    /// The scrub runs.
    Scrubbing {
        /// When it has to stop.
        until: Instant,
    },
    /// The seal is being written.
    Sealing,
    /// Over.
    Done(u8),
}

/// How long past its deadline a scrub that hangs in the kernel is waited for.
const SCRUB_OVERRUN: Duration = Duration::from_millis(10);
/// Below this the supervisor is not late: a timer slack and a context switch.
const PUNCTUAL: Duration = Duration::from_millis(10);
/// The first pause between repeated kills.
const KILL_AGAIN: Duration = Duration::from_millis(5);

/// Whether a supervisor that was woken so late can afford politeness with what is left before `kill` (section 4).
fn late(by: Duration, left: Duration) -> bool {
    by > PUNCTUAL && by > left / 4
}

/// One run.
#[derive(Debug, Clone)]
pub struct Machine {
    limits: Limits,
    state: State,
    begun: Instant,
    trigger: Option<(Trigger, Instant)>,
    plan: Option<Plan>,
    ended: Option<Ended>,
    launch: Option<LaunchFailure>,
    behaviour: Behaviour,
    shortened: Vec<Shortened>,
    effective: Option<Duration>,
    interrupts: u8,
    starved: bool,
    pressed: bool,
    drained: bool,
}

impl Machine {
    /// A run whose child was forked at `begun`.
    #[must_use]
    pub const fn new(limits: Limits, begun: Instant) -> Self {
        Self {
            limits,
            state: State::Launching,
            begun,
            trigger: None,
            plan: None,
            ended: None,
            launch: None,
            behaviour: Behaviour { network_attempts: None, subprocesses: None, memory_growth: None },
            shortened: Vec::new(),
            effective: None,
            interrupts: 0,
            starved: false,
            pressed: false,
            drained: true,
        }
    }

    /// What the workload was seen to do so far: the input of adaptive grace.
    pub const fn observe(&mut self, seen: Behaviour) {
        self.behaviour = seen;
    }

    /// There is no memory left: anything but the kill may take longer than there is time.
    pub const fn press(&mut self) {
        self.pressed = true;
    }

    /// Where the run stands.
    #[must_use]
    pub const fn state(&self) -> State {
        self.state
    }

    /// The trigger and when it fell.
    #[must_use]
    pub const fn trigger(&self) -> Option<(Trigger, Instant)> {
        self.trigger
    }

    /// What a disk may take at the end where no outside clock runs: one that began now would leave as much (section 4).
    #[must_use]
    pub fn patience(&self) -> Duration {
        self.limits.grace.saturating_mul(9) / 10
    }

    /// The plan in force.
    #[must_use]
    pub const fn plan(&self) -> Option<Plan> {
        self.plan
    }

    /// What shortened the hard limit.
    #[must_use]
    pub fn shortened(&self) -> &[Shortened] {
        &self.shortened
    }

    /// The time from the trigger to `kill` as planned.
    #[must_use]
    pub const fn effective(&self) -> Option<Duration> {
        self.effective
    }

    /// Whether everything was gone before the scrub; if not, there was no scrub.
    #[must_use]
    pub const fn drained(&self) -> bool {
        self.drained
    }

    /// Whether the supervisor was so late that it killed at once.
    #[must_use]
    pub const fn starved(&self) -> bool {
        self.starved
    }

    /// How the command itself ended.
    #[must_use]
    pub const fn ended(&self) -> Option<Ended> {
        self.ended
    }

    /// The verdict as it stands.
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        match (self.launch, self.trigger) {
            (Some(failure), None) => launch_failed(failure),
            (_, Some((trigger, _))) => verdict(trigger, self.ended),
            (None, None) => verdict(Trigger::SupervisorError, self.ended),
        }
    }

    /// When the driver has to call `step` with `Woke` at the latest; `None` where nothing is due.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        match self.state {
            State::Launching | State::Running => self.limits.timeout.map(|t| self.begun.plus(t)),
            State::Terminating(Rung::Term) => self.plan.map(|p| p.revoke.min(p.kill)),
            State::Terminating(Rung::Revoke | Rung::Kill) => self.plan.map(|p| p.kill),
            State::Draining { next, .. } => self.plan.map(|p| p.drained.min(next)),
            State::Scrubbing { until } => Some(until.plus(SCRUB_OVERRUN)),
            State::Sealing | State::Done(_) => None,
        }
    }

    /// One event at `now`; what is to be done about it.
    pub fn step(&mut self, now: Instant, event: Event) -> Actions {
        let mut todo = Actions::default();
        if let Event::Ended { how, .. } = event {
            // The first report stands.
            self.ended = self.ended.or(Some(how));
        }
        match (self.state, event) {
            (State::Launching, Event::Launched) => self.state = State::Running,
            (State::Launching, Event::LaunchFailed(failure)) => {
                self.launch = Some(failure);
                self.scrub(now, &mut todo);
            }
            // The exec failed while the ladder was already on: nothing ran, and the trigger stands.
            (State::Terminating(_), Event::LaunchFailed(failure)) => self.launch = Some(failure),
            (State::Launching | State::Running, Event::Ended { alone, .. }) => {
                self.begin(Trigger::Completed, now);
                if alone {
                    self.scrub(now, &mut todo);
                } else {
                    self.announce(false, &mut todo);
                }
            }
            (State::Launching | State::Running, Event::Empty) => {
                // Everything is gone, and with it the command, whose status somebody else must have taken.
                self.begin(Trigger::Completed, now);
                self.scrub(now, &mut todo);
            }
            (State::Launching | State::Running, Event::Stop(signal)) => {
                self.count(signal);
                self.begin(Trigger::Terminated(signal), now);
                self.ask(false, &mut todo, now);
            }
            (State::Launching | State::Running, Event::Insisted(signal)) => {
                self.interrupts = 2;
                self.begin(Trigger::Terminated(signal), now);
                self.kill(now, &mut todo);
                self.note(false, &mut todo);
            }
            (State::Launching | State::Running, Event::Violation(rule)) => {
                self.begin(Trigger::Violation(rule), now);
                self.kill(now, &mut todo);
                self.note(false, &mut todo);
            }
            (State::Launching | State::Running, Event::OutputLimit) => {
                self.begin(Trigger::OutputLimit, now);
                self.announce(false, &mut todo);
            }
            (State::Launching | State::Running, Event::Fault) => {
                self.begin(Trigger::SupervisorError, now);
                self.kill(now, &mut todo);
                self.note(false, &mut todo);
            }
            (State::Launching | State::Running, Event::Woke { late: by }) => {
                if self.deadline().is_some_and(|due| now >= due) {
                    self.begin(Trigger::Timeout, now);
                    let left = self.plan.map_or(Duration::ZERO, |p| p.kill.since(now));
                    self.ask(late(by, left), &mut todo, now);
                }
            }

            (State::Terminating(_) | State::Draining { .. }, Event::Empty | Event::Ended { alone: true, .. }) => {
                self.scrub(now, &mut todo);
            }
            (State::Terminating(_), Event::Stop(signal) | Event::Insisted(signal)) => {
                let again = self.count(signal) || matches!(event, Event::Insisted(_));
                let replanned = self.replan(signal, now);
                if again || self.plan.is_some_and(|p| now >= p.kill) {
                    self.kill(now, &mut todo);
                }
                if replanned {
                    self.note(true, &mut todo);
                }
            }
            (State::Terminating(_), Event::Violation(rule)) => {
                // Only an attack during the grace of a run that had not completed is a verdict of its own.
                if !matches!(self.trigger, Some((Trigger::Completed, _))) {
                    let at = self.trigger.map_or(now, |(_, at)| at);
                    self.trigger = Some((Trigger::Violation(rule), at));
                }
                self.kill(now, &mut todo);
            }
            (State::Terminating(_), Event::Fault) => self.kill(now, &mut todo),
            (State::Terminating(_), Event::Pressed) => {
                // As at the trigger: what nobody can look at gets no grace.
                self.starved = true;
                self.kill(now, &mut todo);
            }
            (State::Terminating(rung), Event::Woke { late }) => self.climb(rung, late, now, &mut todo),

            (State::Draining { next, pause }, Event::Woke { late }) => {
                self.absent(late);
                if self.plan.is_some_and(|p| now >= p.drained) {
                    // Something does not die (an uninterruptible system call): no scrub beside a live process.
                    self.drained = false;
                    self.state = State::Sealing;
                    todo.push(Action::Seal);
                } else if now >= next {
                    let pause = (pause * 2).min(Duration::from_millis(100));
                    self.state = State::Draining { next: now.plus(pause), pause };
                    todo.push(Action::Kill { starved: false, again: true });
                }
            }
            (State::Draining { .. }, Event::Stop(signal) | Event::Insisted(signal)) => {
                if self.replan(signal, now) {
                    self.note(true, &mut todo);
                }
            }
            (State::Scrubbing { until }, Event::Stop(signal) | Event::Insisted(signal)) => {
                if self.replan(signal, now)
                    && let Some(shorter) = self.plan.and_then(|p| p.scrubbed).filter(|&s| s < until)
                {
                    self.state = State::Scrubbing { until: shorter };
                    todo.push(Action::Shorten { until: shorter });
                }
            }
            (State::Scrubbing { until }, Event::Woke { .. }) => {
                if now >= until.plus(SCRUB_OVERRUN) {
                    self.state = State::Sealing;
                    todo.push(Action::Seal);
                }
            }
            (State::Scrubbing { .. }, Event::Scrubbed) => {
                self.state = State::Sealing;
                todo.push(Action::Seal);
            }
            (State::Sealing, Event::Sealed) => {
                let code = self.verdict().exit_code;
                self.state = State::Done(code);
                todo.push(Action::Exit(code));
            }

            // What cannot change anything any more, state by state.
            (State::Launching | State::Running, Event::Pressed)
            | (
                State::Running | State::Terminating(_),
                Event::Launched
                | Event::LaunchFailed(_)
                | Event::Scrubbed
                | Event::Sealed
                | Event::OutputLimit
                | Event::Ended { .. },
            )
            | (State::Launching, Event::Scrubbed | Event::Sealed)
            | (
                State::Draining { .. },
                Event::Launched
                | Event::LaunchFailed(_)
                | Event::Ended { .. }
                | Event::Violation(_)
                | Event::OutputLimit
                | Event::Fault
                | Event::Pressed
                | Event::Scrubbed
                | Event::Sealed,
            )
            | (
                State::Scrubbing { .. },
                Event::Launched
                | Event::LaunchFailed(_)
                | Event::Ended { .. }
                | Event::Empty
                | Event::Violation(_)
                | Event::OutputLimit
                | Event::Fault
                | Event::Pressed
                | Event::Sealed,
            )
            | (
                State::Sealing,
                Event::Launched
                | Event::LaunchFailed(_)
                | Event::Ended { .. }
                | Event::Empty
                | Event::Stop(_)
                | Event::Insisted(_)
                | Event::Violation(_)
                | Event::OutputLimit
                | Event::Fault
                | Event::Pressed
                | Event::Woke { .. }
                | Event::Scrubbed,
            )
            | (State::Done(_), _) => {}
        }
        todo
    }

    fn begin(&mut self, trigger: Trigger, now: Instant) {
        // Adaptive grace judges workloads that are made to stop, not what a finished command left.
        let (hard, soft) = if matches!(trigger, Trigger::Timeout | Trigger::Terminated(_)) {
            let (hard, soft, why) = adapt(&self.limits, &self.behaviour);
            self.shortened = why;
            (hard, soft)
        } else {
            (self.limits.hard, self.limits.soft)
        };
        let plan = plan(trigger, now, &self.limits, hard, soft);
        self.trigger = Some((trigger, now));
        self.effective = Some(plan.kill.since(now));
        self.plan = Some(plan);
    }

    /// The polite request, or, where even that cannot be afforded, the kill.
    fn ask(&mut self, late: bool, todo: &mut Actions, now: Instant) {
        if late || self.pressed {
            self.starved = true;
            self.kill(now, todo);
            self.note(false, todo);
        } else {
            self.announce(false, todo);
        }
    }

    /// First rung: SIGTERM goes out before anything is written down.
    fn announce(&mut self, replanned: bool, todo: &mut Actions) {
        self.state = State::Terminating(Rung::Term);
        todo.push(Action::Term);
        self.note(replanned, todo);
    }

    fn note(&self, replanned: bool, todo: &mut Actions) {
        todo.push(Action::Announce { replanned });
    }

    /// Whether this is a second INT or QUIT.
    const fn count(&mut self, signal: StopSignal) -> bool {
        if signal.is_impatient() {
            self.interrupts = self.interrupts.saturating_add(1);
        }
        signal.is_impatient() && self.interrupts > 1
    }

    /// An outside signal during a ladder starts the outside clock once; whether anything changed. A repeated signal
    /// (a restarted kubelet's) changes nothing, since its clock would start later.
    fn replan(&mut self, signal: StopSignal, now: Instant) -> bool {
        let outside = plan(Trigger::Terminated(signal), now, &self.limits, self.limits.hard, self.limits.soft);
        let Some(current) = self.plan else {
            // Nothing ran, so nothing has a plan; what is left to do has to fit all the same.
            self.plan = Some(outside);
            return true;
        };
        if current.sealed.is_some() {
            return false;
        }
        let shorter = current.shortened_to(outside);
        self.plan = Some(shorter);
        if let Some((_, at)) = self.trigger {
            self.effective = Some(shorter.kill.since(at));
        }
        shorter != current
    }

    fn climb(&mut self, rung: Rung, by: Duration, now: Instant, todo: &mut Actions) {
        let Some(plan) = self.plan else { return };
        if now >= plan.kill {
            self.kill(now, todo);
        } else if late(by, plan.kill.since(now)) {
            // A starved supervisor cannot afford politeness: the kill needs one time slice only.
            self.starved = true;
            self.kill(now, todo);
        } else if rung == Rung::Term && now >= plan.revoke {
            self.state = State::Terminating(Rung::Revoke);
            todo.push(Action::Revoke { until: plan.kill });
        }
    }

    fn kill(&mut self, now: Instant, todo: &mut Actions) {
        self.state = State::Draining { next: now.plus(KILL_AGAIN), pause: KILL_AGAIN };
        if let Some(plan) = self.plan.as_mut() {
            // A kill ahead of its time starts the wait for the dead then, not later.
            let (ahead, late) = (plan.kill.since(now), now.since(plan.kill));
            plan.kill = plan.kill.min(now);
            if plan.sealed.is_none() {
                plan.drained = plan.drained.minus(ahead);
            }
            self.absent(late);
        }
        todo.push(Action::Kill { starved: self.starved, again: false });
    }

    /// The supervisor had no CPU for so long. Where nobody outside counts it does not count as waiting for the dead: they had none
    /// either, and what is about to die would keep the scrub from running.
    fn absent(&mut self, late: Duration) {
        if let Some(plan) = self.plan.as_mut().filter(|plan| plan.sealed.is_none()) {
            plan.drained = plan.drained.plus(late);
        }
    }

    fn scrub(&mut self, now: Instant, todo: &mut Actions) {
        let own = now.plus(self.limits.scrub_budget);
        let until = self.plan.and_then(|p| p.scrubbed).map_or(own, |outside| outside.min(own));
        self.state = State::Scrubbing { until };
        todo.push(Action::Scrub { until });
    }
}
