//! Campaigns with a seed: a stop at any instant, the death of PID 1 at any instant, and a kernel that refuses one call.
//! A few dozen runs each; GRACEKEEPER_RELIABILITY_RUNS sets how many, GRACEKEEPER_RELIABILITY_SEED repeats a failure. Every refusal of
//! every call of PID 1's: GRACEKEEPER_RELIABILITY_AS=pid1 and more runs than there are.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic, dead_code)]

#[path = "support/namespaces.rs"]
mod namespaces;
#[path = "support/places.rs"]
mod places;
// The registers of the tracee.
#[cfg(target_arch = "x86_64")]
#[path = "support/refuse.rs"]
mod refuse;
#[path = "support/schema.rs"]
mod schema;
#[path = "run/support.rs"]
mod support;

use namespaces::namespaced;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use places::Place;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use support::*;

/// xorshift64; the seed is printed, and a failing test shows what it printed.
struct Seed(u64);

impl Seed {
    fn new() -> Self {
        let given = std::env::var("GRACEKEEPER_RELIABILITY_SEED").ok().and_then(|s| s.parse().ok());
        let seed = given.unwrap_or_else(|| {
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
            u64::try_from(now.as_nanos() & 0xffff_ffff).unwrap() | 1
        });
        println!("GRACEKEEPER_RELIABILITY_SEED={seed}");
        Self(seed)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }
}

fn runs(otherwise: u64) -> u64 {
    std::env::var("GRACEKEEPER_RELIABILITY_RUNS").ok().and_then(|n| n.parse().ok()).unwrap_or(otherwise)
}

/// `gracekeeper WORDS` as PID 1 of namespaces of its own, once a line comes on stdin; `dir` is its /var/log.
fn pid1(dir: &Path, words: &[&str]) -> Command {
    let mut command = namespaced(dir, "read go; exec /mnt/gracekeeper \"$@\" </dev/null");
    command.args(words).stdin(Stdio::piped());
    command
}

/// Its pid out here, once it is there.
fn inner(child: &Child) -> i32 {
    let mut pid = None;
    until("the namespace has its PID 1", || {
        let children = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", child.id())).unwrap_or_default();
        pid = children.trim().parse().ok();
        // The shell, and no longer unshare itself.
        pid.is_some_and(|p: i32| std::fs::read_link(format!("/proc/{p}/exe")).is_ok_and(|e| !e.ends_with("unshare")))
    });
    pid.unwrap()
}

fn go(child: &mut Child, pid: i32) {
    child.stdin.take().unwrap().write_all(b"go\n").unwrap();
    until("it is gracekeeper", || {
        let exe = std::fs::read_link(format!("/proc/{pid}/exe"));
        exe.map_or(true, |exe| exe.ends_with("gracekeeper"))
    });
}

fn verify(file: &Path) -> Option<i32> {
    Command::new(BINARY).arg("verify").arg(file).stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap().code()
}

fn audit(dir: &tempfile::TempDir) -> PathBuf {
    dir.path().join("security-audit.json")
}

/// Every other time six runs on a disk, and six in memory.
fn place(round: u64) -> (Place, tempfile::TempDir) {
    let place = if (round / 6).is_multiple_of(2) { Place::Disk } else { Place::Memory };
    (place, place.directory())
}

/// Whether it has another thread besides its first: the scribe, before anything is scrubbed.
fn has_threads(pid: i32) -> bool {
    std::fs::read_dir(format!("/proc/{pid}/task")).is_ok_and(|tasks| tasks.count() > 1)
}

/// A workload, its options, and what it may end with besides 143. The fourth forks so fast in its grace that it may be taken
/// for the fork bomb it is.
fn workloads(m: &str) -> [(Vec<&'static str>, String, &'static [i32]); 6] {
    let deaf = format!(
        "trap '' TERM; (setsid sh -c 'trap \"\" TERM; sleep {m} & wait; sleep {m}' &); sleep {m} & wait; sleep {m}"
    );
    [
        (vec![], format!("exec sleep {m}"), &[]),
        (vec![], deaf.clone(), &[]),
        (vec![], format!("setsid sh -c 'trap \"\" TERM; sleep {m} & wait; sleep {m}' & sleep 0.15; exit 7"), &[7]),
        (vec![], format!("trap '' TERM; while :; do sleep {m} & true; kill -9 $!; done"), &[121]),
        (vec!["--output-limit", "3M"], "while :; do head -c 20000 /dev/zero; sleep 0.002; done".into(), &[121]),
        (vec!["--timeout", "100ms"], deaf, &[124]),
    ]
}

