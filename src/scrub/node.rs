//! One open directory of a tree that is being emptied, and what its parent has to know of it.
//!
//! Invariant: a directory is removed only through its parent's descriptor, and a parent is settled only after every one of
//! its children was. Nothing here recurses: `settled` says what to do next, and the caller loops. One whose mode was changed, and that
//! stays, has its own mode back when nobody works in it any more.

use super::tree::Tree;
use crate::kernel::{entries, files};
use nix::errno::Errno;
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, AtomicUsize, Ordering};

/// The mode of a directory that was not changed: no mode that has to be changed has all the owner's bits.
pub const UNCHANGED: u32 = 0o7777;

/// A directory that was opened and is not empty yet.
#[derive(Debug)]
pub struct Node {
    fd: OwnedFd,
    name: CString,
    /// The directory it is in; `None` for a tree's own top.
    pub parent: Option<Arc<Node>>,
    /// Its tree.
    pub tree: Arc<Tree>,
    /// Who has to be done before it can be settled: its reader, its children, files given to somebody else.
    pending: AtomicUsize,
    /// Something was removed from it since its reading began: there may be more to find.
    pub changed: AtomicBool,
    /// A short read was taken for the end once; from then on only the end itself is.
    guessed: AtomicBool,
    /// It was read to its end.
    ended: AtomicBool,
    widened: AtomicBool,
    /// The mode it had before it was changed, or `UNCHANGED`.
    mode: AtomicU32,
    /// The first errno of this reading.
    left: AtomicI32,
}

/// What became of a directory whose work was done.
#[derive(Debug)]
pub enum Settled {
    /// It is gone.
    Gone,
    /// It stays, for this reason; `None` for a top, which is never removed here.
    Stays(Option<Errno>),
    /// It has to be read on.
    Again,
}

impl Node {
    /// A tree's own directory.
    #[must_use]
    pub fn top(fd: OwnedFd, tree: Arc<Tree>) -> Arc<Self> {
        let mode = tree.mode();
        Arc::new(Self::new((fd, mode), CString::default(), None, tree))
    }

    /// A directory that nobody waits for, and the mode it had.
    #[must_use]
    pub fn alone(opened: (OwnedFd, u32), tree: &Arc<Tree>) -> Self {
        Self::new(opened, CString::default(), None, Arc::clone(tree))
    }

    fn new((fd, mode): (OwnedFd, u32), name: CString, parent: Option<Arc<Self>>, tree: Arc<Tree>) -> Self {
        tree.open.fetch_add(1, Ordering::Relaxed);
        Self {
            fd,
            name,
            parent,
            tree,
            mode: AtomicU32::new(mode),
            pending: AtomicUsize::new(1),
            changed: AtomicBool::new(false),
            guessed: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            widened: AtomicBool::new(false),
            left: AtomicI32::new(0),
        }
    }

    /// Opens the directory `name` in `parent`.
    ///
    /// # Errors
    /// As `open`.
    pub fn below(parent: &Arc<Self>, name: CString) -> Result<Arc<Self>, Errno> {
        let opened = parent.open(&name)?;
        Ok(Arc::new(Self::new(opened, name, Some(Arc::clone(parent)), Arc::clone(&parent.tree))))
    }

    /// Opens the directory `name` in it; one that forbids it is made accessible. With it comes the mode that it had.
    ///
    /// # Errors
    /// `EXDEV` for a mount, `ELOOP` or `ENOTDIR` for what is no directory any more, and what open(2) answers.
    pub fn open(&self, name: &CStr) -> Result<(OwnedFd, u32), Errno> {
        match files::open_below(self.fd(), name) {
            Err(Errno::EACCES) => self.widening(|| files::open_accessible(self.fd(), name)),
            result => result.map(|fd| (fd, UNCHANGED)),
        }
    }

    /// Whether the entry `name` is one that stays, and whether it is a directory. Asked only where there are such entries.
    #[must_use]
    pub fn stays(&self, name: &CStr) -> Option<bool> {
        if !self.tree.keeps_any() {
            return None;
        }
        let found = files::inode_of(self.fd(), name).ok()?;
        self.tree.keeps(found).then_some(found.1)
    }

