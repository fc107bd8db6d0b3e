//! As a plain process: child subreaper, descendants only, nothing of the machine's touched.

use super::support::*;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// A short ladder, so that the tests are quick.
const QUICK: [&str; 6] = ["--soft", "200ms", "--hard", "400ms", "--monitoring", "off"];

fn quick<'a>(more: &[&'a str]) -> Vec<&'a str> {
    QUICK.iter().copied().chain(more.iter().copied()).collect()
}

#[test]
fn every_exit_status_of_the_command() {
    for code in 0..=255 {
        let ran = run(&mut shell(&["--audit-level", "basic"], &format!("exit {code}")));
        let seal = ran.expect(code, if code == 0 { "ok" } else { "nonzero_exit" });
        assert_eq!(seal["process"]["exit_code"], code);
        assert_eq!(seal["fault"], "workload");
    }
}

#[test]
fn a_command_that_dies_of_a_signal() {
    for (name, number) in [("KILL", 9), ("TERM", 15), ("SEGV", 11), ("USR1", 10)] {
        let ran = run(&mut shell(&[], &format!("kill -{name} $$")));
        let seal = ran.expect(128 + number, "signaled");
        assert_eq!(seal["process"]["signal"], format!("SIG{name}"));
        assert_eq!(seal["process"]["exit_code"], serde_json::Value::Null);
    }
}

#[test]
fn a_timeout_ends_the_ignorer_the_escapee_and_the_grandchild() {
    let m = marker();
    // Ignores TERM itself, and leaves a double-forked child in a session of its own that ignores it too.
    let script =
        format!("trap '' TERM; (setsid sh -c 'trap \"\" TERM; sleep {m} & wait' &) ; sleep {m} & wait; sleep {m}");
    // Control: the usual tool for the job leaves the escapee behind.
    let status = Command::new("timeout").args(["-k", "0.2", "0.5", "sh", "-c", &script]).status().unwrap();
    assert!(!status.success());
    assert!(!marked(&m).is_empty(), "control: timeout(1) should have left the escapee");
    marked(&m).iter().for_each(|&pid| signal(pid, "KILL"));
    until("the control's leftovers are gone", || marked(&m).is_empty());

    // Who is late on a busy machine kills before its time, and says so.
    in_three(|| {
        let ran = run(&mut shell(&quick(&["--timeout", "500ms"]), &script));
        let seal = ran.expect(124, "timeout");
        assert_eq!(marked(&m), Vec::<u32>::new(), "nobody is left when gracekeeper has exited");
        assert!(ran.took >= Duration::from_millis(880), "it may not kill before its time: {ran:#?}");
        let rungs: Vec<_> =
            seal["escalation"].as_array().unwrap().iter().map(|e| e["rung"].as_str().unwrap()).collect();
        assert_eq!(rungs, ["term", "revoke", "kill"]);
        assert_eq!(seal["escalation"][2]["survivors"], 0);
        assert_eq!(seal["process"]["signal"], "SIGKILL");
    });
}

#[test]
fn the_ladder_ends_as_soon_as_nothing_is_left() {
    let ran = run(&mut shell(&["--timeout", "300ms", "--soft", "30s", "--hard", "50s"], "sleep 600"));
    ran.expect(124, "timeout");
    assert!(ran.took < Duration::from_secs(20), "{ran:#?}");
}

#[test]
fn the_stop_signals_and_their_exit_statuses() {
    for (name, code) in [("TERM", 143), ("INT", 130), ("QUIT", 131), ("HUP", 129)] {
        let began = Instant::now();
        // A handler that exits 0 does not change the verdict; its own code is in the record.
        let dir = tempfile::tempdir().unwrap();
        let ready = dir.path().join("ready");
        let script = format!("trap 'exit 0' TERM; touch {}; while :; do sleep 0.05; done", ready.display());
        let child = hangups("--default-signal=HUP", &shell(&[], &script)).spawn().unwrap();
        until("the workload runs", || ready.exists());
        signal(child.id(), name);
        let ran = finish(child, began);
        let seal = ran.expect(code, "terminated");
        assert_eq!(seal["process"]["exit_code"], 0);
        assert_eq!(seal["fault"], "operator");
    }
}

/// The command with SIGHUP's disposition by env(1), whatever the tests' own is.
pub fn hangups(how: &str, command: &Command) -> Command {
    let mut env = Command::new("env");
    env.arg(how).arg(command.get_program()).args(command.get_args()).env_clear();
    env.env("PATH", std::env::var_os("PATH").unwrap());
    env.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    env
}

/// nohup(1): the run goes on after a hangup, and the command ignores it too. PID 1 is its runtime's, and heeds it.
#[test]
fn a_hangup_that_was_ignored_at_the_start_stays_ignored() {
    // Says what it ignores; USR1 ends it with 7.
    let m = marker();
    let script =
        format!("trap 'exit 7' USR1; trap 'exit 8' TERM; grep SigIgn /proc/self/status; sleep {m} & wait; exit 3");
    let ignores = |ran: &Ran| {
        let mask =
            ran.stdout.lines().find_map(|line| line.strip_prefix("SigIgn:")).unwrap_or_else(|| panic!("{ran:#?}"));
        u64::from_str_radix(mask.trim(), 16).unwrap() & 1
    };
    let run = |how: &str| {
        let began = Instant::now();
        let child = hangups(how, &shell(&["--soft", "10s", "--hard", "20s"], &script)).spawn().unwrap();
        until("the workload runs", || !marked(&m).is_empty());
        // The lower number is read first.
        signal(child.id(), "HUP");
        signal(child.id(), "USR1");
        finish(child, began)
    };
    let ran = run("--ignore-signal=HUP");
    ran.expect(7, "nonzero_exit");
    assert_eq!(ignores(&ran), 1, "{ran:#?}");
    assert!(ran.records[0]["notes"].to_string().contains("SIGHUP is ignored"), "{ran:#?}");
    assert_eq!(ran.seal()["spoofed_signals"], 0);
    // The control, and a signal that is not SIGHUP.
    let ran = run("--default-signal=HUP");
    ran.expect(129, "terminated");
    assert_eq!(ignores(&ran), 0, "{ran:#?}");
    assert!(!ran.records[0].to_string().contains("SIGHUP"), "{ran:#?}");
    let ran = run("--ignore-signal=USR1");
    ran.expect(129, "terminated");
    assert_eq!(ignores(&ran), 0, "{ran:#?}");
}

