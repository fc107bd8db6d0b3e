//! What the driver may tell the machine, and what the machine may ask of it.

use super::status::LaunchFailure;
use super::types::{Ended, Instant, Rule, StopSignal};
use std::time::Duration;

/// What can happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// The command is running (the exec succeeded).
    Launched,
    /// It could not be started.
    LaunchFailed(LaunchFailure),
    /// The command itself ended; `alone` if nothing else of the workload is left.
    Ended {
        /// How.
        how: Ended,
        /// Whether nothing else is alive.
        alone: bool,
    },
    /// Nothing of the workload is left.
    Empty,
    /// A stop signal from outside the workload.
    Stop(StopSignal),
    /// A second INT or QUIT came before the first one was acted on.
    Insisted(StopSignal),
    /// A detection whose action is to kill.
    Violation(Rule),
    /// The workload wrote more than it may.
    OutputLimit,
    /// The supervisor itself failed.
    Fault,
    /// The memory limit stays used up: nothing of the grace can be watched any more, and nothing cut off.
    Pressed,
    /// The driver was woken at a time it had asked for, the machine's deadline or one of its own.
    Woke {
        /// How much later than that.
        late: Duration,
    },
    /// The scrub is done, or was given up.
    Scrubbed,
    /// The seal is written.
    Sealed,
}

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Record the trigger and its plan.
    Announce {
        /// Whether it replaces an earlier plan.
        replanned: bool,
    },
    /// SIGTERM and SIGCONT to everything.
    Term,
    /// Take files, new resources and the network away, until then at the latest.
    Revoke {
        /// When it has to be done.
        until: Instant,
    },
    /// SIGKILL to everything.
    Kill {
        /// Whether this kill was taken early because the supervisor was starved.
        starved: bool,
        /// Whether this repeats an earlier kill of the same rung.
        again: bool,
    },
    /// Start the scrub.
    Scrub {
        /// When it has to stop.
        until: Instant,
    },
    /// A running scrub has less time.
    Shorten {
        /// When it has to stop now.
        until: Instant,
    },
    /// Write the seal.
    Seal,
    /// Exit with this status.
    Exit(u8),
}

/// The actions of one step, in order; no allocation on the kill path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Actions([Option<Action>; 3]);

impl Actions {
    pub(super) fn push(&mut self, action: Action) {
        if let Some(free) = self.0.iter_mut().find(|slot| slot.is_none()) {
            *free = Some(action);
        }
    }

    /// In the order they are to be done.
    pub fn iter(&self) -> impl Iterator<Item = Action> + '_ {
        self.0.iter().flatten().copied()
    }
}

impl IntoIterator for Actions {
    type Item = Action;
    type IntoIter = std::iter::Flatten<std::array::IntoIter<Option<Action>, 3>>;
    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter().flatten()
    }
}
