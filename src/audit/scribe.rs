//! Who writes to the audit file: where a disk is behind it a thread of its own, so that a write, an fsync or a look that does not
//! come back holds up nobody but it.
//!
//! The thread is there before the workload is, and the filter refuses its number as it refuses the supervisor's (`Scribe::thread`).
//! Invariants: one task at a time, in the order in which they were asked for; who asks waits as long as it says and no longer, and
//! asks nothing more until the answer is there.

use super::file::{AuditSink, Done, Task, Written};
use crate::kernel::{Cause, clock};
use crate::machine::types::Instant;
use crate::switches::without;
use nix::poll::{PollFd, PollFlags};
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

const WHY: &str = "audit file: no thread for it: the kill waits for its disk";
/// Enough for the few calls that are made there.
const STACK: usize = 64 * 1024;

/// What is between the two threads.
#[derive(Debug)]
struct Desk {
    /// Taken for moments only, and by turns: by who asks before the bell or after `done`, by who writes between them.
    paper: Mutex<Paper>,
    /// Rung for a task.
    bell: EventFd,
    /// The answer is on the paper.
    done: AtomicBool,
    /// Readable when it is.
    ready: EventFd,
}

#[derive(Debug, Default)]
struct Paper {
    /// Before the thread has taken it, and after its end.
    sink: Option<AuditSink>,
    task: Option<Task>,
    answer: Option<Done>,
    thread: i32,
    /// Nobody will ask any more.
    over: bool,
}

impl Desk {
    fn paper(&self) -> MutexGuard<'_, Paper> {
        self.paper.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn answer(&self, write: impl FnOnce(&mut Paper)) {
        write(&mut self.paper());
        self.done.store(true, Ordering::Release);
        // Where it does not ring, who waits looks at `done` all the same (clock::LOOK).
        let _ = self.ready.write(1);
    }

    /// The scribe's life.
    fn serve(&self) {
        let Some(mut sink) = self.paper().sink.take() else { return };
        self.answer(|paper| paper.thread = nix::unistd::gettid().as_raw());
        loop {
            let rung = self.bell.read().is_ok();
            // By itself: in the match it would hold the paper until its end.
            let (task, over) = {
                let mut paper = self.paper();
                (paper.task.take(), paper.over)
            };
            match task {
                Some(task) => {
                    let done = sink.perform(task);
                    self.answer(|paper| paper.answer = Some(done));
                }
                None if over => break,
                // Rung for one that was done already: the read before it was refused.
                None if rung => {}
                None => std::thread::yield_now(),
            }
        }
        self.paper().sink = Some(sink);
    }

    /// Waits until there is an answer, or until then; whether there is one.
    fn wait(&self, until: Option<Instant>) -> bool {
        loop {
            // First: it is written after `done`, and must not stay readable when the answer was taken before that.
            let _ = self.ready.read();
            if self.done.swap(false, Ordering::Acquire) {
                return true;
            }
            let left = until.map(|until| until.since(clock::now()));
            if left.is_some_and(|left| left.is_zero()) {
                return false;
            }
            let mut fds = vec![PollFd::new(self.ready.as_fd(), PollFlags::POLLIN)];
            let looked = match left {
                Some(left) => clock::wait(&mut fds, Some(left.min(clock::LOOK))),
                // Nobody minds being late, and no timer has to be made for it.
                None => nix::poll::ppoll(&mut fds, Some(clock::LOOK.into()), None).map(|_| ()),
            };
            if looked.is_err() && until.is_some() {
                return self.done.swap(false, Ordering::Acquire);
            }
        }
    }
}

#[derive(Debug)]
enum How {
    /// In memory, where nothing is waited for, or where no thread can be had.
    Here(Box<AuditSink>),
    Beside {
        desk: Arc<Desk>,
        thread: i32,
        busy: bool,
        /// Until it is waited for.
        life: Option<JoinHandle<()>>,
    },
}

/// The audit file and who writes to it.
#[derive(Debug)]
pub struct Scribe {
    path: PathBuf,
    fd: i32,
    how: How,
    /// What was known of the file when it last answered.
    disturbed: Option<&'static str>,
    unreserved: Option<Cause>,
}

impl Scribe {
    /// For a file that was just opened; before the workload is there. With it why the kill will wait for the disk, if it will.
    #[must_use]
    pub fn new(sink: AuditSink) -> (Self, Option<&'static str>) {
        let (path, fd, unreserved) = (sink.path().to_owned(), sink.fd(), sink.unreserved());
        let with = |how| Self { path, fd, how, disturbed: None, unreserved };
        if sink.is_in_memory() || without("beside") {
            return (with(How::Here(Box::new(sink))), None);
        }
        let flags = EfdFlags::EFD_CLOEXEC;
        let fds = EventFd::from_flags(flags)
            .and_then(|bell| Ok((bell, EventFd::from_flags(flags | EfdFlags::EFD_NONBLOCK)?)));
        let Ok((bell, ready)) = fds else { return (with(How::Here(Box::new(sink))), Some(WHY)) };
        let paper = Mutex::new(Paper { sink: Some(sink), ..Paper::default() });
        let desk = Arc::new(Desk { paper, bell, done: AtomicBool::new(false), ready });
        let theirs = Arc::clone(&desk);
        let life = std::thread::Builder::new().stack_size(STACK).spawn(move || theirs.serve()).ok();
        if life.is_none()
            && let Some(sink) = desk.paper().sink.take()
        {
            return (with(How::Here(Box::new(sink))), Some(WHY));
        }
        desk.wait(None);
        let thread = desk.paper().thread;
        (with(How::Beside { desk, thread, busy: false, life }), None)
    }

