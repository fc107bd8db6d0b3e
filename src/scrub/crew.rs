//! The crew: the workers of one scrub and what they share. Work lies on a stack, so that a tree is emptied depth first and
//! the descriptors in use are bounded; nobody waits for a worker that hangs but the scrub's own deadline.
//!
//! Invariant: whoever leaves last reports the end, so no count changes after it.

use super::leftovers::{Before, Cleared};
use super::names::Names;
use super::node::{Node, Settled};
use super::pace::Pace;
use super::targets::Target;
use super::tree::Tree;
use super::walk;
use crate::kernel::{clock, cpu};
use crate::machine::types::Instant;
use crate::switches::without;
use nix::sys::eventfd::EventFd;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Bytes of names kept for later, of all directories together.
const NAMES: usize = 512 * 1024;
/// Levels kept (2 MiB, and 128 KiB where memory is short): of a deeper tree the first are forgotten, and gone down once more.
const LEVELS: usize = 128 * 1024;
const LEVELS_CROWDED: usize = 8 * 1024;
/// How many more workers there may be than there are CPUs, where some hang.
const SPARE_WORKERS: usize = 2;

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
    pace: Pace,
    most: AtomicUsize,
    /// How many `most` may become: one that hangs is made up for.
    limit: usize,
    /// Levels that burrows may still keep, of all workers together.
    levels: AtomicUsize,
    /// Pieces of work begun and levels gone down, and what the sum of all that was done was when it was looked at last.
    begun: AtomicU64,
    seen: AtomicU64,
    /// Bytes of names kept.
    kept: Arc<AtomicUsize>,
    /// No more of them than this.
    room_for_names: usize,
    open: Arc<AtomicUsize>,
    linked: Mutex<()>,
    has_links: AtomicBool,
    present: AtomicUsize,
    idle: AtomicUsize,
    expired: AtomicBool,
    ended: AtomicBool,
    roomy: AtomicBool,
    /// What became of what is no file, so far.
    leftovers: Mutex<Option<Cleared>>,
    /// The trees, in the order of the targets.
    pub trees: Vec<Arc<Tree>>,
    /// Written to at the end.
    pub done: Option<EventFd>,
}

impl Crew {
    /// A crew of at most `most` workers for `targets` and for what is no file but was not there `before`; it keeps no names where memory is `short`.
    #[must_use]
    pub fn new(
        mut targets: Vec<Target>,
        before: Option<Before>,
        until: Instant,
        most: usize,
        short: bool,
        zero: bool,
        done: Option<EventFd>,
    ) -> Self {
        let open = Arc::new(AtomicUsize::new(0));
        let trees = targets.iter_mut().map(|target| Arc::new(Tree::new(target, zero, &open))).collect();
        // The stack's top is its end: the first target first, and those in memory before those on a disk. They may be what has used up
        // the memory limit, and everything else needs some.
        let (memory, disk): (Vec<_>, Vec<_>) = targets
            .into_iter()
            .enumerate()
            .rev()
            .partition(|(_, t)| (t.own_tmpfs || t.at_hand) && !without("memory_first"));
        let begin = |(i, target)| Work::Open(i, target);
        // What is no file between them: it must not wait for a disk that hangs, nor they for it.
        let work = disk.into_iter().map(begin).chain(before.map(Work::Leftovers)).chain(memory.into_iter().map(begin));
        let work = work.collect();
        Self {
            stack: Mutex::new(Stack { work, busy: 0 }),
            bell: Condvar::new(),
            until_ns: AtomicU64::new(nanos(until)),
            pace: Pace::new(cpu::quota().filter(|_| !without("pace"))),
            most: AtomicUsize::new(most),
            // With the limit used up what is in memory goes first, and one after the other.
            limit: if short { most } else { most.saturating_add(SPARE_WORKERS) },
            levels: AtomicUsize::new(if short { LEVELS_CROWDED } else { LEVELS }),
            begun: AtomicU64::new(0),
            seen: AtomicU64::new(0),
            kept: Arc::default(),
            room_for_names: if short { 0 } else { NAMES },
            open,
            linked: Mutex::new(()),
            has_links: AtomicBool::new(false),
            present: AtomicUsize::new(0),
            idle: AtomicUsize::new(0),
            expired: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            roomy: AtomicBool::new(short),
            leftovers: Mutex::new(None),
            trees,
            done,
        }
    }

    /// Whether so many directories are open that one more is gone into alone.
    #[must_use]
    pub fn is_stretched(&self) -> bool {
        self.open.load(Ordering::Relaxed) >= walk::DESCRIPTORS
    }

    /// Bytes of names kept.
    pub(super) const fn kept(&self) -> &Arc<AtomicUsize> {
        &self.kept
    }