#[test]
fn a_stop_at_any_instant_over_six_workloads() {
    if !has("root") {
        return;
    }
    let mut seed = Seed::new();
    // Runs, and those that had a thread when the stop came: on a disk, in memory.
    let (mut disk, mut memory) = ([0_u32; 2], [0_u32; 2]);
    for round in 0..runs(36) {
        let m = marker();
        let kind = usize::try_from(round % 6).unwrap();
        let (options, script, codes) = workloads(&m)[kind].clone();
        let (place, dir) = place(round);
        let mut words = vec!["--grace", "3s", "--soft", "100ms", "--hard", "200ms"];
        words.extend(options);
        words.extend(["--", "sh", "-c", &script]);
        let mut child = pid1(dir.path(), &words).spawn().unwrap();
        let pid = inner(&child);
        go(&mut child, pid);
        // Between the kernel's exec and our first instruction a signal to PID 1 is dropped, whoever it is.
        until("it blocks signals, or is over", || blocks_term(pid) || !Path::new(&format!("/proc/{pid}")).exists());
        let after = seed.below(400_000);
        std::thread::sleep(Duration::from_micros(after));
        let threads = has_threads(pid);
        let stopped = Instant::now();
        let _ = kill(Pid::from_raw(pid), Signal::SIGTERM); // ESRCH: it had completed.
        let ran = finish(child, stopped);
        let seen = if place == Place::Disk { &mut disk } else { &mut memory };
        *seen = [seen[0] + 1, seen[1] + u32::from(threads)];
        let context = format!("round {round}, workload {kind}, {place:?}, TERM after {after} us: {ran:#?}");
        let code = ran.code().unwrap();
        assert!(code == 143 || codes.contains(&code), "{context}");
        assert!(ran.took < Duration::from_secs(3), "in time: {context}");
        assert_eq!(marked(&m), Vec::<u32>::new(), "nobody alive: {context}");
        let records = records(&std::fs::read_to_string(audit(&dir)).unwrap());
        let seals = records.iter().filter(|r| r["event"] == "evaluation_terminated").count();
        assert_eq!(seals, 1, "one seal: {context}");
        let seal = records.last().unwrap();
        assert_eq!((&seal["event"], &seal["exit_code"]), (&"evaluation_terminated".into(), &code.into()), "{context}");
        assert_eq!(verify(&audit(&dir)), Some(0), "{context}");
        if kind == 4 {
            let delivered = seal["output"]["delivered"].as_u64().unwrap();
            assert_eq!(delivered, u64::try_from(ran.stdout.len()).unwrap(), "{context}");
        }
    }
    println!(
        "on a disk {} runs, {} with the scribe at the stop; in memory {}, {}",
        disk[0], disk[1], memory[0], memory[1]
    );
    assert!(disk[1] * 2 > disk[0], "the scribe was hardly ever there: {disk:?}");
    assert!(memory[1] * 2 < memory[0].max(1), "threads where there is nothing to wait for: {memory:?}");
}

