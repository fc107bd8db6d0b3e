//! The samples: one a second before the trigger, every 100 or 20 ms in the grace.
//!
//! Counters, not tracing: nothing the workload does waits for a sample. As PID 1 the namespaces' counters are the workload's;
//! elsewhere only its own processes and sockets count. Invariant: a sample that takes long makes the next one later, so that
//! watching never takes more than a quarter of a CPU, whatever the workload is.

use super::rules::{Detected, Reading, Rules};
use crate::kernel::counters::Counters;
use crate::kernel::kill::{Count, Everything};
use crate::kernel::outcome::{Cause, Outcome};
use crate::kernel::proc::{Identity, Proc, Stat};
use crate::kernel::sockdiag::{self, Socket, state};
use crate::kernel::{clock, cpu, limits, sockets};
use crate::machine::types::Instant;
use crate::settings::Monitoring;
use crate::switches::without;
use nix::errno::Errno;
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
/// How long nothing can be seen before that is taken for the purpose of it. Honest programs meet their limit for a moment.
const BLIND: Duration = Duration::from_millis(500);
/// A walk over every process is made no more often than this.
const WALK: Duration = Duration::from_millis(100);

/// Inodes of the workload's sockets that are kept.
const HELD: usize = 16_384;

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
    /// Since when no sample of the grace could be taken, the memory limit being used up.
    pressed: Option<Instant>,
    walked: Option<Instant>,
    /// What each process had at the last walk.
    known: HashMap<Identity, Had>,
    alive: Option<u64>,
    /// Threads alive, but for the first of each process.
    threads: Option<u64>,
    created: u64,
    cpu: Duration,
    memory: u64,
    listeners: Option<HashSet<Listener>>,
    /// The UIDs that the workload's sockets can have; `None` for any.
    uids: Option<[u32; 3]>,
    /// Listeners of a UID that the workload cannot have, which it did not hold either when they were looked for after the last walk, by
    /// their inodes.
    foreign: HashSet<u32>,
    /// Listeners of a UID that it can have, and that nobody was seen to hold: a neighbour's, or one in flight between two of its own
    /// descriptors (SCM_RIGHTS). Each look looks for them again.
    unheld: HashSet<u32>,
    /// Whether the last look found one that was not yet among them.
    strange: bool,
    /// Sockets that it was seen to hold.
    held: HashSet<u64>,
    /// As PID 1: the connections counted as opened when nobody of the workload was opening one.
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
            pressed: None,
            walked: None,
            known: HashMap::new(),
            alive: None,
            threads: None,
            created: 0,
            cpu: Duration::ZERO,
            memory: 0,
            listeners: None,
            uids: limits::uids(),
            foreign: HashSet::new(),
            unheld: HashSet::new(),
            strange: false,
            held: HashSet::new(),
            quiet: None,
            rules: None,
            growth: None,
        }
    }

    /// What was counted before the workload ran.
    pub fn baseline(&mut self, counters: Option<&Counters>) {
        self.quiet = counters.and_then(|counters| counters.traffic).map(|traffic| traffic.opened);
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
            (base.cpu, base.memory, base.threads) = (None, None, None);
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
            self.pressed = self.pressed.or(Some(began));
            self.again(began, self.interval());
            return Vec::new();
        }
        self.pressed = None;
        if self.rules.is_none() {
            // There was no memory for it at the trigger: what was missed is not guessed.
            let count = everything.count();
            self.begin(everything, count);
            return Vec::new();
        }
        if self.walked.is_none_or(|walked| began.since(walked) >= WALK) {
            self.look_at_all(everything);
        }
        let mut reading = self.read(everything);
        if self.strange && self.walked.is_none_or(|walked| walked < began) {
            // It may be in the hands of somebody who is younger than the last walk.
            self.look_at_all(everything);
            reading = self.read(everything);
        }
        if self.rules.as_ref().is_some_and(|rules| rules.may_be_threads(&reading)) {
            self.look_at_all(everything);
            reading.threads = self.threads;
        }
        self.again(began, self.interval());
        self.rules.as_mut().map(|rules| rules.look(&reading)).unwrap_or_default()
    }

    /// Whether no sample of the grace could be taken for so long that who fills the memory limit may do so to be unseen.
    #[must_use]
    pub fn is_blind(&self) -> bool {
        self.pressed.is_some_and(|since| clock::now().since(since) >= BLIND) && !without("pressed_grace")
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
            None => (self.alive, self.threads) = (None, None),
        }
    }

    /// One pass over the processes: how many, what they used, how they grew. Of a process's memory counts what it has above the least
    /// that it was seen with: what a fork shares with its parent counts for neither, and what a process had goes with it.
    fn walk(&mut self, members: &[Stat]) {
        let now = clock::now();
        let mut seen = HashMap::with_capacity(members.len());
        let (mut memory, mut threads) = (0u64, 0u64);
        for stat in members {
            let who = stat.identity();
            let rss = stat.rss_pages.saturating_mul(PAGE);
            let before = self.known.get(&who).copied().unwrap_or_else(|| {
                self.created = self.created.saturating_add(1);
                Had { cpu: Duration::ZERO, least: rss }
            });
            let has = Had { cpu: cpu_of(stat), least: before.least.min(rss) };
            self.cpu = self.cpu.saturating_add(has.cpu.saturating_sub(before.cpu));
            memory = memory.saturating_add(rss.saturating_sub(has.least));
            threads = threads.saturating_add(stat.threads.saturating_sub(1));
            seen.insert(who, has);
        }
        self.memory = memory;
        self.alive = u64::try_from(seen.len()).ok();
        self.threads = Some(threads);
        self.known = seen;
        self.foreign.clear();
        self.walked = Some(now);
    }

    fn read(&mut self, everything: &Everything) -> Reading {
        let Some(proc_) = everything.proc_() else { return Reading { at: clock::now(), ..Reading::default() } };
        let counters = if self.pid1 { Counters::read(proc_) } else { Counters::default() };
        let seen = self.sockets(counters.traffic.map(|traffic| traffic.opened));
        let (listeners, harmless, peers) = match &seen {
            Some(all) => self.whose(proc_, all),
            None => (None, None, None),
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
            // Elsewhere only processes are counted as created.
            threads: self.threads.filter(|_| self.pid1),
            alive,
            traffic: counters.traffic,
            peers,
            listeners,
            harmless,
            cpu: self.alive.map(|_| self.cpu),
            memory: self.alive.map(|_| self.memory),
        }
    }

    /// The sockets that listen and those that are being connected. The kernel finds the second kind by a walk over the table of all
    /// connections, of whatever namespace (0.7 ms for the table of a machine of 24 GB, an empty one too). Each first SYN that leaves is
    /// counted, so while the count is what it was there is nobody new; a socket that is caught before its SYN left (or that waits for
    /// its first write, TCP_FASTOPEN_CONNECT) moves the count later.
    fn sockets(&mut self, opened: Option<u64>) -> Option<Vec<Socket>> {
        if opened.is_some() && opened == self.quiet {
            return sockdiag::tcp(&[state::LISTEN]).ok();
        }
        let seen = sockdiag::tcp(&[state::LISTEN, state::SYN_SENT]).ok()?;
        if seen.iter().all(|s| s.state != state::SYN_SENT) {
            self.quiet = opened;
        }
        Some(seen)
    }

    /// How many new listeners the workload has, how many of them are no reason to kill, and how many peers outside it is connecting to.
    /// As PID 1 the connections are the pod's, as its counters are. A listener is the workload's where one of its processes holds it:
    /// the containers of a pod share its network, and a neighbour that starts to listen is nobody's attack. That nobody was seen to hold
    /// it makes it no neighbour's, since a descriptor in flight is in nobody's table; that its UID is none of the workload's does. Where
    /// the UID says nothing it may be either's, and is no reason to kill, as one that only loopback reaches is none.
    fn whose(&mut self, proc_: &Proc, all: &[Socket]) -> (Option<u64>, Option<u64>, Option<u64>) {
        let listening = self.listeners.as_ref().map(|was| {
            let new = |s: &&Socket| {
                s.state == state::LISTEN && !was.contains(&listener(s)) && !self.foreign.contains(&s.inode)
            };
            all.iter().filter(new).collect::<Vec<_>>()
        });
        let opening: Vec<_> = all.iter().filter(|s| s.state == state::SYN_SENT && !s.to_loopback()).collect();
        let asked = listening.as_ref().is_some_and(|new| !new.is_empty()) || (!self.pid1 && !opening.is_empty());
        let own = if asked { self.own(proc_) } else { Whose::default() };
        let ours = |s: &Socket| [&own.inodes, &self.held].iter().any(|held| held.contains(&u64::from(s.inode)));
        // Where it took too long, or somebody does not show what he holds: as PID 1 it is his, or hiding would be easy. One that nobody
        // held when there was time is not his because there is none now: it is looked for so often that once there will be none.
        let hides = |s: &Socket| if self.unheld.contains(&s.inode) { own.refused } else { !own.whole };
        let his = |s: &&Socket| ours(s) || (self.pid1 && hides(s));
        let known = self.pid1 || !own.late;
        let count = |n: usize| u64::try_from(n).ok().filter(|_| known);
        let found = listening.as_ref().map_or((None, None, Vec::new(), Vec::new()), |new| {
            let (mine, others): (Vec<&Socket>, Vec<&Socket>) = new.iter().copied().partition(his);
            // As not PID 1 the network is the machine's, and its listeners are those of anybody.
            let others = others.into_iter().filter(|_| self.pid1);
            let (unheld, foreign): (Vec<&Socket>, Vec<&Socket>) = others.partition(|s| self.can_have(s));
            let local = mine.iter().filter(|s| s.on_loopback()).count();
            (count(mine.len() + unheld.len()), count(local + unheld.len()), unheld, foreign)
        });
        let peers: HashSet<[u8; 16]> = opening.iter().filter(|s| self.pid1 || ours(s)).map(|s| s.destination).collect();
        let peers = count(peers.len());
        let (listeners, harmless, unheld, foreign) = found;
        self.foreign.extend(foreign.iter().map(|s| s.inode));
        let unheld: HashSet<u32> = unheld.iter().map(|s| s.inode).collect();
        self.strange = !unheld.is_subset(&self.unheld);
        self.unheld = unheld;
        if self.held.len() < HELD {
            self.held.extend(own.inodes);
        }
        (listeners, harmless, peers)
    }

    /// Whether its UID could be the workload's.
    fn can_have(&self, socket: &Socket) -> bool {
        self.uids.is_none_or(|uids| uids.contains(&socket.uid))
    }

    /// The sockets of the workload's own processes.
    fn own(&self, proc_: &Proc) -> Whose {
        let until = clock::now().plus(WHOSE);
        // Who there is has to be known first.
        let mut own = Whose { whole: self.alive.is_some(), ..Whose::default() };
        for who in self.known.keys() {
            match sockets::inodes(proc_, who.pid, until, |inode| {
                own.inodes.insert(inode);
            }) {
                Ok(()) => {}
                Err(Errno::ETIME) => (own.whole, own.late) = (false, true),
                Err(_) => (own.whole, own.refused) = (false, true),
            }
            if own.late {
                break;
            }
        }
        own
    }
}

/// What a process had.
#[derive(Debug, Clone, Copy)]
struct Had {
    cpu: Duration,
    /// The least resident memory it was seen with.
    least: u64,
}

/// Sockets that processes of the workload hold.
#[derive(Debug, Default)]
struct Whose {
    inodes: HashSet<u64>,
    /// Each of them could be looked at.
    whole: bool,
    /// One of them does not show what it holds.
    refused: bool,
    /// There was no time for all.
    late: bool,
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
