//! The machine's clock is set while the workload runs: by an hour, by decades, to before 1970. Only what the record says of the
//! time of day may follow; the deadline, the duration and the chain may not.
//!
//! No machine's clock is touched: the test traces gracekeeper and changes what clock_gettime(CLOCK_REALTIME) tells it. For that
//! every question has to reach the kernel, so the vDSO is hidden from it at its exec (getauxval(3): AT_SYSINFO_EHDR).

use super::support::*;
use nix::libc;
use nix::sys::ptrace::{self, Options};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const AT_IGNORE: i64 = 1;
const AT_SYSINFO_EHDR: i64 = 33;
/// One machine word of the tracee.
const WORD: u64 = 8;

fn read(pid: Pid, at: u64) -> i64 {
    ptrace::read(pid, at as ptrace::AddressType).unwrap()
}

/// At the exec: argc, the arguments, NULL, the environment, NULL, then pairs of type and value up to a zero.
fn hide_vdso(pid: Pid) {
    let mut at = ptrace::getregs(pid).unwrap().rsp + WORD;
    for _ in 0..2 {
        while read(pid, at) != 0 {
            at += WORD;
        }
        at += WORD;
    }
    let mut hidden = false;
    while read(pid, at) != 0 {
        if read(pid, at) == AT_SYSINFO_EHDR {
            ptrace::write(pid, at as ptrace::AddressType, AT_IGNORE).unwrap();
            hidden = true;
        }
        at += 2 * WORD;
    }
    assert!(hidden, "no vDSO to hide");
}

/// Runs `words` under gracekeeper; `after` its exec its clock is off by `step` seconds. Also how often it asked by then.
fn stepped(words: &[&str], after: Duration, step: i64) -> (Ran, u32) {
    // The shell stops itself, so that the tracer has it before the exec.
    let mut command = Command::new("sh");
    command.env_clear().env("PATH", std::env::var_os("PATH").unwrap());
    command.args(["-c", "kill -STOP $$; exec \"$@\"", "sh", BINARY]).args(words);
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let began = Instant::now();
    let pid = Pid::from_raw(i32::try_from(child.id()).unwrap());
    until("the shell has stopped itself", || {
        std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap().contains(") T ")
    });
    let options = Options::PTRACE_O_TRACEEXEC | Options::PTRACE_O_TRACEEXIT | Options::PTRACE_O_EXITKILL;
    ptrace::seize(pid, options | Options::PTRACE_O_TRACESYSGOOD).unwrap();
    signal(child.id(), "CONT");
    let (mut set_at, mut asked) = (None, 0);
    loop {
        let deliver = match waitpid(pid, Some(WaitPidFlag::__WALL)).unwrap() {
            WaitStatus::PtraceEvent(_, _, libc::PTRACE_EVENT_EXIT) => {
                ptrace::detach(pid, None).unwrap();
                return (finish(child, began), asked);
            }
            WaitStatus::PtraceEvent(_, _, libc::PTRACE_EVENT_EXEC) => {
                hide_vdso(pid);
                set_at = Some(Instant::now() + after);
                None
            }
            WaitStatus::PtraceSyscall(_) if set_at.is_some_and(|at| Instant::now() >= at) => {
                let regs = ptrace::getregs(pid).unwrap();
                let call = (regs.orig_rax.cast_signed(), regs.rdi.cast_signed(), regs.rax);
                if call == (libc::SYS_clock_gettime, libc::CLOCK_REALTIME.into(), 0) {
                    ptrace::write(pid, regs.rsi as ptrace::AddressType, read(pid, regs.rsi) + step).unwrap();
                    asked += 1;
                }
                None
            }
            WaitStatus::Stopped(_, signal) => Some(signal),
            _ => None,
        };
        ptrace::syscall(pid, deliver).unwrap();
    }
}

#[test]
fn a_clock_that_is_set_moves_no_deadline() {
    const HOUR: i64 = 3600;
    let century = 100 * 365 * 24 * HOUR;
    for (step, year) in
        [(HOUR, None), (-HOUR, None), (century, Some("21")), (-century, Some("1970-01-01T00:00:00.000Z"))]
    {
        in_three(|| set(step, year));
    }
}

fn set(step: i64, year: Option<&str>) {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("audit.json");
    let marker = marker();
    let script = format!("trap '' TERM; setsid sleep {marker} & while :; do sleep 0.02; done");
    let name = file.display().to_string();
    let words =
        ["--timeout", "500ms", "--soft", "200ms", "--hard", "500ms", "--audit-file", &name, "--", "sh", "-c", &script];
    let (ran, asked) = stepped(&words, Duration::from_millis(250), step);
    assert!(asked > 0, "the clock was never asked after it was set: {ran:#?}");
    let text = std::fs::read_to_string(&file).unwrap();
    let records = records(&text);
    let seal = records.last().unwrap();
    assert_eq!((ran.code(), &seal["status"]), (Some(124), &"timeout".into()), "{seal:#}");
    assert!(marked(&marker).is_empty(), "{seal:#}");
    // The wall clock of this test, which nobody set.
    assert!(ran.took >= Duration::from_millis(990) && ran.took < Duration::from_secs(3), "{:?}", ran.took);
    let duration = seal["duration"].as_f64().unwrap();
    assert!((0.49..1.5).contains(&duration), "{seal:#}");
    let used = seal["resources"]["wall_ms"].as_u64().unwrap();
    assert!((990..3000).contains(&used), "{seal:#}");
    let kill = seal["escalation"].as_array().unwrap().iter().find(|rung| rung["rung"] == "kill").unwrap();
    assert!((490..1500).contains(&kill["at_ms"].as_u64().unwrap()), "{seal:#}");
    // And the record followed the clock, or nothing was shown.
    let (first, last) = (records[0]["time"].as_str().unwrap(), seal["time"].as_str().unwrap());
    match year {
        Some(year) => assert!(last.starts_with(year), "{first} {last}"),
        None => {
            let moved = time_of(last) - time_of(first);
            assert!((moved - step as f64).abs() < 5.0, "{first} {last}");
        }
    }
    let verify = Command::new(BINARY).arg("verify").arg(&file).stdout(Stdio::null()).status().unwrap();
    assert_eq!(verify.code(), Some(0), "{text}");
}
