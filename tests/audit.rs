//! The audit log on real files, and `verify` on what becomes of them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

#[path = "support/schema.rs"]
mod schema;

use gracekeeper::audit::chain::{Chain, ZEROS, sha256};
use gracekeeper::audit::log::{Config, Log, emergency};
use gracekeeper::audit::record::*;
use gracekeeper::audit::verify::{State, check, check_from};
use gracekeeper::kernel::Outcome;
use gracekeeper::settings::{AuditFile, AuditKey, AuditLevel};
use proptest::prelude::*;
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

fn started(notes: usize) -> Body {
    Body::EvaluationStarted(Box::new(EvaluationStarted {
        version: "0".into(),
        supervisor_pid: 1,
        process: StartedProcess {
            executable: "/bin/x \"\n\u{1}é".into(),
            args_sha256: sha256(b""),
            args_count: 1,
            args: Some(vec!["a".into()]),
        },
        risk_level: "high".into(),
        limits: Limits { timeout_ms: None, grace_ms: 1, soft_ms: 2, hard_ms: 3, scrub_budget_ms: 4 },
        overrides: Vec::new(),
        notes: vec!["n".into(); notes],
    }))
}

fn rung() -> Escalation {
    Escalation {
        rung: "revoke".into(),
        at_ms: 5,
        signalled: Some(1),
        survivors: Some(0),
        starved: true,
        files: Some("enforced".into()),
        network: Some("degraded".into()),
        limited: Some(1),
        sockets_cut: Some(1),
        frozen: Some(1),
        errors: vec!["e".into()],
    }
}

fn detection() -> Detection {
    Detection { rule: "fork_bomb".into(), at_ms: 1, value: 2, threshold: 1, action: "kill".into() }
}

fn adjustment() -> Adjustment {
    Adjustment { rule: "subprocesses".into(), value: 7, ms: -3000 }
}

fn seal() -> EvaluationTerminated {
    EvaluationTerminated {
        reason: "timeout".into(),
        status: "timeout".into(),
        exit_code: 124,
        duration: 1.5,
        cleanup_status: "complete".into(),
        process: EndedProcess {
            pid: Some(7),
            executable: "/bin/x".into(),
            args_sha256: sha256(b""),
            args_count: 0,
            args: None,
            start: Some("2026-01-01T00:00:00.000Z".into()),
            end: None,
            exit_code: None,
            signal: Some("SIGKILL".into()),
        },
        risk: RiskRecord {
            level: "high".into(),
            hard_limit_ms: 5000,
            effective_ms: Some(2000),
            adjustments: vec![adjustment()],
        },
        escalation: vec![rung()],
        detections: vec![detection()],
        resources: Resources::default(),
        cleanup: Cleanup {
            paths: vec![CleanedPath {
                path: "/tmp".into(),
                status: "partial".into(),
                entries_removed: 1,
                bytes_removed: 2,
                why: Some("w".into()),
                zeroed: Some(Zeroed { files: 1, bytes: 2, skipped: 3, why: Some("w".into()) }),
            }],
            ipc: Some(Ipc { left: 1, ..Ipc::default() }),
            in_doubt: false,
            budget_ms: 1,
            used_ms: 1,
        },
        output: Some(Output { limit: 3, delivered: 1, undelivered: 1, beyond: 1 }),
        enforcement: [("landlock".to_owned(), "unavailable".to_owned())].into(),
        enforcement_errors: [("landlock".to_owned(), "ENOSYS".to_owned())].into(),
        spoofed_signals: 0,
        errors: vec![],
        fault: "workload".into(),
    }
}

fn every_body() -> Vec<Body> {
    vec![
        started(1),
        Body::TerminationRequested(TerminationRequested {
            reason: "violation".into(),
            signal: Some("SIGTERM".into()),
            rule: Some("fork_bomb".into()),
            replanned: false,
            plan: PlanRecord { revoke_ms: 1, kill_ms: 2, sealed_by_ms: None },
            adjustments: vec![adjustment()],
        }),
        Body::Escalated(rung()),
        Body::Escalated(Escalation { rung: "term".into(), ..Escalation::default() }),
        Body::Detection(detection()),
        Body::SpoofedSignal(SpoofedSignal {
            signal: "SIGTERM".into(),
            sender_pid: -1,
            code: "SI_QUEUE".into(),
            suppressed: 3,
        }),
        Body::Activity(Activity {
            at_ms: 2000,
            processes: vec![ProcessActivity {
                pid: 2,
                parent: 1,
                name: "x) R 1\n".into(),
                args: vec!["\u{fffd}".into()],
                state: "R".into(),
                age_ms: 1,
                cpu_ms: 1,
                rss_bytes: 1,
                threads: 1,
                descriptors: None,
                sockets: Some(1),
            }],
            more: 0,
        }),
        Body::EvaluationTerminated(Box::new(seal())),
    ]
}

const KEY: &[u8] = b"a key";

fn config(file: &Path, message: &Path) -> Config {
    Config {
        file: AuditFile::Named(file.to_owned()),
        pid1: false,
        termination_log: message.to_owned(),
        level: AuditLevel::Comprehensive,
        job_id: "job \"1\"".into(),
        key: None,
        required: false,
    }
}

fn run(config: Config) {
    let mut log = Log::open(config).unwrap();
    for body in every_body() {
        log.write(&body);
    }
}

fn state(file: &Path) -> State {
    check(&fs::read(file).unwrap()[..], None).unwrap().state
}

fn word(log: &Log, name: &str) -> &'static str {
    log.enforcement().iter().find(|(n, _)| *n == name).map(|(_, outcome)| outcome.word()).unwrap()
}

