//! A disk that is slow, or does not answer at all: every fsync(2) takes as long as strace says, or the file system that the
//! disk is a file of is frozen, which stops the kernel's own fsync too. The ladder does not wait for it, and the run ends inside
//! its grace all the same.

use super::place::switched;
use super::support::*;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

/// A workload that ignores SIGTERM is stopped with a grace of 2 s: kill at 1.4 s, everything by 1.8 s. `inject` is strace's.
fn stopped(binary: &Path, inject: &str, off: &str) -> (Ran, std::time::Duration, String) {
    let dir = tempfile::tempdir().unwrap();
    let (audit, ready) = (dir.path().join("audit.json"), dir.path().join("ready"));
    let script = format!("trap '' TERM; : > {}; while :; do sleep 0.02; done", ready.display());
    let mut command = Command::new("strace");
    // -D: the tracer is somebody else's child, and gracekeeper is ours.
    command.args(["-D", "-f", "-qq", "-o", "/dev/null", "-e", "trace=fsync", "-e", inject]);
    command.arg(binary).args(["--grace", "2s", "--audit-file"]).arg(&audit).args(["--", "sh", "-c", &script]);
    command.env_clear().env("PATH", std::env::var_os("PATH").unwrap()).env("GRACEKEEPER_TEST_WITHOUT", off);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let child = command.spawn().unwrap();
    until("the workload runs", || ready.exists());
    let began = Instant::now();
    signal(child.id(), "TERM");
    let ran = finish(child, began);
    (ran, began.elapsed(), std::fs::read_to_string(audit).unwrap())
}

fn killed_at(records: &[serde_json::Value]) -> u64 {
    let kill = kill_rung(records);
    assert_eq!(kill["survivors"], 0, "{records:#?}");
    kill["at_ms"].as_u64().unwrap()
}

fn kill_rung(records: &[serde_json::Value]) -> serde_json::Value {
    let seal = records.last().unwrap();
    assert_eq!((&seal["event"], &seal["status"]), (&"evaluation_terminated".into(), &"terminated".into()), "{seal:#}");
    let rungs = seal["escalation"].as_array().unwrap();
    rungs.iter().find(|e| e["rung"] == "kill").unwrap().clone()
}

#[test]
fn a_slow_one_delays_nothing() {
    if has("strace") {
        in_three(slow);
    }
}

#[test]
fn one_that_does_not_answer_costs_the_proof_and_not_the_kill() {
    if has("strace") {
        in_three(dead);
    }
}

fn slow() {
    let (ran, took, text) = stopped(Path::new(BINARY), "inject=fsync:delay_exit=200000", "");
    assert_eq!(ran.code(), Some(143), "{ran:#?}");
    let records = records(&text);
    let at = killed_at(&records);
    assert!(at < 1_600, "the kill came {at} ms after the stop, due at 1400: {records:#?}");
    assert!(took.as_millis() < 2_000, "{took:?}, and the pod would have been killed at 2 s");
    let notes = records.last().unwrap().to_string();
    assert!(!notes.contains("did not come back"), "{notes}");
}

fn dead() {
    // The control: with the fsync in the loop the kill waits for the disk. No other build heeds the variable.
    let (_, _, text) = stopped(switched(), "inject=fsync:delay_exit=2500000", "beside");
    let waited = killed_at(&records(&text));
    assert!(waited >= 2_400, "the control: {waited} ms: {text}");
    let (ran, _, text) = stopped(Path::new(BINARY), "inject=fsync:delay_exit=2500000", "");
    assert_eq!(ran.code(), Some(143), "{ran:#?}");
    // What is in the file may not be on the disk: the seal is on stderr as well, and says so.
    let at = killed_at(&ran.records);
    assert!(at < 1_600, "the kill came {at} ms after the stop, due at 1400: {ran:#?}");
    // The process itself cannot leave before its thread has left the kernel; the record and the message do not wait for that.
    let time = |record: &serde_json::Value| time_of(record["time"].as_str().unwrap());
    let asked = text.lines().find(|line| line.contains("termination_requested")).unwrap();
    let written = time(ran.seal()) - time(&serde_json::from_str(asked).unwrap());
    assert!(written < 1.9, "on stderr {written} s after the stop");
    assert!(ran.seal().to_string().contains("its disk did not answer in time"), "{:#}", ran.seal());
}

