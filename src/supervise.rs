//! The loop: poll, turn what the kernel says into an event, step the machine, perform each action, feed the result back.
//! One thread, no sleeping, no decisions.

use crate::audit::log::Log;
use crate::audit::record::{Activity, Body, Escalation, SpoofedSignal};
use crate::confine;
use crate::kernel::counters::Counters;
use crate::kernel::kill::Everything;
use crate::kernel::outcome::Outcome;
use crate::kernel::reap::{self, Reaped};
use crate::kernel::signals::{self, Code, Received, Signals};
use crate::kernel::spawn::{Child, Handshake};
use crate::kernel::{clock, limits, sockdiag};
use crate::machine::status::LaunchFailure;
use crate::machine::step::{Action, Event, Machine, State};
use crate::machine::types::{Behaviour, Instant, Rule, StopSignal};
use crate::relay::Relay;
use crate::revoke::{self, Frozen};
use crate::scrub::job::{self, Job};
use crate::scrub::leftovers::Before;
use crate::scrub::targets::Target;
use crate::seal;
use crate::settings::ScrubMode;
use crate::watch::activity::activity;
use crate::watch::sample::Watch;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

/// How long one kill may go on finding new processes before the loop looks at its signals again (not PID 1).
const ONE_KILL: Duration = Duration::from_millis(50);
/// The longest a revoke may take.
const REVOKE_AT_MOST: Duration = Duration::from_secs(1);
/// How often what is to stay stopped is looked at.
const REFREEZE: Duration = Duration::from_millis(20);
/// The first activity record after the trigger, and the next ones (section 6).
const ACTIVITY_AFTER: Duration = Duration::from_secs(2);
const ACTIVITY_EVERY: Duration = Duration::from_secs(1);
/// Spoofed stop signals written one by one; the rest is counted.
const SPOOFED_WRITTEN: u64 = 10;
/// More spoofed signals than this within a second can mask a real one.
const SPOOFED_FLOOD: u64 = 100;

/// What the panic hook has to reach as well.
#[derive(Debug)]
pub struct Shared {
    /// The processes.
    pub everything: Mutex<Everything>,
    /// The log.
    pub log: Mutex<Log>,
}

impl Shared {
    /// The processes; a panic elsewhere does not keep them from being killed.
    pub fn everything(&self) -> MutexGuard<'_, Everything> {
        self.everything.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The log; a panic elsewhere does not keep it from being sealed.
    pub fn log(&self) -> MutexGuard<'_, Log> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One run, from the fork to the seal.
#[derive(Debug)]
pub struct Supervisor {
    /// What the panic hook reaches too.
    pub shared: Arc<Shared>,
    /// The machine.
    pub machine: Machine,
    /// The signals.
    pub signals: Signals,
    /// The command; `None` where the fork failed.
    pub child: Option<Child>,
    /// Whether gracekeeper is PID 1.
    pub pid1: bool,
    /// Whether the workload's group was made the terminal's foreground group.
    pub terminal: bool,
    /// What is to be scrubbed at the end.
    pub targets: Vec<Target>,
    /// What the seal is made of.
    pub facts: seal::Facts,
    /// As PID 1: which IPC objects were there before the workload.
    pub before: Option<Before>,
    /// How the scrub removes a file.
    pub scrub_mode: ScrubMode,
    /// The running scrub.
    pub scrub: Option<Job>,
    /// The workload's output, where it is limited.
    pub relay: Option<Relay>,
    /// The term rung, until the trigger is recorded.
    pub asked: Option<Escalation>,
    /// The kill rung, until its counts are known.
    pub killing: Option<Escalation>,
    /// What the revoke rung left stopped.
    pub frozen: Frozen,
    /// The samples.
    pub watch: Watch,
    /// Whether the activity is recorded.
    pub comprehensive: bool,
    /// When the next activity record is due, after the first.
    pub next_activity: Option<Instant>,
    /// When the frozen are looked at next.
    pub refreeze: Instant,
    /// Spoofed signals of the current second, and when it began.
    pub spoofed_window: (Instant, u64),
}

impl Supervisor {
    /// Runs until the seal is written; the exit status.
    pub fn run(mut self) -> u8 {
        loop {
            if let State::Done(code) = self.machine.state() {
                return code;
            }
            let asked = self.machine.deadline();
            let tick = self.tick();
            self.wait(asked.into_iter().chain(tick).min());
            // Signals before reaping: a sender that is still a zombie can be told from a stranger.
            self.take_signals();
            self.take_handshake();
            self.relay(Relay::ready);
            self.reap();
            if self.scrub.as_ref().is_some_and(Job::is_done) && self.output_settled() {
                self.feed(Event::Scrubbed);
            }
            if let Some(asked) = asked
                && clock::now() >= asked
            {
                self.observe();
                self.feed(Event::Woke { asked });
            }
            if tick.is_some_and(|tick| clock::now() >= tick) {
                self.sample();
            }
        }
    }

