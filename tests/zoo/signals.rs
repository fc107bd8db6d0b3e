//! Signals at the supervisor: by every call, with the truth about the sender and with lies, one and a flood of them.

use super::pinned::{Pinned, begins, child_of};
use super::place::*;
use super::support::*;
use std::time::{Duration, Instant};

const SECCOMP: &str = "seccomp_filter";
const SCOPE: &str = "signal_scope,landlock";

/// A stop reached the supervisor, whatever it made of it; or it is dead.
fn reached(attempt: &Attempt) -> bool {
    let counted = attempt.stdout.lines().any(|l| l.starts_with("signalled ") && l != "signalled 0");
    let seal = attempt.seal();
    let spoofed = seal.as_ref().is_some_and(|seal| seal["spoofed_signals"].as_u64() > Some(0));
    let stopped = seal.is_some_and(|seal| seal["status"] == "terminated");
    counted || spoofed || stopped || attempt.code > 128
}

fn row(attack: &'static [&'static str], places: &'static [Place], stopped_by: &'static [&'static str]) -> Row {
    Row {
        attack,
        places,
        stopped_by,
        also_off: "",
        options: &["--soft", "100ms", "--hard", "200ms"],
        succeeded: reached,
    }
}

#[test]
fn by_pid_group_and_all_with_every_signal() {
    if !able() {
        return;
    }
    three_ways(&row(&["kill"], &[Pid1, Below], &[SECCOMP, SCOPE]));
    // As PID 1 its group has no number in its own namespace, and kill(-1) passes over it.
    three_ways(&row(&["kill-group"], &[Below], &[SECCOMP, SCOPE]));
    three_ways(&row(&["kill-all"], &[Below], &[SECCOMP, SCOPE]));
}

#[test]
fn by_the_calls_that_name_a_thread_or_a_descriptor() {
    if !able() {
        return;
    }
    for attack in [&["kill-term"][..], &["tkill"], &["tgkill"], &["pidfd-signal"]] {
        three_ways(&row(attack, &[Pid1, Below], &[SECCOMP, SCOPE]));
    }
}

#[test]
fn with_a_forged_siginfo() {
    if !able() {
        return;
    }
    for attack in [&["sigqueue"][..], &["tgsigqueue"]] {
        three_ways(&row(attack, &[Pid1, Below], &[SECCOMP, SCOPE]));
    }
}

#[test]
fn by_a_descriptor_that_becomes_ready() {
    if !able() {
        return;
    }
    for attack in [&["async-setown"][..], &["async-fiosetown"], &["async-siocspgrp"]] {
        three_ways(&row(attack, &[Pid1, Below], &[SECCOMP, SCOPE]));
    }
    three_ways(&row(&["async-setown-group"], &[Below], &[SECCOMP, SCOPE]));
    // Its target is behind a pointer: the filter refuses it only where the scope is missing.
    three_ways(&row(&["async-setown-ex"], &[Pid1, Below], &[SECCOMP, SCOPE]));
}

/// One that comes through is still not taken for a stop: the third line of defence, and alone it holds as well.
#[test]
fn one_that_comes_through_is_no_stop() {
    if !able() {
        return;
    }
    fn ended(attempt: &Attempt) -> bool {
        attempt.seal().is_none_or(|seal| seal["status"] == "terminated")
    }
    for attack in
        [&["kill-term"][..], &["tgkill"], &["sigqueue"], &["tgsigqueue"], &["pidfd-signal"], &["async-setown-ex"]]
    {
        for place in [Pid1, Below] {
            let run = |off| {
                let stage =
                    Stage::new(place).options(&["--audit-level", "standard", "--soft", "100ms", "--hard", "200ms"]);
                stage.run(Guard::Without(off), attack)
            };
            let believed = run("seccomp_filter,signal_scope,landlock,origin");
            assert!(ended(&believed), "{attack:?} {place:?}: control: {believed:#?}");
            let judged = run("seccomp_filter,signal_scope,landlock");
            assert!(!ended(&judged) && reached(&judged), "{attack:?} {place:?}: {judged:#?}");
            let records = records(&judged.audit);
            let spoofed = records.iter().find(|r| r["event"] == "spoofed_signal");
            assert_eq!(spoofed.map(|r| r["signal"].clone()), Some("SIGTERM".into()), "{judged:#?}");
        }
    }
}

