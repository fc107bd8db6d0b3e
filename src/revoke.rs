//! The `revoke` rung (section 5), as a recipe over the kernel layer: stop everything and limit everything (`halt`), cut every socket that
//! leads outside (`cut`), let everything go; or nobody, where one could not be cut off.
//!
//! Nothing is armed before this. Invariants: it is over by `until`, at the latest when the kill is due; what could not be cut off stays
//! stopped, and so does whoever could continue it; no socket is touched before everything has come to a stop; a word of `enforced` is only
//! said where each step was taken for every process and the kernel accepted it.

mod cut;
mod halt;
mod left;

use crate::kernel::kill::Everything;
use crate::kernel::proc::{self, Stat};
use crate::kernel::sockdiag::Socket;
use crate::kernel::{clock, limits};
use crate::machine::types::Instant;
use crate::switches::without;
use cut::Outside;
use halt::{Halted, Held};
pub use left::{before, left};
use nix::errno::Errno;
use nix::sys::signal::Signal;
use std::time::Duration;

/// Lines of what could not be done; the rest is only counted by the words.
const ERRORS_KEPT: usize = 8;
/// What is said where no look found everything still, or nobody new.
const UNSETTLED: &str =
    "not everything came to a stop in time: no socket is cut, everything is stopped again and again";

/// What became of the rung.
#[derive(Debug, Default)]
pub struct Revoked {
    /// `enforced`, `degraded` or `unavailable`: files and new resources.
    pub files: &'static str,
    /// `enforced`, `degraded` or `unavailable`: the network.
    pub network: &'static str,
    /// Processes limited.
    pub limited: u64,
    /// Whether one of them was not, or not wholly.
    is_part: bool,
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
    /// Held by ptrace besides, which no SIGCONT ends.
    held: Held,
}

/// How long one look at what is to stay stopped may take.
const KEEPING: Duration = Duration::from_millis(5);

impl Frozen {
    /// Whether nobody has to be kept stopped.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        !self.all
    }

    /// Whether it is held by ptrace.
    #[must_use]
    pub fn holds(&self, tid: i32) -> bool {
        self.held.has(tid)
    }

    /// Keeps them stopped: a timer, or somebody who is none of ours, may have continued one.
    pub fn keep(&self, everything: &mut Everything) {
        if self.all {
            everything.stop(clock::now().plus(KEEPING));
        }
    }
}

/// Takes the rung: by `until`, and what remains to be done where not everything came to a stop by `end`, when the kill is due.
pub fn revoke(everything: &mut Everything, until: Instant, end: Instant) -> Revoked {
    let mut done = Revoked::default();
    done.take(everything, until, end);
    everything.hurry(None);
    done
}

impl Revoked {
    fn error(&mut self, line: String) {
        if self.errors.len() < ERRORS_KEPT {
            self.errors.push(line);
        }
    }

    fn take(&mut self, everything: &mut Everything, until: Instant, end: Instant) {
        let Halted { settled, members } = self.halt(everything, until, end);
        let Some(members) = members else {
            // Nobody can be named, so nobody is let go.
            self.files = "unavailable";
            self.network = "unavailable";
            self.error("the processes cannot be listed in time: everything is stopped again and again".to_owned());
            self.frozen.all = true;
            return;
        };
        let hidden = everything.hidden();
        let shown = hidden == 0 && (everything.namespace_is_empty() || !proc::hides());
        if settled && members.is_empty() && shown {
            // It ended while we looked.
            everything.signal(Signal::SIGCONT);
            self.files = "enforced";
            self.network = "enforced";
            self.stopped = Some(0);
            return;
        }
        let mut outside = Outside::default();
        if settled {
            outside = self.cut_all(everything, &members, until);
        } else {
            // Who is in a call may hold the lock of a socket, or of its memory, for as long as it likes: whoever touches it waits as well.
            self.frozen.all = true;
            self.error(UNSETTLED.to_owned());
        }
        if !shown {
            self.error("/proc hides processes (hidepid): not everything can be seen".to_owned());
            // As PID 1 whoever is hidden has been stopped with the others.
            self.frozen.all |= everything.is_pid1();
        }
        if self.frozen.is_empty() && !self.frozen.let_go(everything) {
            self.frozen.all = true;
            self.error("not everybody who was held by ptrace can be let go".to_owned());
        }
        self.words(settled && shown, outside);
        if self.frozen.all {
            let still = |stat: &&Stat| everything.proc_().is_some_and(|proc_| proc_.is_still(stat.pid, stat));
            let stopped = if settled { members.len() } else { members.iter().filter(still).count() };
            self.stopped = u64::try_from(stopped).ok();
        } else {
            everything.signal(Signal::SIGCONT);
            self.stopped = Some(0);
        }
    }

    fn words(&mut self, settled: bool, outside: Outside) {
        let unbound = limits::unbound().filter(|_| !without("capable"));
        if let Some(why) = unbound {
            self.error(why.to_owned());
        }
        self.files = match self.limited {
            _ if settled && !self.is_part && unbound.is_none() => "enforced",
            0 => "unavailable",
            _ => "degraded",
        };
        self.network =
            if settled && !outside.hidden && !outside.late && self.frozen.is_empty() { "enforced" } else { "degraded" };
    }

    /// Sockets that still send what was queued in them: nobody holds them, so nobody can cut them. Whose they are the kernel does not say: even
    /// PID 1 may share its network with other containers.
    pub fn unheld(&mut self, left: Result<Vec<Socket>, Errno>) {
        let mut said = Vec::new();
        match left {
            Ok(left) => {
                let (closed, hidden): (Vec<_>, Vec<_>) = left.into_iter().partition(|socket| socket.inode == 0);
                // What stays in a table was told already.
                let hidden = if self.network == "enforced" { hidden } else { Vec::new() };
                for (what, which) in [("closed sockets", closed), ("sockets in no descriptor table", hidden)] {
                    let bytes = which.iter().fold(0, |bytes, socket| bytes + u64::from(socket.queued));
                    if !which.is_empty() {
                        said.push(format!(
                            "{} {what}, which may be the workload's, still have {bytes} bytes to send",
                            which.len()
                        ));
                    }
                }
            }
            Err(errno) => said.push(format!("sockets that nobody holds cannot be looked for: {errno:?}")),
        }
        // What was not cut at all is not the better for it.
        if !said.is_empty() && self.network == "enforced" {
            self.network = "degraded";
        }
        said.into_iter().for_each(|said| self.error(said));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_looked_for_is_not_said_to_be_none() {
        let mut done = Revoked { network: "enforced", ..Revoked::default() };
        done.unheld(Ok(Vec::new()));
        assert_eq!((done.network, done.errors.len()), ("enforced", 0));
        done.unheld(Err(Errno::EPERM));
        assert_eq!(
            (done.network, done.errors),
            ("degraded", vec!["sockets that nobody holds cannot be looked for: EPERM".to_owned()])
        );
        let mut done = Revoked { network: "unavailable", ..Revoked::default() };
        done.unheld(Err(Errno::EPERM));
        assert_eq!(done.network, "unavailable");
    }
}
