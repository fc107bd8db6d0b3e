//! What became of one protection: the value every function of this layer returns instead of deciding.
//!
//! Invariant: `Enforced` is only ever built after the kernel accepted the call that enforces it.

use nix::errno::Errno;
use std::fmt;

/// The errno of a failure of the standard library.
#[must_use]
pub fn errno(error: &std::io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}

/// The cause of what a test switched off.
pub const OFF: &str = "switched off by a test";

/// Why a protection is not fully there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cause {
    /// What the kernel answered (`errno(3)`); `None` where no call was refused, e.g. there is nothing to keep.
    pub errno: Option<Errno>,
    /// What was tried, in a few words: `landlock_create_ruleset`, `one allowed CPU`.
    pub what: &'static str,
}

impl Cause {
    /// The kernel refused `what` with `errno`.
    #[must_use]
    pub const fn refused(what: &'static str, errno: Errno) -> Self {
        Self { errno: Some(errno), what }
    }

    /// It does not apply here, for the reason given.
    #[must_use]
    pub const fn because(what: &'static str) -> Self {
        Self { errno: None, what }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.errno {
            Some(errno) => write!(f, "{}: {errno:?}", self.what),
            None => f.write_str(self.what),
        }
    }
}

/// The three words of the record (specification, section 3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The kernel accepted it.
    Enforced,
    /// Part of it holds.
    Degraded(Cause),
    /// Nothing of it holds.
    Unavailable(Cause),
}

impl Outcome {
    /// The word the record uses.
    #[must_use]
    pub const fn word(&self) -> &'static str {
        match self {
            Self::Enforced => "enforced",
            Self::Degraded(_) => "degraded",
            Self::Unavailable(_) => "unavailable",
        }
    }

    /// Why it is not `enforced`.
    #[must_use]
    pub const fn cause(&self) -> Option<Cause> {
        match self {
            Self::Enforced => None,
            Self::Degraded(cause) | Self::Unavailable(cause) => Some(*cause),
        }
    }

    /// `Enforced`, or `Unavailable` with the errno of the refused call.
    #[must_use]
    pub fn of<T>(what: &'static str, result: Result<T, Errno>) -> Self {
        match result {
            Ok(_) => Self::Enforced,
            Err(errno) => Self::Unavailable(Cause::refused(what, errno)),
        }
    }
}
