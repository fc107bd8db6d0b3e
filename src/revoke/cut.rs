//! Every socket that leads outside, cut: through a duplicate, or by its holder under ptrace.
//!
//! Invariants: no socket is touched before everything has come to a stop and is limited (who has RLIMIT_NOFILE 0 gets no other one, though a
//! timer wake it); it is over by the time given; a table counts as walked when nothing in it leads outside any more.

use super::Revoked;
use super::halt::Held;
use crate::kernel::kill::{self, Everything};
use crate::kernel::proc::{self, Proc, Stat};
use crate::kernel::ptrace::Traced;
use crate::kernel::sockdiag::{self, Socket, state};
use crate::kernel::{clock, limits, sockets};
use crate::machine::types::Instant;
use crate::switches::without;
use nix::errno::Errno;
use std::cmp::Ordering;
use std::collections::HashSet;
use std::os::fd::AsFd;

/// Whether there was anything to cut, and whether everything could be seen.
#[derive(Debug, Default, Clone, Copy)]
pub struct Outside {
    pub(super) hidden: bool,
    pub(super) late: bool,
}

/// What one pass over the descriptor tables knows.
struct Pass<'a> {
    proc_: &'a Proc,
    until: Instant,
    /// Whether SO_BINDTODEVICE holds.
    ties_hold: bool,
    /// Sockets cut through a duplicate: they are cut for whoever else holds them.
    done: HashSet<u64>,
    /// A thread of each table that has been walked, in the kernel's order of tables.
    tables: Vec<i32>,
    /// Who is held by ptrace already.
    held: &'a Held,
}

impl Pass<'_> {
    fn is_late(&self) -> bool {
        clock::now() >= self.until && !without("walk_deadline")
    }

    /// Where the thread's table belongs among those that were walked; `Err(None)` where the kernel does not say.
    fn place(&self, tid: i32) -> Result<(), Option<usize>> {
        let mut known = true;
        let place = self.tables.binary_search_by(|&walked| {
            sockets::compare_tables(walked, tid).unwrap_or_else(|| {
                known = false;
                Ordering::Greater
            })
        });
        match place {
            _ if !known => Err(None),
            Ok(_) => Ok(()),
            Err(at) => Err(Some(at)),
        }
    }

    /// What of a thread may lead outside and is not cut.
    fn outside(&self, pid: i32, tid: i32) -> Result<Vec<sockets::Found>, Errno> {
        let mut found = sockets::outside(self.proc_, pid, tid, self.until)?;
        found.retain(|found| !self.done.contains(&found.inode));
        Ok(found)
    }
}

