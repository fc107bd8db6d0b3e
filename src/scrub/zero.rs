//! `--scrub-mode zero`: what a file held is overwritten before its space is given back, where that means anything.
//!
//! Invariant: only a file that no name leads to any more is written to. A hard link outside the tree keeps its bytes, and so
//! does whatever was put in the file's place meanwhile.

use super::crew::Crew;
use super::node::Node;
use crate::kernel::{files, overwrite};
use nix::errno::Errno;
use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// How much is written between two looks at the clock.
const CHUNK: usize = 64 * 1024;

/// What was overwritten in one tree.
#[derive(Debug, Default)]
pub struct Zeroed {
    /// Whether the file system writes in place, and which it is.
    place: OnceLock<(bool, i64)>,
    /// Files overwritten whole.
    pub files: AtomicU64,
    /// Bytes overwritten.
    pub bytes: AtomicU64,
    /// Regular files removed without.
    pub skipped: AtomicU64,
}

impl Zeroed {
    /// Looks at what the tree is on.
    pub fn begin(&self, top: BorrowedFd<'_>) {
        let magic = files::file_system(top);
        let _ = self.place.set((overwrite::IN_PLACE.contains(&magic), magic));
    }

    fn in_place(&self) -> bool {
        self.place.get().is_some_and(|(in_place, _)| *in_place)
    }

    /// Why nothing was overwritten.
    #[must_use]
    pub fn why(&self) -> Option<String> {
        let (in_place, magic) = self.place.get()?;
        (!in_place).then(|| format!("the file system (0x{magic:x}) does not write in place, or is not known to"))
    }
}

/// Removes the name `name`, and overwrites the file where it was the last.
///
/// # Errors
/// The errno of the unlink: a file that cannot be overwritten is removed all the same.
pub fn unlink(node: &Node, name: &CStr, zeroed: &Zeroed, crew: &Crew) -> Result<(), Errno> {
    // What it is, is looked at through a descriptor that opens nothing; and that very file is opened, not its name.
    let looked = files::look_at(node.fd(), name).ok();
    let links = looked.as_ref().and_then(|fd| overwrite::links(fd.as_fd()));
    let looked = looked.filter(|_| links.is_some());
    // Else two who remove its last two names would both see that none is left. Where sizes are asked for, whoever calls holds it.
    let one_by_one = if node.tree.asks_sizes() { None } else { crew.one_by_one(links.unwrap_or(0)) };
    node.widening(|| files::unlink(node.fd(), name))?;
    let nameless = looked.as_ref().filter(|fd| zeroed.in_place() && overwrite::links(fd.as_fd()) == Some(0));
    drop(one_by_one);
    let mut done = false;
    if let Some(file) = nameless.and_then(|fd| overwrite::open_for_overwriting(fd.as_fd()).ok()) {
        let mut bytes = 0;
        // The bytes of its attributes are where nobody can write over them.
        done = overwrite::overwrite(file.as_fd(), CHUNK, &mut bytes, &|| crew.is_over_in_step()).is_ok()
            && !overwrite::has_user_attributes(file.as_fd());
        zeroed.bytes.fetch_add(bytes, Ordering::Relaxed);
    }
    if looked.is_some() {
        let counter = if done { &zeroed.files } else { &zeroed.skipped };
        counter.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}
