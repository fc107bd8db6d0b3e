//! A tree that changes while it is removed: a directory swapped for a symlink at every step, one that grows, files in use.

use super::places::*;
use gracekeeper::kernel::clock;
use gracekeeper::scrub::job::{self, Job};
use gracekeeper::scrub::targets;
use gracekeeper::settings::ScrubMode;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

fn started(tree: &Path, budget: Duration) -> Job {
    let targets = targets::resolve(&[tree.to_owned()], false, None, None, &[]);
    job::start(targets, None, clock::now().plus(budget), ScrubMode::Delete, false)
}

fn ended(job: &Job) {
    let late = Instant::now() + Duration::from_secs(60);
    while !job.is_done() {
        assert!(Instant::now() < late, "the scrub did not end");
        std::thread::yield_now();
    }
}

/// What a walker does that looks by name and then acts by name.
fn naive(dir: &Path) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    for entry in entries.flatten() {
        let path = entry.path();
        if fs::symlink_metadata(&path).is_ok_and(|m| m.is_dir()) {
            std::thread::yield_now();
            naive(&path);
            let _ = fs::remove_dir(&path);
        } else {
            let _ = fs::remove_file(&path);
        }
    }
}

struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Runs `walk` on a fresh tree up to `times` times, while another thread keeps exchanging each of its directories for a
/// symlink to the victim; how many exchanges there were, and after how many runs the victim had lost something.
fn race(times: usize, below: &Path, walk: impl Fn(&Path)) -> (u64, Option<usize>) {
    let victim = victim(below, false);
    let before = digest(&victim);
    let (stop, swaps) = (AtomicBool::new(false), AtomicU64::new(0));
    let tree = below.join("tree");
    std::thread::scope(|scope| {
        // Also when the test fails: nobody waits for ever.
        let _ends = Ends(&stop);
        scope.spawn(|| {
            let pairs =
                ["a", "a/b", "a/b/c", "d"].map(|d| (tree.join(d), tree.join(format!("{}-link", d.replace('/', "-")))));
            while !stop.load(Ordering::Relaxed) {
                for (dir, link) in &pairs {
                    let flags = nix::fcntl::RenameFlags::RENAME_EXCHANGE;
                    let at = nix::fcntl::AT_FDCWD;
                    let swapped = nix::fcntl::renameat2(at, dir.as_path(), at, link.as_path(), flags).is_ok();
                    swaps.fetch_add(u64::from(swapped), Ordering::Relaxed);
                }
            }
        });
        let mut lost = None;
        for run in 0..times {
            let fresh = below.join(format!("fresh-{run}"));
            for dir in ["a/b/c", "d"] {
                fs::create_dir_all(fresh.join(dir)).unwrap();
                (0..4).for_each(|i| fs::write(fresh.join(dir).join(format!("file-{i}")), "x").unwrap());
            }
            for link in ["a-link", "a-b-link", "a-b-c-link", "d-link"] {
                symlink(&victim, fresh.join(link)).unwrap();
            }
            fs::rename(&fresh, &tree).unwrap();
            walk(&tree);
            while tree.exists() {
                let _ = fs::remove_dir_all(&tree);
            }
            if (run % 50 == 49 || run + 1 == times) && (fs::read_dir(&victim).is_err() || digest(&victim) != before) {
                lost = Some(run);
                break;
            }
        }
        (swaps.load(Ordering::Relaxed), lost)
    })
}

#[test]
fn a_directory_swapped_for_a_symlink_at_every_step() {
    let place = tmpfs();
    let times = size(10_000, 2_000);
    let (swaps, lost) = race(times, &place.path(), |tree| ended(&started(tree, Duration::from_secs(20))));
    println!("{times} races, {swaps} exchanges");
    assert_eq!(lost, None, "the victim lost something");
    assert!(swaps as usize > times / 10, "only {swaps} exchanges: this was no race");
}