/// What nobody can tell from a stop of the kubelet's: here only the kernel's refusal helps, and either one is enough.
#[test]
fn one_without_a_sender() {
    if !able() {
        return;
    }
    for place in [Pid1, Below] {
        let run = |guard| {
            let mut stage = Stage::new(place).options(&["--soft", "100ms", "--hard", "200ms"]);
            // Little to use up, so that nobody else of this UID is left without.
            stage.before = "prlimit --pid $$ --sigpending=300".into();
            stage.run(guard, &["nameless"])
        };
        let stopped = |ran: &Attempt| ran.seal().unwrap()["status"] == "terminated";
        assert!(reached(&run(Guard::Plain)), "control");
        let without = run(Guard::Without("seccomp_filter,signal_scope,landlock"));
        assert!(stopped(&without), "if this fails, SECURITY.md has to be changed: {without:#?}");
        for alone in [SECCOMP, SCOPE] {
            let off = if alone == SECCOMP { "signal_scope,landlock" } else { SECCOMP };
            let ran = run(Guard::Without(off));
            assert!(!stopped(&ran) && ran.says("refused 1"), "{alone} alone: {ran:#?}");
        }
        let full = run(Guard::Full);
        assert!(!stopped(&full) && full.says("refused 1") && full.verified() == Some(0), "{full:#?}");
    }
}

/// The process that is gracekeeper, out here, once it has its child.
fn supervisor(unshare: u32, place: Place) -> Option<Pinned> {
    let first = child_of(i32::try_from(unshare).unwrap())?;
    let pid = if place == Pid1 { first } else { child_of(first)? };
    Pinned::new(pid, |pid| begins(pid, b"/mnt/gracekeeper\0") && child_of(pid).is_some())
}

/// A real stop amid a flood of the workload's; what the run ended as.
fn stop_in_a_flood(place: Place, off: Option<&str>, delay: Duration) -> Attempt {
    let stage = Stage::new(place).options(&["--grace", "3s", "--soft", "100ms", "--hard", "200ms", "--timeout", "8s"]);
    let began = Instant::now();
    let guard = off.map_or(Guard::Full, Guard::Without);
    let mut child = stage.command(guard, &["flood"]).spawn().unwrap();
    let mut found = None;
    until("gracekeeper is there and has its child", || {
        found = supervisor(child.id(), place);
        // On a busy machine the flood may have ended the run before we looked.
        found.is_some() || child.try_wait().unwrap().is_some()
    });
    std::thread::sleep(delay);
    // Where the flood has ended the run already there is nobody to stop.
    if let Some(found) = found {
        found.signal(libc::SIGTERM);
    }
    stage.collect(finish(child, began))
}

#[test]
fn a_hundred_real_stops_in_floods() {
    if !able() {
        return;
    }
    let mut seed = u64::from(std::process::id()) | 1;
    println!("seed {seed}");
    let mut delay = || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        Duration::from_micros(seed % 60_000)
    };
    let unguarded = "seccomp_filter,signal_scope,landlock";
    let (mut honoured, mut ended) = (0, 0);
    for round in 0..100 {
        let place = if round % 2 == 0 { Pid1 } else { Below };
        // Half of them where the kernel refuses the flood, half where it comes through.
        let off = (round % 4 >= 2).then_some(unguarded);
        let ran = stop_in_a_flood(place, off, delay());
        let seal = ran.seal().unwrap_or_else(|| panic!("{ran:#?}"));
        match (seal["status"].as_str().unwrap(), ran.code) {
            ("terminated", 143) => honoured += 1,
            ("violation", 121) => {
                assert_eq!(seal["detections"][0]["rule"], "signal_flood", "{seal:#}");
                assert_eq!(seal["detections"].as_array().unwrap().len(), 1, "once: {seal:#}");
                assert!(off.is_some(), "a refused flood is none: {seal:#}");
                ended += 1;
            }
            other => panic!("round {round}: {other:?}: {ran:#?}"),
        }
    }
    println!("{honoured} honoured, {ended} ended as a violation");
    assert_eq!(honoured + ended, 100);
}

/// Control: where the flood is let through and is no reason to kill, real stops are lost in it.
#[test]
fn a_flood_that_is_let_be_masks_real_stops() {
    if !able() {
        return;
    }
    let off = "seccomp_filter,signal_scope,landlock,flood";
    // One of them is enough; the deadline ends each.
    let lost = (0..10).any(|_| {
        let ran = stop_in_a_flood(Pid1, Some(off), Duration::from_millis(30));
        ran.seal().is_some_and(|seal| seal["status"] == "timeout")
    });
    assert!(lost, "no stop was lost in ten floods: the flood proves nothing");
}
