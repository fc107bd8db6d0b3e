//! Aimed at the supervisor's memory, descriptors, limits and share of the machine.

use super::{Tried, io, sys};
use std::fs::File;
use std::io::{Read, Write};
use std::time::{Duration, Instant};

macro_rules! call {
    ($($arg:expr),+) => {{
        // SAFETY: every pointer passed is null or names a live local.
        sys(unsafe { libc::syscall($($arg),+) })
    }};
}

fn prlimit(s: i32, resource: libc::c_long, value: u64) -> Tried {
    let limit = [value, value];
    call!(libc::SYS_prlimit64, s, resource, limit.as_ptr(), 0usize).map(drop)
}

/// By process, group or user; and it has to be seen.
fn nice(s: i32, which: i32, who: i32) -> Tried {
    call!(libc::SYS_setpriority, which, who, 19)?;
    // The raw call answers 20 - nice.
    if call!(libc::SYS_getpriority, 0, s)? == 1 { Ok(()) } else { Err(0) }
}

fn ioprio(s: i32, which: i32, who: i32) -> Tried {
    const IDLE: libc::c_long = 3 << 13;
    call!(libc::SYS_ioprio_set, which, who, IDLE)?;
    if call!(libc::SYS_ioprio_get, 1, s)? == IDLE { Ok(()) } else { Err(0) }
}

fn group(s: i32) -> i32 {
    // SAFETY: getpgid(2) takes an integer.
    unsafe { libc::getpgid(s) }
}

/// Reads or writes one byte of its memory. EFAULT means that the access was granted, and only the address was wrong.
fn vm(s: i32, call: libc::c_long) -> Tried {
    let mut byte = [0u8; 1];
    let local = libc::iovec { iov_base: byte.as_mut_ptr().cast(), iov_len: 1 };
    let remote = libc::iovec { iov_base: 8 as *mut libc::c_void, iov_len: 1 };
    match call!(call, s, &raw const local, 1, &raw const remote, 1, 0) {
        Err(libc::EFAULT) | Ok(_) => Ok(()),
        Err(errno) => Err(errno),
    }
}

/// Lists its descriptors and opens one of its files anew.
fn descriptors(s: i32) -> Tried {
    let mut last = Err(0);
    for entry in io(std::fs::read_dir(format!("/proc/{s}/fd")))?.flatten() {
        if std::fs::read_link(entry.path()).is_ok_and(|to| to.ends_with("security-audit.json")) {
            last = io(File::options().read(true).open(entry.path())).map(drop);
        }
    }
    last
}

/// The same by the number of a second thread, which limits and the like do as well: where there is one.
fn by_thread(name: &str, s: i32) -> Tried {
    // SAFETY: SIG_IGN installs no handler.
    unsafe { libc::signal(libc::SIGTERM, libc::SIG_IGN) };
    println!("looking");
    let until = Instant::now() + Duration::from_secs(20);
    while Instant::now() < until {
        // None where the revoke rung took the descriptors away.
        let threads = std::fs::read_dir(format!("/proc/{s}/task")).into_iter().flatten().flatten();
        let mut numbers = threads.filter_map(|thread| thread.file_name().to_str()?.parse::<i32>().ok());
        if let Some(other) = numbers.find(|thread| *thread != s) {
            return attack(name, other).or_else(|| super::signals::attack(name, other)).unwrap();
        }
    }
    Err(libc::ESRCH)
}

/// Lets every wait of its be late by years, and is there for five seconds.
fn late(s: i32) -> Tried {
    // SAFETY: SIG_IGN installs no handler.
    unsafe { libc::signal(libc::SIGTERM, libc::SIG_IGN) };
    io(std::fs::write(format!("/proc/{s}/timerslack_ns"), i64::MAX.to_string()))?;
    std::thread::sleep(Duration::from_secs(5));
    Ok(())
}

