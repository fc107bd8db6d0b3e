//! A reader of stderr that is stuck: whoever has the workload's output may have its supervisor's, and need not read it.

use super::place::switched;
use super::support::*;
use std::io::{Read, Write};
use std::path::Path;
use std::time::{Duration, Instant};

/// How long nobody reads in the control.
const STUCK: Duration = Duration::from_secs(3);

/// A workload that ignores SIGTERM is stopped with a stderr that is full, and read only after `STUCK`; killed 0.4 s after the stop.
fn stopped(binary: &Path, format: &str) -> (Ran, String) {
    let (mut read, writer) = std::io::pipe().unwrap();
    let nonblocking = |on: bool| {
        let flags = if on { nix::fcntl::OFlag::O_NONBLOCK } else { nix::fcntl::OFlag::empty() };
        nix::fcntl::fcntl(&writer, nix::fcntl::FcntlArg::F_SETFL(flags)).unwrap();
    };
    nonblocking(true);
    while (&writer).write(&[b'x'; 4096]).is_ok() {}
    nonblocking(false);
    let dir = tempfile::tempdir().unwrap();
    let (audit, ready) = (dir.path().join("audit"), dir.path().join("ready"));
    let script = format!("trap '' TERM; : > {}; while :; do sleep 0.02; done", ready.display());
    let mut command = std::process::Command::new(binary);
    command.env_clear().env("PATH", std::env::var_os("PATH").unwrap()).env("GRACEKEEPER_TEST_WITHOUT", "impatience");
    command.args([
        "--log-level",
        "info",
        "--log-format",
        format,
        "--grace",
        "2s",
        "--soft",
        "200ms",
        "--hard",
        "400ms",
    ]);
    command.arg("--audit-file").arg(&audit).args(["--", "sh", "-c", &script]);
    command.stdin(std::process::Stdio::null()).stdout(std::process::Stdio::piped()).stderr(writer);
    let child = command.spawn().unwrap();
    drop(command);
    until("the workload runs", || ready.exists());
    let began = Instant::now();
    signal(child.id(), "TERM");
    let reader = std::thread::spawn(move || {
        std::thread::sleep(STUCK);
        let mut text = String::new();
        read.read_to_string(&mut text).unwrap();
        text
    });
    let mut ran = finish(child, began);
    ran.records = records(&std::fs::read_to_string(&audit).unwrap());
    ran.expect(143, "terminated");
    (ran, reader.join().unwrap())
}

#[test]
fn a_stuck_reader_holds_up_nothing() {
    in_three(|| {
        for format in ["text", "json"] {
            // The control: with a write that waits, everything waits for the reader. No other build heeds the variable.
            let (ran, text) = stopped(switched(), format);
            assert!(ran.took >= STUCK && text.contains("asked to stop"), "the control: {:?}", ran.took);
            let (ran, text) = stopped(Path::new(BINARY), format);
            assert!(ran.took < Duration::from_secs(2), "{:?}, and the pod would have been killed at 2 s", ran.took);
            assert!(text.bytes().all(|b| b == b'x'), "what nobody takes is dropped");
        }
    });
}