/// Two keyed runs as text; each of several lines, so that no single line is a run.
fn two_runs() -> String {
    let mut text = String::new();
    let mut prev = ZEROS.to_owned();
    for run in ["0123456789abcdef0123456789abcdef", "fedcba98765432100123456789abcdef"] {
        let mut chain = Chain::new("j".into(), run.into(), prev.clone(), Some(AuditKey(KEY.into())));
        for body in every_body() {
            let line = chain.render(&body, "2026-01-01T00:00:00.000Z").unwrap();
            chain.advance(&line);
            prev = sha256(line.as_bytes());
            text += &line;
            text.push('\n');
        }
    }
    text
}

fn verdict(bytes: &[u8]) -> State {
    check(bytes, Some(&AuditKey(KEY.into()))).unwrap().state
}

/// When a disk is no longer waited for.
fn later() -> gracekeeper::machine::types::Instant {
    gracekeeper::kernel::clock::now().plus(std::time::Duration::from_secs(20))
}

#[test]
fn every_event_matches_the_schema_and_the_schema_refuses_others() {
    let dir = tempfile::tempdir().unwrap();
    let (file, message) = (dir.path().join("a"), dir.path().join("m"));
    fs::write(&message, "old text, longer than nothing").unwrap();
    run(Config { key: Some(AuditKey(KEY.into())), ..config(&file, &message) });
    let text = fs::read_to_string(&file).unwrap();
    assert_eq!(text.lines().count(), every_body().len());
    for line in text.lines() {
        schema::check_line(line);
        let more = line.replacen('{', "{\"unheard_of\":1,", 1);
        assert!(std::panic::catch_unwind(|| schema::check_line(&more)).is_err(), "{more}");
    }
    assert_eq!(verdict(text.as_bytes()), State::Sealed);
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o7777, 0o600);
    // The message is the sealed line itself.
    assert_eq!(fs::read_to_string(&message).unwrap(), text.lines().last().unwrap());
}

#[test]
fn levels_keep_what_they_promise() {
    for (level, lines) in [(AuditLevel::Basic, 2), (AuditLevel::Standard, 7), (AuditLevel::Comprehensive, 8)] {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a");
        run(Config { level, ..config(&file, &dir.path().join("none")) });
        assert_eq!(fs::read_to_string(&file).unwrap().lines().count(), lines);
        assert_eq!(state(&file), State::Sealed);
    }
}

#[test]
fn runs_follow_each_other_and_a_torn_line_stays() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a");
    run(config(&file, &dir.path().join("none")));
    run(config(&file, &dir.path().join("none")));
    assert_eq!(state(&file), State::Sealed);
    let whole = fs::read(&file).unwrap();
    fs::write(&file, &whole[..whole.len() - 100]).unwrap();
    assert_eq!(state(&file), State::CutOff);
    run(config(&file, &dir.path().join("none")));
    let after = fs::read(&file).unwrap();
    assert!(after.starts_with(&whole[..whole.len() - 100]));
    let report = check(&after[..], None).unwrap();
    assert_eq!((report.state, report.line, report.sealed_runs), (State::CutOff, Some(16), 2), "{report:?}");
    // The torn line is covered too.
    let mut flipped = after.clone();
    flipped[whole.len() - 150] ^= 1;
    assert_eq!(check(&flipped[..], None).unwrap().state, State::Tampered);
}

/// A file of runs, each broken off after its next number of bytes (none: whole), by the same writer.
fn broken_off(lengths: &[Option<usize>]) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a");
    for length in lengths {
        let before = fs::read(&file).map_or(0, |bytes| bytes.len());
        run(config(&file, &dir.path().join("none")));
        let mut bytes = fs::read(&file).unwrap();
        bytes.truncate(length.map_or(bytes.len(), |length| before + length));
        fs::write(&file, bytes).unwrap();
    }
    fs::read(&file).unwrap()
}

