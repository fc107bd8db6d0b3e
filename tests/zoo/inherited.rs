//! Descriptors, variables, privileges: what must not be passed on.

use super::place::*;
use super::support::*;

#[test]
fn descriptors() {
    if !able() {
        return;
    }
    for place in [Pid1, Below] {
        let run = |guard| {
            let mut stage = Stage::new(place);
            stage.before = "exec 9</etc/passwd".into();
            stage.run(guard, &["inherited-descriptor"])
        };
        assert!(it_says(&run(Guard::Plain)));
        let without = run(Guard::Without("descriptors"));
        assert!(it_says(&without) && !without.held("descriptors"), "{without:#?}");
        let full = run(Guard::Full);
        assert!(!it_says(&full) && full.held("descriptors"), "{full:#?}");
    }
}

#[test]
fn variables() {
    if !able() {
        return;
    }
    let attack = ["environment", "KEY", "LD_AUDIT", "JOB_ID", "RISK_LEVEL", "GRACE_PERIOD", "API_TOKEN"];
    let run = |guard, mode: &str| {
        let mut stage = Stage::new(Pid1).options(&["--audit-key-env", "KEY", "--env", mode]);
        let token: &[_] = if mode == "clean" { &[("API_TOKEN", "t")] } else { &[] };
        stage.env = [&[("KEY", "k"), ("JOB_ID", "j"), ("RISK_LEVEL", "low"), ("GRACE_PERIOD", "3")], token].concat();
        // Set for gracekeeper alone: the shell and setpriv before it are linked dynamically.
        stage.before = "set -- \"$@\"; export LD_AUDIT=".into();
        stage.run(guard, &attack)
    };
    for mode in ["clean", "inherit"] {
        assert!(it_says(&run(Guard::Plain, mode)));
        assert!(it_says(&run(Guard::Without("environment"), mode)));
        let full = run(Guard::Full, mode);
        assert!(!it_says(&full) && full.held("audit_mac"), "{full:#?}");
        assert!(!full.audit.contains("\"k\""), "the key is nowhere: {full:#?}");
    }
}

/// CAP_SYS_ADMIN reads the environment of any process on a new kernel, hidden or not: the key is in none.
#[test]
fn the_key_is_not_left_in_the_supervisors_environment() {
    if !able() {
        return;
    }
    for place in [Pid1, Below] {
        let run = |guard, root| {
            let mut stage = Stage::new(place).options(&["--audit-key-env", "KEY"]);
            stage.root = root;
            stage.env = vec![("KEY", "a-long-secret-key")];
            stage.run(guard, &["environment-of-parent", "=a-long-secret-key"])
        };
        for root in [true, false] {
            assert!(it_says(&run(Guard::Plain, root)), "control");
            let off = "own_environment,landlock,signal_scope,supervisor_not_dumpable";
            assert!(it_says(&run(Guard::Without(off), root)), "control");
            // And wiped it is also where nothing hides it.
            let wiped = run(Guard::Without("landlock,signal_scope,supervisor_not_dumpable"), root);
            assert!(!it_says(&wiped) && wiped.says("refused 2"), "{wiped:#?}");
            let full = run(Guard::Full, root);
            assert!(!it_says(&full) && full.held("audit_mac"), "{full:#?}");
        }
    }
}

/// A program with the set-user-ID bit makes nobody root. The kernel needs no_new_privs for the two others, so it cannot be
/// switched off alone.
#[test]
fn privileges() {
    if !able() {
        return;
    }
    for place in [Pid1, Below] {
        let run = |guard| {
            let mut stage = Stage::new(place);
            stage.before = format!("cp {} /mnt/setuid; chmod 4755 /mnt/setuid", hostile().display());
            stage.run(guard, &["setuid", "/mnt/setuid"])
        };
        assert!(run(Guard::Plain).says("succeeded"));
        let without = run(Guard::Without("no_new_privs,seccomp_filter,landlock,signal_scope"));
        assert!(without.says("succeeded") && !without.held("no_new_privs"), "{without:#?}");
        let full = run(Guard::Full);
        assert!(!full.says("succeeded") && full.held("no_new_privs"), "{full:#?}");
    }
}

#[test]
fn core_dumps() {
    if !able() {
        return;
    }
    three_ways(&Row {
        attack: &["core-dump"],
        places: &[Pid1, Below],
        stopped_by: &["core_dumps"],
        also_off: "",
        options: &[],
        succeeded: it_says,
    });
}

/// The CPU that is kept free under a quota: the workload takes all of them for itself again.
#[test]
fn the_reserved_cpu() {
    let Some(image) = super::resources::Image::new() else { return };
    if std::thread::available_parallelism().unwrap().get() < 2 {
        println!("skipped: one CPU leaves none to keep free");
        return;
    }
    let run = |guard| {
        let flags = ["--memory=128m", "--pids-limit=50", "--cpus=1"];
        let (code, _, stderr) = image.run(&flags, guard, &["own-affinity"]);
        (code, records(&stderr), stderr)
    };
    assert_eq!(run(Guard::Plain).0, Some(10));
    let (code, _, stderr) = run(Guard::Without("seccomp_filter"));
    assert_eq!(code, Some(10), "{stderr}");
    let (code, records, stderr) = run(Guard::Full);
    assert_eq!(code, Some(11), "{stderr}");
    assert_eq!(records.last().unwrap()["enforcement"]["reserved_cpu"], "enforced", "{stderr}");
}