    /// The directory.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// `more` have to be done before it can be settled.
    pub fn expect(&self, more: usize) {
        self.pending.fetch_add(more, Ordering::AcqRel);
    }

    /// One of them is done; whether it was the last.
    pub fn is_last(&self) -> bool {
        self.pending.fetch_sub(1, Ordering::AcqRel) == 1
    }

    /// Whether a read that left room in the buffer may be taken for the end: rmdir(2) knows better, and is asked once.
    pub fn guess_end(&self) -> bool {
        self.parent.is_some() && !self.guessed.swap(true, Ordering::Relaxed)
    }

    /// It was read to its end.
    pub fn end(&self) {
        self.ended.store(true, Ordering::Relaxed);
    }

    /// Something in it could not be removed.
    pub fn leave(&self, errno: Errno) {
        let _ = self.left.compare_exchange(0, errno as i32, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// The first errno of this reading.
    #[must_use]
    pub fn left(&self) -> Option<Errno> {
        Some(self.left.load(Ordering::Relaxed)).filter(|&e| e != 0).map(Errno::from_raw)
    }

    /// Runs `call`; where the directory itself forbids it (mode 0500), makes it writable once and tries again.
    ///
    /// # Errors
    /// What `call` answers.
    pub fn widening<T>(&self, call: impl Fn() -> Result<T, Errno>) -> Result<T, Errno> {
        match call() {
            Err(Errno::EACCES | Errno::EPERM)
                if !self.widened.swap(true, Ordering::Relaxed) && self.make_writable() =>
            {
                call()
            }
            result => result,
        }
    }

    fn make_writable(&self) -> bool {
        let Ok(Some(mode)) = files::make_writable(self.fd()) else { return false };
        self.mode.store(mode, Ordering::Relaxed);
        true
    }

    /// The mode it had, for whoever gives it back in its stead.
    #[must_use]
    pub fn take_mode(&self) -> u32 {
        self.mode.swap(UNCHANGED, Ordering::Relaxed)
    }

    /// Nobody works in it any more.
    pub fn give_back_mode(&self) {
        let mode = self.take_mode();
        if mode != UNCHANGED {
            // Where that is refused, it is the owner's no more.
            let _ = files::give_back_mode(self.fd(), mode);
        }
    }

    /// Everything found in it was dealt with: removes it, or says why not.
    #[must_use]
    pub fn settle(&self) -> Settled {
        let reread = || {
            // Removing while reading may make a file system skip entries: again, until a reading changes nothing.
            self.changed.swap(false, Ordering::AcqRel) && {
                self.left.store(0, Ordering::Relaxed);
                self.ended.store(false, Ordering::Relaxed);
                entries::seek(self.fd(), 0).map_err(|errno| self.leave(errno)).is_ok()
            }
        };
        let kept =
            || self.tree.keeps_any() && files::inode(self.fd()).is_ok_and(|inode| self.tree.keeps((inode, true)));
        let Some(parent) = self.parent.as_ref().filter(|_| !kept()) else {
            return if reread() { Settled::Again } else { Settled::Stays(self.left()) };
        };
        match parent.widening(|| files::rmdir(parent.fd(), &self.name)) {
            Ok(()) => {
                self.mode.store(UNCHANGED, Ordering::Relaxed);
                self.tree.removed(0);
                parent.changed.store(true, Ordering::Release);
                Settled::Gone
            }
            Err(Errno::ENOENT) => Settled::Gone,
            // Also where the end was guessed wrong: then it is read on from where it was.
            Err(Errno::ENOTEMPTY | Errno::EEXIST) if reread() || !self.ended.load(Ordering::Relaxed) => Settled::Again,
            Err(errno) => Settled::Stays(self.left().or(Some(errno))),
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.give_back_mode();
        self.tree.open.fetch_sub(1, Ordering::Relaxed);
    }
}
