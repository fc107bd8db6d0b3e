//! What a workload does to the revoke rung: timers that wake it in the midst of it, capabilities that no limit binds, connections that stay.

use super::grace::fork;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

const PAUSE: Duration = Duration::from_millis(5);

/// One-shot timers that send SIGCONT to this process: `count` of them, `first` from now and then one each `every`.
pub fn timers(first: Duration, every: Duration, count: u32) {
    for n in 0..count {
        let after = first + every * n;
        // SAFETY: zeroed is a valid value of both; timer_create(2) and timer_settime(2) read and write the locals.
        unsafe {
            let mut event: libc::sigevent = std::mem::zeroed();
            event.sigev_notify = libc::SIGEV_SIGNAL;
            event.sigev_signo = libc::SIGCONT;
            let mut timer: libc::timer_t = std::mem::zeroed();
            let made = libc::timer_create(libc::CLOCK_MONOTONIC, &raw mut event, &raw mut timer);
            assert_eq!(made, 0, "timer_create: {}", std::io::Error::last_os_error());
            let mut when: libc::itimerspec = std::mem::zeroed();
            when.it_value.tv_sec = after.as_secs().cast_signed();
            when.it_value.tv_nsec = after.subsec_nanos().into();
            libc::timer_settime(timer, 0, &raw const when, std::ptr::null_mut());
        }
    }
}

/// The limit in force for this process.
fn limit(resource: libc::__rlimit_resource_t) -> u64 {
    let mut now = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: getrlimit(2) writes one struct rlimit.
    unsafe { libc::getrlimit(resource, &raw mut now) };
    now.rlim_cur
}

static FILE: OnceLock<String> = OnceLock::new();
static BORN: AtomicU32 = AtomicU32::new(0);

/// Woken: a child that writes with a descriptor of its own for as long as it is let. Not async-signal-safe in general; here one thread waits.
extern "C" fn bear(_: libc::c_int) {
    if BORN.fetch_add(1, Ordering::SeqCst) >= 60 || !fork() {
        return;
    }
    // SAFETY: SIG_IGN installs no handler; _exit(2) runs nothing.
    unsafe { libc::signal(libc::SIGCONT, libc::SIG_IGN) };
    let open = std::fs::File::options().append(true).open(FILE.get().unwrap());
    if let Ok(mut open) = open {
        while open.write_all(b"b").is_ok() {
            std::thread::sleep(PAUSE);
        }
    }
    // SAFETY: as above.
    unsafe { libc::_exit(0) };
}

/// born-late FILE FIRST: from FIRST ms after its start on a timer wakes it each 10 ms, and it forks.
pub fn born_late(file: &str, first: u64) -> ! {
    std::fs::write(file, "").unwrap();
    FILE.set(file.to_owned()).unwrap();
    // SAFETY: the handler's own words.
    unsafe {
        libc::signal(libc::SIGCONT, bear as *const () as libc::sighandler_t);
        libc::signal(libc::SIGCHLD, libc::SIG_IGN);
    }
    timers(Duration::from_millis(first), Duration::from_millis(10), 100);
    loop {
        std::thread::sleep(Duration::from_secs(600));
    }
}

/// fork-past: whether RLIMIT_NPROC 0 keeps it from a child.
pub fn fork_past() -> ! {
    while limit(libc::RLIMIT_NPROC) > 0 {
        std::thread::sleep(PAUSE);
    }
    // SAFETY: one thread; the child ends at once.
    let born = unsafe { libc::fork() };
    if born == 0 {
        std::process::exit(0);
    }
    println!("{}", if born > 0 { "born past the limit" } else { "nobody was born" });
    loop {
        std::thread::sleep(Duration::from_secs(600));
    }
}

/// loopback: whether a connection within loopback goes on after the rung.
pub fn loopback() -> ! {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut one = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (mut two, _) = listener.accept().unwrap();
    while limit(libc::RLIMIT_NOFILE) > 0 {
        std::thread::sleep(PAUSE);
    }
    let mut byte = [0];
    let goes_on = one.write_all(b"l").is_ok() && two.read(&mut byte).is_ok_and(|n| n == 1);
    println!("{}", if goes_on { "loopback goes on" } else { "loopback is cut" });
    loop {
        std::thread::sleep(Duration::from_secs(600));
    }
}
