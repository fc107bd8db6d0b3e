//! What the workload gets before exec (section 3), as a recipe: the order matters, each step's outcome is a value.
//!
//! Invariant: `apply` runs between fork and exec, so it allocates nothing and never stops half-way: a step that the
//! kernel refuses is reported, and the next one is taken.

use crate::kernel::limits;
use crate::kernel::outcome::{Cause, Outcome};
use crate::kernel::spawn::{Prepare, REPORT};
use crate::settings::Settings;
use nix::errno::Errno;
use std::os::fd::RawFd;

/// The steps, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Own session and process group, or the terminal's foreground group.
    ProcessGroup,
    /// Dispositions back to their defaults (the mask follows last, in `spawn`).
    Signals,
    /// Nothing above stderr is inherited.
    Descriptors,
    /// No core dumps.
    CoreDumps,
    /// The rlimits asked for.
    Rlimits,
    /// The OOM killer takes the workload first.
    OomScoreAdj,
    /// The command dies with a supervisor that is not PID 1.
    ParentDeathSignal,
    /// No privilege through exec.
    NoNewPrivs,
}

impl Step {
    /// Every step, in order.
    pub const ALL: [Self; 8] = [
        Self::ProcessGroup,
        Self::Signals,
        Self::Descriptors,
        Self::CoreDumps,
        Self::Rlimits,
        Self::OomScoreAdj,
        Self::ParentDeathSignal,
        Self::NoNewPrivs,
    ];

    /// The name in the record's `enforcement`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::ProcessGroup => "process_group",
            Self::Signals => "signals",
            Self::Descriptors => "descriptors",
            Self::CoreDumps => "core_dumps",
            Self::Rlimits => "rlimits",
            Self::OomScoreAdj => "oom_score_adj",
            Self::ParentDeathSignal => "parent_death_signal",
            Self::NoNewPrivs => "no_new_privs",
        }
    }

    const fn call(self) -> &'static str {
        match self {
            Self::ProcessGroup => "setsid",
            Self::Signals => "sigaction",
            Self::Descriptors => "close_range",
            Self::CoreDumps => "setrlimit RLIMIT_CORE",
            Self::Rlimits => "setrlimit",
            Self::OomScoreAdj => "write /proc/self/oom_score_adj",
            Self::ParentDeathSignal => "prctl PR_SET_PDEATHSIG",
            Self::NoNewPrivs => "prctl PR_SET_NO_NEW_PRIVS",
        }
    }
}

/// What the steps need to know, made before the fork.
#[derive(Debug, Clone, Copy)]
pub struct Confinement {
    terminal: bool,
    pid1: bool,
    supervisor: i32,
    rlimits: [(libc::__rlimit_resource_t, Option<u64>); 3],
}

impl Confinement {
    /// Everything that is allocated or looked up is done here.
    #[must_use]
    pub fn prepare(settings: &Settings, pid1: bool, terminal: bool) -> Self {
        Self {
            terminal,
            pid1,
            supervisor: nix::unistd::getpid().as_raw(),
            rlimits: [
                (libc::RLIMIT_NPROC, settings.nproc),
                (libc::RLIMIT_NOFILE, settings.nofile),
                (libc::RLIMIT_FSIZE, settings.fsize),
            ],
        }
    }

    fn take(&self, step: Step, keep: &[RawFd]) -> Option<Result<(), Errno>> {
        Some(match step {
            Step::ProcessGroup if self.terminal => {
                let group = nix::unistd::getpid();
                nix::unistd::setpgid(group, group).and_then(|()| limits::take_foreground(group.as_raw()))
            }
            Step::ProcessGroup => nix::unistd::setsid().map(drop),
            Step::Signals => {
                limits::default_dispositions();
                Ok(())
            }
            Step::Descriptors => limits::close_others(keep),
            Step::CoreDumps => limits::set(libc::RLIMIT_CORE, 0),
            Step::Rlimits => {
                if self.rlimits.iter().all(|(_, value)| value.is_none()) {
                    return None;
                }
                self.rlimits.iter().filter_map(|(r, v)| v.map(|v| limits::set(*r, v))).fold(Ok(()), Result::and)
            }
            Step::OomScoreAdj => {
                // The supervisor is not dumpable and neither is its copy, which closes this file to its owner
                // (proc(5)); exec resets the flag, and nothing of the workload is there yet to use the instant.
                let _ = nix::sys::prctl::set_dumpable(true);
                limits::oom_first()
            }
            Step::ParentDeathSignal => {
                if self.pid1 {
                    return None;
                }
                let set = nix::sys::prctl::set_pdeathsig(Some(nix::sys::signal::Signal::SIGKILL));
                if set.is_ok() && nix::unistd::getppid().as_raw() != self.supervisor {
                    // The supervisor died before the call: nobody would ever send the signal.
                    let _ = nix::sys::signal::raise(nix::sys::signal::Signal::SIGKILL);
                }
                set
            }
            Step::NoNewPrivs => nix::sys::prctl::set_no_new_privs(),
        })
    }
}

const NOT_TAKEN: u8 = 0;
const DONE: u8 = 1;
const REFUSED: u8 = 2;
const SLOT: usize = 5;

impl Prepare for Confinement {
    fn apply(&self, keep: &[RawFd], report: &mut [u8; REPORT]) {
        for (step, slot) in Step::ALL.into_iter().zip(report.chunks_exact_mut(SLOT)) {
            let (state, errno) = match self.take(step, keep) {
                None => (NOT_TAKEN, 0),
                Some(Ok(())) => (DONE, 0),
                Some(Err(errno)) => (REFUSED, errno as i32),
            };
            if let Some((first, rest)) = slot.split_first_mut() {
                *first = state;
                rest.copy_from_slice(&errno.to_ne_bytes());
            }
        }
    }
}

/// The steps' outcomes from the child's report; steps that do not apply here are left out.
#[must_use]
pub fn outcomes(report: &[u8]) -> Vec<(&'static str, Outcome)> {
    Step::ALL
        .into_iter()
        .zip(report.chunks_exact(SLOT))
        .filter_map(|(step, slot)| match *slot {
            [DONE, ..] => Some((step.name(), Outcome::Enforced)),
            [REFUSED, a, b, c, d] => {
                let errno = Errno::from_raw(i32::from_ne_bytes([a, b, c, d]));
                Some((step.name(), Outcome::Unavailable(Cause::refused(step.call(), errno))))
            }
            _ => None,
        })
        .collect()
}
