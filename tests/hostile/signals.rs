//! Signals at the supervisor, by every call that sends one, with the truth about the sender and without.

use super::{Tried, sys};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

macro_rules! call {
    ($($arg:expr),+) => {{
        // SAFETY: every pointer passed is null or names a live local.
        sys(unsafe { libc::syscall($($arg),+) })
    }};
}

/// Every signal there is, the deadly ones last; the attack succeeded if any was let through.
fn every(pid: i32) -> Tried {
    let mut best = Err(0);
    let gentle = (0..=64).filter(|n| !matches!(*n, libc::SIGKILL | libc::SIGSTOP));
    for signal in gentle.chain([libc::SIGSTOP, libc::SIGCONT, libc::SIGKILL]) {
        match call!(libc::SYS_kill, pid, signal) {
            Ok(_) => best = Ok(()),
            Err(errno) if best.is_err() => best = Err(errno),
            Err(_) => {}
        }
    }
    best
}

/// A siginfo that says it comes from the kubelet: SI_QUEUE from pid 0.
fn forged() -> [i32; 32] {
    let mut info = [0i32; 32];
    info[0] = libc::SIGTERM;
    info[2] = -1; // si_code: SI_QUEUE
    info
}

/// A descriptor of ours that is made ready tells its "owner", the supervisor, by SIGTERM.
fn asynchronous(own: impl Fn(i32) -> Tried) -> Tried {
    let (mut here, there) = UnixStream::pair().map_err(|_| 0)?;
    let fd = there.as_raw_fd();
    own(fd)?;
    call!(libc::SYS_fcntl, fd, 10, libc::SIGTERM)?; // F_SETSIG
    call!(libc::SYS_fcntl, fd, libc::F_SETFL, libc::O_ASYNC | libc::O_NONBLOCK)?;
    std::io::Write::write_all(&mut here, b"x").map_err(|_| 0)
}

pub fn attack(name: &str, s: i32) -> Option<Tried> {
    // SAFETY: getpgid(2) takes an integer.
    let group = unsafe { libc::getpgid(s) };
    let tried = match name {
        "kill" => every(s),
        "kill-group" => every(-group),
        "kill-all" => {
            let answer = call!(libc::SYS_kill, -1, libc::SIGTERM).map(drop);
            answer.and(call!(libc::SYS_kill, -1, libc::SIGKILL).map(drop))
        }
        "kill-term" => call!(libc::SYS_kill, s, libc::SIGTERM).map(drop),
        "tkill" => call!(libc::SYS_tkill, s, libc::SIGTERM).map(drop),
        "tgkill" => call!(libc::SYS_tgkill, s, s, libc::SIGTERM).map(drop),
        "sigqueue" => call!(libc::SYS_rt_sigqueueinfo, s, libc::SIGTERM, forged().as_ptr()).map(drop),
        "tgsigqueue" => call!(libc::SYS_rt_tgsigqueueinfo, s, s, libc::SIGTERM, forged().as_ptr()).map(drop),
        "pidfd-signal" => {
            // A directory of /proc serves where pidfd_open is refused (pidfd_send_signal(2)).
            let path = std::ffi::CString::new(format!("/proc/{s}")).unwrap();
            call!(libc::SYS_pidfd_open, s, 0)
                .or_else(|_| call!(libc::SYS_openat, libc::AT_FDCWD, path.as_ptr(), libc::O_DIRECTORY, 0))
                .and_then(|fd| call!(libc::SYS_pidfd_send_signal, fd, libc::SIGTERM, 0usize, 0))
                .map(drop)
        }
        "async-setown" => asynchronous(|fd| call!(libc::SYS_fcntl, fd, 8, s).map(drop)),
        "async-setown-group" => asynchronous(|fd| call!(libc::SYS_fcntl, fd, 8, -group).map(drop)),
        "async-setown-ex" => asynchronous(|fd| {
            let owner = [1i32, s]; // F_OWNER_PID
            call!(libc::SYS_fcntl, fd, 15, owner.as_ptr()).map(drop)
        }),
        "async-fiosetown" => asynchronous(|fd| call!(libc::SYS_ioctl, fd, 0x8901, &raw const s).map(drop)),
        "async-siocspgrp" => asynchronous(|fd| call!(libc::SYS_ioctl, fd, 0x8902, &raw const s).map(drop)),
        // Uses up what RLIMIT_SIGPENDING lets the supervisor's user queue; of a tgkill(2) beyond it only the number is left, and
        // that looks like a stop from outside (SI_USER, pid 0).
        "nameless" => {
            // SAFETY: one thread; the set is initialised by sigemptyset.
            unsafe {
                let mut set: libc::sigset_t = std::mem::zeroed();
                libc::sigemptyset(&raw mut set);
                libc::sigaddset(&raw mut set, libc::SIGRTMIN());
                libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut());
                let nothing = libc::sigval { sival_ptr: std::ptr::null_mut() };
                while libc::sigqueue(libc::getpid(), libc::SIGRTMIN(), nothing) == 0 {}
            }
            call!(libc::SYS_tgkill, s, s, libc::SIGTERM).map(drop)
        }
        // Some thousands of stops, so that a real one among them is lost. Ends when the supervisor has it killed.
        "flood" => loop {
            let _ = call!(libc::SYS_kill, s, libc::SIGTERM);
        },
        _ => return None,
    };
    if tried.is_ok() {
        // A run that ends at once has no time to say what came.
        std::thread::sleep(std::time::Duration::from_millis(300));
    }
    Some(tried)
}
