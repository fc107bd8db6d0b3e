//! The loop: poll, turn what the kernel says into an event, step the machine, perform each action, feed the result back.
//! No sleeping, no decisions, and no disk: what one is behind is done by threads that are not waited for.

mod ladder;
mod looking;
mod stops;

use crate::audit::record::Escalation;
use crate::confine::{self, Step};
use crate::kernel::outcome::Outcome;
use crate::kernel::reap::{self, Reaped};
use crate::kernel::signals::Signals;
use crate::kernel::sockdiag::Socket;
use crate::kernel::spawn::{Child, Handshake};
use crate::kernel::{clock, memory, terminal};
use crate::machine::events::Event;
use crate::machine::status::LaunchFailure;
use crate::machine::step::{Machine, State};
use crate::machine::types::{Ended, Instant};
use crate::relay::Relay;
use crate::revoke::Frozen;
use crate::scrub::job::Job;
use crate::scrub::leftovers::Before;
use crate::scrub::targets::Target;
use crate::seal;
use crate::settings::ScrubMode;
use crate::shared::Shared;
use crate::switches::without;
use crate::watch::sample::Watch;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// Children heard in one turn of the loop: who dies, or stops and goes on, as fast as we listen must not keep the loop from its
/// deadlines.
const REAPED_AT_ONCE: u32 = 4096;
/// How long PID 1 waits for several deaths at once.
const DEATHS: Duration = Duration::from_micros(300);

/// What a process that SIGKILL ended died of.
const KILLED: u8 = 9;

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
    /// Connections that were there before the spawn, and are not the workload's.
    pub sockets_before: Vec<Socket>,
    /// Whether the revoke rung left everything stopped.
    pub frozen: Frozen,
    /// The samples.
    pub watch: Watch,
    /// How many were alive when adaptive grace was last judged, until the term rung has used it.
    pub counted: Option<u64>,
    /// Whether the activity is recorded.
    pub comprehensive: bool,
    /// When the next activity record is due, after the first.
    pub next_activity: Option<Instant>,
    /// When the frozen are looked at next.
    pub refreeze: Instant,
    /// Spoofed signals of the current second, and when it began.
    pub spoofed_window: (Instant, u64),
    /// It was stopped with its command, and had the terminal for a moment when it was continued: what was typed then is the operator's.
    pub continued: bool,
    /// When everything was killed.
    pub killed_at: Option<Instant>,
    /// Children may be left that have something to say.
    pub more_to_reap: bool,
}

impl Supervisor {
    /// Runs until the seal is written; the exit status.
    pub fn run(mut self: Box<Self>) -> u8 {
        loop {
            if let State::Done(code) = self.machine.state() {
                return code;
            }
            let due = self.machine.deadline();
            let tick = self.tick();
            self.let_them_die();
            let asked = self.wait(due, tick);
            let woken = clock::now();
            // Signals before reaping: a sender that is still a zombie can be told from a stranger.
            self.take_signals();
            self.take_handshake();
            self.relay(Relay::ready);
            self.reap();
            if self.scrub.as_ref().is_some_and(Job::is_done) && self.output_settled() {
                self.feed(Event::Scrubbed);
            }
            let is_due = due.is_some_and(|due| clock::now() >= due);
            if is_due {
                self.observe();
            }
            // Every wake that was asked for says how late we are, not only the machine's own: between two of those there may be seconds.
            let asked = asked.filter(|_| is_due || !without("own_lateness"));
            if is_due || asked.is_some_and(|asked| woken >= asked) {
                self.feed(Event::Woke { late: asked.map_or(Duration::ZERO, |asked| woken.since(asked)) });
            }
            if tick.is_some_and(|tick| clock::now() >= tick) {
                self.sample();
            }
        }
    }

    /// Each death would wake us, on a CPU that the others need to die. So a few are waited for together: the end is seen an eighth
    /// later at most, and far less than that where they are many.
    fn let_them_die(&self) {
        if let (State::Draining { .. }, Some(since)) = (self.machine.state(), self.killed_at) {
            let pause = (clock::now().since(since) / 8).min(DEATHS);
            if pause > clock::SHORTEST {
                clock::pause(pause);
            }
        }
    }

    /// Waits for whatever comes first; when it had asked to be woken, if at all. What is the machine's (`due`) may have passed
    /// while the loop was at work, which makes it late; to what is not it comes when it can.
    fn wait(&mut self, due: Option<Instant>, tick: Option<Instant>) -> Option<Instant> {
        if matches!(self.machine.state(), State::Done(_)) {
            return None;
        }
        let began = clock::now();
        let patience = self.relay.as_ref().and_then(Relay::due).filter(|_| !self.output_settled());
        let now = self.more_to_reap.then_some(began);
        let own = tick.into_iter().chain(patience).chain(now).map(|at| at.max(began));
        let asked = due.into_iter().chain(own).min();
        let timeout = asked.map(|at| at.since(began));
        let mut fds = vec![self.signals.poll_fd()];
        if self.machine.state() == State::Launching
            && let Some(child) = &self.child
        {
            fds.push(PollFd::new(child.fd(), PollFlags::POLLIN));
        }
        if let Some(fd) = self.scrub.as_ref().filter(|s| !s.is_done()).and_then(Job::fd) {
            fds.push(PollFd::new(fd, PollFlags::POLLIN));
        } else if self.scrub.is_some() && self.output_settled() {
            return None;
        }
        fds.extend(self.relay.iter().flat_map(Relay::fds));
        if let Err(errno) = clock::wait(&mut fds, timeout) {
            self.facts.error(format!("ppoll: {errno:?}"));
            // Without a wait the loop cannot see its deadlines: end it now rather than spin or hang.
            self.feed(Event::Fault);
        }
        asked
    }

