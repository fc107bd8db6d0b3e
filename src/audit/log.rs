//! The log of one run: a chain and its sinks. Writing never fails towards the caller: what a sink could not take is noted
//! in the others, and the kill goes on.
//!
//! Invariant: exactly one seal, and it is the last record.

use super::chain::{Chain, GENESIS, hex};
use super::record::{Body, EvaluationTerminated};
use super::sinks::{AuditFile, SinkError, Stderr, TerminationMessage};
use super::time::rfc3339;
use crate::kernel::outcome::{Cause, Outcome};
use crate::settings::{AuditFile as Wanted, AuditKey, AuditLevel};
use nix::errno::Errno;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// The default audit file, as PID 1.
pub const DEFAULT_FILE: &str = "/var/log/security-audit.json";
/// What Kubernetes keeps of a termination message, in bytes.
pub const MESSAGE_LIMIT: usize = 4096;

/// What the log is opened with.
#[derive(Debug, Clone)]
pub struct Config {
    /// Which file was asked for.
    pub file: Wanted,
    /// Whether gracekeeper is PID 1.
    pub pid1: bool,
    /// The termination message's path.
    pub termination_log: PathBuf,
    /// How much is recorded.
    pub level: AuditLevel,
    /// The record's `job_id`.
    pub job_id: String,
    /// The MAC key.
    pub key: Option<AuditKey>,
    /// Refuse to run without a durable sink.
    pub required: bool,
}

/// An open log.
#[derive(Debug)]
pub struct Log {
    level: AuditLevel,
    chain: Chain,
    file: Option<AuditFile>,
    stderr: Stderr,
    message: Option<TerminationMessage>,
    notes: Vec<String>,
    dropped: u64,
    sealed: bool,
    keyed: bool,
}

impl Log {
    /// Opens every sink.
    ///
    /// # Errors
    /// Only with `required`, where neither the audit file nor the termination log can be opened and fsynced.
    pub fn open(config: Config) -> Result<Self, SinkError> {
        let mut notes = Vec::new();
        let (path, named) = match &config.file {
            Wanted::Named(path) => (Some(path.as_path()), true),
            Wanted::Default if config.pid1 => (Some(Path::new(DEFAULT_FILE)), false),
            Wanted::Default => (None, false),
        };
        let file = path.map(AuditFile::open);
        let message = TerminationMessage::open(&config.termination_log).and_then(|m| match m.sync() {
            Ok(()) => Ok(m),
            Err(errno) => {
                Err(SinkError { what: "cannot fsync termination log", path: config.termination_log.clone(), errno })
            }
        });
        if config.required && !matches!(file, Some(Ok(_))) && message.is_err() {
            return Err(match (file, message) {
                (Some(Err(error)), _) | (_, Err(error)) => error,
                _ => SinkError { what: "no audit sink", path: PathBuf::new(), errno: Errno::ENOENT },
            });
        }
        let stderr = Stderr::open();
        let file = match file {
            Some(Ok(file)) => Some(file),
            Some(Err(error)) => {
                if named {
                    let line = format!("gracekeeper: {error}; the record goes to stderr");
                    let _ = stderr.append(&line);
                }
                notes.push(error.to_string());
                None
            }
            None => None,
        };
        let message = match message {
            Ok(message) => Some(message),
            // No kubelet, no termination log: that is how docker and laptops are.
            Err(SinkError { errno: Errno::ENOENT, .. }) => None,
            Err(error) => {
                notes.push(error.to_string());
                None
            }
        };
        let last = file.as_ref().and_then(|f| f.last.clone()).unwrap_or_else(|| GENESIS.to_owned());
        let keyed = config.key.is_some();
        let chain = Chain::new(last, config.job_id, run_id(), config.key);
        Ok(Self { level: config.level, chain, file, stderr, message, notes, dropped: 0, sealed: false, keyed })
    }

    /// What the sinks could not do so far.
    #[must_use]
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// The audit file's path, where there is one.
    #[must_use]
    pub fn audit_path(&self) -> Option<&Path> {
        self.file.as_ref().map(|f| f.path.as_path())
    }

    /// What holds of the log itself.
    #[must_use]
    pub fn enforcement(&self) -> Vec<(&'static str, Outcome)> {
        let none = |why| Outcome::Unavailable(Cause::because(why));
        vec![
            ("audit_file", if self.file.is_some() { Outcome::Enforced } else { none("no audit file") }),
            (
                "audit_space",
                match self.file.as_ref().map(|f| f.reserved) {
                    Some(Ok(())) => Outcome::Enforced,
                    Some(Err(errno)) => Outcome::Unavailable(Cause::refused("fallocate", errno)),
                    None => none("no audit file"),
                },
            ),
            ("audit_mac", if self.keyed { Outcome::Enforced } else { none("no --audit-key-env") }),
            (
                "termination_message",
                if self.message.is_some() { Outcome::Enforced } else { none("no termination log") },
            ),
        ]
    }

