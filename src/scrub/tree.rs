//! How far the scrub of one target is, and what becomes of it.
//!
//! Invariant: the first verdict stands.

use super::node::{Node, UNCHANGED};
use super::targets::{Kept, Source, Target};
use super::zero::Zeroed;
use crate::kernel::files;
use nix::errno::Errno;
use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// A path's status and why it is not `complete`.
pub type Verdict = (&'static str, Option<String>);

/// One target's progress. A reader may look while the work goes on, or hangs.
#[derive(Debug, Default)]
pub struct Tree {
    /// It is no tmpfs.
    disk: AtomicBool,
    /// The space in use before, where the file system is a tmpfs of our own: then no file has to be asked for its size.
    used: Mutex<Option<(u64, OwnedFd)>>,
    measured: AtomicBool,
    entries: AtomicU64,
    bytes: AtomicU64,
    verdict: OnceLock<Verdict>,
    /// With `--scrub-mode zero`: what was overwritten.
    pub zeroed: Option<Zeroed>,
    /// The private directory, to be removed itself.
    itself: Option<PathBuf>,
    /// What stays.
    keeps: Vec<Kept>,
    /// What is said of it though it was emptied.
    note: Option<String>,
    /// It is not where it was.
    displaced: OnceLock<&'static str>,
    /// The mode its top had, where that was changed.
    mode: OnceLock<u32>,
    /// Directories open, of all trees together.
    pub open: Arc<AtomicUsize>,
}

impl Tree {
    /// Of a target, which gives away what only this needs; `open` counts for all trees of a crew.
    pub fn new(target: &mut Target, zero: bool, open: &Arc<AtomicUsize>) -> Self {
        Self {
            itself: matches!(target.source, Source::Private(_)).then(|| target.path.clone()),
            zeroed: zero.then(Zeroed::default),
            keeps: std::mem::take(&mut target.keeps),
            note: target.note.take(),
            open: Arc::clone(open),
            ..Self::default()
        }
    }

    /// Entries removed so far.
    #[must_use]
    pub fn entries(&self) -> u64 {
        self.entries.load(Ordering::Relaxed)
    }

    /// Whether a disk may be behind it, which likes some orders better than others.
    #[must_use]
    pub fn is_on_disk(&self) -> bool {
        self.disk.load(Ordering::Relaxed)
    }

    /// An entry is gone, and so many bytes with it.
    pub fn removed(&self, bytes: u64) {
        self.entries.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Whether files have to be asked for their sizes.
    #[must_use]
    pub fn asks_sizes(&self) -> bool {
        !self.measured.load(Ordering::Relaxed)
    }

    /// Whether some of its entries stay.
    #[must_use]
    pub const fn keeps_any(&self) -> bool {
        !self.keeps.is_empty()
    }

    /// Whether this stays.
    #[must_use]
    pub fn keeps(&self, found: Kept) -> bool {
        self.keeps.contains(&found)
    }

    /// The mode its top has, before it is changed: the first stands.
    pub fn had_mode(&self, mode: u32) {
        let _ = self.mode.set(mode);
    }

    /// The mode its top had, where that was changed when it was opened.
    #[must_use]
    pub fn mode(&self) -> u32 {
        self.mode.get().copied().unwrap_or(UNCHANGED)
    }

    /// It is not where it was, or not what it was.
    pub fn displace(&self, why: &'static str) {
        let _ = self.displaced.set(why);
    }

    /// Entries and bytes removed so far.
    #[must_use]
    pub fn counts(&self) -> (u64, u64) {
        let used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        let freed = used.as_ref().map(freed);
        (self.entries.load(Ordering::Relaxed), freed.unwrap_or_else(|| self.bytes.load(Ordering::Relaxed)))
    }

    /// Its verdict, once it has one.
    #[must_use]
    pub fn verdict(&self) -> Option<&Verdict> {
        self.verdict.get()
    }

    /// The first verdict stands.
    pub fn conclude(&self, verdict: Verdict) {
        // The descriptor goes with the work: there may be many targets.
        let used = self.used.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(used) = used {
            self.bytes.store(freed(&used), Ordering::Relaxed);
        }
        let _ = self.verdict.set(verdict);
    }

    /// Its work is done; `why` something is left in it, if there is.
    pub(super) fn done(&self, top: &Node, why: Option<Errno>) {
        top.give_back_mode();
        self.conclude(match (why, self.displaced.get(), self.itself.as_deref().map(remove_itself)) {
            (Some(errno), ..) => ("failed", Some(format!("{errno:?}"))),
            (None, Some(why), _) => ("failed", Some((*why).to_owned())),
            (None, None, Some(Err(errno))) => ("failed", Some(format!("rmdir: {errno:?}"))),
            (None, None, None | Some(Ok(()))) => ("complete", self.note.clone()),
        });
    }

    /// Notes what `top` is on. `own` says that nobody but the workload writes to a tmpfs here.
    pub fn begin(&self, top: &OwnedFd, own: bool) {
        self.disk.store(files::file_system(top.as_fd()) != libc::TMPFS_MAGIC, Ordering::Relaxed);
        if let Some(zeroed) = &self.zeroed {
            zeroed.begin(top.as_fd());
        }
        if own
            && let Some(used) = files::tmpfs_used(top.as_fd())
            && let Ok(fd) = top.try_clone()
        {
            *self.used.lock().unwrap_or_else(PoisonError::into_inner) = Some((used, fd));
            self.measured.store(true, Ordering::Relaxed);
        }
    }
}

fn freed((before, fd): &(u64, OwnedFd)) -> u64 {
    files::tmpfs_used(fd.as_fd()).map_or(0, |after| before.saturating_sub(after))
}

/// Removes the private directory's own name. rmdir(2) takes only an empty directory, so whatever the workload may have put
/// in its place is safe.
fn remove_itself(path: &Path) -> Result<(), Errno> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return Err(Errno::EINVAL) };
    let parent = files::open_path(parent)?;
    let name = CString::new(name.as_bytes()).map_err(|_| Errno::EINVAL)?;
    match files::rmdir(parent.as_fd(), &name) {
        Err(Errno::ENOENT) => Ok(()),
        result => result,
    }
}
