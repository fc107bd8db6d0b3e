//! A forked child that tries something, with or without the confinement of a run, and says with which errno it ended.
//!
//! Invariant: nothing that is tried does harm where it succeeds: values are set to what they are, files are opened or made
//! and removed again, and the signal is one that the caller has blocked.

use super::spawn::{Child, Handshake, Prepare, REPORT};
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, kill, sigprocmask};
use nix::sys::stat::Mode;
use nix::unistd::{ForkResult, Pid};
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

/// How long a child may take, in milliseconds: under a tight CPU quota it has to wait for its turn.
const PATIENCE: u16 = 10_000;

/// What is tried, by the child.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Attack {
    /// Does nothing: for the report of the steps alone.
    Nothing,
    /// `prlimit` on the supervisor.
    Limits,
    /// `setpriority` on the supervisor.
    Priority,
    /// `sched_setaffinity` of the supervisor.
    Affinity,
    /// SIGTERM to the supervisor.
    Stop,
    /// PTRACE_SEIZE of the supervisor.
    Trace,
    /// Opens the supervisor's memory.
    Memory,
    /// A pidfd of the supervisor, and a descriptor through it.
    Descriptor,
    /// Uses a descriptor that the supervisor had open.
    Inherited(RawFd),
    /// A ring.
    IoUring,
    /// An AF_INET socket.
    Socket,
    /// Opens this file for writing.
    WriteTo(PathBuf),
    /// Makes a file in this directory.
    CreateIn(PathBuf),
    /// Makes a file in one of the directories that no program needs to write to.
    CreateElsewhere,
    /// Types into a terminal of its own that it could have in common with somebody.
    Terminal,
    /// A call by another architecture's table.
    #[cfg(target_arch = "x86_64")]
    ForeignCall,
    /// Opens a descriptor, after RLIMIT_NOFILE became 0.
    OpenAfterRevoke,
    /// Writes a byte to a file, after RLIMIT_FSIZE became 0.
    WriteAfterRevoke,
    /// Forks, after RLIMIT_NPROC became 0.
    ForkAfterRevoke,
}

/// Where a confined workload has no business; the first that the UID may write to is enough.
const ELSEWHERE: [&str; 8] = ["/", "/etc", "/home", "/opt", "/root", "/run", "/usr/local", "/var/lib"];

