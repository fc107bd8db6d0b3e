//! What does not want to be found or to die: names that mislead a parser, stops, traced children, waits that no signal ends.

use super::Tried;
use super::record::escape;
use std::time::Duration;

/// The names a process may give itself (PR_SET_NAME, 15 bytes).
const NAMES: [&[u8]; 4] = [b"x) R 1 1\0", b"a\nb\nc\0", b"\xff\xfe\x80)\0", b") Z 0 (\0"];

fn sleep() -> ! {
    loop {
        std::thread::sleep(Duration::from_secs(600));
    }
}

fn ignore_term() {
    // SAFETY: SIG_IGN installs no handler.
    unsafe { libc::signal(libc::SIGTERM, libc::SIG_IGN) };
}

/// Forks one after the other a child for each of `count`, which stays; whether we are one.
fn bear(count: usize) -> Option<usize> {
    // SAFETY: one thread.
    (0..count).find(|_| unsafe { libc::fork() } == 0)
}

/// Waits for a child that neither executes nor exits.
pub fn wait_in_vfork() {
    // SAFETY: without CLONE_VM the child has memory of its own; the parent waits until it is gone.
    if unsafe { libc::syscall(libc::SYS_clone, libc::CLONE_VFORK | libc::SIGCHLD, 0, 0, 0, 0) } == 0 {
        loop {
            // SAFETY: takes nothing; of several threads only this one is here.
            unsafe { libc::pause() };
        }
    }
}

/// One page of a file, read only when it is touched.
fn page(path: &str) -> &'static [u8] {
    use std::os::fd::AsRawFd;
    let file = std::fs::File::open(path).unwrap();
    // SAFETY: a mapping of its own, which stays.
    unsafe {
        let at = libc::mmap(std::ptr::null_mut(), 4096, libc::PROT_READ, libc::MAP_PRIVATE, file.as_raw_fd(), 0);
        assert!(at != libc::MAP_FAILED);
        std::slice::from_raw_parts(at.cast(), 4096)
    }
}

