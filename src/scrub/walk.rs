//! A worker: reads a directory, removes its files, hands on its directories.
//!
//! Invariant: never follows a symlink, never crosses a mount, never leaves its trees; bounded memory and about `DESCRIPTORS`
//! directories open, whatever the tree: what there are none for, or no room for its name, is burrowed into.
//! docs/scrub.md has the measurements behind the choices.

use super::crew::{Crew, Work};
use super::leftovers::Cleared;
use super::names::Names;
use super::node::Node;
use super::targets::{Source, Target};
use super::zero;
use crate::kernel::{entries, files, limits, overwrite};
use crate::switches::without;
use nix::errno::Errno;
use std::ffi::{CStr, CString};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// How many directories are open at once, all workers together, before the next one is burrowed into: a burrow has one or two more.
pub const DESCRIPTORS: usize = 28;
/// A worker's stack.
pub const STACK: usize = 128 * 1024;
/// What is read of a directory at once: enough to sort a good part of it.
const BUFFER: usize = 64 * 1024;
/// What is read of a large directory on a disk, in pieces of `BUFFER`, before its first file goes: in the order of a whole one's
/// inodes a file costs four fifths of what it costs in the order of many parts.
const LARGE: usize = 512 * 1024;
/// No entry is longer (19 + 255 + NUL, aligned): with more room than that, a read has reached the end.
const LONGEST: usize = 280;
/// From how many files on sharing them is worth waking somebody.
const SHARED: usize = 128;

/// One worker and what it keeps between directories.
#[derive(Debug)]
pub struct Worker<'a> {
    pub(super) crew: &'a Arc<Crew>,
    buffer: Vec<u8>,
    /// Inode and place in the buffer of each entry: files, then directories.
    files: Vec<(u64, usize)>,
    directories: Vec<(u64, usize)>,
    since_check: u8,
}

impl<'a> Worker<'a> {
    /// A worker of `crew`.
    #[must_use]
    pub const fn new(crew: &'a Arc<Crew>) -> Self {
        Self { crew, buffer: Vec::new(), files: Vec::new(), directories: Vec::new(), since_check: 15 }
    }

    /// Does one piece of work.
    pub fn perform(&mut self, work: Work) {
        match work {
            Work::Leftovers(mut before) => {
                let cleared = before.clear(&|| self.crew.is_over_in_step());
                *self.crew.leftovers() = Some(cleared);
                if cleared.cut_off {
                    self.crew.push_last(Work::Leftovers(before));
                }
            }
            Work::Open(number, target) => self.open(number, target),
            Work::Read(node) => self.read(&node),
            Work::Enter(node, mut names) => {
                if let Some(name) = names.pop() {
                    self.enter(node, name);
                }
            }
            Work::Files(node, mut names) => {
                while let Some(name) = names.pop() {
                    if self.is_over() {
                        return;
                    }
                    remove(self.crew, &node, &name, libc::DT_UNKNOWN);
                }
                self.crew.finish(node);
            }
        }
    }

    /// Looks at the clock at first and then every few calls: one costs as much as a tenth of an unlink.
    pub(super) fn is_over(&mut self) -> bool {
        self.since_check = self.since_check.wrapping_add(1);
        self.crew.is_stopped() || (self.since_check.is_multiple_of(16) && self.crew.is_over_in_step())
    }

    fn open(&mut self, number: usize, mut target: Target) {
        let Some(tree) = self.crew.trees.get(number) else { return };
        match target.reach(tree) {
            Ok(top) => {
                tree.begin(&top, target.own_tmpfs);
                if self.crew.is_crowded() && !tree.is_on_disk() && !without("relief") {
                    return self.relieve(top, tree);
                }
                // What it was looked at by is needed no more.
                drop(target);
                self.read(&Node::top(top, Arc::clone(tree)));
            }
            Err(verdict) => tree.conclude(verdict),
        }
    }

    fn enter(&mut self, parent: Arc<Node>, name: CString) {
        if self.crew.is_stretched() {
            if !self.burrow(&parent, &name) {
                return;
            }
            return self.crew.finish(parent);
        }
        match Node::below(&parent, name.clone()) {
            Ok(node) => return self.read(&node),
            // Not a directory any more: whatever it is now, its name goes.
            Err(Errno::ELOOP | Errno::ENOTDIR) => {
                remove(self.crew, &parent, &name, libc::DT_UNKNOWN);
            }
            Err(Errno::ENOENT) => {}
            Err(errno) => parent.leave(errno),
        }
        self.crew.finish(parent);
    }

