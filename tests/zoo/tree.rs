//! What the workload builds below /tmp to lead the scrub astray.

use super::place::*;

const VICTIM: &str = "/media/victim";

/// Whether the victim's file is gone, and what was left in /tmp.
fn run(guard: Guard<'_>, place: Place, root: bool, attack: &str) -> (bool, Attempt) {
    let mut stage = Stage::new(place).options(&["--scrub", "/tmp"]);
    stage.root = root;
    assert!(!root || attack == "mount", "whoever follows links as root goes far");
    let own =
        if guard == Guard::Plain { "touch /tmp/.mounted-for-this-attack-alone; chown 65532 /tmp/.m*" } else { ":" };
    stage.before = format!("{own}; mkdir {VICTIM}; echo precious > {VICTIM}/file; chown -R 65532:65532 {VICTIM}");
    let ran = stage.run(guard, &[attack, VICTIM]);
    assert!(ran.says("succeeded"), "{ran:#?}");
    (!ran.share().join("victim/file").exists(), ran)
}

#[test]
fn links_that_lead_out() {
    if !able() {
        return;
    }
    for place in [Pid1, Below] {
        assert!(run(Guard::Plain, place, false, "links").0, "control");
        assert!(run(Guard::Without("own_tree"), place, false, "links").0, "control");
        let (gone, ran) = run(Guard::Full, place, false, "links");
        let seal = ran.seal().unwrap();
        assert!(!gone, "{ran:#?}");
        let tmp = seal["cleanup"]["paths"].as_array().unwrap().iter().find(|p| p["path"] == "/tmp").unwrap();
        // Two directories and three links.
        assert_eq!((&tmp["status"], &tmp["entries_removed"]), (&"complete".into(), &5.into()), "{seal:#}");
    }
}

/// As root with CAP_SYS_ADMIN, as a container may be.
#[test]
fn mounts_below() {
    if !able() {
        return;
    }
    for place in [Pid1, Below] {
        assert!(run(Guard::Plain, place, true, "mount").0, "control");
        assert!(run(Guard::Without("own_tree"), place, true, "mount").0, "control");
        let (gone, ran) = run(Guard::Full, place, true, "mount");
        assert!(!gone, "{ran:#?}");
        // The mount point cannot go, and that is said.
        assert_eq!(ran.seal().unwrap()["cleanup_status"], "failed", "{ran:#?}");
    }
}