impl Attack {
    /// Tries it from a child of `supervisor`.
    ///
    /// # Errors
    /// The errno with which it was refused.
    fn attempt(&self, supervisor: i32) -> Result<(), Errno> {
        let pid = supervisor;
        match self {
            Self::Nothing => Ok(()),
            Self::Limits => {
                let mut now = libc::rlimit64 { rlim_cur: 0, rlim_max: 0 };
                // SAFETY: prlimit(2) writes one rlimit64 through the last pointer.
                Errno::result(unsafe { libc::prlimit64(pid, libc::RLIMIT_FSIZE, std::ptr::null(), &raw mut now) })?;
                // SAFETY: and reads one through the third; the values are those in force.
                Errno::result(unsafe { libc::prlimit64(pid, libc::RLIMIT_FSIZE, &raw const now, std::ptr::null_mut()) })
                    .map(drop)
            }
            Self::Priority => {
                let who = u32::try_from(pid).map_err(|_| Errno::EINVAL)?;
                Errno::clear();
                // SAFETY: getpriority(2) and setpriority(2) take integers; the value set is the one in force.
                let now = unsafe { libc::getpriority(libc::PRIO_PROCESS, who) };
                // SAFETY: as above.
                Errno::result(unsafe { libc::setpriority(libc::PRIO_PROCESS, who, now) }).map(drop)
            }
            Self::Affinity => {
                let pid = Pid::from_raw(pid);
                // SAFETY: all zeros is the empty set, and both calls are given its size.
                let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
                // SAFETY: writes at most one cpu_set_t.
                Errno::result(unsafe { libc::sched_getaffinity(pid.as_raw(), size_of_val(&set), &raw mut set) })?;
                // SAFETY: reads one cpu_set_t; the set is the one in force.
                Errno::result(unsafe { libc::sched_setaffinity(pid.as_raw(), size_of_val(&set), &raw const set) })
                    .map(drop)
            }
            Self::Stop => kill(Pid::from_raw(pid), Signal::SIGTERM),
            Self::Trace => seize(pid),
            Self::Memory => {
                let path = format!("/proc/{pid}/mem");
                open(path.as_str(), OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty()).map(drop)
            }
            Self::Descriptor => take_descriptor(pid, 0),
            Self::Inherited(fd) => {
                // SAFETY: fcntl(2) with F_GETFD takes integers and answers EBADF for what is not open.
                Errno::result(unsafe { libc::fcntl(*fd, libc::F_GETFD) }).map(drop)
            }
            Self::IoUring => {
                let mut params = [0u8; 256];
                // SAFETY: io_uring_setup(2) reads and writes one io_uring_params (120 bytes).
                Errno::result(unsafe { libc::syscall(libc::SYS_io_uring_setup, 1, params.as_mut_ptr()) }).map(drop)
            }
            Self::Socket => {
                // SAFETY: socket(2) takes integers.
                Errno::result(unsafe { libc::socket(libc::AF_INET, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) })
                    .map(drop)
            }
            Self::WriteTo(path) => {
                let flags = OFlag::O_WRONLY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC | OFlag::O_NOCTTY;
                open(path, flags, Mode::empty()).map(drop)
            }
            Self::CreateIn(dir) => create_in(dir),
            Self::CreateElsewhere => {
                let mut last = Err(Errno::EACCES);
                for dir in ELSEWHERE {
                    // Without a name: it is gone with its descriptor.
                    let flags = OFlag::O_TMPFILE | OFlag::O_WRONLY | OFlag::O_CLOEXEC;
                    match open(dir, flags, Mode::S_IRUSR).map(drop) {
                        Ok(()) => return Ok(()),
                        Err(Errno::ENOENT | Errno::EROFS | Errno::EOPNOTSUPP | Errno::EISDIR) => {}
                        Err(errno) => last = Err(errno),
                    }
                }
                last
            }
            Self::Terminal => type_into_terminal(),
            #[cfg(target_arch = "x86_64")]
            Self::ForeignCall => foreign_call(),
            Self::WriteAfterRevoke => {
                // EFBIG instead of the end.
                // SAFETY: SIG_IGN installs no handler.
                unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
                let file = nix::sys::memfd::memfd_create(c"doctor", nix::sys::memfd::MFdFlags::MFD_CLOEXEC)?;
                nix::unistd::write(&file, b"x").map(drop)
            }
            // SAFETY: this child has one thread; what it forks ends at once.
            Self::ForkAfterRevoke => match unsafe { nix::unistd::fork() }? {
                // SAFETY: ends this process and runs nothing of ours.
                ForkResult::Child => unsafe { libc::_exit(0) },
                ForkResult::Parent { .. } => Ok(()),
            },
            Self::OpenAfterRevoke => open("/", OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty()).map(drop),
        }
    }
}

fn create_in(dir: &Path) -> Result<(), Errno> {
    let path = dir.join(format!(".gracekeeper-doctor-{}", std::process::id()));
    let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
    open(&path, flags, Mode::S_IRUSR)?;
    nix::unistd::unlink(&path)
}

