//! System V IPC and POSIX queues: the workload's go, everybody else's stay.

use super::faults::Hanging;
use super::places::{dropped, ext4, text_of};
use super::support::{BINARY, has, records};
use serde_json::Value;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// What the workload makes, and that it then waits for the stranger.
const MAKES: &str = r#"PATH=/usr/bin:/bin; ipcmk -M 4096; ipcmk -S 3; ipcmk -Q; touch /dev/mqueue/made
/usr/bin/python3 -c 'import ctypes; l = ctypes.CDLL(None); q = l.msgget(0x57, 0o1600); assert l.msgsnd(q, b"1234567 made", 5, 0) == 0'
echo > /media/go; while [ ! -s /media/stranger ]; do sleep 0.01; done"#;

/// Makes as many queues as it is told.
const MAKE: &str =
    "import ctypes, sys; l = ctypes.CDLL(None)\nfor _ in range(int(sys.argv[1])): assert l.msgget(0, 0o600) >= 0";

/// Makes as many sets of semaphores as it is told, so large, with that mode, each of which it uses by its last one.
const SETS: &str = "import ctypes, sys; l = ctypes.CDLL(None); count, size = map(int, sys.argv[1:3])
for _ in range(count):
    set = l.semget(0, size, 0o1000 | int(sys.argv[3], 8)); assert set >= 0
    assert l.semop(set, (ctypes.c_short * 3)(size - 1, 1, 0), 1) == 0";

/// Nothing before and nothing beside it.
const ALONE: &str = "true";

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
exec $DROP /mnt/gracekeeper $OPTIONS -- sh -c "$MAKES""#;

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

const PID_1: &str = "unshare --pid --fork --mount --mount-proc --kill-child";