impl Revoked {
    pub(super) fn cut_all(&mut self, everything: &Everything, members: &[Stat], until: Instant) -> Outside {
        let mut outside = Outside::default();
        let Some(proc_) = everything.proc_() else { return Outside { hidden: true, late: false } };
        let ties_hold = !limits::net_raw_is_in_reach() || without("net_raw");
        // Back where it was when everybody is cut.
        let held = std::mem::take(&mut self.frozen.held);
        let mut pass = Pass { proc_, until, ties_hold, done: HashSet::new(), tables: Vec::new(), held: &held };
        'members: for stat in members {
            if !everything.is_there(stat) {
                continue;
            }
            let mut threads = Vec::new();
            if stat.threads > 1 {
                // Every thread may have a table of its own (unshare(2), CLONE_FILES).
                let listed = proc_.each_number(&format!("{}/task", stat.pid), |tid| {
                    threads.push(tid);
                    true
                });
                if let Err(errno) = listed
                    && !proc::is_gone(errno)
                {
                    outside.hidden = true;
                    self.frozen.all = true;
                    self.error(format!("pid {}: its threads cannot be listed: {errno:?}", stat.pid));
                    continue;
                }
            }
            if threads.is_empty() {
                threads.push(stat.pid);
            }
            for tid in threads {
                if pass.is_late() {
                    outside.late = true;
                    break 'members;
                }
                match self.cut_thread(&mut pass, stat.pid, tid) {
                    Ok(()) => {}
                    // ptrace(2) has the same word for one that is there and not stopped.
                    Err(errno) if proc::is_gone(errno) && proc_.thread_is_gone(stat.pid, tid) => {}
                    Err(Errno::ETIME | Errno::ETIMEDOUT) => {
                        outside.late = true;
                        break 'members;
                    }
                    Err(errno) => {
                        outside.hidden = true;
                        self.frozen.all = true;
                        self.error(format!("pid {}: its sockets cannot be cut: {errno:?}", stat.pid));
                        break;
                    }
                }
            }
        }
        self.frozen.held = held;
        if outside.late {
            self.frozen.all = true;
            self.error("the time was over before every descriptor was looked at".to_owned());
        }
        outside
    }

    fn cut_thread(&mut self, pass: &mut Pass<'_>, pid: i32, tid: i32) -> Result<(), Errno> {
        let place = match pass.place(tid) {
            // It was walked through another thread, or another process, that shares it (CLONE_FILES).
            Ok(()) => return Ok(()),
            Err(place) => place,
        };
        let mut left = match pass.outside(pid, tid) {
            // One that has ended has given its table back, and what is left of it is shown as root's.
            Err(Errno::EACCES) if pass.proc_.thread_is_gone(pid, tid) => return Ok(()),
            found => found?,
        };
        if !left.is_empty() {
            if let Ok(process) = kill::pidfd_of_thread(pid, tid) {
                left.retain(|found| {
                    if pass.is_late() {
                        return true;
                    }
                    let cut = sockets::duplicate(process.as_fd(), found.fd)
                        .and_then(|socket| sockets::cut(socket.as_fd(), pass.ties_hold));
                    let Ok(led_outside) = cut else { return true };
                    self.cut = self.cut.saturating_add(u64::from(led_outside));
                    pass.done.insert(found.inode);
                    false
                });
            }
            self.close(pass, pid, tid, &left)?;
        }
        if let Some(at) = place {
            pass.tables.insert(at, tid);
        }
        Ok(())
    }

    /// Makes the thread close them itself, but for connections within loopback: these it ties to that, where the tie holds.
    fn close(&mut self, pass: &mut Pass<'_>, pid: i32, tid: i32, left: &[sockets::Found]) -> Result<(), Errno> {
        if left.is_empty() {
            return Ok(());
        }
        if pass.is_late() {
            return Err(Errno::ETIME);
        }
        let within = if pass.ties_hold { loopback(|_| true) } else { HashSet::new() };
        let mut traced = Traced::seize(pass.proc_, pid, tid, pass.until, pass.held.has(tid))?;
        let mut tied = false;
        for found in left {
            if pass.is_late() {
                return Err(Errno::ETIME);
            }
            if within.contains(&found.inode) && traced.tie_socket(found.fd)? {
                tied = true;
                continue;
            }
            match traced.close_socket(found.fd) {
                Ok(()) => self.cut = self.cut.saturating_add(1),
                Err(Errno::EBADF) => {}
                Err(errno) => return Err(errno),
            }
        }
        drop(traced);
        // What it says it closed or tied is looked for again: its own seccomp filter may have answered for the kernel.
        if tied {
            pass.done.extend(loopback(Socket::is_tied));
        }
        if pass.outside(pid, tid)?.is_empty() { Ok(()) } else { Err(Errno::EBUSY) }
    }
}

/// The inodes of the connections that have both ends on loopback; none where the kernel does not say.
fn loopback(but: impl Fn(&Socket) -> bool) -> HashSet<u64> {
    let open = sockdiag::tcp(&[state::ESTABLISHED]).unwrap_or_default();
    open.iter().filter(|s| s.is_within_loopback() && but(s)).map(|s| u64::from(s.inode)).collect()
}
