//! A process held by a descriptor: a signal to it reaches it or nobody, also where pids are used again within seconds.
#![allow(unsafe_code)]

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

pub struct Pinned {
    pub pid: i32,
    held: OwnedFd,
}

impl Pinned {
    /// `None` where it is not there, or where `is_it` says, once it is held, that it is another.
    pub fn new(pid: i32, is_it: impl Fn(i32) -> bool) -> Option<Self> {
        // SAFETY: two integers.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
        let fd = i32::try_from(fd).ok().filter(|fd| *fd >= 0)?;
        // SAFETY: the descriptor was just made and nobody else's.
        let held = unsafe { OwnedFd::from_raw_fd(fd) };
        is_it(pid).then_some(Self { pid, held })
    }

    /// Whether it could be sent.
    pub fn signal(&self, signal: i32) -> bool {
        // SAFETY: the siginfo may be null.
        unsafe {
            libc::syscall(libc::SYS_pidfd_send_signal, self.held.as_raw_fd(), signal, std::ptr::null::<u8>(), 0) == 0
        }
    }
}

/// Whether the process was started by these words; a fork of ours before its exec was not.
pub fn begins(pid: i32, words: &[u8]) -> bool {
    std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.starts_with(words))
}

/// The first child.
pub fn child_of(pid: i32) -> Option<i32> {
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
    children.split_whitespace().next()?.parse().ok()
}
