//! The log of one run: which sinks there are, what goes to which, and what is said where one fails.
//!
//! Opened before the workload runs; from then on nothing here fails, blocks for long, or panics. Invariants: the seal
//! is written once; a sink that fails is named in the sinks that are left; a record that no sink took is counted.

use super::chain::{Chain, ZEROS};
use super::record::{Body, EvaluationTerminated};
use super::sinks::{AuditSink, MESSAGE_LIMIT, MessageSink, RESERVE, Written};
use super::stderr::StderrSink;
use super::time::rfc3339;
use crate::kernel::{Cause, Outcome, random};
use crate::machine::types::Instant;
use crate::settings::{AuditFile, AuditKey, AuditLevel};
use nix::errno::Errno;
use std::fmt;
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, TryLockError};
use std::time::{Duration, SystemTime};

/// Where PID 1 writes unless told otherwise.
pub const DEFAULT_FILE: &str = "/var/log/security-audit.json";

/// What the log needs to know.
#[derive(Debug, Clone)]
pub struct Config {
    /// The audit file.
    pub file: AuditFile,
    /// Whether this process is PID 1: only then is there a default file.
    pub pid1: bool,
    /// The termination message's file.
    pub termination_log: PathBuf,
    /// How much is recorded.
    pub level: AuditLevel,
    /// The job's name, in every record.
    pub job_id: String,
    /// The MAC key.
    pub key: Option<AuditKey>,
    /// No run without a durable sink.
    pub required: bool,
}

/// What the termination message gets where the audit file's disk used up the time: it may lie on another one.
const MESSAGE_PATIENCE: Duration = Duration::from_millis(20);

/// No sink that `--audit-required` accepts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenError {
    file: Option<(PathBuf, Cause)>,
    message: (PathBuf, Cause),
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("audit required, but ")?;
        if let Some((path, cause)) = &self.file {
            write!(f, "audit file {path:?}: {cause}; ")?;
        }
        write!(f, "termination log {:?}: {}", self.message.0, self.message.1)
    }
}

impl std::error::Error for OpenError {}

/// The log of one run.
#[derive(Debug)]
pub struct Log {
    level: AuditLevel,
    file: Option<AuditSink>,
    /// Why the file is not there, or stopped taking records.
    file_cause: Option<Cause>,
    file_chain: Chain,
    stderr: StderrSink,
    stderr_chain: Chain,
    message: Option<MessageSink>,
    message_cause: Option<Cause>,
    has_key: bool,
    /// What was said when it was opened.
    notes: Vec<String>,
    /// What went wrong since; the seal repeats it.
    troubles: Vec<String>,
    /// Records that no sink took.
    dropped: u64,
    sealed: bool,
}

