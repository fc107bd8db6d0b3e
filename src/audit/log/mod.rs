//! The log of one run: which sinks there are, what goes to which, and what is said where one fails.
//!
//! Opened before the workload runs; from then on nothing here fails, blocks for long, or panics. Invariants: the seal
//! is written once; a sink that fails is named in the sinks that are left; a record that no sink took is counted.

mod ending;
mod opening;

pub use ending::emergency;
pub use opening::{Config, DEFAULT_FILE, OpenError};

use super::chain::Chain;
use super::file::{Done, RESERVE, Task, Written};
use super::message::MessageSink;
use super::record::Body;
use super::scribe::Scribe;
use super::stderr::StderrSink;
use super::time::rfc3339;
use crate::kernel::{Cause, Outcome, clock, limits};
use crate::machine::types::Instant;
use crate::settings::AuditLevel;
use crate::switches::without;
use ending::PANIC_PATIENCE;
use std::collections::VecDeque;
use std::os::fd::RawFd;
use std::path::Path;
use std::time::{Duration, SystemTime};

/// How long the ladder waits for the disk to take a record; what comes after one that it has not taken waits in memory.
const PATIENCE: Duration = Duration::from_millis(5);
/// When a disk that has not answered is looked at again.
const AGAIN: Duration = Duration::from_millis(20);
/// How long after the trigger its record is synced, where the run is not over before: the seal's fsync does for both.
const SOON: Duration = Duration::from_millis(50);
/// What waits for the disk in memory at the most; the seal is not among it.
const WAITING: usize = 64;
/// The task that the scribe was asked to do.
#[derive(Debug)]
enum Asked {
    /// To write this.
    Line(Box<Body>, String, String),
    /// To sync what is written.
    Sync,
}

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
    /// Our own limits when it was opened.
    own: limits::Own,
}

impl Log {
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

    /// Raises our own limits again, where somebody lowered them: the file would take nothing more.
    fn restore_limits(&mut self) {
        if without("own_limits") {
            return;
        }
        // Nothing is allocated where nothing was lowered.
        let lowered: Vec<&str> = self.own.restore().collect();
        lowered.into_iter().for_each(|what| self.trouble(what.to_owned()));
    }

    /// Has one record written where it belongs, waiting for the disk until then.
    fn record(&mut self, body: &Body, time: String, until: Option<Instant>) {
        self.restore_limits();
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
