//! The doctor sees each protection that is missing: with the switches, where everything else is as it should be.

use super::place::*;
use serde_json::Value;

fn doctor(off: Option<&str>, options: &[&str]) -> (bool, Value) {
    let mut stage = Stage::new(Pid1);
    stage.bare = true;
    stage.env = vec![("JOB_ID", "j"), ("SECRET", "s")];
    // A place that the UID may write to and has no business in.
    stage.before = "mount -t tmpfs -o mode=1777 none /opt".into();
    let words = [&["/mnt/gracekeeper", "doctor", "--json", "--audit-file", LOG], options].concat();
    let mut command = stage.command(off.map_or(Guard::Full, Guard::Without), &words);
    let out = command.output().unwrap();
    let report = serde_json::from_slice(&out.stdout).unwrap_or_else(|e| panic!("{e}: {out:?}"));
    (out.status.code() == Some(0), report)
}

#[test]
fn what_is_missing_is_seen() {
    if !able() {
        return;
    }
    let (holds, report) = doctor(None, &[]);
    assert!(holds, "control: {report:#}");
    const DOMAIN: &str = "landlock,signal_scope";
    for (off, seen, options) in [
        ("seccomp_filter", "attack_supervisor_limits", &[][..]),
        ("seccomp_filter", "attack_supervisor_priority", &[]),
        ("seccomp_filter", "attack_supervisor_affinity", &[]),
        ("seccomp_filter", "attack_io_uring", &[]),
        ("seccomp_filter", "attack_terminal_input", &[]),
        ("seccomp_filter", "attack_foreign_call", &[]),
        ("seccomp_filter", "attack_inet_socket", &["--network", "deny"]),
        ("descriptors", "attack_inherited_descriptor", &[]),
        ("environment", "environment", &[]),
        ("landlock", "attack_audit_file", &[]),
        ("landlock", "attack_write_elsewhere", &["--filesystem", "confined"]),
        ("seccomp_filter,landlock,signal_scope", "attack_supervisor_stop", &[]),
        ("seccomp_filter,landlock,signal_scope,supervisor_not_dumpable", "attack_supervisor_trace", &[]),
        ("landlock,signal_scope,supervisor_not_dumpable", "attack_supervisor_memory", &[]),
    ] {
        if seen == "attack_foreign_call" && !cfg!(target_arch = "x86_64") {
            continue;
        }
        let (holds, report) = doctor(Some(off), options);
        let check = report["checks"].as_array().unwrap().iter().find(|c| c["name"] == seen).unwrap();
        assert!(!holds && check["holds"] == false && check["wanted"] == true, "{off}: {check:#} {report:#}");
    }
    // Two of three still hold it.
    let (holds, report) = doctor(Some(DOMAIN), &["--risk", "low"]);
    assert!(holds, "{report:#}");
}
