//! A terminal: Ctrl-C goes to the workload, Ctrl-Z stops both and fg continues both.

use super::support::BINARY;
use std::process::Command;

#[test]
fn ctrl_c_and_job_control() {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/run/terminal.py");
    let Ok(out) = Command::new("python3").arg(script).arg(BINARY).env("PS1", "bash-5.x$ ").output() else {
        println!("skipped: python3 is not here");
        return;
    };
    assert!(out.status.success(), "{}\n{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
}
