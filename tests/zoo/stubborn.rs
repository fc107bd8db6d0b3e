//! Who does not want to be found, or to die.

use super::fuse::Hanging;
use super::pinned::{Pinned, begins, child_of};
use super::place::*;
use super::support::*;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

const SHORT: &[&str] = &["--timeout", "500ms", "--soft", "100ms", "--hard", "300ms"];

/// `hostile init` says how many were still there a second after the end.
fn somebody_left(attempt: &Attempt) -> bool {
    let left = attempt.stdout.lines().find_map(|l| l.strip_prefix("left "));
    left.unwrap_or_else(|| panic!("{attempt:#?}")) != "0"
}

/// As PID 1 the end of the namespace ends everybody, so this is only a question where the supervisor is not.
#[test]
fn an_orphan_in_a_session_of_its_own() {
    if !able() {
        return;
    }
    three_ways(&Row {
        attack: &["escape"],
        places: &[Below],
        stopped_by: &["subreaper"],
        also_off: "",
        options: SHORT,
        succeeded: somebody_left,
    });
}

/// A bug of gracekeeper's own, at a bad moment: the ladder is about to begin, and nobody has been asked to end.
#[test]
fn a_panic_leaves_nobody_behind_and_a_whole_record() {
    if !able() {
        return;
    }
    for place in [Pid1, Below] {
        let run = |off| {
            let options = ["--risk", "critical", "--job-id", "panics"];
            Stage::new(place).options(SHORT).options(&options).run(Guard::Without(off), &["escape"])
        };
        let ran = run("composure");
        assert_eq!((ran.code, ran.verified()), (125, Some(0)), "{ran:#?}");
        assert!(ran.stderr.contains("gracekeeper: internal error: "), "{ran:#?}");
        // `records` has held it against the schema.
        let seal = ran.seal().unwrap();
        assert_eq!((&seal["status"], &seal["exit_code"]), (&"supervisor_error".into(), &125.into()), "{seal:#}");
        assert_eq!((&seal["risk"]["level"], &seal["job_id"]), (&"critical".into(), &"panics".into()), "{seal:#}");
        assert!(seal["process"]["executable"].as_str().unwrap().ends_with("/hostile"), "{seal:#}");
        assert!(seal["duration"].as_f64().unwrap() > 0.0, "{seal:#}");
        assert!(seal["errors"][0].as_str().unwrap().contains("a test asked for it"), "{seal:#}");
        assert_eq!(records(&ran.message), [seal], "{ran:#?}");
        if place == Below {
            assert!(!somebody_left(&ran), "{ran:#?}");
            assert!(somebody_left(&run("composure,kill")), "control: without the kill of the panic hook");
        }
    }
}

/// One that is listed has a child and is dead when it is looked at: nobody is alive in such a look at everybody, and somebody is.
#[test]
fn who_has_a_child_and_is_gone_when_looked_at() {
    if !able() {
        return;
    }
    // The panic hook has to do without the machine's repeated kills: a look that misses somebody is its last.
    let run = |off| Stage::new(Below).options(SHORT).run(Guard::Without(off), &["comet"]);
    // It needs a CPU between the names and the looks, which others may have: without `early_look` the looks come 20 ms later. So late,
    // and on a free CPU, nobody catches up with such a chain; but then the hook uses the second that it has, and does not call it gone.
    let given_up = |ran: &Attempt| somebody_left(ran) && ran.seal().unwrap()["duration"].as_f64().unwrap() < 1.0;
    let missed = (0..20).any(|_| given_up(&run("composure,early_look,second_look,hidden")));
    assert!(missed, "control: one look has to miss it some time");
    for _ in 0..10 {
        let late = run("composure,early_look");
        assert!(!given_up(&late), "{late:#?}");
        let ran = run("composure");
        assert!(!somebody_left(&ran), "{ran:#?}");
    }
}

