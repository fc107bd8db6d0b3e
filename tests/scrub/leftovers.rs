//! System V IPC and POSIX queues: the workload's go, everybody else's stay.

use super::places::dropped;
use super::support::{BINARY, has, records};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// What the workload makes, and that it then waits for the stranger.
const MAKES: &str = r#"PATH=/usr/bin:/bin; ipcmk -M 4096; ipcmk -S 3; ipcmk -Q; touch /dev/mqueue/made
/usr/bin/python3 -c 'import ctypes; l = ctypes.CDLL(None); q = l.msgget(0x57, 0o1600); assert l.msgsnd(q, b"1234567 made", 5, 0) == 0'
echo > /media/go; while [ ! -s /media/stranger ]; do sleep 0.01; done"#;

/// Makes as many queues as it is told.
const MAKE: &str =
    "import ctypes, sys; l = ctypes.CDLL(None)\nfor _ in range(int(sys.argv[1])): assert l.msgget(0, 0o600) >= 0";

/// Everything around it, in an IPC namespace that outlives PID 1: strangers are there before, and come meanwhile.
const OUTER: &str = r#"set -e
for d in /var/log /media; do mount -t tmpfs -o mode=1777 none $d; done; mount -t mqueue none /dev/mqueue
$DROP ipcmk -M 1111; $DROP ipcmk -Q; $DROP ipcmk -S 1; $DROP touch /dev/mqueue/before
touch /media/go /media/stranger; chmod 666 /media/*
(
    while [ ! -s /media/go ]; do sleep 0.01; done
    $DROP ipcmk -M 2222
    $DROP /usr/bin/python3 -c 'import ctypes; l = ctypes.CDLL(None); q = l.msgget(0x77, 0o1600); assert l.msgsnd(q, b"1234567 hello", 5, 0) == 0'
    touch /dev/mqueue/root-while
    echo > /media/stranger
) &
$UNSHARE sh -c "$INNER"
wait; cat /var/log/security-audit.json >&2 || true
echo LEFT; cat /proc/sysvipc/shm; echo QUEUES; cat /proc/sysvipc/msg; echo SETS; cat /proc/sysvipc/sem; echo NAMES; ls /dev/mqueue"#;

const INNER: &str = r#"set -e
for d in /tmp /var/tmp /dev/shm; do mount -t tmpfs -o mode=1777 none $d; done
mount -t tmpfs none /mnt; cp "$BINARY" /mnt/gracekeeper; chmod 755 /mnt /mnt/gracekeeper; cd /
exec $DROP /mnt/gracekeeper -- sh -c "$MAKES""#;

/// The directory that mqueue is mounted on, where the machine has none.
struct MountPoint(bool, #[allow(dead_code)] MutexGuard<'static, ()>);

impl MountPoint {
    fn get() -> Self {
        static ONE: Mutex<()> = Mutex::new(());
        let one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
        Self(std::fs::create_dir("/dev/mqueue").is_ok(), one)
    }
}

impl Drop for MountPoint {
    fn drop(&mut self) {
        if self.0 {
            let _ = std::fs::remove_dir("/dev/mqueue");
        }
    }
}

/// What the record says of it, and what is left.
fn run(unshare: &str, unprivileged: bool) -> (serde_json::Value, String) {
    let _on = MountPoint::get();
    let mut command = Command::new("unshare");
    command.args(["--ipc", "--mount", "sh", "-c", OUTER]).env_clear().env("PATH", std::env::var_os("PATH").unwrap());
    command.env("DROP", dropped(unprivileged).join(" ")).env("UNSHARE", unshare).env("INNER", INNER);
    let out = command.env("BINARY", BINARY).env("MAKES", MAKES).output().unwrap();
    let (stdout, stderr) = (super::places::text_of(&out.stdout), super::places::text_of(&out.stderr));
    assert!(out.status.success(), "{stdout}{stderr}");
    let seal = records(&stderr).pop().unwrap_or_else(|| panic!("no record: {stdout}{stderr}"));
    assert_eq!(seal["status"], "ok", "{stdout}{stderr}");
    (seal["cleanup"]["ipc"].clone(), stdout.split_once("LEFT").unwrap().1.to_owned())
}

fn lines(left: &str, from: &str, to: &str) -> usize {
    let part = if from.is_empty() { left } else { left.split_once(from).unwrap().1 };
    part.split(to).next().unwrap().trim().lines().count()
}

#[test]
fn the_workloads_go_and_everybody_elses_stay() {
    if !has("root") {
        return;
    }
    for unprivileged in [false, true] {
        let (ipc, left) = run("unshare --pid --fork --mount --mount-proc --kill-child", unprivileged);
        println!("{ipc}\n{left}");
        assert_eq!(
            (&ipc["shared_memory"], &ipc["semaphores"], &ipc["message_queues"]),
            (&1.into(), &1.into(), &2.into()),
            "{ipc}\n{left}"
        );
        // Each with a line of headings: one that was before, and one that a process outside made meanwhile.
        assert_eq!(
            (lines(&left, "", "QUEUES"), lines(&left, "QUEUES", "SETS"), lines(&left, "SETS", "NAMES")),
            (3, 3, 2)
        );
        assert!(left.contains(" 1111 ") && left.contains(" 2222 "), "{left}");
        assert!(left.contains("before") && !left.contains("made"), "{left}");
        // A POSIX queue does not say who made it, only whose it is.
        assert_eq!(left.contains("root-while"), unprivileged, "{left}");
    }
}

/// Control, and the rule: not as PID 1 nothing of this is touched.
#[test]
fn not_as_pid_1_nothing_is_touched() {
    if !has("root") {
        return;
    }
    let (ipc, left) = run("unshare --mount", false);
    assert!(ipc.is_null(), "{ipc}");
    assert_eq!((lines(&left, "", "QUEUES"), lines(&left, "QUEUES", "SETS"), lines(&left, "SETS", "NAMES")), (4, 5, 3));
    assert!(left.contains("made") && left.contains("before"), "{left}");
}

/// Thousands that were there before, and thousands of the workload's: looked at, told apart and removed within the budget.
#[test]
fn thousands_are_told_apart_in_time() {
    if !has("root") {
        return;
    }
    let outer = OUTER.split_once("$DROP ipcmk").unwrap().0.to_owned()
        + "echo 32000 > /proc/sys/kernel/msgmni; $DROP /usr/bin/python3 -c \"$MAKE\" 16000\n"
        + "export MAKE; $UNSHARE sh -c \"$INNER\"; cat /var/log/security-audit.json >&2; grep -c 600 /proc/sysvipc/msg";
    let _on = MountPoint::get();
    let mut command = Command::new("unshare");
    command.args(["--ipc", "--mount", "sh", "-c", &outer]).env_clear().env("PATH", std::env::var_os("PATH").unwrap());
    command.env("DROP", dropped(true).join(" ")).env("INNER", INNER).env("BINARY", BINARY).env("MAKE", MAKE);
    command.env("UNSHARE", "unshare --pid --fork --mount --mount-proc --kill-child");
    let out = command.env("MAKES", format!("/usr/bin/python3 -c '{MAKE}' 16000")).output().unwrap();
    let (stdout, stderr) = (super::places::text_of(&out.stdout), super::places::text_of(&out.stderr));
    let seal = records(&stderr).pop().unwrap_or_else(|| panic!("no record: {stdout}{stderr}"));
    let cleanup = &seal["cleanup"];
    println!("{cleanup} {}", seal["duration"]);
    assert_eq!((&cleanup["ipc"]["message_queues"], stdout.trim()), (&16_000.into(), "16000"), "{stdout}{stderr}");
    assert!(cleanup["used_ms"].as_u64() <= cleanup["budget_ms"].as_u64(), "{cleanup}");
}
