//! The detections of section 6: readings in, detections out.
//!
//! Pure: no clock, no descriptor. Invariants: a counter that cannot be read, or that runs backwards, accuses nobody; each rule
//! speaks once in a run, or once to be recorded and once to kill; what is kept is bounded.

use crate::machine::traffic::Traffic;
use crate::machine::types::{Instant, Rule};
use std::collections::VecDeque;
use std::time::Duration;

/// Bytes sent since the trigger.
pub const BYTES: u64 = 1_000_000;
/// Processes created within a second.
pub const CREATED: u64 = 200;
/// Processes alive more than at the trigger.
pub const ALIVE: u64 = 64;
/// Connection attempts within a second; datagrams that nobody answers.
pub const ATTEMPTS: u64 = 50;
/// Distinct peers in SYN_SENT; messages within a second that somebody cannot be reached (one host sends no more than a few of them,
/// icmp(7)).
pub const PEERS: u64 = 20;
/// Memory growth in bytes a second.
pub const GROWTH: u64 = 100_000_000;
/// The part of the available CPU, in thousandths.
const CPU_PART: u64 = 900;
/// For how long.
const CPU_FOR: Duration = Duration::from_secs(2);
const SECOND: Duration = Duration::from_secs(1);
/// Readings kept: two seconds of the fastest sampling, and some.
const KEPT: usize = 128;

/// What was read at one instant. Counters count from anywhere; `None` is what could not be read or attributed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Reading {
    /// When.
    pub at: Instant,
    /// Bytes sent on interfaces other than loopback (a counter).
    pub bytes_sent: Option<u64>,
    /// Processes created, and threads where `threads` says how many (a counter).
    pub created: Option<u64>,
    /// Threads alive, but for the first of each process.
    pub threads: Option<u64>,
    /// Processes alive.
    pub alive: Option<u64>,
    /// What connection attempts are told by (counters).
    pub traffic: Option<Traffic>,
    /// Distinct peers outside loopback in SYN_SENT.
    pub peers: Option<u64>,
    /// Listening sockets that were not there at the trigger.
    pub listeners: Option<u64>,
    /// Those of them that are no reason to kill: only loopback reaches them, or nobody is known to hold them.
    pub harmless: Option<u64>,
    /// CPU time used (a counter).
    pub cpu: Option<Duration>,
    /// Memory, in bytes.
    pub memory: Option<u64>,
}

/// A detection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Detected {
    /// The rule.
    pub rule: Rule,
    /// What was counted.
    pub value: u64,
    /// What it passed.
    pub threshold: u64,
    /// Whether it is a reason to kill at once.
    pub kill: bool,
}

/// A counter from its first reading on: it only ever goes up, whatever its source does.
#[derive(Debug, Clone, Copy, Default)]
struct Meter {
    last: Option<u64>,
    total: u64,
}

impl Meter {
    /// The total so far; `None` while the counter cannot be read.
    fn take(&mut self, now: Option<u64>) -> Option<u64> {
        let now = now?;
        if let Some(last) = self.last {
            // Wrapped, or another source: what was missed is not guessed.
            self.total = self.total.saturating_add(now.saturating_sub(last));
        }
        self.last = Some(now);
        Some(self.total)
    }
}

/// What is kept of a reading.
#[derive(Debug, Clone, Copy)]
struct Kept {
    at: Instant,
    created: Option<u64>,
    traffic: Option<Traffic>,
    cpu: Option<u64>,
    memory: Option<u64>,
}

/// The rules of one run.
#[derive(Debug)]
pub struct Rules {
    aggressive: bool,
    /// Thousandths of a CPU.
    cpus: u64,
    alive: Option<u64>,
    memory: Option<u64>,
    bytes: Meter,
    created: Meter,
    /// Rises only: a thread that ends was created all the same.
    threads: Meter,
    cpu: Meter,
    kept: VecDeque<Kept>,
    /// What was said, and whether it was to kill.
    said: Vec<(Rule, bool)>,
}

