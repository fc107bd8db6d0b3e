//! The log of one run: which sinks there are, what goes to which, and what is said where one fails.
//!
//! Opened before the workload runs; from then on nothing here fails, blocks for long, or panics. Invariants: the seal
//! is written once; a sink that fails is named in the sinks that are left; a record that no sink took is counted.

use super::chain::{Chain, ZEROS};
use super::record::{Body, EvaluationTerminated};
use super::scribe::Scribe;
use super::sinks::{AuditSink, Done, LATE, MESSAGE_LIMIT, MessageSink, RESERVE, Task, Written};
use super::stderr::StderrSink;
use super::time::rfc3339;
use crate::kernel::{Cause, Outcome, clock, random};
use crate::machine::types::Instant;
use crate::settings::{AuditFile, AuditKey, AuditLevel};
use nix::errno::Errno;
use std::collections::VecDeque;
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

/// What the audit file's disk gets where the time is over already, and the termination message where that disk used it up.
const AT_LEAST: Duration = Duration::from_millis(30);
/// How long the ladder waits for the disk to take a record; what comes after one that it has not taken waits in memory.
const PATIENCE: Duration = Duration::from_millis(5);
/// When a disk that has not answered is looked at again.
const AGAIN: Duration = Duration::from_millis(20);
/// How long after the trigger its record is synced, where the run is not over before: the seal's fsync does for both.
const SOON: Duration = Duration::from_millis(50);
/// What waits for the disk in memory at the most; the seal is not among it.
const WAITING: usize = 64;
/// What a panic's seal waits for the disk.
const PANIC_PATIENCE: Duration = Duration::from_secs(2);

/// The longest line, without the newlines around it.
const LINE: usize = RESERVE - 2;

