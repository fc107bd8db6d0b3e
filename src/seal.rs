//! What the run's records are made of: the facts gathered on the way, and the final record from them and the machine.
//!
//! Invariant: bounded, whatever the workload does; nothing here sends a signal or waits.

use crate::audit::chain;
use crate::audit::log::Log;
use crate::audit::record::{
    Adjustment, Body, Cleanup, Detection, EndedProcess, Escalation, EvaluationStarted, EvaluationTerminated, Limits,
    Output, PlanRecord, Resources, RiskRecord, StartedProcess, TerminationRequested,
};
use crate::audit::time::rfc3339;
use crate::kernel::counters::Counters;
use crate::kernel::outcome::Outcome;
use crate::kernel::proc::Proc;
use crate::kernel::{clock, signals};
use crate::machine::step::Machine;
use crate::machine::types::{Ended, Instant, Rule, Trigger};
use crate::scrub::job::{self, Job};
use crate::scrub::targets::Target;
use crate::settings::cli::printable;
use crate::settings::{AuditLevel, Settings};
use crate::shared::Shared;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::time::{Duration, SystemTime};

/// How much of the arguments goes into a record in clear, in characters.
const ARGS_SHOWN: usize = 8192;
/// How many lines of trouble are kept.
const ERRORS_KEPT: usize = 32;

/// The facts of one run.
#[derive(Debug)]
pub struct Facts {
    /// The command word, or the file found for it.
    pub executable: String,
    /// The directory that was asked for.
    pub workdir: String,
    args_sha256: String,
    args_count: usize,
    args: Option<Vec<String>>,
    risk: &'static str,
    limits: Limits,
    overrides: Vec<&'static str>,
    begun: Instant,
    pid: Option<i32>,
    start: Option<SystemTime>,
    /// When the command itself ended.
    pub ended: Option<SystemTime>,
    /// What the handshake said, once it has.
    pub launched: Option<bool>,
    /// The rungs taken.
    pub escalation: Vec<Escalation>,
    detections: Vec<Detection>,
    /// Stop signals that the workload sent.
    pub spoofed_signals: u64,
    enforcement: BTreeMap<&'static str, Outcome>,
    errors: Vec<String>,
    max_rss: u64,
    peak: Option<u64>,
    /// What was counted before the command ran.
    pub baseline: Option<Counters>,
    output: Option<Output>,
}

impl Facts {
    /// The facts known before the spawn. `executable` is the file found for the command.
    #[must_use]
    pub fn new(settings: &Settings, executable: String) -> Self {
        let args = settings.command.get(1..).unwrap_or_default();
        Self {
            executable,
            workdir: settings.workdir.as_deref().map(|dir| printable(dir.as_os_str())).unwrap_or_default(),
            args_sha256: args_sha256(args),
            args_count: args.len(),
            args: (settings.audit_level == AuditLevel::Comprehensive).then(|| shown(args)),
            risk: settings.risk.profile().name,
            overrides: settings.overrides(),
            limits: Limits {
                timeout_ms: settings.timeout.map(millis),
                grace_ms: millis(settings.grace),
                soft_ms: millis(settings.soft),
                hard_ms: millis(settings.hard),
                scrub_budget_ms: millis(settings.scrub_budget),
            },
            begun: clock::now(),
            pid: None,
            start: None,
            ended: None,
            launched: None,
            escalation: Vec::new(),
            detections: Vec::new(),
            spoofed_signals: 0,
            enforcement: BTreeMap::new(),
            errors: Vec::new(),
            max_rss: 0,
            peak: None,
            baseline: None,
            output: None,
        }
    }

    /// The child was forked.
    pub fn spawned(&mut self, pid: i32, at: Instant) {
        self.pid = Some(pid);
        self.begun = at;
        self.start = Some(SystemTime::now());
    }

    /// Something gracekeeper could not do.
    pub fn error(&mut self, line: String) {
        tracing::warn!("{line}");
        if self.errors.len() < ERRORS_KEPT {
            self.errors.push(line);
        }
    }

    /// What became of the output, where it is limited.
    pub fn output(&mut self, (output, trouble): (Output, Vec<String>)) {
        self.output = Some(output);
        trouble.into_iter().for_each(|line| self.error(line));
    }

    /// What became of a protection.
    pub fn enforced(&mut self, name: &'static str, outcome: Outcome) {
        self.enforcement.insert(name, outcome);
    }

    /// Whether the kernel refuses the workload's signals to us.
    #[must_use]
    pub fn signals_are_refused(&self) -> bool {
        let held = |name| self.enforcement.get(name) == Some(&Outcome::Enforced);
        held("seccomp_filter") || held("signal_scope")
    }

    /// A process was reaped.
    pub fn reaped(&mut self, max_rss: u64) {
        self.max_rss = self.max_rss.max(max_rss);
    }

    /// So many processes are alive.
    pub fn peak(&mut self, alive: Option<u64>) {
        self.peak = self.peak.max(alive);
    }

