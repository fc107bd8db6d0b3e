//! The scrub as a job beside the loop: the loop keeps its signals and its deadline, and a file system that hangs costs the
//! cleanup, not the seal.

use super::crew::Crew;
use super::leftovers::Before;
use super::targets::Target;
use crate::audit::record::{CleanedPath, Cleanup, Zeroed};
use crate::kernel::{clock, cpu, memory};
use crate::machine::types::Instant;
use crate::settings::ScrubMode;
use crate::settings::cli::printable;
use crate::switches::without;
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// More workers than this have not been measured to gain anything, and each takes memory.
const WORKERS: u64 = 4;

/// A call that takes longer than this hangs, or might as well.
const NUDGE: Duration = Duration::from_millis(50);

/// A running scrub.
#[derive(Debug)]
pub struct Job {
    crew: Arc<Crew>,
    /// What is no file is to be removed too.
    leftovers: bool,
    paths: Vec<PathBuf>,
    began: Instant,
    nudged: Instant,
    budget: Duration,
}

/// Starts the scrub of `targets` and of what is no file but was not there `before`, to stop at `until`: one worker for each whole
/// CPU that may be used; where it is `crowded` (the memory limit is used up) one, which has what was set aside for it. Without a thread
/// (no memory, pids limit) it runs at once, here.
#[must_use]
pub fn start(targets: Vec<Target>, before: Option<Before>, until: Instant, mode: ScrubMode, crowded: bool) -> Job {
    let began = clock::now();
    let done = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK).ok();
    // Without a descriptor to wait on, the loop could not learn of the end.
    let beside = done.is_some();
    let paths = targets.iter().map(|t| t.path.clone()).collect();
    let most = if crowded { 1 } else { usize::try_from((cpu::available() / 1000).clamp(1, WORKERS)).unwrap_or(1) };
    let leftovers = before.is_some();
    let crew = Arc::new(Crew::new(targets, before, until, most, crowded, mode == ScrubMode::Zero, done));
    if crowded && !without("relief") {
        memory::use_what_was_set_aside();
    }
    if !crew.glance() && (!beside || !crew.hire()) {
        crew.work_alone();
    }
    Job { crew, leftovers, paths, began, nudged: began, budget: until.since(began) }
}

impl Job {
    /// Readable when it is done; `None` where it ran at once.
    #[must_use]
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.crew.done.as_ref().map(AsFd::as_fd)
    }

    /// Whether it has ended: every path has its result, and no count changes any more.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.crew.is_done()
    }

    /// When somebody has to look whether it hangs.
    #[must_use]
    pub fn due(&self) -> Option<Instant> {
        (!self.is_done()).then_some(self.nudged.plus(NUDGE))
    }

    /// Looks whether it hangs: then somebody else goes on with what is left.
    pub fn nudge(&mut self) {
        let now = clock::now();
        if self.due().is_none_or(|due| now < due) {
            return;
        }
        self.nudged = now;
        if !without("nudge") {
            self.crew.nudge();
        }
    }

    /// It has to stop at `until` now, if that is earlier.
    pub fn shorten(&self, until: Instant) {
        self.crew.shorten(until);
    }

    /// What was done so far. A worker that hangs in the kernel is not waited for: its path is `partial`.
    #[must_use]
    pub fn report(&self) -> Cleanup {
        if !self.crew.is_done() {
            // Else a worker that was only late goes on, and the counts are those of another time.
            self.crew.stop();
        }
        let paths = self.paths.iter().zip(&self.crew.trees).map(|(path, tree)| {
            let hangs = || ("partial", Some("the scrub did not come back in time".to_owned()));
            let (status, why) = tree.verdict().cloned().unwrap_or_else(hangs);
            let (entries_removed, bytes_removed) = tree.counts();
            CleanedPath {
                path: printable(path.as_os_str()),
                status: status.to_owned(),
                entries_removed,
                bytes_removed,
                why,
                zeroed: tree.zeroed.as_ref().map(|z| Zeroed {
                    files: z.files.load(Ordering::Relaxed),
                    bytes: z.bytes.load(Ordering::Relaxed),
                    skipped: z.skipped.load(Ordering::Relaxed),
                    why: z.why(),
                }),
            }
        });
        let cleared = *self.crew.leftovers();
        Cleanup {
            paths: paths.collect(),
            ipc: cleared.map(|c| c.ipc),
            in_doubt: self.leftovers && cleared.is_none_or(|c| c.cut_off || c.doubtful),
            budget_ms: millis(self.budget.saturating_add(Duration::from_micros(999))),
            used_ms: millis(clock::now().since(self.began)),
        }
    }
}

/// The cleanup's status in one word: the worst of its paths, and `partial` where something that is no file may be left; `skipped`
/// where every path was.
#[must_use]
pub fn status(cleanup: &Cleanup) -> &'static str {
    let any = |word: &str| cleanup.paths.iter().any(|p| p.status == word);
    if any("failed") {
        "failed"
    } else if any("partial") || cleanup.in_doubt {
        "partial"
    } else if any("complete") {
        "complete"
    } else {
        "skipped"
    }
}

fn millis(d: Duration) -> u64 {
    u64::try_from(d.as_millis()).unwrap_or(u64::MAX)
}
