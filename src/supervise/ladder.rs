//! The machine's actions, performed: the rungs, the scrub, the seal.
//!
//! Invariant: a rung's signal goes out before anything is written down or allocated for its record.

use super::Supervisor;
use crate::audit::record::{Body, Escalation};
use crate::kernel::{clock, terminal};
use crate::machine::events::{Action, Event};
use crate::machine::types::Instant;
use crate::revoke;
use crate::scrub::job;
use crate::seal;
use crate::switches::without;
use nix::errno::Errno;
use nix::sys::signal::Signal;
use std::time::Duration;

/// How long one kill may go on finding new processes before the loop looks at its signals again (not PID 1).
pub(super) const ONE_KILL: Duration = Duration::from_millis(50);
/// The longest a revoke may take.
const REVOKE_AT_MOST: Duration = Duration::from_secs(1);

impl Supervisor {
    /// Steps the machine and performs what it says, until nothing more follows.
    pub fn feed(&mut self, event: Event) {
        let mut event = Some(event);
        while let Some(now) = event.take() {
            for action in self.machine.step(clock::now(), now) {
                event = self.perform(action).or(event);
            }
        }
    }

    fn perform(&mut self, action: Action) -> Option<Event> {
        match action {
            Action::Term => {
                let (reached, alive) = {
                    let mut everything = self.shared.everything();
                    let reached = everything.signal(Signal::SIGTERM);
                    everything.signal(Signal::SIGCONT);
                    (reached, self.counted.take().or_else(|| everything.alive()))
                };
                self.facts.peak(alive);
                // Its record follows the trigger's, which need not hold up the signal.
                self.asked = Some(Escalation { signalled: reached.or(alive), ..self.rung("term") });
            }
            Action::Announce { replanned } => {
                let record = self.facts.requested(&self.machine, replanned);
                self.shared.log().write(&Body::TerminationRequested(record));
                if let Some(asked) = self.asked.take() {
                    self.escalated(asked);
                }
            }
            // Nobody could be listed, and so nobody limited or cut off.
            Action::Revoke { .. } if self.shared.everything().is_pressed() && !without("pressed_grace") => {
                return Some(Event::Pressed);
            }
            Action::Revoke { until } => self.revoke(until),
            Action::Kill { starved, again } => self.kill(starved, again),
            Action::Scrub { until } => {
                self.killed();
                // Nothing of the workload is left; operators' processes go with the namespace.
                let targets = std::mem::take(&mut self.targets);
                let crowded = self.shared.everything().is_pressed() && !without("memory_first");
                self.scrub = Some(job::start(targets, self.before.take(), until, self.scrub_mode, crowded));
                if let Some(relay) = &mut self.relay {
                    relay.drain(clock::now());
                }
            }
            Action::Shorten { until } => {
                if let Some(scrub) = &self.scrub {
                    scrub.shorten(until);
                }
            }
            Action::Seal => {
                self.killed();
                if let Some(relay) = &mut self.relay {
                    self.facts.output(relay.close(clock::now()));
                }
                let record = self.facts.seal(&self.machine, self.scrub.as_ref(), &self.targets, &self.shared);
                // A disk that hangs is given up in time for the message and the exit; where no outside clock runs, as if one had just begun to.
                let until = self.machine.plan().and_then(|plan| plan.sealed);
                let until = until.unwrap_or_else(|| clock::now().plus(self.machine.patience()));
                self.shared.log().seal(record, until, self.machine.drained());
                if self.terminal && !without("foreground") {
                    // The shell that started us finds its terminal as it left it.
                    let _ = terminal::take_foreground(nix::unistd::getpgrp().as_raw());
                }
                return Some(Event::Sealed);
            }
            Action::Exit(code) => tracing::debug!(code, "done"),
        }
        None
    }

    fn revoke(&mut self, kill: Instant) {
        let now = clock::now();
        // The kill must not wait for it: half of what is left, and never longer than any tree we know of needs.
        let until = now.plus((kill.since(now) / 2).min(REVOKE_AT_MOST));
        let mut done = revoke::revoke(&mut self.shared.everything(), until, kill);
        let now = clock::now();
        let left = if now < kill {
            let until = now.plus(kill.since(now) / 2);
            revoke::left(&self.shared.everything(), &self.sockets_before, until)
        } else {
            Err(Errno::ETIME)
        };
        done.unheld(left);
        self.frozen = std::mem::take(&mut done.frozen);
        self.escalated(Escalation {
            files: Some(done.files.to_owned()),
            network: Some(done.network.to_owned()),
            limited: Some(done.limited),
            sockets_cut: Some(done.cut),
            frozen: done.stopped,
            errors: done.errors,
            ..self.rung("revoke")
        });
    }

    fn kill(&mut self, starved: bool, again: bool) {
        // Not after the signal: without CPU time left the call returns when the workload's debt is paid, though it was sent at once.
        let at_ms = seal::since_trigger(&self.machine);
        // The signal before anything that allocates: the workload may have left no memory.
        let mut everything = self.shared.everything();
        everything.signal(Signal::SIGKILL);
        if !self.pid1 {
            // Until a pass finds nobody, since whoever forks meanwhile is not in the pass that was.
            let began = clock::now();
            while everything.alive().is_some_and(|alive| alive > 0) && clock::now().since(began) < ONE_KILL {
                everything.signal(Signal::SIGKILL);
            }
        }
        drop(everything);
        if !again {
            clock::exact();
            self.killed_at = Some(clock::now());
            self.killing = Some(Escalation { signalled: Some(0), starved, at_ms, ..self.rung("kill") });
        }
    }

    /// The kill rung's counts are known now.
    fn killed(&mut self) {
        if let Some(mut killing) = self.killing.take() {
            // Where the kernel does not say that nobody is left there is somebody, though nobody be seen.
            let left =
                if self.machine.drained() { Some(0) } else { self.shared.everything().alive().map(|n| n.max(1)) };
            killing.survivors = left;
            // Those that are left were signalled too; how many, nobody knows where they cannot be counted.
            killing.signalled = killing.signalled.zip(left).map(|(reaped, left)| reaped.saturating_add(left));
            if !self.facts.has_peak() {
                // Killed before anybody looked: so many there were at once.
                self.facts.peak(killing.signalled);
            }
            self.escalated(killing);
        }
    }

    fn rung(&self, rung: &str) -> Escalation {
        Escalation { rung: rung.to_owned(), at_ms: seal::since_trigger(&self.machine), ..Escalation::default() }
    }

    fn escalated(&mut self, step: Escalation) {
        self.shared.log().write(&Body::Escalated(step.clone()));
        self.facts.escalation.push(step);
    }
}