    /// Whether anybody was ever counted.
    #[must_use]
    pub const fn has_peak(&self) -> bool {
        self.peak.is_some()
    }

    /// What the kernel's counters say since the start.
    #[must_use]
    pub fn counted(&self, proc_: Option<&Proc>) -> Counters {
        match (&self.baseline, proc_) {
            (Some(baseline), Some(proc_)) => Counters::read_since(proc_, baseline),
            _ => Counters::default(),
        }
    }

    /// Whether that was detected.
    #[must_use]
    pub fn has_detected(&self, rule: Rule) -> bool {
        self.detections.iter().any(|detection| detection.rule == rule.name())
    }

    /// A detection, recorded at once and in the seal.
    pub fn detected(&mut self, rule: Rule, value: u64, threshold: u64, kill: bool, machine: &Machine, log: &mut Log) {
        let detection = Detection {
            rule: rule.name().to_owned(),
            at_ms: since_trigger(machine),
            value,
            threshold,
            action: if kill { "kill" } else { "record" }.to_owned(),
        };
        log.write(&Body::Detection(detection.clone()));
        if self.detections.len() < ERRORS_KEPT {
            self.detections.push(detection);
        }
    }

    /// The first record.
    #[must_use]
    pub fn started(&self, notes: &[String]) -> EvaluationStarted {
        EvaluationStarted {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            supervisor_pid: nix::unistd::getpid().as_raw(),
            process: StartedProcess {
                executable: self.executable.clone(),
                args_sha256: self.args_sha256.clone(),
                args_count: self.args_count,
                args: self.args.clone(),
            },
            risk_level: self.risk.to_owned(),
            limits: self.limits.clone(),
            overrides: self.overrides.clone(),
            notes: notes.to_vec(),
        }
    }

    /// The trigger's record.
    #[must_use]
    pub fn requested(&self, machine: &Machine, replanned: bool) -> TerminationRequested {
        let (trigger, at) = machine.trigger().unwrap_or((Trigger::SupervisorError, clock::now()));
        let from = |due: Instant| millis(due.since(at));
        TerminationRequested {
            reason: trigger.name().to_owned(),
            signal: match trigger {
                Trigger::Terminated(signal) => Some(signal.name().to_owned()),
                _ => None,
            },
            rule: match trigger {
                Trigger::Violation(rule) => Some(rule.name().to_owned()),
                _ => None,
            },
            replanned,
            plan: machine.plan().map_or(PlanRecord { revoke_ms: 0, kill_ms: 0, sealed_by_ms: None }, |p| PlanRecord {
                revoke_ms: from(p.revoke),
                kill_ms: from(p.kill),
                sealed_by_ms: p.sealed.map(from),
            }),
            adjustments: adjustments(machine),
        }
    }

    /// The final record.
    #[must_use]
    pub fn seal(
        &mut self,
        machine: &Machine,
        scrub: Option<&Job>,
        unscrubbed: &[Target],
        shared: &Shared,
    ) -> EvaluationTerminated {
        let verdict = machine.verdict();
        let now = clock::now();
        let counted = self.counted(shared.everything().proc_());
        for (name, outcome) in shared.log().enforcement() {
            self.enforced(name, outcome);
        }
        let (user, system) =
            crate::kernel::reap::children_cpu().map_or((None, None), |(u, s)| (Some(millis(u)), Some(millis(s))));
        let cleanup = scrub.map_or_else(|| not_scrubbed(unscrubbed), Job::report);
        let (exit_code, signal) = match machine.ended() {
            Some(Ended::Exited(code)) if self.launched != Some(false) => (Some(code), None),
            Some(Ended::Signaled(n)) => (None, Some(signals::name(n.into()))),
            _ => (None, None),
        };
        let words = |pick: fn(&Outcome) -> Option<String>| -> BTreeMap<String, String> {
            self.enforcement.iter().filter_map(|(name, o)| Some(((*name).to_owned(), pick(o)?))).collect()
        };
        EvaluationTerminated {
            reason: verdict.reason.to_owned(),
            status: verdict.status.to_owned(),
            exit_code: verdict.exit_code,
            duration: seconds(machine.trigger().map_or(now, |(_, at)| at).since(self.begun)),
            cleanup_status: job::status(&cleanup).to_owned(),
            process: EndedProcess {
                pid: self.pid.filter(|_| self.launched != Some(false)),
                executable: self.executable.clone(),
                args_sha256: self.args_sha256.clone(),
                args_count: self.args_count,
                args: self.args.clone(),
                start: self.start.map(rfc3339),
                end: self.ended.map(rfc3339),
                exit_code,
                signal,
            },
            risk: RiskRecord {
                level: self.risk.to_owned(),
                hard_limit_ms: self.limits.hard_ms,
                effective_ms: machine.effective().map(millis),
                adjustments: adjustments(machine),
            },
            escalation: self.escalation.clone(),
            detections: self.detections.clone(),
            resources: Resources {
                wall_ms: millis(now.since(self.begun)),
                cpu_user_ms: user,
                cpu_system_ms: system,
                max_rss_bytes: Some(self.max_rss).filter(|&b| b > 0),
                processes_created: counted.last_pid,
                processes_peak: self.peak,
                bytes_sent: counted.bytes_sent,
                network_attempts: counted.network_attempts(),
            },
            cleanup,
            output: self.output.clone(),
            enforcement: words(|o| Some(o.word().to_owned())),
            enforcement_errors: words(|o| o.cause().map(|c| c.to_string())),
            spoofed_signals: self.spoofed_signals,
            errors: self.errors.clone(),
            fault: verdict.fault.to_owned(),
        }
    }