#[test]
fn a_second_interrupt_kills_at_once() {
    let began = Instant::now();
    let dir = tempfile::tempdir().unwrap();
    let ready = dir.path().join("ready");
    let script = format!("trap '' TERM INT; touch {}; while :; do sleep 0.05; done", ready.display());
    let child = shell(&["--soft", "30s", "--hard", "50s", "--grace", "100s"], &script).spawn().unwrap();
    until("the workload runs", || ready.exists());
    signal(child.id(), "INT");
    // One that repeats changes nothing; the second interrupt does. Both may be pending at once, so until it ends.
    let pid = child.id();
    let interrupter = std::thread::spawn(move || {
        let deadline = Instant::now() + Duration::from_secs(20);
        while std::path::Path::new(&format!("/proc/{pid}/fd")).exists() && Instant::now() < deadline {
            signal(pid, "INT");
            std::thread::sleep(Duration::from_millis(20));
        }
    });
    let ran = finish(child, began);
    interrupter.join().unwrap();
    let seal = ran.expect(130, "terminated");
    assert!(seal["escalation"][1]["at_ms"].as_u64().unwrap() < 20_000, "{ran:#?}");
}

/// A supervisor that had no CPU finds both at once: whoever sent the second one is not made to wait for the first one's politeness.
#[test]
fn an_interrupt_and_a_quit_that_are_read_together_kill_at_once() {
    for (signals, asked) in [(&["INT", "QUIT"][..], false), (&["INT"][..], true)] {
        let dir = tempfile::tempdir().unwrap();
        let (ready, polite) = (dir.path().join("ready"), dir.path().join("asked"));
        let script = format!(
            "trap 'touch {}; exit' TERM; touch {}; while :; do sleep 0.05; done",
            polite.display(),
            ready.display()
        );
        let began = Instant::now();
        let child = shell(&["--soft", "30s", "--hard", "50s", "--grace", "100s"], &script).spawn().unwrap();
        until("the workload runs", || ready.exists());
        signal(child.id(), "STOP");
        signals.iter().for_each(|name| signal(child.id(), name));
        signal(child.id(), "CONT");
        let ran = finish(child, began);
        let seal = ran.expect(130, "terminated");
        let rungs: Vec<_> = seal["escalation"].as_array().unwrap().iter().map(|rung| &rung["rung"]).collect();
        assert_eq!(rungs, if asked { ["term"] } else { ["kill"] }, "{ran:#?}");
        assert_eq!(polite.exists(), asked, "{ran:#?}");
    }
}

#[test]
fn a_stop_during_a_timeouts_ladder_only_shortens() {
    let began = Instant::now();
    let dir = tempfile::tempdir().unwrap();
    let audit = dir.path().join("audit.json");
    let read = || std::fs::read_to_string(&audit).unwrap_or_default();
    let child = gracekeeper()
        .args(["--timeout", "200ms", "--soft", "40s", "--hard", "50s", "--grace", "1s", "--audit-file"])
        .arg(&audit)
        .args(["--", "sh", "-c", "trap '' TERM; sleep 600 & wait; sleep 600"])
        .spawn()
        .unwrap();
    until("the timeout's ladder is on", || read().contains("termination_requested"));
    signal(child.id(), "TERM");
    let ran = finish(child, began);
    assert_eq!(ran.code(), Some(124), "{ran:#?}");
    assert!(ran.took < Duration::from_secs(20), "{ran:#?}");
    let records = records(&read());
    assert!(records.iter().any(|r| r["event"] == "termination_requested" && r["replanned"] == true), "{records:#?}");
    assert_eq!(records.last().unwrap()["status"], "timeout");
}

#[test]
fn what_a_finished_command_left_is_ended_and_the_verdict_stands() {
    let m = marker();
    let script = format!("setsid sh -c 'trap \"\" TERM; sleep {m} & wait; sleep {m}' & exit 7");
    let ran = run(&mut shell(&quick(&[]), &script));
    let seal = ran.expect(7, "nonzero_exit");
    assert_eq!(seal["reason"], "completed");
    assert_eq!(marked(&m), Vec::<u32>::new());
}

#[test]
fn a_grandchild_that_holds_the_pipe_does_not_hang_the_caller() {
    let m = marker();
    // `finish` reads stdout to its end: only a dead grandchild gives that.
    let ran = run(&mut shell(&quick(&[]), &format!("sleep {m} & echo out")));
    ran.expect(0, "ok");
    assert_eq!(ran.stdout, "out\n");
}

