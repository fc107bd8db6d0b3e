//! What stands where the audit file should be before the run: somebody else's file under another name, what hangs, what is no
//! file, no room. (What is done to it during the run: `record`.)

use super::place::*;
use super::stubborn::outlasts;
use super::support::*;
use std::time::Duration;

const VICTIM: &str = "/media/victim";

/// What is made there, and the reason that the record gives.
const GAMES: [(&str, &str); 8] = [
    ("ln -s /media/victim $L", "ELOOP"),
    ("ln -s /media/none $L", "ELOOP"),
    // Bound there, the log's directory is another mount: a file and its second name have to be in the same.
    ("mv /media/victim /var/log/v; ln /var/log/v $L", "more than one name"),
    ("mkfifo -m 666 $L", "not a regular file"),
    ("mkdir -m 777 $L", "EISDIR"),
    ("mount --bind /dev/null $L", "not a regular file"),
    ("echo kept > $L; chmod 400 $L", "EACCES"),
    ("mount -t tmpfs -o mode=755 none /var/log", "EACCES"),
];

fn stage(place: Place, game: &str, options: &[&str]) -> Stage {
    let mut stage = Stage::new(place).options(options);
    let touch = if game.starts_with("mount --bind") { format!("touch {LOG}; ") } else { String::new() };
    stage.before = format!(
        "echo precious > {VICTIM}; chown 65532:65532 {VICTIM}; L={LOG}; {touch}{game}; chown -h 65532:65532 /var/log/v 2>/dev/null || :"
    );
    stage
}

fn victim(ran: &Attempt) -> String {
    let paths = [ran.share().join("victim"), ran.share().join("../log/v")];
    paths.iter().find_map(|path| std::fs::read_to_string(path).ok()).unwrap()
}

#[test]
fn what_is_not_ours_is_not_written_to() {
    if !able() {
        return;
    }
    for (game, why) in GAMES {
        for place in [Pid1, Below] {
            let ran = stage(place, game, &[]).run(Guard::Full, &["inherited-descriptor"]);
            assert_eq!(ran.code, 11, "the run goes on: {game}: {ran:#?}");
            assert_eq!(victim(&ran), "precious\n", "{game}");
            let seal = records(&ran.stderr).pop().unwrap_or_else(|| panic!("{game}: the audit is on stderr: {ran:#?}"));
            assert_eq!((&seal["event"], &seal["status"]), (&"evaluation_terminated".into(), &"nonzero_exit".into()));
            assert_eq!(seal["enforcement"]["audit_file"], "unavailable", "{game}: {seal:#}");
            assert!(seal["enforcement_errors"]["audit_file"].to_string().contains(why), "{game}: {seal:#}");
            assert!(ran.message.contains("\"status\":\"nonzero_exit\""), "{game}: {ran:#?}");
            // Required, and without a termination log: nothing runs.
            let required = ["--audit-required", "yes", "--termination-log", "/media/none"];
            let ran = stage(place, game, &required).run(Guard::Full, &["inherited-descriptor"]);
            assert_eq!((ran.code, ran.stdout.replace("left 0\n", "").as_str()), (125, ""), "{game}: {ran:#?}");
            assert!(ran.stderr.contains(why) && ran.stderr.lines().count() == 1, "{game}: {ran:#?}");
            assert_eq!(victim(&ran), "precious\n", "{game}");
        }
    }
}

/// Controls: whoever follows names writes into the victim, and whoever opens a FIFO waits.
#[test]
fn without_care_it_would_be() {
    if !able() {
        return;
    }
    for game in [GAMES[0].0, GAMES[2].0] {
        for guard in [Guard::Plain, Guard::Without("own_file")] {
            let ran = stage(Pid1, game, &[]).run(guard, &["inherited-descriptor"]);
            assert_ne!(victim(&ran), "precious\n", "{game} {guard:?}: {ran:#?}");
        }
    }
    assert!(outlasts(stage(Pid1, GAMES[3].0, &[]), &["inherited-descriptor"], Duration::from_secs(2)));
}

/// A disk that is full before the run: the file is there and takes nothing. The record goes where there is room.
#[test]
fn a_disk_that_is_full_from_the_start() {
    if !able() {
        return;
    }
    let game = "mount -t tmpfs -o size=64k,mode=1777 none /var/log; head -c 1M /dev/zero > /var/log/fill || :";
    for place in [Pid1, Below] {
        let ran = stage(place, game, &[]).run(Guard::Full, &["inherited-descriptor"]);
        let all = records(&ran.stderr);
        // The first one before the workload ran: it is what a SIGKILL would have left.
        assert_eq!((all.len(), &all[0]["event"]), (2, &"evaluation_started".into()), "{ran:#?}");
        let seal = &all[1];
        assert_eq!((ran.code, &seal["event"]), (11, &"evaluation_terminated".into()), "{ran:#?}");
        assert_ne!(seal["enforcement"]["audit_file"], "enforced", "{seal:#}");
        assert_ne!(seal["enforcement"]["audit_space_reserved"], "enforced", "{seal:#}");
        assert!(seal["errors"].to_string().contains("ENOSPC"), "{seal:#}");
        assert!(ran.message.contains("\"status\":\"nonzero_exit\""), "{ran:#?}");
    }
    // One that is empty, and too small for what the seal might need: it has room for both.
    let dir = tempfile::tempdir().unwrap();
    let script = r#"mount -t tmpfs -o size=64k none "$1" && "$2" --audit-file "$1/a.json" -- true && cat "$1/a.json""#;
    let out = std::process::Command::new("unshare")
        .args(["-m", "sh", "-c", script, "sh"])
        .arg(dir.path())
        .arg(BINARY)
        .output();
    let text = String::from_utf8(out.unwrap().stdout).unwrap();
    let events: Vec<_> = records(&text).iter().map(|record| record["event"].clone()).collect();
    assert_eq!(events, ["evaluation_started", "evaluation_terminated"], "{text}");
}