    fn wait(&mut self, asked: Option<Instant>) {
        if matches!(self.machine.state(), State::Done(_)) {
            return;
        }
        let due = self.relay.as_ref().and_then(Relay::due).filter(|_| !self.output_settled());
        let timeout = asked.into_iter().chain(due).min().map(|at| at.since(clock::now()));
        let mut fds = vec![self.signals.poll_fd()];
        if self.machine.state() == State::Launching
            && let Some(child) = &self.child
        {
            fds.push(PollFd::new(child.fd(), PollFlags::POLLIN));
        }
        if let Some(fd) = self.scrub.as_ref().filter(|s| !s.is_done()).and_then(Job::fd) {
            fds.push(PollFd::new(fd, PollFlags::POLLIN));
        } else if self.scrub.is_some() && self.output_settled() {
            return;
        }
        fds.extend(self.relay.iter().flat_map(Relay::fds));
        if let Err(errno) = self.signals.wait(&mut fds, timeout) {
            self.facts.error(format!("ppoll: {errno:?}"));
            // Without a wait the loop cannot see its deadlines: end it now rather than spin or hang.
            self.feed(Event::Fault);
        }
    }

    /// Lets the relay look at its pipes, and acts on what it says.
    fn relay(&mut self, look: fn(&mut Relay, Instant) -> Option<Event>) {
        if let Some(event) = self.relay.as_mut().and_then(|relay| look(relay, clock::now())) {
            self.feed(event);
        }
    }

    /// Whether the output is where it belongs, or its readers had their time.
    fn output_settled(&self) -> bool {
        self.relay.as_ref().is_none_or(|relay| relay.settled(clock::now()))
    }

    fn take_signals(&mut self) {
        let received: Vec<Received> = self.signals.received().collect();
        for signal in received {
            match stop_signal(signal.signal) {
                Some(stop) => self.take_stop(stop, signal),
                // SIGCHLD only says that there may be something to reap, which the loop looks for anyway.
                None if signal.signal == libc::SIGCHLD => {}
                None => self.forward(signal.signal),
            }
        }
    }

    fn take_stop(&mut self, stop: StopSignal, signal: Received) {
        let real = match (signal.code, signal.sender) {
            // From outside the PID namespace: the kubelet, docker, an outer process.
            (Code::User, 0) => true,
            // A terminal's Ctrl-C or hangup. As PID 1 it is not taken: there sender 0 is only believed of SI_USER.
            (Code::Kernel, _) => !self.pid1,
            (Code::User | Code::Tkill, sender) => match self.shared.everything().is_descendant(sender) {
                Some(descendant) => !descendant,
                None => {
                    // The sender is gone: most likely an operator's kill(1), which does not linger.
                    self.facts.error(format!("{} honoured, though its sender (pid {sender}) had gone", stop.name()));
                    true
                }
            },
            (Code::Queue | Code::Other, _) => false,
        };
        if real {
            tracing::info!(signal = stop.name(), sender = signal.sender, "asked to stop");
            self.observe();
            self.feed(Event::Stop(stop));
        } else {
            self.spoofed(stop, signal);
        }
    }

