//! Memory, descriptors, limits, priority, scheduling, CPUs, threads and waits of the supervisor.

use super::place::*;
use super::support::*;
use serde_json::Value;
use std::time::{Duration, Instant};

const SECCOMP: &str = "seccomp_filter";
/// A process in a Landlock domain may trace nobody outside (landlock(7)); either rule makes a domain.
const DOMAIN: &str = "landlock,signal_scope";
const DUMPABLE: &str = "supervisor_not_dumpable";

fn row(attack: &'static [&'static str], stopped_by: &'static [&'static str]) -> Row {
    Row { attack, places: &[Pid1, Below], stopped_by, also_off: "", options: &[], succeeded: it_says }
}

#[test]
fn its_memory_and_descriptors() {
    if !able() {
        return;
    }
    for attack in [&["ptrace"][..], &["vm-read"], &["vm-write"]] {
        three_ways(&row(attack, &[SECCOMP, DOMAIN, DUMPABLE]));
    }
    // pidfd_open is refused by the filter, and so is pidfd_getfd.
    three_ways(&row(&["pidfd-getfd"], &[SECCOMP, DOMAIN, DUMPABLE]));
}

#[test]
fn its_files_below_proc() {
    if !able() {
        return;
    }
    for attack in [
        &["proc-mem"][..],
        &["proc-environ"],
        &["proc-maps"],
        &["proc-fd"],
        &["proc-root"],
        &["proc-cwd"],
        &["proc-exe"],
    ] {
        three_ways(&row(attack, &[DOMAIN, DUMPABLE]));
    }
    for attack in [&["proc-oom"][..], &["proc-coredump-filter"]] {
        three_ways(&row(attack, &[DUMPABLE]));
    }
}

#[test]
fn its_limits() {
    if !able() {
        return;
    }
    for attack in [&["prlimit-read"][..], &["prlimit-fsize"], &["prlimit-nofile"], &["prlimit-cpu"]] {
        three_ways(&row(attack, &[SECCOMP]));
    }
}

#[test]
fn its_priority_and_scheduling() {
    if !able() {
        return;
    }
    for attack in [
        &["nice-process"][..],
        &["nice-user"],
        &["ioprio-process"],
        &["ioprio-user"],
        &["scheduler"],
        &["scheduler-param"],
        &["scheduler-attr"],
        &["affinity"],
    ] {
        three_ways(&row(attack, &[SECCOMP]));
    }
    // The group of a PID 1 has no number in its own namespace.
    for attack in [&["nice-group"][..], &["ioprio-group"]] {
        three_ways(&Row { places: &[Below], ..row(attack, &[SECCOMP]) });
    }
}

/// UID 0 with every capability: what a capability overrides is not what stops these.
#[test]
fn a_holder_of_every_capability() {
    if !able() {
        return;
    }
    for place in [Pid1, Below] {
        for attack in [
            "ptrace",
            "vm-write",
            "pidfd-getfd",
            "proc-mem",
            "prlimit-fsize",
            "nice-process",
            "scheduler",
            "affinity",
            "kill-term",
            "sigqueue",
        ] {
            let run = |guard| {
                let mut stage = Stage::new(place);
                stage.root = true;
                stage.run(guard, &[attack])
            };
            assert!(it_says(&run(Guard::Plain)), "control: {attack}");
            let full = run(Guard::Full);
            assert!(!it_says(&full) && full.verified() == Some(0), "{attack}: {full:#?}");
        }
    }
}

/// The thread that writes the audit file has a number as well, by which the whole process can be reached. With an audit file in memory
/// there is none; it has to be on a disk.
#[test]
fn its_thread_is_as_safe_as_it_is() {
    let in_memory = |dir: &std::fs::File| {
        let kind = gracekeeper::kernel::files::file_system(std::os::fd::AsFd::as_fd(dir));
        kind == libc::TMPFS_MAGIC
    };
    if !able() || in_memory(&std::fs::File::open(std::env::temp_dir()).unwrap()) {
        println!("skipped: not able, or $TMPDIR is in memory, where nothing is synced");
        return;
    }
    let run = |place, guard, attack: &str| {
        let times = ["--timeout", "300ms", "--soft", "300ms", "--hard", "600ms", "--adaptive", "no"];
        let stage = Stage::new(place).options(&times).options(&["--audit-level", "standard"]);
        let ran = stage.run(guard, &[&format!("thread:{attack}")]);
        assert!(ran.says("looking"), "{ran:#?}");
        ran
    };
    for place in [Pid1, Below] {
        for attack in ["prlimit-fsize", "prlimit-cpu", "nice-process", "ioprio-process", "scheduler", "affinity"] {
            let ran = run(place, Guard::Without("own_thread"), attack);
            assert!(ran.says("succeeded"), "control: {attack} {place:?}: {ran:#?}");
            let full = run(place, Guard::Full, attack);
            assert!(!full.says("succeeded") && full.stdout.contains("refused"), "{attack} {place:?}: {full:#?}");
            assert_eq!(full.verified(), Some(0), "{attack} {place:?}: {full:#?}");
        }
        // What the harm is: without room for a byte more the record is not sealed.
        in_three(|| {
            let silenced = run(place, Guard::Without("own_thread"), "prlimit-fsize");
            assert_ne!(silenced.verified(), Some(0), "control: {silenced:#?}");
        });
        // For signals there is the scope besides.
        in_three(|| {
            let ran = run(place, Guard::Without("own_thread,landlock,signal_scope"), "tkill");
            assert!(ran.says("succeeded"), "control: {place:?}: {ran:#?}");
        });
        let full = run(place, Guard::Without("landlock,signal_scope"), "tkill");
        assert!(!full.says("succeeded") && full.stdout.contains("refused"), "{full:#?}");
    }
}

