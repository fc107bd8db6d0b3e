//! What a supervisor does before its command runs, counted in system calls: start-up time creeps up one call at a time.

use super::support::*;

/// Measured: 167 in a debug build, with the audit file on a disk and its thread. A change that needs more says so here; the quota files of a deeper cgroup, a deeper working directory may add some.
const BEFORE_FORK: usize = 172;

#[test]
fn the_system_calls_before_the_fork_are_counted() {
    if !has("strace") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let trace = dir.path().join("trace");
    let mut command = std::process::Command::new("strace");
    command.arg("-o").arg(&trace).args([BINARY, "--monitoring", "off", "--job-id", "count", "--audit-file"]);
    command.arg(dir.path().join("audit.json")).args(["--", "true"]);
    command.env_clear().env("PATH", std::env::var_os("PATH").unwrap()).env("TMPDIR", dir.path());
    command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
    let ran = run(&mut command);
    assert_eq!(ran.code(), Some(0), "{ran:#?}");
    let text = std::fs::read_to_string(&trace).unwrap();
    // One /proc/PID/stat for each process that was there before, its sockets, and each directory of PATH: the machine's affair.
    let others = ["getdents64", "/stat\"", "(stat)", "NETLINK", "sendto", "recvfrom", "X_OK"];
    let mut walking = false;
    let calls: Vec<&str> = text
        .lines()
        // Not at the scribe, which is a thread.
        .take_while(|line| !line.starts_with("clone") || line.contains("CLONE_THREAD"))
        // A debug build's standard library asks whether each descriptor is one before it closes it.
        .filter(|line| !line.contains("F_GETFD"))
        .filter(|line| {
            let opens = line.contains("/stat\", O_RDONLY|O_NOFOLLOW");
            walking = opens || (walking && (line.starts_with("read") || line.starts_with("close")));
            !walking && !others.iter().any(|other| line.contains(other))
        })
        .collect();
    println!("{} system calls before the fork", calls.len());
    assert!(calls.len() > 50, "that cannot be all: {text}");
    assert!(calls.len() <= BEFORE_FORK, "{} system calls before the fork:\n{}", calls.len(), calls.join("\n"));
}