pub fn attack(name: &str, s: i32) -> Option<Tried> {
    if let Some(name) = name.strip_prefix("thread:") {
        return Some(by_thread(name, s));
    }
    let link = |what: &str| io(std::fs::read_link(format!("/proc/{s}/{what}"))).map(drop);
    let read = |what: &str| {
        let mut file = io(File::open(format!("/proc/{s}/{what}")))?;
        if io(file.read(&mut [0u8; 16]))? > 0 { Ok(()) } else { Err(0) }
    };
    let write = |what: &str, text: &str| {
        let mut file = io(File::options().write(true).open(format!("/proc/{s}/{what}")))?;
        io(file.write_all(text.as_bytes()))
    };
    Some(match name {
        "ptrace" => call!(libc::SYS_ptrace, 0x4206, s, 0usize, 0usize).map(drop),
        "timerslack" => late(s),
        "proc-mem" => io(File::options().read(true).write(true).open(format!("/proc/{s}/mem"))).map(drop),
        "proc-environ" => read("environ"),
        "proc-maps" => read("maps"),
        "proc-fd" => descriptors(s),
        "proc-root" => io(std::fs::read_dir(format!("/proc/{s}/root/"))).map(drop),
        "proc-cwd" => link("cwd"),
        "proc-exe" => link("exe"),
        "proc-oom" => write("oom_score_adj", "1000"),
        "proc-coredump-filter" => write("coredump_filter", "0x7f"),
        "vm-read" => vm(s, libc::SYS_process_vm_readv),
        "vm-write" => vm(s, libc::SYS_process_vm_writev),
        "pidfd-getfd" => {
            call!(libc::SYS_pidfd_open, s, 0).and_then(|pidfd| call!(libc::SYS_pidfd_getfd, pidfd, 2, 0)).map(drop)
        }
        "prlimit-fsize" => prlimit(s, libc::RLIMIT_FSIZE.into(), 0),
        "prlimit-nofile" => prlimit(s, libc::RLIMIT_NOFILE.into(), 0),
        "prlimit-cpu" => prlimit(s, libc::RLIMIT_CPU.into(), 1),
        "prlimit-read" => {
            let mut old = [0u64; 2];
            call!(libc::SYS_prlimit64, s, libc::RLIMIT_FSIZE, 0usize, old.as_mut_ptr()).map(drop)
        }
        "nice-process" => nice(s, 0, s),
        "nice-group" => nice(s, 1, group(s)),
        "nice-user" => nice(s, 2, 0),
        "ioprio-process" => ioprio(s, 1, s),
        "ioprio-group" => ioprio(s, 2, group(s)),
        // SAFETY: getuid(2) takes nothing.
        "ioprio-user" => ioprio(s, 3, i32::try_from(unsafe { libc::getuid() }).unwrap()),
        "scheduler" => {
            let priority = 0i32;
            call!(libc::SYS_sched_setscheduler, s, libc::SCHED_IDLE, &raw const priority).map(drop)
        }
        "scheduler-param" => {
            let priority = 0i32;
            call!(libc::SYS_sched_setparam, s, &raw const priority).map(drop)
        }
        "scheduler-attr" => {
            // struct sched_attr: size, policy, flags, nice, priority, runtime, deadline, period.
            let mut attr = [0u8; 48];
            attr[0] = 48;
            attr[4] = 5; // SCHED_IDLE
            call!(libc::SYS_sched_setattr, s, attr.as_ptr(), 0).map(drop)
        }
        "affinity" => {
            let mut mask = [0u64; 16];
            mask[0] = 1;
            call!(libc::SYS_sched_setaffinity, s, 128usize, mask.as_ptr()).map(drop)
        }
        // All CPUs again, for itself: the one that is kept free for the supervisor too.
        "own-affinity" => {
            let mask = [u64::MAX; 16];
            call!(libc::SYS_sched_setaffinity, 0, 128usize, mask.as_ptr()).map(drop)
        }
        "io-uring" => {
            let mut params = [0u8; 256];
            call!(libc::SYS_io_uring_setup, 1, params.as_mut_ptr()).map(drop)
        }
        // prlimit64 by the 32-bit table's number, which a filter for the native one does not see.
        #[cfg(target_arch = "x86_64")]
        "int80" => {
            let answer: i64;
            // SAFETY: prlimit64 (340) with null pointers touches no memory; rbx is saved around it.
            unsafe {
                std::arch::asm!("push rbx", "mov ebx, {s:e}", "int 0x80", "pop rbx", s = in(reg) s,
                    inlateout("rax") 340i64 => answer, in("rcx") 1, in("rdx") 0, in("rsi") 0,
                    out("r8") _, out("r9") _, out("r10") _, out("r11") _);
            }
            // The lower half counts.
            let [a, b, c, d, ..] = answer.to_le_bytes();
            let answer = i32::from_le_bytes([a, b, c, d]);
            if answer < 0 { Err(-answer) } else { Ok(()) }
        }
        _ => return None,
    })
}
