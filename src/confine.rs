//! What the workload gets before exec (section 3), as a recipe: the order matters, each step's outcome is a value.
//!
//! Everything is made and judged in `prepare`. Invariant: `apply` runs between fork and exec, so it allocates nothing
//! and never stops half-way: a step that the kernel refuses is reported, and the next one is taken.

mod report;

pub use report::{Report, outcomes};

use crate::kernel::cpu::{self, Share};
use crate::kernel::landlock::{self, Domain};
use crate::kernel::limits;
use crate::kernel::memory;
use crate::kernel::mounts::Mount;
use crate::kernel::outcome::{Cause, OFF, Outcome};
use crate::kernel::seccomp::{self, Filter};
use crate::kernel::signals;
use crate::kernel::spawn::{Prepare, REPORT};
use crate::kernel::terminal;
use crate::settings::{Filesystem, Network, Settings};
use crate::switches::without;
use nix::errno::Errno;
use nix::sys::signal::SigSet;
use std::ffi::CString;
use std::os::fd::RawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// The steps, in the order they are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Own session and process group, or the terminal's foreground group.
    ProcessGroup,
    /// Dispositions back to their defaults (the mask follows last, in `spawn`); after nohup(1) SIGHUP stays ignored.
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
    /// One CPU is the supervisor's; before the filter, which refuses to take it back.
    ReservedCpu,
    /// The working directory, where asked for.
    Workdir,
    /// What may be written.
    Landlock,
    /// Signals stay inside the workload.
    SignalScope,
    /// No call touches the supervisor.
    SeccompFilter,
    /// No socket but AF_UNIX, where asked for.
    NetworkDeny,
}

impl Step {
    /// Every step, in order.
    pub const ALL: [Self; 14] = [
        Self::ProcessGroup,
        Self::Signals,
        Self::Descriptors,
        Self::CoreDumps,
        Self::Rlimits,
        Self::OomScoreAdj,
        Self::ParentDeathSignal,
        Self::NoNewPrivs,
        Self::ReservedCpu,
        Self::Workdir,
        Self::Landlock,
        Self::SignalScope,
        Self::SeccompFilter,
        Self::NetworkDeny,
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
            Self::ReservedCpu => "reserved_cpu",
            Self::Workdir => "workdir",
            Self::Landlock => "landlock",
            Self::SignalScope => "signal_scope",
            Self::SeccompFilter => "seccomp_filter",
            Self::NetworkDeny => "network_deny",
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
            Self::ReservedCpu => "sched_setaffinity",
            Self::Workdir => "chdir",
            Self::Landlock | Self::SignalScope => "landlock_restrict_self",
            Self::SeccompFilter | Self::NetworkDeny => "prctl PR_SET_SECCOMP",
        }
    }
}

/// What `prepare` is told.
#[derive(Debug)]
pub struct Context<'a> {
    /// The run's settings.
    pub settings: &'a Settings,
    /// Whether the supervisor is PID 1.
    pub pid1: bool,
    /// The supervisor's pid.
    pub supervisor: i32,
    /// The number of its other thread.
    pub thread: Option<i32>,
    /// Whether the workload becomes the terminal's foreground group instead of a session of its own.
    pub terminal: bool,
    /// The audit file, where it is on disk.
    pub audit_path: Option<&'a Path>,
    /// The supervisor's own executable.
    pub binary: Option<&'a Path>,
    /// What is mounted, where it could be read.
    pub mounts: Option<&'a [Mount]>,
    /// The mask in force before the supervisor blocked its signals; restored by `spawn`, not here.
    pub old_mask: SigSet,
}

/// What the steps need to know, made before the fork.
#[derive(Debug)]
pub struct Confinement {
    terminal: bool,
    pid1: bool,
    supervisor: i32,
    thread: Option<i32>,
    no_hangups: bool,
    rlimits: [(libc::__rlimit_resource_t, Option<u64>); 3],
    oom_sticks: bool,
    share: Share,
    workdir: Option<CString>,
    domain: Domain,
    filter: Filter,
    network_deny: bool,
}

const SYS_RESOURCE: u32 = 24;

