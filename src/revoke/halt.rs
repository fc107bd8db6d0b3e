//! Everything stopped and limited, until nobody runs and nobody new is there.
//!
//! A stop alone does not last: a timer's SIGCONT wakes who is stopped, and who runs forks. So the limits come first and the last looks after
//! them: who was limited and was then found still is in the midst of no fork and begins none.
//!
//! Invariant: over by the time given, a fork bomb or not; who may be in execve(2) is not traced, since ptrace(2) waits for it.

use super::{Frozen, Revoked};
use crate::kernel::kill::Everything;
use crate::kernel::proc::{Identity, Proc, Stat, is_gone};
use crate::kernel::{clock, limits, ptrace};
use crate::machine::types::Instant;
use crate::switches::without;
use nix::errno::Errno;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::time::Duration;

/// Looks at the whole workload while it comes to a stop.
const LOOKS: u32 = 200;
/// Who has not come to a stop after so long is held by ptrace.
const HOLD_AFTER: Duration = Duration::from_millis(50);
/// How often, and how soon again, one that cannot be let go of is asked to go.
const TRIES: u32 = 20;
const AGAIN: Duration = Duration::from_micros(500);
/// Processes between two looks at the clock.
const EACH: usize = 16;

/// Threads that are held by ptrace(2), with their processes: a SIGCONT does not wake them.
#[derive(Debug, Default)]
pub struct Held(BTreeMap<i32, i32>);

impl Held {
    /// Whether it is.
    #[must_use]
    pub fn has(&self, tid: i32) -> bool {
        self.0.contains_key(&tid)
    }

    /// Holds each thread of a process, unless one of them is in a call that no signal interrupts: it may be in execve(2).
    fn take(&mut self, proc_: &Proc, stat: &Stat) {
        let mut threads = Vec::new();
        let whole = proc_.each_thread(stat.pid, |thread| {
            let waits = thread.state == b'D';
            if !waits && !self.has(thread.pid) {
                threads.push(thread.pid);
            }
            !waits || proc_.is_still(stat.pid, thread)
        });
        for tid in threads.into_iter().filter(|_| whole) {
            // Who may not be traced is stopped by signals alone.
            if ptrace::hold(tid).is_ok() {
                self.0.insert(tid, stat.pid);
            }
        }
    }

    /// Lets go of all of them, each still stopped by a signal; whether that could be done. One whose process ends is on its way and no more to
    /// be asked: the first to go may be woken by a timer, and end it.
    fn let_go(&mut self, proc_: &Proc) -> bool {
        for _ in 0..TRIES {
            self.0.retain(|&tid, &mut pid| {
                ptrace::let_go(pid, tid).is_err_and(|errno| !is_gone(errno) || !proc_.thread_is_gone(pid, tid))
            });
            if self.0.is_empty() {
                return true;
            }
            clock::pause(AGAIN);
        }
        false
    }
}

impl Frozen {
    /// Lets go of who is held, where nobody has to be kept; whether that could be done.
    pub(super) fn let_go(&mut self, everything: &Everything) -> bool {
        everything.proc_().is_none_or(|proc_| self.held.let_go(proc_))
    }
}

/// What was found at the end.
pub struct Halted {
    /// Whether everything is stopped and limited, and nobody else can be there.
    pub settled: bool,
    /// Who is there; `None` where they cannot be listed.
    pub members: Option<Vec<Stat>>,
}

impl Revoked {
    /// Stops and limits everything by `until`; what did not come to a stop is limited all the same, by `end`.
    pub(super) fn halt(&mut self, everything: &mut Everything, until: Instant, end: Instant) -> Halted {
        let mut limited = HashSet::new();
        everything.hurry(Some(until));
        let settled = self.settle(everything, &mut limited, until);
        everything.hurry(Some(end));
        if settled {
            return Halted { settled, members: Some(everything.last_seen().to_vec()) };
        }
        let members = everything.members().map(<[Stat]>::to_vec);
        self.limit_new(everything, members.as_deref().unwrap_or_default(), &mut limited, end);
        Halted { settled, members }
    }

    fn settle(&mut self, everything: &mut Everything, limited: &mut HashSet<Identity>, until: Instant) -> bool {
        let began = clock::now();
        let patience = (until.since(began) / 4).min(HOLD_AFTER);
        // The look before: whom it found, all of them still, and the pid that had been given last when it began.
        let mut before: Option<(BTreeSet<Identity>, Option<u64>)> = None;
        let mut pause = Duration::from_micros(200);
        for _ in 0..LOOKS {
            let last_pid = everything.last_pid();
            let Some(still) = everything.stop(until) else { return false };
            let seen: BTreeSet<Identity> = everything.last_seen().iter().map(Stat::identity).collect();
            let new = seen.iter().any(|who| !limited.contains(who));
            if still && new {
                if without("early_limit") {
                    // For a control: what may happen between the look and the limits gets the time to happen.
                    clock::pause(Duration::from_millis(20));
                }
                let all = everything.last_seen().to_vec();
                self.limit_new(everything, &all, limited, until);
                if without("last_look") {
                    return true;
                }
            }
            // A look passes over whoever gets a number that it has behind it. Nobody did, where none was given since the look before
            // began; where that is not known, after one more look that finds nobody.
            if still && !new && before.as_ref().is_some_and(|(who, pid)| *who == seen && *pid == everything.last_pid())
            {
                return true;
            }
            before = (still && (!new || last_pid.is_some())).then_some((seen, last_pid));
            if clock::now().plus(pause) >= until {
                break;
            }
            if still {
                continue;
            }
            if clock::now().since(began) >= patience {
                self.hold(everything, until);
            }
            clock::pause(pause);
            pause = (pause * 2).min(Duration::from_millis(5));
        }
        false
    }

    /// Holds whom signals alone do not keep stopped.
    fn hold(&mut self, everything: &Everything, until: Instant) {
        let Some(proc_) = everything.proc_() else { return };
        for stat in everything.last_seen() {
            if clock::now() >= until {
                return;
            }
            if everything.is_there(stat) {
                self.frozen.held.take(proc_, stat);
            }
        }
    }

    /// RLIMIT_FSIZE, NOFILE and NPROC of 0 for who is not limited yet.
    ///
    /// prlimit(2) goes by the number. As PID 1 whoever may have got it since the look is one of the workload's as well, and new for the next
    /// look. Elsewhere it may be somebody else's: so who is there is asked again just before.
    fn limit_new(&mut self, everything: &Everything, all: &[Stat], limited: &mut HashSet<Identity>, until: Instant) {
        let new = all.iter().filter(|stat| !limited.contains(&stat.identity())).copied();
        for (n, stat) in new.collect::<Vec<_>>().into_iter().enumerate() {
            if n.is_multiple_of(EACH) && clock::now() >= until {
                self.is_part = true;
                self.frozen.all = true;
                self.error("the time was over before every process was limited".to_owned());
                return;
            }
            limited.insert(stat.identity());
            if everything.is_there(&stat) {
                self.limit(&stat);
            }
        }
    }

    fn limit(&mut self, stat: &Stat) {
        let mut whole = true;
        for (resource, name) in [
            (libc::RLIMIT_NPROC, "RLIMIT_NPROC"),
            (libc::RLIMIT_FSIZE, "RLIMIT_FSIZE"),
            (libc::RLIMIT_NOFILE, "RLIMIT_NOFILE"),
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
            self.is_part = true;
            self.frozen.all = true;
        }
    }
}