#[test]
fn crashes_in_a_row_are_no_tampering() {
    // Beginning with the newline after the torn line before; before, at and behind its link to that, and all of the first record.
    let link = 180;
    for second in [2, 30, 60, link, 250] {
        for third in [None, Some(1), Some(link), Some(3000)] {
            let lengths = [None, Some(2000), Some(second), third, None];
            let bytes = broken_off(&lengths);
            let report = check(&bytes[..], None).unwrap();
            assert_eq!(report.state, State::CutOff, "{second} {third:?} {report:?}");
            assert_eq!(report.why.unwrap(), "a torn line: its run has no seal");
            // And where there is no run after them yet.
            assert_eq!(check(&broken_off(&lengths[..3])[..], None).unwrap().state, State::CutOff, "{second}");
        }
    }
    // A file system that has lost its power may have zeros in the place of the rest.
    let mut bytes = broken_off(&[None, Some(2000), Some(link)]);
    let length = bytes.len();
    bytes[length - 100..].fill(0);
    assert_eq!(check(&bytes[..], None).unwrap().state, State::CutOff);
    // Nothing that a run begins with, or one with another line before it.
    let text = broken_off(&[None, Some(2000)]);
    let torn = text.split(|byte| *byte == b'\n').count() as u64;
    let another = r#"{"schema_version":1,"seq":0,"time":"","job_id":"","prev_hash":"-"#;
    for (other, line) in [("x", torn), (r#"{"schema_version":1,"seq":1"#, torn), (another, torn + 1)] {
        for end in ["", "\n"] {
            let report = check([&text[..], b"\n", other.as_bytes(), end.as_bytes()].concat().as_slice(), None).unwrap();
            assert_eq!((report.state, report.line), (State::Tampered, Some(line)), "{other}");
        }
    }
}

#[test]
fn sealed_once_and_nothing_after() {
    let dir = tempfile::tempdir().unwrap();
    let (file, message) = (dir.path().join("a"), dir.path().join("m"));
    fs::write(&message, "").unwrap();
    let log = std::sync::Mutex::new(Log::open(config(&file, &message)).unwrap());
    {
        let held = log.lock().unwrap();
        assert!(!emergency(&log, seal()), "the lock is held");
        drop(held);
    }
    assert!(emergency(&log, EvaluationTerminated { duration: f64::NAN, ..seal() }));
    fs::write(&message, "mine").unwrap();
    log.lock().unwrap().seal(seal(), later(), false);
    log.lock().unwrap().write(&started(0));
    let text = fs::read_to_string(&file).unwrap();
    assert_eq!(text.lines().count(), 1);
    schema::check_line(text.trim_end());
    assert_eq!(fs::read_to_string(&message).unwrap(), "mine");
}

#[test]
fn strange_paths_are_refused_and_nothing_hangs() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    fs::write(at("target"), "precious").unwrap();
    symlink(at("target"), at("symlink")).unwrap();
    fs::write(at("one"), "").unwrap();
    fs::hard_link(at("one"), at("two")).unwrap();
    nix::unistd::mkfifo(&at("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    fs::create_dir(at("dir")).unwrap();
    for name in ["symlink", "one", "fifo", "dir", "no/such"] {
        let mut log = Log::open(config(&at(name), &at(name))).unwrap();
        assert_eq!(log.audit_path(), None, "{name}");
        assert_eq!(word(&log, "audit_file"), "unavailable", "{name}");
        assert_eq!(word(&log, "termination_message"), "unavailable", "{name}");
        assert!(log.notes().iter().any(|note| note.contains(name)), "{name}: {:?}", log.notes());
        log.seal(seal(), later(), false);
        let error = Log::open(Config { required: true, ..config(&at(name), &at(name)) }).unwrap_err().to_string();
        assert!(error.contains(name) && !error.contains('\n'), "{error}");
    }
    assert_eq!(fs::read_to_string(at("target")).unwrap(), "precious");
    // Required: one of the two is enough.
    assert!(Log::open(Config { required: true, ..config(&at("fifo"), &at("target")) }).is_ok());
    assert!(Log::open(Config { required: true, ..config(&at("new"), &at("fifo")) }).is_ok());
    // One file for both: the record is not written over.
    let mut both = Log::open(config(&at("both"), &at("both"))).unwrap();
    assert_eq!((word(&both, "audit_file"), word(&both, "termination_message")), ("enforced", "unavailable"));
    both.seal(seal(), later(), false);
    assert_eq!(fs::read_to_string(at("both")).unwrap().lines().count(), 1);
    // Somebody else has it.
    let held = Log::open(config(&at("new"), &at("none"))).unwrap();
    let second = Log::open(config(&at("new"), &at("none"))).unwrap();
    assert_eq!(second.audit_path(), None);
    assert!(held.fds().iter().all(|fd| *fd >= 3));
    for fd in held.fds() {
        let info = fs::read_to_string(format!("/proc/self/fdinfo/{fd}")).unwrap();
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).unwrap().trim().to_owned();
        assert!(i64::from_str_radix(&flags, 8).unwrap() & 0o2_000_000 != 0, "{fd} is not close-on-exec: {info}");
    }
    assert_eq!(held.audit_path(), Some(fs::canonicalize(at("new")).unwrap().as_path()));
}

#[test]
fn what_is_done_to_the_file_during_the_run_is_said() {
    type Attack = fn(&Path);
    let attacks: [(&str, Attack, State); 5] = [
        ("truncated", |path| drop(fs::OpenOptions::new().write(true).open(path).unwrap().set_len(10)), State::Tampered),
        ("removed", |path| fs::remove_file(path).unwrap(), State::CutOff),
        (
            "replaced",
            |path| {
                fs::remove_file(path).unwrap();
                fs::write(path, "").unwrap();
            },
            State::CutOff,
        ),
        ("second name", |path| fs::hard_link(path, path.with_extension("link")).unwrap(), State::Sealed),
        (
            "wrote to",
            |path| {
                use std::io::Write;
                fs::OpenOptions::new().append(true).open(path).unwrap().write_all(b"{\"forged\":1").unwrap();
            },
            State::Tampered,
        ),
    ];
    for (what, attack, expected) in attacks {
        let dir = tempfile::tempdir().unwrap();
        let (file, message) = (dir.path().join("a"), dir.path().join("m"));
        fs::write(&message, "").unwrap();
        let mut log = Log::open(config(&file, &message)).unwrap();
        log.write(&started(0));
        log.write(&Body::Detection(detection()));
        attack(&file);
        log.seal(seal(), later(), false);
        let message = fs::read_to_string(&message).unwrap();
        schema::check_line(&message);
        assert!(message.contains(what), "{what}: {message}");
        assert!(message.contains("\"audit_file\":\"degraded\""), "{what}: {message}");
        assert_eq!(word(&log, "audit_file"), "degraded", "{what}");
        let found = if file.exists() { state(&file) } else { State::CutOff };
        assert_eq!(found, expected, "{what}");
    }
}

#[test]
fn the_message_fits_whatever_the_fields_are() {
    let big = "\u{1}\"é".repeat(3000);
    let mut body = seal();
    body.process.args = Some(vec![big.clone(); 50]);
    body.process.executable = big.clone();
    body.errors = vec![big.clone(); 20];
    body.detections = vec![detection(); 1000];
    body.escalation = vec![rung(); 1000];
    body.cleanup.paths = vec![
        CleanedPath {
            path: big.clone(),
            status: "failed".into(),
            entries_removed: 0,
            bytes_removed: 0,
            why: Some(big.clone()),
            zeroed: None,
        };
        20
    ];
    for i in 0..500 {
        body.enforcement.insert(format!("p{i}"), "degraded".into());
        body.enforcement_errors.insert(format!("p{i}"), big.clone());
    }
    let dir = tempfile::tempdir().unwrap();
    let (file, message) = (dir.path().join("a"), dir.path().join("m"));
    fs::write(&message, "x".repeat(10_000)).unwrap();
    let mut log =
        Log::open(Config { job_id: big, key: Some(AuditKey(KEY.into())), ..config(&file, &message) }).unwrap();
    log.seal(body, later(), false);
    let message = fs::read_to_string(&message).unwrap();
    assert!(message.len() <= 4096, "{}", message.len());
    schema::check_line(&message);
    assert_eq!(verdict(format!("{message}\n").as_bytes()), State::Sealed);
    let text = fs::read(&file).unwrap();
    assert!(text.len() <= 128 * 1024);
    assert_eq!(verdict(&text), State::Sealed);
}

#[test]
fn a_stranger_with_sed_and_sha256sum() {
    let dir = tempfile::tempdir().unwrap();
    for key in [None, Some(AuditKey(KEY.into()))] {
        let file = dir.path().join(if key.is_some() { "keyed" } else { "plain" });
        run(Config { key, ..config(&file, &dir.path().join("none")) });
        // The very commands of the documentation.
        let docs = include_str!("../docs/audit.md");
        let command =
            |start: &str| docs.lines().find(|line| line.starts_with(start)).unwrap().replace("audit.json", "\"$F\"");
        let sh = |script: String| {
            let output = Command::new("sh").arg("-c").arg(script).env("F", &file).output().unwrap();
            String::from_utf8(output.stdout).unwrap().split(' ').next().unwrap().to_owned()
        };
        let text = fs::read_to_string(&file).unwrap();
        let lines: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(sh(command("tail -n 1")), lines.last().unwrap()["hash"].as_str().unwrap());
        assert_eq!(sh(command("sed -n 2p")), lines[2]["prev_hash"].as_str().unwrap());
    }
}

/// Again the very commands of the documentation, on what the binary recorded of a command that was really given so.
#[test]
fn a_stranger_with_printf_and_sha256sum() {
    let dir = tempfile::tempdir().unwrap();
    let docs = include_str!("../docs/audit.md");
    let printf = docs.lines().find(|line| line.starts_with("printf '%s\\0'")).unwrap();
    let args = printf.strip_prefix("printf '%s\\0'").unwrap().strip_suffix("| sha256sum").unwrap().trim();
    assert!(docs.contains(&format!("`gracekeeper -- sh {args}`")), "{args}");
    assert!(docs.contains("`sha256sum </dev/null`"));
    let own = "tail -z -n +2 /proc/$$/cmdline | sha256sum";
    assert!(docs.contains("`tail -z -n +2 /proc/PID/cmdline | sha256sum`"));
    // One whose bytes are no text and one that is empty as well.
    let odd = r#"-c 'true' "$(printf 'x\377')" '' 'a
b'"#;
    let itself = format!("-c '{own}; true' x");
    for (n, (command, printf)) in [
        (format!("sh {args}"), printf.to_owned()),
        ("true".to_owned(), "sha256sum </dev/null".to_owned()),
        (format!("sh {odd}"), format!("printf '%s\\0' {odd} | sha256sum")),
        (format!("sh {itself}"), format!("printf '%s\\0' {itself} | sha256sum")),
    ]
    .into_iter()
    .enumerate()
    {
        let file = dir.path().join(n.to_string());
        let script = format!("\"$G\" --audit-file \"$F\" --log-level error -- {command}; {printf}");
        let mut sh = Command::new("sh");
        sh.arg("-c").arg(script).env("F", &file).env("G", env!("CARGO_BIN_EXE_gracekeeper"));
        let output = String::from_utf8(sh.output().unwrap().stdout).unwrap();
        let said = output.lines().last().unwrap().split(' ').next().unwrap();
        for line in fs::read_to_string(&file).unwrap().lines() {
            let record: serde_json::Value = serde_json::from_str(line).unwrap();
            if !record["process"].is_null() {
                assert_eq!(record["process"]["args_sha256"], said, "{command}: {record}");
            }
        }
        // What the command itself found in /proc.
        let lines: Vec<&str> = output.lines().filter(|line| line.ends_with(" -") || line.ends_with("  -")).collect();
        assert!(n != 3 || lines.len() == 2 && lines[0] == lines[1], "{output}");
    }
}

/// Runs this test binary's `child` test with a shell line around it.
fn in_child(script: &str, mode: &str, dir: &Path) -> std::process::Output {
    Command::new("sh")
        .arg("-c")
        .arg(script)
        .env("AUDIT_TEST_EXE", std::env::current_exe().unwrap())
        .env("AUDIT_TEST_CHILD", mode)
        .env("AUDIT_TEST_DIR", dir)
        .output()
        .unwrap()
}

const SELF: &str = r#""$AUDIT_TEST_EXE" --exact child --nocapture --test-threads=1"#;

/// Not a test by itself: what the others start.
#[test]
fn child() {
    let Ok(mode) = std::env::var("AUDIT_TEST_CHILD") else { return };
    let dir = PathBuf::from(std::env::var_os("AUDIT_TEST_DIR").unwrap());
    let mut log = Log::open(config(&dir.join("a"), &dir.join("m"))).unwrap();
    log.write(&started(0));
    match mode.as_str() {
        "efbig" => {
            let ignore = nix::sys::signal::SigHandler::SigIgn;
            #[allow(unsafe_code)]
            // SAFETY: ignoring a signal installs no handler; what the shipped binary does at its start.
            unsafe {
                nix::sys::signal::signal(nix::sys::signal::Signal::SIGXFSZ, ignore).unwrap()
            };
            let now = fs::metadata(dir.join("a")).unwrap().len();
            nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_FSIZE, now + 50, now + 50).unwrap();
            log.write(&Body::Detection(detection()));
            assert_eq!(fs::metadata(dir.join("a")).unwrap().len(), now, "a part of a record stayed");
        }
        "full" => {
            // Somebody fills the disk to the last byte.
            let mut hog = fs::File::create(dir.join("hog")).unwrap();
            while std::io::Write::write(&mut hog, &[1; 4096]).is_ok() {}
            for _ in 0..3000 {
                log.write(&Body::Detection(detection()));
            }
        }
        _ => {}
    }
    log.seal(seal(), later(), false);
}

