//! The scrub against `rm -rf` on the same tree in the same run: alternating pairs, medians, raw samples under target/.
//!
//! `cargo bench --bench scrub -- [PAIRS] [WORD...]`; a WORD keeps only the cases whose name holds it. Each sample has a
//! tree of its own, made just before and synced, in a fresh directory below `/dev/shm` (tmpfs) or target/ (disk), and
//! nothing else is ever deleted. One CPU is this process, and so both sides, bound to one.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::cast_precision_loss
)]

use gracekeeper::kernel::clock;
use gracekeeper::scrub::job;
use gracekeeper::scrub::targets::{Source, Target};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const FILES: usize = 60_000;
const OURS: nix::unistd::Pid = nix::unistd::Pid::from_raw(0);

struct Case {
    name: String,
    below: PathBuf,
    directories: usize,
    cpus: usize,
    at_most: f64,
}

fn main() {
    let mut words: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with("--")).collect();
    let pairs = words.first().and_then(|w| w.parse().ok()).inspect(|_: &usize| drop(words.remove(0))).unwrap_or(11);
    let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("target");
    let allowed = sched_getaffinity(OURS).unwrap();
    let cpus: Vec<usize> = (0..CpuSet::count()).filter(|&c| allowed.is_set(c).unwrap_or(false)).collect();
    let mut raw = String::from("case,pair,rm_us,scrub_us\n");
    let mut missed = 0;
    println!("{:<28} {:>9} {:>9} {:>7} {:>8}", "case", "rm ms", "scrub ms", "ratio", "at most");
    for case in cases(&target, cpus.len()) {
        if !words.is_empty() && !words.iter().any(|w| case.name.contains(w.as_str())) {
            continue;
        }
        bind(cpus.get(..case.cpus).unwrap());
        let (mut rm, mut scrub, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
        for pair in 0..pairs {
            // Who goes first changes each time, so that whatever drifts hits both.
            let (r, s) = if pair % 2 == 0 {
                let r = sample(&case, removed_by_rm);
                (r, sample(&case, scrubbed))
            } else {
                let s = sample(&case, scrubbed);
                (sample(&case, removed_by_rm), s)
            };
            writeln!(raw, "{},{pair},{},{}", case.name, r.as_micros(), s.as_micros()).unwrap();
            ratios.push(s.as_secs_f64() / r.as_secs_f64());
            rm.push(r.as_secs_f64() * 1e3);
            scrub.push(s.as_secs_f64() * 1e3);
        }
        bind(&cpus);
        let ratio = median(&mut ratios);
        let verdict = if ratio <= case.at_most { "" } else { "  MISSED" };
        missed += usize::from(ratio > case.at_most);
        println!(
            "{:<28} {:>9.1} {:>9.1} {ratio:>7.2} {:>8.2}{verdict}",
            case.name,
            median(&mut rm),
            median(&mut scrub),
            case.at_most
        );
    }
    let file = target.join("scrub-bench.csv");
    std::fs::write(&file, raw).unwrap();
    println!("raw samples: {}", file.display());
    assert_eq!(missed, 0, "{missed} cases missed what they must reach");
}

fn cases(target: &Path, cpus: usize) -> Vec<Case> {
    let mut cases = Vec::new();
    for (place, below) in [("tmpfs", Path::new("/dev/shm")), ("disk", target)] {
        for (shape, directories) in [("many", 600), ("flat", 1)] {
            for n in [1, 2] {
                if n <= cpus {
                    let at_most = if n == 2 && directories > 1 { 0.65 } else { 0.95 };
                    let name = format!("{place}-{shape}-{n}cpu");
                    cases.push(Case { name, below: below.to_owned(), directories, cpus: n, at_most });
                }
            }
        }
    }
    cases
}

fn bind(cpus: &[usize]) {
    let mut set = CpuSet::new();
    for &cpu in cpus {
        set.set(cpu).unwrap();
    }
    sched_setaffinity(OURS, &set).unwrap();
}

fn sample(case: &Case, remove: fn(&Path) -> Duration) -> Duration {
    let outer = tempfile::Builder::new().prefix("gracekeeper-bench-").tempdir_in(&case.below).unwrap();
    let tree = outer.path().join("tree");
    for directory in 0..case.directories {
        let directory = tree.join(format!("directory-{directory}"));
        std::fs::create_dir_all(&directory).unwrap();
        for file in 0..FILES / case.directories {
            std::fs::write(directory.join(format!("file-{file}.txt")), [b'x'; 100]).unwrap();
        }
    }
    let opened = std::fs::File::open(outer.path()).unwrap();
    nix::unistd::syncfs(opened).unwrap();
    let took = remove(&tree);
    let left = std::fs::read_dir(&tree).map_or(0, Iterator::count);
    assert_eq!(left, 0, "{} left in {}", left, tree.display());
    took
}

fn removed_by_rm(tree: &Path) -> Duration {
    let began = Instant::now();
    let status = std::process::Command::new("rm").arg("-rf").arg(tree).status().unwrap();
    let took = began.elapsed();
    assert!(status.success());
    took
}

fn scrubbed(tree: &Path) -> Duration {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    let target = Target { path: tree.to_owned(), source: Source::Path };
    let began = Instant::now();
    let job = job::start(vec![target], clock::now().plus(Duration::from_secs(60)));
    while !job.is_done() {
        poll(&mut [PollFd::new(job.fd().unwrap(), PollFlags::POLLIN)], PollTimeout::NONE).unwrap();
    }
    let took = began.elapsed();
    let report = job.report();
    assert_eq!(report.paths[0].status, "complete", "{report:?}");
    assert!(report.paths[0].entries_removed > FILES as u64 && report.paths[0].bytes_removed == 100 * FILES as u64);
    took
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
