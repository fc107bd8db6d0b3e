//! File systems that fail: each scrub ends inside its budget, says what happened, and counts truly.

use super::places::*;
use super::support::has;
use super::trees::make;
use std::fs;
use std::io::{Read, Write};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

fn strace(inject: &str) -> Vec<String> {
    let call = inject.split(':').next().unwrap();
    let words = format!("strace -f -qq -o /dev/null -e trace={call} -e inject={inject}");
    words.split(' ').map(str::to_owned).collect()
}

/// Also where the tree's own file system failed half-way.
fn counts_are_true(path: &serde_json::Value, tree: &Path, entries: u64) {
    assert_eq!(path["entries_removed"].as_u64().unwrap() + count(tree), entries, "{path}");
}

#[test]
fn a_call_that_always_fails_is_said_and_one_that_fails_once_is_made_again() {
    if !has("strace") {
        return;
    }
    let place = tmpfs();
    for errno in ["EIO", "EBUSY", "EPERM", "EROFS", "ENOSPC", "EACCES"] {
        let below = tempfile::tempdir_in(place.path()).unwrap();
        let tree = make("bits", below.path(), false);
        let entries = count(&tree);
        let (run, path) = scrub(&tree, &strace(&format!("unlinkat:error={errno}")), &["--scrub-budget", "20s"]);
        assert_eq!((&path["status"], &path["why"]), (&"failed".into(), &errno.into()), "{run:#?}");
        assert_eq!(path["entries_removed"], 0, "{path}");
        counts_are_true(&path, &tree, entries);
        // Control for the injection, and for a fault that passes. strace(1) counts for each thread: of two workers the second may be
        // refused something in the directory that the first was refused, and with nothing else gone in between neither is asked for again.
        let once = ["taskset", "-c", "0"].map(str::to_owned).into_iter();
        let once = once.chain(strace(&format!("unlinkat:error={errno}:when=3"))).collect::<Vec<_>>();
        let (run, path) = scrub(&tree, &once, &["--scrub-budget", "20s"]);
        assert_eq!(path["status"], "complete", "{errno}: {run:#?}");
        assert_eq!(path["entries_removed"], entries, "{errno}: {path}");
    }
}

#[test]
fn a_directory_that_cannot_be_read_or_opened_is_said() {
    if !has("strace") {
        return;
    }
    let place = tmpfs();
    for (call, errno) in [("getdents64", "EIO"), ("openat2", "EIO"), ("openat2", "EMFILE"), ("getdents64", "ENOMEM")] {
        let below = tempfile::tempdir_in(place.path()).unwrap();
        let tree = make("bits", below.path(), false);
        let entries = count(&tree);
        let mut traced = strace(&format!("{call}:error={errno}"));
        if call == "getdents64" {
            // Not of /proc, which is listed as well.
            traced.extend(["-P".to_owned(), tree.to_str().unwrap().to_owned()]);
        }
        let (run, path) = scrub(&tree, &traced, &["--scrub-budget", "20s"]);
        assert_eq!(path["status"], "failed", "{call} {errno}: {run:#?}");
        assert!(path["why"].as_str().unwrap().ends_with(errno), "{path}");
        counts_are_true(&path, &tree, entries);
    }
}