#[test]
fn the_death_of_pid_1_at_any_instant_leaves_a_file_that_says_so() {
    if !has("root") {
        return;
    }
    let mut seed = Seed::new();
    let (mut disk, mut memory) = ([0_u32; 3], [0_u32; 3]);
    let mut scribes = 0_u32;
    for round in 0..runs(40) {
        let m = marker();
        let (place, dir) = place(round);
        let verdicts = if place == Place::Disk { &mut disk } else { &mut memory };
        let script = format!("trap '' TERM; sleep {m} & wait; sleep {m}");
        let words = ["--timeout", "30ms", "--soft", "20ms", "--hard", "40ms", "--", "sh", "-c", &script];
        let mut child = pid1(dir.path(), &words).spawn().unwrap();
        let pid = inner(&child);
        go(&mut child, pid);
        let after = seed.below(140_000);
        std::thread::sleep(Duration::from_micros(after));
        scribes += u32::from(place == Place::Disk && has_threads(pid));
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        let ran = finish(child, Instant::now());
        let context = format!("round {round}, {place:?}, KILL after {after} us: {ran:#?}");
        until("the kernel took the namespace with it", || marked(&m).is_empty());
        let file = audit(&dir);
        let Ok(text) = std::fs::read_to_string(&file) else {
            verdicts[0] += 1;
            continue; // It had not come to opening it.
        };
        let lines: Vec<&str> = text.split('\n').collect();
        let whole = lines.len() - 1;
        for (n, line) in lines.iter().take(whole).enumerate() {
            // Only the last line may be torn, and a torn one has no newline.
            assert!(serde_json::from_str::<serde_json::Value>(line).is_ok(), "line {n} of {text:?}: {context}");
        }
        let sealed = lines[..whole].last().is_some_and(|l| l.contains("\"event\":\"evaluation_terminated\""));
        assert_eq!(verify(&file), Some(if sealed { 0 } else { 3 }), "{text}\n{context}");
        verdicts[if sealed { 2 } else { 1 }] += 1;
        // The next run appends, and is sealed; the earlier one stays what it was.
        let next = run(gracekeeper().arg("--audit-file").arg(&file).args(["--", "true"]));
        assert_eq!(next.code(), Some(0), "{context}\n{next:#?}");
        let after = std::fs::read_to_string(&file).unwrap();
        assert!(after.starts_with(&text) && after.trim_end().lines().last().unwrap().contains("evaluation_terminated"));
        let honest = if sealed || text.is_empty() { 0 } else { 3 };
        assert_eq!(verify(&file), Some(honest), "{after}\n{context}");
    }
    for (what, [none, cut, sealed]) in [("on a disk", disk), ("in memory", memory)] {
        println!("{what}: no file yet {none}, cut off {cut}, sealed {sealed}");
    }
    println!("{scribes} of those on a disk had the scribe when they were killed");
    assert!(scribes > 0, "the scribe was never there");
}

/// The calls that strace saw, in order, as (name, how manieth of that name, line).
fn calls(trace: &str) -> Vec<(String, u32, String)> {
    let mut seen = std::collections::HashMap::new();
    let mut calls = Vec::new();
    for line in trace.lines() {
        let Some((name, _)) = line.split_once('(') else { continue };
        if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
            continue;
        }
        let n = seen.entry(name.to_owned()).or_insert(0);
        *n += 1;
        calls.push((name.to_owned(), *n, line.to_owned()));
    }
    calls
}

/// One traced run whose workload has to be killed; `inject` is one of strace's expressions.
fn traced(as_pid1: bool, dir: &tempfile::TempDir, m: &str, inject: Option<&str>) -> (Ran, String) {
    let script = format!(
        "trap '' TERM; setsid sh -c 'trap \"\" TERM; sleep {m} & wait; sleep {m}' & sleep {m} & wait; sleep {m}"
    );
    let log = dir.path().join("trace");
    let file = audit(dir);
    let began = Instant::now();
    let strace = |rest: &[&str]| {
        let mut command = Command::new("strace");
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap());
        command.args(["-q", "-s", "16", "-o"]).arg(&log);
        if let Some(inject) = inject {
            command.args(["-e", &format!("inject={inject}")]);
        }
        command.args(rest).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    };
    let options = ["--timeout", "120ms", "--soft", "60ms", "--hard", "120ms", "--output-limit", "1M", "--audit-file"];
    let ran = if as_pid1 {
        let mut words = options.to_vec();
        words.extend(["/var/log/security-audit.json", "--", "sh", "-c", &script]);
        let mut child = pid1(dir.path(), &words).spawn().unwrap();
        let pid = inner(&child);
        let mut tracer = strace(&["-p", &pid.to_string()]).spawn().unwrap();
        until("strace has it", || {
            let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            status.lines().any(|l| l.strip_prefix("TracerPid:").is_some_and(|p| p.trim() != "0"))
        });
        go(&mut child, pid);
        let ran = finish(child, began);
        tracer.wait().unwrap();
        ran
    } else {
        let mut command = strace(&[]);
        command.arg(BINARY).args(options).arg(&file).args(["--", "sh", "-c", &script]);
        finish(command.spawn().unwrap(), began)
    };
    (ran, std::fs::read_to_string(&log).unwrap_or_default())
}