    /// Lets the relay look at its pipes, and acts on what it says.
    fn relay(&mut self, look: fn(&mut Relay, Instant) -> Option<Event>) {
        if let Some(event) = self.relay.as_mut().and_then(|relay| look(relay, clock::now())) {
            self.observe();
            self.feed(event);
        }
    }

    /// Whether the output is where it belongs, or its readers had their time.
    fn output_settled(&self) -> bool {
        self.relay.as_ref().is_none_or(|relay| relay.settled(clock::now()))
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
        let outcomes = child.report().map(confine::outcomes);
        if let Some(outcomes) = &outcomes {
            // Before its exec: until then only it is the workload.
            let took = |step: Step| outcomes.contains(&(step.name(), Outcome::Enforced));
            self.shared.everything().mark().confined(took(Step::SeccompFilter), took(Step::NoNewPrivs));
        }
        if result == Handshake::Pending {
            return;
        }
        if outcomes.is_none() {
            // Nothing of it ever ran, and its number will be free.
            self.shared.everything().mark().expect();
        }
        for (name, outcome) in outcomes.unwrap_or_default() {
            self.facts.enforced(name, outcome);
        }
        match result {
            Handshake::Pending => {}
            Handshake::Launched => {
                self.facts.launched = Some(true);
                self.feed(Event::Launched);
                memory::give_back();
            }
            Handshake::Failed(call, errno) => {
                self.facts.launched = Some(false);
                let what = if call == "chdir" { &self.facts.workdir } else { &self.facts.executable };
                self.facts.error(format!("{call} {what}: {} ({errno:?})", errno.desc()));
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
        let mut left = REAPED_AT_ONCE;
        self.more_to_reap = false;
        let alone = loop {
            if left == 0 {
                self.more_to_reap = true;
                break false;
            }
            left -= 1;
            match reap::next(self.killing.is_some()) {
                Ok(Some(Reaped::Ended { pid, how, thread, max_rss })) => {
                    self.facts.reaped(max_rss);
                    // Who was dead long before and not waited for was not killed by us, nor is a thread anybody by itself.
                    let killed = (how == Ended::Signaled(KILLED) && !thread) || without("true_count");
                    // Who was held tells its tracer first, and is then there for its parent to hear, or for us in its stead.
                    let twice = self.killing.is_some() && self.frozen.holds(pid) && self.is_shown(pid);
                    if let Some(killing) = self.killing.as_mut().filter(|_| killed && !twice) {
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

    fn is_shown(&self, pid: i32) -> bool {
        self.shared.everything().proc_().is_some_and(|proc_| proc_.stat(pid).is_ok())
    }

    fn waits_for_the_last(&self) -> bool {
        matches!(self.machine.state(), State::Terminating(_) | State::Draining { .. })
    }

    /// Whether the only children left are those that were there before us.
    fn strangers_only(&self) -> bool {
        let mut everything = self.shared.everything();
        everything.has_strangers() && everything.is_gone()
    }

    /// Job control: a command stopped from its terminal stops us too, so that the shell that started us gets its prompt.
    fn stopped(&mut self, pid: i32, signal: i32) {
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
        // The deadline is kept also where a timer of the workload's own continues the command, which nobody watches then.
        let deadline = self.machine.deadline().filter(|_| !without("stopped_deadline"));
        let Ok(_alarm) = deadline.map(clock::continue_at).transpose() else {
            // Then it does not stand still.
            let _ = kill(group, Signal::SIGCONT);
            return;
        };
        let own = nix::unistd::getpgrp().as_raw();
        // Who is not of that group must not go on while nobody watches the deadline.
        let paused = if without("job_control") { Vec::new() } else { self.shared.everything().pause(ladder::ONE_KILL) };
        let _ = terminal::take_foreground(own);
        let _ = nix::sys::signal::raise(Signal::SIGSTOP);
        self.continued = true;
        // Continued: in the foreground again, by `bg`, or because its time is over.
        if terminal::owns_terminal() {
            let _ = terminal::take_foreground(pid);
        }
        let _ = kill(group, Signal::SIGCONT);
        self.shared.everything().resume(&paused);
    }
}

/// Records one outcome by name.
pub type Enforcement = std::collections::BTreeMap<&'static str, Outcome>;