impl Rules {
    /// From the reading at the trigger. `cpus` is what is available, in thousandths of a CPU.
    #[must_use]
    pub fn new(aggressive: bool, cpus: u64, base: &Reading) -> Self {
        let mut rules = Self {
            aggressive,
            cpus,
            alive: base.alive,
            memory: base.memory,
            bytes: Meter::default(),
            created: Meter::default(),
            threads: Meter::default(),
            cpu: Meter::default(),
            kept: VecDeque::with_capacity(KEPT),
            said: Vec::new(),
        };
        rules.look(base);
        rules
    }

    /// Whether so many processes were created that it may as well have been threads: then how many threads there are has to be known as
    /// of now, before anybody is accused.
    #[must_use]
    pub fn may_be_threads(&self, now: &Reading) -> bool {
        let (created, threads) = (self.created, self.threads);
        now.threads.is_some() && self.too_many(now).is_none() && self.born(now, created, threads).1 > Some(CREATED)
    }

    /// What this reading says that none before it did.
    pub fn look(&mut self, now: &Reading) -> Vec<Detected> {
        let bytes = self.bytes.take(now.bytes_sent);
        let (created, born) = self.born(now, self.created, self.threads);
        let _ = (self.created.take(now.created), self.threads.take(now.threads));
        let kept = Kept {
            at: now.at,
            created,
            traffic: now.traffic,
            cpu: self.cpu.take(now.cpu.map(|cpu| u64::try_from(cpu.as_micros()).unwrap_or(u64::MAX))),
            // What is below the level at the trigger, and comes back to it, is no growth since then.
            memory: now.memory.map(|memory| self.memory.map_or(memory, |base| memory.max(base))),
        };
        let traffic = |of: fn(&Traffic) -> u64| {
            let now = kept.traffic;
            self.within_a_second(kept.at, |k| Some(of(&now?.since(&k.traffic?)?)))
        };
        let unanswered = traffic(Traffic::unanswered);
        let scan = unanswered > Some(ATTEMPTS) && traffic(Traffic::unreached) > Some(PEERS);
        let mut found = Vec::new();
        let mut over = |rule, kill, value: Option<u64>, threshold| {
            if let Some(value) = value.filter(|&v| v > threshold) {
                found.push(Detected { rule, value, threshold, kill: kill && self.kills(rule) });
            }
        };
        over(Rule::DataExfiltration, true, bytes, BYTES);
        over(Rule::ForkBomb, true, born, CREATED);
        over(Rule::ForkBomb, true, self.too_many(now), ALIVE);
        over(Rule::NetworkScan, true, traffic(Traffic::probed), ATTEMPTS);
        over(Rule::NetworkScan, true, now.peers, PEERS);
        // Datagrams are no connections, and may all go to one peer that never answers.
        over(Rule::NetworkScan, scan, unanswered, ATTEMPTS);
        over(Rule::BackdoorListener, true, now.listeners.map(|all| all.saturating_sub(now.harmless.unwrap_or(0))), 0);
        over(Rule::BackdoorListener, false, now.harmless, 0);
        over(Rule::CpuMining, true, self.cpu_used(&kept), self.cpus.saturating_mul(CPU_PART) / 1000);
        let memory = self.within_a_second(kept.at, |k| Some(kept.memory?.saturating_sub(k.memory?)));
        over(Rule::MemoryGrowth, true, memory, GROWTH);
        while self.kept.len() >= KEPT {
            self.kept.pop_front();
        }
        self.kept.push_back(kept);
        found.retain(|d| {
            let new = !self.said.iter().any(|&(rule, kill)| rule == d.rule && (kill || !d.kill));
            if new {
                self.said.push((d.rule, d.kill));
            }
            new
        });
        found
    }

    /// Processes created so far, and within the last second. A thread that is there was counted when it was created; one that has come and
    /// gone between two looks cannot be told from a process.
    fn born(&self, now: &Reading, mut created: Meter, mut threads: Meter) -> (Option<u64>, Option<u64>) {
        let threads = threads.take(now.threads).unwrap_or(threads.total);
        let so_far = created.take(now.created).map(|created| created.saturating_sub(threads));
        (so_far, self.within_a_second(now.at, |k| Some(so_far?.saturating_sub(k.created?))))
    }

