//! Signals to the whole workload, and to nothing else.
//!
//! Invariant: as PID 1 everything in the PID namespace is the workload's or an operator's; anywhere else only a
//! descendant that was not there before the spawn and carries the workload's mark (`mark`) is ever signalled, through a pidfd and with
//! its start time checked.

mod find;
mod send;

pub use send::{pidfd, pidfd_of_thread};

use super::mark::Mark;
use super::pressure::Pressure;
use super::proc::{Identity, Proc, Stat};
use super::{clock, counters, reap};
use crate::machine::types::Instant;
use crate::switches::without;
use find::{CROWD, REST, shown};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use send::{hold, is_there, send};
use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

/// The processes gracekeeper answers for.
#[derive(Debug)]
pub struct Everything {
    pid1: bool,
    myself: i32,
    proc_: Option<Proc>,
    /// Children that were there before the spawn (a shell that started some and then exec'd us), and what they start.
    strangers: HashSet<Identity>,
    /// Those of them that `/proc` does not show (hidepid, proc(5)), as long as they are our children: by their number alone.
    hidden_strangers: HashSet<i32>,
    /// Whether there were children before the spawn: then others than the workload's may become ours.
    had_children: bool,
    /// So many strangers, and it is time to forget those that are gone.
    crowd: usize,
    mark: Arc<Mark>,
    /// Who had the mark at the last look at everybody, in order: it is looked at once.
    marked: Vec<Identity>,
    table: Vec<Stat>,
    found: Vec<Stat>,
    /// Children of the workload's that are alive and that `/proc` does not show (not PID 1).
    hidden: Vec<i32>,
    /// How many of the workload the last look at everybody found dead (not PID 1).
    dead: usize,
    /// No walk over `/proc` before this: the last one took too long.
    weary_until: Instant,
    patience: Duration,
    /// No look at everybody goes on after this.
    hurry: Option<Instant>,
    pressure: Option<Pressure>,
}

/// How many of the workload there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Count {
    /// Alive; where they are many, `listed`.
    pub alive: u64,
    /// Zombies included; not PID 1, as `alive`.
    pub listed: u64,
    /// Each was looked at: `Everything::last_seen` has them.
    pub seen: bool,
}

/// How much CPU time a walk over `/proc` may take as PID 1, where it is for the record and no kill depends on it.
const PATIENCE: Duration = Duration::from_millis(100);
/// The same under a CPU quota. A workload that has filled the memory limit makes every entry of `/proc` a search for a page to
/// reclaim, and a supervisor that used more than its slice (5 ms, sched_cfs_bandwidth_slice_us) gets no more before the
/// workload's own debt is paid: measured with 1,500 processes under 0.2 CPU, minutes, in which nobody was killed.
const PATIENCE_UNDER_A_QUOTA: Duration = Duration::from_millis(8);
/// How long an activity record may take.
const RECORDING: Duration = Duration::from_millis(20);
/// The same under a CPU quota.
const RECORDING_UNDER_A_QUOTA: Duration = Duration::from_millis(10);
/// So many alive are many, whatever the others are.
const MANY: usize = 64;
/// Looks for somebody who is left before he is taken to be there: each only because somebody died since the last.
const LOOKS: u32 = 8;
impl Everything {
    /// Looks at what is there before the spawn, and makes every orphan come to us (PR_SET_CHILD_SUBREAPER, prctl(2)).
    ///
    /// # Errors
    /// As not PID 1 the errno of opening `/proc`, or of `prctl(2)`, without which an orphan of the workload could not be found; `EIO` where not everybody who
    /// is there can be looked at.
    pub fn new(pid1: bool) -> Result<Self, Errno> {
        let opened = Proc::open();
        if let (Err(errno), false) = (&opened, pid1) {
            // Nobody could be told, and nobody signalled.
            return Err(*errno);
        }
        let proc_ = opened.ok();
        let mark = Arc::new(Mark::new(proc_.as_ref(), pid1));
        let mut everything = Self::alone(pid1, proc_, mark);
        everything.pressure = if pid1 && !without("pressure") { Pressure::open() } else { None };
        if !pid1 {
            nix::sys::prctl::set_child_subreaper(!without("subreaper"))?;
            if !everything.find() {
                // Who was there before could be killed for the workload's.
                return Err(Errno::EIO);
            }
            everything.strangers = everything.found.iter().map(Stat::identity).collect();
            everything.hidden_strangers = everything.hidden.drain(..).collect();
            everything.had_children = reap::has_children();
            everything.mark.expect();
        }
        Ok(everything)
    }

    /// Another one, for whoever cannot wait until this one is free: it knows the same strangers.
    #[must_use]
    pub fn spare(&self) -> Self {
        let spare = Self::alone(self.pid1, Proc::open().ok(), Arc::clone(&self.mark));
        Self {
            strangers: self.strangers.clone(),
            hidden_strangers: self.hidden_strangers.clone(),
            had_children: self.had_children,
            crowd: self.crowd,
            patience: self.patience,
            ..spare
        }
    }