    /// Whether there is no room for `more` bytes of names.
    #[must_use]
    pub fn is_full(&self, more: usize) -> bool {
        self.kept.load(Ordering::Relaxed).saturating_add(more) > self.room_for_names
    }

    /// To be held while a file is removed that had so many `links`, from the first on that had several: else two who remove the last two
    /// names could both see that none is left. Who finds a file with one name that had two just before sees the flag as well.
    pub fn one_by_one(&self, links: u64) -> Option<MutexGuard<'_, ()>> {
        if links > 1 {
            self.has_links.store(true, Ordering::SeqCst);
        }
        let lock = || self.linked.lock().unwrap_or_else(PoisonError::into_inner);
        self.has_links.load(Ordering::SeqCst).then(lock)
    }

    /// To be called now and then. Where nothing has moved since, whoever works is waiting for a file system: somebody else goes on
    /// with what is left.
    pub fn nudge(self: &Arc<Self>) {
        let removed = self.trees.iter().fold(0u64, |sum, tree| sum.wrapping_add(tree.entries()));
        let moved = removed.wrapping_add(self.begun.load(Ordering::Relaxed));
        if self.seen.swap(moved, Ordering::Relaxed) != moved || self.stack().work.is_empty() {
            return;
        }
        if self.present.load(Ordering::Relaxed) >= self.most.load(Ordering::Relaxed)
            && self.most.load(Ordering::Relaxed) < self.limit
        {
            self.most.fetch_add(1, Ordering::Relaxed);
        }
        if !self.hire() && self.present.load(Ordering::Acquire) == 0 {
            // Whoever left last took the one who could not be had for somebody that is still there.
            self.end();
        }
    }

    /// Something moved that is no piece of work: nobody hangs.
    pub fn moved(&self) {
        self.begun.fetch_add(1, Ordering::Relaxed);
    }

    /// Room for `more` levels, if there is; to be given back.
    pub fn claim_levels(&self, more: usize) -> bool {
        let less = |left: usize| left.checked_sub(more);
        self.levels.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less).is_ok()
    }

    /// Gives room back.
    pub fn return_levels(&self, levels: usize) {
        self.levels.fetch_add(levels, Ordering::Relaxed);
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

    /// The same between two steps of the work: with a quota to keep to, it may wait first (`pace`).
    pub fn is_over_in_step(&self) -> bool {
        if self.pace.is_kept() && !self.is_stopped() {
            self.pace.keep(Instant(Duration::from_nanos(self.until_ns.load(Ordering::Relaxed))));
        }
        self.is_over()
    }

    /// Whether the caller may have a large buffer: who asks first may, and nobody after.
    #[must_use]
    pub fn claim_room(&self) -> bool {
        !self.roomy.swap(true, Ordering::Relaxed)
    }

    /// Whether somebody would take work, or could be hired for it.
    #[must_use]
    pub fn has_hands(&self) -> bool {
        self.idle.load(Ordering::Relaxed) > 0
            || self.present.load(Ordering::Relaxed) < self.most.load(Ordering::Relaxed)
    }

    /// Whether there is no memory for names, nor for much else.
    #[must_use]
    pub const fn is_crowded(&self) -> bool {
        self.room_for_names == 0
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
        let most = self.most.load(Ordering::Relaxed);
        let room = |n: usize| (n < most).then(|| n.saturating_add(1));
        if self.present.fetch_update(Ordering::AcqRel, Ordering::Relaxed, room).is_err() {
            return false;
        }
        let crew = Arc::clone(self);
        let hired = std::thread::Builder::new().stack_size(walk::STACK).spawn(move || crew.work()).is_ok();
        if !hired {
            let there = self.present.fetch_sub(1, Ordering::AcqRel);
            // Nobody is to put work aside for him.
            self.most.store(there.saturating_sub(1).max(1), Ordering::Relaxed);
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
                self.begun.fetch_add(1, Ordering::Relaxed);
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
                    (None, why) => node.tree.done(&node, why),
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

/// The machine's clock as one number.
fn nanos(at: Instant) -> u64 {
    u64::try_from(at.0.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scrub::targets::Source;
    use std::path::PathBuf;

    #[test]
    fn who_hangs_is_made_up_for_but_not_where_memory_is_used_up() {
        for (short, most) in [(false, 2), (true, 1)] {
            let target = Target::new(PathBuf::from("/nowhere"), Source::Skipped("a test"));
            let until = clock::now().plus(Duration::from_secs(10));
            let crew = Arc::new(Crew::new(vec![target], None, until, 1, short, false, None));
            // Somebody is in a call that does not come back, and nothing has moved since.
            crew.present.store(1, Ordering::Relaxed);
            crew.nudge();
            assert_eq!(crew.most.load(Ordering::Relaxed), most, "{short}");
        }
    }
}
