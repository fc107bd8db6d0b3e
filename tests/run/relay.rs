//! `--output-limit`: exact to the byte, in order, and never in the way of the ladder.

use super::support::*;
use std::io::Read;
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Runs SCRIPT with its records in a file, so that stderr is the workload's alone; the run and its records.
fn relayed(limit: &str, more: &[&str], script: &str) -> Ran {
    let began = Instant::now();
    let (mut command, audit) = limited(limit, more, script);
    let mut ran = finish(command.spawn().unwrap(), began);
    ran.records = records(&std::fs::read_to_string(audit.path().join("audit")).unwrap());
    ran
}

fn limited(limit: &str, more: &[&str], script: &str) -> (Command, tempfile::TempDir) {
    let audit = tempfile::tempdir().unwrap();
    let mut command = gracekeeper();
    command.args(["--output-limit", limit, "--audit-file"]).arg(audit.path().join("audit"));
    command.args(["--soft", "200ms", "--hard", "400ms", "--monitoring", "off"]).args(more);
    command.args(["--", "sh", "-c", script]);
    (command, audit)
}

/// Who asked is named: the option, or the variable.
#[test]
fn a_relay_that_cannot_be_had_names_who_asked_for_it() {
    for (flag, variable, source) in [
        (Some("1k"), None, "--output-limit: "),
        (None, Some("1k"), "OUTPUT_LIMIT: "),
        (Some("1k"), Some("2k"), "--output-limit: "),
    ] {
        // No descriptor is left for what it needs.
        let mut command = std::process::Command::new("sh");
        command.args(["-c", "ulimit -n 4; exec \"$0\" \"$@\"", BINARY]).env_clear();
        command.args(flag.map(|value| format!("--output-limit={value}"))).args(["--", "true"]);
        command.envs(variable.map(|value| ("OUTPUT_LIMIT", value)));
        let out = command.output().unwrap();
        let line = String::from_utf8(out.stderr).unwrap();
        assert_eq!(out.status.code(), Some(125), "{line}");
        assert!(line.starts_with(&format!("gracekeeper: {source}")) && line.contains("EMFILE"), "{line}");
        assert_eq!(line.lines().count(), 1, "{line}");
    }
}

#[test]
fn exact_at_the_limit_and_on_both_sides_of_it() {
    for limit in [1_u64, 100, 65_536, 300_000] {
        for (written, code, status) in [
            (limit - 1, 0, "ok"),
            (limit, 0, "ok"),
            (limit + 1, 121, "output_limit"),
            (limit + 5000, 121, "output_limit"),
        ] {
            let ran = relayed(&limit.to_string(), &[], &format!("head -c {written} /dev/zero"));
            let seal = ran.expect(code, status);
            assert_eq!(ran.stdout.len() as u64, written.min(limit), "{limit} {written}");
            assert_eq!(seal["output"]["delivered"], written.min(limit), "{seal:#}");
            assert_eq!(seal["output"]["undelivered"], 0, "{seal:#}");
            assert_eq!(seal["enforcement"]["output_relay"], "enforced");
        }
    }
}

#[test]
fn nothing_at_all_is_allowed_by_zero() {
    relayed("0", &[], "true").expect(0, "ok");
    let ran = relayed("0", &[], "echo x");
    ran.expect(121, "output_limit");
    assert_eq!(ran.stdout, "");
}

#[test]
fn both_streams_count_together_and_each_keeps_its_order() {
    let script = "i=0; while [ $i -lt 500 ]; do echo out$i; echo err$i >&2; i=$((i+1)); done";
    let plain = run(Command::new("sh").args(["-c", script]).stdout(Stdio::piped()).stderr(Stdio::piped()));
    let all = plain.stdout.len() + plain.stderr.len();
    let ran = relayed(&all.to_string(), &[], script);
    ran.expect(0, "ok");
    assert_eq!((&ran.stdout, &ran.stderr), (&plain.stdout, &plain.stderr));
    let ran = relayed(&(all - 1).to_string(), &[], script);
    ran.expect(121, "output_limit");
    assert_eq!(ran.stdout.len() + ran.stderr.len(), all - 1);
    assert!(plain.stdout.starts_with(&ran.stdout) && plain.stderr.starts_with(&ran.stderr), "{ran:#?}");
}