    /// The number of its thread, which the workload must not be able to use.
    #[must_use]
    pub const fn thread(&self) -> Option<i32> {
        match self.how {
            How::Here(_) => None,
            How::Beside { thread, .. } => Some(thread),
        }
    }

    /// Its descriptor.
    #[must_use]
    pub const fn fd(&self) -> i32 {
        self.fd
    }

    /// Where the file is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Why no room is promised, as far as is known.
    #[must_use]
    pub const fn unreserved(&self) -> Option<Cause> {
        self.unreserved
    }

    /// What somebody else did to the file, as far as is known.
    #[must_use]
    pub const fn disturbed(&self) -> Option<&'static str> {
        self.disturbed
    }

    /// Whether there is a task that has no answer yet.
    #[must_use]
    pub const fn is_busy(&self) -> bool {
        matches!(self.how, How::Beside { busy: true, .. })
    }

    /// Whether an fsync takes no time here.
    #[must_use]
    pub const fn is_here(&self) -> bool {
        matches!(self.how, How::Here(_))
    }

    /// Has the task done; the answer, if it comes by `until`. `None`: as long as it takes. Only where it is not busy.
    pub fn ask(&mut self, task: Task, until: Option<Instant>) -> Option<Done> {
        match &mut self.how {
            How::Here(sink) => {
                let done = sink.perform(task);
                Some(self.note(done))
            }
            How::Beside { desk, busy, .. } => {
                desk.paper().task = Some(task);
                // It may have been seen all the same.
                if let Err(errno) = desk.bell.write(1)
                    && desk.paper().task.take().is_some()
                {
                    let written = Written::Failed(Cause::refused("write to an eventfd", errno));
                    return Some(Done { written, disturbed: self.disturbed, unreserved: self.unreserved });
                }
                *busy = true;
                self.wait(until)
            }
        }
    }

    /// The answer to the task that has none yet, if it comes by `until`.
    pub fn wait(&mut self, until: Option<Instant>) -> Option<Done> {
        let How::Beside { desk, busy, .. } = &mut self.how else { return None };
        if !*busy || !desk.wait(until) {
            return None;
        }
        *busy = false;
        let done = desk.paper().answer.take()?;
        Some(self.note(done))
    }

    /// Does without the thread, where it has nothing to do; why the kill will wait for the disk then.
    pub fn dismiss(&mut self) -> Option<&'static str> {
        let sink = self.end()?;
        self.how = How::Here(Box::new(sink));
        Some(WHY)
    }

    /// Ends the thread, unless it has not answered; what it wrote with.
    fn end(&mut self) -> Option<AuditSink> {
        let How::Beside { desk, busy: false, life, .. } = &mut self.how else { return None };
        desk.paper().over = true;
        desk.bell.write(1).ok()?;
        life.take()?.join().ok()?;
        desk.paper().sink.take()
    }

    /// Keeps what the file is now.
    fn note(&mut self, done: Done) -> Done {
        self.disturbed = done.disturbed;
        self.unreserved = done.unreserved;
        done
    }
}

/// The file's lock goes with the thread, for which the next run in the same process waits (only tests are several). The one that has not
/// answered is left alone.
impl Drop for Scribe {
    fn drop(&mut self) {
        drop(self.end());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A read of the bell was refused, and the task was there: the bell rings for it once more, and that is not the end.
    #[test]
    fn a_bell_without_a_task_is_not_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let (sink, _) = AuditSink::open(&dir.path().join("audit.json")).unwrap();
        if sink.is_in_memory() {
            return println!("skipped: {} is in memory", dir.path().display());
        }
        let (mut scribe, why) = Scribe::new(sink);
        assert_eq!(why, None);
        let How::Beside { desk, .. } = &scribe.how else { panic!("{scribe:?}") };
        desk.bell.write(1).unwrap();
        // Taken by now, or counted together with the next.
        std::thread::sleep(clock::LOOK);
        let soon = clock::now().plus(std::time::Duration::from_secs(60));
        assert!(matches!(scribe.ask(Task::Sync, Some(soon)).map(|done| done.written), Some(Written::Yes)));
        assert_eq!(scribe.dismiss(), Some(WHY), "and at the end it ends");
    }

    #[test]
    fn an_answer_without_its_bell_is_seen_all_the_same() {
        let bell = || EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK).unwrap();
        let done = AtomicBool::new(false);
        let desk = Desk { paper: Mutex::default(), bell: bell(), done, ready: bell() };
        std::thread::scope(|scope| {
            // What a refused write to `ready` leaves.
            scope.spawn(|| {
                std::thread::sleep(clock::LOOK / 4);
                desk.done.store(true, Ordering::Release);
            });
            assert!(desk.wait(None), "as long as it takes");
        });
        let far = clock::now().plus(std::time::Duration::from_secs(60));
        desk.done.store(true, Ordering::Release);
        assert!(desk.wait(Some(far)) && clock::now() < far);
    }
}
