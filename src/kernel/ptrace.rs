//! Making a stopped process make system calls of its own (ptrace(2)): how its sockets are closed where no duplicate can be had.
//!
//! Invariant: whatever happens, the thread is put back as it was (registers, code, signal mask) and is left stopped by a
//! pending SIGSTOP before it is let go, so that it runs no instruction of its own between here and the caller's SIGCONT.
//! Every other thread that shares its memory must be stopped meanwhile: the call instruction is written into its code.

use super::clock;
use super::proc::Proc;
use crate::machine::types::Instant;
use nix::errno::Errno;
use std::time::Duration;

/// How long one step of a traced thread may take; it only has to be scheduled.
const STEP: Duration = Duration::from_millis(100);
/// Stops that are none of ours (an event, a SIGSTOP that was pending) tolerated for one call.
const STRAY: u32 = 16;

#[cfg(target_arch = "x86_64")]
mod arch {
    pub use libc::user_regs_struct as Registers;
    /// `syscall; int3`
    pub const CODE: u64 = 0x00cc_050f;
    const ERESTARTSYS: i64 = 512;
    const ERESTARTNOINTR: i64 = 513;
    const ERESTARTNOHAND: i64 = 514;
    const ERESTART_RESTARTBLOCK: i64 = 516;

    pub const fn pc(r: &Registers) -> u64 {
        r.rip
    }

    /// What the kernel would do on the way back from an interrupted call, had we not come between: the call is made again
    /// (arch/x86/kernel/signal.c).
    pub const fn resumed(mut r: Registers) -> Registers {
        if r.orig_rax.cast_signed() >= 0 {
            match -r.rax.cast_signed() {
                ERESTARTSYS | ERESTARTNOINTR | ERESTARTNOHAND => {
                    r.rax = r.orig_rax;
                    r.rip = r.rip.wrapping_sub(2);
                }
                ERESTART_RESTARTBLOCK => {
                    r.rax = libc::SYS_restart_syscall.cast_unsigned();
                    r.rip = r.rip.wrapping_sub(2);
                }
                _ => {}
            }
        }
        // It is in no call any more: the kernel must not do the same once again.
        r.orig_rax = u64::MAX;
        r
    }

    pub const fn call(mut r: Registers, at: u64, number: i64, args: [u64; 5]) -> Registers {
        let [a, b, c, d, e] = args;
        r.rip = at;
        r.rax = number.cast_unsigned();
        r.orig_rax = u64::MAX;
        r.rdi = a;
        r.rsi = b;
        r.rdx = c;
        r.r10 = d;
        r.r8 = e;
        r
    }

    pub const fn result(r: &Registers) -> i64 {
        r.rax.cast_signed()
    }
}

#[cfg(target_arch = "aarch64")]
mod arch {
    pub use libc::user_regs_struct as Registers;
    /// `svc #0; brk #0`
    pub const CODE: u64 = 0xd420_0000_d400_0001;

    pub const fn pc(r: &Registers) -> u64 {
        r.pc
    }

    /// The kernel has already set the registers for the call to be made again (arch/arm64/kernel/signal.c, do_signal).
    pub const fn resumed(r: Registers) -> Registers {
        r
    }

    pub const fn call(mut r: Registers, at: u64, number: i64, args: [u64; 5]) -> Registers {
        let [a, b, c, d, e] = args;
        let [x0, x1, x2, x3, x4, _, _, _, x8, ..] = &mut r.regs;
        *x0 = a;
        *x1 = b;
        *x2 = c;
        *x3 = d;
        *x4 = e;
        *x8 = number.cast_unsigned();
        r.pc = at;
        r
    }

    pub const fn result(r: &Registers) -> i64 {
        let [x0, ..] = r.regs;
        x0.cast_signed()
    }
}

/// One traced thread, ready to make calls.
#[derive(Debug)]
pub struct Traced {
    pid: i32,
    tid: i32,
    saved: arch::Registers,
    mask: u64,
    at: u64,
    code: [u64; 3],
    until: Instant,
    /// It was held before, and is left so.
    held: bool,
}

/// The bytes of a page on every configuration we may meet; the smallest, since only an aligned start is needed.
const PAGE: u64 = 4096;

impl Traced {
    /// Takes hold of thread `tid` of the stopped process `pid`, unless it is `held`; no call of it is waited for after `until`.
    ///
    /// # Errors
    /// `EPERM` where it may not be traced (it made itself undumpable, somebody else traces it, Yama, a seccomp profile),
    /// `EFAULT` where its code is not in memory, `ESRCH` where it is gone, `ETIMEDOUT` where it does not come to a stop, `EIO` where its code cannot be written.
    pub fn seize(proc_: &Proc, pid: i32, tid: i32, until: Instant, held: bool) -> Result<Self, Errno> {
        if held {
            return Self::make_ready(proc_, pid, tid, until, held);
        }
        hold(tid)?;
        // It has to come to a stop, or it could not be let go of.
        wait(tid, clock::now().plus(STEP))?;
        Self::make_ready(proc_, pid, tid, until, held).inspect_err(|_| {
            // One that is gone needs nothing.
            let _ = let_go(pid, tid);
        })
    }