/// Where the calls of the workload's life begin: behind the fork.
fn spawned(calls: &[(String, u32, String)]) -> Option<usize> {
    let fork = calls.iter().rposition(|(name, _, line)| {
        matches!(name.as_str(), "clone" | "fork" | "vfork") && !line.contains("CLONE_THREAD")
    })?;
    Some(fork + 1)
}

/// After the fork, what the supervisor asks of the kernel: all but what cannot come back with an error.
fn after_spawn(trace: &str) -> Vec<(String, u32, String)> {
    let calls = calls(trace);
    calls[spawned(&calls).expect("the trace has the fork")..]
        .iter()
        // brk answers with the break that is in force, never with an errno (brk(2), C library/kernel differences); one would be
        // taken for an address, by every program there is.
        .filter(|(name, ..)| {
            !matches!(name.as_str(), "exit_group" | "exit" | "rt_sigreturn" | "restart_syscall" | "brk")
        })
        .cloned()
        .collect()
}

#[test]
fn a_kernel_that_refuses_any_one_call_changes_neither_the_end_nor_its_status() {
    if !has("root") || !has("strace") {
        return;
    }
    let mut seed = Seed::new();
    let only = std::env::var("GRACEKEEPER_RELIABILITY_AS").ok();
    for as_pid1 in [false, true] {
        if only.as_deref().is_some_and(|only| as_pid1 != (only == "pid1")) {
            continue;
        }
        let dir = tempfile::tempdir().unwrap();
        let m = marker();
        let (ran, trace) = traced(as_pid1, &dir, &m, None);
        assert_eq!(ran.code(), Some(124), "{ran:#?}\n{trace}");
        let calls = after_spawn(&trace);
        assert!(calls.len() > 20, "{trace}");
        let mut tries: Vec<_> = calls
            .iter()
            .flat_map(|call| ["EPERM", "ENOSYS", "EAGAIN", "ENOMEM", "EINTR"].map(|errno| (call, errno)))
            .collect();
        let wanted = usize::try_from(runs(30)).unwrap().min(tries.len());
        println!("{} calls after the spawn, {wanted} tries", calls.len());
        for i in (1..tries.len()).rev() {
            tries.swap(i, usize::try_from(seed.below(u64::try_from(i + 1).unwrap())).unwrap());
        }
        // Always among them: the go, without which the command would not run.
        tries.sort_by_key(|((name, _, line), _)| !(name == "write" && line.contains("\"!\", 1")));
        let mut wrong = Vec::new();
        let (mut tried, mut hits) = (0usize, 0usize);
        for ((name, n, line), errno) in tries.into_iter().take(wanted * 4) {
            if tried >= wanted && hits * 2 > wanted {
                break;
            }
            let dir = tempfile::tempdir().unwrap();
            let m = marker();
            println!("{errno} for {name} number {n}: {line}");
            let (ran, trace) = traced(as_pid1, &dir, &m, Some(&format!("{name}:error={errno}:when={n}")));
            let left = marked(&m);
            left.iter().for_each(|&pid| signal(pid, "KILL"));
            tried += 1;
            let met = self::calls(&trace);
            let hit = met.iter().position(|(.., line)| line.ends_with("(INJECTED)"));
            // The walk before the fork makes calls for every process of the machine too: a call that was counted as one after the
            // fork may be one before it this time, and a launch that fails is another matter.
            if hit.is_some_and(|at| spawned(&met).is_none_or(|from| at < from)) {
                continue;
            }
            let hit = hit.is_some();
            hits += usize::from(hit);
            let text = std::fs::read_to_string(audit(&dir)).unwrap_or_default();
            let mut all = records(&text);
            all.extend(ran.records.iter().cloned());
            let seal = all.iter().rev().find(|r| r["event"] == "evaluation_terminated");
            // A loop that cannot wait ends at once, as gracekeeper's own failure.
            let may_fail = name == "ppoll" && errno != "EINTR";
            let right = ran.code() == Some(124) || (may_fail && ran.code() == Some(125));
            let told = seal.is_some_and(|s| Some(s["exit_code"].as_i64().unwrap_or(-1)) == ran.code().map(i64::from));
            // What is lost with these calls is visible to whoever reads the record.
            let loses = matches!(name.as_str(), "fsync" | "fdatasync" | "splice" | "unlinkat")
                && errno != "EINTR"
                && errno != "EAGAIN";
            let named = seal.is_some_and(|s| {
                s["errors"].is_array() || s["cleanup_status"] != "complete" || !ran.records.is_empty()
            });
            if !left.is_empty() || !right || !told || (hit && loses && name != "splice" && !named) {
                let what = format!(
                    "pid1 {as_pid1}, {errno} for {name} number {n} ({line}): hit {hit}, left {left:?}, status {:?}, seal {}\nstderr {}",
                    ran.status,
                    seal.map_or("none".into(), ToString::to_string),
                    ran.stderr
                );
                println!("{what}"); // Not only at the end: it is an hour's work.
                wrong.push(what);
            }
        }
        // How many calls there are differs from run to run (a walk makes three for each process of the machine, when not PID
        // 1), so it goes on until as many were met as half of the campaign.
        println!("pid1 {as_pid1}: {hits} of {tried} tries met their call");
        assert!(hits * 2 > wanted, "{hits} of {tried}");
        assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n\n"));
    }
}

