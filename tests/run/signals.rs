//! What is sent to gracekeeper goes on to the workload's group, and what it does to itself ends it.
#![allow(unsafe_code)]

use super::pid1::{both, log_dir, pid1};
use super::support::*;
use gracekeeper::kernel::signals::{Signals, block_all};
use std::process::Child;
use std::time::{Duration, Instant};

/// What a program that faults is sent, and what it is sent for what it did with a pipe, the terminal and its limits.
const ALSO_THE_KERNELS: [&str; 12] =
    ["ILL", "TRAP", "ABRT", "BUS", "FPE", "SEGV", "SYS", "PIPE", "TTIN", "TTOU", "XCPU", "XFSZ"];

/// Exits with 5 and the signal's place in the list.
fn traps(m: &str) -> String {
    let trap = |(n, name)| format!("trap 'exit {}' {name}; ", 5 + n);
    let all: String = ALSO_THE_KERNELS.iter().enumerate().map(trap).collect();
    // The wait is interrupted, the sleep is nobody's.
    format!("{all} sleep {m} & wait; exit 3")
}

fn arrives(number: usize, child: Child, began: Instant, supervisor: u32) {
    let name = ALSO_THE_KERNELS[number];
    signal(supervisor, name);
    let ran = finish(child, began);
    assert_eq!(ran.code(), Some(5 + i32::try_from(number).unwrap()), "{name}: {ran:#?}");
}

#[test]
fn what_the_kernel_sends_as_well_is_forwarded() {
    for number in 0..ALSO_THE_KERNELS.len() {
        let (m, began) = (marker(), Instant::now());
        let child = gracekeeper().args(["--timeout", "20s", "--", "sh", "-c", &traps(&m)]).spawn().unwrap();
        until("the workload runs", || !marked(&m).is_empty());
        let pid = child.id();
        arrives(number, child, began, pid);
    }
}

#[test]
fn what_the_kernel_sends_as_well_is_forwarded_by_pid_1() {
    both(|unprivileged| {
        for number in 0..ALSO_THE_KERNELS.len() {
            let (dir, m, began) = (log_dir(), marker(), Instant::now());
            let words = ["--timeout", "20s", "--", "sh", "-c", &traps(&m)];
            let child = pid1(dir.path(), unprivileged, &words).spawn().unwrap();
            until("the workload runs", || !marked(&m).is_empty());
            let inner = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", child.id())).unwrap();
            arrives(number, child, began, inner.trim().parse().unwrap());
        }
    });
}

#[test]
fn what_it_is_sent_for_its_own_writes_is_not_forwarded() {
    let dir = tempfile::tempdir().unwrap();
    let (got, file) = (dir.path().join("got"), dir.path().join("audit.json"));
    // Its records go to a pipe that nobody reads, and to a file of at most one block.
    let script = format!("trap '' TERM; trap 'echo x >> {}' PIPE XFSZ; while :; do sleep 0.02; done", got.display());
    let words = "ulimit -f 1; exec \"$@\"";
    for audit in ["", "--audit-file"] {
        let (read, write) = std::io::pipe().unwrap();
        drop(read);
        let mut command = std::process::Command::new("sh");
        command.args(["-c", if audit.is_empty() { "exec \"$@\"" } else { words }, "sh", BINARY]);
        command.args(["--timeout", "300ms", "--soft", "300ms", "--hard", "400ms", "--adaptive", "no"]);
        if !audit.is_empty() {
            command.arg(audit).arg(&file);
        }
        let status = command.args(["--", "sh", "-c", &script]).stderr(write).status().unwrap();
        assert_eq!(status.code(), Some(124));
        assert!(!got.exists(), "{audit}: the workload got what was gracekeeper's own");
    }
}

#[test]
fn none_is_lost_at_the_commands_first_instant() {
    let dir = tempfile::tempdir().unwrap();
    for n in 0..100 {
        let (ready, began) = (dir.path().join(n.to_string()), Instant::now());
        let script = format!("trap 'exit 5' USR1; : > {}; while :; do sleep 0.05; done", ready.display());
        let child = gracekeeper().args(["--timeout", "5s", "--", "sh", "-c", &script]).spawn().unwrap();
        while !ready.exists() && began.elapsed() < Duration::from_secs(20) {}
        // SAFETY: integers; the child is not waited for yet.
        unsafe { libc::kill(child.id().cast_signed(), libc::SIGUSR1) };
        let ran = finish(child, began);
        assert_eq!(ran.code(), Some(5), "run {n}: {ran:#?}");
    }
}

/// The signal that ends a process which has its signals as gracekeeper has, and then does this; as PID 1 of a namespace or not.
fn ends(as_pid1: bool, does: fn()) -> Option<i32> {
    // SAFETY: the children only make calls that are safe between fork and exec, and never return.
    unsafe {
        let child = libc::fork();
        if child == 0 {
            if as_pid1 && libc::unshare(libc::CLONE_NEWPID) != 0 {
                libc::_exit(99);
            }
            let own = libc::fork();
            if own == 0 {
                block_all();
                let signals = Signals::open();
                does();
                // Where it is only queued it can be read.
                let read = signals.is_ok_and(|signals| signals.next().is_some());
                libc::_exit(if read { 98 } else { 97 });
            }
            let mut status = 0;
            libc::waitpid(own, &raw mut status, 0);
            libc::_exit(if libc::WIFSIGNALED(status) { libc::WTERMSIG(status) } else { libc::WEXITSTATUS(status) });
        }
        let deadline = Instant::now() + Duration::from_secs(20);
        let mut status = 0;
        while libc::waitpid(child, &raw mut status, libc::WNOHANG) == 0 {
            if Instant::now() > deadline {
                libc::kill(child, libc::SIGKILL);
                return None;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        Some(libc::WEXITSTATUS(status))
    }
}

#[test]
fn a_fault_of_its_own_ends_it() {
    let fault = || {
        // SAFETY: none: it is the fault that is wanted.
        unsafe { std::ptr::write_volatile(std::ptr::without_provenance_mut::<u8>(8), 1) }
    };
    let abort = || {
        // SAFETY: abort(3) takes nothing.
        unsafe { libc::abort() }
    };
    // The control: what is only sent is read and ends nobody.
    let sent = || {
        // SAFETY: integers.
        unsafe { libc::kill(libc::getpid(), libc::SIGSEGV) };
    };
    for as_pid1 in [false, true] {
        if as_pid1 && !has("root") {
            return;
        }
        assert_eq!(ends(as_pid1, sent), Some(98), "PID 1: {as_pid1}");
        assert_eq!(ends(as_pid1, fault), Some(libc::SIGSEGV), "PID 1: {as_pid1}");
        // As PID 1 the signal does nothing, and abort(3) goes on to an instruction that faults.
        let how = if as_pid1 { libc::SIGSEGV } else { libc::SIGABRT };
        assert_eq!(ends(as_pid1, abort), Some(how), "PID 1: {as_pid1}");
    }
}
