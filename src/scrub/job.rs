//! The scrub as a job beside the loop: the loop keeps its signals and its deadline, and a file system that hangs costs the
//! cleanup, not the seal.

use super::targets::{Source, Target};
use super::walk::{Counts, Emptied, empty};
use crate::audit::record::{CleanedPath, Cleanup};
use crate::kernel::{clock, files};
use crate::machine::types::Instant;
use crate::settings::cli::printable;
use nix::errno::Errno;
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

/// What the worker and the loop share.
#[derive(Debug)]
struct Shared {
    until_ns: AtomicU64,
    paths: Vec<Progress>,
    done: Option<EventFd>,
}

#[derive(Debug)]
struct Progress {
    path: PathBuf,
    counts: Counts,
    result: OnceLock<(&'static str, Option<String>)>,
}

/// A running scrub.
#[derive(Debug)]
pub struct Job {
    shared: Arc<Shared>,
    began: Instant,
    budget: Duration,
}

/// Starts the scrub of `targets`, to stop at `until`. Without a thread (no memory, pids limit) it runs at once, here.
#[must_use]
pub fn start(targets: Vec<Target>, until: Instant) -> Job {
    let began = clock::now();
    let shared = Arc::new(Shared {
        until_ns: AtomicU64::new(nanos(until)),
        paths: targets
            .iter()
            .map(|t| Progress { path: t.path.clone(), counts: Counts::default(), result: OnceLock::new() })
            .collect(),
        done: EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK).ok(),
    });
    let job = Job { shared: Arc::clone(&shared), began, budget: until.since(began) };
    let targets = Arc::new(Mutex::new(Some(targets)));
    let theirs = Arc::clone(&targets);
    // Without a descriptor to wait on, the loop could not learn of the end.
    let thread = shared.done.as_ref().map(|_| {
        let shared = Arc::clone(&shared);
        std::thread::Builder::new().stack_size(128 * 1024).spawn(move || run(&shared, &theirs))
    });
    if !matches!(thread, Some(Ok(_))) {
        run(&shared, &targets);
    }
    job
}

impl Job {
    /// Readable when it is done; `None` where it ran at once.
    #[must_use]
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.shared.done.as_ref().map(AsFd::as_fd)
    }

    /// Whether every path has its result.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.shared.paths.iter().all(|p| p.result.get().is_some())
    }

    /// It has to stop at `until` now, if that is earlier.
    pub fn shorten(&self, until: Instant) {
        self.shared.until_ns.fetch_min(nanos(until), Ordering::Relaxed);
    }

    /// What was done so far. A worker that hangs in the kernel is not waited for: its path is `partial`.
    #[must_use]
    pub fn report(&self) -> Cleanup {
        Cleanup {
            paths: self
                .shared
                .paths
                .iter()
                .map(|p| {
                    let (status, why) = p
                        .result
                        .get()
                        .cloned()
                        .unwrap_or(("partial", Some("the scrub did not come back in time".into())));
                    CleanedPath {
                        path: printable(p.path.as_os_str()),
                        status: status.to_owned(),
                        entries_removed: p.counts.entries.load(Ordering::Relaxed),
                        bytes_removed: p.counts.bytes.load(Ordering::Relaxed),
                        why,
                    }
                })
                .collect(),
            budget_ms: millis(self.budget),
            used_ms: millis(clock::now().since(self.began)),
        }
    }
}

/// The cleanup's status in one word: the worst of its paths; `skipped` where every one was.
#[must_use]
pub fn status(cleanup: &Cleanup) -> &'static str {
    let any = |word: &str| cleanup.paths.iter().any(|p| p.status == word);
    if any("failed") {
        "failed"
    } else if any("partial") {
        "partial"
    } else if any("complete") {
        "complete"
    } else {
        "skipped"
    }
}

fn run(shared: &Shared, targets: &Mutex<Option<Vec<Target>>>) {
    let targets = targets.lock().map(|mut t| t.take()).unwrap_or_default().unwrap_or_default();
    for (target, progress) in targets.into_iter().zip(&shared.paths) {
        let _ = progress.result.set(one(target, &progress.counts, &shared.until_ns));
    }
    if let Some(done) = &shared.done {
        // The counter cannot overflow by one; the loop also has its deadline.
        let _ = done.write(1);
    }
}

fn one(target: Target, counts: &Counts, until: &AtomicU64) -> (&'static str, Option<String>) {
    let expired = || nanos(clock::now()) >= until.load(Ordering::Relaxed);
    let (fd, private) = match target.source {
        Source::Skipped(why) => return ("skipped", Some(why.to_owned())),
        Source::Private(fd) => (fd, true),
        Source::Path => match files::open_path(&target.path) {
            Ok(fd) => (fd, false),
            Err(Errno::ENOENT) => return ("skipped", Some("absent".to_owned())),
            Err(Errno::ELOOP) => return ("skipped", Some("a symlink".to_owned())),
            Err(errno) => return ("failed", Some(format!("open: {errno:?}"))),
        },
    };
    if files::is_read_only(fd.as_fd()) {
        return ("skipped", Some("read-only".to_owned()));
    }
    if expired() {
        return ("partial", Some("no time left".to_owned()));
    }
    match empty(fd, counts, &expired) {
        Emptied::Complete if private => match remove_itself(&target.path) {
            Ok(()) => ("complete", None),
            Err(errno) => ("failed", Some(format!("rmdir: {errno:?}"))),
        },
        Emptied::Complete => ("complete", None),
        Emptied::Partial => ("partial", Some("the budget was used up".to_owned())),
        Emptied::Failed(errno) => ("failed", Some(format!("{errno:?}"))),
    }
}

/// Removes the private directory's own name. rmdir(2) takes only an empty directory, so whatever the workload may have put
/// in its place is safe.
fn remove_itself(path: &Path) -> Result<(), Errno> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return Err(Errno::EINVAL) };
    let parent = files::open_path(parent)?;
    let name = std::ffi::CString::new(std::os::unix::ffi::OsStrExt::as_bytes(name)).map_err(|_| Errno::EINVAL)?;
    match files::rmdir(parent.as_fd(), &name) {
        Err(Errno::ENOENT) => Ok(()),
        result => result,
    }
}

fn nanos(at: Instant) -> u64 {
    u64::try_from(at.0.as_nanos()).unwrap_or(u64::MAX)
}

fn millis(d: Duration) -> u64 {
    u64::try_from(d.as_millis()).unwrap_or(u64::MAX)
}
