//! What a workload leaves besides files: System V IPC and POSIX queues. As PID 1 only: anywhere else they may be anybody's.
//!
//! The containers of one pod share these, and so does the node with `hostIPC`. Invariants: what was there before the
//! workload, what another UID made, and what a process outside this PID namespace made or used last, stays; and nothing the
//! workload made costs more memory than one object, or more time than there is.

use crate::audit::record::Ipc;
use crate::kernel::clock;
use crate::kernel::entries::Entry;
use crate::kernel::ipc::{self, Identity, Kind, Object};
use nix::errno::Errno;
use std::ffi::CString;
use std::os::fd::BorrowedFd;
use std::time::Duration;

/// What the first turn may take, so that the trees on a disk get theirs: removing ten thousand objects takes less, but to learn who
/// used a set of semaphores takes a call for each of them, and a workload may make millions.
const TURN: Duration = Duration::from_millis(50);

/// In this order: what may take long comes last. `None` are the POSIX queues.
const ORDER: [Option<Kind>; 4] = [Some(Kind::Memory), Some(Kind::Queue), None, Some(Kind::Semaphores)];

/// What was there before the workload ran.
#[derive(Debug)]
pub struct Before {
    objects: Vec<Identity>,
    queues: Vec<(CString, u64)>,
    /// What earlier turns removed.
    removed: Ipc,
    had_a_turn: bool,
}

/// What was done.
#[derive(Debug, Clone, Copy, Default)]
pub struct Cleared {
    /// In numbers.
    pub ipc: Ipc,
    /// The time was up first.
    pub cut_off: bool,
    /// Something stays that is the workload's, or may be.
    pub doubtful: bool,
}

impl Before {
    /// Looks, before the spawn.
    #[must_use]
    pub fn look() -> Self {
        let (mut objects, mut queues) = (Vec::new(), Vec::new());
        for kind in Kind::ALL {
            let _ = ipc::each(kind, |object| {
                objects.push(object.identity());
                true
            });
        }
        ipc::each_posix_queue(|_, entry| {
            queues.push((entry.name.to_owned(), entry.inode));
            true
        });
        // There may be thousands, and as many come: they are looked up by halving.
        objects.sort_unstable();
        queues.sort_unstable();
        Self { objects, queues, removed: Ipc::default(), had_a_turn: false }
    }

    /// Whether nothing was there and nothing has come, found out at once.
    #[must_use]
    pub fn is_all(&self) -> bool {
        self.objects.is_empty() && self.queues.is_empty() && ipc::is_empty()
    }

    /// Removes what has come since, until `is_over`. The first call ends after `TURN` as well; the next one goes on.
    pub fn clear(&mut self, is_over: &dyn Fn() -> bool) -> Cleared {
        let turn = (!std::mem::replace(&mut self.had_a_turn, true)).then(|| clock::now().plus(TURN));
        let is_over = || is_over() || turn.is_some_and(|end| clock::now() >= end);
        let mut cleared = Cleared::default();
        let mut left = 0u64;
        for kind in ORDER {
            let pass = self.passes(kind, &is_over);
            left = left.saturating_add(pass.left);
            cleared.cut_off |= pass.cut_off;
            cleared.doubtful |= pass.doubtful;
        }
        cleared.ipc = Ipc { left, ..self.removed };
        cleared
    }

    /// Passes over one kind until one removes nothing: a table that shrinks while it is read may not show everything. The last one.
    fn passes(&mut self, kind: Option<Kind>, is_over: &dyn Fn() -> bool) -> Pass {
        loop {
            let mut pass = Pass { own: nix::unistd::geteuid().as_raw(), ..Pass::default() };
            match kind {
                Some(kind) => pass.over_objects(kind, &self.objects, is_over),
                None => pass.over_posix_queues(&self.queues, is_over),
            }
            let counter = match kind {
                Some(Kind::Memory) => &mut self.removed.shared_memory,
                Some(Kind::Semaphores) => &mut self.removed.semaphores,
                Some(Kind::Queue) => &mut self.removed.message_queues,
                None => &mut self.removed.posix_queues,
            };
            *counter = counter.saturating_add(pass.removed);
            if pass.removed == 0 || pass.cut_off {
                return pass;
            }
        }
    }
}

/// One look at everything of a kind.
#[derive(Debug, Default)]
struct Pass {
    own: u32,
    removed: u64,
    left: u64,
    cut_off: bool,
    doubtful: bool,
}

impl Pass {
    fn over_objects(&mut self, kind: Kind, before: &[Identity], is_over: &dyn Fn() -> bool) {
        let read = ipc::each(kind, |object| {
            // At each: removing one takes longer than looking at the clock.
            if is_over() {
                self.cut_off = true;
                return false;
            }
            // Nothing is left to do for a segment that somebody outside is attached to: it goes with him.
            if object.doomed || before.binary_search(&object.identity()).is_ok() {
                return true;
            }
            match whose(object, self.own, is_over) {
                Some(Whose::Workloads) => self.gone(ipc::remove(object).map(|()| true)),
                Some(Whose::Unknown) => self.stays(true),
                Some(Whose::Others) => self.stays(false),
                None => self.cut_off = true,
            }
            !self.cut_off
        });
        self.doubtful |= read.is_err();
        if self.cut_off {
            let known = before.iter().filter(|known| known.0 == kind).count();
            let there = ipc::in_use(kind).and_then(|count| usize::try_from(count).ok()).unwrap_or(0);
            self.left = u64::try_from(there.saturating_sub(known)).unwrap_or(0).max(self.left);
        }
    }

    fn over_posix_queues(&mut self, before: &[(CString, u64)], is_over: &dyn Fn() -> bool) {
        let known = |entry: &Entry<'_>| {
            // By its inode too: the name of one that was there before is free when that is removed.
            before.binary_search_by(|(name, inode)| (name.as_c_str(), *inode).cmp(&(entry.name, entry.inode))).is_ok()
        };
        ipc::each_posix_queue(|dir: BorrowedFd<'_>, entry| {
            if known(entry) {
                return true;
            }
            if is_over() {
                self.cut_off = true;
                self.stays(true);
                return false;
            }
            self.gone(ipc::remove_posix_queue(dir, entry.name, self.own));
            true
        });
    }

    /// What became of one that was to be removed; `false` is somebody else's.
    fn gone(&mut self, result: Result<bool, Errno>) {
        match result {
            Ok(true) => self.removed = self.removed.saturating_add(1),
            Ok(false) => self.stays(false),
            Err(Errno::EINVAL | Errno::EIDRM | Errno::ENOENT) => {}
            Err(_) => self.stays(true),
        }
    }

    fn stays(&mut self, doubtful: bool) {
        self.left = self.left.saturating_add(1);
        self.doubtful |= doubtful;
    }
}

enum Whose {
    Workloads,
    Others,
    /// Of the workload's UID, and used last by somebody outside: it does not say who made it.
    Unknown,
}

/// By who made or used it last; by the UID where nobody used it. `None` where there was no time to find it out.
fn whose(object: &Object, own: u32, is_over: &dyn Fn() -> bool) -> Option<Whose> {
    if object.creator == own && !object.used {
        return Some(Whose::Workloads);
    }
    Some(match object.ours {
        Some(true) => Whose::Workloads,
        None if ipc::used_here(object, is_over)? => Whose::Workloads,
        // Shared memory says who made it.
        _ if object.creator == own && object.kind != Kind::Memory => Whose::Unknown,
        _ => Whose::Others,
    })
}