/// `/proc` gives the main thread's state, and it has ended.
#[test]
fn a_process_without_its_main_thread() {
    if !able() {
        return;
    }
    three_ways(&Row {
        attack: &["headless"],
        places: &[Below],
        stopped_by: &["headless"],
        also_off: "",
        options: SHORT,
        succeeded: somebody_left,
    });
    // And it is there in the record, with what it has.
    for place in [Pid1, Below] {
        let options = ["--timeout", "500ms", "--soft", "2800ms", "--hard", "3s", "--adaptive", "no"];
        let ran = Stage::new(place).options(&options).run(Guard::Full, &["headless-stay"]);
        let records = records(&ran.audit);
        let activity = records.iter().find(|r| r["event"] == "activity").unwrap_or_else(|| panic!("{ran:#?}"));
        let one = activity["processes"].as_array().unwrap().iter().find(|p| p["sockets"] == 1);
        let one = one.unwrap_or_else(|| panic!("{activity:#}"));
        assert_eq!((&one["args"][1], &one["state"]), (&"headless-stay".into(), &"S".into()), "{one:#}");
        assert!(one["threads"] == 2 && one["rss_bytes"].as_u64() > Some(0), "{one:#}");
    }
}

#[test]
fn names_that_mislead_a_parser() {
    if !able() {
        return;
    }
    three_ways(&Row {
        attack: &["names"],
        places: &[Below],
        stopped_by: &["last_bracket"],
        also_off: "hidden",
        options: SHORT,
        succeeded: somebody_left,
    });
}

#[test]
fn names_in_the_record() {
    if !able() {
        return;
    }
    for place in [Pid1, Below] {
        let options = ["--timeout", "500ms", "--soft", "2800ms", "--hard", "3s", "--adaptive", "no"];
        let ran = Stage::new(place).options(&options).run(Guard::Full, &["names-stay"]);
        // `records` holds each against the schema; a name with a newline must not end a record.
        let records = records(&ran.audit);
        assert_eq!(records.len(), ran.audit.lines().count(), "{}", ran.audit);
        let activity = records.iter().find(|r| r["event"] == "activity").unwrap_or_else(|| panic!("{ran:#?}"));
        let names: Vec<&str> =
            activity["processes"].as_array().unwrap().iter().map(|p| p["name"].as_str().unwrap()).collect();
        for name in ["x) R 1 1", "a\nb\nc", "\u{fffd}\u{fffd}\u{fffd})", ") Z 0 (", "hostile"] {
            assert!(names.contains(&name), "{name:?}: {names:?}");
        }
        assert_eq!((ran.verified(), ran.code), (Some(0), 124), "{ran:#?}");
    }
}

