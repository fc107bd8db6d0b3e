//! Empties one directory: relative to descriptors, without recursion, in bounded memory, within its time.
//!
//! Invariant: never follows a symlink, never crosses a mount, never leaves the directory; at most `WINDOW` descriptors
//! whatever the depth: a directory below that is first moved up to the top, where the next pass finds it.

use crate::kernel::files::{self, Entry, Kind, Listing};
use crate::switches::without;
use nix::errno::Errno;
use std::ffi::{CStr, CString};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};

/// How many directories are open at once.
const WINDOW: usize = 24;

/// Counts that a reader may look at while the walk goes on, or hangs.
#[derive(Debug, Default)]
pub struct Counts {
    /// Entries removed.
    pub entries: AtomicU64,
    /// Bytes of the regular files removed.
    pub bytes: AtomicU64,
}

/// How a walk ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Emptied {
    /// Nothing is left.
    Complete,
    /// The time was up.
    Partial,
    /// Something could not be removed; the first reason.
    Failed(Errno),
}

struct Frame {
    listing: Listing,
    /// Its name in the frame below; empty for the top.
    name: CString,
    removed: bool,
    left: Option<Errno>,
    widened: bool,
}

/// Empties the directory `top`; `expired` says whether the time is up.
pub fn empty(top: OwnedFd, counts: &Counts, expired: &dyn Fn() -> bool) -> Emptied {
    use std::os::fd::AsFd;
    let device = match files::device(top.as_fd()) {
        Ok(device) => device,
        Err(errno) => return Emptied::Failed(errno),
    };
    let mut walk = Walk { device, counts, moved: 0, stack: vec![frame(top, CString::default())] };
    let mut since_check = 0u8;
    loop {
        since_check = since_check.wrapping_add(1);
        if since_check.is_multiple_of(16) && expired() {
            return Emptied::Partial;
        }
        let Some(now) = walk.stack.last_mut() else { return Emptied::Failed(Errno::EIO) };
        match now.listing.next_entry() {
            Ok(Some(entry)) => walk.remove(&entry),
            Ok(None) => {
                // Removing while reading may make a file system skip entries: again, until a pass changes nothing.
                if std::mem::take(&mut now.removed) {
                    now.left = None;
                    if let Err(errno) = now.listing.rewind() {
                        now.left = Some(errno);
                    } else {
                        continue;
                    }
                }
                if let Some(end) = walk.leave() {
                    return end;
                }
            }
            Err(errno) => {
                now.left = now.left.or(Some(errno));
                if let Some(end) = walk.leave() {
                    return end;
                }
            }
        }
    }
}

fn frame(fd: OwnedFd, name: CString) -> Frame {
    Frame { listing: Listing::new(fd), name, removed: false, left: None, widened: false }
}

struct Walk<'a> {
    device: u64,
    counts: &'a Counts,
    moved: u64,
    stack: Vec<Frame>,
}

