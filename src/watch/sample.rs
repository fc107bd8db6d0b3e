//! The samples: one a second before the trigger, every 100 or 20 ms in the grace.
//!
//! Counters, not tracing: nothing the workload does waits for a sample. As PID 1 the namespaces' counters are the workload's;
//! elsewhere only its own processes and sockets count. Invariant: a sample that takes long makes the next one later, so that
//! watching never takes more than a quarter of a CPU, whatever the workload is.

use super::rules::{Detected, Reading, Rules};
use crate::kernel::counters::Counters;
use crate::kernel::kill::{Count, Everything};
use crate::kernel::outcome::{Cause, Outcome};
use crate::kernel::proc::{Identity, Stat};
use crate::kernel::sockdiag::{self, Socket, state};
use crate::kernel::{clock, cpu, sockets};
use crate::machine::types::Instant;
use crate::settings::Monitoring;
use std::collections::{HashMap, HashSet};
use std::time::Duration;

/// How much CPU time counting the processes may take.
const COUNTING: Duration = Duration::from_millis(2);
const BEFORE: Duration = Duration::from_secs(1);
/// How long it may take to see whose the sockets are.
const WHOSE: Duration = Duration::from_millis(20);
/// How much longer each pause is than the one before while the memory limit is used up. Under a CPU quota PID 1 then has what was
/// left to its CPU, 1 ms (min_cfs_rq_runtime), and gets no more before the workload has paid for the time that it spends in the
/// kernel looking for memory. A look takes 0.08 ms of it, and the kill at the deadline needs the rest.
const LONGER: u32 = 4;
/// A walk over every process is made no more often than this.
const WALK: Duration = Duration::from_millis(100);

/// A listening socket that is told from another by where it listens.
type Listener = (u8, u16, [u8; 16]);

/// The samples of one run.
#[derive(Debug)]
pub struct Watch {
    mode: Monitoring,
    pid1: bool,
    /// Thousandths of a CPU.
    cpus: u64,
    next: Instant,
    pause: Duration,
    walked: Option<Instant>,
    /// What each process had at the last walk: CPU time and resident memory.
    known: HashMap<Identity, (Duration, u64)>,
    alive: Option<u64>,
    created: u64,
    cpu: Duration,
    memory: u64,
    listeners: Option<HashSet<Listener>>,
    /// As PID 1: the network attempts counted when nobody of the workload was opening a connection.
    quiet: Option<u64>,
    rules: Option<Rules>,
    /// The fastest growth of memory before the trigger, in bytes a second.
    growth: Option<u64>,
}

impl Watch {
    /// Before the spawn: reads what is available.
    #[must_use]
    pub fn new(mode: Monitoring, pid1: bool) -> Self {
        Self {
            mode,
            pid1,
            cpus: if mode == Monitoring::Off { 0 } else { cpu::available() },
            next: clock::now().plus(BEFORE),
            pause: BEFORE,
            walked: None,
            known: HashMap::new(),
            alive: None,
            created: 0,
            cpu: Duration::ZERO,
            memory: 0,
            listeners: None,
            quiet: None,
            rules: None,
            growth: None,
        }
    }

    /// What was counted before the workload ran.
    pub fn baseline(&mut self, counters: Option<&Counters>) {
        self.quiet = counters.and_then(|counters| counters.network_attempts);
    }