    fn make_ready(proc_: &Proc, pid: i32, tid: i32, until: Instant, held: bool) -> Result<Self, Errno> {
        let saved = registers(tid)?;
        let mut mask = 0u64;
        request(libc::PTRACE_GETSIGMASK, tid, size_of::<u64>(), (&raw mut mask).addr())?;
        // The start of the page it is running in: mapped and executable, and no word of ours crosses into another page.
        let at = arch::pc(&saved) & !(PAGE - 1);
        // A page that is not in memory would have to be read from where it lies, which may be a file system of the workload's own.
        match proc_.is_in_memory(pid, tid, at) {
            // A kernel without such files (CONFIG_PROC_PAGE_MONITOR).
            Ok(true) | Err(Errno::ENOENT) => {}
            Ok(false) => return Err(Errno::EFAULT),
            Err(errno) => return Err(errno),
        }
        let mut code = [0u64; 3];
        for (n, word) in (0u64..).zip(&mut code) {
            *word = peek(tid, at + n * 8)?;
        }
        let traced = Self { pid, tid, saved, mask, at, code, until, held };
        let every = u64::MAX;
        request(libc::PTRACE_SETSIGMASK, tid, size_of::<u64>(), (&raw const every).addr())?;
        // The instruction; behind it an address of sixteen bytes that begins with two zeros, AF_UNSPEC, and in it the name of a device.
        for (n, word) in (0u64..).zip([arch::CODE, 0, u64::from_ne_bytes(*b"lo\0\0\0\0\0\0")]) {
            if let Err(errno) = poke(tid, at + n * 8, word) {
                traced.restore();
                return Err(errno);
            }
        }
        Ok(traced)
    }

    /// Disconnects descriptor `fd` and closes it.
    ///
    /// # Errors
    /// What the thread's `close(2)` answered, or why it could not be made.
    pub fn close_socket(&mut self, fd: i32) -> Result<(), Errno> {
        let fd = u64::from(fd.cast_unsigned());
        // A close alone would go on sending what is queued; of a datagram socket the answer does not matter.
        let _ = self.call(libc::SYS_connect, [fd, self.at + 8, 16, 0, 0])?;
        match self.call(libc::SYS_close, [fd, 0, 0, 0, 0])? {
            0.. => Ok(()),
            refused => Err(Errno::from_raw(i32::try_from(-refused).unwrap_or(0))),
        }
    }

    /// Ties descriptor `fd` to the loopback interface (SO_BINDTODEVICE, socket(7)); whether it says that it did.
    ///
    /// # Errors
    /// Why the call could not be made.
    pub fn tie_socket(&mut self, fd: i32) -> Result<bool, Errno> {
        let [level, option] = [libc::SOL_SOCKET, libc::SO_BINDTODEVICE].map(|n| u64::from(n.cast_unsigned()));
        let fd = u64::from(fd.cast_unsigned());
        self.call(libc::SYS_setsockopt, [fd, level, option, self.at + 16, 3]).map(|answer| answer == 0)
    }

    /// One system call made by the thread; what it returned.
    fn call(&mut self, number: i64, args: [u64; 5]) -> Result<i64, Errno> {
        set_registers(self.tid, &arch::call(self.saved, self.at, number, args))?;
        let until = clock::now().plus(STEP).min(self.until);
        // In and out again: two stops that TRACESYSGOOD marks.
        for _ in 0..2 {
            let mut stray = 0;
            loop {
                request(libc::PTRACE_SYSCALL, self.tid, 0, 0)?;
                let status = wait(self.tid, until)?;
                match libc::WSTOPSIG(status) {
                    stop if stop == libc::SIGTRAP | 0x80 => break,
                    libc::SIGSEGV | libc::SIGBUS | libc::SIGILL | libc::SIGSYS => return Err(Errno::EFAULT),
                    _ if stray >= STRAY => return Err(Errno::EAGAIN),
                    // An event, or a SIGSTOP that was pending: it is not delivered, the stop is renewed at the end.
                    _ => stray += 1,
                }
            }
        }
        Ok(arch::result(&registers(self.tid)?))
    }

    fn restore(&self) {
        for (n, word) in (0u64..).zip(self.code) {
            // A thread that died meanwhile needs nothing.
            let _ = poke(self.tid, self.at + n * 8, word);
        }
        let _ = set_registers(self.tid, &arch::resumed(self.saved));
        let _ = request(libc::PTRACE_SETSIGMASK, self.tid, size_of::<u64>(), (&raw const self.mask).addr());
    }
}

impl Drop for Traced {
    fn drop(&mut self) {
        self.restore();
        if !self.held {
            // One that is gone needs nothing.
            let _ = let_go(self.pid, self.tid);
        }
    }
}

