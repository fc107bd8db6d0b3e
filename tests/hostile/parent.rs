//! What the controls run in gracekeeper's place: a parent that takes no precaution, and a PID 1 for those that are not.

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

static SIGNALLED: AtomicU32 = AtomicU32::new(0);

extern "C" fn signalled(_: libc::c_int) {
    SIGNALLED.fetch_add(1, Ordering::SeqCst);
}

fn wait(pid: i32) -> i32 {
    let mut status = 0;
    loop {
        // SAFETY: waitpid writes one int.
        if unsafe { libc::waitpid(pid, &raw mut status, 0) } == pid {
            return if libc::WIFSIGNALED(status) { 128 + libc::WTERMSIG(status) } else { libc::WEXITSTATUS(status) };
        }
    }
}

/// Only a /tmp that the test mounted for this one run has it: nobody else's is ever emptied.
const DISPOSABLE: &str = "/tmp/.mounted-for-this-attack-alone";

/// Empties a directory as one would at first: what looks like a directory is one. It does follow links, so it runs on a file
/// system of its own, and the links lead to the test's own victim.
fn clean(dir: &std::path::Path) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        if std::fs::metadata(entry.path()).is_ok_and(|meta| meta.is_dir()) {
            clean(&entry.path());
            let _ = std::fs::remove_dir(entry.path());
        }
        let _ = std::fs::remove_file(entry.path());
    }
}

/// `parent LOG MESSAGE ATTACK…`: keeps a log, runs the attack as its child, writes the last line and the message, empties
/// /tmp where that is the test's own, ends with the child's status. It notes the signals that ask it to stop, and ignores them.
pub fn plain(args: &[String]) -> ! {
    let mut log = std::fs::OpenOptions::new().create(true).append(true).open(&args[0]).unwrap();
    writeln!(log, "began").unwrap();
    // Larger than the attackers, as a supervisor in an interpreted language is: what the OOM killer looks at.
    let mut weight = vec![1u8; 8 << 20];
    weight.iter_mut().step_by(4096).for_each(|b| *b = 2);
    for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGQUIT] {
        // SAFETY: the handler only adds to an atomic.
        unsafe { libc::signal(signal, signalled as *const () as libc::sighandler_t) };
    }
    for signal in [libc::SIGSEGV, libc::SIGBUS] {
        // The standard library's handlers share one small stack: both at once can overflow it, and that ends even PID 1.
        // SAFETY: SIG_DFL is no handler.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
    // SAFETY: one thread; the child executes at once.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let error = Command::new("/proc/self/exe").args(&args[2..]).exec();
        panic!("{error}");
    }
    let code = wait(child);
    // More than what is left of a page that is there already.
    let kept = writeln!(log, "ended{:9000}", " ").and_then(|()| log.sync_all()).is_ok();
    let _ = std::fs::write(&args[1], "the parent's message");
    if std::path::Path::new(DISPOSABLE).exists() {
        let _ = std::fs::remove_file(DISPOSABLE);
        clean("/tmp".as_ref());
    }
    println!("signalled {}", SIGNALLED.load(Ordering::SeqCst));
    println!("log {}", if kept { "kept" } else { "lost" });
    std::thread::sleep(Duration::from_millis(100));
    // What a parent that starts a program for everything it does can still do.
    // SAFETY: one thread; the child ends at once.
    let helper = unsafe { libc::fork() };
    if helper == 0 {
        // SAFETY: ends this process.
        unsafe { libc::_exit(0) };
    }
    println!("fork {}", if helper > 0 { "done" } else { "refused" });
    assert_eq!(weight[4096], 2);
    std::process::exit(code);
}

/// `init COMMAND…`: PID 1 of a namespace in which COMMAND is somebody else, in a group of its own. When COMMAND has ended it
/// gives what was left behind a second to end, and says how many did not.
pub fn init(args: &[String]) -> ! {
    // SAFETY: one thread; the child executes at once.
    let child = unsafe { libc::fork() };
    if child == 0 {
        // SAFETY: setpgid takes two integers.
        assert_eq!(unsafe { libc::setpgid(0, 0) }, 0);
        let error = Command::new(&args[0]).args(&args[1..]).exec();
        panic!("{error}");
    }
    let mut status = 0;
    let mut code = None;
    let mut deadline = None;
    loop {
        // SAFETY: waitpid writes one int.
        let pid = unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG) };
        if pid == child {
            let ended =
                if libc::WIFSIGNALED(status) { 128 + libc::WTERMSIG(status) } else { libc::WEXITSTATUS(status) };
            code = Some(ended);
            deadline = Some(Instant::now() + Duration::from_secs(1));
        } else if pid <= 0 {
            if pid < 0 || deadline.is_some_and(|at| Instant::now() > at) {
                break;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    let names = std::fs::read_dir("/proc").unwrap().flatten();
    let left = names.filter(|e| e.file_name().to_str().is_some_and(|n| n.parse::<u32>().is_ok_and(|n| n > 1)));
    println!("left {}", left.count());
    std::process::exit(code.unwrap());
}
