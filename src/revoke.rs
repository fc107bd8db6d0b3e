//! The `revoke` rung (section 5), as a recipe over the kernel layer: stop everything, limit everything, cut every socket that
//! leads outside, let everything go; or nobody, where one could not be cut off.
//!
//! Nothing is armed before this. Invariants: it is over by `until`; what could not be cut off stays stopped, and so does whoever could
//! continue it; no socket is touched before everything has come to a stop; a word of `enforced` is only said where each step was taken
//! for every process and the kernel accepted it.

use crate::kernel::kill::{self, Everything};
use crate::kernel::proc::{self, Identity, Proc, Stat};
use crate::kernel::ptrace::Traced;
use crate::kernel::sockdiag::Socket;
use crate::kernel::{clock, limits, sockets};
use crate::machine::types::Instant;
use crate::switches::without;
use nix::errno::Errno;
use nix::sys::signal::Signal;
use std::cmp::Ordering;
use std::collections::{BTreeSet, HashSet};
use std::os::fd::AsFd;
use std::time::Duration;

/// Lines of what could not be done; the rest is only counted by the words.
const ERRORS_KEPT: usize = 8;
/// Looks at the whole workload while it comes to a stop, before the limits are set all the same.
const LOOKS: u32 = 200;

/// What became of the rung.
#[derive(Debug, Default)]
pub struct Revoked {
    /// `enforced`, `degraded` or `unavailable`: files and new resources.
    pub files: &'static str,
    /// `enforced`, `degraded` or `unavailable`: the network.
    pub network: &'static str,
    /// Processes limited.
    pub limited: u64,
    /// Sockets cut.
    pub cut: u64,
    /// Whether everything stays stopped until `kill`.
    pub frozen: Frozen,
    /// How many stay stopped; `None` where they cannot be counted.
    pub stopped: Option<u64>,
    /// What could not be done, and why.
    pub errors: Vec<String>,
}

/// Whether everything stays stopped until `kill`. Nobody is let go beside one that has to be kept: who runs can continue who is
/// stopped (SIGCONT needs no more than the same UID), as often as it is stopped again.
#[derive(Debug, Default)]
pub struct Frozen {
    all: bool,
}

/// How long one look at what is to stay stopped may take.
const KEEPING: Duration = Duration::from_millis(5);

impl Frozen {
    /// Whether nobody has to be kept stopped.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        !self.all
    }

    /// Keeps them stopped: a timer, or somebody who is none of ours, may have continued one.
    pub fn keep(&self, everything: &mut Everything) {
        if self.all {
            everything.stop(clock::now().plus(KEEPING));
        }
    }
}

/// Takes the rung.
pub fn revoke(everything: &mut Everything, until: Instant) -> Revoked {
    let mut done = Revoked::default();
    let settled = stop(everything, until);
    let Some(members) = everything.members().map(<[Stat]>::to_vec) else {
        // Nobody can be named, so nobody is let go.
        done.files = "unavailable";
        done.network = "unavailable";
        done.error("the processes cannot be listed in time: everything stays stopped".to_owned());
        done.frozen.all = true;
        return done;
    };
    let hidden = everything.hidden();
    let shown = hidden == 0 && (everything.namespace_is_empty() || !proc::hides());
    if members.is_empty() && shown {
        // It ended while we looked.
        everything.signal(Signal::SIGCONT);
        done.files = "enforced";
        done.network = "enforced";
        done.stopped = Some(0);
        return done;
    }
    done.limit(everything, &members);
    let mut outside = Outside::default();
    if settled {
        outside = done.cut_all(everything, &members, until);
    } else {
        // Who is in a call may hold the lock of a socket, or of its memory, for as long as it likes: whoever touches it waits as well.
        done.frozen.all = true;
        done.error("not everything came to a stop in time: no socket is cut, everything stays stopped".to_owned());
    }
    if !shown {
        done.error("/proc hides processes (hidepid): not everything can be seen".to_owned());
        // As PID 1 whoever is hidden has been stopped with the others.
        done.frozen.all |= everything.is_pid1();
    }
    done.words(settled && shown, &members, outside);
    // Whoever is there now and was not then has inherited its limits, and its parent is stopped. Only where not everything had
    // stopped can there be somebody who was missed.
    let mut now = members;
    if !settled && let Some(all) = everything.members() {
        let known: HashSet<Identity> = now.iter().map(Stat::identity).collect();
        now = all.to_vec();
        let new: Vec<Stat> = now.iter().filter(|s| !known.contains(&s.identity())).copied().collect();
        done.limit(everything, &new);
    }
    if done.frozen.all {
        let still = |stat: &&Stat| everything.proc_().is_some_and(|proc_| proc_.is_still(stat.pid, stat));
        let stopped = if settled { now.len() } else { now.iter().filter(still).count() };
        done.stopped = u64::try_from(stopped).ok();
    } else {
        everything.signal(Signal::SIGCONT);
        done.stopped = Some(0);
    }
    done
}

