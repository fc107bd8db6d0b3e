//! As PID 1 of a fresh PID namespace with file systems of its own, as root and as UID 65532 with nothing.

use super::laptop::hangups;
use super::support::*;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// `gracekeeper WORDS` as PID 1. /tmp, /var/tmp and /dev/shm are new tmpfs; `log` is bound to /var/log.
pub fn pid1(log: &std::path::Path, unprivileged: bool, words: &[&str]) -> Command {
    let drop = if unprivileged {
        "setpriv --reuid 65532 --regid 65532 --clear-groups --no-new-privs --bounding-set -all --inh-caps -all"
    } else {
        ""
    };
    let script = format!(
        "set -e; mount -t tmpfs none /mnt; cp {BINARY} /mnt/gracekeeper; chmod 755 /mnt /mnt/gracekeeper; \
         mount --bind {} /var/log; for d in /var/tmp /dev/shm /tmp; do mount -t tmpfs -o mode=1777 none $d; done; cd /; \
         exec {drop} /mnt/gracekeeper \"$@\"",
        log.display()
    );
    let mut command = Command::new("unshare");
    command
        .args(["--pid", "--fork", "--mount", "--net", "--mount-proc", "--kill-child", "sh", "-c", &script, "sh"])
        .args(words);
    command.env_clear().env("PATH", std::env::var_os("PATH").unwrap());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

pub fn log_dir() -> tempfile::TempDir {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o1777)).unwrap();
    dir
}

pub fn both(test: impl Fn(bool)) {
    if has("root") {
        test(false);
        test(true);
    }
}

fn audit(dir: &tempfile::TempDir) -> String {
    std::fs::read_to_string(dir.path().join("security-audit.json")).unwrap_or_default()
}

/// Whatever its runtime left it: a hangup from outside is a stop.
#[test]
fn a_hangup_that_was_ignored_at_the_start_is_a_stop() {
    both(|unprivileged| {
        let (dir, m, began) = (log_dir(), marker(), Instant::now());
        let script = format!("grep SigIgn /proc/self/status; sleep {m}");
        let words = ["--timeout", "60s", "--", "sh", "-c", &script];
        let child = hangups("--ignore-signal=HUP", &pid1(dir.path(), unprivileged, &words)).spawn().unwrap();
        until("the workload runs", || !marked(&m).is_empty());
        let inner = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", child.id())).unwrap();
        let status = std::fs::read_to_string(format!("/proc/{}/status", inner.trim())).unwrap();
        let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:\t")).unwrap();
        assert_eq!(u64::from_str_radix(mask, 16).unwrap() & 1, 1, "it was ignored at the start: {status}");
        signal(inner.trim().parse().unwrap(), "HUP");
        let ran = finish(child, began);
        assert_eq!(ran.code(), Some(129), "{ran:#?}");
        let mask = ran.stdout.lines().find_map(|line| line.strip_prefix("SigIgn:\t")).unwrap();
        assert_eq!(u64::from_str_radix(mask, 16).unwrap() & 1, 0, "{ran:#?}");
        assert!(!audit(&dir).contains("SIGHUP is ignored"));
    });
}

const MESS: &str = "mkdir -p /tmp/a/b /var/tmp/x; echo secret > /tmp/a/b/f; echo s > /dev/shm/s; chmod 000 /tmp/a/b; ln -s /etc /tmp/etc; \
    i=0; while [ $i -lt 200 ]; do mkdir d; cd d 2>/dev/null; i=$((i+1)); done; cd /;";

#[test]
fn a_timeout_leaves_nobody_and_nothing() {
    both(|unprivileged| {
        let dir = log_dir();
        let m = marker();
        let script = format!(
            "cd /tmp; {MESS} trap '' TERM; (setsid sh -c 'trap \"\" TERM; sleep {m} & wait' &); sleep {m} & wait; sleep {m}"
        );
        let ran = run(&mut pid1(
            dir.path(),
            unprivileged,
            &["--timeout", "1500ms", "--soft", "200ms", "--hard", "400ms", "--", "sh", "-c", &script],
        ));
        assert_eq!(ran.code(), Some(124), "{ran:#?}");
        assert_eq!(marked(&m), Vec::<u32>::new());
        let records = records(&audit(&dir));
        let seal = records.last().unwrap();
        assert_eq!(seal["status"], "timeout", "{seal:#}");
        assert_eq!(seal["cleanup_status"], "complete", "{seal:#}");
        assert_eq!(seal["cleanup"]["paths"].as_array().unwrap().len(), 3);
        assert!(seal["cleanup"]["paths"][0]["entries_removed"].as_u64().unwrap() > 200, "{seal:#}");
        // On a busy machine it may have been late, and left out the revoke.
        assert_eq!(seal["escalation"].as_array().unwrap().last().unwrap()["survivors"], 0, "{seal:#}");
        assert!(seal["resources"]["processes_created"].as_u64().unwrap() > 3, "{seal:#}");
        let verify = Command::new(BINARY).arg("verify").arg(dir.path().join("security-audit.json")).output().unwrap();
        assert_eq!(verify.status.code(), Some(0), "{verify:?}");
    });
}