#[test]
fn a_lowered_file_size_limit_moves_the_audit_to_stderr() {
    let dir = tempfile::tempdir().unwrap();
    let output = in_child(&format!("exec {SELF}"), "efbig", dir.path());
    assert!(output.status.success(), "{output:?}");
    assert_eq!(state(&dir.path().join("a")), State::CutOff);
    let stderr = String::from_utf8(output.stderr).unwrap();
    let records: Vec<&str> = stderr.lines().filter(|line| line.starts_with("{\"schema_version\"")).collect();
    assert_eq!(records.len(), 2, "{stderr}");
    records.iter().for_each(|line| schema::check_line(line));
    assert!(records[1].contains("EFBIG"), "{stderr}");
    assert_eq!(check((records.join("\n") + "\n").as_bytes(), None).unwrap().state, State::Sealed);
}

#[test]
fn a_stuck_reader_of_stderr_does_not_hold_up_the_run() {
    let dir = tempfile::tempdir().unwrap();
    // No audit file, and a pipe that is full and that nobody reads. Without the bound the child never ends.
    fs::create_dir(dir.path().join("a")).unwrap();
    fs::write(dir.path().join("m"), "").unwrap();
    let (reader, writer) = std::io::pipe().unwrap();
    nix::fcntl::fcntl(&writer, nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK)).unwrap();
    while std::io::Write::write(&mut &writer, &[b'x'; 4096]).is_ok() {}
    nix::fcntl::fcntl(&writer, nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::empty())).unwrap();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child", "--test-threads=1"])
        .env("AUDIT_TEST_CHILD", "stuck")
        .env("AUDIT_TEST_DIR", dir.path())
        .stdout(std::process::Stdio::null())
        .stderr(writer)
        .spawn()
        .unwrap();
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if std::time::Instant::now() > deadline {
            child.kill().unwrap();
            child.wait().unwrap();
            panic!("it hangs");
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    };
    drop(reader);
    assert!(status.success());
    let message = fs::read_to_string(dir.path().join("m")).unwrap();
    schema::check_line(&message);
    assert!(message.contains("ETIMEDOUT"), "{message}");
}