/// A new terminal becomes the controlling one, and a byte is put into its input (TIOCSTI, ioctl_tty(2)).
fn type_into_terminal() -> Result<(), Errno> {
    let _ = nix::unistd::setsid();
    // The terminal goes before the answer is given.
    // SAFETY: SIG_IGN installs no handler.
    unsafe { libc::signal(libc::SIGHUP, libc::SIG_IGN) };
    let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    let master = open("/dev/ptmx", flags, Mode::empty())?;
    let unlocked = 0i32;
    // SAFETY: TIOCSPTLCK reads one int.
    Errno::result(unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCSPTLCK, &raw const unlocked) })?;
    // SAFETY: TIOCGPTPEER takes open(2)'s flags; the descriptor it gives goes with this process.
    let slave = Errno::result(unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCGPTPEER, flags.bits()) })?;
    // SAFETY: TIOCSCTTY takes an integer.
    Errno::result(unsafe { libc::ioctl(slave, libc::TIOCSCTTY, 0) })?;
    // SAFETY: TIOCSTI reads one byte.
    Errno::result(unsafe { libc::ioctl(slave, libc::TIOCSTI, b"x".as_ptr()) }).map(drop)
}

/// getpid(2) by its 32-bit number.
#[cfg(target_arch = "x86_64")]
fn foreign_call() -> Result<(), Errno> {
    let answer: i32;
    // SAFETY: the call takes no argument and touches no memory; what the kernel's 32-bit entry may change is declared.
    unsafe {
        std::arch::asm!("int 0x80", inlateout("eax") 20i32 => answer, out("r8") _, out("r9") _, out("r10") _,
            out("r11") _);
    }
    if answer < 0 { Err(Errno::from_raw(answer.saturating_neg())) } else { Ok(()) }
}

/// PTRACE_SEIZE (ptrace(2)): attaches without stopping. The tracer's end lets go.
///
/// # Errors
/// The errno of `ptrace(2)`.
pub fn seize(pid: i32) -> Result<(), Errno> {
    let null = std::ptr::null_mut::<libc::c_void>();
    // SAFETY: PTRACE_SEIZE takes a pid, an address that must be null and options 0.
    Errno::result(unsafe { libc::ptrace(libc::PTRACE_SEIZE, pid, null, null) }).map(drop)
}

/// A duplicate of another process's descriptor (pidfd_getfd(2)), closed again.
///
/// # Errors
/// The errno of `pidfd_open(2)` or `pidfd_getfd(2)`.
pub fn take_descriptor(pid: i32, fd: RawFd) -> Result<(), Errno> {
    let held = super::kill::pidfd(pid)?;
    // SAFETY: pidfd_getfd(2) takes integers.
    let copy = Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_getfd, held.as_raw_fd(), fd, 0u32) })?;
    nix::unistd::close(i32::try_from(copy).map_err(|_| Errno::EBADF)?)
}

/// A socket that asks the kernel for its sockets (sock_diag(7)).
///
/// # Errors
/// The errno of `socket(2)`.
pub fn sock_diag() -> Result<(), Errno> {
    const NETLINK_SOCK_DIAG: i32 = 4;
    // SAFETY: socket(2) takes integers.
    let fd = Errno::result(unsafe {
        libc::socket(libc::AF_NETLINK, libc::SOCK_RAW | libc::SOCK_CLOEXEC, NETLINK_SOCK_DIAG)
    })?;
    nix::unistd::close(fd)
}

/// Blocks SIGTERM, so that one that is let through stays pending.
pub fn hold_stop() {
    let _ = sigprocmask(SigmaskHow::SIG_BLOCK, Some(&SigSet::from(Signal::SIGTERM)), None);
}

/// Takes a pending SIGTERM away; whether there was one.
pub fn drop_stop() -> bool {
    let set = SigSet::from(Signal::SIGTERM);
    let now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: sigtimedwait(2) reads a set and a timespec; the siginfo pointer may be null.
    unsafe {
        libc::sigtimedwait(std::ptr::from_ref(set.as_ref()), std::ptr::null_mut(), &raw const now) == libc::SIGTERM
    }
}

/// What became of one child.
#[derive(Debug)]
pub struct Answer {
    /// The report of the steps, where there was a confinement.
    pub report: [u8; REPORT],
    /// How the attack ended; `None` where the child died of it or did not answer.
    pub result: Option<Result<(), Errno>>,
}