    /// How many more are alive than at the trigger, where that is too many.
    fn too_many(&self, now: &Reading) -> Option<u64> {
        now.alive.zip(self.alive).map(|(now, then)| now.saturating_sub(then)).filter(|&more| more > ALIVE)
    }

    /// The table of section 6.
    const fn kills(&self, rule: Rule) -> bool {
        match rule {
            Rule::DataExfiltration | Rule::ForkBomb | Rule::SignalFlood => true,
            Rule::NetworkScan | Rule::BackdoorListener | Rule::MemoryGrowth => self.aggressive,
            Rule::CpuMining => false,
        }
    }

    /// How much was added within the last second, where `added` says how much since a reading. After a gap longer than that, the gap's
    /// average for one second.
    fn within_a_second(&self, now: Instant, added: impl Fn(&Kept) -> Option<u64>) -> Option<u64> {
        let from = now.minus(SECOND);
        if let Some(value) = self.kept.iter().filter(|k| k.at >= from).find_map(&added) {
            return Some(value);
        }
        let (last, value) = self.kept.iter().rev().find_map(|k| Some((k, added(k)?)))?;
        let gap = u64::try_from(now.since(last.at).as_millis()).unwrap_or(u64::MAX).max(1);
        Some(value.saturating_mul(1000) / gap)
    }