#[test]
fn strangers_are_never_signalled() {
    let (stranger, own) = (marker(), marker());
    let mut shell = Command::new("sh");
    // A child that was there before, inherited through exec, with a child of its own.
    shell.args(["-c", &format!("sh -c 'sleep {stranger} & wait' & exec {BINARY} --timeout 500ms --soft 100ms --hard 200ms -- sh -c \"trap '' TERM; sleep {own} & wait; sleep {own}\"")]);
    let status = shell.stderr(std::process::Stdio::null()).status().unwrap();
    let left = marked(&stranger);
    left.iter().for_each(|&pid| signal(pid, "KILL"));
    assert_eq!(status.code(), Some(124));
    assert!(!left.is_empty(), "the stranger was killed");
    assert_eq!(marked(&own), Vec::<u32>::new());
}

#[test]
fn the_private_tmpdir_goes_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let victim = dir.path().join("victim");
    std::fs::create_dir(&victim).unwrap();
    std::fs::write(victim.join("file"), "precious").unwrap();
    let script = format!(
        "cd \"$TMPDIR\" && mkdir -p a/b/c && echo secret > a/b/c/f && ln -s {0} link && ln {0}/file hard && mkfifo fifo && \
         touch \"$(printf 'odd\\nname\\377')\" && chmod 000 a/b && pwd",
        victim.display()
    );
    let ran = run(gracekeeper().env("TMPDIR", dir.path()).args(["--", "sh", "-c", &script]));
    let seal = ran.expect(0, "ok");
    let private = ran.stdout.trim();
    assert!(private.starts_with(dir.path().to_str().unwrap()), "{ran:#?}");
    assert!(!std::path::Path::new(private).exists());
    assert_eq!(std::fs::read_to_string(victim.join("file")).unwrap(), "precious");
    assert_eq!(seal["cleanup_status"], "complete");
    assert_eq!(seal["cleanup"]["paths"].as_array().unwrap().len(), 1);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "only the victim is left");
}

#[test]
fn a_named_path_is_emptied_and_a_dangerous_one_refused() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("secret"), "x").unwrap();
    let ran = run(gracekeeper().arg("--scrub").arg(dir.path()).args(["--", "true"]));
    ran.expect(0, "ok");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    for path in ["/", "/proc", "/sys/fs", "/dev", "relative"] {
        let ran = run(gracekeeper().args(["--scrub", path, "--", "echo", "ran"]));
        assert_eq!((ran.code(), ran.stdout.as_str()), (Some(125), ""), "{path}: {ran:#?}");
        assert_eq!(ran.stderr.lines().count(), 1, "{ran:#?}");
    }
}

#[test]
fn a_scrub_stops_at_its_budget_and_counts_truly() {
    let dir = tempfile::tempdir().unwrap();
    let script = format!("cd {} && seq 30000 | xargs touch", dir.path().display());
    let ran =
        run(gracekeeper().arg("--scrub").arg(dir.path()).args(["--scrub-budget", "1ms", "--", "sh", "-c", &script]));
    let seal = ran.expect(0, "ok");
    let left = std::fs::read_dir(dir.path()).unwrap().count();
    // The private TMPDIR comes first, then what was named.
    let removed = seal["cleanup"]["paths"][1]["entries_removed"].as_u64().unwrap();
    assert_eq!(seal["cleanup_status"], "partial", "{ran:#?}");
    assert_eq!(usize::try_from(removed).unwrap() + left, 30_000);
}

#[test]
fn commands_that_cannot_be_run() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str, mode: u32| {
        use std::os::unix::fs::PermissionsExt;
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        path
    };
    for (word, code) in [
        ("/no/such/program".into(), 127),
        ("no-such-program-anywhere".into(), 127),
        (file("plain", "text", 0o644), 126),
        (dir.path().to_owned(), 126),
        (file("interpreter", "#!/no/such/interpreter\n", 0o755), 127),
    ] {
        let ran = run(gracekeeper().arg("--").arg(&word));
        let seal = ran.expect(code, "launch_failed");
        assert_eq!(seal["process"]["pid"], serde_json::Value::Null, "{word:?}");
        assert_eq!(seal["fault"], "operator");
    }
    // A script without a magic number runs under sh, as execvp(3) does it.
    let ran = run(gracekeeper().arg("--").arg(file("script", "exit 9\n", 0o755)));
    ran.expect(9, "nonzero_exit");
}

#[test]
fn the_workload_cannot_stop_the_supervisor_by_signal() {
    // Two single shots, then more than would count as a flood. The filter refuses each; where the kernel has no filter,
    // they are recorded, ignored, and a violation past the threshold.
    let script = "kill -TERM $PPID && exit 1; kill -INT $PPID && exit 2; i=0; while [ $i -lt 500 ]; do kill -TERM $PPID 2>/dev/null; i=$((i+1)); done; exit 7";
    // Control: a plain parent dies of the same attack.
    let control = Command::new("sh").args(["-c", "sh -c 'kill -TERM $PPID; sleep 5'; exit 0"]).status().unwrap();
    assert!(!control.success(), "the attack has to work where nothing stops it");
    let ran = run(&mut shell(&[], script));
    let seal = ran.expect(7, "nonzero_exit");
    assert_eq!(seal["enforcement"]["seccomp_filter"], "enforced", "{ran:#?}");
    assert_eq!(seal["spoofed_signals"], 0, "{ran:#?}");
}

#[test]
fn other_signals_are_forwarded() {
    let dir = tempfile::tempdir().unwrap();
    let ready = dir.path().join("ready");
    let script = format!("trap 'exit 5' USR1; touch {}; while :; do sleep 0.05; done", ready.display());
    let began = Instant::now();
    let child = shell(&[], &script).spawn().unwrap();
    until("the workload runs", || ready.exists());
    signal(child.id(), "USR1");
    finish(child, began).expect(5, "nonzero_exit");
}