/// Forks, takes the steps of `confinement` if one is given, lets `meanwhile` do something with the child, then tries
/// `attack` in it.
///
/// # Errors
/// The errno of `socketpair(2)` or `fork(2)`.
pub fn child(
    confinement: Option<&dyn Prepare>,
    attack: &Attack,
    meanwhile: &mut dyn FnMut(i32),
) -> Result<Answer, Errno> {
    let (mut ours, mut theirs) = UnixStream::pair().map_err(|e| super::outcome::errno(&e))?;
    let supervisor = nix::unistd::getpid().as_raw();
    // SAFETY: the verbs have one thread, so the child may allocate; it ends by _exit and returns to nobody.
    match unsafe { nix::unistd::fork() }? {
        ForkResult::Child => {
            let mut report = [0u8; REPORT];
            if let Some(confinement) = confinement {
                confinement.apply(&[theirs.as_raw_fd()], &mut report);
            }
            let mut go = [0u8; 1];
            if theirs.write_all(&report).and_then(|()| theirs.read_exact(&mut go)).is_ok() {
                let errno = attack.attempt(supervisor).err().map_or(0, |e| e as i32);
                let _ = theirs.write_all(&errno.to_ne_bytes());
            }
            // SAFETY: _exit(2) runs no destructor of the parent's copies.
            unsafe { libc::_exit(0) }
        }
        ForkResult::Parent { child } => {
            drop(theirs);
            let mut answer = Answer { report: [0; REPORT], result: None };
            let mut errno = [0u8; 4];
            if read(&mut ours, &mut answer.report) {
                meanwhile(child.as_raw());
                if ours.write_all(&[1]).is_ok() && read(&mut ours, &mut errno) {
                    let errno = i32::from_ne_bytes(errno);
                    answer.result = Some(if errno == 0 { Ok(()) } else { Err(Errno::from_raw(errno)) });
                }
            }
            // It is our unreaped child, so the number is still its own.
            let _ = kill(child, Signal::SIGKILL);
            while nix::sys::wait::waitpid(child, None) == Err(Errno::EINTR) {}
            Ok(answer)
        }
    }
}

/// The variables of a child that was just spawned, as it has them once it is executed; then the child is ended.
///
/// # Errors
/// The errno with which the exec failed, `ETIMEDOUT` where it took too long, or that of reading `/proc/PID/environ`.
pub fn environment(child: &mut Child) -> Result<Vec<Vec<u8>>, Errno> {
    let launched = loop {
        match child.handshake() {
            Handshake::Launched => break Ok(()),
            Handshake::Failed(_, errno) => break Err(errno),
            Handshake::Pending => {}
        }
        match poll(&mut [PollFd::new(child.fd(), PollFlags::POLLIN)], PollTimeout::from(PATIENCE)) {
            Ok(1..) | Err(Errno::EINTR) => {}
            _ => break Err(Errno::ETIMEDOUT),
        }
    };
    let text = launched
        .and_then(|()| std::fs::read(format!("/proc/{}/environ", child.pid)).map_err(|e| super::outcome::errno(&e)));
    let pid = Pid::from_raw(child.pid);
    // It is our unreaped child, so the number is still its own.
    let _ = kill(pid, Signal::SIGKILL);
    while nix::sys::wait::waitpid(pid, None) == Err(Errno::EINTR) {}
    let text = text?;
    let whole = text.strip_suffix(&[0]).unwrap_or(&text);
    Ok(if whole.is_empty() { Vec::new() } else { whole.split(|&b| b == 0).map(<[u8]>::to_vec).collect() })
}

/// All of `buffer`, unless the other end closes or takes too long.
fn read(from: &mut UnixStream, buffer: &mut [u8]) -> bool {
    let mut used = 0;
    while let Some(rest) = buffer.get_mut(used..).filter(|rest| !rest.is_empty()) {
        let mut fds = [PollFd::new(from.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, PollTimeout::from(PATIENCE)) {
            Ok(1..) => {}
            Err(Errno::EINTR) => continue,
            _ => return false,
        }
        match from.read(rest) {
            Ok(n @ 1..) => used += n,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            _ => return false,
        }
    }
    true
}