impl Confinement {
    /// Everything that is allocated or looked up is done here.
    #[must_use]
    pub fn prepare(ctx: &Context<'_>) -> Self {
        let settings = ctx.settings;
        let capabilities = limits::capabilities();
        let capable = |number: u32| (capabilities >> number) & 1 == 1;
        let confined = settings.filesystem == Filesystem::Confined;
        let start = settings.workdir.clone().or_else(|| std::env::current_dir().ok());
        let home = settings.workload_env.iter().find(|(name, _)| name == "HOME").map(|(_, home)| PathBuf::from(home));
        let mut writable = settings.writable.clone();
        // The root is a container's default and nobody's place to work: with it everything would be writable.
        writable.extend(start.iter().filter_map(|dir| dir.canonicalize().ok()).filter(|dir| dir.parent().is_some()));
        let homes: Vec<PathBuf> = start.into_iter().chain(home).collect();
        let domain = Domain::build(&landlock::Wanted {
            audit_dir: ctx.audit_path.and_then(Path::parent),
            binary: ctx.binary,
            confined: confined.then_some(writable.as_slice()),
            homes: &homes,
            may_mount: limits::may_mount(),
            mounts: ctx.mounts,
        });
        let share = Share::read();
        let network_deny = settings.network == Network::Deny;
        let filter = Filter::assemble(&seccomp::Wanted {
            supervisor: ctx.supervisor,
            thread: ctx.thread.filter(|_| !without("own_thread")),
            group: nix::unistd::getpgrp().as_raw(),
            pid1: ctx.pid1,
            scoped: domain.scopes(),
            reserved_cpu: matches!(share, Share::Reserved { .. }),
            network_deny,
        });
        Self {
            terminal: ctx.terminal,
            pid1: ctx.pid1,
            supervisor: ctx.supervisor,
            thread: ctx.thread,
            no_hangups: signals::hangups_are_ignored(),
            rlimits: [
                // Our other thread counts as one of the user's processes, and is none of the workload's.
                (libc::RLIMIT_NPROC, settings.nproc.map(|most| most.saturating_add(u64::from(ctx.thread.is_some())))),
                (libc::RLIMIT_NOFILE, settings.nofile),
                (libc::RLIMIT_FSIZE, settings.fsize),
            ],
            // With CAP_SYS_RESOURCE the value becomes the floor too (proc_pid_oom_score_adj(5)).
            oom_sticks: capable(SYS_RESOURCE) || (confined && domain.files.word() != "unavailable"),
            share,
            // A relative one is left to `spawn`: taken twice it would name another directory.
            workdir: settings
                .workdir
                .as_ref()
                .filter(|dir| dir.is_absolute())
                .and_then(|dir| CString::new(dir.as_os_str().as_bytes()).ok()),
            domain,
            filter,
            network_deny,
        }
    }

    /// The parent moves to the CPU that the workload keeps off; after spawn.
    #[must_use]
    pub fn settle_supervisor(&self) -> Option<Outcome> {
        match &self.share {
            Share::Reserved { supervisor, .. } => {
                let thread = self.thread.map_or(Ok(()), |thread| cpu::bind(thread, supervisor));
                Some(Outcome::of("sched_setaffinity", cpu::bind(0, supervisor).and(thread)))
            }
            Share::Free | Share::Tight => None,
        }
    }

    /// Whether the supervisor had another thread when this was made.
    #[must_use]
    pub const fn has_thread(&self) -> bool {
        self.thread.is_some()
    }

    /// Whether there is a CPU quota.
    #[must_use]
    pub const fn is_under_a_quota(&self) -> bool {
        !matches!(self.share, Share::Free)
    }

    /// The parent's pages are kept in memory, before spawn, where the workload can take them: under a quota, in which their way back
    /// has to be paid for, and where its memory is `limited`, so that there may be no way back. There some is set aside for the scrub as well.
    #[must_use]
    pub fn lock_supervisor(&self, limited: bool) -> Option<Outcome> {
        (limited || self.is_under_a_quota()).then(|| {
            if without("supervisor_memory") {
                return Outcome::Unavailable(Cause::because(OFF));
            }
            let locked = Outcome::of("mlockall", memory::lock());
            match limited.then(memory::set_aside) {
                Some(Err(errno)) => Outcome::Unavailable(Cause::refused("mmap", errno)),
                Some(Ok(())) | None => locked,
            }
        })
    }

    /// Takes every step, in the forked child. `keep` are descriptors to leave open, at most six, in ascending order.
    pub fn apply(&self, keep: &[RawFd], report: &mut Report) {
        for step in Step::ALL {
            if let Some(outcome) = self.take(step, keep, report) {
                report.put(step, outcome);
            }
        }
    }

