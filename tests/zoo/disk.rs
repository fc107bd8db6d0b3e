//! A disk that is slow, or does not answer at all: every fsync(2) takes as long as strace says. The ladder does not wait for
//! it, and the run ends inside its grace all the same.

use super::place::switched;
use super::support::*;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

/// A workload that ignores SIGTERM is stopped with a grace of 2 s: kill at 1.4 s, everything by 1.8 s.
fn stopped(binary: &Path, delay_ms: u64) -> (Ran, std::time::Duration, String) {
    let dir = tempfile::tempdir().unwrap();
    let (audit, ready) = (dir.path().join("audit.json"), dir.path().join("ready"));
    let script = format!("trap '' TERM; : > {}; while :; do sleep 0.02; done", ready.display());
    let mut command = Command::new("strace");
    // -D: the tracer is somebody else's child, and gracekeeper is ours.
    command.args(["-D", "-f", "-qq", "-o", "/dev/null", "-e", "trace=fsync", "-e"]);
    command.arg(format!("inject=fsync:delay_exit={}", delay_ms * 1000));
    command.arg(binary).args(["--grace", "2s", "--audit-file"]).arg(&audit).args(["--", "sh", "-c", &script]);
    command.env_clear().env("PATH", std::env::var_os("PATH").unwrap()).env("GRACEKEEPER_TEST_WITHOUT", "beside");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let child = command.spawn().unwrap();
    until("the workload runs", || ready.exists());
    let began = Instant::now();
    signal(child.id(), "TERM");
    let ran = finish(child, began);
    (ran, began.elapsed(), std::fs::read_to_string(audit).unwrap())
}

fn killed_at(records: &[serde_json::Value]) -> u64 {
    let seal = records.last().unwrap();
    assert_eq!((&seal["event"], &seal["status"]), (&"evaluation_terminated".into(), &"terminated".into()), "{seal:#}");
    let rungs = seal["escalation"].as_array().unwrap();
    let kill = rungs.iter().find(|e| e["rung"] == "kill").unwrap();
    assert_eq!(kill["survivors"], 0, "{seal:#}");
    kill["at_ms"].as_u64().unwrap()
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
    let (ran, took, text) = stopped(Path::new(BINARY), 200);
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
    let (_, _, text) = stopped(switched(), 2_500);
    let waited = killed_at(&records(&text));
    assert!(waited >= 2_400, "the control: {waited} ms: {text}");
    let (ran, _, text) = stopped(Path::new(BINARY), 2_500);
    assert_eq!(ran.code(), Some(143), "{ran:#?}");
    // What is in the file may not be on the disk: the seal is on stderr as well, and says so.
    let at = killed_at(&ran.records);
    assert!(at < 1_600, "the kill came {at} ms after the stop, due at 1400: {ran:#?}");
    // The process itself cannot leave before its thread has left the kernel; the record and the message do not wait for that.
    let time = |record: &serde_json::Value| time_of(record["time"].as_str().unwrap());
    let asked = text.lines().find(|line| line.contains("termination_requested")).unwrap();
    let written = time(ran.seal()) - time(&serde_json::from_str(asked).unwrap());
    assert!(written < 1.9, "on stderr {written} s after the stop");
    assert!(ran.seal().to_string().contains("fsync did not come back in time"), "{:#}", ran.seal());
}
