//! A soak: one evaluation after another, each PID 1 of namespaces of its own, and afterwards the machine is as it was: no process,
//! mount, descriptor, file or IPC object more, and the last supervisors no larger than the first.
//! 100 runs, three of ten with the audit file on a disk; GRACEKEEPER_SOAK_RUNS=10000 for the whole thing.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic, dead_code)]

#[path = "support/namespaces.rs"]
mod namespaces;
#[path = "support/places.rs"]
mod places;
#[path = "support/schema.rs"]
mod schema;
#[path = "run/support.rs"]
mod support;

use namespaces::namespaced;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use places::Place;
use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use support::*;

/// What each evaluation leaves behind for the supervisor to end: escapees, files, a shared memory segment, a held descriptor.
const MESS: &str = "mkdir -p /tmp/a/b; echo secret > /tmp/a/b/f; echo s > /dev/shm/s; chmod 000 /tmp/a; \
    (trap '' TERM; setsid sleep MARK &) ; (sleep MARK 9> /tmp/held &); exit 3";

/// A mount namespace of this thread's own, where nobody else's mounts come; those of a run that were not kept to itself do.
fn alone() {
    unshare(CloneFlags::CLONE_NEWNS).unwrap();
    for how in [MsFlags::MS_PRIVATE, MsFlags::MS_SHARED] {
        mount(None::<&str>, "/", None::<&str>, how | MsFlags::MS_REC, None::<&str>).unwrap();
    }
}

/// Names that are there now and can be told apart from what the rest of the machine does: mounts, this process's descriptors,
/// and what lies in the directories that a run could have written to.
fn state(dir: &Path) -> BTreeSet<String> {
    let mut all: BTreeSet<String> = std::fs::read_to_string("/proc/thread-self/mountinfo")
        .unwrap()
        .lines()
        .map(|line| format!("mount {}", line.split(' ').nth(4).unwrap()))
        .collect();
    for (what, below) in [("fd", Path::new("/proc/self/fd")), ("log", dir)] {
        let names = std::fs::read_dir(below).unwrap().flatten().map(|e| e.file_name());
        all.extend(names.map(|name| format!("{what} {}", name.to_string_lossy())));
    }
    all
}

/// One evaluation, and the supervisor's peak resident memory in KiB: VmHWM of the namespace's PID 1, as its own workload reads it, once
/// the supervisor waits (it goes on beside its workload's first steps).
fn evaluation(dir: &Path, mark: &str) -> (Ran, u64) {
    let settled =
        "sleep 0.02; until grep -q '^State:.*sleeping' /proc/1/status; do sleep 0.01; done; grep VmHWM /proc/1/status";
    let workload = format!("{settled}; {}", MESS.replace("MARK", mark));
    let mut command = namespaced(dir, "exec /mnt/gracekeeper \"$@\"");
    command.args(["--soft", "50ms", "--hard", "100ms", "--", "sh", "-c", &workload]);
    let ran = run(&mut command);
    let peak = ran.stdout.split_whitespace().nth(1).and_then(|n| n.parse().ok()).unwrap_or(0);
    (ran, peak)
}

#[test]
fn one_evaluation_after_another_leaves_the_machine_as_it_was() {
    if !has("root") {
        return;
    }
    let runs: usize = std::env::var("GRACEKEEPER_SOAK_RUNS").ok().and_then(|n| n.parse().ok()).unwrap_or(100);
    alone();
    let on_disk = runs * 3 / 10;
    for (place, runs) in [(Place::Disk, on_disk), (Place::Memory, runs - on_disk)] {
        soak(place, runs);
    }
}

fn soak(place: Place, runs: usize) {
    let dir = place.directory();
    let mark = marker();
    // The first one makes the audit file; what comes after it adds lines only.
    evaluation(dir.path(), &mark);
    let before = state(dir.path());
    let mut peaks = Vec::with_capacity(runs);
    for n in 0..runs {
        let (ran, peak) = evaluation(dir.path(), &mark);
        assert_eq!(ran.code(), Some(3), "{place:?}, run {n}: {ran:#?}");
        peaks.push(peak);
    }
    // Not the other way round: what is mounted on a directory goes from here too where somebody else removes that (rmdir(2)).
    let more: Vec<_> = state(dir.path()).difference(&before).cloned().collect();
    assert_eq!(more, Vec::<String>::new(), "something was left behind");
    assert_eq!(marked(&mark), Vec::<u32>::new(), "somebody outlived a run");
    let text = std::fs::read_to_string(dir.path().join("security-audit.json")).unwrap();
    let seals: Vec<_> = records(&text).into_iter().filter(|r| r["event"] == "evaluation_terminated").collect();
    assert_eq!(seals.len(), runs + 1, "one seal for each");
    for seal in &seals {
        assert_eq!(
            (&seal["status"], &seal["cleanup_status"]),
            (&"nonzero_exit".into(), &"complete".into()),
            "{seal:#}"
        );
    }
    let verified = Command::new(BINARY).arg("verify").arg(dir.path().join("security-audit.json")).output().unwrap();
    assert!(verified.status.success(), "{verified:?}");
    // The medians: one supervisor more or less unlucky with its pages says nothing.
    let median = |part: &[u64]| {
        let mut part = part.to_vec();
        part.sort_unstable();
        part[part.len() / 2]
    };
    let tenth = (runs / 10).max(1);
    let (first, last) = (median(&peaks[..tenth]), median(&peaks[runs - tenth..]));
    println!("{runs} evaluations, audit file: {place:?}: peak {first} KiB at first, {last} KiB at last");
    assert!(first > 0 && last <= first + 128, "a later supervisor takes more: {first} KiB, then {last} KiB");
}