#[test]
fn a_stop_at_any_instant_is_never_lost() {
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64 ^ u64::from(std::process::id());
    println!("seed {seed:#x}");
    for _ in 0..200 {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        let began = Instant::now();
        let child =
            shell(&["--grace", "20s", "--soft", "15s", "--hard", "15s", "--audit-level", "basic"], "exec sleep 600")
                .spawn()
                .unwrap();
        let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap());
        std::thread::sleep(Duration::from_micros(seed % 100_000));
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
        let ran = finish(child, began);
        if ran.signal() == Some(15) {
            // Before its first instructions it is an ordinary process that dies of TERM, and has started nothing.
            assert_eq!(ran.records.len(), 0, "{ran:#?}");
        } else {
            ran.expect(143, "terminated");
        }
        assert!(ran.took < Duration::from_secs(10), "{ran:#?}");
    }
}

#[test]
fn idle_means_asleep() {
    let child = shell(&["--monitoring", "off"], "exec sleep 600").spawn().unwrap();
    let switches = || {
        let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
        status.lines().filter(|l| l.contains("ctxt_switches")).map(str::to_owned).collect::<Vec<_>>()
    };
    // It has settled once a whole second passes without a switch; it has 20 s to settle.
    let mut last = switches();
    until("a second without a wake-up", || {
        std::thread::sleep(Duration::from_secs(1));
        std::mem::replace(&mut last, switches()) == last
    });
    signal(child.id(), "TERM");
    finish(child, Instant::now()).expect(143, "terminated");
}

#[test]
fn the_environment_by_mode() {
    let print = |options: &[&str]| {
        let mut command = gracekeeper();
        command.env("SECRET", "s").env("JOB_ID", "j").env("LD_LIBRARY_PATH", "/x").env("KEY", "k").env("LANG", "C");
        let ran = run(command.args(["--audit-key-env", "KEY"]).args(options).args(["--", "env"]));
        assert_eq!(ran.expect(0, "ok")["job_id"], "j");
        let mut names: Vec<_> = ran.stdout.lines().filter_map(|l| l.split('=').next()).map(str::to_owned).collect();
        names.sort_unstable();
        names
    };
    assert_eq!(print(&[]), ["LANG", "PATH", "TMPDIR"]);
    assert_eq!(print(&["--env", "inherit"]), ["LANG", "PATH", "SECRET", "TMPDIR"]);
    assert_eq!(print(&["--keep-env", "SECRET"]), ["LANG", "PATH", "SECRET", "TMPDIR"]);
}

#[test]
fn bytes_that_are_no_utf8_pass_through() {
    let odd = OsStr::from_bytes(b"a\xff\xfe b");
    let mut command = gracekeeper();
    command.args(["--", "sh", "-c", "printf %s \"$1\" | od -An -tx1", "sh"]).arg(odd);
    let ran = run(&mut command);
    ran.expect(0, "ok");
    assert_eq!(ran.stdout, " 61 ff fe 20 62\n");
    // Not through a shell, which drops variables whose names it cannot use.
    let mut command = gracekeeper();
    command.env(OsStr::from_bytes(b"ODD\xff"), odd).args(["--env", "inherit", "--", "env"]);
    let out = command.output().unwrap();
    assert!(out.stdout.windows(10).any(|w| w == b"ODD\xff=a\xff\xfe b"), "{out:?}");
}

#[test]
fn closed_standard_descriptors() {
    for closed in ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"] {
        let dir = tempfile::tempdir().unwrap();
        let audit = dir.path().join("audit.json");
        let script = format!(
            "exec {BINARY} --audit-file {} -- sh -c 'ls -l /proc/self/fd > {}/fds; exit 4' {closed}",
            audit.display(),
            dir.path().display()
        );
        let status = Command::new("sh").args(["-c", &script]).status().unwrap();
        assert_eq!(status.code(), Some(4), "{closed}");
        let text = std::fs::read_to_string(&audit).unwrap();
        assert_eq!(records(&text).len(), 2, "{closed}: {text}");
        let fds = std::fs::read_to_string(dir.path().join("fds")).unwrap();
        assert!(!fds.contains("audit.json"), "{closed}: the workload got our file: {fds}");
    }
}

#[test]
fn audit_files_that_cannot_be_had() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    std::fs::create_dir(path("directory")).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", path("symlink")).unwrap();
    nix::unistd::mkfifo(&path("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    for name in ["missing/audit.json", "directory", "symlink", "fifo"] {
        let ran = run(gracekeeper().arg("--audit-file").arg(path(name)).args(["--", "sh", "-c", "exit 3"]));
        ran.expect(3, "nonzero_exit");
        assert!(ran.stderr.lines().any(|l| l.starts_with("gracekeeper:") && l.contains(name)), "{name}: {ran:#?}");
        let ran = run(gracekeeper().arg("--audit-file").arg(path(name)).args([
            "--audit-required",
            "yes",
            "--",
            "echo",
            "ran",
        ]));
        assert_eq!((ran.code(), ran.stdout.as_str()), (Some(125), ""), "{name}: {ran:#?}");
        assert_eq!(ran.stderr.lines().count(), 1, "{name}: {ran:#?}");
    }
}

