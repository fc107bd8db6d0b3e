//! `doctor` says what is so: where a protection is there, and where it is taken away.

use super::support::*;
use serde_json::Value;
use std::process::{Command, Output};

fn report(out: &Output) -> Value {
    assert!(matches!(out.status.code(), Some(0 | 1)), "{out:?}");
    let report: Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!(report["holds"], out.status.code() == Some(0), "{report:#}");
    report
}

fn check<'a>(report: &'a Value, name: &str) -> &'a Value {
    let found = report["checks"].as_array().unwrap().iter().find(|c| c["name"] == name);
    found.unwrap_or_else(|| panic!("no {name}: {report:#}"))
}

#[test]
fn attacks_succeed_from_a_plain_child_and_not_from_a_confined_one() {
    let report = report(&gracekeeper().args(["doctor", "--json", "--network", "deny"]).output().unwrap());
    for name in [
        "attack_supervisor_limits",
        "attack_supervisor_priority",
        "attack_supervisor_affinity",
        "attack_supervisor_stop",
        "attack_inherited_descriptor",
        "attack_inet_socket",
        "attack_terminal_input",
    ] {
        let check = check(&report, name);
        assert_eq!((&check["holds"], &check["without"]), (&true.into(), &"succeeds".into()), "{name}: {check}");
    }
    if cfg!(target_arch = "x86_64") {
        assert_eq!(check(&report, "attack_foreign_call")["holds"], true);
    }
    for name in ["revoke_files", "revoke_writes", "environment"] {
        assert_eq!(check(&report, name)["holds"], true, "{name}: {report:#}");
    }
    // RLIMIT_NPROC does not bind UID 0, and the doctor does not say that it does.
    let root = nix::unistd::geteuid().is_root();
    assert_eq!(check(&report, "revoke_processes")["holds"], !root, "{report:#}");
}

#[test]
fn the_environment_that_a_program_really_gets() {
    let doctor = |options: &[&str]| {
        let mut command = gracekeeper();
        command.args(["doctor", "--json", "--risk", "low"]).args(options);
        command.env_clear().envs([("PATH", "/bin"), ("SECRET", "s"), ("JOB_ID", "j"), ("LD_AUDIT", "x"), ("KEY", "k")]);
        let report = report(&command.output().unwrap());
        let environment = check(&report, "environment").clone();
        assert_eq!(environment["holds"], true, "{environment}");
        environment["detail"].as_str().unwrap().to_owned()
    };
    assert_eq!(doctor(&["--env", "clean", "--audit-key-env", "KEY"]), "4 variables withheld");
    assert_eq!(doctor(&["--env", "inherit", "--audit-key-env", "KEY"]), "3 variables withheld");
    assert_eq!(doctor(&["--env", "inherit"]), "2 variables withheld");
}

#[test]
fn an_audit_file_that_the_workload_can_reach_is_no_success() {
    let dir = tempfile::tempdir_in("/tmp").unwrap();
    let file = dir.path().join("audit.json");
    let doctor = |risk: &str| {
        report(&gracekeeper().args(["doctor", "--json", "--risk", risk, "--audit-file"]).arg(&file).output().unwrap())
    };
    // Below /tmp the file rules are left out, and the workload has our UID.
    let high = doctor("high");
    assert_eq!((&high["holds"], &check(&high, "attack_audit_file")["holds"]), (&false.into(), &false.into()));
    assert_eq!(check(&doctor("low"), "attack_audit_file")["wanted"], false);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "it leaves nothing behind");
    std::fs::write(&file, "").unwrap();
    doctor("high");
    assert!(file.exists(), "what was there stays");
}

#[test]
fn options_are_checked_as_for_a_run() {
    for (words, why) in [
        (&["doctor", "--risk", "extreme"][..], "--risk"),
        (&["doctor", "true"], "no command"),
        (&["doctor", "--", "true"], "no command"),
        (&["doctor", "verify"], "no command"),
    ] {
        let out = gracekeeper().args(words).output().unwrap();
        let line = String::from_utf8_lossy(&out.stderr).into_owned();
        assert_eq!(out.status.code(), Some(125), "{words:?}: {line}");
        assert!(line.contains(why) && line.lines().count() == 1, "{line}");
    }
    let absent = gracekeeper().args(["doctor", "--audit-required", "yes"]).output().unwrap();
    assert_eq!(absent.status.code(), Some(i32::from(!std::path::Path::new("/dev/termination-log").exists())));
}

#[test]
fn everything_wanted_holds_in_the_tightest_pod() {
    if super::docker::image().is_none() {
        return;
    }
    for risk in ["low", "medium", "high", "critical"] {
        let out = Command::new("docker")
            .args(["run", "--rm"])
            .args(super::docker::RESTRICTED)
            .args([super::docker::scratch().unwrap(), "doctor", "--json", "--risk", risk])
            .output()
            .unwrap();
        let report = report(&out);
        assert_eq!((&report["holds"], &report["pid1"]), (&true.into(), &true.into()), "{report:#}");
        for name in ["attack_supervisor_limits", "attack_terminal_input"] {
            assert_eq!(check(&report, name)["without"], "succeeds", "{report:#}");
        }
        for name in ["environment", "revoke_files", "revoke_writes", "revoke_processes"] {
            assert_eq!(check(&report, name)["holds"], true, "{name}: {report:#}");
        }
    }
}
