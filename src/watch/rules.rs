//! The detections of section 6: readings in, detections out.
//!
//! Pure: no clock, no descriptor. Invariants: a counter that cannot be read, or that runs backwards, accuses nobody; each rule
//! speaks once in a run; what is kept is bounded.

use crate::machine::types::{Instant, Rule};
use std::collections::VecDeque;
use std::time::Duration;

/// Bytes sent since the trigger.
pub const BYTES: u64 = 1_000_000;
/// Processes created within a second.
pub const CREATED: u64 = 200;
/// Processes alive more than at the trigger.
pub const ALIVE: u64 = 64;
/// Connection attempts within a second.
pub const ATTEMPTS: u64 = 50;
/// Distinct peers in SYN_SENT.
pub const PEERS: u64 = 20;
/// Memory growth in bytes a second.
pub const GROWTH: u64 = 100_000_000;
/// The part of the available CPU, in thousandths.
const CPU_PART: u64 = 900;
/// For how long.
const CPU_FOR: Duration = Duration::from_secs(2);
const SECOND: Duration = Duration::from_secs(1);
/// The smallest frame that any attempt to reach somebody puts on a wire: Ethernet, IPv4 and UDP headers. The kernel counts
/// attempts on loopback as well; those put nothing there.
const FRAME: u64 = 42;
/// Readings kept: two seconds of the fastest sampling, and some.
const KEPT: usize = 128;

/// What was read at one instant. Counters count from anywhere; `None` is what could not be read or attributed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Reading {
    /// When.
    pub at: Instant,
    /// Bytes sent on interfaces other than loopback (a counter).
    pub bytes_sent: Option<u64>,
    /// Processes created (a counter).
    pub created: Option<u64>,
    /// Processes alive.
    pub alive: Option<u64>,
    /// Connections opened and datagrams sent (a counter).
    pub attempts: Option<u64>,
    /// Distinct peers outside loopback in SYN_SENT.
    pub peers: Option<u64>,
    /// Listening sockets that were not there at the trigger.
    pub listeners: Option<u64>,
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
    outside: Option<u64>,
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
    bytes: Meter,
    created: Meter,
    attempts: Meter,
    cpu: Meter,
    kept: VecDeque<Kept>,
    said: Vec<Rule>,
}

impl Rules {
    /// From the reading at the trigger. `cpus` is what is available, in thousandths of a CPU.
    #[must_use]
    pub fn new(aggressive: bool, cpus: u64, base: &Reading) -> Self {
        let mut rules = Self {
            aggressive,
            cpus,
            alive: base.alive,
            bytes: Meter::default(),
            created: Meter::default(),
            attempts: Meter::default(),
            cpu: Meter::default(),
            kept: VecDeque::with_capacity(KEPT),
            said: Vec::new(),
        };
        rules.look(base);
        rules
    }

    /// What this reading says that none before it did.
    pub fn look(&mut self, now: &Reading) -> Vec<Detected> {
        let bytes = self.bytes.take(now.bytes_sent);
        // No more attempts than frames that left.
        let outside = match (self.attempts.take(now.attempts), bytes) {
            (Some(attempts), Some(bytes)) => Some(attempts.min(bytes / FRAME)),
            _ => None,
        };
        let kept = Kept {
            at: now.at,
            created: self.created.take(now.created),
            outside,
            cpu: self.cpu.take(now.cpu.map(|cpu| u64::try_from(cpu.as_micros()).unwrap_or(u64::MAX))),
            memory: now.memory,
        };
        let mut found = Vec::new();
        let mut over = |rule, value: Option<u64>, threshold| {
            if let Some(value) = value.filter(|&v| v > threshold) {
                found.push((rule, value, threshold));
            }
        };
        over(Rule::DataExfiltration, bytes, BYTES);
        over(Rule::ForkBomb, self.within_a_second(&kept, |k| k.created), CREATED);
        over(Rule::ForkBomb, now.alive.zip(self.alive).map(|(now, then)| now.saturating_sub(then)), ALIVE);
        over(Rule::NetworkScan, self.within_a_second(&kept, |k| k.outside), ATTEMPTS);
        over(Rule::NetworkScan, now.peers, PEERS);
        over(Rule::BackdoorListener, now.listeners, 0);
        over(Rule::CpuMining, self.cpu_used(&kept), self.cpus.saturating_mul(CPU_PART) / 1000);
        over(Rule::MemoryGrowth, self.within_a_second(&kept, |k| k.memory), GROWTH);
        while self.kept.len() >= KEPT {
            self.kept.pop_front();
        }
        self.kept.push_back(kept);
        found.retain(|(rule, ..)| {
            let new = !self.said.contains(rule);
            if new {
                self.said.push(*rule);
            }
            new
        });
        found
            .into_iter()
            .map(|(rule, value, threshold)| Detected { rule, value, threshold, kill: self.kills(rule) })
            .collect()
    }

    /// The table of section 6.
    const fn kills(&self, rule: Rule) -> bool {
        match rule {
            Rule::DataExfiltration | Rule::ForkBomb | Rule::SignalFlood => true,
            Rule::NetworkScan | Rule::BackdoorListener | Rule::MemoryGrowth => self.aggressive,
            Rule::CpuMining => false,
        }
    }

    /// How much was added within the last second. After a gap longer than that, the gap's average for one second.
    fn within_a_second(&self, now: &Kept, of: fn(&Kept) -> Option<u64>) -> Option<u64> {
        let value = of(now)?;
        let earlier = |k: &&Kept| of(k).is_some();
        let from = now.at.minus(SECOND);
        if let Some(first) = self.kept.iter().filter(earlier).find(|k| k.at >= from) {
            return Some(value.saturating_sub(of(first)?));
        }
        let last = self.kept.iter().rev().find(earlier)?;
        let gap = u64::try_from(now.at.since(last.at).as_millis()).unwrap_or(u64::MAX).max(1);
        Some(value.saturating_sub(of(last)?).saturating_mul(1000) / gap)
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
            attempts: zero,
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
            let scan = |bytes: u64| Reading { attempts: Some(51), bytes_sent: Some(500 + bytes), ..at(500) };
            assert_eq!(said(&mut new(), scan(51 * 42)), [(Rule::NetworkScan, aggressive)]);
            assert_eq!(said(&mut new(), scan(51 * 42 - 1)), [], "most of them were loopback's");
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