#[test]
fn the_termination_message_is_the_last_word() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("termination-log");
    std::fs::write(&log, "old").unwrap();
    let script = format!("echo for\"\"ged > {}; exit 3", log.display());
    let ran = run(gracekeeper().arg("--termination-log").arg(&log).args(["--", "sh", "-c", &script]));
    ran.expect(3, "nonzero_exit");
    let text = std::fs::read_to_string(&log).unwrap();
    assert!(text.len() <= 4096 && text.contains("\"status\":\"nonzero_exit\"") && !text.contains("forged"), "{text}");
    // A symlink, a directory: not followed, not written, and no reason not to run.
    let link = dir.path().join("link");
    let target = dir.path().join("target");
    std::fs::write(&target, "mine").unwrap();
    std::os::unix::fs::symlink(&target, &link).unwrap();
    for bad in [&link, &dir.path().to_owned()] {
        let ran = run(gracekeeper().arg("--termination-log").arg(bad).args(["--", "true"]));
        ran.expect(0, "ok");
    }
    assert_eq!(std::fs::read_to_string(&target).unwrap(), "mine");
}

#[test]
fn bad_usage_runs_nothing() {
    for words in [
        &["--timeout", "soon", "--", "echo", "ran"][..],
        &["--timeout", "0", "--", "echo", "ran"],
        &["--risk", "extreme", "--", "echo", "ran"],
        &["--no-such-option", "--", "echo", "ran"],
        &["--grace"],
        &["--"],
        &[],
        &["--timeout", "5"],
        &["--audit-file", "--", "echo", "ran"],
        &["--audit-file", "", "--", "echo", "ran"],
        &["--scrub", "", "--", "echo", "ran"],
        &["--keep-env", "A=B", "--", "echo", "ran"],
        &["--policy", "/nowhere", "--", "echo", "ran"],
        &["--timeout", "1\n2", "--", "echo", "ran"],
        &["install"],
        &["profiles", "--yaml"],
    ] {
        let ran = run(gracekeeper().args(words));
        assert_eq!((ran.code(), ran.stdout.as_str()), (Some(125), ""), "{words:?}: {ran:#?}");
        assert_eq!(ran.stderr.lines().count(), 1, "{words:?}: {ran:#?}");
    }
    let ran = run(gracekeeper().env("INTERNAL_TIMEOUT", "later").args(["--", "echo", "ran"]));
    assert_eq!(ran.code(), Some(125));
    assert!(ran.stderr.contains("INTERNAL_TIMEOUT") && ran.stderr.contains("later"), "{ran:#?}");
    let ran = run(gracekeeper().env("SCRUB_PATHS", "relative").args(["--", "echo", "ran"]));
    assert!(ran.stderr.contains("SCRUB_PATHS") && ran.stderr.contains("relative"), "{ran:#?}");
    assert_eq!((ran.code(), ran.stdout.as_str()), (Some(125), ""));
}

#[test]
fn verbs_and_programs_of_the_same_name() {
    let ran = run(gracekeeper().args(["profiles", "--json"]));
    let table: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
    for (level, timeout, grace, deadline) in [
        ("low", "300s", "30s", 330),
        ("medium", "180s", "10s", 200),
        ("high", "90s", "5s", 120),
        ("critical", "55s", "2s", 60),
    ] {
        assert_eq!((&table[level]["timeout"], &table[level]["grace"]), (&timeout.into(), &grace.into()));
        assert_eq!(table[level]["active_deadline_seconds"], deadline);
    }
    let help = run(gracekeeper().arg("--help"));
    assert_eq!(help.code(), Some(0));
    for option in gracekeeper::settings::table::OPTIONS {
        assert!(help.stdout.contains(&format!("--{} ", option.flag)) && help.stdout.contains(option.variable));
    }
    run(gracekeeper().args(["--", "profiles"])).expect(127, "launch_failed");
    run(gracekeeper().args(["run", "--", "sh", "-c", "exit 2"])).expect(2, "nonzero_exit");
    run(gracekeeper().args(["sh", "-c", "exit 2"])).expect(2, "nonzero_exit");
}

#[test]
fn install_is_atomic_and_repeatable() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let dest = dir.path().join("gk");
    for _ in 0..2 {
        let ran = run(gracekeeper().arg("install").arg(&dest));
        assert_eq!(ran.code(), Some(0), "{ran:#?}");
    }
    assert_eq!(std::fs::metadata(&dest).unwrap().permissions().mode() & 0o7777, 0o555);
    // Over a copy that is running.
    let mut busy =
        Command::new(&dest).args(["--", "sleep", "600"]).stderr(std::process::Stdio::null()).spawn().unwrap();
    assert_eq!(run(gracekeeper().arg("install").arg(&dest)).code(), Some(0));
    signal(busy.id(), "TERM");
    busy.wait().unwrap();
    assert_eq!(Command::new(&dest).arg("--version").output().unwrap().status.code(), Some(0));
    for bad in [dir.path().to_owned(), dir.path().join("no/such/dir"), dir.path().join("new/")] {
        let ran = run(gracekeeper().arg("install").arg(&bad));
        assert_eq!((ran.code(), ran.stderr.lines().count()), (Some(125), 1), "{ran:#?}");
    }
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "nothing is left behind");
    // As PID 1 of its own namespace: the same pid each time, and what twenty killed ones of it left.
    if has("root") {
        for n in 0..20 {
            std::fs::write(dir.path().join(format!(".gracekeeper-install-1-{n}")), "").unwrap();
        }
        let status = Command::new("unshare").args(["--pid", "--fork", BINARY, "install"]).arg(&dest).status().unwrap();
        assert_eq!(status.code(), Some(0));
    }
}