#[test]
fn one_file_for_both_keeps_the_order_between_them() {
    let dir = tempfile::tempdir().unwrap();
    let script = "i=0; while [ $i -lt 300 ]; do echo $i; i=$((i+1)); echo $i >&2; i=$((i+1)); done";
    let expected: String = (0..300).map(|i| format!("{i}\n")).collect();
    // A file written from its start, one in append mode (which cannot splice), and each a pipe of ours.
    for append in [false, true] {
        let path = dir.path().join(format!("out{append}"));
        std::fs::write(&path, "").unwrap();
        let file = std::fs::OpenOptions::new().write(!append).append(append).open(&path).unwrap();
        let (mut command, _audit) = limited("1M", &[], script);
        command.stderr(file.try_clone().unwrap()).stdout(file);
        assert_eq!(command.status().unwrap().code(), Some(0));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), expected, "append: {append}");
    }
}

#[test]
fn what_was_written_is_there_also_when_the_workload_is_killed() {
    let ran =
        relayed("1M", &["--timeout", "500ms"], "trap '' TERM; head -c 50000 /dev/zero; sleep 600 & wait; sleep 600");
    ran.expect(124, "timeout");
    assert_eq!(ran.stdout.len(), 50_000);
    let ran = relayed("1M", &[], "head -c 5000 /dev/zero; echo last >&2; kill -KILL $$");
    ran.expect(137, "signaled");
    assert_eq!((ran.stdout.len(), ran.stderr.as_str()), (5000, "last\n"));
}

#[test]
fn a_flood_ends_and_does_not_get_through() {
    let ran = relayed("1000", &[], "trap '' TERM; yes; yes");
    let seal = ran.expect(121, "output_limit");
    assert_eq!(ran.stdout, "y\n".repeat(500));
    assert!(seal["output"]["beyond"].as_u64().unwrap() > 0, "{seal:#}");
    assert!(ran.took < Duration::from_secs(10), "{ran:#?}");
}

#[test]
fn a_workload_that_is_asked_to_stop_is_not_held_up_in_its_own_write() {
    // It writes more than a pipe holds before it ends by its own handler. Control: an unread pipe would hold it up.
    let script = "trap 'head -c 200000 /dev/zero; exit 7' TERM; echo much; while :; do sleep 0.05; done";
    let ran = relayed("4", &["--soft", "20s", "--hard", "20s"], script);
    let seal = ran.expect(121, "output_limit");
    assert_eq!(seal["process"]["exit_code"], 7, "{seal:#}");
    assert_eq!(ran.stdout, "much");
}

#[test]
fn leftover_writers_are_delivered_and_the_verdict_stands() {
    let m = marker();
    // Ignored before there is a second one: the command ends at once, and then that is asked to.
    let script = format!("trap '' TERM; (echo late; sleep 0.1; echo later; sleep {m}) & echo first; exit 3");
    let ran = relayed("1M", &["--soft", "600ms"], &script);
    ran.expect(3, "nonzero_exit");
    assert_eq!(marked(&m), Vec::<u32>::new());
    for word in ["first", "late\n", "later"] {
        assert!(ran.stdout.contains(word), "{ran:#?}");
    }
}

/// A pipe that nobody reads until the test does.
fn stuck() -> (std::fs::File, OwnedFd) {
    let (read, write) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).unwrap();
    (std::fs::File::from(read), write)
}