    /// Thousandths of a CPU, on average over the last two seconds at least; `None` before there are two.
    fn cpu_used(&self, now: &Kept) -> Option<u64> {
        let from = now.at.0.checked_sub(CPU_FOR)?;
        let then = self.kept.iter().rev().filter(|k| k.cpu.is_some()).find(|k| k.at.0 <= from)?;
        let used = now.cpu?.saturating_sub(then.cpu?);
        let elapsed = u64::try_from(now.at.since(then.at).as_micros()).unwrap_or(u64::MAX).max(1);
        Some(used.saturating_mul(1000) / elapsed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Reading {
        Reading { at: Instant(Duration::from_millis(10_000 + ms)), ..Reading::default() }
    }

    fn said(rules: &mut Rules, reading: Reading) -> Vec<(Rule, bool)> {
        rules.look(&reading).iter().map(|d| (d.rule, d.kill)).collect()
    }

    #[test]
    fn thresholds_and_actions() {
        let zero = Some(0);
        let base = Reading {
            bytes_sent: Some(500),
            created: Some(70),
            alive: Some(3),
            traffic: Some(Traffic::default()),
            memory: zero,
            cpu: Some(Duration::ZERO),
            ..at(0)
        };
        for aggressive in [false, true] {
            let new = || Rules::new(aggressive, 1000, &base);
            assert_eq!(said(&mut new(), Reading { bytes_sent: Some(500 + BYTES), ..at(100) }), []);
            let sent = Reading { bytes_sent: Some(501 + BYTES), ..at(100) };
            assert_eq!(said(&mut new(), sent), [(Rule::DataExfiltration, true)]);
            assert_eq!(said(&mut new(), Reading { created: Some(270), ..at(900) }), []);
            assert_eq!(said(&mut new(), Reading { created: Some(271), ..at(900) }), [(Rule::ForkBomb, true)]);
            assert_eq!(said(&mut new(), Reading { created: Some(470), ..at(2000) }), [], "200 a second");
            assert_eq!(said(&mut new(), Reading { alive: Some(67), ..at(9) }), []);
            assert_eq!(said(&mut new(), Reading { alive: Some(68), ..at(9) }), [(Rule::ForkBomb, true)]);
            let scan =
                |frames| Reading { traffic: Some(Traffic { opened: 51, frames, ..Traffic::default() }), ..at(500) };
            assert_eq!(said(&mut new(), scan(51)), [(Rule::NetworkScan, aggressive)]);
            assert_eq!(said(&mut new(), scan(50)), [], "one of them did not leave");
            assert_eq!(said(&mut new(), Reading { peers: Some(21), ..at(1) }), [(Rule::NetworkScan, aggressive)]);
            assert_eq!(
                said(&mut new(), Reading { listeners: Some(1), ..at(1) }),
                [(Rule::BackdoorListener, aggressive)]
            );
            let grown = Reading { memory: Some(GROWTH + 1), ..at(600) };
            assert_eq!(said(&mut new(), grown), [(Rule::MemoryGrowth, aggressive)]);
            assert_eq!(said(&mut new(), Reading { memory: Some(GROWTH + 1), ..at(2000) }), []);
            let cpu = |used, t| Reading { cpu: Some(Duration::from_millis(used)), ..at(t) };
            assert_eq!(said(&mut new(), cpu(1900, 1999)), []);
            assert_eq!(said(&mut new(), cpu(1800, 2000)), []);
            let mut rules = new();
            assert_eq!(said(&mut rules, cpu(1810, 2000)), [(Rule::CpuMining, false)]);
            assert_eq!(said(&mut rules, cpu(9000, 2020)), [], "each rule speaks once");
        }
    }

    #[test]
    fn a_second_is_judged_by_its_own_packets() {
        let quiet = Traffic::default();
        let traffic = |traffic, t| Reading { traffic: Some(traffic), ..at(t) };
        // 300 kB went out before, and then 60 connections were opened, over loopback and not.
        let upload = Traffic { frames: 250, opened: 1, ..quiet };
        let scan = Traffic { frames: 310, opened: 61, ..quiet };
        let local = Traffic { frames: 310, opened: 61, accepted: 60, loopback: 420, ..quiet };
        let after_local = Traffic { frames: 370, opened: 121, ..local };
        for (then, expected) in [(scan, vec![(Rule::NetworkScan, true)]), (local, vec![])] {
            let mut rules = Rules::new(true, 1000, &traffic(quiet, 0));
            assert_eq!(said(&mut rules, traffic(upload, 20)), []);
            assert_eq!(said(&mut rules, traffic(then, 1000)), expected);
        }
        // What loopback did a second ago excuses nothing now.
        let mut rules = Rules::new(true, 1000, &traffic(quiet, 0));
        assert_eq!(said(&mut rules, traffic(local, 500)), []);
        assert_eq!(said(&mut rules, traffic(local, 1600)), []);
        assert_eq!(said(&mut rules, traffic(after_local, 2000)), [(Rule::NetworkScan, true)]);
    }

    #[test]
    fn refusals_on_loopback_hide_no_scan() {
        let quiet = Traffic::default();
        let traffic = |traffic, t| Reading { traffic: Some(traffic), ..at(t) };
        let new = || Rules::new(true, 1000, &traffic(quiet, 0));
        let mixed = |accepted, frames| Traffic {
            frames,
            loopback: 60 * 16,
            opened: 60 + accepted,
            accepted,
            failed: 60,
            resets: 60,
            ..quiet
        };
        // Each of 60 refusals outside beside a connection that ends with a reset; as many packets did not leave.
        assert_eq!(said(&mut new(), traffic(mixed(60, 60), 500)), [(Rule::NetworkScan, true)]);
        assert_eq!(said(&mut new(), traffic(mixed(60, 50), 500)), []);
        // Polls, and fewer that were accepted, beside an upload.
        assert_eq!(said(&mut new(), traffic(mixed(50, 600), 500)), []);
        let polled = Traffic { frames: 600, loopback: 75, opened: 25, accepted: 5, failed: 20, resets: 20, ..quiet };
        assert_eq!(said(&mut new(), traffic(polled, 500)), []);
    }

    #[test]
    fn datagrams_alone_are_recorded() {
        let sent = |datagrams, unreachable, t| Reading {
            traffic: Some(Traffic { frames: datagrams, datagrams, unreachable, ..Traffic::default() }),
            ..at(t)
        };
        let new = || Rules::new(true, 1000, &sent(0, 0, 0));
        assert_eq!(said(&mut new(), sent(50, 50, 9)), []);
        let mut rules = new();
        assert_eq!(said(&mut rules, sent(60, 6, 100)), [(Rule::NetworkScan, false)], "one peer that is not there");
        assert_eq!(said(&mut rules, sent(120, 12, 200)), [], "once");
        assert_eq!(said(&mut rules, sent(1000, 30, 300)), [(Rule::NetworkScan, true)], "more than one host says so");
        assert_eq!(said(&mut rules, sent(2000, 60, 400)), []);
        let mut standard = Rules::new(false, 1000, &sent(0, 0, 0));
        assert_eq!(said(&mut standard, sent(1000, 30, 300)), [(Rule::NetworkScan, false)]);
        assert_eq!(said(&mut standard, Reading { peers: Some(21), ..at(400) }), [], "recorded already");
    }

    #[test]
    fn a_listener_on_loopback_is_recorded_and_one_outside_kills_after_it() {
        let listeners = |all, local, t| Reading { listeners: Some(all), harmless: Some(local), ..at(t) };
        let mut rules = Rules::new(true, 1000, &listeners(0, 0, 0));
        assert_eq!(said(&mut rules, listeners(1, 1, 20)), [(Rule::BackdoorListener, false)]);
        assert_eq!(said(&mut rules, listeners(2, 2, 40)), []);
        assert_eq!(said(&mut rules, listeners(2, 1, 60)), [(Rule::BackdoorListener, true)]);
    }

    #[test]
    fn threads_are_no_processes() {
        let born = |created, threads, t| Reading { created: Some(created), threads, ..at(t) };
        let new = || Rules::new(true, 1000, &born(70, Some(4), 0));
        // A pool of 220 threads, seen when it is looked for, and 200 that end between two looks.
        let mut rules = new();
        assert!(rules.may_be_threads(&born(290, Some(4), 20)) && !rules.may_be_threads(&born(270, Some(4), 20)));
        assert_eq!(said(&mut rules, born(290, Some(224), 20)), []);
        assert_eq!(said(&mut rules, born(290, Some(4), 40)), [], "they have ended");
        assert_eq!(said(&mut rules, born(510, Some(224), 60)), [], "and another pool");
        assert_eq!(said(&mut rules, born(711, Some(224), 80)), [(Rule::ForkBomb, true)]);
        assert_eq!(said(&mut new(), born(271, None, 20)), [(Rule::ForkBomb, true)], "nobody could be looked at");
        assert!(!new().may_be_threads(&born(271, None, 20)));
        let base = Reading { alive: Some(3), ..born(70, Some(4), 0) };
        let bomb = Reading { alive: Some(90), ..born(300, Some(4), 20) };
        assert!(!Rules::new(true, 1000, &base).may_be_threads(&bomb), "no look at a bomb of processes");
    }

    #[test]
    fn memory_below_the_level_at_the_trigger_is_no_growth() {
        let memory = |bytes, t| Reading { memory: Some(bytes), ..at(t) };
        let mut rules = Rules::new(true, 1000, &memory(3 * GROWTH, 0));
        assert_eq!(said(&mut rules, memory(0, 1200)), []);
        assert_eq!(said(&mut rules, memory(4 * GROWTH, 1300)), []);
        assert_eq!(said(&mut rules, memory(4 * GROWTH + 1, 1400)), [(Rule::MemoryGrowth, true)]);
    }

    #[test]
    fn counters_that_vanish_or_run_backwards_accuse_nobody() {
        let base = Reading { bytes_sent: Some(u64::MAX), created: Some(4_000_000), alive: None, ..at(0) };
        let mut rules = Rules::new(true, 1000, &base);
        assert_eq!(
            said(&mut rules, Reading { bytes_sent: Some(5), created: Some(300), alive: Some(900), ..at(20) }),
            []
        );
        assert_eq!(said(&mut rules, at(40)), []);
        assert_eq!(said(&mut rules, Reading { bytes_sent: Some(6), created: Some(301), ..at(0) }), [], "no time");
        let late = Reading { bytes_sent: Some(7 + BYTES), ..at(60) };
        assert_eq!(said(&mut rules, late), [(Rule::DataExfiltration, true)], "it counts on from there");
    }
}
