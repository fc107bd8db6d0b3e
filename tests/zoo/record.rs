//! The audit file by every way to change one, what is read in its stead, and the termination message.

use super::place::*;
use super::support::*;
use std::process::Command;

fn row(attack: &'static [&'static str], succeeded: fn(&Attempt) -> bool) -> Row {
    Row { attack, places: &[Pid1, Below], stopped_by: &["landlock"], also_off: "", options: &[], succeeded }
}

#[test]
fn the_file_cannot_be_written_to() {
    if !able() {
        return;
    }
    for attack in [&["append", LOG][..], &["truncate", LOG], &["truncate-path", LOG]] {
        three_ways(&row(attack, it_says));
    }
}

#[test]
fn the_file_cannot_be_taken_away() {
    if !able() {
        return;
    }
    for attack in [
        &["unlink", LOG][..],
        &["rename", LOG],
        &["replace", LOG],
        &["swap-for-link", LOG],
        &["swap-for-fifo", LOG],
        &["hard-link", LOG],
    ] {
        three_ways(&row(attack, it_says));
    }
}

/// Where it can be done all the same, the record says so, in a sink that is left.
#[test]
fn what_was_done_to_the_file_is_said_where_landlock_is_missing() {
    if !able() {
        return;
    }
    for (attack, what) in [
        ("append", "somebody else wrote"),
        ("truncate", "truncated"),
        ("unlink", "removed or replaced"),
        ("rename", "removed or replaced"),
        ("replace", "removed or replaced"),
        ("swap-for-link", "removed or replaced"),
        ("swap-for-fifo", "removed or replaced"),
        ("hard-link", "second name"),
    ] {
        for place in [Pid1, Below] {
            let ran = Stage::new(place).run(Guard::Without("landlock"), &[attack, LOG]);
            assert!(ran.says("succeeded"), "{ran:#?}");
            let seal = records(&ran.stderr).into_iter().rfind(|r| r["event"] == "evaluation_terminated");
            let seal = seal.unwrap_or_else(|| panic!("{attack}: stderr has the seal as well: {ran:#?}"));
            assert_eq!(seal["enforcement"]["audit_file"], "degraded", "{attack}: {seal:#}");
            assert!(seal["errors"].to_string().contains(what), "{attack}: {seal:#}");
            assert!(ran.message.contains(what), "{attack}: the termination message: {}", ran.message);
            // A second name is the one thing that leaves the file whole.
            assert_eq!(ran.verified() == Some(0), attack == "hard-link", "{attack}: {ran:#?}");
        }
    }
}

/// The directory itself, with the file in it, below one that the workload may write to.
#[test]
fn the_directory_cannot_be_taken_away() {
    if !able() {
        return;
    }
    const DEEP: &str = "/srv/audit/dir/a.json";
    let run = |guard, place| {
        let mut stage = Stage::new(place).options(&["--audit-file", DEEP]);
        stage.before =
            "mount -t tmpfs -o mode=1777 none /srv; mkdir -p /srv/audit/dir; chown -R 65532:65532 /srv/audit".into();
        if guard == Guard::Plain {
            stage.before += &format!("; touch {DEEP}; chown 65532:65532 {DEEP}");
        }
        stage.run(guard, &["remove-directory", DEEP])
    };
    for place in [Pid1, Below] {
        assert!(it_says(&run(Guard::Plain, place)));
        let without = run(Guard::Without("landlock"), place);
        assert!(it_says(&without), "{without:#?}");
        assert!(without.message.contains("removed or replaced"), "{without:#?}");
        let full = run(Guard::Full, place);
        assert!(!it_says(&full) && full.message.contains("\"audit_file\":\"enforced\""), "{full:#?}");
    }
}