    /// Reads `node` until it finds directories to enter, or the end.
    fn read(&mut self, node: &Arc<Node>) {
        // Not before: who burrows needs none.
        if self.buffer.capacity() == 0 {
            self.buffer.reserve_exact(BUFFER);
        }
        loop {
            let at_end = self.fill(node);
            if self.buffer.is_empty() {
                node.end();
                return self.crew.finish(Arc::clone(node));
            }
            self.sort(node.tree.is_on_disk());
            if !self.remove_files(node) {
                return;
            }
            let Some((found, count)) = self.remove_directories(node) else { return };
            if found.is_empty() {
                if at_end && node.guess_end() {
                    return self.crew.finish(Arc::clone(node));
                }
                continue;
            }
            let found = found.kept(self.crew);
            self.crew.push([Work::Read(Arc::clone(node)), Work::Enter(Arc::clone(node), found)]);
            if count > 1 {
                self.crew.call();
            }
            return;
        }
    }

    /// Reads on in `node`, into the buffer; whether the last read left room, so that there is probably no more.
    fn fill(&mut self, node: &Node) -> bool {
        self.buffer.clear();
        loop {
            let room = self.room().min(BUFFER);
            let read = entries::append_entries(node.fd(), &mut self.buffer, room).unwrap_or_else(|errno| {
                node.leave(errno);
                0
            });
            let full = read.saturating_add(LONGEST) >= room;
            if !full || self.crew.is_over_in_step() || !(node.tree.is_on_disk() && self.grow()) || self.room() < BUFFER
            {
                return !full;
            }
        }
    }

    fn room(&self) -> usize {
        self.buffer.capacity().saturating_sub(self.buffer.len())
    }

    /// A large buffer, if nobody else has it and there is memory for it.
    fn grow(&mut self) -> bool {
        if self.buffer.capacity() < LARGE && self.crew.claim_room() {
            // What does not succeed is seen by the capacity.
            let _ = self.buffer.try_reserve_exact(LARGE.saturating_sub(self.buffer.len()));
        }
        self.buffer.capacity() >= LARGE
    }

    /// Sorts what was read by inode: near each other on a disk, and mostly in the order in which they were made.
    fn sort(&mut self, on_disk: bool) {
        self.files.clear();
        self.directories.clear();
        let mut at = 0;
        while let Some((entry, next)) = entries::entry(&self.buffer, at) {
            let list = if entry.kind == libc::DT_DIR { &mut self.directories } else { &mut self.files };
            // Also where the file system does not say that these two are directories.
            if entry.name != c"." && entry.name != c".." {
                list.push((entry.inode, at));
            }
            at = next;
        }
        self.files.sort_unstable();
        self.directories.sort_unstable();
        // The newest first, where it costs nothing: a disk takes a tenth longer. Of the directories that are to be entered, the last one is.
        if !on_disk {
            self.files.reverse();
        }
    }

    fn name(&self, at: usize) -> Option<(&CStr, u8)> {
        entries::entry(&self.buffer, at).map(|(entry, _)| (entry.name, entry.kind))
    }

    /// Removes the files just read; false when the time is up.
    fn remove_files(&mut self, node: &Arc<Node>) -> bool {
        if self.files.len() >= SHARED && self.crew.has_hands() && !self.crew.is_full(BUFFER) {
            let mut names = Names::default();
            let half = self.files.split_off(self.files.len() / 2);
            half.iter().rev().filter_map(|&(_, at)| self.name(at)).for_each(|(name, _)| names.push(name));
            node.expect(1);
            self.crew.push([Work::Files(Arc::clone(node), names.kept(self.crew))]);
            self.crew.call();
        }
        for i in 0..self.files.len() {
            if self.is_over() {
                return false;
            }
            let Some(&(_, at)) = self.files.get(i) else { continue };
            let Some((name, kind)) = self.name(at) else { continue };
            if remove(self.crew, node, name, kind) {
                // A directory after all: the file system did not say, or it was swapped.
                self.directories.push((0, at));
            }
        }
        true
    }