    fn spoofed(&mut self, stop: StopSignal, signal: Received) {
        self.facts.spoofed_signals = self.facts.spoofed_signals.saturating_add(1);
        let now = clock::now();
        if now.since(self.spoofed_window.0) >= Duration::from_secs(1) {
            self.spoofed_window = (now, 0);
        }
        self.spoofed_window.1 = self.spoofed_window.1.saturating_add(1);
        if self.facts.spoofed_signals <= SPOOFED_WRITTEN {
            self.shared.log().write(&Body::SpoofedSignal(SpoofedSignal {
                signal: stop.name().to_owned(),
                sender_pid: signal.sender,
                code: signal.code.name().to_owned(),
                suppressed: 0,
            }));
        }
        if self.spoofed_window.1 > SPOOFED_FLOOD {
            self.facts.detected(
                Rule::SignalFlood,
                self.spoofed_window.1,
                SPOOFED_FLOOD,
                true,
                &self.machine,
                &mut self.shared.log(),
            );
            self.feed(Event::Violation(Rule::SignalFlood));
        }
    }

    fn forward(&self, signal: i32) {
        let Some(child) = self.child.as_ref() else { return };
        if !matches!(self.machine.state(), State::Running | State::Terminating(_)) || self.machine.ended().is_some() {
            return;
        }
        // By number: nix has no real-time signals. The group is the command's own, which is ours to reap, so the number
        // cannot have been reused. ESRCH, nobody left in the group, is no failure.
        let _ = signals::send_group(child.pid, signal);
    }

    fn take_handshake(&mut self) {
        if self.machine.state() == State::Launching || self.facts.launched.is_none() {
            self.read_handshake();
        }
    }

    fn read_handshake(&mut self) {
        let Some(child) = self.child.as_mut() else { return };
        if self.facts.launched.is_some() {
            return;
        }
        let result = child.handshake();
        if result == Handshake::Pending {
            return;
        }
        if let Some(report) = child.report() {
            let outcomes = confine::outcomes(report);
            for (name, outcome) in outcomes {
                self.facts.enforced(name, outcome);
            }
        }
        match result {
            Handshake::Pending => {}
            Handshake::Launched => {
                self.facts.launched = Some(true);
                self.feed(Event::Launched);
            }
            Handshake::Failed(call, errno) => {
                self.facts.launched = Some(false);
                self.facts.error(format!("{call} {}: {} ({errno:?})", self.facts.executable, errno.desc()));
                let failure = if matches!(errno, Errno::ENOENT | Errno::ENOTDIR) && call == "execve" {
                    LaunchFailure::NotFound
                } else {
                    LaunchFailure::NotExecutable
                };
                self.feed(Event::LaunchFailed(failure));
            }
        }
    }

    fn reap(&mut self) {
        let mut ended = None;
        let alone = loop {
            match reap::next() {
                Ok(Some(Reaped::Ended { pid, how, max_rss })) => {
                    self.facts.reaped(max_rss);
                    if let Some(killing) = self.killing.as_mut() {
                        killing.signalled = killing.signalled.map(|n| n.saturating_add(1));
                    }
                    if self.child.as_ref().is_some_and(|c| c.pid == pid) {
                        ended = Some(how);
                    }
                }
                Ok(Some(Reaped::Stopped { pid, signal })) => self.stopped(pid, signal),
                Ok(None) => break false,
                Err(Errno::ECHILD) => break true,
                Err(errno) => {
                    self.facts.error(format!("wait4: {errno:?}"));
                    break false;
                }
            }
        };
        if let Some(how) = ended {
            self.facts.ended = Some(SystemTime::now());
            // Its exec, or the failure of it, came before its end.
            self.read_handshake();
            // And so did all that it wrote: past the limit, that is the verdict.
            self.relay(|relay, _| relay.exceeded());
            let alone = alone || self.strangers_only();
            if !alone {
                // What it left running is watched from here on.
                self.observe();
            }
            self.feed(Event::Ended { how, alone });
        } else if alone || (self.waits_for_the_last() && self.strangers_only()) {
            self.feed(Event::Empty);
        }
    }