impl Log {
    /// Opens every sink.
    ///
    /// # Errors
    /// Only where `required`, and neither the audit file nor the termination log can be opened and fsynced.
    pub fn open(config: Config) -> Result<Self, OpenError> {
        let mut stderr = StderrSink::open();
        let mut notes = Vec::new();
        let path = match (&config.file, config.pid1) {
            (AuditFile::Named(path), _) => Some(path.as_path()),
            (AuditFile::Default, true) => Some(Path::new(DEFAULT_FILE)),
            (AuditFile::Default, false) => None,
        };
        let mut file_cause = Cause::because("none was named");
        let (mut file, mut prev) = (None, None);
        let mut complaint = None;
        if let Some(path) = path {
            match AuditSink::open(path).and_then(|(sink, prev)| sink.sync().map(|()| (sink, prev))) {
                Ok((sink, last)) => (file, prev) = (Some(sink), last),
                Err(cause) => {
                    file_cause = cause;
                    let note = format!("audit file {path:?}: {cause}; the audit goes to stderr");
                    if matches!(config.file, AuditFile::Named(_)) {
                        complaint = Some(format!("gracekeeper: {note}"));
                    }
                    notes.push(note);
                }
            }
        }
        if let Some(cause) = file.as_ref().and_then(AuditSink::unreserved) {
            notes.push(format!("audit file: no space is reserved for the seal: {cause}"));
        }
        let opened = MessageSink::open(&config.termination_log).and_then(|sink| sink.sync().map(|()| sink));
        let (message, message_cause) = match opened {
            Ok(sink) => (Some(sink), None),
            Err(cause) => (None, Some(cause)),
        };
        if let Some(cause) = message_cause {
            if config.required && file.is_none() {
                let file = path.map(|path| (path.to_owned(), file_cause));
                return Err(OpenError { file, message: (config.termination_log, cause) });
            }
            notes.push(format!("termination log {:?}: {cause}", config.termination_log));
        }
        if let Some(line) = complaint {
            // Only now: a run that is refused has its one line from the caller. It is noted in the record as well.
            let _ = stderr.write(&line, true);
        }
        let run_id = match random::sixteen_bytes() {
            Ok(bytes) => super::chain::hex(&bytes),
            Err(errno) => {
                notes.push(format!("run_id: getrandom: {errno:?}; made from the clock and the pid"));
                let seed = format!("{:?} {}", SystemTime::now(), std::process::id());
                super::chain::sha256(seed.as_bytes()).chars().take(32).collect()
            }
        };
        let zeros = ZEROS.to_owned();
        let has_key = config.key.is_some();
        let file_chain = Chain::new(
            config.job_id.clone(),
            run_id.clone(),
            prev.unwrap_or_else(|| zeros.clone()),
            config.key.clone(),
        );
        Ok(Self {
            level: config.level,
            file_cause: if file.is_some() { None } else { Some(file_cause) },
            file,
            file_chain,
            stderr,
            stderr_chain: Chain::new(config.job_id, run_id, zeros, config.key),
            message,
            message_cause,
            has_key,
            notes,
            troubles: Vec::new(),
            dropped: 0,
            sealed: false,
        })
    }

    /// Records one event, where the level wants it. Does nothing once sealed.
    pub fn write(&mut self, body: &Body) {
        let (level, durable) = match body {
            Body::EvaluationTerminated(seal) => return self.seal((**seal).clone(), None, false),
            Body::EvaluationStarted(_) => (AuditLevel::Basic, true),
            Body::TerminationRequested(_) => (AuditLevel::Standard, true),
            Body::Escalated(_) | Body::Detection(_) | Body::SpoofedSignal(_) => (AuditLevel::Standard, false),
            Body::Activity(_) => (AuditLevel::Comprehensive, false),
        };
        if self.sealed || self.level < level {
            return;
        }
        let time = rfc3339(SystemTime::now());
        let file_failed = self.file_cause.is_some();
        if let Some(sink) = self.file.as_mut().filter(|_| !file_failed) {
            let Some(line) = fitting(&self.file_chain, body, &time) else {
                self.dropped = self.dropped.saturating_add(1);
                return;
            };
            match sink.append(&line, false) {
                Written::Yes => {
                    self.file_chain.advance(&line);
                    // Before the workload runs there is nothing to hurry for; later the ladder does not wait for a disk.
                    let started = matches!(body, Body::EvaluationStarted(_));
                    let synced = durable.then(|| if started { sink.sync() } else { sink.sync_soon() });
                    if let Some(Err(cause)) = synced {
                        self.trouble(format!("audit file: {cause}"));
                    }
                    return;
                }
                Written::NoSpace => {
                    // What is free is the seal's; the chain goes on as if this record had not been.
                    self.dropped = self.dropped.saturating_add(1);
                    return;
                }
                Written::Failed(cause) => {
                    self.file_cause = Some(cause);
                    self.trouble(format!("audit file: {cause}; the audit goes to stderr"));
                }
            }
        }
        match fitting(&self.stderr_chain, body, &time) {
            Some(line) => {
                if self.write_stderr(&line).is_err() {
                    self.dropped = self.dropped.saturating_add(1);
                }
            }
            None => self.dropped = self.dropped.saturating_add(1),
        }
    }

    /// When `sync` has to be called, if it has.
    #[must_use]
    pub fn due(&self) -> Option<Instant> {
        self.file.as_ref().filter(|_| !self.sealed).and_then(AuditSink::due)
    }

