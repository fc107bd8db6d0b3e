//! "Not as PID 1, nothing but the workload is signalled", where somebody else comes to look like the workload.

use super::place::*;

const KEEPER: &str = "/mnt/gracekeeper --audit-file /var/log/security-audit.json --termination-log /media/message";

/// A helper that was there before `exec gracekeeper`, and ends `after` its own child is there. The child comes to gracekeeper, which
/// is the subreaper; there it says so, and when gracekeeper is gone it says what it may still do. `ran` is the command.
fn orphaned(guard: Guard<'_>, after: &str, options: &str, ran: &str) -> Attempt {
    // `PPID` is what it was when the shell began: its parent has to be there until then.
    let child = "touch /media/born; parent() { cut -d' ' -f4 /proc/$$/stat; }; \
                 while [ $(parent) = $PPID ]; do sleep 0.02; done; keeper=$(parent); touch /media/orphan; \
                 while [ $(parent) = $keeper ]; do sleep 0.02; done; \
                 echo $(ulimit -n) $(ulimit -f) > /media/limits; exec sleep 600";
    let script = format!(
        "child=\"$1\"; (until [ -e /media/go ]; do sleep 0.02; done; sh -c \"$child\" & \
         until [ -e /media/born ]; do sleep 0.02; done; sleep {after}) & \
         exec {KEEPER} {options} -- sh -c 'touch /media/go; until [ -e /media/orphan ]; do sleep 0.02; done; {ran}'"
    );
    let mut stage = Stage::new(Below);
    stage.bare = true;
    stage.run(guard, &["sh", "-c", &script, "sh", child])
}

/// `hostile init` counts whom the run left: the stranger's child, or nobody.
fn is_spared(attempt: &Attempt) -> bool {
    let left = attempt.stdout.lines().find_map(|l| l.strip_prefix("left "));
    left.unwrap_or_else(|| panic!("{attempt:#?}")) == "1"
}

#[test]
fn a_strangers_child_that_comes_to_us_is_none_of_ours() {
    if !able() {
        return;
    }
    // The command ends, and what it left running is asked to end; or it has to be killed.
    for (options, ran, code) in [
        ("--soft 500ms --monitoring off", "exit 0", 0),
        ("--timeout 3s --soft 200ms --hard 500ms --adaptive no", "trap \"\" TERM; sleep 600 & wait; sleep 600", 124),
    ] {
        let control = orphaned(Guard::Without("mark,kin"), "0", options, ran);
        assert!(!is_spared(&control), "control: {control:#?}");
        // The mark alone, without a look at the stranger's child before it came to us.
        for guard in [Guard::Without("kin"), Guard::Full] {
            let spared = orphaned(guard, "0", options, ran);
            assert!(is_spared(&spared), "{spared:#?}");
            assert_eq!((spared.code, spared.verified()), (code, Some(0)), "{spared:#?}");
            let limits = std::fs::read_to_string(spared.share().join("limits"));
            assert!(limits.is_ok_and(|limits| !limits.split_whitespace().any(|limit| limit == "0")), "{spared:#?}");
            let seal = spared.seal().unwrap();
            let rung = |n: usize, what: &str| seal["escalation"][n][what].as_u64();
            if code == 124 {
                // The shell and its sleep.
                assert_eq!((rung(0, "signalled"), rung(1, "limited")), (Some(2), Some(2)), "{seal:#}");
            } else {
                assert_eq!(seal["escalation"], serde_json::json!([]), "{seal:#}");
            }
        }
    }
}

/// Where the kernel refuses the filter there is no mark, and the stranger's children are known by having been seen with it.
#[test]
fn without_a_filter_a_strangers_child_has_to_have_been_seen() {
    if !able() {
        return;
    }
    let run = |off| orphaned(Guard::Without(off), "1", "--soft 500ms --monitoring aggressive", "exit 0");
    assert!(!is_spared(&run("seccomp_filter,kin")), "control");
    let spared = run("seccomp_filter");
    assert!(is_spared(&spared) && !spared.held("seccomp_filter"), "{spared:#?}");
}

/// Since Linux 6.14 a PID namespace has a `pid_max` of its own; before, it is the machine's, which is nobody's to change.
fn has_own_numbers() -> bool {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut parts = release.split(|c: char| !c.is_ascii_digit()).filter_map(|part| part.parse::<u32>().ok());
    let own = (parts.next(), parts.next()) >= (Some(6), Some(14));
    if !own {
        println!("skipped: pid_max is the machine's before Linux 6.14");
    }
    own
}

/// Nearly every number is taken, so that one of the workload's is soon somebody else's, and that one's child looks like a descendant
/// to a look at everybody that began before.
#[test]
fn who_takes_the_number_of_one_of_ours_is_none_of_ours() {
    if !able() || !has_own_numbers() {
        return;
    }
    let script = format!(
        "for i in 1 2 3 4; do /mnt/hostile innocent & done; for i in 1 2 3; do {KEEPER} --timeout 400ms --soft 200ms --hard 400ms \
         --adaptive no --monitoring off -- /mnt/hostile flicker 300 20; done; echo done"
    );
    let hit = |off| {
        let mut stage = Stage::new(Below);
        stage.bare = true;
        stage.before = "echo 400 > /proc/sys/kernel/pid_max".to_owned();
        let ran = stage.run(off, &["sh", "-c", &script]);
        assert!(ran.says("done"), "{ran:#?}");
        ran.stdout.lines().any(|line| line.starts_with("innocent "))
    };
    // A look takes some milliseconds longer without `slow_look`.
    assert!((0..20).any(|_| hit(Guard::Without("mark,kin,slow_look"))), "control: it has to happen some time");
    for guard in [Guard::Without("slow_look"), Guard::Without("slow_look"), Guard::Full] {
        assert!(!hit(guard), "{guard:?}");
    }
}
