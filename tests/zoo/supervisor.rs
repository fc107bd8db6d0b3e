//! Memory, descriptors, limits, priority, scheduling and CPUs of the supervisor.

use super::place::*;

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