    /// Starts the fsync of the trigger's record, when it is due.
    pub fn sync(&mut self, now: Instant) {
        if self.due().is_some_and(|due| now >= due)
            && let Some(Err(cause)) = self.file.as_mut().map(AuditSink::sync_beside)
        {
            self.trouble(format!("audit file: {cause}"));
        }
    }

    /// The final record, then the termination message. A second call does nothing.
    ///
    /// It goes to the audit file, also where an earlier write failed (a limit may have been lifted since), and to stderr
    /// where there is no file, or the file does not take it, failed before, or is no longer what it was. `until` is when the
    /// disk is no longer waited for; `alone` says that nobody of the workload is left, so that there may be a second thread of ours.
    pub fn seal(&mut self, mut body: EvaluationTerminated, until: Option<Instant>, alone: bool) {
        if self.sealed {
            return;
        }
        self.sealed = true;
        let time = rfc3339(SystemTime::now());
        if self.dropped > 0 {
            let dropped = format!("audit: {} records were dropped: no space, or nobody read stderr", self.dropped);
            self.troubles.push(dropped);
        }
        if let Some(sink) = &mut self.file {
            sink.look(true);
        }
        self.repeat_troubles(&mut body);
        let (mut safe, mut synced) = (false, false);
        let limit = RESERVE.saturating_sub(2); // The newlines around it.
        if let Some(sink) = &mut self.file {
            // Where even the reserved room was taken away, a page may still be free.
            for limit in [limit, MESSAGE_LIMIT] {
                let Ok(line) = self.file_chain.render_seal(&body, &time, limit) else { break };
                let cause = match sink.append(&line, true) {
                    Written::Yes => {
                        safe = self.file_cause.is_none() && sink.disturbed().is_none();
                        synced = true;
                        match sink.sync_until(until, alone) {
                            Ok(()) => sink.release(),
                            Err(cause) => {
                                // Whoever does not answer an fsync is asked nothing more.
                                safe = false;
                                self.troubles.push(format!("audit file: {cause}"));
                            }
                        }
                        break;
                    }
                    Written::NoSpace => Cause::refused("write", Errno::ENOSPC),
                    Written::Failed(cause) => cause,
                };
                self.file_cause = Some(cause);
                self.troubles.push(format!("audit file: the seal: {cause}"));
            }
            // What was written before it is the file's all the same.
            if !synced && let Err(cause) = sink.sync_until(until, alone) {
                self.troubles.push(format!("audit file: {cause}"));
            }
            if let Some(what) = sink.disturbed() {
                self.troubles.push(what.to_owned());
            }
        }
        self.repeat_troubles(&mut body);
        if !safe
            && let Ok(line) = self.stderr_chain.render_seal(&body, &time, limit)
            && let Err(cause) = self.stderr.write(&line, true)
        {
            self.trouble(format!("audit: {cause}")); // The termination message is still to come, and says so.
        }
        self.repeat_troubles(&mut body);
        if let Some(message) = &self.message {
            // The very line that was sealed, where it fits: nothing follows a seal, so neither chain goes on.
            let chain = if safe { &self.file_chain } else { &self.stderr_chain };
            if let Ok(line) = chain.render_seal(&body, &time, MESSAGE_LIMIT)
                && let Err(cause) = message.replace(&line, until.map(|until| until.plus(MESSAGE_PATIENCE)), alone)
            {
                self.message_cause = Some(cause);
                self.troubles.push(format!("termination log: {cause}"));
            }
        }
    }

    /// What the sinks said when they were opened, and since.
    #[must_use]
    pub fn notes(&self) -> Vec<String> {
        let mut notes: Vec<String> = self.notes.iter().chain(&self.troubles).cloned().collect();
        if let Some(what) = self.file.as_ref().and_then(AuditSink::disturbed).filter(|_| !self.sealed) {
            notes.push(what.to_owned());
        }
        notes
    }