#[test]
fn zombies_of_strangers_are_reaped() {
    both(|unprivileged| {
        let dir = log_dir();
        // 200 orphans that end at once, and a look at how many zombies are left. Control: the shell that makes them is
        // not their parent any more, so only PID 1 can have reaped them.
        let script = "i=0; while [ $i -lt 200 ]; do (true & ) ; i=$((i+1)); done; n=1; j=0; \
            while [ $n != 0 ] && [ $j -lt 100 ]; do n=$(cat /proc/[0-9]*/stat 2>/dev/null | grep -c ') Z 1 '); j=$((j+1)); sleep 0.05; done; exit $n";
        let ran = run(&mut pid1(dir.path(), unprivileged, &["--", "sh", "-c", script]));
        assert_eq!(ran.code(), Some(0), "{ran:#?}");
    });
}

/// As `laptop::an_interrupt_and_a_quit_that_are_read_together_kill_at_once`, which has the control.
#[test]
fn an_interrupt_and_a_quit_at_once() {
    both(|unprivileged| {
        let dir = log_dir();
        let m = marker();
        let began = Instant::now();
        let words =
            ["--soft", "30s", "--hard", "50s", "--grace", "100s", "--", "sh", "-c", &format!("trap '' INT; sleep {m}")];
        let child = pid1(dir.path(), unprivileged, &words).spawn().unwrap();
        until("the workload runs", || !marked(&m).is_empty());
        let inner = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", child.id())).unwrap();
        let inner = inner.trim().parse().unwrap();
        ["STOP", "INT", "QUIT", "CONT"].iter().for_each(|name| signal(inner, name));
        let ran = finish(child, began);
        assert_eq!(ran.code(), Some(130), "{ran:#?}");
        let records = records(&audit(&dir));
        let rungs = records.last().unwrap()["escalation"].as_array().unwrap();
        assert!(rungs.len() == 1 && rungs[0]["rung"] == "kill", "{rungs:#?}");
    });
}

#[test]
fn a_stop_from_outside_and_not_from_inside() {
    both(|unprivileged| {
        let dir = log_dir();
        let m = marker();
        let began = Instant::now();
        let child =
            pid1(dir.path(), unprivileged, &["--", "sh", "-c", &format!("kill -TERM 1; kill -KILL 1; sleep {m}")])
                .spawn()
                .unwrap();
        until("the workload runs on after its attack", || !marked(&m).is_empty());
        // The namespace's PID 1 is the parent of the shell that has the marker in its script.
        let inner = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", child.id())).unwrap();
        signal(inner.trim().parse().unwrap(), "TERM");
        let ran = finish(child, began);
        assert_eq!(ran.code(), Some(143), "{ran:#?}");
        let records = records(&audit(&dir));
        assert_eq!(records.last().unwrap()["spoofed_signals"], 0, "the filter refuses it: {records:#?}");
        assert!(ran.took < Duration::from_secs(30));
    });
}

#[test]
fn a_fork_bomb_is_dead_and_sealed() {
    both(|unprivileged| {
        let dir = log_dir();
        // TERM-ignorers that fork for ever, bounded by the deadline and by a limit of their own.
        let script = "trap '' TERM; ulimit -u 3000 2>/dev/null; f() { i=0; while [ $i -lt 300 ]; do (trap '' TERM; sleep 600) & i=$((i+1)); done; }; f; wait";
        let ran = run(&mut pid1(
            dir.path(),
            unprivileged,
            &["--timeout", "1s", "--soft", "200ms", "--hard", "300ms", "--", "sh", "-c", script],
        ));
        assert_eq!(ran.code(), Some(124), "{ran:#?}");
        let records = records(&audit(&dir));
        // On a busy machine it comes late and kills at once: then it is the only rung.
        let kill = records.last().unwrap()["escalation"].as_array().unwrap().last().unwrap();
        assert_eq!((kill["rung"].as_str(), kill["survivors"].as_u64()), (Some("kill"), Some(0)), "{kill}");
    });
}

