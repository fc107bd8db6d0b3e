//! The vocabulary of the machine: what can happen (`Event`), what is to be done (`Action`), and time.
//!
//! Pure: no clock, descriptor, pid or environment in here; time comes in as an argument.

use std::time::Duration;

/// A point of the monotonic clock, as the time since some fixed zero (CLOCK_MONOTONIC, clock_gettime(2)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Instant(pub Duration);

impl Instant {
    /// Later by `by`; saturates.
    #[must_use]
    pub const fn plus(self, by: Duration) -> Self {
        Self(self.0.saturating_add(by))
    }

    /// Earlier by `by`; saturates at zero.
    #[must_use]
    pub const fn minus(self, by: Duration) -> Self {
        Self(self.0.saturating_sub(by))
    }

    /// The time from `earlier` to here; zero where `earlier` is later (a clock that went nowhere).
    #[must_use]
    pub const fn since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

/// The signals that ask gracekeeper to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopSignal {
    /// SIGTERM
    Term,
    /// SIGINT
    Int,
    /// SIGQUIT
    Quit,
    /// SIGHUP
    Hup,
}

impl StopSignal {
    /// Whether a second one means "now": somebody at a terminal is out of patience.
    #[must_use]
    pub const fn is_impatient(self) -> bool {
        matches!(self, Self::Int | Self::Quit)
    }

    /// The signal's number, the same on every Linux architecture.
    #[must_use]
    pub const fn number(self) -> u8 {
        match self {
            Self::Term => 15,
            Self::Int => 2,
            Self::Quit => 3,
            Self::Hup => 1,
        }
    }

    /// The signal's name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Term => "SIGTERM",
            Self::Int => "SIGINT",
            Self::Quit => "SIGQUIT",
            Self::Hup => "SIGHUP",
        }
    }
}

/// The detections of section 6, by their `rule` names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Rule {
    /// Bytes sent outside since the trigger.
    DataExfiltration,
    /// Processes created or alive since the trigger.
    ForkBomb,
    /// New outgoing connection attempts.
    NetworkScan,
    /// A listening socket that was not there at the trigger.
    BackdoorListener,
    /// The CPU used up during the grace.
    CpuMining,
    /// Memory growing since the trigger.
    MemoryGrowth,
    /// The workload floods the supervisor with signals, which can mask a real one (section 3).
    SignalFlood,
}

impl Rule {
    /// The name in the record.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::DataExfiltration => "data_exfiltration",
            Self::ForkBomb => "fork_bomb",
            Self::NetworkScan => "network_scan",
            Self::BackdoorListener => "backdoor_listener",
            Self::CpuMining => "cpu_mining",
            Self::MemoryGrowth => "memory_growth",
            Self::SignalFlood => "signal_flood",
        }
    }
}

/// Why termination began. The first one stands: nothing that comes later overwrites the verdict.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trigger {
    /// The command exited by itself.
    Completed,
    /// The internal timeout passed.
    Timeout,
    /// A signal from outside.
    Terminated(StopSignal),
    /// A detection that kills.
    Violation(Rule),
    /// The workload wrote more than `--output-limit`.
    OutputLimit,
    /// gracekeeper itself failed after spawn.
    SupervisorError,
}

impl Trigger {
    /// The record's `reason`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Completed => "completed",
            Self::Timeout => "timeout",
            Self::Terminated(_) => "terminated",
            Self::Violation(_) => "violation",
            Self::OutputLimit => "output_limit",
            Self::SupervisorError => "supervisor_error",
        }
    }
}

/// The rungs of the ladder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rung {
    /// SIGTERM, then SIGCONT, to everything.
    Term,
    /// Files, new resources and the network taken away (section 5).
    Revoke,
    /// SIGKILL to everything.
    Kill,
}

impl Rung {
    /// The record's `rung`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Term => "term",
            Self::Revoke => "revoke",
            Self::Kill => "kill",
        }
    }
}

/// How the command itself ended, from `waitpid(2)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// It exited with this status.
    Exited(u8),
    /// It died of this signal.
    Signaled(u8),
}

/// What the workload was seen to do before the trigger: the input of adaptive grace (section 4).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Behaviour {
    /// Network attempts (connections opened, datagrams sent) outside loopback; `None` where it cannot be attributed.
    pub network_attempts: Option<u64>,
    /// Subprocesses alive besides the command; `None` where they cannot be counted.
    pub subprocesses: Option<u64>,
    /// The fastest growth of its memory between two samples, in bytes a second; `None` where not measured.
    pub memory_growth: Option<u64>,
}