    /// The seal that the panic hook writes, made before the workload runs: what nobody can know any more is left out.
    #[must_use]
    pub fn of_a_panic(&self) -> EvaluationTerminated {
        let error = "supervisor_error".to_owned();
        EvaluationTerminated {
            reason: error.clone(),
            status: error,
            exit_code: 125,
            duration: 0.0,
            cleanup_status: "skipped".to_owned(),
            process: EndedProcess {
                pid: None,
                executable: self.executable.clone(),
                args_sha256: self.args_sha256.clone(),
                args_count: self.args_count,
                args: self.args.clone(),
                start: None,
                end: None,
                exit_code: None,
                signal: None,
            },
            risk: RiskRecord {
                level: self.risk.to_owned(),
                hard_limit_ms: self.limits.hard_ms,
                effective_ms: None,
                adjustments: Vec::new(),
            },
            escalation: Vec::new(),
            detections: Vec::new(),
            resources: Resources::default(),
            cleanup: Cleanup { budget_ms: self.limits.scrub_budget_ms, ..Cleanup::default() },
            output: None,
            enforcement: BTreeMap::new(),
            enforcement_errors: BTreeMap::new(),
            spoofed_signals: 0,
            errors: Vec::new(),
            fault: "infrastructure".to_owned(),
        }
    }
}

/// Milliseconds since the trigger; 0 before it.
#[must_use]
pub fn since_trigger(machine: &Machine) -> u64 {
    machine.trigger().map_or(0, |(_, at)| millis(clock::now().since(at)))
}

/// SHA-256 over the arguments after the command, each followed by a NUL byte, which no argument can hold.
#[must_use]
pub fn args_sha256(args: &[OsString]) -> String {
    let mut bytes = Vec::new();
    for arg in args {
        bytes.extend_from_slice(arg.as_bytes());
        bytes.push(0);
    }
    chain::sha256(&bytes)
}

fn shown(args: &[OsString]) -> Vec<String> {
    let mut left = ARGS_SHOWN;
    let mut shown = Vec::new();
    for arg in args {
        if left == 0 || shown.len() >= 256 {
            shown.push("…".to_owned());
            break;
        }
        let text: String = arg.to_string_lossy().chars().take(left).collect();
        left = left.saturating_sub(text.chars().count().max(1));
        shown.push(text);
    }
    shown
}

fn adjustments(machine: &Machine) -> Vec<Adjustment> {
    machine
        .shortened()
        .iter()
        .map(|s| Adjustment {
            rule: s.rule.to_owned(),
            value: s.value,
            ms: i64::try_from(s.by.as_millis()).unwrap_or(i64::MAX).saturating_neg(),
        })
        .collect()
}

/// No scrub beside a live process: every path is skipped, and says so.
fn not_scrubbed(targets: &[Target]) -> Cleanup {
    Cleanup {
        paths: targets
            .iter()
            .map(|t| crate::audit::record::CleanedPath {
                path: printable(t.path.as_os_str()),
                status: "skipped".to_owned(),
                entries_removed: 0,
                bytes_removed: 0,
                why: Some("a process did not die".to_owned()),
                zeroed: None,
            })
            .collect(),
        ipc: None,
        in_doubt: false,
        budget_ms: 0,
        used_ms: 0,
    }
}

/// Whole milliseconds; saturates.
#[must_use]
pub fn millis(d: Duration) -> u64 {
    u64::try_from(d.as_millis()).unwrap_or(u64::MAX)
}

/// In seconds, to the millisecond. One division: of a sum of seconds and their parts as many digits are printed as there are.
#[must_use]
fn seconds(d: Duration) -> f64 {
    u32::try_from(millis(d)).map_or_else(|_| d.as_secs_f64(), |millis| f64::from(millis) / 1000.0)
}

/// Completes the panic's seal: what happened, and how long after `begun`.
#[must_use]
pub fn panicked(mut seal: EvaluationTerminated, begun: Instant, what: &str) -> EvaluationTerminated {
    let ran = clock::now().since(begun);
    seal.duration = seconds(ran);
    seal.resources.wall_ms = millis(ran);
    seal.errors.push(format!("internal error: {}", what.chars().take(512).collect::<String>()));
    seal
}