/// Holds a thread: it comes to a stop that no SIGCONT ends. Not one whose process may be in execve(2), for which this waits.
///
/// # Errors
/// `EPERM` where it may not be traced.
pub fn hold(tid: i32) -> Result<(), Errno> {
    request(libc::PTRACE_SEIZE, tid, 0, libc::PTRACE_O_TRACESYSGOOD as usize)?;
    request(libc::PTRACE_INTERRUPT, tid, 0, 0)
}

/// Lets the thread go with a SIGSTOP pending, which it takes before its next instruction.
///
/// # Errors
/// `ESRCH` where it is gone, or has not come to its stop.
pub fn let_go(pid: i32, tid: i32) -> Result<(), Errno> {
    let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGSTOP);
    request(libc::PTRACE_DETACH, tid, 0, 0)
}

fn request(what: libc::c_uint, tid: i32, address: usize, data: usize) -> Result<(), Errno> {
    // SAFETY: every request made here takes integers, or addresses of live locals of the size that ptrace(2) gives.
    Errno::result(unsafe { libc::ptrace(what, tid, address, data) }).map(drop)
}

fn iovec(registers: &mut arch::Registers) -> libc::iovec {
    libc::iovec { iov_base: std::ptr::from_mut(registers).cast(), iov_len: size_of::<arch::Registers>() }
}

const NT_PRSTATUS: usize = 1;

fn registers(tid: i32) -> Result<arch::Registers, Errno> {
    // SAFETY: plain integers, for which all-zero bytes are valid.
    let mut registers: arch::Registers = unsafe { std::mem::zeroed() };
    let mut slot = iovec(&mut registers);
    request(libc::PTRACE_GETREGSET, tid, NT_PRSTATUS, (&raw mut slot).addr())?;
    // A shorter set is that of another architecture's mode (x86's 32 bits).
    if slot.iov_len == size_of::<arch::Registers>() { Ok(registers) } else { Err(Errno::ENOEXEC) }
}

fn set_registers(tid: i32, registers: &arch::Registers) -> Result<(), Errno> {
    let mut registers = *registers;
    let mut slot = iovec(&mut registers);
    request(libc::PTRACE_SETREGSET, tid, NT_PRSTATUS, (&raw mut slot).addr())
}

fn peek(tid: i32, address: u64) -> Result<u64, Errno> {
    let address = usize::try_from(address).map_err(|_| Errno::EFAULT)?;
    Errno::clear();
    // SAFETY: PTRACE_PEEKDATA reads a word of the other process; glibc stores it into its own variable and returns it.
    let word = unsafe { libc::ptrace(libc::PTRACE_PEEKDATA, tid, address, 0usize) };
    // Every value is a valid word: only errno tells (ptrace(2)).
    match Errno::last() {
        Errno::UnknownErrno => Ok(word.cast_unsigned()),
        errno if word == -1 => Err(errno),
        _ => Ok(word.cast_unsigned()),
    }
}

fn poke(tid: i32, address: u64, word: u64) -> Result<(), Errno> {
    let address = usize::try_from(address).map_err(|_| Errno::EFAULT)?;
    let word = usize::try_from(word).map_err(|_| Errno::EFAULT)?;
    request(libc::PTRACE_POKEDATA, tid, address, word)
}

/// Waits for the thread's next stop. Its end is left for the loop to reap: it may be the command itself.
fn wait(tid: i32, until: Instant) -> Result<libc::c_int, Errno> {
    let mut pause = Duration::from_micros(20);
    loop {
        // SAFETY: siginfo_t is plain data, for which all-zero bytes are valid.
        let mut seen: libc::siginfo_t = unsafe { std::mem::zeroed() };
        let flags = libc::WEXITED | libc::WSTOPPED | libc::WNOHANG | libc::WNOWAIT | libc::__WALL;
        // SAFETY: waitid(2) writes one siginfo_t. WNOWAIT leaves the state to be waited for again.
        Errno::result(unsafe { libc::waitid(libc::P_PID, tid.cast_unsigned(), &raw mut seen, flags) })?;
        // SAFETY: waitid(2) filled the SIGCHLD fields, or left zeros.
        if unsafe { seen.si_pid() } == tid {
            if matches!(seen.si_code, libc::CLD_EXITED | libc::CLD_KILLED | libc::CLD_DUMPED) {
                return Err(Errno::ESRCH);
            }
            let mut status = 0;
            // SAFETY: waitpid(2) writes one int.
            let pid = unsafe { libc::waitpid(tid, &raw mut status, libc::__WALL | libc::WNOHANG) };
            if pid == tid && libc::WIFSTOPPED(status) {
                return Ok(status);
            }
        }
        if clock::now() >= until {
            return Err(Errno::ETIMEDOUT);
        }
        clock::pause(pause);
        pause = (pause * 2).min(Duration::from_millis(1));
    }
}