    /// Whether there are samples at all.
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.mode != Monitoring::Off
    }

    /// What the record says of it.
    #[must_use]
    pub const fn outcome(&self) -> Outcome {
        match (self.mode, self.pid1) {
            (Monitoring::Off, _) => Outcome::Unavailable(Cause::because("monitoring is off")),
            (_, true) => Outcome::Enforced,
            (_, false) => Outcome::Degraded(Cause::because("not PID 1: traffic cannot be attributed")),
        }
    }

    /// When the next sample is due.
    #[must_use]
    pub fn due(&self) -> Option<Instant> {
        self.is_on().then_some(self.next)
    }

    /// The fastest growth of memory before the trigger, in bytes a second; `None` where there were not two samples.
    #[must_use]
    pub const fn growth(&self) -> Option<u64> {
        self.growth
    }

    /// A sample before the trigger; how many are alive.
    pub fn before(&mut self, everything: &mut Everything) -> Option<u64> {
        let began = clock::now();
        if everything.is_pressed() {
            self.alive = None;
            self.pause = self.pause.saturating_mul(LONGER);
            self.again(began, self.pause);
            return None;
        }
        self.pause = BEFORE;
        let (memory, walked) = (self.memory, self.walked);
        self.look_at_all(everything);
        if let Some(walked) = walked {
            let gap = u64::try_from(began.since(walked).as_millis()).unwrap_or(u64::MAX).max(1);
            let rate = self.memory.saturating_sub(memory).saturating_mul(1000) / gap;
            self.growth = self.growth.max(Some(rate));
        }
        self.again(began, BEFORE);
        self.alive
    }

    /// The sample at the trigger, before anything is sent: what the grace is measured against. Where `count` has not looked at
    /// everybody, since they are many, what each has used is read right after the polite request, by the first sample of the grace.
    pub fn begin(&mut self, everything: &mut Everything, count: Option<Count>) {
        if !self.is_on() || self.rules.is_some() {
            return;
        }
        let began = clock::now();
        if everything.is_pressed() {
            return;
        }
        let seen = count.is_some_and(|count| count.seen);
        if seen {
            self.walk(everything.last_seen());
        }
        self.listeners = sockdiag::tcp(&[state::LISTEN]).ok().map(|all| all.iter().map(listener).collect());
        let mut base = self.read(everything);
        // What later counts are compared with is whole and in their unit, or nothing is compared with it.
        base.alive = count.map(|count| count.listed);
        if !seen {
            (base.cpu, base.memory) = (None, None);
        }
        if !seen && !self.pid1 {
            base.created = None;
        }
        self.rules = Some(Rules::new(self.mode == Monitoring::Aggressive, self.cpus, &base));
        self.again(began, self.interval());
        if !seen {
            (self.next, self.walked) = (clock::now(), None);
        }
    }

    /// How many were alive when everybody was last looked at.
    #[must_use]
    pub const fn alive(&self) -> Option<u64> {
        self.alive
    }

    /// A sample of the grace.
    pub fn look(&mut self, everything: &mut Everything) -> Vec<Detected> {
        let began = clock::now();
        if everything.is_pressed() {
            self.again(began, self.interval());
            return Vec::new();
        }
        if self.rules.is_none() {
            // There was no memory for it at the trigger: what was missed is not guessed.
            let count = everything.count();
            self.begin(everything, count);
            return Vec::new();
        }
        if self.walked.is_none_or(|walked| began.since(walked) >= WALK) {
            self.look_at_all(everything);
        }
        let reading = self.read(everything);
        self.again(began, self.interval());
        self.rules.as_mut().map(|rules| rules.look(&reading)).unwrap_or_default()
    }

    const fn interval(&self) -> Duration {
        match self.mode {
            Monitoring::Aggressive => Duration::from_millis(20),
            Monitoring::Standard | Monitoring::Off => Duration::from_millis(100),
        }
    }

    fn again(&mut self, began: Instant, interval: Duration) {
        let now = clock::now();
        self.next = began.plus(interval).max(now.plus(now.since(began) * 3));
    }

    fn look_at_all(&mut self, everything: &mut Everything) {
        match everything.members() {
            Some(members) => self.walk(members),
            None => self.alive = None,
        }
    }

    /// One pass over the processes: how many, what they used, how they grew. A process that is seen for the first time adds
    /// its CPU time and not its memory, which a fork would count twice.
    fn walk(&mut self, members: &[Stat]) {
        let now = clock::now();
        let mut seen = HashMap::with_capacity(members.len());
        for stat in members {
            let who = stat.identity();
            let has = (cpu_of(stat), stat.rss_pages.saturating_mul(PAGE));
            let (before, grown) = match self.known.get(&who) {
                Some(&(cpu, rss)) => (cpu, i128::from(has.1) - i128::from(rss)),
                None => {
                    self.created = self.created.saturating_add(1);
                    (Duration::ZERO, 0)
                }
            };
            self.cpu = self.cpu.saturating_add(has.0.saturating_sub(before));
            let memory = i128::from(self.memory).saturating_add(grown).max(0);
            self.memory = u64::try_from(memory).unwrap_or(u64::MAX);
            seen.insert(who, has);
        }
        self.alive = u64::try_from(seen.len()).ok();
        self.known = seen;
        self.walked = Some(now);
    }

    fn read(&mut self, everything: &Everything) -> Reading {
        let Some(proc_) = everything.proc_() else { return Reading { at: clock::now(), ..Reading::default() } };
        let counters = if self.pid1 { Counters::read(proc_) } else { Counters::default() };
        let seen = self.sockets(counters.network_attempts);
        let new = |s: &&Socket| {
            s.state == state::LISTEN && self.listeners.as_ref().is_some_and(|was| !was.contains(&listener(s)))
        };
        let opening = |s: &&Socket| s.state == state::SYN_SENT && !s.to_loopback();
        let (listeners, peers) = match &seen {
            Some(all) if all.iter().any(|s| new(&s) || opening(&s)) => {
                let own = self.own(everything);
                let ours = |s: &&Socket| self.pid1 || own.as_ref().is_some_and(|own| own.contains(&u64::from(s.inode)));
                let peers: HashSet<[u8; 16]> = all.iter().filter(opening).filter(ours).map(|s| s.destination).collect();
                // Where it took too long to see whose they are nothing is known.
                let known = self.pid1 || own.is_some();
                let count = known.then(|| all.iter().filter(new).filter(ours).count());
                (count, known.then_some(peers.len()))
            }
            Some(_) => (Some(0), Some(0)),
            None => (None, None),
        };
        // As PID 1 every process is the workload's, and counting the names is cheaper than reading them.
        let alive = if self.pid1 {
            let mut names = 0u64;
            let until = clock::used() + COUNTING;
            let whole = proc_.each_pid(|_| {
                names += 1;
                !names.is_multiple_of(16) || clock::used() < until
            });
            // Where the memory is gone even names take long; what was counted so far is a lower bound, as those alive are.
            if whole { Some(names.saturating_sub(1)) } else { self.alive.max(Some(names)) }
        } else {
            self.alive
        };
        Reading {
            at: clock::now(),
            bytes_sent: counters.bytes_sent,
            created: if self.pid1 { counters.last_pid } else { self.walked.map(|_| self.created) },
            alive,
            attempts: counters.network_attempts,
            peers: peers.and_then(|n| u64::try_from(n).ok()),
            listeners: listeners.and_then(|n| u64::try_from(n).ok()).filter(|_| self.listeners.is_some()),
            cpu: self.alive.map(|_| self.cpu),
            memory: self.alive.map(|_| self.memory),
        }
    }

    /// The sockets that listen and those that are being connected. The kernel finds the second kind by a walk over the table of all
    /// connections, of whatever namespace (0.7 ms for the table of a machine of 24 GB, an empty one too). Each first SYN that leaves is
    /// counted, so while the count is what it was there is nobody new; a socket that is caught before its SYN left (or that waits for
    /// its first write, TCP_FASTOPEN_CONNECT) moves the count later.
    fn sockets(&mut self, attempts: Option<u64>) -> Option<Vec<Socket>> {
        if attempts.is_some() && attempts == self.quiet {
            return sockdiag::tcp(&[state::LISTEN]).ok();
        }
        let seen = sockdiag::tcp(&[state::LISTEN, state::SYN_SENT]).ok()?;
        if seen.iter().all(|s| s.state != state::SYN_SENT) {
            self.quiet = attempts;
        }
        Some(seen)
    }

    /// The sockets of the workload's own processes; `None` as PID 1, where all are taken for its own, and where their tables are too
    /// long for the time there is.
    fn own(&self, everything: &Everything) -> Option<HashSet<u64>> {
        if self.pid1 {
            return None;
        }
        let proc_ = everything.proc_()?;
        let mut own = HashSet::new();
        let until = clock::now().plus(WHOSE);
        let whole = self.known.keys().all(|who| {
            sockets::inodes(proc_, who.pid, until, |inode| {
                own.insert(inode);
            })
        });
        whole.then_some(own)
    }
}

/// The page size of both architectures' usual kernels; a larger one makes the growth look smaller than it is.
const PAGE: u64 = 4096;

/// The user and system time of a process; `/proc` gives hundredths of a second on every Linux (USER_HZ).
#[must_use]
pub fn cpu_of(stat: &Stat) -> Duration {
    Duration::from_millis(stat.utime.saturating_add(stat.stime).saturating_mul(10))
}

const fn listener(socket: &Socket) -> Listener {
    (socket.family, socket.port, socket.source)
}
