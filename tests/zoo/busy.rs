//! No CPU and no memory left: a fork bomb under a small quota, on a node that others keep busy, and one that fills its memory limit.

use super::place::{Guard, switched};
use super::resources::Image;
use super::support::*;
use serde_json::Value;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

fn docker(args: &[&str]) -> String {
    let out = Command::new("docker").args(args).output().unwrap();
    String::from_utf8_lossy(&[out.stdout, out.stderr].concat()).trim().to_owned()
}

/// A container for as long as it is held.
struct Container(String);

impl Container {
    fn start(image: &Image, flags: &[&str], words: &[&str]) -> Self {
        let hostile = format!("--volume={}:/hostile:ro", hostile().display());
        let args = ["run", "-d", "--user=65532:65532", "--cap-drop=ALL", "--network=none", "--read-only", &hostile];
        let out = Command::new("docker").args(args).args(flags).arg(&image.0).args(words).output().unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        Self(String::from_utf8(out.stdout).unwrap().trim().to_owned())
    }

    fn runs(&self) -> bool {
        docker(&["inspect", "-f", "{{.State.Running}}", &self.0]) == "true"
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        // What is in debt does not even die: with more of a quota it can.
        docker(&["update", "--cpus=1", &self.0]);
        docker(&["rm", "-f", &self.0]);
    }
}

/// The bomb under gracekeeper, with a deadline of 3 s and a grace of 5 s; its records, or nothing when it was not over in `patience`.
fn bomb(image: &Image, limits: &[&str], off: Option<&str>, patience: Duration) -> Option<Vec<Value>> {
    let binary = off.map_or(Path::new(BINARY), |_| switched());
    let volume = format!("--volume={}:/gracekeeper:ro", binary.display());
    let switch = format!("--env=GRACEKEEPER_TEST_WITHOUT={}", off.unwrap_or_default());
    let flags = [limits, &["--memory=128m", "--cpus=0.2", &volume, &switch]].concat();
    let options = ["/gracekeeper", "--monitoring", "aggressive", "--timeout", "3s", "--grace", "5s", "--"];
    let began = Instant::now();
    let container = Container::start(image, &flags, &[&options[..], &["/hostile", "bomb"]].concat());
    while container.runs() {
        if began.elapsed() > patience {
            return None;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    let records = records(&docker(&["logs", &container.0]));
    let seal = records.last().unwrap();
    assert_eq!(seal["event"], "evaluation_terminated", "{seal:#}");
    assert!(matches!(seal["exit_code"].as_u64(), Some(121 | 124)), "{seal:#}");
    let kill = seal["escalation"].as_array().unwrap().last().unwrap();
    // Without the guard it may be so late that it seals beside the living.
    assert!(kill["rung"] == "kill" && (off.is_some() || kill["survivors"] == 0), "{seal:#}");
    println!("sealed after {} ms, {}", seal["resources"]["wall_ms"], seal["escalation"]);
    Some(records)
}

/// The share of the supervisor's CPU is counted against that of all who are busy on the others.
#[test]
fn neighbours_and_a_fork_bomb() {
    let Some(image) = Image::new() else { return };
    let _noise = noise();
    let _neighbours = [(); 4].map(|()| Container::start(&image, &[], &["/hostile", "burn", "2"]));
    // Of 200 a third of the controls were late, of 800 two thirds.
    let limits = ["--pids-limit=800"];
    // Two seconds after the deadline. Measured: the controls 0.1 to 5.3, guarded 0.1 to 0.6.
    let late = |off| {
        let ran = bomb(&image, &limits, off, Duration::from_secs(10));
        ran.is_none_or(|records| records.last().unwrap()["resources"]["wall_ms"].as_u64().unwrap() > 5_000)
    };
    assert!((0..10).any(|_| late(Some("workload_priority"))), "control: in time without the guard, ten times");
    // One of five may be late for what else the machine does.
    let late = (0..5).filter(|_| late(None)).count();
    assert!(late <= 1, "{late} of 5 not sealed in time");
}

/// Whoever has used up the quota of a period does not run before the next: neither the worker that should stop, nor who writes the seal.
/// So the scrub leaves some of the last one.
#[test]
fn the_budget_of_the_scrub_is_kept_under_a_small_quota() {
    let Some(image) = Image::new() else { return };
    let flags = ["--read-only", "--cpus=0.2", "--memory=128m", "--cpu-shares=10240", "--env=SCRUB_BUDGET=300ms"];
    // By how many milliseconds it was overrun.
    let over = |guard| {
        let (code, stdout, stderr) = image.run(&flags, guard, &["litter", "/tmp", "40000"]);
        let seal = records(&stderr).pop().unwrap_or_else(|| panic!("{code:?}: {stdout}{stderr}"));
        let cleanup = &seal["cleanup"];
        assert_eq!((seal["cleanup_status"].as_str(), cleanup["budget_ms"].as_u64()), (Some("partial"), Some(300)));
        println!("{guard:?}: {} ms, {} removed", cleanup["used_ms"], cleanup["paths"][0]["entries_removed"]);
        cleanup["used_ms"].as_u64().unwrap().saturating_sub(300)
    };
    // Measured: of the controls two in five are late by more than 10 ms, up to 90.
    assert!((0..20).any(|_| over(Guard::Without("pace")) > 10), "control: in time without the guard, twenty times");
    in_three(|| {
        let late = (0..5).filter(|_| over(Guard::Full) > 10).count();
        // One may be late for what else the machine does.
        assert!(late <= 1, "{late} of 5 overran");
    });
}

/// Without a pids limit the bomb fills the memory, and every allocation of the kernel's waits for the OOM killer. The supervisor makes none
/// before it kills. When all are dead the kernel first pays off the CPU time they used beyond the quota: that is not in our hands.
#[test]
fn memory_and_a_fork_bomb() {
    let Some(image) = Image::new() else { return };
    let _noise = noise();
    let limits = ["--pids-limit=4000"];
    let patience = Duration::from_secs(20);
    let late = (0..3).any(|_| bomb(&image, &limits, Some("pressure"), patience).is_none());
    assert!(late, "control: in time without the guard, three times");
    // Not in quiet: the noise is our own.
    in_three_of(|| {
        let records = bomb(&image, &limits, None, patience).expect("not sealed in time");
        let kill = &records.last().unwrap()["escalation"][0];
        assert_eq!(
            (&kill["rung"], &kill["starved"]),
            (&"kill".into(), &true.into()),
            "no more can be afforded: {kill}"
        );
    });
}
