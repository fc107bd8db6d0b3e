//! Emptying a directory with one descriptor, however deep it is: down into the first directory that is not empty, and back by `..`
//! when nothing is left in it.
//!
//! For what lies deeper than there are descriptors, and for what is in memory where there is none left. Sixteen bytes are kept of
//! each level (of so many), to know that `..` led back to where it came from: who is still alive (not PID 1) may have moved a directory meanwhile.

use super::crew::Crew;
use super::node::{Node, UNCHANGED};
use super::tree::Tree;
use super::walk::{Worker, remove};
use crate::kernel::{entries, files, memory};
use nix::errno::Errno;
use std::collections::VecDeque;
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// What is read of a directory at once, on the worker's stack: what follows in it is read again when the first one below is empty.
const BUFFER: usize = 8 * 1024;
/// Levels that every burrow has room for; more of them are claimed.
const LEVELS: usize = 1024;
/// A level above the one that is being emptied.
#[derive(Debug)]
struct Level {
    /// Which directory; in the lowest bit whether something was removed from it, in the twelve above that the mode it had.
    who: u64,
    /// Where in it the directory below was found.
    at: i64,
}

impl Level {
    /// Of `here`, which is left for a directory below it: who comes back gives it its mode.
    fn of(here: &Node, at: i64) -> Result<Self, Errno> {
        let changed = u64::from(here.changed.load(Ordering::Relaxed));
        Ok(Self { who: mark(here.fd())? | u64::from(here.take_mode()) << 1 | changed, at })
    }

    fn is(&self, dir: &OwnedFd) -> Result<bool, Errno> {
        Ok(mark(dir.as_fd())? == self.who & !0x1fff)
    }

    fn back(self, dir: OwnedFd, tree: &Arc<Tree>) -> Node {
        let mode = u32::try_from(self.who >> 1 & 0o7777).unwrap_or(UNCHANGED);
        let here = Node::alone((dir, mode), tree);
        here.changed.store(self.who & 1 == 1, Ordering::Relaxed);
        here
    }
}

/// The levels above, and what was claimed for them.
struct Above<'a> {
    levels: VecDeque<Level>,
    claimed: usize,
    crew: &'a Crew,
    /// The first ones had to make room.
    forgotten: bool,
}

impl Above<'_> {
    fn push(&mut self, level: Level) -> Result<(), Errno> {
        if self.levels.len() == self.levels.capacity() {
            let first = self.levels.is_empty();
            let more = LEVELS.max(self.levels.len() / 4);
            if first || self.crew.claim_levels(more) {
                self.claimed += if first { 0 } else { more };
                self.levels.try_reserve_exact(more).map_err(|_| Errno::ENOMEM)?;
            } else {
                self.levels.pop_front();
                self.forgotten = true;
            }
        }
        self.levels.push_back(level);
        Ok(())
    }
}

impl Drop for Above<'_> {
    fn drop(&mut self) {
        if self.claimed > 0 {
            // Really given back: else each worker's heap keeps what it had.
            self.levels = VecDeque::new();
            memory::trim();
            self.crew.return_levels(self.claimed);
        }
    }
}

/// How far a directory was emptied.
#[derive(Debug)]
enum Found {
    /// Nothing is left that could be removed or entered.
    End,
    /// This one has to be entered first.
    Below(CString),
    /// The time is up.
    Over,
}

fn mark(fd: std::os::fd::BorrowedFd<'_>) -> Result<u64, Errno> {
    let (device, inode) = files::inode(fd)?;
    Ok(inode.wrapping_add(device.rotate_left(40)) << 13)
}