    fn take(&self, step: Step, keep: &[RawFd], report: &Report) -> Option<Outcome> {
        // The two of the domain are switched off where it is built.
        if !matches!(step, Step::Landlock | Step::SignalScope) && without(step.name()) {
            return Some(Outcome::Unavailable(Cause::because(OFF)));
        }
        let result = match step {
            Step::ProcessGroup if self.terminal => {
                let group = nix::unistd::getpid();
                nix::unistd::setpgid(group, group).and_then(|()| terminal::take_foreground(group.as_raw()))
            }
            // In a session of its own no SIGTTIN would keep it from what somebody else is typing.
            Step::ProcessGroup if terminal::is_behind() => {
                let left = terminal::leave();
                nix::unistd::setsid().map(drop).and(left)
            }
            Step::ProcessGroup => nix::unistd::setsid().map(drop),
            Step::Signals => {
                limits::default_dispositions(self.no_hangups.then_some(libc::SIGHUP));
                Ok(())
            }
            Step::Descriptors => self.close_others(keep),
            Step::CoreDumps => limits::set(libc::RLIMIT_CORE, 0),
            Step::Rlimits => {
                if self.rlimits.iter().all(|(_, value)| value.is_none()) {
                    return None;
                }
                self.rlimits.iter().filter_map(|(r, v)| v.map(|v| limits::set(*r, v))).fold(Ok(()), Result::and)
            }
            Step::OomScoreAdj => match oom_first() {
                Ok(()) if !self.oom_sticks => return Some(Outcome::Degraded(Cause::because(LOWERED))),
                other => other,
            },
            Step::ParentDeathSignal if self.pid1 => return None,
            Step::ParentDeathSignal => self.die_with_supervisor(),
            Step::NoNewPrivs => nix::sys::prctl::set_no_new_privs(),
            Step::ReservedCpu => match &self.share {
                Share::Free => return Some(Outcome::Unavailable(Cause::because(NO_QUOTA))),
                Share::Reserved { workload, .. } => match (cpu::bind(0, workload), cpu::lower_priority()) {
                    (Ok(()), Err(errno)) => return Some(Outcome::Degraded(Cause::refused("setpriority", errno))),
                    (bound, _) => bound,
                },
                Share::Tight => match cpu::lower_priority() {
                    Ok(()) => return Some(Outcome::Degraded(Cause::because(TIGHT))),
                    Err(errno) => return Some(Outcome::Unavailable(Cause::refused("setpriority", errno))),
                },
            },
            Step::Workdir => nix::unistd::chdir(self.workdir.as_deref()?),
            Step::Landlock => match self.domain.enter() {
                Ok(()) => return Some(self.domain.files),
                refused => refused,
            },
            // Entered with the step before: the same call, the same refusal.
            Step::SignalScope => match report.errno(Step::Landlock) {
                Some(errno) => Err(errno),
                None => return Some(self.domain.scope),
            },
            Step::SeccompFilter => self.filter.install(),
            Step::NetworkDeny if !self.network_deny => return None,
            Step::NetworkDeny => report.errno(Step::SeccompFilter).map_or(Ok(()), Err),
        };
        Some(Outcome::of(step.call(), result))
    }

    fn close_others(&self, keep: &[RawFd]) -> Result<(), Errno> {
        let mut all = [-1; 8];
        let kept = keep.iter().copied().chain(self.domain.fd());
        all.iter_mut().zip(kept).for_each(|(slot, fd)| *slot = fd);
        all.sort_unstable();
        limits::close_others(&all)
    }

    fn die_with_supervisor(&self) -> Result<(), Errno> {
        nix::sys::prctl::set_pdeathsig(Some(nix::sys::signal::Signal::SIGKILL))?;
        if nix::unistd::getppid().as_raw() != self.supervisor {
            // The supervisor died before the call: nobody would ever send the signal.
            let _ = nix::sys::signal::raise(nix::sys::signal::Signal::SIGKILL);
        }
        Ok(())
    }
}

/// The supervisor is not dumpable and neither is its copy, which closes the file to its owner (proc(5)); exec resets the
/// flag, and nothing of the workload is there yet to use the instant.
fn oom_first() -> Result<(), Errno> {
    let _ = nix::sys::prctl::set_dumpable(true);
    limits::oom_first()
}

const LOWERED: &str = "the workload may lower it again";
const NO_QUOTA: &str = "no CPU quota";
const TIGHT: &str = "the quota spares no CPU: priority lowered";

impl Prepare for Confinement {
    fn apply(&self, keep: &[RawFd], report: &mut [u8; REPORT]) {
        let mut own = Report::default();
        Self::apply(self, keep, &mut own);
        report.iter_mut().zip(own.as_bytes()).for_each(|(to, from)| *to = *from);
    }
}