/// One run as PID 1 whose audit file is on a disk, whose termination log is a file and whose /tmp is filled, so that there are threads for
/// all three; one of their calls is refused. All calls of the supervisor's threads, in order, and whether that one was made.
#[cfg(target_arch = "x86_64")]
fn threaded(
    dir: &tempfile::TempDir,
    m: &str,
    refusal: Option<(refuse::Call, nix::errno::Errno)>,
) -> (Ran, Vec<refuse::Call>, bool) {
    let script = format!(
        "mkdir /tmp/a /tmp/b; i=0; while [ $i -lt 20 ]; do : > /tmp/a/$i; : > /tmp/b/$i; i=$((i+1)); done; \
         trap '' TERM; setsid sh -c 'trap \"\" TERM; sleep {m} & wait; sleep {m}' & sleep {m} & wait; sleep {m}"
    );
    std::fs::write(dir.path().join("termination"), "").unwrap();
    let mut words = vec!["--timeout", "150ms", "--soft", "60ms", "--hard", "120ms", "--grace", "4s"];
    // A wake that is lost can leave a worker asleep: the budget ends that.
    words.extend(["--scrub-budget", "2s", "--termination-log", "/var/log/termination", "--", "sh", "-c", &script]);
    let began = Instant::now();
    let mut child = pid1(dir.path(), &words).spawn().unwrap();
    let pid = inner(&child);
    let (ready, attached) = std::sync::mpsc::channel();
    let tracer = std::thread::spawn(move || refuse::watch(Pid::from_raw(pid), refusal, &ready));
    attached.recv().unwrap();
    go(&mut child, pid);
    // One that hangs is a try that went wrong, and no more.
    let (over, ended) = std::sync::mpsc::channel();
    let watchdog = std::thread::spawn(move || {
        if ended.recv_timeout(Duration::from_secs(30)).is_err() {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    });
    let ran = finish(child, began);
    over.send(()).unwrap_or_default();
    watchdog.join().unwrap();
    let (calls, hit) = tracer.join().unwrap();
    (ran, calls, hit)
}

/// The scribe's, the scrub's and the errand's: what becomes of the run, and of the record, where the kernel refuses one of their calls.
#[cfg(target_arch = "x86_64")]
#[test]
fn a_kernel_that_refuses_any_one_call_of_a_thread_changes_neither_the_end_nor_its_status() {
    use nix::errno::Errno;
    use nix::libc;
    if !has("root") {
        return;
    }
    let mut seed = Seed::new();
    let (dir, m) = (Place::Disk.directory(), marker());
    let (ran, calls, _) = threaded(&dir, &m, None);
    assert_eq!(ran.code(), Some(124), "{ran:#?}");
    // What has no answer, and what cannot be refused (see `after_spawn`); and glibc ends the process where a thread has no rseq(2) and
    // the first one has.
    let is_refused = |call: &&refuse::Call| {
        ![libc::SYS_exit, libc::SYS_exit_group, libc::SYS_rt_sigreturn, libc::SYS_brk, libc::SYS_rseq]
            .contains(&call.number)
    };
    let theirs: Vec<_> = calls.iter().filter(|call| call.thread > 0).filter(is_refused).copied().collect();
    let threads: std::collections::BTreeSet<_> = theirs.iter().map(|call| call.thread).collect();
    for wanted in [libc::SYS_write, libc::SYS_fsync] {
        assert!(theirs.iter().any(|call| (call.thread, call.number) == (1, wanted)), "no scribe? {theirs:#?}");
    }
    assert!(threads.len() > 2, "the scribe, the scrub, the errand: {theirs:#?}");
    let errnos = [Errno::EPERM, Errno::ENOSYS, Errno::EAGAIN, Errno::ENOMEM, Errno::EINTR, Errno::EIO, Errno::ENOSPC];
    let mut tries: Vec<_> = theirs.iter().flat_map(|call| errnos.map(|errno| (*call, errno))).collect();
    // futex(2) has no other answers to a right call, and glibc ends the process for them.
    tries.retain(|(call, errno)| call.number != libc::SYS_futex || matches!(errno, Errno::EAGAIN | Errno::EINTR));
    for i in (1..tries.len()).rev() {
        tries.swap(i, usize::try_from(seed.below(u64::try_from(i + 1).unwrap())).unwrap());
    }
    if let Ok(only) = std::env::var("GRACEKEEPER_RELIABILITY_CALL") {
        tries.retain(|(call, errno)| format!("{errno:?} for {call}").contains(&only));
    }
    let wanted = usize::try_from(runs(30)).unwrap();
    println!("{} threads, {} calls, {} tries", threads.len(), theirs.len(), tries.len().min(wanted));
    let (mut hits, mut tried, mut wrong) = (0_usize, 0_usize, Vec::new());
    for (call, errno) in tries.into_iter().take(wanted) {
        let (dir, m) = (Place::Disk.directory(), marker());
        println!("{errno:?} for {call}");
        let (ran, _, hit) = threaded(&dir, &m, Some((call, errno)));
        let left = marked(&m);
        left.iter().for_each(|&pid| signal(pid, "KILL"));
        (tried, hits) = (tried + 1, hits + usize::from(hit));
        let mut all = records(&std::fs::read_to_string(audit(&dir)).unwrap_or_default());
        all.extend(ran.records.iter().cloned());
        let seal = all.iter().rev().find(|r| r["event"] == "evaluation_terminated");
        let told = seal.is_some_and(|seal| seal["exit_code"] == 124 && seal["status"] == "timeout");
        // A seal in time, and what is not durable is said; but the termination message is the last word, also of itself.
        let in_time = ran.took < Duration::from_secs(4);
        let loses =
            (call.thread, call.number) == (1, libc::SYS_fsync) && !matches!(errno, Errno::EINTR | Errno::EAGAIN);
        let named = seal.is_some_and(|seal| seal["errors"].is_array());
        if !left.is_empty() || ran.code() != Some(124) || !told || !in_time || (hit && loses && !named) {
            let what = format!(
                "{errno:?} for {call}: hit {hit}, left {left:?}, status {:?} after {:?}, seal {}\nstderr {}",
                ran.status,
                ran.took,
                seal.map_or("none".into(), ToString::to_string),
                ran.stderr
            );
            println!("{what}");
            wrong.push(what);
        }
    }
    println!("{hits} of {tried} tries met their call");
    assert!(hits * 2 > tried, "{hits} of {tried}");
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n\n"));
}