#[test]
fn a_stuck_reader_holds_up_neither_the_ladder_nor_the_seal() {
    let (mut read, write) = stuck();
    let flags = || nix::fcntl::fcntl(&read, nix::fcntl::FcntlArg::F_GETFL);
    let before = flags().unwrap();
    let began = Instant::now();
    let (mut command, audit) = limited("100M", &["--timeout", "500ms"], "trap '' TERM; yes; sleep 600");
    let child = command.stdout(write).spawn().unwrap();
    drop(command);
    let mut ran = finish(child, began);
    ran.records = records(&std::fs::read_to_string(audit.path().join("audit")).unwrap());
    let seal = ran.expect(124, "timeout");
    assert!(ran.took < Duration::from_secs(8), "{ran:#?}");
    assert_eq!(flags().unwrap(), before, "the shared description is as it was");
    let mut text = String::new();
    read.read_to_string(&mut text).unwrap();
    // Control: the pipe was full, so the workload had to wait for its reader.
    assert!(text.len() >= 65_536 && text.starts_with("y\ny\n"), "{}", text.len());
    assert_eq!(seal["output"]["delivered"], text.len() as u64, "{seal:#}");
    assert!(seal["output"]["undelivered"].as_u64().unwrap() > 0, "{seal:#}");
    assert!(seal["errors"].to_string().contains("nobody read them"), "{seal:#}");
}

#[test]
fn a_slow_reader_gets_every_byte() {
    let (mut read, write) = stuck();
    let (mut command, audit) = limited("100M", &[], "head -c 200000 /dev/zero");
    let mut child = command.stdout(write).spawn().unwrap();
    drop(command);
    // Slower than the workload, and never slower than the second that a reader gets.
    let mut total = 0;
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let n = read.read(&mut buffer).unwrap();
        if n == 0 {
            break;
        }
        total += n;
        std::thread::sleep(Duration::from_millis(30));
    }
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert_eq!(total, 200_000);
    let records = records(&std::fs::read_to_string(audit.path().join("audit")).unwrap());
    assert_eq!(records.last().unwrap()["output"]["undelivered"], 0);
}

#[test]
fn a_gone_reader_is_the_workloads_sigpipe() {
    let (read, write) = stuck();
    drop(read);
    let began = Instant::now();
    // The shell reports SIGPIPE of its child; without a relay `yes` ends the same way.
    let (mut command, audit) = limited("100M", &["--timeout", "20s"], "yes; exit 5");
    let child = command.stdout(write).spawn().unwrap();
    drop(command);
    let mut ran = finish(child, began);
    ran.records = records(&std::fs::read_to_string(audit.path().join("audit")).unwrap());
    let seal = ran.expect(5, "nonzero_exit");
    assert!(seal["errors"].to_string().contains("EPIPE"), "{seal:#}");
}

#[test]
fn a_terminal_and_a_socket_are_written_without_waiting() {
    let pty = nix::pty::openpty(None, None).unwrap();
    let (near, far) = std::os::unix::net::UnixStream::pair().unwrap();
    for (name, to) in [("terminal", pty.slave), ("socket", OwnedFd::from(far))] {
        let began = Instant::now();
        // Nobody reads either of them.
        let (mut command, audit) = limited("100M", &["--timeout", "500ms"], "trap '' TERM; yes; sleep 600");
        let child = command.stdout(to).spawn().unwrap();
        drop(command);
        let mut ran = finish(child, began);
        ran.records = records(&std::fs::read_to_string(audit.path().join("audit")).unwrap());
        let seal = ran.expect(124, "timeout");
        assert!(ran.took < Duration::from_secs(8), "{name}: {ran:#?}");
        assert!(seal["output"]["undelivered"].as_u64().unwrap() > 0, "{name}: {seal:#}");
        assert_eq!(seal["enforcement"]["output_relay"], "enforced", "{name}");
    }
    drop((near, pty.master));
}

/// The packets of `hostile`, relayed to this stdout.
fn packets(limit: &str, size: &str, times: &str, to: impl Into<Stdio>) -> serde_json::Value {
    let audit = tempfile::tempdir().unwrap();
    let mut command = gracekeeper();
    command.args(["--output-limit", limit, "--monitoring", "off", "--audit-file"]).arg(audit.path().join("audit"));
    command.arg("--").arg(hostile()).args(["packets", size, times]).stdout(to).stderr(Stdio::null());
    command.status().unwrap();
    drop(command);
    records(&std::fs::read_to_string(audit.path().join("audit")).unwrap()).pop().unwrap()
}