    /// Nobody is known yet.
    fn alone(pid1: bool, proc_: Option<Proc>, mark: Arc<Mark>) -> Self {
        Self {
            pid1,
            myself: nix::unistd::getpid().as_raw(),
            proc_,
            strangers: HashSet::new(),
            hidden_strangers: HashSet::new(),
            had_children: false,
            crowd: CROWD,
            mark,
            marked: Vec::new(),
            table: Vec::new(),
            found: Vec::new(),
            hidden: Vec::new(),
            dead: 0,
            weary_until: Instant::default(),
            patience: PATIENCE,
            hurry: None,
            pressure: None,
        }
    }

    /// Whether the memory limit is used up, so that nothing but the kill can be afforded (as PID 1).
    #[must_use]
    pub fn is_pressed(&self) -> bool {
        self.pressure.as_ref().is_some_and(Pressure::is_high)
    }

    /// Whether there is a memory limit (as PID 1).
    #[must_use]
    pub const fn has_a_limit(&self) -> bool {
        self.pressure.is_some()
    }

    /// There is a CPU quota: what PID 1 uses is taken from what it needs for the kill.
    pub const fn under_a_quota(&mut self) {
        self.patience = PATIENCE_UNDER_A_QUOTA;
    }

    /// No look at everybody goes on after this, until it is taken back: the kill would come late.
    pub const fn hurry(&mut self, until: Option<Instant>) {
        self.hurry = until;
    }

    /// The pid that was given last, where all of them are the workload's (as PID 1): as long as it is the same nobody was born.
    #[must_use]
    pub fn last_pid(&self) -> Option<u64> {
        self.proc_.as_ref().filter(|_| self.pid1).and_then(counters::last_pid)
    }

    /// Whether we are PID 1.
    #[must_use]
    pub const fn is_pid1(&self) -> bool {
        self.pid1
    }

    /// How long an activity record may take: the loop does nothing else meanwhile.
    #[must_use]
    pub const fn recording(&self) -> Duration {
        if self.patience.as_millis() < PATIENCE.as_millis() { RECORDING_UNDER_A_QUOTA } else { RECORDING }
    }

    /// Whether this PID namespace's `/proc` can be read.
    #[must_use]
    pub const fn proc_(&self) -> Option<&Proc> {
        self.proc_.as_ref()
    }

    /// Whether other children than the workload's were there before: then ECHILD cannot tell that the workload is gone.
    #[must_use]
    pub const fn has_strangers(&self) -> bool {
        self.had_children
    }

    /// What the workload is told by.
    #[must_use]
    pub fn mark(&self) -> &Mark {
        &self.mark
    }

    /// Whether the number is still that process's, and the process the workload's; as PID 1 there is nobody else's. For calls that
    /// take a number: while everything is stopped and nobody reaps, it stays that.
    #[must_use]
    pub fn is_there(&self, stat: &Stat) -> bool {
        self.pid1 || self.proc_.as_ref().is_some_and(|proc_| is_there(proc_, &self.mark, stat.identity()).is_ok())
    }

    /// How many there are at least, as the last look at everybody found, that `/proc` does not show: they can be killed, and nothing else.
    #[must_use]
    pub fn hidden(&self) -> u64 {
        u64::try_from(self.hidden.len()).unwrap_or(u64::MAX)
    }

    /// Everything of the workload that is alive, as one pass over `/proc` sees it; `None` where `/proc` cannot be read, or,
    /// as PID 1, not in any reasonable time.
    pub fn members(&mut self) -> Option<&[Stat]> {
        self.proc_.as_ref()?;
        if self.pid1 && (clock::now() < self.weary_until || self.is_pressed()) {
            return None;
        }
        self.find().then_some(&self.found)
    }

    /// Whether nobody of the workload is left, where the kernel does not say so because there are others (not PID 1).
    ///
    /// That one pass finds nobody alive is not enough: one that is listed may fork and be dead when it is looked at, and its child
    /// was not there when the names were. That child is there for the next pass, and as long as nobody reaps, the dead only become
    /// more: the second of two passes that find as many of them has missed nobody.
    pub fn is_gone(&mut self) -> bool {
        let mut dead = None;
        for _ in 0..LOOKS {
            if self.pid1 || !self.find() || !self.found.is_empty() || !self.hidden.is_empty() {
                return false;
            }
            if dead == Some(self.dead) || without("second_look") {
                return true;
            }
            dead = Some(self.dead);
        }
        false
    }

    /// How many of the workload are alive; `None` where they cannot be listed.
    pub fn alive(&mut self) -> Option<u64> {
        let shown = self.members().map(|found| u64::try_from(found.len()).unwrap_or(u64::MAX))?;
        Some(shown.saturating_add(self.hidden()))
    }

