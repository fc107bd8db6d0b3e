//! What still sends after the cut by itself: what was queued in sockets that no descriptor table shows.
//!
//! The kernel keeps a socket for whoever maps it, for the message it is in flight in (SCM_RIGHTS), for the MPTCP connection it is a part of,
//! and for its last bytes after it was closed. Nobody can cut such a one, and nobody can send more through it; what is queued goes on leaving.
//!
//! Invariant: a socket is somebody else's only where that is known: by being there before the workload, by a UID that the workload cannot
//! have (of one that is not closed), or by being in the table of a process that is not the workload's.

use crate::kernel::kill::Everything;
use crate::kernel::sockdiag::{self, Socket};
use crate::kernel::{files, limits, sockets};
use crate::machine::types::Instant;
use nix::errno::Errno;
use std::collections::HashSet;
use std::io;
use std::os::fd::AsFd as _;

/// The connections there are before the workload, but for those that it inherits: its standard input, output and error.
#[must_use]
pub fn before(everything: &Everything) -> Vec<Socket> {
    let mut all = sockdiag::connected(everything.proc_()).unwrap_or_default();
    if !all.is_empty() {
        let inherited = [io::stdin().as_fd(), io::stdout().as_fd(), io::stderr().as_fd()].map(files::inode);
        all.retain(|socket| !inherited.iter().flatten().any(|(_, inode)| *inode == u64::from(socket.inode)));
    }
    all
}

/// The sockets that have something to send outside and may be the workload's, after everything in its tables has been cut.
///
/// # Errors
/// As `sockdiag::connected`.
pub fn left(everything: &Everything, before: &[Socket], until: Instant) -> Result<Vec<Socket>, Errno> {
    let mut left = sockdiag::connected(everything.proc_())?;
    left.retain(Socket::sends);
    left.retain(|socket| !before.iter().any(|before| before.is(socket)));
    if limits::uid_is_fixed() {
        let uid = nix::unistd::geteuid().as_raw();
        // A closed one was root's for the kernel until Linux 6.17, whosever it was.
        left.retain(|socket| socket.uid == uid || socket.inode == 0);
    }
    if left.iter().any(|socket| socket.inode != 0) {
        // Ours are no secret of the workload's: the record may go over one.
        let held = if everything.is_pid1() { own(everything, until) } else { others(everything, until) };
        left.retain(|socket| !held.contains(&u64::from(socket.inode)));
    }
    Ok(left)
}

fn own(everything: &Everything, until: Instant) -> HashSet<u64> {
    let mut held = HashSet::new();
    if let Some(proc_) = everything.proc_() {
        let pid = nix::unistd::getpid().as_raw();
        // What cannot be seen is nobody's.
        let _ = sockets::inodes(proc_, pid, until, |inode| held.extend([inode]));
    }
    held
}

/// What everybody holds who is not the workload's, as far as we may look.
fn others(everything: &Everything, until: Instant) -> HashSet<u64> {
    let mut held = HashSet::new();
    let Some(proc_) = everything.proc_() else { return held };
    let members: HashSet<i32> = everything.last_seen().iter().map(|stat| stat.pid).collect();
    proc_.each_pid(|pid| {
        let looked =
            (!members.contains(&pid)).then(|| sockets::inodes(proc_, pid, until, |inode| held.extend([inode])));
        looked != Some(Err(Errno::ETIME))
    });
    held
}