#[test]
fn a_write_now_does_not_wait_on_a_shared_blocking_pipe() {
    let (reader, writer) = std::io::pipe().unwrap();
    let mut written = 0;
    let refused = loop {
        match gracekeeper::kernel::nowait::write_now(&writer, &[b'x'; 4096]) {
            Ok(length) => written += length,
            Err(errno) => break errno,
        }
    };
    match refused {
        nix::errno::Errno::EOPNOTSUPP => println!("skipped: this kernel has no RWF_NOWAIT for pipes"),
        errno => {
            assert_eq!(errno, nix::errno::Errno::EAGAIN);
            assert!(written >= 4096);
            let mut back = vec![0; written];
            std::io::Read::read_exact(&mut &reader, &mut back).unwrap();
            assert!(back.iter().all(|byte| *byte == b'x'));
        }
    }
}

#[test]
fn a_full_disk_has_room_for_the_seal() {
    if !nix::unistd::geteuid().is_root()
        || !Command::new("unshare").args(["-m", "true"]).status().is_ok_and(|s| s.success())
    {
        let required = std::env::var("GRACEKEEPER_TEST_REQUIRE").unwrap_or_default();
        assert!(!required.split(',').any(|name| name == "root"), "root is required");
        println!("skipped: a full disk: needs root and unshare");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let disk = dir.path().join("disk");
    fs::create_dir(&disk).unwrap();
    let script = format!(
        r#"unshare -m sh -c 'mount -t tmpfs -o size=1m none "$AUDIT_TEST_DIR" && {SELF} && cat "$AUDIT_TEST_DIR/a" > "$AUDIT_TEST_DIR/../copy"'"#
    );
    let output = in_child(&script, "full", &disk);
    assert!(output.status.success(), "{output:?}");
    let text = fs::read_to_string(dir.path().join("copy")).unwrap();
    assert_eq!(check(text.as_bytes(), None).unwrap().state, State::Sealed);
    let last = text.lines().last().unwrap();
    text.lines().for_each(schema::check_line);
    assert!(last.contains("records were dropped"), "{last}");
}

#[test]
fn verify_names_the_first_bad_line() {
    let text = two_runs();
    assert_eq!(verdict(text.as_bytes()), State::Sealed);
    assert_eq!(check(text.as_bytes(), Some(&AuditKey(b"other".into()))).unwrap().state, State::Tampered);
    assert_eq!(check(text.as_bytes(), None).unwrap().mac, "not_checked");
    assert_eq!(verdict(b""), State::CutOff);
    let lines: Vec<&str> = text.lines().collect();
    let join = |lines: &[&str]| lines.iter().map(|line| format!("{line}\n")).collect::<String>();
    for n in 0..lines.len() {
        let mut less = lines.clone();
        less.remove(n);
        let expected = if n + 1 == lines.len() { State::CutOff } else { State::Tampered };
        assert_eq!(verdict(join(&less).as_bytes()), expected, "without {n}");
        let mut more = lines.clone();
        more.insert(n, lines[n]);
        let report = check(join(&more).as_bytes(), None).unwrap();
        assert_eq!((report.state, report.line), (State::Tampered, Some(n as u64 + 2)), "twice {n}");
        for m in 0..n {
            let mut swapped = lines.clone();
            swapped.swap(n, m);
            assert_eq!(verdict(join(&swapped).as_bytes()), State::Tampered);
        }
    }
    let half = lines.len() / 2;
    let reordered = join(&[&lines[half..], &lines[..half]].concat());
    assert_eq!(verdict(reordered.as_bytes()), State::Tampered);
    let long = "x".repeat(3 << 20);
    assert_eq!(check(long.as_bytes(), None).unwrap().why.unwrap(), "longer than 1 MiB");
}

/// A key that was introduced later: what is older proves nothing, and that is told from a changed line.
#[test]
fn a_run_without_macs_is_said_to_be_one() {
    let key = || AuditKey(KEY.into());
    let ids = ["0", "1", "2"].map(|n| n.repeat(32));
    let runs = |keyed: [bool; 3]| -> [String; 3] {
        let mut prev = ZEROS.to_owned();
        [0, 1, 2].map(|n| {
            let mut chain = Chain::new("j".into(), ids[n].clone(), prev.clone(), keyed[n].then(key));
            let lines = every_body().into_iter().map(|body| {
                let line = chain.render(&body, "2026-01-01T00:00:00.000Z").unwrap();
                chain.advance(&line);
                prev = sha256(line.as_bytes());
                line + "\n"
            });
            lines.collect()
        })
    };
    let with_key = |text: &str| check(text.as_bytes(), Some(&key())).unwrap();
    let length = every_body().len() as u64;
    for (keyed, first, when, without) in [
        ([false, true, true], 1, "before a key was used", 1),
        ([false, false, true], 1, "before a key was used", 2),
        ([true, false, true], 2, "before a key was used", 1),
        ([true, true, false], 3, "without the key", 1),
        ([false, false, false], 1, "without the key", 3),
    ] {
        let text = runs(keyed).concat();
        let report = with_key(&text);
        assert_eq!((report.state, report.contradicted), (State::Tampered, false), "{report:?}");
        assert_eq!(report.why, Some(format!("run {first} has no MAC: written {when}, or forged")));
        assert_eq!((report.line, report.lines), (Some((first - 1) * length + 1), 3 * length), "{report:?}");
        assert_eq!((report.runs, report.sealed_runs, report.unauthenticated_runs), (3, 3, without), "{report:?}");
        assert_eq!(report.mac, if keyed == [false; 3] { "none" } else { "checked" });
        // Without a key there is no more to say than before.
        let report = check(text.as_bytes(), None).unwrap();
        assert_eq!((report.state, report.unauthenticated_runs), (State::Sealed, 0), "{report:?}");
        // What contradicts is named wherever it is, and does not hide behind a run that proves nothing.
        let lines: Vec<&str> = text.split_inclusive('\n').collect();
        for n in 0..lines.len() {
            let mut changed: Vec<String> = lines.iter().map(|line| (*line).to_owned()).collect();
            changed[n] = changed[n].replacen("\"job_id\":\"j\"", "\"job_id\":\"k\"", 1);
            let report = with_key(&changed.concat());
            assert_eq!((report.state, report.contradicted), (State::Tampered, true), "{report:?}");
            assert_eq!(report.line, Some(n as u64 + 1), "{report:?}");
        }
    }
    let report = with_key(&runs([true; 3]).concat());
    assert_eq!((report.state, report.unauthenticated_runs), (State::Sealed, 0), "{report:?}");
    // The MAC taken from the last line.
    let keyed = runs([true; 3]).concat();
    let at = keyed.rfind(",\"mac\":\"").unwrap();
    let stripped = format!("{}}}\n", &keyed[..at]);
    for key in [None, Some(key())] {
        let report = check(stripped.as_bytes(), key.as_ref()).unwrap();
        assert_eq!((report.contradicted, report.why.as_deref()), (true, Some("has no MAC, and its run has")));
    }
    // Forged without the key, in front: then what was there first does not begin the file.
    let forged = runs([false; 3])[0].replace(&ids[0], &ids[2]) + &runs([true; 3])[0];
    assert!(with_key(&forged).contradicted);

    // From a run on: the rest is not asked about.
    let from = |text: &str, id: &str| check_from(text.as_bytes(), Some(&key()), Some(id));
    let [first, second, third] = runs([false, true, true]);
    let text = format!("{first}{second}{third}");
    for (id, runs, state) in [(0, 3, State::Tampered), (1, 2, State::Sealed), (2, 1, State::Sealed)] {
        let report = from(&text, &ids[id]).unwrap();
        assert_eq!((report.state, report.runs, report.lines), (state, runs, 3 * length), "{report:?}");
    }
    // Whatever it is.
    let garbage = format!("{}\nx\n\n{second}{third}", "y".repeat(3 << 20));
    assert_eq!(from(&garbage, &ids[1]).unwrap().state, State::Sealed);
    assert_eq!(from(&second, &ids[1]).unwrap().state, State::Sealed);
    // But what follows is.
    let torn = &text[..text.len() - 10];
    assert_eq!(from(torn, &ids[1]).unwrap().state, State::CutOff);
    assert!(from(&format!("{text}x\n"), &ids[1]).unwrap().contradicted);
    // A line of somebody's that says it begins that run does not check.
    let pretended = first.replace(&ids[0], &ids[1]) + &second;
    assert!(from(&pretended, &ids[1]).unwrap().contradicted);
    for missing in ["", &first, "x", "\n\n"] {
        assert_eq!(from(missing, &ids[1]).unwrap_err().kind(), std::io::ErrorKind::NotFound, "{missing}");
    }
}

/// The same by the verb.
#[test]
fn the_verb_says_which_runs_have_no_mac() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a");
    let verify = |words: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_gracekeeper"));
        command.arg("verify").arg(&file).args(words).env("K", std::str::from_utf8(KEY).unwrap());
        let out = command.output().unwrap();
        (out.status.code().unwrap(), String::from_utf8(out.stdout).unwrap(), String::from_utf8(out.stderr).unwrap())
    };
    for key in [None, Some(AuditKey(KEY.into()))] {
        run(Config { key, ..config(&file, &dir.path().join("none")) });
    }
    let text = fs::read_to_string(&file).unwrap();
    let last: serde_json::Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
    assert_eq!(verify(&[]).0, 0);
    let (code, said, _) = verify(&["--audit-key-env", "K"]);
    assert_eq!(code, 4);
    assert!(said.contains(": NOT AUTHENTICATED; ") && !said.contains("TAMPERED"), "{said}");
    assert!(said.contains("line 1: run 1 has no MAC: written before a key was used, or forged"), "{said}");
    let (code, said, _) = verify(&["--audit-key-env", "K", "--json"]);
    let said: serde_json::Value = serde_json::from_str(&said).unwrap();
    assert_eq!((code, &said["state"], &said["contradicted"]), (4, &"tampered".into(), &false.into()), "{said}");
    assert_eq!((&said["line"], &said["unauthenticated_runs"]), (&1.into(), &1.into()), "{said}");
    let run_id = last["run_id"].as_str().unwrap();
    let (code, said, _) = verify(&["--audit-key-env", "K", "--from", run_id]);
    assert!(code == 0 && said.contains(": sealed; "), "{said}");
    let (code, _, told) = verify(&["--from", &"0".repeat(32)]);
    assert!(code == 125 && told.contains("no run of this run_id begins in it") && told.lines().count() == 1, "{told}");
    assert_eq!(verify(&["--from"]).0, 125);
    // A changed line is another thing.
    fs::write(&file, text.replacen("\"seq\":0", "\"seq\":5", 1)).unwrap();
    let (code, said, _) = verify(&["--audit-key-env", "K"]);
    assert!(code == 4 && said.contains(": TAMPERED; ") && said.contains("its hash"), "{said}");
}