impl Worker<'_> {
    /// Empties the directory `name` of `base` and removes it; false when the time is up.
    pub(super) fn burrow(&mut self, base: &Node, name: &CStr) -> bool {
        let again = || base.open(name).map(|opened| Node::alone(opened, &base.tree));
        let first = match again() {
            Ok(first) => first,
            Err(Errno::ELOOP | Errno::ENOTDIR) => {
                remove(self.crew, base, name, libc::DT_UNKNOWN);
                return true;
            }
            Err(Errno::ENOENT) => return true,
            Err(errno) => {
                base.leave(errno);
                return true;
            }
        };
        match self.empty(base, first, again) {
            Ok(true) => {}
            Ok(false) => return false,
            Err(errno) => base.leave(errno),
        }
        if base.stays(name).is_none() {
            match base.widening(|| files::rmdir(base.fd(), name)) {
                Ok(()) => {
                    base.tree.removed(0);
                    base.changed.store(true, Ordering::Release);
                }
                Err(Errno::ENOENT) => {}
                Err(errno) => base.leave(errno),
            }
        }
        true
    }

    /// Empties a target that is in memory with little more than the stack, down from its top.
    pub(super) fn relieve(&mut self, top: OwnedFd, tree: &Arc<Tree>) {
        let top = Node::top(top, Arc::clone(tree));
        let again = || files::read_seen(top.fd()).map(|fd| Node::alone((fd, UNCHANGED), tree));
        match again().and_then(|first| self.empty(&top, first, again)) {
            Ok(true) => tree.done(&top, top.left()),
            // Said at the end, as for everything that there was no time for.
            Ok(false) => {}
            Err(errno) => tree.done(&top, Some(errno)),
        }
    }

    /// Empties `here`, which `again` opens once more, of `base`; false when the time is up.
    fn empty(&mut self, base: &Node, mut here: Node, again: impl Fn() -> Result<Node, Errno>) -> Result<bool, Errno> {
        let crew: &Crew = self.crew;
        let mut above = Above { levels: VecDeque::new(), claimed: 0, crew, forgotten: false };
        let mut before = None;
        let mut at = 0;
        // One that was entered and could not be removed: not to be entered again at once.
        let mut stuck = None;
        loop {
            match self.level(&here, &mut at, stuck)? {
                Found::Over => return Ok(false),
                Found::Below(name) => {
                    stuck = None;
                    match here.open(&name) {
                        Ok(opened) => {
                            let below = Node::alone(opened, &base.tree);
                            above.push(Level::of(&here, at)?)?;
                            crew.moved();
                            here = below;
                            at = 0;
                        }
                        Err(Errno::ELOOP | Errno::ENOTDIR) => {
                            remove(self.crew, &here, &name, libc::DT_UNKNOWN);
                        }
                        Err(Errno::ENOENT) => {}
                        Err(errno) => {
                            here.leave(errno);
                            stuck = files::inode_of(here.fd(), &name).ok().map(|(inode, _)| inode);
                        }
                    }
                }
                Found::End => {
                    if let Some(errno) = here.left() {
                        base.leave(errno);
                    }
                    let Some(level) = above.levels.pop_back() else {
                        if !std::mem::take(&mut above.forgotten) {
                            return Ok(true);
                        }
                        // With what cannot be removed at its end it would go on for ever.
                        let removed = Some(base.tree.counts().0);
                        if std::mem::replace(&mut before, removed) == removed {
                            return Err(here.left().unwrap_or(Errno::ENOMEM));
                        }
                        // Before it may be opened again, which changes it anew.
                        here.give_back_mode();
                        (here, at, stuck) = (again()?, 0, None);
                        continue;
                    };
                    stuck = Some(files::inode(here.fd())?);
                    let back = files::parent(here.fd())?;
                    if !level.is(&back)? {
                        return Err(Errno::ESTALE);
                    }
                    at = level.at;
                    here = level.back(back, &base.tree);
                }
            }
        }
    }

    /// Removes what can be removed of `here`, from `at` on; there is the one to be entered then. `stuck` is the one that was entered
    /// last: what is left of it is not entered again at once.
    fn level(&mut self, here: &Node, at: &mut i64, stuck: Option<(u64, u64)>) -> Result<Found, Errno> {
        let mut buffer = [0u8; BUFFER];
        let mut unmet = stuck.is_some();
        loop {
            entries::seek(here.fd(), *at)?;
            let mut before = *at;
            loop {
                let read = entries::read_entries(here.fd(), &mut buffer)?;
                if read == 0 {
                    break;
                }
                let mut place = 0;
                while let Some((entry, next)) = entries::entry(buffer.get(..read).unwrap_or_default(), place) {
                    place = next;
                    if entry.name != c"." && entry.name != c".." {
                        if self.is_over() {
                            return Ok(Found::Over);
                        }
                        let directory = entry.kind == libc::DT_DIR || remove(self.crew, here, entry.name, entry.kind);
                        if directory && has_to_be_entered(here, entry.name, stuck, &mut unmet) {
                            *at = before;
                            return Ok(Found::Below(entry.name.to_owned()));
                        }
                    }
                    before = entry.next;
                }
            }
            // Where it was is another place now, as on overlay, whose directories become others when something in them changes. Or
            // something was removed while reading, which may make a file system skip entries: again, until a reading changes nothing.
            let missed = std::mem::take(&mut unmet) && *at != 0;
            if !here.changed.swap(false, Ordering::Relaxed) && !missed {
                return Ok(Found::End);
            }
            *at = 0;
        }
    }
}

/// Whether the directory could not be removed, and is to be entered therefore.
fn has_to_be_entered(here: &Node, name: &CStr, stuck: Option<(u64, u64)>, unmet: &mut bool) -> bool {
    let is_stuck = || stuck.is_some() && files::inode_of(here.fd(), name).is_ok_and(|(inode, _)| Some(inode) == stuck);
    let again = *unmet && is_stuck();
    *unmet &= !again;
    if here.stays(name).is_some() {
        return !again && !is_stuck();
    }
    match here.widening(|| files::rmdir(here.fd(), name)) {
        Ok(()) => {
            here.tree.removed(0);
            here.changed.store(true, Ordering::Relaxed);
            false
        }
        Err(Errno::ENOENT) => false,
        Err(errno) if errno == Errno::EBUSY || again || is_stuck() => {
            here.leave(errno);
            false
        }
        Err(_) => true,
    }
}
