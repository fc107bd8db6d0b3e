//! The verdict: status, exit status and fault, from the trigger and the command's own end (sections 6 and 10).

use super::types::{Ended, Trigger};

/// How starting the command failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LaunchFailure {
    /// There is no such command: 127.
    NotFound,
    /// It cannot be executed, or the policy does not allow it: 126.
    NotExecutable,
    /// The kernel would not give us a process: 125.
    NoProcess,
}

/// What the record and the exit status say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verdict {
    /// The record's `reason`.
    pub reason: &'static str,
    /// The record's `status`.
    pub status: &'static str,
    /// gracekeeper's own exit status.
    pub exit_code: u8,
    /// The record's `fault`.
    pub fault: &'static str,
}

/// The verdict of a command that could not be started.
#[must_use]
pub const fn launch_failed(failure: LaunchFailure) -> Verdict {
    match failure {
        LaunchFailure::NotFound => {
            Verdict { reason: "launch_failed", status: "launch_failed", exit_code: 127, fault: "operator" }
        }
        LaunchFailure::NotExecutable => {
            Verdict { reason: "launch_failed", status: "launch_failed", exit_code: 126, fault: "operator" }
        }
        LaunchFailure::NoProcess => {
            Verdict { reason: "supervisor_error", status: "supervisor_error", exit_code: 125, fault: "infrastructure" }
        }
    }
}

/// The verdict of a run. The trigger decides; the command's own end only speaks where it came first.
#[must_use]
pub const fn verdict(trigger: Trigger, ended: Option<Ended>) -> Verdict {
    let reason = trigger.name();
    let (status, exit_code, fault) = match trigger {
        Trigger::Completed => match ended {
            Some(Ended::Exited(0)) => ("ok", 0, "workload"),
            Some(Ended::Exited(code)) => ("nonzero_exit", code, "workload"),
            Some(Ended::Signaled(signal)) => ("signaled", 128u8.wrapping_add(signal), "workload"),
            // The command's status was lost: nobody may take that for a success.
            None => ("supervisor_error", 125, "infrastructure"),
        },
        Trigger::Timeout => ("timeout", 124, "workload"),
        Trigger::Terminated(signal) => ("terminated", 128 + signal.number(), "operator"),
        Trigger::Violation(_) => ("violation", 121, "workload"),
        Trigger::OutputLimit => ("output_limit", 121, "workload"),
        Trigger::SupervisorError => ("supervisor_error", 125, "infrastructure"),
    };
    Verdict { reason, status, exit_code, fault }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::types::{Rule, StopSignal};

    #[test]
    fn every_status_of_section_10() {
        for code in 0..=255 {
            assert_eq!(verdict(Trigger::Completed, Some(Ended::Exited(code))).exit_code, code);
        }
        assert_eq!(verdict(Trigger::Completed, Some(Ended::Signaled(9))).exit_code, 137);
        assert_eq!(verdict(Trigger::Timeout, Some(Ended::Exited(0))).exit_code, 124);
        for (signal, code) in
            [(StopSignal::Term, 143), (StopSignal::Int, 130), (StopSignal::Quit, 131), (StopSignal::Hup, 129)]
        {
            assert_eq!(verdict(Trigger::Terminated(signal), Some(Ended::Exited(0))).exit_code, code);
        }
        assert_eq!(verdict(Trigger::Violation(Rule::ForkBomb), None).exit_code, 121);
        assert_eq!(verdict(Trigger::OutputLimit, None).exit_code, 121);
        assert_eq!(verdict(Trigger::SupervisorError, None).exit_code, 125);
        assert_eq!(launch_failed(LaunchFailure::NotFound).exit_code, 127);
        assert_eq!(launch_failed(LaunchFailure::NotExecutable).exit_code, 126);
    }
}
