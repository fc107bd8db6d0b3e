//! A terminal: Ctrl-C goes to the workload's group, which is the foreground group.

use super::support::BINARY;
use std::process::Command;

#[test]
fn ctrl_c_goes_to_the_workload() {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/run/terminal.py");
    let Ok(out) = Command::new("python3").arg(script).arg(BINARY).env("PS1", "bash-5.x$ ").output() else {
        println!("skipped: python3 is not here");
        return;
    };
    assert!(out.status.success(), "{}\n{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
}
