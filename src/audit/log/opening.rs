//! How a log comes to be: every sink is opened, and what cannot be is noted, before the workload runs.
//!
//! Only here can a log fail: where `--audit-required` finds no durable sink.

use super::Log;
use crate::audit::chain::{Chain, ZEROS, hex, sha256};
use crate::audit::file::AuditSink;
use crate::audit::message::MessageSink;
use crate::audit::scribe::Scribe;
use crate::audit::stderr::StderrSink;
use crate::kernel::{Cause, limits, random};
use crate::settings::{AuditFile, AuditKey, AuditLevel};
use nix::errno::Errno;
use std::collections::VecDeque;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

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

/// No sink that `--audit-required` accepts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenError {
    file: Option<(PathBuf, Cause)>,
    message: (PathBuf, Cause),
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some((path, cause)) = &self.file {
            write!(f, "audit file {path:?}: {cause}; ")?;
        }
        write!(f, "termination log {:?}: {}", self.message.0, self.message.1)
    }
}

impl std::error::Error for OpenError {}

impl Log {
    /// Opens every sink.
    ///
    /// # Errors
    /// Only where `required`, and neither the audit file nor the termination log can be opened and fsynced, and has room.
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
        let opened = MessageSink::open(&config.termination_log).and_then(|sink| sink.sync().map(|()| sink));
        let (message, message_cause) = match opened {
            Ok(sink) if file.as_ref().is_some_and(|file| file.is(&sink)) => {
                (None, Some(Cause::because("it is the audit file")))
            }
            Ok(sink) => (Some(sink), None),
            Err(cause) => (None, Some(cause)),
        };
        if let Some(cause) = message_cause {
            // An empty file on a full disk is none.
            let full = file
                .as_ref()
                .and_then(AuditSink::unreserved)
                .filter(|cause| matches!(cause.errno, Some(Errno::ENOSPC | Errno::EDQUOT)));
            if config.required && (file.is_none() || full.is_some()) {
                let file = path.map(|path| (path.to_owned(), full.unwrap_or(file_cause)));
                return Err(OpenError { file, message: (config.termination_log, cause) });
            }
            notes.push(format!("termination log {:?}: {cause}", config.termination_log));
        }
        let file = file.map(|sink| {
            let (scribe, why) = Scribe::new(sink);
            notes.extend(why.map(str::to_owned));
            scribe
        });
        if let Some(cause) = file.as_ref().and_then(Scribe::unreserved) {
            notes.push(format!("audit file: no space is reserved for the seal: {cause}"));
        }
        if let Some(line) = complaint {
            // Only now: a run that is refused has its one line from the caller. It is noted in the record as well.
            let _ = stderr.write(&line, true);
        }
        let run_id = match random::sixteen_bytes() {
            Ok(bytes) => hex(&bytes),
            Err(errno) => {
                notes.push(format!("run_id: getrandom: {errno:?}; made from the clock and the pid"));
                let seed = format!("{:?} {}", SystemTime::now(), std::process::id());
                sha256(seed.as_bytes()).chars().take(32).collect()
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
            asked: None,
            waiting: VecDeque::new(),
            due: None,
            soon: None,
            is_late: false,
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
            own: limits::Own::remember(),
        })
    }
}
