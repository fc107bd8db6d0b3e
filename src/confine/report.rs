//! What became of the steps before exec, as bytes for the pipe from the child: no allocation, and nothing that has to be parsed.
//!
//! Invariant: a reason that is not in the table here arrives as "unknown reason", never as another.

use super::{LOWERED, NO_QUOTA, Step, TIGHT};
use crate::kernel::outcome::{Cause, Outcome};
use nix::errno::Errno;

/// Every reason that can cross the pipe: a number there, these words here.
const REASONS: &[&str] = &[
    "unknown reason",
    LOWERED,
    NO_QUOTA,
    TIGHT,
    "setsid",
    "sigaction",
    "close_range",
    "setrlimit RLIMIT_CORE",
    "setrlimit",
    "write /proc/self/oom_score_adj",
    "prctl PR_SET_PDEATHSIG",
    "prctl PR_SET_NO_NEW_PRIVS",
    "sched_setaffinity",
    "setpriority",
    "chdir",
    "landlock_restrict_self",
    "prctl PR_SET_SECCOMP",
    "landlock_create_ruleset",
    "Landlock ABI below 6",
    "the Landlock ruleset was refused",
    "Landlock ABI below 3 does not refuse truncation",
    "too many entries beside the audit directory",
    "the audit file is in a writable directory",
    "the whole tree was made writable",
    "the audit directory is mounted a second time",
    "the supervisor's file stays writable to this UID",
    "nothing on disk to protect",
    "file rules would forbid mounting to CAP_SYS_ADMIN",
    "Landlock ABI 1 would forbid renames across directories",
    "the audit file is where programs create files",
    #[cfg(feature = "test-switches")]
    crate::kernel::outcome::OFF,
];

const SLOT: usize = 6;

/// What became of the steps, as bytes for the pipe: for each step its state, an errno and the reason's number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Report {
    bytes: [u8; Step::ALL.len() * SLOT],
}

impl Default for Report {
    fn default() -> Self {
        Self { bytes: [0; Step::ALL.len() * SLOT] }
    }
}

impl Report {
    /// Its bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// From the first bytes of `bytes`; a short read leaves the last steps out.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Self {
        let mut report = Self::default();
        report.bytes.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
        report
    }

    /// The outcomes of the steps taken, in order.
    #[must_use]
    pub fn outcomes(&self) -> Vec<(&'static str, Outcome)> {
        Step::ALL.into_iter().filter_map(|step| Some((step.name(), self.get(step)?))).collect()
    }

    pub(super) fn put(&mut self, step: Step, outcome: Outcome) {
        let state = match outcome {
            Outcome::Enforced => 1,
            Outcome::Degraded(_) => 2,
            Outcome::Unavailable(_) => 3,
        };
        let cause = outcome.cause();
        let [a, b, c, d] = cause.and_then(|c| c.errno).map_or(0, |e| e as i32).to_ne_bytes();
        let what = cause.and_then(|c| REASONS.iter().position(|r| *r == c.what)).unwrap_or(0);
        let what = u8::try_from(what).unwrap_or(0);
        if let Some(slot) = self.bytes.chunks_exact_mut(SLOT).nth(step as usize) {
            slot.copy_from_slice(&[state, a, b, c, d, what]);
        }
    }

    fn get(&self, step: Step) -> Option<Outcome> {
        let &[state, a, b, c, d, what] = self.bytes.chunks_exact(SLOT).nth(step as usize)? else { return None };
        let errno = i32::from_ne_bytes([a, b, c, d]);
        let errno = (errno != 0).then(|| Errno::from_raw(errno));
        let what = REASONS.get(usize::from(what)).copied().unwrap_or("unknown reason");
        match state {
            1 => Some(Outcome::Enforced),
            2 => Some(Outcome::Degraded(Cause { errno, what })),
            3 => Some(Outcome::Unavailable(Cause { errno, what })),
            _ => None,
        }
    }

    /// The errno with which the step's call was refused in the child.
    pub(super) fn errno(&self, step: Step) -> Option<Errno> {
        self.get(step)?.cause().filter(|cause| cause.what == step.call())?.errno
    }
}

/// The steps' outcomes from the child's report; steps that do not apply here are left out.
#[must_use]
pub fn outcomes(report: &[u8]) -> Vec<(&'static str, Outcome)> {
    Report::from_bytes(report).outcomes()
}
