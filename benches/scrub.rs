//! The scrub against `rm -rf` on the same tree in the same run: alternating pairs, medians, raw samples under target/.
//!
//! `cargo bench --bench scrub -- [PAIRS] [WORD...]`; a WORD keeps only the cases whose name holds it. Each sample has a
//! tree of its own, made just before and synced, in a fresh directory below `/dev/shm` (tmpfs), target/ (disk) or on an
//! ext4 of its own in memory (ext4, root only: what the file system costs without what the disk costs). Nothing else is
//! ever deleted. One CPU is this process, and so both sides, bound to one. Beside the wall clock stands the CPU time of
//! both sides, which a busy machine changes less.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::cast_precision_loss
)]

use gracekeeper::kernel::clock;
use gracekeeper::scrub::job;
use gracekeeper::scrub::targets;
use gracekeeper::settings::ScrubMode;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// `BENCH_FILES` for places where 60,000 do not fit: a tmpfs page each is 240 MB.
fn files() -> usize {
    std::env::var("BENCH_FILES").map_or(60_000, |n| n.parse().unwrap())
}
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
    let ext4 = Ext4::mount();
    let allowed = sched_getaffinity(OURS).unwrap();
    let cpus: Vec<usize> = (0..CpuSet::count()).filter(|&c| allowed.is_set(c).unwrap_or(false)).collect();
    let mut raw = String::from("case,pair,rm_us,scrub_us,rm_cpu_us,scrub_cpu_us\n");
    let mut missed = 0;
    println!(
        "{:<18} {:>8} {:>8} {:>6} {:>7}   CPU:{:>8} {:>8} {:>6}",
        "case", "rm ms", "scrub", "ratio", "at most", "rm ms", "scrub", "ratio"
    );
    for case in cases(&target, ext4.as_ref().map(|e| e.0.path()), cpus.len()) {
        if !words.is_empty() && !words.iter().any(|w| case.name.contains(w.as_str())) {
            continue;
        }
        bind(cpus.get(..case.cpus).unwrap());
        let (mut rm, mut scrub) = (Vec::new(), Vec::new());
        for pair in 0..pairs {
            // Who goes first changes each time, so that whatever drifts hits both.
            let (r, s) = if pair % 2 == 0 {
                let r = sample(&case, removed_by_rm);
                (r, sample(&case, scrubbed))
            } else {
                let s = sample(&case, scrubbed);
                (sample(&case, removed_by_rm), s)
            };
            let us = |d: Duration| d.as_micros();
            writeln!(raw, "{},{pair},{},{},{},{}", case.name, us(r.0), us(s.0), us(r.1), us(s.1)).unwrap();
            rm.push(r);
            scrub.push(s);
        }
        bind(&cpus);
        let ratio = |of: fn(&Took) -> Duration| {
            median(rm.iter().zip(&scrub).map(|(r, s)| of(s).as_secs_f64() / of(r).as_secs_f64()))
        };
        let ms = |side: &[Took], of: fn(&Took) -> Duration| median(side.iter().map(|t| of(t).as_secs_f64() * 1e3));
        let verdict = if ratio(|t| t.0) <= case.at_most { "" } else { "  MISSED" };
        missed += usize::from(!verdict.is_empty());
        println!(
            "{:<18} {:>8.1} {:>8.1} {:>6.2} {:>7.2}       {:>8.1} {:>8.1} {:>6.2}{verdict}",
            case.name,
            ms(&rm, |t| t.0),
            ms(&scrub, |t| t.0),
            ratio(|t| t.0),
            case.at_most,
            ms(&rm, |t| t.1),
            ms(&scrub, |t| t.1),
            ratio(|t| t.1),
        );
    }
    let file = target.join("scrub-bench.csv");
    std::fs::write(&file, raw).unwrap();
    println!("raw samples: {}", file.display());
    drop(ext4);
    assert_eq!(missed, 0, "{missed} cases missed what they must reach");
}

/// Wall clock and CPU time.
type Took = (Duration, Duration);

/// An ext4 of its own on a loop device in memory.
struct Ext4(tempfile::TempDir, #[allow(dead_code)] tempfile::NamedTempFile);

impl Ext4 {
    fn mount() -> Option<Self> {
        let image = tempfile::NamedTempFile::new_in("/dev/shm").ok()?;
        image.as_file().set_len(2 << 30).ok()?;
        let on = tempfile::tempdir().ok()?;
        let ran = |program: &str, words: &[&std::ffi::OsStr]| {
            std::process::Command::new(program).args(words).status().is_ok_and(|s| s.success())
        };
        let path = image.path().as_os_str();
        let made = nix::unistd::geteuid().is_root()
            && ran("mkfs.ext4", &["-q".as_ref(), "-F".as_ref(), path])
            && ran("mount", &["-o".as_ref(), "loop".as_ref(), path, on.path().as_os_str()]);
        made.then_some(Self(on, image))
    }
}

impl Drop for Ext4 {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg(self.0.path()).status();
    }
}

fn cases(target: &Path, ext4: Option<&Path>, cpus: usize) -> Vec<Case> {
    let mut cases = Vec::new();
    let places = [("tmpfs", Some(Path::new("/dev/shm"))), ("ext4", ext4), ("disk", Some(target))];
    for (place, below) in places.into_iter().filter_map(|(place, below)| Some((place, below?))) {
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

fn sample(case: &Case, remove: fn(&Path) -> Took) -> Took {
    let outer = tempfile::Builder::new().prefix("gracekeeper-bench-").tempdir_in(&case.below).unwrap();
    let tree = outer.path().join("tree");
    for directory in 0..case.directories {
        let directory = tree.join(format!("directory-{directory}"));
        std::fs::create_dir_all(&directory).unwrap();
        for file in 0..files() / case.directories {
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

fn removed_by_rm(tree: &Path) -> Took {
    let cpu = cpu(UsageWho::RUSAGE_CHILDREN);
    let began = Instant::now();
    let status = std::process::Command::new("rm").arg("-rf").arg(tree).status().unwrap();
    let took = began.elapsed();
    assert!(status.success());
    (took, self::cpu(UsageWho::RUSAGE_CHILDREN) - cpu)
}

fn scrubbed(tree: &Path) -> Took {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    let mut targets = targets::resolve(&[tree.to_owned()], false, None, None, &[]);
    targets.iter_mut().for_each(|target| target.own_tmpfs = tree.starts_with("/dev/shm"));
    let cpu = cpu(UsageWho::RUSAGE_SELF);
    let began = Instant::now();
    let job = job::start(targets, None, clock::now().plus(Duration::from_secs(120)), ScrubMode::Delete, false);
    while !job.is_done() {
        poll(&mut [PollFd::new(job.fd().unwrap(), PollFlags::POLLIN)], PollTimeout::NONE).unwrap();
    }
    let took = (began.elapsed(), self::cpu(UsageWho::RUSAGE_SELF) - cpu);
    let report = job.report();
    assert_eq!(report.paths[0].status, "complete", "{report:?}");
    assert!(report.paths[0].entries_removed > files() as u64, "{report:?}");
    // On the machine's own tmpfs others write meanwhile.
    assert!(tree.starts_with("/dev/shm") || report.paths[0].bytes_removed >= 100 * files() as u64, "{report:?}");
    took
}

fn cpu(who: UsageWho) -> Duration {
    let usage = getrusage(who).unwrap();
    [usage.user_time(), usage.system_time()]
        .map(|t| Duration::from_micros(u64::try_from(t.num_microseconds()).unwrap()))
        .iter()
        .sum()
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