    fn waits_for_the_last(&self) -> bool {
        matches!(self.machine.state(), State::Terminating(_) | State::Draining { .. })
    }

    /// Whether the only children left are those that were there before us.
    fn strangers_only(&self) -> bool {
        let mut everything = self.shared.everything();
        everything.has_strangers() && everything.members().is_some_and(<[_]>::is_empty)
    }

    /// Job control: a command stopped from its terminal stops us too, so that the shell that started us gets its prompt.
    fn stopped(&self, pid: i32, signal: i32) {
        let ours = self.child.as_ref().is_some_and(|c| c.pid == pid);
        // Also before the handshake is read: the exec may be over, and its program stopped, before we look.
        if !ours || !self.terminal || self.machine.trigger().is_some() {
            return;
        }
        let group = Pid::from_raw(-pid);
        if self.pid1 {
            // Nobody above could ever continue it; the kernel does the same for an orphaned group (setpgid(2)).
            if signal == libc::SIGTSTP {
                let _ = kill(group, Signal::SIGCONT);
            }
            return;
        }
        let own = nix::unistd::getpgrp().as_raw();
        let _ = limits::take_foreground(own);
        let _ = nix::sys::signal::raise(Signal::SIGSTOP);
        // Continued: in the foreground again, or by `bg`.
        if limits::owns_terminal() {
            let _ = limits::take_foreground(pid);
        }
        let _ = kill(group, Signal::SIGCONT);
    }

    /// What adaptive grace judges by, read when it is needed and not before.
    fn observe(&mut self) {
        if self.machine.trigger().is_some() {
            return;
        }
        let mut everything = self.shared.everything();
        if everything.is_pressed() {
            self.machine.press();
            return;
        }
        self.watch.begin(&mut everything);
        let alive = everything.members().map(|m| u64::try_from(m.len()).unwrap_or(u64::MAX));
        self.facts.peak(alive);
        let counted = self.facts.counted(everything.proc_());
        self.machine.observe(Behaviour {
            network_attempts: counted.network_attempts,
            subprocesses: alive.map(|n| n.saturating_sub(1)),
            memory_growth: self.watch.growth(),
        });
    }

    /// When the loop has something to look at besides the machine's deadlines.
    fn tick(&self) -> Option<Instant> {
        match self.machine.state() {
            State::Launching | State::Running => self.watch.due(),
            State::Terminating(_) => {
                let frozen = (!self.frozen.is_empty()).then_some(self.refreeze);
                self.watch.due().into_iter().chain(frozen).min()
            }
            State::Draining { .. } | State::Scrubbing { .. } | State::Sealing | State::Done(_) => None,
        }
    }

    fn sample(&mut self) {
        match self.machine.state() {
            State::Launching | State::Running => {
                let alive = self.watch.before(&mut self.shared.everything());
                self.facts.peak(alive);
            }
            State::Terminating(_) => self.watch_the_grace(),
            State::Draining { .. } | State::Scrubbing { .. } | State::Sealing | State::Done(_) => {}
        }
    }

    fn watch_the_grace(&mut self) {
        let now = clock::now();
        if !self.frozen.is_empty() {
            self.frozen.keep(&mut self.shared.everything());
            self.refreeze = now.plus(REFREEZE);
        }
        if self.watch.due().is_none_or(|due| now < due) {
            return;
        }
        let detected = self.watch.look(&mut self.shared.everything());
        // The kill before the records: writing one may take as long as the disk likes.
        if let Some(first) = detected.iter().find(|d| d.kill) {
            self.feed(Event::Violation(first.rule));
        }
        for d in &detected {
            self.facts.detected(d.rule, d.value, d.threshold, d.kill, &self.machine, &mut self.shared.log());
        }
        if detected.iter().all(|d| !d.kill) {
            self.record_activity(now);
        }
    }

