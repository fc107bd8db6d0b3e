//! The terminal: who has its foreground, and how it was before the workload had it, for what is to be read there after its end.
//!
//! Nothing here waits for output to drain, and SIGTTOU, which is ignored, stops nobody who is in the background (tcsetattr(3)).
//! Invariant: somebody else who has the foreground, a shell at its prompt, keeps the settings that are his.

use crate::switches::without;
use nix::errno::Errno;
use nix::unistd::{Pid, getpgrp, getpid, tcgetpgrp};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

/// The process group of this process becomes the terminal's foreground group (tcsetpgrp(3)). Every signal is blocked
/// at this point, so SIGTTOU cannot stop us.
///
/// # Errors
/// The errno of `ioctl(TIOCSPGRP)`.
pub fn take_foreground(group: i32) -> Result<(), Errno> {
    // SAFETY: tcsetpgrp(3) takes two integers.
    Errno::result(unsafe { libc::tcsetpgrp(0, group) }).map(drop)
}

/// Whether stdin is our controlling terminal and we are its foreground group.
#[must_use]
pub fn owns_terminal() -> bool {
    // SAFETY: isatty(3), tcgetpgrp(3) and getpgrp(2) take integers only.
    unsafe { libc::isatty(0) == 1 && libc::tcgetpgrp(0) == libc::getpgrp() }
}

/// Whether stdin is our controlling terminal and somebody else has its foreground, as a shell has that started us with `&`.
#[must_use]
pub fn is_behind() -> bool {
    // SAFETY: as above.
    let front = unsafe { if libc::isatty(0) == 1 { libc::tcgetpgrp(0) } else { -1 } };
    front >= 0 && front != getpgrp().as_raw()
}

/// stdin becomes `/dev/null`, as that of a shell's asynchronous commands is (POSIX.1-2017, Shell Command Language, 2.11).
///
/// # Errors
/// The errno of open(2) or dup2(2).
pub fn leave() -> Result<(), Errno> {
    // SAFETY: open(2) reads a NUL-terminated string; dup2(2) and close(2) take integers, of which the first is nobody else's.
    unsafe {
        let null = Errno::result(libc::open(c"/dev/null".as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC))?;
        Errno::result(libc::dup2(null, 0))?;
        libc::close(null);
    }
    Ok(())
}

/// Its settings.
#[derive(Clone, Copy)]
pub struct Terminal(libc::termios);

impl std::fmt::Debug for Terminal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Terminal")
    }
}

impl Terminal {
    /// As it is now; `None` where it is none.
    #[must_use]
    pub fn of(fd: impl AsFd) -> Option<Self> {
        let mut now = MaybeUninit::uninit();
        // SAFETY: tcgetattr(3) fills the structure at the pointer, which is valid, where it answers 0.
        unsafe { (libc::tcgetattr(fd.as_fd().as_raw_fd(), now.as_mut_ptr()) == 0).then(|| Self(now.assume_init())) }
    }

    /// Output goes on where it was stopped (`tcflow(TCOOFF)`), and every setting is what it was. As far as the terminal lets us.
    pub fn give_back(&self, fd: impl AsFd) {
        let fd = fd.as_fd();
        if without("terminal") {
            return;
        }
        // SAFETY: tcflow(3) takes two integers.
        unsafe { libc::tcflow(fd.as_raw_fd(), libc::TCOON) };
        if is_ours(fd) && Self::of(fd).is_some_and(|now| now.0 != self.0) {
            // With IXON off output also goes on where a key stopped it, which may be any key by now.
            let mut flowing = self.0;
            flowing.c_iflag &= !libc::IXON;
            for settings in [&flowing, &self.0] {
                // SAFETY: tcsetattr(3) reads the structure, which is valid.
                unsafe { libc::tcsetattr(fd.as_raw_fd(), libc::TCSANOW, settings) };
            }
        }
    }
}

/// Whether nobody but us is at it: our group has the foreground, or one that is gone, the workload's. A container's terminal is its PID 1's.
fn is_ours(fd: BorrowedFd<'_>) -> bool {
    let nobody_in = |group: Pid| {
        group.as_raw() > 0 && nix::sys::signal::kill(Pid::from_raw(-group.as_raw()), None) == Err(Errno::ESRCH)
    };
    getpid().as_raw() == 1 || tcgetpgrp(fd).is_ok_and(|group| group == getpgrp() || nobody_in(group))
}