pub fn attack(name: &str, args: &[String]) -> Option<Tried> {
    Some(match name {
        // escape: an orphan in a session of its own, deaf to TERM, HUP and all else; its parent is gone at once.
        "escape" => {
            escape();
            sleep()
        }
        // comet: whoever is found has a child and is gone at once.
        "comet" => {
            // SAFETY: one thread; the signals are its own.
            unsafe {
                libc::signal(libc::SIGCHLD, libc::SIG_IGN);
                ignore_term();
                loop {
                    if libc::fork() > 0 {
                        libc::_exit(0);
                    }
                    libc::setsid();
                }
            }
        }
        // headless: a child whose main thread has ended, so that /proc shows a zombie; its other thread goes on, deaf to TERM, with
        // a socket in hand. headless-stay: so does its parent.
        "headless" | "headless-stay" => {
            ignore_term();
            // SAFETY: one thread.
            let child = unsafe { libc::fork() };
            if child == 0 {
                let _socket = std::net::UdpSocket::bind("0.0.0.0:0");
                std::thread::spawn(sleep);
                // SAFETY: exit(2), of this thread alone; its stack stays mapped.
                unsafe { libc::syscall(libc::SYS_exit, 0) };
            }
            while !std::fs::read_to_string(format!("/proc/{child}/stat")).unwrap().contains(") Z ") {
                std::thread::sleep(Duration::from_millis(1));
            }
            if name == "headless" { Ok(()) } else { sleep() }
        }
        // names: the same under each of the names.
        "names" => {
            if let Some(which) = bear(NAMES.len()) {
                escape();
                // SAFETY: reads a NUL-terminated string.
                unsafe { libc::prctl(libc::PR_SET_NAME, NAMES[which].as_ptr()) };
                sleep()
            }
            // Until all have their names; the command's own end is the trigger.
            std::thread::sleep(Duration::from_millis(args.first().map_or(200, |ms| ms.parse().unwrap())));
            Ok(())
        }
        // names-stay: goes on, so that the deadline ends it.
        "names-stay" => {
            if let Some(which) = bear(NAMES.len()) {
                // SAFETY: reads a NUL-terminated string.
                unsafe { libc::prctl(libc::PR_SET_NAME, NAMES[which].as_ptr()) };
            }
            ignore_term();
            sleep()
        }
        // stop: stops its own group, itself included, and again when it is continued.
        "stop" => {
            ignore_term();
            bear(3);
            loop {
                // SAFETY: integers.
                unsafe { libc::kill(0, libc::SIGSTOP) };
            }
        }
        // vfork: waits for a child that neither executes nor exits.
        "vfork" => {
            ignore_term();
            wait_in_vfork();
            sleep()
        }
        // traceme: its parent becomes its tracer, without being asked, and is told of a stop as of an end.
        "traceme" => {
            ignore_term();
            // SAFETY: integers and null pointers.
            unsafe {
                let null = std::ptr::null_mut::<libc::c_void>();
                libc::ptrace(libc::PTRACE_TRACEME, 0, null, null);
                libc::raise(libc::SIGUSR1);
            }
            sleep()
        }
        // ticks FILE [vfork]: one that goes on in a session of its own while the command stops itself; `vfork`: in a thread, while its
        // main thread waits in vfork.
        "ticks" => {
            use std::io::Write;
            let path = args.first()?;
            let file = std::fs::File::options().create(true).append(true).open(path).unwrap();
            // SAFETY: one thread.
            if unsafe { libc::fork() } == 0 {
                // SAFETY: takes nothing.
                unsafe { libc::setsid() };
                let mut own = file.try_clone().unwrap();
                let mut tick = move || -> Tried {
                    loop {
                        let _ = own.write_all(b".");
                        std::thread::sleep(Duration::from_millis(5));
                    }
                };
                if args.len() > 1 {
                    std::thread::spawn(tick);
                    wait_in_vfork();
                    sleep()
                }
                return Some(tick());
            }
            while file.metadata().unwrap().len() < 3 {
                std::thread::sleep(Duration::from_millis(1));
            }
            // SAFETY: integers.
            unsafe { libc::raise(libc::SIGSTOP) };
            Ok(())
        }
        // wakes FILE: stops itself with a timer set that continues it, and goes on behind the back of who stopped with it; deaf to TERM.
        "wakes" => {
            use std::io::Write;
            let mut file = std::fs::File::options().create(true).append(true).open(args.first()?).unwrap();
            // SAFETY: all-zero structures are valid, the pointers too, and SIG_IGN is no handler.
            unsafe {
                libc::signal(libc::SIGTERM, libc::SIG_IGN);
                let mut event: libc::sigevent = std::mem::zeroed();
                event.sigev_notify = libc::SIGEV_SIGNAL;
                event.sigev_signo = libc::SIGCONT;
                let mut timer: libc::timer_t = std::mem::zeroed();
                let mut soon: libc::itimerspec = std::mem::zeroed();
                soon.it_value.tv_nsec = 300_000_000;
                soon.it_interval.tv_nsec = 100_000_000;
                assert_eq!(libc::timer_create(libc::CLOCK_MONOTONIC, &raw mut event, &raw mut timer), 0);
                assert_eq!(libc::timer_settime(timer, 0, &raw const soon, std::ptr::null_mut()), 0);
                libc::raise(libc::SIGSTOP);
            }
            loop {
                let _ = file.write_all(b".");
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        // traced: a child that is stopped under ptrace, and its tracer, deaf to TERM.
        "traced" => {
            ignore_term();
            // SAFETY: integers and null pointers.
            unsafe {
                let null = std::ptr::null_mut::<libc::c_void>();
                if libc::fork() == 0 {
                    libc::ptrace(libc::PTRACE_TRACEME, 0, null, null);
                    libc::raise(libc::SIGSTOP);
                    sleep()
                }
                if libc::fork() == 0 {
                    sleep()
                }
            }
            sleep()
        }
        // links DIR: what leads out of /tmp into it, by name, by a chain, and from below.
        "links" => {
            let dir = args.first()?;
            let link = std::os::unix::fs::symlink::<&str, &str>;
            std::fs::create_dir_all("/tmp/a/b").unwrap();
            link(dir, "/tmp/l").unwrap();
            link("../l", "/tmp/a/ll").unwrap();
            link(dir, "/tmp/a/b/l").unwrap();
            Ok(())
        }
        // mount DIR: with CAP_SYS_ADMIN it can make a directory below /tmp another one.
        "mount" => {
            std::fs::create_dir_all("/tmp/m/here").unwrap();
            let c = |path: &str| std::ffi::CString::new(path).unwrap();
            let (from, to) = (c(args.first()?), c("/tmp/m/here"));
            let null = std::ptr::null();
            // SAFETY: two strings that end in NUL and null pointers.
            super::sys(unsafe { libc::mount(from.as_ptr(), to.as_ptr(), null, libc::MS_BIND, null.cast()) }.into())
                .map(drop)
        }
        // late FILE OUT: one write of a page that is not there yet, under way when everything is stopped.
        "late" => {
            use std::os::fd::AsRawFd;
            ignore_term();
            // SAFETY: SIG_IGN installs no handler.
            unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
            let out = std::fs::File::options().create(true).append(true).open(args.get(1)?).unwrap();
            let page = page(args.first()?);
            // SAFETY: write(2) reads the page, which is mapped.
            unsafe { libc::write(out.as_raw_fd(), page.as_ptr().cast(), page.len()) };
            sleep()
        }
        // locked FILE PORT: the same with a send, which holds the socket's lock meanwhile.
        "locked" => {
            use std::os::fd::AsRawFd;
            ignore_term();
            let stream = std::net::TcpStream::connect(format!("127.0.0.1:{}", args.get(1)?)).unwrap();
            let page = page(args.first()?);
            // SAFETY: send(2) reads the page, which is mapped.
            unsafe { libc::send(stream.as_raw_fd(), page.as_ptr().cast(), page.len(), 0) };
            sleep()
        }
        // corpses: children long dead that nobody waits for, and threads that make their grandparent trace them.
        "corpses" => {
            ignore_term();
            for _ in 0..20 {
                // SAFETY: no other thread yet; the child ends at once.
                unsafe {
                    if libc::fork() == 0 {
                        libc::_exit(0);
                    }
                }
            }
            for _ in 0..20 {
                std::thread::spawn(|| {
                    let null = std::ptr::null_mut::<libc::c_void>();
                    // SAFETY: integers and null pointers.
                    unsafe { libc::ptrace(libc::PTRACE_TRACEME, 0, null, null) };
                    sleep()
                });
            }
            sleep()
        }
        // hidden FILE [alone]: a child that is not dumpable and so not shown where /proc hides; it goes on writing. Alone it is itself.
        "hidden" => {
            use std::io::Write;
            ignore_term();
            let mut file = std::fs::File::options().create(true).append(true).open(args.first()?).unwrap();
            // SAFETY: one thread; integers.
            unsafe {
                if args.len() > 1 || libc::fork() == 0 {
                    libc::setsid();
                    libc::prctl(libc::PR_SET_DUMPABLE, 0);
                    libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
                    loop {
                        let _ = file.write_all(b".");
                        std::thread::sleep(Duration::from_millis(5));
                    }
                }
            }
            sleep()
        }
        // hoard DESCRIPTORS THREADS: one table, seen through many threads.
        "hoard" => {
            ignore_term();
            let count = |n: usize| args.get(n)?.parse::<u64>().ok();
            let most = libc::rlimit { rlim_cur: 16384, rlim_max: 16384 };
            // SAFETY: setrlimit(2) reads one struct rlimit; dup(2) takes an integer.
            unsafe {
                libc::setrlimit(libc::RLIMIT_NOFILE, &raw const most);
                for _ in 0..count(0)? {
                    libc::dup(0);
                }
            }
            for _ in 0..count(1)? {
                std::thread::Builder::new().stack_size(65536).spawn(sleep).unwrap();
            }
            sleep()
        }
        // hang FILE: reads what never answers, with a socket in hand that leads outside.
        "hang" => {
            let path = args.first()?;
            let _socket = std::net::UdpSocket::bind("0.0.0.0:0");
            let _ = std::fs::read(path);
            sleep()
        }
        _ => return None,
    })
}
