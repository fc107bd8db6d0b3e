//! The driver: what `supervise` does, with the simulated kernel in the real one's place. It decides nothing.

use crate::world::{Kernel, MS, Monitoring, NEVER, Process, Rng, SECOND, Workload};
use gracekeeper::machine::events::{Action, Event};
use gracekeeper::machine::plan::Limits;
use gracekeeper::machine::step::{Machine, State};
use gracekeeper::machine::types::{Behaviour, Ended, Instant, StopSignal};
use gracekeeper::watch::rules::{Reading, Rules};
use std::time::Duration;

/// More processes than this are not simulated one by one: what forks has met its pids limit.
const PIDS_LIMIT: usize = 100;

pub const fn at(us: u64) -> Instant {
    Instant(Duration::from_micros(us))
}

const fn us(instant: Instant) -> u64 {
    instant.0.as_micros() as u64
}

#[derive(Debug)]
pub struct Run {
    pub limits: Limits,
    pub monitoring: Monitoring,
    pub kernel: Kernel,
    pub workload: Workload,
    pub machine: Machine,
    rng: Rng,
    now: u64,
    created: u64,
    command_reported: bool,
    started: bool,
    scrub_ends: u64,
    rules: Option<Rules>,
    next_sample: u64,
    last_death: u64,
    /// Somebody died since the last look: SIGCHLD is pending.
    unreaped: bool,

    // What the oracle judges by.
    /// When the trigger fell, by what the driver told the machine.
    pub first: Option<(Event, u64)>,
    /// Violations that the driver reported, with their times.
    pub violations: Vec<u64>,
    /// Stops taken, with their times.
    pub stops: Vec<(StopSignal, u64)>,
    pub asked: Option<u64>,
    pub revoked: Option<u64>,
    pub killed: Option<u64>,
    pub kills: u64,
    pub scrubbed: Option<(u64, u64)>,
    pub scrub_over: u64,
    pub alive_at_scrub: Option<usize>,
    pub sealed: u64,
    pub seals: u64,
    pub exit: Option<u8>,
    pub left_alive: usize,
    /// Alive when waiting for the dead was given up.
    pub given_up_on: usize,
    pub replanned: bool,
    /// The time the kernel took from the supervisor: lateness, and what actions cost.
    pub taken: u64,
    /// The time taken before the kill.
    pub taken_before_kill: u64,
    /// From the last death to the scrub, less what the kernel took.
    pub waited: Option<u64>,
    /// A wake-up in the ladder that was so late that the spec asks for a kill, and when it was.
    pub too_late: Option<u64>,
    /// It was one of the driver's own, between two deadlines of the machine's.
    pub between: bool,
    /// Bytes sent since the trigger.
    pub sent: u64,
    cut: bool,
    /// When the supervisor failed.
    pub faulted: bool,
    counted_until: u64,
    pub behaviour: Behaviour,
}

impl Run {
    pub fn new(limits: Limits, monitoring: Monitoring, kernel: Kernel, workload: Workload, rng: Rng) -> Self {
        Self {
            limits,
            monitoring,
            kernel,
            machine: Machine::new(limits, at(0)),
            rng,
            now: 0,
            created: workload.processes.len() as u64,
            workload,
            command_reported: false,
            started: false,
            scrub_ends: NEVER,
            rules: None,
            next_sample: NEVER,
            last_death: 0,
            unreaped: false,
            first: None,
            violations: Vec::new(),
            stops: Vec::new(),
            asked: None,
            revoked: None,
            killed: None,
            kills: 0,
            scrubbed: None,
            scrub_over: 0,
            alive_at_scrub: None,
            sealed: 0,
            seals: 0,
            exit: None,
            left_alive: 0,
            given_up_on: 0,
            replanned: false,
            taken: 0,
            taken_before_kill: 0,
            waited: None,
            too_late: None,
            between: false,
            sent: 0,
            cut: false,
            faulted: false,
            counted_until: 0,
            behaviour: Behaviour::default(),
        }
    }

