//! The records of section 6: what each event says, in the order its keys appear. The envelope (`seq`, `time`, hashes)
//! is `chain`'s business. `schema/audit.schema.json` describes the same lines for strangers.
//!
//! Pure data: no clock, no descriptor.

use serde::Serialize;
use std::collections::BTreeMap;

/// The body of one record.
#[derive(Debug, Clone, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Body {
    /// Before the workload runs; fsynced.
    EvaluationStarted(Box<EvaluationStarted>),
    /// The trigger, with the plan; fsynced.
    TerminationRequested(TerminationRequested),
    /// A rung, as it is taken.
    Escalated(Escalation),
    /// One detection.
    Detection(Detection),
    /// A stop signal that did not come from outside.
    SpoofedSignal(SpoofedSignal),
    /// What the processes are doing.
    Activity(Activity),
    /// Exactly once, last; fsynced.
    EvaluationTerminated(Box<EvaluationTerminated>),
}

/// What is about to run, and under which limits.
#[derive(Debug, Clone, Serialize)]
pub struct EvaluationStarted {
    /// gracekeeper's version.
    pub version: String,
    /// The supervisor's own pid: 1 where it is the container's entrypoint.
    pub supervisor_pid: i32,
    /// The command.
    pub process: StartedProcess,
    /// The risk level.
    pub risk_level: String,
    /// The settings in force, durations in milliseconds.
    pub limits: Limits,
    /// The options of the level that are set to something else than the level has.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub overrides: Vec<&'static str>,
    /// What the sinks and the preparation said, e.g. an audit file that could not be opened.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// The command as it was asked for.
#[derive(Debug, Clone, Serialize)]
pub struct StartedProcess {
    /// The command word, or the file found for it.
    pub executable: String,
    /// SHA-256 of the arguments after the command, each followed by a NUL byte.
    pub args_sha256: String,
    /// How many arguments follow the command.
    pub args_count: usize,
    /// The arguments in clear; only at `comprehensive`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub args: Option<Vec<String>>,
}

/// The settings in force, in milliseconds; `null` is `none`.
#[derive(Debug, Clone, Serialize)]
pub struct Limits {
    /// `--timeout`
    pub timeout_ms: Option<u64>,
    /// `--grace`
    pub grace_ms: u64,
    /// `--soft`
    pub soft_ms: u64,
    /// `--hard`
    pub hard_ms: u64,
    /// `--scrub-budget`
    pub scrub_budget_ms: u64,
}

/// The trigger and the plan that follows from it.
#[derive(Debug, Clone, Serialize)]
pub struct TerminationRequested {
    /// The trigger's name.
    pub reason: String,
    /// The signal, where one asked.
    pub signal: Option<String>,
    /// The rule, where a detection asked.
    pub rule: Option<String>,
    /// Whether this replaces an earlier plan of the same run (a signal during a timeout's ladder).
    pub replanned: bool,
    /// When the rungs are due, in ms from the trigger.
    pub plan: PlanRecord,
    /// What shortened the hard limit.
    pub adjustments: Vec<Adjustment>,
}

/// When the rungs are due, in ms from the trigger.
#[derive(Debug, Clone, Serialize)]
pub struct PlanRecord {
    /// The `revoke` rung.
    pub revoke_ms: u64,
    /// The `kill` rung.
    pub kill_ms: u64,
    /// When the last byte has to be durable; `null` where no outside clock runs.
    pub sealed_by_ms: Option<u64>,
}

/// One step of adaptive grace.
#[derive(Debug, Clone, Serialize, PartialEq, Eq)]
pub struct Adjustment {
    /// `network_attempts`, `subprocesses` or `memory_growth`.
    pub rule: String,
    /// The evidence: attempts, processes, bytes a second.
    pub value: u64,
    /// What it did to the hard limit, in ms (negative).
    pub ms: i64,
}

/// A rung as it was taken.
#[derive(Debug, Clone, Serialize, Default)]
pub struct Escalation {
    /// `term`, `revoke` or `kill`.
    pub rung: String,
    /// ms since the trigger.
    pub at_ms: u64,
    /// Processes signalled (`term`, `kill`), from 65 on as PID 1 those that wait to be reaped included; `null` where they could not
    /// be counted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub signalled: Option<u64>,
    /// Processes still there when the rung was done with (`kill`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub survivors: Option<u64>,
    /// Whether a starved supervisor took this rung early.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub starved: bool,
    /// `revoke`: what became of files and new resources.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub files: Option<String>,
    /// `revoke`: what became of the network.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network: Option<String>,
    /// `revoke`: processes limited.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limited: Option<u64>,
    /// `revoke`: sockets cut.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sockets_cut: Option<u64>,
    /// `revoke`: processes frozen until `kill`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub frozen: Option<u64>,
    /// What could not be done, and why.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<String>,
}

/// One detection with its evidence.
#[derive(Debug, Clone, Serialize)]
pub struct Detection {
    /// The rule's name.
    pub rule: String,
    /// ms since the trigger.
    pub at_ms: u64,
    /// What was counted, in the rule's unit.
    pub value: u64,
    /// The threshold it passed.
    pub threshold: u64,
    /// `record` or `kill`.
    pub action: String,
}

/// A stop signal that the workload sent, or that cannot be told from a forgery.
#[derive(Debug, Clone, Serialize)]
pub struct SpoofedSignal {
    /// The signal's name.
    pub signal: String,
    /// The sender in siginfo.
    pub sender_pid: i32,
    /// si_code, in words.
    pub code: String,
    /// Further ones since the last such record that were not written one by one.
    pub suppressed: u64,
}

/// What each process is doing.
#[derive(Debug, Clone, Serialize)]
pub struct Activity {
    /// ms since the trigger.
    pub at_ms: u64,
    /// At most 32.
    pub processes: Vec<ProcessActivity>,
    /// How many more there are.
    pub more: u64,
}

/// One process.
#[derive(Debug, Clone, Serialize)]
pub struct ProcessActivity {
    /// Process id.
    pub pid: i32,
    /// Parent's process id.
    pub parent: i32,
    /// Its name, lossily decoded.
    pub name: String,
    /// Its arguments, lossily decoded and cut off at a fixed length.
    pub args: Vec<String>,
    /// State letter.
    pub state: String,
    /// Milliseconds since it started.
    pub age_ms: u64,
    /// CPU time used, ms.
    pub cpu_ms: u64,
    /// Resident bytes.
    pub rss_bytes: u64,
    /// Threads.
    pub threads: u64,
    /// Open descriptors; `null` where it may not be read.
    pub descriptors: Option<u64>,
    /// Open sockets; `null` where it may not be read.
    pub sockets: Option<u64>,
}

/// The seal.
#[derive(Debug, Clone, Serialize)]
pub struct EvaluationTerminated {
    /// The trigger's name, or `launch_failed`.
    pub reason: String,
    /// The verdict (section 6).
    pub status: String,
    /// gracekeeper's own exit status.
    pub exit_code: u8,
    /// Seconds from the start to the trigger.
    pub duration: f64,
    /// `complete`, `partial`, `failed` or `skipped`.
    pub cleanup_status: String,
    /// The command.
    pub process: EndedProcess,
    /// The risk level and what became of the hard limit.
    pub risk: RiskRecord,
    /// The rungs taken.
    pub escalation: Vec<Escalation>,
    /// The detections.
    pub detections: Vec<Detection>,
    /// Counters.
    pub resources: Resources,
    /// What the scrub did.
    pub cleanup: Cleanup,
    /// The relayed output, with `--output-limit`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub output: Option<Output>,
    /// Each protection's outcome.
    pub enforcement: BTreeMap<String, String>,
    /// Why a protection is not `enforced`, by the same names.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub enforcement_errors: BTreeMap<String, String>,
    /// Stop signals that the workload sent, recorded or not.
    pub spoofed_signals: u64,
    /// What gracekeeper itself could not do, one line each.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<String>,
    /// `workload`, `operator` or `infrastructure`.
    pub fault: String,
}

/// The command as it ended.
#[derive(Debug, Clone, Serialize)]
pub struct EndedProcess {
    /// Its pid; `null` where it never ran.
    pub pid: Option<i32>,
    /// The file that was executed, or the command word where none was.
    pub executable: String,
    /// SHA-256 of the arguments after the command, each followed by a NUL byte.
    pub args_sha256: String,
    /// How many arguments follow the command.
    pub args_count: usize,
    /// The arguments in clear; only at `comprehensive`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub args: Option<Vec<String>>,
    /// RFC 3339 UTC, ms.
    pub start: Option<String>,
    /// RFC 3339 UTC, ms.
    pub end: Option<String>,
    /// Its own exit status, where it exited.
    pub exit_code: Option<u8>,
    /// The signal it died of, where it did.
    pub signal: Option<String>,
}

/// The risk level and what became of the hard limit.
#[derive(Debug, Clone, Serialize)]
pub struct RiskRecord {
    /// `low`, `medium`, `high` or `critical`.
    pub level: String,
    /// `--hard`
    pub hard_limit_ms: u64,
    /// The hard limit after the plan and adaptive grace; `null` where no ladder was planned.
    pub effective_ms: Option<u64>,
    /// What shortened it.
    pub adjustments: Vec<Adjustment>,
}

/// Counters of the whole run; `null` is what could not be attributed or read.
#[derive(Debug, Clone, Serialize, Default)]
pub struct Resources {
    /// ms from the start to the seal.
    pub wall_ms: u64,
    /// User CPU time, ms.
    pub cpu_user_ms: Option<u64>,
    /// System CPU time, ms.
    pub cpu_system_ms: Option<u64>,
    /// The largest resident set of a reaped process.
    pub max_rss_bytes: Option<u64>,
    /// Processes and threads created in this PID namespace since the start.
    pub processes_created: Option<u64>,
    /// The most processes seen alive at once; from 65 on at the trigger, as PID 1, those that wait to be reaped included.
    pub processes_peak: Option<u64>,
    /// Bytes sent on interfaces other than loopback.
    pub bytes_sent: Option<u64>,
    /// Connections opened and datagrams sent.
    pub network_attempts: Option<u64>,
}

/// What became of the workload's stdout and stderr, together, in bytes.
#[derive(Debug, Clone, Serialize)]
pub struct Output {
    /// `--output-limit`
    pub limit: u64,
    /// Handed on.
    pub delivered: u64,
    /// Within the limit, but nobody took it.
    pub undelivered: u64,
    /// Beyond the limit, and dropped.
    pub beyond: u64,
}

/// What the scrub did.
#[derive(Debug, Clone, Serialize, Default)]
pub struct Cleanup {
    /// By path.
    pub paths: Vec<CleanedPath>,
    /// As PID 1: System V IPC and POSIX queues that were not there before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ipc: Option<Ipc>,
    /// Of those something may be left. Not in the record: it has `cleanup_status`.
    #[serde(skip)]
    pub in_doubt: bool,
    /// What it was allowed, ms.
    pub budget_ms: u64,
    /// What it took, ms.
    pub used_ms: u64,
}

/// One scrubbed path.
#[derive(Debug, Clone, Serialize)]
pub struct CleanedPath {
    /// The path.
    pub path: String,
    /// `complete`, `partial`, `failed` or `skipped`.
    pub status: String,
    /// Entries removed.
    pub entries_removed: u64,
    /// The space given back, in bytes (docs/scrub.md).
    pub bytes_removed: u64,
    /// Why it is not `complete`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// With `--scrub-mode zero`: what was overwritten first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub zeroed: Option<Zeroed>,
}

/// Objects removed, by kind.
#[derive(Debug, Clone, Copy, Serialize, Default)]
pub struct Ipc {
    /// System V shared memory.
    pub shared_memory: u64,
    /// System V semaphore sets.
    pub semaphores: u64,
    /// System V message queues.
    pub message_queues: u64,
    /// POSIX message queues.
    pub posix_queues: u64,
    /// New ones that are not the workload's, or could not be removed, or were not reached in time.
    pub left: u64,
}

/// What `--scrub-mode zero` did in one path.
#[derive(Debug, Clone, Serialize)]
pub struct Zeroed {
    /// Regular files overwritten whole.
    pub files: u64,
    /// Bytes overwritten.
    pub bytes: u64,
    /// Names of regular files removed without: another name was left, or they could not be written.
    pub skipped: u64,
    /// Why nothing could be overwritten here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}
