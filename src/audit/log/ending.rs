//! How a log ends: the seal, synced where that can be had in time, and the termination message.
//!
//! Invariants: there is one seal, in one sink at least as far as any takes it; a disk or a reader that does not answer is waited for until
//! a given time and no longer, and what was lost is named in what is left.

use super::{Asked, Log};
use crate::audit::file::{Done, RESERVE, Task, Written};
use crate::audit::message::MESSAGE_LIMIT;
use crate::audit::record::EvaluationTerminated;
use crate::audit::scribe::Scribe;
use crate::audit::sinks::LATE;
use crate::audit::time::rfc3339;
use crate::kernel::{Cause, clock};
use crate::machine::types::Instant;
use nix::errno::Errno;
use std::sync::{Mutex, TryLockError};
use std::time::{Duration, SystemTime};

/// What the audit file's disk gets where the time is over already, and the termination message where that disk used it up.
const AT_LEAST: Duration = Duration::from_millis(30);
/// What a panic's seal waits for the disk.
pub(super) const PANIC_PATIENCE: Duration = Duration::from_secs(2);

/// The longest line, without the newlines around it.
const LINE: usize = RESERVE - 2;

impl Log {
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
        self.restore_limits();
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