#[test]
fn empty_lines_say_nothing() {
    let text = two_runs();
    for more in ["\n", "\n\n\n"] {
        let spaced = format!("{more}{}", text.replace('\n', &format!("\n{more}")));
        assert_eq!(verdict(spaced.as_bytes()), State::Sealed);
        let lines: Vec<&str> = spaced.split_inclusive('\n').collect();
        // The lines are counted as an editor does, whatever is wrong with the file.
        for n in (0..lines.len()).filter(|&n| lines[n] != "\n") {
            let report = check([&lines[..n], &lines[n + 1..]].concat().concat().as_bytes(), None).unwrap();
            match lines[n + 1..].iter().position(|line| *line != "\n") {
                Some(next) => assert_eq!((report.state, report.line), (State::Tampered, Some((n + next + 1) as u64))),
                None => assert_eq!(report.state, State::CutOff),
            }
        }
    }
    // A run that was appended to a file which ends in an empty line.
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a");
    run(config(&file, &dir.path().join("none")));
    fs::write(&file, fs::read_to_string(&file).unwrap() + "\n").unwrap();
    assert_eq!(state(&file), State::Sealed);
    run(config(&file, &dir.path().join("none")));
    assert_eq!(state(&file), State::CutOff);
    assert_eq!(verdict(b"\n\n"), State::CutOff);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_changed_byte_is_sealed(at in any::<prop::sample::Index>(), flip in 1_u8..) {
        let mut bytes = two_runs().into_bytes();
        let at = at.index(bytes.len());
        bytes[at] ^= flip;
        prop_assert_ne!(verdict(&bytes), State::Sealed);
    }

    #[test]
    fn no_shortened_file_is_tampered_or_sealed(at in any::<prop::sample::Index>()) {
        let text = two_runs();
        let half = text.match_indices('\n').nth(7).unwrap().0 + 1;
        let length = at.index(text.len());
        prop_assume!(length != half);
        prop_assert_eq!(verdict(&text.as_bytes()[..length]), State::CutOff);
    }

    #[test]
    fn what_crashes_leave_is_never_tampered_and_what_is_changed_in_it_is(
        lengths in prop::collection::vec(prop::option::of(2_usize..4000), 1..5),
        at in any::<prop::sample::Index>(),
        flip in 1_u8..,
        cut in any::<prop::sample::Index>(),
    ) {
        // The second's link to the first is there.
        let all = [&lengths[..], &[Some(1500), Some(200), None]].concat();
        let bytes = broken_off(&all);
        prop_assert_eq!(check(&bytes[..], None).unwrap().state, State::CutOff);
        prop_assert_ne!(check(&bytes[..cut.index(bytes.len())], None).unwrap().state, State::Sealed);
        // What comes before is covered whatever it is: a byte of the last torn lines, of the run after them, and a missing line.
        let fixed = broken_off(&all[..lengths.len()]).len();
        let mut flipped = bytes.clone();
        let place = fixed + at.index(bytes.len() - fixed);
        flipped[place] ^= flip;
        prop_assert_ne!(check(&flipped[..], None).unwrap().state, State::Sealed);
        let lines: Vec<&[u8]> = bytes.split_inclusive(|byte| *byte == b'\n').collect();
        let n = cut.index(lines.len() - 1);
        let first = bytes[..fixed].iter().filter(|byte| **byte == b'\n').count();
        let less = check([&lines[..n], &lines[n + 1..]].concat().concat().as_slice(), None).unwrap();
        prop_assert_ne!(less.state, State::Sealed);
        prop_assert!(n < first || n + 1 >= lines.len() - 1 || less.state == State::Tampered, "{} {}", n, first);
    }

    #[test]
    fn rubbish_is_read_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
        prop_assert_ne!(verdict(&bytes), State::Sealed);
    }

    #[test]
    fn whatever_is_said_comes_back(words in prop::collection::vec(any::<String>(), 0..5), job in any::<String>()) {
        let mut body = seal();
        body.errors = words.clone();
        let chain = Chain::new(job.clone(), "0".repeat(32), ZEROS.to_owned(), None);
        let line = chain.render(&Body::EvaluationTerminated(Box::new(body)), "2026-01-01T00:00:00.000Z").unwrap();
        schema::check_line(&line);
        let value: serde_json::Value = serde_json::from_str(&line).unwrap();
        prop_assert_eq!(value["job_id"].as_str().unwrap(), job);
        let errors: Vec<String> = serde_json::from_value(value.get("errors").cloned().unwrap_or_default()).unwrap_or_default();
        prop_assert_eq!(errors, words);
        prop_assert_eq!(check((line + "\n").as_bytes(), None).unwrap().state, State::Sealed);
    }
}

