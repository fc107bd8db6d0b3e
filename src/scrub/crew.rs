//! The crew: the workers of one scrub and what they share. Work lies on a stack, so that a tree is emptied depth first and
//! the descriptors in use are bounded; nobody waits for a worker that hangs but the scrub's own deadline.
//!
//! Invariant: whoever leaves last reports the end, so no count changes after it.

use super::leftovers::{Before, Cleared};
use super::node::{Node, Settled};
use super::targets::{Source, Target};
use super::walk;
use super::zero::Zeroed;
use crate::kernel::{clock, files};
use crate::machine::types::Instant;
use crate::switches::without;
use nix::errno::Errno;
use nix::sys::eventfd::EventFd;
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

/// A path's status and why it is not `complete`.
pub type Verdict = (&'static str, Option<String>);

/// One target's progress. A reader may look while the work goes on, or hangs.
#[derive(Debug, Default)]
pub struct Tree {
    device: OnceLock<u64>,
    /// It is no tmpfs.
    disk: AtomicBool,
    /// The space in use before, where the file system is a tmpfs of our own: then no file has to be asked for its size.
    used: OnceLock<(u64, OwnedFd)>,
    entries: AtomicU64,
    bytes: AtomicU64,
    verdict: OnceLock<Verdict>,
    /// With `--scrub-mode zero`: what was overwritten.
    pub zeroed: Option<Zeroed>,
    /// The private directory, to be removed itself.
    itself: Option<PathBuf>,
}

impl Tree {
    /// The device its top is on.
    #[must_use]
    pub fn device(&self) -> u64 {
        self.device.get().copied().unwrap_or_default()
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
        self.used.get().is_none()
    }

    /// Entries and bytes removed so far.
    #[must_use]
    pub fn counts(&self) -> (u64, u64) {
        let freed = self
            .used
            .get()
            .map(|(before, fd)| files::tmpfs_used(fd.as_fd()).map_or(0, |after| before.saturating_sub(after)));
        (self.entries.load(Ordering::Relaxed), freed.unwrap_or_else(|| self.bytes.load(Ordering::Relaxed)))
    }

    /// Its verdict, once it has one.
    #[must_use]
    pub fn verdict(&self) -> Option<&Verdict> {
        self.verdict.get()
    }

    /// The first verdict stands.
    pub fn conclude(&self, verdict: Verdict) {
        let _ = self.verdict.set(verdict);
    }

    /// Nothing is left in it.
    fn emptied(&self) {
        self.conclude(match self.itself.as_deref().map(remove_itself) {
            None | Some(Ok(())) => ("complete", None),
            Some(Err(errno)) => ("failed", Some(format!("rmdir: {errno:?}"))),
        });
    }

    /// Notes what `top` is on. `own` says that nobody but the workload writes to a tmpfs here.
    ///
    /// # Errors
    /// The errno of fstat(2).
    pub fn begin(&self, top: &OwnedFd, own: bool) -> Result<(), Errno> {
        let _ = self.device.set(files::device(top.as_fd())?);
        self.disk.store(files::file_system(top.as_fd()) != libc::TMPFS_MAGIC, Ordering::Relaxed);
        if let Some(zeroed) = &self.zeroed {
            zeroed.begin(top.as_fd());
        }
        if own
            && let Some(used) = files::tmpfs_used(top.as_fd())
            && let Ok(fd) = top.try_clone()
        {
            let _ = self.used.set((used, fd));
        }
        Ok(())
    }
}

/// Something to do.
#[derive(Debug)]
pub enum Work {
    /// Remove what is no file.
    Leftovers(Before),
    /// Open and empty the target of this number.
    Open(usize, Target),
    /// Read on in a directory.
    Read(Arc<Node>),
    /// Enter directories, the last name first.
    Enter(Arc<Node>, Names),
    /// Remove files that another worker found.
    Files(Arc<Node>, Names),
}

/// Names in one allocation.
#[derive(Debug, Default)]
pub struct Names(Vec<u8>);

impl Names {
    /// One more.
    pub fn push(&mut self, name: &CStr) {
        self.0.extend_from_slice(name.to_bytes_with_nul());
    }

    /// The last one.
    pub fn pop(&mut self) -> Option<CString> {
        let end = self.0.len().checked_sub(1)?;
        let start = self.0.get(..end)?.iter().rposition(|&b| b == 0).map_or(0, |nul| nul.saturating_add(1));
        let name = CString::new(self.0.get(start..end)?).ok()?;
        self.0.truncate(start);
        Some(name)
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[derive(Debug, Default)]
struct Stack {
    work: Vec<Work>,
    /// Workers that are doing something.
    busy: usize,
}

/// The workers of one scrub.
#[derive(Debug)]
pub struct Crew {
    stack: Mutex<Stack>,
    bell: Condvar,
    until_ns: AtomicU64,
    most: usize,
    present: AtomicUsize,
    idle: AtomicUsize,
    expired: AtomicBool,
    ended: AtomicBool,
    roomy: AtomicBool,
    /// What became of what is no file, so far.
    leftovers: Mutex<Option<Cleared>>,
    /// The trees, in the order of the targets.
    pub trees: Vec<Arc<Tree>>,
    /// For names that no entry has.
    pub fresh: AtomicU64,
    /// Written to at the end.
    pub done: Option<EventFd>,
}

impl Crew {
    /// A crew of at most `most` workers for `targets` and for what is no file but was not there `before`.
    #[must_use]
    pub fn new(
        targets: Vec<Target>,
        before: Option<Before>,
        until: Instant,
        most: usize,
        zero: bool,
        done: Option<EventFd>,
    ) -> Self {
        let itself = |t: &Target| matches!(t.source, Source::Private(_)).then(|| t.path.clone());
        let trees = targets
            .iter()
            .map(|t| Arc::new(Tree { itself: itself(t), zeroed: zero.then(Zeroed::default), ..Tree::default() }))
            .collect();
        // The stack's top is its end: the first target first, and those in memory before those on a disk. They may be what has used up
        // the memory limit, and everything else needs some.
        let (memory, disk): (Vec<_>, Vec<_>) = targets
            .into_iter()
            .enumerate()
            .rev()
            .partition(|(_, t)| (t.own_tmpfs || t.at_hand) && !without("memory_first"));
        let open = |(i, target)| Work::Open(i, target);
        // What is no file between them: it must not wait for a disk that hangs, nor they for it.
        let work = disk.into_iter().map(open).chain(before.map(Work::Leftovers)).chain(memory.into_iter().map(open));
        let work = work.collect();
        let seed = crate::kernel::random::sixteen_bytes().unwrap_or_default();
        Self {
            stack: Mutex::new(Stack { work, busy: 0 }),
            bell: Condvar::new(),
            until_ns: AtomicU64::new(nanos(until)),
            most,
            present: AtomicUsize::new(0),
            idle: AtomicUsize::new(0),
            expired: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            roomy: AtomicBool::new(false),
            leftovers: Mutex::new(None),
            trees,
            fresh: AtomicU64::new(seed.first_chunk().map_or(0, |b| u64::from_ne_bytes(*b)) >> 1),
            done,
        }
    }

    /// How deep a directory may be entered: with every worker at a depth of its own, still few descriptors.
    #[must_use]
    pub fn window(&self) -> usize {
        walk::DESCRIPTORS.checked_div(self.most).unwrap_or(1).max(2)
    }

    /// It has to stop at `until` now, if that is earlier.
    pub fn shorten(&self, until: Instant) {
        self.until_ns.fetch_min(nanos(until), Ordering::Relaxed);
        self.bell.notify_all();
    }

    /// Nothing more is to be removed: what was counted is about to be written down.
    pub fn stop(&self) {
        self.expired.store(true, Ordering::Relaxed);
        self.bell.notify_all();
    }

    /// Whether somebody has found that the time is up.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        self.expired.load(Ordering::Relaxed)
    }

    /// Whether the time is up.
    pub fn is_over(&self) -> bool {
        let over = self.expired.load(Ordering::Relaxed) || nanos(clock::now()) >= self.until_ns.load(Ordering::Relaxed);
        if over {
            self.expired.store(true, Ordering::Relaxed);
        }
        over
    }

    /// Whether the caller may have a large buffer: who asks first may, and nobody after.
    #[must_use]
    pub fn claim_room(&self) -> bool {
        !self.roomy.swap(true, Ordering::Relaxed)
    }

    /// Whether somebody would take work, or could be hired for it.
    #[must_use]
    pub fn has_hands(&self) -> bool {
        self.idle.load(Ordering::Relaxed) > 0 || self.present.load(Ordering::Relaxed) < self.most
    }

    /// Whether the last worker has left.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    fn stack(&self) -> MutexGuard<'_, Stack> {
        self.stack.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// More to do, the last first.
    pub fn push(&self, work: impl IntoIterator<Item = Work>) {
        self.stack().work.extend(work);
    }

    /// Something to do when there is nothing else.
    pub fn push_last(&self, work: Work) {
        self.stack().work.insert(0, work);
    }

    /// What became of what is no file, so far; `None` where nobody came to it.
    pub fn leftovers(&self) -> MutexGuard<'_, Option<Cleared>> {
        self.leftovers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// There is enough to do for one more. Nobody is called for less: handing a chain of directories from one CPU to the
    /// other costs more than it saves.
    pub fn call(self: &Arc<Self>) {
        if self.idle.load(Ordering::Relaxed) > 0 {
            self.bell.notify_all();
        } else {
            self.hire();
        }
    }

    /// One more worker, where there may be one; whether it was hired. A thread that cannot be had (pids limit, no memory) is
    /// done without.
    pub fn hire(self: &Arc<Self>) -> bool {
        let room = |n: usize| (n < self.most).then(|| n.saturating_add(1));
        if self.present.fetch_update(Ordering::AcqRel, Ordering::Relaxed, room).is_err() {
            return false;
        }
        let crew = Arc::clone(self);
        let hired = std::thread::Builder::new().stack_size(walk::STACK).spawn(move || crew.work()).is_ok();
        if !hired {
            self.present.fetch_sub(1, Ordering::AcqRel);
        }
        hired
    }

    /// Does here what holds nobody up: IPC tables with nothing in them, what is skipped, and empty directories at hand. Whether that
    /// was all: most runs leave nothing, and need no thread to find it out.
    pub fn glance(self: &Arc<Self>) -> bool {
        let work = std::mem::take(&mut self.stack().work);
        let left: Vec<Work> = work.into_iter().filter_map(|work| walk::glance(self, work)).collect();
        let all = left.is_empty();
        self.stack().work = left;
        if all {
            self.end();
        }
        all
    }

    /// Does everything here, where nobody can be hired.
    pub fn work_alone(self: &Arc<Self>) {
        self.present.fetch_add(1, Ordering::AcqRel);
        self.work();
    }

    /// A worker's life: until nothing is left, or no time.
    fn work(self: &Arc<Self>) {
        let mut worker = walk::Worker::new(self);
        while let Some(work) = self.take() {
            worker.perform(work);
            let mut stack = self.stack();
            stack.busy = stack.busy.saturating_sub(1);
            if stack.busy == 0 && stack.work.is_empty() {
                self.bell.notify_all();
            }
        }
        drop(worker);
        if self.present.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.end();
        }
    }

    fn take(&self) -> Option<Work> {
        let mut stack = self.stack();
        loop {
            if self.is_over() {
                return None;
            }
            if let Some(work) = pop(&mut stack.work) {
                stack.busy = stack.busy.saturating_add(1);
                return Some(work);
            }
            if stack.busy == 0 {
                return None;
            }
            self.idle.fetch_add(1, Ordering::Relaxed);
            // Looked at again in any case: a deadline may pass, or be shortened.
            let waited = self.bell.wait_timeout(stack, Duration::from_millis(2));
            stack = waited.unwrap_or_else(PoisonError::into_inner).0;
            self.idle.fetch_sub(1, Ordering::Relaxed);
        }
    }

    fn end(&self) {
        // The descriptors of what was not reached.
        self.stack().work.clear();
        for tree in &self.trees {
            tree.conclude(("partial", Some("the budget was used up".to_owned())));
        }
        self.ended.store(true, Ordering::Release);
        if let Some(done) = &self.done {
            // The counter cannot overflow by one; the loop also has its deadline.
            let _ = done.write(1);
        }
    }

    /// One of the things `node` waited for is done: settles it if that was the last, and then whoever waited for it.
    pub fn finish(self: &Arc<Self>, mut node: Arc<Node>) {
        while node.is_last() {
            match node.settle() {
                Settled::Again => {
                    node.expect(1);
                    self.push([Work::Read(node)]);
                    return;
                }
                Settled::Gone => {}
                Settled::Stays(why) => match (&node.parent, why) {
                    (Some(parent), Some(errno)) => parent.leave(errno),
                    (Some(_), None) => {}
                    (None, None) => node.tree.emptied(),
                    (None, Some(errno)) => node.tree.conclude(("failed", Some(format!("{errno:?}")))),
                },
            }
            let Some(parent) = node.parent.clone() else { return };
            node = parent;
        }
    }
}

/// The work on top; of directories to enter, one.
fn pop(stack: &mut Vec<Work>) -> Option<Work> {
    if let Some(Work::Enter(node, names)) = stack.last_mut()
        && let Some(name) = names.pop()
    {
        let mut one = Names::default();
        one.push(&name);
        let work = Work::Enter(Arc::clone(node), one);
        if names.is_empty() {
            stack.pop();
        }
        return Some(work);
    }
    stack.pop()
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

/// The machine's clock as one number.
fn nanos(at: Instant) -> u64 {
    u64::try_from(at.0.as_nanos()).unwrap_or(u64::MAX)
}