    /// Removes the empty ones of the directories just read, and burrows into those there is no room for. The others are to be
    /// entered; `None` when the time is up.
    fn remove_directories(&mut self, node: &Arc<Node>) -> Option<(Names, usize)> {
        let mut found = Names::default();
        let mut count = 0usize;
        for i in 0..self.directories.len() {
            if self.is_over() {
                return None;
            }
            let Some(&(_, at)) = self.directories.get(i) else { continue };
            let Some((name, _)) = self.name(at) else { continue };
            let kept = node.stays(name).is_some();
            // An empty one costs this one call. The others are told apart by open(2), except a mount point.
            match node.widening(|| if kept { Err(Errno::ENOTEMPTY) } else { files::rmdir(node.fd(), name) }) {
                Ok(()) => {
                    node.tree.removed(0);
                    node.changed.store(true, Ordering::Release);
                }
                Err(Errno::ENOENT) => {}
                Err(Errno::EBUSY) if !without("own_tree") => node.leave(Errno::EBUSY),
                Err(_) if self.crew.is_full(found.len()) => {
                    let name = name.to_owned();
                    if !self.burrow(node, &name) {
                        return None;
                    }
                }
                Err(_) => {
                    found.push(name);
                    count = count.saturating_add(1);
                }
            }
        }
        node.expect(count);
        Some((found, count))
    }
}

/// Work that needs no worker is done; any other is given back.
pub fn glance(crew: &Crew, work: Work) -> Option<Work> {
    match work {
        // Who may mount may have put anything where the queues are.
        Work::Leftovers(before) if !limits::may_mount() && before.is_all() => {
            *crew.leftovers() = Some(Cleared::default());
            None
        }
        Work::Open(number, Target { source: Source::Skipped(why), .. }) => {
            crew.trees.get(number)?.conclude(("skipped", Some(why.to_owned())));
            None
        }
        Work::Open(number, target) if target.at_hand && is_empty(&target) => {
            crew.trees.get(number)?.conclude(("complete", None));
            None
        }
        other => Some(other),
    }
}

/// Whether it is the directory that it was, without entries, and can be written to.
fn is_empty(target: &Target) -> bool {
    let mut buffer = [0; 2 * LONGEST];
    let Ok(dir) = files::open_path(&target.path) else { return false };
    if !target.is_still(dir.as_fd()) || files::is_read_only(dir.as_fd()) {
        return false;
    }
    let Ok(read) = entries::read_entries(dir.as_fd(), &mut buffer) else { return false };
    let mut at = 0;
    while let Some((entry, next)) = entries::entry(buffer.get(..read).unwrap_or_default(), at) {
        if entry.name != c"." && entry.name != c".." {
            return false;
        }
        at = next;
    }
    // With room for one more there is none.
    read.saturating_add(LONGEST) < buffer.len()
}

/// Removes what is no directory; true where it is one.
pub fn remove(crew: &Crew, node: &Node, name: &CStr, kind: u8) -> bool {
    if let Some(directory) = node.stays(name) {
        return directory;
    }
    if kind == libc::DT_LNK && without("own_tree") && files::leads_to_directory(node.fd(), name) {
        return true;
    }
    let regular = matches!(kind, libc::DT_REG | libc::DT_UNKNOWN);
    let sized = node.tree.asks_sizes() && regular;
    let (space, links) = if sized { files::space_of(node.fd(), name) } else { (0, 0) };
    let unlink = || match &node.tree.zeroed {
        Some(zeroed) if regular => zero::unlink(node, name, zeroed, crew),
        _ => node.widening(|| files::unlink(node.fd(), name)),
    };
    let one_by_one = if sized { crew.one_by_one(links) } else { None };
    let (unlinked, bytes) = if links > 1 {
        // Its space goes with its last name, which may be the one that somebody else removes.
        let seen = files::look_at(node.fd(), name);
        let unlinked = unlink();
        let last = seen.is_ok_and(|file| overwrite::links(file.as_fd()) == Some(0));
        (unlinked, if last { space } else { 0 })
    } else {
        (unlink(), space)
    };
    drop(one_by_one);
    match unlinked {
        Ok(()) => {
            node.tree.removed(bytes);
            node.changed.store(true, Ordering::Release);
        }
        Err(Errno::ENOENT) => {}
        Err(Errno::EISDIR) => {
            node.changed.store(true, Ordering::Release);
            return true;
        }
        Err(errno) => node.leave(errno),
    }
    false
}