/// Control: the same race is lost by a walker that goes by names.
#[test]
fn a_naive_walker_loses_that_race() {
    let place = tmpfs();
    let (swaps, lost) = race(20_000, &place.path(), naive);
    println!("lost within {lost:?} races, {swaps} exchanges");
    assert!(lost.is_some(), "{swaps} exchanges and the naive walker did not lose");
}

#[test]
fn a_tree_that_grows_ends_at_the_budget() {
    let place = tmpfs();
    let tree = place.path().join("tree");
    fs::create_dir(&tree).unwrap();
    let stop = AtomicBool::new(false);
    let report = std::thread::scope(|scope| {
        let _ends = Ends(&stop);
        for thread in 0..2 {
            let (tree, stop) = (&tree, &stop);
            scope.spawn(move || {
                for i in 0u64.. {
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    let dir = tree.join(format!("{thread}-{}", i % 50));
                    let _ = fs::create_dir(&dir);
                    let _ = fs::write(dir.join(format!("{i}")), "grown");
                }
            });
        }
        while fs::read_dir(&tree).unwrap().count() < 20 {
            std::thread::yield_now();
        }
        let job = started(&tree, Duration::from_millis(300));
        ended(&job);
        job.report()
    });
    assert!(report.used_ms < 2_000, "{report:?}");
    assert!(report.paths[0].entries_removed > 20, "{report:?}");
    let job = started(&tree, Duration::from_secs(20));
    ended(&job);
    assert_eq!(job.report().paths[0].status, "complete");
}

#[test]
fn files_that_are_open_mapped_and_locked_go_all_the_same() {
    for place in [tmpfs(), ext4()] {
        let tree = place.path().join("tree");
        fs::create_dir(&tree).unwrap();
        let files: Vec<_> = (0..5)
            .map(|i| {
                let path = tree.join(format!("{i}"));
                fs::write(&path, vec![b'm'; 8192]).unwrap();
                fs::File::options().read(true).write(true).open(path).unwrap()
            })
            .collect();
        let locked =
            nix::fcntl::Flock::lock(files[0].try_clone().unwrap(), nix::fcntl::FlockArg::LockExclusive).unwrap();
        // SAFETY: a fresh mapping of an open file, 8192 bytes long, which stays as long as its pages are mapped.
        let mapped = unsafe {
            use std::os::fd::AsRawFd;
            libc::mmap(std::ptr::null_mut(), 8192, libc::PROT_READ, libc::MAP_SHARED, files[1].as_raw_fd(), 0)
        };
        assert_ne!(mapped, libc::MAP_FAILED);
        let inside = fs::File::open(&tree).unwrap();
        let job = started(&tree, Duration::from_secs(20));
        ended(&job);
        let report = job.report();
        assert_eq!((report.paths[0].status.as_str(), report.paths[0].entries_removed), ("complete", 5), "{report:?}");
        // SAFETY: mapped above, and the file it maps still exists without a name.
        assert_eq!(unsafe { *mapped.cast::<u8>() }, b'm');
        // SAFETY: as above.
        unsafe { libc::munmap(mapped, 8192) };
        drop((locked, inside));
    }
}

#[test]
fn a_mount_below_stays() {
    if !super::support::has("root") {
        return;
    }
    let place = tmpfs();
    let victim = victim(&place.path(), false);
    let before = digest(&victim);
    let tree = place.path().join("tree");
    fs::create_dir_all(tree.join("a/on/below")).unwrap();
    fs::write(tree.join("a/secret"), "x").unwrap();
    // The same file system bound below: only the mount tells it apart, not the device.
    ran("mount", &[&"--bind", &victim, &tree.join("a/on")]);
    let (run, path) = scrub(&tree, &[], &[]);
    let there = tree.join("a/on/sub/dir/file-3").exists();
    ran("umount", &[&tree.join("a/on")]);
    assert!(there, "{run:#?}");
    assert_eq!(digest(&victim), before);
    assert_eq!(
        (&path["status"], &path["why"], &path["entries_removed"]),
        (&"failed".into(), &"EBUSY".into(), &1.into())
    );
    // What the mount hid was not reachable; without it, it goes.
    assert_eq!(scrub(&tree, &[], &[]).1["status"], "complete");
}