#[test]
fn a_full_disk_does_not_suppress_the_seal() {
    if !has("root") {
        return;
    }
    let dir = log_dir();
    let disk = Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=1M,mode=1777", "none"])
        .arg(dir.path())
        .status()
        .unwrap();
    assert!(disk.success());
    let ran = run(&mut pid1(
        dir.path(),
        true,
        &["--", "sh", "-c", "head -c 4M /dev/zero > /var/log/fill; echo x > /var/log/more && exit 1; exit 6"],
    ));
    let text = audit(&dir);
    Command::new("umount").arg(dir.path()).status().unwrap();
    assert_eq!(ran.code(), Some(6), "the disk was not full: {ran:#?}");
    let records = records(&text);
    assert_eq!(records.last().unwrap()["event"], "evaluation_terminated", "{text}");
}

#[test]
fn the_supervisors_limits_and_its_record_are_out_of_reach() {
    if !has("root") {
        return;
    }
    let dir = log_dir();
    // Controls inside the same run: the tools work on the workload's own process and files.
    let script = "sleep 600 & prlimit --pid $! --fsize=0:0 || exit 1; echo x > /tmp/file || exit 2; \
        prlimit --pid 1 --fsize=0:0 2>/dev/null && exit 3; prlimit --pid 1 --cpu=1:1 2>/dev/null && exit 4; \
        renice -n 19 -p 1 2>/dev/null && exit 5; taskset -pc 0 1 2>/dev/null && exit 6; \
        (echo forged >> /var/log/security-audit.json) 2>/dev/null && exit 8; \
        rm -f /var/log/security-audit.json 2>/dev/null && exit 9; cat /proc/1/environ 2>/dev/null && exit 10; exit 7";
    let ran = run(&mut pid1(dir.path(), true, &["--soft", "200ms", "--", "sh", "-c", script]));
    assert_eq!(ran.code(), Some(7), "{ran:#?}");
    let records = records(&audit(&dir));
    let seal = records.last().unwrap();
    for name in ["seccomp_filter", "landlock", "signal_scope", "supervisor_not_dumpable", "audit_file"] {
        assert_eq!(seal["enforcement"][name], "enforced", "{name}: {seal:#}");
    }
}

#[test]
fn a_stop_at_any_instant_after_the_first_is_never_lost() {
    if !has("root") {
        return;
    }
    let mut seed = 0x2545_f491_4f6c_dd1d_u64 ^ u64::from(std::process::id());
    println!("seed {seed:#x}");
    for _ in 0..40 {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        let dir = log_dir();
        let began = Instant::now();
        let child = pid1(dir.path(), true, &["--grace", "20s", "--soft", "15s", "--hard", "15s", "--", "sleep", "600"])
            .spawn()
            .unwrap();
        let mut inner = None;
        until("the shell has become gracekeeper", || {
            let pid = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", child.id())).unwrap_or_default();
            inner = pid.trim().parse::<i32>().ok();
            let exe = std::fs::read_link(format!("/proc/{}/exe", pid.trim()));
            // Between the kernel's exec and our first instruction a signal to PID 1 is dropped, whoever it is; on a busy machine that
            // takes as long as it likes.
            exe.is_ok_and(|exe| exe.ends_with("gracekeeper")) && blocks_term(pid.trim())
        });
        std::thread::sleep(Duration::from_micros(seed % 60_000));
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(inner.unwrap()), nix::sys::signal::Signal::SIGTERM).unwrap();
        let ran = finish(child, began);
        assert_eq!(ran.code(), Some(143), "{ran:#?}");
        assert!(ran.took < Duration::from_secs(12), "{ran:#?}");
        assert_eq!(records(&audit(&dir)).last().unwrap()["status"], "terminated");
    }
}

#[test]
fn a_mount_below_is_never_crossed() {
    if !has("root") {
        return;
    }
    let dir = log_dir();
    let victim = dir.path().join("victim");
    std::fs::create_dir(&victim).unwrap();
    std::fs::write(victim.join("file"), "precious").unwrap();
    let script =
        "mkdir -p /tmp/a/m && echo secret > /tmp/a/f && mount --bind /var/log/victim /tmp/a/m && ls /tmp/a/m && exit 7";
    let ran = run(&mut pid1(dir.path(), false, &["--", "sh", "-c", script]));
    assert_eq!((ran.code(), ran.stdout.as_str()), (Some(7), "file\n"), "the mount has to be there: {ran:#?}");
    assert_eq!(std::fs::read_to_string(victim.join("file")).unwrap(), "precious");
    let records = records(&audit(&dir));
    let tmp = &records.last().unwrap()["cleanup"]["paths"][0];
    assert_eq!(
        (&tmp["path"], &tmp["status"], &tmp["entries_removed"]),
        (&"/tmp".into(), &"failed".into(), &1.into()),
        "{tmp}"
    );
}