impl Walk<'_> {
    fn remove(&mut self, entry: &Entry) {
        let depth = self.stack.len();
        let Some(now) = self.stack.last_mut() else { return };
        let kind = match entry.kind {
            libc::DT_LNK if without("own_tree") => files::kind(now.listing.fd(), &entry.name),
            libc::DT_DIR => Ok(Kind::Directory),
            libc::DT_REG | libc::DT_UNKNOWN => files::kind(now.listing.fd(), &entry.name),
            _ => Ok(Kind::Other),
        };
        let result = match kind {
            Ok(Kind::Directory) if depth >= WINDOW => self.move_up(&entry.name),
            Ok(Kind::Directory) => self.enter(&entry.name),
            Ok(kind) => now.widening(|n| files::unlink(n.listing.fd(), &entry.name)).map(|()| {
                if let Kind::Regular(bytes) = kind {
                    self.counts.bytes.fetch_add(bytes, Ordering::Relaxed);
                }
                self.counts.entries.fetch_add(1, Ordering::Relaxed);
            }),
            Err(errno) => Err(errno),
        };
        // The entry's own frame: `enter` may have pushed another.
        let Some(owner) = self.stack.get_mut(depth.saturating_sub(1)) else { return };
        match result {
            // A directory counts as progress when it is gone, which `leave` sees.
            Ok(()) if !matches!(kind, Ok(Kind::Directory)) => owner.removed = true,
            Ok(()) | Err(Errno::ENOENT) => {}
            Err(errno) => owner.left = owner.left.or(Some(errno)),
        }
    }

    fn enter(&mut self, name: &CStr) -> Result<(), Errno> {
        let Some(now) = self.stack.last_mut() else { return Ok(()) };
        let opened = match files::open_below(now.listing.fd(), name, self.device) {
            Err(Errno::EACCES) => now
                .widening(|n| files::make_accessible(n.listing.fd(), name))
                .and_then(|()| files::open_below(now.listing.fd(), name, self.device)),
            result => result,
        };
        let fd = match opened {
            Ok(fd) => fd,
            // Not to be opened, but perhaps empty: then it can go all the same. A mount point answers EBUSY.
            Err(errno) => {
                return match files::rmdir(now.listing.fd(), name) {
                    Ok(()) => {
                        now.removed = true;
                        self.counts.entries.fetch_add(1, Ordering::Relaxed);
                        Ok(())
                    }
                    Err(_) => Err(errno),
                };
            }
        };
        self.stack.push(frame(fd, name.to_owned()));
        Ok(())
    }

    /// Too deep: to the top with it, under a name that no entry has.
    fn move_up(&mut self, name: &CStr) -> Result<(), Errno> {
        let Some((top, now)) = self.stack.split_first_mut().and_then(|(t, rest)| Some((t, rest.last_mut()?))) else {
            return Err(Errno::EIO);
        };
        let mut widened = false;
        loop {
            self.moved = self.moved.wrapping_add(1);
            let fresh = CString::new(format!(".gracekeeper-scrub-{}", self.moved)).map_err(|_| Errno::EINVAL)?;
            match nix::fcntl::renameat(now.listing.fd(), name, top.listing.fd(), fresh.as_c_str()) {
                Ok(()) => {
                    top.removed = true;
                    now.removed = true;
                    return Ok(());
                }
                // The workload may have used our name; an empty directory there was replaced, anything else is not.
                Err(Errno::EEXIST | Errno::ENOTEMPTY | Errno::ENOTDIR) => {}
                // Moving a directory changes its `..`, so it must be writable itself, and both parents too.
                Err(Errno::EACCES | Errno::EPERM) if !widened => {
                    widened = true;
                    let _ = files::make_writable(now.listing.fd());
                    files::make_accessible(now.listing.fd(), name)?;
                }
                Err(errno) => return Err(errno),
            }
        }
    }

    /// The directory on top of the stack has been read to its end; the result, if it was the last.
    fn leave(&mut self) -> Option<Emptied> {
        let done = self.stack.pop()?;
        let Some(parent) = self.stack.last_mut() else {
            return Some(done.left.map_or(Emptied::Complete, Emptied::Failed));
        };
        let name = done.name.as_c_str();
        drop(done.listing);
        match parent.widening(|p| files::rmdir(p.listing.fd(), name)) {
            Ok(()) => {
                parent.removed = true;
                self.counts.entries.fetch_add(1, Ordering::Relaxed);
            }
            Err(Errno::ENOENT) => {}
            Err(errno) => parent.left = parent.left.or(done.left).or(Some(errno)),
        }
        None
    }
}

impl Frame {
    /// Runs `call`; where the directory itself forbids it (mode 0500), makes it writable once and tries again.
    fn widening(&mut self, call: impl Fn(&Self) -> Result<(), Errno>) -> Result<(), Errno> {
        match call(self) {
            Err(Errno::EACCES | Errno::EPERM) if !self.widened => {
                self.widened = true;
                files::make_writable(self.listing.fd())?;
                call(self)
            }
            result => result,
        }
    }
}