/// The supervisor's own file, in a volume as an init container fills one: whoever replaces it supervises the next start.
#[test]
fn the_supervisors_own_file_cannot_be_replaced() {
    if !able() {
        return;
    }
    for place in [Pid1, Below] {
        for attack in ["replace", "unlink", "rename"] {
            let run = |guard| {
                let mut stage = Stage::new(place);
                stage.binary = "/srv/gracekeeper";
                stage.before =
                    "mount -t tmpfs -o mode=777 none /srv; cp /mnt/gracekeeper /srv; chown 65532:65532 /srv/gracekeeper".into();
                stage.run(guard, &[attack, "/srv/gracekeeper"])
            };
            assert!(it_says(&run(Guard::Plain)), "control");
            assert!(it_says(&run(Guard::Without("landlock"))), "control");
            let full = run(Guard::Full);
            assert!(!it_says(&full) && full.held("landlock"), "{attack}: {full:#?}");
        }
    }
}

/// Its owner can take the file's permissions away, for the next run: they are given back.
#[test]
fn the_next_run_can_open_the_file() {
    if !able() {
        return;
    }
    for place in [Pid1, Below] {
        let mode = |guard| {
            let ran = Stage::new(place).run(guard, &["chmod", LOG]);
            assert!(ran.says("succeeded"), "nothing refuses it: {ran:#?}");
            if guard != Guard::Plain {
                assert_eq!(ran.verified(), Some(0), "{ran:#?}");
            }
            let log = ran.share().join("../log/security-audit.json");
            std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(log).unwrap().permissions()) & 0o777
        };
        assert_eq!((mode(Guard::Plain), mode(Guard::Without("own_mode"))), (0, 0), "controls");
        assert_eq!(mode(Guard::Full), 0o600);
    }
}

/// Nor can the owner of the directory keep the next run from its file.
#[test]
fn the_next_run_can_enter_the_directory() {
    if !able() {
        return;
    }
    let directory = std::path::Path::new(LOG).parent().unwrap().to_str().unwrap();
    for place in [Pid1, Below] {
        let mode = |guard| {
            let mut stage = Stage::new(place);
            stage.before = format!("chown 65532:65532 {directory}; chmod 750 {directory}");
            let ran = stage.run(guard, &["chmod", directory]);
            assert!(ran.says("succeeded"), "nothing refuses it: {ran:#?}");
            if guard == Guard::Full {
                assert!(ran.message.contains("the audit directory's mode was changed"), "{ran:#?}");
            }
            let log = ran.share().join("../log");
            std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(log).unwrap().permissions()) & 0o777
        };
        assert_eq!((mode(Guard::Plain), mode(Guard::Without("own_mode"))), (0, 0), "controls");
        assert_eq!(mode(Guard::Full), 0o750);
    }
}

/// Another name for the file, where the workload may write: in another directory of the same mount.
#[test]
fn no_other_name_leads_to_the_file() {
    if !able() {
        return;
    }
    const DEEP: &str = "/srv/audit/a.json";
    for place in [Pid1, Below] {
        let run = |guard| {
            let mut stage = Stage::new(place).options(&["--audit-file", DEEP]);
            stage.before = "mount -t tmpfs -o mode=1777 none /srv; mkdir -m 777 /srv/audit /srv/else".into();
            if guard == Guard::Plain {
                stage.before += &format!("; touch {DEEP}; chown 65532:65532 {DEEP}");
            }
            stage.run(guard, &["hard-link-elsewhere", DEEP, "/srv/else"])
        };
        assert!(it_says(&run(Guard::Plain)) && it_says(&run(Guard::Without("landlock"))), "controls");
        let full = run(Guard::Full);
        assert!(!it_says(&full) && full.message.contains("\"landlock\":\"enforced\""), "{full:#?}");
    }
}

/// A volume that is mounted twice leads around the rules, which go by path: then they are not said to hold.
#[test]
fn a_second_mount_is_seen() {
    if !able() {
        return;
    }
    let other = "/media/again/security-audit.json";
    let run = |before: &str| {
        let mut stage = Stage::new(Pid1);
        stage.before = format!("mkdir /media/again; {before}");
        stage.run(Guard::Full, &["append", other])
    };
    let twice = run("mount --bind /var/log /media/again");
    assert!(it_says(&twice) && !twice.held("landlock"), "{twice:#?}");
    let why = twice.seal().unwrap()["enforcement_errors"]["landlock"].to_string();
    assert!(why.contains("a second time") && twice.message.contains("somebody else wrote"), "{twice:#?}");
    // One that is hidden, or read-only, leads nowhere: the first is no reason.
    let hidden = run("mount --bind /var/log /media/again; mount -t tmpfs none /media/again");
    assert!(!it_says(&hidden) && hidden.held("landlock"), "{hidden:#?}");
}

