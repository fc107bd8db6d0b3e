//! Looking at the workload: what adaptive grace judges by, the samples, the activity, what is to stay stopped.

use super::Supervisor;
use crate::audit::record::{Activity, Body};
use crate::kernel::clock;
use crate::machine::events::Event;
use crate::machine::step::State;
use crate::machine::types::{Behaviour, Instant};
use crate::scrub::job::Job;
use crate::seal;
use crate::switches::without;
use crate::watch::activity::activity;
use std::time::Duration;

/// How often what is to stay stopped is looked at.
const REFREEZE: Duration = Duration::from_millis(20);
/// The first activity record after the trigger, and the next ones (section 6).
const ACTIVITY_AFTER: Duration = Duration::from_secs(2);
const ACTIVITY_EVERY: Duration = Duration::from_secs(1);

impl Supervisor {
    /// What adaptive grace judges by, read when it is needed and not before.
    pub(super) fn observe(&mut self) {
        if self.machine.trigger().is_some() {
            return;
        }
        let mut everything = self.shared.everything();
        assert!(!without("composure"), "a test asked for it");
        if everything.is_pressed() {
            self.machine.press();
            return;
        }
        // Where they are many nobody is looked at before the polite request: it would keep it back by 20 ms for a thousand.
        let count = everything.count();
        self.watch.begin(&mut everything, count);
        let alive = count.map(|count| count.alive);
        self.counted = alive;
        self.facts.peak(alive);
        let counted = self.facts.counted(everything.proc_());
        self.machine.observe(Behaviour {
            network_attempts: counted.network_attempts(),
            subprocesses: alive.map(|n| n.saturating_sub(1)),
            memory_growth: self.watch.growth(),
        });
    }

    /// When the loop has something to look at besides the machine's deadlines.
    pub(super) fn tick(&self) -> Option<Instant> {
        let due = match self.machine.state() {
            State::Launching | State::Running => self.watch.due(),
            State::Terminating(_) => {
                let frozen = (!self.frozen.is_empty()).then_some(self.refreeze);
                self.watch.due().into_iter().chain(frozen).chain(self.activity_due()).min()
            }
            State::Draining { .. } => None,
            State::Scrubbing { .. } => self.scrub.as_ref().and_then(Job::due),
            State::Sealing | State::Done(_) => return None,
        };
        due.into_iter().chain(self.shared.log().due()).min()
    }

    pub(super) fn sample(&mut self) {
        let now = clock::now();
        let is_due = |due: Option<Instant>| due.is_some_and(|due| now >= due);
        if is_due(self.shared.log().due()) {
            self.shared.log().attend(now);
        }
        match self.machine.state() {
            State::Launching | State::Running if is_due(self.watch.due()) => {
                let alive = self.watch.before(&mut self.shared.everything());
                self.facts.peak(alive);
            }
            State::Terminating(_) => self.watch_the_grace(),
            State::Scrubbing { .. } => self.scrub.iter_mut().for_each(Job::nudge),
            State::Launching | State::Running | State::Draining { .. } | State::Sealing | State::Done(_) => {}
        }
    }

    fn watch_the_grace(&mut self) {
        let now = clock::now();
        if !self.frozen.is_empty() {
            self.frozen.keep(&mut self.shared.everything());
            // At most a quarter of a CPU, as the samples.
            let after = clock::now();
            self.refreeze = now.plus(REFREEZE).max(after.plus(after.since(now) * 3));
        }
        let killed = self.watch.due().is_some_and(|due| now >= due) && self.take_a_sample();
        if !killed && self.activity_due().is_some_and(|due| now >= due) {
            self.record_activity(now);
        }
    }

    /// A sample of the grace; whether it was a reason to kill.
    fn take_a_sample(&mut self) -> bool {
        let detected = self.watch.look(&mut self.shared.everything());
        if self.watch.is_blind() {
            self.feed(Event::Pressed);
            return true;
        }
        self.facts.peak(self.watch.alive());
        // The kill before the records: writing one may take as long as the disk likes.
        if let Some(first) = detected.iter().find(|d| d.kill) {
            self.feed(Event::Violation(first.rule));
        }
        for d in &detected {
            self.facts.detected(d.rule, d.value, d.threshold, d.kill, &self.machine, &mut self.shared.log());
        }
        detected.iter().any(|d| d.kill)
    }

    /// When what each process is doing is to be recorded next. It belongs to the audit level, not to the monitoring, and costs nothing
    /// before the trigger.
    fn activity_due(&self) -> Option<Instant> {
        let (_, trigger) = self.machine.trigger().filter(|_| self.comprehensive)?;
        Some(self.next_activity.unwrap_or_else(|| trigger.plus(ACTIVITY_AFTER)))
    }

    fn record_activity(&mut self, now: Instant) {
        self.next_activity = Some(now.plus(ACTIVITY_EVERY));
        let (processes, more) = {
            let mut everything = self.shared.everything();
            let until = now.plus(everything.recording());
            let Some(members) = everything.members().map(<[_]>::to_vec) else { return };
            let Some(proc_) = everything.proc_() else { return };
            activity(proc_, &members, until)
        };
        let record = Activity { at_ms: seal::since_trigger(&self.machine), processes, more };
        self.shared.log().write(&Body::Activity(record));
    }
}