#[test]
fn a_file_system_that_turns_read_only_half_way() {
    if !has("strace") || !has("root") {
        return;
    }
    let place = ext4();
    // Always of this size: the counting below is to be quick, and the delays are to last for longer.
    let tree = place.path().join("tree");
    for directory in 0..40 {
        let directory = tree.join(format!("{directory}"));
        std::fs::create_dir_all(&directory).unwrap();
        (0..250).for_each(|n| std::fs::write(directory.join(format!("{n}")), "x").unwrap());
    }
    let entries = count(&tree);
    // Slowed down, so that half-way can be met.
    let (run, path) = std::thread::scope(|scope| {
        let running = scope.spawn(|| {
            scrub(&tree, &strace("unlinkat:delay_exit=500"), &["--scrub-budget", "50s", "--audit-level", "basic"])
        });
        let deadline = Instant::now() + Duration::from_secs(50);
        while count(&tree) + 50 > entries {
            assert!(Instant::now() < deadline, "the scrub did not begin");
        }
        // EBUSY while somebody is in the middle of a call that writes: the kernel takes the file system between two of them.
        while !Command::new("mount").args(["-o", "remount,ro"]).arg(place.path()).output().unwrap().status.success() {
            assert!(Instant::now() < deadline, "it cannot be remounted");
        }
        running.join().unwrap()
    });
    assert_eq!((&path["status"], &path["why"]), (&"failed".into(), &"EROFS".into()), "{run:#?}");
    assert!(path["entries_removed"].as_u64().unwrap() > 0 && count(&tree) > 0, "{path}");
    counts_are_true(&path, &tree, entries);
    // And one that was from the start is no fault.
    assert_eq!(scrub(&tree, &[], &[]).1["status"], "skipped");
    ran("mount", &[&"-o", &"remount,rw", &place.path()]);
    assert_eq!(scrub(&tree, &[], &["--scrub-budget", "50s"]).1["status"], "complete");
}

/// A FUSE file system that answers its first question and then nothing any more.
pub struct Hanging<'a>(&'a Path, Option<fs::File>);

impl<'a> Hanging<'a> {
    pub fn mount(on: &'a Path) -> Option<Self> {
        let mut device = fs::File::options().read(true).write(true).open("/dev/fuse").ok()?;
        let number = std::os::fd::AsRawFd::as_raw_fd(&device);
        let options = std::ffi::CString::new(format!("fd={number},rootmode=40000,user_id=0,group_id=0")).unwrap();
        let path = std::ffi::CString::new(on.to_str().unwrap()).unwrap();
        // SAFETY: four strings that live through the call.
        let result = unsafe {
            let (from, kind) = (c"hanging".as_ptr(), c"fuse".as_ptr());
            libc::mount(from, path.as_ptr(), kind, libc::MS_NODEV | libc::MS_NOSUID, options.as_ptr().cast())
        };
        if result != 0 {
            return None;
        }
        // FUSE_INIT: header 40 bytes, its `unique` at 8. The answer: length, error, unique, then fuse_init_out, 64 bytes.
        let mut asked = vec![0; 1 << 17];
        let read = device.read(&mut asked).unwrap();
        assert!(read >= 48 && asked[4] == 26, "not FUSE_INIT");
        let mut answer = vec![0; 80];
        answer[..4].copy_from_slice(&80u32.to_ne_bytes());
        answer[8..16].copy_from_slice(&asked[8..16]);
        answer[16..20].copy_from_slice(&7u32.to_ne_bytes());
        answer[20..24].copy_from_slice(&31u32.to_ne_bytes());
        answer[36..40].copy_from_slice(&4096u32.to_ne_bytes());
        device.write_all(&answer).unwrap();
        Some(Self(on, Some(device)))
    }
}

impl Drop for Hanging<'_> {
    fn drop(&mut self) {
        // Without its server the kernel answers whoever still waits.
        self.1.take();
        let _ = std::process::Command::new("umount").arg("-l").arg(self.0).status();
    }
}

#[test]
fn a_fuse_mount_that_hangs_costs_the_cleanup_and_not_the_seal() {
    if !has("root") {
        return;
    }
    let place = tmpfs();
    let on = place.path().join("hanging");
    fs::create_dir(&on).unwrap();
    let Some(hanging) = Hanging::mount(&on) else {
        println!("skipped: no FUSE here");
        return;
    };
    let mut best = u64::MAX;
    for _ in 0..5 {
        let began = Instant::now();
        let (run, path) = scrub(&on, &[], &["--scrub-budget", "300ms"]);
        assert_eq!(path["status"], "partial", "{run:#?}");
        assert_eq!(path["why"], "the scrub did not come back in time", "{run:#?}");
        assert!(began.elapsed() < Duration::from_secs(20), "it did not exit");
        best = best.min(run.seal()["cleanup"]["used_ms"].as_u64().unwrap());
        if best <= 320 {
            break;
        }
    }
    drop(hanging);
    assert!((300..=320).contains(&best), "{best} ms");
}