    /// Whether records of this kind are wanted.
    #[must_use]
    pub fn wants(&self, body: &Body) -> bool {
        let least = match body {
            Body::EvaluationStarted(_) | Body::EvaluationTerminated(_) => AuditLevel::Basic,
            Body::TerminationRequested(_) | Body::Escalated(_) | Body::Detection(_) | Body::SpoofedSignal(_) => {
                AuditLevel::Standard
            }
            Body::Activity(_) => AuditLevel::Comprehensive,
        };
        self.level >= least
    }

    /// Writes a record that is not the seal, at its level.
    pub fn write(&mut self, body: &Body) {
        if self.sealed || matches!(body, Body::EvaluationTerminated(_)) || !self.wants(body) {
            return;
        }
        let durable = matches!(body, Body::EvaluationStarted(_) | Body::TerminationRequested(_));
        self.put(body, durable);
    }

    /// Writes the seal and then the termination message, once.
    pub fn seal(&mut self, mut record: EvaluationTerminated) {
        if std::mem::replace(&mut self.sealed, true) {
            return;
        }
        for note in &self.notes {
            push_bounded(&mut record.errors, note.clone());
        }
        if self.dropped > 0 {
            push_bounded(&mut record.errors, format!("{} records dropped: no space", self.dropped));
        }
        let before = self.notes.len();
        let body = Body::EvaluationTerminated(Box::new(record));
        self.put(&body, true);
        let Body::EvaluationTerminated(mut record) = body else { return };
        for note in self.notes.iter().skip(before) {
            push_bounded(&mut record.errors, note.clone());
        }
        if let Some(message) = &self.message {
            let text = compact(&self.chain, *record);
            if let Err(errno) = message.write(&text) {
                let _ = self.stderr.append(&format!("gracekeeper: cannot write termination message: {errno:?}"));
            }
        }
    }

    fn put(&mut self, body: &Body, durable: bool) {
        let line = match self.chain.line(&rfc3339(SystemTime::now()), body) {
            Ok(line) => line,
            Err(error) => return self.note(format!("a record could not be serialized: {error}")),
        };
        let seal = matches!(body, Body::EvaluationTerminated(_));
        if let Some(file) = self.file.as_mut() {
            // The seal's space is not for others: with the disk full they are dropped, and the seal says so.
            let extra = i64::try_from(line.len()).unwrap_or(i64::MAX);
            if !seal && file.reserved.is_ok() && file.reserve(extra) == Err(Errno::ENOSPC) {
                self.dropped = self.dropped.saturating_add(1);
                return;
            }
            let written = file.append(&line).and_then(|()| if durable { file.sync() } else { Ok(()) });
            match written {
                Ok(()) => return self.chain.advance(&line),
                Err(errno) => {
                    // From here on stderr is the sink: a record that is half in the file is not in the chain.
                    let path = crate::settings::cli::printable(file.path.as_os_str());
                    self.note(format!("audit file {path} failed: {errno:?}; the record goes on on stderr"));
                    self.file = None;
                }
            }
        }
        match self.stderr.append(&line) {
            Ok(()) => self.chain.advance(&line),
            Err(errno) => self.note(format!("stderr failed: {errno:?}")),
        }
    }

    fn note(&mut self, note: String) {
        push_bounded(&mut self.notes, note);
    }
}

/// At most 32 lines of trouble are kept, whatever the workload does.
fn push_bounded(list: &mut Vec<String>, line: String) {
    if list.len() < 32 {
        list.push(line);
    }
}

/// The final record, cut to fit: the largest and least telling parts go first, the verdict never.
fn compact(chain: &Chain, mut record: EvaluationTerminated) -> String {
    let time = rfc3339(SystemTime::now());
    for cut in 0..8 {
        match cut {
            0 => record.process.args = None,
            1 => record.enforcement_errors.clear(),
            2 => record.errors.truncate(2),
            3 => record.cleanup.paths.truncate(4),
            4 => record.detections.truncate(4),
            5 => record.enforcement.clear(),
            6 => {
                for text in record.errors.iter_mut().chain(record.cleanup.paths.iter_mut().map(|p| &mut p.path)) {
                    *text = text.chars().take(128).collect();
                }
                record.process.executable = record.process.executable.chars().take(256).collect();
                for step in &mut record.escalation {
                    step.errors.clear();
                }
            }
            _ => {
                record.errors.clear();
                record.cleanup.paths.clear();
                record.escalation.clear();
            }
        }
        match chain.line(&time, &Body::EvaluationTerminated(Box::new(record.clone()))) {
            Ok(line) if line.len() <= MESSAGE_LIMIT => return line,
            _ => {}
        }
    }
    format!(
        "{{\"event\":\"evaluation_terminated\",\"status\":\"{}\",\"exit_code\":{}}}",
        record.status, record.exit_code
    )
}

/// 128 random bits (getrandom(2)); where the kernel has none to give, the time and the pid still tell runs apart.
fn run_id() -> String {
    let mut bytes = [0u8; 16];
    if !crate::kernel::random::fill(&mut bytes) {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_nanos());
        bytes = (now ^ (u128::from(std::process::id()) << 96)).to_le_bytes();
    }
    hex(&bytes)
}