/// Nobody stopped it and no clock runs outside: the seal is where it can be read after 0.9 times the grace all the same.
#[test]
fn one_that_does_not_answer_after_the_end_of_the_command() {
    if !has("strace") {
        return;
    }
    in_three(|| {
        let dir = tempfile::tempdir().unwrap();
        if nix::sys::statfs::statfs(dir.path()).unwrap().filesystem_type() == nix::sys::statfs::TMPFS_MAGIC {
            return println!("skipped: {} is in memory", dir.path().display());
        }
        let mut command = Command::new("strace");
        // Counted for each thread: the first one is of an empty file, and of the first record.
        command.args([
            "-D",
            "-f",
            "-qq",
            "-o",
            "/dev/null",
            "-e",
            "trace=fsync",
            "-e",
            "inject=fsync:delay_enter=3000000:when=2+",
        ]);
        command.args([BINARY, "--grace", "1s", "--audit-file"]).arg(dir.path().join("audit.json")).args(["--", "true"]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let began = Instant::now();
        let mut stderr = std::io::BufReader::new(child.stderr.take().unwrap());
        let mut line = String::new();
        // The first one is empty: the workload might have left one unfinished.
        while line.trim().is_empty() {
            assert!(std::io::BufRead::read_line(&mut stderr, &mut line).unwrap() > 0, "{line}");
        }
        let took = began.elapsed();
        assert_eq!(child.wait().unwrap().code(), Some(0));
        assert!(line.contains("evaluation_terminated") && line.contains("its disk did not answer in time"), "{line}");
        assert!(took.as_millis() < 2_500, "said after {took:?}, and the disk answered after 3 s");
    });
}

/// The pids limit has no place for another one: the thread goes, and the command runs.
#[test]
fn the_command_matters_more_than_the_thread() {
    if !has("strace") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    if nix::sys::statfs::statfs(dir.path()).unwrap().filesystem_type() == nix::sys::statfs::TMPFS_MAGIC {
        return println!("skipped: {} is in memory", dir.path().display());
    }
    let audit = dir.path().join("audit.json");
    let run = |inject: &str| {
        let mut command = Command::new("strace");
        command.args(["-D", "-f", "-qq", "-o", "/dev/null", "-e", "trace=clone", "-e", inject]);
        command.args([BINARY, "--audit-file"]).arg(&audit).args(["--", "sh", "-c", "exit 3"]);
        let out = command.stdin(Stdio::null()).output().unwrap();
        let seal = records(&std::fs::read_to_string(&audit).unwrap()).pop().unwrap();
        (out.status.code(), seal)
    };
    let (code, seal) = run("inject=clone:error=EAGAIN:when=1");
    assert_eq!((code, &seal["event"]), (Some(3), &"evaluation_terminated".into()), "{seal:#}");
    assert!(seal["errors"].to_string().contains("no thread for it"), "{seal:#}");
    let (code, seal) = run("inject=clone:error=EAGAIN");
    assert_eq!((code, &seal["status"]), (Some(125), &"supervisor_error".into()), "{seal:#}");
}

/// Its time is over when it has a CPU again, and its disk did nothing wrong.
#[test]
fn a_supervisor_that_was_away_is_sealed_in_its_file() {
    in_three(|| {
        let dir = tempfile::tempdir().unwrap();
        let (audit, ready) = (dir.path().join("audit.json"), dir.path().join("ready"));
        let script = format!("trap '' TERM; : > {}; while :; do sleep 0.02; done", ready.display());
        let mut command = Command::new(BINARY);
        command.args(["--grace", "1s", "--soft", "200ms", "--hard", "400ms", "--audit-file"]).arg(&audit);
        command.args(["--", "sh", "-c", &script]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let child = command.spawn().unwrap();
        until("the workload runs", || ready.exists());
        let began = Instant::now();
        signal(child.id(), "TERM");
        until("the trigger is recorded", || std::fs::read_to_string(&audit).unwrap().contains("termination_requested"));
        signal(child.id(), "STOP");
        // As long as its whole grace.
        std::thread::sleep(std::time::Duration::from_millis(1_100));
        signal(child.id(), "CONT");
        let ran = finish(child, began);
        assert_eq!(ran.code(), Some(143), "{ran:#?}");
        let seal = records(&std::fs::read_to_string(&audit).unwrap()).pop().unwrap();
        assert_eq!(seal["event"], "evaluation_terminated", "{seal:#}");
        assert_eq!(seal["enforcement"]["audit_file"], "enforced", "{seal:#}");
    });
}

/// The audit directory is on a disk that is a file of another file system, and that one is frozen (FIFREEZE, ioctl(2)): whoever
/// syncs waits in the kernel until it is thawed.
#[test]
fn one_that_is_frozen_holds_up_neither_the_kill_nor_the_record() {
    frozen("sleep 60");
}

/// The same while the workload changes and syncs what it has on that disk: the journal is held up at it, and then already writing to the
/// audit file waits.
#[test]
fn one_whose_journal_is_stuck_holds_up_neither_the_kill_nor_the_record() {
    frozen("cd disk/work; while :; do mkdir d; sync d; rmdir d; sync .; done");
}

/// Beside what ignores SIGTERM the workload does `beside`. One at a time: what is done about mounts waits for every frozen file system.
fn frozen(beside: &str) {
    static ONE: std::sync::Mutex<()> = std::sync::Mutex::new(());
    let _one = ONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let tools = ["mkfs.ext4", "fsfreeze"].map(|tool| Path::new("/usr/sbin").join(tool).exists());
    if !has("root") || tools.contains(&false) || !Path::new("/dev/loop-control").exists() {
        println!("skipped: root, mkfs.ext4, fsfreeze or loop devices are not here");
        return;
    }
    in_three(|| {
        // The control: with the writes in the loop there is no kill before the disk answers. No other build heeds the variable.
        let (_, in_time, all) = thawed(switched(), "beside", beside);
        assert!(!in_time.contains("evaluation_terminated"), "the control: {all}");
        let (code, in_time, all) = thawed(Path::new(BINARY), "", beside);
        assert_eq!(code, "143", "{all}");
        // Before it was thawed: everybody dead, and the record where it can be read.
        let records = records(&in_time);
        assert!(!records.is_empty(), "{all}");
        let kill = kill_rung(&records);
        assert!(kill["at_ms"].as_u64().unwrap() < 1_600, "{all}");
        // Who waits for the disk cannot die before it answers.
        assert!(kill["survivors"].as_u64().unwrap() <= u64::from(beside.contains("sync")), "{all}");
        assert!(in_time.contains("its disk did not answer in time"), "{all}");
        // The file has what the disk had taken by then.
        assert!(all.contains("sealed 1") || all.contains("cut off"), "{all}");
    });
}

/// One run on a disk that is frozen and thawed: its exit status, what it said on stderr before that, and everything.
fn thawed(binary: &Path, off: &str, beside: &str) -> (String, String, String) {
    let dir = tempfile::tempdir().unwrap();
    let script = r#"
            set -e; cd "$1"; mkdir under disk; no_lazy='-E lazy_itable_init=0,lazy_journal_init=0'
            truncate -s 200M under.img; mkfs.ext4 -q $no_lazy under.img; mount -o loop under.img under
            truncate -s 64M under/disk.img; mkfs.ext4 -q $no_lazy under/disk.img; mount -o loop under/disk.img disk
            mkdir disk/audit disk/work; sync -f disk under
            "$2" --grace 2s --adaptive no --monitoring off --audit-level standard --audit-file "$1/disk/audit/a.json" -- \
                sh -c "exec 2> /dev/null; trap '' TERM; ( $3 ) & : > '$1/ready'; while :; do sleep 0.02; done" 2> err & pid=$!
            while [ ! -e ready ]; do sleep 0.02; done
            sleep 0.3; fsfreeze -f under; sleep 0.3; kill -TERM $pid
            sleep 2; cp err in-time; sleep 1
            fsfreeze -u under; code=0; wait $pid || code=$?; echo $code > code
            "$2" verify disk/audit/a.json > verified || :
            umount disk; umount under"#;
    let run = Command::new("timeout")
        .args(["60", "unshare", "-m", "sh", "-c", script, "sh"])
        .arg(dir.path())
        .arg(binary)
        .arg(beside)
        .env("GRACEKEEPER_TEST_WITHOUT", off)
        .output();
    let read = |name: &str| std::fs::read_to_string(dir.path().join(name)).unwrap_or_default();
    let all = format!("{run:?} {} {}", read("err"), read("verified"));
    (read("code").trim().to_owned(), read("in-time"), all)
}

/// gracekeeper with `options` under strace; its run and the calls of `calls`. Nothing where the directory is in memory, whose files are not synced.
fn traced(calls: &str, limit: &str, options: &[&str], script: &str, stop: bool) -> Option<(Ran, String, String)> {
    let dir = tempfile::tempdir().unwrap();
    if nix::sys::statfs::statfs(dir.path()).unwrap().filesystem_type() == nix::sys::statfs::TMPFS_MAGIC {
        println!("skipped: {} is in memory", dir.path().display());
        return None;
    }
    let [audit, ready, trace] = ["audit.json", "ready", "trace"].map(|name| dir.path().join(name));
    let mut command = Command::new("strace");
    command.args(["-D", "-f", "-qq", "-s", "4000", "-o"]).arg(&trace).args(["-e", &format!("trace={calls}")]);
    // Not strace's own file.
    command
        .args(["prlimit", &format!("--fsize={limit}"), BINARY, "--audit-level", "standard", "--audit-file"])
        .arg(&audit);
    command.args(options).args(["--", "sh", "-c", script, "sh"]).arg(&ready);
    command.env_clear().env("PATH", std::env::var_os("PATH").unwrap());
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let child = command.spawn().unwrap();
    let began = Instant::now();
    if stop {
        until("the workload runs", || ready.exists());
        signal(child.id(), "TERM");
    }
    let ran = finish(child, began);
    let read = |path| std::fs::read_to_string(path).unwrap();
    Some((ran, read(&audit), read(&trace)))
}

/// The workload dies at once and leaves much: the trigger's record does not wait for the end of the scrub.
#[test]
fn the_trigger_is_synced_during_the_scrub() {
    if !has("strace") {
        return;
    }
    in_three(|| {
        let script = "cd $TMPDIR; i=0; while [ $i -lt 10000 ]; do : > $i; i=$((i+1)); done; : > $1; exec sleep 60";
        let Some((ran, text, trace)) = traced("write,fsync", "unlimited", &["--grace", "10s"], script, true) else {
            return;
        };
        assert_eq!(ran.code(), Some(143), "{ran:#?}");
        let seal = records(&text).pop().unwrap();
        assert!(seal["cleanup"]["used_ms"].as_u64().unwrap() > 100, "the scrub was over too soon: {seal:#}");
        let after = trace.find("termination_requested").and_then(|at| trace.get(at..)).unwrap();
        let synced = after.find("fsync(").unwrap();
        assert!(synced < after.find("evaluation_terminated").unwrap(), "{trace} {seal:#}");
    });
}

/// The file takes the trigger's record, but no seal.
#[test]
fn the_trigger_is_synced_where_the_seal_cannot_be_written() {
    if !has("strace") {
        return;
    }
    let options = ["--timeout", "300ms"];
    let Some((_, whole, _)) = traced("none", "unlimited", &options, "exec sleep 60", false) else { return };
    let before = whole
        .lines()
        .take_while(|line| !line.contains("evaluation_terminated"))
        .map(|line| line.len() + 1)
        .sum::<usize>();
    // Not every number in them has as many digits each time.
    let limit = (before + 60).to_string();
    let (ran, text, trace) = traced("write,fsync", &limit, &options, "exec sleep 60", false).unwrap();
    assert_eq!(ran.code(), Some(124), "{ran:#?}");
    assert!(text.contains("termination_requested") && !text.contains("evaluation_terminated"), "{text}");
    assert!(ran.seal().to_string().contains("the seal: write: EFBIG"), "{:#}", ran.seal());
    let after = trace.find("termination_requested").and_then(|at| trace.get(at..)).unwrap();
    assert!(after.contains("fsync("), "{trace}");
}