    pub fn reason(&self) -> &'static str {
        self.machine.trigger().map_or("launch_failed", |(trigger, _)| trigger.name())
    }

    pub fn alive(&self) -> usize {
        self.workload.processes.iter().filter(|p| p.alive).count()
    }

    pub fn play(&mut self) {
        if self.workload.launch.is_some() {
            self.workload.processes.iter_mut().for_each(|p| p.alive = false);
        }
        for turn in 0.. {
            assert!(turn < 100_000, "it does not end: {:?} at {}", self.machine, self.now);
            if matches!(self.machine.state(), State::Done(_)) {
                break;
            }
            let due = self.machine.deadline().map(us);
            // What is not the machine's is asked for now at the earliest.
            let asked = due.unwrap_or(NEVER).min(self.next_sample.max(self.now));
            let wake = asked.min(self.next_happening());
            assert!(wake != NEVER, "nothing will ever happen again: {:?}", self.machine);
            self.pass_to(wake.max(self.now));
            if self.kernel.late > 0 && self.rng.one_in(3) {
                let late = self.rng.range(0, self.kernel.late);
                self.take(late);
            }
            self.one_turn(due, asked);
        }
        self.left_alive = self.alive();
    }

    /// As `Supervisor::run` has it: signals, the handshake, the dead, the scrub, the deadline, the sample.
    fn one_turn(&mut self, due: Option<u64>, asked: u64) {
        let woken = self.now;
        while let Some(&(when, signal)) = self.workload.stops.first().filter(|s| s.0 <= self.now) {
            self.workload.stops.remove(0);
            debug_assert!(when <= self.now);
            if !matches!(self.machine.state(), State::Sealing | State::Done(_)) {
                self.stops.push((signal, self.now));
            }
            self.observe();
            self.feed(Event::Stop(signal));
        }
        if !self.started && self.workload.launched <= self.now {
            self.started = true;
            self.feed(match self.workload.launch {
                None => Event::Launched,
                Some(failure) => Event::LaunchFailed(failure),
            });
        }
        if self.workload.output_limit <= self.now {
            self.workload.output_limit = NEVER;
            if self.alive() > 0 {
                self.observe();
                self.feed(Event::OutputLimit);
            }
        }
        if self.kernel.fault <= self.now {
            self.kernel.fault = NEVER;
            self.faulted = true;
            self.feed(Event::Fault);
        }
        self.reap();
        if self.scrub_ends <= self.now {
            self.scrub_ends = NEVER;
            self.feed(Event::Scrubbed);
        }
        let is_due = due.is_some_and(|due| self.now >= due);
        if is_due {
            self.observe();
        }
        if is_due || woken >= asked {
            let late = woken.saturating_sub(asked);
            self.judge_lateness(late, is_due);
            self.feed(Event::Woke { late: Duration::from_micros(late) });
        }
        if self.next_sample <= self.now {
            self.sample();
        }
    }

    /// By the spec's own words: late by more than a quarter of what is left before `kill`.
    fn judge_lateness(&mut self, late: u64, is_due: bool) {
        let State::Terminating(_) = self.machine.state() else { return };
        let Some(plan) = self.machine.plan() else { return };
        let left = us(plan.kill).saturating_sub(self.now);
        if late > 10 * MS && late > left / 4 && self.too_late.is_none() {
            self.too_late = Some(self.now);
            self.between = !is_due;
        }
    }

    fn reap(&mut self) {
        self.unreaped = false;
        if !self.started && self.workload.launch.is_some() {
            return;
        }
        let alone = self.alive() == 0;
        if !self.command_reported && !self.workload.processes[0].alive && self.workload.launch.is_none() {
            self.command_reported = true;
            self.observe();
            let how = if self.killed.is_some() { Ended::Signaled(9) } else { self.workload.how };
            self.feed(Event::Ended { how, alone });
        } else if alone && matches!(self.machine.state(), State::Terminating(_) | State::Draining { .. }) {
            self.feed(Event::Empty);
        }
    }

    fn observe(&mut self) {
        if self.machine.trigger().is_some() {
            return;
        }
        self.behaviour = Behaviour {
            network_attempts: Some(self.workload.attempts),
            subprocesses: (!self.kernel.blind).then(|| (self.alive() as u64).saturating_sub(1)),
            memory_growth: Some(self.workload.growth),
        };
        self.machine.observe(self.behaviour);
        let base = self.reading();
        self.rules = (self.monitoring != Monitoring::Off)
            .then(|| Rules::new(self.monitoring == Monitoring::Aggressive, 1000, &base));
        self.counted_until = self.now;
    }

    fn interval(&self) -> u64 {
        if self.monitoring == Monitoring::Aggressive { 20 * MS } else { 100 * MS }
    }

    fn reading(&self) -> Reading {
        Reading {
            at: at(self.now),
            bytes_sent: Some(self.sent),
            created: Some(self.created),
            alive: (!self.kernel.blind).then(|| self.alive() as u64),
            ..Reading::default()
        }
    }

    fn sample(&mut self) {
        self.next_sample = NEVER;
        if !matches!(self.machine.state(), State::Terminating(_)) {
            return;
        }
        let reading = self.reading();
        let detected = self.rules.as_mut().map(|rules| rules.look(&reading)).unwrap_or_default();
        if let Some(first) = detected.iter().find(|d| d.kill) {
            self.violations.push(self.now);
            self.feed(Event::Violation(first.rule));
        }
        // A workload that does nothing needs no sample to show it: the simulation's own economy.
        let busy = self.workload.sends > 0 || self.workload.processes.iter().any(|p| p.next_fork != NEVER && p.alive);
        if busy && self.rules.is_some() {
            self.next_sample = self.now + self.interval();
        }
    }

    fn feed(&mut self, event: Event) {
        let before = self.machine.trigger();
        let mut next = Some(event);
        while let Some(event) = next.take() {
            let actions = self.machine.step(at(self.now), event);
            if before.is_none() && self.first.is_none() && self.machine.trigger().is_some() {
                self.first = Some((event, self.now));
                self.sent = 0;
                if self.rules.is_some() {
                    self.next_sample = self.now + self.interval();
                }
            }
            for action in actions {
                next = self.perform(action).or(next);
            }
        }
    }

    fn perform(&mut self, action: Action) -> Option<Event> {
        match action {
            Action::Term => {
                self.asked = self.asked.or(Some(self.now));
                if !self.kernel.no_term {
                    let now = self.now;
                    for p in self.workload.processes.iter_mut().filter(|p| p.alive && p.term != NEVER) {
                        p.dies = p.dies.min(now + p.term);
                    }
                }
                // Who forks begins when it is asked to stop: the grace as an attack window.
                let now = self.now;
                for p in self.workload.processes.iter_mut().filter(|p| p.alive && p.forks != NEVER) {
                    p.next_fork = now + p.forks;
                }
            }
            Action::Announce { replanned } => {
                self.replanned |= replanned;
                self.write();
            }
            Action::Revoke { until } => {
                assert!(self.revoked.is_none(), "revoked twice");
                self.revoked = Some(self.now);
                let allowed = (us(until).saturating_sub(self.now) / 2).min(SECOND);
                let cost = self.kernel.revoke.min(allowed);
                self.take(cost);
                self.cut = !self.kernel.no_cut;
                if !self.kernel.no_limits {
                    self.workload.processes.iter_mut().for_each(|p| p.next_fork = NEVER);
                }
                self.write();
            }
            Action::Kill { .. } => {
                self.kills += 1;
                if self.killed.is_none() {
                    self.killed = Some(self.now);
                    self.taken_before_kill = self.taken;
                }
                self.kill();
            }
            Action::Scrub { until } => {
                assert!(self.scrubbed.is_none(), "scrubbed twice");
                self.scrubbed = Some((self.now, us(until)));
                self.alive_at_scrub = Some(self.alive());
                self.waited = Some(self.now - self.last_death.max(self.first.map_or(0, |f| f.1)));
                self.write();
                self.scrub_ends = if self.kernel.scrub == NEVER {
                    NEVER
                } else {
                    self.now.saturating_add(self.kernel.scrub).min(us(until).max(self.now))
                };
            }
            Action::Shorten { until } => {
                if self.scrub_ends != NEVER {
                    self.scrub_ends = self.scrub_ends.min(us(until).max(self.now));
                }
                self.scrubbed = self.scrubbed.map(|(began, _)| (began, us(until)));
            }
            Action::Seal => {
                self.scrub_over = self.now;
                self.given_up_on = self.alive();
                self.write();
                self.seals += 1;
                self.sealed = self.now;
                return Some(Event::Sealed);
            }
            Action::Exit(code) => {
                assert!(self.exit.is_none(), "exits twice");
                self.exit = Some(code);
            }
        }
        None
    }

    fn kill(&mut self) {
        let (now, missed, kills) = (self.now, self.kernel.missed, self.kills);
        for n in 0..self.workload.processes.len() {
            // Not PID 1: who forked while the list was made is not on it; the next pass finds it.
            let escapes = n > 0 && kills < 4 && self.rng.range(0, 9) < missed && !self.kernel.pid1;
            let p = &mut self.workload.processes[n];
            if p.alive && p.kill != NEVER && !escapes {
                p.dies = p.dies.min(now + p.kill);
                p.next_fork = NEVER;
            }
        }
        if self.kernel.pid1 {
            self.workload.processes.iter_mut().for_each(|p| p.next_fork = NEVER);
        }
    }

    fn write(&mut self) {
        if self.kernel.write > 0 {
            let cost = self.rng.range(0, self.kernel.write);
            self.take(cost);
        }
    }

    /// Time that the kernel keeps the supervisor from doing anything.
    fn take(&mut self, time: u64) {
        self.taken += time;
        self.pass_to(self.now + time);
    }

    /// When the workload or the world next does something that wakes the supervisor.
    fn next_happening(&self) -> u64 {
        if self.unreaped {
            return self.now;
        }
        let processes = self.workload.processes.iter().filter(|p| p.alive);
        let dies = processes.clone().map(|p| p.dies.min(p.next_fork)).min().unwrap_or(NEVER);
        let stop = self.workload.stops.first().map_or(NEVER, |s| s.0);
        let launch = if self.started { NEVER } else { self.workload.launched };
        let output = if self.alive() > 0 { self.workload.output_limit } else { NEVER };
        dies.min(stop).min(launch).min(output).min(self.scrub_ends).min(self.kernel.fault)
    }

    /// The workload's life until then: deaths, forks, bytes.
    fn pass_to(&mut self, then: u64) {
        loop {
            let next = self
                .workload
                .processes
                .iter()
                .enumerate()
                .filter(|(_, p)| p.alive)
                .map(|(n, p)| (p.dies.min(p.next_fork), n))
                .min();
            let Some((when, n)) = next.filter(|&(when, _)| when <= then) else { break };
            self.send(when);
            let p = self.workload.processes[n];
            if p.dies <= when {
                self.workload.processes[n].alive = false;
                self.last_death = when;
                self.unreaped = true;
            } else if self.alive() < PIDS_LIMIT {
                let next_fork = when + p.forks.max(MS);
                self.workload.processes[n].next_fork = next_fork;
                self.created += 1;
                self.workload.processes.push(Process { next_fork, dies: NEVER, ..p });
            } else {
                self.workload.processes[n].next_fork = when + SECOND;
            }
        }
        self.send(then);
        self.now = self.now.max(then);
    }

    fn send(&mut self, until: u64) {
        let time = until.saturating_sub(self.counted_until);
        self.counted_until = self.counted_until.max(until);
        if self.workload.sends == 0 || self.alive() == 0 || self.machine.trigger().is_none() {
            return;
        }
        if !self.cut {
            self.sent += self.workload.sends.saturating_mul(time) / SECOND;
        }
    }

    pub fn outside_clock(&self) -> Option<u64> {
        let during = |&&(_, when): &&(StopSignal, u64)| self.scrub_over == 0 || when <= self.scrub_over;
        self.stops.iter().find(during).map(|&(_, when)| when)
    }
}
