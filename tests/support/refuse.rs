//! A kernel that refuses one call of one thread of one process: strace(1) can follow all of them or one, and counts a call for each.
//! Here PID 1 is traced with its threads and without what it forks (ptrace(2): PTRACE_O_TRACECLONE alone).

use nix::errno::Errno;
use nix::libc;
use nix::sys::ptrace::{self, Options};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use std::collections::HashMap;
use std::sync::mpsc::Sender;

/// One call that was made.
#[derive(Debug, Clone, Copy)]
pub struct Call {
    /// 0 is the first thread; the others in the order in which they were born.
    pub thread: usize,
    pub number: i64,
    /// How manieth of that thread and number.
    pub nth: u32,
    pub arguments: [u64; 3],
}

impl Call {
    pub const fn is_same(&self, other: &Self) -> bool {
        self.thread == other.thread && self.number == other.number && self.nth == other.nth
    }

    pub fn name(&self) -> String {
        name(self.number).map_or_else(|| format!("call {}", self.number), str::to_owned)
    }
}

impl std::fmt::Display for Call {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [first, second, third] = self.arguments;
        write!(f, "{}({first:#x}, {second:#x}, {third:#x}) number {} of thread {}", self.name(), self.nth, self.thread)
    }
}

macro_rules! names {
    ($($call:ident)*) => {
        fn name(number: i64) -> Option<&'static str> {
            $(if number == libc::$call { return stringify!($call).strip_prefix("SYS_"); })*
            None
        }
    };
}

names! {
    SYS_read SYS_write SYS_close SYS_fstat SYS_statx SYS_newfstatat SYS_lseek SYS_mmap SYS_mprotect SYS_munmap SYS_madvise SYS_brk
    SYS_rt_sigaction SYS_rt_sigprocmask SYS_rt_sigreturn SYS_sigaltstack SYS_pwrite64 SYS_pread64 SYS_writev SYS_ppoll SYS_poll
    SYS_sched_yield SYS_futex SYS_fsync SYS_fdatasync SYS_ftruncate SYS_fallocate SYS_openat SYS_unlinkat SYS_getdents64 SYS_fchmod
    SYS_fchmodat SYS_fchown SYS_clone SYS_clone3 SYS_exit SYS_exit_group SYS_gettid SYS_getpid SYS_set_robust_list SYS_rseq
    SYS_prctl SYS_prlimit64 SYS_sched_getaffinity SYS_sched_setaffinity SYS_setpriority SYS_tgkill SYS_kill SYS_wait4 SYS_fcntl
    SYS_fstatfs SYS_statfs SYS_readlink SYS_readlinkat SYS_chmod SYS_dup SYS_eventfd2 SYS_clock_gettime SYS_clock_nanosleep
    SYS_restart_syscall SYS_timerfd_settime SYS_timerfd_create SYS_waitid SYS_process_vm_readv SYS_mlockall SYS_getrandom
}

/// What one thread is at.
struct Thread {
    number: usize,
    is_inside: bool,
    refused: bool,
    counts: HashMap<i64, u32>,
}

impl Thread {
    fn new(number: usize) -> Self {
        Self { number, is_inside: false, refused: false, counts: HashMap::new() }
    }

    fn calls(&mut self, number: i64, arguments: [u64; 3]) -> Call {
        let nth = self.counts.entry(number).or_insert(0);
        *nth += 1;
        Call { thread: self.number, number, nth: *nth, arguments }
    }
}

/// Traces `pid` from its next exec to its end, and refuses that one call; says on `ready` when it may go on. All calls in their order,
/// and whether that one was made. Nobody else is waited for: only what this thread of the test traces (__WNOTHREAD).
pub fn watch(pid: Pid, refusal: Option<(Call, Errno)>, ready: &Sender<()>) -> (Vec<Call>, bool) {
    let options = Options::PTRACE_O_TRACEEXEC | Options::PTRACE_O_TRACECLONE | Options::PTRACE_O_EXITKILL;
    ptrace::seize(pid, options | Options::PTRACE_O_TRACESYSGOOD).unwrap();
    ready.send(()).unwrap();
    let (mut threads, mut calls, mut hit) = (HashMap::new(), Vec::new(), false);
    let flags = WaitPidFlag::__WALL | WaitPidFlag::__WNOTHREAD;
    loop {
        let status = match waitpid(Pid::from_raw(-1), Some(flags)) {
            Ok(status) => status,
            Err(Errno::EINTR) => continue,
            Err(_) => return (calls, hit), // ECHILD: all are gone.
        };
        let (who, deliver) = match status {
            WaitStatus::PtraceEvent(who, _, libc::PTRACE_EVENT_EXEC) => {
                // Within the call, whose end is the next stop.
                threads.insert(who, Thread { is_inside: true, ..Thread::new(0) });
                (who, None)
            }
            WaitStatus::PtraceSyscall(who) => {
                let thread: &mut Thread = threads.get_mut(&who).unwrap();
                thread.is_inside = !thread.is_inside;
                if thread.is_inside {
                    // A kill may be quicker than we are.
                    let Ok(mut registers) = ptrace::getregs(who) else { continue };
                    let arguments = [registers.rdi, registers.rsi, registers.rdx];
                    let call = thread.calls(registers.orig_rax.cast_signed(), arguments);
                    calls.push(call);
                    if refusal.is_some_and(|(refused, _)| refused.is_same(&call)) {
                        (hit, thread.refused) = (true, true);
                        registers.orig_rax = u64::MAX; // No such call.
                        let _ = ptrace::setregs(who, registers);
                    }
                } else if std::mem::take(&mut thread.refused) {
                    let Ok(mut registers) = ptrace::getregs(who) else { continue };
                    registers.rax = (-i64::from(refusal.map_or(0, |(_, errno)| errno as i32))).cast_unsigned();
                    let _ = ptrace::setregs(who, registers);
                }
                (who, None)
            }
            WaitStatus::PtraceEvent(who, ..) => {
                let number = threads.len();
                // Not the shell that is to become it; a new thread stops before it runs.
                if number > 0 {
                    threads.entry(who).or_insert_with(|| Thread::new(number));
                }
                (who, None)
            }
            WaitStatus::Stopped(who, signal) => (who, Some(signal)),
            _ => continue, // One of them has ended.
        };
        // ESRCH: it was killed meanwhile.
        let _ = if threads.is_empty() { ptrace::cont(who, deliver) } else { ptrace::syscall(who, deliver) };
    }
}