/// Stops everything: until two looks in a row find the same processes and all of them still. A process that was forked
/// between two looks was forked by one that was running then.
fn stop(everything: &mut Everything, until: Instant) -> bool {
    let mut before: Option<BTreeSet<Identity>> = None;
    let mut pause = Duration::from_micros(200);
    for _ in 0..LOOKS {
        let Some(still) = everything.stop(until) else { return false };
        let seen: BTreeSet<Identity> = everything.last_seen().iter().map(Stat::identity).collect();
        if still && before.as_ref() == Some(&seen) {
            return true;
        }
        before = still.then_some(seen);
        if clock::now().plus(pause) >= until {
            break;
        }
        if !still {
            clock::pause(pause);
            pause = (pause * 2).min(Duration::from_millis(5));
        }
    }
    false
}

/// Whether there was anything to cut, and whether everything could be seen.
#[derive(Debug, Default, Clone, Copy)]
struct Outside {
    hidden: bool,
    late: bool,
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
    fn error(&mut self, line: String) {
        if self.errors.len() < ERRORS_KEPT {
            self.errors.push(line);
        }
    }

    /// RLIMIT_FSIZE, NOFILE and NPROC of 0. While everything is stopped nobody is reaped but by us, and we do not reap here:
    /// the numbers cannot have been reused.
    fn limit(&mut self, everything: &Everything, members: &[Stat]) {
        for stat in members {
            if !everything.is_there(stat) {
                // It needs no limit; whoever has its number is none of ours.
                self.limited = self.limited.saturating_add(1);
                continue;
            }
            let mut whole = true;
            for (resource, name) in [
                (libc::RLIMIT_FSIZE, "RLIMIT_FSIZE"),
                (libc::RLIMIT_NOFILE, "RLIMIT_NOFILE"),
                (libc::RLIMIT_NPROC, "RLIMIT_NPROC"),
            ] {
                match limits::take_away(stat.pid, resource) {
                    Ok(()) | Err(Errno::ESRCH) => {}
                    Err(errno) => {
                        if whole {
                            self.error(format!("prlimit {name} of pid {}: {errno:?}", stat.pid));
                        }
                        whole = false;
                    }
                }
            }
            if whole {
                self.limited = self.limited.saturating_add(1);
            } else {
                self.frozen.all = true;
            }
        }
    }

    fn cut_all(&mut self, everything: &Everything, members: &[Stat], until: Instant) -> Outside {
        let mut outside = Outside::default();
        let Some(proc_) = everything.proc_() else { return Outside { hidden: true, late: false } };
        let ties_hold = !limits::net_raw_is_in_reach() || without("net_raw");
        let mut pass = Pass { proc_, until, ties_hold, done: HashSet::new(), tables: Vec::new() };
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

    /// Makes the thread close them itself.
    fn close(&mut self, pass: &Pass<'_>, pid: i32, tid: i32, left: &[sockets::Found]) -> Result<(), Errno> {
        if left.is_empty() {
            return Ok(());
        }
        if pass.is_late() {
            return Err(Errno::ETIME);
        }
        let mut traced = Traced::seize(pass.proc_, pid, tid, pass.until)?;
        for found in left {
            if pass.is_late() {
                return Err(Errno::ETIME);
            }
            match traced.close_socket(found.fd) {
                Ok(()) => self.cut = self.cut.saturating_add(1),
                Err(Errno::EBADF) => {}
                Err(errno) => return Err(errno),
            }
        }
        drop(traced);
        // What it says it closed is looked for again: its own seccomp filter may have answered for the kernel.
        if pass.outside(pid, tid)?.is_empty() { Ok(()) } else { Err(Errno::EBUSY) }
    }

    fn words(&mut self, settled: bool, members: &[Stat], outside: Outside) {
        let all = u64::try_from(members.len()).unwrap_or(u64::MAX);
        let root = limits::nproc_does_not_bind();
        if root {
            self.error("RLIMIT_NPROC does not bind UID 0".to_owned());
        }
        self.files = match self.limited {
            n if n >= all && settled && !root => "enforced",
            0 => "unavailable",
            _ => "degraded",
        };
        self.network =
            if settled && !outside.hidden && !outside.late && self.frozen.is_empty() { "enforced" } else { "degraded" };
    }

    /// Closed sockets that still send what was queued in them: nobody holds them, so nobody can cut them. `whose` says whose they are.
    pub fn orphans(&mut self, closed: Result<Vec<Socket>, Errno>, whose: &str) {
        let said = match closed {
            Ok(none) if none.is_empty() => return,
            Ok(closed) => {
                let bytes = closed.iter().fold(0, |bytes, socket| bytes + u64::from(socket.queued));
                format!("{} closed sockets{whose} still have {bytes} bytes to send", closed.len())
            }
            Err(errno) => format!("closed sockets cannot be looked for: {errno:?}"),
        };
        self.network = "degraded";
        self.error(said);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_looked_for_is_not_said_to_be_none() {
        let mut done = Revoked { network: "enforced", ..Revoked::default() };
        done.orphans(Ok(Vec::new()), "");
        assert_eq!((done.network, done.errors.len()), ("enforced", 0));
        done.orphans(Err(Errno::EPERM), "");
        assert_eq!(
            (done.network, done.errors),
            ("degraded", vec!["closed sockets cannot be looked for: EPERM".to_owned()])
        );
    }
}