#[test]
fn the_corpus_and_the_verb() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus/verify");
    let mut seen = 0;
    for entry in fs::read_dir(&corpus).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        let expected = match name.split('-').next().unwrap() {
            "sealed" => 0,
            "cut" => 3,
            "tampered" => 4,
            other => panic!("{other}"),
        };
        assert_eq!(gracekeeper::verbs::verify::run(&[path.into(), OsString::from("--json")]), expected, "{name}");
        seen += 1;
    }
    assert!(seen >= 8, "{seen}");
    let run = |args: &[&str]| gracekeeper::verbs::verify::run(&args.iter().map(OsString::from).collect::<Vec<_>>());
    assert_eq!(run(&[]), 125);
    assert_eq!(run(&["/nonexistent"]), 125);
    assert_eq!(run(&["/"]), 125);
    assert_eq!(run(&["a", "b"]), 125);
    assert_eq!(run(&["a", "--audit-key-env", "GRACEKEEPER_NO_SUCH_VARIABLE"]), 125);
}

#[test]
fn reservation_is_real_and_leaves_the_length_alone() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a");
    let mut log = Log::open(config(&file, &dir.path().join("none"))).unwrap();
    let meta = fs::metadata(&file).unwrap();
    assert_eq!(meta.len(), 0);
    let reserved = log.enforcement().into_iter().find(|(name, _)| *name == "audit_space_reserved").unwrap().1;
    match reserved {
        Outcome::Enforced => assert!(meta.blocks() * 512 >= 128 * 1024, "{}", meta.blocks()),
        other => assert_eq!(other.word(), "unavailable"),
    }
    // What the seal did not need is given back, and the record says what held.
    log.seal(seal(), later(), false);
    let meta = fs::metadata(&file).unwrap();
    assert!(meta.blocks() * 512 < 128 * 1024, "{}", meta.blocks());
    assert_eq!(state(&file), State::Sealed);
    let record: serde_json::Value = serde_json::from_str(&fs::read_to_string(&file).unwrap()).unwrap();
    assert_eq!(record["enforcement"]["audit_file"], "enforced");
    assert_eq!(record["enforcement"]["audit_space_reserved"], reserved.word());
    assert_eq!(record["enforcement"]["audit_mac"], "unavailable");
}