    /// How many of the workload are there, without a look at each where they are many: as PID 1 the names in `/proc` are the
    /// processes, zombies included, and nobody else is looked at once more than `MANY` are known to be alive. A look at each of a
    /// thousand takes 20 ms, in which nobody is asked to end. `None` where they could not be counted to the end.
    pub fn count(&mut self) -> Option<Count> {
        if !self.pid1 {
            let alive = self.alive()?;
            return Some(Count { alive, listed: alive, seen: true });
        }
        let proc_ = self.proc_.as_ref()?;
        if clock::now() < self.weary_until || self.is_pressed() {
            return None;
        }
        self.table.clear();
        self.found.clear();
        let (mut names, mut many, mut known) = (0u64, false, true);
        let until = clock::used() + self.patience;
        let whole = proc_.each_pid(|pid| {
            names += 1;
            if !many && pid != self.myself {
                let seen = shown(proc_, pid);
                known &= seen.is_ok();
                self.found.extend(seen.ok().flatten().filter(|stat| !stat.is_dead()));
                many = self.found.len() > MANY;
            }
            // A name alone is cheaper than the question.
            (many && !names.is_multiple_of(16)) || clock::used() < until
        });
        if !(whole && known) {
            self.weary_until = clock::now().plus(REST);
            return None;
        }
        let listed = names.saturating_sub(1);
        let alive = if many { listed } else { u64::try_from(self.found.len()).unwrap_or(u64::MAX) };
        Some(Count { alive, listed, seen: !many })
    }

    /// Who was alive at the last look at everybody.
    #[must_use]
    pub fn last_seen(&self) -> &[Stat] {
        &self.found
    }

    /// Sends `signal` to everything. As PID 1 that is one call that no fork outruns (kill(2), pid -1: everything but
    /// PID 1 itself); else one pass, to be repeated until it finds nobody. How many were reached, where it is known.
    pub fn signal(&mut self, signal: Signal) -> Option<u64> {
        if signal == Signal::SIGKILL && without("kill") {
            return Some(0);
        }
        if self.pid1 {
            // ESRCH, nobody there, is an answer and no failure.
            let _ = kill(Pid::from_raw(-1), signal);
            return None;
        }
        self.find();
        let mut reached = 0;
        for &pid in &self.hidden {
            // A child of ours: the number is nobody else's before we reap it.
            reached += u64::from(kill(Pid::from_raw(pid), signal).is_ok());
        }
        for stat in &self.found {
            if let Some(proc_) = &self.proc_
                && send(proc_, &self.mark, stat.identity(), signal).is_ok()
            {
                reached += 1;
            }
        }
        Some(reached)
    }

    /// Sends SIGSTOP to everything, and to each thread that it has not stopped; looks no longer than `until`. Whether all of it was
    /// found still; `None` where it cannot be listed.
    pub fn stop(&mut self, until: Instant) -> Option<bool> {
        self.signal(Signal::SIGSTOP);
        self.members()?;
        let proc_ = self.proc_.as_ref()?;
        let mut still = self.hidden.is_empty();
        for stat in &self.found {
            still &= hold(proc_, &self.mark, stat, until);
        }
        Some(still)
    }

    /// Stops everybody who is not stopped, in passes until one finds nobody, or for as long as `at_most`. Who they were.
    pub fn pause(&mut self, at_most: Duration) -> Vec<Identity> {
        let until = clock::now().plus(at_most);
        let mut paused = Vec::new();
        loop {
            let mut still = self.find();
            let Some(proc_) = &self.proc_ else { return paused };
            for stat in &self.found {
                // The threads by themselves after the process, and not at once: it stops most of them.
                let who = stat.identity();
                if proc_.is_still(stat.pid, stat) && (stat.threads <= 1 || hold(proc_, &self.mark, stat, until)) {
                    continue;
                }
                still = false;
                if send(proc_, &self.mark, who, Signal::SIGSTOP).is_ok() && !paused.contains(&who) {
                    paused.push(who);
                }
            }
            if still || clock::now() >= until {
                return paused;
            }
            clock::pause(Duration::from_micros(200));
        }
    }

    /// Lets those go on.
    pub fn resume(&self, paused: &[Identity]) {
        for who in paused {
            if let Some(proc_) = &self.proc_ {
                // Who is gone meanwhile needs nothing.
                let _ = send(proc_, &self.mark, *who, Signal::SIGCONT);
            }
        }
    }

    /// Whether anybody besides us is left in the PID namespace, operators' processes included (PID 1 only).
    #[must_use]
    pub fn namespace_is_empty(&self) -> bool {
        self.pid1 && kill(Pid::from_raw(-1), None) == Err(Errno::ESRCH)
    }

    /// Whether `pid`'s chain of parents ends at us: a process of the workload. `None` where it is gone, or where the
    /// chain could not be followed.
    #[must_use]
    pub fn is_descendant(&self, pid: i32) -> Option<bool> {
        let proc_ = self.proc_.as_ref()?;
        let mut at = pid;
        // A chain longer than this is not a chain but a race with reused pids.
        for _ in 0..4096 {
            if at == self.myself {
                return Some(true);
            }
            if at == 0 {
                return Some(false);
            }
            let stat = proc_.stat(at).ok()?;
            if self.strangers.contains(&stat.identity()) || (at == pid && !self.mark.is_on(proc_, &stat).ok()?) {
                return Some(false);
            }
            at = stat.ppid;
        }
        None
    }
}