#[test]
fn a_verb_that_supervises_nothing_ends_by_a_signal() {
    let dir = tempfile::tempdir().unwrap();
    let fifo = dir.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    // Somebody could write to it, and does not.
    let writer = std::fs::OpenOptions::new().read(true).write(true).open(&fifo).unwrap();
    let child = gracekeeper().arg("verify").arg(&fifo).spawn().unwrap();
    signal(child.id(), "TERM");
    let ran = finish(child, Instant::now());
    assert_eq!(ran.signal(), Some(15), "{ran:#?}");
    drop(writer);
}

/// No verb waits at a FIFO for somebody who may never come; each reads what a shell gives it.
#[test]
fn a_named_file_is_opened_without_waiting_for_anybody() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let fifo = at("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    assert_eq!(run(gracekeeper().arg("--audit-file").arg(at("audit")).args(["--", "true"])).code(), Some(0));
    std::fs::write(at("task"), r#"{"id":"t","command":"true"}"#).unwrap();
    let shell = |script: &str| {
        let mut command = Command::new("timeout");
        command.args(["--kill-after=1", "60", "bash", "-c", script]).current_dir(dir.path()).env("G", BINARY);
        let out = command.output().unwrap();
        (
            out.status.code().unwrap_or(-1),
            String::from_utf8(out.stdout).unwrap(),
            String::from_utf8(out.stderr).unwrap(),
        )
    };
    let verify = |file: &str| format!("\"$G\" verify {file}");
    let job = |file: &str| format!("\"$G\" job {file} --image i");
    // The control: what only opens it, waits.
    assert_eq!(shell("timeout 0.2 cat fifo").0, 124);
    for script in [verify("fifo"), job("fifo"), format!("exec 3<>fifo <fifo 3>&-; {}", verify("/dev/stdin"))] {
        let (code, out, told) = shell(&script);
        assert_eq!((code, out.as_str(), told.lines().count()), (125, "", 1), "{script}: {told}");
        assert!(told.contains("not a regular file but a FIFO that nobody writes to"), "{script}: {told}");
    }
    for (file, verb) in [("audit", &verify as &dyn Fn(&str) -> String), ("task", &job)] {
        for script in [
            verb(file),
            format!("{} <{file}", verb("/dev/stdin")),
            format!("{} <{file}", verb("-")),
            format!("cat {file} | {}", verb("-")),
            format!("cat {file} | {}", verb("/dev/stdin")),
            format!("{{ sleep 0.2; cat {file}; }} | {}", verb("/dev/fd/0")),
            verb(&format!("<(cat {file})")),
            verb(&format!("<(sleep 0.2; cat {file})")),
            // A writer that comes after the reader; one that came before, and takes its time; one that has gone.
            format!("(sleep 0.3; cat {file} >fifo) & {}", verb("fifo")),
            format!("exec 3<>fifo; {{ exec 3>&-; sleep 2.5; cat {file}; }} >fifo & exec 3>&-; {}", verb("fifo")),
            format!("exec 3<>fifo; cat {file} >fifo; exec 4<fifo 3>&-; {}", verb("fifo")),
        ] {
            let (code, out, told) = shell(&script);
            assert_eq!(code, 0, "{script}: {out}{told}");
        }
    }
    // A socket, which open(2) refuses: the control.
    for (file, code) in [("-", 0), ("/dev/stdin", 125)] {
        let (mut ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        std::io::Write::write_all(&mut ours, &std::fs::read(at("audit")).unwrap()).unwrap();
        drop(ours);
        let mut verify = gracekeeper();
        verify.args(["verify", file]).stdin(std::os::fd::OwnedFd::from(theirs));
        assert_eq!(run(&mut verify).code(), Some(code), "{file}");
    }
    // Nothing at all is an answer of its own, and no FIFO.
    for file in ["/dev/stdin", "-"] {
        assert_eq!(shell(&format!("true | {}", verify(file))).0, 3, "{file}");
    }
    let (code, _, told) = shell(&verify("."));
    assert!(code == 125 && told.contains("Is a directory"), "{told}");
    // What is at DEST and no file is not taken away.
    let (code, _, told) = shell("\"$G\" install fifo");
    assert!(code == 125 && told.contains("not a regular file") && told.lines().count() == 1, "{told}");
    assert!(std::os::unix::fs::FileTypeExt::is_fifo(&fifo.metadata().unwrap().file_type()));
}

#[test]
fn revoke_takes_the_files_of_a_workload_that_ignores_term() {
    let writer = "trap '' TERM; exec > \"$TMPDIR/file\"; while :; do echo x; done";
    let limits = ["--timeout", "200ms", "--hard", "2s", "--adaptive", "no"];
    for (soft, signal, rung) in [("300ms", "SIGXFSZ", true), ("5s", "SIGKILL", false)] {
        let ran = run(&mut shell(&[&limits[..], &["--soft", soft]].concat(), writer));
        let seal = ran.expect(124, "timeout");
        assert_eq!(seal["process"]["signal"], signal, "{seal:#}");
        let revoke = seal["escalation"].as_array().unwrap().iter().find(|e| e["rung"] == "revoke");
        assert_eq!(revoke.is_some_and(|r| r["limited"] == 1), rung, "the control has no rung: {seal:#}");
    }
}

/// Children forked long before the end are not a fork bomb, however many; ones forked in the grace are. Not PID 1.
#[test]
fn many_processes_at_the_trigger_are_what_the_grace_is_measured_against() {
    let many = |before: u32, on_term: u32, timeout: &str| {
        let m = marker();
        let fork = |n: u32| format!("i=0; while [ $i -lt {n} ]; do sleep {m} & i=$((i+1)); done");
        let script = format!(
            "trap '{}; sleep 1; exit 0' TERM; sleep 0.3; {}; while :; do sleep 0.05; done",
            fork(on_term),
            fork(before)
        );
        let options = ["--timeout", timeout, "--soft", "3s", "--hard", "5s", "--adaptive", "no", "--grace", "10s"];
        let ran = run(&mut shell(&[&options[..], &["--monitoring", "aggressive"]].concat(), &script));
        until("all are gone", || marked(&m).is_empty());
        ran
    };
    in_three(|| {
        // Forked after the last sample, and before the first.
        for timeout in ["2800ms", "900ms"] {
            let ran = many(100, 0, timeout);
            let seal = ran.expect(124, "timeout");
            assert_eq!(seal["detections"].as_array().unwrap().len(), 0, "{seal:#}");
            let ran = many(70, 150, timeout);
            let seal = ran.expect(121, "violation");
            assert_eq!(seal["detections"][0]["rule"], "fork_bomb", "{seal:#}");
        }
    });
}

/// A terminal that has room for a part of a line only, and whose reader has stopped, holds up nothing.
#[test]
fn a_terminal_that_is_nearly_full_holds_up_nothing() {
    for room in [0, 100, 1_200, 2_500, 4_095] {
        let pty = nix::pty::openpty(None, None).unwrap();
        let flags = |on| if on { nix::fcntl::OFlag::O_NONBLOCK } else { nix::fcntl::OFlag::empty() };
        nix::fcntl::fcntl(&pty.slave, nix::fcntl::FcntlArg::F_SETFL(flags(true))).unwrap();
        while nix::unistd::write(&pty.slave, &[b'x'; 64]).is_ok() {}
        while nix::unistd::write(&pty.slave, b"x").is_ok() {}
        nix::fcntl::fcntl(&pty.slave, nix::fcntl::FcntlArg::F_SETFL(flags(false))).unwrap();
        let mut read = 0;
        while read < room {
            read += nix::unistd::read(&pty.master, &mut vec![0; room - read]).unwrap();
        }
        let began = Instant::now();
        let mut command = gracekeeper();
        command.args([
            "--timeout",
            "300ms",
            "--soft",
            "200ms",
            "--hard",
            "400ms",
            "--log-level",
            "trace",
            "--",
            "sh",
            "-c",
        ]);
        command.arg("trap '' TERM; while :; do sleep 0.02; done").stderr(pty.slave);
        let child = command.spawn().unwrap();
        drop(command);
        let ran = finish(child, began);
        assert_eq!(ran.code(), Some(124), "{ran:#?}");
        assert!(ran.took < Duration::from_secs(5), "room for {room}: {:?}", ran.took);
    }
}

#[test]
fn a_last_word_without_a_newline_swallows_no_record() {
    let whole = |text: &str| {
        let records: String = text.lines().filter(|l| l.starts_with('{')).map(|l| format!("{l}\n")).collect();
        assert_eq!(records.matches("\"schema_version\"").count(), text.matches("\"schema_version\"").count(), "{text}");
        let report = gracekeeper::audit::verify::check(records.as_bytes(), None).unwrap();
        assert_eq!(report.state, gracekeeper::audit::verify::State::Sealed, "{report:?}\n{text}");
    };
    // At the end, and while it lives: it wrote before it could be asked to stop.
    for script in ["printf x >&2", "trap '' TERM; printf x >&2; kill -TERM $PPID; sleep 600"] {
        for relayed in [&[][..], &["--output-limit", "1M"]] {
            let ran = run(&mut shell(
                &[relayed, &["--soft", "100ms", "--hard", "200ms", "--timeout", "300ms"]].concat(),
                script,
            ));
            assert!(ran.stderr.contains('x'), "{ran:#?}");
            whole(&ran.stderr);
            ran.seal();
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("stderr");
    assert!(shell(&[], "printf x >&2").stderr(std::fs::File::create(&path).unwrap()).status().unwrap().success());
    whole(&std::fs::read_to_string(&path).unwrap());
    // Where there was no workload there is no empty line; and what `verify` is given as it is, is sealed as well.
    let ran = run(gracekeeper().args(["--", "/nonexistent"]));
    assert!(!ran.stderr.contains("\n\n"), "{ran:#?}");
    let ran = run(&mut shell(&[], "true"));
    let report = gracekeeper::audit::verify::check(ran.stderr.as_bytes(), None).unwrap();
    assert_eq!(report.state, gracekeeper::audit::verify::State::Sealed, "{report:?}\n{}", ran.stderr);
}

#[test]
fn an_error_names_where_the_value_came_from_and_what_is_wrong_with_it() {
    let line = |command: &mut Command| {
        let ran = run(command.args(["--", "true"]));
        assert_eq!((ran.code(), ran.records.len(), ran.stderr.lines().count()), (Some(125), 0, 1), "{ran:#?}");
        ran.stderr
    };
    for (flag, variable, value) in [("--policy", "POLICY_FILE", "/nope"), ("--scrub", "SCRUB_PATHS", "/proc")] {
        let by_flag = line(gracekeeper().args([flag, value]));
        assert!(by_flag.contains(flag) && by_flag.contains(value), "{by_flag}");
        let by_variable = line(gracekeeper().env(variable, value));
        assert!(by_variable.contains(variable) && !by_variable.contains(flag), "{by_variable}");
        let both = line(gracekeeper().env(variable, "/dev").args([flag, value]));
        assert!(both.contains(flag) && !both.contains(variable), "{both}");
    }
    for value in ["0", "526000m"] {
        let said = line(gracekeeper().args(["--timeout", value]));
        assert!(said.contains("above zero") && said.contains("365 days"), "{said}");
    }
    let ran = run(gracekeeper().args(["--workdir", "/nope", "--", "true"]));
    let errors = ran.expect(126, "launch_failed")["errors"].to_string();
    assert!(errors.contains("chdir /nope: ") && !errors.contains("true"), "{errors}");
}

/// The workload has the same description of a log file, as this test has: whatever is done to its position and its flags, the seal is there, and last.
#[test]
fn a_stderr_that_the_workload_has_spoilt_has_the_seal() {
    use std::fs::File;
    use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
    // As far as files go: of ext4 and of tmpfs.
    let far = |mut file: &File| {
        let reaches = |end: u64| file.seek(SeekFrom::Start(end)).is_ok() && file.write_all(b"x").is_ok();
        assert!([u64::MAX / 2 - 1, 17_592_186_040_319].into_iter().any(reaches));
        assert!(file.write_all(b"x").is_err(), "the control");
    };
    // On a disk a write has to be of whole blocks then; a tmpfs takes any, or has no such flag.
    let direct = |file: &File| {
        let _ = nix::fcntl::fcntl(file, nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_DIRECT));
    };
    let back = |mut file: &File| assert_eq!(file.rewind().ok(), Some(()));
    for below in [std::env::temp_dir(), "/dev/shm".into()] {
        for (name, spoil) in [("far", &far as &dyn Fn(&File)), ("direct", &direct), ("back", &back)] {
            let dir = tempfile::tempdir_in(&below).unwrap();
            let log = File::create_new(dir.path().join("log")).unwrap();
            let mut command = gracekeeper();
            command.args(["--timeout", "30", "--", "sh", "-c", "until [ -e go ]; do sleep 0.01; done"]);
            let mut child = command.current_dir(dir.path()).stderr(log.try_clone().unwrap()).spawn().unwrap();
            let text = || {
                let mut text = Vec::new();
                // Not all of it: it may be as large as files can be.
                File::open(dir.path().join("log")).unwrap().take(64 * 1024).read_to_end(&mut text).unwrap();
                String::from_utf8(text).unwrap().replace('\0', "")
            };
            until("the first record", || text().contains("evaluation_started"));
            spoil(&log);
            File::create(dir.path().join("go")).unwrap();
            assert_eq!(child.wait().unwrap().code(), Some(0), "{below:?} {name}");
            let events: Vec<_> =
                records(&text()).into_iter().map(|r| r["event"].as_str().unwrap().to_owned()).collect();
            assert_eq!(events, ["evaluation_started", "evaluation_terminated"], "{below:?} {name}: {}", text());
        }
    }
}

/// Some parents ignore SIGCHLD, which stays so over execve(2): the kernel would reap for us, and say nothing.
#[test]
fn a_parent_that_ignores_its_children_does_not_cost_the_status() {
    let mut command = Command::new("bash");
    command.args(["-c", "trap '' CHLD; exec \"$BINARY\" -- sh -c 'sleep 0.1; exit 3'"]).env("BINARY", BINARY);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let ran = run(&mut command);
    assert_eq!(ran.code(), Some(3), "{ran:#?}");
    assert_eq!(ran.seal()["process"]["exit_code"], 3, "{ran:#?}");
}

/// Not as PID 1 and without /proc nobody could be found: nothing is run. As PID 1 the kernel knows them all.
#[test]
fn without_proc_nothing_is_run_but_as_pid_1() {
    if !has("root") {
        return;
    }
    for (pid, code) in [("", 125), ("--pid --fork", 3)] {
        let script = format!(
            "for d in /tmp /var/tmp /dev/shm; do mount -t tmpfs none $d; done; mount -t tmpfs none /proc; \
             exec unshare {pid} \"$BINARY\" -- sh -c 'sleep 337 & exit 3'"
        );
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", &script]).env("BINARY", BINARY).stderr(Stdio::piped());
        let out = command.output().unwrap();
        let told = String::from_utf8_lossy(&out.stderr).into_owned();
        assert_eq!(out.status.code(), Some(code), "{pid}: {told}");
        assert!(code != 125 || told.contains("/proc") && told.lines().count() == 1, "{told}");
    }
}

#[test]
fn an_empty_file_on_a_full_disk_is_no_audit() {
    if !has("root") {
        return;
    }
    for (size, required, code) in [("64k", true, 125), ("64k", false, 3), ("1m", true, 3)] {
        let script = format!(
            "mount -t tmpfs -o size={size} none /mnt; head -c 65536 /dev/zero >/mnt/fill; \
             exec \"$BINARY\" --audit-file /mnt/audit.json --audit-required={} -- sh -c 'exit 3'",
            if required { "yes" } else { "no" }
        );
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", &script]).env("BINARY", BINARY).stderr(Stdio::piped());
        let out = command.output().unwrap();
        let told = String::from_utf8_lossy(&out.stderr).into_owned();
        assert_eq!(out.status.code(), Some(code), "{size} {required}: {told}");
        assert_eq!(code == 125, told.contains("fallocate: ENOSPC") && told.lines().count() == 1, "{told}");
    }
}

#[test]
fn a_job_is_not_printed_that_its_supervisor_would_refuse() {
    let dir = tempfile::tempdir().unwrap();
    let task = dir.path().join("task.json");
    std::fs::write(&task, r#"{"id":"t","command":"true"}"#).unwrap();
    for (path, code) in [("/", 125), ("/proc", 125), ("/gk", 125), ("/var/log", 125), ("/data", 0)] {
        let mut job = gracekeeper();
        job.arg("job").arg(&task).args(["--image", "i", "--scrub", path]).stdout(Stdio::null());
        assert_eq!(run(&mut job).code(), Some(code), "{path}");
    }
}