#[test]
fn what_is_left_of_a_packet_counts() {
    let dir = tempfile::tempdir().unwrap();
    let file = |append| {
        let path = dir.path().join(if append { "append" } else { "plain" });
        std::fs::OpenOptions::new().create(true).write(!append).append(append).read(append).open(path).unwrap()
    };
    let ((near, far), (read, write)) = (std::os::unix::net::UnixStream::pair().unwrap(), stuck());
    // All of it fits into each of them, so that nobody has to read meanwhile.
    for (name, to) in [
        ("file", Stdio::from(file(false))),
        ("appended", file(true).into()),
        ("socket", OwnedFd::from(far).into()),
        ("pipe", write.into()),
    ] {
        let seal = packets("1000", "4000", "1", to);
        assert_eq!(seal["status"], "output_limit", "{name}: {seal:#}");
        assert_eq!(seal["output"]["delivered"], 1000, "{name}: {seal:#}");
        assert_eq!(seal["output"]["beyond"], 3000, "{name}: {seal:#}");
    }
    for name in ["plain", "append"] {
        assert_eq!(std::fs::metadata(dir.path().join(name)).unwrap().len(), 1000, "{name}");
    }
    for mut from in [Box::new(near) as Box<dyn Read>, Box::new(read)] {
        let mut bytes = Vec::new();
        from.read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes.len(), 1000);
    }
}

#[test]
fn a_packet_reaches_a_reader_of_little_whole() {
    let reads = |mut read: std::fs::File| {
        std::thread::spawn(move || {
            let mut total = 0;
            while let n @ 1.. = read.read(&mut [0; 100]).unwrap() {
                total += n;
            }
            total
        })
    };
    let (read, write) = stuck();
    let reader = reads(read);
    assert!(Command::new(hostile()).args(["packets", "4000", "50"]).stdout(write).status().unwrap().success());
    assert_eq!(reader.join().unwrap(), 50 * 100, "control: a packet is read once");
    let (read, write) = stuck();
    let reader = reads(read);
    let seal = packets("1M", "4000", "50", write);
    assert_eq!((reader.join().unwrap(), seal["output"]["delivered"].as_u64()), (200_000, Some(200_000)), "{seal:#}");
}

#[test]
fn without_a_limit_there_is_no_pipe() {
    let (mut read, write) = stuck();
    let number = write.as_raw_fd();
    // Its inode is what the workload has as stdout.
    let ours = std::fs::read_link(format!("/proc/self/fd/{number}")).unwrap();
    let script = "readlink /proc/self/fd/1";
    let mut command = gracekeeper();
    command.args(["--", "sh", "-c", script]).stdout(write);
    assert!(command.status().unwrap().success());
    drop(command);
    let mut text = String::new();
    read.read_to_string(&mut text).unwrap();
    assert_eq!(text.trim(), ours.to_str().unwrap());
    // Control: with a limit it is another one.
    assert_ne!(relayed("1M", &[], script).stdout.trim(), ours.to_str().unwrap());
}

#[test]
fn a_gigabyte_at_the_speed_of_cat() {
    let amount = 1_u64 << 30;
    let count = |mut command: Command| {
        let began = Instant::now();
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut counter =
            Command::new("wc").arg("-c").stdin(child.stdout.take().unwrap()).stdout(Stdio::piped()).spawn().unwrap();
        let mut text = String::new();
        counter.stdout.take().unwrap().read_to_string(&mut text).unwrap();
        counter.wait().unwrap();
        (child.wait().unwrap(), text.trim().parse::<u64>().unwrap(), began.elapsed())
    };
    in_three(|| {
        let producer = format!("head -c {amount} /dev/zero");
        let (_, _, cat) = count({
            let mut command = Command::new("sh");
            command.args(["-c", &format!("{producer} | cat")]);
            command
        });
        let (command, _audit) = limited("2Gi", &["--timeout", "60s"], &producer);
        let (status, bytes, ours) = count(command);
        println!("1 GiB: cat {cat:?}, the relay {ours:?}");
        assert_eq!((status.code(), bytes), (Some(0), amount));
        // A bound for a noisy machine: the class is what is tested here, the figure is the bench's.
        assert!(ours < cat * 4 + Duration::from_secs(1), "cat {cat:?}, the relay {ours:?}");
    });
}
