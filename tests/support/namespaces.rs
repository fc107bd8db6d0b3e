//! PID 1 of namespaces of its own, for the campaigns.

use std::path::Path;
use std::process::{Command, Stdio};

/// A shell as PID 1 of namespaces of its own, with new file systems where PID 1 scrubs, `log` for its /var/log and the binary
/// below /mnt (and a network of its own, since a listener that somebody else opens there counts as the workload's); it runs `last`, with what is added to the command as its arguments.
pub fn namespaced(log: &Path, last: &str) -> Command {
    let script = format!(
        "set -e; mount --bind {} /var/log; mount -t tmpfs none /dev/shm; mount -t tmpfs none /var/tmp; \
         mount -t tmpfs none /mnt; cp {} /mnt/gracekeeper; mount -t tmpfs none /tmp; cd /; {last}",
        log.display(),
        env!("CARGO_BIN_EXE_gracekeeper")
    );
    let mut command = Command::new("unshare");
    command.args([
        "--pid",
        "--fork",
        "--mount",
        "--ipc",
        "--net",
        "--mount-proc",
        "--kill-child",
        "sh",
        "-c",
        &script,
        "sh",
    ]);
    command.env_clear().env("PATH", std::env::var_os("PATH").unwrap());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}