    /// The outcomes for the record.
    #[must_use]
    pub fn enforcement(&self) -> Vec<(&'static str, Outcome)> {
        let file = match (&self.file, self.file_cause) {
            (None, cause) => Outcome::Unavailable(cause.unwrap_or(Cause::because("none was named"))),
            (Some(_), Some(cause)) => Outcome::Degraded(cause),
            (Some(sink), None) => {
                sink.disturbed().map_or(Outcome::Enforced, |what| Outcome::Degraded(Cause::because(what)))
            }
        };
        let reserved = match self.file.as_ref().map(AuditSink::unreserved) {
            None => Outcome::Unavailable(Cause::because("no audit file")),
            Some(None) => Outcome::Enforced,
            Some(Some(cause)) => Outcome::Unavailable(cause),
        };
        let message = match (&self.message, self.message_cause) {
            (Some(_), None) => Outcome::Enforced,
            (_, cause) => Outcome::Unavailable(cause.unwrap_or(Cause::because("no termination log"))),
        };
        let mac =
            if self.has_key { Outcome::Enforced } else { Outcome::Unavailable(Cause::because("no key was given")) };
        vec![
            ("audit_file", file),
            ("audit_space_reserved", reserved),
            ("termination_message", message),
            ("audit_mac", mac),
        ]
    }

    /// Where the audit file is, if one is open.
    #[must_use]
    pub fn audit_path(&self) -> Option<&Path> {
        self.file.as_ref().map(AuditSink::path)
    }

    /// The descriptors that the sinks hold: all from 3 up and close-on-exec.
    #[must_use]
    pub fn fds(&self) -> Vec<RawFd> {
        let file = self.file.as_ref().map(AuditSink::fd);
        let message = self.message.as_ref().map(MessageSink::fd);
        [file, message, self.stderr.fd()].into_iter().flatten().collect()
    }

    fn write_stderr(&mut self, line: &str) -> Result<(), Cause> {
        let result = self.stderr.write(line, false);
        match result {
            Ok(()) => self.stderr_chain.advance(line),
            Err(cause) => self.trouble(format!("audit: {cause}")),
        }
        result
    }

    /// Remembered once, and not without bound.
    fn trouble(&mut self, what: String) {
        if self.troubles.len() < 16 && !self.troubles.contains(&what) {
            self.troubles.push(what);
        }
    }

    /// The seal says what is true now, whatever was true when the body was put together.
    fn repeat_troubles(&self, body: &mut EvaluationTerminated) {
        for (name, outcome) in self.enforcement() {
            body.enforcement.insert(name.to_owned(), outcome.word().to_owned());
            body.enforcement_errors.remove(name);
            if let Some(cause) = outcome.cause() {
                body.enforcement_errors.insert(name.to_owned(), cause.to_string());
            }
        }
        for what in &self.troubles {
            if !body.errors.contains(what) {
                body.errors.push(what.clone());
            }
        }
    }
}

/// For a panic hook: seals if nobody else holds the log at this moment. Never waits, and a poisoned lock is no obstacle.
/// Answers whether the log is sealed now.
pub fn emergency(log: &Mutex<Log>, body: EvaluationTerminated) -> bool {
    let mut log = match log.try_lock() {
        Ok(log) => log,
        Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
        Err(TryLockError::WouldBlock) => return false,
    };
    log.seal(body, None, false);
    true
}

/// The line, or the shorter body's where it is longer than any line may be, or none.
fn fitting(chain: &Chain, body: &Body, time: &str) -> Option<String> {
    let fits = |body: &Body| chain.render(body, time).ok().filter(|line| line.len().saturating_add(2) <= RESERVE);
    fits(body).or_else(|| fits(&shorten(body)?))
}

/// The body without the part of it that has no bound.
fn shorten(body: &Body) -> Option<Body> {
    match body {
        Body::EvaluationStarted(started) => {
            let mut started = started.clone();
            started.process.args = None;
            started.notes.truncate(64);
            Some(Body::EvaluationStarted(started))
        }
        Body::Activity(activity) => {
            let mut activity = activity.clone();
            activity.processes.iter_mut().for_each(|process| process.args.clear());
            Some(Body::Activity(activity))
        }
        _ => None,
    }
}