/// Still running after `time`, whatever was done to it meanwhile; then everything ends with its namespace.
pub fn outlasts(stage: Stage, attack: &[&str], time: Duration) -> bool {
    let mut child = stage.command(Guard::Plain, attack).spawn().unwrap();
    let deadline = Instant::now() + time;
    while Instant::now() < deadline {
        if child.try_wait().unwrap().is_some() {
            return false;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    // unshare's --kill-child is lost where the child gives its privileges away (prctl(2), PR_SET_PDEATHSIG): its PID 1 first.
    let unshare = i32::try_from(child.id()).unwrap();
    let first = child_of(unshare).and_then(|pid| Pinned::new(pid, |_| child_of(unshare) == Some(pid)));
    assert!(first.unwrap().signal(libc::SIGKILL));
    child.wait().unwrap();
    true
}

/// Stopped, waiting in vfork, stopped under ptrace: SIGTERM does nothing, SIGKILL does.
fn survives_all_but_the_kill(attack: &str) {
    if !able() {
        return;
    }
    let mut stage = Stage::new(Below);
    stage.before = "(sleep 1; kill -TERM -1; kill -CONT -1) &".into();
    assert!(outlasts(stage, &[attack], Duration::from_millis(2500)), "control: it ended with SIGTERM");
    let without = Stage::new(Below).options(SHORT).run(Guard::Without("kill"), &[attack]);
    let seal = without.seal().unwrap();
    assert!(somebody_left(&without), "control: {without:#?}");
    // That too is recorded as it was, and nothing is scrubbed beside a live process.
    let rungs = seal["escalation"].as_array().unwrap();
    assert!(rungs.last().unwrap()["survivors"].as_u64() > Some(0), "{seal:#}");
    assert_eq!(seal["cleanup_status"], "skipped", "{seal:#}");
    for place in [Pid1, Below] {
        let full = Stage::new(place).options(SHORT).run(Guard::Full, &[attack]);
        let seal = full.seal().unwrap();
        assert_eq!((full.code, &seal["status"], full.verified()), (124, &"timeout".into(), Some(0)), "{full:#?}");
        assert_eq!(seal["escalation"].as_array().unwrap().last().unwrap()["survivors"], 0, "{seal:#}");
        assert!(place == Pid1 || !somebody_left(&full), "{full:#?}");
    }
}

#[test]
fn a_group_that_stops_itself() {
    survives_all_but_the_kill("stop");
}

#[test]
fn a_parent_in_vfork() {
    survives_all_but_the_kill("vfork");
}

#[test]
fn a_child_stopped_under_ptrace() {
    survives_all_but_the_kill("traced");
}

/// The parent is made a tracer: told of a stop, it takes it for the end.
#[test]
fn a_child_that_makes_its_parent_trace_it() {
    if !able() {
        return;
    }
    let plain = Stage::new(Below).run(Guard::Plain, &["traceme"]);
    assert!(somebody_left(&plain), "control: {plain:#?}");
    for place in [Pid1, Below] {
        let full = Stage::new(place).options(SHORT).run(Guard::Full, &["traceme"]);
        assert_eq!((full.code, full.verified()), (124, Some(0)), "{full:#?}");
        assert!(place == Pid1 || !somebody_left(&full), "{full:#?}");
    }
}

/// The supervisor itself is killed from outside: the command goes with it. Not so what the command started; for that there is
/// PID 1, whose namespace ends with it.
#[test]
fn the_command_does_not_outlive_a_killed_supervisor() {
    if !able() {
        return;
    }
    let run = |guard| {
        let stage = Stage::new(Below);
        let began = Instant::now();
        let child = stage.command(guard, &["burn", "1"]).spawn().unwrap();
        let mut found = None;
        until("the command runs", || {
            let supervisor = child_of(i32::try_from(child.id()).unwrap()).and_then(child_of);
            let top = |pid| begins(pid, b"/mnt/gracekeeper\0") || begins(pid, b"/mnt/hostile\0parent\0");
            // Both are called so by their exec, not before it.
            let runs = |pid| {
                child_of(pid)
                    .is_some_and(|c| begins(c, b"/mnt/hostile\0burn\0") || begins(c, b"/proc/self/exe\0burn\0"))
            };
            found = supervisor.and_then(|pid| Pinned::new(pid, |pid| top(pid) && runs(pid)));
            found.is_some()
        });
        assert!(found.unwrap().signal(libc::SIGKILL));
        stage.collect(finish(child, began))
    };
    assert!(somebody_left(&run(Guard::Plain)), "control");
    assert!(somebody_left(&run(Guard::Without("parent_death_signal"))), "control");
    let full = run(Guard::Full);
    assert!(!somebody_left(&full) && full.code == 137, "{full:#?}");
    assert_eq!(full.verified(), Some(3), "cut off, not tampered with: {full:#?}");
}

/// A read that no signal ends. The supervisor does not wait for it longer than its plan, scrubs nothing beside it, and says so.
#[test]
fn a_read_that_never_returns() {
    if !able() {
        return;
    }
    for place in [Below, Pid1] {
        let stage = Stage::new(place).options(&["--grace", "4s", "--soft", "200ms", "--hard", "500ms"]);
        let dir = stage.path().join("share/f");
        std::fs::create_dir(&dir).unwrap();
        let fuse = Hanging::mount(&dir);
        let log = stage.path().join("log/security-audit.json");
        let began = Instant::now();
        let file = format!("/media/f/file-{}", marker());
        let child = stage.command(Guard::Full, &["hang", &file]).spawn().unwrap();
        until("the read hangs", || fuse.reads.load(Ordering::SeqCst) > 0);
        // gracekeeper has the same word among its own.
        let marked = marked(&file).into_iter().map(|pid| i32::try_from(pid).unwrap());
        let stuck =
            marked.filter_map(|pid| Pinned::new(pid, |pid| begins(pid, b"/mnt/hostile\0hang\0"))).next().unwrap();
        let state = || std::fs::read_to_string(format!("/proc/{}/stat", stuck.pid)).unwrap_or_default();
        // The control: SIGKILL does not end it.
        assert!(stuck.signal(libc::SIGKILL));
        until("it waits without listening", || state().contains(") D "));
        let parent = state().rsplit(") ").next().and_then(|f| f.split(' ').nth(1)?.parse::<i32>().ok()).unwrap();
        let supervisor = Pinned::new(parent, |pid| begins(pid, b"/mnt/gracekeeper\0"));
        let supervisor = supervisor.unwrap_or_else(|| panic!("{}", state()));
        let asked = Instant::now();
        assert!(supervisor.signal(libc::SIGTERM));
        until("the seal is there", || {
            std::fs::read_to_string(&log).is_ok_and(|text| text.contains("evaluation_terminated"))
        });
        let took = asked.elapsed();
        assert!(state().contains(") D "), "control: it still hangs: {}", state());
        // As PID 1 the kernel lets nobody go before everybody in the namespace has gone.
        fuse.abort();
        let ran = stage.collect(finish(child, began));
        let seal = ran.seal().unwrap();
        assert!(took < Duration::from_secs(4), "0.9 of the grace is 3.6 s: {took:?} {ran:#?}");
        assert_eq!((ran.code, &seal["status"]), (143, &"terminated".into()), "{ran:#?}");
        assert_eq!(seal["cleanup_status"], "skipped", "{seal:#}");
        assert_eq!(seal["escalation"].as_array().unwrap().last().unwrap()["survivors"], 1, "{seal:#}");
        assert_eq!(ran.verified(), Some(0), "{ran:#?}");
    }
}

/// The record of a rung, as soon as it is there.
fn rung(log: &std::path::Path, name: &str) -> Option<serde_json::Value> {
    let whole = std::fs::read_to_string(log).unwrap_or_default();
    // The last line may be half written.
    let lines = whole.rfind('\n').map_or("", |end| &whole[..=end]);
    records(lines).into_iter().find(|r| r["event"] == "escalated" && r["rung"] == name)
}

/// A write of a page that comes from FUSE is under way when everything is stopped, and ends when the page comes: nothing can take it back,
/// so nothing may be called `enforced` before it has ended.
#[test]
fn a_write_that_goes_on_while_it_is_stopped() {
    if !able() {
        return;
    }
    let run = |place, guard| {
        let limits = ["--timeout", "300ms", "--soft", "200ms", "--hard", "2s", "--adaptive", "no"];
        let stage = Stage::new(place).options(&limits);
        let dir = stage.path().join("share/f");
        std::fs::create_dir(&dir).unwrap();
        let fuse = Hanging::mount(&dir);
        let (log, out) = (stage.path().join("log/security-audit.json"), stage.path().join("share/out"));
        let began = Instant::now();
        let child = stage.command(guard, &["late", "/media/f/file", "/media/out"]).spawn().unwrap();
        let mut revoke = None;
        until("the rung is recorded", || {
            revoke = rung(&log, "revoke");
            revoke.is_some()
        });
        let size = || std::fs::metadata(&out).unwrap().len();
        assert_eq!((fuse.reads.load(Ordering::SeqCst), size()), (1, 0), "the write waits for its page");
        fuse.answer();
        let deadline = Instant::now() + Duration::from_secs(1);
        while size() == 0 && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
        assert!(size() > 0, "the page came, and nobody wrote it");
        fuse.abort();
        let ran = stage.collect(finish(child, began));
        assert_eq!((ran.code, ran.verified()), (124, Some(0)), "{ran:#?}");
        (revoke.unwrap(), ran)
    };
    for place in [Below, Pid1] {
        let (revoke, _) = run(place, Guard::Without("real_stop"));
        assert_eq!(revoke["files"], "enforced", "control: {revoke:#}");
        let (revoke, _) = run(place, Guard::Full);
        assert_eq!((&revoke["files"], &revoke["network"]), (&"degraded".into(), &"degraded".into()), "{revoke:#}");
        assert!(revoke["errors"][0].as_str().unwrap().contains("came to a stop"), "{revoke:#}");
    }
}

/// A send of such a page holds its socket's lock: whoever asks anything of that socket waits as well.
#[test]
fn a_lock_that_is_never_let_go() {
    if !able() {
        return;
    }
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port().to_string();
    // When the kill was sent, in ms since the trigger, though the lock was held for three seconds more; and the rung before it.
    let killed = |place, guard| {
        let limits = ["--timeout", "300ms", "--soft", "200ms", "--hard", "1s", "--adaptive", "no"];
        let stage = Stage::new(place).options(&limits).options(&["--monitoring", "off"]);
        let dir = stage.path().join("share/f");
        std::fs::create_dir(&dir).unwrap();
        let fuse = Hanging::mount(&dir);
        let began = Instant::now();
        let child = stage.command(guard, &["locked", "/media/f/file", &port]).spawn().unwrap();
        until("the send waits", || fuse.reads.load(Ordering::SeqCst) > 0);
        std::thread::sleep(Duration::from_secs(4));
        fuse.abort();
        let ran = stage.collect(finish(child, began));
        let seal = ran.seal().unwrap_or_else(|| panic!("{ran:#?}"));
        let rungs = seal["escalation"].as_array().unwrap();
        let of = |name: &str| {
            rungs.iter().find(|rung| rung["rung"] == name).cloned().unwrap_or_else(|| panic!("no {name}: {ran:#?}"))
        };
        (of("kill")["at_ms"].as_u64().unwrap(), of("revoke"))
    };
    for place in [Below, Pid1] {
        let (kill, revoke) = killed(place, Guard::Without("real_stop"));
        assert!(kill > 3000, "control: it waited for nobody: {kill} {revoke:#}");
        // A supervisor that had no CPU for a quarter of the grace goes straight to the kill.
        in_three(|| {
            let (kill, revoke) = killed(place, Guard::Full);
            assert!(kill < 2000, "{kill} {revoke:#}");
            assert_eq!((&revoke["sockets_cut"], &revoke["network"]), (&0.into(), &"degraded".into()), "{revoke:#}");
        });
    }
}

/// One table of many descriptors, seen through many threads: each look at all of it takes as long as all of it.
#[test]
fn a_hoard_of_descriptors() {
    if !able() {
        return;
    }
    let run = |guard| {
        let limits = ["--timeout", "500ms", "--soft", "300ms", "--hard", "1500ms", "--adaptive", "no"];
        let options = ["--monitoring", "off"];
        let ran = Stage::new(Below).options(&limits).options(&options).run(guard, &["hoard", "8000", "150"]);
        let seal = ran.seal().unwrap();
        assert_eq!(ran.code, 124, "{ran:#?}");
        let kill = seal["escalation"].as_array().unwrap().last().unwrap()["at_ms"].as_u64().unwrap();
        (kill, seal["escalation"][1].clone())
    };
    let (kill, _) = run(Guard::Without("walk_deadline,one_walk"));
    assert!(kill > 2500, "control: the kill had to wait: {kill}");
    // As under a profile that refuses kcmp(2).
    let (kill, revoke) = run(Guard::Without("one_walk"));
    assert!(kill < 2000 && revoke["network"] == "degraded" && revoke["frozen"] == 1, "{kill} {revoke:#}");
    let (kill, revoke) = run(Guard::Full);
    assert!(kill < 2000 && revoke["network"] == "enforced", "{kill} {revoke:#}");
}

/// Who was dead and not waited for was not killed, and a thread that made its grandparent trace it is nobody by itself.
#[test]
fn the_dead_and_the_threads_are_not_counted() {
    if !able() {
        return;
    }
    for place in [Pid1, Below] {
        let killed = |guard| {
            let ran = Stage::new(place).options(SHORT).run(guard, &["corpses"]);
            let seal = ran.seal().unwrap();
            seal["escalation"].as_array().unwrap().last().unwrap().clone()
        };
        let control = killed(Guard::Without("true_count"));
        assert!(control["signalled"].as_u64() > Some(20), "control: {control:#}");
        for _ in 0..5 {
            let kill = killed(Guard::Full);
            assert_eq!((&kill["rung"], &kill["signalled"]), (&"kill".into(), &1.into()), "{kill:#}");
            assert_eq!(kill["survivors"], 0, "{kill:#}");
        }
    }
}

/// A child that `/proc` does not show (hidepid) is a child all the same.
#[test]
fn a_child_that_proc_hides() {
    if !able() {
        return;
    }
    let run = |guard| {
        let mut stage = Stage::new(Below).options(SHORT);
        stage.before = "mount -o remount,hidepid=2 /proc".into();
        let ran = stage.run(guard, &["hidden", "/media/ticks"]);
        let seal = ran.seal().unwrap();
        let last = std::fs::metadata(ran.share().join("ticks")).unwrap().modified().unwrap();
        let last = last.duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
        let went_on = last - time_of(seal["time"].as_str().unwrap()) > 0.5;
        let rungs = seal["escalation"].as_array().unwrap();
        (went_on, rungs.iter().find(|r| r["rung"] == "revoke").cloned(), rungs.last().unwrap().clone(), seal)
    };
    let (went_on, _, kill, seal) = run(Guard::Without("hidden"));
    assert!(went_on, "control: {seal:#}");
    // Nobody is seen, and the kernel does not say that nobody is left.
    assert_eq!((&kill["survivors"], &seal["cleanup_status"]), (&1.into(), &"skipped".into()), "{seal:#}");
    let (went_on, revoke, kill, seal) = run(Guard::Full);
    assert!(!went_on, "{seal:#}");
    assert_eq!((&kill["signalled"], &kill["survivors"]), (&2.into(), &0.into()), "{seal:#}");
    let revoke = revoke.unwrap();
    assert_eq!((&revoke["files"], &revoke["network"]), (&"degraded".into(), &"degraded".into()), "{revoke:#}");
}

/// Nobody is shown (hidepid): that is not nobody.
#[test]
fn who_is_hidden_from_pid_1_stays_stopped() {
    if !able() {
        return;
    }
    let mut stage = Stage::new(Pid1).options(SHORT);
    stage.before = "mount -o remount,hidepid=2 /proc".into();
    let ran = stage.run(Guard::Full, &["hidden", "/media/ticks", "alone"]);
    let seal = ran.seal().unwrap();
    let rungs = seal["escalation"].as_array().unwrap();
    let revoke = rungs.iter().find(|r| r["rung"] == "revoke").unwrap();
    assert_eq!((&revoke["files"], &revoke["network"]), (&"unavailable".into(), &"degraded".into()), "{seal:#}");
    let records = records(&format!("{}\n{}", ran.audit, ran.stderr));
    let at = records.iter().find(|r| r["rung"] == "revoke").unwrap()["time"].as_str().unwrap().to_owned();
    let last = std::fs::metadata(ran.share().join("ticks")).unwrap().modified().unwrap();
    let last = last.duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
    assert!(last - time_of(&at) < 0.05, "it went on for {} s: {seal:#}", last - time_of(&at));
}