/// What hides what below a directory is the kernel's to know: a read-only file system that another mount covers is no reason to leave a
/// file. And one that is read-only needs no look.
#[test]
fn a_mount_that_is_hidden_decides_nothing() {
    both(|unprivileged| {
        for (before, status) in [
            (
                "mount -t tmpfs -o ro none /var/tmp; mount -t tmpfs none /var; mkdir -m 1777 /var/tmp /var/log",
                "complete",
            ),
            ("mount -o remount,ro /var/tmp", "skipped"),
        ] {
            let dir = log_dir();
            let drop = if unprivileged {
                "setpriv --reuid 65532 --regid 65532 --clear-groups --bounding-set -all --inh-caps -all"
            } else {
                ""
            };
            let script = format!(
                "set -e; mount -t tmpfs none /mnt; cp {BINARY} /mnt/gracekeeper; chmod 755 /mnt /mnt/gracekeeper; mkdir /mnt/log; mount --bind {} /mnt/log; \
                 for d in /var/tmp /dev/shm /tmp; do mount -t tmpfs -o mode=1777 none $d; done; {before}; mount --bind /mnt/log /var/log; \
                 cd /; exec {drop} /mnt/gracekeeper -- sh -c 'echo x > /var/tmp/f; exit 0'",
                dir.path().display()
            );
            let mut command = Command::new("unshare");
            command.args([
                "--pid",
                "--fork",
                "--mount",
                "--net",
                "--ipc",
                "--mount-proc",
                "--kill-child",
                "sh",
                "-c",
                &script,
            ]);
            command.env_clear().env("PATH", std::env::var_os("PATH").unwrap());
            let ran = run(command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()));
            let text = audit(&dir);
            let seal = records(&text).pop().unwrap_or_else(|| panic!("{ran:#?}"));
            let of = seal["cleanup"]["paths"].as_array().unwrap().iter().find(|p| p["path"] == "/var/tmp").unwrap();
            assert_eq!(of["status"], status, "{seal:#}");
            assert_eq!(of["entries_removed"], u64::from(status == "complete"), "{seal:#}");
        }
    });
}

#[test]
fn the_command_counts_as_created() {
    both(|unprivileged| {
        let dir = log_dir();
        let ran = run(&mut pid1(dir.path(), unprivileged, &["--", "true"]));
        assert_eq!(ran.code(), Some(0), "{ran:#?}");
        let created = records(&audit(&dir)).pop().unwrap()["resources"]["processes_created"].clone();
        // gracekeeper's own threads are in the kernel's count.
        assert!((1..=3).contains(&created.as_u64().unwrap()), "{created}");
    });
}

/// As good as no CPU at all: stopped through its own deadlines, the ten seconds for the dead included. What it then kills is still
/// waited for, and scrubbed after.
#[test]
fn a_supervisor_that_was_away_still_waits_for_the_dead() {
    if !has("root") {
        return;
    }
    let dir = log_dir();
    let m = marker();
    // Many, so that not all are dead by the time that it looks.
    let script =
        format!("trap '' TERM; for i in $(seq 300); do sleep {m} & done; echo secret > /tmp/s; wait; sleep {m}");
    let grace = ["--timeout", "2s", "--soft", "2s", "--hard", "2s", "--adaptive", "no", "--monitoring", "off"];
    let child = pid1(dir.path(), true, &[&grace[..], &["--", "sh", "-c", &script]].concat()).spawn().unwrap();
    let began = Instant::now();
    until("the grace has begun", || audit(&dir).contains("termination_requested"));
    let inner = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", child.id())).unwrap();
    let inner = inner.trim().parse().unwrap();
    signal(inner, "STOP");
    std::thread::sleep(Duration::from_secs(13));
    signal(inner, "CONT");
    let ran = finish(child, began);
    let seal = records(&audit(&dir)).pop().unwrap();
    let kill = seal["escalation"].as_array().unwrap().last().unwrap();
    assert_eq!((ran.code(), &kill["rung"], &kill["survivors"]), (Some(124), &"kill".into(), &0.into()), "{seal:#}");
    assert_eq!(seal["cleanup_status"], "complete", "{seal:#}");
}