/// Writes the corpus anew, where it was lost: `cargo test --test audit -- --ignored`.
#[test]
#[ignore = "writes into the source tree"]
fn write_the_corpus() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus/verify");
    let text = two_runs();
    let lines: Vec<&str> = text.lines().collect();
    let join = |lines: &[&str]| lines.iter().map(|line| format!("{line}\n")).collect::<String>();
    let mut torn = text[..text.len() - 99].to_owned();
    let put = |name: &str, text: &str| fs::write(corpus.join(name), text).unwrap();
    put("sealed-two-runs", &text);
    put("sealed-one-run", &join(&lines[..8]));
    put("cut-empty", "");
    put("cut-no-seal", &join(&lines[..5]));
    put("cut-torn", &torn);
    let mut chain = Chain::new("j".into(), "9".repeat(32), sha256(torn.lines().last().unwrap().as_bytes()), None);
    torn.push('\n');
    for body in every_body() {
        let line = chain.render(&body, "2026-01-01T00:00:00.000Z").unwrap();
        chain.advance(&line);
        torn += &format!("{line}\n");
    }
    put("cut-torn-and-next-run", &torn);
    put("tampered-flip", &text.replacen("\"exit_code\":124", "\"exit_code\":0", 1));
    put("tampered-first-line-gone", &join(&lines[1..]));
    put("tampered-runs-swapped", &join(&[&lines[8..], &lines[..8]].concat()));
    put("tampered-after-seal", &join(&[&lines[..8], &lines[7..8]].concat()));
    put("tampered-gap", &join(&[&lines[..3], &lines[4..8]].concat()));
    put("tampered-not-json", "hello\n");
}
