//! The revoke rung against who is woken in the midst of it, and whom no limit binds; and the supervisor's own limits.

use super::place::*;
use super::support::*;
use serde_json::Value;
use std::process::{Command, Stdio};
use std::time::Instant;

const GRACE: &[&str] =
    &["--timeout", "300ms", "--soft", "300ms", "--hard", "1500ms", "--adaptive", "no", "--monitoring", "off"];

/// The rung's record.
fn revoke(records: &[Value]) -> Value {
    records.iter().find(|r| r["event"] == "escalated" && r["rung"] == "revoke").cloned().unwrap()
}

/// The rung, and how long after its record the file was last written to.
fn born_late(place: Place, guard: Guard<'_>) -> (Value, f64) {
    let stage = Stage::new(place).options(GRACE);
    let file = stage.path().join("share/born");
    let ran = stage.run(guard, &["born-late", "/media/born", "550"]);
    let revoke = revoke(&records(&ran.audit));
    let last = std::fs::metadata(file).unwrap().modified().unwrap();
    let last = last.duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
    (revoke.clone(), last - time_of(revoke["time"].as_str().unwrap()))
}

/// Who is woken between the look and its limit has a child that nobody looked at.
#[test]
fn a_child_born_between_the_look_and_the_limit() {
    if !able() {
        return;
    }
    for place in [Pid1, Below] {
        let missed = (0..5).any(|_| {
            let (revoke, after) = born_late(place, Guard::Without("early_limit,last_look"));
            revoke["files"] == "enforced" && after > 0.2
        });
        assert!(missed, "control: {place:?}: without the look after the limits the child has to write on");
        // A machine that is busy may leave no time for it; never is it said and not so.
        let mut enforced = 0;
        for guard in [Guard::Without("early_limit"), Guard::Full, Guard::Without("early_limit"), Guard::Full] {
            let (revoke, after) = born_late(place, guard);
            assert!(revoke["files"] != "enforced" || after < 0.005, "{place:?} {guard:?}: {after} s after {revoke:#}");
            enforced += u32::from(revoke["files"] == "enforced");
        }
        assert!(enforced > 0, "{place:?}: it was never enforced");
    }
}

/// RLIMIT_NPROC does not bind a holder of CAP_SYS_ADMIN, whatever its UID (here in the ambient set, as a container's non-root user may have it).
#[test]
fn who_is_not_bound_by_limits() {
    if !able() {
        return;
    }
    let run = |guard: Guard<'_>, ambient: &str| {
        let mut stage = Stage::new(Pid1);
        (stage.bare, stage.root) = (true, true);
        let caps = format!("--inh-caps={ambient} --ambient-caps={ambient}");
        let words = format!(
            "setpriv --reuid 65532 --regid 65532 --clear-groups {caps} /mnt/gracekeeper --audit-file {LOG} \
             --termination-log {MESSAGE} {} -- /mnt/hostile fork-past",
            GRACE.join(" ")
        );
        let ran = stage.run(guard, &words.split_whitespace().collect::<Vec<_>>());
        let revoke = revoke(&records(&ran.audit));
        (ran.says("born past the limit"), ran.says("nobody was born"), revoke["files"].as_str().unwrap().to_owned())
    };
    assert_eq!(run(Guard::Full, "-all"), (false, true, "enforced".to_owned()));
    let unseen = run(Guard::Without("capable"), "-all,+sys_admin");
    assert_eq!(unseen, (true, false, "enforced".to_owned()), "control: it gets past, and nobody says so");
    assert_eq!(run(Guard::Full, "-all,+sys_admin"), (true, false, "degraded".to_owned()));
}

/// Whoever has our UID and is not under the filter lowers our RLIMIT_FSIZE: the record goes on in its file all the same, and says so.
#[test]
fn the_supervisors_own_limits_are_raised_again() {
    if !able() {
        return;
    }
    let run = |guard: Guard<'_>| {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("audit.json");
        let binary = if matches!(guard, Guard::Without(_)) { switched() } else { std::path::Path::new(BINARY) };
        let began = Instant::now();
        let mut command = Command::new(binary);
        command.arg("--audit-file").arg(&file).args(GRACE).arg("--").arg(hostile()).arg("sleep");
        if let Guard::Without(off) = guard {
            command.env("GRACEKEEPER_TEST_WITHOUT", off);
        }
        let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        until("the run has begun", || std::fs::read_to_string(&file).is_ok_and(|text| text.ends_with('\n')));
        let pid = child.id().to_string();
        let lowered = Command::new("prlimit").args(["--pid", &pid, "--fsize=0:unlimited"]).status().unwrap();
        assert!(lowered.success());
        let ran = finish(child, began);
        let verified = Command::new(BINARY).arg("verify").arg(&file).output().unwrap().status.code();
        let seal = records(&std::fs::read_to_string(&file).unwrap()).pop().unwrap();
        (verified, seal["errors"].to_string(), ran.status.code())
    };
    let (verified, _, code) = run(Guard::Without("own_limits"));
    assert_eq!((verified, code), (Some(3), Some(124)), "control: the file ends where the limit was lowered");
    let (verified, errors, code) = run(Guard::Full);
    assert_eq!((verified, code), (Some(0), Some(124)), "{errors}");
    assert!(errors.contains("our own RLIMIT_FSIZE was lowered"), "{errors}");
}