/// `outer` with everything it uses in its environment.
fn command(outer: &str, unshare: &str, drop: &[String], makes: &str, options: &str) -> Command {
    let mut command = Command::new("unshare");
    command.args(["--ipc", "--mount", "sh", "-c", outer]).env_clear().env("PATH", std::env::var_os("PATH").unwrap());
    command.env("DROP", drop.join(" ")).env("UNSHARE", unshare).env("INNER", INNER).env("BINARY", BINARY);
    command.env("MAKES", makes).env("MAKE", MAKE).env("SETS", SETS).env("OPTIONS", options);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// The seal, and what else was said.
fn seal(child: Child) -> (Value, String) {
    let out = child.wait_with_output().unwrap();
    let (stdout, stderr) = (text_of(&out.stdout), text_of(&out.stderr));
    assert!(out.status.success(), "{stdout}{stderr}");
    let seal = records(&stderr).pop().unwrap_or_else(|| panic!("no record: {stdout}{stderr}"));
    assert_eq!(seal["status"], "ok", "{stdout}{stderr}");
    (seal, stdout)
}

/// The seal, and what is left.
fn run(unshare: &str, unprivileged: bool) -> (Value, String) {
    let _on = MountPoint::get();
    let (seal, stdout) = seal(command(OUTER, unshare, &dropped(unprivileged), MAKES, "").spawn().unwrap());
    (seal, stdout.split_once("LEFT").unwrap().1.to_owned())
}

/// As PID 1 a workload that `makes` something, in an IPC namespace where `outside` was run before or runs beside it; the seal, and
/// what is left: perms and number of each semaphore set, and the names of the POSIX queues.
fn as_pid_1(drop: &[String], outside: &str, makes: &str, options: &str) -> (Value, String) {
    let _on = MountPoint::get();
    let (seal, stdout) = seal(command(&around(outside), PID_1, drop, makes, options).spawn().unwrap());
    (seal, stdout.split_once("LEFT\n").unwrap().1.to_owned())
}

fn around(outside: &str) -> String {
    let mounts = OUTER.split_once("$DROP ipcmk").unwrap().0;
    let left = "echo LEFT; tail -n +2 /proc/sysvipc/sem | while read key set mode size rest; do echo set $mode $size; done\n\
        tail -n +2 /proc/sysvipc/shm | while read key id mode size rest; do echo memory $size; done; ls /dev/mqueue";
    let run = "$UNSHARE sh -c \"$INNER\"; wait; cat /var/log/security-audit.json >&2 || true";
    format!("{mounts}{outside}\n{run}\n{left}")
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
        let (seal, left) = run(PID_1, unprivileged);
        let ipc = &seal["cleanup"]["ipc"];
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
        // The stranger's queue is of the workload's UID, and does not say who made it.
        assert_eq!(seal["cleanup_status"], "partial", "{seal}");
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
    let (seal, left) = run("unshare --mount", false);
    assert!(seal["cleanup"]["ipc"].is_null() && seal["cleanup_status"] == "complete", "{seal}");
    assert_eq!((lines(&left, "", "QUEUES"), lines(&left, "QUEUES", "SETS"), lines(&left, "SETS", "NAMES")), (4, 5, 3));
    assert!(left.contains("made") && left.contains("before"), "{left}");
}

/// Thousands that were there before, and thousands of the workload's: looked at, told apart and removed within the budget.
#[test]
fn thousands_are_told_apart_in_time() {
    if !has("root") {
        return;
    }
    let outside = "echo 32000 > /proc/sys/kernel/msgmni; $DROP /usr/bin/python3 -c \"$MAKE\" 16000; export MAKE";
    let outer = around(outside) + "; grep -c 600 /proc/sysvipc/msg";
    let _on = MountPoint::get();
    let makes = "/usr/bin/python3 -c \"$MAKE\" 16000";
    let (seal, stdout) = seal(command(&outer, PID_1, &dropped(true), makes, "--env inherit").spawn().unwrap());
    let cleanup = &seal["cleanup"];
    println!("{cleanup} {}", seal["duration"]);
    assert_eq!(
        (&cleanup["ipc"]["message_queues"], stdout.trim()),
        (&16_000.into(), "LEFT\n16000"),
        "{cleanup}{stdout}"
    );
    assert!(cleanup["used_ms"].as_u64() <= cleanup["budget_ms"].as_u64(), "{cleanup}");
    assert_eq!(seal["cleanup_status"], "complete");
}

/// A set that its owner may not read does not say who used it, and the owner may change that.
#[test]
fn a_set_that_nobody_may_read_goes_too_and_a_neighbours_is_as_it_was() {
    if !has("root") {
        return;
    }
    let makes = "for mode in 600 200 0200; do /usr/bin/python3 -c \"$SETS\" 1 3 $mode; done; ipcmk -S 3 -p 0";
    let (seal, left) = as_pid_1(&dropped(true), ALONE, makes, "--env inherit");
    assert_eq!((&seal["cleanup"]["ipc"]["semaphores"], left.as_str()), (&4.into(), ""), "{seal}");
    assert_eq!(seal["cleanup_status"], "complete", "{seal}");
    // Control: of the same UID, made and used outside meanwhile. It stays, and nothing says that it is not the workload's.
    let meanwhile = |drop: &str| {
        format!(
            "touch /media/go /media/done; chmod 666 /media/*
            (while [ ! -s /media/go ]; do sleep 0.01; done; {drop} /usr/bin/python3 -c \"$SETS\" 1 5 200; echo > /media/done) &"
        )
    };
    let waits = "echo > /media/go; while [ ! -s /media/done ]; do sleep 0.01; done";
    let both = format!("{makes}; {waits}");
    let (seal, left) = as_pid_1(&dropped(true), &meanwhile("$DROP"), &both, "--env inherit");
    assert_eq!((&seal["cleanup"]["ipc"]["semaphores"], left.trim()), (&4.into(), "set 200 5"), "{seal}");
    assert_eq!((&seal["cleanup"]["ipc"]["left"], &seal["cleanup_status"]), (&1.into(), &"partial".into()), "{seal}");
    // And of another UID: that is nobody's but its own.
    let (seal, left) = as_pid_1(&dropped(true), &meanwhile("setpriv --reuid 65533"), &both, "--env inherit");
    assert_eq!((&seal["cleanup"]["ipc"]["semaphores"], left.trim()), (&4.into(), "set 200 5"), "{seal}");
    assert_eq!((&seal["cleanup"]["ipc"]["left"], &seal["cleanup_status"]), (&1.into(), &"complete".into()), "{seal}");
}

/// Who used a set is a call for each semaphore: 1,280,000 of them do not keep the files, in memory or on a disk, from going, nor the
/// budget from being kept. With one worker, as under a quota.
#[test]
fn a_million_semaphores_cost_themselves_and_not_the_files() {
    if !has("root") {
        return;
    }
    let disk = ext4();
    let tree = disk.path().join("tree");
    let drop = [vec!["taskset".to_owned(), "-c".to_owned(), "0".to_owned()], dropped(true)].concat();
    let makes = "for d in /tmp /media/disk; do for n in $(seq 300); do echo secret > $d/$n; done; done
        /usr/bin/python3 -c \"$SETS\" 40 32000 600";
    let outside = format!("mkdir /media/disk; mount --bind {} /media/disk", tree.display());
    let run = |budget: &str| {
        std::fs::create_dir(&tree).unwrap();
        std::os::unix::fs::chown(&tree, Some(65532), None).unwrap();
        let options = format!("--env inherit --scrub-budget {budget} --scrub /media/disk");
        let (seal, left) = as_pid_1(&drop, &outside, makes, &options);
        let cleanup = seal["cleanup"].clone();
        println!("{cleanup}");
        let files = cleanup["paths"].as_array().unwrap().iter().all(|path| path["status"] == "complete");
        assert!(!files || std::fs::read_dir(&tree).unwrap().count() == 0, "{cleanup}");
        std::fs::remove_dir_all(&tree).unwrap();
        let number = |name: &str| cleanup["ipc"][name].as_u64().unwrap();
        assert_eq!(number("semaphores") + number("left"), 40, "{cleanup}");
        assert_eq!(left.lines().count() as u64, number("left"), "{cleanup}");
        (seal["cleanup_status"].clone(), number("left"), cleanup["used_ms"].as_u64().unwrap(), files)
    };
    let mut best = u64::MAX;
    // On a busy machine one run may be late through no fault of its own, and not come to all of the files either.
    for _ in 0..5 {
        let (status, left, used, files) = run("100ms");
        assert!(status == "partial" && left > 0, "{status} {left}");
        best = if files { best.min(used) } else { best };
        if best <= 110 {
            break;
        }
    }
    assert!(best <= 110, "{best} ms");
    // Control: with time for them they go.
    let (status, left, _, files) = run("60s");
    assert!(status == "complete" && left == 0 && files, "{status} {left}");
}

/// A disk that hangs keeps nothing that is no file.
#[test]
fn they_go_before_a_disk_that_hangs() {
    if !has("root") {
        return;
    }
    // Where nothing is mounted over it.
    let place = tempfile::tempdir_in("/run").unwrap();
    let on = place.path();
    let Some(_hanging) = Hanging::mount(on) else {
        println!("skipped: no FUSE here");
        return;
    };
    let one = ["taskset", "-c", "0"].map(str::to_owned);
    let options = format!("--scrub-budget 300ms --scrub {}", on.display());
    let (seal, left) = as_pid_1(&one, ALONE, "PATH=/usr/bin:/bin; ipcmk -S 3; touch /dev/mqueue/made", &options);
    let cleanup = &seal["cleanup"];
    assert_eq!((&cleanup["ipc"]["semaphores"], &cleanup["ipc"]["posix_queues"]), (&1.into(), &1.into()), "{cleanup}");
    assert_eq!(left, "");
    // Control: it did hang.
    let path = cleanup["paths"].as_array().unwrap().iter().find(|p| p["path"] == on.to_str().unwrap()).unwrap();
    assert_eq!((&path["status"], &path["why"]), (&"partial".into(), &"the scrub did not come back in time".into()));
    assert_eq!(seal["cleanup_status"], "partial", "{seal}");
}

/// Another one in the place of one that was there before: a POSIX queue of its name, a segment with its identifier (which takes
/// millions of others, or root).
#[test]
fn what_takes_the_place_of_another_is_new() {
    if !has("root") {
        return;
    }
    let before = "touch /dev/mqueue/replaced /dev/mqueue/kept; for n in 1111 2222; do ipcmk -M $n; done
        export ID=$(tail -n 1 /proc/sysvipc/shm | while read key id rest; do echo $id; done)";
    let makes = "PATH=/usr/bin:/bin; rm /dev/mqueue/replaced; touch /dev/mqueue/replaced; ipcrm -m $ID
        echo $ID > /proc/sys/kernel/shm_next_id; ipcmk -M 3333 | grep -w $ID";
    let (seal, left) = as_pid_1(&[], before, makes, "--env inherit");
    let ipc = &seal["cleanup"]["ipc"];
    assert_eq!((&ipc["posix_queues"], &ipc["shared_memory"], &ipc["left"]), (&1.into(), &1.into(), &0.into()), "{ipc}");
    // Control: the others that were there before.
    assert_eq!(left, "memory 1111\nkept\n", "{ipc}");
}

/// The high-water mark of the supervisor with so many queues.
fn peak(queues: u32) -> u64 {
    let _on = MountPoint::get();
    let makes = format!("/usr/bin/python3 -c \"$MAKE\" {queues}");
    let outer = around("echo 32000 > /proc/sys/kernel/msgmni");
    let child = command(&outer, PID_1, &dropped(true), &makes, "--env inherit").spawn().unwrap();
    let (mut now, mut peak) = (child.id().to_string(), 0);
    let deadline = Instant::now() + Duration::from_secs(50);
    // From the outermost process down to the one of that name, again and again, and then that one until it has gone.
    loop {
        assert!(Instant::now() < deadline, "it was not found");
        let status = std::fs::read_to_string(format!("/proc/{now}/status")).unwrap_or_default();
        if status.starts_with("Name:\tgracekeeper\n") {
            let mark = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB"));
            peak = peak.max(mark.map_or(0, |mark| mark.parse().unwrap()));
        } else if peak > 0 {
            break;
        }
        if peak == 0 {
            let children = std::fs::read_to_string(format!("/proc/{now}/task/{now}/children")).unwrap_or_default();
            now = children.split_whitespace().next().map_or_else(|| child.id().to_string(), str::to_owned);
        }
    }
    let (seal, _) = seal(child);
    assert_eq!(seal["cleanup"]["ipc"]["message_queues"], queues, "{seal}");
    peak
}

#[test]
fn thirty_two_thousand_take_no_memory() {
    if !has("root") {
        return;
    }
    let (few, many) = (peak(10), peak(32_000));
    println!("{few} KiB with 10 queues, {many} KiB with 32,000");
    assert!(few > 0 && many <= few + 1024, "{few} KiB with 10 queues, {many} KiB with 32,000");
}