/// The task that the scribe was asked to do.
#[derive(Debug)]
enum Asked {
    /// To write this.
    Line(Box<Body>, String, String),
    /// To sync what is written.
    Sync,
}

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
    file: Option<Scribe>,
    /// What it was asked last and has not answered.
    asked: Option<Asked>,
    /// What comes after that, and since when.
    waiting: VecDeque<(Body, String)>,
    /// When the file is to be looked after again.
    due: Option<Instant>,
    /// The trigger's record is to be synced then.
    soon: Option<Instant>,
    /// The disk was given up at the end.
    is_late: bool,
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
        let opened = MessageSink::open(&config.termination_log).and_then(|sink| sink.sync().map(|()| sink));
        let (message, message_cause) = match opened {
            Ok(sink) if file.as_ref().is_some_and(|file| file.is(&sink)) => {
                (None, Some(Cause::because("it is the audit file")))
            }
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
        })
    }

    /// Records one event, where the level wants it. Does nothing once sealed.
    pub fn write(&mut self, body: &Body) {
        let level = match body {
            Body::EvaluationTerminated(seal) => {
                return self.seal((**seal).clone(), clock::now().plus(PANIC_PATIENCE), false);
            }
            Body::EvaluationStarted(_) => AuditLevel::Basic,
            Body::TerminationRequested(_) | Body::Escalated(_) | Body::Detection(_) | Body::SpoofedSignal(_) => {
                AuditLevel::Standard
            }
            Body::Activity(_) => AuditLevel::Comprehensive,
        };
        if self.sealed || self.level < level {
            return;
        }
        if !matches!(body, Body::EvaluationStarted(_)) {
            self.stderr.share();
        }
        let time = rfc3339(SystemTime::now());
        if self.asked.is_none() && self.waiting.is_empty() {
            // Before the workload runs there is nothing to hurry for.
            let started = matches!(body, Body::EvaluationStarted(_));
            return self.record(body, time, (!started).then(|| clock::now().plus(PATIENCE)));
        }
        if self.waiting.len() < WAITING {
            self.waiting.push_back((body.clone(), time));
        } else {
            self.dropped = self.dropped.saturating_add(1);
        }
        self.attend(clock::now());
    }

    /// Has one record written where it belongs, waiting for the disk until then.
    fn record(&mut self, body: &Body, time: String, until: Option<Instant>) {
        let file_failed = self.file_cause.is_some();
        let Some(scribe) = self.file.as_mut().filter(|_| !file_failed) else { return self.divert(body, &time) };
        let Some(line) = fitting(&self.file_chain, body, &time) else {
            self.dropped = self.dropped.saturating_add(1);
            return;
        };
        // The first one is what remains when nothing else does.
        let must = matches!(body, Body::EvaluationStarted(_));
        let done = scribe.ask(Task::Append { line: line.clone(), must }, until);
        self.asked = Some(Asked::Line(Box::new(body.clone()), time, line));
        self.heard(done);
    }

    /// What the scribe answered to what it was asked, if it did.
    fn heard(&mut self, done: Option<Done>) {
        let Some(done) = done else {
            self.due = Some(clock::now().plus(AGAIN));
            return;
        };
        match (self.asked.take(), done.written) {
            (Some(Asked::Line(body, _, line)), Written::Yes) => {
                self.file_chain.advance(&line);
                match *body {
                    Body::EvaluationStarted(_) => self.sync_now(None),
                    Body::TerminationRequested(_) if self.file.as_ref().is_some_and(Scribe::is_here) => {
                        self.sync_now(None)
                    }
                    Body::TerminationRequested(_) => {
                        self.soon.get_or_insert_with(|| clock::now().plus(SOON));
                    }
                    _ => {}
                }
            }
            (Some(Asked::Line(body, time, _)), Written::NoSpace) => {
                // What is free is the seal's; the chain goes on as if this record had not been.
                if matches!(*body, Body::EvaluationStarted(_)) {
                    self.divert(&body, &time);
                } else {
                    self.dropped = self.dropped.saturating_add(1);
                }
            }
            (Some(Asked::Line(body, time, _)), Written::Failed(cause)) => {
                self.file_cause = Some(cause);
                self.trouble(format!("audit file: {cause}; the audit goes to stderr"));
                self.divert(&body, &time);
            }
            (Some(Asked::Sync), Written::Failed(cause)) => self.trouble(format!("audit file: {cause}")),
            (Some(Asked::Sync) | None, _) => {}
        }
    }

    fn sync_now(&mut self, until: Option<Instant>) {
        self.soon = None;
        if let Some(scribe) = &mut self.file {
            let done = scribe.ask(Task::Sync, until);
            self.asked = Some(Asked::Sync);
            self.heard(done);
        }
    }

    fn divert(&mut self, body: &Body, time: &str) {
        match fitting(&self.stderr_chain, body, time) {
            Some(line) => {
                if self.write_stderr(&line).is_err() {
                    self.dropped = self.dropped.saturating_add(1);
                }
            }
            None => self.dropped = self.dropped.saturating_add(1),
        }
    }

    /// When `attend` has to be called, if it has.
    #[must_use]
    pub fn due(&self) -> Option<Instant> {
        let again = self.due.filter(|_| self.asked.is_some() || !self.waiting.is_empty());
        again.into_iter().chain(self.soon).min().filter(|_| !self.sealed)
    }

    /// Goes on with what the disk had not taken, and starts the fsync of the trigger's record when that is due. Waits for nothing.
    pub fn attend(&mut self, now: Instant) {
        if self.sealed {
            return;
        }
        self.go_on(now);
        if self.asked.is_none() && self.soon.is_some_and(|soon| now >= soon) {
            self.sync_now(Some(now));
        }
        // Not at once again.
        self.due = Some(now.plus(AGAIN));
        if self.asked.is_some() {
            self.soon = self.soon.map(|soon| soon.max(now.plus(AGAIN)));
        }
    }

    /// Hears the scribe, and has written what waits, until it does not answer by then.
    fn go_on(&mut self, until: Instant) {
        loop {
            if self.asked.is_some() {
                let done = self.file.as_mut().and_then(|scribe| scribe.wait(Some(until)));
                self.heard(done);
                if self.asked.is_some() {
                    return;
                }
            }
            let Some((body, time)) = self.waiting.pop_front() else { return };
            self.record(&body, time, Some(until));
        }
    }

    /// The final record, then the termination message. A second call does nothing.
    ///
    /// It goes to the audit file, also where an earlier write failed (a limit may have been lifted since), and to stderr
    /// where there is no file, or the file does not take it, failed before, or is no longer what it was. `until` is when the
    /// disk is no longer waited for; `alone` says that nobody of the workload is left, so that there may be another thread of ours.
    pub fn seal(&mut self, mut body: EvaluationTerminated, until: Instant, alone: bool) {
        if self.sealed {
            return;
        }
        self.sealed = true;
        if body.status != "launch_failed" {
            self.stderr.share();
        }
        let time = rfc3339(SystemTime::now());
        // Who was without a CPU beyond that time has a disk that did nothing wrong.
        let until = until.max(clock::now().plus(AT_LEAST));
        self.go_on(until);
        if self.asked.is_some() {
            self.late();
        }
        if self.dropped > 0 {
            let dropped = format!(
                "audit: {} records were dropped: no space, no answer of the disk, or nobody read stderr",
                self.dropped
            );
            self.troubles.push(dropped);
        }
        let _ = self.have_done(Task::Look, until);
        self.repeat_troubles(&mut body);
        let safe = self.seal_file(&body, &time, until);
        self.repeat_troubles(&mut body);
        if self.is_late {
            // The time is up: before stderr, whose reader may be stuck as well.
            self.leave_message(&body, &time, safe, until, alone);
            self.repeat_troubles(&mut body);
            self.divert_rest();
        }
        if !safe
            && let Ok(line) = self.stderr_chain.render_seal(&body, &time, LINE)
            && let Err(cause) = self.stderr.write_last(&line)
        {
            self.trouble(format!("audit: {cause}")); // The termination message is still to come, and says so.
        }
        if !self.is_late {
            self.repeat_troubles(&mut body);
            self.leave_message(&body, &time, safe, until, alone);
        }
    }

    /// The termination message: the very line that was sealed, where it fits. Nothing follows a seal, so neither chain goes on.
    fn leave_message(&mut self, body: &EvaluationTerminated, time: &str, safe: bool, until: Instant, alone: bool) {
        let Some(message) = &self.message else { return };
        let chain = if safe { &self.file_chain } else { &self.stderr_chain };
        let until = until.max(clock::now().plus(AT_LEAST));
        if let Ok(line) = chain.render_seal(body, time, MESSAGE_LIMIT)
            && let Err(cause) = message.replace(line, until, alone)
        {
            self.message_cause = Some(cause);
            self.troubles.push(format!("termination log: {cause}"));
        }
    }

    /// The seal, synced, into the file; whether it is safe there.
    fn seal_file(&mut self, body: &EvaluationTerminated, time: &str, until: Instant) -> bool {
        let (mut safe, mut synced) = (false, false);
        // Where even the reserved room was taken away, a page may still be free.
        for limit in [LINE, MESSAGE_LIMIT] {
            let Ok(line) = self.file_chain.render_seal(body, time, limit) else { break };
            let Some(done) = self.have_done(Task::Append { line, must: true }, until) else { return false };
            let cause = match done.written {
                Written::Yes => {
                    safe = self.file_cause.is_none() && done.disturbed.is_none();
                    synced = true;
                    match self.have_done(Task::Sync, until).map(|done| done.written) {
                        // Late, which was said.
                        None => return false,
                        Some(Written::Failed(cause)) => {
                            safe = false;
                            self.troubles.push(format!("audit file: {cause}"));
                        }
                        Some(Written::Yes | Written::NoSpace) => {
                            let _ = self.have_done(Task::Release, until);
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
        if !synced && let Some(Done { written: Written::Failed(cause), .. }) = self.have_done(Task::Sync, until) {
            self.troubles.push(format!("audit file: {cause}"));
        }
        if let Some(what) = self.file.as_ref().and_then(Scribe::disturbed) {
            self.troubles.push(what.to_owned());
        }
        safe
    }

    /// At the end: one task and its answer. Who has not answered once is asked nothing more.
    fn have_done(&mut self, task: Task, until: Instant) -> Option<Done> {
        let released = matches!(task, Task::Release);
        let scribe = self.file.as_mut().filter(|scribe| !scribe.is_busy())?;
        let done = scribe.ask(task, Some(until));
        // By then it is sealed, and the rest is nobody's concern.
        if done.is_none() && !released {
            self.late();
        }
        done
    }

    /// The disk was given up.
    fn late(&mut self) {
        let cause = Cause::because(LATE);
        self.is_late = true;
        self.file_cause = Some(cause);
        self.troubles.push(format!("audit file: {cause}"));
    }

    /// What waits for a disk that was given up goes to stderr, as the seal will.
    fn divert_rest(&mut self) {
        // Whether the one that it was at is in the file, nobody knows.
        if let Some(Asked::Line(body, time, _)) = self.asked.take() {
            self.divert(&body, &time);
        }
        for (body, time) in std::mem::take(&mut self.waiting) {
            self.divert(&body, &time);
        }
    }

    /// What the sinks said when they were opened, and since.
    #[must_use]
    pub fn notes(&self) -> Vec<String> {
        let mut notes: Vec<String> = self.notes.iter().chain(&self.troubles).cloned().collect();
        if let Some(what) = self.file.as_ref().and_then(Scribe::disturbed).filter(|_| !self.sealed) {
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
        let reserved = match self.file.as_ref().map(Scribe::unreserved) {
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

    /// Does without the thread, where the workload needs its place (pids limit, RLIMIT_NPROC); before there is one.
    pub fn dismiss_thread(&mut self) {
        if let Some(why) = self.file.as_mut().and_then(Scribe::dismiss) {
            self.trouble(why.to_owned());
        }
    }

    /// The number of the thread that writes to the file, where there is one.
    #[must_use]
    pub fn thread(&self) -> Option<i32> {
        self.file.as_ref().and_then(Scribe::thread)
    }

    /// Where the audit file is, if one is open.
    #[must_use]
    pub fn audit_path(&self) -> Option<&Path> {
        self.file.as_ref().map(Scribe::path)
    }

    /// The descriptors that the sinks hold: all from 3 up and close-on-exec.
    #[must_use]
    pub fn fds(&self) -> Vec<RawFd> {
        let file = self.file.as_ref().map(Scribe::fd);
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
    log.seal(body, clock::now().plus(PANIC_PATIENCE), false);
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
