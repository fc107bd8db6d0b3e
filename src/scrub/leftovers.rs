//! What a workload leaves besides files: System V IPC and POSIX queues. As PID 1 only: anywhere else they may be anybody's.
//!
//! The containers of one pod share these, and so does the node with `hostIPC`. Invariant: what was there before the
//! workload, what another UID made, and what a process outside this PID namespace made or used last, stays.

use crate::audit::record::Ipc;
use crate::kernel::ipc::{self, Kind, Object};
use std::ffi::CString;

/// What was there before the workload ran.
#[derive(Debug)]
pub struct Before {
    objects: Vec<(Kind, i32)>,
    queues: Vec<CString>,
}

impl Before {
    /// Looks, before the spawn.
    #[must_use]
    pub fn look() -> Self {
        let mut objects: Vec<_> = ipc::objects().iter().map(|o| (o.kind, o.id)).collect();
        let mut queues = ipc::posix_queues();
        // There may be thousands, and as many come: they are looked up by halving.
        objects.sort_unstable();
        queues.sort_unstable();
        Self { objects, queues }
    }

    /// Whether nothing was there and nothing has come, found out at once.
    #[must_use]
    pub fn is_all(&self) -> bool {
        self.objects.is_empty() && self.queues.is_empty() && ipc::is_empty()
    }

    /// Removes what has come since.
    #[must_use]
    pub fn clear(&self) -> Ipc {
        let own = nix::unistd::geteuid().as_raw();
        let mut done = Ipc::default();
        for object in ipc::objects().iter().filter(|o| self.objects.binary_search(&(o.kind, o.id)).is_err()) {
            let counter = match object.kind {
                Kind::Memory => &mut done.shared_memory,
                Kind::Semaphores => &mut done.semaphores,
                Kind::Queue => &mut done.message_queues,
            };
            let gone = is_the_workloads(object, own) && ipc::remove(object).is_ok();
            let counter = if gone { counter } else { &mut done.left };
            *counter = counter.saturating_add(1);
        }
        for name in ipc::posix_queues().iter().filter(|n| self.queues.binary_search(n).is_err()) {
            let gone = ipc::remove_posix_queue(name, own).is_ok();
            let counter = if gone { &mut done.posix_queues } else { &mut done.left };
            *counter = counter.saturating_add(1);
        }
        done
    }
}

/// By who made or used it last; by the UID where nobody used it.
fn is_the_workloads(object: &Object, own: u32) -> bool {
    object.ours || (!object.used && object.creator == own)
}
