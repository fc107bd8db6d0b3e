//! The detection rules under random counters and clocks: time going nowhere or leaping, counters wrapping, vanishing, returning.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use gracekeeper::machine::traffic::Traffic;
use gracekeeper::machine::types::{Instant, Rule};
use gracekeeper::watch::rules::{ALIVE, ATTEMPTS, BYTES, CREATED, GROWTH, PEERS, Reading, Rules};
use proptest::prelude::*;
use std::time::Duration;

fn counter() -> impl Strategy<Value = Option<u64>> {
    prop_oneof![
        2 => Just(None),
        4 => (0u64..2_000).prop_map(Some),
        3 => (0u64..5_000_000).prop_map(Some),
        1 => any::<u64>().prop_map(Some),
        1 => (u64::MAX - 3..=u64::MAX).prop_map(Some),
    ]
}

fn reading() -> impl Strategy<Value = Reading> {
    let time = prop_oneof![8 => 0u64..3_000, 1 => Just(0), 1 => any::<u64>()];
    let some = (counter(), counter(), counter(), counter(), counter(), counter());
    (time, some, counter(), counter(), counter(), traffic()).prop_map(
        |(ms, (bytes_sent, created, threads, alive, cpu, memory), peers, listeners, local, traffic)| Reading {
            at: Instant(Duration::from_millis(ms)),
            bytes_sent,
            created,
            threads,
            alive,
            traffic,
            peers,
            listeners,
            harmless: local,
            cpu: cpu.map(Duration::from_micros),
            memory,
        },
    )
}

fn traffic() -> impl Strategy<Value = Option<Traffic>> {
    proptest::option::of(proptest::collection::vec(counter(), 12).prop_map(|counts| {
        let mut counts = counts.into_iter().map(Option::unwrap_or_default);
        let mut next = || counts.next().unwrap();
        Traffic {
            frames: next(),
            loopback: next(),
            opened: next(),
            accepted: next(),
            failed: next(),
            resets: next(),
            broken: next(),
            datagrams: next(),
            received: next(),
            no_port: next(),
            unreachable: next(),
            told: next(),
        }
    }))
}

/// What a counter can have counted at the most: the sum of its rises between readings that were made.
fn rises(readings: &[Reading], of: fn(&Reading) -> Option<u64>) -> u64 {
    let seen: Vec<u64> = readings.iter().filter_map(of).collect();
    seen.windows(2).fold(0u64, |sum, pair| sum.saturating_add(pair[1].saturating_sub(pair[0])))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]
    #[test]
    fn nobody_is_accused_without_evidence(
        readings in proptest::collection::vec(reading(), 1..60), aggressive in any::<bool>(), cpus in 0u64..64_000,
    ) {
        let mut rules = Rules::new(aggressive, cpus, &readings[0]);
        let mut said = Vec::new();
        for (n, now) in readings.iter().enumerate().skip(1) {
            let so_far = &readings[..=n];
            for d in rules.look(now) {
                let before = said.iter().any(|&(rule, kill)| rule == d.rule && (kill || !d.kill));
                prop_assert!(!before, "each rule speaks once, or once to be recorded and once to kill");
                said.push((d.rule, d.kill));
                prop_assert!(d.value > d.threshold);
                let evidence = match d.rule {
                    Rule::DataExfiltration => rises(so_far, |r| r.bytes_sent) > BYTES,
                    Rule::ForkBomb => rises(so_far, |r| r.created) > CREATED
                        || now.alive.zip(readings[0].alive).is_some_and(|(a, b)| a > b.saturating_add(ALIVE)),
                    Rule::NetworkScan => now.peers.is_some_and(|p| p > PEERS)
                        || rises(so_far, |r| r.traffic.map(|t| t.frames)) > ATTEMPTS.min(
                            rises(so_far, |r| r.traffic.map(|t| t.opened))
                                .max(rises(so_far, |r| r.traffic.map(|t| t.datagrams)))),
                    Rule::BackdoorListener => now.listeners.max(now.harmless).is_some_and(|l| l > 0),
                    Rule::CpuMining => now.cpu.is_some(),
                    // The growth between any two readings; a gap of no time counts as a millisecond.
                    Rule::MemoryGrowth => so_far.iter().filter_map(|r| r.memory).min()
                        .zip(now.memory).is_some_and(|(least, now)| now.saturating_sub(least) > GROWTH / 1000),
                    Rule::SignalFlood => false,
                };
                prop_assert!(evidence, "{d:?} without evidence: {so_far:?}");
                prop_assert!(d.rule != Rule::CpuMining || !d.kill);
                prop_assert!(!d.kill || aggressive || matches!(d.rule, Rule::DataExfiltration | Rule::ForkBomb));
            }
        }
    }

    #[test]
    fn a_steady_honest_program_is_never_accused(
        interval in 20u64..1_000, bytes in 0u64..1_000, forks in 0u64..190, grown in 0u64..90_000_000, steps in 1u64..200,
    ) {
        // By the second: forks, bytes (a megabyte is only allowed in all), growth.
        let at = |ms: u64| Reading {
            at: Instant(Duration::from_millis(ms)),
            bytes_sent: Some((bytes * ms / 1000).min(BYTES)),
            created: Some(forks * ms / 1000),
            alive: Some(10 + forks % 50),
            traffic: Some(Traffic { frames: bytes * ms / 1000, opened: ms / 1000, ..Traffic::default() }),
            threads: Some(forks % 7),
            harmless: Some(0),
            peers: Some(1),
            listeners: Some(0),
            cpu: Some(Duration::from_millis(ms * 4 / 5)),
            memory: Some(grown * ms / 1000),
        };
        let mut rules = Rules::new(true, 1000, &at(0));
        for n in 1..steps {
            prop_assert_eq!(rules.look(&at(n * interval)), vec![]);
        }
    }
}