/// A holder of CAP_SYS_NICE may say how late the supervisor's waits are (/proc/PID/timerslack_ns).
#[test]
fn its_waits_are_not_late() {
    if !able() {
        return;
    }
    for place in [Pid1, Below] {
        for level in ["off", "standard"] {
            let times = ["--timeout", "500ms", "--soft", "500ms", "--hard", "1s", "--adaptive", "no"];
            let run = |guard, root| {
                let mut stage = Stage::new(place).options(&times).options(&["--monitoring", level]);
                stage.root = root;
                let began = Instant::now();
                (stage.run(guard, &["timerslack"]), began.elapsed())
            };
            // Whether the delay is seen is a matter of the processor that has to be idle, and of what else wakes it.
            in_three(|| {
                let (late, took) = run(Guard::Without("own_timer"), true);
                assert!(took > Duration::from_secs(4), "control: {took:?}: {late:#?}");
            });
            in_three(|| {
                let (full, took) = run(Guard::Full, true);
                assert!(full.code == 124 && took < Duration::from_secs(4), "{took:?}: {full:#?}");
                assert!(!full.says("succeeded") && !full.stdout.contains("refused"), "{full:#?}");
            });
            // Nobody else may.
            let (other, _) = run(Guard::Full, false);
            assert!(other.says("refused 1"), "{other:#?}");
        }
    }
}

/// The kill of a run whose supervisor was stopped from outside for so long just after SIGTERM, far from any deadline of its ladder.
fn away(guard: Guard<'_>, absence: Duration) -> Value {
    let times = ["--timeout", "500ms", "--soft", "6s", "--hard", "6s", "--adaptive", "no", "--monitoring", "standard"];
    let mut stage = Stage::new(Pid1).options(&times);
    stage.honest = true;
    let began = Instant::now();
    let child = stage.command(guard, &["sh", "-c", "trap '' TERM; while :; do sleep 1; done"]).spawn().unwrap();
    let audit = stage.path().join("log/security-audit.json");
    until("it was asked", || std::fs::read_to_string(&audit).is_ok_and(|text| text.contains("\"rung\":\"term\"")));
    let inner = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", child.id())).unwrap();
    let inner = inner.trim().parse().unwrap();
    signal(inner, "STOP");
    std::thread::sleep(absence);
    signal(inner, "CONT");
    let attempt = stage.collect(finish(child, began));
    assert_eq!((attempt.code, attempt.verified()), (124, Some(0)), "{attempt:#?}");
    let kill = attempt.seal().unwrap()["escalation"].as_array().unwrap().last().unwrap().clone();
    assert_eq!(kill["rung"], "kill", "{attempt:#?}");
    kill
}

/// Without CPU time between two deadlines of the ladder: the samples are late, and so is it.
#[test]
fn who_was_away_between_two_deadlines_kills_at_once() {
    if !able() {
        return;
    }
    let in_time = |kill: &Value| kill["starved"].is_null() && kill["at_ms"].as_u64() >= Some(6000);
    in_three(|| {
        let late = away(Guard::Without("own_lateness"), Duration::from_secs(3));
        assert!(in_time(&late), "control: {late:#?}");
    });
    in_three(|| {
        let full = away(Guard::Full, Duration::from_secs(3));
        assert!(full["starved"] == true && full["at_ms"].as_u64() < Some(5000), "{full:#?}");
    });
    // What can be afforded is no reason.
    in_three(|| {
        let short = away(Guard::Full, Duration::from_millis(600));
        assert!(in_time(&short), "{short:#?}");
    });
}

#[test]
fn calls_that_a_filter_does_not_see() {
    if !able() {
        return;
    }
    three_ways(&row(&["io-uring"], &[SECCOMP]));
    if cfg!(target_arch = "x86_64") {
        three_ways(&row(&["int80"], &[SECCOMP]));
    }
}
