//! The `revoke` rung (section 5), as a recipe over the kernel layer: stop everything, limit everything, cut every socket that
//! leads outside, let go what could be cut off.
//!
//! Nothing is armed before this. Invariants: it is over by `until`; what could not be cut off stays stopped; a word of
//! `enforced` is only said where each step was taken for every process and the kernel accepted it.

use crate::kernel::kill::{self, Everything};
use crate::kernel::proc::{Identity, Proc, Stat};
use crate::kernel::ptrace::Traced;
use crate::kernel::{clock, limits, sockets};
use crate::machine::types::Instant;
use nix::errno::Errno;
use nix::sys::signal::Signal;
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
    /// What stays stopped until `kill`.
    pub frozen: Frozen,
    /// What could not be done, and why.
    pub errors: Vec<String>,
}

/// The processes that stay stopped until `kill`.
#[derive(Debug, Default)]
pub struct Frozen {
    who: HashSet<Identity>,
    all: bool,
}

impl Frozen {
    /// Whether anybody has to be kept stopped.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.who.is_empty() && !self.all
    }

    /// Keeps them stopped. A sibling may continue one of them (SIGCONT needs no more than the same UID): then everything is
    /// stopped with it, since nothing less can be kept.
    pub fn keep(&mut self, everything: &mut Everything) {
        if !self.all {
            let Some(proc_) = everything.proc_() else { return };
            // SIGCONT is for all threads: one of them shows it.
            self.all =
                self.who.iter().any(|who| proc_.stat(who.pid).is_ok_and(|s| s.start == who.start && !is_still(&s)));
        }
        if self.all {
            everything.signal(Signal::SIGSTOP);
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
    if members.is_empty() {
        // It ended while we looked.
        everything.signal(Signal::SIGCONT);
        done.files = "enforced";
        done.network = "enforced";
        return done;
    }
    if !settled {
        done.error("not everything came to a stop in time".to_owned());
    }
    done.limit(&members);
    let outside = done.cut_all(everything, &members, until);
    done.words(settled, &members, outside);
    let_go(everything, &mut done.frozen);
    // Whoever is there now and was not then has inherited its limits, and its sockets were cut, or its parent is stopped.
    // Only where not everything had stopped can there be somebody who was missed.
    if !settled && let Some(now) = everything.members().map(<[Stat]>::to_vec) {
        let known: HashSet<Identity> = members.iter().map(Stat::identity).collect();
        let new: Vec<Stat> = now.into_iter().filter(|s| !known.contains(&s.identity())).collect();
        done.limit(&new);
        done.cut_all(everything, &new, until);
    }
    done
}

/// Stopped for us: by a signal, by a tracer that is itself stopped, or dead. A process in an uninterruptible call (a vfork
/// parent, whose child is stopped) takes the pending SIGSTOP before its next instruction.
const fn is_still(stat: &Stat) -> bool {
    matches!(stat.state, b'T' | b't' | b'D' | b'Z' | b'X' | b'x')
}

/// One thread may be kept from the stop of the others, or not have come to it: by a tracer, or in a call it is still making.
fn threads_are_still(proc_: Option<&Proc>, stat: &Stat, until: Instant) -> bool {
    stat.threads <= 1
        || proc_.is_some_and(|p| p.each_thread(stat.pid, |thread| is_still(thread) && clock::now() < until))
}

/// Stops everything: until two looks in a row find the same processes and all of them still. A process that was forked
/// between two looks was forked by one that was running then.
fn stop(everything: &mut Everything, until: Instant) -> bool {
    let mut before: Option<BTreeSet<Identity>> = None;
    let mut pause = Duration::from_micros(200);
    for _ in 0..LOOKS {
        everything.signal(Signal::SIGSTOP);
        let Some(members) = everything.members().map(<[Stat]>::to_vec) else { return false };
        let seen: BTreeSet<Identity> = members.iter().map(Stat::identity).collect();
        let still = members.iter().all(|stat| is_still(stat) && threads_are_still(everything.proc_(), stat, until));
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

fn let_go(everything: &mut Everything, frozen: &mut Frozen) {
    if frozen.all {
        return;
    }
    if frozen.is_empty() {
        everything.signal(Signal::SIGCONT);
        return;
    }
    let Some(members) = everything.members().map(<[Stat]>::to_vec) else { return };
    let Some(proc_) = everything.proc_() else { return };
    // A tracer can keep the stop from what it traces, so it stays stopped as well.
    let tracers: Vec<i32> = frozen.who.iter().flat_map(|who| tracers(proc_, who.pid)).collect();
    frozen.who.extend(members.iter().filter(|s| tracers.contains(&s.pid)).map(Stat::identity));
    for stat in members.iter().filter(|s| !frozen.who.contains(&s.identity())) {
        // Gone meanwhile is as good.
        let _ = kill::send(proc_, stat.identity(), Signal::SIGCONT);
    }
}

/// Who traces the threads of a process (proc_pid_status(5), TracerPid).
fn tracers(proc_: &Proc, pid: i32) -> BTreeSet<i32> {
    let mut found = BTreeSet::new();
    // One that is gone is traced by nobody.
    let _ = proc_.each_number(&format!("{pid}/task"), |tid| {
        let mut text = [0u8; 4096];
        let path = std::ffi::CString::new(format!("{pid}/task/{tid}/status")).unwrap_or_default();
        let n = proc_.read(&path, &mut text).unwrap_or(0);
        let text = String::from_utf8_lossy(text.get(..n).unwrap_or_default());
        let tracer = text.lines().find_map(|l| l.strip_prefix("TracerPid:")).and_then(|n| n.trim().parse().ok());
        found.extend(tracer.filter(|&pid: &i32| pid > 0));
    });
    found
}

/// Whether there was anything to cut, and whether everything could be seen.
#[derive(Debug, Default, Clone, Copy)]
struct Outside {
    hidden: bool,
    late: bool,
}

impl Revoked {
    fn error(&mut self, line: String) {
        if self.errors.len() < ERRORS_KEPT {
            self.errors.push(line);
        }
    }

    /// RLIMIT_FSIZE, NOFILE and NPROC of 0. While everything is stopped nobody is reaped but by us, and we do not reap here:
    /// the numbers cannot have been reused.
    fn limit(&mut self, members: &[Stat]) {
        for stat in members {
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
                self.frozen.who.insert(stat.identity());
            }
        }
    }

    fn cut_all(&mut self, everything: &Everything, members: &[Stat], until: Instant) -> Outside {
        let mut outside = Outside::default();
        let Some(proc_) = everything.proc_() else { return Outside { hidden: true, late: false } };
        // Sockets cut through a duplicate are cut for whoever else holds them.
        let mut done: HashSet<u64> = HashSet::new();
        for stat in members {
            if clock::now() >= until {
                outside.late = true;
                self.frozen.who.insert(stat.identity());
                continue;
            }
            let mut threads = Vec::new();
            if stat.threads > 1 {
                // Every thread may have a table of its own (unshare(2), CLONE_FILES).
                let _ = proc_.each_number(&format!("{}/task", stat.pid), |tid| threads.push(tid));
            }
            if threads.is_empty() {
                threads.push(stat.pid);
            }
            for tid in threads {
                match self.cut_thread(proc_, stat.pid, tid, &mut done) {
                    Ok(()) | Err(Errno::ENOENT | Errno::ESRCH) => {}
                    Err(errno) => {
                        outside.hidden = true;
                        self.error(format!("pid {} stays stopped: its sockets cannot be cut: {errno:?}", stat.pid));
                        self.frozen.who.insert(stat.identity());
                        break;
                    }
                }
            }
        }
        if outside.late {
            self.error("the time was over before every process was looked at".to_owned());
        }
        outside
    }

    fn cut_thread(&mut self, proc_: &Proc, pid: i32, tid: i32, done: &mut HashSet<u64>) -> Result<(), Errno> {
        let mut left = match sockets::outside(proc_, pid, tid) {
            // One that has ended has given its table back, and what is left of it is shown as root's.
            Err(Errno::EACCES) if proc_.thread_ended(pid, tid) => return Ok(()),
            found => found?,
        };
        left.retain(|found| !done.contains(&found.inode));
        if left.is_empty() {
            return Ok(());
        }
        if let Ok(process) = kill::pidfd_of_thread(pid, tid) {
            left.retain(|found| {
                let cut = sockets::duplicate(process.as_fd(), found.fd).and_then(|socket| sockets::cut(socket.as_fd()));
                match cut {
                    Ok(led_outside) => {
                        self.cut = self.cut.saturating_add(u64::from(led_outside));
                        done.insert(found.inode);
                        false
                    }
                    Err(_) => true,
                }
            });
        }
        if left.is_empty() {
            return Ok(());
        }
        let mut traced = Traced::seize(pid, tid)?;
        for found in &left {
            match traced.close_socket(found.fd) {
                Ok(()) => self.cut = self.cut.saturating_add(1),
                Err(Errno::EBADF) => {}
                Err(errno) => return Err(errno),
            }
        }
        drop(traced);
        // What it says it closed is looked for again: its own seccomp filter may have answered for the kernel.
        let mut still = sockets::outside(proc_, pid, tid)?;
        still.retain(|found| !done.contains(&found.inode));
        if still.is_empty() { Ok(()) } else { Err(Errno::EBUSY) }
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

    /// Closed sockets that still send what was queued in them: nobody holds them, so nobody can cut them.
    pub fn orphans(&mut self, count: u64, bytes: u64) {
        if count > 0 {
            self.network = "degraded";
            self.error(format!("{count} closed sockets still have {bytes} bytes to send"));
        }
    }

    /// How many processes stay stopped.
    #[must_use]
    pub fn frozen(&self) -> u64 {
        u64::try_from(self.frozen.who.len()).unwrap_or(u64::MAX)
    }
}