/// The last word in the termination message is the supervisor's.
#[test]
fn a_message_written_early_is_replaced() {
    if !able() {
        return;
    }
    for place in [Pid1, Below] {
        let run = |guard| Stage::new(place).run(guard, &["early-message", MESSAGE]);
        let without = run(Guard::Without("message"));
        assert!(without.message.contains("forged"), "control: {without:#?}");
        assert_ne!(without.seal().unwrap()["status"], "ok");
        let full = run(Guard::Full);
        assert!(full.says("succeeded") && !full.message.contains("forged"), "{full:#?}");
        assert!(full.message.contains("\"exit_code\":10") && full.held("termination_message"), "{full:#?}");
    }
}

/// And nobody is left to write it later. As PID 1 the end of the namespace would do as well.
#[test]
fn an_escapee_does_not_write_the_message_late() {
    if !able() {
        return;
    }
    three_ways(&Row {
        places: &[Below],
        stopped_by: &["subreaper"],
        ..row(&["late-message", MESSAGE], |ran| ran.message.contains("forged"))
    });
}

/// What the workload prints may look like a record. Whoever keeps stderr tells it by the chain, and by the MAC.
#[test]
fn forged_lines_on_stderr_do_not_check() {
    if !able() {
        return;
    }
    let verify = |text: &str, key: bool| {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("stderr");
        let lines: String =
            text.lines().filter(|l| l.starts_with("{\"schema_version\"")).map(|l| format!("{l}\n")).collect();
        std::fs::write(&file, lines).unwrap();
        let mut command = Command::new(BINARY);
        command.arg("verify").arg(&file).env("KEY", "k");
        if key {
            command.args(["--audit-key-env", "KEY"]);
        }
        command.output().unwrap().status.code()
    };
    let run = |attack: &str| {
        let out = shell(&["--audit-key-env", "KEY", "--", "true"], "").env("KEY", "k").output().unwrap();
        assert!(out.status.success());
        let ours = String::from_utf8_lossy(&out.stderr).into_owned();
        let out = gracekeeper()
            .args(["--audit-key-env", "KEY", "--env", "clean", "--"])
            .arg(hostile())
            .arg(attack)
            .env("KEY", "k")
            .output()
            .unwrap();
        (ours, String::from_utf8_lossy(&out.stderr).into_owned())
    };
    let (honest, forged) = run("forge-on-stderr");
    assert_eq!(verify(&honest, true), Some(0), "control: an honest run checks: {honest}");
    assert!(forged.contains("\"forged\":true"));
    assert_eq!(verify(&forged, false), Some(4), "the chain: {forged}");
    // A whole run of its own behind ours, with the right hashes: made by gracekeeper itself, which the workload could copy.
    let own = shell(&["--", "true"], "").output().unwrap();
    let own = String::from_utf8_lossy(&own.stderr).into_owned();
    assert_eq!(verify(&own, false), Some(0), "control: without a key anybody's chain checks: {own}");
    assert_eq!(verify(&own, true), Some(4), "with the key it does not: {own}");
}

/// Reading is not refused: it is the workload's own UID's file, and holds nothing that the workload does not know. The key is
/// not in it.
#[test]
fn reading_is_possible_and_known() {
    if !able() {
        return;
    }
    let mut stage = Stage::new(Pid1).options(&["--audit-key-env", "KEY"]);
    stage.env = vec![("KEY", "a-long-secret-key")];
    let ran = stage.run(Guard::Full, &["read", LOG]);
    assert!(ran.says("succeeded"), "if this fails, SECURITY.md has to be changed: {ran:#?}");
    assert!(ran.held("audit_mac") && !ran.audit.contains("a-long-secret-key"));
}
