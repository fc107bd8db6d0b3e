//! Time, memory and descriptors.

use super::places::*;
use super::trees::make;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

/// A scrub that is to come to its end, also on a machine with a hundred runnable processes.
const LONG: &str = "170s";

/// Runs the binary and returns the most memory it ever had, in KiB: VmHWM of proc_pid_status(5), looked at until it ends. Not
/// ru_maxrss, in which the kernel counts what this process had when it forked. `None` where it was over before it was looked at twice.
fn peak_of(tree: &Path) -> Option<i64> {
    let mut command = Command::new(super::support::BINARY);
    command.args(["--scrub-budget", LONG, "--scrub"]).arg(tree).args(["--", "true"]);
    command.env("TMPDIR", tree.parent().unwrap()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = command.spawn().unwrap();
    let status = format!("/proc/{}/status", child.id());
    let (mut peak, mut looks) = (0, 0);
    while child.try_wait().unwrap().is_none() {
        let text = std::fs::read_to_string(&status).unwrap_or_default();
        let now = text.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB")?.parse().ok());
        peak = peak.max(now.unwrap_or(0));
        looks += 1;
        // It needs a CPU as well; only what is over at once has to be looked at all the time.
        if looks > 1000 {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    assert!(child.wait().unwrap().success());
    let left = std::fs::read_dir(tree).unwrap().count();
    if left > 0 {
        // Not left to the temporary directory, whose own removal recurses: the stack's overflow would be all that is heard of it.
        scrub(tree, &[], &["--scrub-budget", LONG]);
    }
    assert_eq!(left, 0, "{}", tree.display());
    (looks > 1 && peak > 0).then_some(peak)
}

#[test]
fn at_most_four_mebibytes_for_any_tree() {
    let place = tmpfs();
    let empty = place.path().join("empty");
    std::fs::create_dir(&empty).unwrap();
    let without = (0..100).filter_map(|_| peak_of(&empty)).take(5).min().unwrap();
    for shape in ["many", "flat", "deep", "wide", "names", "legs", "roots"] {
        let tree = make(shape, &place.path(), false);
        let more = peak_of(&tree).expect("it takes long enough") - without;
        println!("{shape}: {more} KiB more than for an empty directory");
        assert!(more <= 4096, "{shape}: {more} KiB");
    }
    // On a disk more is read before the first file goes: more entries than that holds, with long and with short names.
    let place = ext4();
    let tree = make("legs", &place.path(), false);
    let more = peak_of(&tree).expect("it takes long enough") - without;
    println!("legs on {}: {more} KiB more than for an empty directory", place.name);
    assert!(more <= 4096, "legs: {more} KiB");
    for length in [5, 200] {
        let tree = place.path().join("flat");
        std::fs::create_dir(&tree).unwrap();
        (0..60_000).for_each(|n| std::fs::write(tree.join(format!("{n:0length$}")), "").unwrap());
        let more = peak_of(&tree).expect("it takes long enough") - without;
        println!("60,000 names of {length} bytes on {}: {more} KiB more than for an empty directory", place.name);
        assert!(more <= 4096, "{length}: {more} KiB");
        std::fs::remove_dir(&tree).unwrap();
    }
}

#[test]
fn at_most_64_descriptors_for_any_tree() {
    let place = tmpfs();
    let limit: Vec<String> = ["prlimit", "--nofile=64:64"].map(str::to_owned).to_vec();
    for shape in ["deep", "wide", "modes", "many", "legs"] {
        let tree = make(shape, &place.path(), false);
        let (run, path) = scrub(&tree, &limit, &["--scrub-budget", LONG]);
        assert_eq!(path["status"], "complete", "{shape}: {run:#?}");
        assert_eq!(std::fs::read_dir(&tree).unwrap().count(), 0);
    }
    std::fs::remove_dir(place.path().join("tree-legs")).unwrap();
    // Control: so few that the limit is felt, and said.
    let tree = make("legs", &place.path(), false);
    let limit: Vec<String> = ["prlimit", "--nofile=16:16"].map(str::to_owned).to_vec();
    let (_, path) = scrub(&tree, &limit, &[]);
    assert_eq!((&path["status"], &path["why"]), (&"failed".into(), &"EMFILE".into()), "{path}");
    scrub(&tree, &[], &["--scrub-budget", LONG]);
}

#[test]
fn the_budget_is_kept_and_the_counts_are_true() {
    for place in [tmpfs(), ext4()] {
        for shape in ["many", "flat", "deep", "wide"] {
            let mut best = u64::MAX;
            // On a busy machine one run may be late through no fault of its own; every run's counts have to be true.
            for _ in 0..5 {
                let below = tempfile::tempdir_in(place.path()).unwrap();
                let tree = make(shape, below.path(), false);
                let entries = count(&tree);
                let (run, path) = scrub(&tree, &[], &["--scrub-budget", "5ms"]);
                let used = run.seal()["cleanup"]["used_ms"].as_u64().unwrap();
                if path["status"] == "partial" {
                    // A worker that was not back when the record was written had at most one call in hand.
                    let late = path["why"].as_str().is_some_and(|why| why.contains("did not come back"));
                    let gone = entries - count(&tree);
                    let short = gone.checked_sub(path["entries_removed"].as_u64().unwrap()).unwrap();
                    assert!(short <= if late { 4 } else { 0 }, "{shape}: {gone} are gone: {path}");
                    best = best.min(used);
                }
                // Not left to the temporary directory, whose own removal recurses.
                scrub(&tree, &[], &["--scrub-budget", LONG]);
                if best <= 15 {
                    break;
                }
            }
            println!("{shape} on {}: a budget of 5 ms took {best}", place.name);
            assert!(best <= 15, "{shape} on {}: {best} ms", place.name);
        }
    }
}

/// What a cut-off scrub leaves should be old files and names, not the newest bytes. One worker, so that the order is whole.
#[test]
fn the_newest_files_go_first() {
    let place = tmpfs();
    let tree = place.path().join("tree");
    let one: Vec<String> = ["taskset", "-c", "0"].map(str::to_owned).to_vec();
    let mut cut_off = 0;
    for _ in 0..50 {
        std::fs::create_dir(&tree).unwrap();
        (0..1500).for_each(|i| std::fs::write(tree.join(format!("{i}-old")), "").unwrap());
        (0..20).for_each(|i| std::fs::write(tree.join(format!("{i}-new")), "secret").unwrap());
        std::fs::create_dir(tree.join("directory")).unwrap();
        let (_, path) = scrub(&tree, &one, &["--scrub-budget", "3ms"]);
        let left: Vec<_> = std::fs::read_dir(&tree).unwrap().map(|e| e.unwrap().file_name()).collect();
        // Cut off after the newest and long before the end.
        if path["status"] == "partial" && path["entries_removed"].as_u64().unwrap() >= 20 {
            cut_off += 1;
            assert!(!left.iter().any(|n| n.to_str().unwrap().ends_with("-new")), "{path}: {left:?}");
            assert!(left.iter().any(|n| n == "directory"), "a directory before the files");
        }
        std::fs::remove_dir_all(&tree).unwrap();
        if cut_off >= 3 {
            return;
        }
    }
    panic!("no run was cut off in the middle");
}