    fn record_activity(&mut self, now: Instant) {
        let Some((_, trigger)) = self.machine.trigger().filter(|_| self.comprehensive) else { return };
        if now < self.next_activity.unwrap_or_else(|| trigger.plus(ACTIVITY_AFTER)) {
            return;
        }
        self.next_activity = Some(now.plus(ACTIVITY_EVERY));
        let (processes, more) = {
            let mut everything = self.shared.everything();
            let Some(members) = everything.members().map(<[_]>::to_vec) else { return };
            let Some(proc_) = everything.proc_() else { return };
            activity(proc_, &members)
        };
        let record = Activity { at_ms: seal::since_trigger(&self.machine), processes, more };
        self.shared.log().write(&Body::Activity(record));
    }

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
                    (reached, everything.members().map(|m| u64::try_from(m.len()).unwrap_or(u64::MAX)))
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
            Action::Revoke { until } => self.revoke(until),
            Action::Kill { starved, again } => self.kill(starved, again),
            Action::Scrub { until } => {
                self.killed();
                // Nothing of the workload is left; operators' processes go with the namespace.
                let targets = std::mem::take(&mut self.targets);
                self.scrub = Some(job::start(targets, self.before.take(), until, self.scrub_mode));
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
                self.shared.log().seal(record);
                if self.terminal {
                    // The shell that started us finds its terminal as it left it.
                    let _ = limits::take_foreground(nix::unistd::getpgrp().as_raw());
                }
                return Some(Event::Sealed);
            }
            Action::Exit(code) => tracing::debug!(code, "done"),
        }
        None
    }

    fn revoke(&mut self, until: Instant) {
        let now = clock::now();
        // The kill must not wait for it: half of what is left, and never longer than any tree we know of needs.
        let until = now.plus((until.since(now) / 2).min(REVOKE_AT_MOST));
        let mut done = revoke::revoke(&mut self.shared.everything(), until);
        if self.pid1 {
            let (count, bytes) = sockdiag::orphans();
            done.orphans(count, bytes);
        }
        let frozen = done.frozen();
        self.frozen = std::mem::take(&mut done.frozen);
        self.escalated(Escalation {
            files: Some(done.files.to_owned()),
            network: Some(done.network.to_owned()),
            limited: Some(done.limited),
            sockets_cut: Some(done.cut),
            frozen: Some(frozen),
            errors: done.errors,
            ..self.rung("revoke")
        });
    }

    fn kill(&mut self, starved: bool, again: bool) {
        // The signal before anything that allocates: the workload may have left no memory.
        let mut everything = self.shared.everything();
        let mut reached = everything.signal(Signal::SIGKILL);
        if !self.pid1 {
            // Until a pass finds nobody, since whoever forks meanwhile is not in the pass that was.
            let began = clock::now();
            while let Some(found) = everything.members().map(<[_]>::len)
                && found > 0
                && clock::now().since(began) < ONE_KILL
            {
                let more = everything.signal(Signal::SIGKILL).unwrap_or(0);
                reached = reached.map(|n| n.saturating_add(more));
            }
        }
        drop(everything);
        if !again {
            self.killing = Some(Escalation { signalled: Some(0), starved, ..self.rung("kill") });
        }
    }

    /// The kill rung's counts are known now.
    fn killed(&mut self) {
        if let Some(mut killing) = self.killing.take() {
            let left = if self.machine.drained() {
                Some(0)
            } else {
                self.shared.everything().members().map(|m| u64::try_from(m.len()).unwrap_or(u64::MAX))
            };
            killing.survivors = left;
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

const fn stop_signal(signal: i32) -> Option<StopSignal> {
    match signal {
        libc::SIGTERM => Some(StopSignal::Term),
        libc::SIGINT => Some(StopSignal::Int),
        libc::SIGQUIT => Some(StopSignal::Quit),
        libc::SIGHUP => Some(StopSignal::Hup),
        _ => None,
    }
}

/// The kernel's counters, where they are the workload's: as PID 1.
#[must_use]
pub fn counters(pid1: bool, everything: &Everything) -> Option<Counters> {
    everything.proc_().filter(|_| pid1).map(Counters::read)
}

/// Records one outcome by name.
pub type Enforcement = std::collections::BTreeMap<&'static str, Outcome>;
